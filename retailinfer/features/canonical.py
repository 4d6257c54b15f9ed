"""Canonical columns: the one form into which every source of rows is brought, and which the feature program reads.

Whoever has a table makes them in arrow.py; golden rows are kept in this form; `_native.program.Program.fill_table` takes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Canonical", "Columns"]


class Canonical(NamedTuple):
    """One column in its canonical type.

    float: float64 (n,); int, bool, timestamp (ns): int64 (n,); str, bytes: uint8 data; vector: float32 (n, size);
    lists: canonical items. `valid`: uint8 (n,), None = all there. `offsets`: int64 (n + 1,) of texts and lists.
    `children`: int64 offsets of the texts in lists.
    """

    values: NDArray[Any]
    valid: NDArray[np.uint8] | None = None
    offsets: NDArray[np.int64] | None = None
    children: NDArray[np.int64] | None = None


class Columns(msgspec.Struct, frozen=True):
    """Canonical columns of a table by field, stored reference or window.

    What a table cannot say, where somebody knows it (all arrays (n_rows,), see `Program.fill_table`): states: uint8 by
    reference; updated_ns: int64 by reference, when its values were written; now_ns: int64, the moment of each row.
    """

    n_rows: int
    by_name: dict[str, Canonical | None]
    states: Mapping[str, NDArray[np.uint8]] | None = None
    updated_ns: Mapping[str, NDArray[np.int64]] | None = None
    now_ns: NDArray[np.int64] | None = None

    @classmethod
    def of_slots(
        cls,
        n_rows: int,
        slots: Sequence[str],
        columns: Sequence[tuple[Any, ...] | None],
        states: Mapping[str, NDArray[np.uint8]] | None = None,
    ) -> Columns:
        """Out of a column a slot, as golden rows keep them; None: all null."""
        by_name = {
            name: None if column is None else Canonical(*column)
            for name, column in zip(slots, columns, strict=True)
        }
        return cls(n_rows, by_name, states or None)
