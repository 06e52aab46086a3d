"""The candidate tower: id embedding plus declared content features, one vector per item.

The same vectors serve as tokens of the history, so an item that training never saw is represented
by its content on both sides of the dot product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.config import ModelConfig
from models.features import FeatureColumn
from models.keras import keras, tf
from models.randomness import random_uniform


@keras.utils.register_keras_serializable(package="tandem")
class MeanOfIds(keras.layers.Layer):
    """Mean of the embeddings of the ids that are not padding.

    Call arguments:
        embeddings: Float tensor `(..., width, dim)`.
        ids: Integer tensor `(..., width)`, 0 = padding.

    Returns:
        Float tensor `(..., dim)`; zeros where every id is padding.
    """

    def call(self, embeddings: Any, ids: Any) -> Any:  # noqa: D102
        weights = tf.cast(tf.not_equal(ids, 0), embeddings.dtype)
        total = tf.linalg.matvec(embeddings, weights, transpose_a=True)
        return tf.math.divide_no_nan(total, tf.reduce_sum(weights, axis=-1, keepdims=True))


@keras.utils.register_keras_serializable(package="tandem")
class RowDropout(keras.layers.Layer):
    """Hides whole id embeddings during training so that content must carry some items.

    Unlike usual dropout the kept rows are not scaled up: at serving a known item adds its id
    embedding as it is, an unknown one adds nothing. Source: DropoutNet, NeurIPS 2017.

    Args:
        rate: Share of rows hidden per step, [0, 1).
    """

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, inputs: Any, training: bool | None = None) -> Any:  # noqa: D102
        if not training or self.rate == 0:
            return inputs
        keep = random_uniform([tf.shape(inputs)[0], 1]) >= self.rate
        return tf.where(keep, inputs, tf.zeros_like(inputs))

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        return {**super().get_config(), "rate": self.rate}


@keras.utils.register_keras_serializable(package="tandem")
class ZeroPaddingRow(keras.layers.Layer):
    """Zeroes the vectors of row 0, and L2-normalises the rest if asked to.

    Args:
        normalize: Whether every other vector is scaled to length 1.

    Call arguments:
        vectors: Float tensor `(batch, dim)`.
        rows: Integer tensor `(batch,)`.
    """

    def __init__(self, normalize: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.normalize = normalize

    def call(self, vectors: Any, rows: Any) -> Any:  # noqa: D102
        if self.normalize:
            vectors = tf.math.l2_normalize(vectors, axis=-1)
        return vectors * tf.cast(tf.not_equal(rows, 0), vectors.dtype)[:, tf.newaxis]

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        return {**super().get_config(), "normalize": self.normalize}


def feature_inputs(columns: Sequence[FeatureColumn]) -> dict[str, Any]:
    """Keras inputs `(batch, width)`, int32 for ids and float32 for numbers, by transformed name."""
    return {
        column.name: keras.Input((column.width,), dtype=tf.float32 if column.is_numeric else tf.int32, name=column.name)
        for column in columns
    }


def embed_features(columns: Sequence[FeatureColumn], inputs: dict[str, Any], prefix: str, spread: float = 0.1) -> Any:
    """Concatenates the pooled embeddings (and raw numbers) of `columns` `(..., width)` to `(..., features)`.

    Args:
        columns: Features.
        inputs: Keras inputs by transformed name.
        prefix: Of the layers' names.
        spread: Standard deviation of fresh embeddings.
    """
    parts = []
    for column in columns:
        values = inputs[column.name]
        if not column.is_numeric:
            table = keras.layers.Embedding(
                column.num_ids,
                column.embedding_dim,
                embeddings_initializer=keras.initializers.RandomNormal(stddev=spread),
                name=f"{prefix}_{column.name}_embedding",
            )
            values = MeanOfIds(name=f"{prefix}_{column.name}_mean")(table(values), values)
        parts.append(values)
    return parts[0] if len(parts) == 1 else keras.layers.Concatenate(name=f"{prefix}_features")(parts)


def build_candidate_tower(
    config: ModelConfig, num_items: int, columns: Sequence[FeatureColumn], id_column: FeatureColumn | None = None
) -> keras.Model:
    """The functional candidate tower.

    Args:
        config: Shape of the towers.
        num_items: Items of the catalogue; rows are 1..num_items, 0 is padding.
        columns: Candidate features.
        id_column: Rows of the id embeddings where rare items share them; None = the item rows.

    Returns:
        Model from `{"item_row": (M,) int32, feature: (M, width)}`, `id_column` among the features, to
        `(M, embedding_dim)`; row 0 gives zeros.

    Raises:
        ValueError: If there is neither an id embedding nor a feature.
    """
    if not columns and not config.use_item_ids:
        raise ValueError(
            "use_item_ids = false but no feature has tower = 'candidate': items could not be told apart; "
            "declare a candidate feature or keep the ids"
        )
    rows = keras.Input((), dtype=tf.int32, name="item_row")
    id_columns = [id_column] if id_column else []
    inputs = {"item_row": rows, **feature_inputs([*columns, *id_columns])}
    parts = []
    if config.use_item_ids:
        table = keras.layers.Embedding(
            id_column.num_ids if id_column else num_items + 1,
            config.embedding_dim,
            embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="item_id_embedding",
        )
        ids = table(inputs[id_column.name][:, 0] if id_column else rows)
        parts.append(RowDropout(config.id_dropout, name="item_id_dropout")(ids) if config.id_dropout else ids)
    if columns:
        content = embed_features(columns, inputs, "candidate")
        parts.append(keras.layers.Dense(config.embedding_dim, name="candidate_content")(content))
    vectors = parts[0] if len(parts) == 1 else keras.layers.Add(name="candidate_sum")(parts)
    outputs = ZeroPaddingRow(config.normalize, name="candidate_vectors")(vectors, rows)
    return keras.Model(inputs, outputs, name="candidate_tower")


__all__ = ["MeanOfIds", "RowDropout", "ZeroPaddingRow", "build_candidate_tower", "embed_features", "feature_inputs"]
