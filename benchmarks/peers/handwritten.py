"""What a good engineer writes in an afternoon: decode, fill a row, `run`, compare with two thresholds, encode.

Two versions of fraud-lean, `json` and `msgspec`, and one ranking over a dict of row numbers. They check types as far as
the decoder does and nothing else: no limits on size or depth, no check of NaN, no hash of what was loaded, no trace.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh64_intdigest

from benchmarks.peers.bare_run import BareRun
from benchmarks.reference import cyclic

__all__ = ["BANDS", "HandwrittenFraud", "HandwrittenRank", "LeanRequest", "action"]

BANDS = (("approve", 0.0), ("review", 0.60), ("decline", 0.92))

_HOURS = [(cyclic("sin", h, 24), cyclic("cos", h, 24)) for h in range(24)]
_DAYS = [(cyclic("sin", d, 7), cyclic("cos", d, 7)) for d in range(7)]


class LeanRequest(msgspec.Struct, gc=False):
    """The 40 fields of fraud-lean."""

    amount: float
    basket_value: float
    shipping_fee: float
    discount_value: float
    spent_90d: float
    card_limit: float
    billing_to_shipping_km: float
    ip_to_billing_km: float
    account_age_years: float
    email_age_years: float
    days_since_order: float
    mean_items: float
    session_minutes: float
    pages_per_minute: float
    typing_speed: float
    device_risk: float
    ip_risk: float
    merchant_risk: float
    failed_login_rate: float
    price_level: float
    mean_amount_7d: float
    mean_amount_30d: float
    refunds_90d: float
    orders_90d: float
    clicks_1h: float
    clicks_24h: float
    channel: str
    currency: str
    country: str
    card_brand: str
    device_os: str
    payment_method: str
    merchant: str
    email_domain: str
    device_id: str
    ip_prefix: str
    at: float
    is_guest: bool
    is_new_device: bool
    is_3ds: bool


class Answer(msgspec.Struct, gc=False):
    """What goes back."""

    score: float
    action: str


def action(score: float) -> str:
    """The band of a score; the lower bound belongs to it."""
    return "decline" if score >= np.float32(0.92) else "review" if score >= np.float32(0.60) else "approve"


class HandwrittenFraud:
    """fraud-lean around one session. `codes`: column -> value -> code, as the reference learns them."""

    def __init__(self, run: BareRun, codes: Mapping[str, Mapping[str, int]]) -> None:
        self._run = run
        self._codes = {name: dict(known) for name, known in codes.items()}
        self._decode = msgspec.json.Decoder(LeanRequest).decode
        self._encode = msgspec.json.Encoder().encode

    def row(self, r: Any) -> NDArray[np.float32]:
        """The model's input of one request (any object with the fields as attributes), shape (1, 40)."""
        log1p, codes, hashed = math.log1p, self._codes, xxh64_intdigest
        hour, day = _HOURS[int(r.at // 3600) % 24], _DAYS[(int(r.at // 86_400) + 3) % 7]
        return np.array(
            [
                [
                    log1p(r.amount),
                    log1p(r.basket_value),
                    log1p(r.shipping_fee),
                    log1p(r.discount_value),
                    log1p(r.spent_90d),
                    log1p(r.card_limit),
                    log1p(r.billing_to_shipping_km),
                    log1p(r.ip_to_billing_km),
                    r.account_age_years,
                    r.email_age_years,
                    r.days_since_order,
                    r.mean_items,
                    r.session_minutes,
                    r.pages_per_minute,
                    r.typing_speed,
                    r.device_risk,
                    r.ip_risk,
                    r.merchant_risk,
                    r.failed_login_rate,
                    r.price_level,
                    codes["channel"].get(r.channel, 0),
                    codes["currency"].get(r.currency, 0),
                    codes["country"].get(r.country, 0),
                    codes["card_brand"].get(r.card_brand, 0),
                    codes["device_os"].get(r.device_os, 0),
                    codes["payment_method"].get(r.payment_method, 0),
                    hashed(r.merchant.encode()) % 1024,
                    hashed(r.email_domain.encode()) % 1024,
                    hashed(r.device_id.encode()) % 1024,
                    hashed(r.ip_prefix.encode()) % 1024,
                    hour[0],
                    hour[1],
                    day[0],
                    day[1],
                    r.mean_amount_7d / r.mean_amount_30d,
                    r.refunds_90d / r.orders_90d,
                    r.clicks_1h / r.clicks_24h,
                    r.is_guest,
                    r.is_new_device,
                    r.is_3ds,
                ]
            ],
            dtype=np.float32,
        )

    def score(self, r: Any) -> float:
        return float(self._run({self._run.input: self.row(r)})[0, -1])

    def with_msgspec(self, body: bytes) -> bytes:
        """Bytes to bytes with msgspec on both ends."""
        score = self.score(self._decode(body))
        return self._encode(Answer(score, action(score)))

    def with_json(self, body: bytes) -> bytes:
        """Bytes to bytes with the standard library."""
        score = self.score(_Attributes(json.loads(body)))
        return json.dumps({"score": score, "action": action(score)}).encode()


class _Attributes:
    """A dict read as attributes, so that both versions share one function; costs less than 40 look-ups by key."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__ = values


class RankBody(msgspec.Struct):
    """A ranking request; the context stays a dict because its columns were prepared by the caller here."""

    context: dict[str, Any]
    candidates: list[str]
    k: int


class HandwrittenRank:
    """Rank candidates: row numbers from a dict, `take`, `run`, partial sort.

    item_rows: id -> row of `items`, shape (n items, item columns). context_row: request -> its context columns.
    """

    def __init__(self, run: BareRun, ids: Sequence[str], items: NDArray[np.float32]) -> None:
        self._run = run
        self._rows = {key: i for i, key in enumerate(ids)}
        self._items = items
        self._decode = msgspec.json.Decoder(RankBody).decode
        self._encode = msgspec.json.Encoder().encode

    def rank(
        self, context: NDArray[np.float32], candidates: Sequence[str], k: int
    ) -> tuple[list[str], list[float]]:
        """The k best candidates and their scores, equal scores in the order of the table, which is that of the ids."""
        known = self._rows
        rows = np.array([known[c] for c in candidates])
        taken = self._items.take(rows, axis=0)
        matrix = np.empty((len(candidates), context.shape[0] + taken.shape[1]), np.float32)
        matrix[:, : context.shape[0]] = context
        matrix[:, context.shape[0] :] = taken
        scores = self._run({self._run.input: matrix})[:, 0]
        best = np.argpartition(-scores, k - 1)[:k]
        best = best[np.lexsort((rows[best], -scores[best]))]
        return [candidates[i] for i in best], scores[best].tolist()

    def rank_json(self, body: bytes, context: NDArray[np.float32]) -> bytes:
        """Bytes to bytes."""
        request = self._decode(body)
        items, scores = self.rank(context, request.candidates, request.k)
        return self._encode({"items": items, "scores": scores})
