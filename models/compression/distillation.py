"""A smaller model in the place of a trained one: the student of its lists."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from models.compression.errors import CompressionError
from models.config import UNTAUGHT_LOSSES, ModelConfig, TwoTowerConfig
from models.trainer import Trained, train
from models.training_data import TrainingData
from models.two_tower import TwoTowerModel


@dataclass(frozen=True)
class Student:
    """In what a student is smaller than its teacher; 0 = as large.

    Attributes:
        width: Columns of its vectors.
        blocks: Blocks of its encoder.
    """

    width: int = 0
    blocks: int = 0

    def __bool__(self) -> bool:
        return self != Student()


def taught_student(teacher: TwoTowerModel, student: Student, data: TrainingData, run: TwoTowerConfig) -> TwoTowerModel:
    """The student that a variant of the search asks for, trained on `data.train`.

    It keeps the teacher's corrections of the scores, as it has no validation split to choose its own on.

    Args:
        teacher: Trained model; left as it is.
        student: Its size.
        data: What the teacher was trained on.
        run: Its `compression` bounds epochs and time.

    Raises:
        CompressionError: If it would be no smaller than the teacher, cannot be built, or has a loss without a softmax.
    """
    config = student_config(teacher.config, student, run)
    train_only = TrainingData(data.items, data.train, feature_sizes=data.feature_sizes)
    try:
        model = distill(teacher, config, train_only).model
    except ValueError as error:
        raise CompressionError(f"no student: {error}") from error
    model.trend.assign(teacher.trend)
    return model


def student_config(teacher: TwoTowerConfig, student: Student, run: TwoTowerConfig) -> TwoTowerConfig:
    """Shape and training of a student.

    Raises:
        CompressionError: If it would be no smaller than the teacher, or cannot be built.
    """
    shape, training, budget = teacher.model, teacher.training, run.compression
    if shape.time_gaps:
        raise CompressionError("a teacher's lists are made from histories without times, but this model has time_gaps")
    if contexts := teacher.tower_features("context"):
        raise CompressionError(
            f"a teacher's lists are made from histories without a context, but this model reads {contexts[0].name!r}"
        )
    too_large = [
        f"{name} {asked} of {have}"
        for name, asked, have in (
            ("width", student.width, shape.embedding_dim),
            ("blocks", student.blocks, shape.num_layers),
        )
        if asked > have
    ]
    if too_large or (student.width or shape.embedding_dim, student.blocks or shape.num_layers) == (
        shape.embedding_dim,
        shape.num_layers,
    ):
        raise CompressionError(f"a student is smaller than its teacher, not {', '.join(too_large) or 'as large'}")
    update = {"num_layers": student.blocks or shape.num_layers}
    if student.width:
        update |= {"embedding_dim": student.width, "feed_forward_units": 0, "attention_width": 0}
    try:
        smaller = ModelConfig.model_validate(shape.model_dump() | update)
    except ValidationError as error:
        raise CompressionError(f"no student of this size: {error.errors()[0]['msg']}") from error
    return teacher.model_copy(
        update={
            "model": smaller,
            "training": training.model_copy(
                update={
                    "strategy": "one_device",
                    "epochs": budget.student_epochs or training.epochs,
                    "max_train_seconds": budget.max_seconds / 2,
                    "mixed_precision": run.training.mixed_precision,
                    "popularity_trend": False,
                    "refit": False,
                }
            ),
        }
    )


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


__all__ = ["Student", "distill", "student_config", "taught_student"]
