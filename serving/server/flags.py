"""The command line, with TensorFlow Serving's flag names, defaults and manners.

Flags are given as `--name=value` or `--name value`, switches as `--name` or `--name=true|false`. An argument that is
not known is reported with the usage text and otherwise ignored, as TensorFlow Serving does.
"""

import os
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

_CPUS = os.cpu_count() or 1


class FlagError(ValueError):
    """A flag with a value it cannot have, or flags that do not go together."""


def _flag(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class Flags:
    """Everything the command line can say; each field is the flag of the same name."""

    port: int = _flag(8500, "TCP port of the gRPC API, on all interfaces.")
    rest_api_port: int = _flag(0, "TCP port of the REST API; 0 turns it off. Must differ from --port.")
    model_name: str = _flag("default", "Name of the model (not used with --model_config_file).")
    model_base_path: str = _flag("", "Absolute folder that holds numeric version folders.")
    model_config_file: str = _flag("", "Text ModelServerConfig; wins over --model_name and --model_base_path.")
    model_config_file_poll_wait_seconds: int = _flag(0, "How often to read the config file again; 0 is never.")
    file_system_poll_wait_seconds: int = _flag(1, "How often to look for new versions; 0 looks once.")
    enable_batching: bool = _flag(False, "Join requests that arrive together.")
    batching_parameters_file: str = _flag("", "Text BatchingParameters; needs --enable_batching.")
    monitoring_config_file: str = _flag("", "Text MonitoringConfig; turns the Prometheus page on.")
    allow_version_labels_for_unavailable_models: bool = _flag(False, "New labels may point at versions still to load.")
    enable_model_warmup: bool = _flag(True, "Run assets.extra/tf_serving_warmup_requests before a version serves.")
    num_request_iterations_for_warmup: int = _flag(0, "How often to run each warm-up record, if above 0.")
    max_num_load_retries: int = _flag(5, "How often a failed load is tried again.")
    load_retry_interval_micros: int = _flag(60_000_000, "Time between those tries.")
    rest_api_timeout_in_ms: int = _flag(30_000, "Longest time for one REST request.")
    rest_api_num_threads: int = _flag(
        4 * _CPUS, "Threads that answer requests; the larger of this and the next counts."
    )
    grpc_max_threads: int = _flag(4 * _CPUS, "Threads that answer requests.")
    rest_api_enable_cors_support: bool = _flag(False, "Let scripts of other origins read REST answers.")
    grpc_socket_path: str = _flag("", "Also listen for gRPC on this UNIX socket.")
    grpc_channel_arguments: str = _flag("", "Comma-separated name=value options of the gRPC server.")
    ssl_config_file: str = _flag("", "Text SSLConfig; makes gRPC (not REST) use TLS.")
    enable_grpc_healthcheck_service: bool = _flag(False, "Serve the standard gRPC health service.")
    saved_model_tags: str = _flag("serve", "Comma-separated tags of the MetaGraph to load.")
    tensorflow_session_parallelism: int = _flag(0, "Threads for intra- and inter-op parallelism; 0 is automatic.")
    tensorflow_intra_op_parallelism: int = _flag(0, "Threads within one operation; 0 is one per core.")
    tensorflow_inter_op_parallelism: int = _flag(
        0, "Threads between operations; 0 runs each request in its own thread."
    )
    version: bool = _flag(False, "Print the versions and exit.")
    # Not in TensorFlow Serving:
    bind_address: str = _flag("0.0.0.0", "Tandem: address both ports listen on.")  # noqa: S104 - TF Serving's default
    max_pending_requests: int = _flag(1024, "Tandem: requests admitted at once; one more is RESOURCE_EXHAUSTED / 429.")
    max_request_bytes: int = _flag(2**31 - 1, "Tandem: longest request accepted, after decompression.")
    max_memory_bytes: int = _flag(
        0, "Tandem: memory of the process; a request that needs more is RESOURCE_EXHAUSTED. 0 is the machine's."
    )
    probe_new_versions: bool = _flag(True, "Tandem: try a version in a process of its own, once requests are answered.")
    answer_cache_bytes: int = _flag(0, "Tandem: memory for answers to requests that come again; 0 keeps none.")
    request_log: str = _flag("", "Tandem: keep sampled requests as PredictionLog TFRecords in this file.")
    request_log_sampling_rate: float = _flag(0.01, "Tandem: share of the requests kept there.")

    def check(self) -> None:
        """Raises for values that do not go together.

        Raises:
            FlagError: With the flag at fault and the mend.
        """
        if not self.model_base_path and not self.model_config_file:
            raise FlagError("Both --model_base_path and --model_config_file are empty; give one of them.")
        if not self.model_config_file and not os.path.isabs(self.model_base_path):
            raise FlagError(
                f"--model_base_path must be an absolute path, got {self.model_base_path}; "
                f"write --model_base_path={os.path.abspath(self.model_base_path)}"
            )
        if self.port == 0 and not self.grpc_socket_path:
            raise FlagError("At least one of --port and --grpc_socket_path must be set.")
        for name in ("port", "rest_api_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise FlagError(f"--{name} must be in 0..65535, got {getattr(self, name)}.")
        if self.rest_api_port and self.rest_api_port == self.port:
            raise FlagError(f"--rest_api_port must differ from --port, both are {self.port}.")
        if self.batching_parameters_file and not self.enable_batching:
            raise FlagError("--batching_parameters_file is set without --enable_batching.")
        for name in ("max_pending_requests", "max_request_bytes", "grpc_max_threads", "rest_api_timeout_in_ms"):
            if getattr(self, name) < 1:
                raise FlagError(f"--{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("answer_cache_bytes", "max_memory_bytes"):
            if getattr(self, name) < 0:
                raise FlagError(f"--{name} must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.request_log_sampling_rate <= 1:
            raise FlagError(f"--request_log_sampling_rate must be in 0..1, got {self.request_log_sampling_rate}.")


def parse_flags(arguments: Sequence[str]) -> tuple[Flags, list[str]]:
    """Reads a command line.

    Returns:
        The flags, and the arguments that are not known.

    Raises:
        FlagError: A known flag has a value that cannot be read. The values are not checked further.
    """
    known = {flag.name: flag for flag in fields(Flags)}
    values: dict[str, Any] = {}
    unknown: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, has_value, text = argument.removeprefix("--").partition("=")
        flag = known.get(name) if argument.startswith("--") else None
        if flag is None:
            unknown.append(argument)
        elif flag.type in (bool, "bool"):
            values[name] = _read(flag, text if has_value else "true")
        elif has_value or (rest and not rest[0].startswith("--")):
            values[name] = _read(flag, text if has_value else rest.pop(0))
        else:
            raise FlagError(f"--{name} needs a value: --{name}=…")
    return Flags(**values), unknown


def _read(flag: "Field[Any]", text: str) -> Any:
    default: Any = flag.default
    kind = type(default)
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise FlagError(f"--{flag.name} must be true or false, got {text!r}.")
        return text.lower() in ("true", "1")
    try:
        return kind(text)
    except ValueError:
        raise FlagError(f"--{flag.name} must be a {'whole ' if kind is int else ''}number, got {text!r}.") from None


def usage(program: str) -> str:
    """The text of `--help` and of every complaint about flags."""
    lines = [f"usage: {program}", "Flags:"]
    for flag in fields(Flags):
        default: Any = flag.default
        shown = str(default).lower() if isinstance(default, bool) else default
        lines.append(f"\t--{flag.name}={shown}\t{flag.metadata['help']}")
    return "\n".join(lines) + "\n"
