"""The ingest reads s3:// through Beam's file systems: for real, from an S3 server on loopback (moto)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import boto3
import pytest
from apache_beam.io.filesystems import FileSystems
from moto.server import ThreadedMotoServer

from components.arrow_example_gen import remote_files
from components.arrow_example_gen.columns import table_columns
from components.arrow_example_gen.executor import WriteShard
from components.arrow_example_gen.planning import plan_pieces
from components.arrow_example_gen.preflight import check_dataset
from components.arrow_example_gen.sources import LOCAL_FILES, find_files, fingerprint
from components.config import DataConfig
from components.errors import InputError, MissingInputError

CONFIG = DataConfig(window="2d")
COLUMNS = table_columns("interactions", CONFIG, [])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def options(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    for name, value in (("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret")):
        monkeypatch.setenv(name, value)
    arguments = [f"--s3_endpoint_url={server}", "--s3_region_name=us-east-1"]
    before = FileSystems._pipeline_options
    remote_files.use_options(arguments)
    yield arguments
    FileSystems._pipeline_options = before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set with three spans."""
    for day in (1, 2, 3):
        write_span(tmp_path / "shop", day)
    (tmp_path / "shop" / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},Item {n}\n" for n in range(9)))
    return tmp_path / "shop"


def write_span(folder: Path, day: int, rows: int = 200) -> Path:
    span = folder / "interactions" / f"span-2026010{day}"
    span.mkdir(parents=True, exist_ok=True)
    lines = [f'"u{n % 5}",i{n % 9},{1_700_000_000 + 86_400 * day + n}' for n in range(rows)]
    (span / "part.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    return span / "part.csv"


def upload(folder: Path, server: str, bucket: str) -> str:
    client = boto3.client("s3", endpoint_url=server, region_name="us-east-1")
    if bucket not in [b["Name"] for b in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=bucket)
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), bucket, f"shop/{path.relative_to(folder)}")
    return f"s3://{bucket}/shop"


def ingest(base: str, output: Path, options: list[str]) -> dict[str, bytes]:
    """Shards by name, as the ingest writes them on Beam."""
    files = remote_files.file_access(base)
    pieces = list(plan_pieces(find_files(base, "interactions", window="2d", files=files), COLUMNS, files=files))
    (output / "Split-all").mkdir(parents=True)
    write = WriteShard(base, str(output), COLUMNS, with_row=True, num_shards=len(pieces))
    with beam.Pipeline(argv=["--runner=FnApiRunner", *options]) as pipeline:
        _ = pipeline | beam.Create(list(enumerate(pieces))) | beam.ParDo(write)
    for report in output.glob("piece-*.json"):
        assert not json.loads(report.read_text())["error"]
    return {path.name: path.read_bytes() for path in (output / "Split-all").iterdir()}


def test_spans_on_s3_give_the_shards_of_a_local_copy(folder, server, options, tmp_path):
    remote = ingest(upload(folder, server, "spans"), tmp_path / "remote", options)
    assert remote == ingest(str(folder), tmp_path / "local", [])
    assert len(remote) == 2  # a window of two days


def test_a_late_or_corrected_span_on_s3_changes_the_fingerprint(folder, server, options):
    base = upload(folder, server, "late")

    def key() -> str:
        sources = find_files(base, "interactions", window="2d", files=remote_files.BEAM_FILES)
        return fingerprint(sources, remote_files.BEAM_FILES)

    first = key()
    assert key() == first
    write_span(folder, 1)
    upload(folder, server, "late")
    assert key() == first  # outside the window
    write_span(folder, 2, rows=199)
    upload(folder, server, "late")
    corrected = key()
    write_span(folder, 4)
    upload(folder, server, "late")
    assert len({first, corrected, key()}) == 3


def test_remote_data_is_checked_by_names_and_headers_before_a_run(folder, server, options):
    check_dataset(upload(folder, server, "headers"), CONFIG, [])
    span = write_span(folder, 3)
    span.write_text(span.read_text().replace("user_id", "usr_id", 1))
    with pytest.raises(MissingInputError, match="no column 'user_id'.*did you mean 'usr_id'"):
        check_dataset(upload(folder, server, "headers"), CONFIG, [])
    with pytest.raises(InputError, match="(?s)s3://headers/nothing.*check"):
        check_dataset("s3://headers/nothing", CONFIG, [])
    with pytest.raises(InputError, match="(?s)s3://no-such-bucket/shop.*check"):
        check_dataset("s3://no-such-bucket/shop", CONFIG, [])


def test_local_files_are_read_without_beam():
    assert remote_files.file_access("/data/shop") is LOCAL_FILES
