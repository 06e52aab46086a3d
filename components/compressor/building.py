"""Builds variants of a trained model: removes and fine-tunes where the name asks for it, then exports."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from components.compressor.measure import VERSION
from models.compression.calibration import calibrated_copy, calibrated_vectors
from models.compression.distillation import taught_student
from models.compression.fine_tuning import FineTuning
from models.compression.pruning import prune
from models.compression.quantization import train_quantized
from models.compression.shrinking import Removal, share_rare_rows, shrink
from models.compression.variants import Variant
from models.config import TwoTowerConfig
from models.export import Catalogue, ServedTowers, export_saved_model
from models.serving_graph.users import UserHistories
from models.training_data import TrainingData
from models.two_tower import TwoTowerModel


@dataclass
class VariantBuilder:
    """Makes SavedModels of variants of one trained model.

    Attributes:
        model: As trained.
        config: Of the run; its `compression` bounds the fine-tuning.
        data: Its `train` histories fine-tune, calibrate and teach students.
        users: Histories behind `recommend_user`.
        transform_graph_dir: Output of Transform.
        folder: Where SavedModels are written, as `<name>/1`.
        report: Receives progress lines.
    """

    model: TwoTowerModel
    config: TwoTowerConfig
    data: TrainingData
    users: UserHistories
    transform_graph_dir: str
    folder: Path
    report: Callable[[str], None] = print

    def __post_init__(self) -> None:
        compression = self.config.compression
        self._fine_tune = FineTuning(
            self.data.train,
            self.model.config.training,  # the run's, or what its Tuner chose
            compression.fine_tune_epochs,
            compression.max_seconds / 2,
            self.report,
        )
        self._tuned = {Variant("").training: self.model}

    def export(self, variant: Variant) -> str:
        """Writes a variant's SavedModel and returns the folder that holds it as version 1."""
        model = self.tuned(variant)
        towers, items = ServedTowers.of(model), model.item_features
        vectors = towers.vectors
        if variant.shared_rows:
            vectors = share_rare_rows(vectors, items.train_events, variant.shared_rows)
        if variant.calibrated:
            rounded = calibrated_copy(model, self.data.train, variant.encoder_storage)
            vectors = calibrated_vectors(vectors, model, self.data.train, variant.storage)
            towers = replace(towers, history_encoder=rounded.history_encoder)
        towers = replace(towers, vectors=vectors)
        base = self.folder / variant.name
        export_saved_model(
            str(base / VERSION),
            towers,
            Catalogue(items.live, items.train_events),
            self.users,
            transform_graph_dir=self.transform_graph_dir,
            storage=variant.storage,
            encoder_storage=variant.encoder_storage,
        )
        return str(base)

    def tuned(self, variant: Variant) -> TwoTowerModel:
        """The model with the variant's weights, before export; fine-tuned once for all that share them.

        A student comes first, then removal, pruning and quantisation-aware training; each step starts from the one
        before.
        """
        if variant.training not in self._tuned:
            begin = time.monotonic()
            self._tuned[variant.training] = self._last_step(variant)
            self.report(f"{variant.name}: weights made in {time.monotonic() - begin:.1f} s")
        return self._tuned[variant.training]

    def _last_step(self, variant: Variant) -> TwoTowerModel:
        if variant.quantization_aware:
            model = self.tuned(replace(variant, quantization_aware=False))
            return train_quantized(model, self._fine_tune, keep_zeros=variant.sparsity > 0)
        if variant.sparsity:
            model = self.tuned(replace(variant, sparsity=0.0))
            return prune(model, variant.sparsity, self._fine_tune.num_steps(model), self._fine_tune)
        if not variant.removal:
            return taught_student(self.model, variant.student, self.data, self.config)
        model = shrink(self.tuned(replace(variant, removal=Removal())), variant.removal)
        # A shorter history leaves every weight right, and what was solved in closed form is not trained.
        if replace(variant.removal, history=0) and model.config.loss.kind != "least_squares":
            self._fine_tune(model, ())
        return model
