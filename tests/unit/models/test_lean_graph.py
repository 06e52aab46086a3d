"""What is taken out of a saved graph changes no answer."""

from collections import Counter

import pytest
from tensorflow.core.protobuf import saved_model_pb2

from models.keras import tf
from models.serving_graph.lean_graph import strip_saved_model


class Repetitive(tf.Module):
    """Says the same numbers again and again, draws and counts."""

    def __init__(self):
        super().__init__()
        self.calls = tf.Variable(0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def answer(self, x):
        self.calls.assign_add(1)
        self.calls.assign_add(1)  # the same operation on the same inputs, but not the same as once
        draws = tf.stack([tf.random.uniform([]), tf.random.uniform([])])
        halves = [x[1:] * 0.5, x[1:] * 0.5 + 2.5, x[:1] * 2.5]
        return {"y": tf.concat(halves, axis=0), "calls": self.calls.read_value(), "draws": draws}


@pytest.fixture(scope="module")
def stripped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = Repetitive()
    tf.saved_model.save(model, str(folder), signatures=model.answer)
    before = operations(folder)
    strip_saved_model(str(folder))
    return folder, before, operations(folder)


def operations(folder):
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    answer = max((f for f in functions if "answer" in f.signature.name), key=lambda f: len(f.node_def))
    return Counter(node.op for node in answer.node_def)


def test_equal_operations_are_merged(stripped):
    _, before, after = stripped
    assert before["StridedSlice"] == 3 and after["StridedSlice"] == 2  # x[1:] twice, x[:1]
    assert after["Const"] < before["Const"]
    for op in ("RandomUniform", "AssignAddVariableOp"):
        assert before[op] == after[op] == 2


def test_answers_stay(stripped):
    loaded = tf.saved_model.load(str(stripped[0]))
    answer = loaded.signatures["serving_default"](x=tf.constant([2.0, 4.0, 6.0]))
    assert answer["y"].numpy().tolist() == [2.0, 3.0, 4.5, 5.5, 5.0]
    assert answer["calls"].numpy() == 2
    assert answer["draws"][0] != answer["draws"][1]
