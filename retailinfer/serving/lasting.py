"""What a door keeps while releases come and go: who hears of events, permits, the remote, the drills' thread, last scores.

Rules:
  * One for each door, made with its first release. A release that comes later is loaded with the permits of this.
  * Nothing here knows a release, but for the drills, which follow the one that answers.
  * Nothing here is referred to by an engine, but for hooks and permits: a door that is dropped is gone.
What belongs to one release is live.py; its rungs are answers.py.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from retailinfer.contracts import Decision, Ranking
from retailinfer.monitoring.events import Answered, Changed, Failed, Hooks
from retailinfer.resilience.drills import Drills
from retailinfer.resilience.ladder import Call

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from retailinfer._native.admission import Permits
    from retailinfer.clock import Clock
    from retailinfer.resilience.ladder import Ladder
    from retailinfer.resilience.last_scores import LastScores

__all__ = ["Lasting", "RemoteModel", "Sampler", "Tells"]


class RemoteModel(Protocol):
    """What the remote rung asks; `ri.Remote` is one."""

    def infer(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], *, end_ns: int, clock: Any
    ) -> Mapping[str, NDArray[Any]]:
        """Run the model on rows, until `end_ns` of the clock's monotonic time at most. Raises: RemoteError."""
        ...


class Tells:
    """Makes events of what a ladder tells, and of changes, for hooks. release: of failures."""

    def __init__(self, release: str, clock: Clock, tell: Callable[[Any], None]) -> None:
        self._release = release
        self._clock = clock
        self._tell = tell

    def answered(self, call: Call, answer: Decision | Ranking, took_ns: int, why: str) -> None:
        self._tell(Answered(answer, call.request, self._clock.wall_ns(), took_ns, call.priority, why))

    def failed(self, call: Call, error: Exception, took_ns: int) -> None:
        late = bool(getattr(error, "late", False))
        wall = self._clock.wall_ns()
        self._tell(
            Failed(type(error).__name__, self._release, call.request_id, wall, took_ns, call.priority, late)
        )

    def changed(self, part: str, before: str, after: str, why: str) -> None:
        self._tell(Changed(part, before, after, why, self._clock.wall_ns()))


class Sampler:
    """What an engine calls with some of its answers: they are offered to the drills, as calls of its own ladder.

    The engine holds it, so it holds neither the ladder nor the drills.
    """

    def __init__(self, drills: Drills, ladder: Ladder) -> None:
        self._drills = weakref.ref(drills)
        self._ladder = weakref.ref(ladder)

    def __call__(self, request: Any, answer: Any) -> None:
        drills, ladder = self._drills(), self._ladder()
        if drills is not None and ladder is not None:
            drills.offer(dict(request) if type(request) is dict else request, answer, ladder)


class Lasting:
    """See the rules above.

    Args:
        permits: of the first release's pipeline.
        remote_first: the remote answers before the release does.
        hooks: who hears of events. Raises: ConfigError for what is none.

    Attributes:
        hooks, permits, clock, remote, remote_first: as given.
        changes: tells hooks of changes that are no release's; None where nobody listens.
        drills: None before the first release with a ladder.
        last_scores: the memory of the release that answers; None where it has no such rung.
    """

    def __init__(
        self,
        permits: Permits,
        clock: Clock,
        *,
        remote: RemoteModel | None = None,
        remote_first: bool = False,
        hooks: Iterable[Any] = (),
    ) -> None:
        self.hooks = Hooks(hooks)
        self.permits = permits
        self.clock = clock
        self.remote = remote
        self.remote_first = remote_first and remote is not None
        self.drills: Drills | None = None
        self.last_scores: LastScores | None = None
        self.changes: Tells | None = None
        if self.hooks:
            self.changes = Tells("", clock, self.hooks.on_event)
            permits.set_on_change(partial(self.changes.changed, "overload"))
            if callable(watch := getattr(remote, "watch", None)):
                watch(_for_remote(self.changes))

    def drill(self, ladder: Ladder, source: Any) -> None:
        """Exercise this ladder from now on, with calls that `source` answers: the engine, or who stands before it."""
        if not ladder.present:
            if self.drills is not None:
                self.drills.turn_to(None)
            return
        if self.drills is None:
            permits = self.permits
            self.drills = Drills(None, _copy, may=lambda: _has_room(permits))
        sampler = Sampler(self.drills, ladder)
        self.drills.turn_to(ladder, lambda every: source.set_drill(sampler, every))

    def scores_for(self, max_age_s: float, max_entities: int) -> LastScores:
        """The memory of last scores: the one that there is, unless it is of another size."""
        # cachetools is for this rung alone
        from retailinfer.resilience.last_scores import LastScores  # noqa: PLC0415

        if self.last_scores is None or self.last_scores.limits != (max_age_s, max_entities):
            self.last_scores = LastScores(clock=self.clock, max_age_s=max_age_s, max_entities=max_entities)
        return self.last_scores

    def close(self) -> None:
        """Let go of the drills' thread."""
        if self.drills is not None:
            self.drills.end_with_process()


def _for_remote(tells: Tells) -> Callable[[str, str, str, str], None]:
    """What a remote holds: it may outlive the door, and serve several."""
    owner = weakref.ref(tells)

    def changed(part: str, before: str, after: str, why: str) -> None:
        found = owner()
        if found is not None:
            found.changed(part, before, after, why)

    return changed


def _copy(request: Any, answer: Any) -> Call:
    """The call of a drill. Of a ranking, what it brought up are the candidates: all that is still known of them."""
    call = Call(request, began_ns=0, end_ns=0)
    if isinstance(answer, Ranking):
        call.candidates = list(answer.items)
        call.k = len(answer.items)
    return call


def _has_room(permits: Permits) -> bool:
    """Drills are for quiet moments."""
    return permits.in_flight < 0.6 * permits.limit or permits.in_flight == 0
