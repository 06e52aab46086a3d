"""The history encoder as it is served: only the newest position, so the last block computes one row.

Training needs the query vector after every item; an answer needs it after the newest one. In the last
transformer block only keys and values look at the whole history, so its query, its output, its
feed-forward part and the norms run on one position: of a block's 12 · D² multiplications per item 2 · D² stay.
"""

from __future__ import annotations

from typing import Any

from models.history_encoders import CausalAttention, join_heads, rotate, split_heads
from models.keras import keras, tf


class AtNewest(keras.layers.Wrapper):
    """Applies a layer to the newest position of its inputs `(B, L, D)`: `(B, 1, …)`."""

    def call(self, inputs: Any) -> Any:  # noqa: D102
        return self.layer(tf.nest.map_structure(lambda each: each[:, -1:], inputs))


class NewestAttention(CausalAttention):
    """`CausalAttention` of one query `(B, 1, D)`, the newest, over keys and values `(B, L, D)`."""

    def call(self, queries: Any, keys: Any, values: Any, rows: Any) -> Any:  # noqa: D102
        dim = queries.shape[-1]
        scale = (dim // self.num_heads) ** -0.5
        query_heads = split_heads(queries * tf.cast(scale, queries.dtype), self.num_heads)
        key_heads = split_heads(keys, self.num_heads)
        if self.rotary:
            query_heads, key_heads = rotate(query_heads, tf.shape(rows)[1] - 1), rotate(key_heads)
        scores = tf.matmul(query_heads, key_heads, transpose_b=True)
        known = tf.not_equal(rows, 0)[:, tf.newaxis, tf.newaxis]
        scores = tf.where(known, scores, scores.dtype.min)
        return join_heads(tf.matmul(tf.nn.softmax(scores), split_heads(values, self.num_heads)), dim)


def serving_encoder(encoder: keras.Model) -> keras.Model:
    """An independent copy of `encoder` whose output holds the newest position alone where that saves work.

    Args:
        encoder: Functional history encoder, float or int8; encoders other than the transformer are copied as
            they are.

    Returns:
        Model with the same inputs; its output `(B, 1, D)` or `(B, L, D)` ends with the newest position.
    """
    blocks = [layer.name for layer in encoder.layers if type(layer) is CausalAttention]
    number = blocks[-1].rsplit("_", 1)[1] if blocks else ""
    sliced = {f"attention_query_{number}", f"attention_residual_{number}"} if blocks else set()

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        if blocks and layer.name == blocks[-1]:
            return NewestAttention.from_config(config)
        fresh = layer.__class__.from_config(config)
        return AtNewest(fresh, name=layer.name) if layer.name in sliced else fresh

    copy = keras.models.clone_model(encoder, clone_function=clone)
    copy.set_weights(encoder.get_weights())
    return copy
