"""The engine of one release: request -> slots -> tensors -> scores -> answer, without a Python object in between.

Rules:
  * A call takes a workspace from the engine's pool and gives it back; nothing is thread-local, so greenlets, signals and
    `__float__` may re-enter at will.
  * The GIL is held from start to end, unless the model's run is predicted to take longer than `hold_below_us`: then it is given
    up around native code alone, once in a score or a ranking, once per tile in a batch.
  * More rows than a tile are looped over, so memory is bounded; a model whose rows influence each other runs one by one.
  * Rankings copy item cells that were computed when the row entered the table; only cross columns are computed per pair.
  * Reasons of a decision are worked out with its score where the policy asks for them; else nobody pays for them.
  * A release that reads mutable tables, windows or aliases has a `Resolver`; one that does not pays one branch for that.
  * A call holds a permit from its beginning to its end, but not while it waits; it is refused before work for which the time
    that is left has lately not been enough, and an answer that came too late is not given out.
Filling slots is program.pyx, running models ort.pyx, snapshots table.pyx, all other look-ups resolve.pyx. What loads a release
and builds this: pipeline.py.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8
from libc.math cimport NAN, isfinite
from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from retailinfer._native.admission cimport (
    Call, Permits, PRIORITY_CRITICAL, StageClock, permit_enter, permit_leave, permit_start_waiting, permit_stop_waiting, priority_code,
    ri_monotonic_ns, ri_stage, ri_stage_ease, ri_stage_note, ri_stage_predict, ri_wall_at, ri_wall_ns,
)
from retailinfer._native.ort cimport OrtModel, RiLane, raise_run_error
from retailinfer._native.program cimport (
    Program, RequestReader, RI_FLOAT32, RI_NULL, RI_PRESENT, RI_SLOT_F64, RI_SLOT_I64, RI_SLOT_TEXT, RI_SLOT_VECTOR, RI_STALE,
    RI_STRING, RI_UNAVAILABLE, RI_UNKNOWN, RowState, ri_flag, ri_slot, ri_state, ri_text,
)
from retailinfer._native.reasons cimport ForestReasons, tuple_of
from retailinfer._native.resolve cimport CallOptions, Lease, Resolver
from retailinfer._native.table cimport (
    KeyPart, RowBlock, index_find, index_find_many, index_key, SnapshotTable, TableSlot, gather_rows,
    ri_cell_f64, ri_cell_i64, ri_cell_present, ri_cell_str, ri_cell_vec, ri_key_compose, ri_key_put_bytes, ri_key_put_int, ri_key_room, ri_record,
    ri_updated_at_ns, scan_ids,
)
from retailinfer._native.tensor_ref cimport RunError, StrRef, TensorRef
from retailinfer._native.trees cimport TreeModel, free_scratch

import os
import sys
from itertools import islice

import msgspec
import numpy as np

from retailinfer.errors import (
    ConfigError, DeadlineExceededError, FeatureRangeError, FeatureTypeError, LimitError, RequestError, RetailInferError,
    SchemaMismatchError, ScoreError, ServingError, SessionError, clip,
)

cdef extern from "aligned.h" nogil:
    void* ri_aligned(size_t size)
    void ri_aligned_free(void* p)

cdef extern from "ort_run.h" nogil:
    int RI_ERR_SCORE

cdef inline int ri_dtype_size(int dtype) noexcept nogil:
    if dtype == 8:
        return sizeof(ri_text)
    return 8 if dtype == 7 or dtype == 11 else 1 if dtype == 9 else 4

cdef enum:
    SCAN_SLOW = -1       # as RI_SCAN_* in table.h
    SCAN_TOO_MANY = -3

cdef extern from *:
    """
    #include <stdlib.h>
    #include <string.h>
    /* prefix (16 hex digits) + 8 or more hex digits of the counter, as one ASCII text */
    static PyObject *ri_make_id(PyObject *prefix, unsigned long long counter) {
        static const char digits[] = "0123456789abcdef";
        int n = 8, i;
        while (n < 16 && counter >> (4 * n)) n++;
        PyObject *id = PyUnicode_New(16 + n, 127);
        if (!id) return NULL;
        char *out = (char *)PyUnicode_DATA(id);
        memcpy(out, PyUnicode_DATA(prefix), 16);
        for (i = 0; i < n; i++) out[16 + i] = digits[counter >> (4 * (n - 1 - i)) & 15];
        return id;
    }
    /* Rows of one tensor: `head` bytes from the template, `body` bytes from each row's item cells. Both in one pass, so that a
     * row is written while its line is there; rows to come are asked for early, because the block is larger than any cache. */
    #define RI_COPY_AHEAD 12
    static inline void ri_copy_cells(unsigned char *to, const unsigned char *from, long long size) {
        long long i = 0;
        for (; i + 16 <= size; i += 16) memcpy(to + i, from + i, 16);
        for (; i + 4 <= size; i += 4) memcpy(to + i, from + i, 4);
        for (; i < size; i++) to[i] = from[i];
    }
    #if defined(__GNUC__) || defined(__clang__)
    #define RI_ASK(p, level) __builtin_prefetch((p), 0, level)
    #else
    #define RI_ASK(p, level) ((void)(p))
    #endif
    static void ri_join_rows(unsigned char *out, long long stride, const unsigned char *head_from, long long head_at, long long head,
                             const unsigned char *block, long long block_stride, const int *rows, long long n, long long body_at,
                             long long body) {
        long long i, line;
        for (i = 0; i < n; i++, out += stride) {
            if (i + RI_COPY_AHEAD < n)
                for (line = 0; line < body; line += 64)
                    RI_ASK(block + rows[i + RI_COPY_AHEAD] * block_stride + line, 3);
            ri_copy_cells(out + head_at, head_from, head);
            ri_copy_cells(out + body_at, block + rows[i] * block_stride, body);
        }
    }
    /* Bring a row's lines near (second level): they are copied in a few microseconds. */
    static inline void ri_ask_row(const unsigned char *row, long long size) {
        long long line;
        for (line = 0; line < size; line += 64) RI_ASK(row + line, 2);
    }
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #endif
    /* Opening brackets bound the nesting from above. One pass over the body, 16 bytes at a time where the machine has a way:
     * '[' and '{' differ in one bit, so one comparison finds both. */
    static long long ri_count_open(const char *p, long long n) {
        long long total = 0;
    #if defined(__SSE2__)
        const __m128i bit = _mm_set1_epi8(0x20), brace = _mm_set1_epi8('{'), zero = _mm_setzero_si128();
        while (n >= 16) {
            long long blocks = n / 16 < 255 ? n / 16 : 255, i; /* a byte counts to 255 */
            __m128i found = zero, sum;
            for (i = 0; i < blocks; i++, p += 16)
                found = _mm_sub_epi8(found, _mm_cmpeq_epi8(_mm_or_si128(_mm_loadu_si128((const __m128i *)p), bit), brace));
            n -= 16 * blocks;
            sum = _mm_sad_epu8(found, zero);
            total += _mm_cvtsi128_si64(sum) + _mm_cvtsi128_si64(_mm_srli_si128(sum, 8));
        }
    #endif
        for (; n > 0; n--, p++) total += (*p | 0x20) == '{';
        return total;
    }
    /* The exact nesting outside of strings, for the few bodies with many brackets. */
    static long long ri_depth(const char *p, long long n) {
        long long depth = 0, worst = 0, i;
        int text = 0;
        for (i = 0; i < n; i++) {
            char c = p[i];
            if (text) {
                if (c == '\\\\') i++;
                else if (c == '"') text = 0;
            } else if (c == '"') text = 1;
            else if (c == '[' || c == '{') { if (++depth > worst) worst = depth; }
            else if (c == ']' || c == '}') depth--;
        }
        return worst;
    }
    /* Nesting of MessagePack, counted by its containers; -1 when it is cut short. Iterative: depth cannot hurt it. */
    static long long ri_msgpack_depth(const unsigned char *p, long long n, int limit) {
        unsigned long long left[64];
        long long at = 0;
        int depth = 0;
        if (limit > 63) limit = 63;
        left[0] = 1;
        while (depth >= 0) {
            unsigned long long items = 0, skip = 0;
            int open = 0;
            if (left[depth] == 0) { depth--; continue; }
            left[depth]--;
            if (at >= n) return -1;
            unsigned char c = p[at++];
            #define RI_BE(k) ({ unsigned long long v = 0; int j; if (at + (k) > n) return -1; \
                                for (j = 0; j < (k); j++) v = v << 8 | p[at + j]; at += (k); v; })
            if (c <= 0x7f || c >= 0xe0) { }
            else if (c <= 0x8f) { items = 2ULL * (c & 15); open = 1; }
            else if (c <= 0x9f) { items = c & 15; open = 1; }
            else if (c <= 0xbf) skip = c & 31;
            else switch (c) {
                case 0xc4: case 0xd9: skip = RI_BE(1); break;
                case 0xc5: case 0xda: skip = RI_BE(2); break;
                case 0xc6: case 0xdb: skip = RI_BE(4); break;
                case 0xc7: skip = RI_BE(1) + 1; break;
                case 0xc8: skip = RI_BE(2) + 1; break;
                case 0xc9: skip = RI_BE(4) + 1; break;
                case 0xca: case 0xce: case 0xd2: skip = 4; break;
                case 0xcb: case 0xcf: case 0xd3: skip = 8; break;
                case 0xcc: case 0xd0: skip = 1; break;
                case 0xcd: case 0xd1: skip = 2; break;
                case 0xd4: skip = 2; break;
                case 0xd5: skip = 3; break;
                case 0xd6: skip = 5; break;
                case 0xd7: skip = 9; break;
                case 0xd8: skip = 17; break;
                case 0xdc: items = RI_BE(2); open = 1; break;
                case 0xdd: items = RI_BE(4); open = 1; break;
                case 0xde: items = 2 * RI_BE(2); open = 1; break;
                case 0xdf: items = 2 * RI_BE(4); open = 1; break;
                default: break;
            }
            #undef RI_BE
            if (skip > (unsigned long long)(n - at)) return -1;
            at += (long long)skip;
            if (open) {
                if (items > (unsigned long long)(n - at)) return -1; /* each item takes a byte at least */
                if (++depth > limit) return depth;
                left[depth] = items;
            }
        }
        return 0;
    }
    """
    const char* utf8_of "PyUnicode_AsUTF8AndSize"(object text, Py_ssize_t* size) except NULL
    object make_id "ri_make_id"(object prefix, uint64_t counter)
    void ri_join_rows(uint8_t* out, int64_t stride, const uint8_t* head_from, int64_t head_at, int64_t head, const uint8_t* block,
                      int64_t block_stride, const int32_t* rows, int64_t n, int64_t body_at, int64_t body) nogil
    void ri_ask_row(const uint8_t* row, int64_t size) nogil
    long long ri_count_open(const char* p, long long n) nogil
    long long ri_depth(const char* p, long long n) nogil
    long long ri_msgpack_depth(const unsigned char* p, long long n, int limit) nogil

_WHY = ("", "excluded", "unavailable", "unknown", "refused")
cdef enum:
    KEPT = 0
    EXCLUDED = 1
    UNAVAILABLE = 2
    NOT_KNOWN = 3
    REFUSED = 4
    DUPLICATE = 5

# Ids of answers: 8 random bytes per process and a counter. A forked child must not repeat its parent's.
cdef str id_prefix = ""
cdef uint64_t id_counter = 0


def new_id_prefix() -> None:
    """Draw this process's prefix of answer ids. Runs at the first answer and in every forked child."""
    global id_prefix
    id_prefix = os.urandom(8).hex()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=new_id_prefix)


@cython.final
cdef class Bound:
    """An entity's plan fitted to one table: immutable, so a call that holds it reads one generation to its end."""

    def __init__(self, EntityPlan plan not None, SnapshotTable table not None):
        cdef int i, n = len(plan.wanted)
        cdef dict schema = {entry[0]: entry for entry in table.schema}
        cdef dict takes = {"float": ("f64", "i64"), "int": ("i64",), "bool": ("i64",), "timestamp": ("i64",), "str": ("str",),
                           "bytes": ("bytes",), "vector": ("vec",)}
        self.table = table
        self.c.n_keys = plan.n_keys
        self.c.n_cells = n
        self.c.cells = <Cell*>calloc(n + 1, sizeof(Cell))
        self.keys = <int*>calloc(plan.n_keys + 1, sizeof(int))  # not the plan's: it holds us, and a cycle would keep the table
        if self.c.cells == NULL or self.keys == NULL:
            raise MemoryError()
        memcpy(self.keys, plan.keys, plan.n_keys * sizeof(int))
        self.c.keys = self.keys
        self.c.view = table.view
        self.c.index = table.index
        for i in range(n):
            entry = schema.get(plan.columns[i])
            if entry is None:
                raise SchemaMismatchError(
                    f"table `{plan.name}` lacks the column `{plan.columns[i]}` that the features read",
                    hint=f"it has: {', '.join(schema) or 'none'}",
                )
            _, kind, offset, bit, width = entry
            if kind not in takes[plan.kinds[i]]:
                raise SchemaMismatchError(
                    f"Expected column `{plan.name}.{plan.columns[i]}` of type {plan.kinds[i]}, the table has {kind}",
                    hint="cast it before it enters the table, or declare its type in ri.Entity(columns=...)",
                )
            self.c.cells[i].slot = plan.wanted[i]
            self.c.cells[i].kind = {"f64": 0, "i64": 1, "str": 2, "bytes": 2, "vec": 3}[kind]
            self.c.cells[i].bit = bit
            self.c.cells[i].offset = offset
            self.c.cells[i].width = width

    def __dealloc__(self):
        free(self.c.cells)
        free(self.keys)


@cython.final
cdef class EntityPlan:
    """How an entity's stored columns get into slots, whatever the table's current generation."""

    def __init__(self, str name not None, TableSlot slot not None, int section, tuple keys, tuple wanted, tuple columns,
                 tuple kinds):
        cdef int i
        self.name = name
        self.slot = slot
        self.section = section
        self.wanted = wanted
        self.columns = columns
        self.kinds = kinds
        self.n_keys = len(keys)
        self.keys = <int*>calloc(len(keys) + 1, sizeof(int))
        if self.keys == NULL:
            raise MemoryError()
        for i in range(self.n_keys):
            self.keys[i] = keys[i]
        self.bound = Bound(self, slot.table)

    def __dealloc__(self):
        free(self.keys)

    cdef Bound current(self):
        """The plan for the table that the store points to now. Take it once per call."""
        if self.bound.table is not self.slot.table:
            self.bound = Bound(self, self.slot.table)
        return self.bound


@cython.final
@cython.no_gc_clear  # __dealloc__ closes the lane through `model`, which a collected cycle would have set to None
cdef class Workspace:
    def __dealloc__(self):
        cdef int t
        if self.lane != NULL:
            self.model.close_lane(self.lane)
        free_scratch(self.tree_scratch)
        free_scratch(self.reason_scratch)
        free(self.leaves)
        free(self.picked)
        free(self.n_picked)
        free(self.occluded)
        for t in range(self.n_tensors):
            if self.tensors != NULL:
                ri_aligned_free(self.tensors[t])
            if self.masks != NULL:
                ri_aligned_free(self.masks[t])
            if self.wide_masks != NULL:
                ri_aligned_free(self.wide_masks[t])
            if self.templates != NULL:
                ri_aligned_free(self.templates[t])
            if self.template_masks != NULL:
                ri_aligned_free(self.template_masks[t])
        free(self.tensors)
        free(self.masks)
        free(self.wide_masks)
        free(self.templates)
        free(self.template_masks)
        free(self.rows)
        free(self.mask_rows)
        free(self.inputs)
        free(self.found)
        free(self.keys)
        free(self.numbers)
        free(self.kept)
        free(self.ranked)
        free(self.why)
        free(self.set_cells)
        free(self.kept_rows)
        free(self.order)
        free(self.seen)
        free(self.cross)
        free(self.cross_keys)
        free(self.cross_rows)
        free(self.key_scratch)

    cdef int reserve(self, int64_t n) except -1:
        """Room for n candidates. Kept for the next call: a ranker's lists have similar lengths."""
        cdef int64_t size = 1024
        if n <= self.capacity:
            return 0
        self.set_size = 0
        while size < n:
            size *= 2
        free(self.found)
        free(self.keys)
        free(self.numbers)
        free(self.kept)
        free(self.ranked)
        free(self.why)
        free(self.set_cells)
        free(self.kept_rows)
        free(self.order)
        self.found = self.kept = self.set_cells = self.kept_rows = self.order = NULL
        self.keys = NULL
        self.numbers = NULL
        self.ranked = NULL
        self.why = NULL
        self.capacity = 0
        self.found = <int32_t*>malloc(size * sizeof(int32_t))
        self.keys = <StrRef*>malloc(size * sizeof(StrRef))
        self.numbers = <int64_t*>malloc(size * sizeof(int64_t))
        self.kept = <int32_t*>malloc(size * sizeof(int32_t))
        self.ranked = <float*>malloc(size * sizeof(float))
        self.why = <uint8_t*>malloc(size)
        self.kept_rows = <int32_t*>malloc(size * sizeof(int32_t))
        self.order = <int32_t*>malloc(size * sizeof(int32_t))
        self.set_cells = <int32_t*>malloc(4 * size * sizeof(int32_t))
        if (self.found == NULL or self.keys == NULL or self.numbers == NULL or self.kept == NULL or self.ranked == NULL
                or self.why == NULL or self.set_cells == NULL or self.kept_rows == NULL or self.order == NULL):
            raise MemoryError()
        self.set_size = 4 * size
        self.capacity = size
        return 0

    cdef int reserve_set(self, int64_t size) except -1:
        """Room for exclusions beside the candidates."""
        free(self.set_cells)
        self.set_size = 0
        self.set_cells = <int32_t*>malloc(size * sizeof(int32_t))
        if self.set_cells == NULL:
            raise MemoryError()
        self.set_size = size
        return 0


@cython.final
cdef class Occlusion:
    def __init__(self, Program program not None, *, tuple names not None, int most, blanks, tensors, masks):
        cdef int i, t, width
        cdef const uint8_t[::1] row
        cdef ri_text* texts
        self.names = names
        self.most = most
        self.n_groups = len(names)
        self.keep = []
        blanks = sorted(blanks)
        rows, mask_rows = [], []
        for t, (_, dtype, cells, _, mask, _) in enumerate(program.tensors):
            if dtype == RI_STRING:
                made = bytearray(max(1, cells) * sizeof(ri_text))
                texts = <ri_text*>PyByteArray_AS_STRING(made)
                for i in range(cells):
                    text = tensors[t][i].encode()
                    self.keep.append(text)
                    texts[i].data = PyBytes_AS_STRING(text)
                    texts[i].size = PyBytes_GET_SIZE(text)
            else:
                made = bytearray(np.ascontiguousarray(tensors[t]).tobytes())
            rows.append(made)
            mask_rows.append(None if mask is None else bytearray((np.asarray(masks[t]) != 0).astype(np.uint8).tobytes()))
        self.keep += rows + mask_rows
        self.blanks = <Blank*>calloc(len(blanks) + 1, sizeof(Blank))
        if self.blanks == NULL:
            raise MemoryError()
        self.n_blanks = len(blanks)
        for i, (group, tensor, is_mask, first, count) in enumerate(blanks):
            row = (mask_rows if is_mask else rows)[tensor]
            width = 1 if is_mask else ri_dtype_size(program.tensors[tensor][1])
            if not 0 <= group < self.n_groups or first < 0 or count < 1 or (first + count) * width > row.shape[0]:
                raise ConfigError(f"Expected cells of tensor {tensor} and one of {self.n_groups} groups, got {(group, first, count)}")
            self.blanks[i].group = group
            self.blanks[i].tensor = tensor
            self.blanks[i].is_mask = is_mask
            self.blanks[i].offset = first * width
            self.blanks[i].size = count * width
            self.blanks[i].value = &row[first * width]

    def __dealloc__(self):
        free(self.blanks)


cdef bytes plain_bytes(object body, int64_t max_bytes):
    """A body that is not plain bytes, copied once its size is known to be allowed. Only the type is asked."""
    cdef int64_t size
    cdef type given = type(body)
    if not issubclass(given, (bytes, bytearray, memoryview)):
        raise FeatureTypeError(f"Expected bytes, got `{given.__name__}`", path="$", hint="encode text as UTF-8 first")
    try:
        view = memoryview(body)
        size = view.nbytes
        if size > max_bytes:
            raise LimitError(f"Expected at most {max_bytes} bytes, got {size}")
        return view.tobytes()
    except (ValueError, BufferError) as exc:
        raise FeatureTypeError(f"Expected bytes, got a `{given.__name__}` that cannot be read: {exc}", path="$") from exc


cdef list plain_list(object items, str path, str what, int64_t most):
    """A list of our own of what the caller gave; at most one more than `most`, so that an endless iterator ends."""
    if type(items) is list or type(items) is tuple:
        return list(items)
    if issubclass(type(items), (str, bytes, bytearray)):
        raise FeatureTypeError(f"Expected a list of {what}, got `{type(items).__name__}` {clip(items)}", path=path,
                               hint="one alone goes into a list too")
    try:
        each = iter(items)
    except TypeError as exc:
        raise FeatureTypeError(f"Expected a list of {what}, got `{type(items).__name__}`", path=path) from exc
    return list(islice(each, most + 1))


cdef int64_t how_many(object k) except -1:
    """`k` of a ranking: an integer from 1 on."""
    cdef int overflow = 0
    cdef int64_t number
    cdef type given = type(k)
    if not PyLong_CheckExact(k):
        if given is bool or not issubclass(given, (int, np.integer)):
            raise FeatureTypeError(f"Expected `int`, got `{given.__name__}` {clip(k)}", path="$.k")
        k = int.__index__(k) if issubclass(given, int) else k.item()
    number = PyLong_AsLongLongAndOverflow(k, &overflow)
    if overflow or number < 1:
        raise FeatureRangeError(f"Expected k from 1 to {INT64_MAX}, got {clip(k)}", path="$.k")
    return number


cdef object own_id(object request_id):
    """The caller's id of a request, as text that every encoding can hold."""
    cdef Py_ssize_t size = 0
    if not issubclass(type(request_id), str):
        raise FeatureTypeError(f"Expected `str`, got `{type(request_id).__name__}` {clip(request_id)}", path="$.request_id")
    if type(request_id) is not str:
        request_id = str.__str__(request_id)
    try:
        utf8_of(request_id, &size)
    except UnicodeEncodeError:
        raise FeatureRangeError("Expected text that UTF-8 can hold, got a lone surrogate", path="$.request_id") from None
    return request_id


cdef inline bint smaller_id(StrRef ka, StrRef kb, int64_t na, int64_t nb, bint text) noexcept nogil:
    """Is id a smaller than id b? It decides between equal scores, so that the order is the same every time."""
    cdef int64_t size
    cdef int order
    if not text:
        return na < nb
    size = ka.size if ka.size < kb.size else kb.size
    order = memcmp(ka.data, kb.data, <size_t>size)
    return order < 0 or (order == 0 and ka.size < kb.size)


cdef const char* EMPTY = ""

cdef enum:
    MAX_EXCLUDED = 1 << 20

cdef uint8_t SEEN_AS[5]  # by state of a flag: 1 missing, 2 stale, 4 unavailable
SEEN_AS[:] = [1, 1, 1, 2, 1 | 4]

_OBSERVE_HINT = 'declare a stream of requests, streams={"payment": None}, and windows over it'

cdef int64_t FOREVER = <int64_t>1 << 62  # as in deadline.py
cdef object CRITICAL = "critical"  # interned, as the literal of whoever calls
cdef enum:
    CALIBRATE_NS = 2_000_000    # a load keeps the GIL no longer at a time while it measures
    PROBE_EVERY = 32            # of the calls that time seems too short for, one is let through: it may have become faster
    LEAST_SLACK_NS = 1_000_000  # waking up after a wait takes some time too


cdef void load_record(Lookup* plan, ri_state* st, int64_t row) noexcept nogil:
    """Stored columns of a row -> slots; all unknown for row -1."""
    cdef const uint8_t* record
    cdef ri_slot* s
    cdef Cell* cell
    cdef StrRef text
    cdef int64_t updated
    cdef int i
    if row < 0:
        for i in range(plan.n_cells):
            st.slots[plan.cells[i].slot].state = RI_UNKNOWN
        return
    record = ri_record(&plan.view, row)
    updated = ri_updated_at_ns(record)
    if updated == 0:
        updated = INT64_MIN
    for i in range(plan.n_cells):
        cell = plan.cells + i
        s = st.slots + cell.slot
        s.hashed = 0
        s.calendar = 0
        s.updated_ns = updated
        if not ri_cell_present(record, cell.bit):
            s.state = RI_NULL
            continue
        s.state = RI_PRESENT
        if cell.kind == 0:
            s.v.f = ri_cell_f64(record, cell.offset)
        elif cell.kind == 1:
            if s.kind == RI_SLOT_F64:
                s.v.f = <double>ri_cell_i64(record, cell.offset)
            else:
                s.v.i = ri_cell_i64(record, cell.offset)
        elif cell.kind == 2:
            text = ri_cell_str(&plan.view, record, cell.offset)
            s.v.text = text.data
            s.n = text.size
        else:
            s.v.vector = ri_cell_vec(record, cell.offset)
            s.n = cell.width


cdef inline void put_slots(ri_slot* slots, const ri_slot* values, const int* numbers, int n) noexcept nogil:
    cdef int i
    for i in range(n):
        slots[numbers[i]] = values[i]


cdef int add_segment(Segment* segments, int n, Program program, int column, int64_t source) noexcept:
    """Add a column's cells; neighbours in both places become one copy. Returns the number of segments."""
    cdef int tensor = program.columns[column].tensor, width = ri_dtype_size(program.columns[column].dtype)
    cdef int64_t target = program.columns[column].offset * width, size = program.columns[column].width * width
    if n > 0 and segments[n - 1].tensor == tensor and segments[n - 1].target + segments[n - 1].size == target \
            and segments[n - 1].source + segments[n - 1].size == source:
        segments[n - 1].size += size
        return n
    segments[n].tensor = tensor
    segments[n].source = source
    segments[n].target = target
    segments[n].size = size
    return n + 1


@cython.final
cdef class Prepared:
    """See engine.pyi. Made by `Engine.prepare` alone."""


@cython.final
cdef class Engine:
    """See engine.pyi. Built by `pipeline.Pipeline`, which says what the arguments are."""

    def __init__(self, *, Program program not None, RequestReader reader not None, OrtModel model=None, session=None, TreeModel trees=None, int tree_column=0,
                 tuple inputs, tuple bands, int n_common_bands, dict segments, int segment_slot, str review_action, tuple plans, dict sections,
                 int candidate_slot, bint candidate_is_text, str release, str block_name, decision_type not None, ranking_type not None,
                 decode, encode, decode_ids=None, clock not None, int64_t max_bytes, int max_depth, int64_t max_rows, bint row_independent, bint has_clock,
                 double score_low=-np.inf, double score_high=np.inf, double hold_below_us=100.0, int64_t max_item_age_ns=0,
                 Resolver resolver=None, int64_t budget_ns=FOREVER, ForestReasons reasons=None, Occlusion occlusion=None,
                 bint is_system_clock=False, Permits permits=None, event_type=None, tuple trace=(), tuple moves=()):
        cdef int i, t
        cdef int64_t before
        self.program = program
        self.reader = reader
        self.model = model
        self.trees = trees
        self.tree_column = tree_column
        self.session = session
        self.reasons = reasons
        self.occlusion = occlusion
        self.rows_each = 1
        if reasons is not None:
            self.most, self.reason_names = reasons.most, reasons.names
            # leaves of some rows at a time: they are read back while they are near
            self.reason_rows = min(256, max(8, (1 << 18) // max(1, trees.n_trees)))
        elif occlusion is not None:
            self.most, self.reason_names = occlusion.most, occlusion.names
            self.rows_each = 1 + occlusion.n_groups
        self.release = release
        self.arm = "default"
        self.trace = trace
        self.moves = moves
        self.next_move_ns = moves[0][0] if moves else FOREVER
        self.hold_below_us = hold_below_us
        self.score_low = score_low
        self.score_high = score_high
        self.tile = TILE if row_independent else 1
        self.has_clock = has_clock
        self.resolver = resolver
        self.budget_ns = budget_ns
        self.is_system_clock = is_system_clock
        self.permits = permits
        self.event_type = event_type
        self.run_clock = StageClock("run")
        self.wait_clock = StageClock("wait")
        self.whole_clock = StageClock("whole")
        self.sized_clocks = [None] * 64
        if resolver is not None:
            self.n_live_cross = resolver.n_cross_cells
            self.live_slots = resolver.cross_slots
            if resolver.waits or resolver.n_aliases:
                reader.keeps_texts = True  # other code runs while slots point into the request's texts
        self.pool = []
        self.all_plans = plans
        self.context_plans = tuple(p for p in plans if (<EntityPlan>p).section == 0)
        self.cross_plans = tuple(p for p in plans if (<EntityPlan>p).section == 2)
        self.n_cross_plans = len(self.cross_plans)
        items = [p for p in plans if (<EntityPlan>p).section == 1]
        if len(items) > 1:
            raise SchemaMismatchError("several entities are keyed by the candidate alone", hint="merge them into one table")
        self.item_plan = items[0] if items else None
        self.candidate_slot = candidate_slot
        self.candidate_text = candidate_is_text
        self.input_plan = inputs
        self.n_inputs = len(inputs)
        self.decision_type = decision_type
        self.ranking_type = ranking_type
        self.decode_json = decode
        self.encode_json = encode
        self.decode_ids = decode_ids
        self.max_bytes = max_bytes
        self.max_depth = max_depth
        self.max_rows = max_rows
        self.clock = clock
        self.block_name = block_name
        self.flags_name = block_name + ".flags"
        self.max_item_age_ns = max_item_age_ns
        self.segments = segments
        self.segment_slot = segment_slot
        self.review_action = review_action
        self.n_bands = len(bands)
        self.n_common_bands = n_common_bands
        self.actions = tuple(action for action, _ in bands)
        self.outside = <uint64_t*>calloc(program.c.n_columns + 1, 8)
        self.thresholds = <float*>calloc(len(bands) + 1, sizeof(float))
        self.row_bytes = <int64_t*>calloc(program.c.n_tensors + 1, 8)
        self.cells = <int64_t*>calloc(program.c.n_tensors + 1, 8)
        self.tensor_is_context = <int*>calloc(program.c.n_tensors + 1, sizeof(int))
        self.mask_dtype = <int*>calloc(program.c.n_tensors + 1, sizeof(int))
        self.input_bytes = <int64_t*>calloc(self.n_inputs + 1, 8)
        self.input_is_context = <int*>calloc(self.n_inputs + 1, sizeof(int))
        self.context_columns = <uint16_t*>calloc(program.c.n_columns + 1, 2)
        self.item_columns = <uint16_t*>calloc(program.c.n_columns + 1, 2)
        self.cross_columns = <uint16_t*>calloc(program.c.n_columns + 1, 2)
        self.item_segments = <Segment*>calloc(program.c.n_columns + 1, sizeof(Segment))
        self.context_segments = <Segment*>calloc(program.c.n_columns + 1, sizeof(Segment))
        if (self.thresholds == NULL or self.outside == NULL or self.row_bytes == NULL or self.cells == NULL or self.mask_dtype == NULL or self.tensor_is_context == NULL
                or self.input_bytes == NULL or self.input_is_context == NULL or self.context_columns == NULL or self.item_columns == NULL
                or self.cross_columns == NULL or self.item_segments == NULL or self.context_segments == NULL):
            raise MemoryError()
        for i in range(self.n_bands):
            self.thresholds[i] = bands[i][1]
        for t in range(program.c.n_tensors):
            _, dtype, cells, context, mask, mask_dtype = program.tensors[t]
            self.cells[t] = cells
            self.row_bytes[t] = cells * ri_dtype_size(dtype)
            self.mask_dtype[t] = mask_dtype
            self.has_text = self.has_text or dtype == RI_STRING
            self.has_masks = self.has_masks or mask is not None
            self.tensor_is_context[t] = context
        for i in range(self.n_inputs):
            is_mask, t, _ = inputs[i]
            _, dtype, cells, context, _, mask_dtype = program.tensors[t]
            self.input_bytes[i] = cells * ri_dtype_size(mask_dtype if is_mask else dtype)
            self.input_is_context[i] = context
        for i in range(program.c.n_columns):
            section = sections["columns"][i]
            if section == "context":
                self.context_columns[self.n_context] = i
                self.n_context += 1
                self.n_context_segments = add_segment(
                    self.context_segments, self.n_context_segments, program, i,
                    program.columns[i].offset * ri_dtype_size(program.columns[i].dtype))
            elif section == "item":
                self.item_columns[self.n_item] = i
                self.n_item += 1
                before = self.item_row_bytes
                self.item_row_bytes += program.columns[i].width * ri_dtype_size(program.columns[i].dtype)
                self.n_item_segments = add_segment(self.item_segments, self.n_item_segments, program, i, before)
            else:
                self.cross_columns[self.n_cross] = i
                self.n_cross += 1

    def __dealloc__(self):
        free(self.thresholds)
        free(self.outside)
        free(self.row_bytes)
        free(self.cells)
        free(self.mask_dtype)
        free(self.tensor_is_context)
        free(self.input_bytes)
        free(self.input_is_context)
        free(self.context_columns)
        free(self.item_columns)
        free(self.cross_columns)
        free(self.item_segments)
        free(self.context_segments)

    def outside_counts(self) -> dict:
        """Column -> how many values lay outside its training range since the engine was made."""
        cdef Workspace ws
        cdef dict counts = {}
        cdef uint64_t total
        cdef int i
        for i in range(self.program.c.n_columns):
            total = self.outside[i]
            for one in list(self.pool):
                ws = <Workspace>one
                total += ws.state.st.outside[i]
            if total:
                counts[self.program.column_names[i]] = total
        return counts

    # ---- workspaces --------------------------------------------------------------------------------------------------

    cdef Workspace pop(self):
        if self.pool:
            return <Workspace>self.pool.pop()
        return self._new_workspace()

    cdef void push(self, Workspace ws) noexcept:
        cdef int i
        ws.call = NULL
        ws.state.release()
        ws.items = None  # a table that was replaced is freed now, not when this memory is used again
        ws.item_lookup = NULL
        ws.block = ws.flags = NULL
        if len(self.pool) < MAX_POOL:
            self.pool.append(ws)
        else:
            for i in range(self.program.c.n_columns):
                self.outside[i] += ws.state.st.outside[i]

    def _new_workspace(self):
        cdef Workspace ws = Workspace.__new__(Workspace)
        cdef int n = self.program.c.n_tensors, t, i, j
        cdef RunError err
        cdef bint text = False
        ws.state = self.program.new_state()
        if self.resolver is not None:
            ws.lease = self.resolver.new_lease(ws.state)
        ws.n_tensors = n
        ws.model = self.model
        ws.tensors = <uint8_t**>calloc(n + 1, sizeof(uint8_t*))
        ws.masks = <uint8_t**>calloc(n + 1, sizeof(uint8_t*))
        ws.wide_masks = <uint8_t**>calloc(n + 1, sizeof(uint8_t*))
        ws.rows = <uint8_t**>calloc(n + 1, sizeof(uint8_t*))
        ws.mask_rows = <uint8_t**>calloc(n + 1, sizeof(uint8_t*))
        ws.templates = <uint8_t**>calloc(n + 1, sizeof(uint8_t*))
        ws.template_masks = <uint8_t**>calloc(n + 1, sizeof(uint8_t*))
        ws.inputs = <TensorRef*>calloc(self.n_inputs + 1, sizeof(TensorRef))
        ws.seen = <uint8_t*>calloc(self.program.c.n_columns + 1, 1)
        ws.cross = <Lookup**>calloc(self.n_cross_plans + 1, sizeof(void*))
        ws.cross_keys = <StrRef*>calloc(TILE, sizeof(StrRef))
        ws.cross_rows = <int32_t*>calloc(TILE * (self.n_cross_plans + 1), sizeof(int32_t))
        if (ws.tensors == NULL or ws.masks == NULL or ws.wide_masks == NULL or ws.rows == NULL or ws.mask_rows == NULL
                or ws.templates == NULL or ws.template_masks == NULL or ws.inputs == NULL or ws.seen == NULL or ws.cross == NULL
                or ws.cross_keys == NULL or ws.cross_rows == NULL):
            raise MemoryError()
        for t in range(n):
            _, dtype, cells, _, mask, mask_dtype = self.program.tensors[t]
            ws.tensors[t] = <uint8_t*>ri_aligned(TILE * self.row_bytes[t])
            ws.templates[t] = <uint8_t*>ri_aligned(self.row_bytes[t])
            if ws.tensors[t] == NULL or ws.templates[t] == NULL:
                raise MemoryError()
            memset(ws.tensors[t], 0, TILE * self.row_bytes[t])
            memset(ws.templates[t], 0, self.row_bytes[t])
            text = text or dtype == RI_STRING
            if mask is not None:
                ws.masks[t] = <uint8_t*>ri_aligned(TILE * cells)
                ws.wide_masks[t] = <uint8_t*>ri_aligned(TILE * cells * 8)
                ws.template_masks[t] = <uint8_t*>ri_aligned(cells)
                if ws.masks[t] == NULL or ws.wide_masks[t] == NULL or ws.template_masks[t] == NULL:
                    raise MemoryError()
                memset(ws.masks[t], 0, TILE * cells)
                memset(ws.wide_masks[t], 0, TILE * cells * 8)
                memset(ws.template_masks[t], 0, cells)
        for i in range(self.n_inputs):
            is_mask, t, shape = self.input_plan[i]
            _, dtype, cells, context, _, mask_dtype = self.program.tensors[t]
            ws.inputs[i].data = ws.wide_masks[t] if is_mask else ws.tensors[t]
            ws.inputs[i].dtype = mask_dtype if is_mask else dtype
            ws.inputs[i].rank = len(shape) + 1
            ws.inputs[i].dims[0] = 1
            for j in range(len(shape)):
                ws.inputs[i].dims[j + 1] = shape[j]
        self._set_rows(ws, 1)
        if self.most:
            ws.picked = <int32_t*>malloc(TILE * self.most * sizeof(int32_t))
            ws.n_picked = <int32_t*>calloc(TILE, sizeof(int32_t))
            ws.leaves = <int32_t*>malloc((1 + (0 if self.reasons is None else self.reason_rows * self.trees.n_trees)) * sizeof(int32_t))
            ws.occluded = <float*>malloc(self.rows_each * sizeof(float))
            if ws.picked == NULL or ws.n_picked == NULL or ws.leaves == NULL or ws.occluded == NULL:
                raise MemoryError()
            if self.reasons is not None:
                ws.reason_scratch = self.reasons.new_scratch()
        if self.trees is not None:
            ws.tree_scratch = self.trees.new_scratch()
        elif self.model is not None and not text:
            ws.lane = self.model.open_lane(ws.inputs, 1, &err)  # NULL: run_scores will say what is wrong
        return ws

    cdef void _set_rows(self, Workspace ws, int64_t n) noexcept nogil:
        """Tell ONNX Runtime how many rows this call has; context tensors keep their one."""
        cdef int i
        cdef int64_t rows
        for i in range(self.n_inputs):
            rows = 1 if self.input_is_context[i] and self.candidate_slot >= 0 else n
            ws.inputs[i].dims[0] = rows
            ws.inputs[i].nbytes = <size_t>(rows * self.input_bytes[i])

    cdef void _widen_masks(self, Workspace ws, int64_t n) noexcept nogil:
        """Mask bytes -> the dtype that the model wants."""
        cdef int t
        cdef int64_t i, count
        for t in range(ws.n_tensors):
            if ws.masks[t] == NULL:
                continue
            count = n * self.cells[t]
            if self.mask_dtype[t] == 9:
                memcpy(ws.wide_masks[t], ws.masks[t], <size_t>count)
            elif self.mask_dtype[t] == 1:
                for i in range(count):
                    (<float*>ws.wide_masks[t])[i] = ws.masks[t][i]
            elif self.mask_dtype[t] == 6:
                for i in range(count):
                    (<int32_t*>ws.wide_masks[t])[i] = ws.masks[t][i]
            else:
                for i in range(count):
                    (<int64_t*>ws.wide_masks[t])[i] = ws.masks[t][i]

    # ---- admission: time and permits -------------------------------------------------------------------------------------

    cdef inline int64_t monotonic_ns(self) except? -1:
        return ri_monotonic_ns() if self.is_system_clock else <int64_t>self.clock.monotonic_ns()

    cdef inline int64_t wall_ns(self) except? -1:
        return ri_wall_ns() if self.is_system_clock else <int64_t>self.clock.wall_ns()

    cdef int enter(self, Call* call, object priority, int64_t budget_ns, StageClock stage, int64_t began_ns) except -1:
        """A call begins: its clock, its question for time (later by `admit` where `stage` is not known yet), its permit.

        began_ns: when its caller asked, if that was earlier; it has waited since then.

        Whoever calls this calls `leave` in a `finally`. Nothing is held when it raises.
        """
        call.code = PRIORITY_CRITICAL if priority is CRITICAL else priority_code(priority)
        call.permit = call.waiting = call.waited_ns = 0
        call.timed = call.is_probe = False
        call.stage = NULL
        call.end_ns = FOREVER
        if budget_ns == 0:
            budget_ns = self.budget_ns
        if budget_ns < FOREVER:
            call.timed = True
            call.start_ns = ri_monotonic_ns() if self.is_system_clock else self.monotonic_ns()  # a call less
            call.end_ns = call.start_ns + budget_ns
            if began_ns:
                budget_ns -= self.began_earlier(call, began_ns)
            if stage is not None and budget_ns < stage.c.p99_ns:
                self.short_of_time(call, &stage.c, budget_ns)
        elif self.hook is not None:
            call.timed = True
            call.start_ns = self.monotonic_ns()
            if began_ns:
                self.began_earlier(call, began_ns)
        if stage is not None:
            call.stage = &stage.c
        if self.permits is not None:
            call.permit = permit_enter(self.permits, call.code)
        return 0

    cdef int64_t began_earlier(self, Call* call, int64_t began_ns) noexcept:
        """The call stood in a queue: of its time so much is gone."""
        cdef int64_t gone = max(0, call.start_ns - began_ns)
        call.start_ns -= gone
        if call.end_ns < FOREVER:
            call.end_ns -= gone
        call.waited_ns = gone
        return gone

    cdef int admit(self, Call* call, int64_t n) except -1:
        """The question for time of a call over n rows or candidates, once they are counted."""
        cdef StageClock stage
        cdef int64_t left
        if not call.timed:
            return 0
        stage = self.sized(n)
        call.stage = &stage.c
        if call.end_ns < FOREVER:
            left = call.end_ns - self.monotonic_ns()
            if left < stage.c.p99_ns:
                self.short_of_time(call, &stage.c, left)
        return 0

    cdef StageClock sized(self, int64_t n):
        """The clock of calls of about n rows: one an octave."""
        cdef int octave = 0
        cdef StageClock stage
        while n >> octave > 1:
            octave += 1
        found = self.sized_clocks[octave]
        if found is None:
            stage = StageClock(f"run/{1 << octave}", <int64_t>(1000.0 * (self.fixed_us + (1 << octave) * self.row_us)))
            found = self.sized_clocks[octave] = stage
        return <StageClock>found

    cdef int short_of_time(self, Call* call, ri_stage* stage, int64_t left_ns) except -1:
        """Refuse the work; but every 32nd time it is tried all the same."""
        self.n_short += 1
        if self.n_short % PROBE_EVERY == 0 and left_ns > 0:
            call.is_probe = True
            return 0
        self.n_refused_time += 1
        error = DeadlineExceededError(
            f"{left_ns / 1e6:.3g} ms are left of the deadline, and 99 of 100 such calls took up to {stage.p99_ns / 1e6:.3g} ms lately",
            hint="nothing was computed; give the call more time, or a lighter model",
        )
        self.tell_began(error, call)
        raise error

    cdef void untimed(self, Call* call) noexcept:
        """A call of a tool: no permit, no deadline, nobody is told."""
        memset(call, 0, sizeof(Call))
        call.end_ns = FOREVER

    cdef void leave(self, Call* call) noexcept:
        if call.permit and self.permits is not None:
            permit_leave(self.permits, call.permit)
            call.permit = 0

    cdef object conclude(self, Call* call, object answer, object request, object priority):
        """The answer is there: in time or not, how long it took, who is told."""
        cdef int64_t now, took
        if call.timed:
            now = ri_monotonic_ns() if self.is_system_clock else self.monotonic_ns()
            took = now - call.start_ns
            if call.stage != NULL:
                ri_stage_note(call.stage, took - call.waited_ns)
            if call.waited_ns:
                ri_stage_note(&self.wait_clock.c, call.waited_ns)
                ri_stage_note(&self.whole_clock.c, took)
            if now > call.end_ns:
                self.refuse_late(now - call.end_ns)
            if call.is_probe and call.stage != NULL:
                ri_stage_ease(call.stage)
            if self.hook is not None:
                self.tell(answer, request, now, took, priority)
        if self.drill_every:
            self.drill(answer, request)
        return answer

    cdef int tell(self, object answer, object request, int64_t now_ns, int64_t took_ns, object priority) except -1:
        """One event an answer; a batch's `request` is the list of its requests. What a hook raises is counted and goes no further."""
        cdef int64_t wall_ns = ri_wall_at(now_ns) if self.is_system_clock else self.wall_ns(), i
        cdef list answers
        try:
            if type(answer) is not list:
                self.hook(self.event_type(answer, request, wall_ns, took_ns, priority))
                return 0
        except Exception:
            self.n_hook_failures += 1
            return 0
        answers = <list>answer
        for i in range(len(answers)):
            if type(answers[i]) is self.decision_type:
                try:
                    self.hook(self.event_type(answers[i], request[i], wall_ns, took_ns, priority))
                except Exception:
                    self.n_hook_failures += 1
        return 0

    cdef int drill(self, object answer, object request) except -1:
        """Every n-th answer is given to whoever tries other ways to the same answer; it must not wait."""
        cdef int64_t i
        cdef list answers
        if type(answer) is not list and self.drill_left > 1:
            self.drill_left -= 1
            return 0
        answers = <list>answer if type(answer) is list else [answer]
        for i in range(len(answers)):
            if type(answers[i]) is not self.decision_type and type(answers[i]) is not self.ranking_type:
                continue
            self.drill_left -= 1
            if self.drill_left > 0:
                continue
            self.drill_left = self.drill_every
            try:
                self.on_drill(request[i] if type(answer) is list else request, answers[i])
            except Exception:
                self.n_hook_failures += 1
        return 0

    cdef int refuse_late(self, int64_t late_ns) except -1:
        self.n_late += 1
        error = DeadlineExceededError(f"the answer came {late_ns / 1e6:.3g} ms after the deadline, and was dropped")
        error.late = True
        raise error

    def drop_late(self, int64_t late_ns):
        self.refuse_late(late_ns)

    cdef int begin_wait(self, Workspace ws) except -1:
        """Before a call waits: its permit goes back. Where too many wait already, it does not wait."""
        cdef Call* call = ws.call
        cdef int64_t waiting
        ws.options.may_ask = True
        if call == NULL:
            return 0
        if call.timed:
            call.wait_start_ns = self.monotonic_ns()
        if call.permit and self.permits is not None:
            waiting = permit_start_waiting(self.permits, call.permit)
            if waiting == 0:
                ws.options.may_ask = False
                return 0
            call.permit, call.waiting = 0, waiting
        return 0

    cdef void stop_wait(self, Workspace ws) noexcept:
        """Whatever became of it."""
        cdef Call* call = ws.call
        if call != NULL and call.waiting and self.permits is not None:
            call.permit = permit_stop_waiting(self.permits, call.waiting)
            call.waiting = 0

    cdef int end_wait(self, Workspace ws) except -1:
        """After the wait, and `stop_wait`: is there still time for what is left to do?"""
        cdef Call* call = ws.call
        cdef int64_t now
        if call == NULL or not call.timed:
            return 0
        now = self.monotonic_ns()
        call.waited_ns += now - call.wait_start_ns
        if now > ws.options.end_ns:  # by how much later than it should have: falls by an eighth each time
            self.wake_ns = max(now - ws.options.end_ns, self.wake_ns - (self.wake_ns >> 3))
        if call.end_ns < FOREVER and not call.is_probe and call.stage != NULL and call.end_ns - now < call.stage.p99_ns:
            self.short_of_time(call, call.stage, call.end_ns - now)
        return 0

    cdef int tell_error(self, Workspace ws) except -1:
        """In a `finally`: the error under way tells who answers instead whether the request was counted, and when it began."""
        error = sys.exc_info()[1]
        if isinstance(error, ServingError):
            if ws.lease is not None and ws.options.counted:
                error.counted = True
            self.tell_began(error, ws.call)
        return 0

    cdef int tell_began(self, object error, Call* call) except -1:
        if call != NULL and call.timed:
            error.began_ns = call.start_ns
        return 0

    @property
    def stages(self) -> dict:
        """Stage -> StageClock."""
        cdef dict found = {"run": self.run_clock}
        if self.waits:
            found["wait"] = self.wait_clock
            found["whole"] = self.whole_clock
        for stage in self.sized_clocks:
            if stage is not None:
                found[stage.name] = stage
        return found

    def set_hook(self, hook):
        if hook is not None and self.event_type is None:
            raise ConfigError("this engine was made without a type of events")
        self.hook = hook

    def set_permits(self, Permits permits):
        self.permits = permits

    def set_drill(self, on_drill, int64_t every):
        self.drill_every = 0
        self.on_drill = on_drill
        self.drill_left = self.drill_every = every if on_drill is not None and every > 0 else 0

    # ---- resolve: keys -> stored columns ------------------------------------------------------------------------------

    cdef int look_up(self, Lookup* plan, Workspace ws) noexcept nogil:
        """Find the entity's row and load its stored columns. An absent or null key is `unknown`. -1: out of memory."""
        cdef ri_slot* slots = ws.state.st.slots
        cdef ri_slot* s
        cdef KeyPart parts[16]
        cdef int64_t row = -1, number
        cdef size_t room = 0
        cdef int i
        cdef bint known = True
        for i in range(plan.n_keys):
            known = known and slots[plan.keys[i]].state == RI_PRESENT
        if known and plan.n_keys == 1:
            s = slots + plan.keys[0]
            if s.kind == RI_SLOT_TEXT:
                row = index_find(&plan.index, s.v.text, s.n)
            else:
                number = s.v.i
                row = index_find(&plan.index, <const char*>&number, 8)
        elif known:
            for i in range(plan.n_keys):
                s = slots + plan.keys[i]
                if s.kind == RI_SLOT_TEXT:
                    parts[i].text.data = s.v.text if s.n else EMPTY  # NULL would mean the number
                    parts[i].text.size = s.n
                else:
                    parts[i].text.data = NULL
                    parts[i].text.size = 8
                    parts[i].number = s.v.i
                room += ri_key_room(parts[i].text.size)
            if <int64_t>room > ws.key_room:
                free(ws.key_scratch)
                ws.key_room = 0
                ws.key_scratch = <char*>malloc(room)
                if ws.key_scratch == NULL:
                    return -1
                ws.key_room = <int64_t>room
            row = index_find(&plan.index, ws.key_scratch, ri_key_compose(parts, plan.n_keys, ws.key_scratch, room))
        load_record(plan, &ws.state.st, row)
        return 0

    # ---- one row -------------------------------------------------------------------------------------------------------

    cdef int resolve_row(self, object request, Workspace ws, int64_t now_ns, int64_t row) except -1:
        """Request and its entities -> slots."""
        cdef EntityPlan plan
        cdef Bound bound
        if self.resolver is not None:
            return self.resolve_all(request, ws, row)
        self.reader.read(request, ws.state, row)
        ws.state.st.n_flags = 0
        ws.state.st.review = 0
        if self.has_clock:
            ws.state.st.now_ns = now_ns if now_ns else self.wall_ns()
        for plan in self.all_plans:  # all of them first: what allocates may run a collection, and that anything
            plan.current()
        for plan in self.all_plans:
            bound = plan.bound
            if self.has_text:
                ws.state.keep.append(bound)  # string tensors point into the table until the model has run
            if self.look_up(&bound.c, ws):
                raise MemoryError()
        return 0

    cdef int begin(self, Workspace ws, int64_t now_ns, int64_t budget_ns, bint observe, object event_id, bint may_wait,
                   bint copy) except -1:
        """What a call brings beside its request; `budget_ns` is for waiting in calls that have no deadline. Before every call of an engine with a resolver; others refuse to observe."""
        if self.resolver is None:
            if observe:
                raise ConfigError("these features count no events: there is nothing to observe", hint=_OBSERVE_HINT)
            if event_id is not None:
                raise ConfigError("Expected no event_id: these features count no events", hint=_OBSERVE_HINT)
            return 0
        ws.options.counted = False
        self.resolver.check_event(&ws.options, observe, event_id)
        ws.options.now_ns = now_ns if now_ns else self.wall_ns()
        ws.options.is_told = now_ns != 0
        ws.options.end_ns = FOREVER
        ws.options.may_wait = may_wait
        ws.options.may_ask = True
        if self.resolver.waits:
            if ws.call != NULL and ws.call.end_ns < FOREVER:
                ws.options.end_ns = self.wait_until(ws.call)
            else:
                ws.options.end_ns = self.end_of(budget_ns)
        ws.lease.begin(copy or self.has_text)
        return 0

    cdef int64_t wait_until(self, Call* call) noexcept:
        """So that what is left to do after waiting still fits. Waking up takes its time too: what it took lately and half of it
        again, at least 1 ms or a tenth of the budget, at most a quarter."""
        cdef int64_t budget = call.end_ns - call.start_ns, slack = min(<int64_t>LEAST_SLACK_NS, budget // 10)
        slack = max(slack, min(budget // 4, self.wake_ns + self.wake_ns // 2))
        return call.end_ns - slack - (0 if call.stage == NULL else min(call.stage.p99_ns, budget))

    cdef inline int64_t moment(self, Workspace ws) noexcept:
        """When the request happened: its event time, else the moment of the call."""
        cdef ri_slot* s
        if self.program.event_slot >= 0:
            s = ws.state.st.slots + self.program.event_slot
            if s.state == RI_PRESENT:
                return s.v.i
        return ws.options.now_ns

    cdef int resolve_all(self, object request, Workspace ws, int64_t row) except -1:
        """`resolve_row` for an engine with a resolver; `begin` has run."""
        self.reader.read(request, ws.state, row)
        ws.state.st.n_flags = 0
        ws.state.st.review = 0
        ws.state.st.now_ns = ws.options.now_ns
        return self.look_up_all(ws, self.all_plans, self.resolver.plans, row)

    cdef int look_up_all(self, Workspace ws, tuple snapshots, tuple live, int64_t row) except -1:
        """Slots of the request -> slots of its entities. Whoever has to wait does so first; then no Python code runs until all
        rows are read and the windows are read and added to, so that one request sees one moment."""
        cdef Resolver resolver = self.resolver
        cdef Lease lease = ws.lease
        cdef ri_state* st = &ws.state.st
        cdef EntityPlan plan
        cdef Bound bound
        cdef int64_t at_ns = self.moment(ws), start = 0
        cdef int wanted
        if resolver.n_aliases:
            resolver.rename(lease, st, at_ns)
        if lease.timed:
            start = self.clock.monotonic_ns()
        if resolver.shared:
            resolver.prepare_windows(lease, st, at_ns, &ws.options, row)
            self.begin_wait(ws)
            try:
                resolver.use_shared(lease, st, &ws.options)
                ws.options.counted = ws.options.observe and ws.options.may_ask
            finally:
                self.stop_wait(ws)
            self.end_wait(ws)
            if lease.timed:
                lease.windows_ns = <int64_t>self.clock.monotonic_ns() - start
                start += lease.windows_ns
        while True:
            resolver.read_clocks(lease)
            for plan in snapshots:  # what allocates may run a collection, and that anything
                plan.current()
            if resolver.n_windows and not resolver.shared:  # their memory is on its way while tables are read
                resolver.prepare_windows(lease, st, at_ns, &ws.options, row)
            wanted = resolver.probe(lease, st, live)
            if wanted < 0:
                raise MemoryError()
            if wanted == 0:
                break
            self.begin_wait(ws)
            try:
                resolver.fetch_row(lease, st, live, &ws.options)
            finally:
                self.stop_wait(ws)
            self.end_wait(ws)
        for plan in snapshots:
            bound = plan.bound
            if lease.copy:  # other code will run before the slots are read
                ws.state.keep.append(bound)
            if self.look_up(&bound.c, ws):
                raise MemoryError()
        if lease.timed:  # the one call whose request is not read at one moment
            lease.tables_ns = <int64_t>self.clock.monotonic_ns() - start
            start += lease.tables_ns
        if resolver.n_windows and not resolver.shared:
            if lease.timed:  # the clock was read: other code ran
                resolver.prepare_windows(lease, st, at_ns, &ws.options, row)
            resolver.use_windows(lease, st, ws.options.observe)
            ws.options.counted = ws.options.observe
            if lease.timed:
                lease.windows_ns = <int64_t>self.clock.monotonic_ns() - start
        return 0

    cdef int prefetch(self, list items, int64_t start, int64_t end, int64_t first_row, Workspace ws) except -1:
        """Ask the sources for what requests [start, end) will miss, all in one go; rows that are no requests say so later.

        They are resolved next, before other rows enter the tables: a small table may have no room for more.
        """
        cdef Resolver resolver = self.resolver
        cdef Lease lease = ws.lease
        cdef ri_state* st = &ws.state.st
        cdef dict missing = {}
        cdef int64_t i
        if start % TILE == 0:
            lease.new_tile()
        else:
            lease.fetch_again()
        if resolver.has_sources and end - start > 1:
            resolver.read_clocks(lease)
            for i in range(start, end):
                try:
                    self.reader.read(items[i], ws.state, i + first_row)
                    if resolver.n_aliases:
                        resolver.rename(lease, st, self.moment(ws))
                    resolver.note_missing(lease, st, resolver.plans, missing)
                except RetailInferError:
                    continue
            self.fetch_many(ws, missing)
        return 0

    cdef int fetch_many(self, Workspace ws, dict missing) except -1:
        if not missing:
            return self.resolver.fetch(ws.lease, missing, &ws.options, True)
        self.begin_wait(ws)
        try:
            self.resolver.fetch(ws.lease, missing, &ws.options, True)
        finally:
            self.stop_wait(ws)
        return self.end_wait(ws)

    cdef int fill_row(self, Workspace ws, int64_t at, int64_t row) except -1:
        """Slots -> row `at` of the tensors. `row` is what an error names (-1: the one request)."""
        cdef int t, code
        for t in range(ws.n_tensors):
            ws.rows[t] = ws.tensors[t] + at * self.row_bytes[t]
            ws.mask_rows[t] = NULL if ws.masks[t] == NULL else ws.masks[t] + at * self.cells[t]
        code = self.program.run_columns(self.program.all_columns, self.program.c.n_columns, &ws.state.st, ws.rows, ws.mask_rows)
        if code:
            self.program.fail(&ws.state.st.error, row)
        return 0

    # ---- the model -----------------------------------------------------------------------------------------------------

    cdef int run_model(self, Workspace ws, int64_t n, bint release_gil) except -1:
        """Scores of the first n rows of the tile into ws.scores."""
        cdef RunError err
        cdef int failed
        if self.has_masks:
            self._widen_masks(ws, n)
        if self.trees is not None:
            if release_gil:
                with nogil:
                    failed = self.tree_scores(ws, n, &err)
            else:
                failed = self.tree_scores(ws, n, &err)
        elif self.model is None:
            self.python_scores(ws, n)
            failed = 0
        elif n == 1 and ws.lane != NULL:
            self._set_rows(ws, 1)
            if release_gil:
                with nogil:
                    failed = self.model.run_lane(ws.lane, ws.scores, &err)
            else:
                failed = self.model.run_lane(ws.lane, ws.scores, &err)
        elif release_gil:
            with nogil:
                self._set_rows(ws, n)
                failed = self.model.run_scores(ws.inputs, n, ws.scores, &err)
        else:
            self._set_rows(ws, n)
            failed = self.model.run_scores(ws.inputs, n, ws.scores, &err)
        if failed:
            raise_run_error(&err)
        if self.out_of_range(ws, n):
            self.refuse_range(ws, n)
        return 0

    cdef int tree_scores(self, Workspace ws, int64_t n, RunError* err) noexcept nogil:
        """The forest over the first n rows of its one tensor, with their reasons. -1: a score that is not finite, told by `err`."""
        cdef int64_t i, at = 0, some
        if self.reasons is None:
            self.trees.run_into(ws.inputs[0].data, ws.inputs[0].dims[1], n, ws.tree_scratch, ws.scores, self.tree_column, False)
        elif n == 1:
            ws.n_picked[0] = self.reasons.run_row(ws.inputs[0].data, ws.tree_scratch, ws.scores, self.tree_column, ws.leaves,
                                                  ws.reason_scratch, ws.picked)
        else:
            while at < n:
                some = min(n - at, self.reason_rows)
                self.trees.run_leaves_into(<const uint8_t*>ws.inputs[0].data + at * self.input_bytes[0], ws.inputs[0].dims[1], some,
                                           ws.tree_scratch, ws.scores + at, self.tree_column, False, ws.leaves)
                for i in range(some):
                    ws.n_picked[at + i] = self.reasons.pick(ws.leaves + i * self.trees.n_trees, ws.reason_scratch,
                                                            ws.picked + (at + i) * self.most)
                at += some
        for i in range(n):
            if not isfinite(ws.scores[i]):
                err.code = RI_ERR_SCORE
                snprintf(err.message, sizeof(err.message), "Expected a finite score, got %g in row %lld", <double>ws.scores[i],
                         <long long>i)
                return -1
        return 0

    cdef int64_t end_of(self, int64_t budget_ns) except -1:
        """When a call has to answer, on the monotonic clock: its own budget, else the engine's."""
        if budget_ns == 0:
            budget_ns = self.budget_ns
        return FOREVER if budget_ns >= FOREVER else self.monotonic_ns() + budget_ns

    cdef int run_row(self, Workspace ws, int64_t end_ns) except -1:
        """The model for the one row of the tile; without reasons where occlusion would take longer than there is time."""
        if self.occlusion is None:
            return self.run_model(ws, 1, self.fixed_us + self.row_us >= self.hold_below_us)
        if end_ns < FOREVER and self.monotonic_ns() + self.one_us * 1000.0 > end_ns:
            ws.n_picked[0] = 0
            return self.run_model(ws, 1, self.fixed_us + self.row_us >= self.hold_below_us)
        return self.run_occluded(ws)

    cdef int run_occluded(self, Workspace ws) except -1:
        """Score the tile's first row as it is and without each group, in one run where rows may be run together."""
        cdef int64_t start = 0, n, i
        cdef int t
        for t in range(ws.n_tensors):
            memcpy(ws.templates[t], ws.tensors[t], <size_t>self.row_bytes[t])
            if ws.masks[t] != NULL:
                memcpy(ws.template_masks[t], ws.masks[t], <size_t>self.cells[t])
        while start < self.rows_each:
            n = min(<int64_t>self.tile, self.rows_each - start)
            self.occlude_rows(ws, start, n)
            try:
                self.run_model(ws, n, self.fixed_us + n * self.row_us >= self.hold_below_us)
            except (ScoreError, SessionError):
                for i in range(start, start + n):  # a row without some group must not cost the whole row its answer
                    self.occlude_rows(ws, i, 1)
                    try:
                        self.run_model(ws, 1, False)
                    except (ScoreError, SessionError):
                        if i == 0:
                            raise
                        ws.scores[0] = NAN
                    ws.occluded[i] = ws.scores[0]
            else:
                memcpy(ws.occluded + start, ws.scores, <size_t>n * sizeof(float))
            start += n
        ws.scores[0] = ws.occluded[0]
        self.pick_occluded(ws)
        return 0

    cdef void occlude_rows(self, Workspace ws, int64_t first, int64_t n) noexcept nogil:
        """Rows [first, first + n) of the request's groups + 1 into the tile; row 0 is the request itself, row i lacks group i - 1."""
        cdef Blank* b
        cdef int64_t row
        cdef int t, i
        for t in range(ws.n_tensors):
            for row in range(n):
                memcpy(ws.tensors[t] + row * self.row_bytes[t], ws.templates[t], <size_t>self.row_bytes[t])
                if ws.masks[t] != NULL:
                    memcpy(ws.masks[t] + row * self.cells[t], ws.template_masks[t], <size_t>self.cells[t])
        for i in range(self.occlusion.n_blanks):
            b = self.occlusion.blanks + i
            row = b.group + 1 - first
            if 0 <= row < n:
                if b.is_mask:
                    memcpy(ws.masks[b.tensor] + row * self.cells[b.tensor] + b.offset, b.value, b.size)
                else:
                    memcpy(ws.tensors[b.tensor] + row * self.row_bytes[b.tensor] + b.offset, b.value, b.size)

    cdef void pick_occluded(self, Workspace ws) noexcept nogil:
        """The groups without which the score falls the most, equal ones in order."""
        cdef double lost, score = ws.occluded[0]
        cdef int32_t g, place, n = 0
        for g in range(self.occlusion.n_groups):
            lost = score - ws.occluded[g + 1]
            if not lost > 0 or (n == self.most and not lost > score - ws.occluded[ws.picked[n - 1] + 1]):
                continue
            place = n if n < self.most else n - 1
            n += n < self.most
            while place > 0 and lost > score - ws.occluded[ws.picked[place - 1] + 1]:
                ws.picked[place] = ws.picked[place - 1]
                place -= 1
            ws.picked[place] = g
        ws.n_picked[0] = n

    cdef tuple reasons_of(self, Workspace ws, int64_t at):
        """Of a row of the tile that was run last."""
        if self.most == 0:
            return ()
        return tuple_of(self.reason_names, ws.picked + at * self.most, ws.n_picked[at])

    cdef bint out_of_range(self, Workspace ws, int64_t n) noexcept nogil:
        cdef int64_t i
        cdef bint bad = False
        for i in range(n):
            bad |= not (ws.scores[i] >= self.score_low and ws.scores[i] <= self.score_high)
        return bad

    cdef int refuse_range(self, Workspace ws, int64_t n) except -1:
        cdef int64_t i
        for i in range(n):
            if not (ws.scores[i] >= self.score_low and ws.scores[i] <= self.score_high):
                raise ScoreError(
                    f"Expected a score from {self.score_low} to {self.score_high}, got {ws.scores[i]} in row {i}",
                    hint="the manifest records this range for the model's last operator: the engine and the model disagree",
                )
        return 0

    cdef int python_scores(self, Workspace ws, int64_t n) except -1:
        """The way without ONNX Runtime's C API, and of releases with several models: arrays in, scores out."""
        cdef const float[::1] scores
        cdef int64_t i
        scores = np.ascontiguousarray(self.session(self._arrays(ws, n)), dtype=np.float32)
        if scores.shape[0] != n:
            raise SessionError(f"Expected {n} scores of the model, got {scores.shape[0]}")
        for i in range(n):
            if not isfinite(scores[i]):
                raise ScoreError(f"Expected a finite score in row {i}, got {scores[i]}")
            ws.scores[i] = scores[i]
        return 0

    def _arrays(self, Workspace ws not None, int64_t n):
        """Copies of the tensors' first n rows, in the order of the model's inputs."""
        out = []
        for is_mask, t, shape in self.input_plan:
            out.append(self._array(ws, n, t, is_mask).reshape(-1, *shape))
        return out

    def _array(self, Workspace ws not None, int64_t n, int t, bint is_mask):
        cdef ri_text* texts
        _, dtype, cells, context, _, mask_dtype = self.program.tensors[t]
        rows = 1 if context and self.candidate_slot >= 0 else n
        if dtype == RI_STRING and not is_mask:
            texts = <ri_text*>ws.tensors[t]
            out = np.empty(rows * cells, object)
            for i in range(rows * cells):
                out[i] = PyUnicode_DecodeUTF8(texts[i].data, texts[i].size, NULL)
            return out.reshape(rows, cells)
        kind = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}[mask_dtype if is_mask else dtype]
        source = <uintptr_t>(ws.wide_masks[t] if is_mask else ws.tensors[t])
        size = rows * cells * np.dtype(kind).itemsize
        data = (<const char*>source)[:size]
        return np.frombuffer(data, kind).reshape(rows, cells).copy()

    # ---- decide --------------------------------------------------------------------------------------------------------

    cdef object next_id(self):
        global id_counter
        if not id_prefix:
            new_id_prefix()
        id_counter += 1
        return make_id(id_prefix, id_counter)

    cdef object band_action(self, float score, Workspace ws):
        """Lowest scores are inclusive, compared as float32."""
        cdef int first = 0, n = self.n_common_bands, i
        cdef ri_slot* s
        if self.segment_slot >= 0:
            s = ws.state.st.slots + self.segment_slot
            if s.state == RI_PRESENT:
                found = self.segments.get(PyUnicode_DecodeUTF8(s.v.text, s.n, NULL))
                if found is not None:
                    first, n = found
        for i in range(first + n - 1, first - 1, -1):
            if score >= self.thresholds[i]:
                return self.actions[i]
        raise ScoreError(f"the score {score!r} is below the policy's lowest band, {self.thresholds[first]!r}",
                         hint="begin the bands at the lowest score that the model can give")

    cdef object decide(self, Workspace ws, float score, object request_id, object action):
        """`action` None: by the bands. Flags of ws tell what was stale or missing."""
        cdef tuple stale = (), missing = (), trace
        cdef bint fresh = True
        if self.next_move_ns != FOREVER:
            self.move_thresholds()
        if ws.state.st.n_flags:
            stale, missing = self._flags(ws, 0)
            fresh = self.flags_are_fresh(ws)
        if action is None and self.n_bands:
            action = self.review_action if ws.state.st.review and self.review_action is not None else self.band_action(score, ws)
        trace = self.trace  # of the thresholds that were just read: an allocation in between could run other code, which moves them
        if ws.lease is not None and ws.lease.trace is not None:
            trace = trace + tuple(ws.lease.trace)
        request_id = self.next_id() if request_id is None else own_id(request_id)
        ws.fresh = fresh
        return self.decision_type(request_id, <double>score, action, self.reasons_of(ws, 0), self.release, self.arm, 0, stale,
                                  missing, trace)

    cdef int move_thresholds(self) except -1:
        """Put those in force whose moment has come, with what the trace says of them. All who read thresholds hold the GIL."""
        cdef int64_t now_ns = self.wall_ns()
        cdef int i
        cdef tuple lows
        while self.next_move_ns <= now_ns:
            _, lows, self.trace = self.moves[0]
            for i in range(self.n_bands):
                self.thresholds[i] = <float><double>lows[i]
            self.moves = self.moves[1:]
            self.next_move_ns = self.moves[0][0] if self.moves else FOREVER
        return 0

    def moves_left(self):
        if self.next_move_ns != FOREVER:
            self.move_thresholds()
        return len(self.moves)

    cdef bint flags_are_fresh(self, Workspace ws) noexcept nogil:
        """No value of this row was stale, and none unavailable: null and unknown are known for certain."""
        cdef int i
        for i in range(ws.state.st.n_flags):
            if ws.state.st.flags[i].state == RI_STALE or ws.state.st.flags[i].state == RI_UNAVAILABLE:
                return False
        return True

    cdef tuple _flags(self, Workspace ws, int first):
        cdef int i
        cdef ri_flag* flag
        stale, missing = {}, {}
        for i in range(first, ws.state.st.n_flags):
            flag = ws.state.st.flags + i
            (stale if flag.state == RI_STALE else missing)[self.program.column_names[flag.column]] = None
        return tuple(stale), tuple(missing)

    # ---- bytes ---------------------------------------------------------------------------------------------------------

    cdef int guard(self, const char* data, Py_ssize_t size, bint json) except -1:
        """Size and depth, before any decoder sees the bytes: decoders recurse, and this runs on small stacks too."""
        cdef int64_t depth
        if size > self.max_bytes:
            raise LimitError(f"Expected at most {self.max_bytes} bytes, got {size}")
        if json:
            if ri_count_open(data, size) > self.max_depth and ri_depth(data, size) > self.max_depth:
                raise RequestError(f"Expected at most {self.max_depth} levels of nesting")
        else:
            depth = ri_msgpack_depth(<const unsigned char*>data, size, self.max_depth)
            if depth < 0:  # also a length that only claims to be there: what follows it was not counted
                raise RequestError("not a request: the MessagePack is cut short, or claims more than it holds")
            if depth > self.max_depth:
                raise RequestError(f"Expected at most {self.max_depth} levels of nesting")
        return 0

    cdef object decode_body(self, object body, bint json, object decode):
        if PyBytes_CheckExact(body):
            self.guard(PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), json)
        else:
            body = plain_bytes(body, self.max_bytes)
            self.guard(PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), json)
        try:
            return decode(body)
        except msgspec.ValidationError as exc:
            # `from None`: its text may hold a field's name of any length, and logs print causes too
            raise RequestError(str(exc)[:300], malformed=False) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError, ValueError) as exc:
            raise RequestError(f"not a request: {clip(str(exc), 200)}") from exc

    # ---- single scores -------------------------------------------------------------------------------------------------

    cdef object score_object(self, object request, object request_id, int64_t now_ns, Call* call, bint observe,
                             object event_id, bint may_wait, object priority, int64_t* marks):
        cdef Workspace ws = self.pop()
        cdef bint failed = True
        ws.call = call
        try:
            if self.resolver is not None or observe or event_id is not None:
                self.begin(ws, now_ns, FOREVER, observe, event_id, may_wait, marks != NULL)
                if ws.lease is not None:
                    ws.lease.timed = marks != NULL
            self.resolve_row(request, ws, now_ns, -1)
            if marks != NULL:
                for plan in self.all_plans:  # reading the clock is Python: a swap may come, and slots point into tables
                    ws.state.keep.append((<EntityPlan>plan).bound)
                marks[0] = self.clock.monotonic_ns()
            self.fill_row(ws, 0, -1)
            if marks != NULL:
                marks[1] = self.clock.monotonic_ns()
            self.run_row(ws, call.end_ns)
            if marks != NULL:
                marks[2] = self.clock.monotonic_ns()
                if ws.lease is not None:
                    marks[3], marks[4] = ws.lease.tables_ns, ws.lease.windows_ns
            answer = self.conclude(call, self.decide(ws, ws.scores[0], request_id, None), request, priority)
            self.n_answers += 1
            self.n_fresh += ws.fresh
            failed = False
            return answer
        finally:
            if failed:
                self.tell_error(ws)
            if ws.lease is not None:
                if ws.lease.n_refresh:
                    self.resolver.refresh(ws.lease)
            self.push(ws)

    def score(self, request, request_id=None, int64_t now_ns=0, int64_t budget_ns=0, bint observe=False, event_id=None,
              bint may_wait=True, priority=CRITICAL, int64_t began_ns=0):
        """One request object -> decision."""
        cdef Call call
        self.enter(&call, priority, budget_ns, self.run_clock, began_ns)
        try:
            return self.score_object(request, request_id, now_ns, &call, observe, event_id, may_wait, priority, NULL)
        finally:
            self.leave(&call)

    def score_json(self, body, request_id=None, int64_t now_ns=0, int64_t budget_ns=0, bint observe=False, event_id=None,
                   bint may_wait=True, priority=CRITICAL):
        """JSON bytes -> JSON bytes."""
        cdef Call call
        self.enter(&call, priority, budget_ns, self.run_clock, 0)
        try:
            return self.encode_json(self.score_object(self.decode_body(body, True, self.decode_json), request_id, now_ns, &call, observe,
                                                 event_id, may_wait, priority, NULL))
        finally:
            self.leave(&call)

    def score_msgpack(self, body, decode, encode, request_id=None, int64_t now_ns=0, int64_t budget_ns=0, bint observe=False,
                      event_id=None, bint may_wait=True, priority=CRITICAL):
        """MessagePack bytes -> MessagePack bytes."""
        cdef Call call
        self.enter(&call, priority, budget_ns, self.run_clock, 0)
        try:
            return encode(self.score_object(self.decode_body(body, False, decode), request_id, now_ns, &call, observe, event_id,
                                            may_wait, priority, NULL))
        finally:
            self.leave(&call)

    def score_json_staged(self, body, bint observe=False, bint inner=False):
        """As `score_json`, and the nanoseconds of decode, resolve, fill, run, decide and encode.

        inner: two more, of what `resolve` spends on tables and on windows.
        """
        cdef int64_t marks[5]
        cdef int64_t start = self.clock.monotonic_ns(), decoded, decided
        cdef tuple stages
        cdef Call call
        marks[3] = marks[4] = 0
        self.untimed(&call)
        request = self.decode_body(body, True, self.decode_json)
        decoded = self.clock.monotonic_ns()
        decision = self.score_object(request, None, 0, &call, observe, None, True, CRITICAL, marks)
        decided = self.clock.monotonic_ns()
        encoded = self.encode_json(decision)
        end = self.clock.monotonic_ns()
        stages = (decoded - start, marks[0] - decoded, marks[1] - marks[0], marks[2] - marks[1], decided - marks[2],
                  end - decided)
        return encoded, stages + (marks[3], marks[4]) if inner else stages

    # ---- batches -------------------------------------------------------------------------------------------------------

    def score_batch(self, requests, bint row_errors=False, int64_t now_ns=0, request_ids=None, int64_t first_row=0,
                    int64_t budget_ns=0, bint observe=False, event_ids=None, priority=CRITICAL):
        """Many requests -> decisions, in order; with `row_errors` an error stands where its decision would.

        Observed rows are read and added one after the other, so each sees those before it; without `row_errors` none is
        added unless all of them can be. Without a budget of its own a batch has no deadline, however long it is; but its waiting
        ends within the engine's, as that of one request.
        """
        cdef Call call
        self.enter(&call, priority, budget_ns if budget_ns else FOREVER, None, 0)
        try:
            return self.batch_core(requests, row_errors, now_ns, request_ids, first_row, &call, budget_ns, observe, event_ids, priority)
        finally:
            self.leave(&call)

    cdef list batch_core(self, object requests, bint row_errors, int64_t now_ns, object request_ids, int64_t first_row, Call* call,
                         int64_t budget_ns, bint observe, object event_ids, object priority):
        cdef Workspace ws
        # occlusion fills the tile with one request's rows
        cdef int64_t n, start, i, filled, tile = self.tile if self.occlusion is None else 1, ready = 0, answers = 0, n_fresh = 0
        cdef bint ended = False, some_counted = False
        cdef list items, out, meta, failed, ids = None, alone = None
        cdef bint rich = self.resolver is not None
        stopped = None  # the error of the rows for which there was no time
        self.count_rows(requests, "requests")
        items = plain_list(requests, "$", "requests", self.max_rows)
        n = len(items)
        self.count_rows(items, "requests")
        if event_ids is not None:
            ids = plain_list(event_ids, "$.event_ids", "ids", self.max_rows)
            if len(ids) != n:
                raise FeatureTypeError(f"Expected {n} event_ids, one a request, got {len(ids)}", path="$.event_ids")
        self.admit(call, n)
        out = [None] * n
        ws = self.pop()
        ws.call = call
        try:
            if rich or observe or ids is not None:
                self.begin(ws, now_ns, budget_ns, observe, ids[0] if ids else None, True, False)
            if observe and not row_errors:
                self.check_events(items, ids, first_row, ws)
            for start in range(0, n, tile):
                meta = []
                filled = 0
                if start and call.end_ns < FOREVER:
                    stopped = self.no_time_for(call, min(tile, n - start))
                    if stopped is not None:
                        break
                for i in range(start, min(start + tile, n)):
                    if rich and i == ready:
                        ready = min(i + self.resolver.at_once(TILE), (i // TILE + 1) * TILE, n)
                        try:
                            self.prefetch(items, i, ready, first_row, ws)
                        except DeadlineExceededError as exc:
                            stopped = exc
                            break
                    try:
                        if ids is not None:
                            self.resolver.check_event(&ws.options, observe, ids[i])
                        ws.options.counted = False
                        self.resolve_row(items[i], ws, now_ns, i + first_row)
                        self.fill_row(ws, filled, i + first_row)
                    except RetailInferError as exc:
                        some_counted = some_counted or ws.options.counted
                        if not row_errors:
                            raise
                        if isinstance(exc, ServingError):
                            exc.counted = ws.options.counted
                            self.tell_began(exc, call)
                        out[i] = exc
                        continue
                    some_counted = some_counted or ws.options.counted
                    flags = self._flags(ws, 0) if ws.state.st.n_flags else None
                    review = self.review_action if ws.state.st.review else None
                    segment = self._segment_bands(ws) if self.segment_slot >= 0 else None
                    trace = tuple(ws.lease.trace) if rich and ws.lease.trace is not None else ()
                    meta.append((i, flags, review, segment, flags is None or self.flags_are_fresh(ws), trace, ws.options.counted))
                    filled += 1
                if filled and call.end_ns < FOREVER and (call.waited_ns or stopped is not None):
                    # what one row has waited for may have taken the time of all of them
                    over = self.no_time_for(call, filled)
                    if over is not None:
                        stopped, filled = over, 0
                        for one in meta:  # who answers them instead must not count them again
                            if one[6]:
                                out[one[0]] = known = DeadlineExceededError(str(over))
                                known.counted = True
                                self.tell_began(known, call)
                if filled:
                    failed = None
                    try:
                        if self.occlusion is not None:
                            self.run_row(ws, call.end_ns)
                        else:
                            self.run_model(ws, filled, self.fixed_us + filled * self.row_us >= self.hold_below_us)
                    except (ScoreError, SessionError):
                        alone = []
                        failed = self.run_alone(ws, filled, alone)  # one bad row must not cost the others their answer
                    for at, (i, flags, action, segment, fresh, trace, counted) in enumerate(meta):
                        try:
                            if failed is not None and failed[at] is not None:
                                raise failed[at]
                            out[i] = self._decide_row(ws.scores[at], flags, action, segment,
                                                      None if request_ids is None else request_ids[i], trace,
                                                      self.reasons_of(ws, at) if failed is None else alone[at])
                            answers += 1
                            n_fresh += fresh
                        except (ScoreError, SessionError, DeadlineExceededError) as exc:
                            exc = type(exc)(f"{exc} - at `$[{i + first_row}]`")
                            if not row_errors:
                                raise exc
                            exc.counted = counted
                            self.tell_began(exc, call)
                            out[i] = exc
                if rich:
                    self.resolver.settle(ws.lease)
                    if ws.lease.n_refresh:
                        self.resolver.refresh(ws.lease)
                if stopped is not None:
                    break
            if stopped is not None:
                self.tell_began(stopped, call)
                if not row_errors:
                    raise stopped
                for i in range(n):
                    if out[i] is None:
                        out[i] = stopped
            out = self.conclude(call, out, items, priority)
            self.n_answers += answers
            self.n_fresh += n_fresh
            ended = True
        finally:
            if not ended:
                ws.options.counted = some_counted
                self.tell_error(ws)
            self.push(ws)
        return out

    cdef object no_time_for(self, Call* call, int64_t n):
        """The error of rows that cannot be scored any more, or None."""
        cdef int64_t left = call.end_ns - self.monotonic_ns(), needed = <int64_t>(1000.0 * (self.fixed_us + n * self.row_us))
        if left >= needed:
            return None
        self.n_refused_time += 1
        return DeadlineExceededError(f"{left / 1e6:.3g} ms are left of the batch's deadline, and {n} more rows take {needed / 1e6:.3g} ms")

    def check_events(self, list items, list ids, int64_t first_row, Workspace ws not None):
        """Read every request, and check it as an event, before any of them is counted."""
        cdef int64_t i, at_ns
        for i in range(len(items)):
            if ids is not None:
                self.resolver.check_event(&ws.options, True, ids[i])
            self.reader.read(items[i], ws.state, i + first_row)
            at_ns = self.moment(ws)
            if self.resolver.n_aliases:
                self.resolver.rename(ws.lease, &ws.state.st, at_ns)
            self.resolver.prepare_windows(ws.lease, &ws.state.st, at_ns, &ws.options, i + first_row)
        ws.lease.new_tile()
        ws.state.release()

    cdef list run_alone(self, Workspace ws, int64_t n, list reasons):
        """The first n rows of the tile one by one: what each failed with, or None. Scores of the others into ws.scores, their
        reasons into the list."""
        cdef int64_t at
        cdef int t
        cdef list scores = [], failed = []
        for at in range(n):
            for t in range(ws.n_tensors):
                if at > 0:
                    memcpy(ws.tensors[t], ws.tensors[t] + at * self.row_bytes[t], <size_t>self.row_bytes[t])
                    if ws.masks[t] != NULL:
                        memcpy(ws.masks[t], ws.masks[t] + at * self.cells[t], <size_t>self.cells[t])
            try:
                if ws.call != NULL and ws.call.end_ns < FOREVER:
                    stopped = self.no_time_for(ws.call, 1)
                    if stopped is not None:
                        raise stopped
                self.run_model(ws, 1, False)
            except (ScoreError, SessionError, DeadlineExceededError) as exc:
                failed.append(exc)
                scores.append(0.0)
                reasons.append(())
            else:
                failed.append(None)
                scores.append(ws.scores[0])
                reasons.append(() if self.occlusion is not None else self.reasons_of(ws, 0))
        for at in range(n):
            ws.scores[at] = scores[at]
        return failed

    cdef int count_rows(self, object rows, str what) except -1:
        """Refuse more than `max_rows`, before anything is copied where the number is known."""
        cdef type given = type(rows)
        if issubclass(given, np.ndarray) and rows.ndim == 0:
            raise FeatureTypeError(f"Expected a list of {what}, got an array without dimensions", path="$")
        if issubclass(given, (list, tuple, np.ndarray)) and len(rows) > self.max_rows:
            raise LimitError(f"Expected at most {self.max_rows} {what}, got {len(rows)}", hint="see max_rows of the contract")
        return 0

    cdef object _segment_bands(self, Workspace ws):
        cdef ri_slot* s = ws.state.st.slots + self.segment_slot
        return self.segments.get(PyUnicode_DecodeUTF8(s.v.text, s.n, NULL)) if s.state == RI_PRESENT else None

    cdef object _decide_row(self, float score, object flags, object action, object segment, object request_id, tuple trace,
                            tuple reasons):
        """`trace`: of this row alone."""
        cdef int first = 0, n = self.n_common_bands, i
        cdef tuple said
        if self.next_move_ns != FOREVER:
            self.move_thresholds()
        if segment is not None:
            first, n = segment
        if action is None and self.n_bands:
            for i in range(first + n - 1, first - 1, -1):
                if score >= self.thresholds[i]:
                    action = self.actions[i]
                    break
            else:
                raise ScoreError(f"the score {score!r} is below the policy's lowest band, {self.thresholds[first]!r}")
        said = self.trace  # as in `decide`
        trace = said + trace if trace else said
        stale, missing = ((), ()) if flags is None else flags
        request_id = self.next_id() if request_id is None else own_id(request_id)
        return self.decision_type(request_id, <double>score, action, reasons, self.release, self.arm, 0, stale, missing, trace)

    def vectorize(self, request, int64_t now_ns=0, int64_t budget_ns=0):
        """One request -> the model's inputs, without the model: a list of arrays with one row."""
        cdef Workspace ws = self.pop()
        try:
            self.begin(ws, now_ns, budget_ns, False, None, True, False)
            self.resolve_row(request, ws, now_ns, -1)
            self.fill_row(ws, 0, -1)
            if self.has_masks:
                self._widen_masks(ws, 1)
            return [self._array(ws, 1, t, is_mask) for is_mask, t, _ in self.input_plan]
        finally:
            self.push(ws)

    def fill(self, request):
        """The same into the engine's own memory: what a scoring call does before the model runs. For benchmarks."""
        cdef Workspace ws = self.pop()
        try:
            if self.resolver is not None:
                self.begin(ws, 0, 0, False, None, True, False)
            self.resolve_row(request, ws, 0, -1)
            self.fill_row(ws, 0, -1)
        finally:
            self.push(ws)

    # ---- other rungs of the ladder: what they need of the release -------------------------------------------------------------

    def prepare(self, request, int64_t now_ns=0, int64_t budget_ns=0, bint observe=False, event_id=None, int64_t permit=0):
        cdef Workspace ws = self.pop()
        cdef Prepared made = Prepared.__new__(Prepared)
        cdef Call call
        cdef bint failed = True
        if permit:  # given back while a source is waited for, and there again at the end
            self.untimed(&call)
            call.permit = permit
            ws.call = &call
        try:
            ws.options.counted = False
            if self.resolver is not None or observe or event_id is not None:
                self.begin(ws, now_ns, budget_ns, observe, event_id, True, False)
            self.resolve_row(request, ws, now_ns, -1)
            self.fill_row(ws, 0, -1)
            if self.has_masks:
                self._widen_masks(ws, 1)
            made.request = request
            made.inputs = [self._array(ws, 1, t, is_mask).reshape(1, *shape) for is_mask, t, shape in self.input_plan]
            made.stale, made.missing = self._flags(ws, 0)
            made.fresh = self.flags_are_fresh(ws)
            made.review = ws.state.st.review
            made.segment = self._segment_bands(ws) if self.segment_slot >= 0 else None
            made.trace = () if ws.lease is None or ws.lease.trace is None else tuple(ws.lease.trace)
            made.counted = self.resolver is not None and ws.options.counted
            failed = False
            return made
        finally:
            if ws.lease is not None:
                if failed:
                    self.tell_error(ws)
                if ws.lease.n_refresh:
                    self.resolver.refresh(ws.lease)
            self.push(ws)

    def finish(self, Prepared prepared not None, double score, *, str release not None, int rung, request_id=None):
        cdef float rounded = <float>score
        action = self.review_action if prepared.review else None
        self.check_score(rounded)
        made = self._decide_row(rounded, (prepared.stale, prepared.missing), action, prepared.segment, request_id, prepared.trace, ())
        return self.as_rung(made, release, rung)

    def finish_static(self, request, action, score, *, str release not None, int rung, request_id=None):
        cdef Workspace ws
        cdef float rounded
        segment = None
        if action is not None and action not in self.actions:
            raise ConfigError(f"Expected an action of the policy ({', '.join(dict.fromkeys(self.actions)) or 'it has none'}), got {clip(action)}")
        if self.next_move_ns != FOREVER:
            self.move_thresholds()
        if score is None:
            if action is None:
                raise ConfigError("Expected a score, an action, or both")
            score = self.thresholds[self.actions.index(action)]
            if not isfinite(score):
                score = 0.0
        else:
            rounded = <float><double>score
            self.check_score(rounded)
        if action is None and self.segment_slot >= 0 and request is not None:
            ws = self.pop()
            try:
                self.reader.read(request, ws.state, -1)
                segment = self._segment_bands(ws)
            finally:
                self.push(ws)
        made = self._decide_row(<float><double>score, None, action, segment, request_id, (), ())
        return self.as_rung(made, release, rung)

    cdef int check_score(self, float score) except -1:
        if not (isfinite(score) and score >= self.score_low and score <= self.score_high):
            raise ScoreError(f"Expected a finite score from {self.score_low} to {self.score_high}, got {score}")
        return 0

    cdef object as_rung(self, object decision, str release, int rung):
        """The same answer, of somebody else."""
        return self.decision_type(decision.id, decision.score, decision.action, decision.reasons, release, self.arm, rung,
                                  decision.stale, decision.missing, decision.trace)

    def rank_static(self, candidates, k, *, Available available=None, exclude=None, dict order not None, str release not None, int rung,
                    request_id=None):
        cdef int64_t most = how_many(k), i, row, n
        cdef list ids = self.id_list(candidates), kept = [], places
        cdef set gone = set(), named = set()
        cdef dict suppressed = {}
        cdef SnapshotTable table = None
        cdef Bound bound = None
        if exclude is not None:
            exclude = plain_list(exclude, "$.exclude", "ids", MAX_EXCLUDED)
            if len(exclude) > MAX_EXCLUDED:
                raise LimitError(f"Expected at most {MAX_EXCLUDED} exclusions, got more")
            for i in range(len(exclude)):
                gone.add(self.plain_key(exclude[i], "$.exclude", i))
        if self.item_plan is not None:
            bound = self.item_plan.current()
            table = bound.table
        if available is not None:
            if table is None:
                raise FeatureTypeError("`available` reads the candidates' table, and this ranker has none", path="$.available")
            available = available.current(table)
        for i in range(len(ids)):
            key = self.plain_key(ids[i], "$.candidates", i)
            if key in named:
                continue
            named.add(key)
            if key in gone:
                suppressed[key] = _WHY[EXCLUDED]
                continue
            if available is not None:
                row = table.find(key)
                if row < 0 or not available.holds(&bound.c.view, row):
                    suppressed[key] = _WHY[NOT_KNOWN] if row < 0 else _WHY[UNAVAILABLE]
                    continue
            kept.append(key)
        n = len(order)
        places = [(order.get(kept[i], n), i) for i in range(len(kept))]
        places.sort()
        n = len(kept)
        items = [kept[i] for _, i in places[:min(most, n)]]
        scores = [<double><float>((n - i) / <double>n) for i in range(len(items))]
        request_id = self.next_id() if request_id is None else own_id(request_id)
        return self.ranking_type(request_id, items, scores, release, self.arm, rung, (), (), suppressed, self.trace)

    def decode(self, body, str kind not None):
        if kind == "json":
            return self.decode_body(body, True, self.decode_json)
        if kind != "msgpack" or self.candidate_slot >= 0:
            raise ConfigError(f'Expected "json"{"" if self.candidate_slot >= 0 else " or msgpack"}, got {clip(kind)}')
        if self.decode_msgpack is None:
            self.decode_msgpack = msgspec.msgpack.Decoder(self.reader.type).decode
        return self.decode_body(body, False, self.decode_msgpack)

    def encode(self, answer, str kind not None):
        if kind not in ("json", "msgpack"):
            raise ConfigError(f'Expected "json" or "msgpack", got {clip(kind)}')
        return self.encode_json(answer) if kind == "json" else msgspec.msgpack.encode(answer)

    def ids_of(self, request):
        return self.id_list(self.decode_body(bytes(request.candidates), True, self.decode_ids))

    # ---- tensors, for tests and tools ----------------------------------------------------------------------------------

    def tensors(self, requests, int64_t now_ns=0):
        """What the model would get for these requests (a list): arrays by input position, and (stale, missing) per row."""
        cdef Workspace ws = self.pop()
        cdef int64_t i
        cdef list rows = [], flags = []
        try:
            for i in range(len(requests)):
                self.begin(ws, now_ns, 0, False, None, True, False)
                self.resolve_row(requests[i], ws, now_ns, i)
                self.fill_row(ws, 0, i)
                if self.has_masks:
                    self._widen_masks(ws, 1)
                rows.append([self._array(ws, 1, t, is_mask) for is_mask, t, _ in self.input_plan])
                flags.append(self._flags(ws, 0))
        finally:
            self.push(ws)
        return [np.concatenate(parts) for parts in zip(*rows)], flags

    # ---- timing --------------------------------------------------------------------------------------------------------

    def calibrate(self, int rounds=5):
        """Time the model on what the workspace holds (zeros): fixed cost and cost of a row, for the GIL policy."""
        cdef Workspace ws = self.pop()
        cdef int64_t start, n, one = INT64_MAX, many = INT64_MAX
        cdef int i
        cdef bint long_one
        try:
            self.run_model(ws, 1, True)  # how long it takes nobody knows yet, and others may be answering
        except (ScoreError, SessionError):
            return self.fixed_us, self.row_us  # zeros are no row that this model can score
        finally:
            self.push(ws)
        ws = self.pop()
        try:
            for i in range(rounds):
                start = self.clock.monotonic_ns()
                self.run_model(ws, 1, i > 0 and one > CALIBRATE_NS)
                one = min(one, <int64_t>self.clock.monotonic_ns() - start)
            if self.tile > 1:
                # The GIL is kept, or its return would be in the time; so of a slow model fewer rows.
                long_one = one > CALIBRATE_NS
                n = min(64, max(2, CALIBRATE_NS // max(1, one)))
                for i in range(2):
                    start = self.clock.monotonic_ns()
                    self.run_model(ws, n, long_one)
                    many = min(many, <int64_t>self.clock.monotonic_ns() - start)
                self.row_us = max(0.0, (many - one) / <double>(n - 1) / 1000.0)
            self.fixed_us = max(0.0, one / 1000.0 - self.row_us)
            ri_stage_predict(&self.run_clock.c, one)
        finally:
            self.push(ws)
        return self.fixed_us, self.row_us

    def calibrate_as(self, Engine other not None):
        self.fixed_us, self.row_us = other.fixed_us, other.row_us
        self.run_clock, self.wait_clock, self.whole_clock = other.run_clock, other.wait_clock, other.whole_clock
        self.sized_clocks = other.sized_clocks

    @property
    def one_us(self) -> float:
        """Predicted time of the models for one request, reasons included."""
        cdef int64_t runs = (self.rows_each + self.tile - 1) // self.tile
        return runs * self.fixed_us + self.rows_each * self.row_us

    @property
    def waits(self) -> bool:
        """A call may have to wait for a source or for shared windows."""
        return self.resolver is not None and self.resolver.waits

    @property
    def has_item_table(self) -> bool:
        """Candidates have a table of their own."""
        return self.item_plan is not None

    # ---- item blocks -----------------------------------------------------------------------------------------------------

    def encode_items(self, SnapshotTable table not None):
        """Compute the item columns of every row of the candidates' table once; `rank` copies them from then on.

        Attached to the table under the spec's fingerprint, so all rankers of one spec share them. Releases the GIL.
        """
        cdef Bound bound
        cdef RowBlock block, flags
        cdef Workspace ws
        cdef int64_t row, n
        cdef int bad = 0
        if self.item_plan is None or self.n_item == 0 or table.block(self.block_name) is not None:
            return
        bound = Bound(self.item_plan, table)
        n = len(table)
        block = RowBlock(n, max(1, self.item_row_bytes))
        block.owner = self.program  # default texts are its memory; another ranker of the spec may outlive it
        flags = RowBlock(n, 1)
        ws = self._new_workspace()
        with nogil:
            for row in range(n):
                bad |= self.encode_row(&bound.c, ws, row, block.data + row * <int64_t>block.stride,
                                       flags.data + row * <int64_t>flags.stride)
        if bad:
            table.attach_block(self.flags_name, flags)
        table.attach_block(self.block_name, block)

    cdef int encode_row(self, Lookup* plan, Workspace ws, int64_t row, uint8_t* out, uint8_t* flag) noexcept nogil:
        cdef int i, t, code
        self.set_candidate(ws, index_key(&plan.index, row))
        load_record(plan, &ws.state.st, row)
        ws.state.st.n_flags = 0
        ws.state.st.now_ns = INT64_MIN  # ages are looked at when the row is used
        for t in range(ws.n_tensors):
            ws.rows[t] = ws.tensors[t]
            ws.mask_rows[t] = ws.masks[t]
        code = self.program.run_columns(self.item_columns, self.n_item, &ws.state.st, ws.rows, ws.mask_rows)
        flag[0] = (1 if code else 0) | (2 if ws.state.st.n_flags else 0)
        for i in range(self.n_item_segments):
            memcpy(out + self.item_segments[i].source, ws.tensors[self.item_segments[i].tensor] + self.item_segments[i].target,
                   <size_t>self.item_segments[i].size)
        return flag[0]

    cdef void set_candidate(self, Workspace ws, StrRef key) noexcept nogil:
        """The candidate's own field from canonical key bytes."""
        cdef ri_slot* s = ws.state.st.slots + self.candidate_slot
        s.state = RI_PRESENT
        s.hashed = 0
        s.calendar = 0
        s.updated_ns = INT64_MAX
        if s.kind == RI_SLOT_TEXT:
            s.v.text = key.data
            s.n = key.size
        else:
            memcpy(&s.v.i, key.data, 8)

    # ---- rankings --------------------------------------------------------------------------------------------------------

    cdef bint releases(self, int64_t n) noexcept:
        """Is the GIL given up for a ranking of n candidates?"""
        return (self.model is None and self.trees is None) or self.fixed_us + n * self.row_us >= self.hold_below_us

    def compile_available(self, str text not None, list terms):
        """`available=` as native comparisons. terms: ((column, operator number, constant), ...) of the candidates' table."""
        return Available(self.item_plan, text, terms)

    def rank(self, context, candidates, k, available=None, exclude=None, request_id=None, int64_t now_ns=0, int64_t budget_ns=0,
             bint observe=False, event_id=None, bint may_wait=True, priority=CRITICAL, int64_t began_ns=0):
        """Context and ids -> ranking."""
        cdef Call call
        self.enter(&call, priority, budget_ns, None, began_ns)
        try:
            return self.rank_list(context, candidates, how_many(k), available, exclude, request_id, now_ns, &call, observe, event_id,
                                  may_wait, priority)
        finally:
            self.leave(&call)

    cdef object rank_list(self, object context, object candidates, int64_t k, object available, object exclude, object request_id,
                          int64_t now_ns, Call* call, bint observe, object event_id, bint may_wait, object priority):
        cdef list ids
        cdef Workspace ws
        cdef bint failed = True
        # Its texts are pointed into, so nobody may change the list until the end: while the GIL is held nobody can, but for
        # foreign code that reading the context or a garbage collection runs; `rank_filter` looks again after both, and
        # allocates nothing that could start a collection from then on. Where the GIL is given up, a copy keeps them alive;
        # and integers may be NumPy's or of a class of the caller's, whose own methods read them.
        if exclude is not None:
            exclude = plain_list(exclude, "$.exclude", "ids", MAX_EXCLUDED)
            if len(exclude) > MAX_EXCLUDED:
                raise LimitError(f"Expected at most {MAX_EXCLUDED} exclusions, got more")
        if type(candidates) is list and self.candidate_text and self.resolver is None and not self.releases(len(candidates)):
            ids = candidates
            self.count_rows(ids, "candidates")
        else:
            ids = self.id_list(candidates)
        self.admit(call, len(ids))
        ws = self.pop()
        ws.call = call
        try:
            ws.reserve(len(ids))
            if self.resolver is not None or observe or event_id is not None:
                self.begin(ws, now_ns, FOREVER, observe, event_id, may_wait, True)
            ranking = self.rank_core(context, ids, len(ids), ws, k, available, exclude, request_id, now_ns, NULL)
            ranking = self.conclude(call, ranking, context, priority)
            self.n_answers += 1
            self.n_fresh += ws.fresh
            failed = False
            return ranking
        finally:
            if failed:
                self.tell_error(ws)
            if ws.lease is not None:
                if ws.lease.n_refresh:
                    self.resolver.refresh(ws.lease)
            self.push(ws)

    def id_list(self, candidates):
        """The caller's candidates as a list of our own, at most `max_rows` of them."""
        cdef list ids
        self.count_rows(candidates, "candidates")
        ids = plain_list(candidates, "$.candidates", "ids", self.max_rows)
        self.count_rows(ids, "candidates")
        return ids

    cdef object rank_raw(self, object context, object raw, int64_t k, object available, object exclude, object request_id,
                         int64_t now_ns, Call* call, bint observe, object event_id, object priority, int64_t* marks):
        """The ids straight from the JSON array: no text object is made but for what is returned."""
        cdef Workspace ws = self.pop()
        cdef Py_buffer view
        cdef int64_t n, cap
        cdef list ids = None
        cdef bint failed = True
        ws.call = call
        PyObject_GetBuffer(raw, &view, PyBUF_SIMPLE)
        try:
            cap = view.len // 2 + 1
            if cap > self.max_rows:
                cap = self.max_rows
            ws.reserve(cap)
            n = SCAN_SLOW
            if self.candidate_text:
                n = scan_ids(<const char*>view.buf, view.len, ws.keys, cap)
            if n == SCAN_TOO_MANY:
                raise LimitError(f"Expected at most {self.max_rows} candidates, got more", hint="see max_rows of the contract")
            if n < 0:
                ids = self.decode_body(bytes(raw), True, self.decode_ids)
                if len(ids) > self.max_rows:
                    raise LimitError(f"Expected at most {self.max_rows} candidates, got {len(ids)}",
                                     hint="see max_rows of the contract")
                n = len(ids)
                ws.reserve(n)
            self.admit(call, n)
            if self.resolver is not None or observe or event_id is not None:
                self.begin(ws, now_ns, FOREVER, observe, event_id, True, True)
            ranking = self.rank_core(context, ids, n, ws, k, available, exclude, request_id, now_ns, marks)
            ranking = self.conclude(call, ranking, context, priority)
            self.n_answers += 1
            self.n_fresh += ws.fresh
            failed = False
            return ranking
        finally:
            PyBuffer_Release(&view)
            if failed:
                self.tell_error(ws)
            if ws.lease is not None:
                if ws.lease.n_refresh:
                    self.resolver.refresh(ws.lease)
            self.push(ws)

    def rank_json(self, body, available=None, request_id=None, int64_t now_ns=0, int64_t budget_ns=0, bint observe=False,
                  event_id=None, priority=CRITICAL):
        """JSON bytes with context, candidates, k, exclude -> JSON bytes."""
        cdef Call call
        self.enter(&call, priority, budget_ns, None, 0)
        try:
            request = self.decode_body(body, True, self.decode_json)
            return self.encode_json(self.rank_raw(request.context, request.candidates, how_many(request.k), available, request.exclude,
                                             request.request_id if request_id is None else request_id, now_ns, &call, observe,
                                             event_id, priority, NULL))
        finally:
            self.leave(&call)

    def rank_json_staged(self, body, available=None):
        """As `rank_json`, and the nanoseconds of decode, resolve, fill, run, decide and encode."""
        cdef int64_t marks[3]
        cdef int64_t start = self.clock.monotonic_ns(), decoded, decided
        cdef Call call
        marks[1] = marks[2] = 0
        self.untimed(&call)
        request = self.decode_body(body, True, self.decode_json)
        decoded = self.clock.monotonic_ns()
        ranking = self.rank_raw(request.context, request.candidates, how_many(request.k), available, request.exclude, None, 0,
                                &call, False, None, CRITICAL, marks)
        decided = self.clock.monotonic_ns()
        encoded = self.encode_json(ranking)
        end = self.clock.monotonic_ns()
        return encoded, (decoded - start, marks[0] - decoded, marks[1], marks[2], decided - marks[0] - marks[1] - marks[2],
                         end - decided)

    def tensors_ranking(self, context, candidates, int64_t now_ns=0):
        """What the model would get for one tile of candidates, for tests: arrays by input position, and the ids scored."""
        cdef Workspace ws = self.pop()
        cdef list ids = list(candidates)
        cdef int64_t m, placed, i
        if len(ids) > TILE:
            raise LimitError(f"Expected at most {TILE} candidates, got {len(ids)}")
        try:
            ws.reserve(len(ids))
            ws.has_unknown = ws.has_refused = False
            self.begin(ws, now_ns, 0, False, None, True, True)
            self.rank_context(context, ws, now_ns)
            m = self.rank_filter(ids, len(ids), ws, None, None, None)
            if self.resolver is not None and self.resolver.n_cross_cells:
                self.gather_cross(ws, m)
            placed = self.assemble(ws, 0, m)
            if placed < 0:
                raise MemoryError()
            if self.has_masks:
                self._widen_masks(ws, placed)
            out = [self._array(ws, placed, t, is_mask) for is_mask, t, _ in self.input_plan]
            return out, [ids[ws.kept[i]] for i in range(placed)]
        finally:
            self.push(ws)

    cdef int rank_context(self, object context, Workspace ws, int64_t now_ns) except -1:
        """Context fields and entities -> slots -> the template row that every candidate's row begins with."""
        cdef EntityPlan plan
        cdef Bound bound
        cdef RowBlock block
        cdef int code, i = 0
        self.reader.read(context, ws.state, -1)
        ws.state.st.n_flags = 0
        ws.state.st.review = 0
        if self.resolver is not None:
            ws.state.st.now_ns = ws.options.now_ns
            self.look_up_all(ws, self.context_plans, self.resolver.context, -1)
        else:
            if self.has_clock:
                ws.state.st.now_ns = now_ns if now_ns else self.wall_ns()
            for plan in self.context_plans:
                bound = plan.current()
                ws.state.keep.append(bound)
                if self.look_up(&bound.c, ws):
                    raise MemoryError()
        code = self.program.run_columns(self.context_columns, self.n_context, &ws.state.st, ws.templates, ws.template_masks)
        if code:
            self.program.fail(&ws.state.st.error, -1)
        memset(ws.seen, 0, <size_t>self.program.c.n_columns)
        ws.seen_any = False
        self.note_flags(ws)
        # From here on the call reads these generations, whatever a swap does while the GIL is given up.
        for plan in self.cross_plans:
            bound = plan.current()
            ws.state.keep.append(bound)
            ws.cross[i] = &bound.c
            i += 1
        ws.items = None
        ws.item_lookup = NULL
        ws.block = ws.flags = NULL
        if self.item_plan is not None:
            ws.items = self.item_plan.current()
            ws.item_lookup = &ws.items.c
            if self.n_item:
                found = ws.items.table.blocks.get(self.block_name)
                if found is None:
                    self.encode_items(ws.items.table)
                    found = ws.items.table.blocks.get(self.block_name)
                block = <RowBlock>found
                ws.state.keep.append(block)
                ws.block = block.data
                ws.block_stride = <int64_t>block.stride
                found = ws.items.table.blocks.get(self.flags_name)
                if found is not None:
                    block = <RowBlock>found
                    ws.state.keep.append(block)
                    ws.flags = block.data
                    ws.flags_stride = <int64_t>block.stride
        return 0

    cdef void note_flags(self, Workspace ws) noexcept nogil:
        cdef int i
        cdef uint8_t* seen = ws.seen
        if ws.state.st.n_flags:
            ws.seen_any = True
        for i in range(ws.state.st.n_flags):
            seen[ws.state.st.flags[i].column] |= SEEN_AS[ws.state.st.flags[i].state]
        ws.state.st.n_flags = 0

    cdef int64_t rank_filter(self, list ids, int64_t n, Workspace ws, Available available, object exclude,
                             dict suppressed) except -1:
        """Keys -> rows; leaves out what is excluded, unavailable, refused or named twice. Returns how many are kept."""
        cdef SnapshotTable table = None if ws.items is None else ws.items.table
        cdef int64_t i, m = 0, size = 64, mask, place, row, number
        cdef int32_t cell
        cdef int overflow = 0
        cdef set gone = set(), named = set()
        cdef list excluded = [] if exclude is None else exclude
        cdef TableView* view = NULL
        if available is not None:
            if table is None:
                raise FeatureTypeError("`available` reads the candidates' table, and this ranker has none", path="$.available")
            available = available.current(table)
            view = &ws.items.c.view
        while size < 2 * (n + len(excluded)) + 2:
            size *= 2
        if size > ws.set_size:
            ws.reserve_set(size)
        mask = size - 1
        memset(ws.set_cells, 0, <size_t>(size * sizeof(int32_t)))
        for i in range(len(excluded)):
            item = self.plain_key(excluded[i], "$.exclude", i)
            row = table.find(item) if table is not None else -1
            if row < 0:
                gone.add(item)
                continue
            place = <int64_t>((<uint64_t>row * 0x9E3779B1ULL) & <uint64_t>mask)
            while ws.set_cells[place] != 0:
                place = (place + 1) & mask
            ws.set_cells[place] = -<int32_t>(row + 1)
        if ids is not None and len(ids) != n:
            raise FeatureTypeError(f"Expected {n} candidates, got {len(ids)}: the list changed while it was read",
                                   path="$.candidates", hint="give every call a list of its own")
        # From here to the end of the ranking no code but ours runs and no container is made: `ids` may be the caller's own list.
        if table is not None:
            if ids is None:
                table.find_many_bytes(ws.keys, n, ws.found)
            else:
                table.find_many(ids, ws.found, ws.keys)
                if not self.candidate_text:
                    for i in range(n):
                        ws.numbers[i] = PyLong_AsLongLongAndOverflow(ids[i], &overflow)
        else:
            for i in range(n):
                ws.found[i] = -1
                if ids is not None:
                    self.own_key(ids[i], ws, i)
        for i in range(n):
            row = ws.found[i]
            ws.why[i] = KEPT
            if row >= 0:
                if ws.block != NULL:
                    ri_ask_row(ws.block + row * ws.block_stride, self.item_row_bytes)
                place = <int64_t>((<uint64_t>row * 0x9E3779B1ULL) & <uint64_t>mask)
                while True:
                    cell = ws.set_cells[place]
                    if cell == 0:
                        ws.set_cells[place] = <int32_t>(row + 1)
                        break
                    if cell == row + 1:
                        ws.why[i] = DUPLICATE
                        break
                    if cell == -(row + 1):
                        ws.why[i] = EXCLUDED
                        break
                    place = (place + 1) & mask
                if ws.why[i] == KEPT and ws.flags != NULL and ws.flags[row * ws.flags_stride] & 1 and self.max_item_age_ns == 0:
                    ws.why[i] = REFUSED  # where columns have an age, a stale value's default may still save the row: `assemble`
                if ws.why[i] == KEPT and view != NULL and not available.holds(view, row):
                    ws.why[i] = UNAVAILABLE
            else:
                key = self.key_object(ids, ws, i)
                if key in gone:
                    ws.why[i] = EXCLUDED
                elif key in named:
                    ws.why[i] = DUPLICATE
                elif available is not None:
                    ws.why[i] = NOT_KNOWN
                named.add(key)
                ws.has_unknown = True
            if ws.why[i] == KEPT:
                ws.kept[m] = <int32_t>i
                ws.kept_rows[m] = <int32_t>row
                m += 1
            elif suppressed is not None and ws.why[i] != DUPLICATE:
                suppressed[self.key_object(ids, ws, i)] = _WHY[ws.why[i]]
        return m

    cdef object key_object(self, list ids, Workspace ws, int64_t i):
        """The id of candidate i, as a plain str or int: subclasses could run code when they are hashed."""
        if ids is not None and (type(ids[i]) is str if self.candidate_text else PyLong_CheckExact(ids[i])):
            return ids[i]
        if not self.candidate_text:
            return ws.numbers[i]
        return PyUnicode_DecodeUTF8(ws.keys[i].data, ws.keys[i].size, NULL)

    cdef object plain_key(self, object key, str where, int64_t i):
        """An id as an exact str that has a UTF-8 form, or an exact int of 64 bits."""
        cdef Py_ssize_t size = 0
        cdef int overflow = 0
        cdef type given = type(key)
        if self.candidate_text:
            if not issubclass(given, str):
                raise FeatureTypeError(f"Expected `str`, got `{given.__name__}` {clip(key)}", path=f"{where}[{i}]")
            try:
                utf8_of(key, &size)
            except UnicodeEncodeError:
                raise FeatureRangeError("Expected text that UTF-8 can hold, got a lone surrogate", path=f"{where}[{i}]") from None
            return key if given is str else str.__str__(key)
        if not PyLong_CheckExact(key):
            if given is bool or not issubclass(given, (int, np.integer)):
                raise FeatureTypeError(f"Expected `int`, got `{given.__name__}` {clip(key)}", path=f"{where}[{i}]")
            key = int.__index__(key) if issubclass(given, int) else key.item()
        PyLong_AsLongLongAndOverflow(key, &overflow)
        if overflow:
            raise FeatureRangeError("Expected an integer of 64 bits, got a larger one", path=f"{where}[{i}]")
        return key

    cdef int own_key(self, object key, Workspace ws, int64_t i) except -1:
        """Canonical key of a candidate that no table is asked about; it lives as long as the caller's object."""
        cdef Py_ssize_t size = 0
        cdef int overflow = 0
        plain = self.plain_key(key, "$.candidates", i)
        if self.candidate_text:
            ws.keys[i].data = utf8_of(key, &size)
            ws.keys[i].size = size
        else:
            ws.numbers[i] = PyLong_AsLongLongAndOverflow(plain, &overflow)
        return 0

    cdef int find_cross(self, Workspace ws, int64_t first, int64_t count) noexcept nogil:
        """Rows of the entities that context and candidate name together, for a tile: keys are built side by side and looked up
        in one pipelined pass, because one after the other each would wait for memory. -1: out of memory."""
        cdef Lookup* plan
        cdef ri_slot* slots = ws.state.st.slots
        cdef ri_slot* s
        cdef StrRef candidate
        cdef char* end
        cdef size_t room
        cdef int64_t i, fixed, longest = 8
        cdef int p, k
        cdef bint known
        for i in range(count):
            if self.candidate_text and ws.keys[ws.kept[first + i]].size > longest:
                longest = ws.keys[ws.kept[first + i]].size
        for p in range(self.n_cross_plans):
            plan = ws.cross[p]
            known, fixed = True, 0
            for k in range(plan.n_keys):
                s = slots + plan.keys[k]
                if plan.keys[k] == self.candidate_slot:
                    continue
                known = known and s.state == RI_PRESENT
                fixed += ri_key_room(s.n if s.kind == RI_SLOT_TEXT else 8)
            if not known:
                for i in range(count):
                    ws.cross_rows[p * TILE + i] = -1
                continue
            room = <size_t>((fixed + <int64_t>ri_key_room(longest)) * count)
            if <int64_t>room > ws.key_room:
                free(ws.key_scratch)
                ws.key_room = 0
                ws.key_scratch = <char*>malloc(room)
                if ws.key_scratch == NULL:
                    return -1
                ws.key_room = <int64_t>room
            end = ws.key_scratch
            for i in range(count):
                ws.cross_keys[i].data = end
                for k in range(plan.n_keys):
                    s = slots + plan.keys[k]
                    if plan.keys[k] == self.candidate_slot:
                        if self.candidate_text:
                            candidate = ws.keys[ws.kept[first + i]]
                            end = ri_key_put_bytes(end, candidate.data, candidate.size)
                        else:
                            end = ri_key_put_int(end, ws.numbers[ws.kept[first + i]])
                    elif s.kind == RI_SLOT_TEXT:
                        end = ri_key_put_bytes(end, s.v.text, s.n)
                    else:
                        end = ri_key_put_int(end, s.v.i)
                ws.cross_keys[i].size = end - ws.cross_keys[i].data
            index_find_many(&plan.index, ws.cross_keys, count, ws.cross_rows + p * TILE)
        return 0

    cdef int64_t assemble(self, Workspace ws, int64_t first, int64_t count) noexcept nogil:
        """Rows of kept candidates [first, first + count) into the tile. Returns how many were placed (the rest was refused),
        or -1: out of memory."""
        cdef int64_t i, placed = 0, row, updated
        cdef int32_t candidate
        cdef int t, code
        cdef bint direct
        cdef StrRef key
        cdef const ri_slot* live = NULL
        cdef const int* live_slots = NULL
        cdef int n_live = 0
        if self.n_live_cross:
            live, live_slots, n_live = ws.live_cross, self.live_slots, self.n_live_cross
        for t in range(ws.n_tensors):
            if self.tensor_is_context[t]:
                memcpy(ws.tensors[t], ws.templates[t], <size_t>self.row_bytes[t])
                if ws.masks[t] != NULL:
                    memcpy(ws.masks[t], ws.template_masks[t], <size_t>self.cells[t])
        if self.n_cross == 0 and not ws.has_unknown and not self.has_masks and self.max_item_age_ns == 0 \
                and (ws.block != NULL or self.n_item == 0):
            self.copy_rows(ws, first, count)
            return count
        if self.n_cross_plans and self.find_cross(ws, first, count):
            return -1
        for i in range(count):
            candidate = ws.kept[first + i]
            row = ws.kept_rows[first + i]
            if i + 4 < count:  # records that are read soon
                if ws.item_lookup != NULL and ws.kept_rows[first + i + 4] >= 0:
                    ri_ask_row(ri_record(&ws.item_lookup.view, ws.kept_rows[first + i + 4]), <int64_t>ws.item_lookup.view.stride)
                for t in range(self.n_cross_plans):
                    if ws.cross_rows[t * TILE + i + 4] >= 0:
                        ri_ask_row(ri_record(&ws.cross[t].view, ws.cross_rows[t * TILE + i + 4]),
                                   <int64_t>ws.cross[t].view.stride)
            if self.candidate_text:
                key = ws.keys[candidate]
            else:
                key.data = <const char*>&ws.numbers[candidate]
                key.size = 8
            self.set_candidate(ws, key)
            for t in range(ws.n_tensors):
                if self.tensor_is_context[t]:
                    ws.rows[t] = ws.tensors[t]
                    ws.mask_rows[t] = ws.masks[t]
                    continue
                ws.rows[t] = ws.tensors[t] + placed * self.row_bytes[t]
                ws.mask_rows[t] = NULL if ws.masks[t] == NULL else ws.masks[t] + placed * self.cells[t]
                memcpy(ws.rows[t], ws.templates[t], <size_t>self.row_bytes[t])
                if ws.masks[t] != NULL:
                    memcpy(ws.mask_rows[t], ws.template_masks[t], <size_t>self.cells[t])
            if ws.item_lookup != NULL:
                load_record(ws.item_lookup, &ws.state.st, row)
            direct = row < 0 or self.has_masks or ws.block == NULL
            if not direct and self.max_item_age_ns:
                updated = ri_updated_at_ns(ri_record(&ws.item_lookup.view, row))
                direct = updated == 0 or (ws.flags != NULL and ws.flags[row * ws.flags_stride] & 1) or ws.state.st.now_ns - updated > self.max_item_age_ns
            code = 0
            if direct:
                code = self.program.run_columns(self.item_columns, self.n_item, &ws.state.st, ws.rows, ws.mask_rows)
            else:
                for t in range(self.n_item_segments):
                    memcpy(ws.rows[self.item_segments[t].tensor] + self.item_segments[t].target,
                           ws.block + row * ws.block_stride + self.item_segments[t].source,
                           <size_t>self.item_segments[t].size)
            if code == 0:
                for t in range(self.n_cross_plans):
                    load_record(ws.cross[t], &ws.state.st, ws.cross_rows[t * TILE + i])
                if live != NULL:
                    put_slots(ws.state.st.slots, live + (first + i) * n_live, live_slots, n_live)
                code = self.program.run_columns(self.cross_columns, self.n_cross, &ws.state.st, ws.rows, ws.mask_rows)
            self.note_flags(ws)
            if code:
                ws.why[candidate] = NOT_KNOWN if row < 0 else REFUSED
                ws.has_refused = True
                continue
            ws.kept[first + placed] = candidate
            ws.kept_rows[first + placed] = <int32_t>row
            placed += 1
        return placed

    cdef void copy_rows(self, Workspace ws, int64_t first, int64_t count) noexcept nogil:
        """Rows that need nothing but copying: context cells from the template, item cells from the block."""
        cdef int s
        cdef int64_t i
        cdef Segment* seg
        cdef Segment* item
        cdef uint8_t* out
        if self.n_context_segments == 1 and self.n_item_segments == 1 \
                and self.context_segments[0].tensor == self.item_segments[0].tensor:
            seg, item = self.context_segments, self.item_segments
            ri_join_rows(ws.tensors[seg.tensor], self.row_bytes[seg.tensor], ws.templates[seg.tensor] + seg.target, seg.target,
                         seg.size, ws.block + item.source, ws.block_stride, ws.kept_rows + first, count, item.target, item.size)
            return
        for s in range(self.n_context_segments):
            seg = self.context_segments + s
            if self.tensor_is_context[seg.tensor]:
                continue
            out = ws.tensors[seg.tensor] + seg.target
            for i in range(count):
                memcpy(out, ws.templates[seg.tensor] + seg.target, <size_t>seg.size)
                out += self.row_bytes[seg.tensor]
        for s in range(self.n_item_segments):
            seg = self.item_segments + s
            gather_rows(ws.block + seg.source, <size_t>ws.block_stride, ws.kept_rows + first, count, <size_t>seg.size,
                        ws.tensors[seg.tensor] + seg.target, <size_t>self.row_bytes[seg.tensor])

    cdef object rank_core(self, object context, list ids, int64_t n, Workspace ws, int64_t k, object available, object exclude,
                          object request_id, int64_t now_ns, int64_t* marks):
        cdef int64_t m, total, i
        cdef dict suppressed = {}
        cdef list items = [None] * (k if k < n else n), scores = [None] * (k if k < n else n)
        cdef RunError err
        ws.has_unknown = False
        ws.has_refused = False
        self.rank_context(context, ws, now_ns)
        m = self.rank_filter(ids, n, ws, available, exclude, suppressed)
        if self.resolver is not None and self.resolver.n_cross_cells:
            self.gather_cross(ws, m)
        if marks != NULL:
            marks[0] = self.clock.monotonic_ns()
        if (self.model is None and self.trees is None) or marks != NULL:
            total = self.python_tiles(ws, m, marks)
        elif self.releases(n):
            with nogil:  # once per call, over all tiles
                total = self.native_tiles(ws, m, &err)
        else:
            total = self.native_tiles(ws, m, &err)
        if total == -1:
            raise MemoryError()
        if total == -3:
            self.refuse_range(ws, ws.bad_rows)
        if total < 0:
            raise_run_error(&err)
        if ws.has_refused:
            for i in range(n):
                if ws.why[i] == REFUSED or ws.why[i] == NOT_KNOWN:
                    suppressed[self.key_object(ids, ws, i)] = _WHY[ws.why[i]]
        if k > total:
            k = total
        select_top(ws, total, k, self.candidate_text)
        for i in range(k):
            items[i] = self.key_object(ids, ws, ws.kept[ws.order[i]])
            scores[i] = <double>ws.ranked[ws.order[i]]
        if k < len(items):
            del items[k:]
            del scores[k:]
        self.note_items(ws, k)
        stale, missing = self.seen_names(ws)
        request_id = self.next_id() if request_id is None else own_id(request_id)
        ws.fresh = self.seen_fresh(ws)
        trace = self.trace if ws.lease is None or ws.lease.trace is None else self.trace + tuple(ws.lease.trace)
        return self.ranking_type(request_id, items, scores, self.release, self.arm, 0, stale, missing, suppressed, trace)

    cdef bint seen_fresh(self, Workspace ws) noexcept nogil:
        cdef int i
        if ws.seen_any:
            for i in range(self.program.c.n_columns):
                if ws.seen[i] & (2 | 4):
                    return False
        return True

    cdef int gather_cross(self, Workspace ws, int64_t m) except -1:
        """Rows of mutable tables that context and candidate name together, for the m kept candidates: read at one moment, after
        their sources had time for what is missing, into memory of the call, which the tiles then read without the GIL."""
        cdef Resolver resolver = self.resolver
        cdef Lease lease = ws.lease
        cdef ri_state* st = &ws.state.st
        cdef dict missing
        cdef int64_t i, first = 0, end = m
        lease.reserve_cross(m * resolver.n_cross_cells)
        resolver.read_clocks(lease)
        while first < m:
            if resolver.has_cross_sources:  # in parts that a small table has room for
                end = min(m, first + resolver.at_once(m))
                missing = {}
                lease.fetch_again()
                for i in range(first, end):
                    self.set_candidate(ws, self.candidate_key(ws, ws.kept[i]))
                    resolver.note_missing(lease, st, resolver.cross, missing)
                self.fetch_many(ws, missing)
                resolver.read_clocks(lease)
            for i in range(first, end):
                self.set_candidate(ws, self.candidate_key(ws, ws.kept[i]))
                if resolver.probe_cross(lease, st, lease.cross + i * resolver.n_cross_cells):
                    raise MemoryError()
            resolver.settle(lease)
            first = end
        ws.live_cross = lease.cross
        return 0

    cdef StrRef candidate_key(self, Workspace ws, int32_t candidate) noexcept nogil:
        cdef StrRef key
        if self.candidate_text:
            return ws.keys[candidate]
        key.data = <const char*>&ws.numbers[candidate]
        key.size = 8
        return key

    cdef int64_t native_tiles(self, Workspace ws, int64_t m, RunError* err) noexcept nogil:
        """Assemble and run tile after tile. Returns the number of scored rows, compacted to the front; -1 no memory, -2 `err` says what, -3 a score out of its range."""
        cdef int64_t first = 0, count, placed, total = 0, i
        while first < m:
            count = m - first if m - first < self.tile else self.tile
            placed = self.assemble(ws, first, count)
            if placed < 0:
                return -1
            if placed > 0:
                if self.has_masks:
                    self._widen_masks(ws, placed)
                if self.trees is not None:
                    if self.tree_scores(ws, placed, err):
                        return -2
                else:
                    self._set_rows(ws, placed)
                    if self.model.run_scores(ws.inputs, placed, ws.scores, err):
                        return -2
                if self.out_of_range(ws, placed):
                    ws.bad_rows = placed
                    return -3
            self.keep_scores(ws, first, placed, total)
            total += placed
            first += count
        return total

    cdef int64_t python_tiles(self, Workspace ws, int64_t m, int64_t* marks) except -2:
        """The same through `session`, or on the clock: marks[1] and marks[2] get the ns of filling and running."""
        cdef int64_t first = 0, count, placed, total = 0, start = 0
        while first < m:
            count = m - first if m - first < self.tile else self.tile
            if marks != NULL:
                start = self.clock.monotonic_ns()
            placed = self.assemble(ws, first, count)
            if marks != NULL:
                marks[1] += self.clock.monotonic_ns() - start
                start = self.clock.monotonic_ns()
            if placed < 0:
                raise MemoryError()
            if placed > 0:
                self.run_model(ws, placed, False)
            if marks != NULL:
                marks[2] += self.clock.monotonic_ns() - start
            self.keep_scores(ws, first, placed, total)
            total += placed
            first += count
        return total

    cdef void keep_scores(self, Workspace ws, int64_t first, int64_t placed, int64_t total) noexcept nogil:
        cdef int64_t i
        for i in range(placed):
            ws.ranked[total + i] = ws.scores[i]
            ws.kept[total + i] = ws.kept[first + i]
            ws.kept_rows[total + i] = ws.kept_rows[first + i]

    cdef int note_items(self, Workspace ws, int64_t k) except -1:
        """Columns that were missing in the encoded rows of the answer: told when they are shown, not copied with each row."""
        cdef int64_t i, row
        cdef int t
        if ws.flags == NULL:
            return 0
        for i in range(k):
            row = ws.kept_rows[ws.order[i]]
            if row < 0 or not ws.flags[row * ws.flags_stride] & 2:
                continue
            self.set_candidate(ws, index_key(&ws.items.c.index, row))
            load_record(&ws.items.c, &ws.state.st, row)
            for t in range(ws.n_tensors):
                ws.rows[t] = ws.tensors[t]
                ws.mask_rows[t] = ws.masks[t]
            self.program.run_columns(self.item_columns, self.n_item, &ws.state.st, ws.rows, ws.mask_rows)
            self.note_flags(ws)
        return 0

    cdef tuple seen_names(self, Workspace ws):
        cdef int i
        cdef list stale = None, missing = None
        if not ws.seen_any:
            return (), ()
        for i in range(self.program.c.n_columns):
            if ws.seen[i]:
                stale, missing = stale or [], missing or []
                if ws.seen[i] & 2:
                    stale.append(self.program.column_names[i])
                if ws.seen[i] & 1:
                    missing.append(self.program.column_names[i])
        return ((), ()) if stale is None else (tuple(stale), tuple(missing))


cdef void select_top(Workspace ws, int64_t m, int64_t k, bint text) noexcept nogil:
    """Indices of the k best of m scored rows into ws.order, best first: a heap of k with the worst on top, then unwound."""
    cdef int64_t i, size = 0
    cdef int32_t last
    if k <= 0:
        return
    for i in range(m):
        if size < k:
            ws.order[size] = <int32_t>i
            size += 1
            if size == k:
                heapify(ws, size, text)
        elif row_better(ws, <int32_t>i, ws.order[0], text):
            ws.order[0] = <int32_t>i
            sift_down(ws, 0, size, text)
    while size > 1:
        size -= 1
        last = ws.order[size]
        ws.order[size] = ws.order[0]
        ws.order[0] = last
        sift_down(ws, 0, size, text)


cdef void heapify(Workspace ws, int64_t size, bint text) noexcept nogil:
    cdef int64_t at = size // 2
    while at > 0:
        at -= 1
        sift_down(ws, at, size, text)


cdef inline bint row_better(Workspace ws, int32_t a, int32_t b, bint text) noexcept nogil:
    if ws.ranked[a] != ws.ranked[b]:
        return ws.ranked[a] > ws.ranked[b]
    return smaller_id(ws.keys[ws.kept[a]], ws.keys[ws.kept[b]], ws.numbers[ws.kept[a]], ws.numbers[ws.kept[b]], text)


cdef void sift_down(Workspace ws, int64_t at, int64_t size, bint text) noexcept nogil:
    cdef int64_t child
    cdef int32_t moved = ws.order[at]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and row_better(ws, ws.order[child], ws.order[child + 1], text):
            child += 1
        if not row_better(ws, moved, ws.order[child], text):
            break
        ws.order[at] = ws.order[child]
        at = child
    ws.order[at] = moved


@cython.final
cdef class Available:
    """Comparisons of stored columns with constants, joined by `and`; a null cell does not hold."""

    def __init__(self, EntityPlan plan, str text not None, list terms):
        if plan is None:
            raise FeatureTypeError("`available` reads the candidates' table, and this ranker has none", path="$.available")
        self.plan = plan
        self.text = text
        self.terms = terms
        self._read(plan.slot.table.schema)

    def __dealloc__(self):
        free(self.conditions)

    cdef Available current(self, SnapshotTable table):
        """These comparisons for another generation of the table; itself while it has the same columns."""
        cdef Available made
        if table.schema is self.schema:
            return self
        if table.schema == self.schema:
            self.schema = table.schema
            return self
        if self.newer is not None:
            return self.newer.current(table)
        made = <Available>Available.__new__(Available)
        made.plan, made.text, made.terms = self.plan, self.text, self.terms
        made._read(table.schema)
        self.newer = made
        return made

    cdef int _read(self, tuple columns) except -1:
        cdef int i
        cdef dict schema = {entry[0]: entry for entry in columns}
        self.conditions = <Condition*>calloc(len(self.terms) + 1, sizeof(Condition))
        if self.conditions == NULL:
            raise MemoryError()
        for i in range(len(self.terms)):
            column, op, number = self.terms[i]
            entry = schema.get(column)
            if entry is None or entry[1] not in ("f64", "i64"):
                raise FeatureTypeError(
                    f"Expected a number column of table `{self.plan.name}` in `{self.text}`, got `{column}`", path="$.available",
                    hint=f"it has: {', '.join(e[0] for e in columns if e[1] in ('f64', 'i64')) or 'none'}",
                )
            self.conditions[i].kind = 0 if entry[1] == "f64" else 1
            self.conditions[i].op = op
            self.conditions[i].offset = entry[2]
            self.conditions[i].bit = entry[3]
            self.conditions[i].number = number
        self.n = len(self.terms)
        self.schema = columns
        return 0

    cdef bint holds(self, const TableView* view, int64_t row) noexcept nogil:
        cdef const uint8_t* record = ri_record(view, row)
        cdef Condition* c
        cdef double value
        cdef int i
        cdef bint ok
        for i in range(self.n):
            c = self.conditions + i
            if not ri_cell_present(record, c.bit):
                return False
            value = ri_cell_f64(record, c.offset) if c.kind == 0 else <double>ri_cell_i64(record, c.offset)
            if c.op == 0:
                ok = value < c.number
            elif c.op == 1:
                ok = value <= c.number
            elif c.op == 2:
                ok = value > c.number
            elif c.op == 3:
                ok = value >= c.number
            elif c.op == 4:
                ok = value == c.number
            else:
                ok = value != c.number
            if not ok:
                return False
        return True
