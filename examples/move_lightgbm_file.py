"""Move a LightGBM file out of a service that was written by hand: as it is, with features, with a policy and reasons.

    python examples/move_lightgbm_file.py

Each step is compared with the one before; docs/moving.md explains them. Needs `pip install 'retailinfer[lightgbm]'`.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import lightgbm
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import retailinfer as ri
from retailinfer import columns as c

CODES = {"chip": 0, "online": 1}
NAMES = ["amount", "items", "channel", "age_days"]


def orders(n: int = 8_000, seed: int = 3) -> pa.Table:
    """Made-up orders: some are fraud, and the number of items is not always known."""
    rng = np.random.default_rng(seed)
    fraud = rng.random(n) < 0.05
    amount = np.round(rng.lognormal(3, 0.8, n) * np.where(fraud, 4, 1), 2)
    items = rng.integers(1, 9, n)
    channel = np.where(rng.random(n) < np.where(fraud, 0.9, 0.4), "online", "chip")
    age = np.where(fraud, rng.integers(0, 40, n), rng.integers(0, 2_000, n))
    return pa.table(
        {
            "amount": amount,
            "items": pa.array([None if i % 7 == 0 else int(k) for i, k in enumerate(items)]),
            "channel": channel,
            "age_days": age,
            "fraud": fraud,
        }
    )


# ---- what you have: a function that makes rows, and a file that the trainer wrote ------------------------------------


def matrix_of(table: pa.Table) -> NDArray[np.float32]:
    """What the service does to every request before it calls the model."""
    amount = np.log1p(np.array(table["amount"].to_pylist(), float))
    items = np.array(table["items"].to_pylist(), float)  # None becomes NaN
    channel = [CODES.get(value, 2) for value in table["channel"].to_pylist()]
    return np.column_stack([amount, items, channel, table["age_days"].to_numpy()]).astype(np.float32)


def train(path: Path, table: pa.Table) -> lightgbm.Booster:
    """Long ago, by somebody else."""
    data = lightgbm.Dataset(matrix_of(table), table["fraud"].to_numpy(), feature_name=NAMES)
    booster = lightgbm.train({"objective": "binary", "verbose": -1, "num_threads": 1}, data, 80)
    booster.save_model(str(path))
    return booster


# ---- the move --------------------------------------------------------------------------------------------------------


def main(folder: Path) -> None:
    """Three releases, each a step further."""
    past, today = orders(), orders(2_000, seed=4)
    path = folder / "fraud.txt"
    booster = train(path, past)
    want = np.asarray(booster.predict(matrix_of(today))).astype(np.float32)

    # 1. the file as it is: arrays in, the trainer's own answers out
    manifest = ri.pack("fraud-arrays", model=path, out=folder / "arrays")
    with ri.Scorer.load(folder / "arrays", trust="unsigned") as scorer:
        got = scorer.score_arrays({"features": matrix_of(today)})["probabilities"][:, 1]
    print(f"1. {manifest.models[0].engine}: {int((got != want).sum())} of {len(want)} scores differ")

    # 2. the features: what matrix_of does, declared, checked against it cell by cell
    spec = ri.FeatureSpec(
        request={"amount": float, "items": int | None, "channel": str, "age_days": int},
        vocabularies={"channel": ri.Vocabulary(tuple(CODES), frozen=True, oov="last")},
        columns=[
            c.numeric("amount", transform="log1p"),
            c.numeric("items"),
            c.categorical("channel", vocabulary="channel"),
            c.numeric("age_days"),
        ],
    )
    same = np.array_equal(np.asarray(spec.transform(today)), matrix_of(today), equal_nan=True)
    print(f"2. the same matrix: {same}")

    # 3. what a score leads to, and what is said of it
    policy = ri.Policy(
        [("approve", 0.0), ("review", 0.4), ("decline", 0.8)],
        reasons={
            "amount": "an unusual amount",
            "channel": "paid online",
            "age_days": "a new customer",
            "items": "the number of items",
        },
        n_reasons=2,
    )
    ri.pack("fraud", model=path, features=spec, policy=policy, golden=past, out=folder / "fraud")
    with ri.Scorer.load(folder / "fraud", trust="unsigned") as scorer:
        answers = scorer.score_table(today)
        differ = int((answers["score"].to_numpy() != want).sum())
        print(f"3. from requests: {differ} of {len(want)} scores differ")
        worst = today.slice(int(np.argmax(want)), 1).select(NAMES).to_pylist()[0]
        answer = json.loads(scorer.score_json(json.dumps(worst).encode()))
    print(
        f"   {answer['action']} {answer['score']:.3f}: {', '.join(one['text'] for one in answer['reasons'])}"
    )


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        main(Path(temporary))
