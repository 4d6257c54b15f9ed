"""What the benchmarks of the parts share. `pytest benchmarks` times them, with `--benchmark-disable` it only checks.

Rules:
  * One file a part, each with the same three steps: inputs in rotation, answer checked, `rotate` timed.
  * A round is a block of calls over different inputs, prepared outside the clock; the table shows the time of a block.
The figures that are promised are measured by `python -m benchmarks`; these show where the time of a call goes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from benchmarks.harness import Effort
from benchmarks.measures import Lab

Rotate = Callable[..., None]


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Models, releases and sessions of the reference workloads, made when first asked for."""
    with Lab(Effort(short=True)) as made:
        yield made


@pytest.fixture
def rotate(benchmark: Any) -> Rotate:
    """`rotate(call, inputs, block=100)`: time blocks of calls; `inputs` maps request numbers to fresh inputs."""

    def run(
        call: Callable[[Any], object],
        inputs: Callable[[Sequence[int]], Sequence[Any]],
        *,
        block: int = 100,
        rounds: int = 200,
    ) -> None:
        starts = itertools.count(0, block)

        def prepare() -> tuple[tuple[Sequence[Any]], dict[str, Any]]:
            start = next(starts)
            return (inputs(range(start, start + block)),), {}

        def calls(values: Sequence[Any]) -> None:
            for value in values:
                call(value)

        benchmark.extra_info["calls"] = block
        benchmark.pedantic(calls, setup=prepare, rounds=rounds, warmup_rounds=5)

    return run


def over(pool: Sequence[Any]) -> Callable[[Sequence[int]], list[Any]]:
    """Inputs out of a fixed pool, in rotation."""
    return lambda numbers: [pool[i % len(pool)] for i in numbers]
