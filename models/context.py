"""Context of a request in the query tower: what is known when the answer is asked for, such as device or hour.

The history's vector h becomes h ∘ (1 + A c) + B c with the context's features c: the product lets a context turn
interests up and down (latent cross; Beutel et al., WSDM 2018), the sum adds what it asks for by itself (both together:
Perez et al., AAAI 2018). Neither has a bias, so a request without a context is answered from its history alone, and
some training positions hide theirs, so that this answer is learnt too.

In training each event is the answer to a request, whose context are the event's own columns; a position of the history
therefore reads the context of the event that it has to predict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.config import ModelConfig
from models.features import FeatureColumn
from models.keras import keras, tf
from models.randomness import random_uniform
from models.towers import embed_features

# Of fresh embeddings. Contexts meet the finished vector, so nothing but their own size sets how fast they are learnt:
# where the device halves the choice, epoch 6 has ndcg@10 0.286 with 0.5, and 0.215 with the 0.1 of other features.
SPREAD = 0.5


@keras.utils.register_keras_serializable(package="tandem")
class Modulate(keras.layers.Layer):
    """`hidden * (1 + scale) + shift`; in training some positions keep `hidden` as it is.

    Args:
        hidden_share: Share of the positions whose context is hidden in training; in [0, 1).

    Call arguments:
        hidden: Float tensor `(batch, length, dim)`.
        scale, shift: Float tensors `(batch, length or 1, dim)`.

    Returns:
        Tensor with the shape and dtype of `hidden`.
    """

    def __init__(self, hidden_share: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden_share = hidden_share

    def call(self, hidden: Any, scale: Any, shift: Any, training: bool | None = None) -> Any:  # noqa: D102
        scale, shift = tf.cast(scale, hidden.dtype), tf.cast(shift, hidden.dtype)
        if training and self.hidden_share:
            kept = random_uniform(tf.concat([tf.shape(scale)[:2], [1]], axis=0)) >= self.hidden_share
            scale, shift = tf.where(kept, scale, 0.0), tf.where(kept, shift, 0.0)
        return hidden * (1.0 + scale) + shift

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        return {**super().get_config(), "hidden_share": self.hidden_share}


def context_inputs(columns: Sequence[FeatureColumn]) -> dict[str, Any]:
    """Keras inputs `(batch, length or 1, width)`, int32 for ids and float32 for numbers, by transformed name."""
    return {
        column.name: keras.Input(
            (None, column.width), dtype=tf.float32 if column.is_numeric else tf.int32, name=column.name
        )
        for column in columns
    }


def with_context(hidden: Any, columns: Sequence[FeatureColumn], inputs: dict[str, Any], config: ModelConfig) -> Any:
    """The history's vectors `(batch, length, dim)` under their contexts."""
    features = embed_features(columns, inputs, "context", SPREAD)
    scale, shift = (
        keras.layers.Dense(config.embedding_dim, use_bias=False, name=f"context_{part}")(features)
        for part in ("scale", "shift")
    )
    return Modulate(config.context_dropout, name="with_request")(hidden, scale, shift)


def unknown_context(column: FeatureColumn, count: Any) -> Any:
    """What stands for a context that is not known, `(count, 1, width)`."""
    return tf.zeros([count, 1, column.width], tf.float32 if column.is_numeric else tf.int32)


__all__ = ["Modulate", "context_inputs", "unknown_context", "with_context"]
