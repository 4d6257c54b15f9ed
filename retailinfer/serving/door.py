"""What every front door shares: a pointer to the release that answers and its rungs, its parts to look at, waiting off the
event loop.

Rules:
  * A call reads `_live` once and takes all parts of the release from there. What lasts beside releases is `_lasting`.
  * A closed door, and one without an engine, answer with the same ConfigError whatever is asked: `Refusal` stands where the
    engine would, so that open doors pay for no check.
  * Threads are made at the first call that needs one, in the process that makes it.
  * A call that the release answers touches nothing of the ladder. One that it does not goes through `_fall`, with what its
    door was given; the ladder does the rest.
The doors themselves are scorer.py and ranker.py.
"""

from __future__ import annotations

import datetime as dt
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from retailinfer.cpus import usable_cpus
from retailinfer.deadline import FOREVER_NS, budget_ns
from retailinfer.errors import ConfigError, DeadlineExceededError, OverloadedError, ServingError
from retailinfer.pipeline import Pipeline, moment_ns
from retailinfer.resilience.ladder import CONCURRENCY, Call
from retailinfer.serving.answers import check_declared
from retailinfer.serving.lasting import Lasting, RemoteModel
from retailinfer.serving.live import Live
from retailinfer.serving.looplag import LoopLag

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from retailinfer._native.admission import Permits
    from retailinfer.contracts import Contract, Following, Freshness, Health
    from retailinfer.features.spec import FeatureSpec
    from retailinfer.policy import Policy
    from retailinfer.release.manifest import Manifest
    from retailinfer.serving.follower import Follower, Source

__all__ = ["INLINE_BELOW_US", "RAISE", "Door", "EventId", "Raise", "load_pipelines"]

EventId: TypeAlias = str | bytes | int

MOST_THREADS = 8  # beside the event loop: more of them wait for the GIL longer than they run without it
LINE_PERCENT = {"critical": 100, "sheddable": 80}  # of `max_waiting`, as of the permits; others 60
WAITING = 16  # calls of coroutines that may wait for sources at the same time
INLINE_BELOW_US = 200.0  # an event loop notices more than this


class Raise:
    """What `otherwise=` is where a call gives none: the error is raised. None is a value like any other."""

    def __repr__(self) -> str:
        return "<raise>"


RAISE = Raise()


class Door:
    """What Scorer and Ranker share: the pointer to the loaded release, what lasts beside it, waiting off the event loop."""

    _ranks = False

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        previous: Pipeline | None = None,
        remote: RemoteModel | None = None,
        remote_first: bool = False,
        hooks: Iterable[Any] = (),
    ) -> None:
        check_declared(pipeline.contract, previous=previous, remote=None if remote_first else remote)
        self._lasting = Lasting(
            pipeline.permits, pipeline.clock, remote=remote, remote_first=remote_first, hooks=hooks
        )
        self._loop_lag = LoopLag()
        self._executor: ThreadPoolExecutor | None = None
        self._executor_pid = 0
        self._workers = 0
        self._line: set[object] = (
            set()
        )  # calls of coroutines, until they end; loops of several threads share it
        self._closed = False
        self._options: dict[str, Any] = {}  # that every release of a door that follows is loaded with
        self._follower: Follower | None = None
        self._told_expired: str | None = None  # digest
        self._moving = threading.Lock()  # the pointer
        self._publish(self._live_of(pipeline, previous=previous))

    def _live_of(
        self, pipeline: Pipeline, *, previous: Pipeline | None = None, resident: Live | None = None
    ) -> Live:
        """A release of this door, loaded with its settings and permits. Raises: ConfigError."""
        return Live.of(pipeline, self._lasting, ranks=self._ranks, previous=previous, resident=resident)

    def _publish(self, live: Live) -> None:
        """From now on calls are answered by this; those under way go on with what they found."""
        self._live = live
        self._lasting.drill(live.ladder, live.engine if live.ladder.present else None)

    def roll_back(self, *, why: str) -> None:
        """Let the release before this one answer again, which is in memory still: one pointer moves, nothing is read.

        A door that follows a registry stays back until the pointer there moves on. Raises: ConfigError where there is none.
        """
        with self._moving:
            live = self._live
            back = self._resident_of(live)
            if back is None:
                raise ConfigError(
                    f"{live.release} is the only release that this {type(self).__name__} has in memory",
                    hint="a release that replaces another keeps it; this one replaced none",
                )
            self._publish(back)
        self._tell_change("release", live.release, back.release, why)
        if self._follower is not None:
            self._follower.decided_here(live.digest, back.digest, why)

    def _resident_of(self, live: Live) -> Live | None:
        """The release that a rollback leads to, with what is left as its own resident."""
        if live.resident is None:
            return None
        return msgspec.structs.replace(live.resident, resident=msgspec.structs.replace(live, resident=None))

    def _tell_change(self, part: str, before: str, after: str, why: str) -> None:
        if self._lasting.changes is not None:
            self._lasting.changes.changed(part, before, after, why)

    # ---- following a registry --------------------------------------------------------------------------------------------

    @property
    def following(self) -> Following | None:
        """How this door follows its registry; None when it follows none."""
        if self._follower is None:
            return None
        live = self._live
        return self._follower.report(running=live.digest)

    def refresh(self) -> Following:
        """Look at the registry now, in this thread, and take over what it says. What goes wrong is in what is returned.

        Raises: ConfigError for a door that follows no registry, or is closed.
        """
        if self._follower is None or self._closed:
            what = (
                f"this {type(self).__name__} is closed"
                if self._closed
                else f"this {type(self).__name__} follows no registry"
            )
            raise ConfigError(what, hint=f"make it with {type(self).__name__}.follow(registry, name)")
        self._follower.refresh()
        found = self.following
        assert found is not None
        return found

    def _look_at_expiry(self) -> int:
        """Seconds since what answers has expired; hooks are told once."""
        live = self._live
        late_s = live.expired_s(self._lasting.clock.wall_ns())
        if late_s and self._told_expired != live.digest:
            self._told_expired = live.digest
            self._tell_change("release", live.release, "expired", f"on {live.expires}; it answers on")
        return late_s

    def _prepare(self, source: Source) -> Live:
        """A release with everything of this door, that nobody asks yet. Raises: as `Pipeline.load`."""
        pipeline = Pipeline.load(
            source.files,
            trust=source.trust,
            expected=source.expected,
            chosen=False,
            remember=False,
            permits=self._lasting.permits,
            **self._options,
        )
        try:
            return self._live_of(pipeline)
        except BaseException:
            pipeline.close()
            raise

    def _replace(self, since: Live, live: Live, *, why: str) -> bool:
        """Let another release answer, unless somebody has decided otherwise since; what answered until now stays resident."""
        with self._moving:
            if self._live is not since or self._closed:
                return False
            self._publish(
                msgspec.structs.replace(live, resident=msgspec.structs.replace(since, resident=None))
            )
        if since.resident is not None:
            since.resident.pipeline.close()
        self._tell_change("release", since.release, live.release, why)
        return True

    def _recall(self, since: Live, *, why: str) -> bool:
        """The same with what is resident."""
        with self._moving:
            back = self._resident_of(since)
            if self._live is not since or self._closed or back is None:
                return False
            self._publish(back)
        self._tell_change("release", since.release, back.release, why)
        return True

    def _withdraw(self, live: Live, why: str | None) -> None:
        """Let only the rungs below what answers answer, or end that."""
        with self._moving:
            if self._live is live and not self._closed and live.is_withdrawn == (why is None):
                self._publish(live.restored() if why is None else live.withdrawn(why))

    @property
    def closed(self) -> bool:
        """Whether `close` was called: every other use is a ConfigError then."""
        return self._closed

    @property
    def manifest(self) -> Manifest:
        """What the release says of itself."""
        return self._live.pipeline.manifest

    @property
    def spec(self) -> FeatureSpec:
        """The features of the release."""
        return self._live.pipeline.spec

    @property
    def policy(self) -> Policy | None:
        """Score -> action, with thresholds that an operator has moved where they are now."""
        return self._live.pipeline.policy_in_force

    @property
    def contract(self) -> Contract:
        """What the use case promises."""
        return self._live.pipeline.contract

    @property
    def request_type(self) -> type[msgspec.Struct]:
        """The frozen Struct that JSON requests decode into; building it yourself is the fastest way in."""
        pipeline = self._live.pipeline
        pipeline.need_engine()
        return pipeline.request_type

    @property
    def outside(self) -> dict[str, int]:
        """Column -> values outside its training range since the release was loaded. They are counted, not changed."""
        counts: dict[str, int] = self._live.pipeline.need_engine().outside_counts()
        return counts

    @property
    def freshness(self) -> Freshness:
        """How many answers were made without a stale and without an unavailable value, since the release was loaded."""
        return self._live.freshness

    @property
    def permits(self) -> Permits:
        """How many calls may be under way; `permits.check(priority)` refuses a request before its body is read."""
        return self._lasting.permits

    @property
    def loop_lag(self) -> LoopLag:
        """How late the event loops are that coroutines call in; what is too late counts as overload."""
        return self._loop_lag

    def health(self) -> Health:
        """How this door is, in this process: whether it answers, its rungs, permits, latencies; for probes and people.

        Asking also tells hooks of rungs that have grown cold.
        """
        health = self._live.health(self._lasting, ready=not self._closed)
        return msgspec.structs.replace(health, expired_s=self._look_at_expiry(), following=self.following)

    def observe(
        self,
        stream: str,
        event: object,
        *,
        event_id: EventId | None = None,
        at: dt.datetime | float | None = None,
        deadline_ms: float | None = None,
    ) -> None:
        """Count an event of a stream in the windows, without an answer: a label that arrives, a payment scored elsewhere.

        Args:
            event: dict, msgspec Struct or dataclass with the stream's fields.
            event_id: one that its entity saw lately (among its last 8) is not counted again.
            at: when it happened, where it has no time of its own; now by default.
            deadline_ms: of the round trip to shared windows; the contract's by default.
        Raises: FeatureError for the event; ConfigError for a stream that no window counts.
        """
        live = self._live
        live.engine.has_clock  # noqa: B018 - a closed door, and one without features, says so
        live.pipeline.observer(stream).observe(
            event,
            event_id,
            0 if at is None else moment_ns(at),
            0 if deadline_ms is None else budget_ns(deadline_ms),
        )

    def close(self) -> None:
        """Let go of tables and threads. Calls under way finish; later ones raise ConfigError."""
        if self._follower is not None:
            self._follower.close()
        live = self._live
        self._closed = True
        self._live = live.closed(type(self).__name__)
        self._lasting.close()
        live.pipeline.close()
        if live.previous is not None:
            live.previous.close()
        if live.resident is not None:
            live.resident.pipeline.close()
        if self._executor is not None and self._executor_pid == os.getpid():
            self._executor.shutdown(wait=True)
            self._executor = None

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.manifest.release}>"

    # ---- down the ladder -----------------------------------------------------------------------------------------------

    def _fall(
        self,
        live: Live,
        error: ServingError,
        otherwise: Any,
        request: Any,
        deadline_ms: float | None,
        request_id: str | None,
        at: dt.datetime | float | None,
        observe: bool,
        event_id: EventId | None,
        priority: str,
        *,
        opens: Callable[[Call], None] | None = None,
        encode: Callable[[Any], bytes] | None = None,
        ranking: tuple[Any, int, str | None, Any] | None = None,
    ) -> Any:
        """The answer of a rung below the release, which failed with `error`; the caller's `otherwise` where no rung has one.

        Args:
            live: that the call found.
            opens: decodes the request, where it came as bytes; encode: makes bytes of the answer again.
            ranking: candidates, k, available, exclude.
        Raises: ServingError where there is no `otherwise`; CallerError for bytes that turn out to be no request.
        """
        if isinstance(error, OverloadedError) and not (live.ladder.present and priority == "critical"):
            if otherwise is RAISE:  # shed calls go nowhere, at once
                raise error
            return otherwise
        pipeline = live.pipeline
        began = pipeline.clock.monotonic_ns() if error.began_ns is None else error.began_ns
        try:
            budget = pipeline.budget_ns if deadline_ms is None else budget_ns(deadline_ms)
        except DeadlineExceededError:
            budget = 0  # it was over before it began
        candidates, k, available, exclude = ranking or (None, 0, None, None)
        call = Call(
            request,
            began_ns=began,
            end_ns=began + budget,
            request_id=request_id,
            now_ns=0 if at is None else moment_ns(at),
            priority=priority,
            observe=observe,
            event_id=event_id,
            candidates=candidates,
            k=k,
            available=available,
            exclude=exclude,
            opens=opens,
        )
        try:
            answer = live.ladder.answer(call, error)
        except ServingError:
            if otherwise is RAISE:
                raise
            return otherwise
        return answer if encode is None else encode(answer)

    def _whole_failed(self, live: Live, error: ServingError, priority: str) -> None:
        """A batch failed as a whole: one event."""
        began = self._lasting.clock.monotonic_ns() if error.began_ns is None else error.began_ns
        live.ladder.failed(Call(None, began_ns=began, end_ns=began, priority=priority), error)

    def _left_ms(self, error: ServingError, deadline_ms: float) -> float:
        """What is left of a call's own deadline after it failed. Raises: the error, where nothing is."""
        budget = budget_ns(deadline_ms)
        if budget >= FOREVER_NS or error.began_ns is None:
            return deadline_ms
        left = error.began_ns + budget - self._lasting.clock.monotonic_ns()
        if left <= 0:
            raise error
        return left / 1e6

    async def _afall(self, live: Live, *args: Any, **options: Any) -> Any:
        """`_fall` for coroutines: rungs that wait for others do so in a thread, unless the line there is twice too long."""
        from functools import partial  # noqa: PLC0415 - services without coroutines load scorers too

        if live.ladder.waits:
            most = 2 * (self._workers + self._lasting.permits.max_waiting)
            if self._executor_pid == os.getpid() and len(self._line) >= most:
                error, otherwise = args[:2]
                if otherwise is RAISE:
                    raise error
                return otherwise
            return await self._counted(live, partial(self._fall, live, *args, **options))
        return self._fall(live, *args, **options)

    async def _in_line(self, live: Live, priority: str, call: Any, *args: Any) -> Any:
        """`_off_loop` for calls of the engine: beside those in threads as many stand in line as the permits let wait, of lower
        priority fewer. Raises: OverloadedError.
        """
        permits = self._lasting.permits
        most = permits.max_waiting * LINE_PERCENT.get(priority, 60) // 100
        if len(self._line) >= self._workers + most and self._executor_pid == os.getpid():
            permits.shed(
                f"{len(self._line)} calls of coroutines stand in line for {self._workers} threads", priority
            )
        return await self._counted(live, call, *args)

    async def _counted(self, live: Live, call: Any, *args: Any) -> Any:
        line, one = self._line, object()
        line.add(one)
        try:
            return await self._off_loop(live, call, *args)
        finally:
            line.discard(one)

    async def _off_loop(self, live: Live, call: Any, *args: Any) -> Any:
        """Run in a small pool of this process's own; the event loop goes on."""
        import asyncio  # noqa: PLC0415 - services without coroutines load scorers too

        # A thread a CPU; threads that wait for a source or a round trip use none, so there may be more.
        if self._executor is None or self._executor_pid != os.getpid():  # threads do not survive a fork
            self._new_executor(max(WAITING if live.waits else 1, min(usable_cpus(), MOST_THREADS)))
        elif self._workers < WAITING and live.waits:  # another release did not
            self._new_executor(WAITING)
        return await asyncio.get_running_loop().run_in_executor(self._executor, call, *args)

    def _new_executor(self, workers: int) -> None:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - as above

        before = self._executor
        if self._executor_pid not in (0, os.getpid()):
            self._line = set()  # nobody of the parent's stands in it
            before = None
        self._executor = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="retailinfer")
        self._executor_pid, self._workers = os.getpid(), workers
        if before is not None:
            before.shutdown(wait=False)  # what stands in its line is done still


def load_pipelines(
    release: Any,
    previous: Any,
    *,
    contract: Mapping[str, Any] | str | os.PathLike[str] | None,
    max_in_flight: int | None,
    **options: Any,
) -> tuple[Pipeline, Pipeline | None]:
    """A release and the one before it, with the same settings; the rung's own limit bounds the latter's calls.

    Raises: BundleError, ConfigError, SpecError for a `contract` that contradicts the release.
    """
    now = Pipeline.load(release, contract=contract, max_in_flight=max_in_flight, **options)
    if previous is None:
        return now, None
    rung = next((rung for rung in now.contract.ladder if rung.kind == "previous"), None)
    most = None if rung is None else rung.max_concurrency
    # one more than the rung lets in: a drill
    try:
        before = Pipeline.load(
            previous, max_in_flight=(most or CONCURRENCY) + 1, instead_of=now.manifest, **options
        )
    except BaseException:
        now.close()
        raise
    return now, before
