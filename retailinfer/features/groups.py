"""What a reason names: the declared field that each cell of a tensor comes from.

Rules:
  * Cells of a column that reads one value (a field, a stored value, a window) belong to that value: one-hot cells, hashed and
    embedded ones, parts of a timestamp. So all columns of one field are one group.
  * A column of several values (a ratio, a cross) is a group of its own name: no field alone is the reason. Where a field
    has that name, the values stand behind it: "share (fee, amount)".
  * Groups stand in the order in which columns first come to them; that is the order of equal contributions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from retailinfer.features.spec import column_width

if TYPE_CHECKING:
    from collections.abc import Container

    from numpy.typing import NDArray

    from retailinfer.columns import Column
    from retailinfer.features.spec import Body

__all__ = ["Groups", "groups_of"]


class Groups(NamedTuple):
    """Names of all groups, and for each tensor the group of each cell of a row: int32, shape (cells,)."""

    names: tuple[str, ...]
    cells: dict[str, NDArray[np.int32]]


def group_name(column: Column, fields: Container[str]) -> str:
    """What a contribution of this column is called. `fields`: values that stand for themselves in some column."""
    if len(column.refs) == 1:
        return column.refs[0]
    return f"{column.name} ({', '.join(column.refs)})" if column.name in fields else column.name


def groups_of(body: Body) -> Groups:
    """The groups of a fitted spec."""
    every = [column for tensor in body.tensors.values() for column in tensor.columns]
    fields = {column.refs[0] for column in every if len(column.refs) == 1}
    numbers: dict[str, int] = {}
    cells: dict[str, NDArray[np.int32]] = {}
    for name, tensor in body.tensors.items():
        own: list[int] = []
        for column in tensor.columns:
            number = numbers.setdefault(group_name(column, fields), len(numbers))
            own += [number] * column_width(column, body.vocabularies)
        cells[name] = np.array(own, np.int32)
    return Groups(tuple(numbers), cells)
