"""Mutable entity tables: bounded rows by key, with expiry, ages and the order of their use. Layout: lru_table.h.

Times: `now_ns` is the monotonic clock, `wall_ns` nanoseconds since the epoch. Everything holds the GIL and is one step; what
says "slice" is a part of a longer job. Keys: FeatureTypeError for another kind than the table's, FeatureRangeError for one
without a canonical form.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailinfer._native.table import Column, Key, KeyKind, Texts

# What a look-up finds.
ROW_FRESH: int
ROW_REFRESH: int
ROW_EXPIRED: int
ROW_ABSENT: int
ROW_UNKNOWN: int
KINDS: Mapping[str, int]
FLOAT32: np.dtype[np.float32]
UINT8: np.dtype[np.uint8]

class Scratch:
    """Memory of one call at a time."""

class LruReader:
    """Which columns a gather reads."""

    names: tuple[str, ...]
    width: int
    def __init__(
        self, table: LruTable, columns: Iterable[str], *, absent_is_unavailable: bool = False
    ) -> None: ...

class LruTable:
    """Mutable table: key -> row. Safe to use from any thread and after a fork."""

    schema: tuple[tuple[str, str, int, int, int], ...]
    column_ttls_ns: tuple[int, ...]
    key_kind: KeyKind
    name: str
    jitter: float
    ttl_ns: int
    unknown_ttl_ns: int
    def __init__(
        self,
        name: str,
        key_kind: KeyKind,
        columns: list[tuple[str, str, int]],
        *,
        convert: Callable[[str, int, Any, str], Any],
        max_rows: int | None = None,
        max_bytes: int | None = None,
        exact: bool = False,
        max_unknown: int | None = None,
        ttl_ns: int = 0,
        unknown_ttl_ns: int = 0,
        column_ttls_ns: dict[str, int] | None = None,
        jitter: float = 0.0,
        retention_ns: int = 0,
        refresh_share: float = 0.0,
        hash_key: tuple[int, int] | None = None,
        hash_mask: int = ...,
    ) -> None:
        """Lay out the rows and take the memory of the index; rows take theirs as they come.

        Args:
            columns: (name, kind, width); kinds "f64", "f32", "i64", "str", "bytes", "vec". Width 1, or the floats of a vector.
            convert: (kind, width, value, path) -> float | int | str | bytes | float32 array | None, for values of other types.
            max_bytes: for everything, the index included. What is not given follows from what is.
            exact: exact LRU in place of probation.
            refresh_share: of a row's life, before its end, in which one in use is to be refreshed.
            hash_key, hash_mask: tests only.
        Raises: ConfigError, LimitError, MemoryError.
        """

    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def max_bytes(self) -> int: ...
    @property
    def max_rows(self) -> int: ...
    @property
    def max_unknown(self) -> int: ...
    def put(self, key: Key, row: dict[str, Any], updated_ns: int, now_ns: int, extra: bool = False) -> None:
        """Store a row. `extra`: columns that the table has not are passed over, else refused.

        Raises: FeatureTypeError, FeatureRangeError, LimitError; the table is as it was, then.
        """

    def put_many(self, rows: list[tuple[Key, dict[str, Any], int]], now_ns: int, extra: bool = False) -> None:
        """Store rows (key, row, updated_ns): all are checked before the first is stored."""

    def mark_unknown(self, keys: Iterable[Key], now_ns: int) -> None:
        """Forget these rows, and remember for a while that there is nothing under these keys."""

    def erase(self, key: Key) -> bool: ...
    def clear(self) -> None: ...
    def sweep(self, n: int, now_ns: int) -> int:
        """Look at the next `n` rows and drop those that are past their retention; how many were."""

    def reader(self, columns: Iterable[str], *, absent_is_unavailable: bool = False) -> LruReader:
        """Plan a gather of these columns. ConfigError for one that is not there or is no number."""

    def gather(
        self,
        keys: Sequence[Any],
        reader: LruReader,
        now_ns: int,
        wall_ns: int,
        out: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.uint8]]:
        """Rows of many keys, one use of each, in their order.

        Returns: float32 (n, width), NaN where nothing is; float64 (n,) ages in seconds, never negative, NaN = not known;
            uint8 (n,) outcomes: 0 present, 1 null (none of the columns), 2 unknown, 3 stale, 4 unavailable.
        """

    def states(self, keys: Iterable[Any], now_ns: int) -> bytes:
        """ROW_* of each key; no use of it."""

    def to_fetch(self, keys: list[Any], stale_for_ns: int, now_ns: int) -> tuple[list[Any], list[Any]]:
        """Keys to wait for, and keys to refresh while what is there is given out; no use of either.

        The first are not there, or expired for `stale_for_ns` or longer; the second expired less long ago, or are due for a
        refresh ahead, which is said once per version of a row.
        """

    def updated_at(self, key: Key, now_ns: int) -> int:
        """When a key's row was true, ns since the epoch, 0 = there is none; no use of it."""

    def lookup(self, key: Key, now_ns: int) -> tuple[int, dict[str, Any] | None, int]:
        """(ROW_*, all columns of the row, updated_at), as one use. None = null; vectors as float32 arrays."""

    def info(self) -> dict[str, int]: ...
    def trace(self, keys: NDArray[np.int64], now_ns: int) -> NDArray[np.uint8]:
        """Tests and benchmarks only: look each key up, put an empty row where there is none. 1 = hit, shape (n,)."""

    def check(self) -> int:
        """Tests only: count everything again. 0, or the line of lru_table.c that found a difference."""

    def order(self) -> NDArray[np.uint32]:
        """Numbers of all rows, from the one that goes first to the newest."""

    def keys_of(self, numbers: NDArray[np.uint32]) -> list[Any]: ...
    def updated_of(self, numbers: NDArray[np.uint32]) -> NDArray[np.int64]: ...
    def export_rows(self, numbers: NDArray[np.uint32], now_ns: int, wall_ns: int) -> bytes:
        """Slice: rows by number as they stand in a dump; those that have gone are left out."""

    def check_rows(self, image: bytes | memoryview) -> int:
        """Rows of a dump, all looked at before any is stored: how many. IntegrityError names the first that is not whole."""

    def import_rows(
        self, image: bytes | memoryview, at: int, n: int, now_ns: int, wall_ns: int, retention_ns: int
    ) -> tuple[int, int]:
        """Slice: store up to `n` checked rows from byte `at` on. -> (byte behind them, how many were stored)."""

class RowSource:
    """Columns of many rows, checked when it is made, stored slice by slice."""

    n_rows: int
    def __init__(
        self, table: LruTable, keys: Texts, columns: list[Column], updated_at: NDArray[np.int64] | None = None
    ) -> None:
        """As for a SnapshotTable; columns that are not given are null.

        Raises: FeatureTypeError, FeatureRangeError, ShapeError.
        """

    def write(self, first: int, last: int, now_ns: int, updated_ns: int) -> None:
        """Slice: store rows [first, last); `updated_ns` for those that do not say when they were true."""

    def keys(self, first: int, last: int) -> list[Any]: ...
