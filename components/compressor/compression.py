"""The Compressor's work: load, search, write the chosen variant."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.compressor.building import VariantBuilder
from components.compressor.limits import search_limits
from components.compressor.measure import VERSION, MeasureOptions, ServedVariant, measure
from components.compressor.row_cache import RowCache
from components.compressor.search import BASELINE, Limits, Measurement, Row, Search
from components.compressor.workload import Workload, load_workload
from models.compression.variants import combine, parse_variant
from models.config import CompressionConfig, TwoTowerConfig
from models.export import item_vocabulary_file
from models.input_pipeline import load_training_data
from models.serving_graph.items import read_vocabulary
from models.trainer import user_histories
from models.two_tower import CONFIG_FILE, ITEMS_FILE, WEIGHTS_FILE, load


@dataclass(frozen=True)
class CompressionInputs:
    """What a search reads.

    Attributes:
        serving_dir: SavedModel of the Trainer: the `float32` variant.
        training_dir: Weights of the same model.
        transformed_uri: Examples artifact of Transform.
        transform_graph_dir: Output of Transform.
        sequences_uri: Examples artifact of SequenceGen.
        cache_dir: Folder of rows measured before; they are used again where all they depend on is the same.
        code_version: Hash of the code; part of what a row depends on.
    """

    serving_dir: str
    training_dir: str
    transformed_uri: str
    transform_graph_dir: str
    sequences_uri: str
    cache_dir: str
    code_version: str = ""


def compress(
    config: TwoTowerConfig, inputs: CompressionInputs, *, output_serving_dir: str, output_training_dir: str
) -> list[Row]:
    """Measures the preset's variants and writes the chosen one.

    Args:
        config: Of the run.
        inputs: Trained model and data.
        output_serving_dir: Receives the chosen SavedModel.
        output_training_dir: Receives the weights it was exported from.

    Returns:
        One row per variant; one of them is chosen.

    Raises:
        CompressionError: For an unknown variant name, before anything is measured.
    """
    names = [BASELINE, *config.compression.variants]
    for name in names:
        parse_variant(name)
    patterns = {split: [f"{inputs.transformed_uri}/Split-{split}/*"] for split in ("catalogue", "train", "all")}
    data = load_training_data(patterns, inputs.transform_graph_dir, config)
    model = load(inputs.training_dir)
    workload = load_workload(
        inputs.sequences_uri,
        read_vocabulary(item_vocabulary_file(inputs.transform_graph_dir)),
        model.item_features.train_events,
        config.request_features,
        config.compression.quality_users,
        config.model.time_gaps,
    )
    with tempfile.TemporaryDirectory(prefix="tandem-compressor-") as folder, ExitStack() as stack:
        builder = VariantBuilder(
            model,
            config,
            data,
            user_histories(data),
            inputs.transform_graph_dir,
            Path(folder),
            report=_show,
        )
        limits = search_limits(config.compression, inputs.training_dir)
        measurer = _Measurer(builder, workload, config, inputs, limits, stack)
        search = Search(limits, measurer.measure, time.monotonic, _show)
        if config.compression.combine:
            search.combine = combine
        rows = search.run(names)
        chosen = next(row for row in rows if row.chosen)
        _show(f"chosen: {chosen.name} ({chosen.reason})")
        shutil.copytree(measurer.exported(chosen.name), output_serving_dir, dirs_exist_ok=True)
        shutil.copytree(inputs.training_dir, output_training_dir, dirs_exist_ok=True)
        if parse_variant(chosen.name).is_fine_tuned:
            builder.tuned(parse_variant(chosen.name)).save(output_training_dir)
    return rows


def variants_document(compression: CompressionConfig, rows: Sequence[Row], code_version: str) -> dict[str, Any]:
    """What `variants.json` holds."""
    return {
        "split": "validation",
        "num_threads": compression.num_threads,
        "code_version": code_version,
        "variants": [row.to_json() for row in rows],
    }


class _Measurer:
    """Measures variants by name; the server of `float32` stays up as the reference of all others."""

    def __init__(
        self,
        builder: VariantBuilder,
        workload: Workload,
        config: TwoTowerConfig,
        inputs: CompressionInputs,
        limits: Limits,
        stack: ExitStack,
    ) -> None:
        self._builder, self._workload, self._limits = builder, workload, limits
        self._serving_dir, self._stack = inputs.serving_dir, stack
        compression = config.compression
        self._options = MeasureOptions(compression.num_threads, compression.latency_requests)
        self._has_variants = bool(set(compression.variants) - {BASELINE})
        self._baseline: Measurement | None = None
        self._reference: ServedVariant | None = None
        # All that changes how a variant is built or measured; which others there are does not.
        settings = config.model_dump_json(exclude={"compression": {"variants", "combine"}})
        files = [Path(inputs.training_dir) / name for name in (CONFIG_FILE, WEIGHTS_FILE, ITEMS_FILE)]
        content: list[bytes | Path] = [inputs.code_version.encode(), settings.encode(), workload.digest(), *files]
        self._cache = RowCache(Path(inputs.cache_dir), content)

    def measure(self, name: str) -> Measurement:
        """The measurement of a variant, from the cache if it was taken before."""
        measured = self._cache.get(name, lambda: self._measured(name))
        if name == BASELINE:
            self._baseline = measured
        return measured

    def exported(self, name: str) -> Path:
        """Folder of a variant's SavedModel, exported now if its row came from the cache."""
        folder = self._builder.folder / name / VERSION
        if not folder.exists():
            self._base_path(name)
        return folder

    def _measured(self, name: str) -> Measurement:
        base_path = self._base_path(name)
        if name == BASELINE:
            # In turn with a second server, as all others are: asked alone it would seem quicker than any of them.
            reference = self._served_reference() if self._has_variants else None
            measured = measure(base_path, self._workload, reference, self._options)
            return dataclasses.replace(measured, time_ratio=1.0)
        return measure(base_path, self._workload, self._served_reference(), self._options, self._is_out_of_budget)

    def _is_out_of_budget(self, metrics: Mapping[str, float], slices: Mapping[str, float]) -> bool:
        return self._baseline is not None and bool(self._limits.quality_fault(metrics, slices, self._baseline))

    def _served_reference(self) -> ServedVariant:
        if self._reference is None:
            served = ServedVariant(str(self.exported(BASELINE).parent), self._options.num_threads)
            self._reference = self._stack.enter_context(served)
        return self._reference

    def _base_path(self, name: str) -> str:
        if name != BASELINE:
            return self._builder.export(parse_variant(name))
        base = self._builder.folder / BASELINE
        base.mkdir(parents=True)
        shutil.copytree(self._serving_dir, base / VERSION)
        return str(base)


def _show(line: str) -> None:
    print(line, flush=True)
