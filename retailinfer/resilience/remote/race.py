"""One call and its attempts, which may run beside each other on threads: who wins, who is ended, when the call is over."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retailinfer.clock import Clock
from retailinfer.errors import RemoteError
from retailinfer.resilience.hedge import is_fatal
from retailinfer.resilience.remote import Cancel

__all__ = ["Arrays", "Call", "Race"]

Arrays: TypeAlias = dict[str, NDArray[Any]]


class Call:
    """What is asked, and until when. Holds one of the remote's places until the call and its attempts are over.

    Args:
        leave: called once, when they are.
    """

    __slots__ = ("_holders", "_leave", "_lock", "_pid", "clock", "end_ns", "inputs", "n_rows", "outputs")

    def __init__(
        self,
        leave: Callable[[], None],
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        end_ns: int,
        clock: Clock,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.end_ns = end_ns
        self.clock = clock
        rows = {
            array.shape[0] if array.ndim else None
            for array in inputs.values()
            if isinstance(array, np.ndarray)
        }
        self.n_rows = rows.pop() if len(rows) == 1 else None
        self._leave = leave
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._holders = 1

    def hold(self) -> None:
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last and self._pid == os.getpid():
            self._leave()


class Race:
    """Attempts of one call beside each other. The first success wins, and ends the others."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self._changed = threading.Condition()
        self._running: list[Cancel] = []
        self._reply: Arrays | None = None
        self._errors: list[RemoteError] = []
        self._over = False  # nothing that comes now is looked at

    def enter(self) -> Cancel:
        """A further attempt begins."""
        cancel = Cancel()
        self.call.hold()
        with self._changed:
            self._running.append(cancel)
        return cancel

    def leave(self, cancel: Cancel, reply: Arrays | None, error: RemoteError | None) -> None:
        """An attempt is over."""
        with self._changed:
            self._running.remove(cancel)
            losers: list[Cancel] = []
            if not self._over:
                if error is not None:
                    self._errors.append(error)
                    self._over = is_fatal(error.kind, error.retry_after_s)
                else:
                    self._reply, self._over = reply, True
                losers = [*self._running] if self._over else []
            self._changed.notify_all()
        for one in losers:
            one.set()
        self.call.release()

    def wait(self, for_ns: int) -> None:
        """Until something has happened, or for so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._errors, max(0.0, for_ns / 1e9))

    def wants_another(self) -> bool:
        """Whether there is no answer, and no error that another attempt would give too."""
        with self._changed:
            return not self._over

    @property
    def failed(self) -> bool:
        """Whether an attempt has ended without an answer."""
        return bool(self._errors)

    def decide(self) -> None:
        """Wait until there is an answer, nothing runs any more, or the time is over.

        What still runs then is not cancelled: its own time is over too, and that it took so long is to be held against it.
        """
        left_s = max(0.0, (self.call.end_ns - self.call.clock.monotonic_ns()) / 1e9)
        with self._changed:
            self._changed.wait_for(lambda: self._over or not self._running, left_s)
            self._over = True

    def result(self) -> Arrays:
        """The answer. Raises: RemoteError of the first attempt that failed."""
        if self._reply is not None:
            return self._reply
        if self._errors:
            raise self._errors[0]
        raise RemoteError("no attempt was answered in the time given", kind="timeout")
