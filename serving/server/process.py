"""Puts the server together from its flags, opens the ports once the models answer, and stops cleanly."""

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from aiohttp import web
from tensorflow_serving.config import model_server_config_pb2

from serving.server.answer_cache import AnswerCache
from serving.server.batch_scheduler import BatchingParameters, BatchScheduler
from serving.server.batching import ServedModel
from serving.server.config_protos import read_text_config, read_text_message
from serving.server.core import ServerCore
from serving.server.execution import RequestPool
from serving.server.flags import Flags
from serving.server.grpc_api import GrpcApi
from serving.server.health import HealthService
from serving.server.http_connections import GuardedServer
from serving.server.loading import LoadOptions, ModelLoader
from serving.server.memory import freeze_startup_objects
from serving.server.metrics import Metrics
from serving.server.model_config import single_model_config
from serving.server.request_log import RequestLog
from serving.server.rest_api import RestApi, RestOptions
from serving.server.saved_model import SessionThreads
from serving.server.servable import State
from serving.server.status import Code, StatusError, invalid_argument
from serving.server.versions import LoadRetries, VersionManager

_LOG = logging.getLogger(__name__)
_DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"
_STOP_SECONDS = 5.0
_BATCHING_THREADS = 64  # requests waiting for their batch each hold a thread


class PortError(StatusError):
    """A port or socket that cannot be listened on."""


class ModelServer:
    """The whole server.

    Args:
        flags: Checked flags.

    Raises:
        StatusError: A file that a flag names cannot be read.
    """

    def __init__(self, flags: Flags) -> None:
        self._flags = flags
        self._config = self._read_config()
        self._metrics = Metrics()
        self._scheduler = scheduler = BatchScheduler(_batching_parameters(flags)) if flags.enable_batching else None
        self._cache = AnswerCache(flags.answer_cache_bytes) if flags.answer_cache_bytes else None
        self._is_answering = False
        self._loader = ModelLoader(
            _load_options(flags), self._metrics, scheduler, lambda: self._is_answering, self._cache
        )
        self._manager: VersionManager[ServedModel] = VersionManager(
            self._loader,
            poll_seconds=flags.file_system_poll_wait_seconds,
            retries=LoadRetries(flags.max_num_load_retries, flags.load_retry_interval_micros / 1e6),
        )
        self._core = ServerCore(
            self._manager, allow_labels_for_unavailable=flags.allow_version_labels_for_unavailable_models
        )
        num_threads = max(flags.grpc_max_threads, flags.rest_api_num_threads, _BATCHING_THREADS if scheduler else 0)
        self._pool = RequestPool(num_threads, flags.max_pending_requests)
        self._metrics_path = _metrics_path(flags)
        self._add_gauges()
        self._credentials = _credentials(flags)
        self._request_log = (
            RequestLog(Path(flags.request_log), flags.request_log_sampling_rate, metrics=self._metrics)
            if flags.request_log
            else None
        )

    def _read_config(self) -> model_server_config_pb2.ModelServerConfig:
        if self._flags.model_config_file:
            return read_text_message(model_server_config_pb2.ModelServerConfig(), self._flags.model_config_file)
        return single_model_config(self._flags.model_name, self._flags.model_base_path)

    def _add_gauges(self) -> None:
        self._metrics.add_gauge(":tandem:serving:pending_requests", lambda: {"": self._pool.pending})
        if (cache := self._cache) is not None:
            self._metrics.add_gauge(":tandem:serving:answer_cache_bytes", lambda: {"": cache.num_bytes})
        self._metrics.add_gauge(
            ":tandem:serving:model_version",
            lambda: {
                f'model_name="{model.name}",version="{status.version}"': 1
                for model in self._core.models()
                for status in self._manager.statuses(model.name)
                if status.state is State.AVAILABLE
            },
        )

    async def serve(self, on_ready: Callable[[], None] | None = None) -> None:
        """Serves until SIGTERM or SIGINT.

        Args:
            on_ready: Called once both ports answer.

        Raises:
            StatusError: The first version of a model does not load.
            PortError: A port is taken.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        freeze_startup_objects()  # not those of a model, which must go when it is unloaded
        self._manager.start()
        stopping = asyncio.create_task(stop.wait())
        loading = asyncio.create_task(self._core.reload_config(self._config))
        grpc_server, runner, polling = None, None, None
        try:
            await asyncio.wait({stopping, loading}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                self._is_answering = True
                grpc_server = await self._start_grpc()
                runner = await self._start_rest()
                if self._flags.model_config_file and self._flags.model_config_file_poll_wait_seconds > 0:
                    polling = asyncio.create_task(self._poll_config())
                if on_ready is not None:
                    on_ready()
                await stopping
        finally:
            for task in (stopping, loading, polling):
                if task is not None:
                    task.cancel()
            if grpc_server is not None:
                await grpc_server.stop(_STOP_SECONDS)
            if runner is not None:
                await runner.cleanup()
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._pool.close()
        self._loader.stop()
        self._manager.stop()
        if self._scheduler is not None:
            self._scheduler.close()
        if self._request_log is not None:
            self._request_log.close()

    async def _start_grpc(self) -> grpc.aio.Server:
        options: list[tuple[str, Any]] = [
            ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
            ("grpc.max_receive_message_length", self._flags.max_request_bytes),
            ("grpc.max_send_message_length", 2**31 - 1),
            *_channel_arguments(self._flags.grpc_channel_arguments),
        ]
        server = grpc.aio.server(options=options)
        has_batching = self._scheduler is not None
        api = GrpcApi(self._core, self._pool, self._metrics, self._request_log, has_batching=has_batching)
        api.add_to(server)
        if self._flags.enable_grpc_healthcheck_service:
            HealthService(["", "ModelService", "PredictionService"]).add_to(server)
        addresses = [f"{self._flags.bind_address}:{self._flags.port}"] if self._flags.port else []
        if self._flags.grpc_socket_path:
            addresses.append(f"unix:{self._flags.grpc_socket_path}")
        for address in addresses:
            try:
                if self._credentials is None:
                    server.add_insecure_port(address)
                else:
                    server.add_secure_port(address, self._credentials)
            except RuntimeError as error:
                raise PortError(Code.UNAVAILABLE, f"Cannot listen for gRPC on {address}: {error}") from error
        await server.start()
        for address in addresses:
            _LOG.info("Running gRPC ModelServer at %s ...", address)
        return server

    async def _start_rest(self) -> web.ServerRunner | None:
        port = self._flags.rest_api_port
        if not port:
            return None
        options = RestOptions(
            timeout_seconds=self._flags.rest_api_timeout_in_ms / 1000,
            enable_cors=self._flags.rest_api_enable_cors_support,
            metrics_path=self._metrics_path,
        )
        has_batching = self._scheduler is not None
        api = RestApi(self._core, self._pool, self._metrics, options, self._request_log, has_batching=has_batching)
        runner = web.ServerRunner(
            GuardedServer(api.handle, self._flags.max_request_bytes, options.timeout_seconds), handle_signals=False
        )
        await runner.setup()
        try:
            await web.TCPSite(
                runner, self._flags.bind_address, port, backlog=1024, shutdown_timeout=_STOP_SECONDS
            ).start()
        except OSError as error:
            raise PortError(Code.UNAVAILABLE, f"Cannot listen for REST on port {port}: {error.strerror}") from error
        _LOG.info("Exporting HTTP/REST API at:%s:%d ...", self._flags.bind_address, port)
        return runner

    async def _poll_config(self) -> None:
        while True:
            await asyncio.sleep(self._flags.model_config_file_poll_wait_seconds)
            try:
                await asyncio.to_thread(lambda: self._core.apply_config(self._read_config()))
            except StatusError as error:
                _LOG.error("The model config file is not applied: %s", error)


def _load_options(flags: Flags) -> LoadOptions:
    parallelism = flags.tensorflow_session_parallelism
    threads = SessionThreads(
        intra_op=flags.tensorflow_intra_op_parallelism or parallelism,
        inter_op=flags.tensorflow_inter_op_parallelism or parallelism or -1,
    )
    iterations = max(1, flags.num_request_iterations_for_warmup) if flags.enable_model_warmup else 0
    return LoadOptions(tuple(flags.saved_model_tags.split(",")), threads, iterations, flags.probe_new_versions)


def _batching_parameters(flags: Flags) -> BatchingParameters:
    if not flags.batching_parameters_file:
        return BatchingParameters()
    proto = read_text_config("BatchingParameters", flags.batching_parameters_file)
    given: dict[str, Any] = {
        name: getattr(proto, name).value
        for name in ("max_batch_size", "num_batch_threads", "max_enqueued_batches")
        if proto.HasField(name)
    }
    if proto.HasField("batch_timeout_micros"):
        given["batch_timeout_seconds"] = proto.batch_timeout_micros.value / 1e6
    return BatchingParameters(
        allowed_batch_sizes=tuple(proto.allowed_batch_sizes),
        pad_variable_length_inputs=proto.pad_variable_length_inputs,
        **given,
    )


def _metrics_path(flags: Flags) -> str:
    if not flags.monitoring_config_file:
        return ""
    config = read_text_config("MonitoringConfig", flags.monitoring_config_file).prometheus_config
    return (config.path or _DEFAULT_METRICS_PATH) if config.enable else ""


def _credentials(flags: Flags) -> grpc.ServerCredentials | None:
    if not flags.ssl_config_file:
        return None
    config = read_text_config("SSLConfig", flags.ssl_config_file)
    for name in ("server_key", "server_cert", *(["custom_ca"] if config.client_verify else [])):
        if not getattr(config, name):
            reason = " to check the clients' certificates (client_verify)" if name == "custom_ca" else ""
            raise invalid_argument(f"{flags.ssl_config_file} needs {name}{reason}: the PEM text itself, not a path.")
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )


def _channel_arguments(text: str) -> list[tuple[str, int | str]]:
    pairs = (pair.partition("=") for pair in text.split(",") if "=" in pair)
    return [(name.strip(), int(value) if value.lstrip("-").isdigit() else value) for name, _, value in pairs]
