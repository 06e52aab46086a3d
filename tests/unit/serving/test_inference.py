"""What a Predict request feeds into the graph, worked by hand."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import predict_pb2

from serving.server.inference import begin_predict
from serving.server.status import Code, StatusError


class TwoInputs:
    """A model whose signature has the float inputs `x` and `k`, of which `k` is 2 if it is left out."""

    def __init__(self) -> None:
        signature = meta_graph_pb2.SignatureDef()
        for name in ("x", "k"):
            signature.inputs[name].name, signature.inputs[name].dtype = f"{name}:0", types_pb2.DT_FLOAT
        fill(signature.defaults["k"], 2.0)
        self.signatures = {"serving_default": signature}

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        raise AssertionError("only what would be fed is looked at")


def fill(proto: object, value: float) -> None:
    proto.dtype = types_pb2.DT_FLOAT  # type: ignore[attr-defined]
    proto.float_val.append(value)  # type: ignore[attr-defined]


def feeds(**inputs: float) -> dict[str, float]:
    request = predict_pb2.PredictRequest()
    for name, value in inputs.items():
        fill(request.inputs[name], value)
    return {name: array.item() for name, array in begin_predict(TwoInputs(), request).feeds.items()}


def test_an_input_that_is_left_out_has_its_default() -> None:
    assert feeds(x=1.0) == {"x:0": 1.0, "k:0": 2.0}
    assert feeds(x=1.0, k=3.0) == {"x:0": 1.0, "k:0": 3.0}


@pytest.mark.parametrize("inputs", [{}, {"k": 1.0}, {"x": 1.0, "z": 1.0}])
def test_inputs_without_a_default_must_be_given_and_others_must_not(inputs: dict[str, float]) -> None:
    with pytest.raises(StatusError, match="input size does not match signature") as caught:
        feeds(**inputs)
    assert caught.value.code is Code.INVALID_ARGUMENT
