"""The search: KerasTuner proposes, trials answer, one at a time here or several in processes of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras_tuner
from keras_tuner.engine import base_tuner
from keras_tuner.engine.trial import TrialStatus

from models.training_data import TrainingData
from models.tuning.space import SearchRange, TunerConfig, preset_values
from models.tuning.trial import TrialRequest, TrialResult, impossible, run_trial

OBJECTIVE = keras_tuner.Objective("ndcg_at_10", "max")
PRESET_TRIAL = "preset"
IDLE_SECONDS = 0.2
DEFAULT_TRIALS = 10
ERROR_CHARACTERS = 500


@dataclass(frozen=True)
class TrialRow:
    """One line of the tuner's report: the values tried and what came of them."""

    trial: str
    values: Mapping[str, Any]
    result: TrialResult

    def to_json(self, chosen: bool) -> dict[str, Any]:
        """The row as plain numbers; `feasible` is False outside the budget."""
        return {
            "trial": self.trial,
            "values": dict(self.values),
            "chosen": chosen,
            "feasible": not self.result.reason,
            **dataclasses.asdict(self.result),
        }


class NoFeasibleTrial(ValueError):
    """No trial, and not the preset itself, is inside the budget."""


class TrialMemory:
    """Finished trials in a file, by their values: the algorithms propose the same again after a kill.

    Args:
        file: One JSON record a line; None remembers nothing.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self._known: dict[str, TrialResult] = {}
        if file is not None and file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # a line that a kill has torn
                    record = json.loads(line)
                    self._known[record["key"]] = TrialResult(**record["result"])

    def recall(self, values: Mapping[str, Any]) -> TrialResult | None:
        """The result of these values, if their trial has ended."""
        return self._known.get(_key(values))

    def keep(self, values: Mapping[str, Any], result: TrialResult) -> None:
        """Writes a result down."""
        if self.file is None:
            return
        self._known[_key(values)] = result
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as lines:
            record = {"key": _key(values), "result": dataclasses.asdict(result)}
            lines.write("\n" + json.dumps(record) + "\n")  # on a line of its own, whatever was torn before

    def forget(self) -> None:
        """Removes the file."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)


def _key(values: Mapping[str, Any]) -> str:
    """What decides a trial; KerasTuner's bookkeeping does not, but for Hyperband's epochs."""
    kept = {key: value for key, value in values.items() if "/" not in key or key == "tuner/epochs"}
    return json.dumps(kept, sort_keys=True)


class SettingsTuner(base_tuner.BaseTuner):
    """KerasTuner's oracle over the preset's space; the preset's own values are the trial to beat.

    Args:
        request: What every trial needs.
        epochs: Of the preset; the most that Hyperband gives a trial.
        directory: Where KerasTuner keeps its state.
        memory: Trials that ended before a kill.
        report: Receives one line per trial.
    """

    def __init__(
        self,
        request: TrialRequest,
        *,
        epochs: int,
        directory: str,
        memory: TrialMemory | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        self.request, self._report, self._memory = request, report, memory or TrialMemory()
        self.rows: list[TrialRow] = []
        self._lock = threading.Lock()
        super().__init__(make_oracle(request.tuner, epochs), directory=directory, project_name="search")

    def search(self, *fit_args: Any, data: TrainingData | None = None, **fit_kwargs: Any) -> None:
        """Runs trials until the algorithm has enough, or the time is over.

        Args:
            fit_args: Of KerasTuner's interface; none are taken.
            data: Of the trials that run here; read anew by trials in processes of their own.
            fit_kwargs: As `fit_args`.
        """
        started, tuner = time.monotonic(), self.request.tuner
        self.oracle.verbose = 0
        workers = tuner.parallel_trials or available_devices()
        run = _here(self.request, data) if workers == 1 and data is not None else _elsewhere(self.request, workers)
        self._add(PRESET_TRIAL, preset_values(self.request.config, tuner.space), run, worker=0)

        def work(worker: int) -> None:
            while not tuner.max_seconds or time.monotonic() - started < tuner.max_seconds:
                trial = self.oracle.create_trial(f"tuner{worker}")
                if trial.status == TrialStatus.STOPPED:
                    break
                if trial.status == TrialStatus.IDLE:
                    time.sleep(IDLE_SECONDS)
                    continue
                result = self._add(trial.trial_id, trial.hyperparameters.values, run, worker)
                self.oracle.update_trial(trial.trial_id, {OBJECTIVE.name: result.score})
                trial.status = TrialStatus.COMPLETED
                self.oracle.end_trial(trial)

        with ThreadPoolExecutor(workers) as threads:
            for finished in [threads.submit(work, worker) for worker in range(workers)]:
                finished.result()

    def _add(self, name: str, values: Mapping[str, Any], run: Any, worker: int) -> TrialResult:
        known = self._memory.recall(values)
        result: TrialResult = known or run(values, worker)
        with self._lock:
            self.rows.append(TrialRow(name, dict(values), result))
            if known is None:
                self._memory.keep(values, result)
        said = result.reason or f"ndcg@10 {result.ndcg_at_10:.4f}"
        shown = ", ".join(f"{key} = {_shown(value)}" for key, value in values.items() if "/" not in key)
        self._report(f"trial {name}: {said}  ({shown})  {result.seconds:.0f} s")
        return result

    @property
    def best(self) -> TrialRow:
        """The trial inside the budget with the highest ndcg@10; the preset where nothing is better.

        Raises:
            NoFeasibleTrial: If none is inside the budget.
        """
        inside = [row for row in self.rows if not row.result.reason]
        if not inside:
            nearest = max(self.rows, key=lambda row: row.result.score)
            raise NoFeasibleTrial(
                f"none of {len(self.rows)} trials is inside the budget of [tuner]; the nearest, {nearest.trial}, has "
                f"{nearest.result.reason}. Raise max_bytes or max_latency_ms, or let the space hold smaller models"
            )
        return max(inside, key=lambda row: (row.result.score, row.trial == PRESET_TRIAL))

    def get_best_hyperparameters(self, num_trials: int = 1) -> list[keras_tuner.HyperParameters]:
        """The chosen values, in KerasTuner's form, as TFX writes them."""
        best = make_space(self.request.tuner.space)
        best.values = dict(self.best.values)
        return [best]


def make_oracle(tuner: TunerConfig, epochs: int) -> keras_tuner.Oracle:
    """KerasTuner's algorithm of a configuration."""
    options = {"objective": OBJECTIVE, "hyperparameters": make_space(tuner.space), "tune_new_entries": False}
    options |= {"allow_new_entries": False, "seed": tuner.seed + 1}  # KerasTuner takes 0 for "any seed"
    if tuner.algorithm == "hyperband":
        return keras_tuner.oracles.HyperbandOracle(max_epochs=epochs, factor=tuner.hyperband_factor, **options)
    oracles = {
        "grid": keras_tuner.oracles.GridSearchOracle,
        "random": keras_tuner.oracles.RandomSearchOracle,
        "bayesian": keras_tuner.oracles.BayesianOptimizationOracle,
    }
    unlimited = None if tuner.algorithm == "grid" else DEFAULT_TRIALS
    return oracles[tuner.algorithm](max_trials=tuner.max_trials or unlimited, **options)


def make_space(space: Mapping[str, SearchRange]) -> keras_tuner.HyperParameters:
    """The space in KerasTuner's words."""
    parameters = keras_tuner.HyperParameters()
    for key, choices in space.items():
        sampling = {"min_value": choices.min, "max_value": choices.max, "sampling": choices.scale}
        if choices.values:
            parameters.Choice(key, list(choices.values), ordered=False)
        elif choices.is_whole and choices.scale == "linear":
            parameters.Int(key, **sampling, step=int(choices.step) or 1)
        elif choices.is_whole:
            parameters.Int(key, **sampling)
        else:
            parameters.Float(key, **sampling, step=choices.step or None)
    return parameters


def available_devices() -> int:
    """GPUs, or CPUs without any: how many trials go on at a time where the preset leaves it open."""
    from models.keras import tf

    return len(tf.config.list_physical_devices("GPU")) or len(os.sched_getaffinity(0))


def visible_gpus(count: int) -> list[str]:
    """Names of `count` GPUs for `CUDA_VISIBLE_DEVICES`: those that this process was given, if it was given some."""
    given = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (given or [str(number) for number in range(count)])[:count]


def _here(request: TrialRequest, data: TrainingData) -> Callable[[Mapping[str, Any], int], TrialResult]:
    return lambda values, worker: run_trial(request, values, data)


def _elsewhere(request: TrialRequest, workers: int) -> Callable[[Mapping[str, Any], int], TrialResult]:
    """Each trial in a process of its own: one that is killed for its memory costs that trial, not the search."""
    from models.keras import tf

    gpus = visible_gpus(len(tf.config.list_physical_devices("GPU")))
    threads = str(max(len(os.sched_getaffinity(0)) // workers, 1))
    limits = {"OMP_NUM_THREADS": threads, "TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": "1"}

    def run(values: Mapping[str, Any], worker: int) -> TrialResult:
        device = {"CUDA_VISIBLE_DEVICES": gpus[worker % len(gpus)]} if gpus else {}
        with tempfile.TemporaryDirectory(prefix="tandem-trial-") as folder:
            file = Path(folder) / "result.json"
            done = subprocess.run(
                [sys.executable, "-m", "models.tuning.trial"],
                input=request.to_json(values, str(file)),
                capture_output=True,
                text=True,
                env=os.environ | limits | device,
                check=False,
            )
            if done.returncode or not file.exists():
                return impossible(f"the trial's process ended with {done.returncode}: {_last_line(done.stderr)}")
            return TrialResult(**json.loads(file.read_text(encoding="utf-8")))

    return run


def _last_line(text: str) -> str:
    lines: Sequence[str] = text.strip().splitlines() or [""]
    return lines[-1][:ERROR_CHARACTERS]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


__all__ = [
    "NoFeasibleTrial",
    "SettingsTuner",
    "TrialMemory",
    "TrialRow",
    "available_devices",
    "make_oracle",
    "make_space",
    "visible_gpus",
]
