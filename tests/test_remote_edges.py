"""Edges of remotes and of names: moments between two steps, forks in the middle of a wait, tokens with a line's end."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import traceback

import numpy as np
import pytest
from model_servers import HostileServer, OipServer
from processes import run_script
from services import free_port

import retailinfer as ri
from retailinfer.clock import ManualClock
from retailinfer.errors import ConfigError, RemoteError
from retailinfer.hostnames import Names
from retailinfer.resilience.breaker import Breaker, Outcome, State

ROWS = np.array([[0.1, -2.5, 3.0, 1e-7], [4.0, 5.0, -6.0, 0.25]], np.float32)
MS, SECOND = 1_000_000, 1_000_000_000


class Meanwhile(random.Random):
    """Chance that lets another thread have its turn in the middle of a change of state."""

    do = staticmethod(lambda: None)

    def uniform(self, a: float, b: float) -> float:
        self.do()
        return super().uniform(a, b)


def test_call_beside_a_breaker_that_opens_does_not_half_open_it():
    """Who saw it closed a moment ago has no lock, and may ask in the middle of the change."""
    chance = Meanwhile(7)
    breaker = Breaker(chance=chance, now_ns=0)
    permit = breaker.admit(0, SECOND)
    asked = []
    chance.do = lambda: asked.append(breaker.admit(SECOND, 2 * SECOND))
    for _ in range(5):
        breaker.record(permit, Outcome.UNREACHED, SECOND)
    assert asked == [permit]  # of the generation that ends now
    assert breaker.state is State.OPEN
    assert [move.after for move in breaker.take_moves()] == [State.OPEN]


def test_standing_permit_is_there_while_calls_need_no_lock():
    """CLOSED and DISABLED have one; nobody gets one in the middle of opening."""
    seen = []
    chance = Meanwhile(1)
    breaker = Breaker(chance=chance, now_ns=0)
    chance.do = lambda: seen.append((breaker.state, breaker.standing_permit))
    for _ in range(5):
        breaker.record(breaker.standing_permit, Outcome.UNREACHED, SECOND)
    assert breaker.state is State.OPEN
    assert breaker.standing_permit is None
    assert seen
    assert all(state is State.CLOSED for state, _ in seen)  # it is not OPEN before it knows until when
    breaker.disable(2 * SECOND)
    assert breaker.admit(2 * SECOND, 3 * SECOND) == breaker.standing_permit is not None


def test_c59_refused_connections_count_however_short_the_time_was():
    """That nobody listens has nothing to do with the time that was given."""
    clock = ManualClock()

    class Dies:
        name, dead = "sim", False

        def infer(self, inputs, outputs, *, timeout_s):
            if self.dead:
                raise RemoteError("refused", kind="connect")
            clock.advance_ns(20 * MS)
            return {"score": np.zeros(len(ROWS), np.float32)}

    one = Dies()
    remote = ri.Remote(one, model="fraud", clock=clock, retries=0)

    def ask(ms: int) -> None:
        remote.infer({"features": ROWS}, ["score"], end_ns=clock.monotonic_ns() + ms * MS)

    for _ in range(32):
        ask(50)
    one.dead = True
    for _ in range(5):
        with pytest.raises(RemoteError, match="refused"):
            ask(5)  # less than its answers took
    assert remote.breaker_states() == {"sim": "open"}


def test_inputs_that_are_none_take_no_place_for_ever():
    """A call that cannot be begun is not under way."""

    class Fine:
        def infer(self, inputs, outputs, *, timeout_s):
            return {"score": np.zeros(len(ROWS), np.float32)}

    remote = ri.Remote(Fine(), model="fraud", max_concurrency=1)
    for _ in range(3):
        with pytest.raises(AttributeError):
            remote.infer(None, ["score"], end_ns=time.monotonic_ns() + SECOND)
    assert remote.report().in_flight == 0
    assert len(remote.infer({"features": ROWS}, ["score"], end_ns=time.monotonic_ns() + SECOND)) == 1


FORK_WHILE_WAITING = """
import os, sys, threading, time
import numpy as np
import retailinfer as ri
from retailinfer.errors import RemoteError

class Fails:
    name = "sim"
    def infer(self, inputs, outputs, *, timeout_s):
        raise RemoteError("refused", kind="connect")

remote = ri.Remote(Fails(), model="fraud", timeout_ms=1000)
def ask():
    try:
        remote.infer({"features": np.zeros((1, 1), np.float32)}, ["score"], end_ns=time.monotonic_ns() + 10**9)
    except RemoteError:
        return
# A thread that waits before its second attempt holds the lock of what it waits on, for a moment. Here: at the fork.
import retailinfer.resilience.remote.client as client
waits_on = getattr(client, "_WAIT", None) or remote._never
held, go_on = threading.Event(), threading.Event()
def wait():
    with waits_on._cond:
        held.set()
        go_on.wait(20)
threading.Thread(target=wait, daemon=True).start()
held.wait()
pid = os.fork()
if pid == 0:
    for _ in range(3):
        ask()
    os._exit(0)
for _ in range(500):
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        break
    time.sleep(0.02)
else:
    os.kill(pid, 9)
    status = "hangs"
go_on.set()
print(status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork")
def test_c51_fork_while_another_thread_waits_before_its_second_attempt():
    """What a remote waits on is each process's own."""
    assert run_script(FORK_WHILE_WAITING, PYTHONWARNINGS="ignore::DeprecationWarning") == "0"


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["::ffff:169.254.169.254", "fd00:ec2::254", "fe80::1%1", "169.254.170.2"])
def test_c58_link_local_addresses_are_refused_however_they_are_written(address, monkeypatch):
    """An answer of the DNS may hold an address of IPv4 as one of IPv6: connecting to it works as well."""
    pytest.importorskip("urllib3")
    connected = []
    family = socket.AF_INET if address.count(".") == 3 and ":" not in address else socket.AF_INET6
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, port, **_: [(family, socket.SOCK_STREAM, 6, "", (address, port))]
    )

    def connect(self, where):
        connected.append(where)
        raise OSError("nothing is connected to here")

    from retailinfer.resilience.remote import http

    monkeypatch.setattr(http._PlainSocket, "connect", connect, raising=False)
    remote = ri.Remote("http://models.example:80", model="fraud", binary=False, retries=0)
    with pytest.raises(RemoteError) as caught:
        remote.infer({"features": ROWS}, ["score"], end_ns=time.monotonic_ns() + SECOND)
    assert caught.value.kind == "connect"
    assert connected == []


def test_names_that_are_known_are_used_while_a_look_up_hangs(monkeypatch):
    """A resolver that is gone costs a quarter of the time, not all of it."""
    hangs, go_on = threading.Event(), threading.Event()

    def resolve(host, port, **_):
        if hangs.is_set():
            go_on.wait(20)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr("retailinfer.hostnames._BELIEVED_S", 0.0)
    names = Names()
    known = names.find("models.example", 80, time.monotonic() + 5)
    hangs.set()
    begin_s = time.monotonic()
    assert names.find("models.example", 80, begin_s + 4) == known
    assert 0.9 < time.monotonic() - begin_s < 3
    go_on.set()


def test_names_are_looked_up_again_when_there_was_no_thread_for_it(monkeypatch):
    """One refusal by the system is not for ever."""
    real = threading.Thread.start
    names = Names()

    def none(self) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    with pytest.raises(TimeoutError, match="thread"):
        names.find("localhost", 80, time.monotonic() + 1)
    monkeypatch.setattr(threading.Thread, "start", real)
    assert names.find("localhost", 80, time.monotonic() + 20)


# --- what must not be seen --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.parametrize(
    "headers", [{"Authorization": "Bearer planted\n"}, {"X\r\nHost": "planted"}, {"X-Token": 5}]
)
def test_headers_that_cannot_be_sent_are_refused_at_once_without_being_shown(scheme, headers):
    """A token read from a file has a line's end: not an error of every call, with the token in its traceback."""
    pytest.importorskip("urllib3" if scheme == "http" else "grpc")
    with pytest.raises(ConfigError) as caught:
        ri.Remote(f"{scheme}://127.0.0.1:{free_port()}", model="fraud", headers=headers)
    assert "planted" not in "".join(traceback.format_exception(caught.value))


def test_c69_what_a_server_says_is_in_no_traceback():
    """Not in the causes of an error either: logs show those too."""
    pytest.importorskip("urllib3")

    def answers(sock, request, stop) -> None:
        sock.sendall(b"planted-secret is no status line\r\n\r\n")

    with HostileServer(answers) as server:
        remote = ri.Remote(server.url, model="fraud", binary=False, retries=0, timeout_ms=5_000)
        with pytest.raises(RemoteError) as caught:
            remote.infer({"features": ROWS}, ["score"], end_ns=time.monotonic_ns() + 5 * SECOND)
        remote.close()
    assert caught.value.kind == "malformed"
    assert "planted-secret" not in "".join(traceback.format_exception(caught.value))


def test_sound_headers_are_sent():
    """Latin-1, and inner blanks."""
    pytest.importorskip("urllib3")
    with OipServer() as server:
        remote = ri.Remote(server.url, model="fraud", headers={"X-Note": "a b\té"}, timeout_ms=5_000)
        assert remote.infer({"features": ROWS}, ["score"], end_ns=time.monotonic_ns() + 5 * SECOND)
        remote.close()
