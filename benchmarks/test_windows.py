"""Six windows of one entity: read and added to, by the loop that replays history; a block is 1,000 events."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import reference, workloads
from benchmarks.conftest import Rotate
from benchmarks.harness import check_answers
from benchmarks.window_kernel import WINDOWS, Kernel

N_ENTITIES = 10_000


def test_read_and_add_six_windows(rotate: Rotate) -> None:
    """Ten thousand cards in random order, one event a second."""
    rng = np.random.default_rng(workloads.SEED)
    kernel = Kernel(N_ENTITIES)
    at = workloads.FIRST_SECOND + np.arange(500) * 900.5
    key, amount = rng.integers(0, 10, 500), np.round(rng.lognormal(3.0, 1.0, 500), 2)
    want = np.column_stack([reference.window(what, over, key, at, amount) for what, over in WINDOWS])
    check_answers("six windows", kernel.events(key, at, amount)(), want)
    seconds = itertools.count(int(at[-1]) + 1, 1_000)

    def chunks(numbers: Sequence[int]) -> list[Any]:
        made = []
        for start in itertools.islice(seconds, len(numbers)):
            entity = rng.integers(0, N_ENTITIES, 1_000)
            made.append(kernel.events(entity, start + np.arange(1_000.0), np.ones(1_000)))
        return made

    rotate(lambda run: run(), chunks, block=1, rounds=100)
