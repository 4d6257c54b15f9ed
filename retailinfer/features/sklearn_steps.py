"""What each transformer of scikit-learn does to cells, read from the attributes that `fit` left in it.

Rules:
  * scikit-learn is not imported. A transformer is known by its exact class: a subclass may do anything.
  * What cannot be copied exactly is refused with the path of its step, and all of it is named at once.
  * Arithmetic in float32 is refused: its results depend on the release of scikit-learn, and requests bring float64.
The form of cells is sklearn_cells.py; the door, with the comparison of both on a sample, from_sklearn.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailinfer.columns import Key, Step
from retailinfer.errors import SpecError, clip
from retailinfer.features.sklearn_cells import (
    REFUSED,
    Cell,
    Group,
    Hot,
    Pick,
    Selector,
    Source,
    Value,
    is_nan,
    numbers,
    with_nan_filled,
)

__all__ = ["Block", "Refusals", "check_sources", "is_transformer", "known_missing", "trace"]

F64 = NDArray[np.float64]
FLOAT64, FLOAT32 = np.dtype(np.float64), np.dtype(np.float32)
BOOL, OBJECT = np.dtype(np.bool_), np.dtype(object)

ADVICE = {
    "PolynomialFeatures": "declare products as c.product",
    "PowerTransformer": "FunctionTransformer(numpy.log1p) or c.numeric(transform=...) have serving twins",
    "QuantileTransformer": "KBinsDiscretizer is the near thing that can be copied",
    "KNNImputer": "it needs the training rows; SimpleImputer can be copied",
    "IterativeImputer": "it is a model of its own; SimpleImputer can be copied",
    "CountVectorizer": "c.hashed and c.sequence read texts and lists of words",
    "TfidfVectorizer": "c.hashed and c.sequence read texts and lists of words",
    "HashingVectorizer": "c.hashed and c.sequence read texts and lists of words",
    "FeatureHasher": "c.hashed hashes one value or a cross of several",
}
MIXES = frozenset(
    {
        "Normalizer",
        "PCA",
        "IncrementalPCA",
        "KernelPCA",
        "SparsePCA",
        "TruncatedSVD",
        "FastICA",
        "NMF",
        "FactorAnalysis",
        "SplineTransformer",
        "KernelCenterer",
        "RBFSampler",
        "Nystroem",
        "GaussianRandomProjection",
        "SparseRandomProjection",
        "RandomTreesEmbedding",
        "LinearDiscriminantAnalysis",
    }
)
WHOLES = frozenset(
    {"ColumnTransformer", "FeatureUnion", "Pipeline"}
)  # of steps, which read columns themselves
SELECTORS = frozenset(
    {
        "VarianceThreshold",
        "SelectKBest",
        "SelectPercentile",
        "SelectFpr",
        "SelectFdr",
        "SelectFwe",
        "GenericUnivariateSelect",
        "SelectFromModel",
        "RFE",
        "RFECV",
        "SequentialFeatureSelector",
    }
)


@dataclass(frozen=True)
class Block:
    """A matrix of scikit-learn: its columns, whether it is sparse, whether it is a table with names and dtypes by column."""

    cells: tuple[Cell, ...]
    sparse: bool = False
    frame: bool = False

    @property
    def names(self) -> list[str]:
        return [cell.name for cell in self.cells]

    def as_array(self, sparse: bool = False) -> Block:
        """The same as one array: all columns have the dtype that holds them all."""
        dtype = _common(self.cells)
        if sparse and dtype == OBJECT:
            dtype = FLOAT64
        return Block(tuple(replace(cell, dtype=dtype) for cell in self.cells), sparse)


class Refusals:
    """What could not be copied, and the fields of which no value may be missing."""

    def __init__(self) -> None:
        self.named: list[str] = []
        self.fields: set[str] = set()

    def missing(self, cells: Sequence[Cell]) -> tuple[Cell, ...]:
        """Cells of a step that raises an error for NaN: a missing value is refused, and so is what a lookup makes NaN."""
        out: list[Cell] = []
        for cell in cells:
            if cell.null is None or is_nan(cell.null):
                self.fields.add(cell.source.field)
            what = cell.what
            if isinstance(what, Pick) and what.selector.keys is not None and np.isnan(what.values[-2]):
                what = Pick(what.selector.refusing(other=True, null=False), what.values)
            out.append(replace(cell, what=what))
        return tuple(out)

    def raise_if_any(self) -> None:
        """Raises: SpecError with every step that was named."""
        if self.named:
            n = len(self.named)
            raise SpecError(
                f"{n} step{'s' if n > 1 else ''} of the pipeline cannot be copied exactly: {'; '.join(self.named)}",
                hint="compute such a feature before the request, or leave the step to the model: a Pipeline of it and the "
                "estimator, trained on what the steps before give",
            )


class _Refused(Exception):  # noqa: N818 - control flow of this file: it ends in a SpecError
    """One step cannot be copied."""


@dataclass(frozen=True)
class _Step:
    """One transformer and where it stands."""

    made: Any
    path: str
    refusals: Refusals

    @property
    def kind(self) -> str:
        return type(self.made).__name__

    def refuse(self, why: str) -> _Refused:
        return _Refused(f"`{self.path}: {self.kind}` ({why})" if self.path else f"`{self.kind}` ({why})")

    def learned(self, name: str) -> Any:
        """An attribute that `fit` leaves."""
        try:
            return getattr(self.made, name)
        except AttributeError:
            raise self.refuse(f"it is not fitted: it has no `{name}`") from None

    def under(self, name: str, made: Any) -> _Step:
        return _Step(made, f"{self.path}.{name}" if self.path else name, self.refusals)

    @property
    def gives_frame(self) -> bool:
        """Whether its output is a table, because it or scikit-learn as a whole was told so (`set_output`)."""
        told = getattr(self.made, "_sklearn_output_config", {}).get("transform")
        if told is None and "sklearn" in sys.modules:
            told = sys.modules["sklearn"].get_config().get("transform_output")
        return told not in (None, "default")


def trace(made: Any, block: Block, path: str, refusals: Refusals) -> Block | None:
    """What a fitted transformer makes of a block; None where it, or a part of it, cannot be copied: `refusals` says what."""
    step = _Step(made, path, refusals)
    try:
        return _run(step, block)
    except _Refused as exc:
        refusals.named.append(str(exc))
        return None


def is_transformer(step: Any) -> bool:
    """Whether the last step of a pipeline changes columns, where others predict."""
    return step in (None, "passthrough") or (hasattr(step, "transform") and not hasattr(step, "predict"))


def _run(step: _Step, block: Block) -> Block | None:
    made = step.made
    if made is None or (isinstance(made, str) and made == "passthrough"):
        return block
    module = type(made).__module__.partition(".")[0]
    how = STEPS.get(step.kind) if module == "sklearn" else None
    if step.kind in SELECTORS and module == "sklearn":
        how = _selector
    if how is None:
        raise step.refuse(_why_not(made, step.kind, module))
    if step.kind not in WHOLES:
        check_sources(block.cells)
    n = getattr(made, "n_features_in_", None)
    if n is not None and n != len(block.cells):
        raise step.refuse(f"it was fitted on {n} columns, and gets {len(block.cells)}")
    return how(step, block)


def check_sources(cells: Sequence[Cell]) -> None:
    """Raises: SpecError for a column that a step reads and no field can bring."""
    for cell in cells:
        if cell.source.problem is not None:
            raise SpecError(cell.source.problem)


def _why_not(made: Any, kind: str, module: str) -> str:
    if module == "imblearn":
        return "its samplers matter in training only: give scikit-learn's Pipeline of the other fitted steps"
    if module != "sklearn":
        known = {c.__name__ for c in type(made).__mro__ if c.__module__.partition(".")[0] == "sklearn"} & set(
            STEPS
        )
        extra = f", a subclass of {min(known)} that may do anything" if known else ""
        return f"a class of `{module}`{extra}"
    if hasattr(made, "best_estimator_") or kind.endswith("SearchCV"):
        return "a search: give its best_estimator_"
    if kind in MIXES:
        return "it mixes columns"
    return ADVICE.get(kind, "there is no column that computes the same")


# ---- dtypes ----------------------------------------------------------------------------------------------------------


def _common(cells: Sequence[Cell]) -> np.dtype[Any]:
    """The dtype of one array of these columns."""
    dtypes = [cell.dtype for cell in cells] or [FLOAT64]
    return OBJECT if OBJECT in dtypes else np.result_type(*dtypes)


def _no_text(step: _Step, cells: Sequence[Cell]) -> None:
    for cell in cells:
        if isinstance(cell.what, Value) and cell.what.is_text:
            raise step.refuse(f"it gets text, of column `{cell.name}`")


def _float_dtype(step: _Step, cells: Sequence[Cell]) -> np.dtype[Any]:
    """The dtype in which a step takes numbers: as they come where all are float32, else float64."""
    _no_text(step, cells)
    dtype = _common(cells)
    if dtype.kind == "f" and dtype not in (FLOAT64, FLOAT32):
        raise step.refuse(
            f"it computes in {dtype}, because all its columns are: convert the table to float64"
        )
    return FLOAT32 if dtype == FLOAT32 else FLOAT64


def _arithmetic(step: _Step, block: Block) -> tuple[Cell, ...]:
    """The cells of a step that computes with numbers, in float64."""
    if _float_dtype(step, block.cells) == FLOAT32:
        raise step.refuse(
            f"it computes in float32, because all its columns are (`{block.cells[0].name}`, ...): "
            "train on float64, frame.astype('float64')"
        )
    return block.cells


def _as_numbers(cell: Cell) -> Cell:
    """None in an array of objects becomes NaN when the array becomes one of numbers."""
    if isinstance(cell.what, Value) and cell.what.null is None:
        return replace(cell, what=replace(cell.what, null=float("nan")))
    return cell


def _constants(values: Any) -> list[float]:
    return [float(v) for v in np.asarray(values, dtype=np.float64)]


# ---- names -----------------------------------------------------------------------------------------------------------


def _named(step: _Step, cells: Sequence[Cell], names_in: Sequence[str]) -> tuple[Cell, ...]:
    """Cells under the names that the transformer itself gives them, where it can."""
    ask = getattr(step.made, "get_feature_names_out", None)
    try:
        names = None if ask is None else [str(name) for name in ask(np.asarray(names_in, dtype=object))]
    except Exception:  # noqa: BLE001 - a transformer without names raises as it likes, and cells have names of their own
        names = None
    if names is None or len(names) != len(cells):
        return tuple(cells)
    return tuple(replace(cell, name=name) for cell, name in zip(cells, names, strict=True))


# ---- scaling ---------------------------------------------------------------------------------------------------------


def _scaled(step: _Step, block: Block, by_column: Callable[[int], list[Step]]) -> Block:
    cells = [numbers(_as_numbers(cell), *by_column(i)) for i, cell in enumerate(_arithmetic(step, block))]
    return Block(_named(step, cells, block.names), block.sparse, step.gives_frame)


def _divide(block: Block, scale: float) -> Step:
    """Of dense columns a division; of sparse ones scikit-learn multiplies by the reciprocal."""
    return Step("multiply", 1.0 / scale) if block.sparse else Step("divide", scale)


def _centred(step: _Step, block: Block, center: str | None, scale: str | None) -> Block:
    """Less the centre, over the scale: names of the learned attributes, None for what is not done."""
    centers = None if center is None else _constants(step.learned(center))
    scales = None if scale is None else _constants(step.learned(scale))

    def by_column(i: int) -> list[Step]:
        first = [] if centers is None else [Step("subtract", centers[i])]
        return first if scales is None else [*first, _divide(block, scales[i])]

    return _scaled(step, block, by_column)


def _standard_scaler(step: _Step, block: Block) -> Block:
    made = step.made
    return _centred(step, block, "mean_" if made.with_mean else None, "scale_" if made.with_std else None)


def _min_max_scaler(step: _Step, block: Block) -> Block:
    scales, lows = _constants(step.learned("scale_")), _constants(step.learned("min_"))
    low, high = _constants(step.made.feature_range)
    clips = [Step("clip", low, high)] if step.made.clip else []
    return _scaled(step, block, lambda i: [Step("multiply", scales[i]), Step("add", lows[i]), *clips])


def _max_abs_scaler(step: _Step, block: Block) -> Block:
    scales = _constants(step.learned("scale_"))
    clips = [Step("clip", -1.0, 1.0)] if getattr(step.made, "clip", False) else []
    return _scaled(step, block, lambda i: [_divide(block, scales[i]), *clips])


def _robust_scaler(step: _Step, block: Block) -> Block:
    made = step.made
    center, scale = "center_" if made.with_centering else None, "scale_" if made.with_scaling else None
    return _centred(step, block, center, scale)


def _function_transformer(step: _Step, block: Block) -> Block:
    made = step.made
    if made.validate:
        _no_text(step, block.cells)
        block = replace(block, cells=step.refusals.missing(block.cells), frame=False)
    frame = block.frame or step.gives_frame
    if made.func is None:
        return replace(block, cells=_named(step, block.cells, block.names), frame=frame)
    found = "log1p" if made.func is np.log1p else "sqrt" if made.func is np.sqrt else None
    if found is None or made.kw_args:
        name = getattr(made.func, "__name__", type(made.func).__name__)
        raise step.refuse(f"its function `{name}` is none of numpy.log1p, numpy.sqrt and None")
    whole = {np.dtype(t) for t in (np.int32, np.int64, np.uint32, np.uint64)}
    for cell in block.cells:
        dtype = cell.dtype if block.frame else _common(block.cells)
        if dtype not in {FLOAT64, *whole}:
            raise step.refuse(
                f"it computes in the dtype of column `{cell.name}`, {dtype}: convert the table to float64"
            )
    _no_text(step, block.cells)
    cells = [numbers(cell, Step(found)) for cell in block.cells]
    return Block(_named(step, cells, block.names), block.sparse, frame)


# ---- what is missing -------------------------------------------------------------------------------------------------


def known_missing(value: Any) -> bool:
    """What a null of a request can stand for: NaN, None, pandas.NA."""
    return value is None or is_nan(value) or type(value).__name__ == "NAType"


def _is_missing(value: Any, marker: Any) -> bool:
    """Whether an imputer takes a value for missing."""
    if value is REFUSED:
        return False
    if type(marker).__name__ == "NAType":
        return known_missing(value)
    return value is None if marker is None else is_nan(value)


def _check_marker(step: _Step) -> None:
    marker = step.made.missing_values
    if not known_missing(marker):
        raise step.refuse(
            f"missing_values={clip(marker)}: only NaN, None and pandas.NA are nulls of a request"
        )


def _simple_imputer(step: _Step, block: Block) -> Block:
    made = step.made
    _check_marker(step)
    statistics = np.asarray(step.learned("statistics_"), dtype=object)
    whole = made.strategy in ("most_frequent", "constant")
    dtype = _common(block.cells) if whole else _float_dtype(step, block.cells)
    before = [cell if dtype == OBJECT else _as_numbers(cell) for cell in block.cells]
    if made.missing_values is None:  # then NaN is an error
        step.refusals.missing([cell for cell in before if is_nan(cell.null)])
    cells: list[Cell] = []
    for cell, statistic in zip(before, statistics, strict=True):
        if not known_missing(statistic):
            cells.append(replace(_imputed(step, cell, statistic, dtype), dtype=dtype))
        elif made.keep_empty_features:
            raise step.refuse(f"column `{cell.name}` had no value in fit")
    kept = [n for n, s in zip(block.names, statistics, strict=True) if not known_missing(s)]
    if made.add_indicator:
        features = [int(i) for i in step.learned("indicator_").features_]
        cells += [
            _indicator(before[i], made.missing_values, f"missingindicator_{block.names[i]}") for i in features
        ]
        kept += [f"missingindicator_{block.names[i]}" for i in features]
    cells = [replace(cell, name=name) for cell, name in zip(cells, kept, strict=True)]
    out = Block(_named(step, cells, block.names), block.sparse)
    return replace(out, frame=True) if step.gives_frame else out.as_array()


def _imputed(step: _Step, cell: Cell, statistic: Any, dtype: np.dtype[Any]) -> Cell:
    what = cell.what
    if isinstance(what, Value) and what.is_text:
        if not isinstance(statistic, str):
            raise step.refuse(f"it fills text, of column `{cell.name}`, with {clip(statistic)}")
        filled = _is_missing(what.null, step.made.missing_values)
        return replace(cell, what=replace(what, null=str(statistic)) if filled else what)
    try:
        number = float(np.asarray(statistic).astype(dtype if dtype.kind == "f" else FLOAT64))
    except (TypeError, ValueError):
        raise step.refuse(f"it fills numbers, of column `{cell.name}`, with {clip(statistic)}") from None
    if isinstance(what, Value) and not what.steps and not _is_missing(what.null, step.made.missing_values):
        return cell
    if step.made.missing_values is None and not (isinstance(what, Value) and what.null is None):
        return cell
    return with_nan_filled(cell, number)


def _indicator(cell: Cell, marker: Any, name: str) -> Cell:
    """1 where the imputer takes a value for missing."""
    what = cell.what
    if isinstance(what, Value):
        found = np.array([0.0, float(_is_missing(what.missing, marker))])
        selector = Selector(what.source, keys=(), refuse_null=what.null is REFUSED)
        return Cell(Pick(selector, found), name, BOOL)
    flags = np.isnan(what.values).astype(np.float64) if marker is not None else np.zeros(what.selector.n)
    return Cell(Pick(what.selector, flags), name, BOOL)


def _missing_indicator(step: _Step, block: Block) -> Block:
    made = step.made
    _check_marker(step)
    features = [int(i) for i in step.learned("features_")]
    if made.features == "missing-only" and made.error_on_new:  # a value that is missing elsewhere is an error
        others = [cell for i, cell in enumerate(block.cells) if i not in features]
        step.refusals.missing([_as_numbers(cell) for cell in others])
    cells = [
        _indicator(block.cells[i], made.missing_values, f"missingindicator_{block.names[i]}")
        for i in features
    ]
    return Block(_named(step, cells, block.names), bool(made.sparse is True), step.gives_frame)


# ---- categories ------------------------------------------------------------------------------------------------------


def _keys_of(step: _Step, cell: Cell, source: Source, categories: Sequence[Any]) -> list[Key | None]:
    """Categories in the type of the request's field; None for those that no request can hold."""
    keys: list[Key | None] = []
    for category in categories:
        value = category.item() if isinstance(category, np.generic) else category
        if source.type == "str":
            keys.append(str(value) if isinstance(value, str) else None)
        elif isinstance(value, str) or not isinstance(value, (bool, int, float)):
            keys.append(None)
        elif source.type == "float":
            number = float(value) + 0.0
            if source.dtype == FLOAT32 and not number.is_integer():
                raise step.refuse(
                    f"category {number!r} of column `{cell.name}` is a float32, which no request brings: convert the table "
                    "to float64"
                )
            keys.append(number)
        else:
            keys.append(int(value) if float(value).is_integer() else None)
    if keys and not any(key is not None for key in keys):
        raise step.refuse(
            f"its categories of column `{cell.name}` ({clip(categories[0])}, ...) are none that a field of type "
            f"{source.type} holds"
        )
    return keys


def _positions(categories: Sequence[Any], values: Sequence[Any]) -> list[int]:
    """Place of each value among categories, -1 for none; missing values are found as what they are."""
    places: dict[Any, int] = {}
    nan = none = -1
    for at, category in enumerate(categories):
        if category is None:
            none = at
        elif is_nan(category):
            nan = at
        else:
            places[category] = at

    def place(value: Any) -> int:
        if value is None:
            return none
        return nan if is_nan(value) else places.get(value, -1)

    return [place(value) for value in values]


def _codes(step: _Step, cell: Cell, categories: Any, *, refuse: bool) -> tuple[Selector, NDArray[np.int64]]:
    """Selector of a cell's outcomes, and the place of each among the categories (-1: unknown).

    refuse: unknown values are an error.
    """
    categories = list(np.asarray(categories, dtype=object))
    what = cell.what
    if isinstance(what, Value):
        if what.steps:
            raise step.refuse(f"it takes computed numbers, of column `{cell.name}`, for categories")
        there = [c for c in categories if not known_missing(c)]
        keys = _keys_of(step, cell, what.source, there)
        at = _positions(categories, there)
        known = {key: place for key, place in zip(keys, at, strict=True) if key is not None}
        null = -1 if what.null is REFUSED else _positions(categories, [what.null])[0]
        codes = np.array([*known.values(), -1, null], dtype=np.int64)
        selector = Selector(what.source, tuple(known), refuse_null=what.null is REFUSED)
    else:
        selector = what.selector
        codes = np.array(_positions(categories, list(what.values)), dtype=np.int64)
        n = selector.n - (1 if selector.keys is None else 2)
        if refuse and (codes[:n] < 0).any():
            raise step.refuse(
                f"a value that an earlier step gives for column `{cell.name}` is none of its categories"
            )
    if refuse:
        other = selector.keys is not None and codes[-2] < 0
        selector = selector.refusing(other=other, null=bool(codes[-1] < 0))
    return selector, codes


def _grouped(step: _Step, i: int, categories: Any, *, keep_missing: bool) -> NDArray[np.int64]:
    """Code of each category: infrequent ones share the last. `keep_missing`: NaN keeps its own place (ordinal codes)."""
    n = len(categories)
    infrequent = _infrequent(step, i)
    if infrequent is None:
        return np.arange(n)
    rare = set(
        _positions(list(np.asarray(categories, dtype=object)), list(np.asarray(infrequent, dtype=object)))
    )
    frequent = [at for at in range(n) if at not in rare and not (keep_missing and is_nan(categories[at]))]
    codes = np.full(n, len(frequent))
    codes[frequent] = np.arange(len(frequent))
    if keep_missing and n and is_nan(categories[-1]):
        codes[-1] = n - 1
    return codes


def _onehot_encoder(step: _Step, block: Block) -> Block:
    made = step.made
    handle = "infrequent_if_exist" if made.handle_unknown == "warn" else made.handle_unknown
    cells: list[Cell] = []
    dropped = made.drop_idx_ if made.drop is not None else None
    for i, (cell, categories) in enumerate(zip(block.cells, step.learned("categories_"), strict=True)):
        selector, codes = _codes(step, cell, categories, refuse=handle == "error")
        group_of = _grouped(step, i, categories, keep_missing=False)
        n = int(group_of.max()) + 1 if len(group_of) else 0
        unknown = n - 1 if handle == "infrequent_if_exist" and _infrequent(step, i) is not None else -1
        found = np.where(codes >= 0, group_of[codes], unknown)
        drop = None if dropped is None or dropped[i] is None else int(group_of[int(dropped[i])])
        if drop is not None:
            found = np.where(found == drop, -1, found - (found > drop))
            n -= 1
        group = Group(selector, found, cell.name)
        cells += [Cell(Hot(group, at), f"{cell.name}_{at}", np.dtype(made.dtype)) for at in range(n)]
    return Block(_named(step, cells, block.names), bool(made.sparse_output), step.gives_frame)


def _infrequent(step: _Step, i: int) -> Any:
    """Categories of a column that share one code; None where there are none."""
    if (
        getattr(step.made, "min_frequency", None) is None
        and getattr(step.made, "max_categories", None) is None
    ):
        return None
    return step.learned("infrequent_categories_")[i]


def _ordinal_encoder(step: _Step, block: Block) -> Block:
    made = step.made
    refuse = made.handle_unknown == "error"
    cells = []
    for i, (cell, categories) in enumerate(zip(block.cells, step.learned("categories_"), strict=True)):
        selector, codes = _codes(step, cell, categories, refuse=refuse)
        values = _grouped(step, i, categories, keep_missing=True).astype(np.float64)
        if len(categories) and is_nan(categories[-1]):
            values[-1] = made.encoded_missing_value
        unknown = float("nan") if refuse else float(made.unknown_value)
        found = np.array([values[c] if c >= 0 else unknown for c in codes])
        cells.append(Cell(Pick(selector, found), cell.name, np.dtype(made.dtype)))
    return Block(_named(step, cells, block.names), False, step.gives_frame)


def _target_encoder(step: _Step, block: Block) -> Block:
    encodings = step.learned("encodings_")
    means = np.atleast_1d(np.asarray(step.learned("target_mean_"), dtype=np.float64))
    many = len(step.made.classes_) if step.made.target_type_ == "multiclass" else 1
    cells = []
    for i, (cell, categories) in enumerate(zip(block.cells, step.learned("categories_"), strict=True)):
        selector, codes = _codes(step, cell, categories, refuse=False)
        for k in range(many):
            values = np.asarray(encodings[i * many + k], dtype=np.float64)
            found = np.array([values[c] if c >= 0 else means[k] for c in codes])
            name = cell.name if many == 1 else f"{cell.name}_{step.made.classes_[k]}"
            cells.append(Cell(Pick(selector, found), name))
    return Block(_named(step, cells, block.names), False, step.gives_frame)


# ---- bins ------------------------------------------------------------------------------------------------------------


def _binned(cell: Cell, edges: F64, values: F64) -> Cell:
    """The number of the bin of a cell; `values` by bin. Refuses what is missing: such steps take no NaN."""
    what = cell.what
    if not isinstance(what, Value):
        return replace(
            cell, what=Pick(what.selector, values[np.searchsorted(edges, what.values, side="right")])
        )
    null = what.missing
    refused = null is REFUSED or known_missing(null)
    if not len(edges):
        return replace(
            cell, what=Pick(Selector(what.source, keys=(), refuse_null=refused), np.array([values[0]] * 2))
        )
    of_null = values[0] if refused else values[np.searchsorted(edges, null, side="right")]
    selector = Selector(what.source, before=what, edges=tuple(map(float, edges)), refuse_null=refused)
    return replace(cell, what=Pick(selector, np.append(values, of_null)))


def _kbins_discretizer(step: _Step, block: Block) -> Block:
    made = step.made
    own = None if made.dtype is None else np.dtype(made.dtype)
    dtype = own or _float_dtype(step, block.cells)
    _no_text(step, block.cells)
    taken = step.refusals.missing([_as_numbers(cell) for cell in block.cells])
    cells: list[Cell] = []
    n_bins = [int(n) for n in step.learned("n_bins_")]
    for i, (cell, bounds) in enumerate(zip(taken, step.learned("bin_edges_"), strict=True)):
        rounded = numbers(cell, Step("float32")) if dtype == FLOAT32 else cell
        inner = np.asarray(bounds, dtype=np.float64)[1:-1]
        edges = np.unique(inner)
        numbered = np.append(0, np.searchsorted(inner, edges, side="right")).astype(np.float64)
        binned = replace(_binned(rounded, edges, numbered), dtype=dtype)
        if made.encode == "ordinal":
            cells.append(binned)
            continue
        pick = binned.what
        assert isinstance(pick, Pick)
        group = Group(pick.selector, np.nan_to_num(pick.values, nan=-1.0).astype(np.int64), cell.name)
        cells += [Cell(Hot(group, at), f"{cell.name}_{float(at)}", dtype) for at in range(n_bins[i])]
    return Block(_named(step, cells, block.names), made.encode == "onehot", step.gives_frame)


def _binarizer(step: _Step, block: Block) -> Block:
    taken = step.refusals.missing([_as_numbers(cell) for cell in _arithmetic(step, block)])
    edge = np.array([np.nextafter(float(step.made.threshold), np.inf)])
    cells = [replace(_binned(cell, edge, np.array([0.0, 1.0])), dtype=_common(taken)) for cell in taken]
    return Block(_named(step, cells, block.names), block.sparse, step.gives_frame)


# ---- parts and wholes ------------------------------------------------------------------------------------------------


def _selector(step: _Step, block: Block) -> Block:
    """Some of the columns, unchanged."""
    cells = block.cells
    if not step.made.__sklearn_tags__().input_tags.allow_nan:
        _no_text(step, cells)
        cells = step.refusals.missing([_as_numbers(cell) for cell in cells])
    kept = tuple(cell for cell, keep in zip(cells, step.made.get_support(), strict=True) if keep)
    if step.gives_frame:
        return Block(kept, block.sparse, frame=True)
    dtype = _common(cells)
    return Block(tuple(replace(cell, dtype=dtype) for cell in kept), block.sparse)


def _pipeline(step: _Step, block: Block) -> Block | None:
    found: Block | None = block
    for name, made in step.made.steps:
        if found is not None:
            found = trace(made, found, step.under(name, made).path, step.refusals)
    return found


def _weighted(step: _Step, name: str, block: Block) -> Block:
    weights = step.made.transformer_weights or {}
    if weights.get(name) is None:
        return block
    cells = _arithmetic(step.under(name, step.made), block)
    return replace(
        block, cells=tuple(numbers(cell, Step("multiply", float(weights[name]))) for cell in cells)
    )


def _column_transformer(step: _Step, block: Block) -> Block | None:
    parts: list[Block | None] = []
    for name, made, columns in step.learned("transformers_"):
        if isinstance(made, str) and made == "drop":
            continue
        places = _places(step, name, block, columns)
        if not places:
            continue
        given = Block(tuple(block.cells[i] for i in places), block.sparse, block.frame)
        found = trace(made, given, step.under(name, made).path, step.refusals)
        parts.append(None if found is None else _prefixed(step, name, _weighted(step, name, found)))
    return _stacked(step, parts, bool(parts) and bool(step.learned("sparse_output_")))


def _feature_union(step: _Step, block: Block) -> Block | None:
    parts: list[Block | None] = []
    for name, made in step.made.transformer_list:
        if isinstance(made, str) and made == "drop":
            continue
        found = trace(made, block, step.under(name, made).path, step.refusals)
        parts.append(None if found is None else _prefixed(step, name, _weighted(step, name, found)))
    return _stacked(step, parts, any(part is not None and part.sparse for part in parts))


def _stacked(step: _Step, parts: Sequence[Block | None], sparse: bool) -> Block | None:
    """Blocks side by side; None where one of them could not be copied."""
    there = [part for part in parts if part is not None]
    if len(there) < len(parts):
        return None
    whole = Block(tuple(cell for part in there for cell in part.cells))
    if not sparse and step.gives_frame:
        return replace(whole, frame=True)
    return whole.as_array(sparse)


def _prefixed(step: _Step, name: str, block: Block) -> Block:
    """Names as the stacking step makes them."""
    verbose = getattr(step.made, "verbose_feature_names_out", True)

    def named(text: str) -> str:
        if callable(verbose):
            return str(verbose(name, text))
        if isinstance(verbose, str):
            return verbose.format(transformer_name=name, feature_name=text)
        return f"{name}__{text}" if verbose else text

    labels: dict[int, Group] = {}
    cells = []
    for cell in block.cells:
        what = cell.what
        if isinstance(what, Hot):  # cells of one group keep one group
            group = labels.setdefault(id(what.group), replace(what.group, label=named(what.group.label)))
            what = replace(what, group=group)
        cells.append(replace(cell, what=what, name=named(cell.name)))
    return replace(block, cells=tuple(cells))


def _places(step: _Step, name: str, block: Block, columns: Any) -> list[int]:
    """Which columns a part of a ColumnTransformer reads: names, numbers, a slice or a mask of either."""
    n = len(block.cells)
    known = {text: i for i, text in enumerate(getattr(step.made, "feature_names_in_", block.names))}

    def place(one: Any) -> int:
        if isinstance(one, str):
            if one not in known:
                raise step.under(name, step.made).refuse(f"it reads column {clip(one)}, which is not there")
            return known[one]
        return range(n)[int(one)]

    if isinstance(columns, slice):
        ends = [columns.start, columns.stop]
        if any(isinstance(end, str) for end in ends):  # by name the end is included
            first = 0 if columns.start is None else place(columns.start)
            last = n - 1 if columns.stop is None else place(columns.stop)
            return list(range(n))[first : last + 1 : columns.step]
        return list(range(n))[columns]
    if isinstance(columns, (str, int, np.integer)):
        return [place(columns)]
    given = list(columns)
    if given and all(isinstance(one, (bool, np.bool_)) for one in given):
        return [i for i, one in enumerate(given) if one]
    return [place(one) for one in given]


STEPS: dict[str, Callable[[_Step, Block], Block | None]] = {
    "StandardScaler": _standard_scaler,
    "MinMaxScaler": _min_max_scaler,
    "MaxAbsScaler": _max_abs_scaler,
    "RobustScaler": _robust_scaler,
    "FunctionTransformer": _function_transformer,
    "SimpleImputer": _simple_imputer,
    "MissingIndicator": _missing_indicator,
    "OneHotEncoder": _onehot_encoder,
    "OrdinalEncoder": _ordinal_encoder,
    "TargetEncoder": _target_encoder,
    "KBinsDiscretizer": _kbins_discretizer,
    "Binarizer": _binarizer,
    "ColumnTransformer": _column_transformer,
    "FeatureUnion": _feature_union,
    "Pipeline": _pipeline,
}
