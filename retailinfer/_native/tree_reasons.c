/* Reasons of forests: expectations, what each leaf adds to each group, the strongest groups of a row, contributions in double.
 *
 * Rules:
 *   - Arrays are not trusted: whatever is followed here is checked here, though a forest of them may exist already.
 *   - Expectations and steps are double, in the order that reasons_reference.py has, so that both round alike.
 * What they are: tree_reasons.h.
 */
#include "tree_reasons.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"
#include "tree_rules.h"

#define MAX_STEPS (INT64_C(1) << 31) /* of all leaves' ways together: a comb of leaves is as long as it is deep */
#define MAX_DENSE (INT64_C(1) << 26)
#define MAX_VALUE 1e300 /* of a leaf: what is added and subtracted below stays finite */
#define SUMS(STRIDE) ((STRIDE) > RI_RECORD_TOTALS ? (size_t)(STRIDE) : (size_t)RI_RECORD_TOTALS) /* room for them in scratch */
#define MOST_FEW 6 /* reasons that are picked without a branch */

static int bad(int code, int64_t at, int *error, int64_t *where) {
    *error = code;
    *where = at;
    return -1;
}

/* ---- expectations ------------------------------------------------------------------------------------------------------------ */

static double value_of(const ri_trees *s, int32_t leaf, int32_t output) {
    return s->width == 1 ? s->values[leaf] : s->values[(int64_t)leaf * s->width + output];
}

static int is_used(const ri_trees *s, int32_t t, int32_t output) { return s->width > 1 || s->targets[t] == output; }

/* Share of a node's rows that go left; half of them where nobody came by, or nobody counted. */
static double share_left(const ri_trees *s, int32_t n) {
    if (!s->cover)
        return 0.5;
    const double left = s->cover[s->left[n]], total = left + s->cover[s->right[n]];
    return total > 0 && isfinite(total) ? left / total : 0.5;
}

/* Nodes of one tree, parents before children, into `order`; returns their number. Fills `parent`; -2 there: not seen yet. */
static int32_t walk_tree(const ri_trees *s, int32_t t, int32_t *order, int32_t *parent, int32_t *node, int32_t *depth, int *error, int64_t *at) {
    int32_t head = 0, tail = 0;
    const int32_t root = s->roots[t];
    if (root < 0 || root >= s->n_nodes || parent[root] != -2)
        return bad(RI_REASONS_NODE, root, error, at);
    parent[root] = -1;
    depth[root] = 0;
    order[tail++] = root;
    for (; head < tail; ++head) {
        const int32_t n = order[head];
        if (s->feature[n] < 0) {
            if (s->left[n] < 0 || s->left[n] >= s->n_leaves)
                return bad(RI_REASONS_NODE, n, error, at);
            if (node[s->left[n]] >= 0) /* its number would not say which way a row took */
                return bad(RI_REASONS_SHARED, s->left[n], error, at);
            node[s->left[n]] = n;
            continue;
        }
        if (s->feature[n] >= s->n_features || s->category[n] < -1 || s->category[n] >= s->n_sets)
            return bad(RI_REASONS_NODE, n, error, at);
        for (int side = 0; side < 2; ++side) {
            const int32_t child = side ? s->right[n] : s->left[n];
            if (child < 0 || child >= s->n_nodes || parent[child] != -2)
                return bad(RI_REASONS_NODE, n, error, at);
            parent[child] = n;
            depth[child] = depth[n] + 1;
            order[tail++] = child;
        }
    }
    return tail;
}

void ri_explain_free(ri_explain *e) {
    if (!e)
        return;
    free(e->expected);
    free(e->parent);
    free(e->node);
    free(e);
}

static int expect(ri_explain *e, int32_t *order, int32_t *depth, int *error, int64_t *at) {
    const ri_trees *s = &e->s;
    double roots = 0;
    int64_t steps = 0;
    for (int64_t i = 0; i < s->n_sets; ++i)
        if (s->set_ends[i] < 0 || s->set_ends[i] > s->set_ends[i + 1] || s->set_ends[i + 1] > s->n_words)
            return bad(RI_REASONS_SIZE, i, error, at);
    for (int64_t i = 0; i < s->n_nodes; ++i)
        e->parent[i] = -2;
    for (int64_t i = 0; i < s->n_leaves; ++i)
        e->node[i] = -1;
    for (int32_t t = 0; t < s->n_trees; ++t) {
        if (!is_used(s, t, e->output))
            continue;
        const int32_t n = walk_tree(s, t, order, e->parent, e->node, depth, error, at);
        if (n < 0)
            return -1;
        for (int32_t i = n; i-- > 0;) {
            const int32_t one = order[i];
            if (s->feature[one] < 0) {
                e->expected[one] = value_of(s, s->left[one], e->output);
                if (!(fabs(e->expected[one]) <= MAX_VALUE))
                    return bad(RI_REASONS_SIZE, one, error, at);
                e->max_depth = depth[one] > e->max_depth ? depth[one] : e->max_depth;
                steps += depth[one];
                continue;
            }
            const double left = share_left(s, one);
            e->expected[one] = left * e->expected[s->left[one]] + (1 - left) * e->expected[s->right[one]];
        }
        roots += e->expected[s->roots[t]];
    }
    if (steps > MAX_STEPS)
        return bad(RI_REASONS_SIZE, -1, error, at);
    e->divisor = s->average && s->n_trees ? s->n_trees / (s->average == 2 ? (double)s->n_outputs : 1.0) : 1.0;
    e->base = roots / e->divisor + s->base[e->output];
    return 0;
}

ri_explain *ri_explain_new(const ri_trees *s, int32_t output, int *error, int64_t *at) {
    *at = -1;
    *error = RI_REASONS_SIZE;
    if (output < 0 || output >= s->n_outputs || s->n_nodes < 0 || s->n_nodes > INT32_MAX / 2 || s->n_leaves > INT32_MAX / 2
        || (s->width != 1 && s->width != s->n_outputs))
        return NULL;
    const size_t n = (size_t)s->n_nodes + 1;
    ri_explain *e = calloc(1, sizeof *e);
    int32_t *order = malloc(4 * n), *depth = malloc(4 * n);
    int failed = 1;
    *error = RI_REASONS_MEMORY;
    if (e && order && depth) {
        e->s = *s;
        e->output = output;
        e->expected = calloc(n, sizeof *e->expected);
        e->parent = malloc(4 * n);
        e->node = malloc(4 * ((size_t)s->n_leaves + 1));
        failed = !e->expected || !e->parent || !e->node || expect(e, order, depth, error, at);
    }
    free(order);
    free(depth);
    if (failed) {
        ri_explain_free(e);
        return NULL;
    }
    return e;
}

/* ---- what a leaf adds to each group ------------------------------------------------------------------------------------------ */

typedef struct step {
    int32_t group;
    double amount;
} step;

typedef struct builder {
    const ri_explain *e;
    const int32_t *groups;
    int32_t n_groups;
    double sign;
    int64_t *starts;      /* (n_leaves + 1) into `steps` */
    step *steps;
    int64_t n_steps, room;
    int32_t *way;         /* nodes from a leaf up to its root */
    double *sums;         /* (n_groups) of the leaf at hand */
    int32_t *place;       /* (n_groups) where a group stands among the leaf's own; -1: nowhere yet */
} builder;

/* The steps of one leaf from its root down, merged by group in the order in which groups come up. */
static int add_leaf(builder *b, int64_t leaf) {
    const ri_explain *e = b->e;
    int32_t n = 0, used = 0;
    for (int32_t at = e->node[leaf]; at >= 0; at = e->parent[at])
        b->way[n++] = at;
    if (b->n_steps + n > b->room) {
        const int64_t room = 2 * b->room + n + 1024;
        step *steps = realloc(b->steps, sizeof *steps * (size_t)room);
        if (!steps)
            return -1;
        b->steps = steps;
        b->room = room;
    }
    step *own = b->steps + b->n_steps;
    for (int32_t i = n - 1; i > 0; --i) {
        const int32_t group = b->groups[e->s.feature[b->way[i]]];
        if (group < 0)
            continue;
        if (b->place[group] < 0) {
            b->place[group] = used;
            own[used++] = (step){group, 0};
        }
        own[b->place[group]].amount += e->expected[b->way[i - 1]] - e->expected[b->way[i]];
    }
    for (int32_t i = 0; i < used; ++i) {
        b->place[own[i].group] = -1;
        own[i].amount *= b->sign;
    }
    b->n_steps += used;
    return 0;
}

/* Before which trees sums have to leave 16 bits: so few of them at a time that no leaves of theirs go beyond, in any group. */
static void find_spills(const builder *b, ri_reasons *r) {
    const ri_trees *s = &b->e->s;
    int32_t high[RI_REASONS_DENSE_GROUPS] = {0}, low[RI_REASONS_DENSE_GROUPS] = {0}, n_spills = 0;
    for (int32_t i = 0; i < r->n_used; ++i) {
        int16_t most[RI_REASONS_DENSE_GROUPS] = {0}, least[RI_REASONS_DENSE_GROUPS] = {0};
        int32_t waiting = 0;
        b->way[waiting++] = s->roots[r->trees[i]];
        while (waiting) {
            const int32_t n = b->way[--waiting];
            if (s->feature[n] >= 0) {
                b->way[waiting++] = s->right[n];
                b->way[waiting++] = s->left[n];
                continue;
            }
            const int16_t *record = r->dense + (int64_t)s->left[n] * r->stride;
            for (int32_t g = 0; g < b->n_groups; ++g) {
                most[g] = record[g] > most[g] ? record[g] : most[g];
                least[g] = record[g] < least[g] ? record[g] : least[g];
            }
        }
        int full = 0;
        for (int32_t g = 0; g < b->n_groups; ++g)
            full |= high[g] + most[g] > INT16_MAX || low[g] + least[g] < INT16_MIN;
        if (full) {
            r->spills[n_spills++] = i;
            memset(high, 0, sizeof high);
            memset(low, 0, sizeof low);
        }
        for (int32_t g = 0; g < b->n_groups; ++g) {
            high[g] += most[g];
            low[g] += least[g];
        }
    }
    r->spills[n_spills] = -1;
}

static void *room(ri_reasons *r, size_t n, size_t size) {
    if (n > ((size_t)1 << 40) / size)
        return NULL;
    const size_t total = (n * size + 127) & ~(size_t)63;
    void *p = ri_aligned(total);
    if (p) {
        memset(p, 0, total);
        r->n_bytes += total;
    }
    return p;
}

void ri_reasons_free(ri_reasons *r) {
    if (!r)
        return;
    ri_aligned_free(r->trees);
    ri_aligned_free(r->dense);
    ri_aligned_free(r->spills);
    ri_aligned_free(r->packed);
    ri_aligned_free(r->starts);
    ri_aligned_free(r->amounts);
    free(r);
}

/* How large a step may be in quanta: int16, unless the usual step (their geometric mean, by binary exponents) would be less than some
 * 32 of them; and so that all trees' sum fits 32 bits, of wide ones 64. */
static int32_t choose_limit(const builder *b, double largest, int32_t n_used) {
    int64_t exponents = 0, n = 0;
    for (int64_t i = 0; i < b->n_steps; ++i) {
        const double share = b->steps[i].amount / largest;
        int exponent = 0;
        frexp(share, &exponent);
        exponents += exponent;
        n += share != 0;
    }
    if (exponents < -10 * n)
        return RI_REASONS_WIDE;
    return n_used > INT32_MAX / RI_REASONS_NARROW ? INT32_MAX / n_used : RI_REASONS_NARROW;
}

static int build(builder *b, ri_reasons *r, int form) {
    const ri_trees *s = &b->e->s;
    double largest = 0;
    for (int32_t t = 0; t < s->n_trees; ++t)
        r->n_used += is_used(s, t, b->e->output);
    r->trees = room(r, (size_t)r->n_used, 4);
    if (!r->trees)
        return -1;
    for (int32_t t = 0, n = 0; t < s->n_trees; ++t)
        if (is_used(s, t, b->e->output))
            r->trees[n++] = t;
    for (int64_t leaf = 0; leaf < s->n_leaves; ++leaf) {
        b->starts[leaf] = b->n_steps;
        if (add_leaf(b, leaf))
            return -1;
    }
    b->starts[s->n_leaves] = b->n_steps;
    for (int64_t i = 0; i < b->n_steps; ++i)
        largest = fabs(b->steps[i].amount) > largest ? fabs(b->steps[i].amount) : largest;
    const int32_t limit = largest > 0 ? choose_limit(b, largest, r->n_used) : RI_REASONS_NARROW;
    r->wide = limit == RI_REASONS_WIDE;
    r->quantum = largest / limit;
    const int32_t stride = (b->n_groups + RI_REASONS_LANES - 1) / RI_REASONS_LANES * RI_REASONS_LANES;
    const int may = !r->wide && b->n_groups > 0 && b->n_groups <= RI_REASONS_DENSE_GROUPS && s->n_leaves <= MAX_DENSE / (2 * stride);
    if (form != 2 && may) {
        r->stride = stride;
        r->dense = room(r, (size_t)s->n_leaves * (size_t)stride, sizeof *r->dense);
        r->spills = room(r, (size_t)r->n_used + 1, 4);
        if (!r->dense || !r->spills)
            return -1;
    } else {
        r->starts = room(r, (size_t)s->n_leaves + 1, 8);
        r->amounts = room(r, (size_t)b->n_steps, sizeof *r->amounts);
        if (!r->starts || !r->amounts)
            return -1;
        memcpy(r->starts, b->starts, 8 * ((size_t)s->n_leaves + 1));
    }
    for (int64_t leaf = 0; leaf < s->n_leaves; ++leaf)
        for (int64_t i = b->starts[leaf]; i < b->starts[leaf + 1]; ++i) {
            const int32_t amount = largest > 0 ? (int32_t)rint(b->steps[i].amount / largest * limit) : 0;
            if (r->dense)
                r->dense[leaf * stride + b->steps[i].group] = (int16_t)amount;
            else
                r->amounts[i] = (ri_amount){b->steps[i].group, amount};
        }
    if (r->dense)
        find_spills(b, r);
    r->scratch = r->dense ? 12 * SUMS(stride) : 8 * (size_t)b->n_groups + 64;
    return 0;
}

ri_reasons *ri_reasons_new(const ri_trees *s, const int32_t *groups, int32_t n_groups, int32_t output, int sign, int form, int *error,
                           int64_t *at) {
    *at = -1;
    for (int32_t i = 0; i < s->n_features; ++i)
        if (groups[i] < -1 || groups[i] >= n_groups) {
            bad(RI_REASONS_GROUP, i, error, at);
            return NULL;
        }
    ri_explain *e = ri_explain_new(s, output, error, at);
    if (!e)
        return NULL;
    builder b = {.e = e, .groups = groups, .n_groups = n_groups, .sign = sign < 0 ? -1.0 : 1.0};
    ri_reasons *r = calloc(1, sizeof *r);
    b.starts = malloc(8 * ((size_t)s->n_leaves + 1));
    b.way = malloc(4 * ((size_t)e->max_depth + 1));
    b.place = malloc(4 * ((size_t)n_groups + 1));
    int failed = !r || !b.starts || !b.way || !b.place;
    *error = RI_REASONS_MEMORY;
    if (!failed) {
        for (int32_t g = 0; g < n_groups; ++g)
            b.place[g] = -1;
        r->n_groups = n_groups;
        r->n_leaves = s->n_leaves;
        failed = build(&b, r, form);
    }
    free(b.starts);
    free(b.steps);
    free(b.way);
    free(b.place);
    ri_explain_free(e);
    if (failed) {
        ri_reasons_free(r);
        return NULL;
    }
    return r;
}

int ri_reasons_pack(ri_reasons *r, const ri_forest *f, const ri_kernel_set *set) {
    if (!r->dense || !set->recorded || !f->tiles || f->n_outputs > 1 || f->n_leaves != r->n_leaves || f->n_trees != r->n_used)
        return 0;
    int32_t most = 0, most_first = 0;
    for (int64_t leaf = 0; leaf < r->n_leaves; ++leaf) {
        int32_t n = 0;
        for (int32_t g = 0; g < r->stride; ++g) {
            n += r->dense[leaf * r->stride + g] != 0;
            most_first = g < 32 && n > most_first ? n : most_first;
        }
        most = n > most ? n : most;
    }
    const int32_t places = f->leaf_first[f->n_trees], size = most > 8 ? RI_RECORD_LONG : RI_RECORD_SHORT;
    if (most > (size - (int32_t)sizeof(ri_leaf_record)) / 2 || r->n_groups > RI_RECORD_TOTALS - most_first)
        return 0;
    r->packed = room(r, (size_t)places, (size_t)size);
    if (!r->packed)
        return -1;
    for (int32_t place = 0; place < places; ++place) { /* also between trees, where no row arrives */
        const int16_t *dense = r->dense + (int64_t)f->leaf_numbers[place] * r->stride;
        ri_leaf_record *record = (ri_leaf_record *)(void *)(r->packed + (int64_t)place * size);
        int32_t n = 0;
        if (f->doubles)
            record->value.wide = ((const double *)f->leaf_values)[place];
        else
            record->value.narrow = ((const float *)f->leaf_values)[place];
        for (int32_t g = 0; g < r->n_groups; ++g) {
            if (!dense[g])
                continue;
            record->numbers[n++] = dense[g];
            if (g < 32) {
                record->first |= UINT32_C(1) << g;
                record->second = (UINT32_C(1) << n) - 1;
            } else {
                record->second |= UINT32_C(1) << (g - 32 + most_first);
            }
        }
    }
    const int32_t behind = r->n_groups > 32 ? r->n_groups - 32 : 0;
    r->records = (ri_records){r->packed, size, most_first, (uint32_t)((UINT64_C(1) << behind) - 1), r->spills};
    return 0;
}

/* ---- one row ----------------------------------------------------------------------------------------------------------------- */

const ri_reason_kernels *ri_reason_kernels_of(const char *level) {
#if defined(RI_HAVE_LEVELS)
    if (!strcmp(level, "avx512"))
        return &ri_reason_kernels_avx512;
    if (!strcmp(level, "avx2"))
        return &ri_reason_kernels_avx2;
#endif
    (void)level;
    return &ri_reason_kernels_base;
}

static void add_sparse(const ri_reasons *r, const int32_t *leaves, int64_t *sums) {
    memset(sums, 0, 8 * (size_t)r->n_groups);
    for (int32_t i = 0; i < r->n_used; ++i) {
        const int64_t leaf = leaves[r->trees[i]];
        const ri_amount *last = r->amounts + r->starts[leaf + 1];
        for (const ri_amount *a = r->amounts + r->starts[leaf]; a < last; ++a)
            sums[a->group] += a->amount;
    }
}

/* The strongest first, equal ones in the order of their groups. Amounts come in no order that a processor could foresee, so there is no
 * branch in it: an amount and its group are one number, which moves down among the best. */
static inline int32_t pick_few(const int32_t *sums, int32_t n_groups, const int32_t most, int32_t *picked) {
    int64_t best[MOST_FEW];
    int32_t n = 0;
    for (int32_t k = 0; k < most; ++k)
        best[k] = -1;
    for (int32_t g = 0; g < n_groups; ++g) {
        int64_t x = (int64_t)sums[g] * (INT64_C(1) << 32) - 1 - g; /* below 0 where nothing pushes up */
        for (int32_t k = 0; k < most; ++k) {
            const int64_t more = x > best[k] ? x : best[k], less = x > best[k] ? best[k] : x;
            best[k] = more;
            x = less;
        }
    }
    for (int32_t k = 0; k < most; ++k) {
        picked[k] = (int32_t)(UINT32_MAX - (uint32_t)best[k]);
        n += best[k] >= 0;
    }
    return n;
}

static int32_t pick_many(const int64_t *sums, int32_t n_groups, int32_t most, int32_t *picked) {
    int32_t n = 0;
    for (int32_t g = 0; g < n_groups; ++g) {
        if (sums[g] <= 0 || (n == most && sums[g] <= sums[picked[n - 1]]))
            continue;
        int32_t place = n < most ? n++ : n - 1;
        for (; place > 0 && sums[g] > sums[picked[place - 1]]; --place)
            picked[place] = picked[place - 1];
        picked[place] = g;
    }
    return n;
}

int32_t ri_reasons_pick(const ri_reasons *r, const ri_reason_kernels *kernels, const int32_t *leaves, void *scratch, int32_t most,
                        int32_t *picked) {
    if (most < 1)
        return 0;
    if (!r->dense) {
        add_sparse(r, leaves, (int64_t *)scratch);
        return pick_many((const int64_t *)scratch, r->n_groups, most, picked);
    }
    kernels->add(r->dense, r->stride, leaves, r->trees, r->n_used, (int32_t *)scratch);
    return ri_reasons_pick_sums(r, kernels, scratch, most, picked);
}

int32_t ri_reasons_pick_sums(const ri_reasons *r, const ri_reason_kernels *kernels, void *scratch, int32_t most, int32_t *picked) {
    int32_t *sums = (int32_t *)scratch;
    int64_t *wide = (int64_t *)(void *)(sums + SUMS(r->stride)); /* behind them */
    const int32_t n = kernels->pick ? kernels->pick(sums, r->stride, most, picked) : -1;
    if (n >= 0)
        return n;
    switch (most) {
    case 1:
        return pick_few(sums, r->n_groups, 1, picked);
    case 2:
        return pick_few(sums, r->n_groups, 2, picked);
    case 3:
        return pick_few(sums, r->n_groups, 3, picked);
    case 4:
        return pick_few(sums, r->n_groups, 4, picked);
    case 5:
        return pick_few(sums, r->n_groups, 5, picked);
    case MOST_FEW:
        return pick_few(sums, r->n_groups, MOST_FEW, picked);
    default:
        for (int32_t g = 0; g < r->n_groups; ++g)
            wide[g] = sums[g];
        return pick_many(wide, r->n_groups, most, picked);
    }
}

void ri_reasons_amounts(const ri_reasons *r, const ri_reason_kernels *kernels, const int32_t *leaves, void *scratch, int64_t *amounts) {
    if (!r->dense) {
        add_sparse(r, leaves, amounts);
        return;
    }
    kernels->add(r->dense, r->stride, leaves, r->trees, r->n_used, (int32_t *)scratch);
    for (int32_t g = 0; g < r->n_groups; ++g)
        amounts[g] = ((int32_t *)scratch)[g];
}

/* ---- explanations ------------------------------------------------------------------------------------------------------------ */

static void finish(const ri_explain *e, double *out) {
    for (int32_t i = 0; i < e->s.n_features; ++i)
        out[i] /= e->divisor;
}

void ri_explain_path(const ri_explain *e, const int32_t *leaves, double *out) {
    const ri_trees *s = &e->s;
    memset(out, 0, sizeof *out * (size_t)s->n_features);
    for (int32_t t = 0; t < s->n_trees; ++t) {
        if (!is_used(s, t, e->output))
            continue;
        for (int32_t n = e->node[leaves[t]]; n >= 0 && e->parent[n] >= 0; n = e->parent[n])
            out[s->feature[e->parent[n]]] += e->expected[n] - e->expected[e->parent[n]];
    }
    finish(e, out);
}

static int goes_left(const ri_trees *s, int32_t n, double x) {
    const int32_t set = s->category[n];
    const int64_t first = set < 0 ? 0 : s->set_ends[set], n_words = set < 0 ? 0 : s->set_ends[set + 1] - first;
    return ri_goes_left(x, s->rule[n], s->missing[n], s->missing_left[n], s->threshold[n], n_words ? s->set_words + first : NULL, n_words);
}

/* One feature of a way: the share of subsets that flow down it without the feature (zero) and with it (one), and the weight of the
 * subsets of each size. Names are Algorithm 2's: z, o, w. */
typedef struct part {
    int32_t feature;
    double zero, one, weight;
} part;

typedef struct frame { /* a node that is still to be visited */
    int32_t node, length, feature; /* length: features on the way to its parent */
    double zero, one;
    part *parents;
} frame;

static void extend(part *m, int32_t length, double zero, double one, int32_t feature) {
    m[length] = (part){feature, zero, one, length == 0 ? 1.0 : 0.0};
    for (int32_t i = length - 1; i >= 0; --i) {
        m[i + 1].weight += one * m[i].weight * (i + 1) / (length + 1);
        m[i].weight = zero * m[i].weight * (length - i) / (length + 1);
    }
}

static void unwind(part *m, int32_t length, int32_t at) { /* length: of the way with it, less 1 */
    const double one = m[at].one, zero = m[at].zero;
    double next = m[length].weight;
    for (int32_t i = length - 1; i >= 0; --i) {
        if (one != 0) {
            const double before = m[i].weight;
            m[i].weight = next * (length + 1) / ((i + 1) * one);
            next = before - m[i].weight * zero * (length - i) / (length + 1);
        } else {
            m[i].weight = m[i].weight * (length + 1) / (zero * (length - i));
        }
    }
    for (int32_t i = at; i < length; ++i) {
        m[i].feature = m[i + 1].feature;
        m[i].zero = m[i + 1].zero;
        m[i].one = m[i + 1].one;
    }
}

static double unwound_sum(const part *m, int32_t length, int32_t at) {
    const double one = m[at].one, zero = m[at].zero;
    double next = m[length].weight, total = 0;
    for (int32_t i = length - 1; i >= 0; --i) {
        if (one != 0) {
            const double weight = next * (length + 1) / ((i + 1) * one);
            total += weight;
            next = m[i].weight - weight * zero * (length - i) / (length + 1);
        } else {
            total += m[i].weight * (length + 1) / (zero * (length - i));
        }
    }
    return total;
}

/* Ways of up to max_depth + 1 features, one for each level, and as many nodes that wait. */
size_t ri_explain_shap_room(const ri_explain *e) {
    const size_t d = (size_t)e->max_depth + 2;
    return d * (d + 1) / 2 * sizeof(part) + (d + 1) * sizeof(frame);
}

static void shap_tree(const ri_explain *e, int32_t root, const double *row, part *parts, frame *waiting, double *out) {
    const ri_trees *s = &e->s;
    int32_t n_waiting = 0;
    waiting[n_waiting++] = (frame){root, 0, -1, 1, 1, parts};
    while (n_waiting) {
        const frame f = waiting[--n_waiting];
        part *m = f.parents + f.length; /* behind the parent's, which its other child still needs */
        int32_t length = f.length;
        memcpy(m, f.parents, sizeof *m * (size_t)length);
        extend(m, length, f.zero, f.one, f.feature);
        const int32_t n = f.node;
        if (s->feature[n] < 0) {
            for (int32_t i = 1; i <= length; ++i)
                out[m[i].feature] += unwound_sum(m, length, i) * (m[i].one - m[i].zero) * e->expected[n];
            continue;
        }
        double zero = 1, one = 1;
        for (int32_t i = 1; i <= length; ++i)
            if (m[i].feature == s->feature[n]) { /* asked before: that question is taken back */
                zero = m[i].zero;
                one = m[i].one;
                unwind(m, length, i);
                length--;
                break;
            }
        const double left = share_left(s, n);
        const int turn = !goes_left(s, n, row[s->feature[n]]);
        for (int side = 1; side >= 0; --side) {
            const frame child = {side ? s->right[n] : s->left[n], length + 1, s->feature[n], zero * (side ? 1 - left : left),
                                 side == turn ? one : 0, m};
            if (child.zero != 0 || child.one != 0) /* no row comes by, with or without the feature */
                waiting[n_waiting++] = child;
        }
    }
}

void ri_explain_shap(const ri_explain *e, const double *row, void *scratch, double *out) {
    const size_t d = (size_t)e->max_depth + 2;
    part *parts = (part *)scratch;
    frame *waiting = (frame *)(void *)(parts + d * (d + 1) / 2);
    memset(out, 0, sizeof *out * (size_t)e->s.n_features);
    for (int32_t t = 0; t < e->s.n_trees; ++t)
        if (is_used(&e->s, t, e->output))
            shap_tree(e, e->s.roots[t], row, parts, waiting, out);
    finish(e, out);
}
