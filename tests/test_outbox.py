"""outbox.py: what is put is delivered once and in order, whatever the sink does, and however the process ends or forks."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref

import pytest
from processes import run_script

from retailinfer.clock import ManualClock
from retailinfer.monitoring.outbox import Outbox

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork here")


class Sink:
    """Takes items, at most `room` at once."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.got: list[object] = []
        self.room = room
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: list[object]) -> int:
        self.gate.wait()
        taken = items[: self.room]
        self.sizes.append(len(taken))
        self.got += taken
        return len(taken)


def until(condition, seconds: float = 10.0) -> bool:
    """Wait for another thread."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return bool(condition())


def outbox_of(sink, **more) -> Outbox:
    """An outbox with a short wait."""
    return Outbox(sink, **{"name": "test", "max_queue": 1_000, "gather_s": 0.005} | more)


def test_no_thread_runs_before_the_first_item():
    """Making one costs nothing but memory."""
    before = threading.active_count()
    box = outbox_of(Sink())
    assert threading.active_count() == before
    box.put(1)
    assert threading.active_count() == before + 1
    box.close()
    assert until(lambda: threading.active_count() == before)


def test_items_of_many_threads_arrive_once_and_each_threads_in_order():
    """Nothing is lost between a thread that falls asleep and one that puts."""
    sink = Sink()
    box = outbox_of(sink, max_queue=1_000_000)

    def work(k: int) -> None:
        for i in range(3_000):
            assert box.put((k, i))
            if i % 500 == 0:
                time.sleep(0.01)  # so that the outbox falls asleep now and then

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert until(lambda: len(sink.got) == 12_000), len(sink.got)
    for k in range(4):
        assert [i for kk, i in sink.got if kk == k] == list(range(3_000))
    assert (box.dropped, box.failed) == (0, 0)
    box.close()


def test_one_item_is_delivered_without_another_following():
    """The last item before a silence does not wait for the next."""
    sink = Sink()
    box = outbox_of(sink)
    for i in range(50):
        box.put(i)
        assert until(lambda n=i + 1: len(sink.got) == n), i
    box.close()


def test_a_full_queue_drops_and_counts_and_never_waits():
    """A sink that stands still costs no request anything."""
    sink = Sink()
    sink.gate.clear()
    box = outbox_of(sink, max_queue=100)
    start = time.monotonic()
    kept = sum(box.put(i) for i in range(5_000))
    assert time.monotonic() - start < 1.0
    assert 100 <= kept <= 200  # those that the thread took meanwhile
    assert box.dropped == 5_000 - kept
    sink.gate.set()
    assert until(lambda: len(sink.got) == kept)
    assert sink.got == sorted(sink.got)
    box.close()


def test_what_a_sink_does_not_take_comes_again():
    """In the same order, none twice."""
    sink = Sink(room=3)
    box = outbox_of(sink)
    for i in range(100):
        box.put(i)
    assert until(lambda: len(sink.got) == 100)
    assert sink.got == list(range(100))
    box.close()


def test_a_sink_that_raises_costs_its_items_and_ends_nothing():
    """The thread lives on."""

    def deliver(items: list[object]) -> int:
        if 7 in items:
            raise ValueError
        got.extend(items)
        return len(items)

    got: list[object] = []
    box = outbox_of(deliver)
    box.put(7)
    assert until(lambda: box.failed == 1)
    box.put(8)
    assert until(lambda: got == [8])
    box.close()


def test_slices_are_small_until_it_falls_behind():
    """A slice is how long other threads wait for the GIL."""
    sink = Sink()
    sink.gate.clear()
    box = outbox_of(sink, max_queue=100_000)
    for i in range(10_000):
        box.put(i)
    sink.gate.set()
    assert until(lambda: len(sink.got) == 10_000)
    assert max(sink.sizes) <= 10_000 // 64 + 1
    assert sink.sizes[-1] <= 16
    box.close()


def test_flush_delivers_in_the_callers_thread():
    """What was put before is there when it returns."""
    sink = Sink()
    box = outbox_of(sink, gather_s=60.0)
    for i in range(100):
        box.put(i)
        if i % 10 == 0:
            assert box.flush()
            assert sink.got == list(range(i + 1))
    box.close()
    assert sink.got == list(range(100))


def test_flush_gives_up_on_a_sink_that_stands_still():
    """After its timeout, and says so."""
    sink = Sink()
    sink.gate.clear()
    box = outbox_of(sink)
    box.put(1)
    time.sleep(0.05)
    assert not box.flush(0.05)
    sink.gate.set()
    assert box.flush()
    box.close()


def test_after_close_items_are_delivered_at_once():
    """Hooks of the end of the process may still answer requests."""
    sink, closed = Sink(), []
    box = outbox_of(sink, close=lambda: closed.append(len(sink.got)))
    box.put(1)
    assert box.close()
    assert (sink.got, closed) == ([1], [1])
    box.put(2)
    assert sink.got == [1, 2]


def test_close_ends_within_its_time_when_the_sink_stands_still():
    """What is left is counted."""
    sink = Sink()
    sink.gate.clear()
    box = outbox_of(sink)
    for i in range(10):
        box.put(i)
    time.sleep(0.05)
    start = time.monotonic()
    assert not box.close(0.4)
    assert time.monotonic() - start < 1.0
    assert box.dropped == 10
    sink.gate.set()


def test_idle_says_when_it_wants_to_be_called():
    """Now and then, though nothing is put."""
    calls = []

    def idle() -> float:
        calls.append(time.monotonic())
        return 0.02

    box = outbox_of(Sink(), idle=idle)
    box.put(1)
    assert until(lambda: len(calls) > 5)
    box.close()
    n = len(calls)
    time.sleep(0.06)
    assert len(calls) == n


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_is_gone_is_started_again():
    """Whatever ended it: the queue is full once, and then it goes on."""
    left = [1]

    def deliver(items: list[object]) -> int:
        if left and left.pop():
            raise SystemExit  # ends the thread, silently
        return sink(items)

    sink = Sink()
    box = outbox_of(deliver, max_queue=10)
    box.put(0)
    assert until(lambda: not box._thread.is_alive())
    kept = sum(box.put(i) for i in range(100))
    assert kept >= 10
    assert until(lambda: box.put(1_000) and 1_000 in sink.got)
    box.close()


def test_chores_that_take_long_hold_up_neither_items_nor_the_end():
    """Others deliver meanwhile; whoever waits for rest gets it when they are done."""
    sink, gate, rested = Sink(), threading.Event(), []

    def chores() -> float:
        gate.wait(30)
        return 60.0

    box = outbox_of(sink, chores=chores, rest=lambda: rested.append(1))
    box.put(1)
    assert until(lambda: sink.got == [1])
    for i in range(2, 50):
        box.put(i)
    assert box.flush(0.5)
    start = time.monotonic()
    box.put(50)
    assert box.close(0.4)
    assert time.monotonic() - start < 2.0
    assert sink.got == list(range(1, 51))
    assert rested == []
    gate.set()
    assert until(lambda: rested == [1])


def test_hold_waits_for_chores():
    """And keeps them from beginning."""
    begun, gate = [], threading.Event()

    def chores() -> float:
        begun.append(1)
        gate.wait(30)
        return 0.01

    box = outbox_of(Sink(), chores=chores)
    box.put(1)
    assert until(lambda: begun == [1])
    assert not box.hold(0.05)
    gate.set()
    assert box.hold(5.0)
    n = len(begun)
    time.sleep(0.1)
    assert len(begun) == n
    box.release()
    assert until(lambda: len(begun) > n)
    box.close()


def test_an_outbox_that_nobody_holds_delivers_and_is_gone():
    """Its thread keeps it while something waits, and no longer."""
    sink = Sink()
    before = threading.active_count()
    box = outbox_of(sink, gather_s=0.05)
    for i in range(10):
        box.put(i)
    ref = weakref.ref(box)
    del box
    assert until(lambda: len(sink.got) == 10)
    assert until(lambda: gc.collect() >= 0 and ref() is None)
    assert until(lambda: threading.active_count() == before)


def test_no_more_threads_is_no_error(monkeypatch):
    """What is queued waits for the next try, a second later, or for a flush."""
    clock = ManualClock()
    sink, tries = Sink(), []
    start = threading.Thread.start

    def refuse(self) -> None:
        tries.append(1)
        raise RuntimeError("can't start new thread")

    box = outbox_of(sink, clock=clock)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    for i in range(10):
        assert box.put(i)
    assert len(tries) == 1
    assert box.flush()
    assert sink.got == list(range(10))
    clock.advance_ns(2_000_000_000)
    monkeypatch.setattr(threading.Thread, "start", start)
    box.put(10)
    assert until(lambda: len(sink.got) == 11)
    box.close()


PRELUDE = """
import os, signal, sys, threading, time
from retailinfer.monitoring.outbox import Outbox

def deliver(items):
    text = "".join(f"{item}\\n" for item in items).encode()
    while text:
        text = text[os.write(OUT, text):]
    return len(items)

def lines(path):
    return open(path).read().split("\\n")[:-1]
"""


@POSIX
@pytest.mark.parametrize("leave", ["", "sys.exit(3)", "raise SystemExit(3)", "os.kill(os.getpid(), 15)"])
def test_nothing_is_lost_at_a_clean_end(tmp_path, leave):
    """By the last line, by exit, by SIGTERM under a handler that exits."""
    path = tmp_path / "out"
    run_script(
        PRELUDE
        + f"""
OUT = os.open({str(path)!r}, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
signal.signal(15, lambda *_: sys.exit(3))
box = Outbox(deliver, name="x", max_queue=100_000, gather_s=30.0)
for i in range(20_000):
    box.put(i)
{leave}
""",
        code=3 if leave else 0,
    )
    assert path.read_text().split("\n")[:-1] == [str(i) for i in range(20_000)]


@POSIX
def test_forks_while_threads_put_lose_and_double_nothing(tmp_path):
    """Parent and children deliver what they put, each its own."""
    path = tmp_path / "out"
    out = run_script(
        PRELUDE
        + f"""
OUT = os.open({str(path)!r}, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
box = Outbox(deliver, name="x", max_queue=1_000_000, gather_s=0.001, pauses=True)
stop, n = threading.Event(), [0, 0]
def work(k):
    while not stop.is_set():
        box.put(f"parent-{{k}}-{{n[k]}}")
        n[k] += 1
        if n[k] % 100 == 0:
            time.sleep(0.001)
threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
for thread in threads:
    thread.start()
for child in range(60):
    pid = os.fork()
    if pid == 0:
        for i in range(200):
            box.put(f"child-{{child}}-{{i}}")
            if i == 100:
                box.flush()
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
for thread in threads:
    thread.join()
assert box.dropped == 0
box.close()
want = [f"parent-{{k}}-{{i}}" for k in (0, 1) for i in range(n[k])]
want += [f"child-{{c}}-{{i}}" for c in range(60) for i in range(200)]
got = lines({str(path)!r})
print(sorted(got) == sorted(want), len(got) - len(set(got)))
"""
    )
    assert out == "True 0"


@POSIX
def test_a_raw_fork_is_noticed(tmp_path):
    """Without Python's hooks the child has the parent's thread in its books, and none in fact."""
    path = tmp_path / "out"
    out = run_script(
        PRELUDE
        + f"""
import ctypes
OUT = os.open({str(path)!r}, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
box = Outbox(deliver, name="x", max_queue=1_000, gather_s=0.001)
box.put("parent")
time.sleep(0.1)
pid = ctypes.PyDLL(None).fork()
if pid == 0:
    box.put("child")
    time.sleep(0.2)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print(lines({str(path)!r}))
"""
    )
    assert out == "['parent', 'child']"
