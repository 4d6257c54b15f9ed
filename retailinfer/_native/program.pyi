"""The compiled feature program: raw values in, cells of the model's input tensors out. Readable twin: reference.py.

Order everywhere: slots are the request's fields, then stored columns, then windows; tensors and columns are in the order
of the spec.
"""

import builtins
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

Canonical: TypeAlias = tuple[
    NDArray[Any], NDArray[np.uint8] | None, NDArray[np.int64] | None, NDArray[np.int64] | None
]
TensorInfo: TypeAlias = tuple[str, int, int, bool, str | None, int]

TYPE_NAMES: tuple[str, ...]
ITEM_NAMES: tuple[str, ...]
STATE_NAMES: tuple[str, ...]

def hash_text(text: str, seed: int = 0) -> int:
    """xxh64 of the UTF-8 bytes, unsigned 64 bits: the hash behind hashed columns. 0 <= seed < 2**64. Holds the GIL."""

def hash_int(key: int, seed: int = 0) -> int:
    """xxh64 of the 8 little-endian bytes of an int64, unsigned 64 bits. Holds the GIL."""

def text_cells(buffer: NDArray[np.uint8], n_cells: int) -> list[str]:
    """Texts of a string tensor that `fill_table` filled. Its cells point into the table's columns: call it while they live."""

@final
class RowState:
    """Raw values and flags of one call at a time; made and used by native code only."""

@final
class Program:
    """A compiled spec: immutable, safe to share between threads. Made by `features.program.compile_program`.

    Attributes:
        n_slots, n_request: slots in all; the first `n_request` are fields of the request.
        event_slot: slot of the event time, -1 without one.
        slot_names, wire_names: by slot; `wire_names` as JSON and MessagePack have them.
        column_names: by column.
        tensors: (name, ONNX dtype number, cells of a row, is context, name of its mask or None, dtype number of the mask).
        has_max_age: a column asks how old a stored value is.
        has_lists: a field is a list.
    """

    n_slots: int
    n_request: int
    event_slot: int
    slot_names: tuple[str, ...]
    wire_names: tuple[str, ...]
    column_names: tuple[str, ...]
    tensors: tuple[TensorInfo, ...]
    has_max_age: bool
    has_lists: bool
    def __init__(
        self,
        *,
        slots: list[dict[str, Any]],
        n_request: int,
        event_slot: int,
        columns: list[dict[str, Any]],
        vocabularies: list[dict[str, Any]],
        tensors: list[TensorInfo],
        zone_at_s: tuple[int, ...],
        zone_offset_s: tuple[int, ...],
    ) -> None:
        """What `compile_program` worked out; nothing is checked again but sizes. Raises: SpecError, MemoryError."""

    def mark_bytes(self, slots: list[int]) -> None:
        """Say which text slots hold bytes instead of UTF-8. Called once, before the first use."""

    def type_name(self, slot: int) -> str:
        """Declared type of a slot, as an error shows it."""

    def fill_table(
        self,
        columns: list[Any],
        n_rows: int,
        outs: list[NDArray[Any]],
        masks: list[NDArray[np.uint8] | None],
        *,
        now_ns: int = 0,
        first_row: int = 0,
        reviews: NDArray[np.uint8] | None = None,
        states: list[Any] | None = None,
        updated: list[Any] | None = None,
        now: NDArray[np.int64] | None = None,
        flags: NDArray[np.uint8] | None = None,
    ) -> list[int]:
        """Rows of canonical columns -> tensors.

        Args:
            columns: `Canonical` or None by slot, C-contiguous; None = null in every row. (values, valid, offsets, children):
                float: float64 (n_rows,), NaN = null; int, bool, timestamp (ns since 1970): int64 (n_rows,);
                str, bytes: uint8 data; vector: float32 (n_rows, size);
                list: float64, int64, or uint8 data of all items.
                valid: uint8 (n_rows,), 1 = there; None = all. offsets: int64 (n_rows + 1,) into the data of texts or the
                items of lists. children: int64 offsets of the texts in lists.
            outs: by tensor, C-contiguous, at least n_rows * cells of its dtype; overwritten. A string tensor: uint8
                (n_rows * cells * 16,), to be read with `text_cells`.
            masks: by tensor, uint8 (n_rows, cells) or None; overwritten.
            now_ns: the moment against which ages are measured (a table's stored values have none).
            first_row: number of the first row, for messages.
            reviews: uint8 (n_rows,) or None; 1 where a column asked for review; overwritten.
            states: by slot, uint8 (n_rows,) or None, for stored values and windows: what the columns cannot say. 0 = as the
                column has it, 2 unknown, 3 stale (null stays null), 4 unavailable; places in `STATE_NAMES`.
            updated: by slot, int64 (n_rows,) or None, for the same: when each value was written, ns since 1970;
                2**63 - 1 = never stale, -2**63 = nobody knows.
            now: int64 (n_rows,) or None: the moment of each row, instead of `now_ns`.
            flags: uint8 (n_rows, columns) or None; the state that each column met, 0 = plainly present; overwritten.
        Returns: by column, how many raw values were outside the range that `fit` saw.
        Raises: FeatureMissingError, FeatureRangeError for the first row that fails, as `$[row].field`; the tensors then
            hold garbage. ValueError for arrays of another shape, which is a bug of the caller.
        Releases the GIL while rows are computed. Safe to call from many threads with different `outs`.
        """

@final
class RequestReader:
    """Reads the fields of requests: the generated Struct by offset, a dict by key, Structs and dataclasses by attribute.

    Attributes:
        type: the generated frozen Struct, whose exact type takes the fast path.
        forbid_extra: unknown keys of a dict are refused.
    """

    type: builtins.type
    forbid_extra: bool
    def __init__(
        self, program: Program, *, request_type: builtins.type, forbid_extra: bool = True, skip: int = -1
    ) -> None:
        """`skip`: slot of the field that candidates bring; it is not read from requests."""

    def values(self, request: Any) -> tuple[Any, ...]:
        """Canonical values of one request (or event) by slot, None for null; moments are ns since 1970. For tools and tests.

        Raises: FeatureError with the path of what is wrong.
        """
