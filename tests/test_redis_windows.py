"""Windows in Redis against windows in memory: the same bits for any events, and what happens when Redis is not itself."""

from __future__ import annotations

import hashlib
import itertools
import math
import multiprocessing
import os
import struct
import threading
import time

import hypothesis.strategies as st
import pytest
from hypothesis import given
from processes import run_script
from services import Proxy, RedisCluster, RedisServer

from retailinfer._native.program import Program
from retailinfer._native.windows import WindowGroup, WindowPlan, event_hash
from retailinfer.clock import ManualClock, SystemClock
from retailinfer.errors import ConfigError, FeatureRangeError, Unavailable
from retailinfer.store.redis_link import RedisLink, encode
from retailinfer.store.windows_redis import RedisWindows

NAMES = itertools.count()
PRESENT, NULL, UNKNOWN, STALE, UNAVAILABLE = range(5)
NOW_NS = 1_700_000_000_000_000_000
HOUR_NS = 3_600_000_000_000
CARD, SHOP, AMOUNT, CHANNEL, FIRST_WINDOW = range(5)

# accumulators: name -> kind, pane, panes kept
KEPT = {
    "count": ("count", 60 * 10**9, 14),
    "sum": ("sum", 60 * 10**9, 12),
    "online": ("sum", 300 * 10**9, 7),
    "min": ("min", 60 * 10**9, 6),
    "max": ("max", 60 * 10**9, 6),
    "distinct": ("distinct", 120 * 10**9, 8),
}
ORDER = list(KEPT)
ADDS = {
    "count": ((), -1, 1.0),
    "sum": ((), AMOUNT, 100.0),
    "online": (((CHANNEL, 4, "online"),), AMOUNT, 100.0),
    "min": (((AMOUNT, 2, 1.0),), AMOUNT, 100.0),
    "max": ((), AMOUNT, 100.0),
    "distinct": ((), SHOP, 1.0),
}
# accumulator, what, panes, delay in ns, include, lag, scale
READS = [
    ("count", "count", 10, 0, True, 0, 1.0),
    ("count", "count", 5, 2 * 60 * 10**9, False, 0, 1.0),
    ("sum", "sum", 10, 0, True, 0, 100.0),
    ("sum", "mean", 6, 0, False, 0, 100.0),
    ("online", "sum", 5, 0, True, 0, 100.0),
    ("online", "count", 4, 0, False, 0, 1.0),
    ("min", "min", 4, 0, True, 0, 100.0),
    ("max", "max", 4, 0, False, 0, 100.0),
    ("distinct", "distinct", 6, 0, True, 0, 1.0),
]


def program():
    """Slots of a payment, then one float for each window."""
    kinds = [("card", 4), ("shop", 1), ("amount", 0), ("channel", 4)]
    kinds += [(f"w{i}", 0) for i in range(len(READS))]
    return Program(
        slots=[{"name": name, "wire": name, "kind": kind, "optional": True} for name, kind in kinds],
        n_request=4,
        event_slot=-1,
        columns=[],
        vocabularies=[],
        tensors=[],
        zone_at_s=(),
        zone_offset_s=(),
    )


PROGRAM = program()


def digest(name, extra=""):
    """Digest of an accumulator."""
    return hashlib.sha256(f"{name}{extra}".encode()).digest()


def plan_for(group, *, stream="payment", more=0, key=(CARD,), reads=None):
    """Registers everything with a group; a plan that adds to and reads all of it."""
    numbers = {
        name: group.register(digest(name), kind, pane_ns, keep + more)
        for name, (kind, pane_ns, keep) in KEPT.items()
    }
    return WindowPlan(
        group,
        PROGRAM,
        stream=stream,
        keys=key,
        adds=tuple((numbers[name], *ADDS[name]) for name in ORDER),
        reads=tuple(
            (FIRST_WINDOW + i, numbers[name], what, n, delay, include, lag, scale)
            for i, (name, what, n, delay, include, lag, scale) in enumerate(READS if reads is None else reads)
        ),
    )


class Shared:
    """One entity's windows over a Redis: what the engine does, by hand."""

    def __init__(self, url, *, prefix=None, clock=None, timeout_ms=5_000.0, name="card", **options):
        self.clock = clock or SystemClock()
        self.windows = RedisWindows(
            url, prefix=prefix or f"test{next(NAMES)}-{os.getpid()}", timeout_ms=timeout_ms, clock=self.clock
        )
        self.group = WindowGroup(name, "str", clock=self.clock, shared=True)
        self.plan = plan_for(self.group, **options)
        self.windows.declare(self.group)

    def run(self, values, at_ns, *, now_ns=0, hashed=0, add=True):
        """Values and states of one event."""
        call = self.plan.remote(values, at_ns, now_ns=now_ns, event_hash=hashed, add=add)
        if call is None:
            return self.plan.remote_result(values, at_ns, None, now_ns=now_ns, event_hash=hashed, add=add)
        got = self.windows.exchange([call], add=add)
        value = False if got is None else got[0]
        try:
            return self.plan.remote_result(values, at_ns, value, now_ns=now_ns, event_hash=hashed, add=add)
        except ValueError:
            self.windows.malformed()
            return self.plan.remote_result(values, at_ns, False, now_ns=now_ns, event_hash=hashed, add=add)

    def pay(self, card="c", *, amount=1.0, shop=1, at_ns=None, add=True):
        """One payment now."""
        now_ns = self.clock.wall_ns()
        values = {CARD: card, SHOP: shop, AMOUNT: amount, CHANNEL: "online"}
        return self.run(values, at_ns or now_ns, now_ns=now_ns, add=add)


def bits(results):
    """Results in a form whose equality is equality of bits."""
    return [(struct.pack("<d", value), state) for value, state in results]


def outcome(act, *values, **options):
    """The bits that a call gives, or the text of the error that it raises."""
    try:
        return bits(act(*values, **options))
    except FeatureRangeError as exc:
        return str(exc)


@st.composite
def payments(draw):
    """A payment whose card, time, id and shop meet others often."""
    return {
        "values": {
            CARD: draw(st.sampled_from(["a", "a", "b", "", "é" * 20, None])),
            SHOP: draw(st.one_of(st.integers(0, 4), st.sampled_from([2**63 - 1, -(2**63)]), st.none())),
            AMOUNT: draw(
                st.one_of(
                    st.integers(-500, 500).map(lambda v: v / 100),
                    st.sampled_from([2**53 / 100, -(2**53) / 100, 90_000_000_000_000.0, 0.005, -0.0, None]),
                )
            ),
            CHANNEL: draw(st.sampled_from(["online", "shop", None])),
        },
        "ago_s": draw(st.integers(-400, 1_200)),
        "step_s": draw(st.integers(0, 90)),
        "id": draw(st.one_of(st.none(), st.integers(0, 12))),
        "add": draw(st.integers(0, 5)) > 0,
    }


@pytest.fixture(scope="module")
def link(redis_server):
    """A link to the session's server, for looking at values."""
    with_redis = RedisLink(redis_server.url)
    yield with_redis
    with_redis.close()


def command(link, *words):
    """One command and its reply."""
    return link.request([(words[1] if len(words) > 1 else None, encode(*words))], timeout_s=10)[0]


@given(events=st.lists(payments(), min_size=1, max_size=40))
def test_redis_gives_the_bits_of_memory(redis_server, events):
    """Late, early, repeated, unknown, huge: whatever comes, every window has memory's bits and states, errors its text."""
    clock = ManualClock(wall_ns=NOW_NS)
    memory = WindowGroup("card", "str", clock=clock)
    plan = plan_for(memory)
    shared = Shared(redis_server.url, clock=clock)
    assert shared.windows.ready()  # windows count from now on
    for event in events:
        clock.advance_ns(event["step_s"] * 10**9)
        now_ns = clock.wall_ns()
        at_ns = now_ns - event["ago_s"] * 10**9
        hashed = 0 if event["id"] is None else event_hash(event["id"])
        options = {"now_ns": now_ns, "add": event["add"]}
        want = outcome(plan.run, event["values"], at_ns, event_hash=hashed, **options)
        assert outcome(shared.run, event["values"], at_ns, hashed=hashed, **options) == want
    counts, found = memory.info(), shared.group.info()
    for name in ("events", "late", "duplicates", "ahead"):
        assert (name, found[name]) == (name, counts[name])
    shared.windows.close()


def test_one_request_is_one_round_trip(redis_server, link):
    """Once the registry is read and the script known, a request that reads and adds sends one command and reads one reply."""
    shared = Shared(redis_server.url)
    shared.pay()
    before, sent = shared.windows.stats.round_trips, commands_sent(link)
    for _ in range(20):
        shared.pay()
    assert shared.windows.stats.round_trips == before + 20
    after = commands_sent(link)
    assert after["evalsha"] - sent["evalsha"] == 20
    assert after["eval"] == sent["eval"]
    for _ in range(20):
        shared.pay(add=False)
    assert shared.windows.stats.round_trips == before + 40
    assert shared.windows.stats.connections == 1
    shared.windows.close()


def commands_sent(link):
    """How often the server ran which command."""
    lines = command(link, b"INFO", b"commandstats").decode().splitlines()
    counts = {
        line[8:].split(":")[0]: int(line.split("calls=")[1].split(",")[0])
        for line in lines
        if "calls=" in line
    }
    return {name: counts.get(name, 0) for name in ("eval", "evalsha")}


def test_unknown_script_is_sent_again_in_full(own_redis):
    """After SCRIPT FLUSH and after a restart nothing fails for want of the script, and counts go on."""
    shared = Shared(own_redis.url)
    shared.pay()
    own_redis.command("SCRIPT", "FLUSH")
    (count, _), *_ = shared.pay()
    assert count == 2.0
    assert shared.windows.stats.unavailable == 0
    shared.windows.close()


def test_emptied_redis_gives_stale_windows_and_no_zeros(own_redis):
    """What was forgotten is not zero: after FLUSHALL a window is stale until time has refilled it."""
    clock = ManualClock(wall_ns=NOW_NS)
    shared = Shared(own_redis.url, clock=clock)
    shared.pay()
    clock.advance_ns(HOUR_NS)
    assert {state for _, state in shared.pay()} == {PRESENT, NULL}
    own_redis.command("FLUSHALL")
    assert shared.pay()[0] == (1.0, STALE)
    assert shared.pay(add=False)[0] == (2.0, STALE)
    clock.advance_ns(HOUR_NS)
    assert shared.pay()[0] == (1.0, PRESENT)
    shared.windows.close()


def test_process_that_comes_later_knows_since_when_windows_count(redis_server):
    """Another process, or another release with the same windows, finds them complete since they were first declared."""
    clock = ManualClock(wall_ns=NOW_NS)
    first = Shared(redis_server.url, prefix=(prefix := f"later{next(NAMES)}-{os.getpid()}"), clock=clock)
    assert first.pay()[0][1] == STALE
    clock.advance_ns(HOUR_NS)
    second = Shared(redis_server.url, prefix=prefix, clock=clock)
    assert second.pay()[0] == (1.0, PRESENT)
    assert {second.group.since(digest(name)) for name in KEPT} == {NOW_NS}
    for one in (first, second):
        one.windows.close()


def test_longer_window_of_a_new_release_is_stale_and_the_old_one_is_not(redis_server, link):
    """A release that needs more panes makes all keep them from then on; what needs fewer stays complete."""
    clock = ManualClock(wall_ns=NOW_NS)
    prefix = f"longer{next(NAMES)}-{os.getpid()}"
    old = Shared(redis_server.url, prefix=prefix, clock=clock)
    old.pay()
    clock.advance_ns(HOUR_NS)
    longer = ("count", "count", 20, 0, True, 0, 1.0)
    new = Shared(redis_server.url, prefix=prefix, clock=clock, more=12, reads=[READS[0], longer])
    assert [state for _, state in new.pay()] == [PRESENT, STALE]
    # The old release prunes no more what the new one needs, from its next request on.
    for _ in range(26):
        clock.advance_ns(60 * 10**9)
        old.pay()
    assert old.group.accumulators[0]["keep_panes"] == KEPT["count"][2] + 12
    assert new.pay(add=False)[1] == (21.0, PRESENT)  # 20 minutes of one payment each, and this one
    for one in (old, new):
        one.windows.close()


def test_backfilled_moment_holds_for_all(redis_server):
    """What one process filled from history is complete for the others at their next request."""
    clock = ManualClock(wall_ns=NOW_NS)
    prefix = f"filled{next(NAMES)}-{os.getpid()}"
    one, other = (Shared(redis_server.url, prefix=prefix, clock=clock) for _ in range(2))
    assert other.pay("x", add=False)[0][1] == STALE
    values = {CARD: "x", SHOP: 1, AMOUNT: 2.5, CHANNEL: "online"}
    history = [[one.plan.remote(values, NOW_NS - i * 60 * 10**9)] for i in range(300)]
    assert one.windows.fill(history) == 300
    for name in KEPT:
        one.windows.set_since("card", digest(name), NOW_NS - HOUR_NS)
    assert other.pay("x", add=False)[0] == (11.0, PRESENT)
    for two in (one, other):
        two.windows.close()


def test_entities_expire_when_no_window_needs_them(redis_server, link):
    """Every value has a time to live: the longest window's reach and a day."""
    shared = Shared(redis_server.url, prefix=(prefix := f"ttl{next(NAMES)}-{os.getpid()}"))
    shared.pay("c")
    ttl = command(link, b"TTL", f"{prefix}:card:c".encode())
    reach = max(pane_ns // 10**9 * keep for _, pane_ns, keep in KEPT.values())
    assert reach + 86_390 <= ttl <= reach + 86_400
    shared.windows.close()


def test_value_stays_small_however_long_it_is_used(redis_server, link):
    """Panes behind the oldest window go when a newer one comes."""
    clock = ManualClock(wall_ns=NOW_NS)
    shared = Shared(redis_server.url, prefix=(prefix := f"small{next(NAMES)}-{os.getpid()}"), clock=clock)
    for _ in range(300):
        clock.advance_ns(61 * 10**9)
        shared.pay()
    most = 12 + 20 * len(KEPT) + sum(16 * keep for _, _, keep in KEPT.values())
    assert command(link, b"STRLEN", f"{prefix}:card:c".encode()) <= most
    shared.windows.close()


def test_events_of_a_wrong_clock_do_not_make_later_ones_late(redis_server):
    """After a clock a year ahead was mended, what it wrote is dropped, and the entity is known from then on only."""
    clock = ManualClock(wall_ns=NOW_NS)
    shared = Shared(redis_server.url, clock=clock)
    shared.pay()
    clock.step_wall_ns(365 * 24 * HOUR_NS)
    shared.pay()
    clock.step_wall_ns(-364 * 24 * HOUR_NS)
    assert shared.pay()[0] == (1.0, STALE)
    assert shared.pay()[0] == (2.0, STALE)
    clock.advance_ns(HOUR_NS)
    shared.pay()
    assert shared.pay()[0] == (2.0, PRESENT)
    shared.windows.close()


def test_erased_entity_is_as_if_never_seen(redis_server):
    """Erasing tells whether there was anything, and leaves no count."""
    shared = Shared(redis_server.url)
    shared.pay("gone")
    assert shared.windows.erase("card", b"gone") is True
    assert shared.windows.erase("card", b"gone") is False
    assert shared.pay("gone", add=False)[0][0] == 1.0
    shared.windows.close()


# --- many processes -------------------------------------------------------------------------------------------------------


def _burst(url, prefix, n, ready, go, results):
    shared = Shared(url, prefix=prefix, timeout_ms=20_000.0)
    shared.windows.ready()
    at_ns = NOW_NS
    ready.release()
    go.wait()
    seen = []
    for _ in range(n):
        values = {CARD: "stolen", SHOP: 1, AMOUNT: 1.0, CHANNEL: "online"}
        seen.append(shared.run(values, at_ns, add=True)[0][0])
    results.put(seen)
    shared.windows.close()


def test_no_attempt_of_a_burst_reads_an_old_count(own_redis):
    """8 processes that score one card at once see every count exactly once: 1, 2, 3, ... with themselves included."""
    spawn = multiprocessing.get_context("fork")
    ready, go, results = spawn.Semaphore(0), spawn.Event(), spawn.Queue()
    workers = [
        spawn.Process(target=_burst, args=(own_redis.url, "burst", 150, ready, go, results)) for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        assert ready.acquire(timeout=60)
    go.set()
    seen = sorted(count for _ in workers for count in results.get(timeout=60))
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert seen == [float(i) for i in range(1, 8 * 150 + 1)]


def test_forked_child_shares_no_connection(redis_server):
    """Parent and child go on at once, each over connections of its own, and no answer reaches the wrong one."""
    shared = Shared(redis_server.url)
    for _ in range(3):
        shared.pay("mine")
    child = os.fork()
    if child == 0:
        try:
            good = all(
                shared.pay("child")[0][0] == float(i) and shared.pay("child", add=False)[0][0] == i + 1.0
                for i in range(1, 200)
            )
            os._exit(0 if good and shared.windows.stats.connections > 1 else 1)
        finally:
            os._exit(2)
    for i in range(4, 200):
        assert shared.pay("mine")[0][0] == float(i)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert shared.windows.stats.connections == 1
    shared.windows.close()


def test_threads_share_one_transport(redis_server):
    """Threads that add at once lose nothing and see every count once."""
    shared = Shared(redis_server.url)
    plans = [plan_for(shared.group) for _ in range(6)]
    seen, lock = [], threading.Lock()

    def work(plan):
        values = {CARD: "t", SHOP: 1, AMOUNT: 1.0, CHANNEL: "shop"}
        for _ in range(50):
            [value] = shared.windows.exchange([plan.remote(values, NOW_NS)], add=True)
            with lock:
                seen.append(plan.remote_result(values, NOW_NS, value)[0][0])

    threads = [threading.Thread(target=work, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [float(i) for i in range(1, 301)]
    shared.windows.close()


# --- a Redis that is not itself -------------------------------------------------------------------------------------------


def states(results):
    """States of the windows."""
    return {state for _, state in results}


def recovers(shared, *, within_s=2.0):
    """Pay until windows are back, at most so long; the seconds that it took."""
    start_s = time.monotonic()
    while states(shared.pay()) == {UNAVAILABLE}:
        assert time.monotonic() - start_s < within_s, shared.windows.stats
    return time.monotonic() - start_s


def test_redis_that_was_never_there_costs_nothing_but_the_windows():
    """Nothing is opened when windows are made; without a server every window is unavailable, and soon at once."""
    shared = Shared("redis://127.0.0.1:1", timeout_ms=200.0)
    for _ in range(50):
        assert states(shared.pay()) == {UNAVAILABLE}
    assert shared.windows.stats.held_back >= 40
    assert not shared.windows.stats.healthy
    assert not shared.windows.ready()
    with pytest.raises(Unavailable):
        shared.windows.require()
    with pytest.raises(Unavailable):
        shared.windows.erase("card", b"c")
    with pytest.raises(Unavailable):
        shared.windows.fill([[shared.plan.remote({CARD: "c"}, NOW_NS)]])
    with pytest.raises(Unavailable):
        shared.windows.set_since("card", digest("count"), NOW_NS)


def test_killed_redis_is_unavailable_and_back_within_two_seconds(own_redis):
    """While it is gone requests go on without windows; after the restart, which lost all, they are stale."""
    shared = Shared(own_redis.url, timeout_ms=200.0)
    shared.pay()
    own_redis.kill()
    for _ in range(200):
        assert states(shared.pay()) == {UNAVAILABLE}
    own_redis.start()
    recovers(shared)
    assert shared.pay()[0][1] == STALE
    shared.windows.close()


def test_restart_between_two_requests_is_noticed(tmp_path):
    """A connection that the server closed is not used: the next request finds the restarted server and its data."""
    with RedisServer(tmp_path, save=True) as server:
        shared = Shared(server.url)
        for _ in range(3):
            shared.pay()
        server.restart()
        assert shared.pay()[0][0] == 4.0
        assert shared.windows.stats.unavailable == 0
        shared.windows.close()


def test_hung_redis_costs_its_timeout_and_then_nothing(own_redis):
    """A Redis that accepts and does not answer costs three timeouts; then one probe a second; then it is back."""
    shared = Shared(own_redis.url, timeout_ms=30.0)
    shared.pay()
    own_redis.pause()
    start_s = time.monotonic()
    for _ in range(2_000):
        assert states(shared.pay()) == {UNAVAILABLE}
    assert time.monotonic() - start_s < 2.0
    assert shared.windows.stats.held_back > 1_500
    own_redis.resume()
    assert recovers(shared) < 2.0
    assert any(shared.pay()[0][0] >= 2.0 for _ in range(20))  # on a busy machine 30 ms are over now and then
    shared.windows.close()


def test_a_request_without_time_blames_nobody(own_redis):
    """No time left is no failure of Redis: others are served."""
    shared = Shared(own_redis.url)
    shared.pay()
    call = shared.plan.remote({CARD: "c"}, NOW_NS)
    for _ in range(20):
        assert shared.windows.exchange([call], add=True, timeout_s=0.0) is None
    assert shared.windows.stats.healthy
    assert states(shared.pay()) != {UNAVAILABLE}
    shared.windows.close()


def test_foreign_types_and_truncated_values_spoil_their_entity_only(own_redis):
    """Whatever stands under a key: its entity is unavailable, counted and left alone; erasing mends it."""
    shared = Shared(own_redis.url, prefix="f")
    client = own_redis.client()
    for card in ("list", "hash", "set", "stream", "number", "empty", "short", "long", "good"):
        shared.pay(card)
    whole = client.get("f:card:good")
    for card, spoil in {
        "list": lambda key: client.lpush(key, "x"),
        "hash": lambda key: client.hset(key, "a", "b"),
        "set": lambda key: client.sadd(key, "x"),
        "stream": lambda key: client.xadd(key, {"a": "b"}),
        "number": client.incr,
        "empty": lambda key: client.set(key, ""),
        "short": lambda key: client.set(key, whole[:-1]),
        "long": lambda key: client.setrange(key, 70_000_000, "x"),
    }.items():
        client.delete(f"f:card:{card}")
        spoil(f"f:card:{card}")
        before = client.dump(f"f:card:{card}")
        assert states(shared.pay(card)) == {UNAVAILABLE}
        assert states(shared.pay(card, add=False)) == {UNAVAILABLE}
        assert client.dump(f"f:card:{card}") == before
        assert states(shared.pay("good")) != {UNAVAILABLE}
        assert shared.windows.erase("card", card.encode())
        assert shared.pay(card)[0][0] == 1.0
    assert shared.windows.stats.foreign == 2 * 8
    assert shared.windows.stats.healthy
    shared.windows.close()


@given(data=st.data())
def test_no_bytes_in_redis_make_a_request_fail(redis_server, link, data):
    """Truncated, altered or random values are unavailable or read as something; nothing is raised but a sum's overflow."""
    shared = Shared(redis_server.url, prefix=(prefix := f"any{next(NAMES)}-{os.getpid()}"))
    for shop in range(5):
        shared.pay("c", shop=shop)
    key = f"{prefix}:card:c".encode()
    whole = command(link, b"GET", key)
    at = data.draw(st.integers(0, len(whole) - 1))
    spoiled = data.draw(
        st.one_of(
            st.just(whole[:at]),
            st.binary(max_size=100),
            st.integers(1, 255).map(lambda flip: whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]),
            st.integers(0, 2**32 - 1).map(lambda v: whole[:at] + struct.pack("<I", v) + whole[at + 4 :]),
        )
    )
    command(link, b"SET", key, spoiled)
    for _ in range(2):
        results = outcome(shared.pay, "c")
        assert isinstance(results, str) or len(results) == len(READS)
    shared.windows.close()


def test_foreign_registry_is_unavailable_until_it_is_gone(own_redis):
    """A registry of another type costs the windows, raises nothing, and is left alone."""
    own_redis.client().set("r:windows", "x")
    shared = Shared(own_redis.url, prefix="r")
    for _ in range(5):
        assert states(shared.pay()) == {UNAVAILABLE}
    own_redis.client().delete("r:windows")
    assert recovers(shared) < 2.0
    shared.windows.close()


def test_mangled_answers_never_reach_a_request(own_redis):
    """Cut, mangled and foreign answers: unavailable, and nothing of one answer is taken for the next."""
    with Proxy(own_redis.port) as proxy:
        shared = Shared(f"redis://127.0.0.1:{proxy.port}", timeout_ms=300.0)
        shared.pay()
        cards = itertools.count()
        for mangle in (
            lambda data: None,
            lambda data: data[: len(data) // 2] if len(data) > 1 else None,
            lambda data: b"HTTP/1.1 400 Bad Request\r\n\r\n",
            lambda data: b"*1000000000\r\n" + data,
            lambda data: b"$99999999999\r\n" + data,
            lambda data: b"$-7\r\n",
            lambda data: b"*" * 10_000,
            lambda data: b"*1\r\n" * 2_000,
            lambda data: b":12x\r\n",
            lambda data: b"+OK\r\n" + data,
            lambda data: b"-LOADING Redis is loading the dataset in memory\r\n",
            lambda data: b"-ERR Error running script: user_script:1: -READONLY You can't write\r\n",
            lambda data: b"*0\r\n",
            lambda data: b"",
        ):
            recovers(shared)
            proxy.mangle = mangle
            assert states(shared.pay("bad")) == {UNAVAILABLE}
            proxy.mangle = None
            recovers(shared)
            assert shared.pay(f"fresh{next(cards)}")[0][0] == 1.0
        shared.windows.close()


def test_all_of_it_while_requests_run(own_redis):
    """Killed, hung, emptied and filled with foreign types under load: no exception in any thread, and windows come back."""
    shared = Shared(own_redis.url, prefix="all", timeout_ms=50.0)
    plans = [plan_for(shared.group) for _ in range(3)]
    stop, errors, answers = threading.Event(), [], [0] * len(plans)

    def work(number):
        plan = plans[number]
        try:
            for i in itertools.count():
                if stop.is_set():
                    return
                values = {CARD: f"c{i % 7}", SHOP: i % 9, AMOUNT: 1.0, CHANNEL: "online"}
                now_ns = shared.clock.wall_ns()
                call = plan.remote(values, now_ns, now_ns=now_ns, add=i % 3 > 0)
                got = shared.windows.exchange([call], add=i % 3 > 0)
                value = False if got is None else got[0]
                try:
                    plan.remote_result(values, now_ns, value, now_ns=now_ns, add=i % 3 > 0)
                except ValueError:
                    shared.windows.malformed()
                answers[number] += 1
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(plans))]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            progress(answers, 300)
            own_redis.pause()
            progress(answers, 300)
            own_redis.resume()
            own_redis.restart()
            progress(answers, 300)
            client = own_redis.client()
            for i in range(7):
                client.pipeline().delete(f"all:card:c{i}").lpush(f"all:card:c{i}", "x").execute()
            progress(answers, 300)
            own_redis.command("SCRIPT", "FLUSH")
            own_redis.command("FLUSHALL")
            progress(answers, 300)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert errors == []
    assert recovers(shared) < 2.0
    shared.windows.close()


def progress(answers, n):
    """Wait until every thread has given `n` more answers."""
    want = [count + n for count in answers]
    end_s = time.monotonic() + 60
    while any(have < least for have, least in zip(answers, want, strict=True)):
        assert time.monotonic() < end_s, (answers, want)
        threading.Event().wait(0.001)


# --- clusters, settings ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three masters."""
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


@pytest.mark.requires("redis")
@pytest.mark.parametrize("prefix", ["plain", "tag:{all}"])
def test_cluster_counts_like_one_server(cluster, prefix):
    """Entities on other nodes, or all on one by a hash tag: one flight, every count once, bits of memory."""
    clock = ManualClock(wall_ns=NOW_NS)
    shared = Shared(cluster.url, prefix=prefix, clock=clock)
    memory = plan_for(WindowGroup("card", "str", clock=clock))
    flights = None
    for i in range(60):
        clock.advance_ns(7 * 10**9)
        now_ns = clock.wall_ns()
        cards = [f"c{(i + k) % 11}" for k in range(3)]
        values = [{CARD: card, SHOP: i % 4, AMOUNT: i / 4, CHANNEL: "online"} for card in cards]
        calls = [shared.plan.remote(one, now_ns, now_ns=now_ns, add=i % 5 > 0) for one in values]
        got = shared.windows.exchange(calls, add=i % 5 > 0)
        for one, value in zip(values, got, strict=True):
            want = memory.run(one, now_ns, now_ns=now_ns, add=i % 5 > 0)
            found = shared.plan.remote_result(one, now_ns, value, now_ns=now_ns, add=i % 5 > 0)
            assert bits(found) == bits(want)
        if i == 9:
            flights = shared.windows.stats.round_trips
    assert shared.windows.stats.round_trips == flights + 50
    shared.windows.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "http://localhost"},
        {"url": "redis://h:0"},
        {"url": "redis://a,b"},
        {"url": "redis://h/x"},
        {"url": "redis://h?pool=3"},
        {"url": "redis+cluster://h/3"},
        {"url": "redis+sentinel://h"},
        {"url": "unix://"},
        {"url": 7},
        {"prefix": "a b"},
        {"prefix": "{a}{b}"},
        {"prefix": 7},
        {"timeout_ms": 0},
        {"timeout_ms": math.nan},
        {"timeout_ms": True},
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(settings):
    """A wrong URL, prefix or timeout is a ConfigError at once, without a connection."""
    with pytest.raises(ConfigError):
        RedisWindows(**{"url": "redis://localhost", **settings})


def test_password_is_in_no_message():
    """Neither an error nor a repr shows what stands before the @."""
    with pytest.raises(ConfigError) as caught:
        RedisWindows("redis://me:hunter2@host:99999/0")
    assert "hunter2" not in str(caught.value)
    windows = RedisWindows("redis://me:hunter2@127.0.0.1:1/0", timeout_ms=50)
    assert not windows.ready()
    assert "hunter2" not in repr(windows) + repr(windows.stats) + str(windows._link._settings)


@pytest.mark.requires("gevent")
def test_greenlets_wait_for_each_other_and_may_be_killed(redis_server):
    """Under gevent one thread has many requests under way; a greenlet that is killed meanwhile spoils nobody's answer."""
    script = f"""
    from gevent import monkey
    monkey.patch_all()
    import gevent, random
    import test_redis_windows as t

    shared = t.Shared({redis_server.url!r}, prefix="greenlets")
    shared.windows.ready()
    plans = [t.plan_for(shared.group) for _ in range(20)]
    values = {{t.CARD: "g", t.SHOP: 1, t.AMOUNT: 1.0, t.CHANNEL: "online"}}
    seen, chance = [], random.Random(5)

    def work(plan):
        for _ in range(30):
            [value] = shared.windows.exchange([plan.remote(values, t.NOW_NS)], add=True)
            seen.append(plan.remote_result(values, t.NOW_NS, value)[0][0])

    workers = [gevent.spawn(work, plan) for plan in plans]
    victims = workers[::4]
    while any(not victim.dead for victim in victims):
        gevent.sleep(0)
        chance.choice(victims).kill(block=False)
    gevent.joinall(workers, timeout=60)
    assert len(seen) == len(set(seen)) >= 15 * 30, (len(seen), len(set(seen)))
    assert shared.windows.stats.healthy and shared.windows.stats.connections > 2
    shared.windows.close()
    print("good")
    """
    assert run_script(script) == "good"
