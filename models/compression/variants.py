"""Names of variants: techniques joined by `+`, such as `prune50+int8`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from models.compression.errors import CompressionError

STORAGE_TECHNIQUES = ("float32", "bfloat16", "int8", "int4")


@dataclass(frozen=True)
class Variant:
    """What a variant's name asks for.

    Attributes:
        name: As in the preset.
        storage: Of the item vectors: `float32`, `bfloat16`, `int8`, `int4`.
        sparsity: Share of the weights that pruning zeroes; 0 = no pruning.
        quantization_aware: Fine-tune the encoder with int8 kernels.
    """

    name: str
    storage: str = "float32"
    sparsity: float = 0.0
    quantization_aware: bool = False

    @property
    def int8_encoder(self) -> bool:
        """Whether the encoder's kernels are served as int8."""
        return self.quantization_aware or self.storage in ("int8", "int4")

    @property
    def training(self) -> tuple[float, bool]:
        """What decides the fine-tuned weights; variants that agree here share them."""
        return self.sparsity, self.quantization_aware

    @property
    def is_fine_tuned(self) -> bool:
        """Whether the weights differ from the trained ones."""
        return self.sparsity > 0 or self.quantization_aware


def parse_variant(name: str) -> Variant:
    """Reads a variant's name.

    Args:
        name: Techniques joined by `+`: one of `float32`, `bfloat16`, `int8`, `int4` (storage of the item vectors; the
            integer ones also store the encoder's kernels as int8), `pruneNN` (NN % zeros), `qat`.

    Raises:
        CompressionError: For an unknown technique, or two that exclude each other.
    """
    storage, sparsity, quantization_aware = "", 0.0, False
    for technique in name.split("+"):
        pruning = re.fullmatch(r"prune([1-9][0-9]?)", technique)
        if technique in STORAGE_TECHNIQUES and not storage:
            storage = technique
        elif pruning and not sparsity:
            sparsity = int(pruning[1]) / 100
        elif technique == "qat" and not quantization_aware:
            quantization_aware = True
        elif technique in STORAGE_TECHNIQUES or pruning or technique == "qat":
            raise CompressionError(f"variant {name!r} asks for two techniques of one kind; keep one of them")
        else:
            raise CompressionError(
                f"variant {name!r} holds the unknown technique {technique!r}; join any of "
                f"{', '.join(STORAGE_TECHNIQUES)}, pruneNN (01..99) and qat by +"
            )
    return Variant(name, storage or "float32", sparsity, quantization_aware)
