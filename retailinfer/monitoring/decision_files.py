"""Files of the decision log as rows and as Arrow tables, and lines that become Parquet; its one place that touches pyarrow.

Rules:
  * Lines are read by Arrow's own parser, which lets the GIL go, a megabyte at a time: requests are answered meanwhile.
  * A column has one type in a table: what differs between rows (7, "seven") becomes text, as JSON.
  * A Parquet file is made in memory and written whole: no fork finds it half done.
  * A file that vanishes while it is read was finished or rewritten by another process: its successor is read instead.
Without pyarrow (`retailinfer[arrow]`) logs of lines are written and read as rows; tables and Parquet need it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from retailinfer.errors import ConfigError
from retailinfer.monitoring.decision_folder import LogFile, finished_name, listing, write_whole
from retailinfer.monitoring.decision_rows import FIXED, declarations

__all__ = ["ToParquet", "need_arrow", "parquet_without", "read_rows", "read_table"]

_CHUNK: Final = 1 << 20
_GROUP: Final = 1 << 15  # rows of a row group
_TRIES: Final = 20


def need_arrow() -> Any:
    """The module pyarrow. Raises: ConfigError without it."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - optional extra
        from pyarrow import compute, json, parquet  # noqa: F401, PLC0415 - parts of pyarrow from now on
    except ImportError as exc:
        raise ConfigError(
            "decision logs as Parquet or Arrow need pyarrow", hint="pip install 'retailinfer[arrow]'"
        ) from exc
    return pa


# ---- lines -> Arrow --------------------------------------------------------------------------------------------------


def _fixed_types(pa: Any) -> dict[str, Any]:
    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
    lists = {tuple[str, ...]: pa.list_(pa.string()), tuple[float, ...]: pa.list_(pa.float64())}
    types = {}
    for name, kind in FIXED.items():
        plain = next(one for one in getattr(kind, "__args__", (kind,)) if one is not type(None))
        plain = kind if kind in kinds or kind in lists else plain
        types[name] = (kinds | lists)[plain]
    return types


def _chunks(path: Path, size: int = _CHUNK) -> Iterator[bytes]:
    """Whole lines of a file, about `size` bytes at a time; what stands behind the last whole line is left out."""
    rest = b""
    with path.open("rb") as file:
        while data := file.read(size):
            data = rest + data
            end = data.rfind(b"\n") + 1
            if end:
                yield data[:end]
            rest = data[end:]


def _parsed(pa: Any, lines: bytes, types: dict[str, Any]) -> Any:
    """A table of lines; columns in `types` are of that type, others of what is found. Raises: ArrowInvalid."""
    return pa.json.read_json(
        pa.BufferReader(lines),
        read_options=pa.json.ReadOptions(use_threads=False, block_size=len(lines) + 1),
        parse_options=pa.json.ParseOptions(
            explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="infer"
        ),
    )


def _types_of(pa: Any, found: Any, known: dict[str, Any]) -> None:
    """Add to `known` the types of a table's columns; None for a column that has no one type."""
    for field in found.schema:
        if field.name in known and known[field.name] is None:
            continue
        kind = _plain_type(pa, field.type)
        known[field.name] = kind if field.name not in known else _both(pa, known[field.name], kind)


def _plain_type(pa: Any, kind: Any) -> Any:
    """Text that looks like a time is text: the same column may hold other text elsewhere."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        inner = _plain_type(pa, kind.value_type)
        return None if inner is None else pa.list_(inner)
    return None if pa.types.is_struct(kind) else kind


def _both(pa: Any, one: Any, other: Any) -> Any:
    """The type that holds both, or None."""
    if one is None or other is None or one == other:
        return one if one == other else None
    types = pa.types
    for a, b in ((one, other), (other, one)):
        if types.is_null(a):
            return b
        if types.is_integer(a) and types.is_floating(b):
            return b
    if types.is_list(one) and types.is_list(other):
        inner = _both(pa, one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    return None


def _table_of_lines(pa: Any, lines: bytes, types: dict[str, Any]) -> Any:
    """A table with exactly the columns of `types`; a type of None stands for JSON text."""
    if None not in types.values():
        try:
            return _parsed(pa, lines, types).select(list(types))
        except pa.ArrowException:
            pass  # such as an integer beyond 64 bits: Python reads it
    rows = [row for line in lines.splitlines() if (row := _row(line)) is not None]
    columns = {}
    for name, kind in types.items():
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values, kind) if kind is not None else _as_text(pa, values)
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            columns[name] = _as_text(pa, values)
    return pa.table(columns)


def _as_text(pa: Any, values: list[Any]) -> Any:
    return pa.array(
        [None if value is None else msgspec.json.encode(value).decode() for value in values], pa.string()
    )


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # not a line of ours
        return None
    return row if isinstance(row, dict) and isinstance(row.get("at_ns"), int) else None


def _with_time(pa: Any, table: Any) -> Any:
    """`at_ns` as the timestamp column `at`."""
    place = table.schema.get_field_index("at_ns")
    return table.set_column(place, "at", table.column(place).cast(pa.timestamp("ns", "UTC")))


class ToParquet:
    """A sealed file of lines on its way to become Parquet: `step` by step, each some ten milliseconds of work.

    Only who keeps the folder may. Nothing but memory and the file's path is held between steps.
    """

    def __init__(self, file: LogFile) -> None:
        self._pa = need_arrow()
        self._file = file
        declared = declarations(file.path.parent).get(file.declaration)
        more = () if declared is None else declared.columns()
        entities = {name: self._pa.string() for name in more if name.startswith("entity.")}
        self._types: dict[str, Any] = _fixed_types(self._pa) | entities
        self._found: dict[str, Any] = {name: self._pa.null() for name in more if name not in entities}
        self._chunks = self._read(0)
        self._writes = False
        self._out: Any = None
        self._writer: Any = None
        self._first_ns, self._last_ns = 1 << 63, -1

    def _read(self, start: int) -> Iterator[bytes]:
        """Like `_chunks`, with the file closed between two of them."""
        while True:
            with self._file.path.open("rb") as file:
                file.seek(start)
                data = file.read(_CHUNK)
                while data and b"\n" not in data:
                    more = file.read(_CHUNK)
                    if not more:
                        return
                    data += more
            end = data.rfind(b"\n") + 1
            if not end:
                return
            yield data[:end]
            start += end

    def step(self) -> bool:
        """Do a part; whether all is done. Raises: OSError; ArrowException."""
        lines = next(self._chunks, None)
        if not self._writes:
            if lines is not None:
                self._learn(lines)
                return False
            self._begin()
            return False
        if lines is not None:
            self._add(lines)
            return False
        self._finish()
        return True

    def _learn(self, lines: bytes) -> None:
        pa = self._pa
        try:
            _types_of(pa, _parsed(pa, lines, self._types), self._found)
        except pa.ArrowException:  # two types in one column: row by row, to see in which
            for line in lines.splitlines():
                row = _row(line) or {}
                for name, value in row.items():
                    if name not in self._types and value is not None:
                        kind = _type_of_value(pa, value)
                        self._found[name] = (
                            kind if name not in self._found else _both(pa, self._found[name], kind)
                        )

    def _begin(self) -> None:
        self._types |= {name: kind for name, kind in self._found.items() if name not in self._types}
        self._chunks = self._read(0)
        self._writes = True

    def _add(self, lines: bytes) -> None:
        pa = self._pa
        table = _table_of_lines(pa, lines, self._types)
        if table.num_rows == 0:
            return
        times = pa.compute.min_max(table.column("at_ns")).as_py()
        self._first_ns, self._last_ns = (
            min(self._first_ns, times["min"]),
            max(self._last_ns, times["max"]),
        )
        table = _with_time(pa, table)
        if self._writer is None:
            self._out = pa.BufferOutputStream()
            self._schema = table.schema
            self._writer = pa.parquet.ParquetWriter(self._out, table.schema, compression="zstd")
        self._writer.write_table(table.cast(self._schema), row_group_size=_GROUP)

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            name = finished_name(self._file.tag, max(0, self._first_ns), self._last_ns, "parquet")
            write_whole(self._file.path.parent / name, memoryview(self._out.getvalue()))
        self._file.path.unlink(missing_ok=True)


def _type_of_value(pa: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return None
    if isinstance(value, int) and not isinstance(value, bool) and not -(1 << 63) <= value < 1 << 63:
        return None
    if isinstance(value, list):
        inner = pa.null()
        for one in value:
            kind = pa.null() if one is None else _type_of_value(pa, one)
            inner = _both(pa, inner, kind) if kind is not None else None
            if inner is None:
                return None
        return pa.list_(inner)
    return {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}.get(type(value), pa.string())


# ---- reading ---------------------------------------------------------------------------------------------------------


def _present(folder: Path, since_ns: int, until_ns: int) -> Iterator[LogFile]:
    """The files that may have rows of that time, each by what it is when its turn comes."""
    for file in listing(folder).files:
        if file.last_ns is not None and (file.last_ns < since_ns or (file.first_ns or 0) >= until_ns):
            continue
        yield file


def _successor(folder: Path, file: LogFile) -> LogFile | None:
    return next((one for one in listing(folder).files if one.tag == file.tag), None)


def _opened(folder: Path, file: LogFile, read: Any) -> Any:
    """What `read` makes of a file, or of what became of it meanwhile; None when it is gone."""
    now: LogFile | None = file
    for _ in range(_TRIES):
        if now is None:
            return None
        try:
            return read(now)
        except FileNotFoundError:
            now = _successor(folder, file)
    return None


def read_rows(
    folder: Path, *, since_ns: int = -(1 << 63), until_ns: int = 1 << 63
) -> Iterator[dict[str, Any]]:
    """Rows with `since_ns` <= `at_ns` < `until_ns`, file by file. Raises: OSError; ConfigError for Parquet without pyarrow."""
    for file in _present(folder, since_ns, until_ns):
        declared = declarations(folder).get(file.declaration)
        empty = dict.fromkeys((*FIXED, *(() if declared is None else declared.columns())))
        for row in _opened(folder, file, _rows_of) or ():
            if since_ns <= row["at_ns"] < until_ns:
                yield empty | row


def _rows_of(file: LogFile) -> Iterable[dict[str, Any]]:
    if file.format == "parquet":
        pa = need_arrow()
        data = pa.py_buffer(file.path.read_bytes())
        return _rows_of_parquet(pa, data)
    return _rows_of_lines(file.path.open("rb"))


def _rows_of_parquet(pa: Any, data: Any) -> Iterator[dict[str, Any]]:
    for batch in pa.parquet.ParquetFile(data).iter_batches(1_000, use_threads=False):
        table = pa.table(batch)
        place = table.schema.get_field_index("at")
        table = table.set_column(place, "at_ns", table.column(place).cast(pa.int64()))
        yield from table.to_pylist()


def _rows_of_lines(file: io.BufferedReader) -> Iterator[dict[str, Any]]:
    with file:
        for line in file:
            row = _row(line) if line.endswith(b"\n") else None
            if row is not None:
                yield row


def read_table(folder: Path, *, since_ns: int = -(1 << 63), until_ns: int = 1 << 63) -> Any:
    """The same rows as a pyarrow Table in the order of time, with `at` as a timestamp. Raises: as `read_rows`."""
    pa = need_arrow()
    tables = []
    for file in _present(folder, since_ns, until_ns):
        table = _opened(folder, file, _table_of)
        if table is not None:
            tables.append(table)
    if not tables:
        tables = [_with_time(pa, pa.schema(list(_fixed_types(pa).items())).empty_table())]
    table = _together(pa, tables)
    at = table.column("at").cast(pa.int64())
    low, high = max(since_ns, -(1 << 63)), min(until_ns, (1 << 63) - 1)
    wanted = pa.compute.and_(pa.compute.greater_equal(at, low), pa.compute.less(at, high))
    return table.filter(wanted).sort_by("at")


def _table_of(file: LogFile) -> Any:
    pa = need_arrow()
    if file.format == "parquet":
        return pa.parquet.read_table(pa.py_buffer(file.path.read_bytes()), use_threads=False)
    whole = ToParquet(file)
    chunks = list(_chunks(file.path))  # once: a live file grows
    for lines in chunks:
        whole._learn(lines)
    whole._begin()
    tables = [_with_time(pa, _table_of_lines(pa, lines, whole._types)) for lines in chunks]
    if not tables:
        return None
    return _together(pa, tables)


def _together(pa: Any, tables: list[Any]) -> Any:
    """Tables under each other; a column that has several types becomes text."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        pass
    types: dict[str, Any] = {}
    for table in tables:
        _types_of(pa, table, types)
    texts = {name for name, kind in types.items() if kind is None}
    return pa.concat_tables([_with_texts(pa, table, texts) for table in tables], promote_options="permissive")


def _with_texts(pa: Any, table: Any, names: set[str]) -> Any:
    for name in names & set(table.column_names) - {"at"}:
        place = table.schema.get_field_index(name)
        if not pa.types.is_string(table.schema.field(place).type):
            table = table.set_column(place, name, _as_text(pa, table.column(place).to_pylist()))
    return table


# ---- erasing ---------------------------------------------------------------------------------------------------------


def parquet_without(path: Path, column: str, key: str) -> int:
    """Rewrite a file without the rows whose `column` is `key`; how many there were. Only who keeps the folder may.

    Raises: OSError; ConfigError without pyarrow.
    """
    pa = need_arrow()
    data = pa.py_buffer(path.read_bytes())
    if column not in pa.parquet.read_schema(pa.BufferReader(data)).names:
        return 0
    keys = pa.parquet.read_table(pa.BufferReader(data), columns=[column], use_threads=False).column(column)
    mine = pa.compute.fill_null(pa.compute.equal(keys, key), False)
    n: int = pa.compute.sum(mine).as_py() or 0
    if n == 0:
        return 0
    if n == len(keys):
        path.unlink()
        return n
    table = pa.parquet.read_table(pa.BufferReader(data), use_threads=False).filter(pa.compute.invert(mine))
    out = pa.BufferOutputStream()
    pa.parquet.write_table(table, out, compression="zstd", row_group_size=_GROUP)
    write_whole(path, memoryview(out.getvalue()))
    return n
