"""Tree ensembles without ONNX Runtime: the file format of `*.trees`, and the session that runs one.

Rules:
  * A file is a header (JSON) and flat arrays, each at a multiple of 64 bytes; nothing else, nothing left over. Its meaning is
    checked by `_native.trees` when the forest is built, so a file that loads can be run.
  * The session has the interface of `ModelSession`, and one output: columns of float32.
Kernels: `_native/trees.h`. What makes such files: `authoring/trees/`.
"""

# No `from __future__ import annotations` here: msgspec would compile every one of them when a release is loaded.

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from retailinfer._native.trees import NORMS, POSTS, SIZES, TreeModel
from retailinfer.errors import (
    ConfigError,
    FeatureTypeError,
    ModelError,
    ScoreError,
    SessionError,
    ShapeError,
    clip,
)
from retailinfer.runtime.session import IoEntry

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ARRAYS", "Forest", "TreeSession", "decode_forest", "encode_forest"]

MAGIC = b"RITREES2"
MAX_HEADER = 1 << 16
MAX_CELLS = 1 << 30
ALIGN = 64
MAX_TIMED_FEATURES = 1 << 13  # timing makes 512 rows of them

# Name -> dtype, in the order in which they stand in the file. What they mean: `_native/trees.pyi`.
ARRAYS: dict[str, Any] = {
    "roots": np.int32,
    "feature": np.int32,
    "threshold": np.float64,
    "left": np.int32,
    "right": np.int32,
    "missing_left": np.uint8,
    "missing": np.uint8,
    "rule": np.uint8,
    "category": np.int32,
    "set_ends": np.int64,
    "set_words": np.uint32,
    "values": np.float64,
    "targets": np.int32,
    "base": np.float64,
    "cover": np.float64,
}
Cells = Annotated[int, Meta(ge=0, le=MAX_CELLS)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands before the arrays.

    Attributes:
        input, output: names of the one input (rows, n_features) and the one output (rows, n_columns).
        n_columns: 2 for one sum that becomes two probabilities, else n_outputs.
        post, post_scale, norm, base_first, doubles, wide, average, per_output: as in `TreeModel`.
        cells: array -> number of cells.
    """

    input: Name
    output: Name
    n_features: Annotated[int, Meta(ge=1, le=1 << 24)]
    n_outputs: Annotated[int, Meta(ge=1, le=1024)]
    n_columns: Annotated[int, Meta(ge=1, le=1024)]
    post: str = "none"
    post_scale: float = 1.0
    norm: str = "none"
    base_first: bool = False
    doubles: bool = False
    wide: bool = False
    average: bool = False
    per_output: bool = False
    cells: dict[str, Cells]


class Forest(msgspec.Struct, frozen=True, kw_only=True):
    """A tree ensemble as parsers bring it: see `Header` for the fields, `_native/trees.pyi` for the arrays."""

    input: str
    output: str
    n_features: int
    arrays: "dict[str, NDArray[Any]]"
    n_outputs: int = 1
    n_columns: int = 1
    post: str = "none"
    post_scale: float = 1.0
    norm: str = "none"
    base_first: bool = False
    doubles: bool = False
    wide: bool = False
    average: bool = False
    per_output: bool = False

    def model(self, level: str | None = None) -> TreeModel:
        """Compiled for this machine.

        Raises: ModelError for what is no forest, wherever it came from; ConfigError for a level that is not here.
        """
        if self.n_columns != self.n_outputs and (self.n_columns, self.n_outputs) != (2, 1):
            raise ModelError(
                f"Expected {self.n_outputs} columns, or 2 for one sum, got {self.n_columns} - at the header of the forest"
            )
        if self.post not in POSTS or self.norm not in NORMS:
            raise ModelError(
                f"Expected a last step and a norm that are known, got {clip(self.post)} and {clip(self.norm)} "
                "- at the header of the forest"
            )
        try:
            return TreeModel(
                self.arrays,
                n_features=self.n_features,
                n_outputs=self.n_outputs,
                post=self.post,
                n_columns=self.n_columns,
                post_scale=self.post_scale,
                norm=self.norm,
                base_first=self.base_first,
                doubles=self.doubles,
                wide=self.wide,
                average=self.average,
                per_output=self.per_output,
                level=level,
            )
        except ShapeError as exc:
            raise ModelError(f"the arrays of the forest do not fit: {exc}") from exc


def encode_forest(forest: Forest) -> bytes:
    """The file of a forest."""
    fields = {name: getattr(forest, name) for name in Header.__struct_fields__ if name != "cells"}
    header = Header(**fields, cells={name: len(forest.arrays[name]) for name in ARRAYS})
    text = msgspec.json.encode(header)
    parts = [MAGIC, len(text).to_bytes(4, "little"), text]
    size = sum(map(len, parts))
    for name, dtype in ARRAYS.items():
        parts.append(b"\0" * (-size % ALIGN))
        parts.append(np.ascontiguousarray(forest.arrays[name], np.dtype(dtype).newbyteorder("<")).tobytes())
        size += len(parts[-1]) + len(parts[-2])
    return b"".join(parts)


def decode_forest(data: bytes | bytearray | memoryview) -> Forest:
    """The inverse of `encode_forest`. Raises: ModelError for anything that it does not write."""
    data = bytes(data)
    if data[:8] != MAGIC:
        raise ModelError(f"Expected a file of trees ({MAGIC.decode()}), got {clip(data[:8])}")
    size = int.from_bytes(data[8:12], "little")
    if size > MAX_HEADER or len(data) < 12 + size:
        raise ModelError(f"Expected a header of at most {MAX_HEADER} bytes inside {len(data)}, got {size}")
    try:
        header = msgspec.json.decode(data[12 : 12 + size], type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ModelError(f"the header of the trees is not one: {clip(str(exc), 200)}") from exc
    if set(header.cells) != set(ARRAYS):
        raise ModelError(f"Expected the arrays {', '.join(ARRAYS)}, got {clip(sorted(header.cells), 200)}")
    arrays: dict[str, NDArray[Any]] = {}
    at = 12 + size
    for name, dtype in ARRAYS.items():
        kind = np.dtype(dtype).newbyteorder("<")
        start = at + -at % ALIGN
        at = start + header.cells[name] * kind.itemsize
        if at > len(data):
            raise ModelError(f"the trees are cut short - at array `{name}`", hint="copy the release again")
        arrays[name] = np.frombuffer(data, kind, header.cells[name], start).astype(dtype, copy=False)
    if at != len(data):
        raise ModelError(f"Expected {at} bytes of trees, got {len(data)}", hint="copy the release again")
    fields = {name: getattr(header, name) for name in Header.__struct_fields__ if name != "cells"}
    return Forest(**fields, arrays=arrays)


class TreeSession:
    """One forest, ready to run; safe to use from many threads. The methods are those of `ModelSession`.

    level: instruction set of the kernels, "baseline", "avx2" or "avx512", or a level and a kernel, "avx2/walk-8"; None = what
    the setting RETAILINFER_TREES says, else the best ones here. calibrate: time the kernels, for calls of so many rows as
    `sizes` has; else, and for more than 8,192 features, the plan is a guess. None of that can change an answer.
    """

    backend: Literal["trees"] = "trees"
    version = ""  # of ONNX Runtime, which has no part in it
    n_heads = 0

    def __init__(
        self,
        data: bytes | bytearray | memoryview,
        *,
        level: str | None = None,
        calibrate: bool = True,
        sizes: Sequence[int] = SIZES,
    ) -> None:
        forest = decode_forest(data)
        self.forest = forest
        level, _, kernel = (level or os.environ.get("RETAILINFER_TREES") or "").partition("/")
        self.model = forest.model(level or None)
        if kernel:
            self.model.force(kernel)
        elif calibrate and forest.n_features <= MAX_TIMED_FEATURES:
            self.model.calibrate(sizes=sizes)
        self.inputs: tuple[IoEntry, ...] = (
            (forest.input, 11 if forest.wide else 1, (None, forest.n_features)),
        )
        self.outputs: tuple[IoEntry, ...] = ((forest.output, 1, (None, forest.n_columns)),)
        self.metadata: dict[str, str] = {}
        self.column = 0

    def run(
        self,
        feeds: Mapping[str, object],
        outputs: Sequence[str] | None = None,
        *,
        gil: Literal["hold", "release"] = "hold",
    ) -> "dict[str, NDArray[Any]]":
        """All columns of the one output, shape (rows, n_columns)."""
        del gil  # released; there is nothing to be gained by holding it here
        name, output = self.forest.input, self.forest.output
        if set(feeds) != {name}:
            raise FeatureTypeError(f"Expected the array `{name}`, got {clip([*feeds], 200)}", path="$")
        if outputs is not None and list(outputs) != [output]:
            raise ConfigError(f"Expected the output `{output}`, got {clip(list(outputs), 200)}")
        return {output: self.model.predict_all(self._rows(feeds[name]))}

    def select_score(self, output: int, column: int = 0) -> None:
        """As `OrtModel.select_score`."""
        self.select_scores([(output, column)])

    def select_scores(self, heads: Sequence[tuple[int, int]]) -> None:
        """As `OrtModel.select_scores`, for one score."""
        if len(heads) != 1 or heads[0][0] != 0 or not 0 <= heads[0][1] < self.forest.n_columns:
            raise ModelError(
                f"Expected one score out of {self.forest.n_columns} columns of `{self.forest.output}`, got {clip(heads)}"
            )
        self.column = heads[0][1]
        self.n_heads = 1

    def scores(
        self, tensors: Sequence[object], *, gil: Literal["hold", "release"] = "hold"
    ) -> "NDArray[np.float32]":
        """As `OrtModel.scores`."""
        del gil
        if not self.n_heads:
            raise SessionError("no score is chosen", hint="call select_score(output, column) first")
        if len(tensors) != 1:
            raise ShapeError(f"Expected 1 tensor, got {len(tensors)}", path="$")
        scores: NDArray[np.float32] = self.model.predict(self._rows(tensors[0]), column=self.column)
        finite = np.isfinite(scores)
        if not finite.all():
            row = int(np.argmin(finite))
            raise ScoreError(
                f"Expected a finite score, got {scores[row]} from output `{self.forest.output}` in row {row}"
            )
        return scores

    def _rows(self, value: object) -> "NDArray[Any]":
        if not isinstance(value, np.ndarray):
            raise FeatureTypeError(
                f"Expected a NumPy array, got `{type(value).__name__}` {clip(value)}",
                path=f"$.{self.forest.input}",
                hint="convert it with numpy.asarray and an explicit dtype",
            )
        wanted = np.dtype(np.float64 if self.forest.wide else np.float32)
        if value.dtype.newbyteorder("=") != wanted:
            raise FeatureTypeError(
                f"Expected {wanted.name}, got {value.dtype}",
                path=f"$.{self.forest.input}",
                hint="cast it yourself",
            )
        if value.ndim != 2 or value.shape[1] != self.forest.n_features:
            raise ShapeError(
                f"Expected shape (rows, {self.forest.n_features}), got {value.shape}",
                path=f"$.{self.forest.input}",
            )
        return np.ascontiguousarray(value, wanted)
