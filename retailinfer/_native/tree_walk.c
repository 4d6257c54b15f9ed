/* Walks: from node to node, for every forest on every machine. 8 walks at once, whose loads do not wait for each other: 8 trees of
 * one row, or 8 rows of one tree, which stays in the cache for many of them. Compiled once per instruction set.
 *
 * Rules:
 *   - A walk takes as many steps as the deepest of its 8 has; a leaf leads to itself.
 *   - A step has no branch: children stand side by side, and a comparison is 0 or 1.
 *   - Values are added in the order of the trees, each to its output. Trees that make up the last 8 add -0, which changes nothing.
 */
#include "tree_kernels.h"

enum { ONE_FLOAT, ONE_DOUBLE, ANY }; /* sums: one of either kind, or whatever the forest has */

/* ---- steps --------------------------------------------------------------------------------------------------------------- */

/* step: from one cell of a row to the next. */
INLINE const ri_small_node *small_step(const ri_small_node *node, const uint32_t *cells, size_t step) {
    const uint32_t *cell = (const uint32_t *)(const void *)((const char *)cells + node->cell * step);
    return node + (node->next + (size_t)(node->key < *cell));
}

INLINE const ri_large_node *large_step(const ri_large_node *node, const uint64_t *cells, size_t step) {
    return node + (node->next + (size_t)(node->key < cells[(node->cell >> 6) * step] << (node->cell & 63)));
}

/* The nodes where 8 walks of `depth` steps end. lane: cells from one walk's row to the next one's. */
#define WALK(NAME, NODE, CELL, STEP)                                                                                                \
    typedef struct NAME##_ends {                                                                                                    \
        const NODE *a, *b, *c, *d, *e, *f, *g, *h;                                                                                  \
    } NAME##_ends;                                                                                                                  \
    INLINE NAME##_ends NAME(NAME##_ends n, int32_t depth, const CELL *cells, size_t step, size_t lane) {                            \
        for (; depth > 0; --depth) {                                                                                                \
            n.a = STEP(n.a, cells, step);                                                                                           \
            n.b = STEP(n.b, cells + lane, step);                                                                                    \
            n.c = STEP(n.c, cells + 2 * lane, step);                                                                                \
            n.d = STEP(n.d, cells + 3 * lane, step);                                                                                \
            n.e = STEP(n.e, cells + 4 * lane, step);                                                                                \
            n.f = STEP(n.f, cells + 5 * lane, step);                                                                                \
            n.g = STEP(n.g, cells + 6 * lane, step);                                                                                \
            n.h = STEP(n.h, cells + 7 * lane, step);                                                                                \
        }                                                                                                                           \
        return n;                                                                                                                   \
    }

WALK(walk_small, ri_small_node, uint32_t, small_step)
WALK(walk_large, ri_large_node, uint64_t, large_step)

/* What ends say: numbers of leaves, and sums with their values. Written out, because an array of numbers would go through memory. */
#define NUMBERS(OUT, N)                                                                                                             \
    ((OUT)[0] = (int32_t)N.a->key, (OUT)[1] = (int32_t)N.b->key, (OUT)[2] = (int32_t)N.c->key, (OUT)[3] = (int32_t)N.d->key,         \
     (OUT)[4] = (int32_t)N.e->key, (OUT)[5] = (int32_t)N.f->key, (OUT)[6] = (int32_t)N.g->key, (OUT)[7] = (int32_t)N.h->key)
#define SUM(S, V, N)                                                                                                                \
    ((((((((S) + (V)[N.a->key]) + (V)[N.b->key]) + (V)[N.c->key]) + (V)[N.d->key]) + (V)[N.e->key]) + (V)[N.f->key]) + (V)[N.g->key]) + (V)[N.h->key]
#if defined(RI_VECTORS)
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef double two __attribute__((vector_size(16), aligned(8), may_alias));
#define ADD_FLOATS(OUT, V, N)                                                                                                       \
    (((four *)(void *)(OUT))[0] += (four){(V)[N.a->key], (V)[N.b->key], (V)[N.c->key], (V)[N.d->key]},                               \
     ((four *)(void *)(OUT))[1] += (four){(V)[N.e->key], (V)[N.f->key], (V)[N.g->key], (V)[N.h->key]})
#define ADD_DOUBLES(OUT, V, N)                                                                                                      \
    (((two *)(void *)(OUT))[0] += (two){(V)[N.a->key], (V)[N.b->key]}, ((two *)(void *)(OUT))[1] += (two){(V)[N.c->key], (V)[N.d->key]}, \
     ((two *)(void *)(OUT))[2] += (two){(V)[N.e->key], (V)[N.f->key]}, ((two *)(void *)(OUT))[3] += (two){(V)[N.g->key], (V)[N.h->key]})
#else
#define ADD_FLOATS(OUT, V, N)                                                                                                       \
    ((OUT)[0] += (V)[N.a->key], (OUT)[1] += (V)[N.b->key], (OUT)[2] += (V)[N.c->key], (OUT)[3] += (V)[N.d->key],                     \
     (OUT)[4] += (V)[N.e->key], (OUT)[5] += (V)[N.f->key], (OUT)[6] += (V)[N.g->key], (OUT)[7] += (V)[N.h->key])
#define ADD_DOUBLES ADD_FLOATS
#endif

INLINE void add_leaf(const ri_forest *f, int32_t t, int32_t leaf, void *sums, int row) {
    const int32_t first = f->width == 1 ? f->targets[t] : 0;
    for (int32_t k = 0; k < f->width; ++k) {
        if (f->doubles)
            ((double *)sums)[(first + k) * RI_BLOCK + row] += f->values[(int64_t)leaf * f->width + k];
        else
            ((float *)sums)[(first + k) * RI_BLOCK + row] += f->values_f[(int64_t)leaf * f->width + k];
    }
}

/* ---- one row ------------------------------------------------------------------------------------------------------------- */

typedef struct total {
    float narrow;
    double wide;
} total;

/* Eight trees of one row, from the t-th on. */
INLINE void eight_trees(const ri_forest *f, int32_t t, const void *cells, total *sum, void *sums, int row, int32_t *leaves, int small, int kind) {
    const int32_t *roots = f->roots + t, depth = f->depths_8[t / 8], many = f->n_trees - t < 8 ? f->n_trees - t : 8;
    int32_t numbers[8];
    if (small) {
        const ri_small_node *all = f->small;
        const walk_small_ends from = {all + roots[0], all + roots[1], all + roots[2], all + roots[3],
                                      all + roots[4], all + roots[5], all + roots[6], all + roots[7]};
        const walk_small_ends ends = walk_small(from, depth, (const uint32_t *)cells, 1, 0);
        if (kind == ONE_FLOAT)
            sum->narrow = SUM(sum->narrow, f->values_f, ends);
        else if (kind == ONE_DOUBLE)
            sum->wide = SUM(sum->wide, f->values, ends);
        if (leaves || kind == ANY)
            NUMBERS(numbers, ends);
    } else {
        const ri_large_node *all = f->large;
        const walk_large_ends from = {all + roots[0], all + roots[1], all + roots[2], all + roots[3],
                                      all + roots[4], all + roots[5], all + roots[6], all + roots[7]};
        const walk_large_ends ends = walk_large(from, depth, (const uint64_t *)cells, 1, 0);
        if (kind == ONE_FLOAT)
            sum->narrow = SUM(sum->narrow, f->values_f, ends);
        else if (kind == ONE_DOUBLE)
            sum->wide = SUM(sum->wide, f->values, ends);
        if (leaves || kind == ANY)
            NUMBERS(numbers, ends);
    }
    for (int32_t j = 0; j < many && kind == ANY; ++j)
        add_leaf(f, t + j, numbers[j], sums, row);
    if (leaves)
        memcpy(leaves + t, numbers, 4 * (size_t)many);
}

INLINE void row_by_row(const ri_forest *f, const void *rows, int64_t stride, int n, void *cells, void *sums, int32_t *leaves, int small, int kind) {
    for (int i = 0; i < n; ++i) {
        const char *row = (const char *)rows + (size_t)(i * stride) * (f->wide ? 8 : 4);
        int32_t *own = leaves ? leaves + (size_t)i * (size_t)f->n_trees : NULL;
        total sum = {kind == ONE_FLOAT ? ((float *)sums)[i] : 0, kind == ONE_DOUBLE ? ((double *)sums)[i] : 0};
        if (small)
            cells_32(f, row, (uint32_t *)cells, 1);
        else
            cells_64(f, row, (uint64_t *)cells, 1);
        for (int32_t t = 0; t < f->n_trees; t += 8)
            eight_trees(f, t, cells, &sum, sums, i, own, small, kind);
        if (kind == ONE_FLOAT)
            ((float *)sums)[i] = sum.narrow;
        if (kind == ONE_DOUBLE)
            ((double *)sums)[i] = sum.wide;
    }
}

void RI_NAME(ri_walk_1)(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums, int32_t *leaves) {
    const int kind = f->n_outputs > 1 ? ANY : f->doubles ? ONE_DOUBLE : ONE_FLOAT;
    if (!f->small)
        row_by_row(f, rows, stride, n, scratch, sums, leaves, 0, kind);
    else if (kind == ONE_FLOAT)
        row_by_row(f, rows, stride, n, scratch, sums, leaves, 1, ONE_FLOAT);
    else if (kind == ONE_DOUBLE)
        row_by_row(f, rows, stride, n, scratch, sums, leaves, 1, ONE_DOUBLE);
    else
        row_by_row(f, rows, stride, n, scratch, sums, leaves, 1, ANY);
}

/* ---- eight rows ---------------------------------------------------------------------------------------------------------- */

/* One tree of eight rows, from the first-th on. Rows that are not there have cells, and sums, like others. */
INLINE void one_tree(const ri_forest *f, int32_t t, const void *cells, void *sums, int first, int many, int32_t *leaves, int small) {
    const int32_t depth = f->depths[t];
    int32_t numbers[8];
    if (small) {
        const ri_small_node *root = f->small + f->roots[t];
        const walk_small_ends from = {root, root, root, root, root, root, root, root};
        const walk_small_ends ends = walk_small(from, depth, (const uint32_t *)cells, 8, 1);
        if (f->width == 1 && f->doubles)
            ADD_DOUBLES((double *)sums + f->targets[t] * RI_BLOCK + first, f->values, ends);
        else if (f->width == 1)
            ADD_FLOATS((float *)sums + f->targets[t] * RI_BLOCK + first, f->values_f, ends);
        if (leaves || f->width > 1)
            NUMBERS(numbers, ends);
    } else {
        const ri_large_node *root = f->large + f->roots[t];
        const walk_large_ends from = {root, root, root, root, root, root, root, root};
        const walk_large_ends ends = walk_large(from, depth, (const uint64_t *)cells, 8, 1);
        if (f->width == 1 && f->doubles)
            ADD_DOUBLES((double *)sums + f->targets[t] * RI_BLOCK + first, f->values, ends);
        else if (f->width == 1)
            ADD_FLOATS((float *)sums + f->targets[t] * RI_BLOCK + first, f->values_f, ends);
        if (leaves || f->width > 1)
            NUMBERS(numbers, ends);
    }
    for (int j = 0; j < many && f->width > 1; ++j)
        add_leaf(f, t, numbers[j], sums, first + j);
    for (int j = 0; j < many && leaves; ++j)
        leaves[(size_t)(first + j) * (size_t)f->n_trees + (size_t)t] = numbers[j];
}

INLINE void groups(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums, int32_t *leaves, int small) {
    enum { TREES = 16 }; /* that stay in the cache for all groups */
    const size_t size = (size_t)f->n_cells * 8 * (small ? 4 : 8);
    for (int first = 0; first < n; first += f->walk_rows) {
        const int end = first + f->walk_rows < n ? first + f->walk_rows : n;
        for (int i = first; i < ((end + 7) & ~7); ++i) {
            const char *row = (const char *)rows + (size_t)((i < end ? i : end - 1) * stride) * (f->wide ? 8 : 4);
            char *out = (char *)scratch + (size_t)((i - first) / 8) * size;
            if (small)
                cells_32(f, row, (uint32_t *)(void *)out + i % 8, 8);
            else
                cells_64(f, row, (uint64_t *)(void *)out + i % 8, 8);
        }
        for (int32_t tile = 0; tile < f->n_trees; tile += TREES)
            for (int i = first; i < end; i += 8) {
                const char *cells = (const char *)scratch + (size_t)((i - first) / 8) * size;
                const int many = end - i < 8 ? end - i : 8;
                for (int32_t t = tile; t < tile + TREES && t < f->n_trees; ++t)
                    one_tree(f, t, cells, sums, i, many, leaves, small);
            }
    }
}

void RI_NAME(ri_walk_8)(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums, int32_t *leaves) {
    if (f->small)
        groups(f, rows, stride, n, scratch, sums, leaves, 1);
    else
        groups(f, rows, stride, n, scratch, sums, leaves, 0);
}
