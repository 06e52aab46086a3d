"""The trained model that `distillation.teacher` names: checked before the run, and part of the Trainer's cache key."""

from __future__ import annotations

import hashlib
from pathlib import Path

from components.errors import MissingInputError
from models.config import DistillationConfig

TEACHER_FILES = ("config.json", "items.npz", "weights.npz")


def teacher_version(distillation: DistillationConfig) -> str:
    """Hash (16 hex digits) of the teacher's files; empty if the teacher is trained in the run, or there is none.

    Raises:
        MissingInputError: If the folder holds no trained model.
    """
    if not distillation.enabled or not distillation.teacher:
        return ""
    folder, digest = Path(distillation.teacher), hashlib.sha256()
    for name in TEACHER_FILES:
        path = folder / name
        if not path.is_file():
            raise MissingInputError(
                f"distillation.teacher = {distillation.teacher!r}: no file {name} in it; name the `training` folder "
                "beside the SavedModel of a Trainer or Compressor, RUN/artifacts/Trainer/model/N/training"
            )
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
