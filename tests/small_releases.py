"""Small releases for tests of tools and documents: packed in a blink, from ONNX graphs written by hand.

Each function writes below a folder that it is given and returns what was written. The models are logistic regressions
with fixed weights, so nothing is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import retailinfer as ri
from retailinfer import columns as c

BANDS = [("approve", 0.0), ("review", 0.5), ("decline", 0.9)]


def logistic(n_columns: int, *, seed: int = 1, name: str = "features", output: str = "probability") -> bytes:
    """An ONNX file: float32 (rows, n_columns) -> probability (rows, 1)."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(seed).normal(0, 0.4, (n_columns, 1)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", [name, "w"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], [output]),
        ],
        "logistic",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", n_columns])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["rows", 1])],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    made: bytes = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return made


def payments(n: int = 400, seed: int = 3) -> Any:
    """Card payments with what the card's table knew of them."""
    import pyarrow as pa

    rng = np.random.default_rng(seed)
    at = 1_700_000_000 + rng.integers(0, 1_000_000, n)
    return pa.table(
        {
            "card_id": [f"c{i}" for i in rng.integers(0, 50, n)],
            "channel": rng.choice(["app", "pos", "web"], n),
            "amount": np.round(rng.lognormal(3, 1, n), 2),
            "at": pa.array(at * 10**6, pa.timestamp("us", tz="UTC")),
            "gift": pa.array(rng.random(n) < 0.2, mask=rng.random(n) < 0.1),
            "card.mean_amount": rng.lognormal(3, 0.5, n),
        }
    )


def payment_spec() -> ri.FeatureSpec:
    """Fitted to `payments`: six columns, one of them stored, one-hot, cyclic, optional."""
    return ri.FeatureSpec(
        request={"card_id": str, "channel": str, "amount": float, "at": ri.Timestamp, "gift": bool | None},
        event_time="at",
        tz="Europe/London",
        entities={"card": "card_id"},
        columns=[
            c.numeric("amount", transform="log1p"),
            c.categorical("channel", encoding="onehot"),
            c.time("at", "hour_sin"),
            c.stored("card.mean_amount", max_age="30d", unknown=0.0, null=0.0),
            c.ratio("amount", "card.mean_amount", null=0.0),
            c.boolean("gift", null=0.0),
        ],
    ).fit(payments())


def pack_payments(folder: Path, **options: Any) -> Path:
    """A release that scores payments; needs a table `card`."""
    spec = payment_spec()
    given = {
        "features": spec,
        "model": logistic(len(spec.names)),
        "policy": ri.Policy(BANDS),
        "contract": ri.Contract(p99_ms=50, max_rows=1_000),
        "golden": payments(),
    }
    ri.pack("payments", out=folder / "payments", **(given | options))
    return folder / "payments"


def window_payments(n: int = 400) -> Any:
    """The same payments with what the windows of `window_spec` held; chargebacks are known of some cards only."""
    import pyarrow as pa

    rng = np.random.default_rng(9)
    counted = rng.integers(1, 6, n).astype(float)
    return (
        payments(n)
        .append_column("card_count_1h_payment", pa.array(counted))
        .append_column("before", pa.array(counted - 1))
        .append_column("lost", pa.array(np.round(rng.lognormal(3, 1, n), 2), mask=rng.random(n) < 0.3))
    )


def window_spec() -> ri.FeatureSpec:
    """Fitted to `window_payments`: two windows over the requests that share state, one over a stream of chargebacks."""
    return ri.FeatureSpec(
        request={"card_id": str, "channel": str, "amount": float, "at": ri.Timestamp, "gift": bool | None},
        event_time="at",
        tz="Europe/London",
        entities={"card": "card_id"},
        streams={"payment": None, "chargeback": {"card_id": str, "loss": float}},
        columns=[
            c.numeric("amount", transform="log1p"),
            c.window(
                "card",
                "count",
                on="payment",
                over="1h",
                where="amount > 100",
                unknown=0.0,
                on_unavailable=0.0,
            ),
            c.difference("card_count_1h_payment", "before", null=0.0),
            c.window(
                *("card", "sum"),
                on="chargeback",
                of="loss",
                scale=100,
                over="28d",
                delay="7d",
                name="lost",
                transform="log1p",
                center="mean",
                null=0.0,
                on_stale="review",
            ),
            c.stored("card.mean_amount", max_age="30d", unknown=0.0, null=0.0),
        ],
        windows=[
            c.window(
                *("card", "count"),
                on="payment",
                over="1h",
                where="amount > 100",
                current="exclude",
                name="before",
            )
        ],
    ).fit(window_payments())


def pack_windows(folder: Path, **options: Any) -> Path:
    """A release that scores payments by windows; needs a table `card` and windows."""
    spec = window_spec()
    given = {
        "features": spec,
        "model": logistic(len(spec.names)),
        "policy": ri.Policy(BANDS, review="review"),
        "golden": window_payments(),
    }
    ri.pack("windows", out=folder / "windows", **(given | options))
    return folder / "windows"


def card_table() -> Any:
    """The table `card` as a person would have it in a file."""
    import pyarrow as pa

    rng = np.random.default_rng(5)
    return pa.table({"card_id": [f"c{i}" for i in range(50)], "mean_amount": rng.lognormal(3, 0.5, 50)})


def payment_store() -> ri.Store:
    """The store that the payments release reads."""
    return ri.Store(tables={"card": ri.Snapshot.from_arrow(card_table(), key="card_id", name="card")})


def pack_ranking(folder: Path) -> Path:
    """A release that ranks products for users; needs tables `user` and `item`."""
    import pyarrow as pa

    rng = np.random.default_rng(7)
    n = 200
    rows = pa.table(
        {
            "user_id": [f"u{i}" for i in rng.integers(0, 20, n)],
            "sku": [f"s{i}" for i in rng.integers(0, 100, n)],
            "user.spend": rng.lognormal(4, 1, n),
            "item.price": rng.lognormal(2, 1, n),
        }
    )
    spec = ri.FeatureSpec(
        request={"user_id": str, "sku": str},
        entities={"user": "user_id", "item": "sku"},
        candidate="item",
        columns=[
            c.stored("user.spend", transform="log1p", unknown=0.0),
            c.stored("item.price", transform="log1p", null=0.0),
            c.ratio("item.price", "user.spend", null=0.0),
        ],
    )
    contract = ri.Contract(max_rows=500, batch_sizes=(100,))
    ri.pack(
        "ranking",
        model=logistic(3),
        features=spec,
        contract=contract,
        golden=rows,
        out=folder / "ranking",
    )
    return folder / "ranking"


def pack_arrays(folder: Path) -> Path:
    """A release that takes arrays."""
    matrix = np.random.default_rng(9).normal(size=(20, 4)).astype(np.float32)
    ri.pack("arrays", model=logistic(4), golden={"features": matrix}, out=folder / "arrays")
    return folder / "arrays"
