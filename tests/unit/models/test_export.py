"""The exported SavedModel: signatures, semantics, stock operations, no skew."""

from __future__ import annotations

import gc
import subprocess
import sys

import numpy as np
import pytest
from served_model import (
    HISTORIES,
    ITEM_IDS,
    MAX_HISTORY,
    NUM_ITEMS,
    RETIRED,
    TRAIN_EVENTS,
    export,
    live_rows,
    small_model,
    stored_users,
    write_transform_graph,
)

from models.export import Catalogue, ServedTowers, export_saved_model
from models.keras import tf
from models.retrieval.exact import ExactTopK
from models.serving_graph.encoder import call_with_weights, serving_encoder
from models.serving_graph.errors import ExportError
from models.serving_graph.histories import newest_known
from models.serving_graph.users import UserHistories, UserTable


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    return export(model, tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def served(path):
    return tf.saved_model.load(path)


def ids(*rows):
    return [ITEM_IDS[row - 1] if row else b"" for row in rows]


def recommend(served, history, k, exclude=None, signature="recommend"):
    exclude = [[b""]] * len(history) if exclude is None else exclude
    return served.signatures[signature](
        history=tf.constant(history), exclude=tf.constant(exclude), k=tf.constant(k, tf.int32)
    )


def expected(model, rows, excluded, k):
    """Answer of the Keras model itself, by a full sort."""
    window = rows[-MAX_HISTORY:]
    query = model.query_vectors(np.array([window]))[0].numpy()
    scores = model.candidate_vectors().numpy() @ query + model.item_bias().numpy()
    allowed = [r for r in range(1, NUM_ITEMS + 1) if r != RETIRED and r not in set(rows) | set(excluded)]
    best = sorted(allowed, key=lambda r: -scores[r])[:k]
    return ids(*best), scores[best]


def test_signatures_are_the_contract(served):
    def described(specs):
        return {name: (spec.dtype.name, spec.shape.as_list()) for name, spec in specs.items()}

    query = {"history": ("string", [None, None]), "exclude": ("string", [None, None]), "k": ("int32", [])}
    answer = {"item_ids": ("string", [None, None]), "scores": ("float32", [None, None])}
    embeddings = {"embeddings": ("float32", [None, 8])}
    assert {
        name: (described(s.structured_input_signature[1]), described(s.structured_outputs))
        for name, s in served.signatures.items()
    } == {
        "serving_default": ({"examples": ("string", [None])}, answer),
        "recommend": (query, answer),
        "recommend_user": ({"user_id": ("string", [None]), "k": ("int32", [])}, answer),
        "embed_query": (query, embeddings),
        "embed_items": ({"item_ids": ("string", [None])}, embeddings),
        "similar_items": ({"item_ids": ("string", [None]), "k": ("int32", [])}, answer),
    }


def test_recommend_equals_the_trained_model(model, served):
    answer = recommend(served, [ids(3, 9, 12, 20)], 10, [ids(2, 5)])
    names, scores = expected(model, [3, 9, 12, 20], [2, 5], 10)
    assert answer["item_ids"].numpy()[0].tolist() == names
    np.testing.assert_allclose(answer["scores"].numpy()[0], scores, rtol=1e-4, atol=1e-5)


def test_pads_and_unknown_ids_change_nothing_wherever_they_stand(served):
    plain = recommend(served, [ids(3, 9, 12)], 8)
    padded = recommend(served, [[b"", *ids(3), b"nobody knows", b"", *ids(9, 12), b""]], 8)
    assert plain["item_ids"].numpy().tolist() == padded["item_ids"].numpy().tolist()
    np.testing.assert_allclose(plain["scores"], padded["scores"], rtol=1e-5)


def test_a_batch_answers_like_single_requests(served):
    histories = [ids(3, 9, 12, 0), ids(0, 0, 0, 0), ids(1, 2, 3, 4), ids(0, 0, 0, 5)]
    batch = recommend(served, histories, 6)
    for index, history in enumerate(histories):
        one = recommend(served, [history], 6)
        assert batch["item_ids"][index].numpy().tolist() == one["item_ids"][0].numpy().tolist()
        np.testing.assert_allclose(batch["scores"][index], one["scores"][0], rtol=1e-4)


def test_old_items_are_not_encoded_but_still_excluded(model, served):
    rows = list(range(10, 30))
    answer = recommend(served, [ids(*rows)], NUM_ITEMS)
    names, _ = expected(model, rows, [], NUM_ITEMS)
    got = answer["item_ids"].numpy()[0].tolist()
    assert got[: len(names)] == names
    assert set(got[len(names) :]) == {b""}
    assert np.isneginf(answer["scores"].numpy()[0][len(names) :]).all()


def test_unknown_history_gets_the_most_popular_items(served):
    answer = recommend(served, [[b"", b"new"], [b"", b""]], 3, [ids(1), ids(2)])
    assert answer["item_ids"].numpy().tolist() == [ids(2, 3, 4), ids(1, 3, 4)]
    assert answer["scores"].numpy().tolist() == [[999.0, 998.0, 997.0], [1000.0, 998.0, 997.0]]


def test_zero_width_inputs(served):
    answer = served.signatures["recommend"](
        history=tf.zeros([2, 0], tf.string), exclude=tf.zeros([2, 0], tf.string), k=tf.constant(2)
    )
    assert answer["item_ids"].numpy().tolist() == [ids(1, 2), ids(1, 2)]


def test_k_is_clipped_to_the_live_items_and_refused_below_one(served):
    assert recommend(served, [ids(3)], 2**31 - 1)["item_ids"].shape == (1, NUM_ITEMS - 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="k must be at least 1"):
        recommend(served, [ids(3)], 0)


def test_recommend_user_reads_the_stored_history(served):
    users = [*HISTORIES, b"stranger"]
    answer = served.signatures["recommend_user"](user_id=tf.constant(users), k=tf.constant(9))
    width = max(map(len, HISTORIES.values()))
    histories = [ids(*HISTORIES.get(user, []), *[0] * (width - len(HISTORIES.get(user, [])))) for user in users]
    direct = recommend(served, histories, 9)
    assert answer["item_ids"].numpy().tolist() == direct["item_ids"].numpy().tolist()
    np.testing.assert_allclose(answer["scores"], direct["scores"], rtol=1e-4, atol=1e-6)


def example(**features):
    lists = {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=v)) for name, v in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=lists)).SerializeToString()


def test_serving_default_parses_examples(served):
    examples = [
        example(history=ids(3, 9), exclude=ids(4), targets=ids(1)),
        example(user_id=[b"x"]),
        example(history=ids(5, 6, 8)),
    ]
    answer = served.signatures["serving_default"](examples=tf.constant(examples))
    direct = recommend(served, [ids(3, 9, 0), ids(0, 0, 0), ids(5, 6, 8)], 5, [ids(4), ids(0), ids(0)])
    assert answer["item_ids"].numpy().tolist() == direct["item_ids"].numpy().tolist()


def test_embeddings(model, served):
    vectors = served.signatures["embed_items"](item_ids=tf.constant([*ids(4), b"unknown"]))["embeddings"]
    np.testing.assert_allclose(vectors, [model.candidate_vectors()[4], np.zeros(8)], rtol=1e-6)
    queries = recommend(served, [ids(3, 9), ids(0, 0)], 1, signature="embed_query")["embeddings"]
    np.testing.assert_allclose(queries[0], model.query_vectors(np.array([[3, 9]]))[0], rtol=1e-4, atol=1e-5)
    assert queries[1].numpy().tolist() == [0.0] * 8


def test_similar_items_never_return_the_item_itself(model, served):
    answer = served.signatures["similar_items"](item_ids=tf.constant([*ids(4), b"unknown"]), k=tf.constant(100))
    got = answer["item_ids"].numpy()
    assert got[1].tolist() == [b""] * (NUM_ITEMS - 1)
    assert got[0].tolist()[-1] == b""
    assert set(got[0][:-1]) == set(ITEM_IDS) - set(ids(4, RETIRED))
    vectors = model.candidate_vectors().numpy()
    scores = vectors @ vectors[4] + model.item_bias().numpy()
    np.testing.assert_allclose(answer["scores"][0, 0], max(np.delete(scores, [0, 4, RETIRED])), rtol=1e-5)


def test_the_index_learns_from_new_users_too_and_is_told_which_queries_are_items(model, tmp_path, monkeypatch):
    given, told = {}, []

    class Listening(ExactTopK):
        def __call__(self, query, k, excluded_rows, of_items=False):
            told.append(of_items)
            return super().__call__(query, k, excluded_rows, of_items)

    def build(vectors, live, bias, config, storage, *, queries):
        given["queries"] = queries()
        return Listening(vectors, live, bias=bias)

    monkeypatch.setattr("models.export.build_retriever", build)
    export(model, tmp_path)
    assert set(told) == {True, False}  # similar_items and the rest

    histories = [rows for rows in HISTORIES.values() if rows]
    whole = [model.query_vectors(np.array([rows]))[0].numpy() for rows in histories]
    short = [model.query_vectors(np.array([rows[-n:]]))[0].numpy() for rows in histories for n in (1, 2, 3)]
    assert any(np.allclose(given["queries"][0], vector, atol=1e-5) for vector in short)
    for query in given["queries"][1:]:
        assert any(np.allclose(query, vector, atol=1e-5) for vector in whole)


STOCK_CHECK = """
import sys, tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry
proto = saved_model_pb2.SavedModel()
proto.ParseFromString(open(sys.argv[1] + "/saved_model.pb", "rb").read())
graph = proto.meta_graphs[0].graph_def
functions = {f.signature.name for f in graph.library.function}
ops = {n.op for n in graph.node} | {n.op for f in graph.library.function for n in f.node_def}
unknown = sorted(op for op in ops - functions if op_def_registry.get(op) is None)
odd = sorted(op for op in ops if "PyFunc" in op or "FakeQuant" in op)
assert not unknown and not odd, (unknown, odd)
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    meta = tf.compat.v1.saved_model.load(session, ["serve"], sys.argv[1])
    signature = meta.signature_def["recommend_user"]
    feeds = {signature.inputs["user_id"].name: ["ann"], signature.inputs["k"].name: 3}
    print(session.run(signature.outputs["item_ids"].name, feeds)[0].tolist())
assert not [name for name in sys.modules if name.split(".")[0] in ("models", "tensorflow_text", "tensorflow_transform")]
"""


def test_a_process_without_our_code_serves_it_with_stock_operations(path, served):
    command = [sys.executable, "-c", STOCK_CHECK, path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    answer = served.signatures["recommend_user"](user_id=tf.constant([b"ann"]), k=tf.constant(3))
    assert done.stdout.strip() == str(answer["item_ids"].numpy()[0].tolist())


def test_the_saved_graph_is_stripped_and_still_loads_twice_in_one_process(path, model):
    from tensorflow.core.protobuf import saved_model_pb2

    with open(f"{path}/saved_model.pb", "rb") as file:
        graph = saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs[0].graph_def
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    assert not [node.name for node in nodes if "_output_shapes" in node.attr or "SaveV2" in node.op]
    assert not [name for f in graph.library.function for name in (n.name for n in f.node_def) if "/" in name]
    first, second = tf.saved_model.load(path), tf.saved_model.load(path)
    before = recommend(second, [ids(3, 9)], 4)["item_ids"].numpy().tolist()
    del first
    gc.collect()
    assert recommend(second, [ids(3, 9)], 4)["item_ids"].numpy().tolist() == before


def test_constants_stay_small(path):
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    with open(f"{path}/saved_model.pb", "rb") as file:
        proto.ParseFromString(file.read())
    nodes = [n for f in proto.meta_graphs[0].graph_def.library.function for n in f.node_def]
    assert max(n.attr["value"].ByteSize() for n in nodes if n.op == "Const") < 4096


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "int4", "rq"])
def test_compact_storage_answers_nearly_the_same(model, served, storage, tmp_path):
    compact = tf.saved_model.load(export(model, tmp_path, storage))
    history = [ids(3, 9, 12), ids(21, 22, 23)]
    exact, approximate = (recommend(which, history, 10)["item_ids"].numpy() for which in (served, compact))
    shared = [len(set(a) & set(b)) for a, b in zip(exact, approximate, strict=True)]
    assert min(shared) >= {"bfloat16": 9, "int8": 9, "int4": 6, "rq": 8}[storage]


def test_every_encoder_exports(tmp_path):
    for number, changes in enumerate(
        [
            *({"history_encoder": encoder} for encoder in ("mean", "wide", "gru", "hstu")),
            {"residual_gates": True, "shared_items": False},
        ]
    ):
        model = small_model(**changes)
        folder = tmp_path / str(number)
        folder.mkdir()
        answer = recommend(tf.saved_model.load(export(model, folder)), [ids(3, 9, 12)], 7)
        assert answer["item_ids"].numpy()[0].tolist() == expected(model, [3, 9, 12], [], 7)[0]


def test_newest_known_by_hand():
    rows = tf.constant([[0, 3, 0, 5], [0, 0, 0, 7], [1, 2, 3, 4], [0, 0, 0, 0]])
    assert newest_known(rows, 3).numpy().tolist() == [[0, 3, 5], [0, 0, 7], [2, 3, 4], [0, 0, 0]]
    assert newest_known(rows[:2], 3).numpy().tolist() == [[3, 5], [0, 7]]
    assert newest_known(tf.zeros([2, 0], tf.int32), 3).numpy().tolist() == [[0], [0]]


def test_user_table_keeps_the_newest_in_order_and_the_older_as_a_set():
    histories = [[5, 0, 6, 9, 8, 7, 2, 1], [4], [], [3, 3, 11, 40]]
    rows = np.array([row for history in histories for row in history])
    users = UserHistories([b"a", b"b", b"c", b"d"], rows, np.array([0, 8, 9, 9, 13]))
    table = UserTable(users, max_length=3)
    index = table.index(tf.constant([b"d", b"a", b"c", b"b", b"stranger"]))
    assert table.histories(index).numpy().tolist() == [[3, 11, 40], [7, 2, 1], [0, 0, 0], [0, 0, 4], [0, 0, 0]]
    assert [sorted(set(row) - {0}) for row in table.older(index).numpy().tolist()] == [[3], [5, 6, 8, 9], [], [], []]
    assert table.histories(index[3:4]).numpy().tolist() == [[4]]


def test_stored_histories_take_about_the_bits_that_popularity_leaves_open():
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, 3001)
    share /= share.sum()
    rows = rng.permutation(3000)[rng.choice(3000, size=40_000, p=share)] + 1
    users = UserHistories([b"%d" % user for user in range(800)], rows, np.arange(801) * 50)
    table = UserTable(users, max_length=50)
    (blob,) = table._recent.parts.variables
    entropy = -(share * np.log2(share)).sum() * len(rows) / 8
    assert entropy < len(blob.numpy()) < 1.1 * entropy
    assert table.histories(tf.range(1, 801)).numpy().reshape(-1).tolist() == rows.tolist()


@pytest.mark.parametrize("largest", [40, 70_000, 2**31 - 1])
def test_user_table_holds_rows_of_any_catalogue_size(largest):
    histories = [[1, largest, 2, 3], [largest, largest - 1, 1, 2], [7, 5, 6]]
    users = UserHistories([b"a", b"b", b"c"], np.concatenate(histories), np.array([0, 4, 8, 11]))
    table = UserTable(users, max_length=2)
    index = table.index(tf.constant([b"b", b"a", b"c"]))
    assert table.histories(index).numpy().tolist() == [[1, 2], [2, 3], [5, 6]]
    assert [sorted(set(row) - {0}) for row in table.older(index).numpy().tolist()] == [
        [largest - 1, largest],
        [1, largest],
        [7],
    ]


@pytest.mark.parametrize(
    ("users", "message"),
    [
        (UserHistories([b"a"], np.array([1, 2]), np.array([0, 1])), "disagree"),
        (UserHistories([b"a", b"a"], np.array([1]), np.array([0, 1, 1])), "twice"),
        (UserHistories([b"a\nb"], np.array([1]), np.array([0, 1])), "line break"),
    ],
)
def test_bad_user_histories_are_refused(users, message):
    with pytest.raises(ExportError, match=message):
        UserTable(users, max_length=5)


def test_a_vocabulary_of_another_size_is_refused(model, tmp_path):
    graph = write_transform_graph(tmp_path / "graph")
    with open(f"{graph}/transform_fn/assets/items", "ab") as file:
        file.write(b"one more\n")
    with pytest.raises(ExportError, match="41 ids"):
        export_saved_model(
            str(tmp_path / "out"),
            ServedTowers.of(model),
            Catalogue(live_rows(), TRAIN_EVENTS),
            stored_users(),
            transform_graph_dir=graph,
        )


def test_a_partitioned_index_is_exported_with_stock_operations(model, tmp_path):
    retrieval = model.config.retrieval.model_copy(update={"method": "partitioned", "recall_target": 1.0})
    config = model.config.model_copy(update={"retrieval": retrieval})
    towers = ServedTowers(config, model.history_encoder, model.candidate_vectors().numpy(), model.item_bias().numpy())
    path = str(tmp_path / "out")
    export_saved_model(
        path,
        towers,
        Catalogue(live_rows(), TRAIN_EVENTS),
        stored_users(),
        transform_graph_dir=write_transform_graph(tmp_path / "graph"),
        storage="int8",
    )
    done = subprocess.run(
        [sys.executable, "-c", STOCK_CHECK, path], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    served = tf.saved_model.load(path)
    names, scores = expected(model, [3, 9, 12, 20], [2, 5], 10)
    answer = recommend(served, [ids(3, 9, 12, 20)], 10, [ids(2, 5)])
    assert len(set(answer["item_ids"].numpy()[0].tolist()) & set(names)) >= 9
    np.testing.assert_allclose(answer["scores"].numpy()[0], scores, atol=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "learned"},
        {"positions": "rotary"},
        {"residual_gates": True, "feed_forward_activation": "swiglu"},
        {"shared_items": False},
    ],
)
def test_the_served_encoder_computes_the_last_block_for_one_position(changes):
    model = small_model(**changes)
    served = serving_encoder(model.history_encoder)
    rows = np.array([[0, 3, 9, 12], [1, 2, 3, 4], [0, 0, 0, 5]], np.int32)
    inputs = {"vectors": tf.gather(model.candidate_vectors(), rows), "rows": tf.constant(rows)}
    outputs = served(inputs)
    assert outputs.shape == (3, 1, 8)
    exact = model.history_encoder(inputs)[:, -1]
    np.testing.assert_allclose(outputs[:, -1], exact, rtol=1e-4, atol=1e-5)
    weights = [tf.constant(weight) for weight in served.get_weights()]
    served.set_weights([0 * weight for weight in weights])
    np.testing.assert_allclose(call_with_weights(served, weights, inputs)[:, -1], exact, rtol=1e-4, atol=1e-5)
    assert not np.any(served(inputs)[:, -1])  # and its own weights are back
