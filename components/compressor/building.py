"""Builds variants of a trained model: fine-tunes where the name asks for it, then exports."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from components.compressor.measure import VERSION
from models.compression.fine_tuning import FineTuning
from models.compression.pruning import prune
from models.compression.quantization import quantize_encoder, train_quantized
from models.compression.variants import Variant
from models.config import TwoTowerConfig
from models.export import Catalogue, ServedTowers, export_saved_model
from models.input_pipeline import Sequences
from models.serving_graph.users import UserHistories
from models.two_tower import TwoTowerModel


@dataclass
class VariantBuilder:
    """Makes SavedModels of variants of one trained model.

    Attributes:
        model: As trained.
        config: Of the run; its `compression` bounds the fine-tuning.
        sequences: Histories to fine-tune on.
        users: Histories behind `recommend_user`.
        transform_graph_dir: Output of Transform.
        folder: Where SavedModels are written, as `<name>/1`.
        report: Receives progress lines.
    """

    model: TwoTowerModel
    config: TwoTowerConfig
    sequences: Sequences
    users: UserHistories
    transform_graph_dir: str
    folder: Path
    report: Callable[[str], None] = print

    def __post_init__(self) -> None:
        compression = self.config.compression
        self._fine_tune = FineTuning(
            self.sequences,
            self.config.training,
            compression.fine_tune_epochs,
            compression.max_seconds / 2,
            self.report,
        )
        self._tuned: dict[tuple[float, bool], TwoTowerModel] = {(0.0, False): self.model}

    def export(self, variant: Variant) -> str:
        """Writes a variant's SavedModel and returns the folder that holds it as version 1."""
        model = self.tuned(variant)
        towers = ServedTowers.of(model)
        if variant.int8_encoder:
            encoder = quantize_encoder(towers.history_encoder)
            towers = ServedTowers(towers.config, encoder, towers.vectors, towers.bias)
        base = self.folder / variant.name
        export_saved_model(
            str(base / VERSION),
            towers,
            Catalogue(model.item_features.live, model.item_features.train_events),
            self.users,
            transform_graph_dir=self.transform_graph_dir,
            storage=variant.storage,
        )
        return str(base)

    def tuned(self, variant: Variant) -> TwoTowerModel:
        """The model with the variant's weights, before export; fine-tuned once for all that share them."""
        if variant.training not in self._tuned:
            begin = time.monotonic()
            model = self.model
            if variant.sparsity:
                pruned_only = Variant(variant.name, sparsity=variant.sparsity)
                if variant.quantization_aware:
                    model = self.tuned(pruned_only)
                else:
                    model = prune(model, variant.sparsity, self._fine_tune.num_steps(model), self._fine_tune)
            if variant.quantization_aware:
                model = train_quantized(model, self._fine_tune, keep_zeros=variant.sparsity > 0)
            self._tuned[variant.training] = model
            self.report(f"{variant.name}: fine-tuned in {time.monotonic() - begin:.1f} s")
        return self._tuned[variant.training]
