"""The harness of the benchmarks: who is timed when, on what, and what the numbers mean."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import (
    Case,
    Effort,
    Figure,
    Timing,
    WrongAnswerError,
    alternate,
    busy_thread,
    check_answers,
    ratio,
)


class StepClock:
    """A clock that only moves when a contestant works."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def contestant(
    name: str, clock: StepClock, cost_ns: int, seen: list[tuple[str, Any]], **options: Any
) -> Case:
    """A case that takes `cost_ns` by that clock and notes what it was given."""

    def call(value: Any) -> None:
        clock.now_ns += cost_ns
        seen.append((name, value))

    return Case(name, call, list, **options)


def test_durations_are_those_of_each_contestant() -> None:
    """Every duration in the array is the cost of one call of that contestant."""
    clock, seen = StepClock(), []
    cases = [contestant("a", clock, 1_000, seen), contestant("b", clock, 3_000, seen)]
    times = alternate(cases, Effort(rounds=5, seconds=0.001), clock=clock, slices=2)
    assert times["a"].ns.shape[0] == 5
    assert (times["a"].ns == 1_000).all()
    assert (times["b"].ns == 3_000).all()
    assert ratio(times["b"], times["a"]).value == 3.0


def test_fast_calls_are_timed_in_blocks() -> None:
    """A block's duration is divided by its calls."""
    clock, seen = StepClock(), []
    times = alternate(
        [contestant("a", clock, 100, seen, block=50)], Effort(rounds=5, seconds=0.001), clock=clock, slices=2
    )
    assert (times["a"].ns == 5_000).all()
    assert times["a"].us() == pytest.approx(0.1)


def test_inputs_rotate_and_contestants_take_turns() -> None:
    """No input repeats while there are others, and every contestant goes first in some turn of every round."""
    clock, seen = StepClock(), []
    cases = [contestant("a", clock, 1_000, seen), contestant("b", clock, 1_000, seen)]
    times = alternate(cases, Effort(rounds=5, seconds=0.01), clock=clock, slices=4)
    n_timed = times["a"].ns.size
    inputs_of_a = [value for name, value in seen if name == "a"][-n_timed:]
    assert inputs_of_a == list(range(n_timed))
    timed = seen[-2 * n_timed :]
    per_turn = n_timed // (5 * 4)
    leaders = [timed[i][0] for i in range(0, len(timed), 2 * per_turn)]
    assert leaders == ["a", "b"] * 10


def test_inputs_are_prepared_outside_the_clock() -> None:
    """What preparing costs is in no duration."""
    clock = StepClock()

    def inputs(numbers: Sequence[int]) -> list[int]:
        clock.now_ns += 10**9
        return list(numbers)

    def call(_: Any) -> None:
        clock.now_ns += 1_000

    times = alternate([Case("a", call, inputs)], Effort(rounds=5, seconds=0.001), clock=clock, slices=2)
    assert times["a"].ns.max() == 1_000


def test_the_collector_is_off_while_time_is_taken_and_on_again_after() -> None:
    """A collection inside would be charged to whoever happens to run."""
    states: list[bool] = []
    case = Case("a", lambda _: states.append(gc.isenabled()), list)
    assert gc.isenabled()
    alternate([case], Effort(rounds=1, seconds=0.0001), slices=1)
    assert states
    assert not any(states)
    assert gc.isenabled()


def test_a_ratio_is_the_median_of_its_rounds_and_tells_the_worst() -> None:
    """Ratios are taken within rounds, so that a clock that moves between them does not matter."""
    clock_of_round = np.array([1, 2, 4, 1, 1])
    top = Timing("a", (np.array([10, 10, 10, 30, 20]) * clock_of_round)[:, None] * 1_000, 1)
    bottom = Timing("b", (10 * clock_of_round)[:, None] * 1_000, 1)
    got = ratio(top, bottom)
    assert got.rounds == (1.0, 1.0, 1.0, 3.0, 2.0)
    assert (got.value, got.worst) == (1.0, 3.0)
    assert Figure.of([1.0, 5.0, 3.0], lower_is_better=False).worst == 1.0


@pytest.mark.parametrize(
    ("got", "want"),
    [
        ([1, 2], [1, 3]),
        ([np.float32([1.0])], [np.float64([1.0])]),
        ([np.array([0.0], np.float32)], [np.array([-0.0], np.float32)]),
        ([np.zeros((2, 1))], [np.zeros((1, 2))]),
        ([], []),
    ],
    ids=["value", "dtype", "sign of zero", "shape", "nothing compared"],
)
def test_a_wrong_answer_is_an_error(got: list[Any], want: list[Any]) -> None:
    """Answers are compared by bits, dtype and shape, and comparing nothing is no comparison."""
    with pytest.raises(WrongAnswerError):
        check_answers("test", got, want)


def test_equal_answers_are_counted() -> None:
    """NaN equals itself here: the bits are what counts."""
    nan = np.array([np.nan], np.float32)
    assert check_answers("test", [nan, nan], [nan.copy(), nan.copy()]) == 2


def test_answers_of_different_number_are_an_error() -> None:
    """A peer that stops early has not agreed."""
    with pytest.raises(ValueError, match=r"longer|shorter"):
        check_answers("test", [1], [1, 2])


def test_the_busy_thread_ends_with_its_block() -> None:
    """Nothing runs on after the measurement."""
    before = threading.active_count()
    with busy_thread():
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
