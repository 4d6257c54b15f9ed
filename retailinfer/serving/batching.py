"""Micro-batching for asyncio: requests that come at about the same time are scored in one run of the model.

Rules:
  * The same bits as alone: refused where a release is not `row_independent`.
  * A request waits for others at most `max_delay_ms` and a tenth of its deadline, and not at all once `max_rows` are
    there. Nobody's short deadline costs anybody else a value: a batch has the time of its most patient row, and
    who is late gets that answer as an error of its own.
  * Errors are each caller's own, with paths as if it had been alone, and each goes down the ladder by itself. A caller that is
    cancelled before the run takes no part in it.
  * Batches run in the event loop while they are short, and in the door's threads where they are not or may wait. Two at most
    are away at once; what comes meanwhile is collected for the next. More than that is an OverloadedError at once.
  * A batch is of one release: the one that answers when it begins. Another release may come while requests wait.
  * One batcher serves any number of event loops, each with a queue of its own; nothing here has a thread or a lock, nor a task
    that outlives its batch.
What a batch does is `_native/engine.pyx`; rungs and threads are door.py.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import weakref
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from retailinfer.deadline import FOREVER_NS, budget_ns, moment_ns
from retailinfer.errors import (
    ConfigError,
    DeadlineExceededError,
    FeatureError,
    OverloadedError,
    RetailInferError,
    ScoreError,
    ServingError,
    clip,
)
from retailinfer.serving.door import INLINE_BELOW_US, RAISE, Door, Raise

if TYPE_CHECKING:
    from retailinfer.contracts import Decision
    from retailinfer.serving.door import EventId
    from retailinfer.serving.live import Live

__all__ = ["MicroBatcher", "predicted_ns"]

T = TypeVar("T")

AT_ONCE = 2  # batches that are away in threads: as many as two cores run
WAITING = 4  # times `max_rows` that may wait while batches are away
MOST_ROWS = 512  # the engine's tile: more rows are several runs
MOST_DELAY_MS = 1_000.0
WAIT_SHARE = 0.1  # of its time a request waits for others at most


class _Row:
    """One caller: what it asks, until when, and where it waits."""

    __slots__ = ("began_ns", "call", "end_ns", "event_id", "future", "group", "request", "request_id")

    def __init__(
        self,
        request: object,
        request_id: str | None,
        event_id: EventId | None,
        began_ns: int,
        end_ns: int,
        group: tuple[int, bool, str],
        call: tuple[Any, ...],
        future: asyncio.Future[Any],
    ) -> None:
        self.request = request
        self.request_id = request_id
        self.event_id = event_id
        self.began_ns = began_ns
        self.end_ns = end_ns
        self.group = group  # moment, whether it is counted, priority: what a batch has one of
        self.call = call  # as the door's ladder takes it
        self.future = future


class _Queue:
    """What waits in one event loop."""

    __slots__ = ("at_s", "away", "rows", "tasks", "timer")

    def __init__(self) -> None:
        self.rows: list[_Row] = []
        self.timer: asyncio.TimerHandle | None = None
        self.at_s = 0.0  # when the timer runs, by the loop's clock
        self.away = 0  # batches in threads
        self.tasks: set[asyncio.Task[None]] = set()  # a loop itself holds on to none

    def begin(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
        task = loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class MicroBatcher:
    """Collects requests of coroutines into batches. Get one from `Scorer.batcher`.

    Attributes:
        n_batches, n_rows: that were run. n_late: answers that came after their row's deadline, and were dropped.
        n_rejected: requests that were refused because too many waited.
    """

    def __init__(self, door: Door, *, max_rows: int = 32, max_delay_ms: float = 1.0) -> None:
        pipeline = door._live.pipeline
        if isinstance(max_rows, bool) or not isinstance(max_rows, int) or not 2 <= max_rows <= MOST_ROWS:
            raise ConfigError(f"Expected max_rows from 2 to {MOST_ROWS}, got {clip(max_rows)}")
        is_number = isinstance(max_delay_ms, (int, float)) and not isinstance(max_delay_ms, bool)
        if not is_number or not 0 <= max_delay_ms <= MOST_DELAY_MS:
            raise ConfigError(f"Expected max_delay_ms from 0 to {MOST_DELAY_MS:g}, got {clip(max_delay_ms)}")
        pipeline.need_engine()
        if not pipeline.row_independent:
            raise ConfigError(
                "a score of this release depends on which rows run together: its requests are not batched",
                hint="is the model quantised dynamically, or of a fixed batch size? see `retailinfer inspect`",
            )
        if pipeline.contract.max_rows < max_rows:
            raise ConfigError(
                f"Expected max_rows up to {pipeline.contract.max_rows}, as the contract has it, got {max_rows}"
            )
        self._door = door
        self._clock = pipeline.clock
        self._max_rows = max_rows
        self._delay_s = max_delay_ms / 1e3
        self._queues: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Queue] = (
            weakref.WeakKeyDictionary()
        )
        self.n_batches = self.n_rows = self.n_late = self.n_rejected = 0

    def __repr__(self) -> str:
        return f"<MicroBatcher {self._door._live.release}, up to {self._max_rows} rows within {self._delay_s * 1e3:g} ms>"

    async def score(
        self,
        request: object,
        *,
        deadline_ms: float | None = None,
        request_id: str | None = None,
        at: dt.datetime | float | None = None,
        observe: bool = False,
        event_id: EventId | None = None,
        priority: str = "critical",
        otherwise: T | Raise = RAISE,
    ) -> Decision | T:
        """`Scorer.score` for coroutines, together with whoever else asks now.

        Args: as for `Scorer.score`. Without `at` the moment is that of the batch. A batch is one call, so it takes one permit.
        Raises: as `Scorer.score`; OverloadedError also where too many wait for batches that are away.
        """
        call = (otherwise, request, deadline_ms, request_id, at, observe, event_id, priority)
        live = self._door._live
        began_ns = self._clock.monotonic_ns()
        loop = asyncio.get_running_loop()
        queue = self._queues.get(loop)
        if queue is None:
            queue = self._queues[loop] = _Queue()
        try:
            self._door._loop_lag.check(priority)
            now_ns = 0 if at is None else moment_ns(at)
            budget = live.pipeline.budget_ns if deadline_ms is None else budget_ns(deadline_ms)
            if queue.away >= AT_ONCE and len(queue.rows) >= WAITING * self._max_rows:
                self.n_rejected += 1
                raise OverloadedError(f"{len(queue.rows)} requests wait for a batch already")
        except ServingError as exc:
            exc.began_ns = began_ns
            fallen: Decision | T = await self._door._afall(live, exc, *call)
            return fallen
        end_ns = FOREVER_NS if budget >= FOREVER_NS else began_ns + budget
        future: asyncio.Future[Decision | T] = loop.create_future()
        group = (now_ns, bool(observe), priority)
        queue.rows.append(_Row(request, request_id, event_id, began_ns, end_ns, group, call, future))
        if len(queue.rows) >= self._max_rows:
            self._flush(loop, queue)
        else:
            self._set_timer(loop, queue, budget)
        return await future

    # ---- when ----------------------------------------------------------------------------------------------------------

    def _set_timer(self, loop: asyncio.AbstractEventLoop, queue: _Queue, budget: int) -> None:
        """The first row sets it; one with little time sets it to an earlier moment."""
        delay_s = self._delay_s
        if budget < FOREVER_NS:
            delay_s = min(delay_s, WAIT_SHARE * budget / 1e9)
        at_s = loop.time() + delay_s
        if queue.timer is not None:
            if at_s >= queue.at_s:
                return
            queue.timer.cancel()
        queue.at_s = at_s
        queue.timer = loop.call_at(at_s, self._flush, loop, queue)

    def _flush(self, loop: asyncio.AbstractEventLoop, queue: _Queue) -> None:
        """Run what waits, unless two batches are away: then the first to come back does."""
        if queue.timer is not None:
            queue.timer.cancel()
            queue.timer = None
        while queue.rows and queue.away < AT_ONCE:
            live = self._door._live
            most = min(self._max_rows, live.pipeline.contract.max_rows)
            rows, queue.rows = queue.rows[:most], queue.rows[most:]
            groups: dict[tuple[int, bool, str], list[_Row]] = {}
            for row in rows:
                if not row.future.done():  # else its caller has been cancelled
                    groups.setdefault(row.group, []).append(row)
            for group in groups.values():
                self._start(loop, queue, live, group)

    # ---- how -----------------------------------------------------------------------------------------------------------

    def _start(self, loop: asyncio.AbstractEventLoop, queue: _Queue, live: Live, rows: list[_Row]) -> None:
        """One batch: here, or in a thread where it is long or may wait."""
        took_ns = predicted_ns(live, len(rows))
        now_ns = self._clock.monotonic_ns()
        for row in rows:
            if row.end_ns - now_ns <= took_ns:
                left_ms = (row.end_ns - now_ns) / 1e6
                text = (
                    f"{left_ms:.3g} ms are left of the deadline, and the batch takes {took_ns / 1e6:.3g} ms"
                )
                self._end(loop, queue, live, row, DeadlineExceededError(text))
        rows = [row for row in rows if row.end_ns - now_ns > took_ns]
        if not rows:
            return
        if took_ns >= 1e3 * INLINE_BELOW_US or (
            live.pipeline.engine is not None and live.pipeline.engine.waits
        ):
            queue.away += 1
            queue.begin(loop, self._away(loop, queue, live, rows))
            return
        try:
            answers = self._answers(live, rows)
        except BaseException as exc:
            _give_up(rows, exc)
            if isinstance(exc, Exception):
                return  # each caller has it
            raise
        self._settle(loop, queue, live, rows, answers)

    async def _away(
        self, loop: asyncio.AbstractEventLoop, queue: _Queue, live: Live, rows: list[_Row]
    ) -> None:
        try:
            answers = await self._door._threads.run(live, self._answers, live, rows)
        except BaseException as exc:
            _give_up(rows, exc)
            if not isinstance(exc, Exception):
                raise
        else:
            self._settle(loop, queue, live, rows, answers)
        finally:
            queue.away -= 1
        if queue.rows and queue.timer is None:
            self._flush(loop, queue)

    def _answers(self, live: Live, rows: list[_Row]) -> list[Any]:
        """An answer or an error for each row."""
        now_ns, observe, priority = rows[0].group
        end_ns = max(row.end_ns for row in rows)
        left_ns = FOREVER_NS if end_ns >= FOREVER_NS else max(1, end_ns - self._clock.monotonic_ns())
        has_ids = any(row.event_id is not None for row in rows)
        try:
            answers: list[Any] = live.engine.score_batch(
                [row.request for row in rows],
                True,
                now_ns,
                [row.request_id for row in rows],
                0,
                left_ns,
                observe,
                [row.event_id for row in rows] if has_ids else None,
                priority,
            )
        except RetailInferError as exc:  # of the whole batch: each row's own
            return [exc] * len(rows)
        return answers

    def _settle(
        self,
        loop: asyncio.AbstractEventLoop,
        queue: _Queue,
        live: Live,
        rows: list[_Row],
        answers: list[Any],
    ) -> None:
        self.n_batches += 1
        self.n_rows += len(rows)
        now_ns = self._clock.monotonic_ns()
        for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            if row.future.done():
                continue
            if isinstance(answer, RetailInferError):
                self._end(loop, queue, live, row, _alone(answer, i))
            elif now_ns > row.end_ns:
                self.n_late += 1
                late_ms = (now_ns - row.end_ns) / 1e6
                error = DeadlineExceededError(
                    f"the answer came {late_ms:.3g} ms after the deadline, and was dropped"
                )
                error.late = True
                error.counted = row.group[1]
                self._end(loop, queue, live, row, error)
            else:
                row.future.set_result(answer)

    def _end(
        self,
        loop: asyncio.AbstractEventLoop,
        queue: _Queue,
        live: Live,
        row: _Row,
        error: RetailInferError,
    ) -> None:
        """A row without an answer: a caller's mistake is raised, anything else goes down the ladder by itself."""
        if isinstance(error, ServingError):
            error.began_ns = row.began_ns
            queue.begin(loop, self._fall(live, row, error))
        else:
            row.future.set_exception(error)

    async def _fall(self, live: Live, row: _Row, error: ServingError) -> None:
        try:
            answer = await self._door._afall(live, error, *row.call)
        except BaseException as exc:
            _give_up([row], exc)
            if not isinstance(exc, Exception):
                raise
        else:
            if not row.future.done():
                row.future.set_result(answer)


def predicted_ns(live: Live, n_rows: int) -> float:
    """What a batch takes; where rows of a batch influence each other, each runs alone in it."""
    engine = live.pipeline.engine
    if engine is None:  # a release of arrays came meanwhile: each caller is told so
        return 0.0
    if live.pipeline.row_independent:
        return 1e3 * (engine.fixed_us + n_rows * engine.row_us)
    return 1e3 * n_rows * (engine.fixed_us + engine.row_us)


def _give_up(rows: list[_Row], exc: BaseException) -> None:
    """There is no answer, or the loop ends: nobody must go on waiting."""
    for row in rows:
        if isinstance(exc, Exception) and not row.future.done():
            row.future.set_exception(exc)
        else:
            row.future.cancel()


def _alone(error: RetailInferError, row: int) -> RetailInferError:
    """The error as it would be, had the request come alone: an object of its own, with paths that name no row."""
    own = type(error).__new__(type(error))
    own.__dict__.update(error.__dict__)
    own.args = error.args
    own.__cause__ = error.__cause__
    if isinstance(own, (FeatureError, ScoreError)) and own.args:
        own.args = (str(own.args[0]).replace(f"`$[{row}]", "`$"),)
        if isinstance(own, FeatureError):
            own.path = own.path.replace(f"$[{row}]", "$", 1)
    return own
