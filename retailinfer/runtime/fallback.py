"""ONNX models through onnxruntime's Python package: for wheels without the C library, and the twin of the tests.

Rules:
  * The same interface, checks and errors as `_native.ort.OrtModel`; the checks are that module's own functions.
  * This file is the only one that imports `onnxruntime` for serving, and it does so when the first model is opened.
  * Telemetry is switched off before the import.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from retailinfer._native import ort
from retailinfer.errors import (
    ConfigError,
    ModelError,
    RetailInferError,
    ScoreError,
    SessionError,
    clip,
)

if TYPE_CHECKING:
    from retailinfer.runtime.session import IoEntry

__all__ = ["PythonSession"]

_DTYPES = {
    "float": 1,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "string": 8,
    "bool": 9,
    "float16": 10,
    "double": 11,
    "uint32": 12,
    "uint64": 13,
}
_KINDS = {
    "seq": "a sequence",
    "map": "a map",
    "optional": "an optional value",
    "sparse_tensor": "a sparse tensor",
    "opaque": "an opaque value",
}
_SCORE_DTYPES = {1: "float32", 11: "float64", 7: "int64"}


class PythonSession:
    """One ONNX model in one `onnxruntime.InferenceSession`: CPU, one thread. Safe to use from many threads.

    The Python API always releases the GIL, so `gil=` is checked and has no effect.
    """

    backend: Literal["python"] = "python"

    def __init__(self, model_bytes: bytes | bytearray | memoryview, *, optimize: bool = True) -> None:
        ort.check_model_bytes(model_bytes)
        ort.guard_environment()
        try:
            import onnxruntime  # noqa: PLC0415 - see the rules above
        except ImportError as exc:
            raise ConfigError(
                "the package `onnxruntime` cannot be imported", hint="pip install onnxruntime"
            ) from exc
        options = onnxruntime.SessionOptions()
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
            if optimize
            else onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
        # As in the C implementation; the reasons are there.
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        options.log_severity_level = 4  # what is wrong is in the exception, with less of the machine in it
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.add_session_config_entry("session.load_model_format", "ONNX")
        options.add_session_config_entry("session.set_denormal_as_zero", "0")
        self.version: str = onnxruntime.__version__
        try:
            self._session = onnxruntime.InferenceSession(
                bytes(model_bytes), options, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:  # noqa: BLE001 - its exceptions share no base
            raise ModelError(f"onnxruntime {self.version} refuses the model: {_message(exc)}") from None
        self.inputs = tuple(_io_entry(node, "input") for node in self._session.get_inputs())
        self.outputs = tuple(_io_entry(node, "output") for node in self._session.get_outputs())
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.n_heads = 0
        self._heads: list[tuple[int, int]] = []

    def run(
        self,
        feeds: Mapping[str, object],
        outputs: Sequence[str] | None = None,
        *,
        gil: Literal["hold", "release"] = "hold",
    ) -> dict[str, NDArray[Any]]:
        """As `OrtModel.run`."""
        _check_gil(gil)
        arrays = ort.check_feeds(self.inputs, feeds)
        numbers = ort.output_numbers(self.outputs, outputs)
        names = [self.outputs[number][0] for number in numbers]
        return dict(zip(names, self._run(arrays, names), strict=True))

    def select_score(self, output: int, column: int = 0) -> None:
        """As `OrtModel.select_score`."""
        self.select_scores([(output, column)])

    def select_scores(self, heads: Sequence[tuple[int, int]]) -> None:
        """As `OrtModel.select_scores`."""
        if not 1 <= len(heads) <= 16:
            raise ModelError(f"Expected 1 to 16 scores to be chosen, got {len(heads)}")
        for output, column in heads:
            if not 0 <= output < len(self.outputs):
                raise ModelError(f"Expected the number of an output, got {output}")
            name, dtype, shape = self.outputs[output]
            if dtype not in _SCORE_DTYPES:
                raise ModelError(
                    f"Expected a score of dtype float32, float64 or int64, but output `{name}` is "
                    f"{ort.NUMPY_DTYPES[dtype].name if dtype != ort.STRING else 'string'}"
                )
            if column < 0 or sum(size is not None and size != 1 for size in shape[1:]) > 1:
                raise ModelError(
                    f"the score cannot be column {column} of output `{name}`, which has {len(shape)} dimensions; "
                    "a score is one column of (rows, columns)"
                )
        self._heads = list(heads)
        self.n_heads = len(heads)

    def scores(
        self, tensors: Sequence[object], *, gil: Literal["hold", "release"] = "hold"
    ) -> NDArray[np.float32]:
        """As `OrtModel.scores`."""
        _check_gil(gil)
        if not self._heads:
            raise SessionError("no score is chosen", hint="call select_score(output, column) first")
        arrays, n_rows = ort.check_tensors(self.inputs, tensors)
        result = np.empty((self.n_heads, n_rows), np.float32)
        if n_rows:
            wanted = list(dict.fromkeys(output for output, _ in self._heads))
            values = dict(zip(wanted, self._run(arrays, [self.outputs[w][0] for w in wanted]), strict=True))
            for head, (output, column) in enumerate(self._heads):
                result[head] = self._column(output, column, values[output], n_rows)
        return result[0] if self.n_heads == 1 else result

    def _run(self, arrays: list[NDArray[Any]], names: list[str]) -> list[NDArray[Any]]:
        feeds: dict[str, NDArray[Any]] = {}
        for (name, dtype, _), array in zip(self.inputs, arrays, strict=True):
            if dtype == ort.STRING:
                ort.encode_strings(
                    array, f"$.{name}"
                )  # for its errors: the package would call str() on anything
            feeds[name] = array
        try:
            values = self._session.run(names, feeds)
        except RetailInferError:
            raise
        except Exception as exc:  # noqa: BLE001 - its exceptions share no base
            raise SessionError(f"the model failed to run: {_message(exc)}") from None
        return [np.asarray(value) for value in values]

    def _column(self, output: int, column: int, value: NDArray[Any], n_rows: int) -> NDArray[np.float32]:
        name, dtype, _ = self.outputs[output]
        if value.ndim == 0 and n_rows == 1:
            value = value.reshape(1)
        n_wide = sum(size != 1 for size in value.shape[1:])
        if (
            value.dtype != ort.NUMPY_DTYPES[dtype]
            or value.ndim == 0
            or value.shape[0] != n_rows
            or n_wide > 1
        ):
            raise SessionError(
                f"Expected output `{name}` to be {_SCORE_DTYPES[dtype]} with one score per row for {n_rows} rows, "
                f"got {value.dtype} with shape {value.shape}"
            )
        columns = value.reshape(n_rows, -1)
        if column >= columns.shape[1]:
            raise SessionError(
                f"Expected the score in column {column} of output `{name}`, which has {columns.shape[1]} columns"
            )
        with np.errstate(over="ignore"):  # a double that float32 cannot hold is reported below
            scores: NDArray[np.float32] = columns[:, column].astype(np.float32)
        finite = np.isfinite(scores)
        if not finite.all():
            row = int(np.argmin(finite))
            raise ScoreError(f"Expected a finite score, got {scores[row]} from output `{name}` in row {row}")
        return scores


def _io_entry(node: Any, side: str) -> IoEntry:
    match = re.fullmatch(r"(\w+)\((.*)\)", node.type)
    kind, element = match.groups() if match else (node.type, "")
    if kind != "tensor":
        hint = (
            "unwrap ZipMap when packing (`retailinfer.pack` does), or export the model with zipmap=False"
            if side == "output" and kind in {"seq", "map"}
            else "export the model so that it takes and gives tensors"
        )
        raise ModelError(
            f"Expected tensors only, but {side} `{node.name}` is {_KINDS.get(kind, 'of unknown type')}",
            hint=hint,
        )
    if element not in _DTYPES:
        raise ModelError(
            f"{side} `{node.name}` is {element}, which NumPy does not have",
            hint="cast it to float32 inside the model",
        )
    if len(node.shape) > (8 if side == "input" else 64):
        raise ModelError(
            f"{side} `{node.name}` has {len(node.shape)} dimensions; inputs have at most 8, outputs 64"
        )
    shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in node.shape)
    return node.name, _DTYPES[element], shape


def _check_gil(gil: str) -> None:
    if gil not in {"hold", "release"}:
        raise ConfigError(f'Expected gil="hold" or gil="release", got {clip(gil)}')


def _message(exc: Exception) -> str:
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(exc))
    return ort.clean_message(text)
