"""Events: one for every answer and every change of state, given to hooks in the thread where it happened.

Rules:
  * An event is frozen, made once, and shared by all hooks. Without hooks none is made.
  * A hook must be quick: it runs inside the call. What writes, sends or waits does so on a thread of its own.
  * What a hook raises never reaches the caller: it is counted, and warned of once.
  * `request` is what was scored, for hooks that need a key of it. It is personal data: no hook of ours logs it.
Who makes them: `_native/engine.pyx` for answers of the release, `resilience/ladder.py` for the other rungs, whoever changes.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

from retailinfer.contracts import Decision, Ranking
from retailinfer.errors import ConfigError

__all__ = ["Answered", "Changed", "Event", "Failed", "Hook", "Hooks"]


class Answered(msgspec.Struct, frozen=True, gc=False):
    """A call that was answered.

    Attributes:
        answer: what the caller got; `answer.rung` says who gave it.
        request: what was scored: the caller's object, or what its bytes were decoded to. Of a ranking: its context.
        wall_ns: when the answer was ready, ns since 1970.
        took_ns: from the beginning of the call until then.
        priority: of the call.
        why: what kept the release from answering (of `primary="remote"`, the model server): an error's class name. "" where
            nothing did.
    The garbage collector does not look into it, so that it costs less: never put one into its own request.
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
        part: such as "breaker http://models:8080 fraud", "rung remote", "overload", "decision log".
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
    """Several hooks as one. What one of them raises is counted, and the others still hear of the event.

    Attributes:
        failures: how often one of them raised.
        failures_by_hook: the same by the hook's class, `Name` or `Name#2` where several have that name.
    """

    def __init__(self, hooks: Iterable[Hook] = ()) -> None:
        """Raises: ConfigError for what has no method `on_event(event)`."""
        try:
            given = tuple(hooks)
        except TypeError:
            raise _not_hooks(hooks) from None
        self._calls = tuple((_call_of(hook), name) for hook, name in zip(given, _names(given), strict=True))
        self.failures_by_hook = {name: 0 for _, name in self._calls}

    def __bool__(self) -> bool:
        return bool(self._calls)

    @property
    def failures(self) -> int:
        """How often one of them raised."""
        return sum(self.failures_by_hook.values())

    def on_event(self, event: Event) -> None:
        """Tell all of them. Raises nothing, also where warnings are errors."""
        for call, name in self._calls:
            try:
                call(event)
            except Exception as exc:  # noqa: BLE001 - an observer must not cost anybody an answer
                self._failed(name, exc)

    def _failed(self, name: str, exc: Exception) -> None:
        self.failures_by_hook[name] += 1
        if self.failures_by_hook[name] == 1:
            with contextlib.suppress(Exception):  # a warning that is an error, or a broken way to show one
                warnings.warn(
                    f"the hook {name} raised {type(exc).__name__}; answers go on, further failures are counted only",
                    RuntimeWarning,
                    stacklevel=4,
                )


def _call_of(hook: Hook) -> Any:
    call = getattr(hook, "on_event", None)
    if not callable(call) or isinstance(hook, type):
        raise _not_hooks(hook)
    return call


def _names(hooks: Sequence[Hook]) -> list[str]:
    names: list[str] = []
    for hook in hooks:
        name = type(hook).__name__
        same = sum(one.partition("#")[0] == name for one in names)
        names.append(f"{name}#{same + 1}" if same else name)
    return names


def _not_hooks(got: object) -> ConfigError:
    what = f"the class `{got.__name__}`" if isinstance(got, type) else f"`{type(got).__name__}`"
    return ConfigError(
        f"Expected a list of hooks, objects with a method on_event(event), got {what}",
        hint="see retailinfer.monitoring.events.Hook",
    )
