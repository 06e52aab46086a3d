"""One trial: train a configuration, rank the validation split, measure the SavedModel against the budget.

Run as a module it is one trial in a process of its own: the request as JSON on standard input, the result in
the file that the request names.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.config import TwoTowerConfig
from models.features import MISSING_INT64
from models.training_data import TrainingData
from models.tuning.space import TunerConfig, with_values

TIMED_REQUESTS = 100
WARM_UP_REQUESTS = 10
RESULTS = 10


@dataclass(frozen=True)
class TrialResult:
    """What came of a trial.

    Attributes:
        ndcg_at_10: On validation; None if the trial did not end.
        recall_at_100: The same.
        parameters: Trainable numbers.
        seconds, cpu_seconds: Of training and validation.
        saved_model_bytes: Of the exported model; None without a budget.
        p50_ms: Median time of `recommend` with one history, in process; None without a budget.
        excess: By how much the budget is exceeded, as a share of it; 0 inside, 1 for a trial that did not end.
        reason: Why the trial is out of the question; empty if it is not.
    """

    ndcg_at_10: float | None = None
    recall_at_100: float | None = None
    parameters: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    saved_model_bytes: int | None = None
    p50_ms: float | None = None
    excess: float = 0.0
    reason: str = ""

    @property
    def score(self) -> float:
        """What the search maximises: ndcg@10 inside the budget, below 0 outside and lower the further out."""
        return self.ndcg_at_10 if not self.reason and self.ndcg_at_10 is not None else -self.excess


def impossible(reason: str) -> TrialResult:
    """Result of values that cannot be trained with."""
    return TrialResult(excess=1.0, reason=reason)


@dataclass(frozen=True)
class TrialRequest:
    """Everything that a trial's process needs besides its values.

    Attributes:
        config: Of the preset.
        tuner: Budget and storage.
        patterns: Files of the transformed examples, by split.
        transform_graph_dir: Output of Transform.
    """

    config: TwoTowerConfig
    tuner: TunerConfig
    patterns: Mapping[str, Sequence[str]]
    transform_graph_dir: str

    def to_json(self, values: Mapping[str, Any], result_file: str) -> str:
        """The request for one trial's process."""
        record = {
            "config": self.config.model_dump(),
            "tuner": self.tuner.model_dump(),
            "patterns": {split: list(files) for split, files in self.patterns.items()},
            "transform_graph_dir": self.transform_graph_dir,
            "values": dict(values),
            "result_file": result_file,
        }
        return json.dumps(record)


def run_trial(request: TrialRequest, values: Mapping[str, Any], data: TrainingData) -> TrialResult:
    """Trains with `values` and measures; what cannot be trained is a result too.

    Args:
        request: Configuration and budget.
        values: By key of the space.
        data: As `load_training_data` read it.

    Raises:
        ValueError: If there is no validation split to judge by.
    """
    from models.ranking import Ranker
    from models.trainer import train

    if data.validation is None:
        raise ValueError("the Tuner judges by the validation split, and there is none; check [data.split]")
    try:
        config = with_values(request.config, values)
    except ValueError as error:
        return impossible(str(error))
    config = config.model_copy(update={"training": config.training.model_copy(update={"refit": False})})
    started = time.process_time(), time.monotonic()
    try:
        trained = train(config, data)
    except ValueError as error:  # The loss became NaN, most often.
        return impossible(str(error))
    fitted = trained.result
    best = fitted.history[max(fitted.best_epoch, 1) - 1]
    quality = {"ndcg@10": best.ndcg_at_10, "recall@100": best.recall_at_100}
    if trained.correction.mode != "none":
        quality = Ranker(trained.model).evaluate(data.validation)
    result = TrialResult(
        ndcg_at_10=quality["ndcg@10"],
        recall_at_100=quality["recall@100"],
        parameters=fitted.parameters,
        seconds=time.monotonic() - started[1],
        cpu_seconds=time.process_time() - started[0],
    )
    return _within_budget(result, trained.model, request, data) if request.tuner.has_budget else result


def _within_budget(result: TrialResult, model: Any, request: TrialRequest, data: TrainingData) -> TrialResult:
    """The result with bytes and latency, and a reason if one of them is over the budget."""
    tuner = request.tuner
    with tempfile.TemporaryDirectory(prefix="tandem-trial-") as folder:
        _export(folder, model, request, data)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        median = _median_ms(folder, request, data)
    over = {
        f"{size:,} bytes; {tuner.max_bytes:,} are allowed": size / tuner.max_bytes - 1 if tuner.max_bytes else 0.0,
        f"{median:.2f} ms a request; {tuner.max_latency_ms:g} ms are allowed": (
            median / tuner.max_latency_ms - 1 if tuner.max_latency_ms else 0.0
        ),
    }
    broken = {reason: excess for reason, excess in over.items() if excess > 0}
    return dataclasses.replace(
        result,
        saved_model_bytes=size,
        p50_ms=median,
        excess=max(broken.values(), default=0.0),
        reason="; ".join(broken),
    )


def _export(folder: str, model: Any, request: TrialRequest, data: TrainingData) -> None:
    from models.export import Catalogue, ServedTowers, export_saved_model
    from models.trainer import user_histories

    export_saved_model(
        folder,
        ServedTowers.of(model),
        Catalogue(data.items.live, data.items.train_events),
        user_histories(data),
        transform_graph_dir=request.transform_graph_dir,
        storage=request.tuner.storage,
    )


def _median_ms(folder: str, request: TrialRequest, data: TrainingData) -> float:
    """Median milliseconds of `recommend` for one history of the train split."""
    from models.export import item_vocabulary_file
    from models.keras import tf
    from models.serving_graph.items import read_vocabulary

    recommend = tf.saved_model.load(folder).signatures["recommend"]
    vocabulary = np.array([b"", *read_vocabulary(item_vocabulary_file(request.transform_graph_dir))], dtype=object)
    missing = {tf.string: "", tf.int64: MISSING_INT64, tf.float32: np.nan}
    inputs = {
        name: tf.fill([1] * spec.shape.rank, tf.constant(missing[spec.dtype], spec.dtype))
        for name, spec in recommend.structured_input_signature[1].items()
        if name not in ("history", "k")
    }
    rng, times = np.random.default_rng(0), []
    for number in range(WARM_UP_REQUESTS + TIMED_REQUESTS):
        user = int(rng.integers(len(data.train)))
        begin, end = data.train.rows.splits[user : user + 2]
        history = tf.constant(vocabulary[data.train.rows.values[begin:end]][None].tolist(), tf.string)
        started = time.perf_counter()
        recommend(**inputs, history=history, k=tf.constant(RESULTS))
        if number >= WARM_UP_REQUESTS:
            times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3


def main() -> None:
    """One trial of a search with several at a time."""
    record = json.load(sys.stdin)
    request = TrialRequest(
        TwoTowerConfig.model_validate(record["config"]),
        TunerConfig.model_validate(record["tuner"]),
        record["patterns"],
        record["transform_graph_dir"],
    )
    from models.input_pipeline import load_training_data

    data = load_training_data(request.patterns, request.transform_graph_dir, request.config)
    result = run_trial(request, record["values"], data)
    Path(record["result_file"]).write_text(json.dumps(dataclasses.asdict(result)), encoding="utf-8")


if __name__ == "__main__":
    main()
