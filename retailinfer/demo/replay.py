"""Replay of held-out requests: bytes in, bytes out, timed as a whole, stage by stage, and beside the bare model.

Rules:
  * Contestants take turns over slices of the same requests: the whole call, the same call with its stages timed, Python's
    `InferenceSession.run` on rows that are ready, and where there is another engine, its whole call. A machine whose clock
    moves so moves it for all of them.
  * Requests rotate: none is timed twice by the same contestant. The garbage collector is off while the clock runs.
  * Answers are kept and compared afterwards, every one.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["STAGES", "Beside", "Parity", "Replay", "compare", "replay"]

STAGES: Final = ("decode", "resolve", "fill", "run", "decide", "encode")

Staged = tuple[Any, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay took, in nanoseconds. One entry a request.

    whole, bare, beside: shape (n,); the last one is the whole call of the other engine. stages: shape (n, 6), in the order of
    `STAGES`. rows: rows that the model ran per request.
    """

    whole: NDArray[np.int64]
    stages: NDArray[np.int64]
    bare: NDArray[np.int64]
    rows: int
    beside: NDArray[np.int64] | None = None

    def whole_us(self, quantile: float) -> float:
        """A quantile of the whole call, in microseconds."""
        return float(np.quantile(self.whole, quantile)) / 1e3

    def bare_us(self, quantile: float) -> float:
        """A quantile of the bare run, in microseconds."""
        return float(np.quantile(self.bare, quantile)) / 1e3

    def beside_us(self, quantile: float) -> float:
        """A quantile of the other engine's whole call, in microseconds; 0 where there was none."""
        return 0.0 if self.beside is None else float(np.quantile(self.beside, quantile)) / 1e3

    def stage_us(self, quantile: float) -> dict[str, float]:
        """A quantile of each stage, in microseconds."""
        return dict(zip(STAGES, (np.quantile(self.stages, quantile, axis=0) / 1e3).tolist(), strict=True))

    @property
    def ratio(self) -> float:
        """Median of the whole call over the median of the bare run."""
        return self.whole_us(0.5) / self.bare_us(0.5)


@dataclass(slots=True)
class Beside:
    """Another engine's whole call, with a state of its own, which is sent the same requests in turns.

    call, warm, before: as in `replay`. answers: filled by `replay`, one a request.
    """

    call: Callable[[bytes], bytes]
    warm: Callable[[bytes], object]
    before: Callable[[int], object]
    answers: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Parity:
    """How far served scores are from the training framework's, and how many decisions on them come out otherwise."""

    n: int
    max_difference: float
    mean_difference: float
    n_decisions: int
    flips: int


def compare(
    served: NDArray[np.floating[Any]],
    trained: NDArray[np.floating[Any]],
    decisions: NDArray[Any],
    trained_decisions: NDArray[Any],
) -> Parity:
    """Differences of scores of one shape, and of the decisions on them: one an entry, or one a row."""
    difference = np.abs(served.astype(np.float64) - trained.astype(np.float64))
    differs = decisions != trained_decisions
    if differs.ndim > 1:
        differs = differs.any(axis=tuple(range(1, differs.ndim)))
    return Parity(
        n=served.size,
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        n_decisions=len(differs),
        flips=int(differs.sum()),
    )


def replay(
    bodies: Sequence[bytes],
    feeds: Sequence[Any],
    *,
    call: Callable[[bytes], bytes],
    staged: Callable[[bytes], Staged],
    bare: Callable[[Any], object],
    warm: Callable[[bytes], object] | None = None,
    before: Callable[[int], object] | None = None,
    beside: Beside | None = None,
    rows: int = 1,
    slice_size: int = 250,
    n_warmup: int = 250,
) -> tuple[Replay, list[bytes]]:
    """Send every body through `call` and `staged`, and every feed through `bare`.

    Args:
        warm: takes the place of `call` while the machine warms up: a call that counts nothing.
        before: runs ahead of each body's `call`, off the clock: what else happened in the world until then.
        beside: another engine, whose answers come to stand in it.
    Returns: times, and the answers of `call`.
    """
    n = len(bodies)
    if len(feeds) != n:
        raise ValueError(f"Expected a feed for each of {n} bodies, got {len(feeds)}")
    # Allocated and touched before the clock starts.
    whole, bare_ns, stages = np.ones(n, np.int64), np.ones(n, np.int64), np.ones((n, len(STAGES)), np.int64)
    answers: list[bytes] = [b""] * n

    def whole_call(
        call: Callable[[bytes], bytes],
        before: Callable[[int], object] | None,
        took: NDArray[np.int64],
        answers: list[bytes],
    ) -> Callable[[int], None]:
        def run(i: int) -> None:
            if before is not None:
                before(i)
            start = perf_counter_ns()
            answer = call(bodies[i])
            took[i] = perf_counter_ns() - start
            answers[i] = answer

        return run

    def run_staged(i: int) -> None:
        stages[i] = staged(bodies[i])[1]

    def run_bare(i: int) -> None:
        feed = feeds[i]
        start = perf_counter_ns()
        bare(feed)
        bare_ns[i] = perf_counter_ns() - start

    turns = [whole_call(call, before, whole, answers), run_staged, run_bare]
    other = None
    if beside is not None:
        other = np.ones(n, np.int64)
        beside.answers[:] = [b""] * n
        turns.append(whole_call(beside.call, beside.before, other, beside.answers))
    for i in range(min(n_warmup, n)):
        (warm or call)(bodies[i])
        if beside is not None:
            beside.warm(bodies[i])
        run_staged(i)
        run_bare(i)
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number, begin in enumerate(range(0, n, slice_size)):
            for at in range(len(turns)):
                turn = turns[(number + at) % len(turns)]
                for i in range(begin, min(begin + slice_size, n)):
                    turn(i)
    finally:
        if was_enabled:
            gc.enable()
    return Replay(whole, stages, bare_ns, rows, other), answers
