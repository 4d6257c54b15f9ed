/* Ranked: all nodes of a tree against 32 to 256 rows. Each row keeps its first leaf that is still possible; a node at which the row
 * turns right moves it on behind the node's left side, if that is where the row stands. Compiled once per instruction set.
 *
 * Rules:
 *   - Nodes come in preorder, so a row stands at a node's first leaf exactly if it would walk through the node.
 *   - With few rows several trees go side by side, because each tree's nodes wait for each other.
 *   - Values are added in the order of the trees, each to its output.
 */
#include "tree_kernels.h"

#if defined(RI_VECTORS)
#include "tree_planes.h"

/* ---- vectors of rows ------------------------------------------------------------------------------------------------------ */

#if RI_LEVEL >= 3
typedef __m256i bytes;
#define RI_BYTES 32
#else
typedef int8_t bytes __attribute__((vector_size(16), may_alias));
#define RI_BYTES 16
#endif

/* Rows that stand at the node's first leaf, and turn right, go on behind its left side. In AVX-512 too with 32 bytes, in AVX2's own
 * instructions: comparisons of 64 bytes go through mask registers, which takes longer. */
INLINE bytes move_on(bytes leaf, const int8_t *ranks, const ri_masked_node *node) {
#if RI_LEVEL >= 3
    const __m256i mine = _mm256_cmpeq_epi8(leaf, _mm256_set1_epi8((char)node->first)), step = _mm256_set1_epi8((char)node->step);
    const __m256i right = _mm256_cmpgt_epi8(_mm256_load_si256((const __m256i *)(const void *)ranks), _mm256_set1_epi8(node->rank));
#if RI_LEVEL == 4
    return _mm256_add_epi8(leaf, _mm256_ternarylogic_epi64(mine, right, step, 0x80));
#else
    return _mm256_add_epi8(leaf, _mm256_and_si256(_mm256_and_si256(mine, right), step));
#endif
#else
    const bytes first = (bytes){0} + (int8_t)node->first, rank = (bytes){0} + node->rank, step = (bytes){0} + (int8_t)node->step;
    return leaf + ((bytes)(leaf == first) & (bytes)(*(const bytes *)(const void *)ranks > rank) & step);
#endif
}

#if RI_LEVEL == 4
/* 16 or 8 values by their numbers below `n`: from registers while there are few. */
INLINE __m512 values_16(const float *values, int32_t n, __m512i index) {
    const __m512 low = _mm512_permutex2var_ps(_mm512_load_ps(values), index, _mm512_load_ps(values + (n > 16 ? 16 : 0)));
    if (n <= 32)
        return low;
    if (n <= 64) {
        const __m512 high = _mm512_permutex2var_ps(_mm512_load_ps(values + 32), index, _mm512_load_ps(values + (n > 48 ? 48 : 32)));
        return _mm512_mask_blend_ps(_mm512_test_epi32_mask(index, _mm512_set1_epi32(32)), low, high);
    }
    return _mm512_i32gather_ps(index, values, 4);
}

INLINE __m512d values_8(const double *values, int32_t n, __m512i index) {
    const __m512d low = _mm512_permutex2var_pd(_mm512_load_pd(values), index, _mm512_load_pd(values + 8));
    if (n <= 16)
        return low;
    if (n <= 32) {
        const __m512d high = _mm512_permutex2var_pd(_mm512_load_pd(values + 16), index, _mm512_load_pd(values + 24));
        return _mm512_mask_blend_pd(_mm512_test_epi64_mask(index, _mm512_set1_epi64(16)), low, high);
    }
    return _mm512_i64gather_pd(index, values, 8);
}
#endif

/* Adds the values of `n` rows' leaves, n a multiple of 16. */
INLINE void add_leaves(const ri_forest *f, int32_t t, const uint8_t *leaf, int n, void *sums) {
#if RI_LEVEL == 4
    const int32_t n_leaves = f->leaf_first[t + 1] - f->leaf_first[t];
    if (f->doubles) {
        const double *values = (const double *)f->leaf_values + f->leaf_first[t];
        double *out = (double *)sums;
        for (int i = 0; i < n; i += 8) {
            const __m512i index = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)(const void *)(leaf + i)));
            _mm512_storeu_pd(out + i, _mm512_add_pd(_mm512_loadu_pd(out + i), values_8(values, n_leaves, index)));
        }
    } else {
        const float *values = (const float *)f->leaf_values + f->leaf_first[t];
        float *out = (float *)sums;
        for (int i = 0; i < n; i += 16) {
            const __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(leaf + i)));
            _mm512_storeu_ps(out + i, _mm512_add_ps(_mm512_loadu_ps(out + i), values_16(values, n_leaves, index)));
        }
    }
#else
    if (f->doubles) {
        typedef double two __attribute__((vector_size(16), aligned(8), may_alias));
        const double *values = (const double *)f->leaf_values + f->leaf_first[t];
        for (int i = 0; i < n; i += 2)
            *(two *)(void *)((double *)sums + i) += (two){values[leaf[i]], values[leaf[i + 1]]};
        return;
    }
    const float *values = (const float *)f->leaf_values + f->leaf_first[t];
#if RI_LEVEL == 3
    if (f->leaf_first[t + 1] - f->leaf_first[t] <= 32) {
        const __m256 first = _mm256_load_ps(values), second = _mm256_load_ps(values + 8);
        const __m256 third = _mm256_load_ps(values + 16), fourth = _mm256_load_ps(values + 24);
        for (int i = 0; i < n; i += 8) {
            const __m256i index = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(leaf + i)));
            const __m256 eighth = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)), half = _mm256_castsi256_ps(_mm256_slli_epi32(index, 27));
            const __m256 low = _mm256_blendv_ps(_mm256_permutevar8x32_ps(first, index), _mm256_permutevar8x32_ps(second, index), eighth);
            const __m256 high = _mm256_blendv_ps(_mm256_permutevar8x32_ps(third, index), _mm256_permutevar8x32_ps(fourth, index), eighth);
            float *out = (float *)sums + i;
            _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), _mm256_blendv_ps(low, high, half)));
        }
        return;
    }
#endif
    typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
    for (int i = 0; i < n; i += 4)
        *(four *)(void *)((float *)sums + i) += (four){values[leaf[i]], values[leaf[i + 1]], values[leaf[i + 2]], values[leaf[i + 3]]};
#endif
}

enum { NAMED = 16 }; /* trees whose leaves are named together, so that a row's are written side by side */

/* leaf: of tree t, the block's rows. known: (NAMED, block) of it and the trees before it. */
INLINE void name_leaves(const ri_forest *f, int32_t t, const uint8_t *leaf, int block, int n, uint8_t *known, int32_t *leaves) {
    memcpy(known + (size_t)(t % NAMED) * (size_t)block, leaf, (size_t)block);
    if (t % NAMED < NAMED - 1 && t < f->n_trees - 1)
        return;
    const int32_t first = t - t % NAMED, many = t - first + 1, *offsets = f->leaf_first + first, *numbers = f->leaf_numbers;
    leaves += first;
    for (int i = 0; i < n; ++i, leaves += f->n_trees)
        for (int32_t j = 0; j < many; ++j)
            leaves[j] = numbers[offsets[j] + known[(size_t)j * (size_t)block + (size_t)i]];
}

/* ---- kernels -------------------------------------------------------------------------------------------------------------- */

/* `TREES` trees side by side (1, 2 or 4), each against `VECTORS` vectors. */
#define RANKED(NAME, VECTORS, TREES)                                                                                                \
    void RI_NAME(NAME)(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums, int32_t *leaves) {    \
        enum { BLOCK = (VECTORS) * RI_BYTES };                                                                                      \
        int8_t *planes = (int8_t *)scratch;                                                                                         \
        uint8_t known[NAMED * BLOCK];                                                                                               \
        const size_t size = f->doubles ? 8 : 4;                                                                                     \
        rank_planes(f, rows, stride, n, BLOCK, planes);                                                                             \
        for (int32_t t = 0; t < f->n_trees; t += (TREES)) {                                                                         \
            bytes leaf[TREES][VECTORS];                                                                                             \
            const ri_masked_node *nodes[TREES];                                                                                     \
            int32_t count = 0;                                                                                                      \
            for (int j = 0; j < (TREES); ++j) {                                                                                     \
                nodes[j] = f->masked + f->masked_first[t + j];                                                                      \
                count = f->masked_count[t + j] > count ? f->masked_count[t + j] : count;                                            \
                for (int v = 0; v < (VECTORS); ++v)                                                                                 \
                    leaf[j][v] = (bytes){0};                                                                                        \
            }                                                                                                                       \
            for (int32_t i = 0; i < count; ++i)                                                                                     \
                for (int j = 0; j < (TREES); ++j) {                                                                                 \
                    const ri_masked_node *node = nodes[j] + i;                                                                      \
                    const int8_t *plane = planes + (size_t)node->part * BLOCK;                                                      \
                    for (int v = 0; v < (VECTORS); ++v)                                                                             \
                        leaf[j][v] = move_on(leaf[j][v], plane + v * RI_BYTES, node);                                               \
                }                                                                                                                   \
            for (int j = 0; j < (TREES) && t + j < f->n_trees; ++j) {                                                               \
                add_leaves(f, t + j, (const uint8_t *)leaf[j], BLOCK, (char *)sums + (size_t)f->targets[t + j] * RI_BLOCK * size);   \
                if (leaves)                                                                                                         \
                    name_leaves(f, t + j, (const uint8_t *)leaf[j], BLOCK, n, known, leaves);                                       \
            }                                                                                                                       \
        }                                                                                                                           \
    }

#if RI_LEVEL >= 3
RANKED(ri_ranked_32, 1, 4)
RANKED(ri_ranked_64, 2, 2)
RANKED(ri_ranked_128, 4, RI_LEVEL == 4 ? 2 : 1)
RANKED(ri_ranked_256, 8, 1)
#else
RANKED(ri_ranked_32, 2, 2)
RANKED(ri_ranked_64, 4, 1)
RANKED(ri_ranked_128, 8, 1)
RANKED(ri_ranked_256, 16, 1)
#endif
#endif
