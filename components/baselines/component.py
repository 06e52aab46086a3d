"""RetrievalBaselines: popularity, item-kNN and EASE on the test split, beside which the model is reported."""

# `tfx.dsl.components.component` reads annotations as objects: no `from __future__ import annotations`.

import json
import os

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples

from components.artifacts import BASELINES_FILE, BaselineMetrics


@component
def RetrievalBaselines(
    sequences: InputArtifact[Examples],
    metrics: OutputArtifact[BaselineMetrics],
    config: Parameter[str],
    protocol: Parameter[str],
    code_version: Parameter[str],
) -> None:
    """Writes `baselines.json`.

    Args:
        sequences: Of SequenceGen.
        metrics: Receives the file.
        config: `EvaluationConfig` as JSON.
        protocol: Of `SplitConfig`.
        code_version: Hash of the code behind this node; part of the cache key.
    """
    from tfx.dsl.io import fileio

    from components.baselines.dataset import load_baseline_splits
    from components.baselines.scoring import evaluate_baselines
    from components.config import EvaluationConfig

    evaluation = EvaluationConfig.model_validate_json(config)
    splits = load_baseline_splits(sequences.uri, protocol)
    rows = evaluate_baselines(
        splits.test,
        splits.validation,
        evaluation.baselines,
        ks=evaluation.ks,
        ease_l2=evaluation.ease_l2,
        max_users=evaluation.max_users,
        show=print,
    )
    document = {
        "split": "test",
        "protocol": protocol,
        "candidates": int(splits.test.live.sum()),
        "users": len(splits.test.targets),
        "code_version": code_version,
        "baselines": rows,
    }
    with fileio.open(os.path.join(metrics.uri, BASELINES_FILE), "w") as file:
        file.write(json.dumps(document, indent=2) + "\n")
