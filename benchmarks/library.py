"""The reference workloads in the words of the library: specs, releases and stores made of `workloads`.

The only file of the benchmarks that declares features with `retailinfer`; `measures` calls what comes out of it.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

import retailinfer as ri
from benchmarks import models, tables, workloads
from benchmarks.peers.handwritten import BANDS
from benchmarks.workloads import FRAUD_FULL, FRAUD_LEAN, RANK, ColumnDef, Values, Workload
from retailinfer import columns as c

__all__ = [
    "arrow",
    "columns",
    "fraud_spec",
    "full_spec",
    "full_store",
    "item_spec",
    "lookup_spec",
    "pack_fraud",
    "pack_full",
    "pack_rank",
    "pack_untrained",
    "rank_spec",
]

DEADLINE_MS = 60_000  # a shared machine may stop for a second, and what is late is no answer

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


def full_spec() -> ri.FeatureSpec:
    """The 40 columns of fraud-full: request, three tables, six windows over the payments themselves."""
    spec = ri.FeatureSpec(
        request={name: _TYPES[kind] for name, kind in FRAUD_FULL.fields.items()},
        event_time=FRAUD_FULL.event_time,
        entities=FRAUD_FULL.entities,
        streams={"payment": None},
        columns=columns(FRAUD_FULL.columns),
    )
    return spec.fit(_full_arrow(models.full_training_rows()))


def _full_arrow(values: Values) -> pa.Table:
    """Rows of fraud-full with everything looked up, as a training table has it."""
    table = arrow(FRAUD_FULL, values)
    for name, column in values.items():
        if name not in FRAUD_FULL.fields:
            table = table.append_column(name, pa.array(column))
    return table


def full_store(spec: ri.FeatureSpec, windows: ri.Windows, history: Values, base_s: int) -> ri.Store:
    """Three tables of 100,000 rows of now, and windows that know the payments before `base_s` and are complete."""
    made = {
        entity: tables.entity_feature_table(entity, updated_ns=time.time_ns())
        for entity in FRAUD_FULL.entities
    }
    store = ri.Store(tables=made, windows=windows)
    since = dt.datetime.fromtimestamp(base_s - 2 * workloads.FullRequests.HISTORY_S, dt.UTC)
    store.backfill(spec, "payment", arrow(FRAUD_FULL, history), since=since)
    return store


def lookup_spec() -> ri.FeatureSpec:
    """Nothing but the stored columns of fraud-full: what three look-ups of a request fill."""
    return ri.FeatureSpec(
        request=dict.fromkeys(FRAUD_FULL.entities.values(), str),
        entities=FRAUD_FULL.entities,
        columns=[
            c.stored(f"{entity}.{name}") for entity, names in FRAUD_FULL.stored.items() for name in names
        ],
    )


def item_spec() -> ri.FeatureSpec:
    """32 stored columns of one item."""
    return ri.FeatureSpec(
        request={"sku": str},
        entities={"item": "sku"},
        columns=[c.stored(f"item.x{i:02d}") for i in range(tables.WIDTH)],
    )


def rank_spec(defs: Sequence[ColumnDef] = RANK.columns) -> ri.FeatureSpec:
    """24 columns of the context and 40 of the item, or those of the trees."""
    return ri.FeatureSpec(
        request={"sku": str} | {name: _TYPES[kind] for name, kind in RANK.fields.items()},
        event_time=RANK.event_time,
        entities=RANK.entities,
        candidate="item",
        columns=columns(defs),
    )


def pack_fraud(
    folder: Path,
    spec: ri.FeatureSpec,
    model: bytes,
    *,
    name: str = "fraud-lean",
    engine: Literal["onnx", "trees"] = "onnx",
) -> Path:
    """A release of fraud-lean as an author packs it, with golden rows."""
    out = folder / name
    golden = arrow(FRAUD_LEAN, workloads.draw(FRAUD_LEAN, 32, seed=workloads.SEED + 2))
    ri.pack(
        "fraud-lean",
        model=model,
        features=spec,
        policy=ri.Policy(list(BANDS)),
        contract=ri.Contract(deadline_ms=DEADLINE_MS, p99_ms=2),
        golden=golden,
        engine=engine,
        out=out,
    )
    return out


def pack_full(folder: Path, spec: ri.FeatureSpec, *, engine: Literal["onnx", "trees"] = "onnx") -> Path:
    """A release of fraud-full, with golden rows; through trees, with the four strongest reasons of each decision."""
    out = folder / f"fraud-full-{engine}"
    ri.pack(
        "fraud-full",
        model=models.gbdt(FRAUD_FULL.name),
        features=spec,
        policy=ri.Policy(list(BANDS), n_reasons=4 if engine == "trees" else 0),
        contract=ri.Contract(deadline_ms=DEADLINE_MS, p99_ms=2),
        golden=_full_arrow(models.full_training_rows()).slice(0, 32),
        engine=engine,
        out=out,
    )
    return out


def pack_untrained(folder: Path, name: str, spec: ri.FeatureSpec) -> Path:
    """A release whose model gives back its first input, for measures that never run it."""
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Gather", ["input", "first"], ["score"], axis=1)],
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", len(spec.names)])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor("first", TensorProto.INT64, [1], [0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    out = folder / name
    ri.pack(name, model=bytes(model.SerializeToString()), features=spec, out=out)
    return out


def pack_rank(
    folder: Path, name: str, spec: ri.FeatureSpec, model: bytes, *, engine: Literal["onnx", "trees"] = "onnx"
) -> Path:
    """A release of a ranker; the network is already int8, so that bare run has the same bytes."""
    out = folder / name
    ri.pack(name, model=model, features=spec, contract=ri.Contract(max_rows=5_000), engine=engine, out=out)
    return out
