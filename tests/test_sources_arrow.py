"""ArrowSource and MemorySource: rows out of tables, Parquet files and mappings of this process."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from retailinfer.errors import (
    ConfigError,
    FeatureMissingError,
    FeatureRangeError,
    FeatureTypeError,
    SpecError,
)
from retailinfer.store.sources.arrow import ArrowSource
from retailinfer.store.sources.memory import MemorySource

pa = pytest.importorskip("pyarrow", reason="`pyarrow` is not installed (pip install retailinfer[test])")
pq = pytest.importorskip(
    "pyarrow.parquet", reason="`pyarrow` is not installed (pip install retailinfer[test])"
)

N = 5_000
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def catalogue():
    """Items by text, with one column of each kind."""
    return pa.table(
        {
            "sku": [f"s-{i}" for i in range(N)],
            "price": pa.array([None if i % 7 == 0 else i / 8 for i in range(N)], pa.float32()),
            "stock": pa.array(range(N), pa.int32()),
            "brand": pa.array([f"b{i % 5}" for i in range(N)]).dictionary_encode(),
            "vec": pa.array([[i, i + 1] for i in range(N)], pa.list_(pa.float32(), 2)),
            "seen": pa.array([MOMENT] * N, pa.timestamp("ns", "UTC")),
            "live": pa.array([i % 2 == 0 for i in range(N)]),
        }
    )


@pytest.fixture(params=["table", "file", "folder", "file for every fetch", "folder for every fetch"])
def source(request, tmp_path: Path) -> ArrowSource:
    """The same rows from memory, from a file, and from a folder of files, read once or again and again."""
    table = catalogue()
    if request.param == "table":
        return ArrowSource(table, key="sku")
    if request.param.startswith("folder"):
        path = tmp_path / "items"
        path.mkdir()
        for i in range(4):
            pq.write_table(table.slice(i * N // 4, N // 4), path / f"{i}.parquet")
    else:
        path = tmp_path / "items.parquet"
        pq.write_table(table, path, row_group_size=500)
    return ArrowSource(path, key="sku", whole="every" not in request.param)


def test_rows_come_back_by_key(source: ArrowSource):
    """Whatever holds the rows, a key has its own, with plain Python values and None for null."""
    rows = source.fetch(["s-4999", "nothing", "s-0", "s-7"], timeout_s=1)
    assert list(rows) == ["s-4999", "nothing", "s-0", "s-7"]
    assert rows["nothing"] is None
    assert rows["s-0"]["price"] is None
    row = rows["s-4999"]
    assert row == {
        "price": 624.875, "stock": 4999, "brand": "b4", "vec": [4999.0, 5000.0], "seen": MOMENT, "live": False
    }  # fmt: skip
    assert type(row["seen"]) is datetime


def test_every_row_is_scanned_once(source: ArrowSource):
    """`scan` gives everything, keys first, for a bulk load."""
    table = source.scan().read_all()
    assert table.column_names[0] == "sku"
    assert sorted(table["sku"].to_pylist()) == sorted(f"s-{i}" for i in range(N))


def test_chosen_columns_only(tmp_path: Path):
    """Columns that are not asked for are neither checked nor read."""
    table = catalogue().append_column("odd", pa.array([{"a": 1}] * N))
    pq.write_table(table, tmp_path / "t.parquet")
    for data, whole in ((table, True), (tmp_path / "t.parquet", True), (str(tmp_path / "t.parquet"), False)):
        source = ArrowSource(data, key="sku", columns=["stock"], whole=whole)
        assert source.fetch(["s-1"], timeout_s=1) == {"s-1": {"stock": 1}}
        with pytest.raises(SpecError, match="odd"):
            ArrowSource(data, key="sku", whole=whole)


@pytest.mark.parametrize("whole", [True, False])
def test_composite_and_integer_keys(tmp_path: Path, whole: bool):
    """Parts of different keys are never put together into one that was not asked for."""
    table = pa.table({"store": ["a", "a", "b"], "sku": pa.array([1, 2, 1], pa.int16()), "n": [10, 20, 30]})
    pq.write_table(table, tmp_path / "t.parquet")
    source = ArrowSource(tmp_path / "t.parquet", key=("store", "sku"), whole=whole)
    rows = source.fetch([("a", 2), ("b", 1), ("b", 2)], timeout_s=1)
    assert rows == {("a", 2): {"n": 20}, ("b", 1): {"n": 30}, ("b", 2): None}
    by_number = ArrowSource(table.slice(0, 2), key="sku", columns=["n"])
    assert by_number.fetch([2, -1], timeout_s=1) == {2: {"n": 20}, -1: None}
    pq.write_table(table.slice(0, 2), tmp_path / "n.parquet")
    narrow = ArrowSource(tmp_path / "n.parquet", key="sku", columns=["n"], whole=whole)
    huge = [2, 70_000, -(2**63), 2**63 - 1]  # no key of 16 bits: unknown, and no failure for the others
    assert narrow.fetch(huge, timeout_s=1) == {2: {"n": 20}, 70_000: None, -(2**63): None, 2**63 - 1: None}


def test_file_may_be_replaced_between_fetches(tmp_path: Path):
    """A source that reads for every fetch sees the new file, also when it is shorter."""
    path = tmp_path / "t.parquet"
    pq.write_table(catalogue(), path, row_group_size=100)
    source = ArrowSource(path, key="sku", columns=["stock"], whole=False)
    assert source.fetch(["s-4000"], timeout_s=1)["s-4000"] == {"stock": 4000}
    pq.write_table(pa.table({"sku": ["s-4000"], "stock": [-1]}), tmp_path / "new")
    (tmp_path / "new").replace(path)
    assert source.fetch(["s-4000", "s-1"], timeout_s=1) == {"s-4000": {"stock": -1}, "s-1": None}


def test_keys_that_cannot_be_looked_up_are_named():
    """A key twice or a null key is refused when the source is made."""
    with pytest.raises(FeatureRangeError, match="s-1"):
        ArrowSource(pa.table({"sku": ["s-1", "s-2", "s-1"], "n": [1, 2, 3]}), key="sku")
    with pytest.raises(FeatureMissingError, match="row 1"):
        ArrowSource(pa.table({"sku": ["s-1", None], "n": [1, 2]}), key="sku")


def test_key_twice_in_a_file_read_for_every_fetch(tmp_path: Path):
    """There it is found when the key is asked for."""
    pq.write_table(pa.table({"sku": ["x", "y", "x"], "n": [1, 2, 3]}), tmp_path / "t.parquet")
    source = ArrowSource(tmp_path / "t.parquet", key="sku", whole=False)
    assert source.fetch(["y"], timeout_s=1) == {"y": {"n": 2}}
    with pytest.raises(ConfigError, match="one row for a key"):
        source.fetch(["x", "y"], timeout_s=1)


@pytest.mark.parametrize("whole", [True, False])
def test_files_and_columns_that_are_not_there(tmp_path: Path, whole: bool):
    """A missing file, a file that is no Parquet and a missing column are errors when the source is made."""
    with pytest.raises(OSError, match="none"):
        ArrowSource(tmp_path / "none.parquet", key="sku", whole=whole)
    (tmp_path / "text.parquet").write_text("no Parquet at all")
    with pytest.raises((OSError, pa.ArrowInvalid)):
        ArrowSource(tmp_path / "text.parquet", key="sku", whole=whole)
    pq.write_table(catalogue(), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="nothing"):
        ArrowSource(tmp_path / "t.parquet", key="nothing", whole=whole)
    with pytest.raises(ConfigError, match="nothing"):
        ArrowSource(tmp_path / "t.parquet", key="sku", columns=["nothing"], whole=whole)


def test_types_without_a_meaning_are_refused():
    """Naive timestamps, structs, float keys: said when the source is made, with the column's name."""
    with pytest.raises(SpecError, match="seen"):
        ArrowSource(pa.table({"k": ["a"], "seen": pa.array([datetime(2026, 1, 1)])}), key="k")  # noqa: DTZ001 - naive
    with pytest.raises(SpecError, match="k"):
        ArrowSource(pa.table({"k": [1.5], "n": [1]}), key="k")
    with pytest.raises(ConfigError, match="Arrow stream"):
        ArrowSource([{"k": 1}], key="k")


def test_keys_of_another_kind_raise(tmp_path: Path):
    """An integer asked of a table by text is a mistake, not an unknown entity."""
    with pytest.raises(FeatureTypeError):
        ArrowSource(catalogue(), key="sku").fetch([5], timeout_s=1)


def test_other_libraries_tables_are_taken():
    """polars and pandas frames come in through the Arrow stream interface."""
    pl = pytest.importorskip("polars", reason="`polars` is not installed (pip install retailinfer[test])")
    source = ArrowSource(pl.DataFrame({"k": ["a", "b"], "x": [1.5, None]}), key="k")
    assert source.fetch(["a", "b"], timeout_s=1) == {"a": {"x": 1.5}, "b": {"x": None}}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork")
@pytest.mark.parametrize("whole", [True, False])
def test_works_in_a_forked_child(tmp_path: Path, whole: bool):
    """A child of a process that has fetched can fetch too, and end."""
    import multiprocessing

    pq.write_table(catalogue(), tmp_path / "t.parquet")
    source = ArrowSource(tmp_path / "t.parquet", key="sku", columns=["stock"], whole=whole)
    assert source.fetch(["s-3"], timeout_s=1)["s-3"] == {"stock": 3}
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    child = fork.Process(target=lambda: answers.put(source.fetch(["s-4"], timeout_s=1)))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert answers.get() == {"s-4": {"stock": 4}}


def test_memory_source_reads_the_mapping_as_it_is():
    """Rows that other code changes are seen by the next fetch; absent keys are None."""
    rows: dict = {"a": {"x": np.float32(1.5)}}
    source = MemorySource(rows)
    assert source.fetch(["a", "b"], timeout_s=0) == {"a": {"x": 1.5}, "b": None}
    rows["b"] = {"x": 2}
    assert source.fetch(["b"], timeout_s=0)["b"] == {"x": 2}
    assert dict(source.scan()) == rows
    assert not source.waits
    with pytest.raises(ConfigError, match="mapping"):
        MemorySource([("a", {})])  # type: ignore[arg-type]
