"""A model server first: it answers, and the release that is loaded here scores every request beside it.

Rules:
  * For those who move from a model service into their own process: the answers stay the service's until both have been
    compared for as long as anybody likes. Features and policy are this release's in both cases.
  * The local model runs first, on the very arrays that are sent: its score is there when the server's is not. Then the
    decision is made of it, within the same deadline, and its release says so.
  * A permit is held for the features and the local model, and not while the server is waited for.
  * What differs is counted, never logged: shares of equal actions, the largest difference of scores, how long both took.
  * It stands where the engine stands in a Scorer, and has the engine's calls; all else is the engine's.
The servers are resilience/remote/; agreement is read by `Scorer.agreement`.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from retailinfer.contracts import Agreement
from retailinfer.errors import (
    ConfigError,
    DeadlineExceededError,
    LimitError,
    RemoteError,
    RetailInferError,
    ScoreError,
    ServingError,
    SessionError,
    WouldWait,
)
from retailinfer.life import begin_again_in_children
from retailinfer.monitoring.events import Answered
from retailinfer.resilience.latency import Latency
from retailinfer.serving.answers import knows_load, remote_inputs, remote_release, remote_score, sheds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer.contracts import Decision
    from retailinfer.pipeline import Pipeline
    from retailinfer.serving.lasting import RemoteModel

__all__ = ["RemoteFirst"]

_KEPT_NS = 3_000_000  # of the deadline, for deciding; a tenth of it where it is shorter than 30 ms


class _Tally:
    """What has been compared in this process."""

    def __init__(self) -> None:
        self.begin_in_child()
        begin_again_in_children(self)

    def begin_in_child(self) -> None:
        """Nothing of the parent's."""
        self.lock = threading.Lock()
        self.answers = self.compared = self.equal = self.local_answers = self.local_failures = 0
        self.largest = 0.0
        self.why: Counter[str] = Counter()
        self.remote = Latency(size=1_024, every=64)
        self.local = Latency(size=1_024, every=64)


class RemoteFirst:
    """The calls of an engine, answered by a model server. See the rules above."""

    waits = True
    one_us = float("inf")  # never inside an event loop

    def __init__(self, pipeline: Pipeline, remote: RemoteModel) -> None:
        self._engine = pipeline.need_engine()
        self._pipeline = pipeline
        self._infer: Any = remote.infer
        self._is_ours = knows_load(remote)
        self._names = remote_inputs(pipeline)
        score = pipeline.manifest.score
        assert score is not None
        self._output, self._column = score.output, score.column
        self._release = remote_release(pipeline, remote)
        self._on_drill: Callable[[Any, Any], object] | None = None
        self._every = self._until_drill = 0
        self.n_answers = self.n_fresh = 0
        self._tally = _Tally()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def set_drill(self, on_drill: Callable[[Any, Any], object] | None, every: int) -> None:
        """As `Engine.set_drill`."""
        self._on_drill, self._every, self._until_drill = on_drill, every, every

    # --- the calls ----------------------------------------------------------------------------------------------------

    def score(
        self,
        request: object,
        request_id: str | None = None,
        now_ns: int = 0,
        budget_ns: int = 0,
        observe: bool = False,
        event_id: str | bytes | int | None = None,
        may_wait: bool = True,
        priority: str = "critical",
        began_ns: int = 0,
    ) -> Decision:
        """As `Engine.score`. Raises also RemoteError, where neither the servers nor the local model answered."""
        if not may_wait:
            raise WouldWait
        began_ns, end_ns = self._begin(budget_ns, began_ns)
        permits = self._pipeline.permits
        permit = permits.take(priority)
        try:
            left_ns = max(1, end_ns - self._pipeline.clock.monotonic_ns())
            prepared = self._engine.prepare(request, now_ns, left_ns, observe, event_id, permit)
            arrays, local = self._local([prepared])
        except ServingError as exc:
            exc.began_ns = began_ns
            raise
        finally:
            permits.give(permit)
        answer = self._answer([prepared], arrays, local, [request_id], began_ns, end_ns, priority)[0]
        if isinstance(answer, ServingError):
            answer.counted, answer.began_ns = prepared.counted, began_ns
            raise answer
        return answer

    def score_json(
        self,
        body: bytes,
        request_id: str | None = None,
        now_ns: int = 0,
        budget_ns: int = 0,
        observe: bool = False,
        event_id: str | bytes | int | None = None,
        may_wait: bool = True,
        priority: str = "critical",
    ) -> bytes:
        """As `Engine.score_json`."""
        self._pipeline.permits.check(priority)  # before the body is read
        request = self._engine.decode(body, "json")
        answer = self.score(request, request_id, now_ns, budget_ns, observe, event_id, may_wait, priority)
        made: bytes = self._engine.encode(answer, "json")
        return made

    def score_msgpack(
        self,
        body: bytes,
        decode: Callable[[bytes], Any],
        encode: Callable[[Any], bytes],
        request_id: str | None = None,
        now_ns: int = 0,
        budget_ns: int = 0,
        observe: bool = False,
        event_id: str | bytes | int | None = None,
        may_wait: bool = True,
        priority: str = "critical",
    ) -> bytes:
        """As `Engine.score_msgpack`."""
        self._pipeline.permits.check(priority)
        request = self._engine.decode(body, "msgpack")
        answer = self.score(request, request_id, now_ns, budget_ns, observe, event_id, may_wait, priority)
        made: bytes = self._engine.encode(answer, "msgpack")
        return made

    def score_batch(
        self,
        requests: Iterable[object],
        row_errors: bool = False,
        now_ns: int = 0,
        request_ids: Sequence[str] | None = None,
        first_row: int = 0,
        budget_ns: int = 0,
        observe: bool = False,
        event_ids: Iterable[str | bytes | int | None] | None = None,
        priority: str = "critical",
    ) -> list[Any]:
        """As `Engine.score_batch`: the rows of a batch are one call to the servers."""
        began_ns, end_ns = self._begin(budget_ns)
        permits = self._pipeline.permits
        permits.check(priority)
        most = self._engine.max_rows
        items = list(islice(requests, most + 1))
        if len(items) > most:
            raise LimitError(
                f"Expected at most {most} requests, got more", hint="see max_rows of the contract"
            )
        ids = [None] * len(items) if event_ids is None else list(islice(event_ids, len(items) + 1))
        if len(ids) != len(items):
            raise ConfigError(
                f"Expected one event id for each of {len(items)} requests, got another number of them"
            )
        answers: list[Any] = []
        good, rows = [], []
        permit = permits.take(priority)
        try:
            if observe and not row_errors:  # none is counted unless all can be
                for item in items:
                    self._engine.prepare(item, now_ns, end_ns - began_ns, permit=permit)
            for row, (item, event_id) in enumerate(zip(items, ids, strict=True)):
                try:
                    good.append(
                        self._engine.prepare(item, now_ns, end_ns - began_ns, observe, event_id, permit)
                    )
                    rows.append(row)
                    answers.append(None)
                except RetailInferError as exc:
                    if not row_errors:
                        raise
                    answers.append(exc)
            arrays, local = self._local(good)
        finally:
            permits.give(permit)
        names = [None if request_ids is None else request_ids[row] for row in rows]
        made = self._answer(good, arrays, local, names, began_ns, end_ns, priority)
        for row, one, answer in zip(rows, good, made, strict=True):
            if isinstance(answer, ServingError):
                answer.counted, answer.began_ns = one.counted, began_ns
                if not row_errors:
                    raise answer
            answers[row] = answer
        return answers

    # --- both models --------------------------------------------------------------------------------------------------

    def _begin(self, budget_ns: int, began_ns: int = 0) -> tuple[int, int]:
        """When the call began, unless that is known, and when it must be over."""
        began_ns = began_ns or self._pipeline.clock.monotonic_ns()
        return began_ns, began_ns + (budget_ns or self._pipeline.budget_ns)

    def _answer(
        self,
        prepared: list[Any],
        arrays: list[NDArray[Any]],
        local: NDArray[np.float64] | None,
        ids: Sequence[str | None],
        began_ns: int,
        end_ns: int,
        priority: str,
    ) -> list[Decision | ServingError]:
        """Decisions of prepared rows, by the servers or else the local model; an error where there is neither."""
        if not prepared:
            return []
        clock, tally = self._pipeline.clock, self._tally
        local_ns = clock.monotonic_ns() - began_ns
        asked_ns = clock.monotonic_ns()
        remote, failure = self._ask(arrays, end_ns - min(_KEPT_NS, (end_ns - began_ns) // 10))
        # Features are in both times. The local model is in the remote's too: some microseconds.
        remote_ns = clock.monotonic_ns() - asked_ns + local_ns
        with tally.lock:
            tally.local.note(local_ns)
            if failure is None:
                tally.remote.note(remote_ns)
        answers: list[Decision | ServingError] = []
        for i, (one, request_id) in enumerate(zip(prepared, ids, strict=True)):
            answers.append(self._decide(one, request_id, remote, failure, local, i))
        now_ns = clock.monotonic_ns()
        if now_ns > end_ns:
            try:
                self._engine.drop_late(now_ns - end_ns)
            except DeadlineExceededError as late:
                return [late] * len(prepared)
        why = "" if failure is None else type(failure).__name__
        for one, answer in zip(prepared, answers, strict=True):
            if not isinstance(answer, ServingError):
                self.n_answers += 1
                self.n_fresh += one.fresh
                self._tell(one.request, answer, now_ns - began_ns, priority, why)
        return answers

    def _decide(
        self,
        one: Any,
        request_id: str | None,
        remote: NDArray[np.float64] | None,
        failure: ServingError | None,
        local: NDArray[np.float64] | None,
        row: int,
    ) -> Decision | ServingError:
        ours: Decision | None = None
        theirs: Decision | None = None
        engine, own = self._engine, self._pipeline.manifest.release
        if local is not None:
            with contextlib.suppress(ScoreError):  # counted below
                ours = engine.finish(one, float(local[row]), release=own, rung=0, request_id=request_id)
        if remote is not None:
            try:
                theirs = engine.finish(
                    one, float(remote[row]), release=self._release, rung=0, request_id=request_id
                )
            except ScoreError as exc:  # out of the declared range
                failure = exc
        with self._tally.lock:
            self._count(ours, theirs, failure)
        if theirs is not None:
            return theirs
        if ours is not None:
            return ours
        assert failure is not None
        return failure

    def _count(self, ours: Decision | None, theirs: Decision | None, failure: ServingError | None) -> None:
        tally = self._tally
        tally.answers += 1
        tally.local_failures += ours is None
        if theirs is None:
            tally.local_answers += ours is not None
            tally.why[str(getattr(failure, "kind", "") or type(failure).__name__)] += 1
        elif ours is not None:
            tally.compared += 1
            tally.equal += ours.action == theirs.action
            tally.largest = max(tally.largest, abs(ours.score - theirs.score))

    def _local(self, prepared: list[Any]) -> tuple[list[NDArray[Any]], NDArray[np.float64] | None]:
        """Rows as arrays, and scores of the release that is loaded here; None if it failed."""
        if not prepared:
            return [], None
        pipeline = self._pipeline
        arrays = [np.concatenate(parts) for parts in zip(*(one.inputs for one in prepared), strict=True)]
        n = len(arrays[0])
        step = n if pipeline.row_independent else 1
        try:
            parts = [
                pipeline.chain_scores(pipeline.inputs, [a[i : i + step] for a in arrays])
                for i in range(0, n, step)
            ]
        except (SessionError, ScoreError):
            return arrays, None
        return arrays, np.concatenate(parts).astype(np.float64)

    def _ask(
        self, arrays: list[NDArray[Any]], end_ns: int
    ) -> tuple[NDArray[np.float64] | None, ServingError | None]:
        """Scores of the servers, or why there are none."""
        inputs: Mapping[str, NDArray[Any]] = dict(zip(self._names, arrays, strict=True))
        try:
            more = {"shedding": sheds(self._pipeline)} if self._is_ours else {}
            outputs = self._infer(inputs, (self._output,), end_ns=end_ns, clock=self._pipeline.clock, **more)
            return remote_score(outputs, self._output, self._column, len(arrays[0])), None
        except ServingError as exc:
            return None, exc
        except Exception as exc:  # noqa: BLE001 - whatever a remote of the user's own breaks of, the release is there
            error = RemoteError(f"the remote raised {type(exc).__name__}")
            error.__cause__ = exc
            return None, error

    def _tell(self, request: Any, answer: Decision, took_ns: int, priority: str, why: str) -> None:
        hook = self._engine.hook
        if hook is not None:
            hook(Answered(answer, request, self._pipeline.clock.wall_ns(), took_ns, priority, why))
        if self._every:
            self._until_drill -= 1
            if self._until_drill <= 0 and self._on_drill is not None:
                self._until_drill = self._every
                self._on_drill(request, answer)

    def agreement(self) -> Agreement:
        """What has been compared since the process began."""
        tally = self._tally
        with tally.lock:
            return Agreement(
                answers=tally.answers,
                compared=tally.compared,
                equal_actions=tally.equal / tally.compared if tally.compared else None,
                largest_difference=tally.largest if tally.compared else None,
                local_answers=tally.local_answers,
                local_failures=tally.local_failures,
                remote_failures=dict(tally.why),
                remote_p50_ms=_ms(tally.remote.p50_ns),
                remote_p99_ms=_ms(tally.remote.p99_ns),
                local_p50_ms=_ms(tally.local.p50_ns),
                local_p99_ms=_ms(tally.local.p99_ns),
            )


def _ms(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e6
