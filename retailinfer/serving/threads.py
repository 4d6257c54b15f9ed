"""Threads for calls of coroutines that would hold their event loop, and the line before them.

Rules:
  * Made at the first call that needs one, in the process that makes it: threads do not survive a fork, and nobody of the
    parent's stands in the line of a child.
  * A thread a processor; threads that wait for a source or a round trip use none, so there may be more.
  * How long the line may be is for who sends calls here to say: door.py, which sheds what is too much.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from retailinfer.cpus import usable_cpus

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from retailinfer.serving.live import Live

__all__ = ["Threads"]

MOST_THREADS = 8  # beside the event loop: more of them wait for the GIL longer than they run without it
WAITING = 16  # calls of coroutines that may wait for sources at the same time


class Threads:
    """Of one door.

    Attributes:
        n: how many there are; 0 before the first call.
        line: calls that have not ended, those in threads too. Loops of several threads share it.
    """

    def __init__(self) -> None:
        self.n = 0
        self.line: set[object] = set()
        self._executor: ThreadPoolExecutor | None = None
        self._pid = 0

    def are_full(self, most: int) -> bool:
        """Whether `most` calls, or more, stand in line for threads of this process."""
        return len(self.line) >= self.n + most and self._pid == os.getpid()

    async def run_in_line(self, live: Live, call: Any, *args: Any) -> Any:
        """`run`, for a call that counts in the line until it ends."""
        line, one = self.line, object()
        line.add(one)
        try:
            return await self.run(live, call, *args)
        finally:
            line.discard(one)

    async def run(self, live: Live, call: Any, *args: Any) -> Any:
        """Call it in a thread; the event loop goes on."""
        import asyncio  # noqa: PLC0415 - services without coroutines load scorers too

        if self._executor is None or self._pid != os.getpid():
            self._begin(max(WAITING if live.waits else 1, min(usable_cpus(), MOST_THREADS)))
        elif self.n < WAITING and live.waits:  # another release did not
            self._begin(WAITING)
        return await asyncio.get_running_loop().run_in_executor(self._executor, call, *args)

    def _begin(self, n: int) -> None:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - as above

        if self._pid not in (0, os.getpid()):
            self.line = set()
        # One that was there before is dropped, and not ended: what other threads are just handing to it is done still.
        self._executor = ThreadPoolExecutor(max_workers=n, thread_name_prefix="retailinfer")
        self._pid, self.n = os.getpid(), n

    def close(self) -> None:
        """End them; calls under way finish."""
        if self._executor is not None and self._pid == os.getpid():
            self._executor.shutdown(wait=True)
            self._executor = None
