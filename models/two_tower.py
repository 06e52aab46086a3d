"""The two-tower model: a history encoder, a candidate tower and a dot product.

History tokens are rows of the candidate tower's own output, so one table of item vectors is stored
and served, and an item that training never saw works in histories through its content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import losses
from models.config import TwoTowerConfig
from models.context import unknown_context
from models.features import FeatureColumn, feature_column, item_embedding_column
from models.history_encoders import build_history_encoder
from models.keras import keras, tf  # before TFRS, which reads the Keras switch when imported
from models.precision import compute_precision
from models.randomness import random_stream
from models.time_gaps import HISTORY_GAPS
from models.towers import build_candidate_tower
from models.training_data import TEACHER_ROWS, TEACHER_SHARES, ItemFeatures

# isort: split
import tensorflow_recommenders as tfrs

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.npz"
ITEMS_FILE = "items.npz"


class TwoTowerModel(tfrs.Model):
    """Scores an item for a history as the dot product of two vectors, plus an optional prior.

    Args:
        config: Features, shape, loss.
        num_items: Items of the catalogue; rows are 1..num_items, 0 is padding.
        vocabulary_sizes: Words of each feature vocabulary, by vocabulary file name.
    """

    def __init__(
        self, config: TwoTowerConfig, num_items: int, vocabulary_sizes: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(name="two_tower")
        self.config = config
        self.num_items = num_items
        self.vocabulary_sizes = dict(vocabulary_sizes or {})
        self.candidate_columns = self._columns("candidate")
        self.query_columns = self._columns("query")
        self.context_columns = self._columns("context")
        self.id_column = item_embedding_column(config, num_items, self.vocabulary_sizes)
        self.candidate_tower = build_candidate_tower(config.model, num_items, self.candidate_columns, self.id_column)
        self.precision = compute_precision(config.training)
        self.history_encoder = build_history_encoder(
            config.model, num_items, self.query_columns, self.precision, config.training.packing, self.context_columns
        )
        self.prior_weight = self.add_weight(
            name="prior_weight", shape=(), initializer="zeros", trainable=config.model.popularity_prior
        )
        # Not learnt from the loss: `models.popularity_trend` sets it after fitting.
        self.trend = self.add_weight(name="trend", shape=(num_items + 1,), initializer="zeros", trainable=False)
        self._items: ItemFeatures | None = None
        self._item_tensors: dict[str, Any] = {}
        self._log_popularity: Any = None

    def _columns(self, tower: str) -> tuple[FeatureColumn, ...]:
        return tuple(feature_column(spec, self.vocabulary_sizes) for spec in self.config.tower_features(tower))

    @property
    def item_features(self) -> ItemFeatures:
        """The catalogue set by `set_item_features`.

        Raises:
            ValueError: If none was set.
        """
        if self._items is None:
            raise ValueError("the model has no catalogue yet; call `set_item_features` first")
        return self._items

    @property
    def item_embedding_rows(self) -> NDArray[np.int32]:
        """Row of every item in the table of id embeddings `(num_items + 1,)`; rare items may share one."""
        if self.id_column is None:
            return np.arange(self.num_items + 1, dtype=np.int32)
        return self.item_features.features[self.id_column.name][:, 0].astype(np.int32)

    def set_item_features(self, items: ItemFeatures, constant: Callable[..., Any] = tf.constant) -> None:
        """Gives the model its catalogue.

        Args:
            items: Features and events of every row.
            constant: Called with arrays and dtypes; `numpy.asarray` puts them into every graph that reads them.

        Raises:
            ValueError: If the catalogue has another size, or lacks a declared feature.
        """
        if items.num_items != self.num_items:
            raise ValueError(f"the catalogue has {items.num_items} items but the model was built for {self.num_items}")
        columns = [*self.candidate_columns, *([self.id_column] if self.id_column else [])]
        missing = [column.name for column in columns if column.name not in items.features]
        if missing:
            raise ValueError(f"the catalogue lacks the candidate features {missing}; it has {sorted(items.features)}")
        self._items = items
        self._item_tensors = {
            column.name: constant(items.features[column.name], np.float32 if column.is_numeric else np.int32)
            for column in columns
        }
        self._log_popularity = constant(log_popularity(items.train_events), np.float32)
        trained = np.flatnonzero(items.train_events[1:]) + 1
        self.num_trained = len(trained) or self.num_items
        # Items that training never sees stay out of the softmax: as negatives alone they would learn to be no answer.
        self._trained_rows = None if self.num_trained == self.num_items else np.concatenate([[0], trained])
        self._trained_place = np.zeros(self.num_items + 1, np.int32)
        self._trained_place[trained] = np.arange(1, len(trained) + 1)
        kind: str = self.config.loss.negative_sampling
        kind = {"gbce": "uniform", "in_batch": "frequency"}.get(self.loss_kind, kind)
        self.sampler = losses.NegativeSampler(items.train_events, kind, constant)

    def vectors_of(self, rows: Any, training: bool = False) -> Any:
        """Candidate vectors `(M, D)` of item rows `(M,)`; row 0 gives zeros."""
        inputs = {name: tf.gather(values, rows) for name, values in self._item_tensors.items()}
        return self.candidate_tower({"item_row": rows, **inputs}, training=training)

    def candidate_vectors(self, training: bool = False) -> Any:
        """Vectors of the whole catalogue, float32 `(num_items + 1, D)`; row 0 is zeros."""
        rows = tf.range(self.num_items + 1, dtype=tf.int32)
        return self.candidate_tower({"item_row": rows, **self._item_tensors}, training=training)

    def encode(self, vectors: Any, rows: Any, query_features: Mapping[str, Any], training: bool = False) -> Any:
        """Query vectors `(B, L, D)` after every position, from history vectors `(B, L, D)` and rows `(B, L)`."""
        return self.history_encoder(self.encoder_inputs(vectors, rows, query_features), training=training)

    def encoder_inputs(self, vectors: Any, rows: Any, query_features: Mapping[str, Any]) -> dict[str, Any]:
        """What the history encoder reads of a batch; gaps and contexts that it does not give are "not known"."""
        inputs = {column.name: query_features[column.name] for column in self.query_columns}
        if self.config.model.time_gaps:
            inputs[HISTORY_GAPS] = query_features.get(HISTORY_GAPS, tf.zeros_like(rows))
        for column in self.context_columns:
            given = query_features.get(column.name)
            inputs[column.name] = unknown_context(column, tf.shape(rows)[0]) if given is None else given
        return {"vectors": vectors, "rows": rows, **inputs}

    def query_vectors(self, rows: Any, query_features: Mapping[str, Any] | None = None, table: Any = None) -> Any:
        """Query vectors `(B, D)` of left-padded histories `(B, L)` (newest at L - 1).

        Args:
            rows: int32 item rows, 0 = padding; only the newest `max_history_length` are read.
            query_features: Padded transformed query features by name; with `time_gaps` also `history_gaps` `(B, L)`,
                and the contexts of the requests `(B, 1, width)`.
            table: `candidate_vectors()` if the caller has it already.
        """
        length = self.config.model.max_history_length
        rows, query_features = tf.convert_to_tensor(rows, tf.int32)[:, -length:], dict(query_features or {})
        if HISTORY_GAPS in query_features:
            query_features[HISTORY_GAPS] = query_features[HISTORY_GAPS][:, -length:]
        table = self.candidate_vectors() if table is None else table
        return self.encode(tf.gather(table, rows), rows, query_features)[:, -1]

    def learnt_prior(self) -> Any:
        """The learnt multiple of log popularity, float32 `(num_items + 1,)`; part of the training loss."""
        if self._log_popularity is None:
            raise ValueError("the model has no catalogue yet; call `set_item_features` first")
        return self.prior_weight * self._log_popularity

    def item_bias(self) -> Any:
        """What is added to every answered score of an item, float32 `(num_items + 1,)`: learnt prior and trend."""
        return self.learnt_prior() + self.trend

    @property
    def scores_are_probabilities(self) -> bool:
        """True for a least-squares model, whose scores estimate probabilities; the others' are logits."""
        return self.config.loss.kind == "least_squares"

    def compute_loss(self, inputs: Mapping[str, Any], training: bool = False, total: Any = None) -> Any:
        """Weighted mean loss per target of the global batch, as this replica's share: shares add up over replicas.

        Args:
            inputs: `rows` int32 `(B, L)` (negative where a history begins, if several share a row) and `labels`
                int32 `(B, L)` (the item after each position; 0 = none), both left-padded, the query features, the
                labels' contexts `(B, L, width)`, and optionally `weights` float `(B, L)` of the labels (`in_batch`
                takes a positive weight as 1) and a teacher's `teacher_rows` int32 and `teacher_shares` float32
                `(B, L, K)` (`models.distillation`).
            training: Whether dropout is active.
            total: Weight of the global batch, if `inputs` are a part of a replica's share; None = they are all of it.

        Returns:
            float32 scalar.
        """
        weights = self._label_weights(inputs)
        total = sum_over_replicas(tf.reduce_sum(weights)) if total is None else total
        return self.losses_by_kind[self.loss_kind](inputs, weights, training) / tf.maximum(total, 1e-6)

    def _label_weights(self, inputs: Mapping[str, Any]) -> Any:
        """Weight of each label `(B, L)`, 0 where there is none."""
        weights = tf.cast(tf.not_equal(inputs["labels"], 0), tf.float32)
        return weights * inputs["weights"] if "weights" in inputs and self.loss_kind != "in_batch" else weights

    @property
    def loss_kind(self) -> str:
        """The configured loss, or `sampled_softmax` where the catalogue is too large for `full_softmax`."""
        loss = self.config.loss
        too_large = loss.kind == "full_softmax" and self.num_items > loss.full_softmax_limit
        return "sampled_softmax" if too_large else loss.kind

    @property
    def losses_by_kind(self) -> Mapping[str, Any]:
        """Loss functions `(inputs, weights (B, L), training)` to the weighted sum over this replica."""
        return {
            "full_softmax": self._full_softmax,
            "sampled_softmax": self._sampled_softmax,
            "in_batch": self._in_batch,
            "gbce": self._gbce,
        }

    def _queries(self, vectors: Any, inputs: Mapping[str, Any], training: bool) -> Any:
        """Query vectors `(B, L, D + 1)` over the temperature; the last 1 multiplies the item's bias."""
        queries = self.encode(vectors, inputs["rows"], inputs, training) / self.config.loss.temperature
        return tf.concat([queries, tf.ones_like(queries[..., :1])], axis=-1) if self.has_bias else queries

    def _with_bias(self, vectors: Any, rows: Any = None) -> Any:
        """Candidate vectors with the bias as last column, if the model has one."""
        if not self.has_bias:
            return vectors
        bias = self.learnt_prior() if rows is None else tf.gather(self.learnt_prior(), rows)
        return tf.concat([vectors, bias[:, tf.newaxis]], axis=-1)

    @property
    def has_bias(self) -> bool:
        """True if scores hold the popularity prior."""
        return self.config.model.popularity_prior

    def _full_softmax(self, inputs: Mapping[str, Any], weights: Any, training: bool) -> Any:
        table = self.candidate_vectors(training)
        queries = self._queries(tf.gather(table, tf.abs(inputs["rows"])), inputs, training)
        labels = inputs["labels"]
        table = self._with_bias(table)
        taught = 0.0
        if TEACHER_ROWS in inputs:
            lists = tf.gather(table, inputs[TEACHER_ROWS])
            taught = self._taught(queries, tf.gather(table, labels), lists, inputs, weights)
        queries = tf.reshape(queries, [-1, queries.shape[-1]])
        labels, weights = tf.reshape(labels, [-1]), tf.reshape(weights, [-1])
        if self._trained_rows is not None:
            table = tf.gather(table, self._trained_rows)
            labels = tf.gather(self._trained_place, labels)
            weights = tf.where(labels > 0, weights, 0.0)
        if self.precision == "bfloat16":
            queries, table = tf.cast(queries, tf.bfloat16), tf.cast(table, tf.bfloat16)
        return losses.full_softmax_loss(queries, labels, weights, table) + taught

    def _taught(self, queries: Any, labels: Any, lists: Any, inputs: Mapping[str, Any], weights: Any) -> Any:
        """What the teacher's lists add to the weighted sum; 0 without a teacher (`lists` is None)."""
        if lists is None:
            return 0.0
        shares = inputs[TEACHER_SHARES] * self.config.distillation.weight
        return tf.reduce_sum(losses.soft_target_difference(queries, labels, lists, shares) * weights)

    def _vectors_of_batch(self, inputs: Mapping[str, Any], negatives: Any, training: bool) -> tuple[Any, ...]:
        """Vectors of histories, labels, negatives and teacher lists (all but the first with bias), each row once."""
        rows, labels = tf.abs(inputs["rows"]), inputs["labels"]
        groups = (rows, labels, negatives, inputs.get(TEACHER_ROWS, tf.zeros([0], tf.int32)))
        distinct, index = tf.unique(tf.concat([tf.reshape(group, [-1]) for group in groups], axis=0))
        table = self.vectors_of(distinct, training)
        joint = self._with_bias(table, distinct)
        parts = tf.split(index, [tf.size(group) for group in groups], num=len(groups))
        rows, *others = (tf.reshape(part, tf.shape(group)) for part, group in zip(parts, groups, strict=True))
        labels, drawn, lists = (tf.gather(joint, part) for part in others)
        return tf.gather(table, rows), labels, drawn, lists if TEACHER_ROWS in inputs else None

    def _sampled_softmax(self, inputs: Mapping[str, Any], weights: Any, training: bool) -> Any:
        negatives = self.sampler.sample([self.config.loss.num_negatives])
        history, targets, others, lists = self._vectors_of_batch(inputs, negatives, training)
        queries = self._queries(history, inputs, training)
        taught = self._taught(queries, targets, lists, inputs, weights)
        per_query = losses.sampled_softmax_loss(
            tf.reshape(queries, [-1, queries.shape[-1]]),
            tf.reshape(targets, [-1, queries.shape[-1]]),
            tf.reshape(inputs["labels"], [-1]),
            others,
            negatives,
            self.sampler.log_counts(negatives) if self.config.loss.logq_correction else None,
            self.config.loss.hard_negatives,
        )
        return tf.reduce_sum(per_query * tf.reshape(weights, [-1])) + taught

    def _in_batch(self, inputs: Mapping[str, Any], weights: Any, training: bool) -> Any:
        history, targets, _, lists = self._vectors_of_batch(inputs, tf.zeros([0], tf.int32), training)
        queries = self._queries(history, inputs, training)
        taught = self._taught(queries, targets, lists, inputs, weights)
        kept = weights > 0
        labels = tf.boolean_mask(inputs["labels"], kept)
        return taught + losses.in_batch_loss(
            tf.boolean_mask(queries, kept),
            tf.boolean_mask(targets, kept),
            labels,
            self.sampler.probabilities(labels) if self.config.loss.logq_correction else None,
            self.config.loss.hard_negatives,
        )

    def _gbce(self, inputs: Mapping[str, Any], weights: Any, training: bool) -> Any:
        negatives = self.sampler.sample([tf.shape(inputs["rows"])[0], self.config.loss.num_negatives])
        history, targets, others, _ = self._vectors_of_batch(inputs, negatives, training)
        queries = self._queries(history, inputs, training)
        calibration = self.config.loss.gbce_calibration
        per_query = losses.gbce_loss(
            queries, targets, inputs["labels"], others, negatives, self.num_trained, calibration
        )
        return tf.reduce_sum(per_query * weights)

    def train_step(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """One optimiser step on this replica's part of the global batch.

        Gradients are summed over replicas before they are clipped, so that N replicas take the step
        one device would take on the joint batch.

        Returns:
            `loss` of the global batch and `gradient_norm` before clipping.
        """
        with random_stream(self.config.training.seed, self.optimizer.iterations):
            loss, gradients = self._accumulated(inputs)
        if self.scales_loss:
            gradients = self.optimizer.get_unscaled_gradients(gradients)
        variables = self.trainable_variables
        pairs = [(grad, variable) for grad, variable in zip(gradients, variables, strict=True) if grad is not None]
        gradients = [self._dense_if_whole(grad) for grad, _ in pairs]
        gradients = [distinct_rows(grad) for grad in sum_over_replicas(gradients)]
        norm = tf.linalg.global_norm(gradients)
        if self.config.training.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self.config.training.clip_norm, use_norm=norm)
        self.optimizer.apply_gradients(
            zip(gradients, [variable for _, variable in pairs], strict=True), skip_gradients_aggregation=True
        )
        return {"loss": sum_over_replicas(loss), "gradient_norm": norm}

    def _accumulated(self, inputs: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        """Loss and gradients of this replica's share, summed over its parts, one part in memory at a time."""
        count = self.config.training.accumulate_steps
        total = sum_over_replicas(tf.reduce_sum(self._label_weights(inputs)))
        parts = [inputs] if count == 1 else _parts(inputs, count)
        loss, gradients = self._loss_and_gradients(parts[0], total)
        for part in parts[1:]:
            # Without an order TensorFlow would run the parts side by side and hold all of them.
            done = [gradient for gradient in gradients if gradient is not None]
            with tf.control_dependencies([loss, *(getattr(gradient, "values", gradient) for gradient in done)]):
                part = {name: tf.identity(values) for name, values in part.items()}
            more_loss, more = self._loss_and_gradients(part, total)
            loss += more_loss
            gradients = [_sum(first, second) for first, second in zip(gradients, more, strict=True)]
        return loss, gradients

    def _loss_and_gradients(self, inputs: Mapping[str, Any], total: Any) -> tuple[Any, list[Any]]:
        with tf.GradientTape() as tape:
            loss = self.compute_loss(inputs, training=True, total=total)
            if self.losses:
                shares = tf.distribute.get_strategy().num_replicas_in_sync * self.config.training.accumulate_steps
                loss += tf.add_n(self.losses) / shares
            scaled = self.optimizer.get_scaled_loss(loss) if self.scales_loss else loss
        return loss, tape.gradient(scaled, self.trainable_variables)

    def _dense_if_whole(self, gradient: Any) -> Any:
        """The full softmax touches every row, so its sparse gradients are made dense: cheaper to apply."""
        return tf.convert_to_tensor(gradient) if self.loss_kind == "full_softmax" else gradient

    @property
    def scales_loss(self) -> bool:
        """True if the optimiser scales the loss (float16)."""
        return isinstance(self.optimizer, keras.mixed_precision.LossScaleOptimizer)

    def save(self, folder: str | Path) -> None:  # type: ignore[override]
        """Writes configuration, weights and catalogue to a folder that `load` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        items = self.item_features
        weights = {f"{index:04d}": value for index, value in enumerate(self.get_weights())}
        np.savez(folder / WEIGHTS_FILE, allow_pickle=False, **weights)
        arrays = {f"feature_{name}": values for name, values in items.features.items()}
        arrays |= {"live": items.live, "train_events": items.train_events}
        np.savez_compressed(folder / ITEMS_FILE, allow_pickle=False, **arrays)
        record = {
            "config": json.loads(self.config.model_dump_json()),
            "num_items": self.num_items,
            "vocabulary_sizes": self.vocabulary_sizes,
        }
        (folder / CONFIG_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def log_popularity(train_events: NDArray) -> NDArray[np.float32]:
    """Log of each item's events over the mean, float32 `(N + 1,)`; 0 at row 0.

    An item without events gets the mean of the others: nothing is known of it, which is no reason to bury it.
    """
    events = train_events.astype(np.float64) + 1.0
    logs = np.log(events / events[1:].mean())
    seen = train_events > 0
    seen[0] = False
    if seen.any():
        logs[~seen] = logs[seen].mean()
    logs[0] = 0.0
    return logs.astype(np.float32)


def _parts(inputs: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Batches of equal size that make up one; every `count`-th sequence, so that padding at the end spreads."""
    return [{name: values[start::count] for name, values in inputs.items()} for start in range(count)]


def _sum(first: Any, second: Any) -> Any:
    """Sum of two gradients of one variable; sparse ones stay sparse."""
    if first is None or second is None:
        return first if second is None else second
    if isinstance(first, tf.IndexedSlices) and isinstance(second, tf.IndexedSlices):
        values, rows = tf.concat([first.values, second.values], 0), tf.concat([first.indices, second.indices], 0)
        return tf.IndexedSlices(values, rows, first.dense_shape)
    return tf.convert_to_tensor(first) + tf.convert_to_tensor(second)


def sum_over_replicas(values: Any) -> Any:
    """Sum of tensors over the replicas in sync; the values themselves where there is one replica."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def distinct_rows(gradient: Any) -> Any:
    """A sparse gradient with every row once, so that its norm is that of the dense one; a dense one as it is."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, index = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, index, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def load(folder: str | Path) -> TwoTowerModel:
    """Rebuilds the model that `TwoTowerModel.save` wrote.

    Raises:
        ValueError: If the folder is not one that `save` wrote.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no {CONFIG_FILE}: it was not written by TwoTowerModel.save") from error
    config = TwoTowerConfig.model_validate(record["config"])
    model = TwoTowerModel(config, record["num_items"], record["vocabulary_sizes"])
    with np.load(folder / ITEMS_FILE) as arrays:
        features: dict[str, NDArray] = {
            name.removeprefix("feature_"): arrays[name] for name in arrays.files if name.startswith("feature_")
        }
        model.set_item_features(ItemFeatures(features, arrays["live"], arrays["train_events"]))
    with np.load(folder / WEIGHTS_FILE) as arrays:
        model.set_weights([arrays[name] for name in sorted(arrays.files)])
    return model


__all__ = ["TwoTowerModel", "load"]
