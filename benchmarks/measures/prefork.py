"""Figures of prefork servers: what each worker needs beside what the master shares with it, and what overload does."""

from __future__ import annotations

import http.client
import json
import sys
import threading
from pathlib import Path

import numpy as np

import retailinfer as ri
from benchmarks import library, models
from benchmarks.harness import Figure, WrongAnswerError
from benchmarks.lab import Figures, Lab, UnmeasurableError, measures
from benchmarks.prefork import overload, server
from benchmarks.workloads import FRAUD_LEAN

WORKERS = 2
THREADS = 4  # of the client
WEIGHTS = 2_880  # 2,880 x 2,880 float32 are 33 MB


@measures("prefork_private_dirty_mb", "prefork_weights_mb")
def memory(lab: Lab) -> Figures:
    """Private memory of the workers after so many requests each, as the kernel counts it: the worst of them."""
    if not sys.platform.startswith("linux"):
        raise UnmeasurableError("reads /proc")
    forest = library.pack_fraud(
        lab.folder, lab.fraud_spec, models.gbdt(FRAUD_LEAN.name, n_trees=520), name="prefork-1mb"
    )
    network = lab.folder / "prefork-weights"
    ri.pack(
        "weights",
        model=models.dense(len(lab.fraud_spec.names), WEIGHTS),
        features=lab.fraud_spec,
        out=network,
    )
    n = 1 if lab.effort.short else lab.effort.rounds // 2
    whole = [_private_mb(lab, forest, 10_000) for _ in range(n)]
    weights = [_private_mb(lab, network, 1_000) for _ in range(n)]
    nothing = [_private_mb(lab, None, 1_000) for _ in range(n)]
    more = [one - other for one, other in zip(weights, nothing, strict=True)]
    note = f"{np.median(weights):.1f} MB, of which {np.median(nothing):.1f} are gunicorn's own, without this library"
    return {
        "prefork_private_dirty_mb": Figure.of(
            whole, lower_is_better=True, note=f"worst of {WORKERS} workers"
        ),
        "prefork_weights_mb": Figure.of(more, lower_is_better=True, note=note),
    }


def _private_mb(lab: Lab, release: Path | None, requests: int) -> float:
    """Of the worst worker, in a server of its own; without a release, of one that answers without this library."""
    bodies = lab.fraud_bodies[:200]
    scores = [0.0] * len(bodies)
    environment = {}
    if release is not None:
        environment = {"RELEASE": str(release)}
        with ri.Scorer.load(release, trust="unsigned") as scorer:
            scores = [json.loads(scorer.score_json(body))["score"] for body in bodies]
    folder = lab.folder / "prefork-served"
    folder.mkdir(exist_ok=True)
    options = ["--workers", str(WORKERS), "--worker-class", "sync"]
    with server.gunicorn(folder, "benchmarks.prefork.scorer_app:application", options, **environment) as port:
        seen: dict[int, dict[str, int]] = {}
        while len(seen) < WORKERS or min(one["answers"] for one in seen.values()) < requests:
            _send(port, bodies, scores, 2_000)
            for _ in range(5 * WORKERS):
                facts = server.get(port, "/facts")
                seen[facts["pid"]] = facts
        return max(one["private_dirty_kb"] for one in seen.values()) / 1024


def _send(port: int, bodies: tuple[bytes, ...], scores: list[float], n: int) -> None:
    """Requests from some threads, each over a new connection: whichever worker is free takes it. Raises: WrongAnswerError."""
    wrong: list[str] = []

    def work(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for i in range(first, first + n // THREADS):
            connection.request("POST", "/", bodies[i % len(bodies)])
            answer = connection.getresponse().read()
            if json.loads(answer)["score"] != scores[i % len(bodies)]:
                wrong.append(answer.decode())
        connection.close()

    threads = [threading.Thread(target=work, args=(t * 17,)) for t in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise WrongAnswerError(f"a worker answered {wrong[0][:200]}")


@measures("overload_goodput")
def ten_times(lab: Lab) -> Figures:
    """Ten times as much as a server can do, from another process."""
    seconds = 6.0 if lab.effort.short else 60.0
    folder = lab.folder / "overload"
    folder.mkdir()
    report = overload.measure(folder, seconds)
    failed = sum(phase["failed"] for phase in report["phases"].values())
    if failed or report["recovered_s"] > 2:
        raise WrongAnswerError(f"{failed} requests failed, calm after {report['recovered_s']:.1f} s")
    note = (
        f"{report['offered_per_s']:.0f} a second offered for {seconds:.0f} s, {report['peak_per_s']:.1f} at the peak; p99 of "
        f"answers {report['p99_ms']:.0f} ms, {report['p99_ms_at_peak']:.0f} at the peak; memory +{report['grown_mb']:.1f} MB"
    )
    return {"overload_goodput": Figure.of([report["goodput"]], lower_is_better=False, note=note)}
