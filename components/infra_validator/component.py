"""InfraValidator: serves the exact artifact in a process of its own, asks it, and blesses it or not."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import artifact_utils, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import io_utils, path_utils

CHECKS_FILE = "checks.json"
_SAMPLE_USERS = 16
# Names and values that stock Pusher and stock InfraValidator agree on.
_BLESSED_KEY, _BLESSED_FILE, _NOT_BLESSED_FILE = "blessed", "INFRA_BLESSED", "INFRA_NOT_BLESSED"


class ServedModelValidatorSpec(ComponentSpec):
    """Inputs, outputs and parameters of `ServedModelValidator`."""

    PARAMETERS = {"code_version": ExecutionParameter(type=str)}
    INPUTS = {
        "model": ChannelParameter(type=standard_artifacts.Model),
        "sequences": ChannelParameter(type=standard_artifacts.Examples),
    }
    OUTPUTS = {"blessing": ChannelParameter(type=standard_artifacts.InfraBlessing)}


class Executor(base_executor.BaseExecutor):
    """Writes `checks.json` and the blessing; a model that fails is no error of the pipeline."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See the class."""
        from components.infra_validator.checks import run_checks
        from components.infra_validator.probes import read_sample

        self._log_startup(input_dict, output_dict, exec_properties)
        model = artifact_utils.get_single_instance(input_dict["model"])
        source = path_utils.serving_model_path(model.uri, path_utils.is_old_model_artifact(model))
        sample = read_sample(artifact_utils.get_single_uri(input_dict["sequences"]), _SAMPLE_USERS)
        with tempfile.TemporaryDirectory(prefix="tandem-validate-") as folder:
            version = Path(folder) / "1"
            io_utils.copy_dir(source, str(version))
            checks = run_checks(Path(folder), version, sample)
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        is_blessed = all(check.passed for check in checks)
        failed = [check for check in checks if not check.passed]
        document = {"blessed": is_blessed, "checks": [check.as_dict() for check in checks]}
        io_utils.write_string_file(
            os.path.join(blessing.uri, CHECKS_FILE), json.dumps(document, indent=2, ensure_ascii=False)
        )
        io_utils.write_string_file(os.path.join(blessing.uri, _BLESSED_FILE if is_blessed else _NOT_BLESSED_FILE), "")
        blessing.set_int_custom_property(_BLESSED_KEY, int(is_blessed))
        print(f"{len(checks) - len(failed)} of {len(checks)} checks passed")
        for check in failed:
            print(f"FAILED  {check.name}: {check.detail}")


class ServedModelValidator(base_component.BaseComponent):
    """Asks the model, served by a real server process, over gRPC and REST.

    The answers must equal those of the same SavedModel in this process, within the tolerance of
    `components.infra_validator.comparison`, and keep the promises of the contract: signatures, no
    item of the history, no retired item, k results.

    Args:
        model: The model that will be pushed.
        sequences: Of SequenceGen: real users to ask for, and the catalogue.
        code_version: Hash of the code behind this node and of the server; part of the cache key.
    """

    SPEC_CLASS = ServedModelValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, model: types.BaseChannel, sequences: types.BaseChannel, *, code_version: str) -> None:
        blessing = types.Channel(type=standard_artifacts.InfraBlessing)
        super().__init__(
            ServedModelValidatorSpec(model=model, sequences=sequences, code_version=code_version, blessing=blessing)
        )
        self.with_id("InfraValidator")
