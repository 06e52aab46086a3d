"""The data nodes on another engine write the same records as on the direct runner, by configuration only.

Every run uses Beam's own job server, which is a process of its own: pipelines, code and data go through the portable
protocols that Flink, Spark and Dataflow speak. `make test-flink` runs the same comparison on Flink.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import job_servers
import pytest

from components.arrow_example_gen.example_files import read_records
from pipeline.datasets.generate import generate

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENGINE = os.environ.get("TANDEM_TEST_ENGINE", "python")
# Nodes whose records are compared byte for byte.
RAW = ("InteractionsGen/examples", "ItemsGen/examples", "UsersGen/examples", "SequenceGen/examples")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]


def run(data: Path, output: Path, *settings: str) -> None:
    script = [sys.executable, str(HERE / "data_steps.py"), str(HERE / "engine.toml"), str(data), str(output)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([*script, *settings], cwd=ROOT, env=environment, capture_output=True, text=True)
    logs = "".join(f"\n{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in output.glob("logs/*.log"))
    assert result.returncode == 0, result.stderr[-3000:] + logs


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders: `direct` and `engine`."""
    folder = tmp_path_factory.mktemp("engines")
    data = folder / "data"
    generate(data, users=300, items=200, interactions=6000, seed=7, file_format="csv")
    run(data, folder / "direct")
    with job_servers.running(ENGINE, folder) as endpoint:
        options = [f"--job_endpoint={endpoint}", "--environment_type=LOOPBACK", "--sdk_container_image=unused"]
        options += ["--parallelism=2"]
        run(data, folder / "engine", "beam.runner=flink", f"beam.options={json.dumps(options)}")
    return {"direct": folder / "direct", "engine": folder / "engine"}


def records(run_folder: Path, output: str) -> dict[str, Counter[bytes]]:
    """Records of each split of an output, as a multiset."""
    (artifact,) = (run_folder / "artifacts" / output).iterdir()
    found: dict[str, Counter[bytes]] = {}
    for split in artifact.glob("Split-*"):
        found[split.name] = Counter()
        for path in split.iterdir():
            with open(path, "rb") as stream:
                for batch in read_records(stream, path.name, 10_000):
                    found[split.name].update(batch)
    return found


@pytest.mark.parametrize("output", RAW)
def test_records_are_the_same_byte_for_byte(outputs: dict[str, Path], output: str) -> None:
    expected = records(outputs["direct"], output)
    assert sum(sum(split.values()) for split in expected.values()) >= 200
    assert records(outputs["engine"], output) == expected


def test_transformed_records_are_the_same_byte_for_byte(outputs: dict[str, Path]) -> None:
    output = "Transform/transformed_examples"
    direct, engine = (records(outputs[name], output) for name in ("direct", "engine"))
    assert set(direct) == {"Split-catalogue", "Split-train", "Split-validation", "Split-all"}
    assert engine == direct


def test_vocabulary_and_summary_are_the_same(outputs: dict[str, Path]) -> None:
    for output in ("SequenceGen/vocabulary/*/items.txt", "SequenceGen/summary/*/summary.json"):
        (expected,) = (outputs["direct"] / "artifacts").glob(output)
        (found,) = (outputs["engine"] / "artifacts").glob(output)
        assert found.read_bytes() == expected.read_bytes()
