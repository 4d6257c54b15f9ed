"""Figures of the remote rung: what its circuit breaker adds to a call."""

from __future__ import annotations

import random

import numpy as np

from benchmarks.harness import Case, Figure, alternate, check_answers
from benchmarks.lab import Figures, Lab, measures

__all__: list[str] = []

_END_NS = 1 << 62


@measures("breaker_ns")
def breaker(lab: Lab) -> Figures:
    """Asking a breaker whether a call may be made: while it lets all through, and while it lets none."""
    from retailinfer.resilience.breaker import Breaker, Outcome

    closed, opened = (Breaker(chance=random.Random(seed), now_ns=0) for seed in (1, 2))
    for _ in range(5):
        opened.record(opened.admit(0, 1) or 0, Outcome.UNREACHED, 0)
    moments = range(1_000_000_000, 1_000_001_000)

    def passes(now_ns: int) -> int | None:
        return closed.admit(now_ns, _END_NS)

    def refuses(now_ns: int) -> int | None:
        return opened.admit(now_ns, _END_NS)

    def counts(now_ns: int) -> None:
        closed.record(closed.admit(now_ns, _END_NS) or 0, Outcome.SUCCESS, now_ns, 1_000)

    check_answers("breaker lets through", map(passes, moments), [0] * len(moments))
    check_answers("breaker refuses", map(refuses, moments), [None] * len(moments))
    times = alternate(
        [Case.over(call.__name__, call, list(moments), block=200) for call in (passes, refuses, counts)],
        lab.scaled(0.3),
    )
    rounds = np.maximum(times["passes"].rounds_us(), times["refuses"].rounds_us()) * 1e3
    note = f"with the outcome counted {times['counts'].us() * 1e3:.0f} ns"
    return {"breaker_ns": Figure.of(rounds, lower_is_better=True, note=note)}
