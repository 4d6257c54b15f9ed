"""Does the converted model answer as the trainer does, and do both mean the same by NaN?

Rules:
  * Compared are real rows and random ones around them. A model that is not tree-only is compared on rows without NaN.
  * NaN may enter a release only where nothing but trees reads the numbers, and where the trainer answers rows with gaps
    as the converted model does: other operators turn NaN into a confident score, or into another branch.
What differs is refused by pack.py; how much may differ is `Tolerance.parity`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from retailinfer.authoring.preflight import DTYPE_NAMES
from retailinfer.authoring.trial import Arrays, Outputs, Trial
from retailinfer.errors import FeatureError, ModelError, SessionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer.authoring.wiring import Part

__all__ = ["check_parity", "check_parity_of_arrays", "may_take_nan", "numpy_dtype"]

RANDOM_ROWS = 512
RANDOM_CELLS = 1 << 25  # of all of them together
GAP_ROWS = 256


def may_take_nan(trial: Trial, arrays: Arrays, tolerance: float) -> bool:
    """Whether NaN may reach the models that read the features; `arrays` are real rows, into which gaps are put."""
    for part in trial.parts:
        if all(source.kind == "output" for source in part.inputs.values()):
            continue
        if not part.graph.trees_only:
            return False
        if part.converted.predict is None or any(source.kind == "output" for source in part.inputs.values()):
            continue  # an ONNX file: what it does with NaN is what it was exported to do
        if not _same_nan(part, next(iter(trial.feeds(part, arrays, {}).values())), tolerance):
            return False
    return True


def check_parity(trial: Trial, arrays: Arrays, tolerance: float) -> None:
    """Compare converted models with their trainers. Raises: ModelError with the largest difference."""
    if all(part.converted.predict is None for part in trial.parts):
        return
    done: Outputs = {}
    outputs = trial.run(arrays)
    for part in trial.parts:
        output = part.converted.output
        if part.converted.predict is not None and output is not None:
            feed = next(iter(trial.feeds(part, arrays, done).values()))
            _compare(part, feed, outputs[part.role][output], tolerance)
            name, dtype, _ = part.session.inputs[0]
            noise = _around(feed).astype(numpy_dtype(dtype))
            _compare(part, noise, part.session.run({name: noise}, [output])[output], tolerance)
            _note_parity(part)
        done[part.role] = outputs[part.role]


def check_parity_of_arrays(part: Part, tolerance: float) -> None:
    """The same for a model that arrays are brought to: no real rows are known, so random ones are compared."""
    converted = part.converted
    if converted.predict is None or converted.output is None or converted.n_features is None:
        return
    rng = np.random.default_rng(13)
    n_rows = _n_rows(converted.n_features)
    rows = rng.normal(size=(n_rows, converted.n_features))
    for column in converted.codes:
        rows[:, column] = rng.integers(0, 10, n_rows)
    name, dtype, _ = part.session.inputs[0]
    feed = rows.astype(numpy_dtype(dtype))
    _compare(part, feed, part.session.run({name: feed}, [converted.output])[converted.output], tolerance)
    _note_parity(part)


def _note_parity(part: Part) -> None:
    """Say in the manifest that it was compared; a forest was, bit by bit."""
    if part.parity == "unchecked":
        part.parity = "close"


def numpy_dtype(number: int) -> np.dtype[Any]:
    """NumPy's dtype for an ONNX dtype number."""
    return np.dtype(object if DTYPE_NAMES[number] == "string" else DTYPE_NAMES[number])


def _n_rows(width: int) -> int:
    """Fewer random rows of a matrix so wide that all of them would fill the memory."""
    return max(2, min(RANDOM_ROWS, RANDOM_CELLS // max(1, width)))


def _around(feed: NDArray[Any]) -> NDArray[np.float64]:
    """Random rows with the means and spreads of real ones; whole numbers stay whole (codes of categories)."""
    values = feed.astype(np.float64)
    there = ~np.isnan(values)
    n = np.maximum(there.sum(axis=0), 1)
    middle = np.where(there, values, 0.0).sum(axis=0) / n
    spread = np.sqrt((np.where(there, values - middle, 0.0) ** 2).sum(axis=0) / n)
    n_rows = _n_rows(feed.shape[1])
    noise = middle + np.random.default_rng(11).normal(size=(n_rows, feed.shape[1])) * (spread + 1e-3)
    whole = np.where(there, values == np.rint(values), True).all(axis=0)
    low, high = (getattr(np, f"nan{side}")(np.vstack([values, middle]), axis=0) for side in ("min", "max"))
    return np.asarray(np.where(whole, np.clip(np.rint(noise), low, high), noise))


def _compare(part: Part, feed: NDArray[Any], got: NDArray[Any], tolerance: float) -> None:
    assert part.converted.predict is not None
    whole = ~np.isnan(feed).any(axis=1)
    if not whole.all() and not _same_nan(part, feed, tolerance):
        feed, got = feed[whole], got[whole]  # the others never reach this model
    if not len(feed):
        return
    difference = _difference(got, part.converted.predict(feed))
    if not difference <= tolerance:
        raise ModelError(
            f"the converted model `{part.role}` answers up to {difference:.4g} differently from "
            f"{part.converted.source}, more than {tolerance:g}",
            hint="values on a threshold can go either way in float32: move scaling into the feature spec, or accept "
            'it: tolerance={"parity": ...}',
        )


def _same_nan(part: Part, feed: NDArray[Any], tolerance: float) -> bool:
    """Whether trainer and converted model give rows with gaps the same answer."""
    converted = part.converted
    if converted.predict is None or converted.output is None:
        return True
    rng = np.random.default_rng(7)
    rows = np.concatenate([feed] * max(1, -(-GAP_ROWS // max(1, len(feed)))))[: max(GAP_ROWS, 1)].copy()
    rows[rng.random(rows.shape) < 0.3] = np.nan
    try:
        expected = converted.predict(rows)
    except Exception:  # noqa: BLE001 - a trainer that refuses NaN says so in its own way
        return False
    try:
        got = part.session.run({part.session.inputs[0][0]: rows}, [converted.output])
    except (SessionError, FeatureError):
        return False
    return _difference(got[converted.output], expected) <= tolerance


def _difference(got: NDArray[Any], expected: NDArray[np.float64]) -> float:
    """Largest difference, relative above 1. A trainer that gives one number a row means the last column."""
    values = got.astype(np.float64)
    if expected.ndim == 1 and values.ndim == 2:
        values = values[:, -1]
    values, expected = values.reshape(len(values), -1), expected.reshape(len(expected), -1)
    if values.shape != expected.shape:
        return float("inf")
    if not np.isfinite(expected).all() or not np.isfinite(values).all():
        return 0.0 if np.array_equal(values, expected, equal_nan=True) else float("inf")
    return float((np.abs(values - expected) / np.maximum(1.0, np.abs(expected))).max(initial=0.0))
