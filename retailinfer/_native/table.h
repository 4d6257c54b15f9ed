/* Index and raw records of entity tables, and the scan of candidate ids. Pure C, no Python.h.
 *
 * A record (one row of a snapshot), `stride` bytes, 8-aligned:
 *     int64     updated_at, ns since the epoch, 0 = unknown
 *     uint64[]  validity words: bit i of the whole = column i is present; a cell that is not present holds zeros
 *     8 bytes   per scalar column: double | int64 | {uint32 arena offset, uint32 size} for str and bytes
 *     float[]   per vector column, 8-aligned
 *
 * A key has one canonical form as bytes: str = UTF-8; bytes = itself; int = int64 little-endian; tuple = for each part its size
 * as uint32 little-endian, then the part. The kinds of a table are fixed, so the form is injective.
 *
 * Rules:
 *   - Everything here is immutable once built; readers need no lock and may run without the GIL.
 *   - Functions that a request runs cannot fail and never allocate. Absent = row -1.
 *   - Every loop ends: probes are bounded by the longest one of the build, even if memory were corrupt.
 *   - Nothing outside the given sizes is read.
 * table_index.c builds and finds; table.pyx owns the memory and checks what comes from Python; hashing.h has the hash.
 */
#ifndef RETAILINFER_TABLE_H
#define RETAILINFER_TABLE_H

#include "hashing.h"
#include "tensor_ref.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#if defined(__GNUC__) || defined(__clang__)
#define RI_PREFETCH(p) __builtin_prefetch((p), 0, 3)
#define RI_LIKELY(x) __builtin_expect(!!(x), 1)
#define RI_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define RI_CTZ(x) __builtin_ctz(x)
#else
#define RI_PREFETCH(p) ((void)(p))
#define RI_LIKELY(x) (x)
#define RI_UNLIKELY(x) (x)
#endif

#define RI_LINE 64

/* Everything that a reader of records needs. The memory belongs to the SnapshotTable. */
typedef struct {
    const uint8_t *records;
    size_t stride;
    int64_t n_rows;
    const char *arena;
} ri_table_view;

/* ---- reading a record -------------------------------------------------------------------------------------------- */

RI_INLINE const uint8_t *ri_record(const ri_table_view *view, int64_t row) { return view->records + (size_t)row * view->stride; }
RI_INLINE int64_t ri_updated_at_ns(const uint8_t *record) { return (int64_t)ri_load64(record); }
RI_INLINE int ri_cell_present(const uint8_t *record, int64_t bit) { return (int)(ri_load64(record + 8 + 8 * (bit >> 6)) >> (bit & 63)) & 1; }
RI_INLINE double ri_cell_f64(const uint8_t *record, size_t offset) { double v; memcpy(&v, record + offset, 8); return v; }
RI_INLINE int64_t ri_cell_i64(const uint8_t *record, size_t offset) { return (int64_t)ri_load64(record + offset); }
RI_INLINE const float *ri_cell_vec(const uint8_t *record, size_t offset) { return (const float *)(const void *)(record + offset); }

RI_INLINE StrRef ri_cell_str(const ri_table_view *view, const uint8_t *record, size_t offset) {
    StrRef text = {view->arena + ri_load32(record + offset), (int64_t)ri_load32(record + offset + 4)};
    return text;
}

/* ---- canonical keys of several parts ------------------------------------------------------------------------------- */

/* Each writes one part and returns where the next one goes. Room needed: ri_key_room(size). */
#define RI_KEY_INT_ROOM 12
RI_INLINE size_t ri_key_room(int64_t size) { return 4 + (size_t)size; }

RI_INLINE char *ri_key_put_bytes(char *out, const char *data, int64_t size) {
    uint32_t prefix = (uint32_t)size;
    memcpy(out, &prefix, 4);
    if (size > 0)
        memcpy(out + 4, data, (size_t)size);
    return out + 4 + size;
}

RI_INLINE char *ri_key_put_int(char *out, int64_t value) {
    uint32_t prefix = 8;
    memcpy(out, &prefix, 4);
    memcpy(out + 4, &value, 8);
    return out + 12;
}

typedef struct {
    StrRef text; /* the part's bytes; text.data == NULL means the int */
    int64_t number;
} ri_key_part;

/* The whole key into out[0, room). Returns its size, or -1 if it does not fit. */
static inline int64_t ri_key_compose(const ri_key_part *parts, int n_parts, char *out, size_t room) {
    char *end = out;
    for (int i = 0; i < n_parts; ++i) {
        size_t needed = parts[i].text.data ? ri_key_room(parts[i].text.size) : RI_KEY_INT_ROOM;
        if (needed > room - (size_t)(end - out))
            return -1;
        end = parts[i].text.data ? ri_key_put_bytes(end, parts[i].text.data, parts[i].text.size)
                                 : ri_key_put_int(end, parts[i].number);
    }
    return end - out;
}

/* ---- gathering finished rows --------------------------------------------------------------------------------------- */

#define RI_GATHER_AHEAD 16 /* rows; measured: 4 costs a quarter more, beyond 16 nothing is gained */

RI_INLINE void ri_copy_row(uint8_t *restrict out, const uint8_t *restrict row, size_t nbytes) {
    size_t i = 0;
    for (; i + 16 <= nbytes; i += 16)
        memcpy(out + i, row + i, 16); /* one vector load and store; a call of memcpy costs more than the row */
    for (; i + 4 <= nbytes; i += 4)
        memcpy(out + i, row + i, 4);
    for (; i < nbytes; ++i)
        out[i] = row[i];
}

/* out row i = the first `nbytes` of block row rows[i]; where rows[i] < 0 the output row stays as it is. */
static inline void ri_gather_rows(const uint8_t *block, size_t stride, const int32_t *rows, int64_t n, size_t nbytes,
                                  uint8_t *out, size_t out_stride) {
    for (int64_t i = 0; i < n; ++i, out += out_stride) {
        if (i + RI_GATHER_AHEAD < n && rows[i + RI_GATHER_AHEAD] >= 0) {
            const uint8_t *ahead = block + (size_t)rows[i + RI_GATHER_AHEAD] * stride;
            for (size_t line = 0; line < nbytes; line += RI_LINE)
                RI_PREFETCH(ahead + line);
        }
        if (RI_LIKELY(rows[i] >= 0))
            ri_copy_row(out, block + (size_t)rows[i] * stride, nbytes);
    }
}

/* ---- the index ------------------------------------------------------------------------------------------------------- */

#define RI_MAX_KEY 65536      /* bytes of a canonical key; longer ones are absent by definition */
#define RI_INLINE_KEY_MAX 64  /* widest entry that keeps its key inline */
#define RI_PROBE_LIMIT 512    /* a build that probes further takes another hash key */

typedef struct {
    uint64_t *slots;          /* tag (high half of the hash) << 32 | row + 1; 0 = empty */
    uint64_t mask;            /* slots - 1; at least twice the rows */
    const uint8_t *entries;   /* per row: the key, zeros, its size in the last byte; or {uint64 offset, uint32 size, .., 0xFF} */
    size_t width;             /* bytes of an entry: 16, 32, 48 or 64 */
    const uint8_t *long_keys; /* keys that do not fit into an entry */
    int64_t n_rows;
    int64_t max_key;          /* longest key in bytes */
    uint32_t max_probe;       /* longest probe of the build: no look-up goes further */
    ri_siphash_key hash_key;
} ri_index;

/* Sizes for n rows, given the keys' ends (offsets[0] = 0, n + 1 of them): slots, entry width, bytes of long keys. */
void ri_index_plan(const int64_t *offsets, int64_t n, uint64_t *n_slots, size_t *width, int64_t *long_bytes, int64_t *max_key);

/* Fill an index whose memory is there and zeroed. Returns 0; 1 = two rows have one key (duplicate[0] < duplicate[1]);
 * 2 = the probes got too long under this hash key: zero the slots and try another. */
int ri_index_build(ri_index *index, uint8_t *entries, uint8_t *long_keys, const char *keys, const int64_t *offsets,
                   int64_t duplicate[2]);

int64_t ri_index_find(const ri_index *index, const char *key, int64_t size);
void ri_index_find_many(const ri_index *index, const StrRef *keys, int64_t n, int32_t *rows);
/* The key of a row, in its canonical form. */
StrRef ri_index_key(const ri_index *index, int64_t row);

/* ---- filling records --------------------------------------------------------------------------------------------------- */

enum { RI_COLUMN_F64 = 0, RI_COLUMN_I64 = 1, RI_COLUMN_TEXT = 2, RI_COLUMN_VEC = 3 };

typedef struct {
    int32_t kind;
    int32_t bit;
    size_t offset;         /* in the record */
    int64_t width;         /* floats of a vector */
    const void *values;    /* double | int64 | int64 ends of texts (n + 1) | float */
    const uint8_t *valid;  /* one byte a row, or NULL = all present */
    uint64_t arena_offset; /* where this column's texts start in the arena */
} ri_source_column;

/* Row-major records out of columns, in tiles of rows so that each record is written while it is in the cache. A NaN in a
 * double column is absent. `updated_at` may be NULL. Records are zeroed before. */
void ri_fill_records(uint8_t *records, size_t stride, int64_t n_rows, const int64_t *updated_at,
                     const ri_source_column *columns, int n_columns);

/* ---- reading cells as float32 ------------------------------------------------------------------------------------------ */

typedef struct {
    int32_t kind; /* RI_COLUMN_*, no texts */
    int32_t bit;
    size_t offset;
    int64_t width;
} ri_read_column;

/* Row i of `out` = the columns of row rows[i] (of row i if rows is NULL), each number rounded to float32 once; NaN for what is
 * not there. */
void ri_read_rows(const ri_table_view *view, const ri_read_column *columns, int n_columns, const int32_t *rows, int64_t n,
                  uint8_t *out, size_t out_stride);

/* ---- memory ------------------------------------------------------------------------------------------------------------ */

/* Zeroed, 64-byte aligned, anonymous: pages that a fork shares until somebody writes. NULL when there is none. */
void *ri_memory_new(size_t size);
void ri_memory_free(void *memory, size_t size);

/* ---- candidate ids ------------------------------------------------------------------------------------------------------- */

#define RI_SCAN_SLOW (-1)      /* an escape, a byte beyond ASCII, an element that is not a string: let the decoder do it */
#define RI_SCAN_MALFORMED (-2) /* not JSON; the decoder says why */
#define RI_SCAN_TOO_MANY (-3)  /* more than cap strings */

/* A JSON array of plain strings, scanned where it stands: out[i] points between the quotes. Returns how many, or RI_SCAN_*. */
int64_t ri_scan_ids(const char *json, int64_t size, StrRef *out, int64_t cap);

#endif
