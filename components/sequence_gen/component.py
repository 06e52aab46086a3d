"""Interface of SequenceGen in a TFX pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import channel, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.artifacts import DataSummary, ItemVocabulary
from components.sequence_gen.executor import SequenceGenExecutor


class SequenceGenSpec(ComponentSpec):
    """Inputs, outputs and parameters of `SequenceGen`."""

    PARAMETERS = {
        "config": ExecutionParameter(type=str),
        "features": ExecutionParameter(type=str),
        "num_buckets": ExecutionParameter(type=int),
        "code_version": ExecutionParameter(type=str),
    }
    INPUTS = {
        "interactions": ChannelParameter(type=standard_artifacts.Examples),
        "items": ChannelParameter(type=standard_artifacts.Examples),
        "users": ChannelParameter(type=standard_artifacts.Examples, optional=True),
        "previous_vocabulary": ChannelParameter(type=ItemVocabulary, optional=True),
    }
    OUTPUTS = {
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "schema": ChannelParameter(type=standard_artifacts.Schema),
        "vocabulary": ChannelParameter(type=ItemVocabulary),
        "summary": ChannelParameter(type=DataSummary),
    }


class SequenceGen(base_beam_component.BaseBeamComponent):
    """Cleans interactions, builds histories and splits them by time without leakage.

    Args:
        interactions: Examples with user, item, timestamp and `_row` (position in the input).
        items: Examples of the catalogue.
        users: Examples of user attributes.
        previous_vocabulary: Of the last run, so that items keep their rows.
        config: `components.config.DataConfig` as JSON.
        features: `models.config.FeatureSpec` records as JSON, one text each or one text with all.
        code_version: Hash of the sources; part of the cache key.
        num_buckets: Shards per split; 0 chooses by the size of the input.

    Outputs:
        examples: Splits `catalogue` (one record per vocabulary row, in row order) and `train`,
            `validation`, `test`, `all` (one record per user).
        schema: Of the union of their keys.
        vocabulary: `items.txt`, ids in row order.
        summary: `summary.json`, counts and dropped rows by reason.
    """

    SPEC_CLASS = SequenceGenSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(SequenceGenExecutor)

    def __init__(
        self,
        interactions: channel.BaseChannel,
        items: channel.BaseChannel,
        *,
        config: str,
        features: str | Sequence[str],
        code_version: str,
        users: channel.BaseChannel | None = None,
        previous_vocabulary: channel.BaseChannel | None = None,
        num_buckets: int = 0,
    ) -> None:
        super().__init__(
            SequenceGenSpec(
                interactions=interactions,
                items=items,
                users=users,
                previous_vocabulary=previous_vocabulary,
                config=config,
                features=features if isinstance(features, str) else f"[{','.join(features)}]",
                num_buckets=num_buckets,
                code_version=code_version,
                examples=channel.Channel(type=standard_artifacts.Examples),
                schema=channel.Channel(type=standard_artifacts.Schema),
                vocabulary=channel.Channel(type=ItemVocabulary),
                summary=channel.Channel(type=DataSummary),
            )
        )
