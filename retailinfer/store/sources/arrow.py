"""ArrowSource: rows out of an Arrow table in memory, or out of Parquet files. Needs `retailinfer[arrow]`.

Rules:
  * A table, or a file read `whole`, is read and checked when the source is made: a key twice, null keys and types that have
    no meaning here are refused and named. Fetching from it waits for nothing.
  * A file that is not read whole is opened for every fetch and filtered while it is read, so that it may be replaced
    (by a rename) at any time; statistics of row groups help most where the file is sorted by the key.
  * pyarrow's own threads are not used: they would not outlive a fork.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from retailinfer.errors import ConfigError, clip
from retailinfer.store.arrow import read_columns
from retailinfer.store.sources import Key
from retailinfer.store.table import Snapshot

__all__ = ["ArrowSource"]


class ArrowSource:
    """Rows of Arrow data, by a key column or several."""

    def __init__(
        self,
        data: Any,
        *,
        key: str | Sequence[str],
        columns: Sequence[str] | None = None,
        whole: bool = True,
    ) -> None:
        """Take a table, or the path of a Parquet file or of a folder of them.

        Args:
            data: anything with the Arrow stream interface, or a path.
            key: the column with the keys, or several for keys that are tuples.
            columns: which columns rows have; all but the key by default.
            whole: for a path: read everything now. Else every fetch reads what it needs from the file.
        Raises: ConfigError for a column that is not there or no pyarrow, SpecError for a type that has no meaning here,
            FeatureRangeError for a key that is there twice, OSError for a file that cannot be read.
        """
        self._key = (key,) if isinstance(key, str) else tuple(key)
        self._single = isinstance(key, str)
        self.key = key if isinstance(key, str) else self._key  # for who reads `scan`
        self._columns = None if columns is None else list(dict.fromkeys(columns))
        if both := [name for name in self._columns or () if name in self._key]:
            raise ConfigError(f"Expected columns beside the key, got {clip(both)} as both")
        self._path: str | None = None
        self._table: Any = None
        if isinstance(data, (str, os.PathLike)):
            self._path = os.fspath(data)
            if whole:
                data = self._read(None)
            else:
                empty = self._dataset().schema.empty_table()
                self._columns = self._checked(empty).column_names[len(self._key) :]
        if self._path is None or whole:
            self._table = self._checked(data)
            # Only for the index of its keys: the position of a row here is its position in the table.
            self._index = Snapshot.from_arrow(
                self._table.select(list(self._key)),
                key=self._key[0] if self._single else self._key,
                columns=(),
            )
            self._columns = self._table.column_names[len(self._key) :]
        self.waits = self._table is None

    def fetch(self, keys: Sequence[Key], *, timeout_s: float) -> dict[Key, dict[str, Any] | None]:
        """The rows of these keys. A file is read to its end, whatever `timeout_s` says."""
        if self._table is not None:
            positions = self._index.table.rows_of(list(keys))
            found = self._table.select(self._columns).take(positions[positions >= 0])
            rows = iter(_plain_times(found).to_pylist() if self._columns else [{}] * found.num_rows)
            return {
                key: next(rows) if position >= 0 else None
                for key, position in zip(keys, positions.tolist(), strict=True)
            }
        answer: dict[Key, dict[str, Any] | None] = dict.fromkeys(keys)
        for row in _plain_times(self._read(keys)).to_pylist():
            parts = [row.pop(name) for name in self._key]
            key = parts[0] if self._single else tuple(parts)
            if key not in answer:
                continue  # parts of several keys that do not belong together
            if answer[key] is not None:
                raise ConfigError(
                    "Expected one row for a key in the file, got several", hint="drop duplicates"
                )
            answer[key] = row
        return answer

    def scan(self) -> Any:
        """Everything, as a pyarrow.RecordBatchReader with the key columns first."""
        if self._table is not None:
            return self._table.to_reader()
        names = [*self._key, *(self._columns or ())]
        return self._dataset().scanner(columns=names, use_threads=False).to_reader()

    def __repr__(self) -> str:
        held = f"{self._table.num_rows} rows" if self._table is not None else "read for every fetch"
        return (
            f"<ArrowSource {'of a file' if self._path else 'of a table'}: by {', '.join(self._key)}, {held}>"
        )

    def _checked(self, data: Any) -> Any:
        """The table with the key columns first, once everything in it is known to have a meaning."""
        pa = _pyarrow()
        if not hasattr(data, "__arrow_c_stream__") and not hasattr(data, "__arrow_c_array__"):
            raise ConfigError(
                f"Expected a path or data with the Arrow stream interface, got `{type(data).__name__}`",
                hint="a pyarrow.Table, a polars or pandas DataFrame, the path of a Parquet file",
            )
        table = data if isinstance(data, pa.Table) else pa.table(data)
        # The conversions that a snapshot would make say what has no meaning; rows are converted when they are fetched.
        read_columns(table.slice(0, 0), key=self._key, updated_at=None, columns=self._columns, name="source")
        columns = self._columns or [name for name in table.column_names if name not in self._key]
        return table.select([*self._key, *columns])

    def _dataset(self) -> Any:
        _pyarrow()
        import pyarrow.dataset  # noqa: PLC0415 - an optional extra

        return pyarrow.dataset.dataset(self._path, format="parquet")

    def _read(self, keys: Iterable[Key] | None) -> Any:
        """The file's rows, or those that may have these keys."""
        pa = _pyarrow()
        dataset = self._dataset()
        names = None if self._columns is None else [*self._key, *self._columns]
        chosen = None
        if keys is not None:
            parts: list[Any] = [(key,) if self._single else key for key in keys]
            for i, name in enumerate(self._key):
                kind = dataset.schema.field(name).type
                if pa.types.is_dictionary(kind):
                    kind = kind.value_type
                one = pa.compute.field(name).isin(_as_type(pa, {part[i] for part in parts}, kind))
                chosen = one if chosen is None else chosen & one
        missing = [name for name in names or self._key if name not in dataset.schema.names]
        if missing:
            raise ConfigError(
                f"Expected the columns {clip(missing, 200)} in the file, which has {clip(dataset.schema.names, 200)}"
            )
        return dataset.to_table(columns=names, filter=chosen, use_threads=False)


def _as_type(pa: Any, wanted: set[Any], kind: Any) -> Any:
    """Those of the values that can stand in a column of this type at all: 70,000 is in no column of 16 bits."""
    try:
        return pa.array(list(wanted)).cast(kind)
    except pa.ArrowInvalid:
        if not pa.types.is_integer(kind) or not all(type(value) is int for value in wanted):
            raise
    low, high = (-(1 << kind.bit_width - 1), 1 << kind.bit_width - 1)
    if not pa.types.is_signed_integer(kind):
        low, high = 0, 1 << kind.bit_width
    return pa.array([value for value in wanted if low <= value < high], kind)


def _plain_times(table: Any) -> Any:
    """Moments in microseconds: pyarrow gives finer ones as pandas objects, or not at all."""
    pa = _pyarrow()
    for i, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            cells = table.column(i).cast(pa.timestamp("us", field.type.tz), safe=False)
            table = table.set_column(i, field.name, cells)
    return table


def _pyarrow() -> Any:
    try:
        import pyarrow  # noqa: ICN001, PLC0415 - an optional extra
        import pyarrow.compute  # noqa: PLC0415
    except ImportError as exc:
        raise ConfigError("Reading Arrow data needs pyarrow", hint="pip install retailinfer[arrow]") from exc
    return pyarrow
