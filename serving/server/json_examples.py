"""JSON of classify and regress requests to tf.Examples, and their results back to JSON."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow_serving.apis import classification_pb2, input_pb2, regression_pb2

from serving.server.json_output import decimals, quoted
from serving.server.json_tensor import decode_base64
from serving.server.status import invalid_argument


def fill_examples(document: Mapping[str, Any], proto: input_pb2.Input) -> None:
    """Reads `examples` and the optional `context` of a request.

    Raises:
        StatusError: INVALID_ARGUMENT, naming the feature at fault.
    """
    target = proto.example_list
    if "context" in document:
        target = proto.example_list_with_context
        _fill_example(document["context"], target.context)
        target.context.SetInParent()
    examples = document.get("examples")
    if "examples" not in document:
        raise invalid_argument("When method is classify, key 'examples' is expected and was not found")
    if not isinstance(examples, list):
        raise invalid_argument("Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid_argument("'examples' value is an empty array")
    for example in examples:
        _fill_example(example, target.examples.add())


def _fill_example(value: Any, example: example_pb2.Example) -> None:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {_kind(value)}")
    for name, content in value.items():
        try:
            feature = example.features.feature[name]
        except UnicodeEncodeError as error:
            raise invalid_argument("Feature names must be UTF-8.") from error
        for item in content if isinstance(content, list) else [content]:
            _add_value(name, item, feature)


def _add_value(name: str, value: Any, feature: feature_pb2.Feature) -> None:
    """Adds one value; whole numbers and booleans are int64, decimals float, strings and b64 bytes."""
    kind = _kind(value)
    if isinstance(value, dict) and set(value) == {"b64"}:
        field, item = "bytes_list", decode_base64(value)
    elif isinstance(value, str):
        field, item = "bytes_list", value.encode("utf-8", "surrogateescape")
    elif isinstance(value, int):
        field, item = "int64_list", int(value)  # type: ignore[assignment]
        if not -(2**63) <= value < 2**63:
            raise invalid_argument(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
    elif isinstance(value, float):
        field, item = "float_list", _float32(value)  # type: ignore[assignment]
    else:
        raise invalid_argument(f"Feature: {name} has element with unexpected JSON type: {kind}")
    present = feature.WhichOneof("kind")
    if present not in (None, field):
        raise invalid_argument(
            f"Unexpected element type in feature: {name} expecting type: {present.removesuffix('_list')}"
        )
    getattr(feature, field).value.append(item)


def _float32(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def _kind(value: Any) -> str:
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return str(value)
    kinds: dict[type, str] = {dict: "Object", list: "Array", str: "String"}
    return kinds.get(type(value), "Number")


def classification_body(result: classification_pb2.ClassificationResult) -> bytes:
    """Writes `{"results": [[["label", score], …], …]}`."""
    rows = []
    for classifications in result.classifications:
        scores = decimals(np.array([entry.score for entry in classifications.classes], dtype=np.float32))
        labels = [quoted(entry.label.encode()) for entry in classifications.classes]
        pairs = [f"[{label}, {score}]" for label, score in zip(labels, scores, strict=True)]
        rows.append("[" + ", ".join(pairs) + "]")
    return ('{\n    "results": [' + ", ".join(rows) + "]\n}").encode()


def regression_body(result: regression_pb2.RegressionResult) -> bytes:
    """Writes `{"results": [1.5, …]}`."""
    values = decimals(np.array([regression.value for regression in result.regressions], dtype=np.float32))
    return ('{\n    "results": [' + ", ".join(values) + "]\n}").encode()
