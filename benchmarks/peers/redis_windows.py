"""Windows in Redis by hand: one pipelined round trip of redis-py that reads three hashes and adds to six panes.

The least that an exact read-and-add costs: per entity HGETALL, two HINCRBY, PEXPIRE, all in one write. In its favour:
nothing sums the panes that came, no MULTI makes it atomic, and no duplicate is looked for.
"""

from __future__ import annotations

from typing import Any

import msgspec

from benchmarks import reference
from benchmarks.workloads import FRAUD_FULL

__all__ = ["RedisWindows"]

KEEP_MS = 8 * 86_400_000


class Payment(msgspec.Struct, gc=False):
    """What the windows need of a request; made outside the clock."""

    card_id: str
    customer_id: str
    terminal_id: str
    amount: float
    at: float


class RedisWindows:
    """The six windows of fraud-full over one client."""

    def __init__(self, port: int) -> None:
        import redis

        self._client = redis.Redis(host="127.0.0.1", port=port)
        self._panes = {
            entity: [
                (c.refs[1], reference.pane_seconds(c.options["over"]))
                for c in FRAUD_FULL.columns
                if c.kind == "window" and c.refs[0] == entity
            ]
            for entity in FRAUD_FULL.entities
        }

    def payment(self, body: bytes) -> Payment:
        return msgspec.json.decode(body, type=Payment)

    def read_and_add(self, payment: Payment) -> list[Any]:
        """The replies of all twelve commands."""
        pipeline = self._client.pipeline(transaction=False)
        at, cents = int(payment.at), round(payment.amount * 100)
        keys = (payment.card_id, payment.customer_id, payment.terminal_id)
        for key, panes in zip(keys, self._panes.values(), strict=True):
            pipeline.hgetall(key)
            for number, (what, seconds) in enumerate(panes):
                pipeline.hincrby(key, f"{number}:{at // seconds}", 1 if what == "count" else cents)
            pipeline.pexpire(key, KEEP_MS)
        return pipeline.execute()

    def close(self) -> None:
        self._client.close()
