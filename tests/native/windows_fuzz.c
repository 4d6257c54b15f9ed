/* libFuzzer's door to what reads windows out of bytes: an entity's value from Redis, and blocks of a dump.
 *
 * A case is one byte and the bytes: 0 is a value, 1 blocks into windows that are new, 2 into such as have events already.
 * Rules:
 *   - The bytes lie in memory of their exact size, so that the sanitiser sees one read too far.
 *   - The size in a value and the sizes of blocks are made right in half of the cases: else little gets past the first check.
 *   - What was taken over is read by events at several times, added to, erased, dumped, and loaded once more.
 * Values of a window are finite, and only states of windows come out; everything else is the sanitisers'.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "windows_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SECOND INT64_C(1000000000)
#define NOW (INT64_C(1700000000) * SECOND)
enum { CARD, SHOP, AMOUNT, FIRST_WINDOW, N_ACCS = 5, N_READS = 7, N_SLOTS = FIRST_WINDOW + N_READS };

static const int64_t ZONE_AT[1] = {INT64_MIN};
static const int32_t ZONE_OFFSET[1] = {0};
static const int32_t KEYS[1] = {CARD};
static const int32_t ACCS[N_ACCS] = {0, 1, 2, 3, 4};
static const uint64_t DIGESTS[N_ACCS + 1] = {11, 12, 13, 14, 15, 16};
static const ri_window_add ADDS[N_ACCS] = {
    {0, -1, 0, 0, 1.0}, {1, AMOUNT, 0, 0, 100.0}, {2, AMOUNT, 0, 0, 100.0}, {3, AMOUNT, 0, 0, 100.0}, {4, SHOP, 0, 0, 1.0}};
static const ri_window_read READS[N_READS] = {
    {FIRST_WINDOW + 0, 0, RI_WHAT_COUNT, 0, 10, 12, 0, 1, 0, 1.0},
    {FIRST_WINDOW + 1, 1, RI_WHAT_SUM, 1, 10, 12, 0, 1, 0, 100.0},
    {FIRST_WINDOW + 2, 1, RI_WHAT_MEAN, 1, 6, 8, 0, 0, 0, 100.0},
    {FIRST_WINDOW + 3, 2, RI_WHAT_MIN, 2, 4, 6, 0, 1, 0, 100.0},
    {FIRST_WINDOW + 4, 3, RI_WHAT_MAX, 3, 4, 6, 0, 0, 0, 100.0},
    {FIRST_WINDOW + 5, 4, RI_WHAT_DISTINCT, 4, 6, 8, 0, 1, 0, 1.0},
    {FIRST_WINDOW + 6, 1, RI_WHAT_LAG, 1, 1, 5, 2, 0, 0, 100.0}};
static const uint8_t KINDS[N_ACCS + 1] = {RI_ACC_COUNT, RI_ACC_SUM, RI_ACC_MIN, RI_ACC_MAX, RI_ACC_DISTINCT, RI_ACC_IDS};

static void check(int holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "does not hold: %s\n", what);
        abort();
    }
}

static ri_windows *made(void) {
    const ri_siphash_key key = {1, 2};
    ri_windows *w = ri_windows_new(64, 1 << 20, 300 * SECOND, key);
    check(w != NULL, "there is memory");
    for (int i = 0; i <= N_ACCS; ++i) {
        ri_accumulator a;
        memset(&a, 0, sizeof a);
        a.kind = KINDS[i];
        a.pane_ns = 60 * SECOND;
        a.keep = a.first_keep = i == N_ACCS ? RI_RING : 14;
        a.since_ns = a.deep_since_ns = NOW - 100000 * SECOND;
        a.used = 1;
        check(ri_windows_register(w, &a) == i, "accumulators are numbered in order");
    }
    ri_windows_retimed(w);
    return w;
}

typedef struct event {
    ri_slot slots[N_SLOTS];
    ri_state st;
    ri_window_plan plan;
    ri_window_call call;
    ri_section sections[N_ACCS];
    int64_t panes[N_ACCS];
    ri_window_input inputs[N_ACCS];
    char name[8];
} event;

static void fill(event *e, int number) {
    memset(e, 0, sizeof *e);
    e->name[0] = (char)('a' + number);
    for (int i = 0; i < N_SLOTS; ++i)
        e->slots[i].kind = RI_SLOT_F64;
    e->slots[CARD].kind = RI_SLOT_TEXT;
    e->slots[CARD].v.text = e->name;
    e->slots[CARD].n = 1;
    e->slots[SHOP].kind = RI_SLOT_I64;
    e->slots[SHOP].v.i = number;
    e->slots[AMOUNT].v.f = number * 1.25;
    e->st.slots = e->slots;
    e->plan.keys = KEYS;
    e->plan.n_keys = 1;
    e->plan.accs = ACCS;
    e->plan.n_accs = N_ACCS;
    e->plan.adds = ADDS;
    e->plan.n_adds = N_ACCS;
    e->plan.reads = READS;
    e->plan.n_reads = N_READS;
    e->plan.zone.at_s = ZONE_AT;
    e->plan.zone.offset_s = ZONE_OFFSET;
    e->plan.zone.n = 1;
    e->plan.ids = N_ACCS;
    e->call.sections = e->sections;
    e->call.panes = e->panes;
    e->call.inputs = e->inputs;
}

static void check_reads(const event *e) {
    for (int i = FIRST_WINDOW; i < N_SLOTS; ++i) {
        check(e->slots[i].state < RI_N_STATES, "a window has a state");
        check(e->slots[i].state != RI_PRESENT || isfinite(e->slots[i].v.f), "a window is finite");
    }
}

static const int64_t TIMES[3] = {NOW, NOW - 500 * SECOND, NOW + 86400 * SECOND};

static void value(ri_windows *w, uint8_t *bytes, size_t size) {
    for (int t = 0; t < 3; ++t) {
        event e;
        int64_t known_ns = 0;
        fill(&e, t);
        if (ri_windows_prepare(w, &e.plan, &e.call, &e.st, TIMES[t], NOW, (uint64_t)(t + 1), 0) || !e.call.known)
            continue;
        e.call.ready = 1;
        if (ri_wire_open(w, &e.plan, &e.call, DIGESTS, NOW, bytes, (int64_t)size, &known_ns) == 0) {
            ri_windows_read_block(w, &e.plan, &e.call, bytes, known_ns, &e.st);
            ri_windows_count(w, &e.plan, &e.call, bytes);
            check_reads(&e);
        }
        free(e.call.scratch);
    }
}

static void events(ri_windows *w) {
    for (int number = 0; number < 4; ++number)
        for (int t = 0; t < 3; ++t) {
            event e;
            fill(&e, number);
            int code = ri_windows_prepare(w, &e.plan, &e.call, &e.st, TIMES[t], NOW, (uint64_t)(number + 1), 0);
            if (code == RI_WINDOW_OK && e.call.suspect && ri_windows_repair(w, &e.plan, &e.call, NOW))
                code = ri_windows_prepare(w, &e.plan, &e.call, &e.st, TIMES[t], NOW, (uint64_t)(number + 1), 0);
            if (code == RI_WINDOW_OK && e.call.known) {
                ri_windows_read(w, &e.plan, &e.call, &e.st);
                check_reads(&e);
                ri_windows_add(w, &e.plan, &e.call);
            }
            free(e.call.scratch);
        }
}

static void blocks(ri_windows *w, const uint8_t *bytes, size_t size) {
    static const int32_t MAP[N_ACCS + 1] = {0, 1, 2, 3, 4, 5};
    if (ri_windows_load(w, bytes, (int64_t)size, MAP, N_ACCS + 1))
        return;
    events(w);
    ri_windows_erase(w, "a", 1);
    ri_windows *again = made();
    const int64_t token = ri_windows_dump_begin(w);
    uint8_t *out = malloc(1 << 21);
    int64_t needed = 0, n;
    check(out != NULL, "there is memory");
    while ((n = ri_windows_dump(w, token, out, 1 << 21, &needed)) > 0)
        check(ri_windows_load(again, out, n, MAP, N_ACCS + 1) == 0, "what was dumped can be loaded");
    check(n == 0, "a dump ends");
    ri_window_counts had, has;
    ri_windows_counts(w, &had);
    ri_windows_counts(again, &has);
    check(had.entities == has.entities && had.panes == has.panes, "nothing is lost on the way");
    free(out);
    ri_windows_free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1)
        return 0;
    const int how = data[0] % 3, mended = data[0] & 64;
    uint8_t *bytes = malloc(size - 1 ? size - 1 : 1);
    check(bytes != NULL, "there is memory");
    memcpy(bytes, data + 1, size - 1);
    ri_windows *w = made();
    if (how == 0) {
        if (mended && size >= 13) {
            const uint32_t all = (uint32_t)(size - 1);
            memcpy(bytes, "RIW1", 4);
            memcpy(bytes + 4, &all, 4);
        }
        value(w, bytes, size - 1);
    } else {
        if (how == 2)
            events(w);
        blocks(w, bytes, size - 1);
    }
    ri_windows_free(w);
    free(bytes);
    return 0;
}
