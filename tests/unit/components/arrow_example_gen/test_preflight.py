"""The check before a run: what a user gets for every kind of bad data set."""

import random

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from components.arrow_example_gen.preflight import check_dataset
from components.config import DataConfig
from components.errors import BadValueError, InputError, MissingInputError
from models.config import FeatureSpec

GENRES = FeatureSpec(name="genres", kind="multi_valued", tower="candidate")
AGE = FeatureSpec(name="age", kind="numeric", tower="query")


@pytest.fixture
def folder(tmp_path):
    lines = [f"u{n % 5},i{n % 9},{1_600_000_000 + n}" for n in range(100)]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    (tmp_path / "items.csv").write_text("item_id,title,genres\n" + "".join(f"i{n},Item {n},a|b\n" for n in range(9)))
    return tmp_path


def test_a_good_data_set_is_described(folder):
    found = check_dataset(folder, DataConfig(), [GENRES])
    assert found.tables["interactions"].rows == 100
    assert found.tables["interactions"].time_range == (1_600_000_000, 1_600_000_099)
    assert found.tables["items"].columns == ("item_id", "title", "genres")
    assert found.tables["items"].rows == 9 and found.warnings == ()


def test_milliseconds_are_named_with_line_and_mend(folder):
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\nu,i,1600000000000\n")
    with pytest.raises(BadValueError) as error:
        check_dataset(folder, DataConfig(), [])
    assert "1 of 1 rows of interactions are bad" in str(error.value)
    assert "interactions.csv, line 2, column timestamp: '1600000000000' looks like milliseconds" in str(error.value)


def test_bad_rows_up_to_the_share_are_allowed(folder):
    with (folder / "interactions.csv").open("a") as file:
        file.write("u1,i1,never\n")
    with pytest.raises(BadValueError, match="max_bad_row_share"):
        check_dataset(folder, DataConfig(), [])
    allowed = check_dataset(folder, DataConfig(cleaning={"max_bad_row_share": 0.01}), [])
    assert allowed.tables["interactions"].bad_rows == 1
    assert "line 102" in allowed.warnings[0]


def test_user_features_need_a_user_table(folder):
    with pytest.raises(MissingInputError, match="no users.csv or users.parquet, but the preset declares .* age"):
        check_dataset(folder, DataConfig(), [AGE])


def test_a_missing_title_is_a_warning(folder):
    (folder / "items.csv").write_text("item_id\ni1\n")
    assert "no column title" in check_dataset(folder, DataConfig(), []).warnings[0]


def test_huge_cells_and_nul_bytes_are_bad_rows(folder):
    (folder / "items.csv").write_bytes(
        b"item_id,title\ni1," + b"x" * (10 << 20) + b"\ni2,\0\ni3,fine\ni4," + b"\xe9t\xe9\n"
    )
    with pytest.raises(BadValueError) as error:
        check_dataset(folder, DataConfig(), [])
    text = str(error.value)
    assert "3 of 4 rows of items" in text and len(text) < 2000
    for words in ("line 2, column title", "longer than", "line 3", "NUL byte", "line 5", "not UTF-8"):
        assert words in text


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One random mutation."""
    at = rng.randrange(len(data))
    size = rng.choice([1, 3, 50, 400])
    junk = rng.choice([b"\0", b'"', b"\xff", b",", b"\n", b";", b"'", b"\r", b"99999999999999999999", rng.randbytes(8)])
    kind = rng.randrange(5)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + junk * size + data[at:]
    if kind == 2:
        return data[:at] + data[at + size :]
    if kind == 3:
        return data[:at] + bytes(b ^ 1 << rng.randrange(8) for b in data[at : at + size]) + data[at + size :]
    other = rng.randrange(len(data))
    return data[:at] + data[other : other + size] + data[at:]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_damaged_files_never_end_in_another_error(folder, suffix, seed):
    """Every mutation is either still readable or an InputError with a short message."""
    rng = random.Random(seed)
    table = pa.table(
        {
            "user_id": [f"user {n % 50}" for n in range(2000)],
            "item_id": [f"item {n % 70}" for n in range(2000)],
            "timestamp": [1_600_000_000 + 60 * n for n in range(2000)],
        }
    )
    (folder / "interactions.csv").unlink()
    path = folder / f"interactions.{suffix}"
    if suffix == "csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pq.write_table(table, path, row_group_size=900)
    data = path.read_bytes()
    config = DataConfig(cleaning={"max_bad_row_share": 0.5})
    refused = 0
    for _ in range(60):
        path.write_bytes(damaged(damaged(data, rng), rng))
        try:
            check_dataset(folder, config, [])
        except InputError as error:
            refused += 1
            assert "interactions" in str(error) and len(str(error)) < 3000
    assert refused > 5
