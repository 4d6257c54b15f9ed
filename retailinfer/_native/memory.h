/* Zeroed memory for tables: 64-byte aligned, anonymous, given back to the system as soon as it is freed. No Python.h.
 *
 * Pages are shared by a fork until somebody writes to them. The size is said again when freeing. All functions static, so that each
 * extension has its own; table_index.c and lru_table.c use them.
 */
#ifndef RETAILINFER_MEMORY_H
#define RETAILINFER_MEMORY_H

#if !defined(_WIN32) && !defined(_DEFAULT_SOURCE)
#error "define _DEFAULT_SOURCE before the first include: madvise"
#endif

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#include <malloc.h>
#else
#include <sys/mman.h>
#endif

#define RI_PAGES_LINE ((size_t)64)
#define RI_PAGES_HUGE ((size_t)2 << 20)
#define RI_PAGES_MAP ((size_t)1 << 20) /* from here pages of their own: given back at once, and huge where allowed */

/* NULL when there is none. */
static inline void *ri_pages_new(size_t size) {
    size = (size + RI_PAGES_LINE - 1) & ~(RI_PAGES_LINE - 1);
    if (size == 0)
        size = RI_PAGES_LINE;
    void *memory = NULL;
#if defined(_WIN32)
    memory = _aligned_malloc(size, RI_PAGES_LINE);
    if (memory)
        memset(memory, 0, size);
#else
    if (size >= RI_PAGES_MAP) {
        /* from a huge page on, begin with one: what is mapped before and behind is given back at once */
        const size_t spare = size >= RI_PAGES_HUGE ? RI_PAGES_HUGE : 0;
        size = (size + 4095) & ~(size_t)4095;
        char *start = (char *)mmap(NULL, size + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (start == (char *)MAP_FAILED)
            return NULL;
        if (spare) {
            const size_t before = (RI_PAGES_HUGE - ((size_t)start & (RI_PAGES_HUGE - 1))) & (RI_PAGES_HUGE - 1);
            if (before)
                (void)munmap(start, before);
            if (spare - before)
                (void)munmap(start + before + size, spare - before);
            start += before;
        }
        memory = start;
#if defined(MADV_HUGEPAGE)
        (void)madvise(memory, size, MADV_HUGEPAGE); /* fewer TLB misses for random rows; a wish, not a need */
#endif
        return memory;
    }
    if (posix_memalign(&memory, RI_PAGES_LINE, size) != 0)
        return NULL;
    memset(memory, 0, size);
#endif
    return memory;
}

static inline void ri_pages_free(void *memory, size_t size) {
    if (memory == NULL)
        return;
#if defined(_WIN32)
    (void)size;
    _aligned_free(memory);
#else
    size = (size + RI_PAGES_LINE - 1) & ~(RI_PAGES_LINE - 1);
    if (size >= RI_PAGES_MAP)
        (void)munmap(memory, size);
    else
        free(memory);
#endif
}

#endif
