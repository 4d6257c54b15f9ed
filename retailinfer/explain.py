"""Why a release scores as it does: what is worked out for decisions, and explanations for people.

Rules:
  * Two ways. A release that is one forest: by the way through its trees, in native code, for next to nothing. Every other
    one: by occlusion. Each group of cells becomes the background in turn, in one run of groups + 1 rows, and what the score
    loses is the group's contribution.
  * A decision names fields, an explanation tells amounts. Reasons of decisions are the strongest positive contributions of
    those fields that the policy may name; equal ones stand in the order of the columns.
  * Rows that influence each other run one by one here too.
Contributions of forests: `_native/tree_reasons.h`. Occlusion of requests: `_native/engine.pyx`; of tables and explanations:
here. Groups: `features/groups.py`. The background: `release/background.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from retailinfer.contracts import Explanation, Reason
from retailinfer.errors import ConfigError, SchemaMismatchError, ScoreError, SessionError, clip
from retailinfer.features.groups import Groups, groups_of
from retailinfer.features.transform import NUMPY_DTYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer._native.program import Program
    from retailinfer._native.reasons import ForestExplainer, ForestReasons
    from retailinfer.features.spec import Body
    from retailinfer.policy import Policy
    from retailinfer.release.background import Background
    from retailinfer.release.manifest import InputSource
    from retailinfer.runtime.trees import TreeSession

__all__ = [
    "METHODS",
    "Blank",
    "Explainer",
    "Named",
    "Occlusion",
    "check_reasons",
    "forest_reasons",
    "named_groups",
]

METHODS = ("auto", "path", "treeshap", "occlusion")

Input = tuple["InputSource", bool, int, tuple[int, ...]]  # source, is mask, tensor number, shape of a row
# Arrays by input -> scores. Raises: ScoreError, SessionError.
Scores = Callable[[Sequence["NDArray[Any]"]], "NDArray[np.float32]"]


class Named(NamedTuple):
    """The groups that decisions may name: one Reason each, made once, and for every group its place among them or -1."""

    reasons: tuple[Reason, ...]
    places: NDArray[np.int32]


def check_reasons(policy: Policy, body: Body) -> None:
    """Refuse texts for fields that no contribution can have. Raises: SchemaMismatchError."""
    if not policy.body.reasons:
        return
    known = groups_of(body).names
    unknown = [name for name in policy.body.reasons if name not in known]
    if unknown:
        raise SchemaMismatchError(
            f"the policy has a reason for `{clip(unknown[0])}`, which the features do not read",
            hint=f"reasons are named after {', '.join(known)}",
        )


def named_groups(groups: Groups, policy: Policy) -> Named:
    """What the policy says of each group."""
    texts = policy.body.reasons
    places = np.full(len(groups.names), -1, np.int32)
    reasons: list[Reason] = []
    for number, name in enumerate(groups.names):
        text = texts.get(name, "")
        if text is not None:
            places[number] = len(reasons)
            reasons.append(Reason(name, text))
    return Named(tuple(reasons), places)


class Blank(NamedTuple):
    """Cells of one tensor, or of its mask, that belong to one group."""

    group: int
    tensor: int
    is_mask: bool
    first: int
    width: int


class Occlusion:
    """Contributions by taking groups away, of any model.

    Attributes:
        names: of the groups, in order. blanks: their cells, by group.
        tensors: by number, the background's row, shape (cells,); masks: of its mask, None without one.
    """

    def __init__(
        self,
        names: tuple[Any, ...],
        blanks: Sequence[Blank],
        tensors: Sequence[NDArray[Any]],
        masks: Sequence[NDArray[Any] | None],
    ) -> None:
        self.names = names
        self.blanks = tuple(sorted(blanks))
        self.tensors = list(tensors)
        self.masks = list(masks)

    @classmethod
    def of(cls, program: Program, groups: Groups, background: Background) -> Occlusion:
        """Every group of a spec. Raises: SchemaMismatchError for the background of other features."""
        tensors, masks = background.rows(program.tensors, NUMPY_DTYPES)
        blanks: list[Blank] = []
        for number, (name, _, cells, _, mask_name, _) in enumerate(program.tensors):
            own = groups.cells[name]
            ends = [*(np.flatnonzero(np.diff(own)) + 1).tolist(), cells]
            for first, end in zip([0, *ends[:-1]], ends, strict=True):
                blanks.append(Blank(int(own[first]), number, False, first, end - first))
                if mask_name is not None:
                    blanks.append(Blank(int(own[first]), number, True, first, end - first))
        return cls(groups.names, blanks, tensors, masks)

    def named(self, named: Named) -> Occlusion:
        """The same for the groups that decisions may name."""
        blanks = [
            b._replace(group=int(named.places[b.group])) for b in self.blanks if named.places[b.group] >= 0
        ]
        return Occlusion(named.reasons, blanks, self.tensors, self.masks)

    def rows(self, inputs: Sequence[Input], arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """One row as groups + 1 of them: itself, then without each group. arrays: by input, shape (1, ...)."""
        n = len(self.names) + 1
        made = [np.repeat(array, n, axis=0) for array in arrays]
        flat = [array.reshape(n, -1) for array in made]
        for blank in self.blanks:
            for (_, is_mask, number, _), cells in zip(inputs, flat, strict=True):
                if number == blank.tensor and is_mask == blank.is_mask:
                    source = self.masks[number] if is_mask else self.tensors[number]
                    assert source is not None
                    own = slice(blank.first, blank.first + blank.width)
                    cells[blank.group + 1, own] = source[own]
        return made

    def nothing(self, inputs: Sequence[Input]) -> list[NDArray[Any]]:
        """The background itself, by input."""
        found = []
        for _, is_mask, number, shape in inputs:
            source = self.masks[number] if is_mask else self.tensors[number]
            assert source is not None
            found.append(source.reshape(1, *shape))
        return found

    def contributions(
        self, inputs: Sequence[Input], arrays: Sequence[NDArray[Any]], scores: Scores, tile: int
    ) -> tuple[float, NDArray[np.float64]]:
        """(score, contribution of each group) of one row; NaN where the model gives no score without the group.

        Raises: ScoreError, SessionError for the row itself.
        """
        rows = self.rows(inputs, arrays)
        n = len(self.names) + 1
        found = np.full(n, np.nan)
        for start in range(0, n, tile):
            some = [array[start : start + tile] for array in rows]
            try:
                found[start : start + tile] = scores(some)
            except (ScoreError, SessionError):
                for i in range(start, min(start + tile, n)):
                    try:
                        found[i] = scores([array[i : i + 1] for array in rows])[0]
                    except (ScoreError, SessionError):
                        if i == 0:
                            raise
        return float(found[0]), found[0] - found[1:]

    def top(self, contributions: NDArray[np.float64], most: int) -> tuple[Any, ...]:
        """Names of the strongest groups that push up, equal ones in order."""
        order = np.argsort(-contributions, kind="stable")
        return tuple(self.names[g] for g in order[:most].tolist() if contributions[g] > 0)


class Explainer:
    """Explanations of one release.

    Args:
        groups: of its features. inputs: of its models. scores: from arrays by input to scores.
        session: the TreeSession that is the whole release, or None.
        occlusion: None where the release keeps no background.
        tile: rows of one run.
    """

    def __init__(
        self,
        groups: Groups,
        inputs: Sequence[Input],
        scores: Scores,
        *,
        session: TreeSession | None = None,
        occlusion: Occlusion | None = None,
        tile: int = 512,
    ) -> None:
        self.groups = groups
        self.inputs = inputs
        self.scores = scores
        self.session = session
        self.occlusion = occlusion
        self.tile = tile
        self._forest_explainer: ForestExplainer | None = None

    def explain(self, arrays: Sequence[NDArray[Any]], method: str) -> Explanation:
        """One row, by input. Raises: ConfigError for a method that this release has not; ScoreError, SessionError."""
        if method not in METHODS:
            raise ConfigError(f"Expected method out of {METHODS}, got {clip(method)}")
        if method == "auto":
            method = "path" if self.session is not None else "occlusion"
        if method == "occlusion":
            return self._occlude(arrays)
        if self.session is None:
            raise ConfigError(
                f'method="{method}" needs a release that is one forest, and this is none',
                hint='method="occlusion" takes any model',
            )
        return self._by_trees(self.session, arrays, "path" if method == "path" else "treeshap")

    def _by_trees(
        self, session: TreeSession, arrays: Sequence[NDArray[Any]], method: Literal["path", "treeshap"]
    ) -> Explanation:
        score = self.scores(arrays)
        rows = arrays[0].reshape(1, -1)
        explainer = self._explainer_of(session)
        features = (explainer.path(rows) if method == "path" else explainer.shap(rows))[0]
        raw = float(session.model.predict(rows, column=session.column, raw=True)[0])
        base = explainer.base
        if turned(session):
            raw = -raw
        if turned(session) and session.forest.post == "complement":  # what is left of 1, not of 0
            raw, base = 1 + raw, 1 + base
        sums = np.zeros(len(self.groups.names))
        np.add.at(sums, feature_groups(self.groups, self.inputs), features)
        return Explanation(
            score=float(score[0]),
            raw=raw,
            base=base,
            contributions=dict(zip(self.groups.names, sums.tolist(), strict=True)),
            method=method,
        )

    def _explainer_of(self, session: TreeSession) -> ForestExplainer:
        """Built when it is first asked for; whoever comes at the same time builds another one like it."""
        if self._forest_explainer is None:
            from retailinfer._native.reasons import ForestExplainer  # noqa: PLC0415 - for releases that are trees

            forest = session.forest
            self._forest_explainer = ForestExplainer(
                session.model,
                forest.arrays,
                column=session.column,
                average=forest.average,
                per_output=forest.per_output,
            )
        return self._forest_explainer

    def _occlude(self, arrays: Sequence[NDArray[Any]]) -> Explanation:
        if self.occlusion is None:
            raise ConfigError(
                "this release keeps no background, which occlusion needs",
                hint="pack it again with this version",
            )
        score, contributions = self.occlusion.contributions(self.inputs, arrays, self.scores, self.tile)
        try:
            base = float(self.scores(self.occlusion.nothing(self.inputs))[0])
        except (ScoreError, SessionError):
            base = math.nan
        return Explanation(
            score=score,
            raw=score,
            base=base,
            contributions=dict(zip(self.occlusion.names, contributions.tolist(), strict=True)),
            method="occlusion",
        )


def turned(session: TreeSession) -> bool:
    """The score is what is left of the forest's one sum."""
    return bool(session.forest.n_outputs == 1 and session.forest.n_columns == 2 and session.column == 0)


def feature_groups(groups: Groups, inputs: Sequence[Input]) -> NDArray[np.int32]:
    """The group of each feature of a forest: it reads one tensor, or its mask."""
    ((_, _, number, _),) = inputs
    return list(groups.cells.values())[number]


def forest_reasons(
    session: TreeSession, groups: Groups, inputs: Sequence[Input], named: Named, most: int
) -> ForestReasons:
    """What decisions of a forest need. Raises: ModelError for a forest whose ways cannot be told apart."""
    from retailinfer._native.reasons import ForestReasons  # noqa: PLC0415 - for releases that are trees

    return ForestReasons(
        session.model,
        session.forest.arrays,
        np.ascontiguousarray(named.places[feature_groups(groups, inputs)]),
        names=named.reasons,
        column=session.column,
        most=most,
    )
