"""Scorers over windows in Redis: the answers of windows in memory, history, erasure, and a Redis that goes away meanwhile."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import itertools
import os
import threading
import time

import msgspec
import pyarrow as pa
import pytest
import releases

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.clock import ManualClock

NAMES = itertools.count()
T0 = dt.datetime(2026, 3, 2, 12, 0, tzinfo=dt.UTC)
SECOND_NS = 10**9
DAY_NS = 86_400 * SECOND_NS
AWAY = -1.0  # what windows are worth while Redis is away


def spec_of():
    """Payments are the requests; chargebacks are events of their own."""
    away = {"unknown": 0.0, "null": 0.0, "on_unavailable": AWAY}
    columns = [
        c.window("card", "count", on="payment", over="1h", name="with", **away),
        c.window("card", "sum", on="payment", of="amount", scale=100, over="24h", name="spent", **away),
        c.window(
            "card",
            "max",
            on="payment",
            of="amount",
            scale=100,
            over="1h",
            name="largest",
            current="exclude",
            **away,
        ),
        c.window("merchant", "distinct", on="payment", of="card", over="1h", name="cards", **away),
        c.window("card", "count", on="chargeback", over="30d", name="chargebacks", **away),
        c.window(
            "card", "count", on="payment", where="amount > 100", over="1h", delay="10m", name="large", **away
        ),
    ]
    return ri.FeatureSpec(
        request={"card": str | None, "merchant": str, "amount": float | None, "at": ri.Timestamp | None},
        event_time="at",
        entities={"card": "card", "merchant": "merchant"},
        streams={
            "payment": None,
            "chargeback": ri.Stream({"card": str, "at": ri.Timestamp | None}, event_time="at"),
        },
        columns=columns,
    )


WEIGHTS = (1.0, 0.01, 0.5, 100.0, 1_000.0, 10.0)


@functools.cache
def files() -> dict[str, bytes]:
    """Score = weights of the six windows."""
    return releases.packed("shared-velocity", releases.weighted(*WEIGHTS), spec_of())


def redis_windows(server, clock=None, **options):
    """Windows under a prefix of their own."""
    prefix = f"serving{next(NAMES)}-{os.getpid()}"
    return ri.Windows.redis(server.url, prefix=prefix, clock=clock, **({"timeout_ms": 5_000} | options))


def scorer_over(windows, clock=None):
    """A scorer whose requests have time to wait."""
    return releases.scorer_of(
        files(), store=ri.Store(windows=windows, **({} if clock is None else {"clock": clock}))
    )


def aged(clock):
    """A clock that stands 40 days before T0, so that what is declared now is complete at T0."""
    clock.step_wall_ns(-40 * DAY_NS)
    return clock


def said(answer):
    """An answer without its id, which every answer has of its own."""
    if isinstance(answer, bytes):
        answer = (msgspec.json if answer[:1] == b"{" else msgspec.msgpack).decode(answer)
    return {name: value for name, value in msgspec.to_builtins(answer).items() if name != "id"}


def manual():
    """A clock at T0."""
    return ManualClock(wall_ns=round(T0.timestamp()) * SECOND_NS)


@pytest.fixture
def both(redis_server):
    """The same scorer over Redis and over memory, whose windows are complete, and their clock."""
    clock = aged(manual())
    shared, memory = redis_windows(redis_server, clock), ri.Windows.memory(clock=clock)
    scorers = scorer_over(shared, clock), scorer_over(memory, clock)
    assert shared.transport.ready()
    clock.step_wall_ns(40 * DAY_NS)
    yield (*scorers, clock)
    shared.close()


def payments(n):
    """Payments whose cards, merchants, times and ids meet others."""
    for i in range(n):
        request = {"card": f"c-{i * i % 5}", "merchant": f"m-{i % 3}", "amount": (i * 37 % 23) * 9.99}
        if i % 11 == 3:
            request["card"] = None
        if i % 7 == 2:
            request["at"] = T0 - dt.timedelta(minutes=i % 90)
        yield request, {"event_id": f"p-{i // 2}"} if i % 5 == 0 else {}


def test_every_answer_is_that_of_memory(both):
    """Scores, flags and traces are equal through a history of payments, labels and repeated ids."""
    shared, memory, clock = both
    for i, (request, options) in enumerate(payments(150)):
        clock.advance_ns(41 * SECOND_NS)
        answers = [said(one.score(request, observe=i % 4 > 0, **options)) for one in (shared, memory)]
        assert answers[0] == answers[1]
        if i % 9 == 4:
            for one in (shared, memory):
                one.observe("chargeback", {"card": f"c-{i % 5}"}, event_id=f"b-{i // 2}")


@pytest.mark.parametrize("door", ["json", "msgpack", "ascore", "batch"])
def test_every_door_counts_alike(both, door):
    """Bytes, coroutines and batches read and add in Redis as in memory."""
    shared, memory, _ = both
    requests = [{"card": "c-1", "merchant": "m-1", "amount": 200.0 + i} for i in range(4)]

    def run(scorer):
        if door == "json":
            return [scorer.score_json(msgspec.json.encode(r), observe=True) for r in requests]
        if door == "msgpack":
            return [scorer.score_msgpack(msgspec.msgpack.encode(r), observe=True) for r in requests]
        if door == "ascore":

            async def together():
                return [await scorer.ascore(r, observe=True) for r in requests]

            return asyncio.run(together())
        return scorer.score_batch(requests, observe=True)

    assert [said(answer) for answer in run(shared)] == [said(answer) for answer in run(memory)]


def test_history_is_backfilled_as_in_memory(redis_server):
    """After the same backfill a fresh store over Redis answers as one in memory, and is complete for what came before it."""
    clock = manual()
    shared = redis_windows(redis_server, clock)
    stores = [ri.Store(windows=windows, clock=clock) for windows in (shared, ri.Windows.memory(clock=clock))]
    rows = [
        {
            "card": f"c-{i % 4}",
            "merchant": f"m-{i % 3}",
            "amount": float(i),
            "at": T0 - dt.timedelta(minutes=7 * i + 1),
        }
        for i in range(400)
    ]
    table = pa.Table.from_pylist(rows)
    scorers = [releases.scorer_of(files(), store=store) for store in stores]
    assert shared.transport.ready()
    added = [
        store.backfill(spec_of(), "payment", table, since=T0 - dt.timedelta(days=31)) for store in stores
    ]
    assert added == [400, 400]
    clock.advance_ns(SECOND_NS)
    for i in range(6):
        request = {"card": f"c-{i}", "merchant": "m-1", "amount": 5.0}
        answers = [said(one.score(request, observe=True)) for one in scorers]
        assert answers[0] == answers[1]
        assert list(answers[0]["stale"]) == ["chargebacks"]
    shared.close()


def test_erased_entity_is_gone_for_all(redis_server):
    """What one process erases, no other finds; the others' entities stay."""
    prefix = f"erase{next(NAMES)}-{os.getpid()}"
    stores = [
        ri.Store(windows=ri.Windows.redis(redis_server.url, prefix=prefix, timeout_ms=5_000))
        for _ in range(2)
    ]
    scorers = [releases.scorer_of(files(), store=store) for store in stores]
    request = {"card": "c-1", "merchant": "m-1", "amount": 1.0}
    other = {"card": "c-2", "merchant": "m-2", "amount": 1.0}
    first = [said(scorers[0].score(one)) for one in (request, other)]
    for one in (request, other, request):
        scorers[0].score(one, observe=True)
    assert stores[1].erase("card", "c-1")["windows"] == 1
    assert stores[1].erase("merchant", "m-1")["windows"] == 1
    assert stores[1].erase("card", "c-1")["windows"] == 0
    assert said(scorers[0].score(request)) == said(scorers[1].score(request)) == first[0]
    assert said(scorers[0].score(other)) != first[1]
    for store in stores:
        store.windows.close()


def test_missing_redis_is_the_declared_outcome():
    """Without a server a scorer loads and answers; every window is what its column declares."""
    windows = ri.Windows.redis("redis://127.0.0.1:1", timeout_ms=200)
    scorer = scorer_over(windows)
    answer = scorer.score({"card": "c-1", "merchant": "m-1", "amount": 1.0}, observe=True)
    assert answer.score == pytest.approx(AWAY * sum(WEIGHTS))
    assert set(answer.missing) == {"with", "spent", "largest", "cards", "chargebacks", "large"}


def test_no_error_escapes_while_redis_is_killed_hung_and_spoiled(own_redis):
    """Threads score throughout: each answer is the declared outcome or a count, and counts are back within two seconds."""
    windows = redis_windows(own_redis, timeout_ms=50)
    scorer = scorer_over(windows)
    prefix = windows.transport._prefix
    stop, errors, answers = threading.Event(), [], [0, 0]

    def work(number):
        try:
            for i in itertools.count():
                if stop.is_set():
                    return
                request = {"card": f"c-{i % 5}", "merchant": f"m-{i % 3}", "amount": 1.0}
                answer = scorer.score(request, observe=i % 2 == 0)
                assert answer.score >= AWAY * sum(WEIGHTS) * 1.01
                answers[number] += 1
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    try:
        more(answers)
        own_redis.pause()
        more(answers)
        own_redis.resume()
        own_redis.restart()
        more(answers)
        client = own_redis.client()
        for i in range(5):
            client.pipeline().delete(f"{prefix}:card:c-{i}").hset(f"{prefix}:card:c-{i}", "a", "b").execute()
        client.pipeline().delete(f"{prefix}:windows").lpush(f"{prefix}:windows", "x").execute()
        more(answers)
        own_redis.command("FLUSHALL")
        more(answers)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert errors == []
    start_s = time.monotonic()
    while scorer.score({"card": "c-1", "merchant": "m-1", "amount": 1.0}, observe=True).missing:
        assert time.monotonic() - start_s < 2.0
    windows.close()


def more(answers, n=200):
    """Wait until every thread has given `n` more answers."""
    want = [have + n for have in answers]
    end_s = time.monotonic() + 60
    while any(have < least for have, least in zip(answers, want, strict=True)):
        assert time.monotonic() < end_s, (answers, want)
        threading.Event().wait(0.001)


def test_error_after_the_round_trip_says_that_the_request_was_counted(redis_server):
    """It came back so late that there is no time for the model: who answers instead must not count again."""
    clock = ManualClock(wall_ns=round(T0.timestamp()) * SECOND_NS)
    windows = redis_windows(redis_server, clock)
    scorer = scorer_over(windows)
    engine, transport = scorer._live.engine, windows.transport
    exchange, slow_ns = transport.exchange, 0

    def slowly(*args, **options):
        clock.advance_ns(slow_ns)
        assert scorer.permits.in_flight == 0  # given back meanwhile
        assert scorer.permits.waiting == 1
        return exchange(*args, **options)

    transport.exchange = slowly
    request = {"card": "c-1", "merchant": "m-1", "amount": 1.0}
    for _ in range(100):
        engine.run_clock.note(5_000_000)
    scorer.score(request, observe=True, deadline_ms=100)
    slow_ns = 96_000_000
    for observe in (True, False):
        with pytest.raises(ri.DeadlineExceededError, match="4 ms are left") as late:
            scorer.score(request, observe=observe, deadline_ms=100)
        assert (late.value.counted, late.value.late) == (observe, False)
    slow_ns = 0
    assert scorer.score(request).score % 10 == pytest.approx(3 + 0.01 * 3 + 0.5 * 1)  # two, and this one
    del transport.exchange
    windows.close()
    assert (scorer.permits.in_flight, scorer.permits.waiting) == (0, 0)


def test_request_with_little_time_does_not_wait_for_redis(own_redis):
    """A hung Redis costs no more than what is left of the deadline."""
    windows = redis_windows(own_redis)
    scorer = scorer_over(windows)
    request = {"card": "c-1", "merchant": "m-1", "amount": 1.0}
    scorer.score(request)
    own_redis.pause()
    start_s = time.monotonic()
    try:
        answer = scorer.score(request, deadline_ms=60)
        assert answer.score == pytest.approx(AWAY * sum(WEIGHTS))
    except ri.DeadlineExceededError:
        pass
    assert time.monotonic() - start_s < 1.0
    own_redis.resume()
    windows.close()


def test_inspection_shows_the_way_to_redis(redis_server):
    """A store over Redis tells whether it answers, and what came of the requests."""
    windows = redis_windows(redis_server)
    store = ri.Store(windows=windows)
    scorer = releases.scorer_of(files(), store=store)
    for _ in range(3):
        scorer.score({"card": "c-1", "merchant": "m-1", "amount": 1.0}, observe=True)
    report = store.inspect()
    assert (report.windows_shared, report.redis.requests, report.redis.unavailable) == (True, 3, 0)
    assert any(line.startswith("windows in Redis: open, 3 requests") for line in report.lines())
    assert ri.Store(windows=ri.Windows.memory()).inspect().redis is None
    windows.close()
