/* The mutable table: blocks, index, order of use, gathering. The rules and layouts are in lru_table.h. */
#if !defined(_WIN32) && !defined(_DEFAULT_SOURCE)
#define _DEFAULT_SOURCE /* madvise */
#endif

#include "lru_table.h"

#include <stdlib.h>

#include "feature_ops.h"
#include "memory.h"

#define NO_BLOCK RI_LRU_NO_BLOCK
#define MIN_CHUNK 64u    /* units: 4 KiB */
#define MAX_CHUNK 32768u /* units: 2 MiB, a huge page */
#define CHUNKS_WANTED 4  /* of a full table at least: rows of another size find room when one of them is empty */

/* ---- free blocks, by size ------------------------------------------------------------------------------------------ */

/* Sizes up to 16 units have a class each; above, eight classes for every doubling. */
RI_INLINE uint32_t size_class(uint32_t units) {
    if (units <= 16)
        return units - 1;
    uint32_t power = 4;
    while (units >> (power + 1))
        ++power;
    return 16 + (power - 4) * 8 + ((units >> (power - 3)) & 7);
}

RI_INLINE int lowest_bit(uint64_t bits) {
#if defined(__GNUC__) || defined(__clang__)
    return __builtin_ctzll(bits);
#else
    int at = 0;
    for (; !(bits & 1); bits >>= 1)
        ++at;
    return at;
#endif
}

static void list_free(ri_lru *lru, uint32_t block) {
    ri_row_head *head = ri_lru_block(lru, block);
    const uint32_t c = size_class(head->units), first = lru->free_heads[c];
    head->flags = RI_BLOCK_FREE;
    head->hash = 0;
    head->row = first;
    if (first)
        ri_lru_block(lru, first - 1)->hash = block + 1;
    lru->free_heads[c] = block + 1;
    lru->free_classes[c >> 6] |= 1ULL << (c & 63);
}

static void unlist_free(ri_lru *lru, uint32_t block) {
    const ri_row_head *head = ri_lru_block(lru, block);
    const uint32_t c = size_class(head->units);
    if (head->row)
        ri_lru_block(lru, head->row - 1)->hash = head->hash;
    if (head->hash) {
        ri_lru_block(lru, head->hash - 1)->row = head->row;
        return;
    }
    lru->free_heads[c] = head->row;
    if (head->row == 0)
        lru->free_classes[c >> 6] &= ~(1ULL << (c & 63));
}

/* The block behind, or NO_BLOCK at the end of the chunk. */
RI_INLINE uint32_t block_after(const ri_lru *lru, uint32_t block, uint32_t units) {
    const uint32_t at = (block & ((1u << lru->chunk_shift) - 1)) + units;
    return at >= lru->chunks[block >> lru->chunk_shift].units ? NO_BLOCK : block + units;
}

static void drop_chunk(ri_lru *lru, uint32_t number) {
    ri_lru_chunk *chunk = &lru->chunks[number];
    ri_pages_free(chunk->base, (size_t)chunk->units * RI_LRU_UNIT);
    lru->bytes -= (size_t)chunk->units * RI_LRU_UNIT;
    memset(chunk, 0, sizeof(*chunk));
    --lru->n_chunks;
}

/* Empty chunks but `keep` of them go back to the system. */
static void drop_empty_chunks(ri_lru *lru, uint32_t keep) {
    for (uint32_t i = 0; i < lru->max_chunks && lru->n_empty > keep; ++i)
        if (lru->chunks[i].units && lru->chunks[i].used == 0) {
            unlist_free(lru, i << lru->chunk_shift);
            drop_chunk(lru, i);
            --lru->n_empty;
        }
}

/* A chunk that holds `units`, all of it one free block. 1 = there is one more; 0 = the cap; -1 = no memory. */
static int add_chunk(ri_lru *lru, uint32_t units) {
    const size_t usual = (size_t)1 << lru->chunk_shift;
    size_t room = lru->max_bytes > lru->bytes ? (lru->max_bytes - lru->bytes) / RI_LRU_UNIT : 0;
    size_t size = units > usual ? units : usual < room ? usual : room & ~(size_t)63;
    uint32_t number = 0;
    if (size < units)
        size = units; /* the last pages of the cap */
    if (size > room)
        return 0;
    while (number < lru->max_chunks && lru->chunks[number].units)
        ++number;
    if (number == lru->max_chunks)
        return 0;
    uint8_t *base = (uint8_t *)ri_pages_new(size * RI_LRU_UNIT);
    if (base == NULL)
        return -1;
    lru->chunks[number].base = base;
    lru->chunks[number].units = (uint32_t)size;
    lru->chunks[number].used = 0;
    lru->bytes += size * RI_LRU_UNIT;
    ++lru->n_chunks;
    ++lru->n_empty;
    ri_row_head *head = (ri_row_head *)(void *)base;
    memset(head, 0, sizeof(*head));
    head->units = (uint16_t)size;
    list_free(lru, number << lru->chunk_shift);
    return 1;
}

/* A listed block of at least `units`, or NO_BLOCK. */
static uint32_t find_free(const ri_lru *lru, uint32_t units) {
    uint32_t c = size_class(units);
    if (units > 16) { /* blocks of one class differ: the first few may be large enough */
        uint32_t block = lru->free_heads[c];
        for (int i = 0; i < 8 && block; ++i) {
            const ri_row_head *head = ri_lru_block(lru, block - 1);
            if (head->units >= units)
                return block - 1;
            block = head->row;
        }
        ++c;
    }
    for (uint32_t word = c >> 6; word < 2; ++word) {
        uint64_t bits = lru->free_classes[word];
        if (word == c >> 6)
            bits &= ~0ULL << (c & 63);
        if (bits)
            return lru->free_heads[(word << 6) + (uint32_t)lowest_bit(bits)] - 1;
    }
    return NO_BLOCK;
}

/* Take a listed block, give back what is over. */
static uint32_t take_block(ri_lru *lru, uint32_t block, uint32_t units) {
    ri_row_head *head = ri_lru_block(lru, block);
    ri_lru_chunk *chunk = &lru->chunks[block >> lru->chunk_shift];
    unlist_free(lru, block);
    const uint32_t over = head->units - units;
    if (over > 0) {
        const uint32_t behind = block_after(lru, block, head->units);
        ri_row_head *rest = ri_lru_block(lru, block + units);
        memset(rest, 0, sizeof(*rest));
        rest->units = (uint16_t)over;
        rest->units_before = (uint16_t)units;
        if (behind != NO_BLOCK)
            ri_lru_block(lru, behind)->units_before = (uint16_t)over;
        list_free(lru, block + units);
        head->units = (uint16_t)units;
    }
    head->flags = 0;
    if (chunk->used == 0)
        --lru->n_empty;
    chunk->used += units;
    lru->row_bytes += (size_t)units * RI_LRU_UNIT;
    return block;
}

static void free_block(ri_lru *lru, uint32_t block) {
    ri_row_head *head = ri_lru_block(lru, block);
    ri_lru_chunk *chunk = &lru->chunks[block >> lru->chunk_shift];
    uint32_t units = head->units, behind = block_after(lru, block, units);
    chunk->used -= units;
    lru->row_bytes -= (size_t)units * RI_LRU_UNIT;
    if (behind != NO_BLOCK && ri_lru_block(lru, behind)->flags & RI_BLOCK_FREE) {
        unlist_free(lru, behind);
        units += ri_lru_block(lru, behind)->units;
    }
    if (head->units_before) {
        const uint32_t before = block - head->units_before;
        if (ri_lru_block(lru, before)->flags & RI_BLOCK_FREE) {
            unlist_free(lru, before);
            units += ri_lru_block(lru, before)->units;
            block = before;
        }
    }
    head = ri_lru_block(lru, block);
    head->units = (uint16_t)units;
    behind = block_after(lru, block, units);
    if (behind != NO_BLOCK)
        ri_lru_block(lru, behind)->units_before = (uint16_t)units;
    list_free(lru, block);
    if (chunk->used == 0) {
        ++lru->n_empty;
        if (lru->n_empty > 1 || chunk->units > 1u << lru->chunk_shift) { /* one is kept, so that a row at the edge costs nothing */
            unlist_free(lru, block);
            drop_chunk(lru, block >> lru->chunk_shift);
            --lru->n_empty;
        }
    }
}

/* ---- the index ------------------------------------------------------------------------------------------------------ */

RI_INLINE void pack_key(const uint8_t *p, size_t size, uint64_t *w0, uint64_t *w1) {
    if (size >= 8) {
        *w0 = ri_load64(p);
        *w1 = size == 16 ? ri_load64(p + 8) : size > 8 ? ri_load64(p + size - 8) >> (8 * (16 - size)) : 0;
    } else {
        *w0 = ri_load_tail(p, size);
        *w1 = 0;
    }
}

RI_INLINE int key_equals(const ri_lru *lru, const ri_row_head *head, const uint8_t *key, size_t size) {
    if (head->key_size != size)
        return 0;
    if (RI_LIKELY(size <= RI_LRU_INLINE_KEY)) {
        uint64_t w0, w1;
        pack_key(key, size, &w0, &w1);
        return ri_load64(head->key) == w0 && ri_load64(head->key + 8) == w1;
    }
    return memcmp(ri_lru_key(lru, head), key, size) == 0;
}

RI_INLINE uint64_t first_slot(const ri_lru *lru, uint32_t hash) { return hash >> lru->slot_shift; }
RI_INLINE uint64_t probe_limit(const ri_lru *lru) { return lru->mask < RI_LRU_PROBES ? lru->mask : RI_LRU_PROBES; }

/* Slot of a key, or -1. */
static int64_t find_slot(const ri_lru *lru, uint32_t hash, const uint8_t *key, size_t size) {
    uint64_t at = first_slot(lru, hash);
    for (uint64_t left = probe_limit(lru); left > 0; --left, at = (at + 1) & lru->mask) {
        const uint64_t slot = lru->slots[at];
        if (slot == 0)
            return -1;
        if (slot >> 32 == hash && key_equals(lru, ri_lru_block(lru, (uint32_t)slot - 1), key, size))
            return (int64_t)at;
    }
    return -1;
}

/* Slot that points to a block with this hash; -1 would be a broken table. */
static int64_t slot_of_block(const ri_lru *lru, uint32_t hash, uint32_t block) {
    const uint64_t wanted = (uint64_t)hash << 32 | (block + 1);
    uint64_t at = first_slot(lru, hash);
    for (uint64_t left = probe_limit(lru); left > 0; --left, at = (at + 1) & lru->mask)
        if (lru->slots[at] == wanted)
            return (int64_t)at;
    return -1;
}

/* Empty a slot and move those behind it forward, so that no probe stops short. */
static void clear_slot(ri_lru *lru, uint64_t hole) {
    for (uint64_t at = (hole + 1) & lru->mask; lru->slots[at] != 0; at = (at + 1) & lru->mask) {
        const uint64_t home = first_slot(lru, (uint32_t)(lru->slots[at] >> 32));
        if (((at - home) & lru->mask) >= ((at - hole) & lru->mask)) {
            lru->slots[hole] = lru->slots[at];
            hole = at;
        }
    }
    lru->slots[hole] = 0;
}

/* ---- the order of use -------------------------------------------------------------------------------------------------- */

RI_INLINE void unlink_row(ri_lru *lru, uint32_t row) {
    const ri_lru_links *links = &lru->links[row];
    lru->links[links->before].after = links->after;
    lru->links[links->after].before = links->before;
}

/* To the newest end of a segment, whose number is that of its end. */
RI_INLINE void link_row(ri_lru *lru, uint32_t row, uint32_t segment) {
    ri_lru_links *links = &lru->links[row], *end = &lru->links[segment];
    links->before = segment;
    links->after = end->after;
    lru->links[end->after].before = row;
    end->after = row;
}

/* One use of a row: to the front, and out of probation. */
RI_INLINE void touch_row(ri_lru *lru, ri_row_head *head) {
    const uint32_t row = head->row;
    if (RI_UNLIKELY(!(head->flags & RI_BLOCK_PROTECTED))) {
        head->flags |= RI_BLOCK_PROTECTED;
        --lru->n_segment[RI_SEGMENT_PROBATION];
        ++lru->n_segment[RI_SEGMENT_PROTECTED];
        ++lru->counts.promoted;
    } else if (lru->links[row].before == RI_SEGMENT_PROTECTED) {
        return;
    }
    unlink_row(lru, row);
    link_row(lru, row, RI_SEGMENT_PROTECTED);
}

/* Out of the list, the block freed, the number free again; its slot is somebody else's business. */
static void drop_row(ri_lru *lru, uint32_t row) {
    const uint32_t block = lru->blocks[row];
    unlink_row(lru, row);
    --lru->n_segment[ri_row_segment(ri_lru_block(lru, block))];
    free_block(lru, block);
    lru->blocks[row] = NO_BLOCK;
    lru->links[row].before = 0;
    lru->links[row].after = lru->free_row;
    lru->free_row = row;
    --lru->n_rows;
}

static void remove_row(ri_lru *lru, uint32_t row) {
    const uint32_t block = lru->blocks[row];
    const int64_t slot = slot_of_block(lru, ri_lru_block(lru, block)->hash, block);
    if (RI_LIKELY(slot >= 0))
        clear_slot(lru, (uint64_t)slot);
    drop_row(lru, row);
}

/* The row that has to go: the oldest on probation while these are more than their share, else the oldest protected one. */
static void evict_row(ri_lru *lru) {
    const uint32_t waiting = lru->n_segment[RI_SEGMENT_PROBATION];
    const int probation = waiting > 0 && ((uint64_t)waiting * lru->probation_inverse > lru->n_rows || lru->n_segment[RI_SEGMENT_PROTECTED] == 0);
    remove_row(lru, lru->links[probation ? RI_SEGMENT_PROBATION : RI_SEGMENT_PROTECTED].before);
    ++lru->counts.evictions;
}

/* ---- keys seen lately -------------------------------------------------------------------------------------------------- */

/* Fingerprints have 12 bits, two in three bytes. Of 10 M keys, nine in ten never to return, 8 bits let so many of these through
 * that a small hot set suffered; 16 bits remember fewer keys in the same memory, which a large one feels. */
RI_INLINE uint16_t fingerprint(uint64_t hash) {
    const uint16_t print = (uint16_t)(hash >> 32) & 0xFFF;
    return print ? print : 1; /* 0 = nothing here */
}

RI_INLINE size_t seen_bytes(uint64_t n_seen) { return n_seen ? (size_t)(n_seen * 3 / 2 + 2) : 0; }

/* Whether a key came lately; puts `print` in the place of what is there. */
RI_INLINE int exchange_seen(ri_lru *lru, uint64_t hash, uint16_t print) {
    const uint64_t at = ((hash & 0xFFFFFFFFu) * lru->n_seen) >> 32;
    const int shift = (at & 1) * 4;
    uint8_t *cell = lru->seen + at * 3 / 2;
    uint16_t pair;
    memcpy(&pair, cell, 2);
    const int found = ((pair >> shift) & 0xFFF) == fingerprint(hash);
    if (print || found) {
        pair = (uint16_t)((pair & ~(0xFFF << shift)) | (print << shift));
        memcpy(cell, &pair, 2);
    }
    return found;
}

/* ---- making and freeing ------------------------------------------------------------------------------------------------- */

static uint64_t slots_for(int64_t max_rows) {
    uint64_t slots = 16;
    while (slots < 2 * (uint64_t)max_rows)
        slots *= 2;
    return slots;
}

static uint64_t seen_for(const ri_lru_plan *plan) {
    const uint64_t wanted = plan->seen_per_row > 0 ? (uint64_t)plan->max_rows * (uint64_t)plan->seen_per_row : 0;
    return wanted < (uint64_t)1 << 31 ? wanted : (uint64_t)1 << 31;
}

RI_INLINE size_t whole_lines(size_t size) { return (size + RI_LINE - 1) & ~(size_t)(RI_LINE - 1); }

/* Slots, links, blocks and fingerprints lie in one piece of memory, in this order, for the sake of huge pages. */
static size_t index_bytes(const ri_lru_plan *plan) {
    const size_t rows = (size_t)plan->max_rows + 2;
    return (size_t)slots_for(plan->max_rows) * 8 + whole_lines(rows * sizeof(ri_lru_links)) + whole_lines(rows * 4) +
           whole_lines(seen_bytes(seen_for(plan)));
}

size_t ri_lru_fixed_bytes(const ri_lru_plan *plan) {
    return whole_lines(sizeof(ri_lru)) + index_bytes(plan);
}

static void empty_lists(ri_lru *lru) {
    lru->links[0].before = lru->links[0].after = 0;
    lru->links[1].before = lru->links[1].after = 1;
    lru->blocks[0] = lru->blocks[1] = NO_BLOCK;
    lru->fresh_rows = lru->hand = 2;
    lru->free_row = 0;
    lru->n_rows = lru->n_segment[0] = lru->n_segment[1] = 0;
}

ri_lru *ri_lru_new(const ri_lru_plan *plan) {
    if (plan->max_rows < 1 || plan->max_rows > (1 << 30) || plan->row_units < 1 || plan->row_units > RI_LRU_MAX_UNITS ||
        plan->record_size % 8 != 0)
        return NULL;
    size_t fixed = ri_lru_fixed_bytes(plan);
    if (plan->max_bytes < fixed + plan->row_units * RI_LRU_UNIT)
        return NULL;
    size_t units = (plan->max_bytes - fixed) / RI_LRU_UNIT, usual = MIN_CHUNK;
    while (usual < MAX_CHUNK && usual * 2 * CHUNKS_WANTED <= units)
        usual *= 2;
    while (usual < 32768u && usual < 4 * plan->row_units) /* a chunk of its own is for the rare large row */
        usual *= 2;
    ri_lru *lru = (ri_lru *)ri_pages_new(sizeof(ri_lru));
    if (lru == NULL)
        return NULL;
    while ((size_t)1 << lru->chunk_shift < usual)
        ++lru->chunk_shift;
    /* chunks of less than half the usual size are the last one alone: more of them than this cannot be */
    const uint64_t max_chunks = 2 * (units / usual) + 4;
    const uint64_t n_slots = slots_for(plan->max_rows);
    while (n_slots << lru->slot_shift < (uint64_t)1 << 32)
        ++lru->slot_shift;
    lru->mask = n_slots - 1;
    lru->hash_key = plan->hash_key;
    lru->hash_mask = plan->hash_mask;
    lru->exact = plan->seen_per_row <= 0;
    lru->record_size = plan->record_size;
    lru->retention_ns = plan->retention_ns > 0 ? plan->retention_ns : INT64_MAX;
    lru->refresh_share = plan->refresh_share;
    lru->drop_expired = (uint32_t)(plan->drop_expired != 0);
    lru->probation_inverse = 16;
    lru->max_rows = (uint32_t)plan->max_rows;
    lru->max_chunks = (uint32_t)max_chunks;
    lru->max_bytes = plan->max_bytes;
    lru->n_seen = seen_for(plan);
    lru->index_bytes = index_bytes(plan);
    lru->slots = (uint64_t *)ri_pages_new(lru->index_bytes);
    lru->chunks = (ri_lru_chunk *)ri_pages_new((size_t)max_chunks * sizeof(ri_lru_chunk));
    lru->fixed_bytes = fixed + whole_lines((size_t)max_chunks * sizeof(ri_lru_chunk));
    lru->bytes = lru->fixed_bytes;
    if (lru->slots == NULL || lru->chunks == NULL || lru->bytes + plan->row_units * RI_LRU_UNIT > lru->max_bytes) {
        ri_lru_free(lru);
        return NULL;
    }
    uint8_t *behind = (uint8_t *)(lru->slots + n_slots);
    lru->links = (ri_lru_links *)(void *)behind;
    behind += whole_lines(((size_t)plan->max_rows + 2) * sizeof(ri_lru_links));
    lru->blocks = (uint32_t *)(void *)behind;
    behind += whole_lines(((size_t)plan->max_rows + 2) * 4);
    lru->seen = lru->n_seen ? behind : NULL;
    empty_lists(lru);
    return lru;
}

void ri_lru_free(ri_lru *lru) {
    if (lru == NULL)
        return;
    if (lru->chunks)
        for (uint32_t i = 0; i < lru->max_chunks; ++i)
            if (lru->chunks[i].units)
                ri_pages_free(lru->chunks[i].base, (size_t)lru->chunks[i].units * RI_LRU_UNIT);
    ri_pages_free(lru->chunks, (size_t)lru->max_chunks * sizeof(ri_lru_chunk));
    ri_pages_free(lru->slots, lru->index_bytes);
    ri_pages_free(lru, sizeof(ri_lru));
}

void ri_lru_clear(ri_lru *lru) {
    for (uint32_t i = 0; i < lru->max_chunks; ++i)
        if (lru->chunks[i].units)
            drop_chunk(lru, i);
    memset(lru->slots, 0, ((size_t)lru->mask + 1) * 8);
    if (lru->seen)
        memset(lru->seen, 0, seen_bytes(lru->n_seen));
    memset(lru->free_heads, 0, sizeof(lru->free_heads));
    memset(lru->free_classes, 0, sizeof(lru->free_classes));
    lru->n_empty = 0;
    lru->row_bytes = 0;
    empty_lists(lru);
}

/* ---- looking up ---------------------------------------------------------------------------------------------------------- */

const uint8_t *ri_lru_find(const ri_lru *lru, uint64_t hash, const char *key, int64_t size, int64_t now_ns) {
    if (lru->n_rows == 0 || size > RI_LRU_MAX_KEY)
        return NULL;
    const int64_t slot = find_slot(lru, ri_lru_hash32(hash), (const uint8_t *)key, (size_t)size);
    if (slot < 0)
        return NULL;
    const ri_row_head *head = ri_lru_block(lru, (uint32_t)lru->slots[slot] - 1);
    return ri_lru_gone(lru, head, now_ns) ? NULL : ri_lru_record(head);
}

/* How long before its expiry a row is refreshed. */
RI_INLINE int64_t refresh_window(const ri_lru *lru, const ri_row_head *head) {
    return (int64_t)((double)(head->expires_ns - head->written_ns) * lru->refresh_share);
}

int ri_lru_ask_ahead(ri_lru *lru, const uint8_t *record, int64_t now_ns) {
    ri_row_head *head = (ri_row_head *)(void *)(uintptr_t)(record - sizeof(ri_row_head));
    if (lru->refresh_share <= 0 || head->expires_ns == RI_LRU_NEVER || (head->flags & (RI_BLOCK_HIT | RI_BLOCK_ASKED)) != RI_BLOCK_HIT ||
        now_ns < head->expires_ns - refresh_window(lru, head))
        return 0;
    head->flags |= RI_BLOCK_ASKED;
    ++lru->counts.refreshes;
    return 1;
}

/* A use of a row that is there and not gone. */
RI_INLINE int use_row(ri_lru *lru, ri_row_head *head, int64_t now_ns) {
    int outcome = RI_ROW_FRESH;
    touch_row(lru, head);
    if (RI_UNLIKELY(now_ns >= head->expires_ns)) {
        ++lru->counts.expired;
        return RI_ROW_EXPIRED;
    }
    ++lru->counts.hits;
    if (RI_UNLIKELY(lru->refresh_share > 0) && ri_lru_ask_ahead(lru, ri_lru_record(head), now_ns))
        outcome = RI_ROW_REFRESH;
    if (RI_UNLIKELY(!(head->flags & RI_BLOCK_HIT)))
        head->flags |= RI_BLOCK_HIT;
    return outcome;
}

const uint8_t *ri_lru_probe(ri_lru *lru, ri_lru *unknown, uint64_t hash, const char *key, int64_t size, int64_t now_ns,
                            int *outcome) {
    const uint8_t *record = ri_lru_find(lru, hash, key, size, now_ns);
    if (RI_LIKELY(record != NULL)) {
        *outcome = use_row(lru, (ri_row_head *)(void *)(uintptr_t)(record - sizeof(ri_row_head)), now_ns);
        return record;
    }
    record = unknown ? ri_lru_find(unknown, hash, key, size, now_ns) : NULL;
    if (record) {
        (void)use_row(unknown, (ri_row_head *)(void *)(uintptr_t)(record - sizeof(ri_row_head)), now_ns);
        *outcome = RI_ROW_UNKNOWN;
    } else {
        ++lru->counts.misses;
        *outcome = RI_ROW_ABSENT;
    }
    return NULL;
}

/* ---- writing --------------------------------------------------------------------------------------------------------------- */

static void write_block(const ri_lru *lru, uint32_t block, uint32_t row, uint64_t hash, const char *key, size_t size,
                        const uint8_t *record, const uint8_t *texts, size_t text_bytes, int64_t written_ns, int64_t expires_ns) {
    ri_row_head *head = ri_lru_block(lru, block);
    uint8_t *out = (uint8_t *)(head + 1);
    const size_t room = ri_row_key_room(size);
    uint64_t w0 = 0, w1 = 0;
    head->expires_ns = expires_ns;
    head->written_ns = written_ns;
    head->row = row;
    head->hash = ri_lru_hash32(hash);
    head->key_size = (uint16_t)size;
    if (size <= RI_LRU_INLINE_KEY)
        pack_key((const uint8_t *)key, size, &w0, &w1);
    memcpy(head->key, &w0, 8);
    memcpy(head->key + 8, &w1, 8);
    if (lru->record_size)
        memcpy(out, record, lru->record_size);
    out += lru->record_size;
    if (room) {
        memset(out + room - 8, 0, 8);
        memcpy(out, key, size);
        out += room;
    }
    if (text_bytes)
        memcpy(out, texts, text_bytes);
    out += text_bytes;
    const size_t left = (size_t)((uint8_t *)head + (size_t)head->units * RI_LRU_UNIT - out);
    if (left)
        memset(out, 0, left); /* nothing of the row that was here before */
}

/* A block of `units`, evicting until there is one; NO_BLOCK: no memory, even for one row. */
static uint32_t make_room(ri_lru *lru, uint32_t units) {
    int no_memory = 0;
    for (;;) {
        const uint32_t block = find_free(lru, units);
        if (block != NO_BLOCK)
            return take_block(lru, block, units);
        const int added = no_memory ? 0 : add_chunk(lru, units);
        if (added > 0)
            continue;
        no_memory |= added < 0;
        if (lru->n_empty > 0) { /* too small each, or the cap is near: their room may do as one */
            drop_empty_chunks(lru, 0);
            continue;
        }
        if (lru->n_rows == 0)
            return NO_BLOCK;
        evict_row(lru);
    }
}

int ri_lru_put(ri_lru *lru, uint64_t hash, const char *key, int64_t size, const uint8_t *record, const uint8_t *texts,
               size_t text_bytes, int64_t written_ns, int64_t expires_ns) {
    const uint32_t hash32 = ri_lru_hash32(hash);
    if (!ri_lru_fits(lru, (size_t)size, text_bytes))
        return RI_PUT_TOO_LARGE;
    const uint32_t units = (uint32_t)ri_lru_row_units(lru->record_size, (size_t)size, text_bytes);
    uint32_t segment = lru->exact ? RI_SEGMENT_PROTECTED : RI_SEGMENT_PROBATION;
    uint16_t kept = 0; /* of the row's flags */
    int updated = RI_PUT_NEW;
    const int64_t found = find_slot(lru, hash32, (const uint8_t *)key, (size_t)size);
    if (found >= 0) {
        const uint32_t block = (uint32_t)lru->slots[found] - 1;
        ri_row_head *head = ri_lru_block(lru, block);
        const uint32_t row = head->row;
        updated = RI_PUT_UPDATED;
        segment = ri_row_segment(head);
        kept = head->flags & (RI_BLOCK_HIT | RI_BLOCK_PROTECTED);
        if (head->units == units) { /* nobody reads while we hold the GIL: the record is replaced whole where it stands */
            write_block(lru, block, row, hash, key, (size_t)size, record, texts, text_bytes, written_ns, expires_ns);
            head->flags = kept;
            unlink_row(lru, row);
            link_row(lru, row, segment);
            ++lru->counts.updates;
            return updated;
        }
        clear_slot(lru, (uint64_t)found);
        drop_row(lru, row);
    } else if (!lru->exact) {
        if (exchange_seen(lru, hash, fingerprint(hash))) {
            segment = RI_SEGMENT_PROTECTED;
            ++lru->counts.returned;
        }
    }
    while (lru->n_rows >= lru->max_rows)
        evict_row(lru);
    const uint32_t block = make_room(lru, units);
    if (block == NO_BLOCK)
        return RI_PUT_NO_MEMORY;
    uint32_t row = lru->free_row;
    if (row)
        lru->free_row = lru->links[row].after;
    else
        row = lru->fresh_rows++;
    write_block(lru, block, row, hash, key, (size_t)size, record, texts, text_bytes, written_ns, expires_ns);
    ri_lru_block(lru, block)->flags = (uint16_t)(kept | (segment == RI_SEGMENT_PROTECTED ? RI_BLOCK_PROTECTED : 0));
    lru->blocks[row] = block;
    link_row(lru, row, segment);
    ++lru->n_segment[segment];
    ++lru->n_rows;
    uint64_t at = first_slot(lru, hash32);
    uint64_t left = probe_limit(lru);
    for (; lru->slots[at] != 0 && --left > 0;)
        at = (at + 1) & lru->mask;
    if (RI_UNLIKELY(lru->slots[at] != 0)) { /* as many keys with one hash: the last one of them makes room */
        const uint32_t other = ri_lru_block(lru, (uint32_t)lru->slots[at] - 1)->row;
        lru->slots[at] = (uint64_t)hash32 << 32 | (block + 1);
        drop_row(lru, other);
        ++lru->counts.evictions;
        ++lru->counts.crowded;
    } else {
        lru->slots[at] = (uint64_t)hash32 << 32 | (block + 1);
    }
    if (updated)
        ++lru->counts.updates;
    else
        ++lru->counts.inserts;
    return updated;
}

int ri_lru_erase(ri_lru *lru, uint64_t hash, const char *key, int64_t size) {
    if (size > RI_LRU_MAX_KEY)
        return 0;
    if (lru->seen)
        (void)exchange_seen(lru, hash, 0);
    const int64_t slot = find_slot(lru, ri_lru_hash32(hash), (const uint8_t *)key, (size_t)size);
    if (slot < 0)
        return 0;
    ri_row_head *head = ri_lru_block(lru, (uint32_t)lru->slots[slot] - 1);
    const uint32_t row = head->row;
    clear_slot(lru, (uint64_t)slot);
    memset(head + 1, 0, (size_t)head->units * RI_LRU_UNIT - sizeof(*head));
    memset(head->key, 0, sizeof(head->key));
    drop_row(lru, row);
    ++lru->counts.erased;
    return 1;
}

int64_t ri_lru_sweep(ri_lru *lru, int64_t n, int64_t now_ns) {
    int64_t dropped = 0;
    if (!lru->drop_expired && lru->retention_ns == INT64_MAX)
        return 0;
    if (n > (int64_t)lru->fresh_rows - 2)
        n = (int64_t)lru->fresh_rows - 2;
    for (; n > 0; --n) {
        if (lru->hand >= lru->fresh_rows)
            lru->hand = 2;
        const uint32_t row = lru->hand++;
        const ri_row_head *head = ri_lru_live_row(lru, row);
        if (head && ri_lru_gone(lru, head, now_ns)) {
            remove_row(lru, row);
            ++dropped;
        }
    }
    lru->counts.swept += (uint64_t)dropped;
    return dropped;
}

void ri_lru_order(const ri_lru *lru, uint32_t *out) {
    for (uint32_t segment = 0; segment < 2; ++segment)
        for (uint32_t row = lru->links[segment].before; row != segment; row = lru->links[row].before)
            *out++ = row;
}

void ri_lru_place(ri_lru *lru, const uint8_t *record, int segment, int hit) {
    ri_row_head *head = (ri_row_head *)(void *)(uintptr_t)(record - sizeof(ri_row_head));
    const uint32_t wanted = lru->exact || segment ? RI_SEGMENT_PROTECTED : RI_SEGMENT_PROBATION;
    unlink_row(lru, head->row);
    --lru->n_segment[ri_row_segment(head)];
    ++lru->n_segment[wanted];
    link_row(lru, head->row, wanted);
    head->flags = (uint16_t)((hit ? RI_BLOCK_HIT : 0) | (wanted == RI_SEGMENT_PROTECTED ? RI_BLOCK_PROTECTED : 0));
}

/* ---- gathering --------------------------------------------------------------------------------------------------------------- */

RI_INLINE void put_nans(float *out, int64_t n) {
    const uint32_t nan_bits = 0x7FC00000u; /* one NaN, whatever the compiler's own looks like */
    for (int64_t k = 0; k < n; ++k)
        memcpy(out + k, &nan_bits, 4);
}

RI_INLINE float read_number(const uint8_t *record, const ri_lru_column *column, int64_t k) {
    switch (column->kind) {
    case RI_COLUMN_F32:
        return ri_cell_f32(record, column->offset + 4 * (size_t)k);
    case RI_COLUMN_F64:
        return (float)ri_cell_f64(record, column->offset + 8 * (size_t)k);
    default:
        return (float)(double)ri_cell_i64(record, column->offset + 8 * (size_t)k);
    }
}

/* The cells of a record as floats. Returns how many are there. */
static int64_t read_record(const ri_lru_reader *reader, const uint8_t *record, float *out) {
    const ri_lru_column *column = reader->columns, *const end = column + reader->n_columns;
    int64_t there = 0;
    for (; column != end; out += column->width, ++column) {
        const uint64_t bits = ri_load64(record + 8 + 8 * (column->bit >> 6));
        if (RI_LIKELY((bits & column->mask) == column->mask)) {
            there += column->width;
            if (column->kind == RI_COLUMN_VEC || column->kind == RI_COLUMN_F32) {
                ri_copy_row((uint8_t *)out, record + column->offset, 4 * (size_t)column->width);
            } else if (column->kind == RI_COLUMN_F64) {
                const double *cells = (const double *)(const void *)(record + column->offset);
                for (int64_t k = 0; k < column->width; ++k)
                    out[k] = (float)cells[k];
            } else {
                for (int64_t k = 0; k < column->width; ++k)
                    out[k] = read_number(record, column, k);
            }
        } else if (column->kind == RI_COLUMN_VEC) {
            put_nans(out, column->width);
        } else {
            for (int64_t k = 0; k < column->width; ++k) {
                if (bits >> ((column->bit & 63) + k) & 1) {
                    out[k] = read_number(record, column, k);
                    ++there;
                } else {
                    put_nans(out + k, 1);
                }
            }
        }
    }
    return there;
}

RI_INLINE int any_cell_expired(const ri_lru_reader *reader, const uint8_t *record, int64_t now_ns) {
    for (int64_t c = 0; c < reader->n_columns; ++c) {
        const ri_lru_column *column = &reader->columns[c];
        if (column->ttl_ns > 0 && now_ns >= ri_row_cell_expires_ns(record, column->ttl_ns, reader->jitter))
            return 1;
    }
    return 0;
}

/* Keys in flight. Each stage reads what the one before asked for: the slot, the block, the row's links, the neighbours. */
#define AHEAD_BLOCK 12
#define AHEAD_LINKS 8
#define AHEAD_NEIGHBOURS 4
#define LINES_AHEAD 8
#define RING 16 /* a power of two above AHEAD_BLOCK */

/* The block that the first fitting slot of a key points to, + 1; 0 = none. Most often that is it. */
RI_INLINE uint32_t likely_block(const ri_lru *lru, uint32_t hash) {
    uint64_t at = first_slot(lru, hash);
    for (uint64_t left = probe_limit(lru); left > 0; --left, at = (at + 1) & lru->mask) {
        const uint64_t slot = lru->slots[at];
        if (slot == 0)
            return 0;
        if (slot >> 32 == hash)
            return (uint32_t)slot;
    }
    return 0;
}

void ri_lru_gather(ri_lru *lru, ri_lru *unknown, const ri_lru_reader *reader, const StrRef *keys, const uint64_t *hashes, int64_t n,
                   int64_t now_ns, int64_t wall_ns, float *out, double *ages, uint8_t *outcomes) {
    uint32_t blocks[RING]; /* of keys in flight, + 1 */
    const int64_t first = -AHEAD_BLOCK;
    for (int64_t i = first; i < n; ++i) {
        if (i + AHEAD_BLOCK < n) {
            const int64_t j = i + AHEAD_BLOCK;
            const uint32_t block = likely_block(lru, ri_lru_hash32(hashes[j]));
            blocks[j & (RING - 1)] = block;
            if (RI_LIKELY(block != 0)) {
                const uint8_t *line = (const uint8_t *)ri_lru_block(lru, block - 1);
                for (size_t k = 0; k <= reader->last_byte && k < LINES_AHEAD * RI_LINE; k += RI_LINE)
                    RI_PREFETCH(line + k);
            }
        }
        if (i + AHEAD_LINKS >= 0 && i + AHEAD_LINKS < n) {
            const uint32_t block = blocks[(i + AHEAD_LINKS) & (RING - 1)];
            if (RI_LIKELY(block != 0))
                RI_PREFETCH(&lru->links[ri_lru_block(lru, block - 1)->row]);
        }
        if (i + AHEAD_NEIGHBOURS >= 0 && i + AHEAD_NEIGHBOURS < n) {
            const uint32_t block = blocks[(i + AHEAD_NEIGHBOURS) & (RING - 1)];
            if (RI_LIKELY(block != 0)) {
                const ri_lru_links *links = &lru->links[ri_lru_block(lru, block - 1)->row];
                RI_PREFETCH(&lru->links[links->before]);
                RI_PREFETCH(&lru->links[links->after]);
            }
        }
        if (i < 0)
            continue;
        float *row_out = out + i * reader->width;
        const uint32_t block = blocks[i & (RING - 1)];
        ri_row_head *head = block == 0 ? NULL : ri_lru_block(lru, block - 1);
        if (RI_UNLIKELY(head != NULL && !key_equals(lru, head, (const uint8_t *)keys[i].data, (size_t)keys[i].size))) {
            /* another key of this hash stands before it: one in some thousands */
            const int64_t slot = find_slot(lru, ri_lru_hash32(hashes[i]), (const uint8_t *)keys[i].data, (size_t)keys[i].size);
            head = slot < 0 ? NULL : ri_lru_block(lru, (uint32_t)lru->slots[slot] - 1);
        }
        if (RI_UNLIKELY(head == NULL || ri_lru_gone(lru, head, now_ns))) {
            int outcome = RI_ROW_ABSENT;
            (void)ri_lru_probe(lru, unknown, hashes[i], keys[i].data, keys[i].size, now_ns, &outcome);
            put_nans(row_out, reader->width);
            if (ages) {
                const uint64_t nan_bits = 0x7FF8000000000000ULL;
                memcpy(&ages[i], &nan_bits, 8);
            }
            if (outcomes)
                outcomes[i] = (uint8_t)(outcome == RI_ROW_ABSENT ? reader->absent : RI_UNKNOWN);
            continue;
        }
        const uint8_t *record = ri_lru_record(head);
        const int state = use_row(lru, head, now_ns);
        const int64_t there = read_record(reader, record, row_out);
        if (ages) {
            const int64_t updated = ri_updated_at_ns(record);
            const uint64_t nan_bits = 0x7FF8000000000000ULL;
            if (updated == 0)
                memcpy(&ages[i], &nan_bits, 8);
            else
                ages[i] = wall_ns > updated ? (double)(wall_ns - updated) / 1e9 : 0.0;
        }
        if (outcomes)
            outcomes[i] = (uint8_t)(there == 0                                                            ? RI_NULL
                                    : state == RI_ROW_EXPIRED || any_cell_expired(reader, record, now_ns) ? RI_STALE
                                                                                                          : RI_PRESENT);
    }
}

/* ---- tests --------------------------------------------------------------------------------------------------------------------- */

#define CHECK(x) do { if (!(x)) return __LINE__; } while (0)

int ri_lru_check(const ri_lru *lru) {
    size_t bytes = whole_lines(sizeof(ri_lru)) + lru->index_bytes + whole_lines((size_t)lru->max_chunks * sizeof(ri_lru_chunk));
    size_t row_bytes = 0;
    uint32_t n_rows = 0, n_free = 0, n_chunks = 0, n_empty = 0, listed = 0, in_slots = 0;
    for (uint32_t i = 0; i < lru->max_chunks; ++i) {
        const ri_lru_chunk *chunk = &lru->chunks[i];
        uint32_t used = 0, before = 0, was_free = 0;
        if (chunk->units == 0)
            continue;
        ++n_chunks;
        n_empty += chunk->used == 0;
        bytes += (size_t)chunk->units * RI_LRU_UNIT;
        for (uint32_t at = 0; at < chunk->units;) {
            const ri_row_head *head = (const ri_row_head *)(const void *)(chunk->base + (size_t)at * RI_LRU_UNIT);
            CHECK(head->units > 0 && head->units <= chunk->units - at);
            CHECK(head->units_before == before);
            if (head->flags & RI_BLOCK_FREE) {
                CHECK(!was_free); /* neighbours are joined */
                ++n_free;
            } else {
                CHECK(head->row >= 2 && head->row < lru->fresh_rows);
                CHECK(lru->blocks[head->row] == (i << lru->chunk_shift) + at);
                CHECK(slot_of_block(lru, head->hash, (i << lru->chunk_shift) + at) >= 0);
                CHECK(ri_lru_hash32(ri_lru_hash(lru, ri_lru_key(lru, head), head->key_size)) == head->hash);
                used += head->units;
                ++n_rows;
            }
            was_free = head->flags & RI_BLOCK_FREE;
            before = head->units;
            at += head->units;
        }
        CHECK(used == chunk->used);
        row_bytes += (size_t)used * RI_LRU_UNIT;
    }
    CHECK(n_rows == lru->n_rows);
    CHECK(n_rows <= lru->max_rows);
    CHECK(n_chunks == lru->n_chunks && n_empty == lru->n_empty && n_empty <= 1);
    CHECK(bytes == lru->bytes && bytes <= lru->max_bytes);
    CHECK(row_bytes == lru->row_bytes);
    for (uint32_t c = 0; c < RI_LRU_CLASSES; ++c) {
        uint32_t before = 0;
        CHECK((lru->free_heads[c] != 0) == (int)(lru->free_classes[c >> 6] >> (c & 63) & 1));
        for (uint32_t at = lru->free_heads[c]; at; at = ri_lru_block(lru, at - 1)->row) {
            const ri_row_head *head = ri_lru_block(lru, at - 1);
            CHECK(head->flags & RI_BLOCK_FREE && size_class(head->units) == c && head->hash == before);
            CHECK(++listed <= n_free);
            before = at;
        }
    }
    CHECK(listed == n_free);
    for (uint64_t at = 0; at <= lru->mask; ++at)
        in_slots += lru->slots[at] != 0;
    CHECK(in_slots == n_rows);
    for (uint32_t segment = 0; segment < 2; ++segment) {
        uint32_t n = 0, before = segment;
        for (uint32_t row = lru->links[segment].after; row != segment; row = lru->links[row].after) {
            CHECK(row >= 2 && row < lru->fresh_rows && lru->links[row].before == before && lru->blocks[row] != NO_BLOCK);
            CHECK(ri_row_segment(ri_lru_block(lru, lru->blocks[row])) == segment);
            CHECK(++n <= n_rows);
            before = row;
        }
        CHECK(lru->links[segment].before == before);
        CHECK(n == lru->n_segment[segment]);
    }
    CHECK(lru->n_segment[0] + lru->n_segment[1] == n_rows);
    CHECK(!lru->exact || lru->n_segment[RI_SEGMENT_PROBATION] == 0);
    uint32_t n_unused = 0;
    for (uint32_t row = lru->free_row; row; row = lru->links[row].after) {
        CHECK(row < lru->fresh_rows && lru->blocks[row] == NO_BLOCK);
        CHECK(++n_unused <= lru->max_rows);
    }
    CHECK(n_unused + n_rows + 2 == lru->fresh_rows);
    return 0;
}
