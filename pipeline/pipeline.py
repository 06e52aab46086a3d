"""The pipeline: which nodes there are and what they hand to each other. Wiring only."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tfx import types
from tfx.components import Trainer
from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.components.common.resolver import Resolver
from tfx.orchestration import metadata
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import pusher_pb2, trainer_pb2, transform_pb2
from tfx.types.channel import BaseChannel
from tfx.types.standard_artifacts import ExampleStatistics, Model, ModelBlessing, TransformGraph

from components.arrow_example_gen.columns import Column, Table, table_columns
from components.arrow_example_gen.component import ArrowExampleGen
from components.artifacts import ItemVocabulary
from components.baselines.component import RetrievalBaselines
from components.compressor.component import Compressor
from components.evaluation.component import Evaluator
from components.example_validator.component import BlockingExampleValidator
from components.infra_validator.component import ServedModelValidator
from components.pusher.component import AtomicPusher
from components.resolvers import (
    LastBlessedModelStrategy,
    PreviousStatisticsStrategy,
    PreviousTransformStrategy,
    PreviousVocabularyStrategy,
)
from components.schema_gen.component import DeclaredSchemaGen
from components.sequence_gen.component import SequenceGen
from components.sequence_validator.component import SequenceValidator
from components.sequence_validator.serving_log import log_files
from components.statistics_gen.component import ArrowStatisticsGen
from components.transform.component import StableTransform
from components.tuner.component import SettingsSearch
from pipeline.code_version import code_version
from pipeline.config import RunConfig
from pipeline.paths import RunPaths
from pipeline.schemas import table_schema, tables_of
from pipeline.trained_models import trained_models_version


def create_pipeline(config: RunConfig, paths: RunPaths) -> Pipeline:
    """The TFX pipeline of a configuration.

    Args:
        config: Resolved preset.
        paths: Run folder and data set folder.

    Returns:
        A pipeline for any TFX runner; nothing is written here, and only what cache keys need is read.
    """
    tables = {table: ingest_nodes(table, config, paths) for table in tables_of(config)}
    examples = {name: table.examples for name, table in tables.items()}

    # Drift is measured against the last data that passed its checks.
    previous_statistics = Resolver(
        strategy_class=PreviousStatisticsStrategy,
        **examples,
        **{f"{name}_statistics": types.Channel(type=ExampleStatistics) for name in tables},
    ).with_id("PreviousStatistics")
    validators = [validator(table, previous_statistics, config) for table in tables.values()]

    # Rows of the item vocabulary never change number: the last run's vocabulary is continued.
    previous_vocabulary = Resolver(
        strategy_class=PreviousVocabularyStrategy,
        vocabulary=types.Channel(type=ItemVocabulary),
        interactions=examples["interactions"],
    ).with_id("PreviousVocabulary")

    # Cleaned, deduplicated histories per user, split in time.
    sequences = SequenceGen(
        **examples,
        previous_vocabulary=previous_vocabulary.outputs["vocabulary"],
        config=config.data.model_dump_json(include={"columns", "cleaning", "split"}),
        features=[feature.model_dump_json() for feature in config.features],
        code_version=code_version("components.sequence_gen.component"),
    )
    # Nothing is learnt from data that failed its checks.
    sequences.add_upstream_nodes(validators)

    # What was written is checked once more: no target in its own history, no training event after its target.
    sequence_validator = SequenceValidator(
        sequences=sequences.outputs["examples"],
        protocol=config.data.split.protocol,
        features=[feature.model_dump_json() for feature in config.features],
        config=config.data.validation,
        serving_log_files=json.dumps(log_files(log)) if (log := config.data.validation.serving_log) else "",
        code_version=code_version("components.sequence_validator.component"),
    )

    # Rows of feature values and users never change number either.
    previous_transform = Resolver(
        strategy_class=PreviousTransformStrategy,
        transform_graph=types.Channel(type=TransformGraph),
        examples=sequences.outputs["examples"],
    ).with_id("PreviousTransform")

    # One graph of lookups and feature transforms, for training and for serving.
    transform = StableTransform(
        examples=sequences.outputs["examples"],
        schema=sequences.outputs["schema"],
        previous_transform_graph=previous_transform.outputs["transform_graph"],
        preprocessing_fn="models.preprocessing.preprocessing_fn",
        splits_config=transform_pb2.SplitsConfig(
            analyze=["catalogue", "train"], transform=["catalogue", "train", "validation", "all"]
        ),
        custom_config={
            "two_tower": config.two_tower().model_dump_json(),
            "code_version": code_version("models.preprocessing", "components.transform.component"),
        },
    ).with_id("Transform")
    transform.add_upstream_node(sequence_validator)

    # The best settings of the preset's space, where it names one.
    tuner = settings_search(config, transform, sequences) if config.tuner.enabled else None

    trainer = Trainer(
        run_fn="models.trainer.run_fn",
        examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        schema=sequences.outputs["schema"],
        hyperparameters=tuner.outputs["best_hyperparameters"] if tuner else None,
        train_args=trainer_pb2.TrainArgs(splits=["train", "all", "catalogue"]),
        eval_args=trainer_pb2.EvalArgs(splits=["validation"]),
        custom_config={
            "two_tower": config.two_tower("model", "loss", "training", "distillation", "retrieval").model_dump_json(),
            "trained_models_version": trained_models_version(
                config.two_tower("model", "loss", "training", "distillation")
            ),
            "code_version": code_version("models.trainer"),
        },
    )

    # The cheapest variant inside the quality budget, measured as it will be served.
    compressor = Compressor(
        model=trainer.outputs["model"],
        transformed_examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        sequences=sequences.outputs["examples"],
        two_tower=config.two_tower("model", "loss", "training", "compression", "retrieval").model_dump_json(),
        code_version=code_version("components.compressor.component"),
    )

    baselines = RetrievalBaselines(
        sequences=sequences.outputs["examples"],
        config=config.evaluation.model_dump_json(),
        protocol=config.data.split.protocol,
        code_version=code_version("components.baselines.component"),
    )

    last_blessed = Resolver(
        strategy_class=LastBlessedModelStrategy,
        model=types.Channel(type=Model),
        model_blessing=types.Channel(type=ModelBlessing),
        candidate=compressor.outputs["model"],
    ).with_id("LastBlessedModel")

    # Full-catalogue metrics of the served answers, by slice, against the baselines and the last blessed model.
    evaluator = Evaluator(
        examples=sequences.outputs["examples"],
        model=compressor.outputs["model"],
        baselines=baselines.outputs["metrics"],
        baseline_model=last_blessed.outputs["model"],
        config=config.evaluation.model_dump_json(),
        protocol=config.data.split.protocol,
        code_version=code_version("components.evaluation.component"),
        slice_features=[f.raw_name for f in config.two_tower().request_features if f.kind == "categorical"],
    )

    # The exact artifact, in a server process, asked over both protocols.
    infra_validator = ServedModelValidator(
        model=compressor.outputs["model"],
        sequences=sequences.outputs["examples"],
        code_version=code_version("components.infra_validator.component", "serving.server.main"),
    )

    # One rename makes the version visible to the model server.
    pusher = AtomicPusher(
        model=compressor.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=infra_validator.outputs["blessing"],
        sequences=sequences.outputs["examples"],
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=str(paths.serving))
        ),
        warmup_requests=config.serving.warmup_requests,
        warmup_log=config.serving.warmup_log,
        keep_versions=config.serving.keep_versions,
        resolved_config=config.model_dump_json(),
        code_version=code_version("components.pusher.component"),
    )

    return Pipeline(
        pipeline_name=config.name,
        pipeline_root=str(paths.artifacts),
        components=[
            *(node for table in tables.values() for node in table.nodes),
            previous_statistics,
            *validators,
            previous_vocabulary,
            sequences,
            sequence_validator,
            previous_transform,
            transform,
            *([tuner] if tuner else []),
            trainer,
            compressor,
            baselines,
            last_blessed,
            evaluator,
            infra_validator,
            pusher,
        ],
        enable_cache=True,
        metadata_connection_config=metadata.sqlite_metadata_connection_config(str(paths.metadata)),
        beam_pipeline_args=config.beam.pipeline_args(),
    )


def settings_search(config: RunConfig, transform: StableTransform, sequences: SequenceGen) -> BaseNode:
    """The Tuner: KerasTuner over `[tuner]`, judged by the validation split."""
    return SettingsSearch(
        tuner_fn="components.tuner.executor.tuner_fn",
        examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        schema=sequences.outputs["schema"],
        train_args=trainer_pb2.TrainArgs(splits=["train", "all", "catalogue"]),
        eval_args=trainer_pb2.EvalArgs(splits=["validation"]),
        custom_config={
            "two_tower": config.two_tower("model", "loss", "training", "distillation", "retrieval").model_dump_json(),
            "tuner": config.tuner.model_dump_json(),
            "trained_models_version": trained_models_version(
                config.two_tower("model", "loss", "training", "distillation")
            ),
            "code_version": code_version("components.tuner.executor", "models.tuning.trial"),
        },
    ).with_id("Tuner")


@dataclass(frozen=True)
class TableNodes:
    """The nodes that read one table and describe it.

    Attributes:
        name: `interactions`, `items` or `users`.
        columns: What is read of it.
        nodes: Generator, statistics and schema.
    """

    name: Table
    columns: tuple[Column, ...]
    nodes: tuple[BaseNode, BaseNode, BaseNode]

    @property
    def examples(self) -> BaseChannel:
        """The table as tf.Examples."""
        return self.nodes[0].outputs["examples"]


def ingest_nodes(table: Table, config: RunConfig, paths: RunPaths) -> TableNodes:
    """Reads one table: generator, statistics, schema."""
    name = table.capitalize()
    columns = table_columns(table, config.data, config.features)
    if config.data.bigquery:
        examples = _query_node(config.data.bigquery[table]).with_id(f"{name}Gen")
    else:
        examples = ArrowExampleGen(
            str(paths.data),
            table,
            columns=columns,
            config=config.data,
            code_version=code_version("components.arrow_example_gen.component"),
        ).with_id(f"{name}Gen")
    statistics = ArrowStatisticsGen(
        examples=examples.outputs["examples"],
        table=table,
        code_version=code_version("components.statistics_gen.component"),
    ).with_id(f"{name}Statistics")
    schema = DeclaredSchemaGen(table_schema(table, config)).with_id(f"{name}Schema")
    return TableNodes(table, columns, (examples, statistics, schema))


def validator(table: TableNodes, previous_statistics: Resolver, config: RunConfig) -> BaseNode:
    """Stops the run if a table breaks its schema or a check."""
    _, statistics, schema = table.nodes
    return BlockingExampleValidator(
        examples=table.examples,
        statistics=statistics.outputs["statistics"],
        schema=schema.outputs["schema"],
        previous_statistics=previous_statistics.outputs[f"{table.name}_statistics"],
        table=table.name,
        columns=table.columns,
        config=config.data,
        code_version=code_version("components.example_validator.component"),
    ).with_id(f"{table.name.capitalize()}Validator")


def _query_node(query: str) -> BaseNode:
    """TFX's reader of a BigQuery table, with all rows in one split."""
    from tfx.extensions.google_cloud_big_query.example_gen.component import BigQueryExampleGen
    from tfx.proto import example_gen_pb2

    split = example_gen_pb2.SplitConfig.Split(name="all", hash_buckets=1)
    output = example_gen_pb2.Output(split_config=example_gen_pb2.SplitConfig(splits=[split]))
    return BigQueryExampleGen(query=query, output_config=output)
