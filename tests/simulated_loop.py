"""An event loop whose time is a ManualClock: it jumps to the next timer as soon as nothing else is to do.

Real file descriptors and threads still work: what is awaited without a timer is waited for in real time.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Coroutine
from typing import Any

from retailinfer.clock import ManualClock

__all__ = ["SimulatedLoop", "simulate"]


class _Jumps(selectors.DefaultSelector):
    """Waiting for a time is moving the clock there."""

    clock: ManualClock

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            return super().select(None)
        ready = super().select(0)
        if not ready and timeout > 0:
            self.clock.advance_ns(math.ceil(timeout * 1e9))
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Runs coroutines in no time."""

    def __init__(self, clock: ManualClock) -> None:
        selector = _Jumps()
        selector.clock = clock
        super().__init__(selector)
        self.clock = clock

    def time(self) -> float:
        return self.clock.monotonic_ns() / 1e9


def simulate(clock: ManualClock, work: Coroutine[Any, Any, Any]) -> Any:
    """`asyncio.run` in simulated time."""
    with asyncio.Runner(loop_factory=lambda: SimulatedLoop(clock)) as runner:
        return runner.run(work)
