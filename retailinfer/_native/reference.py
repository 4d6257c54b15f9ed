"""What every column kind computes, in plain NumPy: the specification that the compiled program is tested against.

Rules:
  * Written to be read and checked, one column after the other over whole tables; nothing in the library calls it.
  * It shares no code with feature_ops.c: hashes, calendar and vocabularies are done again by other means. Only the two
    elementary functions (`log1p`, `sin_fraction`) stand here operation by operation as in vmath.h, for equal bits.
  * Maths in float64, one rounding when the cell is stored. A row fails as a whole, with its first column that fails.
  * It takes a spec's body as it is: a value with the attributes of `features.spec.Body`.
Input are canonical columns by reference, as in program.pyi: float64, int64 (integers, booleans, nanoseconds), UTF-8
with offsets, float32 vectors, lists with offsets. `columns_of` makes them out of plain Python values.
"""

from __future__ import annotations

import datetime as dt
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retailinfer.errors import FeatureMissingError, FeatureRangeError

__all__ = ["Result", "columns_of", "cos_fraction", "log1p", "run", "sin_fraction", "xxh64"]

F64: TypeAlias = NDArray[np.float64]
I64: TypeAlias = NDArray[np.int64]
Bits: TypeAlias = NDArray[np.uint8]
Canonical: TypeAlias = tuple[NDArray[Any], Bits | None, I64 | None, I64 | None]

PRESENT, NULL, UNKNOWN, STALE, UNAVAILABLE = range(5)
# Which of two inputs decides the outcome of a column: an old value is still a value, an absent one is not.
SEVERITY = np.array([0, 2, 3, 1, 4])

OK, MISSING, RANGE = range(3)

MAX_EXACT = 2**53  # integers up to here are the same number in float64
NEVER_STALE, AGE_UNKNOWN = 2**63 - 1, -(2**63)
INT_TYPES = ("int", "bool", "timestamp")
TEXT_TYPES = ("str", "bytes")
DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float64": np.float64,
    "int32": np.int32,
    "int64": np.int64,
    "bool": np.bool_,
    "string": object,
}
UNITS_NS = {"s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9}
SCALAR_KINDS = ("numeric", "ratio", "difference", "product", "elapsed", "dot", "cosine", "bins")


class Result(NamedTuple):
    """What a program makes of a table.

    tensors: by the model's input name, shape (n, cells): tensors, and masks in their own dtype; texts as objects.
    states: uint8 (n, columns), 0 where a column's inputs were plainly there, else what it met: 1 null, 2 unknown,
        3 stale, 4 unavailable. review: bool (n,), a column asked for review. outside: by column, how many raw values
        were outside the range that `fit` saw.
    """

    tensors: dict[str, NDArray[Any]]
    states: Bits
    review: NDArray[np.bool_]
    outside: list[int]


class _Input(NamedTuple):
    """One reference over all rows. Cells of rows that are not present hold anything."""

    type: str
    state: Bits
    values: Any  # float64 or int64 (n,), float32 (n, size), or a list of bytes or of lists
    updated_ns: I64


class _Cells(NamedTuple):
    """One column over all rows: cells (n, width), mask (n, width), what each row met, and what failed."""

    cells: NDArray[Any]
    mask: NDArray[np.bool_]
    state: Bits
    error: Bits


def run(
    body: Any,
    columns: Mapping[str, Canonical | None],
    n: int,
    *,
    now_ns: int | I64 = 0,
    states: Mapping[str, Bits] | None = None,
    updated_ns: Mapping[str, I64] | None = None,
    allow_nan: bool = True,
) -> Result:
    """All tensors of `n` rows.

    Args:
        body: a fitted spec's body.
        columns: reference -> canonical column; absent or None = null in every row.
        now_ns: what the age of a stored value is measured against, once or by row.
        states: reference -> uint8 (n,), for what a table cannot say: 2 no such entity, 3 too old (a window: has not run for
            its length), 4 its source did not answer. What is null is not old.
        updated_ns: reference -> int64 (n,), when a stored value was written; 2**63 - 1 = never stale, -2**63 = unknown.
        allow_nan: the model takes NaN. If not, a cell that would hold it is a FeatureMissingError.
    Raises: FeatureMissingError, FeatureRangeError for the first row that fails, with the path `$[row].reference`.
    """
    inputs: dict[str, _Input] = {}
    failures: list[tuple[int, int, int, str]] = []  # row, order within the row, what, reference
    optional = {f.name: f.optional for f in body.fields}
    types = types_of(body)
    now = np.broadcast_to(np.asarray(now_ns, np.int64), (n,))
    for order, (ref, kind) in enumerate(types.items()):
        given = None if states is None else states.get(ref)
        updated = None if updated_ns is None else updated_ns.get(ref)
        inputs[ref], infinite = _input(kind, columns.get(ref), n, given, updated)
        required = ref in optional and not optional[ref]
        absent = (inputs[ref].state != PRESENT) & required
        failures += [
            (int(row), order, RANGE if infinite[row] else MISSING, ref)
            for row in np.flatnonzero(absent | infinite)[:1]
        ]
    tensors: dict[str, NDArray[Any]] = {}
    all_states: list[Bits] = []
    outside: list[int] = []
    review = np.zeros(n, np.bool_)
    order = len(types)
    for name, tensor in body.tensors.items():
        parts: list[_Cells] = []
        for column in tensor.columns:
            run_one = _Column(body, column, tensor.dtype, inputs, n, now, allow_nan)
            made = run_one.cells()
            parts.append(made)
            all_states.append(made.state)
            outside.append(run_one.outside)
            review |= run_one.review
            failures += [
                (int(row), order, int(made.error[row]), column.refs[0])
                for row in np.flatnonzero(made.error)[:1]
            ]
            order += 1
        tensors[name] = np.concatenate([p.cells for p in parts], axis=1)
        if tensor.mask is not None:
            mask = np.concatenate([p.mask for p in parts], axis=1)
            tensors[tensor.mask] = mask.astype(DTYPES[tensor.mask_dtype])
    if failures:
        row, _, what, ref = min(failures)
        kind_of_error = FeatureMissingError if what == MISSING else FeatureRangeError
        raise kind_of_error("the twin refuses this row", path=f"$[{row}].{ref}")
    return Result(tensors, np.stack(all_states, axis=1), review, outside)


# ---- inputs --------------------------------------------------------------------------------------------------------


def _input(
    kind: str, column: Canonical | None, n: int, given: Bits | None, updated: I64 | None
) -> tuple[_Input, NDArray[np.bool_]]:
    """A canonical column as states and values. The second: which rows hold an infinite number."""
    infinite = np.zeros(n, np.bool_)
    state = np.zeros(n, np.uint8)
    values: Any
    if column is None:
        state[:] = NULL
        values = _nothing(kind, n)
    else:
        data, valid, offsets, children = column
        if valid is not None:
            state[valid == 0] = NULL
        if kind == "float":
            state[np.isnan(data)] = NULL
            infinite = np.isinf(data) & (state == PRESENT)
            values = data
        elif kind in TEXT_TYPES:
            assert offsets is not None
            values = [data[offsets[i] : offsets[i + 1]].tobytes() for i in range(n)]
        elif kind == "list[str]":
            assert offsets is not None
            assert children is not None
            texts = [
                data[children[j] : children[j + 1]].tobytes() for j in range(int(offsets[-1]) if n else 0)
            ]
            values = [texts[offsets[i] : offsets[i + 1]] for i in range(n)]
        elif kind.startswith("list"):
            assert offsets is not None
            values = [data[offsets[i] : offsets[i + 1]] for i in range(n)]
        else:
            values = data
    if given is not None:
        said = (given != PRESENT) & ((given != STALE) | (state == PRESENT))
        state = np.where(said, given, state).astype(np.uint8)
    if updated is None:
        updated = np.full(n, NEVER_STALE, np.int64)
    return _Input(kind, state, values, updated), infinite


def _nothing(kind: str, n: int) -> Any:
    if kind == "float":
        return np.zeros(n)
    if kind in INT_TYPES:
        return np.zeros(n, np.int64)
    if kind == "vector":
        return np.zeros((n, 0), np.float32)
    return [b"" if kind in TEXT_TYPES else []] * n


def columns_of(body: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Canonical]:
    """Canonical columns of rows of plain values by reference; None or an absent key is null.

    Values: float, int, bool, str, bytes, int nanoseconds for timestamps, lists, float32 vectors.
    """
    return {ref: _canonical(kind, [row.get(ref) for row in rows]) for ref, kind in types_of(body).items()}


def types_of(body: Any) -> dict[str, str]:
    """Request fields, stored columns and windows, in the order of slots."""
    return {f.name: f.type for f in body.fields} | dict(body.stored) | dict.fromkeys(body.windows, "float")


def _canonical(kind: str, values: Sequence[Any]) -> Canonical:
    valid = np.array([v is not None for v in values], np.uint8)
    if kind == "float":
        return np.array([np.nan if v is None else float(v) for v in values], np.float64), valid, None, None
    if kind in INT_TYPES:
        return np.array([0 if v is None else int(v) for v in values], np.int64), valid, None, None
    if kind in TEXT_TYPES:
        data, offsets = _joined([_encoded(v) for v in values])
        return data, valid, offsets, None
    if kind == "vector":
        size = max((len(v) for v in values if v is not None), default=0)
        matrix = np.zeros((len(values), size), np.float32)
        for i, v in enumerate(values):
            if v is not None:
                matrix[i] = v
        return matrix, valid, None, None
    lists = [[] if v is None else list(v) for v in values]
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    flat = [item for items in lists for item in items]
    if kind == "list[str]":
        data, children = _joined([_encoded(v) for v in flat])
        return data, valid, offsets, children
    return np.array(flat, np.float64 if kind == "list[float]" else np.int64), valid, offsets, None


def _encoded(value: str | bytes | None) -> bytes:
    return value.encode() if isinstance(value, str) else value or b""


def _joined(texts: Sequence[bytes]) -> tuple[Bits, I64]:
    return np.frombuffer(b"".join(texts), np.uint8), np.cumsum([0, *map(len, texts)], dtype=np.int64)


# ---- one column ----------------------------------------------------------------------------------------------------


class _Column:
    """One column over all rows: `cells` asks the method of its kind, then fills the rows that lack an input."""

    def __init__(
        self,
        body: Any,
        column: Any,
        dtype: str,
        inputs: Mapping[str, _Input],
        n: int,
        now_ns: I64,
        allow_nan: bool,
    ) -> None:
        self.body = body
        self.column = column
        self.dtype = dtype
        self.n = n
        self.now_ns = now_ns
        self.allow_nan = allow_nan
        self.fitted = body.fitted.get(column.name)
        refs = column.refs
        if column.kind == "elapsed" and len(refs) == 1:
            refs = (refs[0], body.event_time)
        self.inputs = [inputs[ref] for ref in refs]
        self.states = [self._state(i) for i in self.inputs]
        self.vocabulary = _vocabulary(body, column)
        self.width = self._width()
        self.state = np.zeros(n, np.uint8)  # of the column
        self.error = np.zeros(n, np.uint8)
        self.review = np.zeros(n, np.bool_)
        self.outside = 0
        self.out = np.zeros((n, self.width), DTYPES[dtype])
        self.mask = np.ones((n, self.width), np.bool_)

    def _width(self) -> int:
        if self.column.encoding == "onehot":
            assert self.vocabulary is not None
            return self.vocabulary.size
        if self.column.cells is not None:
            return len(self.column.cells)
        return int(self.column.size) if self.column.kind in ("embedding", "sequence") else 1

    def _state(self, given: _Input) -> Bits:
        """What each row of an input is; a value that is older than the column allows is stale."""
        state = given.state.copy()
        if self.column.max_age_ns:
            for row in np.flatnonzero((state == PRESENT) & (given.updated_ns != NEVER_STALE)):
                written = int(given.updated_ns[row])
                if written == AGE_UNKNOWN or int(self.now_ns[row]) - written > self.column.max_age_ns:
                    state[row] = STALE
        return state

    def cells(self) -> _Cells:
        """Fill every row; see `_Cells`."""
        worst = self.states[0]
        for other in self.states[1:]:
            worst = np.where(SEVERITY[other] > SEVERITY[worst], other, worst)
        self.state = worst.astype(np.uint8)
        filled = (self.state != PRESENT) & (self.state != STALE)
        if self.column.kind == "hashed" and len(self.inputs) > 1:
            filled &= ~self._cross_goes_on()
        for row in np.flatnonzero(self.state == STALE):
            action = self._outcome(STALE)
            if action in ("use", "review"):  # the old value
                self.review[row] |= action == "review"
            else:
                filled[row] = True
        with np.errstate(all="ignore"):
            getattr(self, f"_{self.column.kind}")(~filled)
            # a ratio over zero and a cosine of nothing are null only now
            self._fill(filled | ((self.state == NULL) & ~self._cross_goes_on()))
        return _Cells(self.out, self.mask, self.state, self.error)

    def _cross_goes_on(self) -> NDArray[np.bool_]:
        """Rows of a cross with a part to hash and a part to leave out: "use" and "review" hash what is there."""
        goes_on = np.zeros(self.n, np.bool_)
        if self.column.kind == "hashed" and len(self.inputs) > 1:
            some = np.zeros(self.n, np.bool_)
            for state in self.states:
                some |= (state == PRESENT) | (state == STALE)
            for row in np.flatnonzero(some):
                action = self._outcome(int(self.state[row]))
                goes_on[row] = self.state[row] != PRESENT and action in ("use", "review")
                self.review[row] |= bool(goes_on[row]) and action == "review"
        return goes_on

    # ---- what is missing ------------------------------------------------------------------------------------------

    def _outcome(self, state: int) -> Any:
        """What the column says about a state: an action or a default."""
        c = self.column
        given = {NULL: c.null, UNKNOWN: c.unknown, STALE: c.on_stale, UNAVAILABLE: c.on_unavailable}.get(
            state
        )
        return c.null if given is None else given

    def _fill(self, rows: NDArray[np.bool_]) -> None:
        for state in (NULL, UNKNOWN, STALE, UNAVAILABLE):
            which = rows & (self.state == state)
            if not which.any():
                continue
            outcome = self._outcome(state)
            self.mask[which] = False
            self.error[which] = OK
            if outcome == "refuse":
                self.error[which] = MISSING
            elif isinstance(outcome, str) and outcome in ("use", "review"):
                self.review[which] |= outcome == "review"
                self._fill_without_value(which)
            else:
                self._fill_default(which, outcome)

    def _fill_default(self, which: NDArray[np.bool_], default: Any) -> None:
        """A default stands for the raw value: it is clipped, transformed, coded or hashed like one."""
        kind = self.column.kind
        if kind in SCALAR_KINDS:
            self._finish(which, np.full(self.n, float(default)), count=False)
        elif kind == "lookup":
            self._store_declared(which, np.full(self.n, float(default)))
        elif kind == "categorical":
            key = _key(default)
            self._code(which, [key] * self.n)
        elif kind == "hashed":
            bucket = xxh64(_hash_bytes(_key(default)), self.column.seed) % self.column.buckets
            self._store_int(which, 0, np.full(self.n, bucket, np.int64))
        elif kind == "raw" and self.dtype == "string":
            self.out[which] = default
        elif kind == "raw" and self.dtype in ("int32", "int64", "bool"):
            self._store_int(which, 0, np.full(self.n, int(default), np.int64))
        else:
            for cell in range(self.width):
                self._store(which, cell, np.full(self.n, float(default)))
        self.mask[which] = False

    def _fill_without_value(self, which: NDArray[np.bool_]) -> None:
        kind = self.column.kind
        if any(step.op == "fill" for step in self.column.steps):
            self._finish(which, np.full(self.n, np.nan), count=False, missing=True)
        elif kind in ("lookup", "bins"):
            self._store_declared(which, np.full(self.n, np.nan))
        elif kind == "categorical":
            assert self.vocabulary is not None
            if self.column.encoding == "target":
                self._store(which, 0, np.full(self.n, self.fitted.prior))
            elif self.vocabulary.oov == "refuse":
                self.error[which] = MISSING
            else:
                self._store_code(which, np.full(self.n, self.vocabulary.other, np.int64))
            self.mask[which] = False
        elif kind == "hashed":
            self._store_int(which, 0, np.zeros(self.n, np.int64))
        elif kind == "sequence":
            for cell in range(self.width):
                self._pad(which, cell)
        elif self.dtype == "string":
            self.out[which] = ""
        elif self.dtype in ("float32", "float64") and self.allow_nan:
            self.out[which] = np.nan
        else:
            self.error[which] = MISSING

    # ---- stores: one rounding, and the gate -----------------------------------------------------------------------

    def _store(self, which: NDArray[np.bool_], cell: int, values: F64) -> None:
        """Numbers into cells. What the dtype cannot hold is refused: infinity, fractions of integers, too much."""
        if self.dtype in ("float32", "float64"):
            cells = values.astype(DTYPES[self.dtype])
            ok = np.isfinite(cells)
        elif self.dtype == "bool":
            ok = ~np.isnan(values)
            cells = values != 0.0
        else:
            low, high = (-(2.0**31), 2.0**31 - 1) if self.dtype == "int32" else (-(2.0**53), 2.0**53)
            ok = (values >= low) & (values <= high) & (values == np.trunc(values))
            cells = np.where(ok, values, 0.0).astype(DTYPES[self.dtype])
        self._put(which, cell, cells, ok)

    def _store_int(self, which: NDArray[np.bool_], cell: int, values: I64) -> None:
        """Integers into cells; through a float cell only those that float64 holds exactly."""
        ok = np.ones(self.n, np.bool_)
        if self.dtype in ("float32", "float64"):
            ok = (values >= -MAX_EXACT) & (values <= MAX_EXACT)
            cells = values.astype(np.float64).astype(DTYPES[self.dtype])
        elif self.dtype == "bool":
            cells = values != 0
        else:
            cells = values.astype(DTYPES[self.dtype])
            ok = cells == values
        self._put(which, cell, cells, ok)

    def _put(self, which: NDArray[np.bool_], cell: int, cells: NDArray[Any], ok: NDArray[np.bool_]) -> None:
        good = which & ok & (self.error == OK)
        self.out[good, cell] = cells[good]
        self.error[which & ~ok & (self.error == OK)] = RANGE

    def _number(self, which: NDArray[np.bool_], at: int) -> F64:
        """An input as float64; integers that float64 would round are refused before any maths."""
        given = self.inputs[at]
        if given.type == "float":
            return np.asarray(given.values, np.float64)
        whole: I64 = given.values
        inexact = (whole > MAX_EXACT) | (whole < -MAX_EXACT)
        self.error[which & inexact & (self.error == OK)] = RANGE
        return whole.astype(np.float64)

    # ---- scalars --------------------------------------------------------------------------------------------------

    def _finish(
        self, which: NDArray[np.bool_], raw: F64, *, count: bool = True, missing: bool = False
    ) -> None:
        """Raw values: clip, transform, centre and scale, steps, store. `missing`: NaN, which a step fills."""
        c = self.column
        value = raw
        seen_low, seen_high = (self.fitted.seen_low, self.fitted.seen_high) if self.fitted else (None, None)
        if count and seen_low is not None and seen_high is not None:
            self.outside += int(np.count_nonzero(which & ((raw < seen_low) | (raw > seen_high))))
        if missing:
            self._finished(which, self._steps(which, value))
            return
        if c.clip is not None:
            low, high = (seen_low, seen_high) if c.clip == "train" else c.clip
            low, high = (-np.inf if low is None else low), (np.inf if high is None else high)
            value = np.where(value < low, low, np.where(value > high, high, value))
        if c.transform == "log1p":
            self.error[which & ~(value > -1.0) & (self.error == OK)] = RANGE
            value = log1p(value)
        elif c.transform == "signed_log1p":
            value = np.where(value < 0.0, -log1p(-value), log1p(value))
        elif c.transform == "sqrt":
            self.error[which & ~(value >= 0.0) & (self.error == OK)] = RANGE
            value = np.sqrt(value)
        center = self.fitted.center if isinstance(c.center, str) else c.center
        scale = self.fitted.scale if isinstance(c.scale, str) else c.scale
        if center is not None or scale is not None:
            value = (value - (0.0 if center is None else center)) / (1.0 if scale is None else scale)
        self._finished(which, self._steps(which, value))

    def _steps(self, which: NDArray[np.bool_], value: F64) -> F64:
        """One operation after the other; NaN is what is missing, and passes until a step fills it."""
        for step in self.column.steps:
            before, a, b = value, step.value, step.high
            there = ~np.isnan(before)
            if step.op == "fill":
                value = np.where(there, before, a)
                continue
            if step.op in ("log1p", "sqrt"):
                outside = ~(before > -1.0) if step.op == "log1p" else ~(before >= 0.0)
                self.error[which & there & outside & (self.error == OK)] = RANGE
            if step.op == "signed_log1p":
                value = np.where(before < 0.0, -log1p(-before), log1p(before))
            elif step.op == "clip":
                value = np.where(before < a, a, np.where(before > b, b, before))
            elif step.op == "float32":
                value = before.astype(np.float32).astype(np.float64)
            elif step.op in ("log1p", "sqrt"):
                value = log1p(before) if step.op == "log1p" else np.sqrt(before)
            else:
                with_constant: Any = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply}
                value = with_constant.get(step.op, np.divide)(before, a)
            value = np.where(there, value, np.nan)
        return value

    def _finished(self, which: NDArray[np.bool_], value: F64) -> None:
        if self.column.kind != "bins":
            self._store(which, 0, value)
            return
        edges = np.array(self.column.edges, np.float64)
        self.error[which & np.isnan(value) & (self.error == OK)] = RANGE
        bins = (edges[None, :] <= value[:, None]).sum(axis=1)
        self._store_declared(which, _numbers(self.column.values)[bins])

    def _store_declared(self, which: NDArray[np.bool_], values: F64) -> None:
        """A number, or the cell that is set; NaN is no number, and no cell."""
        c = self.column
        if c.cells is None:
            nothing = which & np.isnan(values) & (self.error == OK)
            if not (self.allow_nan and self.dtype in ("float32", "float64")):
                self.error[nothing] = MISSING
            else:
                self.out[nothing, 0] = np.nan
            self._store(which & ~nothing, 0, values)
            return
        for cell in range(self.width):
            on = 1.0 if c.on is None else c.on[cell]
            off = 0.0 if c.off is None else c.off[cell]
            self._store(which, cell, np.where(values == cell, on, off))

    def _numeric(self, which: NDArray[np.bool_]) -> None:
        c = self.column
        plain = c.transform is None and c.center is None and c.scale is None and c.clip is None
        if self.inputs[0].type != "float" and self.dtype == "int64" and plain:
            self._store_int(which, 0, self.inputs[0].values)  # whole 64-bit integers pass
            return
        self._finish(which, self._number(which, 0))

    def _bins(self, which: NDArray[np.bool_]) -> None:
        self._finish(which, self._number(which, 0))

    def _lookup(self, which: NDArray[np.bool_]) -> None:
        c = self.column
        refuse = c.other == "refuse"
        # Python's own equality: 1, 1.0 and True are one key, as are 0.0 and -0.0
        table = dict(zip((_plain_key(k) for k in c.keys), _numbers(c.values), strict=True))
        other = np.nan if refuse or c.other is None else c.other
        keys = list(self.inputs[0].values)
        if refuse:
            unknown = np.array([k not in table for k in keys], np.bool_)
            self.error[which & unknown & (self.error == OK)] = RANGE
        self._store_declared(which, np.array([table.get(k, other) for k in keys], np.float64))

    def _ratio(self, which: NDArray[np.bool_]) -> None:
        left, right = self._number(which, 0), self._number(which, 1)
        nothing = which & (right == 0.0) & (self.error == OK)
        self.state[nothing] = NULL
        self._finish(which & ~nothing, left / right)

    def _difference(self, which: NDArray[np.bool_]) -> None:
        self._finish(which, self._number(which, 0) - self._number(which, 1))

    def _product(self, which: NDArray[np.bool_]) -> None:
        self._finish(which, self._number(which, 0) * self._number(which, 1))

    def _elapsed(self, which: NDArray[np.bool_]) -> None:
        span = self.inputs[1].values - self.inputs[0].values  # int64 ns: exact
        self._finish(which, span.astype(np.float64) / float(UNITS_NS[self.column.unit]))

    # ---- values as they are ---------------------------------------------------------------------------------------

    def _boolean(self, which: NDArray[np.bool_]) -> None:
        self._store_int(which, 0, (self.inputs[0].values != 0).astype(np.int64))

    def _raw(self, which: NDArray[np.bool_]) -> None:
        given = self.inputs[0]
        if self.dtype == "string":
            for row in np.flatnonzero(which):
                self.out[row, 0] = given.values[row].decode()
        elif given.type == "float":
            self._store(which, 0, given.values)
        else:
            self._store_int(which, 0, given.values)

    def _equal(self, which: NDArray[np.bool_]) -> None:
        left, right = self.inputs
        if left.type in TEXT_TYPES:
            same = np.array([a == b for a, b in zip(left.values, right.values, strict=True)], np.bool_)
        elif "float" not in (left.type, right.type):
            same = left.values == right.values
        else:
            same = self._number(which, 0) == self._number(which, 1)
        self._store_int(which, 0, same.astype(np.int64))

    # ---- categories and hashes ------------------------------------------------------------------------------------

    def _categorical(self, which: NDArray[np.bool_]) -> None:
        self._code(which, list(self.inputs[0].values))

    def _code(self, which: NDArray[np.bool_], keys: Sequence[Any]) -> None:
        vocabulary = self.vocabulary
        assert vocabulary is not None
        positions = np.array([vocabulary.positions.get(_key(k), -1) for k in keys], np.int64)
        if vocabulary.oov == "refuse":
            self.error[which & (positions < 0) & (self.error == OK)] = RANGE
        if self.column.encoding == "target":
            targets = np.array([*self.fitted.targets, self.fitted.prior], np.float64)
            self._store(which, 0, targets[positions])  # position -1 is the prior
            return
        self._store_code(which, np.where(positions < 0, vocabulary.other, positions + vocabulary.first))

    def _store_code(self, which: NDArray[np.bool_], codes: I64) -> None:
        if self.column.encoding == "onehot":
            for cell in range(self.width):
                self._store_int(which, cell, (codes == cell).astype(np.int64))
        else:
            self._store_int(which, 0, codes)

    def _hashed(self, which: NDArray[np.bool_]) -> None:
        seed, buckets = self.column.seed, self.column.buckets
        found = np.zeros(self.n, np.int64)
        for row in np.flatnonzero(which):
            hashes = [
                xxh64(_hash_bytes(given.values[row]), seed) if state[row] in (PRESENT, STALE) else 0
                for given, state in zip(self.inputs, self.states, strict=True)
            ]
            if len(hashes) > 1:
                hashes = [xxh64(b"".join(h.to_bytes(8, "little") for h in hashes), seed)]
            found[row] = hashes[0] % buckets
        self._store_int(which, 0, found)

    # ---- time -----------------------------------------------------------------------------------------------------

    def _time(self, which: NDArray[np.bool_]) -> None:
        part, _, wave = self.column.part.partition("_sin")
        wave = "sin" if self.column.part.endswith("_sin") else ""
        if self.column.part.endswith("_cos"):
            part, wave = self.column.part.removesuffix("_cos"), "cos"
        found = np.zeros(self.n, np.int64)
        for row in np.flatnonzero(which):
            found[row] = _time_part(self.body, int(self.inputs[0].values[row]), part)
        if not wave:
            self._store_int(which, 0, found)
            return
        low, period = PERIODS[part]
        turn = (found - low) % period  # of rows without a time too, which are thrown away
        self._store(which, 0, (sin_fraction if wave == "sin" else cos_fraction)(turn, period))

    # ---- vectors and lists ----------------------------------------------------------------------------------------

    def _embedding(self, which: NDArray[np.bool_]) -> None:
        vectors = self._vectors(which, 0)
        for cell in range(self.width):
            self._store(which, cell, vectors[:, cell].astype(np.float64))

    def _vectors(self, which: NDArray[np.bool_], at: int) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self.inputs[at].values
        size = int(self.column.size)
        if vectors.shape[1] != size:
            self.error[which & (self.error == OK)] = RANGE
            return np.zeros((self.n, size), np.float32)
        return vectors

    def _dot(self, which: NDArray[np.bool_]) -> None:
        self._finish(which, _dot(self._vectors(which, 0), self._vectors(which, 1)))

    def _cosine(self, which: NDArray[np.bool_]) -> None:
        left, right = self._vectors(which, 0), self._vectors(which, 1)
        length = np.sqrt(_dot(left, left)) * np.sqrt(_dot(right, right))
        nothing = which & (length == 0.0) & (self.error == OK)
        self.state[nothing] = NULL
        self._finish(which & ~nothing, _dot(left, right) / length)

    def _sequence(self, which: NDArray[np.bool_]) -> None:
        c = self.column
        given = self.inputs[0]
        kept = [list(v[: self.width] if c.keep == "first" else v[-self.width :]) for v in given.values]
        for cell in range(self.width):
            there = which & np.array([len(v) > cell for v in kept], np.bool_)
            items = [v[cell] if len(v) > cell else _nothing_in(given.type) for v in kept]
            if c.encoding == "number" and given.type == "list[float]":
                self._store(there, cell, np.array(items, np.float64))
            elif c.encoding == "number":
                self._store_int(there, cell, np.array(items, np.int64))
            elif c.encoding == "hashed":
                buckets = [xxh64(_hash_bytes(_key(v)), c.seed) % c.buckets for v in items]
                self._store_int(there, cell, np.array(buckets, np.int64))
            else:
                vocabulary = self.vocabulary
                assert vocabulary is not None
                at = np.array([vocabulary.positions.get(_key(v), -1) for v in items], np.int64)
                if vocabulary.oov == "refuse":
                    self.error[there & (at < 0) & (self.error == OK)] = RANGE
                self._store_int(there, cell, np.where(at < 0, vocabulary.other, at + vocabulary.first))
            self._pad(which & ~there, cell)
            self.mask[:, cell] = there

    def _pad(self, which: NDArray[np.bool_], cell: int) -> None:
        if self.column.encoding == "number":
            self._store(which, cell, np.full(self.n, float(self.column.pad)))
        else:
            self._store_int(which, cell, np.full(self.n, int(self.column.pad), np.int64))


# ---- vocabularies --------------------------------------------------------------------------------------------------


class _Vocabulary(NamedTuple):
    """Value -> position in a dict; a code is the position plus `first`; `other` is the code of the rest."""

    positions: dict[Any, int]
    first: int
    other: int
    size: int
    oov: str


def _vocabulary(body: Any, column: Any) -> _Vocabulary | None:
    if column.encoding not in ("index", "onehot", "target"):
        return None
    declared = body.vocabularies[column.vocabulary or column.name]
    known = len(declared.values)
    first = 1 if declared.oov == "first" else 0
    other = {"first": 0, "last": known}.get(declared.oov, -1)
    size = known + (declared.oov in ("first", "last"))
    return _Vocabulary({_key(v): i for i, v in enumerate(declared.values)}, first, other, size, declared.oov)


def _key(value: Any) -> Any:
    """A value as vocabularies and hashes see it: text as UTF-8, numbers as int."""
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) else int(value)


def _plain_key(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def _numbers(values: Sequence[float | None]) -> F64:
    """Declared numbers; None is NaN."""
    return np.array([np.nan if v is None else v for v in values], np.float64)


def _nothing_in(kind: str) -> Any:
    return b"" if kind == "list[str]" else 0


# ---- dot products --------------------------------------------------------------------------------------------------


def _dot(left: NDArray[np.float32], right: NDArray[np.float32]) -> F64:
    """Eight running sums, element i into sum i mod 8, then added in one fixed order: order decides the last bits."""
    lanes = np.zeros((len(left), 8))
    for start in range(0, left.shape[1], 8):
        a = left[:, start : start + 8].astype(np.float64)
        b = right[:, start : start + 8].astype(np.float64)
        lanes[:, : a.shape[1]] += a * b
    lane = lanes.T
    sums: F64 = ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]))
    return sums


# ---- calendar ------------------------------------------------------------------------------------------------------

PERIODS = {
    "second": (0, 60),
    "minute": (0, 60),
    "hour": (0, 24),
    "minute_of_day": (0, 1440),
    "day_of_week": (0, 7),
    "hour_of_week": (0, 168),
    "day_of_month": (1, 31),
    "day_of_year": (1, 366),
    "month": (1, 12),
    "quarter": (1, 4),
}


def _time_part(body: Any, time_ns: int, part: str) -> int:
    """A part of a moment on the clock of the body's zone, by Python's datetime."""
    seconds = time_ns // 10**9
    offset = body.zone_offset_s[bisect_right(body.zone_at_s, seconds)]
    local = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds + offset)  # noqa: DTZ001 - local by construction
    found = {
        "second": local.second,
        "minute": local.minute,
        "hour": local.hour,
        "minute_of_day": local.hour * 60 + local.minute,
        "day_of_week": local.weekday(),
        "hour_of_week": local.weekday() * 24 + local.hour,
        "day_of_month": local.day,
        "day_of_year": local.timetuple().tm_yday,
        "month": local.month,
        "quarter": (local.month - 1) // 3 + 1,
        "year": local.year,
        "is_weekend": int(local.weekday() in (5, 6)),
    }
    return found[part]


# ---- hashes --------------------------------------------------------------------------------------------------------

_P1, _P2, _P3, _P4, _P5 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)
_WORD = 2**64 - 1


def xxh64(data: bytes, seed: int = 0) -> int:
    """The standard XXH64 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md), in unbounded integers cut to 64 bits."""

    def rotate(v: int, bits: int) -> int:
        return ((v << bits) | (v >> (64 - bits))) & _WORD

    def mix(lane: int, word: int) -> int:
        return rotate((lane + word * _P2) & _WORD, 31) * _P1 & _WORD

    size, at = len(data), 0
    if size >= 32:
        lanes = [(seed + _P1 + _P2) & _WORD, (seed + _P2) & _WORD, seed, (seed - _P1) & _WORD]
        for at in range(0, size - 31, 32):
            words = [int.from_bytes(data[at + 8 * i : at + 8 * i + 8], "little") for i in range(4)]
            lanes = [mix(lane, word) for lane, word in zip(lanes, words, strict=True)]
        at += 32
        hashed = sum(rotate(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & _WORD
        for lane in lanes:
            hashed = ((hashed ^ mix(0, lane)) * _P1 + _P4) & _WORD
    else:
        hashed = (seed + _P5) & _WORD
    hashed = (hashed + size) & _WORD
    while size - at >= 8:
        hashed = (
            rotate(hashed ^ mix(0, int.from_bytes(data[at : at + 8], "little")), 27) * _P1 + _P4
        ) & _WORD
        at += 8
    if size - at >= 4:
        word = int.from_bytes(data[at : at + 4], "little")
        hashed = (rotate(hashed ^ (word * _P1 & _WORD), 23) * _P2 + _P3) & _WORD
        at += 4
    for byte in data[at:]:
        hashed = rotate(hashed ^ (byte * _P5 & _WORD), 11) * _P1 & _WORD
    hashed = (hashed ^ (hashed >> 33)) * _P2 & _WORD
    hashed = (hashed ^ (hashed >> 29)) * _P3 & _WORD
    return hashed ^ (hashed >> 32)


def _hash_bytes(value: Any) -> bytes:
    """Text and bytes as they are, numbers as 8 little-endian bytes."""
    return value if isinstance(value, bytes) else int(value).to_bytes(8, "little", signed=True)


# ---- elementary functions: operation by operation as in vmath.h -----------------------------------------------------


def log1p(x: F64) -> F64:
    """log(1 + x) for x > -1; anything elsewhere."""
    h = float.fromhex
    x = np.asarray(x, np.float64)
    with np.errstate(all="ignore"):
        near = (x > -0.29289321881345254) & (x < 0.41421356237309503)
        tiny = (x > -(2.0**-54)) & (x < 2.0**-54)
        u = 1.0 + x
        beyond = ~(u <= 1.7976931348623157e308)
        lost = np.where(x >= 1.0, 1.0 - (u - x), x - (u - 1.0)) / u
        bits = u.view(np.int64)
        exponent = ((bits + (0x3FF0000000000000 - 0x3FE6A09E667F3BCD)) >> 52) - 1023
        f = np.where(near, x, (bits - (exponent << 52)).view(np.float64) - 1.0)
        k = np.where(near, 0.0, exponent.astype(np.float64))
        c = np.where(near, 0.0, lost)
        half = 0.5 * f * f
        s = f / (2.0 + f)
        z = s * s
        w = z * z
        odd = w * h("0x1.642c8590b2164p-4")
        for term in (
            "0x1.af286bca1af28p-4",
            "0x1.1111111111111p-3",
            "0x1.745d1745d1746p-3",
            "0x1.2492492492492p-2",
        ):
            odd = w * (h(term) + odd)
        odd = z * (h("0x1.5555555555555p-1") + odd)
        even = w * h("0x1.8618618618618p-4")
        for term in (
            "0x1.e1e1e1e1e1e1ep-4",
            "0x1.3b13b13b13b14p-3",
            "0x1.c71c71c71c71cp-3",
            "0x1.999999999999ap-2",
        ):
            even = w * (h(term) + even)
        r = odd + even
        y = k * h("0x1.62e42fee00000p-1") - (
            (half - (s * (half + r) + (k * h("0x1.a39ef35793c76p-33") + c))) - f
        )
        return np.where(tiny, x, np.where(beyond & ~near, u, y))


def sin_fraction(k: I64, n: int) -> F64:
    """sin(2 pi k / n) for 0 <= k < n; quadrant and octant are cut off in integers."""
    k = np.asarray(k, np.int64)
    quadrant = 4 * k // n
    rest = 4 * k - quadrant * n
    cosine = (quadrant & 1) == 1
    beyond = 2 * rest > n
    rest = np.where(beyond, n - rest, rest)
    cosine ^= beyond
    y = rest.astype(np.float64) / float(n) * float.fromhex("0x1.921fb54442d18p+0")
    z = y * y
    sine = _horner(
        z,
        "-0x1.ae7f3e733b81fp-41",
        "0x1.6124613a86d09p-33",
        "-0x1.ae64567f544e4p-26",
        "0x1.71de3a556c734p-19",
        "-0x1.a01a01a01a01ap-13",
        "0x1.1111111111111p-7",
        "-0x1.5555555555555p-3",
    )
    other = _horner(
        z,
        "0x1.ae7f3e733b81fp-45",
        "-0x1.93974a8c07c9dp-37",
        "0x1.1eed8eff8d898p-29",
        "-0x1.27e4fb7789f5cp-22",
        "0x1.a01a01a01a01ap-16",
        "-0x1.6c16c16c16c17p-10",
        "0x1.5555555555555p-5",
        "-0x1p-1",
    )
    value = np.where(cosine, 1.0 + z * other, y + y * z * sine)
    return np.where(quadrant >= 2, 0.0 - value, value)


def cos_fraction(k: I64, n: int) -> F64:
    """cos(2 pi k / n): the sine a quarter of a turn further."""
    return sin_fraction((4 * np.asarray(k, np.int64) + n) % (4 * n), 4 * n)


def _horner(z: F64, *terms: str) -> F64:
    """((t0 * z + t1) * z + t2) ...: the highest term first."""
    value = np.full(z.shape, float.fromhex(terms[0]))
    for term in terms[1:]:
        value = float.fromhex(term) + z * value
    return value
