"""Deadlines under faults: a real scorer with its whole ladder, on a clock that every stage moves as badly as it likes.

    python tests/deadline_faults.py simulated --requests 1000000 --seed 7   none late, on the simulated clock
    python tests/deadline_faults.py real --requests 100000 --seed 7         how late on the real one, with the kernel's delay

Rules:
  * A stage (a source, a model, the release before, a remote model) takes what its phase says: mostly what it should, at times
    ten or a thousand times that, and some fail. The wall clock steps by an hour either way, and nothing may care.
  * What must hold of every call: an answer is never given after its deadline; no stage begins after it; and whatever a call
    ends with, it ends at its deadline or with the stage that was running then, because work is not cut off but not begun.
  * What must hold of all: every rung has answered, and calls were refused for time and dropped late, or nothing was tried.
test_deadlines.py runs a sample of both, soak.py a million.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import releases

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.clock import ManualClock
from retailinfer.errors import DeadlineExceededError, RemoteError, ServingError, SessionError
from retailinfer.store import readthrough

__all__ = ["RealRun", "Trial", "real_run"]

US, MS = 1_000, 1_000_000
DEADLINE_MS = 20.0
KEYS = 20_000
# phase -> how often in 1,000 a stage takes ten times and a thousand times what it should, and how often it fails
PHASES = {
    "calm": {"source": (5, 1, 1), "model": (2, 1, 0), "previous": (2, 1, 0), "remote": (10, 5, 5)},
    "slow source": {"source": (400, 50, 10), "model": (2, 1, 0), "previous": (2, 1, 0), "remote": (10, 5, 5)},
    "slow model": {"source": (5, 1, 1), "model": (200, 5, 50), "previous": (20, 5, 5), "remote": (10, 5, 5)},
    "broken model": {"source": (5, 1, 1), "model": (5, 1, 900), "previous": (50, 5, 300), "remote": (100, 50, 100)},
    "all broken": {"source": (100, 20, 500), "model": (5, 1, 950), "previous": (5, 1, 950), "remote": (5, 1, 900)},
    "pauses": {"source": (5, 30, 0), "model": (5, 30, 0), "previous": (5, 30, 100), "remote": (5, 30, 100)},
}  # fmt: skip
TAKES_NS = {"source": 300 * US, "model": 40 * US, "previous": 40 * US, "remote": 2 * MS}
IDS = [f"sku-{i:03d}" for i in range(12)]
RANKING = msgspec.json.encode({"context": releases.CONTEXT, "candidates": IDS, "k": 2})
BUDGETS_MS = (None, None, None, 1e18, 100.0, 5.0, 2.0, 1.0, 0.4, 0.1, 0.05, 0.001)


class Stage:
    """Something that takes time on the clock, and may fail; what it did in the call under way is kept."""

    def __init__(self, name: str, clock: ManualClock, rng: random.Random) -> None:
        self.name, self.clock, self.rng = name, clock, rng
        self.takes_ns = TAKES_NS[name]
        self.rates = PHASES["calm"][name]
        self.begun: list[tuple[int, int]] = []  # start and end in this call
        self.n = self.slow = self.failed = 0

    def run(self, limit_ns: int | None = None) -> bool:
        """Whether it worked. `limit_ns`: how long it may take at most, for one that knows."""
        start = self.clock.monotonic_ns()
        self.n += 1
        tenfold, pause, fails = self.rates
        takes = round(self.takes_ns * self.rng.uniform(0.5, 1.5))
        draw = self.rng.randrange(1_000)
        if draw < pause:
            takes *= 1_000
        elif draw < pause + tenfold:
            takes *= 10
        self.slow += draw < pause + tenfold
        cut = limit_ns is not None and takes > limit_ns
        if self.rng.randrange(200) == 0:
            self.clock.step_wall_ns(self.rng.choice((-1, 1)) * 3_600 * 10**9)
        self.clock.advance_ns(min(takes, limit_ns) if cut and limit_ns is not None else takes)
        self.begun.append((start, self.clock.monotonic_ns()))
        works = not cut and self.rng.randrange(1_000) >= fails
        self.failed += not works
        return works


class Source:
    """Rows of cards; keeps to the time that it is given, half of the time.

    While somebody waits for it, its time is his. What it does for nobody goes on beside everything else, and takes no time.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.is_awaited = False

    def fetch(self, keys: Any, *, timeout_s: float) -> dict[str, Any]:
        if self.is_awaited:
            limit_ns = round(timeout_s * 1e9) if self.stage.rng.random() < 0.5 else None
            if not self.stage.run(limit_ns):
                raise TimeoutError("no answer")
        return {key: {"n": float(len(key))} for key in keys}

    def waits_of(self, through: Any) -> None:
        """Know from a table's reader who waits."""
        fetch = through.fetch

        def watched(keys: Any, timeout_s: float) -> Any:
            self.is_awaited = timeout_s > 0
            try:
                return fetch(keys, timeout_s)
            finally:
                end = time.monotonic() + 60
                while through._flights or through._running:  # nothing of it may be left for the next call
                    assert time.monotonic() < end, "a source hangs"
                    time.sleep(0)
                self.is_awaited = False

        through.fetch = watched


class Remote:
    """A model server that keeps to its time as a client makes it do, and fails as servers do."""

    model = "payments"

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def infer(self, inputs: Any, outputs: Any, *, end_ns: int, clock: Any) -> dict[str, Any]:
        if not self.stage.run(max(0, end_ns - clock.monotonic_ns())):
            raise RemoteError("no answer")
        return {outputs[0]: np.full((len(next(iter(inputs.values()))), 1), 0.75, np.float32)}


def _files() -> dict[str, bytes]:
    spec = ri.FeatureSpec(
        request={"card": str, "amount": float},
        entities={"card": ri.Entity(key=("card",), columns={"n": "float"})},
        columns=[c.numeric("amount"), c.stored("card.n", null=0.0, unknown=0.0, on_unavailable=0.0)],
    )
    return releases.packed(
        "payments",
        releases.weighted(1.0, 0.01, then=("Sigmoid",)),
        spec,
        policy=releases.POLICY,
        contract=ri.Contract(
            deadline_ms=DEADLINE_MS,
            max_rows=64,
            ladder=tuple(ri.Rung(kind=kind) for kind in ("previous", "remote", "last_score", "static")),
        ),
        fallback=ri.Fallback(score=0.6, action="review"),
    )


class _Wait(threading.Event):
    """Waiting on the simulated clock: the one who is waited for moves it, however long he takes for that in real time."""

    clock: ManualClock

    def wait(self, timeout: float | None = None) -> bool:
        start = self.clock.monotonic_ns()
        assert super().wait(60), "a source hangs"
        return timeout is None or self.clock.monotonic_ns() - start <= timeout * 1e9


@contextlib.contextmanager
def _simulated_waits(clock: ManualClock) -> Iterator[None]:
    names = vars(threading) | {"Event": type("Wait", (_Wait,), {"clock": clock})}
    readthrough.threading = types.SimpleNamespace(**names)  # type: ignore[assignment]
    try:
        yield
    finally:
        readthrough.threading = threading


def _items() -> dict[str, bytes]:
    return releases.packed(
        "items",
        releases.weighted(1.0, 1.0, 0.0),
        releases.item_spec(),
        contract=ri.Contract(
            deadline_ms=DEADLINE_MS, max_rows=64, ladder=(ri.Rung(kind="previous"), ri.Rung(kind="static"))
        ),
        fallback=ri.Fallback(popular=["sku-003", "sku-001"]),
    )


class Trial:
    """One scorer and one ranker, their clock and its stages, and what came of its calls."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = clock = ManualClock(monotonic_ns=10**12)
        self.stages = {name: Stage(name, clock, random.Random(f"{seed} {name}")) for name in TAKES_NS}
        source = Source(self.stages["source"])
        table = ri.FeatureTable(
            {"n": "f64"},
            source=source,
            ttl="5s",
            max_rows=KEYS // 2,
            timeout_ms=10.0,
            clock=clock,
            name="card",
        )
        source.waits_of(table._through)
        files = _files()
        self.scorer = releases.scorer_of(
            files,
            previous=files,
            remote=Remote(self.stages["remote"]),
            store=ri.Store(tables={"card": table}, clock=clock),
            backend="python",  # so that its models can be held up
        )
        ranked = _items()
        self.ranker = releases.ranker_of(
            ranked,
            previous=ranked,
            store=ri.Store(tables={"item": releases.items()}, clock=clock),
            backend="python",
        )
        for door in (self.scorer, self.ranker):
            self._hold("model", door._live.pipeline)
            self._hold("previous", door._live.previous)
            door._live.engine.set_drill(None, 0)  # drills run beside calls, and would move their clock
        self.ends: Counter[str] = Counter()
        self.most_over_ns = 0

    def _hold(self, name: str, pipeline: Any) -> None:
        stage, compute = self.stages[name], pipeline.chain_scores

        def held(inputs: Any, arrays: Any) -> Any:
            if not stage.run():
                raise SessionError("the engine failed")
            return compute(inputs, arrays)

        pipeline.chain_scores = held

    def run(self, n: int) -> None:
        """So many calls more."""
        with _simulated_waits(self.clock):
            for i in range(n):
                if i % 500 == 0:
                    phase = PHASES[self.rng.choice(list(PHASES))]
                    for name, stage in self.stages.items():
                        stage.rates = phase[name]
                self._call()
                self.clock.advance_ns(self.rng.randrange(2 * MS))

    def _call(self) -> None:
        rng, clock = self.rng, self.clock
        for stage in self.stages.values():
            stage.begun.clear()
        budget_ms = rng.choice(BUDGETS_MS)
        door = rng.randrange(6)
        start = clock.monotonic_ns()
        least_ms = DEADLINE_MS if budget_ms is None else budget_ms
        if door == 3 and budget_ms is None:
            least_ms = 1e18  # a batch has the deadline that it is given
        end = start + (1 << 62) if least_ms > 1e12 else start + max(1, int(least_ms * 1e6))
        rows = 3 if door == 3 else 1
        asked = [{"card": f"c{rng.randrange(KEYS)}", "amount": rng.uniform(-3, 3)} for _ in range(rows)]
        try:
            if door == 5:
                answers = [self.ranker.rank(releases.CONTEXT, IDS, 3, deadline_ms=budget_ms)]
            elif door == 4:
                answers = [
                    msgspec.json.decode(
                        self.ranker.rank_json(RANKING, deadline_ms=budget_ms), type=ri.Ranking
                    )
                ]
            elif door == 3:
                answers = self.scorer.score_batch(asked, errors="row", deadline_ms=budget_ms)
            elif door == 2:
                body = self.scorer.score_json(msgspec.json.encode(asked[0]), deadline_ms=budget_ms)
                answers = [msgspec.json.decode(body, type=ri.Decision)]
            else:
                answers = [self.scorer.score(asked[0], deadline_ms=budget_ms)]
        except ServingError as exc:
            answers = [exc]
        self._judge(answers, end)

    def _judge(self, answers: list[Any], end: int) -> None:
        now = self.clock.monotonic_ns()
        ran = [(name, *times) for name, stage in self.stages.items() for times in stage.begun]
        for one in answers:
            if isinstance(one, DeadlineExceededError):
                self.ends["late" if one.late else "no time"] += 1
            elif isinstance(one, ServingError):
                self.ends[type(one).__name__] += 1
            else:
                assert isinstance(one, (ri.Decision, ri.Ranking)), one
                assert now <= end, f"an answer {now - end} ns after its deadline: {one}"
                assert np.isfinite(one.score if isinstance(one, ri.Decision) else one.scores).all()
                self.ends[f"rung {one.rung}"] += 1
        for name, begun, _ in ran:
            assert begun <= end, f"{name} began {begun - end} ns after the deadline"
        if now > end:
            self.ends["calls that end late"] += 1
            running = max((stop for _, begun, stop in ran if begun <= end), default=end)
            assert now <= max(running, end), f"{now - running} ns went by after {running}"
            self.most_over_ns = max(self.most_over_ns, now - end)

    def report(self) -> dict[str, Any]:
        """What was tried, and what came of it."""
        return {
            "ends": dict(sorted(self.ends.items())),
            "stages": {name: [one.n, one.slow, one.failed] for name, one in self.stages.items()},
            "late": self.scorer._live.engine.n_late + self.ranker._live.engine.n_late,
            "refused_time": self.scorer._live.engine.n_refused_time + self.ranker._live.engine.n_refused_time,
        }

    def check(self) -> None:
        """Everything was tried that this is about."""
        for end in ("rung 0", "rung 1", "rung 2", "rung 3", "rung 4", "late", "no time"):
            assert self.ends[end] > 0, f"no call ended as `{end}`: {self.report()}"
        for stage in self.stages.values():
            assert min(stage.n, stage.slow, stage.failed) > 0, self.report()


# ---- the real clock --------------------------------------------------------------------------------------------------------


class RealRun(msgspec.Struct):
    """Calls on the real clock, as their caller measured them.

    Attributes:
        over_ms: by how much calls ended after their deadline, ascending; 0 for those in time.
        waited_ms: of each of these, how long threads of the process waited for a processor meanwhile.
        answered_late: answers that the caller got after the deadline.
    """

    over_ms: list[float]
    waited_ms: list[float]
    answered: int
    answered_late: int
    failed: int

    def share(self, q: float, *, without_wait: bool = False) -> float:
        """The quantile of over_ms; `without_wait`: without what the kernel is to blame for."""
        values = self.over_ms
        if without_wait:
            values = sorted(max(0.0, o - w) for o, w in zip(self.over_ms, self.waited_ms, strict=True))
        return values[min(len(values) - 1, int(q * len(values)))]


class Sleeper:
    """A source that takes mostly less than the deadline, and often more than is left."""

    def __init__(self, rng: random.Random, most_s: float) -> None:
        self.rng, self.most_s = rng, most_s

    def fetch(self, keys: Any, *, timeout_s: float) -> dict[str, Any]:
        time.sleep(self.rng.uniform(0, self.most_s))
        return {key: {"n": 1.0} for key in keys}


class SlowRemote:
    """A model server that answers within its time, or fails at the end of it, as `ri.Remote` does."""

    model = "payments"

    def __init__(self, rng: random.Random, most_s: float) -> None:
        self.rng, self.most_s = rng, most_s

    def infer(self, inputs: Any, outputs: Any, *, end_ns: int, clock: Any) -> dict[str, Any]:
        takes = self.rng.uniform(0, self.most_s)
        left = (end_ns - clock.monotonic_ns()) / 1e9
        time.sleep(max(0.0, min(takes, left)))
        if takes >= left:
            raise RemoteError("no answer in time")
        return {outputs[0]: np.full((1, 1), 0.75, np.float32)}


def _run_delay_ns() -> int:
    """For how long threads of this process were ready and had no processor: one that holds the GIL then holds up all."""
    total = 0
    for path in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int((path / "schedstat").read_text().split()[1])
    return total


@contextlib.contextmanager
def _real_scorer(seed: int, deadline_ms: float, *, remote: bool) -> Iterator[Any]:
    rng = random.Random(seed)
    most_s = 1.5 * deadline_ms / 1e3
    source = Sleeper(rng, 0.0 if remote else most_s)
    table = ri.FeatureTable({"n": "f64"}, source=source, max_rows=100, timeout_ms=1_000.0, name="card")
    files = _files()
    with releases.scorer_of(
        files, store=ri.Store(tables={"card": table}), remote=SlowRemote(rng, most_s), backend="python"
    ) as made:
        if remote:
            made._live.pipeline.chain_scores = _fails
        made._live.engine.set_drill(None, 0)
        yield made


def _fails(inputs: Any, arrays: Any) -> Any:
    raise SessionError("the engine failed")


def real_run(n: int, seed: int, *, deadline_ms: float = 4.0, remote: bool = False) -> RealRun:
    """One thread calls, one after the other; every call has to wait for a source, or for a remote model."""
    made = RealRun([], [], 0, 0, 0)
    pairs: list[tuple[float, float]] = []
    with _real_scorer(seed, deadline_ms, remote=remote) as scorer:
        for i in range(n):
            request = {"card": "c" if remote else f"{seed}-{i}", "amount": 0.5}
            delay = _run_delay_ns()
            start = time.perf_counter_ns()
            try:
                scorer.score(request, deadline_ms=deadline_ms)
                answered = True
            except ServingError:
                answered = False
            over = (time.perf_counter_ns() - start) / 1e6 - deadline_ms
            delay = max(0, _run_delay_ns() - delay)
            made.answered += answered
            made.failed += not answered
            made.answered_late += answered and over > 0
            pairs.append((max(0.0, over), delay / 1e6))
    pairs.sort()
    made.over_ms = [over for over, _ in pairs]
    made.waited_ms = [delay for _, delay in pairs]
    return made


def main() -> int:
    """Command line; see above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clock", choices=("simulated", "real"))
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0, help="instead: until the time is up")
    given = parser.parse_args()
    if given.clock == "simulated":
        trial, end, done = Trial(given.seed), time.monotonic() + given.seconds, 0
        while done < given.requests or time.monotonic() < end:
            trial.run(min(10_000, given.requests))
            done += min(10_000, given.requests)
        trial.check()
        sys.stdout.write(json.dumps({"seed": given.seed, "requests": done, **trial.report()}) + "\n")
        return 0
    for remote in (False, True):
        run = real_run(given.requests, given.seed, remote=remote)
        said = {f"p{100 * q:g}_over_ms": round(run.share(q), 3) for q in (0.5, 0.99, 0.999, 0.9999)}
        said |= {"p99.99_without_run_delay_ms": round(run.share(0.9999, without_wait=True), 3)}
        said |= {"most_over_ms": round(run.over_ms[-1], 3), "run_delay_then_ms": round(run.waited_ms[-1], 3)}
        said |= {"answered": run.answered, "answered_late": run.answered_late, "failed": run.failed}
        sys.stdout.write(json.dumps({"remote": remote, "requests": given.requests, **said}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
