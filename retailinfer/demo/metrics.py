"""How good scores are: what the demo reports about its two models.

Rules: scores are compared, never calibrated; ties keep the order in which rows came. Everything is deterministic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "card_precision", "paired_bootstrap", "ranking_quality", "recall_by_group"]

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def ranking_quality(label: Bools, score: Floats) -> tuple[float, float]:
    """Average precision, and area under the ROC curve."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    return float(average_precision_score(label, score)), float(roc_auc_score(label, score))


def card_precision(
    day: NDArray[np.int64], card: NDArray[Any], label: Bools, score: Floats, *, k: int = 100
) -> float:
    """Share of the k cards with the highest score of a day that did have fraud on it, averaged over days.

    A card that was found in this way is blocked, and does not count on later days. Definition: the Fraud Detection
    Handbook's "card precision top-k".
    """
    found: set[Any] = set()
    shares = []
    for today in np.unique(day):
        rows = np.flatnonzero(day == today)
        rows = rows[np.argsort(-score[rows], kind="stable")]
        worst_first = dict.fromkeys(name for name in card[rows].tolist() if name not in found)
        top = set(list(worst_first)[:k])
        caught = top & set(card[rows[label[rows]]].tolist())
        shares.append(len(caught) / k)
        found |= caught
    return float(np.mean(shares))


def recall_by_group(group: NDArray[np.integer[Any]], score: Floats, *, share: float) -> dict[int, float]:
    """Of each group of positives (1, 2 ..; 0 = negative), what the `share` of rows with the highest scores holds."""
    looked_at = np.zeros(len(score), bool)
    looked_at[np.argsort(-score, kind="stable")[: int(len(score) * share)]] = True
    return {int(g): float(looked_at[group == g].mean()) for g in np.unique(group[group > 0])}


def paired_bootstrap(ours: Bools, theirs: Bools, *, n_samples: int = 10_000, seed: int = 0) -> Interval:
    """Mean difference over the same units, and the 2.5 and 97.5 % points of its bootstrap distribution."""
    difference = ours.astype(np.int8) - theirs.astype(np.int8)
    # A sample of n units with replacement is a multinomial draw over the three values a difference can have.
    share = [(difference == value).mean() for value in (-1, 0, 1)]
    drawn = np.random.default_rng(seed).multinomial(len(difference), share, n_samples)
    low, high = np.percentile((drawn[:, 2] - drawn[:, 0]) / len(difference), [2.5, 97.5])
    return Interval(float(difference.mean()), float(low), float(high))
