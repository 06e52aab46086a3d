"""Record files are what TensorFlow reads and writes, and appear whole."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from components.sequence_gen.record_files import read_records, write_records

RECORDS = [b"", b"a", b"x" * 100_000, bytes(range(256))]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "records.gz"
    assert write_records(str(path), [RECORDS[:1], RECORDS[1:]], str(tmp_path)) == 4
    return path


def test_tensorflow_reads_what_is_written(written: Path) -> None:
    from models.keras import tf

    dataset = tf.data.TFRecordDataset(str(written), compression_type="GZIP")
    assert list(dataset.as_numpy_iterator()) == RECORDS


def test_what_tensorflow_writes_is_read(tmp_path: Path) -> None:
    from models.keras import tf

    for name, compression in (("plain", ""), ("zipped.gz", "GZIP")):
        with tf.io.TFRecordWriter(str(tmp_path / name), compression) as writer:
            for record in RECORDS:
                writer.write(record)
        assert list(read_records(str(tmp_path / name), batch_size=3)) == [RECORDS[:3], RECORDS[3:]]


def test_the_same_records_give_the_same_bytes_in_any_batches(written: Path, tmp_path: Path) -> None:
    write_records(str(tmp_path / "again.gz"), [RECORDS], str(tmp_path))
    assert (tmp_path / "again.gz").read_bytes() == written.read_bytes()


def test_an_empty_file_is_a_valid_file(tmp_path: Path) -> None:
    assert write_records(str(tmp_path / "empty.gz"), [], str(tmp_path)) == 0
    assert list(read_records(str(tmp_path / "empty.gz"))) == []


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> object:
        yield [b"a"]
        raise RuntimeError("broken source")

    with pytest.raises(RuntimeError, match="broken source"):
        write_records(str(tmp_path / "records.gz"), broken(), str(tmp_path))  # type: ignore[arg-type]
    assert not (tmp_path / "records.gz").exists()


def test_a_file_cut_inside_a_record_is_refused(written: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(gzip.decompress(written.read_bytes())[:-7]))
    with pytest.raises(OSError, match="ends inside a record"):
        list(read_records(str(cut)))
