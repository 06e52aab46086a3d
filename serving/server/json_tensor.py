"""JSON of the REST API to arrays, with the rules of TensorFlow Serving's `json_tensor.cc`.

Strings are bytes on the inside: what is not UTF-8 passes through unchanged.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.server.status import Code, StatusError, invalid_argument
from serving.server.tensors import NUMPY_TYPES, object_array, type_name

_TensorInfos = Mapping[str, meta_graph_pb2.TensorInfo]
FLOATS = (types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE)
INTEGERS = (
    types_pb2.DT_INT8,
    types_pb2.DT_INT16,
    types_pb2.DT_INT32,
    types_pb2.DT_INT64,
    types_pb2.DT_UINT8,
    types_pb2.DT_UINT32,
    types_pb2.DT_UINT64,
)
_MAX_NESTING = 32
_NO_WHITE_SPACE = dict.fromkeys(map(ord, " \t\n\v\f\r"))
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_object(body: bytes) -> dict[str, Any]:
    """Parses the body of a request, which must be a JSON object; what follows the object is ignored.

    Raises:
        StatusError: INVALID_ARGUMENT with the place of the fault.
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").lstrip(" \t\r\n")
    if not text:
        raise invalid_argument("JSON Parse error: The document is empty.")
    try:
        document, _ = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        raise invalid_argument(f"JSON Parse error: {error.msg} at offset: {error.pos}") from error
    except (ValueError, RecursionError) as error:  # integers of thousands of digits, nesting of thousands of levels
        raise invalid_argument(f"JSON Parse error: {error}") from error
    if not isinstance(document, dict):
        raise invalid_argument(f"JSON Value: {_shown(document)} Is not object")
    if _SURROGATE_ESCAPE.search(body):
        _check_surrogates(document)
    return document


def _check_surrogates(document: Any) -> None:
    """Raises for an escaped half of a surrogate pair: no UTF-8 text holds one."""
    try:
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (UnicodeEncodeError, RecursionError) as error:
        raise invalid_argument("JSON Parse error: The surrogate pair in string is invalid.") from error


def signature_name(document: Mapping[str, Any]) -> str:
    """The signature a request asks for; empty if it asks for none."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid_argument(
            f"JSON Value: {_shown(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def predict_inputs(document: Mapping[str, Any], inputs: _TensorInfos) -> tuple[dict[str, np.ndarray], bool]:
    """Reads the inputs of a predict request.

    Args:
        document: The parsed body.
        inputs: Inputs of the signature.

    Returns:
        Input name to array, and whether the request is in row form (`instances`).

    Raises:
        StatusError: INVALID_ARGUMENT, or UNIMPLEMENTED for dtypes JSON has no form for in `inputs`.
    """
    if not inputs:
        name = signature_name(document) or "DEFAULT"
        raise invalid_argument(f"Failed to get input map for signature: {name} (it has no inputs; use gRPC)")
    if "instances" in document and "inputs" in document:
        raise invalid_argument(
            f"JSON Value: {_shown(document)} Not formatted correctly expecting only one of 'inputs' or 'instances' "
            "keys to exist "
        )
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise invalid_argument(f"JSON Value: {_shown(document)} Expecting 'instances' to be an list/array")
        if not instances:
            raise invalid_argument(f"JSON Value: {_shown(document)} No values in 'instances' array")
        try:
            return _from_rows(instances, inputs), True
        except StatusError as error:  # of whatever code: TensorFlow Serving says so of every fault in a row
            raise invalid_argument(error.message) from error
    if "inputs" in document:
        return _from_columns(document["inputs"], inputs), False
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def _from_rows(instances: list[Any], inputs: _TensorInfos) -> dict[str, np.ndarray]:
    named = _is_named(instances[0])
    if not named and len(inputs) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    for position, row in enumerate(instances):
        if _is_named(row) is not named:
            raise invalid_argument(
                f"Expecting object but got list at item {position} of input list"
                if named
                else f"Expecting value/list but got object at item {position} of input list"
            )
    if not named:
        ((name, info),) = inputs.items()
        return {name: _array(name, instances, info.dtype)}
    expected = set(inputs)
    for position, row in enumerate(instances):
        if row.keys() != expected:
            unknown = sorted(row.keys() - expected)
            fault = f"JSON object: does not have named input: {unknown[0]}. " if unknown else ""
            raise invalid_argument(
                f"Failed to process element: {position} of 'instances' list. {fault}JSON object: {_shown(row)} "
                f"keys must be equal to: {','.join(sorted(expected))}"
            )
    return {name: _array(name, [row[name] for row in instances], info.dtype) for name, info in inputs.items()}


def _from_columns(value: Any, inputs: _TensorInfos) -> dict[str, np.ndarray]:
    if not _is_named(value):
        if len(inputs) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        ((name, info),) = inputs.items()
        return {name: _array(name, value, info.dtype)}
    arrays = {}
    for name, info in inputs.items():
        if name not in value:
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
        arrays[name] = _array(name, value[name], info.dtype)
    return arrays


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_named(value: Any) -> bool:
    """True for an object of named inputs; a base64 string is an object too, but a value."""
    return isinstance(value, dict) and not _is_base64(value)


def _array(name: str, value: Any, dtype: int) -> np.ndarray:
    """Turns nested lists into an array, level by level, so that no list is visited by Python code value by value."""
    shape: list[int] = []
    flat = [value]
    while flat and isinstance(flat[0], list):
        if len(shape) == _MAX_NESTING:
            raise invalid_argument(f"Encountered list at unexpected level: {_MAX_NESTING} for input: {name}")
        size = len(flat[0])
        for entry in flat:
            if not isinstance(entry, list):
                raise invalid_argument(
                    f"JSON Value: {_shown(entry)} found at incorrect level: {len(shape) + 1} in the JSON DOM. "
                    f"Expected at level: {len(shape) + 2} for input: {name}"
                )
            if len(entry) != size:
                raise invalid_argument(
                    f"Encountered list at unexpected size: {len(entry)} at level: {len(shape)} "
                    f"expected size: {size} for input: {name}"
                )
        shape.append(size)
        flat = list(chain.from_iterable(flat))
    return _values(flat, dtype).reshape(shape)


def _values(flat: list[Any], dtype: int) -> np.ndarray:
    kinds = set(map(type, flat))
    if list in kinds:
        raise invalid_argument(f"Encountered list at unexpected level: {_shown(flat)}")
    if dtype == types_pb2.DT_STRING:
        return object_array([_string(value) for value in flat])
    if dtype in FLOATS:
        _require(flat, kinds <= {int, float}, (int, float), dtype)
        with np.errstate(over="ignore"):
            return np.array([_float(value) for value in flat], dtype=np.float64).astype(NUMPY_TYPES[dtype])
    if dtype == types_pb2.DT_BOOL:
        _require(flat, kinds <= {bool}, (bool,), dtype)
        return np.array(flat, dtype=np.bool_)
    if dtype in INTEGERS:
        _require(flat, kinds <= {int}, (int,), dtype)
        limits = np.iinfo(NUMPY_TYPES[dtype])
        for value in (min(flat, default=0), max(flat, default=0)):
            if not limits.min <= value <= limits.max:
                raise _type_error(value, dtype)
        return np.array(flat, dtype=NUMPY_TYPES[dtype])
    raise StatusError(Code.UNIMPLEMENTED, f"Conversion of JSON Value: {_shown(flat[:1])} to type: {type_name(dtype)}")


def _require(flat: Iterable[Any], is_good: bool, kinds: tuple[type, ...], dtype: int) -> None:
    if not is_good:
        raise _type_error(next(value for value in flat if type(value) not in kinds), dtype)


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _string(value: Any) -> bytes:
    if isinstance(value, str):
        return _encode(value)
    if isinstance(value, dict):
        return decode_base64(value)
    raise _type_error(value, types_pb2.DT_STRING)


def _encode(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise invalid_argument("JSON Parse error: The surrogate pair in string is invalid.") from error


def decode_base64(value: dict[str, Any]) -> bytes:
    """Reads `{"b64": "…"}` as TensorFlow Serving's `absl::Base64Unescape` does.

    Standard alphabet; white space anywhere is skipped (`base64.encodebytes` breaks lines); all of the padding or none.
    """
    if not _is_base64(value):
        raise invalid_argument(f"JSON Value: {_shown(value)} not formatted correctly for base64 data")
    text = value["b64"].translate(_NO_WHITE_SPACE)
    digits = text.rstrip("=")
    padding = "=" * (-len(digits) % 4)
    if text not in (digits, digits + padding):
        raise invalid_argument("Unable to base64 decode")
    try:
        return base64.b64decode(digits + padding, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid_argument("Unable to base64 decode") from error


def _type_error(value: Any, dtype: int) -> StatusError:
    kinds = {bool: str(value), dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}
    kind = kinds.get(type(value), "Null")
    return invalid_argument(f"JSON Value: {_shown(value)} Type: {kind} is not of expected type: {type_name(dtype)}")


def _shown(value: Any) -> str:
    """Up to 256 characters of a value, without writing out all of a large one."""
    encoder = json.JSONEncoder(ensure_ascii=True)
    text = ""
    try:
        for piece in encoder.iterencode(value):
            text += piece[:256]
            if len(text) >= 256:
                break
    except RecursionError:
        text += "…"
    return text[:256]
