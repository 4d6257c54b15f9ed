/* Running a forest: which instruction sets there are, which kernel takes how many rows, and the blocks of a call.
 *
 * Rules:
 *   - A plan may be guessed, forced or timed: all kernels give the same bits.
 *   - Timing takes the best of several turns, in which kernels alternate, over rows that rotate: a predictor remembers one row's way.
 */
#include "trees.h"

#include <string.h>
#include <time.h>

extern const ri_kernel_set ri_kernels_base;
#if defined(RI_HAVE_LEVELS)
extern const ri_kernel_set ri_kernels_avx2, ri_kernels_avx512;
#endif

const int ri_kernel_rows[RI_N_KERNELS] = {RI_BLOCK, RI_BLOCK, RI_BLOCK, 8, 32, 64, 128, 256};
const char *const ri_kernel_names[RI_N_KERNELS] = {"walk-1", "walk-8", "jump-1", "jump-8", "ranked-32", "ranked-64", "ranked-128", "ranked-256"};

/* ---- instruction sets ---------------------------------------------------------------------------------------------------- */

const ri_kernel_set *ri_kernel_level(const char *level) {
#if defined(RI_HAVE_LEVELS)
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")
                     && __builtin_cpu_supports("fma");
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
                       && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vbmi")
                       && __builtin_cpu_supports("avx512vbmi2");
    if (avx512 && (!level || !strcmp(level, "avx512")))
        return &ri_kernels_avx512;
    if (avx2 && (!level || !strcmp(level, "avx2")))
        return &ri_kernels_avx2;
#endif
    return !level || !strcmp(level, "baseline") ? &ri_kernels_base : NULL;
}

int ri_kernel_fits(const ri_forest *f, const ri_kernel_set *set, int kernel) {
    if (kernel < 0 || kernel >= RI_N_KERNELS || !set->kernels[kernel])
        return 0;
    if (kernel == RI_KERNEL_JUMP_1 || kernel == RI_KERNEL_JUMP_8)
        return f->tiles != NULL;
    return kernel < RI_KERNEL_RANKED_32 || f->masked != NULL;
}

/* ---- plans --------------------------------------------------------------------------------------------------------------- */

/* A block of rows that a plan may consist of, and what it takes. Walks take any number of rows, 8 at a time. */
typedef struct piece {
    int kernel, rows;
    double ns;
} piece;

enum { N_PIECES = 10 };
static const piece all_pieces[N_PIECES] = {
    {RI_KERNEL_WALK_1, 1, 0}, {RI_KERNEL_WALK_8, 8, 0}, {RI_KERNEL_WALK_8, 32, 0}, {RI_KERNEL_WALK_8, 256, 0},
    {RI_KERNEL_JUMP_1, 1, 0}, {RI_KERNEL_JUMP_8, 8, 0}, {RI_KERNEL_RANKED_32, 32, 0}, {RI_KERNEL_RANKED_64, 64, 0},
    {RI_KERNEL_RANKED_128, 128, 0}, {RI_KERNEL_RANKED_256, 256, 0}};

/* The cheapest way through 1, 2, .. RI_TILE rows: one piece, then the cheapest way through what is left. */
static void compose(const piece *pieces, int n, ri_plan *plan) {
    memset(plan, 0, sizeof *plan);
    for (int rows = 1; rows <= RI_TILE; ++rows)
        for (int i = 0; i < n; ++i) {
            const piece *p = pieces + i;
            const int take = p->rows < rows ? p->rows : rows;
            const double own = p->kernel == RI_KERNEL_WALK_8 ? p->ns * (double)((take + 7) / 8) / (p->rows / 8) : p->ns;
            const double ns = own + (double)plan->ns[rows - take];
            if (i == 0 || ns < (double)plan->ns[rows]) {
                plan->kernel[rows] = (uint8_t)p->kernel;
                plan->rows[rows] = (uint16_t)take;
                plan->ns[rows] = (float)ns;
            }
        }
}

void ri_plan_guess(const ri_forest *f, const ri_kernel_set *set, ri_plan *plan) {
    /* what pieces took beside walk-1 for 300 trees of 31 leaves, 6 deep: with AVX-512, with AVX2, with neither */
    static const float took[3][N_PIECES] = {{1, 7, 28, 224, 0.6f, 3.1f, 5.8f, 9.2f, 17.3f, 31},
                                            {1, 7, 28, 224, 0, 0, 7.3f, 12.5f, 23, 43.6f},
                                            {1, 7, 28, 224, 0, 0, 19.8f, 28, 46.6f, 83}};
    const float *ns = took[!strcmp(set->level, "avx512") ? 0 : !strcmp(set->level, "avx2") ? 1 : 2];
    piece fitting[N_PIECES];
    int n = 0;
    for (int i = 0; i < N_PIECES; ++i)
        if (ri_kernel_fits(f, set, all_pieces[i].kernel)) {
            fitting[n] = all_pieces[i];
            /* walks look at as many nodes as a tree is deep, the others at all of them */
            fitting[n].ns = (double)ns[i] * (fitting[n].kernel >= RI_KERNEL_JUMP_1 ? f->max_leaves / 31.0 * 6.0 / (f->max_depth + 1.0) : 1.0);
            n++;
        }
    compose(fitting, n, plan);
    memset(plan->ns, 0, sizeof plan->ns);
}

void ri_plan_force(int kernel, ri_plan *plan) {
    memset(plan, 0, sizeof *plan);
    for (int rows = 1; rows <= RI_TILE; ++rows) {
        plan->kernel[rows] = (uint8_t)kernel;
        plan->rows[rows] = (uint16_t)(rows < ri_kernel_rows[kernel] ? rows : ri_kernel_rows[kernel]);
    }
}

static int64_t now_ns(void) {
    struct timespec t;
#if defined(CLOCK_MONOTONIC)
    clock_gettime(CLOCK_MONOTONIC, &t);
#else
    timespec_get(&t, TIME_UTC);
#endif
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void ri_plan_time(const ri_forest *f, const ri_kernel_set *set, const void *rows, int64_t stride, int64_t n_rows, int most, int64_t budget_ns,
                  void *scratch, ri_plan *plan) {
    piece fitting[N_PIECES];
    ri_plan forced;
    float out[RI_BLOCK];
    int n = 0;
    const int64_t start = now_ns();
    for (int i = 0; i < N_PIECES; ++i)
        /* no block that is mostly empty in the largest of calls, unless it is the smallest there is */
        if (ri_kernel_fits(f, set, all_pieces[i].kernel) && (all_pieces[i].rows <= 32 || all_pieces[i].rows < 2 * most))
            fitting[n++] = all_pieces[i];
    for (int turn = 0; turn < 50; ++turn) {
        for (int i = 0; i < n; ++i) {
            piece *p = fitting + i;
            const int64_t left = budget_ns - (now_ns() - start);
            if (turn > 1 && left <= 0)
                break;
            /* what would not fit any more is left at what smaller blocks say */
            if (p->kernel == RI_KERNEL_WALK_8 && p->rows > 8) {
                const double guess = fitting[i - 1].ns * p->rows / fitting[i - 1].rows;
                if (turn == 0 || guess * 4 > (double)left) {
                    p->ns = p->ns > 0 && p->ns < guess ? p->ns : guess;
                    if (guess * 4 > (double)left)
                        continue;
                }
            }
            ri_plan_force(p->kernel, &forced);
            for (int times = 0; times < (p->rows == 1 ? 8 : 2); ++times) {
                const int64_t from = (int64_t)((turn * 13 + times) * 37 + i * 11) % (n_rows - p->rows + 1);
                const int64_t before = now_ns();
                ri_forest_run(f, set, &forced, (const char *)rows + from * stride * (f->wide ? 8 : 4), stride, p->rows, scratch, out, 1, 0, 1, NULL);
                const double took = (double)(now_ns() - before);
                if ((turn == 0 && times == 0 && p->ns == 0) || took < p->ns)
                    p->ns = took;
            }
        }
        if (turn > 0 && now_ns() - start > budget_ns)
            break;
    }
    compose(fitting, n, plan);
}

/* ---- rows for timing ------------------------------------------------------------------------------------------------------ */

static uint32_t next_random(uint64_t *state) {
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33);
}

static void put_cell(const ri_forest *f, void *rows, int64_t row, int32_t feature, double x) {
    const size_t at = (size_t)row * (size_t)f->n_features + (size_t)feature;
    if (f->wide)
        ((double *)rows)[at] = x;
    else
        ((float *)rows)[at] = (float)x;
}

static double value_of_key(const ri_forest *f, uint64_t key) { /* the inverse of tree_keys.h */
    float narrow;
    double wide;
    const uint64_t bits = key >> 63 ? key ^ (UINT64_C(1) << 63) : ~key;
    const uint32_t bits_f = (uint32_t)key >> 31 ? (uint32_t)key ^ (UINT32_C(1) << 31) : ~(uint32_t)key;
    memcpy(&wide, &bits, 8);
    memcpy(&narrow, &bits_f, 4);
    return f->wide ? wide : (double)narrow;
}

static int32_t feature_of(const ri_forest *f, int32_t column) {
    int32_t low = 0, high = f->n_runs;
    while (high - low > 1) {
        const int32_t middle = (low + high) / 2;
        if (f->runs[middle].column <= column)
            low = middle;
        else
            high = middle;
    }
    return f->runs[low].feature + column - f->runs[low].column;
}

void ri_forest_likely(const ri_forest *f, int64_t n, void *rows) {
    uint64_t state = 1;
    memset(rows, 0, (size_t)n * (size_t)f->n_features * (f->wide ? 8 : 4));
    /* thresholds in the order of nodes go into other rows each time, until every feature has been given often enough */
    for (int64_t i = 0; i < f->n_places && n; ++i) {
        const uint32_t cell = f->small ? f->small[i].cell / 4u : f->large[i].cell >> 6;
        if (cell >= (uint32_t)f->n_columns || !(f->small ? f->small[i].next : f->large[i].next))
            continue;
        const double x = value_of_key(f, f->small ? f->small[i].key : f->large[i].key);
        const int32_t feature = feature_of(f, (int32_t)cell);
        for (int times = 0; times < 4; ++times)
            put_cell(f, rows, next_random(&state) % n, feature, x);
    }
    for (int32_t i = 0; i < f->n_questions; ++i) {
        const ri_questions *q = f->questions + i;
        for (int64_t row = 0; row < n; ++row) {
            const uint32_t code = next_random(&state) % (uint32_t)(q->n_codes > 0 ? q->n_codes < INT32_MAX ? q->n_codes : INT32_MAX : 64);
            put_cell(f, rows, row, q->feature, q->rule == RI_RULE_EQ ? q->values[code] : (double)code);
        }
    }
}

/* ---- runs ---------------------------------------------------------------------------------------------------------------- */

/* Scratch of a run: sums of either kind, the room of the last step, the kernel's own. */
static char *room_behind_sums(const ri_forest *f, void *scratch) {
    return (char *)scratch + (((size_t)f->n_outputs * RI_BLOCK * 8 + 127) & ~(size_t)63);
}

static inline void begin_sums(const ri_forest *f, void *sums, int n) {
    for (int32_t k = 0; k < f->n_outputs; ++k) {
        const double first = f->base_first ? f->base[k] : 0.0;
        for (int j = 0; j < n; ++j) {
            if (f->doubles)
                ((double *)sums)[k * RI_BLOCK + j] = first;
            else
                ((float *)sums)[k * RI_BLOCK + j] = (float)first;
        }
    }
}

int ri_forest_run_recorded(const ri_forest *f, const ri_kernel_set *set, const ri_plan *plan, const void *row, void *scratch, float *out,
                           int column, int raw, const ri_records *records, int32_t *totals) {
    if (plan->kernel[1] != RI_KERNEL_JUMP_1 || f->n_outputs > 1)
        return 0;
    char *room = room_behind_sums(f, scratch), *own = room + ri_forest_finish_room(f);
    begin_sums(f, scratch, 1);
    set->recorded(f, row, own, scratch, records, totals);
    ri_forest_finish(f, scratch, 1, room, out, 1, column, raw);
    return 1;
}

void ri_forest_run(const ri_forest *f, const ri_kernel_set *set, const ri_plan *plan, const void *rows, int64_t stride, int64_t n,
                   void *scratch, float *out, int64_t out_stride, int column, int raw, int32_t *leaves) {
    const size_t cell = f->wide ? 8 : 4;
    char *room = room_behind_sums(f, scratch), *own = room + ri_forest_finish_room(f);
    for (int64_t i = 0; i < n;) {
        const int64_t left = n - i < RI_TILE ? n - i : RI_TILE;
        const int block = plan->rows[left], kernel = plan->kernel[left];
        const int room_for = kernel >= RI_KERNEL_RANKED_32 ? ri_kernel_rows[kernel] : (block + 7) & ~7;
        begin_sums(f, scratch, room_for);
        set->kernels[kernel](f, (const char *)rows + (size_t)(i * stride) * cell, stride, block, own, scratch, leaves ? leaves + i * f->n_trees : NULL);
        ri_forest_finish(f, scratch, block, room, out + i * out_stride, out_stride, column, raw);
        i += block;
    }
}
