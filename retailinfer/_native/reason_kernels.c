/* Sums of dense records of reasons, and the strongest ones. Compiled once per instruction set: RI_LEVEL is 1 (baseline), 3 (AVX2) or 4
 * (AVX-512).
 *
 * Rules:
 *   - Every symbol but the set of kernels is static, so that no linker can take another level's copy.
 *   - Whole numbers: no order of adding can show in an answer.
 * On x86 the records of two trees are laced and `pmaddwd` adds each pair into 32 bits: half the work of widening both.
 */
#include <string.h>

#include "tree_reasons.h"

#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))

#if defined(__SSE2__)
#include <immintrin.h>
#if RI_LEVEL == 4
#define RI_BYTES 64
typedef __m512i bits;
#define LOAD(p) _mm512_loadu_si512((const void *)(p))
#define LOW _mm512_unpacklo_epi16
#define HIGH _mm512_unpackhi_epi16
#define PAIRS(v) _mm512_madd_epi16(v, _mm512_set1_epi16(1))
#define ADD _mm512_add_epi32
#define ZERO _mm512_setzero_si512()
#elif RI_LEVEL == 3
#define RI_BYTES 32
typedef __m256i bits;
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define LOW _mm256_unpacklo_epi16
#define HIGH _mm256_unpackhi_epi16
#define PAIRS(v) _mm256_madd_epi16(v, _mm256_set1_epi16(1))
#define ADD _mm256_add_epi32
#define ZERO _mm256_setzero_si256()
#else
#define RI_BYTES 16
typedef __m128i bits;
#define LOAD(p) _mm_loadu_si128((const __m128i *)(const void *)(p))
#define LOW _mm_unpacklo_epi16
#define HIGH _mm_unpackhi_epi16
#define PAIRS(v) _mm_madd_epi16(v, _mm_set1_epi16(1))
#define ADD _mm_add_epi32
#define ZERO _mm_setzero_si128()
#endif

/* `parts` registers of a record at once; all loops are unrolled, so that the sums stay in registers. */
INLINE void add_pairs(const int16_t *table, int32_t stride, const int32_t *leaves, const int32_t *trees, int32_t n, int32_t *sums,
                      const int parts) {
    bits low[4] = {ZERO, ZERO, ZERO, ZERO}, high[4] = {ZERO, ZERO, ZERO, ZERO};
    int32_t i = 0;
    for (; i + 2 <= n; i += 2) {
        const int16_t *a = table + (int64_t)leaves[trees[i]] * stride, *b = table + (int64_t)leaves[trees[i + 1]] * stride;
#pragma GCC unroll 4
        for (int k = 0; k < parts; ++k) {
            const bits x = LOAD(a + k * (RI_BYTES / 2)), y = LOAD(b + k * (RI_BYTES / 2));
            low[k] = ADD(low[k], PAIRS(LOW(x, y)));
            high[k] = ADD(high[k], PAIRS(HIGH(x, y)));
        }
    }
    const int16_t *last = i < n ? table + (int64_t)leaves[trees[i]] * stride : NULL;
#pragma GCC unroll 4
    for (int k = 0; k < parts; ++k) {
        if (last) {
            const bits x = LOAD(last + k * (RI_BYTES / 2));
            low[k] = ADD(low[k], PAIRS(LOW(x, ZERO)));
            high[k] = ADD(high[k], PAIRS(HIGH(x, ZERO)));
        }
        int32_t lanes[2][RI_BYTES / 4]; /* lacing goes by 8 groups of 128 bits */
        memcpy(lanes[0], &low[k], RI_BYTES);
        memcpy(lanes[1], &high[k], RI_BYTES);
        for (int j = 0; j < RI_BYTES / 4; ++j) {
            sums[k * (RI_BYTES / 2) + j / 4 * 8 + j % 4] = lanes[0][j];
            sums[k * (RI_BYTES / 2) + j / 4 * 8 + j % 4 + 4] = lanes[1][j];
        }
    }
}

#if RI_LEVEL == 4
/* 16 and 48 groups, which are no whole number of registers: each record is widened as it is loaded. */
INLINE void add_words(const int16_t *table, int32_t stride, const int32_t *leaves, const int32_t *trees, int32_t n, int32_t *sums,
                      const int chunks) {
    bits sum[3] = {ZERO, ZERO, ZERO};
    for (int32_t i = 0; i < n; ++i) {
        const int16_t *record = table + (int64_t)leaves[trees[i]] * stride;
#pragma GCC unroll 4
        for (int k = 0; k < chunks; ++k)
            sum[k] = ADD(sum[k], _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(record + 16 * k))));
    }
    for (int k = 0; k < chunks; ++k)
        memcpy(sums + 16 * k, &sum[k], 64);
}
#endif

static void add_dense(const int16_t *table, int32_t stride, const int32_t *leaves, const int32_t *trees, int32_t n, int32_t *sums) {
    for (int32_t chunks = stride / RI_REASONS_LANES; chunks > 0;) {
        int32_t done;
#if RI_LEVEL == 4
        done = chunks < 4 ? chunks : 4;
        if (done == 4)
            add_pairs(table, stride, leaves, trees, n, sums, 2);
        else if (done == 3)
            add_words(table, stride, leaves, trees, n, sums, 3);
        else if (done == 2)
            add_pairs(table, stride, leaves, trees, n, sums, 1);
        else
            add_words(table, stride, leaves, trees, n, sums, 1);
#elif RI_LEVEL == 3
        done = chunks < 4 ? chunks : 4;
        if (done == 4)
            add_pairs(table, stride, leaves, trees, n, sums, 4);
        else if (done == 3)
            add_pairs(table, stride, leaves, trees, n, sums, 3);
        else if (done == 2)
            add_pairs(table, stride, leaves, trees, n, sums, 2);
        else
            add_pairs(table, stride, leaves, trees, n, sums, 1);
#else
        done = chunks < 2 ? chunks : 2;
        if (done == 2)
            add_pairs(table, stride, leaves, trees, n, sums, 4);
        else
            add_pairs(table, stride, leaves, trees, n, sums, 2);
#endif
        table += done * RI_REASONS_LANES;
        sums += done * RI_REASONS_LANES;
        chunks -= done;
    }
}

#else /* no x86: vectors of the compiler's, which widens as it adds */
typedef int32_t words __attribute__((vector_size(16)));
typedef int16_t halves __attribute__((vector_size(8)));

INLINE void add_records(const int16_t *table, int32_t stride, const int32_t *leaves, const int32_t *trees, int32_t n, int32_t *sums,
                        const int parts) {
    words sum[8] = {{0}};
    for (int32_t i = 0; i < n; ++i) {
        const int16_t *record = table + (int64_t)leaves[trees[i]] * stride;
#pragma GCC unroll 8
        for (int k = 0; k < parts; ++k) {
            halves v;
            memcpy(&v, record + 4 * k, sizeof v);
            sum[k] += __builtin_convertvector(v, words);
        }
    }
    for (int k = 0; k < parts; ++k)
        memcpy(sums + 4 * k, &sum[k], sizeof sum[k]);
}

static void add_dense(const int16_t *table, int32_t stride, const int32_t *leaves, const int32_t *trees, int32_t n, int32_t *sums) {
    for (int32_t at = 0; at < stride;) {
        if (stride - at >= 32) {
            add_records(table + at, stride, leaves, trees, n, sums + at, 8);
            at += 32;
        } else {
            add_records(table + at, stride, leaves, trees, n, sums + at, 4);
            at += 16;
        }
    }
}
#endif

#else
static void add_dense(const int16_t *table, int32_t stride, const int32_t *leaves, const int32_t *trees, int32_t n, int32_t *sums) {
    memset(sums, 0, sizeof *sums * (size_t)stride);
    for (int32_t i = 0; i < n; ++i) {
        const int16_t *record = table + (int64_t)leaves[trees[i]] * stride;
        for (int32_t g = 0; g < stride; ++g)
            sums[g] += record[g];
    }
}
#endif

/* ---- the strongest ----------------------------------------------------------------------------------------------------------- */

#if RI_LEVEL == 4
/* One after the other is found, named and taken out of the registers that hold all of them. */
INLINE int32_t pick_from(const int32_t *sums, int32_t most, int32_t *picked, const int parts) {
    __m512i left[4];
#pragma GCC unroll 4
    for (int k = 0; k < parts; ++k)
        left[k] = _mm512_load_si512(sums + 16 * k);
    for (int32_t n = 0; n < most; ++n) {
        __m512i all = left[0];
#pragma GCC unroll 4
        for (int k = 1; k < parts; ++k)
            all = _mm512_max_epi32(all, left[k]);
        const int32_t best = _mm512_reduce_max_epi32(all);
        if (best <= 0)
            return n;
        uint64_t equal = 0;
#pragma GCC unroll 4
        for (int k = 0; k < parts; ++k)
            equal |= (uint64_t)_mm512_cmpeq_epi32_mask(left[k], _mm512_set1_epi32(best)) << (16 * k);
        picked[n] = (int32_t)_tzcnt_u64(equal);
        equal &= ~equal + 1;
#pragma GCC unroll 4
        for (int k = 0; k < parts; ++k)
            left[k] = _mm512_mask_mov_epi32(left[k], (__mmask16)(equal >> (16 * k)), _mm512_setzero_si512());
    }
    return most;
}

static int32_t pick(const int32_t *sums, int32_t stride, int32_t most, int32_t *picked) {
    switch (stride) {
    case 16:
        return pick_from(sums, most, picked, 1);
    case 32:
        return pick_from(sums, most, picked, 2);
    case 48:
        return pick_from(sums, most, picked, 3);
    case 64:
        return pick_from(sums, most, picked, 4);
    default:
        return -1;
    }
}

const ri_reason_kernels ri_reason_kernels_avx512 = {add_dense, pick};
#elif RI_LEVEL == 3
const ri_reason_kernels ri_reason_kernels_avx2 = {add_dense, NULL};
#else
const ri_reason_kernels ri_reason_kernels_base = {add_dense, NULL};
#endif
