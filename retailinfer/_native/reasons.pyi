"""Reasons of forests: which groups of features push a row's sum up, and how much each feature adds.

Every node of a tree has an expectation: the mean of the leaves below it, weighted by `cover`; without covers both children
weigh alike. A row's way adds, at each step, the expectation of the child less that of the node to the feature that the node
asks (path-delta attribution: Saabas 2014, treeinterpreter). The readable twin is reasons_reference.py. Thread-safe once built.
"""

from collections.abc import Mapping
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from retailinfer._native.trees import TreeModel

FORMS: tuple[str, ...]
MAX_GROUPS: int
MAX_REASONS: int

@final
class ForestReasons:
    """The strongest groups of features that push a row up: what a decision needs.

    All steps of a leaf's way are merged by group at load, in whole numbers of one quantum: the largest such step / 32767, or
    / 2^30 in forests of a few huge and many small steps. Each tree adds at most half a quantum of error to a group's sum, so
    only groups that are nearer to each other than that may change places; equal ones stand in the order of the groups. The
    answer is the same with every instruction set, alone or in a batch.

    Args:
        model: the compiled forest. arrays: what it was made of, see `TreeModel`.
        groups: int32 (n_features): the group of each feature, -1 = never named.
        names: one object a group, given out as it is.
        column: of the answer. Of one sum with two columns, column 0 turns every step round.
        most: groups of one row, 1 to MAX_REASONS.
        form: of the table, one of FORMS; it cannot change an answer. "dense" is what fits up to 128 groups.
    Raises: ShapeError, ConfigError; ModelError for a leaf that two ways lead to, or more steps than can be held.
    """

    model: TreeModel
    most: int
    names: tuple[Any, ...]

    def __init__(
        self,
        model: TreeModel,
        arrays: Mapping[str, NDArray[Any]],
        groups: NDArray[np.int32],
        *,
        names: tuple[Any, ...],
        column: int = 0,
        most: int = 4,
        form: str = "auto",
    ) -> None: ...
    @property
    def form(self) -> str:
        """What was built: "dense" or "sparse"."""

    @property
    def quantum(self) -> float:
        """Of an amount, in units of the sum (for a forest that averages: of the sum before it is divided)."""

    @property
    def nbytes(self) -> int: ...
    def amounts(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        """Sums of all groups in quanta, shape (rows, groups). Rows and errors: as `TreeModel.predict`."""

    def top(self, rows: NDArray[Any]) -> list[tuple[Any, ...]]:
        """Names of the strongest groups of each row, at most `most`, strongest first; only such as push up."""

    def time(self, rows: NDArray[Any], *, rounds: int = 200) -> tuple[float, float]:
        """Nanoseconds of one row: of the forest alone, and with its reasons. The fastest of `rounds` over these rows, in
        native code without the GIL; for benchmarks.
        """

@final
class ForestExplainer:
    """Contributions of every feature, in float64: what an explanation needs. Arguments and errors as `ForestReasons`.

    Args:
        average, per_output: of the forest, as in `TreeModel`.
    """

    model: TreeModel
    column: int

    def __init__(
        self,
        model: TreeModel,
        arrays: Mapping[str, NDArray[Any]],
        *,
        column: int = 0,
        average: bool = False,
        per_output: bool = False,
    ) -> None: ...
    @property
    def base(self) -> float:
        """The sum that the forest expects of a row it knows nothing of: expectations of all roots, and its own base."""

    def path(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Contributions by the way that each row takes, shape (rows, n_features). With `base` they add up to the sum of the
        leaves in float64; the forest's own sum may be float32. Rows and errors: as `TreeModel.predict`.
        """

    def shap(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """The same by Shapley values: Lundberg et al. 2018, doi:10.48550/arXiv.1802.03888, Algorithm 2, path-dependent.

        The same base; some 100 times as slow as `path`. Raises: ConfigError for trees deeper than 1024.
        """
