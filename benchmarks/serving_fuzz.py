"""Seeded malformed requests for the model server, over both protocols.

Used by `benchmarks/serving_fuzz_run.py` (100,000 requests) and by `tests/serving/test_abuse.py` (some thousands).
"""

import http.client
import json
import random
import sys
from collections import Counter
from typing import Any

import grpc

from serving.lean_tensorflow import lean_tensorflow

with lean_tensorflow():
    from tensorflow_serving.apis import predict_pb2

# What a fault of the request may be answered with; OK because a mutated request can still be a good one.
FAULTS_OF_REQUEST = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "RESOURCE_EXHAUSTED",
}
_SHOWN = 5  # requests printed of each status that they should not have had
_METHODS = ("Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata")
_WORDS = ["", "x", "words", "k", "inputs", "instances", "signature_name", "serving_default", "b64", "\x00", "é", "😀"]
_INTEGERS = [0, 1, -1, 7, 1000, 2**20, 2**31 - 1, -(2**31)]
_NUMBERS = [0, 1, -1, 2, 2**31 - 1, 2**31, -(2**31) - 1, 2**63 - 1, 2**63, 2**64, 1e308, -1e39, 0.1, 1e400]


class RequestFuzzer:
    """Makes bad requests from good ones.

    Args:
        seed: Seed of everything random.
        signatures: Signature name to its inputs, `{"serving_default": {"x": 1}}` with DataType numbers.
        model: Model name.
    """

    def __init__(self, seed: int, signatures: dict[str, dict[str, int]], model: str) -> None:
        self._random = random.Random(seed)
        self._signatures = signatures
        self._model = model

    def grpc_request(self) -> tuple[str, bytes]:
        """A method of PredictionService and the bytes to send it."""
        pick = self._random.random()
        method = "Predict" if pick < 0.7 else self._random.choice(_METHODS)
        if pick < 0.1:
            return method, self._random.randbytes(self._random.randrange(200))
        raw = bytearray(self._proto().SerializeToString())
        if pick < 0.6 and raw:
            for _ in range(self._random.randrange(1, 6)):
                raw[self._random.randrange(len(raw))] = self._random.randrange(256)
            if self._random.random() < 0.3:
                del raw[self._random.randrange(len(raw)) :]
        return method, bytes(raw)

    def _proto(self) -> Any:
        choose = self._random.choice
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self._model if self._random.random() < 0.9 else choose(_WORDS)
        signature = choose(list(self._signatures))
        request.model_spec.signature_name = signature if self._random.random() < 0.9 else choose(_WORDS)
        for alias, dtype in self._signatures[signature].items():
            if self._random.random() < 0.05:
                continue
            tensor = request.inputs[alias]
            tensor.dtype = dtype if self._random.random() < 0.8 else self._random.randrange(-1, 130)
            for _ in range(self._random.randrange(4)):
                tensor.tensor_shape.dim.add(size=choose([0, 1, 2, 3, -1, 2**20, 2**40, 2**62]))
            for field in ("float_val", "int_val", "int64_val", "string_val", "bool_val", "double_val"):
                if self._random.random() < 0.3:
                    values = [self._typed_value(field) for _ in range(self._random.randrange(5))]
                    getattr(tensor, field).extend(values)
            if self._random.random() < 0.3:
                tensor.tensor_content = self._random.randbytes(choose([0, 1, 4, 8, 16]))
        if self._random.random() < 0.1:
            request.output_filter.extend([choose(_WORDS), "y"])
        return request

    def _typed_value(self, field: str) -> Any:
        if field == "string_val":
            if self._random.random() < 0.001:
                return b"i" * 1_000_000
            return self._random.choice([b"", b"item_1", b"item_999", b"\xff\xfe", self._random.randbytes(8)])
        if field == "bool_val":
            return self._random.random() < 0.5
        return self._random.choice(_INTEGERS)

    def rest_request(self) -> tuple[str, str, bytes]:
        """Method, path and body of one HTTP request."""
        path = f"/v1/models/{self._model}:{self._random.choice(['predict', 'classify', 'regress'])}"
        if self._random.random() < 0.1:
            cut = self._random.randrange(len(path))
            path = path[:cut] + self._random.choice(["%ff", "/", ":", "/versions/99999999999999999999", "%00", "x"])
        verb = "POST" if self._random.random() < 0.95 else self._random.choice(["GET", "PUT", "DELETE", "PATCH"])
        body = json.dumps(self._document(), ensure_ascii=self._random.random() < 0.5).encode()
        if self._random.random() < 0.4 and body:
            mutable = bytearray(body)
            for _ in range(self._random.randrange(1, 4)):
                mutable[self._random.randrange(len(mutable))] = self._random.randrange(256)
            body = bytes(mutable)
        return verb, path, body

    def _document(self) -> Any:
        signature = self._random.choice(list(self._signatures))
        document: dict[str, Any] = {}
        if self._random.random() < 0.8:
            document["signature_name"] = signature if self._random.random() < 0.9 else self._value(1)
        key = self._random.choice(["instances", "inputs", "examples"])
        if self._random.random() < 0.5:
            named = {alias: self._value(2) for alias in self._signatures[signature]}
            document[key] = [named] * self._random.randrange(3) if key != "inputs" else named
        else:
            document[key] = self._value(3)
        return document

    def _value(self, depth: int) -> Any:
        pick = self._random.random()
        if depth and pick < 0.35:
            return [self._value(depth - 1) for _ in range(self._random.randrange(4))]
        if depth and pick < 0.45:
            return {self._random.choice(_WORDS): self._value(depth - 1) for _ in range(self._random.randrange(3))}
        if pick < 0.7:
            return self._random.choice(_NUMBERS)
        return self._random.choice([None, True, False, *_WORDS])


def fuzz_grpc(address: str, fuzzer: RequestFuzzer, count: int) -> "Counter[str]":
    """Sends `count` bad requests; returns how often each status came back."""
    answers: Counter[str] = Counter()
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        calls = {name: channel.unary_unary(f"/tensorflow.serving.PredictionService/{name}") for name in _METHODS}
        for _ in range(count):
            method, raw = fuzzer.grpc_request()
            try:
                calls[method](raw, timeout=30)
                answers["OK"] += 1
            except grpc.RpcError as error:
                answers[error.code().name] += 1
                if error.code().name not in FAULTS_OF_REQUEST and answers[error.code().name] <= _SHOWN:
                    sys.stdout.write(f"{method} {raw[:500]!r}\n  {error.code().name}: {error.details()}\n")
    return answers


def fuzz_rest(address: str, fuzzer: RequestFuzzer, count: int) -> "Counter[str]":
    """Sends `count` bad requests; returns how often each HTTP status came back."""
    answers: Counter[str] = Counter()
    connection = http.client.HTTPConnection(address, timeout=30)
    for _ in range(count):
        verb, path, body = fuzzer.rest_request()
        connection.request(verb, path, body)
        answer = connection.getresponse()
        text = answer.read()
        answers[str(answer.status)] += 1
        if answer.status >= 500 and answers[str(answer.status)] <= _SHOWN:
            sys.stdout.write(f"{verb} {path} {body[:500]!r}\n  {answer.status}: {text[:500]!r}\n")
        if path.startswith("/v1/") and answer.status != 200 and set(json.loads(text)) != {"error"}:
            raise AssertionError(f"{verb} {path} {body!r} was answered {answer.status} {text!r}")
    connection.close()
    return answers
