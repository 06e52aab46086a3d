"""The history encoder as it is served: only the newest position, in few operations, on given weights.

Training needs the query vector after every item; an answer needs it after the newest one. In the last
transformer block only keys and values look at the whole history, so its query, its output, its
feed-forward part and the norms run on one position: of a block's 12 · D² multiplications per item 2 · D² stay.

One history is a small problem: at batch 1 the time goes into the number of operations as much as into the
multiplications. Keras builds a `Dense` on three axes from about twenty of them and a `LayerNormalization` from
about twenty-five; the layers here give the same numbers with three and nine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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


class LeanDense(keras.layers.Dense):
    """`Dense` as one product; on three axes it broadcasts the kernel instead of reshaping the inputs."""

    def call(self, inputs: Any) -> Any:  # noqa: D102
        outputs = tf.matmul(tf.cast(inputs, self.compute_dtype), tf.cast(self.kernel, self.compute_dtype))
        if self.use_bias:
            outputs = tf.nn.bias_add(outputs, tf.cast(self.bias, outputs.dtype))
        return outputs if self.activation is None else self.activation(outputs)


class LeanLayerNormalization(keras.layers.LayerNormalization):
    """`LayerNormalization` over the last axis by its definition, in float32 like Keras'."""

    def call(self, inputs: Any) -> Any:  # noqa: D102
        values = tf.cast(inputs, tf.float32)
        centred = values - tf.reduce_mean(values, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        normed = centred * tf.math.rsqrt(variance + self.epsilon) * tf.cast(self.gamma, tf.float32)
        return tf.cast(normed + tf.cast(self.beta, tf.float32), self.compute_dtype)


def _lean(layer: Any) -> Any:
    """An unbuilt copy of `layer`, in the lean form if there is one."""
    kind: Any = type(layer)
    if kind is keras.layers.Dense:
        kind = LeanDense
    elif kind is keras.layers.LayerNormalization and list(layer.axis) == [2] and layer.center and layer.scale:
        kind = LeanLayerNormalization
    return kind.from_config(layer.get_config())


def serving_encoder(encoder: keras.Model) -> keras.Model:
    """An independent copy of `encoder` whose output holds the newest position alone where that saves work.

    Args:
        encoder: Functional history encoder; encoders other than the transformer keep every position.

    Returns:
        Model with the same inputs; its output `(B, 1, D)` or `(B, L, D)` ends with the newest position. Its
        weights come in the order of `encoder.weights`.
    """
    blocks = [layer.name for layer in encoder.layers if type(layer) is CausalAttention]
    number = blocks[-1].rsplit("_", 1)[1] if blocks else ""
    sliced = {f"attention_{part}_{number}" for part in ("query", "gate", "residual")} if blocks else set()

    def clone(layer: Any) -> Any:
        if blocks and layer.name == blocks[-1]:
            return NewestAttention.from_config(layer.get_config())
        fresh = _lean(layer)
        return AtNewest(fresh, name=layer.name) if layer.name in sliced else fresh

    copy = keras.models.clone_model(encoder, clone_function=clone)
    copy.set_weights(encoder.get_weights())
    return copy


def call_with_weights(model: keras.Model, weights: Sequence[tf.Tensor], inputs: Mapping[str, Any]) -> Any:
    """`model(inputs)` with the tensors `weights` in place of its variables, in the order of `model.weights`.

    Meant for tracing: the graph then reads the weights from wherever the tensors come from, and needs none of the
    model's variables.
    """
    with _replaced(model, weights):
        return model(inputs, training=False)


@contextmanager
def _replaced(model: keras.Model, weights: Sequence[tf.Tensor]) -> Iterator[None]:
    tensors = {id(variable): tensor for variable, tensor in zip(model.weights, weights, strict=True)}
    held = [
        (part, name, value)
        for part in model.submodules
        for name, value in vars(part).items()
        if isinstance(value, tf.Variable) and id(value) in tensors
    ]
    try:
        for part, name, value in held:
            vars(part)[name] = tensors[id(value)]
        yield
    finally:
        for part, name, value in held:
            vars(part)[name] = value
