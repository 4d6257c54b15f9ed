"""Figures beside services: a model server on loopback, Feast's SDK over its online stores."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import msgspec
import numpy as np

from benchmarks import models
from benchmarks.harness import Case, Figure, alternate, ratio
from benchmarks.lab import Figures, Lab, UnmeasurableError, measures
from benchmarks.measures.scores import check_fraud_answers
from benchmarks.report import PeerRow
from benchmarks.workloads import FRAUD_LEAN


@measures("http_ort_p50", "http_ort_p99", "http_trees_p50", "http_trees_p99")
def http(lab: Lab) -> Figures:
    """The same bodies through FastAPI on loopback."""
    from benchmarks.peers import fastapi_app
    from retailinfer._native.trees import levels

    bodies, forest = lab.fraud_bodies, lab.tree_scorer(levels()[-1])
    with fastapi_app.serve(models.gbdt(FRAUD_LEAN.name), lab.codes) as client:
        check_fraud_answers(lab, "FastAPI", client.post, bodies[:500])
        check_fraud_answers(lab, "library", lab.scorer.score_json, bodies[:500])
        check_fraud_answers(lab, "library, trees", forest.score_json, bodies[:500])
        times = alternate(
            [
                Case.over("library", lab.scorer.score_json, bodies),
                Case.over("trees", forest.score_json, bodies),
                Case.over("FastAPI + uvicorn, loopback", client.post, bodies),
            ],
            lab.scaled(1.5),
        )
    peer, library = times["FastAPI + uvicorn, loopback"], times["library"]
    lab.peer("fraud-lean, bytes to bytes", peer, library)
    return {
        "http_ort_p50": ratio(peer, library, lower_is_better=False),
        "http_ort_p99": ratio(peer, library, quantile=0.99, lower_is_better=False),
        "http_trees_p50": ratio(peer, times["trees"], lower_is_better=False),
        "http_trees_p99": ratio(peer, times["trees"], quantile=0.99, lower_is_better=False),
    }


@measures("feast_redis", "feast_redis_100", "feast_redis_1", "feast_sqlite_100", "feast_sqlite_1")
def feast(lab: Lab) -> Figures:
    """Rows beside Feast's SDK on the same data, both timed in the environment that has Feast (beside_feast.py)."""
    from benchmarks import library
    from benchmarks.beside_feast import Beside
    from benchmarks.peers import redis_server

    python = os.environ.get("FEAST_PYTHON") or (sys.executable if importlib.util.find_spec("feast") else "")
    if not python:
        raise UnmeasurableError("needs the environment that `make bench` makes for Feast: FEAST_PYTHON")
    if redis_server.program() is None:
        raise UnmeasurableError("needs a redis-server")
    effort = lab.scaled(0.5)
    release = library.pack_untrained(lab.folder, "items", library.item_spec())
    done = subprocess.run(
        [python, "-m", "benchmarks.beside_feast", str(release), str(effort.seconds), str(effort.rounds)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the part beside Feast failed:\n{done.stderr[-3000:]}")
    found = msgspec.json.decode(done.stdout.splitlines()[-1], type=Beside)
    figures = {}
    for one in found.contestants:
        what = f"{one.n_keys} rows of 32 floats"
        lab.peers.append(PeerRow(what, f"Feast {found.feast}, {one.store}", *one.feast_us, one.library_us[0]))
        name = f"feast_{one.store.lower()}" + ("" if one.n_keys == 500 else f"_{one.n_keys}")
        if name == "feast_sqlite":  # no figure: Redis is what people scale with
            continue
        rounds = np.array(one.feast_rounds_us) / np.array(one.library_rounds_us)
        note = f"{one.feast_us[0]:.4g} us over {one.library_us[0]:.4g} us"
        figures[name] = Figure.of(rounds, lower_is_better=False, note=note)
    return figures
