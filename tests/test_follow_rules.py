"""What a follower does next: every combination of a small world, and long stories against a model."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from retailinfer.release.following import (
    PAUSE_S,
    Failure,
    LocalRollback,
    decide,
    failed_again,
    is_newer,
    rollback_holds,
)
from retailinfer.release.statements import Pointer

MOMENT = "2026-11-29T12:00:00Z"
A, B, C = "a" * 64, "b" * 64, "c" * 64


def pointer(seq: int, champion: str | None = A, *, epoch: int = 1, hold: str | None = None) -> Pointer:
    """A pointer of a name."""
    return Pointer(
        name="fraud",
        environment="production",
        epoch=epoch,
        seq=seq,
        issued=MOMENT,
        who="anna",
        why="because",
        champion=champion,
        hold=hold,
    )


def rollback(left: str, to: str, seq: int, epoch: int = 1) -> LocalRollback:
    """An operator went back."""
    return LocalRollback(left=left, to=to, epoch=epoch, seq=seq, why="queue too long", at=MOMENT)


POINTERS = [None, pointer(1, None)] + [
    pointer(seq, champion, epoch=epoch, hold=hold)
    for seq, epoch in ((1, 1), (2, 1), (1, 2))
    for champion in (A, B)
    for hold in (None, "stop")
]
ROLLBACKS = [None, *(rollback(left, to, seq) for left, to in ((A, B), (B, A), (A, C)) for seq in (1, 2))]
FAILURES: list[dict[str, Failure]] = [{}, {A: Failure(1, 100)}, {A: Failure(3, 100), B: Failure(1, 5)}]
WORLD = list(
    itertools.product(
        POINTERS,
        (None, A, B),  # running
        (None, A, B),  # resident
        [None, pointer(1, A), pointer(2, B), pointer(1, A, epoch=2)],  # followed
        ROLLBACKS,
        FAILURES,
        (10, 100),  # now
    )
)


def test_every_combination_of_a_small_world():
    """Said as properties, not as the code says it; each kind of step comes up often."""
    seen: dict[str, int] = {}
    for new, running, resident, followed, local, failures, now in WORLD:
        step = decide(
            new,
            running=running,
            resident=resident,
            followed=followed,
            rollback=local,
            failures=failures,
            now_ns=now,
        )
        seen[step.kind] = seen.get(step.kind, 0) + 1
        number = None if new is None else (new.epoch, new.seq)
        before = None if followed is None else (followed.epoch, followed.seq)
        backwards = before is not None and (
            number is None or number < before or (number == before and new != followed)
        )
        assert (step.kind == "refuse") == backwards
        if backwards:
            assert step.digest is None
            continue
        # An operator's rollback wins until the number moves on, and over a mere hold of what was left.
        wins = local is not None and (
            number is None
            or number <= (local.epoch, local.seq)
            or (new is not None and new.hold is not None and new.champion == local.left)
        )
        assert step.rolled_back == wins
        want = local.to if wins and local is not None else None if new is None else new.champion
        assert step.digest == want
        if want is None:
            assert step.kind == "stay"
        elif want == running:
            moved = number is not None and (before is None or number > before)
            assert step.kind == ("accept" if moved else "stay")
        elif want == resident:
            assert step.kind == "recall"
        else:
            waits = want in failures and now < failures[want].again_ns
            assert step.kind == ("wait" if waits else "load")
        assert step.why
    assert len(WORLD) > 10_000
    assert min(seen[kind] for kind in ("stay", "accept", "recall", "load", "wait", "refuse")) > 100


def test_pauses_double_up_to_an_hour():
    """And differ between processes, by a quarter."""
    failure, pauses = None, []
    for _ in range(30):
        failure = failed_again(failure, now_ns=0, jitter=0.5)
        pauses.append(failure.again_ns / 1e9)
    assert pauses[:4] == [30, 60, 120, 240]
    assert pauses[-1] == PAUSE_S[1]
    assert failed_again(None, now_ns=0, jitter=0.0).again_ns == 22_500_000_000
    assert failed_again(None, now_ns=0, jitter=1.0).again_ns == 37_500_000_000
    assert failed_again(None, now_ns=7, jitter=0.5, pause_s=100).again_ns == 100_000_000_007


def test_a_new_epoch_is_newer_than_any_number():
    """Keys were exchanged: numbers begin again."""
    assert is_newer(pointer(1, epoch=2), pointer(2**60))
    assert not is_newer(pointer(2**60), pointer(1, epoch=2))


@pytest.mark.parametrize(
    ("new", "holds"),
    [
        (pointer(7, A), True),
        (pointer(8, A), False),
        (pointer(8, A, hold="incident"), True),  # held meanwhile: nothing was decided about it
        (pointer(8, C, hold="incident"), False),  # rolled back in the registry, and held
        (pointer(1, A, epoch=2), False),
        (None, True),
    ],
)
def test_when_a_local_rollback_ends(new, holds):
    """With the next number, unless that only holds what was left."""
    assert rollback_holds(rollback(A, B, 7), new) is holds


class FollowerModel(RuleBasedStateMachine):
    """A registry that moves, a host that follows it with accidents, an operator on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Pointer] = []
        self.bad: set[str] = set()
        self.running: str | None = None
        self.resident: str | None = None
        self.followed: Pointer | None = None
        self.local: LocalRollback | None = None
        self.failures: dict[str, Failure] = {}
        self.now_ns = 0
        self.loads: list[tuple[int, str]] = []
        self.numbers: list[tuple[int, int]] = []

    def move(self, champion: str | None, hold: str | None = None, epoch: int | None = None) -> None:
        last = self.history[-1] if self.history else None
        at = last.epoch if last is not None else 1
        if epoch is not None and epoch > at:
            self.history.append(pointer(1, champion, epoch=epoch, hold=hold))
        else:
            self.history.append(
                pointer(last.seq + 1 if last is not None else 1, champion, epoch=at, hold=hold)
            )

    @rule(champion=st.sampled_from([A, B, C]))
    def promote(self, champion: str) -> None:
        self.move(champion)

    @precondition(lambda self: self.history)
    @rule(why=st.sampled_from([None, "stop"]))
    def hold_or_resume(self, why: str | None) -> None:
        self.move(self.history[-1].champion, why)

    @precondition(lambda self: self.history)
    @rule()
    def new_keys(self) -> None:
        self.move(self.history[-1].champion, epoch=self.history[-1].epoch + 1)

    @rule(which=st.sampled_from([A, B, C]), breaks=st.booleans())
    def release_breaks_or_is_mended(self, which: str, breaks: bool) -> None:
        (self.bad.add if breaks else self.bad.discard)(which)

    @rule(seconds=st.integers(1, 4000))
    def time_passes(self, seconds: int) -> None:
        self.now_ns += seconds * 10**9

    @precondition(lambda self: self.running and self.resident and self.followed)
    @rule()
    def operator_goes_back(self) -> None:
        assert self.running is not None
        assert self.resident is not None
        assert self.followed is not None
        self.local = LocalRollback(
            left=self.running,
            to=self.resident,
            epoch=self.followed.epoch,
            seq=self.followed.seq,
            why="3 a.m.",
            at=MOMENT,
        )
        self.running, self.resident = self.resident, self.running

    @rule(back=st.integers(0, 3))
    def poll(self, back: int) -> None:
        """`back`: somebody shows an older pointer, or none."""
        shown = self.history[-1 - back] if back < len(self.history) else None
        before = (self.running, self.resident, self.followed)
        step = decide(
            shown,
            running=self.running,
            resident=self.resident,
            followed=self.followed,
            rollback=self.local,
            failures=self.failures,
            now_ns=self.now_ns,
        )
        if step.kind == "load":
            assert step.digest is not None
            self.loads.append((self.now_ns, step.digest))
            if step.digest in self.bad:
                self.failures[step.digest] = failed_again(
                    self.failures.get(step.digest), now_ns=self.now_ns, jitter=0.5
                )
                assert (self.running, self.resident, self.followed) == before
                return
            self.failures.pop(step.digest, None)
            self.running, self.resident = step.digest, self.running
        elif step.kind == "recall":
            assert step.digest == self.resident
            self.running, self.resident = self.resident, self.running
        if step.kind in ("load", "recall", "accept") and shown is not None:
            self.followed = shown
            self.numbers.append((shown.epoch, shown.seq))
        if not step.rolled_back and step.kind not in ("refuse", "wait"):
            self.local = None
        if (
            step.kind in ("stay", "accept", "load", "recall")
            and shown is not None
            and shown.champion is not None
        ):
            assert self.running == (shown.champion if self.local is None else self.local.to)

    @invariant()
    def numbers_only_grow(self) -> None:
        assert self.numbers == sorted(self.numbers)

    @invariant()
    def a_bad_release_is_not_hammered(self) -> None:
        """Between two tries that failed lies a pause of 30 s at least."""
        for digest in self.failures:
            tries = [at for at, which in self.loads if which == digest][-self.failures[digest].n :]
            assert all(b - a >= 30 * 10**9 * 0.75 for a, b in itertools.pairwise(tries))


TestFollowerModel = FollowerModel.TestCase
TestFollowerModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
