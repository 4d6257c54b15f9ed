"""Small releases for the tests of the front doors: packed once, kept as files in memory, loaded as often as wanted.

Rules:
  * Everything goes through `ri.pack` and `load`; a test that wants a broken release alters the packed files.
  * Models are written by hand as ONNX, so that the right score can be told with pen and paper.
"""

from __future__ import annotations

import datetime as dt
import functools
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from onnx import TensorProto, helper, numpy_helper

import retailinfer as ri
from retailinfer import columns as c

AT = dt.datetime(2026, 3, 1, 12, 30, tzinfo=dt.UTC)

# ---- models ----------------------------------------------------------------------------------------------------------


def onnx_bytes(nodes: Any, inputs: dict[str, tuple[int, list[Any]]], **constants: Any) -> bytes:
    """A model with the one float output `y`, one row a request."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def weighted(*weights: float, then: tuple[str, ...] = ()) -> bytes:
    """Score = sum of weights * columns, then the named element-wise operators."""
    names = ["x", "h0", *(f"h{i + 1}" for i in range(len(then)))]
    names[len(then) + 1] = "y"
    nodes = [helper.make_node("MatMul", ["x", "w"], [names[1]])]
    nodes += [helper.make_node(op, [names[i + 1]], [names[i + 2]]) for i, op in enumerate(then)]
    w = np.array(weights, np.float32).reshape(-1, 1)
    return onnx_bytes(nodes, {"x": (TensorProto.FLOAT, [None, len(weights)])}, w=w)


def first_column(width: int) -> bytes:
    """Score = the first column, bit for bit, whatever the others hold."""
    node = helper.make_node("Slice", ["x", "start", "end", "axis"], ["y"])
    ends = {"start": np.array([0]), "end": np.array([1]), "axis": np.array([1])}
    return onnx_bytes([node], {"x": (TensorProto.FLOAT, [None, width])}, **ends)


def deep_network(width: int, *, hidden: int = 64, seed: int = 3) -> bytes:
    """Three layers that end in a sigmoid: scores in which every bit of every column counts."""
    rng = np.random.default_rng(seed)
    sizes = [width, hidden, hidden, 1]
    nodes, constants, last = [], {}, "x"
    for i in range(3):
        constants[f"w{i}"] = (rng.normal(size=(sizes[i], sizes[i + 1])) / sizes[i] ** 0.5).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"h{i}"]))
        nodes.append(helper.make_node("Tanh" if i < 2 else "Sigmoid", [f"h{i}"], [f"a{i}" if i < 2 else "y"]))
        last = f"a{i}"
    return onnx_bytes(nodes, {"x": (TensorProto.FLOAT, [None, width])}, **constants)


# ---- packing ---------------------------------------------------------------------------------------------------------


def packed(name: str, model: Any, spec: Any = None, **settings: Any) -> dict[str, bytes]:
    """A release as files by name."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "release")
        ri.pack(name, model=model, features=spec, out=out, names="ignore", **settings)
        return {path.name: path.read_bytes() for path in out.iterdir()}


def scorer_of(files: Any, **settings: Any) -> Any:
    """`Scorer.load` of an unsigned release."""
    return ri.Scorer.load(files, trust="unsigned", **settings)


def ranker_of(files: Any, **settings: Any) -> Any:
    """`Ranker.load` of an unsigned release."""
    return ri.Ranker.load(files, trust="unsigned", **settings)


def put_engine(door: Any, engine: Any) -> None:
    """Let something else stand where the engine of a scorer or a ranker does."""
    door._live = msgspec.structs.replace(door._live, engine=engine)


# ---- a scorer of payments --------------------------------------------------------------------------------------------

PAYMENT_FIELDS = {
    "amount": float,
    "rate": float | None,
    "count": int,
    "level": int | None,
    "channel": str,
    "note": str | None,
    "known": bool,
    "at": ri.Timestamp,
    "tags": list[str] | None,
    "sizes": list[float] | None,
    "codes": list[int] | None,
}
POLICY = ri.Policy([("approve", 0.0), ("review", 0.5), ("decline", 0.9)])


def payment(**changes: Any) -> dict[str, Any]:
    """A good request; `changes` replace fields."""
    return {
        "amount": 12.5,
        "rate": 0.25,
        "count": 3,
        "level": 7,
        "channel": "web",
        "note": "gift",
        "known": True,
        "at": AT.timestamp(),
        "tags": ["a", "b"],
        "sizes": [1.0, 2.5],
        "codes": [4, 5],
    } | changes


def payment_spec(*, extra: str = "forbid") -> Any:
    """Every type of field, every column filled whatever is null."""
    return ri.FeatureSpec(
        request=PAYMENT_FIELDS,
        event_time="at",
        columns=[
            c.numeric("amount", transform="signed_log1p"),
            c.numeric("rate", null=-1.0),
            c.numeric("count", name="n"),
            c.numeric("level", null=0.0),
            c.hashed("channel", buckets=64),
            c.hashed("note", buckets=64),
            c.boolean("known"),
            c.time("at", "hour_sin"),
            c.sequence("tags", length=3, encoding="hashed", buckets=32),
            c.sequence("sizes", length=2, encoding="number"),
            c.sequence("codes", length=2, encoding="hashed", buckets=32),
        ],
        extra=extra,
    )


@functools.cache
def payment_files(*, extra: str = "forbid", max_rows: int = 10_000) -> dict[str, bytes]:
    """A deep network over the payment's 15 columns."""
    return packed(
        "payments",
        deep_network(15),
        payment_spec(extra=extra),
        policy=POLICY,
        contract=ri.Contract(max_rows=max_rows),
    )


@functools.cache
def payment_scorer(*, extra: str = "forbid", max_rows: int = 10_000) -> Any:
    """Loaded once for all tests that only call it."""
    return scorer_of(payment_files(extra=extra, max_rows=max_rows))


@functools.cache
def value_files(kind: Any = float, **column: Any) -> dict[str, bytes]:
    """Score = the one field, `value`."""
    spec = ri.FeatureSpec(request={"value": kind}, columns=[c.numeric("value", **column)])
    return packed("value", first_column(1), spec)


# ---- a ranker of items -----------------------------------------------------------------------------------------------


def item_row(i: int) -> dict[str, Any]:
    """Columns of the item with number i."""
    return {
        "weight": float(i % 7),
        "stock": i % 4,
        "age": None if i % 11 == 5 else i % 50,
        "label": f"l{i % 5}",
    }


def items(n: int = 60, *, key: Any = "sku-{:03d}".format, shift: float = 0.0) -> Any:
    """A table of items, keyed by text; `key=int` for integers."""
    rows = {key(i): item_row(i) | {"weight": item_row(i)["weight"] + shift} for i in range(n)}
    return ri.Snapshot.from_rows(rows, kinds={"weight": "f64", "stock": "i64", "age": "i64", "label": "str"})


def item_spec(kind: Any = str, *, unknown: Any = "use", extra: str = "forbid") -> Any:
    """Context and item columns; what an unknown item gives is chosen."""
    return ri.FeatureSpec(
        request={"user": str, "boost": float, "sku": kind},
        entities={
            "item": ri.Entity(
                key=("sku",), columns={"weight": "float", "stock": "int", "age": "int", "label": "str"}
            )
        },
        candidate="item",
        columns=[
            c.numeric("boost"),
            c.stored("item.weight", null=0.0, unknown=0.0 if unknown == "use" else unknown),
            c.hashed("item.label", buckets=16),
        ],
        extra=extra,
    )


@functools.cache
def item_files(
    kind: Any = str, *, unknown: Any = "use", max_rows: int = 10_000, extra: str = "forbid"
) -> dict[str, bytes]:
    """Score = boost + weight: few different scores, so many ties."""
    return packed(
        "items",
        weighted(1.0, 1.0, 0.0),
        item_spec(kind, unknown=unknown, extra=extra),
        contract=ri.Contract(max_rows=max_rows),
    )


@functools.cache
def shared_ranker(kind: Any = str) -> Any:
    """A ranker that tests only call."""
    return item_ranker(kind)


def item_ranker(
    kind: Any = str, *, store: Any = None, n: int = 60, unknown: Any = "use", max_rows: int = 10_000
) -> Any:
    """A ranker over `n` items, on a store of its own unless one is given."""
    store = store or ri.Store(tables={"item": items(n, key=int if kind is int else "sku-{:03d}".format)})
    return ranker_of(item_files(kind, unknown=unknown, max_rows=max_rows), store=store)


CONTEXT = {"user": "u-1", "boost": 1.0}


def expected_order(ids: list[Any], boost: float = 1.0, number: Any = lambda sku: int(sku[4:])) -> list[Any]:
    """Best first by weight, equal ones by id."""
    return sorted(ids, key=lambda sku: (-(boost + item_row(number(sku))["weight"]), sku))
