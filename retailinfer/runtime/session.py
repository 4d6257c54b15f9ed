"""One ONNX model, ready to run: which implementation is used, and what both promise.

Rules:
  * Both implementations take and give the same arrays, have the same bits, and raise the same errors; one set of tests
    holds them to it.
  * The C API is used wherever onnxruntime's wheel brings its library; falling back is said once, as a warning.
The C implementation is `retailinfer._native.ort`, the other one `retailinfer.runtime.fallback`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np

from retailinfer._native import ort
from retailinfer.errors import ConfigError, clip

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Backend", "IoEntry", "ModelSession", "onnxruntime_version", "open_session"]

Backend = Literal["auto", "c", "python"]

IoEntry = tuple[str, int, tuple[int | None, ...]]
"""Name, ONNX dtype number, shape with None where it is dynamic."""

_said_fallback = False


class ModelSession(Protocol):
    """One model in one session. The methods are described in `_native/ort.pyi`."""

    @property
    def backend(self) -> Literal["c", "python", "trees"]: ...
    @property
    def version(self) -> str:
        """Version of ONNX Runtime that runs the model; empty for a forest, which does without it."""
        ...

    @property
    def inputs(self) -> tuple[IoEntry, ...]: ...
    @property
    def outputs(self) -> tuple[IoEntry, ...]: ...
    @property
    def metadata(self) -> dict[str, str]: ...
    @property
    def n_heads(self) -> int:
        """Scores per row; 0 before `select_score`."""
        ...

    def run(
        self,
        feeds: Mapping[str, object],
        outputs: Sequence[str] | None = None,
        *,
        gil: Literal["hold", "release"] = "hold",
    ) -> dict[str, NDArray[Any]]: ...
    def select_score(self, output: int, column: int = 0) -> None: ...
    def select_scores(self, heads: Sequence[tuple[int, int]]) -> None: ...
    def scores(
        self, tensors: Sequence[object], *, gil: Literal["hold", "release"] = "hold"
    ) -> NDArray[np.float32]: ...


def open_session(
    model_bytes: bytes | bytearray | memoryview,
    *,
    backend: Backend = "auto",
    optimize: bool = True,
    many_rows: bool = False,
) -> ModelSession:
    """Open a model from its bytes.

    Args:
        model_bytes: a whole ONNX file; weights in other files are refused.
        backend: "c" for the library of onnxruntime's wheel, "python" for its Python package, "auto" for the first of
            them that is there.
        optimize: let ONNX Runtime rewrite the graph.
        many_rows: the model runs on hundreds of rows at once: ONNX Runtime keeps the memory between its operators, planned
            once for each number of rows, instead of asking the C library for it in every run. For an int8 network of 500
            rows that was 10 us of 140, in a process whose heap is in use; for one row it gains nothing.

    Raises: ModelError (the bytes), ConfigError (onnxruntime is missing, too old, or `backend` is none of the three).
    """
    if backend not in get_args(Backend):
        raise ConfigError(f'Expected backend "auto", "c" or "python", got {clip(backend)}')
    if backend == "c" or (backend == "auto" and ort.library_path() is not None):
        return ort.OrtModel(model_bytes, optimize=optimize, arena=many_rows, mem_pattern=many_rows)
    if backend == "auto":
        _say_fallback()
    from retailinfer.runtime import fallback  # noqa: PLC0415 - onnxruntime's Python package is 16 MB and a second copy

    return fallback.PythonSession(model_bytes, optimize=optimize)


def onnxruntime_version(sessions: Iterable[ModelSession]) -> str:
    """Of the models that ONNX Runtime runs; empty where it runs none."""
    return next((session.version for session in sessions if session.version), "")


def _say_fallback() -> None:
    global _said_fallback  # noqa: PLW0603 - once per process is the point
    if not _said_fallback:
        _said_fallback = True
        warnings.warn(
            "this wheel of onnxruntime has no C library beside its Python module: models run through its Python API, "
            "which costs 3-4 us more per call",
            RuntimeWarning,
            stacklevel=3,
        )
