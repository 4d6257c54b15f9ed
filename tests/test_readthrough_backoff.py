"""Backoff, the door to a back end that fails: every transition on a clock that is a number, and a model for all others."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from retailinfer.store.backoff import Backoff, State

MS = 1_000_000
SECOND = 1_000 * MS


def closed(now_ns: int = 0, **settings_) -> Backoff:
    """A door that three failures have closed at this moment; waits are not shortened by chance."""
    door = Backoff(**{"jitter": 0.0, **settings_})
    for _ in range(3):
        door.failed(door.admit(now_ns), now_ns)
    assert door.state is State.CLOSED
    return door


def test_three_failures_in_a_row_close_the_door():
    """Two do not, nor do any number with a success between them."""
    door = Backoff()
    for _ in range(20):
        assert not door.failed(door.admit(0), 0)
        assert not door.failed(door.admit(0), 0)
        assert not door.succeeded(door.admit(0))
    assert [door.failed(door.admit(0), 0) for _ in range(3)] == [False, False, True]
    assert door.admit(1) is None


def test_one_probe_at_a_time():
    """After the wait one call is let through, and no other until it has reported back."""
    door = closed()
    assert door.admit(50 * MS - 1) is None
    assert not door.would_admit(50 * MS - 1)
    assert door.would_admit(50 * MS)
    probe = door.admit(50 * MS)
    assert probe is not None
    assert door.state is State.PROBING
    assert [door.admit(60 * MS), door.admit(90 * MS)] == [None, None]
    assert door.succeeded(probe)
    assert door.admit(90 * MS) is not None


def test_waits_double_up_to_a_second_and_start_anew_after_a_success():
    """50, 100, 200, 400, 800, 1,000, 1,000 ms; then 50 again."""
    door, now, waits = closed(), 0, []
    for _ in range(7):
        wait = next(ms for ms in range(2_000) if door.would_admit(now + ms * MS))
        waits.append(wait)
        now += wait * MS
        assert door.failed(door.admit(now), now)
    assert waits == [50, 100, 200, 400, 800, 1000, 1000]
    now += SECOND
    assert door.succeeded(door.admit(now))
    for _ in range(3):
        door.failed(door.admit(now), now)
    assert not door.would_admit(now + 49 * MS)
    assert door.would_admit(now + 50 * MS)


def test_probe_that_never_reports_back_does_not_keep_the_door_closed():
    """Its permit expires, the next probe is let through, and its own late outcome changes nothing."""
    door = closed(probe_ns=SECOND)
    lost = door.admit(50 * MS)
    assert door.admit(50 * MS + SECOND - 1) is None
    second = door.admit(50 * MS + SECOND)
    assert second is not None
    assert not door.failed(lost, 2 * SECOND)
    assert not door.succeeded(lost)
    assert door.state is State.PROBING
    assert door.succeeded(second)


def test_outcomes_from_before_the_door_closed_change_nothing():
    """Neither a late success nor a late failure of an older generation counts."""
    door = Backoff(jitter=0.0)
    early = door.admit(0)
    for _ in range(3):
        door.failed(door.admit(0), 0)
    assert not door.succeeded(early)
    assert not door.failed(early, 40 * MS)
    assert door.state is State.CLOSED
    assert door.would_admit(50 * MS)


def test_chance_shortens_waits_by_at_most_its_share():
    """Processes that failed together come back at different moments, none later than without it."""
    waits = []
    for seed in range(200):
        door = closed(jitter=0.2, chance=random.Random(seed))
        waits.append(next(us for us in range(39_000, 60_000) if door.would_admit(us * 1_000)))
    assert 40_000 <= min(waits) < 42_000
    assert 48_000 < max(waits) <= 50_000


def test_reset_opens_the_door_and_forgets_permits():
    """A forked child begins with an open door; what its parent's calls report does not reach it."""
    door = closed()
    probe = door.admit(SECOND)
    door.reset()
    assert door.state is State.OPEN
    assert not door.failed(probe, SECOND)
    assert door.admit(0) is not None


class DoorModel(RuleBasedStateMachine):
    """Any order of calls, outcomes (late ones too) and time, against what the rules say."""

    def __init__(self) -> None:
        super().__init__()
        self.door = Backoff(jitter=0.2, chance=random.Random(1))
        self.now = 0
        self.permits: list[tuple[int, bool]] = []  # permit, whether it was a probe's
        self.failures = 0
        self.closed_at: int | None = None
        self.wait = 50 * MS

    @rule(step=st.sampled_from([0, 1, MS, 39 * MS, 50 * MS, 300 * MS, SECOND, 3 * SECOND]))
    def time_passes(self, step: int) -> None:
        self.now += step

    @rule()
    def call(self) -> None:
        state, would = self.door.state, self.door.would_admit(self.now)
        permit = self.door.admit(self.now)
        assert (permit is not None) is would
        if permit is not None:
            assert self.door.state is (State.OPEN if state is State.OPEN else State.PROBING)
            self.permits.append((permit, state is not State.OPEN))
        elif state is State.CLOSED:
            assert self.closed_at is not None
            assert self.now < self.closed_at + self.wait

    @precondition(lambda self: self.permits)
    @rule(data=st.data(), good=st.booleans())
    def outcome(self, data: st.DataObject, good: bool) -> None:
        permit, _probe = self.permits.pop(data.draw(st.integers(0, len(self.permits) - 1)))
        before, current = self.door.state, permit == self.door.generation
        changed = self.door.succeeded(permit) if good else self.door.failed(permit, self.now)
        if not current:
            assert (changed, self.door.state) == (False, before)
        elif good:
            assert self.door.state is State.OPEN
            assert changed == (before is not State.OPEN)
            self.failures, self.wait = 0, 50 * MS
        elif before is State.OPEN:
            self.failures += 1
            assert changed == (self.failures == 3)
            if changed:
                self.failures, self.closed_at = 0, self.now
        else:
            assert changed
            self.wait, self.closed_at = min(2 * self.wait, SECOND), self.now

    @invariant()
    def never_closed_for_more_than_its_wait(self) -> None:
        later = self.now + SECOND
        assert self.door.would_admit(later)


TestDoor = DoorModel.TestCase
TestDoor.settings = settings(stateful_step_count=60)
