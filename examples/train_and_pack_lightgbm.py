"""Train a LightGBM model on features declared once, and pack it as a release that can serve.

    python examples/train_and_pack_lightgbm.py build/example

writes build/example/fraud (the release) and build/example/cards.parquet (the table that its features read). Then:

    retailinfer verify build/example/fraud
    retailinfer bench build/example/fraud --store card=build/example/cards.parquet:card_id

Needs `pip install 'retailinfer[lightgbm]'`. The payments are made up; read yours instead.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import retailinfer as ri
from retailinfer import columns as c


def payments(n: int = 20_000, seed: int = 1) -> tuple[pa.Table, pa.Table]:
    """Payments with the label and with what the card's profile said at that moment; and today's profiles."""
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(3, 0.6, 1_000)
    card = rng.integers(0, len(mean), n)
    stolen = rng.random(n) < 0.02
    amount = np.round(rng.lognormal(0, 0.5, n) * mean[card] * np.where(stolen, 6, 1), 2)
    online = rng.random(n) < np.where(stolen, 0.8, 0.4)
    seconds = 1_735_689_600 + np.sort(rng.integers(0, 90 * 86_400, n))
    rows = pa.table(
        {
            "card_id": [f"card-{i}" for i in card],
            "amount": amount,
            "channel": np.where(online, "online", rng.choice(["chip", "contactless"], n)),
            "merchant": [f"m-{i}" for i in rng.integers(0, 300, n)],
            "at": pa.array(seconds * 10**6, pa.timestamp("us", tz="UTC")),
            "card.mean_amount_30d": mean[card],  # stored columns stand in the table under their reference
            "fraud": stolen,
        }
    )
    cards = pa.table({"card_id": [f"card-{i}" for i in range(len(mean))], "mean_amount_30d": mean})
    return rows, cards


def make_spec() -> ri.FeatureSpec:
    """What the model sees of a payment. The same declaration makes the training matrix and serves."""
    return ri.FeatureSpec(
        request={"card_id": str, "amount": float, "channel": str, "merchant": str, "at": ri.Timestamp},
        event_time="at",
        tz="Europe/London",
        entities={"card": "card_id"},
        columns=[
            c.numeric("amount", transform="log1p"),
            c.categorical("channel", encoding="onehot"),
            c.hashed("merchant", buckets=256),
            c.time("at", "hour_sin"),
            c.time("at", "hour_cos"),
            c.stored("card.mean_amount_30d", unknown=0.0),
            c.ratio("amount", "card.mean_amount_30d"),
        ],
    )


def main(folder: Path) -> None:
    """Make the data, fit, train, pack."""
    rows, cards = payments()
    train, later = rows.slice(0, 15_000), rows.slice(15_000)  # sorted by time: never learn from the future
    spec = make_spec().fit(train)
    matrix = spec.transform(train)
    model = lightgbm.LGBMClassifier(n_estimators=100, num_leaves=31, n_jobs=1, verbose=-1)
    model.fit(np.asarray(matrix), train["fraud"].to_numpy(), feature_name=list(spec.names))
    manifest = ri.pack(
        "fraud",
        model=model,
        features=spec,
        policy=ri.Policy([("approve", 0.0), ("review", 0.3), ("decline", 0.9)]),
        contract=ri.Contract(deadline_ms=20, p99_ms=2, max_rows=5_000),
        golden=later,
        info={"owner": "risk", "description": "example of the documentation"},
        out=folder / "fraud",
    )
    pq.write_table(cards, folder / "cards.parquet")
    print(f"packed {manifest.release}: {len(spec.names)} features, digest {manifest.digest[:12]}")

    store = ri.Store(tables={"card": ri.Snapshot.from_arrow(cards, key="card_id")})
    with ri.Scorer.load(folder / "fraud", store=store, trust="unsigned") as scorer:
        answers = scorer.score_table(later)
    served = answers["score"].to_numpy()
    trained = np.asarray(model.booster_.predict(np.asarray(spec.transform(later))))
    print(f"largest difference from LightGBM's own scores: {np.abs(served - trained).max():.1e}")
    declined = np.asarray(answers["action"]) == "decline"
    print(
        f"declined {declined.sum()} of {len(declined)}, {later['fraud'].to_numpy()[declined].mean():.0%} of them fraud"
    )


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "build/example")
    out.mkdir(parents=True, exist_ok=True)
    main(out)
