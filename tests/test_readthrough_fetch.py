"""ReadThrough: one fetch per key, batches, deadlines, late and superseded answers, failures; calls are held, not timed."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from rows_for_tests import WAIT_S, Counting, Held, Says, Table

from retailinfer.clock import ManualClock
from retailinfer.errors import ConfigError
from retailinfer.store.backoff import Backoff
from retailinfer.store.readthrough import ReadThrough

MS = 1_000_000
_held: list[Held] = []


@pytest.fixture(autouse=True)
def _nothing_is_left_waiting() -> Iterator[None]:
    yield
    while _held:
        _held.pop().let_go()


def held() -> Held:
    """A source whose calls end with the test at the latest."""
    source = Held()
    _held.append(source)
    return source


def bound(source: Any, **settings: Any) -> tuple[Table, ReadThrough]:
    """A table that reads through to this source."""
    table = Table()
    table.through = ReadThrough(source, table, columns=table.columns, **settings)
    return table, table.through


def start(function: Any, *args: Any) -> threading.Thread:
    """A thread that runs."""
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


def join(*threads: threading.Thread) -> None:
    """Wait for threads that must end."""
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()


def until(condition: Any) -> None:
    """Until another thread has come as far as that; yields the processor meanwhile."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        os.sched_yield()


def test_missing_rows_are_fetched_into_the_table():
    """Rows go into the table as old as the question was, unknown keys are remembered and returned."""
    clock = ManualClock(wall_ns=1_700_000_000 * 10**9)
    source = Counting({"a": {"x": 1.5, "other": object()}, "b": {"x": None}, "never asked": {"x": 9}})
    table, through = bound(source, clock=clock)
    assert through.fetch(["a", "b", "nobody", "a"], WAIT_S) == {"nobody"}
    assert table.rows == {"a": {"x": 1.5}, "b": {"x": None}}
    assert table.times == {"a": 1_700_000_000.0, "b": 1_700_000_000.0}
    assert table.unknown == {"nobody"}
    assert source.calls == [["a", "b", "nobody"]]
    assert through.fetch(["a", "nobody"], WAIT_S) == set()  # known meanwhile
    stats = through.stats()
    assert (stats.calls, stats.rows, stats.unknown, stats.in_flight, stats.pending) == (1, 2, 1, 0, 0)


def test_rows_that_say_their_time_are_not_given_another():
    """With `updated_at` the row's own time stands, and must be there; null is the time of the question."""
    rows = {"a": {"x": 1, "at": 5.0}, "b": {"x": 2}, "c": {"x": 3, "at": None}}
    table, through = bound(Says(lambda keys: rows), updated_at="at", clock=ManualClock(wall_ns=7 * 10**9))
    through.fetch(["a", "b", "c"], WAIT_S)
    assert table.rows == {"a": {"x": 1, "at": 5.0}, "c": {"x": 3, "at": None}}
    assert table.times == {"a": None, "c": 7.0}
    assert through.stats().last_error == "row without column `at`"


@pytest.mark.parametrize("waits", [True, False], ids=["on threads", "inline"])
def test_stampede_of_32_threads_is_one_fetch_per_key(waits: bool):
    """With nothing in the table, 32 threads that want overlapping sets of 400 keys make one fetch of each."""
    source = Counting()
    source.waits = waits
    table, through = bound(source, max_batch=50)
    barrier = threading.Barrier(32)
    wrong = []

    def run(seed: int) -> None:
        chance = random.Random(seed)
        barrier.wait()
        for _ in range(20):
            keys = chance.sample(range(400), 30)
            through.fetch(keys, WAIT_S)
            wrong.extend(key for key in keys if key not in table.rows)

    join(*[start(run, seed) for seed in range(32)])
    assert wrong == []
    asked = Counter(key for call in source.calls for key in call)
    assert set(asked.values()) == {1}
    assert max(map(len, source.calls)) <= 50


def test_all_who_wait_for_a_key_share_one_answer():
    """While a fetch is under way, 31 more requests for its keys ask for nothing."""
    source = held()
    table, through = bound(source)
    first = start(through.fetch, ["a", "b"], WAIT_S)
    source.wait()
    got: list[set[Any]] = []
    others = [start(lambda: got.append(through.fetch(["b", "a"], WAIT_S))) for _ in range(31)]
    source.calls[0].returns({"a": {"x": 1}, "b": None})
    join(first, *others)
    assert len(source.calls) == 1
    assert table.rows == {"a": {"x": 1}}
    assert all(unknown <= {"b"} for unknown in got)


def test_what_is_asked_for_while_all_threads_are_busy_goes_out_together():
    """Twenty requests that wait for a thread become one call."""
    source = held()
    _, through = bound(source, threads=2)
    busy = []
    for i in range(2):
        busy.append(start(through.fetch, [f"busy{i}"], WAIT_S))
        source.wait()
    waiting = [start(through.fetch, [i, i + 100], WAIT_S) for i in range(20)]
    until(lambda: through.stats().pending == 40)
    source.calls[0].go.set()
    source.wait()
    assert sorted(source.calls[2].keys) == [*range(20), *range(100, 120)]
    source.let_go()
    join(*busy, *waiting)
    assert through.stats().calls == 3


def test_large_requests_are_split():
    """More keys than one call takes become several calls, at once."""
    source = held()
    table, through = bound(source, max_batch=100)
    request = start(through.fetch, list(range(250)), WAIT_S)
    source.wait(3)
    assert sorted(len(call.keys) for call in source.calls) == [50, 100, 100]
    source.let_go()
    join(request)
    assert len(table.rows) == 250


def test_requests_go_before_refreshes_and_take_them_over():
    """What a request wants is fetched first, also if it was only a refresh until then; a thread stays free of refreshes."""
    source = held()
    _, through = bound(source, threads=2, max_batch=3)
    through.refresh("r0")
    source.wait()
    through.refresh_many([f"r{i}" for i in range(1, 7)])
    through.refresh("r4")
    assert through.stats().pending == 6  # nothing is asked twice, and the second thread takes no refresh
    request = start(through.fetch, ["r5"], WAIT_S)
    source.wait()
    assert "r5" in source.calls[1].keys
    assert "r1" not in source.calls[1].keys
    source.let_go()
    join(request)


def test_deadline_is_kept_whatever_the_source_does():
    """A source that never answers costs a request its wait and no more: 20 ms measured, then hardly anything."""
    source = held()
    _, through = bound(source, timeout_s=0.02)
    durations = []
    for i in range(40):
        began = time.perf_counter()
        through.fetch([i], 0.02)
        durations.append(time.perf_counter() - began)
    assert max(durations) < 0.25  # a busy machine; the median says what the wait really is
    assert sorted(durations)[20] < 0.03
    stats = through.stats()
    assert stats.threads <= 8
    assert stats.gave_up <= 40
    assert stats.pending + stats.in_flight <= 40


def test_zero_and_strange_waits_do_not_wait():
    """0, negative, NaN: the fetch is begun for those who come later; infinity waits for the answer."""
    source = held()
    table, through = bound(source, threads=1)
    began = time.perf_counter()
    for i, wait in enumerate((0.0, -1.0, float("nan"), -float("inf"))):
        assert through.fetch([i], wait) == set()
    assert time.perf_counter() - began < 0.25
    request = start(through.fetch, [9], float("inf"))
    source.let_go()
    join(request)
    assert set(table.rows) == {0, 1, 2, 3, 9}


def test_answer_that_comes_too_late_fills_the_table():
    """Its request has gone on without it; the next one finds the row."""
    source = held()
    table, through = bound(source)
    assert through.fetch(["a"], 0.001) == set()
    source.wait()
    source.calls[0].returns({"a": {"x": 7}})
    until(lambda: table.rows == {"a": {"x": 7}})
    until(lambda: through.stats().late == 1)
    assert through.stats().gave_up == 1


@pytest.mark.parametrize("written", ["put", "unknown", "erased"])
def test_answer_never_overwrites_what_came_after_its_question(written: str):
    """A row written, marked or erased while a fetch was under way stays as it is; the fetch's other keys are used."""
    source = held()
    table, through = bound(source)
    request = start(through.fetch, ["a", "b"], WAIT_S)
    source.wait()
    if written == "put":
        table.put("a", {"x": 2}, updated_at=5.0)
    elif written == "unknown":
        table.mark_unknown(["a"])
    else:
        table.erase("a")
    source.calls[0].returns({"a": {"x": 1}, "b": {"x": 1}})
    join(request)
    assert table.rows == ({"a": {"x": 2}, "b": {"x": 1}} if written == "put" else {"b": {"x": 1}})
    assert ("a" in table.unknown) == (written == "unknown")
    assert through.stats().overtaken == 1


def test_key_written_during_a_fetch_may_be_fetched_anew():
    """Erased while the old answer is on its way: who asks again gets a new question, and its answer."""
    source = held()
    table, through = bound(source)
    old = start(through.fetch, ["a"], WAIT_S)
    source.wait()
    table.erase("a")
    new = start(through.fetch, ["a"], WAIT_S)
    source.wait()
    source.calls[1].returns({"a": {"x": 2}})
    join(new)
    source.calls[0].returns({"a": {"x": 1}})
    join(old)
    assert table.rows == {"a": {"x": 2}}


def test_everything_fenced_at_once():
    """A bulk load makes every answer under way one of before."""
    source = held()
    table, through = bound(source)
    request = start(through.fetch, ["a", "b"], WAIT_S)
    source.wait()
    with through.lock:
        through.fence_all()
    source.let_go()
    join(request)
    assert table.rows == {}


def test_call_that_outlives_its_limit_is_replaced_and_its_late_answer_used_if_nothing_newer_came():
    """After twice its time and a little it counts as failed; the key may be asked for again; the newest answer stays."""
    source, clock = held(), ManualClock()
    table, through = bound(source, threads=1, timeout_s=0.1, clock=clock)
    waiting = start(through.fetch, ["a", "b"], WAIT_S)
    source.wait()
    clock.advance_ns(251 * MS)
    again = start(through.fetch, ["a"], WAIT_S)
    join(waiting)  # its call was written off, and with it the wait
    source.wait()
    stats = through.stats()
    assert (stats.lost_calls, stats.failed_calls, stats.threads) == (1, 1, 2)
    assert stats.last_error == "TimeoutError"
    source.calls[1].returns({"a": {"x": 2}})
    join(again)
    source.calls[0].returns({"a": {"x": 1}, "b": {"x": 1}})
    until(lambda: "b" in table.rows)
    assert table.rows == {"a": {"x": 2}, "b": {"x": 1}}
    until(lambda: through.stats().threads == 1)


def test_calls_that_never_end_are_bounded_and_recovery_follows_their_end():
    """At most twice the threads hang, requests are held back at no cost, and one probe finds the source well again."""
    source, clock = held(), ManualClock()
    table, through = bound(source, threads=2, timeout_s=0.1, clock=clock, backoff=Backoff(jitter=0.0))
    for i in range(50):
        through.fetch([i], 0.0)
        until(lambda: through.stats().pending == 0 or through.stats().threads == 4)
        clock.advance_ns(1_300 * MS)
    source.wait(4)
    assert len(source.calls) == 4
    assert through.stats().threads == 4
    assert through.stats().state != "open"
    source.let_go()
    until(lambda: through.stats().threads <= 2)
    clock.advance_ns(1_000 * MS)
    request = start(through.fetch, ["after"], WAIT_S)
    join(request)
    assert "after" in table.rows
    assert through.stats().state == "open"


def test_failures_close_the_door_and_one_probe_opens_it():
    """Three exceptions, then nothing is asked for until the wait is over, then one call at a time."""
    clock = ManualClock()
    broken = [True]

    def answer(keys: list[Any]) -> Any:
        if broken[0]:
            raise ConnectionError("down")
        return {key: {"x": 1} for key in keys}

    table, through = bound(Says(answer), clock=clock, backoff=Backoff(jitter=0.0))
    for i in range(10):
        assert through.fetch([i], WAIT_S) == set()
    stats = through.stats()
    assert (stats.calls, stats.failed_calls, stats.held_back, stats.state) == (3, 3, 7, "closed")
    assert not stats.healthy
    assert stats.last_error == "ConnectionError"
    clock.advance_ns(50 * MS)
    through.fetch(["probe"], WAIT_S)
    assert (through.stats().calls, through.stats().state) == (4, "closed")
    broken[0] = False
    clock.advance_ns(99 * MS)
    through.fetch(["still closed"], WAIT_S)
    clock.advance_ns(1 * MS)
    through.fetch(["a"], WAIT_S)
    through.fetch(["b"], WAIT_S)
    assert set(table.rows) == {"a", "b"}
    assert through.stats().healthy


def test_closing_door_ends_the_waits_of_all_who_queue():
    """Nobody waits out a deadline for a source that is known to be down."""
    source = held()
    _, through = bound(source, threads=1, max_batch=1, backoff=Backoff(tolerated=1))
    first = start(through.fetch, ["a"], WAIT_S)
    source.wait()
    queued = [start(through.fetch, [i], WAIT_S) for i in range(10)]
    until(lambda: through.stats().pending == 10)
    source.calls[0].returns(OSError("gone"))
    join(first, *queued)
    assert len(source.calls) == 1
    assert through.stats().in_flight == 0


def test_what_waits_is_bounded():
    """Beyond the bound keys are refused, at once; refreshes have a bound of their own."""
    source = held()
    _, through = bound(source, threads=1, max_pending=100, max_batch=10)
    through.fetch(["busy"], 0)
    source.wait()
    through.refresh_many(list(range(200)))
    through.fetch([-key for key in range(1, 151)], 0)
    stats = through.stats()
    assert (stats.pending, stats.refused) == (200, 150)
    assert stats.in_flight == 201


def test_nothing_piles_up_while_threads_are_busy():
    """What wakes threads is not stored for those that work: a thousand requests leave nothing behind."""
    source = held()
    _, through = bound(source, threads=1)
    through.fetch(["busy"], 0)
    source.wait()
    for i in range(1_000):
        through.fetch([i], 0)
    assert through._tokens.qsize() == 0
    source.let_go()
    until(lambda: through.stats().in_flight == 0)
    assert through._tokens.qsize() == 0
    assert len(source.calls) == 3


def test_every_fetch_finds_a_thread_however_they_come_and_go():
    """Threads that end after 1 ms without work, and fetches from eight sides: none is left waiting."""
    table, through = bound(Counting(), threads=3, idle_s=0.001)
    wrong = []

    def run(seed: int) -> None:
        chance = random.Random(seed)
        for i in range(150):
            key = f"{seed}-{i}"
            through.fetch([key], WAIT_S)
            if key not in table.rows:
                wrong.append(key)
            threading.Event().wait(chance.choice([0, 0, 0.0005, 0.001, 0.0015]))

    join(*[start(run, seed) for seed in range(8)])
    assert wrong == []
    until(lambda: through.stats().threads == 0)
    assert through._idle == 0


def test_threads_start_when_needed_and_end_when_idle():
    """None before the first fetch, no more than asked for, none after a while without work."""
    _, through = bound(Counting(), idle_s=0.02, name="ending")

    def named() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "retailinfer-read-ending"]

    assert named() == []
    through.fetch(["a"], WAIT_S)
    join(*named())
    assert through.stats().threads == 0
    through.fetch(["b"], WAIT_S)
    assert through.stats().rows == 2


def test_source_that_never_waits_runs_on_the_callers_thread():
    """`waits = False`: no threads; its exceptions stay inside all the same, but a thread that is told to stop does."""
    seen = []

    def answer(keys: list[Any]) -> Any:
        seen.append(threading.current_thread())
        if keys == ["bad"]:
            raise ValueError("x")
        if keys == ["stop"]:
            raise KeyboardInterrupt
        return {key: {"x": 1} for key in keys}

    source = Says(answer)
    source.waits = False
    table, through = bound(source)
    assert through.fetch(["a"], 0.0) == set()
    through.refresh("r")
    through.warm(iter(["w1", "w2"]))
    assert set(table.rows) == {"a", "r", "w1", "w2"}
    assert through.fetch(["bad"], 0.0) == set()
    with pytest.raises(KeyboardInterrupt):
        through.fetch(["stop"], 0.0)
    assert through.fetch(["a2"], 0.0) == set()
    assert set(seen) == {threading.current_thread()}
    assert through.stats().threads == 0
    assert through.stats().in_flight == 0


def test_warming_fetches_everything_in_batches_while_nothing_else_waits():
    """An iterator of any length is read as far as it is fetched; a request goes between."""
    source = held()
    table, through = bound(source, threads=2, max_batch=10)
    read = []

    def keys() -> Iterator[int]:
        for key in range(45):
            read.append(key)
            yield key

    through.warm(keys())
    source.wait()
    assert len(read) <= 20
    request = start(through.fetch, ["now"], WAIT_S)
    source.wait()
    assert source.calls[1].keys[0] == "now"
    assert len(read) <= 20
    source.let_go()
    until(lambda: len(table.rows) == 46)
    join(request)
    assert max(len(call.keys) for call in source.calls) <= 10


def test_iterator_that_raises_ends_the_warming_only():
    """What can be read of it is fetched, and requests go on."""

    def keys() -> Iterator[str]:
        yield "a"
        raise RuntimeError("changed size during iteration")

    table, through = bound(Counting(), max_batch=1)
    through.warm(keys())
    until(lambda: "a" in table.rows and through.stats().last_error == "RuntimeError")
    through.fetch(["b"], WAIT_S)
    assert "b" in table.rows


def test_close_ends_threads_and_closes_the_source():
    """Nothing is asked for afterwards; a call under way still fills the table."""
    source = held()
    source.close = lambda: closed.append(True)
    closed: list[bool] = []
    table, through = bound(source, name="closing")
    request = start(through.fetch, ["a"], WAIT_S)
    source.wait()
    through.close()
    assert closed == [True]
    source.let_go()
    join(request, *[t for t in threading.enumerate() if t.name == "retailinfer-read-closing"])
    assert set(table.rows) == {"a"}
    assert through.fetch(["b"], WAIT_S) == set()
    assert through.stats().refused == 1


def test_no_more_threads_to_be_had(monkeypatch: pytest.MonkeyPatch):
    """Where the system refuses a thread, requests go on without the source."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    _, through = bound(Counting())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    began = time.perf_counter()
    assert through.fetch(["a"], WAIT_S) == set()
    assert time.perf_counter() - began < 5
    stats = through.stats()
    assert (stats.threads, stats.pending, stats.in_flight, stats.last_error) == (0, 0, 0, "RuntimeError")


def test_key_whose_asker_was_interrupted_is_asked_for_again_after_a_minute():
    """Ctrl-C between taking a key and queueing it must not keep the key from ever being fetched."""
    source, clock = Counting(), ManualClock()
    table, through = bound(source, clock=clock)

    def interrupt(n: int) -> None:
        raise KeyboardInterrupt

    through._wake, wake = interrupt, through._wake  # type: ignore[method-assign]
    through._urgent, queue = [], through._urgent  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        through.fetch(["a"], WAIT_S)
    through._wake, through._urgent = wake, queue  # type: ignore[method-assign]
    clock.advance_ns(59_000 * MS)
    through.fetch(["a"], 0.001)
    assert source.calls == []
    clock.advance_ns(2_000 * MS)
    through.fetch(["a"], WAIT_S)
    assert table.rows == {"a": {"x": 1.0}}


def test_thread_that_fails_by_our_own_mistake_is_replaced(monkeypatch: pytest.MonkeyPatch):
    """It says so, does not count any more, and the next fetch starts another."""
    table, through = bound(Counting())
    said = []
    monkeypatch.setattr(threading, "excepthook", lambda args: said.append(args.exc_type))
    with monkeypatch.context() as patch:
        patch.setattr(through, "_more_to_warm", lambda: 1 / 0)
        through.fetch(["a"], WAIT_S)
        until(lambda: said == [ZeroDivisionError])
    assert through.stats().threads == 0
    through.fetch(["b"], WAIT_S)
    assert set(table.rows) == {"a", "b"}


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        (object(), {}),
        (Counting(), {"timeout_s": 0}),
        (Counting(), {"timeout_s": float("nan")}),
        (Counting(), {"timeout_s": 1e9}),
        (Counting(), {"threads": 0}),
        (Counting(), {"max_batch": 0}),
        (Counting(), {"max_pending": 0}),
    ],
)
def test_settings_that_mean_nothing_are_refused(source: Any, settings: dict[str, Any]):
    """No source, no time, no threads, no room."""
    with pytest.raises(ConfigError):
        bound(source, **settings)
