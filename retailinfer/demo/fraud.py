"""The fraud model of the demo: what it sees, how it is trained, how good it is on later payments.

Rules:
  * Time separates: the model learns from days whose labels were known when the held-out days began.
  * The two specs differ by the velocity columns only, so that their difference is what velocity is worth.
  * The matrix comes out of `FeatureSpec.transform`, the native program that serves.
Data and velocity features: `payments.py`. Replay: `replay.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.demo.metrics import card_precision, ranking_quality
from retailinfer.demo.payments import DAY_S, LABEL_DELAY_S, VELOCITY_COLUMNS, Payments

if TYPE_CHECKING:
    import lightgbm

__all__ = ["FraudData", "FraudQuality", "make_spec", "prepare", "quality", "train"]

REQUEST: Final[dict[str, Any]] = {
    "payment_id": str,
    "at": ri.Timestamp,
    "customer_id": str,
    "terminal_id": str,
    "amount": float,
    "channel": str,
    "merchant_category": str,
    "card_type": str,
    **dict.fromkeys(VELOCITY_COLUMNS, float),
}
_HISTORY_DAYS: Final = 37  # the longest window and the label delay: before that, windows are not full


@dataclass(frozen=True, slots=True)
class FraudData:
    """Payments split by time, with stored columns beside the request fields ("customer.home_x")."""

    train: pa.Table
    held_out: pa.Table
    entities: dict[str, tuple[pa.Table, tuple[str, ...]]]

    @property
    def label(self) -> NDArray[np.bool_]:
        """Fraud or not, of the held-out payments."""
        return np.asarray(self.held_out["fraud"].to_numpy(zero_copy_only=False), np.bool_)


@dataclass(frozen=True, slots=True)
class FraudQuality:
    """How good scores are on the held-out payments."""

    average_precision: float
    auc: float
    card_precision_100: float


def make_spec(*, velocity: bool = True) -> ri.FeatureSpec:
    """What the model sees of a payment; without velocity, only the payment itself and its two profiles."""
    columns = [
        c.numeric("amount", transform="log1p"),
        c.categorical("channel", encoding="onehot", oov="zeros"),
        c.categorical("card_type", encoding="onehot", oov="zeros"),
        c.categorical("merchant_category"),
        c.time("at", "hour_sin"),
        c.time("at", "hour_cos"),
        c.time("at", "day_of_week"),
        c.difference("terminal.x", "customer.home_x", null=0.0, name="east_of_home"),
        c.difference("terminal.y", "customer.home_y", null=0.0, name="north_of_home"),
        c.elapsed("customer.since", unit="d", null=0.0, name="customer_for_days"),
    ]
    if velocity:
        columns += [c.numeric(name) for name in VELOCITY_COLUMNS]
        columns += [
            c.ratio("amount", f"customer_mean_amount_{days}d", null=0.0, name=f"amount_over_mean_{days}d")
            for days in (1, 7, 30)
        ]
    return ri.FeatureSpec(
        request=REQUEST,
        event_time="at",
        entities={"customer": "customer_id", "terminal": "terminal_id"},
        columns=columns,
    )


def prepare(payments: pa.Table, world: Payments, *, held_out_days: int = 21) -> FraudData:
    """Split payments (with velocity columns) by time and join what is stored about customers and terminals."""
    at_s = payments["at"].cast(pa.int64()).to_numpy()
    day = (at_s - at_s[0] // DAY_S * DAY_S) // DAY_S
    held_out_from = int(day[-1]) + 1 - held_out_days
    label_delay_days = LABEL_DELAY_S // DAY_S
    # A short history still gives a week to learn from.
    learn_from = max(0, min(_HISTORY_DAYS, held_out_from - label_delay_days - 7))
    first, last, test = (
        int(np.searchsorted(day, d)) for d in (learn_from, held_out_from - label_delay_days, held_out_from)
    )

    customers = world.customers
    terminals = world.terminals.drop_columns(["merchant_category"])
    wide = payments
    for entity, table in (("customer", customers), ("terminal", terminals)):
        place = pc.index_in(payments[f"{entity}_id"], value_set=table[f"{entity}_id"].combine_chunks())
        for name in table.column_names[1:]:
            wide = wide.append_column(f"{entity}.{name}", table[name].take(place))
    return FraudData(
        train=wide.slice(first, last - first),
        held_out=wide.slice(test),
        entities={"customer": (customers, ("customer_id",)), "terminal": (terminals, ("terminal_id",))},
    )


def train(
    spec: ri.FeatureSpec, data: FraudData, *, n_trees: int = 300
) -> tuple[ri.FeatureSpec, lightgbm.Booster]:
    """Fit the spec and a LightGBM model to the training days. Some fifteen seconds.

    One thread: LightGBM's threads wait for each other by spinning, which on a machine that does other work as well
    takes ten times as long. Two models are rather trained side by side.
    """
    import lightgbm

    spec = spec.fit(data.train)
    matrix = spec.transform(data.train)
    settings = {
        "objective": "binary",
        "num_leaves": 31,
        "max_depth": 6,
        "learning_rate": 0.05,
        "min_child_samples": 50,
        "feature_fraction": 0.7,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "seed": 1,
        "deterministic": True,
        "force_row_wise": True,  # as `deterministic` asks for
        "num_threads": 1,
        "verbose": -1,
    }
    rows = lightgbm.Dataset(
        np.asarray(matrix),
        np.asarray(data.train["fraud"].to_numpy(zero_copy_only=False), np.int8),
        feature_name=list(spec.names),
    )
    return spec, lightgbm.train(settings, rows, n_trees)


def quality(data: FraudData, score: NDArray[np.floating[Any]]) -> FraudQuality:
    """How well scores of the held-out payments find the fraud among them."""
    label = data.label
    day = data.held_out["at"].cast(pa.int64()).to_numpy() // DAY_S
    card = data.held_out["customer_id"].to_numpy(zero_copy_only=False)
    precision, auc = ranking_quality(label, score)
    return FraudQuality(precision, auc, card_precision(day, card, label, score))
