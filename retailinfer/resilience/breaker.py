"""Circuit breaker of one endpoint and model: whether a call may be made, decided from what came of earlier ones.

Rules:
  * CLOSED counts outcomes in ten buckets of a second. It trips at 20 calls of which half failed or four fifths were slow, or
    at five failures in a row to reach the other side at all.
  * OPEN refuses for 5 s, twice as long each time up to 60 s, each wait drawn from 80 to 120 % of that, so that processes which
    failed together do not return together. After five minutes CLOSED the count of times begins anew.
  * HALF_OPEN lets a few probes through at once: three successes close, one failure opens again. A probe's permit ends with the
    call's own deadline, so that a probe that never reports back holds nothing up.
  * FORCED_OPEN and DISABLED are an operator's. Nothing automatic leaves them.
  * Every permit carries the generation in which it was given, and each change of state begins a new one. An outcome of an
    earlier generation changes nothing: it proves nothing about now.
  * Pure: time and chance are given. Not thread-safe but for `standing_permit`; the owner holds a lock around all else.
What counts as a failure is decided by outcome.py; who asks is remote/client.py.
"""

from __future__ import annotations

import enum
import random
from typing import NamedTuple

from retailinfer.errors import ConfigError

__all__ = ["Breaker", "Move", "Outcome", "State"]

_BUCKETS = 10
_BUCKET_NS = 1_000_000_000
_FORGET_NS = 300_000_000_000  # CLOSED for this long: the next wait is the first one again
_PROBE_BITS = 20  # a permit: generation and, for probes, a number of its own


class State(enum.Enum):
    """Whether calls are made."""

    CLOSED = "closed"  # as a circuit: calls go through
    OPEN = "open"  # none does
    HALF_OPEN = "half_open"  # probes do
    FORCED_OPEN = "forced_open"  # an operator wants none
    DISABLED = "disabled"  # an operator wants all of them, whatever comes of it


class Outcome(enum.Enum):
    """What came of a call."""

    SUCCESS = "success"
    FAILURE = "failure"  # reached, and did not do what was agreed
    UNREACHED = "unreached"  # a failure below the protocol: refused, reset, no route, no TLS
    IGNORED = (
        "ignored"  # says nothing about the other side: our own mistake, too little time given, cancelled
    )


class Move(NamedTuple):
    """A change of state."""

    before: State
    after: State
    why: str
    now_ns: int


class Breaker:
    """All times are nanoseconds of one monotonic clock."""

    __slots__ = (
        "_at_bucket", "_calls", "_closed_ns", "_closed_permit", "_connect_failures", "_failures", "_first_wait_ns",
        "_last_probe", "_min_calls", "_most_probes", "_most_wait_ns", "_n_calls", "_n_failures", "_n_slow", "_probes",
        "_random", "_slow", "_slow_ns", "_successes", "_times", "_until_ns", "generation", "moves", "state",
    )  # fmt: skip

    def __init__(
        self,
        *,
        chance: random.Random,
        now_ns: int,
        probes: int = 3,
        slow_ns: int | None = None,
        min_calls: int = 20,
        first_wait_ns: int = 5_000_000_000,
        most_wait_ns: int = 60_000_000_000,
    ) -> None:
        """Begin CLOSED.

        Args:
            chance: where the spread of waits comes from; each process needs one of its own.
            now_ns: the time.
            probes: how many may be in flight at once while HALF_OPEN; 1 where more than four processes probe it.
            slow_ns: a success that took longer counts as slow; None: none does.
            min_calls: fewer calls than this within ten seconds say nothing about rates.
            first_wait_ns: how long it stays OPEN the first time. most_wait_ns: at most (both before the spread).

        Raises: ConfigError.
        """
        if probes < 1 or min_calls < 1 or not 0 < first_wait_ns <= most_wait_ns:
            raise ConfigError(
                f"Expected at least 1 probe, 1 call and 0 < first_wait_ns <= most_wait_ns, got {probes}, {min_calls}, "
                f"{first_wait_ns} and {most_wait_ns}"
            )
        self._random = chance
        self._most_probes = probes
        self._slow_ns = slow_ns
        self._min_calls = min_calls
        self._first_wait_ns = first_wait_ns
        self._most_wait_ns = most_wait_ns
        self.state = State.CLOSED
        self.generation = 0
        self.moves: list[Move] = []  # what changed and nobody has taken yet
        self._times = 0  # OPEN in a row: the exponent of the next wait
        self._until_ns = 0  # OPEN: when the first probe may go
        self._probes: dict[int, int] = {}  # HALF_OPEN: permits out -> when each ends
        self._last_probe = 0
        self._successes = 0
        self._closed_permit: int | None = 0
        self._close(now_ns)

    # --- asking and reporting ---------------------------------------------------------------------------------------

    def admit(self, now_ns: int, end_ns: int) -> int | None:
        """Permit for one call that ends at `end_ns`, to be given to `record`; None if there is to be no call now."""
        permit = self._closed_permit
        if permit is not None:
            return permit
        if self.state is State.OPEN:
            if now_ns < self._until_ns:
                return None
            self._move(State.HALF_OPEN, "the wait is over", now_ns)
            self._successes = 0
        if self.state is not State.HALF_OPEN:
            return None
        if len(self._probes) >= self._most_probes:
            self._probes = {probe: ends for probe, ends in self._probes.items() if ends > now_ns}
            if len(self._probes) >= self._most_probes:
                return None
        self._last_probe = (self._last_probe + 1) % (1 << _PROBE_BITS) or 1
        permit = self.generation << _PROBE_BITS | self._last_probe
        self._probes[permit] = max(end_ns, now_ns + 1)
        return permit

    @property
    def standing_permit(self) -> int | None:
        """What `admit` gives while CLOSED or DISABLED; None: ask `admit`. Reads one value, and needs no lock."""
        return self._closed_permit

    def would_admit(self, now_ns: int) -> bool:
        """Whether `admit` would give a permit; changes nothing."""
        if self._closed_permit is not None:
            return True
        if self.state is State.OPEN:
            return now_ns >= self._until_ns
        if self.state is not State.HALF_OPEN:
            return False
        return sum(ends > now_ns for ends in self._probes.values()) < self._most_probes

    def record(self, permit: int, outcome: Outcome, now_ns: int, took_ns: int = 0) -> None:
        """Say what came of a call. What changes by that is added to `moves`."""
        if permit >> _PROBE_BITS != self.generation:
            return
        if self.state is State.CLOSED:
            if outcome is not Outcome.IGNORED:
                self._count(outcome, now_ns, took_ns)
        elif self.state is State.HALF_OPEN:
            ends = self._probes.pop(permit, None)
            if outcome is Outcome.FAILURE or outcome is Outcome.UNREACHED:
                # also one that has run out of its time: that is how most fail
                self._open("a probe failed", now_ns)
                return
            if outcome is Outcome.IGNORED or ends is None or ends <= now_ns:
                return  # too late to be believed, or told twice
            self._successes += 1
            if self._successes >= 3:
                self._move(State.CLOSED, "probes succeeded", now_ns)
                self._close(now_ns)

    def take_moves(self) -> list[Move]:
        """What changed since the last time somebody asked, oldest first."""
        moves, self.moves = self.moves, []
        return moves

    # --- an operator ------------------------------------------------------------------------------------------------

    def force_open(self, now_ns: int) -> None:
        """Make no calls until `resume`."""
        self._move(State.FORCED_OPEN, "an operator", now_ns)

    def disable(self, now_ns: int) -> None:
        """Make every call until `resume`; outcomes are not looked at."""
        self._move(State.DISABLED, "an operator", now_ns)
        self._closed_permit = self.generation << _PROBE_BITS

    def resume(self, now_ns: int) -> None:
        """Decide by outcomes again, beginning CLOSED with nothing counted."""
        self._times = 0
        self._move(State.CLOSED, "an operator", now_ns)
        self._close(now_ns)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _move(self, after: State, why: str, now_ns: int) -> None:
        self.moves.append(Move(self.state, after, why, now_ns))
        self.state = after
        self.generation += 1
        self._closed_permit = None
        self._probes = {}

    def _open(self, why: str, now_ns: int) -> None:
        if self.state is State.CLOSED and now_ns - self._closed_ns >= _FORGET_NS:
            self._times = 0
        self._times += 1
        wait_ns = min(self._first_wait_ns << min(self._times - 1, 40), self._most_wait_ns)
        self._until_ns = now_ns + int(wait_ns * self._random.uniform(0.8, 1.2))
        self._move(State.OPEN, why, now_ns)

    def _close(self, now_ns: int) -> None:
        """What CLOSED begins with."""
        self._closed_ns = now_ns
        self._closed_permit = self.generation << _PROBE_BITS
        self._calls = [0] * _BUCKETS
        self._failures = [0] * _BUCKETS
        self._slow = [0] * _BUCKETS
        self._n_calls = self._n_failures = self._n_slow = 0  # the sums of those
        self._at_bucket = now_ns // _BUCKET_NS
        self._connect_failures = 0

    def _count(self, outcome: Outcome, now_ns: int, took_ns: int) -> None:
        bucket = now_ns // _BUCKET_NS
        if bucket > self._at_bucket:
            self._advance(bucket)
        at = self._at_bucket % _BUCKETS  # of a time that another thread read earlier: the newest there is
        self._calls[at] += 1
        self._n_calls += 1
        if outcome is Outcome.SUCCESS:
            self._connect_failures = 0
            if self._slow_ns is not None and took_ns > self._slow_ns:
                self._slow[at] += 1
                self._n_slow += 1
        else:
            self._failures[at] += 1
            self._n_failures += 1
            self._connect_failures = self._connect_failures + 1 if outcome is Outcome.UNREACHED else 0
            if self._connect_failures >= 5:
                self._open("5 times in a row it was not reached", now_ns)
                return
        if self._n_calls >= self._min_calls:
            if 2 * self._n_failures >= self._n_calls:
                self._open(f"{self._n_failures} of {self._n_calls} calls failed", now_ns)
            elif 5 * self._n_slow >= 4 * self._n_calls:
                self._open(f"{self._n_slow} of {self._n_calls} calls were slow", now_ns)

    def _advance(self, bucket: int) -> None:
        """Empty the buckets between the last one that was used and this one."""
        for passed in range(max(self._at_bucket + 1, bucket - _BUCKETS + 1), bucket + 1):
            at = passed % _BUCKETS
            self._n_calls -= self._calls[at]
            self._n_failures -= self._failures[at]
            self._n_slow -= self._slow[at]
            self._calls[at] = self._failures[at] = self._slow[at] = 0
        self._at_bucket = bucket
