"""The whole pipeline on a tiny preset, as a user runs it: killed, resumed, cached, refused, changed, asked."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import load_config

ROOT = Path(__file__).resolve().parents[2]
PRESET = Path(__file__).parent / "tiny.toml"
PACKAGES = ("pipeline", "components", "models", "serving")
NODES = {
    "InteractionsGen",
    "InteractionsStatistics",
    "InteractionsSchema",
    "InteractionsValidator",
    "ItemsGen",
    "ItemsStatistics",
    "ItemsSchema",
    "ItemsValidator",
    "UsersGen",
    "UsersStatistics",
    "UsersSchema",
    "UsersValidator",
    "SequenceGen",
    "SequenceValidator",
    "Transform",
    "Trainer",
    "Compressor",
    "RetrievalBaselines",
    "Evaluator",
    "InfraValidator",
    "Pusher",
}
RESOLVERS = {"PreviousStatistics", "PreviousVocabulary", "PreviousTransform", "LastBlessedModel"}

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def command(output: Path, *extra: str, preset: Path = PRESET) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", "run", str(preset), "--output", str(output), *extra]


def run(output: Path, *extra: str, code: Path = ROOT, preset: Path = PRESET) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(code)}
    return subprocess.run(
        command(output, *extra, preset=preset), cwd=code, env=environment, capture_output=True, text=True
    )


def executed(output: Path) -> set[str]:
    """Nodes that the last run did not take from the cache."""
    report = json.loads((output / "report.json").read_text())
    return {row["node"] for row in report["resources"] if not row["cached"]} - RESOLVERS


def versions(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "serving" / "tiny").glob("*"))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose first run was killed while the Trainer ran, and whose second run completed."""
    folder = tmp_path_factory.mktemp("run")
    with open(folder / "killed.log", "w+") as log:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command(folder), cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while "Trainer" not in Path(log.name).read_text():
            assert process.poll() is None, Path(log.name).read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / "serving").exists() or versions(folder) == []
    result = run(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "second.log").write_text(result.stdout)
    return folder


def test_a_killed_run_goes_on_where_it_was(output: Path) -> None:
    assert executed(output) == {
        "Trainer",
        "Compressor",
        "Evaluator",
        "InfraValidator",
        "Pusher",
    } | (executed(output) & {"RetrievalBaselines"})
    assert len(versions(output)) == 1


def test_every_node_of_the_design_ran(output: Path) -> None:
    report = json.loads((output / "report.json").read_text())
    assert {row["node"] for row in report["resources"]} == NODES | RESOLVERS


def test_progress_and_answers_are_printed(output: Path) -> None:
    text = (output / "second.log").read_text()
    assert "Transform" in text and "cached" in text
    assert "served model" in text and "popularity" in text
    for protocol in ("gRPC", "REST"):
        assert f"{protocol} 127.0.0.1:" in text
    assert f"Report       {output / 'report.html'}" in text
    assert "tensorboard --logdir" in text


def test_report_holds_the_contract(output: Path) -> None:
    report = json.loads((output / "report.json").read_text())
    assert report["pushed"] is True and report["blessed"] is True
    model = report["model"]
    assert Path(model["path"]) == output / "serving" / "tiny" / str(model["version"])
    files = [path for path in Path(model["path"]).rglob("*") if path.is_file() and "assets.extra" not in path.parts]
    assert model["saved_model_bytes"] == sum(path.stat().st_size for path in files)
    assert {"recall@10", "recall@100", "ndcg@10", "mrr", "hit_rate@10", "coverage@10"} <= set(report["metrics"])
    assert {"popularity", "item_knn", "ease"} == set(report["baselines"])
    assert {row["name"] for row in report["compression"]} == {"float32", "int8"}
    assert sum(row["chosen"] for row in report["compression"]) == 1
    data = report["data"]
    assert data["interactions"] + sum(data["dropped"].values()) == 6000
    verdicts = {check["name"]: check["passed"] for check in data["checks"]}
    assert {"timestamp_ties", "duplicate_items", "target_in_history", "unknown_history_items"} <= set(verdicts)
    assert all(verdicts.values()) and all(row["passed"] for row in data["skew"])
    assert {row["column"] for row in data["skew"]} == {"history", "history_length", "user_country"}
    assert set(data["vocabularies"]) == {"users", "vocabulary_candidate_categories", "vocabulary_query_country"}
    html = (output / "report.html").read_text()
    assert "http://" not in html.replace("http://www.w3.org", "") and "<img" in html or "<svg" in html


def test_batch_answers_equal_the_servers(output: Path, tmp_path: Path) -> None:
    from pipeline.commands.batch import answer_requests
    from serving.client import Client
    from serving.launch import ServerProcess

    interactions = pq.read_table(output / "data" / "interactions.parquet").to_pandas()
    histories = interactions.sort_values("timestamp", kind="stable").groupby("user_id")["item_id"].apply(list)
    requests = pa.table(
        {
            "user_id": [*histories.index[:20], "nobody"],
            "history": [*histories.iloc[:20], []],
            "country": ["DE"] * 21,
            "asked_at": [1_700_000_000] * 21,
            "idle": [None, *range(20)],
        }
    )
    pq.write_table(requests, tmp_path / "requests.parquet")
    base = output / "serving" / "tiny"
    answer_requests(base, tmp_path / "requests.parquet", tmp_path / "answers.parquet", k=10)
    answers = pq.read_table(tmp_path / "answers.parquet").to_pandas()
    with ServerProcess(base, "tiny") as server, Client(server.grpc_address, "tiny") as client:
        for row in requests.to_pylist():
            known = {name: row[name] for name in ("country", "asked_at", "idle") if row[name] is not None}
            served = client.recommend(row["history"], 10, features={**client.missing_features(), **known})
            mine = answers[answers["user_id"] == row["user_id"]].sort_values("rank")
            assert [item.item_id for item in served] == list(mine["item_id"])
            assert list(mine["rank"]) == list(range(1, 11))
            np.testing.assert_allclose([item.score for item in served], mine["score"], rtol=1e-4, atol=1e-5)
            assert not set(mine["item_id"]) & set(row["history"])


def test_signatures_of_the_pushed_model_are_those_of_the_contract(output: Path) -> None:
    from models.keras import tf

    (version,) = versions(output)[-1:]
    loaded = tf.saved_model.load(str(output / "serving" / "tiny" / version))
    strings, matrix, k = (tf.string, [None]), (tf.string, [None, None]), (tf.int32, [])
    features = {"country": strings, "asked_at": (tf.int64, [None]), "idle": (tf.int64, [None])}
    expected = {
        "serving_default": {"examples": strings},
        "recommend": {"history": matrix, "exclude": matrix, "k": k, **features},
        "recommend_user": {"user_id": strings, "k": k},
        "embed_query": {"history": matrix, **features},
        "embed_items": {"item_ids": strings},
        "similar_items": {"item_ids": strings, "k": k},
    }
    assert set(loaded.signatures) == set(expected)
    for name, inputs in expected.items():
        signature = loaded.signatures[name]
        specs = signature.structured_input_signature[1]
        found = {key: (spec.dtype, spec.shape.as_list()) for key, spec in specs.items()}
        if name == "embed_query":
            found = {key: value for key, value in found.items() if key in inputs}
        assert found == inputs, name
        outputs = {"embeddings"} if name.startswith("embed") else {"item_ids", "scores"}
        assert set(signature.structured_outputs) == outputs


def test_second_run_is_all_cached(output: Path) -> None:
    before = versions(output)
    result = run(output, "--no-ask")
    assert result.returncode == 0, result.stdout + result.stderr
    assert executed(output) == set()
    assert versions(output) == before
    assert "nodes were unchanged and not run again" in result.stdout


def test_a_change_of_the_gates_code_runs_the_gate_again_and_no_training(output: Path, tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with open(tmp_path / "components" / "evaluation" / "gate.py", "a") as file:
        file.write("\n# A change.\n")
    result = run(output, "--no-ask", code=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert executed(output) == {"Evaluator", "Pusher"}


def test_a_model_below_the_gate_is_refused_and_leaves_nothing(output: Path) -> None:
    before = versions(output)
    result = run(output, "--set", "evaluation.min_ndcg_over_popularity=1000")
    assert result.returncode == 3, result.stdout + result.stderr
    assert versions(output) == before
    report = json.loads((output / "report.json").read_text())
    assert report["pushed"] is False and report["blessed"] is False
    assert "No model was pushed" in result.stdout
    assert "popularity" in result.stdout


def test_data_that_breaks_a_check_stops_the_run_and_the_report_says_why(output: Path) -> None:
    before, artifacts = versions(output), sorted((output / "artifacts" / "InteractionsValidator").rglob("checks.json"))
    result = run(output, "--set", "data.validation.max_item_event_share=0.001")
    assert result.returncode == 2, result.stdout + result.stderr
    assert "data.validation.max_item_event_share" in result.stderr and "Traceback" not in result.stderr
    assert versions(output) == before
    assert sorted((output / "artifacts" / "InteractionsValidator").rglob("checks.json")) == artifacts
    report = json.loads((output / "report.json").read_text())
    assert (report["pushed"], report["blessed"]) == (False, False)
    assert [check["name"] for check in report["data"]["checks"] if not check["passed"]] == ["item_event_share"]
    assert "stopped by a check of the data" in (output / "report.html").read_text()


def test_a_search_feeds_the_trainer_and_leaves_a_preset_that_trains_the_same(output: Path) -> None:
    space = 'tuner.space={ "training.learning_rate" = [1e-9, 2e-2] }'
    result = run(output, "--no-ask", "--set", "tuner.enabled=true", "--set", 'tuner.algorithm="grid"', "--set", space)
    assert result.returncode == 0, result.stdout + result.stderr
    assert executed(output) == {"Tuner", "Trainer", "Compressor", "Evaluator", "InfraValidator", "Pusher"}
    report = json.loads((output / "report.json").read_text())
    trials = {row["values"]["training.learning_rate"]: row["ndcg_at_10"] for row in report["tuner"]["trials"]}
    assert sorted(trials) == [1e-9, 5e-3, 2e-2]
    (chosen,) = [row for row in report["tuner"]["trials"] if row["chosen"]]
    assert chosen["ndcg_at_10"] == max(trials.values()) > trials[1e-9]
    tuned = output / "tuned.toml"
    best = load_config(str(tuned)).training.learning_rate
    assert best == chosen["values"]["training.learning_rate"]
    searched = newest_training(output)
    assert searched["training"]["learning_rate"] == best

    result = run(output, "--no-ask", preset=tuned)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Trainer" in executed(output) and "Tuner" not in executed(output)
    assert newest_training(output) == searched


def newest_training(output: Path) -> dict:
    """The configuration that the newest model was trained with."""
    newest = max((output / "artifacts" / "Trainer" / "model").iterdir(), key=lambda folder: int(folder.name))
    (config,) = newest.rglob("training/config.json")
    return json.loads(config.read_text())["config"]
