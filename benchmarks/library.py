"""The reference workloads in the words of the library: specs, releases and stores made of `workloads`.

The only file of the benchmarks that declares features with `retailinfer`; `measures` calls what comes out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import retailinfer as ri
from benchmarks import models, workloads
from benchmarks.peers.handwritten import BANDS
from benchmarks.workloads import FRAUD_LEAN, RANK, ColumnDef, Values, Workload
from retailinfer import columns as c

__all__ = [
    "arrow",
    "columns",
    "fraud_spec",
    "item_snapshot",
    "pack_fraud",
    "pack_rank",
    "rank_spec",
    "snapshot_of",
]

_TYPES: dict[str, Any] = {
    "float": float,
    "signed": float,
    "str": str,
    "bool": bool,
    "timestamp": ri.Timestamp,
}


def columns(defs: Sequence[ColumnDef]) -> list[c.Column]:
    """Definitions -> declared columns."""
    return [getattr(c, d.kind)(*d.refs, name=d.name, **d.options) for d in defs]


def arrow(workload: Workload, values: Values) -> pa.Table:
    """Rows as an Arrow table: timestamps in microseconds, as a warehouse hands them over."""
    arrays = {}
    for name, kind in workload.fields.items():
        if kind == "timestamp":
            microseconds = np.rint(values[name] * 1e6).astype(np.int64)
            arrays[name] = pa.array(microseconds).cast(pa.timestamp("us", tz="UTC"))
        else:
            arrays[name] = pa.array(values[name])
    return pa.table(arrays)


def fraud_spec() -> ri.FeatureSpec:
    """The 40 columns of fraud-lean, vocabularies learned from the training rows."""
    spec = ri.FeatureSpec(
        request={name: _TYPES[kind] for name, kind in FRAUD_LEAN.fields.items()},
        event_time=FRAUD_LEAN.event_time,
        columns=columns(FRAUD_LEAN.columns),
    )
    return spec.fit(arrow(FRAUD_LEAN, models.training_rows(FRAUD_LEAN)))


def rank_spec(defs: Sequence[ColumnDef] = RANK.columns) -> ri.FeatureSpec:
    """24 columns of the context and 40 of the item, or those of the trees."""
    return ri.FeatureSpec(
        request={"sku": str} | {name: _TYPES[kind] for name, kind in RANK.fields.items()},
        event_time=RANK.event_time,
        entities=RANK.entities,
        candidate="item",
        columns=columns(defs),
    )


def pack_fraud(folder: Path, spec: ri.FeatureSpec, model: bytes) -> Path:
    """A release of fraud-lean as an author packs it, with golden rows."""
    out = folder / "fraud-lean"
    golden = arrow(FRAUD_LEAN, workloads.draw(FRAUD_LEAN, 32, seed=workloads.SEED + 2))
    ri.pack(
        "fraud-lean",
        model=model,
        features=spec,
        policy=ri.Policy(list(BANDS)),
        contract=ri.Contract(deadline_ms=20, p99_ms=2),
        golden=golden,
        out=out,
    )
    return out


def pack_rank(folder: Path, name: str, spec: ri.FeatureSpec, model: bytes) -> Path:
    """A release of a ranker; the network is already int8, so that bare run has the same bytes."""
    out = folder / name
    ri.pack(name, model=model, features=spec, contract=ri.Contract(max_rows=5_000), out=out)
    return out


def snapshot_of(width: int) -> ri.Snapshot:
    """100,000 items with `width` float32 columns."""
    values = workloads.item_values()
    keys = pa.array([key.decode() for key in workloads.item_ids()])
    table = {"sku": keys} | {f"x{i:02d}": pa.array(values[:, i]) for i in range(width)}
    return ri.Snapshot.from_arrow(pa.table(table), key="sku")


def item_snapshot() -> ri.Snapshot:
    """The item table of the ranking workload."""
    return snapshot_of(len(RANK.stored["item"]))
