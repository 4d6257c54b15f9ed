"""Whether a second attempt runs beside a slow first one, and when. Pure: what is known is given.

Rules:
  * The second begins when the first has taken longer than 95 of 100 calls do, and never before 5 ms.
  * None unless the breaker of who would be asked is CLOSED, things go well (Throttle), nobody sheds load, a normal call still
    fits, and the budget (5 % of calls) has a token. It is asked last.
  * The first success wins. An error that another one might not give lets the second begin at once; one that it would give too
    ends both.
"""

from __future__ import annotations

from retailinfer.resilience.breaker import State
from retailinfer.resilience.budget import Budget, Throttle
from retailinfer.resilience.latency import Latency

__all__ = ["hedge_delay_ns", "is_fatal", "may_hedge"]

_LEAST_NS = 5_000_000
_FATAL = frozenset(("rejected", "unsendable", "cancelled", "forked"))


def hedge_delay_ns(latency: Latency) -> int | None:
    """How long the first attempt runs alone; None while too little is known for a second."""
    return None if latency.p95_ns is None else max(latency.p95_ns, _LEAST_NS)


def may_hedge(
    *, breaker: State, throttle: Throttle, shedding: bool, failed: bool, left_ns: int, latency: Latency, budget: Budget,
    now_ns: int,
) -> bool:  # fmt: skip
    """Whether the second attempt may begin now; it is then paid for. failed: the first has ended without an answer."""
    if breaker is not State.CLOSED or shedding or not throttle.is_open:
        return False
    if latency.p50_ns is None:  # nothing is known; where the first has failed there is nothing to lose
        return failed and left_ns > 0 and budget.withdraw(now_ns)
    return left_ns >= latency.p50_ns and budget.withdraw(now_ns)


def is_fatal(kind: str, retry_after_s: float | None) -> bool:
    """Whether a second attempt would end the same way, or is not wanted by the other side."""
    return kind in _FATAL or retry_after_s is not None
