"""What a process does that follows a registry's pointer: pure rules. What is known goes in, one step comes out.

Rules:
  * The champion of the newest pointer answers. Its number only grows: an older pointer, or another one with the same number,
    changes nothing.
  * An operator's rollback in this place wins over the pointer that was in force then, until the pointer's number moves on.
    A pointer that was only held meanwhile has decided nothing: while it is held and names the release that was left, the
    rollback stays.
  * A release that failed is not tried again before its pause is over; pauses double. What answers now goes on.
  * What is in memory already is not loaded again.
The thread that does it is serving/follower.py; what stays on disk is last_good.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from retailinfer.errors import clip
from retailinfer.release.statements import Digest, Moment, Pointer, Text

__all__ = [
    "PAUSE_S",
    "Failure",
    "LocalRollback",
    "Step",
    "decide",
    "failed_again",
    "is_newer",
    "rollback_holds",
]

PAUSE_S = (30.0, 3600.0)  # after the first failure of a release, and at most

Kind = Literal["stay", "accept", "recall", "load", "wait", "refuse"]


class LocalRollback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operator went back here, whatever the pointer says.

    Attributes:
        left, to: digests of the release that answered, and of the one that answers now.
        epoch, seq: of the pointer that was in force.
        why: for people. at: when.
    """

    left: Digest
    to: Digest
    epoch: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    seq: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    why: Text
    at: Moment


class Failure(NamedTuple):
    """A release that could not be loaded: how often, and when it may be tried again (monotonic clock)."""

    n: int
    again_ns: int


class Step(NamedTuple):
    """What to do next.

    Attributes:
        kind: "stay" = nothing. "accept" = the pointer is newer, what it wants answers already: remember its number.
            "recall" = let `digest`, which is in memory, answer. "load" = load `digest`, and let it answer if it can.
            "wait" = `digest` failed, and its pause is not over. "refuse" = the pointer must not be followed.
        digest: of the release that should answer; None where nothing is known of it.
        why: a few words for people.
        rolled_back: an operator's rollback decided, not the pointer.
    """

    kind: Kind
    digest: str | None
    why: str
    rolled_back: bool = False


def is_newer(pointer: Pointer, followed: Pointer | None) -> bool:
    """Whether a pointer comes after the one that was followed; of two with one number neither does."""
    return followed is None or (pointer.epoch, pointer.seq) > (followed.epoch, followed.seq)


def rollback_holds(rollback: LocalRollback | None, pointer: Pointer | None) -> bool:
    """Whether an operator's rollback still wins over a pointer."""
    if rollback is None:
        return False
    if pointer is None or (pointer.epoch, pointer.seq) <= (rollback.epoch, rollback.seq):
        return True
    return pointer.hold is not None and pointer.champion == rollback.left


def decide(
    pointer: Pointer | None,
    *,
    running: str | None,
    resident: str | None = None,
    followed: Pointer | None = None,
    rollback: LocalRollback | None = None,
    failures: Mapping[str, Failure] | None = None,
    now_ns: int = 0,
) -> Step:
    """The next step.

    Args:
        pointer: the newest one that the registry has; None before the first promotion.
        running, resident: digests of the release that answers, and of the one that is kept in memory beside it.
        followed: the pointer that was followed last.
        rollback: of an operator in this place.
        failures: digest -> what is known of a release that failed.
        now_ns: of the monotonic clock.
    """
    if followed is not None:
        if pointer is None:
            return Step("refuse", None, f"pointer {followed.seq} was followed, and there is none now")
        if not is_newer(pointer, followed) and pointer != followed:
            return Step(
                "refuse",
                None,
                f"pointer {pointer.seq} of epoch {pointer.epoch} came after pointer {followed.seq} of epoch {followed.epoch}",
            )
    holds = rollback_holds(rollback, pointer)
    if holds and rollback is not None:
        target: str | None = rollback.to
        why = f"rolled back here: {clip(rollback.why, 120)}"
    elif pointer is None or pointer.champion is None:
        return Step("stay", None, "nothing is promoted yet")
    else:
        target, why = pointer.champion, f"pointer {pointer.seq}: {clip(pointer.why, 120)}"
    if target == running:
        moved = pointer is not None and is_newer(pointer, followed)
        return Step("accept" if moved else "stay", target, why, holds)
    if target == resident:
        return Step("recall", target, why, holds)
    failure = None if failures is None or target is None else failures.get(target)
    if failure is not None and now_ns < failure.again_ns:
        return Step("wait", target, f"it failed {failure.n} time(s)", holds)
    return Step("load", target, why, holds)


def failed_again(
    before: Failure | None, *, now_ns: int, jitter: float, pause_s: float = PAUSE_S[0]
) -> Failure:
    """What is known of a release after it failed once more.

    Args:
        jitter: 0 to 1, another one in each process: so that not all of a fleet try again at the same moment.
        pause_s: after the first failure; each further one doubles it, up to an hour.
    """
    n = 1 if before is None else before.n + 1
    pause = min(max(pause_s, PAUSE_S[0]) * 2.0 ** min(n - 1, 16), PAUSE_S[1])
    return Failure(n, now_ns + int(pause * (0.75 + 0.5 * jitter) * 1e9))
