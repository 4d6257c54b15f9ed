"""Scorer: the front door for payments and every other single score.

Rules:
  * Caller's mistakes raise a CallerError; what the library could not do raises a ServingError. Nothing else comes out.
  * Safe to call from many threads, coroutines and greenlets. Loading is expensive, calling is not: keep one per process.
What happens inside: pipeline.py loads, `_native/engine.pyx` answers.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Hashable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from retailinfer.deadline import budget_ns, moment_ns
from retailinfer.errors import (
    ConfigError,
    FeatureTypeError,
    LimitError,
    OverloadedError,
    RetailInferError,
    ServingError,
    WouldWait,
    clip,
)
from retailinfer.limits import HOLD_GIL_BELOW_US, MAX_BYTES, MAX_DEPTH, MAX_WAITING
from retailinfer.serving.door import INLINE_BELOW_US, RAISE, Door, Raise

if TYPE_CHECKING:
    from typing import Unpack

    from numpy.typing import NDArray

    from retailinfer.contracts import Agreement, Decision, Explanation
    from retailinfer.monitoring.events import Hook
    from retailinfer.pipeline import Pipeline
    from retailinfer.release.registry import Registry
    from retailinfer.release.trust_files import Trust
    from retailinfer.serving.batching import MicroBatcher
    from retailinfer.serving.door import EventId
    from retailinfer.serving.follower import Settings
    from retailinfer.serving.lasting import RemoteModel
    from retailinfer.store.store import Store

__all__ = ["Scorer"]

T = TypeVar("T")


class Scorer(Door):
    """Scores requests with one release. Get one from `Scorer.load`."""

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
        remote: RemoteModel | None = None,
        primary: Literal["release", "remote"] = "release",
        hooks: Iterable[Hook] = (),
    ) -> Scorer:
        """Load a release: verify every byte, compile the features, open the models, replay the golden rows, warm up.

        Args:
            release: its directory, or its files by name.
            store: the process's tables; needed when the features read any.
            trust: whose signatures are believed: the path of a trust file, or a `ri.Trust`. "unsigned" asks nobody. None = the
                setting RETAILINFER_TRUST.
            strict_paths: refuse links and files that others may write.
            backend: "c" = ONNX Runtime's C API, "python" = its Python API, "auto" = the first that is there.
            max_bytes, max_depth: of an encoded request.
            hold_gil_below_us: native work predicted to be shorter keeps the GIL.
            max_in_flight: calls that may use the processor at once, in this process; twice its processors by default. More
                are refused at once with an OverloadedError, those of lower priority earlier.
            max_waiting: calls that may wait for sources and shared windows at once, beside those; for others, what is not
                in memory is `unavailable`. As many calls of coroutines may stand in line for a thread.
            contract: fields of the release's Contract that are others here: a mapping, or the path of a JSON or TOML file.
            previous: the release before, for the ladder's rung of that name; loaded and verified like the release.
            remote: `ri.Remote`, for the rung of that name.
            primary: "remote" = the model server answers, the release scores every request beside it and answers where the
                server does not; `agreement()` says how they compare.
            hooks: who hears of answers, failures and changes: objects with `on_event`, see retailinfer.monitoring.events.
        Raises: BundleError (nothing is loaded then), ConfigError, SpecError for a `contract` that contradicts the release.
        """
        settings: dict[str, Any] = {
            "contract": contract,
            "trust": trust,
            "strict_paths": strict_paths,
            "store": store,
            "backend": backend,
            "max_bytes": max_bytes,
            "max_depth": max_depth,
            "hold_gil_below_us": hold_gil_below_us,
            "max_in_flight": max_in_flight,
            "max_waiting": max_waiting,
        }
        from retailinfer.serving.loading import load_pipelines  # noqa: PLC0415 - with the first release

        now, before = load_pipelines(release, previous, **settings)
        return cls(now, previous=before, remote=remote, primary=primary, hooks=hooks, settings=settings)

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
        remote: RemoteModel | None = None,
        primary: Literal["release", "remote"] = "release",
        hooks: Iterable[Hook] = (),
        **settings: Unpack[Settings],
    ) -> Scorer:
        """Load the champion of a name, and whatever becomes champion later: loaded beside what answers, in a thread of its
        own, verified and replayed, then published by moving one pointer. What fails on the way changes nothing.

        Args:
            registry: a `ri.Registry`, or its place: a folder, a URL that fsspec knows. name: of the release there.
            trust, environment, storage_options: of a registry that is given by its place, as `ri.Registry` takes them.
            last_good: a folder of this host, for its processes to share: they keep the last two releases there, start from
                them while the registry is out of reach, and load one after the other. None: a start needs the registry.
            poll_s: between two looks at the registry, a quarter more or less; `refresh()` looks at once.
            on_revoked: what answers and is revoked goes on ("serve") and says so, or leaves it to the rungs below ("degrade").
            remote, primary, hooks: as `load` takes them.
            settings: store, backend, contract and the other settings of `load`; they hold for every release that comes.
        Raises: RegistryError when the registry cannot be reached, or has no champion, and nothing was kept; BundleError when
            its champion cannot be loaded, and nothing was kept; ConfigError.
        """
        from retailinfer.serving.follower import follow  # noqa: PLC0415 - for those who follow

        return follow(
            partial(cls, remote=remote, primary=primary, hooks=hooks),
            registry,
            name,
            trust=trust,
            environment=environment,
            storage_options=storage_options,
            last_good=last_good,
            poll_s=poll_s,
            on_revoked=on_revoked,
            options=dict(settings),
        )

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        previous: Pipeline | None = None,
        remote: RemoteModel | None = None,
        primary: Literal["release", "remote"] = "release",
        hooks: Iterable[Hook] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if primary not in ("release", "remote") or (primary == "remote" and remote is None):
            raise ConfigError(
                f'Expected primary="release", or "remote" with a remote=, got {clip(primary)}'
                + (" without one" if remote is None else "")
            )
        first = primary == "remote"
        super().__init__(
            pipeline, previous=previous, remote=remote, remote_first=first, hooks=hooks, settings=settings
        )

    def score(
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
        """Score one request.

        Args:
            request: dict, msgspec Struct or dataclass with the spec's fields.
            deadline_ms: waiting for sources and shared windows ends before it; what is not there then is `unavailable`. The
                contract's by default. Less time than such calls lately needed is a DeadlineExceededError before any work, and
                an answer that comes later is dropped for one.
            request_id: becomes the decision's id.
            at: the moment against which ages are measured, and of the event where it has no time of its own; now by default.
            observe: count the request in the windows, in the same step in which they are read. It is counted once its
                fields are read, also if a column then refuses a value or the model fails: it happened.
            event_id: of the event; one that its entity saw lately (among its last 8) is not counted again.
            priority: "critical" calls may use all permits of the process, "sheddable" 80 %, "batch" and "shadow" 60 % of them.
            otherwise: what is returned instead of a ServingError, which is raised without it; None is a value like any other.
        What the release cannot answer goes down the contract's ladder; `decision.rung` says who answered.
        Raises: FeatureError for the request, ConfigError for observing what nothing counts, whatever `otherwise` is;
            SessionError, ScoreError, DeadlineExceededError, OverloadedError; Unavailable where no rung could answer either.
        """
        live = self._live
        try:
            decision: Decision = live.engine.score(
                request,
                request_id,
                0 if at is None else moment_ns(at),
                0 if deadline_ms is None else budget_ns(deadline_ms),
                observe,
                event_id,
                True,
                priority,
            )
        except ServingError as exc:
            fallen: Decision | T = self._fall(
                live, exc, otherwise, request, deadline_ms, request_id, at, observe, event_id, priority
            )
            return fallen
        else:
            return decision

    def score_json(
        self,
        body: bytes,
        *,
        deadline_ms: float | None = None,
        request_id: str | None = None,
        at: dt.datetime | float | None = None,
        observe: bool = False,
        event_id: EventId | None = None,
        priority: str = "critical",
        otherwise: T | Raise = RAISE,
    ) -> bytes | T:
        """JSON request -> JSON decision. Of a key that comes twice the last one counts.

        Raises: RequestError and LimitError for the bytes, else as `score`.
        """
        live = self._live
        try:
            answer: bytes = live.engine.score_json(
                body,
                request_id,
                0 if at is None else moment_ns(at),
                0 if deadline_ms is None else budget_ns(deadline_ms),
                observe,
                event_id,
                True,
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
                opens=live.open_json,
                encode=live.as_json,
            )
            return fallen
        else:
            return answer

    def score_msgpack(
        self,
        body: bytes,
        *,
        deadline_ms: float | None = None,
        request_id: str | None = None,
        at: dt.datetime | float | None = None,
        observe: bool = False,
        event_id: EventId | None = None,
        priority: str = "critical",
        otherwise: T | Raise = RAISE,
    ) -> bytes | T:
        """MessagePack request -> MessagePack decision. Raises: as `score_json`."""
        live = self._live
        try:
            answer: bytes = live.engine.score_msgpack(
                body,
                live.decode_msgpack,
                live.encode_msgpack,
                request_id,
                0 if at is None else moment_ns(at),
                0 if deadline_ms is None else budget_ns(deadline_ms),
                observe,
                event_id,
                True,
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
                opens=live.open_msgpack,
                encode=live.as_msgpack,
            )
            return fallen
        else:
            return answer

    def score_batch(
        self,
        requests: Iterable[object],
        *,
        errors: Literal["raise", "row"] = "raise",
        deadline_ms: float | None = None,
        at: dt.datetime | float | None = None,
        observe: bool = False,
        event_ids: Iterable[EventId | None] | None = None,
        priority: str = "critical",
    ) -> list[Decision | RetailInferError]:
        """Score many requests at once; same bits as one by one.

        Args:
            errors: "raise" the first error, or give it as the "row" in which it happened.
            deadline_ms: of the whole batch. The contract's is about one request: of a batch it bounds the waiting alone.
            observe: count each request after the ones before it. With errors="raise" none is counted unless all can be.
            event_ids: one a request.
            priority: as in `score`; the batch is one call.
        Rows that the release cannot answer go down the ladder one by one; not where the whole batch was refused under load or
        came too late, nor where errors="raise" counts events without ids, because then nobody knows which were counted.
        Raises: LimitError beyond the contract's `max_rows`; with errors="raise" as `score`, naming `$[i]`.
        """
        if errors not in ("raise", "row"):
            raise ConfigError(f'Expected errors "raise" or "row", got {clip(errors)}')
        now_ns = 0 if at is None else moment_ns(at)
        budget = 0 if deadline_ms is None else budget_ns(deadline_ms)
        live, row_errors = self._live, errors == "row"
        engine = live.engine
        answers: list[Decision | RetailInferError]
        if not live.ladder.concerned:
            answers = engine.score_batch(
                requests, row_errors, now_ns, None, 0, budget, observe, event_ids, priority
            )
            return answers
        clock = self._lasting.clock
        began = clock.monotonic_ns()
        # Who may be asked again must be there again.
        items = _kept(requests, engine.max_rows)
        ids = None if event_ids is None else _kept(event_ids, engine.max_rows)
        try:
            answers = engine.score_batch(items, row_errors, now_ns, None, 0, budget, observe, ids, priority)
        except OverloadedError:
            raise  # as many rows, one by one, would be more work than the batch
        except ServingError as exc:
            if not live.ladder.present or row_errors or (observe and ids is None):
                self._whole_failed(live, exc, priority)
                raise  # late; or nobody knows which rows were counted
            # Once more, so that the good rows keep the release's answers; ids keep a row from being counted twice.
            if deadline_ms is not None:
                deadline_ms = self._left_ms(exc, deadline_ms)
            left = 0 if deadline_ms is None else budget_ns(deadline_ms)
            answers = engine.score_batch(items, True, now_ns, None, 0, left, observe, ids, priority)
        for i, answer in enumerate(answers):
            if isinstance(answer, ServingError):
                one = None if ids is None else ids[i]
                if deadline_ms is None:  # the contract's is a row's own, however long the batch took
                    answer.began_ns = None
                try:
                    answers[i] = self._fall(
                        live, answer, RAISE, items[i], deadline_ms, None, at, observe, one, priority
                    )
                except RetailInferError as exc:
                    if not row_errors:
                        raise
                    answers[i] = exc
            elif isinstance(answer, RetailInferError) and not row_errors:
                raise answer
        if budget and (over := clock.monotonic_ns() - began - budget) > 0:  # while rows went down the ladder
            engine.drop_late(over)
        return answers

    def score_table(self, table: Any, *, at: dt.datetime | float | None = None) -> Any:
        """Score a whole table, in slices, as it streams in.

        Args:
            table: anything with the Arrow stream interface. Stored columns ("card.n_30d") and windows are read from the
                table where it has all of them, else from the store.
        Returns: a pyarrow Table, one row each: score (float32); action (string) where there is a policy; reasons (list of
            structs of field and text) where it asks for them.
        Needs `retailinfer[arrow]`. Raises: FeatureError with the row.
        """
        from retailinfer.serving.tables import score_table  # noqa: PLC0415 - Arrow's side, for who has tables

        return score_table(self._live, table, moment_ns(at))

    def explain(
        self,
        request: object,
        *,
        method: Literal["auto", "path", "treeshap", "occlusion"] = "auto",
        deadline_ms: float | None = None,
        at: dt.datetime | float | None = None,
    ) -> Explanation:
        """How much each field adds to the score of one request. Nothing is decided, and nothing counted in windows.

        Args:
            method: "path" = what each step of the row's way through the trees adds to the expectation; exact, and what
                reasons of decisions are made of. "treeshap" = Shapley values over the same expectations, some 100 times as
                slow. Both need a release that is one forest. "occlusion" = what the score loses without the field, for
                any model. "auto" = the first of path and occlusion that the release can do.
            deadline_ms, at: as in `score`.
        Raises: as `score`; ConfigError for a method that the release cannot do.
        """
        live = self._live
        arrays = live.engine.vectorize(
            request, 0 if at is None else moment_ns(at), 0 if deadline_ms is None else budget_ns(deadline_ms)
        )
        return live.pipeline.explainer.explain(arrays, method)

    def score_arrays(self, feeds: Mapping[str, object]) -> dict[str, NDArray[Any]]:
        """Run the models on arrays that the caller made: input name -> array; all outputs by name.

        Layout and byte order are converted, another dtype or shape is refused. Raises: FeatureError, LimitError,
        SessionError.
        """
        if self._closed:
            raise ConfigError("this Scorer is closed", hint="load the release again")
        live = self._live
        live.check()
        most = live.pipeline.contract.max_rows
        if not isinstance(feeds, Mapping):
            raise FeatureTypeError(
                f"Expected a mapping of input names to arrays, got `{type(feeds).__name__}`", path="$"
            )
        for name, value in feeds.items():
            shape = value.shape if isinstance(value, np.ndarray) else ()
            if shape and shape[0] > most:
                raise LimitError(
                    f"Expected at most {most} rows in `{clip(name)}`, got {shape[0]}",
                    hint="see max_rows of the contract",
                )
        return live.pipeline.score_arrays(feeds)

    async def ascore(
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
        """`score` for coroutines: inline while it is cheap (below 200 us as measured at load) and nothing has to be waited
        for, else in a thread. So do rungs of the ladder that may have to wait. A loop that is late counts as overload: see
        `loop_lag`.
        """
        live = self._live
        engine = live.engine
        began_ns = self._lasting.clock.monotonic_ns()  # a thread may come later
        try:
            self._loop_lag.check(priority)
            args = (
                request,
                request_id,
                0 if at is None else moment_ns(at),
                0 if deadline_ms is None else budget_ns(deadline_ms),
                observe,
                event_id,
            )
            if engine.one_us < INLINE_BELOW_US:
                try:
                    decision: Decision = engine.score(*args, False, priority)
                except WouldWait:
                    pass
                else:
                    return decision
            answer: Decision = await self._in_line(
                live, priority, engine.score, *args, True, priority, began_ns
            )
        except ServingError as exc:
            exc.began_ns = began_ns if exc.began_ns is None else exc.began_ns  # it may have stood in line
            fallen: Decision | T = await self._afall(
                live, exc, otherwise, request, deadline_ms, request_id, at, observe, event_id, priority
            )
            return fallen
        return answer

    def forget(self, key: Hashable) -> bool:
        """Erase what the ladder's last_score rung remembers of an entity in this process. True where there was something.

        key: as the request has it; a tuple where it has several parts.
        """
        last = self._live.rungs.last_scores
        return last is not None and last.forget(key) > 0

    def agreement(self) -> Agreement:
        """How the model server and this release compare, in this process. Raises: ConfigError without primary="remote"."""
        first = self._live.first
        if first is None:
            raise ConfigError('this Scorer compares nothing: it was loaded without primary="remote"')
        return first.agreement()

    def check_remote(self, *, timeout_s: float = 5.0) -> None:
        """Compare what every endpoint of the remote says of its model with the release's inputs and score.

        Call it when a service starts, or from its readiness probe. Raises: SchemaMismatchError; RemoteError if an endpoint
        does not answer; ConfigError without a remote that can be asked.
        """
        check = getattr(self._lasting.remote, "check", None)
        if check is None:
            raise ConfigError("this Scorer has no remote whose model could be checked")
        from retailinfer.serving.answers import remote_schema  # noqa: PLC0415 - there since the release was loaded

        check(*remote_schema(self._live.pipeline), timeout_s=timeout_s)

    def batcher(self, *, max_rows: int = 32, max_delay_ms: float = 1.0) -> MicroBatcher:
        """Collect requests of coroutines into batches, with the same bits as alone.

        Args:
            max_rows: of one batch; as many do not wait for more.
            max_delay_ms: what a request waits for others at most. 0: for those that come in the same turn of the event loop.
        Raises: ConfigError for a release whose rows are not independent, or limits that are none.
        """
        if self._lasting.remote_first:
            raise ConfigError(
                'a Scorer with primary="remote" waits for servers in every call: there is nothing to batch'
            )
        from retailinfer.serving.batching import MicroBatcher  # noqa: PLC0415 - with asyncio, which others do without

        return MicroBatcher(self, max_rows=max_rows, max_delay_ms=max_delay_ms)


def _kept(given: Iterable[Any], most: int) -> Any:
    """What can be gone through twice; of what has no end, one more than is allowed."""
    return given if isinstance(given, (list, tuple, np.ndarray)) else list(islice(given, most + 1))
