"""Velocity windows as Python and the engine use them: groups own the state, plans say what an event does, calls are memory.

Arithmetic, layout and rules are panes.h / panes.c; here are the checks of what comes from Python, the memory's owners, typed
errors, the wire form for shared state, and replay. What each class does: windows.pyi. Steps of a call: windows.pxd. The readable
twin: windows_reference.py.
"""
import hashlib
import os
from datetime import UTC, datetime, timedelta

import numpy as np

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.math cimport NAN, isfinite, isnan
from libc.stdint cimport INT64_MAX, INT64_MIN, UINT32_MAX, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from retailinfer._native.hashing cimport ri_xxh64
from retailinfer._native.program cimport (
    RI_NULL, RI_PRESENT, RI_SLOT_BOOL, RI_SLOT_F64, RI_SLOT_I64, RI_SLOT_TEXT, RI_SLOT_TIME, RI_STALE, RI_UNAVAILABLE,
    RI_UNKNOWN, ri_slot,
)

from retailinfer.errors import ConfigError, FeatureRangeError, FeatureTypeError, IntegrityError, clip

cdef extern from "panes.h" nogil:
    enum:
        RI_ACC_COUNT, RI_ACC_SUM, RI_ACC_MIN, RI_ACC_MAX, RI_ACC_DISTINCT, RI_ACC_IDS
        RI_WHAT_COUNT, RI_WHAT_SUM, RI_WHAT_MEAN, RI_WHAT_MIN, RI_WHAT_MAX, RI_WHAT_DISTINCT, RI_WHAT_LAG
        RI_WINDOW_OK, RI_WINDOW_VALUE, RI_WINDOW_SUM, RI_WINDOW_TIME, RI_WINDOW_MEMORY
        RI_MAX_KEEP, RI_MAX_ACCUMULATORS, RI_MAX_DISTINCT, RI_RING, RI_MAX_WINDOW_KEY
        RI_NOWHERE
    int64_t RI_MAX_EXACT
    int64_t RI_EPOCH_S

    ctypedef struct ri_window_counts:
        int64_t entities, live_bytes, bytes
        int64_t events, late, duplicates, ahead, evicted, swept, erased, no_key, stepped, refused, no_memory
        int64_t panes
        int64_t evicted_until_ns
        int64_t version

    ri_windows* ri_windows_new(int64_t max_entities, int64_t max_bytes, int64_t max_ahead_ns, ri_siphash_key key)
    void ri_windows_free(ri_windows* w)
    void ri_windows_counts(const ri_windows* w, ri_window_counts* out)
    ri_accumulator* ri_windows_accumulators(ri_windows* w)
    int ri_windows_register(ri_windows* w, const ri_accumulator* acc)
    int ri_windows_prepare(ri_windows* w, const ri_window_plan* plan, ri_window_call* call, const ri_state* st, int64_t at_ns,
                           int64_t now_ns, uint64_t event_hash, int before_since)
    void ri_windows_read(const ri_windows* w, const ri_window_plan* plan, const ri_window_call* call, ri_state* st)
    void ri_windows_add(ri_windows* w, const ri_window_plan* plan, ri_window_call* call)
    int ri_windows_erase(ri_windows* w, const char* key, int64_t size)


KINDS = {"count": RI_ACC_COUNT, "sum": RI_ACC_SUM, "min": RI_ACC_MIN, "max": RI_ACC_MAX, "distinct": RI_ACC_DISTINCT,
         "ids": RI_ACC_IDS}
WHATS = {"count": RI_WHAT_COUNT, "sum": RI_WHAT_SUM, "mean": RI_WHAT_MEAN, "min": RI_WHAT_MIN, "max": RI_WHAT_MAX,
         "distinct": RI_WHAT_DISTINCT, "lag": RI_WHAT_LAG}
MAX_KEEP = RI_MAX_KEEP
MAX_DISTINCT = RI_MAX_DISTINCT


cdef uint64_t hash_event_id(object event_id) except 0:
    cdef Py_ssize_t size = 0
    cdef const char* data
    cdef int overflow = 0
    cdef int64_t number
    cdef uint64_t hash
    if type(event_id) is str:
        try:
            data = PyUnicode_AsUTF8AndSize(event_id, &size)
        except UnicodeEncodeError:
            raise FeatureRangeError("Expected an event id that is valid Unicode, got a lone surrogate", path="event_id") from None
        hash = ri_xxh64(data, <size_t>size, 0)
    elif type(event_id) is bytes:
        hash = ri_xxh64(PyBytes_AS_STRING(event_id), <size_t>PyBytes_GET_SIZE(event_id), 0)
    elif type(event_id) is int:
        number = PyLong_AsLongLongAndOverflow(event_id, &overflow)
        if overflow:
            raise FeatureRangeError(f"Expected an event id within 64 bits, got {clip(event_id)}", path="event_id")
        hash = ri_xxh64(&number, 8, 0)
    else:
        raise FeatureTypeError(f"Expected an event id of type `str`, `bytes` or `int`, got `{type(event_id).__name__}`",
                               path="event_id")
    return hash if hash else 1


def event_hash(event_id):
    return hash_event_id(event_id)


cdef class WindowGroup:
    pass


cdef class WindowCall:
    pass


cdef class WindowPlan:
    cdef WindowCall new_call(self):
        raise NotImplementedError

    cdef int prepare(self, WindowCall call, ri_state* st, int64_t at_ns, int64_t now_ns, uint64_t event_hash) noexcept:
        return 0

    cdef void read(self, WindowCall call, ri_state* st) noexcept:
        pass

    cdef void add(self, WindowCall call) noexcept:
        pass

    cdef int fail(self, WindowCall call, int64_t row) except -1:
        raise NotImplementedError

    cdef object remote_call(self, WindowCall call, bint add):
        raise NotImplementedError

    cdef int remote_read(self, WindowCall call, ri_state* st, object reply) except -1:
        raise NotImplementedError

    cdef void unavailable(self, ri_state* st) noexcept:
        pass
