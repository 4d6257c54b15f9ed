"""LightGBM's own text -> a forest that answers as `Booster.predict` does, in float64 until the last step.

Rules:
  * Rows are float32, so a double threshold is rounded **down** to float32: `x <= t` keeps its meaning for every such x.
    LightGBM's predictor reads |x| <= 1e-35 as 0, so thresholds in there move to its ends.
  * Missing values as LightGBM has them: none (NaN counts as 0), zero (0 and NaN go the default way), NaN (NaN does).
  * Categorical splits are sets of integers; what is not in the set, NaN and negative values go right.
  * Whatever of the text is not understood makes it Unfit: another engine, or ONNX, then runs the model.
The format is written and read by LightGBM's `src/io/tree.cpp` and `gbdt_model_text.cpp`.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailinfer.authoring.convert.lightgbm import float32_below
from retailinfer.authoring.trees import Unfit
from retailinfer.runtime.trees import Forest

__all__ = ["forest_of_text"]

# First word of the objective -> the last step of an answer.
_POSTS = {
    "binary": "logistic",
    "multiclassova": "logistic",
    "cross_entropy": "logistic",
    "xentropy": "logistic",
    "multiclass": "softmax_sum",
    "softmax": "softmax_sum",
    "poisson": "exp",
    "gamma": "exp",
    "tweedie": "exp",
    "regression": "none",
    "regression_l1": "none",
    "huber": "none",
    "fair": "none",
    "quantile": "none",
    "mape": "none",
    "lambdarank": "none",
    "rank_xendcg": "none",
    "custom": "none",
}
_GONE = {0: 1, 1: 2, 2: 0}  # LightGBM's missing type -> what the forest takes for missing
MAX_TREES = 100_000
ZERO = np.float32(1e-35)


def forest_of_text(text: str, *, input_name: str, output_name: str, n_columns: int) -> Forest:
    """The forest of `Booster.model_to_string()`.

    Args:
        n_columns: of the answer: 2 = what is left of 1, and the probability, for a booster of one sum.
    Raises: Unfit.
    """
    head, *blocks = re.split(r"^Tree=\d+$", text, flags=re.MULTILINE)
    facts = dict(re.findall(r"^([a-z_]+)=(.*)$", head, flags=re.MULTILINE))
    n_outputs = _integer(facts, "num_tree_per_iteration", 1, 1024)
    n_features = _integer(facts, "max_feature_idx", 0, 1 << 24) + 1
    if len(blocks) > MAX_TREES or len(blocks) % n_outputs:
        raise Unfit(f"it has {len(blocks)} trees for {n_outputs} sums")
    objective, *settings = facts.get("objective", "custom").split() or ["custom"]
    if objective not in _POSTS:
        raise Unfit(f"its objective is {objective}")
    if "sqrt" in settings:
        raise Unfit("it was trained on the square root of the label")
    scale = next((float(s.partition(":")[2]) for s in settings if s.startswith("sigmoid:")), 1.0)
    average = bool(re.search(r"^average_output$", head, flags=re.MULTILINE))
    if average and n_outputs > 1:
        raise Unfit("it averages the trees of several classes")
    if n_columns != n_outputs and (n_columns, n_outputs) != (2, 1):
        raise Unfit(f"it gives {n_outputs} numbers, {n_columns} are wanted")
    return Forest(
        input=input_name,
        output=output_name,
        n_features=n_features,
        arrays=_arrays([_tree(block) for block in blocks], n_outputs),
        n_outputs=n_outputs,
        n_columns=n_columns,
        post=_POSTS[objective],
        post_scale=scale if _POSTS[objective] == "logistic" else 1.0,
        doubles=True,
        average=average,
    )


def _integer(facts: dict[str, str], name: str, low: int, high: int) -> int:
    value = facts.get(name, "")
    if not re.fullmatch(r"\d{1,9}", value) or not low <= int(value) <= high:
        raise Unfit(f"its {name} is {value[:20] or 'missing'}")
    return int(value)


def _tree(block: str) -> dict[str, NDArray[Any]]:
    """The arrays of one tree: inner nodes first, then its leaves."""
    found = dict(re.findall(r"^([a-z_]+)=(.*)$", block, flags=re.MULTILINE))
    if found.get("is_linear", "0") != "0":
        raise Unfit("it has linear trees")
    n_leaves = _integer(found, "num_leaves", 1, 1 << 24)
    inner = n_leaves - 1

    def numbers(name: str, kind: Any, n: int) -> NDArray[Any]:
        try:
            values = np.array(found.get(name, "").split(), dtype=np.float64)
        except ValueError:
            raise Unfit(f"its {name} are no numbers") from None
        if len(values) != n:
            raise Unfit(f"a tree of {n_leaves} leaves has {len(values)} {name}")
        return values.astype(kind)

    decision = numbers("decision_type", np.int64, inner)
    threshold = numbers("threshold", np.float64, inner)
    categorical = (decision & 1) == 1
    n_sets = int(found.get("num_cat", "0"))
    ends = numbers("cat_boundaries", np.int64, n_sets + 1) if n_sets else np.zeros(1, np.int64)
    words = numbers("cat_threshold", np.uint32, int(ends[-1])) if n_sets else np.zeros(0, np.uint32)
    gone = (decision >> 2) & 3
    if (gone == 3).any():
        raise Unfit("it treats missing values in a way that is not known")
    covered = {name: found.get(name, "").split() for name in ("internal_count", "leaf_count")}
    known = len(covered["internal_count"]) == inner and len(covered["leaf_count"]) == n_leaves
    return {
        "feature": np.r_[numbers("split_feature", np.int32, inner), np.full(n_leaves, -1, np.int32)],
        "threshold": np.r_[np.where(categorical, 0.0, _float32_thresholds(threshold)), np.zeros(n_leaves)],
        "left": np.r_[_children(numbers("left_child", np.int64, inner), inner), np.arange(n_leaves)],
        "right": np.r_[
            _children(numbers("right_child", np.int64, inner), inner), np.zeros(n_leaves, np.int64)
        ],
        "missing_left": np.r_[np.where(categorical, 0, (decision >> 1) & 1), np.zeros(n_leaves, np.int64)],
        "missing": np.r_[
            np.where(categorical, 0, np.array([_GONE[int(g)] for g in gone], np.int64)),
            np.zeros(n_leaves, np.int64),
        ],
        "rule": np.r_[np.where(categorical, 2, 0), np.zeros(n_leaves, np.int64)],
        "category": np.r_[np.where(categorical, threshold, -1).astype(np.int64), np.full(n_leaves, -1)],
        "set_ends": ends,
        "set_words": words,
        "values": numbers("leaf_value", np.float64, n_leaves),
        # rows of training that came by, where the text says so
        "cover": np.r_[
            numbers("internal_count", np.float64, inner), numbers("leaf_count", np.float64, n_leaves)
        ]
        if known
        else np.zeros(0),
    }


def _children(child: NDArray[np.int64], inner: int) -> NDArray[np.int64]:
    """LightGBM counts leaves down from -1; here they stand behind the inner nodes."""
    return np.where(child < 0, inner + ~child, child)


def _float32_thresholds(threshold: NDArray[np.float64]) -> NDArray[np.float64]:
    """Thresholds that do to a float32 what the double ones do to it in LightGBM, which reads |x| <= 1e-35 as 0."""
    down = float32_below(threshold)
    down = np.where((down >= 0) & (down < ZERO), ZERO, down)
    down = np.where((down < 0) & (down >= -ZERO), np.nextafter(-ZERO, np.float32(-np.inf)), down)
    return down.astype(np.float64)


def _arrays(trees: list[dict[str, NDArray[Any]]], n_outputs: int) -> dict[str, NDArray[Any]]:
    """All trees in one row."""
    nodes = np.cumsum([0, *(len(tree["feature"]) for tree in trees)])
    leaves = np.cumsum([0, *(len(tree["values"]) for tree in trees)])
    sets = np.cumsum([0, *(len(tree["set_ends"]) - 1 for tree in trees)])
    words = np.cumsum([0, *(len(tree["set_words"]) for tree in trees)])
    if nodes[-1] > 1 << 30:
        raise Unfit(f"it has {nodes[-1]} nodes")

    def joined(name: str, kind: Any, shift: NDArray[Any] | None = None) -> NDArray[Any]:
        parts = [tree[name] + (0 if shift is None else shift[i]) for i, tree in enumerate(trees)]
        return np.concatenate(parts).astype(kind) if parts else np.zeros(0, kind)

    is_leaf = joined("feature", np.int32) < 0
    leaf_left, node_left = joined("left", np.int64, leaves), joined("left", np.int64, nodes)
    category = joined("category", np.int64)
    cover = joined("cover", np.float64)
    shifted = joined("category", np.int64, sets)
    return {
        "roots": nodes[:-1].astype(np.int32),
        "feature": joined("feature", np.int32),
        "threshold": joined("threshold", np.float64),
        "left": np.where(is_leaf, leaf_left, node_left).astype(np.int32),
        "right": np.where(is_leaf, 0, joined("right", np.int64, nodes)).astype(np.int32),
        "missing_left": joined("missing_left", np.uint8),
        "missing": joined("missing", np.uint8),
        "rule": joined("rule", np.uint8),
        "category": np.where(category < 0, -1, shifted).astype(np.int32),
        "set_ends": np.concatenate(
            [[0], *(tree["set_ends"][1:] + words[i] for i, tree in enumerate(trees))]
        ).astype(np.int64),
        "set_words": joined("set_words", np.uint32),
        "values": joined("values", np.float64),
        "targets": np.arange(len(trees), dtype=np.int32) % np.int32(n_outputs),
        "base": np.zeros(n_outputs),
        "cover": cover if len(cover) == nodes[-1] and (cover >= 0).all() else np.zeros(0),
    }
