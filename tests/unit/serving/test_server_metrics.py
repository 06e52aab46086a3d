"""The metrics page: TensorFlow Serving's text form, exact sums, bounded memory."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.server.metrics import Metrics


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Value by name and sorted labels, as the official parser reads the page."""
    found = {}
    for family in text_string_to_metric_families(metrics.page()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[sample.name, labels] = sample.value
    return found


def test_a_latency_stands_in_its_bucket() -> None:
    metrics = Metrics()
    metrics.observe_latency("m", "Predict", "GRPC", 17e-6)  # bounds are 10, 18, 32.4, … µs
    metrics.observe_latency("m", "Predict", "GRPC", 18e-6 + 1e-9)
    found = samples(metrics)
    series = ":tensorflow:serving:request_latency_bucket"
    labels = "API=Predict,entrypoint=GRPC,le={},model_name=m"
    assert [found[series, labels.format(le)] for le in ("10", "18", "32.4")] == [0, 1, 2]
    assert found[":tensorflow:serving:request_latency_count", "API=Predict,entrypoint=GRPC,model_name=m"] == 2


def test_sums_keep_growing_after_a_million() -> None:
    """With six digits, as TensorFlow Serving prints them, a microsecond more would not be seen."""
    metrics = Metrics()
    metrics.observe_latency("m", "Predict", "GRPC", 12345.678901)
    metrics.observe_latency("m", "Predict", "GRPC", 1e-6)
    total = samples(metrics)[":tensorflow:serving:request_latency_sum", "API=Predict,entrypoint=GRPC,model_name=m"]
    assert total == pytest.approx(12_345_678_902, abs=0.01)


def test_loads_are_counted_by_path_and_outcome() -> None:
    metrics = Metrics()
    metrics.count_load(Path("/models/m/7"), 1.5, succeeded=True)
    metrics.count_load(Path("/models/m/8"), 0.5, succeeded=False)
    found = samples(metrics)
    name = ":tensorflow:cc:saved_model:load_attempt_count"
    assert found[f"{name}_total", "model_path=/models/m/7,status=success"] == 1
    assert found[f"{name}_total", "model_path=/models/m/8,status=fail"] == 1
    assert found[":tensorflow:cc:saved_model:load_latency_total", "model_path=/models/m/7"] == 1_500_000
    assert (":tensorflow:cc:saved_model:load_latency_total", "model_path=/models/m/8") not in found


def test_invented_names_do_not_fill_the_memory() -> None:
    metrics = Metrics()
    for number in range(3000):
        metrics.count_request(f"invented-{number}", "NOT_FOUND")
        metrics.observe_latency(f"invented-{number}", "Predict", "GRPC", 1e-3)
    metrics.count_request("invented-0", "NOT_FOUND")
    page = metrics.page()
    assert page.count(":tensorflow:serving:request_count{") == 1000
    assert page.count(":tensorflow:serving:request_latency_count{") == 1000
    assert ':tensorflow:serving:request_count{model_name="invented-0",status="NOT_FOUND"} 2' in page


def test_names_from_requests_cannot_break_the_page() -> None:
    metrics = Metrics()
    name = 'a"} 1\nevil{x="\\'
    metrics.count_request(name, "NOT_FOUND")
    families = list(text_string_to_metric_families(metrics.page()))
    assert [sample.labels["model_name"] for family in families for sample in family.samples] == [name]
