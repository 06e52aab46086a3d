"""What the client says and hears, in both protocols' forms; nothing here touches the network."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import grpc
import numpy as np

from serving.errors import (
    DeadlineError,
    ModelNotFoundError,
    OverloadedError,
    RequestError,
    ServerError,
    ServingError,
    SignatureError,
    UnavailableError,
)
from serving.lean_tensorflow import lean_tensorflow

with lean_tensorflow():
    from tensorflow.core.framework import types_pb2
    from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

    from serving.server.tensors import to_array, to_proto

Arrays = Mapping[str, np.ndarray]
_CODE_OF_HTTP_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


@dataclass(frozen=True)
class InputSpec:
    """An input of a signature: data type (`DT_STRING`, …) and number of dimensions."""

    dtype: str
    rank: int


@dataclass(frozen=True)
class ModelTarget:
    """Which model to ask: its name, and at most one of a version and a label.

    Raises:
        ValueError: Both are given.
    """

    name: str
    version: int | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if self.version is not None and self.label:
            raise ValueError(f"Give a version or a label of model {self.name}, not both.")

    @property
    def path(self) -> str:
        """Path of the model in the REST API."""
        model = f"/v1/models/{quote(self.name, safe='')}"
        if self.version is not None:
            return f"{model}/versions/{self.version}"
        return f"{model}/labels/{quote(self.label, safe='')}" if self.label else model

    def fill(self, spec: Any) -> None:
        """Writes a ModelSpec."""
        spec.name = self.name
        if self.version is not None:
            spec.version.value = self.version
        elif self.label:
            spec.version_label = self.label


@dataclass(frozen=True)
class VersionState:
    """State of one version on the server.

    Attributes:
        version: Its number.
        state: `START`, `LOADING`, `AVAILABLE`, `UNLOADING` or `END`.
        error: Why it failed; empty if it did not.
    """

    version: int
    state: str
    error: str = ""


def predict_message(target: ModelTarget, signature: str, inputs: Arrays) -> predict_pb2.PredictRequest:
    """A gRPC Predict request."""
    request = predict_pb2.PredictRequest()
    target.fill(request.model_spec)
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        to_proto(_wire_form(value), request.inputs[name])
    return request


def predict_outputs(response: predict_pb2.PredictResponse) -> dict[str, np.ndarray]:
    """The outputs of a gRPC answer."""
    return {name: to_array(name, proto) for name, proto in response.outputs.items()}


def predict_json(signature: str, inputs: Arrays) -> bytes:
    """The body of a REST predict request, in columnar form."""
    document = {
        "signature_name": signature,
        "inputs": {name: _json_value(_wire_form(inputs[name]).tolist()) for name in sorted(inputs)},
    }
    return json.dumps(document).encode()


def _wire_form(array: np.ndarray) -> np.ndarray:
    """Strings as object arrays of bytes, in whichever form they came."""
    if array.dtype.kind not in "OUS":
        return array
    encoded = np.empty(array.size, dtype=object)
    encoded[:] = [text.encode() if isinstance(text, str) else bytes(text) for text in array.reshape(-1).tolist()]
    return encoded.reshape(array.shape)


def _json_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:  # a serialized example, say
            return {"b64": base64.b64encode(value).decode()}
    return value


def json_outputs(body: bytes) -> dict[str, np.ndarray]:
    """The outputs of a REST answer; strings become arrays of bytes, as over gRPC."""
    outputs = json.loads(body)["outputs"]
    if not isinstance(outputs, dict):
        outputs = {"": outputs}
    return {name: _array(value) for name, value in outputs.items()}


def _array(value: Any) -> np.ndarray:
    array = np.array(value, dtype=object)  # any other type would cut strings off at their last zero bytes
    first = array.reshape(-1)[0] if array.size else 0.0
    if isinstance(first, str | dict):
        decoded = np.empty(array.size, dtype=object)
        decoded[:] = [_bytes(text) for text in array.reshape(-1).tolist()]
        return decoded.reshape(array.shape)
    numbers = np.array(value)  # one float among whole numbers makes all of them floats
    return numbers.astype(np.float32 if numbers.dtype.kind == "f" else numbers.dtype)


def _bytes(text: Any) -> bytes:
    return base64.b64decode(text["b64"]) if isinstance(text, dict) else str(text).encode()


def status_message(target: ModelTarget) -> get_model_status_pb2.GetModelStatusRequest:
    """A gRPC status request."""
    request = get_model_status_pb2.GetModelStatusRequest()
    target.fill(request.model_spec)
    return request


def message_states(response: get_model_status_pb2.GetModelStatusResponse) -> list[VersionState]:
    """The states in a gRPC answer."""
    names = get_model_status_pb2.ModelVersionStatus.State
    return [
        VersionState(entry.version, names.Name(entry.state), entry.status.error_message)
        for entry in response.model_version_status
    ]


def json_states(body: bytes) -> list[VersionState]:
    """The states in a REST answer."""
    return [
        VersionState(int(entry["version"]), entry["state"], entry["status"]["error_message"])
        for entry in json.loads(body)["model_version_status"]
    ]


def metadata_message(target: ModelTarget) -> get_model_metadata_pb2.GetModelMetadataRequest:
    """A gRPC request for the signatures."""
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    target.fill(request.model_spec)
    return request


def message_inputs(response: get_model_metadata_pb2.GetModelMetadataResponse, signature: str) -> dict[str, InputSpec]:
    """Inputs of a signature in a gRPC answer."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    if signature not in signatures.signature_def:
        raise SignatureError(f"the model has no signature {signature!r}", "NOT_FOUND")
    inputs = signatures.signature_def[signature].inputs
    return {
        name: InputSpec(types_pb2.DataType.Name(info.dtype), len(info.tensor_shape.dim))
        for name, info in inputs.items()
    }


def json_inputs(body: bytes, signature: str) -> dict[str, InputSpec]:
    """The same in a REST answer."""
    signatures = json.loads(body)["metadata"]["signature_def"]["signature_def"]
    if signature not in signatures:
        raise SignatureError(f"the model has no signature {signature!r}", "NOT_FOUND")
    inputs = signatures[signature]["inputs"]
    return {name: InputSpec(info["dtype"], len(info["tensor_shape"]["dim"])) for name, info in inputs.items()}


def error_of_rpc(error: grpc.RpcError, address: str) -> ServingError:
    """The error a failed call over gRPC means."""
    return _error(error.code().name, error.details() or "", address)


def error_of_http(status: int, body: bytes, address: str) -> ServingError:
    """The error an HTTP answer other than 200 means."""
    try:
        text = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        text = body[:200].decode(errors="replace")
    return _error(_CODE_OF_HTTP_STATUS.get(status, "INTERNAL" if status >= 500 else "INVALID_ARGUMENT"), text, address)


def unreachable(reason: object, address: str) -> ServingError:
    """The error for a connection that could not be made or broke."""
    return _error("UNAVAILABLE", str(reason), address)


def _error(code: str, text: str, address: str) -> ServingError:
    message = f"{address} answered {code}: {text}"
    if code == "UNAVAILABLE":
        return UnavailableError(f"No model server answers at {address}: {text}", code)
    if code == "RESOURCE_EXHAUSTED":
        return OverloadedError(message, code)
    if code == "DEADLINE_EXCEEDED":
        return DeadlineError(message, code)
    if code == "NOT_FOUND" or "version label" in text:
        return ModelNotFoundError(message, code)
    if code == "FAILED_PRECONDITION" or "signature" in text:
        return SignatureError(message, code)
    if code in ("INVALID_ARGUMENT", "OUT_OF_RANGE", "UNIMPLEMENTED", "PERMISSION_DENIED", "UNAUTHENTICATED"):
        return RequestError(message, code)
    return ServerError(message, code)
