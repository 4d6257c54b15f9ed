"""How long a call may take: milliseconds of the caller -> nanoseconds that whoever waits takes its share of.

Rules:
  * What a call is given becomes a moment of the monotonic clock once, where the engine begins; nothing below starts a clock
    of its own, so that two waits after each other never take more than one.
  * Who finds nothing left does not wait at all; the answer is made of what is there.
Who waits: `_native/resolve.pyx` for tables over sources and shared windows. Time itself is clock.py.
"""

from __future__ import annotations

from retailinfer.errors import DeadlineExceededError, FeatureTypeError, clip

__all__ = ["FOREVER_NS", "budget_ns"]

FOREVER_NS = 1 << 62  # 146 years: no deadline, and still a sum that int64 holds
_MOST_MS = 1e12


def budget_ns(deadline_ms: float | None) -> int:
    """`deadline_ms=` of a call as nanoseconds; None = `FOREVER_NS`.

    Raises: FeatureTypeError for what is no number; DeadlineExceededError for a time that is over before it begins.
    """
    if deadline_ms is None:
        return FOREVER_NS
    is_number = isinstance(deadline_ms, (int, float)) and not isinstance(deadline_ms, bool)
    if not is_number or deadline_ms != deadline_ms:  # noqa: PLR0124 - NaN; math.isnan takes no huge integers
        raise FeatureTypeError(
            f"Expected milliseconds as a number, got `{type(deadline_ms).__name__}` {clip(deadline_ms)}",
            path="$.deadline_ms",
        )
    if deadline_ms <= 0:
        raise DeadlineExceededError(
            f"the call was given {clip(deadline_ms)} ms: its time is over before it begins"
        )
    return FOREVER_NS if deadline_ms >= _MOST_MS else max(1, int(deadline_ms * 1e6))
