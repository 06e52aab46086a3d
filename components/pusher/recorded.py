"""Requests that clients sent to the version before, as far as the next version can answer them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.infra_validator.signatures import Signature, Tensor

_LARGEST_BYTES = 1 << 16  # A batch of thousands would hold up the load of every version, in every pod.


def recorded_requests(pattern: str, signatures: Mapping[str, Signature], count: int) -> Sequence[Any]:
    """The newest distinct requests of a request log that fit a model.

    One record that fails makes a model server refuse the whole version: so a request must have exactly the inputs of
    its signature, and what a log says of versions, labels and outputs is left out.

    Args:
        pattern: File, or pattern for the files, of the log; where there is none, nobody has been asked yet.
        signatures: Of the model that will be warmed up.
        count: Requests at most.

    Returns:
        PredictRequests, oldest first.
    """
    from serving.recorded_requests import log_files, predict_requests
    from serving.records import RecordError

    newest: dict[bytes, Any] = {}
    unfit = 0
    for path in log_files(pattern):
        try:
            for request in predict_requests(path):
                if not _fits(request, signatures):
                    unfit += 1
                    continue
                plain = _plain(request)
                key = plain.SerializeToString(deterministic=True)
                newest.pop(key, None)
                newest[key] = plain
                if len(newest) > count:
                    del newest[next(iter(newest))]
        except RecordError as error:
            print(f"the rest of the request log is left out: {error}")
    print(f"{len(newest)} warm-up requests from {pattern}; {unfit} requests there do not fit this model")
    return list(newest.values())


def _fits(request: Any, signatures: Mapping[str, Signature]) -> bool:
    from models.keras import tf

    signature = signatures.get(request.model_spec.signature_name or "serving_default")
    if signature is None or request.ByteSize() > _LARGEST_BYTES:
        return False
    given = {
        name: Tensor(tf.dtypes.as_dtype(proto.dtype).name, len(proto.tensor_shape.dim))
        for name, proto in request.inputs.items()
    }
    return given == dict(signature.inputs)


def _plain(request: Any) -> Any:
    from tensorflow_serving.apis import predict_pb2

    plain = predict_pb2.PredictRequest()
    plain.model_spec.signature_name = request.model_spec.signature_name or "serving_default"
    for name, proto in request.inputs.items():
        plain.inputs[name].CopyFrom(proto)
    return plain
