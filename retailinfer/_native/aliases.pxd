"""Aliases of one key field: which other key a key stands for at a moment. For the engine and for replay.

The field's own value stays what features read; only look-up keys (tables, windows) use the resolved one. The graph and its
rules are alias_graph.h; what Python sees is aliases.pyi.
"""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from retailinfer._native.hashing cimport ri_siphash_key
from retailinfer._native.tensor_ref cimport StrRef


cdef extern from "alias_graph.h" nogil:
    ctypedef struct ri_alias_change:
        int64_t from_ns
        int32_t target

    ctypedef struct ri_alias_node:
        char* key
        uint32_t size
        uint32_t n_changes
        uint32_t n_sources
        ri_alias_change* changes
        int32_t* sources

    ctypedef struct ri_alias_graph:
        ri_alias_node* nodes
        uint32_t n_nodes
        uint32_t n_free
        uint64_t n_links
        uint64_t n_changes
        uint64_t n_bytes
        ri_siphash_key hash_key


cdef class AliasTable:
    """Links between the keys of one field, each from its own moment on. Changed under the GIL only."""
    cdef:
        ri_alias_graph graph
        readonly str name                    # the entity, for messages and traces
        readonly str key_kind                # "str" | "int" | "bytes"
        readonly unsigned long long version  # + 1 with every change
        readonly uint64_t max_links
        int kind

    # The key that `key` (canonical bytes of the one field: UTF-8, int64 little-endian, or bytes) stands for at `at_ns`, and how
    # many links were followed (at most 16). hops 0: what came in is what comes back, pointer and all; an empty table costs one
    # comparison. Otherwise the bytes are the table's: valid until the GIL is given up or any Python code runs, so copy them.
    cdef StrRef resolve(self, const char* key, int64_t size, int64_t at_ns, int* hops) noexcept

    # The keys of the chain from `key` to what it stands for, both included, as Python objects; one key when nothing is linked.
    cdef tuple chain_of(self, const char* key, int64_t size, int64_t at_ns)

    # canonical bytes -> str | int | bytes
    cdef object key_object(self, const char* key, int64_t size)

    # For aliases.pyx alone.
    cdef StrRef _key(self, object key, int64_t* number, str path) except *
    cdef StrRef _canonical(self, object key) except *
    cdef int _put(self, StrRef source, StrRef target, int64_t at, object key, object into) except -1
