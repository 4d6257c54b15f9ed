"""Files of the decision log as rows and as Arrow tables, and lines that become Parquet; its one place that touches pyarrow.

Rules:
  * Lines are decoded a few hundred at a time: requests are answered between. Not by Arrow's own reader of JSON: that of
    pyarrow 26 ends the process at a line that says `null`, and reads what is no UTF-8.
  * A column has one type in a table: what differs between rows (7, "seven") becomes text, as JSON.
  * A Parquet file is made in memory and written whole: no fork finds it half done.
  * A file that vanishes while it is read was finished or rewritten by another process: its successor is read instead.
Without pyarrow (`retailinfer[arrow]`) logs of lines are written and read as rows; tables and Parquet need it.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from retailinfer.errors import ConfigError, IntegrityError
from retailinfer.monitoring.decision_folder import LogFile, finished_name, listing, write_whole
from retailinfer.monitoring.decision_rows import FIXED, declarations

__all__ = ["ToParquet", "need_arrow", "parquet_without", "read_rows", "read_table"]

_CHUNK: Final = 1 << 16
_GROUP: Final = 1 << 15  # rows of a row group
_TRIES: Final = 20


def need_arrow() -> Any:
    """The module pyarrow. Raises: ConfigError without it."""
    try:
        # Arrow takes its threads at its first file. Then they would register for forks perhaps in the middle of one, while it
        # waits for this log: the child would release a lock that nobody took.
        import concurrent.futures.thread  # noqa: F401, PLC0415 - as pyarrow

        import pyarrow as pa  # noqa: PLC0415 - optional extra
        from pyarrow import compute, parquet  # noqa: F401, PLC0415 - parts of pyarrow from now on
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


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # not a line of ours
        return None
    at_ns = row.get("at_ns") if isinstance(row, dict) else None
    return row if type(at_ns) is int and -(1 << 63) <= at_ns < 1 << 63 else None


def _rows_in(lines: bytes) -> list[dict[str, Any]]:
    return [row for line in lines.split(b"\n") if (row := _row(line)) is not None]


def _type_of(pa: Any, value: Any) -> Any:
    """The Arrow type of a value as JSON has it; None for one that has no one type."""
    if isinstance(value, list):
        inner = pa.null()
        for one in value:
            inner = _both(pa, inner, _type_of(pa, one))
        return None if inner is None else pa.list_(inner)
    if type(value) is int:
        return pa.int64() if -(1 << 63) <= value < 1 << 63 else None
    return {
        type(None): pa.null(), bool: pa.bool_(), float: pa.float64(), str: pa.string(),
    }.get(type(value))  # fmt: skip


def _both(pa: Any, one: Any, other: Any) -> Any:
    """The type that holds both, or None."""
    if one is None or other is None or one == other:
        return one if one == other else None
    types = pa.types
    for a, b in ((one, other), (other, one)):
        if types.is_null(a) or (types.is_integer(a) and types.is_floating(b)):
            return b
    if types.is_list(one) and types.is_list(other):
        inner = _both(pa, one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    return None


class _Columns:
    """Which columns the rows of a file have, and of which types; None stands for values as JSON text."""

    def __init__(self, pa: Any, file: LogFile) -> None:
        declared = declarations(file.path.parent).get(file.declaration)
        names = () if declared is None else declared.columns()
        self._pa = pa
        self._known = _fixed_types(pa) | {n: pa.string() for n in names if n.startswith("entity.")}
        self._found = {name: pa.null() for name in names if name not in self._known}

    def learn(self, rows: list[dict[str, Any]]) -> None:
        """See what else is in rows."""
        simple = (str, int, float, bool, type(None))
        for name in dict.fromkeys(name for row in rows for name in row if name not in self._known):
            values = [row.get(name) for row in rows]
            kinds = set(map(type, values))
            if kinds <= set(simple) and int not in kinds:  # one look at each type will do
                values = [next(value for value in values if type(value) is kind) for kind in kinds]
            kind = self._found.get(name, self._pa.null())
            for value in values:
                kind = _both(self._pa, kind, _type_of(self._pa, value))
            self._found[name] = kind

    def table(self, rows: list[dict[str, Any]]) -> Any:
        """Rows as a table: the same columns and types whenever it is called after all was learned."""
        pa, columns = self._pa, {}
        for name, kind in (self._known | self._found).items():
            values = [row.get(name) for row in rows]
            columns[name] = _as_text(pa, values) if kind is None else _array(pa, values, kind)
        columns["at_ns"] = columns["at_ns"].cast(pa.timestamp("ns", "UTC"))
        return pa.table({"at" if name == "at_ns" else name: column for name, column in columns.items()})


def _array(pa: Any, values: list[Any], kind: Any) -> Any:
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):  # not a row of ours
        return pa.array([value if _fits(pa, value, kind) else None for value in values], kind)


def _fits(pa: Any, value: Any, kind: Any) -> bool:
    try:
        pa.scalar(value, kind)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return False
    return True


def _as_text(pa: Any, values: list[Any]) -> Any:
    return pa.array(
        [None if value is None else msgspec.json.encode(value).decode() for value in values], pa.string()
    )


def _chunks(path: Path) -> Iterator[bytes]:
    """Whole lines of a file, some at a time, with the file closed meanwhile; not what stands behind the last whole line."""
    start = 0
    while True:
        with path.open("rb") as file:
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


class ToParquet:
    """A sealed file of lines on its way to become Parquet: `step` by step, each about a millisecond of work.

    Only who keeps the folder may. Nothing but memory and the file's path is held between steps. `file`: the sealed one.
    """

    def __init__(self, file: LogFile) -> None:
        self._pa = need_arrow()
        self.file = file
        self._columns = _Columns(self._pa, file)
        self._chunks = _chunks(file.path)
        self._writes = False
        self._pending: list[Any] = []
        self._n_pending = 0
        self._out: Any = None
        self._writer: Any = None
        self._first_ns, self._last_ns = 1 << 63, -(1 << 63)

    def step(self) -> bool:
        """Do a part; whether all is done. Raises: OSError; ArrowException."""
        lines = next(self._chunks, None)
        if lines is None:
            if self._writes:
                self._finish()
                return True
            self._writes, self._chunks = True, _chunks(self.file.path)
            return False
        rows = _rows_in(lines)
        if not self._writes:
            self._columns.learn(rows)
        elif rows:
            times = [row["at_ns"] for row in rows]
            self._first_ns, self._last_ns = min(self._first_ns, *times), max(self._last_ns, *times)
            self._pending.append(self._columns.table(rows))
            self._n_pending += len(rows)
            if self._n_pending >= _GROUP:
                self._write()
        return False

    def _write(self) -> None:
        """A row group."""
        if not self._pending:
            return
        pa = self._pa
        table = pa.concat_tables(self._pending)
        if self._writer is None:
            self._out = pa.BufferOutputStream()
            self._writer = pa.parquet.ParquetWriter(self._out, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=2 * _GROUP)
        self._pending, self._n_pending = [], 0

    def _finish(self) -> None:
        self._write()
        if self._writer is not None:
            self._writer.close()
            name = finished_name(self.file.tag, self._first_ns, self._last_ns, "parquet")
            write_whole(self.file.path.parent / name, memoryview(self._out.getvalue()))
        self.file.path.unlink(missing_ok=True)


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
    """What `read` makes of a file, or of what became of it meanwhile; None when it is gone. Raises: IntegrityError."""
    now: LogFile | None = file
    for _ in range(_TRIES):
        if now is None:
            return None
        try:
            with whole(now.path):
                return read(now)
        except FileNotFoundError:
            now = _successor(folder, file)
    return None


@contextlib.contextmanager
def whole(path: Path) -> Iterator[None]:
    """Arrow's errors within are about this file. Raises: IntegrityError."""
    try:
        yield
    except (FileNotFoundError, ConfigError):
        raise
    except Exception as exc:  # Arrow has errors of its own, and ValueError, KeyError, OSError for others
        if path.suffix != ".parquet":
            raise
        raise IntegrityError(
            f"the decision log's file {path.name} cannot be read: {type(exc).__name__}",
            hint="it was changed or cut off; take it out of the folder, or put a copy in its place",
        ) from exc


def read_rows(
    folder: Path, *, since_ns: int = -(1 << 63), until_ns: int = 1 << 63
) -> Iterator[dict[str, Any]]:
    """Rows with `since_ns` <= `at_ns` < `until_ns`, file by file.

    Raises: OSError; IntegrityError for a Parquet file that cannot be read; ConfigError for Parquet without pyarrow.
    """
    for file in _present(folder, since_ns, until_ns):
        declared = declarations(folder).get(file.declaration)
        empty = dict.fromkeys((*FIXED, *(() if declared is None else declared.columns())))
        for row in _opened(folder, file, _rows_of) or ():
            if since_ns <= row["at_ns"] < until_ns:
                yield empty | row


def _rows_of(file: LogFile) -> Iterable[dict[str, Any]]:
    if file.format == "parquet":
        return _rows_of_parquet(need_arrow(), file.path)
    return _rows_of_lines(file.path.open("rb"))


def _rows_of_parquet(pa: Any, path: Path) -> Iterator[dict[str, Any]]:
    file = pa.parquet.ParquetFile(pa.py_buffer(path.read_bytes()))
    if "at" not in file.schema_arrow.names:
        raise KeyError("at")
    return _batches(pa, file, path)


def _batches(pa: Any, file: Any, path: Path) -> Iterator[dict[str, Any]]:
    batches = file.iter_batches(1_000, use_threads=False)
    while True:
        with whole(path):
            batch = next(batches, None)
        if batch is None:
            return
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
        nothing = LogFile(folder / "none", "live", "", "", 0, "jsonl")
        tables = [_Columns(pa, nothing).table([])]
    table = _together(pa, tables)
    at = table.column("at").cast(pa.int64())
    low, high = max(since_ns, -(1 << 63)), min(until_ns, (1 << 63) - 1)
    wanted = pa.compute.and_(pa.compute.greater_equal(at, low), pa.compute.less(at, high))
    return table.filter(wanted).sort_by("at")


def _table_of(file: LogFile) -> Any:
    pa = need_arrow()
    if file.format == "parquet":
        return pa.parquet.read_table(pa.py_buffer(file.path.read_bytes()), use_threads=False)
    chunks = list(_chunks(file.path))  # once: a live file grows
    columns = _Columns(pa, file)
    for lines in chunks:
        columns.learn(_rows_in(lines))
    return _together(pa, [columns.table(_rows_in(lines)) for lines in chunks]) if chunks else None


def _together(pa: Any, tables: list[Any]) -> Any:
    """Tables under each other; a column that has several types becomes text."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        pass
    types: dict[str, Any] = {}
    for table in tables:
        for field in table.schema:
            types[field.name] = _both(pa, types.get(field.name, pa.null()), field.type)
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

    Raises: OSError; IntegrityError for one that cannot be read; ConfigError without pyarrow.
    """
    with whole(path):
        return _without(need_arrow(), path, column, key)


def _without(pa: Any, path: Path, column: str, key: str) -> int:
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
