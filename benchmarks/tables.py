"""Tables of the workloads in the words of the library: whole snapshots, mutable tables with exact LRU.

Apart from library.py, because the environment of Feast, where these are measured too, has neither trainers nor xxhash.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

import retailinfer as ri
from benchmarks import workloads
from benchmarks.workloads import FRAUD_FULL, N_ENTITIES, RANK

__all__ = [
    "WIDTH",
    "entity_feature_table",
    "item_arrow",
    "item_feature_table",
    "item_snapshot",
    "snapshot_of",
]

WIDTH = 32  # columns of the gathers


def item_arrow(width: int = WIDTH) -> pa.Table:
    """100,000 items with `width` float32 columns."""
    values = workloads.item_values()
    keys = pa.array([key.decode() for key in workloads.item_ids()])
    return pa.table({"sku": keys} | {f"x{i:02d}": pa.array(values[:, i]) for i in range(width)})


def snapshot_of(width: int) -> ri.Snapshot:
    """The items as a whole table."""
    return ri.Snapshot.from_arrow(item_arrow(width), key="sku")


def item_snapshot() -> ri.Snapshot:
    """The item table of the ranking workload."""
    return snapshot_of(len(RANK.stored["item"]))


def item_feature_table(width: int = WIDTH) -> ri.FeatureTable:
    """The items in a mutable table that holds them all, with exact LRU: every look-up moves its row to the front."""
    return ri.FeatureTable.from_arrow(item_arrow(width), key="sku", policy="lru", max_rows=N_ENTITIES)


def entity_feature_table(entity: str, *, updated_ns: int) -> ri.FeatureTable:
    """A table of fraud-full as a server has it: mutable, default policy, a time to live, all 100,000 entities in it."""
    keys, columns = workloads.entity_table(FRAUD_FULL, entity)
    updated = pa.array(np.full(len(keys), updated_ns)).cast(pa.timestamp("ns", tz="UTC"))
    arrays: dict[str, Any] = {name: pa.array(values) for name, values in columns.items()}
    table = pa.table({FRAUD_FULL.entities[entity]: keys, "updated": updated} | arrays)
    return ri.FeatureTable.from_arrow(
        table,
        key=FRAUD_FULL.entities[entity],
        updated_at="updated",
        ttl="30d",
        max_rows=2 * N_ENTITIES,
        name=entity,
    )
