/* Rows -> planes: the ranks of many rows, one byte a row, part by part. For tree_ranked.c.
 *
 * Rules:
 *   - Everything is static and inlined, as in tree_keys.h.
 *   - Rows that are not there have some rank: they cost nothing and hurt nobody.
 */
#ifndef RETAILINFER_TREE_PLANES_H
#define RETAILINFER_TREE_PLANES_H

#include "tree_keys.h"

/* ---- bits ---------------------------------------------------------------------------------------------------------------- */

/* Bits of 64 rows, a word each -> for each bit a word of rows. */
INLINE void transpose_64(uint64_t *words) {
    uint64_t mask = UINT64_C(0x00000000FFFFFFFF);
    for (int width = 32; width; width >>= 1, mask ^= mask << width)
        for (int k = 0; k < 64; k = ((k | width) + 1) & ~width) {
            const uint64_t swap = (words[k] >> width ^ words[k | width]) & mask;
            words[k] ^= swap << width;
            words[k | width] ^= swap;
        }
}

INLINE void bit_planes(const ri_forest *f, const char *rows, int64_t row_bytes, int n, int block, uint64_t *room, int8_t *planes) {
    for (int first = 0; first < n; first += 64) {
        const int many = n - first < 64 ? n - first : 64, width = block < 64 ? block : 64;
        for (int i = 0; i < many; ++i)
            ri_forest_bits(f, rows + (size_t)(first + i) * (size_t)row_bytes, room + i, 64);
        for (int32_t w = 0; w < f->n_bit_words; ++w) {
            uint64_t *words = room + 64 * (size_t)w;
            if (many < 64)
                memset(words + many, 0, 8 * (size_t)(64 - many));
            transpose_64(words);
            for (int32_t bit = 0; bit < 64 && 64 * w + bit < f->n_bits; ++bit) {
                int8_t *plane = planes + (size_t)(f->n_parts + 64 * w + bit) * (size_t)block + first;
                for (int i = 0; i < width; ++i)
                    plane[i] = (int8_t)((int)(words[bit] >> i & 1) - 128);
            }
        }
    }
}

/* ---- keys ---------------------------------------------------------------------------------------------------------------- */

INLINE void put_parts(const ri_scale *s, const uint32_t *ranks, int n, int block, int8_t *planes) {
    for (int32_t part = 0; part < s->n_parts; ++part) {
        int8_t *plane = planes + (size_t)(s->part + part) * (size_t)block;
        for (int i = 0; i < n; ++i)
            plane[i] = rank_byte(ranks[i], part);
    }
}

INLINE void rank_keys_32(const ri_forest *f, const ri_scale *s, const uint32_t *keys, const int32_t *buckets, int n, uint32_t *ranks, int steps) {
    for (int i = 0; i < n; ++i)
        ranks[i] = rank_32(f->starts + s->starts, (const uint32_t *)f->rank_keys + s->keys, keys[i], buckets[i], steps);
}

INLINE void rank_column(const ri_forest *f, const ri_columns *run, int32_t c, const void *rows, int64_t stride, int n, int block, int8_t *planes) {
    const ri_scale scale = f->scales[run->column + c];
    uint32_t ranks[RI_BLOCK];
    int32_t buckets[RI_BLOCK];
    if (f->wide) {
        const double *from = (const double *)rows + run->feature + c;
        uint64_t keys[RI_BLOCK];
        for (int i = 0; i < n; ++i)
            keys[i] = bits_64(from + i * stride, 0);
        const uint64_t fill = ((const uint64_t *)f->fills)[run->column + c];
        for (int i = 0; i < n; ++i)
            keys[i] = read_64(keys[i], fill, run->zero_end);
        for (int i = 0; i < n; ++i)
            buckets[i] = bucket_64(&scale, keys[i]);
        for (int i = 0; i < n; ++i)
            ranks[i] = rank_64(f->starts + scale.starts, (const uint64_t *)f->rank_keys + scale.keys, keys[i], buckets[i], scale.steps);
    } else {
        const float *from = (const float *)rows + run->feature + c;
        const uint32_t fill = ((const uint32_t *)f->fills)[run->column + c], zero_end = (uint32_t)run->zero_end;
        uint32_t keys[RI_BLOCK];
        for (int i = 0; i < n; ++i)
            keys[i] = bits_32(from + i * stride, 0);
        for (int i = 0; i < n; ++i) {
            keys[i] = read_32(keys[i], fill, zero_end);
            buckets[i] = bucket_32(&scale, keys[i]);
        }
        if (scale.steps == 1)
            rank_keys_32(f, &scale, keys, buckets, n, ranks, 1);
        else if (scale.steps == 2)
            rank_keys_32(f, &scale, keys, buckets, n, ranks, 2);
        else
            rank_keys_32(f, &scale, keys, buckets, n, ranks, scale.steps);
    }
    put_parts(&scale, ranks, n, block, planes);
}

#if RI_LEVEL == 4
/* 16 rows of up to 16 columns -> 16 columns of rows. */
INLINE void transpose_16(const float *rows, int64_t stride, int n, __mmask16 columns, __m512i *out) {
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
        a[i] = _mm512_maskz_loadu_epi32(columns, rows + (i < n ? i : n - 1) * stride);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        out[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
        out[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
        out[i + 4] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88);
        out[i + 12] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd);
    }
}

INLINE __m512i read_16(__m512i bits, __m512i fill, __m512i zero_end) {
    const __m512i top = _mm512_set1_epi32(INT32_MIN), size = _mm512_andnot_si512(top, bits);
    const __mmask16 gone = _mm512_cmpgt_epu32_mask(size, _mm512_set1_epi32(0x7f800000)) | _mm512_cmplt_epu32_mask(size, zero_end);
    return _mm512_mask_mov_epi32(_mm512_xor_si512(bits, _mm512_or_si512(_mm512_srai_epi32(bits, 31), top)), gone, fill);
}

/* The place of 16 keys among 256 thresholds: five halvings find the eight around it, of which it is compared with seven. */
INLINE void rank_part(const uint32_t *keys, int n, const uint32_t *thresholds, int8_t *plane) {
    __m512i low[8], high[8];
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
        low[k] = _mm512_load_si512(thresholds + 32 * k);
        high[k] = _mm512_load_si512(thresholds + 32 * k + 16);
    }
    const __m512i middle = _mm512_set1_epi32((int)thresholds[32 * 7 + 15]);
    for (int i = 0; i < n; i += 16) {
        const __m512i key = _mm512_load_si512(keys + i);
        __m512i at = _mm512_maskz_set1_epi32(_mm512_cmpgt_epu32_mask(key, middle), 16);
#pragma GCC unroll 4
        for (int half = 8; half; half >>= 1) {
            const __m512i there = _mm512_permutex2var_epi32(low[7], _mm512_add_epi32(at, _mm512_set1_epi32(half - 1)), high[7]);
            at = _mm512_mask_add_epi32(at, _mm512_cmpgt_epu32_mask(key, there), at, _mm512_set1_epi32(half));
        }
        __m512i rank = _mm512_sub_epi32(_mm512_slli_epi32(at, 3), _mm512_set1_epi32(128));
#pragma GCC unroll 7
        for (int k = 0; k < 7; ++k) {
            const __mmask16 above = _mm512_cmpgt_epu32_mask(key, _mm512_permutex2var_epi32(low[k], at, high[k]));
            rank = _mm512_mask_sub_epi32(rank, above, rank, _mm512_set1_epi32(-1));
        }
        _mm_store_si128((__m128i *)(void *)(plane + i), _mm512_cvtepi32_epi8(rank));
    }
}

/* Up to 16 neighbouring columns of a run, from the c-th on. */
INLINE void rank_columns_16(const ri_forest *f, const ri_columns *run, int32_t c, const float *rows, int64_t stride, int n, int block, int8_t *planes) {
    _Alignas(64) uint32_t keys[16][RI_BLOCK];
    const int32_t many = run->n - c < 16 ? run->n - c : 16;
    const uint32_t *fills = (const uint32_t *)f->fills + run->column + c;
    const __m512i zero_end = _mm512_set1_epi32((int)(uint32_t)run->zero_end);
    for (int i = 0; i < n; i += 16) {
        __m512i columns[16];
        transpose_16(rows + i * stride + run->feature + c, stride, n - i, (__mmask16)((1u << many) - 1), columns);
#pragma GCC unroll 16
        for (int k = 0; k < 16; ++k)
            _mm512_store_si512(keys[k] + i, read_16(columns[k], _mm512_set1_epi32((int)fills[k]), zero_end));
    }
    for (int k = 0; k < many; ++k) {
        const ri_scale *scale = f->scales + run->column + c + k;
        for (int32_t part = scale->part; part < scale->part + scale->n_parts; ++part)
            rank_part(keys[k], n, f->part_keys + 256 * (size_t)part, planes + (size_t)part * (size_t)block);
    }
}
#endif

/* planes: (parts and bits, block), and behind them 64 words for each word of bits. */
INLINE void rank_planes(const ri_forest *f, const void *rows, int64_t stride, int n, int block, int8_t *planes) {
    for (int32_t r = 0; r < f->n_runs; ++r) {
        const ri_columns *run = f->runs + r;
#if RI_LEVEL == 4
        for (int32_t c = 0; c < run->n && !f->wide; c += 16)
            rank_columns_16(f, run, c, (const float *)rows, stride, n, block, planes);
        if (!f->wide)
            continue;
#endif
        for (int32_t c = 0; c < run->n; ++c)
            rank_column(f, run, c, rows, stride, n, block, planes);
    }
    if (f->n_bits) {
        const size_t size = ((size_t)(f->n_parts + f->n_bits) * (size_t)block + 63) & ~(size_t)63;
        bit_planes(f, (const char *)rows, stride * (f->wide ? 8 : 4), n, block, (uint64_t *)(void *)(planes + size), planes);
    }
}
#endif
