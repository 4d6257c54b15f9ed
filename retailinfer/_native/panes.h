/* Velocity windows of one kind of entity: blocks of sparse panes, the index to them, and the arithmetic. Pure C, no Python.h.
 *
 * What is kept. An accumulator cuts time into panes (id = floor(time / pane)); each entity has, for each accumulator that has
 * seen an event of it, a sorted run of the panes that are not empty. A window is a range of panes, summed when it is read, so
 * that neither the order of events nor a restart can change a bit: every value is an integer (fixed point) until the last step.
 *     count     {uint32 pane, uint32 count}
 *     sum       {uint32 pane, uint32 count, int64 sum}      serves sum, mean, count, lag
 *     min, max  {uint32 pane, int64 value}, 12 bytes
 *     distinct  {uint32 pane, uint32 hash}                  at most 64 of one pane
 *     ids       {uint64 hash}                               the last 8 event ids, oldest first
 * Pane ids are stored relative to 1950, so that 32 bits hold 136 years of 1 s panes.
 *
 * A block (one entity), a multiple of 8 bytes:
 *     header 24 bytes | directory: {uint16 accumulator, uint16 entries} each | key | entries of each accumulator in turn
 *
 * Rules:
 *   - Everything here runs under the GIL, finishes, and cannot be entered again meanwhile. Nothing is half done at a fork.
 *   - `prepare` checks everything that can be wrong with an event; `read` and `add` cannot fail on it.
 *   - What an event does to a window does not depend on which other windows exist, nor on the order of events:
 *     a window of n panes with a delay of d panes treats panes <= newest - (n + d + 2) as gone, `newest` being the newest pane
 *     that its accumulator holds for the entity. It says so (RI_STALE) where that takes something away.
 *     Only what is refused (the sum of a pane overflows) may depend on what else is kept, and on the order.
 *   - |value| <= 2^53 and |sum of a pane| <= 2^53; with at most 1000 panes no total leaves int64, and Redis' scripts are exact.
 *   - Blocks of one size lie dense: whatever is freed, the last one moves into its place. A block's place is therefore valid
 *     only until the next `add`, which `version` tells.
 *   - Least recently updated order is exact.
 * panes.c has the code; windows.pyx compiles plans, owns the memory and raises; windows_reference.py is the readable twin.
 */
#ifndef RETAILINFER_PANES_H
#define RETAILINFER_PANES_H

#include "feature_ops.h"
#include "hashing.h"
#include "table.h"

enum { RI_ACC_COUNT = 0, RI_ACC_SUM = 1, RI_ACC_MIN = 2, RI_ACC_MAX = 3, RI_ACC_DISTINCT = 4, RI_ACC_IDS = 5 };

enum { /* what a window tells of its accumulator */
    RI_WHAT_COUNT = 0, RI_WHAT_SUM = 1, RI_WHAT_MEAN = 2, RI_WHAT_MIN = 3, RI_WHAT_MAX = 4, RI_WHAT_DISTINCT = 5, RI_WHAT_LAG = 6
};

enum { /* what `prepare` may find wrong with an event */
    RI_WINDOW_OK = 0, RI_WINDOW_VALUE = 1, /* not finite, or beyond 2^53 units of its scale */
    RI_WINDOW_SUM = 2,                     /* the pane's sum or count would leave its range */
    RI_WINDOW_TIME = 3,                    /* outside what pane ids can hold */
    RI_WINDOW_MEMORY = 4
};

#define RI_MAX_KEEP 1000             /* panes that one accumulator keeps of an entity */
#define RI_MAX_ACCUMULATORS 1024     /* of one group, over all releases that it has seen */
#define RI_MAX_WINDOW_KEY 1024       /* bytes of a canonical key; an entity with a longer one is `unknown` */
#define RI_ENTRY_BYTES {8, 16, 12, 12, 8, 8} /* by kind */
#define RI_MAX_DISTINCT 64
#define RI_RING 8
#define RI_MAX_EXACT (INT64_C(1) << 53)
#define RI_EPOCH_S INT64_C(-631152000) /* 1950-01-01: pane ids and seconds in blocks count from here */

typedef struct ri_accumulator {
    int64_t pane_ns;
    int64_t since_ns; /* everything from here on is in it */
    int64_t deep_since_ns; /* the same for windows that need more than `first_keep` panes */
    int32_t keep, first_keep;
    uint8_t kind, calendar, used;
    uint32_t pane_s; /* these two are made by ri_windows_register */
    int64_t phase_s; /* seconds from the start of the pane that holds 1950 to 1950 */
} ri_accumulator;

typedef struct ri_windows ri_windows;

typedef struct ri_window_counts {
    int64_t entities, live_bytes, bytes; /* `bytes`: of all memory, with index and what is free */
    int64_t events, late, duplicates, ahead, evicted, swept, erased, no_key, stepped, refused, no_memory;
    int64_t panes;     /* entries in all blocks */
    int64_t evicted_until_ns;
    int64_t version;
} ri_window_counts;

/* ---- plans --------------------------------------------------------------------------------------------------------- */

typedef struct ri_term { /* one comparison of `where`; a null is never true */
    int32_t slot, op;    /* 0 <, 1 <=, 2 >, 3 >=, 4 ==, 5 != */
    int32_t kind;        /* of the constant: 0 double, 1 int64, 2 text */
    double number;
    int64_t integer;
    ri_text text;
} ri_term;

typedef struct ri_window_add {
    int32_t acc;   /* in plan.accs */
    int32_t of;    /* slot, or -1 */
    int32_t first_term, n_terms;
    double scale;
} ri_window_add;

typedef struct ri_window_read {
    int32_t slot, acc; /* acc in plan.accs */
    int32_t what, add; /* `add`: the plan's add that feeds it, -1: none of this stream */
    int32_t n, keep;   /* panes; keep = n + delay + lag + 2 */
    int32_t lag, with_event; /* with_event: as if the event had been added */
    int64_t delay_ns;
    double scale;
} ri_window_read;

typedef struct ri_window_plan {
    const int32_t *keys;
    int32_t n_keys;
    const int32_t *accs; /* numbers in the group */
    int32_t n_accs;
    const ri_window_add *adds;
    int32_t n_adds;
    const ri_window_read *reads;
    int32_t n_reads;
    const ri_term *terms;
    ri_zone zone;
    int32_t ids;         /* number of the stream's ring of ids */
} ri_window_plan;

/* ---- one call ------------------------------------------------------------------------------------------------------ */

typedef struct ri_section {
    uint32_t offset; /* of the first entry in the block; 0: none */
    uint32_t count;
} ri_section;

typedef struct ri_window_input {
    int64_t value;
    uint32_t hash;
    uint8_t applies;
} ri_window_input;

typedef struct ri_window_call {
    ri_text key;             /* canonical; the caller's memory or `scratch` */
    char *scratch;
    size_t room;
    int64_t at_ns, now_ns;
    int64_t sweep_ns;        /* entities whose windows ended before this may go; 0: none */
    int64_t offset_s;        /* of the zone at at_ns */
    uint64_t event_hash;     /* 0: none */
    uint32_t place;          /* of the block; RI_NOWHERE: the entity is not known */
    uint32_t hash;           /* of the key */
    int64_t version;         /* of the group when `place` was found */
    int32_t error, error_slot;
    double error_value;
    uint8_t known, duplicate, ahead, ready;
    uint8_t suspect;         /* the entity has events from after now_ns: see ri_windows_repair */
    ri_section *sections;    /* (n_accs) */
    int64_t *panes;          /* (n_accs) id of the event's pane, relative */
    ri_window_input *inputs; /* (n_adds) */
    ri_section ring;
} ri_window_call;

#define RI_NOWHERE 0xFFFFFFFFu

ri_windows *ri_windows_new(int64_t max_entities, int64_t max_bytes, int64_t max_ahead_ns, ri_siphash_key key);
void ri_windows_free(ri_windows *w);
void ri_windows_counts(const ri_windows *w, ri_window_counts *out);
/* Take over what another one counted, so that a restore does not reset it. */
void ri_windows_take_counts(ri_windows *w, const ri_windows *from);
ri_accumulator *ri_windows_accumulators(ri_windows *w);
void ri_windows_set_evicted_until(ri_windows *w, int64_t evicted_until_ns);
/* The next number, or -1 when there is no room. Call `ri_windows_retimed` after a change of pane or keep. */
int ri_windows_register(ri_windows *w, const ri_accumulator *acc);
void ri_windows_retimed(ri_windows *w);

/* The three steps of a call. `now_ns` 0: no clock (replay, backfill): nothing is `ahead`, nothing is swept.
 * `before_since`: only what is dated before its accumulator's since_ns is added (backfill behind live events).
 * prepare returns RI_WINDOW_*; read fills the window slots as of before `add`; add returns how many accumulators took it. */
int ri_windows_prepare(ri_windows *w, const ri_window_plan *plan, ri_window_call *call, const ri_state *st, int64_t at_ns,
                       int64_t now_ns, uint64_t event_hash, int before_since);
void ri_windows_read(const ri_windows *w, const ri_window_plan *plan, const ri_window_call *call, ri_state *st);
int ri_windows_add(ri_windows *w, const ri_window_plan *plan, ri_window_call *call);

/* After a prepare that found the entity `suspect`, with the time of the true clock (a caller's "now" may be any moment of the
 * past): events far ahead of it were recorded while the clock was wrong. Takes out what lies in a future that cannot be, so that
 * it does not make all later events late. 1: prepare again. */
int ri_windows_repair(ri_windows *w, const ri_window_plan *plan, const ri_window_call *call, int64_t now_ns);

/* All windows of a plan out of `base`, in which call->sections are. known_ns: what happened before is not known. */
void ri_windows_read_block(const ri_windows *w, const ri_window_plan *plan, const ri_window_call *call, const uint8_t *base,
                           int64_t known_ns, ri_state *st);

/* 1: it was there. */
int ri_windows_erase(ri_windows *w, const char *key, int64_t size);

/* ---- state that is kept elsewhere: windows_wire.h ------------------------------------------------------------------ */

/* The last pane that an event may have by the true clock; 0: there is none. */
int64_t ri_windows_limit(const ri_windows *w, const ri_window_plan *plan, const ri_accumulator *a, int64_t clock_ns);
/* Count an event that was added elsewhere, by the sections found in `base`, if call->ready. */
void ri_windows_count(ri_windows *w, const ri_window_plan *plan, ri_window_call *call, const uint8_t *base);

/* ---- saving ---------------------------------------------------------------------------------------------------------- */

/* Oldest update first. Between two calls entities may change: one that does is given again later, and the last one counts.
 * Only one dump at a time: begin returns its token, and a dump with an older token ends with RI_DUMP_STALE. */
#define RI_DUMP_STALE (-1)
#define RI_DUMP_ROOM (-2) /* the next block needs `needed` bytes */
int64_t ri_windows_dump_begin(ri_windows *w);
int64_t ri_windows_dump(ri_windows *w, int64_t token, uint8_t *out, int64_t room, int64_t *needed);
/* Blocks out of `dump` into `w`; map[saved number] = number here. 0, -1 = not a dump, -2 = no memory. */
int ri_windows_load(ri_windows *w, const uint8_t *data, int64_t size, const int32_t *map, int32_t n_map);

#endif
