"""Rank products for a user: tables, the best k, what is in stock, what is in the cart, tables that change under way.

    python examples/rank_items.py

Packs a small neural network into a temporary folder first. Needs `pip install 'retailinfer[sklearn]'`.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.neural_network import MLPClassifier

import retailinfer as ri
from retailinfer import columns as c

N_USERS, N_ITEMS = 200, 5_000


def tables(seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Users with the vector of their taste, and items with theirs."""
    rng = np.random.default_rng(seed)
    taste, place = (rng.normal(size=(n, 8)).astype(np.float32) for n in (N_USERS, N_ITEMS))
    users = pa.table(
        {
            "user_id": [f"user-{i}" for i in range(N_USERS)],
            "budget": rng.lognormal(3, 0.4, N_USERS),
            "taste": pa.FixedSizeListArray.from_arrays(pa.array(taste.ravel()), 8),
        }
    )
    items = pa.table(
        {
            "sku": [f"sku-{i}" for i in range(N_ITEMS)],
            "price": rng.lognormal(3, 0.8, N_ITEMS),
            "stock": rng.integers(0, 4, N_ITEMS),
            "taste": pa.FixedSizeListArray.from_arrays(pa.array(place.ravel()), 8),
        }
    )
    return users, items


def pack_small_model(folder: Path, users: pa.Table, items: pa.Table) -> Path:
    """Learn from views: an item is bought where it suits the taste and the budget."""
    rng = np.random.default_rng(1)
    n = 4_000
    who, what = pa.array(rng.integers(0, N_USERS, n)), pa.array(rng.integers(0, N_ITEMS, n))
    seen = {"user_id": users["user_id"].take(who), "sku": items["sku"].take(what)}
    seen |= {f"user.{name}": users[name].take(who) for name in ("budget", "taste")}
    seen |= {f"item.{name}": items[name].take(what) for name in ("price", "taste")}
    rows = pa.table(seen)
    spec = ri.FeatureSpec(
        request={"user_id": str, "sku": str},
        entities={"user": "user_id", "item": "sku"},
        candidate="item",  # its key, `sku`, comes from the candidates
        columns=[
            c.stored("user.budget", transform="log1p", center="mean", scale="std", unknown=30.0),  # context
            c.stored("item.price", transform="log1p", center="mean", scale="std", unknown="refuse"),  # item
            c.ratio("item.price", "user.budget", clip=(0, 10), null=1.0),  # cross: both sides
            c.cosine("user.taste", "item.taste", size=8, null=0.0),
        ],
    ).fit(rows)
    matrix = np.asarray(spec.transform(rows))
    bought = rng.random(n) < 1 / (1 + np.exp(2 - 4 * matrix[:, 3] + matrix[:, 2]))
    model = MLPClassifier((32, 16), max_iter=30, random_state=0, early_stopping=True).fit(matrix, bought)
    contract = ri.Contract(max_rows=2_000, batch_sizes=(500,))
    ri.pack("shop", model=model, features=spec, contract=contract, golden=rows, out=folder / "shop")
    return folder / "shop"


def main(release: Path, users: pa.Table, items: pa.Table) -> None:
    """One store for the process, one ranker on top of it."""
    store = ri.Store(
        tables={
            "user": ri.Snapshot.from_arrow(users, key="user_id", name="user"),
            "item": ri.Snapshot.from_arrow(items, key="sku", name="item"),
        }
    )
    ranker = ri.Ranker.load(release, store=store, trust="unsigned")
    candidates = [f"sku-{i}" for i in range(500)]

    best = ranker.rank({"user_id": "user-7"}, candidates, k=5)
    print("best:", list(zip(best.items, np.round(best.scores, 3).tolist(), strict=True)))

    cart = best.items[:2]
    more = ranker.rank({"user_id": "user-7"}, candidates, k=5, available="item.stock > 0", exclude=cart)
    assert not set(more.items) & set(cart)
    gone = [sku for sku, why in more.suppressed.items() if why == "unavailable"]
    print(f"in stock and not in the cart: {more.items}; {len(gone)} of 500 are sold out")

    body = {"context": {"user_id": "user-7"}, "candidates": candidates, "k": 3}
    print(ranker.rank_json(msgspec.json.encode(body)).decode()[:100], "...")

    # the catalogue of the next hour: one call swaps it, requests under way finish on the old one
    sold_out = pc.equal(items["sku"], more.items[0])
    stock = pc.if_else(sold_out, pa.scalar(0, pa.int64()), items["stock"])
    fresh = items.set_column(items.column_names.index("stock"), "stock", stock)
    store.swap("item", ri.Snapshot.from_arrow(fresh, key="sku", name="item"))
    later = ranker.rank({"user_id": "user-7"}, candidates, k=5, available="item.stock > 0", exclude=cart)
    assert more.items[0] not in later.items
    print("after the swap:", later.items)
    ranker.close()


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        shop = tables()
        main(pack_small_model(Path(temporary), *shop), *shop)
