"""Entity tables as the engine and the store see them: owned memory, checked input, look-ups.

Rules:
  * A table is built once, checked whole, and never changed; building gives the GIL up for its long parts.
  * No reference to a Python object in what it stores: keys and texts are copied, so a fork shares all of it.
  * Looking a key up runs no code of the caller, and its hash is keyed anew for every table: keys cannot be crafted to collide.
  * A key that is absent is row -1, never an exception. A key of another kind always is one.
Shapes and errors: table.pyi. The C below: table.h. Arrow and dicts become columns in retailinfer/store/table.py.
"""
import os

import numpy as np

from cpython.bool cimport PyBool_Check
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_Clear, PyErr_ExceptionMatches
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.long cimport PyLong_Check, PyLong_CheckExact
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_Check
from cpython.unicode cimport PyUnicode_Check, PyUnicode_CheckExact, PyUnicode_DecodeUTF8
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from retailinfer.errors import ConfigError, FeatureRangeError, FeatureTypeError, LimitError, ShapeError, clip


cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(PyObject* text)
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject* text)
    void* PyUnicode_DATA(PyObject* text)
    const char* PyUnicode_AsUTF8AndSize(PyObject* text, Py_ssize_t* size) except NULL
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1
    bint PyUnicode_CheckExactPtr "PyUnicode_CheckExact"(PyObject* text)


cdef extern from "table.h" nogil:
    ctypedef struct ri_source_column:
        int32_t kind
        int32_t bit
        size_t offset
        int64_t width
        const void* values
        const uint8_t* valid
        uint64_t arena_offset

    ctypedef struct ri_read_column:
        int32_t kind
        int32_t bit
        size_t offset
        int64_t width

    enum:
        RI_COLUMN_F64, RI_COLUMN_I64, RI_COLUMN_TEXT, RI_COLUMN_VEC, RI_MAX_KEY, RI_KEY_INT_ROOM

    void ri_prefetch "RI_PREFETCH"(const void* line)
    void ri_index_plan(const int64_t* offsets, int64_t n, uint64_t* n_slots, size_t* width, int64_t* long_bytes, int64_t* max_key)
    int ri_index_build(
        ri_index* index, uint8_t* entries, uint8_t* long_keys, const char* keys, const int64_t* offsets, int64_t* duplicate
    )
    int64_t ri_index_find(const ri_index* index, const char* key, int64_t size)
    void ri_index_find_many(const ri_index* index, const StrRef* keys, int64_t n, int32_t* rows)
    StrRef ri_index_key(const ri_index* index, int64_t row)
    void ri_fill_records(
        uint8_t* records, size_t stride, int64_t n_rows, const int64_t* updated_at, const ri_source_column* columns, int n_columns
    )
    void ri_read_rows(
        const TableView* view, const ri_read_column* columns, int n_columns, const int32_t* rows, int64_t n, uint8_t* out,
        size_t out_stride
    )
    void* ri_memory_new(size_t size)
    void ri_memory_free(void* memory, size_t size)
    int64_t ri_scan_ids(const char* json, int64_t size, StrRef* out, int64_t cap)


cdef enum:
    KEY_STR = 0
    KEY_INT = 1
    KEY_BYTES = 2
    KEY_PARTS = 3
    MAX_PARTS = 8
    CHUNK = 32            # objects whose memory is asked for ahead of reading it
    SCRATCH = 512         # canonical keys up to here need no allocation
    OUTCOME_PRESENT = 0   # as RI_PRESENT, RI_NULL, RI_UNKNOWN of feature_ops.h
    OUTCOME_NULL = 1
    OUTCOME_UNKNOWN = 2
    RECORDS = 0
    ARENA = 1
    SLOTS = 2
    ENTRIES = 3
    LONG_KEYS = 4

KEY_KINDS = {"str": KEY_STR, "int": KEY_INT, "bytes": KEY_BYTES}
COLUMN_KINDS = {"f64": RI_COLUMN_F64, "i64": RI_COLUMN_I64, "str": RI_COLUMN_TEXT, "bytes": RI_COLUMN_TEXT, "vec": RI_COLUMN_VEC}
MAX_TEXT = 65_536         # bytes of one str or bytes cell
MAX_VECTOR = 65_536       # floats of one vector
MAX_COLUMNS = 4_096


# ---- keys ---------------------------------------------------------------------------------------------------------------

cdef object _wrong_key(str expected, object got, str path, str table):
    return FeatureTypeError(
        f"Expected a key of kind `{expected}` for table `{table}`, got `{type(got).__name__}` {clip(got)}",
        path=path,
        hint="one table has one kind of key, and 1, True and '1' are different keys; convert before looking up",
    )


cdef int _text_of(PyObject* key, StrRef* out, object path) except -1:
    """The UTF-8 of a str; what CPython caches of it lives as long as the str."""
    cdef Py_ssize_t size = 0
    if PyUnicode_IS_COMPACT_ASCII(key):
        out.data = <const char*>PyUnicode_DATA(key)
        out.size = PyUnicode_GET_LENGTH(key)
        return 0
    try:
        out.data = PyUnicode_AsUTF8AndSize(key, &size)
    except UnicodeEncodeError:
        raise FeatureRangeError(
            f"Expected text that has a UTF-8 form, got {clip(<object>key)} with a lone surrogate",
            path=path if isinstance(path, str) else f"$.candidates[{path}]",
            hint="decode the source with errors='strict', or drop the character",
        ) from None
    out.size = size
    return 0


cdef int _int_of(object key, int64_t* out, str table, object path) except -1:
    cdef int overflow = 0
    if not PyLong_CheckExact(key):
        # by the type alone: isinstance would ask the object for its `__class__`
        if PyBool_Check(key) or not (PyLong_Check(key) or issubclass(type(key), np.integer)):
            raise _wrong_key("int", key, path if isinstance(path, str) else f"$.candidates[{path}]", table)
        key = int.__index__(key) if PyLong_Check(key) else int(key)
    out[0] = PyLong_AsLongLongAndOverflow(key, &overflow)
    if overflow:
        raise FeatureRangeError(
            f"Expected an integer key of at most 64 bits for table `{table}`, got {clip(key)}",
            path=path if isinstance(path, str) else f"$.candidates[{path}]",
            hint="use text keys for longer numbers",
        )
    return 0


# A key of one part, as the caller's object -> its canonical bytes. `number` holds those of an int. `path` may be a row number,
# so that no text is made for a key that is right.
cdef inline int _part_of(object key, int code, StrRef* out, int64_t* number, str table, object path) except -1:
    if code == KEY_STR:
        if not PyUnicode_Check(key):
            raise _wrong_key("str", key, path if isinstance(path, str) else f"$.candidates[{path}]", table)
        return _text_of(<PyObject*>key, out, path)
    if code == KEY_INT:
        _int_of(key, number, table, path)
        out.data = <const char*>number
        out.size = 8
        return 0
    if not PyBytes_Check(key):
        raise _wrong_key("bytes", key, path if isinstance(path, str) else f"$.candidates[{path}]", table)
    out.data = PyBytes_AS_STRING(key)
    out.size = PyBytes_GET_SIZE(key)
    return 0


cdef int key_part(object key, int code, StrRef* out, int64_t* number, str table, object path) except -1:
    return _part_of(key, code, out, number, table, path)


cdef object key_object(const char* data, int64_t size, int code):
    return _key_object(data, size, code)


cdef object wrong_key(str expected, object got, str path, str table):
    return _wrong_key(expected, got, path, table)


def compose_keys(list parts not None, Py_ssize_t n):
    """Canonical keys of several parts out of columns: parts are int64 arrays, or (uint8 data, int64 ends). -> (data, ends)."""
    cdef Py_ssize_t n_parts = len(parts), i, p
    cdef const uint8_t* data[MAX_PARTS]
    cdef const int64_t* ends[MAX_PARTS]
    cdef const int64_t* numbers[MAX_PARTS]
    cdef const int64_t[::1] int_view
    cdef const uint8_t[::1] byte_view
    cdef int64_t size
    cdef char* out
    if not 1 <= n_parts <= MAX_PARTS:
        raise ConfigError(f"Expected a key of 1 to {MAX_PARTS} parts, got {n_parts}")
    sizes = np.zeros(n, np.int64)
    for p in range(n_parts):
        part = parts[p]
        data[p] = NULL
        numbers[p] = NULL
        if isinstance(part, tuple):
            byte_view, int_view = texts_of(part[0], part[1], n, "key")
            data[p] = &byte_view[0] if byte_view.shape[0] else <const uint8_t*>&int_view[0]   # nothing to read, but a pointer
            ends[p] = &int_view[0]
            sizes += np.diff(part[1]) + 4
        else:
            int_view = part
            if int_view.shape[0] != n:
                raise ShapeError(f"Expected {n} key parts, got {int_view.shape[0]}", path="$.keys")
            numbers[p] = &int_view[0] if n else NULL
            sizes += RI_KEY_INT_ROOM
    offsets = np.zeros(n + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    result = np.empty(int(offsets[n]), np.uint8)
    cdef uint8_t[::1] filled = result
    if filled.shape[0]:
        out = <char*>&filled[0]
        with nogil:
            for i in range(n):
                for p in range(n_parts):
                    if data[p] == NULL:
                        out = ri_key_put_int(out, numbers[p][i])
                    else:
                        size = ends[p][i + 1] - ends[p][i]
                        out = ri_key_put_bytes(out, <const char*>data[p] + ends[p][i], size)
    return result, offsets


cdef tuple texts_of(object data, object ends, Py_ssize_t n, str what):
    """Check (uint8 data, int64 ends) of n texts, so that no reader has to."""
    data = np.ascontiguousarray(data, np.uint8)
    ends = np.ascontiguousarray(ends, np.int64)
    if data.ndim != 1 or ends.shape != (n + 1,):
        raise ShapeError(f"Expected {n + 1} offsets into a flat buffer for `{what}`, got shapes {ends.shape} and {data.shape}")
    if ends[0] < 0 or ends[n] > data.shape[0] or (n and np.diff(ends).min() < 0):
        raise ShapeError(f"Expected ascending offsets inside the {data.shape[0]} bytes of `{what}`")
    return data, ends


cdef tuple checked_column(object column, Py_ssize_t n, str table):
    """-> (name, kind, values, valid | None, width, text | None), of the exact dtypes and sizes that the C code reads."""
    name, kind, values, valid = column
    data, width = None, 1
    path = f"$.{table}.{name}"
    if kind not in COLUMN_KINDS:
        raise ConfigError(f"Expected a column kind out of {sorted(COLUMN_KINDS)} for `{name}`, got {clip(kind)}")
    if valid is not None:
        valid = np.ascontiguousarray(valid, np.uint8)
        if valid.shape != (n,):
            raise ShapeError(f"Expected {n} validity flags, got shape {valid.shape}", path=path)
    if kind in ("str", "bytes"):
        data, values = texts_of(values[0], values[1], n, f"{table}.{name}")
        longest = int(np.diff(values).max()) if n else 0
        if longest > MAX_TEXT:
            raise FeatureRangeError(
                f"Expected at most {MAX_TEXT} bytes in a cell, got {longest} in row {int(np.argmax(np.diff(values)))}", path=path
            )
        return name, kind, values, valid, width, data
    dtype = {"f64": np.float64, "i64": np.int64, "vec": np.float32}[kind]
    values = np.asarray(values)
    if values.dtype != dtype or not values.dtype.isnative:
        raise ShapeError(f"Expected {np.dtype(dtype)} in native byte order for a `{kind}` column, got {values.dtype}", path=path)
    values = np.ascontiguousarray(values)
    if kind == "vec":
        if values.ndim != 2 or values.shape[0] != n or not 1 <= values.shape[1] <= MAX_VECTOR:
            raise ShapeError(f"Expected {n} vectors of 1 to {MAX_VECTOR} floats, got shape {values.shape}", path=path)
        width = values.shape[1]
        finite = np.isfinite(values).all(axis=1)
        if valid is not None:
            finite |= valid == 0
        if not finite.all():
            raise FeatureRangeError(
                f"Expected finite numbers in a vector, got another in row {int(np.argmin(finite))}", path=path,
                hint="make the whole vector null where it is not known",
            )
    elif values.shape != (n,):
        raise ShapeError(f"Expected {n} values, got shape {values.shape}", path=path)
    return name, kind, values, valid, width, data


# ---- blocks ---------------------------------------------------------------------------------------------------------------

cdef class RowBlock:
    def __cinit__(self, Py_ssize_t n_rows, Py_ssize_t row_bytes):
        if n_rows < 0 or row_bytes < 1:
            raise ConfigError(f"Expected 0 rows or more of 1 byte or more, got {n_rows} of {row_bytes}")
        cdef size_t stride = 16
        if row_bytes > 64:
            stride = (<size_t>row_bytes + 63) & ~<size_t>63
        else:
            while stride < <size_t>row_bytes:
                stride *= 2
        if <size_t>n_rows > (<size_t>1 << 62) // stride:
            raise MemoryError(f"{n_rows} rows of {stride} bytes")
        self.n_rows = n_rows
        self.row_bytes = row_bytes
        self.stride = stride
        self.n_bytes = <size_t>n_rows * stride
        self.data = <uint8_t*>ri_memory_new(self.n_bytes)
        if self.data == NULL:
            raise MemoryError(f"no {self.n_bytes} bytes for {n_rows} rows")

    def __dealloc__(self):
        ri_memory_free(self.data, self.n_bytes)

    @property
    def nbytes(self):
        return self.n_bytes

    @staticmethod
    def from_rows(rows):
        rows = np.ascontiguousarray(rows)
        if rows.ndim != 2 or rows.dtype.hasobject or not rows.dtype.isnative:
            raise ShapeError(f"Expected rows of plain numbers in native byte order, got {rows.dtype} of shape {rows.shape}")
        cdef const uint8_t[:, ::1] source = rows.view(np.uint8)
        cdef RowBlock block = RowBlock(rows.shape[0], source.shape[1])
        cdef Py_ssize_t i
        for i in range(block.n_rows):
            memcpy(block.data + <size_t>i * block.stride, &source[i, 0], <size_t>block.row_bytes)
        return block

    def take(self, rows, out):
        """Copy rows[i] into out[i]; a negative row leaves its output as it is."""
        cdef const int32_t[::1] indices = rows
        if not out.flags.c_contiguous or not out.flags.writeable or out.ndim != 2 or out.dtype.hasobject:
            raise ShapeError("Expected a writeable C-contiguous matrix to gather into")
        cdef uint8_t[:, ::1] target = out.view(np.uint8)
        if target.shape[0] != indices.shape[0] or target.shape[1] != self.row_bytes:
            raise ShapeError(
                f"Expected {indices.shape[0]} rows of {self.row_bytes} bytes to gather into, got {target.shape[0]} of {target.shape[1]}"
            )
        cdef Py_ssize_t i
        for i in range(indices.shape[0]):
            if indices[i] >= self.n_rows:
                raise FeatureRangeError(f"Expected a row below {self.n_rows}, got {indices[i]}", path=f"$.rows[{i}]")
        if indices.shape[0]:
            gather_rows(self.data, self.stride, &indices[0], indices.shape[0], <size_t>self.row_bytes, &target[0, 0], <size_t>self.row_bytes)


# ---- tables ---------------------------------------------------------------------------------------------------------------

cdef class SnapshotTable:
    def __cinit__(self):
        memset(self.memory, 0, sizeof(self.memory))
        memset(self.n_bytes, 0, sizeof(self.n_bytes))
        memset(&self.view, 0, sizeof(self.view))
        memset(&self.index, 0, sizeof(self.index))

    def __init__(self, str name not None, key_kind, keys, list columns not None, updated_at=None, *, hash_key=None):
        if self.memory[RECORDS] != NULL:
            raise ConfigError("a SnapshotTable is built once; make another one")
        self.name = name
        self.blocks = {}
        self._set_key_kind(key_kind)
        cdef Py_ssize_t n = len(keys[1]) - 1
        if not 0 <= n < 2**31 - 1:
            raise LimitError(f"Expected fewer than {2**31 - 1} rows in table `{name}`, got {n}")
        if len(columns) > MAX_COLUMNS:
            raise LimitError(f"Expected at most {MAX_COLUMNS} columns in table `{name}`, got {len(columns)}")
        data, ends = texts_of(keys[0], keys[1], n, f"{name}.keys")
        self._build_index(data, ends, n, hash_key)
        self._build_records(columns, updated_at, n)

    cdef int _set_key_kind(self, object key_kind) except -1:
        cdef tuple parts = key_kind if isinstance(key_kind, tuple) else (key_kind,)
        if not 1 <= len(parts) <= MAX_PARTS or any(part not in KEY_KINDS for part in parts):
            raise ConfigError(f"Expected key kinds out of {sorted(KEY_KINDS)}, at most {MAX_PARTS} of them, got {clip(key_kind)}")
        cdef int i
        self.key_kind = key_kind
        self.n_parts = <int>len(parts)
        for i in range(self.n_parts):
            self.part_codes[i] = KEY_KINDS[parts[i]]
        self.key_code = KEY_PARTS if isinstance(key_kind, tuple) else self.part_codes[0]
        return 0

    cdef int _allocate(self, int which, size_t size) except -1:
        self.memory[which] = ri_memory_new(size)
        if self.memory[which] == NULL:
            raise MemoryError(f"no {size} bytes for table `{self.name}`")
        self.n_bytes[which] = size
        return 0

    cdef int _build_index(self, object data, object ends, Py_ssize_t n, object hash_key) except -1:
        cdef const uint8_t[::1] key_data = data
        cdef const int64_t[::1] key_ends = ends
        cdef const char* first = NULL
        cdef uint64_t n_slots = 0
        cdef int64_t long_bytes = 0
        cdef int64_t duplicate[2]
        cdef int status = 2, attempt
        cdef bytes secret
        if key_data.shape[0]:
            first = <const char*>&key_data[0]
        with nogil:
            ri_index_plan(&key_ends[0], n, &n_slots, &self.index.width, &long_bytes, &self.index.max_key)
        if self.index.max_key > RI_MAX_KEY:
            row = int(np.argmax(np.diff(ends)))
            raise FeatureRangeError(
                f"Expected keys of at most {RI_MAX_KEY} bytes in table `{self.name}`, got {self.index.max_key}", path=f"$.keys[{row}]"
            )
        self._allocate(SLOTS, n_slots * 8)
        self._allocate(ENTRIES, <size_t>n * self.index.width)
        self._allocate(LONG_KEYS, <size_t>long_bytes)
        self.index.slots = <uint64_t*>self.memory[SLOTS]
        self.index.mask = n_slots - 1
        self.index.n_rows = n
        for attempt in range(8):
            if hash_key is None:
                secret = os.urandom(16)
                memcpy(&self.index.hash_key, <const char*>secret, 16)
            else:  # tests only: shows what a key that an attacker knows would cost
                self.index.hash_key.k0, self.index.hash_key.k1 = hash_key
            with nogil:
                status = ri_index_build(
                    &self.index, <uint8_t*>self.memory[ENTRIES], <uint8_t*>self.memory[LONG_KEYS], first, &key_ends[0], duplicate
                )
            if status != 2:
                break
            memset(self.memory[SLOTS], 0, n_slots * 8)
        if status == 1:
            raise FeatureRangeError(
                f"Expected every key of table `{self.name}` once, got {clip(self.key_at(duplicate[0]))} "
                f"in rows {duplicate[0]} and {duplicate[1]}",
                path=f"$.keys[{duplicate[1]}]",
                hint="keep the newest row of each key before building the snapshot",
            )
        if status == 2:
            raise LimitError(f"the keys of table `{self.name}` collide under every hash key tried")
        return 0

    cdef int _build_records(self, list columns, object updated_at, Py_ssize_t n) except -1:
        cdef Py_ssize_t n_columns = len(columns), c
        cdef size_t offset = 8 + 8 * ((<size_t>n_columns + 63) // 64), stride = 16
        cdef const int64_t[::1] times
        cdef const int64_t* time_of_row = NULL
        cdef const uint8_t[::1] text
        cdef uint64_t arena_size = 0
        cdef uint8_t* records
        cdef ri_source_column* source
        cdef list kept = [], laid_out = []   # `kept` holds the arrays while their memory is read
        cdef dict offsets = {}
        checked = [checked_column(column, n, self.name) for column in columns]
        if len({column[0] for column in checked}) != n_columns:
            raise ConfigError(f"Expected every column of table `{self.name}` once, got {clip([column[0] for column in checked], 200)}")
        for pick_vectors in (False, True):
            for c in range(n_columns):
                name, kind, values, valid, width, data = checked[c]
                if (kind == "vec") == pick_vectors:
                    offsets[name] = offset
                    offset += (4 * <size_t>width + 7) & ~<size_t>7 if kind == "vec" else 8
                    if data is not None:
                        arena_size += len(data)
        if arena_size > 0xFFFFFFFF:
            raise LimitError(f"Expected at most 4 GiB of text in table `{self.name}`, got {arena_size} bytes", hint="leave columns out")
        if offset > 64:
            stride = (offset + 63) & ~<size_t>63   # whole lines
        else:
            while stride < offset:
                stride *= 2                        # no record straddles two lines
        if updated_at is not None:
            updated_at = np.ascontiguousarray(updated_at, np.int64)
            if updated_at.shape != (n,):
                raise ShapeError(f"Expected {n} times in `updated_at` of table `{self.name}`, got shape {updated_at.shape}")
            times = updated_at
            time_of_row = &times[0] if n else NULL
        self._allocate(RECORDS, <size_t>n * stride)
        self._allocate(ARENA, arena_size)
        records = <uint8_t*>self.memory[RECORDS]
        arena_size = 0
        source = <ri_source_column*>malloc((<size_t>n_columns + 1) * sizeof(ri_source_column))
        if source == NULL:
            raise MemoryError("no memory to lay out columns")
        try:
            for c in range(n_columns):
                name, kind, values, valid, width, data = checked[c]
                source[c].kind = COLUMN_KINDS[kind]
                source[c].bit = <int32_t>c
                source[c].offset = offsets[name]
                source[c].width = width
                source[c].arena_offset = arena_size
                source[c].values = <const void*><size_t>values.ctypes.data
                source[c].valid = <const uint8_t*><size_t>(0 if valid is None else valid.ctypes.data)
                if data is not None and len(data):
                    text = data
                    memcpy(<char*>self.memory[ARENA] + arena_size, &text[0], <size_t>text.shape[0])
                    arena_size += <uint64_t>text.shape[0]
                kept.append((values, valid))
                laid_out.append((name, kind, offsets[name], c, width))
            with nogil:
                ri_fill_records(records, stride, n, time_of_row, source, <int>n_columns)
        finally:
            free(source)
        self.view.records = records
        self.view.stride = stride
        self.view.n_rows = n
        self.view.arena = <const char*>self.memory[ARENA]
        self.schema = tuple(laid_out)
        return 0

    def __dealloc__(self):
        cdef int i
        for i in range(5):
            ri_memory_free(self.memory[i], self.n_bytes[i])

    # ---- look-ups for the engine

    cdef int64_t find(self, object key) except -2:
        cdef StrRef text
        cdef int64_t number = 0
        if self.key_code != KEY_PARTS:
            _part_of(key, self.key_code, &text, &number, self.name, "$")
            return ri_index_find(&self.index, text.data, text.size)
        return self._find_parts(key, "$")

    cdef int64_t _find_parts(self, object key, object path) except -2:
        """A key of several parts: its canonical form in scratch memory, then as ever."""
        cdef KeyPart parts[MAX_PARTS]
        cdef char scratch[SCRATCH]
        cdef char* out = scratch
        cdef size_t room = 0
        cdef int64_t size, row
        cdef int i
        scratch[0] = 0
        if not PyTuple_Check(key) or len(<tuple>key) != self.n_parts:
            raise _wrong_key(f"tuple of {self.n_parts}", key, path if isinstance(path, str) else f"$.candidates[{path}]", self.name)
        for i in range(self.n_parts):
            _part_of((<tuple>key)[i], self.part_codes[i], &parts[i].text, &parts[i].number, self.name, path)
            room += ri_key_room(parts[i].text.size)
            if self.part_codes[i] == KEY_INT:
                parts[i].text.data = NULL
        if room > <size_t>self.index.max_key:
            return -1
        if room > SCRATCH:
            out = <char*>malloc(room)
            if out == NULL:
                raise MemoryError(f"no {room} bytes for a key")
        size = ri_key_compose(parts, self.n_parts, out, room)
        row = ri_index_find(&self.index, out, size)
        if out != scratch:
            free(out)
        return row

    cdef int64_t find_bytes(self, const char* key, int64_t size) noexcept nogil:
        return ri_index_find(&self.index, key, size)

    cdef int find_many(self, list keys, int32_t* rows, StrRef* refs) except -1:
        cdef Py_ssize_t n = PyList_GET_SIZE(keys), base, i, end
        cdef StrRef chunk[CHUNK]
        cdef int64_t numbers[CHUNK]
        cdef StrRef* texts
        cdef PyObject* key
        cdef object owned
        for i in range(min(CHUNK, n)):
            _touch_ahead(<PyObject*>PyList_GET_ITEM(keys, i))
        for base in range(0, n, CHUNK):
            _same_size(keys, n)
            end = min(base + CHUNK, n)
            texts = &chunk[0]
            if refs != NULL:
                texts = refs + base
            for i in range(end, min(end + CHUNK, n)):
                _touch_ahead(<PyObject*>PyList_GET_ITEM(keys, i))
            if self.key_code == KEY_STR:
                for i in range(base, end):
                    key = <PyObject*>PyList_GET_ITEM(keys, i)
                    if PyUnicode_CheckExactPtr(key) and PyUnicode_IS_COMPACT_ASCII(key):
                        texts[i - base].data = <const char*>PyUnicode_DATA(key)
                        texts[i - base].size = PyUnicode_GET_LENGTH(key)
                    else:
                        _part_of(<object>key, KEY_STR, &texts[i - base], numbers, self.name, i)
            elif self.key_code == KEY_PARTS:
                for i in range(base, end):
                    owned = _item(keys, i, n)
                    rows[i] = <int32_t>self._find_parts(owned, i)
                    texts[i - base].data = NULL
                    texts[i - base].size = 0
                continue
            else:
                for i in range(base, end):
                    owned = _item(keys, i, n)
                    _part_of(owned, self.key_code, &texts[i - base], &numbers[i - base], self.name, i)
            ri_index_find_many(&self.index, texts, end - base, rows + base)
            if refs != NULL and self.key_code == KEY_INT:   # `numbers` is ours and ends here
                memset(texts, 0, <size_t>(end - base) * sizeof(StrRef))
        return 0

    cdef void find_many_bytes(self, const StrRef* keys, int64_t n, int32_t* rows) noexcept nogil:
        ri_index_find_many(&self.index, keys, n, rows)

    cdef StrRef key_of(self, int64_t row) noexcept nogil:
        return ri_index_key(&self.index, row)

    # ---- what Python sees

    def __len__(self):
        return self.view.n_rows

    def __contains__(self, key):
        return self.find(key) >= 0

    @property
    def nbytes(self):
        cdef size_t total = 0
        cdef int i
        for i in range(5):
            total += self.n_bytes[i]
        return total + sum([block.nbytes for block in self.blocks.values()])

    @property
    def max_probe(self):
        return self.index.max_probe

    @property
    def stride(self):
        return self.view.stride

    def row_of(self, key):
        return self.find(key)

    def rows_of(self, list keys not None):
        rows = np.empty(len(keys), np.int32)
        cdef int32_t[::1] filled = rows
        if filled.shape[0]:
            self.find_many(keys, &filled[0], NULL)
        return rows

    def key_at(self, int64_t row):
        if not 0 <= row < self.index.n_rows:
            raise FeatureRangeError(f"Expected a row below {self.index.n_rows} of table `{self.name}`, got {row}")
        cdef StrRef key = ri_index_key(&self.index, row)
        cdef const char* at = key.data
        cdef uint32_t size = 0
        cdef int i
        if self.key_code != KEY_PARTS:
            return _key_object(at, key.size, self.key_code)
        parts = []
        for i in range(self.n_parts):
            memcpy(&size, at, 4)
            parts.append(_key_object(at + 4, size, self.part_codes[i]))
            at += 4 + size
        return tuple(parts)

    def updated_at_ns(self, key):
        cdef int64_t row = self.find(key)
        if row < 0:
            return None
        cdef int64_t at_ns = ri_updated_at_ns(ri_record(&self.view, row))
        return at_ns if at_ns else None

    def lookup(self, key):
        cdef int64_t row = self.find(key)
        if row < 0:
            return None
        return self.row_at(row)

    def row_at(self, int64_t row):
        if not 0 <= row < self.view.n_rows:
            raise FeatureRangeError(f"Expected a row below {self.view.n_rows} of table `{self.name}`, got {row}")
        cdef const uint8_t* record = ri_record(&self.view, row)
        cdef StrRef text
        values = {}
        for name, kind, offset, bit, width in self.schema:
            if not ri_cell_present(record, bit):
                values[name] = None
            elif kind == "f64":
                values[name] = ri_cell_f64(record, offset)
            elif kind == "i64":
                values[name] = ri_cell_i64(record, offset)
            elif kind == "vec":
                values[name] = np.frombuffer(PyBytes_FromStringAndSize(<const char*>record + <size_t>offset, 4 * <Py_ssize_t>width), np.float32)
            else:
                text = ri_cell_str(&self.view, record, offset)
                values[name] = _key_object(text.data, text.size, KEY_STR if kind == "str" else KEY_BYTES)
        return values

    def gather(self, list keys not None, columns, *, out=None):
        cdef Py_ssize_t n = len(keys)
        cdef list picked = self._numeric(columns)
        cdef Py_ssize_t width = sum([column[4] for column in picked])
        matrix = out_matrix(out, n, width, np.dtype(np.float32))
        rows = self.rows_of(keys)
        cdef const int32_t[::1] indices = rows
        cdef float[:, ::1] target = matrix
        _same_matrix(target.shape[0], target.shape[1], n, width)
        if n and width:
            self._read(picked, &indices[0], n, <uint8_t*>&target[0, 0], 4 * <size_t>width)
        return matrix, rows

    def gather_aged(self, list keys not None, columns, int64_t wall_ns, *, out=None):
        cdef Py_ssize_t n = len(keys), i, c
        cdef list picked = self._numeric(columns)
        matrix, rows = self.gather(keys, columns, out=out)
        ages, outcomes = np.full(n, np.nan), np.full(n, OUTCOME_NULL, np.uint8)
        cdef const int32_t[::1] indices = rows
        cdef double[::1] age_of = ages
        cdef uint8_t[::1] outcome_of = outcomes
        cdef int64_t[::1] bits = np.array([column[3] for column in picked], np.int64)
        cdef int64_t updated
        cdef const uint8_t* record
        for i in range(n):
            if indices[i] < 0:
                outcome_of[i] = OUTCOME_UNKNOWN
                continue
            record = ri_record(&self.view, indices[i])
            updated = ri_updated_at_ns(record)
            if updated != 0:
                age_of[i] = <double>(wall_ns - updated) / 1e9 if wall_ns > updated else 0.0
            for c in range(bits.shape[0]):
                if ri_cell_present(record, bits[c]):
                    outcome_of[i] = OUTCOME_PRESENT
                    break
        return matrix, ages, outcomes

    def make_block(self, str name not None, columns):
        cdef list picked = self._numeric(columns)
        cdef Py_ssize_t width = sum([column[4] for column in picked])
        cdef RowBlock block = RowBlock(self.view.n_rows, 4 * width)
        if self.view.n_rows:
            self._read(picked, NULL, self.view.n_rows, block.data, block.stride)
        self.attach_block(name, block)
        return block

    def attach_block(self, str name not None, block):
        cdef RowBlock rows = block if isinstance(block, RowBlock) else RowBlock.from_rows(block)
        if rows.n_rows != self.view.n_rows:
            raise ShapeError(f"Expected {self.view.n_rows} rows to attach to table `{self.name}`, got {rows.n_rows}")
        self.blocks[name] = rows
        return rows

    def detach_block(self, str name not None):
        self.blocks.pop(name, None)

    def block(self, str name not None):
        return self.blocks.get(name)

    def gather_block(self, list keys not None, str name not None, dtype=np.float32, *, out=None):
        cdef RowBlock block = self.blocks.get(name)
        if block is None:
            raise ConfigError(f"Expected a block of table `{self.name}` out of {sorted(self.blocks)}, got {clip(name)}")
        dtype = np.dtype(dtype)
        if block.row_bytes % dtype.itemsize or dtype.hasobject:
            raise ShapeError(f"Expected a dtype that divides rows of {block.row_bytes} bytes, got {dtype}")
        cdef Py_ssize_t n = len(keys)
        rows = np.empty(n, np.int32)
        matrix = out_matrix(out, n, block.row_bytes // dtype.itemsize, dtype)
        if n == 0:
            return matrix, rows
        cdef int32_t[::1] indices = rows
        cdef Py_ssize_t i
        self.find_many(keys, &indices[0], NULL)
        cdef uint8_t[:, ::1] target = matrix.view(np.uint8)
        _same_matrix(target.shape[0], target.shape[1], n, block.row_bytes)
        gather_rows(block.data, block.stride, &indices[0], n, <size_t>block.row_bytes, &target[0, 0], <size_t>block.row_bytes)
        for i in range(n):
            if indices[i] < 0:
                memset(&target[i, 0], 0, <size_t>block.row_bytes)
        return matrix, rows

    cdef list _numeric(self, object columns):
        by_name = {column[0]: column for column in self.schema}
        picked = []
        for name in columns:
            column = by_name.get(name)
            if column is None or column[1] in ("str", "bytes"):
                numbers = [column[0] for column in self.schema if column[1] not in ("str", "bytes")]
                raise ConfigError(f"Expected numeric columns of table `{self.name}` out of {clip(numbers, 200)}, got {clip(name)}")
            picked.append(column)
        if not picked:
            raise ConfigError(f"Expected at least one column of table `{self.name}` to gather, got none")
        return picked

    cdef int _read(self, list picked, const int32_t* rows, int64_t n, uint8_t* out, size_t out_stride) except -1:
        cdef int n_columns = <int>len(picked), c
        cdef ri_read_column* plan = <ri_read_column*>malloc(<size_t>n_columns * sizeof(ri_read_column))
        if plan == NULL:
            raise MemoryError("no memory to plan a gather")
        for c in range(n_columns):
            _, kind, offset, bit, width = picked[c]
            plan[c].kind = COLUMN_KINDS[kind]
            plan[c].bit = bit
            plan[c].offset = offset
            plan[c].width = width
        ri_read_rows(&self.view, plan, n_columns, rows, n, out, out_stride)
        free(plan)
        return 0


cdef object out_matrix(object out, Py_ssize_t n, Py_ssize_t width, object dtype):
    """The caller's matrix, checked; or a new one, whose pages the kernel has to give first."""
    if out is None:
        return np.empty((n, width), dtype)
    if not isinstance(out, np.ndarray):
        raise ShapeError(f"Expected a matrix to gather into, got `{type(out).__name__}`", path="$.out")
    if type(out) is not np.ndarray:   # its own shape and flags may say anything
        out = np.ndarray.view(out, np.ndarray)
    if out.shape != (n, width) or out.dtype != dtype or not out.flags.c_contiguous or not out.flags.writeable:
        raise ShapeError(f"Expected a writeable C-contiguous {dtype} matrix ({n}, {width}), got {out.dtype} {out.shape}", path="$.out")
    return out


cdef int _same_matrix(Py_ssize_t n_rows, Py_ssize_t row_width, Py_ssize_t n, Py_ssize_t width) except -1:
    """Reading keys may have run code that made the caller's matrix another one."""
    if n_rows != n or row_width != width:
        raise ShapeError(f"Expected a matrix ({n}, {width}) to gather into, got ({n_rows}, {row_width}) when it came to it", path="$.out")
    return 0


cdef inline void _touch_ahead(PyObject* key) noexcept nogil:
    """A str of an id spans two lines: its header, and the rest of its text."""
    ri_prefetch(key)
    ri_prefetch(<const char*>key + 63)


cdef int _same_size(list keys, Py_ssize_t n) except -1:
    """A subclass of a NumPy integer may run code of its own in `__int__`, and that may change the list."""
    if PyList_GET_SIZE(keys) != n:
        raise FeatureTypeError(f"Expected {n} keys, got {PyList_GET_SIZE(keys)} while reading them", path="$.candidates")
    return 0


cdef object _item(list keys, Py_ssize_t i, Py_ssize_t n):
    """One key, owned, so that it outlives what happens to the list."""
    _same_size(keys, n)
    return <object>PyList_GET_ITEM(keys, i)


cdef object _key_object(const char* data, int64_t size, int code):
    cdef int64_t number = 0
    if code == KEY_STR:
        return PyUnicode_DecodeUTF8(data, size, NULL)
    if code == KEY_BYTES:
        return PyBytes_FromStringAndSize(data, size)
    memcpy(&number, data, 8)
    return number


# ---- where the store points --------------------------------------------------------------------------------------------------

cdef class TableSlot:
    def __init__(self, str name not None, snapshot):
        self.name = name
        self.generation = 1
        self.snapshot = snapshot
        self.table = snapshot.table


cdef int swap_slots(list slots, list snapshots) except -1:
    cdef list tables = [], old = []
    cdef TableSlot slot
    cdef Py_ssize_t i
    if len(slots) != len(snapshots):
        raise ConfigError(f"Expected a snapshot for each of {len(slots)} slots, got {len(snapshots)}")
    for i in range(len(slots)):                # all that can fail comes first
        table = getattr(snapshots[i], "table", None)
        if not isinstance(slots[i], TableSlot) or not isinstance(table, SnapshotTable):
            raise ConfigError(f"Expected slots and snapshots to swap in, got `{type(slots[i]).__name__}`, `{type(snapshots[i]).__name__}`")
        slot = <TableSlot>slots[i]
        tables.append(table)
        old.append(slot.table)                 # kept until the end: freeing one may run code (weak references)
        old.append(slot.snapshot)
    for i in range(len(slots)):
        slot = <TableSlot>slots[i]
        slot.table = <SnapshotTable>tables[i]
        slot.snapshot = snapshots[i]
        slot.generation += 1
    return 0


def swap(list slots not None, list snapshots not None):
    swap_slots(slots, snapshots)


# ---- candidate ids -------------------------------------------------------------------------------------------------------------

cdef int64_t index_find(const ri_index* index, const char* key, int64_t size) noexcept nogil:
    return ri_index_find(index, key, size)


cdef void index_find_many(const ri_index* index, const StrRef* keys, int64_t n, int32_t* rows) noexcept nogil:
    ri_index_find_many(index, keys, n, rows)


cdef StrRef index_key(const ri_index* index, int64_t row) noexcept nogil:
    return ri_index_key(index, row)


cdef int64_t scan_ids(const char* json, int64_t size, StrRef* out, int64_t cap) noexcept nogil:
    return ri_scan_ids(json, size, out, cap)


def scan_ids_list(bytes json not None, Py_ssize_t cap=100_000):
    """What `scan_ids` finds, as a list of bytes; or its negative code. For tests and tools."""
    cdef StrRef* refs = <StrRef*>malloc((<size_t>max(cap, 0) + 1) * sizeof(StrRef))
    cdef int64_t n, i
    if refs == NULL:
        raise MemoryError("no memory to scan")
    try:
        n = ri_scan_ids(PyBytes_AS_STRING(json), PyBytes_GET_SIZE(json), refs, cap)
        return n if n < 0 else [refs[i].data[:refs[i].size] for i in range(n)]
    finally:
        free(refs)
