"""A graph imported in pieces is the whole graph, and no piece holds the interpreter for long."""

from typing import Any

import pytest

from serving.lean_tensorflow import lean_tensorflow

with lean_tensorflow():
    from tensorflow.core.framework import graph_pb2
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.client import pywrap_tf_session as c_api
    from tensorflow.python.framework import errors_impl

    from serving.server import graph_import
    from serving.server.graph_import import import_graph


def exported(graph: Any) -> graph_pb2.GraphDef:
    buffer = c_api.TF_NewBuffer()
    try:
        c_api.TF_GraphToGraphDef(graph, buffer)
        return graph_pb2.GraphDef.FromString(c_api.TF_GetBuffer(buffer))
    finally:
        c_api.TF_DeleteBuffer(buffer)


def by_name(graph_def: graph_pb2.GraphDef) -> dict[str, bytes]:
    nodes = {f"node {node.name}": node for node in graph_def.node}
    functions = {f"function {each.signature.name}": each for each in graph_def.library.function}
    return {name: message.SerializeToString(deterministic=True) for name, message in {**nodes, **functions}.items()}


def in_one_piece(graph_def: graph_pb2.GraphDef) -> graph_pb2.GraphDef:
    graph = c_api.PyGraph()
    graph_import._import_piece(graph, graph_def, {})
    return exported(graph)


@pytest.fixture(scope="module")
def saved_graph(tmp_path_factory: pytest.TempPathFactory) -> graph_pb2.GraphDef:
    from tiny_saved_models import write_tiny

    folder = write_tiny(tmp_path_factory.mktemp("tiny") / "1")
    content = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    return content.meta_graphs[0].graph_def


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[graph_pb2.GraphDef]:
    seen: list[graph_pb2.GraphDef] = []
    original = graph_import._import_piece

    def recorded(graph: Any, piece: graph_pb2.GraphDef, operations: Any) -> Any:
        seen.append(piece)
        return original(graph, piece, operations)

    monkeypatch.setattr(graph_import, "_import_piece", recorded)
    return seen


def test_a_saved_model_is_imported_whole_and_in_small_pieces(
    saved_graph: graph_pb2.GraphDef, pieces: list[graph_pb2.GraphDef]
) -> None:
    rests: list[float] = []
    assert by_name(exported(import_graph(saved_graph, rests.append))) == by_name(in_one_piece(saved_graph))
    pieces.pop()  # the one for comparison
    assert len(rests) == len(pieces) > 10
    calls = [sum(node.op.endswith("PartitionedCall") for node in piece.node) for piece in pieces]
    assert sum(calls) >= 10  # the signatures, save and restore
    assert max(calls) == 1
    assert max(len(piece.library.function) for piece in pieces) <= 10
    assert all(0 < seconds < 60 for seconds in rests)


def test_long_graphs_with_control_inputs(pieces: list[graph_pb2.GraphDef]) -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [2], name="x")
        first, second = tf.unstack(x)
        for step in range(200):
            with tf.control_dependencies([tf.no_op(name=f"before_{step}")]):
                first, second = second + 1, first * 1
    graph_def = graph.as_graph_def()
    assert by_name(exported(import_graph(graph_def))) == by_name(in_one_piece(graph_def))
    sizes = [len(piece.node) for piece in pieces[:-1]]  # without the one for comparison
    assert sum(sizes) == 1002
    assert max(sizes) <= 105  # `add` comes with `add/y`
    backwards = graph_pb2.GraphDef(versions=graph_def.versions, node=reversed(graph_def.node))  # any order is allowed
    assert by_name(exported(import_graph(backwards))) == by_name(in_one_piece(graph_def))


def test_a_loop_of_the_first_generation_comes_in_one_piece(pieces: list[graph_pb2.GraphDef]) -> None:
    import tensorflow as tf

    try:
        tf.compat.v1.disable_control_flow_v2()
        with tf.Graph().as_default() as graph:
            tf.compat.v1.while_loop(lambda i: i < 10, lambda i: i + 1, [tf.constant(0)])
    finally:
        tf.compat.v1.enable_control_flow_v2()
    graph_def = graph.as_graph_def()
    assert "NextIteration" in {node.op for node in graph_def.node}
    assert {node.name for node in exported(import_graph(graph_def)).node} == {node.name for node in graph_def.node}
    assert pieces == [graph_def]


@pytest.mark.parametrize("fault", ["missing input", "double name", "unknown operation"])
def test_faults_are_tensorflows(fault: str) -> None:
    graph_def = graph_pb2.GraphDef()
    graph_def.node.add(name="a", op="NoOp")
    if fault == "missing input":
        graph_def.node.add(name="b", op="NoOp", input=["^nowhere"])
    elif fault == "double name":
        graph_def.node.add(name="a", op="NoOp")
    else:
        graph_def.node.add(name="b", op="NoSuchOp")
    with pytest.raises(errors_impl.OpError) as whole:
        in_one_piece(graph_def)
    with pytest.raises(errors_impl.OpError) as caught:
        import_graph(graph_def)
    assert caught.value.message == whole.value.message
