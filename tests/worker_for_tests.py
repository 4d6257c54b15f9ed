"""What a worker of a multiprocessing pool runs in the tests: it must be importable in a fresh process."""

from __future__ import annotations

import releases


def score(_: int) -> float:
    """One answer."""
    return float(releases.payment_scorer().score(releases.payment()).score)
