"""XGBoost's JSON and UBJSON (`save_model`, `save_raw`) -> a forest that answers as `Booster.predict` does, in float32.

Rules:
  * Read: gbtree and dart, random forests (`num_parallel_tree`) and trees with a vector a leaf among them, of XGBoost 1.6 and
    later; tested against 3.2. gblinear is Unfit, by name, and so is an objective whose last step is not known.
  * What today's XGBoost says of a file is right, whatever version wrote it. Versions differ in two places: base scores of
    logistic objectives stay 1e-6 away from 0 and 1 since 3.1, and codes below 0 went the default way in 1.6, now left.
  * Rounds after `best_iteration` are left out, where early stopping wrote that attribute into the file: so predict the
    scikit-learn wrappers. `Booster.predict` needs `iteration_range=(0, best_iteration + 1)` for the same numbers.
  * XGBoost compares float32 (`x < t`). `x < t` is `x <=` the next float32 below; on rows of float64, which it rounds to
    float32 first, `x <=` the largest double that rounds to that.
  * Sums are float32: the base margin, then tree by tree. A leaf of dart counts as its product with the tree's weight, in
    float32, as in `predict` of a DMatrix. (The in-place prediction of the wrappers takes the base score off each product and
    puts it back: for dart alone, the two differ in their last bits.)
  * Members of a set of categories go right. NaN goes the default way; below 0 and from 2^24 on is no category: it goes left.
    A code is a category's place among those of the training's column (`Series.cat.codes` of pandas).
  * multi:softmax answers with the probabilities of multi:softprob, whose trees it has: the number of a class is no score.
Sources: XGBoost's `src/predictor/`, `src/tree/tree_model.cc`, `src/common/categorical.h`, `src/common/math.h`,
`src/learner.cc`, and `ProbToMargin` and `PredTransform` of `src/objective/`.
"""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailinfer._native.trees import float32_log
from retailinfer.authoring.trees import Parsed, Unfit, given_names
from retailinfer.authoring.trees.documents import read_json, read_ubjson
from retailinfer.authoring.trees.nodes import (
    MAX_NODES,
    MAX_TREES,
    below,
    bit_sets,
    check_trees_in_order,
    widened,
)
from retailinfer.errors import ConfigError, ModelError, clip
from retailinfer.runtime.trees import Forest

__all__ = ["parse"]

NO_PARENT = (1 << 31) - 1  # what a root has for one

# Objective -> last step, and how a base score becomes a margin.
_OBJECTIVES = {
    "binary:hinge": ("hinge", "none"),
    "binary:logistic": ("logistic", "logit"),
    "binary:logitraw": ("none", "none"),
    "count:poisson": ("exp", "log"),
    "multi:softmax": ("softmax_sum", "none"),
    "multi:softprob": ("softmax_sum", "none"),
    "rank:map": ("none", "none"),
    "rank:ndcg": ("none", "none"),
    "rank:pairwise": ("none", "none"),
    "reg:absoluteerror": ("none", "none"),
    "reg:gamma": ("exp", "log"),
    "reg:linear": ("none", "none"),
    "reg:logistic": ("logistic", "logit"),
    "reg:pseudohubererror": ("none", "none"),
    "reg:quantileerror": ("none", "none"),
    "reg:squarederror": ("none", "none"),
    "reg:squaredlogerror": ("none", "none"),
    "reg:tweedie": ("exp", "log"),
    "survival:aft": ("exp", "log"),
    "survival:cox": ("exp", "log"),
}
_PROBABLE = ("binary:logistic", "multi:softmax", "multi:softprob")
MAX_OUTPUTS = 1024
MAX_FEATURES = 1 << 24
MAX_CODE = 1 << 24  # from here on XGBoost takes a number for no category
EPS = np.float32(1e-6)  # XGBoost's kRtEps
_ONE = np.float32(1)


def parse(
    data: bytes, *, dtype: str = "float32", input_name: str = "features", output_name: str | None = None
) -> Parsed:
    """The forest of an XGBoost model file, JSON or UBJSON.

    Args:
        dtype: of the rows, "float32" or "float64", which XGBoost rounds to float32.
        input_name, output_name: None = "probabilities" for classifiers, "variable" for others.
    Returns: a forest of n_outputs = classes or targets. binary:logistic has 2 columns, of which the second is the probability.
    Raises: Unfit, ModelError, ConfigError.
    """
    if dtype not in ("float32", "float64"):
        raise ConfigError(f"Expected rows of float32 or float64, got {clip(dtype)}")
    learner = _table(_document(data), "learner", "the file")
    facts = _table(learner, "learner_model_param", "the file")
    objective = _text(_table(learner, "objective", "the file"), "name", "the objective")
    if objective not in _OBJECTIVES:
        raise Unfit(f"its objective is {clip(objective)}")
    n_classes = _integer(facts, "num_class", 0, 1 << 20)
    n_targets = _integer(facts, "num_target", 1, 1 << 20) if "num_target" in facts else 1
    n_features = _integer(facts, "num_feature", 0, (1 << 32) - 1)
    n_outputs = max(n_classes, n_targets)
    if n_outputs > MAX_OUTPUTS or not 0 < n_features <= MAX_FEATURES:
        raise Unfit(f"it gives {n_outputs} numbers for {n_features} features")
    if n_classes > 1 and n_targets > 1:
        raise ModelError(f"Expected classes or targets, got {n_classes} and {n_targets}")
    model, weights = _booster(_table(learner, "gradient_booster", "the file"))
    trees = _Trees(model, n_features, n_outputs, _rounds(learner, model))
    trees.scale(weights)
    wide = dtype == "float64"
    types = learner.get("feature_types") or []
    codes = {i for i, kind in enumerate(_texts(types, "feature_types")) if kind == "c"} | trees.codes()
    post, link = _OBJECTIVES[objective]
    probable = objective in _PROBABLE
    two = probable and n_outputs == 1 and objective == "binary:logistic"
    forest = Forest(
        input=input_name,
        output=output_name or ("probabilities" if probable else "variable"),
        n_features=n_features,
        arrays=trees.arrays(_margins(facts, n_outputs, link), wide=wide),
        n_outputs=n_outputs,
        n_columns=2 if two else n_outputs,
        post=post,
        base_first=True,
        wide=wide,
    )
    names = learner.get("feature_names") or []
    return Parsed(
        forest=forest,
        source="xgboost",
        feature_names=given_names(_texts(names, "feature_names")),
        classes=tuple(range(2 if two else n_outputs)) if probable else (),
        task="classification" if probable else "ranking" if objective.startswith("rank:") else "regression",
        codes=tuple(sorted(codes)),
    )


# ---- the document ----------------------------------------------------------------------------------------------------------


def _document(data: bytes) -> Any:
    data = bytes(data)
    if not data.lstrip().startswith(b"{"):
        raise ModelError(
            f"Expected XGBoost's JSON or UBJSON, got {clip(data)}",
            hint='save_model("model.ubj") of XGBoost 1.6 or later writes it; the old binary format is not read',
        )
    if re.match(rb"\{[#$UiIlL]", data):
        return read_ubjson(data, "an XGBoost model")
    return read_json(data, "an XGBoost model")


def _table(value: Any, name: str, where: str) -> dict[str, Any]:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, dict):
        raise ModelError(f"Expected an object `{name}`, got {clip(found)} - at {where}")
    return found


def _text(value: dict[str, Any], name: str, where: str) -> str:
    found = value.get(name)
    if not isinstance(found, str):
        raise ModelError(f"Expected text, got {clip(found)} - at `{name}` of {where}")
    return found


def _texts(value: Any, name: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ModelError(f"Expected texts, got {clip(value)} - at `{name}`")
    return value


def _integer(value: dict[str, Any], name: str, low: int, high: int) -> int:
    """A whole number that XGBoost writes as text."""
    found = value.get(name)
    if (
        not isinstance(found, str)
        or not re.fullmatch(r"-?[0-9]{1,10}", found)
        or not low <= int(found) <= high
    ):
        raise ModelError(f"Expected a whole number from {low} to {high}, got {clip(found)} - at `{name}`")
    return int(found)


def _booster(booster: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The model of the trees, and dart's weights of them."""
    name = _text(booster, "name", "the booster")
    if name == "dart":
        inner = _table(booster, "gbtree", "the booster")
        return _table(inner, "model", "the booster"), booster.get("weight_drop")
    if name != "gbtree":
        raise Unfit(f"its booster is {clip(name)}, not one of trees")
    return _table(booster, "model", "the booster"), None


def _rounds(learner: dict[str, Any], model: dict[str, Any]) -> int | None:
    """How many trees predict; None: all."""
    attributes = learner.get("attributes", {})
    best = attributes.get("best_iteration") if isinstance(attributes, dict) else None
    if best is None:
        return None
    rounds = _integer(attributes, "best_iteration", 0, (1 << 31) - 2) + 1
    ends = model.get("iteration_indptr")
    if ends is None:  # XGBoost 1.6 and 1.7: as many trees in each round
        facts = _table(model, "gbtree_model_param", "the model")
        parallel = _integer(facts, "num_parallel_tree", 1, 1 << 20) if "num_parallel_tree" in facts else 1
        groups = set(_numbers([model.get("tree_info")], "tree_info", np.int64).tolist())
        return rounds * parallel * max(1, len(groups))
    ends = _numbers([ends], "iteration_indptr", np.int64)
    if rounds >= len(ends) or (np.diff(ends) < 0).any() or ends[0] != 0:
        raise ModelError(f"Expected a best_iteration below {len(ends) - 1}, got {rounds - 1}")
    return int(ends[rounds])


def _numbers(parts: list[Any], name: str, kind: Any, counts: NDArray[np.int64] | None = None) -> NDArray[Any]:
    """The arrays of all trees under one name, in one row.

    A JSON number becomes the float32 that it is nearest to, as XGBoost's reader makes it.
    """
    for i, part in enumerate(parts):
        if not isinstance(part, (list, np.ndarray)):
            raise ModelError(f"Expected numbers, got {clip(part)} - at `{name}` of tree {i}")
        if counts is not None and len(part) != counts[i]:
            raise ModelError(f"Expected {counts[i]} numbers, got {len(part)} - at `{name}` of tree {i}")
    floats = kind is np.float32
    typed = [part for part in parts if len(part)]
    if all(isinstance(part, np.ndarray) for part in typed):
        if any((part.dtype.kind == "f") != floats for part in typed):
            raise ModelError(f"Expected {np.dtype(kind).name}, got another type - at `{name}`")
        return np.concatenate([np.zeros(0, kind), *(part.astype(kind) for part in typed)])
    cells = list(
        chain.from_iterable(part.tolist() if isinstance(part, np.ndarray) else part for part in parts)
    )
    allowed = {int, float} if floats else {int, bool}
    if not set(map(type, cells)) <= allowed:
        raise ModelError(
            f"Expected numbers, got {clip(next(c for c in cells if type(c) not in allowed))} - at `{name}`"
        )
    try:
        found = np.array(cells, np.float64 if floats else kind)
    except OverflowError:
        raise ModelError(f"Expected numbers, got larger ones - at `{name}`") from None
    return _float32(found, name) if floats else found


def _float32(values: NDArray[np.float64], name: str) -> NDArray[np.float32]:
    """Nearest float32 of what decimals said. A decimal so near the middle of two that its double is the middle is refused."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        near = values.astype(np.float32)
        for side in (np.inf, -np.inf):
            other = np.nextafter(near, np.float32(side)).astype(np.float64)
            if ((near.astype(np.float64) + other) / 2 == values)[np.isfinite(other) & (near != values)].any():
                raise Unfit(f"a number of its {name} is no float32, and lies in the middle of two")
    return near


def _margins(facts: dict[str, Any], n_outputs: int, link: str) -> NDArray[np.float64]:
    """Base scores are answers; sums begin with what the last step makes them of."""
    text = _text(facts, "base_score", "the learner")
    parts = text.removeprefix("[").removesuffix("]").split(",") if re.fullmatch(r"\[.*\]", text) else [text]
    if not all(re.fullmatch(r"\s*-?[0-9.]{1,40}([eE][-+]?[0-9]{1,3})?\s*", part) for part in parts):
        raise ModelError(f"Expected a number or several, got {clip(text)} - at `base_score`")
    try:
        scores = _float32(np.array([float(part) for part in parts]), "base_score")
    except ValueError:
        raise ModelError(f"Expected a number or several, got {clip(text)} - at `base_score`") from None
    if len(scores) not in (1, n_outputs):
        raise ModelError(f"Expected {n_outputs} base scores, got {len(scores)}")
    margins = np.array([_margin(score, link) for score in scores], np.float64)
    return np.resize(margins, n_outputs)


def _margin(score: np.float32, link: str) -> float:
    """ProbToMargin, in float32 and with the C library's logarithm."""
    fine = np.isfinite(score) and (link == "none" or (0 <= score <= 1 if link == "logit" else score > 0))
    if not fine:
        raise ModelError(f"Expected a base score that its objective can have, got {score}")
    if link == "none":
        return float(score)
    if link == "log":
        return float32_log(float(score))
    score = min(max(score, EPS), _ONE - EPS)
    return -float32_log(float(_ONE / score - _ONE))


# ---- the trees -------------------------------------------------------------------------------------------------------------


class _Trees:
    """All trees that predict, their nodes in one row; what no node leads to (pruned) is left out at the end."""

    def __init__(self, model: dict[str, Any], n_features: int, n_outputs: int, wanted: int | None) -> None:
        trees = model.get("trees")
        if not isinstance(trees, list) or not all(isinstance(tree, dict) for tree in trees):
            raise ModelError("Expected a list of trees - at `trees`")
        facts = _table(model, "gbtree_model_param", "the model")
        if len(trees) != _integer(facts, "num_trees", 0, MAX_TREES):
            raise ModelError(f"Expected {clip(facts.get('num_trees'))} trees, got {len(trees)}")
        groups = _numbers([model.get("tree_info")], "tree_info", np.int64, np.array([len(trees)]))
        if wanted is not None and wanted > len(trees):
            raise ModelError(f"Expected {wanted} trees up to the best iteration, got {len(trees)}")
        self.n_features, self.n_outputs = n_features, n_outputs
        self.trees, self.groups = trees[:wanted], groups[:wanted]
        if not self.trees:
            raise Unfit("it has no trees")
        if self.groups.min() < 0 or self.groups.max() >= n_outputs:
            raise ModelError(f"Expected outputs below {n_outputs}, got {self.groups.max()} - at `tree_info`")
        self.width = self._width()
        counts = [
            _integer(_table(tree, "tree_param", f"tree {i}"), "num_nodes", 1, MAX_NODES)
            for i, tree in enumerate(self.trees)
        ]
        self.counts = np.array(counts, np.int64)
        if int(self.counts.sum()) > MAX_NODES:
            raise ModelError(f"Expected at most {MAX_NODES} nodes, got {self.counts.sum()}")
        self.first = np.cumsum(self.counts) - self.counts
        self.tree = np.repeat(np.arange(len(counts)), self.counts)
        self._read()

    def _width(self) -> int:
        """Values a leaf: 1, or one for each output."""
        widths = {
            max(1, _integer(_table(tree, "tree_param", f"tree {i}"), "size_leaf_vector", 0, 1 << 20))
            for i, tree in enumerate(self.trees)
            if "size_leaf_vector" in _table(tree, "tree_param", f"tree {i}")
        } or {1}
        width = max(widths)
        if len(widths) > 1 or width not in (1, self.n_outputs):
            raise ModelError(
                f"Expected trees with 1 or {self.n_outputs} values a leaf, got {clip(sorted(widths))}"
            )
        return width

    def _all(self, name: str, kind: Any, counts: NDArray[np.int64] | None = None) -> NDArray[Any]:
        counts = self.counts if counts is None else counts
        return _numbers([tree.get(name) for tree in self.trees], name, kind, counts)

    def _wrong(self, name: str, values: NDArray[Any], wrong: NDArray[np.bool_]) -> None:
        at = np.flatnonzero(wrong)
        if len(at):
            tree = int(self.tree[at[0]])
            raise ModelError(
                f"`{name}` has {values[at[0]]} - at tree {tree}, node {at[0] - int(self.first[tree])}"
            )

    def _read(self) -> None:
        left, right = self._all("left_children", np.int64), self._all("right_children", np.int64)
        self.inner = inner = left >= 0
        n = self.counts[self.tree]
        self._wrong("left_children", left, (left < -1) | (left >= n))
        # XGBoost's predictor takes for the right child what stands behind the left one
        self._wrong("right_children", right, inner & ((right < 0) | (right >= n)))
        if (inner & (right != left + 1)).any():
            raise Unfit("the children of a node do not stand side by side")
        self.left, self.right = left + self.first[self.tree], right + self.first[self.tree]
        self.feature = self._all("split_indices", np.int64)
        self.threshold = self._all("split_conditions", np.float32)
        self.default_left = self._all("default_left", np.int64)
        self._wrong(
            "split_indices", self.feature, inner & ((self.feature < 0) | (self.feature >= self.n_features))
        )
        self._wrong(
            "default_left", self.default_left, inner & ((self.default_left < 0) | (self.default_left > 1))
        )
        self.category, self.sets = self._categories()
        self._wrong(
            "split_conditions", self.threshold, inner & (self.category < 0) & np.isnan(self.threshold)
        )
        self.values = self._values(right)
        self.hessian = (
            self._all("sum_hessian", np.float32)
            if all("sum_hessian" in t for t in self.trees)
            else np.zeros(0, np.float32)
        )
        self._check_shape()

    def _categories(self) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
        """Number of the set of each node, -1 for none, and the sets."""
        category = np.full(len(self.tree), -1, np.int64)
        if not all("split_type" in tree for tree in self.trees):
            return category, []
        kinds = self._all("split_type", np.int64)
        self._wrong("split_type", kinds, (kinds < 0) | (kinds > 1))
        sets: list[NDArray[np.int64]] = []
        for i in np.unique(self.tree[(kinds == 1) & self.inner]).tolist():
            where = f"tree {i}"
            nodes, starts, sizes, codes = (
                _numbers([self.trees[i].get(name)], f"{name} of {where}", np.int64)
                for name in ("categories_nodes", "categories_segments", "categories_sizes", "categories")
            )
            if not len(nodes) == len(starts) == len(sizes) or len(np.unique(nodes)) != len(nodes):
                raise ModelError(f"Expected a range of categories for each node once - at {where}")
            if len(codes) and (codes.min() < 0 or codes.max() >= MAX_CODE):
                raise ModelError(
                    f"Expected categories below {MAX_CODE}, got {codes.min()} to {codes.max()} - at {where}"
                )
            ends = starts + sizes
            wrong = (nodes < 0) | (nodes >= self.counts[i]) | (starts < 0) | (sizes < 1) | (ends > len(codes))
            if wrong.any() or int(sizes.sum()) > len(codes):
                raise ModelError(f"Expected ranges that share out {len(codes)} categories - at {where}")
            for node, start, end in zip(nodes.tolist(), starts.tolist(), ends.tolist(), strict=True):
                category[self.first[i] + node] = len(sets)
                sets.append(codes[start:end])
        self._wrong("split_type", kinds, self.inner & ((kinds == 1) != (category >= 0)))
        return category, sets

    def _values(self, right: NDArray[np.int64]) -> NDArray[np.float32]:
        """Values of all nodes, shape (nodes, width); those of inner nodes mean nothing."""
        if self.width == 1:
            values = self.threshold[:, None]
        elif all("leaf_weights" in tree for tree in self.trees):
            # XGBoost 3.2 and later: the right child of a leaf is the number of its vector
            parts = [tree["leaf_weights"] for tree in self.trees]
            table = _numbers(parts, "leaf_weights", np.float32)
            sizes = np.array([len(part) for part in parts], np.int64)
            vectors = sizes // self.width
            if (sizes % self.width).any():
                raise ModelError(f"Expected {self.width} values a leaf - at `leaf_weights`")
            leaf = ~self.inner
            self._wrong("right_children", right, leaf & ((right < 0) | (right >= vectors[self.tree])))
            row = np.where(leaf, right + (np.cumsum(vectors) - vectors)[self.tree], 0)
            values = table.reshape(-1, self.width)[row]
        else:
            values = self._all("base_weights", np.float32, self.counts * self.width).reshape(-1, self.width)
        self._wrong("leaf value", values, ~self.inner & ~np.isfinite(values).all(axis=1))
        return values

    def _check_shape(self) -> None:
        """Nodes are trees, and those that no node leads to are leaves that were pruned. Raises: ModelError."""
        n = len(self.tree)
        lead = np.concatenate([self.first, self.left[self.inner], self.right[self.inner]])
        reached = np.bincount(lead, minlength=n) > 0
        self._wrong("left_children", self.left - self.first[self.tree], ~reached & self.inner)
        self.kept = np.flatnonzero(reached)
        self.place = np.cumsum(reached) - 1
        left, right, inner = (
            self.place[self.left[self.kept]],
            self.place[np.clip(self.right[self.kept], 0, n - 1)],
            self.inner[self.kept],
        )
        check_trees_in_order(self.place[self.first], left, right, inner, "the booster")
        self._check_parents()

    def _check_parents(self) -> None:
        """Not needed here; but XGBoost follows them without a look, and the file is given to it to compare."""
        if not all("parents" in tree for tree in self.trees):
            return
        parents = self._all("parents", np.int64)
        own = np.flatnonzero(self.inner)
        wrong = np.zeros(len(parents), np.bool_)
        for child in (self.left[own], self.right[own]):
            wrong[child] |= parents[child] != own - self.first[self.tree[own]]
        wrong[self.first] = ~np.isin(parents[self.first], (-1, NO_PARENT))
        self._wrong("parents", parents, wrong)

    def codes(self) -> set[int]:
        """Columns that are split as categories."""
        return set(np.unique(self.feature[self.category >= 0]).tolist())

    def scale(self, weights: Any) -> None:
        """Dart: each tree's leaves times its weight, in float32."""
        if weights is None:
            return
        found = _numbers([weights], "weight_drop", np.float32)
        if len(found) < len(self.trees) or not np.isfinite(found).all():
            raise ModelError(
                f"Expected {len(self.trees)} finite weights, got {len(found)} - at `weight_drop`"
            )
        if self.width > 1:
            raise Unfit("it is dart with several values a leaf")
        with np.errstate(over="ignore"):
            self.values = self.values * found[self.tree][:, None]
        self._wrong("leaf value", self.values, ~self.inner & ~np.isfinite(self.values).all(axis=1))

    def arrays(self, base: NDArray[np.float64], *, wide: bool) -> dict[str, NDArray[Any]]:
        """The arrays of the forest. Members of a set go right in XGBoost, left in a forest: those nodes' sides are swapped."""
        kept = self.kept
        inner, category = self.inner[kept], np.where(self.inner[kept], self.category[kept], -1)
        swapped = category >= 0
        left, right = (
            self.place[self.left[kept]],
            self.place[np.clip(self.right[kept], 0, len(self.tree) - 1)],
        )
        left, right = np.where(swapped, right, left), np.where(swapped, left, right)
        left[~inner] = np.arange(int((~inner).sum()))
        right[~inner] = 0
        if (inner & ~swapped & np.isneginf(self.threshold[kept])).any():
            raise Unfit("a threshold is -infinity: nothing is below")
        lower = below(self.threshold[kept])
        threshold = widened(lower) if wide else lower.astype(np.float64)
        ends, words = bit_sets(self.sets)
        cover = self.hessian[kept].astype(np.float64) if len(self.hessian) else np.zeros(0)
        known = (
            bool(np.isfinite(cover).all() and (cover >= 0).all() and (cover[inner] > 0).all())
            if len(cover)
            else False
        )
        default = self.default_left[kept]
        return {
            "roots": self.place[self.first].astype(np.int32),
            "feature": np.where(inner, self.feature[kept], -1).astype(np.int32),
            "threshold": np.where(inner & ~swapped, threshold, 0.0),
            "left": left.astype(np.int32),
            "right": right.astype(np.int32),
            "missing_left": np.where(inner, np.where(swapped, 1 - default, default), 0).astype(np.uint8),
            "missing": np.zeros(len(kept), np.uint8),
            "rule": np.where(swapped, 3, 0).astype(np.uint8),
            "category": category.astype(np.int32),
            "set_ends": ends,
            "set_words": words,
            "values": self.values[kept][~inner].astype(np.float64).ravel(),
            "targets": np.zeros(0, np.int32) if self.width > 1 else self.groups.astype(np.int32),
            "base": base,
            "cover": cover if known else np.zeros(0),
        }
