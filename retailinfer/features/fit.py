"""What a table teaches a spec: types of stored columns, vocabularies, centres, scales, ranges, targets, the drift baseline.

Rules:
  * Raw and transformed values come out of the native program itself (run with float64 tensors and without the numbers that
    are still to be learned), so that a centre is the centre of exactly what serving computes.
  * The result depends on the table's rows and their order only where folds are concerned; no randomness.
Reading tables is arrow.py; running is transform.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from retailinfer.columns import Column
from retailinfer.errors import SpecError
from retailinfer.features import arrow
from retailinfer.features.program import compile_program
from retailinfer.features.spec import (
    GUESS_TEXT,
    SCALAR_KINDS,
    Body,
    FeatureSpec,
    Fitted,
    Tensor,
    Vocabulary,
    check,
    column_width,
    vocabulary_of,
)
from retailinfer.features.transform import as_matrices, fill

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer.features.canonical import Columns
    from retailinfer.features.transform import FeatureMatrix

__all__ = ["fit", "fit_transform", "raw_values"]

BASELINE_BINS = 10
BASELINE_VALUES = 100


def fit(spec: FeatureSpec, table: Any, *, label: str | NDArray[Any] | None = None) -> FeatureSpec:
    """See `FeatureSpec.fit`."""
    return _fit(spec, table, label)[0]


def fit_transform(
    spec: FeatureSpec, table: Any, *, label: str | NDArray[Any]
) -> tuple[FeatureSpec, FeatureMatrix | dict[str, FeatureMatrix]]:
    """See `FeatureSpec.fit_transform`."""
    fitted, columns, table = _fit(spec, table, label)
    labels = _labels(table, label)
    outs, masks, _ = fill(fitted.program, fitted.body, columns)
    for t, tensor in enumerate(fitted.body.tensors.values()):
        offset = 0
        for column in tensor.columns:
            if column.encoding == "target":
                held_out = _out_of_fold(fitted.body, column, table, labels)
                known = _codes(fitted.body, column, table) >= 0
                # rows without a category keep what serving gives them
                outs[t][known, offset] = held_out[known]
            offset += column_width(column, fitted.body.vocabularies)
    return fitted, as_matrices(fitted, outs, masks)


def _fit(spec: FeatureSpec, data: Any, label: str | NDArray[Any] | None) -> tuple[FeatureSpec, Columns, Any]:
    if spec.arrays:
        raise SpecError("a spec made by from_model has nothing to learn")
    table = arrow.as_table(data)
    if table.num_rows == 0:
        raise SpecError("the table has no rows to learn from")
    body = _stored_types(spec.body, table)
    body = _vocabularies(body, table)
    columns = arrow.read_table(table, body, narrow_warning=True)
    fitted: dict[str, Fitted] = {}
    raw = _scalars(body, columns, {}, transformed=False)
    for name, values in raw.items():
        seen = values[~np.isnan(values)]
        if len(seen):
            fitted[name] = Fitted(seen_low=float(seen.min()), seen_high=float(seen.max()))
        else:
            fitted[name] = Fitted()
    moved = _scalars(body, columns, fitted, transformed=True)
    for column in (c for t in body.tensors.values() for c in t.columns):
        if isinstance(column.center, str) or isinstance(column.scale, str):
            fitted[column.name] = _moments(column, moved[column.name], fitted[column.name])
        if column.encoding == "target":
            if label is None:
                raise SpecError(
                    f"column `{column.name}` encodes the label's mean", hint="fit(table, label=...)"
                )
            fitted[column.name] = _targets(body, column, table, _labels(table, label))
    learned = msgspec.structs.replace(body, fitted=fitted, is_fitted=True)
    baseline = _baseline(learned, table, raw)
    made = FeatureSpec.from_body(
        learned, baseline=baseline, request_type=spec.request_type, copied=spec.copied
    )
    _ = made.program  # a default outside a vocabulary and the like shows now, not at the first request
    return made, columns, table


# ---- types and vocabularies ------------------------------------------------------------------------------------------


def _stored_types(body: Body, table: Any) -> Body:
    """References that were taken for text until somebody saw the data: integers and booleans stay what they are."""
    pa = arrow.require_pyarrow()
    stored = dict(body.stored)
    guessed = {
        r
        for t in body.tensors.values()
        for c in t.columns
        if c.kind in GUESS_TEXT
        for r in c.refs
        if r in stored and stored[r] == "str"
    }
    for ref in sorted(guessed):
        entity, _, name = ref.partition(".")
        if name in body.entities[entity].columns or ref not in table.column_names:
            continue
        kind = table.schema.field(ref).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_integer(kind):
            stored[ref] = "int"
        elif pa.types.is_boolean(kind):
            stored[ref] = "bool"
        elif any(
            check_type(kind)
            for check_type in (
                pa.types.is_binary,
                pa.types.is_large_binary,
                pa.types.is_binary_view,
                pa.types.is_fixed_size_binary,
            )
        ):
            stored[ref] = "bytes"
    changed = msgspec.structs.replace(body, stored=stored)
    check(changed)
    return changed


def _vocabularies(body: Body, table: Any) -> Body:
    used: dict[str, list[Column]] = {}
    for tensor in body.tensors.values():
        for column in tensor.columns:
            if column.encoding in ("index", "onehot", "target"):
                used.setdefault(column.vocabulary or column.name, []).append(column)
    made = dict(body.vocabularies)
    for name, columns in used.items():
        vocab = made[name]
        if vocab.frozen:
            continue
        counts: dict[Any, int] = {}
        for column in columns:
            if column.refs[0] not in table.column_names:
                raise SpecError(
                    f"the table lacks the column `{column.refs[0]}`, which the vocabulary `{name}` is learned from"
                )
            for value, count in arrow.value_counts(table.column(column.refs[0])):
                counts[value] = counts.get(value, 0) + count
        kept = sorted((v for v, n in counts.items() if n >= vocab.min_count), key=lambda v: (-counts[v], v))
        made[name] = msgspec.structs.replace(vocab, values=tuple(kept[: vocab.max_size]))
    changed = msgspec.structs.replace(body, vocabularies=made)
    check(changed)
    return changed


# ---- scalars ---------------------------------------------------------------------------------------------------------


def raw_values(body: Body, columns: Columns) -> dict[str, NDArray[np.float64]]:
    """Column -> its raw values as float64, NaN where there is none, as the baseline counts them. Raises: FeatureError."""
    return _scalars(body, columns, {}, transformed=False)


def _scalars(
    body: Body, columns: Columns, fitted: dict[str, Fitted], *, transformed: bool
) -> dict[str, NDArray[np.float64]]:
    """Values of all scalar columns as float64, NaN where there is none: raw, or clipped and transformed."""
    probes: list[Column] = []
    for tensor in body.tensors.values():
        for column in tensor.columns:
            if column.kind not in SCALAR_KINDS:
                continue
            changes: dict[str, Any] = {
                "steps": (),
                "center": None,
                "scale": None,
                "unknown": None,
                "null": "use",
                "on_unavailable": None,
            }
            if not transformed:
                changes.update(clip=None, transform=None)
            if column.kind == "bins":  # the number itself
                changes.update(kind="numeric", edges=None, values=None, cells=None, on=None, off=None)
            probes.append(msgspec.structs.replace(column, **changes))
    if not probes:
        return {}
    probe = msgspec.structs.replace(
        body,
        tensors={"probe": Tensor(tuple(probes), dtype="float64")},
        fitted=fitted,
        vocabularies={},
        is_fitted=True,
    )
    outs, _, _ = fill(compile_program(probe), probe, columns)
    return {column.name: outs[0][:, i] for i, column in enumerate(probes)}


def _moments(column: Column, values: NDArray[np.float64], before: Fitted) -> Fitted:
    seen = values[~np.isnan(values)]
    if not len(seen):
        raise SpecError(f"column `{column.name}` has no value to learn {column.center or column.scale} from")
    center: float | None = None
    scale: float | None = None
    if isinstance(column.center, str):
        if column.center == "mean":
            center = float(np.mean(seen))
        else:
            center = float(np.median(seen) if column.center == "median" else np.min(seen))
    if isinstance(column.scale, str):
        if column.scale == "std":
            scale = float(np.std(seen))
        elif column.scale == "iqr":
            low, high = np.percentile(seen, [25, 75])
            scale = float(high - low)
        elif column.scale == "range":
            scale = float(seen.max() - seen.min())
        else:
            scale = float(np.abs(seen).max())
        scale = scale if scale > 0 else 1.0  # a constant column is centred and left alone
    return msgspec.structs.replace(before, center=center, scale=scale)


# ---- target encoding -------------------------------------------------------------------------------------------------


def _labels(table: Any, label: str | NDArray[Any]) -> NDArray[np.float64]:
    if isinstance(label, str):
        if label not in table.column_names:
            raise SpecError(f"the table lacks the label column `{label}`")
        label = np.asarray(table.column(label).to_numpy())
    labels = np.asarray(label, dtype=np.float64).reshape(-1)
    if len(labels) != table.num_rows or not np.isfinite(labels).all():
        raise SpecError(f"Expected {table.num_rows} finite labels, got {len(labels)}")
    return labels


def _codes(body: Body, column: Column, table: Any) -> NDArray[np.int64]:
    """Position of each row's value in the vocabulary; -1 unknown, -2 null."""
    values = table.column(column.refs[0]).to_pylist()
    index: dict[Any, int] = {v: i for i, v in enumerate(vocabulary_of(column, body.vocabularies).values)}
    return np.array([-2 if v is None else index.get(v, -1) for v in values], dtype=np.int64)


def _encode(
    codes: NDArray[np.int64], labels: NDArray[np.float64], size: int, smoothing: float
) -> tuple[NDArray[np.float64], float]:
    prior = float(labels.mean()) if len(labels) else 0.0
    known = codes >= 0
    counts = np.bincount(codes[known], minlength=size).astype(np.float64)
    sums = np.bincount(codes[known], weights=labels[known], minlength=size)
    weight = counts + smoothing
    smoothed = np.divide(sums + smoothing * prior, weight, out=np.full(size, prior), where=weight > 0)
    return smoothed, prior


def _targets(body: Body, column: Column, table: Any, labels: NDArray[np.float64]) -> Fitted:
    vocab: Vocabulary = vocabulary_of(column, body.vocabularies)
    targets, prior = _encode(_codes(body, column, table), labels, len(vocab.values), column.smoothing)
    return Fitted(targets=tuple(float(t) for t in targets), prior=prior)


def _out_of_fold(body: Body, column: Column, table: Any, labels: NDArray[np.float64]) -> NDArray[np.float64]:
    codes = _codes(body, column, table)
    size = len(vocabulary_of(column, body.vocabularies).values)
    fold = np.arange(len(codes)) % column.folds
    out = np.empty(len(codes))
    for k in range(column.folds):
        rest, held = fold != k, fold == k
        targets, prior = _encode(codes[rest], labels[rest], size, column.smoothing)
        table_ = np.append(targets, prior)
        out[held] = table_[np.where(codes[held] >= 0, codes[held], size)]
    return out


# ---- drift baseline --------------------------------------------------------------------------------------------------


def _baseline(body: Body, table: Any, raw: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """What the training rows looked like, per column: deciles or frequent values, and the share of nulls."""
    n = table.num_rows
    out: dict[str, Any] = {"rows": n, "columns": {}}
    for tensor in body.tensors.values():
        for column in tensor.columns:
            if column.name in raw:
                values = raw[column.name]
                seen = values[~np.isnan(values)]
                edges = np.quantile(seen, np.linspace(0, 1, BASELINE_BINS + 1)) if len(seen) else np.zeros(0)
                inner = np.unique(edges[1:-1])
                counts = np.bincount(np.searchsorted(inner, seen, side="left"), minlength=len(inner) + 1)
                out["columns"][column.name] = {
                    "kind": "number",
                    "edges": [float(e) for e in inner],
                    "counts": [int(c) for c in counts],
                    "nulls": int(n - len(seen)),
                }
            elif (
                column.kind in ("categorical", "hashed", "boolean", "raw", "lookup") and len(column.refs) == 1
            ):
                if column.refs[0] not in table.column_names:
                    continue
                counted = arrow.value_counts(table.column(column.refs[0]))
                kept = counted[:BASELINE_VALUES]
                total = sum(count for _, count in counted)
                out["columns"][column.name] = {
                    "kind": "category",
                    "values": [str(v) for v, _ in kept],
                    "counts": [int(count) for _, count in kept],
                    "other": int(total - sum(count for _, count in kept)),
                    "nulls": int(n - total),
                }
    return out
