"""Downloads against a server on 127.0.0.1: resumed, verified, and nothing half-written is left."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from components.errors import InputError
from pipeline.datasets import movielens
from pipeline.datasets.download import SOURCES, Source, download
from pipeline.datasets.fetching import DamagedArchiveError, fetch

CONTENT = bytes(range(256)) * 2000
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


class Publisher(http.server.ThreadingHTTPServer):
    """Serves one file; cuts the first `cuts` answers half-way."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = CONTENT
        self.cuts = 0
        self.failures = 0
        self.supports_ranges = True
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.zip"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Publisher

    def do_GET(self) -> None:
        publisher = self.server
        wanted = self.headers.get("Range", "")
        publisher.requests.append(wanted)
        if publisher.failures:
            publisher.failures -= 1
            self.send_error(503)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and publisher.supports_ranges else 0
        total = len(publisher.content)
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.end_headers()
            return
        body = publisher.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if publisher.cuts:
            publisher.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test output quiet."""


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    server = Publisher()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_cut_connection_is_resumed_where_it_was_cut(publisher: Publisher, tmp_path: Path) -> None:
    publisher.cuts = 2
    lines: list[str] = []
    fetch(publisher.url, tmp_path / "file.zip", md5=MD5, pause_seconds=0, report=lines.append)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert publisher.requests == ["", "bytes=256000-", "bytes=384000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["file.zip"]
    assert "file.zip: connection cut after 256,000 of 512,000 bytes; trying again from byte 256,000" in lines
    assert lines[-1] == "file.zip: 0.5 MB, complete"


def test_a_later_call_goes_on_with_the_part_of_an_earlier_one(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:100])
    fetch(publisher.url, tmp_path / "file.zip", md5=MD5, report=lambda line: None)
    assert publisher.requests == ["bytes=100-"]
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_complete_part_is_taken_as_it_is(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(CONTENT)
    fetch(publisher.url, tmp_path / "file.zip", md5=MD5, report=lambda line: None)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(CONTENT + b"of an older release")
    fetch(publisher.url, tmp_path / "file.zip", md5=MD5, pause_seconds=0, report=lambda line: None)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert publisher.requests[1:] == [""]


def test_a_server_without_ranges_sends_everything_again(publisher: Publisher, tmp_path: Path) -> None:
    publisher.supports_ranges = False
    (tmp_path / "file.zip.part").write_bytes(b"x" * 100)
    fetch(publisher.url, tmp_path / "file.zip", md5=MD5, report=lambda line: None)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_an_overloaded_server_is_asked_again(publisher: Publisher, tmp_path: Path) -> None:
    publisher.failures = 2
    fetch(publisher.url, tmp_path / "file.zip", md5=MD5, pause_seconds=0, report=lambda line: None)
    assert len(publisher.requests) == 3


def test_a_wrong_checksum_deletes_the_file(publisher: Publisher, tmp_path: Path) -> None:
    with pytest.raises(DamagedArchiveError, match=f"checksum {MD5}, the publisher states 0000; it was deleted"):
        fetch(publisher.url, tmp_path / "file.zip", md5="0000", report=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_no_network_names_the_mend_and_keeps_what_there_is(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}/file.zip"
    (tmp_path / "file.zip.part").write_bytes(b"abc")
    with pytest.raises(InputError) as caught:
        fetch(url, tmp_path / "file.zip", pause_seconds=0, report=lambda line: None)
    message = str(caught.value)
    assert message.startswith(f"{url} cannot be downloaded: ")
    assert "Connection refused" in message
    assert "3 bytes are kept" in message
    assert message.endswith(f"download the file by hand and put it at {tmp_path / 'file.zip'}")


def test_a_file_that_moved_is_not_asked_for_again(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content = b""
    with pytest.raises(InputError, match="the server answers 416"):
        fetch(publisher.url, tmp_path / "file.zip", report=lambda line: None)
    assert len(publisher.requests) == 1


# A made-up archive in the publisher's format.
RATINGS = b"1::20::5::978300760\n1::3::3::978302109\n1::7::4::978300760\n10::3::1::978302110\n2::20::2::978302111\n"
MOVIES = "3::Caf\xe9 Example, The (1995)::Comedy|Children's\n7::Second (Again) (2001)::Drama\n20::No Year::War\n"
PEOPLE = b"1::F::1::10::48067\n2::M::56::16::70072-1234\n10::M::25::0::02460\n"


def movielens_archive(ratings: bytes = RATINGS, members: tuple[str, ...] = ("ratings", "movies", "users")) -> bytes:
    stream = io.BytesIO()
    contents = {"ratings": ratings, "movies": MOVIES.encode("latin-1"), "users": PEOPLE}
    with zipfile.ZipFile(stream, "w") as archive:
        for name in members:
            archive.writestr(f"ml-1m/{name}.dat", contents[name])
    return stream.getvalue()


def checked_convert(archive: Path, folder: Path) -> None:
    """The converter with what is known of the made-up ratings.dat; the id comes from `git hash-object`."""
    movielens.convert(archive, folder, movielens.RatingsCheck(98, "abb200a8bf1b5b59d32a18966f1fb70d720e7a45"))


def offered(publisher: Publisher, content: bytes) -> dict[str, Source]:
    """MovieLens 1M as the server on 127.0.0.1 publishes it."""
    publisher.content = content
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    changed = dataclasses.replace(SOURCES["movielens-1m"], url=publisher.url, md5=md5, convert=checked_convert)
    return {"movielens-1m": changed}


def test_movielens_becomes_a_data_set_folder(publisher: Publisher, tmp_path: Path) -> None:
    directory = tmp_path / "data" / "ml"
    lines: list[str] = []
    download("movielens-1m", directory, sources=offered(publisher, movielens_archive()), report=lines.append)
    interactions = pq.read_table(directory / "interactions.parquet")
    assert {f.name: str(f.type) for f in interactions.schema} == {
        "user_id": "string",
        "item_id": "string",
        "timestamp": "int64",
        "rating": "float",
    }
    # By user as a number, then time; 20 and 7 share their second and keep the order of the file.
    assert [tuple(row.values()) for row in interactions.to_pylist()] == [
        ("1", "20", 978300760, 5.0),
        ("1", "7", 978300760, 4.0),
        ("1", "3", 978302109, 3.0),
        ("2", "20", 978302111, 2.0),
        ("10", "3", 978302110, 1.0),
    ]
    items = pq.read_table(directory / "items.parquet")
    assert str(items.schema.field("year").type) == "int32"
    assert items.to_pylist() == [
        {
            "item_id": "3",
            "title": "Café Example, The (1995)",
            "year": 1995,
            "genres": ["Comedy", "Children's"],
        },
        {"item_id": "7", "title": "Second (Again) (2001)", "year": 2001, "genres": ["Drama"]},
        {"item_id": "20", "title": "No Year", "year": None, "genres": ["War"]},
    ]
    assert [tuple(row.values()) for row in pq.read_table(directory / "users.parquet").to_pylist()] == [
        ("1", "F", "Under 18", "K-12 student", "48067"),
        ("2", "M", "56+", "self-employed", "70072-1234"),
        ("10", "M", "25-34", "other or not specified", "02460"),
    ]
    assert [p.name for p in directory.parent.iterdir()] == ["ml"]
    assert lines[-1] == "MovieLens 1M by GroupLens: research use only, no redistribution"


def test_other_ratings_are_refused_and_deleted(publisher: Publisher, tmp_path: Path) -> None:
    changed = RATINGS.replace(b"::5::", b"::4::")
    with pytest.raises(DamagedArchiveError, match=r"ratings.dat has 98 bytes and git blob id .* it was deleted"):
        sources = offered(publisher, movielens_archive(changed))
        download("movielens-1m", tmp_path / "ml", sources=sources, report=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_without_its_files_is_refused(publisher: Publisher, tmp_path: Path) -> None:
    sources = offered(publisher, movielens_archive(members=("ratings", "users")))
    with pytest.raises(DamagedArchiveError, match="is not the MovieLens 1M archive.*ml-1m/movies.dat"):
        download("movielens-1m", tmp_path / "ml", sources=sources, report=lambda line: None)
    with pytest.raises(DamagedArchiveError, match="is not the MovieLens 1M archive"):
        sources = offered(publisher, b"<html>log in to the network</html>")
        download("movielens-1m", tmp_path / "ml", sources=sources, report=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_put_there_by_hand_is_used_and_kept(publisher: Publisher, tmp_path: Path) -> None:
    sources = offered(publisher, movielens_archive())
    (tmp_path / "ml-1m.zip").write_bytes(movielens_archive())
    download("movielens-1m", tmp_path / "ml", sources=sources, report=lambda line: None)
    assert publisher.requests == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ml", "ml-1m.zip"]
    (tmp_path / "ml-1m.zip").write_bytes(b"something else")
    with pytest.raises(DamagedArchiveError, match=r"the publisher states .*; delete .*ml-1m.zip and run"):
        download("movielens-1m", tmp_path / "ml", sources=sources, report=lambda line: None)
    assert (tmp_path / "ml" / "items.parquet").is_file()
    assert (tmp_path / "ml-1m.zip").is_file()


def test_a_foreign_folder_is_refused_before_anything_is_downloaded(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / "ml").mkdir()
    (tmp_path / "ml" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="thesis.txt"):
        download("movielens-1m", tmp_path / "ml", sources=offered(publisher, b"x"), report=lambda line: None)
    assert publisher.requests == []


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown data set 'netflix'; known: movielens-1m, online-retail"):
        download("netflix", tmp_path / "x")


def test_the_publishers_addresses_and_checksums() -> None:
    assert {name: (source.url, source.md5) for name, source in SOURCES.items()} == {
        "movielens-1m": (
            "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
            "c4d9eecfca2ab87c1945afe126590906",
        ),
        "online-retail": ("https://archive.ics.uci.edu/static/public/352/online+retail.zip", ""),
    }
    assert movielens.RATINGS == movielens.RatingsCheck(24_594_131, "77a7c4b150f588c23bb9e1f068aa996c0b413695")
