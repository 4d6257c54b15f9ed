"""How long the last calls took: quantiles of a short memory.

Rules:
  * The last 128 durations (or as many as are wanted); quantiles are taken anew after every sixteenth: asking costs nothing.
  * Before that there are none: who asks decides what to do without.
  * Pure, and not thread-safe: the owner holds a lock.
"""

from __future__ import annotations

__all__ = ["Latency"]


class Latency:
    """Durations in nanoseconds. p50_ns, p95_ns, p99_ns: None until enough has been seen."""

    __slots__ = ("_at", "_every", "_ring", "_size", "n", "p50_ns", "p95_ns", "p99_ns")

    def __init__(self, *, size: int = 128, every: int = 16) -> None:
        self._size = size
        self._every = every
        self.forget()

    def forget(self) -> None:
        """Begin anew: what was seen says nothing about now."""
        self._ring: list[int] = []
        self._at = 0
        self.n = 0
        self.p50_ns: int | None = None
        self.p95_ns: int | None = None
        self.p99_ns: int | None = None

    def note(self, took_ns: int) -> None:
        """One more call that was answered."""
        if len(self._ring) < self._size:
            self._ring.append(took_ns)
        else:
            self._ring[self._at] = took_ns
            self._at = (self._at + 1) % self._size
        self.n += 1
        if self.n % self._every == 0:
            ordered = sorted(self._ring)
            last = len(ordered) - 1
            self.p50_ns = ordered[round(last * 0.50)]
            self.p95_ns = ordered[round(last * 0.95)]
            self.p99_ns = ordered[round(last * 0.99)]
