"""Trained models that a preset names: checked before the run, and part of the Trainer's cache key."""

from __future__ import annotations

import hashlib
from pathlib import Path

from components.errors import MissingInputError
from models.config import TwoTowerConfig

MODEL_FILES = ("config.json", "items.npz", "weights.npz")


def trained_models_version(config: TwoTowerConfig) -> str:
    """Hash (16 hex digits) of the files of `distillation.teacher` and `training.reuse`; empty if neither is named.

    Raises:
        MissingInputError: If a folder holds no trained model.
    """
    named = {"training.reuse": config.training.reuse}
    if config.distillation.enabled:
        named["distillation.teacher"] = config.distillation.teacher
    digest, folders = hashlib.sha256(), {key: folder for key, folder in named.items() if folder}
    for key, folder in folders.items():
        for name in MODEL_FILES:
            path = Path(folder) / name
            if not path.is_file():
                raise MissingInputError(
                    f"{key} = {folder!r}: no file {name} in it; name the `training` folder beside the SavedModel of a "
                    "Trainer or Compressor, RUN/artifacts/Trainer/model/N/training"
                )
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16] if folders else ""
