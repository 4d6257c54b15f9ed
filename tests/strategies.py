"""Random feature specs, rows and entity tables for the property tests, with every edge value that has a history.

Rules:
  * A `Case` is valid: its spec passes the checks and compiles. Its rows may still be refused, by the twin and by the
    native program alike, with the same error at the same place.
  * Values are the canonical ones: timestamps are int nanoseconds (whole microseconds), vectors float32. The value of a
    window stands in its row under the window's name, its state under `state_of(name)`.
  * Most values are plain, so that most rows give tensors; edge values are sprinkled in.
The specification of what a case should give is `retailinfer._native.reference`.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from hypothesis import strategies as st

from retailinfer import columns as c
from retailinfer._native import reference
from retailinfer.columns import Column, Where, WindowDef
from retailinfer.features.spec import (
    STORED_TYPES,
    Body,
    Entity,
    FeatureSpec,
    Field,
    Fitted,
    StreamBody,
    Tensor,
    Timestamp,
    Vocabulary,
    vocabulary_of,
)

DTYPES = ("float32", "float64", "int32", "int64", "bool", "string")
ZONES = (
    "UTC",
    "Europe/London",
    "America/New_York",
    "Asia/Kolkata",
    "Australia/Lord_Howe",  # half an hour of summer time
    "Pacific/Apia",  # lost a whole day in 2011
    "America/Sao_Paulo",
)
PYTHON_TYPES: dict[str, Any] = {
    "float": float,
    "int": int,
    "str": str,
    "bool": bool,
    "bytes": bytes,
    "timestamp": Timestamp,
    "list[float]": list[float],
    "list[int]": list[int],
    "list[str]": list[str],
}
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
LAST_NS = 2**62 // 1000 * 1000  # the furthest moment, in whole microseconds
NUMBERS = ("float", "int", "bool")
TEXTS = ("str", "bytes")


# ---- values --------------------------------------------------------------------------------------------------------

EDGE_FLOATS = (
    0.0,
    -0.0,
    5e-324,
    -5e-324,
    2.2250738585072014e-308,
    1e-310,
    1e308,
    -1e308,
    1.7976931348623157e308,
    3.4028234663852886e38,  # the largest float32
    3.4028235677973366e38,  # half way to infinity in float32
    1.401298464324817e-45,  # the smallest float32
    7.006492321624085e-46,  # half of it: rounds to even, which is zero
    1e-46,
    0.1,
    -1.0,
    -0.9999999999999999,
    0.41421356237309503,
    -0.29289321881345254,
    2.0**53,
    2.0**53 + 2,
    1.0 + 2.0**-52,
    1.0 + 2.0**-24,  # half way between two float32
)
EDGE_INTS = (
    0,
    1,
    -1,
    2**31 - 1,
    2**31,
    -(2**31),
    2**53 - 1,
    2**53,
    2**53 + 1,
    -(2**53) - 1,
    2**63 - 1,
    -(2**63),
)
EDGE_TEXTS = (
    "",
    "\0",
    "a\0b",
    "é",
    "e\u0301",
    "日本",
    "🛒",
    "ﬀ",
    "a" * 31,
    "a" * 32,
    "a" * 33,
    "a" * 5000,
    "é" * 300,
    "NaN",
    "null",
)
POOL = ("a", "b", "c", "web", "shop", "é", "", "a\0b", "日本")  # what vocabularies know, and rows often hold


def mostly(plain: st.SearchStrategy[Any], edge: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Six plain values for each edge value."""
    return st.integers(0, 6).flatmap(lambda i: edge if i == 6 else plain)


FLOATS = mostly(
    st.floats(-0.9, 1000, width=64),
    st.sampled_from(EDGE_FLOATS) | st.floats(allow_nan=False, allow_infinity=False),
)
INTS = mostly(st.integers(0, 9), st.sampled_from(EDGE_INTS) | st.integers(-(2**63), 2**63 - 1))
TEXT = mostly(
    st.sampled_from(POOL),
    st.sampled_from(EDGE_TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
BYTES = mostly(st.sampled_from([p.encode() for p in POOL]), st.binary(max_size=70) | st.just(b"\xff\xfe\x00"))
FLOATS_32 = st.sampled_from((0.0, -0.0, 1.0, -2.5, 1e-45, 3e38, 0.1)) | st.floats(-10, 10, width=32)


def moments(body: Body) -> st.SearchStrategy[int]:
    """Nanoseconds: this century; around changes of the clocks, ends of years, leap days; the first and last moment."""
    edges = [0, 999_000, -1000, LAST_NS, -LAST_NS, 951_782_399_999_999_000, 4_107_542_399_999_999_000]
    for at in (body.zone_at_s[::37] or (0,)) + body.zone_at_s[-2:]:
        edges += [at * 10**9 + shift for shift in (-(10**9), -1000, 0, 1000, 1800 * 10**9)]
    for year in (1824, 1899, 1900, 1969, 1999, 2000, 2023, 2024, 2100):
        for month, day in ((1, 1), (2, 28), (3, 1), (12, 31)):
            moment = dt.datetime(year, month, day, 23, 59, 59, 999_999, tzinfo=dt.UTC)
            edges.append((moment - EPOCH) // dt.timedelta(microseconds=1) * 1000)
    edges = [e for e in edges if abs(e) <= LAST_NS]
    plain = st.integers(1_600_000_000_000_000, 1_760_000_000_000_000).map(lambda us: us * 1000)
    return mostly(
        plain,
        st.sampled_from(edges) | st.integers(-LAST_NS // 1000, LAST_NS // 1000).map(lambda us: us * 1000),
    )


def values(kind: str, body: Body, size: int = 1) -> st.SearchStrategy[Any]:
    """Canonical values of a field's or a stored column's type."""
    if kind == "timestamp":
        return moments(body)
    if kind == "vector":
        whole = st.lists(FLOATS_32, min_size=size, max_size=size) | st.just([0.0] * size)
        return whole.map(lambda v: np.array(v, np.float32))
    simple = {"float": FLOATS, "int": INTS, "bool": st.booleans(), "str": TEXT, "bytes": BYTES}
    if kind in simple:
        return simple[kind]
    return st.lists(simple[kind[5:-1]], max_size=6)


# ---- cases ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Case:
    """A fitted spec, rows of its request fields, and the tables of its entities.

    tables: entity -> key (one value, or a tuple) -> (stored column -> value or None, written at ns; 0 = unknown).
    """

    body: Body
    rows: list[dict[str, Any]]
    tables: dict[str, dict[Any, tuple[dict[str, Any], int]]]
    now_ns: int
    sizes: dict[str, int]  # reference -> size of its vectors

    @property
    def spec(self) -> FeatureSpec:
        return FeatureSpec.from_body(self.body)

    def joined(self) -> list[dict[str, Any]]:
        """Rows with their stored values, as a training table has them: what is unknown is null."""
        return [dict(row) | self._stored(row)[0] for row in self.rows]

    def states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a table cannot say, for the twin: the state of each stored value, and when it was written."""
        found = [self._stored(row) for row in self.rows]
        states = {
            ref: np.array([unknown[ref] for _, unknown, _ in found], np.uint8) for ref in self.body.stored
        }
        written = {ref: np.array([at[ref] for _, _, at in found], np.int64) for ref in self.body.stored}
        for name in self.body.windows:
            states[name] = np.array([row[state_of(name)] for row in self.rows], np.uint8)
        return states, written

    def _stored(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, int], dict[str, int]]:
        found: dict[str, Any] = {}
        states: dict[str, int] = {}
        written: dict[str, int] = {}
        for ref in self.body.stored:
            entity, _, name = ref.partition(".")
            keys = [row.get(k) for k in self.body.entities[entity].key]
            key = keys[0] if len(keys) == 1 else tuple(keys)
            there = None if None in keys else self.tables[entity].get(key)
            found[ref] = None if there is None else there[0].get(name)
            states[ref] = reference.UNKNOWN if there is None else reference.PRESENT
            at = 0 if there is None else there[1]
            written[ref] = at or reference.AGE_UNKNOWN
        return found, states, written

    def expected(self, *, table: bool = False, allow_nan: bool = True) -> reference.Result:
        """What the twin says: of a table, or of requests with look-ups."""
        columns = reference.columns_of(self.body, self.joined())
        if table:
            return reference.run(self.body, columns, len(self.rows), allow_nan=allow_nan)
        states, written = self.states()
        return reference.run(
            self.body,
            columns,
            len(self.rows),
            now_ns=self.now_ns,
            states=states,
            updated_ns=written,
            allow_nan=allow_nan,
        )


def state_of(window: str) -> str:
    """Where a row keeps the state of a window's value."""
    return f"{window} is"


@functools.cache
def zone(tz: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Transitions of a zone as a spec keeps them; read once, it takes a while."""
    body = FeatureSpec(request={"x": float}, tz=tz, columns=[c.numeric("x")]).body
    return body.zone_at_s, body.zone_offset_s


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    max_rows: int = 6,
    ranking: bool = False,
    max_columns: int = 6,
    dtypes: Sequence[str] = ("float32", "float32", "float64", *DTYPES),
    stored: bool = True,
    windows: bool = False,
    max_tensors: int = 3,
) -> Case:
    """A spec over fields of all types with columns of all kinds, and rows for it.

    `windows`: of entities, with any value in any state: what counts them is not here.
    `ranking`: one entity is the candidate, all rows are the same request but for its key, and some tensors are context.
    """
    tz = draw(st.sampled_from(ZONES))
    at, offsets = zone(tz)
    kinds = ["str", "float", "timestamp", "int"]
    kinds += draw(st.lists(st.sampled_from(tuple(PYTHON_TYPES)), min_size=1, max_size=6))
    fields = tuple(
        Field(f"f{i}", kind, draw(st.booleans()), draw(st.sampled_from(("", "", f"Wire-{i}"))))
        for i, kind in enumerate(kinds)
    )
    if ranking:  # the candidate's key is its own field, and always there
        fields = (*fields, Field("sku", draw(st.sampled_from(("str", "int"))), False, ""))
    moments_ = [f.name for f in fields if f.type == "timestamp"]
    event_time = draw(st.sampled_from([None, *moments_])) if moments_ else None
    body = Body(
        fields=fields,
        event_time=event_time,
        tz=tz,
        zone_at_s=at,
        zone_offset_s=offsets,
        candidate="item" if ranking else None,
        is_fitted=True,
    )
    entities, sizes = _entities(draw, body, ranking) if stored else ({}, {})
    body = msgspec.structs.replace(body, entities=entities)
    if windows:
        streams, definitions = _windows(draw, body)
        body = msgspec.structs.replace(body, streams=streams, windows=definitions)
    body = _with_tensors(draw, body, sizes, ranking, max_columns, dtypes, max_tensors)
    body = msgspec.structs.replace(body, stored=_stored_types(body))
    rows = _rows(draw, body, ranking, max_rows)
    now_ns = draw(
        st.sampled_from(
            [1_700_000_000 * 10**9, *(r[event_time] for r in rows if event_time and r[event_time])]
        )
    )
    tables = {name: _table(draw, body, name, rows, sizes, now_ns) for name in entities}
    return Case(body, rows, tables, now_ns, sizes)


def _stored_types(body: Body) -> dict[str, str]:
    used = [r for t in body.tensors.values() for col in t.columns for r in col.refs if "." in r]
    return {r: body.entities[r.partition(".")[0]].columns[r.partition(".")[2]] for r in dict.fromkeys(used)}


def _entities(draw: st.DrawFn, body: Body, ranking: bool) -> tuple[dict[str, Entity], dict[str, int]]:
    """Tables keyed by one field or by several; in rankings one by the candidate, perhaps one by both sides (cross)."""
    keyed = [f.name for f in body.fields if f.type in ("str", "int", "bytes") and f.name != "sku"]
    keys: dict[str, tuple[str, ...]] = {}
    if draw(st.booleans()):
        keys["card"] = (draw(st.sampled_from(keyed)),)
    if len(keyed) > 1 and draw(st.booleans()):
        keys["shop"] = tuple(draw(st.permutations(keyed)))[:2]
    if ranking:
        keys["item"] = ("sku",)
        if draw(st.booleans()):
            keys["pair"] = (keyed[0], "sku") if draw(st.booleans()) else ("sku", keyed[0])
    entities: dict[str, Entity] = {}
    sizes: dict[str, int] = {}
    for name, key in keys.items():
        kinds = ["vector", "float", *draw(st.lists(st.sampled_from(STORED_TYPES), max_size=4))]
        entities[name] = Entity(key, {f"s{i}": kind for i, kind in enumerate(kinds)})
        size = draw(st.sampled_from((1, 3, 8, 17)))
        sizes |= {f"{name}.s{i}": size for i, kind in enumerate(kinds) if kind == "vector"}
    return entities, sizes


def _windows(draw: st.DrawFn, body: Body) -> tuple[dict[str, StreamBody], dict[str, WindowDef]]:
    """Streams, and windows of entities that candidates do not key; none without such an entity."""
    keyed = [name for name, entity in body.entities.items() if "sku" not in entity.key]
    if not keyed:
        return {}, {}
    keys = {field for name in keyed for field in body.entities[name].key}
    own = [
        Field("g0", "float", draw(st.booleans())),
        Field("g1", "int"),
        Field("g2", "str"),
        Field("g3", "bool"),
    ]
    fields = (*(f for f in body.fields if f.name in keys), *own, Field("at", "timestamp"))
    label = StreamBody(fields=fields, event_time=draw(st.sampled_from((None, "at"))))
    streams = {"label": label, "payment": StreamBody(is_request=True)}
    n = draw(st.integers(1, 3))
    return streams, {
        f"w{i}": draw_window(draw, body, streams, draw(st.sampled_from(keyed))) for i in range(n)
    }


def draw_window(draw: st.DrawFn, body: Body, streams: Mapping[str, StreamBody], entity: str) -> WindowDef:
    """A window of any kind over one of the streams that the checks allow."""
    on = draw(st.sampled_from(sorted(streams)))
    types = {f.name: f.type for f in (body.fields if streams[on].is_request else streams[on].fields)}
    takes = dict.fromkeys(("sum", "mean", "min", "max", "lag"), NUMBERS)
    takes |= {"count": (), "distinct": ("str", "bytes", "int", "bool", "timestamp")}
    what = draw(
        st.sampled_from([w for w, kinds in takes.items() if not kinds or set(kinds) & set(types.values())])
    )
    of = (
        draw(st.sampled_from([f for f, kind in types.items() if kind in takes[what]]))
        if takes[what]
        else None
    )
    constants = {"float": FLOATS, "int": INTS, "str": TEXT, "bool": st.booleans()}
    terms = []
    for field in draw(st.lists(st.sampled_from([f for f, k in types.items() if k in constants]), max_size=2)):
        kind = types[field]
        op = draw(st.sampled_from(c.COMPARISONS if kind in ("float", "int") else ("==", "!=")))
        terms.append(Where(field, op, draw(constants[kind].filter(lambda v: v == v))))  # noqa: PLR0124 - no NaN
    pane_ns = draw(st.sampled_from((1, 60, 2880, 86400))) * 10**9
    lagged = what == "lag"
    return WindowDef(
        entity=entity,
        what=what,
        on=on,
        of=of,
        where=tuple(terms),
        over_ns=0 if lagged else pane_ns * draw(st.integers(1, 40)),
        pane_ns=pane_ns,
        current="exclude" if lagged else draw(st.sampled_from(("include", "exclude"))),
        delay_ns=0 if lagged else pane_ns * draw(st.sampled_from((0, 0, 7))),
        scale=draw(st.sampled_from((1, 100, 10**6))) if what not in ("count", "distinct") else None,
        lag=draw(st.integers(1, 28)) if lagged else 0,
    )


def _with_tensors(
    draw: st.DrawFn,
    body: Body,
    sizes: dict[str, int],
    ranking: bool,
    max_columns: int,
    dtypes: Sequence[str],
    max_tensors: int,
) -> Body:
    types = {f.name: f.type for f in body.fields}
    for name, entity in body.entities.items():
        types |= {f"{name}.{column}": kind for column, kind in entity.columns.items()}
    types |= dict.fromkeys(body.windows, "float")
    unused = list(body.windows)
    shared = {
        "words": Vocabulary(
            tuple(draw(st.lists(st.sampled_from(POOL), unique=True, min_size=1, max_size=5))),
            oov=draw(st.sampled_from(("first", "last", "refuse"))),
        ),
        "numbers": Vocabulary(
            tuple(draw(st.lists(st.integers(0, 6), unique=True, min_size=1, max_size=5))),
            frozen=True,
            oov=draw(st.sampled_from(("first", "last", "refuse"))),
        ),
    }
    vocabularies: dict[str, Vocabulary] = {}
    tensors: dict[str, Tensor] = {}
    fitted: dict[str, Fitted] = {}
    n = 0
    for t in range(draw(st.integers(1, max_tensors))):
        dtype = draw(st.sampled_from(dtypes))
        axis = draw(st.sampled_from(("rows", "context"))) if ranking and tensors else "rows"
        usable = {r: k for r, k in types.items() if axis == "rows" or not _of_candidate(body, r)}
        made: list[Column] = []
        for _ in range(draw(st.integers(1, 2 if dtype == "string" else max_columns))):
            column = _column(draw, body, f"c{n}", dtype, usable, sizes, shared)
            if column is None:
                continue
            n += 1
            if column.encoding in ("index", "onehot", "target"):
                # the first column has cells, so that the tensor has some
                column = _with_vocabulary(draw, column, usable, shared, vocabularies, 0 if made else 1)
            learned = _learned(draw, column, shared | vocabularies)
            if learned is not None:
                fitted[column.name] = learned
            made.append(column)
        while unused and dtype in ("float32", "float64") and draw(st.booleans()):
            column = _window_column(draw, body, unused.pop(), dtype)
            learned = _learned(draw, column, shared)
            if learned is not None:
                fitted[column.name] = learned
            made.append(column)
        if made:
            mask = f"m{t}" if draw(st.booleans()) else None
            mask_dtype = draw(st.sampled_from(("bool", "float32", "int32", "int64")))
            tensors[f"t{t}"] = Tensor(tuple(made), dtype, axis, mask, mask_dtype)
    if not tensors:
        tensors["t0"] = Tensor((c.numeric("f1", name="plain"),), "float32")
    return msgspec.structs.replace(body, tensors=tensors, vocabularies=shared | vocabularies, fitted=fitted)


def _window_column(draw: st.DrawFn, body: Body, name: str, dtype: str) -> Column:
    """A column of the window's own name, as `c.window` makes it."""
    args = _numbers(draw)
    args |= _outcomes(draw, body, "numeric", dtype, [name], ["float"], args)
    return msgspec.structs.replace(c.numeric(name, **args), window=body.windows[name])


def _of_candidate(body: Body, ref: str) -> bool:
    entity = ref.partition(".")[0]
    return "sku" in (body.entities[entity].key if "." in ref else (ref,))


def _can_be_missing(body: Body, kind: str, refs: Sequence[str]) -> bool:
    optional = {f.name for f in body.fields if f.optional}
    return kind in ("ratio", "cosine") or any("." in r or r in optional or r in body.windows for r in refs)


KINDS_BY_DTYPE = {
    "float": (
        "numeric",
        "ratio",
        "difference",
        "product",
        "elapsed",
        "bins",
        "lookup",
        "boolean",
        "raw",
        "categorical",
        "hashed",
        "time",
        "equal",
        "embedding",
        "dot",
        "cosine",
        "sequence",
    ),
    "whole": (
        "numeric",
        "difference",
        "product",
        "bins",
        "lookup",
        "boolean",
        "raw",
        "categorical",
        "hashed",
        "time",
        "equal",
        "sequence",
    ),
    "string": ("raw",),
}


def _column(
    draw: st.DrawFn,
    body: Body,
    name: str,
    dtype: str,
    types: Mapping[str, str],
    sizes: Mapping[str, int],
    shared: Mapping[str, Vocabulary],
) -> Column | None:
    """A column that may stand in a tensor of this dtype, or None when no reference suits the kind that was drawn."""
    floats = dtype in ("float32", "float64")
    kind = draw(
        st.sampled_from(KINDS_BY_DTYPE["float" if floats else "string" if dtype == "string" else "whole"])
    )

    def ref(*kinds: str) -> str | None:
        fit = [r for r, k in types.items() if k in kinds]
        return draw(st.sampled_from(fit)) if fit else None

    args: dict[str, Any] = {"name": name}
    refs: list[str | None]
    scalar = kind in ("numeric", "ratio", "difference", "product", "elapsed", "bins")
    if kind in ("numeric", "bins"):
        refs = [ref(*NUMBERS)]
    elif kind == "lookup":
        refs = [ref("str", "float", "int", "bool", *(() if draw(st.booleans()) else ("bytes", "timestamp")))]
    elif kind in ("ratio", "difference", "product"):
        refs = [ref(*NUMBERS), ref(*NUMBERS)]
    elif kind == "elapsed":
        refs = [ref("timestamp")]
        if body.event_time is None or body.event_time not in types or draw(st.booleans()):
            refs.append(ref("timestamp"))
        args["unit"] = draw(st.sampled_from("smhd"))
    elif kind == "boolean":
        refs = [ref("bool")]
    elif kind == "raw":
        refs = [ref(*TEXTS)] if dtype == "string" else [ref(*NUMBERS, "timestamp")]
        if dtype == "string":
            refs = [ref("str")]  # bytes in a string tensor may not be UTF-8
    elif kind == "categorical":
        refs = [ref("str", "int", "bool")]
        args["encoding"] = draw(
            st.sampled_from(("index", "onehot", "target") if floats else ("index", "onehot"))
        )
    elif kind == "hashed":
        many = draw(st.integers(1, 3))
        refs = [ref("str", "bytes", "int", "bool", "timestamp") for _ in range(many)]
        args["buckets"] = draw(st.sampled_from((1, 2, 97, 1024, 2**31 - 1)))
        args["seed"] = draw(st.sampled_from((0, 1, 2**63 - 1)))
    elif kind == "time":
        refs = [ref("timestamp")]
        parts = list(c.TIME_PARTS)
        cyclic = [f"{p}_{w}" for p, v in c.TIME_PARTS.items() if v for w in ("sin", "cos")] if floats else []
        args["part"] = draw(st.sampled_from(parts + cyclic))
    elif kind == "equal":
        refs = (
            [ref(*TEXTS), ref(*TEXTS)] if draw(st.booleans()) else [ref(*NUMBERS, "timestamp") for _ in "ab"]
        )
    elif kind in ("embedding", "dot", "cosine"):
        first = ref("vector")
        if first is None:
            return None
        refs = [first]
        args["size"] = sizes[first]
        if kind != "embedding":
            refs.append(
                draw(st.sampled_from([r for r, s in sizes.items() if s == sizes[first] and r in types]))
            )
    else:
        encoding = draw(st.sampled_from(("index", "hashed", "number")))
        inside = {"index": ("list[int]", "list[str]"), "number": ("list[float]", "list[int]")}
        refs = [ref(*inside.get(encoding, ("list[int]", "list[str]")))]
        args |= {"encoding": encoding, "length": draw(st.integers(1, 5))}
        args["keep"] = draw(st.sampled_from(("last", "first")))
        args["pad"] = draw(st.sampled_from((0, -1, 7) if dtype != "bool" else (0, 1)))
        if encoding == "number" and floats:
            args["pad"] = draw(st.sampled_from((0, -1.5)))
        if encoding == "hashed":
            args |= {"buckets": draw(st.sampled_from((2, 1000))), "seed": draw(st.sampled_from((0, 5)))}
    if any(r is None for r in refs):
        return None
    if scalar and (floats or kind == "bins"):
        args |= _numbers(draw)
        args["steps"] = draw(st.lists(STEPS, max_size=4))
    elif scalar and draw(st.booleans()):
        args["clip"] = (-100.0, 100.0)
    kinds_of = [types[r] for r in refs if r is not None]
    args |= _outcomes(draw, body, kind, dtype, refs, kinds_of, args)
    if any("." in r for r in refs if r) and kind != "sequence" and draw(st.booleans()):
        args["max_age"] = draw(st.sampled_from(("1h", "2d")))
    if kind == "time":
        return c.time(refs[0], args.pop("part"), **args)
    if kind == "bins":
        return _bins(draw, refs[0], floats, args)
    if kind == "lookup":
        return _lookup(draw, refs[0], kinds_of[0], floats, args)
    make = getattr(c, kind)
    made: Column = make(*refs, **args)
    return made


STEPS = st.one_of(
    st.sampled_from(("float32", "signed_log1p", "log1p", "sqrt")),
    st.tuples(st.sampled_from(("add", "subtract", "multiply", "fill")), st.floats(-5, 5, width=64)),
    st.tuples(st.just("divide"), st.sampled_from((-3.0, 0.1, 7.0, 1e300))),
    st.sampled_from((("clip", 0.0, 1.0), ("clip", -1e300, -0.0), ("clip", 0.5, 0.5))),
)


def _bins(draw: st.DrawFn, ref: str | None, floats: bool, args: dict[str, Any]) -> Column:
    """Bins of a number: their numbers, or a cell each."""
    assert ref is not None
    edges = draw(st.lists(st.sampled_from((-1e300, -1.0, 0.0, 0.5, 1.0, 2.5, 9.0)), min_size=1, unique=True))
    n = len(edges) + 1
    if draw(st.booleans()):
        args |= {"cells": [f"{args['name']} bin {i}" for i in range(n)]} | _on_and_off(draw, n, floats)
    elif draw(st.booleans()):
        args["values"] = draw(st.lists(_declared(floats), min_size=n, max_size=n))
    return c.bins(ref, sorted(edges), **args)


def _lookup(draw: st.DrawFn, ref: str | None, kind: str, floats: bool, args: dict[str, Any]) -> Column:
    """A lookup of any of its three functions; keys that rows often hold."""
    assert ref is not None
    pools: dict[str, st.SearchStrategy[Any]] = {
        "str": st.sampled_from(POOL),
        "float": st.sampled_from((0.0, -0.0, 1.0, 0.1, 5e-324)) | st.integers(0, 9),
        "int": st.integers(0, 9) | st.sampled_from(EDGE_INTS),
        "bool": st.booleans(),
    }
    keys = draw(st.lists(pools[kind], unique=True, max_size=5)) if kind in pools else []
    if draw(st.booleans()):
        nothing = [None] if floats else []
        other = draw(st.sampled_from([*nothing, "refuse", 0, 1]))
        return c.lookup(ref, {k: draw(_declared(floats)) for k in keys}, other=other, **args)
    cells = draw(st.integers(1, 4))
    groups: dict[str, list[Any]] = {f"{args['name']} cell {i}": [] for i in range(cells)}
    none: list[Any] = []
    for key in keys:
        draw(st.sampled_from([none, *groups.values()])).append(key)
    for outcome in ("null", "unknown", "on_stale", "on_unavailable"):
        if outcome in args and args[outcome] is not None and args[outcome] not in c.ACTIONS:
            args[outcome] = draw(st.sampled_from(list(groups)))
    if args["null"] == "use" and draw(st.booleans()):
        draw(st.sampled_from([none, *groups.values()])).append(None)
    other = draw(st.sampled_from([None, *groups]))
    refuses = other is None and draw(st.booleans())
    return c.onehot(
        ref, groups, other=other, none=none, refuse_other=refuses, **_on_and_off(draw, cells, floats), **args
    )


def _declared(floats: bool) -> st.SearchStrategy[Any]:
    return st.floats(-5, 5, width=64) if floats else st.integers(0, 1)


def _on_and_off(draw: st.DrawFn, n: int, floats: bool) -> dict[str, Any]:
    if draw(st.booleans()):
        return {}
    numbers = st.lists(_declared(floats), min_size=n, max_size=n)
    return {"on": draw(numbers), "off": draw(numbers)}


def _numbers(draw: st.DrawFn) -> dict[str, Any]:
    """Transform, centre, scale and clip, given or learned."""
    plain = st.floats(-5, 5, width=64)
    return {
        "transform": draw(st.sampled_from((None, None, "log1p", "signed_log1p", "sqrt"))),
        "center": draw(st.none() | plain | st.sampled_from(("mean", "median", "min"))),
        "scale": draw(st.none() | plain.filter(bool) | st.sampled_from(("std", "iqr", "range", "max_abs"))),
        "clip": draw(
            st.sampled_from((None, None, "train", (0.0, None), (None, 100.0), (0.5, 0.5), (-0.0, 1e300)))
        ),
    }


def _outcomes(
    draw: st.DrawFn,
    body: Body,
    kind: str,
    dtype: str,
    refs: Sequence[str | None],
    types: Sequence[str],
    args: Mapping[str, Any],
) -> dict[str, Any]:
    """What the four kinds of missing values give: actions and defaults that the checks allow."""
    actions = ["use", "review", "refuse"]
    holds_nan = dtype in ("float32", "float64", "string") or kind in ("categorical", "hashed", "sequence")
    if not holds_nan and _can_be_missing(body, kind, [r for r in refs if r]):
        actions = ["refuse"]
    defaults: list[Any] = []
    if kind in ("categorical", "hashed", "raw") and types[0] in TEXTS:
        defaults = ["a", "web", "é", "elsewhere"]
    elif kind in ("categorical", "hashed"):
        defaults = [0, 1, 5, 77]
    elif dtype in ("float32", "float64"):
        defaults = [0, 1.5, True] if args.get("transform") == "sqrt" else [0, 1.5, -0.25, True]
    elif kind != "sequence":
        defaults = [0, 1] if dtype == "bool" else [0, 1, 30]
    if kind == "sequence" or (kind == "hashed" and len(refs) > 1):
        defaults = []
    every = st.sampled_from([*actions, *defaults])
    out = {"null": draw(every), "unknown": draw(st.none() | every), "on_unavailable": draw(st.none() | every)}
    if kind != "sequence":
        # a stale value is still a value: "use" is always possible
        out["on_stale"] = draw(st.sampled_from(["use", "review", "refuse", *defaults]))
    if defaults and actions == ["refuse"] and draw(st.integers(0, 3)):
        out["null"] = draw(
            st.sampled_from(defaults)
        )  # otherwise most rows of integer tensors would be refused
    return out


def _with_vocabulary(
    draw: st.DrawFn,
    column: Column,
    types: Mapping[str, str],
    shared: Mapping[str, Vocabulary],
    own: dict[str, Vocabulary],
    min_size: int,
) -> Column:
    """A shared vocabulary or one of its own; a default that it would refuse becomes an action."""
    text = types[column.refs[0]] in ("str", "list[str]")
    name = "words" if text else "numbers"
    if draw(st.booleans()):
        column = msgspec.structs.replace(column, vocabulary=name)
    else:
        oov = ["first", "last", "refuse"] + (["zeros"] if column.encoding == "onehot" else [])
        pool = st.sampled_from(POOL) if text else st.integers(0, 6)
        own[column.name] = Vocabulary(
            tuple(draw(st.lists(pool, unique=True, min_size=min_size, max_size=5))),
            oov=draw(st.sampled_from(oov)),
        )
    used = vocabulary_of(column, shared | own)
    if used.oov != "refuse":
        return column
    changes = {}
    for outcome in ("null", "unknown", "on_stale", "on_unavailable"):
        value = getattr(column, outcome)
        if value is not None and value not in c.ACTIONS and value not in used.values:
            changes[outcome] = "refuse"
    return msgspec.structs.replace(column, **changes)


def _learned(draw: st.DrawFn, column: Column, vocabularies: Mapping[str, Vocabulary]) -> Fitted | None:
    """Numbers that `fit` could have learned."""
    plain = st.floats(-5, 5, width=64)
    if column.encoding == "target":
        known = len(vocabulary_of(column, vocabularies).values)
        return Fitted(targets=tuple(draw(st.lists(plain, min_size=known, max_size=known))), prior=draw(plain))
    if column.kind not in reference.SCALAR_KINDS:
        return None
    learns = [v for v in (column.center, column.scale, column.clip) if isinstance(v, str)]
    if not learns and draw(st.booleans()):
        return None
    low, high = sorted((draw(plain), draw(st.floats(0, 500))))
    return Fitted(
        center=draw(plain) if isinstance(column.center, str) else None,
        scale=draw(plain.filter(lambda v: v > 0)) if isinstance(column.scale, str) else None,
        seen_low=low,
        seen_high=high,
    )


# ---- rows ----------------------------------------------------------------------------------------------------------


def _rows(draw: st.DrawFn, body: Body, ranking: bool, max_rows: int) -> list[dict[str, Any]]:
    n = draw(st.integers(1, max_rows))
    rows: list[dict[str, Any]] = []
    for i in range(n):
        if ranking and i:
            rows.append(dict(rows[0]))
            continue
        row = {}
        for f in body.fields:
            absent = f.optional and not draw(st.integers(0, 3))
            row[f.name] = None if absent else draw(values(f.type, body))
        for name in body.windows:
            row[name] = draw(FLOATS) if draw(st.integers(0, 4)) else None
            row[state_of(name)] = draw(st.sampled_from((0, 0, 0, 2, 3, 3, 4)))
        rows.append(row)
    if ranking:
        kind = next(f.type for f in body.fields if f.name == "sku")
        ids = draw(st.lists(values(kind, body), min_size=n, max_size=n, unique=True))
        for row, key in zip(rows, ids, strict=True):
            row["sku"] = key
    return rows


def _table(
    draw: st.DrawFn,
    body: Body,
    entity: str,
    rows: Sequence[Mapping[str, Any]],
    sizes: Mapping[str, int],
    now_ns: int,
) -> dict[Any, tuple[dict[str, Any], int]]:
    """Rows for most of the keys that requests hold; some keys unknown, some cells null, some rows old."""
    declared = body.entities[entity]
    table: dict[Any, tuple[dict[str, Any], int]] = {}
    for row in rows:
        keys = [row[k] for k in declared.key]
        key = keys[0] if len(keys) == 1 else tuple(keys)
        if None in keys or key in table or not draw(st.integers(0, 4)):
            continue
        cells = {
            name: draw(values(kind, body, sizes.get(f"{entity}.{name}", 1)))
            if draw(st.integers(0, 5))
            else None
            for name, kind in declared.columns.items()
        }
        ages = st.sampled_from((0, 60, 3600, 3601, 2 * 86400, 2 * 86400 + 1, -60))
        written = now_ns - draw(ages) * 10**9 if draw(st.integers(0, 3)) else 0
        table[key] = (cells, written)
    return table


@st.composite
def tables_again(draw: st.DrawFn, case: Case) -> Case:
    """The case with other rows in its tables, of the same shape."""
    tables = {name: _table(draw, case.body, name, case.rows, case.sizes, case.now_ns) for name in case.tables}
    return dataclasses.replace(case, tables=tables)


# ---- the same row in other forms -----------------------------------------------------------------------------------


def moment_of(time_ns: int, offset_minutes: int = 0) -> dt.datetime:
    """An aware datetime of a canonical timestamp, in any zone."""
    zone_ = dt.timezone(dt.timedelta(minutes=offset_minutes)) if offset_minutes else dt.UTC
    return (EPOCH + dt.timedelta(microseconds=time_ns // 1000)).astimezone(zone_)


def as_request(body: Body, row: Mapping[str, Any], *, drop_nulls: bool = False) -> dict[str, Any]:
    """A row as the dict that a caller passes: by field name, datetimes for timestamps."""
    out: dict[str, Any] = {}
    for i, f in enumerate(body.fields):
        value = row.get(f.name)
        if value is None:
            if not drop_nulls:
                out[f.name] = None
        else:
            out[f.name] = moment_of(value, (0, 330, -480)[i % 3]) if f.type == "timestamp" else value
    return out


def as_wire(body: Body, row: Mapping[str, Any], *, text: bool) -> dict[str, Any]:
    """A row under its wire names with what JSON (`text`) or MessagePack can hold."""
    out: dict[str, Any] = {}
    for f in body.fields:
        value = row.get(f.name)
        if value is None:
            continue
        if f.type == "timestamp":
            value = moment_of(value)
        elif f.type == "bytes" and text:
            value = base64.b64encode(value).decode()
        out[f.wire or f.name] = value
    return out


def same_place(got: str, want: str) -> bool:
    """Equal paths; the native program may add the place in a list."""
    return got == want or (got.startswith(f"{want}[") and got.endswith("]"))


def same_bits(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> bool:
    """Equal cells, NaN and the sign of zero included."""
    if got.dtype != want.dtype or got.shape != want.shape:
        return False
    if got.dtype == object:
        return bool((got == want).all())
    return got.tobytes() == want.tobytes()
