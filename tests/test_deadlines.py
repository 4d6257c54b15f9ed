"""Deadlines of every door: none late under faults on the simulated clock, few on the real one; odd deadlines; steps of clocks.

The faults are deadline_faults.py; the ladder's own are test_degrade_faults.py.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections import Counter

import msgspec
import numpy as np
import pytest
import releases
from deadline_faults import Trial, real_run
from releases import CONTEXT, payment

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.clock import ManualClock, SystemClock
from retailinfer.errors import DeadlineExceededError, FeatureError, RemoteError

MS = 1_000_000
BODY = msgspec.json.encode(payment())
RANKING = msgspec.json.encode({"context": CONTEXT, "candidates": ["sku-001", "sku-002"], "k": 1})


# ---- none late -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_no_answer_is_late_whatever_stages_take(seed):
    """10,000 calls a seed, a million in `make soak`: no answer after its deadline, no stage begun after it."""
    trial = Trial(seed)
    trial.run(10_000)
    trial.check()
    report = trial.report()
    assert report["late"] > 0
    assert report["refused_time"] > 0


def test_late_answer_would_be_seen():
    """The judge of the trial: an answer after its deadline, and a stage that begins after it, are failures."""
    trial = Trial(7)
    answer = trial.scorer.score({"card": "c", "amount": 0.5})
    trial._judge([answer], trial.clock.monotonic_ns())
    with pytest.raises(AssertionError, match="after its deadline"):
        trial._judge([answer], trial.clock.monotonic_ns() - 1)
    stage = trial.stages["remote"]
    stage.begun.append((trial.clock.monotonic_ns(), trial.clock.monotonic_ns() + 5))
    with pytest.raises(AssertionError, match="remote began"):
        trial._judge([], trial.clock.monotonic_ns() - 1)


@pytest.mark.skipif(sys.platform != "linux", reason="platform: the kernel's delay is read as Linux writes it")
@pytest.mark.parametrize(("remote", "most_ms"), [(False, 2.0), (True, 5.0)])
def test_calls_end_soon_after_their_deadline_on_the_real_clock(remote, most_ms, record_property):
    """Measured by the caller, without what the kernel kept its threads waiting: 2 ms for sources, 5 ms for remote models.

    Once in three tries at least: other tests hold the processors, and what keeps the thread that fetches waiting counts.
    """
    for seed in (11, 12, 13):
        run = real_run(2_000, seed, remote=remote)
        if run.share(0.999, without_wait=True) <= most_ms and run.answered_late <= 20:
            break
    for q in (0.5, 0.99, 0.999):
        record_property(f"p{100 * q:g}_over_ms", run.share(q))
    record_property("run_delay_of_the_latest_ms", run.waited_ms[-1])
    assert run.answered > 200
    assert run.answered + run.failed == len(run.over_ms) == 2_000
    assert run.share(0.999, without_wait=True) <= most_ms, run.over_ms[-8:]
    assert run.answered_late <= 20  # by the time that the answer takes to reach its caller


# ---- odd deadlines ---------------------------------------------------------------------------------------------------------


def doors(scorer, ranker):
    """Name -> what takes a deadline."""
    return {
        "score": lambda ms: scorer.score(payment(), deadline_ms=ms),
        "score_json": lambda ms: scorer.score_json(BODY, deadline_ms=ms),
        "score_msgpack": lambda ms: scorer.score_msgpack(msgspec.msgpack.encode(payment()), deadline_ms=ms),
        "score_batch": lambda ms: scorer.score_batch([payment()], deadline_ms=ms),
        "score_batch by row": lambda ms: scorer.score_batch([payment()], errors="row", deadline_ms=ms),
        "ascore": lambda ms: asyncio.run(scorer.ascore(payment(), deadline_ms=ms)),
        "batcher": lambda ms: asyncio.run(scorer.batcher(max_delay_ms=0).score(payment(), deadline_ms=ms)),
        "explain": lambda ms: scorer.explain(payment(), deadline_ms=ms),
        "rank": lambda ms: ranker.rank(CONTEXT, ["sku-001"], 1, deadline_ms=ms),
        "rank_json": lambda ms: ranker.rank_json(RANKING, deadline_ms=ms),
        "arank": lambda ms: asyncio.run(ranker.arank(CONTEXT, ["sku-001"], 1, deadline_ms=ms)),
    }


DOORS = list(doors(None, None))


@pytest.mark.parametrize("door", DOORS)
def test_c61_deadlines_of_nothing_and_of_eternity(door):
    """c61: 0 and less is over at once and nothing ran; 1 us is over or answered, 1e18 ms and none are answered."""
    scorer, ranker = releases.payment_scorer(), releases.shared_ranker()
    call = doors(scorer, ranker)[door]
    ran = scorer.freshness.answers + ranker.freshness.answers
    for nothing in (0, -0.0, -1, -1e-300, -1e18, float("-inf")):
        with pytest.raises(DeadlineExceededError) as caught:
            call(nothing)
        assert caught.value.http_status == 504
    assert scorer.freshness.answers + ranker.freshness.answers == ran
    for _ in range(40):
        try:
            answers = call(0.001)
        except DeadlineExceededError:
            continue
        assert door in ("score_batch by row", "explain") or answers is not None
    for _ in range(3):
        for much in (None, 1e18, 10**400, float("inf"), 3_600_000):
            assert call(much) is not None
    for wrong in ("1", float("nan"), True, [1]):
        with pytest.raises(FeatureError, match="deadline_ms"):
            call(wrong)


def test_c61_the_contract_bounds_calls_that_bring_no_deadline():
    """Absent is the server's most, and not for ever."""
    clock = ManualClock()

    class Endless:
        def fetch(self, keys, *, timeout_s):
            clock.advance_ns(30 * MS)
            return {key: {"n": 1.0} for key in keys}

    table = ri.FeatureTable({"n": "f64"}, source=Endless(), timeout_ms=100, clock=clock, name="card")
    spec = ri.FeatureSpec(
        request={"card": str},
        entities={"card": ri.Entity(key=("card",), columns={"n": "float"})},
        columns=[c.stored("card.n", null=0.0, unknown=0.0, on_unavailable=-1.0)],
    )
    files = releases.packed(
        "bounded", releases.first_column(1), spec, contract=ri.Contract(deadline_ms=20.0, max_rows=10)
    )
    scorer = releases.scorer_of(files, store=ri.Store(tables={"card": table}, clock=clock))
    with pytest.raises(DeadlineExceededError):
        scorer.score({"card": "a"})
    assert scorer.score({"card": "a"}).score == 1.0  # the table has it now
    assert scorer.score({"card": "b"}, deadline_ms=50).score == 1.0


# ---- clocks that are set ---------------------------------------------------------------------------------------------------


class Set(ManualClock):
    """A clock whose wall time is set by an hour each time that somebody looks at it."""

    def __init__(self):
        super().__init__()
        self.looks = 0

    def wall_ns(self):
        self.looks += 1
        self.step_wall_ns(3_600 * 10**9 * (1 if self.looks % 2 else -1))
        return super().wall_ns()


def test_c62_steps_of_the_wall_clock_touch_no_deadline():
    """c62: an hour forward and back between any two looks: every call has its time, and no more of it."""
    clock = Set()
    scorer = releases.scorer_of(releases.payment_files(), store=ri.Store(clock=clock))
    ranker = releases.item_ranker(store=ri.Store(tables={"item": releases.items()}, clock=clock))
    for _ in range(50):
        for name, call in doors(scorer, ranker).items():
            assert call(1.0) is not None, name
        clock.step_wall_ns(3_600 * 10**9)
    assert scorer._live.engine.n_late == scorer._live.engine.n_refused_time == ranker._live.engine.n_late == 0


def test_c62_a_machine_that_slept_has_late_calls_and_then_none():
    """c62: after a suspension what was under way is over, and the next call has all of its time."""
    clock = ManualClock()

    class Sleeps:
        sleeps = True

        def fetch(self, keys, *, timeout_s):
            clock.advance_ns(3_600 * 10**9 if self.sleeps else 1_000)
            return {key: {"n": 1.0} for key in keys}

    source = Sleeps()
    table = ri.FeatureTable({"n": "f64"}, source=source, ttl="1m", timeout_ms=5_000, clock=clock, name="card")
    spec = ri.FeatureSpec(
        request={"card": str},
        entities={"card": ri.Entity(key=("card",), columns={"n": "float"})},
        columns=[c.stored("card.n", null=0.0, unknown=0.0, on_unavailable=-1.0)],
    )
    scorer = releases.scorer_of(
        releases.packed("slept", releases.first_column(1), spec),
        store=ri.Store(tables={"card": table}, clock=clock),
    )
    with pytest.raises(DeadlineExceededError) as caught:
        scorer.score({"card": "a"}, deadline_ms=10_000)  # its thread may be slow to begin, on a busy machine
    assert caught.value.late or "left" in str(caught.value)
    source.sleeps = False
    clock.advance_ns(10**9)
    assert scorer.score({"card": "b"}, deadline_ms=10).score in (1.0, -1.0)
    assert scorer.score({"card": "b"}, deadline_ms=10).score in (1.0, -1.0)


class Backend:
    """A model server in this process, which is there or not."""

    def __init__(self):
        self.is_there, self.asked = True, 0

    def infer(self, inputs, outputs, *, timeout_s):
        self.asked += 1
        if not self.is_there:
            raise RemoteError("nobody answers", kind="connect")
        return {name: np.ones((1, 1), np.float32) for name in outputs}


def test_c62_steps_of_the_wall_clock_touch_no_breaker():
    """c62: a breaker opens and closes again by the clock that goes on, whatever the wall clock does meanwhile."""
    seen = []
    for clock in (ManualClock(), Set()):
        backend = Backend()
        remote = ri.Remote([backend], model="m", retries=0, clock=clock, chance=random.Random(1))

        def ask(remote=remote, clock=clock):
            try:
                remote.infer({"x": np.ones((1, 1), np.float32)}, ["y"], end_ns=clock.monotonic_ns() + 50 * MS)
            except RemoteError as exc:
                return exc.kind
            return "answered"

        ends = [ask() for _ in range(5)]
        backend.is_there = False
        for _ in range(30):
            clock.step_wall_ns(3_600 * 10**9)
            ends.append(ask())
        backend.is_there = True
        for _ in range(20):
            clock.step_wall_ns(-3_600 * 10**9)
            clock.advance_ns(500 * MS)
            ends.append(ask())
        seen.append((ends, backend.asked, remote.breaker_states()))
    assert seen[0] == seen[1]
    ends = seen[0][0]
    assert ends[:5] == ends[-5:] == ["answered"] * 5
    assert 5 < seen[0][1] < 45, "the breaker was open for a while"


def test_c62_the_machine_s_own_monotonic_clock_is_asked():
    """c62: what NTP sets is not what deadlines are measured with."""
    assert SystemClock.monotonic_ns is time.monotonic_ns
    assert not time.get_clock_info("monotonic").adjustable


# ---- a cold start ----------------------------------------------------------------------------------------------------------


class Counts:
    """A source that remembers how often it was asked for whom, and how many asked at once."""

    def __init__(self):
        self.lock = threading.Lock()
        self.asked, self.now, self.most = Counter(), 0, 0

    def fetch(self, keys, *, timeout_s):
        with self.lock:
            self.asked.update(keys)
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.01)
        with self.lock:
            self.now -= 1
        return {key: {"n": float(key[1:])} for key in keys}


def test_c65_cold_start_at_full_load_asks_once_for_each_key():
    """c65: nothing is in the table and everybody comes at once: one question a key, few at a time, the right row for all."""
    source = Counts()
    table = ri.FeatureTable({"n": "f64"}, source=source, max_rows=1_000, timeout_ms=10_000, name="card")
    spec = ri.FeatureSpec(
        request={"card": str},
        entities={"card": ri.Entity(key=("card",), columns={"n": "float"})},
        columns=[c.stored("card.n", null=-1.0, unknown=-2.0, on_unavailable=-3.0)],
    )
    files = releases.packed("cold", releases.first_column(1), spec)
    wrong = []
    with releases.scorer_of(
        files, store=ri.Store(tables={"card": table}), max_in_flight=64, max_waiting=64
    ) as made:
        gate = threading.Barrier(12)

        def work(offset):
            gate.wait()
            for i in range(60):
                card = (i * 7 + offset) % 60
                answer = made.score({"card": f"c{card}"}, deadline_ms=20_000)
                if answer.score != card:
                    wrong.append((card, answer.score))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert made.permits.in_flight == made.permits.waiting == 0
    assert wrong == []
    assert len(source.asked) == 60
    assert set(source.asked.values()) == {1}
    assert source.most <= 8


def test_reports_of_trials_can_be_written():
    """What soak writes of a trial is JSON."""
    trial = Trial(3)
    trial.run(200)
    assert json.loads(json.dumps(trial.report()))["stages"].keys() == trial.stages.keys()
