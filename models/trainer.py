"""`run_fn` of the TFX Trainer: read FnArgs, call the modules that do the work, stop."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from models.config import TrainingConfig, TwoTowerConfig
from models.distillation import taught
from models.distribution import is_chief, make_strategy, variables_scope
from models.fitting import EpochRecord, FitResult, fit
from models.initialization import clear_untrained_ids, initialize_item_embeddings
from models.input_pipeline import load_training_data
from models.keras import keras, tf
from models.linear_autoencoder import solve
from models.popularity_trend import Correction, apply_correction, choose_correction
from models.ranking import Ranker
from models.serving_graph.users import UserHistories
from models.training_data import TrainingData
from models.tuning.space import with_values
from models.two_tower import TwoTowerModel, load

TRAINING_FOLDER = "training"
REFITTED_FOLDER = "training_refitted"
HISTORY_FILE = "history.json"


def run_fn(fn_args: Any) -> None:
    """Trains, saves the weights beside the SavedModel, exports.

    Args:
        fn_args: TFX `FnArgs`; `custom_config["two_tower"]` holds the JSON of `TwoTowerConfig`, `hyperparameters` what
            the Tuner chose.
    """
    from models.carry_over import write_item_ids
    from models.export import Catalogue, ServedTowers, export_saved_model, item_vocabulary_file

    started = time.monotonic()
    config = chosen_config(fn_args)
    strategy = make_strategy(config.training)  # before TensorFlow runs anything: workers have to find each other first
    patterns = patterns_by_split([*fn_args.train_files, *fn_args.eval_files])
    data = load_training_data(patterns, fn_args.transform_graph_path, config)
    print(
        f"{len(data.train):,} histories with {len(data.train.rows.values):,} events, {data.items.num_items:,} items, "
        f"read in {time.monotonic() - started:.1f} s",
        flush=True,
    )
    trained = train(
        config,
        data,
        log_dir=fn_args.model_run_dir,
        checkpoint_dir=checkpoint_folder(fn_args),
        vocabulary_file=item_vocabulary_file(fn_args.transform_graph_path),
    )
    if not is_chief(strategy):
        return
    model = trained.model
    serving = PurePosixPath(fn_args.serving_model_dir)
    training = str(serving.parent / TRAINING_FOLDER)
    model.save(training)
    write_item_ids(training, item_vocabulary_file(fn_args.transform_graph_path))
    if trained.refitted is not None:
        trained.refitted.save(str(serving.parent / REFITTED_FOLDER))
        write_item_ids(str(serving.parent / REFITTED_FOLDER), item_vocabulary_file(fn_args.transform_graph_path))
    record = {**trained.result.to_json(), "popularity_trend": dataclasses.asdict(trained.correction)}
    with tf.io.gfile.GFile(f"{training}/{HISTORY_FILE}", "w") as file:
        file.write(json.dumps(record, indent=2) + "\n")
    export_saved_model(
        str(serving),
        ServedTowers.of(model),
        Catalogue(data.items.live, data.items.train_events),
        user_histories(data),
        transform_graph_dir=fn_args.transform_graph_path,
    )
    if tf.io.gfile.exists(checkpoint_folder(fn_args)):
        tf.io.gfile.rmtree(checkpoint_folder(fn_args))


def chosen_config(fn_args: Any) -> TwoTowerConfig:
    """The preset's configuration with what the Tuner found, if there is one."""
    config = TwoTowerConfig.model_validate_json(fn_args.custom_config["two_tower"])
    found = getattr(fn_args, "hyperparameters", None)
    return with_values(config, found["values"]) if found else config


def user_histories(data: TrainingData) -> UserHistories:
    """What `recommend_user` reads: all events of every user; the train events where there is no `all` split.

    Raises:
        ValueError: If the examples carry no user ids.
    """
    sequences = data.everything or data.train
    if sequences.user_ids is None:
        raise ValueError("the transformed examples lack `user_id`; run Transform again")
    return UserHistories(
        list(sequences.user_ids),
        sequences.rows.values,
        sequences.rows.splits,
        dict(sequences.features),
        sequences.timestamps.values if sequences.timestamps else None,
    )


@dataclass(frozen=True)
class Trained:
    """Outcome of `train`.

    Attributes:
        model: Fitted on the train split: what gate and report judge.
        refitted: Fitted in the same way on all events: what is pushed; None without `refit`.
        result: Of the fit that was validated.
        correction: Of the scores for what is popular lately.
    """

    model: TwoTowerModel
    refitted: TwoTowerModel | None
    result: FitResult
    correction: Correction


def train(
    config: TwoTowerConfig,
    data: TrainingData,
    *,
    teacher: TwoTowerModel | None = None,
    log_dir: str | None = None,
    checkpoint_dir: str | None = None,
    vocabulary_file: str = "",
) -> Trained:
    """Builds and fits a model; with `refit` a second one on all events, for the chosen number of epochs.

    Args:
        config: Of the model; with `distillation.enabled` it is a student.
        data: Histories and catalogue.
        teacher: A trained model to learn from, whatever `distillation` says of the teacher.
        log_dir: Folder for TensorBoard scalars; None = none.
        checkpoint_dir: Folder for checkpoints; None = none.
        vocabulary_file: Item ids in row order; looked at with `training.reuse` alone.
    """
    training = config.training
    if training.reuse:
        return _reused(config, data, vocabulary_file)
    if teacher is None and config.distillation.enabled:
        teacher = _teacher(config, data, _below(log_dir, "teacher"), _below(checkpoint_dir, "teacher"))
    if teacher is not None:
        data = taught(data, teacher, config.distillation, novel=training.novel_labels)
    model, result = _fit_new(config, data, training, log_dir, _below(checkpoint_dir, "fit"))
    correction = Correction("none")
    if training.popularity_trend and data.validation is not None:
        correction = choose_correction(model, data.train, data.validation, training.seed)
        apply_correction(model, correction, data.train)
        print(f"popularity trend: {correction}", flush=True)
    refitted = None
    if training.refit and data.everything is not None:
        print(f"refit on all events for {result.best_epoch} epochs", flush=True)
        events = np.bincount(data.everything.rows.values, minlength=data.items.num_items + 1)
        events[0] = 0
        items = dataclasses.replace(data.items, train_events=events)
        everything = TrainingData(items, data.everything, feature_sizes=data.feature_sizes)
        training = training.model_copy(update={"epochs": result.best_epoch, "max_train_seconds": 0.0})
        refitted, _ = _fit_new(config, everything, training, _below(log_dir, "refit"), _below(checkpoint_dir, "refit"))
        apply_correction(refitted, correction, data.everything)
    return Trained(model, refitted, result, correction)


def _reused(config: TwoTowerConfig, data: TrainingData, vocabulary_file: str) -> Trained:
    """The model that `training.reuse` names, and its refitted twin where it has one and the preset wants one."""
    from models.carry_over import carried_over

    folder = config.training.reuse
    model, result = carried_over(folder, config, data, vocabulary_file)
    twin = PurePosixPath(folder).parent / REFITTED_FOLDER
    refitted = None
    if config.training.refit and tf.io.gfile.isdir(str(twin)):
        refitted, _ = carried_over(str(twin), config, data, vocabulary_file)
    return Trained(model, refitted, result, Correction("none"))


def _teacher(
    config: TwoTowerConfig, data: TrainingData, log_dir: str | None, checkpoint_dir: str | None
) -> TwoTowerModel:
    """The teacher that `distillation` names, or one trained now; a killed run finds it in its checkpoints."""
    if config.distillation.teacher:
        return load(config.distillation.teacher)
    teacher_config = config.teacher_config()
    print("the teacher first", flush=True)
    teacher, result = _fit_new(teacher_config, data, teacher_config.training, log_dir, checkpoint_dir)
    print(f"teacher of {result.parameters:,} parameters: ndcg@10 {result.best_ndcg:.4f}; now the student", flush=True)
    return teacher


def _below(folder: str | None, name: str) -> str | None:
    return f"{folder}/{name}" if folder else None


def _fit_new(
    config: TwoTowerConfig,
    data: TrainingData,
    training: TrainingConfig,
    log_dir: str | None,
    checkpoint_dir: str | None,
) -> tuple[TwoTowerModel, FitResult]:
    keras.utils.set_random_seed(training.seed)
    strategy = make_strategy(training)
    with variables_scope(strategy):
        model = TwoTowerModel(config, data.items.num_items, data.feature_sizes)
        model.set_item_features(data.items)
        if config.loss.kind == "least_squares":
            model = in_float32(model)
            return model, _solve(model, data)
        if training.item_initialization == "co_occurrence":
            initialize_item_embeddings(model, data.train.rows, training.seed)
        clear_untrained_ids(model)
    result = fit(
        model,
        data,
        training,
        log_dir=log_dir,
        checkpoint_dir=checkpoint_dir,
        strategy=strategy,
        report=lambda line: print(line, flush=True),
    )
    return in_float32(model), result


def _solve(model: TwoTowerModel, data: TrainingData) -> FitResult:
    """The closed form of `least_squares`, validated once; its record is one epoch without steps."""
    began, cpu = time.monotonic(), time.process_time()
    solve(model, data.train.rows, model.config.loss.l2, model.config.training.seed)
    metrics = Ranker(model).evaluate(data.validation) if data.validation is not None else {}
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    ndcg = metrics.get("ndcg@10", math.nan)
    record = EpochRecord(
        epoch=1,
        steps=0,
        loss=math.nan,
        ndcg_at_10=ndcg,
        recall_at_100=metrics.get("recall@100", math.nan),
        seconds=seconds,
        cpu_seconds=cpu,
        learning_rate=0.0,
        examples_per_second=len(data.train.rows.values) / seconds,
        step_seconds=seconds,
        input_wait_seconds=0.0,
    )
    print(f"least squares solved  ndcg@10 {ndcg:.4f}  {seconds:.1f} s", flush=True)
    parameters = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    return FitResult((record,), 1, ndcg, seconds, cpu, parameters, 0, "closed form")


def in_float32(model: TwoTowerModel) -> TwoTowerModel:
    """The same model computing in float32: what is served must not need the trainer's CPU."""
    if model.precision == "float32":
        return model
    training = model.config.training.model_copy(update={"mixed_precision": "float32"})
    twin = TwoTowerModel(
        model.config.model_copy(update={"training": training}), model.num_items, model.vocabulary_sizes
    )
    twin.set_item_features(model.item_features)
    twin.set_weights(model.get_weights())
    return twin


def patterns_by_split(patterns: Sequence[str]) -> Mapping[str, list[str]]:
    """Sorts file patterns by the `Split-<name>` folder in them.

    Raises:
        ValueError: If a pattern holds no such folder.
    """
    splits: dict[str, list[str]] = {}
    for pattern in patterns:
        names = [part.removeprefix("Split-") for part in PurePosixPath(pattern).parts if part.startswith("Split-")]
        if not names:
            raise ValueError(f"the file pattern {pattern!r} holds no `Split-<name>` folder; give Transform's output")
        splits.setdefault(names[-1], []).append(pattern)
    return splits


def checkpoint_folder(fn_args: Any) -> str:
    """Where checkpoints lie while training runs.

    TFX gives every execution new folders, so a run that was killed and started again could not find its
    checkpoint there. The folder therefore lies beside the executions' folders and its name is a hash of
    what decides the training; it is removed when training ends.
    """
    parts = [fn_args.transform_graph_path, *sorted(fn_args.train_files), *sorted(fn_args.eval_files)]
    parts.append(json.dumps([fn_args.custom_config, getattr(fn_args, "hyperparameters", None)], sort_keys=True))
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return str(PurePosixPath(fn_args.model_run_dir).parent / f"checkpoints-{digest}")


__all__ = ["checkpoint_folder", "patterns_by_split", "run_fn", "train"]
