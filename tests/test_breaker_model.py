"""The circuit breaker against a twin that remembers every outcome with its time and counts them anew for every question.

Rules:
  * 100,000 steps of a walk whose seed is in its name: outcomes, times, lost probes, late answers, an operator.
  * The walk must have been everywhere: each transition that the state diagram has, and HALF_OPEN for one step of twenty.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from retailinfer.errors import ConfigError
from retailinfer.resilience.breaker import Breaker, Outcome, State

SECOND = 1_000_000_000
ALL = set(itertools.product(State, State))
OPERATOR = {(a, b) for a, b in ALL if b in (State.FORCED_OPEN, State.DISABLED)} | {
    (a, State.CLOSED) for a in State
}
AUTOMATIC = {
    (State.CLOSED, State.OPEN),
    (State.OPEN, State.HALF_OPEN),
    (State.HALF_OPEN, State.OPEN),
    (State.HALF_OPEN, State.CLOSED),
}


class Twin:
    """The rules, written down as they are said: no buckets, no running sums, no generations."""

    def __init__(self, probes: int, slow_ns: int) -> None:
        self.probes, self.slow_ns = probes, slow_ns
        self.state = State.CLOSED
        self.since_ns = 0
        self.outcomes: list[tuple[int, Outcome, bool]] = []  # since CLOSED began
        self.times = 0
        self.valid: dict[object, int] = {}  # tickets that may still change something -> when each ends
        self.out: dict[object, int] = {}  # probes that hold a place
        self.successes = 0
        self.opened_ns = 0

    def _to(self, state: State, now_ns: int) -> None:
        self.state, self.since_ns = state, now_ns
        self.valid, self.out, self.outcomes, self.successes = {}, {}, [], 0

    def wait_bounds(self) -> tuple[float, float]:
        wait = min(5 * SECOND * 2 ** (self.times - 1), 60 * SECOND)
        return 0.8 * wait, 1.2 * wait

    def may(self, now_ns: int) -> bool | None:
        """Whether a call may be made; None where chance decides."""
        if self.state in (State.CLOSED, State.DISABLED):
            return True
        if self.state is State.FORCED_OPEN:
            return False
        if self.state is State.OPEN:
            least, most = self.wait_bounds()
            passed = now_ns - self.opened_ns
            return None if least - 1 <= passed <= most + 1 else passed > most
        return sum(ends > now_ns for ends in self.out.values()) < self.probes

    def admitted(self, ticket: object, now_ns: int, end_ns: int) -> None:
        if self.state is State.OPEN:
            self._to(State.HALF_OPEN, now_ns)
        self.valid[ticket] = max(end_ns, now_ns + 1)
        if self.state is State.HALF_OPEN:
            self.out[ticket] = max(end_ns, now_ns + 1)

    def _open(self, now_ns: int) -> None:
        if self.state is State.CLOSED and now_ns - self.since_ns >= 300 * SECOND:
            self.times = 0
        self.times += 1
        self._to(State.OPEN, now_ns)
        self.opened_ns = now_ns

    def told(self, ticket: object, outcome: Outcome, now_ns: int, took_ns: int) -> None:
        if ticket not in self.valid:
            return
        if self.state is State.CLOSED and outcome is not Outcome.IGNORED:
            self.outcomes.append((now_ns, outcome, outcome is Outcome.SUCCESS and took_ns > self.slow_ns))
            if [o for _, o, _ in self.outcomes[-5:]] == [Outcome.UNREACHED] * 5:
                self._open(now_ns)
                return
            # ten whole buckets of a second: this second and the nine before it
            recent = [one for one in self.outcomes if one[0] // SECOND > now_ns // SECOND - 10]
            failed = sum(o is not Outcome.SUCCESS for _, o, _ in recent)
            slow = sum(one[2] for one in recent)
            if len(recent) >= 20 and (failed >= 0.5 * len(recent) or slow >= 0.8 * len(recent)):
                self._open(now_ns)
        elif self.state is State.HALF_OPEN:
            ends = self.out.pop(ticket, None)
            if outcome in (Outcome.FAILURE, Outcome.UNREACHED):
                self._open(now_ns)
            elif outcome is Outcome.SUCCESS and ends is not None and ends > now_ns:
                self.successes += 1
                if self.successes == 3:
                    self._to(State.CLOSED, now_ns)

    def operator(self, state: State, now_ns: int) -> None:
        self._to(state, now_ns)
        if state is State.CLOSED:
            self.times = 0


class Pair:
    """Both, told the same."""

    def __init__(self, seed: int, probes: int) -> None:
        self.now_ns = seed * SECOND // 7
        self.breaker = Breaker(
            chance=random.Random(seed), now_ns=self.now_ns, probes=probes, slow_ns=10_000_000
        )
        self.twin = Twin(probes, 10_000_000)
        self.twin.since_ns = self.now_ns
        self.tickets: list[int] = []
        self.seen: Counter[tuple[State, State]] = Counter()

    def ask(self, length_ns: int) -> None:
        want, would = self.twin.may(self.now_ns), self.breaker.would_admit(self.now_ns)
        permit = self.breaker.admit(self.now_ns, self.now_ns + length_ns)
        assert (permit is not None) is would
        assert want is None or want is would
        if permit is not None:
            self.twin.admitted(permit, self.now_ns, self.now_ns + length_ns)
            if permit not in self.tickets[-1:]:  # while CLOSED one value serves all calls
                self.tickets.append(permit)
        self.check()

    def tell(self, which: int, outcome: Outcome, took_ns: int) -> None:
        permit = self.tickets[which]
        self.breaker.record(permit, outcome, self.now_ns, took_ns)
        self.twin.told(permit, outcome, self.now_ns, took_ns)
        self.check()

    def operate(self, state: State) -> None:
        how = {
            State.FORCED_OPEN: self.breaker.force_open,
            State.DISABLED: self.breaker.disable,
            State.CLOSED: self.breaker.resume,
        }[state]
        how(self.now_ns)
        self.twin.operator(state, self.now_ns)
        self.check()

    def check(self) -> None:
        assert self.breaker.state is self.twin.state
        for move in self.breaker.take_moves():
            self.seen[move.before, move.after] += 1
            assert move.now_ns == self.now_ns


@pytest.mark.parametrize(("seed", "probes"), [(1, 3), (2, 1), (3, 3), (4, 3)])
def test_breaker_equals_its_twin_over_100_000_steps(seed: int, probes: int):
    """Every answer and every state are the twin's; every transition happens; 5 % of the steps are half-open."""
    chance = random.Random(seed)
    pair = Pair(seed, probes)
    where: Counter[State] = Counter()
    mood = 0.0  # share of calls that fail: phases of health and of trouble, as services have them
    for step in range(100_000):
        if step % 150 == 0:
            mood = chance.choice([0.0, 0.02, 0.5, 0.95])
            slow = chance.random() < 0.2
            far = chance.random() < 0.5  # failures of this phase are below the protocol
        where[pair.breaker.state] += 1
        if pair.breaker.state in (State.FORCED_OPEN, State.DISABLED) and chance.random() < 0.05:
            pair.operate(State.CLOSED)
        what = chance.random() if pair.breaker.state is not State.OPEN else chance.uniform(0.3, 1.0)
        if what < 0.45:
            pair.ask(chance.choice([0, 5_000_000, 30_000_000, 2 * SECOND]))
        elif what < 0.9 and pair.tickets:
            recent = chance.random() < 0.9
            which = -1 - min(int(chance.expovariate(1.0)), len(pair.tickets) - 1) if recent else 0
            if chance.random() < 0.05:
                outcome = Outcome.IGNORED
            elif chance.random() < (0.4 * mood if pair.breaker.state is State.HALF_OPEN else mood):
                outcome = Outcome.UNREACHED if far else Outcome.FAILURE
            else:
                outcome = Outcome.SUCCESS
            pair.tell(which, outcome, 20_000_000 if slow else 1_000_000)
        elif what < 0.9985:
            if pair.breaker.state is State.OPEN:
                pair.now_ns += chance.choice([SECOND, 10 * SECOND, 40 * SECOND])
            else:
                pair.now_ns += chance.choice([1, 1_000_000, 40_000_000, 300_000_000, SECOND])
        elif what < 0.9995:
            pair.now_ns += chance.choice([11 * SECOND, 301 * SECOND])
        else:
            pair.operate(chance.choice([State.FORCED_OPEN, State.DISABLED, State.CLOSED, State.CLOSED]))
        del pair.tickets[:-40]
    assert where[State.HALF_OPEN] >= 5_000, where
    assert set(pair.seen) <= AUTOMATIC | OPERATOR
    assert set(pair.seen) >= AUTOMATIC, pair.seen


def test_walks_have_been_through_every_transition():
    """Also those that only an operator makes, from every state into each of his."""
    pair = Pair(9, 3)
    for before, after in sorted(OPERATOR, key=str):
        _bring(pair, before)
        pair.operate(after)
    assert set(pair.seen) == AUTOMATIC | OPERATOR


def _bring(pair: Pair, state: State) -> None:
    """Into a state, from CLOSED."""
    pair.operate(State.CLOSED)
    if state in (State.OPEN, State.HALF_OPEN):
        pair.ask(SECOND)
        for _ in range(5):
            pair.tell(-1, Outcome.UNREACHED, 0)
    if (
        state is State.HALF_OPEN
    ):  # once refused again, then on the way back, so that all automatic moves are made
        pair.now_ns += 10 * SECOND
        pair.ask(SECOND)
        pair.tell(-1, Outcome.FAILURE, 0)
        pair.now_ns += 20 * SECOND
        for _ in range(3):
            pair.ask(SECOND)
            pair.tell(-1, Outcome.SUCCESS, 0)
        for _ in range(5):
            pair.ask(SECOND)
            pair.tell(-1, Outcome.UNREACHED, 0)
        pair.now_ns += 40 * SECOND
        pair.ask(SECOND)
    if state in (State.FORCED_OPEN, State.DISABLED):
        pair.operate(state)
    assert pair.breaker.state is state


class BreakerMachine(RuleBasedStateMachine):
    """The same pair under hypothesis, which shortens what goes wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(5, 3)

    @rule(length_ms=st.sampled_from([0, 30, 2_000]))
    def ask(self, length_ms):
        self.pair.ask(length_ms * 1_000_000)

    @precondition(lambda self: self.pair.tickets)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(Outcome),
        slow=st.booleans(),
        times=st.sampled_from([1, 5, 20]),
    )
    def tell(self, data, outcome, slow, times):
        which = data.draw(st.integers(0, len(self.pair.tickets) - 1))
        for _ in range(times):
            self.pair.tell(which, outcome, 20_000_000 if slow else 0)

    @rule(ms=st.sampled_from([1, 999, 1_000, 4_000, 6_000, 10_000, 72_000, 300_000]))
    def wait(self, ms):
        self.pair.now_ns += ms * 1_000_000

    @rule(state=st.sampled_from([State.FORCED_OPEN, State.DISABLED, State.CLOSED]))
    def operate(self, state):
        self.pair.operate(state)

    @invariant()
    def same(self):
        self.pair.check()


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(stateful_step_count=60)


def tripped(now_ns: int = 0, probes: int = 3) -> Breaker:
    """A breaker that has just opened."""
    breaker = Breaker(chance=random.Random(0), now_ns=now_ns, probes=probes)
    for _ in range(5):
        breaker.record(breaker.admit(now_ns, now_ns + 1) or 0, Outcome.UNREACHED, now_ns)
    assert breaker.state is State.OPEN
    return breaker


def test_waits_double_up_to_a_minute_and_are_spread():
    """5, 10, 20, 40, 60, 60 s, each times 0.8 to 1.2, and not twice the same."""
    waits = []
    for seed in range(40):
        breaker = Breaker(chance=random.Random(seed), now_ns=0)
        now_ns = 0
        for _ in range(5):
            breaker.record(0, Outcome.UNREACHED, 0)
        row = []
        for _ in range(6):
            opened_ns = now_ns
            while (permit := breaker.admit(now_ns, now_ns + SECOND)) is None:
                now_ns += SECOND // 20
            row.append((now_ns - opened_ns) / SECOND)
            breaker.record(permit, Outcome.FAILURE, now_ns)
        waits.append(row)
    for place, base in enumerate([5, 10, 20, 40, 60, 60]):
        column = [row[place] for row in waits]
        assert 0.8 * base <= min(column) < 0.87 * base
        assert 1.13 * base < max(column) <= 1.2 * base + 0.05


def test_five_minutes_closed_make_the_first_wait_short_again():
    """Trouble of an hour ago says nothing about how long to wait now."""
    breaker = tripped()
    now_ns = 7 * SECOND
    for _ in range(3):
        breaker.record(breaker.admit(now_ns, now_ns + SECOND) or 0, Outcome.SUCCESS, now_ns)
    assert breaker.state is State.CLOSED
    now_ns += 301 * SECOND
    for _ in range(5):
        breaker.record(breaker.admit(now_ns, now_ns + 1) or 0, Outcome.UNREACHED, now_ns)
    assert not breaker.would_admit(now_ns + 3 * SECOND)
    assert breaker.would_admit(now_ns + 6 * SECOND + 1)


def test_c60_lost_probe_gives_its_place_back_when_its_deadline_passes():
    """Three probes that never report hold HALF_OPEN up until their deadline, and no longer."""
    breaker = tripped()
    now_ns = 7 * SECOND
    permits = [breaker.admit(now_ns, now_ns + 30_000_000) for _ in range(4)]
    assert [permit is not None for permit in permits] == [True, True, True, False]
    assert breaker.admit(now_ns + 29_999_999, now_ns + SECOND) is None
    later_ns = now_ns + 30_000_000
    fresh = [breaker.admit(later_ns, later_ns + SECOND) for _ in range(3)]
    assert None not in fresh
    for permit in fresh:
        breaker.record(permit or 0, Outcome.SUCCESS, later_ns + 1)
    assert breaker.state is State.CLOSED


def test_c60_late_success_of_an_old_generation_changes_nothing():
    """An answer to a call from before it opened, or to a probe whose time is over, closes nothing."""
    breaker = Breaker(chance=random.Random(0), now_ns=0)
    old = breaker.admit(0, SECOND) or 0
    for _ in range(5):
        breaker.record(old, Outcome.UNREACHED, 0)
    now_ns = 7 * SECOND
    probe = breaker.admit(now_ns, now_ns + 1_000) or 0
    for _ in range(3):
        breaker.record(old, Outcome.SUCCESS, now_ns)
        breaker.record(probe, Outcome.SUCCESS, now_ns + 1_000)
    assert breaker.state is State.HALF_OPEN


def test_failed_probe_opens_again_even_when_it_ran_out_of_its_time():
    """Probes of a black hole fail by timeout: that is an answer too."""
    breaker = tripped()
    probe = breaker.admit(7 * SECOND, 7 * SECOND + 1_000) or 0
    breaker.record(probe, Outcome.FAILURE, 7 * SECOND + 2_000)
    assert breaker.state is State.OPEN


def test_ignored_outcomes_count_for_nothing():
    """A thousand calls that were our own fault neither trip it nor hide five that did not get through."""
    breaker = Breaker(chance=random.Random(0), now_ns=0)
    for i in range(4):
        breaker.record(0, Outcome.UNREACHED, i)
        for _ in range(250):
            breaker.record(0, Outcome.IGNORED, i)
    assert breaker.state is State.CLOSED
    breaker.record(0, Outcome.UNREACHED, 5)
    assert breaker.state is State.OPEN


def test_threads_may_ask_while_others_report():
    """Asking needs no lock while CLOSED: whoever gets a permit of a state that is over reports into the void."""
    breaker = Breaker(chance=random.Random(0), now_ns=0)
    lock, stop, wrong = threading.Lock(), threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            permit = breaker.admit(0, 1)
            if permit is not None and not isinstance(permit, int):
                wrong.append(permit)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        with lock:
            for _ in range(5):
                breaker.record(breaker.generation << 20, Outcome.UNREACHED, 0)
            breaker.resume(0)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "settings", [{"probes": 0}, {"min_calls": 0}, {"first_wait_ns": 0}, {"most_wait_ns": 1}], ids=str
)
def test_settings_that_mean_nothing_are_refused(settings):
    """A breaker that could never close, or never wait, is not made."""
    with pytest.raises(ConfigError, match="Expected at least 1 probe"):
        Breaker(chance=random.Random(0), now_ns=0, **settings)
