"""Score payments: one object, JSON bytes, a batch with wrong rows in it, from a coroutine. And what errors look like.

    python examples/fraud_score.py

Packs a small logistic regression into a temporary folder first. Needs `pip install 'retailinfer[sklearn]'`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from sklearn.linear_model import LogisticRegression

import retailinfer as ri
from retailinfer import columns as c


def pack_small_model(folder: Path) -> Path:
    """A release to score with; train_and_pack_lightgbm.py shows how a real one is made."""
    rng = np.random.default_rng(0)
    amount, mean = rng.lognormal(3, 1, 2_000), rng.lognormal(3, 0.5, 2_000)
    rows = pa.table(
        {
            "card_id": [f"card-{i % 50}" for i in range(2_000)],
            "amount": amount,
            "channel": rng.choice(["chip", "online"], 2_000),
            "card.mean_amount_30d": mean,
        }
    )
    spec = ri.FeatureSpec(
        request={"card_id": str, "amount": float, "channel": str | None},
        entities={"card": "card_id"},
        columns=[
            c.numeric("amount", transform="log1p", center="mean", scale="std"),
            c.categorical("channel", encoding="onehot", oov="zeros"),
            c.stored("card.mean_amount_30d", transform="log1p", unknown=0.0, max_age="2d"),
        ],
    ).fit(rows)
    model = LogisticRegression().fit(np.asarray(spec.transform(rows)), amount > 2 * mean)
    policy = ri.Policy([("approve", 0.0), ("review", 0.5), ("decline", 0.9)])
    ri.pack("fraud", model=model, features=spec, policy=policy, golden=rows, out=folder / "fraud")
    return folder / "fraud"


def main(release: Path) -> None:
    """Load once, then call from anywhere: threads, coroutines, forked workers."""
    now = dt.datetime.now(dt.UTC)  # max_age is measured against it; a row of unknown age counts as stale
    profiles = {
        "card-1": {"mean_amount_30d": 20.0, "computed": now},
        "card-2": {"mean_amount_30d": 300.0, "computed": now - dt.timedelta(days=3)},
    }
    cards = ri.Snapshot.from_rows(profiles, updated_at="computed")
    scorer = ri.Scorer.load(release, store=ri.Store(tables={"card": cards}), trust="unsigned")

    decision = scorer.score({"card_id": "card-1", "amount": 19.90, "channel": "chip"}, request_id="order-17")
    print(f"{decision.id}: {decision.action} with {decision.score:.3f} by {decision.release}")

    # bytes in, bytes out: what an HTTP view does
    print(scorer.score_json(b'{"card_id": "card-1", "amount": 950, "channel": "online"}').decode())

    # a card that the table does not know is not an error: the column has a default, and the answer says so
    unknown = scorer.score({"card_id": "card-9", "amount": 19.90, "channel": None})
    print("missing:", unknown.missing)

    # nor is a profile that is older than its max_age: the old value is used, and the answer lists it
    print("stale:", scorer.score({"card_id": "card-2", "amount": 30.0}).stale)

    # a wrong request is an error that says where and what; a batch may keep it in its place instead
    try:
        scorer.score({"card_id": "card-1", "amount": "19.90", "channel": "chip"})
    except ri.CallerError as exc:
        print(f"HTTP {exc.http_status}: {exc}")
    requests = [{"card_id": "card-2", "amount": 30.0}, {"card_id": "card-2", "amount": float("inf")}]
    for answer in scorer.score_batch(requests, errors="row"):
        print(answer.action if isinstance(answer, ri.Decision) else type(answer).__name__)

    async def in_a_coroutine() -> ri.Decision:
        return await scorer.ascore({"card_id": "card-2", "amount": 30.0})

    print("async:", asyncio.run(in_a_coroutine()).action)
    scorer.close()


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        main(pack_small_model(Path(temporary)))
