/* Windows whose state is kept elsewhere: operations out, values in. Formats and rules: windows_wire.h. */
#include "windows_wire.h"

#define SECOND INT64_C(1000000000)
#define VALUE_HEADER 12
#define SECTION_HEADER 20
#define LINGER_S 86400 /* beyond its last pane: clocks differ, windows have delays */

static const uint8_t ENTRY_BYTES[6] = {8, 16, 12, 12, 8, 8};

RI_INLINE void put16(uint8_t *p, uint32_t v) { p[0] = (uint8_t)v; p[1] = (uint8_t)(v >> 8); }
RI_INLINE void put32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }
RI_INLINE void put64(uint8_t *p, uint64_t v) { memcpy(p, &v, 8); }
RI_INLINE uint32_t get16(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
RI_INLINE int64_t floor_s(int64_t ns) { return ns / SECOND - (ns % SECOND < 0) - RI_EPOCH_S; }
RI_INLINE uint32_t clamp32(int64_t v) { return v < 0 ? 0 : v > (int64_t)UINT32_MAX ? UINT32_MAX : (uint32_t)v; }

void ri_wire_operations(ri_windows *w, const ri_window_plan *plan, const ri_window_call *call, const uint64_t *digests,
                        int64_t clock_ns, int add, uint8_t *out) {
    const ri_accumulator *accs = ri_windows_accumulators(w);
    out[0] = 1;
    out[1] = add != 0;
    put16(out + 2, (uint32_t)plan->n_accs);
    put32(out + 4, clamp32(floor_s(clock_ns > 0 ? clock_ns : call->now_ns > 0 ? call->now_ns : call->at_ns)));
    put64(out + 8, call->event_hash);
    put64(out + 16, digests[plan->n_accs]);
    uint8_t *p = out + RI_WIRE_HEADER;
    for (int32_t i = 0; i < plan->n_accs; ++i, p += RI_WIRE_STEP) {
        const ri_accumulator *a = &accs[plan->accs[i]];
        put64(p, digests[i]);
        p[8] = a->kind;
        p[9] = 0;
        put16(p + 10, 0);
        put32(p + 12, (uint32_t)a->keep);
        put32(p + 16, clamp32(a->pane_ns / SECOND * a->keep + LINGER_S));
        put32(p + 20, clamp32(call->panes[i]));
        put32(p + 24, clamp32(ri_windows_limit(w, plan, a, clock_ns)));
        put64(p + 28, 0);
    }
    for (int32_t i = 0; i < plan->n_adds; ++i) {
        const ri_window_input *in = &call->inputs[i];
        const int32_t acc = plan->adds[i].acc;
        const int kind = accs[plan->accs[acc]].kind;
        p = out + RI_WIRE_HEADER + acc * RI_WIRE_STEP;
        p[9] = in->applies;
        put64(p + 28, kind == RI_ACC_DISTINCT ? (uint64_t)in->hash : kind == RI_ACC_COUNT ? 0 : (uint64_t)in->value);
    }
}

/* 0 if the entries of a section are what `add` could have made. */
static int check_entries(const uint8_t *p, int kind, uint32_t count, uint32_t keep) {
    const size_t width = ENTRY_BYTES[kind];
    uint32_t before = 0;
    if (kind == RI_ACC_IDS)
        return count > RI_RING;
    if (keep < 1 || keep > RI_MAX_KEEP || count > (kind == RI_ACC_DISTINCT ? RI_MAX_DISTINCT * keep : keep))
        return -1;
    for (uint32_t i = 0; i < count; ++i, p += width) {
        const uint32_t pane = ri_load32(p);
        if (i && (kind == RI_ACC_DISTINCT ? pane < before : pane <= before))
            return -1;
        before = pane;
        if (kind == RI_ACC_SUM || kind == RI_ACC_MIN || kind == RI_ACC_MAX) {
            const int64_t v = (int64_t)ri_load64(p + (kind == RI_ACC_SUM ? 8 : 4));
            if (v > RI_MAX_EXACT || v < -RI_MAX_EXACT)
                return -1;
        }
    }
    return 0;
}

/* Whether the event's pane would leave its range, and what its sum would be; its entry is near the end. */
static int overflows(const uint8_t *entries, int kind, uint32_t count, int64_t pane, int64_t value, int64_t *sum) {
    const size_t width = ENTRY_BYTES[kind];
    for (uint32_t i = count; i > 0; --i) {
        const uint8_t *p = entries + (size_t)(i - 1) * width;
        if ((int64_t)ri_load32(p) > pane)
            continue;
        if ((int64_t)ri_load32(p) < pane)
            return 0;
        *sum = kind == RI_ACC_SUM ? (int64_t)ri_load64(p + 8) + value : 0;
        return ri_load32(p + 4) == UINT32_MAX || *sum > RI_MAX_EXACT || *sum < -RI_MAX_EXACT;
    }
    return 0;
}

int ri_wire_open(ri_windows *w, const ri_window_plan *plan, ri_window_call *call, const uint64_t *digests,
                 int64_t clock_ns, const uint8_t *value, int64_t size, int64_t *known_ns) {
    const ri_accumulator *accs = ri_windows_accumulators(w);
    const uint8_t *end = value + size;
    int32_t next = 0;
    memset(call->sections, 0, (size_t)plan->n_accs * sizeof(ri_section));
    call->ring.count = 0;
    call->duplicate = 0;
    *known_ns = INT64_MIN;
    if (size == 0)
        return RI_WINDOW_OK;
    if (size < VALUE_HEADER || memcmp(value, "RIW1", 4) != 0 || (int64_t)ri_load32(value + 4) != size)
        return -1;
    const uint32_t known_s = ri_load32(value + 8);
    if (known_s)
        *known_ns = ((int64_t)known_s + RI_EPOCH_S) * SECOND;
    const uint8_t *p = value + VALUE_HEADER;
    while (p < end) {
        if (end - p < SECTION_HEADER || p[8] > RI_ACC_IDS)
            return -1;
        const uint64_t digest = ri_load64(p);
        const int kind = p[8];
        const uint32_t count = get16(p + 10), keep = ri_load32(p + 12);
        const uint8_t *entries = p + SECTION_HEADER;
        const int64_t bytes = (int64_t)count * ENTRY_BYTES[kind];
        if (end - entries < bytes || check_entries(entries, kind, count, keep))
            return -1;
        p = entries + bytes;
        if (digest == digests[plan->n_accs]) {
            if (kind != RI_ACC_IDS)
                return -1;
            call->ring.offset = (uint32_t)(entries - value);
            call->ring.count = count;
            continue;
        }
        int32_t a = next; /* sections mostly come in the plan's order */
        if (a >= plan->n_accs || digests[a] != digest)
            for (a = 0; a < plan->n_accs && digests[a] != digest; ++a) {
            }
        if (a == plan->n_accs)
            continue; /* of another release */
        next = a + 1;
        const ri_accumulator *acc = &accs[plan->accs[a]];
        if (kind != acc->kind || call->sections[a].count)
            return -1;
        call->sections[a].offset = (uint32_t)(entries - value);
        call->sections[a].count = count;
        const int64_t limit = ri_windows_limit(w, plan, acc, clock_ns);
        while (call->sections[a].count && (int64_t)ri_load32(entries + (size_t)(call->sections[a].count - 1) * ENTRY_BYTES[kind]) > limit) {
            --call->sections[a].count; /* as ri_windows_repair in panes.c */
            *known_ns = (floor_s(clock_ns) + 1 + RI_EPOCH_S) * SECOND;
        }
    }
    if (call->event_hash)
        for (uint32_t i = 0; i < call->ring.count; ++i)
            call->duplicate |= ri_load64(value + call->ring.offset + 8 * (size_t)i) == call->event_hash;
    if (!call->duplicate)
        for (int32_t i = 0; i < plan->n_adds; ++i) {
            const int32_t a = plan->adds[i].acc;
            const int kind = accs[plan->accs[a]].kind;
            const ri_section *s = &call->sections[a];
            int64_t sum = 0;
            if (call->inputs[i].applies && kind <= RI_ACC_SUM &&
                overflows(value + s->offset, kind, s->count, call->panes[a], call->inputs[i].value, &sum)) {
                call->error = RI_WINDOW_SUM;
                call->error_slot = plan->adds[i].of;
                call->error_value = (double)sum;
                return RI_WINDOW_SUM;
            }
        }
    return RI_WINDOW_OK;
}
