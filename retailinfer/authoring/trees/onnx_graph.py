"""ONNX graphs whose whole compute is one tree ensemble -> a forest with the bits of ONNX Runtime.

Rules:
  * Read: TreeEnsembleClassifier, TreeEnsembleRegressor and TreeEnsemble of ai.onnx.ml, and around them what converters put
    there: casts, other names and shapes, a factor of 1, ZipMap, Normalizer, the probability of the other class. Everything
    else is Unfit, by name.
  * Thresholds and sums are in the type of the ensemble's input. A cast before it moves the thresholds, so that rows are
    compared as they come: to the next float32 below, or to the last double that the cast still rounds to it.
  * `<` becomes `<=` of the next number below; `>`, `>=` and `!=` swap their children, the side of missing values with them.
  * ONNX Runtime sums in the order of the trees' first nodes and adds the base at the end; so does the forest. What it does of
    its own where the standard is silent (two classes with one sum, or with two bases) is done alike, or Unfit.
The source of these semantics is ONNX Runtime's core/providers/cpu/ml/tree_ensemble_*.h and ml_common.h; tests compare bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailinfer.authoring.facts import ML_DOMAIN
from retailinfer.authoring.preflight import require_onnx
from retailinfer.authoring.trees import Unfit
from retailinfer.authoring.trees.nodes import (
    MAX_CATEGORY,
    below,
    bit_sets,
    check_trees,
    float32_below,
    owners,
    widened,
)
from retailinfer.errors import ModelError, clip
from retailinfer.runtime.trees import Forest

__all__ = ["forest_of_graph"]

FLOAT, DOUBLE = 1, 11
_POSTS = {
    "NONE": "none",
    "LOGISTIC": "sigmoid",
    "SOFTMAX": "softmax",
    "SOFTMAX_ZERO": "softmax_zero",
    "PROBIT": "probit",
}
LEQ, LT, GTE, GT, EQ, NEQ, MEMBER, LEAF = range(8)  # the numbers of TreeEnsemble, and one of our own
_MODES = {
    b"BRANCH_LEQ": LEQ,
    b"BRANCH_LT": LT,
    b"BRANCH_GTE": GTE,
    b"BRANCH_GT": GT,
    b"BRANCH_EQ": EQ,
    b"BRANCH_NEQ": NEQ,
    b"LEAF": LEAF,
}
_SHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
# The largest member of a set that ONNX Runtime compares exactly; with a larger one it truncates.
UNROLLED = 30


def forest_of_graph(data: bytes) -> Forest:
    """The forest of a graph that `preflight.inspect` let through, so that every way back comes to an end.

    Raises: Unfit when ONNX Runtime may run it but a forest cannot have its bits; ModelError when nothing can run it.
    """
    graph = _Graph(require_onnx().load_model_from_string(data).graph)
    way = graph.way()
    ensemble = _v5(way) if way.node.op_type == "TreeEnsemble" else _v3(way)
    return _forest(way, ensemble)


# ---- the graph around the ensemble ---------------------------------------------------------------------------------


@dataclass
class _Way:
    """From the input of a graph to its output, through the one ensemble.

    Attributes:
        rows, inside: type of the graph's input, and of the ensemble's. result: type of the graph's output.
        other: where the probability of the other class was put before a sum, the type that this was done in.
        widths: numbers of columns that reshaping takes for granted, before and after that.
        norm: as in `Forest`.
    """

    node: Any
    input: str
    output: str
    n_features: int
    rows: int
    inside: int
    result: int
    other: int | None = None
    widths: tuple[set[int], set[int]] = field(default_factory=lambda: (set(), set()))
    norm: str = "none"
    attributes: dict[str, Any] = field(default_factory=dict)


class _Graph:
    """What makes which tensor of a graph."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.domain == "" and len(node.output) == 1:
                for attribute in node.attribute:
                    if attribute.name == "value" and attribute.HasField("t"):
                        self.weights[node.output[0]] = attribute.t

    def way(self) -> _Way:
        """Follow the one output that is no label back to the one input. Raises: Unfit."""
        ensembles = [
            n for n in self.graph.node if n.domain == ML_DOMAIN and n.op_type.startswith("TreeEnsemble")
        ]
        if len(ensembles) != 1:
            others = sorted({clip(n.op_type, 60) for n in self.graph.node})
            raise Unfit(f"the graph has {len(ensembles)} tree ensembles ({', '.join(others[:5])})")
        node = ensembles[0]
        if node.op_type not in ("TreeEnsembleClassifier", "TreeEnsembleRegressor", "TreeEnsemble"):
            raise Unfit(f"its operator is {clip(node.op_type)}")
        n_outputs = 2 if node.op_type == "TreeEnsembleClassifier" else 1
        if len(_inputs(node, 1)) != 1 or len(node.output) != n_outputs:
            raise ModelError(
                f"Expected 1 input and {n_outputs} outputs, got {len(node.input)} and {len(node.output)} "
                "- at the tree ensemble"
            )
        inputs = [one for one in self.graph.input if one.name not in self.weights]
        outputs = [one.name for one in self.graph.output if not self._is_label(one.name, node)]
        if len(inputs) != 1 or len(outputs) != 1:
            raise Unfit(f"it has {len(inputs)} inputs and {len(outputs)} outputs beside labels")
        rows = inputs[0].type.tensor_type.elem_type
        if rows not in (FLOAT, DOUBLE):
            raise Unfit("its input is neither float32 nor float64")
        dims = inputs[0].type.tensor_type.shape.dim
        n_features = int(dims[1].dim_value) if len(dims) == 2 else 0
        if n_features < 1:
            raise Unfit("its input does not say how many features there are")
        found = _Way(node, inputs[0].name, outputs[0], n_features, rows, rows, rows)
        self._before(found)
        made = DOUBLE if node.op_type == "TreeEnsemble" and found.inside == DOUBLE else FLOAT
        self._behind(found, made)
        get = require_onnx().helper.get_attribute_value
        found.attributes = {one.name: _numbers(one, get) for one in node.attribute}
        return found

    def _is_label(self, name: str, ensemble: Any) -> bool:
        node = self.makers.get(name)
        while node is not None and node.op_type in _SHAPES | {"Cast", "Identity"}:
            name = _inputs(node, 1)[0]
            node = self.makers.get(name)
        return node is ensemble and node.op_type == "TreeEnsembleClassifier" and name == node.output[0]

    def _before(self, found: _Way) -> None:
        """What is done to the rows: the casts, in their order."""
        steps = []
        name = found.node.input[0]
        while name != found.input:
            node = self.makers.get(name)
            if node is None or node.op_type not in ("Cast", "Identity") or node.domain != "":
                raise Unfit(
                    f"its ensemble reads {clip(node.op_type) if node else 'a constant'}, not the input as it is"
                )
            if node.op_type == "Cast":
                steps.append(_cast(node))
            name = _inputs(node, 1)[0]
        kinds = [found.rows]
        kinds += [kind for kind in reversed(steps) if kind != kinds[-1]]
        if len(kinds) > 2:  # double to float to double: rounded, then compared as a double
            raise Unfit("it casts its input to and fro")
        found.inside = kinds[-1]

    def _behind(self, found: _Way, made: int) -> None:
        """What is done to the scores, from the output back to the ensemble."""
        scores = found.node.output[1 if found.node.op_type == "TreeEnsembleClassifier" else 0]
        steps: list[Any] = []
        name = found.output
        while name != scores:
            node = self.makers.get(name)
            if node is None:
                raise Unfit("its output is not the ensemble's scores")
            step, name = self._step(node)
            steps.append(step)
        kind = made
        for step in reversed(steps):
            if step in (FLOAT, DOUBLE):
                kind = step
            elif step == "other":
                if found.other is not None or found.norm != "none":
                    raise Unfit("it joins columns after its last step")
                found.other = kind
            elif isinstance(step, tuple):
                found.widths[found.other is not None].add(step[1])
            elif step == "l1":
                if found.norm != "none":
                    raise Unfit("it normalizes twice")
                if kind == DOUBLE:
                    raise Unfit("it normalizes sums of float64")
                found.norm = "l1"
        found.result = kind
        if kind != FLOAT:
            raise Unfit("it gives float64")

    def _step(self, node: Any) -> tuple[Any, str]:
        """What a node does to scores, and what to: nothing (None), a type, "l1", "other", ("width", columns it needs)."""
        kind, inputs = node.op_type, _inputs(node, 2 if node.op_type in ("Mul", "Div") else 1)
        shown = f"{node.domain}.{kind}" if node.domain else kind
        if node.domain == ML_DOMAIN and kind == "ZipMap":
            return None, inputs[0]
        if node.domain == ML_DOMAIN and kind == "Normalizer":
            norm = next((a.s for a in node.attribute if a.name == "norm"), b"MAX")
            if norm == b"L1":
                return "l1", inputs[0]
            raise Unfit(f"it normalizes by {clip(norm)}")
        if node.domain == "":
            if kind == "Identity":
                return None, inputs[0]
            if kind in _SHAPES:
                return self._width(node), inputs[0]
            if kind == "Cast":
                return _cast(node), inputs[0]
            if kind in ("Mul", "Div") and self._is_one(inputs[1]):
                return None, inputs[0]
            if kind == "Mul" and self._is_one(inputs[0]):
                return None, inputs[1]
            if kind == "Concat" and len(inputs) == 2:
                other = self.makers.get(inputs[0])
                axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
                if axis in (1, -1) and other is not None and (other.op_type, other.domain) == ("Sub", ""):
                    one, what = _inputs(other, 2)[:2]
                    if what == inputs[1] and self._is_one(one):
                        return "other", inputs[1]
        raise Unfit(f"its scores go through {clip(shown, 60)}")

    def _is_one(self, name: str) -> bool:
        tensor = self.weights.get(name)
        if (
            tensor is None
            or tensor.data_type not in (FLOAT, DOUBLE)
            or list(tensor.dims) not in ([], [1], [1, 1])
        ):
            return False
        return bool((_array(tensor) == 1.0).all())

    def _width(self, node: Any) -> Any:
        """How many columns a matrix of scores needs, so that a change of its shape leaves them row by row."""
        if node.op_type == "Flatten" and next((a.i for a in node.attribute if a.name == "axis"), 1) == 1:
            return None
        sizes = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
        if len(node.input) > 1 and node.input[1] in self.weights:
            sizes = np.atleast_1d(_array(self.weights[node.input[1]])).tolist()
        if node.op_type == "Squeeze" and sizes in ([1], [-1]):
            return "width", 1
        if node.op_type == "Reshape" and sizes is not None and sizes[:1] == [-1] and len(sizes) <= 2:
            return "width", int(sizes[1]) if len(sizes) == 2 else 1
        raise Unfit(f"its scores go through '{node.op_type}'")


def _inputs(node: Any, n: int) -> list[str]:
    """The tensors that a node reads, at least n. Raises: ModelError."""
    if len(node.input) < n:
        raise ModelError(f"Expected {n} inputs, got {len(node.input)} - at operator {clip(node.op_type)}")
    return list(node.input)


def _cast(node: Any) -> int:
    to = next((int(a.i) for a in node.attribute if a.name == "to"), 0)
    if to not in (FLOAT, DOUBLE):
        raise Unfit("it casts to neither float32 nor float64")
    return to


def _array(tensor: Any) -> NDArray[Any]:
    """Raises: ModelError."""
    try:
        array: NDArray[Any] = require_onnx().numpy_helper.to_array(tensor)
    except (TypeError, ValueError, LookupError) as exc:
        raise ModelError(f"tensor {clip(tensor.name)} cannot be read: {clip(str(exc), 100)}") from exc
    return array


def _numbers(attribute: Any, get: Any) -> Any:
    """The value of an attribute; lists of numbers as arrays."""
    if len(attribute.ints):
        return np.array(attribute.ints, np.int64)
    if len(attribute.floats):
        return np.array(attribute.floats, np.float32)
    if attribute.HasField("t"):
        return np.atleast_1d(_array(attribute.t))
    return get(attribute)


# ---- ensembles -----------------------------------------------------------------------------------------------------


@dataclass
class _Ensemble:
    """The nodes of all trees, as the graph has them; `true` and `false` are nodes, or, of a leaf, nothing.

    Attributes:
        value: thresholds, in the type of the ensemble's input. tracks: whether missing values go to the true side.
        sets: members, for the modes MEMBER, whose value is the number of the set. exact: of each set, no truncation.
        leaf: number of a node's leaf, -1. fed, weights: shape (leaves, targets).
        n_classes: 0 for regressors. positive: whether no weight of a class is negative.
    """

    roots: NDArray[np.int64]
    mode: NDArray[np.int8]
    feature: NDArray[np.int64]
    value: NDArray[Any]
    tracks: NDArray[np.bool_]
    true: NDArray[np.int64]
    false: NDArray[np.int64]
    leaf: NDArray[np.int64]
    fed: NDArray[np.bool_]
    weights: NDArray[Any]
    base: NDArray[Any]
    average: bool
    post: str
    n_classes: int = 0
    positive: bool = False
    hits: NDArray[np.float64] | None = None
    sets: list[NDArray[np.int64]] = field(default_factory=list)
    exact: list[bool] = field(default_factory=list)


def _integers(attributes: dict[str, Any], name: str, n: int | None = None) -> NDArray[np.int64]:
    """A list of integers, of a length. Raises: ModelError."""
    found = attributes.get(name)
    if found is None or (isinstance(found, list) and not found):
        found = np.zeros(0, np.int64)
    if (
        not isinstance(found, np.ndarray)
        or found.dtype.kind not in "iu"
        or found.ndim != 1
        or (n is not None and len(found) != n)
    ):
        size = len(found) if hasattr(found, "__len__") else clip(found)
        raise ModelError(f"Expected {n} integers, got {size} - at attribute `{name}` of the tree ensemble")
    return found.astype(np.int64)


def _integer(attributes: dict[str, Any], name: str, default: int) -> int:
    """One integer. Raises: ModelError."""
    found = attributes.get(name, default)
    if not isinstance(found, int):
        raise ModelError(
            f"Expected an integer, got {clip(found)} - at attribute `{name}` of the tree ensemble"
        )
    return found


def _texts(attributes: dict[str, Any], name: str) -> list[bytes]:
    """A list of texts, empty where it is not there. Raises: ModelError."""
    found = attributes.get(name, [])
    if not isinstance(found, list):
        raise ModelError(f"Expected texts, got {clip(found)} - at attribute `{name}` of the tree ensemble")
    return found


def _text(attributes: dict[str, Any], name: str, default: bytes) -> bytes:
    """One text. Raises: ModelError."""
    found = attributes.get(name, default)
    if not isinstance(found, bytes):
        raise ModelError(f"Expected a text, got {clip(found)} - at attribute `{name}` of the tree ensemble")
    return found


def _hits(attributes: dict[str, Any], n: int) -> NDArray[np.float64] | None:
    """How often training came by each node; None where that cannot be known."""
    found = attributes.get("nodes_hitrates_as_tensor", attributes.get("nodes_hitrates"))
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f" or found.shape != (n,):
        return None
    return found.astype(np.float64)


def _reals(
    attributes: dict[str, Any], name: str, kind: Any, n: int | None, *, tensor: bool = False
) -> NDArray[Any]:
    """Numbers in the type of the ensemble's input, from `name` or `name`_as_tensor; none where neither is there."""
    long = name if tensor else f"{name}_as_tensor"
    found, also = attributes.get(long), None if tensor else attributes.get(name)
    for one in (found, also):
        if one is not None and not isinstance(one, np.ndarray | list):
            raise ModelError(
                f"Expected numbers, got {clip(one)} - at attribute `{name}` of the tree ensemble"
            )
    if found is not None and also is not None and len(found) and len(also):
        raise ModelError(f"Expected `{name}` or `{long}`, got both - at the tree ensemble")
    if found is not None and len(found):
        if not isinstance(found, np.ndarray) or found.dtype != kind:
            raise ModelError(f"Expected {np.dtype(kind).name} - at attribute `{long}` of the tree ensemble")
    elif also is not None:
        found = also
    if found is None or not len(found):
        found = np.zeros(0, kind)
    if (
        not isinstance(found, np.ndarray)
        or found.dtype.kind != "f"
        or found.ndim != 1
        or n not in (None, len(found))
    ):
        raise ModelError(
            f"Expected {n} numbers, got {len(found)} - at attribute `{name}` of the tree ensemble"
        )
    return found.astype(kind)


def _tracks(attributes: dict[str, Any], n: int) -> NDArray[np.bool_]:
    found = _integers(attributes, "nodes_missing_value_tracks_true")
    if len(found) not in (0, n):  # ONNX Runtime takes a shorter list for zeros at its end
        raise Unfit(f"it says of {len(found)} of {n} nodes where missing values go")
    return found == 1 if len(found) else np.zeros(n, np.bool_)


def _v3(way: _Way) -> _Ensemble:
    """TreeEnsembleClassifier and TreeEnsembleRegressor."""
    attributes = way.attributes
    classifies = way.node.op_type == "TreeEnsembleClassifier"
    kind = np.float64 if way.inside == DOUBLE else np.float32
    tree = _integers(attributes, "nodes_treeids")
    n = len(tree)
    if n == 0:
        raise ModelError("Expected nodes, got none - at attribute `nodes_treeids` of the tree ensemble")
    ids = _integers(attributes, "nodes_nodeids", n)
    names = _texts(attributes, "nodes_modes")
    if len(names) != n:
        raise ModelError(
            f"Expected {n} modes, got {len(names)} - at attribute `nodes_modes` of the tree ensemble"
        )
    try:
        mode = np.fromiter(map(_MODES.__getitem__, names), np.int8, n)
    except KeyError as exc:
        raise Unfit(f"it compares with {clip(exc.args[0])}") from None
    first = np.flatnonzero(np.r_[True, tree[1:] != tree[:-1]])
    if len(np.unique(tree[first])) != len(first):
        raise Unfit("the nodes of its trees are mixed")
    place = _Places(tree, ids)
    inner = mode != LEAF
    at = np.flatnonzero(inner)
    true, false = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for side, name in ((true, "nodes_truenodeids"), (false, "nodes_falsenodeids")):
        side[at] = place(tree[at], _integers(attributes, name, n)[at], name)
    leaves = np.flatnonzero(~inner)
    leaf = np.full(n, -1, np.int64)
    leaf[leaves] = np.arange(len(leaves))
    what = "class" if classifies else "target"
    if classifies:
        labels = _texts(attributes, "classlabels_strings")
        n_targets = len(labels) or len(_integers(attributes, "classlabels_int64s"))
    else:
        n_targets = _integer(attributes, "n_targets", 0)
    if not 1 <= n_targets <= 1024:
        raise Unfit(f"it has {n_targets} {'classes' if classifies else 'targets'}")
    of = _integers(attributes, f"{what}_ids")
    if len(of) and (of.min() < 0 or of.max() >= n_targets):
        bad = int(of.min() if of.min() < 0 else of.max())
        raise ModelError(f"Expected a {what} below {n_targets}, got {bad} - at attribute `{what}_ids`")
    nodes = place(
        _integers(attributes, f"{what}_treeids", len(of)),
        _integers(attributes, f"{what}_nodeids", len(of)),
        f"{what}_nodeids",
    )
    weights = _reals(attributes, f"{what}_weights", kind, len(of))
    positive = bool((weights >= 0).all())
    kept = leaf[nodes] >= 0  # ONNX Runtime ignores the weights of nodes that are no leaves
    if classifies and n_targets == 2 and len(np.unique(of)) != len(np.unique(of[kept])):
        raise Unfit("nodes that are no leaves speak of a class")
    table, fed = _fill(leaf[nodes[kept]], of[kept], weights[kept], len(leaves), n_targets)
    aggregate = _text(attributes, "aggregate_function", b"SUM")
    if aggregate not in (b"SUM", b"AVERAGE"):
        raise Unfit(f"it aggregates by {clip(aggregate)}")
    return _Ensemble(
        roots=first,
        mode=mode,
        feature=np.where(inner, _integers(attributes, "nodes_featureids", n), -1),
        value=_reals(attributes, "nodes_values", kind, n),
        tracks=_tracks(attributes, n),
        true=true,
        false=false,
        leaf=leaf,
        fed=fed,
        weights=table,
        base=_reals(attributes, "base_values", kind, None),
        average=aggregate == b"AVERAGE" and not classifies,
        post=_text(attributes, "post_transform", b"NONE").decode("utf-8", "replace"),
        n_classes=n_targets if classifies else 0,
        positive=positive,
        hits=_hits(attributes, n),
    )


class _Places:
    """Where the node of a tree stands: nodes are known by the numbers of their tree and their own."""

    def __init__(self, tree: NDArray[np.int64], ids: NDArray[np.int64]) -> None:
        n = len(ids)
        if ids.min() < 0 or tree.min() < 0 or ids.max() >= n or tree.max() >= 1 << 31:
            raise Unfit("its nodes or trees have numbers that ONNX Runtime does not take")
        self.n = n
        keys = tree * n + ids
        self.order = np.argsort(keys, kind="stable")
        self.keys = keys[self.order]
        twice = np.flatnonzero(self.keys[1:] == self.keys[:-1])
        if len(twice):
            where = int(self.order[twice[0] + 1])
            raise ModelError(
                f"Expected nodes of numbers of their own, got {int(ids[where])} twice - at tree {int(tree[where])}"
            )

    def __call__(self, tree: NDArray[np.int64], ids: NDArray[np.int64], name: str) -> NDArray[np.int64]:
        inside = (ids >= 0) & (ids < self.n) & (tree >= 0) & (tree < 1 << 31)
        keys = np.where(inside, tree, 0) * self.n + np.where(inside, ids, 0)
        found = np.minimum(np.searchsorted(self.keys, keys), self.n - 1)
        missing = np.flatnonzero(~inside | (self.keys[found] != keys))
        if len(missing):
            where = int(missing[0])
            raise ModelError(
                f"Expected a node of tree {int(tree[where])}, got {int(ids[where])}, which is not there "
                f"- at number {where} of attribute `{name}`"
            )
        return self.order[found]


def _fill(
    leaf: NDArray[np.int64], target: NDArray[np.int64], weight: NDArray[Any], n_leaves: int, n_targets: int
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Weights by leaf and target, and which are given."""
    if n_leaves * n_targets > 1 << 25:
        raise ModelError(f"Expected fewer weights, got {n_leaves} leaves of {n_targets} targets")
    table = np.zeros((n_leaves, n_targets), weight.dtype)
    fed = np.zeros((n_leaves, n_targets), np.bool_)
    table[leaf, target], fed[leaf, target] = weight, True
    if int(fed.sum()) != len(leaf):
        raise Unfit("a leaf is fed twice")
    hungry = np.flatnonzero(~fed.any(axis=1))
    if len(hungry):
        raise ModelError(f"Expected a weight for each leaf - at leaf {int(hungry[0])} of the tree ensemble")
    return table, fed


def _v5(way: _Way) -> _Ensemble:
    """TreeEnsemble: inner nodes and leaves have lists of their own."""
    attributes = way.attributes
    kind = np.float64 if way.inside == DOUBLE else np.float32
    roots = _integers(attributes, "tree_roots")
    feature = _integers(attributes, "nodes_featureids")
    m = len(feature)
    target = _integers(attributes, "leaf_targetids")
    n_leaves = len(target)
    weight = _reals(attributes, "leaf_weights", kind, n_leaves, tensor=True)
    n_targets = _integer(attributes, "n_targets", 0)
    if m == 0 or len(roots) == 0 or n_leaves == 0:
        raise ModelError(f"Expected trees, got {len(roots)} roots, {m} nodes and {n_leaves} leaves")
    if not 1 <= n_targets <= 1024:
        raise Unfit(f"it has {n_targets} targets")
    if target.min() < 0 or target.max() >= n_targets:
        raise ModelError(f"Expected targets below {n_targets} - at attribute `leaf_targetids`")
    mode = _integers(attributes, "nodes_modes", m)
    if mode.min() < LEQ or mode.max() > MEMBER:
        raise Unfit(f"it compares in the way {int(mode.max())}, which is not known")
    sides = []
    for side in ("true", "false"):
        child = _integers(attributes, f"nodes_{side}nodeids", m)
        ends = _integers(attributes, f"nodes_{side}leafs", m) != 0
        limit = np.where(ends, n_leaves, m)
        wrong = np.flatnonzero((child < 0) | (child >= limit))
        if len(wrong):
            where = int(wrong[0])
            raise ModelError(
                f"Expected a node below {int(limit[where])}, got {int(child[where])} - at number {where} of "
                f"attribute `nodes_{side}nodeids`"
            )
        sides.append(np.where(ends, m + child, child))
    if (sides[0] == sides[1]).any():  # ONNX Runtime reads a root like that in a way of its own
        raise Unfit("both sides of a node are one")
    value = _reals(attributes, "nodes_splits", kind, m, tensor=True)
    sets, exact, value = _members(attributes, mode, value, kind)
    pad = np.zeros(n_leaves)
    aggregate = _integer(attributes, "aggregate_function", 1)
    if aggregate not in (0, 1):
        raise Unfit(f"it aggregates in the way {aggregate}, which is MIN, MAX or not known")
    post = _integer(attributes, "post_transform", 0)
    if not 0 <= post < len(_POSTS):
        raise Unfit(f"its last step is number {post}")
    table, fed = _fill(np.arange(n_leaves), target, weight, n_leaves, n_targets)
    return _Ensemble(
        roots=roots,
        mode=np.r_[mode, np.full(n_leaves, LEAF)].astype(np.int8),
        feature=np.r_[feature, np.full(n_leaves, -1)],
        value=np.r_[value, pad].astype(kind),
        tracks=np.r_[_tracks(attributes, m), np.zeros(n_leaves, np.bool_)],
        true=np.r_[sides[0], pad].astype(np.int64),
        false=np.r_[sides[1], pad].astype(np.int64),
        leaf=np.r_[np.full(m, -1), np.arange(n_leaves)],
        fed=fed,
        weights=table,
        base=np.zeros(0, kind),
        average=aggregate == 0,
        post=[*_POSTS][post],
        sets=sets,
        exact=exact,
    )


def _members(
    attributes: dict[str, Any], mode: NDArray[np.int64], value: NDArray[Any], kind: Any
) -> tuple[list[NDArray[np.int64]], list[bool], NDArray[Any]]:
    """Sets of the nodes that ask for membership, which then carry the number of theirs.

    ONNX Runtime compares small sets exactly, one member after another. Larger ones it truncates, and what it asks about too.
    """
    members = _reals(attributes, "membership_values", kind, None, tensor=True)
    wants = np.flatnonzero(mode == MEMBER)
    gaps = np.flatnonzero(np.isnan(members))
    parts = [part[1:] if i else part for i, part in enumerate(np.split(members, gaps))]
    if parts and not len(parts[-1]):
        parts.pop()
    if len(parts) != len(wants) and len(wants):
        raise Unfit(f"it has {len(parts)} sets for {len(wants)} nodes that ask for membership")
    sets, exact = [], []
    value = value.copy()
    for number, (node, part) in enumerate(zip(wants.tolist(), parts, strict=True)):
        if not len(part):
            raise ModelError(f"Expected a member, got none - at node {node} of the tree ensemble")
        if (part != np.trunc(part)).any() or part.min() < 0 or part.max() > MAX_CATEGORY:
            raise Unfit(f"its node {node} asks for a member that is no integer from 0 to {MAX_CATEGORY}")
        sets.append(part.astype(np.int64))
        exact.append(bool(len(part) <= UNROLLED and part.max() <= UNROLLED))
        value[node] = number
    return sets, exact, value


# ---- the forest ----------------------------------------------------------------------------------------------------


def _forest(way: _Way, e: _Ensemble) -> Forest:
    inner = e.mode != LEAF
    wrong = np.flatnonzero(inner & ((e.feature < 0) | (e.feature >= way.n_features)))
    if len(wrong):
        raise ModelError(
            f"Expected a feature below {way.n_features}, got {int(e.feature[wrong[0]])} "
            f"- at node {int(wrong[0])} of the tree ensemble"
        )
    tree = check_trees(e.roots, e.true, e.false, inner, "the tree ensemble")
    _refuse_merged_sides(e)
    outputs, columns, post, weights, base = _sums(way, e)
    fed = e.fed[:, : weights.shape[1]]
    owner = owners(tree[e.leaf >= 0][np.argsort(e.leaf[e.leaf >= 0])], len(e.roots), fed)
    ends, words = bit_sets(e.sets)
    swapped = np.isin(e.mode, (GT, GTE, NEQ))
    equals = np.isin(e.mode, (EQ, NEQ))
    exact = np.array([*e.exact, True])
    number = np.where(e.mode == MEMBER, e.value, -1).astype(np.int64)
    rule = np.where(equals, 1, np.where(e.mode == MEMBER, np.where(exact[number], 4, 2), 0))
    tracks = e.tracks & inner
    return Forest(
        input=way.input,
        output=way.output,
        n_features=way.n_features,
        arrays={
            "roots": e.roots.astype(np.int32),
            "feature": np.where(inner, e.feature, -1).astype(np.int32),
            "threshold": _thresholds(way, e),
            "left": np.where(inner, np.where(swapped, e.false, e.true), e.leaf).astype(np.int32),
            "right": np.where(inner, np.where(swapped, e.true, e.false), 0).astype(np.int32),
            "missing": np.zeros(len(inner), np.uint8),
            # NaN satisfies no comparison but "not equal": it goes to the false side, unless it tracks the true one
            "missing_left": np.where(e.mode == NEQ, 0, np.where(swapped & inner, ~tracks, tracks)).astype(
                np.uint8
            ),
            "rule": rule.astype(np.uint8),
            "category": number.astype(np.int32),
            "set_ends": ends,
            "set_words": words,
            "values": np.ascontiguousarray(
                weights.ravel() if owner is None else weights.max(axis=1, initial=-np.inf, where=fed),
                np.float64,
            ),
            "targets": np.zeros(0, np.int32) if owner is None else owner,
            "base": base.astype(np.float64),
            "cover": _cover(e, inner),
        },
        n_outputs=outputs,
        n_columns=columns,
        post=post,
        doubles=way.inside == DOUBLE,
        wide=way.rows == DOUBLE,
        average=e.average,
        norm=way.norm,
    )


def _cover(e: _Ensemble, inner: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights of the training rows, where the graph has them: most converters write the same number for every node."""
    hits = e.hits
    if hits is None or not np.isfinite(hits).all() or (hits < 0).any():
        return np.zeros(0)
    below_it = hits[e.true[inner]] + hits[e.false[inner]]
    return hits if np.allclose(hits[inner], below_it, rtol=1e-3) else np.zeros(0)


def _refuse_merged_sides(e: _Ensemble) -> None:
    """ONNX Runtime makes one node of a chain of equalities, and forgets where the later ones send missing values."""
    at = np.flatnonzero(e.mode == EQ)
    then = e.false[at]
    chained = (e.mode[then] == EQ) & (e.feature[then] == e.feature[at]) & (e.tracks[then] != e.tracks[at])
    if chained.any():
        raise Unfit("a chain of its nodes disagrees about missing values")


def _thresholds(way: _Way, e: _Ensemble) -> NDArray[np.float64]:
    """Thresholds of `<=` and `==` for the rows as they come."""
    compares = e.mode < EQ
    equals = np.isin(e.mode, (EQ, NEQ))
    if np.isnan(e.value[compares | equals]).any():
        raise Unfit("a threshold is NaN")
    strict = np.isin(e.mode, (LT, GTE))
    if np.isneginf(e.value[strict]).any():
        raise Unfit("a threshold is below every number")
    value = np.where(strict, below(e.value), e.value)
    if way.rows != way.inside and (~(compares | (e.mode == LEAF))).any() and way.rows == DOUBLE:
        raise Unfit("it rounds its input and compares it for equality")
    if way.rows == way.inside:
        found = value.astype(np.float64)
    elif way.rows == DOUBLE:
        found = widened(value)
    else:
        found = float32_below(value).astype(np.float64)
        if (found[equals] != value[equals]).any():
            raise Unfit("it compares a float32 for equality with what is none")
    return np.where(compares | equals, found, 0.0)


def _sums(way: _Way, e: _Ensemble) -> tuple[int, int, str, NDArray[Any], NDArray[Any]]:
    """Number of sums and of columns, the last step, weights and base of the sums: as ONNX Runtime has them."""
    if e.post not in _POSTS:
        raise Unfit(f"its last step is {clip(e.post)}")
    post, n = _POSTS[e.post], e.weights.shape[1]
    if post == "softmax_zero" and way.inside == DOUBLE:
        raise Unfit("its last step is SOFTMAX_ZERO of float64")
    base = np.zeros(n, e.weights.dtype)
    single = e.n_classes == 2 and not e.fed[:, 1].any() and len(e.base) < 2
    if e.n_classes == 2:
        if len(e.base) > 2:
            raise ModelError(
                f"Expected at most 2 base values, got {len(e.base)} - at attribute `base_values`"
            )
        if len(e.base) == 2 and e.fed[:, 1].any():
            raise Unfit("it has two base values for two classes, which ONNX Runtime mixes up")
        base[: min(len(e.base), 1)] = e.base[:1]
    elif len(e.base):
        if len(e.base) != n:
            raise ModelError(f"Expected {n} base values, got {len(e.base)} - at attribute `base_values`")
        base = e.base
    if single:
        if e.post == "LOGISTIC":
            return _columns(way, 1, 2, "sigmoid", e.weights[:, :1], base[:1])
        if e.post == "PROBIT" or not e.positive:
            raise Unfit(
                f"it gives two classes from one sum with {e.post}, some weights being negative or PROBIT"
            )
        return _columns(way, 1, 2, "complement", e.weights[:, :1], base[:1])
    if n == 1:
        if post not in ("none", "probit"):
            raise Unfit(f"its last step is {e.post} of one sum, which ONNX Runtime leaves out")
        return _columns(way, 1, 1, post, e.weights, base)
    always = _always_fed(e)
    if e.n_classes == 2 and not always[1] and e.fed[:, 1].any():
        raise Unfit("only some of its leaves say something of the second class")
    never = ~e.fed.any(axis=0)
    if e.n_classes <= 2:  # then a target that no leaf fed has no base either
        base = np.where(never, 0, base)
        if ((base != 0) & ~always).any():
            raise Unfit("a base value is added only where a leaf feeds its target")
    return _columns(way, n, n, post, e.weights, base)


def _always_fed(e: _Ensemble) -> NDArray[np.bool_]:
    """Of each target, whether some tree feeds it from all its leaves, so that every row does."""
    tree = check_trees(e.roots, e.true, e.false, e.mode != LEAF, "the tree ensemble")
    of_leaf = np.empty(len(e.fed), np.int64)
    of_leaf[e.leaf[e.leaf >= 0]] = tree[e.leaf >= 0]
    found = np.zeros(e.fed.shape[1], np.bool_)
    for target in range(e.fed.shape[1]):
        hungry = np.bincount(of_leaf[~e.fed[:, target]], minlength=len(e.roots))
        found[target] = (hungry == 0).any()
    return found


def _columns(
    way: _Way, outputs: int, columns: int, post: str, weights: NDArray[Any], base: NDArray[Any]
) -> tuple[int, int, str, NDArray[Any], NDArray[Any]]:
    """With the probability of the other class, where the graph computes it from one sum."""
    final = columns if way.other is None else 2
    if way.widths[0] - {columns} or way.widths[1] - {final}:
        raise Unfit(f"its scores go through a shape that {columns} columns do not have")
    if way.other is not None:
        if columns != 1 or post != "none" or way.other != way.inside:
            raise Unfit("it subtracts its scores from 1 after their last step")
        return outputs, 2, "complement", weights, base
    return outputs, columns, post, weights, base
