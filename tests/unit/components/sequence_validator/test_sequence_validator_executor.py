"""The node on files: shards of several splits, a planted leak, a request log; what is refused leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tfx.types import standard_artifacts

from components.config import ValidationConfig
from components.errors import DataAnomalyError
from components.sequence_validator.executor import Executor, validate_sequences
from models.config import FeatureSpec

COUNTRY = FeatureSpec(name="country", kind="categorical", tower="query")
AGE = FeatureSpec(name="age", kind="numeric", tower="query")


def user(name: str, items: str, *, targets: str = "", start: int = 100, **features: Any) -> dict[str, list[Any]]:
    """A record whose events are one second apart, one letter per item."""
    record: dict[str, list[Any]] = {"user_id": [name], "history": list(items)}
    record["history_timestamps"] = [start + second for second in range(len(items))]
    if targets:
        record["targets"] = list(targets)
        record["target_timestamps"] = [start + len(items) + second for second in range(len(targets))]
    return record | {f"user_{key}": [value] for key, value in features.items()}


@pytest.fixture
def splits() -> dict[str, list[dict[str, list[Any]]]]:
    """Two users, two targets each."""
    return {
        "train": [user("u1", "ab", country="PT", age=30.0), user("u2", "ba", country="DE", age=40.0)],
        "validation": [user("u1", "ab", targets="c", country="PT"), user("u2", "ba", targets="c", country="DE")],
        "test": [user("u1", "abc", targets="d", country="PT"), user("u2", "bac", targets="d", country="DE")],
    }


def verdicts(record: dict[str, Any]) -> dict[str, tuple[float, bool]]:
    return {check["name"]: (check["value"], check["passed"]) for check in record["checks"]}


def test_clean_sequences_pass_and_are_compared_with_the_test_split(
    tmp_path: Path, splits: Any, write_sequences: Callable[..., str]
) -> None:
    uri = write_sequences(tmp_path / "sequences", splits)
    record = validate_sequences(uri, "leave_last_two_out", (COUNTRY, AGE), ValidationConfig())
    found = verdicts(record)
    assert {name for name, (_, passed) in found.items() if not passed} == {"unknown_history_items"}
    assert found["unknown_history_items"][0] == pytest.approx(2 / 6)  # c is in two of the test's histories only
    assert (record["skew_reference"], record["serving_examples"]) == ("the test split", 2)
    shares = {(row["column"], row["measure"]): row["value"] for row in record["skew"]}
    assert shares["history", "L_INFTY"] == pytest.approx(1 / 3)
    assert shares["user_country", "L_INFTY"] == 0


def test_leaks_in_the_files_are_found(tmp_path: Path, splits: Any, write_sequences: Callable[..., str]) -> None:
    # u1 was trained on an event at 300, its targets are at 102 and 103; u2's test history holds its target.
    splits["train"][0] = user("u1", "ab", start=299)
    splits["test"][1] = user("u2", "bad", targets="d") | {"target_timestamps": [102]}
    uri = write_sequences(tmp_path / "sequences", splits)
    found = verdicts(validate_sequences(uri, "leave_last_two_out", (), ValidationConfig(max_skew=1.0)))
    assert found["training_after_target"] == (2 / 4, False)
    assert found["target_in_history"] == (1 / 4, False)
    assert found["history_after_target"] == (0.0, True)


def test_a_request_log_is_the_serving_side(tmp_path: Path, splits: Any, write_sequences: Callable[..., str]) -> None:
    from test_skew import predict_log, write_log

    log = write_log(
        tmp_path / "requests.tfrecord", [predict_log(history=[[b"a", b"b"]], country=[b"FR"], age=[30.0])] * 4
    )
    config = ValidationConfig(serving_log=str(log), max_skew=0.4)
    uri = write_sequences(tmp_path / "sequences", splits)
    record = validate_sequences(uri, "leave_last_two_out", (COUNTRY, AGE), config)
    assert record["serving_examples"] == 4
    failed = {(row["column"], row["measure"]): row for row in record["skew"] if not row["passed"]}
    country = failed["user_country", "L_INFTY"]
    assert country["value"] == pytest.approx(1.0)
    assert "'FR' went from 0.0% to 100.0% of the values" in country["message"]
    assert str(log) in country["message"]
    assert ("history", "L_INFTY") not in failed


def test_contexts_of_requests_are_compared_with_those_that_training_learns_from(
    tmp_path: Path, splits: Any, write_sequences: Callable[..., str]
) -> None:
    from test_skew import predict_log, write_log

    device = FeatureSpec(name="device", kind="categorical", tower="context")
    for record in splits["train"]:
        record["history_context_device"] = ["app", ""]  # the second is not known and counts for nothing
    for record in splits["test"]:
        record["context_device"] = ["tv"]
    uri = write_sequences(tmp_path / "sequences", splits)
    # The test split's requests are later than training: another device there is no skew.
    record = validate_sequences(uri, "leave_last_two_out", (device,), ValidationConfig())
    assert not [row for row in record["skew"] if row["column"] == "context_device"]
    requests = [predict_log(history=[[b"a", b"b"]], device=[name]) for name in (b"app", b"app", b"app", b"web")]
    log = write_log(tmp_path / "requests.tfrecord", requests)
    record = validate_sequences(uri, "leave_last_two_out", (device,), ValidationConfig(serving_log=str(log)))
    shares = {(row["column"], row["measure"]): row["value"] for row in record["skew"]}
    assert shares["context_device", "L_INFTY"] == pytest.approx(1 / 4)


def test_a_broken_rule_raises_with_all_that_was_measured(
    tmp_path: Path, splits: Any, write_sequences: Callable[..., str]
) -> None:
    splits["train"][0] = user("u1", "ab", start=299)
    sequences, anomalies = standard_artifacts.Examples(), standard_artifacts.ExampleAnomalies()
    sequences.uri = write_sequences(tmp_path / "sequences", splits)
    sequences.split_names = json.dumps(list(splits))
    anomalies.uri = str(tmp_path / "anomalies")
    properties = {
        "protocol": "leave_last_two_out",
        "features": f"[{COUNTRY.model_dump_json()}]",
        "validation": ValidationConfig(max_skew=1.0).model_dump_json(),
    }
    with pytest.raises(DataAnomalyError, match="2 of 4 targets are older than a training event of their user") as error:
        Executor().Do({"sequences": [sequences]}, {"anomalies": [anomalies]}, properties)
    assert "user 'u1' at 102" in str(error.value)
    assert verdicts(error.value.record)["training_after_target"] == (0.5, False)
    splits["train"][0] = user("u1", "ab")
    sequences.uri = write_sequences(tmp_path / "mended", splits)
    Executor().Do({"sequences": [sequences]}, {"anomalies": [anomalies]}, properties)
    written = json.loads((tmp_path / "anomalies" / "checks.json").read_text())
    assert all(passed for _, passed in verdicts(written).values())
