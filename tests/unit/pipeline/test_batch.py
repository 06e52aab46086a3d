"""`tandem batch` against a SavedModel whose answers are known."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.errors import InputError
from pipeline.commands import batch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers the first of a, b, c, d that are not in the history, scored length of the country minus place."""
    from models.keras import tf

    class Answer(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None, None], tf.string, "history"),
                tf.TensorSpec([None, None], tf.string, "exclude"),
                tf.TensorSpec([], tf.int32, "k"),
                tf.TensorSpec([None], tf.string, "country"),
            ]
        )
        def recommend(self, history, exclude, k, country):
            items = tf.constant(["a", "b", "c", "d"])
            gone = tf.concat([history, exclude], axis=1)
            seen = tf.reduce_any(gone[:, :, None] == items, axis=1)
            place = tf.cast(tf.range(4), tf.float32)
            score = tf.cast(tf.strings.length(country), tf.float32)[:, None] - place
            values, order = tf.math.top_k(tf.where(seen, -1e9, score), tf.minimum(k, 4))
            return {"item_ids": tf.where(values > -1e8, tf.gather(items, order), ""), "scores": values}

    module = Answer()
    path = tmp_path_factory.mktemp("model") / "shop" / "7"
    tf.saved_model.save(module, str(path), signatures={"recommend": module.recommend})
    return path


def write_requests(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_answers_are_ranked_and_leave_out_the_history(model: Path, tmp_path: Path) -> None:
    requests = write_requests(
        tmp_path / "r.parquet",
        user_id=["u1", "u2", "u3"],
        history=[["a"], [], ["d", "b", "x"]],
        country=["xxxxx", None, "x"],
    )
    count = batch.answer_requests(model.parent, requests, tmp_path / "o.parquet", k=2, batch_size=2)
    assert count == 3
    assert pq.read_table(tmp_path / "o.parquet").to_pylist() == [
        {"user_id": "u1", "item_id": "b", "rank": 1, "score": 4.0},
        {"user_id": "u1", "item_id": "c", "rank": 2, "score": 3.0},
        {"user_id": "u2", "item_id": "a", "rank": 1, "score": 0.0},
        {"user_id": "u2", "item_id": "b", "rank": 2, "score": -1.0},
        {"user_id": "u3", "item_id": "a", "rank": 1, "score": 1.0},
        {"user_id": "u3", "item_id": "c", "rank": 2, "score": -1.0},
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.parquet", "r.parquet"]


def test_a_short_catalogue_gives_fewer_rows_not_empty_ids(model: Path, tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "r.parquet", user_id=["u"], history=[["a", "b", "c"]], exclude=[["x"]])
    batch.answer_requests(model, requests, tmp_path / "o.parquet", k=50)
    assert [row["item_id"] for row in pq.read_table(tmp_path / "o.parquet").to_pylist()] == ["d"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": ["u"]}, r"column 'history' is missing; it has \['user_id'\]"),
        ({"user_id": ["u"], "history": ["a,b"]}, "history must be a list of item ids"),
    ],
)
def test_malformed_requests_are_named_and_nothing_is_written(
    model: Path, tmp_path: Path, columns: dict, message: str
) -> None:
    requests = write_requests(tmp_path / "r.parquet", **columns)
    with pytest.raises(InputError, match=message):
        batch.answer_requests(model, requests, tmp_path / "o.parquet", k=2)
    assert not (tmp_path / "o.parquet").exists()


def test_a_file_that_is_no_parquet_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "r.parquet").write_text("user_id,history\n")
    with pytest.raises(InputError, match=r"r\.parquet: not a readable Parquet file"):
        batch.answer_requests(model, tmp_path / "r.parquet", tmp_path / "o.parquet", k=2)


def test_numbers_as_ids_are_read_as_text(model: Path, tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "r.parquet", user_id=[7], history=pa.array([[b"a", None]]), exclude=[[3]])
    batch.answer_requests(model, requests, tmp_path / "o.parquet", k=1)
    assert pq.read_table(tmp_path / "o.parquet").to_pylist() == [
        {"user_id": "7", "item_id": "b", "rank": 1, "score": -1.0}
    ]


def test_a_feature_of_another_type_is_named_and_nothing_is_written(model: Path, tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "r.parquet", user_id=["u"], history=[["a"]], country=[7])
    with pytest.raises(InputError, match="column 'country' holds int64, but the model reads string of rank 1"):
        batch.answer_requests(model, requests, tmp_path / "o.parquet", k=1)
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]


def test_a_damaged_model_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "r.parquet", user_id=["u"], history=[["a"]])
    (tmp_path / "saved_model.pb").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match=f"--model {tmp_path}: no readable SavedModel"):
        batch.answer_requests(tmp_path, requests, tmp_path / "o.parquet", k=1)
    assert not (tmp_path / "o.parquet").exists()


def test_the_newest_version_of_a_base_path_is_taken(tmp_path: Path) -> None:
    for version in ("9", "10", "tmp"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "saved_model.pb").touch()
    assert batch.find_model(tmp_path) == tmp_path / "10"


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds neither saved_model.pb nor version folders"):
        batch.find_model(tmp_path)
