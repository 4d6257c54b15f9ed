"""Running the model alone: the trees and the network, 1, 100 and 500 rows, C API and Python package."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import models, workloads
from benchmarks.conftest import Rotate, over
from benchmarks.measures import Lab
from benchmarks.peers.bare_run import BareRun
from retailinfer.runtime.session import Backend, open_session

ROWS = (1, 100, 500)


@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize("backend", ["c", "python"])
def test_run_trees(lab: Lab, rotate: Rotate, backend: Backend, n_rows: int) -> None:
    """300 trees x 31 leaves."""
    _run(models.gbdt("fraud-lean"), lab.fraud_matrix, "probabilities", backend, n_rows, rotate)


@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize("backend", ["c", "python"])
def test_run_network(lab: Lab, rotate: Rotate, backend: Backend, n_rows: int) -> None:
    """64-128-64-1, static int8."""
    drawn = workloads.rank_requests()
    rows = np.concatenate([models.rank_matrix(drawn.contexts[i], drawn.candidates[i]) for i in range(8)])
    _run(models.mlp(), rows, "score", backend, n_rows, rotate)


def _run(model: bytes, matrix: Any, output: str, backend: Backend, n_rows: int, rotate: Rotate) -> None:
    session = open_session(model, backend=backend)
    names = [name for name, _, _ in session.outputs]
    session.select_score(names.index(output), session.outputs[names.index(output)][2][-1] - 1)  # type: ignore[operator]
    bare = BareRun(model, output)
    feeds = bare.feeds(matrix[: len(matrix) // n_rows * n_rows], n_rows=n_rows)
    tensors = [[feed[bare.input]] for feed in feeds]
    np.testing.assert_array_equal(session.scores(tensors[1]), bare.scores(feeds[1:2]))
    rotate(session.scores, over(tensors), block=100 if n_rows == 1 else 4, rounds=200 if n_rows == 1 else 50)
