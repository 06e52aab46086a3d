"""Which files make up a table."""

from pathlib import Path

import pytest

from components.arrow_example_gen.sources import find_files, fingerprint
from components.errors import InputError, MissingInputError


def write(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def names(folder: Path, **options) -> list[str]:
    return [source.name for source in find_files(str(folder), "interactions", **options)]


def test_one_file(tmp_path):
    write(tmp_path / "interactions.parquet")
    write(tmp_path / "interactions_old.csv")
    assert names(tmp_path) == ["interactions.parquet"]


def test_two_files_of_a_table_are_refused(tmp_path):
    write(tmp_path / "interactions.csv")
    write(tmp_path / "interactions.parquet")
    with pytest.raises(InputError, match="more than once: interactions.csv, interactions.parquet; keep one"):
        find_files(str(tmp_path), "interactions")


def test_a_missing_table_lists_what_is_there_and_suggests(tmp_path):
    write(tmp_path / "interaction.csv")
    write(tmp_path / "notes.txt")
    with pytest.raises(MissingInputError, match=r"holds: interaction.csv, notes.txt; rename interaction.csv\?"):
        find_files(str(tmp_path), "interactions")


def test_a_missing_folder_suggests_its_neighbour(tmp_path):
    (tmp_path / "movies").mkdir()
    with pytest.raises(MissingInputError, match=r"did you mean .*/movies\?"):
        find_files(str(tmp_path / "movie"), "interactions")
    write(tmp_path / "file")
    with pytest.raises(MissingInputError, match="is a file"):
        find_files(str(tmp_path / "file"), "interactions")


def spans(folder: Path, *dates: str) -> None:
    for date in dates:
        write(folder / "interactions" / f"span-{date}" / "part-2.csv")
        write(folder / "interactions" / f"span-{date}" / "part-1.csv")
        write(folder / "interactions" / f"span-{date}" / "_SUCCESS")


def test_spans_are_read_by_date_then_name(tmp_path):
    spans(tmp_path, "20260102", "20251231")
    assert names(tmp_path) == [
        "interactions/span-20251231/part-1.csv",
        "interactions/span-20251231/part-2.csv",
        "interactions/span-20260102/part-1.csv",
        "interactions/span-20260102/part-2.csv",
    ]


def dates(folder: Path, **options) -> list[str]:
    return sorted({source.span for source in find_files(str(folder), "interactions", **options)})


def test_a_window_counts_days_up_to_the_newest_span(tmp_path):
    spans(tmp_path, "20260101", "20260110", "20260111", "20260120")
    assert dates(tmp_path, window="10d") == ["20260111", "20260120"]
    assert dates(tmp_path, window="11d") == ["20260110", "20260111", "20260120"]
    assert dates(tmp_path, window="1d") == ["20260120"]


def test_excluded_spans_do_not_move_into_the_window(tmp_path):
    spans(tmp_path, "20260101", "20260110", "20260120")
    assert dates(tmp_path, exclude_spans=("20260120",)) == ["20260101", "20260110"]
    assert dates(tmp_path, window="10d", exclude_spans=("20260120",)) == ["20260101", "20260110"]
    with pytest.raises(MissingInputError, match="none of the 3 span folders"):
        find_files(str(tmp_path), "interactions", exclude_spans=("20260101", "20260110", "20260120"))


def test_a_late_span_changes_the_fingerprint(tmp_path):
    spans(tmp_path, "20260102")
    before = fingerprint(find_files(str(tmp_path), "interactions"))
    assert fingerprint(find_files(str(tmp_path), "interactions")) == before
    spans(tmp_path, "20260101")
    assert fingerprint(find_files(str(tmp_path), "interactions")) != before


def test_the_fingerprint_depends_on_content_alone(tmp_path):
    import os

    write(tmp_path / "interactions.csv", "a,b\n1,2\n")
    source = find_files(str(tmp_path), "interactions")
    first = fingerprint(source)
    os.utime(tmp_path / "interactions.csv", (1, 1))
    assert fingerprint(source) == first
    write(tmp_path / "interactions.csv", "a,b\n1,3\n")
    os.utime(tmp_path / "interactions.csv", (1, 1))
    assert fingerprint(source) != first


def test_a_span_that_is_no_date(tmp_path):
    spans(tmp_path, "20261340")
    with pytest.raises(InputError, match="20261340 is no date"):
        find_files(str(tmp_path), "interactions")
