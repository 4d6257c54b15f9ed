"""The bare run: the model alone on rows that are ready, called from Python: the measure of what everything else costs.

For an ONNX model that is `InferenceSession.run`: one thread, no spinning, otherwise onnxruntime's defaults; only what the
score needs is asked for. The command line's only use of the onnxruntime package. For a forest it is the kernels' own call,
since the release holds nothing that ONNX Runtime could run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from retailinfer._native.ort import guard_environment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer.release.bundle import Bundle

__all__ = ["BareRun"]


class BareRun:
    """The models of a release in sessions of their own, run one after the other.

    A feed is a mapping of (kind, name) of what the models take - `("tensor", "features")` - to an array.
    """

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.engines: tuple[str, ...] = tuple(sorted({model.engine for model in manifest.models}))
        self.version = ""  # of ONNX Runtime, where it runs a model
        self._score = manifest.score
        used = {(s.role, s.name) for m in manifest.models for s in m.inputs.values() if s.kind == "output"}
        if self._score is not None:
            used.add((self._score.role, self._score.output))
        self._steps: list[tuple[str, Any, list[str], list[tuple[str, str, str, str | None]]]] = []
        for model in manifest.models:
            run, outputs = self._open(bundle.files[model.file], model.engine)
            wanted = [name for name in outputs if (model.role, name) in used]
            if self._score is None and model is manifest.models[-1]:
                wanted = outputs
            if not wanted:
                continue  # nothing reads it: serving runs it all the same, a bare run would not
            sources = [(name, str(s.kind), s.name, s.role) for name, s in model.inputs.items()]
            self._steps.append((model.role, run, wanted, sources))

    def _open(self, data: bytes, engine: str) -> tuple[Callable[[list[str], Any], Sequence[Any]], list[str]]:
        """A model's run (names of outputs, feed) -> arrays, and the names of all its outputs."""
        if engine == "trees":
            from retailinfer.runtime.trees import TreeSession

            trees = TreeSession(data)
            return lambda wanted, feed: [*trees.run(feed, wanted).values()], [o[0] for o in trees.outputs]
        guard_environment()  # telemetry is off before the package loads
        import onnxruntime

        self.version = str(onnxruntime.__version__)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return session.run, [o.name for o in session.get_outputs()]

    def prepare(self, arrays: Mapping[tuple[str, str], NDArray[Any]]) -> dict[str, NDArray[Any]] | Any:
        """What `__call__` takes for these arrays: for a single model the very feed that its session gets."""
        if len(self._steps) == 1:
            return {name: arrays[kind, label] for name, kind, label, _ in self._steps[0][3]}
        return arrays

    def __call__(self, prepared: Any) -> Any:
        """Run; returns the score's output, or all outputs of the last model."""
        if len(self._steps) == 1:
            _, run, wanted, _ = self._steps[0]
            return run(wanted, prepared)
        done: dict[tuple[str | None, str], Any] = {}
        found: Sequence[Any] = ()
        for role, run, wanted, sources in self._steps:
            feed = {
                name: done[earlier, label] if kind == "output" else prepared[kind, label]
                for name, kind, label, earlier in sources
            }
            found = run(wanted, feed)
            done.update({(role, name): value for name, value in zip(wanted, found, strict=True)})
        if self._score is not None:
            return [done[self._score.role, self._score.output]]
        return found

    def scores(self, prepared: Any) -> NDArray[np.float32]:
        """The score of each row, rounded to float32 once."""
        assert self._score is not None
        outputs = self(prepared)
        if len(self._steps) == 1:
            values = np.asarray(outputs[self._steps[0][2].index(self._score.output)])
        else:
            values = np.asarray(outputs[0])
        column: NDArray[np.float32] = values.reshape(len(values), -1)[:, self._score.column].astype(
            np.float32
        )
        return column
