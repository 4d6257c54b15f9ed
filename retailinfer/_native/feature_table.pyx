"""The mutable entity table: being written; the interface in feature_table.pxd stands."""


cdef class LruTable:
    cdef const uint8_t* probe(self, const char* key, int64_t size, int64_t now_ns, int* outcome) noexcept:
        outcome[0] = ROW_ABSENT
        return NULL

    cdef int state(self, const char* key, int64_t size, int64_t now_ns) noexcept:
        return ROW_ABSENT

    cdef void ahead(self, const char* key, int64_t size) noexcept:
        pass

    cdef object key_object(self, const char* key, int64_t size):
        return None
