"""Coroutines under load: a loop that is late is overload, cancelled calls give back what they hold when their work ends.

Time is simulated where it matters: simulated_loop.py.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref

import pytest
import releases
from releases import CONTEXT, payment
from simulated_loop import simulate
from test_batching import Gate, behind
from test_degrade import GOOD, scorer_of

import retailinfer as ri
from retailinfer.clock import ManualClock
from retailinfer.errors import ConfigError, OverloadedError
from retailinfer.serving.looplag import LoopLag

MS = 1_000_000


def on(clock):
    """A scorer of payments on this clock."""
    return releases.scorer_of(releases.payment_files(), store=ri.Store(clock=clock))


class Loop:
    """What tests do to a simulated loop: hold it, and ask."""

    def __init__(self, clock, lag):
        self.clock, self.lag = clock, lag

    def hold(self, ms):
        """Somebody computes, and nothing else runs."""
        self.clock.advance_ns(round(ms * MS))

    def refused(self, priority):
        try:
            self.lag.check(priority)
        except OverloadedError:
            return True
        return False


# ---- how late ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ms", "shed"), [(0, False), (49, False), (51, True), (500, True)])
def test_late_loop_sheds_what_may_be_shed(ms, shed):
    """Up to 50 ms nobody notices; beyond it sheddable, batch and shadow calls are refused, and critical ones are not yet."""
    clock, lag = ManualClock(), LoopLag()

    async def run():
        loop = Loop(clock, lag)
        lag.check()
        await asyncio.sleep(0)
        loop.hold(10 + ms)  # to the next beat, and so much longer
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [loop.refused(one) for one in ("sheddable", "batch", "shadow")] == [shed] * 3
        assert not loop.refused("critical")
        assert round(lag.last_ms) == ms
        assert lag.n_refused == 3 * shed
        await asyncio.sleep(0.002)  # the next beat is in time
        assert not loop.refused("sheddable")

    simulate(clock, run())


def test_loop_that_stays_late_refuses_critical_calls_too():
    """What waits is more than the loop can do; it recovers with the first beat in time."""
    clock, lag = ManualClock(), LoopLag()

    async def run():
        loop = Loop(clock, lag)
        lag.check()
        for late in range(4):
            loop.hold(80)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert loop.refused("sheddable")
            assert loop.refused("critical") == (late > 0)
        await asyncio.sleep(0.002)
        assert not loop.refused("critical")
        assert not loop.refused("shadow")

    simulate(clock, run())


def test_loop_that_did_not_run_meanwhile_was_not_late():
    """A task queue's worker runs one loop bit by bit: between two bits nobody waits in it. Within a bit, it is late as any."""
    lag, loop, now = LoopLag(), asyncio.new_event_loop(), [0.0]
    loop.time = lambda: now[0]

    async def ask():
        lag.check("shadow")
        await asyncio.sleep(0)
        lag.check("shadow")
        return lag.last_ms

    async def held():
        lag.check()
        await asyncio.sleep(0)
        now[0] += 0.08
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        lag.check("shadow")

    for _ in range(5):
        assert loop.run_until_complete(ask()) == 0.0
        now[0] += 1.0
    assert lag.n_refused == 0
    with pytest.raises(OverloadedError):
        loop.run_until_complete(held())
    now[0] += 1.0
    assert loop.run_until_complete(ask()) == 0.0
    loop.close()


def test_beats_stop_when_nobody_asks():
    """A tenth of a second after the last question the loop has no timer of ours left; the next question begins anew."""
    clock, lag = ManualClock(), LoopLag()

    async def run():
        loop = asyncio.get_running_loop()
        assert loop._scheduled == []
        lag.check()
        assert len(loop._scheduled) == 1
        for _ in range(5):
            await asyncio.sleep(0.05)
            lag.check()
            assert len(loop._scheduled) == 1
        await asyncio.sleep(0.2)
        assert loop._scheduled == []
        assert lag.last_ms == 0.0
        clock.advance_ns(10_000 * MS)  # while nobody asks nobody is late
        lag.check("shadow")
        await asyncio.sleep(0.011)
        lag.check("shadow")

    simulate(clock, run())


def test_no_loop_is_kept():
    """Neither loops nor their beats are held on to; a loop that ends with a beat under way ends."""
    lag = LoopLag()
    seen = []

    async def run():
        seen.append(weakref.ref(asyncio.get_running_loop()))
        lag.check()

    asyncio.run(run())
    gc.collect()
    assert seen[0]() is None
    assert len(lag._pulses) == 0
    with pytest.raises(RuntimeError):
        lag.check()


def test_limits_of_lag():
    """None switches it off; what is no limit is refused."""
    clock, lag = ManualClock(), LoopLag(None)

    async def run():
        loop = Loop(clock, lag)
        for _ in range(3):
            assert not loop.refused("shadow")
            loop.hold(1_000)
            await asyncio.sleep(0)
        assert asyncio.get_running_loop()._scheduled == []
        lag.limit_ms = 2_000
        assert not loop.refused("shadow")
        loop.hold(1_000)
        await asyncio.sleep(0)
        assert not loop.refused("shadow")

    simulate(clock, run())
    for limit in (0, -1, float("nan"), "50", True):
        with pytest.raises(ConfigError, match="limit_ms"):
            LoopLag(limit)


def test_lag_on_the_real_clock():
    """A handler that computes for a tenth of a second is noticed in its loop, and the loop is well again at once."""
    made = releases.payment_scorer()

    async def run():
        await made.ascore(payment())
        await asyncio.sleep(0.02)
        threading.Event().wait(0.15)  # holds the loop
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="event loop"):
            await made.ascore(payment(), priority="sheddable")
        await asyncio.sleep(0.01)
        return await made.ascore(payment(), priority="sheddable")

    assert asyncio.run(run()).score == made.score(payment()).score


# ---- doors that ask --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["ascore", "arank", "batch"])
def test_doors_of_coroutines_are_overloaded_with_their_loop(door):
    """ascore, arank and micro-batches refuse, or give what the caller gave for this; plain calls know no loop."""
    clock = ManualClock()
    scorer = on(clock)
    store = ri.Store(tables={"item": releases.items()}, clock=clock)
    ranker = releases.item_ranker(store=store)
    batcher = scorer.batcher(max_delay_ms=0)

    def call(**more):
        if door == "arank":
            return ranker.arank(CONTEXT, ["sku-001"], 1, **more)
        return (scorer.ascore if door == "ascore" else batcher.score)(payment(), **more)

    async def run():
        await call()
        for _ in range(2):
            clock.advance_ns(100 * MS)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await call()
        assert await call(otherwise="later") == "later"
        assert await call(priority="shadow", otherwise=None) is None
        assert scorer.score(payment()).score > 0
        assert (ranker if door == "arank" else scorer).loop_lag.n_refused == 3
        await asyncio.sleep(0.002)
        await call()

    simulate(clock, run())


@pytest.mark.parametrize("n", [1, 8])
def test_loop_goes_on_while_calls_wait(n):
    """Calls whose source does not answer hold a thread each and not the loop: others are served meanwhile."""
    gate = Gate()
    with behind(gate, max_in_flight=32) as made:

        async def run():
            waiting = [asyncio.ensure_future(made.ascore({"card": f"{i:03d}"})) for i in range(n)]
            await until(lambda: made.permits.waiting == n)
            loop, turns, longest = asyncio.get_running_loop(), 0, 0.0
            for _ in range(50):
                start = loop.time()
                await asyncio.sleep(0)
                longest = max(longest, loop.time() - start)
                turns += 1
            assert not any(task.done() for task in waiting)
            gate.open.set()
            return turns, longest, [answer.score for answer in await asyncio.gather(*waiting)]

        turns, longest, scores = asyncio.run(run())
    assert turns == 50
    assert longest < 5.0  # the source would have held it for 20
    assert scores == [3.0] * n


# ---- cancelled calls -------------------------------------------------------------------------------------------------------


async def until(holds):
    """Turn the loop until it holds."""
    for _ in range(4_000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never holds")


def test_cancelled_call_gives_its_permit_back_when_its_work_ends():
    """The thread cannot be stopped: until the source has answered, the call counts as waiting; then everything is free."""
    gate = Gate()
    with behind(gate, max_in_flight=2, max_waiting=1) as made:

        async def run():
            first = asyncio.ensure_future(made.ascore({"card": "a"}))
            await until(lambda: made.permits.waiting == 1)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            assert made.permits.waiting == 1  # its work goes on
            busy = await made.ascore({"card": "b"})  # nobody else may wait meanwhile
            assert busy.missing == ("card.n",)
            gate.open.set()
            await until(lambda: made.permits.waiting == 0)
            assert made.permits.in_flight == 0
            return await made.ascore({"card": "abc"})

        assert asyncio.run(run()).score == 3.0


class Takes:
    """A remote model that takes its time."""

    model = "m"

    def infer(self, inputs, outputs, *, end_ns, clock):
        time.sleep(0.1)
        return {"y": [[0.04]]}


def test_time_in_line_counts_for_a_call_that_is_shed_and_goes_down():
    """Refused, then in line for a thread, then answered by a rung: within the one deadline of its caller, or not at all."""
    made = scorer_of("remote", remote=Takes(), max_in_flight=1)

    async def run(held_s):
        gate = threading.Event()
        assert await made._threads.run(made._live, lambda: True)
        blockers = [
            asyncio.ensure_future(made._threads.run(made._live, gate.wait)) for _ in range(made._threads.n)
        ]
        permit = made.permits.take()
        began_s = time.monotonic()
        call = asyncio.ensure_future(made.ascore(GOOD, deadline_ms=500, otherwise=None))
        await asyncio.sleep(held_s)
        gate.set()
        answer, took_s = await call, time.monotonic() - began_s
        made.permits.give(permit)
        await asyncio.gather(*blockers)
        return answer, took_s

    answer, took_s = asyncio.run(run(0.0))
    assert took_s > 0.5 or answer.rung == 2
    answer, took_s = asyncio.run(run(0.46))
    assert answer is None, (answer, took_s)
    made.close()


@pytest.mark.parametrize(("priority", "share"), [("critical", 10), ("sheddable", 8), ("batch", 6)])
def test_line_for_threads_has_an_end(monkeypatch, priority, share):
    """Calls that are too long for the loop stand in line for threads: beyond max_waiting they are shed and counted."""
    go = threading.Event()

    class Held(float):
        def __float__(self):
            assert go.wait(20)
            return 1.0

    monkeypatch.setattr("retailinfer.scorer.INLINE_BELOW_US", 0.0)  # as a model that takes long
    made = releases.scorer_of(releases.payment_files(), max_waiting=10)

    async def run():
        one = {"amount": Held(1.0)}
        tasks = [
            asyncio.ensure_future(made.ascore(releases.payment(**one), priority=priority)) for _ in range(100)
        ]
        await asyncio.sleep(0.05)
        assert len(made._threads.line) == made._threads.n + share
        assert made.permits.rejected[priority] == 100 - len(made._threads.line)
        for task in tasks[made._threads.n :: 2]:
            task.cancel()
        await asyncio.sleep(0.01)
        go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        shed = [answer for answer in answers if isinstance(answer, OverloadedError)]
        assert len(shed) == made.permits.rejected[priority]
        assert all(one.retry_after_s > 0 for one in shed)
        assert made._threads.line == set()
        assert await made.ascore(releases.payment(), priority=priority)

    asyncio.run(run())
    assert made.permits.in_flight == 0
    made.close()


def test_many_cancelled_calls_leak_no_permit():
    """Cancelled before, while and after they run, a thousand times: all permits are there again."""
    wide = releases.packed("wide", releases.deep_network(15, hidden=1024), releases.payment_spec())
    with releases.scorer_of(wide, max_in_flight=8) as made:
        assert made._live.engine.one_us > 0

        async def run():
            done = cancelled = 0
            for i in range(250):
                tasks = [
                    asyncio.ensure_future(made._threads.run(made._live, made.score, payment()))
                    for _ in range(4)
                ]
                for _ in range(i % 5):
                    await asyncio.sleep(0)
                for task in tasks[:: 1 + i % 2]:
                    task.cancel()
                for answer in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(answer, asyncio.CancelledError):
                        cancelled += 1
                    else:
                        done += not isinstance(answer, Exception)
            await until(lambda: made.permits.in_flight == 0)
            return done, cancelled

        done, cancelled = asyncio.run(run())
        assert done > 50
        assert cancelled > 50
        assert made.permits.waiting == 0
        assert sum(made.permits.admitted.values()) <= 1_000 + 64
        for _ in range(8):
            made.score(payment())
