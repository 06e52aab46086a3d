"""Where a run keeps its files; the run folder's layout is a contract."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from components.errors import InputError


def data_location(text: str) -> Path | str:
    """A `--data` argument: an absolute folder, or an address with a scheme as it is."""
    return text if "://" in text else Path(text).resolve()


@dataclass(frozen=True)
class RunPaths:
    """Files of one run folder.

    Attributes:
        root: The run folder (`--output`).
        data: Data set folder the run reads; text for an address such as `s3://bucket/shop`.
        name: Name of the preset, also the name of the served model.
    """

    root: Path
    data: Path | str
    name: str

    @property
    def metadata(self) -> Path:
        """SQLite file of ML Metadata."""
        return self.root / "metadata.db"

    @property
    def artifacts(self) -> Path:
        """TFX pipeline root."""
        return self.root / "artifacts"

    @property
    def serving(self) -> Path:
        """Base path of the model server: numbered versions of the pushed model."""
        return self.root / "serving" / self.name

    @property
    def tensorboard(self) -> Path:
        """Log folder for TensorBoard."""
        return self.root / "tensorboard"

    @property
    def logs(self) -> Path:
        """One log file per node."""
        return self.root / "logs"

    def create(self) -> None:
        """Makes the folders.

        Raises:
            InputError: The run folder cannot be written.
        """
        try:
            for folder in (self.root, self.artifacts, self.tensorboard, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--output {self.root}: cannot be created ({error.strerror}); pass a folder that you may write"
            ) from error
        # The Trainer logs into its own artifact; TensorBoard finds every run of it below one folder.
        link = self.tensorboard / "trainer"
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(self.artifacts / "Trainer" / "model_run", self.tensorboard))
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise InputError(f"--output {self.root}: not writable; pass a folder that you may write")
