# ONNX Runtime sessions for native callers: what `engine.pyx` cimports.
#
# Rules:
#   * `run_scores` needs no GIL and touches no Python object. One row: hold the GIL all the same (taking it back beside a busy thread costs milliseconds); the
#     gate lets a thread that holds it in even while another one prepares a fork.
#   * The caller keeps the OrtModel referenced for as long as a run lasts; the session is freed by `drain`, never by a run.
# Shapes and errors as Python sees them: ort.pyi. The C side: ort_run.h, tensor_ref.h.

from libc.stdint cimport int32_t, int64_t

from retailinfer._native.tensor_ref cimport RunError, StrRef, TensorRef


cdef extern from "ort_run.h" nogil:
    ctypedef struct RiIo:
        char* name
        int32_t kind
        int32_t dtype
        int32_t rank
        int64_t* dims

    ctypedef struct RiModel:
        pass

    ctypedef struct RiLane:     # one shape over memory that does not move: a workspace's single row
        pass


cdef class OrtModel:
    cdef:
        RiModel* _model              # never NULL after __init__
        readonly tuple inputs        # ((name, dtype number, shape), ...); a dynamic dimension is None
        readonly tuple outputs
        readonly dict metadata       # str -> str, the model's custom metadata
        readonly Py_ssize_t n_heads  # scores per row; 0 until select_scores
        object __weakref__

    # Choose the scores, before the first run. Raises ModelError.
    cpdef object select_scores(self, object heads)
    # The same for one head: column `column` of output number `output`.
    cpdef object select_score(self, Py_ssize_t output, Py_ssize_t column=*)

    # IN  inputs: in the order of the model's inputs, dims[0] set for this call. The memory stays the caller's.
    # OUT scores: n_heads blocks of n_rows floats, all finite when 0 is returned.
    # OUT err: filled when -1 is returned; give it to `raise_run_error` once the GIL is held.
    # Makes no allocation of its own for numeric inputs (ONNX Runtime does); strings are copied.
    cdef int run_scores(self, const TensorRef* inputs, int64_t n_rows, float* scores, RunError* err) noexcept nogil

    # The same for a shape that is run again and again over the same memory, 0.2 us faster: make a lane when the workspace
    # is made, write new cells into the memory of `inputs`, run. One run at a time per lane.
    # The memory behind `inputs` (not the TensorRefs) must outlive the lane; close it before the model may go (a class that
    # closes it in __dealloc__ needs @cython.no_gc_clear).
    cdef RiLane* open_lane(self, const TensorRef* inputs, int64_t n_rows, RunError* err) noexcept nogil  # NULL: err
    cdef int run_lane(self, RiLane* lane, float* scores, RunError* err) noexcept nogil                   # 0 or -1
    cdef void close_lane(self, RiLane* lane) noexcept nogil                                              # NULL is fine


# Raise what `err` says as SessionError or ScoreError. Always returns -1 with an exception set.
cdef int raise_run_error(const RunError* err) except -1
