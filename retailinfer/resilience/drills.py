"""Drills: every rung of a ladder answers a copy of some calls in the shadow, so that none is cold when it is needed.

Rules:
  * Drilled are the first call, every n-th, and where calls are few one about every quarter of an hour: 100 a day.
  * The call itself only leaves its request here; a thread of this process's own does the rest. Where the queue is full the
    drill is dropped and counted: drills never cost a caller anything else.
  * A drill counts nothing in windows, and its answer goes to nobody.
  * A door has one of these for all releases that it will have: `turn_to` gives it the ladder of the one that answers now. What
    was offered by another one's calls is dropped: its requests need not be this one's.
  * No fork happens in the middle of a drill, for a second: a child would inherit the locks of whatever library it is in.
  * The thread starts with the first drill, a forked child starts its own; it ends with the process, and keeps nobody alive.
What a drill is judged by is `Ladder.drill`.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from retailinfer.life import begin_again_in_children, end_with_process, pause_for_forks
from retailinfer.resilience.ladder import Call, Ladder

__all__ = ["AGAIN_S", "EVERY", "QUEUE", "Drills"]

EVERY = 1000  # answers; one of them is drilled
AGAIN_S = 864.0  # a hundredth of a day; after so long without a drill the next call is drilled
QUEUE = 16
TIME_NS = 10**9  # of a rung that says nothing of its own
JOIN_S = 0.5
PAUSE_S = 1.0


class Drills:
    """The thread that drills a ladder.

    Args:
        ladder: whose rungs are drilled; None: nobody's, until `turn_to`.
        call_of: (request, answer) of a call that was answered -> the copy that the rungs get, without its times.
        may: asked before each drill; False while there is no room for work that nobody waits for.
        sample: called with n: from now on every n-th call is offered; 0 = none.
        again_s: how long there may be no drill where there are calls.
    `dropped`: calls that were offered and not drilled.
    """

    def __init__(
        self,
        ladder: Ladder | None,
        call_of: Callable[[Any, Any], Call],
        may: Callable[[], bool] = lambda: True,
        sample: Callable[[int], None] = lambda every: None,
        again_s: float = AGAIN_S,
    ) -> None:
        self._ladder = ladder
        self._call_of = call_of
        self._may = may
        self._sample = sample
        self._again_s = again_s
        self.dropped = 0
        self._begin()
        begin_again_in_children(self)
        end_with_process(self)
        pause_for_forks(self)

    def _begin(self) -> None:
        self._queue: deque[tuple[Ladder | None, Any, Any]] = deque()
        self._wake = threading.Semaphore(0)
        self._guard = threading.Lock()
        self._busy = threading.RLock()  # held while a rung is asked
        self._thread: threading.Thread | None = None
        self._ended = False
        self.ask()

    def turn_to(self, ladder: Ladder | None, sample: Callable[[int], None] = lambda every: None) -> None:
        """Drill this ladder from now on, and ask its own calls for samples; None: there is nothing to drill."""
        self._sample(0)
        self._ladder, self._sample = ladder, sample
        if ladder is not None:
            self.ask()

    def ask(self) -> None:
        """The next call is to be offered."""
        self._asked = True
        self._sample(1)

    def begin_in_child(self) -> None:
        """A forked child has neither the thread nor what waits for it."""
        self.dropped = 0
        self._begin()

    def before_fork(self) -> None:
        """Wait for the drill under way, and let none begin."""
        self._busy.acquire(timeout=PAUSE_S)

    def after_fork(self) -> None:
        """Go on."""
        with contextlib.suppress(RuntimeError):  # the drill took longer, and the fork did not wait for it
            self._busy.release()

    def __del__(self) -> None:
        self._wake.release()  # the thread looks up, and finds nobody

    def end_with_process(self) -> None:
        """Finish the drill under way; those that wait are dropped. Waits half a second at most."""
        self._ended = True
        self._sample(0)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._wake.release()
            thread.join(JOIN_S)

    def offer(self, request: Any, answer: Any, ladder: Ladder | None = None) -> None:
        """Drill a call that was just answered. Returns at once, and never raises for want of room."""
        ladder = self._ladder if ladder is None else ladder
        if ladder is not self._ladder:
            self.dropped += 1
            return
        if self._asked:
            self._asked = False
            self._sample(EVERY)
        if self._ended or len(self._queue) >= QUEUE:
            self.dropped += 1
            return
        self._queue.append((ladder, request, answer))
        if self._thread is None:
            self._start()
        self._wake.release()

    def _start(self) -> None:
        if not self._guard.acquire(blocking=False):
            return  # another thread is at it
        try:
            if self._thread is None:
                thread = threading.Thread(
                    target=_run,
                    args=(weakref.ref(self), self._wake, self._again_s),
                    name="retailinfer-drills",
                    daemon=True,
                )
                thread.start()
                self._thread = thread
        except RuntimeError:  # no thread can be started any more: the process is ending
            self._ended = True
        finally:
            self._guard.release()

    def run_waiting(self) -> None:
        """Drill what waits, here and now; the thread does nothing else."""
        while not self._ended:
            try:
                ladder, request, answer = self._queue.popleft()
            except IndexError:
                return
            if ladder is not None and ladder is self._ladder and self._may():
                self.drill(request, answer)
            else:
                self.dropped += 1

    def drill(self, request: Any, answer: Any) -> None:
        """All rungs, one after the other, with a copy of one call."""
        ladder = self._ladder
        if ladder is None:
            return
        for step in ladder.steps:
            if self._ended or ladder is not self._ladder:
                return
            call = self._call_of(request, answer)
            call.shadow = True
            call.observe = False
            call.priority = "shadow"
            call.began_ns = ladder.clock.monotonic_ns()
            call.end_ns = call.began_ns + (step.max_ns or TIME_NS)
            with self._busy:
                ladder.drill(step, call)
        ladder.look()


def _run(owner: weakref.ref[Drills], wake: threading.Semaphore, again_s: float) -> None:
    while True:
        was_offered = wake.acquire(timeout=again_s)
        drills = owner()
        if drills is None or drills._ended:
            return
        if was_offered:
            drills.run_waiting()
        elif (ladder := drills._ladder) is not None:
            drills.ask()
            ladder.look()  # nobody else may, where there are no calls
            del ladder
        del drills  # not kept while there is nothing to do
