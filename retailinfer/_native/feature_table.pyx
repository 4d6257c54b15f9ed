"""The mutable entity table: values become records, keys canonical bytes, and everything that changes happens in one step.

Rules:
  * What may run foreign code (`__float__`, `__index__`, a source's row) runs first, into memory of the call; only then is the
    table changed or read, without Python in between. So a row is there whole or not at all, whoever re-enters.
  * No reference to a Python object in what is stored. Nothing here blocks, or gives the GIL up; long jobs are cut into
    slices by their caller, store/feature_table.py.
  * Time is an argument: `now_ns` is the monotonic clock, `wall_ns` that of the day.
  * A key that is absent is an outcome, never an exception. A key of another kind always is one.
Shapes and errors: feature_table.pyi. The C below: lru_table.h.
"""
import os

import numpy as np

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bool cimport PyBool_Check
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError, PyDict_Size
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_Check, PyTuple_GET_ITEM
from cpython.unicode cimport PyUnicode_CheckExact, PyUnicode_DecodeUTF8
from libc.math cimport isfinite
from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset, strcmp

from retailinfer._native.hashing cimport ri_siphash_key
from retailinfer._native.table cimport (
    KeyPart, checked_column, key_object as part_object, key_part, out_matrix, ri_cell_f64, ri_cell_i64, ri_cell_present, ri_key_compose,
    ri_key_room, ri_updated_at_ns, texts_of, wrong_key,
)

from retailinfer._native import table as _table
from retailinfer.errors import ConfigError, FeatureRangeError, FeatureTypeError, IntegrityError, LimitError, ShapeError, clip


cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(PyObject* text)
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject* text)
    void* PyUnicode_DATA(PyObject* text)
    const char* PyUnicode_AsUTF8AndSize(PyObject* text, Py_ssize_t* size) except NULL
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1
    bint PyUnicode_CheckExactPtr "PyUnicode_CheckExact"(PyObject* text)
    bint PyLong_CheckExactPtr "PyLong_CheckExact"(PyObject* number)


cdef extern from "lru_table.h" nogil:
    ctypedef struct ri_lru_plan:
        int64_t max_rows
        size_t max_bytes
        size_t record_size
        size_t row_units
        int64_t seen_per_row
        int64_t retention_ns
        double refresh_share
        int drop_expired
        ri_siphash_key hash_key
        uint32_t hash_mask

    ctypedef struct ri_row_head:
        int64_t expires_ns
        int64_t written_ns
        uint32_t row
        uint32_t hash
        uint16_t key_size
        uint16_t flags

    ctypedef struct ri_source_column:
        int32_t kind
        int32_t bit
        size_t offset
        int64_t width
        const void* values
        const uint8_t* valid
        uint64_t arena_offset

    enum:
        RI_COLUMN_F64, RI_COLUMN_I64, RI_COLUMN_TEXT, RI_COLUMN_VEC, RI_COLUMN_F32
        RI_LRU_UNIT, RI_LRU_MAX_KEY, RI_PUT_TOO_LARGE, RI_PUT_NO_MEMORY, RI_PUT_UPDATED, RI_BLOCK_HIT

    void ri_prefetch "RI_PREFETCH"(const void* line)
    size_t ri_lru_fixed_bytes(const ri_lru_plan* plan)
    ri_lru* ri_lru_new(const ri_lru_plan* plan)
    void ri_lru_free(ri_lru* lru)
    size_t ri_lru_row_units(size_t record_size, size_t key_size, size_t text_bytes)
    size_t ri_row_key_room(size_t key_size)
    uint64_t ri_lru_hash(const ri_lru* lru, const char* key, int64_t size)
    uint32_t ri_lru_hash32(uint64_t hash)
    void ri_lru_ahead(const ri_lru* lru, uint64_t hash)
    bint ri_lru_fits(const ri_lru* lru, size_t key_size, size_t text_bytes)
    int64_t ri_expires_ns(uint32_t hash, int64_t written_ns, int64_t ttl_ns, double jitter)
    const ri_row_head* ri_row_head_of(const uint8_t* record)
    const uint8_t* ri_lru_record(const ri_row_head* head)
    const char* ri_lru_key(const ri_lru* lru, const ri_row_head* head)
    const ri_row_head* ri_lru_live_row(const ri_lru* lru, uint32_t row)
    uint32_t ri_row_segment(const ri_row_head* head)
    bint ri_lru_gone(const ri_lru* lru, const ri_row_head* head, int64_t now_ns)
    const uint8_t* ri_lru_find(const ri_lru* lru, uint64_t hash, const char* key, int64_t size, int64_t now_ns)
    int ri_lru_ask_ahead(ri_lru* lru, const uint8_t* record, int64_t now_ns)
    const uint8_t* ri_lru_probe(
        ri_lru* lru, ri_lru* unknown, uint64_t hash, const char* key, int64_t size, int64_t now_ns, int* outcome
    )
    int ri_lru_put(
        ri_lru* lru, uint64_t hash, const char* key, int64_t size, const uint8_t* record, const uint8_t* texts, size_t text_bytes,
        int64_t written_ns, int64_t expires_ns
    )
    int ri_lru_erase(ri_lru* lru, uint64_t hash, const char* key, int64_t size)
    int64_t ri_lru_sweep(ri_lru* lru, int64_t n, int64_t now_ns)
    void ri_lru_clear(ri_lru* lru)
    void ri_lru_order(const ri_lru* lru, uint32_t* out)
    void ri_lru_place(ri_lru* lru, const uint8_t* record, int segment, int hit)
    void ri_lru_gather(
        ri_lru* lru, ri_lru* unknown, const ri_lru_reader* reader, const StrRef* keys, const uint64_t* hashes, int64_t n,
        int64_t now_ns, int64_t wall_ns, float* out, double* ages, uint8_t* outcomes
    )
    int ri_lru_check(const ri_lru* lru)


cdef enum:
    KEY_STR = 0
    KEY_INT = 1
    KEY_BYTES = 2
    KEY_PARTS = 3
    MAX_PARTS = 8
    KIND_STR = 2          # of a Cell, beside RI_COLUMN_F64 (0), _I64 (1), _VEC (3), _F32 (4)
    KIND_BYTES = 5
    KEYS_AHEAD = 12       # str objects whose memory is asked for ahead of reading it
    KEPT_KEYS = 4096      # scratch up to here is kept for the next call
    KEPT_BYTES = 1 << 20
    SWEEP = 2             # rows looked at with every row written
    SEEN_PER_ROW = 24     # fingerprints of keys seen lately
    MAX_ROWS = 1 << 30

KINDS = {**_table.COLUMN_KINDS, "f32": RI_COLUMN_F32}

globals().update(
    ROW_FRESH=ROW_FRESH, ROW_REFRESH=ROW_REFRESH, ROW_EXPIRED=ROW_EXPIRED, ROW_ABSENT=ROW_ABSENT, ROW_UNKNOWN=ROW_UNKNOWN
)

cdef Py_ssize_t MOST_TEXT = _table.MAX_TEXT
cdef int64_t EXACT_IN_DOUBLE = 1 << 53
cdef int64_t MAX_SPAN_NS = 1 << 62   # so that a moment and a span add up in 64 bits
cdef int64_t UNKNOWN_ENTRY = 64 + 12 + 32   # bytes of a key that is known not to exist, if it is short


# A row on its way into a table: where its parts stand in the scratch.
ctypedef struct Staged:
    uint64_t hash
    size_t key_at
    size_t fixed_at
    size_t text_at
    size_t text_bytes
    int64_t key_size
    int64_t next_at       # where the next one begins


# What stands before each row of a dump. Times are those of the wall clock.
ctypedef struct Dumped:
    int64_t written_ns
    int64_t expires_ns    # INT64_MAX = never
    uint32_t key_size
    uint32_t text_bytes
    uint32_t segment
    uint32_t flags


cdef class Scratch:
    def __cinit__(self):
        self.data = NULL
        self.refs = NULL
        self.hashes = NULL
        self.numbers = NULL

    def __dealloc__(self):
        free(self.data)
        free(self.refs)
        free(self.hashes)
        free(self.numbers)

    cdef int reserve(self, size_t more) except -1:
        """Room for `more` bytes behind `size`. Pointers into `data` are old after this."""
        cdef size_t wanted = self.size + more
        cdef char* grown
        if wanted <= self.room:
            return 0
        wanted = max(2 * self.room, wanted + 1024)
        grown = <char*>realloc(self.data, wanted)
        if grown == NULL:
            raise MemoryError(f"no {wanted} bytes for rows on their way into a table")
        self.data = grown
        self.room = wanted
        return 0

    cdef int reserve_keys(self, Py_ssize_t n) except -1:
        if n <= self.n_keys:
            return 0
        free(self.refs)
        free(self.hashes)
        free(self.numbers)
        self.n_keys = 0
        self.refs = <StrRef*>malloc(<size_t>n * sizeof(StrRef))
        self.hashes = <uint64_t*>malloc(<size_t>n * sizeof(uint64_t))
        self.numbers = <int64_t*>malloc(<size_t>n * sizeof(int64_t))
        if self.refs == NULL or self.hashes == NULL or self.numbers == NULL:
            raise MemoryError(f"no memory for {n} keys")
        self.n_keys = n
        return 0


cdef class LruReader:
    def __cinit__(self, LruTable table not None, columns, *, bint absent_is_unavailable=False):
        by_name = {column[0]: (column, table.column_ttls_ns[i]) for i, column in enumerate(table.schema)}
        cdef list picked = []
        for name in columns:
            found = by_name.get(name)
            if found is None or found[0][1] in ("str", "bytes"):
                numbers = [column[0] for column in table.schema if column[1] not in ("str", "bytes")]
                raise ConfigError(f"Expected numeric columns of table `{table.name}` out of {clip(numbers, 200)}, got {clip(name)}")
            picked.append(found)
        if not picked:
            raise ConfigError(f"Expected at least one column of table `{table.name}` to gather, got none")
        self.names = tuple([column[0] for column, _ in picked])
        self.columns = <ri_lru_column*>malloc(<size_t>len(picked) * sizeof(ri_lru_column))
        if self.columns == NULL:
            raise MemoryError("no memory to plan a gather")
        cdef Py_ssize_t n = 0
        cdef ri_lru_column* last
        cdef size_t end = 16
        self.width = 0
        for (_, kind, offset, bit, width), ttl_ns in picked:
            code = KINDS[kind]
            step = 4 if kind in ("f32", "vec") else 8
            self.width += width
            end = max(end, offset + step * width)
            if n:
                last = &self.columns[n - 1]
                # neighbours whose bits lie in one word are read as one
                if (
                    code != RI_COLUMN_VEC and code == last.kind and ttl_ns == last.ttl_ns
                    and bit == last.bit + last.width and <size_t>offset == last.offset + <size_t>(step * last.width)
                    and bit >> 6 == last.bit >> 6
                ):
                    last.width += 1
                    last.mask |= <uint64_t>1 << (<int>bit & 63)
                    continue
            self.columns[n].kind = code
            self.columns[n].bit = bit
            self.columns[n].offset = offset
            self.columns[n].width = width
            self.columns[n].ttl_ns = ttl_ns
            self.columns[n].mask = <uint64_t>1 << (<int>bit & 63)
            n += 1
        self.plan.columns = self.columns
        self.plan.n_columns = n
        self.plan.width = self.width
        self.plan.last_byte = sizeof(ri_row_head) + 16 + end - 1
        self.plan.jitter = table.jitter
        self.plan.absent = 4 if absent_is_unavailable else 2   # RI_UNAVAILABLE, RI_UNKNOWN

    def __dealloc__(self):
        free(self.columns)


cdef class LruTable:
    def __cinit__(self):
        self.rows = NULL
        self.unknown = NULL
        self.cells = NULL

    def __init__(
        self, str name not None, key_kind, list columns not None, *, convert, max_rows=None, max_bytes=None, bint exact=False,
        max_unknown=None, ttl_ns=0, unknown_ttl_ns=0, dict column_ttls_ns=None, double jitter=0.0, retention_ns=0,
        double refresh_share=0.0, hash_key=None, uint32_t hash_mask=0xFFFFFFFF,
    ):
        if self.rows != NULL:
            raise ConfigError("an LruTable is made once; make another one")
        self.name = name
        self.convert = convert
        self.scratch = Scratch()
        self.jitter = jitter
        self.ttl_ns = _span(ttl_ns, "ttl")
        self.unknown_ttl_ns = _span(unknown_ttl_ns, "unknown_ttl")
        if not 0 <= jitter < 1 or not 0 <= refresh_share < 1:
            raise ConfigError(f"Expected shares of 0 or more and below 1 for jitter and refresh_ahead, got {jitter}, {refresh_share}")
        self._set_key_kind(key_kind)
        self._lay_out(columns, column_ttls_ns or {})
        self._make(max_rows, max_bytes, exact, max_unknown, _span(retention_ns, "retention"), refresh_share, hash_key, hash_mask)

    def __dealloc__(self):
        ri_lru_free(self.rows)
        ri_lru_free(self.unknown)
        free(self.cells)

    def _set_key_kind(self, key_kind):
        cdef tuple parts = key_kind if isinstance(key_kind, tuple) else (key_kind,)
        if not 1 <= len(parts) <= MAX_PARTS or any([not isinstance(part, str) or part not in _table.KEY_KINDS for part in parts]):
            raise ConfigError(f"Expected key kinds out of {sorted(_table.KEY_KINDS)}, at most {MAX_PARTS} of them, got {clip(key_kind)}")
        cdef int i
        self.key_kind = key_kind
        self.n_parts = <int>len(parts)
        for i in range(self.n_parts):
            self.part_codes[i] = _table.KEY_KINDS[parts[i]]
        self.key_code = KEY_PARTS if isinstance(key_kind, tuple) else self.part_codes[0]

    def _lay_out(self, list columns, dict ttls):
        """Offsets as in a SnapshotTable: scalars in their order, then vectors; between them floats of 4 bytes."""
        cdef Py_ssize_t n = len(columns), c
        cdef size_t offset = 8 + 8 * ((<size_t>n + 63) // 64)
        names = [column[0] for column in columns]
        if n > _table.MAX_COLUMNS:
            raise LimitError(f"Expected at most {_table.MAX_COLUMNS} columns in table `{self.name}`, got {n}")
        if n == 0 or len(set(names)) != n or not all([isinstance(column, str) for column in names]):
            raise ConfigError(f"Expected one column or more in table `{self.name}`, each name once, got {clip(names, 200)}")
        unknown = [column for column in ttls if column not in names]
        if unknown:
            raise ConfigError(f"Expected a time to live for columns of table `{self.name}` out of {clip(names, 200)}, got {clip(unknown[0])}")
        self.cells = <Cell*>malloc(<size_t>n * sizeof(Cell))
        if self.cells == NULL:
            raise MemoryError("no memory to lay out columns")
        offsets = {}
        for picked in (("f64", "i64", "str", "bytes"), ("f32",), ("vec",)):
            offset = (offset + 7) & ~<size_t>7
            for column, kind, width in columns:
                if kind not in KINDS:
                    raise ConfigError(f"Expected a column kind out of {sorted(KINDS)} for `{self.name}.{column}`, got {clip(kind)}")
                if type(width) is not int or not 1 <= width <= _table.MAX_VECTOR or (kind != "vec" and width != 1):
                    raise ConfigError(f"Expected a width of 1 to {_table.MAX_VECTOR} floats for `{self.name}.{column}`, got {clip(width)}")
                if kind in picked:
                    offsets[column] = offset
                    offset += (4 * <size_t>width + 7) & ~<size_t>7 if kind == "vec" else 4 if kind == "f32" else 8
        offset = (offset + 7) & ~<size_t>7
        schema = []
        for c in range(n):
            column, kind, width = columns[c]
            self.cells[c].kind = KIND_STR if kind == "str" else KIND_BYTES if kind == "bytes" else KINDS[kind]
            self.cells[c].bit = <int32_t>c
            self.cells[c].offset = offsets[column]
            self.cells[c].width = width
            schema.append((column, kind, offsets[column], c, width))
        self.n_cells = n
        self.record_size = offset
        self.schema = tuple(schema)
        self.column_names = tuple(names)
        self.column_ttls_ns = tuple([_span(ttls.get(column, 0), f"column_ttl[{column!r}]") for column in names])

    def _make(self, max_rows, max_bytes, bint exact, max_unknown, int64_t retention_ns, double refresh_share, hash_key, uint32_t hash_mask):
        """Both tables within the cap. What is not given follows from what is: rows that fit the bytes, bytes that the rows take."""
        cdef ri_lru_plan plan
        cdef ri_lru_plan absent
        cdef bytes secret = os.urandom(16)
        cdef int64_t rows, low, high
        cdef size_t typical
        for value, what in ((max_rows, "max_rows"), (max_bytes, "max_bytes"), (max_unknown, "max_unknown")):
            if value is not None and (type(value) is not int or not (0 if what == "max_unknown" else 1) <= value < 1 << 50):
                raise ConfigError(f"Expected a whole number above 0 for {what} of table `{self.name}`, got {clip(value)}")
        if max_rows is not None and max_rows > MAX_ROWS:
            raise LimitError(f"Expected at most {MAX_ROWS} rows in table `{self.name}`, got {max_rows}")
        memset(&plan, 0, sizeof(plan))
        plan.record_size = self.record_size
        plan.row_units = ri_lru_row_units(self.record_size, 0, 0)
        if plan.row_units == 0:
            raise LimitError(f"Expected rows of at most 4 MiB in table `{self.name}`, got {self.record_size} bytes")
        plan.seen_per_row = 0 if exact else SEEN_PER_ROW
        plan.retention_ns = retention_ns
        plan.refresh_share = refresh_share
        plan.hash_mask = hash_mask
        if hash_key is None:
            memcpy(&plan.hash_key, <const char*>secret, 16)
        else:  # tests only
            plan.hash_key.k0, plan.hash_key.k1 = hash_key
        absent = plan
        absent.record_size = 0
        absent.row_units = 1
        absent.seen_per_row = 0
        absent.retention_ns = 0
        absent.refresh_share = 0
        absent.drop_expired = 1
        texts = sum([kind in ("str", "bytes") for _, kind, *_ in self.schema])
        if max_rows is None and max_bytes is None:
            max_rows = 100_000
        if max_unknown is None:
            max_unknown = 0 if self.unknown_ttl_ns == 0 else max(16, min(65_536, max_rows or 1 << 20, (max_bytes or 1 << 40) // 16 // UNKNOWN_ENTRY))
        absent.max_rows = max_unknown
        absent.max_bytes = 0
        if max_unknown:
            absent.max_bytes = ri_lru_fixed_bytes(&absent) + <size_t>max_unknown * RI_LRU_UNIT
            absent.max_bytes += (absent.max_bytes >> 4) + 8192
        if max_bytes is None:
            plan.max_rows = max_rows
            wanted = ri_lru_row_units(self.record_size, 64, 256 * <size_t>texts) * RI_LRU_UNIT * max_rows
            max_bytes = ri_lru_fixed_bytes(&plan) + absent.max_bytes + wanted + (wanted >> 4) + (64 << 10)
            if wanted > 64 << 20:
                max_bytes += 4 << 20
        plan.max_bytes = <size_t>max_bytes - absent.max_bytes if <size_t>max_bytes > absent.max_bytes else 0
        if max_rows is None:   # as many as fit, if their keys and texts are short
            typical = ri_lru_row_units(self.record_size, 0, 64 * <size_t>texts) or plan.row_units
            low, high = 1, MAX_ROWS
            while low < high:
                rows = (low + high + 1) // 2
                plan.max_rows = rows
                if ri_lru_fixed_bytes(&plan) + <size_t>rows * typical * RI_LRU_UNIT <= plan.max_bytes:
                    low = rows
                else:
                    high = rows - 1
            max_rows = low
        plan.max_rows = max_rows
        self.rows = ri_lru_new(&plan)
        if self.rows == NULL:
            needed = ri_lru_fixed_bytes(&plan) + absent.max_bytes + (plan.row_units + 8) * RI_LRU_UNIT
            if needed > <size_t>max_bytes:
                raise ConfigError(
                    f"Expected at least {needed} bytes in max_bytes of table `{self.name}`, got {max_bytes}",
                    hint=f"the index of {max_rows} rows and of {max_unknown} unknown keys counts too; lower max_rows or max_unknown",
                )
            raise MemoryError(f"no {needed} bytes for table `{self.name}`")
        if max_unknown:
            self.unknown = ri_lru_new(&absent)
            if self.unknown == NULL:
                raise MemoryError(f"no {absent.max_bytes} bytes for unknown keys of table `{self.name}`")

    # ---- look-ups for the engine

    cdef const uint8_t* probe(self, const char* key, int64_t size, int64_t now_ns, int* outcome) noexcept:
        return ri_lru_probe(self.rows, self.unknown, ri_lru_hash(self.rows, key, size), key, size, now_ns, outcome)

    cdef int state(self, const char* key, int64_t size, int64_t now_ns) noexcept:
        cdef uint64_t hash = ri_lru_hash(self.rows, key, size)
        cdef const uint8_t* record = ri_lru_find(self.rows, hash, key, size, now_ns)
        if record != NULL:
            return ROW_FRESH if now_ns < ri_row_expires_ns(record) else ROW_EXPIRED
        if self.unknown != NULL and ri_lru_find(self.unknown, hash, key, size, now_ns) != NULL:
            return ROW_UNKNOWN
        return ROW_ABSENT

    cdef void ahead(self, const char* key, int64_t size) noexcept:
        ri_lru_ahead(self.rows, ri_lru_hash(self.rows, key, size))

    cdef object key_object(self, const char* key, int64_t size):
        cdef const char* at = key
        cdef const char* end = key + size
        cdef uint32_t part_size = 0
        cdef int i
        if self.key_code != KEY_PARTS:
            if self.key_code == KEY_INT and size != 8:
                raise IntegrityError(f"Expected 8 bytes of an integer key of table `{self.name}`, got {size}")
            return part_object(key, size, self.key_code)
        parts = []
        for i in range(self.n_parts):
            if end - at >= 4:
                memcpy(&part_size, at, 4)
                at += 4
            if end - at < part_size or (self.part_codes[i] == KEY_INT and part_size != 8):
                raise IntegrityError(f"Expected a key of {self.n_parts} parts of table `{self.name}`, got {size} bytes of another form")
            parts.append(part_object(at, part_size, self.part_codes[i]))
            at += part_size
        if at != end:
            raise IntegrityError(f"Expected a key of {self.n_parts} parts of table `{self.name}`, got {end - at} bytes more")
        return tuple(parts)

    # ---- keys

    cdef Scratch lease(self):
        """The table's own scratch, or a new one where a call inside a call has taken it. Give it back with `_give_back`."""
        cdef Scratch scratch = self.scratch
        self.scratch = None
        if scratch is None:
            scratch = Scratch()
        scratch.size = 0
        return scratch

    cdef int canonical(self, Scratch scratch, object key, StrRef* out, int64_t* number, object path) except -1:
        """One key. Its bytes belong to the object, to `number`, or (of several parts) to the scratch, where it may still move."""
        cdef KeyPart parts[MAX_PARTS]
        cdef size_t room = 0
        cdef int i
        if self.key_code != KEY_PARTS:
            key_part(key, self.key_code, out, number, self.name, path)
            return 0
        if not PyTuple_Check(key) or len(<tuple>key) != self.n_parts:
            raise wrong_key(f"tuple of {self.n_parts}", key, path if isinstance(path, str) else f"$.keys[{path}]", self.name)
        for i in range(self.n_parts):
            key_part((<tuple>key)[i], self.part_codes[i], &parts[i].text, &parts[i].number, self.name, path)
            room += ri_key_room(parts[i].text.size)
            if self.part_codes[i] == KEY_INT:
                parts[i].text.data = NULL
        scratch.reserve(room)
        out.data = scratch.data + scratch.size
        out.size = ri_key_compose(parts, self.n_parts, scratch.data + scratch.size, room)
        scratch.size += room
        return 0

    cdef int read_keys(self, Scratch scratch, list keys) except -1:
        """refs and hashes of all keys, valid while `keys` and the scratch stay. Returns 1, or 0: `read_any_keys` has to do it."""
        cdef Py_ssize_t n = PyList_GET_SIZE(keys), i, ahead
        cdef PyObject* key
        cdef StrRef* refs
        cdef int overflow = 0
        scratch.reserve_keys(n)
        refs = scratch.refs
        for i in range(n):   # nothing in here runs code of the caller, so that the list stays as it is
            ahead = i + KEYS_AHEAD
            if ahead < n:    # a str of an id spans two lines: its header, and the rest of its text
                key = <PyObject*>PyList_GET_ITEM(keys, ahead)
                ri_prefetch(key)
                ri_prefetch(<const char*>key + 63)
            key = <PyObject*>PyList_GET_ITEM(keys, i)
            if self.key_code == KEY_STR and PyUnicode_CheckExactPtr(key) and PyUnicode_IS_COMPACT_ASCII(key):
                refs[i].data = <const char*>PyUnicode_DATA(key)
                refs[i].size = PyUnicode_GET_LENGTH(key)
            elif self.key_code == KEY_INT and PyLong_CheckExactPtr(key):
                scratch.numbers[i] = PyLong_AsLongLongAndOverflow(<object>key, &overflow)
                if overflow:
                    return 0
                refs[i].data = <const char*>&scratch.numbers[i]
                refs[i].size = 8
            else:
                return 0
            scratch.hashes[i] = ri_lru_hash(self.rows, refs[i].data, refs[i].size)
            ri_lru_ahead(self.rows, scratch.hashes[i])
        return 1

    cdef int read_any_keys(self, Scratch scratch, tuple keys) except -1:
        """The same for keys of any kind, held by a tuple, since reading them may run code that changes the caller's list."""
        cdef Py_ssize_t n = len(keys), i
        cdef StrRef* refs
        scratch.reserve_keys(n)
        refs = scratch.refs
        for i in range(n):
            self.canonical(scratch, keys[i], &refs[i], &scratch.numbers[i], "$.keys")
            if self.key_code == KEY_PARTS:   # in memory that may still move
                scratch.numbers[i] = refs[i].data - scratch.data
        for i in range(n):
            if self.key_code == KEY_PARTS:
                refs[i].data = scratch.data + scratch.numbers[i]
            scratch.hashes[i] = ri_lru_hash(self.rows, refs[i].data, refs[i].size)
            ri_lru_ahead(self.rows, scratch.hashes[i])
        return 0

    cdef object hold_keys(self, Scratch scratch, object keys):
        """Read keys into the scratch; returns what keeps them alive."""
        cdef list listed = keys if type(keys) is list else list(keys)
        if self.read_keys(scratch, listed):
            return listed
        held = tuple(listed)
        self.read_any_keys(scratch, held)
        return held

    cdef int give_back(self, Scratch scratch) except -1:
        if scratch.n_keys <= KEPT_KEYS and scratch.room <= KEPT_BYTES:
            self.scratch = scratch
        return 0

    # ---- writing

    cdef int stage(self, Scratch scratch, object key, dict row, int64_t updated_ns, bint extra, object path) except -1:
        """Append a row, checked and in its final form, to the scratch."""
        cdef StrRef text
        cdef int64_t number = 0
        cdef Py_ssize_t i, found = 0
        cdef PyObject* value
        cdef Staged staged
        cdef size_t at = scratch.size, text_base
        cdef object owned
        scratch.reserve(sizeof(Staged))
        scratch.size += sizeof(Staged)
        staged.key_at = scratch.size
        self.canonical(scratch, key, &text, &number, path)
        if text.size > RI_LRU_MAX_KEY:
            raise FeatureRangeError(
                f"Expected keys of at most {RI_LRU_MAX_KEY} bytes in table `{self.name}`, got {text.size}", path=path,
                hint="use a digest of it as the key",
            )
        staged.key_size = text.size
        staged.hash = ri_lru_hash(self.rows, text.data, text.size)
        if self.key_code != KEY_PARTS:
            scratch.reserve(<size_t>text.size)
            if text.size:
                memcpy(scratch.data + scratch.size, text.data, <size_t>text.size)
            scratch.size += <size_t>text.size
        scratch.reserve(self.record_size)
        staged.fixed_at = scratch.size
        memset(scratch.data + staged.fixed_at, 0, self.record_size)
        memcpy(scratch.data + staged.fixed_at, &updated_ns, 8)
        scratch.size += self.record_size
        staged.text_at = scratch.size
        text_base = self.record_size + ri_row_key_room(<size_t>text.size)
        for i in range(self.n_cells):
            name = <object>PyTuple_GET_ITEM(self.column_names, i)
            value = PyDict_GetItemWithError(row, name)
            if value == NULL:
                continue
            found += 1
            if value == <PyObject*>None:
                continue
            owned = <object>value     # converting may run code that drops it from the row
            self.stage_cell(scratch, &self.cells[i], staged.fixed_at, staged.text_at - text_base, owned, <str>name)
        if not extra and found != PyDict_Size(row):
            odd = [column for column in row if column not in self.column_names]
            if odd:
                raise FeatureTypeError(
                    f"Expected columns of table `{self.name}` ({', '.join(self.column_names)}), got {clip(odd[0])}", path=f"$.{self.name}"
                )
        staged.text_bytes = scratch.size - staged.text_at
        if not ri_lru_fits(self.rows, <size_t>text.size, staged.text_bytes):
            raise LimitError(
                f"Expected rows of at most 4 MiB that fit into the {self.rows.max_bytes} bytes of table `{self.name}`, "
                f"got {self.record_size + staged.text_bytes + text.size} bytes"
            )
        scratch.reserve(16)
        scratch.size = (scratch.size + 15) & ~<size_t>15
        staged.next_at = scratch.size
        memcpy(scratch.data + at, &staged, sizeof(Staged))
        return 0

    cdef int stage_cell(self, Scratch scratch, const Cell* cell, size_t fixed_at, size_t text_zero, object value, str name) except -1:
        """Write one value. A text goes to the end of the scratch; its offset counts from `text_zero`."""
        cdef size_t at = fixed_at + cell.offset
        cdef size_t word
        cdef uint64_t bits
        cdef double number
        cdef int64_t integer
        cdef int overflow = 0
        cdef Py_ssize_t size = 0
        cdef const char* text
        cdef float narrow
        if cell.kind == RI_COLUMN_F64 or cell.kind == RI_COLUMN_F32:
            if not PyFloat_CheckExact(value):
                value = self.convert("f64", 1, value, f"$.{self.name}.{name}")
                if value is None:
                    return 0
            number = <double?>value
            if number != number:
                return 0
            if cell.kind == RI_COLUMN_F64:
                memcpy(scratch.data + at, &number, 8)
            else:
                narrow = <float>number
                if isfinite(number) and not isfinite(narrow):
                    raise FeatureRangeError(f"Expected a number that float32 holds, got {number}", path=f"$.{self.name}.{name}")
                memcpy(scratch.data + at, &narrow, 4)
        elif cell.kind == RI_COLUMN_I64:
            if not PyLong_CheckExact(value):
                value = self.convert("i64", 1, value, f"$.{self.name}.{name}")
                if value is None:
                    return 0
            integer = PyLong_AsLongLongAndOverflow(value, &overflow)
            if overflow:
                raise FeatureRangeError(f"Expected an integer of at most 64 bits, got {clip(value)}", path=f"$.{self.name}.{name}")
            memcpy(scratch.data + at, &integer, 8)
        elif cell.kind == RI_COLUMN_VEC:
            if not self.put_vector(scratch, at, value, cell.width, name):
                return 0
        else:
            if not (PyUnicode_CheckExact(value) if cell.kind == KIND_STR else PyBytes_CheckExact(value)):
                value = self.convert("str" if cell.kind == KIND_STR else "bytes", 1, value, f"$.{self.name}.{name}")
                if value is None:
                    return 0
            if cell.kind == KIND_BYTES:
                text, size = PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)
            else:
                try:
                    text = PyUnicode_AsUTF8AndSize(<PyObject*>value, &size)
                except UnicodeEncodeError:
                    raise FeatureRangeError(
                        f"Expected text that has a UTF-8 form, got {clip(value)} with a lone surrogate", path=f"$.{self.name}.{name}"
                    ) from None
            if size > MOST_TEXT:
                raise FeatureRangeError(f"Expected at most {MOST_TEXT} bytes in a cell, got {size}", path=f"$.{self.name}.{name}")
            scratch.reserve(<size_t>size)
            overflow = <int>(scratch.size - text_zero)
            memcpy(scratch.data + at, &overflow, 4)
            overflow = <int>size
            memcpy(scratch.data + at + 4, &overflow, 4)
            if size:
                memcpy(scratch.data + scratch.size, text, <size_t>size)
            scratch.size += <size_t>size
        word = fixed_at + 8 + 8 * <size_t>(cell.bit >> 6)
        memcpy(&bits, scratch.data + word, 8)
        bits |= <uint64_t>1 << (cell.bit & 63)
        memcpy(scratch.data + word, &bits, 8)
        return 0

    cdef int put_vector(self, Scratch scratch, size_t at, object value, int64_t width, str name) except -1:
        """Returns 1, or 0 where the value means null."""
        cdef Py_buffer buffer
        cdef float* out
        cdef int64_t i, odd = -1
        if type(value) is not np.ndarray or value.dtype != np.float32:
            value = self.convert("vec", width, value, f"$.{self.name}.{name}")
            if value is None:
                return 0
        PyObject_GetBuffer(value, &buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) if value.flags.c_contiguous else PyObject_GetBuffer(np.ascontiguousarray(value), &buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        try:
            if buffer.ndim != 1 or buffer.itemsize != 4 or buffer.format == NULL or strcmp(buffer.format, b"f") or buffer.shape[0] != width:
                raise FeatureTypeError(f"Expected a vector of {width} numbers, got {clip(value)}", path=f"$.{self.name}.{name}")
            out = <float*><void*>(scratch.data + at)
            memcpy(out, buffer.buf, 4 * <size_t>width)
        finally:
            PyBuffer_Release(&buffer)
        for i in range(width):
            if not isfinite(out[i]):
                odd = i
        if odd >= 0:
            raise FeatureRangeError(
                f"Expected finite numbers in a vector, got {out[odd]} at {odd}", path=f"$.{self.name}.{name}",
                hint="make the whole vector null where it is not known",
            )
        return 1

    cdef int commit(self, Scratch scratch, int64_t now_ns) except -1:
        """Write what is staged. No Python in between: one step."""
        cdef Staged staged
        cdef size_t at = 0
        cdef int status = 0
        cdef const char* key
        while at < scratch.size:
            memcpy(&staged, scratch.data + at, sizeof(Staged))
            key = scratch.data + staged.key_at
            status = ri_lru_put(
                self.rows, staged.hash, key, staged.key_size, <const uint8_t*>scratch.data + staged.fixed_at,
                <const uint8_t*>scratch.data + staged.text_at, staged.text_bytes, now_ns,
                ri_expires_ns(ri_lru_hash32(staged.hash), now_ns, self.ttl_ns, self.jitter),
            )
            if status < 0:
                break
            if self.unknown != NULL:
                ri_lru_erase(self.unknown, staged.hash, key, staged.key_size)
            ri_lru_sweep(self.rows, SWEEP, now_ns)
            at = <size_t>staged.next_at
        if status == RI_PUT_NO_MEMORY:
            raise MemoryError(f"no memory for a row of table `{self.name}`")
        if status < 0:
            raise LimitError(f"a row does not fit into table `{self.name}`")
        return 0

    def put(self, key, dict row not None, int64_t updated_ns, int64_t now_ns, bint extra=False):
        cdef Scratch scratch = self.lease()
        try:
            self.stage(scratch, key, row, updated_ns, extra, "$.key")
            self.commit(scratch, now_ns)
        finally:
            self.give_back(scratch)

    def put_many(self, list rows not None, int64_t now_ns, bint extra=False):
        cdef Scratch scratch = self.lease()
        try:
            for key, row, updated_ns in list(rows):
                self.stage(scratch, key, <dict?>row, updated_ns, extra, "$.keys")
            self.commit(scratch, now_ns)
        finally:
            self.give_back(scratch)

    def mark_unknown(self, keys, int64_t now_ns):
        cdef Scratch scratch = self.lease()
        cdef Py_ssize_t i, n
        cdef int status
        try:
            held = self.hold_keys(scratch, keys)
            n = len(held)
            for i in range(n):
                if scratch.refs[i].size > RI_LRU_MAX_KEY:
                    continue
                ri_lru_erase(self.rows, scratch.hashes[i], scratch.refs[i].data, scratch.refs[i].size)
                if self.unknown == NULL:
                    continue
                # what does not fit is not remembered: the source will be asked again
                ri_lru_put(
                    self.unknown, scratch.hashes[i], scratch.refs[i].data, scratch.refs[i].size, NULL, NULL, 0, now_ns,
                    ri_expires_ns(ri_lru_hash32(scratch.hashes[i]), now_ns, self.unknown_ttl_ns, self.jitter),
                )
                ri_lru_sweep(self.unknown, SWEEP, now_ns)
        finally:
            self.give_back(scratch)

    def erase(self, key):
        cdef Scratch scratch = self.lease()
        cdef StrRef text
        cdef int64_t number = 0
        cdef uint64_t hash
        cdef bint there
        try:
            self.canonical(scratch, key, &text, &number, "$.key")
            hash = ri_lru_hash(self.rows, text.data, text.size)
            there = ri_lru_erase(self.rows, hash, text.data, text.size)
            if self.unknown != NULL:
                there |= ri_lru_erase(self.unknown, hash, text.data, text.size)
            return bool(there)
        finally:
            self.give_back(scratch)

    def clear(self):
        ri_lru_clear(self.rows)
        if self.unknown != NULL:
            ri_lru_clear(self.unknown)

    def sweep(self, int64_t n, int64_t now_ns):
        cdef int64_t dropped = ri_lru_sweep(self.rows, n, now_ns)
        if self.unknown != NULL:
            dropped += ri_lru_sweep(self.unknown, n, now_ns)
        return dropped

    # ---- reading

    def reader(self, columns, *, bint absent_is_unavailable=False):
        return LruReader(self, columns, absent_is_unavailable=absent_is_unavailable)

    def gather(self, keys, LruReader reader not None, int64_t now_ns, int64_t wall_ns, out=None):
        cdef Scratch scratch = self.lease()
        cdef Py_ssize_t n
        cdef float* cells
        cdef double* ages
        cdef uint8_t* outcomes
        if reader.plan.last_byte > sizeof(ri_row_head) + 16 + self.record_size:
            raise ConfigError("Expected a reader of this table, got that of another one")
        cdef list listed = keys if type(keys) is list else list(keys)
        n = len(listed)
        matrix = out_matrix(out, n, reader.width, FLOAT32)
        age_of, outcome_of = np.empty(n), np.empty(n, UINT8)
        try:
            held = self.hold_keys(scratch, listed)   # last of all: what comes before may run code that drops a key from the list
            if len(held) != n:
                raise FeatureTypeError(f"Expected {n} keys, got {len(held)} while reading them", path="$.keys")
            if n:
                cells = <float*>_memory(matrix, 4 * n * reader.width)
                ages, outcomes = <double*>_memory(age_of, 8 * n), <uint8_t*>_memory(outcome_of, n)
                ri_lru_gather(
                    self.rows, self.unknown, &reader.plan, scratch.refs, scratch.hashes, n, now_ns, wall_ns, cells, ages, outcomes
                )
            return matrix, age_of, outcome_of
        finally:
            self.give_back(scratch)

    def states(self, keys, int64_t now_ns):
        """ROW_* of each key, uint8 (n,), without counting as a use."""
        cdef Scratch scratch = self.lease()
        cdef Py_ssize_t i
        try:
            held = self.hold_keys(scratch, keys)
            result = bytearray(len(held))
            for i in range(len(held)):
                result[i] = self.state(scratch.refs[i].data, scratch.refs[i].size, now_ns)
            return bytes(result)
        finally:
            self.give_back(scratch)

    def to_fetch(self, list keys not None, int64_t stale_for_ns, int64_t now_ns):
        """(keys that are not there or expired too long ago, keys to fetch while what is there is given out).

        Not counted as a use; but a row that is to be fetched ahead is said to be only once.
        """
        cdef Scratch scratch = self.lease()
        cdef const uint8_t* record
        cdef Py_ssize_t i
        cdef list listed = list(keys)   # ours: the lists that grow below may run a collector, and that anything
        missing, stale = [], []
        try:
            held = self.hold_keys(scratch, listed)
            for i in range(len(held)):
                record = ri_lru_find(self.rows, scratch.hashes[i], scratch.refs[i].data, scratch.refs[i].size, now_ns)
                if record != NULL and now_ns < ri_row_expires_ns(record):
                    if ri_lru_ask_ahead(self.rows, record, now_ns):
                        stale.append(plain_key(self, held[i], scratch.refs[i]))
                    continue
                if record == NULL and self.unknown != NULL and ri_lru_find(
                    self.unknown, scratch.hashes[i], scratch.refs[i].data, scratch.refs[i].size, now_ns
                ) != NULL:
                    continue
                (missing if record == NULL or now_ns - ri_row_expires_ns(record) >= stale_for_ns else stale).append(
                    plain_key(self, held[i], scratch.refs[i])
                )
            return missing, stale
        finally:
            self.give_back(scratch)

    def updated_at(self, key, int64_t now_ns):
        """updated_at of a key's row in ns since the epoch, 0 = there is none; not a use of it."""
        cdef Scratch scratch = self.lease()
        cdef StrRef text
        cdef int64_t number = 0
        cdef const uint8_t* record
        try:
            self.canonical(scratch, key, &text, &number, "$.key")
            record = ri_lru_find(self.rows, ri_lru_hash(self.rows, text.data, text.size), text.data, text.size, now_ns)
            return 0 if record == NULL else ri_updated_at_ns(record)
        finally:
            self.give_back(scratch)

    def lookup(self, key, int64_t now_ns):
        """(ROW_*, row | None, updated_ns), as one use."""
        cdef Scratch scratch = self.lease()
        cdef StrRef text
        cdef int64_t number = 0
        cdef int outcome = ROW_ABSENT
        cdef const uint8_t* record
        try:
            self.canonical(scratch, key, &text, &number, "$.key")
            record = self.probe(text.data, text.size, now_ns, &outcome)
            if record == NULL:
                return outcome, None, 0
            image = PyBytes_FromStringAndSize(<const char*>record, <Py_ssize_t>self.image_size(record))
            record = <const uint8_t*>PyBytes_AS_STRING(image)   # making objects may run a collector, and that anything
            return outcome, self.row_dict(record), ri_updated_at_ns(record)
        finally:
            self.give_back(scratch)

    cdef size_t image_size(self, const uint8_t* record) noexcept:
        """Bytes of a record with its key and texts."""
        cdef size_t end = self.record_size + ri_row_key_room(ri_row_head_of(record).key_size)
        cdef Py_ssize_t i
        cdef uint32_t pair[2]
        for i in range(self.n_cells):
            if (self.cells[i].kind == KIND_STR or self.cells[i].kind == KIND_BYTES) and ri_cell_present(record, self.cells[i].bit):
                memcpy(pair, record + self.cells[i].offset, 8)
                end = max(end, <size_t>pair[0] + pair[1])
        return end

    cdef dict row_dict(self, const uint8_t* record):
        cdef StrRef text
        cdef Py_ssize_t i
        cdef Cell* cell
        values = {}
        for i in range(self.n_cells):
            cell = &self.cells[i]
            name = self.column_names[i]
            if not ri_cell_present(record, cell.bit):
                values[name] = None
            elif cell.kind == RI_COLUMN_F64:
                values[name] = ri_cell_f64(record, cell.offset)
            elif cell.kind == RI_COLUMN_F32:
                values[name] = ri_cell_f32(record, cell.offset)
            elif cell.kind == RI_COLUMN_I64:
                values[name] = ri_cell_i64(record, cell.offset)
            elif cell.kind == RI_COLUMN_VEC:
                values[name] = np.frombuffer(PyBytes_FromStringAndSize(<const char*>record + cell.offset, 4 * <Py_ssize_t>cell.width), FLOAT32)
            else:
                text = ri_row_text(record, cell.offset)
                values[name] = part_object(text.data, text.size, KEY_STR if cell.kind == KIND_STR else KEY_BYTES)
        return values

    def __len__(self):
        return self.rows.n_rows

    # ---- what there is

    @property
    def nbytes(self):
        return self.rows.bytes + (0 if self.unknown == NULL else self.unknown.bytes)

    @property
    def max_bytes(self):
        return self.rows.max_bytes + (0 if self.unknown == NULL else self.unknown.max_bytes)

    @property
    def max_rows(self):
        return self.rows.max_rows

    @property
    def max_unknown(self):
        return 0 if self.unknown == NULL else self.unknown.max_rows

    def info(self):
        """Counts since the start, and sizes now."""
        cdef ri_lru_counts* counts = &self.rows.counts
        return {
            "rows": self.rows.n_rows,
            "max_rows": self.rows.max_rows,
            "unknown_keys": 0 if self.unknown == NULL else self.unknown.n_rows,
            "max_unknown": self.max_unknown,
            "bytes": self.nbytes,
            "max_bytes": self.max_bytes,
            "row_bytes": self.rows.row_bytes,
            "hits": counts.hits,
            "expired": counts.expired,
            "unknown_hits": 0 if self.unknown == NULL else self.unknown.counts.hits,
            "misses": counts.misses,
            "inserts": counts.inserts,
            "updates": counts.updates,
            "evictions": counts.evictions,
            "swept": counts.swept,
            "refreshes": counts.refreshes,
            "returned": counts.returned,
        }

    def trace(self, keys, int64_t now_ns):
        """Tests and benchmarks only: look each integer key up and put an empty row where there is none. uint8 (n,), 1 = hit."""
        if self.key_code != KEY_INT:
            raise ConfigError(f"Expected a table of integer keys for a trace, got `{self.key_kind}`")
        cdef const int64_t[::1] numbers = np.ascontiguousarray(keys, np.int64)
        found = np.zeros(numbers.shape[0], np.uint8)
        cdef uint8_t[::1] hits = found
        cdef bytes empty = bytes(self.record_size)
        cdef const uint8_t* record = <const uint8_t*>PyBytes_AS_STRING(empty)
        cdef Py_ssize_t i
        cdef int outcome = 0
        cdef uint64_t hash
        cdef const char* key
        for i in range(numbers.shape[0]):
            key = <const char*>&numbers[i]
            hash = ri_lru_hash(self.rows, key, 8)
            hits[i] = ri_lru_probe(self.rows, self.unknown, hash, key, 8, now_ns, &outcome) != NULL
            if not hits[i] and ri_lru_put(self.rows, hash, key, 8, record, NULL, 0, now_ns, INT64_MAX) < 0:
                raise MemoryError("no memory for a row of a trace")
        return found

    def check(self):
        """Tests only: count everything again. 0, or the line of lru_table.c that found a difference."""
        cdef int line = ri_lru_check(self.rows)
        return line if line or self.unknown == NULL else ri_lru_check(self.unknown)

    def order(self):
        """Numbers of rows, from the one that goes first to the newest: uint32 (n,)."""
        numbers = np.empty(self.rows.n_rows, np.uint32)
        if self.rows.n_rows:
            ri_lru_order(self.rows, <uint32_t*>_memory(numbers, 4 * self.rows.n_rows))
        return numbers

    def keys_of(self, numbers):
        """Keys of rows by number; those that have gone meanwhile are left out."""
        cdef uint32_t[::1] rows = np.ascontiguousarray(numbers, np.uint32)
        cdef Py_ssize_t i
        cdef const ri_row_head* head
        keys = []
        for i in range(rows.shape[0]):
            head = ri_lru_live_row(self.rows, rows[i])
            if head != NULL:
                image = PyBytes_FromStringAndSize(ri_lru_key(self.rows, head), head.key_size)   # making objects may run a collector
                keys.append(self.key_object(PyBytes_AS_STRING(image), PyBytes_GET_SIZE(image)))
        return keys

    def updated_of(self, numbers):
        """updated_at of rows by number, int64 (m,), m <= n: those that are there."""
        cdef uint32_t[::1] rows = np.ascontiguousarray(numbers, np.uint32)
        times = np.empty(rows.shape[0], np.int64)
        cdef int64_t[::1] filled = times
        cdef Py_ssize_t i, n = 0
        cdef const ri_row_head* head
        for i in range(rows.shape[0]):
            head = ri_lru_live_row(self.rows, rows[i])
            if head != NULL:
                filled[n] = ri_updated_at_ns(ri_lru_record(head))
                n += 1
        return times[:n]

    # ---- dumps

    def export_rows(self, numbers, int64_t now_ns, int64_t wall_ns):
        """Rows by number as they go into a dump, one after the other; those that are gone are left out."""
        cdef uint32_t[::1] rows = np.ascontiguousarray(numbers, np.uint32)
        cdef Scratch scratch = self.lease()
        cdef const ri_row_head* head
        cdef const uint8_t* record
        cdef Dumped dumped
        cdef size_t text_at, size
        cdef Py_ssize_t i
        try:
            for i in range(rows.shape[0]):
                head = ri_lru_live_row(self.rows, rows[i])
                if head == NULL or ri_lru_gone(self.rows, head, now_ns):
                    continue
                record = ri_lru_record(head)
                text_at = self.record_size + ri_row_key_room(head.key_size)
                size = self.image_size(record)
                dumped.written_ns = wall_ns - (now_ns - head.written_ns)
                dumped.expires_ns = INT64_MAX   # also where it is beyond the times that a dump may hold
                if head.expires_ns - now_ns < MAX_SPAN_NS - wall_ns:
                    dumped.expires_ns = wall_ns + (head.expires_ns - now_ns)
                dumped.key_size = head.key_size
                dumped.text_bytes = <uint32_t>(size - text_at)
                dumped.segment = ri_row_segment(head)
                dumped.flags = head.flags & RI_BLOCK_HIT
                scratch.reserve(sizeof(Dumped) + head.key_size + self.record_size + dumped.text_bytes)
                memcpy(scratch.data + scratch.size, &dumped, sizeof(Dumped))
                scratch.size += sizeof(Dumped)
                memcpy(scratch.data + scratch.size, ri_lru_key(self.rows, head), head.key_size)
                scratch.size += head.key_size
                memcpy(scratch.data + scratch.size, record, self.record_size)
                scratch.size += self.record_size
                memcpy(scratch.data + scratch.size, record + text_at, dumped.text_bytes)
                scratch.size += dumped.text_bytes
            return PyBytes_FromStringAndSize(scratch.data, <Py_ssize_t>scratch.size) if scratch.size else b""
        finally:
            self.give_back(scratch)

    def check_rows(self, const uint8_t[::1] image not None):
        """Read a dump's rows and change nothing: how many there are. IntegrityError for anything that is not whole."""
        cdef size_t at = 0, end = <size_t>image.shape[0]
        cdef Dumped dumped
        cdef Py_ssize_t n = 0
        cdef const uint8_t* data = &image[0] if image.shape[0] else NULL
        while at < end:
            if end - at < sizeof(Dumped):
                raise _broken(self.name, n)
            memcpy(&dumped, data + at, sizeof(Dumped))
            at += sizeof(Dumped)
            if dumped.key_size > RI_LRU_MAX_KEY or dumped.segment > 1 or dumped.flags & ~RI_BLOCK_HIT:
                raise _broken(self.name, n)
            if end - at < dumped.key_size + self.record_size + dumped.text_bytes:
                raise _broken(self.name, n)
            if not -MAX_SPAN_NS < dumped.written_ns < MAX_SPAN_NS or not (
                dumped.expires_ns == INT64_MAX or dumped.written_ns <= dumped.expires_ns < MAX_SPAN_NS
            ):
                raise _broken(self.name, n)
            try:
                self.key_object(<const char*>data + at, dumped.key_size)
                self.check_image(data + at + dumped.key_size, self.record_size + ri_row_key_room(dumped.key_size), dumped.text_bytes, n)
            except UnicodeDecodeError:
                raise _broken(self.name, n) from None
            at += dumped.key_size + self.record_size + dumped.text_bytes
            n += 1
        return n

    cdef int check_image(self, const uint8_t* record, size_t text_base, size_t text_bytes, object row) except -1:
        cdef Py_ssize_t i, k
        cdef uint32_t pair[2]
        cdef float number
        cdef Cell* cell
        cdef uint64_t word
        memcpy(&word, record + 8 + 8 * ((self.n_cells - 1) >> 6), 8)
        if self.n_cells & 63 and word >> (self.n_cells & 63):
            raise _broken(self.name, row)
        for i in range(self.n_cells):
            cell = &self.cells[i]
            if not ri_cell_present(record, cell.bit):
                continue
            if cell.kind == RI_COLUMN_F64:
                if ri_cell_f64(record, cell.offset) != ri_cell_f64(record, cell.offset):
                    raise _broken(self.name, row)
            elif cell.kind == RI_COLUMN_F32:
                if ri_cell_f32(record, cell.offset) != ri_cell_f32(record, cell.offset):
                    raise _broken(self.name, row)
            elif cell.kind == RI_COLUMN_VEC:
                for k in range(cell.width):
                    memcpy(&number, record + cell.offset + 4 * k, 4)
                    if not isfinite(number):
                        raise _broken(self.name, row)
            elif cell.kind != RI_COLUMN_I64:
                memcpy(pair, record + cell.offset, 8)
                if pair[0] < text_base or pair[1] > <uint32_t>MOST_TEXT or <size_t>pair[0] + pair[1] > text_base + text_bytes:
                    raise _broken(self.name, row)
                if cell.kind == KIND_STR:   # texts of a dump stand apart from the record's fixed part
                    PyUnicode_DecodeUTF8(<const char*>record + self.record_size + (pair[0] - text_base), pair[1], NULL)
        return 0

    def import_rows(self, const uint8_t[::1] image not None, int64_t at, int64_t n, int64_t now_ns, int64_t wall_ns, int64_t retention_ns):
        """Write up to `n` rows of a checked dump from byte `at` on, except those that are too old. -> (byte behind, rows written)."""
        cdef Dumped dumped
        cdef const uint8_t* data = &image[0] if image.shape[0] else NULL
        cdef const uint8_t* key
        cdef const uint8_t* record
        cdef const uint8_t* found
        cdef int64_t end = image.shape[0], age, left, size, written = 0
        cdef uint64_t hash
        cdef int status
        while n > 0 and at < end:
            n -= 1
            memcpy(&dumped, data + at, sizeof(Dumped))
            key = data + at + sizeof(Dumped)
            record = key + dumped.key_size
            size = <int64_t>(dumped.key_size + self.record_size + dumped.text_bytes)
            at += <int64_t>sizeof(Dumped) + size
            # Ages go by the clock of the day, also over a restart; where that was set back, a row is new, and lives no longer
            # than it was meant to.
            age = max(<int64_t>0, wall_ns - dumped.written_ns)
            if 0 < retention_ns <= age:
                continue
            left = INT64_MAX
            if dumped.expires_ns != INT64_MAX:
                left = min(dumped.expires_ns - wall_ns, dumped.expires_ns - dumped.written_ns)
                left = max(left, -MAX_SPAN_NS)
            hash = ri_lru_hash(self.rows, <const char*>key, dumped.key_size)
            if ri_lru_find(self.rows, hash, <const char*>key, dumped.key_size, now_ns) != NULL:
                continue   # what came since is newer
            status = ri_lru_put(
                self.rows, hash, <const char*>key, dumped.key_size, record, record + self.record_size, dumped.text_bytes, now_ns - age,
                INT64_MAX if left == INT64_MAX else now_ns + left,
            )
            if status == RI_PUT_NO_MEMORY:
                raise MemoryError(f"no memory for a row of table `{self.name}`")
            if status < 0:
                continue   # from a table with a larger cap
            found = ri_lru_find(self.rows, hash, <const char*>key, dumped.key_size, INT64_MIN)
            if found != NULL:
                ri_lru_place(self.rows, found, <int>dumped.segment, dumped.flags & RI_BLOCK_HIT)
            if self.unknown != NULL:
                ri_lru_erase(self.unknown, hash, <const char*>key, dumped.key_size)
            written += 1
        return at, written


cdef class RowSource:
    """Columns of many rows, checked once, written into a table slice by slice."""
    cdef:
        LruTable table
        ri_source_column* columns
        list kept                     # the arrays, while their memory is read
        const uint8_t[::1] key_data
        const int64_t[::1] key_ends
        const int64_t[::1] times
        const int64_t* time_of        # NULL: the rows do not say
        const char* key_bytes
        readonly Py_ssize_t n_rows

    def __cinit__(self, LruTable table not None, keys, list columns not None, updated_at=None):
        cdef Py_ssize_t n = len(keys[1]) - 1, i
        cdef ri_source_column* column
        self.table = table
        self.n_rows = n
        self.kept = []
        self.key_data, self.key_ends = texts_of(keys[0], keys[1], n, f"{table.name}.keys")
        self.key_bytes = <const char*>&self.key_data[0] if self.key_data.shape[0] else <const char*>&self.key_ends[0]   # to read 0 of
        longest = int(np.diff(keys[1]).max()) if n else 0
        if longest > RI_LRU_MAX_KEY:
            raise FeatureRangeError(f"Expected keys of at most {RI_LRU_MAX_KEY} bytes in table `{table.name}`, got {longest}", path="$.keys")
        if updated_at is not None:
            updated_at = np.ascontiguousarray(updated_at, np.int64)
            if updated_at.shape != (n,):
                raise ShapeError(f"Expected {n} times in `updated_at` of table `{table.name}`, got shape {updated_at.shape}")
            self.times = updated_at
            self.time_of = &self.times[0] if n else NULL
        by_name = {column_[0]: column_ for column_ in [checked_column(one, n, table.name) for one in columns]}
        odd = [name for name in by_name if name not in table.column_names]
        if odd or len(by_name) != len(columns):
            raise ConfigError(f"Expected columns of table `{table.name}` ({', '.join(table.column_names)}), each once, got {clip(list(by_name), 200)}")
        self.columns = <ri_source_column*>malloc(<size_t>table.n_cells * sizeof(ri_source_column))
        if self.columns == NULL:
            raise MemoryError("no memory to lay out columns")
        for i in range(table.n_cells):
            column = &self.columns[i]
            name, kind, offset, bit, width = table.schema[i]
            column.kind = KINDS[kind]
            column.bit = bit
            column.offset = offset
            column.width = width
            column.arena_offset = 0
            column.values = NULL
            column.valid = NULL
            found = by_name.get(name)
            if found is None:
                continue
            _, got, values, valid, got_width, data = found
            if kind in ("f32", "f64") and got == "i64":
                values, got = _exact_doubles(values, valid, f"$.{table.name}.{name}"), "f64"
            if kind == "f32" and got == "f64":
                values, got = _floats(values, valid, f"$.{table.name}.{name}"), "f32"
            if (got, got_width) != (kind, width):
                raise FeatureTypeError(f"Expected `{kind}` of width {width}, got `{got}` of width {got_width}", path=f"$.{table.name}.{name}")
            self.kept.append((values, valid, data))
            column.values = <const void*><size_t>values.ctypes.data
            column.valid = <const uint8_t*><size_t>(0 if valid is None else valid.ctypes.data)
            column.arena_offset = <uint64_t><size_t>(0 if data is None or not len(data) else data.ctypes.data)

    def __dealloc__(self):
        free(self.columns)

    def write(self, Py_ssize_t first, Py_ssize_t last, int64_t now_ns, int64_t updated_ns):
        """Rows [first, last) into the table; `updated_ns` where the rows do not say when they were true. One step each."""
        cdef LruTable table = self.table
        cdef Scratch scratch
        cdef Py_ssize_t row, i
        cdef ri_source_column* column
        cdef size_t text_base, text_at, text_bytes, key_at, word
        cdef uint64_t bits, hash
        cdef int64_t key_size, updated, start, size
        cdef const int64_t* ends
        cdef const char* key
        cdef double number
        cdef uint32_t pair[2]
        cdef int status = 0
        if not 0 <= first <= last <= self.n_rows:
            raise FeatureRangeError(f"Expected rows within 0 to {self.n_rows}, got {first} to {last}")
        scratch = table.lease()
        try:
            for row in range(first, last):
                scratch.size = 0
                key_size = self.key_ends[row + 1] - self.key_ends[row]
                key = self.key_bytes + self.key_ends[row]
                hash = ri_lru_hash(table.rows, key, key_size)
                scratch.reserve(table.record_size)
                memset(scratch.data, 0, table.record_size)
                updated = updated_ns
                if self.time_of != NULL and self.time_of[row] != 0:
                    updated = self.time_of[row]
                memcpy(scratch.data, &updated, 8)
                scratch.size = table.record_size
                text_base = table.record_size + ri_row_key_room(<size_t>key_size)
                for i in range(table.n_cells):
                    column = &self.columns[i]
                    if column.values == NULL or (column.valid != NULL and not column.valid[row]):
                        continue
                    if column.kind == RI_COLUMN_F64:
                        number = (<const double*>column.values)[row]
                        if number != number:
                            continue
                        memcpy(scratch.data + column.offset, &number, 8)
                    elif column.kind == RI_COLUMN_F32:
                        number = (<const float*>column.values)[row]
                        if number != number:
                            continue
                        memcpy(scratch.data + column.offset, <const float*>column.values + row, 4)
                    elif column.kind == RI_COLUMN_I64:
                        memcpy(scratch.data + column.offset, <const int64_t*>column.values + row, 8)
                    elif column.kind == RI_COLUMN_VEC:
                        memcpy(scratch.data + column.offset, <const float*>column.values + row * column.width, 4 * <size_t>column.width)
                    else:
                        ends = <const int64_t*>column.values
                        start, size = ends[row], ends[row + 1] - ends[row]
                        scratch.reserve(<size_t>size)
                        pair[0] = <uint32_t>(text_base + (scratch.size - table.record_size))
                        pair[1] = <uint32_t>size
                        memcpy(scratch.data + column.offset, pair, 8)
                        if size:
                            memcpy(scratch.data + scratch.size, <const char*><size_t>column.arena_offset + start, <size_t>size)
                        scratch.size += <size_t>size
                    word = 8 + 8 * <size_t>(column.bit >> 6)
                    memcpy(&bits, scratch.data + word, 8)
                    bits |= <uint64_t>1 << (column.bit & 63)
                    memcpy(scratch.data + word, &bits, 8)
                text_bytes = scratch.size - table.record_size
                status = ri_lru_put(
                    table.rows, hash, key, key_size, <const uint8_t*>scratch.data, <const uint8_t*>scratch.data + table.record_size,
                    text_bytes, now_ns, ri_expires_ns(ri_lru_hash32(hash), now_ns, table.ttl_ns, table.jitter),
                )
                if status == RI_PUT_NO_MEMORY:
                    raise MemoryError(f"no memory for a row of table `{table.name}`")
                if status < 0:
                    raise LimitError(f"Expected rows of at most 4 MiB that fit into table `{table.name}`, got another in row {row}")
                if table.unknown != NULL:
                    ri_lru_erase(table.unknown, hash, key, key_size)
                ri_lru_sweep(table.rows, SWEEP, now_ns)
        finally:
            table.give_back(scratch)

    def keys(self, Py_ssize_t first, Py_ssize_t last):
        """The keys of rows [first, last)."""
        cdef Py_ssize_t row
        return [self.table.key_object(self.key_bytes + self.key_ends[row], self.key_ends[row + 1] - self.key_ends[row]) for row in range(first, last)]


FLOAT32 = np.dtype(np.float32)
UINT8 = np.dtype(np.uint8)


def _exact_doubles(values, valid, path):
    """Integers as doubles, refused where one would be rounded."""
    odd = np.abs(values) > EXACT_IN_DOUBLE
    odd |= values == np.iinfo(np.int64).min
    if valid is not None:
        odd &= valid != 0
    if odd.any():
        raise FeatureRangeError(f"Expected integers of at most 53 bits beside fractions, got {values[int(np.argmax(odd))]}", path=path)
    return values.astype(np.float64)


def _floats(values, valid, path):
    """Doubles as floats, refused where one would become infinite."""
    with np.errstate(over="ignore"):
        floats = values.astype(np.float32)
    odd = np.isinf(floats) & np.isfinite(values)
    if valid is not None:
        odd &= valid != 0
    if odd.any():
        raise FeatureRangeError(f"Expected numbers that float32 holds, got {values[int(np.argmax(odd))]}", path=path)
    return floats


def _broken(name, row):
    return IntegrityError(f"Expected a whole row {row} in the dump of table `{name}`, got bytes of another form")


def _span(value, what):
    """A span of time in ns, 0 = none."""
    if type(value) is not int or not 0 <= value < MAX_SPAN_NS:
        raise ConfigError(f"Expected a span of 0 or more and below 146 years for {what}, got {clip(value)}")
    return value


cdef object plain_key(LruTable table, object key, StrRef text):
    """A key as sources get it: of an exact builtin type, whatever NumPy's integers and subclasses mean elsewhere."""
    if type(key) is str or type(key) is int or type(key) is bytes:
        return key
    return table.key_object(text.data, text.size)


cdef void* _memory(object array, Py_ssize_t size) except NULL:
    """Where the cells of an array are, of which there have to be so many bytes; they stay there while no other code runs."""
    cdef Py_buffer buffer
    PyObject_GetBuffer(array, &buffer, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
    cdef void* cells = buffer.buf
    cdef Py_ssize_t there = buffer.len
    PyBuffer_Release(&buffer)
    if there < size:
        raise ShapeError(f"Expected {size} bytes to gather into, got {there} when it came to it", path="$.out")
    return cells
