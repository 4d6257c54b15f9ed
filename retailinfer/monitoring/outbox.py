"""A bounded queue with a thread of its own: what is put there costs a request a fraction of a microsecond and never waits.

Rules:
  * `put` takes no lock and makes no system call while the thread is at work. What finds the queue full is dropped and counted.
  * The thread starts with what is put first, sleeps while there is nothing to do, and ends when nobody holds the outbox.
  * It delivers a few items at a time, more when it is behind: other threads wait for the GIL no longer than that takes.
  * A forked child begins with an empty queue and no thread: what was queued in the parent is delivered by the parent.
  * At the end of the process the rest is delivered by the thread that ends it, within `END_S`. What is put later is
    delivered at once, by whoever puts it.
Who uses it: logs.py and decision_log.py. Forks and exits: life.py.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

from retailinfer.clock import Clock, SystemClock
from retailinfer.life import begin_again_in_children, end_with_process, pause_for_forks

__all__ = ["END_S", "Outbox"]

END_S: Final = 0.8  # a worker is gone a second after it was asked to be
FORK_S: Final = 1.0
_SLICE: Final = 16  # items that are delivered at once when there are few
_BEHIND: Final = 6  # else the 64th part of what waits
_NOTHING: Final = object()  # that nobody puts
_START_AGAIN_NS: Final = 1_000_000_000


class Outbox:
    """Items on their way from the threads that answer requests to one that writes them.

    Attributes:
        dropped: items that found the queue full, or were left when the process ended.
        failed: items that `deliver` raised for; they are gone.
    """

    def __init__(
        self,
        deliver: Callable[[list[Any]], int],
        *,
        name: str,
        max_queue: int,
        gather_s: float = 0.1,
        idle: Callable[[], float | None] | None = None,
        chores: Callable[[], float | None] | None = None,
        rest: Callable[[], None] | None = None,
        close: Callable[[], None] | None = None,
        begin: Callable[[], None] | None = None,
        pauses: bool = False,
        clock: Clock | None = None,
    ) -> None:
        """Nothing runs before the first `put`.

        Args:
            deliver: takes items, returns how many of them, from the first on, it is done with; the rest comes again.
            name: of the thread.
            max_queue: items that may wait.
            gather_s: how long the thread waits after the first item, so that it need not wake for each.
            idle: called on the thread after every delivery; returns after how many seconds it wants to be called again,
                None = not before something was put. Like `deliver` it must be quick: the end of the process waits for both.
            chores: the same for what may take long. Nothing waits for it but forks; others may deliver meanwhile.
            rest: called when the thread does no more chores.
            close: called when all is delivered, at the end.
            begin: called in a forked child.
            pauses: no fork happens while one of these runs (for a second; then it happens nevertheless).
            clock: for tests.
        """
        self._deliver = deliver
        self._idle = idle
        self._chores = chores
        self._rest = rest
        self._close = close
        self._begin = begin
        self._name = name
        self._most = max_queue
        self._gather_s = gather_s
        self._clock = clock or SystemClock()
        self._ended = False
        self._anew()
        begin_again_in_children(self)
        end_with_process(self)
        if pauses:
            pause_for_forks(self)

    def _anew(self) -> None:
        self._pid = os.getpid()
        self._queue: deque[Any] = deque()
        self._put = self._queue.append
        self._left: list[Any] = []  # taken from the queue, and not yet delivered
        self._asleep = True  # nobody looks at the queue unless told
        self._thread: threading.Thread | None = None
        self._cell: list[
            Outbox
        ] = []  # itself while its thread wakes: whoever put something may drop it meanwhile
        self._starting = threading.Lock()
        self._io = threading.RLock()  # held while items are delivered
        self._busy = (
            threading.RLock()
        )  # held while chores are done; who takes both locks takes this one first
        self._pauser: tuple[int, list[Any]] = (0, [])  # the thread that is about to fork, and its locks
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._start_after_ns = -(1 << 62)
        self.dropped = 0
        self.failed = 0

    def __len__(self) -> int:
        return len(self._queue) + len(self._left)

    # ---- on the request path -------------------------------------------------------------------------------------------

    def put(self, item: Any) -> bool:
        """Queue an item; False when there was no room and it was dropped."""
        if len(self._queue) >= self._most:
            return self._overflow()
        self._put(item)
        if self._asleep:
            self._rouse()
        return True

    def _overflow(self) -> bool:
        if self._pid != os.getpid():  # a raw fork, which told nobody: what is queued here is the parent's
            self.begin_in_child()
        elif self._thread is None or not self._thread.is_alive():
            self._rouse()  # something ended it that nobody may stop
        self.dropped += 1
        return False

    def _rouse(self) -> None:
        if self._ended:
            self.flush(END_S)
            return
        # Never waits: who holds it, perhaps the code that a signal interrupted in this thread, does the same.
        if not self._starting.acquire(blocking=False):
            return
        try:
            if self._pid != os.getpid():
                mine = list(self._queue)  # the parent's thread slept, so its queue was empty
                self.begin_in_child()
                self._queue.extend(mine)
            if self._thread is not None and self._thread.is_alive():
                self._cell.append(self)
                self._asleep = False
                self._wake.set()
            elif self._clock.monotonic_ns() >= self._start_after_ns:
                self._start()
        finally:
            if self._starting.locked():
                self._starting.release()

    def _start(self) -> None:
        self._wake.clear()
        wake = self._wake
        self._cell.append(self)

        def gone(_: weakref.ref[Outbox]) -> None:
            wake.set()

        thread = threading.Thread(
            target=_run,
            args=(self._cell, weakref.ref(self, gone), wake, self._stop),
            name=self._name,
            daemon=True,
        )
        try:
            self._asleep = False
            thread.start()
            self._thread = thread
        except RuntimeError:
            # No more threads: what is queued waits for the next try, for `flush`, for the end.
            self._cell.clear()
            self._asleep = True
            self._start_after_ns = self._clock.monotonic_ns() + _START_AGAIN_NS

    # ---- on its own thread ---------------------------------------------------------------------------------------------

    def _round(self) -> float | None:
        """Deliver what is there; after how many seconds to come again, None = when roused."""
        with self._io:
            done = self._drain(self._most)
            waits = [self._call(self._idle)]
        if self._chores is not None and not self._stop.is_set():
            with self._busy:
                waits.append(self._call(self._chores))
        if not done or self._queue:
            waits.append(self._gather_s)
        return min((wait for wait in waits if wait is not None), default=None)

    def _call(self, work: Callable[[], float | None] | None) -> float | None:
        if work is None:
            return None
        try:
            return work()
        except Exception:  # noqa: BLE001 - it must not end the thread; what it does is tried again
            self.failed += 1
            return 1.0

    def _have_rest(self) -> None:
        if self._rest is not None and self._busy.acquire(blocking=False):
            try:
                self._rest()
            finally:
                self._busy.release()

    def _drain(self, most: int) -> bool:
        """Deliver up to `most` items; whether all was taken that came. Call with `_io` held.

        A signal may raise in the middle, where a call begins or has ended: items are in the queue, in `_left` or delivered.
        """
        queue = self._queue
        while most > 0 and (self._left or queue):
            if not self._left:
                n = min(len(queue), max(_SLICE, len(queue) >> _BEHIND))
                self._left.extend(islice(iter(queue.popleft, _NOTHING), n))  # in one step
            left, n = self._left, len(self._left)
            most -= n
            try:
                done = self._deliver(left)
                if done >= n:
                    self._left = []
                    continue
            except Exception:  # noqa: BLE001 - neither the thread nor the process may end of it
                self.failed += n
                self._left = []
                continue
            self._left = left[done:]
            return False
        return True

    # ---- from outside --------------------------------------------------------------------------------------------------

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Deliver, in this thread, what was put before; False when that took too long or could not be delivered now."""
        if not self._io.acquire(timeout=max(0.0, timeout_s)):
            return False
        try:
            return self._drain(len(self))
        finally:
            self._io.release()

    def hold(self, timeout_s: float) -> bool:
        """Keep the thread from doing anything until `release`; False when it did not come to a stop in time."""
        if not self._busy.acquire(timeout=timeout_s):
            return False
        if self._io.acquire(timeout=timeout_s):
            return True
        self._busy.release()
        return False

    def release(self) -> None:
        """Undo a `hold`."""
        self._io.release()
        self._busy.release()

    def close(self, timeout_s: float = 5.0) -> bool:
        """Deliver everything and end the thread; whether all was delivered. What is put later is delivered at once."""
        self._ended = True
        self._stop.set()
        self._wake.set()
        end_ns = self._clock.monotonic_ns() + int(timeout_s * 1e9)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s / 2)
        self._asleep = True
        self._have_rest()  # when the thread does chores still, it rests when they are done
        left_s = max(0.05, (end_ns - self._clock.monotonic_ns()) / 1e9)
        if not self._io.acquire(timeout=left_s):
            self.dropped += len(self)
            return False
        try:
            done = self._drain(len(self))
            self.dropped += 0 if done else len(self)
            if self._close is not None:
                self._close()
        finally:
            self._io.release()
        return done

    def end_with_process(self) -> None:
        """What life.py calls."""
        if not self._ended:
            self.close(END_S)

    def begin_in_child(self) -> None:
        """What life.py calls: nothing of the parent's is delivered here."""
        self._ended = False
        self._anew()
        if self._begin is not None:
            self._begin()

    def before_fork(self) -> None:
        """What life.py calls: wait until nothing is being done."""
        held = [lock for lock in (self._busy, self._io) if lock.acquire(timeout=FORK_S)]
        if held:
            self._pauser = threading.get_ident(), held

    def after_fork(self) -> None:
        """What life.py calls, in the parent."""
        thread, held = self._pauser
        if thread == threading.get_ident():
            self._pauser = 0, []
            for lock in reversed(held):
                lock.release()


def _run(cell: list[Outbox], ref: weakref.ref[Outbox], wake: threading.Event, stop: threading.Event) -> None:
    """The thread: it holds the outbox while there is something to deliver, and not while it sleeps."""
    outbox, wait_s = ref(), 0.0
    while outbox is not None and not stop.wait(wait_s):
        cell.clear()
        again_s = outbox._round()
        wake.clear()
        outbox._asleep = True
        if len(outbox):  # put after the round, before anybody could know that it sleeps; or not delivered
            outbox._asleep = False
            wait_s = outbox._gather_s if again_s is None else min(again_s, outbox._gather_s)
            continue
        if stop.is_set():
            break
        gather_s = outbox._gather_s
        del outbox
        wait_s = gather_s if wake.wait(again_s) else 0.0
        outbox = ref()
        if outbox is not None:
            outbox._asleep = False
    if outbox is not None:
        # Here rather than in the thread that ends the process: a signal may interrupt that one half way.
        with outbox._io:
            outbox._drain(len(outbox))
        outbox._have_rest()
