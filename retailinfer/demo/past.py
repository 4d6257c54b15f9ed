"""What happened around the held-out payments: the clock stands where history does, labels come when they became known.

Rules:
  * What came before the held-out days is backfilled; after that the windows grow by what is served and observed, alone.
  * A label that became known at the very moment of a payment comes after it, as in `ri.replay`.
Who calls it: `run.py`, between one held-out payment and the next, off the clock that times them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailinfer.clock import SystemClock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    import retailinfer as ri
    from retailinfer.demo.fraud import FraudData

__all__ = ["HistoryClock", "Past"]


class HistoryClock(SystemClock):
    """The machine's clock for durations, and any moment of history as the time of day."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def wall_ns(self) -> int:
        return self.now_ns


class Past:
    """The held-out days once more: `backfill` first, then `until(scorer, i)` before the payment of row i."""

    def __init__(self, data: FraudData) -> None:
        self._at_ns = _ns(data.held_out["at"])
        first_ns = int(self._at_ns[0])
        self.clock = HistoryClock(first_ns)
        self._before = data.before
        known_ns = _ns(data.labels["known_at"])
        live, end = np.searchsorted(known_ns, [first_ns, int(self._at_ns[-1])])
        self._old_labels = data.labels.slice(0, live)
        self._labels = data.labels.slice(live, end - live).to_pylist()
        self._known_ns = known_ns[live:end].tolist()
        self._next = 0

    def backfill(self, store: ri.Store, spec: ri.FeatureSpec) -> int:
        """Count everything from before the held-out days; how many events."""
        return store.backfill(spec, "payment", self._before) + store.backfill(spec, "label", self._old_labels)

    def until(self, scorer: ri.Scorer, row: int) -> None:
        """Let the time pass up to a held-out payment: labels that became known before it, then its own moment."""
        now_ns = int(self._at_ns[row])
        while self._next < len(self._labels) and self._known_ns[self._next] < now_ns:
            self.clock.now_ns = self._known_ns[self._next]
            scorer.observe("label", self._labels[self._next])
            self._next += 1
        self.clock.now_ns = now_ns


def _ns(moments: pa.ChunkedArray) -> NDArray[np.int64]:
    found: NDArray[np.int64] = pc.cast(moments, pa.timestamp("ns", "UTC")).cast(pa.int64()).to_numpy()
    return found
