"""The server behind both protocols: finds the version a request means and lets it answer."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from serving.server import example_inference, inference
from serving.server.batching import ServedModel
from serving.server.execution import INLINE_BYTES
from serving.server.model_config import Labels, check_config, monitored_models, new_labels
from serving.server.servable import Servable
from serving.server.status import Code, StatusError, invalid_argument
from serving.server.tensors import num_bytes
from serving.server.versions import VersionManager

SIGNATURE_DEF = "signature_def"


class ServerCore:
    """Model names, versions and labels on one side, answers on the other.

    Args:
        manager: Holds the loaded versions.
        allow_labels_for_unavailable: Whether new labels may point at versions still to load.
    """

    def __init__(self, manager: VersionManager[ServedModel], *, allow_labels_for_unavailable: bool = False) -> None:
        self.manager = manager
        self._allow_labels_for_unavailable = allow_labels_for_unavailable
        self._reload_lock = threading.Lock()
        self._config: model_server_config_pb2.ModelServerConfig | None = None
        self._labels: Labels = {}

    async def reload_config(self, config: model_server_config_pb2.ModelServerConfig) -> None:
        """Replaces the served models; returns when every new one answers. No other reload waits for that.

        Raises:
            StatusError: The configuration is at fault (nothing changes), or a new model does not load (UNKNOWN).
        """
        added = await asyncio.to_thread(self.apply_config, config)
        failed = await asyncio.wrap_future(self.manager.when_available(added))
        if failed:
            reasons = "".join(f"{{{name}{self._failure(name)}}}, " for name in failed)
            raise StatusError(Code.UNKNOWN, f"{len(failed)} model(s) did not become available: {{{reasons}}}")

    def apply_config(self, config: model_server_config_pb2.ModelServerConfig) -> list[str]:
        """Replaces the served models without waiting for them.

        Returns:
            Names of the models that were not on the list before.

        Raises:
            StatusError: The configuration is at fault; nothing changes.
        """
        with self._reload_lock:
            if config.WhichOneof("config") is None:
                return []
            check_config(config, self._config)
            labels = new_labels(
                config,
                self._labels,
                self.manager.statuses,
                allow_unavailable=self._allow_labels_for_unavailable,
            )
            before = {model.name for model in self.models()}
            self._config, self._labels = config, labels
            self.manager.watch(monitored_models(config))
            return [model.name for model in config.model_config_list.config if model.name not in before]

    def models(self) -> list[model_server_config_pb2.ModelConfig]:
        """The configured models."""
        return list(self._config.model_config_list.config) if self._config else []

    def _failure(self, name: str) -> str:
        errors = [status.error for status in self.manager.statuses(name) if status.error]
        return f" due to error: {errors[0]}" if errors else ""

    @contextmanager
    def servable(self, spec: model_pb2.ModelSpec) -> Iterator[Servable[ServedModel]]:
        """Gives access to the version a request names.

        Raises:
            StatusError: INVALID_ARGUMENT without a name or for an unknown label, NOT_FOUND if it is not loaded.
        """
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        choice = spec.WhichOneof("version_choice")
        version = None
        if choice == "version":
            version = spec.version.value
        elif choice == "version_label":
            version = self._labels.get(spec.name, {}).get(spec.version_label)
            if version is None:
                raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
        with self.manager.servable(spec.name, version) as servable:
            yield servable

    def predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        """Runs any signature on named tensors."""
        require_spec(request)
        with self.servable(request.model_spec) as servable:
            return inference.predict(servable.model, request, servable.version)

    async def predict_in_batch(self, request: predict_pb2.PredictRequest) -> inference.GraphAnswer | None:
        """The same from the event loop, together with other requests; None if it takes a thread of its own."""
        require_spec(request)
        with self.servable(request.model_spec) as servable:
            if sum(num_bytes(proto) for proto in request.inputs.values()) > INLINE_BYTES:
                return None
            graph_run = inference.begin_predict(servable.model, request)
            values = await servable.model.run_in_batch(graph_run.feeds, graph_run.fetches)
            return None if values is None else inference.GraphAnswer(graph_run, values, servable.version)

    def classify(self, request: classification_pb2.ClassificationRequest) -> classification_pb2.ClassificationResponse:
        """Runs a classification signature on examples."""
        require_spec(request)
        with self.servable(request.model_spec) as servable:
            return example_inference.classify(servable.model, request, servable.version)

    def regress(self, request: regression_pb2.RegressionRequest) -> regression_pb2.RegressionResponse:
        """Runs a regression signature on examples."""
        require_spec(request)
        with self.servable(request.model_spec) as servable:
            return example_inference.regress(servable.model, request, servable.version)

    def multi_inference(self, request: inference_pb2.MultiInferenceRequest) -> inference_pb2.MultiInferenceResponse:
        """Runs several classification and regression signatures on the same examples."""
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        with self.servable(spec) as servable:
            return example_inference.multi_inference(servable.model, request, servable.version)

    def get_model_metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Answers the SignatureDefs of a loaded version."""
        require_spec(request)
        if not request.metadata_field:
            raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != SIGNATURE_DEF:
                raise invalid_argument(f"Metadata field {field} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self.servable(request.model_spec) as servable:
            signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.model.signatures)
            response.model_spec.name = servable.name
            response.model_spec.version.value = servable.version
        response.metadata[SIGNATURE_DEF].Pack(signatures)
        return response

    def get_model_status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Answers the states of one version or of all; a label is ignored, as TensorFlow Serving does."""
        require_spec(request)
        spec = request.model_spec
        statuses = self.manager.statuses(spec.name)
        if spec.WhichOneof("version_choice") == "version":
            statuses = [status for status in statuses if status.version == spec.version.value]
            if not statuses:
                raise StatusError(Code.NOT_FOUND, f"Could not find version {spec.version.value} of model {spec.name}")
        if not statuses:
            raise StatusError(Code.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for status in statuses:
            entry = response.model_version_status.add(version=status.version, state=int(status.state))
            entry.status.error_code = int(status.error.code) if status.error else 0
            entry.status.error_message = status.error.message if status.error else ""
        return response


def require_spec(request: object) -> None:
    """Raises unless a request names a model at all."""
    if not request.HasField("model_spec"):  # type: ignore[attr-defined]
        raise invalid_argument("Missing ModelSpec")
