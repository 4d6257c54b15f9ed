"""A pipeline without a model: the real engine over a case of strategies.py; its model only writes down what it gets.

Rules:
  * Everything but the model is real: program, readers, tables, store, policy, front-door methods of the engine.
  * The action is "review" exactly when a column asked for review.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np
from numpy.typing import NDArray
from strategies import Case

from retailinfer._native import reference
from retailinfer._native.table import SnapshotTable, compose_keys
from retailinfer.clock import ManualClock, SystemClock
from retailinfer.contracts import Contract
from retailinfer.deadline import budget_ns
from retailinfer.features.program import compile_program
from retailinfer.features.spec import Body
from retailinfer.limits import MAX_BYTES, MAX_DEPTH
from retailinfer.pipeline import Pipeline
from retailinfer.policy import Policy
from retailinfer.store.store import Store
from retailinfer.store.table import Snapshot
from retailinfer.store.windows import Windows

CELL_KINDS = {
    "float": "f64",
    "int": "i64",
    "bool": "i64",
    "timestamp": "i64",
    "str": "str",
    "bytes": "bytes",
    "vector": "vec",
}


class BarePipeline(Pipeline):
    """Built as a loaded release is, without files and models. `seen` holds the arrays of each model run."""

    def __init__(
        self,
        case: Case,
        *,
        ranks: bool = False,
        allow_nan: bool = True,
        max_rows: int = 10_000,
        store: Store | None = None,
        row_independent: bool = True,
    ) -> None:
        self.spec = case.spec
        self.policy = Policy([("pass", float("-inf")), ("review", 1e30)])
        self.contract = Contract(max_rows=max_rows)
        self.manifest: Any = types.SimpleNamespace(release="bare", nan_inputs=allow_nan, score=None)
        self.sessions: Any = {"main": types.SimpleNamespace(backend="python")}
        self.row_independent = row_independent
        self.program = compile_program(case.body, allow_nan=allow_nan)
        self.bundle: Any = types.SimpleNamespace(signed_by=("nobody",))  # so that traces say nothing of it
        self._keep = []
        self._steps = ()
        self._reasons = self._occlusion = None
        self.clock = SystemClock()
        self.permits: Any = None  # nobody is refused
        self.budget_ns = budget_ns(self.contract.deadline_ms)
        self.seen: list[dict[str, NDArray[Any]]] = []
        inputs: list[Any] = []
        self.names: list[str] = []
        for number, (name, _, cells, _, mask, _) in enumerate(self.program.tensors):
            inputs.append((None, False, number, (cells,)))
            self.names.append(name)
            if mask is not None:
                inputs.append((None, True, number, (cells,)))
                self.names.append(mask)
        # windows of no event, complete because their clock says that they were there in 1938: before anything that they count
        windows = Windows.memory(clock=ManualClock(wall_ns=-(10**18))) if case.body.windows else None
        self.store = store or Store(
            tables={name: snapshot_of(case, name) for name in case.tables}, windows=windows, clock=self.clock
        )
        self.inputs = inputs
        self._parts = self._engine_parts(inputs, self.store, ranks, MAX_BYTES, MAX_DEPTH, 100.0)
        self.engine: Any = self._new_engine()

    def chain_scores(self, inputs: Any, arrays: Any) -> NDArray[np.float32]:
        """Keep what the model would get; later rows score lower."""
        self.seen.append(dict(zip(self.names, arrays, strict=True)))
        context = {t[0] for t in self.program.tensors if t[3]} | {t[4] for t in self.program.tensors if t[3]}
        n = next(len(a) for name, a in self.seen[-1].items() if name not in context)
        return -np.arange(n, dtype=np.float32)

    def last(self) -> dict[str, NDArray[Any]]:
        """The arrays of all runs since the last call, row after row."""
        runs, self.seen = self.seen, []
        return {name: np.concatenate([run[name] for run in runs]) for name in self.names} if runs else {}


def snapshot_of(case: Case, entity: str) -> Snapshot:
    """An entity's table in a store's form."""
    body: Body = case.body
    declared = body.entities[entity]
    rows = case.tables[entity]
    types_ = {f.name: f.type for f in body.fields}
    kinds = tuple(types_[k] for k in declared.key)
    keys = list(rows)
    parts: list[Any] = []
    for i, kind in enumerate(kinds):
        part = [key if len(kinds) == 1 else key[i] for key in keys]
        values, _, offsets, _ = reference.columns_of(
            Body(fields=(body.fields[0].__class__("k", kind),)), [{"k": p} for p in part]
        )["k"]  # type: ignore[misc]  # every column is there
        parts.append(values if kind == "int" else (values, offsets))
    if len(kinds) > 1:
        canonical = compose_keys(parts, len(keys))
    elif kinds[0] == "int":
        canonical = (parts[0].view(np.uint8), np.arange(0, 8 * len(keys) + 8, 8, dtype=np.int64))
    else:
        canonical = parts[0]
    columns = []
    for name, kind in declared.columns.items():
        cells = [row[name] for row, _ in rows.values()]
        made = reference.columns_of(Body(stored={"c": kind}), [{"c": v} for v in cells])["c"]
        assert made is not None
        values, valid, offsets, _ = made
        if kind == "vector" and values.shape[1] == 0:  # nothing but nulls
            values = np.zeros((len(values), case.sizes[f"{entity}.{name}"]), np.float32)
        columns.append((name, CELL_KINDS[kind], values if offsets is None else (values, offsets), valid))
    times = np.array([at for _, at in rows.values()], np.int64)
    table = SnapshotTable(entity, kinds[0] if len(kinds) == 1 else kinds, canonical, columns, times)
    return Snapshot(table)
