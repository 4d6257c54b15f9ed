"""Rows of features in a dict or in cachetools' TTLCache, copied one by one into the matrix of a request.

This is what an in-process feature cache is made of today: string key -> a small NumPy row. The rows are float32 arrays
of one width; `gather` fills a matrix that was allocated before, so that only look-ups and copies are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from cachetools import TTLCache
from numpy.typing import NDArray

__all__ = ["dict_of_rows", "gatherer", "three_lookups", "ttl_cache_of_rows"]

Row = NDArray[np.float32]


def dict_of_rows(keys: Sequence[str], values: NDArray[np.float32]) -> dict[str, Row]:
    """A plain dict; every row is an array of its own, as inserted one at a time."""
    return {key: row.copy() for key, row in zip(keys, values, strict=True)}


def ttl_cache_of_rows(keys: Sequence[str], values: NDArray[np.float32]) -> TTLCache[str, Row]:
    """A TTLCache that holds all rows and in which nothing expires during a run."""
    cache: TTLCache[str, Row] = TTLCache(maxsize=len(keys), ttl=24 * 3600.0)
    cache.update(dict_of_rows(keys, values))
    return cache


def gatherer(
    rows: Mapping[str, Row], n_keys: int, width: int
) -> Callable[[Sequence[str]], NDArray[np.float32]]:
    """keys -> matrix of shape (n_keys, width), the same one at every call."""
    out = np.empty((n_keys, width), np.float32)

    def gather(keys: Sequence[str]) -> NDArray[np.float32]:
        for i, key in enumerate(keys):
            out[i] = rows[key]
        return out

    return gather


def three_lookups(
    tables: Sequence[Mapping[str, Row]], widths: Sequence[int]
) -> Callable[[Sequence[str]], NDArray[np.float32]]:
    """One key a table -> one row of all their columns: three dict gets and three copies."""
    first, second, third = tables
    a, b = widths[0], widths[0] + widths[1]
    out = np.empty(sum(widths), np.float32)
    head, middle, tail = out[:a], out[a:b], out[b:]

    def look_up(keys: Sequence[str]) -> NDArray[np.float32]:
        head[:] = first[keys[0]]
        middle[:] = second[keys[1]]
        tail[:] = third[keys[2]]
        return out

    return look_up
