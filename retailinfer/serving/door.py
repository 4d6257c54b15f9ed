"""What every front door shares: a pointer to the release that answers and its rungs, its parts to look at, waiting off the
event loop.

Rules:
  * A call reads `_live` once and takes all parts of the release from there. What lasts beside releases is `_lasting`.
  * A closed door, and one without an engine, answer with the same ConfigError whatever is asked: `Refusal` stands where the
    engine would, so that open doors pay for no check.
  * What answers is changed under `_turns` alone: by `swap`, by `roll_back`, by a follower, by `close`. The release that
    answered before stays ready (`Live.resident`), so that going back is one pointer.
  * What loads a release is imported with the first one: a process that imports doors may be one that never opens them.
  * A call that the release answers touches nothing of the ladder. One that it does not goes through `_fall`, with what its
    door was given; the ladder does the rest.
The doors themselves are scorer.py and ranker.py.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

# What doors tell of is declared in these: 2 ms that every server pays, so they belong to its start, not to its first release.
from retailinfer.contracts import Contract, Following, Freshness, Health
from retailinfer.deadline import FOREVER_NS, budget_ns, moment_ns
from retailinfer.errors import (
    ConfigError,
    DeadlineExceededError,
    OverloadedError,
    ServingError,
)
from retailinfer.release.manifest import Manifest
from retailinfer.serving.looplag import LoopLag
from retailinfer.serving.threads import Threads

if TYPE_CHECKING:
    from retailinfer._native.admission import Permits
    from retailinfer.features.spec import FeatureSpec
    from retailinfer.pipeline import Pipeline
    from retailinfer.policy import Policy
    from retailinfer.release.trust import LogEntry
    from retailinfer.resilience.ladder import Call
    from retailinfer.serving.follower import Follower, Incoming
    from retailinfer.serving.lasting import RemoteModel
    from retailinfer.serving.live import Live

__all__ = ["INLINE_BELOW_US", "RAISE", "Door", "EventId", "Raise"]

EventId: TypeAlias = str | bytes | int

LINE_PERCENT = {"critical": 100, "sheddable": 80}  # of `max_waiting`, as of the permits; others 60
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
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        from retailinfer.serving.answers import check_declared  # noqa: PLC0415 - with the first release, see above
        from retailinfer.serving.drain import Drain  # noqa: PLC0415 - as above
        from retailinfer.serving.lasting import Lasting  # noqa: PLC0415 - as above
        from retailinfer.serving.turns import Turns  # noqa: PLC0415 - as above

        check_declared(pipeline.contract, previous=previous, remote=None if remote_first else remote)
        self._lasting = Lasting(
            pipeline.permits, pipeline.clock, remote=remote, remote_first=remote_first, hooks=hooks
        )
        self._loop_lag = LoopLag()
        self._threads = Threads()
        self._closed = False
        self._settings = settings  # that every further release is loaded with; None: none can be
        self._turns, self._drain = Turns(), Drain()
        self._refused = ""
        self._follower: Follower | None = None
        self._told_expired: str | None = None  # digest
        self._overrides: tuple[LogEntry, ...] = ()  # of thresholds, that a follower has seen
        self._publish(self._live_of(pipeline, previous=previous))

    def _live_of(
        self, pipeline: Pipeline, *, previous: Pipeline | None = None, resident: Live | None = None
    ) -> Live:
        """A release of this door, loaded with its settings and permits. Raises: ConfigError."""
        from retailinfer.serving.live import Live  # noqa: PLC0415 - as above

        return Live.of(pipeline, self._lasting, ranks=self._ranks, previous=previous, resident=resident)

    def _publish(self, live: Live) -> None:
        """From now on calls are answered by this; those under way go on with what they found."""
        self._live = live
        self._lasting.drill(live.ladder, live.engine if live.ladder.present else None)

    # ---- another release -------------------------------------------------------------------------------------------------

    def swap(
        self,
        release: str | os.PathLike[str] | Mapping[str, bytes],
        *,
        previous: str | os.PathLike[str] | Mapping[str, bytes] | None = None,
        why: str = "",
    ) -> None:
        """Answer with another release from now on. It is loaded as `load` would, with the same settings, while the one before
        answers; then one pointer moves. Calls under way end with the release that they began with.

        Call it in a thread that answers nobody. Swaps come one after the other, in the order in which they were asked for.
        The release before stays ready for `roll_back`, and is the ladder's rung `previous` where the new one declares that.

        Args:
            release: its directory, or its files by name.
            previous: another release for the ladder's rung of that name.
            why: for the event `Changed("release", before, after, why)`.
        Raises: as `load`; SwapError where there is no room for two releases, or where a rollback or `close` came later than
            this was asked for. Nothing has changed then, the one before answers, and an event says so.
        """
        try:
            with self._turns.turn() as asked:
                try:
                    self._swap(release, previous, why, asked)
                except Exception as exc:
                    self._refused = f"{type(exc).__name__}: {exc}"
                    raise
                finally:
                    self._drain.sweep()
                    self._drain.start()
        except Exception as exc:
            self._tell_change("swap", self._live.release, "refused", f"{type(exc).__name__}: {exc}")
            raise
        self._tell_moves()

    def roll_back(self, *, why: str) -> None:
        """Answer with the release before again: one pointer, without disk or network. Swaps that are still loading end.

        What answered until now is let go of; there is nothing to go back to after that, until the next swap. A door that
        follows a registry stays back until the pointer there moves on.

        Args:
            why: for the event.
        Raises: ConfigError where there is no release before, and no swap to end either.
        """
        with self._turns.overrule() as ended_swaps:
            live = self._live
            back = live.resident
            if back is not None:
                if self._follower is not None:
                    self._follower.decided_here(live.digest, back.digest, why)
                self._publish(msgspec.structs.replace(back, since_ns=self._lasting.clock.wall_ns()))
                self._drain.put(live.pipeline, live.previous)
                self._turns.leave("release", live.release, back.release, why)
            elif self._closed:
                raise self._closed_error()
            elif not ended_swaps:
                raise ConfigError(
                    f"{live.release} is the only release that this {type(self).__name__} has in memory",
                    hint="a release that replaces another keeps it; this one replaced none",
                )
        if back is not None and self._follower is not None:
            self._follower.look_soon()
        del live
        self._drain.start()
        self._tell_moves()

    def _swap(self, release: Any, previous: Any, why: str, asked: int) -> None:
        from retailinfer.serving.answers import check_declared  # noqa: PLC0415 - there since the release was loaded
        from retailinfer.serving.loading import load_pipelines, need_room  # noqa: PLC0415 - likewise

        if self._closed:
            raise self._closed_error()
        if self._settings is None:
            raise ConfigError(
                f"this {type(self).__name__} was made of what was loaded elsewhere: it knows no settings to load with"
            )
        need_room(release, previous)
        now, given = load_pipelines(
            release,
            previous,
            permits=self._lasting.permits,
            beside=self._live.pipeline,
            remember=False,
            **self._settings,
        )
        try:
            check_declared(now.contract, previous=given)
            before = self._live
            live = self._beside(before, now, given)
            with self._turns.moving(asked):
                pass  # what was overruled while it loaded is not remembered
            now.remember()
            with self._turns.moving(asked):
                if self._live is not before:  # a follower was faster: it is what is left now
                    before = self._live
                    live = self._beside(before, now, given)
                if self._follower is not None:
                    self._follower.decided_here(before.digest, live.digest, why)
                self._go_on_with(live, before, why)
        except BaseException:
            for one in (now, given):
                if one is not None:
                    one.close()
            raise
        if self._follower is not None:
            self._follower.look_soon()

    def _beside(self, before: Live, now: Pipeline, given: Pipeline | None = None) -> Live:
        """A release that was loaded while another one answers, which stays resident. given: for the rung `previous`."""
        from retailinfer.serving.loading import before_of  # noqa: PLC0415 - as in `_swap`

        # What must not answer any more does not do so below another one either.
        below = None if before.is_silenced else before_of(now, before.pipeline)
        return self._live_of(
            now,
            previous=given or below,
            resident=before.alone(self._lasting, ranks=self._ranks),
        )

    def _go_on_with(self, live: Live, before: Live, why: str) -> None:
        """Publish one that has `before` resident, inside `_turns.moving`; what `before` had beside it is let go of."""
        self._publish(live)
        self._refused = ""
        gone = before.resident
        if gone is not None:
            self._drain.put(gone.pipeline, gone.previous)
        if before.previous is not None and before.previous.is_twin:
            self._drain.put(before.previous)
        self._turns.leave("release", before.release, live.release, why)

    def _tell_moves(self) -> None:
        self._turns.tell(self._tell_change)

    def _closed_error(self) -> ConfigError:
        return ConfigError(f"this {type(self).__name__} is closed", hint="load the release again")

    def _tell_change(self, part: str, before: str, after: str, why: str) -> None:
        if self._lasting.changes is not None:
            self._lasting.changes.changed(part, before, after, why)

    # ---- following a registry: what begins with `_` here is called by follower.py, in the thread of a round -----------------

    @property
    def following(self) -> Following | None:
        """How this door follows its registry; None when it follows none."""
        if self._follower is None:
            return None
        live = self._live
        return self._follower.report(running=live.digest, moved=live.pipeline.moved)

    def refresh(self) -> Following:
        """Look at the registry now, in this thread, and take over what it says. What goes wrong is in what is returned.

        Raises: ConfigError for a door that follows no registry, or is closed.
        """
        if self._closed:
            raise self._closed_error()
        if self._follower is None:
            raise ConfigError(
                f"this {type(self).__name__} follows no registry",
                hint=f"make it with {type(self).__name__}.follow(registry, name)",
            )
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

    def _prepare(self, incoming: Incoming) -> Live:
        """A release with everything of this door, that nobody asks yet. Raises: as `Pipeline.load`, SwapError."""
        from retailinfer.serving.loading import load_incoming, need_room  # noqa: PLC0415 - as in `_swap`

        assert self._settings is not None
        now = load_incoming(
            incoming,
            permits=self._lasting.permits,
            beside=self._live.pipeline,
            room=lambda: need_room(incoming.files),
            **self._settings,
        )
        try:
            return self._beside(self._live, now.with_overrides(self._overrides))
        except BaseException:
            now.close()
            raise

    def _replace(self, since: Live, live: Live, *, why: str) -> bool:
        """Let another release answer, unless somebody has decided otherwise since; what answered until now stays resident."""
        with self._turns.moving():
            if moved := self._live is since and not self._closed:
                self._go_on_with(live, since, why)
        if not moved:
            self._drain.put(live.pipeline, live.previous)
        del since, live
        self._drain.start()
        self._tell_moves()
        return moved

    def _recall(self, since: Live, *, why: str) -> bool:
        """The same with what is resident."""
        if since.resident is None:
            return False
        back = msgspec.structs.replace(
            since.resident,
            resident=since.alone(self._lasting, ranks=self._ranks),
            since_ns=self._lasting.clock.wall_ns(),
        )
        with self._turns.moving():
            if self._live is not since or self._closed:
                return False
            self._publish(back)
            self._turns.leave("release", since.release, back.release, why)
        self._tell_moves()
        if since.previous is not None and since.previous.is_twin:
            self._drain.put(since.previous)
        return True

    def _adjust(self, log: tuple[LogEntry, ...]) -> None:
        """Let the thresholds that operators have moved hold in what answers, now, on its rung `previous` and after a rollback,
        and in what comes; nothing else changes.
        """
        self._overrides, live = log, self._live
        resident = None if live.resident is None else self._adjusted(live.resident, log)
        made = self._adjusted(live, log, resident)
        if made is not live:
            left, taken = made, live
            with self._turns.moving():
                if self._live is live and not self._closed:
                    self._publish(made)
                    left, taken = live, made
            kept = set(map(id, _pipelines(taken)))
            self._drain.put(*(one for one in _pipelines(left) if id(one) not in kept))
            del resident, live, made, left, taken
            self._drain.start()

    def _adjusted(self, live: Live, log: tuple[LogEntry, ...], resident: Live | None = None) -> Live:
        """The same with these overrides, beside another resident one; itself where nothing changes."""
        pipeline = live.pipeline.with_overrides(log)
        previous = None if live.previous is None else live.previous.with_overrides(log)
        if (pipeline, previous) == (live.pipeline, live.previous):
            return live if resident is live.resident else msgspec.structs.replace(live, resident=resident)
        made = self._live_of(pipeline, previous=previous, resident=resident)
        engine = live.engine.with_engine(made.engine) if live.is_silenced else made.engine
        return msgspec.structs.replace(made, engine=engine, since_ns=live.since_ns)

    def _silence(self, live: Live, why: str | None) -> None:
        """Let only the rungs below what answers answer, or end that."""
        with self._turns.moving():
            if self._live is live and not self._closed and live.is_silenced == (why is None):
                self._publish(live.restored() if why is None else live.silenced(why))

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
        health = self._live.health(self._lasting, ready=not self._closed, refused=self._refused)
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
        with self._turns.overrule():
            live = self._live
            self._closed = True
            self._live = live.closed(type(self).__name__)
        self._lasting.close()
        for one in (live, live.resident):
            if one is not None:
                one.pipeline.close()
                if one.previous is not None:
                    one.previous.close()
        self._threads.close()

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
        from retailinfer.resilience.ladder import Call  # noqa: PLC0415 - as in `_swap`

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
        from retailinfer.resilience.ladder import Call  # noqa: PLC0415 - as in `_swap`

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
        if live.ladder.waits:
            threads = self._threads
            if threads.are_full(threads.n + 2 * self._lasting.permits.max_waiting):
                error, otherwise = args[:2]
                if otherwise is RAISE:
                    raise error
                return otherwise
            return await threads.run_in_line(live, partial(self._fall, live, *args, **options))
        return self._fall(live, *args, **options)

    async def _in_line(self, live: Live, priority: str, call: Any, *args: Any) -> Any:
        """A call of the engine, in a thread: beside those there as many stand in line as the permits let wait, of lower
        priority fewer. Raises: OverloadedError.
        """
        permits, threads = self._lasting.permits, self._threads
        if threads.are_full(permits.max_waiting * LINE_PERCENT.get(priority, 60) // 100):
            permits.shed(
                f"{len(threads.line)} calls of coroutines stand in line for {threads.n} threads", priority
            )
        return await threads.run_in_line(live, call, *args)


def _pipelines(live: Live) -> list[Pipeline]:
    """All that a release in a door keeps loaded."""
    below = [] if live.resident is None else _pipelines(live.resident)
    return [live.pipeline, *([] if live.previous is None else [live.previous]), *below]
