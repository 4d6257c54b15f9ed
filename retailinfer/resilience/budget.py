"""Budgets for calls beyond the first: how many retries and hedges a stream of calls may cause.

Rules:
  * `Budget`: each call puts in a share of a token, each further attempt takes one out. What was put in or taken out counts for
    ten seconds; beside it stands a reserve that is worth so many a second, for those who call rarely. In any ten seconds there
    are thus at most share x calls + reserve. (Finagle's RetryBudget.)
  * `Throttle`: ten tokens; a failure takes one, a success puts a tenth back, and above half there may be hedges.
    (gRPC's proposal A6.)
  * Pure, and not thread-safe: times are given, the owner holds a lock.
"""

from __future__ import annotations

from retailinfer.errors import ConfigError

__all__ = ["Budget", "Throttle"]

_BUCKETS = 10
_UNIT = 1_000  # tokens are whole thousandths, so that no sum drifts


class Budget:
    """Tokens of the last `ttl_ns`. All times are nanoseconds of one monotonic clock."""

    __slots__ = ("_at_bucket", "_balance", "_bucket_ns", "_buckets", "_reserve", "_share")

    def __init__(self, *, share: float, per_second: float, now_ns: int, ttl_ns: int = 10_000_000_000) -> None:
        """Begin with the reserve alone.

        Args:
            share: further attempts per call, as 0.1. per_second: the reserve, as 1.0; 0 for none.
            now_ns: the time. ttl_ns: for how long a call counts.

        Raises: ConfigError.
        """
        if not 0.0 <= share <= 1.0 or not 0.0 <= per_second <= 1e6 or ttl_ns < _BUCKETS:
            raise ConfigError(
                f"Expected a share from 0 to 1 and a reserve from 0 to 1e6, got {share} and {per_second}"
            )
        self._share = round(share * _UNIT)
        self._reserve = round(per_second * ttl_ns / 1e9 * _UNIT)
        self._bucket_ns = ttl_ns // _BUCKETS
        self._buckets = [0] * _BUCKETS
        self._balance = 0  # their sum
        self._at_bucket = now_ns // self._bucket_ns

    def deposit(self, now_ns: int) -> None:
        """A call was made."""
        self._add(self._share, now_ns)

    def withdraw(self, now_ns: int) -> bool:
        """Whether one more attempt may be made; it is then paid for."""
        self._add(0, now_ns)
        if self._balance + self._reserve < _UNIT:
            return False
        self._add(-_UNIT, now_ns)
        return True

    def _add(self, amount: int, now_ns: int) -> None:
        bucket = now_ns // self._bucket_ns
        if bucket > self._at_bucket:
            for passed in range(max(self._at_bucket + 1, bucket - _BUCKETS + 1), bucket + 1):
                self._balance -= self._buckets[passed % _BUCKETS]
                self._buckets[passed % _BUCKETS] = 0
            self._at_bucket = bucket
        self._buckets[self._at_bucket % _BUCKETS] += amount
        self._balance += amount


class Throttle:
    """Whether things go well enough for attempts that are not needed."""

    __slots__ = ("_tenths",)

    def __init__(self) -> None:
        self._tenths = 100

    @property
    def is_open(self) -> bool:
        """More than half of the tokens are there."""
        return self._tenths > 50

    def succeeded(self) -> None:
        self._tenths = min(100, self._tenths + 1)

    def failed(self) -> None:
        self._tenths = max(0, self._tenths - 10)
