"""How long a call may take: milliseconds of the caller -> nanoseconds that whoever waits takes its share of.

Rules:
  * A deadline is a moment of the monotonic clock, fixed once where the call comes in and passed down; nothing below starts
    a clock of its own, so that two waits after each other never take more than one.
  * What is left is never negative: who finds nothing left does not wait at all.
Who waits: `_native/resolve.pyx` for tables over sources and shared windows. Time itself is clock.py.
"""

from __future__ import annotations

import math

from retailinfer.clock import Clock, SystemClock
from retailinfer.errors import DeadlineExceededError, FeatureTypeError, clip

__all__ = ["FOREVER_NS", "Deadline", "budget_ns"]

FOREVER_NS = 1 << 62  # 146 years: no deadline, and still a sum that int64 holds
_MOST_MS = 1e12


def budget_ns(deadline_ms: float | None) -> int:
    """`deadline_ms=` of a call as nanoseconds; None = `FOREVER_NS`.

    Raises: FeatureTypeError for what is no number; DeadlineExceededError for a time that is over before it begins.
    """
    if deadline_ms is None:
        return FOREVER_NS
    if isinstance(deadline_ms, bool) or not isinstance(deadline_ms, (int, float)) or math.isnan(deadline_ms):
        raise FeatureTypeError(
            f"Expected milliseconds as a number, got `{type(deadline_ms).__name__}` {clip(deadline_ms)}",
            path="$.deadline_ms",
        )
    if deadline_ms <= 0:
        raise DeadlineExceededError(
            f"the call was given {deadline_ms!r} ms: its time is over before it begins"
        )
    return FOREVER_NS if deadline_ms >= _MOST_MS else max(1, int(deadline_ms * 1e6))


class Deadline:
    """A moment of the monotonic clock at which an answer is worth nothing any more."""

    __slots__ = ("_clock", "at_ns")

    def __init__(self, at_ns: int, clock: Clock | None = None) -> None:
        self.at_ns = at_ns
        self._clock: Clock = clock or SystemClock()

    @classmethod
    def after_ms(cls, deadline_ms: float | None, clock: Clock | None = None) -> Deadline:
        """So many milliseconds from now; None = never."""
        clock = clock or SystemClock()
        return cls(min(FOREVER_NS, clock.monotonic_ns() + budget_ns(deadline_ms)), clock)

    def remaining_ns(self) -> int:
        """What is left, 0 when it is over."""
        return max(0, self.at_ns - self._clock.monotonic_ns())

    def remaining_s(self) -> float:
        """What is left in seconds, as clients of databases want it."""
        return self.remaining_ns() / 1e9

    def earlier(self, other: Deadline) -> Deadline:
        """The one of two that comes first: a child never outlives its parent."""
        return self if self.at_ns <= other.at_ns else other
