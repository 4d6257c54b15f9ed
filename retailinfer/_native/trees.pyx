"""Tree ensembles: arrays of a parser -> a forest, and rows -> scores. Arguments and errors: trees.pyi.

Rules:
  * Arrays are checked here for dtype and shape, in forest_build.c for what they say; a forest that exists can only be right.
  * All kernels give the same bits, so a plan (which kernel for how many rows) may be timed, forced or guessed.
What a forest is: trees.h.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memset

cimport cython
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer

import numpy as np

from retailinfer.errors import ConfigError, FeatureTypeError, ModelError, ShapeError, clip

cdef extern from "trees.h" nogil:
    const char* const ri_kernel_names[]
    ri_forest* ri_forest_new(const ri_trees* s, int* error, int64_t* at)
    void ri_forest_free(ri_forest* f)
    const ri_kernel_set* ri_kernel_level(const char* level)
    int ri_kernel_fits(const ri_forest* f, const ri_kernel_set* kernels, int kernel)
    void ri_plan_guess(const ri_forest* f, const ri_kernel_set* kernels, ri_plan* plan)
    void ri_plan_force(int kernel, ri_plan* plan)
    void ri_plan_time(const ri_forest* f, const ri_kernel_set* kernels, const void* rows, int64_t stride, int64_t n_rows, int most,
                      int64_t budget_ns, void* scratch, ri_plan* plan)
    void ri_forest_likely(const ri_forest* f, int64_t n, void* rows)
    void ri_forest_run(const ri_forest* f, const ri_kernel_set* kernels, const ri_plan* plan, const void* rows, int64_t stride,
                       int64_t n, void* scratch, float* out, int64_t out_stride, int column, int raw, int32_t* leaves)
    int ri_forest_run_recorded(const ri_forest* f, const ri_kernel_set* set, const ri_plan* plan, const void* row, void* scratch,
                               float* out, int column, int raw, const ri_records* records, int32_t* totals)

cdef extern from "math.h" nogil:
    float logf(float x)

cdef extern from "aligned.h" nogil:
    void* ri_aligned(size_t size)
    void ri_aligned_free(void* p)

POSTS = {"none": 0, "sigmoid": 1, "softmax": 2, "softmax_zero": 3, "probit": 4, "exp": 5, "logistic": 6, "complement": 7, "softmax_sum": 8, "hinge": 9, "softplus": 10,
         "signed_square": 11}
NORMS = {"none": 0, "l1": 1}
KERNELS = tuple((<bytes>ri_kernel_names[i]).decode() for i in range(RI_N_KERNELS))
LEVELS = ("baseline", "avx2", "avx512")
SIZES = (1, 10, 100, 500)
LONG_NS = 100_000  # what takes longer runs without the GIL; taking it back from a busy thread costs up to 5 ms
cdef int64_t long_ns = LONG_NS
cdef object empty = np.empty
cdef object float32 = np.dtype(np.float32)

_WRONG = (
    "", "no memory for the forest", "sizes that no forest has", "a feature that the rows do not have - at node {}",
    "a child that is no node - at node {}", "a leaf that has no value - at node {}",
    "nodes that do not form trees: one is reached twice - at {}", "a tree deeper than 4096 - at node {}",
    "a threshold that is NaN or no float32 - at node {}", "a value that is not finite - at leaf {}",
    "an output that the forest does not have - at tree {}", "a set of categories out of range - at {}",
    "an unknown kind of missing value - at node {}", "an unknown rule - at node {}", "a cover that is no weight - at node {}",
)


def float32_log(float x):
    """The C library's logf."""
    return logf(x)


def levels() -> tuple:
    """Instruction sets that this machine has kernels for, the best last."""
    return tuple(level for level in LEVELS if ri_kernel_level(level.encode()) != NULL)


cdef void free_scratch(void* scratch) noexcept nogil:
    ri_aligned_free(scratch)


cdef object flat_array(given, str name, dtype):
    if not isinstance(given, np.ndarray) or given.dtype != dtype or given.ndim != 1:
        raise ShapeError(f"Expected a flat array of {np.dtype(dtype).name} as `{name}`, got {clip(getattr(given, 'dtype', type(given)))}")
    return np.ascontiguousarray(given)


cdef tuple forest_arrays(arrays, int n_outputs, ri_trees* s):
    cdef const int32_t[::1] roots = flat_array(arrays["roots"], "roots", np.int32)
    cdef const int32_t[::1] feature = flat_array(arrays["feature"], "feature", np.int32)
    cdef const double[::1] threshold = flat_array(arrays["threshold"], "threshold", np.float64)
    cdef const int32_t[::1] left = flat_array(arrays["left"], "left", np.int32)
    cdef const int32_t[::1] right = flat_array(arrays["right"], "right", np.int32)
    cdef const uint8_t[::1] missing_left = flat_array(arrays["missing_left"], "missing_left", np.uint8)
    cdef const uint8_t[::1] missing = flat_array(arrays["missing"], "missing", np.uint8)
    cdef const uint8_t[::1] rule = flat_array(arrays["rule"], "rule", np.uint8)
    cdef const int32_t[::1] category = flat_array(arrays["category"], "category", np.int32)
    cdef const int64_t[::1] set_ends = flat_array(arrays["set_ends"], "set_ends", np.int64)
    cdef const uint32_t[::1] set_words = flat_array(arrays["set_words"], "set_words", np.uint32)
    cdef const double[::1] values = flat_array(arrays["values"], "values", np.float64)
    cdef const int32_t[::1] targets = flat_array(arrays["targets"], "targets", np.int32)
    cdef const double[::1] base = flat_array(arrays["base"], "base", np.float64)
    cdef const double[::1] cover = flat_array(arrays["cover"], "cover", np.float64)
    cdef int64_t n_nodes = feature.shape[0]
    cdef int width = 1 if targets.shape[0] == roots.shape[0] else n_outputs
    if n_outputs < 1:
        raise ModelError(f"Expected a forest of at least one output, got {n_outputs}")
    for name, array, expected in (
        ("threshold", threshold, n_nodes), ("left", left, n_nodes), ("right", right, n_nodes), ("missing_left", missing_left, n_nodes),
        ("missing", missing, n_nodes), ("rule", rule, n_nodes), ("category", category, n_nodes),
        ("cover", cover, n_nodes if cover.shape[0] else 0), ("base", base, n_outputs),
        ("targets", targets, roots.shape[0] if width == 1 else 0),
    ):
        if array.shape[0] != expected:
            raise ShapeError(f"Expected {expected} entries in `{name}`, got {array.shape[0]}")
    if values.shape[0] % width or set_ends.shape[0] < 1:
        raise ShapeError(f"Expected {width} values a leaf and at least one end of sets, got {values.shape[0]}, {set_ends.shape[0]}")
    memset(s, 0, sizeof(ri_trees))
    s.n_outputs, s.n_columns, s.n_trees, s.width = n_outputs, n_outputs, <int32_t>roots.shape[0], width
    s.n_nodes, s.n_leaves, s.n_sets, s.n_words = n_nodes, values.shape[0] // width, set_ends.shape[0] - 1, set_words.shape[0]
    s.roots = &roots[0] if roots.shape[0] else NULL
    s.feature = &feature[0] if n_nodes else NULL
    s.threshold = &threshold[0] if n_nodes else NULL
    s.left = &left[0] if n_nodes else NULL
    s.right = &right[0] if n_nodes else NULL
    s.missing_left = &missing_left[0] if n_nodes else NULL
    s.missing = &missing[0] if n_nodes else NULL
    s.rule = &rule[0] if n_nodes else NULL
    s.category = &category[0] if n_nodes else NULL
    s.set_ends = &set_ends[0]
    s.set_words = &set_words[0] if set_words.shape[0] else NULL
    s.values = &values[0] if values.shape[0] else NULL
    s.targets = &targets[0] if targets.shape[0] else NULL
    s.base = &base[0] if base.shape[0] else NULL
    s.cover = &cover[0] if cover.shape[0] else NULL
    return (roots.base, feature.base, threshold.base, left.base, right.base, missing_left.base, missing.base, rule.base,
            category.base, set_ends.base, set_words.base, values.base, targets.base, base.base, cover.base)


@cython.final
cdef class TreeModel:
    def __cinit__(self):
        self.forest = NULL
        self.n_spare = 0

    def __init__(self, arrays, *, int n_features, int n_outputs=1, int n_columns=0, str post="none", double post_scale=1.0, str norm="none",
                 bint base_first=False, bint doubles=False, bint wide=False, bint average=False, bint per_output=False,
                 str level=None):
        cdef ri_trees s
        cdef int error = 0
        cdef int64_t at = -1
        if self.forest != NULL:
            raise ConfigError("a TreeModel is built once; make another one")
        if post not in POSTS:
            raise ConfigError(f"Expected post out of {tuple(POSTS)}, got {clip(post)}")
        if norm not in NORMS:
            raise ConfigError(f"Expected norm out of {tuple(NORMS)}, got {clip(norm)}")
        n_columns = n_columns or n_outputs
        if n_columns != n_outputs and (n_columns != 2 or n_outputs != 1):
            raise ConfigError(f"Expected {n_outputs} columns, or 2 for one sum, got {n_columns}")
        self.kernel_set = ri_kernel_level(NULL) if level is None else ri_kernel_level(level.encode())
        if self.kernel_set == NULL:
            raise ConfigError(f"Expected an instruction set of this machine {levels()}, got {clip(level)}")
        keep = forest_arrays(arrays, n_outputs, &s)  # alive until the forest is built
        s.n_features = n_features
        s.base_first, s.doubles, s.wide, s.average = base_first, doubles, wide, average + (average and per_output)
        s.n_columns, s.post, s.post_scale, s.norm = n_columns, POSTS[post], post_scale, NORMS[norm]
        with nogil:
            self.forest = ri_forest_new(&s, &error, &at)
        if self.forest == NULL:
            if error == 1:
                raise MemoryError(_WRONG[1])
            raise ModelError("Expected a forest, got " + _WRONG[error].format(at))
        self.n_features, self.n_outputs, self.n_trees, self.wide = n_features, n_outputs, s.n_trees, wide
        self.n_columns = n_columns
        self.sizes = SIZES
        ri_plan_guess(self.forest, self.kernel_set, &self.way)

    def __dealloc__(self):
        for i in range(self.n_spare):
            free_scratch(self.spare[i])
        ri_forest_free(self.forest)

    @property
    def level(self):
        return self.kernel_set.level.decode()

    @property
    def kernels(self):
        return tuple(KERNELS[i] for i in range(RI_N_KERNELS) if ri_kernel_fits(self.forest, self.kernel_set, i))

    @property
    def plan(self):
        return {size: self._pieces(size) for size in self.sizes}

    def _pieces(self, int64_t n):
        pieces = {}
        while n > 0:
            left = min(n, RI_TILE)
            name = KERNELS[self.way.kernel[left]]
            pieces[name] = pieces.get(name, 0) + self.way.rows[left]
            n -= self.way.rows[left]
        return pieces

    @property
    def nbytes(self):
        return self.forest.n_bytes

    @property
    def scratch_bytes(self):
        return self.forest.scratch

    @property
    def depth(self):
        return self.forest.max_depth

    def expected_ns(self, int64_t n):
        """What n rows take by the timing of `calibrate`; 0: not timed."""
        return self._expected_ns(n)

    cdef int64_t _expected_ns(self, int64_t n) noexcept nogil:
        return <int64_t>(<double>self.way.ns[RI_TILE] * <double>(n // RI_TILE) + <double>self.way.ns[n % RI_TILE])

    def force(self, str kernel not None):
        """Run everything with one kernel. ConfigError if the forest or the machine cannot."""
        if kernel not in self.kernels:
            raise ConfigError(f"Expected a kernel that this forest and machine have {self.kernels}, got {clip(kernel)}")
        ri_plan_force(KERNELS.index(kernel), &self.way)

    def calibrate(self, rows=None, *, sizes=SIZES, int64_t budget_ns=3_000_000):
        """Time the kernels and keep the fastest way for each number of rows. Arguments: trees.pyi."""
        cdef Py_buffer view
        cdef void* scratch
        cdef int most
        cdef int64_t n
        sizes = tuple(sorted({int(size) for size in sizes}))
        if not sizes or sizes[0] < 1:
            raise ConfigError(f"Expected numbers of rows from 1 up, got {clip(sizes)}")
        most = min(max(sizes), RI_TILE)
        if rows is None:
            rows = empty((2 * RI_BLOCK, self.n_features), np.float64 if self.wide else np.float32)
            self._view(rows, &view)
            ri_forest_likely(self.forest, 2 * RI_BLOCK, view.buf)
        else:
            rows = self._rows(rows)
            if len(rows) < 2 * RI_BLOCK:
                rows = np.resize(rows, (2 * RI_BLOCK, rows.shape[1]))
            self._view(rows, &view)
        n = view.shape[0]
        self.sizes = sizes
        try:
            scratch = self._scratch()
            ri_plan_time(self.forest, self.kernel_set, view.buf, self.n_features, n, most, budget_ns, scratch, &self.way)
            self._give_back(scratch)
        finally:
            PyBuffer_Release(&view)
        return self.plan

    def _rows(self, rows):
        dtype = np.float64 if self.wide else np.float32
        if not isinstance(rows, np.ndarray) or rows.dtype != dtype or not rows.dtype.isnative:
            raise FeatureTypeError(f"Expected a matrix of {np.dtype(dtype).name}, got {clip(getattr(rows, 'dtype', type(rows)))}", path="$.rows")
        if rows.ndim != 2 or rows.shape[1] != self.n_features:
            raise ShapeError(f"Expected rows of {self.n_features} features, got shape {rows.shape}", path="$.rows")
        return np.ascontiguousarray(rows)

    cdef int _view(self, rows, Py_buffer* view) except -1:
        """The rows' memory, which the caller releases. Other layouts are copied, anything else is refused."""
        cdef char kind = b"d" if self.wide else b"f"
        if isinstance(rows, np.ndarray) and rows.flags.c_contiguous:
            PyObject_GetBuffer(rows, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
            if view.ndim == 2 and view.shape[1] == self.n_features and view.format[0] == kind and view.format[1] == 0:
                return 0
            PyBuffer_Release(view)
        PyObject_GetBuffer(self._rows(rows), view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        return 0

    def predict(self, rows, *, int column=0, bint raw=False):
        """Answers of all rows. Arguments: trees.pyi."""
        if not 0 <= column < self.n_columns:
            raise ConfigError(f"Expected a column below {self.n_columns}, got {column}")
        answer = empty(len(rows), float32)
        self._run(rows, answer, column, raw, None)
        return answer

    def predict_into(self, rows, out, *, int column=0, bint raw=False):
        """Answers of all rows into an array that is there. Arguments: trees.pyi."""
        if not 0 <= column < self.n_columns:
            raise ConfigError(f"Expected a column below {self.n_columns}, got {column}")
        self._run(rows, out, column, raw, None)

    def predict_all(self, rows, *, bint raw=False):
        """All columns of all rows. Arguments: trees.pyi."""
        answer = empty((len(rows), self.n_columns), float32)
        self._run(rows, answer, -1, raw, None)
        return answer

    def leaves(self, rows):
        """The leaf that each tree gives each row. Arguments: trees.pyi."""
        numbers = empty((len(rows), self.n_trees), np.int32)
        self._run(rows, empty(len(rows), float32), 0, True, numbers)
        return numbers

    cdef int _run(self, rows, out, int column, bint raw, leaves) except -1:
        cdef Py_buffer row_view, out_view, leaf_view
        cdef int32_t* numbers = NULL
        cdef int64_t n
        self._view(rows, &row_view)
        try:
            n = row_view.shape[0]
            PyObject_GetBuffer(out, &out_view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE | PyBUF_FORMAT)
            try:
                if out_view.len != 4 * n * (self.n_columns if column < 0 else 1) or out_view.format[0] != b"f" or out_view.format[1] != 0:
                    raise ShapeError(f"Expected room for {n} answers in float32, got {out_view.len} bytes", path="$.out")
                if leaves is not None:
                    PyObject_GetBuffer(leaves, &leaf_view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
                    numbers = <int32_t*>leaf_view.buf  # ours, and alive until the end of this call
                    PyBuffer_Release(&leaf_view)
                if n:
                    self._run_rows(row_view.buf, n, <float*>out_view.buf, column, raw, numbers)
            finally:
                PyBuffer_Release(&out_view)
        finally:
            PyBuffer_Release(&row_view)
        return 0

    cdef int _run_rows(self, const void* rows, int64_t n, float* out, int column, bint raw, int32_t* leaves) except -1:
        cdef void* scratch = self._scratch()
        cdef int64_t step = self.n_columns if column < 0 else 1
        if self._expected_ns(n) < long_ns and n < RI_TILE:
            ri_forest_run(self.forest, self.kernel_set, &self.way, rows, self.n_features, n, scratch, out, step, column, raw, leaves)
        else:
            with nogil:
                ri_forest_run(self.forest, self.kernel_set, &self.way, rows, self.n_features, n, scratch, out, step, column, raw, leaves)
        self._give_back(scratch)
        return 0

    cdef void* _scratch(self) except NULL:
        """Scratch of an earlier call, or new one. Under the GIL."""
        if self.n_spare:
            self.n_spare -= 1
            return self.spare[self.n_spare]
        return self.new_scratch()

    cdef void _give_back(self, void* scratch) noexcept:
        if self.n_spare < N_SPARE:
            self.spare[self.n_spare] = scratch
            self.n_spare += 1
        else:
            free_scratch(scratch)

    cdef void* new_scratch(self) except NULL:
        cdef void* made = ri_aligned(self.forest.scratch)
        if made == NULL:
            raise MemoryError(f"no {self.forest.scratch} bytes for the scratch of a forest")
        return made

    cdef void run_into(self, const void* rows, int64_t stride, int64_t n, void* scratch, float* out, int column, bint raw) noexcept nogil:
        ri_forest_run(self.forest, self.kernel_set, &self.way, rows, stride, n, scratch, out, 1, column, raw, NULL)

    cdef void run_leaves_into(self, const void* rows, int64_t stride, int64_t n, void* scratch, float* out, int column, bint raw,
                              int32_t* leaves) noexcept nogil:
        ri_forest_run(self.forest, self.kernel_set, &self.way, rows, stride, n, scratch, out, 1, column, raw, leaves)

    cdef int run_recorded_into(self, const void* row, void* scratch, float* out, int column, const ri_records* records,
                               int32_t* totals) noexcept nogil:
        return ri_forest_run_recorded(self.forest, self.kernel_set, &self.way, row, scratch, out, column, False, records, totals)
