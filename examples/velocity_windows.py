"""Count payments by card: replay history into a training set, backfill, then read and add in one step while scoring.

    python examples/velocity_windows.py

The payments are made up; stolen cards are tried with small amounts in quick succession. Needs
`pip install 'retailinfer[sklearn]'`. Windows that several processes share: `ri.Windows.redis(url)`, docs/windows.md.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from sklearn.linear_model import LogisticRegression

import retailinfer as ri
from retailinfer import columns as c

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


def payments(n_cards: int = 300, days: int = 20, seed: int = 0) -> pa.Table:
    """Payments of the last days, in the order of time: one card in ten is stolen once and tried six times in an hour."""
    rng = np.random.default_rng(seed)
    end_s = int(NOW.timestamp())
    rows = []
    for card in range(n_cards):
        at = end_s - rng.integers(0, days * 86_400, 2 * days)
        rows += [(int(second), card, float(rng.lognormal(3, 1)), False) for second in at]
        if card % 10 == 0:
            theft = end_s - int(rng.integers(3_600, (days - 1) * 86_400))
            rows += [(theft + 300 * i, card, float(rng.uniform(0.5, 5)), True) for i in range(6)]
    rows.sort()
    second, card, amount, fraud = (list(column) for column in zip(*rows, strict=True))
    return pa.table(
        {
            "card_id": [f"card-{i}" for i in card],
            "amount": np.round(amount, 2),
            "at": pa.array(np.array(second) * 1_000_000).cast(pa.timestamp("us", tz="UTC")),
            "fraud": fraud,
        }
    )


def make_spec() -> ri.FeatureSpec:
    """The amount, and what the card did in the last hour and day. The same declaration replays, backfills and serves."""
    return ri.FeatureSpec(
        request={"card_id": str, "amount": float, "at": ri.Timestamp},
        event_time="at",
        entities={"card": "card_id"},
        streams={"payment": None},  # the requests themselves
        columns=[
            c.numeric("amount", transform="log1p", center="mean", scale="std"),
            c.window("card", "count", on="payment", over="1h", transform="log1p"),
            c.window("card", "sum", on="payment", of="amount", scale=100, over="24h", transform="log1p"),
            c.window("card", "count", on="payment", over="1h", where="amount < 5", name="small_1h"),
        ],
    )


def main(folder: Path) -> None:
    """History -> training set -> release -> a store that knows the history -> scores."""
    history = payments()
    played = ri.replay(make_spec(), history)  # what each payment would have been scored with, at its moment
    spec = make_spec().fit(played.table)
    matrix = np.asarray(spec.transform(played.table))
    fraud = np.asarray(history["fraud"])
    model = LogisticRegression(max_iter=1_000).fit(matrix, fraud)
    policy = ri.Policy([("approve", 0.0), ("review", 0.5), ("decline", 0.9)])
    ri.pack("fraud", model=model, features=spec, policy=policy, golden=played.table, out=folder / "fraud")

    store = ri.Store(windows=ri.Windows.memory())
    store.backfill(spec, "payment", history, since=NOW - dt.timedelta(days=20))
    scorer = ri.Scorer.load(folder / "fraud", store=store, trust="unsigned")
    print(f"replayed and backfilled {len(history)} payments")

    # a burst: each attempt is scored with all those before it, and counted, in one step
    for i in range(7):
        request = {"card_id": "card-7", "amount": 1.50, "at": NOW + dt.timedelta(seconds=i)}
        decision = scorer.score(request, observe=True, event_id=f"attempt-{i}")
        print(f"attempt {i + 1}: {decision.action} with {decision.score:.2f}")

    # the same attempt delivered twice is counted once
    again = scorer.score(request, observe=True, event_id="attempt-6")
    assert again.score == decision.score

    store.save(folder / "windows.ri")  # and after a restart:
    restored = ri.Store(windows=ri.Windows.memory())
    restored.restore(folder / "windows.ri")
    with ri.Scorer.load(folder / "fraud", store=restored, trust="unsigned") as later:
        assert later.score(request, event_id="attempt-6").score == decision.score
    print("restored: the same score")
    scorer.close()


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        main(Path(temporary))
