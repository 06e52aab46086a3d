"""Int8 weights for the history encoder: after training, or learnt by quantisation-aware training.

What is served holds true int8 kernels and float scales, widened to float32 in the graph, with float
accumulation. The fake-quant operations of quantisation-aware training stay in training: served, they
make a model slower and larger than float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from models.compression.rebuild import plain_copy, replace_layers
from models.fitting import StepCallback
from models.keras import keras, tf  # before TFMOT, which reads the Keras switch when imported
from models.two_tower import TwoTowerModel

# isort: split
import tensorflow_model_optimization as tfmot

LEVELS = 127
FineTune = Callable[[TwoTowerModel, tuple[StepCallback, ...]], None]


@keras.utils.register_keras_serializable(package="tandem")
class Int8Dense(keras.layers.Layer):
    """`Dense` with an int8 kernel and one scale per output unit.

    Args:
        units: Outputs.
        activation: Keras activation or its name.
        use_bias: Whether a float bias is added.

    Call arguments:
        inputs: Float tensor `(..., features)`.

    Returns:
        Float tensor `(..., units)`.
    """

    def __init__(self, units: int, activation: Any = None, use_bias: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias

    def build(self, input_shape: Any) -> None:  # noqa: D102
        shape = (input_shape[-1], self.units)
        self.kernel = self.add_weight(name="kernel", shape=shape, dtype=tf.int8, initializer="zeros", trainable=False)
        self.scales = self.add_weight(name="scales", shape=(self.units,), initializer="zeros", trainable=False)
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros", trainable=False)
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:  # noqa: D102
        kernel = tf.cast(self.kernel, inputs.dtype) * tf.cast(self.scales, inputs.dtype)
        flat = tf.matmul(tf.reshape(inputs, [-1, inputs.shape[-1]]), kernel)
        if self.use_bias:
            flat = tf.nn.bias_add(flat, tf.cast(self.bias, inputs.dtype))
        return self.activation(tf.reshape(flat, tf.concat([tf.shape(inputs)[:-1], [self.units]], axis=0)))

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "units": self.units, "activation": activation, "use_bias": self.use_bias}


@keras.utils.register_keras_serializable(package="tandem")
class Int8Embedding(keras.layers.Layer):
    """`Embedding` with int8 rows and one scale per row.

    Args:
        input_dim: Rows.
        output_dim: Width of a row.

    Call arguments:
        inputs: Integer tensor of any shape.

    Returns:
        Float tensor `(..., output_dim)`.
    """

    def __init__(self, input_dim: int, output_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.input_dim = input_dim
        self.output_dim = output_dim

    def build(self, input_shape: Any) -> None:  # noqa: D102
        shape = (self.input_dim, self.output_dim)
        self.rows = self.add_weight(name="rows", shape=shape, dtype=tf.int8, initializer="zeros", trainable=False)
        self.scales = self.add_weight(name="scales", shape=(self.input_dim,), initializer="zeros", trainable=False)
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:  # noqa: D102
        scales = tf.gather(self.scales, inputs)[..., tf.newaxis]
        return tf.cast(tf.gather(self.rows, inputs), tf.float32) * scales

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        return {**super().get_config(), "input_dim": self.input_dim, "output_dim": self.output_dim}


def quantize_columns(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 `(in, out)` and scales `(out,)` of a kernel: kernel ≈ integers · scales."""
    scales = np.abs(kernel).max(axis=0) / np.float32(LEVELS)
    divisor = np.where(scales > 0, scales, 1)
    return np.rint(kernel / divisor).astype(np.int8), scales.astype(np.float32)


def quantize_encoder(encoder: keras.Model) -> keras.Model:
    """The encoder with int8 kernels and embedding rows; recurrent layers and norms stay float.

    Args:
        encoder: Functional model; left as it is.
    """

    def replace(layer: Any) -> Any:
        if isinstance(layer, keras.layers.Dense):
            return Int8Dense(layer.units, layer.activation, layer.use_bias, name=layer.name, dtype=layer.dtype_policy)
        if isinstance(layer, keras.layers.Embedding):
            return Int8Embedding(layer.input_dim, layer.output_dim, name=layer.name)
        return None

    quantized, replaced = replace_layers(encoder, replace)
    for name, layer in replaced.items():
        kernel, *rest = encoder.get_layer(name).get_weights()
        if isinstance(layer, Int8Dense):
            layer.set_weights([*quantize_columns(kernel), *rest])
        else:
            rows, scales = quantize_columns(kernel.T)
            layer.set_weights([rows.T, scales])
    return quantized


@keras.utils.register_keras_serializable(package="tandem")
class Int8Kernel(tfmot.quantization.keras.QuantizeConfig):
    """TFMOT configuration: int8 kernel with a range per output unit; activations stay float.

    The grid is that of `quantize_columns` (symmetric, narrow), so the exported integers are the ones
    that were trained.
    """

    def __init__(self) -> None:
        self._quantizer = tfmot.quantization.keras.quantizers.LastValueQuantizer(
            num_bits=8, per_axis=True, symmetric=True, narrow_range=True
        )

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:  # noqa: D102
        return [(layer.kernel, self._quantizer)]

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:  # noqa: D102
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: Any) -> None:  # noqa: D102
        layer.kernel = quantize_weights[0]

    def set_quantize_activations(self, layer: Any, quantize_activations: Any) -> None:  # noqa: D102
        return None

    def get_output_quantizers(self, layer: Any) -> list[Any]:  # noqa: D102
        return []

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        return {}


def train_quantized(model: TwoTowerModel, fine_tune: FineTune, *, keep_zeros: bool = False) -> TwoTowerModel:
    """Fine-tunes the encoder with its Dense kernels rounded to int8 in every forward pass.

    Args:
        model: Trained model; left as it is.
        fine_tune: Trains the model it is given, calling the callbacks before each step.
        keep_zeros: Weights that are exactly zero stay zero, so that a pruned model stays pruned.

    Returns:
        A plain float model (no TFMOT wrappers, no fake quantisation) whose kernels `quantize_encoder` rounds to
        the integers that were trained with.
    """

    def wrap(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Dense):
            return None
        return tfmot.quantization.keras.QuantizeWrapperV2(layer, Int8Kernel())

    tuned = plain_copy(model)
    encoder, wrappers = replace_layers(tuned.history_encoder, wrap)
    for name, wrapper in wrappers.items():
        _assign(wrapper.trainable_weights, tuned.history_encoder.get_layer(name).get_weights())
    plain_encoder, tuned.history_encoder = tuned.history_encoder, encoder
    masked = [(variable, tf.cast(variable != 0, variable.dtype)) for variable in tuned.trainable_variables]

    def mask_zeros(step: int) -> None:
        for variable, mask in masked:
            if len(variable.shape) > 1:
                variable.assign(variable * mask)

    fine_tune(tuned, (mask_zeros,) if keep_zeros else ())
    if keep_zeros:
        mask_zeros(-1)
    for layer in plain_encoder.layers:
        if layer.name in wrappers:
            _assign(layer.weights, wrappers[layer.name].trainable_weights)
        else:
            _assign(layer.weights, encoder.get_layer(layer.name).weights)
    tuned.history_encoder = plain_encoder
    return tuned


def _assign(variables: list[Any], values: list[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
