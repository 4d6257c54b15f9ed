"""What a door allows a call where nobody says otherwise: the defaults of `Scorer.load` and `Ranker.load`.

Beside them, because doors are imported without anything that loads: who enforces them is pipeline.py and the native core.
"""

from __future__ import annotations

__all__ = ["HOLD_GIL_BELOW_US", "MAX_BYTES", "MAX_DEPTH", "MAX_WAITING"]

MAX_BYTES = 1 << 20  # of an encoded request
MAX_DEPTH = 32
MAX_WAITING = 64  # calls that wait for sources and shared windows at the same time
HOLD_GIL_BELOW_US = 100.0
