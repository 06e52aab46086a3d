"""When bad rows stop a run: shared by the check before the run and the ingest itself."""

from __future__ import annotations

from collections.abc import Sequence

from components.errors import BadValueError, MissingInputError


def check_bad_rows(table: str, rows: int, bad_rows: int, max_share: float, first: Sequence[str]) -> None:
    """Checks the share of bad rows of a table.

    Args:
        table: Name of the table.
        rows: Number of good rows.
        bad_rows: Number of bad rows.
        max_share: Largest share of bad rows allowed, in [0, 1].
        first: The first bad rows, as messages.

    Raises:
        BadValueError: Too many bad rows, or no good one is left.
        MissingInputError: There is no row at all.
    """
    if not bad_rows and rows:
        return
    total = rows + bad_rows
    if not total:
        raise MissingInputError(f"{table} has no rows; write the file again")
    if rows and bad_rows <= max_share * total:
        return
    shown = "".join(f"\n  {text}" for text in first[:5])
    more = f"\n  … and {bad_rows - len(first[:5]):,} more" if bad_rows > len(first[:5]) else ""
    share = bad_rows / max(total, 1)
    set_aside = ", or set them aside with --set data.cleaning.max_bad_row_share=SHARE" if rows else ""
    raise BadValueError(
        f"{bad_rows:,} of {total:,} rows of {table} are bad ({share:.2%}, allowed are {max_share:.2%}):"
        f"{shown}{more}\nCorrect the rows{set_aside}"
    )
