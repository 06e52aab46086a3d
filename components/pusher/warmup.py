"""Warm-up requests made of real examples, so that the first user waits no longer than the tenth."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from components.infra_validator.clients import predict_request
from components.infra_validator.probes import K, Sample, missing_features, read_sample
from components.infra_validator.signatures import read_signatures


def write_warmup(saved_model_dir: Path, sequences_uri: str, count: int) -> int:
    """Writes `assets.extra/tf_serving_warmup_requests`.

    Args:
        saved_model_dir: The model that gets them.
        sequences_uri: Of SequenceGen's Examples artifact.
        count: Requests at most; 0 = none.

    Returns:
        Number of requests written.
    """
    if not count:
        return 0
    from serving.warmup_records import write_warmup_records

    sample = read_sample(sequences_uri, count)
    requests = islice(warmup_requests(str(saved_model_dir), sample), count)
    return write_warmup_records(saved_model_dir, list(requests))


def warmup_requests(saved_model_dir: str, sample: Sample) -> Iterator[Any]:
    """PredictRequests for single users, the three signatures that answer users in turn."""
    signatures = read_signatures(saved_model_dir)
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
