/* Memory on cache lines of its own, for tensors, scratch and forests. No Python.h; not zeroed, freed without its size.
 *
 * Tables have memory.h: pages that go back to the system and are shared by a fork.
 */
#ifndef RETAILINFER_ALIGNED_H
#define RETAILINFER_ALIGNED_H

#include <stdlib.h>

#if defined(_WIN32)
#include <malloc.h>
static inline void *ri_aligned(size_t size) { return _aligned_malloc(size ? size : 64, 64); }
static inline void ri_aligned_free(void *p) { _aligned_free(p); }
#else
/* NULL when there is none. */
static inline void *ri_aligned(size_t size) {
    void *p = NULL;
    return posix_memalign(&p, 64, size ? size : 64) ? NULL : p;
}
static inline void ri_aligned_free(void *p) { free(p); }
#endif

#endif
