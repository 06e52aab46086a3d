"""`tandem load` against running servers, and the arithmetic of its report."""

import asyncio
import json
import socket
import time
from collections import Counter
from pathlib import Path

import pytest

from serving.launch import ServerProcess
from serving.load import histogram, knee, main, report
from serving.load_generator import LoadResult, Target, measure, run_at_rate
from serving.load_requests import generate_requests, read_request_log
from serving.records import encode_record


def address(server: ServerProcess, protocol: str) -> str:
    return server.grpc_address if protocol == "grpc" else server.rest_address


@pytest.mark.serving
@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_generated_load(
    recommender: ServerProcess, tmp_path: Path, protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    items, figures = tmp_path / "items.txt", tmp_path / "figures.json"
    items.write_text("a\nb\nc\n")
    common = ["--server", address(recommender, protocol), "--protocol", protocol, "--seconds", "0.5"]
    assert main([*common, "--items", str(items), "--concurrency", "4", "--json", str(figures)]) == 0
    assert "0 errors" in capsys.readouterr().out
    measured = json.loads(figures.read_text())
    assert measured["requests"] >= 4  # each of the four under way got an answer
    assert 0 < measured["p50_ms"] <= measured["p99_ms"] <= measured["max_ms"]
    assert main([*common]) == 0  # histories of what the server itself recommends
    assert main([*common, "--model", "nobody"]) == 1
    said = capsys.readouterr().err
    assert "NOT_FOUND" in said and "--model NAME" in said


@pytest.mark.serving
def test_a_rest_port_is_recognised(recommender: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--server", recommender.rest_address, "--timeout", "5"]) == 1
    assert "send --protocol rest" in capsys.readouterr().err


@pytest.mark.serving
def test_errors_are_counted_by_code(recommender: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    for protocol, code in (("grpc", "NOT_FOUND"), ("rest", "HTTP 404")):
        target = Target(protocol, address(recommender, protocol), "nobody")  # type: ignore[arg-type]
        result = measure(run_at_rate(target, generate_requests([], 1, 0, 1, 0), 50.0, 0.5))
        assert set(result.outcomes) == {code} and result.latencies_ms == []
        assert f"{code}: {result.errors}" in report(result)


@pytest.mark.serving
def test_rate_is_kept(recommender: ServerProcess) -> None:
    target = Target("grpc", recommender.grpc_address, "tandem")
    result = measure(run_at_rate(target, generate_requests(["a"], 10, 3, 2, 0), 100.0, 2.0))
    assert result.errors == 0
    assert 140 <= sum(result.outcomes.values()) <= 260  # Poisson with mean 200: +-4 standard deviations
    assert len(result.late_ms) == sum(result.outcomes.values()) and min(result.late_ms) >= 0


async def stalling_server(stall_seconds: float, ready: "asyncio.Future[int]") -> None:
    """Answers REST requests at once, but stops everything once for a while."""
    body = b'{"outputs": {}}'
    answered = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line)
            await reader.readexactly(length)
            answered += 1
            if answered == 20:
                time.sleep(stall_seconds)  # noqa: ASYNC251 - nothing at all moves meanwhile
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    ready.get_loop().call_soon_threadsafe(ready.set_result, server.sockets[0].getsockname()[1])
    await server.serve_forever()


def test_a_stall_is_felt_by_everybody_who_should_have_been_served_meanwhile() -> None:
    """A generator that waits for answers would see one slow request; one in three of the users saw it."""
    import threading

    async def run() -> LoadResult:
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        threading.Thread(target=lambda: asyncio.run(stalling_server(1.0, ready)), daemon=True).start()
        target = Target("rest", f"127.0.0.1:{await ready}", "m")
        return await run_at_rate(target, generate_requests([], 1, 0, 1, 0), 100.0, 3.0)

    result = measure(run())
    assert result.errors == 0
    # 100 a second for one second of three wait half a second on average: each of them counts.
    slow = sum(latency > 100 for latency in result.latencies_ms)
    assert slow > 0.2 * len(result.latencies_ms)
    assert result.percentile(100) > 900


@pytest.mark.serving
def test_sweep_names_a_knee_and_tries_the_planned_rate(
    recommender: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.load._SWEEP", (1, 2))
    figures = tmp_path / "figures.json"
    command = ["--server", recommender.grpc_address, "--sweep", "--seconds", "0.5", "--json", str(figures)]
    assert main(command) == 0
    measured = json.loads(figures.read_text())
    assert set(measured["points"]) == {"1", "2"}
    best = measured["points"][str(measured["knee"])]
    assert measured["rate"] == pytest.approx(0.7 * best["throughput"])
    assert measured["planned"]["requests"] > 0
    assert f"knee: concurrency {measured['knee']}; 70%" in capsys.readouterr().out


def test_a_file_that_cannot_be_replayed_says_why(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(encode_record(b""))
    with pytest.raises(ValueError, match="holds no Predict request"):
        read_request_log(str(empty))
    with pytest.raises(ValueError, match="no such file"):
        read_request_log(str(tmp_path / "nothing"))
    empty.write_text("history,k\na|b,10\n" * 10)
    with pytest.raises(ValueError, match="corrupted record at 0"):
        read_request_log(str(empty))
    empty.write_bytes(encode_record(b"\xff\xff"))
    with pytest.raises(ValueError, match="record 0 of .* is no PredictionLog"):
        read_request_log(str(empty))


def test_bad_arguments_exit_with_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    server = ["--server", "127.0.0.1:1"]
    (tmp_path / "empty").touch()
    for arguments, message in (
        (["--seconds", "-1"], "--seconds must be above 0"),
        (["--rate", "-1"], "--rate must be above 0"),
        (["--requests", "/nowhere"], "/nowhere: no such file"),
        (["--items", "/nowhere"], "/nowhere"),
        (["--items", str(tmp_path / "empty")], "holds no item id"),
        (["--json", str(tmp_path / "no" / "f.json")], "there is no such folder"),
    ):
        assert main([*server, *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_server_that_is_not_there_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"127.0.0.1:{listener.getsockname()[1]}"
    assert main(["--server", place, "--timeout", "2"]) == 1
    assert f"No model server answers at {place}" in capsys.readouterr().err


def test_knee_is_where_power_is_greatest() -> None:
    def point(answers: int, latency_ms: float) -> LoadResult:
        return LoadResult(1.0, [latency_ms] * answers, Counter({"OK": answers}))

    # power: 100/1 = 100, 190/1.05 = 181, 300/2 = 150, 310/8 = 39
    points = [(1, point(100, 1.0)), (2, point(190, 1.05)), (4, point(300, 2.0)), (16, point(310, 8.0))]
    assert knee(points) == 2
    with pytest.raises(ValueError, match="No request was answered"):
        knee([(1, LoadResult())])


def test_a_generator_that_could_not_keep_up_says_so() -> None:
    answers = {"latencies_ms": [5.0] * 100, "outcomes": Counter({"OK": 100}), "seconds": 1.0}
    assert "WARNING: the generator sent 1 % of the requests 3.0 ms late" in report(
        LoadResult(late_ms=[3.0] * 100, **answers)
    )
    assert "WARNING" not in report(LoadResult(late_ms=[0.2] * 100, **answers))


def test_histogram_bounds_double() -> None:
    lines = histogram([0.9, 1.0, 1.1, 3.9])
    assert [line.split()[1] for line in lines] == ["1.000", "2.000", "4.000"]
    assert [line.split()[-1] for line in lines] == ["2", "1", "1"]
    assert [line.count("#") for line in lines] == [40, 20, 20]
