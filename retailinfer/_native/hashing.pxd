"""The C header hashing.h as Cython sees it. What each hash is for stands there."""
from libc.stdint cimport uint64_t


cdef extern from "hashing.h" nogil:
    ctypedef struct ri_siphash_key:
        uint64_t k0
        uint64_t k1

    uint64_t ri_xxh64(const void* data, size_t size, uint64_t seed)                 # the same on every machine: hashed features
    uint64_t ri_siphash13(const void* data, size_t size, ri_siphash_key key)        # keyed: indexes, never stored or sent
