"""The models that the serving benchmarks serve: the cheapest possible one, and Tandem's own with 100,000 items."""

import os
from pathlib import Path

import numpy as np
from tensorflow_serving.apis import predict_pb2

from serving.load_generator import Recorded, generate_requests

MODEL = "bench"
NUM_ITEMS = 100_000
HISTORY_LENGTH = 20
DIMENSIONS = 64


def write_trivial(base: Path, version: int) -> None:
    """Exports version N of y = x / 2 + N, aside and renamed as the Pusher does: all its cost is the server's."""
    import tensorflow as tf

    model = tf.Module()
    model.half, model.offset = tf.Variable(0.5), tf.Variable(float(version))
    function = tf.function(lambda x: {"y": model.half * x + model.offset}, autograph=False)
    signature = function.get_concrete_function(tf.TensorSpec([None], tf.float32, name="x"))
    tf.saved_model.save(model, str(base / f"partial-{version}"), signatures={"serving_default": signature})
    (base / f"partial-{version}").rename(base / str(version))


def trivial_message(value: float = 1.0) -> bytes:
    """A Predict request for the trivial model."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = MODEL
    request.inputs["x"].dtype = 1
    request.inputs["x"].tensor_shape.dim.add(size=1)
    request.inputs["x"].float_val.append(value)
    return bytes(request.SerializeToString())


def write_recommender(base: Path, storage: str, num_items: int = NUM_ITEMS, dimensions: int = DIMENSIONS) -> None:
    """Exports Tandem's served model as version 1: transformer of two layers, exact top-k.

    It is untrained: its answers are worth nothing, its cost is that of a trained one.

    Args:
        base: Base path of the server.
        storage: Of the item vectors: `float32`, or `int8` as the Compressor mostly chooses.
        num_items: Size of the catalogue.
        dimensions: Width of vectors and encoder; 256 is that of the preset movielens_1m.
    """
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    from models.config import ModelConfig, RetrievalConfig, TwoTowerConfig
    from models.export import Catalogue, ServedTowers, export_saved_model
    from models.input_pipeline import ItemFeatures
    from models.serving_graph.users import UserHistories
    from models.two_tower import TwoTowerModel

    heads = max(2, dimensions // 64)
    shape = ModelConfig(embedding_dim=dimensions, num_layers=2, num_heads=heads, max_history_length=50)
    config = TwoTowerConfig(model=shape, retrieval=RetrievalConfig(default_k=10, method="exact"))
    model = TwoTowerModel(config, num_items)
    live = np.arange(num_items + 1) > 0
    events = np.concatenate([[0], num_items // np.arange(1, num_items + 1)])
    model.set_item_features(ItemFeatures({}, live, events))
    assets = base.parent / "transform" / "transform_fn" / "assets"
    assets.mkdir(parents=True, exist_ok=True)
    (assets / "items").write_text("".join(f"{item}\n" for item in item_ids(num_items)))
    users = UserHistories([b"user"], np.array([1, 2, 3]), np.array([0, 3]))
    export_saved_model(
        str(base / "1"),
        ServedTowers.of(model),
        Catalogue(live, events),
        users,
        transform_graph_dir=str(base.parent / "transform"),
        storage=storage,
    )


def item_ids(num_items: int = NUM_ITEMS) -> list[str]:
    """The catalogue, in row order."""
    return [f"item_{row}" for row in range(1, num_items + 1)]


def recommend_requests() -> list[Recorded]:
    """500 `recommend` requests with Zipf-drawn histories of 20 items, k = 10."""
    return generate_requests(item_ids(), 500, HISTORY_LENGTH, 10, seed=0)
