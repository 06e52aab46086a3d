"""Alert rules and dashboard: accepted by Prometheus' own tool, fire when they should, ask for metrics that exist."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployments import write_run
from external_tools import require_tool

from serving.deploy.main import main
from serving.server.metrics import Metrics

METRIC = re.compile(r"(?<![\w:])(:(?:tensorflow|tandem):[a-z_:]+)")
# Names, and the files of tensorflow/serving and tensorflow/tensorflow that register them (release 2.20).
STOCK = {
    ":tensorflow:serving:request_count": "servables/tensorflow/util.cc",
    ":tensorflow:serving:request_latency": "servables/tensorflow/util.cc",
    ":tensorflow:serving:request_log_count": "core/request_logger.cc",
    ":tensorflow:serving:batching_session:queuing_latency": "batching/batching_session.cc",
    ":tensorflow:serving:batching_session:processed_batch_size": "batching/batching_util.h",
    ":tensorflow:cc:saved_model:load_attempt_count": "tensorflow/cc/saved_model/loader.cc",
}


@pytest.fixture(scope="module")
def monitoring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "shop")
    assert main([str(run), "--p99_limit_ms", "80"]) == 0
    return run / "deploy" / "monitoring"


def promtool(*arguments: str) -> None:
    tool = require_tool("promtool", "Prometheus configuration and rules")
    result = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def panels(monitoring: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((monitoring / "dashboard.json").read_text())["panels"]
    return found


def base_name(metric: str) -> str:
    return metric if metric in STOCK else re.sub("_(bucket|sum|count)$", "", metric)


def test_promtool_takes_configuration_and_rules(monitoring: Path, tmp_path: Path) -> None:
    promtool("check", "config", str(monitoring / "prometheus.yaml"))
    promtool("check", "rules", str(monitoring / "rules.yaml"))
    # Debian builds Prometheus without Kubernetes discovery: the rest of that file is checked with a fixed target.
    kubernetes = yaml.safe_load((monitoring / "prometheus-kubernetes.yaml").read_text())
    (job,) = kubernetes["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    job["static_configs"] = [{"targets": ["127.0.0.1:1"]}]
    (tmp_path / "rules.yaml").write_text((monitoring / "rules.yaml").read_text())
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(kubernetes))
    promtool("check", "config", str(tmp_path / "prometheus.yaml"))


def series(name: str, labels: str, values: str) -> dict[str, str]:
    return {"series": f"{name}{{{labels}}}", "values": values}


def alert(name: str, minutes: int, **labels: str) -> dict[str, Any]:
    """Expects the alert with these labels; without labels, that it is silent."""
    expected = [{"exp_labels": labels}] if labels else []
    return {"alertname": name, "eval_time": f"{minutes}m", "exp_alerts": expected}


def without_annotations(rules: Path, target: Path) -> None:
    document = yaml.safe_load(rules.read_text())
    for group in document["groups"]:
        for rule in group["rules"]:
            rule.pop("annotations", None)
    target.write_text(yaml.safe_dump(document))


def latency(le: str, values: str) -> dict[str, str]:
    labels = f'model_name="m",API="Predict",entrypoint="GRPC",instance="a",job="tandem",le="{le}"'
    return series(":tensorflow:serving:request_latency_bucket", labels, values)


def count(values: str, status: str) -> dict[str, str]:
    return series(":tensorflow:serving:request_count", f'model_name="m",status="{status}"', values)


FAILED_LOAD = ":tensorflow:cc:saved_model:load_attempt_count"
CASES = {
    "down": (
        [series("up", 'job="tandem",instance="a"', "1x4 0x10")],
        [alert("TandemDown", 4), alert("TandemDown", 8, severity="page", job="tandem", instance="a")],
    ),
    "nobody": ([series("other", "", "1x20")], [alert("TandemDown", 5, severity="page", job="tandem")]),
    "errors": (
        # 100 a minute, 2 of them UNAVAILABLE: 2 %.
        [series("up", 'job="tandem"', "1x30"), count("0+98x30", "OK"), count("0+2x30", "UNAVAILABLE")],
        [alert("TandemErrors", 4), alert("TandemErrors", 15, severity="page", model_name="m")],
    ),
    "faults of callers": (
        [series("up", 'job="tandem"', "1x30"), count("0+50x30", "OK"), count("0+50x30", "INVALID_ARGUMENT")],
        [alert("TandemErrors", 25), alert("TandemModelMissing", 25)],
    ),
    "missing": (
        [series("up", 'job="tandem"', "1x30"), count("0+1x30", "NOT_FOUND")],
        [alert("TandemModelMissing", 15, severity="ticket", model_name="m")],
    ),
    "slow": (
        # Half of the requests below 50 ms, all below 100 ms: p99 = 50 + 50 x 0.49 / 0.5 = 99 ms, above 80.
        [latency("50000", "0+50x40"), latency("100000", "0+100x40"), latency("+Inf", "0+100x40")],
        [alert("TandemSlow", 9), alert("TandemSlow", 30, severity="ticket", model_name="m")],
    ),
    "fast enough": (
        # p99 = 50 + 50 x 0.09 / 0.1 x … : 90 % below 50 ms, all below 60 ms: p99 = 50 + 10 x 0.9 = 59 ms.
        [latency("50000", "0+90x40"), latency("60000", "0+100x40"), latency("+Inf", "0+100x40")],
        [alert("TandemSlow", 35)],
    ),
    "a version fails": (
        [series(FAILED_LOAD, 'model_path="/models/m/8",status="fail",instance="a"', "0x5 1x30")],
        [
            alert("TandemVersionFails", 4),
            alert("TandemVersionFails", 7, severity="ticket", model_path="/models/m/8", status="fail", instance="a"),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_alerts_fire_when_they_should_and_not_before(monitoring: Path, tmp_path: Path, case: str) -> None:
    inputs, expectations = CASES[case]
    without_annotations(monitoring / "rules.yaml", tmp_path / "rules.yaml")
    test = {"interval": "1m", "input_series": inputs, "alert_rule_test": expectations}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    promtool("test", "rules", str(tmp_path / "test.yaml"))


def test_autoscaler_reads_the_p90_of_each_pod_and_0_of_an_idle_one(monitoring: Path, tmp_path: Path) -> None:
    def pod(name: str, le: str, values: str, api: str = "Predict") -> dict[str, str]:
        labels = f'namespace="n",pod="{name}",instance="{name}",API="{api}",le="{le}"'
        return series(":tensorflow:serving:request_latency_bucket", labels, values)

    def total(name: str, values: str) -> dict[str, str]:
        labels = f'namespace="n",pod="{name}",instance="{name}",API="Predict"'
        return series(":tensorflow:serving:request_latency_count", labels, values)

    # Busy: 80 of 100 below 1 ms, all below 2 ms: p90 = 1000 + 1000 x 0.5. Probes (API="") would pull it down.
    inputs = [
        *(pod("busy", "1000", "0+80x9"), pod("busy", "2000", "0+100x9"), pod("busy", "+Inf", "0+100x9")),
        *(
            pod("busy", "1000", "0+9000x9", ""),
            pod("busy", "2000", "0+9000x9", ""),
            pod("busy", "+Inf", "0+9000x9", ""),
        ),
        *(total("busy", "0+100x9"), total("idle", "7x9")),
        *(pod("idle", "1000", "7x9"), pod("idle", "+Inf", "7x9")),
    ]
    name = "tandem:request_latency_micros:p90"
    expected = [
        {"labels": f'{name}{{namespace="n",pod="{pod_name}",instance="{pod_name}"}}', "value": value}
        for pod_name, value in (("busy", 1500), ("idle", 0))
    ]
    test = {
        "interval": "1m",
        "input_series": inputs,
        "promql_expr_test": [{"expr": name, "eval_time": "5m", "exp_samples": expected}],
    }
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump({"rule_files": [str(monitoring / "rules.yaml")], "tests": [test]})
    )
    promtool("test", "rules", str(tmp_path / "test.yaml"))


def test_autoscaler_adapter_and_rules_speak_of_the_same_metric(monitoring: Path) -> None:
    rules = yaml.safe_load((monitoring / "rules.yaml").read_text())
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}
    (adapter,) = yaml.safe_load((monitoring / "adapter.yaml").read_text())["rules"]
    autoscaler = yaml.safe_load((monitoring.parent / "kubernetes/autoscaler.yaml").read_text())
    (wanted,) = [metric["pods"]["metric"]["name"] for metric in autoscaler["spec"]["metrics"] if "pods" in metric]
    assert adapter["name"]["as"] == wanted
    assert adapter["seriesQuery"].partition("{")[0] in recorded
    resources = [m["resource"]["name"] for m in autoscaler["spec"]["metrics"] if "resource" in m]
    assert resources == ["cpu"]


def exported_names() -> set[str]:
    metrics = Metrics()
    metrics.count_request("m", "OK")
    metrics.observe_latency("m", "Predict", "GRPC", 0.001)
    metrics.observe_batch(3)
    metrics.observe_queueing(0.001)
    metrics.count_load(Path("/m/1"), 1.0, succeeded=True)
    metrics.count_logged("m", "OK")
    metrics.count_cached("m", "hit")
    names = {":tandem:serving:pending_requests", ":tandem:serving:model_version"}  # gauges that the process adds
    return names | set(re.findall(r"^(:[\w:]+)\{", metrics.page(), re.MULTILINE))


def test_every_metric_asked_for_is_exported_and_stock_or_named_as_tandems(monitoring: Path) -> None:
    exported = exported_names()
    for panel in panels(monitoring):
        for target in panel["targets"]:
            for metric in METRIC.findall(target["expr"]):
                assert metric in exported, (panel["title"], metric)
                if metric.startswith(":tandem:"):
                    assert "(Tandem only)" in panel["title"], panel["title"]
                else:
                    assert base_name(metric) in STOCK, metric
    rules = yaml.safe_load((monitoring / "rules.yaml").read_text())
    asked = [m for group in rules["groups"] for rule in group["rules"] for m in METRIC.findall(rule["expr"])]
    assert len(asked) >= 7
    assert all(metric in exported and base_name(metric) in STOCK for metric in asked)


def test_dashboard_shows_what_an_operator_asks(monitoring: Path) -> None:
    titles = " | ".join(panel["title"] for panel in panels(monitoring)).lower()
    for word in ("per second", "p50 and p99", "by code", "versions", "waiting for a batch", "cache"):
        assert word in titles, word
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels(monitoring)]
    assert len(set(places)) == len(places)
    source = yaml.safe_load((monitoring / "grafana/datasources/prometheus.yaml").read_text())["datasources"][0]
    variables = {v["name"]: v for v in json.loads((monitoring / "dashboard.json").read_text())["templating"]["list"]}
    assert variables["datasource"]["current"]["value"] == source["uid"]
