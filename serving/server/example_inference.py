"""Classify, Regress and MultiInference: signatures that take serialized tf.Examples.

Chosen by the names of inputs and outputs alone, as TensorFlow Serving does by default. Texts and codes are its own.
"""

from collections.abc import Mapping

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import classification_pb2, inference_pb2, input_pb2, model_pb2, regression_pb2

from serving.server.inference import DEFAULT_SIGNATURE, Runnable, fill_model_spec
from serving.server.status import Code, StatusError, invalid_argument
from serving.server.tensors import NUMPY_TYPES, STRINGS, TYPE_NUMBERS, object_array, type_name

CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"


def classify(
    model: Runnable, request: classification_pb2.ClassificationRequest, version: int | None = None
) -> classification_pb2.ClassificationResponse:
    """Answers a Classify request: `inputs` of serialized examples, outputs `classes` and / or `scores`."""
    signature = _example_signature(model, request.model_spec)
    outputs = _classify_outputs(signature)
    examples = serialized_examples(request.input)
    values = model.run(
        {signature.inputs["inputs"].name: examples}, [signature.outputs[alias].name for alias in outputs]
    )
    response = classification_pb2.ClassificationResponse()
    fill_model_spec(response.model_spec, request.model_spec.name, request.model_spec.signature_name, version)
    _fill_classifications(response.result, len(examples), dict(zip(outputs, values, strict=True)))
    return response


def regress(
    model: Runnable, request: regression_pb2.RegressionRequest, version: int | None = None
) -> regression_pb2.RegressionResponse:
    """Answers a Regress request: `inputs` of serialized examples, output `outputs` of one float per example."""
    signature = _example_signature(model, request.model_spec)
    _check_regress_outputs(signature)
    examples = serialized_examples(request.input)
    (value,) = model.run({signature.inputs["inputs"].name: examples}, [signature.outputs["outputs"].name])
    response = regression_pb2.RegressionResponse()
    fill_model_spec(response.model_spec, request.model_spec.name, request.model_spec.signature_name, version)
    _fill_regressions(response.result, len(examples), value)
    return response


def multi_inference(
    model: Runnable, request: inference_pb2.MultiInferenceRequest, version: int | None = None
) -> inference_pb2.MultiInferenceResponse:
    """Answers several classify / regress tasks on the same examples with one run of the graph."""
    tasks = [(task, _task_signature(model, request, position)) for position, task in enumerate(request.tasks)]
    wanted: dict[str, None] = {}
    feeds: dict[str, np.ndarray] = {}
    examples = serialized_examples(request.input)
    for task, signature in tasks:
        feeds[signature.inputs["inputs"].name] = examples
        aliases = _classify_outputs(signature) if task.method_name == CLASSIFY_METHOD else ["outputs"]
        wanted.update(dict.fromkeys(signature.outputs[alias].name for alias in aliases))
    values = dict(zip(wanted, model.run(feeds, list(wanted)), strict=True))
    response = inference_pb2.MultiInferenceResponse()
    for task, signature in tasks:
        result = response.results.add()
        fill_model_spec(result.model_spec, task.model_spec.name, task.model_spec.signature_name, version)
        if task.method_name == CLASSIFY_METHOD:
            named = {alias: values[signature.outputs[alias].name] for alias in _classify_outputs(signature)}
            _fill_classifications(result.classification_result, len(examples), named)
        else:
            _fill_regressions(result.regression_result, len(examples), values[signature.outputs["outputs"].name])
    return response


def serialized_examples(proto: input_pb2.Input) -> np.ndarray:
    """Returns the examples as a string vector, the context merged into each.

    Merging two serialized messages is joining their bytes, features of the example winning over the context's.
    """
    if proto.WhichOneof("kind") == "example_list_with_context":
        context = proto.example_list_with_context.context.SerializeToString()
        texts = [context + example.SerializeToString() for example in proto.example_list_with_context.examples]
    else:
        texts = [example.SerializeToString() for example in proto.example_list.examples]
    if not texts:
        raise invalid_argument("Input is empty.")
    return object_array(texts)


def _example_signature(model: Runnable, spec: model_pb2.ModelSpec) -> meta_graph_pb2.SignatureDef:
    name = spec.signature_name or DEFAULT_SIGNATURE
    if name not in model.signatures:
        raise invalid_argument(f"No signature was found with the name: {name}")
    return model.signatures[name]


def _task_signature(
    model: Runnable, request: inference_pb2.MultiInferenceRequest, position: int
) -> meta_graph_pb2.SignatureDef:
    task, earlier = request.tasks[position], request.tasks[:position]
    if not task.model_spec.name:
        raise invalid_argument("Found ModelSpec with an empty model name.")
    if task.model_spec.name != request.tasks[0].model_spec.name:
        raise invalid_argument("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
    name = task.model_spec.signature_name or DEFAULT_SIGNATURE
    if any((other.model_spec.signature_name or DEFAULT_SIGNATURE) == name for other in earlier):
        raise invalid_argument(f"Duplicate evaluation of signature: {name}")
    signature = model.signatures.get(name)
    if signature is None:
        raise invalid_argument(f"Requested signature not found in model graph: {name}")
    if task.method_name == CLASSIFY_METHOD:
        _classify_outputs(signature)
    elif task.method_name == REGRESS_METHOD:
        _check_regress_outputs(signature)
    else:
        raise StatusError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
    return signature


def _check_example_input(signature: meta_graph_pb2.SignatureDef, kind: str) -> None:
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if "inputs" not in signature.inputs:
        raise invalid_argument(f"No {kind} inputs found in SignatureDef: {signature}")
    if NUMPY_TYPES.get(signature.inputs["inputs"].dtype) != STRINGS:
        raise invalid_argument(
            f"Expects arg[0] to be {type_name(signature.inputs['inputs'].dtype)} but string is provided"
        )


def _classify_outputs(signature: meta_graph_pb2.SignatureDef) -> list[str]:
    _check_example_input(signature, "classification")
    if len(signature.outputs) not in (1, 2):
        raise invalid_argument(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    found = [alias for alias in ("classes", "scores") if alias in signature.outputs]
    if not found:
        raise invalid_argument(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {signature}"
        )
    return found


def _check_regress_outputs(signature: meta_graph_pb2.SignatureDef) -> None:
    _check_example_input(signature, "regression")
    if len(signature.outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    if "outputs" not in signature.outputs:
        raise invalid_argument(f"No regression outputs found in SignatureDef: {signature}")


def _fill_classifications(
    result: classification_pb2.ClassificationResult, num_examples: int, outputs: Mapping[str, np.ndarray]
) -> None:
    for alias, expected in (("classes", np.dtype(object)), ("scores", np.dtype(np.float32))):
        value = outputs.get(alias)
        if value is None:
            continue
        if value.ndim != 2:
            raise invalid_argument(f"Expected Tensor shape: [batch_size num_classes] but got {list(value.shape)}")
        if value.dtype != expected:
            want = "DT_STRING" if alias == "classes" else "DT_FLOAT"
            raise invalid_argument(f"Expected {alias} Tensor of {want}. Got: {_dt(value)}")
        if value.shape[0] != num_examples:
            raise invalid_argument(f"Expected {alias} output batch size of {num_examples}. Got: {value.shape[0]}")
    classes, scores = outputs.get("classes"), outputs.get("scores")
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise invalid_argument(
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    num_classes = next(iter(outputs.values())).shape[1]
    for row in range(num_examples):
        classifications = result.classifications.add()
        for column in range(num_classes):
            entry = classifications.classes.add()
            if classes is not None:
                entry.label = _text(classes[row, column])
            if scores is not None:
                entry.score = float(scores[row, column])


def _fill_regressions(result: regression_pb2.RegressionResult, num_examples: int, value: np.ndarray) -> None:
    if not (value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 1)):
        raise invalid_argument(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {list(value.shape)}"
        )
    if value.shape[0] != num_examples:
        raise invalid_argument(f"Input batch size did not match output batch size: {num_examples} vs. {value.shape[0]}")
    if value.dtype != np.float32:
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT.  Got: {_dt(value)}")
    for number in value.reshape(-1).tolist():
        result.regressions.add().value = number


def _dt(value: np.ndarray) -> str:
    return "DT_" + type_name(TYPE_NUMBERS.get(value.dtype, 0)).upper()


def _text(label: bytes) -> str:
    """A label is a protobuf string; bytes that are not UTF-8 cannot be put there."""
    try:
        return label.decode()
    except UnicodeDecodeError as error:
        raise StatusError(Code.INTERNAL, f"The model answered a class label that is not UTF-8: {label!r}") from error
