"""Aliases of one key field as the engine, replay and the store see them: checked keys and times, look-ups, columns of chains.

Rules:
  * A key is what the field holds: one kind, exact types, canonical bytes (table.h). Looking up runs no code of the caller.
  * A link that would close a cycle or make a chain of more than 16 links at any moment is refused; nothing has changed then.
  * Whatever changes the table does so in one step under the GIL, so readers and forks see all of it or nothing.
Shapes and errors: aliases.pyi. The graph: alias_graph.h. Times of the caller and files: retailinfer/store/aliases.py.
"""
import os

import numpy as np

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from retailinfer.errors import ConfigError, FeatureRangeError, FeatureTypeError, LimitError, ShapeError, clip


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1


cdef extern from "alias_graph.h" nogil:
    enum:
        RI_ALIAS_HOPS, RI_ALIAS_NONE, RI_ALIAS_MAX_KEY, RI_ALIAS_MAX_CHANGES
        RI_ALIAS_OK, RI_ALIAS_MEMORY, RI_ALIAS_CYCLE, RI_ALIAS_LONG, RI_ALIAS_FULL
    void ri_alias_clear(ri_alias_graph* graph)
    int32_t ri_alias_find(const ri_alias_graph* graph, const char* key, int64_t size)
    int32_t ri_alias_step(const ri_alias_graph* graph, int32_t node, int64_t at_ns)
    StrRef ri_alias_resolve(const ri_alias_graph* graph, const char* key, int64_t size, int64_t at_ns, int* hops)
    int ri_alias_put(
        ri_alias_graph* graph, const char* key, int64_t size, const char* into, int64_t into_size, int64_t at_ns
    )
    int64_t ri_alias_erase(ri_alias_graph* graph, const char* key, int64_t size)


cdef enum:
    KIND_STR = 0
    KIND_INT = 1
    KIND_BYTES = 2

KINDS = {"str": KIND_STR, "int": KIND_INT, "bytes": KIND_BYTES}
MAX_HOPS = RI_ALIAS_HOPS
MAX_TIME_NS = 1 << 62  # so that the difference of two moments fits 64 bits


cdef class AliasTable:
    def __cinit__(self):
        memset(&self.graph, 0, sizeof(self.graph))

    def __init__(self, str name not None, str key_kind not None, *, max_links=10_000_000, hash_key=None):
        cdef bytes secret
        if self.name is not None:
            raise ConfigError("an AliasTable is made once; make another one")
        if key_kind not in KINDS:
            raise ConfigError(
                f"Expected a key kind out of {sorted(KINDS)} for aliases of `{name}`, got {clip(key_kind)}",
                hint="aliases are for entities whose key is one field",
            )
        if type(max_links) is not int or not 1 <= max_links <= 1_000_000_000:
            raise ConfigError(f"Expected max_links between 1 and 1,000,000,000, got {clip(max_links)}")
        self.name = name
        self.key_kind = key_kind
        self.kind = KINDS[key_kind]
        self.max_links = max_links
        if hash_key is None:
            secret = os.urandom(16)
            memcpy(&self.graph.hash_key, PyBytes_AS_STRING(secret), 16)
        else:
            self.graph.hash_key.k0, self.graph.hash_key.k1 = hash_key

    def __dealloc__(self):
        ri_alias_clear(&self.graph)

    # ---- for the engine

    cdef StrRef resolve(self, const char* key, int64_t size, int64_t at_ns, int* hops) noexcept:
        return ri_alias_resolve(&self.graph, key, size, at_ns, hops)

    cdef tuple chain_of(self, const char* key, int64_t size, int64_t at_ns):
        cdef int32_t node = ri_alias_find(&self.graph, key, size)
        cdef int hops = 0
        cdef list keys = [self.key_object(key, size)]
        while node >= 0 and hops < RI_ALIAS_HOPS:
            node = ri_alias_step(&self.graph, node, at_ns)
            if node >= 0:
                keys.append(self.key_object(self.graph.nodes[node].key, self.graph.nodes[node].size))
            hops += 1
        return tuple(keys)

    cdef object key_object(self, const char* key, int64_t size):
        cdef int64_t number = 0
        if self.kind == KIND_STR:
            return PyUnicode_DecodeUTF8(key, size, "replace")
        if self.kind == KIND_BYTES:
            return PyBytes_FromStringAndSize(key, size)
        if size == 8:
            memcpy(&number, key, 8)
        return number

    # ---- keys and times of the caller

    cdef StrRef _key(self, object key, int64_t* number, str path) except *:
        """The canonical bytes of a key; those of a str and of bytes live as long as the object, an int's are `number`."""
        cdef StrRef out
        cdef Py_ssize_t size = 0
        cdef int overflow = 0
        if self.kind == KIND_STR and type(key) is str:
            try:
                out.data = PyUnicode_AsUTF8AndSize(key, &size)
            except UnicodeEncodeError:
                raise FeatureRangeError(
                    f"Expected text that has a UTF-8 form, got {clip(key)} with a lone surrogate", path=path
                ) from None
            out.size = size
        elif self.kind == KIND_BYTES and type(key) is bytes:
            out.data = PyBytes_AS_STRING(key)
            out.size = PyBytes_GET_SIZE(key)
        elif self.kind == KIND_INT and type(key) is int:
            number[0] = PyLong_AsLongLongAndOverflow(key, &overflow)
            if overflow:
                raise FeatureRangeError(f"Expected an integer key of at most 64 bits, got {clip(key)}", path=path)
            out.data = <const char*>number
            out.size = 8
        else:
            raise FeatureTypeError(
                f"Expected a key of kind `{self.key_kind}` of `{self.name}`, got `{type(key).__name__}` {clip(key)}",
                path=path,
                hint="an alias links two values of the same field",
            )
        if out.size > RI_ALIAS_MAX_KEY:
            raise FeatureRangeError(f"Expected a key of at most {RI_ALIAS_MAX_KEY} bytes, got {out.size}", path=path)
        return out

    # ---- what Python sees

    def __len__(self):
        return self.graph.n_links

    @property
    def n_changes(self):
        return self.graph.n_changes

    @property
    def n_keys(self):
        return self.graph.n_nodes - self.graph.n_free

    @property
    def nbytes(self):
        return self.graph.n_bytes

    def link(self, key, into, at_ns):
        cdef int64_t numbers[2]
        cdef int64_t at = _moment(at_ns)
        cdef StrRef source = self._key(key, &numbers[0], "$.key")
        cdef StrRef target = self._key(into, &numbers[1], "$.into")
        self._put(source, target, at, key, into)

    def unlink(self, key, at_ns):
        cdef int64_t number = 0
        cdef int64_t at = _moment(at_ns)
        cdef StrRef source = self._key(key, &number, "$.key")
        cdef StrRef nothing
        nothing.data = NULL
        nothing.size = 0
        self._put(source, nothing, at, key, None)

    cdef int _put(self, StrRef source, StrRef target, int64_t at, object key, object into) except -1:
        if self.graph.n_changes >= self.max_links:
            raise LimitError(
                f"Expected at most {self.max_links} changes of aliases of `{self.name}`, got one more",
                hint="raise max_links, or erase keys that are gone",
            )
        cdef int status = ri_alias_put(&self.graph, source.data, source.size, target.data, target.size, at)
        if status == RI_ALIAS_OK:
            self.version += 1
            return 0
        if status == RI_ALIAS_MEMORY:
            raise MemoryError(f"no memory for an alias of `{self.name}`")
        if status == RI_ALIAS_CYCLE:
            raise ConfigError(
                f"{clip(key)} cannot stand for {clip(into)} of `{self.name}`: at some moment from then on {clip(into)} stands "
                f"for {clip(key)}",
                hint="unlink the other one first, from the same moment on",
            )
        if status == RI_ALIAS_LONG:
            raise LimitError(
                f"{clip(key)} cannot stand for {clip(into)} of `{self.name}`: the chain would have more than {RI_ALIAS_HOPS} links",
                hint="link the keys at its beginning to the one at its end",
            )
        raise LimitError(
            f"Expected at most {RI_ALIAS_MAX_CHANGES} changes of one key of `{self.name}`, got one more for {clip(key)}"
        )

    def resolve_key(self, key, at_ns):
        cdef int64_t number = 0
        cdef int64_t at = _moment(at_ns)
        cdef int hops = 0
        cdef StrRef source = self._key(key, &number, "$.key")
        cdef StrRef end = ri_alias_resolve(&self.graph, source.data, source.size, at, &hops)
        return key if hops == 0 else self.key_object(end.data, end.size)

    def chain(self, key, at_ns):
        cdef int64_t number = 0
        cdef int64_t at = _moment(at_ns)
        cdef StrRef source = self._key(key, &number, "$.key")
        return self.chain_of(source.data, source.size, at)

    def history(self, key):
        cdef int64_t number = 0
        cdef StrRef source = self._key(key, &number, "$.key")
        cdef int32_t node = ri_alias_find(&self.graph, source.data, source.size)
        cdef uint32_t i
        cdef int32_t target
        cdef list found = []
        if node >= 0:
            for i in range(self.graph.nodes[node].n_changes):
                target = self.graph.nodes[node].changes[i].target
                into = None if target < 0 else self.key_object(self.graph.nodes[target].key, self.graph.nodes[target].size)
                found.append((self.graph.nodes[node].changes[i].from_ns, into))
        return tuple(found)

    def erase(self, key):
        cdef int64_t number = 0
        cdef StrRef source = self._key(key, &number, "$.key")
        cdef int64_t touched = ri_alias_erase(&self.graph, source.data, source.size)
        if touched:
            self.version += 1
        return touched

    def resolve_column(self, values, offsets, at_ns, valid=None):
        """See aliases.pyi."""
        cdef const int64_t[::1] at = np.ascontiguousarray(at_ns, np.int64)
        cdef Py_ssize_t n = at.shape[0], i
        cdef const uint8_t[::1] there = np.ones(n, np.uint8) if valid is None else np.ascontiguousarray(valid, np.uint8)
        cdef const uint8_t[::1] data
        cdef const int64_t[::1] ends
        cdef const int64_t[::1] numbers
        cdef int64_t[::1] out_ends
        cdef int64_t[::1] out_numbers
        cdef StrRef key, end
        cdef int hop = 0
        cdef int64_t total = 0
        if there.shape[0] != n:
            raise ShapeError(f"Expected {n} validity flags, got {there.shape[0]}")
        if n and int(np.abs(np.asarray(at)).max()) > MAX_TIME_NS:
            raise FeatureRangeError("Expected moments between 1824 and 2115", path="$.at_ns")
        made_hops = np.zeros(n, np.uint8)
        cdef uint8_t[::1] hops = made_hops
        if self.kind == KIND_INT:
            numbers = np.ascontiguousarray(values, np.int64)
            if numbers.shape[0] != n:
                raise ShapeError(f"Expected {n} keys, got {numbers.shape[0]}")
            made = np.array(numbers, np.int64)
            out_numbers = made
            for i in range(n):
                if there[i]:
                    end = ri_alias_resolve(&self.graph, <const char*>&numbers[i], 8, at[i], &hop)
                    hops[i] = <uint8_t>hop
                    memcpy(&out_numbers[i], end.data, 8)
            return made, None, made_hops
        data = np.ascontiguousarray(values, np.uint8)
        ends = np.ascontiguousarray(offsets, np.int64)
        if ends.shape[0] != n + 1 or ends[0] < 0 or ends[n] > data.shape[0] or (n and int(np.diff(np.asarray(ends)).min()) < 0):
            raise ShapeError(f"Expected {n + 1} ascending offsets into {data.shape[0]} bytes of keys")
        cdef const char* base = <const char*>&data[0] if data.shape[0] else <const char*>&ends[0]
        made_ends = np.zeros(n + 1, np.int64)
        out_ends = made_ends
        cdef bytes made_data
        cdef char* out
        cdef StrRef* found = <StrRef*>malloc((<size_t>n + 1) * sizeof(StrRef))
        if found == NULL:
            raise MemoryError("no memory to resolve keys")
        try:
            for i in range(n):
                key.data = base + ends[i]
                key.size = ends[i + 1] - ends[i]
                found[i] = key
                if there[i]:
                    found[i] = ri_alias_resolve(&self.graph, key.data, key.size, at[i], &hop)
                    hops[i] = <uint8_t>hop
                total += found[i].size
                out_ends[i + 1] = total
            # What was found is the graph's memory. Making bytes runs no collector, so nothing can change the graph before the copy.
            made_data = PyBytes_FromStringAndSize(NULL, max(total, 1))
            out = PyBytes_AS_STRING(made_data)
            out[0] = 0
            for i in range(n):
                memcpy(out + out_ends[i], found[i].data, <size_t>found[i].size)
        finally:
            free(found)
        return np.frombuffer(made_data, np.uint8), made_ends, made_hops

    # ---- files

    def export(self):
        """See aliases.pyi."""
        cdef uint32_t i, c
        cdef list keys = []
        cdef list counts = []
        numbers = np.full(self.graph.n_nodes, -1, np.int64)
        cdef int64_t[::1] number_of = numbers
        cdef int64_t used = 0
        for i in range(self.graph.n_nodes):
            if self.graph.nodes[i].key != NULL:
                number_of[i] = used
                used += 1
                keys.append(PyBytes_FromStringAndSize(self.graph.nodes[i].key, self.graph.nodes[i].size))
                counts.append(self.graph.nodes[i].n_changes)
        times = np.zeros(self.graph.n_changes, np.int64)
        targets = np.zeros(self.graph.n_changes, np.int64)
        cdef int64_t[::1] from_ns = times
        cdef int64_t[::1] to = targets
        cdef Py_ssize_t at = 0
        cdef ri_alias_change change
        for i in range(self.graph.n_nodes):
            for c in range(self.graph.nodes[i].n_changes if self.graph.nodes[i].key != NULL else 0):
                change = self.graph.nodes[i].changes[c]
                from_ns[at] = change.from_ns
                to[at] = -1 if change.target < 0 else number_of[change.target]
                at += 1
        return keys, counts, times, targets

    def replace(self, AliasTable other not None, version=None):
        """See aliases.pyi."""
        if other.kind != self.kind:
            raise ConfigError(f"Expected aliases of keys of kind `{self.key_kind}`, got `{other.key_kind}`")
        if other.graph.n_changes > self.max_links:
            raise LimitError(f"Expected at most {self.max_links} changes of aliases of `{self.name}`, got {other.graph.n_changes}")
        cdef ri_alias_graph mine = self.graph
        self.graph = other.graph
        other.graph = mine
        self.version = max(self.version + 1, 0 if version is None else version)
        other.version += 1

    def add_canonical(self, bytes key not None, into, at_ns):
        """See aliases.pyi."""
        cdef int64_t at = _moment(at_ns)
        cdef StrRef source = self._canonical(key)
        cdef StrRef target
        target.data = NULL
        target.size = 0
        if into is not None:
            target = self._canonical(into)
        self._put(source, target, at, key, into)

    cdef StrRef _canonical(self, object key) except *:
        cdef StrRef out
        if type(key) is not bytes:
            raise FeatureTypeError(f"Expected the bytes of a key, got `{type(key).__name__}`")
        out.data = PyBytes_AS_STRING(key)
        out.size = PyBytes_GET_SIZE(key)
        if out.size > RI_ALIAS_MAX_KEY or (self.kind == KIND_INT and out.size != 8):
            raise FeatureRangeError(f"Expected the bytes of a key of kind `{self.key_kind}`, got {out.size} bytes")
        if self.kind == KIND_STR:
            PyUnicode_DecodeUTF8(out.data, out.size, NULL)
        return out


cdef int64_t _moment(object at_ns) except? -1:
    """Nanoseconds since the epoch, as an exact int within +-2**62."""
    if type(at_ns) is not int:
        raise FeatureTypeError(f"Expected nanoseconds since the epoch as `int`, got `{type(at_ns).__name__}`", path="$.at")
    if not -MAX_TIME_NS <= at_ns <= MAX_TIME_NS:
        raise FeatureRangeError(f"Expected a moment between 1824 and 2115, got {clip(at_ns)} ns", path="$.at")
    return at_ns
