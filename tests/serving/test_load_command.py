"""`tandem load` against a running server, and the arithmetic of its report."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from serving.launch import ServerProcess
from serving.load import histogram, main
from serving.load_generator import LoadResult, Target, generate_requests, knee, read_request_log, run_at_rate
from serving.records import encode_record
from serving.warmup_records import WARMUP_FILE, write_warmup_records


@pytest.mark.serving
@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_generated_and_replayed_load(
    recommender: ServerProcess,
    recommender_path: Path,
    tmp_path: Path,
    protocol: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = recommender.grpc_address if protocol == "grpc" else recommender.rest_address
    items, figures = tmp_path / "items.txt", tmp_path / "figures.json"
    items.write_text("a\nb\nc\n")
    common = ["--server", address, "--protocol", protocol, "--seconds", "0.5", "--json", str(figures)]
    assert main([*common, "--items", str(items), "--concurrency", "4"]) == 0
    assert "0 errors" in capsys.readouterr().out
    measured = json.loads(figures.read_text())
    assert measured["requests"] > 20
    assert 0 < measured["p50_ms"] <= measured["p99_ms"] <= measured["max_ms"]
    assert main([*common, "--model", "nobody"]) == 1
    assert ("NOT_FOUND" if protocol == "grpc" else "HTTP 404") in capsys.readouterr().out


@pytest.mark.serving
def test_rate_is_kept(recommender: ServerProcess) -> None:
    target = Target("grpc", recommender.grpc_address, "tandem")
    result = asyncio.run(run_at_rate(target, generate_requests(["a"], 10, 3, 2, 0), 100.0, 2.0))
    assert result.errors == 0
    assert 140 <= sum(result.outcomes.values()) <= 260  # Poisson with mean 200: +-4 standard deviations


def test_a_request_log_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").touch()
    requests = generate_requests(["x", "y"], 3, 4, 5, seed=1)
    from tensorflow_serving.apis import predict_pb2

    protos = [predict_pb2.PredictRequest.FromString(request.grpc_message("m")) for request in requests]
    write_warmup_records(tmp_path, protos)
    again = read_request_log(tmp_path / WARMUP_FILE)
    assert [request.rest_body() for request in again] == [request.rest_body() for request in requests]
    empty = tmp_path / "empty"
    empty.write_bytes(encode_record(b""))
    with pytest.raises(ValueError, match="holds no Predict request"):
        read_request_log(empty)


def test_bad_arguments_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--server", "127.0.0.1:1", "--seconds", "-1"]) == 2
    assert "--seconds must be above 0" in capsys.readouterr().err
    assert main(["--server", "127.0.0.1:1", "--requests", "/nowhere"]) == 2


def test_knee_is_where_power_is_greatest() -> None:
    def point(answers: int, latency_ms: float) -> LoadResult:
        return LoadResult(1.0, [latency_ms] * answers, Counter({"OK": answers}))

    # power: 100/1 = 100, 190/1.05 = 181, 300/2 = 150, 310/8 = 39
    points = [(1, point(100, 1.0)), (2, point(190, 1.05)), (4, point(300, 2.0)), (16, point(310, 8.0))]
    assert knee(points) == 2
    with pytest.raises(ValueError, match="No request was answered"):
        knee([(1, LoadResult())])


def test_histogram_bounds_double() -> None:
    lines = histogram([0.9, 1.0, 1.1, 3.9])
    assert [line.split()[1] for line in lines] == ["1.000", "2.000", "4.000"]
    assert [line.split()[-1] for line in lines] == ["2", "1", "1"]
    assert [line.count("#") for line in lines] == [40, 20, 20]
