"""Runs every check on a served model: signatures, then each probe over each protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.infra_validator.clients import GrpcClient, RestClient
from components.infra_validator.comparison import answer_problems, differences
from components.infra_validator.probes import (
    STORED_HISTORIES,
    STORED_USERS,
    Probe,
    Sample,
    make_probes,
    missing_features,
)
from components.infra_validator.signatures import contract_violations, read_signatures

MODEL_NAME = "candidate"
Answer = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Check:
    """One check and its verdict; `detail` says what was seen, or what is wrong."""

    name: str
    passed: bool
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def run_checks(base_path: Path, saved_model_dir: Path, sample: Sample) -> list[Check]:
    """Starts a server on `base_path` and compares its answers with those of the model in this process.

    Args:
        base_path: Holds one version folder.
        saved_model_dir: That version folder.
        sample: What to ask.

    Returns:
        The checks in the order made; a failed one ends the list where the next could not be made.
    """
    signatures = read_signatures(str(saved_model_dir))
    violations = contract_violations(signatures)
    if violations:
        return [Check("signatures", False, "; ".join(violations))]
    checks = [Check("signatures", True, "names, dtypes and ranks as in the contract")]
    local = _InProcess(saved_model_dir)
    probes = make_probes(signatures, sample, local.default_k(sample))
    expected = []
    for probe in probes:
        expected.append(local.predict(probe))
        problems = answer_problems(probe, expected[-1], len(sample.live), sample.live)
        checks.append(_check(f"in process: {probe.name}", problems, expected[-1]))
    if not missing_features(signatures["recommend"], 1):  # The stored user features are not in the requests.
        checks.append(_stored_histories_are_current(probes, expected))
    return checks + _served_checks(base_path, probes, expected, sample)


def _stored_histories_are_current(probes: list[Probe], expected: list[Answer]) -> Check:
    """`recommend_user` answers what `recommend` answers for the history that the data holds today."""
    by_name = {probe.name: (probe, answer) for probe, answer in zip(probes, expected, strict=True)}
    probe, by_user = by_name[STORED_USERS]
    problems = differences(probe, by_user, by_name[STORED_HISTORIES][1])
    return _check("in process: recommend_user equals recommend on the stored history", problems, by_user)


def _served_checks(base_path: Path, probes: list[Probe], expected: list[Answer], sample: Sample) -> list[Check]:
    from serving.errors import ServingError
    from serving.launch import ServerProcess

    checks = []
    try:
        with ServerProcess(base_path, MODEL_NAME) as server:
            checks.append(Check("server loads the model", True, "AVAILABLE"))
            over_grpc = GrpcClient(server.grpc_address, MODEL_NAME)
            over_rest = RestClient(server.rest_address, MODEL_NAME)
            for probe, wanted in zip(probes, expected, strict=True):
                for protocol, ask in (("gRPC", over_grpc.predict), ("REST", over_rest.predict)):
                    checks.append(_compare(f"{protocol}: {probe.name}", probe, ask, wanted, sample))
            over_grpc.close()
    except ServingError as error:
        checks.append(Check("server loads the model", False, str(error)))
    return checks


def _compare(
    name: str, probe: Probe, ask: Callable[[str, Mapping[str, Any]], Answer], wanted: Answer, sample: Sample
) -> Check:
    import grpc

    try:
        served = ask(probe.signature, probe.inputs)
    except (grpc.RpcError, OSError, ValueError) as error:
        body = error.read().decode(errors="replace") if hasattr(error, "read") else ""
        return Check(name, False, f"{type(error).__name__}: {error} {body}".strip()[:500])
    problems = differences(probe, served, wanted) + answer_problems(probe, served, len(sample.live), sample.live)
    return _check(name, problems, served)


def _check(name: str, problems: list[str], answer: Answer) -> Check:
    if problems:
        return Check(name, False, "; ".join(problems[:3]))
    rows = len(next(iter(answer.values())))
    return Check(name, True, f"{rows} answer{'s' if rows != 1 else ''} as expected")


class _InProcess:
    """The SavedModel in this process."""

    def __init__(self, saved_model_dir: Path) -> None:
        from models.keras import tf

        self._tf = tf
        self._model = tf.saved_model.load(str(saved_model_dir))

    def predict(self, probe: Probe) -> Answer:
        """Outputs by name."""
        return self._call(probe.signature, probe.inputs)

    def default_k(self, sample: Sample) -> int:
        """Results of `serving_default`: the width of its answer."""
        answer = self._call("serving_default", {"examples": np.array(sample.examples[:1], dtype=object)})
        return int(answer["item_ids"].shape[1])

    def _call(self, signature: str, inputs: Mapping[str, npt.NDArray[Any]]) -> Answer:
        tensors = {name: self._tf.constant(value) for name, value in inputs.items()}
        return {name: tensor.numpy() for name, tensor in self._model.signatures[signature](**tensors).items()}
