/* Heaps: trees of up to 6 levels as 63 slots, of which all are compared at once (AVX-512 VBMI), for one row or for eight. The 63
 * answers are the bits of a word; six steps through 8 such words at a time find the places that rows reach.
 *
 * Rules:
 *   - Words are written for several trees before they are read: a load right behind 8 small stores would have to wait for them.
 *   - Values are added in the order of the trees, each to its output.
 */
#include "tree_kernels.h"

#if RI_LEVEL == 4
#include <immintrin.h>

enum { TREES = 32 }; /* whose words are written before they are read */

/* Eight words -> which of its 64 bottom places each reaches. Bit s: turns right at slot s. */
INLINE __m256i places(const uint64_t *words) {
    const __m512i word = _mm512_load_si512(words), one = _mm512_set1_epi64(1);
    __m512i at = _mm512_setzero_si512();
    for (int depth = 0; depth < 6; ++depth) {
        const __m512i bit = _mm512_and_si512(_mm512_srlv_epi64(word, at), one);
        at = _mm512_add_epi64(_mm512_add_epi64(at, at), _mm512_add_epi64(bit, one));
    }
    return _mm256_sub_epi32(_mm512_cvtepi64_epi32(at), _mm256_set1_epi32(63));
}

/* A row's parts in two registers, the second of use only where there are more than 64. */
INLINE uint64_t turns(const ri_forest *f, int32_t t, __m512i low, __m512i high, int two) {
    const __m512i parts = _mm512_load_si512(f->heap_parts + 64 * (size_t)t);
    const __m512i ranks = two ? _mm512_permutex2var_epi8(low, parts, high) : _mm512_permutexvar_epi8(parts, low);
    return _mm512_cmpgt_epi8_mask(ranks, _mm512_load_si512(f->heap_ranks + 64 * (size_t)t));
}

INLINE void one_row(const ri_forest *f, const int8_t *ranks, uint64_t *words, void *sums, int row, int32_t *leaves, int two) {
    const __m512i low = _mm512_load_si512(ranks), high = _mm512_load_si512(ranks + 64);
    const __m256i slots = _mm256_setr_epi32(0, 64, 128, 192, 256, 320, 384, 448);
    float sum_f = f->doubles ? 0 : ((float *)sums)[row];
    double sum = f->doubles ? ((double *)sums)[row] : 0;
    for (int32_t tile = 0; tile < f->n_trees; tile += TREES) {
        const int32_t end = f->n_trees - tile < TREES ? (f->n_trees + 7) & ~7 : tile + TREES;
        for (int32_t t = tile; t < end; ++t)
            words[t - tile] = turns(f, t, low, high, two);
        for (int32_t t = tile; t < end; t += 8) {
            const __m256i at = _mm256_add_epi32(places(words + (t - tile)), slots);
            const int many = f->n_trees - t < 8 ? f->n_trees - t : 8;
            double wide[8];
            float narrow[8];
            if (f->doubles)
                _mm512_storeu_pd(wide, _mm512_i32gather_pd(at, (const double *)f->heap_values + 64 * (size_t)t, 8));
            else
                _mm256_storeu_ps(narrow, _mm256_i32gather_ps((const float *)f->heap_values + 64 * (size_t)t, at, 4));
            if (leaves)
                _mm256_mask_storeu_epi32(leaves + t, (__mmask8)((1u << many) - 1), _mm256_i32gather_epi32(f->heap_leaves + 64 * (size_t)t, at, 4));
            for (int j = 0; j < many; ++j) {
                if (f->n_outputs > 1 && f->doubles)
                    ((double *)sums)[f->targets[t + j] * RI_BLOCK + row] += wide[j];
                else if (f->n_outputs > 1)
                    ((float *)sums)[f->targets[t + j] * RI_BLOCK + row] += narrow[j];
                else if (f->doubles)
                    sum += wide[j];
                else
                    sum_f += narrow[j];
            }
        }
    }
    if (f->n_outputs == 1 && f->doubles)
        ((double *)sums)[row] = sum;
    else if (f->n_outputs == 1)
        ((float *)sums)[row] = sum_f;
}

void RI_NAME(ri_heap_1)(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums, int32_t *leaves) {
    int8_t *ranks = (int8_t *)scratch;
    uint64_t *words = (uint64_t *)(void *)(ranks + 128);
    for (int i = 0; i < n; ++i) {
        int32_t *own = leaves ? leaves + (size_t)i * (size_t)f->n_trees : NULL;
        rank_row(f, (const char *)rows + (size_t)(i * stride) * (f->wide ? 8 : 4), words, ranks);
        if (f->n_parts + f->n_bits > 64)
            one_row(f, ranks, words, sums, i, own, 1);
        else
            one_row(f, ranks, words, sums, i, own, 0);
    }
}

INLINE void eight_rows(const ri_forest *f, const int8_t *ranks, int n, uint64_t *words, void *sums, int32_t *leaves, int two) {
    __m512i low[8], high[8];
    for (int i = 0; i < 8; ++i) {
        low[i] = _mm512_load_si512(ranks + 128 * i);
        high[i] = two ? _mm512_load_si512(ranks + 128 * i + 64) : low[i];
    }
    for (int32_t tile = 0; tile < f->n_trees; tile += TREES) {
        const int32_t end = f->n_trees - tile < TREES ? f->n_trees : tile + TREES;
        for (int32_t t = tile; t < end; ++t)
            for (int i = 0; i < 8; ++i)
                words[8 * (t - tile) + i] = turns(f, t, low[i], high[i], two);
        for (int32_t t = tile; t < end; ++t) {
            const __m256i at = places(words + 8 * (t - tile));
            if (f->doubles) {
                double *out = (double *)sums + f->targets[t] * RI_BLOCK;
                const __m512d values = _mm512_i32gather_pd(at, (const double *)f->heap_values + 64 * (size_t)t, 8);
                _mm512_storeu_pd(out, _mm512_add_pd(_mm512_loadu_pd(out), values));
            } else {
                float *out = (float *)sums + f->targets[t] * RI_BLOCK;
                const __m256 values = _mm256_i32gather_ps((const float *)f->heap_values + 64 * (size_t)t, at, 4);
                _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), values));
            }
            if (leaves) {
                int32_t numbers[8];
                _mm256_storeu_si256((__m256i *)(void *)numbers, _mm256_i32gather_epi32(f->heap_leaves + 64 * (size_t)t, at, 4));
                for (int i = 0; i < n; ++i)
                    leaves[(size_t)i * (size_t)f->n_trees + (size_t)t] = numbers[i];
            }
        }
    }
}

void RI_NAME(ri_heap_8)(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums, int32_t *leaves) {
    int8_t *ranks = (int8_t *)scratch;
    uint64_t *words = (uint64_t *)(void *)(ranks + 1024);
    for (int i = 0; i < 8; ++i)
        rank_row(f, (const char *)rows + (size_t)((i < n ? i : n - 1) * stride) * (f->wide ? 8 : 4), words, ranks + 128 * i);
    if (f->n_parts + f->n_bits > 64)
        eight_rows(f, ranks, n, words, sums, leaves, 1);
    else
        eight_rows(f, ranks, n, words, sums, leaves, 0);
}
#else
typedef int ri_no_heaps_here; /* a file may not be empty */
#endif
