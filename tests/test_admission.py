"""Admission: how long stages take, permits by priority, deadlines before and after the work, all of it on a manual clock."""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import random
import threading
import time

import msgspec
import pytest
import releases
from hypothesis import example, given
from hypothesis import strategies as st
from releases import payment
from test_serving_tables import Held, table_of

import retailinfer as ri
from retailinfer._native.admission import PRIORITIES, Permits, StageClock
from retailinfer.clock import ManualClock
from retailinfer.errors import ConfigError, DeadlineExceededError, FeatureError, OverloadedError, RequestError

MS_NS = 10**6
SHARES = {"critical": 1.0, "sheddable": 0.8, "batch": 0.6, "shadow": 0.6}


class Slow(float):
    """A number that takes time to be read: the clock moves on while the engine looks at it."""

    clock: ManualClock
    ns: int

    def __new__(cls, clock, ns, value=1.0):
        made = super().__new__(cls, value)
        made.clock, made.ns = clock, ns
        return made

    def __float__(self):
        self.clock.advance_ns(self.ns)
        return 1.0


def scorer_on(clock, **options):
    """A scorer of payments on a clock of the test's own."""
    return releases.scorer_of(releases.payment_files(), store=ri.Store(tables={}, clock=clock), **options)


# ---- stages ----------------------------------------------------------------------------------------------------------


def exact_p99(values):
    """The smallest value that at least 99 of 100 do not exceed."""
    ordered = sorted(values)
    return ordered[len(ordered) - 1 - len(ordered) // 100]


@given(values=st.lists(st.integers(0, 2**43), min_size=32, max_size=400))
@example(values=[0] * 32)
@example(values=list(range(8, 60)))
@example(values=[2**43] * 99 + [1])
def test_p99_is_exact_to_an_eighth(values):
    """Never less than the exact percentile, and never more than an eighth above it."""
    stage = StageClock("run")
    for value in values:
        stage.note(value)
    want = exact_p99(values)
    assert want <= stage.p99_ns <= max(want, want + want // 8)
    assert stage.n == len(values)


def test_before_there_are_notes_the_prediction_counts():
    """Thirty-two calls are needed for a percentile; what is forgotten begins there again."""
    stage = StageClock("run", 5_000)
    for _ in range(31):
        stage.note(100)
        assert stage.p99_ns == 5_000
    stage.note(100)
    assert 100 <= stage.p99_ns <= 112
    stage.forget()
    assert stage.p99_ns == 5_000
    stage.predict(7_000)
    assert stage.p99_ns == 7_000
    assert stage.n == 32
    assert repr(stage) == "<StageClock run: p99 7 us of 32>"


def test_the_past_is_forgotten():
    """Some thousand calls after a slow time the percentile is that of now; a slow time shows within a hundred."""
    stage = StageClock("run")
    for _ in range(10_000):
        stage.note(1_000_000)
    fast = slow = 0
    while stage.p99_ns >= 2_000:
        stage.note(1_000)
        fast += 1
    assert 1_000 < fast < 30_000
    while stage.p99_ns < 1_000_000:
        stage.note(1_000_000)
        slow += 1
    assert slow < 150


def test_negative_and_huge_times_are_counted():
    """A clock that stepped back, and a call of days, cost nobody his answer."""
    stage = StageClock("run")
    for _ in range(32):
        stage.note(-5)
    assert stage.p99_ns == 0
    for _ in range(100):
        stage.note(2**62)
    assert stage.p99_ns >= 2**43


# ---- permits ---------------------------------------------------------------------------------------------------------


class Calls:
    """Calls of a scorer that are under way: each waits in its own thread until it is let go."""

    def __init__(self, scorer):
        self.scorer = scorer
        self.go = threading.Event()
        self.threads: list[threading.Thread] = []
        self.answers: list[object] = []

    def begin(self, priority="critical"):
        inside = threading.Event()
        owner = self

        class Waiting(float):
            def __float__(self):
                inside.set()
                owner.go.wait(timeout=30)
                return 1.0

        def work():
            try:
                self.answers.append(self.scorer.score(payment(amount=Waiting(1.0)), priority=priority))
            except Exception as exc:
                self.answers.append(exc)
            inside.set()

        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(timeout=30)
        self.threads.append(thread)

    def end(self):
        self.go.set()
        for thread in self.threads:
            thread.join(timeout=30)
        return self.answers


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("limit", [1, 2, 5, 10])
def test_each_priority_has_its_share_of_the_permits(priority, limit):
    """As many calls are under way as the share allows, at least one; the next is refused, and nobody loses a permit."""
    scorer = releases.scorer_of(releases.payment_files(), max_in_flight=limit)
    most = max(1, math.floor(limit * SHARES[priority] + 1e-9))
    calls = Calls(scorer)
    for _ in range(most):
        calls.begin(priority)
    assert scorer.permits.in_flight == most
    for call in (
        lambda: scorer.score(payment(), priority=priority),
        lambda: scorer.score_json(b"not JSON", priority=priority),  # nothing is decoded
        lambda: scorer.score_msgpack(b"\xc1", priority=priority),
        lambda: scorer.score_batch([payment()], priority=priority),
        lambda: scorer.permits.check(priority),
    ):
        with pytest.raises(OverloadedError, match="under way") as refused:
            call()
        assert 0.5 <= refused.value.retry_after_s <= 1.5
        assert refused.value.http_status == 429
    if most < limit:
        scorer.score(payment(), priority="critical")
    assert scorer.permits.rejected[priority] == 5
    assert all(not isinstance(answer, Exception) for answer in calls.end())
    assert scorer.permits.in_flight == 0
    scorer.permits.check(priority)
    scorer.score(payment(), priority=priority)
    assert scorer.permits.admitted[priority] >= most + 1


@pytest.mark.parametrize("priority", ["urgent", "", "Critical", None, 0, True, b"critical", ["critical"]])
def test_unknown_priorities_are_refused(priority):
    """From every door, with the names of those that there are, and no permit is lost."""
    scorer, ranker = releases.payment_scorer(), releases.item_ranker()
    for call in (
        lambda: scorer.score(payment(), priority=priority),
        lambda: scorer.score_json(b"{}", priority=priority),
        lambda: scorer.score_batch([payment()], priority=priority),
        lambda: ranker.rank({"user": "u", "boost": 1.0}, [], priority=priority),
        lambda: scorer.permits.check(priority),
    ):
        with pytest.raises(ConfigError, match="critical, sheddable, batch, shadow"):
            call()
    assert (scorer.permits.in_flight, ranker.permits.in_flight) == (0, 0)
    name = "CRITICAL".lower()  # equal, and another object
    assert scorer.score(payment(), priority=name).score == scorer.score(payment()).score


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"max_in_flight": 0}, "from 1"),
        ({"max_in_flight": -3}, "from 1"),
        ({"max_in_flight": True}, "integer"),
        ({"max_in_flight": 2.0}, "integer"),
        ({"max_waiting": -1}, "from 0"),
        ({"max_waiting": None}, "integer"),
    ],
)
def test_limits_that_mean_nothing_are_refused(options, hint):
    """When the release is loaded, not at the first call."""
    with pytest.raises(ConfigError, match=hint):
        releases.scorer_of(releases.payment_files(), **options)


def test_no_permit_is_lost_whatever_is_raised():
    """Bad bytes, bad values, foreign errors, late answers, interrupts: afterwards nobody is at work."""
    clock = ManualClock()
    scorer, ranker = scorer_on(clock), releases.item_ranker()

    class Broken(float):
        def __float__(self):
            raise KeyboardInterrupt

    class Endless:
        def __iter__(self):
            raise KeyboardInterrupt

    body = msgspec.json.encode(payment())
    context = {"user": "u", "boost": 1.0}
    calls = [
        (FeatureError, lambda: scorer.score(payment(amount="x"))),
        (RequestError, lambda: scorer.score_json(body[:-1])),
        (RequestError, lambda: scorer.score_msgpack(b"\xc1")),
        (FeatureError, lambda: scorer.score_batch([payment(), {}])),
        (KeyboardInterrupt, lambda: scorer.score(payment(amount=Broken(1.0)))),
        (KeyboardInterrupt, lambda: scorer.score_batch(Endless())),
        (KeyboardInterrupt, lambda: ranker.rank(context, Endless())),
        (DeadlineExceededError, lambda: scorer.score(payment(amount=Slow(clock, 2 * MS_NS)), deadline_ms=1)),
        (FeatureError, lambda: scorer.score(payment(), request_id=3)),
        (RequestError, lambda: ranker.rank_json(b"{")),
        (FeatureError, lambda: ranker.rank(context, ["sku-001", 3])),
    ]
    for error, call in calls * 10:
        with pytest.raises(error):
            call()
    assert (scorer.permits.in_flight, scorer.permits.waiting, ranker.permits.in_flight) == (0, 0, 0)


def test_threads_never_exceed_the_limit_and_lose_no_permit():
    """Sixteen threads over six permits: every call is answered or refused, and the counters add up."""
    scorer = releases.scorer_of(releases.payment_files(), max_in_flight=6)
    inside, most, done = 0, 0, []
    lock = threading.Lock()

    class Counting(float):
        def __float__(self):
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0)
            with lock:
                inside -= 1
            return 1.0

    def work(seed):
        rng = random.Random(seed)
        for _ in range(200):
            try:
                scorer.score(payment(amount=Counting(1.0)), priority=rng.choice(PRIORITIES))
                done.append(1)
            except OverloadedError:
                done.append(0)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most <= 6
    assert scorer.permits.in_flight == 0
    assert sum(scorer.permits.admitted.values()) == sum(done)
    assert sum(scorer.permits.rejected.values()) == len(done) - sum(done)


def test_refusing_is_cheap():
    """An error with its text, from the door to the caller, well below 20 us."""
    scorer = releases.scorer_of(releases.payment_files(), max_in_flight=1)
    calls = Calls(scorer)
    calls.begin()
    took = []
    for _ in range(2_000):
        start = time.perf_counter_ns()
        try:
            scorer.score_json(b"{}")
        except OverloadedError:
            took.append(time.perf_counter_ns() - start)
    calls.end()
    assert len(took) == 2_000
    assert sorted(took)[len(took) // 2] < 20_000


def test_overload_begins_and_ends_with_a_change_each():
    """It begins with the first refusal, and ends with the first call after a second without any."""
    clock = ManualClock()
    permits = Permits(1, clock=clock)
    seen = []
    permits.set_on_change(lambda *change: seen.append(change))
    scorer = scorer_on(clock, max_in_flight=1)
    scorer.permits.set_on_change(lambda *change: seen.append(change))
    calls = Calls(scorer)
    calls.begin()
    for _ in range(3):
        with pytest.raises(OverloadedError) as refused:
            scorer.score(payment())
        assert 0.5 <= refused.value.retry_after_s < 1.5
    calls.end()
    assert seen == [("calm", "shedding", "1 calls under way")]
    clock.advance_ns(999 * MS_NS)
    scorer.score(payment())
    assert scorer.permits.shedding
    clock.advance_ns(MS_NS)
    scorer.score(payment())
    assert seen[1:] == [("shedding", "calm", "nobody was refused for a second")]
    permits.check()
    assert repr(permits) == "<Permits 0 of 1, 0 waiting>"


def child_reports(call):
    """What a forked child's `call` returns, as an exit status."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = call()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork")
def test_forked_child_begins_with_nobody_at_work():
    """Calls of the parent's other threads are not in the child, and its counters are its own."""
    scorer = releases.scorer_of(releases.payment_files(), max_in_flight=2)
    calls = Calls(scorer)
    calls.begin()
    calls.begin()
    with pytest.raises(OverloadedError):
        scorer.score(payment())

    def in_child():
        permits = scorer.permits
        clean = (
            permits.in_flight,
            permits.waiting,
            permits.admitted["critical"],
            permits.rejected["critical"],
        )
        scorer.score(payment())
        return 0 if clean == (0, 0, 0, 0) and permits.in_flight == 0 else 1

    assert child_reports(in_child) == 0
    assert scorer.permits.in_flight == 2
    calls.end()
    assert scorer.permits.in_flight == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork")
def test_fork_in_the_middle_of_a_call_gives_nothing_back_twice():
    """A value that forks while it is read: the call goes on in both, and both end with nobody at work."""
    scorer = releases.scorer_of(releases.payment_files(), max_in_flight=2)
    pids = []

    class Forking(float):
        def __float__(self):
            pids.append(os.fork())
            return 1.0

    scorer.score(payment(amount=Forking(1.0)))
    if pids[0] == 0:
        os._exit(0 if scorer.permits.in_flight == 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
    assert scorer.permits.in_flight == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork")
def test_raw_fork_is_noticed_before_anybody_is_refused():
    """A fork that Python does not hear of: the child's first call finds all permits taken, sees whose, and goes on."""
    scorer = releases.scorer_of(releases.payment_files(), max_in_flight=1)
    pids = []

    class Forking(float):
        def __float__(self):
            pids.append(ctypes.PyDLL(None).fork())
            if pids[0] == 0:
                status = 1
                try:
                    assert scorer.permits.in_flight == 1  # the parent's
                    scorer.score(payment())
                    status = scorer.permits.in_flight
                finally:
                    os._exit(status)
            return 1.0

    scorer.score(payment(amount=Forking(1.0)))
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
    assert scorer.permits.in_flight == 0


# ---- deadlines -------------------------------------------------------------------------------------------------------


def test_late_answer_is_dropped_and_counted():
    """Exactly at the deadline is in time; a nanosecond later is late, and no answer is counted."""
    clock = ManualClock()
    scorer = scorer_on(clock)
    engine = scorer._live.engine
    assert scorer.score(payment(amount=Slow(clock, MS_NS)), deadline_ms=1).score >= 0.0
    with pytest.raises(DeadlineExceededError, match="after the deadline") as late:
        scorer.score(payment(amount=Slow(clock, MS_NS + 1)), deadline_ms=1)
    assert late.value.late
    assert not late.value.counted
    assert (engine.n_late, engine.n_answers, scorer.freshness.answers) == (1, 1, 1)
    with pytest.raises(DeadlineExceededError) as late:
        scorer.score_batch([payment(), payment(amount=Slow(clock, 2 * MS_NS))], deadline_ms=1, errors="row")
    assert late.value.late
    assert engine.n_late == 2
    body = msgspec.json.encode(payment())
    assert scorer.score_json(body, deadline_ms=1)


def test_no_answer_comes_late_and_none_is_refused_without_need():
    """Ten thousand calls that take any time: each answer is in time by the clock, and refusals are counted as such."""
    clock = ManualClock()
    scorer = scorer_on(clock)
    engine, rng = scorer._live.engine, random.Random(5)
    answered = late = refused = 0
    for _ in range(10_000):
        took = int(rng.lognormvariate(math.log(MS_NS), 1.0))
        start = clock.monotonic_ns()
        budget_ms = rng.choice([1.0, 3.0, 30.0])
        try:
            scorer.score(payment(amount=Slow(clock, took)), deadline_ms=budget_ms)
            answered += 1
            assert clock.monotonic_ns() - start <= budget_ms * MS_NS
        except DeadlineExceededError as exc:
            if exc.late:
                late += 1
                assert clock.monotonic_ns() - start > budget_ms * MS_NS
            else:
                refused += 1
                assert clock.monotonic_ns() == start  # no work was done
    assert (answered, late, refused) == (engine.n_answers, engine.n_late, engine.n_refused_time)
    assert answered > 2_000
    assert refused > 2_000
    assert late < answered / 4


def test_work_without_the_time_for_it_is_not_begun():
    """Once calls are known to take 5 ms, one that has 4 ms is refused before its request is read."""
    clock = ManualClock()
    scorer = scorer_on(clock)
    for _ in range(40):
        scorer.score(payment(amount=Slow(clock, 5 * MS_NS)), deadline_ms=50)
    read = []

    class Reading(float):
        def __float__(self):
            read.append(1)
            return 1.0

    for _ in range(31):
        with pytest.raises(DeadlineExceededError, match="4 ms are left") as refused:
            scorer.score(payment(amount=Reading(1.0)), deadline_ms=4)
        assert not refused.value.late
        with pytest.raises(DeadlineExceededError):
            scorer.score_json(b"not even JSON", deadline_ms=4)
        read.clear() if scorer._live.engine.n_short % 32 == 0 else None
        if scorer._live.engine.n_short >= 30:
            break
    assert read == []
    assert scorer._live.engine.n_refused_time == scorer._live.engine.n_short
    assert scorer.score(payment(), deadline_ms=6).score >= 0.0
    assert scorer._live.engine.stages["run"].p99_ns >= 5 * MS_NS


def test_estimate_recovers_by_calls_that_are_let_through():
    """A slow time is over: one call in 32 is tried, and when these are in time, all are."""
    clock = ManualClock()
    scorer = scorer_on(clock)
    for _ in range(3_000):
        scorer.score(payment(amount=Slow(clock, 5 * MS_NS)), deadline_ms=50)
    outcomes = []
    for _ in range(400):
        try:
            scorer.score(payment(), deadline_ms=1)
            outcomes.append(True)
        except DeadlineExceededError:
            outcomes.append(False)
    assert outcomes[:31] == [False] * 31
    assert outcomes[31]
    assert all(outcomes[200:])


def test_estimate_does_not_recover_while_calls_stay_slow():
    """Those that are let through come late, one in 32; the others cost nothing."""
    clock = ManualClock()
    scorer = scorer_on(clock)
    for _ in range(100):
        scorer.score(payment(amount=Slow(clock, 5 * MS_NS)), deadline_ms=50)
    for _ in range(640):
        with pytest.raises(DeadlineExceededError):
            scorer.score(payment(amount=Slow(clock, 5 * MS_NS)), deadline_ms=1)
    assert (scorer._live.engine.n_late, scorer._live.engine.n_refused_time) == (20, 620)


def test_calls_without_a_deadline_are_not_timed():
    """Nothing is measured for nobody, and no time is too long."""
    clock = ManualClock()
    scorer = scorer_on(clock)
    scorer.score(payment(amount=Slow(clock, 10**15)))
    assert scorer._live.engine.stages["run"].n == 0


def test_deadline_of_the_contract_holds_for_every_call():
    """And a call's own comes before it."""
    clock = ManualClock()
    spec = ri.FeatureSpec(request={"a": float}, columns=[ri.columns.numeric("a")])
    files = releases.packed("own", releases.weighted(1.0), spec, contract=ri.Contract(deadline_ms=2.0))
    scorer = releases.scorer_of(files, store=ri.Store(tables={}, clock=clock))
    assert scorer.score({"a": Slow(clock, 2 * MS_NS)}).score == 1.0
    with pytest.raises(DeadlineExceededError, match="1 ms after the deadline"):
        scorer.score({"a": Slow(clock, 3 * MS_NS)})
    assert scorer.score({"a": Slow(clock, 3 * MS_NS)}, deadline_ms=10).score == 1.0
    many = [{"a": Slow(clock, 3 * MS_NS)} for _ in range(5)]  # a batch is as long as it is
    assert [d.score for d in scorer.score_batch(many)] == [1.0] * 5
    with pytest.raises(DeadlineExceededError):
        scorer.score_batch(many, deadline_ms=10)


def test_rankings_are_admitted_by_their_size():
    """What a large ranking takes does not refuse a small one."""
    clock = ManualClock()
    ranker = releases.ranker_of(
        releases.item_files(), store=ri.Store(tables={"item": releases.items()}, clock=clock)
    )
    few, many = [f"sku-{i:03d}" for i in range(3)], [f"sku-{i:03d}" for i in range(50)]
    for _ in range(40):
        ranker.rank({"user": "u", "boost": Slow(clock, 5 * MS_NS)}, many, deadline_ms=50)
    with pytest.raises(DeadlineExceededError):
        ranker.rank({"user": "u", "boost": 1.0}, many, deadline_ms=4)
    body = msgspec.json.encode({"context": {"user": "u", "boost": 1.0}, "candidates": many})
    with pytest.raises(DeadlineExceededError):
        ranker.rank_json(body, deadline_ms=4)
    assert ranker.rank({"user": "u", "boost": 1.0}, few, deadline_ms=4).items
    assert {"run", "run/2", "run/32"} <= set(ranker._live.engine.stages)
    with pytest.raises(DeadlineExceededError) as late:
        ranker.rank({"user": "u", "boost": Slow(clock, 5 * MS_NS)}, few, deadline_ms=4)
    assert late.value.late


def test_time_in_a_queue_is_time_of_the_call():
    """A call that its caller began earlier has so much less; the queue is no part of what the work takes."""
    clock = ManualClock(monotonic_ns=10**9)
    scorer = scorer_on(clock)
    engine = scorer._live.engine
    seen = []
    engine.set_hook(seen.append)

    def score(took_ns, queued_ns, budget_ns=10 * MS_NS):
        began = clock.monotonic_ns() - queued_ns
        request = payment(amount=Slow(clock, took_ns))
        return engine.score(request, None, 0, budget_ns, False, None, True, "critical", began)

    score(4 * MS_NS, 6 * MS_NS)
    assert seen[0].took_ns == 10 * MS_NS
    with pytest.raises(DeadlineExceededError, match="1 ms after the deadline"):
        score(5 * MS_NS, 6 * MS_NS)
    with pytest.raises(DeadlineExceededError, match="-1 ms are left") as refused:
        score(0, 11 * MS_NS)
    assert refused.value.began_ns == clock.monotonic_ns() - 11 * MS_NS
    for _ in range(40):
        score(4 * MS_NS, 1 * MS_NS)
    assert 4 * MS_NS <= engine.stages["run"].p99_ns <= 5.7 * MS_NS
    with pytest.raises(DeadlineExceededError, match="3 ms are left"):
        score(0, 7 * MS_NS)
    assert scorer.permits.in_flight == 0


def test_coroutines_wait_for_a_thread_within_their_deadline(monkeypatch):
    """More calls than threads: those that stood in the queue too long are late for their callers, and say so."""

    class Busy(float):
        def __float__(self):
            time.sleep(0.02)
            return 1.0

    scorer = releases.scorer_of(releases.payment_files(), max_in_flight=100, max_waiting=200)
    monkeypatch.setattr("retailinfer.scorer.INLINE_BELOW_US", 0.0)  # as a model that takes long

    async def one(i):
        try:
            await scorer.ascore(payment(amount=Busy(1.0), count=i), deadline_ms=400)
        except DeadlineExceededError:
            return False
        return True

    async def many():
        return await asyncio.gather(*(one(i) for i in range(200)))

    answers = asyncio.run(many())
    assert 1 <= sum(answers) < 200  # a thread a processor, and 20 ms a call
    scorer.close()


# ---- waiting ---------------------------------------------------------------------------------------------------------


def test_who_waits_holds_no_permit_and_too_many_do_not_wait():
    """Permits are free while sources are asked; beyond max_waiting what is missing is unavailable at once."""
    from test_serving_tables import files

    source = Held({"a": {"mean": 1.0, "n": 0}, "b": {"mean": 2.0, "n": 0}}, held=True)
    table = table_of(source=source, timeout_ms=20_000)
    scorer = releases.scorer_of(
        files(), store=ri.Store(tables={"card": table}), max_in_flight=1, max_waiting=2
    )
    answers = {}
    threads = [
        threading.Thread(target=lambda card=card: answers.update({card: scorer.score({"card": card}).score}))
        for card in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    while scorer.permits.waiting < 2 and time.monotonic() < until:
        time.sleep(0.001)
    assert (scorer.permits.waiting, scorer.permits.in_flight) == (2, 0)
    third = scorer.score({"card": "c"})  # the one permit is free, and a third must not wait
    assert (third.score, third.missing) == (-4.0, ("card.mean", "card.n"))
    assert [a.score for a in scorer.score_batch([{"card": "d"}, {"card": "e"}])] == [-4.0, -4.0]
    source.go.set()
    for thread in threads:
        thread.join()
    assert answers == {"a": 1.0, "b": 2.0}
    assert (scorer.permits.waiting, scorer.permits.in_flight) == (0, 0)


def test_waiting_leaves_time_for_the_model():
    """A source that never answers costs its values, not the answer: waiting ends before the deadline, not at it."""
    from test_serving_tables import files

    source = Held(held=True)
    table = table_of(source=source, timeout_ms=60_000, share=1.0)
    scorer = releases.scorer_of(files(), store=ri.Store(tables={"card": table}))
    answered = 0
    for i in range(20):
        try:
            assert scorer.score({"card": f"c{i}"}, deadline_ms=50).score == -4.0
            answered += 1
        except DeadlineExceededError:
            pass  # a busy machine
    source.go.set()
    assert answered >= 5
    assert scorer._live.engine.stages["wait"].n >= answered


class Sleepy:
    """A source whose answer takes time on the clock of the test."""

    def __init__(self, clock, ns):
        self.clock, self.ns = clock, ns

    def fetch(self, keys, *, timeout_s):
        self.clock.advance_ns(self.ns)
        return {key: {"mean": 1.0, "n": 0} for key in keys}


def test_after_a_wait_there_must_be_time_for_the_model():
    """The source came back so late that the rest of the work does not fit: refused before it, and nothing was counted."""
    from test_serving_tables import files

    clock = ManualClock()
    source = Sleepy(clock, 0)
    table = table_of(source=source, timeout_ms=60_000, share=1.0)
    scorer = releases.scorer_of(files(), store=ri.Store(tables={"card": table}, clock=clock))
    engine = scorer._live.engine
    for i in range(40):
        scorer.score({"card": f"warm-{i}"}, deadline_ms=100)
    for _ in range(100):  # the rest of the work takes 5 ms
        engine.run_clock.note(5 * MS_NS)
    source.ns = 96 * MS_NS
    with pytest.raises(DeadlineExceededError, match="4 ms are left") as refused:
        scorer.score({"card": "x"}, deadline_ms=100)
    assert not refused.value.late
    assert engine.n_late == 0
    source.ns = 90 * MS_NS
    assert scorer.score({"card": "y"}, deadline_ms=100).score == 1.0
    assert scorer.permits.in_flight == scorer.permits.waiting == 0
