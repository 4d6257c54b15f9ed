"""How each figure is measured: one function a group, which checks the answers and then takes the time.

Rules:
  * A function returns every figure that its group names, or raises. UnmeasurableError is for what this machine cannot
    have (an instruction set, a second core); anything else fails the run.
  * Before anything is timed, the library's answers are compared with the peer's on the very inputs that rotate.
  * `Lab` makes what the groups share (models, releases, sessions), each when first asked for.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, perf_counter_ns
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import models, reference, workloads
from benchmarks.harness import (
    Case,
    Effort,
    Figure,
    Timing,
    alternate,
    busy_thread,
    check_answers,
    collector_off,
    pinned,
    ratio,
    unpinned,
)
from benchmarks.peers.bare_run import BareRun, Feed
from benchmarks.peers.handwritten import HandwrittenFraud, HandwrittenRank, action
from benchmarks.report import PeerRow, StageRow
from benchmarks.workloads import FRAUD_LEAN, N_CANDIDATES, RANK, RANK_GBDT_COLUMNS, TOP_K

__all__ = ["MEASURES", "Lab", "Measure", "UnmeasurableError", "checked_rankings"]

Figures = dict[str, Figure]


class UnmeasurableError(Exception):
    """This machine lacks what the figure needs. Counted as missed; the run does not fail."""


@dataclass
class Lab:
    """What the groups share. A context manager: its releases live in a temporary folder."""

    effort: Effort
    peers: list[PeerRow] = field(default_factory=list)
    stages: list[StageRow] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._folder = TemporaryDirectory(prefix="retailinfer-bench-")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        return Path(self._folder.name)

    def scaled(self, factor: float) -> Effort:
        """The same effort with another share of time."""
        return Effort(self.effort.rounds, self.effort.seconds * factor, self.effort.short)

    def peer(self, what: str, timing: Timing, library: Timing | None) -> None:
        """Note a peer for the table."""
        self.peers.append(
            PeerRow(what, timing.name, timing.us(), timing.us(0.99), library.us() if library else None)
        )

    def stage(self, what: str, marks: Sequence[Sequence[int]]) -> None:
        """Note the stages of many calls, in ns, for the table."""
        medians = np.median(np.array(marks, np.int64), axis=0).tolist()
        self.stages += [StageRow(what, name, ns) for name, ns in zip(_STAGES, medians, strict=True)]

    # ---- fraud-lean ---------------------------------------------------------------------------------------------

    @cached_property
    def codes(self) -> dict[str, dict[str, int]]:
        return models.codes(FRAUD_LEAN)

    @cached_property
    def fraud_rows(self) -> tuple[dict[str, Any], ...]:
        return workloads.requests(FRAUD_LEAN.name)[0]

    @cached_property
    def fraud_bodies(self) -> tuple[bytes, ...]:
        return workloads.requests(FRAUD_LEAN.name)[1]

    @cached_property
    def fraud_matrix(self) -> NDArray[np.float32]:
        """The model's input for every request, by the NumPy reference."""
        values = workloads.draw(FRAUD_LEAN, workloads.N_REQUESTS, seed=workloads.SEED + 1)
        return reference.matrix(FRAUD_LEAN.columns, values, self.codes)

    @cached_property
    def fraud_run(self) -> BareRun:
        return BareRun(models.gbdt(FRAUD_LEAN.name), "probabilities")

    @cached_property
    def fraud_feeds(self) -> list[Feed]:
        return self.fraud_run.feeds(self.fraud_matrix)

    @cached_property
    def fraud_scores(self) -> NDArray[np.float32]:
        return self.fraud_run.scores(self.fraud_feeds)

    @cached_property
    def handwritten(self) -> HandwrittenFraud:
        return HandwrittenFraud(self.fraud_run, self.codes)

    @cached_property
    def fraud_spec(self) -> Any:
        from benchmarks import library

        return library.fraud_spec()

    @cached_property
    def fraud_release(self) -> Path:
        from benchmarks import library

        return library.pack_fraud(self.folder, self.fraud_spec, models.gbdt(FRAUD_LEAN.name))

    @cached_property
    def scorer(self) -> Any:
        import retailinfer as ri

        return ri.Scorer.load(self.fraud_release, trust="unsigned")

    @cached_property
    def fraud_structs(self) -> list[Any]:
        """The requests as Structs of the spec's own type, as `score_json` decodes them."""
        return [msgspec.json.decode(body, type=self.scorer.request_type) for body in self.fraud_bodies]

    # ---- ranking ------------------------------------------------------------------------------------------------

    @cached_property
    def item_keys(self) -> list[str]:
        return [key.decode() for key in workloads.item_ids()]

    @cached_property
    def rank_run(self) -> BareRun:
        return BareRun(models.mlp(), "score")

    @cached_property
    def tree_run(self) -> BareRun:
        return BareRun(models.gbdt("rank-gbdt"), "probabilities")

    @cached_property
    def items(self) -> Any:
        """A store with the item table."""
        import retailinfer as ri
        from benchmarks import library

        return ri.Store(tables={"item": library.item_snapshot()})

    @cached_property
    def ranker(self) -> Any:
        return self._ranker("rank", RANK.columns, models.mlp())

    @cached_property
    def tree_ranker(self) -> Any:
        return self._ranker("rank-gbdt", RANK_GBDT_COLUMNS, models.gbdt("rank-gbdt"))

    def _ranker(self, name: str, columns: Sequence[workloads.ColumnDef], model: bytes) -> Any:
        import retailinfer as ri
        from benchmarks import library

        release = library.pack_rank(self.folder, name, library.rank_spec(columns), model)
        return ri.Ranker.load(release, store=self.items, trust="unsigned")


@dataclass(frozen=True)
class Measure:
    """A group of figures that are measured together."""

    name: str
    figures: tuple[str, ...]
    run: Callable[[Lab], Figures]


MEASURES: list[Measure] = []


def measures(*figures: str) -> Callable[[Callable[[Lab], Figures]], Callable[[Lab], Figures]]:
    """Register a function as what measures these figures."""

    def register(function: Callable[[Lab], Figures]) -> Callable[[Lab], Figures]:
        MEASURES.append(Measure(function.__name__, figures, function))
        return function

    return register


# ------------------------------------------------------------------------------------------------------ one score


def _check_fraud_answers(
    lab: Lab, what: str, call: Callable[[bytes], bytes], bodies: Sequence[bytes]
) -> None:
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
        _check_fraud_answers(lab, f"fraud-lean by {name}", call, bodies)
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
    _check_fraud_answers(lab, "fraud-lean, busy", call, bodies[:100])
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
    structs, engine = lab.fraud_structs, lab.scorer._engine
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


_STAGES = ("decode", "resolve", "fill", "run", "decide", "encode")


@measures()
def stages(lab: Lab) -> Figures:
    """No figure of its own: where the time of a call goes, by the engine's own marks. Each mark costs some 30 ns itself."""
    n = 4_000 if lab.effort.short else 20_000
    bodies, score = lab.fraud_bodies, lab.scorer._engine.score_json_staged
    _check_fraud_answers(lab, "fraud-lean in stages", lambda body: score(body)[0], bodies)
    inputs, rank_staged = _RankInputs(N_CANDIDATES), lab.ranker._engine.rank_json_staged
    with pinned(), collector_off():
        lab.stage("fraud-lean, bytes to bytes", [score(bodies[i % len(bodies)])[1] for i in range(n)])
        slices = range(0, n // 5, _RANK_SLICE)
        ranked = [
            rank_staged(body)[1] for at in slices for body in inputs.bodies(range(at, at + _RANK_SLICE))
        ]
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


# ------------------------------------------------------------------------------------------------------ rankings

_RANK_SLICE = 24  # calls: 3 MB of feeds, which the second-level cache holds as it would hold one just written


class _RankInputs:
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


def _expected_ranking(lab: Lab, run: BareRun, inputs: _RankInputs, number: int) -> tuple[list[str], bytes]:
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
) -> _RankInputs:
    """The inputs of a ranking measure, after `n` rankings were compared with bare run, from lists and from JSON."""
    columns = RANK_GBDT_COLUMNS if trees else RANK.columns
    inputs = _RankInputs(n_candidates, n_requests, columns)
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
        "rank(list)", lambda a: ranker.rank(a[0], a[1], k=TOP_K), inputs.lists, max_calls=_RANK_SLICE
    )
    slices = 16 if lab.effort.short else 40
    times = alternate(
        [
            from_list,
            Case("rank_json", ranker.rank_json, inputs.bodies, max_calls=_RANK_SLICE),
            Case("bare run", lab.rank_run, inputs.feeds, max_calls=_RANK_SLICE),
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
                max_calls=_RANK_SLICE,
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


# ------------------------------------------------------------------------------------------------------ gathers


@measures("gather_snapshot")
def gather(lab: Lab) -> Figures:
    """500 fresh keys x 32 floats out of 100,000 rows, into a matrix that is there, as in the peers."""
    from benchmarks import library
    from benchmarks.peers.cachetools_cache import dict_of_rows, gatherer, ttl_cache_of_rows

    width = 32
    values = workloads.item_values()[:, :width]
    snapshot = library.snapshot_of(width)
    snapshot.table.make_block(
        "rows", [f"x{i:02d}" for i in range(width)]
    )  # finished rows, as rankings copy them
    out = np.empty((N_CANDIDATES, width), np.float32)
    drawn = workloads.rank_requests()
    by_ttl = gatherer(ttl_cache_of_rows(lab.item_keys, values), N_CANDIDATES, width)
    by_dict = gatherer(dict_of_rows(lab.item_keys, values), N_CANDIDATES, width)

    def fresh(numbers: Sequence[int]) -> list[list[str]]:
        return [drawn.fresh_ids(i % workloads.N_REQUESTS) for i in numbers]

    def by_snapshot(keys: list[str]) -> NDArray[np.float32]:
        return np.asarray(snapshot.gather_block(keys, "rows", out=out)[0])

    want = [values[drawn.candidates[i]] for i in range(50)]
    for name, call in (("snapshot", by_snapshot), ("TTLCache", by_ttl), ("dict", by_dict)):
        check_answers(f"gather by {name}", (call(keys).copy() for keys in fresh(range(50))), want)
    times = alternate(
        [
            Case("library", by_snapshot, fresh, max_calls=40),
            Case("cachetools TTLCache + copy", by_ttl, fresh, max_calls=10),
            Case("dict + copy", by_dict, fresh, max_calls=20),
        ],
        lab.effort,
        slices=16,
    )
    for name in ("cachetools TTLCache + copy", "dict + copy"):
        lab.peer("gather 500 x 32, snapshot", times[name], times["library"])
    return {
        "gather_snapshot": ratio(times["cachetools TTLCache + copy"], times["library"], lower_is_better=False)
    }


# ------------------------------------------------------------------------------------------------------ a model service


@measures("http_ort_p50", "http_ort_p99")
def http(lab: Lab) -> Figures:
    """The same bodies through FastAPI on loopback."""
    from benchmarks.peers import fastapi_app

    bodies = lab.fraud_bodies
    with fastapi_app.serve(models.gbdt(FRAUD_LEAN.name), lab.codes) as client:
        _check_fraud_answers(lab, "FastAPI", client.post, bodies[:500])
        _check_fraud_answers(lab, "library", lab.scorer.score_json, bodies[:500])
        times = alternate(
            [
                Case.over("library", lab.scorer.score_json, bodies),
                Case.over("FastAPI + uvicorn, loopback", client.post, bodies),
            ],
            lab.scaled(1.5),
        )
    peer, library = times["FastAPI + uvicorn, loopback"], times["library"]
    lab.peer("fraud-lean, bytes to bytes", peer, library)
    return {
        "http_ort_p50": ratio(peer, library, lower_is_better=False),
        "http_ort_p99": ratio(peer, library, quantile=0.99, lower_is_better=False),
    }


# ------------------------------------------------------------------------------------------------------ processes

_IMPORT = """
import sys, time
import numpy, msgspec, msgspec.json
start = time.perf_counter_ns()
from retailinfer import FeatureSpec, Policy, Ranker, Scorer, Store
print(time.perf_counter_ns() - start)
"""

_LOAD = """
import pathlib, sys, time
from retailinfer import Scorer
body = pathlib.Path(sys.argv[2]).read_bytes()
start = time.perf_counter_ns()
answer = Scorer.load(sys.argv[1], trust="unsigned").score_json(body)
print(time.perf_counter_ns() - start)
print(answer.decode())
"""


def _in_new_interpreters(lab: Lab, code: str, *arguments: str, rounds: int) -> Iterator[list[str]]:
    """Run code `rounds` times after one warm-up that fills the system's caches and compiles; yields its lines.

    Bytecode is there as after an installation, also where the source tree is measured or may not be written to.
    """
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(lab.folder / "bytecode")
    for i in range(rounds + 1):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=env,
        )
        if done.returncode:
            raise RuntimeError(f"a new interpreter failed:\n{done.stderr[-2000:]}")
        if i:
            yield done.stdout.splitlines()


@measures("import_ms")
def imports(lab: Lab) -> Figures:
    """Import in a new interpreter."""
    # Nine at least: each is one import, and a single hiccup of the machine would show among five.
    n = max(9, lab.effort.rounds)
    rounds = [int(out[0]) / 1e6 for out in _in_new_interpreters(lab, _IMPORT, rounds=n)]
    return {"import_ms": Figure.of(rounds, lower_is_better=True)}


@measures("load_ms")
def load(lab: Lab) -> Figures:
    """From a folder to the first answer in a new interpreter, with a release of 1 MB."""
    from benchmarks import library

    model = models.gbdt(FRAUD_LEAN.name, n_trees=460)
    release = library.pack_fraud(lab.folder / "1mb", lab.fraud_spec, model)
    size = sum(path.stat().st_size for path in release.iterdir())
    if size < 1_000_000:
        raise RuntimeError(f"the release has {size} bytes; the figure is about 1 MB: give it more trees")
    body = lab.folder / "body.json"
    body.write_bytes(lab.fraud_bodies[0])
    run = BareRun(model, "probabilities")
    want = run.scores(run.feeds(lab.fraud_matrix[:1]))
    rounds = []
    for out in _in_new_interpreters(lab, _LOAD, str(release), str(body), rounds=lab.effort.rounds):
        check_answers("first answer", np.array([json.loads(out[1])["score"]], np.float32), want)
        rounds.append(int(out[0]) / 1e6)
    return {"load_ms": Figure.of(rounds, lower_is_better=True, note=f"{size / 1e6:.2f} MB")}
