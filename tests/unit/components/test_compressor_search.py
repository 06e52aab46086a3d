"""Which variant is chosen, and the reason given for each, on hand-made measurements."""

from __future__ import annotations

import dataclasses
import json

import pytest

from components.compressor.limits import search_limits
from components.compressor.row_cache import RowCache
from components.compressor.search import Limits, Measurement, Row, Search, choose, cost, violation
from models.compression.errors import CompressionError
from models.config import CompressionConfig

LIMITS = Limits(max_loss=0.01, max_slice_loss=0.03, max_seconds=100)
FLOAT = Measurement(
    metrics={"ndcg@10": 0.2, "recall@100": 0.5},
    slices={"history_length=short": 0.1, "history_length=long": 0.3, "target_popularity=tail": 0.0},
    saved_model_bytes=1000,
    gzip_bytes=800,
    resident_bytes=5000,
    loaded_bytes=6000,
    load_seconds=1.0,
    p50_ms=2.0,
    p99_ms=3.0,
    time_ratio=1.0,
    queries_per_second=100.0,
)


def measured(ndcg=0.2, short=0.1, size=1000, archive=800, ratio=1.0):
    return dataclasses.replace(
        FLOAT,
        metrics={"ndcg@10": ndcg, "recall@100": 0.5},
        slices=FLOAT.slices | {"history_length=short": short},
        saved_model_bytes=size,
        gzip_bytes=archive,
        time_ratio=ratio,
    )


def chosen_of(**variants):
    rows = [Row("float32", FLOAT), *(Row(name, value) for name, value in variants.items())]
    choose(rows, LIMITS)
    assert [row.chosen for row in rows].count(True) == 1
    assert all(row.reason for row in rows)
    return next(row.name for row in rows if row.chosen), {row.name: row.reason for row in rows}


def test_cost_is_the_geometric_mean_of_three_ratios():
    # 500/1000 · 100/800 · 1 = 1/16 and its cube root
    assert cost(measured(size=500, archive=100), FLOAT) == pytest.approx((1 / 16) ** (1 / 3))
    # a tenth faster or slower is noise; half the time is not: 1 · 1 · 0.5
    assert cost(measured(ratio=1.09), FLOAT) == 1.0
    assert cost(measured(ratio=0.92), FLOAT) == 1.0
    assert cost(measured(ratio=0.5), FLOAT) == pytest.approx(0.5 ** (1 / 3))


def test_the_cheapest_inside_the_budget_is_chosen():
    name, reasons = chosen_of(int8=measured(size=300, archive=300), int4=measured(size=200, archive=200, ndcg=0.19))
    assert name == "int8"
    assert reasons["int4"] == "ndcg@10 fell by 5.0%; 1.0% is allowed"
    assert reasons["float32"].startswith("within the budget, but costs 1.00 of float32; int8 0.48")
    assert "ndcg@10 +0.0%" in reasons["int8"]


def test_a_loss_at_the_limit_passes_and_a_slice_beyond_it_does_not():
    assert violation(measured(ndcg=0.1981), FLOAT, LIMITS) == ""
    assert violation(measured(short=0.0971), FLOAT, LIMITS) == ""
    assert violation(measured(short=0.096), FLOAT, LIMITS) == (
        "ndcg@10 of history_length=short fell by 4.0%; 3.0% is allowed"
    )


def test_a_slower_variant_is_refused_whatever_it_saves():
    name, reasons = chosen_of(int4=measured(size=100, archive=100, ratio=1.2))
    assert name == "float32"
    assert "1.20 times as long" in reasons["int4"]


def test_float32_stays_when_nothing_earns_its_place():
    name, reasons = chosen_of(bfloat16=measured(size=960, archive=790))
    assert name == "float32"
    assert reasons["float32"] == "no variant is within the budget and clearly cheaper"
    assert reasons["bfloat16"].startswith("within the budget")


def test_a_model_that_ranks_nothing_right_still_gets_an_answer():
    zero = dataclasses.replace(FLOAT, metrics={"ndcg@10": 0.0}, slices={})
    rows = [Row("float32", zero), Row("int8", dataclasses.replace(zero, saved_model_bytes=100))]
    assert choose(rows, LIMITS).name == "int8"


class Clock:
    """Advances by the cost of each measured variant."""

    def __init__(self, seconds):
        self.now, self.seconds, self.measured = 0.0, seconds, []

    def __call__(self):
        return self.now

    def measure(self, name):
        self.measured.append(name)
        self.now += self.seconds[name]
        return FLOAT if name == "float32" else measured(size=400, archive=400)


def test_variants_that_do_not_fit_the_time_are_named_not_started():
    clock = Clock({"float32": 10, "int8": 20, "prune50+int8": 50, "prune75+int8": 50, "bfloat16": 1})
    lines: list[str] = []
    rows = Search(LIMITS, clock.measure, clock, lines.append).run(
        ["int8", "prune50+int8", "prune75+int8", "float32", "bfloat16", "int8"]
    )
    # after 80 s, another variant with int8 is expected to take as long as the longest one: 50 s
    assert clock.measured == ["float32", "int8", "prune50+int8", "bfloat16"]
    skipped = next(row for row in rows if row.name == "prune75+int8")
    assert skipped.reason == "not reached: 80 s spent and about 50 s needed of max_seconds = 100"
    assert skipped.to_json()["p50_ms"] is None
    assert skipped.to_json()["metrics"] == {}
    assert [row.seconds for row in rows] == [10, 20, 50, 0, 1]
    assert len(lines) == 5


def combine(first, second):
    """One storage (int…), everything else at most once."""
    names = {first, second} if "+" not in first else {*first.split("+"), second}
    return "+".join(sorted(names)) if names != set(first.split("+")) and not {"int8", "int4"} <= names else None


def test_good_variants_are_combined_cheapest_first_until_nothing_is_new():
    sizes = {"float32": 1000, "int8": 300, "prune50": 700, "dims50": 500, "int4": 290}
    sizes |= {"dims50+int8": 200, "int8+prune50": 250}
    # Both lose too much: int4 takes part in nothing, and what joins dims50 and int8 is not tried again.
    bad = {"dims50+int8", "int4"}

    def measure(name):
        return measured(ndcg=0.15 if name in bad else 0.2, size=sizes[name], archive=sizes[name])

    search = Search(LIMITS, measure, lambda: 0.0, lambda line: None, combine)
    rows = search.run(["int8", "int4", "prune50", "dims50"])
    names = ["float32", "int8", "int4", "prune50", "dims50", "dims50+int8", "int8+prune50"]
    assert [row.name for row in rows] == names
    assert next(row for row in rows if row.chosen).name == "int8+prune50"


def test_a_variant_that_the_model_cannot_have_is_a_row_not_a_fault():
    def measure(name):
        if name == "qat+int8":
            raise CompressionError("nothing can be fine-tuned")
        return measured(size=300, archive=300) if name == "int8" else FLOAT

    rows = Search(LIMITS, measure, lambda: 0.0, lambda line: None).run(["qat+int8", "int8"])
    assert [(row.name, row.chosen) for row in rows] == [("float32", False), ("qat+int8", False), ("int8", True)]
    assert rows[1].reason == "not possible: nothing can be fine-tuned"
    assert rows[1].to_json()["saved_model_bytes"] is None


def test_rows_are_measured_again_only_when_what_they_depend_on_changes(tmp_path):
    weights, count = tmp_path / "weights", []
    weights.write_bytes(b"first")

    def measure():
        count.append(1)
        return dataclasses.replace(FLOAT, saved_model_bytes=len(count))

    def get(name):
        return RowCache(tmp_path / "rows", [b"code", weights]).get(name, measure).saved_model_bytes

    assert [get("int8"), get("int8"), get("int4"), get("int8")] == [1, 1, 2, 1]
    assert RowCache(tmp_path / "rows", [b"code", weights]).get("int8", measure) == dataclasses.replace(
        FLOAT, saved_model_bytes=1
    )
    weights.write_bytes(b"second")
    assert get("int8") == 3


@pytest.mark.parametrize(("trained", "seconds"), [(400.0, 200.0), (2000.0, 600.0), (4.0, 120.0)])
def test_the_search_takes_a_share_of_the_training_time(tmp_path, trained, seconds):
    (tmp_path / "history.json").write_text(json.dumps({"seconds": trained}))
    config = CompressionConfig(max_training_share=0.5, max_seconds=600)
    assert search_limits(config, str(tmp_path)).max_seconds == seconds


def test_rows_carry_the_keys_of_the_report():
    row = Row("int8", measured(size=300), chosen=True, reason="because", cost=0.5)
    record = row.to_json()
    contract = {"name", "metrics", "saved_model_bytes", "gzip_bytes", "resident_bytes", "p50_ms", "p99_ms", "chosen"}
    assert contract | {"reason"} <= set(record)
    assert (record["saved_model_bytes"], record["chosen"], record["metrics"]["ndcg@10"]) == (300, True, 0.2)
