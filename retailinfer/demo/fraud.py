"""The fraud model of the demo: what it sees, how it is trained, how good it is on later payments.

Rules:
  * Time separates: the model learns from days whose labels were known when the held-out days began.
  * Velocity is declared once. `ri.replay` counts it over history for training, a Scorer counts it as requests and labels
    come in: the same kernel. A customer's windows leave the payment itself out; a terminal's see labels, as they come.
  * The two specs differ by the velocity columns only, so that their difference is what velocity is worth.
  * The matrix comes out of `FeatureSpec.transform`, the native program that serves.
Data: `payments.py`. Timing: `replay.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.demo.metrics import card_precision, ranking_quality
from retailinfer.demo.payments import DAY_S, LABEL_DELAY_S, Payments, labels

if TYPE_CHECKING:
    import lightgbm

__all__ = [
    "BANDS",
    "REASONS",
    "REQUEST",
    "VELOCITY_COLUMNS",
    "WINDOWS_D",
    "FraudData",
    "FraudQuality",
    "make_policy",
    "make_spec",
    "prepare",
    "quality",
    "train",
]

WINDOWS_D: Final = (1, 7, 30)
VELOCITY_COLUMNS: Final = (
    *(f"customer_{what}_{days}d" for days in WINDOWS_D for what in ("count", "mean_amount")),
    *(f"terminal_{what}_{days}d" for days in WINDOWS_D for what in ("count", "fraud_share")),
)

REQUEST: Final[dict[str, Any]] = {
    "payment_id": str,
    "at": ri.Timestamp,
    "customer_id": str,
    "terminal_id": str,
    "amount": float,
    "channel": str,
    "merchant_category": str,
    "card_type": str,
}


def _days(days: int) -> str:
    return "a day" if days == 1 else f"{days} days"


BANDS: Final = (("approve", 0.0), ("review", 0.1), ("decline", 0.6))
N_REASONS: Final = 3
# What may be said of a payment, by what a column reads; a column of two values has a name of its own.
REASONS: Final = {
    "amount": "the amount",
    "channel": "how the card was read",
    "card_type": "the kind of card",
    "merchant_category": "the kind of shop",
    "at": "the time of day",
    "east_of_home": "how far east or west of home",
    "north_of_home": "how far north or south of home",
    "customer.since": "how long the customer is known",
    **{f"customer_count_{days}d": f"payments of this customer in {_days(days)}" for days in WINDOWS_D},
    **{f"customer_mean_amount_{days}d": f"what this customer paid in {_days(days)}" for days in WINDOWS_D},
    **{f"amount_over_mean_{days}d": f"the amount, for this customer ({_days(days)})" for days in WINDOWS_D},
    **{
        f"terminal_count_{days}d": f"payments checked at this terminal in {_days(days)}" for days in WINDOWS_D
    },
    **{f"terminal_fraud_share_{days}d": f"fraud at this terminal in {_days(days)}" for days in WINDOWS_D},
}
LABEL: Final[dict[str, Any]] = {"terminal_id": str, "fraud": bool, "known_at": ri.Timestamp}
_HISTORY_DAYS: Final = 37  # the longest window and the label delay: before that, windows are not full


@dataclass(frozen=True, slots=True)
class FraudData:
    """Payments split by time, with stored columns ("customer.home_x") and windows beside the request fields.

    before: all payments before the held-out ones; labels: what was found, of all payments, by the time it was known.
    """

    train: pa.Table
    held_out: pa.Table
    before: pa.Table
    labels: pa.Table
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
        for days in WINDOWS_D:
            over = f"{days}d"
            columns += [
                c.window(
                    "customer", "count", on="payment", over=over, current="exclude", name=f"customer_count_{over}"
                ),
                c.window(
                    "customer", "mean", on="payment", of="amount", scale=100, over=over, current="exclude",
                    null=0.0, name=f"customer_mean_amount_{over}",
                ),
                c.window("terminal", "count", on="label", over=over, name=f"terminal_count_{over}"),
                c.window(
                    "terminal", "mean", on="label", of="fraud", over=over, null=0.0, name=f"terminal_fraud_share_{over}"
                ),
                c.ratio("amount", f"customer_mean_amount_{over}", null=0.0, name=f"amount_over_mean_{over}"),
            ]  # fmt: skip
    return ri.FeatureSpec(
        request=REQUEST,
        event_time="at",
        entities={"customer": "customer_id", "terminal": "terminal_id"},
        streams={"payment": None, "label": ri.Stream(LABEL, event_time="known_at")} if velocity else None,
        columns=columns,
    )


def make_policy(*, reasons: bool = True) -> ri.Policy:
    """What a score leads to, and what is said of it."""
    if reasons:
        return ri.Policy(BANDS, reasons=REASONS, n_reasons=N_REASONS)
    return ri.Policy(BANDS)


def prepare(world: Payments, *, held_out_days: int = 21) -> FraudData:
    """Replay all payments, each as it would have been scored at its moment, and split them by time."""
    payments = world.payments
    at_s = payments["at"].cast(pa.int64()).to_numpy()
    day = (at_s - at_s[0] // DAY_S * DAY_S) // DAY_S
    held_out_from = int(day[-1]) + 1 - held_out_days
    label_delay_days = LABEL_DELAY_S // DAY_S
    # A short history still gives a week to learn from.
    learn_from = max(0, min(_HISTORY_DAYS, held_out_from - label_delay_days - 7))
    first, last, test = (
        int(np.searchsorted(day, d)) for d in (learn_from, held_out_from - label_delay_days, held_out_from)
    )
    tables = {"customer": world.customers, "terminal": world.terminals.drop_columns(["merchant_category"])}
    found = labels(payments)
    replayed = ri.replay(
        make_spec(),
        payments,
        labels={"label": found},
        tables=tables,
        updated_at=None,  # profiles that never change
    )
    wide = replayed.table
    return FraudData(
        train=wide.slice(first, last - first),
        held_out=wide.slice(test),
        before=payments.slice(0, test),
        labels=found,
        entities={entity: (table, (f"{entity}_id",)) for entity, table in tables.items()},
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
