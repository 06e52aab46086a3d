"""Exports the chosen variant once more from the weights that were refitted on all events: what is pushed.

The search and the gate judge a model that has not seen the test events; users are better served by one that has. Both
are of one recipe, and the judged SavedModel stays beside the pushed one, where the Evaluator finds it.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

from components.compressor.building import VariantBuilder
from components.compressor.measure import VERSION
from models.compression.variants import parse_variant
from models.config import TwoTowerConfig
from models.input_pipeline import load_training_data
from models.trainer import user_histories
from models.two_tower import load


def replace_by_refitted(
    config: TwoTowerConfig,
    name: str,
    *,
    refitted_dir: str,
    transformed_uri: str,
    transform_graph_dir: str,
    serving_dir: str,
    judged_dir: str,
    training_dir: str,
) -> None:
    """Moves the judged SavedModel to `judged_dir` and exports its refitted twin in its place.

    Args:
        config: Of the run.
        name: Of the chosen variant; fine-tuned on all events where it asks for that.
        refitted_dir: Weights of the refitted model.
        transformed_uri: Examples artifact of Transform.
        transform_graph_dir: Output of Transform.
        serving_dir: Holds the judged SavedModel; receives the refitted one.
        judged_dir: Receives the judged SavedModel.
        training_dir: Receives the weights behind the refitted SavedModel.
    """
    patterns = {split: [f"{transformed_uri}/Split-{split}/*"] for split in ("catalogue", "train", "all")}
    data = load_training_data(patterns, transform_graph_dir, config)
    variant = parse_variant(name)
    with tempfile.TemporaryDirectory(prefix="tandem-refitted-") as folder:
        builder = VariantBuilder(
            load(refitted_dir),
            config,
            dataclasses.replace(data, train=data.everything or data.train),
            user_histories(data),
            transform_graph_dir,
            Path(folder),
            report=lambda line: print(line, flush=True),
        )
        base = builder.export(variant)
        shutil.move(serving_dir, judged_dir)
        shutil.copytree(Path(base) / VERSION, serving_dir)
        builder.tuned(variant).save(training_dir)
    print(f"{name} exported once more from the weights refitted on all events", flush=True)


__all__ = ["replace_by_refitted"]
