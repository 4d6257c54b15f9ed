"""Score with a table that reads through to a database: fetched once, refreshed, too old, away, and back.

    python examples/read_through.py

Packs a small logistic regression and makes a SQLite database in a temporary folder first. Needs
`pip install 'retailinfer[sklearn,sql]'`. PostgreSQL, Redis and Feast are one line of difference: docs/store.md.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.linear_model import LogisticRegression

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.store.sources.sql import SqlSource


def pack_small_model(folder: Path) -> Path:
    """A release whose one stored column says what happens in each of the four cases."""
    rng = np.random.default_rng(0)
    amount, mean = rng.lognormal(3, 1, 2_000), rng.lognormal(3, 0.5, 2_000)
    card = [f"card-{i % 50}" for i in range(2_000)]
    rows = pa.table({"card_id": card, "amount": amount, "card.mean_amount_30d": mean})
    spec = ri.FeatureSpec(
        request={"card_id": str, "amount": float},
        entities={"card": "card_id"},
        columns=[
            c.numeric("amount", transform="log1p", center="mean", scale="std"),
            c.stored(
                "card.mean_amount_30d",
                transform="log1p",
                max_age="1d",
                unknown=0.0,  # a card that nobody knows
                on_stale="use",  # too old: used, and listed in the answer
                on_unavailable=30.0,  # nothing to be had in time: that of a usual card, and listed too
            ),
        ],
    ).fit(rows)
    model = LogisticRegression().fit(np.asarray(spec.transform(rows)), amount > 2 * mean)
    policy = ri.Policy([("approve", 0.0), ("review", 0.5), ("decline", 0.9)])
    ri.pack("fraud", model=model, features=spec, policy=policy, golden=rows, out=folder / "fraud")
    return folder / "fraud"


def make_database(path: Path) -> None:
    """Cards as another program writes them, with the moment at which each row was computed."""
    now = dt.datetime.now(dt.UTC).timestamp()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE cards (card_id TEXT PRIMARY KEY, mean_amount_30d REAL, computed REAL)")
        rows = [(f"card-{i}", 20.0 + i, now - 3_600 * i) for i in range(50)]
        db.executemany("INSERT INTO cards VALUES (?, ?, ?)", rows)


class Breakable:
    """Any source, which can be switched off: a source of one's own is one method."""

    def __init__(self, source: SqlSource) -> None:
        self.source, self.off, self.asked = source, False, 0

    def fetch(self, keys: Sequence[Any], *, timeout_s: float) -> Mapping[Any, Mapping[str, Any] | None]:
        """Rows of these keys."""
        self.asked += len(keys)
        if self.off:
            raise ConnectionError("the database is away")
        return self.source.fetch(keys, timeout_s=timeout_s)


def main(release: Path, database: Path) -> None:
    """One table over the database, one store around it, one scorer on top."""
    source = Breakable(SqlSource(f"sqlite:///{database}", "cards", key="card_id"))
    cards = ri.FeatureTable(
        columns={"mean_amount_30d": "f64"},
        key="str",
        source=source,
        updated_at="computed",
        ttl="10m",
        refresh_ahead=0.2,  # rows in use are fetched again in the last fifth of their life
        unknown_ttl="1m",
        max_rows=100_000,
        timeout_ms=200,
        name="card",
    )
    scorer = ri.Scorer.load(release, store=ri.Store(tables={"card": cards}), trust="unsigned")

    for _ in range(3):
        decision = scorer.score({"card_id": "card-1", "amount": 19.90})
    print(f"{decision.action}; 3 requests, {source.asked} key asked of the database")

    for _ in range(2):
        decision = scorer.score({"card_id": "nobody", "amount": 19.90})
    print(f"unknown: {decision.missing}; {source.asked} keys asked")

    # computed 30 hours ago, although it was fetched just now: the age that counts is that of the value
    print("stale:", scorer.score({"card_id": "card-30", "amount": 19.90}).stale)

    source.off = True
    decision = scorer.score({"card_id": "card-2", "amount": 19.90})
    print(f"away: {decision.action}, missing {decision.missing}")
    print("in memory:", scorer.score({"card_id": "card-1", "amount": 19.90}).missing)

    freshness = scorer.freshness
    print(f"{freshness.fresh} of {freshness.answers} answers were fresh")
    scorer.close()


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        make_database(Path(temporary, "shop.db"))
        main(pack_small_model(Path(temporary)), Path(temporary, "shop.db"))
