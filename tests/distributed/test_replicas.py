"""N replicas equal one device on the joint batch: loss, gradients and clipping."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.distributed
SCRIPT = Path(__file__).with_name("replica_check.py")


@pytest.fixture(scope="module", params=[2, 4])
def outcome(request: pytest.FixtureRequest) -> dict:
    environment = os.environ | {"TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(request.param)],
        capture_output=True,
        text=True,
        timeout=500,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    answer = json.loads(lines[0].removeprefix("RESULT "))
    assert answer["replicas"] == request.param
    return answer


CASES = [
    ("full_softmax", 0.0),
    ("full_softmax", 0.01),
    ("sampled_softmax", 0.0),
    ("in_batch", 0.0),
    ("in_batch", 0.01),
    ("gbce", 0.0),
]


@pytest.mark.parametrize(("kind", "clip_norm"), CASES)
def test_replicas_equal_one_device_on_the_joint_batch(outcome: dict, kind: str, clip_norm: float) -> None:
    one, many = outcome[f"{kind}/{clip_norm}"]["one"], outcome[f"{kind}/{clip_norm}"]["many"]
    np.testing.assert_allclose(many["losses"], [one["losses"][0]] * outcome["replicas"], rtol=1e-5)
    change, expected = np.array(many["changes"]), np.array(one["changes"])
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(change, expected, rtol=1e-3, atol=1e-6)
    if clip_norm:
        assert np.linalg.norm(expected) == pytest.approx(clip_norm, rel=1e-2)
