"""What the models need for reasons beside themselves: covers of trees that came without, and the row that says nothing.

Rules:
  * Covers of a forest are the trainer's own; ONNX does not keep them, so rows are counted that are at hand when packing: the
    golden table's, else drawn ones. Where none of them comes by, both children weigh alike.
  * The background is made of the same rows, redacted as golden rows are. Numbers: the mean; what stands for a category, a
    truth or a list: what is most frequent, all cells of a column together, and its mask with it.
What becomes of either: `explain`, `_native/tree_reasons.h`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from retailinfer.features.spec import SCALAR_KINDS, column_width
from retailinfer.release.background import Background, background_of
from retailinfer.runtime.trees import TreeSession, encode_forest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from retailinfer.authoring.trial import Arrays
    from retailinfer.authoring.wiring import Part
    from retailinfer.columns import Column
    from retailinfer.features.spec import FeatureSpec
    from retailinfer.runtime.trees import Forest

__all__ = ["MAX_TYPICAL_ROWS", "covered", "make_background", "with_covers"]

MAX_TYPICAL_ROWS = 4096  # of a table, for covers and background alike


def with_covers(parts: Sequence[Part], arrays: Arrays) -> bool:
    """Count rows through the forests whose trainers counted none. True where a part has changed.

    Args:
        arrays: what the models read of the features, by key.
    """
    changed = False
    for part in parts:
        session = part.session
        if part.trees is None or not isinstance(session, TreeSession) or len(session.forest.arrays["cover"]):
            continue
        (source,) = part.inputs.values()
        rows = arrays.get((source.kind, source.name))
        if rows is None:
            continue  # the output of another model
        matrix = np.ascontiguousarray(
            rows.reshape(len(rows), -1), np.float64 if session.forest.wide else np.float32
        )
        part.trees = encode_forest(covered(session.forest, session.model.leaves(matrix)))
        part.session = TreeSession(part.trees)
        if session.n_heads:
            part.session.select_score(0, session.column)
        changed = True
    return changed


def covered(forest: Forest, leaves: NDArray[np.int32]) -> Forest:
    """The same forest with covers: how many rows reached each node. leaves: shape (rows, trees), as `TreeModel.leaves`."""
    arrays = forest.arrays
    visits = np.bincount(leaves.ravel(), minlength=int(leaves.max(initial=0)) + 1).astype(np.float64)
    cover = np.zeros(len(arrays["feature"]))
    for root in arrays["roots"].tolist():
        order = [root]
        for node in order:  # grows while it is walked: parents before children
            if arrays["feature"][node] >= 0:
                order += [int(arrays["left"][node]), int(arrays["right"][node])]
        for node in reversed(order):
            if arrays["feature"][node] >= 0:
                cover[node] = cover[arrays["left"][node]] + cover[arrays["right"][node]]
            elif arrays["left"][node] < len(visits):
                cover[node] = visits[arrays["left"][node]]
    return msgspec.structs.replace(forest, arrays={**arrays, "cover": cover})


def make_background(spec: FeatureSpec, arrays: Arrays) -> Background:
    """The row that says nothing, out of real rows: tensors and masks by key, at least one row each."""
    tensors: dict[str, NDArray[Any]] = {}
    masks: dict[str, NDArray[Any]] = {}
    n_rows = 0
    for name, tensor in spec.body.tensors.items():
        rows = arrays["tensor", name]
        mask = arrays.get(("mask", tensor.mask)) if tensor.mask is not None else None
        n_rows = len(rows)
        own, own_mask = [], []
        at = 0
        for column in tensor.columns:
            cells = slice(at, at + column_width(column, spec.body.vocabularies))
            at = cells.stop
            row, mask_row = _typical(column, rows[:, cells], None if mask is None else mask[:, cells])
            own.append(row)
            own_mask.append(mask_row)
        tensors[name] = np.concatenate(own)
        if mask is not None:
            masks[name] = np.concatenate([m for m in own_mask if m is not None])
    return background_of(n_rows, tensors, masks)


def _typical(
    column: Column, cells: NDArray[Any], mask: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """One column's cells of the background, and their mask."""
    is_number = column.kind in SCALAR_KINDS | {"embedding", "time"} or column.encoding == "target"
    is_number = is_number and column.cells is None
    if cells.dtype.kind == "f" and is_number:
        known = np.isfinite(cells) if mask is None else np.isfinite(cells) & (mask != 0)
        counts = known.sum(axis=0)
        sums = np.where(known, cells, 0).sum(axis=0, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            means = np.where(counts > 0, sums / np.maximum(counts, 1), cells[0])
        # a column that no row has a value for stays as it is in them
        return means.astype(cells.dtype), None if mask is None else np.where(counts > 0, 1, mask[0]).astype(
            mask.dtype
        )
    rows = [_key(cells[i], None if mask is None else mask[i]) for i in range(len(cells))]
    first = rows.index(Counter(rows).most_common(1)[0][0])
    return cells[first], None if mask is None else mask[first]


def _key(cells: NDArray[Any], mask: NDArray[Any] | None) -> tuple[Any, ...]:
    """What makes two slices the same: their bits, so that NaN is like NaN."""
    plain = tuple(cells.tolist()) if cells.dtype.kind in "OUT" else cells.tobytes()
    return (plain, None if mask is None else mask.tobytes())
