"""Degrading under overload, with deadlines, in threads, coroutines and forks; drills; windows that count once; rankings.

The releases are those of test_degrade.py.
"""

from __future__ import annotations

import asyncio
import collections
import dis
import functools
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import releases
from hypothesis import given, settings
from hypothesis import strategies as st
from test_degrade import BAD, GOOD, POLICY, TILL, WORSE, Heard, golden, scorer_of, spec

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.clock import ManualClock
from retailinfer.errors import (
    CallerError,
    ConfigError,
    DeadlineExceededError,
    OverloadedError,
    RemoteError,
    ServingError,
)
from retailinfer.monitoring.events import Answered, Changed, Failed
from retailinfer.ranker import Ranker
from retailinfer.resilience.drills import EVERY as DRILL_EVERY
from retailinfer.resilience.drills import Drills
from retailinfer.resilience.ladder import COLD_NS, Call, Ladder, Step
from retailinfer.scorer import Scorer
from retailinfer.serving.batching import MicroBatcher
from retailinfer.serving.door import Door

MS = 10**6


# ---- what it costs while nothing fails ---------------------------------------------------------------------------------


@pytest.mark.parametrize("door", [Scorer.score, Scorer.score_json, Scorer.score_msgpack, Ranker.rank_json])
def test_ladder_is_not_on_the_way_of_calls_that_the_release_answers(door: Any):
    """Up to the return of the engine's answer a call touches the engine and its own arguments, and calls nothing else."""
    touched = set()
    for step in dis.get_instructions(door):
        if step.opname.startswith("RETURN"):
            break
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL"):
            touched.add(step.argval)
    else:
        pytest.fail("no return")
    own = {"_live", "engine", "moment_ns", "budget_ns", "rules", "decode_msgpack", "encode_msgpack"}
    assert touched <= own | {door.__name__}


@pytest.mark.parametrize(
    "door",
    [getattr(cls, name) for cls in (Scorer, Ranker) for name in vars(cls) if not name.startswith("_")]
    + [Door.observe, MicroBatcher.score, MicroBatcher._flush],
    ids=lambda door: door.__qualname__,
)
def test_calls_read_the_pointer_once(door: Any):
    """Who reads it twice may see two releases, and mix them in one answer."""
    reads = [step for step in dis.get_instructions(door) if step.argval == "_live"]
    assert len(reads) <= 1


# ---- overload ----------------------------------------------------------------------------------------------------------


class Nested:
    """A hook that calls the scorer again while its own call still holds the only permit."""

    def __init__(self, priority: str) -> None:
        self.priority = priority
        self.scorer: Any = None
        self.seen: Any = None

    def on_event(self, event: Any) -> None:
        if isinstance(event, Answered) and event.answer.rung == 0 and self.seen is None:
            self.seen = False
            try:
                self.seen = self.scorer.score(GOOD, priority=self.priority)
            except ServingError as exc:
                self.seen = exc


def under_overload(priority: str, *kinds: Any, **options: Any) -> Any:
    """What a call gets while another one holds the only permit."""
    hook = Nested(priority)
    hook.scorer = scorer_of(*kinds, hooks=[hook], max_in_flight=1, **options)
    assert hook.scorer.score(GOOD).rung == 0
    assert hook.scorer.permits.in_flight == 0
    return hook.seen


def test_overload_goes_past_the_release_before_and_only_critical_calls_go_down():
    """What costs as much as the release would make overload worse; the static rung costs next to nothing."""
    assert under_overload("critical", "previous", "static").rung == 4
    assert isinstance(under_overload("critical", "previous"), OverloadedError)
    assert isinstance(under_overload("critical"), OverloadedError)
    for priority in ("sheddable", "batch", "shadow"):
        assert isinstance(under_overload(priority, "previous", "static"), OverloadedError)


def test_mistake_that_the_release_had_no_time_to_see_is_still_the_callers():
    """A static answer to a request that is none would hide the mistake for as long as the overload lasts."""
    policy = ri.Policy(
        [("approve", 0.0), ("review", 0.5)], segment_by="card", segments={"vip": [("approve", 0.0)]}
    )
    files = releases.packed(
        "segments",
        releases.weighted(1.0),
        spec(),
        policy=policy,
        golden=golden(),
        contract=ri.Contract(ladder=(ri.Rung(kind="static"),)),
        fallback=ri.Fallback(score=0.6),
        engine="onnx",
    )
    found: list[Any] = []
    scorer = releases.scorer_of(files, max_in_flight=1)

    def nested(event: Any) -> None:
        for request in (GOOD, GOOD | {"card": "vip"}, GOOD | {"card": 5}):
            try:
                found.append(scorer.score(request).action)
            except CallerError as exc:
                found.append(type(exc).__name__)

    scorer._live.engine.set_hook(nested)
    scorer.score(GOOD)
    assert found == ["review", "approve", "FeatureTypeError"]


def test_shed_calls_are_counted_without_an_event():
    """Under overload there is no time for events; the permits count."""
    heard = Heard()
    hook = Nested("batch")
    hook.scorer = scorer_of("static", hooks=[hook, heard], max_in_flight=1)
    hook.scorer.score(GOOD)
    health = hook.scorer.health()
    assert heard.of(Failed) == []
    assert (health.rejected["batch"], health.unanswered, health.limit) == (1, 0, 1)


def test_beginning_and_end_of_overload_are_told():
    """Once each, not once a call."""
    clock, heard = ManualClock(), Heard()
    hook = Nested("batch")
    hook.scorer = scorer_of(hooks=[hook, heard], max_in_flight=1, store=ri.Store(clock=clock))
    hook.scorer.score(GOOD)
    hook.seen = None
    hook.scorer.score(GOOD)
    clock.advance_ns(2 * 10**9)
    for _ in range(3):
        hook.scorer.score(GOOD)
    assert [(e.part, e.before, e.after) for e in heard.of(Changed)] == [
        ("overload", "calm", "shedding"),
        ("overload", "shedding", "calm"),
    ]


# ---- deadlines -----------------------------------------------------------------------------------------------------------


class Remote:
    """A model server in this process: its score, its error, and how long it takes on the test's clock."""

    model = "fraud"

    def __init__(self, clock: ManualClock | None = None) -> None:
        self.clock = clock
        self.ns = 0
        self.error: Exception | None = None
        self.score: Any = 0.75
        self.asked: list[Any] = []

    def infer(self, inputs: Any, outputs: Any, *, end_ns: int, clock: Any) -> dict[str, Any]:
        self.asked.append((dict(inputs), tuple(outputs), end_ns - clock.monotonic_ns()))
        if self.clock is not None:
            self.clock.advance_ns(self.ns)
        if self.error is not None:
            raise self.error
        return {outputs[0]: np.array([[self.score]], np.float32)}


def test_remote_gets_the_releases_features_and_its_score_the_releases_policy():
    """Inputs under the model's names, one row; the answer says who computed it."""
    remote = Remote()
    scorer = scorer_of("remote", "static", remote=remote)
    made = scorer.score(BAD, request_id="r")
    assert (made.id, made.score, made.action, made.rung, made.release) == (
        "r",
        0.75,
        "review",
        2,
        "remote:fraud",
    )
    ((inputs, outputs, _),) = remote.asked
    assert outputs == ("y",)
    assert list(inputs) == ["x"]
    np.testing.assert_array_equal(inputs["x"], np.array([[-0.25]], np.float32))


@pytest.mark.parametrize("reply", [float("nan"), float("inf"), "much", None, -1.0])
def test_remote_whose_score_means_nothing_is_passed_over(reply: Any):
    """Not a number, or below the policy: the next rung answers."""
    remote = Remote()
    scorer = scorer_of("remote", "static", remote=remote)
    remote.score = 0.5
    if isinstance(reply, float):
        remote.score = reply
    else:
        remote.infer = lambda *_, **__: {"y": reply}  # type: ignore[method-assign]
    assert scorer.score(BAD).rung == 4


def test_remote_has_what_is_left_of_the_deadline_or_its_own_time():
    """From the beginning of the call, not from its failure."""
    clock = ManualClock()
    remote = Remote(clock)
    rungs = ri.Rung(kind="remote", max_ms=15), "static"
    scorer = scorer_of(*rungs, remote=remote, store=ri.Store(clock=clock), deadline_ms=20)
    scorer.score(BAD)
    scorer.score(BAD, deadline_ms=10)
    scorer.score(BAD, deadline_ms=1e18)
    assert [asked[2] for asked in remote.asked] == [15 * MS, 10 * MS, 15 * MS]


def test_c61_deadlines_of_nothing_and_of_eternity_on_the_ladder():
    """c61: 0, negative, 1 us, 1e18 ms, absent: at once a DeadlineExceededError that asks no rung, or the server's most."""
    clock = ManualClock()
    remote = Remote(clock)
    scorer = scorer_of("remote", "static", remote=remote, store=ri.Store(clock=clock), deadline_ms=20)
    for nothing in (0, -1, -1e18):
        with pytest.raises(DeadlineExceededError):
            scorer.score(BAD, deadline_ms=nothing)
        assert scorer.score(BAD, deadline_ms=nothing, otherwise="later") == "later"
    assert remote.asked == []
    assert scorer.score(BAD, deadline_ms=0.001).rung == 2
    assert scorer.score(BAD, deadline_ms=1e18).rung == 2
    assert scorer.score(BAD).rung == 2
    assert remote.asked[-1][2] == 20 * MS


def test_remote_that_eats_the_deadline_leaves_a_deadline_error():
    """Its answer is dropped, nobody below is asked, and the event says that it was late."""
    clock, heard = ManualClock(), Heard()
    remote = Remote(clock)
    remote.ns = 21 * MS
    scorer = scorer_of(
        "remote", "static", remote=remote, store=ri.Store(clock=clock), deadline_ms=20, hooks=[heard]
    )
    with pytest.raises(DeadlineExceededError) as caught:
        scorer.score(BAD)
    assert caught.value.late
    (event,) = heard.of(Failed)
    assert (event.error, event.late, event.took_ns) == ("DeadlineExceededError", True, 21 * MS)


requests = st.sampled_from([GOOD, BAD, WORSE, TILL, {"card": "c1", "amount": None}, {"amount": "much"}])


@settings(max_examples=max(60, settings().max_examples), deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "request": requests,
                "ns": st.integers(0, 30 * MS),
                "remote": st.sampled_from(["score", "nan", "down", "bug"]),
                "deadline_ms": st.sampled_from([None, 0, 0.5, 5, 20, 1e18]),
                "priority": st.sampled_from(["critical", "sheddable", "batch"]),
                "door": st.sampled_from(["score", "json", "msgpack", "batch", "async"]),
                "otherwise": st.booleans(),
            }
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([None, "fraud"]),
)
def test_whatever_fails_every_call_ends_as_declared(calls: list[dict[str, Any]], use_case: Any):
    """An answer of a declared rung in time, whose action may be given there; `otherwise`; or a typed error."""
    clock = ManualClock()
    remote = Remote(clock)
    scorer = scorer_of(
        "previous",
        ri.Rung(kind="remote", max_ms=15),
        "last_score",
        "static",
        use_case=use_case,
        deadline_ms=20,
        remote=remote,
        store=ri.Store(clock=clock),
    )
    scorer._lasting.close()  # drills would move the clock from their own thread
    for call in calls:
        remote.ns = call["ns"]
        remote.score = 0.3 if call["remote"] == "score" else float("nan")
        remote.error = {"down": RemoteError("down"), "bug": ZeroDivisionError()}.get(call["remote"])
        began = clock.monotonic_ns()
        n_asked = len(remote.asked)
        try:
            made = asked(scorer, call)
        except CallerError:
            made = None
        except ServingError:
            made = (
                None
                if call["door"] == "batch" or not call["otherwise"]
                else pytest.fail("otherwise was given")
            )
        took = clock.monotonic_ns() - began
        limit = {None: 20 * MS, 1e18: took}.get(call["deadline_ms"], (call["deadline_ms"] or 0) * MS)
        if isinstance(made, ri.Decision):
            assert took <= limit
            assert made.rung in range(5)
            assert np.isfinite(made.score)
            assert made.action in ("approve", "review", "decline")
            assert use_case is None or made.rung < 3 or made.action == "review"
        assert len(remote.asked) - n_asked <= 1
        assert scorer.permits.in_flight == 0
        assert all(step.in_flight == 0 for step in scorer._live.ladder.steps)
    scorer.close()


def asked(scorer: Any, call: dict[str, Any]) -> Any:
    """One call through one of the doors, its answer as a Decision."""
    options = {"deadline_ms": call["deadline_ms"], "priority": call["priority"]}
    if call["otherwise"] and call["door"] != "batch":
        options["otherwise"] = "mine"
    request = call["request"]
    match call["door"]:
        case "score":
            return scorer.score(request, **options)
        case "batch":
            return scorer.score_batch([request], **options)[0]
        case "async":
            return asyncio.run(scorer.ascore(request, **options))
        case "json":
            made = scorer.score_json(msgspec.json.encode(request), **options)
            return made if made == "mine" else msgspec.json.decode(made, type=ri.Decision)
    made = scorer.score_msgpack(msgspec.msgpack.encode(request), **options)
    return made if made == "mine" else msgspec.msgpack.decode(made, type=ri.Decision)


# ---- threads ---------------------------------------------------------------------------------------------------------------


def test_threads_share_a_ladder_without_losing_a_call_or_a_place():
    """Narrow rungs, eight threads: each call ends in an answer of a rung; all places are free again; counts add up."""
    heard = Heard()
    rungs = (
        ri.Rung(kind="previous", max_concurrency=1),
        ri.Rung(kind="last_score", max_concurrency=2),
        ri.Rung(kind="static"),
    )
    scorer = scorer_of(*rungs, hooks=[heard], max_in_flight=64)
    wrong: list[Any] = []

    def work(number: int) -> None:
        for i in range(150):
            request = (GOOD, BAD, WORSE, TILL)[(number + i) % 4] | {"card": f"c{i % 7}"}
            made = scorer.score(request)
            allowed = {0} if request["amount"] > 0 else {1, 3, 4} if request["amount"] > -1 else {3, 4}
            if made.rung not in allowed or not np.isfinite(made.score):
                wrong.append((request, made))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    health = scorer.health()
    assert wrong == []
    assert all(step.in_flight == 0 for step in scorer._live.ladder.steps)
    assert health.degraded == sum(1 for e in heard.of(Answered) if e.answer.rung)
    assert len(heard.of(Answered)) == 8 * 150
    assert health.unanswered == 0


LEAVES = """
import sys, threading
sys.path.insert(0, {tests!r})
from test_degrade import GOOD, scorer_of

class Hangs:
    model = "fraud"
    inside = threading.Event()
    def infer(self, *args, **options):
        self.inside.set()
        threading.Event().wait(60)

scorer = scorer_of("remote", remote=Hangs())
scorer.score(GOOD)  # the first answer is drilled
assert Hangs.inside.wait(10)
print("leaving", flush=True)
sys.exit(0)
"""


def test_process_ends_while_a_drill_hangs():
    """c54 for drills: half a second is all that a rung gets at the end of the process."""
    code = LEAVES.format(tests=str(Path(__file__).parent))
    done = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert done.stdout is not None
    assert done.stdout.readline() == "leaving\n"
    began = time.perf_counter()
    _, err = done.communicate(timeout=30)
    assert (done.returncode, err) == (0, "")
    assert time.perf_counter() - began < 5.0


# ---- windows ---------------------------------------------------------------------------------------------------------------


@functools.cache
def counting_files(name: str) -> dict[str, bytes]:
    """Score of "now" = root of the amount; of "before" = amount + 100 times the card's payments of an hour, this one too."""
    import pyarrow as pa

    windows = ri.FeatureSpec(
        request={"card": str, "amount": float, "at": ri.Timestamp},
        event_time="at",
        entities={"card": "card"},
        streams={"payment": None},
        columns=[
            c.numeric("amount"),
            c.window("card", "count", on="payment", over="1h", name="n", unknown=0.0, on_unavailable=0.0),
        ],
    )
    is_now = name == "now"
    ladder = (ri.Rung(kind="previous"), ri.Rung(kind="static")) if is_now else ()
    return releases.packed(
        name,
        releases.weighted(1.0, 0.0 if is_now else 100.0, then=("Sqrt",) if is_now else ()),
        windows,
        golden=pa.table({"card": ["a"], "amount": [1.0], "at": [1.7e9], "n": [1.0]}),
        policy=ri.Policy([("approve", -10.0), ("review", 0.5)]),
        contract=ri.Contract(ladder=ladder),
        fallback=ri.Fallback(score=0.5) if is_now else None,
        engine="onnx",
    )


PAID = {"card": "a", "amount": -1.0, "at": 1.7e9}  # no root: the release fails once it has counted it


def counting_scorer(**options: Any) -> tuple[Any, Any]:
    """The release over windows in memory, and what tells how many payments the card has in them."""
    clock = ManualClock(wall_ns=1_700_000_000 * 10**9)
    store = ri.Store(windows=ri.Windows.memory(clock=clock), clock=clock)
    before = counting_files("before")
    scorer = releases.scorer_of(counting_files("now"), previous=before, store=store, **options)
    reader = releases.scorer_of(before, store=store)
    # less the one that is asked about, and the amount
    return scorer, lambda: round((reader.score(PAID).score + 1) / 100) - 1


def test_a_request_is_counted_once_whoever_answers():
    """The release counts it and then has no score; the rung below does not count it again."""
    scorer, counted = counting_scorer()
    assert [scorer.score(PAID, observe=True).rung for _ in range(3)] == [1, 1, 1]
    assert counted() == 3
    assert scorer.score(PAID).rung == 1
    assert counted() == 3


def test_rung_below_sees_the_request_once_by_its_id():
    """Windows that include the request itself: with an id, what was counted already is not included a second time."""
    scorer, counted = counting_scorer()
    seen = [scorer.score(PAID, observe=True, event_id=f"e{i}").score for i in range(3)]
    assert [round((score + 1) / 100) for score in seen] == [1, 2, 3]
    again = scorer.score(PAID, observe=True, event_id="e2").score
    assert (round((again + 1) / 100), counted()) == (3, 3)


def test_request_that_was_shed_is_counted_by_the_rung_that_decides():
    """The release never saw it; the rule decided, and the payment happened. With its id, once."""
    hook = Nested("critical")
    scorer, counted = counting_scorer(hooks=[hook], max_in_flight=1)
    seen: list[int] = []

    def shed(event: Any) -> None:
        if event.answer.rung == 0:
            seen.extend(scorer.score(PAID, observe=True, event_id="e").rung for _ in range(2))

    hook.on_event = shed  # type: ignore[method-assign]
    scorer._live.engine.set_hook(shed)
    assert scorer.score(PAID | {"amount": 1.0}).rung == 0
    scorer._live.engine.set_hook(None)
    assert (seen, counted()) == ([4, 4], 1)


def test_batches_count_each_row_once():
    """Rows that fail after they were counted are not counted again, in either way of telling errors."""
    scorer, counted = counting_scorer()
    rows = [PAID, PAID | {"amount": 4.0}, PAID]
    assert [d.rung for d in scorer.score_batch(rows, errors="row", observe=True)] == [1, 0, 1]
    assert counted() == 3
    ids = ["a", "b", "c"]
    assert [d.rung for d in scorer.score_batch(rows, observe=True, event_ids=iter(ids))] == [1, 0, 1]
    assert counted() == 6
    with pytest.raises(ServingError):  # without ids nobody knows which rows were counted
        scorer.score_batch(rows, observe=True)


class Ticking(ManualClock):
    """A clock that moves by itself when it is read."""

    tick_ns = 0

    def monotonic_ns(self) -> int:
        self.advance_ns(self.tick_ns)
        return super().monotonic_ns()


def test_row_that_was_counted_before_the_batch_ran_out_of_time_is_not_counted_again():
    """The first row is in its window when the second one's source takes the time of both; the rule answers all of them."""
    clock = Ticking()
    calls: list[Any] = []

    class Source:
        def fetch(self, keys: Any, *, timeout_s: float) -> Any:
            calls.append(keys)
            if len(calls) == 2:
                clock.advance_ns(9_500_000)
            return {key: {"m": 1.0} for key in keys}

    table = ri.FeatureTable({"m": "f64"}, "str", source=Source(), timeout_ms=30_000, max_rows=4)
    none = {"unknown": 0.0, "on_unavailable": 0.0}
    windows = ri.FeatureSpec(
        request={"card": str, "shop": str, "at": ri.Timestamp},
        event_time="at",
        entities={"card": "card", "shop": ri.Entity(key=("shop",), columns={"m": "float"})},
        streams={"payment": None},
        columns=[
            c.window("card", "count", on="payment", over="1h", name="n", **none),
            c.stored("shop.m", null=0.0, **none),
        ],
    )
    files = releases.packed(
        "shops",
        releases.weighted(1.0, 0.0),
        windows,
        policy=ri.Policy([("approve", 0.0), ("review", 50.0)]),
        contract=ri.Contract(ladder=(ri.Rung(kind="static"),)),
        fallback=ri.Fallback(score=60.0),
        engine="onnx",
    )
    clock.tick_ns = MS  # so the model seems to take a millisecond
    store = ri.Store(tables={"shop": table}, windows=ri.Windows.memory(clock=clock), clock=clock)
    scorer = releases.scorer_of(files, store=store)
    clock.tick_ns = 0
    assert scorer._live.engine.fixed_us == 1000.0
    rows = [{"card": "a", "shop": f"s{i}", "at": 1.7e9} for i in range(8)]
    answers = scorer.score_batch(rows, errors="row", deadline_ms=10, observe=True)
    assert {answer.rung for answer in answers} == {4}
    assert scorer.score(rows[0]).score - 1 == len(rows)


class Patient(collections.UserDict[str, Any]):
    """A request of which one field takes 3 ms to be read."""

    clock: ManualClock

    def __getitem__(self, name: str) -> Any:
        if name == "amount":
            self.clock.advance_ns(3 * MS)
        return super().__getitem__(name)


@pytest.mark.parametrize("errors", ["row", "raise"])
@pytest.mark.parametrize("hooks", [0, 1])
def test_rows_of_a_long_batch_go_down_whoever_listens(errors: Any, hooks: int):
    """The contract's deadline is about one request: a batch that has none may take longer, and each row has it anew."""
    clock = Patient.clock = ManualClock()
    heard = [Heard() for _ in range(hooks)]
    scorer = scorer_of("static", deadline_ms=5.0, hooks=heard, store=ri.Store(clock=clock))
    rows = [Patient(GOOD), Patient(GOOD), Patient(BAD)]
    assert [d.rung for d in scorer.score_batch(rows, errors=errors)] == [0, 0, 4]


def test_batch_that_is_tried_again_waits_no_longer_than_the_contract_says():
    """The second time, by rows, is bounded as the first one was."""
    over = threading.Event()

    class Source:
        def fetch(self, keys: Any, *, timeout_s: float) -> Any:
            over.wait(timeout_s)
            return {}

    table = ri.FeatureTable({"m": "f64"}, "str", source=Source(), timeout_ms=4_000)
    stored = ri.FeatureSpec(
        request={"card": str, "amount": float},
        entities={"card": ri.Entity(key=("card",), columns={"m": "float"})},
        columns=[c.numeric("amount"), c.stored("card.m", null=0.0, unknown=0.0, on_unavailable=0.0)],
    )
    files = releases.packed(
        "stored",
        releases.weighted(1.0, 0.0, then=("Sqrt",)),
        stored,
        policy=POLICY,
        contract=ri.Contract(deadline_ms=100.0, ladder=(ri.Rung(kind="static"),)),
        fallback=ri.Fallback(score=0.6),
        golden=None,
        engine="onnx",
    )
    scorer = releases.scorer_of(files, store=ri.Store(tables={"card": table}))
    rows = [{"card": f"c{i}", "amount": amount} for i, amount in enumerate((0.04, 0.04, -1.0))]
    began = time.monotonic()
    answers = scorer.score_batch(rows)
    took_s = time.monotonic() - began
    over.set()
    assert [d.rung for d in answers] == [0, 0, 4]
    assert took_s < 1.5


# ---- drills ----------------------------------------------------------------------------------------------------------------


def wait_for(condition: Any, seconds: float = 10.0) -> None:
    """Until another thread is done."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.002)):
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError("it did not come")


def test_first_and_every_thousandth_answer_drill_every_rung():
    """In a thread of its own, counted apart, told to nobody but hooks of changes."""
    heard = Heard()
    remote = Remote()
    kinds = "previous", "remote", "last_score", "static"
    scorer = scorer_of(*kinds, remote=remote, hooks=[heard])
    scorer.score(GOOD)
    wait_for(lambda: [r.drills for r in scorer.health().rungs] == [1, 1, 1, 1])
    for _ in range(DRILL_EVERY):
        scorer.score(GOOD)
    wait_for(lambda: [r.drills for r in scorer.health().rungs] == [2, 2, 2, 2])
    health = scorer.health()
    assert [r.state for r in health.rungs] == ["ready"] * 4
    assert [(r.answers, r.failures, r.failed_drills) for r in health.rungs] == [(0, 0, 0)] * 4
    assert health.degraded == 0
    assert {e.after for e in heard.of(Changed)} == {"ready"}
    assert len(heard.of(Answered)) == DRILL_EVERY + 1
    assert len(remote.asked) == 2
    remote.error = RemoteError("down")
    for _ in range(DRILL_EVERY):
        scorer.score(GOOD)
    wait_for(lambda: scorer.health().rungs[3].drills == 3)
    assert [r.state for r in scorer.health().rungs] == ["ready", "failing", "ready", "ready"]
    assert heard.of(Changed)[-1].part == "rung remote"
    scorer.close()


def test_service_with_few_calls_drills_by_time():
    """A hundred times a day the next call is drilled, however few there are; a closed scorer drills no more."""
    asked: list[int] = []
    step = Step("static", lambda call, end_ns: None)
    drills = Drills(
        Ladder([step], clock=ManualClock()),
        lambda request, answer: Call(request, began_ns=0, end_ns=0),
        sample=asked.append,
        again_s=0.01,
    )
    assert asked == [1]
    drills.offer(GOOD, None)
    assert asked[1] == DRILL_EVERY
    wait_for(lambda: len(asked) > 2)
    assert asked[2] == 1
    drills.offer(GOOD, None)
    wait_for(lambda: step.drills == 2)
    drills.end_with_process()
    assert asked[-1] == 0
    drills.offer(GOOD, None)
    assert (step.drills, drills.dropped) == (2, 1)


def test_rung_that_is_not_exercised_for_a_day_is_an_alarm():
    """Once, as an event, and as long as it lasts in `health`."""
    clock, heard = ManualClock(), Heard()
    scorer = scorer_of("previous", "static", store=ri.Store(clock=clock), hooks=[heard])
    assert scorer.score(BAD).rung == 1
    clock.advance_ns(COLD_NS + 1)
    for _ in range(3):
        assert [r.state for r in scorer.health().rungs] == ["cold", "cold"]
    cold = [e for e in heard.of(Changed) if e.after == "cold"]
    assert [(e.part, e.before) for e in cold] == [("rung previous", "ready"), ("rung static", "untried")]
    assert scorer.score(BAD).rung == 1
    assert [r.state for r in scorer.health().rungs] == ["ready", "cold"]


def test_drills_never_wait_and_never_pile_up():
    """While one hangs, at most 16 wait; the rest is dropped and counted, and answers go on."""
    inside, go = threading.Event(), threading.Event()

    class Hangs(Remote):
        def infer(self, *args: Any, **options: Any) -> dict[str, Any]:
            inside.set()
            go.wait(20)
            return super().infer(*args, **options)

    scorer = scorer_of("remote", remote=Hangs())
    drills = scorer._lasting.drills
    assert drills is not None
    decision = scorer.score(GOOD)  # the first one is drilled
    assert inside.wait(10)
    for _ in range(20):
        drills.offer(GOOD, decision)
    assert scorer.health().dropped_drills == 4
    assert scorer.score(GOOD).rung == 0
    go.set()
    wait_for(lambda: scorer.health().rungs[0].drills == 17)


def test_scorer_with_a_ladder_is_gone_with_its_last_reference():
    """Nothing that the engine or the drills' thread holds keeps it: memory comes back without a collection."""
    pipeline = dropped_scorer()
    wait_for(lambda: pipeline() is None)


def dropped_scorer() -> weakref.ref[Any]:
    """What is left of a scorer that was drilled and forgotten, with the collector switched off."""
    scorer = scorer_of("previous", "last_score", "static", hooks=[Heard()])
    gc.collect()
    gc.disable()
    try:
        scorer.score(GOOD)
        for _ in range(5_000):
            if scorer.health().rungs[0].drills:
                break
            threading.Event().wait(0.002)
        return weakref.ref(scorer._live.pipeline)
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork")
def test_forked_child_has_a_ladder_of_its_own():
    """Rungs answer, drills run, counts begin at nothing, and the child ends at once."""
    scorer = scorer_of("previous", "last_score", "static")
    scorer.score(GOOD)
    wait_for(lambda: scorer.health().rungs[0].drills == 1)
    scorer.score(BAD)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            before = [(r.answers, r.drills) for r in scorer.health().rungs]
            rungs = [scorer.score(request).rung for request in (GOOD, BAD, WORSE)]
            wait_for(lambda: scorer.health().rungs[0].drills == 1)
            code = 0 if before == [(0, 0)] * 3 and rungs == [0, 1, 3] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert scorer.health().rungs[0].answers == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork")
def test_fork_waits_for_the_drill_under_way():
    """A child never begins in the middle of what a rung does; a rung that hangs delays a fork by a second at most."""
    inside, out = threading.Event(), threading.Event()
    at_fork: list[bool] = []

    class Slow(Remote):
        def infer(self, *args: Any, **options: Any) -> dict[str, Any]:
            inside.set()
            threading.Event().wait(0.1)
            made = super().infer(*args, **options)
            out.set()
            return made

    scorer = scorer_of("remote", remote=Slow())
    scorer.score(GOOD)
    assert inside.wait(10)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if out.is_set() else 3)
    at_fork.append(out.is_set())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert at_fork == [True]
    wait_for(lambda: scorer.health().rungs[0].drills == 1)
    scorer._lasting.drills.offer(GOOD, scorer.score(GOOD))  # type: ignore[union-attr]  # and drills go on
    wait_for(lambda: scorer.health().rungs[0].drills == 2)


def test_health_says_what_an_operator_asks():
    """Whether it answers, what it is, and how long calls take; also once it is closed."""
    scorer = scorer_of("previous", "static", deadline_ms=1_000)
    for request in (GOOD, BAD, WORSE):
        scorer.score(request)
    health = scorer.health()
    assert (health.ready, health.release, health.degraded) == (True, "now:2", 2)
    assert health.p99_ms["run"] > 0
    assert (health.in_flight, health.late, health.unanswered) == (0, 0, 0)
    assert msgspec.json.decode(msgspec.json.encode(health), type=ri.Health) == health
    scorer.close()
    assert not scorer.health().ready


# ---- coroutines ----------------------------------------------------------------------------------------------------------


def test_event_loop_goes_on_while_a_rung_waits():
    """A remote that hangs holds a thread, not the loop."""
    go = threading.Event()

    class Hangs(Remote):
        def infer(self, *args: Any, **options: Any) -> dict[str, Any]:
            assert go.wait(10)
            return super().infer(*args, **options)

    scorer = scorer_of("remote", "static", remote=Hangs())

    async def run() -> list[Any]:
        waiting = asyncio.create_task(scorer.ascore(BAD))
        ticks = 0
        while not waiting.done():
            await asyncio.sleep(0)
            ticks += 1
            if ticks == 100:
                go.set()
        return [ticks, await waiting, await scorer.ascore({"amount": 1}, otherwise=None)]

    with pytest.raises(CallerError):
        asyncio.run(run())
    go.set()
    assert asyncio.run(scorer.ascore(BAD)).rung == 2


# ---- rankings -------------------------------------------------------------------------------------------------------------


IDS = [f"sku-{i:03d}" for i in range(12)]
POPULAR = ["sku-007", "sku-003", "sku-004", "gone", "sku-011"]


@functools.cache
def ranking_files(name: str, then: tuple[str, ...], kinds: tuple[str, ...]) -> dict[str, bytes]:
    """Score of an item = boost + weight, after `then`."""
    import pyarrow as pa

    rows = pa.table(
        {
            "user": ["u"] * 4,
            "boost": [1.0] * 4,
            "sku": IDS[:4],
            "item.weight": [0.0, 1.0, 2.0, 3.0],
            "item.label": ["l0", "l1", "l2", "l3"],
        }
    )
    return releases.packed(
        name,
        releases.weighted(1.0, 1.0, 0.0, then=then),
        releases.item_spec(),
        golden=rows,
        contract=ri.Contract(
            use_case="recommendation", ladder=tuple(ri.Rung(kind=k) for k in kinds), max_rows=100
        ),
        fallback=ri.Fallback(popular=POPULAR),
        engine="onnx",
        info={"version": "1"},
    )


def ranker_of(*kinds: str, **options: Any) -> ri.Ranker:
    """Roots of what is negative have no score, so a boost of -100 breaks the release."""
    files = ranking_files("now", ("Sqrt",), kinds)
    if "previous" in kinds:
        options["previous"] = ranking_files("before", (), ())
    store = ri.Store(tables={"item": releases.items()})
    found: ri.Ranker = releases.ranker_of(files, store=store, **options)
    return found


FINE, BROKEN = {"user": "u", "boost": 1.0}, {"user": "u", "boost": -100.0}


def test_broken_ranking_becomes_the_popular_list_of_what_is_available():
    """In the list's order, then as given; excluded, unavailable and unknown items never appear, and it says why."""
    ranker = ranker_of("static")
    made = ranker.rank(
        BROKEN, [*IDS, "gone", IDS[0]], k=5, available="item.stock > 0", exclude=["sku-003"], request_id="r"
    )
    # stock is i % 4, so 000, 004 and 008 have none
    assert made.items == ["sku-007", "sku-011", "sku-001", "sku-002", "sku-005"]
    assert made.suppressed == {
        "sku-000": "unavailable",
        "sku-003": "excluded",
        "sku-004": "unavailable",
        "sku-008": "unavailable",
        "gone": "unknown",
    }
    assert (made.id, made.rung, made.release) == ("r", 4, "now:1")
    assert made.scores == sorted(made.scores, reverse=True)


def test_release_before_ranks_what_the_release_cannot():
    """With its own model over the same tables and the same rule of availability."""
    ranker = ranker_of("previous", "static")
    made = ranker.rank(BROKEN, iter(IDS), k=3, available="item.stock > 0", exclude=iter(["sku-006"]))
    assert (made.rung, made.release) == (1, "before:1")
    left = [one for one in IDS if int(one[4:]) % 4 and one != "sku-006"]
    assert made.items == releases.expected_order(left)[:3]


def test_every_door_of_a_ranker_goes_down_the_ladder():
    """Objects, JSON and coroutines; `otherwise` is returned as it is, a caller's mistake raises."""
    ranker = ranker_of("static")
    expected = ranker.rank(BROKEN, IDS, k=4, request_id="r")
    body = {"context": BROKEN, "candidates": IDS, "k": 4, "request_id": "r"}
    assert msgspec.json.decode(ranker.rank_json(msgspec.json.encode(body)), type=ri.Ranking) == expected
    assert asyncio.run(ranker.arank(BROKEN, IDS, 4, request_id="r")) == expected
    assert ranker.rank(FINE, IDS, k=4).rung == 0
    plain = ranker_of()
    assert plain.rank(BROKEN, IDS, otherwise=None) is None
    assert plain.rank_json(msgspec.json.encode(body), otherwise=b"[]") == b"[]"
    assert asyncio.run(plain.arank(BROKEN, IDS, otherwise=[])) == []
    with pytest.raises(CallerError):
        plain.rank({"user": "u"}, IDS, otherwise=None)
    with pytest.raises(ServingError):
        plain.rank(BROKEN, IDS)


def test_rankings_are_drilled_with_what_they_brought_up():
    """The candidates of a drill are the items of the answer."""
    ranker = ranker_of("previous", "static")
    ranker.rank(FINE, IDS, k=5)
    wait_for(lambda: [r.drills for r in ranker.health().rungs] == [1, 1])
    assert [r.state for r in ranker.health().rungs] == ["ready", "ready"]


# ---- what does not fit ----------------------------------------------------------------------------------------------------


def test_remote_of_a_chain_whose_inputs_share_a_name_is_refused():
    """A server of one model could not tell them apart: said when it is loaded, not when it is needed."""
    tower = releases.weighted(1.0)
    spec_of_two = ri.FeatureSpec(
        request={"card": str, "amount": float, "till": bool},
        tensors={"x": ri.Tensor([c.numeric("amount")])},
    )
    files = releases.packed(
        "two",
        {"first": tower, "second": releases.weighted(1.0)},
        spec_of_two,
        score="second.y",
        contract=ri.Contract(ladder=(ri.Rung(kind="remote"),)),
        engine="onnx",
    )
    with pytest.raises(ConfigError, match="cannot tell them apart"):
        releases.scorer_of(files, remote=Remote())
