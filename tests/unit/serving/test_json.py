"""JSON to arrays and back, worked by hand."""

import json

import numpy as np
import pytest
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.server.json_output import decimals, predict_body
from serving.server.json_tensor import parse_object, predict_inputs
from serving.server.status import Code, StatusError

INFOS = {
    "f": meta_graph_pb2.TensorInfo(dtype=types_pb2.DT_FLOAT),
    "s": meta_graph_pb2.TensorInfo(dtype=types_pb2.DT_STRING),
}


def inputs(text: str, **types: int) -> dict[str, np.ndarray]:
    infos = {name: meta_graph_pb2.TensorInfo(dtype=dtype) for name, dtype in types.items()}
    return predict_inputs(parse_object(text.encode()), infos)[0]


def test_floats_are_shortest_of_six_digits_or_exact() -> None:
    singles = np.array([0.2, 4, 9e6, 1 / 3, 16777217, -0.0, 1e-7, 123456.7], np.float32)
    assert decimals(singles) == ["0.2", "4.0", "9e+06", "0.333333343", "16777216.0", "-0.0", "1e-07", "123456.703"]
    doubles = np.array([0.1, 1 / 3, 1e300, np.inf, -np.inf, np.nan])
    assert decimals(doubles) == ["0.1", "0.33333333333333331", "1e+300", "Infinity", "-Infinity", "NaN"]
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        values = rng.normal(size=2000).astype(dtype) * dtype(10.0) ** rng.integers(-30, 30, 2000).astype(dtype)
        assert (np.array([float(text) for text in decimals(values)]).astype(dtype) == values).all()


def test_shapes() -> None:
    f = types_pb2.DT_FLOAT
    assert inputs('{"inputs": 1}', f=f)["f"].shape == ()
    assert inputs('{"inputs": [[1, 2, 3], [4, 5, 6]]}', f=f)["f"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert inputs('{"inputs": []}', f=f)["f"].shape == (0,)
    assert inputs('{"inputs": [[], []]}', f=f)["f"].shape == (2, 0)
    assert inputs('{"instances": [{"f": [1], "s": "a"}, {"f": [2], "s": "b"}]}', f=f, s=types_pb2.DT_STRING)[
        "s"
    ].tolist() == [b"a", b"b"]


def test_integers_keep_64_bits_and_their_range() -> None:
    values = inputs('{"inputs": [9223372036854775807, -9223372036854775808]}', n=types_pb2.DT_INT64)["n"]
    assert values.tolist() == [2**63 - 1, -(2**63)]
    assert inputs('{"inputs": 18446744073709551615}', n=types_pb2.DT_UINT64)["n"] == 2**64 - 1
    for text, dtype in (("128", types_pb2.DT_INT8), ("-1", types_pb2.DT_UINT8), ("2147483648", types_pb2.DT_INT32)):
        with pytest.raises(StatusError, match="is not of expected type"):
            inputs(f'{{"inputs": {text}}}', n=dtype)


@pytest.mark.parametrize("text", ["/w==", "/w", r"/w==\n", r"/ \tw\r\n= =\f"])
def test_base64_with_and_without_padding_and_white_space(text: str) -> None:
    assert inputs(f'{{"inputs": {{"b64": "{text}"}}}}', s=types_pb2.DT_STRING)["s"].item() == b"\xff"


@pytest.mark.parametrize("text", ["/w=", "/", "=", "/w===", "YWJj====", "Y=Q=", "-_8=", "é"])
def test_broken_base64(text: str) -> None:
    with pytest.raises(StatusError, match="Unable to base64 decode"):
        inputs(f'{{"inputs": {{"b64": "{text}"}}}}', s=types_pb2.DT_STRING)


@pytest.mark.parametrize(
    ("text", "code"), [('{"inputs": 1}', Code.UNIMPLEMENTED), ('{"instances": [1]}', Code.INVALID_ARGUMENT)]
)
def test_types_json_has_no_form_for(text: str, code: Code) -> None:
    """TensorFlow Serving wraps every fault in a row into an INVALID_ARGUMENT."""
    with pytest.raises(StatusError, match="to type: half") as caught:
        inputs(text, h=types_pb2.DT_HALF)
    assert caught.value.code is code


@pytest.mark.parametrize(("name", "shown"), [("", "DEFAULT"), ("constant", "constant")])
def test_a_signature_without_inputs_is_named(name: str, shown: str) -> None:
    with pytest.raises(StatusError, match=f"Failed to get input map for signature: {shown}"):
        inputs(f'{{"signature_name": "{name}", "inputs": 1}}')


@pytest.mark.parametrize("text", ["[[1], 2]", "[1, [2]]", "[[1], [2, 3]]", "[[[1]], [2]]", '{"a": 1}', "null"])
def test_ragged_or_odd_values(text: str) -> None:
    with pytest.raises(StatusError):
        inputs(f'{{"inputs": {text}}}', f=types_pb2.DT_FLOAT)


def strings(*values: bytes) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def test_answers() -> None:
    outputs = {"ids": strings(b"a", b'"\n'), "raw_bytes": strings(b"\xff", b"")}
    assert json.loads(predict_body(outputs, is_row_form=True)) == {
        "predictions": [{"ids": "a", "raw_bytes": {"b64": "/w=="}}, {"ids": '"\n', "raw_bytes": {"b64": ""}}]
    }
    empty = {"y": np.zeros((2, 0, 3), np.float32)}
    assert json.loads(predict_body(empty, is_row_form=False)) == {"outputs": [[], []]}
    assert json.loads(predict_body(empty, is_row_form=True)) == {"predictions": [[], []]}
    cube = np.arange(8, dtype=np.int64).reshape(2, 2, 2)
    assert json.loads(predict_body({"y": cube}, is_row_form=True)) == {"predictions": cube.tolist()}
    both = json.loads(predict_body({"y": cube, "z": np.array([True, False])}, is_row_form=True))
    assert both["predictions"][1] == {"y": [[4, 5], [6, 7]], "z": False}
    with pytest.raises(StatusError, match="Failed to write JSON value for tensor type: half"):
        predict_body({"y": np.zeros(1, np.float16)}, is_row_form=False)


@pytest.mark.parametrize("is_row_form", [True, False])
def test_a_signature_without_outputs_has_no_answer_in_json(is_row_form: bool) -> None:
    with pytest.raises(StatusError, match="Cannot convert empty tensor map to JSON"):
        predict_body({}, is_row_form=is_row_form)
