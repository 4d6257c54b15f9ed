/* The feature program: what each column kind computes. Rules and types: feature_ops.h. Twin: reference.py. */
#include "feature_ops.h"

#include <float.h>

#include "hashing.h"
#include "vmath.h"

#define INLINE static inline
#if defined(__GNUC__) || defined(__clang__)
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#else
#define LIKELY(x) (x)
#define UNLIKELY(x) (x)
#endif

typedef struct ctx {
    const ri_program *p;
    ri_state *st;
    uint8_t *row;  /* first cell of the column in its tensor's row */
    uint8_t *mask; /* first mask cell of the column, or NULL */
} ctx;

int ri_dtype_size(int dtype) {
    switch (dtype) {
    case RI_FLOAT32: case RI_INT32: return 4;
    case RI_FLOAT64: case RI_INT64: return 8;
    case RI_BOOL: return 1;
    case RI_STRING: return (int)sizeof(ri_text);
    default: return 0;
    }
}

/* ---- errors ------------------------------------------------------------------------------------------------------- */

static int fail(ri_state *st, int code, const ri_program *p, const ri_column *c, int slot, int state, double value) {
    st->error.code = code;
    st->error.column = (int32_t)(c - p->columns);
    st->error.slot = slot;
    st->error.state = state;
    st->error.value = value;
    return code;
}

/* A value that is not in the vocabulary; `at` is its place in a list. */
static int fail_oov(ri_state *st, const ri_program *p, const ri_column *c, const ri_text *text, int64_t integer, int64_t at) {
    st->error.integer = integer;
    st->error.text_size = -1;
    if (text) {
        int64_t size = text->size < (int64_t)sizeof st->error.text ? text->size : (int64_t)sizeof st->error.text;
        memcpy(st->error.text, text->data, (size_t)size);
        st->error.text_size = (int32_t)size;
    }
    return fail(st, RI_ERR_OOV, p, c, c->ref[0], 0, (double)at);
}

static int fail_oov_slot(ri_state *st, const ri_program *p, const ri_column *c, const ri_slot *s) {
    ri_text text = {s->v.text, s->n};
    if (s->kind == RI_SLOT_TEXT) return fail_oov(st, p, c, &text, 0, 0);
    return fail_oov(st, p, c, 0, s->v.i, 0);
}

/* ---- stores: one rounding, and the gate ---------------------------------------------------------------------------- */

INLINE int store_f(const ctx *x, const ri_column *c, int64_t cell, double value) {
    switch (c->dtype) {
    case RI_FLOAT32: {
        float y = (float)value;
        uint32_t bits;
        memcpy(&bits, &y, 4);
        if (UNLIKELY((bits & 0x7f800000u) == 0x7f800000u))
            return fail(x->st, value == value ? RI_ERR_OVERFLOW : RI_ERR_NOT_FINITE, x->p, c, -1, 0, value);
        memcpy(x->row + 4 * cell, &y, 4);
        return RI_OK;
    }
    case RI_FLOAT64:
        if (UNLIKELY((ri_bits(value) & 0x7ff0000000000000ULL) == 0x7ff0000000000000ULL))
            return fail(x->st, value == value ? RI_ERR_OVERFLOW : RI_ERR_NOT_FINITE, x->p, c, -1, 0, value);
        memcpy(x->row + 8 * cell, &value, 8);
        return RI_OK;
    case RI_INT32: {
        if (!(value >= -2147483648.0 && value <= 2147483647.0))
            return fail(x->st, value == value ? RI_ERR_OVERFLOW : RI_ERR_NOT_FINITE, x->p, c, -1, 0, value);
        int32_t y = (int32_t)value;
        if ((double)y != value) return fail(x->st, RI_ERR_INEXACT_INT, x->p, c, -1, 0, value);
        memcpy(x->row + 4 * cell, &y, 4);
        return RI_OK;
    }
    case RI_INT64: {
        if (!(value >= -9007199254740992.0 && value <= 9007199254740992.0))
            return fail(x->st, value == value ? RI_ERR_OVERFLOW : RI_ERR_NOT_FINITE, x->p, c, -1, 0, value);
        int64_t y = (int64_t)value;
        if ((double)y != value) return fail(x->st, RI_ERR_INEXACT_INT, x->p, c, -1, 0, value);
        memcpy(x->row + 8 * cell, &y, 8);
        return RI_OK;
    }
    default: /* RI_BOOL */
        if (UNLIKELY(value != value)) return fail(x->st, RI_ERR_NOT_FINITE, x->p, c, -1, 0, value);
        x->row[cell] = value != 0.0;
        return RI_OK;
    }
}

INLINE int store_i(const ctx *x, const ri_column *c, int64_t cell, int64_t value) {
    switch (c->dtype) {
    case RI_INT64:
        memcpy(x->row + 8 * cell, &value, 8);
        return RI_OK;
    case RI_FLOAT32: {
        if (UNLIKELY(value > 9007199254740992LL || value < -9007199254740992LL)) break;
        float y = (float)(double)value;
        memcpy(x->row + 4 * cell, &y, 4);
        return RI_OK;
    }
    case RI_FLOAT64: {
        if (UNLIKELY(value > 9007199254740992LL || value < -9007199254740992LL)) break;
        double y = (double)value;
        memcpy(x->row + 8 * cell, &y, 8);
        return RI_OK;
    }
    case RI_INT32: {
        int32_t y = (int32_t)value;
        if (UNLIKELY(y != value)) break;
        memcpy(x->row + 4 * cell, &y, 4);
        return RI_OK;
    }
    default:
        x->row[cell] = value != 0;
        return RI_OK;
    }
    x->st->error.integer = value;
    return fail(x->st, RI_ERR_OVERFLOW, x->p, c, -1, 0, (double)value);
}

INLINE int store_nan(const ctx *x, const ri_column *c, int64_t cell, int state) {
    if (UNLIKELY(!c->allow_nan || (c->dtype != RI_FLOAT32 && c->dtype != RI_FLOAT64)))
        return fail(x->st, RI_ERR_NO_NAN, x->p, c, -1, state, 0.0);
    if (c->dtype == RI_FLOAT32) {
        uint32_t nan = 0x7fc00000u; /* one NaN: payloads would differ with the order of operands */
        memcpy(x->row + 4 * cell, &nan, 4);
    } else {
        uint64_t nan = 0x7ff8000000000000ULL;
        memcpy(x->row + 8 * cell, &nan, 8);
    }
    return RI_OK;
}

INLINE void put_mask(const ctx *x, int64_t cell, int present) {
    if (x->mask) x->mask[cell] = (uint8_t)present;
}

/* ---- hashes and vocabularies --------------------------------------------------------------------------------------- */

uint64_t ri_hash_text(const char *text, int64_t size, uint64_t seed) { return ri_xxh64(text, (size_t)size, seed); }

uint64_t ri_hash_int(int64_t key, uint64_t seed) {
    uint8_t bytes[8];
    for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)((uint64_t)key >> (8 * i));
    return ri_xxh64(bytes, 8, seed);
}

INLINE uint64_t slot_hash(ri_slot *s, uint64_t seed) {
    if (s->kind != RI_SLOT_TEXT) return ri_hash_int(s->v.i, seed);
    if (seed != 0) return ri_hash_text(s->v.text, s->n, seed);
    if (!s->hashed) {
        s->hash = ri_hash_text(s->v.text, s->n, 0);
        s->hashed = 1;
    }
    return s->hash;
}

INLINE uint64_t mix128(uint64_t a, uint64_t b) {
#if defined(__SIZEOF_INT128__)
    unsigned __int128 m = (unsigned __int128)a * b;
    return (uint64_t)m ^ (uint64_t)(m >> 64);
#else
    return (a ^ (b >> 32)) * 0x9E3779B97F4A7C15ULL ^ (b ^ (a << 32)) * 0xC2B2AE3D27D4EB4FULL;
#endif
}

/* Categories are short: two overlapping words and one multiplication tell them apart. Vocabularies are fixed when the program
 * is built, half empty, and compared by their bytes, so nobody gains anything by making texts collide. */
uint64_t ri_vocab_hash(const char *text, int64_t size) {
    uint64_t a, b;
    if (LIKELY(size <= 16)) {
        if (size >= 8) {
            a = ri_load64(text);
            b = ri_load64(text + size - 8);
        } else if (size >= 4) {
            a = ri_load32(text);
            b = ri_load32(text + size - 4);
        } else if (size > 0) {
            a = (uint8_t)text[0] | (uint64_t)(uint8_t)text[size >> 1] << 8 | (uint64_t)(uint8_t)text[size - 1] << 16;
            b = 0;
        } else {
            a = b = 0;
        }
        return mix128(a ^ 0x9E3779B97F4A7C15ULL ^ (uint64_t)size, b ^ 0xC2B2AE3D27D4EB4FULL);
    }
    return ri_xxh64(text, (size_t)size, 0);
}

int32_t ri_vocab_text(const ri_vocab *v, const char *text, int64_t size, uint64_t hash) {
    for (uint64_t at = hash & v->mask;; at = (at + 1) & v->mask) {
        const ri_vocab_cell *cell = v->cells + at;
        if (cell->code < 0) return -1;
        if (cell->hash == hash && cell->size == size && memcmp(cell->key.text, text, (size_t)size) == 0) return cell->code;
    }
}

int32_t ri_vocab_int(const ri_vocab *v, int64_t key) {
    uint64_t hash = ri_hash_int(key, 0);
    for (uint64_t at = hash & v->mask;; at = (at + 1) & v->mask) {
        const ri_vocab_cell *cell = v->cells + at;
        if (cell->code < 0) return -1;
        if (cell->hash == hash && cell->key.integer == key) return cell->code;
    }
}

INLINE int32_t slot_code(const ri_vocab *v, ri_slot *s) {
    if (s->kind == RI_SLOT_TEXT) return ri_vocab_text(v, s->v.text, s->n, ri_vocab_hash(s->v.text, s->n));
    if (s->kind == RI_SLOT_F64) return ri_vocab_int(v, (int64_t)ri_bits(s->v.f + 0.0)); /* -0.0 is 0.0 */
    return ri_vocab_int(v, s->v.i);
}

/* ---- calendar ------------------------------------------------------------------------------------------------------ */

INLINE int64_t floor_div(int64_t a, int64_t b) {
    int64_t q = a / b;
    return q - ((a % b != 0) && ((a < 0) != (b < 0)));
}

/* Days since 1970-01-01 -> year, month, day in the proleptic Gregorian calendar: years counted from March in eras of 400. */
static void read_calendar(const ri_zone *zone, int64_t time_ns, ri_calendar *out) {
    static const int16_t before_month[12] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
    int64_t seconds = floor_div(time_ns, 1000000000);
    int32_t lo = 0, hi = zone->n - 1;
    while (lo < hi) { /* the last transition at or before `seconds` */
        int32_t mid = (lo + hi + 1) / 2;
        if (zone->at_s[mid] <= seconds) lo = mid; else hi = mid - 1;
    }
    seconds += zone->offset_s[lo];
    int64_t days = floor_div(seconds, 86400), rest = seconds - days * 86400;
    int64_t shifted = days + 719468, era = floor_div(shifted, 146097), day_of_era = shifted - era * 146097;
    int64_t year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
    int64_t day_of_march_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    int64_t shifted_month = (5 * day_of_march_year + 2) / 153;
    out->day_of_month = (int32_t)(day_of_march_year - (153 * shifted_month + 2) / 5 + 1);
    out->month = (int32_t)(shifted_month < 10 ? shifted_month + 3 : shifted_month - 9);
    out->year = year_of_era + era * 400 + (out->month <= 2);
    int leap = (out->year % 4 == 0 && out->year % 100 != 0) || out->year % 400 == 0;
    out->day_of_year = before_month[out->month - 1] + out->day_of_month + (leap && out->month > 2);
    out->day_of_week = (int32_t)(days + 3 - 7 * floor_div(days + 3, 7)); /* 1970-01-01 was a Thursday */
    out->hour = (int32_t)(rest / 3600);
    out->minute = (int32_t)(rest / 60 % 60);
    out->second = (int32_t)(rest % 60);
}

void ri_wave_table(int64_t period, int cosine, double *out) {
    for (int64_t k = 0; k < period; k++) out[k] = cosine ? ri_cos_fraction(k, period) : ri_sin_fraction(k, period);
}

INLINE int64_t time_part(const ri_calendar *t, int part, int64_t *low, int64_t *period) {
    *low = 0;
    switch (part) {
    case RI_SECOND: *period = 60; return t->second;
    case RI_MINUTE: *period = 60; return t->minute;
    case RI_HOUR: *period = 24; return t->hour;
    case RI_MINUTE_OF_DAY: *period = 1440; return t->hour * 60 + t->minute;
    case RI_DAY_OF_WEEK: *period = 7; return t->day_of_week;
    case RI_HOUR_OF_WEEK: *period = 168; return t->day_of_week * 24 + t->hour;
    case RI_DAY_OF_MONTH: *low = 1; *period = 31; return t->day_of_month;
    case RI_DAY_OF_YEAR: *low = 1; *period = 366; return t->day_of_year;
    case RI_MONTH: *low = 1; *period = 12; return t->month;
    case RI_QUARTER: *low = 1; *period = 4; return (t->month + 2) / 3;
    case RI_YEAR: *period = 1; return t->year;
    default: *period = 1; return t->day_of_week >= 5;
    }
}

/* ---- scalars ------------------------------------------------------------------------------------------------------- */

/* A raw value as double; integers beyond 2^53 would be rounded before any maths, so they are refused. */
INLINE int as_double(const ctx *x, const ri_column *c, int slot, double *out) {
    const ri_slot *s = x->st->slots + slot;
    if (s->kind == RI_SLOT_F64) {
        *out = s->v.f;
        return RI_OK;
    }
    if (UNLIKELY(s->v.i > 9007199254740992LL || s->v.i < -9007199254740992LL)) {
        x->st->error.integer = s->v.i;
        return fail(x->st, RI_ERR_INEXACT_INT, x->p, c, slot, 0, (double)s->v.i);
    }
    *out = (double)s->v.i;
    return RI_OK;
}

INLINE int transformed(ri_state *st, const ri_program *p, const ri_column *c, int transform, double *value) {
    switch (transform) {
    case RI_LOG1P:
        if (UNLIKELY(!(*value > -1.0))) return fail(st, RI_ERR_DOMAIN, p, c, -1, RI_LOG1P, *value);
        *value = ri_log1p(*value);
        return RI_OK;
    case RI_SIGNED_LOG1P:
        *value = *value < 0.0 ? -ri_log1p(-*value) : ri_log1p(*value);
        return RI_OK;
    case RI_SQRT:
        if (UNLIKELY(!(*value >= 0.0))) return fail(st, RI_ERR_DOMAIN, p, c, -1, RI_SQRT, *value);
        *value = sqrt(*value);
        return RI_OK;
    default:
        return RI_OK;
    }
}

/* What comes after the scale. NaN is a value that is missing: it passes, until a step fills it. */
static int run_steps(ri_state *st, const ri_program *p, const ri_column *c, double *value) {
    double x = *value;
    for (int32_t i = 0; i < c->n_steps; i++) {
        const ri_step *s = c->steps + i;
        if (UNLIKELY(x != x)) {
            if (s->op == RI_STEP_FILL) x = s->a;
            continue;
        }
        int code = RI_OK;
        switch (s->op) {
        case RI_STEP_ADD: x = x + s->a; break;
        case RI_STEP_SUBTRACT: x = x - s->a; break;
        case RI_STEP_MULTIPLY: x = x * s->a; break;
        case RI_STEP_DIVIDE: x = x / s->a; break;
        case RI_STEP_CLIP: x = x < s->a ? s->a : x > s->b ? s->b : x; break;
        case RI_STEP_FLOAT32: x = (double)(float)x; break;
        case RI_STEP_LOG1P: code = transformed(st, p, c, RI_LOG1P, &x); break;
        case RI_STEP_SIGNED_LOG1P: code = transformed(st, p, c, RI_SIGNED_LOG1P, &x); break;
        case RI_STEP_SQRT: code = transformed(st, p, c, RI_SQRT, &x); break;
        default: break; /* a fill, and nothing is missing */
        }
        if (UNLIKELY(code)) return code;
    }
    *value = x;
    return RI_OK;
}

/* A raw value, or a default in its place: clip, transform, centre and scale, steps. */
INLINE int number_of(ri_state *st, const ri_program *p, const ri_column *c, double *value) {
    double x = *value;
    int code;
    if (c->has_clip) x = x < c->clip_low ? c->clip_low : x > c->clip_high ? c->clip_high : x;
    if (c->transform && UNLIKELY(code = transformed(st, p, c, c->transform, &x))) return code;
    if (c->has_norm) x = (x - c->center) / c->scale;
    if (c->n_steps && UNLIKELY(code = run_steps(st, p, c, &x))) return code;
    *value = x;
    return RI_OK;
}

/* How many edges are at or below `value`. */
INLINE int32_t bin_of(const ri_column *c, double value) {
    int32_t low = 0, high = c->n_edges;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (c->edges[middle] <= value) low = middle + 1; else high = middle;
    }
    return low;
}

/* What a lookup or a bin says: a number, or the cell that is set. NaN: no number, no cell. */
INLINE int store_declared(const ctx *x, const ri_column *c, double value, int state) {
    int code = RI_OK;
    if (!c->on_off) {
        put_mask(x, 0, state == RI_PRESENT);
        return value == value ? store_f(x, c, 0, value) : store_nan(x, c, 0, state);
    }
    int64_t set = value == value ? (int64_t)value : -1;
    for (int64_t i = 0; i < c->width && !code; i++) {
        put_mask(x, i, state == RI_PRESENT);
        code = store_f(x, c, i, c->on_off[2 * i + (i != set)]);
    }
    return code;
}

INLINE int finish_default(const ctx *x, const ri_column *c, double value, int state) {
    int code = number_of(x->st, x->p, c, &value);
    if (UNLIKELY(code)) return code;
    if (c->kind != RI_BINS) return store_f(x, c, 0, value);
    if (UNLIKELY(value != value)) return fail(x->st, RI_ERR_NOT_FINITE, x->p, c, -1, 0, value);
    return store_declared(x, c, c->targets[bin_of(c, value)], state);
}

INLINE int finish_scalar(const ctx *x, const ri_column *c, double value) {
    /* NaN bounds (range not known) compare false; a default is no observation and is not counted */
    if (UNLIKELY(value < c->seen_low || value > c->seen_high)) x->st->outside[c - x->p->columns]++;
    return finish_default(x, c, value, RI_PRESENT);
}

/* 8 lanes, element i into lane i mod 8, then a fixed tree: the order is part of the definition. */
INLINE double lane_sum(const double *lane) {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

static double dot_product(const float *a, const float *b, int64_t n) {
    double lane[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) lane[j] += (double)a[i + j] * (double)b[i + j];
    for (int j = 0; i + j < n; j++) lane[j] += (double)a[i + j] * (double)b[i + j];
    return lane_sum(lane);
}

/* ---- what a missing input gives ------------------------------------------------------------------------------------ */

INLINE int fill_missing(const ctx *x, const ri_column *c, int state) {
    int action = c->action[state], result = RI_OK;
    if (action == RI_REFUSE) return fail(x->st, RI_ERR_REFUSED, x->p, c, -1, state, 0.0);
    if (action == RI_REVIEW) x->st->review = 1;
    if (c->kind != RI_SEQUENCE && c->width > 0) put_mask(x, 0, 0);
    if (action == RI_DEFAULT) {
        switch (c->kind) {
        case RI_NUMERIC: case RI_RATIO: case RI_DIFFERENCE: case RI_PRODUCT: case RI_ELAPSED: case RI_DOT: case RI_COSINE:
        case RI_BINS:
            return finish_default(x, c, c->fill_f[state], state);
        case RI_LOOKUP:
            return store_declared(x, c, c->fill_f[state], state);
        case RI_EMBEDDING:
            for (int64_t i = 0; i < c->width && !result; i++) {
                put_mask(x, i, 0);
                result = store_f(x, c, i, c->fill_f[state]);
            }
            return result;
        case RI_TARGET:
            return store_f(x, c, 0, c->fill_f[state]);
        case RI_ONEHOT:
            for (int64_t i = 0; i < c->width && !result; i++) {
                put_mask(x, i, 0);
                result = store_i(x, c, i, i == c->fill_i[state]);
            }
            return result;
        case RI_RAW:
            if (c->dtype == RI_STRING) {
                memcpy(x->row, &c->fill_text[state], sizeof(ri_text));
                return RI_OK;
            }
            if (c->dtype == RI_FLOAT32 || c->dtype == RI_FLOAT64) return store_f(x, c, 0, c->fill_f[state]);
            return store_i(x, c, 0, c->fill_i[state]);
        case RI_CATEGORY: case RI_HASHED:
            return store_i(x, c, 0, c->fill_i[state]);
        default: /* time part, equal, boolean: a number for the cell */
            return store_f(x, c, 0, c->fill_f[state]);
        }
    }
    if (c->fills) { /* of the kinds that have steps */
        double value = ri_from_bits(0x7ff8000000000000ULL);
        if ((result = run_steps(x->st, x->p, c, &value))) return result;
        if (c->kind == RI_BINS) return store_declared(x, c, c->targets[bin_of(c, value)], state);
        return store_f(x, c, 0, value);
    }
    switch (c->kind) { /* "use" and "review" */
    case RI_LOOKUP: case RI_BINS:
        return store_declared(x, c, ri_from_bits(0x7ff8000000000000ULL), state);
    case RI_CATEGORY:
        if (c->vocab->oov < 0) return fail(x->st, RI_ERR_REFUSED, x->p, c, -1, state, 0.0);
        return store_i(x, c, 0, c->vocab->oov);
    case RI_TARGET:
        return store_f(x, c, 0, c->targets[c->vocab->size]); /* the prior */
    case RI_ONEHOT:
        if (c->vocab->oov == -1) return fail(x->st, RI_ERR_REFUSED, x->p, c, -1, state, 0.0);
        for (int64_t i = 0; i < c->width && !result; i++) {
            put_mask(x, i, 0);
            result = store_i(x, c, i, i == c->vocab->oov);
        }
        return result;
    case RI_HASHED:
        return store_i(x, c, 0, 0);
    case RI_SEQUENCE:
        for (int64_t i = 0; i < c->width && !result; i++) {
            put_mask(x, i, 0);
            result = c->sequence == RI_SEQ_NUMBER ? store_f(x, c, i, c->pad_f) : store_i(x, c, i, c->pad_i);
        }
        return result;
    case RI_RAW:
        if (c->dtype == RI_STRING) {
            static const ri_text empty = {"", 0};
            memcpy(x->row, &empty, sizeof empty);
            return RI_OK;
        }
        /* fall through */
    default:
        if (c->dtype != RI_FLOAT32 && c->dtype != RI_FLOAT64)
            return fail(x->st, RI_ERR_NO_NAN, x->p, c, -1, state, 0.0);
        for (int64_t i = 0; i < c->width && !result; i++) {
            put_mask(x, i, 0);
            result = store_nan(x, c, i, state);
        }
        return result;
    }
}

static void flag(ri_state *st, const ri_program *p, const ri_column *c, int state) {
    if (st->n_flags < st->max_flags) {
        st->flags[st->n_flags].column = (uint16_t)(c - p->columns);
        st->flags[st->n_flags].state = (uint8_t)state;
        st->n_flags++;
    }
}

static int flag_and_fill(const ctx *x, const ri_column *c, int state) {
    flag(x->st, x->p, c, state);
    return fill_missing(x, c, state);
}

/* ---- sequences ----------------------------------------------------------------------------------------------------- */

static int run_sequence(const ctx *x, const ri_column *c) {
    const ri_slot *s = x->st->slots + c->ref[0];
    int64_t n = s->n < c->width ? s->n : c->width, first = c->keep_first ? 0 : s->n - n;
    int result = RI_OK;
    for (int64_t i = 0; i < n && !result; i++) {
        int64_t at = first + i;
        put_mask(x, i, 1);
        if (c->sequence == RI_SEQ_NUMBER) {
            result = s->kind == RI_SLOT_LIST_F64 ? store_f(x, c, i, s->v.list_f[at]) : store_i(x, c, i, s->v.list_i[at]);
        } else if (c->sequence == RI_SEQ_HASHED) {
            uint64_t hash = s->kind == RI_SLOT_LIST_TEXT
                                ? ri_hash_text(s->v.list_text[at].data, s->v.list_text[at].size, c->seed)
                                : ri_hash_int(s->v.list_i[at], c->seed);
            result = store_i(x, c, i, (int64_t)(hash % c->buckets));
        } else {
            int32_t code = s->kind == RI_SLOT_LIST_TEXT
                               ? ri_vocab_text(c->vocab, s->v.list_text[at].data, s->v.list_text[at].size,
                                               ri_vocab_hash(s->v.list_text[at].data, s->v.list_text[at].size))
                               : ri_vocab_int(c->vocab, s->v.list_i[at]);
            if (code < 0) code = c->vocab->oov;
            if (code < 0) {
                int text = s->kind == RI_SLOT_LIST_TEXT;
                return fail_oov(x->st, x->p, c, text ? s->v.list_text + at : 0, text ? 0 : s->v.list_i[at], at);
            }
            result = store_i(x, c, i, code);
        }
    }
    for (int64_t i = n; i < c->width && !result; i++) {
        put_mask(x, i, 0);
        result = c->sequence == RI_SEQ_NUMBER ? store_f(x, c, i, c->pad_f) : store_i(x, c, i, c->pad_i);
    }
    return result;
}

/* ---- one column ---------------------------------------------------------------------------------------------------- */

/* Which of two inputs decides the outcome: an old value is still a value, an absent one is not. */
INLINE int worse(int a, int b) {
    static const uint8_t severity[RI_N_STATES] = {
        [RI_PRESENT] = 0, [RI_STALE] = 1, [RI_NULL] = 2, [RI_UNKNOWN] = 3, [RI_UNAVAILABLE] = 4};
    return severity[b] > severity[a] ? b : a;
}

INLINE int input_state(const ri_column *c, const ri_state *st, const ri_slot *s) {
    if (UNLIKELY(c->max_age_ns && s->state == RI_PRESENT && s->updated_ns != INT64_MAX)) {
        /* a row from the future (its clock or ours is wrong) has age 0, never a negative one */
        if (s->updated_ns == INT64_MIN) return RI_STALE;
        if (st->now_ns > s->updated_ns && (uint64_t)st->now_ns - (uint64_t)s->updated_ns > (uint64_t)c->max_age_ns)
            return RI_STALE;
    }
    return s->state;
}

INLINE int run_column(const ri_program *p, const ri_column *c, ri_state *st, uint8_t *const *rows, uint8_t *const *masks) {
    ri_slot *a = st->slots + c->ref[0];
    ctx x = {p, st, rows[c->tensor] + c->offset * ri_dtype_size(c->dtype),
             masks[c->tensor] ? masks[c->tensor] + c->offset : (uint8_t *)0};
    int state = input_state(c, st, a), code;
    double va, vb;
    if (c->kind == RI_HASHED && c->n_refs > 1) { /* null parts of a cross count as hash 0: only all-missing is missing */
        uint64_t parts[16];
        int any = 0;
        state = RI_PRESENT;
        for (int i = 0; i < c->n_refs; i++) {
            ri_slot *s = st->slots + p->refs[c->refs_at + i];
            int part = input_state(c, st, s);
            any |= part == RI_PRESENT || part == RI_STALE;
            parts[i] = part == RI_PRESENT || part == RI_STALE ? slot_hash(s, c->seed) : 0;
            state = worse(state, part);
        }
        if (UNLIKELY(state != RI_PRESENT)) {
            int action = c->action[state];
            if (!any || (action != RI_USE && action != RI_REVIEW)) return flag_and_fill(&x, c, state);
            if (action == RI_REVIEW) st->review = 1;
            flag(st, p, c, state);
        }
        uint8_t bytes[8 * 16];
        for (int i = 0; i < c->n_refs; i++)
            for (int j = 0; j < 8; j++) bytes[8 * i + j] = (uint8_t)(parts[i] >> (8 * j));
        put_mask(&x, 0, 1);
        return store_i(&x, c, 0, (int64_t)(ri_xxh64(bytes, (size_t)(8 * c->n_refs), c->seed) % c->buckets));
    }
    if (c->n_refs > 1) {
        state = worse(state, input_state(c, st, st->slots + c->ref[1]));
    }
    if (UNLIKELY(state != RI_PRESENT)) {
        int action = c->action[state];
        if (state != RI_STALE || action == RI_DEFAULT || action == RI_REFUSE) return flag_and_fill(&x, c, state);
        if (action == RI_REVIEW) st->review = 1; /* "use" and "review": the old value */
        flag(st, p, c, RI_STALE);
    }
    if (c->kind != RI_SEQUENCE && c->width > 0) put_mask(&x, 0, 1); /* a one-hot of nothing has no cell */
    switch (c->kind) {
    case RI_NUMERIC: case RI_BINS:
        if (LIKELY(a->kind == RI_SLOT_F64)) return finish_scalar(&x, c, a->v.f);
        if (c->dtype == RI_INT64 && c->kind == RI_NUMERIC && !c->transform && !c->has_norm && !c->has_clip)
            return store_i(&x, c, 0, a->v.i);
        if ((code = as_double(&x, c, c->ref[0], &va))) return code;
        return finish_scalar(&x, c, va);
    case RI_RATIO:
        if ((code = as_double(&x, c, c->ref[0], &va)) || (code = as_double(&x, c, c->ref[1], &vb))) return code;
        if (UNLIKELY(vb == 0.0)) return flag_and_fill(&x, c, RI_NULL);
        return finish_scalar(&x, c, va / vb);
    case RI_DIFFERENCE:
        if ((code = as_double(&x, c, c->ref[0], &va)) || (code = as_double(&x, c, c->ref[1], &vb))) return code;
        return finish_scalar(&x, c, va - vb);
    case RI_PRODUCT:
        if ((code = as_double(&x, c, c->ref[0], &va)) || (code = as_double(&x, c, c->ref[1], &vb))) return code;
        return finish_scalar(&x, c, va * vb);
    case RI_ELAPSED: { /* timestamps are within +-2^62 ns, so the difference fits */
        int64_t span = st->slots[c->ref[1]].v.i - a->v.i;
        return finish_scalar(&x, c, (double)span / (double)c->unit_ns);
    }
    case RI_BOOLEAN:
        return store_i(&x, c, 0, a->v.i != 0);
    case RI_RAW:
        if (c->dtype == RI_STRING) {
            ri_text text = {a->v.text, a->n};
            memcpy(x.row, &text, sizeof text);
            return RI_OK;
        }
        return a->kind == RI_SLOT_F64 ? store_f(&x, c, 0, a->v.f) : store_i(&x, c, 0, a->v.i);
    case RI_CATEGORY: case RI_TARGET: {
        int32_t found = slot_code(c->vocab, a);
        if (UNLIKELY(found < 0 && c->vocab->oov == -1)) return fail_oov_slot(st, p, c, a);
        if (c->kind == RI_TARGET) return store_f(&x, c, 0, c->targets[found < 0 ? c->vocab->size : found]);
        return store_i(&x, c, 0, found < 0 ? c->vocab->oov : found);
    }
    case RI_ONEHOT: {
        int32_t found = slot_code(c->vocab, a);
        if (found < 0) found = c->vocab->oov;
        if (UNLIKELY(found == -1)) return fail_oov_slot(st, p, c, a);
        for (int64_t i = 0; i < c->width; i++) {
            put_mask(&x, i, 1);
            store_i(&x, c, i, i == found);
        }
        return RI_OK;
    }
    case RI_LOOKUP: {
        int32_t found = c->n_keys ? slot_code(c->vocab, a) : -1;
        if (UNLIKELY(found < 0 && c->refuse_other)) {
            if (a->kind == RI_SLOT_F64) return fail(st, RI_ERR_OOV, p, c, c->ref[0], 0, a->v.f);
            return fail_oov_slot(st, p, c, a);
        }
        return store_declared(&x, c, c->targets[found < 0 ? c->n_keys : found], RI_PRESENT);
    }
    case RI_HASHED:
        return store_i(&x, c, 0, (int64_t)(slot_hash(a, c->seed) % c->buckets));
    case RI_TIME: {
        ri_calendar *t = st->calendars + c->ref[0];
        int64_t low, period, value;
        if (!a->calendar) {
            read_calendar(&p->zone, a->v.i, t);
            a->calendar = 1;
        }
        value = time_part(t, c->part, &low, &period);
        if (c->wave == RI_PLAIN) return store_i(&x, c, 0, value);
        return store_f(&x, c, 0, c->waves[value - low]);
    }
    case RI_EQUAL: {
        const ri_slot *b = st->slots + c->ref[1];
        if (a->kind == RI_SLOT_TEXT)
            return store_i(&x, c, 0, a->n == b->n && memcmp(a->v.text, b->v.text, (size_t)a->n) == 0);
        if (a->kind != RI_SLOT_F64 && b->kind != RI_SLOT_F64) return store_i(&x, c, 0, a->v.i == b->v.i);
        if ((code = as_double(&x, c, c->ref[0], &va)) || (code = as_double(&x, c, c->ref[1], &vb))) return code;
        return store_i(&x, c, 0, va == vb);
    }
    case RI_EMBEDDING:
        if (UNLIKELY(a->n != c->width)) {
            st->error.integer = a->n;
            return fail(st, RI_ERR_VECTOR_SIZE, p, c, c->ref[0], 0, 0.0);
        }
        for (int64_t i = 0; i < c->width; i++) {
            put_mask(&x, i, 1);
            if ((code = store_f(&x, c, i, (double)a->v.vector[i]))) return code;
        }
        return RI_OK;
    case RI_DOT: case RI_COSINE: {
        const ri_slot *b = st->slots + c->ref[1];
        if (UNLIKELY(a->n != c->unit_ns || b->n != c->unit_ns)) { /* unit_ns holds the declared size of such columns */
            st->error.integer = a->n != c->unit_ns ? a->n : b->n;
            return fail(st, RI_ERR_VECTOR_SIZE, p, c, a->n != c->unit_ns ? c->ref[0] : c->ref[1], 0, 0.0);
        }
        double sum = dot_product(a->v.vector, b->v.vector, a->n);
        if (c->kind == RI_COSINE) {
            double norm = sqrt(dot_product(a->v.vector, a->v.vector, a->n)) *
                          sqrt(dot_product(b->v.vector, b->v.vector, b->n));
            if (UNLIKELY(norm == 0.0)) return flag_and_fill(&x, c, RI_NULL);
            sum = sum / norm;
        }
        return finish_scalar(&x, c, sum);
    }
    default: /* RI_SEQUENCE */
        return run_sequence(&x, c);
    }
}

/* The commonest column by far, without what it does not need. The same operations as `finish_scalar`, in the same order. */
INLINE int run_plain(const ri_program *p, const ri_column *c, ri_state *st, double value, uint8_t *row) {
    int code;
    if (UNLIKELY(value < c->seen_low || value > c->seen_high)) st->outside[c - p->columns]++;
    if (c->transform && UNLIKELY(code = transformed(st, p, c, c->transform, &value))) return code;
    if (c->has_norm) value = (value - c->center) / c->scale;
    if (c->n_steps && UNLIKELY(code = run_steps(st, p, c, &value))) return code;
    if (c->dtype == RI_FLOAT64) {
        if (UNLIKELY((ri_bits(value) & 0x7ff0000000000000ULL) == 0x7ff0000000000000ULL))
            return fail(st, value == value ? RI_ERR_OVERFLOW : RI_ERR_NOT_FINITE, p, c, -1, 0, value);
        memcpy(row + 8 * c->offset, &value, 8);
        return RI_OK;
    }
    float y = (float)value;
    uint32_t bits;
    memcpy(&bits, &y, 4);
    if (UNLIKELY((bits & 0x7f800000u) == 0x7f800000u))
        return fail(st, value == value ? RI_ERR_OVERFLOW : RI_ERR_NOT_FINITE, p, c, -1, 0, value);
    memcpy(row + 4 * c->offset, &y, 4);
    return RI_OK;
}

int ri_run(const ri_program *p, const uint16_t *which, int32_t n, ri_state *st, uint8_t *const *rows, uint8_t *const *masks) {
    for (int32_t i = 0; i < n; i++) {
        const ri_column *c = p->columns + which[i];
        const ri_slot *a = st->slots + c->ref[0];
        int code;
        if (c->plain && a->state == RI_PRESENT && !masks[c->tensor])
            code = run_plain(p, c, st, a->v.f, rows[c->tensor]);
        else
            code = run_column(p, c, st, rows, masks);
        if (UNLIKELY(code)) return code;
    }
    return RI_OK;
}

int ri_run_column(const ri_program *p, int32_t column, ri_state *st, uint8_t *const *rows, uint8_t *const *masks) {
    return run_column(p, p->columns + column, st, rows, masks);
}
