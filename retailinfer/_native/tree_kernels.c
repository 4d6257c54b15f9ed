/* Kernels of tree ensembles. Compiled once per instruction set: RI_LEVEL is 1 (baseline), 3 (AVX2) or 4 (AVX-512 with VBMI).
 *
 * Rules:
 *   - Every symbol but the one set of kernels is static, so that no linker can take another level's copy.
 *   - A kernel adds the trees' values in their order, each to its output. That is all that bits depend on.
 *   - Comparisons are `!(x <= threshold)`, never `x > threshold`: NaN turns right.
 */
#include <math.h>
#include <string.h>

#include "trees.h"

#if defined(__GNUC__) || defined(__clang__)
#define RI_VECTORS 1
#endif
#if RI_LEVEL >= 3
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

/* ---- rows -> derived columns -> ranks -------------------------------------------------------------------------------- */

/* One row's derived columns and, behind them, the -inf of leaves. */
INLINE void derive(const ri_forest *f, const float *row, float *out) {
    if (f->plain) {
        memcpy(out, row, sizeof(float) * (size_t)f->n_columns);
    } else {
        for (int32_t c = 0; c < f->n_columns; ++c) {
            const ri_derived *d = f->columns + c;
            const float x = row[d->feature];
            out[c] = x != x || fabsf(x) <= d->zero ? d->fill : x;
        }
    }
    out[f->n_columns] = -INFINITY;
}

#if defined(RI_VECTORS) && RI_LEVEL < 3
typedef float four_floats __attribute__((vector_size(16)));
typedef int32_t four_ints __attribute__((vector_size(16)));
#endif

/* How many of 16 ascending numbers x is not at most. */
INLINE unsigned count_below(const float *numbers, float x) {
#if RI_LEVEL == 4
    return (unsigned)_mm_popcnt_u32(_mm512_cmp_ps_mask(_mm512_set1_ps(x), _mm512_load_ps(numbers), _CMP_NLE_UQ));
#elif RI_LEVEL == 3
    const __m256 v = _mm256_set1_ps(x);
    const unsigned low = (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_load_ps(numbers), _CMP_NLE_UQ));
    const unsigned high = (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_load_ps(numbers + 8), _CMP_NLE_UQ));
    return (unsigned)_mm_popcnt_u32(low | high << 8);
#elif defined(RI_VECTORS)
    /* In vectors by hand: from `n += !(x <= numbers[i])` gcc 12 for arm64 makes wrong code. */
    const four_floats v = (four_floats){0} + x;
    four_ints at_most = {0};
    for (int i = 0; i < 16; i += 4)
        at_most += v <= *(const four_floats *)(const void *)(numbers + i); /* 0 or -1 each */
    return (unsigned)(16 + at_most[0] + at_most[1] + at_most[2] + at_most[3]);
#else
    unsigned n = 0;
    for (int i = 0; i < 16; ++i)
        n += !(x <= numbers[i]);
    return n;
#endif
}

/* Rank of x among a column's thresholds; NaN ranks above all. */
INLINE uint8_t rank_of(const ri_forest *f, int32_t c, float x) {
    const unsigned block = count_below(f->rank_heads + 16 * (size_t)c, x);
    if (block > 15)
        return 255; /* NaN: +inf is at most the padding */
    return (uint8_t)(16 * block + count_below(f->ranks + 256 * (size_t)c + 16 * block, x));
}

/* ---- packed ------------------------------------------------------------------------------------------------------------- */

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

/* All trees of one derived row, eight at a time: their loads do not wait for each other. A leaf's number lies in its threshold. */
INLINE int32_t packed_leaf(const ri_packed_node *leaf) {
    int32_t number;
    memcpy(&number, &leaf->threshold, 4);
    return number;
}

INLINE void packed_row(const ri_forest *f, const float *x, void *sums, int row) {
    int32_t t = 0;
    for (; t + 8 <= f->n_trees; t += 8) {
        const ri_packed_node *tree[8];
        uint32_t at[8];
        int32_t depth = 0;
        for (int j = 0; j < 8; ++j) {
            tree[j] = f->packed + f->roots[t + j];
            at[j] = 0;
            depth = f->depths[t + j] > depth ? f->depths[t + j] : depth;
        }
        for (; depth > 0; --depth)
            for (int j = 0; j < 8; ++j) {
                const ri_packed_node *node = tree[j] + at[j];
                at[j] = (uint32_t)node->left + !(x[node->column] <= node->threshold);
            }
        for (int j = 0; j < 8; ++j)
            add_leaf(f, t + j, packed_leaf(tree[j] + at[j]), sums, row);
    }
    for (; t < f->n_trees; ++t) {
        const ri_packed_node *tree = f->packed + f->roots[t];
        uint32_t at = 0;
        for (int32_t depth = f->depths[t]; depth > 0; --depth)
            at = (uint32_t)tree[at].left + !(x[tree[at].column] <= tree[at].threshold);
        add_leaf(f, t, packed_leaf(tree + at), sums, row);
    }
}

static void packed_1(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums) {
    float *x = (float *)scratch;
    for (int i = 0; i < n; ++i) {
        derive(f, (const float *)rows + i * stride, x);
        packed_row(f, x, sums, i);
    }
}

static void packed_16(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums) {
    float *x = (float *)scratch;
    const size_t width = (size_t)f->n_columns + 1;
    for (int i = 0; i < 16; ++i)
        derive(f, (const float *)rows + (i < n ? i : 0) * stride, x + (size_t)i * width);
    for (int32_t t = 0; t < f->n_trees; ++t) {
        const ri_packed_node *tree = f->packed + f->roots[t];
        uint32_t at[16] = {0};
        for (int32_t depth = f->depths[t]; depth > 0; --depth)
            for (int i = 0; i < 16; ++i) {
                const ri_packed_node *node = tree + at[i];
                at[i] = (uint32_t)node->left + !(x[(size_t)i * width + node->column] <= node->threshold);
            }
        for (int i = 0; i < n; ++i)
            add_leaf(f, t, packed_leaf(tree + at[i]), sums, i);
    }
}

/* ---- ranked ------------------------------------------------------------------------------------------------------------- */

#if defined(RI_VECTORS)
#if RI_LEVEL == 4
#define RI_BYTES 64
#elif RI_LEVEL == 3
#define RI_BYTES 32
#else
#define RI_BYTES 16
#endif
typedef uint8_t bytes __attribute__((vector_size(RI_BYTES)));

/* planes: (n_columns, n) ranks. Rows that are not there take those of the first: they cost nothing and hurt nobody. */
INLINE void rank_planes(const ri_forest *f, const float *rows, int64_t stride, int n, int block, uint8_t *planes) {
    for (int32_t c = 0; c < f->n_columns; ++c) {
        const ri_derived *d = f->columns + c;
        uint8_t *plane = planes + (size_t)c * (size_t)block;
        for (int i = 0; i < n; ++i) {
            const float x = rows[i * stride + d->feature];
            plane[i] = rank_of(f, c, x != x || fabsf(x) <= d->zero ? d->fill : x);
        }
        if (n < block)
            memset(plane + n, 0, (size_t)(block - n));
    }
}

/* Sums of a tree's leaves for the rows of one vector of leaf numbers. */
INLINE void add_leaves(const ri_forest *f, int32_t t, bytes leaves, void *sums) {
#if RI_LEVEL == 4
    const int32_t n_leaves = f->leaf_first[t + 1] - f->leaf_first[t];
    const __m512i all = (__m512i)leaves;
    const __m128i quarters[4] = {_mm512_extracti32x4_epi32(all, 0), _mm512_extracti32x4_epi32(all, 1), _mm512_extracti32x4_epi32(all, 2),
                                 _mm512_extracti32x4_epi32(all, 3)};
    if (!f->doubles) {
        const float *values = (const float *)f->leaf_values + f->leaf_first[t];
        float *out = (float *)sums;
        if (n_leaves <= 32) {
            const __m512 low = _mm512_load_ps(values), high = n_leaves > 16 ? _mm512_load_ps(values + 16) : low;
            for (int q = 0; q < 4; ++q)
                _mm512_storeu_ps(out + 16 * q, _mm512_add_ps(_mm512_loadu_ps(out + 16 * q),
                                                             _mm512_permutex2var_ps(low, _mm512_cvtepu8_epi32(quarters[q]), high)));
        } else {
            for (int q = 0; q < 4; ++q)
                _mm512_storeu_ps(out + 16 * q, _mm512_add_ps(_mm512_loadu_ps(out + 16 * q),
                                                             _mm512_i32gather_ps(_mm512_cvtepu8_epi32(quarters[q]), values, 4)));
        }
        return;
    }
    const double *values = (const double *)f->leaf_values + f->leaf_first[t];
    double *out = (double *)sums;
    for (int q = 0; q < 4; ++q) {
        const __m512i index = _mm512_cvtepu8_epi32(quarters[q]);
        double *at = out + 16 * q;
        _mm512_storeu_pd(at, _mm512_add_pd(_mm512_loadu_pd(at), _mm512_i32gather_pd(_mm512_castsi512_si256(index), values, 8)));
        _mm512_storeu_pd(at + 8, _mm512_add_pd(_mm512_loadu_pd(at + 8), _mm512_i32gather_pd(_mm512_extracti64x4_epi64(index, 1), values, 8)));
    }
#else
    if (f->doubles) {
        const double *values = (const double *)f->leaf_values + f->leaf_first[t];
        for (int i = 0; i < RI_BYTES; ++i)
            ((double *)sums)[i] += values[leaves[i]];
    } else {
        const float *values = (const float *)f->leaf_values + f->leaf_first[t];
        for (int i = 0; i < RI_BYTES; ++i)
            ((float *)sums)[i] += values[leaves[i]];
    }
#endif
}

/* V vectors of rows: every node of every tree against all of them. */
#define RANKED(NAME, V)                                                                                                             \
    static void NAME(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums) {                       \
        enum { BLOCK = (V) * RI_BYTES };                                                                                            \
        uint8_t *planes = (uint8_t *)scratch;                                                                                       \
        const size_t size = f->doubles ? 8 : 4;                                                                                     \
        rank_planes(f, (const float *)rows, stride, n, BLOCK, planes);                                                              \
        for (int32_t t = 0; t < f->n_trees; ++t) {                                                                                  \
            bytes leaf[V];                                                                                                          \
            for (int v = 0; v < (V); ++v)                                                                                           \
                leaf[v] = (bytes){0};                                                                                               \
            for (int32_t i = f->masked_ends[t]; i < f->masked_ends[t + 1]; ++i) {                                                   \
                const ri_masked_node *node = f->masked + i;                                                                         \
                const bytes *plane = (const bytes *)(const void *)(planes + (size_t)node->column * BLOCK);                          \
                for (int v = 0; v < (V); ++v)                                                                                       \
                    leaf[v] = move_on(leaf[v], plane[v], node);                                                                     \
            }                                                                                                                       \
            for (int v = 0; v < (V); ++v)                                                                                           \
                add_leaves(f, t, leaf[v], (char *)sums + (size_t)(f->targets[t] * RI_BLOCK + v * RI_BYTES) * size);                  \
        }                                                                                                                           \
    }

/* Rows whose first possible leaf is the node's own, and that turn right, go on to the first leaf behind it. */
INLINE bytes move_on(bytes leaf, bytes ranks, const ri_masked_node *node) {
#if RI_LEVEL == 4
    const __m512i here = (__m512i)leaf;
    const __mmask64 mine = _mm512_cmpeq_epi8_mask(here, _mm512_set1_epi8((char)node->first));
    const __mmask64 right = _mm512_mask_cmpgt_epu8_mask(mine, (__m512i)ranks, _mm512_set1_epi8((char)node->rank));
    return (bytes)_mm512_mask_mov_epi8(here, right, _mm512_set1_epi8((char)node->middle));
#else
    const bytes first = (bytes){0} + node->first, rank = (bytes){0} + node->rank;
    const bytes step = (bytes){0} + (uint8_t)(node->middle - node->first);
    return leaf + ((bytes)(leaf == first) & (bytes)(ranks > rank) & step);
#endif
}

RANKED(ranked_64, 64 / RI_BYTES)
RANKED(ranked_128, 128 / RI_BYTES)
RANKED(ranked_256, 256 / RI_BYTES)
#endif

/* ---- heaps ---------------------------------------------------------------------------------------------------------------- */

#if RI_LEVEL == 4
/* Bit s of a tree's mask: the row turns right at slot s. */
INLINE void heap_masks(const ri_forest *f, const uint8_t *ranks, uint64_t *masks, int step) {
    const __m512i low = _mm512_load_si512(ranks), high = _mm512_load_si512(ranks + 64);
    for (int32_t t = 0; t < f->n_trees; ++t) {
        const __m512i columns = _mm512_load_si512(f->heap_columns + 64 * (size_t)t);
        masks[(size_t)t * (size_t)step] = _mm512_cmpgt_epu8_mask(_mm512_permutex2var_epi8(low, columns, high),
                                                                 _mm512_load_si512(f->heap_ranks + 64 * (size_t)t));
    }
}

/* Eight masks -> which of its 64 bottom places each reaches. */
INLINE __m256i heap_walk(const uint64_t *masks) {
    const __m512i mask = _mm512_load_si512(masks), one = _mm512_set1_epi64(1);
    __m512i at = _mm512_setzero_si512();
    for (int depth = 0; depth < 6; ++depth) {
        const __m512i bit = _mm512_and_si512(_mm512_srlv_epi64(mask, at), one);
        at = _mm512_add_epi64(_mm512_add_epi64(at, at), _mm512_add_epi64(bit, one));
    }
    return _mm256_sub_epi32(_mm512_cvtepi64_epi32(at), _mm256_set1_epi32(63));
}

INLINE void heap_ranks(const ri_forest *f, const float *row, uint8_t *ranks) {
    for (int32_t c = 0; c < f->n_columns; ++c) {
        const ri_derived *d = f->columns + c;
        const float x = row[d->feature];
        ranks[c] = rank_of(f, c, x != x || fabsf(x) <= d->zero ? d->fill : x);
    }
}

/* scratch: 8 x 128 ranks, 8 masks a tree (up to a multiple of 8 trees), and for one row a value a tree. */
static void heap_1(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums) {
    const size_t n_trees = ((size_t)f->n_trees + 7) & ~(size_t)7;
    uint8_t *ranks = (uint8_t *)scratch;
    uint64_t *masks = (uint64_t *)(void *)(ranks + 1024);
    void *values = masks + 8 * n_trees;
    const __m256i trees = _mm256_setr_epi32(0, 64, 128, 192, 256, 320, 384, 448);
    for (int i = 0; i < n; ++i) {
        heap_ranks(f, (const float *)rows + i * stride, ranks);
        heap_masks(f, ranks, masks, 1);
        if (f->doubles) {
            double *value = (double *)values, *out = (double *)sums + i;
            for (size_t t = 0; t < n_trees; t += 8)
                _mm512_store_pd(value + t, _mm512_i32gather_pd(_mm256_add_epi32(heap_walk(masks + t), trees),
                                                              (const double *)f->heap_values + 64 * t, 8));
            for (int32_t t = 0; t < f->n_trees; ++t)
                out[f->targets[t] * RI_BLOCK] += value[t];
        } else {
            float *value = (float *)values, *out = (float *)sums + i;
            for (size_t t = 0; t < n_trees; t += 8)
                _mm256_store_ps(value + t, _mm256_i32gather_ps((const float *)f->heap_values + 64 * t,
                                                              _mm256_add_epi32(heap_walk(masks + t), trees), 4));
            if (f->n_outputs == 1) {
                float sum = out[0];
                for (int32_t t = 0; t < f->n_trees; ++t)
                    sum += value[t];
                out[0] = sum;
            } else {
                for (int32_t t = 0; t < f->n_trees; ++t)
                    out[f->targets[t] * RI_BLOCK] += value[t];
            }
        }
    }
}

static void heap_8(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums) {
    uint8_t *ranks = (uint8_t *)scratch;
    uint64_t *masks = (uint64_t *)(void *)(ranks + 1024);
    for (int i = 0; i < 8; ++i) {
        heap_ranks(f, (const float *)rows + (i < n ? i : 0) * stride, ranks + 128 * i);
        heap_masks(f, ranks + 128 * i, masks + i, 8);
    }
    for (int32_t t = 0; t < f->n_trees; ++t) {
        const __m256i leaf = heap_walk(masks + 8 * (size_t)t);
        if (f->doubles) {
            double *out = (double *)sums + f->targets[t] * RI_BLOCK;
            _mm512_storeu_pd(out, _mm512_add_pd(_mm512_loadu_pd(out),
                                                _mm512_i32gather_pd(leaf, (const double *)f->heap_values + 64 * (size_t)t, 8)));
        } else {
            float *out = (float *)sums + f->targets[t] * RI_BLOCK;
            _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out),
                                                _mm256_i32gather_ps((const float *)f->heap_values + 64 * (size_t)t, leaf, 4)));
        }
    }
}
#endif

#if RI_LEVEL == 4
const ri_kernel_set ri_kernels_avx512 = {"avx512", {NULL, packed_1, packed_16, heap_1, heap_8, ranked_64, ranked_128, ranked_256}};
#elif RI_LEVEL == 3
const ri_kernel_set ri_kernels_avx2 = {"avx2", {NULL, packed_1, packed_16, NULL, NULL, ranked_64, ranked_128, ranked_256}};
#elif defined(RI_VECTORS)
const ri_kernel_set ri_kernels_base = {"baseline", {NULL, packed_1, packed_16, NULL, NULL, ranked_64, ranked_128, ranked_256}};
#else
const ri_kernel_set ri_kernels_base = {"baseline", {NULL, packed_1, packed_16, NULL, NULL, NULL, NULL, NULL}};
#endif
