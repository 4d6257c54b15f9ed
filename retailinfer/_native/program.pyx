"""Requests and tables -> slots -> tensors: the Python-facing side of the feature program.

Rules:
  * A value's exact type decides how it is read; bool is not a number; whatever runs foreign code (`__float__`, a property)
    does so on a reference that we own, before any half-filled state is used.
  * A field has one canonical type (float64, int64, UTF-8, ns). NaN in a float field is null. Infinity is refused.
  * Single requests, batches and tables end in the same `ri_run` of feature_ops.c.
Shapes, units and errors: program.pyi. Scoring and ranking on top of this: engine.pyx.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.datetime cimport (
    PyDateTime_Check, PyDateTime_CheckExact, datetime_day, datetime_hour, datetime_microsecond, datetime_minute, datetime_month,
    datetime_second, datetime_tzinfo, datetime_year, import_datetime,
)
from cpython.dict cimport PyDict_CheckExact, PyDict_GetItemWithError
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.long cimport PyLong_AsDouble, PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_CheckExact
from libc.math cimport NAN, isfinite, isinf, isnan, llrint
from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

import datetime
import decimal
import sys
from collections.abc import Mapping

import msgspec
import numpy as np

from retailinfer.errors import FeatureMissingError, FeatureRangeError, FeatureTypeError, LimitError, RetailInferError, SpecError, clip

cdef extern from "feature_ops.h" nogil:
    int ri_run(const ri_program* p, const uint16_t* which, int32_t n, ri_state* st, uint8_t** rows, uint8_t** masks)
    int ri_run_column(const ri_program* p, int32_t column, ri_state* st, uint8_t** rows, uint8_t** masks)
    uint64_t ri_hash_text(const char* text, int64_t size, uint64_t seed)
    uint64_t ri_hash_int(int64_t key, uint64_t seed)
    uint64_t ri_vocab_hash(const char* text, int64_t size)
    void ri_wave_table(int64_t period, int cosine, double* out)
    int ri_dtype_size(int dtype)

cdef extern from *:
    """
    #include <structmember.h>
    #if PY_VERSION_HEX < 0x030C0000
    #define RI_T_OBJECT_EX T_OBJECT_EX
    #define RI_RELATIVE_OFFSET 0
    #else
    #define RI_T_OBJECT_EX Py_T_OBJECT_EX
    #define RI_RELATIVE_OFFSET Py_RELATIVE_OFFSET
    #endif
    /* Offset of a field from its member descriptor, or 0 when the descriptor is anything else than a plain object slot. */
    static Py_ssize_t ri_member_offset(PyObject *descr, PyObject *type) {
        if (!Py_IS_TYPE(descr, &PyMemberDescr_Type)) return 0;
        PyMemberDef *member = ((PyMemberDescrObject *)descr)->d_member;
        if (member->type != RI_T_OBJECT_EX || (member->flags & RI_RELATIVE_OFFSET)) return 0;
        if (member->offset < (Py_ssize_t)sizeof(PyObject)) return 0;
        if (member->offset > ((PyTypeObject *)type)->tp_basicsize - (Py_ssize_t)sizeof(PyObject *)) return 0;
        return member->offset;
    }
    static inline PyObject *ri_slot_at(PyObject *object, Py_ssize_t offset) {
        return *(PyObject **)((char *)object + offset);
    }
    /* Exactly a str, ASCII, of the length of a category: its own UTF-8. Everything else goes the careful way. */
    static inline int ri_ascii(PyObject *value, const char **data, int64_t *size) {
        if (!PyUnicode_CheckExact(value) || !PyUnicode_IS_COMPACT_ASCII(value)) return 0;
        Py_ssize_t n = PyUnicode_GET_LENGTH(value);
        if (n > 4096) return 0;
        *data = (const char *)PyUnicode_DATA(value);
        *size = n;
        return 1;
    }
    /* UTF-8 of a text that is alive. ASCII text is its own UTF-8; other text keeps a copy inside itself. */
    static inline const char *ri_utf8(PyObject *text, Py_ssize_t *size) {
        if (PyUnicode_IS_COMPACT_ASCII(text)) {
            *size = PyUnicode_GET_LENGTH(text);
            return (const char *)PyUnicode_DATA(text);
        }
        return PyUnicode_AsUTF8AndSize(text, size);
    }
    """
    Py_ssize_t ri_member_offset(object descr, PyObject* type)
    PyObject* ri_slot_at(PyObject* obj, Py_ssize_t offset)
    bint ri_ascii(PyObject* value, const char** data, int64_t* size)
    const char* ri_utf8(object text, Py_ssize_t* size) except NULL

import_datetime()

# A text longer than this is no identifier or category; hashing it would be the only thing it does.
cdef enum:
    MAX_TEXT = 65536
    MAX_LIST = 65536

cdef tuple NUMBERS = (float, int, np.floating, np.integer, decimal.Decimal)
cdef tuple INTEGERS = (int, np.integer)
cdef tuple NO_NUMBERS = (bool, np.timedelta64)  # NumPy counts durations among the integers, Python the booleans
cdef object UTC = datetime.timezone.utc
cdef object EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
cdef object UNSET = msgspec.UNSET
cdef int64_t MAX_TIME_NS = <int64_t>1 << 62  # the year 2116; differences of two such moments fit int64
TYPE_NAMES = ("float", "int", "bool", "timestamp", "str", "vector", "list[float]", "list[int]", "list[str]")
ITEM_NAMES = ("float", "int", "str")
STATE_NAMES = ("present", "null", "unknown", "stale", "unavailable")


cdef inline bint runs_no_code(object value):
    """Reading this value runs nobody's code."""
    if PyLong_CheckExact(value) or PyUnicode_CheckExact(value) or PyFloat_CheckExact(value):
        return True
    if value is None or value is True or value is False or value is UNSET:
        return True
    return PyDateTime_CheckExact(value) and datetime_tzinfo(value) is UTC


cdef object plain_int(object value):
    """An exact int of an int subclass or a NumPy integer, without asking a subclass's own methods."""
    if PyLong_CheckExact(value):
        return value
    if issubclass(type(value), int):
        return int.__add__(value, 0)
    return value.item() if issubclass(type(value), np.generic) else int(value)


def hash_text(str text not None, uint64_t seed=0) -> int:
    """xxh64 of the UTF-8 bytes: the hash behind hashed columns."""
    cdef Py_ssize_t size = 0
    cdef const char* data = ri_utf8(text, &size)
    return ri_hash_text(data, size, seed)


def hash_int(int64_t key, uint64_t seed=0) -> int:
    """xxh64 of the 8 little-endian bytes of an integer."""
    return ri_hash_int(key, seed)


@cython.final
cdef class RowState:
    def __dealloc__(self):
        cdef int i
        if self.lists != NULL:
            for i in range(self.n_slots):
                free(self.lists[i])
        free(self.lists)
        free(self.list_capacity)
        free(self.st.slots)
        free(self.st.calendars)
        free(self.st.flags)
        free(self.st.outside)

    cdef void* room(self, int slot, int64_t items) except NULL:
        """Memory for `items` items of 16 bytes; earlier contents are gone."""
        cdef void* memory
        if self.list_capacity[slot] < items:
            memory = realloc(self.lists[slot], <size_t>items * 16)
            if memory == NULL:
                raise MemoryError()
            self.lists[slot] = memory
            self.list_capacity[slot] = items
        return self.lists[slot]

    cdef void release(self) noexcept:
        if self.keep:
            self.keep.clear()


@cython.final
cdef class Program:
    """A compiled spec. Made by `features.program.compile_program`, which says what the arguments are."""

    def __cinit__(self):
        self.owned = []

    def __init__(self, *, list slots, int n_request, int event_slot, list columns, list vocabularies, list tensors,
                 tuple zone_at_s, tuple zone_offset_s):
        cdef int i, j, k, n = len(slots), m = len(columns), total_refs = 0
        cdef ri_column* c
        cdef dict d
        if n > 65535 or m > 65535 or len(tensors) > 255:
            raise SpecError(f"Expected at most 65535 fields and columns and 255 tensors, got {n}, {m}, {len(tensors)}")
        self.n_slots = n
        self.n_request = n_request
        self.event_slot = event_slot
        self.slot_names = tuple(s["name"] for s in slots)
        self.wire_names = tuple(s["wire"] for s in slots)
        self.column_names = tuple(d["name"] for d in columns)
        self.tensors = tuple(tensors)
        self.slot_kinds = <uint8_t*>calloc(n + 1, 1)
        self.optional = <uint8_t*>calloc(n + 1, 1)
        self.columns = <ri_column*>calloc(m + 1, sizeof(ri_column))
        self.all_columns = <uint16_t*>calloc(m + 1, sizeof(uint16_t))
        total_refs = sum(len(d["refs"]) for d in columns)
        self.refs = <uint16_t*>calloc(total_refs + 1, sizeof(uint16_t))
        self.vocabs = <ri_vocab*>calloc(len(vocabularies) + 1, sizeof(ri_vocab))
        self.blocks = <void**>calloc(len(vocabularies) + 1, sizeof(void*))
        self.zone_at = <int64_t*>calloc(len(zone_at_s) + 1, 8)
        self.zone_offset = <int32_t*>calloc(len(zone_offset_s) + 1, 4)
        if (self.slot_kinds == NULL or self.optional == NULL or self.columns == NULL or self.all_columns == NULL
                or self.refs == NULL or self.vocabs == NULL or self.blocks == NULL or self.zone_at == NULL
                or self.zone_offset == NULL):
            raise MemoryError()
        self.c.columns = self.columns
        self.c.refs = self.refs
        self.c.n_slots = n
        self.c.n_columns = m
        self.c.n_tensors = len(tensors)
        self.zone_at[0] = INT64_MIN
        for i in range(len(zone_at_s)):
            self.zone_at[i + 1] = zone_at_s[i]
        for i in range(len(zone_offset_s)):
            self.zone_offset[i] = zone_offset_s[i]
        self.c.zone.at_s = self.zone_at
        self.c.zone.offset_s = self.zone_offset
        self.c.zone.n = len(zone_offset_s)
        for i in range(n):
            self.slot_kinds[i] = slots[i]["kind"]
            self.optional[i] = slots[i]["optional"]
            self.has_lists = self.has_lists or self.slot_kinds[i] >= RI_SLOT_LIST_F64
        for i in range(len(vocabularies)):
            self._add_vocabulary(i, vocabularies[i])
        k = 0
        for i in range(m):
            self.all_columns[i] = i
            d = columns[i]
            c = self.columns + i
            c.kind = d["kind"]
            c.dtype = d["dtype"]
            c.tensor = d["tensor"]
            c.offset = d["offset"]
            c.width = d["width"]
            c.transform = d["transform"]
            c.part = d["part"]
            c.wave = d["wave"]
            c.sequence = d["sequence"]
            c.keep_first = d["keep_first"]
            c.allow_nan = d["allow_nan"]
            c.has_clip = d["clip"] is not None
            if d["clip"] is not None:
                c.clip_low, c.clip_high = d["clip"]
            c.has_norm = d["norm"] is not None
            c.center, c.scale = d["norm"] if d["norm"] is not None else (0.0, 1.0)
            c.seen_low, c.seen_high = d["seen"] if d["seen"] is not None else (NAN, NAN)
            c.max_age_ns = d["max_age_ns"]
            self.has_max_age = self.has_max_age or c.max_age_ns > 0
            c.unit_ns = d["unit_ns"]
            c.buckets = d["buckets"]
            c.seed = d["seed"]
            c.pad_f = d["pad"]
            c.pad_i = d["pad_code"]
            c.vocab = NULL if d["vocabulary"] < 0 else self.vocabs + <int>d["vocabulary"]
            if d["targets"] is not None:
                targets = np.ascontiguousarray(d["targets"], dtype=np.float64)
                self.owned.append(targets)
                c.targets = <const double*><uintptr_t>targets.ctypes.data
            c.refuse_other = d["refuse_other"]
            c.n_keys = 0 if c.vocab == NULL else c.vocab.size
            if d["edges"] is not None:
                edges = np.ascontiguousarray(d["edges"], dtype=np.float64)
                self.owned.append(edges)
                c.edges = <const double*><uintptr_t>edges.ctypes.data
                c.n_edges = len(edges)
            if d["on_off"] is not None:
                on_off = np.ascontiguousarray(d["on_off"], dtype=np.float64)
                self.owned.append(on_off)
                c.on_off = <const double*><uintptr_t>on_off.ctypes.data
            if d["steps"]:
                self._add_steps(c, d["steps"])
            if c.wave:
                waves = np.empty(d["period"], np.float64)
                ri_wave_table(d["period"], c.wave == 2, <double*><uintptr_t>waves.ctypes.data)
                self.owned.append(waves)
                c.waves = <const double*><uintptr_t>waves.ctypes.data
            c.n_refs = len(d["refs"])
            c.refs_at = k
            for j in range(c.n_refs):
                self.refs[k] = d["refs"][j]
                if j < 2:
                    c.ref[j] = d["refs"][j]
                k += 1
            c.plain = (c.kind == 0 and c.dtype in (RI_FLOAT32, RI_FLOAT64) and not c.has_clip and c.max_age_ns == 0
                       and self.slot_kinds[c.ref[0]] == RI_SLOT_F64)
            for j in range(RI_N_STATES):
                c.action[j] = d["actions"][j]
                fill = d["fills"][j]
                if isinstance(fill, str):
                    fill = fill.encode()
                    self.owned.append(fill)
                    c.fill_text[j].data = PyBytes_AS_STRING(fill)
                    c.fill_text[j].size = len(fill)
                elif fill is not None:
                    c.fill_f[j] = fill
                    c.fill_i[j] = fill if isinstance(fill, int) else 0  # codes, buckets and raw integers are int

    cdef int _add_steps(self, ri_column* c, list steps) except -1:
        cdef bytearray memory = bytearray(len(steps) * sizeof(ri_step))
        cdef ri_step* made = <ri_step*><char*>memory
        cdef int i
        for i in range(len(steps)):
            made[i].op, a, b = steps[i]
            made[i].a = 0.0 if a is None else a
            made[i].b = 0.0 if b is None else b
            c.fills = c.fills or made[i].op == RI_STEP_FILL
        self.owned.append(memory)
        c.steps = made
        c.n_steps = len(steps)
        return 0

    cdef int _add_vocabulary(self, int at, dict vocabulary) except -1:
        cdef tuple values = vocabulary["values"]
        cdef uint64_t n_cells = 8, place
        cdef int64_t i, first = vocabulary["first"]
        cdef ri_vocab_cell* cells
        cdef bytes data
        cdef double number
        cdef int64_t bits
        while n_cells < <uint64_t>(2 * len(values) + 2):
            n_cells *= 2
        cells = <ri_vocab_cell*>calloc(n_cells, sizeof(ri_vocab_cell))
        if cells == NULL:
            raise MemoryError()
        self.blocks[at] = cells
        for place in range(n_cells):
            cells[place].code = -1
        for i in range(len(values)):
            value = values[i]
            if isinstance(value, str):
                data = value.encode()
                self.owned.append(data)
                hashed = ri_vocab_hash(PyBytes_AS_STRING(data), len(data))
            else:
                if isinstance(value, float):  # by its bits, as slots of that type are looked up
                    number = value
                    memcpy(&bits, &number, 8)
                    value = bits
                hashed = ri_hash_int(value, 0)
            place = <uint64_t>hashed & (n_cells - 1)
            while cells[place].code >= 0:
                place = (place + 1) & (n_cells - 1)
            cells[place].hash = hashed
            cells[place].code = <int32_t>(first + i)
            if isinstance(value, str):
                cells[place].size = <int32_t>len(data)
                cells[place].key.text = PyBytes_AS_STRING(data)
            else:
                cells[place].key.integer = value
        self.vocabs[at].cells = cells
        self.vocabs[at].mask = n_cells - 1
        self.vocabs[at].oov = vocabulary["oov"]
        self.vocabs[at].size = vocabulary["size"]
        self.n_vocabs = at + 1
        return 0

    def __dealloc__(self):
        cdef int i
        if self.blocks != NULL:
            for i in range(self.n_vocabs):
                free(self.blocks[i])
        free(self.blocks)
        free(self.vocabs)
        free(self.columns)
        free(self.all_columns)
        free(self.refs)
        free(self.zone_at)
        free(self.zone_offset)
        free(self.slot_kinds)
        free(self.optional)

    cdef RowState new_state(self):
        cdef RowState state = RowState.__new__(RowState)
        cdef int n = self.n_slots + 1
        state.n_slots = n
        state.keep = []
        state.st.slots = <ri_slot*>calloc(n, sizeof(ri_slot))
        state.st.calendars = <ri_calendar*>calloc(n, sizeof(ri_calendar))
        state.st.max_flags = 2 * self.c.n_columns + 1  # a stale value may also be a null one: a ratio over 0
        state.st.flags = <ri_flag*>calloc(state.st.max_flags, sizeof(ri_flag))
        state.st.outside = <uint64_t*>calloc(self.c.n_columns + 1, 8)
        state.lists = <void**>calloc(n, sizeof(void*))
        state.list_capacity = <int64_t*>calloc(n, 8)
        if (state.st.slots == NULL or state.st.calendars == NULL or state.st.flags == NULL or state.st.outside == NULL
                or state.lists == NULL or state.list_capacity == NULL):
            raise MemoryError()
        self.clear_slots(&state.st)
        return state

    cdef void clear_slots(self, ri_state* st) noexcept nogil:
        cdef int i
        for i in range(self.n_slots):
            st.slots[i].state = RI_NULL
            st.slots[i].kind = self.slot_kinds[i]
            st.slots[i].hashed = 0
            st.slots[i].calendar = 0
            st.slots[i].updated_ns = INT64_MAX

    cdef int run_columns(self, const uint16_t* which, int32_t n, ri_state* st, uint8_t** rows, uint8_t** masks) noexcept nogil:
        return ri_run(&self.c, which, n, st, rows, masks)

    cdef int run_one(self, int32_t column, ri_state* st, uint8_t** rows, uint8_t** masks) noexcept nogil:
        return ri_run_column(&self.c, column, st, rows, masks)

    cdef int fail(self, const ri_error* error, int64_t row) except -1:
        cdef const ri_column* c = self.columns + error.column
        cdef str name = self.column_names[error.column]
        cdef str refs = ", ".join(f"`{self.slot_names[self.refs[c.refs_at + i]]}`" for i in range(c.n_refs))
        cdef str path = f"$.{self.slot_names[c.ref[0]]}" if row < 0 else f"$[{row}].{self.slot_names[c.ref[0]]}"
        cdef str state = STATE_NAMES[error.state]
        if error.code == RI_ERR_REFUSED:
            raise FeatureMissingError(
                f"Expected a value for column `{name}` (reads {refs}), got {state}", path=path,
                hint=f"the column says refuse; send it, or declare {'null' if error.state == RI_NULL else state}= with a default",
            )
        if error.code == RI_ERR_NO_NAN:
            if error.state == RI_PRESENT:
                state = "one that it has no number for"
            raise FeatureMissingError(
                f"Expected a value for column `{name}` (reads {refs}), got {state}: this model or tensor cannot take NaN",
                path=path, hint="declare a default for it in the column",
            )
        if error.code == RI_ERR_DOMAIN:
            raise FeatureRangeError(
                f"Expected a value in the domain of {('', 'log1p (> -1)', '', 'sqrt (>= 0)')[error.state]} for column "
                f"`{name}`, got {error.value!r}", path=path, hint="clip the column, or use signed_log1p",
            )
        if error.code == RI_ERR_OOV:
            got = error.integer if error.text_size < 0 else error.text[:error.text_size].decode(errors="replace")
            if self.slot_kinds[c.ref[0]] == RI_SLOT_F64:
                got = error.value
            if self.slot_kinds[c.ref[0]] >= RI_SLOT_LIST_F64:
                path += f"[{<int64_t>error.value}]"
            raise FeatureRangeError(
                f"Expected a value of the vocabulary of column `{name}`, got {clip(got)}", path=path,
                hint="the column refuses what is not in it; see the spec for the known values",
            )
        if error.code == RI_ERR_VECTOR_SIZE:
            raise FeatureRangeError(
                f"Expected a vector of {c.width if c.width > 1 else c.unit_ns} numbers for column `{name}`, got {error.integer}",
                path=path, hint="the table holds vectors of another size than the spec declares",
            )
        dtype = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 11: "float64"}.get(c.dtype, "?")
        if error.code == RI_ERR_NOT_FINITE:
            raise FeatureRangeError(f"Expected a number for column `{name}`, got NaN out of {refs}", path=path)
        shown = error.integer if error.value == <double>error.integer and error.integer else error.value
        raise FeatureRangeError(
            f"Expected a value that {dtype} holds for column `{name}`, got {shown!r}", path=path,
            hint="integers pass exactly up to 2**53 through float columns; clip the column, or use another dtype",
        )

    # ---- one value ----------------------------------------------------------------------------------------------------

    cdef int convert(self, int slot, object value, RowState state, int64_t row) except -1:
        """Fast cases by exact type; the rest goes to `_convert_other`."""
        cdef ri_slot* s = state.st.slots + slot
        cdef int kind = self.slot_kinds[slot], overflow = 0
        cdef Py_ssize_t size = 0
        s.hashed = 0
        s.calendar = 0
        s.updated_ns = INT64_MAX
        if kind == RI_SLOT_F64 and PyFloat_CheckExact(value):
            s.v.f = PyFloat_AS_DOUBLE(value)
            s.state = RI_PRESENT
            if not isfinite(s.v.f):
                return self._not_finite(slot, s, row)
            return 0
        if kind == RI_SLOT_TEXT and PyUnicode_CheckExact(value) and not (self.any_bytes and self.slot_is_bytes(slot)):
            try:
                s.v.text = ri_utf8(value, &size)
            except UnicodeEncodeError:
                raise FeatureRangeError("Expected text that UTF-8 can hold, got a lone surrogate",
                                        path=self._path(slot, row)) from None
            if size > MAX_TEXT:
                raise FeatureRangeError(f"Expected at most {MAX_TEXT} bytes of text, got {size}", path=self._path(slot, row))
            s.n = size
            s.state = RI_PRESENT
            return 0
        if kind == RI_SLOT_I64 and PyLong_CheckExact(value):
            s.v.i = PyLong_AsLongLongAndOverflow(value, &overflow)
            if overflow:
                raise FeatureRangeError("Expected an integer of 64 bits, got a larger one", path=self._path(slot, row))
            s.state = RI_PRESENT
            return 0
        if kind == RI_SLOT_BOOL and (value is True or value is False):
            s.v.i = value is True
            s.state = RI_PRESENT
            return 0
        if kind == RI_SLOT_TIME and PyFloat_CheckExact(value):
            return self._seconds(slot, s, PyFloat_AS_DOUBLE(value), row)
        if value is None or value is UNSET:
            return self._null(slot, s, row)
        return self._convert_other(slot, value, state, row)

    cdef int _null(self, int slot, ri_slot* s, int64_t row) except -1:
        if not self.optional[slot]:
            raise FeatureMissingError(
                f"Expected `{TYPE_NAMES[self.slot_kinds[slot]]}`, got null or nothing", path=self._path(slot, row),
                hint="the field is required; declare it as `X | None` if it may be absent",
            )
        s.state = RI_NULL
        return 0

    cdef int _not_finite(self, int slot, ri_slot* s, int64_t row) except -1:
        if isnan(s.v.f):
            if self.optional[slot]:
                s.state = RI_NULL
                return 0
            raise FeatureRangeError("Expected a finite number, got NaN", path=self._path(slot, row),
                                    hint="NaN counts as null, and the field is required")
        raise FeatureRangeError("Expected a finite number, got infinity", path=self._path(slot, row))

    cdef int _seconds(self, int slot, ri_slot* s, double seconds, int64_t row) except -1:
        """Seconds since the epoch, rounded to microseconds: a float64 of today's seconds holds no more."""
        if isnan(seconds) and self.optional[slot]:
            s.state = RI_NULL
            return 0
        if not (seconds > -4.6e9 and seconds < 4.6e9):
            raise FeatureRangeError(f"Expected seconds since 1970 within +-4.6e9 (1824 to 2115), got {seconds!r}",
                                    path=self._path(slot, row), hint="milliseconds are not seconds")
        s.v.i = llrint(seconds * 1e6) * 1000
        s.state = RI_PRESENT
        return 0

    cdef int _datetime(self, int slot, ri_slot* s, object value, int64_t row) except -1:
        cdef int64_t year, month, era, days
        cdef object delta
        zone = datetime_tzinfo(value)
        if zone is None:
            raise FeatureTypeError("Expected an aware datetime, got a naive one", path=self._path(slot, row),
                                   hint="attach its zone: value.replace(tzinfo=...)")
        if zone is UTC and PyDateTime_CheckExact(value):
            # days of the civil calendar, years counted from March
            year, month = datetime_year(value), datetime_month(value)
            year -= month <= 2
            era = year // 400
            month = month - 3 if month > 2 else month + 9
            days = (153 * month + 2) // 5 + datetime_day(value) - 1
            days += (year - era * 400) * 365 + (year - era * 400) // 4 - (year - era * 400) // 100
            days += era * 146097 - 719468
            s.v.i = ((days * 86400 + datetime_hour(value) * 3600 + datetime_minute(value) * 60 + datetime_second(value))
                     * 1000000 + datetime_microsecond(value))
        else:
            try:
                delta = value - EPOCH
                s.v.i = (<int64_t>delta.days * 86400 + <int64_t>delta.seconds) * 1000000 + <int64_t>delta.microseconds
                if not PyDateTime_CheckExact(value):
                    # pandas keeps nanoseconds; finer moments are rounded to microseconds, half up, as in JSON and Arrow
                    s.v.i += <int64_t>getattr(value, "nanosecond", 0) >= 500
            except TypeError as exc:  # a zone without an offset: as naive as none
                raise FeatureTypeError(f"Expected an aware datetime, got {clip(value)}", path=self._path(slot, row),
                                       hint="attach its zone: value.replace(tzinfo=...)") from exc
            except Exception as exc:  # a zone, or a subclass of datetime, of somebody else
                raise FeatureRangeError(f"Expected a moment that can be counted from 1970, got {clip(value)}",
                                        path=self._path(slot, row)) from exc
        if s.v.i > MAX_TIME_NS // 1000 or s.v.i < -(MAX_TIME_NS // 1000):
            raise FeatureRangeError(f"Expected a moment between 1824 and 2115, got {clip(value)}", path=self._path(slot, row))
        s.v.i *= 1000
        s.state = RI_PRESENT
        return 0

    cdef int _convert_other(self, int slot, object value, RowState state, int64_t row) except -1:
        """Everything that is not the exact type: one rule for dict, Struct and dataclass, and whatever they hold.

        The type itself is asked, never `isinstance`: an object may lie about its `__class__`, or fail when it is read.
        """
        cdef ri_slot* s = state.st.slots + slot
        cdef int kind = self.slot_kinds[slot]
        cdef type given = type(value)
        cdef double number
        if given.__name__ in ("NAType", "NaTType"):  # pandas: missing, and no truth value to ask for
            return self._null(slot, s, row)
        if kind == RI_SLOT_F64:
            if issubclass(given, NUMBERS) and not issubclass(given, NO_NUMBERS):
                number = self._number(slot, value, self._path(slot, row))
                s.v.f = number
                s.state = RI_PRESENT
                return 0 if isfinite(number) else self._not_finite(slot, s, row)
        elif kind == RI_SLOT_I64:
            if issubclass(given, INTEGERS) and not issubclass(given, NO_NUMBERS):
                return self.convert(slot, plain_int(value), state, row)
        elif kind == RI_SLOT_BOOL:
            if issubclass(given, np.bool_):
                return self.convert(slot, bool(value), state, row)
        elif kind == RI_SLOT_TEXT:
            if issubclass(given, str) and not self.slot_is_bytes(slot):
                plain = str.__str__(value)
                state.keep.append(plain)
                return self.convert(slot, plain, state, row)
            if issubclass(given, (bytes, bytearray, memoryview)) and self.slot_is_bytes(slot):
                try:
                    data = bytes(value) if not issubclass(given, bytes) else bytes.__getitem__(value, slice(None))
                except Exception as exc:  # a memoryview that was released, or a subclass of somebody else
                    raise FeatureTypeError(f"Expected `bytes`, got `{given.__name__}`, which cannot be read: {clip(exc)}",
                                           path=self._path(slot, row)) from exc
                if len(data) > MAX_TEXT:
                    raise FeatureRangeError(f"Expected at most {MAX_TEXT} bytes, got {len(data)}", path=self._path(slot, row))
                state.keep.append(data)
                s.v.text = PyBytes_AS_STRING(data)
                s.n = len(data)
                s.state = RI_PRESENT
                return 0
        elif kind == RI_SLOT_TIME:
            if PyDateTime_Check(value):
                return self._datetime(slot, s, value, row)
            if issubclass(given, NUMBERS) and not issubclass(given, NO_NUMBERS):
                return self._seconds(slot, s, self._number(slot, value, self._path(slot, row)), row)
        elif kind >= RI_SLOT_LIST_F64:
            if issubclass(given, (list, tuple, np.ndarray)):
                return self._convert_list(slot, value, state, row)
        return self._wrong_type(slot, value, self._path(slot, row), self.type_name(slot))

    cdef int _wrong_type(self, int slot, object value, str path, str expected) except -1:
        cdef type given = type(value)
        cdef str hint = "pass a plain value: lazy objects are not read"
        if issubclass(given, (bool, np.bool_)):
            hint = "a boolean is not a number: declare the field as bool, or send int(value)"
        elif issubclass(given, np.datetime64):
            hint = "a datetime64 has no zone: pass an aware datetime, or seconds since 1970"
        elif expected == "timestamp":
            hint = "pass an aware datetime, or seconds since 1970; text is read in JSON and MessagePack only"
        elif issubclass(given, (str, bytes)):
            hint = "text is not converted to numbers, nor bytes to text: do it where the value comes from"
        elif issubclass(given, (float, np.floating)) and expected == "int":
            hint = "1.0 is not an int: convert it where the value comes from"
        elif issubclass(given, NUMBERS):
            hint = f"a number is not taken for {expected}: convert it where the value comes from"
        raise FeatureTypeError(f"Expected `{expected}`, got `{given.__name__}` {clip(value)}", path=path, hint=hint)

    cdef double _number(self, int slot, object value, str path) except? -1:
        """A number of another type than float as float64, nearest. Infinity comes back only if the value itself is infinite."""
        cdef type given = type(value)
        cdef double number
        try:
            number = PyLong_AsDouble(plain_int(value)) if issubclass(given, int) else float(value)
        except OverflowError as exc:
            raise FeatureRangeError(f"Expected a number that float64 holds, got {clip(value)}", path=path) from exc
        except Exception as exc:  # a subclass may compute its value, and fail
            raise FeatureTypeError(f"Expected `{self.type_name(slot)}`, got `{given.__name__}`, which cannot be read: {clip(exc)}",
                                   path=path, hint="pass a plain value") from exc
        if isinf(number) and not issubclass(given, (float, np.floating)) and not (
                issubclass(given, decimal.Decimal) and value.is_infinite()):
            raise FeatureRangeError(f"Expected a number that float64 holds, got {clip(value)}", path=path)
        return number

    cdef int _convert_list(self, int slot, object values, RowState state, int64_t row) except -1:
        cdef ri_slot* s = state.st.slots + slot
        cdef int kind = self.slot_kinds[slot]
        cdef int64_t n, i
        cdef Py_ssize_t size = 0
        cdef double number
        cdef int overflow = 0
        cdef list items
        cdef ri_text* texts
        cdef type given = type(values)
        # a copy, taken without asking the object: it may change, or run code, while its items are read
        if issubclass(given, list):
            n = list.__len__(values)
        elif issubclass(given, tuple):
            n = tuple.__len__(values)
        else:
            if values.ndim != 1 or values.dtype.kind not in "biufUSO":
                raise FeatureTypeError(f"Expected `{self.type_name(slot)}`, got an array of {values.ndim} dimensions, {values.dtype}",
                                       path=self._path(slot, row), hint="pass one plain list per request")
            n = values.shape[0]
        if n > MAX_LIST:
            raise LimitError(f"Expected at most {MAX_LIST} items, got {n} - at `{self._path(slot, row)}`",
                             hint="send the items that the column keeps")
        if issubclass(given, list):
            items = list.__getitem__(values, slice(None))
        elif issubclass(given, tuple):
            items = list(tuple.__getitem__(values, slice(None)))
        else:
            items = np.ndarray.tolist(values)
        n = len(items)
        state.room(slot, n if n > 0 else 1)
        for i in range(n):
            item = items[i]
            given = type(item)
            if kind == RI_SLOT_LIST_F64 and issubclass(given, NUMBERS) and not issubclass(given, NO_NUMBERS):
                number = item if given is float else self._number(slot, item, f"{self._path(slot, row)}[{i}]")
                if not isfinite(number):
                    raise FeatureRangeError(f"Expected a finite number, got {clip(item)}", path=f"{self._path(slot, row)}[{i}]",
                                            hint="a list holds no nulls: leave the item out")
                (<double*>state.lists[slot])[i] = number
            elif kind == RI_SLOT_LIST_I64 and issubclass(given, INTEGERS) and not issubclass(given, NO_NUMBERS):
                (<int64_t*>state.lists[slot])[i] = PyLong_AsLongLongAndOverflow(plain_int(item), &overflow)
                if overflow:
                    raise FeatureRangeError("Expected an integer of 64 bits, got a larger one", path=f"{self._path(slot, row)}[{i}]")
            elif kind == RI_SLOT_LIST_TEXT and issubclass(given, str):
                if given is not str:
                    items[i] = item = str.__str__(item)
                texts = <ri_text*>state.lists[slot]
                try:
                    texts[i].data = ri_utf8(item, &size)
                except UnicodeEncodeError:
                    raise FeatureRangeError("Expected text that UTF-8 can hold, got a lone surrogate",
                                            path=f"{self._path(slot, row)}[{i}]") from None
                if size > MAX_TEXT:
                    raise FeatureRangeError(f"Expected at most {MAX_TEXT} bytes of text, got {size}",
                                            path=f"{self._path(slot, row)}[{i}]")
                texts[i].size = size
            else:
                self._wrong_type(slot, item, f"{self._path(slot, row)}[{i}]", ITEM_NAMES[kind - RI_SLOT_LIST_F64])
        if kind == RI_SLOT_LIST_TEXT:
            state.keep.append(items)
        s.v.list_f = <double*>state.lists[slot]
        s.n = n
        s.state = RI_PRESENT
        return 0

    cdef bint slot_is_bytes(self, int slot):
        return self.bytes_slots is not None and slot in self.bytes_slots

    def mark_bytes(self, slots) -> None:
        """Which text slots hold raw bytes instead of UTF-8. Called once, by the compiler of specs."""
        self.bytes_slots = frozenset(slots)
        self.any_bytes = len(self.bytes_slots) > 0

    def type_name(self, int slot) -> str:
        """Declared type of a field, as an error shows it."""
        return "bytes" if self.slot_is_bytes(slot) else TYPE_NAMES[self.slot_kinds[slot]]

    cdef str _path(self, int slot, int64_t row):
        return f"$.{self.slot_names[slot]}" if row < 0 else f"$[{row}].{self.slot_names[slot]}"

    # ---- whole tables -------------------------------------------------------------------------------------------------

    def fill_table(self, list columns, int64_t n_rows, list outs, list masks, *, int64_t now_ns=0, int64_t first_row=0,
                   reviews=None, list states=None, list updated=None, now=None, flags=None):
        """Rows of canonical columns -> tensors. Arguments: program.pyi."""
        cdef RowState state = self.new_state()
        cdef Source* sources = <Source*>calloc(self.n_slots + 1, sizeof(Source))
        cdef int n_tensors = self.c.n_tensors, t, slot, code = 0
        cdef uint8_t* rows[256]
        cdef uint8_t* mask_rows[256]
        cdef int64_t row_bytes[256]
        cdef int64_t cells[256]
        cdef int64_t i
        cdef int missing = -1
        cdef uint8_t* review = NULL
        cdef uint8_t* flag = NULL
        cdef const int64_t* moments = NULL
        cdef int32_t k
        if sources == NULL:
            raise MemoryError()
        try:
            for slot in range(self.n_slots):
                self._open_source(sources + slot, slot, columns[slot], n_rows)
                open_states(self, sources + slot, slot, None if states is None else states[slot],
                            None if updated is None else updated[slot], n_rows)
            if now is not None:
                if now.dtype != np.int64 or now.shape != (n_rows,) or not now.flags.c_contiguous:
                    raise ValueError(f"now needs {n_rows} contiguous int64")
                moments = <const int64_t*><uintptr_t>now.ctypes.data
            if flags is not None:
                if flags.dtype != np.uint8 or flags.shape != (n_rows, self.c.n_columns) or not flags.flags.c_contiguous:
                    raise ValueError(f"flags need contiguous bytes of shape ({n_rows}, {self.c.n_columns})")
                flags[:] = 0
                flag = <uint8_t*><uintptr_t>flags.ctypes.data
            if reviews is not None:
                if reviews.dtype != np.uint8 or reviews.size < n_rows or not reviews.flags.c_contiguous:
                    raise ValueError(f"reviews need {n_rows} contiguous bytes")
                review = <uint8_t*><uintptr_t>reviews.ctypes.data
            for t in range(n_tensors):
                _, dtype, width, _, mask_name, _ = self.tensors[t]
                out = outs[t]
                cells[t] = width
                row_bytes[t] = width * ri_dtype_size(dtype)
                if not out.flags.c_contiguous or out.nbytes < n_rows * row_bytes[t]:
                    raise ValueError(f"tensor {t} needs {n_rows * row_bytes[t]} contiguous bytes")
                rows[t] = <uint8_t*><uintptr_t>out.ctypes.data
                mask_rows[t] = NULL
                if masks[t] is not None:
                    mask_rows[t] = <uint8_t*><uintptr_t>masks[t].ctypes.data
            with nogil:
                for i in range(n_rows):
                    missing = load_row(sources, self.n_slots, self.optional, i, &state.st)
                    if missing >= 0:
                        break
                    state.st.n_flags = 0
                    state.st.review = 0
                    state.st.now_ns = now_ns if moments == NULL else moments[i]
                    code = ri_run(&self.c, self.all_columns, self.c.n_columns, &state.st, rows, mask_rows)
                    if code:
                        break
                    if flag != NULL:
                        for k in range(state.st.n_flags):  # a stale value that turns out to be null comes last
                            flag[i * self.c.n_columns + state.st.flags[k].column] = state.st.flags[k].state
                    if review != NULL:
                        review[i] = state.st.review != 0
                    for t in range(n_tensors):
                        rows[t] += row_bytes[t]
                        if mask_rows[t] != NULL:
                            mask_rows[t] += cells[t]
            if missing >= 0:
                self._source_error(missing, i + first_row, sources[missing].bad)
            if code:
                self.fail(&state.st.error, i + first_row)
            return [int(state.st.outside[t]) for t in range(self.c.n_columns)]
        finally:
            for slot in range(self.n_slots):
                free(sources[slot].texts)
            free(sources)

    cdef int _source_error(self, int slot, int64_t row, bint infinite) except -1:
        cdef str path = self._path(slot, row)
        if infinite:
            raise FeatureRangeError("Expected a finite number, got infinity", path=path)
        raise FeatureMissingError(f"Expected `{self.type_name(slot)}`, got null or NaN", path=path,
                                  hint="the field is required; declare it as `X | None` if it may be absent")

    cdef int _open_source(self, Source* source, int slot, object column, int64_t n_rows) except -1:
        """A canonical column -> pointers; sizes are checked here, once."""
        cdef int kind = self.slot_kinds[slot]
        if column is None:
            return 0
        values, valid, offsets, children = column
        if kind == RI_SLOT_VECTOR:
            if values.dtype != np.float32 or values.ndim != 2 or values.shape[0] != n_rows:
                raise ValueError(f"slot {slot} needs float32 ({n_rows}, size)")
            source.width = values.shape[1]
        elif kind == RI_SLOT_TEXT or kind >= RI_SLOT_LIST_F64:
            if offsets.dtype != np.int64 or len(offsets) != n_rows + 1:
                raise ValueError(f"slot {slot} needs int64 offsets of {n_rows + 1}")
            source.offsets = <const int64_t*><uintptr_t>offsets.ctypes.data
            if kind == RI_SLOT_LIST_TEXT:
                source.children = <const int64_t*><uintptr_t>children.ctypes.data
        elif values.dtype != (np.float64 if kind == RI_SLOT_F64 else np.int64) or len(values) != n_rows:
            raise ValueError(f"slot {slot} needs {n_rows} cells of its canonical type, got {values.dtype}")
        if not values.flags.c_contiguous:
            raise ValueError("columns must be contiguous")
        source.values = <const void*><uintptr_t>values.ctypes.data
        if valid is not None:
            if valid.dtype != np.uint8 or len(valid) != n_rows:
                raise ValueError(f"slot {slot} needs {n_rows} validity bytes")
            source.valid = <const uint8_t*><uintptr_t>valid.ctypes.data
        if kind == RI_SLOT_LIST_TEXT and n_rows > 0:
            longest = int(np.diff(offsets).max())
            source.texts = <ri_text*>malloc(sizeof(ri_text) * (<size_t>longest + 1))
            if source.texts == NULL:
                raise MemoryError()
        return 0


cdef int open_states(Program program, Source* source, int slot, object states, object updated, int64_t n_rows) except -1:
    """What goes beside a canonical column: checked here, once."""
    for array, dtype in ((states, np.uint8), (updated, np.int64)):
        if array is None:
            continue
        if slot < program.n_request:
            raise ValueError(f"slot {slot} is a field of the request: it is there, or it is null")
        if array.dtype != dtype or array.shape != (n_rows,) or not array.flags.c_contiguous:
            raise ValueError(f"slot {slot} needs {n_rows} contiguous {np.dtype(dtype).name}")
    if states is not None:
        if n_rows > 0 and int(states.max()) >= RI_N_STATES:
            raise ValueError(f"slot {slot} has a state that there is not")
        source.states = <const uint8_t*><uintptr_t>states.ctypes.data
    if updated is not None:
        source.updated = <const int64_t*><uintptr_t>updated.ctypes.data
    return 0


cdef int load_row(Source* sources, int n_slots, const uint8_t* optional, int64_t i, ri_state* st) noexcept nogil:
    """Slots of one row of a table. Returns -1, or the slot that is required and null, or infinite."""
    cdef int slot
    cdef ri_slot* s
    cdef Source* c
    cdef int64_t k, n
    for slot in range(n_slots):
        s = st.slots + slot
        c = sources + slot
        s.state = RI_PRESENT
        s.hashed = 0
        s.calendar = 0
        s.updated_ns = INT64_MAX
        if c.values == NULL or (c.valid != NULL and not c.valid[i]):
            s.state = RI_NULL
        elif s.kind == RI_SLOT_F64:
            s.v.f = (<const double*>c.values)[i]
            if isnan(s.v.f):
                s.state = RI_NULL
            elif not isfinite(s.v.f):
                c.bad = 1
                return slot
        elif s.kind <= RI_SLOT_TIME:
            s.v.i = (<const int64_t*>c.values)[i]
        elif s.kind == RI_SLOT_TEXT:
            s.v.text = <const char*>c.values + c.offsets[i]
            s.n = c.offsets[i + 1] - c.offsets[i]
        elif s.kind == RI_SLOT_VECTOR:
            s.v.vector = <const float*>c.values + i * c.width
            s.n = c.width
        elif s.kind == RI_SLOT_LIST_F64:
            s.v.list_f = <const double*>c.values + c.offsets[i]
            s.n = c.offsets[i + 1] - c.offsets[i]
        elif s.kind == RI_SLOT_LIST_I64:
            s.v.list_i = <const int64_t*>c.values + c.offsets[i]
            s.n = c.offsets[i + 1] - c.offsets[i]
        else:
            n = c.offsets[i + 1] - c.offsets[i]
            for k in range(n):
                c.texts[k].data = <const char*>c.values + c.children[c.offsets[i] + k]
                c.texts[k].size = c.children[c.offsets[i] + k + 1] - c.children[c.offsets[i] + k]
            s.v.list_text = c.texts
            s.n = n
        if s.state == RI_NULL and not optional[slot]:
            return slot
        if c.updated != NULL:
            s.updated_ns = c.updated[i]
        # an old value is a value: there must be one
        if c.states != NULL and c.states[i] != RI_PRESENT and (c.states[i] != RI_STALE or s.state == RI_PRESENT):
            s.state = c.states[i]
    return -1


def text_cells(buffer, int64_t n_cells) -> list:
    """Texts of a string tensor that `fill_table` filled; call it while the table's buffers live."""
    cdef const ri_text* cells = <const ri_text*><uintptr_t>buffer.ctypes.data
    cdef int64_t i
    return [cells[i].data[:cells[i].size].decode() for i in range(n_cells)]


@cython.final
cdef class RequestReader:
    """Fills request slots from an object.

    `type` is the frozen Struct generated from the spec: its fields are read by offset. A dict is read by key, another
    Struct or a dataclass by attribute; anything else is refused, because reading a lazy object could do anything.
    """

    def __init__(self, Program program not None, *, request_type not None, bint forbid_extra=True, int skip=-1):
        cdef int i
        cdef Py_ssize_t offset
        self.program = program
        self.type = request_type
        self.forbid_extra = forbid_extra
        self.skip = skip
        self.names = tuple(sys.intern(name) for name in program.slot_names[:program.n_request])
        self.known = frozenset(name for i, name in enumerate(self.names) if i != skip)
        self.keeps_texts = any([tensor[1] == RI_STRING for tensor in program.tensors])
        self.offsets = <Py_ssize_t*>calloc(program.n_request + 1, sizeof(Py_ssize_t))
        if self.offsets == NULL:
            raise MemoryError()
        self.slots_ok = True
        for i in range(program.n_request):
            offset = 0
            for base in request_type.__mro__:
                if self.names[i] in base.__dict__:
                    offset = ri_member_offset(base.__dict__[self.names[i]], <PyObject*>request_type)
                    break
            self.offsets[i] = offset
            if offset == 0 and i != skip:
                self.slots_ok = False

    def __dealloc__(self):
        free(self.offsets)

    def values(self, request) -> tuple:
        """Canonical values of one request by slot: for tools and tests, which cannot see slots."""
        cdef RowState state = self.program.new_state()
        cdef ri_slot* s
        cdef int i, kind
        cdef int64_t k
        cdef list found = []
        self.read(request, state, -1)
        for i in range(self.program.n_request):
            s = state.st.slots + i
            kind = self.program.slot_kinds[i]
            if s.state != RI_PRESENT:
                found.append(None)
            elif kind == RI_SLOT_F64:
                found.append(s.v.f)
            elif kind == RI_SLOT_BOOL:
                found.append(s.v.i != 0)
            elif kind <= RI_SLOT_TIME:
                found.append(s.v.i)
            elif kind == RI_SLOT_TEXT:
                data = s.v.text[:s.n]
                found.append(data if self.program.slot_is_bytes(i) else data.decode())
            elif kind == RI_SLOT_LIST_F64:
                found.append([s.v.list_f[k] for k in range(s.n)])
            elif kind == RI_SLOT_LIST_I64:
                found.append([s.v.list_i[k] for k in range(s.n)])
            else:
                found.append([s.v.list_text[k].data[:s.v.list_text[k].size].decode() for k in range(s.n)])
        return tuple(found)

    cdef int read(self, object request, RowState state, int64_t row) except -1:
        cdef int i, n = self.program.n_request
        cdef Py_ssize_t size = 0
        cdef PyObject* raw
        cdef Program program = self.program
        cdef ri_slot* s
        if type(request) is self.type and self.slots_ok:
            if self.keeps_texts:
                self._keep_texts(request, state)
            for i in range(n):
                if i == self.skip:
                    continue
                raw = ri_slot_at(<PyObject*>request, self.offsets[i])
                s = state.st.slots + i
                if raw == NULL:
                    program._null(i, s, row)
                elif program.slot_kinds[i] == RI_SLOT_F64 and PyFloat_CheckExact(<object>raw):
                    s.v.f = PyFloat_AS_DOUBLE(<object>raw)
                    s.updated_ns = INT64_MAX
                    s.state = RI_PRESENT
                    if not isfinite(s.v.f):
                        program._not_finite(i, s, row)
                elif program.slot_kinds[i] == RI_SLOT_TEXT and not program.any_bytes and ri_ascii(raw, &s.v.text, &s.n):
                    s.hashed = 0
                    s.updated_ns = INT64_MAX
                    s.state = RI_PRESENT
                else:
                    if not runs_no_code(<object>raw):
                        self._keep_texts(request, state)
                    program.convert(i, <object>raw, state, row)
            return 0
        if PyDict_CheckExact(request):
            return self._read_dict(request, state, row)
        given = type(request)
        if issubclass(given, Mapping):
            try:
                copied = dict(request)
            except Exception as exc:
                raise FeatureTypeError(f"Expected a mapping, got `{given.__name__}`, which cannot be read: {clip(exc)}",
                                       path="$" if row < 0 else f"$[{row}]", hint="pass a dict of plain values") from exc
            return self._read_dict(copied, state, row)
        if issubclass(given, msgspec.Struct) or hasattr(given, "__dataclass_fields__"):
            return self._read_attributes(request, state, row)
        raise FeatureTypeError(
            f"Expected a dict, a msgspec Struct or a dataclass as request, got `{given.__name__}`",
            path="$" if row < 0 else f"$[{row}]",
            hint="lazy objects (ORM rows, pydantic models) are not read: pass a dict of plain values, "
                 "e.g. model_to_dict(obj) or obj.model_dump()",
        )

    cdef int _keep_texts(self, object request, RowState state) except -1:
        """Hold the texts that slots point into: the value that is read next may run code, and that may even change a frozen
        Struct (`force_setattr`)."""
        cdef int i
        cdef PyObject* raw
        for i in range(self.program.n_request):
            raw = ri_slot_at(<PyObject*>request, self.offsets[i])
            if i != self.skip and raw != NULL and self.program.slot_kinds[i] == RI_SLOT_TEXT:
                state.keep.append(<object>raw)
        return 0

    cdef int _read_dict(self, dict request, RowState state, int64_t row) except -1:
        cdef int i, n = self.program.n_request
        cdef Program program = self.program
        cdef PyObject* value
        try:
            for i in range(n):
                if i == self.skip:
                    continue
                value = PyDict_GetItemWithError(request, self.names[i])
                if value == NULL:
                    program._null(i, state.st.slots + i, row)
                    continue
                item = <object>value  # owned from here on: converting may run code that changes the dict
                if program.slot_kinds[i] == RI_SLOT_TEXT:
                    state.keep.append(item)
                program.convert(i, item, state, row)
            if self.forbid_extra:
                if len(request) > n - (self.skip >= 0):
                    self._refuse_extra(request, row)
                else:
                    self._count_keys(request, row)
        except RetailInferError:
            raise
        except Exception as exc:  # keys that run code, or a dict that changes under our hands
            raise FeatureTypeError(f"Expected a dict of plain values, reading it failed: {clip(exc)}",
                                   path="$" if row < 0 else f"$[{row}]", hint="use text keys, and change no dict in use") from exc
        return 0

    cdef int _read_attributes(self, object request, RowState state, int64_t row) except -1:
        cdef int i
        cdef Program program = self.program
        for i in range(program.n_request):
            if i == self.skip:
                continue
            try:
                item = getattr(request, self.names[i], UNSET)
            except Exception as exc:  # a property of somebody else
                raise FeatureTypeError(f"Expected `{program.type_name(i)}`, reading the attribute failed: {clip(exc)}",
                                       path=program._path(i, row), hint="pass a dict of plain values") from exc
            if program.slot_kinds[i] == RI_SLOT_TEXT:
                state.keep.append(item)
            program.convert(i, item, state, row)
        return 0

    cdef int _count_keys(self, dict request, int64_t row) except -1:
        """Fewer keys than fields may still hide an unknown one in the place of an optional field."""
        cdef int i, found = 0
        for i in range(self.program.n_request):
            found += i != self.skip and self.names[i] in request
        if found != len(request):
            self._refuse_extra(request, row)
        return 0

    cdef int _refuse_extra(self, dict request, int64_t row) except -1:
        extra = [key for key in request if key not in self.known]
        if extra:
            raise FeatureTypeError(
                f"Unknown field {clip(extra[0])}", path="$" if row < 0 else f"$[{row}]",
                hint=f"declared: {', '.join(sorted(self.known))}; or extra=\"ignore\" in the spec",
            )
        return 0
