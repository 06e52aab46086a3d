"""Load from ghz, a gRPC load generator in Go that takes a tenth of the processor time of a Python client.

A client in Python takes as long to send a request as the server takes to answer it, and its own queue is part of the
latency it sees. `go install github.com/bojand/ghz/cmd/ghz@v0.93.0` builds it.
"""

import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from google.protobuf import descriptor_pb2, json_format
from google.protobuf.descriptor import FileDescriptor
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2

from benchmarks.serving_clients import PREDICT, Measured

# The first moments, when all clients connect and ask at once, are not counted.
RAMP_SECONDS = 0.5


def ghz_loop(ghz: str, address: str, pid: int, messages: Sequence[bytes], clients: int, seconds: float) -> Measured:
    """As `closed_loop`: each of `clients` asks, waits for the answer and asks again; they share one connection.

    Args:
        ghz: Path of the program.
        address: `host:port` of the server.
        pid: Its process, for its processor time.
        messages: Serialised Predict requests, sent in turn.
        clients: Requests under way at any time.
        seconds: Length of the run.
    """
    process = psutil.Process(pid)
    with tempfile.TemporaryDirectory() as folder:
        protos, data = Path(folder) / "services.protoset", Path(folder) / "requests.json"
        protos.write_bytes(_descriptors().SerializeToString())
        requests = [predict_pb2.PredictRequest.FromString(raw) for raw in messages]
        data.write_text(json.dumps([json_format.MessageToDict(r, preserving_proto_field_name=True) for r in requests]))
        command = [ghz, "--insecure", f"--protoset={protos}", f"--call={PREDICT[1:]}", f"--data-file={data}"]
        command += [f"--concurrency={clients}", f"--duration={seconds}s", "--duration-stop=wait", "--format=json"]
        before = sum(process.cpu_times()[:2])
        report = json.loads(subprocess.run([*command, address], check=True, capture_output=True, text=True).stdout)
    cpu_per_answer = (sum(process.cpu_times()[:2]) - before) / report["count"]
    answers = [(pd.Timestamp(row["timestamp"]).timestamp(), row) for row in report["details"]]
    begin = min(asked for asked, _ in answers) + RAMP_SECONDS
    counted = [row for asked, row in answers if asked >= begin]
    latencies = [row["latency"] / 1e6 for row in counted if row["status"] == "OK"]
    errors: Counter[str] = Counter(row["status"] for row in counted if row["status"] != "OK")
    return Measured(latencies, seconds - RAMP_SECONDS, cpu_per_answer * len(latencies), errors)


def _descriptors() -> descriptor_pb2.FileDescriptorSet:
    """The service and all that it imports."""
    found: dict[str, Any] = {}

    def visit(file: FileDescriptor) -> None:
        if file.name not in found:
            for dependency in file.dependencies:
                visit(dependency)
            found[file.name] = file

    visit(prediction_service_pb2.DESCRIPTOR)
    files = descriptor_pb2.FileDescriptorSet()
    for file in found.values():
        file.CopyToProto(files.file.add())
    return files
