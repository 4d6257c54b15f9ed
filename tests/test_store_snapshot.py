"""Building snapshots from Arrow data and from rows: each type with a meaning, a named refusal of the rest."""

from __future__ import annotations

import math
import sys
import time
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailinfer.errors import (
    ConfigError,
    FeatureError,
    FeatureMissingError,
    FeatureRangeError,
    FeatureTypeError,
    RetailInferError,
    ShapeError,
    SpecError,
)
from retailinfer.store.table import Outcome, Snapshot

pa = pytest.importorskip("pyarrow")

NS = 1_000_000_000


def column(array: Any) -> tuple[str, list[Any]]:
    """Kind and values of one Arrow column after its way through a snapshot."""
    table = pa.table({"sku": pa.array([f"k{i}" for i in range(len(array))], pa.string()), "x": array})
    snapshot = Snapshot.from_arrow(table)
    values = [snapshot.lookup(key)["x"] for key in list(snapshot.keys())]  # type: ignore[index]
    return snapshot.columns["x"], [v.tolist() if isinstance(v, np.ndarray) else v for v in values]


@pytest.mark.parametrize(
    ("array", "kind", "values"),
    [
        (pa.array([1.5, None, math.nan]), "f64", [1.5, None, None]),
        (pa.array([0.1, None], pa.float32()), "f64", [float(np.float32(0.1)), None]),
        (pa.array([np.float16(0.1), None], pa.float16()), "f64", [float(np.float16(0.1)), None]),
        (pa.array([Decimal("0.10"), None], pa.decimal128(9, 2)), "f64", [0.1, None]),
        (pa.array([Decimal("1234567.891011")], pa.decimal256(50, 6)), "f64", [1234567.891011]),
        (pa.array([1, None, -(2**63), 2**63 - 1]), "i64", [1, None, -(2**63), 2**63 - 1]),
        (pa.array([200, None], pa.uint8()), "i64", [200, None]),
        (pa.array([2**63 - 1], pa.uint64()), "i64", [2**63 - 1]),
        (pa.array([True, None, False]), "i64", [1, None, 0]),
        (pa.array([1500, None], pa.timestamp("ms", "UTC")), "i64", [1_500_000_000, None]),
        (pa.array([1], pa.timestamp("s", "Europe/London")), "i64", [NS]),
        (pa.array([1499, 1500, -501], pa.timestamp("ns", "UTC")), "i64", [1000, 2000, -1000]),
        (pa.array(["a", None, "", "é\0"]), "str", ["a", None, "", "é\0"]),
        (pa.array(["a", None], pa.large_string()), "str", ["a", None]),
        (pa.array(["a" * 20, None], pa.string_view()), "str", ["a" * 20, None]),
        (pa.array(["a", None, "a"]).dictionary_encode(), "str", ["a", None, "a"]),
        (pa.array([5, None, 5]).dictionary_encode(), "i64", [5, None, 5]),
        (pa.array([b"a\0", None]), "bytes", [b"a\0", None]),
        (pa.array([b"ab", None], pa.binary(2)), "bytes", [b"ab", None]),
        (pa.array([[1.0, 2.0], None]), "vec", [[1.0, 2.0], None]),
        (pa.array([[1, 2], None, [3, 4]], pa.large_list(pa.int32())), "vec", [[1.0, 2.0], None, [3.0, 4.0]]),
        (pa.array([None, [1.0, 2.0]], pa.list_(pa.float32(), 2)), "vec", [None, [1.0, 2.0]]),
        (pa.nulls(2), "f64", [None, None]),
        (pa.nulls(2, pa.list_(pa.float32())), "vec", [None, None]),
        (pa.chunked_array([[1.0], [], [2.0, None]]), "f64", [1.0, 2.0, None]),
        (pa.chunked_array([["a"], [None, "bc"]]), "str", ["a", None, "bc"]),
        (pa.array(["x", "aa", None, "b", "y"]).slice(1, 3), "str", ["aa", None, "b"]),
        (pa.array([[0.0], [1.0], None, [2.0]]).slice(1, 3), "vec", [[1.0], None, [2.0]]),
        (pa.array([]), "f64", []),
        (pa.array([], pa.string()), "str", []),
        (pa.array([], pa.list_(pa.float32())), "vec", []),
    ],
)
def test_arrow_types_become_one_canonical_kind(array: Any, kind: str, values: list[Any]):
    """Float64, int64, UTF-8, bytes or a vector, with nulls kept, whatever the source's width, chunks and offsets."""
    assert column(array) == (kind, values)


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (pa.array([1], pa.timestamp("ns")), SpecError),  # in which zone?
        (pa.array([date(2024, 1, 1)]), SpecError),
        (pa.array([{"a": 1}]), SpecError),
        (pa.array([timedelta(1)]), SpecError),
        (pa.array([["a"]]), SpecError),
        (pa.array([2**63], pa.uint64()), FeatureRangeError),
        (pa.array([2**40], pa.timestamp("s", "UTC")), FeatureRangeError),
        (pa.array([2**62 // NS + 1], pa.timestamp("s", "UTC")), FeatureRangeError),
        (pa.array([[1.0, 2.0], [1.0]]), ShapeError),
        (pa.array([[], []], pa.list_(pa.float32())), ShapeError),
        (pa.array([[1.0, None]]), FeatureRangeError),
        (pa.array([[1.0, math.nan]]), FeatureRangeError),
        (pa.array([[1e300]]), FeatureRangeError),
        (pa.array(["a" * 65_537]), FeatureRangeError),
        (
            pa.Array.from_buffers(
                pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
            ),
            ShapeError,
        ),
    ],
)
def test_what_cannot_be_stored_is_refused_by_the_column_name(array: Any, error: type[RetailInferError]):
    """A type without a meaning, or a value without a place, never becomes something else in silence."""
    with pytest.raises(error, match=r"table\.x|Column 1"):
        column(array)


@given(st.lists(st.decimals(-(10**15), 10**15, places=6, allow_nan=False), min_size=1, max_size=50))
def test_decimals_are_rounded_as_python_rounds_them(values: list[Decimal]):
    """The same logical value has the same bits from JSON, Decimal and Arrow's decimal128."""
    assert column(pa.array(values, pa.decimal128(38, 6)))[1] == [float(value) for value in values]


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (pa.array(["a", "b"]), "str"),
        (pa.array(["a", "b"]).dictionary_encode(), "str"),
        (pa.array([1, 2], pa.int32()), "int"),
        (pa.array([b"a", b"b"]), "bytes"),
    ],
)
def test_keys_have_the_kind_of_their_column(keys: Any, kind: str):
    """Text, integers and bytes are keys; what was found under them is what stood beside them."""
    snapshot = Snapshot.from_arrow(pa.table({"sku": keys, "x": [1, 2]}))
    assert snapshot.key_kind == kind
    assert [snapshot.lookup(key) for key in keys.to_pylist()] == [{"x": 1}, {"x": 2}]
    assert list(snapshot.keys()) == keys.to_pylist()


def test_key_of_several_columns_is_a_tuple():
    """The order is that of `key=`; the parts keep their kinds."""
    table = pa.table({"x": [1.0, 2.0], "sku": ["s", "s"], "store": pa.array([7, 8], pa.int16())})
    snapshot = Snapshot.from_arrow(table, key=("store", "sku"))
    assert snapshot.key_kind == ("int", "str")
    assert snapshot.lookup((8, "s")) == {"x": 2.0}
    assert snapshot.lookup((9, "s")) is None
    assert snapshot.columns == {"x": "f64"}
    assert Snapshot.from_arrow(table, key=("sku", "store")).lookup(("s", 7)) == {"x": 1.0}
    assert Snapshot.from_arrow(table, key=["store"], columns=["x"]).key_kind == ("int",)


@pytest.mark.parametrize(
    ("keys", "error", "text"),
    [
        (pa.array(["a", None, "b"]), FeatureMissingError, "row 1"),
        (pa.array(["a", None, "b"]).dictionary_encode(), FeatureMissingError, "row 1"),
        (pa.array(["a", "b", "a"]), FeatureRangeError, "'a' in rows 0 and 2"),
        (pa.array([1.0, 2.0, 3.0]), SpecError, "double"),
        (pa.array([True, False, True]), SpecError, "bool"),
        (pa.array([1, 2, 3], pa.timestamp("s", "UTC")), SpecError, "timestamp"),
        (pa.array([1, 2, 2**63], pa.uint64()), FeatureRangeError, "64 bits"),
    ],
)
def test_bad_keys_are_refused(keys: Any, error: type[RetailInferError], text: str):
    """Null, repeated and non-key columns are named with their row or type."""
    with pytest.raises(error, match=text):
        Snapshot.from_arrow(pa.table({"sku": keys, "x": [1, 2, 3]}))


def test_columns_are_chosen_by_name():
    """`columns` keeps the named ones; a name that is not there, or twice, is an error that lists what is."""
    table = pa.table({"sku": ["a"], "x": [1], "y": [2], "when": [3.5]})
    assert list(Snapshot.from_arrow(table, columns=["y"]).columns) == ["y"]
    assert list(Snapshot.from_arrow(table, columns=["sku", "x"]).columns) == ["sku", "x"]
    snapshot = Snapshot.from_arrow(table, updated_at="when")
    assert list(snapshot.columns) == ["x", "y"]
    assert snapshot.updated_at_ns("a") == 3_500_000_000
    for wrong in ({"key": "nope"}, {"columns": ["nope"]}, {"updated_at": "nope"}):
        with pytest.raises(ConfigError, match=r"'nope'.*'sku'"):
            Snapshot.from_arrow(table, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got 2"):
        Snapshot.from_arrow(pa.table([["a"], [1], [2]], names=["sku", "x", "x"]))


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (pa.array([5, None], pa.timestamp("s", "UTC")), [5 * NS, None]),
        (pa.array([5, None]), [5 * NS, None]),
        (pa.array([5.25, math.nan]), [5_250_000_000, None]),
    ],
)
def test_time_of_a_row_is_a_timestamp_or_seconds(times: Any, expected: list[int | None]):
    """Both forms give nanoseconds; null is unknown."""
    snapshot = Snapshot.from_arrow(pa.table({"sku": ["a", "b"], "t": times}), updated_at="t")
    assert [snapshot.updated_at_ns(key) for key in "ab"] == expected


@pytest.mark.parametrize(
    ("times", "error"),
    [
        (pa.array([5], pa.timestamp("s")), SpecError),
        (pa.array(["2024-01-01"]), SpecError),
        (pa.array([True]), SpecError),
        (pa.array([1_700_000_000_000]), FeatureRangeError),  # milliseconds
        (pa.array([-(2**63)]), FeatureRangeError),
        (pa.array([math.inf]), FeatureRangeError),
    ],
)
def test_time_that_needs_a_guess_is_refused(times: Any, error: type[RetailInferError]):
    """No zone, text, milliseconds: an error, not an age that is wrong by hours or by a factor of a thousand."""
    with pytest.raises(error, match=r"table\.t"):
        Snapshot.from_arrow(pa.table({"sku": ["a"], "t": times}), updated_at="t")


def test_other_libraries_come_through_the_stream_interface():
    """polars, pandas, readers and batches give the table that pyarrow gives."""
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    rows = {"sku": ["a", "b"], "x": [1.5, None], "s": ["u", "v"]}
    table = pa.table(rows)
    categorical = pl.DataFrame(rows).with_columns(pl.col("s").cast(pl.Categorical))
    for source in (
        table,
        pl.DataFrame(rows),
        categorical,
        pd.DataFrame(rows),
        pd.DataFrame(rows).astype({"s": "category"}),
        table.to_batches()[0],
        table.to_reader(),
    ):
        snapshot = Snapshot.from_arrow(source)
        assert [snapshot.lookup(key) for key in "ab"] == [{"x": 1.5, "s": "u"}, {"x": None, "s": "v"}]
    with pytest.raises(ConfigError, match="from_rows"):
        Snapshot.from_arrow(rows)


def test_missing_pyarrow_is_said_in_words(monkeypatch: pytest.MonkeyPatch):
    """The error names the extra; `from_rows` works without it."""
    table = pa.table({"sku": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"retailinfer\[arrow\]"):
        Snapshot.from_arrow(table)
    assert Snapshot.from_rows({"a": {"x": 1}}).lookup("a") == {"x": 1}


def test_a_hundred_thousand_rows_are_read_whole_columns_at_a_time():
    """100,000 rows of 40 columns build well below a second: nothing loops over cells in Python."""
    n = 100_000
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {"sku": [f"sku-{i:07d}" for i in range(n)]}
    columns |= {f"f{i}": rng.standard_normal(n) for i in range(30)}
    columns |= {f"s{i}": [f"brand-{x}" for x in rng.integers(0, 100, n)] for i in range(10)}
    table = pa.table(columns)
    durations = []
    for _ in range(3):
        start = time.process_time()
        snapshot = Snapshot.from_arrow(table)
        durations.append(time.process_time() - start)
    assert min(durations) < 1.0
    assert snapshot.lookup("sku-0000999") == {name: columns[name][999] for name in columns if name != "sku"}


# ---- rows of Python values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind", "stored"),
    [
        ([1, None], "i64", [1, None]),
        ([True, 2], "i64", [1, 2]),
        ([1, 2.5], "f64", [1.0, 2.5]),
        ([Decimal("0.1"), math.nan], "f64", [0.1, None]),
        ([np.float32(0.5), np.int16(2)], "f64", [0.5, 2.0]),
        (["a", ""], "str", ["a", ""]),
        ([b"a", None], "bytes", [b"a", None]),
        ([[1, 2.0], (3, 4), None], "vec", [[1.0, 2.0], [3.0, 4.0], None]),
        ([datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), None], "i64", [0, None]),
        ([datetime(2024, 1, 1, microsecond=1, tzinfo=UTC)], "i64", [1_704_067_200_000_001_000]),
        ([None, None], "f64", [None, None]),
    ],
)
def test_rows_show_the_kind_of_their_columns(values: list[Any], kind: str, stored: list[Any]):
    """The kind follows from the values; integers beside fractions are numbers."""
    snapshot = Snapshot.from_rows({i: {"x": value} for i, value in enumerate(values)})
    found = [snapshot.lookup(i)["x"] for i in range(len(values))]  # type: ignore[index]
    assert snapshot.columns == {"x": kind}
    assert [v.tolist() if isinstance(v, np.ndarray) else v for v in found] == stored


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ({"a": {"x": 1}, "b": {"x": "1"}}, FeatureTypeError),
        ({"a": {"x": object()}}, FeatureTypeError),
        ({"a": {"x": {}}}, FeatureTypeError),
        ({"a": {"x": 2**63}}, FeatureRangeError),
        ({"a": {"x": 2**53 + 1}, "b": {"x": 0.5}}, FeatureRangeError),
        ({"a": {"x": "\ud800"}}, FeatureRangeError),
        ({"a": {"x": [1.0]}, "b": {"x": [1.0, 2.0]}}, FeatureTypeError),
        ({"a": {"x": [math.nan]}}, FeatureRangeError),
        ({"a": {"x": ["t"]}}, FeatureTypeError),
        ({"a": {"x": [[1.0], [2.0]]}}, FeatureTypeError),
        ({"a": {"x": [[1.0], 2.0]}}, FeatureTypeError),
        ({"a": {"x": np.array(1.0)}}, FeatureTypeError),
        ({"a": {"x": datetime(2024, 1, 1)}}, SpecError),  # noqa: DTZ001 - a naive time is the point
        ({"a": {"x": datetime(2200, 1, 1, tzinfo=UTC)}}, FeatureRangeError),
        ({"a": {}, 1: {}}, FeatureTypeError),
        ({True: {}}, FeatureTypeError),
        ({1.5: {}}, FeatureTypeError),
        ({None: {}}, FeatureTypeError),
        ({("a", 1): {}, ("a",): {}}, FeatureTypeError),
        ({("a", 1): {}, (1, "a"): {}}, FeatureTypeError),
        ({"\ud800": {}}, FeatureRangeError),
        ({2**63: {}}, FeatureRangeError),
    ],
)
def test_rows_that_cannot_be_stored_are_refused(rows: dict[Any, Any], error: type[FeatureError]):
    """Mixed kinds, values without a place and keys that are none: an error each, never a guess."""
    with pytest.raises(error, match="table"):
        Snapshot.from_rows(rows)


def test_kinds_fix_what_values_do_not_show():
    """`kinds` makes integers numbers and gives a column that no row has."""
    snapshot = Snapshot.from_rows({"a": {"x": 1}}, kinds={"x": "f64", "later": "str"})
    assert snapshot.columns == {"x": "f64", "later": "str"}
    assert snapshot.lookup("a") == {"x": 1.0, "later": None}
    for kinds, error in (
        ({"x": "str"}, FeatureTypeError),
        ({"x": "float"}, ConfigError),
        ({"x": "vec"}, FeatureTypeError),
    ):
        with pytest.raises(error):
            Snapshot.from_rows({"a": {"x": 1}}, kinds=kinds)


def test_empty_catalogue_answers():
    """No rows is a catalogue too: nothing is found, nothing fails."""
    for snapshot in (
        Snapshot.from_rows({}),
        Snapshot.from_arrow(pa.table({"sku": pa.array([], pa.string())})),
    ):
        assert len(snapshot) == 0
        assert snapshot.lookup("a") is None
        assert "a" not in snapshot
        assert snapshot.table.rows_of(["a"] * 50).tolist() == [-1] * 50


def test_snapshot_says_what_it_is():
    """Length, membership, memory and a readable repr."""
    snapshot = Snapshot.from_rows({"a": {"x": 1.0}}, name="item")
    assert len(snapshot) == 1
    assert "a" in snapshot
    assert snapshot.nbytes > 0
    assert repr(snapshot).startswith("<Snapshot item: 1 rows by str, 1 columns, ")
    assert snapshot.gather(["a", "b"], ["x"]).values[0, 0] == 1.0
    snapshot.table.make_block("b", ["x"])
    assert snapshot.gather_block(["b", "a"], "b")[1].tolist() == [False, True]


def test_gather_gives_ages_and_outcomes():
    """Each row has its age at the moment given, never a negative one, and says whether it is there, null or unknown."""
    snapshot = Snapshot.from_rows(
        {
            "old": {"x": 1.0, "y": 2.0, "at": 1_000.0},
            "future": {"x": 1.0, "y": None, "at": 9_000.0},
            "null": {"x": None, "y": 3.0, "at": None},
        },
        updated_at="at",
    )
    keys = ["null", "old", "-", "future"]
    found = snapshot.gather(keys, ["x"], wall_ns=1_060_000_000_000)
    np.testing.assert_array_equal(found.values[:, 0], np.array([np.nan, 1.0, np.nan, 1.0], np.float32))
    np.testing.assert_array_equal(found.age_s, [np.nan, 60.0, np.nan, 0.0])
    assert [Outcome(one).name for one in found.outcome] == ["NULL", "PRESENT", "UNKNOWN", "PRESENT"]
    both = snapshot.gather(keys, ["x", "y"])
    assert [Outcome(one).name for one in both.outcome] == ["PRESENT", "PRESENT", "UNKNOWN", "PRESENT"]
    assert snapshot.gather([], ["x"]).outcome.shape == (0,)
