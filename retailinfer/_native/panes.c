/* Velocity windows: blocks, index, arithmetic, saving. Rules and layout: panes.h. */
#if !defined(_WIN32) && !defined(_DEFAULT_SOURCE)
#define _DEFAULT_SOURCE /* memory.h */
#endif

#include "panes.h"

#include "memory.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#define UNIT 8u
#define CHUNK_UNITS 4096u
#define CHUNK_BYTES (CHUNK_UNITS * UNIT)
#define REGION_CHUNKS 1024u /* the largest piece of memory that is asked of the system: 32 MiB; untouched pages cost nothing */
#define MAX_UNITS 2048u     /* larger blocks have memory of their own */
#define FINE 128u           /* up to here one size class a unit */
#define N_CLASSES (FINE + 30u)
#define MOST_BYTES (INT64_C(15) << 30) /* what 31 bits of places can hold, and some */
#define LARGE 0x80000000u   /* of a place: the number of a large block */
#define SECOND INT64_C(1000000000)
#define MARGIN_S INT64_C(172800) /* room for time zones at both ends of the range of seconds */

typedef struct block {
    uint32_t prev, next; /* in the order of updates: prev is newer */
    uint32_t hash;
    uint32_t last_s;     /* newest event, seconds since 1950 */
    uint32_t known_s;    /* what happened before is not known; 0: all is */
    uint16_t key_size, n_sections;
} block;

typedef struct entry_of_directory {
    uint16_t acc, count;
} entry_of_directory;

typedef struct size_class {
    uint32_t units, per_chunk, n_blocks;
    uint32_t *chunks;
    uint32_t n_chunks, room;
} size_class;

typedef struct chunk {
    uint8_t *base;
    uint32_t klass, position; /* which one of its class */
} chunk;

typedef struct large_block {
    uint8_t *base; /* NULL: free */
    uint32_t units, next_free;
} large_block;

typedef struct region {
    uint8_t *base;
    size_t size;
} region;

struct ri_windows {
    uint64_t *slots; /* tag (the hash) << 32 | place + 1; 0 = empty */
    uint64_t mask;
    int shift; /* hash >> shift is where a probe starts: a table twice as large keeps the order */
    int64_t n;

    chunk *chunks;
    uint32_t n_chunks, chunk_room;
    uint32_t *free_chunks;
    uint32_t n_free, free_room;
    region *regions;
    uint32_t n_regions, region_room;
    uint32_t region_used, region_chunks; /* of the newest region */
    size_class classes[N_CLASSES];
    large_block *large;
    uint32_t n_large, large_room, large_free; /* large_free: RI_NOWHERE = none */

    uint32_t newest, oldest;
    ri_accumulator *accs;
    int32_t n_accs, acc_room;
    int64_t horizon_s;
    uint32_t evicted_until_s;

    int64_t max_entities, max_bytes, max_ahead_ns;
    int64_t live_units, memory;
    ri_siphash_key key;
    uint8_t *scratch;
    size_t scratch_room;
    uint32_t cursor; /* of a dump: the next block */
    int64_t dump_token;
    ri_window_counts counts;
};

static const uint8_t ENTRY_BYTES[6] = RI_ENTRY_BYTES;

RI_INLINE void store32(void *p, uint32_t v) { memcpy(p, &v, 4); }
RI_INLINE void store64(void *p, uint64_t v) { memcpy(p, &v, 8); }
RI_INLINE int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
RI_INLINE entry_of_directory *directory(block *b) { return (entry_of_directory *)(void *)(b + 1); }
RI_INLINE const entry_of_directory *const_directory(const block *b) { return (const entry_of_directory *)(const void *)(b + 1); }
RI_INLINE uint8_t *key_of(block *b) { return (uint8_t *)(directory(b) + b->n_sections); }
RI_INLINE const uint8_t *const_key_of(const block *b) { return (const uint8_t *)(const_directory(b) + b->n_sections); }

RI_INLINE block *at_place(const ri_windows *w, uint32_t place) {
    assert(place != RI_NOWHERE);
    if (RI_UNLIKELY(place & LARGE))
        return (block *)(void *)w->large[place & ~LARGE].base;
    return (block *)(void *)(w->chunks[place / CHUNK_UNITS].base + (size_t)(place % CHUNK_UNITS) * UNIT);
}

static size_t block_bytes(const ri_windows *w, const block *b) {
    const entry_of_directory *d = const_directory(b);
    size_t size = sizeof(block) + 4u * b->n_sections + b->key_size;
    for (uint32_t i = 0; i < b->n_sections; ++i)
        size += (size_t)d[i].count * ENTRY_BYTES[w->accs[d[i].acc].kind];
    return size;
}

static int64_t block_panes(const block *b) {
    const entry_of_directory *d = const_directory(b);
    int64_t panes = 0;
    for (uint32_t i = 0; i < b->n_sections; ++i)
        panes += d[i].count;
    return panes;
}

/* ---- memory of blocks --------------------------------------------------------------------------------------------- */

static uint32_t class_for(uint32_t units) {
    uint32_t k = FINE;
    if (units <= FINE)
        return units - 1;
    while (CHUNK_UNITS / (31u - (k - FINE)) < units)
        ++k;
    return k;
}

/* Double what a growing array holds. 0 = done. */
static int grow(void **array, uint32_t *room, uint32_t needed, size_t size) {
    if (needed <= *room)
        return 0;
    uint32_t larger = *room ? *room : 8;
    while (larger < needed)
        larger *= 2;
    void *moved = realloc(*array, larger * size);
    if (moved == NULL)
        return -1;
    *array = moved;
    *room = larger;
    return 0;
}

static uint32_t take_chunk(ri_windows *w) {
    if (w->n_free)
        return w->free_chunks[--w->n_free];
    if (grow((void **)&w->chunks, &w->chunk_room, w->n_chunks + 1, sizeof(chunk)) ||
        grow((void **)&w->free_chunks, &w->free_room, w->n_chunks + 1, sizeof(uint32_t)))
        return RI_NOWHERE;
    if (w->n_chunks >= LARGE / CHUNK_UNITS)
        return RI_NOWHERE;
    if (w->region_used == w->region_chunks) {
        uint32_t more = w->n_chunks ? w->n_chunks / 2 + 1 : 1; /* grows with the state; huge pages need large pieces */
        more = more < REGION_CHUNKS ? more : REGION_CHUNKS;
        size_t size = (size_t)more * CHUNK_BYTES;
        if (grow((void **)&w->regions, &w->region_room, w->n_regions + 1, sizeof(region)))
            return RI_NOWHERE;
        uint8_t *base = (uint8_t *)ri_pages_new(size);
        if (base == NULL)
            return RI_NOWHERE;
        w->regions[w->n_regions].base = base;
        w->regions[w->n_regions++].size = size;
        w->region_used = 0;
        w->region_chunks = more;
        w->memory += (int64_t)size;
    }
    w->chunks[w->n_chunks].base = w->regions[w->n_regions - 1].base + (size_t)w->region_used++ * CHUNK_BYTES;
    return w->n_chunks++;
}

static uint32_t allocate(ri_windows *w, uint32_t units) {
    if (RI_UNLIKELY(units > MAX_UNITS)) {
        uint32_t number = w->large_free;
        if (number == RI_NOWHERE) {
            if (grow((void **)&w->large, &w->large_room, w->n_large + 1, sizeof(large_block)))
                return RI_NOWHERE;
            number = w->n_large;
        }
        units += units / 4; /* room to grow into */
        uint8_t *base = (uint8_t *)malloc((size_t)units * UNIT);
        if (base == NULL)
            return RI_NOWHERE;
        if (number == w->n_large)
            ++w->n_large;
        else
            w->large_free = w->large[number].next_free;
        w->large[number].base = base;
        w->large[number].units = units;
        w->live_units += units;
        w->memory += (int64_t)units * UNIT;
        return LARGE | number;
    }
    uint32_t k = class_for(units);
    size_class *c = &w->classes[k];
    uint32_t in_chunk = c->n_blocks % c->per_chunk;
    if (in_chunk == 0) {
        if (grow((void **)&c->chunks, &c->room, c->n_chunks + 1, sizeof(uint32_t)))
            return RI_NOWHERE;
        uint32_t number = take_chunk(w);
        if (number == RI_NOWHERE)
            return RI_NOWHERE;
        w->chunks[number].klass = k;
        w->chunks[number].position = c->n_chunks;
        c->chunks[c->n_chunks++] = number;
    }
    ++c->n_blocks;
    w->live_units += c->units;
    return c->chunks[c->n_chunks - 1] * CHUNK_UNITS + in_chunk * c->units;
}

static uint32_t units_at(const ri_windows *w, uint32_t place) {
    if (place & LARGE)
        return w->large[place & ~LARGE].units;
    return w->classes[w->chunks[place / CHUNK_UNITS].klass].units;
}

static void point_slot(ri_windows *w, uint32_t hash, uint32_t from, uint32_t to) {
    uint64_t at = hash >> w->shift;
    while ((uint32_t)w->slots[at] != from + 1) {
        assert(w->slots[at] != 0);
        at = (at + 1) & w->mask;
    }
    w->slots[at] = (uint64_t)hash << 32 | (to + 1);
}

/* The block at `from` is now at `to`: tell everything that points to it. */
static void moved(ri_windows *w, uint32_t from, uint32_t to) {
    block *b = at_place(w, to);
    point_slot(w, b->hash, from, to);
    if (b->prev != RI_NOWHERE)
        at_place(w, b->prev)->next = to;
    else
        w->newest = to;
    if (b->next != RI_NOWHERE)
        at_place(w, b->next)->prev = to;
    else
        w->oldest = to;
    if (w->cursor == from)
        w->cursor = to;
}

/* Give a place back. Nothing may point to it any more. */
static void release(ri_windows *w, uint32_t place) {
    if (RI_UNLIKELY(place & LARGE)) {
        large_block *l = &w->large[place & ~LARGE];
        free(l->base);
        w->live_units -= l->units;
        w->memory -= (int64_t)l->units * UNIT;
        l->base = NULL;
        l->next_free = w->large_free;
        w->large_free = place & ~LARGE;
        return;
    }
    size_class *c = &w->classes[w->chunks[place / CHUNK_UNITS].klass];
    uint32_t last = --c->n_blocks;
    uint32_t last_chunk = c->chunks[c->n_chunks - 1];
    uint32_t last_place = last_chunk * CHUNK_UNITS + (last % c->per_chunk) * c->units;
    if (last_place != place) {
        memcpy(at_place(w, place), at_place(w, last_place), (size_t)c->units * UNIT);
        moved(w, last_place, place);
    }
    if (last % c->per_chunk == 0) {
        --c->n_chunks;
        w->free_chunks[w->n_free++] = last_chunk; /* room for all chunks: see take_chunk */
    }
    w->live_units -= c->units;
}

/* ---- index and order ------------------------------------------------------------------------------------------------ */

static uint32_t hash_key(const ri_windows *w, const char *key, size_t size) {
    return (uint32_t)(ri_siphash13(key, size, w->key) >> 32);
}

RI_INLINE uint32_t find(const ri_windows *w, const char *key, size_t size, uint32_t hash) {
    uint64_t at = hash >> w->shift;
    for (;;) {
        const uint64_t slot = w->slots[at];
        if (slot == 0)
            return RI_NOWHERE;
        if (slot >> 32 == hash) {
            const uint32_t place = (uint32_t)slot - 1;
            const block *b = at_place(w, place);
            RI_PREFETCH((const uint8_t *)b + 64);
            RI_PREFETCH((const uint8_t *)b + 128);
            RI_PREFETCH((const uint8_t *)b + 192);
            RI_PREFETCH((const uint8_t *)b + 256);
            if (b->key_size == size && memcmp(const_key_of(b), key, size) == 0)
                return place;
        }
        at = (at + 1) & w->mask;
    }
}

static size_t index_bytes(const ri_windows *w) { return (size_t)(w->mask + 1) * 8; }

static int index_room(ri_windows *w) {
    if ((uint64_t)(w->n + 1) * 10 <= (w->mask + 1) * 7)
        return 0;
    const uint64_t n_slots = (w->mask + 1) * 2;
    if (w->shift == 1)
        return -1;
    uint64_t *slots = (uint64_t *)ri_pages_new((size_t)n_slots * 8);
    if (slots == NULL)
        return -1;
    for (uint64_t i = 0; i <= w->mask; ++i) {
        if (w->slots[i] == 0)
            continue;
        uint64_t at = (w->slots[i] >> 32) >> (w->shift - 1);
        while (slots[at])
            at = (at + 1) & (n_slots - 1);
        slots[at] = w->slots[i];
    }
    w->memory += (int64_t)((n_slots - w->mask - 1) * 8);
    ri_pages_free(w->slots, index_bytes(w));
    w->slots = slots;
    w->mask = n_slots - 1;
    --w->shift;
    return 0;
}

static void index_put(ri_windows *w, uint32_t hash, uint32_t place) {
    uint64_t at = hash >> w->shift;
    while (w->slots[at])
        at = (at + 1) & w->mask;
    w->slots[at] = (uint64_t)hash << 32 | (place + 1);
}

static void index_drop(ri_windows *w, uint32_t hash, uint32_t place) {
    uint64_t hole = hash >> w->shift;
    while ((uint32_t)w->slots[hole] != place + 1) {
        assert(w->slots[hole] != 0);
        hole = (hole + 1) & w->mask;
    }
    for (uint64_t at = (hole + 1) & w->mask; w->slots[at]; at = (at + 1) & w->mask) {
        const uint64_t ideal = (w->slots[at] >> 32) >> w->shift;
        if (((at - ideal) & w->mask) >= ((at - hole) & w->mask)) { /* it may stand in the hole: no probe would miss it */
            w->slots[hole] = w->slots[at];
            hole = at;
        }
    }
    w->slots[hole] = 0;
}

static void unlink_block(ri_windows *w, uint32_t place) {
    block *b = at_place(w, place);
    if (w->cursor == place)
        w->cursor = b->prev;
    if (b->prev != RI_NOWHERE)
        at_place(w, b->prev)->next = b->next;
    else
        w->newest = b->next;
    if (b->next != RI_NOWHERE)
        at_place(w, b->next)->prev = b->prev;
    else
        w->oldest = b->prev;
}

static void link_newest(ri_windows *w, uint32_t place) {
    block *b = at_place(w, place);
    b->prev = RI_NOWHERE;
    b->next = w->newest;
    if (w->newest != RI_NOWHERE)
        at_place(w, w->newest)->prev = place;
    else
        w->oldest = place;
    w->newest = place;
}

static void touch(ri_windows *w, uint32_t place) {
    if (w->newest == place)
        return;
    unlink_block(w, place);
    link_newest(w, place);
}

static void forget(ri_windows *w, uint32_t place) {
    block *b = at_place(w, place);
    w->counts.panes -= block_panes(b);
    unlink_block(w, place);
    index_drop(w, b->hash, place);
    --w->n;
    ++w->counts.version;
    release(w, place);
}

static void forget_oldest(ri_windows *w) {
    const block *b = at_place(w, w->oldest);
    if (b->last_s + 1 > w->evicted_until_s)
        w->evicted_until_s = b->last_s + 1;
    forget(w, w->oldest);
}

static int over_limits(const ri_windows *w) {
    return w->n > w->max_entities || w->live_units * (int64_t)UNIT + (int64_t)index_bytes(w) > w->max_bytes;
}

/* ---- life ------------------------------------------------------------------------------------------------------------ */

ri_windows *ri_windows_new(int64_t max_entities, int64_t max_bytes, int64_t max_ahead_ns, ri_siphash_key key) {
    ri_windows *w = (ri_windows *)calloc(1, sizeof *w);
    if (w == NULL)
        return NULL;
    w->shift = 32 - 6;
    w->mask = 63;
    w->slots = (uint64_t *)ri_pages_new(index_bytes(w));
    if (w->slots == NULL) {
        free(w);
        return NULL;
    }
    for (uint32_t k = 0; k < N_CLASSES; ++k) {
        w->classes[k].units = k < FINE ? k + 1 : CHUNK_UNITS / (31u - (k - FINE));
        w->classes[k].per_chunk = CHUNK_UNITS / w->classes[k].units;
    }
    w->large_free = w->newest = w->oldest = w->cursor = RI_NOWHERE;
    w->max_entities = max_entities;
    w->max_bytes = max_bytes < MOST_BYTES ? max_bytes : MOST_BYTES;
    w->max_ahead_ns = max_ahead_ns;
    w->key = key;
    w->memory = (int64_t)index_bytes(w);
    return w;
}

void ri_windows_free(ri_windows *w) {
    if (w == NULL)
        return;
    for (uint32_t i = 0; i < w->n_regions; ++i)
        ri_pages_free(w->regions[i].base, w->regions[i].size);
    for (uint32_t i = 0; i < w->n_large; ++i)
        free(w->large[i].base);
    for (uint32_t k = 0; k < N_CLASSES; ++k)
        free(w->classes[k].chunks);
    ri_pages_free(w->slots, index_bytes(w));
    free(w->chunks);
    free(w->free_chunks);
    free(w->regions);
    free(w->large);
    free(w->accs);
    free(w->scratch);
    free(w);
}

void ri_windows_counts(const ri_windows *w, ri_window_counts *out) {
    *out = w->counts;
    out->entities = w->n;
    out->live_bytes = w->live_units * (int64_t)UNIT + (int64_t)index_bytes(w);
    out->bytes = w->memory + (int64_t)w->chunk_room * (int64_t)sizeof(chunk) + (int64_t)w->free_room * 4 +
                 (int64_t)w->scratch_room;
    out->evicted_until_ns = w->evicted_until_s ? ((int64_t)w->evicted_until_s + RI_EPOCH_S) * SECOND : 0;
}

void ri_windows_take_counts(ri_windows *w, const ri_windows *from) {
    int64_t panes = w->counts.panes, version = w->counts.version;
    w->counts = from->counts;
    w->counts.panes = panes;
    w->counts.version = from->counts.version + version + 1; /* no call may take its old place for a valid one */
}

void ri_windows_set_evicted_until(ri_windows *w, int64_t evicted_until_ns) {
    int64_t s = floor_div(evicted_until_ns + SECOND - 1, SECOND) - RI_EPOCH_S;
    w->evicted_until_s = s <= 0 ? 0 : s > UINT32_MAX ? UINT32_MAX : (uint32_t)s;
}

ri_accumulator *ri_windows_accumulators(ri_windows *w) { return w->accs; }

int ri_windows_register(ri_windows *w, const ri_accumulator *acc) {
    uint32_t room = (uint32_t)w->acc_room;
    if (w->n_accs >= RI_MAX_ACCUMULATORS || grow((void **)&w->accs, &room, (uint32_t)w->n_accs + 1, sizeof *acc))
        return -1;
    w->acc_room = (int32_t)room;
    w->accs[w->n_accs] = *acc;
    w->accs[w->n_accs].pane_s = (uint32_t)(acc->pane_ns / SECOND);
    w->accs[w->n_accs].phase_s = RI_EPOCH_S - floor_div(RI_EPOCH_S, acc->pane_ns / SECOND) * (acc->pane_ns / SECOND);
    ++w->n_accs;
    ri_windows_retimed(w);
    return w->n_accs - 1;
}

void ri_windows_retimed(ri_windows *w) {
    w->horizon_s = 0;
    for (int32_t i = 0; i < w->n_accs; ++i) {
        const ri_accumulator *a = &w->accs[i];
        if (a->kind == RI_ACC_IDS)
            continue;
        int64_t reach = a->pane_ns / SECOND * (a->keep + 2) + 2 * (a->calendar ? MARGIN_S : 1);
        w->horizon_s = reach > w->horizon_s ? reach : w->horizon_s;
    }
}

int ri_windows_erase(ri_windows *w, const char *key, int64_t size) {
    if (size < 0 || size > RI_MAX_WINDOW_KEY)
        return 0;
    uint32_t place = find(w, key, (size_t)size, hash_key(w, key, (size_t)size));
    if (place == RI_NOWHERE)
        return 0;
    forget(w, place);
    ++w->counts.erased;
    return 1;
}

/* ---- prepare --------------------------------------------------------------------------------------------------------- */

static int64_t zone_offset_s(const ri_zone *zone, int64_t seconds) {
    int32_t lo = 0, hi = zone->n - 1;
    if (zone->n <= 0)
        return 0;
    while (lo < hi) {
        int32_t mid = (lo + hi + 1) / 2;
        if (zone->at_s[mid] <= seconds)
            lo = mid;
        else
            hi = mid - 1;
    }
    return zone->offset_s[lo];
}

/* Pane of a moment in seconds since 1950 (panes are whole seconds, so parts of one do not matter). Divisions of 64 bits cost
 * several times those of 32, and every event has one for each accumulator. */
RI_INLINE int64_t pane_at(const ri_accumulator *a, const ri_zone *zone, int64_t at_s) {
    if (RI_UNLIKELY(a->calendar))
        at_s += zone_offset_s(zone, at_s + RI_EPOCH_S);
    at_s += a->phase_s;
    if (RI_LIKELY(at_s >= 0 && at_s <= (int64_t)UINT32_MAX))
        return (int64_t)((uint32_t)at_s / a->pane_s);
    return floor_div(at_s, (int64_t)a->pane_s);
}
RI_INLINE int64_t seconds_of(int64_t time_ns) { return floor_div(time_ns, SECOND) - RI_EPOCH_S; }
RI_INLINE int64_t pane_of(const ri_accumulator *a, const ri_zone *zone, int64_t time_ns) {
    return pane_at(a, zone, seconds_of(time_ns));
}

/* Start of a pane on the clock of the world. */
RI_INLINE int64_t pane_start_ns(const ri_accumulator *a, const ri_zone *zone, int64_t pane) {
    int64_t start = pane * (int64_t)a->pane_s - a->phase_s + RI_EPOCH_S;
    if (RI_UNLIKELY(a->calendar)) {
        int64_t guess = start - zone_offset_s(zone, start);
        start -= zone_offset_s(zone, guess);
    }
    return start * SECOND;
}

static int compare(const ri_term *t, const ri_slot *s) {
    int order; /* -1, 0, 1 */
    if (s->state != RI_PRESENT)
        return 0;
    if (t->kind == 2) {
        size_t shorter = (size_t)(s->n < t->text.size ? s->n : t->text.size);
        order = shorter ? memcmp(s->v.text, t->text.data, shorter) : 0;
        order = order ? (order < 0 ? -1 : 1) : (s->n > t->text.size) - (s->n < t->text.size);
    } else if (t->kind == 1 && s->kind != RI_SLOT_F64) {
        order = (s->v.i > t->integer) - (s->v.i < t->integer);
    } else {
        double a = s->kind == RI_SLOT_F64 ? s->v.f : (double)s->v.i;
        order = (a > t->number) - (a < t->number);
    }
    switch (t->op) {
    case 0: return order < 0;
    case 1: return order <= 0;
    case 2: return order > 0;
    case 3: return order >= 0;
    case 4: return order == 0;
    default: return order != 0;
    }
}

static uint32_t hash_value(const ri_slot *s) {
    uint64_t hash;
    if (s->kind == RI_SLOT_TEXT)
        hash = s->hashed ? s->hash : ri_xxh64(s->n ? s->v.text : "", (size_t)s->n, 0);
    else if (s->kind == RI_SLOT_F64) {
        double value = s->v.f == 0.0 ? 0.0 : s->v.f; /* -0.0 is no other number */
        hash = ri_xxh64(&value, 8, 0);
    } else
        hash = ri_xxh64(&s->v.i, 8, 0);
    return (uint32_t)hash;
}

/* value * scale as an integer; -1 when it is none that can be held. */
static int fixed_point(const ri_slot *s, double scale, int64_t *out) {
    double scaled;
    if (s->kind == RI_SLOT_F64)
        scaled = s->v.f * scale;
    else {
        if (s->v.i > RI_MAX_EXACT || s->v.i < -RI_MAX_EXACT)
            return -1;
        scaled = (double)s->v.i * scale;
    }
    if (!(scaled <= (double)RI_MAX_EXACT && scaled >= -(double)RI_MAX_EXACT)) /* NaN too */
        return -1;
    *out = llrint(scaled);
    return 0;
}

/* Where the sections of the plan's accumulators are in a block. Both sides are in the order of accumulators. */
static void find_sections(const ri_windows *w, const ri_window_plan *plan, ri_window_call *call, const block *b) {
    const entry_of_directory *d = const_directory(b);
    uint32_t offset = (uint32_t)sizeof(block) + 4u * b->n_sections + b->key_size;
    int32_t a = 0;
    memset(call->sections, 0, (size_t)plan->n_accs * sizeof(ri_section));
    call->ring.count = 0;
    for (uint32_t i = 0; i < b->n_sections; ++i) {
        const int32_t acc = d[i].acc;
        while (a < plan->n_accs && plan->accs[a] < acc)
            ++a;
        if (a < plan->n_accs && plan->accs[a] == acc) {
            call->sections[a].offset = offset;
            call->sections[a].count = d[i].count;
        } else if (acc == plan->ids) {
            call->ring.offset = offset;
            call->ring.count = d[i].count;
        }
        offset += (uint32_t)d[i].count * ENTRY_BYTES[w->accs[acc].kind];
    }
}

/* Newest pane of a section that has entries. */
RI_INLINE int64_t newest_pane(const uint8_t *base, const ri_section *s, size_t entry) {
    return (int64_t)ri_load32(base + s->offset + (size_t)(s->count - 1) * entry);
}

/* How many entries of a section have a pane < `pane`: from the end, where the new ones are. */
RI_INLINE uint32_t entries_before(const uint8_t *base, const ri_section *s, size_t entry, int64_t pane) {
    uint32_t i = s->count;
    const uint8_t *p = base + s->offset + (size_t)i * entry;
    while (i > 0 && (int64_t)ri_load32(p - entry) >= pane) {
        p -= entry;
        --i;
    }
    return i;
}

/* The panes that wrong events had pushed out are gone, so the entity is known from now on only. */
int ri_windows_repair(ri_windows *w, const ri_window_plan *plan, const ri_window_call *call, int64_t now_ns) {
    const int64_t limit_ns = now_ns + w->max_ahead_ns, now_s = seconds_of(now_ns);
    const uint32_t place = find(w, call->key.data, (size_t)call->key.size, call->hash);
    if (place == RI_NOWHERE || (int64_t)at_place(w, place)->last_s <= seconds_of(limit_ns) + 1)
        return 0;
    block *b = at_place(w, place);
    entry_of_directory *d = directory(b);
    uint8_t *from = key_of(b) + b->key_size, *to = from;
    for (uint32_t i = 0; i < b->n_sections; ++i) {
        const ri_accumulator *a = &w->accs[d[i].acc];
        const size_t entry = ENTRY_BYTES[a->kind];
        uint32_t keep = d[i].count;
        if (a->kind != RI_ACC_IDS) {
            const int64_t limit = pane_of(a, &plan->zone, limit_ns);
            const ri_section all = {(uint32_t)(from - (uint8_t *)b), keep};
            keep = entries_before((const uint8_t *)b, &all, entry, limit + 1);
        }
        memmove(to, from, keep * entry);
        from += d[i].count * entry;
        to += keep * entry;
        w->counts.panes -= d[i].count - keep;
        d[i].count = (uint16_t)keep; /* a section without entries goes with the next change */
    }
    b->last_s = (uint32_t)(now_s + 1);
    b->known_s = (uint32_t)(now_s + 1);
    ++w->counts.stepped;
    ++w->counts.version;
    return 1;
}

static int refuse(ri_windows *w, ri_window_call *call, int error, int slot, double value) {
    call->error = error;
    call->error_slot = slot;
    call->error_value = value;
    ++w->counts.refused;
    return error;
}

/* The canonical key. 0: there is none. -1: no memory. */
static int compose_key(const ri_window_plan *plan, ri_window_call *call, const ri_state *st) {
    ri_key_part parts[16];
    size_t room = 0;
    for (int32_t i = 0; i < plan->n_keys; ++i) {
        const ri_slot *s = &st->slots[plan->keys[i]];
        if (s->state != RI_PRESENT)
            return 0;
        if (s->kind == RI_SLOT_TEXT) {
            if (s->n > RI_MAX_WINDOW_KEY)
                return 0;
            parts[i].text.data = s->n ? s->v.text : "";
            parts[i].text.size = s->n;
            room += ri_key_room(s->n);
        } else {
            parts[i].text.data = NULL;
            parts[i].text.size = 8;
            parts[i].number = s->v.i;
            room += RI_KEY_INT_ROOM;
        }
    }
    if (plan->n_keys == 1 && parts[0].text.data) {
        call->key.data = parts[0].text.data;
        call->key.size = parts[0].text.size;
        return 1;
    }
    if (room > call->room) {
        char *larger = (char *)realloc(call->scratch, room);
        if (larger == NULL)
            return -1;
        call->scratch = larger;
        call->room = room;
    }
    call->key.data = call->scratch;
    if (plan->n_keys == 1) {
        memcpy(call->scratch, &parts[0].number, 8);
        call->key.size = 8;
        return 1;
    }
    call->key.size = ri_key_compose(parts, plan->n_keys, call->scratch, call->room);
    return call->key.size <= RI_MAX_WINDOW_KEY;
}

static void locate(ri_windows *w, const ri_window_plan *plan, ri_window_call *call) {
    call->place = find(w, call->key.data, (size_t)call->key.size, call->hash);
    if (call->place != RI_NOWHERE) {
        find_sections(w, plan, call, at_place(w, call->place));
    } else {
        memset(call->sections, 0, (size_t)plan->n_accs * sizeof(ri_section));
        call->ring.count = 0;
    }
    call->version = w->counts.version;
}

int ri_windows_prepare(ri_windows *w, const ri_window_plan *plan, ri_window_call *call, const ri_state *st, int64_t at_ns,
                       int64_t now_ns, uint64_t event_hash, int before_since) {
    call->error = RI_WINDOW_OK;
    call->known = call->duplicate = call->ahead = call->ready = call->suspect = 0;
    call->event_hash = event_hash;
    call->now_ns = call->sweep_ns = now_ns;
    call->place = RI_NOWHERE;
    if (now_ns > 0) {
        if (RI_UNLIKELY(at_ns > now_ns && at_ns - now_ns > w->max_ahead_ns)) {
            at_ns = now_ns;
            call->ahead = 1;
        }
    }
    call->at_ns = at_ns;
    const int64_t at_s = seconds_of(at_ns);
    if (RI_UNLIKELY(at_s < MARGIN_S || at_s > (int64_t)UINT32_MAX - MARGIN_S))
        return refuse(w, call, RI_WINDOW_TIME, -1, (double)at_ns / 1e9);
    const int key = compose_key(plan, call, st);
    if (key < 0)
        return refuse(w, call, RI_WINDOW_MEMORY, -1, 0.0);
    if (key == 0)
        return RI_WINDOW_OK;
    call->hash = hash_key(w, call->key.data, (size_t)call->key.size);
    RI_PREFETCH(&w->slots[call->hash >> w->shift]);
    for (int32_t i = 0; i < plan->n_accs; ++i)
        call->panes[i] = pane_at(&w->accs[plan->accs[i]], &plan->zone, at_s);
    for (int32_t i = 0; i < plan->n_adds; ++i) {
        const ri_window_add *add = &plan->adds[i];
        const ri_accumulator *a = &w->accs[plan->accs[add->acc]];
        ri_window_input *in = &call->inputs[i];
        in->applies = !before_since || at_ns < a->since_ns;
        for (int32_t t = 0; in->applies && t < add->n_terms; ++t)
            in->applies = (uint8_t)compare(&plan->terms[add->first_term + t], &st->slots[plan->terms[add->first_term + t].slot]);
        if (add->of < 0 || !in->applies)
            continue;
        const ri_slot *of = &st->slots[add->of];
        if (of->state != RI_PRESENT)
            in->applies = 0;
        else if (a->kind == RI_ACC_DISTINCT)
            in->hash = hash_value(of);
        else if (fixed_point(of, add->scale, &in->value))
            return refuse(w, call, RI_WINDOW_VALUE, add->of, of->kind == RI_SLOT_F64 ? of->v.f : (double)of->v.i);
    }
    call->known = 1;
    locate(w, plan, call);
    if (call->place == RI_NOWHERE) {
        call->ready = 1;
        return RI_WINDOW_OK;
    }
    const uint8_t *base = (const uint8_t *)at_place(w, call->place);
    call->suspect = now_ns > 0 && (int64_t)((const block *)(const void *)base)->last_s > seconds_of(now_ns + w->max_ahead_ns) + 1;
    if (event_hash)
        for (uint32_t i = 0; i < call->ring.count; ++i)
            call->duplicate |= ri_load64(base + call->ring.offset + 8 * (size_t)i) == event_hash;
    if (!call->duplicate)
        for (int32_t i = 0; i < plan->n_adds; ++i) {
            const int32_t acc = plan->adds[i].acc;
            const int kind = w->accs[plan->accs[acc]].kind;
            const ri_section *s = &call->sections[acc];
            if (!call->inputs[i].applies || kind > RI_ACC_SUM || s->count == 0)
                continue;
            const size_t entry = ENTRY_BYTES[kind];
            const uint32_t at = entries_before(base, s, entry, call->panes[acc]);
            const uint8_t *p = base + s->offset + at * entry;
            if (at == s->count || (int64_t)ri_load32(p) != call->panes[acc])
                continue;
            int64_t sum = kind == RI_ACC_SUM ? (int64_t)ri_load64(p + 8) + call->inputs[i].value : 0;
            if (ri_load32(p + 4) == UINT32_MAX || sum > RI_MAX_EXACT || sum < -RI_MAX_EXACT)
                return refuse(w, call, RI_WINDOW_SUM, plan->adds[i].of, (double)sum);
        }
    call->ready = 1;
    return RI_WINDOW_OK;
}

/* ---- read ------------------------------------------------------------------------------------------------------------- */

/* Distinct hashes of entries [first, end), and `extra` if has_extra; at most RI_MAX_DISTINCT are told apart. */
static int count_distinct(const uint8_t *entries, uint32_t first, uint32_t end, int has_extra, uint32_t extra) {
    uint32_t few[9], cells[128];
    int n = 0, zero = 0;
    if (end - first <= 8) {
        for (uint32_t i = first; i <= end; ++i) {
            uint32_t hash;
            if (i < end)
                hash = ri_load32(entries + 8 * (size_t)i + 4);
            else if (has_extra)
                hash = extra;
            else
                break;
            int seen = 0;
            for (int j = 0; j < n; ++j)
                seen |= few[j] == hash;
            if (!seen)
                few[n++] = hash;
        }
        return n;
    }
    memset(cells, 0, sizeof cells);
    for (uint32_t i = first; i <= end && n + zero < RI_MAX_DISTINCT; ++i) {
        uint32_t hash;
        if (i < end)
            hash = ri_load32(entries + 8 * (size_t)i + 4);
        else if (has_extra)
            hash = extra;
        else
            break;
        if (hash == 0) {
            zero = 1;
            continue;
        }
        uint32_t at = hash & 127;
        while (cells[at] && cells[at] != hash)
            at = (at + 1) & 127;
        if (!cells[at]) {
            cells[at] = hash;
            ++n;
        }
    }
    return n + zero;
}

void ri_windows_read_block(const ri_windows *w, const ri_window_plan *plan, const ri_window_call *call, const uint8_t *base,
                           int64_t known_ns, ri_state *st) {
    for (int32_t r = 0; r < plan->n_reads; ++r) {
        const ri_window_read *read = &plan->reads[r];
        const ri_accumulator *a = &w->accs[plan->accs[read->acc]];
        const ri_section *s = &call->sections[read->acc];
        const size_t entry = ENTRY_BYTES[a->kind];
        ri_slot *out = &st->slots[read->slot];
        const int64_t own = call->panes[read->acc];
        const int64_t upper = (read->delay_ns ? pane_of(a, &plan->zone, call->at_ns - read->delay_ns) : own) - read->lag;
        int64_t lower = upper - read->n; /* panes (lower, upper] */
        const int64_t start_ns = pane_start_ns(a, &plan->zone, lower + 1);
        int stale = start_ns < (read->keep <= a->first_keep ? a->since_ns : a->deep_since_ns) || start_ns < known_ns;
        const uint8_t *entries = base + s->offset;
        uint32_t first = 0, end = s->count;
        int64_t gone = INT64_MIN;
        if (s->count) {
            gone = newest_pane(base, s, entry) - read->keep;
            if (gone > lower) { /* a reader of the past: what he asks for has been forgotten, in part */
                lower = gone;
                stale = 1;
            }
            end = entries_before(base, s, entry, upper + 1);
            first = end;
            while (first > 0 && (int64_t)ri_load32(entries + (size_t)(first - 1) * entry) > lower)
                --first;
        }
        const ri_window_input *in = NULL;
        if (read->with_event && read->add >= 0 && !call->duplicate && call->inputs[read->add].applies && own > gone &&
            own > lower && own <= upper)
            in = &call->inputs[read->add];
        int64_t count = 0, value = 0;
        switch (a->kind) {
        case RI_ACC_COUNT:
            for (uint32_t i = first; i < end; ++i)
                count += ri_load32(entries + 8 * (size_t)i + 4);
            count += in != NULL;
            break;
        case RI_ACC_SUM:
            for (uint32_t i = first; i < end; ++i) {
                count += ri_load32(entries + 16 * (size_t)i + 4);
                value += (int64_t)ri_load64(entries + 16 * (size_t)i + 8);
            }
            if (in) {
                count += 1;
                value += in->value;
            }
            break;
        case RI_ACC_MIN:
        case RI_ACC_MAX: {
            const int smaller = a->kind == RI_ACC_MIN;
            count = (int64_t)end - first;
            for (uint32_t i = first; i < end; ++i) {
                const int64_t v = (int64_t)ri_load64(entries + 12 * (size_t)i + 4);
                value = i == first || (smaller ? v < value : v > value) ? v : value;
            }
            if (in) {
                value = count == 0 || (smaller ? in->value < value : in->value > value) ? in->value : value;
                ++count;
            }
            break;
        }
        default:
            count = count_distinct(entries, first, end, in != NULL, in ? in->hash : 0);
        }
        out->hashed = 0;
        out->calendar = 0;
        out->updated_ns = INT64_MAX;
        out->state = stale ? RI_STALE : RI_PRESENT;
        switch (read->what) {
        case RI_WHAT_COUNT:
        case RI_WHAT_DISTINCT:
            out->v.f = (double)count;
            break;
        case RI_WHAT_SUM:
            out->v.f = (double)value / read->scale;
            break;
        default: /* without an event there is no mean, no smallest, no largest, and nothing on that day */
            if (count == 0) {
                out->state = RI_NULL;
                out->v.f = (double)NAN;
            } else if (read->what == RI_WHAT_MEAN)
                out->v.f = (double)value / (double)count / read->scale;
            else
                out->v.f = (double)value / read->scale;
        }
    }
}

static void read_unknown(const ri_window_plan *plan, ri_state *st) {
    for (int32_t r = 0; r < plan->n_reads; ++r) {
        ri_slot *out = &st->slots[plan->reads[r].slot];
        out->state = RI_UNKNOWN;
        out->hashed = 0;
        out->calendar = 0;
        out->updated_ns = INT64_MAX;
        out->v.f = (double)NAN;
    }
}

static int64_t seconds_to_ns(uint32_t s) { return s ? ((int64_t)s + RI_EPOCH_S) * SECOND : INT64_MIN; }

void ri_windows_read(const ri_windows *w, const ri_window_plan *plan, const ri_window_call *call, ri_state *st) {
    static const uint8_t nothing[16] = {0};
    if (!call->known) {
        read_unknown(plan, st);
        return;
    }
    if (call->version != w->counts.version) { /* another step moved blocks since: look again, without changing anything */
        ri_window_call *again = (ri_window_call *)(uintptr_t)call; /* the sections are scratch of the call */
        again->place = find(w, call->key.data, (size_t)call->key.size, call->hash);
        if (again->place != RI_NOWHERE)
            find_sections(w, plan, again, at_place(w, again->place));
        else {
            memset(again->sections, 0, (size_t)plan->n_accs * sizeof(ri_section));
            again->ring.count = 0;
        }
        again->version = w->counts.version;
    }
    if (call->place == RI_NOWHERE)
        ri_windows_read_block(w, plan, call, nothing, seconds_to_ns(w->evicted_until_s), st);
    else {
        const block *b = at_place(w, call->place);
        ri_windows_read_block(w, plan, call, (const uint8_t *)b, seconds_to_ns(b->known_s), st);
    }
}

/* ---- add -------------------------------------------------------------------------------------------------------------- */

typedef struct edit { /* of one section: drop entries from its start, insert one */
    int32_t acc;
    uint32_t drop, at; /* `at` counts before the drop */
    uint8_t insert;
    uint8_t bytes[16];
} edit;

#define MAX_EDITS 65 /* adds of a plan and its ring */

/* Write the block with its edits to `to`, which is other memory. `from` NULL: a new entity. */
static void build(const ri_windows *w, const block *from, uint8_t *to, const ri_window_call *call, const edit *edits, int n_edits,
                  uint32_t n_sections) {
    block *b = (block *)(void *)to;
    entry_of_directory *d;
    const entry_of_directory *old = NULL;
    const uint8_t *entries = NULL;
    uint32_t n_old = 0, o = 0;
    int e = 0;
    if (from) {
        *b = *from;
        n_old = from->n_sections;
        old = const_directory(from);
        entries = const_key_of(from) + from->key_size;
    } else {
        memset(b, 0, sizeof *b);
        b->hash = call->hash;
        b->key_size = (uint16_t)call->key.size;
        b->known_s = w->evicted_until_s;
    }
    b->n_sections = (uint16_t)n_sections;
    d = directory(b);
    uint8_t *out = key_of(b);
    memcpy(out, from ? (const char *)const_key_of(from) : call->key.data, b->key_size);
    out += b->key_size;
    while (o < n_old || e < n_edits) {
        const edit *change = NULL;
        uint32_t count = 0;
        int32_t acc;
        if (o < n_old && (e == n_edits || (int32_t)old[o].acc <= edits[e].acc)) {
            acc = old[o].acc;
            count = old[o++].count;
            if (e < n_edits && edits[e].acc == acc)
                change = &edits[e++];
        } else {
            acc = edits[e].acc;
            change = &edits[e++];
        }
        const size_t size = ENTRY_BYTES[w->accs[acc].kind];
        const uint8_t *next = entries + count * size;
        if (change == NULL) {
            memcpy(out, entries, count * size);
            out += count * size;
        } else {
            const uint32_t drop = change->drop, at = change->at;
            if (at > drop)
                memcpy(out, entries + drop * size, (at - drop) * size);
            out += (at - drop) * size;
            if (change->insert) {
                memcpy(out, change->bytes, size);
                out += size;
            }
            if (count > at)
                memcpy(out, entries + at * size, (count - at) * size);
            out += (count - at) * size;
            count = count - drop + change->insert;
        }
        if (count) {
            d->acc = (uint16_t)acc;
            d->count = (uint16_t)count;
            ++d;
        }
        entries = next;
    }
    assert(d == directory(b) + n_sections);
}

static int reserve_scratch(ri_windows *w, size_t size) {
    if (size <= w->scratch_room)
        return 0;
    uint8_t *larger = (uint8_t *)realloc(w->scratch, size * 2);
    if (larger == NULL)
        return -1;
    w->scratch = larger;
    w->scratch_room = size * 2;
    return 0;
}

/* What a change of shape needs. Everything that can fail comes first, so that an event is added wholly or not at all. */
typedef struct shape {
    size_t size;
    uint32_t n_sections, place; /* place: where the block goes; the old one if it fits there */
    int64_t panes;              /* entries more than before */
} shape;

/* 0 = done; -1 = no memory, nothing has changed. */
static int reserve_shape(ri_windows *w, const ri_window_call *call, const edit *edits, int n_edits, shape *out) {
    const block *from = call->place == RI_NOWHERE ? NULL : at_place(w, call->place);
    const uint32_t n_old = from ? from->n_sections : 0;
    const entry_of_directory *old = from ? const_directory(from) : NULL;
    uint32_t o = 0;
    int e = 0;
    out->size = sizeof(block) + (size_t)call->key.size;
    out->n_sections = 0;
    out->panes = 0;
    while (o < n_old || e < n_edits) { /* the same walk as in build */
        uint32_t count = 0;
        int32_t acc;
        if (o < n_old && (e == n_edits || (int32_t)old[o].acc <= edits[e].acc)) {
            acc = old[o].acc;
            count = old[o++].count;
            out->panes -= count;
            if (e < n_edits && edits[e].acc == acc) {
                count = count - edits[e].drop + edits[e].insert;
                ++e;
            }
        } else {
            acc = edits[e].acc;
            count = edits[e++].insert;
        }
        out->panes += count;
        out->n_sections += count != 0;
        out->size += count ? 4 + count * (size_t)ENTRY_BYTES[w->accs[acc].kind] : 0;
    }
    const uint32_t units = (uint32_t)((out->size + UNIT - 1) / UNIT);
    if (from && (call->place & LARGE ? units > MAX_UNITS && units <= w->large[call->place & ~LARGE].units
                                     : units <= MAX_UNITS && w->classes[class_for(units)].units == units_at(w, call->place))) {
        out->place = call->place;
        return reserve_scratch(w, out->size);
    }
    if (from == NULL && index_room(w))
        return -1;
    out->place = allocate(w, units);
    return out->place == RI_NOWHERE ? -1 : 0;
}

/* Where the block is after all. */
static uint32_t reshape(ri_windows *w, const ri_window_call *call, const edit *edits, int n_edits, const shape *to) {
    if (to->place == call->place) {
        block *b = at_place(w, to->place);
        build(w, b, w->scratch, call, edits, n_edits, to->n_sections);
        memcpy(b, w->scratch, to->size);
        touch(w, to->place);
    } else if (call->place == RI_NOWHERE) {
        build(w, NULL, (uint8_t *)at_place(w, to->place), call, edits, n_edits, to->n_sections);
        link_newest(w, to->place);
        index_put(w, call->hash, to->place);
        ++w->n;
    } else {
        const int dumped_next = w->cursor == call->place;
        build(w, at_place(w, call->place), (uint8_t *)at_place(w, to->place), call, edits, n_edits, to->n_sections);
        unlink_block(w, call->place);
        link_newest(w, to->place);
        if (dumped_next && w->cursor == RI_NOWHERE)
            w->cursor = to->place;
        point_slot(w, call->hash, call->place, to->place);
        release(w, call->place);
    }
    w->counts.panes += to->panes;
    ++w->counts.version;
    return w->newest;
}

static void put_edit(edit *edits, int *n, const edit *one) {
    int i = (*n)++;
    for (; i > 0 && edits[i - 1].acc > one->acc; --i)
        edits[i] = edits[i - 1];
    edits[i] = *one;
}

int ri_windows_add(ri_windows *w, const ri_window_plan *plan, ri_window_call *call) {
    edit edits[MAX_EDITS];
    uint32_t in_place[MAX_EDITS]; /* offset of the entry to change, 0: none */
    int n_edits = 0, taken = 0, late = 0;
    if (!call->known) {
        ++w->counts.no_key;
        return 0;
    }
    if (!call->ready)
        return 0;
    call->ready = 0; /* once */
    w->counts.ahead += call->ahead;
    if (call->duplicate) {
        ++w->counts.duplicates;
        return 0;
    }
    if (call->version != w->counts.version)
        locate(w, plan, call);
    uint8_t *base = call->place == RI_NOWHERE ? NULL : (uint8_t *)at_place(w, call->place);
    for (int32_t i = 0; i < plan->n_adds; ++i) {
        const int32_t acc = plan->adds[i].acc;
        const ri_accumulator *a = &w->accs[plan->accs[acc]];
        const ri_section *s = &call->sections[acc];
        const ri_window_input *in = &call->inputs[i];
        const size_t entry = ENTRY_BYTES[a->kind];
        const int64_t pane = call->panes[acc];
        edit one = {plan->accs[acc], 0, 0, 1, {0}};
        in_place[i] = 0;
        if (!in->applies)
            continue;
        if (s->count) {
            const int64_t newest = newest_pane(base, s, entry);
            if (pane <= newest - a->keep) {
                late = 1;
                continue;
            }
            one.at = entries_before(base, s, entry, pane);
            const uint8_t *p = base + s->offset + one.at * entry;
            const int there = one.at < s->count && (int64_t)ri_load32(p) == pane;
            if (a->kind != RI_ACC_DISTINCT && there) {
                in_place[i] = (uint32_t)(p - base);
                ++taken;
                continue;
            }
            if (there) { /* sorted by pane, then hash */
                uint32_t same = 0, before = 0;
                int found = 0;
                for (uint32_t j = one.at; j < s->count && (int64_t)ri_load32(base + s->offset + j * entry) == pane; ++j) {
                    const uint32_t hash = ri_load32(base + s->offset + j * entry + 4);
                    found |= hash == in->hash;
                    before += hash < in->hash;
                    ++same;
                }
                one.at += before;
                if (found || same >= RI_MAX_DISTINCT) {
                    in_place[i] = UINT32_MAX; /* nothing to write, but the entity was updated */
                    ++taken;
                    continue;
                }
            }
            if (pane > newest) /* whatever falls out behind the newest */
                while (one.drop < s->count && (int64_t)ri_load32(base + s->offset + one.drop * entry) <= pane - a->keep)
                    ++one.drop;
        }
        store32(one.bytes, (uint32_t)pane);
        if (a->kind == RI_ACC_COUNT || a->kind == RI_ACC_SUM) {
            store32(one.bytes + 4, 1);
            store64(one.bytes + 8, (uint64_t)in->value);
        } else if (a->kind == RI_ACC_DISTINCT)
            store32(one.bytes + 4, in->hash);
        else
            store64(one.bytes + 4, (uint64_t)in->value);
        put_edit(edits, &n_edits, &one);
        ++taken;
    }
    w->counts.late += late;
    if (taken == 0)
        return 0;
    if (call->event_hash && call->ring.count < RI_RING) {
        edit one = {plan->ids, 0, call->ring.count, 1, {0}};
        store64(one.bytes, call->event_hash);
        put_edit(edits, &n_edits, &one);
    }
    const uint32_t at_s = (uint32_t)(seconds_of(call->at_ns));
    const int is_new = call->place == RI_NOWHERE;
    shape to = {0, 0, call->place, 0};
    if (n_edits && reserve_shape(w, call, edits, n_edits, &to)) {
        ++w->counts.no_memory;
        return 0;
    }
    if (base) { /* values that change where they are, before the block is copied */
        for (int32_t i = 0; i < plan->n_adds; ++i) {
            if (in_place[i] == 0 || in_place[i] == UINT32_MAX)
                continue;
            const int kind = w->accs[plan->accs[plan->adds[i].acc]].kind;
            uint8_t *p = base + in_place[i];
            const int64_t value = call->inputs[i].value;
            if (kind == RI_ACC_COUNT || kind == RI_ACC_SUM) {
                const int64_t sum = kind == RI_ACC_SUM ? (int64_t)ri_load64(p + 8) + value : 0;
                if (ri_load32(p + 4) == UINT32_MAX || sum > RI_MAX_EXACT || sum < -RI_MAX_EXACT)
                    continue; /* only if somebody added between prepare and add */
                store32(p + 4, ri_load32(p + 4) + 1);
                if (kind == RI_ACC_SUM)
                    store64(p + 8, (uint64_t)sum);
            } else {
                const int64_t now = (int64_t)ri_load64(p + 4);
                if (kind == RI_ACC_MIN ? value < now : value > now)
                    store64(p + 4, (uint64_t)value);
            }
        }
        if (call->event_hash && call->ring.count == RI_RING) {
            uint8_t *ring = base + call->ring.offset;
            memmove(ring, ring + 8, 8 * (RI_RING - 1));
            store64(ring + 8 * (RI_RING - 1), call->event_hash);
        }
    }
    for (int32_t i = 0; i < plan->n_adds; ++i)
        if (call->inputs[i].applies)
            w->accs[plan->accs[plan->adds[i].acc]].used = 1;
    if (n_edits)
        to.place = reshape(w, call, edits, n_edits, &to);
    else
        touch(w, to.place);
    block *b = at_place(w, to.place);
    b->last_s = at_s > b->last_s ? at_s : b->last_s;
    ++w->counts.events;
    if (is_new && call->sweep_ns > 0) {
        const int64_t now_s = seconds_of(call->sweep_ns);
        for (int i = 0; i < 2 && w->oldest != w->newest; ++i) {
            if ((int64_t)at_place(w, w->oldest)->last_s + w->horizon_s >= now_s)
                break;
            forget_oldest(w);
            ++w->counts.swept;
        }
    }
    while (RI_UNLIKELY(over_limits(w)) && w->oldest != w->newest) {
        forget_oldest(w);
        ++w->counts.evicted;
    }
    return taken;
}

/* ---- state that is kept elsewhere ---------------------------------------------------------------------------------------- */

int64_t ri_windows_limit(const ri_windows *w, const ri_window_plan *plan, const ri_accumulator *a, int64_t clock_ns) {
    return clock_ns > 0 ? pane_of(a, &plan->zone, clock_ns + w->max_ahead_ns) : (int64_t)UINT32_MAX;
}

void ri_windows_count(ri_windows *w, const ri_window_plan *plan, ri_window_call *call, const uint8_t *base) {
    int taken = 0, late = 0;
    if (!call->ready)
        return;
    call->ready = 0; /* once */
    w->counts.ahead += call->ahead;
    if (call->duplicate) {
        ++w->counts.duplicates;
        return;
    }
    for (int32_t i = 0; i < plan->n_adds; ++i) {
        const ri_accumulator *a = &w->accs[plan->accs[plan->adds[i].acc]];
        const ri_section *s = &call->sections[plan->adds[i].acc];
        if (!call->inputs[i].applies)
            continue;
        if (s->count && call->panes[plan->adds[i].acc] <= newest_pane(base, s, ENTRY_BYTES[a->kind]) - a->keep)
            late = 1;
        else
            taken = 1;
    }
    w->counts.late += late;
    w->counts.events += taken;
}

/* ---- saving ------------------------------------------------------------------------------------------------------------- */

#define SAVED_HEADER 16 /* uint32 bytes in all, last_s, known_s; uint16 key size, sections */

int64_t ri_windows_dump_begin(ri_windows *w) {
    w->cursor = w->oldest;
    return ++w->dump_token;
}

int64_t ri_windows_dump(ri_windows *w, int64_t token, uint8_t *out, int64_t room, int64_t *needed) {
    int64_t used = 0;
    if (token != w->dump_token)
        return RI_DUMP_STALE;
    while (w->cursor != RI_NOWHERE) {
        const block *b = at_place(w, w->cursor);
        const size_t body = block_bytes(w, b) - sizeof(block);
        const int64_t size = (int64_t)body + SAVED_HEADER;
        if (used + size > room) {
            *needed = size;
            return used ? used : RI_DUMP_ROOM;
        }
        store32(out + used, (uint32_t)size);
        store32(out + used + 4, b->last_s);
        store32(out + used + 8, b->known_s);
        memcpy(out + used + 12, &b->key_size, 2);
        memcpy(out + used + 14, &b->n_sections, 2);
        memcpy(out + used + SAVED_HEADER, const_directory(b), body);
        used += size;
        w->cursor = b->prev;
    }
    return used;
}

/* One saved block, checked: everything that later code relies on. Writes it into w->scratch in the order of the numbers here.
 * Returns its size, 0 = not one, -1 = no memory. */
static int64_t take_saved(ri_windows *w, const uint8_t *data, int64_t size, const int32_t *map, int32_t n_map) {
    uint16_t key_size, n_sections, kept = 0;
    entry_of_directory d[RI_MAX_ACCUMULATORS];
    size_t offsets[RI_MAX_ACCUMULATORS];
    memcpy(&key_size, data + 12, 2);
    memcpy(&n_sections, data + 14, 2);
    size_t at = SAVED_HEADER + 4u * n_sections + key_size;
    if (key_size > RI_MAX_WINDOW_KEY || n_sections > RI_MAX_ACCUMULATORS || at > (size_t)size)
        return 0;
    for (uint32_t i = 0; i < n_sections; ++i) {
        entry_of_directory one;
        memcpy(&one, data + SAVED_HEADER + 4u * i, 4);
        if (one.acc >= n_map || map[one.acc] < 0)
            return 0;
        one.acc = (uint16_t)map[one.acc];
        const ri_accumulator *a = &w->accs[one.acc];
        const size_t entry = ENTRY_BYTES[a->kind];
        const uint8_t *p = data + at;
        if (one.count * entry > (size_t)size - at)
            return 0;
        if (one.count == 0)
            continue; /* emptied by ri_windows_repair */
        if (a->kind == RI_ACC_IDS) {
            if (one.count > RI_RING)
                return 0;
        } else
            for (uint32_t j = 0; j < one.count; ++j, p += entry) {
                if (a->kind != RI_ACC_DISTINCT) {
                    if (j && ri_load32(p) <= ri_load32(p - entry))
                        return 0;
                } else if (j && (ri_load32(p) < ri_load32(p - entry) ||
                                 (ri_load32(p) == ri_load32(p - entry) && ri_load32(p + 4) <= ri_load32(p - entry + 4))))
                    return 0;
                if (a->kind == RI_ACC_COUNT || a->kind == RI_ACC_DISTINCT)
                    continue;
                const int64_t value = (int64_t)ri_load64(p + (a->kind == RI_ACC_SUM ? 8 : 4));
                if (value > RI_MAX_EXACT || value < -RI_MAX_EXACT)
                    return 0;
            }
        if (a->kind != RI_ACC_IDS) {
            const uint8_t *first = data + at, *last = first + (size_t)(one.count - 1) * entry;
            if ((int64_t)ri_load32(last) - (int64_t)ri_load32(first) >= RI_MAX_KEEP)
                return 0;
            if (a->kind == RI_ACC_DISTINCT)
                for (uint32_t j = RI_MAX_DISTINCT; j < one.count; ++j)
                    if (ri_load32(first + 8 * (size_t)j) == ri_load32(first + 8 * (size_t)(j - RI_MAX_DISTINCT)))
                        return 0;
        }
        uint32_t k = kept++;
        for (; k > 0 && d[k - 1].acc > one.acc; --k) {
            d[k] = d[k - 1];
            offsets[k] = offsets[k - 1];
        }
        if (k > 0 && d[k - 1].acc == one.acc)
            return 0;
        d[k] = one;
        offsets[k] = at;
        at += one.count * entry;
    }
    if (at != (size_t)size)
        return 0;
    const size_t bytes = (size_t)size - SAVED_HEADER + sizeof(block) - 4u * (uint32_t)(n_sections - kept);
    if (reserve_scratch(w, bytes))
        return -1;
    block *b = (block *)(void *)w->scratch;
    memset(b, 0, sizeof *b);
    b->last_s = ri_load32(data + 4);
    b->known_s = ri_load32(data + 8);
    b->key_size = key_size;
    b->n_sections = kept;
    memcpy(directory(b), d, 4u * kept);
    memcpy(key_of(b), data + SAVED_HEADER + 4u * n_sections, key_size);
    uint8_t *out = key_of(b) + key_size;
    for (uint32_t i = 0; i < kept; ++i) {
        const size_t n = (size_t)d[i].count * ENTRY_BYTES[w->accs[d[i].acc].kind];
        memcpy(out, data + offsets[i], n);
        out += n;
        w->accs[d[i].acc].used = 1;
    }
    return (int64_t)bytes;
}

int ri_windows_load(ri_windows *w, const uint8_t *data, int64_t size, const int32_t *map, int32_t n_map) {
    for (int64_t at = 0; at < size;) {
        if (size - at < SAVED_HEADER)
            return -1;
        const int64_t one = (int64_t)ri_load32(data + at);
        if (one < SAVED_HEADER || one > size - at)
            return -1;
        const int64_t bytes = take_saved(w, data + at, one, map, n_map);
        if (bytes <= 0)
            return bytes == 0 ? -1 : -2;
        block *b = (block *)(void *)w->scratch;
        const char *key = (const char *)key_of(b);
        b->hash = hash_key(w, key, b->key_size);
        const uint32_t before = find(w, key, b->key_size, b->hash);
        if (before != RI_NOWHERE)
            forget(w, before); /* it was written twice: the later one counts */
        if (index_room(w))
            return -2;
        const uint32_t place = allocate(w, (uint32_t)((bytes + UNIT - 1) / UNIT));
        if (place == RI_NOWHERE)
            return -2;
        memcpy(at_place(w, place), w->scratch, (size_t)bytes);
        link_newest(w, place);
        index_put(w, b->hash, place);
        ++w->n;
        w->counts.panes += block_panes(b);
        ++w->counts.version;
        while (over_limits(w) && w->oldest != w->newest) {
            forget_oldest(w);
            ++w->counts.evicted;
        }
        at += one;
    }
    return 0;
}
