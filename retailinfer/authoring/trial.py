"""The models of a release-to-be, run over rows exactly as the pipeline will run them.

Rules:
  * Rows are canonical columns, filled by the compiled program; nothing is computed another way than in serving.
  * One model gives its scores through `session.scores`, a chain through `run`, model by model, as in `pipeline`.
Which rows is golden.py; what is done with the answers is pack.py and quantize.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

import numpy as np

from retailinfer.authoring.wiring import Part
from retailinfer.errors import BundleError, FeatureError, SchemaMismatchError, ScoreError, SessionError, clip
from retailinfer.features.transform import fill
from retailinfer.release.golden import hash_tensors
from retailinfer.release.manifest import ScoreRef

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer._native.program import Program
    from retailinfer.features.canonical import Columns
    from retailinfer.features.spec import Body, FeatureSpec
    from retailinfer.runtime.session import ModelSession

__all__ = ["TILE", "Arrays", "Filled", "Trial", "context_of", "n_rows", "row_difference"]

TILE = 512  # rows that the engine gives a model at once

Key = tuple[str, str]  # ("tensor" | "mask" | "array", name)
Arrays = Mapping[Key, "NDArray[Any]"]
Outputs = dict[str, dict[str, "NDArray[Any]"]]  # role -> output -> array


class Filled:
    """Tensors of some rows: by key for the models, in order for the hash."""

    def __init__(self, program: Program, body: Body, columns: Columns, *, now_ns: int = 0) -> None:
        outs, masks, _ = fill(program, body, columns, now_ns=now_ns)
        self.n_rows = columns.n_rows
        self.ordered: list[NDArray[Any]] = []
        self.arrays: dict[Key, NDArray[Any]] = {}
        for (name, _, _, _, mask_name, _), out, mask in zip(program.tensors, outs, masks, strict=True):
            self.ordered.append(out)
            self.arrays["tensor", name] = out
            if mask is not None and mask_name is not None:
                self.ordered.append(mask)
                self.arrays["mask", mask_name] = mask

    @property
    def sha256(self) -> str:
        """As `release.golden.hash_tensors`, masks after their tensors."""
        return hash_tensors(self.ordered)


class Trial:
    """Models in running order, with their sessions, and which cell is the score.

    Args:
        context: arrays that have one row for all rows of a run; of several rows, the first one's counts.
    """

    def __init__(
        self, parts: Sequence[Part], score: ScoreRef | None = None, *, context: AbstractSet[Key] = frozenset()
    ) -> None:
        self.parts = list(parts)
        self.context = frozenset(context)
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
        except BundleError as exc:
            raise SchemaMismatchError(f"`{score.role}.{score.output}` cannot be the score: {exc}") from exc
        self.score = score

    def with_model(self, role: str, session: ModelSession) -> Trial:
        """The same with one model replaced, for comparing candidates."""
        other = Trial(self.parts, context=self.context)
        other.sessions = {**self.sessions, role: session}
        if self.score is not None:
            other.select(self.score)
        return other

    def before(self, part: Part) -> Trial:
        """The models that run before one."""
        at = [p.role for p in self.parts].index(part.role)
        other = Trial(self.parts[:at], context=self.context)
        other.sessions = self.sessions
        return other

    def run(self, arrays: Arrays) -> Outputs:
        """All outputs of all models. Raises: SchemaMismatchError when the models do not take these arrays."""
        done: Outputs = {}
        for part in self.parts:
            try:
                done[part.role] = self.sessions[part.role].run(self.feeds(part, arrays, done))
            except (SessionError, FeatureError) as exc:
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
                found[name] = _row_shaped(arrays[source.kind, source.name], shape)
        return found

    def pick(self, arrays: Arrays, rows: NDArray[np.int64]) -> dict[Key, NDArray[Any]]:
        """Some rows, as one run takes them."""
        return {
            key: np.ascontiguousarray(value[rows[:1] if key in self.context else rows])
            for key, value in arrays.items()
        }

    def scores(self, arrays: Arrays, *, rows_per_run: int = TILE) -> NDArray[np.float32]:
        """Scores of some rows, so many at once. Raises: SchemaMismatchError for an answer that is no score."""
        n = n_rows(arrays)
        runs = [np.arange(i, min(n, i + rows_per_run)) for i in range(0, n, rows_per_run)]
        try:
            found = [self._scores(self.pick(arrays, rows)) for rows in runs]
        except (SessionError, ScoreError, FeatureError) as exc:
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
        if len(self.parts) == 1 and not self.context:
            feeds = self.feeds(self.parts[0], arrays, {})
            return self.sessions[score.role].scores(list(feeds.values()))
        values = self.run(arrays)[score.role][score.output]
        rows = values.reshape(values.shape[0], -1) if values.ndim else values.reshape(1, 1)
        if score.column >= rows.shape[1]:
            raise SchemaMismatchError(
                f"Expected at least {score.column + 1} cells in {clip(score.output)}, got {rows.shape[1]}"
            )
        found = np.ascontiguousarray(rows[:, score.column], dtype=np.float32)
        if not np.isfinite(found).all():
            raise ScoreError("a score is not finite")
        return found


def n_rows(arrays: Arrays) -> int:
    """How many rows these arrays have."""
    return len(next(iter(arrays.values())))


def context_of(spec: FeatureSpec) -> frozenset[Key]:
    """Tensors and masks that a ranking has one row of."""
    tensors = spec.body.tensors
    found: set[Key] = {("tensor", name) for name, t in tensors.items() if t.axis == "context"}
    found |= {("mask", t.mask) for t in tensors.values() if t.mask is not None and t.axis == "context"}
    return frozenset(found)


def row_difference(trial: Trial, arrays: Arrays) -> float | None:
    """The largest difference between a row's score alone and in company; None when the models take one row at a time.

    Company is: all rows, the same rows in another order, one row many times over, and rows beside one that was blown
    up a thousand times. What couples rows (dynamic quantisation, batch statistics) shows up in one of them.
    """
    n = n_rows(arrays)
    # One context for all rows, as in a ranking: they then differ by their own cells only.
    arrays = {k: np.repeat(v[:1], n, axis=0) if k in trial.context else v for k, v in arrays.items()}
    alone = trial.scores(arrays, rows_per_run=1)
    order = np.random.default_rng(20).permutation(n)
    worst = 0.0
    try:
        for rows in (np.arange(n), order, np.zeros(7, dtype=np.int64), np.arange(TILE) % n):
            company = {key: value[rows] for key, value in arrays.items()}
            worst = max(worst, _difference(trial.scores(company), alone[rows]))
    except SchemaMismatchError:
        return None
    return max(worst, _beside_a_giant(trial, arrays, alone)) if n > 1 else worst


def _beside_a_giant(trial: Trial, arrays: Arrays, alone: NDArray[np.float32]) -> float:
    giant = {}
    for key, value in arrays.items():
        copy = value.copy()
        if copy.dtype.kind == "f" and key not in trial.context:
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


def _row_shaped(array: NDArray[Any], shape: Sequence[int | None]) -> NDArray[Any]:
    """(rows, cells) in the shape that an input declares; at most one size of a row is free there."""
    if not shape:
        return array
    known = math.prod(d for d in shape[1:] if d is not None)
    filled = [array.shape[1] // known if d is None else d for d in shape[1:]]
    return np.ascontiguousarray(array).reshape(array.shape[0], *filled)
