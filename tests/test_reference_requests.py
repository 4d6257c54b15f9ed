"""Requests in every form, batches and rankings: the engine against the plain NumPy twin, bit by bit.

Each test runs the engine as a loaded release does (bare.py), and compares the arrays that its model would have got.
Whole tables: test_reference_table.py.
"""

from __future__ import annotations

import dataclasses
import gc
import operator as op
from typing import Any

import msgspec
import numpy as np
import pytest
from bare import BarePipeline, snapshot_of
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, as_request, as_wire, cases, same_bits, same_place, state_of, tables_again

from retailinfer import columns as columns_
from retailinfer._native import reference
from retailinfer.contracts import Decision, Ranking
from retailinfer.errors import FeatureError
from retailinfer.features.spec import Entity, FeatureSpec, Tensor

COUNTED_FROM_NS = -600_000_000 * 10**9  # 1950 to 2086, and a little less: the ids of panes of a second
COUNTED_TO_NS = 3_600_000_000 * 10**9
LONGEST_KEY = 1024
COMPARE = dict(zip(columns_.COMPARISONS, (op.lt, op.le, op.gt, op.ge, op.eq, op.ne), strict=True))


def one(case: Case, row: int) -> Case:
    """The case with one of its rows."""
    return dataclasses.replace(case, rows=[case.rows[row]])


def outcome(case: Case, row: int) -> reference.Result | FeatureError:
    """What the twin says of one row."""
    try:
        return one(case, row).expected()
    except FeatureError as exc:
        return exc


def assert_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray], form: str) -> None:
    """Compare all tensors and masks cell by cell, as bits."""
    assert got.keys() == want.keys()
    for name, cells in want.items():
        assert same_bits(got[name], cells), f"{form}, {name}: native {got[name]!r}, twin {cells!r}"


def columns_in(case: Case, want: reference.Result, *states: int) -> set[str]:
    """Names of the columns that met one of these states."""
    names = [column.name for tensor in case.body.tensors.values() for column in tensor.columns]
    return {names[i] for i in range(len(names)) if np.isin(want.states[:, i], states).any()}


def assert_decision(case: Case, want: reference.Result, decision: Any) -> None:
    """The answer lists what was missing and stale, and asks for review where a column did."""
    assert set(decision.missing) == columns_in(case, want, 1, 2, 4)
    # a stale value that then gave no result (a ratio over zero) is listed as both
    assert (
        columns_in(case, want, 3) <= set(decision.stale) <= columns_in(case, want, 3) | set(decision.missing)
    )
    assert decision.action == ("review" if want.review[0] else "pass")


def forms(pipe: BarePipeline, case: Case, row: dict[str, Any]) -> dict[str, Any]:
    """The same request as every kind of object, by the name of the form."""
    request = as_request(case.body, row)
    names = list(request)
    loose = msgspec.defstruct("Loose", [(n, object, None) for n in names])
    data = dataclasses.make_dataclass("Data", [(n, object, None) for n in names], slots=True)
    return {
        "dict": request,
        "dict without nulls": as_request(case.body, row, drop_nulls=True),
        "generated Struct": pipe.request_type(**request),
        "user's Struct": loose(**request),
        "dataclass": data(**request),
    }


def answers(pipe: BarePipeline, case: Case, row: dict[str, Any]) -> dict[str, Any]:
    """Every way to score one request: name of the form -> function that returns a decision."""
    engine, now = pipe.engine, case.now_ns
    calls: dict[str, Any] = {
        form: (lambda given=given: engine.score(given, None, now))
        for form, given in forms(pipe, case, row).items()
    }
    calls["batch of one"] = lambda: engine.score_batch([as_request(case.body, row)], False, now)[0]
    json = msgspec.json.encode(as_wire(case.body, row, text=True))
    calls["JSON"] = lambda: msgspec.convert(msgspec.json.decode(engine.score_json(json, None, now)), Decision)
    pack = msgspec.msgpack.encode(as_wire(case.body, row, text=False))
    decode = msgspec.msgpack.Decoder(pipe.request_type).decode
    calls["MessagePack"] = lambda: msgspec.msgpack.decode(
        engine.score_msgpack(pack, decode, msgspec.msgpack.encode, None, now), type=Decision
    )
    return calls


@given(case=cases(max_rows=3))
def test_every_form_of_a_request_gives_the_bits_of_the_twin(case):
    """Dict, Structs, dataclass, JSON and MessagePack fill the same cells, or fail alike, and answer alike."""
    pipe = BarePipeline(case)
    for i, row in enumerate(case.rows):
        want = outcome(case, i)
        for form, call in answers(pipe, case, row).items():
            if isinstance(want, FeatureError):
                with pytest.raises(type(want)) as caught:
                    call()
                place = "$[0]" if form == "batch of one" else "$"
                assert same_place(caught.value.path, place + want.path.removeprefix("$[0]"))
                continue
            decision = call()
            assert_same(pipe.last(), want.tensors, form)
            assert_decision(case, want, decision)


@given(case=cases(max_rows=8))
def test_a_batch_gives_the_bits_of_its_rows(case):
    """Requests together fill the cells that each fills alone; a row that fails leaves the others as they are."""
    pipe = BarePipeline(case)
    wants = [outcome(case, i) for i in range(len(case.rows))]
    given_ = [list(forms(pipe, case, row).values())[i % 5] for i, row in enumerate(case.rows)]
    got = pipe.engine.score_batch(given_, True, case.now_ns)
    good = [w for w in wants if not isinstance(w, FeatureError)]
    if good:
        together = {name: np.concatenate([w.tensors[name] for w in good]) for name in pipe.names}
        assert_same(pipe.last(), together, "batch")
    for i, (want, decision) in enumerate(zip(wants, got, strict=True)):
        if isinstance(want, FeatureError):
            assert type(decision) is type(want)
            assert same_place(decision.path, f"$[{i}]" + want.path.removeprefix("$[0]"))
        else:
            assert_decision(case, want, decision)


# ---- windows ---------------------------------------------------------------------------------------------------------


def of_no_history(case: Case, row: dict[str, Any]) -> dict[str, Any] | None:
    """The row with what its windows hold when nothing was counted yet: the request itself at most.

    None: windows cannot hold its time, or a value of it in their scale; the request is then refused.
    """
    body = case.body
    at_ns = row[body.event_time] if body.event_time and row[body.event_time] is not None else case.now_ns
    if not COUNTED_FROM_NS < at_ns < COUNTED_TO_NS:
        return None
    made = dict(row)
    for name, window in body.windows.items():
        value = None if window.of is None or window.on != "payment" else row[window.of]
        scale = window.scale
        # As integers: 2**53 + 1 is none of its own as a float.
        if scale is not None and value is not None and abs(value) * scale > 2**53:
            return None
        keys = [row[k] for k in body.entities[window.entity].key]
        long = sum(
            4 + len(k.encode() if isinstance(k, str) else bytes(8) if isinstance(k, int) else k)
            for k in keys
            if k is not None
        )
        unknown = None in keys or long > LONGEST_KEY
        counted = (
            window.on == "payment"
            and window.current == "include"
            and window.delay_ns == 0
            and all(row[t.field] is not None and COMPARE[t.op](row[t.field], t.value) for t in window.where)
            and (window.of is None or value is not None)
        )
        if window.what in ("count", "distinct"):
            held: float | None = float(counted)
        elif counted:
            assert scale is not None
            held = round(float(value) * scale) / scale
        else:
            held = 0.0 if window.what == "sum" else None
        made[name] = None if unknown else held
        made[state_of(name)] = reference.UNKNOWN if unknown else reference.PRESENT
    return made


@given(case=cases(max_rows=3, windows=True))
def test_windows_stand_in_the_slots_that_columns_read(case):
    """Beside fields and stored values of all types, through every form of a request: what no event has touched yet."""
    rows = [of_no_history(case, row) for row in case.rows]
    case = dataclasses.replace(case, rows=[row for row in rows if row is not None])
    pipe = BarePipeline(case)
    for i, row in enumerate(case.rows):
        want = outcome(case, i)
        for form, call in answers(pipe, case, row).items():
            if isinstance(want, FeatureError):
                with pytest.raises(type(want)) as caught:
                    call()
                assert same_place(caught.value.path.replace("$[0]", "$"), want.path.replace("$[0]", "$"))
                continue
            decision = call()
            assert_same(pipe.last(), want.tensors, form)
            assert_decision(case, want, decision)


# ---- rankings --------------------------------------------------------------------------------------------------------


def context_of(case: Case) -> dict[str, Any]:
    """The request of a ranking: every field but the candidate's own."""
    request = as_request(case.body, case.rows[0])
    del request["sku"]
    return request


def assert_ranking(pipe: BarePipeline, case: Case, call: Any) -> None:
    """A ranking of all candidates scores the rows that the twin fills, with its bits, and leaves out the others."""
    wants = [outcome(case, i) for i in range(len(case.rows))]
    good = [i for i, want in enumerate(wants) if not isinstance(want, FeatureError)]
    pipe.seen.clear()
    if not good:  # what the context lacks, it lacks for every candidate
        try:
            ranking = call()
        except FeatureError:
            return
    else:
        ranking = call()
    ids = [row["sku"] for row in case.rows]
    assert ranking.items == [ids[i] for i in good]
    refused = {type(ids[0])(key) for key in ranking.suppressed}  # JSON has no integers as keys
    assert refused == set(ids) - set(ranking.items)
    if not good:
        return
    got = pipe.last()
    tables = [wants[i].tensors for i in good]
    want = {name: np.concatenate([t[name] for t in tables]) for name in pipe.names}
    for name, tensor in case.body.tensors.items():
        for made in (name, tensor.mask) if tensor.axis == "context" else ():
            if made is not None:
                want[made] = tables[0][made]
                assert all(same_bits(t[made], want[made]) for t in tables)
    assert_same(got, want, "ranking")
    for i in good:
        assert columns_in(case, wants[i], 1, 2, 4) <= set(ranking.missing)
        assert columns_in(case, wants[i], 3) <= set(ranking.stale)


@given(case=cases(max_rows=6, ranking=True), data=st.data())
def test_a_ranking_gives_the_bits_of_its_rows(case, data):
    """Context once, encoded items, cross columns per candidate: the same cells as one request per candidate."""
    pipe = BarePipeline(case, ranks=True)
    engine, now, n = pipe.engine, case.now_ns, len(case.rows)
    ids = [row["sku"] for row in case.rows]
    assert_ranking(pipe, case, lambda: engine.rank(context_of(case), ids, n, now_ns=now))
    # once more, from the item rows that are encoded now, with each id twice
    assert_ranking(pipe, case, lambda: engine.rank(context_of(case), ids + ids, n, now_ns=now))
    wire = as_wire(case.body, {k: v for k, v in case.rows[0].items() if k != "sku"}, text=True)
    body = msgspec.json.encode({"context": wire, "candidates": ids, "k": n})
    assert_ranking(
        pipe, case, lambda: msgspec.json.decode(engine.rank_json(body, None, None, now), type=Ranking)
    )
    # and after the tables were replaced: other rows under the same keys
    other = data.draw(tables_again(case))
    for name in case.tables:
        pipe.store.swap(name, snapshot_of(other, name))
    assert_ranking(pipe, other, lambda: engine.rank(context_of(other), ids, n, now_ns=now))


@given(case=cases(max_rows=6, ranking=True), data=st.data())
def test_excluded_candidates_never_appear(case, data):
    """What the caller excludes is left out and named, whatever else happens; the rest is ranked as without it."""
    pipe = BarePipeline(case, ranks=True)
    ids = [row["sku"] for row in case.rows]
    gone = data.draw(st.lists(st.sampled_from(ids), unique=True))
    rest = dataclasses.replace(case, rows=[row for row in case.rows if row["sku"] not in gone])
    try:
        ranking = pipe.engine.rank(context_of(case), ids, len(ids), None, gone, now_ns=case.now_ns)
    except FeatureError:
        return
    assert not set(gone) & set(ranking.items)
    assert all(ranking.suppressed[key] == "excluded" for key in gone)
    if rest.rows:
        again = pipe.engine.rank(
            context_of(case), [row["sku"] for row in rest.rows], len(ids), now_ns=case.now_ns
        )
        assert again.items == ranking.items


# ---- what random cases are unlikely to meet ---------------------------------------------------------------------------


def ranker_case(columns: list[Any], cells: dict[str, Any], **more: Any) -> Case:
    """A ranking of item `a`, whose row holds `cells` (name -> (type, value)), for one float field `u`."""
    spec = FeatureSpec(
        request={"u": float, "sku": str},
        entities={"item": Entity(("sku",), {name: kind for name, (kind, _) in cells.items()})},
        candidate="item",
        tensors={"t": Tensor(tuple(columns), **more), "u": Tensor((columns_.numeric("u"),))},
    )
    written = 1_600_000_000 * 10**9
    tables = {"item": {"a": ({name: value for name, (_, value) in cells.items()}, written)}}
    return Case(spec.body, [{"u": 1.0, "sku": "a"}], tables, written + 2 * 3600 * 10**9, {})


def test_an_old_item_takes_its_stale_default_though_its_value_cannot_be_stored():
    """An item row is encoded before its age is known; what fails there may be fine when the row is stale, and is kept."""
    case = ranker_case(
        [columns_.numeric("item.x", scale=5e-324, on_stale=0.0, max_age="1h")], {"x": ("float", 1.0)}
    )
    pipe = BarePipeline(case, ranks=True)
    for now, items in ((case.now_ns, ["a"]), (case.now_ns - 90 * 60 * 10**9, [])):
        case.now_ns = now
        assert pipe.engine.rank({"u": 1.0}, ["a"], 1, now_ns=now).items == items
        assert_ranking(pipe, case, lambda: pipe.engine.rank(context_of(case), ["a"], 1, now_ns=case.now_ns))


def test_encoded_items_outlive_the_ranker_that_encoded_them():
    """Rankers of one spec share encoded rows, and a default text in them stays readable when the first ranker is gone."""
    default = "default " * 6
    case = ranker_case([columns_.raw("item.s", null=default)], {"s": ("str", None)}, dtype="string")
    first = BarePipeline(case, ranks=True)
    first.engine.rank({"u": 1.0}, ["a"], 1)
    second = BarePipeline(case, ranks=True, store=first.store)
    del first
    gc.collect()
    junk = [bytes([65 + i % 26]) * n for i in range(3000) for n in range(44, 56)]
    second.engine.rank({"u": 1.0}, ["a"], 1)
    assert second.last()["t"][0, 0] == default
    del junk


def many_rows(n: int) -> Case:
    """A case of `n` rows that differ: text, numbers, a stored value for most, a refusal in every 97th row."""
    spec = FeatureSpec(
        request={"u": float, "s": str, "l": list[int], "sku": str},
        entities={"item": Entity(("sku",), {"x": "float", "v": "vector", "s": "str"})},
        candidate="item",
        tensors={
            "a": Tensor(
                (
                    columns_.numeric("u", transform="signed_log1p"),
                    columns_.numeric("item.x", null="refuse", unknown=-1.0),
                    columns_.embedding("item.v", size=3, null=0.0),
                    columns_.product("u", "item.x", null=0.0, name="cross"),
                ),
                mask="m",
            ),
            "b": Tensor((columns_.raw("item.s", null="none"), columns_.raw("sku")), "string"),
            "c": Tensor((columns_.sequence("l", length=2, encoding="number"),), "int64", axis="context"),
            "d": Tensor((columns_.hashed("s", "sku", buckets=1000, name="h"),), "int64"),
        },
    )
    rows = [{"u": 1.5, "s": "né", "l": [3], "sku": f"sku-{i}"} for i in range(n)]
    table = {
        f"sku-{i}": (
            {
                "x": None if i % 97 == 5 else i / 7,
                "v": np.array([i, -i, 0.1], np.float32) if i % 3 else None,
                "s": f"name {i}" if i % 2 else None,
            },
            0,
        )
        for i in range(n)
        if i % 11
    }
    return Case(spec.body, rows, {"item": table}, 1, {"item.v": 3})


@pytest.mark.parametrize("row_independent", [True, False])
def test_more_candidates_than_a_tile_are_ranked_alike(row_independent):
    """1,300 candidates, unknown and refused ones among them, in tiles of 512 or row by row: the twin's bits in order."""
    case = many_rows(1300 if row_independent else 60)
    pipe = BarePipeline(case, ranks=True, row_independent=row_independent)
    ids = [row["sku"] for row in case.rows]
    kept = [i for i in range(len(ids)) if not (i % 97 == 5 and i % 11)]
    wanted = dataclasses.replace(case, rows=[case.rows[i] for i in kept]).expected().tensors
    ranking = pipe.engine.rank(context_of(case), ids, len(ids))
    assert sorted(ranking.items) == sorted(ids[i] for i in kept)
    assert set(ranking.suppressed) == set(ids) - set(ranking.items)
    assert len(pipe.seen) == (3 if row_independent else len(kept))
    got = pipe.last()
    for name in ("a", "m", "b", "d"):
        assert same_bits(got[name], wanted[name]), name
    assert {tuple(cells) for cells in got["c"].tolist()} == {(3, 0)}


@pytest.mark.parametrize("row_independent", [True, False])
def test_more_requests_than_a_tile_are_scored_alike(row_independent):
    """1,300 requests in tiles, or row by row: the twin's bits in order, errors in their rows."""
    case = many_rows(1300 if row_independent else 60)
    pipe = BarePipeline(case, row_independent=row_independent)
    requests = [as_request(case.body, row) for row in case.rows]
    decisions = pipe.engine.score_batch(requests, True)
    refused = [i for i, d in enumerate(decisions) if isinstance(d, FeatureError)]
    assert refused == [i for i in range(len(requests)) if i % 97 == 5 and i % 11]
    assert all(decisions[i].path == f"$[{i}].item.x" for i in refused)
    rows = [row for i, row in enumerate(case.rows) if i not in set(refused)]
    assert_same(pipe.last(), dataclasses.replace(case, rows=rows).expected().tensors, "batch")
    with pytest.raises(type(decisions[refused[0]])) as caught:
        pipe.engine.score_batch(requests)
    assert caught.value.path == f"$[{refused[0]}].item.x"
