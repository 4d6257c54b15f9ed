"""Figures of whole processes: import, load, and what a process without ONNX Runtime saves."""

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

# What a server names; where the figure of the import ends, that of the load begins.
_NAMES = "from retailinfer import FeatureSpec, Policy, Ranker, Scorer, Store"

_IMPORT = f"""
import sys, time
import numpy, msgspec, msgspec.json
start = time.perf_counter_ns()
{_NAMES}
print(time.perf_counter_ns() - start)
"""

_LOAD = f"""
import pathlib, sys, time
import numpy, msgspec, msgspec.json
{_NAMES}
body = pathlib.Path(sys.argv[2]).read_bytes()
start = time.perf_counter_ns()
answer = Scorer.load(sys.argv[1], trust="unsigned").score_json(body)
print(time.perf_counter_ns() - start)
print(answer.decode())
status = pathlib.Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
print(next((line.split()[1] for line in lines if line.startswith("RssAnon")), 0))
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


@measures("load_ms", "load_trees_ms", "trees_only_saved_mb")
def load(lab: Lab) -> Figures:
    """From a folder to the first answer in a new interpreter, with a release of 1 MB: through ONNX Runtime, and through trees
    without its library.
    """
    from benchmarks import library

    model = models.gbdt(FRAUD_LEAN.name, n_trees=520)
    body = lab.folder / "body.json"
    body.write_bytes(lab.fraud_bodies[0])
    run = BareRun(model, "probabilities")
    want = run.scores(run.feeds(lab.fraud_matrix[:1]))
    found: dict[str, tuple[list[float], list[float], int]] = {}
    for engine in ("onnx", "trees"):
        release = library.pack_fraud(lab.folder / f"1mb-{engine}", lab.fraud_spec, model, engine=engine)
        size = sum(path.stat().st_size for path in release.iterdir())
        if size < 1_000_000:
            raise RuntimeError(f"the release has {size} bytes; the figure is about 1 MB: give it more trees")
        times, memory = [], []
        for out in _in_new_interpreters(lab, _LOAD, str(release), str(body), rounds=lab.effort.rounds):
            check_answers("first answer", np.array([json.loads(out[1])["score"]], np.float32), want)
            times.append(int(out[0]) / 1e6)
            memory.append(int(out[2]) / 1024)
        found[engine] = times, memory, size
    saved = [a - b for a, b in zip(found["onnx"][1], found["trees"][1], strict=True)]
    return {
        "load_ms": Figure.of(found["onnx"][0], lower_is_better=True, note=f"{found['onnx'][2] / 1e6:.2f} MB"),
        "load_trees_ms": Figure.of(
            found["trees"][0], lower_is_better=True, note=f"{found['trees'][2] / 1e6:.2f} MB"
        ),
        "trees_only_saved_mb": Figure.of(
            saved, lower_is_better=False, note="anonymous memory of the process"
        ),
    }
