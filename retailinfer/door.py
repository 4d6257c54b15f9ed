"""What every front door shares: one loaded release, its parts to look at, and waiting off the event loop.

Rules:
  * A closed door, and one without an engine, answer with the same ConfigError whatever is asked: `Refusal` stands where the
    engine would, so that open doors pay for no check.
  * Threads are made at the first call that needs one, in the process that makes it.
The doors themselves are scorer.py and ranker.py.
"""

from __future__ import annotations

import datetime as dt
import os
from typing import TYPE_CHECKING, Any, TypeAlias

from retailinfer.contracts import Freshness
from retailinfer.cpus import usable_cpus
from retailinfer.deadline import budget_ns
from retailinfer.errors import ConfigError
from retailinfer.pipeline import moment_ns

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    import msgspec

    from retailinfer._native.admission import Permits
    from retailinfer.contracts import Contract
    from retailinfer.features.spec import FeatureSpec
    from retailinfer.pipeline import Pipeline
    from retailinfer.policy import Policy
    from retailinfer.release.manifest import Manifest

__all__ = ["INLINE_BELOW_US", "Door", "EventId", "Refusal"]

EventId: TypeAlias = str | bytes | int

MOST_THREADS = 8  # beside the event loop: more of them wait for the GIL longer than they run without it
WAITING = 16  # calls of coroutines that may wait for sources at the same time
INLINE_BELOW_US = 200.0  # an event loop notices more than this
ARRAYS_ONLY = "this release brings no features: it takes arrays"
HINT_ARRAYS = "use score_arrays(feeds), or pack with features="


class Refusal:
    """Stands where the engine would: every use of it is the same ConfigError, so that calls need no check of their own."""

    def __init__(self, message: str, hint: str) -> None:
        self._message = message
        self._hint = hint

    def __getattr__(self, name: str) -> Any:
        raise ConfigError(self._message, hint=self._hint)


class Door:
    """What Scorer and Ranker share: the loaded release, and waiting off the event loop."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._engine: Any = (
            pipeline.engine if pipeline.engine is not None else Refusal(ARRAYS_ONLY, HINT_ARRAYS)
        )
        self._executor: ThreadPoolExecutor | None = None
        self._executor_pid = 0
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called: every other use is a ConfigError then."""
        return self._closed

    @property
    def manifest(self) -> Manifest:
        """What the release says of itself."""
        return self._pipeline.manifest

    @property
    def spec(self) -> FeatureSpec:
        """The features of the release."""
        return self._pipeline.spec

    @property
    def policy(self) -> Policy | None:
        """Score -> action."""
        return self._pipeline.policy

    @property
    def contract(self) -> Contract:
        """What the use case promises."""
        return self._pipeline.contract

    @property
    def request_type(self) -> type[msgspec.Struct]:
        """The frozen Struct that JSON requests decode into; building it yourself is the fastest way in."""
        self._pipeline.need_engine()
        return self._pipeline.request_type

    @property
    def outside(self) -> dict[str, int]:
        """Column -> values outside its training range since the release was loaded. They are counted, not changed."""
        counts: dict[str, int] = self._pipeline.need_engine().outside_counts()
        return counts

    @property
    def freshness(self) -> Freshness:
        """How many answers were made without a stale and without an unavailable value, since the release was loaded."""
        engine = self._pipeline.need_engine()
        return Freshness(answers=engine.n_answers, fresh=engine.n_fresh)

    @property
    def permits(self) -> Permits:
        """How many calls may be under way; `permits.check(priority)` refuses a request before its body is read."""
        return self._pipeline.permits

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
        self._engine.has_clock  # noqa: B018 - a closed door, and one without features, says so
        self._pipeline.observer(stream).observe(
            event,
            event_id,
            0 if at is None else moment_ns(at),
            0 if deadline_ms is None else budget_ns(deadline_ms),
        )

    def close(self) -> None:
        """Let go of tables and threads. Calls under way finish; later ones raise ConfigError."""
        self._engine = Refusal(f"this {type(self).__name__} is closed", "load the release again")
        self._closed = True
        self._pipeline.close()
        if self._executor is not None and self._executor_pid == os.getpid():
            self._executor.shutdown(wait=True)
            self._executor = None

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.manifest.release}>"

    async def _off_loop(self, call: Any, *args: Any) -> Any:
        """Run in a small pool of this process's own; the event loop goes on."""
        import asyncio  # noqa: PLC0415 - services without coroutines load scorers too

        if self._executor is None or self._executor_pid != os.getpid():  # threads do not survive a fork
            from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - as above

            # A thread a CPU; threads that wait for a source or a round trip use none, so there may be more.
            workers = max(WAITING if self._engine.waits else 1, min(usable_cpus(), MOST_THREADS))
            self._executor = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="retailinfer")
            self._executor_pid = os.getpid()
        return await asyncio.get_running_loop().run_in_executor(self._executor, call, *args)
