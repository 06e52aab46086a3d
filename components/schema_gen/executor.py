"""TFX executor that writes the declared schema."""

from __future__ import annotations

import os
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils

SCHEMA_FILE = "schema.pbtxt"


class Executor(base_executor.BaseExecutor):
    """Writes the text that the configuration gave."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes `schema.pbtxt`."""
        self._log_startup(input_dict, output_dict, exec_properties)
        uri = artifact_utils.get_single_uri(output_dict["schema"])
        with fileio.open(os.path.join(uri, SCHEMA_FILE), "w") as file:
            file.write(exec_properties["schema_text"])
