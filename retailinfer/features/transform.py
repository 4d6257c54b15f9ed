"""A spec over a whole table: the training matrix, by the same program that serves.

Rules:
  * Nothing is computed here: canonical columns go in, tensors come out of `Program.fill_table`.
  * A row that serving would refuse is refused here too, by its number.
Reading tables is arrow.py; learning is fit.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from retailinfer._native.program import Program, text_cells
from retailinfer.features.canonical import Columns
from retailinfer.features.program import slot_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer.features.spec import Body, FeatureSpec

__all__ = ["FeatureMatrix", "fill", "transform"]

NUMPY_DTYPES: dict[int, Any] = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}


class FeatureMatrix(np.ndarray[Any, Any]):
    """An ordinary array, shape (rows, cells), that knows the names of its cells. Trainers take it as the array it is."""

    names: tuple[str, ...] | None

    def __new__(cls, values: NDArray[Any], names: tuple[str, ...]) -> Self:
        made = np.asarray(values).view(cls)
        made.names = names
        return made

    def __array_finalize__(self, obj: Any) -> None:
        # a slice of columns or another shape no longer has these names
        names = getattr(obj, "names", None)
        self.names = names if names is not None and self.ndim == 2 and self.shape[1] == len(names) else None


def fill(
    program: Program,
    body: Body,
    columns: Columns,
    *,
    now_ns: int = 0,
    first_row: int = 0,
    reviews: NDArray[np.uint8] | None = None,
    flags: NDArray[np.uint8] | None = None,
) -> tuple[list[NDArray[Any]], list[NDArray[Any] | None], list[int]]:
    """Tensors, masks and, per column, the count of values outside the training range. `reviews`, `flags`: see program.pyi."""
    outs: list[NDArray[Any]] = []
    masks: list[NDArray[Any] | None] = []
    n = columns.n_rows
    for _, dtype, cells, _, mask_name, _ in program.tensors:
        text = dtype == 8
        outs.append(np.zeros(n * cells * 16, np.uint8) if text else np.zeros((n, cells), NUMPY_DTYPES[dtype]))
        masks.append(None if mask_name is None else np.zeros((n, cells), np.uint8))
    names = slot_names(body)
    outside = program.fill_table(
        [columns.by_name.get(name) for name in names],
        n,
        outs,
        masks,
        now_ns=now_ns,
        first_row=first_row,
        reviews=reviews,
        states=None if columns.states is None else [columns.states.get(name) for name in names],
        updated=None if columns.updated_ns is None else [columns.updated_ns.get(name) for name in names],
        now=columns.now_ns,
        flags=flags,
    )
    for t, (_, dtype, cells, _, _, mask_dtype) in enumerate(program.tensors):
        if dtype == 8:
            texts = np.empty(n * cells, object)
            texts[:] = text_cells(outs[t], n * cells)
            outs[t] = texts.reshape(n, cells)
        mask = masks[t]
        if mask is not None:
            masks[t] = mask.astype(NUMPY_DTYPES[mask_dtype])
    return outs, masks, outside


def transform(spec: FeatureSpec, table: Any) -> FeatureMatrix | dict[str, FeatureMatrix]:
    """See `FeatureSpec.transform`."""
    from retailinfer.features.arrow import read_table  # noqa: PLC0415 - servers fill tensors, and read no tables

    program = spec.program
    outs, masks, _ = fill(program, spec.body, read_table(table, spec.body))
    return as_matrices(spec, outs, masks)


def as_matrices(
    spec: FeatureSpec, outs: list[NDArray[Any]], masks: list[NDArray[Any] | None]
) -> FeatureMatrix | dict[str, FeatureMatrix]:
    """One matrix for a spec of one plain tensor, else all of them by name."""
    made: dict[str, FeatureMatrix] = {}
    for (name, _, _, _, mask_name, _), out, mask in zip(spec.program.tensors, outs, masks, strict=True):
        names = spec.cell_names(name)
        made[name] = FeatureMatrix(out, names)
        if mask_name is not None and mask is not None:
            made[mask_name] = FeatureMatrix(mask, names)
    return next(iter(made.values())) if len(made) == 1 else made
