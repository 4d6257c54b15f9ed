"""Figures of rankings: 500 and 5,000 candidates, one thread and two."""

from __future__ import annotations

import math
import os
import statistics
import threading
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import models, workloads
from benchmarks.harness import Case, Figure, alternate, check_answers, collector_off, ratio, unpinned
from benchmarks.lab import Figures, Lab, UnmeasurableError, measures
from benchmarks.peers.bare_run import BareRun, Feed
from benchmarks.peers.handwritten import HandwrittenRank
from benchmarks.workloads import N_CANDIDATES, RANK, RANK_GBDT_COLUMNS, TOP_K

__all__ = ["RANK_SLICE", "RankInputs", "checked_rankings"]

RANK_SLICE = 24  # calls: 3 MB of feeds, which the second-level cache holds as it would hold one just written


class RankInputs:
    """Makes the inputs of ranking calls, outside the clock."""

    def __init__(
        self,
        n_candidates: int,
        n_requests: int = workloads.N_REQUESTS,
        columns: tuple[workloads.ColumnDef, ...] = RANK.columns,
    ) -> None:
        self.drawn = workloads.rank_requests(n_candidates, n_requests)
        self.n = n_requests
        self.columns = columns

    def context(self, number: int) -> dict[str, Any]:
        return self.drawn.contexts[number % self.n]

    def lists(self, numbers: Sequence[int]) -> list[tuple[dict[str, Any], list[str]]]:
        return [(self.context(i), self.drawn.fresh_ids(i % self.n)) for i in numbers]

    def bodies(self, numbers: Sequence[int]) -> list[bytes]:
        return [self.drawn.body(i % self.n) for i in numbers]

    def matrix(self, number: int) -> NDArray[np.float32]:
        rows = self.drawn.candidates[number % self.n]
        return models.rank_matrix(self.context(number), rows, self.columns)

    def feeds(self, numbers: Sequence[int]) -> list[Feed]:
        return [{"input": self.matrix(i)} for i in numbers]


def _expected_ranking(lab: Lab, run: BareRun, inputs: RankInputs, number: int) -> tuple[list[str], bytes]:
    """The k best by bare run on the reference's rows; equal scores in the order of the ids."""
    scores = run.scores([{run.input: inputs.matrix(number)}])
    drawn = inputs.drawn.candidates[number % inputs.n]
    best = np.lexsort((drawn, -scores))[:TOP_K]  # ids are zero-padded row numbers
    rows = drawn[best]
    return [lab.item_keys[i] for i in rows], scores[best].tobytes()


def _ranking(ranker: Any, pair: tuple[dict[str, Any], list[str]]) -> tuple[list[str], bytes]:
    answer = ranker.rank(pair[0], pair[1], k=TOP_K)
    return list(answer.items), np.array(answer.scores, np.float32).tobytes()


def checked_rankings(
    lab: Lab, n_candidates: int, *, n: int, n_requests: int = workloads.N_REQUESTS, trees: bool = False
) -> RankInputs:
    """The inputs of a ranking measure, after `n` rankings were compared with bare run, from lists and from JSON."""
    columns = RANK_GBDT_COLUMNS if trees else RANK.columns
    inputs = RankInputs(n_candidates, n_requests, columns)
    ranker, run = (lab.tree_ranker, lab.tree_run) if trees else (lab.ranker, lab.rank_run)
    want = [_expected_ranking(lab, run, inputs, i) for i in range(n)]

    def from_json(body: bytes) -> tuple[list[str], bytes]:
        r = msgspec.json.decode(ranker.rank_json(body))
        return r["items"], np.array(r["scores"], np.float32).tobytes()

    numbers = range(n)
    from_lists = (_ranking(ranker, pair) for pair in inputs.lists(numbers))
    check_answers(f"rank {n_candidates} from a list", from_lists, want)
    check_answers(f"rank {n_candidates} from JSON", map(from_json, inputs.bodies(numbers)), want)
    return inputs


@measures("rank_500_list", "rank_500_json")
def rank(lab: Lab) -> Figures:
    """500 candidates, beside bare run on ready rows and a hand-written ranking."""
    inputs = checked_rankings(lab, N_CANDIDATES, n=60)
    ranker = lab.ranker
    by_hand = HandwrittenRank(lab.rank_run, lab.item_keys, workloads.item_values())
    n_context = sum(column.kind != "stored" for column in RANK.columns)
    rows = [inputs.matrix(i)[0, :n_context] for i in range(64)]

    def by_hand_inputs(numbers: Sequence[int]) -> list[tuple[NDArray[np.float32], list[str]]]:
        return [(rows[i % 64], inputs.drawn.fresh_ids(i % inputs.n)) for i in numbers]

    want = [_expected_ranking(lab, lab.rank_run, inputs, i)[0] for i in range(20)]
    got = (by_hand.rank(row, ids, TOP_K)[0] for row, ids in by_hand_inputs(range(20)))
    check_answers("hand-written ranking", got, want)
    from_list = Case(
        "rank(list)", lambda a: ranker.rank(a[0], a[1], k=TOP_K), inputs.lists, max_calls=RANK_SLICE
    )
    slices = 16 if lab.effort.short else 40
    times = alternate(
        [
            from_list,
            Case("rank_json", ranker.rank_json, inputs.bodies, max_calls=RANK_SLICE),
            Case("bare run", lab.rank_run, inputs.feeds, max_calls=RANK_SLICE),
        ],
        lab.effort,
        slices=slices,
    )
    # In rounds of its own: its table and its dict would push everybody else's out of the caches.
    beside = alternate(
        [
            from_list,
            Case(
                "dict + take + run",
                lambda a: by_hand.rank(a[0], a[1], TOP_K),
                by_hand_inputs,
                max_calls=RANK_SLICE,
            ),
        ],
        lab.scaled(0.5),
        slices=slices,
    )
    lab.peer(f"rank {N_CANDIDATES}", times["bare run"], times["rank(list)"])
    lab.peer(f"rank {N_CANDIDATES}", beside["dict + take + run"], beside["rank(list)"])
    return {
        "rank_500_list": ratio(times["rank(list)"], times["bare run"]),
        "rank_500_json": ratio(times["rank_json"], times["bare run"]),
    }


@measures("rank_5000_over_500")
def rank_many(lab: Lab) -> Figures:
    """Ten times the candidates: no worse than ten times the time."""
    few = checked_rankings(lab, N_CANDIDATES, n=5)
    many = checked_rankings(lab, 10 * N_CANDIDATES, n=5, n_requests=1_000)
    ranker = lab.ranker
    times = alternate(
        [
            Case("500", lambda a: ranker.rank(a[0], a[1], k=TOP_K), few.lists, max_calls=40),
            Case("5000", lambda a: ranker.rank(a[0], a[1], k=TOP_K), many.lists, max_calls=5),
        ],
        lab.effort,
        slices=16,
    )
    return {"rank_5000_over_500": ratio(times["5000"], times["500"])}


@measures("ranking_threads")
def threads(lab: Lab) -> Figures:
    """Rankings a second by two threads over one. The figure: 500 candidates by 300 trees, whose run gives up the GIL.

    Beside it in the note, the network: of 500 candidates its run is predicted to be shorter than `hold_gil_below_us`, so
    the GIL is kept and two threads cannot be faster; of 5,000 it is given up for filling and running.
    """
    with unpinned():
        n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if n_cores < 2:
            raise UnmeasurableError("two threads need two cores")
        figure, by_two, by_one = _thread_ratio(lab, lab.tree_ranker, N_CANDIDATES, trees=True)
        notes = [f"trees {by_two:.0f}/s by two, {by_one:.0f}/s by one"]
        for n in (N_CANDIDATES, 10 * N_CANDIDATES):
            beside, *_ = _thread_ratio(lab, lab.ranker, n, trees=False)
            notes.append(f"network of {n}: {beside.value:.3g}")
    return {"ranking_threads": Figure(figure.value, figure.worst, figure.rounds, "; ".join(notes))}


def _thread_ratio(lab: Lab, ranker: Any, n_candidates: int, *, trees: bool) -> tuple[Figure, float, float]:
    """Throughput of two threads over that of one by rounds; and the medians of both, in rankings a second."""
    seconds, n_inputs = (0.2 if lab.effort.short else 0.8), 100
    inputs = checked_rankings(lab, n_candidates, n=5, n_requests=1_000, trees=trees)
    pools = [inputs.lists(range(i * n_inputs, (i + 1) * n_inputs)) for i in range(2)]
    want = [[_ranking(ranker, pair) for pair in pool[:10]] for pool in pools]

    def throughput(n_threads: int) -> float:
        counts, gate = [0] * n_threads, threading.Barrier(n_threads + 1)
        end = math.inf

        def work(which: int) -> None:
            pool = pools[which]
            gate.wait()
            n = 0
            while perf_counter() < end:
                context, ids = pool[n % n_inputs]
                ranker.rank(context, ids, k=TOP_K)
                n += 1
            counts[which] = n

        workers = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(n_threads)]
        for worker in workers:
            worker.start()
        start = perf_counter()
        end = start + seconds
        gate.wait()
        for worker in workers:
            worker.join(60)
        return sum(counts) / (perf_counter() - start)

    def check_beside() -> None:
        """Both threads at once still answer rightly."""
        got: list[list[Any]] = [[], []]

        def work(which: int) -> None:
            got[which] += [_ranking(ranker, pair) for pair in pools[which][:10]]

        workers = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        for which in range(2):
            check_answers(f"rank {n_candidates} in thread {which}", got[which], want[which])

    with collector_off():
        check_beside()
        pairs = [(throughput(2), throughput(1)) for _ in range(lab.effort.rounds)]
    two, one = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Figure.of((a / b for a, b in pairs), lower_is_better=False), two, one
