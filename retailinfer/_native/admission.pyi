"""Admission, as adapters and reports see it: how long stages take lately, and who may work at once."""

from collections.abc import Callable
from typing import Any, Literal, NoReturn, TypeAlias, final

Priority: TypeAlias = Literal["critical", "sheddable", "batch", "shadow"]

PRIORITIES: tuple[str, ...]

@final
class StageClock:
    """The 99th percentile of what one stage took lately, in ns; at most an eighth too high.

    Every 4,096 notes the past counts half. Below 32 notes the percentile is the prediction.

    Args:
        name: of the stage. predicted_ns: before there are notes.
    """

    name: str
    def __init__(self, name: str, predicted_ns: int = 0) -> None: ...
    def note(self, ns: int) -> None:
        """One more call took so long."""

    def predict(self, ns: int) -> None:
        """What the percentile is while there are fewer than 32 notes."""

    def ease(self) -> None:
        """The past weighs an eighth of what it did: a call was in time that did not seem to have the time."""

    def forget(self) -> None:
        """Begin again, with the prediction."""

    @property
    def p99_ns(self) -> int:
        """Of 100 calls, 99 took at most so long."""
    @property
    def n(self) -> int:
        """Calls that were noted in this process and its parents."""

@final
class Permits:
    """How many calls may use the processor of this process at once, by priority.

    "critical" calls may use all of the limit, "sheddable" 80 %, "batch" and "shadow" 60 % of it, but always one.

    Args:
        limit: calls under way, 1 and more. max_waiting: calls that may wait for sources and shared windows meanwhile.
        clock: with monotonic_ns. random: () -> [0, 1), spreads the time at which clients come back; None: all after 1 s.
    Raises: ConfigError. Safe to use from many threads; nothing waits here.
    """

    limit: int
    max_waiting: int
    in_flight: int
    waiting: int
    shedding: bool
    def __init__(
        self, limit: int, *, max_waiting: int = 64, clock: Any, random: Callable[[], float] | None = None
    ) -> None: ...
    def check(self, priority: str = "critical") -> None:
        """For adapters, before they read a body: takes nothing. Raises: OverloadedError where a call would be refused now."""

    def take(self, priority: str = "critical") -> int:
        """A permit for work outside the engine's calls; `give` it back in a `finally`. Raises: OverloadedError."""

    def give(self, permit: int) -> None:
        """Give a permit back; nothing happens where it was taken before a fork."""

    def shed(self, why: str, priority: str = "critical") -> NoReturn:
        """Refuse a call because of another bound: counted and told of as one of these. Raises: OverloadedError."""

    def begin_in_child(self) -> None:
        """A forked child begins with nobody at work and with counters of its own."""

    def set_on_change(self, on_change: Callable[[str, str, str], None] | None) -> None:
        """Call on_change(before, after, why) when shedding begins and when it is over: states "calm" and "shedding"."""

    @property
    def admitted(self) -> dict[str, int]:
        """Calls that got a permit, by priority."""
    @property
    def rejected(self) -> dict[str, int]:
        """Calls that were refused, by priority; those that `check` refused too."""
