"""Predict: checks a request against its signature, runs the graph once, answers.

Knows no versions, disks or transports, so warm-up, gRPC and REST share it. Texts and codes are TensorFlow Serving's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import model_pb2, predict_pb2

from serving.server.status import Code, StatusError, invalid_argument
from serving.server.tensors import NUMPY_TYPES, TYPE_NUMBERS, to_array, to_proto, type_name

DEFAULT_SIGNATURE = "serving_default"


class Runnable(Protocol):
    """A model that can be run: the session itself, or a batcher in front of it."""

    signatures: Mapping[str, meta_graph_pb2.SignatureDef]

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Feeds and fetches tensors by name."""
        ...


@dataclass(frozen=True)
class GraphRun:
    """What to feed and fetch for one request.

    Attributes:
        feeds: Tensor name to value.
        fetches: Tensor names, one for each output.
        outputs: Names of the outputs in the signature.
    """

    feeds: dict[str, np.ndarray]
    fetches: list[str]
    outputs: list[str]


@dataclass(frozen=True)
class GraphAnswer:
    """What the graph has answered to one request.

    Attributes:
        graph_run: What was run.
        values: One array for each output.
        version: Of the model.
    """

    graph_run: GraphRun
    values: Sequence[np.ndarray]
    version: int | None

    def response_to(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        """Writes the response: the second half of `predict`."""
        response = predict_pb2.PredictResponse()
        signature_name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        fill_model_spec(response.model_spec, request.model_spec.name, signature_name, self.version)
        for alias, value in zip(self.graph_run.outputs, self.values, strict=True):
            to_proto(value, response.outputs[alias])
        return response


def predict(
    model: Runnable, request: predict_pb2.PredictRequest, version: int | None = None
) -> predict_pb2.PredictResponse:
    """Answers a Predict request.

    Args:
        model: The loaded version that answers.
        request: Inputs by the names of the signature.
        version: Number of that version, for the answer.

    Raises:
        StatusError: FAILED_PRECONDITION for an unknown signature, INVALID_ARGUMENT for inputs or outputs it does not
            have. Errors of the graph come through as they are.
    """
    graph_run = begin_predict(model, request)
    values = model.run(graph_run.feeds, graph_run.fetches)
    return GraphAnswer(graph_run, values, version).response_to(request)


def begin_predict(model: Runnable, request: predict_pb2.PredictRequest) -> GraphRun:
    """The first half of `predict`: everything before the graph runs."""
    signature_name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = model.signatures.get(signature_name)
    if signature is None:
        raise StatusError(Code.FAILED_PRECONDITION, f'Serving signature key "{signature_name}" not found.')
    # Inputs with a default value in the signature may be left out over gRPC; REST asks for all, as TensorFlow Serving.
    inputs = {**signature.defaults, **request.inputs} if signature.defaults else request.inputs
    check_input_names(signature, inputs)
    arrays = {alias: to_array(alias, proto) for alias, proto in inputs.items()}
    return graph_run_of(signature, arrays, request.output_filter)


def check_input_names(signature: meta_graph_pb2.SignatureDef, given: Iterable[str]) -> None:
    """Raises unless `given` are exactly the inputs of the signature."""
    sent, expected = set(given), set(signature.inputs)
    if sent != expected:
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(expected)} "
            f"len({{{','.join(sorted(sent))}}}) != len({{{','.join(sorted(expected))}}}). "
            f"Sent extra: {{{','.join(sorted(sent - expected))}}}. "
            f"Missing but required: {{{','.join(sorted(expected - sent))}}}."
        )


def graph_run_of(
    signature: meta_graph_pb2.SignatureDef, inputs: Mapping[str, np.ndarray], output_filter: Sequence[str] = ()
) -> GraphRun:
    """Names what to run for one signature.

    Args:
        signature: One of the model's signatures.
        inputs: One array for each input of the signature.
        output_filter: Outputs wanted; empty means all.

    Returns:
        Feeds and fetches; outputs in the order of the filter, or sorted by name.

    Raises:
        StatusError: INVALID_ARGUMENT for a wrong dtype or an unknown or repeated output.
    """
    feeds = {}
    for position, alias in enumerate(sorted(inputs)):
        info, array = signature.inputs[alias], inputs[alias]
        if NUMPY_TYPES.get(info.dtype) != array.dtype:
            given = type_name(TYPE_NUMBERS.get(array.dtype, 0))
            raise invalid_argument(
                f'Expects arg[{position}] to be {type_name(info.dtype)} but {given} is provided for input "{alias}"'
            )
        feeds[info.name] = array
    aliases = list(output_filter) or sorted(signature.outputs)
    seen: set[str] = set()
    for alias in aliases:
        if alias not in signature.outputs:
            known = ",".join(sorted(signature.outputs))
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set {{{known}}}."
            )
        if alias in seen:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
        seen.add(alias)
    return GraphRun(feeds, [signature.outputs[alias].name for alias in aliases], aliases)


def fill_model_spec(spec: model_pb2.ModelSpec, name: str, signature_name: str, version: int | None) -> None:
    """Writes who answered into a response."""
    spec.name = name
    spec.signature_name = signature_name
    if version is not None:
        spec.version.value = version
