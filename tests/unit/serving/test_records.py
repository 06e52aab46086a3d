"""TFRecord files, read and written without TensorFlow."""

from pathlib import Path

import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from serving.records import RecordError, encode_record, read_records
from serving.warmup_records import MAX_RECORDS, write_warmup_records


def test_both_ways_agree_with_tensorflow(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    records = [b"", b"a" * 1000, b"\x00\xff"]
    ours.write_bytes(b"".join(map(encode_record, records)))
    with tf.io.TFRecordWriter(str(theirs)) as writer:
        for record in records:
            writer.write(record)
    assert ours.read_bytes() == theirs.read_bytes()
    assert list(read_records(theirs)) == records


@pytest.mark.parametrize("position", [3, 9, 14, 22])
def test_damage_is_noticed(tmp_path: Path, position: int) -> None:
    file = tmp_path / "file"
    data = bytearray(encode_record(b"0123456789"))
    data[position] ^= 1
    file.write_bytes(data)
    with pytest.raises(RecordError, match="corrupted record at 0"):
        list(read_records(file))
    file.write_bytes(encode_record(b"0123456789")[:-position])
    with pytest.raises(RecordError, match="truncated record at 0"):
        list(read_records(file))


def test_warm_up_records_are_refused_where_no_server_would_take_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no saved_model.pb"):
        write_warmup_records(tmp_path, [])
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ValueError, match="1001 warm-up records given"):
        write_warmup_records(tmp_path, [predict_pb2.PredictRequest()] * (MAX_RECORDS + 1))
    assert not (tmp_path / "assets.extra").exists()
