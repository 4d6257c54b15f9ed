"""Bare run: Python's `InferenceSession.run` on rows that are ready, the denominator of most figures.

The feed dicts exist before the clock starts; only the score output is asked for; one thread, no spinning; no telemetry.
So this is the time of the model alone, as a Python program can have it, with no features, no decision and no JSON.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BareRun", "import_onnxruntime"]

Feed = dict[str, NDArray[np.float32]]


def import_onnxruntime() -> Any:
    """The package, its telemetry off: the variable must be there before the import, the call alone comes too late."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime


class BareRun:
    """One session and its score output."""

    def __init__(self, model: bytes, output: str) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        self._outputs = [output]
        self._run = self.session.run

    def feeds(self, matrix: NDArray[np.float32], *, n_rows: int = 1) -> list[Feed]:
        """One feed for every `n_rows` rows, each its own C-contiguous array."""
        return [{self.input: matrix[i : i + n_rows].copy()} for i in range(0, len(matrix), n_rows)]

    def __call__(self, feed: Feed) -> Any:
        return self._run(self._outputs, feed)[0]

    def scores(self, feeds: Sequence[Feed]) -> NDArray[np.float32]:
        """The score of every row: the last column of the output (the positive class, or the only column)."""
        return np.concatenate([self(feed).reshape(len(feed[self.input]), -1)[:, -1] for feed in feeds])
