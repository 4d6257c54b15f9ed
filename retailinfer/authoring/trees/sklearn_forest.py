"""Fitted trees, forests and gradient boosting of scikit-learn -> a forest that answers as they do, in float64 to the end.

Rules:
  * Read are attributes of the fitted object, which the caller has in memory; nothing is imported, unpickled or run, but for
    the constant that gradient boosting begins with, which its own DummyClassifier or DummyRegressor is asked for.
  * Trees and gradient boosting narrow rows to float32 and compare them with doubles; histogram gradient boosting compares
    doubles. Thresholds become the ones that do the same to rows as they come, float32 or float64.
  * Sums are in scikit-learn's order: a forest adds the answers of its trees and divides by their number; boosting begins with
    its constant and adds leaves times the learning rate.
  * Categories of histogram gradient boosting go through the encoder that it fits itself; sets here hold the raw codes. What
    the encoder does not know counts as missing.
  * NumPy's vectorised exponential (several classes; poisson, gamma) may differ from libm's in the last bit of a double; a
    float32 that differs for that is one in ten millions.
What the attributes mean: scikit-learn's `tree/_tree.pyx`, `ensemble/_forest.py`, `ensemble/_gb.py`,
`ensemble/_hist_gradient_boosting/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailinfer.authoring.trees import Parsed, Unfit, given_names, labels_of
from retailinfer.authoring.trees.nodes import MAX_CATEGORY, bit_sets, check_trees, float32_below, widened
from retailinfer.errors import ModelError, clip
from retailinfer.runtime.trees import Forest

__all__ = ["parse"]

_FORESTS = ("RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor")
_TREES = ("DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor")
_BOOSTED = ("GradientBoostingClassifier", "GradientBoostingRegressor")
_HISTOGRAMS = ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")
_CONSTANTS = ("prior", "most_frequent", "mean", "median", "quantile", "constant")
_LINKS = {"IdentityLink": "none", "LogLink": "exp"}  # of regressions
# Class of the loss -> last step of a classifier's one sum, and its scale.
_BINARY = {"HalfBinomialLoss": ("logistic", 1.0), "ExponentialLoss": ("logistic", 2.0)}


def parse(
    model: Any, *, dtype: str = "float32", input_name: str = "features", output_name: str | None = None
) -> Parsed:
    """The forest of a fitted estimator.

    Args:
        model: a tree, forest, (histogram) gradient boosting of scikit-learn, or of a class derived from one of them.
        dtype: of the rows, "float32" or "float64".
        output_name: None = "probabilities" of a classifier, "variable" of a regressor.
    Raises: Unfit for everything else, by name; ModelError for attributes that are no trees.
    """
    kind = next(
        (name for name in _names(model) if name in {*_FORESTS, *_TREES, *_BOOSTED, *_HISTOGRAMS}), None
    )
    if kind is None:
        raise Unfit(f"{type(model).__name__} is not among the trees of scikit-learn that have an exact form")
    for step in ("predict_proba", "predict", "_raw_predict"):
        owner = next((cls for cls in type(model).__mro__ if step in vars(cls)), None)
        if owner is not None and not owner.__module__.startswith("sklearn."):
            raise Unfit(f"{type(model).__name__} has a `{step}` of its own")
    try:
        made = _read(model, kind)
    except (AttributeError, TypeError, IndexError, KeyError) as exc:
        raise ModelError(
            f"{type(model).__name__} has not the attributes of a fitted {kind}: {type(exc).__name__}: {clip(str(exc), 150)}",
            hint="fit it with a scikit-learn from 1.6 on",
        ) from exc
    classifies = kind.endswith("Classifier")
    classes = labels_of(model) if classifies else ()
    names = [str(one) for one in model.feature_names_in_] if hasattr(model, "feature_names_in_") else None
    n_features = int(model.n_features_in_)
    columns = 2 if made.n_outputs == 1 and len(classes) == 2 else made.n_outputs
    if not 1 <= made.n_outputs <= 1024:
        raise Unfit(f"it has {made.n_outputs} outputs")
    return Parsed(
        forest=Forest(
            input=input_name,
            output=output_name or ("probabilities" if classifies else "variable"),
            n_features=n_features,
            arrays=_arrays(made, n_features, kind, wide=dtype == "float64"),
            n_outputs=made.n_outputs,
            n_columns=columns,
            post=made.post,
            post_scale=made.scale,
            base_first=made.base_first,
            doubles=True,
            wide=dtype == "float64",
            average=made.average,
        ),
        source=f"sklearn.{type(model).__name__}",
        feature_names=given_names(names),
        classes=classes,
        task="classification" if classifies else "regression",
        codes=made.codes,
    )


def _names(model: Any) -> list[str]:
    """Of the model's class and of those that it derives from, as far as they are scikit-learn's."""
    return [cls.__name__ for cls in type(model).__mro__ if cls.__module__.partition(".")[0] == "sklearn"]


# ---- estimators ------------------------------------------------------------------------------------------------------------


@dataclass
class _Made:
    """The nodes of all trees of an estimator, one tree after the other, and what follows them.

    Attributes:
        sizes: nodes of each tree. left, right: within their tree; -1 = a leaf.
        narrow: rows are rounded to float32 before they are compared.
        values: shape (nodes, width); of leaves. targets: of each tree, where width is 1.
        members: node -> codes that take the side of yes; `yes_left` says which side that is.
    """

    sizes: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    missing_left: NDArray[np.bool_]
    values: NDArray[np.float64]
    cover: NDArray[np.float64]
    narrow: bool
    n_outputs: int
    targets: NDArray[np.int32]
    base: NDArray[np.float64]
    base_first: bool = False
    average: bool = False
    post: str = "none"
    scale: float = 1.0
    codes: tuple[int, ...] = ()
    members: dict[int, tuple[NDArray[np.float64], bool]] | None = None
    names: tuple[str, ...] = ()


def _read(model: Any, kind: str) -> _Made:
    if kind in _HISTOGRAMS:
        return _histograms(model, kind)
    if kind in _BOOSTED:
        return _boosted(model, kind)
    trees = [one.tree_ for one in model.estimators_] if kind in _FORESTS else [model.tree_]
    n_outputs, n_classes = int(model.n_outputs_), 1
    if kind.endswith("Classifier"):
        if n_outputs != 1:
            raise Unfit(f"it gives {n_outputs} lists of probabilities")
        n_classes = int(model.n_classes_)
    made = _grown(trees, missing=True)
    values = _values(trees)
    made.values = values[:, 0, :n_classes] if n_classes > 1 or n_outputs == 1 else values[:, :, 0]
    made.n_outputs = made.values.shape[1]
    made.targets = np.zeros(len(trees) if made.n_outputs == 1 else 0, np.int32)
    made.base = np.zeros(made.n_outputs)
    made.average = kind in _FORESTS
    return made


def _grown(trees: Sequence[Any], *, missing: bool) -> _Made:
    """What trees of `sklearn.tree` have in common. missing: whether NaN has a side of its own, else it goes right."""
    if not trees:
        raise ModelError("Expected trees, got none - at the fitted estimator")

    sizes = np.array([len(tree.children_left) for tree in trees], np.int64)

    def joined(name: str, kind: Any) -> NDArray[Any]:
        return np.concatenate(
            [_column(tree, name, n).astype(kind) for tree, n in zip(trees, sizes.tolist(), strict=True)]
        )

    left = joined("children_left", np.int64)
    return _Made(
        sizes=sizes,
        feature=joined("feature", np.int64),
        threshold=joined("threshold", np.float64),
        left=left,
        right=joined("children_right", np.int64),
        missing_left=joined("missing_go_to_left", np.bool_) if missing else np.zeros(len(left), np.bool_),
        values=np.zeros((len(left), 1)),
        cover=joined("weighted_n_node_samples", np.float64),
        narrow=True,
        n_outputs=1,
        targets=np.zeros(len(trees), np.int32),
        base=np.zeros(1),
    )


def _column(tree: Any, name: str, n: int) -> NDArray[Any]:
    """An array of a tree, which has a number for each node."""
    found = np.asarray(getattr(tree, name))
    if found.ndim < 1 or len(found) != n:
        raise ModelError(
            f"Expected {n} `{name}`, got {len(found) if found.ndim else clip(found)} - at a fitted tree"
        )
    return found


def _values(trees: Sequence[Any]) -> NDArray[np.float64]:
    """Shape (nodes, outputs, classes)."""
    return np.concatenate(
        [_column(tree, "value", len(tree.children_left)).astype(np.float64) for tree in trees]
    )


def _boosted(model: Any, kind: str) -> _Made:
    rounds, width = model.estimators_.shape
    trees = [model.estimators_[i, k].tree_ for i in range(rounds) for k in range(width)]
    made = _grown(trees, missing=False)
    made.values = (float(model.learning_rate) * _values(trees)[:, 0, 0])[:, None]
    made.n_outputs = width
    made.targets = np.tile(np.arange(width, dtype=np.int32), rounds)
    made.base, made.base_first = _constant(model, width), True
    loss = type(model._loss).__name__
    if kind.endswith("Regressor"):
        made.post = _link(model)
    elif width > 1:
        made.post = _several(loss)
    else:
        made.post, made.scale = _two(loss)
    return made


def _constant(model: Any, width: int) -> NDArray[np.float64]:
    """What gradient boosting begins with, if that is the same for every row."""
    start = model.init_
    if isinstance(start, str):
        if start != "zero":
            raise Unfit(f"it begins with {clip(start)}")
        return np.zeros(width)
    name, strategy = type(start).__name__, getattr(start, "strategy", None)
    if name not in ("DummyClassifier", "DummyRegressor") or strategy not in _CONSTANTS:
        raise Unfit(f"it begins with the answers of {name}{f' ({strategy})' if strategy else ''}")
    found = np.asarray(
        model._raw_predict_init(np.zeros((1, int(model.n_features_in_)), np.float32)), np.float64
    )
    return found.reshape(width)


def _link(model: Any) -> str:
    link = type(model._loss.link).__name__
    if link not in _LINKS:
        raise Unfit(f"its last step is {link}")
    return _LINKS[link]


def _two(loss: str) -> tuple[str, float]:
    if loss not in _BINARY:
        raise Unfit(f"its loss is {loss}")
    return _BINARY[loss]


def _several(loss: str) -> str:
    if loss != "HalfMultinomialLoss":
        raise Unfit(f"its loss is {loss}")
    return "softmax_sum"


def _histograms(model: Any, kind: str) -> _Made:
    rounds = model._predictors
    width = int(model.n_trees_per_iteration_)
    if any(len(one) != width for one in rounds):
        raise ModelError(f"Expected {width} trees a round - at the fitted {kind}")
    trees = [tree for one in rounds for tree in one]
    nodes = np.concatenate([tree.nodes for tree in trees]) if trees else None
    if nodes is None:
        raise ModelError(f"Expected trees, got none - at the fitted {kind}")
    leaf = nodes["is_leaf"] != 0
    sizes = np.array([len(tree.nodes) for tree in trees], np.int64)
    places, categorical = np.arange(int(model.n_features_in_)), np.zeros(int(model.n_features_in_), np.bool_)
    if model.is_categorical_ is not None:
        categorical = np.asarray(model.is_categorical_, np.bool_)
        places = np.r_[
            np.flatnonzero(categorical), np.flatnonzero(~categorical)
        ]  # the encoder puts categories first
    feature = nodes["feature_idx"].astype(np.int64)
    wrong = np.flatnonzero(~leaf & ((feature < 0) | (feature >= len(places))))
    if len(wrong):
        raise ModelError(
            f"Expected a feature below {len(places)}, got {int(feature[wrong[0]])} - at node {int(wrong[0])}"
        )
    feature = np.where(leaf, -1, places[np.where(leaf, 0, feature)])
    base = np.asarray(model._baseline_prediction)
    if base.dtype != np.float64:
        raise Unfit(f"it sums in {base.dtype}")
    loss = type(model._loss).__name__
    post, scale = "none", 1.0
    if kind.endswith("Regressor"):
        post = _link(model)
    elif width > 1:
        post = _several(loss)
    else:
        post, scale = _two(loss)
    made = _Made(
        sizes=sizes,
        feature=feature,
        threshold=nodes["num_threshold"].astype(np.float64),
        left=np.where(leaf, -1, nodes["left"].astype(np.int64)),
        right=np.where(leaf, -1, nodes["right"].astype(np.int64)),
        missing_left=nodes["missing_go_to_left"] != 0,
        values=nodes["value"].astype(np.float64)[:, None],
        cover=nodes["count"].astype(np.float64),
        narrow=False,
        n_outputs=width,
        targets=np.tile(np.arange(width, dtype=np.int32), len(rounds)),
        base=base.astype(np.float64).reshape(width),
        base_first=True,
        post=post,
        scale=scale,
        codes=tuple(np.flatnonzero(categorical).tolist()),
        names=tuple(str(one) for one in getattr(model, "feature_names_in_", ())),
    )
    asks = np.flatnonzero((nodes["is_categorical"] != 0) & ~leaf)
    if len(asks):
        made.members = _members(model, trees, sizes, nodes, asks, feature, categorical)
    return made


def _members(
    model: Any,
    trees: Sequence[Any],
    sizes: NDArray[np.int64],
    nodes: NDArray[Any],
    asks: NDArray[np.int64],
    feature: NDArray[np.int64],
    categorical: NDArray[np.bool_],
) -> dict[int, tuple[NDArray[np.float64], bool]]:
    """Node -> the raw codes that take one side, and whether that is the left one. All others take the side of missing values.

    A code that is in a node's set goes left, another that the encoder knows goes right, and what it does not know goes where
    missing values go. Of the two sets, the one on the other side than missing values is enough.
    """
    encoder = getattr(model, "_preprocessor", None)
    if encoder is None:
        raise Unfit("it splits categories without an encoder")
    known = encoder.named_transformers_["encoder"].categories_
    columns = np.flatnonzero(categorical).tolist()
    raw = {column: _known(model, column, one) for column, one in zip(columns, known, strict=True)}
    tree = np.repeat(np.arange(len(trees)), sizes)
    found = {}
    for node in asks.tolist():
        words = trees[int(tree[node])].raw_left_cat_bitsets[int(nodes["bitset_idx"][node])]
        bits = np.unpackbits(np.asarray(words, "<u4").view(np.uint8), bitorder="little").astype(np.bool_)
        codes = raw[int(feature[node])]
        inside = np.zeros(len(codes), np.bool_)
        inside[: min(len(codes), len(bits))] = bits[: len(codes)]
        to_left = not nodes["missing_go_to_left"][node]
        found[node] = (codes[inside if to_left else ~inside], to_left)
    return found


def _known(model: Any, column: int, categories: Any) -> NDArray[np.float64]:
    """The categories of a column as numbers, in the order of their codes."""
    names = getattr(model, "feature_names_in_", None)
    name = clip(str(names[column])) if names is not None else str(column)
    own = np.asarray(categories)
    if own.dtype.kind == "O" and all(isinstance(one, (int, float)) for one in own.tolist()):
        own = own.astype(np.float64)
    if own.dtype.kind not in "buif":
        raise Unfit(f"feature {name} has categories that are no numbers")
    found = own.astype(np.float64)
    return found[~np.isnan(found)]  # the encoder puts the missing one last


# ---- the forest ------------------------------------------------------------------------------------------------------------


def _arrays(made: _Made, n_features: int, kind: str, *, wide: bool) -> dict[str, NDArray[Any]]:
    n = len(made.left)
    starts = np.cumsum(np.r_[0, made.sizes])[:-1]
    first = np.repeat(starts, made.sizes)
    inner = made.left >= 0
    what = f"the fitted {kind}"
    wrong = np.flatnonzero(inner & ((made.feature < 0) | (made.feature >= n_features)))
    if len(wrong):
        raise ModelError(
            f"Expected a feature below {n_features}, got {int(made.feature[wrong[0]])} - at node {int(wrong[0])} of {what}"
        )
    size, within = np.repeat(made.sizes, made.sizes), np.arange(n) - first
    for side in (made.left, made.right):
        wrong = np.flatnonzero(inner & ((side < 0) | (side >= size)))
        if len(wrong):
            at = int(wrong[0])
            raise ModelError(
                f"Expected a node below {int(size[at])}, got {int(side[at])} - at node {int(within[at])} of tree "
                f"{int(np.searchsorted(starts, at, side='right')) - 1} of {what}"
            )
    left, right = np.where(inner, made.left + first, 0), np.where(inner, made.right + first, 0)
    check_trees(starts, left, right, inner, what)
    rule, number = np.zeros(n, np.uint8), np.full(n, -1)
    threshold = _thresholds(made, inner, what, wide=wide)
    missing_left = made.missing_left & inner
    sets: list[NDArray[np.int64]] = []
    for node, (codes, to_left) in (made.members or {}).items():
        _check_codes(made, int(made.feature[node]), codes, wide=wide)
        if not to_left:
            left[node], right[node] = right[node], left[node]
        missing_left[node] = False  # the side of missing values is the one without the set
        if len(codes) == 1:
            rule[node], threshold[node] = 1, codes[0]
            continue
        rule[node], number[node], threshold[node] = 4, len(sets), 0.0
        sets.append(codes.astype(np.int64))
    ends, words = bit_sets(sets)
    leaves = np.flatnonzero(~inner)
    left[leaves] = np.arange(len(leaves))
    return {
        "roots": starts.astype(np.int32),
        "feature": np.where(inner, made.feature, -1).astype(np.int32),
        "threshold": threshold,
        "left": left.astype(np.int32),
        "right": right.astype(np.int32),
        "missing": np.zeros(n, np.uint8),
        "missing_left": missing_left.astype(np.uint8),
        "rule": rule,
        "category": number.astype(np.int32),
        "set_ends": ends,
        "set_words": words,
        "values": np.ascontiguousarray(made.values[leaves]).ravel(),
        "targets": made.targets,
        "base": made.base,
        "cover": made.cover,
    }


def _thresholds(made: _Made, inner: NDArray[np.bool_], what: str, *, wide: bool) -> NDArray[np.float64]:
    """Thresholds for rows as they come; they are compared with doubles, by some after the row was narrowed to float32."""
    own = np.where(inner, made.threshold, 0.0)
    if np.isnan(own).any():
        raise ModelError(f"Expected thresholds, got NaN - at node {int(np.isnan(own).argmax())} of {what}")
    if wide and not made.narrow:
        return own
    narrow = float32_below(own)
    return widened(narrow) if wide else narrow.astype(np.float64)


def _check_codes(made: _Made, column: int, codes: NDArray[np.float64], *, wide: bool) -> None:
    name = clip(made.names[column]) if made.names else str(column)
    with np.errstate(over="ignore"):
        same = wide or (codes.astype(np.float32).astype(np.float64) == codes).all()
    if len(codes) == 1 and same:
        return
    if (
        not same
        or (codes != np.trunc(codes)).any()
        or codes.min(initial=0) < 0
        or codes.max(initial=0) > MAX_CATEGORY
    ):
        raise Unfit(f"feature {name} has categories that are no integers from 0 to {MAX_CATEGORY}")
