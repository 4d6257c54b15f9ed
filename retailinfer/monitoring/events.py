"""Events: one for every answer and every change of state, given to hooks in the thread where it happened.

Rules:
  * An event is frozen, made once, and shared by all hooks. Without hooks none is made.
  * A hook must be quick: it runs inside the call. What writes, sends or waits does so on a thread of its own.
  * What a hook raises never reaches the caller: it is counted, and warned of once.
  * `request` is what was scored, for hooks that need a key of it. It is personal data: no hook of ours logs it.
Who makes them: `_native/engine.pyx` for answers of the release, `resilience/ladder.py` for the other rungs, whoever changes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Protocol, TypeAlias

import msgspec

from retailinfer.contracts import Decision, Ranking
from retailinfer.errors import ConfigError

__all__ = ["Answered", "Changed", "Event", "Failed", "Hook", "Hooks"]


class Answered(msgspec.Struct, frozen=True):
    """A call that was answered.

    Attributes:
        answer: what the caller got; `answer.rung` says who gave it.
        request: what was scored: the caller's object, or what its bytes were decoded to. Of a ranking: its context.
        wall_ns: when the answer was ready, ns since 1970.
        took_ns: from the beginning of the call until then.
        priority: of the call.
        why: for rungs below the first, what kept the one above from answering: an error's class name, or "".
    """

    answer: Decision | Ranking
    request: Any
    wall_ns: int
    took_ns: int
    priority: str = "critical"
    why: str = ""


class Failed(msgspec.Struct, frozen=True):
    """A call that ended in a ServingError, or in the caller's `otherwise`. Not for rejections under load: those are counted.

    Attributes:
        error: class name. release: name and version. request_id: None where the caller gave none. The rest as in `Answered`.
        late: an answer was there, after the deadline, and was dropped.
    """

    error: str
    release: str
    request_id: str | None
    wall_ns: int
    took_ns: int
    priority: str = "critical"
    late: bool = False


class Changed(msgspec.Struct, frozen=True):
    """Some part is in another state now.

    Attributes:
        part: such as "breaker http://models:8080 fraud", "rung remote", "overload", "release fraud:41".
        before, after: states, such as "closed" and "open". why: a few words. wall_ns: ns since 1970.
    """

    part: str
    before: str
    after: str
    why: str
    wall_ns: int


Event: TypeAlias = Answered | Failed | Changed


class Hook(Protocol):
    """Whoever wants to know. May be called from many threads at once, and in forked children."""

    def on_event(self, event: Event) -> None:
        """Take an event: quickly, and without waiting."""
        ...


class Hooks:
    """Several hooks as one. What one of them raises is counted in `failures`, and the others still hear of the event."""

    def __init__(self, hooks: Iterable[Hook] = ()) -> None:
        self._calls = tuple(_call_of(hook) for hook in hooks)
        self.failures = 0
        self._warned = False

    def __bool__(self) -> bool:
        return bool(self._calls)

    def on_event(self, event: Event) -> None:
        for call in self._calls:
            try:
                call(event)
            except Exception as exc:  # noqa: BLE001 - an observer must not cost anybody an answer
                self.failures += 1
                self._warn(exc)

    def _warn(self, exc: Exception) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"a hook raised {type(exc).__name__}; answers go on, further failures are counted only",
                RuntimeWarning,
                stacklevel=4,
            )


def _call_of(hook: Hook) -> Any:
    call = getattr(hook, "on_event", None)
    if not callable(call):
        raise ConfigError(
            f"Expected hooks with a method on_event(event), got `{type(hook).__name__}`",
            hint="see retailinfer.monitoring.events.Hook",
        )
    return call
