"""TFX executor that computes statistics shard by shard in Arrow."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import apache_beam as beam
from tfx import types
from tfx.components.statistics_gen.executor import DEFAULT_FILE_NAME
from tfx.dsl.components.base import base_beam_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils

from components.arrow_example_gen.example_files import read_examples
from components.artifacts import TABLE_PROPERTY
from components.statistics_gen.summaries import TableSummary


class Executor(base_beam_executor.BaseBeamExecutor):
    """Writes `FeatureStats.pb` for every split, the file that TFX's StatisticsGen writes."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Computes the statistics of all splits."""
        self._log_startup(input_dict, output_dict, exec_properties)
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        statistics = artifact_utils.get_single_instance(output_dict["statistics"])
        statistics.split_names = examples.split_names
        statistics.span = examples.span
        if exec_properties.get("table"):
            statistics.set_string_custom_property(TABLE_PROPERTY, exec_properties["table"])
        with self._make_beam_pipeline() as pipeline:
            for split in artifact_utils.decode_split_names(examples.split_names):
                folder = artifact_utils.get_split_uri([examples], split)
                target = artifact_utils.get_split_uri([statistics], split)
                fileio.makedirs(target)
                paths = [os.path.join(folder, name) for name in sorted(fileio.listdir(folder))]
                if not paths:
                    write_statistics(TableSummary(), os.path.join(target, DEFAULT_FILE_NAME))
                    continue
                _ = (
                    pipeline
                    | f"Shards[{split}]" >> beam.Create(paths)
                    | f"Summarise[{split}]" >> beam.Map(summarise_shard)
                    | f"Merge[{split}]" >> beam.CombineGlobally(merge_summaries).without_defaults()
                    | f"Write[{split}]" >> beam.Map(write_statistics, os.path.join(target, DEFAULT_FILE_NAME))
                )


def summarise_shard(path: str) -> TableSummary:
    """Summary of one file of examples."""
    summary = TableSummary()
    for batch in read_examples([path]):
        summary.add(batch)
    return summary


def merge_summaries(summaries: Iterable[TableSummary]) -> TableSummary:
    """One summary of all."""
    merged = TableSummary()
    for summary in summaries:
        merged.merge(summary)
    return merged


def write_statistics(summary: TableSummary, path: str) -> None:
    """Writes the statistics in TFDV's binary form."""
    with fileio.open(path, "wb") as file:
        file.write(summary.to_proto().SerializeToString(deterministic=True))
