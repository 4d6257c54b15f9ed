/* Rows as kernels of trees read them: cells of keys and bits, and ranks. What those are: trees.h.
 *
 * Rules:
 *   - Everything is static and inlined: each kernel has its own copy, for its own instruction set.
 *   - Keys are compared as `key > threshold's key`; NaN and whatever else is missing has a key that is above or below all of them.
 */
#ifndef RETAILINFER_TREE_KEYS_H
#define RETAILINFER_TREE_KEYS_H

#include <string.h>

#include "trees.h"

#ifndef RI_LEVEL
#define RI_LEVEL 1
#endif
#if RI_LEVEL >= 3
#include <immintrin.h>
#endif
#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#define RI_VECTORS 1
#else
#define INLINE static inline
#endif

/* Bits of one row's questions into words[i * step]. In forest_bits.c. */
void ri_forest_bits(const ri_forest *f, const void *row, uint64_t *words, size_t step);

/* ---- keys ---------------------------------------------------------------------------------------------------------------- */

INLINE uint32_t key_32(uint32_t bits) {
    return bits ^ ((uint32_t)((int32_t)bits >> 31) | UINT32_C(0x80000000));
}

INLINE uint64_t key_64(uint64_t bits) {
    return bits ^ ((uint64_t)((int64_t)bits >> 63) | UINT64_C(0x8000000000000000));
}

INLINE uint32_t read_32(uint32_t bits, uint32_t fill, uint32_t zero_end) {
    const uint32_t size = bits & UINT32_C(0x7fffffff);
    return size > UINT32_C(0x7f800000) || size < zero_end ? fill : key_32(bits);
}

INLINE uint64_t read_64(uint64_t bits, uint64_t fill, uint64_t zero_end) {
    const uint64_t size = bits & UINT64_C(0x7fffffffffffffff);
    return size > UINT64_C(0x7ff0000000000000) || size < zero_end ? fill : key_64(bits);
}

INLINE uint32_t bits_32(const void *row, int32_t at) {
    uint32_t bits;
    memcpy(&bits, (const float *)row + at, 4);
    return bits;
}

INLINE uint64_t bits_64(const void *row, int32_t at) {
    uint64_t bits;
    memcpy(&bits, (const double *)row + at, 8);
    return bits;
}

/* A row as nodes read it, every `step` cells; small nodes have no bits. */
INLINE void cells_32(const ri_forest *f, const void *row, uint32_t *out, size_t step) {
    for (int32_t r = 0; r < f->n_runs; ++r) {
        const ri_columns *run = f->runs + r;
        const uint32_t *fills = (const uint32_t *)f->fills + run->column, zero_end = (uint32_t)run->zero_end;
        for (int32_t i = 0; i < run->n; ++i)
            out[(size_t)(run->column + i) * step] = read_32(bits_32(row, run->feature + i), fills[i], zero_end);
    }
    out[(size_t)f->n_columns * step] = 0;
}

INLINE void cells_64(const ri_forest *f, const void *row, uint64_t *out, size_t step) {
    for (int32_t r = 0; r < f->n_runs; ++r) {
        const ri_columns *run = f->runs + r;
        const uint64_t *fills = (const uint64_t *)f->fills + run->column;
        const uint32_t *fills_32 = (const uint32_t *)f->fills + run->column;
        if (f->wide)
            for (int32_t i = 0; i < run->n; ++i)
                out[(size_t)(run->column + i) * step] = read_64(bits_64(row, run->feature + i), fills[i], run->zero_end);
        else
            for (int32_t i = 0; i < run->n; ++i)
                out[(size_t)(run->column + i) * step] = read_32(bits_32(row, run->feature + i), fills_32[i], (uint32_t)run->zero_end);
    }
    out[(size_t)f->n_columns * step] = 0;
    if (f->n_bits)
        ri_forest_bits(f, row, out + (size_t)(f->n_columns + 1) * step, step);
}

/* ---- ranks --------------------------------------------------------------------------------------------------------------- */

/* Where on its scale a key is found. Monotone, and the same instructions wherever it is worked out. */
INLINE int32_t bucket_32(const ri_scale *s, uint32_t key) {
    const uint32_t finite = key < UINT32_C(0xff800000) ? key : UINT32_C(0xff800000);
    const uint32_t bits = finite >> 31 ? finite ^ UINT32_C(0x80000000) : ~finite;
    float value;
    memcpy(&value, &bits, 4);
    const float position = s->by_value ? value : (float)(int32_t)(key ^ UINT32_C(0x80000000));
    const float at = (position - (float)s->low) * (float)s->factor, last = (float)s->last;
    return (int32_t)(at > 0 ? at < last ? at : last : 0); /* the lowest key of all is no number: bucket 0 */
}

INLINE int32_t bucket_64(const ri_scale *s, uint64_t key) {
    const uint64_t finite = key < UINT64_C(0xfff0000000000000) ? key : UINT64_C(0xfff0000000000000);
    const uint64_t bits = finite >> 63 ? finite ^ UINT64_C(0x8000000000000000) : ~finite;
    double value;
    memcpy(&value, &bits, 8);
    const double position = s->by_value ? value : (double)(int64_t)(key ^ UINT64_C(0x8000000000000000));
    const double at = (position - s->low) * s->factor, last = s->last;
    return (int32_t)(at > 0 ? at < last ? at : last : 0);
}

/* How many of the column's thresholds are below the key, which is in this bucket. */
INLINE uint32_t rank_32(const uint16_t *starts, const uint32_t *keys, uint32_t key, int32_t bucket, int steps) {
    uint32_t rank = starts[bucket];
    for (int step = steps; step-- > 0;)
        rank += (uint32_t)(keys[rank + (1u << step) - 1] < key) << step;
    return rank;
}

INLINE uint32_t rank_64(const uint16_t *starts, const uint64_t *keys, uint64_t key, int32_t bucket, int steps) {
    uint32_t rank = starts[bucket];
    for (int step = steps; step-- > 0;)
        rank += (uint32_t)(keys[rank + (1u << step) - 1] < key) << step;
    return rank;
}

INLINE uint32_t rank_of(const ri_forest *f, const ri_scale *s, uint64_t key) {
    const uint16_t *starts = f->starts + s->starts;
    return f->wide ? rank_64(starts, (const uint64_t *)f->rank_keys + s->keys, key, bucket_64(s, key), s->steps)
                   : rank_32(starts, (const uint32_t *)f->rank_keys + s->keys, (uint32_t)key, bucket_32(s, (uint32_t)key), s->steps);
}

/* The byte of a rank in one part of its column: biased, so that signed comparisons order it. */
INLINE int8_t rank_byte(uint32_t rank, int32_t part) {
    const int32_t rest = (int32_t)rank - RI_PART * part;
    return (int8_t)((rest < 0 ? 0 : rest > RI_PART ? RI_PART : rest) - 128);
}

INLINE void rank_parts(const ri_scale *s, uint32_t rank, int8_t *out) {
    for (int32_t part = 0; part < s->n_parts; ++part)
        out[s->part + part] = rank_byte(rank, part);
}

#if RI_LEVEL == 4
/* How many of a part's thresholds are below the key: of every sixteenth, then of the sixteen around it. */
INLINE uint32_t rank_in_part(const ri_forest *f, int32_t part, const uint32_t *keys, uint32_t key) {
    const __m512i all = _mm512_set1_epi32((int)key);
    const uint32_t at = 16 * (uint32_t)_mm_popcnt_u32(_mm512_cmpgt_epu32_mask(all, _mm512_load_si512(f->part_heads + 16 * (size_t)part)));
    return at + (uint32_t)_mm_popcnt_u32(_mm512_cmpgt_epu32_mask(all, _mm512_loadu_si512(keys + at)));
}
#endif

INLINE void rank_run(const ri_forest *f, const ri_columns *run, const void *row, int8_t *out, int wide, int single) {
    const ri_scale *scale = f->scales + run->column;
    for (int32_t i = 0; i < run->n; ++i, ++scale) {
        if (wide) {
            rank_parts(scale, rank_of(f, scale, read_64(bits_64(row, run->feature + i), ((const uint64_t *)f->fills)[run->column + i], run->zero_end)), out);
            continue;
        }
        const uint32_t key = read_32(bits_32(row, run->feature + i), ((const uint32_t *)f->fills)[run->column + i], (uint32_t)run->zero_end);
#if RI_LEVEL == 4
        const uint32_t *keys = (const uint32_t *)f->rank_keys + scale->keys;
        for (int32_t part = 0; part < (single ? 1 : scale->n_parts); ++part) {
            const uint32_t rank = rank_in_part(f, scale->part + part, keys + RI_PART * part, key);
            out[scale->part + part] = (int8_t)((int32_t)(single || rank < RI_PART ? rank : RI_PART) - 128);
        }
#else
        (void)single;
        rank_parts(scale, rank_of(f, scale, key), out);
#endif
    }
}

/* The parts of one row, and behind them its bits. words: room for the forest's words of bits. */
INLINE void rank_row(const ri_forest *f, const void *row, uint64_t *words, int8_t *out) {
    for (int32_t r = 0; r < f->n_runs; ++r) {
        if (f->wide)
            rank_run(f, f->runs + r, row, out, 1, 0);
        else if (f->n_parts == f->n_columns)
            rank_run(f, f->runs + r, row, out, 0, 1);
        else
            rank_run(f, f->runs + r, row, out, 0, 0);
    }
    if (f->n_bits) {
        ri_forest_bits(f, row, words, 1);
        for (int32_t i = 0; i < f->n_bits; ++i)
            out[f->n_parts + i] = (int8_t)((int)(words[i / 64] >> (i % 64) & 1) - 128);
    }
}
#endif
