"""Figures of whole processes: import, load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np

from benchmarks import models
from benchmarks.harness import Figure, check_answers
from benchmarks.lab import Figures, Lab, measures
from benchmarks.peers.bare_run import BareRun
from benchmarks.workloads import FRAUD_LEAN

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
