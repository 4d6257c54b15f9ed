"""The models of a release-to-be, run over rows exactly as the pipeline will run them.

Rules:
  * Rows are canonical columns, filled by the compiled program; nothing is computed another way than in serving.
  * One model gives its scores through `session.scores`, a chain through `run`, model by model, as in `pipeline`.
Which rows is golden.py; what is done with the answers is pack.py and quantize.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from retailinfer.authoring.wiring import Part
from retailinfer.errors import SchemaMismatchError, ScoreError, SessionError, clip
from retailinfer.features.transform import fill
from retailinfer.release.golden import hash_tensors
from retailinfer.release.manifest import ScoreRef

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer._native.program import Program
    from retailinfer.features.arrow import Columns
    from retailinfer.features.spec import Body
    from retailinfer.runtime.session import ModelSession

__all__ = ["Filled", "Trial"]

TILE = 512  # rows that the engine gives a model at once

Arrays = Mapping[tuple[str, str], "NDArray[Any]"]  # (kind, name) -> one row per row


class Filled:
    """Tensors of some rows: by (kind, name) for the models, in order for the hash."""

    def __init__(self, program: Program, body: Body, columns: Columns, *, now_ns: int = 0) -> None:
        outs, masks, _ = fill(program, body, columns, now_ns=now_ns)
        self.n_rows = columns.n_rows
        self.ordered: list[NDArray[Any]] = []
        self.arrays: dict[tuple[str, str], NDArray[Any]] = {}
        for (name, _, _, _, mask_name, _), out, mask in zip(program.tensors, outs, masks, strict=True):
            self.ordered.append(out)
            self.arrays["tensor", name] = out
            if mask is not None:
                self.ordered.append(mask)
                self.arrays["mask", mask_name] = mask

    @property
    def sha256(self) -> str:
        """As `release.golden.hash_tensors`, masks after their tensors."""
        return hash_tensors(self.ordered)


class Trial:
    """Models in running order, with their sessions, and which cell is the score."""

    def __init__(self, parts: Sequence[Part], score: ScoreRef | None = None) -> None:
        self.parts = list(parts)
        self.sessions: dict[str, ModelSession] = {p.role: p.session for p in self.parts}
        self.score: ScoreRef | None = None
        if score is not None:
            self.select(score)

    def select(self, score: ScoreRef) -> None:
        """Choose the score. Raises: SchemaMismatchError when the session cannot give it."""
        session = self.sessions[score.role]
        names = [name for name, _, _ in session.outputs]
        try:
            session.select_score(names.index(score.output), score.column)
        except Exception as exc:
            raise SchemaMismatchError(f"`{score.role}.{score.output}` cannot be the score: {exc}") from exc
        self.score = score

    def with_model(self, role: str, session: ModelSession) -> Trial:
        """The same with one model replaced, for comparing candidates."""
        other = Trial(self.parts)
        other.sessions = {**self.sessions, role: session}
        if self.score is not None:
            other.select(self.score)
        return other

    def run(self, arrays: Arrays) -> dict[str, dict[str, NDArray[Any]]]:
        """Role -> output -> array. Raises: SchemaMismatchError when the models do not take these arrays."""
        done: dict[str, dict[str, NDArray[Any]]] = {}
        for part in self.parts:
            try:
                done[part.role] = self.sessions[part.role].run(self.feeds(part, arrays, done))
            except SessionError as exc:
                raise SchemaMismatchError(
                    f"model `{part.role}` does not run on the golden rows: {exc}",
                    hint="do the shapes of the tensors fit the model?",
                ) from exc
        return done

    def feeds(
        self, part: Part, arrays: Arrays, done: Mapping[str, Mapping[str, NDArray[Any]]]
    ) -> dict[str, NDArray[Any]]:
        """What goes into one model, in the order of its inputs."""
        found = {}
        for name, _, shape in self.sessions[part.role].inputs:
            source = part.inputs[name]
            if source.kind == "output":
                found[name] = done[source.role or ""][source.name]
            elif source.kind == "array":
                found[name] = arrays[source.kind, source.name]
            else:
                found[name] = row_shaped(arrays[source.kind, source.name], shape)
        return found

    def scores(self, arrays: Arrays, *, rows_per_run: int = TILE) -> NDArray[np.float32]:
        """Scores of some rows, so many at once. Raises: SchemaMismatchError for an answer that is no score."""
        n = len(next(iter(arrays.values())))
        try:
            found = [self._scores(_cut(arrays, i, i + rows_per_run)) for i in range(0, n, rows_per_run)]
        except (SessionError, ScoreError) as exc:
            raise SchemaMismatchError(
                f"the models give no score for the golden rows: {exc}", hint="is it the right output?"
            ) from exc
        scores = np.concatenate(found) if found else np.zeros(0, np.float32)
        if scores.shape != (n,):
            raise SchemaMismatchError(
                f"Expected {n} scores for {n} rows, got shape {scores.shape}", hint="is it the right output?"
            )
        return scores

    def _scores(self, arrays: Arrays) -> NDArray[np.float32]:
        score = self.score
        assert score is not None
        if len(self.parts) == 1:
            feeds = self.feeds(self.parts[0], arrays, {})
            return self.sessions[score.role].scores(list(feeds.values()))
        values = self.run(arrays)[score.role][score.output]
        rows = values.reshape(values.shape[0], -1) if values.ndim else values.reshape(1, 1)
        if score.column >= rows.shape[1]:
            raise SchemaMismatchError(
                f"Expected at least {score.column + 1} cells in `{clip(score.output)}`, got {rows.shape[1]}"
            )
        found = np.ascontiguousarray(rows[:, score.column], dtype=np.float32)
        if not np.isfinite(found).all():
            raise ScoreError("a score is not finite")
        return found


def row_shaped(array: NDArray[Any], shape: Sequence[int | None]) -> NDArray[Any]:
    """(rows, cells) in the shape that an input declares; at most one size of a row is free there."""
    cells = array.shape[1]
    if not shape:
        return array
    rest = list(shape[1:])
    known = math.prod(d for d in rest if d is not None)
    filled = [cells // known if d is None else d for d in rest]
    return np.ascontiguousarray(array).reshape(array.shape[0], *filled)


def _cut(arrays: Arrays, start: int, stop: int) -> dict[tuple[str, str], NDArray[Any]]:
    return {key: value[start:stop] for key, value in arrays.items()}


def row_difference(trial: Trial, arrays: Arrays) -> float | None:
    """The largest difference between a row's score alone and in company; None when the models take one row at a time.

    Company is: all rows, the same rows in another order, one row many times over, and rows beside one that was blown
    up a thousand times. What couples rows (dynamic quantisation, batch statistics) shows up in one of them.
    """
    n = len(next(iter(arrays.values())))
    alone = trial.scores(arrays, rows_per_run=1)
    order = np.random.default_rng(20).permutation(n)
    many = np.arange(TILE) % n
    worst = 0.0
    try:
        for rows in (np.arange(n), order, np.zeros(7, dtype=np.int64), many):
            scores = trial.scores(
                {key: np.ascontiguousarray(v[rows]) for key, v in arrays.items()}, rows_per_run=TILE
            )
            worst = max(worst, _difference(scores, alone[rows]))
        if n > 1:
            worst = max(worst, _beside_a_giant(trial, arrays, alone))
    except SchemaMismatchError:
        return None
    return worst


def _beside_a_giant(trial: Trial, arrays: Arrays, alone: NDArray[np.float32]) -> float:
    giant = {}
    for key, value in arrays.items():
        copy = value.copy()
        if copy.dtype.kind == "f":
            copy[0] = np.where(np.isfinite(copy[0]), copy[0] * 1000, copy[0])
        giant[key] = copy
    try:
        scores = trial.scores(giant)
    except SchemaMismatchError:
        return 0.0  # the giant itself may have no score; that is another matter
    return _difference(scores[1:], alone[1:])


def _difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    if np.array_equal(a.view(np.uint32), b.view(np.uint32)):
        return 0.0
    return max(float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()), 1e-45)
