"""DecisionLog: one row for every answer, on disk within half a second, and never in the way of one.

    log = ri.DecisionLog("decisions", keep_days=400, fields=["amount", "channel"], entities={"card": "card_id"})
    scorer = ri.Scorer.load("fraud", store=store, hooks=[log])

Rules:
  * A request pays for reading the declared values and for a place in a queue. Everything else is done by a thread of the log.
  * A clean end of the process loses nothing: the last line of a script, sys.exit, SIGTERM under a server that turns it into
    an exit, workers of multiprocessing, forked children. A killed process loses at most half a second.
  * Nothing is there twice. Rows are only added; they leave by `erase`, or with their file when that is older than `keep_days`.
  * A full queue, a full disk, a folder that is gone: rows wait, then they are dropped and counted, and answers go on. Whoever
    is in `hooks` hears of it once, as a `Changed`.
  * Several processes may share a folder. Time between rotations is not the wall clock's; a wall clock that is set forward
    while the process runs deletes nothing early.
What a row holds: decision_rows.py. Files: decision_folder.py, decision_files.py. Erasing: decision_erasure.py. The queue and
its thread: outbox.py.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final, Literal

import msgspec

from retailinfer.clock import Clock, SystemClock
from retailinfer.errors import ConfigError, clip
from retailinfer.monitoring import decision_folder as files
from retailinfer.monitoring.decision_erasure import ErasureReport
from retailinfer.monitoring.decision_erasure import erase as erase_from
from retailinfer.monitoring.decision_files import ToParquet, need_arrow, read_rows, read_table
from retailinfer.monitoring.decision_rows import Declaration, Keys, RowWriter
from retailinfer.monitoring.events import Answered, Changed, Event, Failed, Hook, Hooks
from retailinfer.monitoring.outbox import Outbox

__all__ = ["DecisionLog", "DecisionLogStats", "moment_ns"]

_GATHER_S: Final = 0.1
_LOOK_S: Final = 0.4  # how often a process looks after its live file while nothing is written
_KEEP_S: Final = 30.0  # how often it tries to keep the folder
_QUIET_NS: Final = 60_000_000_000  # without a dropped row, until the log is "ready" again
_STEP_NS: Final = 3_600_000_000_000  # a wall clock that is so far off was set
_DAY_NS: Final = 86_400_000_000_000


class DecisionLogStats(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the answers of this process.

    Attributes:
        state: "ready", "dropping" (rows were dropped in the last minute) or "failing" (the last write failed).
        written: rows in files. waiting: in the queue now.
        dropped: found the queue full, or were left when the process ended without being able to write them.
        refused: rows longer than 64 KiB without any field. bare: fields left out because JSON cannot hold them, or too long.
        keyless: keys that rows do not have: an entity's fields were null, or no request has fields of these names. Those rows
            are found by nobody who erases.
        failures: writes that failed. last_error: of the last of them, or "".
        recovered: live files of dead processes that this one finished. expired: files that it deleted for their age.
    """

    state: str
    written: int
    waiting: int
    dropped: int
    refused: int
    bare: int
    keyless: int = 0
    failures: int
    last_error: str
    recovered: int
    expired: int


class DecisionLog:
    """A hook that writes one row for every answer and every failed call."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep_days: float | None,
        format: Literal["jsonl", "parquet"] = "jsonl",  # noqa: A002 - what it is called everywhere
        fields: Sequence[str] = (),
        entities: Mapping[str, str | Sequence[str]] | None = None,
        hash_key: str | bytes | None = None,
        sample: float = 1.0,
        max_items: int = 20,
        rotate_mb: float = 64.0,
        rotate_minutes: float = 60.0,
        max_queue: int = 10_000,
        hooks: Iterable[Hook] = (),
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        """Nothing is opened, and no thread runs, before the first answer; `start` opens it at once.

        Args:
            folder: of this log alone; made when needed, for its owner alone. Several processes may share it.
            keep_days: a file is deleted when its newest row is so old. None: rows are kept until you delete them.
            format: of finished files. "parquet" needs `retailinfer[arrow]`; what is being written is JSON lines anyway.
            fields: of the request, which a row holds as `request.NAME`. None by default: values are personal data.
            entities: column `entity.NAME` -> the field of the request that is its key, or several. `erase` finds rows by it.
            hash_key: a secret of 16 bytes or more; keys are written as digests keyed with it.
            sample: share of the answers and failures that have a row.
            max_items: of a ranking, so many items and scores are written.
            rotate_mb, rotate_minutes: a file is finished when it is so large (as lines) or so old.
            max_queue: rows that may wait for the thread, some 600 bytes each.
            hooks: who hears of changes of the log itself, such as a LogHook.
            clock, random: for tests.
        Raises: ConfigError for settings that mean nothing, or Parquet without pyarrow.
        """
        _check(
            format=format,
            keep_days=keep_days,
            sample=sample,
            max_items=max_items,
            rotate_mb=rotate_mb,
            rotate_minutes=rotate_minutes,
            max_queue=max_queue,
        )
        if format == "parquet":
            need_arrow()
        self.folder = Path(folder).absolute()
        self._format = format
        self._keys = Keys(hash_key)
        self._hash_key = hash_key
        self._rows = RowWriter(
            fields=fields, entities=entities or {}, keys=self._keys, max_items=int(max_items)
        )
        self.declaration = Declaration(
            fields=self._rows.fields,
            entities=self._rows.entities,
            hashed=hash_key is not None,
            key_check=self._keys.check,
            sample=sample,
            keep_days=keep_days,
            max_items=int(max_items),
        )
        self._digest = self.declaration.digest()
        self._keep_ns = None if keep_days is None else int(keep_days * _DAY_NS)
        self._rotate_bytes = int(rotate_mb * 1e6)
        self._rotate_ns = int(rotate_minutes * 60e9)
        self._sample = sample
        self._hooks = Hooks(hooks)
        self._clock = clock or SystemClock()
        self._own_random = random is None
        self._random = random or Random()
        self._draw = self._random.random
        self._wall_ns, self._mono_ns = self._clock.wall_ns(), self._clock.monotonic_ns()
        self._anew()
        self._outbox = Outbox(
            self._deliver,
            name="retailinfer-decisions",
            max_queue=int(max_queue),
            gather_s=_GATHER_S,
            idle=self._idle,
            chores=self._chores,
            rest=self._stop_converting,
            close=self._finish,
            begin=self._begin_in_child,
            pauses=True,
        )
        self._put = self._outbox.put
        self._values = self._rows.values

    def _anew(self) -> None:
        self._segment: files.Segment | None = None
        self._opened_ns = 0
        self._seen_here_ns = 0
        self._asked = (0, 0)
        self._keeper: files.Keeper | None = None
        self._to_do: list[files.LogFile] = []
        self._kept_since = (0, 0)
        self._sealed: list[files.LogFile] = []
        self._converts: ToParquet | None = None
        self._keep_next_ns = -(1 << 62)
        self._state = "ready"
        self._warned = False
        self._dropped_seen = 0
        self._dropped_ns = -(1 << 62)
        self._written = self._failures = self._recovered = self._expired = 0
        self._last_error = ""

    # ---- on the request path -------------------------------------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        """Queue a row; about a microsecond."""
        if self._sample < 1.0 and self._draw() >= self._sample:
            return
        if type(event) is Answered:
            self._put(
                (
                    event.answer,
                    self._values(event.request),  # the request itself is let go
                    event.wall_ns,
                    event.took_ns,
                    event.priority,
                    event.why,
                )
            )
        elif type(event) is Failed:
            self._put(event)

    # ---- for people ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the log now, so that a folder that cannot be written to is an error of the start. Raises: OSError."""
        with self._held():
            self._live()

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Write what was queued before; False when that took too long, or could not be written now."""
        return self._outbox.flush(timeout_s)

    def close(self) -> None:
        """Write what is left, finish the file, end the thread. The end of the process does this by itself."""
        self._outbox.close()

    def stats(self) -> DecisionLogStats:
        """Counts of this process."""
        return DecisionLogStats(
            state=self._state,
            written=self._written,
            waiting=len(self._outbox),
            dropped=self._outbox.dropped + self._outbox.failed,
            refused=self._rows.refused,
            bare=self._rows.bare,
            keyless=self._rows.keyless,
            failures=self._failures,
            last_error=self._last_error,
            recovered=self._recovered,
            expired=self._expired,
        )

    def rows(
        self, since: dt.datetime | None = None, until: dt.datetime | None = None
    ) -> Iterator[dict[str, Any]]:
        """The rows of all processes from `since` to before `until`, file by file, as dicts; `at_ns` is ns since 1970.

        What this process has queued is written first; of others, what they have written. Raises: OSError; ConfigError for
        moments without a zone.
        """
        low, high = moment_ns(since, "since"), moment_ns(until, "until")
        self.flush()
        return read_rows(
            self.folder,
            since_ns=-(1 << 63) if low is None else low,
            until_ns=1 << 63 if high is None else high,
        )

    def table(self, since: dt.datetime | None = None, until: dt.datetime | None = None) -> Any:
        """The same as a pyarrow Table in the order of time; `at` is a timestamp. Needs `retailinfer[arrow]`."""
        low, high = moment_ns(since, "since"), moment_ns(until, "until")
        self.flush()
        return read_table(
            self.folder,
            since_ns=-(1 << 63) if low is None else low,
            until_ns=1 << 63 if high is None else high,
        )

    def erase(self, entity: str, key: Any, *, wait_s: float = 60.0) -> ErasureReport:
        """Take all rows of an entity out of all files of the folder, those of other processes too; decision_erasure.py.

        Takes as long as reading the folder, and up to `wait_s` while another process keeps it: call it from a job, not
        from a request. Raises: ConfigError for an unknown entity; Unavailable; OSError.
        """
        self.flush()
        with self._held():
            self._stop_converting()
            if self._segment is not None:
                self._seal()
        return erase_from(
            self.folder,
            entity,
            key,
            hash_key=self._hash_key,
            now_s=self._clock.wall_ns() / 1e9,
            wait_s=wait_s,
        )

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Keep the log's own thread out."""
        if not self._outbox.hold(10.0):
            raise TimeoutError("the decision log did not come to a stop within 10 s")
        try:
            yield
        finally:
            self._outbox.release()

    # ---- writing: on the log's thread, or with it held -----------------------------------------------------------------

    def _deliver(self, items: list[Any]) -> int:
        lines, n, first_ns, last_ns = self._rows.lines(items)
        all_of_them = len(items)
        if n == 0:
            return all_of_them
        try:
            self._live().append(lines, n, first_ns, last_ns)
        except OSError as exc:
            self._failed(exc)
            return 0
        self._written += n
        if self._state == "failing":
            self._changed("ready", "written again")
        return all_of_them

    def _live(self) -> files.Segment:
        """The live file, made when there is none, or when somebody deleted it. Raises: OSError."""
        segment, now_ns = self._segment, self._clock.monotonic_ns()
        if segment is not None and now_ns - self._seen_here_ns > _GATHER_S * 1e9:
            self._seen_here_ns = now_ns
            if not segment.is_here():
                segment.let_go()
                segment = self._segment = None
        if segment is None:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            declared = self.folder / f"log-{self._digest}.json"
            if not declared.exists():
                files.write_whole(declared, self.declaration.encoded(), mine=False)
            # Before the file is there: who asks from now on means it.
            self._asked = files.asked_to_seal(self.folder)
            segment = files.Segment(self.folder, self._digest)
            self._segment, self._opened_ns, self._seen_here_ns = segment, now_ns, now_ns
        return segment

    def _seal(self) -> None:
        """Finish the live file. Raises: OSError; it stays live then."""
        assert self._segment is not None
        sealed = self._segment.seal(self._format)
        self._segment = None
        if sealed is not None:
            self._sealed.append(sealed)
        if self._format == "parquet":
            self._keep_next_ns = min(self._keep_next_ns, self._clock.monotonic_ns())

    def _finish(self) -> None:
        """At the end: let the file go. What shall become Parquet is left for the next process, or read as it is."""
        if self._segment is not None:
            try:
                self._seal()
            except OSError as exc:
                self._failed(exc)

    def _failed(self, exc: OSError) -> None:
        self._failures += 1
        self._last_error = f"{type(exc).__name__}: {exc.strerror or exc}"
        if self._state != "failing":
            self._changed("failing", self._last_error)
        if not self._warned:
            self._warned = True
            with contextlib.suppress(Exception):  # warnings may be errors, and stderr may be closed
                warnings.warn(
                    f"the decision log cannot be written ({self._last_error}); rows wait, then they are dropped",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def _changed(self, after: str, why: str) -> None:
        before, self._state = self._state, after
        if self._hooks:
            self._hooks.on_event(Changed("decision log", before, after, why, self._clock.wall_ns()))

    # ---- looking after the folder: on the log's thread ----------------------------------------------------------------------

    def _idle(self) -> float | None:
        """Rotate, notice drops; quick. Returns when to come again, in seconds."""
        now_ns = self._clock.monotonic_ns()
        self._look_at_drops(now_ns)
        try:
            self._rotate(now_ns)
        except OSError as exc:
            self._failed(exc)
        return None if self._segment is None else _LOOK_S

    def _chores(self) -> float:
        """What may take as long as the disk likes: make files last, keep the folder when it is time. Returns as `_idle`."""
        now_ns = self._clock.monotonic_ns()
        try:
            while self._sealed:
                files.make_last(self._sealed[0])
                self._sealed.pop(0)
            busy = self._keep(now_ns)
        except OSError as exc:
            self._stop_converting()
            self._keep_next_ns = now_ns + int(_KEEP_S * 1e9)
            if not isinstance(exc, FileNotFoundError):  # no folder, and nothing written yet
                self._failed(exc)
            return _LOOK_S
        return 0.0 if busy else max(0.1, (self._keep_next_ns - now_ns) / 1e9)

    def _look_at_drops(self, now_ns: int) -> None:
        dropped = self._outbox.dropped
        if dropped > self._dropped_seen:
            self._dropped_seen, self._dropped_ns = dropped, now_ns
            if self._state == "ready":
                self._changed("dropping", "the queue is full")
        elif self._state == "dropping" and now_ns - self._dropped_ns > _QUIET_NS:
            self._changed("ready", "no row was dropped for a minute")

    def _rotate(self, now_ns: int) -> None:
        segment = self._segment
        if segment is None:
            return
        old = now_ns - self._opened_ns >= self._rotate_ns
        asked = files.asked_to_seal(self.folder) != self._asked
        if asked:  # by somebody who wants all that was answered before in the file
            if not self.flush(0.0):
                return
            segment = self._segment
            if segment is None:
                return
        if old or asked or segment.size >= self._rotate_bytes:
            if segment.is_here():
                self._seal()
            else:
                segment.let_go()
                self._segment = None

    def _keep(self, now_ns: int) -> bool:
        """Do a step of what whoever keeps the folder does; whether there is more to do."""
        if self._keeper is None:
            if now_ns < self._keep_next_ns:
                return False
            # Not all workers of a server at the same time.
            self._keep_next_ns = now_ns + int(_KEEP_S * 1e9 * (0.75 + 0.5 * self._draw()))
            keeper = files.Keeper(self.folder)
            if not keeper.take():
                return False
            self._keeper = keeper
            self._to_do = self._housekeeping()
            self._kept_since = files.asked_to_seal(self.folder)
        if self._converts is None and files.asked_to_seal(self.folder) != self._kept_since:
            self._to_do = []  # somebody wants to erase
            self._keep_next_ns = now_ns + int(_KEEP_S / 10 * 1e9)
        if self._converts is None and self._to_do:
            file = self._to_do.pop(0)
            if self._format == "jsonl":
                files.finish_lines(file)
            else:
                self._converts = ToParquet(file)
        if self._converts is not None and self._step():
            self._converts = None
        if self._converts is None and not self._to_do:
            self._stop_converting()
            return False
        return True

    def _step(self) -> bool:
        assert self._converts is not None
        try:
            return self._converts.step()
        except FileNotFoundError:  # deleted by hand
            return True
        except OSError:
            raise
        except Exception:  # noqa: BLE001 - whatever Arrow does not take: the file stays one of lines, and is read as such
            files.finish_lines(self._converts.file)
            return True

    def _housekeeping(self) -> list[files.LogFile]:
        """Finish files of the dead, delete what is too old; the sealed files that are to become something else."""
        files.tidy(self.folder, now_s=self._clock.wall_ns() / 1e9)
        own = None if self._segment is None else self._segment.tag
        for file in files.listing(self.folder).files:
            if file.kind == "live" and file.tag != own and files.recover(file, self._format) is not None:
                self._recovered += 1
        if self._keep_ns is not None:
            self._expired += files.expire(self.folder, self._now_ns() - self._keep_ns)
        return [file for file in files.listing(self.folder).files if file.kind == "sealed"]

    def _stop_converting(self) -> None:
        self._converts = None
        self._to_do = []
        if self._keeper is not None:
            self._keeper.give_back()
            self._keeper = None

    def _now_ns(self) -> int:
        """The wall clock; where it was set forward since the process began, what it would show had it not been."""
        wall_ns = self._clock.wall_ns()
        steady_ns = self._wall_ns + self._clock.monotonic_ns() - self._mono_ns
        return steady_ns if wall_ns - steady_ns > _STEP_NS else wall_ns

    # ---- forks ---------------------------------------------------------------------------------------------------------

    def _begin_in_child(self) -> None:
        """The parent's file, its lock and its counts are the parent's."""
        if self._segment is not None:
            self._segment.let_go()
        if self._keeper is not None:
            self._keeper.let_go()
        self._anew()
        self._rows.bare = self._rows.refused = 0
        if self._own_random:
            self._random.seed()


def moment_ns(at: dt.datetime | None, name: str) -> int | None:
    """A moment as ns since 1970. Raises: ConfigError for one without a zone."""
    if at is None:
        return None
    if not isinstance(at, dt.datetime) or at.utcoffset() is None:
        raise ConfigError(f"Expected a datetime with a zone for {name}, got {clip(at)}", hint="tzinfo=dt.UTC")
    return (at - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1) * 1_000


def _check(**settings: Any) -> None:
    """Raises: ConfigError for a setting that means nothing."""
    if settings["format"] not in ("jsonl", "parquet"):
        raise ConfigError(f'Expected format "jsonl" or "parquet", got {clip(settings["format"])}')
    for name, value in settings.items():
        if name == "format" or (name == "keep_days" and value is None):
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        if not number or (name == "sample" and value > 1) or (name.startswith("max_") and value < 1):
            what = "above 0 and up to 1" if name == "sample" else "above 0"
            raise ConfigError(f"Expected a number {what} for {name}, got {clip(value)}")
