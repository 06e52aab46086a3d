"""One request log, three ends: the next warm-up, the serving side of the skew check, a load test."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.client import Client, ClientOptions
from serving.errors import ServingError
from serving.launch import ServerProcess
from serving.load import main as load
from serving.load_requests import read_request_log
from serving.messages import ModelTarget
from serving.recorded_requests import log_files, predict_requests
from serving.records import encode_record
from serving.warmup_records import WARMUP_FILE, write_warmup_records

pytestmark = pytest.mark.serving
ASKED = [("a",), ("b", "é"), (), ("c", "a", "d")]


@pytest.fixture(scope="module")
def log(recommender_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a server wrote that was asked over both protocols, some of it wrongly."""
    path = tmp_path_factory.mktemp("log") / "requests.tfrecord"
    with ServerProcess(
        recommender_path, "tandem", flags=[f"--request_log={path}", "--request_log_sampling_rate=1"]
    ) as server:
        for protocol, address in (("grpc", server.grpc_address), ("rest", server.rest_address)):
            options = ClientOptions(protocol)  # type: ignore[arg-type]
            with Client(address, ModelTarget("tandem", version=7), options) as client:
                for history in ASKED:
                    client.recommend(history, 2)
                client.recommend_user("someone", 2)
                client.embed_items(["a"])
                with pytest.raises(ServingError):
                    client.recommend(["a"], -1)
    yield path


def test_it_holds_what_was_answered_over_both_protocols(log: Path) -> None:
    names = [request.model_spec.signature_name for request in predict_requests(log)]
    assert names == ["recommend", "recommend", "recommend", "recommend", "recommend_user", "embed_items"] * 2


def test_it_is_the_serving_side_of_the_skew_check(log: Path) -> None:
    from components.sequence_validator.serving_log import read_queries

    (batch,) = read_queries(str(log) + "*", ())
    expected = [[item.encode() for item in history] or None for history in ASKED]
    assert batch.column("history").to_pylist() == expected * 2


def test_it_becomes_the_warm_up_of_the_next_version(log: Path, recommender_path: Path, tmp_path: Path) -> None:
    shutil.copytree(recommender_path / "7", tmp_path / "base" / "8")
    assert write_warmup_records(tmp_path / "base" / "8", predict_requests(log)) == 12
    server_log = tmp_path / "server.log"
    with ServerProcess(tmp_path / "base", "tandem", log_path=server_log) as server:
        with Client(server.grpc_address, "tandem") as client:
            assert client.status()[0].version == 8
    assert "Ran 12 warm-up records" in server_log.read_text()


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_it_is_replayed(
    log: Path, recommender: ServerProcess, protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    address = recommender.grpc_address if protocol == "grpc" else recommender.rest_address
    common = ["--server", address, "--protocol", protocol, "--requests", f"{log}*"]
    assert load([*common, "--rate", "100", "--seconds", "1"]) == 0
    out = capsys.readouterr().out
    assert "0 errors" in out and "latency ms: p50" in out


def test_replay_keeps_the_order_and_a_live_log_may_end_in_the_middle_of_a_record(log: Path, tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.write_bytes(log.read_bytes() + encode_record(b"x" * 50)[:-9])
    requests = read_request_log(str(live))
    assert [request.inputs["history"].tolist() for request in requests[:2]] == [[[b"a"]], [[b"b", "é".encode()]]]
    assert len(requests) == 12
    assert log_files(str(tmp_path / "*")) == [live]


def test_a_warm_up_file_is_replayed_too(log: Path, tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").touch()
    write_warmup_records(tmp_path, predict_requests(log))
    assert len(read_request_log(str(tmp_path / WARMUP_FILE))) == 12
