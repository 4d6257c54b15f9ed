"""FeatureTable: what may be declared, stored and gathered; times to live; sources; code that comes back in; forks, threads."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retailinfer._native.feature_table import ROW_EXPIRED, ROW_FRESH, LruTable
from retailinfer.clock import ManualClock
from retailinfer.errors import (
    ConfigError,
    FeatureMissingError,
    FeatureRangeError,
    FeatureTypeError,
    LimitError,
    RetailInferError,
    ShapeError,
)
from retailinfer.store.feature_table import FeatureTable
from retailinfer.store.sources.memory import MemorySource
from retailinfer.store.table import Outcome, Snapshot, plain_cell

SECOND = 1_000_000_000
ALL = {"f": "f64", "g": "float32", "i": "i64", "s": "str", "b": "bytes", "v": ("vec", 3)}
ROW = {"f": 0.1, "g": 0.1, "i": 2**62, "s": "zoë\0", "b": b"\0\xff", "v": [1.5, 2.5, 3.5]}


def names(outcome):
    """Outcomes as their names."""
    return [Outcome(one).name for one in outcome]


# ---- rows ---------------------------------------------------------------------------------------------------------------


def test_a_row_comes_back_as_it_was_put():
    """Every kind keeps its value: doubles and 64-bit integers exactly, float32 rounded once, texts with NULs."""
    table = FeatureTable(ALL)
    table.put("k", ROW)
    found = table.lookup("k")
    assert {name: found[name] for name in "fisb"} == {name: ROW[name] for name in "fisb"}
    assert found["g"] == float(np.float32(0.1))
    assert found["v"].tolist() == ROW["v"]
    assert table.lookup("-") is None
    assert table.columns == {"f": "f64", "g": "f32", "i": "i64", "s": "str", "b": "bytes", "v": "vec"}


def test_none_nan_and_absent_are_null():
    """A row may lack columns; NaN in a number means null, and a row of nulls is still a row."""
    table = FeatureTable(ALL)
    table.put("k", {"f": float("nan"), "g": None})
    assert table.lookup("k") == dict.fromkeys(ALL)
    values, ages, outcomes = table.gather(["k", "-"], ["f", "g", "v"])
    assert np.isnan(values).all()
    assert names(outcomes) == ["NULL", "UNKNOWN"]
    assert ages[0] >= 0
    assert np.isnan(ages[1])
    table.put("k", {"v": [1, 2, 3]})
    assert names(table.gather(["k"], ["f", "v"]).outcome) == ["PRESENT"]


@pytest.mark.parametrize(
    ("column", "value", "stored"),
    [
        ("f", 3, 3.0),
        ("f", True, 1.0),
        ("f", Decimal("0.1"), 0.1),
        ("f", np.float32(0.1), float(np.float32(0.1))),
        ("f", np.int64(7), 7.0),
        ("f", float("inf"), float("inf")),
        ("f", -0.0, -0.0),
        ("g", 1e-50, 0.0),
        ("i", True, 1),
        ("i", np.int32(-5), -5),
        ("i", datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), SECOND),
        ("s", np.str_("text"), "text"),
        ("v", np.array([1, 2, 3], np.int8), [1.0, 2.0, 3.0]),
        ("v", np.arange(6, dtype=np.float32)[::2], [0.0, 2.0, 4.0]),
        ("v", np.array([1, 2, 3], ">f4"), [1.0, 2.0, 3.0]),
        ("v", (1, 2.5, 3), [1.0, 2.5, 3.0]),
    ],
)
def test_values_of_other_types_are_taken_where_they_mean_the_same(column, value, stored):
    """Numbers of NumPy, Decimals, datetimes, integer vectors become the column's own type; a Snapshot does the same."""
    table = FeatureTable(ALL)
    table.put("k", {column: value})
    got = table.lookup("k")[column]
    assert (got.tolist() if column == "v" else got) == stored
    assert str(got if column != "v" else got.tolist()) == str(stored)  # -0.0


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"f": "1"}, FeatureTypeError),
        ({"f": 2**53 + 1}, FeatureRangeError),
        ({"f": b"1"}, FeatureTypeError),
        ({"g": 1e39}, FeatureRangeError),
        ({"i": 1.0}, FeatureTypeError),
        ({"i": 2**63}, FeatureRangeError),
        ({"i": datetime(2020, 1, 1)}, RetailInferError),  # noqa: DTZ001 - naive on purpose
        ({"s": b"x"}, FeatureTypeError),
        ({"s": "\ud800"}, FeatureRangeError),
        ({"s": "x" * 65_537}, FeatureRangeError),
        ({"b": "x"}, FeatureTypeError),
        ({"v": [1, 2]}, FeatureTypeError),
        ({"v": [1, 2, float("nan")]}, FeatureRangeError),
        ({"v": [1, 2, 1e39]}, FeatureRangeError),
        ({"v": [[1], [2], [3]]}, FeatureTypeError),
        ({"v": np.zeros((3, 1), np.float32)}, FeatureTypeError),
        ({"v": "abc"}, FeatureTypeError),
        ({"x": 1}, FeatureTypeError),
        ([("f", 1)], FeatureTypeError),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(row, error):
    """A value of another type or out of range raises, and the row that was there stays as it was."""
    table = FeatureTable(ALL)
    table.put("k", ROW)
    before = table.lookup("k")
    with pytest.raises(error):
        table.put("k", row)
    with pytest.raises(error):
        table.put_many({"new": {"f": 1.0}, "k": row})
    assert str(table.lookup("k")) == str(before)
    assert "new" not in table
    assert table.core.check() == 0


@pytest.mark.parametrize(
    ("kind", "keys", "wrong"),
    [
        ("str", ["a", "", "ü", "x" * 70_000, "a\0b"], [1, b"a", None, True, "\ud800", ("a",)]),
        ("int", [0, -1, 2**63 - 1, -(2**63), 300], ["1", 1.0, True, None, 2**63]),
        ("bytes", [b"", b"a", b"\0" * 16, b"x" * 17], ["a", 1, bytearray(b"a")]),
        (
            ("str", "int"),
            [("a", 1), ("", 0), ("a" * 50, -1)],
            ["a", ("a",), ("a", "1"), ("a", 1, 2), ["a", 1]],
        ),
    ],
)
def test_keys_have_one_kind(kind, keys, wrong):
    """Keys of the kind are found by value, however they were made; others raise; a key too long is never there."""
    table = FeatureTable({"x": "f64"}, kind)
    stored = []
    for i, key in enumerate(keys):
        if key == "x" * 70_000:
            with pytest.raises(FeatureRangeError):
                table.put(key, {"x": 1.0})
        else:
            table.put(key, {"x": float(i)})
            stored.append((key, float(i)))
    assert list(table.keys()) == [key for key, _ in stored]
    found = table.gather(keys, ["x"])
    assert found.values[found.outcome == Outcome.PRESENT, 0].tolist() == [i for _, i in stored]
    for key in wrong:
        for use in (
            table.lookup,
            table.erase,
            lambda key: table.put(key, {}),
            lambda key: table.gather([key], ["x"]),
        ):
            with pytest.raises((FeatureTypeError, FeatureRangeError)):
                use(key)
        with pytest.raises((FeatureTypeError, FeatureRangeError)):
            table.mark_unknown([key])
    assert len(table) == len(stored)
    assert table.core.check() == 0


def test_integers_of_numpy_are_keys_and_bools_are_not():
    """np.int64(3) and 3 are one key; a subclass of str is its text."""

    class Text(str):
        __slots__ = ()

    table = FeatureTable({"x": "f64"}, "int")
    table.put(3, {"x": 3.0})
    assert table.gather([np.int64(3), np.uint8(3), 3], ["x"]).values[:, 0].tolist() == [3.0, 3.0, 3.0]
    with pytest.raises(FeatureTypeError):
        table.gather([3, np.bool_(True)], ["x"])
    texts = FeatureTable({"x": "f64"})
    texts.put(Text("a"), {"x": 1.0})
    assert texts.gather(("a", Text("a")), ["x"]).values[:, 0].tolist() == [1.0, 1.0]


def test_gather_equals_a_snapshot_of_the_same_rows():
    """Any mix of columns, kinds and nulls gives the same matrix as a Snapshot, whatever the order of the columns."""
    rng = np.random.default_rng(5)
    n = 300
    kinds = {f"f{i}": "f64" for i in range(70)} | {f"i{i}": "i64" for i in range(5)} | {"v": ("vec", 7)}
    rows = {}
    for k in range(n):
        row = {name: float(rng.normal()) for name in kinds if name[0] == "f"}
        row |= {name: int(rng.integers(-9, 9)) for name in kinds if name[0] == "i"}
        row["v"] = rng.normal(size=7).astype(np.float32)
        rows[f"k{k}"] = {name: None if rng.random() < 0.1 else value for name, value in row.items()}
    table = FeatureTable(kinds, policy="lru")
    assert table.put_many(rows) == n
    snapshot = Snapshot.from_rows(rows, kinds={name: "f64" for name in kinds if name[0] == "f"})
    keys = [f"k{k}" for k in rng.integers(0, n + 20, 400)]
    for columns in (
        list(kinds),
        ["v"],
        ["f69", "i0", "v", "f0"],
        [f"f{i}" for i in range(60, 70)],
        ["i0", "i1"],
    ):
        got, want = table.gather(keys, columns), snapshot.gather(keys, columns)
        np.testing.assert_array_equal(got.values.view(np.uint32), want.values.view(np.uint32))
        assert got.outcome.tolist() == want.outcome.tolist()
        out = np.empty_like(got.values)
        assert table.gather(keys, columns, out=out).values is out
        np.testing.assert_array_equal(out.view(np.uint32), want.values.view(np.uint32))


def test_gather_refuses_what_it_cannot_fill():
    """Unknown columns, texts, no column, and a matrix of another shape are typed errors."""
    table = FeatureTable(ALL)
    for columns in (["nope"], ["s"], ["b"], []):
        with pytest.raises(ConfigError):
            table.gather(["k"], columns)
    for out in (np.empty((1, 2), np.float32), np.empty((1, 1)), np.empty((1, 1), ">f4"), [[0.0]]):
        with pytest.raises(ShapeError):
            table.gather(["k"], ["f"], out=out)
    with pytest.raises(ConfigError):
        FeatureTable({"x": "f64"}).core.gather(["k"], table.core.reader(["v"]), 0, 0)
    empty = table.gather([], ["f"])
    assert empty.values.shape == (0, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"columns": {}},
        {"columns": {"x": "f65"}},
        {"columns": {"x": ("vec", 0)}},
        {"columns": {"x": ("vec",)}},
        {"columns": {"x": "vec"}},
        {"columns": ["x"]},
        {"key": "float"},
        {"key": ()},
        {"key": ("str",) * 9},
        {"ttl": "1 minute"},
        {"ttl": 60},
        {"column_ttl": {"y": "1m"}},
        {"max_rows": 0},
        {"max_rows": 1.5},
        {"max_bytes": 100},
        {"max_rows": 1_000_000, "max_bytes": 1_000_000},
        {"max_unknown": -1},
        {"policy": "fifo"},
        {"jitter": 1.0},
        {"refresh_ahead": -0.1},
        {"updated_at": "x"},
        {"share": 0.0},
        {"timeout_ms": 0},
        {"source": object()},
    ],
)
def test_settings_that_mean_nothing_are_refused(options):
    """Each raises ConfigError when the table is declared, not when a request comes."""
    with pytest.raises(ConfigError):
        FeatureTable(**({"columns": {"x": "f64"}} | options))


def test_caps_follow_from_one_another():
    """Rows that are not given follow from the bytes, and bytes from the rows; both are kept."""
    by_bytes = FeatureTable({"x": "f64"}, "int", max_bytes=1 << 20, policy="lru", unknown_ttl="0s")
    for i in range(20_000):
        by_bytes.put(i, {"x": 1.0})
    assert by_bytes.nbytes <= 1 << 20
    assert len(by_bytes) > 5_000  # of 64 bytes, and index: at least half of the cap is rows
    by_rows = FeatureTable({"x": "f64", "s": "str"}, max_rows=1_000)
    for i in range(3_000):
        by_rows.put(f"key-{i:060d}", {"x": 1.0, "s": "s" * 256})
    assert len(by_rows) == 1_000
    assert by_rows.nbytes <= by_rows.core.max_bytes
    with pytest.raises(LimitError):
        FeatureTable({"s": "str"}, max_bytes=60_000, max_rows=10).put("k", {"s": "s" * 65_000})


# ---- time ---------------------------------------------------------------------------------------------------------------


def test_each_row_expires_at_a_moment_of_its_own():
    """Jitter spreads what was written at once over the last tenth of the time to live, and never beyond it."""
    clock = ManualClock()
    table = FeatureTable({"x": "f64"}, "int", ttl="100s", jitter=0.1, max_rows=2_000, clock=clock)
    for i in range(1_000):
        table.put(i, {"x": 1.0})
    fresh = []
    for step in range(12):
        clock.advance_ns((89 if step == 0 else 1) * SECOND)
        fresh.append(table.core.states(range(1_000), clock.monotonic_ns()).count(ROW_FRESH))
    assert fresh[0] == 1_000
    assert fresh[11] == 0
    lost = -np.diff(fresh)
    assert lost[1:10].min() > 50
    assert lost[1:10].max() < 150


def test_a_column_may_expire_before_its_row():
    """A row is stale for a gather that asks for the column whose time is over, and for no other."""
    clock = ManualClock()
    table = FeatureTable({"x": "f64", "y": "f64"}, ttl="1h", column_ttl={"y": "1m"}, jitter=0.0, clock=clock)
    table.put("k", {"x": 1.0, "y": 2.0})
    clock.advance_ns(60 * SECOND)
    assert names(table.gather(["k"], ["x"]).outcome) == ["PRESENT"]
    assert names(table.gather(["k"], ["x", "y"]).outcome) == ["STALE"]
    assert table.gather(["k"], ["y"]).values[0, 0] == 2.0


def test_ages_count_from_when_a_row_was_true():
    """From its own column, the argument, or the writing; a time in the future, or a clock set back, is age 0."""
    clock = ManualClock(wall_ns=1_000 * SECOND)
    table = FeatureTable({"x": "f64"}, updated_at="at", clock=clock)
    table.put("own", {"x": 1.0, "at": 900.0})
    table.put("aware", {"x": 1.0, "at": datetime.fromtimestamp(940, UTC)})
    table.put("argument", {"x": 1.0, "at": 900.0}, updated_at=990)
    table.put("null", {"x": 1.0, "at": None})
    table.put("future", {"x": 1.0, "at": 2_000.0})
    keys = ["own", "aware", "argument", "null", "future", "-"]
    assert table.gather(keys, ["x"]).age_s[:5].tolist() == [100.0, 60.0, 10.0, 0.0, 0.0]
    clock.step_wall_ns(-500 * SECOND)
    assert table.gather(keys, ["x"]).age_s[:5].tolist() == [0.0] * 5
    assert table.age_s("own") == 0.0
    assert table.age_s("-") is None
    assert table.updated_at_ns("own") == 900 * SECOND
    with pytest.raises(FeatureRangeError):
        table.put("ms", {"x": 1.0}, updated_at=1_700_000_000_000)


def test_the_step_of_a_clock_changes_no_expiry():
    """An hour forward or back on the clock of the day leaves rows as fresh as they were."""
    clock = ManualClock()
    table = FeatureTable({"x": "f64"}, ttl="60s", jitter=0.0, clock=clock)
    table.put("k", {"x": 1.0})
    for hours in (3, -5):
        clock.step_wall_ns(hours * 3600 * SECOND)
        assert names(table.gather(["k"], ["x"]).outcome) == ["PRESENT"]
    clock.advance_ns(60 * SECOND)
    assert names(table.gather(["k"], ["x"]).outcome) == ["STALE"]


def test_a_row_in_use_is_to_be_refreshed_once_before_it_expires():
    """Only a row that was asked for before, only in the last share of its life, and once per version."""
    clock = ManualClock()
    asked = []

    class Source:
        waits = False

        def fetch(self, keys, *, timeout_s):
            asked.extend(keys)
            return {key: {"x": 2.0} for key in keys}

    table = FeatureTable(
        {"x": "f64"}, ttl="100s", jitter=0.0, refresh_ahead=0.2, clock=clock, source=Source()
    )
    core = table.core
    table.put("hot", {"x": 1.0})
    table.put("cold", {"x": 1.0})
    assert core.lookup("hot", clock.monotonic_ns())[0] == ROW_FRESH
    clock.advance_ns(79 * SECOND)
    assert core.lookup("hot", clock.monotonic_ns())[0] == ROW_FRESH
    clock.advance_ns(SECOND)
    said = [core.lookup(key, clock.monotonic_ns())[0] for key in ("hot", "hot", "cold")]
    assert said == [1, 0, 0]
    assert table.stats.refreshes == 1
    assert asked == []  # whoever looks up in the native table has to see to it
    assert table.gather(["hot", "cold"], ["x"]).values[:, 0].tolist() == [1.0, 2.0]
    assert asked == ["cold"]  # in use now, too
    table.refresh("hot")
    assert table.gather(["hot", "cold"], ["x"]).values[:, 0].tolist() == [2.0, 2.0]
    assert asked == ["cold", "hot"]


def test_retention_drops_rows_for_good():
    """A row past its retention is not there, takes part in no dump, and its memory is given to others."""
    clock = ManualClock()
    table = FeatureTable({"x": "f64"}, ttl="10s", retention="100s", clock=clock)
    table.put("old", {"x": 1.0})
    clock.advance_ns(99 * SECOND)
    table.put("new", {"x": 2.0})
    assert names(table.gather(["old", "new"], ["x"]).outcome) == ["STALE", "PRESENT"]
    clock.advance_ns(SECOND)
    assert table.lookup("old") is None
    assert "old" not in table
    assert names(table.gather(["old"], ["x"]).outcome) == ["UNKNOWN"]
    assert len(table) == 2
    assert table.sweep() == 1
    assert list(table.keys()) == ["new"]


# ---- sources ------------------------------------------------------------------------------------------------------------


def test_what_is_missing_comes_from_the_source():
    """Gathers and look-ups fetch what is not there, remember what does not exist, and say what could not be had."""
    rows = {f"k{i}": {"x": float(i)} for i in range(5)}
    table = FeatureTable({"x": "f64"}, source=MemorySource(rows))
    found = table.gather(["k1", "nope", "k4", "k1"], ["x"])
    assert names(found.outcome) == ["PRESENT", "UNKNOWN", "PRESENT", "PRESENT"]
    assert table.lookup("k2") == {"x": 2.0}
    assert (len(table), table.stats.unknown_keys) == (3, 1)
    assert table.stats.source.rows == 3

    class Down:
        waits = False

        def fetch(self, keys, *, timeout_s):
            raise OSError

    down = FeatureTable({"x": "f64"}, source=Down())
    down.put("k", {"x": 1.0})
    assert names(down.gather(["k", "other"], ["x"]).outcome) == ["PRESENT", "UNAVAILABLE"]
    assert down.lookup("other") is None


def test_an_unknown_key_counts_even_when_none_are_remembered():
    """Without room for unknown keys the source's word still makes the difference from `unavailable`."""
    table = FeatureTable({"x": "f64"}, source=MemorySource({}), max_unknown=0)
    assert names(table.gather(["a", "b"], ["x"]).outcome) == ["UNKNOWN", "UNKNOWN"]


def test_waits_are_the_smaller_of_two_bounds():
    """A look-up may wait its timeout, or its share of what the request has left."""
    table = FeatureTable({"x": "f64"}, timeout_ms=40, share=0.5)
    assert table.wait_ns() == 40_000_000
    assert table.wait_ns(20_000_000) == 10_000_000
    assert table.wait_ns(1_000_000_000) == 40_000_000
    assert table.wait_ns(-5) == 0


def test_writing_overtakes_an_answer_on_its_way():
    """A row put, or a key erased, while its fetch is under way is not overwritten by what the fetch brings."""
    started, go_on = threading.Event(), threading.Event()

    class Slow:
        def fetch(self, keys, *, timeout_s):
            started.set()
            go_on.wait(10)
            return {key: {"x": -1.0} for key in keys}

    table = FeatureTable({"x": "f64"}, source=Slow(), timeout_ms=20_000)
    waiting = threading.Thread(target=lambda: table.fetch(["put", "gone", "kept"], 20.0))
    waiting.start()
    assert started.wait(10)
    table.put("put", {"x": 5.0})
    table.erase("gone")
    go_on.set()
    waiting.join(10)
    assert table.core.lookup("put", 0)[1] == {"x": 5.0}
    assert "gone" not in table
    assert table.core.lookup("kept", 0)[1] == {"x": -1.0}
    table.close()


# ---- many rows ----------------------------------------------------------------------------------------------------------


def arrow(n=1_000, **columns):
    """Rows of every kind that a table takes, some cells null."""
    return pa.table(
        {
            "id": pa.array([f"id-{i}" for i in range(n)]),
            "x": pa.array(np.arange(n, dtype=np.float64)),
            "y": pa.array(np.arange(n, dtype=np.float32)),
            "n": pa.array([None if i % 3 == 0 else i for i in range(n)], pa.int64()),
            "s": pa.array([None if i % 5 == 0 else "t" * (i % 40) for i in range(n)]),
            "v": pa.array([[float(i), 1.0] for i in range(n)], pa.list_(pa.float32(), 2)),
            "at": pa.array(np.full(n, 1_600_000_000), pa.int64()),
        }
        | columns
    )


def test_arrow_data_gives_schema_and_rows(tmp_path):
    """from_arrow, like + load, put_many, and a Parquet file load the same rows, as single puts would."""
    data = arrow()
    made = FeatureTable.from_arrow(data, key="id", updated_at="at")
    assert made.columns == {"x": "f64", "y": "f32", "n": "i64", "s": "str", "v": "vec"}
    path = tmp_path / "rows.parquet"
    pq.write_table(data, path, row_group_size=300)
    others = [FeatureTable.like(data, key="id", updated_at="at") for _ in range(4)]
    assert [len(other) for other in others] == [0] * 4
    assert others[0].load(data) == others[1].put_many(data) == others[2].load(path) == 1_000
    assert others[3].load(data.to_reader(77)) == 1_000
    rows = data.drop_columns("id").to_pylist()
    single = FeatureTable(
        {"x": "f64", "y": "f32", "n": "i64", "s": "str", "v": ("vec", 2)}, updated_at="at", max_rows=1_000
    )
    assert single.load(zip(data["id"].to_pylist(), rows, strict=True)) == 1_000
    for key in ("id-0", "id-1", "id-997"):
        want = str(single.lookup(key))
        assert [str(table.lookup(key)) for table in (made, *others)] == [want] * 5
    assert made.updated_at_ns("id-7") == single.updated_at_ns("id-7") == 1_600_000_000 * SECOND
    assert all(table.core.check() == 0 for table in (made, single, *others))


def test_loading_fits_columns_to_the_schema():
    """Integers become doubles where the schema has these, columns of nulls fit any kind, the rest is refused by name."""
    table = FeatureTable({"x": "f64", "s": "str", "v": ("vec", 2), "y": "f32"})
    ids = pa.array(["a", "b"])
    nothing = pa.nulls(2)
    table.load(pa.table({"id": ids, "x": [1, 2], "s": nothing, "v": nothing, "y": [1, 2]}), key="id")
    assert table.lookup("b") == {"x": 2.0, "s": None, "v": None, "y": 2.0}
    good = {"id": ids, "x": [1.0, 2.0], "s": ["", ""], "v": [[1.0, 2.0]] * 2, "y": [0.0, 0.0]}
    for change, error in (
        ({"x": ["1", "2"]}, FeatureTypeError),
        ({"x": [2**53 + 1, 0]}, FeatureRangeError),
        ({"y": [1e39, 0.0]}, FeatureRangeError),
        ({"v": [[1.0]] * 2}, FeatureTypeError),
        ({"v": [[1.0, float("inf")]] * 2}, FeatureRangeError),
        ({"id": pa.array([1, 2])}, FeatureTypeError),
        ({"id": pa.array(["a", None])}, FeatureMissingError),
    ):
        with pytest.raises(error):
            table.load(pa.table(good | change), key="id")
    with pytest.raises(ConfigError):
        table.load(pa.table(good).drop_columns("s"), key="id")
    with pytest.raises(ConfigError):
        table.load(pa.table(good))
    with pytest.raises(ConfigError):
        table.load()
    assert table.lookup("b")["x"] == 2.0
    assert len(table) == 2


def test_loading_takes_keys_of_several_parts_and_later_rows_win():
    """Tuples of columns are keys; a key that is there twice keeps its last row."""
    data = pa.table({"shop": ["a", "b", "a"], "sku": [1, 1, 1], "x": [1.0, 2.0, 3.0]})
    table = FeatureTable.from_arrow(data, key=("shop", "sku"))
    assert table.key_kind == ("str", "int")
    assert table.gather([("a", 1), ("b", 1), ("b", 2)], ["x"]).values[:2, 0].tolist() == [3.0, 2.0]
    source = FeatureTable({"x": "f64"}, source=MemorySource({"k": {"x": 1.0}}))
    assert source.load() == 1


# ---- others at the same time --------------------------------------------------------------------------------------------


def test_code_that_runs_inside_a_call_may_use_the_table():
    """A number whose conversion writes, erases, gathers and clears leaves the table whole and the call's own row in it."""
    table = FeatureTable({"x": "f64", "y": "f64", "s": "str"}, "int", max_rows=4)

    class Meddler(float):
        def __float__(self):
            table.put(1, {"x": 100.0, "s": "inner" * 30})
            table.gather([1, 2], ["x"])
            table.erase(2)
            table.clear()
            return 7.0

    class Key(np.int64):
        def __int__(self):
            victims.clear()
            table.clear()
            gc.collect()
            return 3

    victims = [Key(3), 1, 2]
    for _ in range(50):
        table.put(1, {"x": 1.0, "y": Meddler(7.0), "s": "outer"})
        assert table.lookup(1)["s"] == "outer"
        table.put_many([(i, {"x": Meddler(1.0)}) for i in range(6)])
        victims[:] = [Key(3), 1, 2]
        assert table.gather(victims, ["x"]).values.shape == (3, 1)
        assert table.core.check() == 0


def test_threads_share_a_table():
    """Four threads that put, gather, erase and dump at once: every row that is read is one that was written whole."""
    table = FeatureTable({f"x{i}": "f64" for i in range(8)}, "int", max_rows=200)
    columns = list(table.columns)
    failures = []

    def work(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(400):
                keys = rng.integers(0, 400, 20).tolist()
                value = float(rng.integers(1, 1_000))
                for key in keys[:5]:
                    table.put(key, dict.fromkeys(columns, value))
                found = table.gather(keys, columns)
                there = found.values[found.outcome == Outcome.PRESENT]
                assert (there == there[:, :1]).all()
                table.erase(keys[0])
                table.mark_unknown(keys[1:2])
                list(table.keys())
        except BaseException as exc:  # reported by the test's own thread
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert table.core.check() == 0
    assert len(table) <= 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork here")
def test_a_forked_child_has_a_table_of_its_own():
    """The child reads what was there, writes into its own copy, and the parent sees nothing of it."""
    code = textwrap.dedent("""
        import os, sys
        from retailinfer.store.feature_table import FeatureTable
        table = FeatureTable({"x": "f64"}, "int", max_rows=5000)
        for i in range(5000):
            table.put(i, {"x": float(i)})
        children = []
        for child in range(3):
            pid = os.fork()
            if pid == 0:
                ok = table.gather(list(range(5000)), ["x"]).values[:, 0].tolist() == list(range(5000))
                for i in range(20000):
                    table.put(i, {"x": -1.0})
                ok = ok and table.core.check() == 0 and table.lookup(19999) == {"x": -1.0}
                os._exit(0 if ok else 1)
            children.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
        assert table.gather(list(range(5000)), ["x"]).values[:, 0].tolist() == list(range(5000))
        assert table.core.check() == 0
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_stats_count_what_happened():
    """Hits, expired, unknown and missed look-ups, evictions and ages are what the calls were."""
    clock = ManualClock(wall_ns=1_000 * SECOND)
    table = FeatureTable(
        {"x": "f64"}, ttl="10s", jitter=0.0, max_rows=2, policy="lru", clock=clock, name="card"
    )
    for key in ("a", "b", "c"):
        table.put(key, {"x": 1.0}, updated_at=990)
    table.mark_unknown(["no"])
    table.gather(["a", "b", "c", "no", "-"], ["x"])
    clock.advance_ns(10 * SECOND)
    table.lookup("c")
    stats = table.stats
    assert (stats.hits, stats.expired, stats.unknown_hits, stats.misses) == (2, 1, 1, 2)
    assert (stats.rows, stats.max_rows, stats.evictions, stats.inserts) == (2, 2, 1, 3)
    assert stats.hit_rate == 3 / 6
    assert stats.age_s == (20.0, 20.0, 20.0)
    assert stats.bytes == table.nbytes <= stats.max_bytes
    assert repr(table).startswith("<FeatureTable card: 2 of 2 rows by str, 1 columns, ")
    assert np.isnan(FeatureTable({"x": "f64"}).stats.hit_rate)


def test_memory_of_a_key_is_overwritten_when_it_is_erased():
    """After erase, neither the key nor the text is anywhere in the memory of the process that the table had."""
    secret = "erase-me-" + "q7" * 20
    table = FeatureTable({"s": "str"}, max_rows=10)
    table.put(secret, {"s": secret})
    table.mark_unknown([secret + "-unknown"])
    before = len(table.core.export_rows(table.core.order(), 0, 0))
    assert before > 2 * len(secret)
    assert table.erase(secret)
    assert table.erase(secret + "-unknown")
    assert not table.erase(secret)
    assert table.core.export_rows(table.core.order(), 0, 0) == b""
    assert table.core.check() == 0


def test_a_native_table_is_made_once():
    """A second __init__ is refused, so that memory in use is never laid out anew."""
    table = LruTable("t", "int", [("x", "f64", 1)], convert=plain_cell)
    with pytest.raises(ConfigError):
        table.__init__("t", "int", [("x", "f64", 1)], convert=plain_cell)
    assert table.states([1], 0) != bytes([ROW_EXPIRED])
