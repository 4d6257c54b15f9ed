/* Entity tables: build and probe the index, fill raw records, scan candidate ids. The rules and layouts are in table.h. */
#if !defined(_WIN32) && !defined(_DEFAULT_SOURCE)
#define _DEFAULT_SOURCE /* madvise */
#endif

#include "table.h"

#include "memory.h"

/* ---- memory ------------------------------------------------------------------------------------------------------- */

void *ri_memory_new(size_t size) { return ri_pages_new(size); }
void ri_memory_free(void *memory, size_t size) { ri_pages_free(memory, size); }

/* ---- the index ------------------------------------------------------------------------------------------------------ */

#define SHORT_KEY 15 /* keys up to here are two words: see ri_pack_short */
#define LONG_KEY_MARK 0xFF
#define CHUNK 32     /* keys in flight: each step prefetches what the next one reads; 16-64 measured alike, 8 a third slower */

RI_INLINE int equal_bytes(const uint8_t *a, const uint8_t *b, size_t size) {
    if (size >= 8) {
        uint64_t differ = ri_load64(a + size - 8) ^ ri_load64(b + size - 8);
        for (size_t i = 0; i + 8 < size; i += 8)
            differ |= ri_load64(a + i) ^ ri_load64(b + i);
        return differ == 0;
    }
    return ri_load_tail(a, size) == ri_load_tail(b, size);
}

RI_INLINE uint64_t hash_key_bytes(const ri_index *index, const uint8_t *key, size_t size) {
    uint64_t w0, w1;
    if (size > SHORT_KEY)
        return ri_siphash13(key, size, index->hash_key);
    ri_pack_short(key, size, &w0, &w1);
    return ri_keyed_short(w0, w1, index->hash_key);
}

RI_INLINE int entry_equals(const ri_index *index, int64_t row, const uint8_t *key, size_t size) {
    const uint8_t *entry = index->entries + (size_t)row * index->width;
    if (size < index->width)
        return entry[index->width - 1] == size && equal_bytes(entry, key, size);
    return entry[index->width - 1] == LONG_KEY_MARK && ri_load32(entry + 8) == size &&
           equal_bytes(index->long_keys + ri_load64(entry), key, size);
}

StrRef ri_index_key(const ri_index *index, int64_t row) {
    const uint8_t *entry = index->entries + (size_t)row * index->width;
    StrRef key;
    if (entry[index->width - 1] == LONG_KEY_MARK) {
        key.data = (const char *)index->long_keys + ri_load64(entry);
        key.size = (int64_t)ri_load32(entry + 8);
    } else {
        key.data = (const char *)entry;
        key.size = (int64_t)entry[index->width - 1];
    }
    return key;
}

void ri_index_plan(const int64_t *offsets, int64_t n, uint64_t *n_slots, size_t *width, int64_t *long_bytes, int64_t *max_key) {
    int64_t longest = 0, beyond = 0;
    for (int64_t i = 0; i < n; ++i) {
        int64_t size = offsets[i + 1] - offsets[i];
        longest = size > longest ? size : longest;
    }
    /* All inline if the longest fits into 64 bytes; else the narrowest entry, and the long ones apart. */
    *width = longest < RI_INLINE_KEY_MAX ? ((size_t)longest + 16) & ~(size_t)15 : 16;
    for (int64_t i = 0; i < n; ++i) {
        int64_t size = offsets[i + 1] - offsets[i];
        beyond += size >= (int64_t)*width ? size : 0;
    }
    uint64_t slots = 16;
    while (slots < 2 * (uint64_t)n)
        slots *= 2;
    *n_slots = slots;
    *long_bytes = beyond;
    *max_key = longest;
}

int ri_index_build(ri_index *index, uint8_t *entries, uint8_t *long_keys, const char *keys, const int64_t *offsets,
                   int64_t duplicate[2]) {
    const uint8_t *bytes = (const uint8_t *)keys;
    const size_t width = index->width;
    uint64_t hashes[CHUNK], long_end = 0;
    index->max_probe = 0;
    index->entries = entries;
    index->long_keys = long_keys;
    for (int64_t base = 0; base < index->n_rows; base += CHUNK) {
        int64_t n = index->n_rows - base < CHUNK ? index->n_rows - base : CHUNK;
        for (int64_t j = 0; j < n; ++j) {
            const uint8_t *key = bytes + offsets[base + j];
            size_t size = (size_t)(offsets[base + j + 1] - offsets[base + j]);
            uint8_t *entry = entries + (size_t)(base + j) * width;
            if (size < width) {
                if (size > 0)
                    memcpy(entry, key, size);
                entry[width - 1] = (uint8_t)size;
            } else {
                uint32_t size32 = (uint32_t)size;
                memcpy(long_keys + long_end, key, size);
                memcpy(entry, &long_end, 8);
                memcpy(entry + 8, &size32, 4);
                entry[width - 1] = LONG_KEY_MARK;
                long_end += size;
            }
            hashes[j] = hash_key_bytes(index, key, size);
            RI_PREFETCH(&index->slots[hashes[j] & index->mask]);
        }
        for (int64_t j = 0; j < n; ++j) {
            const uint64_t tag = hashes[j] >> 32;
            uint64_t at = hashes[j] & index->mask;
            uint32_t probe = 0;
            for (; index->slots[at] != 0; at = (at + 1) & index->mask) {
                if (index->slots[at] >> 32 == tag) {
                    int64_t other = (int64_t)(uint32_t)index->slots[at] - 1;
                    const int64_t *mine = offsets + base + j;
                    if (entry_equals(index, other, bytes + mine[0], (size_t)(mine[1] - mine[0]))) {
                        duplicate[0] = other;
                        duplicate[1] = base + j;
                        return 1;
                    }
                }
                if (++probe > RI_PROBE_LIMIT)
                    return 2;
            }
            index->slots[at] = tag << 32 | (uint64_t)(base + j + 1);
            if (probe > index->max_probe)
                index->max_probe = probe;
        }
    }
    return 0;
}

/* First slot from `at` on, at most `left` further, whose tag fits; its row, or -1. Moves `at` and `left` behind it. */
RI_INLINE int64_t next_candidate(const ri_index *index, uint64_t tag, uint64_t *at, int64_t *left) {
    while (*left >= 0) {
        const uint64_t slot = index->slots[*at];
        if (slot == 0)
            return -1;
        *at = (*at + 1) & index->mask;
        --*left;
        if (slot >> 32 == tag)
            return (int64_t)(uint32_t)slot - 1;
    }
    return -1;
}

int64_t ri_index_find(const ri_index *index, const char *data, int64_t size) {
    if (size > index->max_key)
        return -1;
    const uint8_t *key = (const uint8_t *)data;
    const uint64_t hash = hash_key_bytes(index, key, (size_t)size);
    uint64_t at = hash & index->mask;
    int64_t left = index->max_probe, row;
    while ((row = next_candidate(index, hash >> 32, &at, &left)) >= 0)
        if (RI_LIKELY(entry_equals(index, row, key, (size_t)size)))
            return row;
    return -1;
}

void ri_index_find_many(const ri_index *index, const StrRef *keys, int64_t n, int32_t *rows) {
    uint64_t low[CHUNK], high[CHUNK], hashes[CHUNK];
    for (int64_t base = 0; base < n; base += CHUNK, keys += CHUNK, rows += CHUNK) {
        const int64_t m = n - base < CHUNK ? n - base : CHUNK;
        for (int64_t j = 0; j < m; ++j) {
            const int64_t size = keys[j].size;
            if (RI_LIKELY(size <= SHORT_KEY)) {
                ri_pack_short(keys[j].data, (size_t)size, &low[j], &high[j]);
                hashes[j] = ri_keyed_short(low[j], high[j], index->hash_key);
            } else {
                hashes[j] = size > index->max_key ? 0 : hash_key_bytes(index, (const uint8_t *)keys[j].data, (size_t)size);
            }
            RI_PREFETCH(&index->slots[hashes[j] & index->mask]);
        }
        for (int64_t j = 0; j < m; ++j) {
            uint64_t at = hashes[j] & index->mask;
            int64_t left = index->max_probe;
            rows[j] = (int32_t)next_candidate(index, hashes[j] >> 32, &at, &left);
            RI_PREFETCH(index->entries + (size_t)(rows[j] < 0 ? 0 : rows[j]) * index->width);
        }
        for (int64_t j = 0; j < m; ++j) {
            if (rows[j] < 0)
                continue;
            if (index->width == 16 && keys[j].size <= SHORT_KEY) {
                const uint8_t *entry = index->entries + (size_t)rows[j] * 16;
                if (RI_LIKELY(ri_load64(entry) == low[j] && ri_load64(entry + 8) == high[j]))
                    continue;
            } else if (RI_LIKELY(keys[j].size <= index->max_key &&
                                 entry_equals(index, rows[j], (const uint8_t *)keys[j].data, (size_t)keys[j].size))) {
                continue;
            }
            rows[j] = (int32_t)ri_index_find(index, keys[j].data, keys[j].size); /* a tag of somebody else: one in 2^31 or so */
        }
    }
}

/* ---- filling records -------------------------------------------------------------------------------------------------- */

#define TILE 64

static void fill_column(uint8_t *records, size_t stride, int64_t first, int64_t last, const ri_source_column *column) {
    const size_t word = 8 + 8 * (size_t)(column->bit >> 6);
    const uint64_t flag = 1ULL << (column->bit & 63);
    for (int64_t row = first; row < last; ++row) {
        uint8_t *record = records + (size_t)row * stride, *cell = record + column->offset;
        if (column->valid && !column->valid[row])
            continue;
        switch (column->kind) {
        case RI_COLUMN_F64: {
            const double value = ((const double *)column->values)[row];
            if (value != value)
                continue;
            memcpy(cell, &value, 8);
            break;
        }
        case RI_COLUMN_I64:
            memcpy(cell, (const int64_t *)column->values + row, 8);
            break;
        case RI_COLUMN_TEXT: {
            const int64_t *ends = (const int64_t *)column->values;
            const uint32_t pair[2] = {(uint32_t)(column->arena_offset + (uint64_t)ends[row]), (uint32_t)(ends[row + 1] - ends[row])};
            memcpy(cell, pair, 8);
            break;
        }
        default:
            memcpy(cell, (const float *)column->values + row * column->width, 4 * (size_t)column->width);
        }
        const uint64_t present = ri_load64(record + word) | flag;
        memcpy(record + word, &present, 8);
    }
}

void ri_fill_records(uint8_t *records, size_t stride, int64_t n_rows, const int64_t *updated_at,
                     const ri_source_column *columns, int n_columns) {
    for (int64_t first = 0; first < n_rows; first += TILE) {
        const int64_t last = n_rows - first < TILE ? n_rows : first + TILE;
        if (updated_at)
            for (int64_t row = first; row < last; ++row)
                memcpy(records + (size_t)row * stride, updated_at + row, 8);
        for (int c = 0; c < n_columns; ++c)
            fill_column(records, stride, first, last, &columns[c]);
    }
}

/* ---- reading cells as float32 -------------------------------------------------------------------------------------------- */

void ri_read_rows(const ri_table_view *view, const ri_read_column *columns, int n_columns, const int32_t *rows, int64_t n,
                  uint8_t *out, size_t out_stride) {
    for (int64_t i = 0; i < n; ++i, out += out_stride) {
        if (rows && i + RI_GATHER_AHEAD < n && rows[i + RI_GATHER_AHEAD] >= 0) {
            const uint8_t *ahead = ri_record(view, rows[i + RI_GATHER_AHEAD]);
            for (size_t line = 0; line < view->stride && line < 16 * RI_LINE; line += RI_LINE)
                RI_PREFETCH(ahead + line);
        }
        const int64_t row = rows ? rows[i] : i;
        const uint8_t *record = row < 0 ? NULL : ri_record(view, row);
        float *cell = (float *)(void *)out;
        for (int c = 0; c < n_columns; ++c) {
            const ri_read_column *column = &columns[c];
            if (record == NULL || !ri_cell_present(record, column->bit)) {
                const uint32_t nan_bits = 0x7FC00000u; /* one NaN, whatever the compiler's own looks like */
                for (int64_t k = 0; k < column->width; ++k)
                    memcpy(cell + k, &nan_bits, 4);
            } else if (column->kind == RI_COLUMN_VEC) {
                memcpy(cell, record + column->offset, 4 * (size_t)column->width);
            } else {
                cell[0] = (float)(column->kind == RI_COLUMN_F64 ? ri_cell_f64(record, column->offset)
                                                                : (double)ri_cell_i64(record, column->offset));
            }
            cell += column->width;
        }
    }
}

/* ---- candidate ids ----------------------------------------------------------------------------------------------------- */

RI_INLINE const char *skip_space(const char *p, const char *end) {
    while (p != end && (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t'))
        ++p;
    return p;
}

/* The first byte in [p, end) that ends a plain string or makes it not plain, or end. */
RI_INLINE const char *string_end(const char *p, const char *end) {
#if defined(__SSE2__)
    for (; end - p >= 16; p += 16) {
        const __m128i text = _mm_loadu_si128((const __m128i *)(const void *)p);
        /* signed: bytes beyond ASCII are negative, so one comparison finds them and the control characters */
        const __m128i stop = _mm_or_si128(_mm_cmplt_epi8(text, _mm_set1_epi8(0x20)),
                                          _mm_or_si128(_mm_cmpeq_epi8(text, _mm_set1_epi8('"')), _mm_cmpeq_epi8(text, _mm_set1_epi8('\\'))));
        const unsigned mask = (unsigned)_mm_movemask_epi8(stop);
        if (mask != 0)
            return p + RI_CTZ(mask);
    }
#endif
    while (p != end && (unsigned char)*p >= 0x20 && (unsigned char)*p < 0x80 && *p != '"' && *p != '\\')
        ++p;
    return p;
}

int64_t ri_scan_ids(const char *json, int64_t size, StrRef *out, int64_t cap) {
    const char *end = json + size, *p = skip_space(json, end);
    int64_t n = 0;
    if (p == end)
        return RI_SCAN_MALFORMED;
    if (*p != '[')
        return RI_SCAN_SLOW; /* another type, or no JSON: the decoder knows */
    p = skip_space(p + 1, end);
    if (p != end && *p == ']') {
        p = skip_space(p + 1, end);
        return p == end ? 0 : RI_SCAN_MALFORMED;
    }
    for (;;) {
        if (p == end)
            return RI_SCAN_MALFORMED;
        if (*p != '"')
            return RI_SCAN_SLOW;
        const char *start = ++p;
        p = string_end(p, end);
        if (p == end)
            return RI_SCAN_MALFORMED;
        if (*p != '"')
            return RI_SCAN_SLOW;
        if (n == cap)
            return RI_SCAN_TOO_MANY;
        out[n].data = start;
        out[n].size = p - start;
        ++n;
        if (RI_LIKELY(end - ++p >= 2 && p[0] == ',' && p[1] == '"')) {
            ++p;
            continue;
        }
        p = skip_space(p, end);
        if (p == end)
            return RI_SCAN_MALFORMED;
        if (*p == ']') {
            p = skip_space(p + 1, end);
            return p == end ? n : RI_SCAN_MALFORMED;
        }
        if (*p != ',')
            return RI_SCAN_MALFORMED;
        p = skip_space(p + 1, end);
    }
}
