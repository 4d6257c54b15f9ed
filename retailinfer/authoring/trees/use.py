"""A model on its way into a release becomes a forest, if that has its bits.

Rules:
  * The forest is compared with ONNX Runtime on rows that are hard on purpose: on thresholds, one step beside them, missing,
    infinite. One bit that differs, and the model is not replaced.
Parsers are the other files of this folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from retailinfer.authoring.trees import Unfit
from retailinfer.authoring.trees.onnx_graph import forest_of_graph
from retailinfer.errors import SchemaMismatchError
from retailinfer.runtime.trees import TreeSession, encode_forest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer.authoring.wiring import Part
    from retailinfer.runtime.trees import Forest

__all__ = ["hard_rows", "to_trees"]

N_ROWS = 2_000


def to_trees(part: Part) -> None:
    """Give a part its forest and the session that runs it. Raises: SchemaMismatchError, which says why there is none."""
    try:
        forest = forest_of_graph(part.graph.data)
    except Unfit as exc:
        raise SchemaMismatchError(
            f"model `{part.role}` has no exact form as a forest: {exc}", hint='pack it with engine="onnx"'
        ) from None
    file = encode_forest(forest)
    session = TreeSession(file)
    rows = hard_rows(forest)
    got = session.run({forest.input: rows})[forest.output]
    want = part.session.run({forest.input: rows})[forest.output]
    differs = got.view(np.uint32) != np.ascontiguousarray(want.reshape(got.shape)).view(np.uint32)
    differs &= ~(np.isnan(got) & np.isnan(want.reshape(got.shape)))
    if differs.any():
        row = int(np.flatnonzero(differs.any(axis=1))[0])
        raise SchemaMismatchError(
            f"the trees of model `{part.role}` answer {got[row].tolist()} where ONNX Runtime answers "
            f"{want.reshape(got.shape)[row].tolist()}, in {int(differs.any(axis=1).sum())} of {len(rows)} rows",
            hint='pack it with engine="onnx", and report the model',
        )
    part.trees, part.session = file, session


def hard_rows(forest: Forest, n: int = N_ROWS) -> NDArray[np.float32]:
    """Rows on thresholds, one float32 above and below them, anywhere between, missing, infinite and zero."""
    rng = np.random.default_rng(20)
    rows = rng.normal(size=(n, forest.n_features)).astype(np.float32)
    feature, threshold = forest.arrays["feature"], forest.arrays["threshold"]
    for column in np.unique(feature[feature >= 0]):
        own = rng.choice(threshold[feature == column].astype(np.float32), n)
        near = np.nextafter(own, rng.choice([-np.inf, np.inf], n).astype(np.float32))
        rows[:, column] = np.choose(rng.integers(0, 3, n), [rows[:, column] * np.abs(own), own, near])
    odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32)
    return np.where(rng.random(rows.shape) < 0.03, rng.choice(odd, rows.shape), rows).astype(np.float32)
