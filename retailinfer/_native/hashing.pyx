"""Python's view of the native hashes, for the NumPy twin, tools and tests.

`xxh64` is the hash of hashed features; anything that repeats their values outside the native program uses this one.
`siphash13` is here so that a test can hold the C code against another implementation; indexes use it inside table_index.c.
"""
from retailinfer._native.hashing cimport ri_siphash13, ri_siphash_key, ri_xxh64


def xxh64(bytes data not None, unsigned long long seed=0):
    return ri_xxh64(<const char*>data, <size_t>len(data), seed)


def siphash13(bytes data not None, unsigned long long k0, unsigned long long k1):
    cdef ri_siphash_key key
    key.k0 = k0
    key.k1 = k1
    return ri_siphash13(<const char*>data, <size_t>len(data), key)
