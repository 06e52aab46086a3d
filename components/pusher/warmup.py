"""Warm-up requests of record or made of real examples, so that the first user waits no longer than the tenth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from components.infra_validator.clients import predict_request
from components.infra_validator.probes import K, Sample, missing_features, read_sample
from components.infra_validator.signatures import Signature, read_signatures
from components.pusher.recorded import recorded_requests


def write_warmup(saved_model_dir: Path, sequences_uri: str, count: int, log: str = "") -> int:
    """Writes `assets.extra/tf_serving_warmup_requests`.

    What clients asked of the version before comes first. Requests made of examples stand in for signatures that nobody
    asked, and fill up.

    Args:
        saved_model_dir: The model that gets them.
        sequences_uri: Of SequenceGen's Examples artifact.
        count: Requests at most; 0 = none.
        log: Request log of the model server, a file or a pattern; "" = none.

    Returns:
        Number of requests written.
    """
    if not count:
        return 0
    from serving.warmup_records import write_warmup_records

    signatures = read_signatures(str(saved_model_dir))
    recorded = recorded_requests(log, signatures, count) if log else []
    made = list(islice(warmup_requests(signatures, read_sample(sequences_uri, count)), count))
    return write_warmup_records(saved_model_dir, _chosen(recorded, made, count))


def _chosen(recorded: Sequence[Any], made: Sequence[Any], count: int) -> list[Any]:
    """One made request for each signature that nobody asked, the newest of record, then the other made ones."""
    asked = {request.model_spec.signature_name for request in recorded}
    first: dict[str, Any] = {}
    others = []
    for request in made:
        name = request.model_spec.signature_name
        if name in asked or name in first:
            others.append(request)
        else:
            first[name] = request
    room = max(0, count - len(first))
    newest = recorded[len(recorded) - min(room, len(recorded)) :]
    return [*first.values(), *newest, *others][:count]


def warmup_requests(signatures: Mapping[str, Signature], sample: Sample) -> Iterator[Any]:
    """PredictRequests for single users, the three signatures that answer users in turn."""
    none, k = np.array([[b""]], dtype=object), np.array(K, np.int32)

    def recommend() -> Iterator[Any]:
        features = missing_features(signatures["recommend"], 1)
        for history in sample.histories:
            row = np.array([list(history) or [b""]], dtype=object)
            yield predict_request("", "recommend", {"history": row, "exclude": none, "k": k, **features})

    def recommend_user() -> Iterator[Any]:
        for user in sample.stored:
            yield predict_request("", "recommend_user", {"user_id": np.array([user], dtype=object), "k": k})

    def serving_default() -> Iterator[Any]:
        for example in sample.examples:
            yield predict_request("", "serving_default", {"examples": np.array([example], dtype=object)})

    rounds = zip_longest(recommend(), recommend_user(), serving_default())
    return (request for request in chain.from_iterable(rounds) if request is not None)
