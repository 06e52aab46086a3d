"""The artifacts of the latest run in an ML Metadata database, by node and output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2

from components.errors import MissingInputError

_DONE = (metadata_store_pb2.Execution.COMPLETE, metadata_store_pb2.Execution.CACHED)
# Context types of TFX's two ways of launching nodes: compiled (local, Kubeflow) and direct (Airflow).
_RUN_TYPES = ("pipeline_run", "run")
_NODE_TYPES = ("node", "component_run")
_OUTPUTS = (metadata_store_pb2.Event.OUTPUT, metadata_store_pb2.Event.DECLARED_OUTPUT)


@dataclass(frozen=True)
class NodeRun:
    """One node of the run.

    Attributes:
        node: Its id.
        wall_seconds: From its registration to its end.
        cached: Its outputs are those of an earlier run.
        outputs: Artifacts (MLMD protos) by output key.
        properties: Execution properties that are texts, by name.
    """

    node: str
    wall_seconds: float
    cached: bool
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)

    def uri(self, output: str) -> Path | None:
        """Place of the only artifact of an output, None if there is none."""
        artifacts = self.outputs.get(output)
        return Path(artifacts[0].uri) if artifacts else None


def read_latest_run(metadata_path: Path) -> dict[str, NodeRun]:
    """Nodes of the newest pipeline run that ended well, in the order in which they ran.

    Raises:
        MissingInputError: There is no database or no run in it.
    """
    if not metadata_path.is_file():
        raise MissingInputError(f"{metadata_path}: no such file; give the folder of a run (its --output)")
    config = metadata_store_pb2.ConnectionConfig()
    config.sqlite.filename_uri = str(metadata_path)
    config.sqlite.connection_mode = metadata_store_pb2.SqliteMetadataSourceConfig.READONLY
    store = metadata_store.MetadataStore(config)
    runs = [run for kind in _RUN_TYPES for run in _contexts(store, kind)]
    if not runs:
        raise MissingInputError(f"{metadata_path}: holds no pipeline run; run `tandem run` first")
    latest = max(runs, key=lambda run: (run.create_time_since_epoch, run.id))
    executions = [e for e in store.get_executions_by_context(latest.id) if e.last_known_state in _DONE]
    nodes = _node_names(store, [execution.id for execution in executions])
    found = {}
    for execution in sorted(executions, key=lambda e: e.id):  # A node that ran again replaces its first try.
        seconds = (execution.last_update_time_since_epoch - execution.create_time_since_epoch) / 1000
        found[nodes[execution.id]] = NodeRun(
            nodes[execution.id],
            seconds,
            execution.last_known_state == metadata_store_pb2.Execution.CACHED,
            _outputs(store, execution.id),
            {name: value.string_value for name, value in execution.custom_properties.items() if value.string_value},
        )
    return found


def _node_names(store: Any, execution_ids: list[int]) -> dict[int, str]:
    """Node id by execution; TFX names the node's context `<pipeline>[.<run>].<node>`."""
    wanted = set(execution_ids)
    names = {}
    for context in (context for kind in _NODE_TYPES for context in _contexts(store, kind)):
        for execution in store.get_executions_by_context(context.id):
            if execution.id in wanted:
                names[execution.id] = context.name.rsplit(".", 1)[-1]
    return names


def _contexts(store: Any, kind: str) -> list[Any]:
    """Contexts of a type, none if the database does not know it."""
    known = {context_type.name for context_type in store.get_context_types()}
    return list(store.get_contexts_by_type(kind)) if kind in known else []


def _outputs(store: Any, execution_id: int) -> dict[str, list[Any]]:
    keys = dict(_output_keys(store, execution_id))
    outputs: dict[str, list[Any]] = {}
    for artifact in store.get_artifacts_by_id(list(keys)):
        outputs.setdefault(keys[artifact.id], []).append(artifact)
    return outputs


def _output_keys(store: Any, execution_id: int) -> Iterator[tuple[int, str]]:
    for event in store.get_events_by_execution_ids([execution_id]):
        if event.type in _OUTPUTS:
            yield event.artifact_id, event.path.steps[0].key
