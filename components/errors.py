"""Errors that a user of the pipeline can mend: bad files, bad columns, bad values.

Every message says what is wrong, where, and what to do about it. The command line prints the
message without a traceback and exits with code 2.

    InputError (ValueError)
    ├── MissingInputError    a folder, file or column is not there
    ├── UnreadableFileError  a file is damaged, in another format or another encoding
    ├── BadValueError        a value breaks the rules of its column
    └── DataAnomalyError     the data as a whole breaks the schema or a configured check
"""

from __future__ import annotations

from typing import Any


class InputError(ValueError):
    """Bad input that the user can mend. The message is written for the user."""


class MissingInputError(InputError):
    """A folder, file or column is not there."""


class UnreadableFileError(InputError):
    """A file is damaged, in another format or another encoding."""


class BadValueError(InputError):
    """A value breaks the rules of its column."""


class DataAnomalyError(InputError):
    """The data as a whole breaks the schema or a configured check.

    Attributes:
        record: What the checks measured, for the report of the run that they stop; empty if nothing was.
    """

    def __init__(self, message: str, *, record: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.record = record or {}


__all__ = ["BadValueError", "DataAnomalyError", "InputError", "MissingInputError", "UnreadableFileError"]
