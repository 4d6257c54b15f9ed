"""Entity tables: immutable keys -> rows, blocks of finished rows, the scan of candidate ids. Layout: table.h."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

Key: TypeAlias = str | int | bytes | tuple[str | int | bytes, ...]
KeyKind: TypeAlias = str | tuple[str, ...]
Texts: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.int64]]
Column: TypeAlias = tuple[str, str, Any, NDArray[np.uint8] | None]

KEY_KINDS: Mapping[str, int]
COLUMN_KINDS: Mapping[str, int]
MAX_TEXT: int
MAX_VECTOR: int
MAX_COLUMNS: int

class _Snapshot(Protocol):
    @property
    def table(self) -> SnapshotTable: ...

class RowBlock:
    """Rows of one width, 64-byte aligned, owned by this object and freed with it. Zeroed when made; not resized."""

    n_rows: int
    row_bytes: int
    def __init__(self, n_rows: int, row_bytes: int) -> None: ...
    @property
    def nbytes(self) -> int: ...
    @staticmethod
    def from_rows(rows: NDArray[Any]) -> RowBlock:
        """Copy a matrix (n_rows, n), any plain dtype in native byte order. Raises: ShapeError."""

    def take(self, rows: NDArray[np.int32], out: NDArray[Any]) -> None:
        """Copy row rows[i] into out[i]; a negative row leaves out[i] as it is.

        Args:
            rows: shape (n,), each below `n_rows`.
            out: C-contiguous, shape (n, m) with m cells of `row_bytes` together; owned by the caller.
        Raises: ShapeError, FeatureRangeError; `out` is then untouched. Holds the GIL.
        """

class SnapshotTable:
    """Immutable table: key -> record. Safe to read from any thread and after a fork: it is never written again."""

    schema: tuple[tuple[str, str, int, int, int], ...]
    key_kind: KeyKind
    name: str
    def __init__(
        self,
        name: str,
        key_kind: KeyKind,
        keys: Texts,
        columns: list[Column],
        updated_at: NDArray[np.int64] | None = None,
        *,
        hash_key: tuple[int, int] | None = None,
    ) -> None:
        """Build the index and the records, all input copied.

        Args:
            key_kind: "str", "int", "bytes", or a tuple of up to 8 of them.
            keys: canonical key bytes as (data, ends), n + 1 ends: UTF-8, the bytes, int64 little-endian, or what
                `compose_keys` made.
            columns: (name, kind, values, valid). Kind "f64": float64 (n,), NaN = absent; "i64": int64 (n,);
                "str", "bytes": (data, ends), at most 64 KiB each, UTF-8 for "str"; "vec": float32 (n, width), finite.
                valid: uint8 (n,), 1 = present; or None.
            updated_at: nanoseconds since the epoch, 0 = unknown.
            hash_key: tests only; a random one otherwise.
        Raises: FeatureRangeError for a duplicate key, a text too long or a vector that is not finite, naming the row;
            ShapeError, ConfigError, LimitError, MemoryError. Releases the GIL for the two long loops.
        """

    def __len__(self) -> int: ...
    def __contains__(self, key: Key) -> bool: ...
    @property
    def nbytes(self) -> int:
        """Bytes of index, records, texts and attached blocks."""

    @property
    def stride(self) -> int:
        """Bytes of one record."""

    @property
    def max_probe(self) -> int:
        """Longest probe of the build: no look-up reads more slots than this + 1."""

    def row_of(self, key: Key) -> int:
        """Row of a key, or -1. Raises: FeatureTypeError (another kind), FeatureRangeError (a lone surrogate, 2**63)."""

    def rows_of(self, keys: list[Any]) -> NDArray[np.int32]:
        """Rows of keys, shape (n,), -1 where absent. Raises like `row_of`, naming `$.candidates[i]`. Holds the GIL."""

    def key_at(self, row: int) -> Key: ...
    def row_at(self, row: int) -> dict[str, Any]:
        """All columns of a row; None = absent, vectors as float32 arrays."""

    def lookup(self, key: Key) -> dict[str, Any] | None:
        """All columns of a key's row, or None if there is no such key."""

    def updated_at_ns(self, key: Key) -> int | None:
        """When the row was updated, in ns since the epoch; None if the key or the time is not known."""

    def gather(
        self, keys: list[Any], columns: Sequence[str], *, out: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Numeric columns of many keys.

        Returns: float32 (n, sum of widths), NaN where the key or the cell is absent, each number rounded once;
            and int32 (n,) rows, -1 = no such key. With `out` (C-contiguous, of that shape) no matrix is allocated.
        Raises: FeatureTypeError, FeatureRangeError for keys; ConfigError for columns. Holds the GIL.
        """

    def gather_aged(
        self, keys: list[Any], columns: Sequence[str], wall_ns: int, *, out: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.uint8]]:
        """As `gather`; and the age of each row in seconds at `wall_ns`, NaN = not known, and never below 0; and an outcome.

        Outcomes, uint8 (n,): 0 present, 1 null (the row has none of the columns), 2 unknown (no such key).
        """

    def make_block(self, name: str, columns: Sequence[str]) -> RowBlock:
        """Attach float32 rows of these columns (NaN = absent) as block `name`: gathering is then one copy a row."""

    def attach_block(self, name: str, block: RowBlock | NDArray[Any]) -> RowBlock:
        """Keep a block of `len(self)` rows beside the table under `name`, in place of one before; an array is copied.

        The block lives as long as the table, or until `detach_block`.
        """

    def detach_block(self, name: str) -> None: ...
    def block(self, name: str) -> RowBlock | None: ...
    def gather_block(
        self, keys: list[Any], name: str, dtype: DTypeLike = ..., *, out: NDArray[Any] | None = None
    ) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Rows of a block for many keys: cells (n, row_bytes / itemsize), zeros where the key is absent; and rows."""

class TableSlot:
    """Where a name of the Store points. `swap` replaces `table` whole; a reader takes it once per call."""

    name: str
    table: SnapshotTable
    snapshot: Any
    generation: int
    def __init__(self, name: str, snapshot: _Snapshot) -> None: ...

def swap(slots: list[TableSlot], snapshots: list[Any]) -> None:
    """Point every slot to its snapshot's table; no other thread runs in between. ConfigError: nothing changed."""

def compose_keys(parts: list[NDArray[np.int64] | Texts], n: int) -> Texts:
    """Canonical keys of several parts out of n-row columns. Raises: ConfigError, ShapeError."""

def scan_ids_list(json: bytes, cap: int = ...) -> list[bytes] | int:
    """The plain strings of a JSON array; or -1 slow path, -2 malformed, -3 more than `cap`. For tests, tools."""
