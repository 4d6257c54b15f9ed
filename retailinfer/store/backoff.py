"""When a back end that failed may be tried again: a state machine that is given the time and never reads it.

Rules:
  * Three failures in a row close the door; it opens for one probe at a time, after a wait that doubles up to one second.
    The probe's success opens it for all, its failure closes it again.
  * Every permit carries the generation in which it was given. An outcome that belongs to an earlier one changes nothing:
    a late answer from before the door closed proves nothing about now.
  * A probe that never reports back loses its permit, so that it cannot keep the door closed.
  * Not thread-safe: the owner calls it under a lock of its own.
Used by readthrough.py for sources and by windows_redis.py for shared windows.
"""

from __future__ import annotations

import enum
import random

__all__ = ["Backoff", "State"]


class State(enum.Enum):
    """Whether calls go through."""

    OPEN = "open"  # as a door: every call goes through
    CLOSED = "closed"  # none does, until the wait is over
    PROBING = "probing"  # one does


class Backoff:
    """Door to one back end. All times are nanoseconds of one monotonic clock."""

    __slots__ = (
        "_failures", "_first_wait_ns", "_jitter", "_most_wait_ns", "_probe_ns", "_random", "_tolerated", "_until_ns",
        "_wait_ns", "generation", "state",
    )  # fmt: skip

    def __init__(
        self,
        *,
        tolerated: int = 3,
        first_wait_ns: int = 50_000_000,
        most_wait_ns: int = 1_000_000_000,
        probe_ns: int = 1_000_000_000,
        jitter: float = 0.2,
        chance: random.Random | None = None,
    ) -> None:
        """Begin open.

        Args:
            tolerated: this many failures in a row close the door.
            first_wait_ns: how long it stays closed the first time; twice as long after each failed probe.
            most_wait_ns: never longer than this.
            probe_ns: after this long without an outcome the next probe is let through.
            jitter: a wait is shortened by up to this share, so that processes that failed together do not return together.
            chance: where that share comes from.
        """
        self._tolerated = tolerated
        self._first_wait_ns = first_wait_ns
        self._most_wait_ns = most_wait_ns
        self._probe_ns = probe_ns
        self._jitter = jitter
        self._random = chance or random.Random()
        self.generation = 0
        self.state = State.OPEN
        self._failures = 0
        self._wait_ns = first_wait_ns
        self._until_ns = 0

    def admit(self, now_ns: int) -> int | None:
        """Permit for one call, to be given to `succeeded` or `failed`; None if there is to be no call now."""
        if self.state is not State.OPEN:
            if now_ns < self._until_ns:
                return None
            self.generation += 1
            self.state = State.PROBING
            self._until_ns = now_ns + self._probe_ns
        return self.generation

    def would_admit(self, now_ns: int) -> bool:
        """Whether `admit` would give a permit; changes nothing."""
        return self.state is State.OPEN or now_ns >= self._until_ns

    def succeeded(self, permit: int) -> bool:
        """Report a success; True if it opened the door."""
        if permit != self.generation:
            return False
        opened = self.state is not State.OPEN
        self.state = State.OPEN
        self._failures = 0
        self._wait_ns = self._first_wait_ns
        return opened

    def failed(self, permit: int, now_ns: int) -> bool:
        """Report a failure; True if it closed the door."""
        if permit != self.generation:
            return False
        if self.state is State.OPEN:
            self._failures += 1
            if self._failures < self._tolerated:
                return False
        else:
            self._wait_ns = min(2 * self._wait_ns, self._most_wait_ns)
        self.generation += 1
        self.state = State.CLOSED
        self._until_ns = now_ns + int(self._wait_ns * (1.0 - self._jitter * self._random.random()))
        return True

    def reset(self) -> None:
        """Open again, with other chances: in a forked child, which would else wait in step with its parent."""
        self._random = random.Random()
        self.generation += 1
        self.state = State.OPEN
        self._failures = 0
        self._wait_ns = self._first_wait_ns
