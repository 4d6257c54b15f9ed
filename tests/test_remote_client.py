"""Remote: breakers, retries, hedges and limits around back ends, simulated ones and model servers.

Rules:
  * Simulated back ends move a ManualClock; what they do is data. Nothing sleeps there.
  * Races and threads use real ones: what must hold is that nothing is left over and that there is one answer.
"""

from __future__ import annotations

import gc
import os
import pickle
import random
import sys
import threading
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from model_servers import HostileServer, OipServer, mean_model
from processes import run_script
from services import free_port, until

import retailinfer as ri
from retailinfer.clock import ManualClock, SystemClock
from retailinfer.errors import ConfigError, DeadlineExceededError, RemoteError, SchemaMismatchError

MS, SECOND = 1_000_000, 1_000_000_000
ROWS = np.array([[0.1, -2.5, 3.0, 1e-7], [4.0, 5.0, -6.0, 0.25]], np.float32)
SCORES = mean_model({"features": ROWS})["score"]


class Simulated:
    """A back end that takes `took_ms` of a clock and then answers, or raises the kind that it is told."""

    def __init__(self, clock: ManualClock, name: str = "simulated") -> None:
        self.clock, self.name = clock, name
        self.took_ms = 1.0
        self.fails: str | None = None
        self.retry_after_s: float | None = None
        self.attempts = 0
        self.reply: object = None

    def infer(self, inputs, outputs, *, timeout_s):
        self.attempts += 1
        took_ns = int(self.took_ms * MS)
        if took_ns > timeout_s * 1e9:
            self.clock.advance_ns(int(timeout_s * 1e9))
            raise RemoteError("no answer", kind="timeout")
        self.clock.advance_ns(took_ns)
        if self.fails is not None:
            raise RemoteError("told so", kind=self.fails, retry_after_s=self.retry_after_s)
        return self.reply if self.reply is not None else mean_model(inputs)


class World:
    """A remote over simulated back ends, and the clock that they move."""

    def __init__(self, n: int = 1, **settings) -> None:
        self.clock = ManualClock()
        self.backends = [Simulated(self.clock, f"sim-{i}") for i in range(n)]
        self.waited: list[float] = []
        self.changes: list[tuple[str, str, str, str]] = []
        self.remote = ri.Remote(
            self.backends,
            model="fraud",
            clock=self.clock,
            chance=random.Random(7),
            sleep=self.sleep,
            **settings,
        )
        self.remote.watch(lambda *change: self.changes.append(change))

    def sleep(self, s: float) -> None:
        self.waited.append(s)
        self.clock.advance_ns(int(s * 1e9))

    def ask(self, ms: float = 50.0, **more):
        end_ns = self.clock.monotonic_ns() + int(ms * MS)
        return self.remote.infer({"features": ROWS}, ["score"], end_ns=end_ns, **more)["score"]

    def kind(self, ms: float = 50.0, **more) -> str:
        with pytest.raises(RemoteError) as caught:
            self.ask(ms, **more)
        return caught.value.kind


@pytest.fixture
def world():
    """One simulated back end."""
    return World()


# --- deadlines and limits ---------------------------------------------------------------------------------------------


def test_answer_is_the_back_ends_own(world):
    """Scores pass through unchanged; attempts and latency are told."""
    np.testing.assert_array_equal(world.ask(), SCORES)
    report = world.remote.report()
    assert (report.calls, report.answers, report.in_flight) == (1, 1, 0)
    assert report.endpoints[0].attempts == 1
    assert world.remote.breaker_states() == {"sim-0": "closed"}


@pytest.mark.parametrize("ms", [0, -5, -1e9])
def test_c61_no_time_is_left_and_nobody_is_asked(world, ms):
    """A deadline that is over ends the call before any attempt."""
    with pytest.raises(DeadlineExceededError):
        world.ask(ms)
    assert world.backends[0].attempts == 0


def test_call_takes_at_most_its_own_limit_when_the_deadline_leaves_more():
    """timeout_ms bounds what a black hole can cost."""
    world = World(timeout_ms=30, retries=0)
    world.backends[0].took_ms = 1e9
    begin_ns = world.clock.monotonic_ns()
    assert world.kind(10_000) == "timeout"
    assert world.clock.monotonic_ns() - begin_ns == 30 * MS


def test_late_answer_of_a_back_end_is_dropped(world):
    """One that keeps no limit of its own cannot make an answer late: it is a timeout."""

    class Careless(Simulated):
        def infer(self, inputs, outputs, *, timeout_s):
            self.clock.advance_ns(80 * MS)
            return mean_model(inputs)

    world.remote._targets[0].backend = Careless(world.clock)
    assert world.kind(50) == "timeout"


def test_more_calls_than_places_are_refused_at_once():
    """The semaphore is full: kind "busy", and the place is free again afterwards."""
    go_on, inside = threading.Event(), threading.Semaphore(0)

    class Slow:
        name = "slow"

        def infer(self, inputs, outputs, *, timeout_s):
            inside.release()
            go_on.wait(timeout_s)
            return mean_model(inputs)

    remote = ri.Remote(Slow(), max_concurrency=2, timeout_ms=20_000)
    end_ns = SystemClock.monotonic_ns() + 20 * SECOND
    threads = [
        threading.Thread(target=remote.infer, args=({"features": ROWS}, ["score"]), kwargs={"end_ns": end_ns})
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        inside.acquire()
    with pytest.raises(RemoteError) as caught:
        remote.infer({"features": ROWS}, ["score"], end_ns=end_ns)
    assert caught.value.kind == "busy"
    go_on.set()
    for thread in threads:
        thread.join()
    remote.infer({"features": ROWS}, ["score"], end_ns=end_ns)
    assert remote.report().in_flight == 0


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ({"score": np.full((2, 1), np.nan, np.float32)}, "not_finite"),
        ({"score": np.zeros((1, 1), np.float32)}, "mismatch"),
        ({"other": SCORES}, "mismatch"),
        ([1, 2], "mismatch"),
        ("none", "mismatch"),
    ],
)
def test_replies_of_any_back_end_are_checked(world, reply, kind):
    """Names, rows and finiteness are looked at whoever gave the reply."""
    world.backends[0].reply = reply
    assert world.kind() == kind
    assert world.remote.report().endpoints[0].failures == {kind: 1}


def test_whatever_a_back_end_raises_is_a_remote_error(world):
    """Its own exceptions, and kinds that do not exist, become "failed", with their cause."""

    def breaks(inputs, outputs, *, timeout_s):
        raise ZeroDivisionError("secret")

    world.backends[0].infer = breaks
    with pytest.raises(RemoteError) as caught:
        world.ask()
    assert caught.value.kind == "failed"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "secret" not in str(caught.value)
    del world.backends[0].infer
    world.backends[0].fails = "no such kind"
    assert world.kind() == "failed"


# --- breaker and retries ----------------------------------------------------------------------------------------------


def test_c59_remote_that_dies_for_a_minute_costs_little_and_is_found_again():
    """Opens within a second of traffic, at most 1.10 attempts a call, back within two probe periods of its return."""
    world = World()
    backend = world.backends[0]

    def traffic(seconds: float) -> tuple[int, int]:
        calls = ok = 0
        end_ns = world.clock.monotonic_ns() + int(seconds * SECOND)
        while world.clock.monotonic_ns() < end_ns:
            calls += 1
            try:
                world.ask()
                ok += 1
            except RemoteError:
                pass
            world.clock.advance_ns(10 * MS)
        return calls, ok

    calls, ok = traffic(30)
    assert ok == calls
    for how, took_ms in (("connect", 0.2), ("server", 1.0), (None, 1e9)):  # refused, failing, a black hole
        backend.fails, backend.took_ms = how, took_ms
        before, died_ns = backend.attempts, world.clock.monotonic_ns()
        calls, _ = traffic(60)
        assert backend.attempts - before <= 1.10 * calls
        opened = [change for change in world.changes if change[2] == "open"]
        assert opened, how
        assert world.remote.breaker_states() == {"sim-0": "open"}
        backend.fails, backend.took_ms = None, 1.0
        back_ns = world.clock.monotonic_ns()
        while world.remote.breaker_states() != {"sim-0": "closed"}:
            traffic(0.2)
            assert world.clock.monotonic_ns() - back_ns < 2 * 1.2 * 60 * SECOND
        assert died_ns < back_ns
        assert world.ask().shape == (2, 1)
        traffic(301)  # forget
        world.changes.clear()


def test_c59_breaker_opens_within_a_second_of_traffic():
    """A hundred calls a second, each refused, failing or unanswered: no more attempts after one second."""
    for fails, took_ms in (("connect", 0.1), ("malformed", 1.0), (None, 1e9)):
        world = World(timeout_ms=20)
        world.backends[0].fails, world.backends[0].took_ms = fails, took_ms
        while world.clock.monotonic_ns() < SECOND:
            world.kind(20)
            world.clock.advance_ns(10 * MS)
        assert world.remote.breaker_states() == {"sim-0": "open"}
        attempts = world.backends[0].attempts
        assert world.kind() == "open"
        assert world.backends[0].attempts == attempts
        part, before, after, why = world.changes[0]
        assert (part, before, after) == ("breaker sim-0 fraud", "closed", "open")
        assert why


def test_failed_attempt_is_made_once_more_elsewhere():
    """A refused connection is tried again at the other endpoint, after a short wait."""
    world = World(2)
    world.backends[0].fails = "connect"
    for _ in range(10):
        np.testing.assert_array_equal(world.ask(), SCORES)
    report = world.remote.report()
    assert report.retries == world.backends[0].attempts > 0
    assert max(world.waited, default=0) <= 0.002


@pytest.mark.parametrize(
    "kind", ["timeout", "malformed", "rejected", "not_finite", "truncated", "tls", "server"]
)
def test_answers_that_have_begun_are_not_asked_for_again(kind):
    """One attempt only: an answer had begun, or another attempt would give the same."""
    world = World(2)
    for backend in world.backends:
        backend.fails = kind
    assert world.kind() == kind
    assert sum(backend.attempts for backend in world.backends) == 1


def test_time_that_the_server_names_is_kept_or_there_is_no_retry(world):
    """Retry-After within the deadline is waited for; beyond it the call ends at once."""
    world.backends[0].fails, world.backends[0].retry_after_s = "overloaded", 0.010
    assert world.kind(50) == "overloaded"
    assert world.waited == [0.010]
    world.backends[0].retry_after_s = 1.0
    assert world.kind(50) == "overloaded"
    assert world.waited == [0.010]


def test_shadow_calls_get_one_attempt(world):
    """Nobody waits for them: no retry."""
    world.backends[0].fails = "connect"
    assert world.kind(shadow=True) == "connect"
    assert world.backends[0].attempts == 1


def test_attempts_over_a_dead_remote_stay_within_the_budget():
    """With the breaker off: a tenth more attempts than calls, one a second, and the first ten seconds' reserve."""
    world = World()
    world.remote.disable_breaker()
    world.backends[0].fails, world.backends[0].took_ms = "unavailable", 0.1
    calls = 0
    while world.clock.monotonic_ns() < 120 * SECOND:
        calls += 1
        world.kind()
        world.clock.advance_ns(5 * MS)
    assert world.backends[0].attempts <= 1.10 * calls + 130
    assert world.backends[0].attempts > 1.08 * calls


def test_starved_attempts_do_not_open_the_breaker():
    """A healthy remote that takes 20 ms is not blamed for callers who bring 5."""
    world = World()
    world.backends[0].took_ms = 20
    for _ in range(32):
        world.ask()
    for _ in range(100):
        assert world.kind(5) == "timeout"
    assert world.remote.breaker_states() == {"sim-0": "closed"}


def test_starved_attempts_of_a_dead_remote_open_it_all_the_same():
    """Without an answer for ten seconds nobody knows what is normal: timeouts count, however short their time was."""
    world = World(retries=0)
    world.backends[0].took_ms = 20
    for _ in range(32):
        world.ask()
    world.backends[0].took_ms = 1e9
    begin_ns = world.clock.monotonic_ns()
    while world.remote.breaker_states() == {"sim-0": "closed"}:
        assert world.kind(5) == "timeout"
        world.clock.advance_ns(50 * MS)
    assert 10 * SECOND <= world.clock.monotonic_ns() - begin_ns < 13 * SECOND


def test_rejected_calls_do_not_open_the_breaker(world):
    """A hundred answers of the 400s are our own mistake."""
    world.backends[0].fails = "rejected"
    for _ in range(100):
        assert world.kind() == "rejected"
    assert world.remote.breaker_states() == {"sim-0": "closed"}


def test_slow_answers_open_the_breaker():
    """Four of five calls above slow_ms: it opens although all were answered."""
    world = World(slow_ms=10)
    world.backends[0].took_ms = 15
    for _ in range(19):
        world.ask()
    assert world.remote.breaker_states() == {"sim-0": "closed"}
    world.ask()
    assert world.remote.breaker_states() == {"sim-0": "open"}


def test_operator_is_obeyed(world):
    """Forced open nobody is asked; disabled everybody is, whatever comes of it; resumed it decides again."""
    world.remote.force_open()
    assert world.kind() == "open"
    world.clock.advance_ns(3600 * SECOND)
    assert world.kind() == "open"
    world.remote.disable_breaker("sim-0")
    world.backends[0].fails = "server"
    for _ in range(100):
        assert world.kind() == "server"
    world.remote.resume()
    world.backends[0].fails = None
    world.ask()
    assert [change[2] for change in world.changes] == ["forced_open", "disabled", "closed"]
    with pytest.raises(ConfigError, match="Expected one of"):
        world.remote.force_open("nobody")


def test_c62_wall_clock_that_steps_changes_nothing(world):
    """An hour back and forth: deadlines and breakers use the monotonic clock."""
    world.ask()
    world.clock.step_wall_ns(-3600 * SECOND)
    world.ask()
    world.backends[0].fails = "connect"
    while world.remote.breaker_states() == {"sim-0": "closed"}:
        world.kind()
    world.clock.step_wall_ns(7200 * SECOND)
    assert world.kind() == "open"


def test_calls_go_round_and_past_an_endpoint_that_is_open():
    """Two healthy endpoints share the calls; when one fails the other takes them all."""
    world = World(2)
    for _ in range(20):
        world.ask()
    assert [backend.attempts for backend in world.backends] == [10, 10]
    world.remote.force_open("sim-0")
    for _ in range(10):
        world.ask()
    assert [backend.attempts for backend in world.backends] == [10, 20]


# --- hedging ----------------------------------------------------------------------------------------------------------


class Timed:
    """A back end of real time: waits, then answers or fails. Can be cancelled."""

    takes_cancel = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.delay_s = 0.0
        self.fails: str | None = None
        self.started = self.finished = self.cancelled = 0
        self._lock = threading.Lock()

    def infer(self, inputs, outputs, *, timeout_s, cancel=None):
        with self._lock:
            self.started += 1
        woken = threading.Event()
        if cancel is not None:
            cancel.wake_by(woken.set)
        try:
            if self.delay_s:
                woken.wait(min(self.delay_s, timeout_s))
            if cancel is not None and cancel.is_set:
                with self._lock:
                    self.cancelled += 1
                raise RemoteError("cancelled", kind="cancelled")
            if self.delay_s > timeout_s:
                raise RemoteError("too slow", kind="timeout")
            if self.fails is not None:
                raise RemoteError("told so", kind=self.fails)
            return mean_model(inputs)
        finally:
            if cancel is not None:
                cancel.wake_by(None)
            with self._lock:
                self.finished += 1


def known(remote: ri.Remote) -> None:
    """From now on calls are known to take 1 ms, and 150 ms are slow: a machine that stalls hedges nothing."""
    for target in remote._targets:
        target.latency = SimpleNamespace(
            p50_ns=MS, p95_ns=150 * MS, p99_ns=None, note=lambda took_ns: None, forget=lambda: None
        )


def hedged(**settings) -> tuple[ri.Remote, Timed, Timed]:
    """A hedging remote that has seen enough quick calls to pay for two hedges."""
    one, two = Timed("one"), Timed("two")
    remote = ri.Remote([one, two], model="fraud", hedge=True, timeout_ms=5_000, **settings)
    for _ in range(40):
        go(remote, shadow=True)  # paid for like any call, and never hedged
    known(remote)
    return remote, one, two


def go(remote: ri.Remote, ms: float = 5_000, **more):
    """One call."""
    end_ns = SystemClock.monotonic_ns() + int(ms * MS)
    return remote.infer({"features": ROWS}, ["score"], end_ns=end_ns, **more)["score"]


def quiet(remote: ri.Remote, *backends: Timed) -> None:
    """Nothing is left over once the losers are gone."""
    until(lambda: remote.report().in_flight == 0, what="places to be given back")
    assert all(one.started == one.finished for one in backends)


def test_slow_attempt_is_raced_by_one_at_the_other_endpoint():
    """The second wins, the first is cancelled, and nothing is held against it."""
    remote, one, two = hedged()
    one.delay_s = 3.0
    for _ in range(2):  # calls go round: at least one of two begins at the slow one
        begin_s = time.monotonic()
        np.testing.assert_array_equal(go(remote), SCORES)
        assert time.monotonic() - begin_s < 2.0
    quiet(remote, one, two)
    report = remote.report()
    assert 1 <= one.cancelled <= report.hedges
    assert remote.breaker_states() == {"one": "closed", "two": "closed"}
    assert report.endpoints[0].failures == {"cancelled": one.cancelled}


def test_hedges_are_paid_for():
    """One token for twenty calls: the third slow call in a row waits for its first attempt."""
    remote, one, two = hedged()
    one.delay_s = two.delay_s = 0.2
    for _ in range(5):
        go(remote)
    assert remote.report().hedges == 2
    quiet(remote, one, two)


def test_failed_first_attempt_is_followed_at_once_and_a_fatal_one_is_not():
    """UNAVAILABLE at one endpoint: the other is asked without waiting. Rejected: the call ends."""
    remote, one, two = hedged()
    one.fails = two.fails = "rejected"
    with pytest.raises(RemoteError) as caught:
        go(remote)
    assert caught.value.kind == "rejected"
    assert remote.report().hedges == 0
    two.fails, one.fails = None, "unavailable"
    for _ in range(2):
        np.testing.assert_array_equal(go(remote), SCORES)
    assert remote.report().hedges == 1
    quiet(remote, one, two)


def test_c63_both_attempts_fail_with_one_error():
    """The caller gets the first attempt's error; every place and permit is given back."""
    remote, one, two = hedged()
    one.fails = two.fails = "server"
    with pytest.raises(RemoteError) as caught:
        go(remote)
    assert caught.value.kind == "server"
    assert one.started + two.started == 42
    quiet(remote, one, two)


def test_black_hole_is_held_against_it_though_calls_are_hedged():
    """Attempts that run into the deadline are timeouts, not cancelled: the breaker opens."""
    remote, one, two = hedged()
    one.delay_s = two.delay_s = 100.0
    for _ in range(60):
        with pytest.raises(RemoteError):
            go(remote, 30)
        if set(remote.breaker_states().values()) == {"open"}:
            break
    until(lambda: set(remote.breaker_states().values()) == {"open"}, what="both breakers to open")
    quiet(remote, one, two)


def test_shadow_calls_and_calls_under_load_are_not_hedged():
    """No second attempt where nobody waits, or where this process is refusing calls."""
    remote, one, two = hedged()
    one.delay_s = two.delay_s = 0.2
    go(remote, shadow=True)
    go(remote, shedding=True)
    assert remote.report().hedges == 0


def test_c63_losers_that_finish_late_and_cancels_that_come_late_leave_nothing():
    """Ten thousand races in which both finish at almost the same moment: one right answer each, nothing left over."""
    remote, one, two = hedged(max_concurrency=16)
    chance = random.Random(5)
    threads_before = threading.active_count()
    wrong: list[object] = []
    # Every call may be a race, and nothing that fails ends the races.
    remote._hedge_budget = SimpleNamespace(deposit=lambda now_ns: None, withdraw=lambda now_ns: True)
    remote._throttle = SimpleNamespace(is_open=True, succeeded=lambda: None, failed=lambda: None)
    from retailinfer.resilience import hedge

    least, hedge._LEAST_NS = hedge._LEAST_NS, 1
    for target in remote._targets:
        target.latency = SimpleNamespace(
            p50_ns=1, p95_ns=1, p99_ns=1, note=lambda took_ns: None, forget=lambda: None
        )

    def work() -> None:
        for _ in range(2_500):
            one.delay_s, two.delay_s = chance.choice([0.0, 1e-5, 2e-4]), chance.choice([0.0, 1e-5, 2e-4])
            one.fails = chance.choice([None, None, "server"])
            try:
                if not np.array_equal(go(remote), SCORES):
                    wrong.append("scores")
            except RemoteError as exc:
                if exc.kind not in ("server", "busy"):  # losers hold their places until they are gone
                    wrong.append(exc)

    try:
        for target in remote._targets:
            target.breaker._min_calls = 10**9
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        hedge._LEAST_NS = least
    assert wrong == []
    quiet(remote, one, two)
    assert remote.report().hedges > 2_000
    assert one.cancelled + two.cancelled > 0
    assert threading.active_count() - threads_before <= 32


def test_hedging_over_http_leaves_no_connection_behind():
    """A loser's connection is closed, the winner's kept; the slow server is not waited for."""
    pytest.importorskip("urllib3")
    with OipServer() as slow, OipServer() as quick:
        remote = ri.Remote([slow.url, quick.url], model="fraud", hedge=True, timeout_ms=10_000)
        for _ in range(60):
            go(remote, 10_000, shadow=True)
        known(remote)
        slow.delay_s = 5.0
        begin_s = time.monotonic()
        for _ in range(2):
            np.testing.assert_array_equal(go(remote, 10_000), SCORES)
        assert time.monotonic() - begin_s < 4.0
        assert remote.report().hedges >= 1
        until(lambda: remote.report().in_flight == 0, what="the loser to end")
        assert [min(1, target.backend.n_idle) for target in remote._targets] == [0, 1]
        remote.close()


# --- servers, checks, processes ---------------------------------------------------------------------------------------


def test_check_compares_the_model_with_what_will_be_sent():
    """Names, types and shapes of every endpoint; afterwards replies are held to them."""
    pytest.importorskip("urllib3")
    inputs, outputs = {"features": (np.float32, (None, 4))}, {"score": ("float32", (-1, 1))}
    with OipServer() as server:
        remote = ri.Remote(server.url, model="fraud")
        remote.check(inputs, outputs)
        wrong = [
            ({"features": (np.float64, (None, 4))}, outputs, "Expected FP64"),
            ({"features": (np.float32, (None, 5))}, outputs, r"shape \[-1, 5\]"),
            ({"features": (np.float32, (4,))}, outputs, "got 'FP32' of shape"),
            ({"other": (np.float32, (None, 4))}, outputs, "declares the inputs"),
            (inputs, {"label": (np.int64, (None,))}, "does not declare it"),
            (inputs, {"score": ("string", (None, 1))}, "Expected numbers"),
        ]
        for ins, outs, message in wrong:
            with pytest.raises(SchemaMismatchError, match=message):
                remote.check(ins, outs)
        server.function = lambda inputs: {"score": np.zeros((2, 1))}
        with pytest.raises(RemoteError) as caught:
            go(remote)
        assert caught.value.kind == "mismatch"
        remote.close()


@pytest.mark.requires("urllib3")
def test_c59_real_server_that_dies_and_returns(own_mlserver):
    """MLServer killed and started again: the breaker opens, calls end at once, probes find it."""
    remote = ri.Remote(own_mlserver.url, model="fraud", timeout_ms=2_000)
    for target in remote._targets:  # the first wait of 5 s as 0.2 s
        target.breaker._first_wait_ns = SECOND // 5
    np.testing.assert_array_equal(go(remote), SCORES)
    own_mlserver.kill()
    begin_s = time.monotonic()
    while remote.breaker_states()[own_mlserver.url] != "open":
        with pytest.raises(RemoteError):
            go(remote)
    assert time.monotonic() - begin_s < 1.0
    attempts = remote.report().endpoints[0].attempts
    for _ in range(100):
        with pytest.raises(RemoteError):
            go(remote)
    assert remote.report().endpoints[0].attempts <= attempts + 3
    own_mlserver.start()

    def answers() -> bool:
        try:
            return go(remote).shape == (2, 1)
        except RemoteError:
            return False

    until(answers, what="probes to find the server")
    until(
        lambda: answers() and remote.breaker_states()[own_mlserver.url] == "closed",
        what="the breaker to close",
    )
    remote.close()


def test_c57_hostile_server_behind_a_remote_costs_the_deadline_at_most():
    """A byte a second: typed, in time, and after a few of them nobody is asked any more."""
    pytest.importorskip("urllib3")

    def drips(sock, request, stop):
        while not stop.wait(0.02):
            sock.sendall(b"H")

    with HostileServer(drips) as server:
        remote = ri.Remote(server.url, model="fraud", timeout_ms=100, binary=False)
        kinds = []
        for _ in range(30):
            begin_s = time.monotonic()
            with pytest.raises(RemoteError) as caught:
                go(remote)
            assert time.monotonic() - begin_s < 1.1
            kinds.append(caught.value.kind)
        asked = kinds.index("open")
        assert asked <= 20
        assert set(kinds[:asked]) <= {"timeout", "connect"}
        assert kinds[asked:] == ["open"] * (30 - asked)


FORKS = """
import os
import numpy as np
import retailinfer as ri
from model_servers import mean_model
from retailinfer.clock import SystemClock

rows = {"features": np.ones((2, 4), np.float32)}
want = mean_model(rows)["score"]
urls = [os.environ["SERVER_URL"], os.environ["NOBODY_URL"]]
remote = ri.Remote(urls, model="fraud", hedge=True, timeout_ms=20_000)

def ask():
    end_ns = SystemClock.monotonic_ns() + 20_000_000_000
    return np.array_equal(remote.infer(rows, ["score"], end_ns=end_ns)["score"], want)

remote.force_open(urls[1])
for _ in range(20):
    assert ask()
chance = remote._random.random()
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        fresh, states = remote.report(), list(remote.breaker_states().values())
        fine = fresh.calls == 0 and states == ["closed", "forced_open"] and remote._random.random() != chance
        os._exit(0 if fine and ask() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert ask()
remote.close()
print("well")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork")
def test_forked_child_begins_with_nothing_of_its_parents():
    """Breaker closed, counts at zero, other chances, threads of its own; an operator's word is kept."""
    pytest.importorskip("urllib3")
    with OipServer() as server:
        nobody = f"http://127.0.0.1:{free_port()}"
        quiet = {"PYTHONWARNINGS": "ignore::DeprecationWarning"}  # newer Pythons warn of forks beside threads
        assert run_script(FORKS, SERVER_URL=server.url, NOBODY_URL=nobody, **quiet) == "well"


def test_remote_is_freed_with_its_last_reference_and_cannot_be_copied():
    """No thread, hook or registry keeps it."""
    remote, *_ = hedged()
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(remote)
    ref = weakref.ref(remote)
    quiet(remote)
    del remote
    until(lambda: gc.collect() is not None and ref() is None, what="the remote to be freed")


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["http://a"], {}, "name that the model has"),
        ([], {"model": "m"}, "at least one endpoint"),
        ([7], {"model": "m"}, "back ends with a method infer"),
        (["ftp://a"], {"model": "m"}, "Expected the URL"),
        (["http://a"], {"model": "m", "hedge": True}, "two endpoints to hedge"),
        (["http://a"], {"model": "m", "hedge": "yes"}, "hedge="),
        (["http://a"], {"model": "m", "retries": 2}, "retries=0 or 1"),
        (["http://a"], {"model": "m", "timeout_ms": 0}, "timeout_ms"),
        (["http://a"], {"model": "m", "timeout_ms": float("nan")}, "timeout_ms"),
        (["http://a"], {"model": "m", "max_concurrency": 0}, "max_concurrency"),
        (["http://a"], {"model": "m", "slow_ms": -1}, "slow_ms"),
        (["http://a"], {"model": "m", "max_reply_bytes": 0}, "max_reply_bytes"),
    ],
)
def test_settings_that_mean_nothing_are_refused(arguments, settings, message):
    """A ConfigError says what was expected."""
    with pytest.raises(ConfigError, match=message):
        ri.Remote(arguments, **settings)


@pytest.mark.parametrize(("url", "package"), [("http://a", "urllib3"), ("grpc://a", "grpcio")])
def test_missing_packages_are_named(url, package, monkeypatch):
    """Without the extra, what to install is said."""
    module = {"urllib3": "http", "grpcio": "grpc"}[package]
    monkeypatch.setitem(sys.modules, f"retailinfer.resilience.remote.{module}", None)
    with pytest.raises(ConfigError, match=rf"needs the package {package}; pip install retailinfer\["):
        ri.Remote(url, model="m")
