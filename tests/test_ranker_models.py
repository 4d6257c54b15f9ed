"""Rankings through models of every build: context tensors, masks, texts, entities of two fields, chains; tiles and age."""

from __future__ import annotations

import datetime as dt

import msgspec
import numpy as np
import pytest
import releases
from onnx import TensorProto, helper

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.errors import FeatureError

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
IDS = [f"i{n:04d}" for n in range(1300)]


def model_of(nodes, inputs, **constants):
    """A model with the float output `y`, one row a candidate."""
    return releases.onnx_bytes(nodes, inputs, **constants)


def agree(ranker, context, ids, **more):
    """The ranking by rank and rank_json, alone and one by one: the same bits."""
    ranking = ranker.rank(context, ids, len(ids), **more)
    body = msgspec.json.encode({"context": context, "candidates": ids, "k": len(ids)})
    answer = msgspec.json.decode(ranker.rank_json(body, **more))
    assert (answer["items"], answer["scores"]) == (ranking.items, ranking.scores)
    assert (answer["stale"], answer["missing"]) == (list(ranking.stale), list(ranking.missing))
    scores = dict(zip(ranking.items, ranking.scores, strict=True))
    for sku in ids[:: max(1, len(ids) // 7)]:
        if sku in scores:
            assert ranker.rank(context, [sku], **more).scores == [scores[sku]]
    return scores


@pytest.fixture(scope="module", params=["c", "python"])
def two_tower(request):
    """A context tensor, an item tensor, history with a mask: score = sum(context) * weight + number of real history items."""
    spec = ri.FeatureSpec(
        request={"a": float, "b": float | None, "seen": list[str] | None, "sku": str},
        entities={"item": "sku"},
        candidate="item",
        tensors={
            "ctx": ri.Tensor([c.numeric("a"), c.numeric("b", null=0.5)], axis="context"),
            "item": ri.Tensor([c.stored("item.weight", unknown=-1.0, null=-2.0)]),
            "history": ri.Tensor(
                [c.sequence("seen", length=4, encoding="hashed", buckets=16)],
                dtype="int64",
                axis="context",
                mask="real",
                mask_dtype="float32",
            ),
        },
    )
    nodes = [
        helper.make_node("ReduceSum", ["ctx", "axis"], ["s"], keepdims=1),
        helper.make_node("Mul", ["item", "s"], ["p"]),
        helper.make_node("ReduceSum", ["real", "axis"], ["n"], keepdims=1),
        helper.make_node("Cast", ["history"], ["hf"], to=FLOAT),
        helper.make_node("ReduceSum", ["hf", "axis"], ["h"], keepdims=1),
        helper.make_node("Mul", ["h", "zero"], ["h0"]),
        helper.make_node("Add", ["p", "n"], ["q"]),
        helper.make_node("Add", ["q", "h0"], ["y"]),
    ]
    model = model_of(
        nodes,
        {
            "ctx": (FLOAT, [1, 2]),
            "item": (FLOAT, [None, 1]),
            "history": (INT64, [1, 4]),
            "real": (FLOAT, [1, 4]),
        },
        axis=np.array([1]),
        zero=np.float32(0),
    )
    rows = {sku: {"weight": None if n % 10 == 0 else float(n % 13)} for n, sku in enumerate(IDS)}
    store = ri.Store(tables={"item": ri.Snapshot.from_rows(rows, kinds={"weight": "f64"})})
    return releases.ranker_of(releases.packed("towers", model, spec), store=store, backend=request.param)


@pytest.mark.parametrize("n", [1, 2, 511, 512, 513, 1300])
@pytest.mark.parametrize("seen", [None, [], ["a"], list("abcdefgh")])
def test_context_tensors_and_masks_reach_the_model_once(two_tower, n, seen):
    """One row of context for all candidates, in every tile."""
    context = {"a": 2.0, "b": None, "seen": seen}
    scores = agree(two_tower, context, [*IDS[: n - 1], "new"])
    real = min(4, len(seen or []))
    for i, sku in enumerate(IDS[: n - 1]):
        weight = -2.0 if i % 10 == 0 else float(i % 13)
        assert scores[sku] == 2.5 * weight + real
    assert scores["new"] == -2.5 + real


def test_what_was_missing_is_told_of_the_context_and_of_items_that_are_shown(two_tower):
    """Also of items whose cells were computed long before."""
    context = {"a": 2.0, "b": 1.0, "seen": ["x"]}
    assert two_tower.rank(context, IDS[1:5]).missing == ()
    assert two_tower.rank(context, IDS[1:12]).missing == ("item.weight",)
    assert two_tower.rank(context | {"b": None}, IDS[1:5]).missing == ("b",)


@pytest.fixture(scope="module")
def pairs():
    """An entity of (user, item) beside the item's own: score = bought * 100 + weight + stock of (store, item)."""
    spec = ri.FeatureSpec(
        request={"user": str, "store": int, "sku": str},
        entities={"item": "sku", "pair": ("user", "sku"), "shelf": ("store", "sku"), "user_": "user"},
        candidate="item",
        columns=[
            c.stored("pair.bought", unknown=0.0, null=0.0),
            c.stored("item.weight", unknown=0.0, null=0.0),
            c.stored("shelf.stock", unknown=-0.25, null=0.0),
            c.stored("user_.age", unknown=0.0, null=0.0),
        ],
    )
    files = releases.packed("pairs", releases.weighted(100.0, 1.0, 1.0, 0.0), spec)
    tables = {
        "item": ri.Snapshot.from_rows({sku: {"weight": float(n % 5)} for n, sku in enumerate(IDS)}),
        "pair": ri.Snapshot.from_rows(
            {
                (user, sku): {"bought": float(n % 3)}
                for n, sku in enumerate(IDS)
                for user in ("u", "", "ü\0")
                if n % 2
            }
        ),
        "shelf": ri.Snapshot.from_rows({(s, sku): {"stock": s / 4} for s in (1, -2) for sku in IDS[::3]}),
        "user_": ri.Snapshot.from_rows({"u": {"age": 30.0}}),
    }
    return releases.ranker_of(files, store=ri.Store(tables=tables))


@pytest.mark.parametrize("user", ["u", "", "ü\0", "nobody"])
@pytest.mark.parametrize("shop", [1, -2, 0, 2**63 - 1])
def test_entities_of_context_and_candidate_are_found_for_every_pair(pairs, user, shop):
    """Empty texts, NULs, negative and extreme numbers in keys of two parts; unknown pairs take their defaults."""
    ids = [*IDS[:600], "", "new", "x" * 3000]
    scores = agree(pairs, {"user": user, "store": shop}, ids)
    for n, sku in enumerate(IDS[:600]):
        bought = n % 3 if n % 2 and user != "nobody" else 0
        stock = shop / 4 if n % 3 == 0 and shop in (1, -2) else -0.25
        assert scores[sku] == 100.0 * bought + n % 5 + stock
    assert scores["new"] == scores[""] == scores["x" * 3000] == -0.25


@pytest.mark.parametrize("backend", ["c", "python"])
def test_texts_of_context_table_and_candidate_reach_a_model_as_they_are(backend):
    """A string tensor of three columns: score = 1 where item label, candidate and context text are equal."""
    spec = ri.FeatureSpec(
        request={"wanted": str, "sku": str},
        entities={"item": ri.Entity(key=("sku",), columns={"label": "str"})},
        candidate="item",
        tensors={
            "texts": ri.Tensor(
                [c.raw("wanted"), c.raw("item.label", null="-", unknown="?"), c.raw("sku")], dtype="string"
            )
        },
    )
    nodes = [
        helper.make_node("Split", ["texts"], ["w", "l", "s"], axis=1, num_outputs=3),
        helper.make_node("Equal", ["w", "l"], ["e1"]),
        helper.make_node("Equal", ["w", "s"], ["e2"]),
        helper.make_node("Cast", ["e1"], ["f1"], to=FLOAT),
        helper.make_node("Cast", ["e2"], ["f2"], to=FLOAT),
        helper.make_node("Mul", ["f2", "two"], ["g2"]),
        helper.make_node("Add", ["f1", "g2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("texts", STRING, [None, 3])],
        [helper.make_tensor_value_info("y", FLOAT, [None, 1])],
        [helper.make_tensor("two", FLOAT, [], [2.0])],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9
    ).SerializeToString()
    labels = ["red", "", "ré\0d", "日本", None]
    rows = {f"{n}": {"label": labels[n % 5]} for n in range(700)}
    store = ri.Store(tables={"item": ri.Snapshot.from_rows(rows, kinds={"label": "str"})})
    ranker = releases.ranker_of(releases.packed("texts", model, spec), store=store, backend=backend)
    for wanted in ["red", "", "ré\0d", "日本", "-", "?", "7", "new"]:
        scores = agree(ranker, {"wanted": wanted}, [*rows, "new"])
        for n in range(700):
            label = "-" if labels[n % 5] is None else labels[n % 5]
            assert scores[f"{n}"] == (label == wanted) + 2 * (f"{n}" == wanted)
        assert scores["new"] == (wanted == "?") + 2 * (wanted == "new")


def test_a_chain_of_models_ranks():
    """A tower over the context feeds the ranker, through plain arrays."""
    tower = model_of(
        [helper.make_node("MatMul", ["ctx", "w"], ["y"])],
        {"ctx": (FLOAT, [1, 2])},
        w=np.array([[1.0], [2.0]], "f4"),
    )
    head = model_of(
        [helper.make_node("Add", ["item", "tower.y"], ["y"])],
        {"item": (FLOAT, [None, 1]), "tower.y": (FLOAT, [None, 1])},
    )
    spec = ri.FeatureSpec(
        request={"a": float, "b": float, "sku": str},
        entities={"item": "sku"},
        candidate="item",
        tensors={
            "ctx": ri.Tensor([c.numeric("a"), c.numeric("b")], axis="context"),
            "item": ri.Tensor([c.stored("item.weight", unknown=-1.0, null=0.0)]),
        },
    )
    files = releases.packed("chain", {"tower": tower, "head": head}, spec, score="head.y")
    rows = {sku: {"weight": float(n)} for n, sku in enumerate(IDS)}
    ranker = releases.ranker_of(files, store=ri.Store(tables={"item": ri.Snapshot.from_rows(rows)}))
    scores = agree(ranker, {"a": 1.0, "b": 10.0}, [*IDS, "new"])
    assert scores == {sku: 21.0 + n for n, sku in enumerate(IDS)} | {"new": 20.0}


# ---- age ---------------------------------------------------------------------------------------------------------------


def aged(on_stale, backend="c"):
    """Items that were true at different times; score = weight, after an hour `on_stale`."""
    spec = ri.FeatureSpec(
        request={"boost": float, "sku": str},
        entities={"item": "sku"},
        candidate="item",
        columns=[
            c.numeric("boost"),
            c.stored("item.weight", max_age="1h", on_stale=on_stale, unknown=0.0, null=0.0),
        ],
    )
    files = releases.packed("aged", releases.weighted(1.0, 1.0), spec)
    rows = {
        f"i{n:02d}": {"weight": 1.0 + n, "at": releases.AT - dt.timedelta(minutes=10 * n)} for n in range(12)
    }
    rows["future"] = {"weight": 50.0, "at": releases.AT + dt.timedelta(days=400)}
    table = ri.Snapshot.from_rows(rows, updated_at="at")
    return releases.ranker_of(files, store=ri.Store(tables={"item": table}), backend=backend), [*rows]


@pytest.mark.parametrize("backend", ["c", "python"])
@pytest.mark.parametrize(("on_stale", "want"), [("use", None), (-5.0, -5.0), ("refuse", "refused")])
def test_stale_items_take_what_their_column_says(on_stale, want, backend):
    """By the clock of the call: fresh ones come from encoded rows, stale ones are looked at again. The edge is fresh."""
    ranker, ids = aged(on_stale, backend)
    for minutes in (0, 30, 5000):
        now = releases.AT + dt.timedelta(minutes=minutes)
        ranking = ranker.rank({"boost": 0.0}, ids, 50, at=now)
        scores = dict(zip(ranking.items, ranking.scores, strict=True))
        stale = [f"i{n:02d}" for n in range(12) if 10 * n + minutes > 60]
        for n in range(12):
            sku = f"i{n:02d}"
            if sku not in stale or want is None:
                assert scores[sku] == 1.0 + n
            elif want == "refused":
                assert ranking.suppressed[sku] == "refused"
            else:
                assert scores[sku] == want
        assert scores["future"] == 50.0  # from the future: age 0, never a negative one
        assert ranking.stale == (("item.weight",) if stale else ())


def test_a_stale_item_can_be_dropped_by_refusing_and_the_rest_is_ranked_on():
    """Nothing but stale items gives an empty ranking, not an error."""
    ranker, ids = aged("refuse")
    far = releases.AT + dt.timedelta(days=300)
    ranking = ranker.rank({"boost": 0.0}, [i for i in ids if i != "future"], at=far)
    assert ranking.items == []
    assert set(ranking.suppressed.values()) == {"refused"}


def test_a_context_that_refuses_is_an_error_and_not_an_empty_ranking():
    """What is wrong with the context is wrong for all candidates."""
    spec = ri.FeatureSpec(
        request={"a": float | None, "sku": str},
        entities={"item": "sku"},
        candidate="item",
        columns=[c.numeric("a", null="refuse"), c.stored("item.weight", unknown=0.0, null=0.0)],
    )
    store = ri.Store(tables={"item": ri.Snapshot.from_rows({"x": {"weight": 1.0}})})
    ranker = releases.ranker_of(releases.packed("strict", releases.weighted(1.0, 1.0), spec), store=store)
    with pytest.raises(FeatureError, match=r"\$\.a"):
        ranker.rank({"a": None}, ["x"])
    with pytest.raises(FeatureError, match=r"\$\.a"):
        ranker.rank_json(b'{"context":{},"candidates":["x"]}')
    assert ranker.rank({"a": 1.0}, ["x"]).items == ["x"]


# ---- swapped tables ------------------------------------------------------------------------------------------------------


def test_a_swapped_table_is_ranked_from_the_next_call_on():
    """New items, other weights, more columns; dropped columns are refused and nothing changes."""
    store = ri.Store(tables={"item": releases.items(10)})
    ranker = releases.item_ranker(store=store)
    ids = [f"sku-{i:03d}" for i in range(12)]
    rule = "item.stock > 0"
    before = ranker.rank(releases.CONTEXT, ids, available=rule)
    store.swap("item", releases.items(12, shift=100.0))
    after = ranker.rank(releases.CONTEXT, ids, available=rule)
    assert {"sku-009", "sku-010", "sku-011"} <= set(after.items)
    assert "sku-010" not in before.items
    assert min(after.scores) > 100.0
    rows = {sku: releases.item_row(int(sku[4:])) | {"more": 1.0, "aaa": "first"} for sku in ids}
    store.swap("item", ri.Snapshot.from_rows(rows, kinds={"weight": "f64", "stock": "i64", "age": "i64"}))
    wide = ranker.rank(releases.CONTEXT, ids, available=rule)
    assert (wide.items, wide.scores) == (
        releases.expected_order(wide.items),
        [s - 100.0 for s in sorted(after.scores, reverse=True)],
    )
    assert (
        ranker.rank(releases.CONTEXT, ids, available="item.more == 1").items
        == releases.expected_order(ids)[:20]
    )
    with pytest.raises(ri.errors.SchemaMismatchError):
        store.swap("item", ri.Snapshot.from_rows({"x": {"weight": 1.0}}))
    assert ranker.rank(releases.CONTEXT, ids, available=rule).items == wide.items


def test_a_closed_ranker_does_not_hold_up_a_swap():
    """Its store goes on without it, and other rankers of the same spec share what was encoded."""
    store = ri.Store(tables={"item": releases.items(10)})
    one, other = releases.item_ranker(store=store), releases.item_ranker(store=store)
    one.close()
    store.swap("item", releases.items(10, shift=5.0))
    assert other.rank(releases.CONTEXT, ["sku-001"]).scores == [7.0]
    del other
    store.swap("item", releases.items(10, shift=6.0))
    third = releases.item_ranker(store=store)
    assert third.rank(releases.CONTEXT, ["sku-001"]).scores == [8.0]


@pytest.mark.parametrize("rows_of_context", [1, None])
def test_a_release_that_ranks_also_scores_pairs(rows_of_context):
    """The same pair, the same bits, by a Scorer: also where the model takes one row of context only."""
    spec = ri.FeatureSpec(
        request={"a": float, "sku": str},
        entities={"item": "sku"},
        candidate="item",
        tensors={
            "ctx": ri.Tensor([c.numeric("a")], axis="context"),
            "item": ri.Tensor([c.stored("item.weight", unknown=0.5, null=0.0)]),
        },
    )
    model = model_of(
        [helper.make_node("Mul", ["ctx", "item"], ["y"])],
        {"ctx": (FLOAT, [rows_of_context, 1]), "item": (FLOAT, [None, 1])},
    )
    files = releases.packed("both", model, spec)
    store = ri.Store(
        tables={"item": ri.Snapshot.from_rows({sku: {"weight": n / 7} for n, sku in enumerate(IDS)})}
    )
    ranker, scorer = releases.ranker_of(files, store=store), releases.scorer_of(files, store=store)
    ids = [*IDS[:700], "new"]
    want = agree(ranker, {"a": 0.1}, ids)
    requests = [{"a": 0.1, "sku": sku} for sku in ids]
    assert [d.score for d in scorer.score_batch(requests)] == [want[sku] for sku in ids]
    assert scorer.score(requests[5]).score == want[ids[5]]
    pa = pytest.importorskip("pyarrow")
    assert scorer.score_table(pa.Table.from_pylist(requests))["score"].to_pylist() == [
        want[sku] for sku in ids
    ]
    stored = [r | {"item.weight": n / 7 if r["sku"] != "new" else 0.5} for n, r in enumerate(requests)]
    assert scorer.score_table(pa.Table.from_pylist(stored))["score"].to_pylist() == [want[sku] for sku in ids]
