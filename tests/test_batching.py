"""Micro-batching: the same bits as alone, at most so late, everybody's own errors, nobody left waiting.

Time is simulated where it matters: simulated_loop.py.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import random
import threading

import msgspec
import numpy as np
import pytest
import releases
from hypothesis import given
from hypothesis import strategies as st
from releases import payment
from simulated_loop import simulate
from test_serving_windows import MINUTE, T0, counts, windows_store
from test_serving_windows import files as window_files
from test_serving_windows import payment as window_payment

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.clock import ManualClock
from retailinfer.errors import (
    CallerError,
    ConfigError,
    DeadlineExceededError,
    FeatureError,
    OverloadedError,
    RetailInferError,
)
from retailinfer.release.manifest import decode_manifest, encode_manifest, seal
from retailinfer.serving.batching import predicted_ns

BAD = [
    payment(amount="12"),
    payment(amount=1e300, rate=1e300),
    payment(count=2**70),
    payment(sizes=[1.0, "x"]),
    {"amount": 1.0},
    payment(extra=1),
    42,
    None,
]


@functools.cache
def scorer():
    """Payments; nothing has to be waited for."""
    return releases.payment_scorer()


def on(clock):
    """The same on a clock of its own."""
    return releases.scorer_of(releases.payment_files(), store=ri.Store(clock=clock))


def requests(n, seed=1):
    """Different good ones."""
    rng = random.Random(seed)
    return [
        payment(amount=rng.uniform(-500, 500), level=rng.choice([None, 3]), note=f"n{i}") for i in range(n)
    ]


async def together(batcher, items, **options):
    """Answers and errors of all, in order."""
    return await asyncio.gather(*(batcher.score(one, **options) for one in items), return_exceptions=True)


def same(one, other):
    """All of a decision but its id."""
    return msgspec.structs.replace(one, id="") == msgspec.structs.replace(other, id="")


# ---- the same answers --------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 90), max_rows=st.integers(2, 40), seed=st.integers(0, 99))
def test_batched_scores_have_the_bits_of_single_ones(n, max_rows, seed):
    """Whatever the batches are: every decision is that of `score`."""
    batcher = scorer().batcher(max_rows=max_rows, max_delay_ms=0)
    items = requests(n, seed)
    answers = asyncio.run(together(batcher, items))
    for item, answer in zip(items, answers, strict=True):
        assert same(answer, scorer().score(item))
    assert batcher.n_rows == n
    assert batcher.n_batches == -(-n // max_rows)


def test_ids_are_the_callers_or_ours():
    """Each answer has its caller's request_id; where there is none, one that nobody else has."""

    async def run():
        batcher = scorer().batcher(max_rows=8)
        return await asyncio.gather(
            *(batcher.score(payment(), request_id=f"r-{i}" if i % 2 else None) for i in range(30))
        )

    ids = [answer.id for answer in asyncio.run(run())]
    assert ids[1::2] == [f"r-{i}" for i in range(1, 30, 2)]
    assert len(set(ids)) == 30


def test_errors_are_those_of_a_request_alone():
    """Type, text and path name no row of a batch, and good requests beside bad ones keep their answers."""

    async def run():
        items = [one for bad in BAD for one in (payment(), bad)]
        return await together(scorer().batcher(max_rows=64), items)

    answers = asyncio.run(run())
    assert all(same(answer, scorer().score(payment())) for answer in answers[::2])
    for bad, answer in zip(BAD, answers[1::2], strict=True):
        with pytest.raises(CallerError) as caught:
            scorer().score(bad)
        assert (type(answer), str(answer)) == (type(caught.value), str(caught.value))
        assert getattr(answer, "path", None) == getattr(caught.value, "path", None)
        assert answer.http_status == caught.value.http_status


def test_mistakes_of_the_call_itself_are_raised_at_once():
    """A moment or a deadline that is none never gets into a batch."""

    async def run():
        batcher = scorer().batcher()
        with pytest.raises(FeatureError, match="at"):
            await batcher.score(payment(), at="yesterday")
        with pytest.raises(FeatureError, match="deadline_ms"):
            await batcher.score(payment(), deadline_ms="soon")
        with pytest.raises(DeadlineExceededError):
            await batcher.score(payment(), deadline_ms=0)
        assert await batcher.score(payment(), deadline_ms=-1, otherwise="none") == "none"
        assert batcher.n_batches == 0
        (answer,) = await together(batcher, [payment()], priority="unheard-of")
        assert isinstance(answer, ConfigError)

    asyncio.run(run())


def test_moments_share_no_batch():
    """`at` is of one request: those with another one run apart, and are counted at their own time."""
    made = releases.scorer_of(window_files(), store=windows_store())
    moments = [T0, T0 - 120 * MINUTE, T0 - 240 * MINUTE]

    async def run():
        batcher = made.batcher()
        await asyncio.gather(
            *(
                batcher.score(window_payment(card=f"c-{i % 3}"), at=moments[i % 3], observe=True)
                for i in range(9)
            )
        )
        assert batcher.n_batches == 3

    asyncio.run(run())
    for i, moment in enumerate(moments):
        at_its_time, now = (made.score(window_payment(card=f"c-{i}"), at=at) for at in (moment, T0))
        assert counts(at_its_time)[1] == 3
        assert counts(now)[1] == (3 if i == 0 else 0)


# ---- when --------------------------------------------------------------------------------------------------------------


def test_nobody_waits_longer_than_the_limit():
    """The first of a batch waits `max_delay_ms`, those after it less, and a full batch nobody."""
    clock = ManualClock()
    made = on(clock)

    async def run():
        batcher = made.batcher(max_rows=4, max_delay_ms=2.0)
        loop = asyncio.get_running_loop()
        took = []

        async def one(delay_s):
            await asyncio.sleep(delay_s)
            start = loop.time()
            await batcher.score(payment())
            took.append(round((loop.time() - start) * 1e3, 3))

        await asyncio.gather(*(one(ms / 1e3) for ms in (0, 0.5, 1.5)))
        assert sorted(took) == [0.5, 1.5, 2.0]
        took.clear()
        await asyncio.gather(*(one(ms / 1e3) for ms in (0, 0.5, 1.0, 1.25)))
        assert sorted(took) == [0.0, 0.25, 0.75, 1.25]
        assert batcher.n_batches == 2

    simulate(clock, run())


def test_little_time_is_not_spent_on_waiting():
    """A request waits for a tenth of its time at most, and takes along whoever waits."""
    clock = ManualClock()
    made = on(clock)

    async def run():
        batcher = made.batcher(max_rows=32, max_delay_ms=50.0)
        loop = asyncio.get_running_loop()
        patient = asyncio.ensure_future(batcher.score(payment()))
        await asyncio.sleep(0.001)
        assert same(await batcher.score(payment(), deadline_ms=5.0), made.score(payment()))
        assert round(loop.time() * 1e3, 3) == 1.5
        assert patient.done()
        assert batcher.n_batches == 1

    simulate(clock, run())


def test_who_is_late_is_late_alone():
    """A batch has the time of its most patient row; an answer that one with less gets too late is dropped and counted."""
    clock = ManualClock()
    made = on(clock)

    async def run():
        batcher = made.batcher(max_rows=2, max_delay_ms=50.0)
        batcher._clock = Jumping(clock, after=4, by_ns=20_000_000)
        (late,) = await together(batcher, [payment()], deadline_ms=10.0)
        assert isinstance(late, DeadlineExceededError)
        assert late.late
        batcher._clock = Jumping(clock, after=4, by_ns=20_000_000)
        fine, late = await asyncio.gather(
            batcher.score(payment()), batcher.score(payment(), deadline_ms=10.0), return_exceptions=True
        )
        assert same(fine, made.score(payment()))
        assert isinstance(late, DeadlineExceededError)
        assert late.late
        assert batcher.n_late == 2

    simulate(clock, run())


class Jumping:
    """A clock that jumps once: as if the process had been stopped there."""

    def __init__(self, clock, *, after, by_ns):
        self.clock, self.left, self.by_ns = clock, after, by_ns

    def monotonic_ns(self):
        self.left -= 1
        if self.left == 0:
            self.clock.advance_ns(self.by_ns)
        return self.clock.monotonic_ns()


def test_no_time_left_is_no_work():
    """Where less is left than a batch takes, the row does not run, and the others do."""
    clock = ManualClock()
    made = on(clock)

    async def run():
        batcher = made.batcher(max_rows=2, max_delay_ms=50.0)
        batcher._clock = Jumping(clock, after=3, by_ns=20_000_000)
        hasty, patient = await asyncio.gather(
            batcher.score(payment(), deadline_ms=10.0), batcher.score(payment()), return_exceptions=True
        )
        assert isinstance(hasty, DeadlineExceededError)
        assert not hasty.late
        assert same(patient, made.score(payment()))
        assert batcher.n_rows == 1

    simulate(clock, run())


# ---- events ------------------------------------------------------------------------------------------------------------


def test_observed_requests_see_those_before_them():
    """In a batch each request is counted after the ones that came before, and one that is sent again is not."""
    made = releases.scorer_of(window_files(), store=windows_store())

    async def run():
        batcher = made.batcher(max_rows=16)
        ids = [1, 2, 1, 3, None]
        return await asyncio.gather(
            *(batcher.score(window_payment(), observe=True, event_id=one) for one in ids)
        )

    seen = [counts(answer)[0] for answer in asyncio.run(run())]
    assert seen == [1, 2, 2, 3, 4]


def test_cancelled_callers_take_no_part():
    """Who is cancelled before the batch runs is neither scored nor counted; the others are."""
    made = releases.scorer_of(window_files(), store=windows_store())

    async def run():
        batcher = made.batcher(max_rows=16, max_delay_ms=1_000.0)
        tasks = [asyncio.ensure_future(batcher.score(window_payment(), observe=True)) for _ in range(5)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        tasks[3].cancel()
        await asyncio.sleep(0)
        (queue,) = batcher._queues.values()
        batcher._flush(asyncio.get_running_loop(), queue)
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(run())
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert [counts(answer)[0] for answer in answers[::2]] == [1, 2, 3]


# ---- batches that are away ---------------------------------------------------------------------------------------------


class Gate:
    """A source that answers when it is let."""

    def __init__(self):
        self.open = threading.Event()
        self.calls = 0

    def fetch(self, keys, *, timeout_s):
        self.calls += 1
        assert self.open.wait(20)
        return {key: {"n": float(len(key))} for key in keys}


def behind(gate, **more):
    """A scorer whose one column comes from a source, and its score is that column."""
    table = ri.FeatureTable({"n": "f64"}, source=gate, timeout_ms=30_000, name="card")
    spec = ri.FeatureSpec(
        request={"card": str},
        entities={"card": ri.Entity(key=("card",), columns={"n": "float"})},
        columns=[c.stored("card.n", null=-1.0, unknown=-2.0, on_unavailable=-3.0)],
    )
    files = releases.packed("behind", releases.first_column(1), spec)
    return releases.scorer_of(files, store=ri.Store(tables={"card": table}), **more)


def test_batches_that_may_wait_leave_the_loop_free():
    """They wait in threads; two are away at most, what comes meanwhile is collected, and beyond a bound it is refused."""
    gate = Gate()
    with behind(gate) as made:

        async def run():
            batcher = made.batcher(max_rows=4, max_delay_ms=100)
            tasks = []
            for i in range(8):
                tasks.append(asyncio.ensure_future(batcher.score({"card": f"{i:03d}"})))
                await asyncio.sleep(0.002 if i % 4 == 3 else 0)
            (queue,) = batcher._queues.values()
            assert queue.away == 2
            ticks = 0
            tasks += [asyncio.ensure_future(batcher.score({"card": "x" * (i + 1)})) for i in range(16)]
            for _ in range(20):
                await asyncio.sleep(0.001)
                ticks += 1
            assert len(queue.rows) == 16
            with pytest.raises(OverloadedError):
                await batcher.score({"card": "more"})
            assert await batcher.score({"card": "more"}, otherwise=None) is None
            assert batcher.n_rejected == 2
            assert ticks == 20
            gate.open.set()
            return await asyncio.gather(*tasks)

        scores = [answer.score for answer in asyncio.run(run())]
    assert scores == [3.0] * 8 + [float(i + 1) for i in range(16)]


def test_long_batches_run_beside_the_loop():
    """What is predicted to take longer than a loop may be held runs in a thread, with the same bits."""
    wide = releases.packed("wide", releases.deep_network(15, hidden=1024), releases.payment_spec())
    with releases.scorer_of(wide) as made:
        batcher = made.batcher(max_rows=32)
        assert predicted_ns(made._live, 32) > 200_000
        items = requests(64)
        answers = asyncio.run(together(batcher, items))
        assert all(same(answer, made.score(item)) for item, answer in zip(items, answers, strict=True))
        assert made._threads._executor is not None


def test_failed_batches_end_every_wait():
    """A closed scorer, and an error that none of us raises, reach every caller; nobody hangs."""
    made = releases.scorer_of(releases.payment_files())
    batcher = made.batcher(max_rows=4)

    async def run():
        return await asyncio.wait_for(together(batcher, [payment()] * 6), 20)

    class Broken:
        waits = False

        def score_batch(self, *_):
            raise ZeroDivisionError("x")

    real = made._live.engine
    releases.put_engine(made, Broken())

    async def broken():
        unheard = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: unheard.append(what))
        answers = await asyncio.wait_for(together(batcher, [payment()] * 9), 20)
        assert [type(answer) for answer in answers] == [ZeroDivisionError] * 9
        gc.collect()
        return unheard

    assert asyncio.run(broken()) == []
    Broken.waits = True  # in a thread
    assert asyncio.run(broken()) == []
    releases.put_engine(made, real)
    assert all(isinstance(answer, ri.contracts.Decision) for answer in asyncio.run(run()))
    made.close()
    assert all(isinstance(answer, ConfigError) for answer in asyncio.run(run()))


def test_loops_have_queues_of_their_own():
    """Two loops in two threads share a batcher and nothing else; a loop that is gone leaves nothing behind."""
    batcher = scorer().batcher(max_rows=8)
    wanted = {seed: [scorer().score(one).score for one in requests(40, seed)] for seed in (1, 2)}
    found = {}

    def work(seed):
        async def run():
            answers = []
            for start in range(0, 40, 5):
                answers += await together(batcher, requests(40, seed)[start : start + 5])
            return [answer.score for answer in answers]

        found[seed] = asyncio.run(run())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted
    gc.collect()
    assert len(batcher._queues) == 0


def test_a_loop_that_ends_takes_its_waiting_callers_along():
    """asyncio.run with callers that nobody awaits ends; the batcher serves the next loop."""
    batcher = scorer().batcher(max_delay_ms=1_000.0)

    async def leave():
        task = asyncio.ensure_future(batcher.score(payment()))
        await asyncio.sleep(0)
        return task

    assert asyncio.run(leave()).cancelled()
    (answer,) = asyncio.run(together(scorer().batcher(), [payment()]))
    assert same(answer, scorer().score(payment()))


# ---- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        ({"max_rows": 1}, "max_rows"),
        ({"max_rows": 513}, "max_rows"),
        ({"max_rows": True}, "max_rows"),
        ({"max_rows": 8.0}, "max_rows"),
        ({"max_delay_ms": -1}, "max_delay_ms"),
        ({"max_delay_ms": float("nan")}, "max_delay_ms"),
        ({"max_delay_ms": "1"}, "max_delay_ms"),
    ],
)
def test_limits_that_are_none_are_refused(limits, what):
    """When the batcher is made, not when it is used."""
    with pytest.raises(ConfigError, match=what):
        scorer().batcher(**limits)


def test_releases_whose_rows_depend_on_each_other_are_refused():
    """A score that changes with the rows beside it would let one customer change another's."""
    files = dict(releases.payment_files())
    manifest = decode_manifest(files["manifest.json"])
    assert manifest.row_independent
    files["manifest.json"] = encode_manifest(seal(msgspec.structs.replace(manifest, row_independent=False)))
    with pytest.raises(ConfigError, match="rows run together"):
        releases.scorer_of(files).batcher()
    with pytest.raises(ConfigError, match="as the contract has it"):
        releases.payment_scorer(max_rows=16).batcher(max_rows=32)


def test_what_a_batcher_says_of_itself():
    """The release and its limits."""
    assert repr(scorer().batcher(max_rows=8, max_delay_ms=0.5)).endswith("up to 8 rows within 0.5 ms>")
    assert issubclass(OverloadedError, RetailInferError)
    assert np.float32(scorer().score(payment()).score) == scorer().score(payment()).score
