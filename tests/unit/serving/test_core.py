"""What the event loop answers itself, and what it leaves to a thread."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import predict_pb2

from serving.server.core import ServerCore
from serving.server.servable import Servable


class Doubler:
    """Its one signature doubles `x`."""

    def __init__(self) -> None:
        signature = meta_graph_pb2.SignatureDef()
        for tensors, name in ((signature.inputs, "x"), (signature.outputs, "y")):
            tensors[name].name, tensors[name].dtype = f"{name}:0", types_pb2.DT_FLOAT
        self.signatures = {"serving_default": signature}

    async def run_in_batch(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        return [2 * feeds["x:0"]]


class OneVersion:
    """A version manager that has version 3 of every name."""

    @contextmanager
    def servable(self, name: str, version: int | None) -> Iterator[Servable]:
        yield Servable(name, 3, Doubler())


@pytest.mark.parametrize(("rows", "is_inline"), [(3, True), (4096, True), (4097, False), (10**7, False)])
async def test_a_short_message_of_a_large_tensor_never_holds_up_the_event_loop(rows: int, is_inline: bool) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    x = request.inputs["x"]
    x.dtype = types_pb2.DT_FLOAT
    x.float_val.append(1.5)  # TensorFlow fills the rest of the shape with the last value
    x.tensor_shape.dim.add(size=rows)
    answer = await ServerCore(OneVersion()).predict_in_batch(request)  # type: ignore[arg-type]
    assert (answer is not None) == is_inline
    if answer is not None:
        assert list(answer.response_to(request).outputs["y"].float_val) == [3.0] * rows
