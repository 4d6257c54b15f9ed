"""A model on its way into a release becomes a forest, if that has its bits.

Rules:
  * A LightGBM model is read from its own text and answers as LightGBM does; any other from its graph, as ONNX Runtime does.
  * The forest is compared with that source on rows that are hard on purpose: on thresholds, one step beside them, missing,
    infinite. One bit that differs, and the model is not replaced.
Parsers are the other files of this folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from retailinfer.authoring.trees import Unfit
from retailinfer.authoring.trees.lightgbm_text import forest_of_text
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
        forest = _forest(part)
    except Unfit as exc:
        raise SchemaMismatchError(
            f"model `{part.role}` has no exact form as a forest: {exc}", hint='pack it with engine="onnx"'
        ) from None
    file = encode_forest(forest)
    session = TreeSession(file)
    rows = hard_rows(forest)
    got = session.run({forest.input: rows})[forest.output]
    want = _source_answers(part, forest, rows)
    got = got[:, -want.shape[1] :]  # a trainer may tell the probability alone
    differs = got.view(np.uint32) != want.view(np.uint32)
    differs &= ~(np.isnan(got) & np.isnan(want))
    if differs.any():
        row = int(np.flatnonzero(differs.any(axis=1))[0])
        raise SchemaMismatchError(
            f"the trees of model `{part.role}` answer {got[row].tolist()} where their source answers "
            f"{want[row].tolist()}, in {int(differs.any(axis=1).sum())} of {len(rows)} rows",
            hint='pack it with engine="onnx", and report the model',
        )
    part.trees, part.session = file, session


def _forest(part: Part) -> Forest:
    if part.converted.text is None:
        return forest_of_graph(part.graph.data)
    (name, _, _), *more_inputs = part.session.inputs
    (output, _, shape), *more_outputs = part.session.outputs
    if more_inputs or more_outputs:
        raise Unfit(f"it has {1 + len(more_inputs)} inputs and {1 + len(more_outputs)} outputs")
    width = part.width(output, shape)
    return forest_of_text(part.converted.text, input_name=name, output_name=output, n_columns=width or 1)


def _source_answers(part: Part, forest: Forest, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the forest has to answer, shape (rows, columns): by the trainer itself, else by ONNX Runtime."""
    if part.converted.text is not None and part.converted.predict is not None:
        answers = part.converted.predict(rows)
    else:
        answers = part.session.run({forest.input: rows})[forest.output]
    return np.ascontiguousarray(np.asarray(answers).reshape(len(rows), -1), np.float32)


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
