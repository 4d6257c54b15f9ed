"""Figures of the tree kernels alone: called from Python on ready rows, beside the bare run of the same model.

Every instruction set is forced in turn; which of its kernels runs for how many rows is timed as when a release is loaded.
Answers are compared with ONNX Runtime bit by bit, for every number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import models, reference, workloads
from benchmarks.harness import Case, Figure, alternate, check_answers, collector_off, ratio
from benchmarks.lab import Figures, Lab, UnmeasurableError, measures
from benchmarks.peers.bare_run import BareRun
from benchmarks.workloads import FRAUD_LEAN

__all__: list[str] = []

BATCHES = (1, 10, 100, 500)
POOL = 10_000  # rows in rotation
OUTPUT = "probabilities"


def _fraud_rows() -> NDArray[np.float32]:
    values = workloads.draw(FRAUD_LEAN, POOL, seed=workloads.SEED + 3)
    return reference.matrix(FRAUD_LEAN.columns, values, models.codes(FRAUD_LEAN))


def _forest(data: bytes) -> Any:
    from retailinfer.authoring.trees.onnx_graph import forest_of_graph

    return forest_of_graph(data)


def _session(forest: Any, level: str) -> Any:
    """A forest as a release has it, with the kernels of one instruction set. Raises: UnmeasurableError."""
    from retailinfer._native.trees import levels
    from retailinfer.runtime.trees import TreeSession, encode_forest

    if level not in levels():
        raise UnmeasurableError(f"needs a CPU with {level}")
    return TreeSession(encode_forest(forest), level=level)


def _predict(session: Any) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    model, column = session.model, session.forest.n_columns - 1
    return lambda rows: model.predict(rows, column=column)  # type: ignore[no-any-return]


def _over_bare_run(
    lab: Lab, data: bytes, rows: NDArray[np.float32], level: str, batches: Sequence[int]
) -> list[Figure]:
    """How many times as fast the kernel is, for each number of rows."""
    session = _session(_forest(data), level)
    predict, run = _predict(session), BareRun(data, OUTPUT)
    found = []
    for n in batches:
        feeds = run.feeds(rows[: len(rows) // n * n], n_rows=n)
        some = [feed[run.input] for feed in feeds]
        check_answers(
            f"{level} kernel, {n} rows", map(predict, some), (run(feed)[:, -1].copy() for feed in feeds)
        )
        times = alternate(
            [
                Case.over("kernel", predict, some, block=16 if n <= 10 else 1),
                Case.over("bare run", run, feeds),
            ],
            lab.scaled(0.5),
        )
        note = f"{times['kernel'].us():.4g} us; bare run {times['bare run'].us():.4g} us"
        found.append(ratio(times["bare run"], times["kernel"], lower_is_better=False, note=note))
    return found


def _level(lab: Lab, level: str) -> Figures:
    figures = _over_bare_run(lab, models.gbdt(FRAUD_LEAN.name), _fraud_rows(), level, BATCHES)
    return {f"kernel_{level}_{n}": figure for n, figure in zip(BATCHES, figures, strict=True)}


@measures("kernel_avx512_1", "kernel_avx512_10", "kernel_avx512_100", "kernel_avx512_500")
def kernel_avx512(lab: Lab) -> Figures:
    """300 trees x 31 leaves of depth 6 with AVX-512 VBMI."""
    return _level(lab, "avx512")


@measures("kernel_avx2_1", "kernel_avx2_10", "kernel_avx2_100", "kernel_avx2_500")
def kernel_avx2(lab: Lab) -> Figures:
    """The same with AVX2."""
    return _level(lab, "avx2")


@measures("kernel_baseline_1", "kernel_baseline_10", "kernel_baseline_100", "kernel_baseline_500")
def kernel_baseline(lab: Lab) -> Figures:
    """The same with what every machine has."""
    return _level(lab, "baseline")


@measures("kernel_leaves63_1", "kernel_leaves63_500", "kernel_depth8_1", "kernel_depth8_500")
def kernel_large(lab: Lab) -> Figures:
    """1,000 trees of 63 leaves, and 500 trees of depth 8, with the best kernels of this machine."""
    from retailinfer._native.trees import levels

    figures: Figures = {}
    for name, short in (("leaves-63", "leaves63"), ("depth-8", "depth8")):
        rows = models.large_rows(name, POOL, seed=workloads.SEED + 4)
        found = _over_bare_run(lab, models.large(name), rows, levels()[-1], (1, 500))
        figures |= {f"kernel_{short}_{n}": figure for n, figure in zip((1, 500), found, strict=True)}
    return figures


@measures("kernel_over_lleaves")
def kernel_lleaves(lab: Lab) -> Figures:
    """Beside lleaves, which compiles the booster with LLVM: the smallest ratio of all numbers of rows."""
    if find_spec("lleaves") is None:
        raise UnmeasurableError("needs lleaves: pip install 'retailinfer[bench]'")
    rows = _fraud_rows()
    session = _session(_forest(models.gbdt(FRAUD_LEAN.name)), "avx512")
    predict, compiled = _predict(session), _lleaves(lab.folder)
    found: list[Figure] = []
    for n in BATCHES:
        some = [rows[i : i + n].copy() for i in range(0, len(rows) // n * n, n)]
        # The converter rounds thresholds to float32 and sums floats: near, as of any ONNX model.
        check_answers(
            f"lleaves, {n} rows",
            map(predict, some),
            map(compiled, some),
            equal=lambda a, b: bool(np.allclose(a, b, atol=1e-5)),
        )
        times = alternate(
            [
                Case.over("kernel", predict, some, block=16 if n <= 10 else 1),
                Case.over("lleaves", compiled, some),
            ],
            lab.scaled(0.5),
        )
        lab.peer(f"kernel, {n} rows", times["lleaves"], times["kernel"])
        found.append(ratio(times["lleaves"], times["kernel"], lower_is_better=False))
    least = min(range(len(found)), key=lambda i: found[i].value)
    all_of_them = ", ".join(f"{figure.value:.3g} at {n}" for n, figure in zip(BATCHES, found, strict=True))
    worst = found[least]
    return {"kernel_over_lleaves": Figure(worst.value, worst.worst, worst.rounds, f"{all_of_them} rows")}


@cache
def _lleaves(folder: Path) -> Callable[[NDArray[np.float32]], Any]:
    """The compiled booster, one thread. Compiling takes some ten seconds."""
    import lleaves

    path = folder / "lleaves.txt"
    path.write_text(models.gbdt_text(FRAUD_LEAN.name), encoding="utf-8")
    model = lleaves.Model(model_file=str(path))
    try:
        model.compile()
    except AttributeError as exc:  # of llvmlite, which took away what lleaves calls
        raise UnmeasurableError(f"lleaves does not work with the llvmlite that is installed: {exc}") from exc
    return lambda rows: model.predict(rows, n_jobs=1)


@measures("kernel_with_reasons")
def kernel_with_reasons(lab: Lab) -> Figures:
    """The four strongest of 40 fields for every row, over the kernel alone: one row, then one row, in native code."""
    from retailinfer._native.reasons import ForestReasons
    from retailinfer._native.trees import levels

    forest = _forest(models.gbdt(FRAUD_LEAN.name))
    session = _session(forest, levels()[-1])
    reasons = ForestReasons(
        session.model,
        forest.arrays,
        np.arange(forest.n_features, dtype=np.int32),
        names=tuple(range(forest.n_features)),
        column=forest.n_columns - 1,
        most=4,
    )
    rows = _fraud_rows()[:1_000]
    rounds = []
    with collector_off():
        for _ in range(lab.effort.rounds):
            alone, with_reasons = reasons.time(rows)
            rounds.append(with_reasons / alone)
    note = f"{with_reasons / 1e3:.3g} us; {alone / 1e3:.3g} us without"
    return {"kernel_with_reasons": Figure.of(rounds, lower_is_better=True, note=note)}


@measures("load_forest_ms")
def load_forest(lab: Lab) -> Figures:
    """A file of about 5 MB of trees, to a forest that is checked, compiled and timed, and its first answer."""
    from retailinfer.authoring.trees.lightgbm_text import parse_text
    from retailinfer.runtime.trees import TreeSession, encode_forest

    data = encode_forest(parse_text(models.large_text(), dtype="float32").forest)
    rows = models.large_rows("leaves-63", 1, seed=workloads.SEED)
    rounds = []
    with collector_off():
        for _ in range(lab.effort.rounds):
            start = perf_counter_ns()
            session = TreeSession(data)
            _predict(session)(rows)
            rounds.append((perf_counter_ns() - start) / 1e6)
    return {"load_forest_ms": Figure.of(rounds, lower_is_better=True, note=f"{len(data) / 1e6:.2f} MB")}
