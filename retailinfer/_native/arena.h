/* Memory of what is built once and only read from then on: forests. No Python.h.
 *
 * Anonymous pages, which no file backs and nobody can truncate. They are made read-only when building ends, so a fork shares them
 * for good, and a stray write ends the process instead of changing a score. Freed whole.
 * Under a sanitiser, and where there is no mmap, every piece is an allocation of its own: then the ends of arrays are watched.
 */
#ifndef RETAILINFER_ARENA_H
#define RETAILINFER_ARENA_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "aligned.h"

#if !defined(_WIN32) && !defined(__SANITIZE_ADDRESS__)
#if defined(__has_feature)
#if !__has_feature(address_sanitizer)
#define RI_ARENA_PAGES 1
#endif
#else
#define RI_ARENA_PAGES 1
#endif
#endif

#if defined(RI_ARENA_PAGES)
#include <sys/mman.h>
#endif

#define RI_ARENA_CHUNK ((size_t)1 << 16) /* the first; each is twice as large as the one before, up to: */
#define RI_ARENA_MOST ((size_t)1 << 22)

typedef struct ri_chunk { /* at the beginning of its own pages */
    struct ri_chunk *next;
    size_t size, used;
} ri_chunk;

/* An arena is its chunks, the newest first; NULL is an empty one.
 * Room is zeroed, on a line of its own, with a line to spare behind it. NULL: there is none. */
static inline void *ri_arena_room(ri_chunk **arena, size_t size) {
    const size_t total = (size + 127) & ~(size_t)63;
    if (total < size)
        return NULL;
    ri_chunk *chunk = *arena;
#if defined(RI_ARENA_PAGES)
    if (!chunk || chunk->size - chunk->used < total) {
        size_t wanted = chunk ? (chunk->size < RI_ARENA_MOST ? 2 * chunk->size : RI_ARENA_MOST) : RI_ARENA_CHUNK;
        if (wanted < total + 64)
            wanted = (total + 64 + 4095) & ~(size_t)4095;
        chunk = (ri_chunk *)mmap(NULL, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (chunk == (ri_chunk *)MAP_FAILED)
            return NULL;
#if defined(MADV_HUGEPAGE)
        if (wanted >= (size_t)1 << 21)
            (void)madvise(chunk, wanted, MADV_HUGEPAGE); /* fewer TLB misses; a wish, not a need */
#endif
        *chunk = (ri_chunk){*arena, wanted, 64};
        *arena = chunk;
    }
    char *made = (char *)chunk + chunk->used;
    chunk->used += total;
    return made;
#else
    chunk = (ri_chunk *)ri_aligned(total + 64);
    if (!chunk)
        return NULL;
    memset(chunk, 0, total + 64);
    *chunk = (ri_chunk){*arena, total + 64, total + 64};
    *arena = chunk;
    return (char *)chunk + 64;
#endif
}

/* Nothing is written from here on. */
static inline void ri_arena_close(ri_chunk *arena) {
#if defined(RI_ARENA_PAGES)
    for (ri_chunk *chunk = arena, *next; chunk; chunk = next) {
        next = chunk->next;
        (void)mprotect(chunk, chunk->size, PROT_READ);
    }
#else
    (void)arena;
#endif
}

static inline void ri_arena_free(ri_chunk *arena) {
    for (ri_chunk *chunk = arena, *next; chunk; chunk = next) {
        next = chunk->next;
#if defined(RI_ARENA_PAGES)
        (void)munmap(chunk, chunk->size);
#else
        ri_aligned_free(chunk);
#endif
    }
}
#endif
