/* Clocks without Python, and how long a stage takes: a histogram that forgets, and its 99th percentile.
 *
 * Rules:
 *   - `ri_monotonic_ns` is the clock of Python's time.monotonic_ns, `ri_wall_ns` that of time.time_ns: moments of both compare.
 *   - A stage has 8 buckets an octave, so that a percentile is at most an eighth too high. Counts are halved every RI_STAGE_KEEP
 *     notes: what lies some thousand calls back is forgotten.
 *   - Until RI_STAGE_COLD notes were taken the percentile is what was predicted.
 * Changed under the GIL only.
 */
#ifndef RI_ADMISSION_H
#define RI_ADMISSION_H

#include <Python.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#if defined(_MSC_VER)
#include <intrin.h>
#endif

#if defined(__linux__)
static inline int64_t ri_monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
static inline int64_t ri_wall_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
/* The wall clock at a moment of the monotonic one that was just read, for a quarter of the price: by the distance of both, which
 * is measured anew ten times a second, and where the wall clock was set (its coarse reading lags by up to a tick of 10 ms). A
 * thread may lose the processor between two readings: the closest of three counts, and half of what lay between them is the
 * error, some 50 ns. */
static inline int64_t ri_wall_at(int64_t monotonic_ns) {
    static int64_t distance, measured_ns = INT64_MIN / 2;
    struct timespec now;
    int64_t lag, closest = INT64_MAX;
    int tries;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    lag = monotonic_ns + distance - ((int64_t)now.tv_sec * 1000000000 + now.tv_nsec);
    if (lag < -1000000 || lag > 12000000 || monotonic_ns - measured_ns > 100000000) {
        for (tries = 0; tries < 3 && closest > 100; tries++) {
            const int64_t before = ri_monotonic_ns(), wall = ri_wall_ns(), apart = ri_monotonic_ns() - before;
            if (apart < closest) {
                closest = apart;
                distance = wall - before - apart / 2;
            }
        }
        measured_ns = monotonic_ns;
    }
    return monotonic_ns + distance;
}
#elif PY_VERSION_HEX >= 0x030D0000
static inline int64_t ri_monotonic_ns(void) {
    PyTime_t now = 0;
    (void)PyTime_MonotonicRaw(&now);
    return (int64_t)now;
}
static inline int64_t ri_wall_ns(void) {
    PyTime_t now = 0;
    (void)PyTime_TimeRaw(&now);
    return (int64_t)now;
}
#else
static inline int64_t ri_monotonic_ns(void) { return (int64_t)_PyTime_GetMonotonicClock(); }
static inline int64_t ri_wall_ns(void) { return (int64_t)_PyTime_GetSystemClock(); }
#endif

#if !defined(__linux__)
static inline int64_t ri_wall_at(int64_t monotonic_ns) {
    (void)monotonic_ns;
    return ri_wall_ns();
}
#endif

#define RI_STAGE_BUCKETS 336 /* up to 2^44 ns, some 4.9 hours */
#define RI_STAGE_KEEP 4096
#define RI_STAGE_COLD 32

typedef struct {
    int64_t p99_ns;       /* what admission compares with */
    uint32_t until;       /* notes until it is worked out again */
    uint32_t every;       /* what `until` began with */
    uint32_t n;           /* notes that the histogram held then */
    int64_t total;        /* notes ever taken until then */
    int64_t predicted_ns; /* before there are notes */
    uint32_t counts[RI_STAGE_BUCKETS];
} ri_stage;

static inline int ri_stage_bucket(int64_t ns) {
    int octave, bucket;
    if (ns < 8)
        return ns < 0 ? 0 : (int)ns;
#if defined(_MSC_VER)
    {
        unsigned long at;
        _BitScanReverse64(&at, (unsigned long long)ns);
        octave = (int)at;
    }
#else
    octave = 63 - __builtin_clzll((unsigned long long)ns);
#endif
    bucket = (octave - 2) * 8 + (int)(ns >> (octave - 3) & 7);
    return bucket < RI_STAGE_BUCKETS ? bucket : RI_STAGE_BUCKETS - 1;
}

/* The largest time that falls into a bucket. */
static inline int64_t ri_stage_top(int bucket) {
    if (bucket < 8)
        return bucket;
    return ((int64_t)(9 + (bucket & 7)) << (bucket / 8 - 1)) - 1;
}

/* `until` counts down to this; it may come earlier. */
static inline void ri_stage_renew(ri_stage *stage) {
    uint32_t above, seen = 0;
    int bucket;
    stage->n += stage->every - stage->until;
    stage->total += stage->every - stage->until;
    if (stage->n >= RI_STAGE_KEEP) {
        stage->n = 0;
        for (bucket = 0; bucket < RI_STAGE_BUCKETS; bucket++)
            stage->n += stage->counts[bucket] >>= 1;
    }
    stage->until = stage->every = stage->n < 64 ? 1 : 64;
    if (stage->n < RI_STAGE_COLD) {
        stage->p99_ns = stage->predicted_ns;
        return;
    }
    above = stage->n / 100; /* so many may take longer */
    for (bucket = RI_STAGE_BUCKETS - 1; bucket > 0; bucket--) {
        seen += stage->counts[bucket];
        if (seen > above)
            break;
    }
    stage->p99_ns = ri_stage_top(bucket);
}

static inline void ri_stage_note(ri_stage *stage, int64_t ns) {
    stage->counts[ri_stage_bucket(ns)]++;
    if (--stage->until == 0)
        ri_stage_renew(stage);
}

/* A call that was let through although time seemed short was in time: the past weighs an eighth of what it did. */
static inline void ri_stage_ease(ri_stage *stage) {
    int bucket;
    ri_stage_renew(stage);
    stage->n = 0;
    for (bucket = 0; bucket < RI_STAGE_BUCKETS; bucket++)
        stage->n += stage->counts[bucket] >>= 3;
    ri_stage_renew(stage);
}

static inline void ri_stage_forget(ri_stage *stage) {
    ri_stage_renew(stage);
    memset(stage->counts, 0, sizeof(stage->counts));
    stage->n = 0;
    ri_stage_renew(stage);
}

static inline void ri_stage_predict(ri_stage *stage, int64_t ns) {
    stage->predicted_ns = ns;
    ri_stage_renew(stage);
}
#endif
