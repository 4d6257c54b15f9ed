"""LightGBM's JSON (`Booster.dump_model`) -> the same forest as its text.

Rules:
  * The numbers are those of the text: LightGBM writes 17 digits, Python the shortest text that reads back alike. But it
    writes 1e300 for infinity, the threshold between all numbers and NaN. That is what 1e300 means where the feature had no
    such number in training; else the model is Unfit.
  * A dump that does not tell the objective, missing values or default directions is Unfit (LightGBM before 3.0): the text
    of the same model does. A dump has the trees that it was asked for, as the text has.
  * Trees nest in each other as their nodes do. Very deep ones are better read from the text.
What is right: lightgbm_forest.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from retailinfer.authoring.trees import Parsed, Unfit
from retailinfer.authoring.trees.documents import read_json
from retailinfer.authoring.trees.lightgbm_forest import Head, Trees, integer, parsed_forest
from retailinfer.authoring.trees.nodes import MAX_TREES, bit_sets
from retailinfer.errors import ModelError, clip

__all__ = ["parse_json"]

HUGE = 1e300  # what LightGBM writes for infinity
_MISSING = {"None": 0, "Zero": 1, "NaN": 2}


def parse_json(
    data: str | bytes, *, dtype: str = "float32", input_name: str = "features", output_name: str | None = None
) -> Parsed:
    """The forest of what `json.dumps(Booster.dump_model())` gives. Arguments and errors: `lightgbm_text.parse_text`."""
    model = read_json(data, "a LightGBM model")
    if not isinstance(model, dict) or not isinstance(model.get("tree_info"), list):
        raise ModelError("Expected a LightGBM model with `tree_info`, got other JSON")
    if "average_output" not in model:
        raise Unfit("its JSON does not tell the objective; save the model as text")
    trees = model["tree_info"]
    if len(trees) > MAX_TREES:
        raise ModelError(f"Expected at most {MAX_TREES} trees, got {len(trees)}")
    head = _head(model)
    nodes = _Nodes(_ranges(model, head.feature_names))
    for i, tree in enumerate(trees):
        nodes.add(i, tree)
    return parsed_forest(head, nodes.all(), dtype=dtype, input_name=input_name, output_name=output_name)


def _head(model: dict[str, Any]) -> Head:
    names, infos = model.get("feature_names"), model.get("feature_infos", {})
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"Expected names, got {clip(names)} - at `feature_names`")
    if not isinstance(infos, dict) or not all(isinstance(info, dict) for info in infos.values()):
        raise ModelError(f"Expected ranges by name, got {clip(infos)} - at `feature_infos`")
    objective, average, version = (model.get(name) for name in ("objective", "average_output", "version"))
    if not isinstance(objective, (str, type(None))) or not isinstance(average, bool):
        raise ModelError(f"Expected text and a truth value, got {clip(objective)} and {clip(average)}")
    return Head(
        version=version if isinstance(version, str) else "of no version",
        n_outputs=integer(model.get("num_tree_per_iteration"), "num_tree_per_iteration", 1, 1 << 20),
        n_features=integer(model.get("max_feature_idx"), "max_feature_idx", 0, (1 << 30) - 1) + 1,
        feature_names=names,
        objective=objective,
        average=average,
        categories=[i for i, name in enumerate(names) if infos.get(name, {}).get("values")],
    )


def _ranges(model: dict[str, Any], names: Sequence[str]) -> list[tuple[float, float]]:
    """The smallest and the largest number that each feature had in training; NaN where the file does not say."""
    infos = model.get("feature_infos", {})
    out = []
    for name in names:
        low, high = (infos.get(name, {}).get(end) for end in ("min_value", "max_value"))
        told = all(isinstance(end, (int, float)) and abs(end) < HUGE for end in (low, high))
        out.append((float(low), float(high)) if told else (float("nan"), float("nan")))
    return out


class _Nodes:
    """Collects the nodes of tree after tree: inner ones from the root on, leaves under their own numbers."""

    def __init__(self, ranges: list[tuple[float, float]]) -> None:
        self.ranges = ranges
        self.n_leaves: list[int] = []
        self.n_sets: list[int] = []
        self.inner: list[tuple[int, float, int, int, int, float]] = []  # feature .. decision, cover
        self.leaves: list[tuple[float, float]] = []  # value, cover
        self.sets: list[Any] = []

    def add(self, number: int, tree: Any) -> None:
        if not isinstance(tree, dict):
            raise ModelError(f"Expected a tree, got {clip(tree)} - at tree {number}")
        n = integer(tree.get("num_leaves"), f"num_leaves of tree {number}", 1, 1 << 26)
        leaves: dict[int, tuple[float, float]] = {}
        first, first_set = len(self.inner), len(self.sets)
        # a node's parent, and on which side of it the node is
        todo: list[tuple[Any, int, int]] = [(tree.get("tree_structure"), -1, 0)]
        children: list[list[int]] = []
        while todo:
            node, parent, side = todo.pop()
            where = f"tree {number}, node {len(children) + len(leaves)}"
            if not isinstance(node, dict):
                raise ModelError(f"Expected a node, got {clip(node)} - at {where}")
            if "leaf_value" in node:
                own = ~integer(node.get("leaf_index", 0), f"leaf_index of {where}", 0, n - 1)
                if ~own in leaves:
                    raise ModelError(f"Expected leaf {~own} once - at {where}")
                if "leaf_const" in node or "leaf_coeff" in node:
                    raise Unfit("it has linear trees")
                leaves[~own] = (_number(node["leaf_value"], "leaf_value", where), _cover(node, "leaf_count"))
            else:
                own = len(children)
                children.append([0, 0])
                self.inner.append(self._split(node, where, first_set))
                todo += [(node.get("right_child"), own, 1), (node.get("left_child"), own, 0)]
            if parent >= 0:
                children[parent][side] = own
        if n == 1 and leaves and leaves[0][1] < 0:
            leaves[0] = leaves[0][0], 0.0  # LightGBM before 4 counts nothing where there is no split
        if len(leaves) != n or len(children) != n - 1:
            raise ModelError(f"Expected {n} leaves, got {len(leaves)} - at tree {number}")
        self.inner[first:] = [
            (feature, threshold, left, right, decision, cover)
            for (feature, threshold, _, _, decision, cover), (left, right) in zip(
                self.inner[first:], children, strict=True
            )
        ]
        self.leaves += [leaves[i] for i in range(n)]
        self.n_leaves.append(n)
        self.n_sets.append(len(self.sets) - first_set)

    def _split(
        self, node: dict[str, Any], where: str, first_set: int
    ) -> tuple[int, float, int, int, int, float]:
        feature = integer(node.get("split_feature"), f"split_feature of {where}", 0, (1 << 30) - 1)
        threshold, kind = node.get("threshold"), node.get("decision_type")
        missing, left = node.get("missing_type"), node.get("default_left")
        if missing is None or left is None:
            raise Unfit("its JSON does not tell where missing values go; save the model as text")
        if not isinstance(missing, str) or missing not in _MISSING or not isinstance(left, bool):
            raise ModelError(
                f"Expected a kind of missing value, got {clip(missing)}, {clip(left)} - at {where}"
            )
        if kind not in ("<=", "=="):
            raise ModelError(f"Expected <= or ==, got {clip(kind)} - at {where}")
        decision = (kind == "==") | left << 1 | _MISSING[missing] << 2
        if kind == "==":
            self.sets.append(_codes(threshold, where))
            return (
                feature,
                float(len(self.sets) - 1 - first_set),
                0,
                0,
                decision,
                _cover(node, "internal_count"),
            )
        number = _number(threshold, "threshold", where)
        if abs(number) >= HUGE:
            low, high = self.ranges[feature] if feature < len(self.ranges) else (0.0, 0.0)
            if not (low > -HUGE and high < HUGE):
                raise Unfit("a threshold of 1e300 may be infinity; save the model as text")
            number = float("inf") if number > 0 else float("-inf")
        return feature, number, 0, 0, decision, _cover(node, "internal_count")

    def all(self) -> Trees:
        feature, threshold, left, right, decision, cover = (
            (np.array(column) for column in zip(*self.inner, strict=True))
            if self.inner
            else (np.zeros(0, np.int64) for _ in range(6))
        )
        value, leaf_cover = (
            (np.array(column, np.float64) for column in zip(*self.leaves, strict=True))
            if self.leaves
            else (np.zeros(0), np.zeros(0))
        )
        inner_cover = cover.astype(np.float64)
        known = bool((inner_cover > 0).all() and (leaf_cover >= 0).all())
        ends, words = bit_sets(self.sets)
        return Trees(
            n_leaves=np.array(self.n_leaves, np.int64),
            feature=feature.astype(np.int64),
            threshold=threshold.astype(np.float64),
            left=left.astype(np.int64),
            right=right.astype(np.int64),
            decision=decision.astype(np.int64),
            n_sets=np.array(self.n_sets, np.int64),
            set_ends=ends,
            set_words=words,
            value=value,
            inner_cover=inner_cover if known else np.zeros(0),
            leaf_cover=leaf_cover if known else np.zeros(0),
        )


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
        raise ModelError(f"Expected a finite number, got {clip(value)} - at `{name}` of {where}")
    try:
        return float(value)
    except OverflowError:
        raise ModelError(f"Expected a double, got {clip(value)} - at `{name}` of {where}") from None


def _cover(node: dict[str, Any], name: str) -> float:
    """Rows that reached a node; below 0 where it does not say."""
    value = node.get(name)
    return (
        float(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53
        else -1.0
    )


def _codes(value: Any, where: str) -> Any:
    """A set of categories, `1||2||3`."""
    if not isinstance(value, str) or not re.fullmatch(r"([0-9]{1,10}(\|\|[0-9]{1,10})*)?", value):
        raise ModelError(f"Expected categories, got {clip(value)} - at `threshold` of {where}")
    return np.array([int(code) for code in value.split("||") if code], np.int64)
