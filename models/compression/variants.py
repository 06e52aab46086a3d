"""Names of variants: techniques joined by `+`, such as `units50+prune50+int8`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from models.compression.codecs import CODECS
from models.compression.distillation import Student
from models.compression.encoder_rounding import ENCODER_STORAGES
from models.compression.errors import CompressionError
from models.compression.shrinking import Removal


@dataclass(frozen=True)
class Variant:
    """What a variant's name asks for.

    Attributes:
        name: As in the preset.
        storage: Of the item vectors, a codec of `models.compression.codecs`.
        sparsity: Share of the weights that pruning zeroes; 0 = no pruning.
        quantization_aware: Fine-tune the encoder with int8 kernels.
        calibrated: Round kernels and item vectors for real activations and queries.
        removal: What structured removal takes out.
        shared_rows: Share of the catalogue, its rarest items, that shares rows.
        student: The smaller model that is taught in the place of the trained one, if it is smaller in anything.
    """

    name: str
    storage: str = "float32"
    sparsity: float = 0.0
    quantization_aware: bool = False
    calibrated: bool = False
    removal: Removal = Removal()
    shared_rows: float = 0.0
    student: Student = Student()

    @property
    def encoder_storage(self) -> str:
        """Storage of the encoder's matrices."""
        if self.quantization_aware or (self.calibrated and self.storage in ("float32", "bfloat16")):
            return "int8"  # the grid that the kernels were trained or rounded for
        return self.storage if self.storage in ENCODER_STORAGES else "int8"

    @property
    def training(self) -> tuple[Student, Removal, float, bool]:
        """What decides the fine-tuned weights; variants that agree here share them."""
        return self.student, self.removal, self.sparsity, self.quantization_aware

    @property
    def is_fine_tuned(self) -> bool:
        """Whether the weights differ from the trained ones."""
        return self.training != Variant("").training


def _percent(digits: str) -> float:
    return int(digits) / 100


_NUMBERED: dict[str, Callable[[Variant, str], Variant]] = {
    "width": lambda variant, digits: _taught(variant, width=int(digits)),
    "blocks": lambda variant, digits: _taught(variant, blocks=int(digits)),
    "units": lambda variant, digits: _without(variant, units=_percent(digits)),
    "heads": lambda variant, digits: _without(variant, heads=_percent(digits)),
    "dims": lambda variant, digits: _without(variant, columns=_percent(digits)),
    "history": lambda variant, digits: _without(variant, history=int(digits)),
    "prune": lambda variant, digits: replace(variant, sparsity=_percent(digits)),
    "rows": lambda variant, digits: replace(variant, shared_rows=_percent(digits)),
}
_PLAIN: dict[str, Callable[[Variant], Variant]] = {
    "qat": lambda variant: replace(variant, quantization_aware=True),
    "ptq": lambda variant: replace(variant, calibrated=True),
}


# Their digits are numbers of columns, blocks and items; those of the others are shares in per cent.
_COUNTED = ("width", "blocks", "history")


def _without(variant: Variant, **parts: Any) -> Variant:
    return replace(variant, removal=replace(variant.removal, **parts))


def _taught(variant: Variant, **parts: Any) -> Variant:
    return replace(variant, student=replace(variant.student, **parts))


def parse_variant(name: str) -> Variant:
    """Reads a variant's name.

    Args:
        name: Techniques joined by `+`, each kind at most once:
            `float32`, `bfloat16`, `int8`, `int6`, `int5`, `int4`, `pq`, `rq`: storage of the item vectors; the
            encoder's matrices are int8 from there on, with `int6`, `int5` and `int4` up to 15, 7 and 7. `pruneNN`: NN %
            zeros. `qat`: quantisation-aware training. `ptq`: kernels and item vectors rounded for real activations and
            queries. `unitsNN`, `headsNN`, `dimsNN`: NN % of the hidden units, attention heads, columns removed.
            `historyN`: only the newest N items are read. `rowsNN`: the rarest NN % of the items share rows. `widthN`,
            `blocksN`: a student of N columns, of N blocks, that learns from the model's lists.

    Raises:
        CompressionError: For an unknown technique, or two that exclude each other.
    """
    variant, kinds = Variant(name), set()
    for technique in name.split("+"):
        kind, apply = _technique(name, technique)
        if kind in kinds:
            raise CompressionError(f"variant {name!r} asks for two techniques of one kind; keep one of them")
        kinds.add(kind)
        variant = apply(variant)
    return variant


def combine(first: str, second: str) -> str | None:
    """The name of `first` with those techniques of `second` whose kind it lacks; None if there is none."""
    own = [each for each in first.split("+") if each != "float32"]
    if not own:
        return None
    kinds = {_technique(first, technique)[0] for technique in own}
    added = [each for each in second.split("+") if _technique(second, each)[0] not in kinds and each != "float32"]
    # Structure before rounding, storage last, as the techniques are applied.
    order = [*_NUMBERED, "rounding", "storage"]
    joined = sorted([*own, *added], key=lambda each: order.index(_technique(first, each)[0]))
    return "+".join(joined) if added else None


def _technique(name: str, technique: str) -> tuple[str, Callable[[Variant], Variant]]:
    """Kind of one technique of the variant `name`, and what it does to a variant."""
    numbered = re.fullmatch(r"([a-z]+)([1-9][0-9]{0,3})", technique)
    if technique in CODECS:
        return "storage", lambda variant: replace(variant, storage=technique)
    if technique in _PLAIN:
        return "rounding", _PLAIN[technique]
    if numbered and numbered[1] in _NUMBERED and (numbered[1] in _COUNTED or int(numbered[2]) < 100):
        kind, digits = numbered[1], numbered[2]
        return kind, lambda variant: _NUMBERED[kind](variant, digits)
    raise CompressionError(
        f"variant {name!r} holds the unknown technique {technique!r}; join any of {', '.join(CODECS)}, "
        f"{', '.join(f'{each}NN' for each in _NUMBERED)} (01..99 %; {', '.join(_COUNTED)}: a number) and "
        f"{', '.join(_PLAIN)} by +"
    )
