/* Cases for the tree kernels: from a string of bytes to a forest, whole or spoiled, and rows for it; and what must be true of it.
 *
 * Rules:
 *   - A case is made of its bytes alone, by integer arithmetic: the same on every machine and compiler, so a corpus is small and a
 *     fuzzer can steer. Bytes that run out are replaced by numbers drawn from what was there.
 *   - Every array has exactly its size, so that a sanitiser sees the first byte too far.
 *   - What is compared with is written here from trees.h's words, not from the kernels.
 * forest_cases.c makes cases, forest_checks.c checks them, reason_checks.c their reasons; forest_main.c runs many of them, and
 * forest_fuzz.c lets libFuzzer do it.
 */
#ifndef FOREST_CASES_H
#define FOREST_CASES_H

#include "trees.h"

typedef struct forest_case {
    ri_trees trees;
    int spoiled;         /* a cell was overwritten: may be refused */
    int64_t n_rows;
    int64_t stride;      /* in cells */
    void *rows;          /* float or double; exactly to the end of the last row's features */
    char *rows_memory;
    uint8_t plan[9];     /* kernels to mix, mod those that fit */
    uint64_t hash;       /* of all arrays and rows */
} forest_case;

void forest_case_make(forest_case *c, const uint8_t *data, size_t size);
void forest_case_free(forest_case *c);

typedef struct forest_answers {
    int error;           /* RI_TREES_*, 0: there is a forest */
    size_t n;
    uint32_t *sums;      /* (n) bits of raw answers, NaN in one form */
    uint32_t *last;      /* (n) bits after the last step */
    uint64_t reasons;    /* hash of amounts, picks and contributions */
} forest_answers;

typedef struct forest_counts {
    uint64_t cases, refused, spoiled_but_whole, answers;
    uint64_t runs[3][RI_N_KERNELS]; /* by level and kernel */
    uint64_t recorded;              /* forests whose records were summed by the kernel of the trees */
} forest_counts;

extern const char *const forest_levels[3];

/* Reasons of the first rows, whose leaves these are: every form and level. Returns a hash of all that came out. */
uint64_t reasons_check(const forest_case *c, const ri_forest *f, const int32_t *leaves, forest_counts *counts);
/* Arrays that are no forest: whoever works out reasons of them checks them again. */
void reasons_refuse(const forest_case *c);

/* Builds, runs every kernel of every level, compares. Prints what is wrong and aborts. `answers` may be NULL; the caller frees its arrays. */
void forest_case_check(const uint8_t *data, size_t size, forest_answers *answers, forest_counts *counts);
#endif
