"""Imports a graph piece by piece, so that requests run in between.

TensorFlow infers the shapes of every function that a node calls and holds Python's interpreter meanwhile: for 45 ms
with a model of six signatures, for twice that beside other work. Every request would wait for it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from tensorflow.core.framework import graph_pb2, node_def_pb2
from tensorflow.python.client import pywrap_tf_session as c_api

_MAX_NODES = 100  # of one piece: a millisecond or two, if none of them calls a function
_MAX_FUNCTIONS = 10


def import_graph(graph_def: graph_pb2.GraphDef, after_piece: Callable[[float], None] = lambda _: None) -> Any:
    """Returns a new graph of the C API that holds `graph_def`, names unchanged.

    Args:
        graph_def: The graph.
        after_piece: Called after each piece with the seconds that it took.

    Raises:
        tensorflow.errors.OpError: The graph is not valid.
    """
    graph = c_api.PyGraph()
    operations: dict[str, Any] = {}
    for piece in _pieces(graph_def):
        started = time.perf_counter()
        operations |= _import_piece(graph, piece, operations)
        after_piece(time.perf_counter() - started)
    return graph


def _pieces(graph_def: graph_pb2.GraphDef) -> Iterator[graph_pb2.GraphDef]:
    """The functions, then nodes that need earlier ones alone, one call of a function in each piece.

    A graph with loops or with faults comes in one piece: TensorFlow knows what to do or say.
    """
    order = _in_order(graph_def)
    if order is None:
        yield graph_def
        return
    library = graph_def.library
    for begin in range(0, len(library.function), _MAX_FUNCTIONS):
        piece = graph_pb2.GraphDef(versions=graph_def.versions)
        piece.library.function.extend(library.function[begin : begin + _MAX_FUNCTIONS])
        yield piece
    piece = graph_pb2.GraphDef(versions=graph_def.versions)
    piece.library.gradient.extend(library.gradient)
    together_until = _last_of_scopes(order)
    end, is_full = 0, False
    for position, node in enumerate(order):
        piece.node.append(node)
        end = max(end, together_until.get(position, 0))
        is_call = any(value.HasField("func") for value in node.attr.values())
        is_full = is_full or is_call or len(piece.node) >= _MAX_NODES
        if is_full and position >= end:
            yield piece
            piece, is_full = graph_pb2.GraphDef(versions=graph_def.versions), False
    yield piece


def _in_order(graph_def: graph_pb2.GraphDef) -> list[node_def_pb2.NodeDef] | None:
    """The nodes, each after those it reads, in the order of the graph if that is one; None if there is none."""
    by_name = {node.name: node for node in graph_def.node}
    sources = {node.name: {_source(text)[0] for text in node.input} for node in graph_def.node}
    if len(by_name) < len(graph_def.node) or any(names - sources.keys() for names in sources.values()):
        return None
    seen: set[str] = set()
    for name, names in sources.items():
        if not names <= seen:
            break
        seen.add(name)
    else:
        return list(graph_def.node)
    try:
        return [by_name[name] for name in TopologicalSorter(sources).static_order()]
    except CycleError:
        return None


def _last_of_scopes(order: Sequence[node_def_pb2.NodeDef]) -> dict[int, int]:
    """Position of each node whose name is a scope of an earlier one (`add` after `add/y`), by the position of that.

    TensorFlow refuses the later one if the earlier one is in the graph already, so they go into one piece.
    """
    first_in: dict[str, int] = {}
    together_until: dict[int, int] = {}
    for position, node in enumerate(order):
        first = first_in.get(node.name)
        if first is not None:
            together_until[first] = max(position, together_until.get(first, 0))
        scope, separator, _ = node.name.rpartition("/")
        while separator:
            first_in.setdefault(scope, position)
            scope, separator, _ = scope.rpartition("/")
    return together_until


def _source(text: str) -> tuple[str, int]:
    """Node and output behind the input `node`, `node:output` or `^node`; the last has the output -1."""
    if text.startswith("^"):
        return text[1:], -1
    name, _, index = text.partition(":")
    return name, int(index or 0)


def _import_piece(graph: Any, piece: graph_pb2.GraphDef, operations: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the nodes and functions of a piece; returns its operations by name.

    Args:
        graph: The graph to add them to.
        piece: Some of the nodes.
        operations: What the graph has already.
    """
    own = {node.name for node in piece.node}
    options = c_api.TF_NewImportGraphDefOptions()
    buffer = c_api.TF_NewBufferFromString(piece.SerializeToString())
    try:
        c_api.TF_ImportGraphDefOptionsSetPrefix(options, "")
        c_api.TF_ImportGraphDefOptionsSetValidateColocationConstraints(options, False)  # may be in another piece
        for name, index in {_source(text) for node in piece.node for text in node.input}:
            if name in own or name not in operations:  # of the latter TensorFlow will complain
                continue
            if index < 0:
                c_api.TF_ImportGraphDefOptionsRemapControlDependency(options, name, operations[name])
            else:
                output = c_api.TF_Output()
                output.oper, output.index = operations[name], index
                c_api.TF_ImportGraphDefOptionsAddInputMapping(options, name, index, output)
        for node in piece.node:
            c_api.TF_ImportGraphDefOptionsAddReturnOperation(options, node.name)
        results = c_api.TF_GraphImportGraphDefWithResults(graph, buffer, options)
        imported = c_api.TF_ImportGraphDefResultsReturnOperations(results)
        c_api.TF_DeleteImportGraphDefResults(results)
    finally:
        c_api.TF_DeleteBuffer(buffer)
        c_api.TF_DeleteImportGraphDefOptions(options)
    return dict(zip((node.name for node in piece.node), imported, strict=True))
