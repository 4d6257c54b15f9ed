"""Tree ensembles: arrays of a parser -> a forest, and rows -> scores. Arguments and errors: trees.pyi.

Rules:
  * Arrays are checked here for dtype and shape, in forest.c for what they say; a forest that exists can only be right.
  * All kernels give the same bits, so a plan (which kernel for how many rows) may be timed, forced or guessed.
What a forest is: trees.h.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

cimport cython

import numpy as np

from retailinfer.errors import ConfigError, FeatureTypeError, ModelError, ShapeError, clip

cdef extern from "trees.h" nogil:
    const int ri_kernel_rows[]
    const char* const ri_kernel_names[]
    ri_forest* ri_forest_new(const ri_trees* s, int* error, int64_t* at)
    void ri_forest_free(ri_forest* f)
    const ri_kernel_set* ri_kernel_level(const char* level)
    int ri_kernel_fits(const ri_forest* f, const ri_kernel_set* kernels, int kernel)
    void ri_forest_run(const ri_forest* f, const ri_kernel_set* kernels, const uint8_t* plan, const void* rows, int64_t stride,
                       int64_t n, void* scratch, float* out, int64_t out_stride, int column, int raw, int32_t* leaves)

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


def _flat(arrays, str name, dtype):
    given = arrays[name]
    if not isinstance(given, np.ndarray) or given.dtype != dtype or given.ndim != 1:
        raise ShapeError(f"Expected a flat array of {np.dtype(dtype).name} as `{name}`, got {clip(getattr(given, 'dtype', type(given)))}")
    return np.ascontiguousarray(given)


@cython.final
cdef class TreeModel:
    def __cinit__(self):
        self.forest = NULL

    def __init__(self, arrays, *, int n_features, int n_outputs=1, int n_columns=0, str post="none", double post_scale=1.0, str norm="none",
                 bint base_first=False, bint doubles=False, bint wide=False, bint average=False, bint per_output=False,
                 str level=None):
        cdef ri_trees s
        cdef int error = 0
        cdef int64_t at = -1
        cdef const int32_t[::1] roots = _flat(arrays, "roots", np.int32)
        cdef const int32_t[::1] feature = _flat(arrays, "feature", np.int32)
        cdef const double[::1] threshold = _flat(arrays, "threshold", np.float64)
        cdef const int32_t[::1] left = _flat(arrays, "left", np.int32)
        cdef const int32_t[::1] right = _flat(arrays, "right", np.int32)
        cdef const uint8_t[::1] missing_left = _flat(arrays, "missing_left", np.uint8)
        cdef const uint8_t[::1] missing = _flat(arrays, "missing", np.uint8)
        cdef const uint8_t[::1] rule = _flat(arrays, "rule", np.uint8)
        cdef const int32_t[::1] category = _flat(arrays, "category", np.int32)
        cdef const int64_t[::1] set_ends = _flat(arrays, "set_ends", np.int64)
        cdef const uint32_t[::1] set_words = _flat(arrays, "set_words", np.uint32)
        cdef const double[::1] values = _flat(arrays, "values", np.float64)
        cdef const int32_t[::1] targets = _flat(arrays, "targets", np.int32)
        cdef const double[::1] base = _flat(arrays, "base", np.float64)
        cdef const double[::1] cover = _flat(arrays, "cover", np.float64)
        if self.forest != NULL:
            raise ConfigError("a TreeModel is built once; make another one")
        if post not in POSTS:
            raise ConfigError(f"Expected post out of {tuple(POSTS)}, got {clip(post)}")
        if norm not in NORMS:
            raise ConfigError(f"Expected norm out of {tuple(NORMS)}, got {clip(norm)}")
        n_columns = n_columns or n_outputs
        if n_columns != n_outputs and (n_columns != 2 or n_outputs != 1):
            raise ConfigError(f"Expected {n_outputs} columns, or 2 for one sum, got {n_columns}")
        n_nodes, width = feature.shape[0], 1 if targets.shape[0] == roots.shape[0] else n_outputs
        for name, array, expected in (
            ("threshold", threshold, n_nodes), ("left", left, n_nodes), ("right", right, n_nodes), ("missing_left", missing_left, n_nodes),
            ("missing", missing, n_nodes), ("category", category, n_nodes), ("rule", rule, n_nodes), ("cover", cover, n_nodes if cover.shape[0] else 0), ("base", base, n_outputs),
            ("targets", targets, roots.shape[0] if width == 1 else 0),
        ):
            if array.shape[0] != expected:
                raise ShapeError(f"Expected {expected} entries in `{name}`, got {array.shape[0]}")
        if values.shape[0] % width or set_ends.shape[0] < 1:
            raise ShapeError(f"Expected {width} values a leaf and at least one end of sets, got {values.shape[0]}, {set_ends.shape[0]}")
        self.kernel_set = ri_kernel_level(NULL) if level is None else ri_kernel_level(level.encode())
        if self.kernel_set == NULL:
            raise ConfigError(f"Expected an instruction set of this machine {levels()}, got {clip(level)}")
        s.n_features, s.n_outputs, s.n_trees, s.width = n_features, n_outputs, <int32_t>roots.shape[0], width
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
        s.base = &base[0] if n_outputs else NULL
        s.cover = &cover[0] if cover.shape[0] else NULL
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
        self._guess()

    def __dealloc__(self):
        ri_forest_free(self.forest)

    def _guess(self):
        """A plan by rules: what is the fastest nearly everywhere. `calibrate` knows better."""
        cdef int i, kernel
        wishes = [(3, 1)] + 3 * [(4, 1)] + [(4, 2, 1)] + [(5, 2, 1)] + [(5, 2, 1)] + [(6, 2, 1)] + [(7, 2, 1)]
        for i in range(9):
            self.plan_numbers[i] = 0
            for kernel in wishes[i]:
                if ri_kernel_fits(self.forest, self.kernel_set, kernel):
                    self.plan_numbers[i] = kernel
                    break

    @property
    def level(self):
        return self.kernel_set.level.decode()

    @property
    def kernels(self):
        return tuple(KERNELS[i] for i in range(RI_N_KERNELS) if ri_kernel_fits(self.forest, self.kernel_set, i))

    @property
    def plan(self):
        return tuple(KERNELS[self.plan_numbers[i]] for i in range(9))

    @property
    def nbytes(self):
        return self.forest.n_bytes

    @property
    def scratch_bytes(self):
        return self.forest.scratch

    @property
    def depth(self):
        return self.forest.max_depth

    def force(self, str kernel not None):
        """Run everything with one kernel. ConfigError if the forest or the machine cannot."""
        if kernel not in self.kernels:
            raise ConfigError(f"Expected a kernel that this forest and machine have {self.kernels}, got {clip(kernel)}")
        for i in range(9):
            self.plan_numbers[i] = KERNELS.index(kernel)

    def calibrate(self, rows, *, int64_t budget_ns=4_000_000):
        """Time every kernel on these rows for 1, 2, 4 .. 256 of them and keep the fastest for each."""
        cdef const float[:, ::1] narrow
        cdef const double[:, ::1] wide
        cdef const char* data
        cdef int64_t stride, n, start, took, best, slice_ns, first, i
        cdef int bucket, kernel, times
        cdef uint8_t plan[9]
        cdef float out[256]
        cdef void* scratch
        cdef size_t cell = 8 if self.wide else 4
        fits = [i for i in range(RI_N_KERNELS) if ri_kernel_fits(self.forest, self.kernel_set, i)]
        rows = self._rows(rows)
        if len(rows) < 512:
            rows = np.resize(rows, (512, rows.shape[1]))
        if self.wide:
            wide = rows
            data = <const char*>&wide[0, 0]
        else:
            narrow = rows
            data = <const char*>&narrow[0, 0]
        stride = rows.shape[1]
        first = len(rows) - 256
        slice_ns = budget_ns // (9 * max(1, len(fits)))
        scratch = self.new_scratch()
        try:
            for bucket in range(9):
                n = <int64_t>1 << bucket
                best = -1
                for kernel in fits:
                    if kernel == 0 and len(fits) > 1:
                        continue  # never the fastest where there is another
                    for i in range(9):
                        plan[i] = kernel
                    took = -1
                    with nogil:
                        start = ri_now_ns()
                        times = 0
                        while times < 3 or (ri_now_ns() - start < slice_ns and times < 200):
                            i = ri_now_ns()  # other rows each time: a predictor remembers one row's way
                            ri_forest_run(self.forest, self.kernel_set, plan, data + ((times * 37) % first) * stride * <int64_t>cell,
                                          stride, n, scratch, out, 1, 0, 1, NULL)
                            i = ri_now_ns() - i
                            if times and (took < 0 or i < took):
                                took = i
                            times += 1
                    if best < 0 or took < best:
                        best = took
                        self.plan_numbers[bucket] = kernel
        finally:
            free_scratch(scratch)
        return self.plan

    def _rows(self, rows):
        dtype = np.float64 if self.wide else np.float32
        if not isinstance(rows, np.ndarray) or rows.dtype != dtype or not rows.dtype.isnative:
            raise FeatureTypeError(f"Expected a matrix of {np.dtype(dtype).name}, got {clip(getattr(rows, 'dtype', type(rows)))}", path="$.rows")
        if rows.ndim != 2 or rows.shape[1] != self.n_features:
            raise ShapeError(f"Expected rows of {self.n_features} features, got shape {rows.shape}", path="$.rows")
        return np.ascontiguousarray(rows)

    def predict(self, rows, *, int column=0, bint raw=False):
        """Answers of all rows. Arguments: trees.pyi."""
        if not 0 <= column < self.n_columns:
            raise ConfigError(f"Expected a column below {self.n_columns}, got {column}")
        rows = self._rows(rows)
        answer = np.empty(len(rows), np.float32)
        self._run(rows, answer, column, raw, None)
        return answer

    def predict_all(self, rows, *, bint raw=False):
        """All columns of all rows. Arguments: trees.pyi."""
        rows = self._rows(rows)
        answer = np.empty((len(rows), self.n_columns), np.float32)
        self._run(rows, answer.reshape(-1), -1, raw, None)
        return answer

    def leaves(self, rows):
        """The leaf that each tree gives each row. Arguments: trees.pyi."""
        rows = self._rows(rows)
        numbers = np.empty((len(rows), self.n_trees), np.int32)
        self._run(rows, np.empty(len(rows), np.float32), 0, True, numbers.reshape(-1))
        return numbers

    cdef int _run(self, rows, float[::1] out, int column, bint raw, int32_t[::1] leaves) except -1:
        cdef const float[:, ::1] narrow
        cdef const double[:, ::1] wide
        cdef const void* data
        cdef int64_t n = rows.shape[0], stride = self.n_features
        cdef int32_t* numbers = NULL
        cdef void* scratch
        if n == 0:
            return 0
        if self.wide:
            wide = rows
            data = &wide[0, 0]
        else:
            narrow = rows
            data = &narrow[0, 0]
        if leaves is not None and leaves.shape[0]:
            numbers = &leaves[0]
        scratch = self.new_scratch()
        try:
            with nogil:
                ri_forest_run(self.forest, self.kernel_set, self.plan_numbers, data, stride, n, scratch, &out[0],
                              self.n_columns if column < 0 else 1, column, raw, numbers)
        finally:
            free_scratch(scratch)
        return 0

    cdef void* new_scratch(self) except NULL:
        cdef void* made = ri_aligned(self.forest.scratch)
        if made == NULL:
            raise MemoryError(f"no {self.forest.scratch} bytes for the scratch of a forest")
        return made

    cdef void run_into(self, const void* rows, int64_t stride, int64_t n, void* scratch, float* out, int column, bint raw) noexcept nogil:
        ri_forest_run(self.forest, self.kernel_set, self.plan_numbers, rows, stride, n, scratch, out, 1, column, raw, NULL)

    cdef void run_leaves_into(self, const void* rows, int64_t stride, int64_t n, void* scratch, float* out, int column, bint raw,
                              int32_t* leaves) noexcept nogil:
        ri_forest_run(self.forest, self.kernel_set, self.plan_numbers, rows, stride, n, scratch, out, 1, column, raw, leaves)
