"""Reads the first sheet of an Excel workbook row by row, in memory that does not grow with the sheet.

Only what a plain table needs: numbers, booleans, shared and inline strings. Dates are numbers, as Excel
stores them: days since 1899-12-30. Source of the format: ECMA-376, part 1, chapter 18.
"""

from __future__ import annotations

import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO
from xml.etree import ElementTree
from xml.parsers import expat

Cell = str | float | bool | None

_CHUNK_BYTES = 1 << 18
_REL_ID = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"


class WorkbookError(ValueError):
    """The file is no workbook, or uses what is not read here."""


def read_rows(stream: IO[bytes]) -> Iterator[list[Cell]]:
    """Rows of the first sheet; cells that are not written are None, trailing ones are left out.

    Args:
        stream: The .xlsx file; must be able to seek.

    Raises:
        WorkbookError: The file is damaged or no workbook.
    """
    try:
        with zipfile.ZipFile(stream) as book:
            names = set(book.namelist())
            strings = _shared_strings(book) if "xl/sharedStrings.xml" in names else []
            with book.open(_first_sheet(book)) as sheet:
                yield from _SheetParser(strings).rows(sheet)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, expat.ExpatError, ElementTree.ParseError) as error:
        raise WorkbookError(f"not a readable Excel workbook: {error}") from error


def _first_sheet(book: zipfile.ZipFile) -> str:
    workbook = ElementTree.fromstring(book.read("xl/workbook.xml"))
    relations = ElementTree.fromstring(book.read("xl/_rels/workbook.xml.rels"))
    targets = {relation.get("Id"): relation.get("Target", "") for relation in relations}
    sheet = next((element for element in workbook.iter() if element.tag.endswith("}sheet")), None)
    if sheet is None or sheet.get(_REL_ID) not in targets:
        raise WorkbookError("the workbook has no sheet")
    return posixpath.normpath(posixpath.join("/xl", targets[sheet.get(_REL_ID)])).lstrip("/")


def _shared_strings(book: zipfile.ZipFile) -> list[str]:
    strings: list[str] = []
    with book.open("xl/sharedStrings.xml") as stream:
        for _, element in ElementTree.iterparse(stream):
            if element.tag.endswith("}si"):
                strings.append(_text(element))
                element.clear()
    return strings


def _text(item: ElementTree.Element) -> str:
    """Text of a string item: its own, or that of its formatted runs; no phonetic hints."""
    parts = []
    for child in item:
        name = child.tag.rpartition("}")[2]
        if name == "t":
            parts.append(child.text or "")
        elif name == "r":
            parts.extend(run.text or "" for run in child if run.tag.endswith("}t"))
    return "".join(parts)


def column_index(reference: str) -> int:
    """0-based column of a cell reference: A1 -> 0, AB7 -> 27."""
    index = 0
    for character in reference:
        if not character.isalpha():
            break
        index = index * 26 + ord(character) - ord("A") + 1
    return index - 1


class _SheetParser:
    """Turns the XML events of a sheet into rows."""

    def __init__(self, strings: list[str]) -> None:
        self._strings = strings
        self._ready: list[list[Cell]] = []
        self._row: list[Cell] = []
        self._kind = "n"
        self._column = -1
        self._text: list[str] = []
        self._reading = False
        self._phonetic = False

    def rows(self, stream: IO[bytes]) -> Iterator[list[Cell]]:
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        while chunk := stream.read(_CHUNK_BYTES):
            parser.Parse(chunk, False)
            ready, self._ready = self._ready, []
            yield from ready
        parser.Parse(b"", True)
        yield from self._ready

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.rpartition(":")[2]
        if name == "c":
            reference = attributes.get("r")
            self._column = column_index(reference) if reference else self._column + 1
            self._kind = attributes.get("t", "n")
            self._text = []
        elif name == "row":
            self._row, self._column = [], -1
        elif name == "rPh":
            self._phonetic = True
        elif name in ("v", "t"):
            self._reading = not self._phonetic

    def _characters(self, text: str) -> None:
        if self._reading:
            self._text.append(text)

    def _end(self, tag: str) -> None:
        name = tag.rpartition(":")[2]
        if name in ("v", "t"):
            self._reading = False
        elif name == "rPh":
            self._phonetic = False
        elif name == "c":
            value = self._value("".join(self._text))
            if value is not None:
                self._row.extend([None] * (self._column - len(self._row)))
                self._row.append(value)
        elif name == "row":
            self._ready.append(self._row)

    def _value(self, text: str) -> Cell:
        if not text:
            return None
        try:
            if self._kind == "s":
                return self._strings[int(text)]
            if self._kind == "n":
                return float(text)
        except (ValueError, IndexError) as error:
            raise WorkbookError(f"a cell of type {self._kind!r} holds {text[:40]!r}") from error
        if self._kind == "b":
            return text == "1"
        return None if self._kind == "e" else text


__all__ = ["Cell", "WorkbookError", "column_index", "read_rows"]
