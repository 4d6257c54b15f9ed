"""Columns out of Arrow data for a Snapshot; the one place of the store that touches pyarrow (`retailinfer[arrow]`).

Rules:
  * One canonical type each, as everywhere: float64, int64, UTF-8, bytes; so that a narrower source cannot give other
    bits than the request's JSON. Decimals go through their text: Arrow's own conversion rounds a quarter of them wrong.
  * Whole columns at a time; nothing here loops over rows.
  * A type that would need a guess (naive timestamps, dates, structs) is refused with what to do instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from retailinfer.errors import (
    ConfigError,
    FeatureMissingError,
    FeatureRangeError,
    ShapeError,
    SpecError,
    clip,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ArrowColumns", "is_arrow", "narrow_columns", "read_batches", "read_columns", "whole_table"]

MAX_TIME_NS = 1 << 62  # so that the difference of two moments fits 64 bits
_MAX_SECONDS = MAX_TIME_NS // 1_000_000_000


class ArrowColumns(NamedTuple):
    """What SnapshotTable takes, still without the canonical form of keys."""

    n_rows: int
    keys: list[tuple[str, Any]]  # (kind, int64 array or (data, ends)) of each part
    columns: list[tuple[str, str, Any, NDArray[np.uint8] | None]]
    updated_at: NDArray[np.int64] | None


def read_columns(
    data: Any, *, key: Sequence[str], updated_at: str | None, columns: Sequence[str] | None, name: str
) -> ArrowColumns:
    """Read key, value and time columns; what is asked for and not there, or cannot be stored, is named."""
    reader = _Reader(name)
    table = reader.table_of(data)
    if columns is None:
        columns = [column for column in table.column_names if column not in key and column != updated_at]
    wanted = [*key, *columns] if updated_at is None else [*key, *columns, updated_at]
    table = reader.select(table, list(dict.fromkeys(wanted)))
    return ArrowColumns(
        n_rows=table.num_rows,
        keys=[reader.key_part(table.column(column), f"{name}.{column}") for column in key],
        columns=[(column, *reader.read(table.column(column), f"{name}.{column}")) for column in columns],
        updated_at=None
        if updated_at is None
        else reader.times(table.column(updated_at), f"{name}.{updated_at}"),
    )


def is_arrow(data: Any) -> bool:
    """Whether the data has the Arrow stream interface; says so without pyarrow."""
    return hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__")


def whole_table(data: Any, name: str) -> Any:
    """Arrow data as one pyarrow.Table, so that its types can be looked at before its columns are read."""
    return _Reader(name).table_of(data)


def narrow_columns(table: Any) -> set[str]:
    """Names of the columns of a pyarrow.Table whose numbers float32 holds: float32 and float16."""
    return {field.name for field in table.schema if str(field.type) in ("float", "halffloat")}


def read_batches(data: Any, *, name: str, rows: int = 65_536) -> Iterator[Any]:
    """Pieces of Arrow data, or of a Parquet file given by its path: a stream or a file is never in memory whole."""
    reader = _Reader(name)
    pa = reader.pa
    if isinstance(data, (str, os.PathLike)):
        import pyarrow.parquet  # noqa: PLC0415 - an optional extra, and slow to load

        with pyarrow.parquet.ParquetFile(os.fspath(data), memory_map=False) as file:
            for batch in file.iter_batches(batch_size=rows, use_threads=False):
                yield pa.Table.from_batches([batch])
        return
    if isinstance(data, (pa.RecordBatchReader, pa.Table)) or not hasattr(data, "__arrow_c_stream__"):
        stream = data
    else:
        stream = pa.RecordBatchReader.from_stream(data)
    if isinstance(stream, pa.RecordBatchReader):
        for batch in stream:
            for start in range(0, batch.num_rows, rows):
                yield pa.Table.from_batches([batch.slice(start, rows)])
        return
    table = reader.table_of(stream)
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


class _Reader:
    """The conversions, with pyarrow imported when the first table comes and not before."""

    def __init__(self, name: str) -> None:
        try:
            import pyarrow  # noqa: ICN001, PLC0415 - an optional extra
            import pyarrow.compute  # noqa: PLC0415
        except ImportError as exc:
            raise ConfigError(
                "Reading Arrow data needs pyarrow",
                hint="pip install retailinfer[arrow], or use Snapshot.from_rows",
            ) from exc
        self.pa: Any = pyarrow
        self.pc: Any = pyarrow.compute
        self.name = name

    def table_of(self, data: Any) -> Any:
        """Anything with the Arrow stream interface, as a pyarrow.Table; pyarrow's own are not copied."""
        if isinstance(data, self.pa.RecordBatchReader):
            return data.read_all()
        if hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__"):
            return self.pa.table(data)
        raise ConfigError(
            f"Expected data with the Arrow stream interface, got `{type(data).__name__}`",
            hint="a pyarrow.Table, a polars or pandas DataFrame; for dicts use Snapshot.from_rows",
        )

    def select(self, table: Any, names: list[str]) -> Any:
        """The columns of these names, each there exactly once, with sound offsets and text."""
        for name in names:
            count = table.column_names.count(name)
            if count != 1:
                raise ConfigError(
                    f"Expected one column {clip(name)} for table `{self.name}`, got {count}; "
                    f"the data has {clip(table.column_names, 200)}"
                )
        table = table.select(names)
        try:
            table.validate(full=True)  # offsets and UTF-8, so that no reader has to look again
        except self.pa.ArrowInvalid as exc:
            raise ShapeError(f"Expected valid Arrow data, got: {exc}", path=f"$.{self.name}") from exc
        return table

    def key_part(self, column: Any, label: str) -> tuple[str, Any]:
        """(kind, values) of a column of keys: text, bytes or integers, none of them null."""
        types = self.pa.types
        column = self._decoded(column)
        if column.null_count:
            row = self._first(self.pc.is_null(column))
            raise FeatureMissingError(
                f"Expected a key in every row, got null in row {row}",
                path=f"$.{label}",
                hint="drop rows without a key",
            )
        kind = "" if types.is_timestamp(column.type) or types.is_boolean(column.type) else None
        if kind is None:
            kind, values, _ = self.read(column, label)
            if kind in ("str", "bytes", "i64"):
                return ("int" if kind == "i64" else kind), values
        raise SpecError(
            f"Expected keys of type string, binary or integer in `{label}`, got `{column.type}`",
            hint="cast the column to what requests will carry",
        )

    def read(self, column: Any, label: str) -> tuple[str, Any, NDArray[np.uint8] | None]:
        """(kind, values, valid) of a column."""
        pa, types = self.pa, self.pa.types
        column = self._decoded(column)
        kind, valid = column.type, self._valid(column)
        if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
            return "str", _texts(column.cast(pa.large_string()), ""), valid
        if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
            return "bytes", _texts(column.cast(pa.large_binary()), b""), valid
        if types.is_floating(kind) or types.is_null(kind):
            return "f64", _numbers(column.cast(pa.float64())), valid
        if types.is_decimal(kind):
            return "f64", _numbers(column.cast(pa.string()).cast(pa.float64())), valid
        if types.is_integer(kind) or types.is_boolean(kind):
            return "i64", _numbers(self._cast(column, pa.int64(), label)), valid
        if types.is_timestamp(kind):
            if kind.tz is None:
                raise SpecError(
                    f"Expected timestamps with a zone in `{label}`, got `{kind}`",
                    hint="say which zone they are in: `dt.tz_localize` in pandas, `pc.assume_timezone` in pyarrow",
                )
            ns = _numbers(self._cast(column, pa.timestamp("ns", kind.tz), label).cast(pa.int64()))
            if ((ns < -MAX_TIME_NS) | (ns > MAX_TIME_NS)).any():
                raise FeatureRangeError("Expected moments between 1824 and 2115", path=f"$.{label}")
            # A moment has microseconds, in a request and in a table that a spec is fitted on: rounded alike.
            return "i64", (ns + 500) // 1000 * 1000, valid
        if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            return "vec", self._vectors(column, label), valid
        raise SpecError(
            f"Expected numbers, text, bytes, timestamps with a zone or lists of numbers in `{label}`, got `{kind}`",
            hint="cast the column, or leave it out with columns=[...]",
        )

    def times(self, column: Any, label: str) -> NDArray[np.int64]:
        """Nanoseconds since the epoch of every row, 0 = not known."""
        kind, read, valid = self.read(column, label)
        values = read
        if kind not in ("i64", "f64") or self.pa.types.is_boolean(column.type):
            raise SpecError(
                f"Expected timestamps or seconds since the epoch in `{label}`, got `{column.type}`"
            )
        if not self.pa.types.is_timestamp(column.type):
            seconds = np.where(np.isnan(values), 0, values) if kind == "f64" else values
            if not ((seconds > -_MAX_SECONDS) & (seconds < _MAX_SECONDS)).all():
                raise FeatureRangeError(
                    "Expected seconds since the epoch, got a number outside 1824 to 2115",
                    path=f"$.{label}",
                    hint="for another unit use a timestamp column",
                )
            values = np.rint(seconds * 1e9).astype(np.int64) if kind == "f64" else seconds * 1_000_000_000
        known = valid
        if kind == "f64":
            known = ~np.isnan(read) if valid is None else valid.astype(bool) & ~np.isnan(read)
        values = np.where(values == 0, 1, values)  # the epoch itself is long ago, which "not known" is not
        return values if known is None else np.where(known, values, 0)

    def _vectors(self, column: Any, label: str) -> NDArray[np.float32]:
        path = f"$.{label}"
        cell = column.type.value_type
        if not (self.pa.types.is_floating(cell) or self.pa.types.is_integer(cell)):
            raise SpecError(
                f"Expected lists of numbers in `{label}`, got `{column.type}`", hint="leave it out"
            )
        present = np.flatnonzero(self.pc.is_valid(column).to_numpy())
        if len(present) == 0:
            return np.zeros((len(column), 1), np.float32)
        rows = column.drop_null()
        sizes = self.pc.list_value_length(rows).to_numpy()
        width = int(sizes[0])
        if width == 0 or (sizes != width).any():
            odd = int(np.argmax(sizes != width)) if width else 0
            raise ShapeError(
                f"Expected lists of one length, above 0, got {width} numbers in row {present[0]} "
                f"and {sizes[odd]} in row {present[odd]}",
                path=path,
            )
        flat = self.pc.list_flatten(rows)
        if flat.null_count:
            row = present[self._first(self.pc.is_null(flat)) // width]
            raise FeatureRangeError(
                f"Expected numbers in a vector, got null in row {row}",
                path=path,
                hint="make the whole vector null",
            )
        cells = np.zeros((len(column), width), np.float32)
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused by name
            cells[present] = flat.to_numpy().astype(np.float32).reshape(-1, width)
        return cells

    def _decoded(self, column: Any) -> Any:
        """A dictionary column as a plain one."""
        types = self.pa.types
        if not types.is_dictionary(column.type):
            return column
        kind = column.type.value_type
        if types.is_string_view(kind):
            kind = self.pa.large_string()  # views cannot be cast inside a dictionary; polars has them
        chunks = [chunk.dictionary.cast(kind).take(chunk.indices) for chunk in column.chunks]
        return self.pa.chunked_array(chunks, kind)

    def _valid(self, column: Any) -> NDArray[np.uint8] | None:
        if not column.null_count:
            return None
        valid: NDArray[np.uint8] = self.pc.is_valid(column).to_numpy().astype(np.uint8)
        return valid

    def _first(self, mask: Any) -> int:
        """Index of the first true cell."""
        return int(self.pc.index(mask, True).as_py())

    def _cast(self, column: Any, target: Any, label: str) -> Any:
        try:
            return column.cast(target)
        except self.pa.ArrowInvalid as exc:
            raise FeatureRangeError(
                f"Expected values that fit 64 bits, got `{column.type}`: {exc}", path=f"$.{label}"
            ) from exc


def _numbers(column: Any) -> NDArray[Any]:
    values: NDArray[Any] = (column.fill_null(0) if column.null_count else column).to_numpy()
    return values


def _texts(column: Any, empty: str | bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(data, ends) of a large string or binary column: one flat buffer, as Arrow has it."""
    if column.null_count:
        column = column.fill_null(empty)  # what stands under a null is anybody's guess
    array = column.combine_chunks()
    n = len(array)
    if n == 0:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + n + 1]
    flat = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return flat[ends[0] : ends[-1]], ends - ends[0]
