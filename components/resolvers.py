"""Which earlier artifacts a run builds on: the last blessed model, the previous vocabulary and statistics.

TFX's own strategies take the latest artifact, which after a run is that run's own result: the same
run again would then compare a model with itself, or extend a vocabulary by itself, and nothing
downstream would be cached. These strategies leave out what the current inputs produced, so that a
rerun resolves what the first run resolved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ml_metadata.proto import metadata_store_pb2
from tfx.components.evaluator import constants
from tfx.dsl.components.common import resolver
from tfx.dsl.io import fileio
from tfx.types import Artifact

from components.artifacts import TABLE_PROPERTY

_OUTPUT = metadata_store_pb2.Event.OUTPUT
_INPUT = metadata_store_pb2.Event.INPUT
_DONE = (metadata_store_pb2.Execution.COMPLETE, metadata_store_pb2.Execution.CACHED)
_STATISTICS = "_statistics"

ArtifactLists = dict[str, list[Artifact]]


class LastBlessedModelStrategy(resolver.ResolverStrategy):
    """The model blessed last, other than the candidate.

    Channels: `model` and `model_blessing` of the whole pipeline, `candidate` of this run. Resolves
    `model` and `model_blessing` to one artifact each, or to none.

    "Last" is the last run that blessed a model, from the cache or not: when an earlier candidate is
    run again, the other one, which was served in between, is its baseline. Models whose files are
    gone are passed over.

    Example:
        Resolver(
            strategy_class=LastBlessedModelStrategy,
            model=Channel(type=Model),
            model_blessing=Channel(type=ModelBlessing),
            candidate=compressor.outputs["model"],
        ).with_id("LastBlessedModel")
    """

    def resolve_artifacts(self, store: Any, input_dict: ArtifactLists) -> ArtifactLists:
        """See the class; the candidate is passed through."""
        candidates = {artifact.id for artifact in input_dict["candidate"]}
        models = {model.id: model for model in input_dict["model"] if model.id not in candidates}
        blessings = {
            blessing.id: blessing
            for blessing in input_dict["model_blessing"]
            if blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY) == constants.BLESSED_VALUE
            and blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY) in models
        }
        result: ArtifactLists = {"model": [], "model_blessing": [], "candidate": input_dict["candidate"]}
        for blessing_id in _newest_first(store, blessings):
            blessing = blessings[blessing_id]
            model = models[blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY)]
            if fileio.exists(model.uri):
                result["model"], result["model_blessing"] = [model], [blessing]
                break
        return result


class PreviousVocabularyStrategy(resolver.ResolverStrategy):
    """The newest item vocabulary from before the current data.

    Channels: `vocabulary` of the whole pipeline; all others are this run's data (`interactions`,
    `items`, …). A vocabulary made from all of them is this data's own. Resolves `vocabulary` to the
    newest one that is older than the first of those, or than any if there is none, or to nothing.

    Example:
        Resolver(
            strategy_class=PreviousVocabularyStrategy,
            vocabulary=Channel(type=ItemVocabulary),
            interactions=interactions_gen.outputs["examples"],
            items=items_gen.outputs["examples"],
        ).with_id("PreviousVocabulary")
    """

    def resolve_artifacts(self, store: Any, input_dict: ArtifactLists) -> ArtifactLists:
        """See the class; the data channels are passed through."""
        return {**input_dict, "vocabulary": _from_other_data(store, input_dict, "vocabulary")}


class PreviousTransformStrategy(resolver.ResolverStrategy):
    """The newest transform graph from before the current sequences, whose vocabularies are continued.

    Channels: `transform_graph` of the whole pipeline; all others are this run's data. Resolves as
    `PreviousVocabularyStrategy` does.
    """

    def resolve_artifacts(self, store: Any, input_dict: ArtifactLists) -> ArtifactLists:
        """See the class; the data channels are passed through."""
        return {**input_dict, "transform_graph": _from_other_data(store, input_dict, "transform_graph")}


def _from_other_data(store: Any, input_dict: ArtifactLists, wanted: str) -> list[Artifact]:
    """The newest artifact older than the first that was made from all artifacts of the other channels."""
    current = {artifact.id for key, artifacts in input_dict.items() if key != wanted for artifact in artifacts}
    known = {artifact.id: artifact for artifact in input_dict[wanted]}
    sources = _sources(store, known)
    own = [number for number in known if any(current <= inputs for inputs in sources.get(number, []))]
    older = [
        number
        for number, artifact in known.items()
        if number not in own and (not own or number < min(own)) and fileio.exists(artifact.uri)
    ]
    return [known[max(older)]] if older else []


class PreviousStatisticsStrategy(resolver.ResolverStrategy):
    """For each table, the newest statistics of other data that passed their checks.

    Channels: `<table>` holds this run's examples, `<table>_statistics` the statistics of the whole
    pipeline. Resolves `<table>_statistics` to the one of that table that a validator let pass last
    before it first let this data's own pass, or to nothing. Statistics of a run that was stopped
    are passed over: bad data is no yardstick for the data that mends it.

    Example:
        Resolver(
            strategy_class=PreviousStatisticsStrategy,
            items=items_gen.outputs["examples"],
            items_statistics=Channel(type=ExampleStatistics),
        ).with_id("PreviousStatistics")
    """

    def resolve_artifacts(self, store: Any, input_dict: ArtifactLists) -> ArtifactLists:
        """See the class; the examples are passed through."""
        result = dict(input_dict)
        for key in input_dict:
            if not key.endswith(_STATISTICS):
                continue
            table = key.removesuffix(_STATISTICS)
            current = {artifact.id for artifact in input_dict[table]}
            found = {a.id: a for a in input_dict[key] if a.get_string_custom_property(TABLE_PROPERTY) == table}
            accepted = _accepted(store, found)
            sources = _sources(store, found)
            own = {number for number in found if any(current <= inputs for inputs in sources.get(number, []))}
            until = min((accepted[number] for number in own & set(accepted)), default=math.inf)
            usable = [
                n for n, time in accepted.items() if n not in own and time < until and fileio.exists(found[n].uri)
            ]
            result[key] = [found[max(usable, key=lambda number: (accepted[number], number))]] if usable else []
        return result


def _accepted(store: Any, artifact_ids: Iterable[int]) -> dict[int, int]:
    """Milliseconds at which a validator first let statistics pass, by artifact id; only those that one let pass."""
    readers: dict[int, list[tuple[int, int]]] = {}
    for event in store.get_events_by_artifact_ids(sorted(artifact_ids)):
        if event.type == _INPUT and [step.key for step in event.path.steps][:1] == ["statistics"]:
            readers.setdefault(event.execution_id, []).append((event.artifact_id, event.milliseconds_since_epoch))
    executions = store.get_executions_by_id(sorted(readers)) if readers else []
    first: dict[int, int] = {}
    for execution in executions:
        if execution.last_known_state in _DONE:
            for number, time in readers[execution.id]:
                first[number] = min(first.get(number, time), time)
    return first


def _newest_first(store: Any, artifact_ids: Iterable[int]) -> list[int]:
    """Artifact ids by the time of the last execution that put them out, newest first."""
    last: dict[int, int] = {}
    for event in store.get_events_by_artifact_ids(sorted(artifact_ids)):
        if event.type == _OUTPUT:
            last[event.artifact_id] = max(last.get(event.artifact_id, 0), event.milliseconds_since_epoch)
    return sorted(last, key=lambda number: (last[number], number), reverse=True)


def _sources(store: Any, artifact_ids: Iterable[int]) -> dict[int, list[set[int]]]:
    """For each artifact, the inputs of every execution that put it out."""
    outputs = [event for event in store.get_events_by_artifact_ids(sorted(artifact_ids)) if event.type == _OUTPUT]
    inputs: dict[int, set[int]] = {event.execution_id: set() for event in outputs}
    for event in store.get_events_by_execution_ids(sorted(inputs)):
        if event.type == _INPUT:
            inputs[event.execution_id].add(event.artifact_id)
    found: dict[int, list[set[int]]] = {}
    for event in outputs:
        found.setdefault(event.artifact_id, []).append(inputs[event.execution_id])
    return found
