"""The door to Arrow: any object with the Arrow stream interface -> canonical columns.

Rules:
  * The declared type of a field decides; every source is converted to it first, exactly or with an error that names column
    and row. Decimals go through their text, because Arrow's own conversion to float64 does not round correctly.
  * pyarrow is imported here and nowhere else in `features`; it is the extra `retailinfer[arrow]`.
What a canonical column is: canonical.py. Who consumes it: `_native.program.Program.fill_table`.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from retailinfer.errors import ConfigError, FeatureRangeError, FeatureTypeError, SpecError, clip
from retailinfer.features.canonical import Canonical, Columns
from retailinfer.features.spec import Body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["batches", "canonical", "from_objects", "read_table", "value_counts"]


MAX_TEXT = 65536  # as in a request: longer text is no identifier or category


def require_pyarrow() -> Any:
    """pyarrow, or the error that says how to get it."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - optional extra
    except ImportError as exc:
        raise ConfigError("tables need pyarrow", hint="pip install 'retailinfer[arrow]'") from exc
    return pa


def as_table(data: Any) -> pa.Table:
    """A pyarrow Table of anything with the Arrow stream interface."""
    pa = require_pyarrow()
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if hasattr(data, "__arrow_c_stream__"):
        return _opened(pa.RecordBatchReader.from_stream, data).read_all()
    if hasattr(data, "__arrow_c_array__"):
        return pa.Table.from_batches([_opened(pa.record_batch, data)])
    raise FeatureTypeError(
        f"Expected a table with the Arrow stream interface (pyarrow, polars, pandas), got `{type(data).__name__}`",
        path="$",
    )


def _opened(how: Callable[[Any], Any], data: Any) -> Any:
    """A stream or an array as rows of columns; a series or an array of plain cells has none."""
    try:
        return how(data)
    except (ValueError, TypeError) as exc:  # pyarrow's ArrowInvalid is a ValueError
        raise FeatureTypeError(
            f"Expected a table with the Arrow stream interface, got `{type(data).__name__}`: {clip(str(exc), 100)}",
            path="$",
            hint="one column alone is no table: give it a name, as in pyarrow.table({name: column})",
        ) from exc


def batches(data: Any, rows: int) -> Iterator[pa.Table]:
    """Slices of at most `rows` rows, read as the stream delivers them."""
    pa = require_pyarrow()
    if hasattr(data, "__arrow_c_stream__") and not isinstance(data, pa.Table):
        for batch in _opened(pa.RecordBatchReader.from_stream, data):
            table = pa.Table.from_batches([batch])
            for start in range(0, max(table.num_rows, 1), rows):
                yield table.slice(start, rows)
        return
    table = as_table(data)
    for start in range(0, max(table.num_rows, 1), rows):
        yield table.slice(start, rows)


def read_table(data: Any, body: Body, *, narrow_warning: bool = False, first_row: int = 0) -> Columns:
    """The columns that a spec reads. Raises: SpecError for a missing one, FeatureError for a value, with its row."""
    table = as_table(data)
    wanted = [(f.name, f.type, f.optional, f.wire) for f in body.fields]
    wanted += [(ref, kind, True, "") for ref, kind in body.stored.items()]
    wanted += [(name, "float", True, "") for name in body.windows]
    names = set(table.column_names)
    by_name: dict[str, Canonical | None] = {}
    for name, kind, optional, wire in wanted:
        found = name if name in names else wire if wire in names else None
        if found is None:
            if optional and name not in body.stored and name not in body.windows:
                by_name[name] = None
                continue
            has = f"it has: {', '.join(table.column_names)}"
            if name in body.windows:
                raise SpecError(
                    f"the table lacks the window `{name}`", hint=f"ri.replay computes it from events; {has}"
                )
            raise SpecError(f"the table lacks the column `{name}` ({kind})", hint=has)
        column = table.column(found)
        if narrow_warning and kind == "float" and str(column.type) in ("float", "halffloat"):
            warnings.warn(
                f"column `{name}` comes as {column.type}; requests bring float64, so the two differ in the last bits",
                stacklevel=4,
            )
        by_name[name] = canonical(column, kind, name, first_row)
    return Columns(table.num_rows, by_name)


def canonical(column: Any, kind: str, name: str, first_row: int = 0) -> Canonical:
    """One Arrow column in the canonical form of `kind`. Raises: FeatureTypeError, FeatureRangeError."""
    pa = require_pyarrow()
    path = f"$.{name}"
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # older pyarrow keeps a chunked array of one chunk
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        array = pa.nulls(len(array), _ARROW_TYPE(pa, kind))
    valid = None if array.null_count == 0 else np.asarray(array.is_valid()).astype(np.uint8)
    try:
        if kind == "float":
            return Canonical(_floats(pa, array, path), valid)
        if kind == "int":
            return Canonical(_ints(pa, array, path), valid)
        if kind == "bool":
            if not pa.types.is_boolean(array.type):
                raise _wrong(kind, array, path)
            return Canonical(np.asarray(array.fill_null(False)).astype(np.int64), valid)
        if kind == "timestamp":
            return _times(pa, array, path, valid, first_row)
        if kind in ("str", "bytes"):
            return _texts(pa, array, kind, path, valid)
        if kind == "vector":
            return _vectors(pa, array, path, valid)
        return _lists(pa, array, kind, path, valid)
    except pa.ArrowInvalid as exc:
        raise FeatureRangeError(
            f"Expected values that `{kind}` holds: {clip(str(exc), 120)}", path=path
        ) from exc
    except pa.ArrowNotImplementedError as exc:
        raise _wrong(kind, array, path) from exc


def from_objects(values: list[Any], kind: str, name: str) -> Canonical:
    """A canonical column out of Python values (None = null), for tests and golden rows."""
    pa = require_pyarrow()
    if kind == "vector":
        return canonical(pa.array(values, type=pa.list_(pa.float32())), kind, name)
    return canonical(pa.array(values, type=_ARROW_TYPE(pa, kind)), kind, name)


def value_counts(column: Any) -> list[tuple[Any, int]]:
    """Distinct values that are not null with their counts; most frequent first, ties by value."""
    pa = require_pyarrow()
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if (
        pa.types.is_list(array.type)
        or pa.types.is_large_list(array.type)
        or pa.types.is_fixed_size_list(array.type)
    ):
        array = array.flatten()
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int64())
    elif pa.types.is_string_view(
        array.type
    ):  # pyarrow counts nulls of views, which polars gives, as empty texts
        array = array.cast(pa.large_string())
    elif pa.types.is_binary_view(array.type):
        array = array.cast(pa.large_binary())
    pairs = [(e["values"].as_py(), e["counts"].as_py()) for e in array.drop_null().value_counts()]
    return sorted(pairs, key=lambda p: (-p[1], p[0]))


def _ARROW_TYPE(pa: Any, kind: str) -> Any:  # noqa: N802 - a table of constants that needs pyarrow to exist
    simple = {
        "float": pa.float64(),
        "int": pa.int64(),
        "bool": pa.bool_(),
        "timestamp": pa.timestamp("ns", tz="UTC"),
        "str": pa.large_string(),
        "bytes": pa.large_binary(),
        "vector": pa.list_(pa.float32(), 1),
        "list[float]": pa.large_list(pa.float64()),
        "list[int]": pa.large_list(pa.int64()),
        "list[str]": pa.large_list(pa.large_string()),
    }
    return simple[kind]


def _wrong(kind: str, array: Any, path: str) -> FeatureTypeError:
    return FeatureTypeError(f"Expected a column of `{kind}`, got Arrow `{array.type}`", path=path)


def _floats(pa: Any, array: Any, path: str) -> NDArray[np.float64]:
    kind = array.type
    if pa.types.is_decimal(kind):
        array = array.cast(pa.string())
    elif not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise _wrong("float", array, path)
    if pa.types.is_float16(kind):
        array = array.cast(pa.float32())
    if pa.types.is_integer(kind):
        # each integer becomes the nearest double, as float(int) does in a request
        values = np.asarray(array.fill_null(0)).astype(np.float64)
    else:
        values = np.asarray(array.cast(pa.float64()).fill_null(np.nan))
    return np.ascontiguousarray(values, dtype=np.float64)


def _ints(pa: Any, array: Any, path: str) -> NDArray[np.int64]:
    if not pa.types.is_integer(array.type):
        if pa.types.is_floating(array.type) and array.null_count:
            raise FeatureTypeError(
                f"Expected a column of `int`, got Arrow `{array.type}`",
                path=path,
                hint="pandas turns integers with gaps into floats: use its nullable Int64",
            )
        raise _wrong("int", array, path)
    return np.ascontiguousarray(np.asarray(array.cast(pa.int64()).fill_null(0)), dtype=np.int64)


def _times(pa: Any, array: Any, path: str, valid: Any, first_row: int) -> Canonical:
    if pa.types.is_timestamp(array.type):
        if array.type.tz is None:
            raise FeatureTypeError(
                f"Expected moments with a zone, got Arrow `{array.type}`",
                path=path,
                hint="attach the zone: column.cast(pa.timestamp('us', tz='UTC')), dt.tz_localize, replace_time_zone",
            )
        scale = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[array.type.unit]
        values = np.asarray(array.cast(pa.int64()).fill_null(0))
        bad = (values > (1 << 62) // scale) | (values < -((1 << 62) // scale))
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise FeatureRangeError(
                "Expected a moment between 1824 and 2115", path=f"$[{first_row + at}]{path[1:]}"
            )
        values = values * scale
        # a request's moment has microseconds (datetime, RFC 3339); finer ones are rounded to that, half up
        values = (values + 500) // 1000 * 1000
        return Canonical(np.ascontiguousarray(values, dtype=np.int64), valid)
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_decimal(array.type):
        seconds = _floats(pa, array, path)
        bad = ~(np.abs(seconds) < 4.6e9) & ~np.isnan(seconds)
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise FeatureRangeError(
                f"Expected seconds since 1970 within +-4.6e9, got {seconds[at]!r}",
                path=f"$[{first_row + at}]{path[1:]}",
                hint="milliseconds are not seconds",
            )
        missing = np.isnan(seconds)
        if missing.any():
            valid = (~missing).astype(np.uint8) if valid is None else valid & ~missing
        return Canonical(np.rint(np.where(missing, 0.0, seconds) * 1e6).astype(np.int64) * 1000, valid)
    raise _wrong("timestamp", array, path)


def _texts(pa: Any, array: Any, kind: str, path: str, valid: Any) -> Canonical:
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    binary = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_fixed_size_binary,
        pa.types.is_binary_view,
    )
    if not any(check(array.type) for check in (text if kind == "str" else binary)):
        raise _wrong(kind, array, path)
    data, offsets = _text_buffers(pa, array.cast(pa.large_string() if kind == "str" else pa.large_binary()))
    longest = int(np.diff(offsets).max(initial=0))
    if longest > MAX_TEXT:
        raise FeatureRangeError(f"Expected at most {MAX_TEXT} bytes of text, got {longest}", path=path)
    return Canonical(data, valid, offsets)


def _text_buffers(pa: Any, array: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Data and offsets of a large_string or large_binary array; a null has size 0 or its own bytes, nobody looks."""
    n = len(array)
    _, offset_buffer, data_buffer = array.buffers()
    if n == 0 or offset_buffer is None:
        return np.zeros(1, np.uint8), np.zeros(n + 1, np.int64)
    offsets = np.frombuffer(offset_buffer, np.int64)[array.offset : array.offset + n + 1]
    data = (
        np.frombuffer(data_buffer, np.uint8)
        if data_buffer is not None and data_buffer.size
        else np.zeros(1, np.uint8)
    )
    return data, np.ascontiguousarray(offsets)


def _vectors(pa: Any, array: Any, path: str, valid: Any) -> Canonical:
    kind = array.type
    n = len(array)
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = array.drop_null().value_lengths()
        sizes = set(lengths.unique().to_pylist())
        if len(sizes) > 1:
            raise FeatureTypeError(f"Expected vectors of one size, got sizes {sorted(sizes)[:5]}", path=path)
        size = sizes.pop() if sizes else 1
    else:
        raise _wrong("vector", array, path)
    out = np.zeros((n, size), np.float32)
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused below
        flat = _floats(pa, array.drop_null().flatten(), path).astype(np.float32)
    if not np.isfinite(flat).all():
        raise FeatureRangeError("Expected finite numbers in vectors", path=path)
    there = np.ones(n, bool) if valid is None else valid.astype(bool)
    out[there] = flat.reshape(-1, size)
    return Canonical(out, valid)


def _lists(pa: Any, array: Any, kind: str, path: str, valid: Any) -> Canonical:
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.large_list(array.type.value_type))
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        raise _wrong(kind, array, path)
    array = array.cast(pa.large_list(array.type.value_type))
    n = len(array)
    filled = np.asarray(array.value_lengths().fill_null(0)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(filled)]).astype(np.int64)
    items = array.flatten()
    if items.null_count:
        raise FeatureTypeError("Expected lists without nulls inside", path=path)
    if kind == "list[float]":
        values = _floats(pa, items, path)
        if not np.isfinite(values).all():
            raise FeatureRangeError("Expected finite numbers in lists", path=path)
        return Canonical(values if len(values) else np.zeros(1), valid, offsets)
    if kind == "list[int]":
        whole = _ints(pa, items, path)
        return Canonical(whole if len(whole) else np.zeros(1, np.int64), valid, offsets)
    if pa.types.is_dictionary(items.type):
        items = items.dictionary_decode()
    if not (
        pa.types.is_string(items.type)
        or pa.types.is_large_string(items.type)
        or pa.types.is_string_view(items.type)
    ):
        raise _wrong(kind, array, path)
    data, children = _text_buffers(pa, items.cast(pa.large_string()))
    longest = int(np.diff(children).max(initial=0))
    if longest > MAX_TEXT:
        raise FeatureRangeError(f"Expected at most {MAX_TEXT} bytes of text, got {longest}", path=path)
    assert len(offsets) == n + 1
    return Canonical(data, valid, offsets, children)
