"""TLS, UNIX socket, CORS, health off, batching behind both protocols, config file polling."""

import http.client
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest

from serving.client import Client, ClientOptions
from serving.launch import ServerProcess

pytestmark = pytest.mark.serving


def ask(server: ServerProcess, value: float = 1.0, name: str = "tiny") -> dict:
    connection = http.client.HTTPConnection(server.rest_address, timeout=30)
    connection.request("POST", f"/v1/models/{name}:predict", json.dumps({"instances": [value]}))
    return json.loads(connection.getresponse().read())


def test_tls_socket_cors_and_no_health(recommender_path: Path, tmp_path: Path) -> None:
    key, certificate, config = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "ssl.txt"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(make, check=True, capture_output=True)
    config.write_text(
        f"server_key: {json.dumps(key.read_text())}\nserver_cert: {json.dumps(certificate.read_text())}\n"
    )
    socket = tmp_path / "grpc.sock"
    flags = [f"--ssl_config_file={config}", "--rest_api_enable_cors_support", f"--grpc_socket_path={socket}"]
    flags += ["--grpc_channel_arguments=grpc.max_connection_age_ms=600000"]
    with ServerProcess(recommender_path, "tandem", flags=flags) as server:
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with Client(server.grpc_address, "tandem", ClientOptions(credentials=credentials)) as client:
            assert client.recommend(["a"], 1)[0].item_id == "b"
        assert socket.exists()
        with grpc.secure_channel(server.grpc_address, credentials) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        connection = http.client.HTTPConnection(server.rest_address, timeout=30)
        connection.request("GET", "/v1/models/tandem")
        answer = connection.getresponse()
        answer.read()
        assert answer.getheader("Access-Control-Allow-Origin") == "*"
        assert answer.getheader("Access-Control-Allow-Methods") == "POST, GET"
        assert answer.getheader("Access-Control-Allow-Headers") == "Content-Type"
        connection.request("GET", "/monitoring/prometheus/metrics")
        assert connection.getresponse().status == 404


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ('server_cert: "c"', "server_key"),
        ('server_key: "k"', "server_cert"),
        ('server_key: "k" server_cert: "c" client_verify: true', "custom_ca to check the clients' certificates"),
    ],
)
def test_tls_without_what_it_needs_is_named(text: str, missing: str, tmp_path: Path) -> None:
    file = tmp_path / "ssl.txt"
    file.write_text(text)
    command = [sys.executable, "-m", "serving.server", f"--model_base_path={tmp_path}", f"--ssl_config_file={file}"]
    result = subprocess.run(
        [*command, "--port=18998", "--bind_address=127.0.0.1"], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2, result.stderr
    assert f"{file} needs {missing}" in result.stderr
    assert "Traceback" not in result.stderr


def test_batching_is_invisible(base_path: Path, tmp_path: Path) -> None:
    parameters = tmp_path / "batching.txt"
    parameters.write_text("max_batch_size { value: 8 } batch_timeout_micros { value: 20000 }")
    monitoring = tmp_path / "monitoring.txt"
    monitoring.write_text('prometheus_config { enable: true path: "/metrics" }')
    flags = ["--enable_batching=true", f"--batching_parameters_file={parameters}"]
    with ServerProcess(base_path, "tiny", flags=[*flags, f"--monitoring_config_file={monitoring}"]) as server:
        answers: dict[int, dict] = {}
        threads = [
            threading.Thread(target=lambda value=value: answers.update({value: ask(server, value)}))
            for value in range(24)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == {value: {"predictions": [value / 2 + 2]} for value in range(24)}
        assert "error" in ask(server, "wrong")  # type: ignore[arg-type]
        connection = http.client.HTTPConnection(server.rest_address, timeout=30)
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
        count = next(line for line in page.splitlines() if "processed_batch_size_count" in line)
        assert int(count.split()[-1]) < 24  # some were joined


def test_the_config_file_is_read_again(base_path: Path, tmp_path: Path) -> None:
    config = tmp_path / "models.txt"

    def listed(**base_paths: Path) -> str:
        entries = (
            f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" }}'
            for name, path in base_paths.items()
        )
        return "model_config_list {" + " ".join(entries) + "}"

    config.write_text(listed(tiny=base_path))
    flags = [f"--model_config_file={config}", "--model_config_file_poll_wait_seconds=1"]
    with ServerProcess(base_path, "tiny", flags=flags) as server:
        config.write_text("broken {")
        time.sleep(1.5)
        assert ask(server) == {"predictions": [2.5]}
        config.write_text(listed(tiny=base_path, second=tmp_path / "wrong"))
        give_up = time.monotonic() + 20
        while "Could not find base path" not in server.log:
            assert time.monotonic() < give_up
            time.sleep(0.1)
        config.write_text(
            listed(tiny=base_path, second=base_path)
        )  # what is waited for keeps nobody from correcting it
        give_up = time.monotonic() + 20
        while "predictions" not in ask(server, name="second"):
            assert time.monotonic() < give_up
            time.sleep(0.1)


def test_garbage_collections_under_load_do_not_look_at_what_was_imported(base_path: Path) -> None:
    program = """
import asyncio, gc, os, signal, sys
from serving.server.flags import parse_flags
from serving.server.process import ModelServer
def ready():
    print(len(gc.get_objects()), gc.get_freeze_count())
    os.kill(os.getpid(), signal.SIGTERM)
asyncio.run(ModelServer(parse_flags(sys.argv[1:])[0]).serve(ready))
"""
    flags = [f"--model_base_path={base_path}", "--port=0", "--rest_api_port=0"]
    outcome = subprocess.run([sys.executable, "-c", program, *flags], capture_output=True, text=True, check=True)
    collected, frozen = map(int, outcome.stdout.split())
    assert frozen > 20_000
    assert collected < 0.1 * frozen
