"""How late an event loop is: a loop that is held by somebody is overloaded, whoever holds it.

Rules:
  * A beat every 10 ms, and only while coroutines ask: it stops a tenth of a second after the last question. Who never asks
    pays nothing, and no loop is kept alive or from ending.
  * A beat that comes more than `limit_ms` late is overload: calls that may be shed are refused. Two in a row, and critical
    ones are too, because the loop has stayed behind: what waits in it is more than it can do.
  * The next beat comes as soon as what was ready has run, so that one long pause costs refusals for that turn and no longer.
  * A loop that did not run meanwhile, because `run_until_complete` had ended, was not late.
  * Each loop has its own beat. Time is the loop's own.
Who asks: `ascore`, `arank` and micro-batches. Permits bound what runs; this is about what waits to be run.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from retailinfer.errors import ConfigError, OverloadedError, clip

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

__all__ = ["LoopLag"]

LIMIT_MS = 50.0
BEAT_S = 0.01
SOON_S = 0.001  # to the next beat after a late one
QUIET_BEATS = 10  # without a question, then they stop


def _this_run() -> Callable[[], Any]:
    """What tells one run of a loop from the next: each sets a method of its own as the thread's hook."""
    method = sys.get_asyncgen_hooks().firstiter
    return weakref.ref(method) if method is not None else lambda: None


class _Pulse:
    """The beats of one loop."""

    __slots__ = (
        "__weakref__",
        "asked",
        "beating",
        "due_s",
        "lag_s",
        "late",
        "limit_s",
        "loop",
        "quiet",
        "run",
    )

    def __init__(self, loop: AbstractEventLoop, limit_s: float) -> None:
        self.loop = weakref.ref(loop)
        self.limit_s = limit_s
        self.beating = self.asked = False
        self.due_s = self.lag_s = 0.0
        self.quiet = self.late = 0  # beats in a row
        self.run = _this_run()

    def begin(self, loop: AbstractEventLoop) -> None:
        self.beating = True
        self.quiet = 0
        self.rest(loop.time() + BEAT_S)
        loop.call_at(self.due_s, self.beat)

    def rest(self, due_s: float) -> None:
        """Nothing is known of how late this run of the loop is. due_s: when the next beat is due in it."""
        self.late = 0
        self.lag_s = 0.0
        self.due_s = due_s
        self.run = _this_run()

    @property
    def stood_still(self) -> bool:
        """The loop was stopped, and runs anew."""
        return self.run() is not sys.get_asyncgen_hooks().firstiter

    def beat(self) -> None:
        loop = self.loop()
        if loop is None:
            return
        now_s = loop.time()
        if self.stood_still:
            self.rest(now_s)
        self.lag_s = now_s - self.due_s
        self.late = self.late + 1 if self.lag_s > self.limit_s else 0
        self.quiet = 0 if self.asked else self.quiet + 1
        self.asked = False
        if self.quiet >= QUIET_BEATS and not self.late:
            self.beating = False
            return
        self.due_s = now_s + (SOON_S if self.late else BEAT_S)
        loop.call_at(self.due_s, self.beat)


class LoopLag:
    """What one door knows of the loops that it is called in. `scorer.loop_lag` is one.

    Attributes:
        n_refused: calls that were refused because their loop was late.
    """

    def __init__(self, limit_ms: float | None = LIMIT_MS) -> None:
        self._pulses: weakref.WeakKeyDictionary[AbstractEventLoop, _Pulse] = weakref.WeakKeyDictionary()
        self._running: Any = None
        self.n_refused = 0
        self.limit_ms = limit_ms

    @property
    def limit_ms(self) -> float | None:
        """How late a beat may be; None: whatever loops do, nobody is refused. Takes effect in loops that are new to it."""
        return self._limit_ms

    @limit_ms.setter
    def limit_ms(self, limit_ms: float | None) -> None:
        is_number = isinstance(limit_ms, (int, float)) and not isinstance(limit_ms, bool)
        if limit_ms is not None and not (is_number and 1.0 <= limit_ms <= 60_000.0):
            raise ConfigError(f"Expected limit_ms from 1 to 60000, or None, got {clip(limit_ms)}")
        self._limit_ms = limit_ms
        self._pulses.clear()

    @property
    def last_ms(self) -> float:
        """How late the last beat of the running loop was; 0 where nobody asked lately. Outside of loops a RuntimeError."""
        pulse = self._pulses.get(self._loop())
        return 0.0 if pulse is None or not pulse.beating else pulse.lag_s * 1e3

    def check(self, priority: str = "critical") -> None:
        """Ask, from inside a coroutine. Raises: OverloadedError where the loop is late and the call can be shed."""
        if self._limit_ms is None:
            return
        loop = self._loop()
        pulse = self._pulses.get(loop)
        if pulse is None:
            pulse = self._pulses[loop] = _Pulse(loop, self._limit_ms / 1e3)
        pulse.asked = True
        if not pulse.beating:
            pulse.begin(loop)
        elif pulse.late and pulse.stood_still:
            pulse.rest(loop.time())
        elif pulse.late and (pulse.late > 1 or priority != "critical"):
            self.n_refused += 1
            raise OverloadedError(
                f"the event loop is {pulse.lag_s * 1e3:.3g} ms late, more than {self._limit_ms:g} ms",
                hint="something in it runs for long: find it, or set loop_lag.limit_ms",
            )

    def _loop(self) -> AbstractEventLoop:
        if self._running is None:
            from asyncio import get_running_loop  # noqa: PLC0415 - services without coroutines load scorers too

            self._running = get_running_loop
        loop: AbstractEventLoop = self._running()
        return loop
