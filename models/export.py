"""Writes the served model: raw strings in, item ids out, in six signatures of stock TensorFlow ops.

The signatures are public API:

| signature | inputs | outputs |
|---|---|---|
| `recommend` | `history` string (B, L), `exclude` string (B, E), `k` int32 (), features, times | `item_ids`, `scores` |
| `recommend_user` | `user_id` string (B,), `k` int32 () | the same |
| `serving_default` | `examples` string (B,): `history`, `exclude`, `user_…`, `context_…` | the same, k = default_k |
| `embed_query` | as `recommend` | `embeddings` float (B, D) |
| `embed_items` | `item_ids` string (B,) | `embeddings` float (B, D) |
| `similar_items` | `item_ids` string (B,), `k` int32 () | as `recommend` |

Times are `history_timestamps` int64 (B, L), seconds, where the preset says `time_gaps`; the smallest int64 = not known,
and so are the columns that it has fewer than `history`. Features are those of users and requests (`context`) in the
preset; `recommend_user` knows the stored features of the user and no context.

`item_ids` string and `scores` float are `(B, K)`, best first, K = min(k, live items); "" and -inf fill up
where exclusions leave fewer.
Items of the history and of `exclude` and retired items never come back. Only the newest
`max_history_length` known items are encoded, all are excluded. Without a known item in the history the
answer is the most popular items of the train split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from models.config import TwoTowerConfig
from models.context import unknown_context
from models.features import feature_column
from models.input_pipeline import gather_padded
from models.keras import keras, tf
from models.retrieval.build import build_retriever
from models.retrieval.exact import checked_live
from models.serving_graph.encoder import call_with_weights, serving_encoder
from models.serving_graph.encoder_weights import EncoderWeights
from models.serving_graph.errors import ExportError
from models.serving_graph.fallback import PopularityFallback
from models.serving_graph.histories import newest_known, newest_known_beside
from models.serving_graph.items import ItemTable
from models.serving_graph.lean_graph import strip_saved_model
from models.serving_graph.query_features import QueryFeatures
from models.serving_graph.users import UserHistories, UserTable
from models.time_gaps import HISTORY_GAPS, HISTORY_TIMESTAMPS, MISSING_TIME, gap_buckets, served_gap_buckets

Answer = dict[str, tf.Tensor]

_STRINGS = tf.TensorSpec([None], tf.string)
_STRING_MATRIX = tf.TensorSpec([None, None], tf.string)
_ROWS = tf.TensorSpec([None, None], tf.int32)
_K = tf.TensorSpec([], tf.int32, name="k")
INDEX_QUERIES = 10_000
QUERY_BATCH = 128


class TrainedTowers(Protocol):
    """What the export needs of a trained model; `models.two_tower.TwoTowerModel` is one."""

    config: TwoTowerConfig
    history_encoder: keras.Model

    def candidate_vectors(self) -> Any: ...

    def item_bias(self) -> Any: ...


@dataclass(frozen=True)
class ServedTowers:
    """The trained pieces that are served.

    Attributes:
        config: Of the model.
        history_encoder: Functional Keras model, float or compressed.
        vectors: Float `(N + 1, D)`; row 0 zeros.
        bias: Float `(N + 1,)` added to every score.
    """

    config: TwoTowerConfig
    history_encoder: keras.Model
    vectors: np.ndarray
    bias: np.ndarray

    @classmethod
    def of(cls, model: TrainedTowers) -> ServedTowers:
        """The pieces of a trained model."""
        vectors, bias = np.asarray(model.candidate_vectors()), np.asarray(model.item_bias())
        return cls(model.config, model.history_encoder, vectors, bias)


@dataclass(frozen=True)
class Catalogue:
    """State of the items, by row.

    Attributes:
        live: Bool `(N + 1,)`; False = retired, never recommended.
        train_events: `(N + 1,)` events in the train split; the order of the fallback.
    """

    live: np.ndarray
    train_events: np.ndarray


class ServedModel(tf.Module):
    """State and computation behind the signatures.

    Args:
        towers: What was trained.
        catalogue: State of the items.
        users: Histories behind `recommend_user`.
        transform_graph_dir: Output of Transform.
        storage: Codec of the item vectors.
        encoder_storage: Of the encoder's matrices: `float32`, `bfloat16`, `int8`, `int6`, `int5` or `int4`.
    """

    def __init__(
        self,
        towers: ServedTowers,
        catalogue: Catalogue,
        users: UserHistories,
        *,
        transform_graph_dir: str,
        storage: str,
        encoder_storage: str,
    ) -> None:
        super().__init__()
        config = towers.config
        self.items = ItemTable(item_vocabulary_file(transform_graph_dir))
        _check_rows(self.items.num_rows, towers, catalogue)
        live = checked_live(towers.vectors, catalogue.live)
        self.query_features = QueryFeatures(config.request_features, transform_graph_dir)
        self.contexts = tuple(feature_column(spec) for spec in config.tower_features("context"))
        self.time_gaps = config.model.time_gaps
        self.users = UserTable(users, config.model.max_history_length, self.time_gaps)
        self.retriever = build_retriever(
            towers.vectors,
            live,
            towers.bias,
            config.retrieval,
            storage,
            queries=lambda: _stored_queries(towers, users),
        )
        self.fallback = PopularityFallback(catalogue.train_events, live)
        # The Keras objects are not tracked: the SavedModel holds no Keras metadata and loads without Keras.
        encoder = serving_encoder(towers.history_encoder)
        self.encoder_weights = EncoderWeights(encoder, encoder_storage)
        self._max_length = config.model.max_history_length
        self._default_k = config.retrieval.default_k
        self._dim = towers.vectors.shape[1]
        self._shared = _shared_functions(self, encoder)

    def recommend(
        self,
        history: tf.Tensor,
        exclude: tf.Tensor,
        k: tf.Tensor,
        features: Mapping[str, Any],
        timestamps: tf.Tensor | None = None,
    ) -> Answer:
        """Answers raw histories; `features` are encoder inputs, `timestamps` int64 `(B, L)` is for time gaps."""
        rows = self.items.rows(history)
        excluded = tf.concat([rows, self.items.rows(exclude)], axis=1)
        newest, gaps = self._newest(rows, timestamps)
        return self._shared.answer(newest, excluded, k, {**features, **gaps})

    def _newest(self, rows: tf.Tensor, timestamps: tf.Tensor | None) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The rows `(B, W)` that the encoder reads, and the time gaps between them if it reads those."""
        if not self.time_gaps:
            return newest_known(rows, self._max_length), {}
        newest, times = newest_known_beside(rows, _as_wide(timestamps, rows), self._max_length)
        return newest, {HISTORY_GAPS: served_gap_buckets(times)}

    def recommend_user(self, user_id: tf.Tensor, k: tf.Tensor) -> Answer:
        """Answers from stored histories."""
        index = self.users.index(user_id)
        rows = self.users.histories(index)
        seen = tf.concat([rows, self.users.older(index)], axis=1)
        gaps = {HISTORY_GAPS: self.users.gaps(index)} if self.time_gaps else {}
        contexts = {column.name: unknown_context(column, tf.shape(index)[0])[:, 0] for column in self.contexts}
        return self._shared.answer(rows, seen, k, {**self.users.features(index), **gaps, **contexts})

    def recommend_examples(self, examples: tf.Tensor) -> Answer:
        """Answers serialized raw tf.Examples with the preset's default k."""
        spec: dict[str, Any] = {name: tf.io.RaggedFeature(tf.string) for name in ("history", "exclude")}
        if self.time_gaps:
            spec[HISTORY_TIMESTAMPS] = tf.io.RaggedFeature(tf.int64)
        parsed = tf.io.parse_example(examples, {**spec, **self.query_features.parsing_spec()})
        history, exclude = (parsed.pop(name).to_tensor() for name in ("history", "exclude"))
        times = parsed.pop(HISTORY_TIMESTAMPS).to_tensor(MISSING_TIME) if self.time_gaps else None
        features = self.query_features.from_examples(parsed)
        return self.recommend(history, exclude, tf.constant(self._default_k), features, times)

    def embed_query(
        self, history: tf.Tensor, features: Mapping[str, Any], timestamps: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Query vectors `(B, D)`; zeros without a known item."""
        rows, gaps = self._newest(self.items.rows(history), timestamps)
        vectors = self._shared.encode(rows, {**features, **gaps})
        return tf.where(rows[:, -1:] > 0, vectors, 0.0)

    def embed_items(self, item_ids: tf.Tensor) -> tf.Tensor:
        """Item vectors `(B, D)` as stored; zeros for unknown ids."""
        return self.retriever.vectors(self.items.rows(item_ids))

    def similar_items(self, item_ids: tf.Tensor, k: tf.Tensor) -> Answer:
        """Items with the largest inner product with each item, without itself; nothing for unknown ids."""
        rows = self.items.rows(item_ids)[:, tf.newaxis]
        scores, found = self.retriever(self.retriever.vectors(rows[:, 0]), k, rows, of_items=True)
        return self._named(tf.where(rows > 0, scores, -np.inf), tf.where(rows > 0, found, 0))

    def _named(self, scores: tf.Tensor, rows: tf.Tensor) -> Answer:
        return {"item_ids": self.items.ids(rows), "scores": scores}

    def _answer(self, rows: tf.Tensor, excluded: tf.Tensor, k: tf.Tensor, features: Mapping[str, Any]) -> Answer:
        """Answer for encoder rows `(B, L)` without the rows `excluded` `(B, E)`."""
        scores, found = self.retriever(self._shared.encode(rows, dict(features)), k, excluded)
        known = rows[:, -1:] > 0
        scores, found = tf.cond(
            tf.reduce_all(known),
            lambda: (scores, found),
            lambda: tuple(map(_chooser(known), (scores, found), self.fallback(k, excluded))),
        )
        return self._named(scores, found)


def _as_wide(timestamps: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Timestamps `(B, M)` as `(B, L)` beside the rows: what they have fewer columns is not known."""
    missing = tf.fill(tf.shape(rows), tf.constant(MISSING_TIME, tf.int64))
    return tf.concat([timestamps, missing], axis=1)[:, : tf.shape(rows)[1]]


def _chooser(known: tf.Tensor) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    return lambda personal, popular: tf.where(known, personal, popular)


def _stored_queries(towers: ServedTowers, users: UserHistories) -> np.ndarray:
    """Query vectors `(Q, D)` of stored histories, at most `INDEX_QUERIES`, for building an index.

    Of every fourth history only the newest one to three events count: new users ask too.
    """
    splits = np.asarray(users.row_splits)
    with_history = np.flatnonzero(np.diff(splits) > 0)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(with_history)[:INDEX_QUERIES]
    width = towers.config.model.max_history_length
    has_gaps = towers.config.model.time_gaps and users.timestamps is not None
    gaps = gap_buckets(np.asarray(users.timestamps), splits) if has_gaps else None
    vectors = []
    for start in range(0, len(chosen), QUERY_BATCH):
        batch = chosen[start : start + QUERY_BATCH]
        read = np.where(np.arange(len(batch)) % 4, width, rng.integers(1, 4, len(batch)))
        starts, ends = np.maximum(splits[batch], splits[batch + 1] - read), splits[batch + 1]
        rows = gather_padded(np.asarray(users.rows), starts, ends, width)
        features = {name: values[batch] for name, values in users.features.items()}
        for spec in towers.config.tower_features("context"):
            features[spec.transformed_name] = unknown_context(feature_column(spec), len(batch))
        if gaps is not None:
            features[HISTORY_GAPS] = gather_padded(gaps, starts, ends, width)
        inputs = {"vectors": towers.vectors[rows].astype(np.float32), "rows": rows, **features}
        vectors.append(towers.history_encoder(inputs, training=False)[:, -1].numpy())
    return np.concatenate(vectors) if vectors else np.zeros((0, towers.vectors.shape[1]), np.float32)


@dataclass(frozen=True)
class SharedFunctions:
    """`tf.function`s that several signatures call; a plain object, so that `tf.Module` does not track them."""

    encode: Any
    answer: Any


def _shared_functions(model: ServedModel, encoder: keras.Model) -> SharedFunctions:
    """The parts that several signatures share, traced once so that the graph holds them once."""
    features = model.query_features.encoder_specs()
    if model.time_gaps:
        features[HISTORY_GAPS] = _ROWS

    def encode(rows: tf.Tensor, query_features: dict[str, tf.Tensor]) -> tf.Tensor:
        vectors = model.retriever.vectors(rows)
        contexts = {column.name: query_features[column.name][:, tf.newaxis] for column in model.contexts}
        inputs = {"vectors": vectors, "rows": rows, **query_features, **contexts}
        return call_with_weights(encoder, model.encoder_weights.read(), inputs)[:, -1]

    return SharedFunctions(
        encode=tf.function(encode, input_signature=[_ROWS, features], autograph=False),
        answer=tf.function(model._answer, input_signature=[_ROWS, _ROWS, _K, features], autograph=False),
    )


def serving_signatures(model: ServedModel) -> dict[str, Any]:
    """The concrete functions of the contract, by signature name."""
    features = model.query_features.input_specs()
    if model.time_gaps:
        features[HISTORY_TIMESTAMPS] = tf.TensorSpec([None, None], tf.int64, name=HISTORY_TIMESTAMPS)

    def recommend(history: Any, exclude: Any, k: Any, **raw: Any) -> Answer:
        times = raw.pop(HISTORY_TIMESTAMPS, None)
        return model.recommend(history, exclude, k, model.query_features.from_raw(raw), times)

    def embed_query(history: Any, exclude: Any, k: Any, **raw: Any) -> Answer:
        del exclude, k  # part of the contract, so that a `recommend` request works for both
        times = raw.pop(HISTORY_TIMESTAMPS, None)
        return {"embeddings": model.embed_query(history, model.query_features.from_raw(raw), times)}

    def concrete(function: Callable[..., Answer], **specs: tf.TensorSpec) -> Any:
        return tf.function(function, autograph=False).get_concrete_function(**specs)

    query = {"history": _STRING_MATRIX, "exclude": _STRING_MATRIX, "k": _K, **features}
    return {
        "recommend": concrete(recommend, **query),
        "recommend_user": concrete(lambda user_id, k: model.recommend_user(user_id, k), user_id=_STRINGS, k=_K),
        "serving_default": concrete(lambda examples: model.recommend_examples(examples), examples=_STRINGS),
        "embed_query": concrete(embed_query, **query),
        "embed_items": concrete(lambda item_ids: {"embeddings": model.embed_items(item_ids)}, item_ids=_STRINGS),
        "similar_items": concrete(lambda item_ids, k: model.similar_items(item_ids, k), item_ids=_STRINGS, k=_K),
    }


def export_saved_model(
    path: str,
    towers: ServedTowers,
    catalogue: Catalogue,
    users: UserHistories,
    *,
    transform_graph_dir: str,
    storage: str = "float32",
    encoder_storage: str | None = None,
) -> None:
    """Writes the served model to the folder `path`.

    Args:
        path: Folder of the SavedModel; created.
        towers: What was trained: `ServedTowers.of(model)`.
        catalogue: State of the items.
        users: Histories behind `recommend_user`.
        transform_graph_dir: Output of Transform, with the item vocabulary.
        storage: Codec of the item vectors (`models.compression.codecs`).
        encoder_storage: Of the encoder's matrices; None = that of the item vectors, int8 where it has none such.

    Raises:
        ExportError, CompressionError, RetrievalError: For pieces that do not fit or cannot be served.
    """
    model = ServedModel(
        towers,
        catalogue,
        users,
        transform_graph_dir=transform_graph_dir,
        storage=storage,
        encoder_storage=encoder_storage or (storage if storage in ("float32", "bfloat16") else "int8"),
    )
    # A served model is never differentiated: gradients of custom operations stay out of the file.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(model, path, signatures=serving_signatures(model), options=options)
    strip_saved_model(path)


def item_vocabulary_file(transform_graph_dir: str) -> str:
    """Transform's vocabulary of item ids: one id a line, in row order."""
    return str(Path(transform_graph_dir) / "transform_fn" / "assets" / "items")


def _check_rows(num_rows: int, towers: ServedTowers, catalogue: Catalogue) -> None:
    sizes = {
        "item vectors": len(towers.vectors),
        "item biases": len(towers.bias),
        "live flags": len(catalogue.live),
        "train event counts": len(catalogue.train_events),
    }
    for name, size in sizes.items():
        if size != num_rows:
            raise ExportError(
                f"the item vocabulary has {num_rows - 1} ids, so {num_rows} rows are needed with the padding row, but "
                f"there are {size} {name}; export with the Transform output the model was trained on"
            )
