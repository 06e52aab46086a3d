"""Typed configuration of the model: features, towers, loss, training, compression, retrieval.

Every record refuses unknown keys and values out of range. `pipeline.config` composes these
records with those of `components.config`; TFX carries them as JSON text and the executors
rebuild the typed objects with `Model.model_validate_json`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

# Losses without a softmax, whose target a teacher could share.
UNTAUGHT_LOSSES = ("gbce", "least_squares")
# Serving inputs that are no features.
RESERVED_INPUTS = ("history", "exclude", "k", "history_timestamps", "user_id", "examples", "item_ids")
# Kinds with one value of fixed width an event.
CONTEXT_KINDS = ("categorical", "numeric", "timestamp", "elapsed")
_RAW_PREFIX = {"candidate": "item", "query": "user", "context": "context"}


def history_key(raw_name: str) -> str:
    """Key of the values beside `history` of what a request has under the key `raw_name`."""
    return f"history_{raw_name}"


class Record(BaseModel):
    """Base of all configuration records: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FeatureSpec(Record):
    """One feature of an item (candidate tower), a user (query tower) or a request (context, read by the query tower).

    Attributes:
        name: Name of the feature, also the name of the serving input unless `tower` is `candidate`.
        kind: How it is transformed: `categorical` (one value, vocabulary), `multi_valued` (a list,
            vocabulary), `numeric`, `timestamp` (seconds; hour, weekday and, but for a context, recency), `text`
            (word n-grams, hashed), `elapsed` (of a context: seconds since the newest event of the history, in
            logarithmic buckets; SequenceGen takes them from the times of the events).
        tower: Which tower reads it. A `context` is what is known when the request is made: device, page, hour. It
            is learnt from the events, each of which answered a request.
        column: Column of `items.*`, `users.*` or, of a context, `interactions.*`; the name when empty.
        embedding_dim: Width of each embedding vector.
        vocabulary_size: Largest vocabulary, or number of hash buckets for `text`.
        min_count: Occurrences that a new value needs for a row of its own; a value that has one keeps it.
        oov_buckets: Rows shared by the values without one: rare, unknown, or too many.
        normalization: Of a `numeric` feature.
        num_buckets: Quantile buckets of a `numeric` feature with `bucketize`.
        ngrams: Longest word n-gram of `text`.
        max_values: Values kept of a `multi_valued` or `text` feature.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    kind: Literal["categorical", "multi_valued", "numeric", "timestamp", "text", "elapsed"]
    tower: Literal["candidate", "query", "context"]
    column: str = ""
    embedding_dim: int = Field(16, ge=1, le=1024)
    vocabulary_size: int = Field(10_000, ge=1, le=10_000_000)
    min_count: int = Field(1, ge=1)
    oov_buckets: int = Field(1, ge=1, le=100_000)
    normalization: Literal["zscore", "log", "bucketize"] = "zscore"
    num_buckets: int = Field(10, ge=2, le=1000)
    ngrams: int = Field(1, ge=1, le=3)
    max_values: int = Field(24, ge=1, le=512)

    @model_validator(mode="after")
    def _can_be_asked_with(self) -> FeatureSpec:
        if self.tower == "context" and self.kind not in CONTEXT_KINDS:
            raise ValueError(
                f"feature {self.name!r} is a context, which has one value a request, but kind = {self.kind!r}; choose "
                f"one of {', '.join(CONTEXT_KINDS)}"
            )
        if self.kind == "elapsed" and (self.tower != "context" or self.column):
            raise ValueError(
                f"feature {self.name!r}: kind = 'elapsed' is the time since the newest event of the history, a context "
                "without a column; set tower = 'context' and leave `column` out"
            )
        if self.tower != "candidate" and self.name in RESERVED_INPUTS:
            raise ValueError(
                f"feature {self.name!r} would be an input of `recommend`, which has one of that name; choose another "
                f"name and say `column = {self.source_column!r}`"
            )
        return self

    @property
    def source_column(self) -> str:
        """Column of the raw table that holds the feature."""
        return self.column or self.name

    @property
    def raw_name(self) -> str:
        """Key of the raw value in the examples SequenceGen writes: `item_…`, `user_…` or `context_…`."""
        return f"{_RAW_PREFIX[self.tower]}_{self.source_column}"

    @property
    def learnt_name(self) -> str:
        """Key of the raw values that vocabularies and means come from: of a context, those of the history's events."""
        return history_key(self.raw_name) if self.tower == "context" else self.raw_name

    @property
    def transformed_name(self) -> str:
        """Key of the transformed value: `candidate_…`, `query_…` or `context_…`."""
        return f"{self.tower}_{self.name}"


class ItemIdsConfig(Record):
    """Which items have an embedding of their own.

    Attributes:
        min_count: Train events that an item needs for a row of its own in the table of id embeddings; one that has a
            row keeps it. 0 = every item has one.
        oov_buckets: Rows shared by the items without one; content tells those apart.
    """

    min_count: int = Field(0, ge=0)
    oov_buckets: int = Field(64, ge=1, le=1_000_000)


class ModelConfig(Record):
    """Shape of the two towers.

    Attributes:
        embedding_dim: Width of query and candidate vectors.
        history_encoder: How the query tower reads the history.
        num_layers: Blocks of the encoder.
        num_heads: Attention heads; must divide `embedding_dim`.
        feed_forward_multiplier: Hidden units of a block's feed-forward part ÷ `embedding_dim`.
        positions: `learned` adds a vector per place to the items of `transformer` and `hstu`; `rotary` turns the
            queries and keys of the transformer, so that attention sees distances alone.
        feed_forward_units: The hidden units themselves; 0 = by the multiplier.
        attention_width: Width of a block's queries, keys and values together; 0 = `embedding_dim`.
        feed_forward_activation: Of a transformer block; `swiglu` is a product of two matrices' outputs.
        residual_gates: What a part of a transformer block adds passes a gate set by the part's input. With `swiglu` the
            form of eSASRec.
        shared_items: An item in a history is its candidate vector. False adds a second vector to it, so that what an
            item tells of a taste is learnt apart from what makes it an answer; `wide` always has that table.
        max_history_length: Newest items the encoder reads, in training and serving.
        dropout: Of the encoder.
        id_dropout: Share of items whose id embedding is hidden per training step, so that content
            alone must carry them (cold items).
        context_dropout: Share of the training positions whose context is hidden, so that a request without one is
            answered from its history; more where many requests have none.
        use_item_ids: False trains content features only.
        normalize: L2-normalise query and candidate vectors.
        popularity_prior: Adds a learnt multiple of log popularity to every score.
        time_gaps: Adds to every item of the history what the time since the item before tells, in logarithmic buckets;
            `recommend` gets the input `history_timestamps`. For `gru`, `transformer` and `hstu`.
    """

    embedding_dim: int = Field(64, ge=4, le=1024)
    history_encoder: Literal["mean", "wide", "gru", "transformer", "hstu"] = "transformer"
    num_layers: int = Field(2, ge=1, le=16)
    num_heads: int = Field(2, ge=1, le=16)
    feed_forward_multiplier: int = Field(4, ge=1, le=8)
    positions: Literal["learned", "rotary"] = "learned"
    feed_forward_units: int = Field(0, ge=0, le=16_384)
    attention_width: int = Field(0, ge=0, le=4096)
    feed_forward_activation: Literal["relu", "swiglu"] = "relu"
    residual_gates: bool = False
    shared_items: bool = True
    max_history_length: int = Field(200, ge=1, le=4096)
    dropout: float = Field(0.2, ge=0, lt=1)
    id_dropout: float = Field(0.0, ge=0, lt=1)
    context_dropout: float = Field(0.1, ge=0, lt=1)
    use_item_ids: bool = True
    normalize: bool = False
    popularity_prior: bool = False
    time_gaps: bool = False

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.attention_dim % self.num_heads:
            name = "attention_width" if self.attention_width else "embedding_dim"
            raise ValueError(
                f"num_heads = {self.num_heads} does not divide {name} = {self.attention_dim}; choose a divisor"
            )
        return self

    @model_validator(mode="after")
    def _gaps_are_read(self) -> ModelConfig:
        if self.time_gaps and self.history_encoder in ("mean", "wide"):
            raise ValueError(
                f"time_gaps = true tells the encoder which items belong together, but history_encoder = "
                f'"{self.history_encoder}" takes a mean of all; leave time_gaps out, or choose gru, transformer or hstu'
            )
        return self

    @model_validator(mode="after")
    def _rotary_needs_pairs(self) -> ModelConfig:
        if self.positions == "rotary":
            if self.history_encoder != "transformer":
                raise ValueError(
                    f'positions = "rotary" turns the transformer\'s queries and keys; history_encoder = '
                    f'"{self.history_encoder}" has none: leave `positions` out'
                )
            if self.attention_dim // self.num_heads % 2:
                raise ValueError(
                    f"rotary positions turn pairs of features, but a head has {self.attention_dim // self.num_heads}; "
                    "choose embedding_dim / num_heads even"
                )
        return self

    @model_validator(mode="after")
    def _only_blocks_have_parts(self) -> ModelConfig:
        if self.history_encoder == "transformer":
            return self
        for key in ("residual_gates", "feed_forward_activation"):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f'{key} is a setting of transformer blocks, and history_encoder = "{self.history_encoder}" has '
                    f"none; leave {key} out, or choose transformer"
                )
        return self

    @property
    def has_history_table(self) -> bool:
        """True if items in a history have a vector beside their candidate vector."""
        return self.history_encoder == "wide" or not self.shared_items

    @property
    def attention_dim(self) -> int:
        """Width of a block's queries."""
        return self.attention_width or self.embedding_dim

    @property
    def feed_forward_dim(self) -> int:
        """Hidden units of a block's feed-forward part."""
        return self.feed_forward_units or self.embedding_dim * self.feed_forward_multiplier


class LossConfig(Record):
    """Training loss.

    Attributes:
        kind: `full_softmax` scores every item; `sampled_softmax` scores `num_negatives` shared
            negatives; `in_batch` uses `tfrs.tasks.Retrieval`; `gbce` is gSASRec's. `least_squares` is EASE's
            regression, solved in closed form for the `wide` encoder: seconds, no epochs.
        num_negatives: Negatives per batch (`sampled_softmax`) or per position (`gbce`).
        negative_sampling: Where sampled negatives come from.
        logq_correction: Subtract the log sampling probability (Yi et al., RecSys 2019).
        hard_negatives: Compare each query with so many of its negatives only, those it scores highest
            (`sampled_softmax`, `in_batch`); 0 = with all of them.
        temperature: Divides the logits.
        gbce_calibration: The `t` of gBCE (Petrov and Macdonald, RecSys 2023).
        l2: Ridge penalty of `least_squares`, in events.
        full_softmax_limit: Largest catalogue for `full_softmax`; above it `sampled_softmax` is used.
    """

    kind: Literal["full_softmax", "sampled_softmax", "in_batch", "gbce", "least_squares"] = "full_softmax"
    num_negatives: int = Field(512, ge=1, le=65_536)
    negative_sampling: Literal["uniform", "frequency", "mixed"] = "uniform"
    logq_correction: bool = True
    hard_negatives: int = Field(0, ge=0)
    temperature: float = Field(1.0, gt=0, le=100)
    gbce_calibration: float = Field(0.75, ge=0, le=1)
    l2: float = Field(400.0, gt=0)
    full_softmax_limit: int = Field(100_000, ge=1)

    @model_validator(mode="after")
    def _hard_negatives_are_drawn(self) -> LossConfig:
        if not self.hard_negatives:
            return self
        if self.kind not in ("sampled_softmax", "in_batch"):
            raise ValueError(
                f"hard_negatives = {self.hard_negatives} picks among the negatives of sampled_softmax or in_batch, but "
                f"kind = {self.kind!r}; set it to 0 or choose one of those"
            )
        if self.kind == "sampled_softmax" and self.hard_negatives > self.num_negatives:
            raise ValueError(
                f"hard_negatives = {self.hard_negatives} is more than num_negatives = {self.num_negatives}; lower it"
            )
        return self


class TrainingConfig(Record):
    """How the model is fitted.

    Attributes:
        strategy: `tf.distribute` strategy; `mirrored` uses every visible GPU and one device where
            there is at most one; `multi_worker_mirrored` the processes that `TF_CONFIG` names, all in step;
            `parameter_server` the workers and servers that it names, none waiting for another.
        worker_timeout_seconds: How long a worker waits for the others before it gives up.
        parameter_shard_bytes: With `parameter_server` a variable is cut into shards of at least so many bytes, at most
            one for each server.
        epochs: Upper bound.
        item_initialization: Start of the item id embeddings: a factorisation of what occurs together in the
            train histories (seconds, saves epochs), or noise.
        batch_size: Sequences in a global batch, over all replicas.
        accumulate_steps: Parts into which every replica cuts its share of a batch; their gradients are summed before
            the optimiser's step, so that a batch needs the memory of a part. `in_batch` compares within a part.
        learning_rate: Peak rate of Adam.
        schedule: Of the learning rate after the warm-up.
        warmup_steps: Steps of linear warm-up.
        weight_decay: Decoupled weight decay; 0 = Adam.
        clip_norm: Global gradient norm limit; 0 = none.
        early_stopping_patience: Validations without a better ndcg@10; 0 = never stop early.
        validate_every_epochs: Epochs between validations.
        validation_users: Users sampled for validation during training; 0 = all.
        max_train_seconds: Wall-clock budget, 0 = none. The schedule decays over it.
        recency_half_life_days: An event's weight in the loss halves for every so many days before the
            newest one, so that what was popular lately counts; 0 = all events count alike.
        label_horizon: A position's label is drawn anew each epoch from so many events after it; 1 = the next one.
            More suits data where the order within a visit means nothing, and targets far ahead.
        novel_labels: Skip labels that are in the history already: answers leave those items out.
        windows: Cut long histories into windows so that every event is trained on.
        packing: Put several short histories into one row of a batch, where none reads another, instead of padding each:
            for the transformer with rotary positions and without query features.
        popularity_trend: After fitting, correct the scores for what is popular lately, as far as validation gains.
        reuse: Folder of a trained model, the `training` folder beside its SavedModel: nothing is fitted, the model is
            carried over to the catalogue of this run, in which new items are known by their content.
        refit: After choosing epochs and trend on validation, fit again on all events and push that model. Gate and
            report judge the model that has not seen the test events, in the same compressed form.
        mixed_precision: Precision of the encoder's and the softmax's matrix products; softmax and loss stay float32.
            `auto` is bfloat16 where the CPU multiplies it in hardware, float32 elsewhere.
        jit_compile: XLA.
        seed: Of weights, shuffling and dropout.
    """

    strategy: Literal["one_device", "mirrored", "multi_worker_mirrored", "parameter_server"] = "mirrored"
    worker_timeout_seconds: float = Field(600, gt=0)
    parameter_shard_bytes: int = Field(2**20, ge=1)
    epochs: int = Field(20, ge=1, le=10_000)
    item_initialization: Literal["co_occurrence", "random"] = "co_occurrence"
    batch_size: int = Field(128, ge=1, le=65_536)
    accumulate_steps: int = Field(1, ge=1, le=256)
    learning_rate: float = Field(1e-3, gt=0, le=10)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.0, ge=0, le=1)
    clip_norm: float = Field(0.0, ge=0)
    early_stopping_patience: int = Field(3, ge=0)
    validate_every_epochs: int = Field(1, ge=1)
    validation_users: int = Field(0, ge=0)
    max_train_seconds: float = Field(0.0, ge=0)
    recency_half_life_days: float = Field(default=0.0, ge=0)
    label_horizon: int = Field(default=1, ge=1, le=1000)
    novel_labels: bool = True
    windows: bool = True
    packing: bool = False
    popularity_trend: bool = False
    refit: bool = False
    reuse: str = ""
    mixed_precision: Literal["float32", "auto", "bfloat16", "float16"] = "float32"
    jit_compile: bool = False
    seed: int = Field(42, ge=0)


class DistillationConfig(Record):
    """Trains the model as the student of a larger teacher.

    Attributes:
        enabled: False trains on labels alone.
        teacher: Folder of a trained model, the `training` folder beside its SavedModel; empty = the teacher is
            trained first, in the same Trainer run.
        model: Keys of `[model]` in which a teacher trained here differs, such as `{ embedding_dim = 256 }`.
        training: Keys of `[training]` in which its training differs.
        top_k: Items of each list that the teacher leaves for an event.
        temperature: Divides the teacher's scores before they become shares; higher spreads them.
        weight: Share of the teacher's list in the target; the label has the rest.
    """

    enabled: bool = False
    teacher: str = ""
    model: dict[str, Any] = {}
    training: dict[str, Any] = {}
    top_k: int = Field(20, ge=1, le=1000)
    temperature: float = Field(1.0, gt=0, le=100)
    weight: float = Field(0.5, gt=0, le=1)

    @model_validator(mode="after")
    def _one_teacher(self) -> DistillationConfig:
        described = bool(self.model or self.training)
        if self.enabled and self.teacher and described:
            raise ValueError(
                "`teacher` names a trained model, so `model` and `training` have nothing to say; drop them or `teacher`"
            )
        if self.enabled and not self.teacher and not self.model:
            raise ValueError(
                "there is no teacher: name the folder of a trained model as `teacher`, or say in `model` how a teacher "
                "trained first is larger, e.g. model = { embedding_dim = 256 }"
            )
        return self


class CompressionConfig(Record):
    """What the Compressor tries and what it may cost.

    Attributes:
        variants: Names of variants to try beside `float32`, cheapest search order first. A `+` joins
            techniques: `prune50+int8`.
        max_loss: Relative loss of ndcg@10 allowed against `float32`.
        max_slice_loss: The same for the worst slice.
        combine: After the listed variants, try what the good ones make together.
        fine_tune_epochs: Epochs after removal, pruning or of quantisation-aware training.
        student_epochs: Epochs of a student, at most; 0 = those of `[training]`. They fit into half of `max_seconds`.
        max_seconds: Wall-clock budget of the search; variants not reached are reported as such.
        max_training_share: The same as a multiple of the training time, where that is known; the smaller one holds.
        quality_users: Users sampled for the quality measurement; 0 = all.
        latency_requests: Requests timed for each variant.
        num_threads: Threads of the measuring server process.
    """

    variants: tuple[str, ...] = ("int8", "prune50+int8", "qat+int8")
    max_loss: float = Field(0.01, ge=0, le=1)
    max_slice_loss: float = Field(0.03, ge=0, le=1)
    combine: bool = True
    fine_tune_epochs: int = Field(1, ge=1, le=100)
    student_epochs: int = Field(0, ge=0, le=10_000)
    max_seconds: float = Field(600, gt=0)
    max_training_share: float = Field(1.0, gt=0)
    quality_users: int = Field(2000, ge=0)
    latency_requests: int = Field(200, ge=10)
    num_threads: int = Field(1, ge=1)


class RetrievalConfig(Record):
    """Top-k in the served graph.

    Attributes:
        method: `auto` is exact up to `exact_limit` candidates, partitioned above.
        exact_limit: Crossover of `auto`.
        recall_target: Recall@10 against exact search that a partitioned index must reach.
        default_k: Results of `serving_default`.
    """

    method: Literal["auto", "exact", "partitioned"] = "auto"
    exact_limit: int = Field(30_000, ge=1)
    recall_target: float = Field(0.95, gt=0, le=1)
    default_k: int = Field(100, ge=1, le=1000)


class TwoTowerConfig(Record):
    """All that run_fn, preprocessing_fn and the Compressor need to know."""

    features: tuple[FeatureSpec, ...] = ()
    item_ids: ItemIdsConfig = ItemIdsConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    distillation: DistillationConfig = DistillationConfig()
    compression: CompressionConfig = CompressionConfig()
    retrieval: RetrievalConfig = RetrievalConfig()

    @model_validator(mode="after")
    def _least_squares_is_linear(self) -> TwoTowerConfig:
        if self.loss.kind == "least_squares":
            model = self.model
            if model.history_encoder != "wide" or not model.use_item_ids or model.normalize or model.popularity_prior:
                raise ValueError(
                    "loss.kind = 'least_squares' is solved in closed form for model.history_encoder = 'wide' with item "
                    "ids and without normalize and popularity_prior; change these keys, or choose a softmax loss"
                )
            if self.features:
                raise ValueError(
                    f"loss.kind = 'least_squares' learns nothing from features, but {self.features[0].name!r} is "
                    "declared; remove [[features]] or choose a softmax loss"
                )
        return self

    @model_validator(mode="after")
    def _ids_can_be_shared(self) -> TwoTowerConfig:
        if not self.item_ids.min_count:
            return self
        if not self.model.use_item_ids:
            raise ValueError(
                f"item_ids.min_count = {self.item_ids.min_count} shares id embeddings, but model.use_item_ids = false "
                "has none; leave min_count out"
            )
        if self.model.has_history_table:
            reason = "history_encoder = 'wide'" if self.model.history_encoder == "wide" else "shared_items = false"
            raise ValueError(
                f"item_ids.min_count = {self.item_ids.min_count} shares rows of the candidate tower's table, but "
                f"model.{reason} has a second table with a row per item; leave min_count out or change that key"
            )
        return self

    @model_validator(mode="after")
    def _elapsed_is_until_the_label(self) -> TwoTowerConfig:
        elapsed = [feature.name for feature in self.features if feature.kind == "elapsed"]
        if elapsed and self.training.label_horizon > 1:
            raise ValueError(
                f"feature {elapsed[0]!r} is the time since the event before, but training.label_horizon = "
                f"{self.training.label_horizon} asks a position for events further ahead; set it to 1 or leave the "
                "feature out"
            )
        return self

    @model_validator(mode="after")
    def _can_be_packed(self) -> TwoTowerConfig:
        if not self.training.packing:
            return self
        if self.model.history_encoder != "transformer" or self.model.positions != "rotary":
            raise ValueError(
                "training.packing = true needs an encoder that knows distances alone and can be kept from reading the "
                'histories beside: set model.history_encoder = "transformer" and model.positions = "rotary", or leave '
                "packing out"
            )
        if features := self.tower_features("query"):
            raise ValueError(
                f"training.packing = true puts several users into a row, but the query feature {features[0].name!r} "
                "has one value a row; leave packing out, or the feature"
            )
        return self

    @model_validator(mode="after")
    def _unique_names(self) -> TwoTowerConfig:
        seen: dict[tuple[bool, str], str] = {}
        for feature in self.features:
            key = (feature.tower == "candidate", feature.name)
            if seen.get(key) == feature.tower:
                raise ValueError(f"feature {feature.name!r} of the {feature.tower} tower is declared twice")
            if key in seen:
                raise ValueError(
                    f"feature {feature.name!r} is declared for the towers {seen[key]} and {feature.tower}, whose "
                    "features are inputs of one request; give one of them another name and say its `column`"
                )
            seen[key] = feature.tower
        columns = {feature.raw_name for feature in self.features if feature.kind != "elapsed"}
        for feature in self.features:
            if feature.kind == "elapsed" and feature.raw_name in columns:
                raise ValueError(
                    f"feature {feature.name!r} is the elapsed time, and another context reads a column of that name; "
                    "give the elapsed time another name"
                )
        return self

    @model_validator(mode="after")
    def _can_be_taught(self) -> TwoTowerConfig:
        if not self.distillation.enabled:
            return self
        if self.loss.kind in UNTAUGHT_LOSSES:
            raise ValueError(
                f"distillation mixes the teacher's shares into a softmax's target, and loss.kind = {self.loss.kind!r} "
                "has none; choose full_softmax, sampled_softmax or in_batch"
            )
        if self.teacher_config().model.time_gaps or self.model.time_gaps:
            raise ValueError(
                "distillation.enabled = true writes the teacher's lists from histories without times, so neither model "
                "may have time_gaps = true; leave one of the two out"
            )
        if contexts := self.tower_features("context"):
            raise ValueError(
                "distillation.enabled = true writes the teacher's lists from histories without a context, but the "
                f"feature {contexts[0].name!r} is one; leave one of the two out"
            )
        return self

    def teacher_config(self) -> TwoTowerConfig:
        """What a teacher that is trained first is trained with.

        Raises:
            ValueError: If `distillation.model` or `distillation.training` holds an unknown key or a bad value.
        """
        parts: dict[str, Any] = {}
        for section, changes in (("model", self.distillation.model), ("training", self.distillation.training)):
            record = getattr(self, section)
            try:
                parts[section] = type(record).model_validate(record.model_dump() | changes)
            except ValidationError as error:
                problem = error.errors()[0]
                key = ".".join(str(part) for part in problem["loc"])
                message = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"]
                raise ValueError(f"distillation.{section}.{key}: {message}") from None
        return TwoTowerConfig(
            features=self.features, item_ids=self.item_ids, loss=self.loss, retrieval=self.retrieval, **parts
        )

    def tower_features(self, tower: str) -> tuple[FeatureSpec, ...]:
        """Features of one tower, in the order of the preset."""
        return tuple(f for f in self.features if f.tower == tower)

    @property
    def request_features(self) -> tuple[FeatureSpec, ...]:
        """Features that are inputs of `recommend`: of the user and of the request, in the order of the preset."""
        return tuple(f for f in self.features if f.tower != "candidate")
