"""Entity tables for the engine: keys -> rows of raw records, blocks of finished rows, the scan of candidate ids.

Who owns what: the pointers of `view`, `index` and a block live as long as the object that holds them, so take a reference to the
SnapshotTable once per call and keep it until the last read. `find*` never run code of the caller (no `__hash__`, `__eq__`).
The C side, with the layout of a record, is table.h; what Python sees is table.pyi.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from retailinfer._native.hashing cimport ri_siphash_key
from retailinfer._native.tensor_ref cimport StrRef


cdef extern from "table.h" nogil:
    ctypedef struct TableView "ri_table_view":
        const uint8_t* records
        size_t stride
        int64_t n_rows
        const char* arena

    ctypedef struct KeyPart "ri_key_part":   # text.data == NULL: the part is `number`
        StrRef text
        int64_t number

    ctypedef struct ri_index:
        uint64_t* slots
        uint64_t mask
        const uint8_t* entries
        size_t width
        const uint8_t* long_keys
        int64_t n_rows
        int64_t max_key
        uint32_t max_probe
        ri_siphash_key hash_key

    # A record's parts; `offset` and `bit` come from SnapshotTable.schema. Read a cell only if it is present.
    const uint8_t* ri_record(const TableView* view, int64_t row)
    int64_t ri_updated_at_ns(const uint8_t* record)                              # 0 = unknown
    bint ri_cell_present(const uint8_t* record, int64_t bit)
    double ri_cell_f64(const uint8_t* record, size_t offset)
    int64_t ri_cell_i64(const uint8_t* record, size_t offset)
    const float* ri_cell_vec(const uint8_t* record, size_t offset)
    StrRef ri_cell_str(const TableView* view, const uint8_t* record, size_t offset)

    # Keys of several parts, into the caller's scratch: put_* return where the next part goes; room: 4 + size, or 12 for an int.
    size_t ri_key_room(int64_t size)
    char* ri_key_put_bytes(char* out, const char* data, int64_t size)
    char* ri_key_put_int(char* out, int64_t value)
    int64_t ri_key_compose(const KeyPart* parts, int n_parts, char* out, size_t room)   # size, or -1: does not fit

    # out row i = block row rows[i]; rows[i] < 0 leaves the output row untouched.
    void gather_rows "ri_gather_rows"(
        const uint8_t* block, size_t stride, const int32_t* rows, int64_t n, size_t nbytes, uint8_t* out, size_t out_stride
    )


# Row of canonical key bytes, or -1; and the canonical key of a row. The memory is the table's.
cdef int64_t index_find(const ri_index* index, const char* key, int64_t size) noexcept nogil
cdef void index_find_many(const ri_index* index, const StrRef* keys, int64_t n, int32_t* rows) noexcept nogil
cdef StrRef index_key(const ri_index* index, int64_t row) noexcept nogil

# JSON array of plain ASCII strings -> (pointer, size) of each, in place. How many, or -1 slow path, -2 malformed, -3 more than cap.
cdef int64_t scan_ids(const char* json, int64_t size, StrRef* out, int64_t cap) noexcept nogil


# What tables of all kinds share. `code`: the number of a key's kind in KEY_KINDS.
# One key, or a part of one -> canonical bytes; `number` holds those of an int. A `path` may be a row number.
cdef int key_part(object key, int code, StrRef* out, int64_t* number, str table, object path) except -1
cdef object key_object(const char* data, int64_t size, int code)      # and back
cdef object wrong_key(str expected, object got, str path, str table)  # the error, to be raised
# (uint8 data, int64 ends) of n texts, checked: ends ascend inside the data.
cdef tuple texts_of(object data, object ends, Py_ssize_t n, str what)
# (name, kind, values, valid) -> (name, kind, values, valid | None, width, text | None), of the dtypes and sizes that C code reads.
cdef tuple checked_column(object column, Py_ssize_t n, str table)
# The caller's matrix, checked, or a new one.
cdef object out_matrix(object out, Py_ssize_t n, Py_ssize_t width, object dtype)


cdef class RowBlock:
    """Finished rows of one width, 64-byte aligned, owned: what a ranking copies. Written by its maker before anyone reads."""
    cdef:
        uint8_t* data                  # row i starts at data + i * stride; zeroed when made
        size_t stride                  # a multiple of 64, or a power of two below: a row straddles no more lines than it must
        readonly Py_ssize_t n_rows
        readonly Py_ssize_t row_bytes  # what a row holds; the rest of the stride is zeros
        size_t n_bytes                 # behind `data`
        object owner                   # what texts in the cells point into beside the table; lives as long as the rows


cdef class SnapshotTable:
    """Immutable table: key -> record."""
    cdef:
        TableView view                 # what nogil readers get
        ri_index index
        readonly tuple schema          # ((name, kind, offset, bit, width), ...); kind is "f64" | "i64" | "str" | "bytes" | "vec"
        readonly object key_kind       # "str" | "int" | "bytes", or a tuple of them
        readonly str name              # for messages
        int key_code                   # KEY_* in table.pyx
        int n_parts
        int part_codes[8]              # of a key of several parts
        dict blocks                    # name -> RowBlock; changed under the GIL only
        void* memory[5]                # records, arena, slots, entries, long keys
        size_t n_bytes[5]
        object __weakref__

    # Row of a key, or -1. FeatureTypeError for a key of another kind, FeatureRangeError for one that has no canonical form.
    cdef int64_t find(self, object key) except -2
    # The same for canonical bytes.
    cdef int64_t find_bytes(self, const char* key, int64_t size) noexcept nogil
    # rows[i] = row of keys[i], or -1. `refs` (may be NULL) gets the canonical bytes of str and bytes keys, borrowed from the
    # objects in `keys`: valid while these live, so hold the list's items yourself before the GIL is released.
    # A wrong key raises, naming `$.candidates[i]`; `rows` is then undefined.
    cdef int find_many(self, list keys, int32_t* rows, StrRef* refs) except -1
    cdef void find_many_bytes(self, const StrRef* keys, int64_t n, int32_t* rows) noexcept nogil
    # The canonical bytes of a row's key; memory of the table.
    cdef StrRef key_of(self, int64_t row) noexcept nogil

    # For table.pyx alone.
    cdef int _set_key_kind(self, object key_kind) except -1
    cdef int _allocate(self, int which, size_t size) except -1
    cdef int _build_index(self, object data, object ends, Py_ssize_t n, object hash_key) except -1
    cdef int _build_records(self, list columns, object updated_at, Py_ssize_t n) except -1
    cdef int64_t _find_parts(self, object key, object path) except -2
    cdef list _numeric(self, object columns)
    cdef int _read(self, list picked, const int32_t* rows, int64_t n, uint8_t* out, size_t out_stride) except -1


cdef class TableSlot:
    """Where a name of the Store points. A reader takes `table` once per call; a swap replaces it whole."""
    cdef:
        readonly str name
        readonly SnapshotTable table
        readonly object snapshot              # what the user gave to the Store
        readonly unsigned long long generation  # 1 at first, + 1 with every swap


# All of the slots get their new table, or none: runs without giving up the GIL.
cdef int swap_slots(list slots, list snapshots) except -1
