"""A smaller model in the place of a trained one: the student of its lists."""

from __future__ import annotations

from models.config import UNTAUGHT_LOSSES, TwoTowerConfig
from models.trainer import Trained, train
from models.training_data import TrainingData
from models.two_tower import TwoTowerModel


def distill(
    teacher: TwoTowerModel,
    student_config: TwoTowerConfig,
    data: TrainingData,
    *,
    log_dir: str | None = None,
    checkpoint_dir: str | None = None,
) -> Trained:
    """Trains a student on a teacher's lists and scores.

    Args:
        teacher: Trained model; left as it is.
        student_config: Shape, loss and training of the student; length, temperature and weight of the lists are those
            of its `distillation`, whose own teacher is not looked at.
        data: What the teacher was trained on. `validation`, if there, chooses the student's epoch.
        log_dir: Folder for TensorBoard scalars; None = none.
        checkpoint_dir: Folder for checkpoints; None = none.

    Returns:
        The student, and its twin refitted on all events if its configuration says so.

    Raises:
        ValueError: If the loss takes no soft targets (`gbce`, `least_squares`), or the teacher knows items that the
            catalogue lacks.
    """
    if student_config.loss.kind in UNTAUGHT_LOSSES:
        raise ValueError(f"a student's loss must be a softmax; `{student_config.loss.kind}` takes no soft targets")
    return train(student_config, data, teacher=teacher, log_dir=log_dir, checkpoint_dir=checkpoint_dir)


__all__ = ["distill"]
