"""Takes out of a saved graph what no loader reads: long names, shape hints, the function that saves it again.

A SavedModel of a small model is a third graph by bytes, and most of that is text: every operation carries the Keras
scope it came from, in its own name and in the inputs of its readers, and a copy of its output shapes that every loader
infers again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorflow.core.framework import function_pb2
from tensorflow.core.protobuf import saved_model_pb2
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


def _shorten_names(function: Any) -> None:
    """Numbers the operations of a function; its arguments and results keep their names."""
    taken = {argument.name for argument in (*function.signature.input_arg, *function.signature.output_arg)}
    fresh = (name for name in map(_letters, range(len(function.node_def) + len(taken))) if name not in taken)
    short = {node.name: next(fresh) for node in function.node_def}

    def renamed(reference: str) -> str:
        """`^node`, `node:output:index` or an argument's name."""
        mark = "^" if reference.startswith("^") else ""
        name, colon, rest = reference[len(mark) :].partition(":")
        return f"{mark}{short.get(name, name)}{colon}{rest}"

    for node in function.node_def:
        node.name = short[node.name]
        node.input[:] = [renamed(reference) for reference in node.input]
        node.attr.pop("_class", None)  # colocation by name, without meaning on one device
    for results in (function.ret, function.control_ret):
        for key, reference in dict(results).items():
            results[key] = renamed(reference)


def _letters(number: int) -> str:
    name = ""
    while True:
        number, digit = divmod(number, len(DIGITS))
        name = DIGITS[digit] + name
        if not number:
            return name
