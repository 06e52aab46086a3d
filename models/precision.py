"""Which precision matrix products run in when the preset says `auto`."""

from __future__ import annotations

from pathlib import Path

from models.config import TrainingConfig
from models.keras import tf

BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})
FIRST_GPU_WITH_BFLOAT16 = (8, 0)


def compute_precision(training: TrainingConfig) -> str:
    """`float32`, `bfloat16` or `float16`; `auto` is bfloat16 where this machine multiplies it in hardware."""
    if training.mixed_precision != "auto":
        return training.mixed_precision
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
        return "bfloat16" if tuple(capability) >= FIRST_GPU_WITH_BFLOAT16 else "float32"
    return "bfloat16" if BFLOAT16_FLAGS & cpu_flags() else "float32"


def cpu_flags(path: str = "/proc/cpuinfo") -> frozenset[str]:
    """Instruction sets of the first CPU, as the kernel names them; none where it does not say."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


__all__ = ["compute_precision", "cpu_flags"]
