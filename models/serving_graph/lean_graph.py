"""Takes out of a saved graph what no loader reads: long names, shape hints, the function that saves it again.

A SavedModel of a small model is a third graph by bytes, and most of that is text: every operation carries the Keras
scope it came from, in its own name and in the inputs of its readers, and a copy of its output shapes that every loader
infers again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorflow.core.framework import function_pb2, node_def_pb2, types_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry
from tensorflow.python.saved_model import fingerprinting_utils

FILE = "saved_model.pb"
DIGITS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def strip_saved_model(folder: str) -> None:
    """Rewrites `saved_model.pb` and its fingerprint in place; signatures and answers stay.

    The result loads in every loader, and can be saved again by none: the function that writes checkpoints goes.
    """
    path = Path(folder) / FILE
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for meta_graph in saved.meta_graphs:
        _drop_saving(meta_graph)
        meta_graph.meta_info_def.ClearField("stripped_op_list")
        for node in meta_graph.graph_def.node:
            node.attr.pop("_output_shapes", None)
            node.ClearField("experimental_debug_info")
        for function in meta_graph.graph_def.library.function:
            for node in function.node_def:
                node.attr.pop("_output_shapes", None)
                node.ClearField("experimental_debug_info")
            for attributes in function.arg_attr.values():
                attributes.attr.pop("_output_shapes", None)
            _merge_equal_operations(function)
            _shorten_names(function)
    path.write_bytes(saved.SerializeToString(deterministic=True))
    fingerprinting_utils.write_fingerprint(folder)


def _drop_saving(meta_graph: Any) -> None:
    """Removes the operation behind `save_tensor_name` and its function."""
    name = meta_graph.saver_def.save_tensor_name.split(":")[0]
    graph = meta_graph.graph_def
    kept = [node for node in graph.node if node.name != name]
    dropped = [node for node in graph.node if node.name == name]
    functions = {node.attr["f"].func.name for node in dropped if "f" in node.attr}
    # Nothing may read what is dropped; otherwise the graph stays as it is.
    read = {source.lstrip("^").split(":")[0] for node in kept for source in node.input}
    if not functions or name in read:
        return
    library = [function for function in graph.library.function if function.signature.name not in functions]
    nodes = [type(node).FromString(node.SerializeToString()) for node in kept]
    functions_kept = [function_pb2.FunctionDef.FromString(function.SerializeToString()) for function in library]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.library.function[:]
    graph.library.function.extend(functions_kept)


def _merge_equal_operations(function: Any) -> None:
    """Keeps one of several operations that compute the same from the same, most of them constants.

    Graphs are traced with a constant for every mention of a number. What has state, runs other functions or waits for
    another operation stays.
    """
    first: dict[tuple[Any, ...], str] = {}
    same: dict[str, str] = {}
    kept = []
    for node in function.node_def:
        node.input[:] = [_renamed(reference, same) for reference in node.input]
        definition = op_def_registry.get(node.op)
        attributes = tuple(sorted((key, value.SerializeToString()) for key, value in node.attr.items()))
        is_pure = definition is not None and not definition.is_stateful
        if is_pure and not any(value.WhichOneof("value") == "func" for value in node.attr.values()):
            key = (node.op, tuple(node.input), node.device, attributes)
            if not any(reference.startswith("^") for reference in node.input) and first.setdefault(key, node.name) != (
                node.name
            ):
                same[node.name] = first[key]
                continue
        kept.append(node_def_pb2.NodeDef.FromString(node.SerializeToString()))
    del function.node_def[:]
    function.node_def.extend(kept)
    for node in function.node_def:
        node.input[:] = [_renamed(reference, same) for reference in node.input]
    _rename_results(function, same)


def _shorten_names(function: Any) -> None:
    """Numbers the operations of a function and the variables it reads; other arguments and results keep their names."""
    arguments = function.signature.input_arg
    captured = [argument for argument in arguments if argument.type == types_pb2.DT_RESOURCE]
    taken = {argument.name for argument in (*arguments, *function.signature.output_arg)}
    letters = map(_letters, range(len(function.node_def) + len(captured) + len(taken)))
    fresh = (name for name in letters if name not in taken)
    short = {part.name: next(fresh) for part in (*captured, *function.node_def)}
    for argument in captured:
        argument.name = short[argument.name]

    for node in function.node_def:
        node.name = short[node.name]
        node.input[:] = [_renamed(reference, short) for reference in node.input]
        node.attr.pop("_class", None)  # colocation by name, without meaning on one device
    _rename_results(function, short)


def _renamed(reference: str, names: Mapping[str, str]) -> str:
    """`^node`, `node:output:index` or an argument's name, with another name of the node."""
    mark = "^" if reference.startswith("^") else ""
    name, colon, rest = reference[len(mark) :].partition(":")
    return f"{mark}{names.get(name, name)}{colon}{rest}"


def _rename_results(function: Any, names: Mapping[str, str]) -> None:
    for results in (function.ret, function.control_ret):
        for key, reference in dict(results).items():
            results[key] = _renamed(reference, names)


def _letters(number: int) -> str:
    name = ""
    while True:
        number, digit = divmod(number, len(DIGITS))
        name = DIGITS[digit] + name
        if not number:
            return name
