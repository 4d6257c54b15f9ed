"""The compiled feature program and the readers that fill its slots. C side: feature_ops.h. What Python sees: program.pyi.

Who owns what: `Program.c` and everything it points to live as long as the Program. A RowState belongs to one call at a time.
Errors: functions that touch Python objects raise; `run_*` return a code of feature_ops.h and fill `state.error`.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t


cdef extern from "feature_ops.h" nogil:
    enum:
        RI_FLOAT32, RI_INT32, RI_INT64, RI_STRING, RI_BOOL, RI_FLOAT64
        RI_PRESENT, RI_NULL, RI_UNKNOWN, RI_STALE, RI_UNAVAILABLE, RI_N_STATES
        RI_USE, RI_DEFAULT, RI_REFUSE, RI_REVIEW
        RI_SLOT_F64, RI_SLOT_I64, RI_SLOT_BOOL, RI_SLOT_TIME, RI_SLOT_TEXT, RI_SLOT_VECTOR
        RI_SLOT_LIST_F64, RI_SLOT_LIST_I64, RI_SLOT_LIST_TEXT
        RI_STEP_FILL
        RI_OK, RI_ERR_REFUSED, RI_ERR_DOMAIN, RI_ERR_OVERFLOW, RI_ERR_OOV, RI_ERR_INEXACT_INT
        RI_ERR_VECTOR_SIZE, RI_ERR_NOT_FINITE, RI_ERR_NO_NAN

    ctypedef struct ri_text:
        const char* data
        int64_t size

    ctypedef union ri_value "__typeof__(((ri_slot *)0)->v)":
        double f
        int64_t i
        const char* text
        const float* vector
        const double* list_f
        const int64_t* list_i
        const ri_text* list_text

    ctypedef struct ri_slot:
        ri_value v
        int64_t n
        uint64_t hash
        int64_t updated_ns
        uint8_t state
        uint8_t kind
        uint8_t hashed
        uint8_t calendar

    ctypedef union ri_vocab_key "__typeof__(((ri_vocab_cell *)0)->key)":
        int64_t integer
        const char* text

    ctypedef struct ri_vocab_cell:
        uint64_t hash
        int32_t code
        int32_t size
        ri_vocab_key key

    ctypedef struct ri_vocab:
        const ri_vocab_cell* cells
        uint64_t mask
        int32_t oov
        int32_t size

    ctypedef struct ri_zone:
        const int64_t* at_s
        const int32_t* offset_s
        int32_t n

    ctypedef struct ri_step:
        int64_t op
        double a
        double b

    ctypedef struct ri_column:
        uint8_t kind
        uint8_t dtype
        uint8_t tensor
        uint8_t transform
        uint8_t part
        uint8_t wave
        uint8_t sequence
        uint8_t keep_first
        uint8_t action[5]
        uint8_t has_clip
        uint8_t has_norm
        uint8_t allow_nan
        uint8_t plain
        uint8_t fills
        uint8_t refuse_other
        uint16_t ref[2]
        uint16_t n_refs
        uint16_t refs_at
        int32_t width
        int64_t offset
        double clip_low
        double clip_high
        double center
        double scale
        double seen_low
        double seen_high
        double fill_f[5]
        int64_t fill_i[5]
        ri_text fill_text[5]
        int64_t max_age_ns
        int64_t unit_ns
        uint64_t buckets
        uint64_t seed
        const ri_vocab* vocab
        const double* targets
        const double* edges
        const double* on_off
        const ri_step* steps
        int32_t n_edges
        int32_t n_steps
        int32_t n_keys
        const double* waves
        double pad_f
        int64_t pad_i

    ctypedef struct ri_calendar:
        pass

    ctypedef struct ri_program:
        const ri_column* columns
        int32_t n_columns
        int32_t n_slots
        int32_t n_tensors
        const uint16_t* refs
        ri_zone zone

    ctypedef struct ri_flag:
        uint16_t column
        uint8_t state

    ctypedef struct ri_error:
        int32_t code
        int32_t column
        int32_t slot
        int32_t state
        double value
        int64_t integer
        int32_t text_size
        char text[64]

    ctypedef struct ri_state:
        ri_slot* slots
        ri_calendar* calendars
        ri_flag* flags
        int32_t n_flags
        int32_t max_flags
        int32_t review
        int64_t now_ns
        uint64_t* outside
        ri_error error


ctypedef struct Source:        # one canonical column of a table
    const void* values         # NULL: all null
    const uint8_t* valid       # NULL: all present
    const int64_t* offsets     # of texts and lists, n + 1
    const int64_t* children    # of the texts in lists
    ri_text* texts             # scratch for one row of texts in a list
    int64_t width              # of vectors
    const uint8_t* states      # NULL, or what a table cannot say: unknown, stale, unavailable
    const int64_t* updated     # NULL (never stale), or when each value was written
    int bad


cdef class RowState:
    """The mutable side of one call: slots, flags, and the memory of list fields."""
    cdef:
        ri_state st
        int32_t n_slots
        void** lists              # per slot: items of a list field
        int64_t* list_capacity    # in items of 16 bytes
        list keep                 # objects whose text the slots point into; emptied by `release`

    cdef void* room(self, int slot, int64_t items) except NULL
    cdef void release(self) noexcept


cdef class Program:
    cdef:
        ri_program c
        ri_column* columns
        uint16_t* refs
        ri_vocab* vocabs
        int64_t* zone_at
        int32_t* zone_offset
        uint8_t* slot_kinds
        uint8_t* optional         # per slot: null is allowed (stored columns always)
        uint16_t* all_columns     # 0 .. n_columns - 1
        list owned                # bytes objects that vocabularies, defaults and targets point into
        void** blocks             # malloc'ed cells of vocabularies
        readonly int n_request    # slots [0, n_request) are the request's fields
        readonly int n_slots
        readonly int event_slot   # -1: no event time
        readonly tuple slot_names
        readonly tuple wire_names
        readonly tuple column_names
        readonly tuple tensors    # ((name, dtype number, cells, is context, mask name | None, mask dtype number), ...)
        readonly bint has_max_age
        readonly bint has_lists
        int n_vocabs
        bint any_bytes
        frozenset bytes_slots     # text slots that hold raw bytes

    cdef RowState new_state(self)
    cdef int run_columns(self, const uint16_t* which, int32_t n, ri_state* st, uint8_t** rows, uint8_t** masks) noexcept nogil
    cdef int run_one(self, int32_t column, ri_state* st, uint8_t** rows, uint8_t** masks) noexcept nogil
    cdef void clear_slots(self, ri_state* st) noexcept nogil
    # Raise the typed error that `error` describes; `row` >= 0 goes into the path.
    cdef int fail(self, const ri_error* error, int64_t row) except -1
    # One value of a request field into its slot. `where` completes the path of an error ("" or "[3]").
    cdef int convert(self, int slot, object value, RowState state, int64_t row) except -1
    cdef int _convert_other(self, int slot, object value, RowState state, int64_t row) except -1
    cdef int _convert_list(self, int slot, object values, RowState state, int64_t row) except -1
    cdef double _number(self, int slot, object value, str path) except? -1
    cdef int _wrong_type(self, int slot, object value, str path, str expected) except -1
    cdef int _null(self, int slot, ri_slot* s, int64_t row) except -1
    cdef int _not_finite(self, int slot, ri_slot* s, int64_t row) except -1
    cdef int _seconds(self, int slot, ri_slot* s, double seconds, int64_t row) except -1
    cdef int _datetime(self, int slot, ri_slot* s, object value, int64_t row) except -1
    cdef int _add_vocabulary(self, int at, dict vocabulary) except -1
    cdef int _add_steps(self, ri_column* c, list steps) except -1
    cdef int _open_source(self, Source* source, int slot, object column, int64_t n_rows) except -1
    cdef int _source_error(self, int slot, int64_t row, bint infinite) except -1
    cdef bint slot_is_bytes(self, int slot)
    cdef str _path(self, int slot, int64_t row)


cdef class RequestReader:
    """Fills the request slots from an object: the generated Struct by offset, a dict by key, the rest by attribute."""
    cdef:
        Program program
        readonly object type      # the generated frozen Struct
        Py_ssize_t* offsets       # of its fields; 0 = the slot path is not available
        bint slots_ok
        readonly bint forbid_extra
        tuple names               # interned
        frozenset known
        int skip                  # field that candidates bring; -1: none
        bint keeps_texts          # string tensors point into texts until the model has run, while other rows are read

    cdef int read(self, object request, RowState state, int64_t row) except -1
    cdef int _keep_texts(self, object request, RowState state) except -1
    cdef int _read_dict(self, dict request, RowState state, int64_t row) except -1
    cdef int _read_attributes(self, object request, RowState state, int64_t row) except -1
    cdef int _count_keys(self, dict request, int64_t row) except -1
    cdef int _refuse_extra(self, dict request, int64_t row) except -1
