"""Quantisation-aware training of the history encoder's kernels.

What is served holds true int8 kernels and float scales (`encoder_rounding`). The fake-quant operations of
quantisation-aware training stay in training: served, they make a model slower and larger than float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models.compression.encoder_rounding import treatment
from models.compression.rebuild import plain_copy, replace_layers
from models.fitting import StepCallback
from models.keras import keras, tf  # before TFMOT, which reads the Keras switch when imported
from models.two_tower import TwoTowerModel

# isort: split
import tensorflow_model_optimization as tfmot

FineTune = Callable[[TwoTowerModel, tuple[StepCallback, ...]], None]


@keras.utils.register_keras_serializable(package="tandem")
class Int8Kernel(tfmot.quantization.keras.QuantizeConfig):
    """TFMOT configuration: int8 kernel with a range per output unit; activations stay float.

    The grid is that of `encoder_rounding` (symmetric, narrow), so the exported integers are the ones
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
        A plain float model (no TFMOT wrappers, no fake quantisation) whose kernels the export rounds to
        the integers that were trained with.
    """

    def wrap(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Dense):
            return None
        kernel = model.history_encoder.get_layer(layer.name).kernel
        if treatment(kernel.name, kernel.numpy(), "int8") != "by_column":
            return None  # too small to be stored as int8
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
