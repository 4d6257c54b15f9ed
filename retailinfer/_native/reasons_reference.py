"""The readable twin of reasons of forests: expectations, ways, Shapley values from their definition. Tests compare with it.

Rules:
  * Written from the definitions in tree_reasons.h and reasons.pyi, not from the C; speed does not matter here.
  * Sums are double and in the order that is given there, so that expectations, quanta and amounts have the same bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailinfer._native.forest_reference import forest_leaves, goes_left

__all__ = ["amounts", "base_of", "path_contributions", "pick", "quantum_of", "shap_contributions"]

NARROW, WIDE = 32767, 1 << 30
Arrays = Mapping[str, NDArray[Any]]


def expectations(arrays: Arrays, output: int, n_outputs: int) -> list[float]:
    """Expectation of each node, shape (nodes); zero in trees of other outputs."""
    found = [0.0] * len(arrays["feature"])

    def expect(node: int) -> float:
        if arrays["feature"][node] < 0:
            found[node] = _value(arrays, int(arrays["left"][node]), output, n_outputs)
        else:
            left, right = expect(int(arrays["left"][node])), expect(int(arrays["right"][node]))
            share = share_left(arrays, node)
            found[node] = share * left + (1 - share) * right
        return found[node]

    for root in _roots(arrays, output, n_outputs):
        expect(root)
    return found


def share_left(arrays: Arrays, node: int) -> float:
    """Share of a node's training rows that went left; a half where nobody came by, or nobody counted."""
    if len(arrays["cover"]) == 0:
        return 0.5
    left = float(arrays["cover"][arrays["left"][node]])
    total = left + float(arrays["cover"][arrays["right"][node]])
    return left / total if 0 < total < math.inf else 0.5


def base_of(arrays: Arrays, *, output: int = 0, n_outputs: int = 1, divisor: float = 1.0) -> float:
    """Expectations of the roots, over what a forest that averages divides by, and the forest's base."""
    found = expectations(arrays, output, n_outputs)
    total = 0.0
    for root in _roots(arrays, output, n_outputs):
        total += found[root]
    return total / divisor + float(arrays["base"][output])


def path_contributions(
    arrays: Arrays, rows: NDArray[Any], *, output: int = 0, n_outputs: int = 1, divisor: float = 1.0
) -> NDArray[np.float64]:
    """What each feature adds on the way of each row, shape (rows, features)."""
    found = expectations(arrays, output, n_outputs)
    out = np.zeros((len(rows), rows.shape[1]))
    ways = _ways(arrays, output, n_outputs)
    for i, leaves in enumerate(forest_leaves(arrays, rows)):
        for leaf in leaves:
            way = ways.get(int(leaf), [])
            for above, below in reversed(list(itertools.pairwise(way))):
                out[i, arrays["feature"][above]] += found[below] - found[above]
    return out / divisor


def leaf_steps(
    arrays: Arrays, groups: Sequence[int], *, output: int = 0, n_outputs: int = 1, sign: int = 1
) -> dict[int, dict[int, float]]:
    """Leaf -> group -> what the leaf's way adds to it, from the root down; groups in the order in which they come up."""
    found = expectations(arrays, output, n_outputs)
    steps: dict[int, dict[int, float]] = {}
    for leaf, way in sorted(_ways(arrays, output, n_outputs).items()):
        own: dict[int, float] = {}
        for above, below in itertools.pairwise(way):
            group = groups[arrays["feature"][above]]
            if group >= 0:
                own[group] = own.get(group, 0.0) + (found[below] - found[above])
        steps[leaf] = {group: sign * amount for group, amount in own.items()}
    return steps


def quantum_of(steps: Mapping[int, Mapping[int, float]], n_trees: int) -> tuple[float, int]:
    """(largest step, its quanta): 32767, fewer with very many trees, or 2^30 where usual steps would be too small."""
    all_steps = [amount for own in steps.values() for amount in own.values()]
    largest = max(map(abs, all_steps), default=0.0)
    if largest == 0:
        return 0.0, NARROW
    shares = [amount / largest for amount in all_steps]
    if sum(math.frexp(share)[1] for share in shares) < -10 * sum(share != 0 for share in shares):
        return largest, WIDE
    return largest, min(NARROW, (2**31 - 1) // max(1, n_trees))


def amounts(
    arrays: Arrays,
    groups: Sequence[int],
    rows: NDArray[Any],
    *,
    n_groups: int,
    output: int = 0,
    n_outputs: int = 1,
    sign: int = 1,
) -> NDArray[np.int64]:
    """Sums of all groups in quanta, shape (rows, groups)."""
    steps = leaf_steps(arrays, groups, output=output, n_outputs=n_outputs, sign=sign)
    largest, limit = quantum_of(steps, len(_roots(arrays, output, n_outputs)))
    out = np.zeros((len(rows), n_groups), np.int64)
    for i, leaves in enumerate(forest_leaves(arrays, rows)):
        for leaf in leaves:
            for group, amount in steps.get(int(leaf), {}).items():
                out[i, group] += int(np.rint(amount / largest * limit)) if largest else 0
    return out


def pick(sums: NDArray[np.int64], most: int) -> list[tuple[int, ...]]:
    """The up to `most` groups that push up, strongest first, equal ones by number; one tuple a row."""
    ranked = [sorted((-int(amount), group) for group, amount in enumerate(row) if amount > 0) for row in sums]
    return [tuple(group for _, group in row[:most]) for row in ranked]


def shap_contributions(
    arrays: Arrays, row: NDArray[Any], *, output: int = 0, n_outputs: int = 1, divisor: float = 1.0
) -> NDArray[np.float64]:
    """Shapley values of one row, shape (features,), by their definition: over all subsets of the features that a tree asks.

    A subset's worth is the tree's expectation where the subset's features are the row's and all others are averaged over the
    training rows (Lundberg et al. 2018, Algorithm 1).
    """
    out = np.zeros(len(row))
    for root in _roots(arrays, output, n_outputs):
        asked = sorted({int(arrays["feature"][n]) for n in _nodes(arrays, root) if arrays["feature"][n] >= 0})
        worth = {
            some: _worth(arrays, row, root, frozenset(some), output, n_outputs)
            for size in range(len(asked) + 1)
            for some in itertools.combinations(asked, size)
        }
        for feature in asked:
            for some, value in worth.items():
                if feature in some:
                    continue
                weight = math.factorial(len(some)) * math.factorial(len(asked) - len(some) - 1)
                joined = tuple(sorted((*some, feature)))
                out[feature] += weight / math.factorial(len(asked)) * (worth[joined] - value)
    return out / divisor


def _worth(
    arrays: Arrays, row: NDArray[Any], node: int, known: frozenset[int], output: int, n_outputs: int
) -> float:
    feature = int(arrays["feature"][node])
    if feature < 0:
        return _value(arrays, int(arrays["left"][node]), output, n_outputs)
    left, right = (int(arrays[side][node]) for side in ("left", "right"))
    if feature in known:
        child = left if goes_left(arrays, row, node) else right
        return _worth(arrays, row, child, known, output, n_outputs)
    share = share_left(arrays, node)
    total = 0.0
    for weight, child in ((share, left), (1 - share, right)):
        if weight:
            total += weight * _worth(arrays, row, child, known, output, n_outputs)
    return total


def _roots(arrays: Arrays, output: int, n_outputs: int) -> list[int]:
    """Roots of the trees that add to an output."""
    one_value = len(arrays["targets"]) == len(arrays["roots"])
    return [
        int(root)
        for t, root in enumerate(arrays["roots"])
        if not one_value or n_outputs == 1 or arrays["targets"][t] == output
    ]


def _value(arrays: Arrays, leaf: int, output: int, n_outputs: int) -> float:
    if len(arrays["targets"]) == len(arrays["roots"]):
        return float(arrays["values"][leaf])
    return float(arrays["values"][leaf * n_outputs + output])


def _nodes(arrays: Arrays, node: int) -> Iterator[int]:
    yield node
    if arrays["feature"][node] >= 0:
        yield from _nodes(arrays, int(arrays["left"][node]))
        yield from _nodes(arrays, int(arrays["right"][node]))


def _ways(arrays: Arrays, output: int, n_outputs: int) -> dict[int, list[int]]:
    """Leaf -> the nodes from its root down to it."""
    found: dict[int, list[int]] = {}

    def walk(node: int, way: list[int]) -> None:
        way = [*way, node]
        if arrays["feature"][node] < 0:
            found[int(arrays["left"][node])] = way
            return
        walk(int(arrays["left"][node]), way)
        walk(int(arrays["right"][node]), way)

    for root in _roots(arrays, output, n_outputs):
        walk(root, [])
    return found
