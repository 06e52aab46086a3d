"""`auto` follows the instruction sets that the kernel reports; other words are taken as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import precision
from models.config import TrainingConfig
from models.precision import compute_precision, cpu_flags


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("sse4_2 avx2", "float32"), ("avx512f avx512_bf16", "bfloat16"), ("amx_bf16 amx_int8", "bfloat16")],
)
def test_auto_follows_the_cpu(flags: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    monkeypatch.setattr(precision, "cpu_flags", lambda: cpu_flags(str(info)))
    monkeypatch.setattr(precision.tf.config, "list_physical_devices", lambda kind: [])
    assert compute_precision(TrainingConfig(mixed_precision="auto")) == expected


def test_a_stated_precision_is_kept() -> None:
    assert compute_precision(TrainingConfig(mixed_precision="float16")) == "float16"


def test_no_flags_where_the_kernel_says_nothing(tmp_path: Path) -> None:
    assert cpu_flags(str(tmp_path / "missing")) == frozenset()
