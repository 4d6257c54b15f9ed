"""What LightGBM's two files share: an objective's last step, and its trees as the arrays of a forest.

Rules:
  * What `Booster.predict` of today's LightGBM says is right, for files of any age. The one place where it matters: a random
    forest (`average_output`) answers with the last step of the mean of its rounds, where LightGBM 2 left out the last step.
    That mean is the forest's raw sum; `raw_score=True` of LightGBM is the sum of the rounds instead.
  * LightGBM compares doubles. For rows of float32 a threshold is rounded **down** to float32: `x <= t` keeps its meaning for
    every such x. For rows of float64 it stays. Its predictor reads |x| <= 1e-35 as 0, so thresholds in there move to the ends.
  * Missing values as LightGBM has them: none (NaN counts as 0), zero (0 and NaN go the default way), NaN (NaN does).
  * Categorical splits are sets of integers; what is not in the set, NaN and negative values go right. -0.5 counts as 0.
    A code is a category's place among those of the training's column (`Series.cat.codes` of pandas).
  * Sums and last steps are doubles, tree by tree; the answer is rounded to float32 at the end.
Sources: LightGBM's `include/LightGBM/tree.h`, `src/io/tree.cpp`, `src/boosting/gbdt_prediction.cpp` and `ConvertOutput` of
`src/objective/`. The files: lightgbm_text.py and lightgbm_json.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailinfer.authoring.trees import Parsed, Unfit, given_names
from retailinfer.authoring.trees.nodes import check_trees_in_order, float32_below
from retailinfer.errors import ConfigError, ModelError, clip
from retailinfer.runtime.trees import Forest

__all__ = ["Head", "Trees", "integer", "parsed_forest", "tree_node"]

VERSIONS = ("v2", "v3", "v4")
MAX_OUTPUTS = 1024
MAX_FEATURES = 1 << 24
ZERO = float(np.float32(1e-35))  # LightGBM's kZeroThreshold

# First word of the objective -> the last step of an answer. Those of the second table may carry the setting `sqrt`.
_POSTS = {
    "binary": "logistic",
    "multiclassova": "logistic",
    "cross_entropy": "logistic",
    "xentropy": "logistic",
    "cross_entropy_lambda": "softplus",
    "xentlambda": "softplus",
    "multiclass": "softmax_sum",
    "poisson": "exp",
    "gamma": "exp",
    "tweedie": "exp",
    "huber": "none",
    "lambdarank": "none",
    "rank_xendcg": "none",
    "custom": "none",
    "none": "none",
}
_OF_A_SQUARE_ROOT = ("regression", "regression_l1", "regression_l2", "fair", "quantile", "mape")
_CLASSIFIERS = ("binary", "multiclass", "multiclassova", "cross_entropy", "xentropy")
_RANKERS = ("lambdarank", "rank_xendcg")
_OF_SEVERAL = ("multiclass", "multiclassova")
_GONE = np.array([1, 2, 0], np.uint8)  # LightGBM's missing type -> what the forest takes for missing


@dataclass(frozen=True)
class Head:
    """What a file says before its trees.

    Attributes:
        n_outputs: trees a round. objective: None for a function of the user's. average: a random forest.
        categories: columns whose values were read as codes.
    """

    version: str
    n_outputs: int
    n_features: int
    feature_names: Sequence[str]
    objective: str | None
    average: bool
    categories: Iterable[int]


@dataclass(frozen=True)
class Trees:
    """All trees, one after the other, in LightGBM's numbering.

    Attributes:
        n_leaves: of each tree, at least 1; a tree has one inner node less.
        feature, threshold, left, right, decision: of each inner node; a child below 0 is the leaf ~child. decision: bit 0
            = categorical (then the threshold is the number of a set of its tree), bit 1 = missing values go left, from bit
            2 on LightGBM's missing type.
        n_sets: of each tree. set_ends: (sets + 1) in words, of all trees. set_words: their bits.
        value: of each leaf. inner_cover, leaf_cover: rows that came by in training; empty where the file does not say.
    """

    n_leaves: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    decision: NDArray[np.int64]
    n_sets: NDArray[np.int64]
    set_ends: NDArray[np.int64]
    set_words: NDArray[np.uint32]
    value: NDArray[np.float64]
    inner_cover: NDArray[np.float64]
    leaf_cover: NDArray[np.float64]


def integer(value: object, name: str, low: int, high: int) -> int:
    """A whole number of a file, as a number or its digits. Raises: ModelError."""
    text = str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else ""
    if not re.fullmatch(r"-?[0-9]{1,10}", text) or not low <= int(text) <= high:
        raise ModelError(f"Expected a whole number from {low} to {high}, got {clip(value)} - at `{name}`")
    return int(text)


def parsed_forest(
    head: Head, trees: Trees, *, dtype: str, input_name: str, output_name: str | None
) -> Parsed:
    """A booster as a forest. Arguments and errors: `lightgbm_text.parse_text`."""
    if dtype not in ("float32", "float64"):
        raise ConfigError(f"Expected rows of float32 or float64, got {clip(dtype)}")
    if head.version not in VERSIONS:
        raise Unfit(f"its format is {clip(head.version)}; known are {', '.join(VERSIONS)}")
    n_trees, n_outputs = len(trees.n_leaves), head.n_outputs
    if n_trees == 0:
        raise Unfit("it has no trees")
    if n_outputs > MAX_OUTPUTS or head.n_features > MAX_FEATURES:
        raise Unfit(f"it gives {n_outputs} numbers for {head.n_features} features")
    if n_trees % n_outputs:
        raise ModelError(f"Expected {n_outputs} trees a round, got {n_trees} trees")
    if len(head.feature_names) != head.n_features:
        raise ModelError(
            f"Expected {head.n_features} names, got {len(head.feature_names)} - at `feature_names`"
        )
    name, post, scale = _last_step(head)
    classifies = name in _CLASSIFIERS
    two = classifies and n_outputs == 1 and name not in _OF_SEVERAL
    wide = dtype == "float64"
    arrays = _arrays(trees, head, wide=wide)
    codes = set(head.categories) | set(np.unique(arrays["feature"][arrays["category"] >= 0]).tolist())
    forest = Forest(
        input=input_name,
        output=output_name or ("probabilities" if classifies else "variable"),
        n_features=head.n_features,
        arrays=arrays,
        n_outputs=n_outputs,
        n_columns=2 if two else n_outputs,
        post=post,
        post_scale=scale,
        doubles=True,
        wide=wide,
        average=head.average,
        per_output=head.average and n_outputs > 1,
    )
    return Parsed(
        forest=forest,
        source="lightgbm",
        feature_names=given_names(head.feature_names),
        classes=tuple(range(2 if two else n_outputs)) if classifies else (),
        task="classification" if classifies else "ranking" if name in _RANKERS else "regression",
        codes=tuple(sorted(codes)),
    )


def _last_step(head: Head) -> tuple[str, str, float]:
    """First word of the objective, the last step, and the factor before it."""
    name, *settings = (head.objective or "custom").split() or ["custom"]
    if name in _OF_A_SQUARE_ROOT:
        return name, "signed_square" if "sqrt" in settings else "none", 1.0
    if name not in _POSTS:
        raise Unfit(f"its objective is {clip(name)}")
    known = dict(setting.split(":", 1) for setting in settings if ":" in setting)
    if name in _OF_SEVERAL:
        if known.get("num_class") != str(head.n_outputs):
            raise ModelError(
                f"Expected num_class:{head.n_outputs}, got {clip(head.objective)} - at `objective`"
            )
    elif name in _CLASSIFIERS and head.n_outputs != 1:
        raise ModelError(f"Expected one tree a round for {name}, got {head.n_outputs}")
    scale = 1.0
    if name in ("binary", "multiclassova"):
        text = known.get("sigmoid", "")
        scale = float(text) if re.fullmatch(r"[-+0-9.eE]{1,40}", text) and _is_number(text) else math.nan
        if not (math.isfinite(scale) and scale > 0):
            raise ModelError(f"Expected sigmoid:<above 0>, got {clip(head.objective)} - at `objective`")
    return name, _POSTS[name], scale


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def tree_node(starts: NDArray[np.int64], at: int) -> str:
    """Where the `at`-th of all inner nodes is. starts: number of the first inner node of each tree."""
    tree = int(np.searchsorted(starts, at, side="right")) - 1
    return f"tree {tree}, node {at - int(starts[tree])}"


def _arrays(trees: Trees, head: Head, *, wide: bool) -> dict[str, NDArray[Any]]:
    """The arrays of the forest. Nodes of a tree: its inner ones, then its leaves, both in LightGBM's order."""
    n_leaves = trees.n_leaves
    n_trees = len(n_leaves)
    starts = np.cumsum(n_leaves - 1) - (n_leaves - 1)  # of the inner nodes
    first = np.cumsum(2 * n_leaves - 1) - (2 * n_leaves - 1)  # of all nodes
    tree_of_inner = np.repeat(np.arange(n_trees), n_leaves - 1)
    tree_of_leaf = np.repeat(np.arange(n_trees), n_leaves)
    n_inner, n_all = len(tree_of_inner), int((2 * n_leaves - 1).sum())
    inner = np.arange(n_inner) + (first - starts)[tree_of_inner]
    leaf = np.arange(len(tree_of_leaf)) + (first - starts - np.arange(n_trees) + n_leaves - 1)[tree_of_leaf]
    _check_inner(trees, head, starts, tree_of_inner)
    categorical = (trees.decision & 1) == 1
    set_of_inner = np.where(
        categorical, trees.threshold + (np.cumsum(trees.n_sets) - trees.n_sets)[tree_of_inner], -1
    )

    def spread(values: NDArray[Any], fill: float, kind: Any) -> NDArray[Any]:
        out = np.full(n_all, fill, kind)
        out[inner] = values
        return out

    def child(values: NDArray[np.int64]) -> NDArray[np.int64]:
        own = first[tree_of_inner]
        return np.where(values < 0, own + n_leaves[tree_of_inner] - 1 + ~values, own + values)

    left, right = (spread(child(side), 0, np.int32) for side in (trees.left, trees.right))
    is_inner = np.zeros(n_all, np.bool_)
    is_inner[inner] = True
    check_trees_in_order(first, left, right, is_inner, "the booster")
    left[leaf] = np.arange(len(leaf))
    gone = _GONE[trees.decision >> 2]
    cover = np.zeros(0)
    if len(trees.leaf_cover):
        cover = spread(trees.inner_cover, 0, np.float64)
        cover[leaf] = trees.leaf_cover
    return {
        "roots": first.astype(np.int32),
        "feature": spread(trees.feature, -1, np.int32),
        "threshold": spread(
            np.where(categorical, 0.0, _thresholds(trees.threshold, wide=wide)), 0, np.float64
        ),
        "left": left,
        "right": right,
        "missing_left": spread(np.where(categorical, 0, (trees.decision >> 1) & 1), 0, np.uint8),
        "missing": spread(np.where(categorical, 0, gone), 0, np.uint8),
        "rule": spread(np.where(categorical, 2, 0), 0, np.uint8),
        "category": spread(set_of_inner, -1, np.int32),
        "set_ends": trees.set_ends,
        "set_words": trees.set_words,
        "values": trees.value,
        "targets": np.arange(n_trees, dtype=np.int32) % np.int32(head.n_outputs),
        "base": np.zeros(head.n_outputs),
        "cover": cover,
    }


def _check_inner(trees: Trees, head: Head, starts: NDArray[np.int64], tree: NDArray[np.int64]) -> None:
    """Whatever one node can have wrong by itself. Raises: ModelError."""
    leaves = trees.n_leaves[tree]
    categorical = (trees.decision & 1) == 1
    sets = np.where(categorical, trees.threshold, 0)
    for name, values, wrong in (
        ("split_feature", trees.feature, (trees.feature < 0) | (trees.feature >= head.n_features)),
        ("decision_type", trees.decision, (trees.decision < 0) | (trees.decision > 11)),
        ("threshold", trees.threshold, np.isnan(trees.threshold)),
        (
            "threshold (number of a set)",
            trees.threshold,
            (sets != np.floor(sets)) | (sets < 0) | (categorical & (sets >= trees.n_sets[tree])),
        ),
        ("left_child", trees.left, (trees.left < -leaves) | (trees.left >= leaves - 1)),
        ("right_child", trees.right, (trees.right < -leaves) | (trees.right >= leaves - 1)),
    ):
        at = np.flatnonzero(wrong)
        if len(at):
            raise ModelError(f"`{name}` has {values[at[0]]} - at {tree_node(starts, int(at[0]))}")
    wrong = np.flatnonzero(~np.isfinite(trees.value))
    if len(wrong):
        of = int(np.searchsorted(np.cumsum(trees.n_leaves), wrong[0], side="right"))
        raise ModelError(f"`leaf_value` has {trees.value[wrong[0]]} - at tree {of}")


def _thresholds(threshold: NDArray[np.float64], *, wide: bool) -> NDArray[np.float64]:
    """Thresholds that do to a row's numbers what the file's do in LightGBM, which reads |x| <= 1e-35 as 0."""
    down = threshold if wide else float32_below(threshold).astype(np.float64)
    below = (
        np.nextafter(-ZERO, -np.inf) if wide else float(np.nextafter(np.float32(-ZERO), np.float32(-np.inf)))
    )
    down = np.where((down >= 0) & (down < ZERO), ZERO, down)
    return np.where((down < 0) & (down >= -ZERO), below, down)
