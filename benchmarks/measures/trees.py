"""Figures of the tree kernels: fraud-lean and rankings, per instruction set, beside bare run on the same rows."""

from __future__ import annotations

import msgspec
import numpy as np

from benchmarks import models
from benchmarks.harness import Case, Figure, alternate, check_answers, ratio
from benchmarks.lab import Figures, Lab, measures
from benchmarks.measures.rankings import RANK_SLICE, checked_rankings
from benchmarks.peers.bare_run import BareRun
from benchmarks.workloads import N_CANDIDATES, TOP_K

__all__: list[str] = []


def _fraud_lean(lab: Lab, level: str, *, deep: bool = False) -> Figure:
    """Bytes to bytes over bare run of the same model, every score compared with it bit by bit."""
    scorer = lab.tree_scorer(level, deep=deep)
    run = BareRun(models.gbdt("fraud-lean-deep"), "probabilities") if deep else lab.fraud_run
    feeds = run.feeds(lab.fraud_matrix) if deep else lab.fraud_feeds
    bodies = lab.fraud_bodies
    scores = run.scores(feeds) if deep else lab.fraud_scores
    got = (np.float32(msgspec.json.decode(scorer.score_json(body))["score"]).tobytes() for body in bodies)
    check_answers(f"fraud-lean through {level} trees", got, [score.tobytes() for score in scores])
    times = alternate(
        [Case.over("trees", scorer.score_json, bodies), Case.over("bare run", run, feeds)], lab.effort
    )
    lab.peer(f"fraud-lean{', deep' if deep else ''}, {level} trees", times["bare run"], times["trees"])
    return ratio(times["trees"], times["bare run"])


@measures("fraud_lean_trees_avx512")
def fraud_avx512(lab: Lab) -> Figures:
    """One row through all 63 comparisons of a tree at once."""
    return {"fraud_lean_trees_avx512": _fraud_lean(lab, "avx512")}


@measures("fraud_lean_trees_avx2")
def fraud_avx2(lab: Lab) -> Figures:
    """One row through eight trees at a time."""
    return {"fraud_lean_trees_avx2": _fraud_lean(lab, "avx2")}


@measures("fraud_lean_trees_deep")
def fraud_deep(lab: Lab) -> Figures:
    """Trees of 31 leaves of any depth, with the best kernels of this machine."""
    from retailinfer._native.trees import levels

    return {"fraud_lean_trees_deep": _fraud_lean(lab, levels()[-1], deep=True)}


def _ranking(lab: Lab, level: str) -> Figure:
    """rank(list) of 500 candidates over bare run on ready rows; the answers are those through ONNX Runtime."""
    ranker = lab.forest_ranker(level)
    inputs = checked_rankings(lab, N_CANDIDATES, n=20, trees=True)
    want = [lab.tree_ranker.rank(c, ids, k=TOP_K) for c, ids in inputs.lists(range(40))]
    got = [ranker.rank(c, ids, k=TOP_K) for c, ids in inputs.lists(range(40))]
    check_answers(
        f"rank {N_CANDIDATES} through {level} trees",
        [(r.items, r.scores) for r in got],
        [(r.items, r.scores) for r in want],
    )
    times = alternate(
        [
            Case("trees", lambda a: ranker.rank(a[0], a[1], k=TOP_K), inputs.lists, max_calls=RANK_SLICE),
            Case("bare run", lab.tree_run, inputs.feeds, max_calls=RANK_SLICE),
        ],
        lab.effort,
        slices=8,
    )
    lab.peer(f"rank {N_CANDIDATES}, {level} trees", times["bare run"], times["trees"])
    return ratio(times["trees"], times["bare run"])


@measures("rank_gbdt_avx512")
def rank_avx512(lab: Lab) -> Figures:
    """500 candidates in blocks of 256 rows."""
    return {"rank_gbdt_avx512": _ranking(lab, "avx512")}


@measures("rank_gbdt_avx2")
def rank_avx2(lab: Lab) -> Figures:
    """The same with AVX2."""
    return {"rank_gbdt_avx2": _ranking(lab, "avx2")}
