"""The Compressor's work: load, search, write the chosen variant."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from components.compressor.building import VariantBuilder
from components.compressor.measure import VERSION, MeasureOptions, ServedVariant, measure
from components.compressor.search import BASELINE, Limits, Measurement, Row, Search
from components.compressor.workload import Workload, load_workload
from models.compression.variants import parse_variant
from models.config import TwoTowerConfig
from models.export import item_vocabulary_file
from models.input_pipeline import load_training_data
from models.serving_graph.items import read_vocabulary
from models.trainer import user_histories
from models.two_tower import load


def compress(
    config: TwoTowerConfig,
    *,
    serving_dir: str,
    training_dir: str,
    transformed_uri: str,
    transform_graph_dir: str,
    sequences_uri: str,
    output_serving_dir: str,
    output_training_dir: str,
) -> list[Row]:
    """Measures the preset's variants and writes the chosen one.

    Args:
        config: Of the run.
        serving_dir: SavedModel of the Trainer: the `float32` variant.
        training_dir: Weights of the same model.
        transformed_uri: Examples artifact of Transform.
        transform_graph_dir: Output of Transform.
        sequences_uri: Examples artifact of SequenceGen.
        output_serving_dir: Receives the chosen SavedModel.
        output_training_dir: Receives the weights it was exported from.

    Returns:
        One row per variant; one of them is chosen.

    Raises:
        CompressionError: For an unknown variant name, before anything is measured.
    """
    variants = {name: parse_variant(name) for name in (BASELINE, *config.compression.variants)}
    patterns = {split: [f"{transformed_uri}/Split-{split}/*"] for split in ("catalogue", "train", "all")}
    data = load_training_data(patterns, transform_graph_dir, config)
    model = load(training_dir)
    vocabulary = read_vocabulary(item_vocabulary_file(transform_graph_dir))
    workload = load_workload(
        sequences_uri,
        vocabulary,
        model.item_features.train_events,
        config.tower_features("query"),
        config.compression.quality_users,
    )
    with tempfile.TemporaryDirectory(prefix="tandem-compressor-") as folder, ExitStack() as stack:
        builder = VariantBuilder(
            model,
            config,
            data.train,
            user_histories(data),
            transform_graph_dir,
            Path(folder),
            report=_show,
        )
        measurer = _Measurer(builder, workload, config, serving_dir, stack)
        limits = Limits(config.compression.max_loss, config.compression.max_slice_loss, config.compression.max_seconds)
        rows = Search(limits, measurer.measure, time.monotonic, _show).run(list(variants))
        chosen = next(row for row in rows if row.chosen)
        _show(f"chosen: {chosen.name} ({chosen.reason})")
        shutil.copytree(Path(folder) / chosen.name / VERSION, output_serving_dir, dirs_exist_ok=True)
        shutil.copytree(training_dir, output_training_dir, dirs_exist_ok=True)
        if variants[chosen.name].is_fine_tuned:
            builder.tuned(variants[chosen.name]).save(output_training_dir)
    return rows


class _Measurer:
    """Measures variants by name; the server of `float32` stays up as the reference of all others."""

    def __init__(
        self, builder: VariantBuilder, workload: Workload, config: TwoTowerConfig, serving_dir: str, stack: ExitStack
    ) -> None:
        self._builder = builder
        self._workload = workload
        self._serving_dir = serving_dir
        self._stack = stack
        compression = config.compression
        self._options = MeasureOptions(compression.num_threads, compression.latency_requests)
        self._reference: ServedVariant | None = None

    def measure(self, name: str) -> Measurement:
        if name == BASELINE:
            base = self._builder.folder / BASELINE
            base.mkdir(parents=True)
            shutil.copytree(self._serving_dir, base / VERSION)
            measured = measure(str(base), self._workload, None, self._options)
            self._reference = self._stack.enter_context(ServedVariant(str(base), self._options.num_threads))
            return measured
        base_path = self._builder.export(parse_variant(name))
        return measure(base_path, self._workload, self._reference, self._options)


def _show(line: str) -> None:
    print(line, flush=True)
