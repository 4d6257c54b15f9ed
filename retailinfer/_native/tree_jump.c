/* Jumps: trees of up to 64 leaves, in tiles of 64 inner nodes, for one row or for eight (AVX-512 VBMI2). All nodes of a tile are asked
 * at once, so each knows which of its children comes next; then every node takes its next one's next, which doubles the way, until
 * all have arrived at leaves. A tile may hold several trees.
 *
 * Rules:
 *   - A byte is a node's next: its place in the tile plus 128, or a leaf's number in its tree, where it stays.
 *   - A tile is written some time before its bytes are read, and values are added while the next ones are under way: in the order of
 *     the trees, each to its output.
 * Whose row's reasons are asked for has the records of its leaves summed on the way: what a row takes is mostly the lines of the cache
 * that it touches, so a leaf's value is in its record, and that in one line.
 * Method: pointer jumping (Hillis and Steele 1986, doi:10.1145/7902.7903).
 */
#include "tree_kernels.h"

#if RI_LEVEL == 4

enum { LAG = 4, RING = 8 };          /* tiles between those that arrive and those whose values are added; tiles that there is room for */
enum { ONE_FLOAT, ONE_DOUBLE, ANY }; /* sums: one of either kind, or whatever the forest has */

/* low, high: a row's parts, the second of use only where there are more than 64. */
INLINE __m512i arrive(const uint8_t *tile, __m512i low, __m512i high, int two, int doublings) {
    const __m512i parts = _mm512_load_si512(tile);
    const __m512i ranks = two ? _mm512_permutex2var_epi8(low, parts, high) : _mm512_permutexvar_epi8(parts, low);
    const __mmask64 right = _mm512_cmpgt_epi8_mask(ranks, _mm512_load_si512(tile + 64));
    __m512i next = _mm512_mask_blend_epi8(right, _mm512_load_si512(tile + 128), _mm512_load_si512(tile + 192));
    for (int i = 0; i < doublings; ++i)
        next = _mm512_mask_permutexvar_epi8(next, _mm512_movepi8_mask(next), next, next);
    return next;
}

typedef struct total {
    float narrow;
    double wide;
} total;

/* Values of one tile's trees, added to `sum` or to `sums`. */
INLINE void add_tile(const ri_forest *f, int32_t i, const uint8_t *tile, int kind, total *sum, void *sums, int row, int32_t *leaves) {
    for (int32_t t = f->tile_trees[i]; t < f->tile_trees[i + 1]; ++t) {
        const int32_t leaf = f->tile_places[t].first_leaf + tile[f->tile_places[t].root];
        if (kind == ONE_FLOAT)
            sum->narrow += ((const float *)f->leaf_values)[leaf];
        else if (kind == ONE_DOUBLE)
            sum->wide += ((const double *)f->leaf_values)[leaf];
        else if (f->doubles)
            ((double *)sums)[f->targets[t] * RI_BLOCK + row] += ((const double *)f->leaf_values)[leaf];
        else
            ((float *)sums)[f->targets[t] * RI_BLOCK + row] += ((const float *)f->leaf_values)[leaf];
        if (leaves)
            leaves[t] = f->leaf_numbers[leaf];
    }
}

INLINE void one_row(const ri_forest *f, const int8_t *ranks, uint8_t *ring, void *sums, int row, int32_t *leaves, int two, int doublings, int kind) {
    const __m512i low = _mm512_load_si512(ranks), high = _mm512_load_si512(ranks + 64);
    total sum = {kind == ONE_FLOAT ? ((float *)sums)[row] : 0, kind == ONE_DOUBLE ? ((double *)sums)[row] : 0};
    for (int32_t i = 0; i < f->n_tiles + LAG; ++i) {
        if (i < f->n_tiles)
            _mm512_store_si512(ring + 64 * (i % RING), arrive(f->tiles + 256 * (size_t)i, low, high, two, doublings));
        if (i >= LAG)
            add_tile(f, i - LAG, ring + 64 * ((i - LAG) % RING), kind, &sum, sums, row, leaves);
    }
    if (kind == ONE_FLOAT)
        ((float *)sums)[row] = sum.narrow;
    else if (kind == ONE_DOUBLE)
        ((double *)sums)[row] = sum.wide;
}

INLINE void one_row_any(const ri_forest *f, const int8_t *ranks, uint8_t *ring, void *sums, int row, int32_t *leaves, int two, int doublings) {
    if (f->n_outputs > 1)
        one_row(f, ranks, ring, sums, row, leaves, two, doublings, ANY);
    else if (f->doubles)
        one_row(f, ranks, ring, sums, row, leaves, two, doublings, ONE_DOUBLE);
    else
        one_row(f, ranks, ring, sums, row, leaves, two, doublings, ONE_FLOAT);
}

_Alignas(64) static const int16_t COUNT[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                               16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

INLINE void spill_lanes(__m512i sums, int32_t *totals) {
    const __m512i low = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(sums)), high = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(sums, 1));
    _mm512_store_si512(totals, _mm512_add_epi32(_mm512_load_si512(totals), low));
    _mm512_store_si512(totals + 16, _mm512_add_epi32(_mm512_load_si512(totals + 16), high));
}

/* What sums of 16 bits have come to goes to those of 32. */
INLINE void spill(const ri_records *records, __m512i first, __m512i second, int lanes, int32_t *totals) {
    spill_lanes(first, totals);
    if (lanes > 32) {
        const __m512i behind = _mm512_add_epi16(_mm512_load_si512(COUNT), _mm512_set1_epi16((int16_t)records->lead));
        spill_lanes(_mm512_maskz_permutexvar_epi16(records->behind, behind, second), totals + 32);
    }
}

/* One row, whose leaves' values come out of their records: no more lines of the cache are read than without them. */
INLINE void one_row_recorded(const ri_forest *f, const int8_t *ranks, uint8_t *ring, void *sums, int two, int doublings,
                             const ri_records *records, size_t size, int lanes, int32_t *totals) {
    const __m512i low = _mm512_load_si512(ranks), high = _mm512_load_si512(ranks + 64);
    const int32_t *next = records->spills;
    const int doubles = f->doubles;
    total sum = {doubles ? 0 : *(float *)sums, doubles ? *(double *)sums : 0};
    __m512i first = _mm512_setzero_si512(), second = first;
    for (int k = 0; k < RI_RECORD_TOTALS / 16; ++k)
        _mm512_store_si512(totals + 16 * k, first);
    for (int32_t i = 0; i < f->n_tiles + LAG; ++i) {
        if (i < f->n_tiles)
            _mm512_store_si512(ring + 64 * (i % RING), arrive(f->tiles + 256 * (size_t)i, low, high, two, doublings));
        if (i < LAG)
            continue;
        const uint8_t *tile = ring + 64 * ((i - LAG) % RING);
        for (int32_t t = f->tile_trees[i - LAG]; t < f->tile_trees[i - LAG + 1]; ++t) {
            const int32_t leaf = f->tile_places[t].first_leaf + tile[f->tile_places[t].root];
            const ri_leaf_record *record = (const ri_leaf_record *)(const void *)(records->packed + size * (size_t)leaf);
            if (doubles)
                sum.wide += record->value.wide;
            else
                sum.narrow += record->value.narrow;
            if (t == *next) {
                ++next;
                spill(records, first, second, lanes, totals);
                first = second = _mm512_setzero_si512();
            }
            const __m512i numbers = size == RI_RECORD_SHORT
                                        ? _mm512_castsi128_si512(_mm_load_si128((const __m128i *)(const void *)record->numbers))
                                        : _mm512_alignr_epi32(first, _mm512_load_si512(record), 4);
            first = _mm512_add_epi16(first, _mm512_maskz_expand_epi16(record->first, numbers));
            if (lanes == 64)
                second = _mm512_add_epi16(second, _mm512_maskz_expand_epi16(record->second, numbers));
            else if (lanes == 48) /* the work of half a register is half the work */
                second = _mm512_zextsi256_si512(_mm256_add_epi16(
                    _mm512_castsi512_si256(second), _mm256_maskz_expand_epi16((__mmask16)record->second, _mm512_castsi512_si256(numbers))));
        }
    }
    spill(records, first, second, lanes, totals);
    if (doubles)
        *(double *)sums = sum.wide;
    else
        *(float *)sums = sum.narrow;
}

INLINE void one_row_recorded_of(const ri_forest *f, const int8_t *ranks, uint8_t *ring, void *sums, int two, int doublings,
                                const ri_records *records, size_t size, int32_t *totals) {
    if (!records->behind)
        one_row_recorded(f, ranks, ring, sums, two, doublings, records, size, 32, totals);
    else if ((uint64_t)records->behind << records->lead < UINT64_C(1) << 16)
        one_row_recorded(f, ranks, ring, sums, two, doublings, records, size, 48, totals);
    else
        one_row_recorded(f, ranks, ring, sums, two, doublings, records, size, 64, totals);
}

INLINE void one_row_recorded_any(const ri_forest *f, const int8_t *ranks, uint8_t *ring, void *sums, int two, int doublings,
                                 const ri_records *records, int32_t *totals) {
    if (records->size == RI_RECORD_SHORT)
        one_row_recorded_of(f, ranks, ring, sums, two, doublings, records, RI_RECORD_SHORT, totals);
    else
        one_row_recorded_of(f, ranks, ring, sums, two, doublings, records, RI_RECORD_LONG, totals);
}

INLINE void eight_rows(const ri_forest *f, const int8_t *ranks, int n, uint8_t *ring, void *sums, int32_t *leaves, int two, int doublings) {
    __m512i low[8], high[8];
    for (int i = 0; i < 8; ++i) {
        low[i] = _mm512_load_si512(ranks + 128 * i);
        high[i] = two ? _mm512_load_si512(ranks + 128 * i + 64) : low[i];
    }
    const uint8_t *tiles = f->tiles;
    const ri_tile_place *places = f->tile_places;
    const int32_t *trees = f->tile_trees, *targets = f->targets, n_tiles = f->n_tiles;
    for (int32_t i = 0; i < n_tiles + 1; ++i) {
        uint8_t *to = ring + 512 * (i % 2);
        if (i < n_tiles) {
#pragma GCC unroll 8
            for (int row = 0; row < 8; ++row)
                _mm512_store_si512(to + 64 * row, arrive(tiles + 256 * (size_t)i, low[row], high[row], two, doublings));
        }
        for (int32_t t = i ? trees[i - 1] : 0; i && t < trees[i]; ++t) {
            const uint8_t *at = ring + 512 * ((i - 1) % 2) + places[t].root;
            const int32_t leaf = places[t].first_leaf;
            if (f->doubles) {
                const double *v = (const double *)f->leaf_values + leaf;
                double *out = (double *)sums + targets[t] * RI_BLOCK;
                const __m512d eight = _mm512_setr_pd(v[at[0]], v[at[64]], v[at[128]], v[at[192]], v[at[256]], v[at[320]], v[at[384]], v[at[448]]);
                _mm512_storeu_pd(out, _mm512_add_pd(_mm512_loadu_pd(out), eight));
            } else {
                const float *v = (const float *)f->leaf_values + leaf;
                float *out = (float *)sums + targets[t] * RI_BLOCK;
                const __m256 eight = _mm256_setr_ps(v[at[0]], v[at[64]], v[at[128]], v[at[192]], v[at[256]], v[at[320]], v[at[384]], v[at[448]]);
                _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), eight));
            }
            for (int row = 0; row < n && leaves; ++row)
                leaves[(size_t)row * (size_t)f->n_trees + (size_t)t] = f->leaf_numbers[leaf + at[64 * row]];
        }
    }
}

void RI_NAME(ri_jump_1)(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums, int32_t *leaves) {
    int8_t *ranks = (int8_t *)scratch;
    uint8_t *ring = (uint8_t *)scratch + 128;
    const int two = f->n_parts + f->n_bits > 64;
    for (int i = 0; i < n; ++i) {
        int32_t *own = leaves ? leaves + (size_t)i * (size_t)f->n_trees : NULL;
        rank_row(f, (const char *)rows + (size_t)(i * stride) * (f->wide ? 8 : 4), (uint64_t *)(void *)ring, ranks);
        if (f->doublings <= 3 && !two)
            one_row_any(f, ranks, ring, sums, i, own, 0, 3);
        else
            one_row_any(f, ranks, ring, sums, i, own, 1, f->doublings);
    }
}

void RI_NAME(ri_jump_recorded)(const ri_forest *f, const void *row, void *scratch, void *sums, const ri_records *records, int32_t *totals) {
    int8_t *ranks = (int8_t *)scratch;
    uint8_t *ring = (uint8_t *)scratch + 128;
    const int two = f->n_parts + f->n_bits > 64;
    rank_row(f, row, (uint64_t *)(void *)ring, ranks);
    if (f->doublings <= 3 && !two)
        one_row_recorded_any(f, ranks, ring, sums, 0, 3, records, totals);
    else
        one_row_recorded_any(f, ranks, ring, sums, 1, f->doublings, records, totals);
}

void RI_NAME(ri_jump_8)(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums, int32_t *leaves) {
    int8_t *ranks = (int8_t *)scratch;
    uint8_t *ring = (uint8_t *)scratch + 1024;
    const int two = f->n_parts + f->n_bits > 64;
    for (int i = 0; i < 8; ++i)
        rank_row(f, (const char *)rows + (size_t)((i < n ? i : n - 1) * stride) * (f->wide ? 8 : 4), (uint64_t *)(void *)ring, ranks + 128 * i);
    if (f->doublings <= 3 && !two)
        eight_rows(f, ranks, n, ring, sums, leaves, 0, 3);
    else
        eight_rows(f, ranks, n, ring, sums, leaves, 1, f->doublings);
}
#else
typedef int ri_no_jumps_here; /* a file may not be empty */
#endif
