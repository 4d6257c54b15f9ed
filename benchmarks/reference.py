"""The columns of the workloads in plain NumPy: what the library's answers are checked against.

Rules:
  * Written from the definitions of the columns, not from the library's code; nothing here imports it.
  * All maths in float64, rounded to float32 once at the end.
  * A vocabulary holds the values of the training rows, most frequent first (equal counts: in order of value); code 0
    is "not in the vocabulary".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from benchmarks.workloads import FRAUD_FULL, ColumnDef, Values, entity_table, key_index

__all__ = [
    "SECONDS",
    "bucket",
    "cyclic",
    "day_of_week",
    "full_values",
    "hour",
    "learn_vocabularies",
    "matrix",
    "pane_seconds",
    "window",
    "windows",
]

Vocabularies = Mapping[str, Mapping[str, int]]  # column -> value -> code


def learn_vocabularies(columns: Sequence[ColumnDef], values: Values) -> dict[str, dict[str, int]]:
    """Codes of every categorical column, learned from training rows."""
    out = {}
    for column in columns:
        if column.kind == "categorical":
            counts: Counter[str] = Counter(values[column.refs[0]])
            ordered = sorted(counts, key=lambda value: (-counts[value], value))
            out[column.name] = {value: code for code, value in enumerate(ordered, start=1)}
    return out


def bucket(value: str, buckets: int) -> int:
    """The bucket of a hashed column: xxh64 of the UTF-8 bytes, seed 0."""
    return int(xxhash.xxh64_intdigest(value.encode())) % buckets


def hour(at_s: float) -> int:
    """Hour of the day in UTC."""
    return int(at_s // 3600) % 24


def day_of_week(at_s: float) -> int:
    """Monday is 0; 1970-01-01 was a Thursday."""
    return (int(at_s // 86_400) + 3) % 7


def cyclic(wave: str, value: int, period: int) -> float:
    """Sine or cosine of value / period of a turn; exactly 0 at quarter turns, where pi in binary is not exact."""
    result = {"sin": math.sin, "cos": math.cos}[wave](2.0 * math.pi * value / period)
    return 0.0 if abs(result) < 1e-12 else result


_PERIODS = {"hour": (hour, 24), "day_of_week": (day_of_week, 7)}


def _time_part(part: str, at_s: NDArray[np.float64]) -> NDArray[np.float64]:
    base, _, wave = part.rpartition("_")
    take, period = _PERIODS[base]
    return np.array([cyclic(wave, take(at), period) for at in at_s])


def _column(column: ColumnDef, values: Values, codes: Vocabularies, event_time: str) -> Any:
    refs = [values[ref] for ref in column.refs if ref in values]
    match column.kind:
        case "window":
            return values[column.name]
        case "numeric" | "stored":
            return np.log1p(refs[0]) if column.options.get("transform") == "log1p" else refs[0]
        case "boolean":
            return refs[0].astype(np.float64)
        case "categorical":
            known = codes[column.name]
            return np.array([known.get(value, 0) for value in refs[0]], np.float64)
        case "hashed":
            seen = {value: bucket(value, column.options["buckets"]) for value in set(refs[0])}
            return np.array([seen[value] for value in refs[0]], np.float64)
        case "time":
            return _time_part(column.refs[1], refs[0])
        case "ratio":
            return refs[0] / refs[1]
        case "difference":
            return refs[0] - refs[1]
        case "elapsed":
            return (values[event_time] - refs[0]) / 86_400.0
    raise ValueError(f"no reference for column kind {column.kind!r}: add it here when the workload gets it")


def matrix(
    columns: Sequence[ColumnDef], values: Values, codes: Vocabularies, *, event_time: str = "at"
) -> NDArray[np.float32]:
    """The model's input, shape (rows, columns), C order. Stored columns are looked up in `values` by reference."""
    n_rows = len(next(iter(values.values())))
    out = np.empty((n_rows, len(columns)), np.float32)
    for j, column in enumerate(columns):
        out[:, j] = _column(column, values, codes, event_time)
    return out


# ------------------------------------------------------------------------------------------------------ fraud-full

SECONDS = {"1h": 3_600, "24h": 86_400, "7d": 7 * 86_400}
_PANES = 30  # the default where it gives whole seconds, as it does for these three


def pane_seconds(over: str) -> int:
    """Width of the panes that a window of this length is cut into."""
    seconds, rest = divmod(SECONDS[over], _PANES)
    if rest:
        raise ValueError(f"a window of {over} has no default of {_PANES} panes: say here which it has")
    return seconds


def windows(columns: Sequence[ColumnDef], before: Values, values: Values) -> dict[str, NDArray[np.float64]]:
    """Window columns of `values`, whose rows are read and then added one after the other, behind those of `before`."""
    n_before = len(before["at"])
    at, amount = (np.concatenate([before[name], values[name]]) for name in ("at", "amount"))
    out = {}
    for column in columns:
        if column.kind == "window":
            field = FRAUD_FULL.entities[column.refs[0]]
            key = np.array([key_index(k) for k in (*before[field], *values[field])])
            out[column.name] = window(column.refs[1], column.options["over"], key, at, amount, first=n_before)
    return out


def window(
    what: str,
    over: str,
    key: NDArray[np.int64],
    at_s: NDArray[np.float64],
    amount: NDArray[np.float64],
    *,
    first: int = 0,
) -> NDArray[np.float64]:
    """One window as each event from number `first` on finds it, itself included; events in the order in which they come.

    By the definition: of all events of the key so far, those whose pane is one of the last 30. Amounts count in whole
    cents, rounded to even.
    """
    pane = np.floor(at_s).astype(np.int64) // pane_seconds(over)
    cents = np.rint(amount * 100).astype(np.int64)
    order = np.argsort(key, kind="stable")
    begins = np.searchsorted(key[order], key[first:], side="left")
    ends = np.searchsorted(key[order], key[first:], side="right")
    out = np.empty(len(key) - first)
    for i, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        own = order[begin:end]
        own = own[own <= first + i]
        inside = own[pane[own] > pane[first + i] - _PANES]
        match what:
            case "count":
                out[i] = len(inside)
            case "sum":
                out[i] = cents[inside].sum() / 100
            case "mean":
                out[i] = cents[inside].sum() / len(inside) / 100
            case "max":
                out[i] = cents[inside].max() / 100
            case _:
                raise ValueError(f"no reference for windows of {what!r}: add it here when a workload gets it")
    return out


def full_values(before: Values, values: Values) -> Values:
    """Requests of fraud-full with their stored columns, by reference, and their windows, by column name."""
    out = dict(values)
    for entity, field in FRAUD_FULL.entities.items():
        rows = np.array([key_index(key) for key in values[field]])
        columns = entity_table(FRAUD_FULL, entity)[1]
        out |= {f"{entity}.{name}": column[rows] for name, column in columns.items()}
    return out | windows(FRAUD_FULL.columns, before, values)
