"""Gathering rows of the item table, whole and mutable: 500 keys that were never hashed, 100,000 rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import retailinfer as ri
from benchmarks import tables, workloads
from benchmarks.conftest import Rotate

WIDTH = 32


@pytest.fixture(scope="module")
def snapshot() -> ri.Snapshot:
    """100,000 items of 32 floats, with finished rows beside the records."""
    made = tables.snapshot_of(WIDTH)
    made.table.make_block("rows", list(made.columns))
    return made


def fresh(numbers: Sequence[int]) -> list[list[str]]:
    """Lists of 500 strings each."""
    drawn = workloads.rank_requests()
    return [drawn.fresh_ids(i % workloads.N_REQUESTS) for i in numbers]


def test_gather_finished_rows(snapshot: ri.Snapshot, rotate: Rotate) -> None:
    """One copy a row."""
    out = np.empty((workloads.N_CANDIDATES, WIDTH), np.float32)
    want = workloads.item_values()[workloads.rank_requests().candidates[3], :WIDTH]
    np.testing.assert_array_equal(snapshot.gather_block(fresh([3])[0], "rows", out=out)[0], want)
    rotate(lambda keys: snapshot.gather_block(keys, "rows", out=out), fresh, block=20)


def test_gather_columns_of_records(snapshot: ri.Snapshot, rotate: Rotate) -> None:
    """Column by column out of the records, each number rounded to float32."""
    names = list(snapshot.columns)
    want = workloads.item_values()[workloads.rank_requests().candidates[3], :WIDTH]
    np.testing.assert_array_equal(snapshot.gather(fresh([3])[0], names)[0], want)
    rotate(lambda keys: snapshot.gather(keys, names), fresh, block=20)


def test_gather_of_a_mutable_table(rotate: Rotate) -> None:
    """The same with exact LRU: every look-up moves its row to the front."""
    table = tables.item_feature_table(WIDTH)
    names = tuple(f"x{i:02d}" for i in range(WIDTH))
    out = np.empty((workloads.N_CANDIDATES, WIDTH), np.float32)
    want = workloads.item_values()[workloads.rank_requests().candidates[3], :WIDTH]
    np.testing.assert_array_equal(table.gather(fresh([3])[0], names, out=out).values, want)
    rotate(lambda keys: table.gather(keys, names, out=out), fresh, block=20)
