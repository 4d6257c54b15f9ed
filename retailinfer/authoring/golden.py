"""Which rows become golden rows, and what is written about them.

Rules:
  * Fields to redact are replaced before anything else is computed, so that no digest or score depends on them.
  * Real rows come first: evenly spread, and those with the smallest, the largest and missing values. Then edge rows, each
    made of a real one: everything missing that may be; whatever is looked up unknown, stale, unavailable; unknown
    categories, denormal numbers, half a unit in the last place. Rows that the spec refuses are left out: they never reach
    a model.
  * Without a table, rows are drawn from what the spec knows: its vocabularies and the ranges that it was fitted on.
What is written is release/golden.py; how it is replayed is pipeline.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from retailinfer._native.program import STATE_NAMES
from retailinfer.errors import ConfigError, FeatureError, SchemaMismatchError, clip
from retailinfer.features.canonical import Canonical, Columns
from retailinfer.features.program import compile_program, slot_types
from retailinfer.features.spec import FeatureSpec, column_width, vocabulary_of
from retailinfer.features.transform import fill

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer._native.program import Program
    from retailinfer.policy import Policy

__all__ = [
    "actions_of",
    "choose_rows",
    "moment_of",
    "nan_columns",
    "redact",
    "synthetic_rows",
    "take",
    "types_of",
]

MAX_REAL_ROWS = 48
UNKNOWN, STALE, UNAVAILABLE = (STATE_NAMES.index(name) for name in ("unknown", "stale", "unavailable"))
REDACTED_TEXT = b"(redacted)"


def types_of(spec: FeatureSpec) -> dict[str, str]:
    """Field, stored reference or window -> its type."""
    return slot_types(spec.body)


def redact(columns: Columns, spec: FeatureSpec, names: Sequence[str]) -> Columns:
    """The same rows with fields replaced: text by a constant, numbers by 0, lists by empty ones.

    Raises: ConfigError for a name that is no field, stored column or window, and for the event time.
    """
    kinds = types_of(spec)
    found = dict(columns.by_name)
    for name in names:
        if name not in kinds:
            raise ConfigError(
                f"redact names {clip(name)}, which the spec does not read",
                hint=f"it reads {', '.join(kinds)}",
            )
        if name == spec.body.event_time:
            raise ConfigError("the event time cannot be redacted: features are computed from it")
        if found.get(name) is not None:
            found[name] = _constant(kinds[name], columns.n_rows, found[name])
    return msgspec.structs.replace(columns, by_name=found)


def choose_rows(columns: Columns, spec: FeatureSpec, program: Program) -> tuple[Columns, list[Columns]]:
    """Real rows of a table, at most 48, and edge rows, one by one; both without those that the spec refuses.

    Raises: FeatureError, of the first row, when the spec refuses them all.
    """
    if columns.n_rows == 0:
        raise ConfigError("the golden table has no rows")
    real = accepted(program, spec, take(columns, _spread(columns)))
    return real, [row for row in _edges(spec, real) if _accepts(program, spec, row)]


def synthetic_rows(spec: FeatureSpec, program: Program) -> tuple[Columns, list[Columns]] | None:
    """The same out of what the spec knows, for a release packed without a table; None when it refuses them all."""
    rng = np.random.default_rng(2024)
    drawn = _draw(spec, rng, 96)
    rows = [row for row in (take(drawn, [i]) for i in range(96)) if _accepts(program, spec, row)]
    if not rows:
        return None
    real = join(rows[:MAX_REAL_ROWS])
    return real, [row for row in _edges(spec, real) if _accepts(program, spec, row)]


def nan_columns(spec: FeatureSpec, columns: Columns) -> list[str]:
    """Names of the columns that are NaN in some of these rows."""
    body = spec.body
    program = compile_program(body)
    try:
        outs, _, _ = fill(program, body, columns)
    except FeatureError:  # a row that is refused; one by one takes longer, so fewer of them
        outs, _, _ = fill(
            program, body, accepted(program, spec, take(columns, np.arange(min(columns.n_rows, 4096))))
        )
    found: list[str] = []
    for tensor, out in zip(body.tensors.values(), outs, strict=True):
        if out.dtype.kind != "f":
            continue
        bad = np.isnan(out).any(axis=0)
        at = 0
        for column in tensor.columns:
            width = column_width(column, body.vocabularies)
            if bad[at : at + width].any():
                found.append(column.name)
            at += width
    return found


def moment_of(columns: Columns, spec: FeatureSpec) -> int:
    """The clock of golden rows: the latest of their event times, so that packing twice gives the same bytes."""
    name = spec.body.event_time
    column = columns.by_name.get(name) if name is not None else None
    return 0 if column is None or not len(column.values) else int(column.values.max())


def actions_of(
    policy: Policy, scores: NDArray[np.float32], segments: Sequence[str | None]
) -> tuple[str, ...]:
    """What the bands of a policy say of scores. Raises: SchemaMismatchError for a score below all of them."""
    found = []
    for score, segment in zip(scores, segments, strict=True):
        actions, lows = policy.thresholds(segment)
        at = int(np.searchsorted(lows, score, side="right")) - 1
        if at < 0:
            raise SchemaMismatchError(
                f"a golden row scores {float(score)!r}, below the lowest threshold {float(lows[0])!r} of the policy",
                hint='start the policy at 0.0 for probabilities, at float("-inf") for other scores',
            )
        found.append(actions[at])
    return tuple(found)


def segments_of(policy: Policy, columns: Columns) -> list[str | None]:
    """The segment of every row, by the policy's field."""
    name = policy.body.segment_by
    column = columns.by_name.get(name) if name is not None else None
    if column is None or column.offsets is None:
        return [None] * columns.n_rows
    data, valid = column.values.tobytes(), column.valid
    return [
        data[column.offsets[i] : column.offsets[i + 1]].decode() if valid is None or valid[i] else None
        for i in range(columns.n_rows)
    ]


# ---- cutting and joining canonical columns ---------------------------------------------------------------------------


def take(columns: Columns, rows: Sequence[int] | NDArray[np.int64]) -> Columns:
    """Some rows, in the given order."""
    at = np.asarray(rows, dtype=np.int64)
    states = None
    if columns.states is not None:
        states = {n: np.ascontiguousarray(s[at]) for n, s in columns.states.items()}
    return Columns(
        len(at), {n: None if c is None else _take(c, at) for n, c in columns.by_name.items()}, states
    )


def _take(c: Canonical, rows: NDArray[np.int64]) -> Canonical:
    valid = None if c.valid is None else np.ascontiguousarray(c.valid[rows])
    if c.offsets is None:
        return Canonical(np.ascontiguousarray(c.values[rows]), valid)
    lengths = (c.offsets[1:] - c.offsets[:-1])[rows]
    items = np.concatenate(
        [np.arange(c.offsets[i], c.offsets[i + 1]) for i in rows] or [np.zeros(0, np.int64)]
    )
    if c.children is None:
        return Canonical(np.ascontiguousarray(c.values[items]), valid, _sums(lengths))
    inner = _take(Canonical(c.values, None, c.children), items)
    return Canonical(inner.values, valid, _sums(lengths), inner.offsets)


def _sums(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def join(parts: Sequence[Columns]) -> Columns:
    """Rows one after the other. A column that only some have is null in the others."""
    n = sum(p.n_rows for p in parts)
    names = list(dict.fromkeys(name for p in parts for name in p.by_name))
    found: dict[str, Canonical | None] = {}
    for name in names:
        cells = [(p.n_rows, p.by_name.get(name)) for p in parts]
        found[name] = None if all(c is None for _, c in cells) else _join_cells(cells)
    return Columns(n, found, _join_states(parts))


def _join_states(parts: Sequence[Columns]) -> dict[str, NDArray[np.uint8]] | None:
    names = sorted({name for p in parts for name in p.states or {}})
    nothing: dict[str, NDArray[np.uint8]] = {}
    return {
        name: np.concatenate([(p.states or nothing).get(name, np.zeros(p.n_rows, np.uint8)) for p in parts])
        for name in names
    } or None


def _join_cells(cells: Sequence[tuple[int, Canonical | None]]) -> Canonical:
    example = next(c for _, c in cells if c is not None)
    filled = [(n, c if c is not None else _empty_like(example, n)) for n, c in cells]
    valid = None
    if any(c is None or c.valid is not None for _, c in cells):
        valid = np.concatenate(
            [
                np.zeros(n, np.uint8)
                if given is None
                else np.ones(n, np.uint8)
                if c.valid is None
                else c.valid
                for (n, c), (_, given) in zip(filled, cells, strict=True)
            ]
        )
    values = np.concatenate([c.values for _, c in filled])
    if example.offsets is None:
        return Canonical(values, valid)
    offsets = _sums(np.concatenate([np.diff(_offsets(c)) for _, c in filled]))
    children = None
    if example.children is not None:
        children = _sums(np.concatenate([np.diff(c.children) for _, c in filled if c.children is not None]))
    return Canonical(values, valid, offsets, children)


def _offsets(c: Canonical) -> NDArray[np.int64]:
    assert c.offsets is not None
    return c.offsets


def _empty_like(example: Canonical, n: int) -> Canonical:
    if example.offsets is None:
        return Canonical(np.zeros((n, *example.values.shape[1:]), example.values.dtype))
    children = None if example.children is None else np.zeros(1, np.int64)
    return Canonical(example.values[:0], None, np.zeros(n + 1, np.int64), children)


def accepted(program: Program, spec: FeatureSpec, columns: Columns) -> Columns:
    """The rows that the spec does not refuse. Raises: FeatureError, of the first row, when it refuses them all."""
    try:
        fill(program, spec.body, columns)
    except FeatureError:
        kept = [i for i in range(columns.n_rows) if _accepts(program, spec, take(columns, [i]))]
        if not kept:
            raise
        return take(columns, kept)
    return columns


def _accepts(program: Program, spec: FeatureSpec, columns: Columns) -> bool:
    try:
        fill(program, spec.body, columns)
    except FeatureError:
        return False
    return True


# ---- real rows -------------------------------------------------------------------------------------------------------


def _spread(columns: Columns) -> list[int]:
    """Rows evenly over the table, then extremes and gaps of every column, until there are enough."""
    n = columns.n_rows
    chosen = dict.fromkeys(int(i) for i in np.linspace(0, n - 1, min(n, MAX_REAL_ROWS * 2 // 3)))
    for column in columns.by_name.values():
        if column is None:
            continue
        extremes: list[int] = []
        if column.valid is not None and not column.valid.all():
            extremes.append(int(np.argmin(column.valid)))
        if column.offsets is not None:
            extremes.append(int(np.argmax(np.diff(column.offsets))))
        elif (
            column.values.ndim == 1 and column.values.dtype.kind == "f" and not np.isnan(column.values).all()
        ):
            extremes += [int(np.nanargmin(column.values)), int(np.nanargmax(column.values))]
        elif column.values.ndim == 1 and column.values.dtype.kind == "i":
            extremes += [int(np.argmin(column.values)), int(np.argmax(column.values))]
        for row in extremes:
            if len(chosen) < MAX_REAL_ROWS:
                chosen[row] = None
    return sorted(chosen)


# ---- edge rows -------------------------------------------------------------------------------------------------------


def _edges(spec: FeatureSpec, real: Columns) -> Iterable[Columns]:
    kinds = types_of(spec)
    optional = {f.name for f in spec.fields if f.optional} | {*spec.body.stored, *spec.body.windows}
    base = take(real, [0])
    yield _changed(base, dict.fromkeys(optional))
    looked_up = [*spec.body.stored, *spec.body.windows]
    for state in (UNKNOWN, STALE, UNAVAILABLE) if looked_up else ():
        yield msgspec.structs.replace(base, states={name: np.full(1, state, np.uint8) for name in looked_up})
    for name in sorted(optional):
        yield _changed(base, {name: None})
    for number in (1e-40, 1.0 + 2.0**-24, -0.0, 0.0, -1e-310, 3.0e38):
        yield _changed(base, _fields_of(kinds, "float", np.array([number])))
    for integer in (0, -1, 1 << 53):
        yield _changed(base, _fields_of(kinds, "int", np.array([integer], dtype=np.int64)))
    categories = {
        c.refs[0] for c in spec.columns if c.kind in ("categorical", "hashed", "raw", "equal", "lookup")
    }
    for text in ("\u00e9dge \U0001f600".encode(), b"", b"a\x00b"):
        cell = Canonical(np.frombuffer(text, np.uint8), None, np.array([0, len(text)], np.int64))
        yield _changed(base, {n: cell for n, k in kinds.items() if k == "str" and n in categories})
    lists = {n for n, k in kinds.items() if k.startswith("list")}
    yield _changed(base, {n: _constant(kinds[n], 1, base.by_name.get(n)) for n in lists})


def _fields_of(kinds: Mapping[str, str], kind: str, value: NDArray[Any]) -> dict[str, Canonical | None]:
    return {name: Canonical(value) for name, k in kinds.items() if k == kind}


def _changed(base: Columns, changes: Mapping[str, Canonical | None]) -> Columns:
    return msgspec.structs.replace(base, by_name={**base.by_name, **changes})


def _constant(kind: str, n: int, like: Canonical | None) -> Canonical:
    if kind in ("str", "bytes"):
        text = np.frombuffer(REDACTED_TEXT * n, np.uint8)
        return Canonical(text, None, np.arange(n + 1, dtype=np.int64) * len(REDACTED_TEXT))
    if kind == "vector":
        width = like.values.shape[1] if like is not None else 1
        return Canonical(np.zeros((n, width), np.float32))
    if kind.startswith("list"):
        values = {"list[float]": np.float64, "list[int]": np.int64}.get(kind, np.uint8)
        children = np.zeros(1, np.int64) if kind == "list[str]" else None
        return Canonical(np.zeros(0, values), None, np.zeros(n + 1, np.int64), children)
    return Canonical(np.zeros(n, np.float64 if kind == "float" else np.int64))


# ---- drawn rows ------------------------------------------------------------------------------------------------------


def _draw(spec: FeatureSpec, rng: np.random.Generator, n: int) -> Columns:
    kinds = types_of(spec)
    values: dict[str, list[Any]] = {}
    ranges: dict[str, tuple[float, float]] = {}
    sizes: dict[str, int] = {}
    for column in spec.columns:
        if column.encoding in ("index", "onehot", "target"):
            known = vocabulary_of(column, spec.body.vocabularies).values
            values.setdefault(column.refs[0], []).extend(known)
        if column.keys:
            values.setdefault(column.refs[0], []).extend(column.keys)
        learned = spec.body.fitted.get(column.name)
        if learned is not None and learned.seen_low is not None and learned.seen_high is not None:
            ranges.setdefault(column.refs[0], (learned.seen_low, learned.seen_high))
        if column.kind in ("embedding", "dot", "cosine"):
            sizes.update(dict.fromkeys(column.refs, column.size or 1))
    found: dict[str, Canonical | None] = {
        name: _draw_column(kind, rng, n, values.get(name), ranges.get(name), sizes.get(name, 1))
        for name, kind in kinds.items()
    }
    return Columns(n, found)


def _draw_column(
    kind: str,
    rng: np.random.Generator,
    n: int,
    values: list[Any] | None,
    seen: tuple[float, float] | None,
    size: int,
) -> Canonical:
    if kind == "float":
        if values:
            return Canonical(rng.choice(np.array(values, dtype=np.float64), n))
        low, high = seen or (0.0, 100.0)
        return Canonical(np.asarray(rng.uniform(low, max(high, low), n)))
    if kind == "vector":
        return Canonical(rng.normal(size=(n, size)).astype(np.float32))
    if kind == "timestamp":
        seconds = 1_700_000_000 + rng.integers(0, 365 * 86400, n)
        return Canonical(np.asarray(seconds * 10**9, dtype=np.int64))
    if kind in ("int", "bool"):
        if values:
            return Canonical(rng.choice(np.array(values, dtype=np.int64), n))
        low, high = (0, 2) if kind == "bool" else (int(seen[0]), int(seen[1]) + 1) if seen else (0, 100)
        return Canonical(rng.integers(low, max(high, low + 1), n, dtype=np.int64))
    if kind in ("str", "bytes"):
        words = [str(v) for v in values] if values else [f"value {i}" for i in range(20)]
        return _texts([words[i].encode() for i in rng.integers(0, len(words), n)])
    lengths = rng.integers(0, 6, n)
    offsets = _sums(lengths.astype(np.int64))
    total = int(lengths.sum())
    if kind == "list[float]":
        return Canonical(rng.normal(size=total), None, offsets)
    pool = values or list(range(20))
    drawn = [pool[i] for i in rng.integers(0, len(pool), total)]
    if kind == "list[int]":
        return Canonical(np.array(drawn, dtype=np.int64), None, offsets)
    inner = _texts([str(v).encode() for v in drawn])
    return Canonical(inner.values, None, offsets, inner.offsets)


def _texts(words: Sequence[bytes]) -> Canonical:
    data = np.frombuffer(b"".join(words), np.uint8)
    return Canonical(data, None, _sums(np.array([len(w) for w in words], dtype=np.int64)))
