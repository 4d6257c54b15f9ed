"""ReadThrough: fetches what a table lacks from its source, while requests wait for it no longer than they can afford.

Rules:
  * A source costs a request at most the wait that the request brings, whatever the source does: it runs on threads of its
    own, of which there are few, which start with the first fetch and end when idle. No exception of a source gets out.
  * One fetch per key: who asks for a key that is on its way waits for that answer. What is asked for while all threads are
    busy goes out together, requests before refreshes.
  * An answer that comes too late for its request still fills the table. It never overwrites what was written, erased or
    fetched since it was asked for: a flight may fill a key only while `_flights[key]` is that flight, and whoever writes
    takes the key away first (`fence`), both under `lock`.
  * What a source says is copied into plain values before the lock is taken: objects of others run no code under it.
  * Failures, and calls that outlive their limit, close the door for up to a second (backoff.py). Calls that never end are
    written off with their threads, a bounded number of them.
  * After a fork the child begins afresh: no flight, no thread, a door that is open, a lock of its own.
The table is feature_table.py; what a source is, sources/__init__.py; when to try again, backoff.py.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from retailinfer.clock import Clock, SystemClock
from retailinfer.errors import ConfigError
from retailinfer.life import begin_again_in_children, end_with_process
from retailinfer.store.backoff import Backoff, State
from retailinfer.store.plain import Rubbish, plain_row
from retailinfer.store.sources import FeatureSource, Key

__all__ = ["Fills", "ReadThrough", "ReadThroughStats"]

_LONGEST_WAIT_S = 3_600.0
_EXIT_WAIT_S = 0.1
_FORGOTTEN_NS = 60_000_000_000

_exit_by_ns = 0  # until when all that end with the process may wait together; 0: nobody began to


class Fills(Protocol):
    """What a table lets its ReadThrough do. All three are called under `lock`, and must not wait."""

    def put(self, key: Any, row: Mapping[str, Any], *, updated_at: Any = None) -> None:
        """Store a row (of plain values) and forget that the key was unknown. What it raises refuses the row.

        `updated_at`: seconds since the epoch; None where the row says it itself.
        """

    def mark_unknown(self, keys: Sequence[Any]) -> None:
        """Remember for a while that there is nothing under these keys, and forget the rows."""

    def knows(self, key: Any) -> bool:
        """Whether there is a row that has not expired, or it is remembered that there is none; does not count as use."""


class ReadThroughStats(msgspec.Struct, frozen=True, kw_only=True):
    """What came of all fetches so far, and what goes on now. Counts of keys, unless it says calls."""

    calls: int  # calls of the source
    rows: int  # rows that went into the table
    unknown: int  # of which the source said that there is no such entity
    failed_calls: int  # that raised, returned no mapping, or outlived their limit
    rubbish: int  # rows that do not fit the table
    late: int  # rows that came when a request had given up waiting
    overtaken: int  # rows not used, because something newer was there
    gave_up: int  # waits of requests that ended before the answer came
    held_back: int  # not asked for, because the source had failed just now
    refused: int  # not asked for, because too much was waiting
    lost_calls: int  # that outlived their limit
    pending: int  # waiting for a thread now
    in_flight: int
    threads: int
    state: str  # of the door: open, closed, probing
    last_error: str  # name of the last exception's type, or what was wrong with a row; never a value

    @property
    def healthy(self) -> bool:
        """Whether the source answers, as far as is known."""
        return self.state == State.OPEN.value


class _Flight:
    """Keys that were asked for together and whose answer comes together."""

    __slots__ = ("asked_ns", "done", "gave_up", "keys", "lost", "permit", "taken", "unknown", "urgent")

    def __init__(self, keys: list[Key], permit: int, *, asked_ns: int, urgent: bool) -> None:
        self.keys = keys
        self.asked_ns = asked_ns  # monotonic
        self.permit = permit
        self.urgent = urgent  # a request waits, or waited
        self.taken = False  # by a thread
        self.lost = False  # its call outlived its limit: the keys may be asked for again
        self.gave_up = False  # a request ended its wait
        self.unknown: set[Key] = set()
        self.done = threading.Event()


class _Call:
    """One call of the source, for one or several flights."""

    __slots__ = ("asked_ns", "flights", "limit_ns", "lost", "permit", "replaced", "urgent")

    def __init__(self, flights: list[_Flight], *, asked_ns: int, limit_ns: int) -> None:
        self.flights = flights
        self.permit = max(flight.permit for flight in flights)
        self.urgent = any(flight.urgent for flight in flights)
        self.asked_ns = asked_ns  # wall clock: no row of the answer is known to be true later than this
        self.limit_ns = limit_ns  # monotonic
        self.lost = False
        self.replaced = False  # its thread no longer counts, another may take its place


class ReadThrough:
    """The fetching half of one table. Safe to use from threads, greenlets and forked children."""

    def __init__(
        self,
        source: FeatureSource,
        table: Fills,
        *,
        columns: Iterable[str],
        updated_at: str | None = None,
        name: str = "table",
        timeout_s: float = 0.1,
        threads: int = 4,
        max_batch: int = 500,
        max_pending: int = 20_000,
        idle_s: float = 10.0,
        clock: Clock | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        """Bind a source to a table; nothing runs before the first fetch.

        Args:
            source: see sources/__init__.py.
            table: where rows go. Its own `put`, `mark_unknown` and erasing must call `fence` under `lock`.
            columns: what every row must have; None in a row is null, a column that is not there is a mistake.
            updated_at: the column of the rows that says when they were true. Without it a row is as old as its fetch.
            name: for the names of threads.
            timeout_s: what one call of the source may take; a request's own wait is up to the request.
            threads: at most this many calls at once. As many again may be stuck in calls that never end.
            max_batch: keys of one call.
            max_pending: keys that may wait for a thread; as many again may wait to be refreshed.
            idle_s: a thread without work ends after this long.
            clock: for limits, ages and the backoff.
            backoff: when to try again after failures.
        """
        if not callable(getattr(source, "fetch", None)):
            raise ConfigError(
                f"Expected a source with a method `fetch(keys, *, timeout_s)`, got `{type(source).__name__}`",
                hint="see retailinfer.store.sources.FeatureSource",
            )
        if not 0 < timeout_s <= _LONGEST_WAIT_S or threads < 1 or max_batch < 1 or max_pending < 1:
            raise ConfigError(
                f"Expected a timeout of more than 0 and at most {_LONGEST_WAIT_S:.0f} s, and at least 1 thread, 1 key "
                f"of a batch and 1 key pending, got {timeout_s}, {threads}, {max_batch}, {max_pending}"
            )
        self.source = source
        self.name = name
        self._table = table
        self._columns = tuple(dict.fromkeys([*columns, *([] if updated_at is None else [updated_at])]))
        self._updated_at = updated_at
        self._timeout_s = timeout_s
        self._timeout_ns = int(timeout_s * 1e9)
        self._max_threads = threads
        self._max_batch = max_batch
        self._max_pending = max_pending
        self._idle_s = idle_s
        self._clock: Clock = clock or SystemClock()
        self._waits = bool(getattr(source, "waits", True))
        self._backoff = backoff or Backoff()
        self._counts = dict.fromkeys(ReadThroughStats.__struct_fields__[:11], 0)
        self._last_error = ""
        self._closed = False
        self._life = 0
        self._begin()
        begin_again_in_children(self)
        end_with_process(self)

    def _begin(self) -> None:
        """Without flights, threads or anything that another process may have half done."""
        self._pid = os.getpid()
        self._life += 1
        self._lock = threading.RLock()
        self._flights: dict[Key, _Flight] = {}
        self._urgent: deque[_Flight] = deque()
        self._later: deque[_Flight] = deque()
        self._pending = {True: 0, False: 0}  # keys, by `urgent`
        self._running: list[_Call] = []
        self._warm: Iterator[Key] | None = None
        self._threads = 0
        self._idle = 0  # threads that wait for a token that nobody has put yet
        self._stuck = 0  # threads in calls that were written off
        # A token wakes an idle thread, which then no longer counts as idle.
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()

    def begin_in_child(self) -> None:
        """At the start of a forked child (life.py); a raw fork is noticed at the next fetch."""
        self._begin()
        self._backoff.reset()

    def end_with_process(self) -> None:
        """Let calls under way end, for a moment: a thread inside a client's C code is better not cut off."""
        global _exit_by_ns  # noqa: PLW0603 - one moment for all of a process
        clock = SystemClock()  # a manual one would stand still
        if not _exit_by_ns:
            _exit_by_ns = clock.monotonic_ns() + int(_EXIT_WAIT_S * 1e9)
        with self.lock:
            self._closed = True
            flights = [flight for call in self._running for flight in call.flights]
            self._drop_pending()
        for flight in flights:
            flight.done.wait(max(0, _exit_by_ns - clock.monotonic_ns()) * 1e-9)

    @property
    def lock(self) -> threading.RLock:
        """Under which rows are written and erased; another one in each process."""
        self._check_process()
        return self._lock

    # ---- what requests do ---------------------------------------------------------------------------------------

    def fetch(self, keys: Sequence[Key], timeout_s: float) -> set[Key]:
        """Ask for these keys and wait for the answer, at most `timeout_s`; what came is in the table.

        Returns the keys of which the source said, in time, that there is no such entity: the table may have forgotten them
        again. Never raises because of the source.
        """
        flights = self._ask(keys, urgent=True)
        unknown: set[Key] = set()
        until_ns = self._clock.monotonic_ns() + int(max(0.0, min(timeout_s, _LONGEST_WAIT_S)) * 1e9)
        for flight in flights:
            if not flight.done.is_set():
                left_ns = until_ns - self._clock.monotonic_ns()
                if left_ns <= 0 or not flight.done.wait(left_ns * 1e-9):
                    flight.gave_up = True
                    with self._lock:
                        self._counts["gave_up"] += 1
                    continue
            unknown |= flight.unknown
        return unknown.intersection(keys) if unknown else unknown

    def refresh(self, key: Key) -> None:
        """Have a key fetched when there is time for it; dropped if too much waits already. Does not wait."""
        self._ask((key,), urgent=False)

    def refresh_many(self, keys: Sequence[Key]) -> None:
        """The same for several keys."""
        self._ask(keys, urgent=False)

    def warm(self, keys: Iterable[Key]) -> None:
        """Fetch any number of keys, a batch at a time and only while nothing else waits; the next call replaces this one.

        The iterator is read on a thread of ours, as far as the fetches have come.
        """
        if not self._waits:
            for batch in _batches(iter(keys), self._max_batch):
                self._ask(batch, urgent=False)
            return
        self._check_process()
        with self._lock:
            self._warm = iter(keys)
            self._wake(1)

    def fence(self, keys: Iterable[Key]) -> None:
        """Keep answers that are on their way from filling these keys. For who writes or erases rows, under `lock`."""
        if self._flights:
            for key in keys:
                self._flights.pop(key, None)

    def fence_all(self) -> None:
        """The same for every key."""
        self._flights.clear()

    def scan(self) -> Any:
        """Everything that the source has: Arrow data, or an iterator of keys and rows with the table's columns.

        Raises: ConfigError for a source that cannot be scanned, or whose rows do not fit; and what the source raises.
        """
        scan = getattr(self.source, "scan", None)
        if not callable(scan):
            raise ConfigError(
                f"Expected a source of table `{self.name}` with `scan()`, got `{type(self.source).__name__}`",
                hint="load a file, Arrow data, or pairs of key and row",
            )
        found = scan()
        arrow = hasattr(found, "__arrow_c_stream__") or hasattr(found, "__arrow_c_array__")
        return found if arrow else self._scanned(found)

    def _scanned(self, pairs: Iterable[tuple[Key, Any]]) -> Iterator[tuple[Key, dict[str, Any]]]:
        for key, row in pairs:
            try:
                yield key, plain_row(row, self._columns)
            except Rubbish as exc:
                raise ConfigError(
                    f"Expected rows that fit table `{self.name}` from its source, got a {exc}"
                ) from exc

    def stats(self) -> ReadThroughStats:
        """Counts since the start, and the state now."""
        with self.lock:
            return ReadThroughStats(
                **self._counts,
                pending=sum(self._pending.values()),
                in_flight=len(self._flights),
                threads=self._threads + self._stuck,
                state=self._backoff.state.value,
                last_error=self._last_error,
            )

    def close(self) -> None:
        """Ask for nothing more, let the threads end, and close the source. Calls under way may still fill the table."""
        with self.lock:
            self._closed = True
            self._drop_pending()
            self._warm = None
            for _ in range(self._idle):
                self._tokens.put(None)
            self._idle = 0
        close = getattr(self.source, "close", None)
        if callable(close):
            close()

    def _ask(self, keys: Sequence[Key], *, urgent: bool) -> list[_Flight]:
        """Flights that will bring these keys, new ones and those under way."""
        self._check_process()
        now_ns = self._clock.monotonic_ns()
        waits: dict[_Flight, None] = {}
        mine: list[_Flight] = []
        with self._lock:
            self._write_off(now_ns)
            missing = []
            for key in dict.fromkeys(keys):
                flight = self._flights.get(key)
                if flight is None or flight.lost or self._is_forgotten(flight, now_ns):
                    missing.append(key)
                    continue
                waits[flight] = None
                if urgent and not flight.urgent:
                    self._hurry(flight)
            if urgent and missing:  # an answer may have come between the look-up that missed and the lock
                missing = [key for key in missing if not self._table.knows(key)]
            for batch in _batches(iter(missing), self._max_batch):
                if self._closed or self._pending[urgent] + len(batch) > self._max_pending:
                    self._counts["refused"] += len(batch)
                    continue
                permit = self._backoff.admit(now_ns)
                if permit is None:
                    self._counts["held_back"] += len(batch)
                    continue
                flight = _Flight(batch, permit, asked_ns=now_ns, urgent=urgent)
                self._flights.update(dict.fromkeys(batch, flight))
                mine.append(flight)
                if self._waits:
                    (self._urgent if urgent else self._later).append(flight)
                    self._pending[urgent] += len(batch)
            if mine and self._waits:
                self._wake(len(mine))
        if not self._waits:
            for flight in mine:
                flight.taken = True
                self._run(self._call([flight], now_ns))
        return [*waits, *mine]

    def _hurry(self, flight: _Flight) -> None:
        """A request waits for what was a refresh: it goes first, if there is room."""
        if flight.taken or not self._waits:
            flight.urgent = True
        elif self._pending[True] + len(flight.keys) <= self._max_pending:
            flight.urgent = True
            self._urgent.append(flight)  # and stays among the others, where it is passed over once taken
            self._pending[False] -= len(flight.keys)
            self._pending[True] += len(flight.keys)
            self._wake(1)  # the thread that is kept free of refreshes may take it

    def _is_forgotten(self, flight: _Flight, now_ns: int) -> bool:
        """Whether nobody will ever take it: its asker was interrupted (Ctrl-C, a timeout of gevent) before it was queued."""
        return now_ns - flight.asked_ns > _FORGOTTEN_NS and not (flight.taken and self._waits)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            self.begin_in_child()

    # ---- threads ------------------------------------------------------------------------------------------------

    def _wake(self, n_flights: int) -> None:
        """See to it that up to `n_flights` threads look for work, besides those that do so anyway. Under the lock."""
        woken = min(n_flights, self._idle)
        self._idle -= woken
        for _ in range(woken):
            self._tokens.put(None)
        for _ in range(min(n_flights - woken, self._max_threads - self._threads)):
            self._threads += 1
            try:
                threading.Thread(
                    target=self._work, args=(self._life,), name=f"retailinfer-read-{self.name}", daemon=True
                ).start()
            except RuntimeError as exc:  # no more threads to be had, or the interpreter is going down
                self._threads -= 1
                self._last_error = type(exc).__name__
                if self._threads == 0:
                    self._drop_pending()
                return

    def _work(self, life: int) -> None:
        """A thread's life: calls while there are any, then a wait for more."""
        try:
            while self._life == life:
                call = self._take()
                if call is not None:
                    self._run(call)
                    if call.replaced:
                        with self._lock:
                            if self._life == life:
                                self._stuck -= 1
                        return
                elif not self._more_to_warm() and not self._wait_for_token(life):
                    return
        except (
            BaseException
        ):  # no memory, or a mistake of ours: seen by threading's hook, and another thread may start
            with self._lock:
                if self._life == life:
                    self._threads -= 1
            raise

    def _wait_for_token(self, life: int) -> bool:
        """Whether there may be work; if not, this thread no longer counts."""
        with self._lock:
            if self._life != life:
                return False
            if self._closed:
                self._threads -= 1
                return False
            if self._urgent or (self._later and self._may_refresh()) or self._may_warm():
                return True  # it came after the last look, when this thread was not yet idle
            self._idle += 1
            tokens = self._tokens
        try:
            tokens.get(timeout=self._idle_s)
        except queue.Empty:
            with self._lock:
                if self._life != life:
                    return False
                try:
                    tokens.get_nowait()  # put in the last moment: whoever did so counts on this thread
                except queue.Empty:
                    self._idle -= 1
                    self._threads -= 1
                    return False
        return True

    def _take(self) -> _Call | None:
        """The next call: what requests wait for, filled up with refreshes; one thread is kept free of refreshes."""
        now_ns = self._clock.monotonic_ns()
        with self._lock:
            flights: list[_Flight] = []
            room = self._take_from(self._urgent, flights, self._max_batch)
            if flights or self._may_refresh():
                self._take_from(self._later, flights, room)
            if not flights:
                if not (self._urgent or self._later):
                    self._pending = {True: 0, False: 0}
                return None
            call = self._call(flights, now_ns)
            self._running.append(call)
            return call

    def _may_refresh(self) -> bool:
        """Whether a thread is free for what nobody waits for. Under the lock."""
        refreshing = sum(not call.urgent for call in self._running)
        return refreshing < max(1, self._max_threads - 1)

    def _may_warm(self) -> bool:
        """Whether there are keys to warm, and nothing better to do. Under the lock."""
        return (
            self._warm is not None
            and not self._later
            and self._may_refresh()
            and self._backoff.would_admit(
                self._clock.monotonic_ns()
            )  # else with the next fetch after the wait
        )

    def _take_from(self, waiting: deque[_Flight], flights: list[_Flight], room: int) -> int:
        while waiting:
            flight = waiting[0]
            if not flight.taken:
                if len(flight.keys) > room:
                    break
                room -= len(flight.keys)
                flight.taken = True
                self._pending[flight.urgent] -= len(flight.keys)
                flights.append(flight)
            waiting.popleft()
        return room

    def _call(self, flights: list[_Flight], now_ns: int) -> _Call:
        # A source that keeps its limit answers within it; as much again and a little says that this one does not.
        limit_ns = now_ns + 2 * self._timeout_ns + 50_000_000
        return _Call(flights, asked_ns=self._clock.wall_ns(), limit_ns=limit_ns)

    def _more_to_warm(self) -> bool:
        """Queue the next batch of what is to be warmed; False if there is none, or not now."""
        with self._lock:
            if not self._may_warm():
                return False
            keys, self._warm = self._warm, None
        assert keys is not None
        try:
            batch = list(itertools.islice(keys, self._max_batch))
        except Exception as exc:  # noqa: BLE001 - any iterator may be given
            self._last_error = type(exc).__name__
            return False
        if not batch:
            return False
        self._ask(batch, urgent=False)
        with self._lock:
            self._warm = self._warm or keys
        return True

    def _write_off(self, now_ns: int) -> None:
        """Give up calls that outlived their limit, and let other threads take the place of theirs. Under the lock."""
        for call in self._running:
            if call.lost or now_ns <= call.limit_ns:
                continue
            call.lost = True
            self._counts["lost_calls"] += 1
            if self._stuck < self._max_threads:
                call.replaced = True
                self._stuck += 1
                self._threads -= 1
            for flight in call.flights:
                flight.lost = True
                flight.done.set()
            self._failed(call, "TimeoutError", now_ns)
            if self._urgent or self._later:
                self._wake(1)

    def _failed(self, call: _Call, why: str, now_ns: int) -> None:
        self._counts["failed_calls"] += 1
        self._last_error = why
        if self._backoff.failed(call.permit, now_ns):
            self._drop_pending()

    def _drop_pending(self) -> None:
        """End every flight that no thread has taken: nobody waits for a source that is known to fail."""
        for waiting in (self._urgent, self._later):
            for flight in waiting:
                if not flight.taken:
                    flight.taken = True
                    self._release(flight)
            waiting.clear()
        self._pending = {True: 0, False: 0}

    def _release(self, flight: _Flight) -> None:
        """Free what the flight has not filled, and end all waits for it. Under the lock."""
        for key in flight.keys:
            if self._flights.get(key) is flight:
                del self._flights[key]
        flight.done.set()

    # ---- what the source says -----------------------------------------------------------------------------------

    def _run(self, call: _Call) -> None:
        """Call the source and fill the table; whatever happens, every wait for these flights ends."""
        life = self._life
        keys = list(dict.fromkeys(key for flight in call.flights for key in flight.keys))
        answered, why = False, ""
        with self._lock:
            self._counts["calls"] += 1
        try:
            answer: Any = self.source.fetch(keys, timeout_s=self._timeout_s)
            if isinstance(answer, Mapping):
                # Rows that do not fit say nothing about whether the source is up: a client who can choose a key that
                # cannot be looked up must not be able to close the door for all others.
                answered = True
                self._fill(call, answer, life)
            else:
                why = f"no mapping, `{type(answer).__name__}`"
        except BaseException as exc:  # a source may raise what it likes
            why = type(exc).__name__
            if not self._waits and not isinstance(exc, Exception):
                raise  # the caller's thread was told to stop
        finally:
            self._end(call, life, failed=not answered, why=why)

    def _end(self, call: _Call, life: int, *, failed: bool, why: str) -> None:
        with self._lock:
            if self._life != life:  # a greenlet that went on in a forked child
                for flight in call.flights:
                    flight.done.set()
                return
            if call in self._running:
                self._running.remove(call)
            if not call.lost:
                if failed:
                    self._failed(call, why, self._clock.monotonic_ns())
                else:
                    self._backoff.succeeded(call.permit)
            for flight in call.flights:
                self._release(flight)

    def _fill(self, call: _Call, answer: Mapping[Any, Any], life: int) -> None:
        """Put every usable row into the table."""
        # In seconds, as tables take it; for rows that do not say themselves when they were true.
        asked_s = call.asked_ns / 1e9
        for flight in call.flights:
            for key in flight.keys:
                row: dict[str, Any] | None
                try:
                    found = answer.get(key)
                    row = None if found is None else plain_row(found, self._columns)
                except Exception as exc:  # noqa: BLE001 - what a source returns may run any code
                    self._rubbish(exc)
                    continue
                with self._lock:
                    if self._life != life:
                        return
                    if self._flights.get(key) is not flight:
                        self._counts["overtaken"] += 1
                        continue
                    try:
                        if row is None:
                            flight.unknown.add(key)
                            self._table.mark_unknown((key,))
                            self._counts["unknown"] += 1
                        else:
                            own = self._updated_at is not None and row[self._updated_at] is not None
                            self._table.put(key, row, updated_at=None if own else asked_s)
                            self._counts["rows"] += 1
                            self._counts["late"] += flight.gave_up
                    except Exception as exc:  # noqa: BLE001 - the row does not fit the table
                        self._rubbish(exc)
            with self._lock:
                if self._life == life:
                    self._release(flight)  # its requests need not wait for the rest of the call

    def _rubbish(self, exc: Exception) -> None:
        with self._lock:
            self._counts["rubbish"] += 1
            self._last_error = str(exc) if type(exc) is Rubbish else type(exc).__name__


def _batches(keys: Iterator[Key], size: int) -> Iterator[list[Key]]:
    while batch := list(itertools.islice(keys, size)):
        yield batch
