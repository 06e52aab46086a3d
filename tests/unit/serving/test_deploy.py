"""`tandem deploy`: sizes from the report, files that the tools they are for accept and that agree with each other."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from deployments import MIB, write_run
from external_tools import require_tool
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.deploy.main import main
from serving.deploy.render import fill_in
from serving.deploy.sizing import read_pushed_model
from serving.server.config_protos import read_text_config
from serving.server.flags import Flags, parse_flags
from serving.server.model_config import check_config

KUBERNETES_VERSIONS = ("1.29", "1.32", "1.34")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "shop", (1790000000, 1790003600))


@pytest.fixture(scope="module")
def deployment(run_dir: Path) -> Path:
    assert main([str(run_dir), "--enable_batching", "--cpus", "3", "--max_replicas", "9"]) == 0
    return run_dir / "deploy"


def manifests(deployment: Path) -> dict[str, dict[str, Any]]:
    """Kubernetes objects by kind, or kind and name where a kind has several."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted((deployment / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            if document["kind"] != "Kustomization":
                kind = document["kind"]
                found[kind if kind != "Service" else f"Service {document['metadata']['name']}"] = document
    return found


def run_tool(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout + result.stderr


def test_sizes_follow_from_the_report(run_dir: Path) -> None:
    model = read_pushed_model(run_dir)
    assert (model.name, model.version, model.variant) == ("my_shop", 1790003600, "int8")
    # 210 MiB measured after requests + 2 x 10 MiB on disk + 64 MiB for the graph of a second version.
    assert model.memory_request_mib == 294
    assert model.memory_limit_mib == 368  # 294 x 1.25 = 367.5
    # M/M/1 at 70 %: ln 10 x 2000 us / 0.3 = 2.302585 x 6666.67 = 15350.6
    assert model.latency_target_micros == 15351


def test_a_run_folder_that_was_moved_deploys_what_it_holds(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "moved")
    assert read_pushed_model(tmp_path / "moved").base_path == tmp_path / "moved" / "serving" / "my_shop"


def test_nothing_is_left_to_fill_in_and_the_folder_is_complete(deployment: Path) -> None:
    names = {str(path.relative_to(deployment)) for path in deployment.rglob("*") if path.is_file()}
    assert {"README.md", "compose/docker-compose.yaml", "kubernetes/deployment.yaml", "monitoring/rules.yaml"} <= names
    for path in deployment.rglob("*"):
        if path.is_file() and path.suffix in (".yaml", ".config"):
            assert not re.search(r"\$\{[a-z]", path.read_text()), path
    for file in ("models.config", "batching.config", "monitoring.config"):
        copy = deployment / "kubernetes" / "config" / file
        assert copy.read_text() == (deployment / "config" / file).read_text()


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_manifests_fit_the_schemas_of_kubernetes(deployment: Path, version: str) -> None:
    objects = manifests(deployment)
    assert set(objects) == {
        *("Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "PersistentVolumeClaim"),
        *("Service my-shop-grpc", "Service my-shop-rest"),
    }
    for document in objects.values():
        kubernetes_validate.validate(document, version, strict=True)
    objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):  # the schemas do refuse
        kubernetes_validate.validate(objects["Deployment"], version, strict=True)


def test_kustomize_puts_the_configuration_beside_the_pods(deployment: Path) -> None:
    kubectl = require_tool("kubectl", "kubernetes/kustomization.yaml by kubectl kustomize")
    built = list(yaml.safe_load_all(run_tool(kubectl, "kustomize", str(deployment / "kubernetes"))))
    (config,) = [document for document in built if document["kind"] == "ConfigMap"]
    assert config["metadata"]["name"] == "my-shop-config"
    assert set(config["data"]) == {"models.config", "batching.config", "monitoring.config"}
    assert len(built) == len(manifests(deployment)) + 1
    kubernetes_validate.validate(config, KUBERNETES_VERSIONS[-1], strict=True)


def test_kustomization_names_every_file(deployment: Path) -> None:
    folder = deployment / "kubernetes"
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert sorted([*kustomization["resources"], "kustomization.yaml"]) == sorted(f.name for f in folder.glob("*.yaml"))
    assert all((folder / file).is_file() for file in kustomization["configMapGenerator"][0]["files"])


def test_manifests_belong_together(deployment: Path) -> None:
    objects = manifests(deployment)
    pod = objects["Deployment"]["spec"]["template"]
    labels = objects["Deployment"]["spec"]["selector"]["matchLabels"]
    assert labels.items() <= pod["metadata"]["labels"].items()
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", objects["Deployment"]["metadata"]["name"])
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for name in ("Service my-shop-grpc", "Service my-shop-rest"):
        assert objects[name]["spec"]["selector"] == labels
        assert all(port["targetPort"] in ports for port in objects[name]["spec"]["ports"])
    assert int(pod["metadata"]["annotations"]["prometheus.io/port"]) == ports["rest"]
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["spec"]["volumes"] if len(volume) == 2
              and "persistentVolumeClaim" in volume]  # fmt: skip
    assert claims == [objects["PersistentVolumeClaim"]["metadata"]["name"]]
    assert container["resources"] == {"requests": {"cpu": "3", "memory": "294Mi"}, "limits": {"memory": "368Mi"}}


def test_arguments_are_flags_that_a_server_takes(deployment: Path) -> None:
    (container,) = manifests(deployment)["Deployment"]["spec"]["template"]["spec"]["containers"]
    compose = yaml.safe_load((deployment / "compose/docker-compose.yaml").read_text())["services"]["tensorflow-serving"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    for arguments in (container["args"], compose["command"]):
        flags, unknown = parse_flags(arguments)
        assert not unknown
        flags.check()
        assert flags.enable_batching and flags.allow_version_labels_for_unavailable_models
        for path in (flags.model_config_file, flags.batching_parameters_file, flags.monitoring_config_file):
            assert str(Path(path).parent) in mounts
            assert (deployment / "config" / Path(path).name).is_file()
    assert parse_flags(container["args"])[0].tensorflow_intra_op_parallelism == 3


def test_without_batching_no_flag_of_it_is_left(run_dir: Path, tmp_path: Path) -> None:
    assert main([str(run_dir), "--output", str(tmp_path / "out")]) == 0
    for name in ("kubernetes/deployment.yaml", "compose/docker-compose.yaml"):
        text = (tmp_path / "out" / name).read_text()
        assert "batching" not in text
        assert not re.search(r"(?m)^ +$", text)


def test_text_protos_are_what_tensorflow_serving_parses(deployment: Path) -> None:
    config = deployment / "config"
    assert read_text_config("BatchingParameters", str(config / "batching.config")).num_batch_threads.value == 3
    assert read_text_config("MonitoringConfig", str(config / "monitoring.config")).prometheus_config.enable
    parsed = text_format.Parse((config / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    check_config(parsed, None)
    (model,) = parsed.model_config_list.config
    assert (model.name, model.base_path) == ("my_shop", "/models/my_shop")
    assert model.model_version_policy.latest.num_versions == 1
    assert not model.version_labels


def test_labels_keep_both_versions_and_the_probes_wait_for_stable(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([str(run_dir), "--output", str(out), "--stable", "1790000000", "--canary", "1790003600"]) == 0
    text = (out / "config/models.config").read_text()
    parsed = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    check_config(parsed, None)
    (model,) = parsed.model_config_list.config
    assert list(model.model_version_policy.specific.versions) == [1790000000, 1790003600]
    assert dict(model.version_labels) == {"stable": 1790000000, "canary": 1790003600}
    (container,) = manifests(out)["Deployment"]["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] == "/v1/models/my_shop/labels/stable/metadata"


def test_compose_file_is_accepted(deployment: Path) -> None:
    tool = require_tool("docker-compose", "compose/docker-compose.yaml by docker-compose config")
    read = yaml.safe_load(run_tool(tool, "-f", str(deployment / "compose/docker-compose.yaml"), "config"))
    assert set(read["services"]) == {"tensorflow-serving", "prometheus", "grafana"}
    assert read["services"]["tensorflow-serving"]["mem_limit"] in ("368m", 368 * MIB, str(368 * MIB))


def test_compose_mounts_exist(deployment: Path) -> None:
    compose = yaml.safe_load((deployment / "compose/docker-compose.yaml").read_text())
    mounts = [volume.split(":")[0] for service in compose["services"].values() for volume in service["volumes"]]
    assert len(mounts) == 6
    for mount in mounts:
        assert (deployment / "compose" / mount).exists(), mount


def test_a_new_deployment_takes_the_place_of_the_old_one_whole(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([str(run_dir), "--output", str(out), "--cpus", "1"]) == 0
    (out / "kubernetes" / "left_over.yaml").touch()
    assert main([str(run_dir), "--output", str(out), "--cpus", "2"]) == 0
    assert not (out / "kubernetes" / "left_over.yaml").exists()
    assert 'cpu: "2"' in (out / "kubernetes/deployment.yaml").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        ([], {"pushed": False}, "no model was pushed"),
        ([], {"compression": []}, "lacks a chosen variant"),
        ([], {"compression": [{"name": "int8", "chosen": True, "p50_ms": 1.0}]}, "lacks 'resident_bytes'"),
        (["--stable", "17"], {}, "--stable 17: there is no such version in "),
        (["--stable", "1790000000", "--canary", "18"], {}, "--canary 18: there is no such version in "),
        (["--canary", "1790000000"], {}, "needs --stable"),
        (["--cpus", "0"], {}, "--cpus must be above 0"),
        (["--min_replicas", "5", "--max_replicas", "3"], {}, "--max_replicas 3 is below --min_replicas 5"),
    ],
)
def test_what_cannot_be_deployed_is_refused_by_name(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    run = write_run(tmp_path / "run", **changes)
    assert main([str(run), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (run / "deploy").exists()


def test_a_folder_that_is_no_run_or_no_deployment_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "report.json cannot be read" in capsys.readouterr().err
    run = write_run(tmp_path / "run")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").touch()
    assert main([str(run), "--output", str(photos)]) == 2
    assert "is no deployment" in capsys.readouterr().err
    assert (photos / "cat.jpg").exists()


def test_a_placeholder_without_value_is_an_error() -> None:
    assert fill_in("a: ${x}\n  ${y}\nb: $z ${Z}\n", {"x": "1", "y": "- p\n- q"}) == "a: 1\n  - p\n  - q\nb: $z ${Z}\n"
    assert fill_in("  ${y}\nb\n", {"y": ""}) == "b\n"
    with pytest.raises(KeyError, match="who"):
        fill_in("${who}", {})


def test_rendered_readme_names_flags_that_exist(deployment: Path) -> None:
    text = (deployment / "README.md").read_text()
    known = set(vars(Flags())) | {"output", "stable", "canary", "sweep", "min_replicas", "max_replicas", "cpus"}
    assert set(re.findall(r"--([a-z_]+)", text)) <= known
    assert shutil.which("sh")
    assert json.loads((deployment / "monitoring/dashboard.json").read_text())["uid"] == "tandem"
