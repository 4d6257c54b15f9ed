"""A model on its way into a release becomes a forest, if that has the bits of its source.

Rules:
  * A model whose trainer tells how it is made (its own file, a fitted object) is compared with the trainer; an ONNX graph
    with ONNX Runtime, which it then does without.
  * Compared are rows that are hard on purpose: on thresholds, one step beside them, missing, infinite, codes of categories
    that nobody saw. One bit that differs, and the model is not replaced.
  * Where a file's trainer is not installed there is nothing to compare with; the manifest says so.
Parsers are the other files of this folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from retailinfer.authoring.preflight import Graph
from retailinfer.authoring.trees import Unfit
from retailinfer.authoring.trees.onnx_graph import forest_of_graph
from retailinfer.authoring.wiring import Part
from retailinfer.errors import SchemaMismatchError, clip
from retailinfer.runtime.trees import TreeSession, encode_forest

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from retailinfer.authoring.convert import Converted
    from retailinfer.runtime.trees import Forest

__all__ = ["forest_part", "graph_to_trees", "hard_rows"]

N_ROWS = 2_000
MAX_CELLS = 1 << 25  # of all rows together
# Last steps whose results cannot leave 0..1.
_BOUNDED = frozenset({"logistic", "sigmoid", "softmax", "softmax_sum", "hinge"})


def forest_part(role: str, converted: Converted, *, must: bool) -> Part | None:
    """The part of a model that came as a forest, compared with its trainer; None where a bit differs and it need not be one.

    Raises: SchemaMismatchError where it must be a forest; ModelError for arrays that are none.
    """
    forest = converted.forest
    assert forest is not None
    file = encode_forest(forest)
    session = TreeSession(file)
    if converted.predict is not None:
        wrong = _difference(session, forest, converted.predict, f"the trees of model `{role}`")
        if wrong is not None and must:
            raise SchemaMismatchError(wrong, hint='pack it with engine="onnx", and report the model')
        if wrong is not None:
            return None
    probable = bool(converted.classes) or converted.task == "classification"
    graph = Graph(
        data=b"",
        trees_only=True,
        has_trees=True,
        classes={forest.output: converted.classes} if converted.classes else {},
        probabilities=frozenset({forest.output} if probable else ()),
        bounded=frozenset({forest.output} if forest.post in _BOUNDED else ()),
        feature_names=converted.feature_names,
    )
    parity = "unchecked" if converted.predict is None else "exact"
    return Part(role, converted, graph, session, trees=file, parity=parity)  # type: ignore[arg-type]  # one of the two


def graph_to_trees(part: Part, *, must: bool) -> bool:
    """Give a part whose graph is nothing but trees its forest, and the session that runs it; False where it stays as it is.

    Raises: SchemaMismatchError where it must be a forest, which says why it is none.
    """
    try:
        forest = forest_of_graph(part.graph.data)
    except Unfit as exc:
        if must:
            raise SchemaMismatchError(
                f"model `{part.role}` has no exact form as a forest: {exc}", hint='pack it with engine="onnx"'
            ) from None
        part.why = part.why or str(exc)
        return False
    outputs = [name for name, _, _ in part.session.outputs]
    if outputs != [forest.output]:
        # Somebody may read the others: who takes arrays is given every output.
        part.why = f"it has the outputs {', '.join(outputs)}, a forest has one"
        if must:
            raise SchemaMismatchError(
                f"model `{part.role}` cannot be a forest: {part.why}",
                hint="pack it with a score and features=, which leaves labels out, or export it without labels",
            )
        return False
    file = encode_forest(forest)
    session = TreeSession(file)
    onnx = part.session
    wrong = _difference(
        session,
        forest,
        lambda rows: onnx.run({forest.input: rows})[forest.output],
        f"the trees of model `{part.role}`",
    )
    if wrong is not None:
        if must:
            raise SchemaMismatchError(wrong, hint='pack it with engine="onnx", and report the model')
        part.why = "its trees do not have the bits of ONNX Runtime"
        return False
    part.trees, part.session, part.why = file, session, ""
    if part.converted.predict is None:  # else the source is the trainer, with whom the graph was compared
        part.parity = "exact"
    return True


def _difference(
    session: TreeSession, forest: Forest, source: Callable[[NDArray[Any]], Any], what: str
) -> str | None:
    """What differs between a forest and its source on hard rows; None: not a bit."""
    rows = hard_rows(forest)
    want, rows = _answers(source, rows)
    if want is None:
        return f"{what} could not be compared: their source answers none of the rows"
    want = np.ascontiguousarray(want.reshape(len(rows), -1), np.float32)
    got = session.run({forest.input: rows})[forest.output]
    if want.shape[1] not in (1, got.shape[1]):
        return f"{what} give {got.shape[1]} numbers a row, their source {want.shape[1]}"
    got = np.ascontiguousarray(got[:, -want.shape[1] :])  # a trainer may tell the probability alone
    differs = got.view(np.uint32) != want.view(np.uint32)
    differs &= ~(np.isnan(got) & np.isnan(want))
    if not differs.any():
        return None
    row = int(np.flatnonzero(differs.any(axis=1))[0])
    return (
        f"{what} answer {clip(got[row].tolist(), 100)} where their source answers {clip(want[row].tolist(), 100)}, in "
        f"{int(differs.any(axis=1).sum())} of {len(rows)} rows"
    )


def _answers(
    source: Callable[[NDArray[Any]], Any], rows: NDArray[Any]
) -> tuple[NDArray[Any] | None, NDArray[Any]]:
    """The source's answers, and to which rows. Trainers refuse infinity and NaN in ways of their own: fewer rows are tried."""
    for allowed in (np.ones(len(rows), np.bool_), ~np.isinf(rows).any(axis=1), np.isfinite(rows).all(axis=1)):
        some = np.ascontiguousarray(rows[allowed])
        try:
            return np.asarray(source(some)), some
        except Exception:  # noqa: BLE001, S112 - whatever the trainer raises; fewer rows are tried, and none at all is told
            continue
    return None, rows


def hard_rows(forest: Forest, n: int | None = None) -> NDArray[Any]:
    """Rows on thresholds, one step above and below them, anywhere between, missing, infinite and zero; codes of categories.

    n: as many as fit 32 million cells where it is None, 2 to 2,000 of them: a small file may say that it has features
    by the million.
    Returns: shape (n, n_features), float64 where the forest is `wide`, else float32. In the first half there is nothing odd.
    """
    rng = np.random.default_rng(20)
    n = max(2, min(N_ROWS, MAX_CELLS // forest.n_features)) if n is None else n
    kind: Any = np.float64 if forest.wide else np.float32
    rows = rng.normal(size=(n, forest.n_features)).astype(kind)
    feature, threshold, rule = (forest.arrays[name] for name in ("feature", "threshold", "rule"))
    for column in np.unique(feature[feature >= 0]):
        own = feature == column
        if (rule[own] >= 2).any():
            rows[:, column] = _codes(forest, np.flatnonzero(own & (rule >= 2)), n, rng)
            continue
        finite = threshold[own & np.isfinite(threshold)]  # x <= infinity parts missing values from all others
        if not len(finite):
            continue
        some = rng.choice(finite, n).astype(kind)
        near = np.nextafter(some, rng.choice([-np.inf, np.inf], n).astype(kind))
        rows[:, column] = np.choose(rng.integers(0, 3, n), [rows[:, column] * np.abs(some), some, near])
        if forest.wide:  # a trainer may narrow to float32: numbers beside its thresholds as it sees them
            narrow = some.astype(np.float32)
            beside = np.nextafter(narrow, rng.choice([-np.inf, np.inf], n).astype(np.float32)).astype(kind)
            rows[:, column] = np.where(
                rng.random(n) < 0.3, (narrow.astype(kind) + beside) / 2, rows[:, column]
            )
    odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], kind)
    where = rng.random(rows.shape) < 0.03
    where[: n // 2] = False
    made = np.where(where, rng.choice(odd, rows.shape), rows)
    return np.ascontiguousarray(made, dtype=kind)


def _codes(forest: Forest, nodes: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Codes that the sets of these nodes know, some that they do not, in the second half a few that are no codes."""
    ends, category = forest.arrays["set_ends"], forest.arrays["category"]
    most = 32 * int((ends[category[nodes] + 1] - ends[category[nodes]]).max(initial=1))
    codes = rng.integers(0, most + 2, n).astype(np.float64)
    strange = rng.random(n) < 0.05
    strange[: n // 2] = False
    return np.where(strange, rng.choice([-1.0, 0.5, most + 1000.0], n), codes)
