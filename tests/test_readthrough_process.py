"""ReadThrough across forks, greenlets, signals and the end of a process, each in a process of its own."""

from __future__ import annotations

import os

import pytest
from processes import run_script

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork")

COMMON = """
import os, signal, sys, threading
from rows_for_tests import Counting, Held, Says, Table, WAIT_S
from retailinfer.store.readthrough import ReadThrough

def bound(source, **settings):
    table = Table()
    table.through = ReadThrough(source, table, columns=table.columns, **settings)
    return table, table.through

def in_child(function):
    pid = os.fork()
    if pid == 0:
        try:
            function()
            sys.stdout.flush()
            sys.exit(0)      # a whole exit: threads that were inherited must not hold it up
        except BaseException as exc:
            if not (isinstance(exc, SystemExit) and exc.code == 0):
                import traceback; traceback.print_exc()
                os._exit(1)
            raise
    for _ in range(6_000):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        threading.Event().wait(0.005)
    os.kill(pid, signal.SIGKILL)
    return "hung"
"""


def test_child_of_a_process_with_fetches_under_way_begins_afresh():
    """Nothing that the parent waits for keeps the child waiting; both fetch, and both end."""
    assert run_script(COMMON + """
source = Held()
table, through = bound(source, threads=2)
waiting = [threading.Thread(target=through.fetch, args=([f"k{i}"], WAIT_S), daemon=True) for i in range(2)]
for thread in waiting:
    thread.start()
    source.wait()
through.refresh("later")

def child():
    assert (through.stats().in_flight, through.stats().threads, through.stats().pending) == (0, 0, 0)
    source.open = True
    through.fetch(["k0", "new"], WAIT_S)
    assert set(table.rows) == {"k0", "new"}, table.rows

codes = [in_child(child) for _ in range(3)]
source.let_go()
for thread in waiting:
    thread.join(WAIT_S)
through.fetch(["after"], WAIT_S)
print(codes, {"k0", "k1", "after"} <= set(table.rows), "new" in table.rows)
""") == "[0, 0, 0] True False"  # fmt: skip


def test_forks_while_threads_fetch_and_write():
    """Whatever half-done step another thread is in, a child can fetch, write and end: 12 forks under load."""
    assert run_script(COMMON + """
import random
table, through = bound(Counting(), threads=3)
stop = threading.Event()

def load(seed):
    chance = random.Random(seed)
    while not stop.is_set():
        key = chance.randrange(1 << 30)
        through.fetch([key, key + 1], WAIT_S)
        table.erase(key)
        table.erase(key + 1)

threads = [threading.Thread(target=load, args=(seed,), daemon=True) for seed in range(4)]
for thread in threads:
    thread.start()

def child():
    stop.set()
    table.put("mine", {"x": 2})
    through.fetch(["a", "mine"], WAIT_S)
    assert table.rows["a"] == {"x": 1.0} and table.rows["mine"] == {"x": 2}

codes = {in_child(child) for _ in range(12)}
stop.set()
for thread in threads:
    thread.join(WAIT_S)
print(codes)
""") == "{0}"  # fmt: skip


def test_fork_without_hooks_is_noticed():
    """A fork in C runs no hook of Python's: the next fetch sees that the process is another one."""
    assert run_script(COMMON + """
import ctypes
source = Held()
table, through = bound(source)
threading.Thread(target=through.fetch, args=(["a"], WAIT_S), daemon=True).start()
source.wait()
pid = ctypes.PyDLL(None).fork()
if pid == 0:
    source.open = True
    through.fetch(["a"], 10)
    os._exit(0 if "a" in table.rows else 3)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
source.let_go()
""") == "0"  # fmt: skip


def test_process_ends_at_once_beside_a_source_that_never_answers():
    """Stuck calls, an idle thread and a queue do not hold up the exit, and nothing is printed."""
    assert run_script(COMMON + """
class Hangs:
    def fetch(self, keys, *, timeout_s):
        threading.Event().wait()

table, through = bound(Hangs(), threads=2)
for i in range(5):
    through.fetch([i], 0.001)
_, idle = bound(Counting())
idle.fetch(["a"], WAIT_S)
print(through.stats().threads)
""") == "2"  # fmt: skip


def test_call_under_way_may_finish_at_exit():
    """An exit waits a moment for calls, so that a client's C code is seldom cut off in the middle."""
    assert run_script(COMMON + """
import atexit
ended = []
atexit.register(lambda: print(ended))      # registered first, runs last

begun = threading.Event()

class Slow:
    def fetch(self, keys, *, timeout_s):
        begun.set()
        threading.Event().wait(0.005)
        ended.append("ended")
        return {}

_, through = bound(Slow())
through.fetch(["a"], 0)
begun.wait(WAIT_S)
""") == "['ended']"  # fmt: skip


def test_signal_handler_may_fetch_while_its_thread_waits_for_a_fetch():
    """The handler runs inside the wait, asks for the same key and another, and neither is blocked for ever."""
    assert run_script(COMMON + """
source = Held()
table, through = bound(source)
got = []

def handler(number, frame):
    got.append(through.fetch(["a", "b"], 0.05))
    source.let_go()

signal.signal(signal.SIGUSR1, handler)

def send():
    source.wait()
    os.kill(os.getpid(), signal.SIGUSR1)

threading.Thread(target=send, daemon=True).start()
through.fetch(["a"], WAIT_S)
through.fetch(["b"], WAIT_S)
print(got, sorted(table.rows))
""") == "[set()] ['a', 'b']"  # fmt: skip


@pytest.mark.requires("gevent")
def test_greenlets_wait_without_blocking_one_another():
    """Under gevent 30 greenlets want the same keys: one fetch, and others run while they wait."""
    assert run_script("""
from gevent import monkey
monkey.patch_all()
import gevent
""" + COMMON + """
calls, ticks = [], []

class Source:
    def fetch(self, keys, *, timeout_s):
        calls.append(sorted(keys))
        gevent.sleep(0.05)
        return {key: {"x": 1} for key in keys}

table, through = bound(Source(), timeout_s=5)

def tick():
    while not table.rows:
        ticks.append(1)
        gevent.sleep(0.001)

jobs = [gevent.spawn(tick)] + [gevent.spawn(through.fetch, ["a", "b"], 5) for _ in range(30)]
gevent.joinall(jobs, raise_error=True)
hangs = gevent.spawn(through.fetch, ["late"], 0.01)
hangs.join(5)
print(calls[0], len(table.rows) >= 2, len(ticks) > 5, hangs.successful())
""") == "['a', 'b'] True True True"  # fmt: skip


@pytest.mark.requires("gevent")
def test_gevent_process_forks_with_greenlets_that_fetch():
    """Greenlets of the parent go on in the child; what they bring is not taken for an answer of the child's own."""
    assert run_script("""
from gevent import monkey
monkey.patch_all()
import gevent, gevent.event
""" + COMMON + """
go = gevent.event.Event()
parent = os.getpid()

class Source:
    def fetch(self, keys, *, timeout_s):
        if "old" in keys and os.getpid() == parent or "old" in keys and not go.is_set():
            go.wait(10)
        return {key: {"x": 1} for key in keys}

table, through = bound(Source(), timeout_s=5)
waiting = gevent.spawn(through.fetch, ["old"], 10)
gevent.sleep(0.01)
pid = os.fork()
if pid == 0:
    sys.stderr = open(os.devnull, "w")   # gevent reports that `threading` no longer knows the thread of before
    through.fetch(["new"], 5)
    go.set()
    gevent.sleep(0.05)
    os._exit(0 if set(table.rows) == {"new"} and through.stats().in_flight == 0 else 4)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
go.set()
waiting.join(5)
print(code, sorted(table.rows))
""") == "0 ['old']"  # fmt: skip


@pytest.mark.requires("greenlet")
def test_plain_greenlets_share_a_thread():
    """Greenlets without a hub, as asyncio bridges use them: each waits for itself, and none holds a lock across a switch."""
    assert run_script(COMMON + """
import greenlet
table, through = bound(Counting())
main = greenlet.getcurrent()

class Switches:
    waits = False
    def fetch(self, keys, *, timeout_s):
        if keys == ["a"]:
            main.switch("in the middle")
        return {key: {"x": 1} for key in keys}

table, through = bound(Switches())
first = greenlet.greenlet(lambda: through.fetch(["a"], 0.05))
said = first.switch()
through.fetch(["b"], 0.05)
through.fetch(["a", "c"], 0.05)
first.switch()
print(said, sorted(table.rows), through.stats().in_flight)
""") == "in the middle ['a', 'b', 'c'] 0"  # fmt: skip
