"""The list of served models: checks a `ModelServerConfig`, keeps it with its version labels.

Texts and codes are TensorFlow Serving's.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from tensorflow_serving.config import model_server_config_pb2

from serving.server.servable import State, VersionStatus
from serving.server.status import Code, StatusError, invalid_argument
from serving.server.storage import MonitoredModel, VersionPolicy

Labels = dict[str, dict[str, int]]
_PLATFORM = "tensorflow"


def single_model_config(name: str, base_path: str) -> model_server_config_pb2.ModelServerConfig:
    """The configuration behind `--model_name` and `--model_base_path`."""
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(name=name, base_path=base_path, model_platform=_PLATFORM)
    return config


def check_config(
    config: model_server_config_pb2.ModelServerConfig, old: model_server_config_pb2.ModelServerConfig | None
) -> None:
    """Raises unless `config` is complete and may follow `old`.

    Raises:
        StatusError: INVALID_ARGUMENT for a name given twice, a relative base path or a platform that is unknown, not
            given, given twice, or changed; UNIMPLEMENTED for configurations of custom models.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise StatusError(Code.UNIMPLEMENTED, "custom_model_config needs code of its own; use model_config_list.")
    names: set[str] = set()
    for model in config.model_config_list.config:
        if model.name in names:
            raise invalid_argument(f"Illegal to list model {model.name} multiple times in config list")
        names.add(model.name)
    for model in config.model_config_list.config:
        if not model.base_path.startswith("/"):
            raise invalid_argument(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )
    earlier = {model.name: _platform(model) for model in old.model_config_list.config} if old else {}
    for model in config.model_config_list.config:
        platform = _platform(model)
        before = earlier.get(model.name, platform)
        if platform != before:
            raise invalid_argument(
                f"Illegal to change a model's platform. For model {model.name} platform was {before} "
                f"and new platform requested is {platform}"
            )
        if platform != _PLATFORM:
            raise invalid_argument(f"Model {model.name} requests unsupported platform {platform}")


def _platform(model: model_server_config_pb2.ModelConfig) -> str:
    if model.model_type and model.model_platform:
        raise invalid_argument(
            "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform, "
            f"model name is {model.name}"
        )
    if model.model_type == model_server_config_pb2.TENSORFLOW:
        return _PLATFORM
    if model.model_type:
        raise invalid_argument(f"ModelServerConfig::model_type choice {model.model_type} not supported.")
    if not model.model_platform:
        raise invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {model.name}"
        )
    return str(model.model_platform)


def monitored_models(config: model_server_config_pb2.ModelServerConfig) -> list[MonitoredModel]:
    """The folders to watch for a configuration."""
    return [
        MonitoredModel(model.name, Path(model.base_path), VersionPolicy.from_proto(model.model_version_policy))
        for model in config.model_config_list.config
    ]


def new_labels(
    config: model_server_config_pb2.ModelServerConfig,
    present: Mapping[str, Mapping[str, int]],
    statuses: Callable[[str], list[VersionStatus]],
    *,
    allow_unavailable: bool,
) -> Labels:
    """Returns the labels of a configuration: model to label to version.

    Args:
        config: A checked configuration.
        present: The labels in use.
        statuses: States of a model's versions.
        allow_unavailable: Whether a label that is new may point at a version still to load.

    Raises:
        StatusError: FAILED_PRECONDITION for a label onto a version that does not answer.
    """
    labels: Labels = {}
    for model in config.model_config_list.config:
        available = {status.version for status in statuses(model.name) if status.state is State.AVAILABLE}
        for label, version in model.version_labels.items():
            in_use = present.get(model.name, {}).get(label)
            may_wait = allow_unavailable and in_use in (None, version)
            if version not in available and not may_wait:
                raise StatusError(
                    Code.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {model.name}, "
                    "which is not currently available for inference",
                )
            labels.setdefault(model.name, {})[label] = version
    return labels
