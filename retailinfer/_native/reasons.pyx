"""Reasons of forests: which groups of features push a row's sum up, and how much each feature adds. Arguments: reasons.pyi.

Rules:
  * Arrays are those of the TreeModel; dtype and shape are checked here, what they say in tree_reasons.c.
  * All instruction sets pick the same groups, so the one of the model's kernels may be used.
What contributions are: tree_reasons.h.
"""
from cpython.buffer cimport Py_buffer, PyBuffer_Release
from libc.stdint cimport int32_t, int64_t

cimport cython

from retailinfer._native.trees cimport TreeModel, flat_array, forest_arrays, free_scratch, ri_forest, ri_kernel_set, ri_trees

import numpy as np

from retailinfer.errors import ConfigError, ModelError, ShapeError, clip

cdef extern from "tree_reasons.h" nogil:
    enum:
        RI_SHAP_MAX_DEPTH
    const ri_reason_kernels* ri_reason_kernels_of(const char* level)
    ri_reasons* ri_reasons_new(const ri_trees* s, const int32_t* groups, int32_t n_groups, int32_t output, int sign, int form, int* error,
                               int64_t* at)
    int ri_reasons_pack(ri_reasons* r, const ri_forest* f, const ri_kernel_set* set)
    void ri_reasons_free(ri_reasons* r)
    int32_t ri_reasons_pick_sums(const ri_reasons* r, const ri_reason_kernels* kernels, void* scratch, int32_t most, int32_t* picked)
    int32_t ri_reasons_pick(const ri_reasons* r, const ri_reason_kernels* kernels, const int32_t* leaves, void* scratch, int32_t most,
                            int32_t* picked)
    void ri_reasons_amounts(const ri_reasons* r, const ri_reason_kernels* kernels, const int32_t* leaves, void* scratch, int64_t* amounts)
    ri_explain* ri_explain_new(const ri_trees* s, int32_t output, int* error, int64_t* at)
    void ri_explain_free(ri_explain* e)
    void ri_explain_path(const ri_explain* e, const int32_t* leaves, double* out)
    void ri_explain_shap(const ri_explain* e, const double* row, void* scratch, double* out)
    size_t ri_explain_shap_room(const ri_explain* e)

cdef extern from "aligned.h" nogil:
    void* ri_aligned(size_t size)

cdef extern from "Python.h":
    void Py_INCREF(object o)
    tuple PyTuple_New(Py_ssize_t n)
    void PyTuple_SET_ITEM(tuple t, Py_ssize_t i, object o)

cdef extern from *:
    """
    #include <time.h>
    static long long ri_now_ns(void) {
        struct timespec t;
        timespec_get(&t, TIME_UTC);
    #if defined(CLOCK_MONOTONIC)
        clock_gettime(CLOCK_MONOTONIC, &t);
    #endif
        return (long long)t.tv_sec * 1000000000LL + t.tv_nsec;
    }
    """
    int64_t ri_now_ns() nogil

FORMS = ("auto", "dense", "sparse")
MAX_GROUPS = 1 << 20
MAX_REASONS = 64

_WRONG = (
    "", "no memory for the reasons", "a forest that is too large for reasons", "nodes that do not form trees - at node {}",
    "a leaf that two ways lead to - at leaf {}", "a group that there is not - at feature {}",
)


cdef tuple _source(TreeModel model, arrays, int average, ri_trees* s):
    """A forest's arrays as C sees them; returned is what has to be kept while it does."""
    keep = forest_arrays(arrays, model.n_outputs, s)
    if s.n_trees != model.n_trees:
        raise ShapeError(f"Expected {model.n_trees} entries in `roots`, got {s.n_trees}")
    s.n_features, s.n_columns, s.average = model.n_features, model.n_columns, average
    return keep


cdef tuple _sum_of(TreeModel model, int column):
    """(output, sign) of a column: of one sum with two columns, the first is what is left of the second."""
    if not 0 <= column < model.n_columns:
        raise ConfigError(f"Expected a column below {model.n_columns}, got {column}")
    if model.n_outputs == 1:
        return 0, -1 if model.n_columns == 2 and column == 0 else 1
    return column, 1


cdef object _failed(int error, int64_t at):
    return MemoryError(_WRONG[1]) if error == 1 else ModelError(
        "Expected a forest whose ways can be told apart, got " + _WRONG[error].format(at))


cdef tuple tuple_of(tuple names, const int32_t* picked, int32_t n):
    cdef tuple made = PyTuple_New(n)
    cdef int32_t i
    cdef object one
    for i in range(n):
        one = names[picked[i]]
        Py_INCREF(one)  # SET_ITEM takes the reference
        PyTuple_SET_ITEM(made, i, one)
    return made


@cython.final
cdef class ForestReasons:
    def __cinit__(self):
        self.c = NULL

    def __init__(self, TreeModel model not None, arrays, groups, *, tuple names not None, int column=0, int most=4, str form="auto"):
        cdef ri_trees s
        cdef int error = 0, which, sign, output, n_groups
        cdef int64_t at = -1
        cdef const int32_t[::1] numbers
        cdef const int32_t* first
        if self.c != NULL:
            raise ConfigError("ForestReasons are built once; make others")
        if form not in FORMS:
            raise ConfigError(f"Expected form out of {FORMS}, got {clip(form)}")
        if not 1 <= most <= MAX_REASONS or len(names) > MAX_GROUPS:
            raise ConfigError(f"Expected 1 to {MAX_REASONS} reasons out of at most {MAX_GROUPS} groups, got {most} out of {len(names)}")
        numbers = flat_array(groups, "groups", np.int32)
        if numbers.shape[0] != model.n_features:
            raise ShapeError(f"Expected {model.n_features} entries in `groups`, got {numbers.shape[0]}")
        output, sign = _sum_of(model, column)
        keep = _source(model, arrays, 0, &s)  # an average is the same order of groups
        which, n_groups = FORMS.index(form), len(names)
        first = &numbers[0]
        with nogil:
            self.c = ri_reasons_new(&s, first, n_groups, output, sign, which, &error, &at)
        if self.c == NULL:
            raise _failed(error, at)
        if ri_reasons_pack(self.c, model.forest, model.kernel_set):
            raise MemoryError("no memory for the packed records of reasons")
        self.kernels = ri_reason_kernels_of(model.kernel_set.level)
        self.model = model
        self.most = most
        self.names = names

    def __dealloc__(self):
        ri_reasons_free(self.c)

    @property
    def form(self):
        return "dense" if self.c.stride else "sparse"

    @property
    def quantum(self):
        return self.c.quantum

    @property
    def nbytes(self):
        return self.c.n_bytes

    def amounts(self, rows):
        """Sums of all groups, in quanta, before any is picked. Arguments: reasons.pyi."""
        cdef const int32_t[:, ::1] leaves = self.model.leaves(rows)
        cdef int64_t i, n = leaves.shape[0]
        cdef int64_t[:, ::1] out
        cdef const int32_t* row = NULL
        cdef void* scratch
        made = np.zeros((n, self.c.n_groups), np.int64)
        if n == 0 or self.c.n_groups == 0:
            return made
        out = made
        scratch = self.new_scratch()
        try:
            for i in range(n):
                row = &leaves[i, 0] if leaves.shape[1] else NULL
                with nogil:
                    ri_reasons_amounts(self.c, self.kernels, row, scratch, &out[i, 0])
        finally:
            free_scratch(scratch)
        return made

    def top(self, rows):
        """The strongest groups of each row. Arguments: reasons.pyi."""
        if len(rows) == 1:
            return [self._top_of_one(rows)]
        return self._top_of_many(rows)

    cdef tuple _top_of_one(self, rows):
        cdef Py_buffer view
        cdef int32_t[::1] leaves = np.empty(max(1, self.model.n_trees), np.int32)
        cdef int32_t picked[64]  # MAX_REASONS
        cdef float out
        cdef int32_t n
        cdef void* own = NULL
        cdef void* scratch = self.model.new_scratch()
        try:
            own = self.new_scratch()
            self.model._view(rows, &view)
            with nogil:
                n = self.run_row(view.buf, scratch, &out, 0, &leaves[0], own, picked)
            PyBuffer_Release(&view)
        finally:
            free_scratch(scratch)
            free_scratch(own)
        return self.named(picked, n)

    cdef list _top_of_many(self, rows):
        cdef const int32_t[:, ::1] leaves = self.model.leaves(rows)
        cdef int32_t picked[64]  # MAX_REASONS
        cdef int64_t i
        cdef int32_t n
        cdef const int32_t* row = NULL
        cdef void* scratch = self.new_scratch()
        cdef list out = []
        try:
            for i in range(leaves.shape[0]):
                row = &leaves[i, 0] if leaves.shape[1] else NULL
                with nogil:
                    n = self.pick(row, scratch, picked)
                out.append(self.named(picked, n))
        finally:
            free_scratch(scratch)
        return out

    def time(self, rows, *, int rounds=200):
        """Nanoseconds of one row without and with reasons. Arguments: reasons.pyi."""
        cdef const float[:, ::1] narrow
        cdef const double[:, ::1] wide
        cdef const char* data
        cdef void* scratch
        cdef void* own
        cdef int32_t[::1] leaves = np.empty(max(1, self.model.n_trees), np.int32)
        cdef int32_t picked[64]
        cdef float out
        cdef int64_t n, i, start, took, plain = -1, full = -1
        cdef int64_t stride, size = 8 if self.model.wide else 4
        cdef int r
        rows = self.model._rows(rows)
        n, stride = rows.shape
        if n == 0:
            raise ShapeError("Expected at least one row, got none", path="$.rows")
        if self.model.wide:
            wide = rows
            data = <const char*>&wide[0, 0]
        else:
            narrow = rows
            data = <const char*>&narrow[0, 0]
        scratch = self.model.new_scratch()
        own = self.new_scratch()
        try:
            with nogil:
                for r in range(rounds):
                    start = ri_now_ns()
                    for i in range(n):
                        self.model.run_into(data + i * stride * size, stride, 1, scratch, &out, 0, False)
                    took = ri_now_ns() - start
                    if plain < 0 or took < plain:
                        plain = took
                    start = ri_now_ns()
                    for i in range(n):
                        self.run_row(data + i * stride * size, scratch, &out, 0, &leaves[0], own, picked)
                    took = ri_now_ns() - start
                    if full < 0 or took < full:
                        full = took
        finally:
            free_scratch(scratch)
            free_scratch(own)
        return <double>plain / n, <double>full / n

    cdef void* new_scratch(self) except NULL:
        cdef void* made = ri_aligned(self.c.scratch)
        if made == NULL:
            raise MemoryError(f"no {self.c.scratch} bytes for the scratch of reasons")
        return made

    cdef int32_t run_row(self, const void* row, void* tree_scratch, float* out, int column, int32_t* leaves, void* scratch,
                         int32_t* picked) noexcept nogil:
        if self.c.packed != NULL and self.model.run_recorded_into(row, tree_scratch, out, column, &self.c.records, <int32_t*>scratch):
            return ri_reasons_pick_sums(self.c, self.kernels, scratch, self.most, picked)
        self.model.run_leaves_into(row, self.model.n_features, 1, tree_scratch, out, column, False, leaves)
        return self.pick(leaves, scratch, picked)

    cdef int32_t pick(self, const int32_t* leaves, void* scratch, int32_t* picked) noexcept nogil:
        return ri_reasons_pick(self.c, self.kernels, leaves, scratch, self.most, picked)

    cdef tuple named(self, const int32_t* picked, int32_t n):
        return tuple_of(self.names, picked, n)


@cython.final
cdef class ForestExplainer:
    def __cinit__(self):
        self.c = NULL

    def __init__(self, TreeModel model not None, arrays, *, int column=0, bint average=False, bint per_output=False):
        cdef ri_trees s
        cdef int error = 0, output
        cdef int64_t at = -1
        if self.c != NULL:
            raise ConfigError("a ForestExplainer is built once; make another one")
        output, sign = _sum_of(model, column)
        self.arrays = _source(model, arrays, average + (average and per_output), &s)
        with nogil:
            self.c = ri_explain_new(&s, output, &error, &at)
        if self.c == NULL:
            raise _failed(error, at)
        self.model = model
        self.sign = sign
        self.column = column

    def __dealloc__(self):
        ri_explain_free(self.c)

    @property
    def base(self):
        return self.sign * self.c.base

    def path(self, rows):
        """Contributions by the way of each row. Arguments: reasons.pyi."""
        cdef const int32_t[:, ::1] leaves = self.model.leaves(rows)
        cdef int64_t i, n = leaves.shape[0]
        cdef double[:, ::1] out
        made = np.zeros((n, self.model.n_features))
        if n == 0 or leaves.shape[1] == 0:
            return made
        out = made
        with nogil:
            for i in range(n):
                ri_explain_path(self.c, &leaves[i, 0], &out[i, 0])
        return made * self.sign

    def shap(self, rows):
        """Contributions by Shapley values. Arguments: reasons.pyi."""
        cdef const double[:, ::1] cells
        cdef int64_t i, n
        cdef double[:, ::1] out
        cdef void* scratch
        if self.c.max_depth > RI_SHAP_MAX_DEPTH:
            raise ConfigError(f"Expected trees of at most {RI_SHAP_MAX_DEPTH} levels, got {self.c.max_depth}",
                              hint='method="path" takes any depth')
        cells = np.ascontiguousarray(self.model._rows(rows), np.float64)
        n = cells.shape[0]
        made = np.zeros((n, self.model.n_features))
        if n == 0:
            return made
        out = made
        scratch = ri_aligned(ri_explain_shap_room(self.c))
        if scratch == NULL:
            raise MemoryError("no memory for Shapley values of trees so deep")
        try:
            with nogil:
                for i in range(n):
                    ri_explain_shap(self.c, &cells[i, 0], scratch, &out[i, 0])
        finally:
            free_scratch(scratch)
        return made * self.sign
