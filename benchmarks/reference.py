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

from benchmarks.workloads import ColumnDef, Values

__all__ = ["bucket", "cyclic", "day_of_week", "hour", "learn_vocabularies", "matrix"]

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
