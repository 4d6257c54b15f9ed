"""The column kinds that a user declares: what a feature is, once, for training and for serving.

    from retailinfer import columns as c
    c.numeric("amount", transform="log1p"), c.categorical("channel", encoding="onehot"), c.stored("card.n_30d", unknown=0)
    c.window("card", "sum", on="payment", of="amount", scale=100, over="24h"), *c.lag("item", of="units", lags=[1, 7], fill=0)

Rules:
  * A reference ("amount", "card.mean_amount_30d") means the **raw** value of a request field or of a stored column.
    Order of work in a column: clip the raw value, transform it, subtract the centre, divide by the scale, then `steps`.
  * Maths is in float64 and rounded once, to the dtype of the tensor that holds the column.
  * Four things that people merge into "missing" stay apart. Each takes `"use"`, `"refuse"`, `"review"` or a default value:
      unknown          no such entity in its table         (None: the same as `null`)
      null             the value is null, or has no result (a ratio over zero, a cosine of a zero vector)
      on_stale         the row is older than `max_age`     (`"use"`: the old value, and the answer lists it)
      on_unavailable   its source did not answer in time   (None: the same as `null`)
    A default stands for the raw value, except where the result is declared and not computed (`lookup`, `onehot`).
    `"use"` on a value that is not there gives NaN in a float tensor, the out-of-vocabulary code of a categorical, bucket 0
    of a hashed column; integer and boolean tensors cannot hold NaN, so a scalar column there needs a default or "refuse".
  * `"review"` does as `"use"`, and the policy's review action is the answer whatever the score.
  * A window is a value of its own beside its column: `WindowDef` says what is counted, the column what becomes of it.
    `accumulator_key` names the state that it needs, by everything that state depends on and nothing else: that is how
    state outlives releases.
Here is only the declaration; `features.spec` checks it and learns from data, `features.program` compiles it,
`features.streams` lays windows out for the store.
"""

# No `from __future__ import annotations` here: msgspec would compile every one of them when a release is loaded.

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import msgspec

from retailinfer.errors import SpecError, clip

__all__ = [
    "Column",
    "bins",
    "boolean",
    "categorical",
    "cosine",
    "difference",
    "dot",
    "elapsed",
    "embedding",
    "equal",
    "hashed",
    "lag",
    "lookup",
    "missing",
    "numeric",
    "onehot",
    "product",
    "ratio",
    "raw",
    "sequence",
    "stored",
    "time",
    "window",
]

Outcome = float | int | str | bool | None
Transform = Literal["log1p", "signed_log1p", "sqrt"]
Center = float | Literal["mean", "median", "min"]
Scale = float | Literal["std", "iqr", "range", "max_abs"]
Clip = tuple[float | None, float | None] | Literal["train"]
Key = str | int | float
StepGiven = str | tuple[str, float] | tuple[str, float, float]

ACTIONS = ("use", "refuse", "review")
TRANSFORMS = ("log1p", "signed_log1p", "sqrt")
CENTERS = ("mean", "median", "min")
SCALES = ("std", "iqr", "range", "max_abs")

# part -> (smallest value, number of values); the second is the period of its sine and cosine. None: has no period.
TIME_PARTS: dict[str, tuple[int, int] | None] = {
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
    "year": None,
    "is_weekend": None,
}
MAX_CROSS = 16  # feature_ops.c keeps the parts of a cross on the stack
MAX_SIZE = 65536  # cells of a vector or a sequence
MAX_KEEP = 1000  # panes of one entity that a store keeps for a window: its own, its delay's, its lag's, and 2 for late events
MAX_LAG = MAX_KEEP - 3  # steps
MAX_WINDOW_NS = 3660 * 86400 * 10**9
MAX_SCALE = 10**12
WINDOW_KINDS = ("count", "sum", "mean", "min", "max", "distinct")
# A window is cut into as many panes as the first of these gives whole seconds (and divides its delay).
PANES = (30, 32, 28, 24, 20, 16, 12, 10, 8, 6, 5, 4, 3, 2, 1)
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")  # in the order of their codes in native plans
# What a step may do -> how many numbers it takes; in the order of their codes in the native program.
STEPS = {
    "add": 1,
    "subtract": 1,
    "multiply": 1,
    "divide": 1,
    "clip": 2,
    "fill": 1,
    "float32": 0,
    "log1p": 0,
    "signed_log1p": 0,
    "sqrt": 0,
}
MAX_STEPS = 64
MAX_KEYS = 2**20  # of a lookup
UNITS_NS = {"s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9}


class Where(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One comparison of an event's field with a constant; a null field does not hold, whatever the comparison."""

    field: str
    op: str
    value: bool | int | float | str


class Step(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One operation on a number, in float64; `value` and `high` are its constants."""

    op: str
    value: float | None = None
    high: float | None = None


class WindowDef(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a window counts. Made by `window` and `lag`; what each field means is said there.

    `pane_ns` is the width of what it is cut into; of a lag the step. `lag`: steps back, 0 for windows.
    `scale`: values are kept as whole numbers of 1/scale; None for what has none (count, distinct).
    """

    entity: str
    what: str  # count, sum, mean, min, max, distinct, lag
    on: str = ""  # "": the spec's only stream, filled in by the spec
    of: str | None = None
    where: tuple[Where, ...] = ()
    over_ns: int = 0
    pane_ns: int = 0
    current: str = "include"
    delay_ns: int = 0
    scale: int | None = None
    lag: int = 0

    @property
    def accumulator_kind(self) -> str:
        """What state it reads: "count", "sum" (sums, means and lags), "min", "max" or "distinct"."""
        return "sum" if self.what in ("sum", "mean", "lag") else self.what

    @property
    def n_panes(self) -> int:
        """Panes that a read covers."""
        return 1 if self.what == "lag" else self.over_ns // self.pane_ns

    @property
    def delay_panes(self) -> int:
        return self.delay_ns // self.pane_ns

    @property
    def keep_panes(self) -> int:
        """Panes behind the newest one that have to be kept for it; two more forgive events that come late."""
        return self.n_panes + self.delay_panes + self.lag + 2


class Column(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One declared column. Made by the functions of this module, never by hand; what each field means is said there."""

    kind: str
    name: str
    refs: tuple[str, ...]
    transform: Transform | None = None
    center: float | str | None = None
    scale: float | str | None = None
    clip: tuple[float | None, float | None] | str | None = None
    encoding: str | None = None
    vocabulary: str | None = (
        None  # name of a shared vocabulary; None: one of its own, under the column's name
    )
    max_size: int | None = None
    min_count: int = 1
    oov: str = "first"
    buckets: int | None = None
    seed: int = 0
    part: str | None = None
    unit: str = "s"
    size: int | None = None  # cells of an embedding or of a sequence
    pad: float | int = 0
    keep: str = "last"
    smoothing: float = 20.0
    folds: int = 5
    steps: tuple[Step, ...] = ()
    edges: tuple[float, ...] | None = None  # of bins, ascending
    keys: tuple[Key, ...] | None = None  # of a lookup
    # By key or by bin: the number of the cell (None: NaN), or with `cells` which of them is set (None: none).
    values: tuple[float | None, ...] | None = None
    other: float | str | None = None  # the same for what is no key; "refuse"
    cells: tuple[str, ...] | None = None  # names; one cell is set, the others are not
    # By cell, what it holds when it is set (None: 1), and when it is not (None: 0).
    on: tuple[float, ...] | None = None
    off: tuple[float, ...] | None = None
    unknown: Outcome = None
    null: Outcome = "use"
    on_stale: Outcome = "use"
    on_unavailable: Outcome = None
    max_age_ns: int | None = None
    window: WindowDef | None = (
        None  # the column reads a window of this definition, which has the column's name
    )


def numeric(
    ref: str,
    *,
    transform: Transform | None = None,
    center: Center | None = None,
    scale: Scale | None = None,
    clip: Clip | None = None,
    steps: Sequence[StepGiven] = (),
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
    max_age: str | None = None,
) -> Column:
    """A number, 1 cell.

    Args:
        transform: "log1p" (needs a value > -1), "signed_log1p" = sign(x) * log1p(|x|), or "sqrt" (needs >= 0).
        center, scale: numbers, or what `fit` learns after the transform: mean, median, min / std (population), iqr,
            range (max - min), max_abs. A learned scale of zero becomes 1.
        clip: (low, high) on the raw value, either may be None; "train" = the range seen by `fit`. Off by default:
            silent clamping is skew.
        steps: what else happens to the number after that, in this order: ("add", a), ("subtract", a), ("multiply", a),
            ("divide", a), ("clip", low, high), "log1p", "signed_log1p", "sqrt", "float32" (rounded to it), and ("fill", a):
            what stands for a missing value from here on, where `null` is "use".
        max_age: for a stored value, such as "90s", "15m", "24h", "30d".
    Errors: a value outside the transform's domain is a FeatureRangeError, in training and in serving.
    """
    return _scalar("numeric", (ref,), name or ref, transform, center, scale, clip, locals())


def stored(
    ref: str,
    *,
    max_age: str | None = None,
    transform: Transform | None = None,
    center: Center | None = None,
    scale: Scale | None = None,
    clip: Clip | None = None,
    steps: Sequence[StepGiven] = (),
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
) -> Column:
    """A number from the table of an entity ("card.mean_amount_30d"), 1 cell. Otherwise as `numeric`."""
    if "." not in ref:
        raise SpecError(
            f"Expected `entity.column`, got {clip_text(ref)}", hint="a request field is read by c.numeric"
        )
    return _scalar("numeric", (ref,), name or ref, transform, center, scale, clip, locals())


def ratio(
    numerator: str,
    denominator: str,
    *,
    transform: Transform | None = None,
    center: Center | None = None,
    scale: Scale | None = None,
    clip: Clip | None = None,
    steps: Sequence[StepGiven] = (),
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
    max_age: str | None = None,
) -> Column:
    """numerator / denominator of two raw numbers, 1 cell; a denominator of zero is `null`."""
    default = f"{numerator}_over_{denominator}"
    return _scalar(
        "ratio", (numerator, denominator), name or default, transform, center, scale, clip, locals()
    )


def difference(
    left: str,
    right: str,
    *,
    transform: Transform | None = None,
    center: Center | None = None,
    scale: Scale | None = None,
    clip: Clip | None = None,
    steps: Sequence[StepGiven] = (),
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
    max_age: str | None = None,
) -> Column:
    """left - right of two raw numbers, 1 cell."""
    return _scalar(
        "difference",
        (left, right),
        name or f"{left}_minus_{right}",
        transform,
        center,
        scale,
        clip,
        locals(),
    )


def product(
    left: str,
    right: str,
    *,
    transform: Transform | None = None,
    center: Center | None = None,
    scale: Scale | None = None,
    clip: Clip | None = None,
    steps: Sequence[StepGiven] = (),
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
    max_age: str | None = None,
) -> Column:
    """left * right of two raw numbers, 1 cell."""
    return _scalar(
        "product", (left, right), name or f"{left}_times_{right}", transform, center, scale, clip, locals()
    )


def elapsed(
    since: str,
    until: str | None = None,
    *,
    unit: Literal["s", "m", "h", "d"] = "s",
    transform: Transform | None = None,
    center: Center | None = None,
    scale: Scale | None = None,
    clip: Clip | None = None,
    steps: Sequence[StepGiven] = (),
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
    max_age: str | None = None,
) -> Column:
    """Time from `since` to `until` (None: the spec's event time) in `unit`, negative when `since` is later; 1 cell."""
    if unit not in UNITS_NS:
        raise SpecError(f"Expected unit `s`, `m`, `h` or `d`, got {clip_text(unit)}")
    refs = (since,) if until is None else (since, until)
    return _scalar(
        "elapsed",
        refs,
        name or f"{since}_to_{until or 'now'}",
        transform,
        center,
        scale,
        clip,
        locals(),
        unit=unit,
    )


def boolean(
    ref: str,
    *,
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
    max_age: str | None = None,
) -> Column:
    """A boolean as 1 or 0, 1 cell."""
    return checked(Column(kind="boolean", name=name or ref, refs=(ref,), **_outcomes(locals())))


def raw(
    ref: str,
    *,
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
    max_age: str | None = None,
) -> Column:
    """The raw value in the tensor's dtype, 1 cell: text for a model with a string input, an exact 64-bit id, a number."""
    return checked(Column(kind="raw", name=name or ref, refs=(ref,), **_outcomes(locals())))


def categorical(
    ref: str,
    *,
    encoding: Literal["index", "onehot", "target"] = "index",
    vocabulary: str | None = None,
    max_size: int | None = None,
    min_count: int = 1,
    oov: Literal["first", "last", "zeros", "refuse"] = "first",
    smoothing: float = 20.0,
    folds: int = 5,
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
    max_age: str | None = None,
) -> Column:
    """A category (text, integer or boolean) through a vocabulary that `fit` learns, most frequent value first.

    Args:
        encoding: "index" = the code, 1 cell; "onehot" = one cell a code; "target" = the mean of the label over the
            training rows of the category, smoothed towards the overall mean, 1 cell (`fit_transform(table, label=...)`
            gives the training rows out-of-fold values; that is the only place where training and serving differ).
        vocabulary: name of a shared `ri.Vocabulary` of the spec; its own `oov` then applies.
        max_size, min_count: rarer values are out of the vocabulary.
        oov: code of a value that is not in the vocabulary: "first" (0, known values from 1), "last", "zeros" (one-hot only:
            no cell is set), or "refuse" (FeatureRangeError).
        smoothing: rows that the overall mean weighs (Micci-Barreca 2001). folds: out-of-fold parts.
    """
    if encoding not in ("index", "onehot", "target"):
        raise SpecError(f"Expected encoding `index`, `onehot` or `target`, got {clip_text(encoding)}")
    if oov not in ("first", "last", "zeros", "refuse"):
        raise SpecError(f"Expected oov `first`, `last`, `zeros` or `refuse`, got {clip_text(oov)}")
    if oov == "zeros" and encoding != "onehot":
        raise SpecError('oov="zeros" exists for encoding="onehot" only', hint='use oov="first" or "last"')
    return checked(
        Column(
            kind="categorical",
            name=name or ref,
            refs=(ref,),
            encoding=encoding,
            vocabulary=vocabulary,
            max_size=_positive("max_size", max_size),
            min_count=_positive("min_count", min_count) or 1,
            oov=oov,
            smoothing=smoothing,
            folds=folds,
            **_outcomes(locals()),
        )
    )


def bins(
    ref: str,
    edges: Sequence[float],
    *,
    values: Sequence[float] | None = None,
    cells: Sequence[str] | None = None,
    on: float | Sequence[float] = 1.0,
    off: float | Sequence[float] = 0.0,
    transform: Transform | None = None,
    center: Center | None = None,
    scale: Scale | None = None,
    clip: Clip | None = None,
    steps: Sequence[StepGiven] = (),
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
    max_age: str | None = None,
) -> Column:
    """Which of len(edges) + 1 bins a number is in: how many edges are at or below it (`numpy.digitize`).

    Args:
        edges: ascending. The number is first clipped, transformed and so on, as in `numeric`.
        values: by bin, the number of the cell; None: 0, 1, 2, ...
        cells: names, one a bin: the bin's cell is set, the others are not. None: 1 cell with the number.
        on, off: what a cell holds when it is set, and when it is not; one number, or one a cell.
    A missing value gives NaN; with `cells`, none is set.
    """
    named = None if cells is None else tuple(cells)
    n = len(edges) + 1
    if named is not None and values is not None:
        raise SpecError("Expected values or cells of bins, got both")
    return _scalar(
        "bins",
        (ref,),
        name or f"{ref}_bin",
        transform,
        center,
        scale,
        clip,
        locals(),
        edges=tuple(_as_float(e) for e in edges),
        values=tuple(map(float, range(n))) if values is None else tuple(_as_float(v) for v in values),
        cells=named,
        **_on_and_off(named, on, off),
    )


def lookup(
    ref: str,
    values: Mapping[Any, float | None],
    *,
    other: float | Literal["refuse"] | None = None,
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
    max_age: str | None = None,
) -> Column:
    """The number that is declared for a value (text, integer, boolean, number), 1 cell: a risk by country, a code by plan.

    Args:
        values: value -> number; None gives NaN. Floats are compared as they are.
        other: for values that are not listed: a number, None = NaN, or "refuse" (FeatureRangeError).
        null and the other outcomes: a default is the number of the cell itself; "use" gives NaN.
    """
    return checked(
        Column(
            kind="lookup",
            name=name or ref,
            refs=(ref,),
            keys=tuple(_key(k) for k in values),
            values=tuple(_number_or_nan(v) for v in values.values()),
            other=other if isinstance(other, str) else _number_or_nan(other),
            **_outcomes(locals()),
        )
    )


def missing(
    ref: str,
    *,
    name: str | None = None,
    on_stale: Outcome = "use",
    max_age: str | None = None,
) -> Column:
    """1 where a value of any type is not there, whatever the reason, else 0; 1 cell. What is stale is there."""
    return lookup(
        ref, {}, other=0.0, name=name or f"{ref}_missing", null=1.0, on_stale=on_stale, max_age=max_age
    )


def onehot(
    ref: str,
    groups: Mapping[str, Any] | Sequence[Any],
    *,
    other: str | None = None,
    none: Sequence[Any] = (),
    refuse_other: bool = False,
    on: float | Sequence[float] = 1.0,
    off: float | Sequence[float] = 0.0,
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
    max_age: str | None = None,
) -> Column:
    """A declared one-hot: a cell a group of values. `categorical(encoding="onehot")` learns the values instead.

    Args:
        groups: cell -> the value or the list of values that set it; None among them = a missing value. Or just values:
            then each has a cell, named "ref=value".
        other: name of the cell for values that are not listed; None: no cell is set. refuse_other: a FeatureRangeError.
        none: values that are known and set no cell.
        on, off: what a cell holds when it is set, and when it is not; one number, or one a cell.
        null and the other outcomes: an action ("use": no cell is set), or the name of a cell.
    """
    if not isinstance(groups, Mapping):
        groups = {f"{name or ref}={value}": value for value in groups}
    cells = tuple(groups)
    place = {cell: float(at) for at, cell in enumerate(cells)}
    keys: list[Key] = []
    codes: list[float | None] = []
    outcomes = {"unknown": unknown, "null": null, "on_stale": on_stale, "on_unavailable": on_unavailable}
    for at, given in enumerate([*groups.values(), *([none] if len(none) else [])]):
        for value in given if isinstance(given, (list, tuple, set, frozenset)) else [given]:
            code = float(at) if at < len(cells) else None
            if value is not None:
                keys.append(_key(value))
                codes.append(code)
            elif null != "use":
                raise SpecError(
                    f"null= is said twice: a group holds None - at column {clip_text(name or ref)}"
                )
            elif code is not None:
                outcomes["null"] = code
    for outcome, given in outcomes.items():
        if isinstance(given, str) and given not in ACTIONS:
            if given not in place:
                raise SpecError(f"Expected an action or a cell for {outcome}, got {clip_text(given)}")
            outcomes[outcome] = place[given]
    if other is not None and other not in place:
        raise SpecError(f"Expected one of the cells for other, got {clip_text(other)}")
    if refuse_other and other is not None:
        raise SpecError("Expected other= or refuse_other=True, got both")
    return checked(
        Column(
            kind="lookup",
            name=name or ref,
            refs=(ref,),
            keys=tuple(keys),
            values=tuple(codes),
            other="refuse" if refuse_other else None if other is None else place[other],
            cells=cells,
            **_on_and_off(cells, on, off),
            **_outcomes({**outcomes, "max_age": max_age}),
        )
    )


def hashed(
    *refs: str,
    buckets: int,
    seed: int = 0,
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
    max_age: str | None = None,
) -> Column:
    """Bucket number of a value, or of a cross of several, 1 cell; the same on every machine.

    One value: xxh64(bytes, seed) % buckets, where bytes are the UTF-8 of text or the 8 little-endian bytes of an integer,
    boolean or timestamp (ns). A cross: xxh64 of the little-endian hashes of its parts one after the other, a null part
    counting as hash 0. Method: Weinberger et al. 2009, doi:10.1145/1553374.1553516.
    """
    if not refs:
        raise SpecError("hashed() needs at least one field")
    return checked(
        Column(
            kind="hashed",
            name=name or "_x_".join(map(str, refs)),
            refs=tuple(refs),
            buckets=buckets,
            seed=seed,
            **_outcomes(locals()),
        )
    )


def time(
    ref: str,
    part: str,
    *,
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
    max_age: str | None = None,
) -> Column:
    """A part of a timestamp in the spec's time zone, 1 cell.

    `part`: second, minute, hour, minute_of_day, day_of_week (Monday = 0), hour_of_week, day_of_month, day_of_year, month,
    quarter, year, is_weekend; all but the last two also with `_sin` and `_cos`: of 2 pi (value - smallest) / period.
    """
    base, cyclic = _split_part(part)
    if base not in TIME_PARTS or (cyclic and TIME_PARTS[base] is None):
        known = ", ".join(TIME_PARTS)
        raise SpecError(f"Expected a part of a timestamp ({known}; `_sin`, `_cos`), got {clip_text(part)}")
    return checked(
        Column(kind="time", name=name or f"{ref}_{part}", refs=(ref,), part=part, **_outcomes(locals()))
    )


def equal(
    left: str,
    right: str,
    *,
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
    max_age: str | None = None,
) -> Column:
    """1 where two raw values are equal, else 0; 1 cell. Both are text, or both are numbers."""
    return checked(
        Column(kind="equal", name=name or f"{left}_equals_{right}", refs=(left, right), **_outcomes(locals()))
    )


def embedding(
    ref: str,
    *,
    size: int,
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
    max_age: str | None = None,
) -> Column:
    """A vector of `size` numbers from an entity table, `size` cells. A default fills every cell."""
    return checked(
        Column(
            kind="embedding",
            name=name or ref,
            refs=(ref,),
            size=_positive("size", size),
            **_outcomes(locals()),
        )
    )


def dot(
    left: str,
    right: str,
    *,
    size: int,
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
    max_age: str | None = None,
) -> Column:
    """Dot product of two vectors of `size` numbers, 1 cell; summed in 8 fixed lanes, so the same bits everywhere."""
    return checked(
        Column(
            kind="dot",
            name=name or f"{left}_dot_{right}",
            refs=(left, right),
            size=_positive("size", size),
            **_outcomes(locals()),
        )
    )


def cosine(
    left: str,
    right: str,
    *,
    size: int,
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
    max_age: str | None = None,
) -> Column:
    """Cosine of two vectors of `size` numbers, 1 cell; a vector of length zero is `null`."""
    return checked(
        Column(
            kind="cosine",
            name=name or f"{left}_cosine_{right}",
            refs=(left, right),
            size=_positive("size", size),
            **_outcomes(locals()),
        )
    )


def sequence(
    ref: str,
    *,
    length: int,
    encoding: Literal["index", "hashed", "number"] = "index",
    vocabulary: str | None = None,
    max_size: int | None = None,
    min_count: int = 1,
    oov: Literal["first", "last", "refuse"] = "first",
    buckets: int | None = None,
    seed: int = 0,
    pad: float | int = 0,
    keep: Literal["last", "first"] = "last",
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
) -> Column:
    """A list field, cut to `length` (`keep` its last or first items) and padded at the end; `length` cells.

    Items are codes of a vocabulary ("index"), hash buckets ("hashed", as `hashed`) or plain numbers ("number"). The mask
    of the tensor, where declared, is 1 for an item and 0 for padding. A null or empty list is all padding.
    Index codes keep 0 for padding only if `pad` is outside the codes: with oov="first", code 0 means "unknown item", so
    give `pad=-1` or use the mask where the model must tell the two apart.
    """
    if encoding not in ("index", "hashed", "number"):
        raise SpecError(f"Expected encoding `index`, `hashed` or `number`, got {clip_text(encoding)}")
    if (encoding == "hashed") != (buckets is not None):
        raise SpecError('`buckets` goes with encoding="hashed", and only with it')
    if keep not in ("last", "first") or oov not in ("first", "last", "refuse"):
        raise SpecError(
            f"Expected keep `last` or `first` and oov `first`, `last` or `refuse`, got {keep!r}, {oov!r}"
        )
    return checked(
        Column(
            kind="sequence",
            name=name or ref,
            refs=(ref,),
            size=_positive("length", length),
            encoding=encoding,
            vocabulary=vocabulary,
            max_size=_positive("max_size", max_size),
            min_count=_positive("min_count", min_count) or 1,
            oov=oov,
            buckets=buckets,
            seed=seed,
            pad=pad,
            keep=keep,
            **_outcomes({**locals(), "max_age": None}),
        )
    )


def window(
    entity: str,
    what: Literal["count", "sum", "mean", "min", "max", "distinct"],
    *,
    on: str,
    over: str,
    of: str | None = None,
    where: str | None = None,
    current: Literal["include", "exclude"] = "include",
    delay: str | None = None,
    pane: str | None = None,
    scale: int | None = None,
    transform: Transform | None = None,
    center: Center | None = None,
    clip: Clip | None = None,
    name: str | None = None,
    unknown: Outcome = None,
    null: Outcome = "use",
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
) -> Column:
    """A number over the recent events of an entity, 1 cell: "how many payments of this card in the last hour".

    Args:
        entity: whose events; its key fields stand in the stream too.
        what: count of events, sum, mean, min, max of a number, or how many distinct values (exact to 64, then 64).
        on: name of the stream (`FeatureSpec(streams=...)`).
        of: the stream's field; none for count.
        where: comparisons that an event must meet: "amount > 100 and channel == 'online'". A null field meets none.
        over: length, such as "1h", "24h", "30d".
        current: whether the event that is being scored counts ("include": also when it is only asked about).
        delay: the window ends so long before now: "7d" for labels that take a week to come.
        pane: width of its parts; `over` and `delay` are multiples of it. None: a 30th of `over`, or about that.
        scale: values are kept as whole numbers of 1/scale (100: cents), so that every order of events gives the same
            bits; needed for float fields, 1 for integers and booleans.
    The window at moment t is the last over/pane panes up to the one that holds t: left edge at a border of panes, not
    at t - over. An entity without events has count, sum and distinct 0, and no mean, min, max (`null`).
    A window that has not run for its whole length yet is `stale`; an entity whose key is null is `unknown`; a store that
    does not answer makes it `unavailable`.
    """
    over_ns = parse_duration_ns(over)
    delay_ns = 0 if delay is None else parse_duration_ns(delay)
    definition = WindowDef(
        entity=entity,
        what=what,
        on=on,
        of=of,
        where=() if where is None else parse_where(where),
        over_ns=over_ns,
        pane_ns=_default_pane(over_ns, delay_ns) if pane is None else parse_duration_ns(pane),
        current=current,
        delay_ns=delay_ns,
        scale=scale,
    )
    return _of_window(
        definition,
        name,
        "_".join(map(str, (entity, what, *([] if of is None else [of]), over))),
        transform,
        center,
        clip,
        locals(),
    )


def lag(
    entity: str,
    *,
    of: str,
    lags: Sequence[int],
    fill: Outcome,
    on: str | None = None,
    where: str | None = None,
    step: str = "1d",
    scale: int | None = None,
    transform: Transform | None = None,
    center: Center | None = None,
    clip: Clip | None = None,
    name: str | None = None,
    unknown: Outcome = None,
    on_stale: Outcome = "use",
    on_unavailable: Outcome = None,
) -> tuple[Column, ...]:
    """Sums over whole steps of the calendar, so many steps back: the units sold yesterday and a week ago; 1 cell each.

    Args:
        of, where, scale: as in `window`. on: name of the stream; None where the spec has only one.
        lags: steps back from the one that holds the moment, 1 or more. Each gives a column, and a spec takes the tuple.
        step: "1d" = days of the spec's time zone (a day of 23 or 25 hours is one day); "1h", "7d". Steps are counted from
            1 January 1970, a Thursday.
        fill: what a step without events is: a default (0), or "use" for NaN. The other outcomes are as in `window`.
        name: columns are called `{name}_{lag}{unit}`; None: `{entity}_lag_{of}_{lag}{unit}` ("item_lag_units_7d").
    """
    step_ns = parse_duration_ns(step)
    given = [lags] if isinstance(lags, int) else list(lags)
    if not given:
        raise SpecError("Expected lags such as [1, 7, 28], got none")
    null = fill
    columns = []
    for back in given:
        if isinstance(back, bool) or not isinstance(back, int) or not 1 <= back <= MAX_LAG:
            raise SpecError(
                f"Expected lags from 1 to {MAX_LAG} steps, got {clip_text(back)}",
                hint="lag 0 would be the step that is not over yet: use c.window for the time up to now",
            )
        definition = WindowDef(
            entity=entity,
            what="lag",
            on=on or "",
            of=of,
            where=() if where is None else parse_where(where),
            pane_ns=step_ns,
            current="exclude",
            scale=scale,
            lag=back,
        )
        tail = f"{back * int(step[:-1])}{step[-1]}"
        own = None if name is None else f"{name}_{tail}"
        auto = f"{entity}_lag_{of}_{tail}"
        columns.append(_of_window(definition, own, auto, transform, center, clip, locals()))
    if len({col.name for col in columns}) < len(columns):
        raise SpecError(f"Expected every lag once, got {clip_text(lags)}")
    return tuple(columns)


# Kind -> how many references it takes, and which fields of `Column` mean something for it beside name, refs and outcomes.
_SCALAR = frozenset({"transform", "center", "scale", "clip", "steps", "max_age_ns"})
_TABLE = frozenset({"values", "cells", "on", "off"})
_CODED = frozenset({"encoding", "vocabulary", "max_size", "min_count", "oov"})
_KINDS: dict[str, tuple[int, int, frozenset[str]]] = {
    "numeric": (1, 1, _SCALAR | {"window"}),
    "ratio": (2, 2, _SCALAR),
    "difference": (2, 2, _SCALAR),
    "product": (2, 2, _SCALAR),
    "elapsed": (1, 2, _SCALAR | {"unit"}),
    "bins": (1, 1, _SCALAR | _TABLE | {"edges"}),
    "lookup": (1, 1, _TABLE | {"keys", "other", "max_age_ns"}),
    "boolean": (1, 1, frozenset({"max_age_ns"})),
    "raw": (1, 1, frozenset({"max_age_ns"})),
    "categorical": (1, 1, _CODED | {"smoothing", "folds", "max_age_ns"}),
    "hashed": (1, MAX_CROSS, frozenset({"buckets", "seed", "max_age_ns"})),
    "time": (1, 1, frozenset({"part", "max_age_ns"})),
    "equal": (2, 2, frozenset({"max_age_ns"})),
    "embedding": (1, 1, frozenset({"size", "max_age_ns"})),
    "dot": (2, 2, frozenset({"size", "max_age_ns"})),
    "cosine": (2, 2, frozenset({"size", "max_age_ns"})),
    "sequence": (1, 1, _CODED | {"size", "buckets", "seed", "pad", "keep"}),
}
_ENCODINGS = {"categorical": ("index", "onehot", "target"), "sequence": ("index", "hashed", "number")}
_COMMON = frozenset({"kind", "name", "refs", "unknown", "null", "on_stale", "on_unavailable"})


def checked(column: Column) -> Column:
    """The column, if all of it can mean something, wherever it comes from: its function, or features.json.

    What depends on other parts of the spec (types, dtypes, vocabularies) is checked there. Raises: SpecError.
    """
    c = column
    if c.kind not in _KINDS:
        raise SpecError(f"Unknown kind of column {clip_text(c.kind)}")
    fewest, most, own = _KINDS[c.kind]
    where = f"at column {clip_text(c.name)}"
    texts = (
        c.name,
        *c.refs,
        *(o for o in (c.unknown, c.null, c.on_stale, c.on_unavailable) if isinstance(o, str)),
    )
    if not c.name or not all(isinstance(text, str) and _is_utf8(text) for text in texts):
        raise SpecError(f"Expected a name and references that are text, got {clip_text(c.refs)} - {where}")
    if c.window is not None:
        _checked_window(c, where)
        fewest = 0  # one that the spec is to name reads "its window", whatever its name
    if not fewest <= len(c.refs) <= most:
        raise SpecError(f"Expected {fewest} to {most} references for c.{c.kind}, got {len(c.refs)} - {where}")
    for field, default in zip(
        Column.__struct_fields__[-len(Column.__struct_defaults__) :], Column.__struct_defaults__, strict=True
    ):
        if field not in own and field not in _COMMON and getattr(c, field) != default:
            raise SpecError(f"`{field}` means nothing for c.{c.kind} - {where}")
    if c.kind in _ENCODINGS and c.encoding not in _ENCODINGS[c.kind]:
        raise SpecError(f"Expected encoding {_ENCODINGS[c.kind]}, got {clip_text(c.encoding)} - {where}")
    if c.kind == "time":
        base, wave = _split_part(c.part or "")
        if base not in TIME_PARTS or (wave and TIME_PARTS[base] is None):
            raise SpecError(f"Expected a part of a timestamp, got {clip_text(c.part)} - {where}")
    if c.transform not in (None, *TRANSFORMS) or c.unit not in UNITS_NS or c.keep not in ("last", "first"):
        raise SpecError(
            f"Expected a known transform, unit and keep, got {clip_text((c.transform, c.unit, c.keep))} - {where}"
        )
    needs_size = c.kind in ("embedding", "dot", "cosine", "sequence")
    needs_buckets = c.kind == "hashed" or c.encoding == "hashed"
    for field, needed, low, high in (
        ("size", needs_size, 1, MAX_SIZE),
        ("buckets", needs_buckets, 1, 2**31 - 1),
        ("seed", True, 0, 2**63 - 1),
        ("min_count", True, 1, 2**63 - 1),
        ("max_size", False, 1, 2**31 - 1),
        ("folds", True, 2, 2**31 - 1),
        ("max_age_ns", False, 1, 2**62),
    ):
        value = getattr(c, field)
        absent = value is None and not needed
        if not absent and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
            raise SpecError(
                f"Expected a whole number from {low} to {high} for `{field}`, got {clip_text(value)} - {where}"
            )
    if c.buckets is not None and not needs_buckets:
        raise SpecError(f"`buckets` goes with hashes only - {where}")
    for label, number, words in (("center", c.center, CENTERS), ("scale", c.scale, SCALES)):
        if number is not None and not (number in words if isinstance(number, str) else _is_finite(number)):
            raise SpecError(
                f"Expected a finite number or one of {words} for {label}, got {clip_text(number)} - {where}"
            )
    if c.scale == 0:
        raise SpecError(f"Expected scale != 0 - {where}")
    if c.clip is not None and c.clip != "train":
        bounds = c.clip if isinstance(c.clip, tuple) and len(c.clip) == 2 else ("?", "?")
        low_, high_ = bounds
        if not all(bound is None or _is_finite(bound) for bound in bounds) or (
            low_ is not None and high_ is not None and low_ > high_  # type: ignore[operator]  # both are numbers
        ):
            raise SpecError(
                f'Expected "train" or finite (low, high) for clip, got {clip_text(c.clip)} - {where}'
            )
    _checked_steps(c, where)
    if c.kind in ("bins", "lookup"):
        _checked_table(c, where)
    if not (_is_finite(c.smoothing) and c.smoothing >= 0):
        raise SpecError(f"Expected smoothing >= 0, got {clip_text(c.smoothing)} - {where}")
    for outcome in (c.unknown, c.null, c.on_stale, c.on_unavailable):
        if outcome is not None and not isinstance(outcome, str) and not _is_finite(outcome):
            raise SpecError(f"Expected a default that float64 holds, got {clip_text(outcome)} - {where}")
    if not _is_finite(c.pad):
        raise SpecError(f"Expected a pad that float64 holds, got {clip_text(c.pad)} - {where}")
    if c.null is None or c.on_stale is None:
        raise SpecError(f"null and on_stale take an action or a default, not None - {where}")
    return column


def _checked_steps(c: Column, where: str) -> None:
    if len(c.steps) > MAX_STEPS:
        raise SpecError(f"Expected at most {MAX_STEPS} steps, got {len(c.steps)} - {where}")
    for step in c.steps:
        wanted = STEPS.get(step.op)
        if wanted is None:
            raise SpecError(f"Expected a step of {tuple(STEPS)}, got {clip_text(step.op)} - {where}")
        numbers = (step.value, step.high)
        if any(n is not None for n in numbers[wanted:]) or not all(_is_finite(n) for n in numbers[:wanted]):
            raise SpecError(
                f"Expected {wanted or 'no'} finite numbers with step {clip_text(step.op)}, got {clip_text(numbers)} - {where}"
            )
        if step.op == "divide" and step.value == 0:
            raise SpecError(f"Expected a step that divides by something else than 0 - {where}")
        if step.op == "clip" and step.value > step.high:  # type: ignore[operator]  # both are numbers
            raise SpecError(f"Expected low <= high in a step that clips, got {clip_text(numbers)} - {where}")


def _checked_table(c: Column, where: str) -> None:
    """Values by bin or by key, and the cells that they set. Raises: SpecError."""
    n = len(c.keys or ())
    if c.kind == "bins":
        edges = c.edges or ()
        ascending = all(a < b for a, b in pairwise(edges))
        if not 1 <= len(edges) <= MAX_SIZE or not all(map(_is_finite, edges)) or not ascending:
            raise SpecError(f"Expected 1 to {MAX_SIZE} ascending edges, got {clip_text(c.edges)} - {where}")
        n = len(edges) + 1
    else:
        keys = c.keys or ()
        kinds = {str if isinstance(k, str) else float for k in keys if not isinstance(k, bool)}
        fine = all(_is_utf8(k) if isinstance(k, str) else _is_finite(k) for k in keys)
        if (
            c.keys is None
            or n > MAX_KEYS
            or len(kinds) > 1
            or not fine
            or any(isinstance(k, bool) for k in keys)
        ):
            raise SpecError(
                f"Expected up to {MAX_KEYS} texts, or numbers, as keys, got {clip_text(c.keys)} - {where}"
            )
        if len(set(keys)) != n:
            raise SpecError(f"Expected every key once - {where}")
        if c.other is not None and c.other != "refuse" and not _is_finite(c.other):
            raise SpecError(
                f'Expected a number, None or "refuse" for other, got {clip_text(c.other)} - {where}'
            )
    if c.values is None or len(c.values) != n or not all(v is None or _is_finite(v) for v in c.values):
        raise SpecError(f"Expected {n} finite numbers as values, got {clip_text(c.values)} - {where}")
    if c.cells is None:
        if c.on is not None or c.off is not None:
            raise SpecError(f"on and off go with cells - {where}")
        return
    size = len(c.cells)
    if not 1 <= size <= MAX_SIZE or not all(isinstance(t, str) and t and _is_utf8(t) for t in c.cells):
        raise SpecError(f"Expected 1 to {MAX_SIZE} names of cells, got {clip_text(c.cells)} - {where}")
    for label, numbers in (("on", c.on), ("off", c.off)):
        if numbers is not None and (len(numbers) != size or not all(map(_is_finite, numbers))):
            raise SpecError(f"Expected {size} finite numbers for {label}, got {clip_text(numbers)} - {where}")
    codes = [*c.values, None if isinstance(c.other, str) else c.other]
    if c.kind == "lookup":  # a default is the cell that is set
        codes += [o for o in (c.unknown, c.null, c.on_stale, c.on_unavailable) if not isinstance(o, str)]
    for code in codes:
        if code is not None and not (code == int(code) and 0 <= code < size):
            raise SpecError(f"Expected one of {size} cells, got number {clip_text(code)} - {where}")


def _of_window(
    definition: WindowDef,
    name: str | None,
    auto: str,
    transform: str | None,
    center: float | str | None,
    clip_range: Clip | None,
    given: dict[str, Any],
) -> Column:
    """A numeric column over a window. Without a name of its own it has no reference yet: the spec completes the name."""
    refs = () if name is None else (name,)
    return _scalar(
        "numeric",
        refs,
        auto if name is None else name,
        transform,
        center,
        None,
        clip_range,
        {**given, "max_age": None},
        window=definition,
    )


def _default_pane(over_ns: int, delay_ns: int) -> int:
    for parts in PANES:
        pane_ns = over_ns // parts
        if over_ns % parts == 0 and pane_ns % 10**9 == 0 and delay_ns % pane_ns == 0:
            return pane_ns
    raise SpecError(
        f"Expected a delay that is a multiple of a part of `over`, got {over_ns // 10**9} s and {delay_ns // 10**9} s",
        hint="say which: pane= divides both",
    )


def _checked_window(c: Column, where: str) -> None:
    """What can be said of a window without its stream. Raises: SpecError."""
    w = c.window
    assert w is not None
    if c.kind != "numeric" or c.refs not in ((), (c.name,)):
        raise SpecError(f"Expected a column that reads the window of its own name - {where}")
    if c.max_age_ns is not None:
        raise SpecError(f"a window has no max_age: it is stale until it has run for its length - {where}")
    if "." in c.name:
        raise SpecError(f"Expected a window's name without a dot, which means a stored column - {where}")
    texts = (w.entity, w.on, *(() if w.of is None else (w.of,)), *(t.field for t in w.where))
    texts += tuple(t.value for t in w.where if isinstance(t.value, str))
    if not w.entity or not all(isinstance(text, str) and _is_utf8(text) for text in texts):
        raise SpecError(f"Expected text as entity, stream and fields of a window - {where}")
    lagged = w.what == "lag"
    if w.what not in (*WINDOW_KINDS, "lag"):
        raise SpecError(f"Expected {', '.join(WINDOW_KINDS)}, got {clip_text(w.what)} - {where}")
    if (w.of is None) != (w.what == "count"):
        if w.of is None:
            raise SpecError(f"Expected `of`, the field whose {w.what} is taken - {where}")
        raise SpecError(
            f"`of` means nothing for a count of events - {where}",
            hint=f'count some of them by where=, or the values by "distinct" of {w.of!r}',
        )
    if w.current not in ("include", "exclude"):
        raise SpecError(f'Expected current "include" or "exclude", got {clip_text(w.current)} - {where}')
    for label, value, low, high in (
        ("over", w.over_ns, 0 if lagged else 1, 0 if lagged else MAX_WINDOW_NS),
        ("pane", w.pane_ns, 10**9, MAX_WINDOW_NS),
        ("delay", w.delay_ns, 0, 0 if lagged else MAX_WINDOW_NS),
        ("lag", w.lag, 1 if lagged else 0, MAX_LAG if lagged else 0),
    ):
        if not low <= value <= high:
            raise SpecError(f"Expected {label} from {low} to {high} (ns or steps), got {value} - {where}")
    if w.pane_ns % 10**9:
        raise SpecError(f"Expected panes of whole seconds - {where}")
    if w.scale is not None and w.what in ("count", "distinct"):
        raise SpecError(f"`scale` means nothing for {w.what} - {where}")
    if w.scale is not None and (
        isinstance(w.scale, bool) or not isinstance(w.scale, int) or not 1 <= w.scale <= MAX_SCALE
    ):
        raise SpecError(
            f"Expected a whole number from 1 to {MAX_SCALE} for scale, got {clip_text(w.scale)} - {where}",
            hint="100 keeps cents",
        )
    if not lagged:
        if w.over_ns % w.pane_ns or w.delay_ns % w.pane_ns:
            raise SpecError(
                f"Expected `over` and `delay` to be multiples of `pane`, got {w.over_ns // 10**9} s, "
                f"{w.delay_ns // 10**9} s and {w.pane_ns // 10**9} s - {where}",
            )
        if w.keep_panes > MAX_KEEP:
            raise SpecError(
                f"Expected at most {MAX_KEEP - 2} panes in `over` and `delay` together, "
                f"got {w.n_panes} and {w.delay_panes} - {where}",
                hint="take a wider pane=",
            )
    for term in w.where:
        if term.op not in COMPARISONS:
            raise SpecError(f"Expected one of {COMPARISONS} in where, got {clip_text(term.op)} - {where}")
        if isinstance(term.value, float) and not math.isfinite(term.value):
            raise SpecError(f"Expected finite numbers in where, got {clip_text(term.value)} - {where}")


_TERM = r"""\s*(?P<field>[A-Za-z_]\w*)\s*(?P<op><=|>=|==|!=|<|>)\s*
        (?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<text>'[^']*'|"[^"]*")|(?P<bool>[Tt]rue|[Ff]alse))
        \s*(?:(?P<and>and\b)|$)"""


def parse_where(text: str) -> tuple[Where, ...]:
    """Terms of "amount > 100 and channel == 'online'". Raises: SpecError for anything but comparisons joined by `and`."""
    hint = "comparisons of a field with a number, a quoted text, true or false, joined by `and`"
    if not isinstance(text, str):
        raise SpecError(f"Expected where as text, got {clip_text(text)}", hint=hint)
    terms: list[Where] = []
    at, more = 0, True
    term = re.compile(_TERM, re.VERBOSE)
    while more:
        match = term.match(text, at)
        if match is None:
            raise SpecError(
                f"Expected {hint}, got {clip_text(text[at:].strip() or text)} in where {clip_text(text)}",
                hint="several windows can be added up by the model; `or` has no place in one",
            )
        number, quoted = match["number"], match["text"]
        value: bool | int | float | str
        if number is not None:
            value = int(number) if re.fullmatch(r"[+-]?\d+", number) else float(number)
        else:
            value = quoted[1:-1] if quoted is not None else match["bool"].lower() == "true"
        if not isinstance(value, (str, bool)) and not _is_finite(value):
            raise SpecError(f"Expected numbers that float64 holds, got {clip_text(number)} in where")
        terms.append(Where(match["field"], match["op"], value))
        at, more = match.end(), match["and"] is not None
    return tuple(terms)


def accumulator_definition(
    window: WindowDef, *, key_types: Sequence[str], of_type: str | None, tz: str
) -> bytes:
    """Canonical JSON of everything that the state behind a window depends on.

    Args:
        window: as the spec keeps it (its stream named, constants in the type of their field).
        key_types: of the entity's key fields, in order. of_type: of the field `of`. tz: of the spec.
    Windows that differ in length, delay, `current` or the name of their column share state; so do sums, means and lags.
    """
    found: dict[str, Any] = {
        "entity": window.entity,
        "key": list(key_types),
        "stream": window.on,
        "kind": window.accumulator_kind,
        "pane_ns": window.pane_ns,
        # an event meets all or not: the order of comparisons changes nothing
        "where": sorted({(t.field, t.op, json_text(t.value)) for t in window.where}),
    }
    if window.of is not None:
        found["of"] = window.of
    if window.accumulator_kind == "distinct":
        found["of_type"] = of_type  # 1 and "1" are other bytes
    elif window.scale is not None:
        found["scale"] = window.scale
    if window.what == "lag":
        found["calendar"] = tz
    return msgspec.json.encode(found, order="deterministic")


def json_text(value: object) -> str:
    """A constant with its type: 1, 1.0, true and "1" differ."""
    return msgspec.json.encode(value).decode()


def accumulator_key(window: WindowDef, *, key_types: Sequence[str], of_type: str | None, tz: str) -> bytes:
    """SHA-256 (32 bytes) of `accumulator_definition`: the name of that state in every store."""
    import hashlib  # noqa: PLC0415 - brings OpenSSL's library; importing the package need not

    return hashlib.sha256(
        accumulator_definition(window, key_types=key_types, of_type=of_type, tz=tz)
    ).digest()


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _is_finite(value: object) -> bool:
    """A number that float64 holds: not NaN, not infinite, not an integer of hundreds of digits."""
    try:
        return isinstance(value, (float, int)) and math.isfinite(value)
    except OverflowError:
        return False


def parse_duration_ns(text: str) -> int:
    """Nanoseconds of a duration such as "90s", "15m", "24h", "30d"."""
    match = re.fullmatch(r"([0-9]{1,9})(s|m|h|d)", text) if isinstance(text, str) else None
    if match is None or int(match[1]) == 0:
        raise SpecError(f"Expected a duration such as `90s`, `15m`, `24h` or `30d`, got {clip_text(text)}")
    return int(match[1]) * UNITS_NS[match[2]]


def duration_text(ns: int) -> str:
    """As it was declared, in the largest unit that divides it: "24h" for a day of hours is "1d"."""
    unit = next(unit for unit in ("d", "h", "m", "s") if ns % UNITS_NS[unit] == 0)
    return f"{ns // UNITS_NS[unit]}{unit}"


def clip_text(value: object) -> str:
    return f"`{clip(value)}`"


def _as_float(value: object) -> float:
    """A Python float of any real number; `checked` refuses what is left."""
    try:
        return float(value)  # type: ignore[arg-type]  # what has no float is refused below
    except (TypeError, ValueError, OverflowError):
        raise SpecError(f"Expected a number, got {clip_text(value)}") from None


def _number_or_nan(value: object) -> float | None:
    """A number as a column keeps it: NaN is None, because JSON has none."""
    number = None if value is None else _as_float(value)
    return None if number is None or math.isnan(number) else number


def _key(value: object) -> Key:
    """A key of a lookup: text, or a number as Python's own; booleans are 0 and 1."""
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (bool, int)):
        return int(value)
    if isinstance(value, float):
        return float(value) + 0.0  # -0.0 and 0.0 are one key
    raise SpecError(f"Expected text or a number as the key of a lookup, got {clip_text(value)}")


def _on_and_off(
    cells: Sequence[str] | None, on: float | Sequence[float], off: float | Sequence[float]
) -> dict[str, Any]:
    """What cells hold, by cell; nothing where it is the plain 1 and 0."""
    out: dict[str, Any] = {}
    for label, given, plain in (("on", on, 1.0), ("off", off, 0.0)):
        one = not isinstance(given, Sequence)
        numbers = (_as_float(given),) * len(cells or ()) if one else tuple(map(_as_float, given))  # type: ignore[arg-type]
        if cells is None and not (one and given == plain):
            raise SpecError(f"{label}= goes with cells, and this column has one number")
        out[label] = None if cells is None or all(v == plain for v in numbers) else numbers
    return out


def _split_part(part: str) -> tuple[str, str | None]:
    for suffix in ("_sin", "_cos"):
        if part.endswith(suffix):
            return part[: -len(suffix)], suffix[1:]
    return part, None


def _positive(label: str, value: int | None) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise SpecError(f"Expected a whole number >= 1 for {label}, got {clip_text(value)}")
    return value


def _outcomes(given: dict[str, Any]) -> dict[str, Any]:
    """The four outcomes and the age limit out of a caller's `locals()`, checked."""
    out: dict[str, Any] = {}
    for key in ("unknown", "null", "on_stale", "on_unavailable"):
        value = given[key]
        if isinstance(value, (float, int)) and not _is_finite(value):
            raise SpecError(
                f"Expected a finite default for {key}, got {clip_text(value)}", hint='"use" gives NaN'
            )
        if value is not None and not isinstance(value, (str, int, float, bool)):
            raise SpecError(
                f'Expected "use", "refuse", "review" or a default for {key}, got {clip_text(value)}'
            )
        out[key] = value
    if out["null"] is None or out["on_stale"] is None:
        raise SpecError("null and on_stale take an action or a default, not None")
    if given.get("max_age") is not None:
        out["max_age_ns"] = parse_duration_ns(given["max_age"])
    return out


def _steps(given: Any) -> tuple[Step, ...]:
    """Steps as a column keeps them; `checked` says what is wrong with their numbers."""
    if isinstance(given, str):
        raise SpecError(f"Expected a sequence of steps, got {clip_text(given)}", hint='steps=["log1p"]')
    found: list[Step] = []
    for one in given:
        if isinstance(one, Step):
            found.append(one)
            continue
        parts: tuple[Any, ...] = (
            (one,) if isinstance(one, str) else tuple(one) if isinstance(one, (tuple, list)) else ()
        )
        if not parts or not isinstance(parts[0], str) or len(parts) != 1 + STEPS.get(parts[0], 0):
            raise SpecError(
                f"Expected steps such as `log1p`, `('add', 1.0)` or `('clip', 0.0, 1.0)`, got {clip_text(one)}",
                hint=f"the steps are {', '.join(STEPS)}",
            )
        found.append(Step(parts[0], *(_as_float(v) for v in parts[1:])))
    return tuple(found)


def _scalar(
    kind: str,
    refs: Sequence[str],
    name: str,
    transform: str | None,
    center: float | str | None,
    scale: float | str | None,
    clip_range: Clip | None,
    given: dict[str, Any],
    **more: Any,
) -> Column:
    """A column of one float64 value: check what all such kinds share."""
    if transform is not None and transform not in TRANSFORMS:
        raise SpecError(f"Expected transform {TRANSFORMS}, got {clip_text(transform)}")
    for label, value, words in (("center", center, CENTERS), ("scale", scale, SCALES)):
        ok = value is None or (
            value in words if isinstance(value, str) else not isinstance(value, bool) and _is_finite(value)
        )
        if not ok:
            raise SpecError(f"Expected a finite number or one of {words} for {label}, got {clip_text(value)}")
    if scale == 0:
        raise SpecError("Expected scale != 0")
    if isinstance(clip_range, str):
        if clip_range != "train":
            raise SpecError(f'Expected clip "train" or (low, high), got {clip_text(clip_range)}')
    elif clip_range is not None:
        if not isinstance(clip_range, (tuple, list)) or len(clip_range) != 2:
            raise SpecError(f'Expected clip "train" or (low, high), got {clip_text(clip_range)}')
        low, high = clip_range
        bad = any(v is not None and not _is_finite(v) for v in (low, high))
        if bad or (low is not None and high is not None and low > high):
            raise SpecError(f"Expected finite low <= high for clip, got {clip_text(clip_range)}")
        clip_range = (None if low is None else float(low), None if high is None else float(high))
    return checked(
        Column(
            kind=kind,
            name=name,
            refs=tuple(refs),
            transform=transform,  # type: ignore[arg-type]  # checked above
            center=center if center is None or isinstance(center, str) else float(center),
            scale=scale if scale is None or isinstance(scale, str) else float(scale),
            clip=clip_range,
            steps=_steps(given.get("steps", ())),
            **more,
            **_outcomes(given),
        )
    )
