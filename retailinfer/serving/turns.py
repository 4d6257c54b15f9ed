"""Who may change what answers, and when: swaps one at a time, in the order in which they were asked for; rollbacks at once.

Rules:
  * A swap holds its turn while it loads, so that no two releases are loaded at the same time, and the last one asked for is
    the last one put in place.
  * A rollback, and the end, wait for nobody. They overrule every swap that was asked for before and has not moved the pointer:
    what came last counts. Whoever is overruled learns it by an error.
  * A forked child begins with nobody in the line: swaps of the parent's threads are the parent's.
  * Hooks hear of what moved after the lock is free, in the order in which it moved: a slow one holds up no rollback, and one
    that rolls back or swaps waits for nobody.
Used by door.py; what becomes of a release that answers no more is drain.py.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

from retailinfer.errors import SwapError
from retailinfer.life import begin_again_in_children

__all__ = ["Turns"]


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
        try:
            with self._moved:
                asked = self._overruled
                self._line.append(one)
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
