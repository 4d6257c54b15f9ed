"""Loading a release for a tool: with the tables that it reads, or with stand-ins made of its golden rows.

A release whose features read tables cannot answer without a store. `verify`, `inspect`, `bench`, `diff` and `check` work
without the real tables too: each table then holds the stored values of the golden rows, under the keys that these rows have.
Windows are counted in memory, from nothing: they hold no event, and count as complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Any

from retailinfer.clock import ManualClock, SystemClock
from retailinfer.errors import ConfigError
from retailinfer.features.program import slot_types
from retailinfer.features.spec import FeatureSpec
from retailinfer.pipeline import Pipeline
from retailinfer.ranker import Ranker
from retailinfer.release.bundle import read_bundle
from retailinfer.release.golden import Golden, decode_golden
from retailinfer.scorer import Scorer
from retailinfer.store.store import Store
from retailinfer.store.table import Snapshot
from retailinfer.store.windows import Windows

if TYPE_CHECKING:
    from retailinfer.release.bundle import Bundle
    from retailinfer.serving.door import Door

__all__ = ["Loaded", "empty_windows", "engine_text", "golden_values", "load", "stand_ins"]

KINDS = {
    "float": "f64",
    "int": "i64",
    "bool": "i64",
    "timestamp": "i64",
    "str": "str",
    "bytes": "bytes",
    "vector": "vec",
}
STAND_IN_ITEMS = 5_000  # as a small shop has them; look-ups in fewer would all hit the cache


@dataclass(frozen=True)
class Loaded:
    """A release that answers. `door`: a Scorer or a Ranker. `stands_in`: its tables were made of golden rows."""

    bundle: Bundle
    pipeline: Pipeline
    door: Door
    golden: Golden | None
    ranks: bool
    stands_in: bool
    store: Store | None


def engine_text(session: Any) -> str:
    """What runs a model, for people."""
    if session.backend == "trees":
        return f"native kernels for trees ({session.model.level})"
    return f"ONNX Runtime {session.version} through its {'C' if session.backend == 'c' else 'Python'} API"


def load(
    path: str, *, store: Store | None = None, strict_paths: bool = False, backend: Any = "auto"
) -> Loaded:
    """Read, verify, build, replay: what serving does, in the same order. Raises: BundleError, ConfigError."""
    return build(read_bundle(path, strict_paths=strict_paths), store=store, backend=backend)


def build(bundle: Bundle, *, store: Store | None = None, backend: Any = "auto") -> Loaded:
    """The rest of `load`, for a release that was read."""
    spec = bundle.read("features", FeatureSpec.from_json)
    golden = bundle.read("golden", decode_golden)
    ranks = spec is not None and spec.body.candidate is not None and bundle.manifest.score is not None
    made: Store | None = None
    if spec is not None and store is not None:
        missing = [name for name in _tables(spec) if name not in store]
        if missing:
            raise ConfigError(
                f"the features read the table `{missing[0]}`, which no --store names",
                hint=f"--store {missing[0]}=FILE:KEY for it too, or no --store at all for stand-ins",
            )
    if spec is not None and store is None and (spec.body.stored or spec.body.windows):
        made = store = stand_ins(spec, golden, n_items=STAND_IN_ITEMS if ranks else 0)
    pipeline = Pipeline(bundle, store=store, ranks=ranks, backend=backend)
    door = Ranker(pipeline) if ranks else Scorer(pipeline)
    stands_in = made is not None and spec is not None and bool(spec.body.stored)
    return Loaded(bundle, pipeline, door, golden, ranks, stands_in, store)


def stand_ins(spec: FeatureSpec, golden: Golden | None, *, n_items: int) -> Store:
    """A store with a table for every entity that the spec reads, made of what the golden rows had looked up.

    n_items: how many rows the candidates' table gets; the golden rows are repeated under made-up ids.
    """
    values = {} if golden is None else golden_values(golden, spec)
    n = 0 if golden is None else golden.n_rows
    types = {f.name: f.type for f in spec.fields} | dict(spec.body.stored)
    tables = {}
    now = time()
    for entity in _tables(spec):
        key = spec.body.entities[entity].key
        refs = [ref for ref in spec.body.stored if ref.partition(".")[0] == entity]
        kinds = {ref.partition(".")[2]: KINDS[types[ref]] for ref in refs}
        rows: dict[Any, dict[str, Any]] = {}
        for i in range(n):
            parts = tuple(values[field][i] for field in key)
            if all(part is not None for part in parts):
                cells = {ref.partition(".")[2]: values[ref][i] for ref in refs}
                rows.setdefault(parts if len(key) > 1 else parts[0], cells)
        if not rows:
            rows = {
                tuple(map(_any_key, (types[k] for k in key))) if len(key) > 1 else _any_key(types[key[0]]): {}
            }
        if entity == spec.body.candidate and n_items > len(rows):
            rows |= _repeated(list(rows.values()), n_items - len(rows), types[key[0]])
        age = "".join(["updated_at", *("_" for name in kinds if name.startswith("updated_at"))])
        for row in rows.values():
            row[age] = now
        tables[entity] = Snapshot.from_rows(rows, kinds=kinds, updated_at=age, name=entity)
    return Store(tables=tables, windows=empty_windows(), clock=SystemClock())


def empty_windows() -> Windows:
    """Windows of no event that are complete, because their clock says that they were there in 1970."""
    return Windows.memory(clock=ManualClock(wall_ns=0))


def _tables(spec: FeatureSpec) -> list[str]:
    """The entities whose tables the features read."""
    return sorted({ref.partition(".")[0] for ref in spec.body.stored})


def golden_values(golden: Golden, spec: FeatureSpec) -> dict[str, list[Any]]:
    """Field, stored reference or window -> the values of the golden rows, None for null; moments are ns since 1970."""
    types = slot_types(spec.body)
    names = list(types)
    return {
        name: [None] * golden.n_rows if column is None else _values(column, types[name], golden.n_rows)
        for name, column in zip(names, golden.canonical(names), strict=True)
    }


def _values(column: Sequence[Any], kind: str, n: int) -> list[Any]:
    values, valid, offsets, children = column
    found: list[Any]
    if kind in ("str", "bytes", "list[str]"):
        data = values.tobytes()
        ends = offsets if kind != "list[str]" else children
        texts = [data[ends[i] : ends[i + 1]] for i in range(len(ends) - 1)]
        found = list(texts) if kind == "bytes" else [text.decode() for text in texts]
        if kind == "list[str]":
            found = [found[offsets[i] : offsets[i + 1]] for i in range(n)]
    elif kind.startswith("list"):
        found = [values[offsets[i] : offsets[i + 1]].tolist() for i in range(n)]
    elif kind == "bool":
        found = [bool(v) for v in values]
    elif kind == "float":
        found = [None if v != v else v for v in values.tolist()]  # noqa: PLR0124 - NaN is null
    else:
        found = values.tolist()
    return [found[i] if valid is None or valid[i] else None for i in range(n)]


def _any_key(kind: str) -> Any:
    return {"str": "", "bytes": b"", "int": 0}[kind]


def _repeated(rows: Sequence[Mapping[str, Any]], n: int, kind: str) -> dict[Any, dict[str, Any]]:
    """The same rows under ids that no shop has."""
    return {_made_up(i, kind): dict(rows[i % len(rows)]) for i in range(n)}


def _made_up(i: int, kind: str) -> Any:
    if kind == "int":
        return (1 << 40) + i
    return f"stand-in-{i:06d}" if kind == "str" else b"stand-in-%06d" % i
