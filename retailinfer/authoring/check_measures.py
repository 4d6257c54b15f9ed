"""What checks compute: how far two distributions, two rankings, two seasons are apart. NumPy in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["histograms", "overlap", "profile", "psi", "psi_of_scores", "rbo", "worse_than_chance"]

BINS = 10
P = 0.9  # weight of depth in `rbo`: the first ten places carry 86 % of it
FLOOR = 1e-4  # share that an empty bin counts as, in PSI


def psi(expected: NDArray[Any] | Sequence[float], found: NDArray[Any] | Sequence[float]) -> float:
    """Population stability index of two sets of counts over the same bins: sum of (f - e) * ln(f / e).

    Empty bins count as a share of 1e-4. Returns: 0 for the same shares; 0.1 is little, 0.25 is much. NaN without counts.
    """
    e, f = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    if not e.sum() > 0 or not f.sum() > 0:
        return math.nan
    e, f = np.maximum(e / e.sum(), FLOOR), np.maximum(f / f.sum(), FLOOR)
    return float(np.sum((f - e) * np.log(f / e)))


def psi_of_scores(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """`psi` over the deciles of the expected values."""
    inner = np.unique(np.quantile(expected, np.linspace(0, 1, BINS + 1))[1:-1])
    counts = [
        np.bincount(np.searchsorted(inner, v, side="left"), minlength=len(inner) + 1)
        for v in (expected, found)
    ]
    return psi(counts[0], counts[1])


def histograms(*values: NDArray[Any], bins: int = 24) -> tuple[list[str], list[list[float]]]:
    """Labels and, for each set of values, the share in each bin of one common grid."""
    low = min(float(v.min()) for v in values if v.size)
    high = max(float(v.max()) for v in values if v.size)
    edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    shares = [(np.histogram(v, edges)[0] / max(v.size, 1)).tolist() for v in values]
    return [f"{edge:.3g}" for edge in edges[:-1]], shares


def rbo(a: Sequence[Hashable], b: Sequence[Hashable], p: float = P) -> float:
    """Rank-biased overlap of two rankings without ties, extrapolated (Webber, Moffat, Zobel 2010, eq. 32).

    Returns: 1 for the same ranking, 0 for nothing in common; 1 for two empty ones.
    """
    short, long = sorted((a, b), key=len)
    s, n = len(short), len(long)
    if s == 0:
        return 1.0 if n == 0 else 0.0
    seen_short: set[Hashable] = set()
    seen_long: set[Hashable] = set()
    common = 0
    overlap_at_s = 0
    total = 0.0
    for depth in range(1, n + 1):
        one = long[depth - 1]
        if depth <= s:
            other = short[depth - 1]
            common += (one == other) or (one in seen_short) + (other in seen_long)
            seen_short.add(other)
        else:
            common += one in seen_short
        seen_long.add(one)
        total += common / depth * p**depth
        if depth == s:
            overlap_at_s = common
        if depth > s:
            total += overlap_at_s * (depth - s) / (depth * s) * p**depth
    tail = ((common - overlap_at_s) / n + overlap_at_s / s) * p**n
    return float((1 - p) / p * total + tail)


def overlap(a: Sequence[Hashable], b: Sequence[Hashable], k: int) -> float:
    """Share of the first k of one that are among the first k of the other; of the shorter one where it has fewer."""
    first, second = a[:k], b[:k]
    most = min(len(first), len(second))
    return len(set(first) & set(second)) / most if most else float(len(first) == len(second))


def profile(values: NDArray[Any], buckets: NDArray[Any], *, least: int = 20) -> dict[int, float]:
    """Bucket -> mean of its values over the mean of all; buckets of fewer than `least` rows are left out."""
    whole = float(values.mean()) if values.size else 0.0
    if whole == 0 or not math.isfinite(whole):
        return {}
    found = {}
    for bucket in np.unique(buckets):
        some = values[buckets == bucket]
        if some.size >= least:
            found[int(bucket)] = float(some.mean()) / whole
    return found


def worse_than_chance(new_only: int, old_only: int) -> bool:
    """Whether more rows went wrong than right beyond two standard deviations (McNemar), of rows both decided."""
    return new_only - old_only > 2 * math.sqrt(new_only + old_only)
