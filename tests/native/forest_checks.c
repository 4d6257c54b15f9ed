/* What must be true of a case; see forest_cases.h. */
#include "forest_cases.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"

const char *const forest_levels[3] = {"baseline", "avx2", "avx512"};

#define MUST(CONDITION, ...)                                                       \
    do {                                                                           \
        if (!(CONDITION)) {                                                        \
            fprintf(stderr, "forest check failed: %s - ", #CONDITION);             \
            fprintf(stderr, __VA_ARGS__);                                          \
            fputc('\n', stderr);                                                   \
            abort();                                                               \
        }                                                                          \
    } while (0)

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return x != x ? UINT32_C(0x7FC00000) : bits; /* which NaN is the processor's affair */
}

/* ---- the definition ------------------------------------------------------------------------------------------------------- */

static int has(const ri_trees *s, int32_t set, double x) { /* x >= 0 */
    const int64_t first = s->set_ends[set], n = s->set_ends[set + 1] - first;
    if (x >= 32.0 * (double)n)
        return 0;
    const int64_t i = (int64_t)x;
    MUST(first >= 0 && first + i / 32 < s->n_words, "word %lld of set %d", (long long)(first + i / 32), set);
    return (int)(s->set_words[first + i / 32] >> (i % 32) & 1);
}

static int left_of(const ri_trees *s, int64_t n, double x) {
    const int zero = s->missing[n] == RI_GONE_ZERO && fabs(x) <= (double)RI_ZERO;
    if (s->missing[n] != RI_GONE_NEVER && (isnan(x) || zero))
        return s->missing_left[n];
    if (isnan(x))
        x = 0;
    if (s->rule[n] == RI_RULE_LEQ)
        return x <= s->threshold[n];
    if (s->rule[n] == RI_RULE_EQ)
        return x == s->threshold[n];
    if (s->rule[n] == RI_RULE_IN_TRUNCATED)
        return x > -1 && has(s, s->category[n], x < 0 ? 0 : x);
    if (s->rule[n] == RI_RULE_IN_POSITIVE)
        return (float)x >= 0 && has(s, s->category[n], (double)(float)x);
    return x >= 0 && x == floor(x) && has(s, s->category[n], x);
}

/* The number of the leaf that tree t gives a row. A forest that was accepted can only be right: every step is checked. */
static int32_t leaf_of(const ri_trees *s, int32_t t, const void *row) {
    int64_t n = s->roots[t];
    for (int step = 0;; ++step) {
        MUST(n >= 0 && n < s->n_nodes && step <= RI_MAX_TREE_DEPTH, "tree %d, node %lld, step %d", t, (long long)n, step);
        if (s->feature[n] < 0)
            break;
        MUST(s->feature[n] < s->n_features, "feature %d of node %lld", s->feature[n], (long long)n);
        const double x = s->wide ? ((const double *)row)[s->feature[n]] : (double)((const float *)row)[s->feature[n]];
        n = left_of(s, n, x) ? s->left[n] : s->right[n];
    }
    MUST(s->left[n] >= 0 && s->left[n] < s->n_leaves, "leaf %d of node %lld", s->left[n], (long long)n);
    return s->left[n];
}

/* leaves (n_rows, n_trees), sums (n_rows, n_outputs) bits of the raw answers. */
static void define(const forest_case *c, int32_t *leaves, uint32_t *sums) {
    const ri_trees *s = &c->trees;
    const size_t cell = s->wide ? 8 : 4;
    const double n_trees = (s->n_trees > 0 ? s->n_trees : 1) / (s->average == 2 ? (double)s->n_outputs : 1.0);
    for (int64_t i = 0; i < c->n_rows; ++i) {
        const char *row = (const char *)c->rows + (size_t)(i * c->stride) * cell;
        int32_t *mine = leaves + i * s->n_trees;
        for (int32_t t = 0; t < s->n_trees; ++t)
            mine[t] = leaf_of(s, t, row);
        for (int32_t k = 0; k < s->n_outputs; ++k) {
            double wide = s->base_first ? s->base[k] : 0.0;
            float narrow = (float)wide;
            for (int32_t t = 0; t < s->n_trees; ++t) {
                if (s->width == 1 && s->targets[t] != k)
                    continue;
                const double v = s->values[(int64_t)mine[t] * s->width + (s->width == 1 ? 0 : k)];
                wide += v;
                narrow += (float)v;
            }
            if (s->average) {
                wide /= n_trees;
                narrow /= (float)n_trees;
            }
            if (!s->base_first) {
                wide += s->base[k];
                narrow += (float)s->base[k];
            }
            sums[i * s->n_outputs + k] = bits_of(s->doubles ? (float)wide : narrow);
        }
    }
}

/* ---- running -------------------------------------------------------------------------------------------------------------- */

typedef struct run {
    const forest_case *c;
    const ri_forest *f;
    const ri_kernel_set *set;
    const char *name;
    ri_plan plan;
} run;

/* Answers as bits, (n_rows, n_columns). column -1: in one call for all columns. */
static void answer(const run *r, int raw, int each, int32_t *leaves, uint32_t *bits) {
    const ri_trees *s = &r->c->trees;
    const int64_t n = r->c->n_rows, columns = s->n_columns;
    void *scratch = ri_aligned(r->f->scratch);
    MUST(scratch, "%zu bytes of scratch", r->f->scratch);
    memset(scratch, 0xA5, r->f->scratch);
    float *out = malloc((size_t)(n * columns) * 4);
    MUST(out, "no memory");
    if (!each) {
        ri_forest_run(r->f, r->set, &r->plan, r->c->rows, r->c->stride, n, scratch, out, columns, -1, raw, leaves);
        for (int64_t i = 0; i < n * columns; ++i)
            bits[i] = bits_of(out[i]);
    } else {
        for (int k = 0; k < (int)columns; ++k) {
            ri_forest_run(r->f, r->set, &r->plan, r->c->rows, r->c->stride, n, scratch, out, 1, k, raw, leaves);
            for (int64_t i = 0; i < n; ++i)
                bits[i * columns + k] = bits_of(out[i]);
        }
    }
    free(out);
    ri_aligned_free(scratch);
}

static void must_equal(const run *r, const char *what, const uint32_t *got, const uint32_t *want, size_t n, size_t columns) {
    for (size_t i = 0; i < n; ++i)
        MUST(got[i] == want[i], "%s of kernel %s, level %s: row %zu of %lld, column %zu has the bits %08x, expected %08x", what, r->name,
             r->set->level, i / columns, (long long)r->c->n_rows, i % columns, got[i], want[i]);
}

static void check_kernel(const run *r, const int32_t *leaves, const uint32_t *raw, uint32_t *last, int *known) {
    const ri_trees *s = &r->c->trees;
    const size_t columns = (size_t)s->n_columns, n = (size_t)r->c->n_rows * columns, n_leaves = (size_t)(r->c->n_rows * s->n_trees);
    uint32_t *bits = malloc(4 * n);
    int32_t *found = malloc(4 * n_leaves + 4);
    MUST(bits && found, "no memory");
    memset(found, 0xFF, 4 * n_leaves + 4);
    answer(r, 1, 0, found, bits);
    must_equal(r, "sums", bits, raw, n, columns);
    for (size_t i = 0; i < n_leaves; ++i)
        MUST(found[i] == leaves[i], "kernel %s, level %s: row %zu, tree %zu gave leaf %d, expected %d", r->name, r->set->level,
             i / (size_t)s->n_trees, i % (size_t)s->n_trees, found[i], leaves[i]);
    answer(r, 1, 1, NULL, bits);
    must_equal(r, "sums by column", bits, raw, n, columns);
    for (int each = 0; each < 2; ++each) {
        answer(r, 0, each, NULL, bits);
        if (!*known)
            memcpy(last, bits, 4 * n);
        *known = 1;
        must_equal(r, "answers", bits, last, n, columns);
    }
    free(bits);
    free(found);
}

/* Plans that are guessed and timed, on rows that the forest makes up itself: whatever they are, the answers are the same. */
static void check_plans(run *r, const int32_t *leaves, const uint32_t *raw, uint32_t *last, int *known) {
    const ri_trees *s = &r->c->trees;
    const size_t cells = 2 * (size_t)RI_BLOCK * (size_t)s->n_features;
    void *rows = malloc(cells * (s->wide ? 8 : 4)), *scratch = ri_aligned(r->f->scratch);
    MUST(rows && scratch, "no memory");
    ri_forest_likely(r->f, 2 * RI_BLOCK, rows);
    memset(&r->plan, 0xA5, sizeof r->plan);
    ri_plan_guess(r->f, r->set, &r->plan);
    r->name = "guessed";
    check_kernel(r, leaves, raw, last, known);
    memset(&r->plan, 0xA5, sizeof r->plan);
    ri_plan_time(r->f, r->set, rows, s->n_features, 2 * RI_BLOCK, r->c->plan[0] & 1 ? 1 : 500, 50000, scratch, &r->plan);
    r->name = "timed";
    check_kernel(r, leaves, raw, last, known);
    free(rows);
    ri_aligned_free(scratch);
}

static void check_memory(const forest_case *c, const ri_forest *f) {
    const ri_trees *s = &c->trees;
    const size_t input = (size_t)s->n_nodes * 35 + (size_t)(s->n_leaves * s->width) * 8 + (size_t)s->n_trees * 8 + (size_t)s->n_sets * 8
                         + (size_t)s->n_words * 4 + (size_t)s->n_outputs * 8;
    MUST(f->n_bytes <= 8 * input + ((size_t)128 << 20), "%zu bytes for %zu of arrays", f->n_bytes, input);
}

void forest_case_check(const uint8_t *data, size_t size, forest_answers *answers, forest_counts *counts) {
    forest_case c;
    forest_case_make(&c, data, size);
    const ri_trees *s = &c.trees;
    int error = 0;
    int64_t at = 0;
    ri_forest *f = ri_forest_new(s, &error, &at);
    counts->cases++;
    if (answers)
        *answers = (forest_answers){.error = f ? 0 : error};
    if (!f) {
        int deep = error == RI_TREES_DEPTH; /* made on purpose at times */
        MUST(c.spoiled || deep, "a whole forest was refused: %d at %lld", error, (long long)at);
        MUST(error > 0 && error <= RI_TREES_COVER, "error %d", error);
        counts->refused++;
        reasons_refuse(&c);
        forest_case_free(&c);
        return;
    }
    counts->spoiled_but_whole += (uint64_t)c.spoiled;
    check_memory(&c, f);
    const size_t columns = (size_t)s->n_columns, n = (size_t)c.n_rows * columns;
    int32_t *leaves = malloc(4 * (size_t)(c.n_rows * s->n_trees) + 4);
    uint32_t *sums = malloc(4 * (size_t)(c.n_rows * s->n_outputs)), *raw = malloc(4 * n), *last = malloc(4 * n);
    MUST(leaves && sums && raw && last, "no memory");
    define(&c, leaves, sums);
    for (size_t i = 0; i < n; ++i)
        raw[i] = sums[s->n_outputs == 1 ? i / columns : i];
    int known = 0;
    for (int level = 0; level < 3; ++level) {
        run r = {.c = &c, .f = f, .set = ri_kernel_level(forest_levels[level])};
        if (!r.set)
            continue;
        int fit[RI_N_KERNELS], n_fit = 0;
        for (int k = 0; k < RI_N_KERNELS; ++k) {
            if (!ri_kernel_fits(f, r.set, k))
                continue;
            fit[n_fit++] = k;
            ri_plan_force(k, &r.plan);
            r.name = ri_kernel_names[k];
            check_kernel(&r, leaves, raw, last, &known);
            counts->runs[level][k]++;
            counts->answers += n;
        }
        MUST(n_fit > 0, "no kernel fits");
        for (int rows = 1; rows <= RI_TILE; ++rows) {
            const int kernel = fit[c.plan[rows % 9] % n_fit];
            r.plan.kernel[rows] = (uint8_t)kernel;
            r.plan.rows[rows] = (uint16_t)(rows < ri_kernel_rows[kernel] ? rows : ri_kernel_rows[kernel]);
        }
        r.name = "mixed";
        check_kernel(&r, leaves, raw, last, &known);
        if (c.plan[1] % 4 == 0 && s->n_features <= 2000 && s->n_nodes <= 5000)
            check_plans(&r, leaves, raw, last, &known);
    }
    const uint64_t reasons = reasons_check(&c, f, leaves, counts);
    if (answers)
        *answers = (forest_answers){.n = n, .sums = raw, .last = last, .reasons = reasons};
    else {
        free(raw);
        free(last);
    }
    free(sums);
    free(leaves);
    ri_forest_free(f);
    forest_case_free(&c);
}
