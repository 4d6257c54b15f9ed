"""Releases of arrays: no feature spec, the caller brings what the models take (`scorer.score_arrays`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from retailinfer.authoring.describe import Found
from retailinfer.authoring.preflight import DTYPE_NAMES
from retailinfer.authoring.trial import Outputs, Trial
from retailinfer.authoring.wiring import Part, find_arrays, find_score
from retailinfer.errors import ConfigError, SchemaMismatchError, ShapeError, clip
from retailinfer.features.spec import FeatureSpec
from retailinfer.release.golden import Golden, array_of, hash_tensors
from retailinfer.release.manifest import QuantizationReport

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer.runtime.session import IoEntry

__all__ = ["array_release"]

MAX_DRAWN = 1 << 22


def array_release(parts: list[Part], score: str, golden: Any, *, needs_score: bool) -> Found:
    """Wire the models, pick the score where there is one, and keep one run as golden arrays.

    Args:
        golden: {input: array}; None: small arrays are drawn, and kept if the models take them.
    """
    find_arrays(parts)
    inputs: dict[str, IoEntry] = {}
    for part in parts:
        for entry in part.session.inputs:
            if part.inputs[entry[0]].kind == "array":
                inputs[entry[0]] = entry
    feeds = _given(golden, inputs) if golden is not None else _drawn(inputs)
    outputs: Outputs | None = None
    try:
        outputs = Trial(parts).run({("array", name): value for name, value in feeds.items()})
    except SchemaMismatchError:
        if golden is not None:
            raise
    for part in parts:
        if outputs is not None:
            part.observed = {name: value.shape for name, value in outputs[part.role].items()}
    found = find_score(parts, score, needed=needs_score or score != "auto")
    try:
        if found is not None:
            Trial(parts, found)
    except SchemaMismatchError:
        if needs_score or score != "auto":
            raise
        found = None
    return Found(
        parts=parts,
        spec=FeatureSpec.from_inputs(list(inputs.values())),
        score=found,
        golden=None if outputs is None else _golden(parts, feeds, outputs),
        report=QuantizationReport(why="not asked for"),
        nan_inputs=all(p.graph.trees_only for p in parts),
        row_independent=False,
        row_difference=None,
    )


def _golden(parts: Sequence[Part], feeds: Mapping[str, NDArray[Any]], outputs: Outputs) -> Golden:
    last = parts[-1]
    return Golden(
        now_ns=0,
        n_rows=1,
        rows_per_run=1,
        arrays={name: array_of(value) for name, value in feeds.items()},
        tensors_sha256=hash_tensors(feeds[name] for name in sorted(feeds)),
        outputs_sha256=hash_tensors(outputs[last.role][name] for name, _, _ in last.session.outputs),
    )


def _given(golden: Any, inputs: Mapping[str, IoEntry]) -> dict[str, NDArray[Any]]:
    if not isinstance(golden, Mapping) or set(golden) != set(inputs):
        got = sorted(golden) if isinstance(golden, Mapping) else type(golden).__name__
        raise ConfigError(f"Expected golden= as arrays for the inputs {sorted(inputs)}, got {clip(got, 100)}")
    found = {}
    for name, (_, number, _) in inputs.items():
        value, dtype = np.asarray(golden[name]), DTYPE_NAMES[number]
        if dtype != "string" and value.dtype != np.dtype(dtype):
            raise ShapeError(f"Expected dtype {dtype}, got {value.dtype}", path=f"$.{name}")
        found[name] = value
    return found


def _drawn(inputs: Mapping[str, IoEntry]) -> dict[str, NDArray[Any]]:
    """Small arrays of the declared shapes; a model that wants others simply gets no golden arrays."""
    rng = np.random.default_rng(2024)
    found: dict[str, NDArray[Any]] = {}
    for name, number, shape in inputs.values():
        dtype = DTYPE_NAMES[number]
        sizes = [3 if d is None else d for d in shape]
        n = int(np.prod(sizes, dtype=np.float64))
        if n > MAX_DRAWN:
            sizes, n = [0] * len(sizes), 0
        if dtype == "string":
            cells: NDArray[Any] = np.array([f"text {i % 3}" for i in range(n)], dtype=object)
        elif dtype.startswith("float"):
            cells = rng.normal(size=n).astype(dtype)
        else:
            cells = rng.integers(0, 2, n).astype(dtype)
        found[name] = cells.reshape(sizes)
    return found
