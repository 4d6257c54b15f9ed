"""What callers say of time: how long a call may take (`deadline_ms=`), and the moment that it is about (`at=`).

Rules:
  * What a call is given becomes a moment of the monotonic clock once, where the engine begins; nothing below starts a clock
    of its own, so that two waits after each other never take more than one.
  * Who finds nothing left does not wait at all; the answer is made of what is there.
Who waits: `_native/resolve.pyx` for tables over sources and shared windows. Time itself is clock.py.
"""

from __future__ import annotations

import datetime as dt

from retailinfer.errors import DeadlineExceededError, FeatureRangeError, FeatureTypeError, clip

__all__ = ["FOREVER_NS", "budget_ns", "moment_ns"]

FOREVER_NS = 1 << 62  # 146 years: no deadline, and still a sum that int64 holds
_MOST_MS = 1e12
_MOST_SECONDS = 4.6e9  # since 1970: 1824 to 2115, as for the fields of a request


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


def moment_ns(at: dt.datetime | float | None) -> int:
    """`at=` as nanoseconds since the epoch; 0 = now. Raises: FeatureTypeError, FeatureRangeError."""
    if at is None:
        return 0
    if isinstance(at, dt.datetime):
        try:
            delta = at - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
        except TypeError as exc:
            raise FeatureTypeError(
                "Expected an aware datetime, got a naive one", path="$.at", hint="attach its zone"
            ) from exc
        micros = (delta.days * 86400 + delta.seconds) * 10**6 + delta.microseconds
    elif isinstance(at, bool) or not isinstance(at, (int, float)):
        raise FeatureTypeError(
            f"Expected a datetime or seconds since 1970, got `{type(at).__name__}`", path="$.at"
        )
    else:
        micros = round(at * 1e6) if abs(at) < _MOST_SECONDS else int(2 * _MOST_SECONDS * 1e6)
    if not abs(micros) < _MOST_SECONDS * 1e6:
        raise FeatureRangeError(
            f"Expected a moment between 1824 and 2115, got {clip(at)}",
            path="$.at",
            hint="seconds since 1970, not milliseconds",
        )
    return micros * 1000 or 1  # 0 means now; the epoch itself is taken a nanosecond later
