"""Rows of others as plain values: what a source returned, copied so that nothing of it runs code later.

Rules:
  * Only exact builtin types and NumPy arrays of numbers leave this file; a subclass becomes its base, the rest is refused.
  * Only the columns asked for are looked at, and no value of more than `MAX_TEXT` or `MAX_VECTOR` is copied.
  * A refusal names the column and the type, never the value.
Whether a value fits its column is the table's decision; who calls this, readthrough.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from types import NoneType
from typing import Any

import msgspec
import numpy as np

__all__ = ["MAX_TEXT", "MAX_VECTOR", "Rubbish", "plain_row"]

MAX_TEXT = 1 << 20  # bytes or characters of one value; a longer one is an accident
MAX_VECTOR = 1 << 16


class Rubbish(Exception):  # noqa: N818 - a verdict on what came, not a mistake of ours; never leaves the store
    """What a source said does not fit; the message holds no value."""


# Types whose values are safe to hand on as they are.
_PLAIN = frozenset({NoneType, bool, int, float, Decimal})


def plain_row(found: Any, columns: Sequence[str]) -> dict[str, Any]:
    """These columns of a row, as values of exact builtin types. Raises: Rubbish, or whatever the row's own code raises."""
    if not isinstance(found, Mapping):
        raise Rubbish(f"row is no mapping, `{type(found).__name__}`")
    row = {}
    for column in columns:
        try:
            value = found[column]
        except KeyError:
            raise Rubbish(f"row without column `{column}`") from None
        row[column] = value if type(value) in _PLAIN else _plain(value, column)
    return row


def _plain(value: Any, column: str) -> Any:
    """A copy of the value in an exact builtin type or a NumPy array; what has none is rubbish."""
    if value is msgspec.UNSET:
        return None
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return value.item()
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return _text(value, column)
    if isinstance(value, datetime):
        return _moment(value)
    if isinstance(value, (list, tuple, np.ndarray)):
        return _vector(value, column)
    if isinstance(value, int):
        return int.__add__(value, 0)
    if isinstance(value, float):
        return float.__mul__(value, 1.0)
    raise Rubbish(f"column `{column}` of type `{type(value).__name__}`")


def _text(value: str | bytes | bytearray | memoryview, column: str) -> str | bytes:
    size = value.nbytes if isinstance(value, memoryview) else len(value)
    if size > MAX_TEXT:
        raise Rubbish(f"column `{column}` is longer than {MAX_TEXT}")
    if isinstance(value, str):
        return value if type(value) is str else str.__str__(value)
    return value if type(value) is bytes else bytes(memoryview(value))


def _moment(value: datetime) -> datetime | None:
    if value != value:  # noqa: PLR0124 - pandas' NaT
        return None
    if type(value) is not datetime:
        value = datetime(
            value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond,
            tzinfo=value.tzinfo, fold=value.fold,
        )  # fmt: skip
    return value if value.tzinfo is None else value.astimezone(UTC)


def _vector(value: Any, column: str) -> Any:
    if len(value) > MAX_VECTOR:
        raise Rubbish(f"column `{column}` is longer than {MAX_VECTOR}")
    if isinstance(value, np.ndarray):
        if value.ndim != 1 or value.dtype.kind not in "biuf":
            raise Rubbish(f"column `{column}` of an array of {value.ndim} dimensions, `{value.dtype}`")
        return np.array(value, copy=True, subok=False)
    cells = [cell.item() if isinstance(cell, np.generic) else cell for cell in value]
    if not {type(cell) for cell in cells} <= {int, float, bool}:
        raise Rubbish(f"column `{column}` of a list that is not of numbers")
    return cells
