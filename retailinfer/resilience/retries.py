"""Whether a failed attempt is made again, and after which wait. Pure: budget, time and chance are given.

Rules:
  * At most as many further attempts as were asked for (one), and only after kinds of failure that allow it (outcome.py).
  * The wait is drawn from 0 to min(cap, base x 2^(n-1)) (full jitter), or is what the other side asked for.
  * Wait and a normal call must fit in what is left of the deadline; else the time is better spent on the next rung.
  * The budget is asked last, so that nothing is paid for an attempt that is not made.
"""

from __future__ import annotations

import random

from retailinfer.errors import RemoteError
from retailinfer.resilience.budget import Budget
from retailinfer.resilience.outcome import KINDS

__all__ = ["retry_wait_ns"]

_BASE_NS = 2_000_000
_CAP_NS = 20_000_000


def retry_wait_ns(
    error: RemoteError, *, n_retries: int, most: int, left_ns: int, normal_ns: int, now_ns: int, budget: Budget,
    chance: random.Random,
) -> int | None:  # fmt: skip
    """How long to wait before the next attempt; None: there is none.

    Args:
        error: what the attempt ended in. n_retries: how many there have been. most: how many there may be.
        left_ns: until the deadline. normal_ns: what a call normally takes.
    """
    if n_retries >= most or not KINDS[error.kind].again:
        return None
    if error.retry_after_s is not None:
        wait_ns = int(error.retry_after_s * 1e9)
    elif error.kind == "overloaded":  # asking again at once is what it cannot bear
        return None
    else:
        wait_ns = int(chance.uniform(0, min(_CAP_NS, _BASE_NS << n_retries)))
    if wait_ns + normal_ns >= left_ns or not budget.withdraw(now_ns):
        return None
    return wait_ns
