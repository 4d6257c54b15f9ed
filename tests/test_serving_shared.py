"""Windows in Redis behind the front doors: the same bits as in memory, one round trip, and no error when Redis is gone."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time

import msgspec
import pytest
import releases
from test_serving_windows import counts, files, payment

import retailinfer as ri
from retailinfer.errors import FeatureRangeError

pytest.importorskip("redis", reason="platform: Redis is an extra")


@pytest.fixture
def shared(redis_server):
    """A scorer over windows in Redis that nobody else has."""
    made = []

    def make(prefix=None, **options):
        windows = ri.Windows.redis(
            redis_server.url, prefix=prefix or f"t{random.getrandbits(60):x}", timeout_ms=2_000, **options
        )
        store = ri.Store(windows=windows)
        made.append(store)
        return releases.scorer_of(files(), store=store), windows

    yield make
    for store in made:
        store.windows.close()


def test_shared_windows_give_what_windows_in_memory_give(shared):
    """Random payments, labels, retries and times through both: equal counts and equal flags, answer by answer."""
    rng = random.Random(5)
    there, _ = shared()
    here = releases.scorer_of(files(), store=ri.Store(windows=ri.Windows.memory()))
    there.score(payment())  # registers
    start = time.time() - 2_400.0  # state whose time is over by the clock may be swept, so events are of now
    for i in range(120):
        card = rng.choice(["c-1", "c-2", None])
        event = payment(
            card=card,
            merchant=rng.choice(["m-1", "m-2"]),
            amount=rng.choice([None, 5.0, 99.99, 250.0]),
            at=start + i * 20 + rng.choice([0, -300, -4_000]),
        )
        options = {"observe": rng.random() < 0.7, "event_id": rng.choice([None, f"e{rng.randrange(20)}"])}
        if rng.random() < 0.1 and card is not None:
            label = {"card": card, "at": start + i * 20}
            there.observe("chargeback", label)
            here.observe("chargeback", label)
        got, want = there.score(event, **options), here.score(event, **options)
        assert (got.score, got.missing) == (want.score, want.missing)


@pytest.mark.parametrize("door", ["score", "json", "ascore", "batch"])
def test_every_door_counts_in_redis(shared, door):
    """Read and added in one step, whichever way the request comes."""
    scorer, windows = shared()

    def call():
        if door == "score":
            return scorer.score(payment(), observe=True)
        if door == "json":
            return msgspec.json.decode(scorer.score_json(msgspec.json.encode(payment()), observe=True))
        if door == "ascore":
            return asyncio.run(scorer.ascore(payment(), observe=True))
        return scorer.score_batch([payment()], observe=True)[0]

    assert [counts(call()) for _ in range(3)] == [(1, 0, 1, 0), (2, 1, 1, 0), (3, 2, 1, 0)]
    before = windows.transport.stats.round_trips
    call()
    assert windows.transport.stats.round_trips == before + 1


def test_two_stores_over_one_redis_are_one(shared):
    """What one process counts the other one reads: here two stores with their own connections, and threads in both."""
    prefix = f"t{random.getrandbits(60):x}"
    scorers = [shared(prefix)[0] for _ in range(2)]
    seen = []

    def work(scorer):
        for _ in range(30):
            seen.append(counts(scorer.score(payment(), observe=True))[0])

    threads = [threading.Thread(target=work, args=(scorers[i % 2],)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(1, 91))


def test_a_bad_event_adds_nothing_there_either(shared):
    """Refused before the round trip."""
    scorer, _ = shared()
    with pytest.raises(FeatureRangeError, match="amount"):
        scorer.score(payment(amount=1e300), observe=True)
    assert counts(scorer.score(payment())) == (1, 0, 1, 0)


def test_redis_that_is_gone_costs_the_values_and_not_the_answer(own_redis):
    """Killed while requests run: windows are unavailable, answers go on, and counts come back with the server."""
    windows = ri.Windows.redis(own_redis.url, timeout_ms=500)
    store = ri.Store(windows=windows)
    scorer = releases.scorer_of(files(), store=store)
    assert counts(scorer.score(payment(), observe=True))[0] == 1
    own_redis.kill()
    for _ in range(20):
        decision = scorer.score(payment(), observe=True, deadline_ms=50)
        assert decision.score == 0.0
        assert len(decision.missing) == 6
    batch = scorer.score_batch([payment()] * 3, observe=True)
    assert [a.score for a in batch] == [0.0] * 3
    scorer.observe("chargeback", {"card": "c-1"})  # lost, and no error
    assert scorer.freshness.fresh == 0
    own_redis.restart()
    for _ in range(400):
        if scorer.score(payment()).missing == ():
            break
        threading.Event().wait(0.01)
    assert scorer.score(payment()).missing == ()
    windows.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: has no fork")
def test_forked_workers_share_counts(shared):
    """Each worker opens a connection of its own; a burst over all of them sees every number once."""
    scorer, _ = shared()
    scorer.score(payment(), observe=True)
    reader, writer = os.pipe()
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                seen = [counts(scorer.score(payment(), observe=True))[0] for _ in range(15)]
                os.write(writer, bytes(seen))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    os.close(writer)
    seen = []
    while data := os.read(reader, 1024):
        seen += data
    os.close(reader)
    assert codes == [0, 0, 0]
    assert sorted(seen) == list(range(2, 47))
    assert counts(scorer.score(payment()))[0] == 47
