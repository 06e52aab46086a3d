"""Vocabularies of feature values and users: what had a row keeps it, what is new is appended. Pure.

TFT numbers the words of a vocabulary by frequency, anew in every run: one more book and `crime` swaps rows
with `comedy`, and an embedding that was trained for the one is read for the other. Line n of these files
(from 0) is one word for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

# The line that TFT writes into a vocabulary without words (`tft.vocabulary`); no value is this text.
NO_WORD = b"49d0cd50-04bb-48c0-bc6f-5b575dce351a"


@dataclass(frozen=True)
class Vocabulary:
    """Words in row order and what happened to them.

    Attributes:
        words: One per line of the file.
        num_previous: The first so many come from the last run.
        retired: Words of the last run that this run's data lacks; they keep their line.
        rare: Distinct values without a line: too rare, or the vocabulary is full.
        out_of_vocabulary: Occurrences of these.
        occurrences: All occurrences.
    """

    words: tuple[bytes, ...]
    num_previous: int
    retired: tuple[bytes, ...]
    rare: int
    out_of_vocabulary: int
    occurrences: int

    def to_record(self) -> dict[str, Any]:
        """Counts for the report, with the first retired words by name."""
        return {
            "rows": len(self.words),
            "new": len(self.words) - self.num_previous,
            "retired": len(self.retired),
            "retired_values": [word.decode(errors="replace") for word in self.retired[:20]],
            "rare": self.rare,
            "out_of_vocabulary_share": round(self.out_of_vocabulary / self.occurrences, 6) if self.occurrences else 0.0,
        }


def count_values(column: pa.Array, width: int | None) -> Counter[bytes]:
    """Occurrences of the values that the graph looks up: of the first `width` of each record, no empty ones.

    Numbers count as the text that the graph makes of them.

    Args:
        column: List array.
        width: Values of a record that are read; None = all.
    """
    if pa.types.is_null(column.type):
        return Counter()
    lists = column if width is None else pc.list_slice(column, 0, width)
    values = lists.flatten().drop_null()
    counted = values.value_counts()
    pairs = zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
    return Counter({word: count for value, count in pairs if (word := _as_bytes(value)) and is_word(word)})


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, float):
        return f"{value:f}".encode()
    return value if isinstance(value, bytes) else str(value).encode()


def is_word(word: bytes) -> bool:
    """False for what a file of lines cannot hold."""
    return bool(word) and b"\n" not in word and b"\r" not in word


def append_new(
    previous: Sequence[bytes],
    counts: Counter[bytes],
    *,
    size: int,
    min_count: int = 1,
    order: Sequence[bytes] | None = None,
) -> Vocabulary:
    """Continues a vocabulary.

    New words come by falling count, equal counts by rising bytes, so the result depends on the data alone.

    Args:
        previous: Words of the last run in row order.
        counts: Occurrences in this run's data.
        size: Lines at most; lines that are there stay even if there are more.
        min_count: Occurrences that a new word needs.
        order: Order of new words instead of that by count.
    """
    known = set(previous)
    fresh = [word for word, count in counts.items() if word not in known and count >= min_count]
    if order is None:
        fresh.sort(key=lambda word: (-counts[word], word))
    else:
        chosen = set(fresh)
        fresh = [word for word in order if word in chosen]
    words = (*previous, *fresh[: max(size - len(previous), 0)])
    has_row = set(words)
    outside = {word: count for word, count in counts.items() if word not in has_row}
    return Vocabulary(
        words=words,
        num_previous=len(previous),
        retired=tuple(word for word in previous if word not in counts),
        rare=len(outside),
        out_of_vocabulary=sum(outside.values()),
        occurrences=sum(counts.values()),
    )


def to_text(words: Iterable[bytes]) -> bytes:
    """Content of the file; TensorFlow refuses one without a word, so `NO_WORD` then stands in it, as in TFT's."""
    return b"".join(word + b"\n" for word in words) or NO_WORD + b"\n"


def read_lines(text: bytes) -> tuple[bytes, ...]:
    """Words of a file that `to_text` wrote, in row order."""
    return tuple(word for word in text.split(b"\n")[:-1] if word != NO_WORD)
