"""Asks a model server with the official stubs over gRPC, and as JSON over REST."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

Inputs = Mapping[str, npt.NDArray[Any]]
Answer = dict[str, npt.NDArray[Any]]
_TIMEOUT_SECONDS = 60.0
_MAX_MESSAGE = 2**31 - 1


def predict_request(model_name: str, signature: str, inputs: Inputs) -> Any:
    """A PredictRequest of tensorflow-serving-api."""
    from models.keras import tf  # isort: skip  (before the stubs, which import TensorFlow)
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = model_name
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


class GrpcClient:
    """`PredictionService.Predict` of one model."""

    def __init__(self, address: str, model_name: str) -> None:
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        import models.legacy_keras  # noqa: F401  (the stubs import TensorFlow)

        self._model_name = model_name
        self._channel = grpc.insecure_channel(
            address,
            options=[("grpc.max_receive_message_length", _MAX_MESSAGE), ("grpc.enable_http_proxy", 0)],
        )
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def predict(self, signature: str, inputs: Inputs) -> Answer:
        """Outputs by name.

        Raises:
            grpc.RpcError: The server refuses or cannot be reached.
        """
        from models.keras import tf

        response = self._stub.Predict(predict_request(self._model_name, signature, inputs), timeout=_TIMEOUT_SECONDS)
        return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()


class RestClient:
    """`/v1/models/NAME:predict` in the columnar format."""

    def __init__(self, address: str, model_name: str) -> None:
        self._url = f"http://{address}/v1/models/{model_name}:predict"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def predict(self, signature: str, inputs: Inputs) -> Answer:
        """Outputs by name; strings are UTF-8.

        Raises:
            OSError: The server refuses or cannot be reached.
        """
        body = {"signature_name": signature, "inputs": {name: _to_json(value) for name, value in inputs.items()}}
        request = urllib.request.Request(
            self._url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
            outputs = json.load(response)["outputs"]
        if not isinstance(outputs, dict):  # The only output of a signature comes without its name.
            outputs = {"embeddings": outputs}
        return {name: _from_json(value) for name, value in outputs.items()}


def _to_json(value: Any) -> Any:
    """Nested lists; bytes as `{"b64": …}`, which carries any id."""
    if isinstance(value, np.ndarray) and value.ndim:
        return [_to_json(part) for part in value]
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    return value.item() if isinstance(value, np.generic | np.ndarray) else value


def _from_json(value: Any) -> npt.NDArray[Any]:
    array = np.array(value)
    if array.dtype.kind in "US":
        return np.array([[item.encode() for item in row] for row in value], dtype=object)
    return array.astype(np.float32)
