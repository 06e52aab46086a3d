"""The Tuner's work: search, write the best values as TFX does, and the rows of all trials."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from tfx.components.trainer import fn_args_utils
from tfx.components.tuner import executor as tfx_tuner
from tfx.components.tuner.component import TunerFnResult
from tfx.types import artifact_utils
from tfx.types.standard_component_specs import BEST_HYPERPARAMETERS_KEY, TUNER_RESULTS_KEY

from components.artifacts import TRIALS_FILE
from models.config import TwoTowerConfig
from models.input_pipeline import load_training_data
from models.trainer import patterns_by_split
from models.tuning.search import SettingsTuner, TrialMemory
from models.tuning.space import TunerConfig
from models.tuning.trial import TrialRequest

# As TFX names it; the only file of its artifact, or the Trainer would not know which one to read.
BEST_VALUES_FILE = "best_hyperparameters.txt"


class Executor(tfx_tuner.Executor):
    """Executor of `SettingsSearch`."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> None:  # noqa: N802
        """Searches and writes; a search that was killed takes its finished trials from the file it left."""
        fn_args = fn_args_utils.get_common_fn_args(input_dict, exec_properties, self._get_tmp_dir())
        results = artifact_utils.get_single_uri(output_dict[TUNER_RESULTS_KEY])
        values = artifact_utils.get_single_uri(output_dict[BEST_HYPERPARAMETERS_KEY])
        memory = TrialMemory(_memory_file(fn_args, results))
        tuner, data = make_tuner(fn_args, memory)
        tuner.search(data=data)
        best = tuner.best
        # TFX's own writer asks KerasTuner for the best of `max_trials`, which Hyperband does not have.
        _write(Path(values) / BEST_VALUES_FILE, tuner.get_best_hyperparameters()[0].get_config())
        print(f"best: trial {best.trial}, ndcg@10 {best.result.ndcg_at_10:.4f}", flush=True)
        rows = [row.to_json(chosen=row is best) for row in tuner.rows]
        _write(Path(results) / TRIALS_FILE, {"algorithm": tuner.request.tuner.algorithm, "trials": rows})
        memory.forget()


def _write(file: Path, record: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def tuner_fn(fn_args: Any) -> TunerFnResult:
    """TFX's entry point of a tuner, for executors other than ours; it remembers no trial after a kill."""
    tuner, data = make_tuner(fn_args, TrialMemory())
    return TunerFnResult(tuner=tuner, fit_kwargs={"data": data})


def make_tuner(fn_args: Any, memory: TrialMemory) -> tuple[SettingsTuner, Any]:
    """The search of a node's arguments, and the data of trials that run in this process."""
    config = TwoTowerConfig.model_validate_json(fn_args.custom_config["two_tower"])
    settings = TunerConfig.model_validate_json(fn_args.custom_config["tuner"])
    patterns = patterns_by_split([*fn_args.train_files, *fn_args.eval_files])
    request = TrialRequest(config, settings, patterns, fn_args.transform_graph_path)
    state = Path(fn_args.working_dir) / "keras_tuner"
    shutil.rmtree(state, ignore_errors=True)
    tuner = SettingsTuner(
        request,
        epochs=config.training.epochs,
        directory=str(state),
        memory=memory,
        report=lambda line: print(line, flush=True),
    )
    return tuner, load_training_data(patterns, fn_args.transform_graph_path, config)


def _memory_file(fn_args: Any, results: str) -> Path:
    """Beside the folders of the executions, since a search that is started again gets a new one."""
    parts = [fn_args.transform_graph_path, *sorted(fn_args.train_files), *sorted(fn_args.eval_files)]
    parts.append(json.dumps(fn_args.custom_config, sort_keys=True))
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return Path(results).parent / f"trials-{digest}.jsonl"
