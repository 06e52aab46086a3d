"""Flags with TensorFlow Serving's names, defaults and manners."""

import pytest

from serving.server.flags import FlagError, Flags, parse_flags, usage


def test_defaults_are_those_of_tensorflow_serving() -> None:
    flags = Flags()
    assert (flags.port, flags.rest_api_port, flags.model_name) == (8500, 0, "default")
    assert (flags.max_num_load_retries, flags.load_retry_interval_micros) == (5, 60_000_000)
    assert (flags.file_system_poll_wait_seconds, flags.rest_api_timeout_in_ms) == (1, 30_000)
    assert flags.enable_model_warmup and not flags.enable_batching


def test_values_switches_and_unknown_arguments() -> None:
    flags, unknown = parse_flags(
        ["--port=1", "--rest_api_port", "2", "--enable_batching", "--enable_model_warmup=false", "--new=1", "word"]
    )
    assert (flags.port, flags.rest_api_port) == (1, 2)
    assert flags.enable_batching and not flags.enable_model_warmup
    assert unknown == ["--new=1", "word"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--port=x"], "--port must be a whole number, got 'x'"),
        (["--port"], "--port needs a value"),
        (["--enable_batching=maybe"], "--enable_batching must be true or false"),
        (["--request_log_sampling_rate=much"], "--request_log_sampling_rate must be a number"),
    ],
)
def test_values_that_cannot_be_read(arguments: list[str], text: str) -> None:
    with pytest.raises(FlagError, match=text):
        parse_flags(arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Both --model_base_path and --model_config_file are empty"),
        (["--model_base_path=here"], "must be an absolute path"),
        (["--model_base_path=/m", "--port=0"], "At least one of --port and --grpc_socket_path"),
        (["--model_base_path=/m", "--port=70000"], "--port must be in 0..65535"),
        (["--model_base_path=/m", "--rest_api_port=8500"], "--rest_api_port must differ from --port"),
        (["--model_base_path=/m", "--batching_parameters_file=/f"], "without --enable_batching"),
        (["--model_base_path=/m", "--max_pending_requests=0"], "--max_pending_requests must be at least 1"),
        (["--model_base_path=/m", "--request_log_sampling_rate=2"], "must be in 0..1"),
    ],
)
def test_values_that_do_not_go_together(arguments: list[str], text: str) -> None:
    flags, _ = parse_flags(arguments)
    with pytest.raises(FlagError, match=text):
        flags.check()


def test_usage_names_every_flag() -> None:
    text = usage("server")
    for name in Flags.__dataclass_fields__:
        assert f"--{name}=" in text
