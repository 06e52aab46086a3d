"""What a user at the command line gets for every kind of bad input: exit code 2, one sentence, nothing written.

All of it is found before TensorFlow and TFX are imported; a run that would go on to them stops the test.
"""

from __future__ import annotations

import importlib
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.arrow_example_gen.preflight import check_dataset
from components.config import DataConfig
from pipeline import cli
from pipeline.commands import run as run_command

INTERACTIONS, ITEMS = "interactions.csv", "items.csv"
PRESET = 'name = "shop"\n[data.split]\nmin_user_events = 3\nmin_item_events = 1\n'
Spoil = Callable[[Path], object]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `shop.toml` and good data in `data`: four users with five events each, on five items."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_command, "_run_nodes", lambda *_: pytest.fail("the run went on to its nodes"))
    data = tmp_path / "data"
    data.mkdir()
    rows = [f"u{user},i{item},{1_700_000_000 + 100 * user + item}" for user in range(4) for item in range(5)]
    (data / INTERACTIONS).write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    (data / ITEMS).write_text("item_id,title\n" + "".join(f"i{item},Item {item}\n" for item in range(5)))
    (tmp_path / "shop.toml").write_text(PRESET)
    return tmp_path


def refused(arguments: list[str], root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence of a command that must end with code 2 and write nothing below `root`."""
    before = sorted(root.rglob("*"))
    code = cli.main(arguments)
    output = capsys.readouterr()
    assert code == 2, output
    assert output.err.startswith("tandem: ") and "Traceback" not in output.err
    assert output.out == ""
    assert sorted(root.rglob("*")) == before
    return output.err


def run_arguments(*overrides: str, preset: str = "shop.toml", data: str = "data", output: str = "out") -> list[str]:
    sets = [text for override in overrides for text in ("--set", override)]
    return ["run", preset, "--data", data, "--output", output, *sets]


def replaced(name: str, old: str, new: str) -> Spoil:
    def spoil(data: Path) -> None:
        text = (data / name).read_text()
        assert old in text
        (data / name).write_text(text.replace(old, new))

    return spoil


def written(name: str, text: str) -> Spoil:
    return lambda data: (data / name).write_text(text)


def parquet(damage: Callable[[bytes], bytes] = bytes, **columns: list[object]) -> Spoil:
    """Interactions as Parquet: good ones, with columns replaced and the bytes of the file damaged."""

    def spoil(data: Path) -> None:
        good = {"user_id": ["u"] * 20, "item_id": ["i1"] * 20, "timestamp": list(range(1_700_000_000, 1_700_000_020))}
        (data / INTERACTIONS).unlink()
        path = data / "interactions.parquet"
        pq.write_table(pa.table({**good, **columns}), path)
        path.write_bytes(damage(path.read_bytes()))

    return spoil


DATA_CASES: dict[str, tuple[Spoil, list[str]]] = {
    "missing file": (lambda data: (data / ITEMS).unlink(), ["no items.csv, items.parquet", "holds: interactions.csv"]),
    "misnamed file": (lambda data: (data / ITEMS).rename(data / "itms.csv"), ["rename itms.csv?"]),
    "misnamed column": (replaced(INTERACTIONS, "item_id", "itemid"), [INTERACTIONS, "'item_id'", "mean 'itemid'?"]),
    "other case": (replaced(INTERACTIONS, "timestamp", "Timestamp"), ["did you mean 'Timestamp'?"]),
    "missing column": (replaced(ITEMS, "item_id", "zzz"), ["items.csv has no column 'item_id'", "it has: zzz, title"]),
    "empty file": (written(INTERACTIONS, ""), ["interactions.csv is empty", "header line"]),
    "header only": (written(INTERACTIONS, "user_id,item_id,timestamp\n"), ["interactions.csv", "no rows"]),
    "header and blank lines": (written(ITEMS, "item_id,title\n\n\n"), ["items has no rows", "write the file again"]),
    "empty Parquet": (parquet(lambda _: b""), ["interactions.parquet is empty (0 bytes)"]),
    "Parquet without rows": (parquet(user_id=[], item_id=[], timestamp=[]), ["interactions.parquet has no rows"]),
    "CSV row": (replaced(INTERACTIONS, "u1,i1,", "u1,i1,7,"), ["interactions.csv, line 8", "4 cells, expected 3"]),
    "open quote": (replaced(INTERACTIONS, "u1,i1,", 'u1,"i1,'), ["interactions.csv, line 8", "close the quote"]),
    "cut Parquet": (parquet(lambda data: data[: len(data) // 2]), ["interactions.parquet", "no readable Parquet"]),
    "damaged Parquet": (
        parquet(lambda data: data[:60] + b"\xff" * 60 + data[120:]),
        ["interactions.parquet: row group 0 (rows from 1) is damaged", "write the file again"],
    ),
    "timestamp of words": (
        replaced(INTERACTIONS, "u1,i1,1700000101", "u1,i1,soon"),
        ["1 of 20 rows", "interactions.csv, line 8, column timestamp: 'soon'", "nor an ISO 8601 date"],
    ),
    "millisecond timestamp": (
        replaced(INTERACTIONS, "u1,i1,1700000101", "u1,i1,1700000101000"),
        ["line 8, column timestamp", "looks like milliseconds; write seconds (divide by 1,000)"],
    ),
    "milliseconds in Parquet": (
        parquet(timestamp=[1_700_000_000_000] * 20),
        ["interactions.parquet, row 1, column timestamp", "looks like milliseconds", "Correct the rows\n"],
    ),
    "null user": (replaced(INTERACTIONS, "u1,i1,", ",i1,"), ["interactions.csv, line 8, column user_id: is empty"]),
    "null item": (replaced(ITEMS, "i1,", ","), ["items.csv, line 3, column item_id: is empty"]),
    "null in Parquet": (parquet(item_id=["i1"] * 19 + [None]), ["interactions.parquet, row 20, column item_id"]),
}


@pytest.mark.parametrize("case", DATA_CASES)
def test_bad_data_is_named_before_anything_is_written(
    case: str, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words = DATA_CASES[case]
    spoil(shop / "data")
    message = refused(run_arguments(), shop, capsys)
    assert [word for word in words if word not in message] == [], message


UNKNOWN_ITEM = replaced(INTERACTIONS, "i1", "x1")
RULE_CASES: dict[str, tuple[Spoil, tuple[str, ...], list[str]]] = {
    "unknown items": (
        UNKNOWN_ITEM,
        ("data.cleaning.unknown_items=error",),
        ["4 of 20 rows", "items that items.* does not have (such as x1)", "unknown_items to keep or drop"],
    ),
    "too few events": (
        lambda _: None,
        ("data.split.min_user_events=6",),
        ["no user with enough events", "min_user_events asks for 6", "of 20 rows has 5", "lower it"],
    ),
    "too few events after unknown items are dropped": (
        UNKNOWN_ITEM,
        ("data.cleaning.unknown_items=drop", "data.split.min_user_events=5"),
        ["asks for 5", "has 4"],
    ),
    "too few events after repeats": (
        replaced(INTERACTIONS, "i2", "i1"),
        ("data.cleaning.repeats=earliest", "data.split.min_user_events=5"),
        ["asks for 5", "has 4"],
    ),
    "too few events for the protocol": (
        written(INTERACTIONS, "user_id,item_id,timestamp\nu,i1,1\nu,i2,2\nv,i1,1\n"),
        ("data.split.min_user_events=1",),
        ["leave_last_two_out needs 3", "has 2", "another data.split.protocol"],
    ),
}


@pytest.mark.parametrize("case", RULE_CASES)
def test_data_that_the_rules_leave_nothing_of(case: str, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, overrides, words = RULE_CASES[case]
    spoil(shop / "data")
    message = refused(run_arguments(*overrides), shop, capsys)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("cleaning", "split", "warning"),
    [
        (
            {},
            {"min_user_events": 5},
            "4 of 20 rows are on items that items.* does not have (such as x1); they are kept",
        ),
        ({"unknown_items": "drop"}, {"min_user_events": 4}, "they are dropped"),
        # Only the whole log says which users are above the limit, so that the component decides.
        ({"unknown_items": "error", "max_user_events": 9}, {"min_user_events": 5}, "they may stop the run"),
    ],
)
def test_unknown_items_that_the_preset_allows_are_counted(
    shop: Path, cleaning: dict[str, object], split: dict[str, object], warning: str
) -> None:
    UNKNOWN_ITEM(shop / "data")
    config = DataConfig.model_validate({"cleaning": cleaning, "split": split})
    assert warning in check_dataset(shop / "data", config, []).warnings[0]


SETTING_CASES: dict[str, tuple[list[str], list[str]]] = {
    "missing request log": (
        run_arguments("data.validation.serving_log=requests.tfrecord"),
        ["data.validation.serving_log = 'requests.tfrecord': no such file", "or leave the key out"],
    ),
    "missing schema": (
        run_arguments("data.validation.schema_folder=schema"),
        ["interactions.pbtxt: no such file", "`tandem schema` writes it, or leave the key out"],
    ),
    "missing folder": (run_arguments(data="dat"), ["data folder", "does not exist", "did you mean", "data?"]),
    "file for a folder": (run_arguments(data="data/items.csv"), ["is a file; give the folder"]),
    "workers without a cluster": (
        run_arguments("training.strategy=multi_worker_mirrored"),
        ["'multi_worker_mirrored' reads the cluster from TF_CONFIG, which is ''", '{"cluster": {"worker":'],
    ),
    "no data": (["run", "shop.toml", "--output", "out"], ["has no data of its own; pass --data DIR"]),
    "unknown preset": (run_arguments(preset="quikstart"), ["unknown preset 'quikstart'", "did you mean 'quickstart'?"]),
    "missing preset file": (run_arguments(preset="shp.toml"), ["shp.toml: no such file"]),
    "unknown key": (run_arguments("training.epoch=3"), ["unknown key 'training.epoch'", "did you mean 'epochs'?"]),
    "unknown section": (run_arguments("trainin.epochs=3"), ["unknown key 'trainin'", "did you mean 'training'?"]),
    "no value": (run_arguments("training.epochs"), ["expected key=value"]),
    "value below its range": (
        run_arguments("training.epochs=0"),
        ["training.epochs = 0", "greater than or equal to 1"],
    ),
    "value of a wrong kind": (run_arguments("training.epochs=many"), ['training.epochs = "many"', "integer"]),
    "value of no choice": (run_arguments("data.cleaning.unknown_items=ask"), ["'keep', 'drop' or 'error'"]),
    "a teacher that is not there": (
        run_arguments("distillation={enabled=true, teacher='gone'}"),
        ["distillation.teacher = 'gone'", "no file config.json", "`training` folder"],
    ),
    "hard negatives of a loss that draws none": (
        run_arguments("loss.hard_negatives=5"),
        ["hard_negatives = 5", "sampled_softmax or in_batch", "'full_softmax'"],
    ),
    "unknown argument of the generator": (
        ["run", "quickstart", "--output", "out", "--set", "data.generate.usrs=50"],
        ["unknown key 'data.generate.usrs'", "did you mean 'users'?"],
    ),
    "impossible argument of the generator": (
        ["run", "quickstart", "--output", "out", "--set", "data.generate.users=0"],
        ["data.generate.users = 0", "from 1"],
    ),
    "generated data over the user's own": (
        ["run", "quickstart", "--output", "."],
        ["holds files that `tandem data` did not write", "interactions.csv"],
    ),
    "output is a file": (run_arguments(output="shop.toml"), ["--output", "shop.toml: cannot be created"]),
    "output below a file": (run_arguments(output="shop.toml/run"), ["cannot be created", "that you may write"]),
    "generate below a file": (["data", "generate", "shop.toml/set"], ["shop.toml/set cannot be written"]),
    "generate nothing": (["data", "generate", "set", "--users", "0"], ["users = 0: must be from 1"]),
    "DAG over a folder": (["dag", "airflow", "quickstart", "--output", "data"], ["is a folder; give a file in it"]),
    "report of nothing": (["report", "data"], ["data/report.json: no such file", "finished run"]),
    "serve nothing": (["serve", "nowhere"], ["nowhere is no folder", "version folders"]),
}


@pytest.mark.parametrize("case", SETTING_CASES)
def test_bad_settings_are_named(case: str, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = SETTING_CASES[case]
    message = refused(arguments, shop, capsys)
    assert [word for word in words if word not in message] == [], message


def test_an_output_folder_that_cannot_be_written_is_named(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)  # Root may write everywhere.
    message = refused(run_arguments(), shop, capsys)
    assert "out: cannot be created (Permission denied); pass a folder that you may write" in message


def test_an_output_folder_with_something_in_the_way_is_named(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("tensorboard", "artifacts", "logs"):
        (shop / "out" / folder).mkdir(parents=True)
    (shop / "out" / "tensorboard" / "trainer").touch()
    assert "cannot be set up (File exists" in refused(run_arguments(), shop, capsys)


def test_a_port_in_use_is_named(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("port", "rest_api_port"):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            number = taken.getsockname()[1]
            free = {"port": "0", "rest_api_port": "0"} | {flag: str(number)}
            arguments = [f"--{name}={value}" for name, value in free.items()]
            code = cli.main(["serve", str(shop), *arguments, f"--grpc_socket_path={shop / 'socket'}"])
        message = capsys.readouterr().err
        assert code == 2
        assert message.startswith(f"Port {number} cannot be used (Address already in use); stop what listens there")
        assert f"give another --{flag}." in message
    assert not (shop / "socket").exists()


def test_a_link_to_the_base_path_is_handed_on_as_it_is(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be turned to another folder while the server runs."""
    given: list[list[str]] = []
    module = importlib.import_module("serving.server.main")
    monkeypatch.setattr(module, "main", lambda arguments: given.append(arguments) or 0)
    link = shop / "current"
    link.symlink_to(shop)
    monkeypatch.chdir(shop)
    assert cli.main(["serve", "current", "--model_name=shop"]) == 0
    assert given == [[f"--model_base_path={link}", "--model_name=shop"]]


RECOMMEND_CASES: dict[str, tuple[list[str], str]] = {
    "no results": (["--server", "127.0.0.1:1", "-k", "0"], "-k 0: must be from 1"),
    "too many results": (["--server", "127.0.0.1:1", "-k", "99999999999"], "-k 99999999999: must be from 1"),
    "no port": (["--server", "localhost"], "expected HOST:PORT"),
    "port of words": (["--server", "localhost:grpc"], "expected HOST:PORT"),
    "port out of range": (["--server", "localhost:99999"], "expected HOST:PORT"),
    "address of a page": (["--server", "http://localhost:8501"], "expected HOST:PORT"),
    "nobody there": (["--server", "127.0.0.1:1"], "is a server running there, and is this its gRPC port?"),
    "no titles": (["--server", "127.0.0.1:1", "--model_name", "m", "--items", "nowhere.csv"], "nowhere.csv: no such"),
    "titles without a title": (
        ["--server", "127.0.0.1:1", "--model_name", "m", "--items", "data/interactions.csv"],
        "column 'title' is missing",
    ),
}


@pytest.mark.parametrize("case", RECOMMEND_CASES)
def test_malformed_recommend_calls_are_named(case: str, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = RECOMMEND_CASES[case]
    assert words in refused(["recommend", "--user", "u1", *arguments], shop, capsys)


GOOD = {"user_id": ["u", "v"], "history": [["i1"], []]}
BATCH_CASES: dict[str, tuple[dict[str, list[object]] | None, list[str], str]] = {
    "no model": (GOOD, ["--model", "nowhere"], "--model nowhere: no such folder"),
    "folder without model": (GOOD, ["--model", "data"], "holds neither saved_model.pb nor version folders"),
    "no requests": (None, [], "requests.parquet: no such file"),
    "requests in CSV": (GOOD, ["--requests", "data/items.csv"], "items.csv: not a readable Parquet file"),
    "no history": ({"user_id": ["u"]}, [], "column 'history' is missing; it has ['user_id']"),
    "history in one text": ({"user_id": ["u"], "history": ["i1,i2"]}, [], "history must be a list of item ids"),
    "history of records": ({"user_id": ["u"], "history": [[{"id": "i1"}]]}, [], "history is list<"),
    "exclude in one text": (GOOD | {"exclude": ["i1", "i2"]}, [], "exclude must be a list of item ids"),
    "null user": (GOOD | {"user_id": ["u", None]}, [], "requests.parquet, row 2: user_id is null"),
    "no results": (GOOD, ["-k", "0"], "-k 0: must be from 1"),
    "output in no folder": (GOOD, ["--output", "nowhere/o.parquet"], "nowhere is not a writable folder"),
    "output over a folder": (GOOD, ["--output", "data"], "is a folder; give a file in it"),
}


@pytest.mark.parametrize("case", BATCH_CASES)
def test_malformed_batch_calls_are_named(case: str, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns, arguments, words = BATCH_CASES[case]
    (shop / "model" / "1").mkdir(parents=True)
    (shop / "model" / "1" / "saved_model.pb").touch()
    if columns is not None:
        pq.write_table(pa.table(columns), shop / "requests.parquet")
    call = ["batch", "--model", "model", "--requests", "requests.parquet", "--output", "answers.parquet", *arguments]
    assert words in refused(call, shop, capsys)


@pytest.mark.parametrize("command", ["recommend", "batch", "run", "surprise"])
def test_calls_without_their_arguments_are_usage_errors(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command])
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_good_data_goes_on_to_the_nodes(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tests would pass on a command that refuses everything."""
    reached, loaded = [], set(sys.modules)

    def run_nodes(*_: object) -> None:
        reached.append(sorted(path.name for path in (shop / "out").iterdir()))
        raise run_command.NodeError("far enough")

    monkeypatch.setattr(run_command, "_run_nodes", run_nodes)
    assert cli.main(run_arguments("data.split.min_user_events=5")) == 1
    assert reached == [[".lock", "artifacts", "logs", "tensorboard"]]
    assert not {"tfx", "tensorflow"} & (set(sys.modules) - loaded)
