"""What a table stores and gathers, cell by cell, against plain Python: nulls, texts, vectors, blocks of rows."""

from __future__ import annotations

import struct
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retailinfer._native.table import RowBlock, SnapshotTable
from retailinfer.errors import ConfigError, FeatureRangeError, LimitError, ShapeError
from retailinfer.store.table import Snapshot

CELLS = {
    "f64": st.one_of(st.none(), st.floats(allow_infinity=False), st.sampled_from([-0.0, 5e-324, 1e39])),
    "i64": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.booleans()),
    "str": st.one_of(st.none(), st.text("ab\0é€😀", max_size=9)),
    "bytes": st.one_of(st.none(), st.binary(max_size=9)),
    "vec": st.one_of(
        st.none(),
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
    ),
}
KINDS = st.lists(st.sampled_from(sorted(CELLS)), max_size=70)


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Column kinds and rows; up to 70 columns, so that the validity bits need a second word."""
    kinds = {f"c{i}": kind for i, kind in enumerate(draw(KINDS))}
    row = st.fixed_dictionaries({name: CELLS[kind] for name, kind in kinds.items()})
    return kinds, draw(st.dictionaries(st.text("abc", max_size=3), row, max_size=6))


def bits(value: Any) -> Any:
    """A value such that equal means equal in every bit."""
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.tobytes()
    return type(value), value


def stored(value: Any, kind: str) -> Any:
    """What comes back for a value."""
    if value is None or (kind == "f64" and value != value):  # noqa: PLR0124 - NaN is null
        return None
    return {"f64": float, "i64": int, "vec": lambda v: np.array(v, np.float32)}.get(kind, lambda v: v)(value)


@given(catalogue=catalogues())
@example(catalogue=({}, {"a": {}}))
@example(catalogue=({"c0": "f64"}, {"a": {"c0": float("nan")}, "b": {"c0": -0.0}}))
def test_rows_come_back_as_they_went_in(catalogue: tuple[dict[str, str], dict[str, dict[str, Any]]]):
    """Every cell has its bits, every null is None, whatever stands beside it."""
    kinds, rows = catalogue
    table = Snapshot.from_rows(rows, kinds=kinds).table
    assert {name: kind for name, kind, *_ in table.schema} == kinds
    for key, row in rows.items():
        found = table.lookup(key)
        assert found is not None
        assert list(found) == list(kinds)
        for name, kind in kinds.items():
            assert bits(found[name]) == bits(stored(row[name], kind))


@given(catalogue=catalogues(), data=st.data())
def test_gather_equals_single_lookups(
    catalogue: tuple[dict[str, str], dict[str, dict[str, Any]]], data: st.DataObject
):
    """A gathered matrix has each cell rounded to float32 once, NaN where there is nothing; so has a block."""
    kinds, rows = catalogue
    numbers = [name for name, kind in kinds.items() if kind in ("f64", "i64", "vec")]
    if not numbers:
        return
    columns = data.draw(st.lists(st.sampled_from(numbers), min_size=1, max_size=8))
    keys = data.draw(st.lists(st.sampled_from([*rows, "absent", ""]), max_size=40))
    table = Snapshot.from_rows(rows, kinds=kinds).table
    widths = {name: width for name, _, _, _, width in table.schema}
    expected = np.full((len(keys), sum(widths[name] for name in columns)), np.nan, np.float32)
    for i, key in enumerate(keys):
        at = 0
        for name in columns:
            value = (table.lookup(key) or {}).get(name)
            if value is not None:
                with np.errstate(over="ignore"):
                    expected[i, at : at + widths[name]] = np.float64(value) if kinds[name] != "vec" else value
            at += widths[name]
    matrix, found = table.gather(keys, columns)
    assert found.tolist() == [table.row_of(key) for key in keys]
    assert np.array_equal(matrix, expected, equal_nan=True)
    assert set(matrix.view(np.uint32)[np.isnan(matrix)].tolist()) <= {0x7FC00000}

    table.make_block("b", columns)
    block, found_too = table.gather_block(keys, "b")
    expected[found < 0] = 0.0
    assert np.array_equal(block, expected, equal_nan=True)
    assert np.array_equal(found_too, found)


def test_layout_is_the_documented_one():
    """Scalars at 8-byte offsets after time and validity, vectors behind them, records that straddle no line in vain."""
    table = Snapshot.from_rows({"a": {"v": [1.0, 2.0, 3.0], "x": 1.5, "s": "t", "n": 1}}).table
    assert table.schema == (
        ("v", "vec", 40, 0, 3),
        ("x", "f64", 16, 1, 1),
        ("s", "str", 24, 2, 1),
        ("n", "i64", 32, 3, 1),
    )
    assert table.stride == 64
    wide = Snapshot.from_rows({"a": {f"c{i}": 1.0 for i in range(65)}}).table
    assert wide.schema[0][2] == 8 + 16  # two validity words
    assert wide.stride % 64 == 0


def test_time_of_a_row_is_kept_beside_it():
    """`updated_at` is not a column; 0 and null mean that nobody knows."""
    rows = {"a": {"t": 1.5, "x": 1}, "b": {"t": None, "x": 2}, "c": {"x": 3}}
    snapshot = Snapshot.from_rows(rows, updated_at="t")
    assert snapshot.columns == {"x": "i64"}
    assert [snapshot.updated_at_ns(key) for key in "abcd"] == [1_500_000_000, None, None, None]


def test_gather_into_memory_of_the_caller():
    """With `out` nothing is allocated; what does not fit is refused and left as it was."""
    table = Snapshot.from_rows({"a": {"x": 1.0, "y": 2.0}}).table
    table.make_block("b", ["x", "y"])
    out = np.full((2, 2), 7, np.float32)
    assert table.gather(["a", "-"], ["x", "y"], out=out)[0] is out
    assert np.array_equal(out, [[1, 2], [np.nan, np.nan]], equal_nan=True)
    assert table.gather_block(["-", "a"], "b", out=out)[0] is out
    assert np.array_equal(out, [[0, 0], [1, 2]])
    read_only = np.zeros((2, 2), np.float32)
    read_only.flags.writeable = False
    for bad in (
        np.zeros((2, 3), np.float32),
        np.zeros((2, 2)),
        np.zeros((2, 4), np.float32)[:, ::2],
        read_only,
        [[0.0] * 2] * 2,
    ):
        with pytest.raises(ShapeError):
            table.gather(["a", "-"], ["x", "y"], out=bad)  # type: ignore[arg-type]
        with pytest.raises(ShapeError):
            table.gather_block(["a", "-"], "b", out=bad)  # type: ignore[arg-type]


def test_only_numeric_columns_that_exist_are_gathered():
    """Texts, unknown names and no names at all are errors that list what there is."""
    table = Snapshot.from_rows({"a": {"x": 1.0, "s": "t"}}).table
    for columns in (["s"], ["nope"], []):
        with pytest.raises(ConfigError, match=r"`table`"):
            table.gather(["a"], columns)
    with pytest.raises(ConfigError, match="block"):
        table.gather_block(["a"], "nope")


@given(
    n=st.integers(0, 50),
    width=st.integers(1, 70),
    dtype=st.sampled_from(["u1", "i2", "f4", "f8"]),
    data=st.data(),
)
def test_block_gives_back_its_rows(n: int, width: int, dtype: str, data: st.DataObject):
    """Any width, any order, repeats; a negative row leaves the output as it is."""
    source = np.random.default_rng(0).integers(0, 255, (n, width)).astype(dtype)
    block = RowBlock.from_rows(source)
    rows = np.array(data.draw(st.lists(st.integers(-2, n - 1) if n else st.just(-1), max_size=60)), np.int32)
    out = np.full((len(rows), width), 99, dtype)
    block.take(rows, out)
    for i, row in enumerate(rows):
        assert np.array_equal(out[i], source[row] if row >= 0 else np.full(width, 99, dtype))
    assert block.nbytes >= source.nbytes


def test_block_refuses_rows_that_it_does_not_have():
    """A row beyond the end, or an output of another width, is an error and writes nothing."""
    block = RowBlock.from_rows(np.ones((3, 4), np.float32))
    out = np.zeros((2, 4), np.float32)
    with pytest.raises(FeatureRangeError, match="below 3"):
        block.take(np.array([0, 3], np.int32), out)
    assert not out.any()
    for bad in (np.zeros((2, 3), np.float32), np.zeros((1, 4), np.float32), np.zeros((4, 2), np.float32).T):
        with pytest.raises(ShapeError):
            block.take(np.array([0, 1], np.int32), bad)
    with pytest.raises(ShapeError):
        RowBlock.from_rows(np.array([["a"]], object))
    with pytest.raises(ShapeError):
        RowBlock.from_rows(np.ones((1, 1), ">f4"))
    with pytest.raises(ConfigError):
        RowBlock(1, 0)
    with pytest.raises(MemoryError):
        RowBlock(2**60, 1024)


def test_blocks_belong_to_the_table_and_are_accounted():
    """Attached memory is counted, replaced under its name, and goes when it is detached."""
    table = Snapshot.from_rows({f"{i}": {"x": float(i)} for i in range(100)}).table
    bare = table.nbytes
    block = table.attach_block("enc", np.ones((100, 8), np.float32))
    assert table.block("enc") is block
    assert table.nbytes == bare + block.nbytes
    table.attach_block("enc", np.zeros((100, 4), np.float32))
    assert table.nbytes < bare + block.nbytes
    table.detach_block("enc")
    table.detach_block("enc")
    assert table.nbytes == bare
    assert table.block("enc") is None
    with pytest.raises(ShapeError, match="100 rows"):
        table.attach_block("enc", np.ones((99, 8), np.float32))


def keyed(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Integer keys 0..n-1 in their canonical form."""
    return np.arange(n, dtype=np.int64).view(np.uint8), np.arange(0, 8 * n + 8, 8, dtype=np.int64)


@pytest.mark.parametrize(
    ("column", "error"),
    [
        (("x", "f64", np.zeros(3), None), ShapeError),
        (("x", "f64", np.zeros(2, np.float32), None), ShapeError),
        (("x", "f64", np.zeros(2, ">f8"), None), ShapeError),
        (("x", "f64", np.zeros((2, 1)), None), ShapeError),
        (("x", "i64", np.zeros(2, np.int32), None), ShapeError),
        (("x", "vec", np.zeros(2, np.float32), None), ShapeError),
        (("x", "vec", np.zeros((2, 0), np.float32), None), ShapeError),
        (("x", "vec", np.array([[1.0], [np.nan]], np.float32), None), FeatureRangeError),
        (
            ("x", "vec", np.array([[1.0], [np.inf]], np.float32), np.array([1, 1], np.uint8)),
            FeatureRangeError,
        ),
        (("x", "f64", np.zeros(2), np.zeros(3, np.uint8)), ShapeError),
        (("x", "str", (np.zeros(4, np.uint8), np.array([0, 9, 4])), None), ShapeError),
        (("x", "str", (np.zeros(70_000, np.uint8), np.array([0, 1, 70_000])), None), FeatureRangeError),
        (("x", "f32", np.zeros(2), None), ConfigError),
    ],
)
def test_column_that_cannot_be_stored_is_refused(column: tuple[Any, ...], error: type[Exception]):
    """The native constructor checks all that its C code relies on, and names the column."""
    with pytest.raises(error, match="x"):
        SnapshotTable("item", "int", keyed(2), [column])


def test_masked_vectors_may_hold_anything():
    """What stands under a null is not looked at."""
    vectors = np.array([[1.0, 2.0], [np.nan, np.inf]], np.float32)
    table = SnapshotTable("item", "int", keyed(2), [("v", "vec", vectors, np.array([1, 0], np.uint8))])
    assert table.row_at(1) == {"v": None}


def test_layout_limits_are_errors():
    """Two columns of one name, too many columns, rows out of range."""
    column = ("x", "f64", np.zeros(2), None)
    with pytest.raises(ConfigError, match="once"):
        SnapshotTable("item", "int", keyed(2), [column, column])
    with pytest.raises(LimitError, match="4096"):
        SnapshotTable("item", "int", keyed(2), [column] * 4097)
    table = SnapshotTable("item", "int", keyed(2), [column])
    for row in (-1, 2):
        with pytest.raises(FeatureRangeError):
            table.row_at(row)
        with pytest.raises(FeatureRangeError):
            table.key_at(row)
    with pytest.raises(ShapeError, match="updated_at"):
        SnapshotTable("item", "int", keyed(2), [column], np.zeros(3, np.int64))


def test_stored_objects_are_copies():
    """No reference to a caller's object stays: what was given may change or go."""
    text, values = "a text of some length", np.arange(2.0)
    before = sys.getrefcount(text)
    table = Snapshot.from_rows({text: {"s": text}, "b": {"s": text}}).table
    assert sys.getrefcount(text) == before
    native = SnapshotTable("item", "int", keyed(2), [("x", "f64", values, None)])
    values[:] = 9
    assert native.row_at(1) == {"x": 1.0}
    assert table.row_at(0) == {"s": text}
