"""How time is taken: alternating rounds, rotating inputs, answers checked, the tail kept.

Rules:
  * Contestants take turns inside every round, in a turning order: a machine whose clock moves moves it for all of them.
  * Inputs rotate and are prepared outside the clock, slice by slice: strings are fresh, caches as a server has them.
  * Durations go into an int64 array that exists before the clock starts. The collector is off; one core where possible.
  * Nothing is timed before `check_answers` has compared it with the other side: a fast wrong answer is not a result.
  * A ratio is taken within each round; the figure is the median of the rounds, and the worst round is told beside it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Case",
    "Effort",
    "Figure",
    "Timing",
    "WrongAnswerError",
    "alternate",
    "busy_thread",
    "check_answers",
    "per_call_us",
    "pinned",
    "ratio",
    "unpinned",
]

ROUNDS = 5
SLICES = 8  # turns of each contestant in a round
MIN_CALLS = 5  # in a slice, however slow the contestant is


class WrongAnswerError(Exception):
    """The library and its peer disagree. The run fails: what they took is of no interest."""


@dataclass(frozen=True)
class Case:
    """One contestant.

    call: takes one input. inputs: numbers of requests (any from 0 up; take them modulo your pool) -> inputs for exactly
    these calls, made anew each time where it matters. block: calls between two readings of the clock; 1 keeps the
    distribution, more is for calls of a microsecond. max_calls: in a slice, where prepared inputs are large.
    """

    name: str
    call: Callable[[Any], object]
    inputs: Callable[[Sequence[int]], Sequence[Any]]
    block: int = 1
    max_calls: int = 5_000

    @classmethod
    def over(cls, name: str, call: Callable[[Any], object], pool: Sequence[Any], *, block: int = 1) -> Case:
        """A case that rotates through a fixed pool."""
        return cls(name, call, lambda numbers: [pool[i % len(pool)] for i in numbers], block)


@dataclass(frozen=True)
class Effort:
    """How long to measure. `seconds`: of each contestant, over all its rounds."""

    rounds: int = ROUNDS
    seconds: float = 2.0
    short: bool = False


@dataclass(frozen=True)
class Timing:
    """Durations of one contestant: `ns` has shape (rounds, measurements); `block` calls are in each measurement."""

    name: str
    ns: NDArray[np.int64]
    block: int

    def us(self, quantile: float = 0.5) -> float:
        """Over all rounds, of one call, in microseconds."""
        return float(np.quantile(self.ns, quantile)) / self.block / 1e3

    def rounds_us(self, quantile: float = 0.5) -> NDArray[np.float64]:
        """The same for each round."""
        return np.asarray(np.quantile(self.ns, quantile, axis=1) / self.block / 1e3, np.float64)


@dataclass(frozen=True)
class Figure:
    """A measured figure: the median of its rounds, the worst of them, and all."""

    value: float
    worst: float
    rounds: tuple[float, ...]
    note: str = ""

    @classmethod
    def of(cls, rounds: Iterable[float], *, lower_is_better: bool, note: str = "") -> Figure:
        values = tuple(float(v) for v in rounds)
        worst = max(values) if lower_is_better else min(values)
        return cls(float(np.median(values)), worst, values, note)


def ratio(
    top: Timing, bottom: Timing, *, quantile: float = 0.5, lower_is_better: bool = True, note: str = ""
) -> Figure:
    """`top` over `bottom`, round by round."""
    rounds = top.rounds_us(quantile) / bottom.rounds_us(quantile)
    text = note or f"{top.us(quantile):.4g} us over {bottom.us(quantile):.4g} us"
    return Figure.of(rounds, lower_is_better=lower_is_better, note=text)


def alternate(
    cases: Sequence[Case],
    effort: Effort,
    *,
    slices: int = SLICES,
    clock: Callable[[], int] = perf_counter_ns,
    pin: bool = True,
) -> dict[str, Timing]:
    """Time all cases in turn; returns the durations by name."""
    with pinned() if pin else contextlib.nullcontext(), collector_off():
        blocks = [_blocks_per_slice(case, effort, slices, clock) for case in cases]
        durations = [np.empty((effort.rounds, slices * n), np.int64) for n in blocks]
        positions = [0] * len(cases)
        for turn in range(effort.rounds * slices):
            round_, slice_ = divmod(turn, slices)
            for step in range(len(cases)):
                i = (turn + step) % len(cases)  # who goes first turns too
                case, n = cases[i], blocks[i]
                calls = range(positions[i], positions[i] + n * case.block)
                positions[i] = calls.stop
                out = durations[i][round_, slice_ * n : (slice_ + 1) * n]
                _time(case.call, case.inputs(calls), case.block, out, clock)
    return {case.name: Timing(case.name, ns, case.block) for case, ns in zip(cases, durations, strict=True)}


def _time(
    call: Callable[[Any], object],
    inputs: Sequence[Any],
    block: int,
    out: NDArray[np.int64],
    clock: Callable[[], int],
) -> None:
    if block == 1:
        for i, value in enumerate(inputs):
            start = clock()
            call(value)
            out[i] = clock() - start
        return
    for i in range(len(out)):
        part = inputs[i * block : (i + 1) * block]
        start = clock()
        for value in part:
            call(value)
        out[i] = clock() - start


def _blocks_per_slice(case: Case, effort: Effort, slices: int, clock: Callable[[], int]) -> int:
    """Warm up, and choose how many measurements fill the time of a slice."""
    budget_ns = effort.seconds * 1e9 / (effort.rounds * slices)
    n, spent = MIN_CALLS, 0
    while True:
        inputs = case.inputs(range(n))
        start = clock()
        for value in inputs:
            case.call(value)
        spent = max(1, clock() - start)
        if spent >= budget_ns / 4 or n >= case.max_calls:
            break
        n = min(2 * n, case.max_calls)
    calls = max(MIN_CALLS, min(case.max_calls, int(budget_ns * n / spent)))
    return max(1, calls // case.block)


def per_call_us(case: Case, effort: Effort) -> Timing:
    """One contestant alone."""
    return alternate([case], effort)[case.name]


def check_answers(
    what: str, got: Iterable[Any], want: Iterable[Any], *, equal: Callable[[Any, Any], bool] | None = None
) -> int:
    """Compare answers one by one; returns how many. Raises WrongAnswerError at the first difference, or without any.

    `equal` defaults to equality, of bits for arrays.
    """
    same = equal or _same
    n = 0
    for n, (a, b) in enumerate(zip(got, want, strict=True), start=1):
        if not same(a, b):
            raise WrongAnswerError(f"{what}, input {n - 1}: got {_clip(a)}, expected {_clip(b)}")
    if n == 0:
        raise WrongAnswerError(f"{what}: nothing was compared")
    return n


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        a, b = np.asarray(a), np.asarray(b)
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    return bool(a == b)


def _clip(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 400 else text[:400] + "..."


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection inside; one full collection before."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """This thread on one core (the last of its set: the first serves most interrupts). No-op where not supported."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def unpinned() -> Iterator[None]:
    """This thread on all cores that the machine lets it have."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def busy_thread() -> Iterator[None]:
    """A thread of pure Python beside, which never waits for anything but the GIL."""
    stop = False

    def work() -> None:
        count = 0
        while not stop:
            count = (count * 3 + 1) & 0xFFFF

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop = True
        thread.join(5)
