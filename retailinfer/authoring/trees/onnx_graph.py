"""ONNX graphs whose whole compute is one tree ensemble -> a forest.

Rules:
  * Read: TreeEnsembleClassifier and TreeEnsembleRegressor of ai.onnx.ml with float32 attributes, and around them what only
    hands a tensor on. Everything else is Unfit, by name.
  * `<` becomes `<=` of the next float32 below; `>` and `>=` swap their children, and the side of missing values with them.
  * ONNX Runtime sums in float32 in the order of the trees' first nodes and adds the base at the end; so does the forest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailinfer.authoring.facts import ML_DOMAIN
from retailinfer.authoring.preflight import require_onnx
from retailinfer.authoring.trees import Unfit
from retailinfer.runtime.trees import Forest

__all__ = ["forest_of_graph"]

_POSTS = {
    "NONE": "none",
    "LOGISTIC": "sigmoid",
    "SOFTMAX": "softmax",
    "SOFTMAX_ZERO": "softmax_zero",
    "PROBIT": "probit",
    "COMPLEMENT": "complement",
}
_MODES = {b"BRANCH_LEQ": 0, b"BRANCH_LT": 1, b"BRANCH_GT": 2, b"BRANCH_GTE": 3, b"LEAF": 4}
FLOAT = 1


def forest_of_graph(data: bytes) -> Forest:
    """The forest of a graph that `preflight.inspect` let through. Raises: Unfit."""
    graph = require_onnx().load_model_from_string(data).graph
    carriers = _carriers(graph)
    nodes = [node for node in graph.node if node.output[0] not in carriers]
    if len(nodes) != 1 or nodes[0].domain != ML_DOMAIN:
        raise Unfit(
            f"the graph has {len(nodes)} operators ({', '.join(sorted({n.op_type for n in nodes})[:5])})"
        )
    node = nodes[0]
    if node.op_type not in ("TreeEnsembleClassifier", "TreeEnsembleRegressor"):
        raise Unfit(f"its operator is {node.op_type}")
    classifies = node.op_type == "TreeEnsembleClassifier"
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [one for one in graph.input if one.name not in weights]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise Unfit(f"it has {len(inputs)} inputs and {len(graph.output)} outputs")
    if inputs[0].type.tensor_type.elem_type != FLOAT:
        raise Unfit("its input is not float32")
    n_features = _width(inputs[0])
    if n_features is None:
        raise Unfit("its input does not say how many features there are")
    if _source(carriers, node.input[0]) != inputs[0].name:
        raise Unfit("its ensemble does not read the input as it is")
    if _source(carriers, graph.output[0].name) != node.output[1 if classifies else 0]:
        raise Unfit("its output is not the ensemble's scores")
    attributes = {one.name: require_onnx().helper.get_attribute_value(one) for one in node.attribute}
    for name in attributes:
        if name.endswith("_as_tensor"):
            raise Unfit(f"it keeps `{name}` in double precision")
    arrays, leaf_of = _nodes(attributes)
    kind = "class" if classifies else "target"
    if classifies:
        labels = attributes.get("classlabels_int64s") or attributes.get("classlabels_strings") or []
        n_targets = len(labels)
    else:
        n_targets = int(attributes.get("n_targets", 1))
    outputs, columns = _values(arrays, leaf_of, attributes, kind, n_targets, classifies=classifies)
    aggregate = attributes.get("aggregate_function", b"SUM")
    if aggregate not in (b"SUM", b"AVERAGE"):
        raise Unfit(f"it aggregates by {aggregate.decode()}")
    post = attributes.get("post_transform", b"NONE").decode()
    if post not in _POSTS or post == "COMPLEMENT":
        raise Unfit(f"its last step is {post}")
    if outputs == 1 and columns == 2 and post == "NONE" and (arrays["values"] >= 0).all():
        post = "COMPLEMENT"  # probabilities: ONNX Runtime gives 1 - v and v
    elif outputs == 1 and columns == 2 and post != "LOGISTIC":
        raise Unfit(f"it gives two classes from one sum with {post}")
    if outputs == 1 and columns == 1 and post not in ("NONE", "PROBIT"):
        raise Unfit(f"its last step is {post} of one sum, which ONNX Runtime leaves out")
    return Forest(
        input=inputs[0].name,
        output=graph.output[0].name,
        n_features=n_features,
        arrays=arrays,
        n_outputs=outputs,
        n_columns=columns,
        post=_POSTS[post],
        average=aggregate == b"AVERAGE",
    )


def _width(entry: Any) -> int | None:
    dims = entry.type.tensor_type.shape.dim
    return int(dims[1].dim_value) if len(dims) == 2 and dims[1].dim_value > 0 else None


def _carriers(graph: Any) -> dict[str, str]:
    """Tensors that are another one under another name: behind Identity, or a factor of 1."""
    numpy_helper = require_onnx().numpy_helper
    ones = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == FLOAT
        and (numpy_helper.to_array(tensor) == 1.0).all()
        and list(tensor.dims) in ([], [1])
    }
    found = {}
    for node in graph.node:
        if node.op_type == "Identity" or (node.op_type in ("Mul", "Div") and node.input[1] in ones):
            found[node.output[0]] = node.input[0]
        elif node.op_type == "Mul" and node.input[0] in ones:
            found[node.output[0]] = node.input[1]
    return found


def _source(carriers: dict[str, str], name: str) -> str:
    while name in carriers:
        name = carriers[name]
    return name


def _nodes(attributes: dict[str, Any]) -> tuple[dict[str, NDArray[Any]], dict[tuple[int, int], int]]:
    """Arrays of the nodes, and (tree, node) -> number of its leaf."""
    trees = np.asarray(attributes.get("nodes_treeids", ()), np.int64)
    ids = np.asarray(attributes.get("nodes_nodeids", ()), np.int64)
    n = len(trees)
    if n == 0:
        raise Unfit("it has no nodes")
    names = attributes.get("nodes_modes", ())
    unknown = set(names) - set(_MODES)
    if unknown:
        raise Unfit(f"it compares with {', '.join(sorted(name.decode() for name in unknown))}")
    modes = np.array([_MODES[name] for name in names], np.int8)
    feature = np.asarray(attributes["nodes_featureids"], np.int64).astype(np.int32)
    threshold = np.asarray(attributes["nodes_values"], np.float32)
    tracks = np.asarray(attributes.get("nodes_missing_value_tracks_true") or np.zeros(n), np.uint8)
    if not len(modes) == len(ids) == len(feature) == len(threshold) == len(tracks) == n:
        raise Unfit("its nodes have attributes of different lengths")
    place = {key: i for i, key in enumerate(zip(trees.tolist(), ids.tolist(), strict=True))}
    if len(place) != n:
        raise Unfit("two nodes of a tree have one number")
    leaf = modes == 4
    left, right = np.zeros(n, np.int32), np.zeros(n, np.int32)
    inner = np.flatnonzero(~leaf)
    true = np.asarray(attributes["nodes_truenodeids"], np.int64)
    false = np.asarray(attributes["nodes_falsenodeids"], np.int64)
    try:
        for i in inner.tolist():
            tree = int(trees[i])
            left[i], right[i] = place[tree, int(true[i])], place[tree, int(false[i])]
    except KeyError as exc:
        raise Unfit(f"a node's child is not there: {exc}") from None
    swapped = np.isin(modes, (2, 3))
    left, right = np.where(swapped, right, left), np.where(swapped, left, right)
    # x < t is x <= the next below; x > t is not x <= t; x >= t is not x <= the next below
    below = np.isin(modes, (1, 3))
    with np.errstate(over="ignore"):
        threshold = np.where(below, np.nextafter(threshold, np.float32(-np.inf)), threshold)
    leaves = np.flatnonzero(leaf)
    left[leaves] = np.arange(len(leaves))
    first = np.flatnonzero(np.r_[True, trees[1:] != trees[:-1]])
    if len(np.unique(trees[first])) != len(first):
        raise Unfit("the nodes of its trees are mixed")
    _refuse_nan_comparisons(modes, threshold)
    arrays: dict[str, NDArray[Any]] = {
        "roots": first.astype(np.int32),
        "feature": np.where(leaf, -1, feature).astype(np.int32),
        "threshold": threshold.astype(np.float64),
        "left": left.astype(np.int32),
        "right": right.astype(np.int32),
        # NaN satisfies no comparison: it goes to the false side, unless it tracks the true one
        "missing_left": np.where(
            leaf, 0, np.where(swapped, 1 - np.minimum(tracks, 1), np.minimum(tracks, 1))
        ).astype(np.uint8),
        "missing": np.zeros(n, np.uint8),
        "rule": np.zeros(n, np.uint8),
        "category": np.full(n, -1, np.int32),
        "set_ends": np.zeros(1, np.int64),
        "set_words": np.zeros(0, np.uint32),
        "cover": np.zeros(0),  # ONNX does not keep it
    }
    return arrays, {key: int(left[i]) for key, i in place.items() if leaf[i]}


def _refuse_nan_comparisons(modes: NDArray[np.int8], threshold: NDArray[np.float32]) -> None:
    if np.isnan(threshold[modes != 4]).any():
        raise Unfit("a threshold is NaN")


def _values(
    arrays: dict[str, NDArray[Any]],
    leaf_of: dict[tuple[int, int], int],
    attributes: dict[str, Any],
    kind: str,
    n_targets: int,
    *,
    classifies: bool,
) -> tuple[int, int]:
    """Fill `values`, `targets` and `base`; returns the number of sums and of columns."""
    trees, nodes, ids = (
        np.asarray(attributes.get(f"{kind}_{what}", ()), np.int64).tolist()
        for what in ("treeids", "nodeids", "ids")
    )
    weights = np.asarray(attributes.get(f"{kind}_weights", ()), np.float32)
    if not len(trees) == len(nodes) == len(ids) == len(weights) or n_targets < 1:
        raise Unfit(f"its {kind} attributes have different lengths")
    used = set(ids)
    if not used <= set(range(n_targets)):
        raise Unfit(f"it feeds {kind} {max(used)} of {n_targets}")
    n_leaves = len(leaf_of)
    single = classifies and n_targets == 2 and len(used) == 1  # one sum makes both probabilities
    n_outputs = 1 if single else n_targets
    table = np.zeros((n_leaves, n_outputs), np.float32)
    written = np.zeros((n_leaves, n_outputs), np.bool_)
    for tree, node, target, weight in zip(trees, nodes, ids, weights, strict=True):
        leaf = leaf_of.get((tree, node))
        at = 0 if single else target
        if leaf is None or written[leaf, at]:
            raise Unfit("a leaf is fed twice, or is none")
        table[leaf, at], written[leaf, at] = weight, True
    base = np.asarray(attributes.get("base_values") or (), np.float32)
    if len(base) not in (0, n_outputs):
        raise Unfit(f"it has {len(base)} base values for {n_outputs} sums")
    arrays["base"] = base.astype(np.float64) if len(base) else np.zeros(n_outputs)
    owner = _tree_targets(arrays, written)
    if owner is None:
        arrays["values"], arrays["targets"] = table.ravel().astype(np.float64), np.zeros(0, np.int32)
    else:
        arrays["values"] = table.max(axis=1, initial=-np.inf, where=written).astype(np.float64)
        arrays["targets"] = owner
    return n_outputs, 2 if single else n_targets


def _tree_targets(arrays: dict[str, NDArray[Any]], written: NDArray[np.bool_]) -> NDArray[np.int32] | None:
    """The one output that each tree feeds; None where a leaf feeds several, or none."""
    if written.shape[1] == 1 and written.all():
        return np.zeros(len(arrays["roots"]), np.int32)
    if (written.sum(axis=1) != 1).any():
        return None
    of_leaf = written.argmax(axis=1)
    ends = np.append(arrays["roots"][1:], len(arrays["feature"]))
    owner = []
    for start, end in zip(arrays["roots"].tolist(), ends.tolist(), strict=True):
        leaves = arrays["left"][start:end][arrays["feature"][start:end] < 0]
        found = np.unique(of_leaf[leaves])
        if len(found) != 1:
            return None
        owner.append(int(found[0]))
    return np.array(owner, np.int32)
