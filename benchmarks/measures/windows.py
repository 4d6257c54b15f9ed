"""Figures of windows: fraud-full with windows in memory and in Redis; reading and adding alone; what an entity takes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from benchmarks import models, reference, workloads
from benchmarks.harness import (
    Case,
    Figure,
    Timing,
    WrongAnswerError,
    alternate,
    check_answers,
    collector_off,
    pinned,
    ratio,
)
from benchmarks.lab import Figures, Lab, UnmeasurableError, measures
from benchmarks.peers.handwritten import action
from benchmarks.workloads import N_ENTITIES, FullRequests, Values

N_CHECKED = 2_000


class _Checkout:
    """fraud-full against one store: a scorer whose first 2,000 answers were right, and requests that go on behind them."""

    def __init__(
        self, lab: Lab, windows: Any, *, n_history: int, engine: Literal["onnx", "trees"] = "onnx"
    ) -> None:
        import retailinfer as ri
        from benchmarks import library

        release = lab.full_release(engine)
        # What is checked is dated at the last minutes, what is timed at its own moment, as live requests are: windows
        # let go of what the clock says that nobody needs.
        base_s = int(time.time()) - N_CHECKED // FullRequests.PER_SECOND - 10
        self.requests = FullRequests(base_s)
        history: Values = self.requests.history(n_history)
        store = library.full_store(lab.full_spec, windows, history, base_s)
        self.scorer = ri.Scorer.load(release, store=store, trust="unsigned")
        self.feeds = lab.full_run.feeds(lab.full_matrix(self.requests, history, N_CHECKED))
        scores = lab.full_run.scores(self.feeds)
        want = [(score.tobytes(), action(float(score)), [], []) for score in scores]
        check_answers("fraud-full", map(self._answer, self.bodies(range(N_CHECKED))), want)
        self._next = itertools.count(N_CHECKED)

    def _answer(self, body: bytes) -> tuple[bytes, str, list[str], list[str]]:
        """Score, action, and that nothing was stale or missing: tables and windows knew everything."""
        got = msgspec.json.decode(self.score(body))
        return np.float32(got["score"]).tobytes(), got["action"], got["stale"], got["missing"]

    def score(self, body: bytes) -> bytes:
        answer: bytes = self.scorer.score_json(body, observe=True)
        return answer

    def bodies(self, numbers: Sequence[int]) -> list[bytes]:
        return [self.requests.body(i) for i in numbers]

    def later(self, numbers: Sequence[int]) -> list[bytes]:
        """As many requests of now, each with other keys than those before."""
        now_us = time.time_ns() // 1_000
        return [self.requests.body(next(self._next), now_us + i) for i in range(len(numbers))]

    def case(self, name: str) -> Case:
        return Case(name, self.score, self.later)

    def stages(self, lab: Lab, what: str) -> None:
        """Where the time of a call goes, by the engine's own marks; each mark costs some 30 ns itself."""
        staged = self.scorer._live.engine.score_json_staged
        with pinned(), collector_off():
            marks = [staged(body, True, True)[1] for body in self.later(range(4_000))]
        lab.stage(what, marks, inner=True)


@measures("fraud_full_ort")
def fraud_full(lab: Lab) -> Figures:
    """What a checkout runs: three tables, six windows read and added to, 300 trees."""
    import retailinfer as ri

    checkout = _Checkout(lab, ri.Windows.memory(), n_history=models.N_HISTORY)
    times = alternate(
        [checkout.case("library"), Case.over("bare run", lab.full_run, checkout.feeds)], lab.effort
    )
    lab.peer("fraud-full, bytes to bytes", times["bare run"], times["library"])
    checkout.stages(lab, "fraud-full, bytes to bytes")
    return {"fraud_full_ort": ratio(times["library"], times["bare run"])}


@measures("fraud_full_trees")
def fraud_full_trees(lab: Lab) -> Figures:
    """The same through the best tree kernel of this machine, with the four strongest reasons of every decision."""
    import retailinfer as ri

    checkout = _Checkout(lab, ri.Windows.memory(), n_history=models.N_HISTORY, engine="trees")
    reasons = [msgspec.json.decode(checkout.score(body))["reasons"] for body in checkout.later(range(200))]
    if not all(1 <= len(some) <= 4 for some in reasons):
        raise WrongAnswerError(f"fraud-full: expected 1 to 4 reasons of each decision, got {reasons[:3]}")
    times = alternate(
        [checkout.case("library"), Case.over("bare run", lab.full_run, checkout.feeds)], lab.effort
    )
    lab.peer("fraud-full through trees, with reasons", times["bare run"], times["library"])
    checkout.stages(lab, "fraud-full through trees, with reasons")
    return {"fraud_full_trees": ratio(times["library"], times["bare run"])}


@measures("fraud_full_redis")
def fraud_full_redis(lab: Lab) -> Figures:
    """The same with windows in Redis, beside the least that a round trip with the same reads and adds takes."""
    import retailinfer as ri
    from benchmarks.peers import redis_server
    from benchmarks.peers.redis_windows import RedisWindows

    if redis_server.program() is None:
        raise UnmeasurableError("needs a redis-server")
    with redis_server.serve() as port:
        windows = ri.Windows.redis(f"redis://127.0.0.1:{port}/0")
        checkout = _Checkout(lab, windows, n_history=2_000)
        peer = RedisWindows(port)
        times = alternate(
            [
                checkout.case("library"),
                Case(
                    "redis-py pipeline",
                    peer.read_and_add,
                    lambda numbers: [peer.payment(body) for body in checkout.later(numbers)],
                ),
            ],
            lab.effort,
        )
        checkout.stages(lab, "fraud-full, windows in Redis")
        checkout.scorer.close()
        peer.close()
    lab.peer("fraud-full, windows in Redis", times["redis-py pipeline"], times["library"])
    return {"fraud_full_redis": ratio(times["library"], times["redis-py pipeline"])}


# ------------------------------------------------------------------------------------------------------ windows alone

_CHUNK = 1_000  # events between two readings of the clock
_GAP_S = 18_000.0  # between two events of one entity: 36 live panes in its six windows on average
_AT_CLOCK_US = 17.0  # of bare run


@measures("windows_warm", "windows_cold")
def windows(lab: Lab) -> Figures:
    """Read six windows of an entity and add its event, by the loop that replays history; the clock from bare run."""
    figures = {}
    for figure, n_entities in (("windows_warm", 1_000), ("windows_cold", N_ENTITIES)):
        chunks = _Chunks(n_entities)
        chunks.check(3_000)
        chunks.fill(1 if lab.effort.short else 7)
        times = alternate(
            [
                Case("library", lambda run: run(), lambda numbers, c=chunks: [c.next() for _ in numbers]),
                Case.over("bare run", lab.fraud_run, lab.fraud_feeds),
            ],
            lab.scaled(0.5),
        )
        library = Timing("library", times["library"].ns, _CHUNK)
        rounds = library.rounds_us() * _AT_CLOCK_US / times["bare run"].rounds_us()
        note = f"{library.us():.4g} us while bare run took {times['bare run'].us():.4g} us; {n_entities:,} entities"
        figures[figure] = Figure.of(rounds, lower_is_better=True, note=note)
    return figures


class _Chunks:
    """Events in the order of time, each of an entity drawn at random, in chunks without end."""

    def __init__(self, n_entities: int) -> None:
        from benchmarks.window_kernel import Kernel

        self._n = n_entities
        self._step_s = _GAP_S / n_entities
        self._rng = np.random.default_rng([workloads.SEED, n_entities])
        self._at_s = float(workloads.FIRST_SECOND)
        self._kernel = Kernel(n_entities)

    def _draw(self, n: int) -> tuple[Any, Any, Any]:
        at = self._at_s + np.arange(n) * self._step_s
        self._at_s = float(at[-1]) + self._step_s
        return self._rng.integers(0, self._n, n), at, np.round(self._rng.lognormal(3.0, 1.0, n), 2)

    def next(self) -> Any:
        return self._kernel.events(*self._draw(_CHUNK))

    def check(self, n: int) -> None:
        """The first events of all against the definition of the windows."""
        from benchmarks.window_kernel import WINDOWS

        few = np.random.default_rng(0).integers(0, 20, n)  # 20 entities, so that their windows hold something
        _, at, amount = self._draw(n)
        at = at[0] + np.arange(n) * 331.7  # over several days
        self._at_s = float(at[-1]) + self._step_s
        got = self._kernel.events(few, at, amount)()
        want = np.column_stack([reference.window(w, o, few, at, amount) for w, o in WINDOWS])
        check_answers("six windows", got, want)

    def fill(self, days: int) -> None:
        """So many days of events, as a server has them behind it."""
        n = int(days * 86_400 / self._step_s)
        for first in range(0, n, 50_000):
            self._kernel.events(*self._draw(min(50_000, n - first)))()


@measures("windows_memory")
def memory(lab: Lab) -> Figures:
    """Resident memory of a new process that holds six windows of many entities, over what is promised."""
    from benchmarks.window_kernel import GAP_S, WINDOWS

    n = 1_000_000
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.window_kernel", str(n)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{done.stderr[-2000:]}")
    rounds, notes = [], []
    for found in json.loads(done.stdout):
        # Every event opened a pane of its own in each window; those that its window still reads are live.
        ages = [i * GAP_S for i in range(found["events"])]
        live = sum(age < reference.SECONDS[over] for _, over in WINDOWS for age in ages)
        rounds.append(found["bytes"] / n / (16 * len(WINDOWS) + 16 * live))
        notes.append(f"{found['bytes'] / n:.0f} bytes an entity with {live} live panes")
    return {"windows_memory": Figure(max(rounds), max(rounds), tuple(rounds), "; ".join(notes))}
