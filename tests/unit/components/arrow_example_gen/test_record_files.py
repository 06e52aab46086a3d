"""Record files are what TensorFlow reads, and appear whole."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from components.arrow_example_gen import record_files
from components.arrow_example_gen.example_files import read_records

RECORDS = [b"", b"a", b"x" * 100_000, bytes(range(256))]


def write_records(path: Path, batches: object) -> int:
    return record_files.write_records(str(path), batches, str(path.parent), compression_level=1)  # type: ignore[arg-type]


def as_batch(records: list[bytes]) -> pa.Array:
    return pa.array(records, pa.large_binary())


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "records.gz"
    assert write_records(path, [as_batch(RECORDS[:1]), as_batch(RECORDS).slice(1)]) == 4
    return path


def test_tensorflow_reads_what_is_written_and_checks_its_checksums(written: Path) -> None:
    from models.keras import tf

    dataset = tf.data.TFRecordDataset(str(written), compression_type="GZIP")
    assert list(dataset.as_numpy_iterator()) == RECORDS


def test_the_same_records_give_the_same_bytes_in_any_batches(written: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "again.gz", [as_batch(RECORDS)])
    assert (tmp_path / "again.gz").read_bytes() == written.read_bytes()


def test_an_empty_file_is_a_valid_file(tmp_path: Path) -> None:
    assert write_records(tmp_path / "empty.gz", []) == 0
    with open(tmp_path / "empty.gz", "rb") as stream:
        assert list(read_records(stream, "empty.gz", 10)) == []


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> object:
        yield as_batch([b"a"])
        raise RuntimeError("broken source")

    with pytest.raises(RuntimeError, match="broken source"):
        write_records(tmp_path / "records.gz", broken())
    assert not list(tmp_path.iterdir())
