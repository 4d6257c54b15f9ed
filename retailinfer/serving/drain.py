"""What becomes of a release that answers no more: it is closed and freed when the last call that found it is over.

Rules:
  * Never by a thread that answers calls: closing a model takes milliseconds.
  * That nobody uses it any more is seen by its references: calls hold the `Live` that they found, and that holds its pipeline.
  * A forked child frees what nobody there uses; calls of threads that it does not have may hold the rest for ever.
Used by door.py.
"""

from __future__ import annotations

import _thread
import contextlib
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING

from retailinfer._native import ort
from retailinfer.life import begin_again_in_children

if TYPE_CHECKING:
    from retailinfer.pipeline import Pipeline

__all__ = ["Drain"]

SOON_S = 0.01  # between two looks at releases that somebody still uses
LATER_S = 1.0


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
