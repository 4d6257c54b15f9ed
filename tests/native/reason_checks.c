/* What must be true of the reasons of a case's forest; see forest_cases.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"
#include "forest_cases.h"
#include "tree_reasons.h"

#define MUST(CONDITION, ...)                                                        \
    do {                                                                            \
        if (!(CONDITION)) {                                                         \
            fprintf(stderr, "reasons check failed: %s - ", #CONDITION);             \
            fprintf(stderr, __VA_ARGS__);                                           \
            fputc('\n', stderr);                                                    \
            abort();                                                                \
        }                                                                           \
    } while (0)

static uint64_t drawn(uint64_t *state) {
    uint64_t z = (*state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static uint64_t mixed(uint64_t h, const void *from, size_t size) {
    const uint8_t *p = from;
    for (size_t i = 0; i < size; ++i)
        h = (h ^ p[i]) * UINT64_C(0x100000001B3);
    return h;
}

static uint64_t mixed_doubles(uint64_t h, const double *from, size_t n) { /* NaN in one form, zero without its sign */
    for (size_t i = 0; i < n; ++i) {
        const double x = isnan(from[i]) ? 1e301 : from[i] == 0 ? 0.0 : from[i];
        h = mixed(h, &x, sizeof x);
    }
    return h;
}

/* The strongest groups by selection, one after the other. */
static int32_t pick(const int64_t *amounts, int32_t n_groups, int32_t most, int32_t *picked) {
    int32_t n = 0;
    for (; n < most; ++n) {
        int32_t best = -1;
        for (int32_t g = 0; g < n_groups; ++g) {
            int taken = amounts[g] <= 0;
            for (int32_t i = 0; i < n; ++i)
                taken |= picked[i] == g;
            if (!taken && (best < 0 || amounts[g] > amounts[best]))
                best = g;
        }
        if (best < 0)
            break;
        picked[n] = best;
    }
    return n;
}

typedef struct asked {
    const forest_case *c;
    const ri_forest *f;
    const int32_t *leaves;
    int32_t *groups, n_groups, output, rows;
    int sign;
    forest_counts *counts;
} asked;

/* What one pass of the kernel of trees gives that sums records on its way, where there is one: the same answer, and the same amounts. */
static void check_recorded(const asked *a, ri_reasons *r, const int64_t *known) {
    const ri_kernel_set *set = ri_kernel_level(NULL);
    const size_t cell = a->c->trees.wide ? 8 : 4;
    ri_plan plan;
    MUST(ri_reasons_pack(r, a->f, set) == 0, "no memory");
    if (!r->packed)
        return;
    ri_plan_force(RI_KERNEL_JUMP_1, &plan);
    void *scratch = ri_aligned(a->f->scratch), *own = ri_aligned(r->scratch);
    MUST(scratch && own, "no memory");
    for (int32_t i = 0; i < a->rows; ++i) {
        const char *row = (const char *)a->c->rows + (size_t)(i * a->c->stride) * cell;
        int32_t picked[8], expected[8];
        float want, got;
        ri_forest_run(a->f, set, &plan, row, a->c->stride, 1, scratch, &want, 1, 0, 0, NULL);
        memset(own, 0xA5, r->scratch);
        MUST(ri_forest_run_recorded(a->f, set, &plan, row, scratch, &got, 0, 0, &r->records, own), "row %d", i);
        MUST(want == got || (isnan(want) && isnan(got)), "row %d: %g with its records, %g without", i, (double)got, (double)want);
        for (int32_t g = 0; g < RI_RECORD_TOTALS; ++g)
            MUST(((const int32_t *)own)[g] == (g < a->n_groups ? known[(int64_t)i * a->n_groups + g] : 0), "group %d of row %d", g, i);
        const int32_t most = 1 + i % 8, n = ri_reasons_pick_sums(r, ri_reason_kernels_of(set->level), own, most, picked);
        MUST(n == pick(known + (int64_t)i * a->n_groups, a->n_groups, most, expected), "%d picked", n);
        MUST(n == 0 || !memcmp(picked, expected, 4 * (size_t)n), "row %d: other groups are picked", i);
    }
    a->counts->recorded++;
    ri_aligned_free(scratch);
    ri_aligned_free(own);
}

/* Amounts and picks of one form by every level; `known`: what must come out again, NULL of the first form. */
static uint64_t check_form(const asked *a, const ri_reasons *r, int64_t *known, int first, uint64_t h) {
    const ri_trees *s = &a->c->trees;
    int64_t *amounts = malloc(8 * (size_t)a->n_groups + 8);
    int32_t picked[8], expected[8];
    MUST(amounts, "no memory");
    for (int level = 0; level < 3; ++level) {
        if (!ri_kernel_level(forest_levels[level]))
            continue;
        const ri_reason_kernels *kernels = ri_reason_kernels_of(forest_levels[level]);
        for (int32_t i = 0; i < a->rows; ++i) {
            const int32_t *leaves = a->leaves + (int64_t)i * s->n_trees;
            int64_t *want = known + (int64_t)i * a->n_groups;
            void *scratch = ri_aligned(r->scratch);
            MUST(scratch, "no memory");
            memset(scratch, 0xA5, r->scratch);
            ri_reasons_amounts(r, kernels, leaves, scratch, amounts);
            if (first && level == 0)
                memcpy(want, amounts, 8 * (size_t)a->n_groups);
            for (int32_t g = 0; g < a->n_groups; ++g)
                MUST(amounts[g] == want[g], "group %d of row %d, level %s: %lld, expected %lld", g, i, forest_levels[level],
                     (long long)amounts[g], (long long)want[g]);
            const int32_t most = 1 + i % 8, n = ri_reasons_pick(r, kernels, leaves, scratch, most, picked);
            MUST(n == pick(want, a->n_groups, most, expected), "%d picked, level %s", n, forest_levels[level]);
            MUST(n == 0 || !memcmp(picked, expected, 4 * (size_t)n), "row %d, level %s: other groups are picked", i, forest_levels[level]);
            if (level == 0)
                h = mixed(mixed(h, amounts, 8 * (size_t)a->n_groups), picked, 4 * (size_t)n);
            ri_aligned_free(scratch);
        }
    }
    free(amounts);
    return h;
}

static uint64_t check_groups(const asked *a, uint64_t h) {
    const ri_trees *s = &a->c->trees;
    int64_t *known = calloc((size_t)a->rows * (size_t)a->n_groups + 1, 8);
    MUST(known, "no memory");
    int first = 1;
    for (int form = 1; form < 3; ++form) {
        int error = 0;
        int64_t at = 0;
        ri_reasons *r = ri_reasons_new(s, a->groups, a->n_groups, a->output, a->sign, form, &error, &at);
        if (!r) {
            MUST(error > 0 && error <= RI_REASONS_GROUP, "error %d", error);
            h = mixed(h, &error, sizeof error);
            break;
        }
        h = check_form(a, r, known, first, h);
        check_recorded(a, r, known);
        first = 0;
        ri_reasons_free(r);
    }
    free(known);
    return h;
}

/* Contributions add up to the sum less the base: by the way, and by Shapley values where they are affordable. */
static uint64_t check_explained(const asked *a, uint64_t h) {
    const ri_trees *s = &a->c->trees;
    int error = 0;
    int64_t at = 0;
    ri_explain *e = ri_explain_new(s, a->output, &error, &at);
    if (!e)
        return mixed(h, &error, sizeof error);
    const size_t n = (size_t)s->n_features;
    double *out = malloc(8 * n), *row = malloc(8 * n);
    MUST(out && row, "no memory");
    const int shaps = e->max_depth <= 40 && s->n_nodes <= 2000 && s->n_features <= 4000;
    for (int32_t i = 0; i < a->rows; ++i) {
        const int32_t *leaves = a->leaves + (int64_t)i * s->n_trees;
        double sum = 0, size = fabs(e->base);
        for (int32_t t = 0; t < s->n_trees; ++t)
            if (s->width > 1 || s->targets[t] == a->output) {
                const double v = s->values[(int64_t)leaves[t] * s->width + (s->width > 1 ? a->output : 0)];
                sum += v;
                size += fabs(v);
            }
        sum = sum / e->divisor + s->base[a->output];
        for (int way = 0; way < 1 + (shaps && i < 2); ++way) {
            memset(out, 0xA5, 8 * n);
            if (way == 0) {
                ri_explain_path(e, leaves, out);
            } else {
                for (size_t k = 0; k < n; ++k)
                    row[k] = s->wide ? ((const double *)a->c->rows)[(size_t)(i * a->c->stride) + k]
                                     : (double)((const float *)a->c->rows)[(size_t)(i * a->c->stride) + k];
                const size_t room = ri_explain_shap_room(e);
                void *scratch = malloc(room);
                MUST(scratch, "no memory");
                ri_explain_shap(e, row, scratch, out);
                free(scratch);
            }
            double total = e->base;
            for (size_t k = 0; k < n; ++k) {
                total += out[k];
                size += fabs(out[k]);
            }
            if (size < 1e100)
                MUST(fabs(total - sum) <= 1e-6 * size + 1e-300, "row %d, %s: %.17g, expected %.17g", i, way ? "shapley" : "path", total, sum);
            h = mixed_doubles(h, out, n);
        }
    }
    free(out);
    free(row);
    ri_explain_free(e);
    return h;
}

uint64_t reasons_check(const forest_case *c, const ri_forest *f, const int32_t *leaves, forest_counts *counts) {
    static const int32_t COUNTS[] = {1, 2, 5, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 97, 112, 127, 128, 129, 300};
    const ri_trees *s = &c->trees;
    uint64_t state = c->hash, h = UINT64_C(0xCBF29CE484222325);
    asked a = {.c = c, .f = f, .leaves = leaves, .counts = counts, .n_groups = COUNTS[drawn(&state) % 21], .sign = drawn(&state) & 1 ? 1 : -1};
    a.output = (int32_t)(drawn(&state) % (uint64_t)s->n_outputs);
    a.rows = c->n_rows < 9 ? (int32_t)c->n_rows : 9;
    a.groups = malloc(4 * (size_t)s->n_features);
    MUST(a.groups, "no memory");
    for (int32_t i = 0; i < s->n_features; ++i)
        a.groups[i] = (int32_t)(drawn(&state) % (uint64_t)(a.n_groups + 1)) - 1;
    h = check_explained(&a, check_groups(&a, h));
    free(a.groups);
    return h;
}

void reasons_refuse(const forest_case *c) {
    const ri_trees *s = &c->trees;
    int error = 0;
    int64_t at = 0;
    if (s->n_features < 1 || s->n_features > 1 << 17 || s->n_outputs < 1)
        return; /* these are told by who asks, and are right */
    ri_explain *e = ri_explain_new(s, 0, &error, &at);
    if (e) {
        double *row = calloc((size_t)s->n_features, 8), *out = calloc((size_t)s->n_features, 8);
        const int shaps = e->max_depth <= 40 && s->n_nodes <= 2000;
        void *scratch = malloc(shaps ? ri_explain_shap_room(e) : 1);
        MUST(row && out && scratch, "no memory");
        if (shaps)
            ri_explain_shap(e, row, scratch, out);
        free(scratch);
        free(row);
        free(out);
        ri_explain_free(e);
    } else {
        MUST(error > 0 && error <= RI_REASONS_GROUP, "error %d", error);
    }
}
