/* A mutable table of rows, bounded in rows and bytes: least recently used goes first. Pure C, no Python.h.
 *
 * A block is one row, 64-byte aligned:
 *     ri_row_head   48 bytes: when it expires, when it was written, its size, its key if that has at most 16 bytes
 *     record        as in table.h, but the offset of a text counts from the record
 *     key           if it is longer, padded to 8
 *     texts
 * The index has slots of 8 bytes, {hash32, block + 1}, probed one after the other; the order of use is a list in an array of its
 * own, 8 bytes a row, so that touching a row reads three cells of a small array and not three rows. Blocks are numbered in units
 * of 64 bytes and live in chunks: free neighbours are joined, empty chunks go back to the system.
 *
 * Rules:
 *   - Everything here runs under the GIL, or in tests of its own; nothing blocks, nothing calls out, and between two calls the
 *     table is whole: a fork never sees it half changed.
 *   - A record is replaced whole. A pointer to one is good until the next put, erase, sweep or clear.
 *   - Memory: what `bytes` says is all of it, and it never passes `max_bytes`; `ri_lru_check` counts it again.
 *   - Keys come from clients: the hash is SipHash under a random key, a probe ends after RI_LRU_PROBES slots, and the policy
 *     "probation" keeps keys that are asked for once from pushing out those that are asked for again.
 * The functions are lru_table.c; feature_table.pyx owns the tables and turns values into records.
 */
#ifndef RETAILINFER_LRU_TABLE_H
#define RETAILINFER_LRU_TABLE_H

#include "table.h"

enum {
    RI_ROW_FRESH = 0,
    RI_ROW_REFRESH = 1, /* fresh, in use and near its expiry: worth asking the source ahead. Said once per version of a row */
    RI_ROW_EXPIRED = 2,
    RI_ROW_ABSENT = 3,
    RI_ROW_UNKNOWN = 4 /* known not to exist */
};

#define RI_LRU_UNIT 64
#define RI_LRU_INLINE_KEY 16
#define RI_LRU_MAX_KEY 65535   /* bytes of a canonical key; a longer one is absent by definition */
#define RI_LRU_MAX_UNITS 65535 /* of a row: 4 MiB */
#define RI_LRU_PROBES 512
#define RI_LRU_CLASSES 112     /* sizes of free blocks: see size_class */
#define RI_LRU_NEVER INT64_MAX

/* ---- a row -------------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t expires_ns;    /* monotonic; RI_LRU_NEVER */
    int64_t written_ns;    /* monotonic */
    uint32_t row;          /* its place in the order of use; of a free block: the next one of its size, + 1 */
    uint32_t hash;         /* what its slot has; of a free block: the one before, + 1 */
    uint16_t units;        /* of 64 bytes, this block */
    uint16_t units_before; /* of the block before it in the chunk; 0 = it is the first */
    uint16_t key_size;
    uint16_t flags;
    uint8_t key[RI_LRU_INLINE_KEY];
} ri_row_head;

enum { RI_BLOCK_FREE = 1, RI_BLOCK_HIT = 2, RI_BLOCK_ASKED = 4, RI_BLOCK_PROTECTED = 8 };

RI_INLINE const ri_row_head *ri_row_head_of(const uint8_t *record) {
    return (const ri_row_head *)(const void *)(record - sizeof(ri_row_head));
}
RI_INLINE int64_t ri_row_expires_ns(const uint8_t *record) { return ri_row_head_of(record)->expires_ns; }
RI_INLINE int64_t ri_row_written_ns(const uint8_t *record) { return ri_row_head_of(record)->written_ns; }

/* Which share of the jitter a row has, in [0, 1): another one for every key and every writing of it. */
RI_INLINE double ri_row_jitter(uint32_t hash, int64_t written_ns) {
    uint64_t mixed = ((uint64_t)hash << 32 | hash) ^ (uint64_t)written_ns * RI_XXP2;
    mixed = (mixed ^ (mixed >> 33)) * RI_XXP3;
    return (double)((mixed ^ (mixed >> 29)) >> 11) * 0x1p-53;
}

/* written + ttl, less this row's share of jitter * ttl; 0 or less = never. */
RI_INLINE int64_t ri_expires_ns(uint32_t hash, int64_t written_ns, int64_t ttl_ns, double jitter) {
    if (ttl_ns <= 0)
        return RI_LRU_NEVER;
    const int64_t earlier = (int64_t)((double)ttl_ns * jitter * ri_row_jitter(hash, written_ns));
    const int64_t lives = ttl_ns - earlier;
    return written_ns > RI_LRU_NEVER - 1 - lives ? RI_LRU_NEVER - 1 : written_ns + lives;
}

RI_INLINE int64_t ri_row_cell_expires_ns(const uint8_t *record, int64_t ttl_ns, double jitter) {
    return ri_expires_ns(ri_row_head_of(record)->hash, ri_row_written_ns(record), ttl_ns, jitter);
}

RI_INLINE float ri_cell_f32(const uint8_t *record, size_t offset) { float v; memcpy(&v, record + offset, 4); return v; }

RI_INLINE StrRef ri_row_text(const uint8_t *record, size_t offset) {
    StrRef text = {(const char *)record + ri_load32(record + offset), (int64_t)ri_load32(record + offset + 4)};
    return text;
}

/* Bytes that a key takes behind the fixed part of a record: texts start after them. */
RI_INLINE size_t ri_row_key_room(size_t key_size) { return key_size <= RI_LRU_INLINE_KEY ? 0 : (key_size + 7) & ~(size_t)7; }

/* ---- the table ---------------------------------------------------------------------------------------------------- */

/* In the order of use, the ends being rows 0 and 1, one for each segment; `after` of a free row: the next free one. */
typedef struct {
    uint32_t before, after;
} ri_lru_links;

enum { RI_SEGMENT_PROBATION = 0, RI_SEGMENT_PROTECTED = 1 };
#define RI_LRU_NO_BLOCK UINT32_MAX

typedef struct {
    uint8_t *base;
    uint32_t units; /* 0 = not there */
    uint32_t used;
} ri_lru_chunk;

typedef struct {
    uint64_t hits, refreshes, expired, misses, inserts, updates, evictions, swept, erased, promoted, returned, crowded;
} ri_lru_counts;

typedef struct ri_lru {
    uint64_t *slots;       /* hash << 32 | block + 1; 0 = empty */
    uint64_t mask;         /* slots - 1; at least twice the rows */
    ri_lru_chunk *chunks;
    ri_lru_links *links;   /* of each row */
    uint32_t *blocks;      /* of each row, in units; RI_LRU_NO_BLOCK: free */
    uint32_t slot_shift;   /* first slot of a key = hash >> slot_shift */
    uint32_t chunk_shift;  /* units of a chunk, as a power of two */
    ri_siphash_key hash_key;
    uint32_t hash_mask;    /* all ones; tests take bits away, so that keys collide */
    uint32_t exact;        /* 1 = one list; 0 = probation and protected */
    size_t record_size;    /* fixed part of a record, a multiple of 8 */
    int64_t retention_ns;  /* a row is gone this long after it was written */
    double refresh_share;  /* of a row's life that is left when ROW_REFRESH is said; 0 = never */
    uint32_t drop_expired; /* 1 = a row is gone when it expires */
    uint32_t probation_inverse; /* probation gives way while it has more than 1 / this of the rows */
    uint32_t max_rows, n_rows, n_segment[2];
    uint32_t fresh_rows;   /* rows from here on were never used */
    uint32_t free_row;     /* first of the freed ones; 0 = none */
    uint32_t hand;         /* where the sweep goes on */
    uint32_t n_chunks, max_chunks, n_empty;
    uint8_t *seen;         /* fingerprints of keys that came lately; NULL = none */
    uint64_t n_seen;
    size_t index_bytes;    /* slots to fingerprints */
    size_t max_bytes, bytes, fixed_bytes, row_bytes; /* fixed: without a row; row_bytes: blocks in use */
    uint64_t free_classes[2];
    uint32_t free_heads[RI_LRU_CLASSES]; /* unit number + 1 */
    ri_lru_counts counts;
} ri_lru;

typedef struct {
    int64_t max_rows;
    size_t max_bytes;
    size_t record_size;
    size_t row_units;      /* expected units of a row, for the size of chunks */
    int64_t seen_per_row;  /* fingerprints; 0 = exact order */
    int64_t retention_ns;
    double refresh_share;
    int drop_expired;
    ri_siphash_key hash_key;
    uint32_t hash_mask;
} ri_lru_plan;

/* Bytes that a table of so many rows takes before it has one. */
size_t ri_lru_fixed_bytes(const ri_lru_plan *plan);
/* NULL: no memory, or a plan that makes no sense (max_bytes does not hold the fixed part and one row). */
ri_lru *ri_lru_new(const ri_lru_plan *plan);
void ri_lru_free(ri_lru *lru);

/* Units that a row takes; 0 = more than a row may. */
RI_INLINE size_t ri_lru_row_units(size_t record_size, size_t key_size, size_t text_bytes) {
    const size_t size = sizeof(ri_row_head) + record_size + ri_row_key_room(key_size) + text_bytes;
    const size_t units = (size + RI_LRU_UNIT - 1) / RI_LRU_UNIT;
    return units > RI_LRU_MAX_UNITS ? 0 : units;
}

/* How many new rows can enter without the first of them going again: all of them under exact order, else what probation holds.
 * Where bytes have made rows go, the rows that are there tell how many there is room for. */
RI_INLINE int64_t ri_lru_at_once(const ri_lru *lru) {
    const int64_t rows = lru->counts.evictions ? lru->n_rows : lru->max_rows;
    const int64_t room = lru->exact ? rows : rows / lru->probation_inverse;
    return room > 1 ? room : 1;
}

RI_INLINE uint64_t ri_lru_hash(const ri_lru *lru, const char *key, int64_t size) {
    return ri_siphash13(key, (size_t)size, lru->hash_key) & ((uint64_t)lru->hash_mask << 32 | 0xFFFFFFFFu);
}
RI_INLINE uint32_t ri_lru_hash32(uint64_t hash) { return (uint32_t)(hash >> 32); }
RI_INLINE ri_row_head *ri_lru_block(const ri_lru *lru, uint32_t block) {
    return (ri_row_head *)(void *)(lru->chunks[block >> lru->chunk_shift].base +
                                   (size_t)(block & ((1u << lru->chunk_shift) - 1)) * RI_LRU_UNIT);
}
RI_INLINE const uint8_t *ri_lru_record(const ri_row_head *head) { return (const uint8_t *)(head + 1); }
RI_INLINE const char *ri_lru_key(const ri_lru *lru, const ri_row_head *head) {
    return (const char *)(head->key_size <= RI_LRU_INLINE_KEY ? head->key : ri_lru_record(head) + lru->record_size);
}
RI_INLINE int ri_lru_gone(const ri_lru *lru, const ri_row_head *head, int64_t now_ns) {
    return (lru->drop_expired && now_ns >= head->expires_ns) || now_ns - head->written_ns >= lru->retention_ns;
}
RI_INLINE const ri_row_head *ri_lru_live_row(const ri_lru *lru, uint32_t row) {
    return row < 2 || row >= lru->fresh_rows || lru->blocks[row] == RI_LRU_NO_BLOCK ? NULL : ri_lru_block(lru, lru->blocks[row]);
}

RI_INLINE uint32_t ri_row_segment(const ri_row_head *head) { return head->flags & RI_BLOCK_PROTECTED ? RI_SEGMENT_PROTECTED : RI_SEGMENT_PROBATION; }
RI_INLINE void ri_lru_ahead(const ri_lru *lru, uint64_t hash) { RI_PREFETCH(&lru->slots[ri_lru_hash32(hash) >> lru->slot_shift]); }
/* Whether a row could be stored if it were alone. */
RI_INLINE int ri_lru_fits(const ri_lru *lru, size_t key_size, size_t text_bytes) {
    const size_t units = key_size > RI_LRU_MAX_KEY ? 0 : ri_lru_row_units(lru->record_size, key_size, text_bytes);
    return units > 0 && lru->fixed_bytes + units * RI_LRU_UNIT <= lru->max_bytes;
}

/* The record of a key, or NULL; nothing is counted or touched. */
const uint8_t *ri_lru_find(const ri_lru *lru, uint64_t hash, const char *key, int64_t size, int64_t now_ns);
/* Whether this fresh row, in use and near its expiry, is to be asked for ahead; says so once per version of the row. */
int ri_lru_ask_ahead(ri_lru *lru, const uint8_t *record, int64_t now_ns);
/* The same as one use of it. NULL with *outcome RI_ROW_UNKNOWN (`unknown`, which may be NULL, has the key) or RI_ROW_ABSENT. */
const uint8_t *ri_lru_probe(ri_lru *lru, ri_lru *unknown, uint64_t hash, const char *key, int64_t size, int64_t now_ns, int *outcome);

enum { RI_PUT_NEW = 0, RI_PUT_UPDATED = 1, RI_PUT_TOO_LARGE = -1, RI_PUT_NO_MEMORY = -2 };
/* Write a row. `record`: the fixed part, whose texts start at record_size + ri_row_key_room(size). Evicts what must go. */
int ri_lru_put(ri_lru *lru, uint64_t hash, const char *key, int64_t size, const uint8_t *record, const uint8_t *texts,
               size_t text_bytes, int64_t written_ns, int64_t expires_ns);
/* Take a key out and write zeros over what it had. 1 = it was there. */
int ri_lru_erase(ri_lru *lru, uint64_t hash, const char *key, int64_t size);
/* Look at `n` rows, in turn from call to call, and drop those that are gone. How many were dropped. */
int64_t ri_lru_sweep(ri_lru *lru, int64_t n, int64_t now_ns);
void ri_lru_clear(ri_lru *lru);
/* Row numbers from the one that goes first to the newest; `out` has room for n_rows. */
void ri_lru_order(const ri_lru *lru, uint32_t *out);
/* Put a restored row where it was: at the newest end of its segment, used before or not. */
void ri_lru_place(ri_lru *lru, const uint8_t *record, int segment, int hit);

/* Beside the kinds of table.h: a float in 4 bytes. These stand behind the cells of 8, the vectors behind them. */
enum { RI_COLUMN_F32 = 4 };

/* ---- gathering ---------------------------------------------------------------------------------------------------- */

typedef struct {
    int32_t kind; /* RI_COLUMN_*, no texts */
    int32_t bit;
    size_t offset;
    int64_t width; /* floats that it gives; a run of neighbouring numbers of one kind is one column of several */
    int64_t ttl_ns; /* of its own; 0 = none */
    uint64_t mask; /* of its bits in their validity word, for a run that lies in one word; 0 = look at each */
} ri_lru_column;

typedef struct {
    const ri_lru_column *columns;
    int64_t n_columns;
    int64_t width;     /* floats of a row */
    size_t last_byte;  /* of a block that is read */
    double jitter;
    int absent;        /* outcome of a key of which nothing is known */
} ri_lru_reader;

/* Rows of many keys into `out`, NaN where nothing is; ages in seconds of wall_ns, NaN where not known, and outcomes (RI_PRESENT
 * and so on, feature_ops.h). One use of each, in order. `unknown` may be NULL, `ages` and `outcomes` too. */
void ri_lru_gather(ri_lru *lru, ri_lru *unknown, const ri_lru_reader *reader, const StrRef *keys, const uint64_t *hashes, int64_t n,
                   int64_t now_ns, int64_t wall_ns, float *out, double *ages, uint8_t *outcomes);

/* ---- tests -------------------------------------------------------------------------------------------------------- */

/* Count everything again. 0, or the line of lru_table.c that found a difference. */
int ri_lru_check(const ri_lru *lru);

#endif
