"""The tables that the code in README.md and docs/ reads: small, made up without chance, the same everywhere.

payments.parquet, cards.parquet, merchants.parquet: what payments are scored with. views.parquet, users.parquet,
items.parquet: what products are ranked with. Stored columns stand in payments and views under their reference.
risk-41.onnx, risk-42.onnx: two models of an amount, of which the newer one fails for refunds.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

__all__ = ["write"]

START = dt.datetime(2025, 3, 1, tzinfo=dt.UTC)
TRADES = ("grocery", "travel", "books", "fuel", "toys")


def cards() -> list[dict[str, Any]]:
    """40 cards with a profile."""
    return [
        {
            "card_id": f"c{i}",
            "mean_amount_30d": 20.0 + i,
            "country": ("GB", "FR", "DE")[i % 3],
            "opened": dt.datetime(2024, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=10 * i),
            "taste": [i % 2 * 1.0, 0.5, (i % 5) / 5, 1.0],
            "computed": START + dt.timedelta(days=60),
        }
        for i in range(40)
    ]


def merchants() -> list[dict[str, Any]]:
    """50 merchants."""
    return [
        {"merchant": f"m{i}", "trade": TRADES[i % 5], "style": [1.0, (i % 4) / 4, 0.25, i % 3 / 2]}
        for i in range(50)
    ]


def payments() -> list[dict[str, Any]]:
    """600 payments in the order of time, some of them fraud."""
    card, merchant = cards(), merchants()
    rows = []
    for i in range(600):
        own, there = card[i * 11 % 40], merchant[i * 7 % 50]
        amount = 5 + (i * 37 % 95) * 1.5
        rows.append(
            {
                "card_id": own["card_id"],
                "merchant": there["merchant"],
                "amount": amount,
                "shipping": None if i % 3 == 0 else 4.99,
                "channel": ("web", "web", "web", "app", "app", "pos")[i % 6],
                "at": START + dt.timedelta(hours=3 * i),
                "gift": None if i % 7 == 0 else i % 5 == 0,
                "bought": [f"p{(i + k) % 9}" for k in range(i % 4)],
                "fraud": int(amount > 110 and i % 3 > 0),
                **{f"card.{name}": own[name] for name in ("mean_amount_30d", "country", "opened", "taste")},
                **{f"merchant.{name}": there[name] for name in ("trade", "style")},
            }
        )
    return rows


def users() -> list[dict[str, Any]]:
    """30 users."""
    return [
        {"user_id": f"u{i}", "budget": 15.0 + i, "country": ("GB", "FR")[i % 2], "taste": [1.0, i % 3 / 2]}
        for i in range(30)
    ]


def items() -> list[dict[str, Any]]:
    """300 items."""
    return [
        {
            "sku": f"s{i}",
            "price": 3.0 + i * 13 % 97,
            "stock": i % 4,
            "trade": TRADES[i % 5],
            "style": [i % 7 / 7, 1.0],
        }
        for i in range(300)
    ]


def pairs() -> list[dict[str, Any]]:
    """How often some users bought some items."""
    return [{"user_id": f"u{i % 30}", "sku": f"s{i * 17 % 300}", "times": 1 + i % 3} for i in range(300)]


def views() -> list[dict[str, Any]]:
    """1,000 items that users saw, and whether they bought."""
    user, item = users(), items()
    known = {(p["user_id"], p["sku"]): p["times"] for p in pairs()}
    rows = []
    for i in range(1_000):
        own, seen = user[i * 7 % 30], item[i * 31 % 300]
        times = known.get((own["user_id"], seen["sku"]))
        rows.append(
            {
                "user_id": own["user_id"],
                "sku": seen["sku"],
                **{f"user.{name}": own[name] for name in ("budget", "country", "taste")},
                **{f"item.{name}": seen[name] for name in ("price", "trade", "style")},
                "pair.times": times,
                "bought": int(times is not None or seen["price"] < own["budget"] / 2),
            }
        )
    return rows


def risk(version: int) -> bytes:
    """An ONNX file: the size of an amount by 150 (41); its square root, which a negative amount has not (42)."""
    from onnx import TensorProto, helper

    last = {41: "Abs", 42: "Sqrt"}[version]
    graph = helper.make_graph(
        [
            helper.make_node("Div", ["features", "scale"], ["scaled"]),
            helper.make_node(last, ["scaled"], ["risk"]),
        ],
        "risk",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", 1])],
        [helper.make_tensor_value_info("risk", TensorProto.FLOAT, ["rows", 1])],
        [helper.make_tensor("scale", TensorProto.FLOAT, [1], [150.0])],
    )
    opset = [helper.make_opsetid("", 17)]
    made: bytes = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return made


def write(folder: Path) -> None:
    """All tables as Parquet files in a folder, and the two models."""
    for version in (41, 42):
        (folder / f"risk-{version}.onnx").write_bytes(risk(version))
    import pyarrow as pa
    import pyarrow.parquet as pq

    vector = {name: pa.list_(pa.float32(), size) for name, size in (("card.taste", 4), ("merchant.style", 4))}
    vector |= {name: pa.list_(pa.float32(), 2) for name in ("user.taste", "item.style")}
    wide = {"cards": {"taste": 4}, "merchants": {"style": 4}, "users": {"taste": 2}, "items": {"style": 2}}
    for name, rows in (
        ("payments", payments()),
        ("cards", cards()),
        ("merchants", merchants()),
        ("views", views()),
        ("users", users()),
        ("items", items()),
        ("pairs", pairs()),
    ):
        table = pa.Table.from_pylist(rows)
        kinds = vector | {column: pa.list_(pa.float32(), n) for column, n in wide.get(name, {}).items()}
        for at, field in enumerate(table.schema):
            if field.name in kinds:
                table = table.set_column(at, field.name, table.column(at).cast(kinds[field.name]))
        pq.write_table(table, folder / f"{name}.parquet")
