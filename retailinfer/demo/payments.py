"""Card payments for the demo: a seeded generator, and the labels that come a week later.

The data follow the published design of the Fraud Detection Handbook (Le Borgne, Siblini, Lebichot, Bontempi:
"Reproducible Machine Learning for Credit Card Fraud Detection", 2022); the code is our own. Customers and
terminals lie on a map of 100 x 100; a customer has a mean amount and a mean number of payments a day, and uses
the terminals within a radius. Three kinds of fraud are planted:

  1. every payment above 220;
  2. each day two terminals are compromised: every payment there in the next 28 days is fraud;
  3. each day three customers lose their card data: a third of their payments in the next 14 days are fraud,
     with five times the amount.

Rules:
  * Same `PaymentsConfig`, same bytes: every part draws from a stream of its own, so that a new field leaves the
    others as they were.
  * Channel, merchant category and card type are drawn without looking at fraud.
  * A label is an event of its own, `LABEL_DELAY_S` after its payment: nobody knows it before.
  * The tables of this file are sorted by time.

What is counted of them, what is trained on them, and how it is replayed: `fraud.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

__all__ = [
    "DAY_S",
    "LABEL_DELAY_S",
    "Payments",
    "PaymentsConfig",
    "generate",
    "labels",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DAY_S: Final = 86_400
LABEL_DELAY_S: Final = 7 * DAY_S  # how long an investigation takes before the label is known

CHANNELS: Final = ("chip", "contactless", "swipe", "online")
CARD_TYPES: Final = ("debit", "credit", "prepaid")
MERCHANT_CATEGORIES: Final = (
    "grocery", "restaurant", "fuel", "pharmacy", "clothing", "electronics",
    "travel", "entertainment", "home", "services", "books", "sports",
)  # fmt: skip

_LARGE_AMOUNT: Final = 220.0
_TERMINAL_DAYS: Final = 28
_CARD_DAYS: Final = 14
_CARD_FACTOR: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentsConfig:
    """How large the simulated world is. The defaults give about 0.8 % fraud."""

    n_customers: int = 5_000
    n_terminals: int = 10_000
    n_days: int = 150
    start: str = "2025-01-06"  # midnight UTC of the first day; a Monday
    radius: float = 5.0  # in units of the 100 x 100 map
    terminals_hit_per_day: int = 2
    cards_hit_per_day: int = 3
    seed: int = 20250106


@dataclass(frozen=True, slots=True)
class Payments:
    """What one simulation gives. Tables share ids; `payments` is sorted by `at`.

    payments:  payment_id, at (timestamp, UTC), customer_id, terminal_id, amount, channel, merchant_category,
               card_type, fraud (bool), scenario (0 = honest, else 1..3)
    customers: customer_id, home_x, home_y, since (timestamp, UTC)
    terminals: terminal_id, x, y, merchant_category
    """

    payments: pa.Table
    customers: pa.Table
    terminals: pa.Table


def generate(config: PaymentsConfig) -> Payments:
    """Simulate `config.n_days` of payments. A second or two for the defaults."""
    seeds = np.random.SeedSequence(config.seed).spawn(6)
    rng_map, rng_when, rng_where, rng_amount, rng_hits, rng_fields = map(np.random.default_rng, seeds)
    start_s = int(np.datetime64(config.start, "s").astype(np.int64))

    home = rng_map.uniform(0, 100, (config.n_customers, 2))
    place = rng_map.uniform(0, 100, (config.n_terminals, 2))
    mean_amount = rng_map.uniform(5, 100, config.n_customers)
    payments_a_day = rng_map.uniform(0, 4, config.n_customers)
    since_s = start_s - rng_map.integers(30, 3_000, config.n_customers) * DAY_S
    category = rng_map.integers(0, len(MERCHANT_CATEGORIES), config.n_terminals)

    first, near = _terminals_within(home, place, config.radius)
    n_near = np.diff(first)
    payments_a_day = np.where(n_near > 0, payments_a_day, 0.0)  # nowhere to pay, so no payments

    # Who pays on which day, and when: most around noon, none outside the day (as in the handbook).
    counts = rng_when.poisson(payments_a_day, (config.n_days, config.n_customers))
    day, customer = (np.repeat(index, counts.ravel()) for index in _grid(counts.shape))
    second = rng_when.normal(DAY_S / 2, 20_000, len(day)).astype(np.int64)
    inside = (second > 0) & (second < DAY_S)
    day, customer, second = day[inside], customer[inside], second[inside]
    at_s = start_s + day * DAY_S + second
    order = np.lexsort((customer, at_s))
    day, customer, at_s = day[order], customer[order], at_s[order]

    n = len(day)
    terminal = near[first[customer] + (rng_where.random(n) * n_near[customer]).astype(np.int64)]
    mean = mean_amount[customer]
    amount = rng_amount.normal(mean, mean / 2)
    amount = np.where(amount < 0, rng_amount.uniform(0, 2 * mean), amount)

    scenario = _plant_fraud(config, rng_hits, day, customer, terminal, amount)
    # Two decimals, as money has, and never free.
    amount = np.maximum(np.round(amount, 2), 0.01)

    # Card-not-present is commoner in some trades; nothing here looks at `scenario`.
    online_share = np.linspace(0.05, 0.45, len(MERCHANT_CATEGORIES))[category[terminal]]
    present = rng_fields.choice(3, n, p=[0.45, 0.45, 0.10])
    channel = np.where(rng_fields.random(n) < online_share, 3, present)
    card_type = rng_fields.choice(len(CARD_TYPES), config.n_customers, p=[0.55, 0.38, 0.07])[customer]

    payments = pa.table(
        {
            "payment_id": _ids("p", np.arange(n)),
            "at": _timestamps(at_s),
            "customer_id": _ids("c", customer),
            "terminal_id": _ids("t", terminal),
            "amount": amount,
            "channel": _take(CHANNELS, channel),
            "merchant_category": _take(MERCHANT_CATEGORIES, category[terminal]),
            "card_type": _take(CARD_TYPES, card_type),
            "fraud": scenario > 0,
            "scenario": scenario,
        }
    )
    customers = pa.table(
        {
            "customer_id": _ids("c", np.arange(config.n_customers)),
            "home_x": home[:, 0],
            "home_y": home[:, 1],
            "since": _timestamps(since_s),
        }
    )
    terminals = pa.table(
        {
            "terminal_id": _ids("t", np.arange(config.n_terminals)),
            "x": place[:, 0],
            "y": place[:, 1],
            "merchant_category": _take(MERCHANT_CATEGORIES, category),
        }
    )
    return Payments(payments, customers, terminals)


def labels(payments: pa.Table, *, delay_s: int = LABEL_DELAY_S) -> pa.Table:
    """What investigations find, when they find it: terminal_id, fraud, known_at; sorted by time as the payments are."""
    known_at = pc.add(payments["at"], pa.scalar(delay_s, pa.duration("s")))
    return pa.table(
        {"terminal_id": payments["terminal_id"], "fraud": payments["fraud"], "known_at": known_at}
    )


def _plant_fraud(
    config: PaymentsConfig,
    rng: np.random.Generator,
    day: Ints,
    customer: Ints,
    terminal: Ints,
    amount: Floats,
) -> NDArray[np.int8]:
    """Mark the three scenarios (a later one overrides an earlier one). Raises `amount` in place for the third."""
    scenario = np.zeros(len(day), np.int8)
    scenario[amount > _LARGE_AMOUNT] = 1
    by_terminal, by_customer = _groups(terminal, config.n_terminals), _groups(customer, config.n_customers)
    for today in range(config.n_days):
        for hit in rng.choice(config.n_terminals, config.terminals_hit_per_day, replace=False):
            rows = by_terminal(int(hit))
            scenario[rows[(day[rows] >= today) & (day[rows] < today + _TERMINAL_DAYS)]] = 2
        for hit in rng.choice(config.n_customers, config.cards_hit_per_day, replace=False):
            rows = by_customer(int(hit))
            rows = rows[(day[rows] >= today) & (day[rows] < today + _CARD_DAYS)]
            stolen = rng.permutation(rows)[: len(rows) // 3]
            amount[stolen] *= _CARD_FACTOR
            scenario[stolen] = 3
    return scenario


def _terminals_within(home: Floats, place: Floats, radius: float) -> tuple[Ints, Ints]:
    """Terminals near each customer, as (first index per customer plus the end, flat terminal numbers)."""
    counts, near = [], []
    for begin in range(0, len(home), 500):  # 500 x 10,000 distances at a time, not 50 million
        x, y = home[begin : begin + 500, :1], home[begin : begin + 500, 1:]
        inside = (x - place[:, 0]) ** 2 + (y - place[:, 1]) ** 2 < radius**2
        counts.append(inside.sum(axis=1))
        near.append(np.nonzero(inside)[1])
    first = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    return first, np.concatenate(near).astype(np.int64)


def _groups(codes: Ints, n: int) -> Callable[[int], Ints]:
    """A function from a code to the row numbers that carry it, in time order."""
    order = np.argsort(codes, kind="stable")
    first = np.searchsorted(codes[order], np.arange(n + 1))
    return lambda code: order[first[code] : first[code + 1]]


def _grid(shape: tuple[int, ...]) -> tuple[Ints, Ints]:
    rows, columns = np.indices(shape, dtype=np.int64)
    return rows.ravel(), columns.ravel()


def _ids(prefix: str, numbers: Ints) -> pa.Array:
    return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")


def _take(names: tuple[str, ...], codes: NDArray[np.integer]) -> pa.Array:
    return pa.array(names).take(pa.array(codes))


def _timestamps(seconds: Ints) -> pa.Array:
    return pa.array(seconds).cast(pa.timestamp("s", "UTC"))
