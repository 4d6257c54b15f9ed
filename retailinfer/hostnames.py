"""Addresses of host names, within a time limit: a resolver knows none, and may take minutes.

Rules:
  * A look-up runs on a thread of its own, one per name at a time; who cannot wait goes without, and finds it the next time.
  * What was found is believed for half a minute, and longer where nothing newer can be had: a quarter of the time left is
    spent on hearing of something newer, and the rest is for who wants to connect.
  * A forked child makes a new one: its parent's threads are not there.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

from retailinfer.clock import SystemClock

__all__ = ["Names"]

_BELIEVED_S = 30.0


def _now_s() -> float:
    return SystemClock.monotonic_ns() / 1e9


class Names:
    """What has been looked up, by host and port."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[float, list[Any]]] = {}
        self._running: dict[tuple[str, int], threading.Event] = {}
        self._lock = threading.Lock()

    def find(self, host: str, port: int, end_s: float) -> list[tuple[int, Any]]:
        """Families and socket addresses, the best first; never empty.

        Raises: TimeoutError if it took longer than until `end_s`, or no thread can be had; LookupError if there is no such
            name.
        """
        where = (host, port)
        for family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError, UnicodeError):  # an address needs no look-up
                socket.inet_pton(family, host)
                return [(family, where)]
        known = self._known.get(where)
        if known is not None and known[0] > _now_s():
            return known[1]
        with self._lock:
            done = self._running.get(where)
            if done is None:
                done = threading.Event()
                try:
                    threading.Thread(target=self._look_up, args=(where, done), daemon=True).start()
                except RuntimeError:  # no more threads: the next call tries again
                    if known is None:
                        raise TimeoutError("no thread can be had to look up a host") from None
                    return known[1]
                self._running[where] = done  # it takes itself out, which needs the lock
        left_s = max(0.0, end_s - _now_s())
        finished = done.wait(left_s if known is None else left_s / 4)
        known = self._known.get(where)  # or what was known before: better than nothing
        if known is not None:
            return known[1]
        if finished:
            raise LookupError("no such host")
        raise TimeoutError("looking up a host took too long")

    def _look_up(self, where: tuple[str, int], done: threading.Event) -> None:
        try:
            found = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)
            self._known[where] = (
                _now_s() + _BELIEVED_S,
                [(family, address) for family, _, _, _, address in found],
            )
        except (OSError, UnicodeError):
            pass
        finally:
            with self._lock:
                self._running.pop(where, None)
            done.set()
