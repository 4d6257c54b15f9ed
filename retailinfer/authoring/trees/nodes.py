"""What parsers of trees share: thresholds that mean the same in another precision, sets as bits, a check that nodes are trees.

Rules:
  * A threshold is only ever replaced by one that sends every number the same way; where there is none, the parser says so.
  * Arrays that a file brought are checked here before anybody walks them: whole arrays at a time, in bounded time.
What the arrays mean: `runtime.trees.Forest`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailinfer.authoring.trees import Unfit
from retailinfer.errors import ModelError

__all__ = [
    "MAX_CATEGORY",
    "MAX_DEPTH",
    "MAX_NODES",
    "MAX_TREES",
    "below",
    "bit_sets",
    "check_trees",
    "check_trees_in_order",
    "float32_below",
    "owners",
    "widened",
]

MAX_DEPTH = 4096  # the native core's
MAX_TREES = 100_000
MAX_NODES = 1 << 26
MAX_CATEGORY = 1 << 22  # the largest code that a set of categories may hold: half a megabyte of bits
MAX_WORDS = 1 << 24


def below(values: NDArray[Any]) -> NDArray[Any]:
    """The next number below each, in their own precision, so that `<` becomes `<=`; -inf has none and stays."""
    with np.errstate(over="ignore", under="ignore"):
        found: NDArray[Any] = np.nextafter(values, values.dtype.type(-np.inf))
    return found


def float32_below(values: NDArray[Any]) -> NDArray[np.float32]:
    """The largest float32 that is not above each double: `x <= value` keeps its meaning for every float32 x."""
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    return np.where(near.astype(np.float64) > values, np.nextafter(near, np.float32(-np.inf)), near)


def widened(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The largest double that rounds to at most each float32: what a double is compared with where its source rounds it first.

    Between two neighbours a double rounds to the nearer one, and in the middle to the even one.
    """
    values = np.ascontiguousarray(values, np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        above = np.nextafter(values, np.float32(np.inf))
        middle = values.astype(np.float64) * 0.5 + above.astype(np.float64) * 0.5
    edge = float(np.finfo(np.float32).max) + 2.0**103  # from here on a double becomes infinite
    middle = np.where(np.isinf(above) & ~np.isinf(values), edge, middle)
    middle = np.where(np.isneginf(values), -edge, middle)
    even = (values.view(np.uint32) & 1) == 0
    found: NDArray[np.float64] = np.where(np.isposinf(values), np.inf, np.where(even, middle, below(middle)))
    return found


def bit_sets(sets: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """`set_ends` and `set_words` of sets of codes. Codes are at least 0. Raises: ModelError for what takes too much room."""
    largest = [int(one.max()) if len(one) else -1 for one in sets]
    ends = np.cumsum([0, *(code // 32 + 1 for code in largest)], dtype=np.int64)
    if max(largest, default=0) > MAX_CATEGORY or ends[-1] > MAX_WORDS:
        raise ModelError(
            f"Expected codes of categories up to {MAX_CATEGORY} and {MAX_WORDS} words of sets, "
            f"got {max(largest)} and {ends[-1]}"
        )
    words = np.zeros(int(ends[-1]), np.uint32)
    codes = np.concatenate([np.zeros(0, np.int64), *sets])
    start = np.repeat(ends[:-1], [len(one) for one in sets])
    np.bitwise_or.at(words, start + (codes >> 5), np.uint32(1) << (codes & 31).astype(np.uint32))
    return ends, words


def check_trees(
    roots: NDArray[Any], left: NDArray[Any], right: NDArray[Any], inner: NDArray[np.bool_], what: str
) -> NDArray[np.int32]:
    """The number of the tree that each node belongs to.

    Args:
        roots: first node of each tree. left, right: children of the nodes for which `inner` is true.
        what: the model, as messages call it.
    Raises: ModelError for a child that is not there, a way down that never ends or is too long, and more than a forest may
        have; Unfit for a node that two nodes lead to, or none.
    """
    n, at = len(left), np.flatnonzero(inner)
    if len(roots) > MAX_TREES or n > MAX_NODES:
        raise ModelError(
            f"Expected at most {MAX_TREES} trees and {MAX_NODES} nodes, got {len(roots)} and {n} - at {what}"
        )
    for name, ids, of in (("root", roots, None), ("node", left[at], at), ("node", right[at], at)):
        wrong = np.flatnonzero((ids < 0) | (ids >= n))
        if len(wrong):
            where = int(wrong[0]) if of is None else int(of[wrong[0]])
            raise ModelError(
                f"Expected a node below {n}, got {int(ids[wrong[0]])} - at {name} {where} of {what}"
            )
    parents = np.bincount(np.concatenate([roots, left[at], right[at]]).astype(np.int64), minlength=n)
    if (parents > 1).any():
        if _runs_in_circles(
            left, right, inner, np.bincount(np.concatenate([left[at], right[at]]), minlength=n)
        ):
            raise ModelError(
                f"Expected trees at most {MAX_DEPTH} deep, got a way that never ends - at {what}"
            )
        raise Unfit(f"two ways lead to its node {int(parents.argmax())}")
    tree = np.full(n, -1, np.int32)
    level, owner = np.asarray(roots, np.int64), np.arange(len(roots), dtype=np.int32)
    for _ in range(MAX_DEPTH + 1):
        tree[level] = owner
        going = inner[level]
        level, owner = level[going], owner[going]
        if len(level) == 0:
            break
        level, owner = (
            np.concatenate([left[level], right[level]]).astype(np.int64),
            np.concatenate([owner, owner]),
        )
    else:
        raise ModelError(f"Expected trees at most {MAX_DEPTH} deep - at {what}")
    if n and tree.min() < 0:
        raise Unfit(f"no tree leads to its node {int(tree.argmin())}")
    return tree


def check_trees_in_order(
    roots: NDArray[Any], left: NDArray[Any], right: NDArray[Any], inner: NDArray[np.bool_], what: str
) -> None:
    """As `check_trees`, of a file whose trees stand one after the other, each with its root first.

    Raises: ModelError for all that `check_trees` refuses; it names the first tree that is none.
    """
    try:
        check_trees(roots, left, right, inner, what)
    except (ModelError, Unfit):
        starts = roots.tolist()
        for i, (start, end) in enumerate(zip(starts, [*starts[1:], len(left)], strict=True)):
            own = slice(start, end)
            try:
                check_trees(
                    np.zeros(1, np.int64), left[own] - start, right[own] - start, inner[own], f"tree {i}"
                )
            except Unfit as exc:
                raise ModelError(f"Expected a tree, but {exc} - at tree {i}") from None
        raise


def _runs_in_circles(
    left: NDArray[Any], right: NDArray[Any], inner: NDArray[np.bool_], parents: NDArray[np.int64]
) -> bool:
    """Whether some way down never ends: nodes that nobody leads to any more are taken away, level by level."""
    level, seen = np.flatnonzero(parents == 0), 0
    for _ in range(MAX_DEPTH + 1):
        seen += len(level)
        level = level[inner[level]]
        children, counts = np.unique(np.concatenate([left[level], right[level]]), return_counts=True)
        parents[children] -= counts
        level = children[parents[children] == 0].astype(np.int64)
    return seen < len(left)


def owners(tree: NDArray[Any], n_trees: int, fed: NDArray[np.bool_]) -> NDArray[np.int32] | None:
    """The one output that each tree feeds; None where a leaf feeds several or none, or a tree's leaves differ.

    Args:
        tree: of each leaf. fed: shape (leaves, outputs).
    """
    if fed.shape[1] == 1 and fed.all():
        return np.zeros(n_trees, np.int32)
    if (fed.sum(axis=1) != 1).any():
        return None
    of_leaf = fed.argmax(axis=1)
    owner = np.zeros(n_trees, np.int32)
    owner[tree] = of_leaf
    return owner if (owner[tree] == of_leaf).all() else None
