/* Walks: from node to node, for every forest on every machine. 8 walks at once, whose loads do not wait for each other: 8 trees of
 * one row, or 8 rows of one tree, which stays in the cache for many of them. Compiled once per instruction set.
 *
 * Rules:
 *   - A walk takes as many steps as the deepest of its 8 has; a leaf leads to itself.
 *   - A step has no branch: children stand side by side, and a comparison is 0 or 1.
 *   - Values are added in the order of the trees, each to its output.
 */
#include "tree_kernels.h"

enum { ONE_FLOAT, ONE_DOUBLE, ANY }; /* sums: one of either kind, or whatever the forest has */

/* ---- steps --------------------------------------------------------------------------------------------------------------- */

INLINE const ri_small_node *small_step(const ri_small_node *node, const uint32_t *cells, size_t step) {
    const uint32_t *cell = (const uint32_t *)(const void *)((const char *)cells + node->column * step);
    return node + (node->next + (size_t)(node->key < *cell));
}

INLINE const ri_large_node *large_step(const ri_large_node *node, const uint64_t *cells, size_t step) {
    return node + (node->next + (size_t)(node->key < cells[(node->cell >> 6) * step] << (node->cell & 63)));
}

/* Numbers of the 8 leaves where walks of `depth` steps end. lane_step: cells from one walk's row to the next one's. */
INLINE void walk_small(const ri_small_node *const *from, int32_t depth, const uint32_t *cells, size_t step, size_t lane_step, int32_t *numbers) {
    const ri_small_node *a = from[0], *b = from[1], *c = from[2], *d = from[3], *e = from[4], *f = from[5], *g = from[6], *h = from[7];
    for (; depth > 0; --depth) {
        a = small_step(a, cells, step);
        b = small_step(b, cells + lane_step, step);
        c = small_step(c, cells + 2 * lane_step, step);
        d = small_step(d, cells + 3 * lane_step, step);
        e = small_step(e, cells + 4 * lane_step, step);
        f = small_step(f, cells + 5 * lane_step, step);
        g = small_step(g, cells + 6 * lane_step, step);
        h = small_step(h, cells + 7 * lane_step, step);
    }
    const ri_small_node *ends[8] = {a, b, c, d, e, f, g, h};
    for (int j = 0; j < 8; ++j)
        numbers[j] = (int32_t)ends[j]->key;
}

INLINE void walk_large(const ri_large_node *const *from, int32_t depth, const uint64_t *cells, size_t step, size_t lane_step, int32_t *numbers) {
    const ri_large_node *a = from[0], *b = from[1], *c = from[2], *d = from[3], *e = from[4], *f = from[5], *g = from[6], *h = from[7];
    for (; depth > 0; --depth) {
        a = large_step(a, cells, step);
        b = large_step(b, cells + lane_step, step);
        c = large_step(c, cells + 2 * lane_step, step);
        d = large_step(d, cells + 3 * lane_step, step);
        e = large_step(e, cells + 4 * lane_step, step);
        f = large_step(f, cells + 5 * lane_step, step);
        g = large_step(g, cells + 6 * lane_step, step);
        h = large_step(h, cells + 7 * lane_step, step);
    }
    const ri_large_node *ends[8] = {a, b, c, d, e, f, g, h};
    for (int j = 0; j < 8; ++j)
        numbers[j] = (int32_t)ends[j]->key;
}

/* ---- sums ---------------------------------------------------------------------------------------------------------------- */

INLINE void add_leaf(const ri_forest *f, int32_t t, int32_t leaf, void *sums, int row) {
    if (f->width == 1) {
        const size_t at = (size_t)(f->targets[t] * RI_BLOCK + row);
        if (f->doubles)
            ((double *)sums)[at] += f->values[leaf];
        else
            ((float *)sums)[at] += f->values_f[leaf];
        return;
    }
    for (int32_t k = 0; k < f->width; ++k) {
        if (f->doubles)
            ((double *)sums)[k * RI_BLOCK + row] += f->values[(int64_t)leaf * f->width + k];
        else
            ((float *)sums)[k * RI_BLOCK + row] += f->values_f[(int64_t)leaf * f->width + k];
    }
}

INLINE int kind_of_sums(const ri_forest *f) { return f->n_outputs > 1 ? ANY : f->doubles ? ONE_DOUBLE : ONE_FLOAT; }

/* ---- one row ------------------------------------------------------------------------------------------------------------- */

INLINE void all_trees(const ri_forest *f, const void *cells, void *sums, int row, int32_t *leaves, int is_small, int kind) {
    float sum_f = kind == ONE_FLOAT ? ((float *)sums)[row] : 0;
    double sum = kind == ONE_DOUBLE ? ((double *)sums)[row] : 0;
    for (int32_t t = 0; t < f->n_trees; t += 8) {
        int32_t numbers[8], depth = 0;
        const int32_t many = f->n_trees - t < 8 ? f->n_trees - t : 8;
        for (int j = 0; j < 8; ++j)
            depth = f->depths[t + j] > depth ? f->depths[t + j] : depth;
        if (is_small) {
            const ri_small_node *from[8];
            for (int j = 0; j < 8; ++j)
                from[j] = f->small + f->roots[t + j];
            walk_small(from, depth, (const uint32_t *)cells, 1, 0, numbers);
        } else {
            const ri_large_node *from[8];
            for (int j = 0; j < 8; ++j)
                from[j] = f->large + f->roots[t + j];
            walk_large(from, depth, (const uint64_t *)cells, 1, 0, numbers);
        }
        for (int j = 0; j < many; ++j) {
            if (kind == ONE_FLOAT)
                sum_f += f->values_f[numbers[j]];
            else if (kind == ONE_DOUBLE)
                sum += f->values[numbers[j]];
            else
                add_leaf(f, t + j, numbers[j], sums, row);
        }
        if (leaves)
            memcpy(leaves + t, numbers, 4 * (size_t)many);
    }
    if (kind == ONE_FLOAT)
        ((float *)sums)[row] = sum_f;
    if (kind == ONE_DOUBLE)
        ((double *)sums)[row] = sum;
}

INLINE void row_by_row(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums, int32_t *leaves, int is_small, int kind) {
    for (int i = 0; i < n; ++i) {
        const char *row = (const char *)rows + (size_t)(i * stride) * (f->wide ? 8 : 4);
        if (is_small)
            cells_32(f, row, (uint32_t *)scratch, 1);
        else
            cells_64(f, row, (uint64_t *)scratch, 1);
        all_trees(f, scratch, sums, i, leaves ? leaves + (size_t)i * (size_t)f->n_trees : NULL, is_small, kind);
    }
}

void RI_NAME(ri_walk_1)(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums, int32_t *leaves) {
    const int kind = kind_of_sums(f);
    if (f->small && kind == ONE_FLOAT)
        row_by_row(f, rows, stride, n, scratch, sums, leaves, 1, ONE_FLOAT);
    else if (f->small && kind == ONE_DOUBLE)
        row_by_row(f, rows, stride, n, scratch, sums, leaves, 1, ONE_DOUBLE);
    else if (f->small)
        row_by_row(f, rows, stride, n, scratch, sums, leaves, 1, ANY);
    else
        row_by_row(f, rows, stride, n, scratch, sums, leaves, 0, kind);
}

/* ---- eight rows ---------------------------------------------------------------------------------------------------------- */

/* One tree for the rows of a group: `at` is the first of them. Rows that are not there have cells, and sums, like others. */
INLINE void one_tree(const ri_forest *f, int32_t t, const void *cells_, void *sums, int at, int many, int32_t *leaves, int is_small) {
    int32_t numbers[8];
    const void *cells = cells_;
    if (is_small && !leaves && f->width == 1 && !f->doubles) {
        const ri_small_node *root = f->small + f->roots[t];
        const ri_small_node *a = root, *b = root, *c = root, *d = root, *e = root, *g = root, *h = root, *i = root;
        for (int32_t depth = f->depths[t]; depth > 0; --depth) {
            a = small_step(a, cells, 8);
            b = small_step(b, (const uint32_t *)cells + 1, 8);
            c = small_step(c, (const uint32_t *)cells + 2, 8);
            d = small_step(d, (const uint32_t *)cells + 3, 8);
            e = small_step(e, (const uint32_t *)cells + 4, 8);
            g = small_step(g, (const uint32_t *)cells + 5, 8);
            h = small_step(h, (const uint32_t *)cells + 6, 8);
            i = small_step(i, (const uint32_t *)cells + 7, 8);
        }
        float *out = (float *)sums + f->targets[t] * RI_BLOCK + at;
        typedef float four __attribute__((vector_size(16), aligned(4)));
        const float *v = f->values_f;
        *(four *)out += (four){v[a->key], v[b->key], v[c->key], v[d->key]};
        *(four *)(out + 4) += (four){v[e->key], v[g->key], v[h->key], v[i->key]};
        return;
    }
    if (is_small) {
        const ri_small_node *root = f->small + f->roots[t], *from[8] = {root, root, root, root, root, root, root, root};
        walk_small(from, f->depths[t], (const uint32_t *)cells, 8, 1, numbers);
    } else {
        const ri_large_node *root = f->large + f->roots[t], *from[8] = {root, root, root, root, root, root, root, root};
        walk_large(from, f->depths[t], (const uint64_t *)cells, 8, 1, numbers);
    }
    if (f->width == 1 && f->doubles) {
        double *out = (double *)sums + f->targets[t] * RI_BLOCK + at;
        for (int j = 0; j < 8; ++j)
            out[j] += f->values[numbers[j]];
    } else if (f->width == 1) {
        float *out = (float *)sums + f->targets[t] * RI_BLOCK + at;
        for (int j = 0; j < 8; ++j)
            out[j] += f->values_f[numbers[j]];
    } else {
        for (int j = 0; j < many; ++j)
            add_leaf(f, t, numbers[j], sums, at + j);
    }
    if (leaves)
        for (int j = 0; j < many; ++j)
            leaves[(size_t)(at + j) * (size_t)f->n_trees + (size_t)t] = numbers[j];
}

INLINE void groups(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums, int32_t *leaves, int is_small) {
    enum { TREES = 16 }; /* that stay in the cache for all groups */
    const size_t size = (size_t)f->n_cells * 8 * (is_small ? 4 : 8);
    for (int first = 0; first < n; first += f->walk_rows) {
        const int end = first + f->walk_rows < n ? first + f->walk_rows : n;
        for (int i = first; i < ((end + 7) & ~7); ++i) {
            const char *row = (const char *)rows + (size_t)((i < end ? i : end - 1) * stride) * (f->wide ? 8 : 4);
            char *out = (char *)scratch + (size_t)((i - first) / 8) * size;
            if (is_small)
                cells_32(f, row, (uint32_t *)(void *)out + i % 8, 8);
            else
                cells_64(f, row, (uint64_t *)(void *)out + i % 8, 8);
        }
        for (int32_t tile = 0; tile < f->n_trees; tile += TREES)
            for (int i = first; i < end; i += 8) {
                const char *cells = (const char *)scratch + (size_t)((i - first) / 8) * size;
                const int many = end - i < 8 ? end - i : 8;
                for (int32_t t = tile; t < tile + TREES && t < f->n_trees; ++t)
                    one_tree(f, t, cells, sums, i, many, leaves, is_small);
            }
    }
}

void RI_NAME(ri_walk_8)(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums, int32_t *leaves) {
    if (f->small)
        groups(f, rows, stride, n, scratch, sums, leaves, 1);
    else
        groups(f, rows, stride, n, scratch, sums, leaves, 0);
}
