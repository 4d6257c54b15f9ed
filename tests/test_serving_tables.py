"""Mutable tables in every door: each outcome of each column, sources that are slow, down or wrong, what the answer says."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
import time

import msgspec
import numpy as np
import pytest
import releases

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.clock import ManualClock
from retailinfer.errors import (
    ConfigError,
    DeadlineExceededError,
    FeatureMissingError,
    FeatureRangeError,
    FeatureTypeError,
    SchemaMismatchError,
)

SECOND_NS = 10**9
MS_NS = 10**6


class Held:
    """A source that answers when it is told to, and says what it was asked."""

    def __init__(self, rows=None, *, held=False):
        self.rows = dict(rows or {})
        self.asked: list[list[str]] = []
        self.go = threading.Event()
        self.error: BaseException | None = None
        if not held:
            self.go.set()

    def fetch(self, keys, *, timeout_s):
        self.asked.append(sorted(keys))
        self.go.wait(timeout=10)
        if self.error is not None:
            raise self.error
        return {key: self.rows.get(key) for key in keys}


def spec_of(**outcomes):
    """Score = the card's mean + 1000 * its n."""
    return ri.FeatureSpec(
        request={"card": str | None},
        entities={"card": ri.Entity(key=("card",), columns={"mean": "float", "n": "int"})},
        columns=[
            c.stored("card.mean", **outcomes),
            c.stored("card.n", null=0.0, unknown=0.0, on_unavailable=0.0),
        ],
    )


DEFAULTS = (("null", -1.0), ("unknown", -2.0), ("on_stale", "use"), ("on_unavailable", -4.0))


@functools.cache
def files(outcomes=DEFAULTS, max_age: str | None = None, deadline_ms: float | None = None):
    """A release over the card's two columns."""
    given = dict(outcomes) | ({} if max_age is None else {"max_age": max_age})
    contract = ri.Contract() if deadline_ms is None else ri.Contract(deadline_ms=deadline_ms)
    return releases.packed("cards", releases.weighted(1.0, 1000.0), spec_of(**given), contract=contract)


def table_of(rows=None, **options):
    """Cards with a mean and an n."""
    table = ri.FeatureTable({"mean": "f64", "n": "i64"}, "str", **options)
    for key, row in (rows or {}).items():
        table.put(key, row)
    return table


def scorer_over(table, *, clock=None, **options):
    """A scorer whose one table this is."""
    return releases.scorer_of(files(**options), store=ri.Store(tables={"card": table}, clock=clock))


# ---- outcomes --------------------------------------------------------------------------------------------------------


def test_rows_are_read_and_change_in_place():
    """The next request sees what was put; nothing is loaded again."""
    table = table_of({"a": {"mean": 1.5, "n": 2}})
    scorer = scorer_over(table)
    assert scorer.score({"card": "a"}).score == 2001.5
    table.put("a", {"mean": 2.5, "n": 3})
    assert scorer.score({"card": "a"}).score == 3002.5
    table.erase("a")
    assert scorer.score({"card": "a"}).score == -2.0


def test_every_outcome_has_its_own_answer():
    """Present, null, unknown and without a key; stale with its value; what is told of each."""
    clock = ManualClock()
    table = table_of({"a": {"mean": 1.0}, "null": {"n": 1}}, ttl="10s", jitter=0.0, clock=clock)
    scorer = scorer_over(table, clock=clock)
    found = {card: scorer.score({"card": card}) for card in ("a", "null", "nobody", None)}
    assert {card: d.score for card, d in found.items()} == {
        "a": 1.0,
        "null": 999.0,
        "nobody": -2.0,
        None: -2.0,
    }
    assert found["a"].missing == ("card.n",)
    assert found["null"].missing == ("card.mean",)
    assert found["nobody"].missing == ("card.mean", "card.n")
    assert [d.stale for d in found.values()] == [()] * 4
    clock.advance_ns(11 * SECOND_NS)
    late = scorer.score({"card": "a"})
    assert (late.score, late.stale, late.missing) == (1.0, ("card.mean",), ("card.n",))
    assert scorer.freshness == ri.Freshness(answers=5, fresh=4)
    assert scorer.freshness.share == 0.8


@pytest.mark.parametrize(
    ("outcome", "want"),
    [("use", 1.0), (-3.0, -3.0), ("refuse", FeatureMissingError), ("review", 1.0)],
)
def test_a_row_past_its_time_to_live_is_stale(outcome, want):
    """Used, replaced, refused or sent to review, as its column says."""
    clock = ManualClock()
    table = table_of({"a": {"mean": 1.0, "n": 0}}, ttl="10s", jitter=0.0, clock=clock)
    outcomes = (*DEFAULTS[:2], ("on_stale", outcome), DEFAULTS[3])
    policy = ri.Policy([("approve", -1e9), ("review", 1e9)], review="review")
    spec = spec_of(**dict(outcomes))
    packed = releases.packed("stale", releases.weighted(1.0, 1000.0), spec, policy=policy)
    scorer = releases.scorer_of(packed, store=ri.Store(tables={"card": table}, clock=clock))
    assert scorer.score({"card": "a"}).action == "approve"
    clock.advance_ns(10 * SECOND_NS)
    if want is FeatureMissingError:
        with pytest.raises(FeatureMissingError, match="stale"):
            scorer.score({"card": "a"})
        return
    decision = scorer.score({"card": "a"})
    assert (decision.score, decision.stale) == (want, ("card.mean", "card.n"))
    assert decision.action == ("review" if outcome == "review" else "approve")


def test_a_column_may_expire_before_its_row():
    """Only the column with the shorter time is stale."""
    clock = ManualClock()
    table = table_of(
        {"a": {"mean": 1.0, "n": 2}}, ttl="1h", column_ttl={"mean": "10s"}, jitter=0.0, clock=clock
    )
    scorer = scorer_over(table, clock=clock)
    clock.advance_ns(11 * SECOND_NS)
    decision = scorer.score({"card": "a"})
    assert (decision.score, decision.stale) == (2001.0, ("card.mean",))


def test_expiry_does_not_notice_a_clock_that_is_set():
    """Time to live runs on the monotonic clock; ages on the wall clock, and never below zero."""
    clock = ManualClock()
    table = table_of({"a": {"mean": 1.0, "n": 2}}, ttl="10s", jitter=0.0, clock=clock)
    scorer = scorer_over(table, clock=clock, max_age="1m")
    clock.step_wall_ns(-3_600 * SECOND_NS)
    assert scorer.score({"card": "a"}).stale == ()
    clock.step_wall_ns(2 * 3_600 * SECOND_NS)
    assert scorer.score({"card": "a"}).stale == ("card.mean",)
    clock.step_wall_ns(-3_600 * SECOND_NS)
    clock.advance_ns(11 * SECOND_NS)
    assert scorer.score({"card": "a"}).stale == ("card.mean", "card.n")


def test_ages_count_from_when_the_row_was_true():
    """`updated_at` of the row, not the moment at which it was written."""
    clock = ManualClock()
    table = table_of(clock=clock)
    now_s = clock.wall_ns() / 1e9
    table.put("old", {"mean": 1.0, "n": 0}, updated_at=now_s - 120)
    table.put("new", {"mean": 1.0, "n": 0}, updated_at=now_s - 30)
    table.put("future", {"mean": 1.0, "n": 0}, updated_at=now_s + 300)
    scorer = scorer_over(table, clock=clock, max_age="1m")
    stale = {card: scorer.score({"card": card}).stale for card in ("old", "new", "future")}
    assert stale == {"old": ("card.mean",), "new": (), "future": ()}


@pytest.mark.parametrize("door", ["score", "json", "msgpack", "batch", "ascore", "struct"])
def test_every_door_reads_tables(door):
    """The same row, whichever way the request came."""
    scorer = scorer_over(table_of({"a": {"mean": 1.5, "n": 2}}))
    request = {"card": "a"}
    if door == "json":
        score = msgspec.json.decode(scorer.score_json(msgspec.json.encode(request)))["score"]
    elif door == "msgpack":
        score = msgspec.msgpack.decode(scorer.score_msgpack(msgspec.msgpack.encode(request)))["score"]
    elif door == "batch":
        score = scorer.score_batch([{"card": "b"}, request])[1].score
    elif door == "ascore":
        score = asyncio.run(scorer.ascore(request)).score
    else:
        score = scorer.score(request if door == "score" else scorer.request_type(**request)).score
    assert score == 2001.5


def test_keys_of_every_kind_find_their_rows():
    """Integers, bytes and several fields; texts and vectors of the row get into the model as they are."""
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(3, 4)).astype(np.float32)
    spec = ri.FeatureSpec(
        request={"number": int, "raw": bytes, "shop": str, "probe": list[float]},
        entities={
            "a": ri.Entity(key=("number",), columns={"x": "float", "label": "str"}),
            "b": ri.Entity(key=("raw",), columns={"y": "float"}),
            "pair": ri.Entity(key=("number", "shop"), columns={"vec": "vector", "other": "vector"}),
        },
        columns=[
            c.stored("a.x"),
            c.stored("b.y"),
            c.dot("pair.vec", "pair.other", size=4),
            c.categorical("a.label", vocabulary="labels", name="label"),
        ],
        vocabularies={"labels": ri.Vocabulary(("red", "größe"), frozen=True)},
    )
    packed = releases.packed("kinds", releases.weighted(1.0, 10.0, 100.0, 1000.0), spec)
    tables = {
        "a": ri.FeatureTable({"x": "f64", "label": "str"}, "int"),
        "b": ri.FeatureTable({"y": "f64"}, "bytes"),
        "pair": ri.FeatureTable({"vec": ("vec", 4), "other": ("vec", 4)}, ("int", "str")),
    }
    tables["a"].put(-7, {"x": 1.0, "label": "größe"})
    tables["b"].put(b"\x00\xff", {"y": 2.0})
    tables["pair"].put((-7, "s"), {"vec": vectors[0], "other": vectors[1]})
    scorer = releases.scorer_of(packed, store=ri.Store(tables=tables))
    request = {"number": -7, "raw": b"\x00\xff", "shop": "s", "probe": []}
    dot = float(np.float32(vectors[0].astype(np.float64) @ vectors[1].astype(np.float64)))
    known = scorer.score(request)
    assert known.missing == ()
    assert known.score == pytest.approx(1.0 + 20.0 + 100.0 * dot + 1000.0 * 2, rel=1e-5)
    assert scorer.score_batch([request] * 5)[4].score == known.score


def test_text_columns_outlive_the_row_they_came_from():
    """A model that takes texts runs without the GIL, while the row is written over: the copy is the call's own."""
    from onnx import TensorProto, helper

    spec = ri.FeatureSpec(
        request={"card": str},
        entities={"card": ri.Entity(key=("card",), columns={"label": "str"})},
        tensors={"x": ri.Tensor([c.raw("card.label", unknown="")], dtype="string")},
    )
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["x"],
            ["y"],
            domain="ai.onnx.ml",
            keys_strings=["red", "blue"],
            values_floats=[1.0, 2.0],
            default_float=-1.0,
        )
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.STRING, [None, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)],
        ir_version=8,
    ).SerializeToString()
    table = ri.FeatureTable({"label": "str"}, "str")
    table.put("a", {"label": "red"})
    table.put("b", {"label": "blue"})
    scorer = releases.scorer_of(
        releases.packed("texts", model, spec), store=ri.Store(tables={"card": table}), hold_gil_below_us=0.0
    )
    done = threading.Event()

    def write():
        while not done.is_set():
            for key, label in (("a", "red"), ("b", "blue")):
                table.erase(key)
                table.put(key, {"label": label})

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(300):
            answers = scorer.score_batch([{"card": "a"}, {"card": "b"}] * 4)
            assert all(a.score in (want, -1.0) for a, want in zip(answers, [1.0, 2.0] * 4, strict=True))
    finally:
        done.set()
        thread.join()


def test_snapshots_and_tables_stand_side_by_side():
    """One request reads both kinds; a swap of the one and a put into the other are both seen."""
    spec = ri.FeatureSpec(
        request={"card": str, "shop": str},
        entities={
            "card": ri.Entity(key=("card",), columns={"mean": "float"}),
            "shop": ri.Entity(key=("shop",), columns={"size": "float"}),
        },
        columns=[c.stored("card.mean", unknown=0.0), c.stored("shop.size", unknown=0.0)],
    )
    table = ri.FeatureTable({"mean": "f64"}, "str")
    store = ri.Store(tables={"card": table, "shop": ri.Snapshot.from_rows({"s": {"size": 10.0}})})
    scorer = releases.scorer_of(releases.packed("both", releases.weighted(1.0, 1.0), spec), store=store)
    request = {"card": "a", "shop": "s"}
    assert scorer.score(request).score == 10.0
    table.put("a", {"mean": 1.0})
    store.swap("shop", ri.Snapshot.from_rows({"s": {"size": 20.0}}))
    assert scorer.score(request).score == 21.0
    assert list(store) == ["card", "shop"]
    assert store["card"] is table
    with pytest.raises(ConfigError, match="FeatureTable"):
        store.swap("card", ri.Snapshot.from_rows({"a": {"mean": 1.0}}))
    with pytest.raises(ConfigError, match="FeatureTable"):
        store.generation("card")


@pytest.mark.parametrize(
    ("columns", "key", "match"),
    [
        ({"mean": "f64"}, "str", "lacks the column `n`"),
        ({"mean": "str", "n": "i64"}, "str", "of type float, the table has str"),
        ({"mean": "f64", "n": "f64"}, "str", "of type int, the table has f64"),
        ({"mean": "f64", "n": "i64"}, "int", "keyed by 'str'"),
        ({"mean": "f64", "n": "i64"}, ("str",), "keyed by 'str'"),
    ],
)
def test_a_table_of_another_shape_is_refused_when_loading(columns, key, match):
    """Never at a request."""
    table = ri.FeatureTable(columns, key)
    with pytest.raises(SchemaMismatchError, match=match):
        scorer_over(table)


# ---- sources ---------------------------------------------------------------------------------------------------------


def test_a_missing_row_is_fetched_and_stays():
    """One call of the source; the next request finds it in memory."""
    source = Held({"a": {"mean": 1.5, "n": 2}})
    scorer = scorer_over(table_of(source=source, timeout_ms=5_000))
    decision = scorer.score({"card": "a"})
    assert (decision.score, decision.missing, decision.stale) == (2001.5, (), ())
    assert scorer.score({"card": "a"}).score == 2001.5
    assert source.asked == [["a"]]


def test_the_source_says_who_does_not_exist():
    """Unknown, not unavailable; and remembered for a while. Also where the table remembers nothing."""
    for options in ({}, {"max_unknown": 0}):
        source = Held({"a": {"mean": 1.0, "n": 0}})
        scorer = scorer_over(table_of(source=source, timeout_ms=5_000, **options))
        assert scorer.score({"card": "x"}).score == -2.0
        assert [d.score for d in scorer.score_batch([{"card": "a"}, {"card": "y"}, {"card": "z"}])] == [
            1.0,
            -2.0,
            -2.0,
        ]
        asked = len(source.asked)
        assert scorer.score({"card": "x"}).score == -2.0
        assert len(source.asked) == asked + bool(options)
        assert scorer.freshness.share == 1.0


def test_a_slow_source_costs_its_share_and_not_the_answer():
    """Unavailable after the wait; the late answer fills the table all the same."""
    source = Held({"a": {"mean": 1.0, "n": 0}}, held=True)
    table = table_of(source=source, timeout_ms=30)
    scorer = scorer_over(table)
    decision = scorer.score({"card": "a"})
    assert (decision.score, decision.missing) == (-4.0, ("card.mean", "card.n"))
    assert scorer.freshness == ri.Freshness(answers=1, fresh=0)
    source.go.set()
    wait_for(lambda: "a" in table)
    assert scorer.score({"card": "a"}).score == 1.0


def wait_for(condition, seconds=10.0):
    """Until something that another thread does is done."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.002)):
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError("it did not come")


@pytest.mark.parametrize("by", ["call", "contract"])
def test_nobody_waits_beyond_the_deadline(by):
    """The table's own timeout is a minute; the request has 40 ms, of which the table may have half."""
    source = Held(held=True)
    table = table_of(source=source, timeout_ms=60_000, share=0.5)
    scorer = scorer_over(table, deadline_ms=40.0 if by == "contract" else None)
    start = time.perf_counter()
    options = {"deadline_ms": 40.0} if by == "call" else {}
    assert scorer.score({"card": "a"}, **options).score == -4.0
    assert scorer.score_batch([{"card": "b"}, {"card": "c"}], **options)[1].score == -4.0
    assert time.perf_counter() - start < 5.0
    source.go.set()


@pytest.mark.parametrize(
    ("deadline_ms", "error"),
    [
        (0, DeadlineExceededError),
        (-1.5, DeadlineExceededError),
        (-(10**400), DeadlineExceededError),
        (float("nan"), FeatureTypeError),
        ("10", FeatureTypeError),
        (True, FeatureTypeError),
    ],
)
def test_a_deadline_that_is_none_is_refused(deadline_ms, error):
    """Over before it begins, or no number; from every door. A very long one is none, a very short one is too short."""
    scorer = scorer_over(table_of({"a": {"mean": 1.0, "n": 0}}))
    with pytest.raises(error):
        scorer.score({"card": "a"}, deadline_ms=deadline_ms)
    with pytest.raises(error):
        scorer.score_batch([{"card": "a"}], deadline_ms=deadline_ms)
    with pytest.raises(error):
        scorer.score_json(b'{"card":"a"}', deadline_ms=deadline_ms)
    assert scorer.score({"card": "a"}, deadline_ms=1e18).score == 1.0
    assert scorer.score({"card": "a"}, deadline_ms=10**400).score == 1.0
    with pytest.raises(DeadlineExceededError):
        scorer.score({"card": "a"}, deadline_ms=1e-6)


class Rubbish:
    """Whatever a source should not return."""

    def __init__(self, answer):
        self.answer = answer

    def fetch(self, keys, *, timeout_s):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "answer",
    [
        None,
        5,
        "rows",
        [{"mean": 1.0}],
        {"a": 5},
        {"a": {"mean": "much", "n": 0}},
        {"a": {"mean": 1.0, "n": 2**70}},
        {"a": {"n": 1}},
        {"a": {"mean": [1.0], "n": 0}},
        RuntimeError("down"),
        KeyError("a"),
        MemoryError(),
        SystemExit(3),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_source_that_fails_or_returns_rubbish_never_costs_the_answer(answer):
    """The declared outcome applies, and no error of the source gets out."""
    scorer = scorer_over(table_of(source=Rubbish(answer), timeout_ms=5_000))
    assert scorer.score({"card": "a"}).score == -4.0
    assert [d.score for d in scorer.score_batch([{"card": "a"}, {"card": None}])] == [-4.0, -2.0]


def test_a_batch_asks_once_for_all_that_it_misses():
    """One call of the source for the whole batch, each key once."""
    source = Held({f"c{i}": {"mean": float(i), "n": 0} for i in range(40)})
    table = table_of({"c0": {"mean": 0.0, "n": 0}}, source=source, timeout_ms=5_000)
    scorer = scorer_over(table)
    requests = [{"card": f"c{i % 40}"} for i in range(80)] + [{"card": None}, {"card": 5}]
    answers = scorer.score_batch(requests, errors="row")
    assert [a.score for a in answers[:80]] == [float(i % 40) for i in range(80)]
    assert isinstance(answers[81], FeatureTypeError)
    assert source.asked == [sorted(f"c{i}" for i in range(1, 40))]


def test_stale_rows_are_served_while_they_are_fetched():
    """Within `stale_for` nobody waits: the old value, called stale, and the new one for those who come later."""
    clock = ManualClock()
    source = Held({"a": {"mean": 2.0, "n": 0}}, held=True)
    table = table_of(
        {"a": {"mean": 1.0, "n": 0}},
        source=source,
        ttl="10s",
        stale_for="1m",
        jitter=0.0,
        timeout_ms=60_000,
        clock=clock,
    )
    scorer = scorer_over(table, clock=clock)
    assert scorer.score({"card": "a"}).stale == ()
    clock.advance_ns(11 * SECOND_NS)
    decision = scorer.score({"card": "a"})
    assert (decision.score, decision.stale) == (1.0, ("card.mean", "card.n"))
    source.go.set()
    wait_for(lambda: scorer.score({"card": "a"}).stale == ())
    assert scorer.score({"card": "a"}).score == 2.0


def test_a_row_that_expired_long_ago_is_waited_for_and_used_if_nothing_comes():
    """Beyond `stale_for` the source is asked first; if it fails, the old value is still better than none, and stale."""
    clock = ManualClock()
    source = Held({"a": {"mean": 2.0, "n": 0}})
    table = table_of(
        {"a": {"mean": 1.0, "n": 0}}, source=source, ttl="10s", jitter=0.0, timeout_ms=5_000, clock=clock
    )
    scorer = scorer_over(table, clock=clock)
    clock.advance_ns(11 * SECOND_NS)
    assert (scorer.score({"card": "a"}).score, scorer.score({"card": "a"}).stale) == (2.0, ())
    clock.advance_ns(11 * SECOND_NS)
    source.error = RuntimeError("down")
    decision = scorer.score({"card": "a"})
    assert (decision.score, decision.stale) == (2.0, ("card.mean", "card.n"))


def test_rows_in_use_are_refreshed_ahead():
    """Near its expiry a row in use is fetched behind the answer, so that no request ever waits for it."""
    clock = ManualClock()
    source = Held({"a": {"mean": 2.0, "n": 0}})
    table = table_of(
        {"a": {"mean": 1.0, "n": 0}},
        source=source,
        ttl="100s",
        refresh_ahead=0.2,
        jitter=0.0,
        timeout_ms=5_000,
        clock=clock,
    )
    scorer = scorer_over(table, clock=clock)
    for _ in range(3):
        scorer.score({"card": "a"})
    assert source.asked == []
    clock.advance_ns(85 * SECOND_NS)
    assert scorer.score({"card": "a"}).stale == ()
    wait_for(lambda: scorer.score({"card": "a"}).score == 2.0)
    assert source.asked == [["a"]]


def test_several_tables_share_one_deadline():
    """Two sources that hang: the answer still comes, and not after twice the wait."""
    spec = ri.FeatureSpec(
        request={"card": str, "shop": str},
        entities={
            "card": ri.Entity(key=("card",), columns={"mean": "float"}),
            "shop": ri.Entity(key=("shop",), columns={"size": "float"}),
        },
        columns=[c.stored("card.mean", on_unavailable=-1.0), c.stored("shop.size", on_unavailable=-2.0)],
    )
    sources = [Held(held=True), Held(held=True)]
    tables = {
        "card": ri.FeatureTable({"mean": "f64"}, "str", source=sources[0], timeout_ms=60_000),
        "shop": ri.FeatureTable({"size": "f64"}, "str", source=sources[1], timeout_ms=60_000),
    }
    packed = releases.packed("two", releases.weighted(1.0, 1.0), spec)
    scorer = releases.scorer_of(packed, store=ri.Store(tables=tables))
    start = time.perf_counter()
    assert scorer.score({"card": "a", "shop": "s"}, deadline_ms=50).score == -3.0
    assert time.perf_counter() - start < 5.0
    assert [source.asked for source in sources] == [[["a"]], [["s"]]]
    for source in sources:
        source.go.set()


# ---- coroutines --------------------------------------------------------------------------------------------------------


def test_coroutines_wait_off_the_loop():
    """While a source is slow the loop goes on; what is in memory is answered inline."""
    source = Held({"a": {"mean": 1.0, "n": 0}}, held=True)
    scorer = scorer_over(table_of({"b": {"mean": 2.0, "n": 0}}, source=source, timeout_ms=30_000))

    async def main():
        waiting = asyncio.ensure_future(scorer.ascore({"card": "a"}))
        threads = threading.active_count()
        inline = await scorer.ascore({"card": "b"})
        assert threading.active_count() <= threads + 2
        for _ in range(100):
            await asyncio.sleep(0)
            if source.asked:
                break
        assert not waiting.done()
        source.go.set()
        return inline.score, (await waiting).score

    assert asyncio.run(main()) == (2.0, 1.0)
    assert source.asked == [["a"]]


def test_many_coroutines_wait_for_one_fetch():
    """Forty requests for one missing key: one call of the source, forty answers."""
    source = Held({"a": {"mean": 1.0, "n": 0}}, held=True)
    scorer = scorer_over(table_of(source=source, timeout_ms=30_000))

    async def main():
        tasks = [asyncio.ensure_future(scorer.ascore({"card": "a"})) for _ in range(40)]
        await asyncio.sleep(0)
        source.go.set()
        return {(await task).score for task in tasks}

    assert asyncio.run(main()) == {1.0}
    assert source.asked == [["a"]]


# ---- rankings --------------------------------------------------------------------------------------------------------


def ranking_files():
    """Score = 100 * the user's spend + weight + 10,000 * the pair's times + what two vectors have in common."""
    spec = ri.FeatureSpec(
        request={"user": str, "sku": str},
        entities={
            "user": ri.Entity(key=("user",), columns={"spend": "float", "vec": "vector"}),
            "item": ri.Entity(key=("sku",), columns={"weight": "float"}),
            "pair": ri.Entity(key=("user", "sku"), columns={"times": "float", "vec": "vector"}),
        },
        candidate="item",
        columns=[
            c.stored("user.spend", unknown=0.0, on_unavailable=-1.0),
            c.stored("item.weight", unknown=0.0),
            c.stored("pair.times", unknown=0.0, on_unavailable=-1.0),
            c.dot("user.vec", "pair.vec", size=2, unknown=0.0, on_unavailable=0.0),
        ],
    )
    return releases.packed("pairs", releases.weighted(100.0, 1.0, 10_000.0, 1.0), spec)


RANKING = ranking_files()
USER = {"spend": 2.0, "vec": [1.0, 2.0]}


def ranking_store(user=None, pair=None):
    """Users and pairs in tables, items in a snapshot."""
    if user is None:
        user = ri.FeatureTable({"spend": "f64", "vec": ("vec", 2)}, "str")
    if pair is None:
        pair = ri.FeatureTable({"times": "f64", "vec": ("vec", 2)}, ("str", "str"))
    return ri.Store(tables={"user": user, "item": releases.items(600), "pair": pair})


@pytest.mark.parametrize("hold_gil_below_us", [0.0, 1e9])
@pytest.mark.parametrize("n", [3, 520, 600])
def test_rankings_read_tables_of_context_and_pairs(hold_gil_below_us, n):
    """Over several tiles, with the GIL held and given up; the same scores as one by one."""
    store = ranking_store()
    store["user"].put("u", USER)
    for i in range(0, n, 7):
        store["pair"].put(("u", f"sku-{i:03d}"), {"times": 1.0, "vec": [float(i), 1.0]})
    ranker = releases.ranker_of(RANKING, store=store, hold_gil_below_us=hold_gil_below_us)
    ids = [f"sku-{i:03d}" for i in range(n)]
    ranking = ranker.rank({"user": "u"}, ids, n)
    want = {
        sku: 200.0 + releases.item_row(i)["weight"] + (10_000.0 + i + 2.0 if i % 7 == 0 else 0.0)
        for i, sku in enumerate(ids)
    }
    assert dict(zip(ranking.items, ranking.scores, strict=True)) == want
    assert ranking.scores == sorted(ranking.scores, reverse=True)
    body = msgspec.json.encode({"context": {"user": "u"}, "candidates": ids, "k": n})
    assert msgspec.json.decode(ranker.rank_json(body))["scores"] == ranking.scores
    one = ranker.rank({"user": "u"}, ["sku-000"], 1, exclude=["sku-001"], available="item.stock >= 0")
    assert one.scores == [want["sku-000"]]


def test_pairs_are_read_as_they_were_before_the_gil_was_given_up():
    """A writer that replaces and erases pairs while rankings run never breaks one; each row is old or new."""
    store = ranking_store()
    store["user"].put("u", USER)
    ids = [f"sku-{i:03d}" for i in range(600)]
    ranker = releases.ranker_of(RANKING, store=store, hold_gil_below_us=0.0)
    done = threading.Event()

    def write():
        value = 0.0
        while not done.is_set():
            value = 1.0 - value
            for sku in ids[:50]:
                store["pair"].erase(("u", sku))
                store["pair"].put(("u", sku), {"times": value, "vec": [value, value]})

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(40):
            ranking = ranker.rank({"user": "u"}, ids, 600)
            for sku, score in zip(ranking.items, ranking.scores, strict=True):
                base = 200.0 + releases.item_row(int(sku[4:]))["weight"]
                assert score in (base, base + 10_003.0)
    finally:
        done.set()
        thread.join()


def test_a_ranking_asks_once_for_all_pairs_that_it_misses():
    """One call for the context, one for all candidates; what does not exist is unknown, what does not come unavailable."""
    users = Held({"u": USER})
    pairs = Held({("u", f"sku-{i:03d}"): {"times": 1.0, "vec": [0.0, 0.0]} for i in range(0, 40, 2)})
    store = ranking_store(
        ri.FeatureTable({"spend": "f64", "vec": ("vec", 2)}, "str", source=users, timeout_ms=5_000),
        ri.FeatureTable({"times": "f64", "vec": ("vec", 2)}, ("str", "str"), source=pairs, timeout_ms=5_000),
    )
    ranker = releases.ranker_of(RANKING, store=store)
    ids = [f"sku-{i:03d}" for i in range(40)]
    ranking = ranker.rank({"user": "u"}, ids, 40)
    for sku, score in zip(ranking.items, ranking.scores, strict=True):
        i = int(sku[4:])
        assert score == 200.0 + releases.item_row(i)["weight"] + (10_000.0 if i % 2 == 0 else 0.0)
    assert users.asked == [["u"]]
    assert pairs.asked == [[("u", sku) for sku in ids]]
    assert len(ranking.missing) == 2
    pairs.error = users.error = RuntimeError("down")
    late = ranker.rank({"user": "v"}, ids[:2], 2)
    assert late.scores == [-10_099.0, -10_100.0]
    assert ranker.freshness == ri.Freshness(answers=2, fresh=1)
    assert (
        asyncio.run(ranker.arank({"user": "u"}, ids[:2], 2)).scores
        == ranker.rank({"user": "u"}, ids[:2], 2).scores
    )


def test_candidates_need_a_snapshot():
    """Rankings copy rows that were computed before: a table that changes in place has none. Said when loading."""
    store = ri.Store(
        tables={
            "user": ri.FeatureTable({"spend": "f64", "vec": ("vec", 2)}, "str"),
            "item": ri.FeatureTable({"weight": "f64"}, "str"),
            "pair": ri.FeatureTable({"times": "f64", "vec": ("vec", 2)}, ("str", "str")),
        }
    )
    with pytest.raises(ConfigError, match="Snapshot"):
        releases.ranker_of(RANKING, store=store)


# ---- many at once ----------------------------------------------------------------------------------------------------


def test_threads_see_whole_rows():
    """Two columns that are always written together are never read from two versions; small tables evict all the time."""
    table = table_of({f"c{i}": {"mean": 0.0, "n": 0} for i in range(8)}, max_rows=64)
    scorer = scorer_over(table)
    done = threading.Event()
    wrong = []

    def write(seed):
        i = seed
        while not done.is_set():
            i += 1
            table.put(f"c{i % 8}", {"mean": float(i % 500), "n": i % 500})
            table.put(f"other{i}", {"mean": -1.0, "n": 7})

    def read():
        for i in range(1500):
            score = scorer.score({"card": f"c{i % 8}"}).score
            if score != -2.0 and score % 1001 != 0:
                wrong.append(score)

    writers = [threading.Thread(target=write, args=(i * 17,)) for i in range(2)]
    readers = [threading.Thread(target=read) for _ in range(3)]
    for thread in writers + readers:
        thread.start()
    for thread in readers:
        thread.join()
    done.set()
    for thread in writers:
        thread.join()
    assert wrong == []


def test_a_collection_in_the_middle_changes_nothing():
    """Code that runs when objects are freed writes into the table: every answer is of one row."""
    table = table_of({"a": {"mean": 1.0, "n": 1}})
    scorer = scorer_over(table)

    class Writes:
        def __init__(self):
            self.me = self

        def __del__(self):
            table.erase("a")
            table.put("a", {"mean": 2.0, "n": 2})
            table.put("a", {"mean": 1.0, "n": 1})

    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(300):
            Writes()
            assert scorer.score({"card": "a"}).score in (1001.0, -2.0)
            scorer.score_batch([{"card": "a"}] * 3)
    finally:
        gc.set_threshold(*before)


@pytest.mark.parametrize("form", ["dict", "struct", "attributes"])
def test_a_request_that_changes_while_its_source_is_waited_for_is_read_as_it_was(form):
    """The key's text is held by the call: whoever takes it out of the request meanwhile changes nothing."""

    class Meddles:
        def fetch(self, keys, *, timeout_s):
            if form == "dict":
                request.clear()
            else:
                msgspec.structs.force_setattr(request, "card", None)
            garbage.extend("y" * 40 + str(i) for i in range(2_000))
            return {key: {"mean": float(len(key)), "n": 0} for key in keys}

    class Own(msgspec.Struct):
        card: str

    garbage = []
    table = table_of(source=Meddles(), timeout_ms=5_000)
    scorer = scorer_over(table)
    for i in range(20):
        key = "x" * 40 + str(i)
        request = {"card": "".join(list(key))}
        if form != "dict":
            request = (scorer.request_type if form == "struct" else Own)(card="".join(list(key)))
        assert scorer.score(request).score == float(len(key))
        assert key in table
        garbage.clear()


def test_wrong_requests_are_refused_before_any_source_is_asked():
    """A bad key costs no fetch."""
    source = Held()
    scorer = scorer_over(table_of(source=source, timeout_ms=5_000))
    for request in ({"card": 5}, {"cart": "a"}, {"card": "\ud800"}, {"card": "x" * 70_000}):
        with pytest.raises((FeatureTypeError, FeatureRangeError, FeatureMissingError)):
            scorer.score(request)
    assert source.asked == []
