"""Time as an argument: the one place that reads the machine's clocks.

Rules:
  * Ages and event times use `wall_ns`; durations use `monotonic_ns`. Nothing else calls `time`.
  * Tests pass a `ManualClock` and never sleep.
"""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "ManualClock", "SystemClock"]


class Clock(Protocol):
    """What every part that needs time is given."""

    def monotonic_ns(self) -> int:
        """Nanoseconds of a clock that never goes back; only differences mean anything."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch; may step when the machine's clock is set."""
        ...


class SystemClock:
    """The machine's clocks."""

    monotonic_ns = staticmethod(time.monotonic_ns)
    wall_ns = staticmethod(time.time_ns)


class ManualClock:
    """A clock that stands still until told to move."""

    def __init__(self, *, wall_ns: int = 1_700_000_000_000_000_000, monotonic_ns: int = 0) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def wall_ns(self) -> int:
        return self._wall_ns

    def advance_ns(self, duration_ns: int) -> None:
        """Move both clocks forward."""
        if duration_ns < 0:
            raise ValueError(
                "a clock advances by 0 ns or more; use step_wall_ns for a wall clock that is set back"
            )
        self._wall_ns += duration_ns
        self._monotonic_ns += duration_ns

    def step_wall_ns(self, step_ns: int) -> None:
        """Set the wall clock by a step, as NTP or an operator does; the monotonic clock does not notice."""
        self._wall_ns += step_ns
