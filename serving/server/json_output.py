"""Arrays to the JSON of the REST API, with the rules of TensorFlow Serving's `json_tensor.cc`.

Strings are bytes on the inside: what is not UTF-8 passes through unchanged.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from tensorflow.core.framework import types_pb2

from serving.server.json_tensor import FLOATS, INTEGERS
from serving.server.status import invalid_argument
from serving.server.tensors import TYPE_NUMBERS, type_name

_BYTES_SUFFIX = "_bytes"


def predict_body(outputs: Mapping[str, np.ndarray], *, is_row_form: bool) -> bytes:
    """Writes the answer to a predict request.

    Raises:
        StatusError: INVALID_ARGUMENT if there are no outputs, or those of a row-form request have no common
            dimension 0.
    """
    if not outputs:
        raise invalid_argument("Cannot convert empty tensor map to JSON")
    if not is_row_form:
        texts = {name: _nested(name, value) for name, value in outputs.items()}
        return _document("outputs", _one_or_object(texts))
    sizes: dict[str, int] = {}
    for name, value in outputs.items():
        if value.ndim == 0:
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        sizes[name] = len(value)
        if len(set(sizes.values())) > 1:
            expected = next(iter(sizes.values()))
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: {len(value)} expecting: {expected}"
            )
    if len(outputs) == 1:
        ((name, value),) = outputs.items()
        return _document("predictions", _nested(name, value))
    columns = {name: _rows(name, value) for name, value in outputs.items()}
    rows = [_one_or_object(dict(zip(columns, cells, strict=True))) for cells in zip(*columns.values(), strict=True)]
    return _document("predictions", "[" + ", ".join(rows) + "]")


def _document(key: str, text: str) -> bytes:
    return f'{{\n    "{key}": {text}\n}}'.encode("utf-8", "surrogateescape")


def _one_or_object(texts: Mapping[str, str]) -> str:
    if len(texts) == 1:
        return next(iter(texts.values()))
    return "{" + ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {text}" for name, text in texts.items()) + "}"


def _rows(name: str, value: np.ndarray) -> list[str]:
    """JSON of each row."""
    texts, width = _scalars(name, value), prod(value.shape[1:])
    return [_shaped(texts[row * width : (row + 1) * width], value.shape[1:]) for row in range(len(value))]


def _nested(name: str, value: np.ndarray) -> str:
    return _shaped(_scalars(name, value), value.shape)


def _shaped(texts: Sequence[str], shape: Sequence[int]) -> str:
    """Puts brackets around a flat list of JSON values, innermost dimension first."""
    for size in reversed(shape):
        outer = len(texts) // size if size else 1
        if size == 0:
            return _empty(shape)
        texts = ["[" + ", ".join(texts[row * size : (row + 1) * size]) + "]" for row in range(outer)]
    return texts[0]


def _empty(shape: Sequence[int]) -> str:
    if not shape or shape[0] == 0:
        return "[]"
    return "[" + ", ".join([_empty(shape[1:])] * shape[0]) + "]"


def _scalars(name: str, value: np.ndarray) -> list[str]:
    """JSON of every value, in order."""
    number = TYPE_NUMBERS.get(value.dtype)
    flat = value.reshape(-1)
    if number in FLOATS:
        return decimals(flat)
    if number in INTEGERS:
        return list(map(str, flat.tolist()))
    if number == types_pb2.DT_BOOL:
        return ["true" if item else "false" for item in flat.tolist()]
    if number == types_pb2.DT_STRING:
        if name.endswith(_BYTES_SUFFIX):
            return [f'{{"b64": "{base64.b64encode(item).decode()}"}}' for item in flat.tolist()]
        return [quoted(item) for item in flat.tolist()]
    raise invalid_argument(f"Failed to write JSON value for tensor type: {type_name(number or 0)}")


def quoted(text: bytes) -> str:
    """A JSON string of bytes that are usually UTF-8."""
    return json.dumps(text.decode("utf-8", "surrogateescape"), ensure_ascii=False)


def decimals(values: np.ndarray) -> list[str]:
    """Writes floats with 6 digits where these say it exactly, else with as many as the type has; never as integers.

    Args:
        values: Vector of float32 or float64.
    """
    floats = values.tolist()
    texts = [f"{value:g}" for value in floats]
    exact = np.array([float(text) for text in texts], dtype=np.float64).astype(values.dtype) == values
    digits = 9 if values.dtype == np.float32 else 17
    for position in np.flatnonzero(~exact).tolist():
        texts[position] = f"{floats[position]:.{digits}g}"
    special = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    return [special[text] if text in special else text if "." in text or "e" in text else text + ".0" for text in texts]
