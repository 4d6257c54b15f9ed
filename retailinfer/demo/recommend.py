"""The recommender of the demo: rank 500 products for a household by whether it buys them next week.

Rules:
  * A training week is seen as it would have been when it began; the last week of the data is never trained on.
  * Households weigh the same, however much they buy: as in the measure, the share of households with a hit.
  * The baselines rank the same candidates for the same households.
Data, candidates and entity tables: `grocery.py`. Replay: `replay.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.demo.grocery import LAST_WEEK, N_CANDIDATES, TASTE_SIZE, AsOf, Purchases
from retailinfer.demo.metrics import Interval, paired_bootstrap

if TYPE_CHECKING:
    from sklearn.neural_network import MLPClassifier

__all__ = [
    "HeldOutWeek",
    "K",
    "RankingQuality",
    "best",
    "held_out_week",
    "hits",
    "make_spec",
    "own_history",
    "popular",
    "quality",
    "train",
    "training_rows",
]

K: Final = 10
_NEGATIVES: Final = 0.1  # share of the candidates that were not bought that is trained on


@dataclass(frozen=True, slots=True)
class HeldOutWeek:
    """A week to be predicted. One row of candidates for each household that shopped in it.

    households: shape (n,). candidates: item numbers, shape (n, 500). bought: the same shape.
    bought_keys: pair keys of all purchases of the week, among the candidates or not.
    """

    state: AsOf
    households: NDArray[np.int64]
    candidates: NDArray[np.int64]
    bought: NDArray[np.bool_]
    bought_keys: NDArray[np.int64]

    def rows(self) -> pa.Table:
        """All candidates of all households as one table, household by household."""
        return self.state.rows(np.repeat(self.households, self.candidates.shape[1]), self.candidates.ravel())


@dataclass(frozen=True, slots=True)
class RankingQuality:
    """Share of households with a hit in the first ten, ours and the baselines', and our margin over the history."""

    hit_rate: float
    own_history: float
    popularity: float  # by households that ever bought the product
    popularity_4w: float  # by households that bought it in the four weeks before
    over_own_history: Interval
    n_households: int
    by_length: dict[str, tuple[float, ...]]  # who recommends -> hit rate of its first 1, 2 .. 10


def make_spec() -> ri.FeatureSpec:
    """What the model sees of a household, a product, and the two together."""
    amount: dict[str, Any] = {"transform": "log1p", "center": "mean", "scale": "std", "null": 0.0}
    share: dict[str, Any] = {"center": "mean", "scale": "std", "null": 0.0}
    rate: dict[str, Any] = {"transform": "sqrt", "center": "mean", "scale": "std", "null": 0.0}
    days: dict[str, Any] = {
        "transform": "log1p", "center": "mean", "scale": "std", "clip": (0.0, None), "null": 365.0,
    }  # fmt: skip
    return ri.FeatureSpec(
        request={"household_id": str, "product_id": str, "at": ri.Timestamp},
        event_time="at",
        tz="America/New_York",
        entities={"user": "household_id", "item": "product_id", "pair": ("household_id", "product_id")},
        candidate="item",
        columns=[
            # the household
            c.stored("user.n_trips", **amount),
            c.stored("user.trips_4w", **amount),
            c.stored("user.trips_12w", **amount),
            c.stored("user.n_products", **amount),
            c.stored("user.products_per_trip", **amount),
            c.stored("user.spend_per_trip", **amount),
            c.stored("user.repeat_share", **share),
            c.stored("user.private_share", **share),
            c.elapsed("user.last_trip", unit="d", **days),
            # the product
            c.stored("item.households", **amount),
            c.stored("item.households_12w", **amount),
            c.stored("item.households_4w", **amount),
            c.stored("item.households_1w", **amount),
            c.stored("item.purchases", **amount),
            c.stored("item.repeat_share", **share),
            c.stored("item.gap_days", **days),
            c.stored("item.price", **amount),
            c.stored("item.discount_1w", **share),
            c.stored("item.discount_4w", **share),
            c.stored("item.private", **share),
            c.ratio("item.households_1w", "item.households_4w", **share),
            c.ratio("item.households_4w", "item.households", **share),
            c.categorical("item.department", encoding="onehot", max_size=10, oov="zeros"),
            # the two together
            c.stored("pair.times_bought", **amount),
            c.stored("pair.bought_4w", **amount),
            c.stored("pair.bought_12w", **amount),
            c.stored("pair.recency_3w", **amount),
            c.stored("pair.recency_13w", **amount),
            c.stored("pair.gap_days", **days),
            c.elapsed("pair.last_bought", unit="d", **days),
            c.elapsed("pair.first_bought", unit="d", **days),
            c.ratio("pair.times_bought", "user.n_trips", **rate),
            c.ratio("pair.bought_12w", "user.trips_12w", **rate),
            c.product("user.private_share", "item.private", **share),
            c.equal("user.favourite_department", "item.department", null=0.0),
            c.dot("user.taste", "item.taste", size=TASTE_SIZE, null=0.0),
            c.cosine("user.taste", "item.taste", size=TASTE_SIZE, null=0.0),
        ],
    )


def held_out_week(purchases: Purchases, week: int = LAST_WEEK, *, every: int = 1) -> HeldOutWeek:
    """The candidates of a week and which of them were bought, for every n-th household that shopped."""
    state = purchases.as_of(week)
    households, bought_keys = purchases.bought(week)
    households = households[::every]
    candidates = state.candidates(households, N_CANDIDATES)
    bought = np.isin(purchases.pair_key(households[:, None], candidates), bought_keys)
    return HeldOutWeek(state, households, candidates, bought, bought_keys)


def training_rows(
    purchases: Purchases,
    *,
    n_weeks: int = 8,
    before: int = LAST_WEEK,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[pa.Table, NDArray[np.bool_], NDArray[np.float64]]:
    """Rows, labels and weights of the `n_weeks` weeks before `before`. About two seconds a week.

    All candidates that were bought, and a tenth of the others. A household's purchases of a week weigh one together.
    """
    tables, labels, weights = [], [], []
    for week in range(before - n_weeks, before):
        say(f"week {week} of the training weeks {before - n_weeks} to {before - 1}")
        seen = held_out_week(purchases, week)
        bought = seen.bought.ravel()
        kept = np.flatnonzero(bought | (np.random.default_rng(week).random(len(bought)) < _NEGATIVES))
        household = np.repeat(seen.households, seen.bought.shape[1])[kept]
        tables.append(seen.state.rows(household, seen.candidates.ravel()[kept]))
        labels.append(bought[kept])
        per_household = np.repeat(np.maximum(seen.bought.sum(axis=1), 1), seen.bought.shape[1])[kept]
        weights.append(np.where(bought[kept], 1.0 / per_household, 1.0))
    label, weight = np.concatenate(labels), np.concatenate(weights)
    weight[label] /= weight[label].mean()  # the share of what is bought stays as it was
    return pa.concat_tables(tables), label, weight


def train(
    spec: ri.FeatureSpec,
    rows: pa.Table,
    label: NDArray[np.bool_],
    weight: NDArray[np.float64],
    *,
    n_epochs: int = 4,
) -> tuple[ri.FeatureSpec, MLPClassifier]:
    """Fit the spec, and a small neural network to its matrix. Some ten seconds."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    spec = spec.fit(rows)
    matrix = np.asarray(spec.transform(rows))
    model = MLPClassifier(
        (128, 64), batch_size=1024, learning_rate_init=2e-3, alpha=1e-5, max_iter=n_epochs, random_state=0
    )
    # The matrices of one step are too small to share between threads: that would cost more than it saves.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it stops after `n_epochs` by design
        model.fit(matrix, label, sample_weight=weight)
    return spec, model


def best(week: HeldOutWeek, score: NDArray[np.floating[Any]], *, k: int = K) -> NDArray[np.int64]:
    """The items with the highest scores, which have the shape of the candidates. Ties keep the candidates' order."""
    return np.take_along_axis(week.candidates, np.argsort(-score, axis=1, kind="stable")[:, :k], axis=1)


def own_history(week: HeldOutWeek) -> NDArray[np.int64]:
    """The ten products that each household bought most often (ties: most recently); -1 where it has fewer."""
    own, first = week.state.own_items()
    begin, end = first[week.households], first[week.households + 1]
    rank = np.arange(K)
    place = np.minimum(begin[:, None] + rank, len(own) - 1)
    return np.where(rank < (end - begin)[:, None], own[place], -1)


def popular(week: HeldOutWeek, column: str) -> NDArray[np.int64]:
    """The ten products with the most households, for everybody."""
    top = week.state.popular_items(column)[:K]
    return np.broadcast_to(top, (len(week.households), K))


def hits(week: HeldOutWeek, items: NDArray[np.int64]) -> NDArray[np.bool_]:
    """For each household and length 1, 2 .. k, whether it bought one of its first items. Shape (n, k) -> (n, k)."""
    keys = week.state.purchases.pair_key(week.households[:, None], items)
    bought = np.isin(keys, week.bought_keys) & (items >= 0)
    return np.logical_or.accumulate(bought, axis=1)


def quality(week: HeldOutWeek, recommended: NDArray[np.int64]) -> RankingQuality:
    """How good ten recommended items a household are, best first, beside the baselines. Shape (households, 10)."""
    found = {
        "this ranker": hits(week, recommended),
        "own history": hits(week, own_history(week)),
        "popular, 4 weeks": hits(week, popular(week, "households_4w")),
        "popular ever": hits(week, popular(week, "households")),
    }
    rates = {name: tuple(some.mean(axis=0).tolist()) for name, some in found.items()}
    return RankingQuality(
        hit_rate=rates["this ranker"][-1],
        own_history=rates["own history"][-1],
        popularity=rates["popular ever"][-1],
        popularity_4w=rates["popular, 4 weeks"][-1],
        over_own_history=paired_bootstrap(found["this ranker"][:, -1], found["own history"][:, -1]),
        n_households=len(recommended),
        by_length=rates,
    )
