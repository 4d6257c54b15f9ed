"""Write down every decision, read the log as a table, and erase a customer from it.

    python examples/decision_log.py

Payments are made up. Needs `pip install 'retailinfer[sklearn,arrow]'`. What the log promises: docs/events.md.
"""

from __future__ import annotations

import logging
import secrets
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from sklearn.linear_model import LogisticRegression

import retailinfer as ri
from retailinfer import columns as c

SPEC = ri.FeatureSpec(
    request={"card_id": str, "amount": float, "channel": str},
    entities={"card": "card_id"},
    columns=[c.numeric("amount", transform="log1p"), c.categorical("channel", encoding="onehot")],
)
POLICY = ri.Policy([("approve", 0.0), ("review", 0.4), ("decline", 0.8)])


def payments(n: int = 2_000, seed: int = 0) -> pa.Table:
    """Payments of 200 cards; large ones on the web are fraud more often."""
    rng = np.random.default_rng(seed)
    amount = np.round(rng.lognormal(3, 1, n), 2)
    channel = rng.choice(["chip", "web"], n)
    fraud = rng.random(n) < 1 / (1 + np.exp(4 - amount / 20 - 2 * (channel == "web")))
    return pa.table(
        {
            "card_id": [f"card-{i}" for i in rng.integers(0, 200, n)],
            "amount": amount,
            "channel": channel,
            "fraud": fraud,
        }
    )


def main(folder: Path) -> None:
    """A release -> decisions -> their log as a table -> the log without one card."""
    rows = payments()
    spec = SPEC.fit(rows)
    model = LogisticRegression().fit(spec.transform(rows), np.asarray(rows["fraud"]))
    ri.pack("fraud", model=model, features=spec, policy=POLICY, golden=rows, out=folder / "fraud")

    logging.basicConfig(
        stream=sys.stdout, format="%(levelname)s %(message)s"
    )  # warnings alone: nothing degraded here
    log = ri.DecisionLog(
        folder / "decisions",
        keep_days=400,
        format="parquet",
        fields=["amount"],
        entities={"card": "card_id"},
        hash_key=secrets.token_bytes(32),  # yours comes from where you keep passwords
        hooks=[ri.LogHook()],  # hears of a full disk
    )
    with ri.Scorer.load(folder / "fraud", trust="unsigned", hooks=[log, ri.LogHook()]) as scorer:
        for row in rows.slice(0, 500).drop_columns(["fraud"]).to_pylist():
            scorer.score(row)

    table = log.table()
    by_action = table.group_by("action").aggregate([("id", "count"), ("request.amount", "mean")])
    for line in sorted(by_action.to_pylist(), key=lambda one: -one["id_count"]):
        print(
            f"{line['action']}: {line['id_count']} payments of {line['request.amount_mean']:.2f} on average"
        )
    keys = table.column("entity.card").to_pylist()
    print(f"keys are digests: {len(set(keys))} of {len(keys[0])} characters")

    report = log.erase("card", "card-7")
    assert not report.not_reached
    print(f"card-7: {report.rows} decisions erased, {len(log.table())} are left")
    log.close()


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        main(Path(temporary))
