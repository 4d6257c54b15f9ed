"""Tree ensembles for native callers: what the engine cimports. The C side is trees.h; what Python sees is trees.pyi.

A TreeModel is immutable once its plan is chosen and holds all that its kernels read. Scratch belongs to the caller: `new_scratch`
once per workspace. `run_into` needs no GIL, touches no Python object and allocates nothing.
"""
from cpython.buffer cimport Py_buffer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t


cdef extern from "trees.h" nogil:
    enum:
        RI_N_KERNELS
        RI_BLOCK
        RI_TILE

    ctypedef struct ri_trees:
        int32_t n_features
        int32_t n_outputs
        int32_t n_trees
        int32_t width
        int32_t n_columns
        int64_t n_nodes
        int64_t n_leaves
        int64_t n_sets
        int64_t n_words
        const int32_t* roots
        const int32_t* feature
        const double* threshold
        const int32_t* left
        const int32_t* right
        const uint8_t* missing_left
        const uint8_t* missing
        const uint8_t* rule
        const int32_t* category
        const int64_t* set_ends
        const uint32_t* set_words
        const double* values
        const int32_t* targets
        const double* base
        const double* cover
        int32_t base_first
        int32_t doubles
        int32_t wide
        int32_t average
        int32_t post
        int32_t norm
        double post_scale

    ctypedef struct ri_forest:
        int32_t n_columns
        int32_t max_depth
        int32_t max_leaves
        size_t scratch
        size_t n_bytes

    ctypedef struct ri_kernel_set:
        const char* level

    ctypedef struct ri_plan:
        uint8_t kernel[513]
        uint16_t rows[513]
        float ns[513]

    ctypedef struct ri_records:
        const uint8_t* packed


cdef enum:
    N_SPARE = 4


cdef class TreeModel:
    cdef:
        ri_forest* forest
        const ri_kernel_set* kernel_set
        ri_plan way                    # which kernel takes how many of the rows that are left
        tuple sizes                    # numbers of rows that it was timed for
        void* spare[N_SPARE]           # scratch of calls that are over, for the next ones from Python; under the GIL
        int n_spare
        readonly int32_t n_features
        readonly int32_t n_outputs
        readonly int32_t n_columns     # of an answer
        readonly int32_t n_trees
        readonly bint wide             # rows are float64
        object __weakref__

    cdef void* new_scratch(self) except NULL                # free it with free_scratch
    # rows: (n, stride) float32, or float64 where `wide`; column: of the answer; raw: the sum itself. out: n float32.
    cdef void run_into(self, const void* rows, int64_t stride, int64_t n, void* scratch, float* out, int column, bint raw) noexcept nogil
    # The same, and in the same pass leaves (n, n_trees): number of the leaf that each tree gave.
    cdef void run_leaves_into(self, const void* rows, int64_t stride, int64_t n, void* scratch, float* out, int column, bint raw,
                              int32_t* leaves) noexcept nogil
    # One row, and in the same pass the sums of its leaves' records; 0: no kernel does that here, and nothing is done.
    cdef int run_recorded_into(self, const void* row, void* scratch, float* out, int column, const ri_records* records,
                               int32_t* totals) noexcept nogil
    cdef int64_t _expected_ns(self, int64_t n) noexcept nogil
    cdef int _view(self, rows, Py_buffer* view) except -1
    cdef int _run(self, rows, out, int column, bint raw, leaves) except -1
    cdef int _run_rows(self, const void* rows, int64_t n, float* out, int column, bint raw, int32_t* leaves) except -1
    cdef void* _scratch(self) except NULL
    cdef void _give_back(self, void* scratch) noexcept


cdef void free_scratch(void* scratch) noexcept nogil

cdef object flat_array(given, str name, dtype)              # C-contiguous, one dimension. Raises: ShapeError.
# Arrays and sizes of a forest into `s`; all else in it becomes 0. Returned is what has to be kept while `s` is read.
# Raises: ShapeError for dtypes and lengths; ModelError for no outputs.
cdef tuple forest_arrays(arrays, int n_outputs, ri_trees* s)
