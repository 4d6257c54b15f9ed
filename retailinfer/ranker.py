"""Ranker: the front door for recommendations. A context and candidate ids in, the best k out, in a stable order.

Rules:
  * Context columns are computed once a request, item columns once when a row enters the table, cross columns per pair.
  * Equal scores are ordered by id, so the same candidates give the same ranking in whatever order they come.
  * Excluded and unavailable candidates never appear; `suppressed` says who was left out and why.
What happens inside: pipeline.py loads, `_native/engine.pyx` answers.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from retailinfer.deadline import budget_ns, moment_ns
from retailinfer.errors import ServingError, WouldWait
from retailinfer.limits import HOLD_GIL_BELOW_US, MAX_BYTES, MAX_DEPTH, MAX_WAITING
from retailinfer.serving.door import INLINE_BELOW_US, RAISE, Door, Raise

if TYPE_CHECKING:
    import os
    from typing import Unpack

    from cachetools import FIFOCache

    from retailinfer.contracts import Ranking
    from retailinfer.monitoring.events import Hook
    from retailinfer.pipeline import Pipeline
    from retailinfer.release.registry import Registry
    from retailinfer.release.trust_files import Trust
    from retailinfer.serving.door import EventId
    from retailinfer.serving.follower import Settings
    from retailinfer.serving.live import Live
    from retailinfer.store.store import Store

__all__ = ["Ranker"]

T = TypeVar("T")

MAX_RULES = 256  # compiled `available` texts that are kept; they are written by programmers, not by clients


class Ranker(Door):
    """Ranks candidates with one release. Get one from `Ranker.load`."""

    _ranks = True

    @classmethod
    def load(
        cls,
        release: str | os.PathLike[str] | Mapping[str, bytes],
        *,
        store: Store | None = None,
        trust: str | os.PathLike[str] | Trust | None = None,
        strict_paths: bool = False,
        backend: Literal["auto", "c", "python"] = "auto",
        max_bytes: int = MAX_BYTES,
        max_depth: int = MAX_DEPTH,
        hold_gil_below_us: float = HOLD_GIL_BELOW_US,
        max_in_flight: int | None = None,
        max_waiting: int = MAX_WAITING,
        contract: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        previous: str | os.PathLike[str] | Mapping[str, bytes] | None = None,
        hooks: Iterable[Hook] = (),
    ) -> Ranker:
        """As `Scorer.load`, for a release whose spec names a `candidate`; the items of its table are encoded here.

        Its ladder has the rungs previous and static.
        """
        settings: dict[str, Any] = {
            "contract": contract,
            "trust": trust,
            "strict_paths": strict_paths,
            "store": store,
            "ranks": True,
            "backend": backend,
            "max_bytes": max_bytes,
            "max_depth": max_depth,
            "hold_gil_below_us": hold_gil_below_us,
            "max_in_flight": max_in_flight,
            "max_waiting": max_waiting,
        }
        from retailinfer.serving.loading import load_pipelines  # noqa: PLC0415 - with the first release

        now, before = load_pipelines(release, previous, **settings)
        return cls(now, previous=before, hooks=hooks, settings=settings)

    @classmethod
    def follow(
        cls,
        registry: Registry | str | os.PathLike[str],
        name: str,
        *,
        trust: str | os.PathLike[str] | Trust | None = None,
        environment: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        last_good: str | os.PathLike[str] | None = None,
        poll_s: float = 30.0,
        on_revoked: Literal["serve", "degrade"] = "serve",
        hooks: Iterable[Hook] = (),
        **settings: Unpack[Settings],
    ) -> Ranker:
        """As `Scorer.follow`, for rankers: the items of every release are encoded before it answers."""
        from retailinfer.serving.follower import follow  # noqa: PLC0415 - for those who follow

        return follow(
            partial(cls, hooks=hooks),
            registry,
            name,
            trust=trust,
            environment=environment,
            storage_options=storage_options,
            last_good=last_good,
            poll_s=poll_s,
            on_revoked=on_revoked,
            options={"ranks": True, **settings},
        )

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        previous: Pipeline | None = None,
        hooks: Iterable[Hook] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(pipeline, previous=previous, hooks=hooks, settings=settings)

    def _live_of(
        self, pipeline: Pipeline, *, previous: Pipeline | None = None, resident: Live | None = None
    ) -> Live:
        from retailinfer.serving.live import Live  # noqa: PLC0415 - with the first release, as in the door

        return Live.of(
            pipeline,
            self._lasting,
            ranks=True,
            previous=previous,
            resident=resident,
            rules=_Rules(pipeline),
        )

    def rank(
        self,
        context: object,
        candidates: Iterable[str] | Iterable[int],
        k: int = 20,
        *,
        available: str | None = None,
        exclude: Iterable[str] | Iterable[int] | None = None,
        deadline_ms: float | None = None,
        request_id: str | None = None,
        at: dt.datetime | float | None = None,
        observe: bool = False,
        event_id: EventId | None = None,
        priority: str = "critical",
        otherwise: T | Raise = RAISE,
    ) -> Ranking | T:
        """Rank candidates for a context.

        Args:
            context: dict, Struct or dataclass with the spec's fields but the candidate's key.
            candidates: ids, at most the contract's `max_rows`; an id that comes twice counts once.
            k: how many to return.
            available: comparisons of the candidates' table with numbers, such as "item.stock > 0 and item.age < 90";
                a candidate for which one does not hold, or is null, is left out.
            exclude: ids to leave out, such as what is in the cart.
            deadline_ms, request_id, at, observe, event_id, priority, otherwise: as in `Scorer.score`; what is counted is the
                context.
        What the release cannot rank goes down the contract's ladder; `ranking.rung` says who answered.
        Raises: FeatureError, LimitError, whatever `otherwise` is; SessionError, ScoreError, DeadlineExceededError,
            OverloadedError; Unavailable where no rung could answer either.
        """
        live = self._live
        if live.ladder.present:  # who may be asked again must be there again
            candidates, exclude = _kept(live, candidates, exclude)
        try:
            ranking: Ranking = live.engine.rank(
                context,
                candidates,
                k,
                None if available is None else live.rules(available),
                exclude,
                request_id,
                0 if at is None else moment_ns(at),
                0 if deadline_ms is None else budget_ns(deadline_ms),
                observe,
                event_id,
                True,
                priority,
            )
        except ServingError as exc:
            fallen: Ranking | T = self._fall(
                live,
                exc,
                otherwise,
                context,
                deadline_ms,
                request_id,
                at,
                observe,
                event_id,
                priority,
                ranking=(candidates, k, available, exclude),
            )
            return fallen
        else:
            return ranking

    def rank_json(
        self,
        body: bytes,
        *,
        available: str | None = None,
        deadline_ms: float | None = None,
        request_id: str | None = None,
        at: dt.datetime | float | None = None,
        observe: bool = False,
        event_id: EventId | None = None,
        priority: str = "critical",
        otherwise: T | Raise = RAISE,
    ) -> bytes | T:
        """JSON {"context": {...}, "candidates": [...], "k": 20, "exclude": [...], "request_id": ...} -> JSON ranking.

        `available` is the server's, never the client's. Raises: RequestError and LimitError for the bytes, else as `rank`.
        """
        live = self._live
        try:
            answer: bytes = live.engine.rank_json(
                body,
                None if available is None else live.rules(available),
                request_id,
                0 if at is None else moment_ns(at),
                0 if deadline_ms is None else budget_ns(deadline_ms),
                observe,
                event_id,
                priority,
            )
        except ServingError as exc:
            fallen: bytes | T = self._fall(
                live,
                exc,
                otherwise,
                body,
                deadline_ms,
                request_id,
                at,
                observe,
                event_id,
                priority,
                opens=live.open_ranking,
                encode=live.as_json,
                ranking=(None, 0, available, None),
            )
            return fallen
        else:
            return answer

    async def arank(
        self,
        context: object,
        candidates: Iterable[str] | Iterable[int],
        k: int = 20,
        *,
        available: str | None = None,
        exclude: Iterable[str] | Iterable[int] | None = None,
        deadline_ms: float | None = None,
        request_id: str | None = None,
        at: dt.datetime | float | None = None,
        observe: bool = False,
        event_id: EventId | None = None,
        priority: str = "critical",
        otherwise: T | Raise = RAISE,
    ) -> Ranking | T:
        """`rank` for coroutines: inline while it is cheap (below 200 us as measured at load) and nothing has to be waited
        for, else in a thread.
        """
        live = self._live
        engine = live.engine
        ids = engine.id_list(candidates)
        began_ns = self._lasting.clock.monotonic_ns()  # a thread may come later
        _, exclude = _kept(live, (), exclude)
        try:
            self._loop_lag.check(priority)
            args = (
                context,
                ids,
                k,
                None if available is None else live.rules(available),
                exclude,
                request_id,
                0 if at is None else moment_ns(at),
                0 if deadline_ms is None else budget_ns(deadline_ms),
                observe,
                event_id,
            )
            # what would have to wait after it has counted the context is never tried here
            cheap = engine.fixed_us + engine.row_us * len(ids) < INLINE_BELOW_US
            if cheap and not (observe and engine.waits):
                try:
                    inline: Ranking = engine.rank(*args, False, priority)
                except WouldWait:
                    pass
                else:
                    return inline
            answer: Ranking = await self._in_line(
                live, priority, engine.rank, *args, True, priority, began_ns
            )
        except ServingError as exc:
            exc.began_ns = began_ns if exc.began_ns is None else exc.began_ns  # it may have stood in line
            fallen: Ranking | T = await self._afall(
                live,
                exc,
                otherwise,
                context,
                deadline_ms,
                request_id,
                at,
                observe,
                event_id,
                priority,
                ranking=(ids, k, available, exclude),
            )
            return fallen
        return answer


class _Rules:
    """Texts of `available=` -> what one release's engine takes; those that were used are kept."""

    def __init__(self, pipeline: Pipeline) -> None:
        import threading  # noqa: PLC0415 - for who loads a release

        from cachetools import FIFOCache  # noqa: PLC0415 - 2 ms of every import, and scorers need none

        self._engine = pipeline.need_engine()
        self._candidate = pipeline.spec.body.candidate or ""
        # First in, first out: a hit writes nothing, so reading needs no lock. Only the way in is guarded, and a guard that a
        # fork caught in another thread's hand costs the child this cache, not a hang.
        self._kept: FIFOCache[str, Any] = FIFOCache(MAX_RULES)
        self._guard = threading.Lock()

    def __call__(self, text: str) -> Any:
        rule = self._kept.get(text) if type(text) is str else None  # else parsing says what is wrong
        if rule is None:
            from retailinfer.pipeline import parse_available  # noqa: PLC0415 - there since the release was loaded

            rule = self._engine.compile_available(text, parse_available(text, self._candidate))
            if self._guard.acquire(blocking=False):
                try:
                    self._kept[text] = rule
                finally:
                    self._guard.release()
        return rule


def _kept(live: Live, candidates: Any, exclude: Any) -> tuple[Any, Any]:
    """Both, so that they can be gone through twice. Raises: as `rank`."""
    if not isinstance(candidates, (list, tuple)):
        candidates = live.engine.id_list(candidates)
    if exclude is not None and iter(exclude) is exclude:
        exclude = live.engine.id_list(exclude)
    return candidates, exclude
