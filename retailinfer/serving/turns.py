"""Who may change what answers, and when: swaps one at a time, in the order in which they were asked for; rollbacks at once.
And what becomes of a release that answers no more.

Rules:
  * A swap holds its turn while it loads, so that no two releases are loaded at the same time, and the last one asked for is
    the last one put in place.
  * A rollback, and the end, wait for nobody. They overrule every swap that was asked for before and has not moved the pointer:
    what came last counts. Whoever is overruled learns it by an error.
  * A forked child begins with nobody in the line: swaps of the parent's threads are the parent's.
  * Hooks hear of what moved after the lock is free, in the order in which it moved: a slow one holds up no rollback, and one
    that rolls back or swaps waits for nobody.
  * A release that answers no more is closed and freed when the last call that found it is over, never by a thread that
    answers calls.
Used by door.py.
"""

from __future__ import annotations

import _thread
import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from retailinfer._native import ort
from retailinfer.errors import SwapError
from retailinfer.life import begin_again_in_children

if TYPE_CHECKING:
    from retailinfer.pipeline import Pipeline

__all__ = ["Drain", "Turns"]

SOON_S = 0.01  # between two looks at releases that somebody still uses
LATER_S = 1.0


class Turns:
    """The line of those who would change what a door answers with."""

    def __init__(self) -> None:
        self.begin_in_child()
        begin_again_in_children(self)

    def begin_in_child(self) -> None:
        """Nobody waits, and nobody has a turn."""
        self._line: deque[int] = deque()  # threads
        self._moved = threading.Condition()  # re-entrant: a signal's handler may roll back
        self._overruled = 0
        self._untold: deque[tuple[str, ...]] = deque()
        self._telling = threading.Lock()

    @contextlib.contextmanager
    def turn(self) -> Iterator[int]:
        """Wait for a turn and hold it; gives what `moving` asks for.

        Raises: SwapError for who is overruled in the line, and for a thread that has a turn: it would wait for itself.
        """
        one = threading.get_ident()
        with self._moved:
            if one in self._line:
                raise SwapError("this thread is in the middle of a swap already", hint="swap when it is over")
            asked = self._overruled
            self._line.append(one)
        try:
            with self._moved:
                while self._line[0] != one:
                    self._moved.wait()
                    self._check(asked)
            yield asked
        finally:
            with self._moved, contextlib.suppress(ValueError):  # a fork emptied the line meanwhile
                self._line.remove(one)
                self._moved.notify_all()

    @contextlib.contextmanager
    def moving(self, asked: int | None = None) -> Iterator[None]:
        """Move the pointer in here: nobody else does meanwhile.

        Args:
            asked: of a turn. Raises: SwapError where something that came later has overruled it.
        """
        with self._moved:
            if asked is not None:
                self._check(asked)
            yield

    @contextlib.contextmanager
    def overrule(self) -> Iterator[bool]:
        """Go before everybody; gives whether somebody was in the line."""
        with self._moved:
            self._overruled += 1
            self._moved.notify_all()
            yield bool(self._line)

    def leave(self, *change: str) -> None:
        """What `tell` is to say. Called while the pointer moves."""
        self._untold.append(change)

    def tell(self, say: Callable[..., None]) -> None:
        """Say what was left, in that order. Where another thread is at it, or this one further out, that says ours too."""
        untold, telling = self._untold, self._telling  # a hook may fork
        while untold and telling.acquire(blocking=False):
            try:
                while untold:
                    say(*untold.popleft())
            finally:
                telling.release()

    def _check(self, asked: int) -> None:
        if self._overruled != asked:
            raise SwapError("a rollback or the end of the door came later than this swap was asked for")


def _references_of_a_local() -> int:
    """What `sys.getrefcount` says of what one variable holds and nobody else; interpreters differ."""
    one = object()
    return sys.getrefcount(one)


_ALONE = _references_of_a_local()


class Drain:
    """Releases that answer no more, until the last call that found them is over; then they are freed, by a thread that
    answers nobody: the one that swaps, or one of this for as long as there is something to free.
    """

    def __init__(self) -> None:
        self._held: deque[Pipeline] = deque()
        self.begin_in_child()
        begin_again_in_children(self)

    def begin_in_child(self) -> None:
        """The thread is the parent's. What it waits for may be held by calls of threads that are not here."""
        self._runs = False
        self._guard = threading.RLock()

    def __len__(self) -> int:
        return len(self._held)

    def put(self, *pipelines: Pipeline | None) -> None:
        """These are asked no more by anybody who comes."""
        self._held.extend(one for one in pipelines if one is not None)

    def sweep(self) -> int:
        """Free what nobody uses any more, in this thread; how many are still in use."""
        freed = False
        for _ in range(len(self._held)):
            try:
                one = self._held.popleft()
            except IndexError:  # another thread was faster
                break
            # Calls hold the `Live` that they found, which holds this: so nobody but us and the question means nobody.
            if sys.getrefcount(one) > _ALONE:
                self._held.append(one)
            else:
                one.close()
                freed = True
            del one
        if freed:
            ort.drain()
        return len(self._held)

    def start(self) -> None:
        """Sweep in a thread until nothing is left. Does not wait for the thread to begin, as `threading.Thread` would."""
        with self._guard:
            if self._held and not self._runs:
                with contextlib.suppress(RuntimeError):  # no more threads: the next swap sweeps
                    _thread.start_new_thread(self._run, ())
                    self._runs = True

    def _run(self) -> None:
        wait, pause = threading.Event(), SOON_S
        while True:
            while self.sweep():
                wait.wait(pause)
                pause = min(LATER_S, pause * 1.5)
            with self._guard:
                if not self._held:
                    self._runs = False
                    return
