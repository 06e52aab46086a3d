"""Storage, int8 layers, pruning and quantisation-aware training."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from served_model import NUM_ITEMS, small_model

from models.compression.codecs import encode_rows
from models.compression.compressed_tensor import deflated
from models.compression.distillation import Student, student_config
from models.compression.encoder_rounding import encode_group, levels_of, round_encoder, treatment
from models.compression.errors import CompressionError
from models.compression.fine_tuning import FineTuning
from models.compression.pruning import prune, zero_share
from models.compression.quantization import train_quantized
from models.compression.rebuild import plain_copy
from models.compression.rounding import quantize_rows
from models.compression.shrinking import Removal
from models.compression.storage import PACKED, ExpandedTable, make_table
from models.compression.variants import Variant, combine, parse_variant
from models.config import CompressionConfig, ModelConfig, TrainingConfig, TwoTowerConfig
from models.input_pipeline import Ragged, Sequences
from models.keras import keras, tf

ROWS = np.array([[3, 9, 12, 20], [0, 0, 5, 6]], np.int32)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def rounds_small_matrices(monkeypatch):
    """The kernels of `model` are below the size from which rounding pays."""
    monkeypatch.setattr("models.compression.encoder_rounding.MIN_SIZE", 64)


@pytest.fixture(scope="module")
def fine_tuning():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, 64)
    splits = np.concatenate([[0], np.cumsum(lengths)])
    sequences = Sequences(Ragged(rng.integers(1, NUM_ITEMS + 1, splits[-1]), splits))
    training = TrainingConfig(batch_size=16, learning_rate=0.05, warmup_steps=0)
    return FineTuning(sequences, training, epochs=1, max_seconds=600, report=lambda line: None)


def test_rows_quantise_by_hand():
    integers, scales = quantize_rows(np.array([[1.0, -2.0], [0.0, 0.0], [0.5, 127.0]]), levels=127)
    assert scales == pytest.approx([2 / 127, 0, 1])
    assert integers.tolist() == [[64, -127], [0, 0], [0, 127]]  # 0.5 rounds to even


def test_clipping_lowers_the_error_of_a_row_with_an_outlier():
    row = np.concatenate([np.full(63, 0.3), [4.0]])[None]
    plain, plain_scale = quantize_rows(row, levels=7)
    clipped, scale = quantize_rows(row, levels=7, clip_ratios=(1.0, 0.5))
    assert plain_scale[0] == pytest.approx(4 / 7)
    assert scale[0] == pytest.approx(2 / 7)
    assert np.square(clipped * scale - row).sum() > 0
    errors = [np.square(i * s[:, None] - row).sum() for i, s in ((plain, plain_scale), (clipped, scale))]
    assert min(errors) == errors[1]


@pytest.mark.parametrize(("storage", "num_bytes"), [("float32", 4), ("bfloat16", 2), ("int8", 1), ("int4", 0.5)])
def test_packed_tables_take_the_bytes_they_promise(storage, num_bytes):
    vectors = np.random.default_rng(0).normal(size=(100, 32)).astype(np.float32)
    table = PACKED[storage](vectors, np.zeros(100, np.float32))
    sizes = {v.name: v.shape.num_elements() * v.dtype.size for v in table.variables}
    assert sum(sizes.values()) == 100 * 32 * num_bytes + 400 + (400 if "int" in storage else 0)  # biases, scales


@pytest.mark.parametrize(
    ("storage", "num_bytes"),
    # rows · width · bytes, float16 scales, codebooks of 8 sub-vectors · 256 centroids · 4 · 2 bytes
    [
        ("float32", 4000 * 32 * 4),
        ("bfloat16", 4000 * 32 * 2),
        ("int8", 4000 * (32 + 2)),
        ("int4", 4000 * (16 + 2)),
        ("pq", 4000 * 8 + 16_384),
        ("rq", 2 * (4000 * 8 + 16_384)),
    ],
)
def test_expanded_tables_lie_on_disk_in_the_bytes_of_their_codec(storage, num_bytes):
    table = make_table(np.random.default_rng(0).normal(size=(4000, 32)), storage)
    (blob,) = table.rows.parts.variables
    assert 0.75 * num_bytes < len(blob.numpy()) <= num_bytes * 1.01


@pytest.mark.parametrize(
    ("storage", "error"),
    [("bfloat16", 0.003), ("int8", 0.01), ("int6", 0.03), ("int5", 0.06), ("int4", 0.12), ("rq", 0.12)],
)
def test_both_forms_of_a_table_hold_the_same_vectors(storage, error):
    vectors = np.random.default_rng(1).normal(size=(300, 16)).astype(np.float32)
    rows, query = tf.constant([[3, 0], [299, 7]]), tf.constant(vectors[:4])
    bias = np.linspace(-1, 1, 300, dtype=np.float32)
    bias[7] = -np.inf
    expanded = ExpandedTable(vectors, storage, bias)
    got = expanded.gather(rows).numpy()
    np.testing.assert_allclose(
        expanded.scores(query), vectors[:4] @ expanded.gather(tf.range(300)).numpy().T + bias, rtol=1e-3, atol=1e-4
    )
    assert np.linalg.norm(got - vectors[rows]) < error * np.linalg.norm(vectors[rows])
    if storage in PACKED:
        packed = PACKED[storage](vectors, bias)
        # The float16 scale turns the rounding of a value here and there; the others agree.
        apart = np.abs(got - packed.gather(rows)) > 0.002 * np.abs(vectors).max()
        assert apart.mean() < 0.05
        every = tf.range(300)
        np.testing.assert_allclose(
            packed.scores(query), vectors[:4] @ packed.gather(every).numpy().T + bias, rtol=1e-3, atol=1e-4
        )


# Entropy of a normal distribution in steps of 1 / 31, 1 / 15 and 1 / 7 of its largest of 32 values, over that of int8.
@pytest.mark.parametrize(("storage", "levels", "share"), [("int6", 31, 0.75), ("int5", 15, 0.62), ("int4", 7, 0.49)])
def test_few_levels_take_fewer_bytes_where_they_lie_deflated(storage, levels, share):
    vectors = np.random.default_rng(2).normal(size=(4000, 32)).astype(np.float32)
    encoded = encode_rows(vectors, storage)
    assert np.abs(encoded.parts["integers"]).max() == levels
    sizes = [len(make_table(vectors, name).rows.parts.blob.numpy()) for name in (storage, "int8")]
    assert sizes[0] < 1.05 * share * sizes[1]  # ranges are clipped a little
    kernel = vectors[:64][np.newaxis]
    group = encode_group("by_column", kernel, levels_of(storage))
    # The largest weight of each output has the largest integer, so each error is at most half a step of that scale.
    step = np.abs(kernel).max(axis=1, keepdims=True) / {"int6": 15, "int5": 7, "int4": 7}[storage]
    assert (np.abs(group.expand({n: tf.constant(p) for n, p in group.parts.items()}) - kernel) <= step * 0.5001).all()


def test_pieces_are_deflated_each_in_its_own_way_into_one_stream():
    noise = np.random.default_rng(3).normal(scale=4, size=20_000).astype(np.int8).tobytes()
    words = b"".join(b"item-%d\n" % number for number in range(3000))
    pieces = [words, b"", noise]
    stream = deflated(pieces)
    assert zlib.decompress(stream) == tf.io.decode_compressed(stream, "ZLIB").numpy() == b"".join(pieces)
    # Neither strategy alone is as short: words have repeats, noise has none worth a reference.
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY):
        compressor = zlib.compressobj(9, strategy=strategy)
        assert len(stream) < 0.95 * len(compressor.compress(b"".join(pieces)) + compressor.flush())


def test_product_codes_are_exact_where_256_centroids_suffice():
    corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * 4)).reshape(4, -1).T  # 16 distinct sub-vectors
    vectors = np.concatenate([corners, corners[::-1] * 0.5], axis=1)
    table = make_table(vectors, "pq")
    np.testing.assert_array_equal(table.gather(tf.range(16)), vectors)


def test_large_tables_stay_encoded_in_memory(monkeypatch):
    monkeypatch.setattr("models.compression.storage.EXPANDED_BYTES", 100 * 8 * 4)
    assert isinstance(make_table(np.ones((100, 8)), "int8"), ExpandedTable)
    assert type(make_table(np.ones((101, 8)), "int8")).__name__ == "Int8Table"


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "int4"])
def test_tables_widened_in_blocks_answer_as_in_one(storage, monkeypatch):
    rng = np.random.default_rng(4)
    vectors, bias = rng.normal(size=(150, 8)).astype(np.float32), rng.normal(size=150).astype(np.float32)
    bias[0] = -np.inf
    whole = PACKED[storage](vectors, bias)
    monkeypatch.setattr("models.compression.storage.WIDENED_BYTES", 64 * 8 * 4)
    blocks = PACKED[storage](vectors, bias)
    assert blocks.matrix.shape[:2] == (3, 64)  # the last filled up
    rows = tf.constant([[0, 63], [64, 149]])
    np.testing.assert_array_equal(blocks.gather(rows), whole.gather(rows))
    scores = blocks.scores(tf.constant(vectors[:5])).numpy()
    np.testing.assert_allclose(scores[:, :150], whole.scores(tf.constant(vectors[:5])), rtol=1e-5)
    assert scores.shape == (5, 192)
    assert (scores[:, 150:] == -np.inf).all()


def test_int4_packs_and_unpacks_by_hand():
    vectors = np.array([[7.0, -7.0, 1.0, 0.0]], np.float32)
    packed = PACKED["int4"](vectors, np.zeros(1, np.float32))
    assert packed.matrix.numpy().tolist() == [[[15 | 9 << 4, 1 | 8 << 4]]]
    for table in (packed, make_table(vectors, "int4")):
        assert table.gather(tf.constant([[0]])).numpy().tolist() == [[[7.0, -7.0, 1.0, 0.0]]]
        assert table.scores(tf.constant([[1.0, 1.0, 3.0, 5.0]])).numpy().tolist() == [[3.0]]


def test_bad_tables_are_refused():
    with pytest.raises(CompressionError, match="embedding_dim = 3 is odd"):
        PACKED["int4"](np.ones((4, 3)), np.zeros(4))
    with pytest.raises(CompressionError, match="unknown storage 'int2'"):
        make_table(np.ones((4, 2)), "int2")
    with pytest.raises(CompressionError, match="shape"):
        make_table(np.ones(4), "int8")


def test_matrices_round_by_their_outputs_and_tables_by_their_rows():
    kernel = np.array([[[1.0, -4.0], [0.5, 2.0], [-0.25, 0.0]]], np.float32)
    by_column = encode_group("by_column", kernel)
    assert by_column.parts["integers"].tolist() == [[[127, -127], [64, 64], [-32, 0]]]
    np.testing.assert_allclose(by_column.parts["scales"], [[[1 / 127, 4 / 127]]])
    by_row = encode_group("by_row", kernel)
    assert by_row.parts["integers"].tolist() == [[[32, -127], [32, 127], [-127, 0]]]
    big, small = np.zeros((64, 64)), np.zeros((4, 4))
    assert [treatment(name, big, "int8") for name in ("q/kernel:0", "wide/embeddings:0")] == ["by_column", "by_row"]
    assert [treatment("kernel:0", small, "int8"), treatment("kernel:0", big, "float32")] == ["float32", "float32"]


def test_a_rounded_encoder_is_close_but_not_equal(model, rounds_small_matrices):
    rounded = plain_copy(model)
    round_encoder(rounded.history_encoder)
    inputs = {"vectors": tf.gather(model.candidate_vectors(), ROWS), "rows": tf.constant(ROWS)}
    exact, got = (which.history_encoder(inputs)[:, -1].numpy() for which in (model, rounded))
    np.testing.assert_allclose(got, exact, atol=0.05)
    assert np.abs(got - exact).max() > 0


def test_pruning_zeroes_the_smallest_weights_and_leaves_the_original(model, fine_tuning):
    before = [w.copy() for w in model.get_weights()]
    pruned = prune(model, 0.5, fine_tuning.num_steps(model), fine_tuning)
    assert zero_share(pruned) == pytest.approx(0.5, abs=0.02)
    assert type(pruned.history_encoder.get_layer("attention_query_0")) is keras.layers.Dense
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    kernel = model.history_encoder.get_layer("feed_forward_in_0").get_weights()[0]
    survivors = pruned.history_encoder.get_layer("feed_forward_in_0").get_weights()[0]
    kept = survivors != 0
    assert np.abs(kernel)[kept].mean() > 2 * np.abs(kernel)[~kept].mean()
    assert not np.array_equal(
        kernel[kept], pruned.history_encoder.get_layer("feed_forward_in_0").get_weights()[0][kept]
    )


def test_quantisation_aware_training_sees_rounded_kernels(model, rounds_small_matrices):
    seen = []

    def watch(tuned, callbacks):
        inputs = {"vectors": tf.gather(tuned.candidate_vectors(), ROWS), "rows": tf.constant(ROWS)}
        # one forward pass in training mode records the ranges; dropout is off in this comparison
        tuned.history_encoder(inputs, training=True)
        seen.append(tuned.history_encoder(inputs, training=False)[:, -1].numpy())

    train_quantized(model, watch)
    rounded = plain_copy(model)
    round_encoder(rounded.history_encoder)
    inputs = {"vectors": tf.gather(model.candidate_vectors(), ROWS), "rows": tf.constant(ROWS)}
    np.testing.assert_allclose(seen[0], rounded.history_encoder(inputs)[:, -1], atol=1e-4)


def test_quantisation_aware_training_gives_a_plain_trained_model(model, fine_tuning, rounds_small_matrices):
    pruned = prune(model, 0.5, fine_tuning.num_steps(model), fine_tuning)
    tuned = train_quantized(pruned, fine_tuning, keep_zeros=True)
    assert zero_share(tuned) == pytest.approx(zero_share(pruned), abs=0.001)
    assert {type(layer).__name__ for layer in tuned.history_encoder.layers} == {
        type(layer).__name__ for layer in model.history_encoder.layers
    }
    name = "attention_query_0"
    old, new = (m.history_encoder.get_layer(name).get_weights()[0] for m in (pruned, tuned))
    assert np.abs(old - new).max() > 1e-4
    assert not tuned.history_encoder.get_layer(name).trainable_weights[0].name.startswith("quant")


def test_pruning_refuses_what_it_cannot_do(model, fine_tuning):
    with pytest.raises(CompressionError, match="outside"):
        prune(model, 1.0, 5, fine_tuning)
    with pytest.raises(CompressionError, match="fine_tune_epochs"):
        prune(model, 0.5, 0, fine_tuning)


def test_variant_names():
    assert parse_variant("float32") == Variant("float32")
    assert parse_variant("prune75+qat+int4") == Variant("prune75+qat+int4", "int4", 0.75, True)
    assert parse_variant("qat").storage == "float32"
    names = ("float32", "bfloat16", "int8", "int4", "pq", "qat", "qat+bfloat16", "prune50", "int6", "qat+int5", "ptq")
    assert [parse_variant(name).encoder_storage for name in names] == [
        *["float32", "bfloat16", "int8", "int4", "int8", "int8", "int8", "float32", "int6", "int8", "int8"]
    ]
    assert parse_variant("history32+ptq+int5").encoder_storage == "int5"
    assert parse_variant("prune50").training == parse_variant("prune50+int8").training != parse_variant("qat").training


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int8+int4", "two techniques of one kind"),
        ("prune50+prune75", "two techniques of one kind"),
        ("int3", "unknown technique 'int3'"),
        ("", "unknown technique ''"),
        ("prune100", "unknown technique 'prune100'"),
    ],
)
def test_bad_variant_names(name, message):
    with pytest.raises(CompressionError, match=message):
        parse_variant(name)


def test_variants_combine_what_they_lack():
    assert combine("int8", "units50+int4") == "units50+int8"
    assert combine("qat+int8", "prune50+int8") == "prune50+qat+int8"
    assert combine("prune50+int8", "int4") is None
    assert combine("int8", "float32") is None
    assert combine("float32", "prune50") is None
    assert combine("width32+int8", "prune50+qat+int4") == "width32+prune50+qat+int8"
    assert parse_variant("history50+units25+int8").removal == Removal(units=0.25, history=50)
    assert parse_variant("width128+blocks1+int8").student == Student(width=128, blocks=1)
    assert parse_variant("blocks1").is_fine_tuned and not parse_variant("rows50+ptq+int8").is_fine_tuned


def test_a_students_shape_and_training():
    teacher = TwoTowerConfig(
        model=ModelConfig(embedding_dim=64, num_heads=4, num_layers=2, attention_width=48, feed_forward_units=100),
        training=TrainingConfig(epochs=9, refit=True, strategy="multi_worker_mirrored"),
    )
    run = teacher.model_copy(update={"compression": CompressionConfig(student_epochs=4, max_seconds=100)})
    student = student_config(teacher, Student(width=32, blocks=1), run)
    shape = student.model
    assert (shape.embedding_dim, shape.attention_dim, shape.feed_forward_dim, shape.num_layers) == (32, 32, 128, 1)
    training = student.training
    assert (training.epochs, training.max_train_seconds) == (4, 50)
    assert training.strategy == "one_device" and not training.refit  # the search is one process, on train events
    assert student_config(teacher, Student(blocks=1), run).model.attention_dim == 48
    for size, message in (
        (Student(width=64), "not as large"),
        (Student(width=65), "not width 65 of 64"),
        (Student(blocks=3), "not blocks 3 of 2"),
        (Student(width=30), "num_heads = 4 does not divide embedding_dim = 30"),
    ):
        with pytest.raises(CompressionError, match=message):
            student_config(teacher, size, run)
