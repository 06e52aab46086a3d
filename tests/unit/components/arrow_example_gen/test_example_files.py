"""tf.Examples out and in again."""

import gzip

import pyarrow as pa
import pytest

from components.arrow_example_gen import planning, reading
from components.arrow_example_gen.columns import Column
from components.arrow_example_gen.encoding import encode_examples
from components.arrow_example_gen.example_files import read_examples
from components.arrow_example_gen.sources import SourceFile
from components.errors import UnreadableFileError
from models.keras import tf

COLUMNS = (
    Column("item_id", "id", required=True),
    Column("genres", "strings"),
    Column("price", "number"),
    Column("released", "seconds"),
)
BATCH = pa.RecordBatch.from_arrays(
    [
        pa.array(["a", "b", "ü"]),
        pa.array([["x", "y"], None, ["z"]]),
        pa.array([1.5, None, -2.0], pa.float32()),
        pa.array([None, 2**33, -7], pa.int64()),
    ],
    ["item_id", "genres", "price", "released"],
)


def values_of(record: bytes) -> dict[str, list]:
    example = tf.train.Example.FromString(record)
    found = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        if kind is not None:
            found[name] = list(getattr(feature, kind).value)
    return found


def test_missing_values_are_absent_features():
    assert [values_of(record) for record in encode_examples(BATCH).to_pylist()] == [
        {"item_id": [b"a"], "genres": [b"x", b"y"], "price": [1.5]},
        {"item_id": [b"b"], "released": [2**33]},
        {"item_id": ["ü".encode()], "genres": [b"z"], "price": [-2.0], "released": [-7]},
    ]


def test_bytes_are_those_of_protobufs_deterministic_serialization():
    """Whatever the process: tfx_bsl's encoder orders the features anew in each."""
    strings = [["a", "b" * 200, ""], None, [], ["ü" * 70_000]]
    batch = pa.RecordBatch.from_pydict(
        {
            "zeta": pa.array(strings, pa.list_(pa.string())),
            "alpha": pa.array([[1, -1, 2**63 - 1], None, [], [127, 128, 0]], pa.list_(pa.int64())),
            "ä": pa.array([[0.1, float("nan")], None, [], [-1e30] * 99], pa.list_(pa.float32())),
            "single": pa.array([b"\0", None, b"x", b""], pa.large_binary()),
        }
    )
    expected = []
    for row in batch.to_pylist():
        example = tf.train.Example()
        for name, values in row.items():
            feature = example.features.feature[name]
            if values is None:
                continue
            kind = {"zeta": "bytes_list", "single": "bytes_list", "alpha": "int64_list", "ä": "float_list"}[name]
            values = values if isinstance(values, list) else [values]
            getattr(feature, kind).SetInParent()
            getattr(feature, kind).value.extend([v.encode() if isinstance(v, str) else v for v in values])
        expected.append(example.SerializeToString(deterministic=True))
    assert encode_examples(batch).to_pylist() == expected
    assert encode_examples(batch.slice(1, 2)).to_pylist() == expected[1:3]


def test_a_slice_is_encoded_at_its_own_offset():
    assert values_of(encode_examples(BATCH.slice(2))[0].as_py()) == {
        "item_id": ["ü".encode()],
        "genres": [b"z"],
        "price": [-2.0],
        "released": [-7],
    }


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_records_come_back(tmp_path, compression):
    path = str(tmp_path / "items.tfrecord")
    with tf.io.TFRecordWriter(path, compression) as writer:
        for record in encode_examples(BATCH).to_pylist() * 3:
            writer.write(record)
    batches = list(read_examples([path], {"genres": "strings", "nothing": "number"}, batch_rows=4))
    assert [batch.num_rows for batch in batches] == [4, 4, 1]
    genres = [value for batch in batches for value in batch.column("genres").to_pylist()]
    assert genres == [[b"x", b"y"], None, [b"z"]] * 3
    piece = next(planning.plan_pieces([SourceFile(path, "items.tfrecord", "tfrecord")], COLUMNS))
    (batch,) = reading.read_piece(piece, COLUMNS)
    assert batch.rows.slice(0, 3).equals(BATCH) and batch.rows.num_rows == 9


def test_damage_is_an_input_error(tmp_path):
    plain = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(plain)) as writer:
        for record in encode_examples(BATCH).to_pylist():
            writer.write(record)
    data = plain.read_bytes()
    damaged = {
        "a.tfrecord is truncated": data[:-3],
        "truncated, or no TFRecord": b"user_id,item_id\n1,2\n",
        "is truncated": gzip.compress(data)[:-10],
        "is damaged": gzip.compress(data)[:-8] + bytes(8),
        "no tf.Example": data.replace(b"genres", b"genre\xff").replace(b"\n", b"\x0f", 1),
    }
    for words, content in damaged.items():
        plain.write_bytes(content)
        with pytest.raises(UnreadableFileError, match=words):
            list(read_examples([str(plain)], None))
