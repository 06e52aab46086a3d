"""Tiny SavedModels whose answers can be worked out by hand, for the tests of the model server."""

import struct
from pathlib import Path

import tensorflow as tf


class Tiny(tf.Module):
    """`half_plus_two` and one signature for each kind of input and answer.

    Args:
        offset: Added to half of x; a version is told from another by it.
        vocabulary: File of one word a line, kept as an asset.
    """

    def __init__(self, offset: float, vocabulary: Path) -> None:
        self.half = tf.Variable(0.5)
        self.offset = tf.Variable(offset)
        initializer = tf.lookup.TextFileInitializer(
            str(vocabulary),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )
        self.table = tf.lookup.StaticHashTable(initializer, -1)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def half_plus_offset(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": self.half * x + self.offset}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")])
    def words(self, words: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"position": self.table.lookup(words), "same": tf.identity(words), "same_bytes": tf.identity(words)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="n")])
    def next_integer(self, n: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"next": n + 1}

    @tf.function(
        input_signature=[tf.TensorSpec([None, 2], tf.float32, name="a"), tf.TensorSpec([], tf.int32, name="k")]
    )
    def two_inputs(self, a: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"times": a * tf.cast(k, tf.float32), "sums": tf.reduce_sum(a, axis=1), "k": k + 0}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="n")])
    def small_only(self, n: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([tf.debugging.assert_less(n, 10, message="n must be below ten")]):
            return {"n": tf.identity(n)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.bool, name="flags")])
    def negated(self, flags: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"negated": tf.logical_not(flags)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def counted(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"count": tf.size(x), "same": tf.identity(x)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32, name="n")])
    def square_of_ones(self, n: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"sum": tf.reduce_sum(tf.ones([n, n]))}

    @tf.function(input_signature=[])
    def constant(self) -> dict[str, tf.Tensor]:
        return {"constant": tf.constant([1.0, 2.0])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
        labels = tf.tile(tf.constant([["low", "high"]]), [tf.shape(x)[0], 1])
        return {"scores": tf.concat([x, x * 2], axis=1), "classes": labels}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
        return {"outputs": x + 1}


def write_tiny(version_dir: Path, offset: float = 2.0) -> Path:
    """Writes a SavedModel; `serving_default` answers x / 2 + offset."""
    version_dir.mkdir(parents=True, exist_ok=True)
    vocabulary = version_dir.parent / "words.txt"
    vocabulary.write_text("zero\none\ntwo\n")
    model = Tiny(offset, vocabulary)
    signatures = {
        "serving_default": model.half_plus_offset,
        "words": model.words,
        "next_integer": model.next_integer,
        "two_inputs": model.two_inputs,
        "small_only": model.small_only,
        "negated": model.negated,
        "counted": model.counted,
        "constant": model.constant,
        "square_of_ones": model.square_of_ones,
        "classify": model.classify,
        "regress": model.regress,
    }
    tf.saved_model.save(model, str(version_dir), signatures=signatures)
    vocabulary.unlink()
    return version_dir


def with_offset(source: Path, target: Path, old: float, new: float) -> Path:
    """Copies a tiny model with another offset, without building a graph: versions by the dozen for swap tests.

    The copy is made aside and renamed, as a publisher does.
    """
    import shutil

    partial = target.with_name(f"partial-{target.name}")
    shutil.copytree(source, partial)
    data = partial / "variables" / "variables.data-00000-of-00001"
    # Variables are stored as plain float32 with their checksum in the index; a rewritten checkpoint keeps both right.
    reader = tf.train.load_checkpoint(str(partial / "variables" / "variables"))
    if struct.pack("<f", old) not in data.read_bytes():
        raise AssertionError(f"{source} has no offset {old}")
    names = reader.get_variable_to_shape_map()
    tensors = {name: reader.get_tensor(name) for name in names}
    offsets = [name for name in names if name.startswith("offset/")]
    tensors[offsets[0]] = tensors[offsets[0]] * 0 + new
    keys = sorted(tensors)
    tf.raw_ops.SaveV2(
        prefix=str(partial / "variables" / "variables"),
        tensor_names=keys,
        shape_and_slices=[""] * len(keys),
        tensors=[tensors[key] for key in keys],
    )
    partial.rename(target)
    return target


class TinyRecommender(tf.Module):
    """The signatures of a Tandem model over five items a..e, whose scores are 5..1 for everybody.

    Items of the history and of `exclude` do not come back; what is missing is "" with -inf.
    """

    ITEMS = ("a", "b", "c", "d", "é")

    def __init__(self) -> None:
        self.items = tf.Variable(list(self.ITEMS))
        self.scores = tf.Variable([5.0, 4.0, 3.0, 2.0, 1.0])

    def _best(self, banned: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        hit = tf.reduce_any(tf.expand_dims(self.items, 1) == tf.expand_dims(banned, 1), axis=2)
        scores = tf.where(hit, float("-inf"), self.scores)
        top, rows = tf.math.top_k(scores, tf.minimum(k, 5))
        return {"item_ids": tf.where(tf.math.is_inf(top), "", tf.gather(self.items, rows)), "scores": top}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.string, name="history"),
            tf.TensorSpec([None, None], tf.string, name="exclude"),
            tf.TensorSpec([], tf.int32, name="k"),
        ]
    )
    def recommend(self, history: tf.Tensor, exclude: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._best(tf.concat([history, exclude], axis=1), k)

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name="user_id"), tf.TensorSpec([], tf.int32, name="k")]
    )
    def recommend_user(self, user_id: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._best(tf.expand_dims(user_id, 1), k)

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name="item_ids"), tf.TensorSpec([], tf.int32, name="k")]
    )
    def similar_items(self, item_ids: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._best(tf.expand_dims(item_ids, 1), k)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="item_ids")])
    def embed_items(self, item_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        length = tf.cast(tf.strings.length(item_ids, unit="UTF8_CHAR"), tf.float32)
        return {"embeddings": tf.stack([length, length / 2], axis=1)}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.string, name="history"),
            tf.TensorSpec([None, None], tf.string, name="exclude"),
            tf.TensorSpec([], tf.int32, name="k"),
        ]
    )
    def embed_query(self, history: tf.Tensor, exclude: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        count = tf.cast(tf.reduce_sum(tf.cast(history != "", tf.int32), axis=1, keepdims=True), tf.float32)
        return {"embeddings": tf.concat([count, -count], axis=1)}


def write_recommender(version_dir: Path) -> Path:
    """Writes a SavedModel with the signatures of a Tandem model."""
    model = TinyRecommender()
    names = ("recommend", "recommend_user", "similar_items", "embed_items", "embed_query")
    tf.saved_model.save(model, str(version_dir), signatures={name: getattr(model, name) for name in names})
    return version_dir
