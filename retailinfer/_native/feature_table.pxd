"""The mutable entity table for the engine: canonical key bytes -> a record, or what is known instead.

Who owns what: a record that `probe` gives stays as it is until the GIL is given up or any Python code runs (a look-up of another
key, in this table or another, does neither): copy what you need before. Keep a reference to the LruTable for the call.
A record is read with the functions of table.pxd (ri_updated_at_ns, ri_cell_*), but a text through `ri_row_text`.
The C side is lru_table.h; what Python sees is feature_table.pyi.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from retailinfer._native.tensor_ref cimport StrRef


cdef extern from "lru_table.h" nogil:
    enum:
        ROW_FRESH "RI_ROW_FRESH"          # there
        ROW_REFRESH "RI_ROW_REFRESH"      # there, in use, and near its expiry: ask the source ahead. Said once per version of a row
        ROW_EXPIRED "RI_ROW_EXPIRED"      # there, and past its time to live
        ROW_ABSENT "RI_ROW_ABSENT"        # nothing is known
        ROW_UNKNOWN "RI_ROW_UNKNOWN"      # known not to exist, and that is not too long ago

    ctypedef struct ri_lru_counts:
        uint64_t hits
        uint64_t refreshes
        uint64_t expired
        uint64_t misses
        uint64_t inserts
        uint64_t updates
        uint64_t evictions
        uint64_t swept
        uint64_t erased
        uint64_t promoted
        uint64_t returned
        uint64_t crowded

    ctypedef struct ri_lru:
        size_t record_size
        int64_t retention_ns
        uint32_t max_rows
        uint32_t n_rows
        uint32_t fresh_rows
        size_t max_bytes
        size_t bytes
        size_t row_bytes
        ri_lru_counts counts

    ctypedef struct ri_lru_column:
        int32_t kind
        int32_t bit
        size_t offset
        int64_t width
        int64_t ttl_ns
        uint64_t mask

    ctypedef struct ri_lru_reader:
        const ri_lru_column* columns
        int64_t n_columns
        int64_t width
        size_t last_byte
        double jitter
        int absent

    int64_t ri_row_written_ns(const uint8_t* record)      # monotonic
    int64_t ri_row_expires_ns(const uint8_t* record)      # monotonic; INT64_MAX = never
    # When a cell with a time to live of its own expires: written + ttl, less this row's share of the jitter. Monotonic.
    int64_t ri_row_cell_expires_ns(const uint8_t* record, int64_t ttl_ns, double jitter)
    # A cell of kind "f32", which SnapshotTable has not. Only if the cell is present.
    float ri_cell_f32(const uint8_t* record, size_t offset)
    # A str or bytes cell: memory of the record. Only if the cell is present.
    StrRef ri_row_text(const uint8_t* record, size_t offset)


# A column as values are written into it. In the order of `schema`.
ctypedef struct Cell:
    int kind
    int32_t bit
    size_t offset
    int64_t width


cdef class Scratch:
    """Memory for one call at a time: rows on their way into a table, keys on their way to a look-up. Leased, never shared."""
    cdef:
        char* data                    # grows; read through offsets while it does
        size_t size, room
        StrRef* refs
        uint64_t* hashes
        int64_t* numbers
        Py_ssize_t n_keys             # room of the three

    cdef int reserve(self, size_t more) except -1
    cdef int reserve_keys(self, Py_ssize_t n) except -1


cdef class LruReader:
    """Which columns a gather reads, worked out once."""
    cdef:
        ri_lru_reader plan
        ri_lru_column* columns
        readonly tuple names
        readonly Py_ssize_t width     # floats of a row


cdef class LruTable:
    """Mutable table: key -> record, bounded in rows and bytes. Changed under the GIL only, and never half changed when it is free."""
    cdef:
        ri_lru* rows
        ri_lru* unknown               # keys that are known not to exist; may be NULL
        readonly tuple schema         # ((name, kind, offset, bit, width), ...) as SnapshotTable.schema; also of kind "f32"
        readonly tuple column_ttls_ns # one a column of `schema`; 0 = none of its own
        readonly object key_kind      # "str" | "int" | "bytes", or a tuple of them
        readonly str name             # for messages
        readonly double jitter        # share of a time to live by which rows expire earlier, each by another part of it
        readonly int64_t ttl_ns       # 0 = never
        readonly int64_t unknown_ttl_ns
        size_t record_size            # of the fixed part: all but texts
        int key_code                  # number of the kind in KEY_KINDS of table.pyx, or KEY_PARTS
        int n_parts
        int part_codes[8]
        Cell* cells
        Py_ssize_t n_cells
        tuple column_names
        object convert                # (kind, width, value, path) -> float | int | str | bytes | float32 array | None
        Scratch scratch               # None while a call has it
        object __weakref__

    # One atomic step: find, count, touch. NULL unless the outcome is ROW_FRESH, ROW_REFRESH or ROW_EXPIRED.
    # `key`: canonical bytes (table.h). `now_ns`: the monotonic clock.
    cdef const uint8_t* probe(self, const char* key, int64_t size, int64_t now_ns, int* outcome) noexcept
    # What `probe` would say (never ROW_REFRESH), without counting and touching: for collecting what to fetch.
    cdef int state(self, const char* key, int64_t size, int64_t now_ns) noexcept
    # Ask for the memory that a probe of this key will read first. Worth it where other work comes between.
    cdef void ahead(self, const char* key, int64_t size) noexcept
    # Canonical bytes -> str | int | bytes | tuple of them.
    cdef object key_object(self, const char* key, int64_t size)

    # For feature_table.pyx alone.
    cdef Scratch lease(self)
    cdef int give_back(self, Scratch scratch) except -1
    cdef int canonical(self, Scratch scratch, object key, StrRef* out, int64_t* number, object path) except -1
    cdef int read_keys(self, Scratch scratch, list keys) except -1
    cdef int read_any_keys(self, Scratch scratch, tuple keys) except -1
    cdef object hold_keys(self, Scratch scratch, object keys)
    cdef int stage(self, Scratch scratch, object key, dict row, int64_t updated_ns, bint extra, object path) except -1
    cdef int stage_cell(self, Scratch scratch, const Cell* cell, size_t fixed_at, size_t text_zero, object value, str name) except -1
    cdef int put_vector(self, Scratch scratch, size_t at, object value, int64_t width, str name) except -1
    cdef int commit(self, Scratch scratch, int64_t now_ns) except -1
    cdef size_t image_size(self, const uint8_t* record) noexcept
    cdef dict row_dict(self, const uint8_t* record)
    cdef int check_image(self, const uint8_t* record, size_t text_base, size_t text_bytes, object row) except -1
