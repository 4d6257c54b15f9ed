"""The bare run: Python's `InferenceSession.run` on rows that are ready, with only the score asked for.

It is what a service does at least, before features, checks and decisions: the measure of what those cost. One thread,
no spinning, otherwise onnxruntime's defaults. The demo's only use of the onnxruntime package.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retailinfer._native.ort import guard_environment

if TYPE_CHECKING:
    from retailinfer.release.manifest import Manifest

__all__ = ["BareRun"]


class BareRun:
    """The score model of a release in a session of its own."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        guard_environment()  # telemetry is off before the package loads
        import onnxruntime

        score = manifest.score
        if score is None:
            raise ValueError(f"release {manifest.release} has no score")
        (model,) = (one for one in manifest.models if one.role == score.role)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        data = (folder / model.file).read_bytes()
        self._run = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run
        (self._input,) = model.inputs
        self._outputs = [score.output]
        self._column = score.column

    def feeds(self, matrix: NDArray[np.float32], *, rows: int = 1) -> list[dict[str, NDArray[np.float32]]]:
        """One feed for every `rows` rows, each an array of its own."""
        plain = np.ascontiguousarray(matrix)
        return [{self._input: plain[i : i + rows].copy()} for i in range(0, len(plain), rows)]

    def __call__(self, feed: dict[str, NDArray[np.float32]]) -> Any:
        return self._run(self._outputs, feed)

    def scores(self, feed: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """The score of each row of a feed."""
        (output,) = self(feed)
        return np.asarray(output, np.float32).reshape(len(feed[self._input]), -1)[:, self._column]
