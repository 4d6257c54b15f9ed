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

    ctypedef struct ri_lru:
        pass

    int64_t ri_row_written_ns(const uint8_t* record)      # monotonic
    int64_t ri_row_expires_ns(const uint8_t* record)      # monotonic; INT64_MAX = never
    # When a cell with a time to live of its own expires: written + ttl, less this row's share of the jitter. Monotonic.
    int64_t ri_row_cell_expires_ns(const uint8_t* record, int64_t ttl_ns, double jitter)
    # A str or bytes cell: memory of the record. Only if the cell is present.
    StrRef ri_row_text(const uint8_t* record, size_t offset)


cdef class LruTable:
    """Mutable table: key -> record, bounded in rows and bytes. Changed under the GIL only, and never half changed when it is free."""
    cdef:
        ri_lru* rows
        ri_lru* unknown               # keys that are known not to exist
        readonly tuple schema         # ((name, kind, offset, bit, width), ...) as SnapshotTable.schema
        readonly tuple column_ttls_ns # one a column of `schema`; 0 = none of its own
        readonly object key_kind      # "str" | "int" | "bytes", or a tuple of them
        readonly str name             # for messages
        readonly double jitter        # share of a time to live by which rows expire earlier, each by another part of it
        readonly int64_t ttl_ns       # 0 = never
        size_t record_size            # of the fixed part: all but texts

    # One atomic step: find, count, touch. NULL unless the outcome is ROW_FRESH, ROW_REFRESH or ROW_EXPIRED.
    # `key`: canonical bytes (table.h). `now_ns`: the monotonic clock.
    cdef const uint8_t* probe(self, const char* key, int64_t size, int64_t now_ns, int* outcome) noexcept
    # What `probe` would say, without counting and touching: for collecting what to fetch.
    cdef int state(self, const char* key, int64_t size, int64_t now_ns) noexcept
    # Ask for the memory that a probe of this key will read first. Worth it where other work comes between.
    cdef void ahead(self, const char* key, int64_t size) noexcept
    # Canonical bytes -> str | int | bytes | tuple of them.
    cdef object key_object(self, const char* key, int64_t size)
