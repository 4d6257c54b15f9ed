"""CatBoost's JSON (`save_model(..., format="json")`) -> a forest that answers as CatBoost does, in float64 to the last step.

Rules:
  * CatBoost reads features as float32 and asks `x > border`; the bit of a yes makes the index of a leaf. No stands left.
  * A missing value is no where the feature says AsFalse or AsIs, yes where it says AsTrue. (CatBoost itself refuses one in a
    feature that had none in training.)
  * Categories that are compared one by one are known by a hash of their text. Columns of a release hold integers, so the
    integers whose text has that hash are looked for, from MIN_CODE to MAX_CODE; a code outside is an unknown category.
  * Target statistics (CTR), texts and embeddings are Unfit, by feature. So is a category whose text is no integer.
  * Sums begin with 0, run through the trees and end with the bias, as in CatBoost's evaluator. Probabilities of several
    classes, and exponents, CatBoost computes with an exponential function of its own, whose relative error is 2e-15: the
    float32 that leaves here is the same, but for one in ten millions.
The format is written and read by CatBoost's `catboost/libs/model/model_export/json_model_helpers.cpp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from retailinfer.authoring.trees import Parsed, Unfit, given_names
from retailinfer.authoring.trees.nodes import (
    MAX_CATEGORY,
    MAX_NODES,
    MAX_TREES,
    bit_sets,
    check_trees,
    widened,
)
from retailinfer.errors import ModelError, clip
from retailinfer.runtime.trees import Forest

__all__ = ["MAX_CODE", "MIN_CODE", "hashes", "parse"]

MAX_BYTES = 1 << 30
MAX_TREE_DEPTH = 24  # of a symmetric tree, which has two to this power of leaves
MAX_FEATURES = 1 << 20
MIN_CODE, MAX_CODE = -(1 << 10), 1 << 20

# Loss -> task and last step. What is not here ends with the sum itself, as a regression.
_CLASSES = {
    "Logloss": "logistic",
    "CrossEntropy": "logistic",
    "Focal": "logistic",
    "MultiClass": "softmax_sum",
    "MultiClassOneVsAll": "logistic",
    "MultiLogloss": "logistic",
    "MultiCrossEntropy": "logistic",
}
_EXPONENTS = frozenset({"Poisson", "Tweedie"})
_RANKS = frozenset(
    {
        "GroupQuantile",
        "LambdaMart",
        "PairLogit",
        "PairLogitPairwise",
        "QueryCrossEntropy",
        "QueryRMSE",
        "QuerySoftMax",
        "StochasticFilter",
        "StochasticRank",
        "YetiRank",
        "YetiRankPairwise",
    }
)


# ---- the file ------------------------------------------------------------------------------------------------------


Number = Annotated[int, Meta(ge=-(1 << 31), lt=1 << 32)]  # indices are counted in 31 bits, hashes have 32


class _FloatFeature(msgspec.Struct):
    flat_feature_index: Number
    feature_index: Number
    borders: list[float] | None = None
    has_nans: bool = False
    nan_value_treatment: str = "AsIs"
    feature_id: str = ""
    feature_name: str = ""


class _Category(msgspec.Struct):
    flat_feature_index: Number
    feature_index: Number
    values: list[Number] | None = None
    feature_id: str = ""
    feature_name: str = ""


class _Element(msgspec.Struct):
    cat_feature_index: Number | None = None


class _Ctr(msgspec.Struct):
    borders: list[float] | None = None
    elements: list[_Element] | None = None


class _Hash(msgspec.Struct):
    hash: Number
    value: str


class _Features(msgspec.Struct):
    float_features: list[_FloatFeature] | None = None
    categorical_features: list[_Category] | None = None
    ctrs: list[_Ctr] | None = None
    cat_features_hash: list[_Hash] | None = None


class _Split(msgspec.Struct):
    split_index: Number
    split_type: str
    border: float | None = None
    float_feature_index: Number | None = None
    cat_feature_index: Number | None = None
    value: Number | None = None


class _Symmetric(msgspec.Struct):
    leaf_values: list[float] | None = None
    splits: list[_Split] | None = None
    leaf_weights: list[float] | None = None


class _Node(msgspec.Struct):
    value: float | list[float] | None = None
    weight: float | None = None
    split: _Split | None = None
    left: _Node | None = None
    right: _Node | None = None


class _ClassParams(msgspec.Struct):
    class_names: list[str | int | float | bool] | None = None


class _Loss(msgspec.Struct):
    type: str = ""


class _Params(msgspec.Struct):
    loss_function: _Loss | None = None


class _Info(msgspec.Struct):
    class_params: _ClassParams | None = None
    params: _Params | None = None


class _File(msgspec.Struct):
    features_info: _Features
    model_info: _Info | None = None
    oblivious_trees: list[_Symmetric] | None = None
    trees: list[_Node] | None = None
    scale_and_bias: tuple[float, list[float]] = (1.0, [])


def parse(
    data: bytes | str,
    *,
    dtype: str = "float32",
    input_name: str = "features",
    output_name: str | None = None,
) -> Parsed:
    """The forest of a model that CatBoost saved as JSON.

    Args:
        dtype: of the rows, "float32" or "float64"; of the latter, features are rounded to float32 as CatBoost does.
        output_name: None = "probabilities" of a classifier, "variable" of others.
    Raises: Unfit, ModelError.
    """
    if len(data) > MAX_BYTES:
        raise ModelError(f"Expected at most {MAX_BYTES} bytes of CatBoost's JSON, got {len(data)}")
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ModelError(
            f"this is no model that CatBoost saved as JSON: {clip(str(exc) or type(exc).__name__, 200)}"
        ) from exc
    features = _Table(file.features_info)
    if file.oblivious_trees is not None:
        grown = _symmetric(file.oblivious_trees, features)
    elif file.trees is not None:
        grown = _asymmetric(file.trees, features)
    else:
        raise ModelError("Expected `oblivious_trees` or `trees`, got neither - at CatBoost's JSON")
    return _parsed(file, features, grown, dtype, input_name, output_name)


# ---- features ------------------------------------------------------------------------------------------------------


class _Table:
    """What a file says of features: the questions that trees ask, in the order in which splits count them.

    Attributes:
        column, border, missing_left, kind: of each question; kind 0 = a border, 1 = a category, 2 = a statistic.
        value: hash of a category, as CatBoost keeps it, else 0.
    """

    def __init__(self, info: _Features) -> None:
        floats, categories = info.float_features or [], info.categorical_features or []
        places = [one.flat_feature_index for one in floats] + [one.flat_feature_index for one in categories]
        self.n = len(places)
        if sorted(places) != list(range(self.n)) or not 1 <= self.n <= MAX_FEATURES:
            known = set(places)
            missing = next((i for i in range(self.n + 1) if i not in known), 0)
            raise Unfit(
                f"its feature {missing} is neither a number nor a category (texts and embeddings are neither)"
            )
        self.names = [""] * self.n
        self.info = info
        for place, name, other in [
            *((one.flat_feature_index, one.feature_name, one.feature_id) for one in floats),
            *((one.flat_feature_index, one.feature_name, one.feature_id) for one in categories),
        ]:
            self.names[place] = name or other
        column: list[int] = []
        border: list[float] = []
        left: list[bool] = []
        for feature in floats:
            borders = feature.borders or []
            if feature.nan_value_treatment not in ("AsIs", "AsFalse", "AsTrue"):
                raise Unfit(
                    f"feature {self.name(feature.flat_feature_index)} treats missing values in a way of its own"
                )
            column += [feature.flat_feature_index] * len(borders)
            border += borders
            left += [not (feature.has_nans and feature.nan_value_treatment == "AsTrue")] * len(borders)
        n_borders = len(column)
        value: list[int] = [0] * n_borders
        for category in categories:
            values = category.values or []
            if len(set(values)) != len(values):
                raise ModelError(
                    f"Expected each category once - at feature {self.name(category.flat_feature_index)}"
                )
            column += [category.flat_feature_index] * len(values)
            value += values
        n_asked = len(column)
        n_ctrs = sum(len(ctr.borders or []) for ctr in info.ctrs or [])
        kinds = [n_borders, n_asked - n_borders, n_ctrs]
        self.kind = np.repeat(np.arange(3, dtype=np.int8), kinds)
        self.column = np.array([*column, *[-1] * n_ctrs], np.int32)
        with np.errstate(over="ignore"):
            self.border = np.array([*border, *[0.0] * (n_asked - n_borders + n_ctrs)], np.float64).astype(
                np.float32
            )
        if not np.isfinite(self.border).all():
            raise ModelError("Expected finite borders - at `features_info` of CatBoost's JSON")
        self.value = np.array([*value, *[0] * n_ctrs], np.int64)
        self.missing_left = np.array([*left, *[False] * (n_asked - n_borders + n_ctrs)], np.bool_)
        self.places: dict[str, dict[int | None, int]] = {
            "float_feature_index": {one.feature_index: one.flat_feature_index for one in floats},
            "cat_feature_index": {one.feature_index: one.flat_feature_index for one in categories},
        }

    def name(self, column: int) -> str:
        """Of a feature, as messages call it."""
        return clip(self.names[column]) if self.names[column] else str(column)

    def questions(self, splits: Sequence[_Split]) -> NDArray[np.int64]:
        """The questions that splits ask; each says twice what it asks, and has to say the same."""
        asked = np.array([split.split_index for split in splits], np.int64)
        wrong = np.flatnonzero((asked < 0) | (asked >= len(self.kind)))
        if len(wrong):
            where = int(wrong[0])
            raise ModelError(
                f"Expected a `split_index` below {len(self.kind)}, got {int(asked[where])} - at split {where} of the trees"
            )
        kind = self.kind[asked]
        if (kind == 2).any():
            self._refuse_statistics(int(asked[np.argmax(kind == 2)]))
        numeric = kind == 0
        floats, categories = self.places["float_feature_index"], self.places["cat_feature_index"]
        said = np.array(
            [
                floats.get(one.float_feature_index, -2)
                if one.cat_feature_index is None
                else categories.get(one.cat_feature_index, -2)
                for one in splits
            ],
            np.int64,
        )
        with np.errstate(over="ignore"):
            borders = np.array([one.border or 0.0 for one in splits], np.float64).astype(np.float32)
        values = np.array([one.value or 0 for one in splits], np.int64)
        same = (said == self.column[asked]) & np.where(
            numeric, borders == self.border[asked], values == self.value[asked]
        )
        if not same.all():
            where = int(np.argmin(same))
            raise ModelError(
                f"Expected a split to say what question {int(asked[where])} of `features_info` says "
                f"- at split {where} of the trees"
            )
        return asked

    def _refuse_statistics(self, question: int) -> None:
        ctrs, at = self.info.ctrs or [], question - int((self.kind != 2).sum())
        for ctr in ctrs:
            at -= len(ctr.borders or [])
            if at < 0:
                place = self.places["cat_feature_index"]
                found = [
                    place.get(one.cat_feature_index, -1)
                    for one in ctr.elements or []
                    if one.cat_feature_index is not None
                ]
                names = ", ".join(self.name(one) for one in found if one >= 0)
                raise Unfit(f"it asks for target statistics (CTR) of {names or 'a combination of features'}")
        raise ModelError(
            "Expected the statistics that a split asks for - at `features_info` of CatBoost's JSON"
        )

    def codes(self, asked: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
        """Question -> the integers that it says yes to, for the categories that trees ask for."""
        wanted = np.unique(asked[self.kind[asked] == 1])
        if not len(wanted):
            return {}
        texts = {one.hash & 0xFFFFFFFF: one.value for one in self.info.cat_features_hash or []}
        code, mine = _codes_of({int(v) & 0xFFFFFFFF for v in self.value[wanted]})
        found = {}
        for question in wanted.tolist():
            value, name = int(self.value[question]) & 0xFFFFFFFF, self.name(int(self.column[question]))
            found[question] = code[mine == value]
            if not len(found[question]):
                text = (
                    f"the category {clip(texts[value])}" if value in texts else f"a category (hash {value})"
                )
                raise Unfit(f"feature {name} has {text}, which is no integer from {MIN_CODE} to {MAX_CODE}")
        return found


# ---- hashes of categories ------------------------------------------------------------------------------------------

_K2, _K3, _MUL = (np.uint64(k) for k in (0x9AE16A3B2F90404F, 0xC949D7C7509E6557, 0x9DDFEA08EB382D69))


def hashes(codes: NDArray[np.int64]) -> NDArray[np.uint32]:
    """CatBoost's hash of the text of integers of at most 8 characters: the lower half of CityHash64 (its first version)."""
    codes = np.asarray(codes, np.int64)
    rest, negative = np.abs(codes).astype(np.uint32), codes < 0
    size = np.searchsorted(10 ** np.arange(1, 8), rest, side="right") + 1 + negative
    length = size.astype(np.uint64)
    text = np.where(negative, np.uint64(ord("-")), np.uint64(0))  # the first letter is the lowest byte
    for place in range(7):
        digit = (rest % 10 + ord("0")).astype(np.uint64)
        known = size - negative > place
        text |= np.where(
            known,
            digit << (np.uint64(8) * np.where(known, length - np.uint64(place + 1), np.uint64(0))),
            np.uint64(0),
        )
        rest //= 10
    byte, eight, word = np.uint64(0xFF), np.uint64(8), np.uint64(0xFFFFFFFF)
    with np.errstate(over="ignore"):
        # up to 3 letters: the first, the middle and the last
        y = (text & byte) + ((text >> (eight * (length >> np.uint64(1))) & byte) << eight)
        z = length + ((text >> (eight * (length - np.uint64(1))) & byte) << np.uint64(2))
        few = y * _K2 ^ z * _K3
        few = (few ^ few >> np.uint64(47)) * _K2
        # 4 to 8: the first four and the last four
        low = length + ((text & word) << np.uint64(3))
        high = text >> (eight * (np.maximum(length, np.uint64(4)) - np.uint64(4))) & word
        one = (low ^ high) * _MUL
        one ^= one >> np.uint64(47)
        two = (high ^ one) * _MUL
        two ^= two >> np.uint64(47)
        two *= _MUL
    found: NDArray[np.uint32] = np.where(size < 4, few, two).astype(np.uint32)
    return found


def _codes_of(wanted: set[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All integers of the range whose text has a wanted hash, and that hash."""
    codes = np.arange(MIN_CODE, MAX_CODE + 1)
    own = hashes(codes)
    hit = np.isin(own, np.array(sorted(wanted), np.uint32))
    return codes[hit], own[hit].astype(np.int64)


# ---- trees ---------------------------------------------------------------------------------------------------------


class _Grown:
    """Nodes of all trees, children as node numbers: `no` and `yes`; a leaf's `no` is its number. question -1 = a leaf."""

    def __init__(
        self, roots: Any, question: Any, no: Any, yes: Any, values: Any, cover: Any, width: int
    ) -> None:
        self.roots: NDArray[np.int64] = np.asarray(roots, np.int64)
        self.question: NDArray[np.int64] = np.asarray(question, np.int64)
        self.no: NDArray[np.int64] = np.asarray(no, np.int64)
        self.yes: NDArray[np.int64] = np.asarray(yes, np.int64)
        self.values: NDArray[np.float64] = np.asarray(values, np.float64)
        self.cover: NDArray[np.float64] = np.asarray(cover, np.float64)
        self.width = width


def _symmetric(trees: list[_Symmetric], features: _Table) -> _Grown:
    """Trees that ask one question a level: the last split is the highest bit of a leaf's index, so it is asked first."""
    if len(trees) > MAX_TREES:
        raise ModelError(f"Expected at most {MAX_TREES} trees, got {len(trees)} - at CatBoost's JSON")
    depth = np.array([len(tree.splits or []) for tree in trees], np.int64)
    if len(depth) and depth.max() > MAX_TREE_DEPTH:
        raise ModelError(
            f"Expected trees at most {MAX_TREE_DEPTH} deep, got {int(depth.max())} - at tree {int(depth.argmax())}"
        )
    n_leaves = 1 << depth
    n_values = np.array([len(tree.leaf_values or []) for tree in trees], np.int64)
    width = int(n_values[0] // n_leaves[0]) if len(trees) else 1
    wrong = np.flatnonzero(n_values != n_leaves * width)
    if len(wrong) or not 1 <= width <= 1024:
        where = int(wrong[0]) if len(wrong) else 0
        raise ModelError(
            f"Expected {int(n_leaves[where])} leaves of {width} values each, got {int(n_values[where])} - at tree {where}"
        )
    known = all(len(tree.leaf_weights or []) == n for tree, n in zip(trees, n_leaves.tolist(), strict=True))
    n_nodes = 2 * n_leaves - 1
    first, leaf = np.r_[0, np.cumsum(n_nodes)], np.r_[0, np.cumsum(n_leaves)]
    if first[-1] > MAX_NODES:
        raise ModelError(f"Expected at most {MAX_NODES} nodes, got {int(first[-1])} - at CatBoost's JSON")
    asked = features.questions([split for tree in trees for split in tree.splits or []])
    start = np.r_[0, np.cumsum(depth)]
    question = np.full(first[-1], -1)
    no, yes = np.zeros(first[-1], np.int64), np.zeros(first[-1], np.int64)
    cover = np.zeros(first[-1] if known else 0)
    for d in np.unique(depth).tolist():
        at = np.flatnonzero(depth == d)
        inner, base = (1 << d) - 1, first[at][:, None]
        node = np.arange(inner)
        level = np.frexp(node + 1)[1] - 1
        question[base + node] = asked[start[at][:, None] + (d - 1 - level)]
        no[base + node], yes[base + node] = base + 2 * node + 1, base + 2 * node + 2
        leaves = np.arange(1 << d)
        no[base + inner + leaves] = leaf[at][:, None] + leaves
        if known:
            below = np.array([trees[i].leaf_weights for i in at.tolist()], np.float64).reshape(len(at), -1)
            for k in range(d, -1, -1):
                cover[base + (1 << k) - 1 + np.arange(1 << k)] = below
                below = below.reshape(len(at), -1, 2).sum(axis=2) if k else below
    values = np.fromiter(
        (v for tree in trees for v in tree.leaf_values or []), np.float64, int(n_values.sum())
    )
    return _Grown(first[:-1], question, no, yes, values, cover, width)


def _asymmetric(trees: list[_Node], features: _Table) -> _Grown:
    """Trees of nodes within nodes."""
    if len(trees) > MAX_TREES:
        raise ModelError(f"Expected at most {MAX_TREES} trees, got {len(trees)} - at CatBoost's JSON")
    roots: list[int] = []
    splits: list[_Split | None] = []
    no: list[int] = []
    yes: list[int] = []
    values: list[float] = []
    weight: list[float] = []
    width, n_leaves, known = 0, 0, True
    for tree in trees:
        roots.append(len(no))
        stack = [(tree, -1, no)]
        while stack:
            node, parent, side = stack.pop()
            at = len(no)
            if parent >= 0:
                side[parent] = at
            yes.append(0)
            weight.append(node.weight or 0.0)
            if node.value is not None:
                own = node.value if isinstance(node.value, list) else [node.value]
                width = width or len(own)
                if len(own) != width or not 1 <= width <= 1024:
                    raise ModelError(
                        f"Expected {width} values of a leaf, got {len(own)} - at tree {len(roots) - 1}"
                    )
                values += own
                known &= node.weight is not None
                no.append(n_leaves)
                n_leaves += 1
                splits.append(None)
                continue
            if node.split is None or node.left is None or node.right is None:
                raise ModelError(
                    f"Expected a value, or a split with both its sides - at tree {len(roots) - 1}"
                )
            no.append(0)
            splits.append(node.split)
            stack += [(node.right, at, yes), (node.left, at, no)]
    inner = np.array([split is not None for split in splits], np.bool_)
    question = np.full(len(no), -1)
    question[inner] = features.questions([split for split in splits if split is not None])
    cover = np.array(weight) if known else np.zeros(0)
    if known:
        for at in np.flatnonzero(inner)[::-1].tolist():  # children come later
            cover[at] = cover[no[at]] + cover[yes[at]]
    return _Grown(roots, question, no, yes, values, cover, max(1, width))


# ---- the forest ----------------------------------------------------------------------------------------------------


def _parsed(
    file: _File, features: _Table, grown: _Grown, dtype: str, input_name: str, output_name: str | None
) -> Parsed:
    info = file.model_info or _Info()
    loss = info.params.loss_function.type if info.params and info.params.loss_function else ""
    if not loss:
        raise Unfit("it does not say what it was trained for")
    loss = loss.partition(":")[0]
    if loss == "RMSEWithUncertainty":
        raise Unfit("it was trained for RMSEWithUncertainty, whose two columns end in different ways")
    post = _CLASSES.get(loss, "exp" if loss in _EXPONENTS else "none")
    width = grown.width
    columns = 2 if loss in _CLASSES and width == 1 else width
    scale, bias = file.scale_and_bias
    values, base = grown.values, np.array(bias or [0.0], np.float64)
    if len(base) == 1 and base[0] == 0:
        base = np.zeros(width)
    if len(base) != width:
        raise ModelError(f"Expected {width} numbers, got {len(base)} - at the bias of CatBoost's JSON")
    if not np.isfinite(values).all() or not np.isfinite(base).all() or not np.isfinite(scale):
        raise ModelError("Expected finite values of leaves, scale and bias - at CatBoost's JSON")
    if scale != 1.0:
        if scale == 0 or abs(np.frexp(scale)[0]) != 0.5:
            raise Unfit(f"its sums are multiplied by {scale}")
        values = values * scale  # a power of two: every sum is then exactly that multiple
    inner = grown.question >= 0
    check_trees(grown.roots, grown.no, grown.yes, inner, "CatBoost's JSON")
    arrays = _arrays(features, grown, inner, values, base, dtype)
    classes: tuple[str | int, ...] = ()
    if loss in _CLASSES:
        given = info.class_params.class_names if info.class_params else None
        classes = tuple(_label(name) for name in given or ()) or tuple(range(columns))
        if len(classes) != columns:
            classes = tuple(range(columns))
    names = None if all(name in ("", str(i)) for i, name in enumerate(features.names)) else features.names
    task = "classification" if loss in _CLASSES else "ranking" if loss in _RANKS else "regression"
    return Parsed(
        forest=Forest(
            input=input_name,
            output=output_name or ("probabilities" if loss in _CLASSES else "variable"),
            n_features=features.n,
            arrays=arrays,
            n_outputs=width,
            n_columns=columns,
            post=post,
            doubles=True,
            wide=dtype == "float64",
        ),
        source="catboost",
        feature_names=given_names(names),
        classes=classes,
        task=task,
        codes=tuple(sorted(one.flat_feature_index for one in features.info.categorical_features or [])),
    )


def _label(name: str | int | float | bool) -> str | int:
    if isinstance(name, (str, bool)):
        return str(name)
    return int(name) if float(name).is_integer() else str(name)


def _arrays(
    features: _Table,
    grown: _Grown,
    inner: NDArray[np.bool_],
    values: NDArray[np.float64],
    base: NDArray[np.float64],
    dtype: str,
) -> dict[str, NDArray[Any]]:
    question = np.where(inner, grown.question, 0)
    n_questions = len(features.kind)
    category = inner & (features.kind[question] == 1) if n_questions else np.zeros(len(inner), np.bool_)
    border = features.border
    threshold = (
        (widened(border) if dtype == "float64" else border.astype(np.float64)) if n_questions else np.zeros(1)
    )
    codes = features.codes(grown.question[inner])
    rule, number = np.zeros(max(1, n_questions), np.uint8), np.full(max(1, n_questions), -1)
    sets: list[NDArray[np.int64]] = []
    for asked, own in codes.items():
        if len(own) == 1:
            rule[asked], threshold[asked] = 1, float(own[0])
        elif own.min() < 0 or own.max() > MAX_CATEGORY:
            raise Unfit(
                f"feature {features.name(int(features.column[asked]))} has integers of one hash, one below 0"
            )
        else:
            rule[asked], number[asked] = 4, len(sets)
            sets.append(own)
    ends, words = bit_sets(sets)
    column = features.column if n_questions else np.zeros(1, np.int32)
    missing_left = features.missing_left if n_questions else np.zeros(1, np.bool_)
    # A border: no is `x <= border`, and stands left. A category: yes is `x == code`, and stands left.
    left, right = np.where(category, grown.yes, grown.no), np.where(category, grown.no, grown.yes)
    return {
        "roots": grown.roots.astype(np.int32),
        "feature": np.where(inner, column[question], -1).astype(np.int32),
        "threshold": np.where(inner, threshold[question], 0.0),
        "left": np.where(inner, left, grown.no).astype(np.int32),
        "right": np.where(inner, right, 0).astype(np.int32),
        "missing": np.zeros(len(inner), np.uint8),
        "missing_left": (inner & missing_left[question]).astype(np.uint8),
        "rule": np.where(inner, rule[question], 0).astype(np.uint8),
        "category": np.where(inner, number[question], -1).astype(np.int32),
        "set_ends": ends,
        "set_words": words,
        "values": values,
        "targets": np.zeros(len(grown.roots) if grown.width == 1 else 0, np.int32),
        "base": base,
        "cover": grown.cover,
    }
