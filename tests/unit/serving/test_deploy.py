"""The files for stock TensorFlow Serving parse, agree with each other and with what the servers export."""

import json
import re
from pathlib import Path

import pytest
import yaml
from google.protobuf import text_format
from prometheus_client.parser import text_string_to_metric_families
from tensorflow_serving.config import model_server_config_pb2

import serving
from serving.server.config_protos import read_text_config
from serving.server.metrics import Metrics
from serving.server.model_config import check_config

DEPLOY = Path(serving.__file__).parent / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
METRIC = re.compile(r"(?<![\w:])(:[a-z]+:[a-z_:]+)")


def documents() -> list[dict]:
    found = []
    for file in sorted(KUBERNETES.glob("*.yaml")):
        found += [document for document in yaml.safe_load_all(file.read_text()) if document]
    return found


@pytest.mark.parametrize("path", ["models.config", "kubernetes/config/models.config"])
def test_model_config_is_one_the_server_takes(path: str) -> None:
    config = text_format.Parse((DEPLOY / path).read_text(), model_server_config_pb2.ModelServerConfig())
    check_config(config, None)
    assert config.model_config_list.config[0].name == "tandem"


def test_batching_and_monitoring_parse() -> None:
    batching = read_text_config("BatchingParameters", str(DEPLOY / "batching.config"))
    assert batching.max_batch_size.value == 32
    for path in ("monitoring/monitoring.config", "kubernetes/config/monitoring.config"):
        assert read_text_config("MonitoringConfig", str(DEPLOY / path)).prometheus_config.enable


def test_manifests_belong_together() -> None:
    by_kind = {(document["kind"], document.get("metadata", {}).get("name")): document for document in documents()}
    deployment = by_kind["Deployment", "tandem"]
    pod = deployment["spec"]["template"]
    labels = deployment["spec"]["selector"]["matchLabels"]
    assert labels.items() <= pod["metadata"]["labels"].items()
    assert by_kind["PodDisruptionBudget", "tandem"]["spec"]["selector"]["matchLabels"] == labels
    assert by_kind["HorizontalPodAutoscaler", "tandem"]["spec"]["scaleTargetRef"]["name"] == "tandem"
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for name in ("tandem-grpc", "tandem-rest"):
        service = by_kind["Service", name]
        assert service["spec"]["selector"] == labels
        assert all(port["targetPort"] in ports for port in service["spec"]["ports"])
    assert f"--port={ports['grpc']}" in container["args"]
    assert f"--rest_api_port={ports['rest']}" in container["args"]
    claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["spec"]["volumes"]]
    assert "tandem-models" in claims and ("PersistentVolumeClaim", "tandem-models") in by_kind


def test_every_metric_asked_for_is_exported() -> None:
    metrics = Metrics()
    metrics.count_request("m", "OK")
    metrics.observe_latency("m", "Predict", "GRPC", 0.001)
    metrics.add_gauge(":tandem:serving:pending_requests", lambda: {"": 0})
    metrics.add_gauge(":tandem:serving:model_version", lambda: {'model_name="m",version="1"': 1})
    page = metrics.page()
    assert list(text_string_to_metric_families(page))  # the official parser takes it
    exported = set(re.findall(r"^(:[\w:]+)\{", page, re.MULTILINE))
    dashboard = json.loads((DEPLOY / "monitoring/dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((DEPLOY / "monitoring/alerts.yaml").read_text())
    queries += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    asked = {name for query in queries for name in METRIC.findall(query)}
    assert len(asked) >= 6
    assert asked <= exported


def test_compose_mounts_exist() -> None:
    compose = yaml.safe_load((DEPLOY / "compose/docker-compose.yaml").read_text())
    for service in compose["services"].values():
        for volume in service["volumes"]:
            if volume.startswith(".."):
                assert (DEPLOY / "compose" / volume.split(":")[0]).exists(), volume
