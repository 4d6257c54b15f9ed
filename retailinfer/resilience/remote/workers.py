"""Threads for attempts that run beside each other: made when they are first needed, bounded, gone with the process.

Only hedged calls use them; a call that is asked once runs in the thread of its caller.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

__all__ = ["Workers"]

_IDLE_S = 30.0


class Workers:
    """Runs tasks on daemon threads, at most `most` at once; more of them wait. A forked child makes a new one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._free = threading.Semaphore(0)  # threads that wait for a task
        self._lock = threading.Lock()
        self.n_threads = 0

    def run(self, task: Callable[[], None]) -> None:
        """Run a task that raises nothing. Raises: RuntimeError if there is no thread for it and none can be started."""
        self._tasks.put(task)
        if self._free.acquire(blocking=False):
            return
        with self._lock:
            if self.n_threads >= self._most:
                return
            try:
                threading.Thread(target=self._work, name="retailinfer-remote", daemon=True).start()
            except RuntimeError:
                if self.n_threads:
                    return  # one of those will come to it
                self._tasks.get_nowait()
                raise
            self.n_threads += 1

    def _work(self) -> None:
        while True:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                self._free.release()
                try:
                    task = self._tasks.get(timeout=_IDLE_S)
                except queue.Empty:
                    if not self._free.acquire(blocking=False):
                        task = self._tasks.get()  # somebody counts on this thread: a task is about to come
                    elif self._goes():
                        return
                    else:
                        continue
            task()
            del task  # it would hold its caller's arrays while this thread waits

    def _goes(self) -> bool:
        """Whether this thread may end: nothing was put while it still counted as one of them."""
        with self._lock:
            if self._tasks.empty():
                self.n_threads -= 1
                return True
        return False
