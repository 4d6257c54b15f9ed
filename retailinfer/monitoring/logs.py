"""Events as log lines: standard logging, or structlog (`retailinfer[structlog]`); written by a thread of its own.

    scorer = ri.Scorer.load("fraud", store=store, hooks=[ri.LogHook()])

Rules:
  * A line says which request (by its id), release, arm, rung and action, how long it took, why a lower rung answered, and
    which columns were stale or missing, by name. It never holds a value of the request or of a table, nor a key; a score
    only on demand.
  * What callers may choose, their request ids, is cut at 120 characters and cannot begin a line of its own.
  * A stream that takes nothing more, a full pipe for one, is not written to: lines wait, and what finds the queue full is
    dropped and counted. No request waits, and neither does the end of the process.
The queue and its thread: outbox.py. What events are: events.py.
"""

from __future__ import annotations

import contextlib
import logging
import select
import sys
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Final

import msgspec

from retailinfer.contracts import Decision, Ranking
from retailinfer.errors import ConfigError, clip
from retailinfer.monitoring.events import Answered, Changed, Event, Failed
from retailinfer.monitoring.outbox import Outbox

__all__ = ["LogHook", "LogStats"]

_LONGEST: Final = 120  # of a text that a caller chose
_LONGEST_LIST: Final = (
    500  # of all column names of a line: a line stays below 4 KiB, which a pipe takes whole
)


class LogStats(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the events of a LogHook in this process.

    Attributes:
        waiting: in the queue now. dropped: found it full. failed: the sink raised; these lines are gone.
    """

    waiting: int
    dropped: int
    failed: int


class LogHook:
    """A hook that logs. Degraded answers (`rung` above 0), failures and changes of state are warnings, and never sampled."""

    def __init__(
        self,
        logger: str = "retailinfer",
        *,
        level: int = logging.INFO,
        sample: float = 1.0,
        scores: bool = False,
        structlog: bool = False,
        max_queue: int = 10_000,
        random: Random | None = None,
    ) -> None:
        """Nothing is written, and no thread runs, before the first event.

        Args:
            logger: name of the logger; its level decides what is worth a line, as always.
            level: of the answers of the release itself.
            sample: share of these answers that are logged.
            scores: also log scores. With enough of these a model can be copied.
            structlog: through `structlog.get_logger(logger)`, with the same facts as keywords.
            max_queue: lines that may wait.
            random: decides what is in the sample; for tests.
        Raises: ConfigError for settings that mean nothing, or where structlog is not installed.
        """
        if not 0.0 < sample <= 1.0:
            raise ConfigError(f"Expected sample above 0 and up to 1, got {clip(sample)}")
        if max_queue < 1:
            raise ConfigError(f"Expected max_queue of 1 or more, got {clip(max_queue)}")
        self._logger = logging.getLogger(logger)
        self._structlog = _structlog(logger) if structlog else None
        self._level = level
        self._sample = sample
        self._scores = scores
        self._random = (random or Random()).random
        self._own_random = random is None
        self._outbox = Outbox(
            self._deliver,
            name="retailinfer-log",
            max_queue=max_queue,
            begin=self._begin_in_child,
            pauses=True,  # structlog's loggers hold a lock while they print, which a child would inherit
        )
        self._put = self._outbox.put

    def on_event(self, event: Event) -> None:
        """Queue a line; less than a microsecond. The request is not kept."""
        kind = type(event)
        if kind is Answered:
            answer = event.answer  # type: ignore[union-attr]
            if answer.rung == 0:
                if self._structlog is None and not self._logger.isEnabledFor(self._level):
                    return
                if self._sample < 1.0 and self._random() >= self._sample:
                    return
            self._put((answer, event.took_ns, event.priority, event.why))  # type: ignore[union-attr]
        else:
            self._put(event)

    def stats(self) -> LogStats:
        """Counts of this process."""
        box = self._outbox
        return LogStats(waiting=len(box), dropped=box.dropped, failed=box.failed)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Write what was put before; False when the sink did not take all of it in time."""
        return self._outbox.flush(timeout_s)

    def close(self) -> None:
        """Write what is left and end the thread. The end of the process does this by itself."""
        self._outbox.close()

    # ---- on its own thread ---------------------------------------------------------------------------------------------

    def _begin_in_child(self) -> None:
        if self._own_random:
            self._random = Random().random

    def _deliver(self, items: list[Any]) -> int:
        streams = list(self._streams())
        for i, item in enumerate(items):
            if not all(_takes(stream) for stream in streams):
                return i
            try:
                self._write(*self._line(item))
            except Exception:  # noqa: BLE001 - a sink that does not take one line may take the next
                self._outbox.failed += 1
        return len(items)

    def _write(self, level: int, event: str, facts: dict[str, Any]) -> None:
        if self._structlog is not None:
            self._structlog.log(level, event, **facts)
        elif self._logger.isEnabledFor(level):
            text = " ".join(f"{name}={_plain(value)}" for name, value in facts.items())
            self._logger.log(level, "%s %s", event, text, extra={"retailinfer": {"event": event} | facts})

    def _line(self, item: Any) -> tuple[int, str, dict[str, Any]]:
        """(level, event, facts) of what was queued."""
        if type(item) is Changed:
            return (
                logging.WARNING,
                "changed",
                {
                    "part": item.part,
                    "before": item.before,
                    "after": item.after,
                    "why": _cut(item.why, _LONGEST_LIST),
                },
            )
        if type(item) is Failed:
            facts = {
                "id": _cut(item.request_id),
                "error": item.error,
                "release": item.release,
                "took_us": item.took_ns / 1000,
                "priority": item.priority,
                "late": item.late or None,
            }
            return logging.WARNING, "failed", {k: v for k, v in facts.items() if v is not None}
        return self._answered(*item)

    def _answered(
        self, answer: Decision | Ranking, took_ns: int, priority: str, why: str
    ) -> tuple[int, str, dict[str, Any]]:
        facts: dict[str, Any] = {
            "id": _cut(answer.id),
            "release": answer.release,
            "arm": answer.arm,
            "rung": answer.rung,
        }
        if isinstance(answer, Decision):
            if answer.action is not None:
                facts["action"] = answer.action
            if self._scores:
                facts["score"] = answer.score
        else:
            facts["items"] = len(answer.items)
        facts |= {"took_us": took_ns / 1000, "priority": priority}
        for name, columns in (("stale", answer.stale), ("missing", answer.missing)):
            if columns:
                facts[name] = _cut(",".join(columns), _LONGEST_LIST)
        if why:
            facts["why"] = why
        return (self._level if answer.rung == 0 else logging.WARNING), "answered", facts

    def _streams(self) -> Iterator[Any]:
        """The streams that a line will go to, as far as that can be known."""
        logger: logging.Logger | None = self._logger
        if self._structlog is not None:
            inner = getattr(self._structlog.bind(), "_logger", None)
            if not isinstance(inner, logging.Logger):
                yield getattr(inner, "_file", None) or sys.stdout
                return
            logger = inner
        found = False
        while logger is not None:
            for handler in logger.handlers:
                found = True
                yield getattr(handler, "stream", None)
            logger = logger.parent if logger.propagate else None
        if not found:
            yield getattr(logging.lastResort, "stream", None)


def _structlog(name: str) -> Any:
    try:
        import structlog  # noqa: PLC0415 - optional extra
    except ImportError as exc:
        raise ConfigError(
            "LogHook(structlog=True) needs structlog", hint="pip install 'retailinfer[structlog]'"
        ) from exc
    return structlog.get_logger(name)


def _takes(stream: Any) -> bool:
    """Whether a stream takes a line now, without waiting; True for what cannot be asked."""
    # No descriptor, closed, replaced by a test: the handler will say what is wrong.
    with contextlib.suppress(Exception):
        descriptor = stream.fileno()
        poll: Callable[[], Any] | None = getattr(select, "poll", None)
        if poll is None:
            return True
        asked = poll()
        asked.register(descriptor, select.POLLOUT)
        return bool(asked.poll(0))
    return True


def _cut(text: str | None, longest: int = _LONGEST) -> str | None:
    if text is None:
        return None
    if len(text) > longest:
        text = text[: longest - 3] + "..."
    # A lone surrogate is no text: a sink that writes UTF-8 would refuse the line, and who chose it would be in no log.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _plain(value: Any) -> str:
    """A fact within a line: one word, or in quotes."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if text.isascii() and text.isprintable() and text and not set(text) & set(" \"'=\\"):
        return text
    return ascii(text)
