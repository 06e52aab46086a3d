"""The request log: whole records only, sampled, bounded, and never in the way of a request."""

from pathlib import Path

import pytest
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from serving.records import RecordError, encode_record, read_records, whole_bytes
from serving.server.metrics import Metrics
from serving.server.request_log import RequestLog
from serving.server.status import StatusError


def request(number: int) -> predict_pb2.PredictRequest:
    message = predict_pb2.PredictRequest()
    message.model_spec.name = "m"
    message.inputs["x"].int_val.append(number)
    return message


def numbers(path: Path) -> list[int]:
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in read_records(path)]
    return [log.predict_log.request.inputs["x"].int_val[0] for log in logs]


def keep(log: RequestLog, *values: int) -> None:
    for value in values:
        log.write(request(value), predict_pb2.PredictResponse())


def test_what_is_written_is_read_back_and_counted(tmp_path: Path) -> None:
    metrics = Metrics()
    log = RequestLog(tmp_path / "deep" / "log", 1.0, metrics=metrics)
    keep(log, 1, 2, 3)
    log.close()
    assert numbers(tmp_path / "deep" / "log") == [1, 2, 3]
    assert ':tensorflow:serving:request_log_count{model_name="m",status_code="OK"} 3' in metrics.page()
    assert log.dropped == 0


def test_a_record_that_a_killed_server_did_not_finish_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log"
    whole = encode_record(b"")
    for rest in (b"\x05", encode_record(b"hello")[:-1]):
        path.write_bytes(whole + rest)
        log = RequestLog(path, 1.0)
        keep(log, 4)
        log.close()
        assert [len(record) > 0 for record in read_records(path)] == [False, True]


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes, do not cut them off")
    with pytest.raises(StatusError, match="no request log"):
        RequestLog(path)
    assert path.read_text().startswith("these are my notes")


def test_a_full_file_makes_room(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = RequestLog(path, 1.0, max_bytes=200)
    keep(log, *range(20))
    log.close()
    assert path.stat().st_size <= 200 and (tmp_path / "log.1").stat().st_size <= 200
    assert numbers(tmp_path / "log.1")[-1] + 1 == numbers(path)[0]
    assert numbers(path)[-1] == 19


def test_a_disk_that_refuses_is_counted_and_leaves_no_half_record(tmp_path: Path) -> None:
    path, metrics = tmp_path / "log", Metrics()
    log = RequestLog(path, 1.0, metrics=metrics)
    keep(log, 1)
    while not path.stat().st_size:
        pass
    path.rename(tmp_path / "kept")
    path.mkdir()  # cannot be opened as a file
    keep(log, 2)
    log.close()
    assert log.dropped == 1
    assert numbers(tmp_path / "kept") == [1]
    assert ':tensorflow:serving:request_log_count{model_name="m",status_code="UNAVAILABLE"} 1' in metrics.page()


def test_sampling_keeps_the_share_it_was_told(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "log", 0.25, seed=1)
    assert 2300 < sum(log.chooses() for _ in range(10_000)) < 2700  # 2500 +- 4.6 standard deviations
    log.close()
    everything, nothing = RequestLog(tmp_path / "a", 1.0), RequestLog(tmp_path / "b", 0.0)
    assert all(everything.chooses() for _ in range(100))
    assert not any(nothing.chooses() for _ in range(100))
    everything.close()
    nothing.close()


def test_a_reader_of_a_live_log_stops_before_the_record_under_way(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(encode_record(b"one") + encode_record(b"two")[:-3])
    assert whole_bytes(path) == len(encode_record(b"one"))
    assert list(read_records(path, is_live=True)) == [b"one"]
    with pytest.raises(RecordError, match="truncated"):
        list(read_records(path))
