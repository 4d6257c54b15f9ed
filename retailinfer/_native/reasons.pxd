"""Reasons of forests for native callers: what the engine cimports. The C side is tree_reasons.h; what Python sees is reasons.pyi.

A ForestReasons is immutable and holds all that it reads. Scratch belongs to the caller: `new_scratch` once per workspace. `run_row`
and `pick` need no GIL, touch no Python object and allocate nothing; `named` makes one tuple of objects that are there already.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t

from retailinfer._native.trees cimport TreeModel, ri_records, ri_trees


cdef extern from "tree_reasons.h" nogil:
    ctypedef struct ri_reason_kernels:
        pass

    ctypedef struct ri_reasons:
        int32_t n_groups
        int32_t stride
        int32_t wide
        size_t scratch
        size_t n_bytes
        double quantum
        const uint8_t* packed
        ri_records records

    ctypedef struct ri_explain:
        int32_t max_depth
        double base


cdef class ForestReasons:
    cdef:
        ri_reasons* c
        const ri_reason_kernels* kernels
        readonly TreeModel model       # whose leaves these are
        readonly int32_t most          # reasons of one row
        readonly tuple names           # one object a group, shared by all answers
        object __weakref__

    cdef void* new_scratch(self) except NULL                # free it with free_scratch of trees
    # leaves: (n_trees) of one row, as run_leaves_into gives them. picked: room for `most` groups. Returns how many there are.
    cdef int32_t pick(self, const int32_t* leaves, void* scratch, int32_t* picked) noexcept nogil
    # One row's answer and its groups at once, where a kernel does both; else as above. leaves: room for n_trees.
    cdef int32_t run_row(self, const void* row, void* tree_scratch, float* out, int column, int32_t* leaves, void* scratch,
                         int32_t* picked) noexcept nogil
    cdef tuple named(self, const int32_t* picked, int32_t n)
    cdef tuple _top_of_one(self, rows)
    cdef list _top_of_many(self, rows)


cdef tuple tuple_of(tuple names, const int32_t* picked, int32_t n)  # of names[picked[i]]: no object but the tuple is made


cdef class ForestExplainer:
    cdef:
        ri_explain* c
        readonly TreeModel model
        tuple arrays                   # what `c` points into
        double sign
        readonly int32_t column
