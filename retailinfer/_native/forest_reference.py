"""The readable twin of the tree kernels: one row, one tree, one node at a time. Tests compare bits with it.

Rules:
  * Written from the definition in trees.pyi, not from the kernels; speed does not matter here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["forest_leaves", "forest_sums", "goes_left"]

_LEQ, _EQ, _IN_TRUNCATED, _IN_POSITIVE, _IN_EXACT = range(5)
_ZERO = np.float32(1e-35)  # LightGBM's, whatever the rows are


def forest_sums(
    arrays: Mapping[str, NDArray[Any]],
    rows: NDArray[Any],
    *,
    n_outputs: int = 1,
    base_first: bool = False,
    doubles: bool = False,
    average: bool = False,
    per_output: bool = False,
) -> NDArray[np.float32]:
    """Sums before the last step, shape (rows, n_outputs). Arguments: those of `trees.TreeModel`."""
    kind: Any = np.float64 if doubles else np.float32
    values, base = arrays["values"].astype(kind), arrays["base"].astype(kind)
    width = 1 if len(arrays["targets"]) == len(arrays["roots"]) else n_outputs
    out = np.zeros((len(rows), n_outputs), kind)
    for i, leaves in enumerate(forest_leaves(arrays, rows)):
        sums = base.copy() if base_first else np.zeros(n_outputs, kind)
        for t, leaf in enumerate(leaves):
            if width == 1:
                sums[arrays["targets"][t]] += values[leaf]
            else:
                sums += values[leaf * width : (leaf + 1) * width]
        if average:
            sums = sums / kind(max(1, len(arrays["roots"])) / (n_outputs if per_output else 1))
        out[i] = sums if base_first else sums + base
    return out.astype(np.float32)


def forest_leaves(arrays: Mapping[str, NDArray[Any]], rows: NDArray[Any]) -> NDArray[np.int32]:
    """Number of the leaf that each tree gives each row, shape (rows, trees)."""
    out = np.empty((len(rows), len(arrays["roots"])), np.int32)
    for i, row in enumerate(rows):
        for t, root in enumerate(arrays["roots"]):
            out[i, t] = arrays["left"][_leaf(arrays, row, int(root))]
    return out


def _leaf(arrays: Mapping[str, NDArray[Any]], row: NDArray[Any], node: int) -> int:
    while arrays["feature"][node] >= 0:
        node = int(arrays["left" if goes_left(arrays, row, node) else "right"][node])
    return node


def goes_left(arrays: Mapping[str, NDArray[Any]], row: NDArray[Any], node: int) -> bool:
    """What a node says to a row."""
    x, missing, rule = row[arrays["feature"][node]], arrays["missing"][node], arrays["rule"][node]
    if missing == 1:
        x = x.dtype.type(0) if np.isnan(x) else x
    elif np.isnan(x) or (missing == 2 and abs(x) <= _ZERO):
        return bool(arrays["missing_left"][node])
    if rule == _LEQ:
        return bool(float(x) <= arrays["threshold"][node])
    if rule == _EQ:
        return bool(float(x) == arrays["threshold"][node])
    if rule == _IN_POSITIVE:
        with np.errstate(over="ignore"):
            x = np.float32(x)
    if not (x > -1 if rule == _IN_TRUNCATED else x >= 0):
        return False
    first, last = arrays["set_ends"][arrays["category"][node] :][:2]
    if first == last or x >= 32 * (last - first) or (rule == _IN_EXACT and x != np.floor(x)):
        return False
    return bool(arrays["set_words"][first + int(x) // 32] >> np.uint32(int(x) % 32) & np.uint32(1))
