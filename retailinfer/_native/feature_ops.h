/* The feature program: slots (raw values of one row) -> cells of the model's input tensors.
 *
 * Rules:
 *   - Pure C, no Python, no allocation, no lock: every function here may run without the GIL.
 *   - One inline function per column kind serves one request, a batch, a ranking and a whole table: equal bits by construction.
 *   - Maths in double, rounded once by the store of the tensor's dtype; the store is also the gate against what cannot be held.
 *   - Compiled once, for the baseline ISA, with -ffp-contract=off (vmath.h says why).
 * Who fills slots: engine.pyx (requests, candidates, Arrow buffers). The readable twin: reference.py.
 */
#ifndef RETAILINFER_FEATURE_OPS_H
#define RETAILINFER_FEATURE_OPS_H

#include <stdint.h>

/* ONNX element types */
enum { RI_FLOAT32 = 1, RI_INT32 = 6, RI_INT64 = 7, RI_STRING = 8, RI_BOOL = 9, RI_FLOAT64 = 11 };

enum { RI_PRESENT = 0, RI_NULL = 1, RI_UNKNOWN = 2, RI_STALE = 3, RI_UNAVAILABLE = 4, RI_N_STATES = 5 };

enum { RI_USE = 0, RI_DEFAULT = 1, RI_REFUSE = 2, RI_REVIEW = 3 };

enum { /* kinds of a slot */
    RI_SLOT_F64 = 0, RI_SLOT_I64 = 1, RI_SLOT_BOOL = 2, RI_SLOT_TIME = 3, RI_SLOT_TEXT = 4, RI_SLOT_VECTOR = 5,
    RI_SLOT_LIST_F64 = 6, RI_SLOT_LIST_I64 = 7, RI_SLOT_LIST_TEXT = 8
};

enum { /* kinds of a column */
    RI_NUMERIC = 0, RI_RATIO = 1, RI_DIFFERENCE = 2, RI_PRODUCT = 3, RI_ELAPSED = 4, RI_BOOLEAN = 5, RI_RAW = 6,
    RI_CATEGORY = 7, RI_ONEHOT = 8, RI_TARGET = 9, RI_HASHED = 10, RI_TIME = 11, RI_EQUAL = 12, RI_EMBEDDING = 13,
    RI_DOT = 14, RI_COSINE = 15, RI_SEQUENCE = 16, RI_LOOKUP = 17, RI_BINS = 18
};

enum { RI_NO_TRANSFORM = 0, RI_LOG1P = 1, RI_SIGNED_LOG1P = 2, RI_SQRT = 3 };

enum { /* steps after the scale; order as in columns.STEPS */
    RI_STEP_ADD = 0, RI_STEP_SUBTRACT, RI_STEP_MULTIPLY, RI_STEP_DIVIDE, RI_STEP_CLIP, RI_STEP_FILL, RI_STEP_FLOAT32,
    RI_STEP_LOG1P, RI_STEP_SIGNED_LOG1P, RI_STEP_SQRT
};

enum { /* parts of a timestamp; order as in columns.TIME_PARTS */
    RI_SECOND = 0, RI_MINUTE, RI_HOUR, RI_MINUTE_OF_DAY, RI_DAY_OF_WEEK, RI_HOUR_OF_WEEK, RI_DAY_OF_MONTH, RI_DAY_OF_YEAR,
    RI_MONTH, RI_QUARTER, RI_YEAR, RI_IS_WEEKEND
};
enum { RI_PLAIN = 0, RI_SINE = 1, RI_COSINE_WAVE = 2 };

enum { RI_SEQ_INDEX = 0, RI_SEQ_HASHED = 1, RI_SEQ_NUMBER = 2 };

enum { /* what went wrong; engine.pyx turns each into a typed error */
    RI_OK = 0, RI_ERR_REFUSED = 1, RI_ERR_DOMAIN = 2, RI_ERR_OVERFLOW = 3, RI_ERR_OOV = 4, RI_ERR_INEXACT_INT = 5,
    RI_ERR_VECTOR_SIZE = 6, RI_ERR_NOT_FINITE = 7, RI_ERR_NO_NAN = 8
};

typedef struct ri_text {
    const char *data;
    int64_t size; /* bytes of UTF-8 */
} ri_text;

typedef struct ri_slot {
    union {
        double f;
        int64_t i; /* integer, boolean, nanoseconds since the epoch */
        const char *text;
        const float *vector;
        const double *list_f;
        const int64_t *list_i;
        const ri_text *list_text;
    } v;
    int64_t n;          /* bytes of a text, cells of a vector, items of a list */
    uint64_t hash;      /* xxh64(text, 0) when `hashed` */
    int64_t updated_ns; /* when the row that holds it was written; INT64_MAX: never stale; INT64_MIN: age unknown */
    uint8_t state;
    uint8_t kind;
    uint8_t hashed;
    uint8_t calendar; /* the calendar cache holds this slot's timestamp */
} ri_slot;

typedef struct ri_vocab_cell {
    uint64_t hash;
    int32_t code; /* -1: empty */
    int32_t size;
    union {
        int64_t integer;
        const char *text;
    } key;
} ri_vocab_cell;

typedef struct ri_vocab { /* open addressing, load <= 1/2, so every probe ends */
    const ri_vocab_cell *cells;
    uint64_t mask;
    int32_t oov;  /* code of an unknown value; -1: refuse; -2: one-hot without a set cell */
    int32_t size; /* codes in all */
} ri_vocab;

typedef struct ri_zone { /* seconds to add to UTC from each transition on */
    const int64_t *at_s;
    const int32_t *offset_s;
    int32_t n; /* >= 1; at_s[0] = INT64_MIN */
} ri_zone;

typedef struct ri_step {
    int64_t op;
    double a, b;
} ri_step;

typedef struct ri_column {
    uint8_t kind, dtype, tensor, transform;
    uint8_t part, wave, sequence, keep_first;
    uint8_t action[RI_N_STATES]; /* by the worst state of its inputs */
    uint8_t has_clip, has_norm, allow_nan, plain; /* plain: float64 slot -> float cell, no clip, no age */
    uint8_t fills, refuse_other; /* fills: a step says what stands for a missing value. refuse_other: of a lookup */
    uint16_t ref[2];
    uint16_t n_refs, refs_at; /* a cross of fields: indices into program.refs */
    int32_t width;
    int64_t offset; /* first cell in the tensor's row */
    double clip_low, clip_high, center, scale;
    double seen_low, seen_high; /* training range of the raw value; NaN: not known */
    double fill_f[RI_N_STATES];
    int64_t fill_i[RI_N_STATES];
    ri_text fill_text[RI_N_STATES];
    int64_t max_age_ns; /* 0: none */
    int64_t unit_ns;
    uint64_t buckets, seed;
    const ri_vocab *vocab;
    const double *targets; /* by code; of lookups by key, then of all others; of bins by bin. NaN: none */
    const double *edges;   /* of bins, ascending */
    const double *on_off;  /* by cell what it holds when it is set, and when not; NULL: the column is one number */
    const ri_step *steps;
    int32_t n_edges, n_steps, n_keys, reserved;
    const double *waves;   /* of a time part: sine or cosine by value - low */
    double pad_f;
    int64_t pad_i;
} ri_column;

typedef struct ri_calendar {
    int64_t year;
    int32_t month, day_of_month, day_of_year, day_of_week, hour, minute, second;
    int32_t valid;
} ri_calendar;

typedef struct ri_program {
    const ri_column *columns;
    int32_t n_columns, n_slots, n_tensors;
    const uint16_t *refs;
    ri_zone zone;
} ri_program;

typedef struct ri_flag {
    uint16_t column;
    uint8_t state;
} ri_flag;

typedef struct ri_error {
    int32_t code, column, slot, state;
    double value;
    int64_t integer;
    int32_t text_size; /* bytes in `text`; -1: the value is `integer` */
    char text[64];     /* the start of a text that is not in its vocabulary */
} ri_error;

/* The mutable side of one call: one per workspace, never shared. */
typedef struct ri_state {
    ri_slot *slots;         /* n_slots */
    ri_calendar *calendars; /* n_slots */
    ri_flag *flags;         /* what was not plainly present; n_columns at most for each row */
    int32_t n_flags, max_flags;
    int32_t review;         /* a column asked for review */
    int32_t error_row;
    int64_t now_ns;         /* ages are measured against it */
    uint64_t *outside;      /* per column: values outside the training range */
    ri_error error;
} ri_state;

/* Run `n` columns (indices in `which`) of one row. rows[t] is where tensor t's row begins, masks[t] its mask row or NULL.
 * Returns 0, or a code > 0 with st->error filled; cells written before the failure are then garbage. */
int ri_run(const ri_program *p, const uint16_t *which, int32_t n, ri_state *st, uint8_t *const *rows, uint8_t *const *masks);

/* The same for one column: the way for a row whose stored values are stale. */
int ri_run_column(const ri_program *p, int32_t column, ri_state *st, uint8_t *const *rows, uint8_t *const *masks);

/* Hash of a text in vocabularies; of this process only. */
uint64_t ri_vocab_hash(const char *text, int64_t size);

/* Sines or cosines of all values of a period, as the columns compute them; `out` has `period` places. */
void ri_wave_table(int64_t period, int cosine, double *out);

/* Put a text's or an integer's code, or -1 when the vocabulary lacks it. */
int32_t ri_vocab_text(const ri_vocab *v, const char *text, int64_t size, uint64_t hash);
int32_t ri_vocab_int(const ri_vocab *v, int64_t key);
uint64_t ri_hash_int(int64_t key, uint64_t seed);
uint64_t ri_hash_text(const char *text, int64_t size, uint64_t seed);

int ri_dtype_size(int dtype);

#endif
