# How native modules hand tensors, strings and errors to each other: tensor_ref.h as Cython sees it. A file of its own, so that
# using a struct does not import the module of somebody else.

from libc.stdint cimport int32_t, int64_t


cdef extern from "tensor_ref.h" nogil:
    ctypedef struct StrRef:
        const char* data       # UTF-8, may hold NULs
        int64_t size           # bytes

    ctypedef struct TensorRef:  # one model input over memory of the caller
        void* data             # C-order cells; dtype 8: array of StrRef
        size_t nbytes          # ignored for strings
        int32_t dtype          # ONNX number: float32 1, int32 6, int64 7, string 8, bool 9, float64 11
        int32_t rank           # at most 8
        int64_t dims[8]        # dims[0] = the rows of this call

    ctypedef struct RunError:
        int32_t code           # OrtErrorCode; below 0 = our own check
        char message[512]      # safe to show
