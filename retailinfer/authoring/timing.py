"""How `bench` takes time: contestants in turn, inputs in rotation, the collector off, the tail kept.

Rules:
  * Contestants take turns within each of five rounds, so a machine whose clock moves moves it for all of them alike. A
    ratio is taken within a round; the median of the rounds is told, and the worst beside it.
  * No input is used by a contestant twice before all others were. Durations go into an array that exists beforehand.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["QUANTILES", "ROUNDS", "Times", "calls_that_fit", "measure", "quantiles_us"]

ROUNDS = 5
SLICES = 4  # turns of each contestant in a round
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}

Contestant = Callable[[int], Any]  # takes the number of a call, answers with whatever it made


@dataclass(frozen=True)
class Times:
    """Durations in nanoseconds, shape (rounds, calls), or (rounds, calls, parts) of a contestant that tells its parts."""

    ns: NDArray[np.int64]

    def rounds_us(self, quantile: float = 0.5) -> NDArray[np.float64]:
        """A quantile of each round."""
        return np.asarray(np.quantile(self.ns, quantile, axis=1) / 1e3, np.float64)


def quantiles_us(ns: NDArray[np.int64]) -> dict[str, float]:
    """p50 to p99.9 over everything, in microseconds."""
    flat = ns.reshape(-1)
    return {name: round(float(np.quantile(flat, q)) / 1e3, 3) for name, q in QUANTILES.items()}


def calls_that_fit(contestants: Sequence[Contestant], seconds: float, *, low: int, high: int) -> int:
    """How many calls of each fit into `seconds` all together. Warms up on the way."""
    n, spent = 4, 0
    while spent < seconds * 1e9 / 20 and n < high:
        n *= 2
        start = perf_counter_ns()
        for one in contestants:
            for i in range(n):
                one(i)
        spent = perf_counter_ns() - start
    return max(low, min(high, int(seconds * 1e9 * n / max(spent, 1))))


def measure(
    contestants: Sequence[Contestant],
    n: int,
    *,
    parts: Sequence[int] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Times]:
    """Time `n` calls of each.

    Args:
        parts: per contestant, 0 = the whole call is timed here; k = it returns (answer, k durations in ns) itself.
    """
    parts = parts or [0] * len(contestants)
    per_slice = max(1, -(-n // (ROUNDS * SLICES)))
    found = [
        np.ones((ROUNDS, SLICES * per_slice) if k == 0 else (ROUNDS, SLICES * per_slice, k), np.int64)
        for k in parts
    ]
    with _one_core(), _no_collector():
        for turn in range(ROUNDS * SLICES):
            round_, slice_ = divmod(turn, SLICES)
            if slice_ == 0:
                say(f"round {round_ + 1} of {ROUNDS}")
            for step in range(len(contestants)):
                at = (turn + step) % len(contestants)  # who goes first turns too
                call, out = contestants[at], found[at][round_]
                first = turn * per_slice
                into = slice_ * per_slice
                if parts[at]:
                    for i in range(per_slice):
                        out[into + i] = call(first + i)[1]
                    continue
                for i in range(per_slice):
                    start = perf_counter_ns()
                    call(first + i)
                    out[into + i] = perf_counter_ns() - start
    return [Times(ns) for ns in found]


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """This thread on one core, the last of its set; no-op where that cannot be said."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
