"""A model server behind the ladder: the Open Inference Protocol over HTTP and gRPC, and whatever has one method `infer`.

`client.py` is what users hold; `http.py` and `grpc.py` speak to one endpoint each; messages and tensors are pure.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

__all__ = ["Backend", "Cancel"]


@runtime_checkable
class Backend(Protocol):
    """One place that runs the model. May be called from many threads at once."""

    def infer(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], *, timeout_s: float
    ) -> dict[str, NDArray[Any]]:
        """Run the model on rows.

        Args:
            inputs: by name, the first dimension being rows. outputs: names of what is wanted.
            timeout_s: how long it may take in all, including connecting; more than 0.
        Returns: the outputs by name. They are checked by the caller: names, types, rows, finiteness.
        Raises: RemoteError with a kind of docs/remote.md; anything else counts as kind "failed".
        """
        ...


class Cancel:
    """Ends an attempt from another thread: whoever waits gives a way to be woken, and takes it back when done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake: Callable[[], object] | None = None
        self.is_set = False

    def set(self) -> None:
        """End the attempt; nothing happens if it has ended."""
        with self._lock:
            self.is_set = True
            if self._wake is not None:
                self._wake()

    def wake_by(self, wake: Callable[[], object] | None) -> None:
        """From now on `set` calls `wake`; at once if it has been called already. None: nobody waits any more."""
        with self._lock:
            self._wake = wake
            if wake is not None and self.is_set:
                wake()
