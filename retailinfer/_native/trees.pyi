"""Tree ensembles: a forest compiled for this machine.

A row goes left at a node if the node's rule says yes of one feature, mostly `x <= threshold`; what the node takes for missing
goes where it says. Values of the leaves are added tree by tree, in float32 or float64, so that every kernel gives the same
bits: which one runs (`plan`) is a question of speed alone. The readable twin is forest_reference.py. Thread-safe; what takes
longer than 100 us gives up the GIL.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

POSTS: dict[str, int]
NORMS: dict[str, int]
KERNELS: tuple[str, ...]
"""Names of all kernels, whether this machine has them or not."""
LEVELS: tuple[str, ...]
SIZES: tuple[int, ...]
"""Rows of the calls that kernels are timed for, unless others are named."""
LONG_NS: int
"""What takes longer runs without the GIL."""

def float32_log(x: float) -> float:
    """logf of the C library, of x as a float32: XGBoost turns base scores into margins with it, to the last bit."""

def levels() -> tuple[str, ...]:
    """Instruction sets that this machine and this build have kernels for, the best last: "baseline", "avx2", "avx512"."""

@final
class TreeModel:
    """A forest. Immutable but for its plan.

    Args:
        arrays: flat, C-contiguous or copied. Nodes of all trees in one row:
            roots int32 (trees): first node of each tree.
            feature int32 (nodes): -1 = a leaf. threshold float64 (nodes), finite or infinite; float32 values unless `wide`.
            left, right int32 (nodes): node numbers; of a leaf, `left` is its number.
            missing uint8 (nodes): 0 = NaN is missing, 1 = nothing is (NaN counts as 0), 2 = NaN and |x| <= float32(1e-35) are.
            missing_left uint8 (nodes): 1 = missing values go left, whatever the rule is.
            rule uint8 (nodes): what sends other values left. 0: x <= threshold. 1: x == threshold. 2: x > -1, and x
                without its fraction is in the set (LightGBM). 3: the same for x >= 0 (XGBoost, which
                rounds x to float32 first). 4: x is exactly an
                integer of the set.
            category int32 (nodes): number of the set for rules 2 to 4, else -1.
            set_ends int64 (sets + 1), set_words uint32: bit i of a set's words = category i is a member.
            values float64: one a leaf, added to output `targets[tree]`; or, with empty `targets`, `n_outputs` a leaf.
            targets int32 (trees, or none), base float64 (n_outputs).
            cover float64 (nodes, or none): weight of the training rows that reached each node, finite, not negative.
        n_features: columns of a row. n_outputs: sums of a row.
        n_columns: numbers in an answer: n_outputs (0 says so too), or 2 for one sum that becomes two probabilities, of which
            the first is what the second leaves of 1.
        post: last step, of POSTS. Sources: `forest_post.c`.
            sigmoid, softmax, softmax_zero, probit: ONNX Runtime's, float32, on the sum rounded to float32.
            logistic: trainers'. `doubles`: 1 / (1 + exp(-post_scale x)); float32: XGBoost's Sigmoid.
            softmax_sum: trainers'. `doubles`: LightGBM's and others'; float32: XGBoost's.
            exp: in the precision of the sums. hinge: 1 where the sum is above 0, else 0.
            softplus: log(1 + exp(x)); signed_square: x |x|; both in the precision of the sums.
            complement: one sum v is two answers, 1 - v and v.
        norm: "l1": each column of the answer over the sum of their absolute values (ONNX's Normalizer), left where that is 0.
        base_first: sums begin with the base; else it is added after the trees.
        doubles: sums and last step in float64. wide: rows are float64. average: sums are divided by the number of trees;
            `per_output`: of those that feed one output, n_trees / n_outputs.
        level: instruction set; None = the best one here.
    Raises: ShapeError for an array of another dtype or length; ModelError for what is no forest, naming the node; ConfigError.
    """

    n_features: int
    n_outputs: int
    n_columns: int
    n_trees: int
    wide: bool

    def __init__(
        self,
        arrays: Mapping[str, NDArray[Any]],
        *,
        n_features: int,
        n_outputs: int = 1,
        n_columns: int = 0,
        post: str = "none",
        post_scale: float = 1.0,
        norm: str = "none",
        base_first: bool = False,
        doubles: bool = False,
        wide: bool = False,
        average: bool = False,
        per_output: bool = False,
        level: str | None = None,
    ) -> None: ...
    @property
    def level(self) -> str: ...
    @property
    def kernels(self) -> tuple[str, ...]:
        """What this forest can run on this machine."""

    @property
    def plan(self) -> dict[int, dict[str, int]]:
        """For calls of so many rows: kernel -> rows that it takes. The sizes are those of `calibrate`."""

    @property
    def nbytes(self) -> int: ...
    @property
    def scratch_bytes(self) -> int:
        """Memory of one call beside the forest."""

    @property
    def depth(self) -> int:
        """Of the deepest tree."""

    def force(self, kernel: str) -> None:
        """Run everything with one kernel. Raises: ConfigError if the forest or the machine cannot."""

    def calibrate(
        self, rows: NDArray[Any] | None = None, *, sizes: Sequence[int] = ..., budget_ns: int = 3_000_000
    ) -> dict[int, dict[str, int]]:
        """Time the kernels and keep the fastest way for each number of rows; returns the plan.

        Args:
            rows: what to time them on; None = rows made of the forest's own thresholds and categories.
            sizes: rows of the calls that will come; kernels for more rows than that are left out.
            budget_ns: after so long it ends, with what is known then. Every kernel is timed at least twice, unless it would
                take a quarter of what is left.
        Raises: as `predict`.
        """

    def expected_ns(self, n: int) -> int:
        """What n rows take by the timing of `calibrate`; 0 = not timed."""

    def predict(self, rows: NDArray[Any], *, column: int = 0, raw: bool = False) -> NDArray[np.float32]:
        """Answers, shape (rows,), float32.

        Args:
            rows: shape (rows, n_features), float32, or float64 where `wide`, in native byte order; other layouts are copied.
            column: of the answer.
            raw: the sum, without the last step.
        Raises: FeatureTypeError, ShapeError, ConfigError.
        """

    def predict_into(
        self, rows: NDArray[Any], out: NDArray[np.float32], *, column: int = 0, raw: bool = False
    ) -> None:
        """As `predict`, into an array that is there: C-contiguous, float32, one cell a row. Nothing is allocated."""

    def predict_all(self, rows: NDArray[Any], *, raw: bool = False) -> NDArray[np.float32]:
        """All columns, shape (rows, n_columns), float32. Arguments: those of `predict`."""

    def leaves(self, rows: NDArray[Any]) -> NDArray[np.int32]:
        """Number of the leaf that each tree gives each row, shape (rows, n_trees). Arguments: those of `predict`."""
