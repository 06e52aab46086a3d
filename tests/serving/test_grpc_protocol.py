"""The gRPC protocol, checked with the official stubs."""

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.launch import ServerProcess

pytestmark = pytest.mark.serving
SECONDS = 20


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.grpc_address, options=options) as channel:
        yield channel


@pytest.fixture(scope="module")
def prediction(channel: grpc.Channel) -> prediction_service_pb2_grpc.PredictionServiceStub:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def models(channel: grpc.Channel) -> model_service_pb2_grpc.ModelServiceStub:
    return model_service_pb2_grpc.ModelServiceStub(channel)


def request(signature: str = "", name: str = "tiny", **inputs: Any) -> predict_pb2.PredictRequest:
    message = predict_pb2.PredictRequest()
    message.model_spec.name = name
    message.model_spec.signature_name = signature
    for alias, value in inputs.items():
        message.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    return message


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def assert_fails(call: Any, message: Any, code: grpc.StatusCode, text: str = "") -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(message, timeout=SECONDS)
    assert caught.value.code() is code, caught.value.details()
    assert text in caught.value.details()


def test_predict_answers_with_typed_fields_and_the_effective_signature(prediction: Any) -> None:
    answer = prediction.Predict(request(x=floats(1, 2, 5)), timeout=SECONDS)
    assert list(answer.outputs["y"].float_val) == [2.5, 3.0, 4.5]
    assert answer.outputs["y"].tensor_content == b""
    assert answer.model_spec.name == "tiny"
    assert answer.model_spec.version.value == 1
    assert answer.model_spec.signature_name == "serving_default"


def test_predict_takes_typed_fields_and_tensor_content(prediction: Any) -> None:
    message = request()
    proto = message.inputs["x"]
    proto.dtype = 1
    proto.tensor_shape.dim.add(size=2)
    proto.float_val.extend([4.0, 8.0])
    assert list(prediction.Predict(message, timeout=SECONDS).outputs["y"].float_val) == [4.0, 6.0]
    proto.ClearField("float_val")
    proto.tensor_content = floats(4, 8).tobytes()
    assert list(prediction.Predict(message, timeout=SECONDS).outputs["y"].float_val) == [4.0, 6.0]


def test_predict_does_not_enforce_declared_shapes(prediction: Any) -> None:
    answer = prediction.Predict(request(x=np.float32(4)), timeout=SECONDS)  # a scalar, where [None] is declared
    assert list(answer.outputs["y"].float_val) == [4.0]
    assert len(answer.outputs["y"].tensor_shape.dim) == 0


def test_predict_on_strings_and_other_signatures(prediction: Any) -> None:
    answer = prediction.Predict(
        request("words", words=np.array([b"two", b"\xff\x00", b""], dtype=object)), timeout=SECONDS
    )
    assert list(answer.outputs["position"].int64_val) == [2, -1, -1]
    assert list(answer.outputs["same"].string_val) == [b"two", b"\xff\x00", b""]
    constant = prediction.Predict(request("constant"), timeout=SECONDS)
    assert list(constant.outputs["constant"].float_val) == [1.0, 2.0]
    big = prediction.Predict(request("next_integer", n=np.array([2**53, -(2**63)])), timeout=SECONDS)
    assert list(big.outputs["next"].int64_val) == [2**53 + 1, -(2**63) + 1]
    example = tf.train.Example(features=tf.train.Features(feature={"x": _feature(3.0)})).SerializeToString()
    scores = prediction.Predict(request("classify", inputs=np.array([example])), timeout=SECONDS)
    assert list(scores.outputs["scores"].float_val) == [3.0, 6.0]


def test_output_filter(prediction: Any) -> None:
    message = request("words", words=np.array([b"one"]))
    message.output_filter.append("position")
    assert set(prediction.Predict(message, timeout=SECONDS).outputs) == {"position"}
    message.output_filter.append("position")
    assert_fails(prediction.Predict, message, grpc.StatusCode.INVALID_ARGUMENT, "duplicate output tensor alias")
    message.output_filter[1] = "nothing"
    assert_fails(prediction.Predict, message, grpc.StatusCode.INVALID_ARGUMENT, "nothing")


def test_predict_errors(prediction: Any) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert_fails(prediction.Predict, predict_pb2.PredictRequest(), invalid, "Missing ModelSpec")
    assert_fails(prediction.Predict, request(name="", x=floats(1)), invalid, "no name")
    assert_fails(
        prediction.Predict,
        request(name="other", x=floats(1)),
        grpc.StatusCode.NOT_FOUND,
        "Servable not found for request: Latest(other)",
    )
    specific = request(x=floats(1))
    specific.model_spec.version.value = 7
    assert_fails(
        prediction.Predict, specific, grpc.StatusCode.NOT_FOUND, "Servable not found for request: Specific(tiny, 7)"
    )
    label = request(x=floats(1))
    label.model_spec.version_label = "canary"
    assert_fails(prediction.Predict, label, invalid, "Unrecognized servable version label: canary")
    assert_fails(
        prediction.Predict,
        request("nope", x=floats(1)),
        grpc.StatusCode.FAILED_PRECONDITION,
        'Serving signature key "nope" not found.',
    )
    for wrong in (request(), request(z=floats(1)), request(x=floats(1), z=floats(1))):
        assert_fails(prediction.Predict, wrong, invalid, "input size does not match signature")
    assert_fails(prediction.Predict, request(x=np.array([b"a"])), invalid)
    assert_fails(prediction.Predict, request(x=np.array([1], np.int64)), invalid)
    assert_fails(prediction.Predict, request("small_only", n=np.array([11], np.int32)), invalid, "n must be below ten")


def test_broken_tensors_are_the_requests_fault(prediction: Any) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    for shape, content in (([3], b"\x00" * 8), ([-1], b""), ([2**40, 2**20], b""), ([1] * 300, b"\x00" * 4)):
        message = request()
        proto = message.inputs["x"]
        proto.dtype = 1
        for size in shape:
            proto.tensor_shape.dim.add(size=size)
        proto.tensor_content = content
        assert_fails(prediction.Predict, message, invalid, "tensor parsing error")
    message = request()
    message.inputs["x"].dtype = 99
    assert_fails(prediction.Predict, message, invalid)


def test_messages_beyond_the_default_limit_of_grpc(prediction: Any) -> None:
    many = np.zeros(3_000_000, np.float32)  # 12 MB, where gRPC's own limit is 4 MiB
    answer = prediction.Predict(request(x=many), timeout=60)
    assert len(answer.outputs["y"].float_val) == len(many)


def test_malformed_bytes_are_an_invalid_argument(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    assert_fails(call, b"\xff\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT)


def test_long_error_texts_are_cut(prediction: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        prediction.Predict(request(name="n" * 5000, x=floats(1)), timeout=SECONDS)
    assert caught.value.details().endswith("...TRUNCATED")
    assert len(caught.value.details()) == 1024 + len("...TRUNCATED")


def _feature(value: float) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))


def _example(**features: float) -> tf.train.Example:
    return tf.train.Example(
        features=tf.train.Features(feature={name: _feature(value) for name, value in features.items()})
    )


def test_classify_and_regress(prediction: Any) -> None:
    classify = classification_pb2.ClassificationRequest()
    classify.model_spec.name, classify.model_spec.signature_name = "tiny", "classify"
    assert_fails(prediction.Classify, classify, grpc.StatusCode.INVALID_ARGUMENT, "Input is empty.")
    classify.input.example_list.examples.extend([_example(x=1.0), _example(x=3.0)])
    answer = prediction.Classify(classify, timeout=SECONDS)
    pairs = [[(entry.label, entry.score) for entry in row.classes] for row in answer.result.classifications]
    assert pairs == [[("low", 1.0), ("high", 2.0)], [("low", 3.0), ("high", 6.0)]]
    regress = regression_pb2.RegressionRequest()
    regress.model_spec.name, regress.model_spec.signature_name = "tiny", "regress"
    regress.input.example_list_with_context.context.CopyFrom(_example(x=9.0))
    regress.input.example_list_with_context.examples.extend([_example(), _example(x=1.0)])
    answer = prediction.Regress(regress, timeout=SECONDS)
    assert [entry.value for entry in answer.result.regressions] == [10.0, 2.0]
    assert answer.model_spec.signature_name == "regress"
    regress.model_spec.signature_name = ""
    assert_fails(prediction.Regress, regress, grpc.StatusCode.INVALID_ARGUMENT)
    regress.model_spec.signature_name = "nope"
    assert_fails(prediction.Regress, regress, grpc.StatusCode.INVALID_ARGUMENT, "nope")


def test_multi_inference(prediction: Any) -> None:
    message = inference_pb2.MultiInferenceRequest()
    for signature in ("regress", "classify"):
        task = message.tasks.add(method_name=f"tensorflow/serving/{signature}")
        task.model_spec.name, task.model_spec.signature_name = "tiny", signature
    message.input.example_list.examples.add().CopyFrom(_example(x=2.0))
    answer = prediction.MultiInference(message, timeout=SECONDS)
    assert answer.results[0].regression_result.regressions[0].value == 3.0
    assert answer.results[1].classification_result.classifications[0].classes[1].score == 4.0
    message.tasks[0].method_name = "tensorflow/serving/predict"
    assert_fails(prediction.MultiInference, message, grpc.StatusCode.UNIMPLEMENTED)
    message.tasks[0].CopyFrom(message.tasks[1])
    assert_fails(prediction.MultiInference, message, grpc.StatusCode.INVALID_ARGUMENT, "Duplicate evaluation")
    del message.tasks[:]
    assert_fails(prediction.MultiInference, message, grpc.StatusCode.INVALID_ARGUMENT)


def test_metadata(prediction: Any) -> None:
    message = get_model_metadata_pb2.GetModelMetadataRequest()
    message.model_spec.name = "tiny"
    assert_fails(prediction.GetModelMetadata, message, grpc.StatusCode.INVALID_ARGUMENT, "at least one metadata_field")
    message.metadata_field.append("signature_def")
    answer = prediction.GetModelMetadata(message, timeout=SECONDS)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    assert {"serving_default", "words", "__saved_model_init_op"} <= set(signatures.signature_def)
    assert signatures.signature_def["serving_default"].inputs["x"].dtype == 1
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("tiny", 1)
    message.metadata_field.append("other")
    assert_fails(prediction.GetModelMetadata, message, grpc.StatusCode.INVALID_ARGUMENT, "other")


def test_model_status(models: Any) -> None:
    message = get_model_status_pb2.GetModelStatusRequest()
    assert_fails(models.GetModelStatus, message, grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec")
    message.model_spec.name = "tiny"
    (status,) = models.GetModelStatus(message, timeout=SECONDS).model_version_status
    assert (status.version, status.state, status.status.error_code) == (1, 30, 0)
    message.model_spec.version.value = 2
    assert_fails(models.GetModelStatus, message, grpc.StatusCode.NOT_FOUND, "Could not find version 2 of model tiny")
    message = get_model_status_pb2.GetModelStatusRequest()
    message.model_spec.name = "other"
    assert_fails(
        models.GetModelStatus, message, grpc.StatusCode.NOT_FOUND, "Could not find any versions of model other"
    )


def test_reload_refuses_what_is_no_list_of_models(models: Any) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    message = model_management_pb2.ReloadConfigRequest()
    assert_fails(models.HandleReloadConfigRequest, message, invalid, "Only ModelConfigList")
    models_list = message.config.model_config_list.config
    models_list.add(name="tiny", base_path="relative", model_platform="tensorflow")
    assert_fails(models.HandleReloadConfigRequest, message, invalid, "absolute path")
    models_list[0].base_path = "/somewhere"
    models_list.add().CopyFrom(models_list[0])
    assert_fails(models.HandleReloadConfigRequest, message, invalid, "multiple times")
    del models_list[1]
    models_list[0].model_platform = "other"
    assert_fails(models.HandleReloadConfigRequest, message, invalid, "platform")
    models_list[0].model_platform = "tensorflow"
    models_list[0].model_type = 1
    assert_fails(models.HandleReloadConfigRequest, message, invalid, "Illegal setting both")
    models_list[0].model_platform = ""
    models_list[0].model_type = 2
    assert_fails(models.HandleReloadConfigRequest, message, invalid, "not supported")


def test_health(channel: grpc.Channel) -> None:
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    for service in (b"", b"ModelService", b"PredictionService"):
        name = b"\x0a" + bytes([len(service)]) + service if service else b""
        assert check(name, timeout=SECONDS) == b"\x08\x01"  # status: SERVING
    assert_fails(check, b"\x0a\x01z", grpc.StatusCode.NOT_FOUND)
