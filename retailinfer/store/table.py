"""Snapshot: an immutable whole catalogue, entity key -> row of typed columns, with the age of every row.

Rules:
  * Checked once, when it is built: duplicate keys, null keys and values that cannot be stored are refused and named, so
    a look-up has nothing left to check but the kind of its key.
  * A table has one kind of key: str, int, bytes, or tuples of those. A bool is not an int.
  * Column kinds: f64, i64 (bool, timestamps as ns since the epoch), str, bytes, vec (float32, all of one length).
  * NaN in a number column means null. Null is not zero: readers get the outcome that their column declares.
  * Every look-up takes the raw values; encoding for a model is the feature program's work.
Arrow columns come through arrow.py; the memory is `_native/table.pyx`; who reads it and swaps it, store.py.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from msgspec import UNSET

from retailinfer._native.table import KEY_KINDS, SnapshotTable, compose_keys
from retailinfer.clock import SystemClock
from retailinfer.errors import ConfigError, FeatureRangeError, FeatureTypeError, SpecError, clip
from retailinfer.store.arrow import MAX_TIME_NS, read_columns

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

__all__ = ["Gathered", "Outcome", "Snapshot", "plain_cell", "single_keys", "time_ns"]

Key: TypeAlias = str | int | bytes | tuple[str | int | bytes, ...]
Texts: TypeAlias = "tuple[NDArray[np.uint8], NDArray[np.int64]]"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INT64 = np.iinfo(np.int64)
_EXACT_IN_DOUBLE = 2**53


class Outcome(enum.IntEnum):
    """What a look-up found: the numbers in `Gathered.outcome`."""

    PRESENT = 0
    NULL = 1  # the row is there, and has none of the columns that were asked for
    UNKNOWN = 2  # there is no such entity
    STALE = 3  # the values are there, and past their time to live
    UNAVAILABLE = 4  # there may be one: nothing is in memory, and the source did not say in time


class Gathered(NamedTuple):
    """Rows of many keys, in the order of the keys."""

    values: NDArray[np.float32]  # (n, widths of the columns), NaN where there is nothing
    age_s: NDArray[np.float64]  # (n,) seconds since the row was true, never negative; NaN where nobody knows
    outcome: NDArray[np.uint8]  # (n,) one of `Outcome`


class Snapshot:
    """Whole catalogue of one entity; never changes. Many threads and forked workers read the same memory.

    `table` is the native object that engines read; the methods here are for people, tools and tests.
    """

    __slots__ = ("__weakref__", "table")

    def __init__(self, table: SnapshotTable) -> None:
        self.table = table

    @classmethod
    def from_arrow(
        cls,
        table: Any,
        *,
        key: str | Sequence[str] = "sku",
        updated_at: str | None = None,
        columns: Sequence[str] | None = None,
        name: str = "table",
    ) -> Snapshot:
        """Build from anything with the Arrow stream interface (pyarrow, polars, pandas); needs `retailinfer[arrow]`.

        Args:
            table: floats and decimals become f64; ints, bools and timestamps with a zone i64; strings, binaries and
                dictionaries of them str and bytes; lists of numbers, all of one length, vec.
            key: the column with the keys, or several for keys that are tuples.
            updated_at: the column that says when each row was true: timestamps with a zone, or seconds since the epoch.
            columns: which columns to keep; all but the key and `updated_at` by default.
            name: for messages.
        Raises: ConfigError for a column that is not there, SpecError for a type that has no meaning here,
            FeatureRangeError for a value that cannot be stored, naming column and row.
        """
        key_names = (key,) if isinstance(key, str) else tuple(key)
        source = read_columns(table, key=key_names, updated_at=updated_at, columns=columns, name=name)
        kinds = tuple(kind for kind, _ in source.keys)
        parts = [values for _, values in source.keys]
        single = isinstance(key, str)
        return cls(
            SnapshotTable(
                name,
                kinds[0] if single else kinds,
                single_keys(parts[0]) if single else compose_keys(parts, source.n_rows),
                source.columns,
                source.updated_at,
            )
        )

    @classmethod
    def from_rows(
        cls,
        rows: Mapping[Any, Mapping[str, Any]],
        *,
        kinds: Mapping[str, str] | None = None,
        updated_at: str | None = None,
        name: str = "table",
    ) -> Snapshot:
        """Build from `{key: {column: value}}`: for small tables and tests.

        Args:
            rows: absent columns, None and NaN are null. Numbers, bools, str, bytes, aware datetimes, lists of numbers.
            kinds: fixes kinds that the values do not show, as in `{"price": "f64"}` for a column of ints or of nulls.
            updated_at: the column that says when each row was true: aware datetimes, or seconds since the epoch.
            name: for messages.
        """
        names = list(dict.fromkeys([*(kinds or ()), *(column for row in rows.values() for column in row)]))
        times = None
        if updated_at is not None:
            if updated_at not in names:
                raise ConfigError(
                    f"Expected a column {clip(updated_at)} in the rows of table `{name}`, got none"
                )
            names.remove(updated_at)
            cells = [row.get(updated_at) for row in rows.values()]
            times = np.array(
                [true_ns(cell, f"$.{name}.{updated_at}[{i}]") for i, cell in enumerate(cells)], np.int64
            )
        key_kind, keys = _keys_of(list(rows), name)
        columns = []
        for column in names:
            values = [row.get(column) for row in rows.values()]
            columns.append((column, *_column_of(values, (kinds or {}).get(column), f"{name}.{column}")))
        return cls(SnapshotTable(name, key_kind, keys, columns, times))

    def lookup(self, key: Key) -> dict[str, Any] | None:
        """All columns of a row (None = null), or None if there is no such key."""
        return self.table.lookup(key)

    def updated_at_ns(self, key: Key) -> int | None:
        """When the row was true, in nanoseconds since the epoch; None if nobody knows."""
        return self.table.updated_at_ns(key)

    def gather(
        self,
        keys: list[Any],
        columns: Sequence[str],
        *,
        out: NDArray[np.float32] | None = None,
        wall_ns: int | None = None,
    ) -> Gathered:
        """Numeric columns of many keys, with the age of each row (at `wall_ns`, else now) and an outcome."""
        now_ns = SystemClock.wall_ns() if wall_ns is None else wall_ns
        return Gathered(*self.table.gather_aged(keys, columns, now_ns, out=out))

    def gather_block(
        self, keys: list[Any], block: str, dtype: DTypeLike = np.float32, *, out: NDArray[Any] | None = None
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Finished rows of a block (`table.make_block`) for many keys, zeros where none is; and which were found."""
        matrix, rows = self.table.gather_block(keys, block, dtype, out=out)
        return matrix, rows >= 0

    @property
    def columns(self) -> dict[str, str]:
        """Name -> kind of every column."""
        return {name: kind for name, kind, *_ in self.table.schema}

    @property
    def key_kind(self) -> str | tuple[str, ...]:
        """`str`, `int`, `bytes`, or a tuple of them."""
        return self.table.key_kind

    @property
    def nbytes(self) -> int:
        """Bytes of the index, the rows, their texts and the blocks attached to them."""
        return self.table.nbytes

    def keys(self) -> Iterator[Key]:
        """Every key, in the order of the rows."""
        return (self.table.key_at(row) for row in range(len(self.table)))

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, key: Key) -> bool:
        return key in self.table

    def __repr__(self) -> str:
        return (
            f"<Snapshot {self.table.name}: {len(self)} rows by {self.key_kind}, "
            f"{len(self.columns)} columns, {self.nbytes} bytes>"
        )


def single_keys(values: Any) -> Texts:
    """The canonical bytes of keys of one part."""
    if isinstance(values, tuple):
        return values
    return values.view(np.uint8), np.arange(0, 8 * len(values) + 8, 8, dtype=np.int64)


def _texts(values: list[bytes]) -> Texts:
    ends = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value) for value in values], out=ends[1:])
    return np.frombuffer(b"".join(values), np.uint8), ends


# ---- rows of Python values --------------------------------------------------------------------------------------


def _keys_of(keys: list[Any], name: str) -> tuple[str | tuple[str, ...], Texts]:
    """Kind of the keys, which is that of the first one, and their canonical bytes."""
    if not keys:
        return "str", _texts([])
    first = keys[0]
    if not isinstance(first, tuple):
        kind = _key_kind(first, name)
        return kind, single_keys(_key_part(keys, kind, name))
    kinds = tuple(_key_kind(part, name) for part in first)
    for key in keys:
        if not isinstance(key, tuple) or len(key) != len(kinds):
            raise FeatureTypeError(
                f"Expected keys of {len(kinds)} parts, got {clip(key)}", path=f"$.{name}.keys"
            )
    parts = [_key_part([key[i] for key in keys], kind, name) for i, kind in enumerate(kinds)]
    return kinds, compose_keys(parts, len(keys))


def _key_kind(key: Any, name: str) -> str:
    for kind, types in (("str", str), ("bytes", bytes), ("int", (int, np.integer))):
        if isinstance(key, types) and not isinstance(key, (bool, np.bool_)):
            return kind
    raise FeatureTypeError(
        f"Expected a key of kind {', '.join(KEY_KINDS)}, or a tuple of them, got `{type(key).__name__}` {clip(key)}",
        path=f"$.{name}.keys",
    )


def _key_part(values: list[Any], kind: str, name: str) -> Any:
    path = f"$.{name}.keys"
    for value in values:
        if _key_kind(value, name) != kind:
            raise FeatureTypeError(
                f"Expected keys of one kind, `{kind}` as the first, got `{type(value).__name__}` {clip(value)}",
                path=path,
            )
    if kind == "int":
        return np.array([_int64(int(value), path) for value in values], np.int64)
    return _texts([_utf8(value, path) if kind == "str" else bytes(value) for value in values])


def _column_of(values: list[Any], kind: str | None, label: str) -> tuple[str, Any, NDArray[np.uint8] | None]:
    """(kind, values, valid) of one column; the kind is what its values show, unless it is given."""
    values = [None if value is UNSET or _is_not_a_time(value) else value for value in values]
    kind = kind or _common_kind(values, label)
    valid = np.array([value is not None for value in values], np.uint8)
    path = f"$.{label}"
    cells: Any
    if kind in ("str", "bytes"):
        expected = str if kind == "str" else bytes
        for i, value in enumerate(values):
            if value is not None and not isinstance(value, expected):
                raise _wrong_cell(kind, value, f"{path}[{i}]")
        cells = _texts(
            [b"" if value is None else _utf8(value, path) if kind == "str" else value for value in values]
        )
    elif kind == "vec":
        cells = _vectors(values, path)
    elif kind == "i64":
        cells = np.array([_integer(value, f"{path}[{i}]") for i, value in enumerate(values)], np.int64)
    else:
        cells = np.array([_double(value, f"{path}[{i}]") for i, value in enumerate(values)], np.float64)
    return kind, cells, None if valid.all() else valid


_KINDS: tuple[tuple[str, Any], ...] = (
    ("i64", (bool, int, np.integer, np.bool_, datetime)),
    ("f64", (float, np.floating, Decimal)),
    ("str", str),
    ("bytes", bytes),
    ("vec", (list, tuple, np.ndarray)),
)


def _common_kind(values: list[Any], label: str) -> str:
    seen: dict[str, Any] = {}
    for value in values:
        if value is not None:
            kind = next((kind for kind, types in _KINDS if isinstance(value, types)), None)
            if kind is None:
                raise _wrong_cell(
                    "number, str, bytes, aware datetime or list of numbers", value, f"$.{label}"
                )
            seen.setdefault(kind, value)
    if seen.keys() <= {"i64", "f64"}:
        return "i64" if seen.keys() == {"i64"} else "f64"
    if len(seen) > 1:
        found = " and ".join(f"`{type(value).__name__}` {clip(value)}" for value in seen.values())
        raise FeatureTypeError(f"Expected values of one kind in a column, got {found}", path=f"$.{label}")
    return next(iter(seen))


def _wrong_cell(expected: str, value: Any, path: str) -> FeatureTypeError:
    return FeatureTypeError(f"Expected {expected}, got `{type(value).__name__}` {clip(value)}", path=path)


def _integer(value: Any, path: str) -> int:
    if value is None:
        return 0
    if isinstance(value, datetime):
        return time_ns(value, path)
    if not isinstance(value, (int, np.integer, np.bool_)):
        raise _wrong_cell("an integer", value, path)
    return _int64(int(value), path)


def _double(value: Any, path: str) -> float:
    if value is None:
        return float("nan")
    if not isinstance(value, (float, int, np.floating, np.integer, np.bool_, Decimal)):
        raise _wrong_cell("a number", value, path)
    if isinstance(value, (int, np.integer)) and abs(int(value)) > _EXACT_IN_DOUBLE:
        raise FeatureRangeError(
            f"Expected integers of at most 53 bits beside fractions, got {clip(value)}",
            path=path,
            hint="use a str column",
        )
    return float(value)


def plain_cell(kind: str, width: int, value: Any, path: str) -> Any:
    """One value of any type in the form that a mutable table stores, or None where it means null: what `from_rows` does."""
    if value is None or value is UNSET or _is_not_a_time(value):
        return None
    if kind == "f64":
        number = _double(value, path)
        return None if number != number else number  # noqa: PLR0124 - NaN
    if kind == "i64":
        return _integer(value, path)
    if kind == "vec":
        if not _is_flat(value):
            raise _wrong_cell("a flat list of numbers", value, path)
        vector = np.asarray(value)
        if vector.shape != (width,) or vector.dtype.kind not in "fiub":
            raise FeatureTypeError(f"Expected {width} numbers, got {clip(value)}", path=path)
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused by name
            return vector.astype(np.float32)
    if not isinstance(value, str if kind == "str" else bytes):
        raise _wrong_cell(kind, value, path)
    return str.__str__(value) if isinstance(value, str) else bytes(value)


def _vectors(values: list[Any], path: str) -> NDArray[np.float32]:
    for i, value in enumerate(values):
        if value is not None and not _is_flat(value):
            raise _wrong_cell("a flat list of numbers", value, f"{path}[{i}]")
    width = next((len(value) for value in values if value is not None), 1)
    cells = np.zeros((len(values), width), np.float32)
    for i, value in enumerate(values):
        if value is None:
            continue
        vector = np.asarray(value)
        if vector.ndim != 1 or len(vector) != width or vector.dtype.kind not in "fiub":
            raise FeatureTypeError(
                f"Expected {width} numbers as in the first row, got {clip(value)}", path=f"{path}[{i}]"
            )
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused by name
            cells[i] = vector
    return cells


def _is_flat(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return isinstance(value, (list, tuple)) and not any(
        isinstance(one, (list, tuple, np.ndarray)) for one in value
    )


def _is_not_a_time(value: Any) -> bool:
    return isinstance(value, datetime) and value != value  # noqa: PLR0124 - pandas' NaT is a datetime unequal to itself


def time_ns(value: Any, path: str) -> int:
    """Nanoseconds since the epoch of an aware datetime or of seconds; 0 = not known."""
    if _is_no_moment(value):
        return 0
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise SpecError(
                f"Expected a datetime with a zone, got {clip(value)} - at `{path}`",
                hint="use datetime.now(UTC)",
            )
        return _bounded_ns((value - _EPOCH) // timedelta(microseconds=1) * 1000, path)
    if isinstance(value, Decimal):  # what databases make of seconds with a fraction
        return _bounded_ns(round(value * 1_000_000_000) if abs(value) < 1 << 63 else 1 << 63, path)
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        return _bounded_ns(round(value * 1_000_000_000) if math.isfinite(value) else 1 << 63, path)
    raise _wrong_cell("an aware datetime or seconds since the epoch", value, path)


def true_ns(value: Any, path: str) -> int:
    """When a row was true: as `time_ns`, but not 0, "not known", for the epoch itself, which is long ago."""
    return time_ns(value, path) or (0 if _is_no_moment(value) else 1)


def _is_no_moment(value: Any) -> bool:
    if isinstance(value, Decimal):
        return value.is_nan()
    return value is None or _is_not_a_time(value) or (isinstance(value, float) and value != value)  # noqa: PLR0124 - NaN


def _bounded_ns(value: int, path: str) -> int:
    if abs(value) > MAX_TIME_NS:
        raise FeatureRangeError(
            "Expected a moment between 1824 and 2115", path=path, hint="numbers are seconds, not milliseconds"
        )
    return value


def _int64(value: int, path: str) -> int:
    if not _INT64.min <= value <= _INT64.max:
        raise FeatureRangeError(
            f"Expected an integer of at most 64 bits, got {clip(value)}", path=path, hint="use str"
        )
    return value


def _utf8(value: str, path: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise FeatureRangeError(
            f"Expected text that has a UTF-8 form, got {clip(value)} with a lone surrogate", path=path
        ) from None
