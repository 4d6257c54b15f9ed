"""The reference workloads, defined once: fields, columns, entities, tables and rotating requests.

Rules:
  * Everything is drawn from one seed, so that two machines and two versions time the same bytes.
  * Here is data only: no import of retailinfer. `reference` computes the columns in NumPy, `library` declares them with
    `retailinfer.columns`, `models` trains the models on them: the library is checked against something that it is not.
  * No request repeats within 1,000: a repeated row teaches the branch predictor the paths through the trees.

How 40 fields and 40 columns of fraud-lean fit together:

    request fields                          columns
    20 numbers                              20 numeric, 8 of them log1p
     6 numbers more                          3 ratios (mean amount 7 d / 30 d, refunds / orders, clicks 1 h / 24 h)
     6 strings of small vocabularies         6 categorical (index)
     4 strings of large vocabularies         4 hashed (1,024 buckets)
     1 timestamp                             4 sine / cosine (hour, day of week)
     3 booleans                              3 boolean
    40                                      40
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FRAUD_FULL",
    "FRAUD_LEAN",
    "N_CANDIDATES",
    "N_ENTITIES",
    "N_REQUESTS",
    "RANK",
    "RANK_GBDT_COLUMNS",
    "TOP_K",
    "ColumnDef",
    "FullRequests",
    "RankRequests",
    "Workload",
    "as_rows",
    "draw",
    "entity_table",
    "item_ids",
    "item_values",
    "json_bodies",
    "key_index",
    "rank_requests",
    "requests",
]

SEED = 20_240_611
N_REQUESTS = 2_000  # different requests in rotation; the rule asks for 1,000 or more
N_TRAINING = 20_000
N_ENTITIES = 100_000  # rows of every entity table
N_CANDIDATES = 500
TOP_K = 20
HASH_BUCKETS = 1_024
FIRST_SECOND = 1_700_000_000  # 2023-11-14: requests spread over the 90 days from here
DAYS = 90

Values = dict[str, Any]  # field -> NDArray[float64 | bool] or list[str], one entry a row


@dataclass(frozen=True)
class ColumnDef:
    """One column: `kind` is the function of `retailinfer.columns`, `refs` its positional arguments."""

    name: str
    kind: str
    refs: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """Fields and columns of one use case.

    fields: name -> "float" | "signed" | "str" | "bool" | "timestamp", in the order of the JSON body; both of the first
        are floats, log-normal and normal.
    vocabularies: size of the vocabulary that a string field is drawn from.
    entities: entity -> the request field with its key.
    stored: entity -> names of its table's columns.
    """

    name: str
    fields: Mapping[str, str]
    columns: tuple[ColumnDef, ...]
    vocabularies: Mapping[str, int]
    event_time: str
    entities: Mapping[str, str] = field(default_factory=dict)
    stored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------ fraud-lean

_LOG1P = (
    "amount",
    "basket_value",
    "shipping_fee",
    "discount_value",
    "spent_90d",
    "card_limit",
    "billing_to_shipping_km",
    "ip_to_billing_km",
)
_PLAIN = (
    "account_age_years",
    "email_age_years",
    "days_since_order",
    "mean_items",
    "session_minutes",
    "pages_per_minute",
    "typing_speed",
    "device_risk",
    "ip_risk",
    "merchant_risk",
    "failed_login_rate",
    "price_level",
)
_RATIO_PAIRS = (
    ("mean_amount_7d", "mean_amount_30d"),
    ("refunds_90d", "orders_90d"),
    ("clicks_1h", "clicks_24h"),
)
_CATEGORICAL = {
    "channel": 5,
    "currency": 12,
    "country": 30,
    "card_brand": 6,
    "device_os": 8,
    "payment_method": 9,
}
_HASHED = {"merchant": 5_000, "email_domain": 2_000, "device_id": 50_000, "ip_prefix": 20_000}
_BOOLEAN = ("is_guest", "is_new_device", "is_3ds")
_CYCLIC = ("hour_sin", "hour_cos", "day_of_week_sin", "day_of_week_cos")


def _numeric(names: Sequence[str], transform: str | None = None) -> list[ColumnDef]:
    options = {} if transform is None else {"transform": transform}
    return [ColumnDef(name, "numeric", (name,), options) for name in names]


def _cyclic(ref: str) -> list[ColumnDef]:
    return [ColumnDef(f"{ref}_{part}", "time", (ref, part)) for part in _CYCLIC]


def _hashed(names: Sequence[str]) -> list[ColumnDef]:
    return [ColumnDef(name, "hashed", (name,), {"buckets": HASH_BUCKETS}) for name in names]


def _ratio(numerator: str, denominator: str) -> ColumnDef:
    name = f"{numerator}_over_{denominator}".replace(".", "_")
    return ColumnDef(name, "ratio", (numerator, denominator))


FRAUD_LEAN = Workload(
    name="fraud-lean",
    fields={
        **dict.fromkeys(_LOG1P + _PLAIN, "float"),
        **dict.fromkeys([name for pair in _RATIO_PAIRS for name in pair], "float"),
        **dict.fromkeys(_CATEGORICAL, "str"),
        **dict.fromkeys(_HASHED, "str"),
        "at": "timestamp",
        **dict.fromkeys(_BOOLEAN, "bool"),
    },
    columns=(
        *_numeric(_LOG1P, "log1p"),
        *_numeric(_PLAIN),
        *(ColumnDef(name, "categorical", (name,)) for name in _CATEGORICAL),
        *_hashed(tuple(_HASHED)),
        *_cyclic("at"),
        *(_ratio(*pair) for pair in _RATIO_PAIRS),
        *(ColumnDef(name, "boolean", (name,)) for name in _BOOLEAN),
    ),
    vocabularies={**_CATEGORICAL, **_HASHED},
    event_time="at",
)

# ------------------------------------------------------------------------------------------------------ fraud-full

_FULL_STORED = {
    "card": ("mean_amount_30d", "std_amount_30d", "payments_30d", "declines_30d", "age_days"),
    "customer": ("orders_365d", "refund_rate", "account_age_days", "home_country_share"),
    "terminal": ("mean_amount_30d", "fraud_rate_90d", "payments_30d", "age_days"),
}


def _window(entity: str, aggregate: str, over: str) -> ColumnDef:
    options: dict[str, Any] = {
        "on": "payment",
        "over": over,
    }  # the event that is scored counts, as is the default
    if aggregate != "count":
        options |= {"of": "amount", "scale": 100}
    return ColumnDef(f"{entity}_{aggregate}_{over}", "window", (entity, aggregate), options)


FRAUD_FULL = Workload(
    name="fraud-full",
    fields={
        **dict.fromkeys(("card_id", "customer_id", "terminal_id"), "str"),
        **dict.fromkeys(("amount", "shipping_fee", "discount_value", "basket_items"), "float"),
        **dict.fromkeys(("channel", "currency", "country", "entry_mode"), "str"),
        **dict.fromkeys(("merchant", "email_domain", "device_id"), "str"),
        **dict.fromkeys(("is_guest", "is_recurring"), "bool"),
        "at": "timestamp",
        "account_opened_at": "timestamp",
    },
    columns=(
        *_numeric(("amount", "shipping_fee"), "log1p"),
        *_numeric(("discount_value", "basket_items")),
        *(ColumnDef(n, "categorical", (n,)) for n in ("channel", "currency", "country", "entry_mode")),
        *_hashed(("merchant", "email_domain", "device_id")),
        *(ColumnDef(name, "boolean", (name,)) for name in ("is_guest", "is_recurring")),
        *_cyclic("at"),
        ColumnDef("account_age", "elapsed", ("account_opened_at",), {"unit": "d"}),
        *(
            ColumnDef(f"{entity}_{name}", "stored", (f"{entity}.{name}",), {"max_age": "1d", "unknown": 0.0})
            for entity, names in _FULL_STORED.items()
            for name in names
        ),
        _ratio("amount", "card.mean_amount_30d"),
        _ratio("amount", "terminal.mean_amount_30d"),
        ColumnDef("amount_minus_card_mean", "difference", ("amount", "card.mean_amount_30d")),
        _window("card", "count", "1h"),
        _window("card", "sum", "24h"),
        _window("customer", "count", "24h"),
        _window("customer", "sum", "7d"),
        _window("terminal", "count", "1h"),
        _window("terminal", "sum", "24h"),
    ),
    vocabularies={
        "card_id": N_ENTITIES,
        "customer_id": N_ENTITIES,
        "terminal_id": N_ENTITIES,
        "entry_mode": 5,
        **{name: _CATEGORICAL[name] for name in ("channel", "currency", "country")},
        **{name: _HASHED[name] for name in ("merchant", "email_domain", "device_id")},
    },
    event_time="at",
    entities={"card": "card_id", "customer": "customer_id", "terminal": "terminal_id"},
    stored=_FULL_STORED,
)

# ------------------------------------------------------------------------------------------------------ ranking

# Every column is of the size of 1, as whoever quantises a network's input to 256 steps has to see to.
_USER_LOG1P = (
    *("spent_30d", "spent_365d", "orders_30d", "orders_365d", "visits_7d"),
    *("basket_mean", "recency_days", "refund_value", "discount_value", "price_level"),
)
_USER_TASTE = tuple(f"taste_{i}" for i in range(8))
_USER_BOOLEAN = ("is_member", "is_mobile")
_ITEM_COLUMNS = tuple(f"x{i:02d}" for i in range(40))

RANK = Workload(
    name="rank",
    fields={
        "user_id": "str",
        **dict.fromkeys(_USER_LOG1P, "float"),
        **dict.fromkeys(_USER_TASTE, "signed"),
        **dict.fromkeys(_USER_BOOLEAN, "bool"),
        "at": "timestamp",
    },
    columns=(
        *_numeric(_USER_LOG1P, "log1p"),
        *_numeric(_USER_TASTE),
        *_cyclic("at"),
        *(ColumnDef(name, "boolean", (name,)) for name in _USER_BOOLEAN),
        *(ColumnDef(name, "stored", (f"item.{name}",)) for name in _ITEM_COLUMNS),
    ),
    vocabularies={"user_id": 200_000},
    event_time="at",
    entities={
        "item": "sku"
    },  # the candidate's entity: its key comes with the candidates, not with the context
    stored={"item": _ITEM_COLUMNS},
)
# The trees rank 40 columns: 12 of the context and 28 of the item.
RANK_GBDT_COLUMNS = RANK.columns[:12] + RANK.columns[24:52]


# ------------------------------------------------------------------------------------------------------ drawing values


def draw(workload: Workload, n_rows: int, *, seed: int = SEED) -> Values:
    """`n_rows` requests as columns: float64 and bool arrays, lists of str. Numbers have at most 6 decimals.

    Numbers are mostly log-normal, as money, distances and ages are; words are Zipf-like, so that vocabularies have rare
    members; ids of entities are uniform, so that look-ups do not stay in the cache.
    """
    rng = np.random.default_rng([seed, len(workload.fields)])
    values: Values = {}
    for name, kind in workload.fields.items():
        if kind == "float":
            values[name] = np.round(rng.lognormal(mean=1.0, sigma=1.0, size=n_rows), 6)
        elif kind == "signed":
            values[name] = np.round(rng.standard_normal(n_rows), 6)
        elif kind == "bool":
            values[name] = rng.random(n_rows) < 0.2
        elif kind == "timestamp":
            span_us = DAYS * 86_400 * 10**6
            offset = 0 if name == workload.event_time else -365 * 86_400
            microseconds = rng.integers(0, span_us, size=n_rows)
            values[name] = (FIRST_SECOND + offset) + microseconds / 1e6
        else:
            size = workload.vocabularies[name]
            if name in workload.entities.values() or name == "user_id":
                index = rng.integers(0, size, size=n_rows)
            else:
                weights = 1.0 / (np.arange(size) + 2.0)
                index = rng.choice(size, size=n_rows, p=weights / weights.sum())
            values[name] = [word(name, int(i)) for i in index]
    return values


def word(name: str, index: int) -> str:
    """The string number `index` of a field: as long as such strings are in real requests (8 to 20 characters)."""
    return f"{name[:9].rstrip('_')}-{index:06d}"


def as_rows(values: Values) -> list[dict[str, Any]]:
    """Columns -> one dict a request, of plain Python values."""
    lists = {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in values.items()}
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def json_bodies(rows: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Rows -> JSON bodies; every number is written with exactly 6 decimals and reads back as the same double."""
    return [("{" + ",".join(f'"{k}":{_json(v)}' for k, v in row.items()) + "}").encode() for row in rows]


def _json(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6f}"
    return f'"{value}"'  # words hold no character that JSON escapes


@lru_cache(maxsize=4)
def requests(name: str) -> tuple[tuple[dict[str, Any], ...], tuple[bytes, ...]]:
    """The rotating requests of a workload, as dicts and as JSON bodies, in the same order."""
    workload = {w.name: w for w in (FRAUD_LEAN, FRAUD_FULL, RANK)}[name]
    rows = as_rows(draw(workload, N_REQUESTS, seed=SEED + 1))
    return tuple(rows), tuple(json_bodies(rows))


def key_index(key: str) -> int:
    """The number that `word` made this key of: the row of its entity's table."""
    return int(key.rpartition("-")[2])


def entity_table(workload: Workload, entity: str, *, n_rows: int = N_ENTITIES) -> tuple[list[str], Values]:
    """Keys and columns of an entity's table; values are float32 numbers, so that no path can round them."""
    rng = np.random.default_rng([SEED, sum(entity.encode())])
    key_field = workload.entities[entity]
    keys = [word(key_field, i) for i in range(n_rows)]
    columns = {
        name: np.round(rng.lognormal(0.5, 0.8, n_rows), 3).astype(np.float32).astype(np.float64)
        for name in workload.stored[entity]
    }
    return keys, columns


# ------------------------------------------------------------------------------------------------------ a checkout


class FullRequests:
    """Requests of fraud-full, without end: number i is dated base_s + i / 20, or whatever moment is asked for.

    All but the moment and the three keys comes from 2,000 drawn rows in rotation. Keys are drawn anew for every number
    out of a million, uniformly among the 100,000 of each table: neither look-ups nor windows stay in the cache.
    """

    PER_SECOND = 20
    N_KEYS = 1 << 20
    HISTORY_S = 7 * 86_400  # as long as the longest window

    def __init__(self, base_s: int) -> None:
        self.base_s = base_s
        rng = np.random.default_rng([SEED, 18])
        self._keys = {e: rng.integers(0, N_ENTITIES, self.N_KEYS) for e in FRAUD_FULL.entities}
        drawn = draw(FRAUD_FULL, N_REQUESTS, seed=SEED + 1)
        opened = drawn.pop("account_opened_at")
        fixed = {name: v for name, v in drawn.items() if name not in (*FRAUD_FULL.entities.values(), "at")}
        self._fixed: dict[str, Any] = fixed | {"account_opened_at": opened}
        middles = [body[1:-1] for body in json_bodies(as_rows(fixed))]
        ends = [f"{at:.6f}".encode() for at in opened.tolist()]
        # `%` of what is drawn is doubled: these are templates
        self._templates = [
            b'{"card_id":"card_id-%%06d","customer_id":"customer-%%06d","terminal_id":"terminal-%%06d",'
            b'%b,"at":%%d.%%06d,"account_opened_at":%b}' % (middle.replace(b"%", b"%%"), end)
            for middle, end in zip(middles, ends, strict=True)
        ]

    def body(self, number: int, at_us: int | None = None) -> bytes:
        """The request as JSON; `at_us`: dated otherwise, in microseconds since the epoch."""
        key = number % self.N_KEYS
        card, customer, terminal = (keys[key] for keys in self._keys.values())
        if at_us is None:
            at_us = self.base_s * 1_000_000 + number * (1_000_000 // self.PER_SECOND)
        at = divmod(at_us, 1_000_000)
        return self._templates[number % N_REQUESTS] % (card, customer, terminal, *at)

    def values(self, numbers: Sequence[int]) -> Values:
        """Requests as columns, equal to what their bodies say."""
        rows = np.array([n % N_REQUESTS for n in numbers])
        out: Values = {}
        for name in FRAUD_FULL.fields:
            entity = next((e for e, field in FRAUD_FULL.entities.items() if field == name), None)
            if entity is not None:
                out[name] = [word(name, int(self._keys[entity][n % self.N_KEYS])) for n in numbers]
            elif name == "at":
                micros = np.array(numbers, np.int64) * (1_000_000 // self.PER_SECOND)
                out[name] = (self.base_s * 1_000_000 + micros) / 1e6
            else:
                column = self._fixed[name]
                out[name] = column[rows] if isinstance(column, np.ndarray) else [column[i] for i in rows]
        return out

    def history(self, n_rows: int) -> Values:
        """Payments of the seven days before, in the order of time: what the windows are filled with."""
        values = draw(FRAUD_FULL, n_rows, seed=SEED + 3)
        values["at"] = self.base_s - self.HISTORY_S + np.arange(n_rows) * (self.HISTORY_S // n_rows)
        values["at"] = values["at"].astype(np.float64)
        return values


# ------------------------------------------------------------------------------------------------------ candidates


@lru_cache(maxsize=1)
def item_ids() -> tuple[bytes, ...]:
    """The keys of the item table as UTF-8."""
    return tuple(f"sku-{i:08d}".encode() for i in range(N_ENTITIES))


@lru_cache(maxsize=1)
def item_values() -> NDArray[np.float32]:
    """The item table: shape (100,000, 40), in the order of `item_ids` and of the item columns."""
    rng = np.random.default_rng([SEED, 40])
    return rng.standard_normal((N_ENTITIES, len(_ITEM_COLUMNS))).astype(np.float32)


@dataclass(frozen=True)
class RankRequests:
    """Rotating ranking requests. Candidates are kept as row numbers: the strings are made anew for every use.

    contexts: one dict a request. candidates: rows of the item table, shape (n, n_candidates), none twice in a request.
    """

    contexts: tuple[dict[str, Any], ...]
    context_json: tuple[bytes, ...]
    candidates: NDArray[np.int32]

    def ids_json(self, index: int) -> bytes:
        """The candidates of request `index` as a JSON array."""
        ids = item_ids()
        return b'["' + b'","'.join([ids[i] for i in self.candidates[index].tolist()]) + b'"]'

    def body(self, index: int, *, k: int = TOP_K) -> bytes:
        """The whole request as JSON."""
        return b'{"context":%b,"candidates":%b,"k":%d}' % (self.context_json[index], self.ids_json(index), k)

    def fresh_ids(self, index: int) -> list[str]:
        """The candidates as strings that nobody has hashed yet, as a decoder hands them over."""
        ids = item_ids()
        return [str(ids[i], "ascii") for i in self.candidates[index].tolist()]


@lru_cache(maxsize=4)
def rank_requests(n_candidates: int = N_CANDIDATES, n_requests: int = N_REQUESTS) -> RankRequests:
    """`n_requests` rankings of `n_candidates` different items each."""
    rng = np.random.default_rng([SEED, n_candidates])
    candidates = np.empty((n_requests, n_candidates), np.int32)
    for row in candidates:
        drawn = np.unique(rng.integers(0, N_ENTITIES, size=n_candidates + n_candidates // 5 + 16))
        rng.shuffle(drawn)
        row[:] = drawn[:n_candidates]
    rows, bodies = requests(RANK.name)
    return RankRequests(rows[:n_requests], bodies[:n_requests], candidates)
