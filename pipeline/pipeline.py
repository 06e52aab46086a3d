"""The pipeline: which nodes there are and what they hand to each other. Wiring only."""

from __future__ import annotations

from tfx import types
from tfx.components import Trainer, Transform
from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.components.common.resolver import Resolver
from tfx.orchestration import metadata
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import pusher_pb2, trainer_pb2, transform_pb2
from tfx.types.standard_artifacts import Model, ModelBlessing

from components.arrow_example_gen.columns import Table, table_columns
from components.arrow_example_gen.component import ArrowExampleGen
from components.artifacts import ItemVocabulary
from components.baselines.component import RetrievalBaselines
from components.compressor.component import Compressor
from components.evaluation.component import Evaluator
from components.example_validator.component import BlockingExampleValidator
from components.infra_validator.component import ServedModelValidator
from components.pusher.component import AtomicPusher
from components.resolvers import LastBlessedModelStrategy, PreviousVocabularyStrategy
from components.schema_gen.component import DeclaredSchemaGen
from components.schema_gen.declared import declared_schema
from components.sequence_gen.component import SequenceGen
from components.statistics_gen.component import ArrowStatisticsGen
from pipeline.code_version import code_version
from pipeline.config import RunConfig
from pipeline.paths import RunPaths


def create_pipeline(config: RunConfig, paths: RunPaths) -> Pipeline:
    """The TFX pipeline of a configuration.

    Args:
        config: Resolved preset.
        paths: Run folder and data set folder.

    Returns:
        A pipeline for any TFX runner; nothing is read or written here.
    """
    interactions = ingest_nodes("interactions", "Interactions", config, paths)
    items = ingest_nodes("items", "Items", config, paths)
    users = ingest_nodes("users", "Users", config, paths) if config.two_tower().tower_features("query") else []

    # Rows of the item vocabulary never change number: the last run's vocabulary is continued.
    previous_vocabulary = Resolver(
        strategy_class=PreviousVocabularyStrategy,
        vocabulary=types.Channel(type=ItemVocabulary),
        interactions=interactions[0].outputs["examples"],
    ).with_id("PreviousVocabulary")

    # Cleaned, deduplicated histories per user, split in time.
    sequences = SequenceGen(
        interactions=interactions[0].outputs["examples"],
        items=items[0].outputs["examples"],
        users=users[0].outputs["examples"] if users else None,
        previous_vocabulary=previous_vocabulary.outputs["vocabulary"],
        config=config.data.model_dump_json(include={"columns", "cleaning", "split"}),
        features=[feature.model_dump_json() for feature in config.features],
        code_version=code_version("components.sequence_gen.component"),
    )
    # Nothing is learnt from data that failed its checks.
    sequences.add_upstream_nodes([nodes[-1] for nodes in (interactions, items, users) if nodes])

    # One graph of lookups and feature transforms, for training and for serving.
    transform = Transform(
        examples=sequences.outputs["examples"],
        schema=sequences.outputs["schema"],
        preprocessing_fn="models.preprocessing.preprocessing_fn",
        splits_config=transform_pb2.SplitsConfig(
            analyze=["catalogue", "train"], transform=["catalogue", "train", "validation", "all"]
        ),
        disable_statistics=True,  # The raw tables have theirs; they would take half of this node's time.
        custom_config={
            "two_tower": config.two_tower().model_dump_json(),
            "code_version": code_version("models.preprocessing"),
        },
    )

    trainer = Trainer(
        run_fn="models.trainer.run_fn",
        examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        schema=sequences.outputs["schema"],
        train_args=trainer_pb2.TrainArgs(splits=["train", "all", "catalogue"]),
        eval_args=trainer_pb2.EvalArgs(splits=["validation"]),
        custom_config={
            "two_tower": config.two_tower("model", "loss", "training", "retrieval").model_dump_json(),
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
        slice_features=[f.raw_name for f in config.features if f.tower == "query" and f.kind == "categorical"],
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
        keep_versions=config.serving.keep_versions,
        resolved_config=config.model_dump_json(),
        code_version=code_version("components.pusher.component"),
    )

    return Pipeline(
        pipeline_name=config.name,
        pipeline_root=str(paths.artifacts),
        components=[
            *interactions,
            *items,
            *users,
            previous_vocabulary,
            sequences,
            transform,
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


def ingest_nodes(table: Table, name: str, config: RunConfig, paths: RunPaths) -> list[BaseNode]:
    """Reads one table, and stops the run if it breaks its schema: generator, statistics, schema, validator."""
    columns = table_columns(table, config.data, config.features)
    examples = ArrowExampleGen(
        str(paths.data),
        table,
        columns=columns,
        config=config.data,
        code_version=code_version("components.arrow_example_gen.component"),
    ).with_id(f"{name}Gen")
    statistics = ArrowStatisticsGen(
        examples=examples.outputs["examples"], code_version=code_version("components.statistics_gen.component")
    ).with_id(f"{name}Statistics")
    schema = DeclaredSchemaGen(declared_schema(table, columns)).with_id(f"{name}Schema")
    validator = BlockingExampleValidator(
        examples=examples.outputs["examples"],
        statistics=statistics.outputs["statistics"],
        schema=schema.outputs["schema"],
        table=table,
        columns=columns,
        config=config.data,
        code_version=code_version("components.example_validator.component"),
    ).with_id(f"{name}Validator")
    return [examples, statistics, schema, validator]
