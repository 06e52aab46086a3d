"""`preprocessing_fn`: raw examples to rows and feature ids, the same graph in training and serving.

One graph serves two kinds of records, catalogue and sequences: every input is a `SparseTensor` and
stays sparse, so a key that a record lacks stays absent, and at serving the part that depends on
`history` and the query features can run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from models.config import FeatureSpec, ItemIdsConfig, TwoTowerConfig, history_key
from models.features import (
    HOURS,
    ITEM_EMBEDDING_ROW,
    ITEM_EMBEDDING_VOCABULARY,
    ITEM_VOCABULARY,
    MISSING_INT64,
    RECENCY_BUCKETS,
    WEEKDAYS,
    FeatureColumn,
    feature_width,
    vocabulary_filename,
)
from models.keras import tf
from models.time_gaps import elapsed_buckets

# isort: split
import tensorflow_transform as tft

LARGEST_CATALOGUE = 2**24
SECONDS_PER_DAY = 86_400
PASSED_THROUGH = ("item_row", "item_live", "item_train_events", "user_id", "history_timestamps", "target_timestamps")

Inputs = Mapping[str, Any]


def preprocessing_fn(inputs: Inputs, custom_config: Mapping[str, Any]) -> dict[str, Any]:
    """Transforms one batch; called by TFX Transform.

    Args:
        inputs: `SparseTensor` of every raw key, as SequenceGen writes them.
        custom_config: `two_tower` holds the JSON of `TwoTowerConfig`, `vocabularies` the folder of the items by row
            and of vocabularies that continue the last run's; without it TFT makes them.

    Returns:
        `SparseTensor` of every transformed key: `history` and `targets` as item rows (int64, from 1;
        0 = unknown item), the features as `candidate_…`, `query_…` and `context_…` (and `history_context_…` beside
        the history), the items' rows of the id embeddings where rare items share them, and ids, counts and times as
        they are.

    Raises:
        ValueError: If the data lacks the column of a declared feature.
    """
    config = TwoTowerConfig.model_validate_json(custom_config["two_tower"])
    outputs = {key: inputs[key] for key in PASSED_THROUGH if key in inputs}
    folder = custom_config.get("vocabularies", "")
    vocabulary = item_vocabulary(inputs["item_id"], inputs["item_row"], folder)
    for key in ("history", "targets"):
        if key in inputs:
            rows = tft.apply_vocabulary(inputs[key], vocabulary, default_value=-1)
            outputs[key] = with_values(rows, rows.values + 1)
    if config.item_ids.min_count:
        own = item_embedding_vocabulary(inputs["item_id"], inputs["item_train_events"], config.item_ids, folder)
        outputs[ITEM_EMBEDDING_ROW] = rows_after_buckets(inputs["item_id"], own, config.item_ids.oov_buckets)
    for spec in config.features:
        if spec.learnt_name not in inputs:
            raise ValueError(
                f"feature {spec.name!r} reads the column {spec.source_column!r}, which the data lacks "
                f"(no key {spec.learnt_name!r}); correct `column` or remove the feature"
            )
        if spec.tower == "context":
            outputs |= transform_context(spec, inputs, folder)
            continue
        outputs[spec.transformed_name] = TRANSFORMS[spec.kind](inputs[spec.raw_name], spec, inputs, folder)
    return outputs


def item_vocabulary(item_ids: Any, item_rows: Any, folder: str) -> Any:
    """Vocabulary file whose line n (from 0) is the item of row n + 1.

    Where there is no such file TFT makes it. It orders a vocabulary by weight, so each id gets a weight that falls
    with its row. Weights are float32: exact up to 2**24 items.
    """
    if folder:
        return written_vocabulary(folder, ITEM_VOCABULARY)
    weights = tf.cast(LARGEST_CATALOGUE - item_rows.values, tf.float32)
    return tft.vocabulary(item_ids.values, weights=weights, vocab_filename=ITEM_VOCABULARY)


def item_embedding_vocabulary(item_ids: Any, train_events: Any, config: ItemIdsConfig, folder: str) -> Any:
    """Vocabulary file of the items with an id embedding of their own; without a folder TFT makes it by train events."""
    if folder:
        return written_vocabulary(folder, ITEM_EMBEDDING_VOCABULARY)
    return tft.vocabulary(
        item_ids.values,
        weights=tf.cast(train_events.values, tf.float32),
        frequency_threshold=config.min_count,
        vocab_filename=ITEM_EMBEDDING_VOCABULARY,
    )


def written_vocabulary(folder: str, name: str) -> Any:
    """A file that TFT did not make, in the form in which TFT applies it."""
    tft.annotate_asset(name, name)  # By this name TFT finds the asset and its size again.
    return tf.constant(f"{folder}/{name}")


def with_values(sparse: Any, values: Any) -> Any:
    """The same places with other values."""
    return tf.SparseTensor(sparse.indices, values, sparse.dense_shape)


def first_values(sparse: Any, width: int) -> Any:
    """At most `width` values of each row."""
    kept = tf.sparse.retain(sparse, sparse.indices[:, 1] < width)
    return tf.SparseTensor(kept.indices, kept.values, [sparse.dense_shape[0], tf.minimum(sparse.dense_shape[1], width)])


def as_strings(sparse: Any) -> Any:
    """Numbers as text; text as it is."""
    return sparse if sparse.dtype == tf.string else with_values(sparse, tf.strings.as_string(sparse.values))


def without_empty(sparse: Any) -> Any:
    """Drops empty strings: an empty field of a CSV file is a missing value."""
    return tf.sparse.retain(sparse, tf.not_equal(sparse.values, ""))


def transform_vocabulary(values: Any, spec: FeatureSpec, inputs: Inputs, folder: str) -> Any:
    """Categorical and multi-valued: ids from 1."""
    words = first_values(without_empty(as_strings(values)), feature_width(spec))
    return rows_after_buckets(words, feature_vocabulary(words, spec, folder), spec.oov_buckets)


def rows_after_buckets(words: Any, vocabulary: Any, oov_buckets: int) -> Any:
    """Rows from 1: the out-of-vocabulary buckets first, then the words by their line.

    The buckets come first so that a vocabulary may grow without moving any row of the embedding table.
    """
    rows = tft.apply_vocabulary(words, vocabulary, default_value=-1)
    buckets = tf.strings.to_hash_bucket_fast(words.values, oov_buckets)
    return with_values(rows, 1 + tf.where(rows.values < 0, buckets, rows.values + oov_buckets))


def feature_vocabulary(words: Any, spec: FeatureSpec, folder: str) -> Any:
    """The file that continues the last run's, or one by frequency where there is no such file."""
    name = vocabulary_filename(spec)
    if folder:
        return written_vocabulary(folder, name)
    return tft.vocabulary(words, top_k=spec.vocabulary_size, vocab_filename=name)


def transform_numeric(values: Any, spec: FeatureSpec, inputs: Inputs, folder: str) -> Any:
    """Numeric: z-score, z-score of the signed log, or quantile bucket (ids from 1)."""
    numbers = first_values(with_values(values, to_float(values.values, spec)), 1)
    numbers = tf.sparse.retain(numbers, tf.math.is_finite(numbers.values))
    if spec.normalization == "bucketize":
        buckets = tft.bucketize(numbers, num_buckets=spec.num_buckets, name=spec.transformed_name)
        return with_values(buckets, buckets.values + 1)
    if spec.normalization == "log":
        numbers = with_values(numbers, tf.sign(numbers.values) * tf.math.log1p(tf.abs(numbers.values)))
    # Every engine adds a mean up in an order of its own; in float64 the difference is gone when the result is rounded.
    exact = with_values(numbers, tf.cast(numbers.values, tf.float64))
    scores = tft.scale_to_z_score(exact, name=spec.transformed_name)
    return with_values(scores, tf.cast(scores.values, tf.float32))


def to_float(values: Any, spec: FeatureSpec) -> Any:
    """Numbers as float32.

    Raises:
        ValueError: If the column holds text.
    """
    if values.dtype == tf.string:
        raise ValueError(
            f"feature {spec.name!r} is numeric but its column {spec.source_column!r} holds text; "
            "declare it as categorical or text, or correct the column"
        )
    return tf.cast(values, tf.float32)


def transform_timestamp(values: Any, spec: FeatureSpec, inputs: Inputs, folder: str) -> Any:
    """Timestamp: ids of hour of day, day of week (Monday first) and, but for a context, age before the newest event."""
    if values.dtype == tf.string:
        raise ValueError(
            f"feature {spec.name!r} is a timestamp but its column {spec.source_column!r} holds text; "
            "give seconds since 1970"
        )
    times = first_values(values, 1)
    seconds = tf.cast(times.values, tf.int64)
    hour = seconds // 3600 % HOURS
    weekday = (seconds // SECONDS_PER_DAY + 3) % WEEKDAYS  # 1970-01-01 was a Thursday
    parts = [1 + hour, 1 + HOURS + weekday]
    if spec.tower != "context":
        newest = tft.max(inputs["history_timestamps"] if "history_timestamps" in inputs else times)
        age_days = tf.cast(tf.maximum(tf.cast(newest, tf.int64) - seconds, 0), tf.float32) / SECONDS_PER_DAY
        recency = tf.cast(tf.math.log(age_days + 1.0) / tf.math.log(2.0) + 1e-6, tf.int64)
        parts.append(1 + HOURS + WEEKDAYS + tf.minimum(recency, RECENCY_BUCKETS - 1))
    ids = tf.stack(parts, axis=1)
    queries = tf.repeat(times.indices[:, :1], ids.shape[1], axis=0)
    places = tf.tile(tf.range(ids.shape[1], dtype=tf.int64), [tf.shape(ids)[0]])
    return tf.SparseTensor(
        tf.concat([queries, places[:, tf.newaxis]], axis=1),
        tf.reshape(ids, [-1]),
        [times.dense_shape[0], ids.shape[1]],
    )


def transform_elapsed(values: Any, spec: FeatureSpec, inputs: Inputs, folder: str) -> Any:
    """Elapsed seconds: logarithmic buckets from 1."""
    return with_values(values, tf.cast(elapsed_buckets(values.values), tf.int64))


def transform_context(spec: FeatureSpec, inputs: Inputs, folder: str) -> dict[str, Any]:
    """Context of every event of the history and of the request: each value transformed as if it were a record.

    Both go through one analysis, so that a request's value means what an event's meant in training.

    Returns:
        `history_context_…` and `context_…`, `feature_width` values for each raw value; 0 for a missing one.
    """
    names = {spec.learnt_name: history_key(spec.transformed_name), spec.raw_name: spec.transformed_name}
    given = {name: inputs[key] for key, name in names.items() if key in inputs}
    values = tf.concat([sparse.values for sparse in given.values()], axis=0)
    count, width = tf.size(values, tf.int64), feature_width(spec)
    places = tf.stack([tf.range(count), tf.zeros([count], tf.int64)], axis=1)
    records = tf.SparseTensor(places, values, tf.stack([count, tf.constant(1, tf.int64)]))
    found = TRANSFORMS[spec.kind](tf.sparse.retain(records, is_known(values)), spec, inputs, folder)
    shape = tf.stack([count, tf.constant(width, tf.int64)])
    dense = tf.sparse.to_dense(tf.SparseTensor(found.indices, found.values, shape))
    parts = tf.split(dense, [tf.size(sparse.values) for sparse in given.values()], num=len(given))
    return {name: widened(sparse, part, width) for (name, sparse), part in zip(given.items(), parts, strict=True)}


def is_known(values: Any) -> Any:
    """False for the values that stand for a missing one: "", NaN and the smallest int64."""
    if values.dtype == tf.string:
        return tf.not_equal(values, "")
    if values.dtype.is_floating:
        return tf.logical_not(tf.math.is_nan(values))
    return tf.not_equal(values, MISSING_INT64)


def widened(sparse: Any, dense: Any, width: int) -> Any:
    """The same places with `width` values `(n, width)` side by side for each one."""
    row, place = sparse.indices[:, :1], sparse.indices[:, 1:]
    steps = tf.range(width, dtype=tf.int64)[tf.newaxis]
    places = tf.stack([tf.repeat(row, width, axis=1), place * width + steps], axis=2)
    return tf.SparseTensor(
        tf.reshape(places, [-1, 2]),
        tf.reshape(dense, [-1]),
        tf.stack([sparse.dense_shape[0], sparse.dense_shape[1] * width]),
    )


def transform_text(values: Any, spec: FeatureSpec, inputs: Inputs, folder: str) -> Any:
    """Text: lower-cased words and n-grams of letters and digits, hashed to ids from 1."""
    text = tf.strings.lower(as_strings(values).values, encoding="utf-8")
    text = tf.strings.strip(tf.strings.regex_replace(text, r"[^\p{L}\p{N}]+", " "))
    words = tf.RaggedTensor.from_value_rowids(
        tf.strings.split(text), values.indices[:, 0], nrows=values.dense_shape[0]
    ).merge_dims(1, 2)
    if spec.ngrams > 1:
        words = tf.strings.ngrams(words, ngram_width=tuple(range(1, spec.ngrams + 1)))
    words = words[:, : spec.max_values]
    ids = tf.strings.to_hash_bucket_fast(words.flat_values, spec.vocabulary_size) + 1
    return words.with_flat_values(ids).to_sparse()


def dense_features(transformed: Mapping[str, Any], columns: Sequence[FeatureColumn]) -> dict[str, Any]:
    """Sparse transformed features as the towers read them: `(batch, width)`, padded with 0.

    Args:
        transformed: Output of the Transform graph.
        columns: The columns to take.

    Returns:
        int32 ids or float32 numbers by transformed name.
    """
    dense = {}
    for column in columns:
        sparse = first_values(transformed[column.name], column.width)
        shape = [sparse.dense_shape[0], tf.constant(column.width, tf.int64)]
        values = tf.sparse.to_dense(tf.SparseTensor(sparse.indices, sparse.values, shape))
        dtype = tf.float32 if column.is_numeric else tf.int32
        dense[column.name] = tf.ensure_shape(tf.cast(values, dtype), [None, column.width])
    return dense


TRANSFORMS: Mapping[str, Callable[[Any, FeatureSpec, Inputs, str], Any]] = {
    "categorical": transform_vocabulary,
    "multi_valued": transform_vocabulary,
    "numeric": transform_numeric,
    "timestamp": transform_timestamp,
    "text": transform_text,
    "elapsed": transform_elapsed,
}

__all__ = ["TRANSFORMS", "dense_features", "preprocessing_fn"]
