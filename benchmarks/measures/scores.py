"""Figures of one score: fraud-lean, a busy thread beside, filling a row; where the time of a call goes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from time import perf_counter_ns

import msgspec
import numpy as np

from benchmarks import models
from benchmarks.harness import (
    Case,
    Figure,
    alternate,
    busy_thread,
    check_answers,
    collector_off,
    pinned,
    ratio,
    unpinned,
)
from benchmarks.lab import Figures, Lab, measures
from benchmarks.measures.rankings import RANK_SLICE, RankInputs
from benchmarks.peers.handwritten import action
from benchmarks.workloads import FRAUD_LEAN, N_CANDIDATES

__all__ = ["check_fraud_answers"]


def check_fraud_answers(lab: Lab, what: str, call: Callable[[bytes], bytes], bodies: Sequence[bytes]) -> None:
    """Every score has the bits that bare run gives for the reference's row, and the action of its band."""

    def answer(body: bytes) -> tuple[bytes, str]:
        got = msgspec.json.decode(call(body))
        return np.float32(got["score"]).tobytes(), got["action"]

    want = [(score.tobytes(), action(float(score))) for score in lab.fraud_scores[: len(bodies)]]
    check_answers(what, map(answer, bodies), want)


@measures("fraud_lean_ort")
def fraud_lean(lab: Lab) -> Figures:
    """Bytes to bytes, beside bare run and two hand-written services, all in the same rounds."""
    bodies = lab.fraud_bodies
    by_hand = lab.handwritten
    contestants = {
        "library": lab.scorer.score_json,
        "msgspec + numpy + run": by_hand.with_msgspec,
        "json + numpy + run": by_hand.with_json,
    }
    for name, call in contestants.items():
        check_fraud_answers(lab, f"fraud-lean by {name}", call, bodies)
    times = alternate(
        [
            *(Case.over(name, call, bodies) for name, call in contestants.items()),
            Case.over("bare run", lab.fraud_run, lab.fraud_feeds),
        ],
        lab.effort,
    )
    library = times["library"]
    for name in ("bare run", "msgspec + numpy + run", "json + numpy + run"):
        lab.peer("fraud-lean, bytes to bytes", times[name], library)
    return {"fraud_lean_ort": ratio(library, times["bare run"])}


@measures("busy_thread_p99")
def busy(lab: Lab) -> Figures:
    """p99 of one row, with and without a thread of pure Python beside it."""
    bodies, call = lab.fraud_bodies, lab.scorer.score_json
    check_fraud_answers(lab, "fraud-lean, busy", call, bodies[:100])
    n = 15_000 if lab.effort.short else 40_000
    durations = np.empty(n, np.int64)

    def p99_us() -> float:
        for i in range(n):
            body = bodies[i % len(bodies)]
            start = perf_counter_ns()
            call(body)
            durations[i] = perf_counter_ns() - start
        return float(np.quantile(durations, 0.99)) / 1e3

    rounds, alone, beside = [], [], []
    with unpinned(), collector_off():
        p99_us()
        for _ in range(lab.effort.rounds):
            alone.append(p99_us())
            with busy_thread():
                beside.append(p99_us())
            rounds.append(beside[-1] / alone[-1])
    note = f"p99 {statistics.median(beside):.4g} us beside, {statistics.median(alone):.4g} us alone"
    return {"busy_thread_p99": Figure.of(rounds, lower_is_better=True, note=note)}


@measures("vectorise_over_dict_vectorizer")
def vectorise(lab: Lab) -> Figures:
    """One row of fraud-lean from a Struct into the engine's own float32 row."""
    from benchmarks.peers.dict_vectorizer import Vectorizer

    peer = Vectorizer(FRAUD_LEAN, lab.fraud_rows, lab.fraud_matrix)
    structs, engine = lab.fraud_structs, lab.scorer._live.engine
    # `vectorize` is `fill` and a copy of what it filled.
    check_answers("fraud-lean columns", (engine.vectorize(s)[0][0] for s in structs), lab.fraud_matrix)
    numeric = [i for _, i in peer.numeric]

    def by_peer(index: int) -> tuple[bytes, list[str]]:
        values = peer.as_columns(peer.transform(peer.prepared[index]))
        row = np.array([values[name] for name, _ in peer.numeric], np.float32)
        return row.tobytes(), [values[name] for name in peer.categorical]

    checked = range(200)
    want = [
        (lab.fraud_matrix[i, numeric].tobytes(), [lab.fraud_rows[i][name] for name in peer.categorical])
        for i in checked
    ]
    check_answers("DictVectorizer", map(by_peer, checked), want)
    times = alternate(
        [
            Case.over("library", engine.fill, structs, block=50),
            Case.over("DictVectorizer", peer.transform, peer.prepared),
        ],
        lab.scaled(0.5),
    )
    lab.peer("fraud-lean, one row", times["DictVectorizer"], times["library"])
    return {
        "vectorise_over_dict_vectorizer": ratio(
            times["DictVectorizer"], times["library"], lower_is_better=False
        )
    }


@measures()
def stages(lab: Lab) -> Figures:
    """No figure of its own: where the time of a call goes, by the engine's own marks. Each mark costs some 30 ns itself."""
    n = 4_000 if lab.effort.short else 20_000
    bodies, score = lab.fraud_bodies, lab.scorer._live.engine.score_json_staged
    check_fraud_answers(lab, "fraud-lean in stages", lambda body: score(body)[0], bodies)
    inputs, rank_staged = RankInputs(N_CANDIDATES), lab.ranker._live.engine.rank_json_staged
    with pinned(), collector_off():
        lab.stage("fraud-lean, bytes to bytes", [score(bodies[i % len(bodies)])[1] for i in range(n)])
        slices = range(0, n // 5, RANK_SLICE)
        ranked = [rank_staged(body)[1] for at in slices for body in inputs.bodies(range(at, at + RANK_SLICE))]
        lab.stage(f"rank_json {N_CANDIDATES}", ranked)
    return {}


@measures()
def sklearn_pipeline(lab: Lab) -> Figures:
    """No figure of its own: what the same service costs with scikit-learn and pandas."""
    from benchmarks.peers.sklearn_pipeline import SklearnPipeline

    training = models.training_rows(FRAUD_LEAN)
    peer = SklearnPipeline(FRAUD_LEAN, training, lab.codes, lab.fraud_run)
    rows = (peer.transform_one(row)[0] for row in lab.fraud_rows[:20])
    check_answers("scikit-learn pipeline", rows, lab.fraud_matrix[:20])
    times = alternate(
        [
            Case.over("library", lab.scorer.score_json, lab.fraud_bodies),
            Case.over("scikit-learn + run", peer, lab.fraud_bodies),
        ],
        lab.scaled(0.5),
    )
    lab.peer("fraud-lean, bytes to bytes", times["scikit-learn + run"], times["library"])
    return {}
