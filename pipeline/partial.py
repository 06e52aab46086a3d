"""A part of a pipeline: the nodes that some node depends on."""

from __future__ import annotations

from typing import Any


def up_to(pipeline: Any, *names: str) -> Any:
    """The same pipeline with only the named nodes and all they depend on, directly or not.

    Args:
        pipeline: A `tfx.orchestration.pipeline.Pipeline`.
        *names: Node ids.

    Raises:
        ValueError: A name that is no node.
    """
    from tfx.orchestration.pipeline import Pipeline

    nodes = {node.id: node for node in pipeline.components}
    wanted = set()
    pending = []
    for name in names:
        if name not in nodes:
            raise ValueError(
                f"{name!r} is no node of {pipeline.pipeline_info.pipeline_name}; it has {', '.join(nodes)}"
            )
        pending.append(nodes[name])
    while pending:
        node = pending.pop()
        if node.id not in wanted:
            wanted.add(node.id)
            pending.extend(node.upstream_nodes)
    kept = [node for node in pipeline.components if node.id in wanted]
    for node in kept:
        for later in [n for n in node.downstream_nodes if n.id not in wanted]:
            node.downstream_nodes.discard(later)
    return Pipeline(
        pipeline_name=pipeline.pipeline_info.pipeline_name,
        pipeline_root=pipeline.pipeline_info.pipeline_root,
        components=kept,
        enable_cache=pipeline.enable_cache,
        metadata_connection_config=pipeline.metadata_connection_config,
        beam_pipeline_args=pipeline.beam_pipeline_args,
    )
