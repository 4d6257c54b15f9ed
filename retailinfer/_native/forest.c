/* Forests: from a parser's arrays to the forms of trees.h, the kernel that runs everything, and which kernel runs when.
 *
 * Rules:
 *   - Arrays are not trusted: every index, depth and number is checked here, so that kernels need not.
 */
#include "trees.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"
#include "tree_rules.h"

/* ---- memory --------------------------------------------------------------------------------------------------------------- */

/* Zeroed, on a line of its own, with a line to spare behind it. */
static void *room(ri_forest *f, size_t n, size_t size) {
    if (n > ((size_t)1 << 40) / size)
        return NULL;
    const size_t total = (n * size + 127) & ~(size_t)63;
    void *p = ri_aligned(total);
    if (p) {
        memset(p, 0, total);
        f->n_bytes += total;
    }
    return p;
}

void ri_forest_free(ri_forest *f) {
    if (!f)
        return;
    void *all[] = {f->columns, f->values, f->values_f, f->base, f->targets, f->generic, f->roots, f->depths, f->set_ends, f->set_words,
                   f->packed, f->ranks, f->rank_heads, f->heap_columns, f->heap_ranks, f->heap_values, f->masked, f->masked_ends,
                   f->leaf_first, f->leaf_values};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i)
        ri_aligned_free(all[i]);
    free(f);
}

/* ---- checks --------------------------------------------------------------------------------------------------------------- */

static int bad(int code, int64_t at, int *error, int64_t *where) {
    *error = code;
    *where = at;
    return -1;
}

/* Every node belongs to one tree, once; every tree ends in leaves. Fills `order` (breadth first, tree by tree) and `depth`. */
static int check_trees(const ri_trees *s, int32_t *order, int32_t *depth, int32_t *ends, int *error, int64_t *at) {
    int32_t tail = 0;
    for (int64_t i = 0; i < s->n_nodes; ++i)
        depth[i] = -1;
    for (int32_t t = 0; t < s->n_trees; ++t) {
        const int32_t root = s->roots[t];
        int32_t head = tail;
        ends[t] = tail;
        if (root < 0 || root >= s->n_nodes || depth[root] >= 0)
            return bad(RI_TREES_CYCLE, t, error, at);
        depth[root] = 0;
        order[tail++] = root;
        for (; head < tail; ++head) {
            const int32_t n = order[head];
            if (s->feature[n] < 0) {
                if (s->left[n] < 0 || s->left[n] >= s->n_leaves)
                    return bad(RI_TREES_LEAF, n, error, at);
                continue;
            }
            if (s->feature[n] >= s->n_features)
                return bad(RI_TREES_FEATURE, n, error, at);
            if (s->missing[n] > RI_GONE_ZERO || s->missing_left[n] > 1)
                return bad(RI_TREES_MISSING, n, error, at);
            if (s->rule[n] >= RI_N_RULES)
                return bad(RI_TREES_RULE, n, error, at);
            if (s->rule[n] >= RI_RULE_IN_TRUNCATED ? s->category[n] < 0 || s->category[n] >= s->n_sets : s->category[n] != -1)
                return bad(RI_TREES_SET, n, error, at);
            if (s->threshold[n] != s->threshold[n] || (!s->wide && (double)(float)s->threshold[n] != s->threshold[n]))
                return bad(RI_TREES_THRESHOLD, n, error, at);
            for (int side = 0; side < 2; ++side) {
                const int32_t child = side ? s->right[n] : s->left[n];
                if (child < 0 || child >= s->n_nodes)
                    return bad(RI_TREES_CHILD, n, error, at);
                if (depth[child] >= 0)
                    return bad(RI_TREES_CYCLE, n, error, at);
                depth[child] = depth[n] + 1;
                if (depth[child] > RI_MAX_TREE_DEPTH)
                    return bad(RI_TREES_DEPTH, n, error, at);
                order[tail++] = child;
            }
        }
    }
    ends[s->n_trees] = tail;
    return 0;
}

static int check_sizes(const ri_trees *s, int *error, int64_t *at) {
    if (s->n_features < 1 || s->n_outputs < 1 || s->n_trees < 0 || s->n_nodes < 0 || s->n_leaves < 0 || s->n_nodes > INT32_MAX / 2
        || s->n_leaves > INT32_MAX / 2 || s->n_sets < 0 || s->n_words < 0 || (s->width != 1 && s->width != s->n_outputs)
        || s->post < 0 || s->post >= RI_N_POSTS || s->norm < 0 || s->norm > RI_NORM_L1 || s->n_outputs > 1024 || s->n_features > 1 << 24
        || (s->n_columns != s->n_outputs && (s->n_columns != 2 || s->n_outputs != 1)))
        return bad(RI_TREES_SIZE, 0, error, at);
    for (int32_t t = 0; t < s->n_trees; ++t)
        if (s->width == 1 && (s->targets[t] < 0 || s->targets[t] >= s->n_outputs))
            return bad(RI_TREES_TARGET, t, error, at);
    for (int64_t i = 0; i < s->n_leaves * s->width; ++i)
        if (!isfinite(s->values[i]) || (!s->doubles && !isfinite((float)s->values[i])))
            return bad(RI_TREES_VALUE, i / s->width, error, at);
    for (int32_t i = 0; i < s->n_outputs; ++i)
        if (!isfinite(s->base[i]))
            return bad(RI_TREES_VALUE, -1, error, at);
    for (int64_t i = 0; s->cover && i < s->n_nodes; ++i)
        if (!isfinite(s->cover[i]) || s->cover[i] < 0)
            return bad(RI_TREES_COVER, i, error, at);
    for (int64_t i = 0; i < s->n_sets; ++i)
        if (s->set_ends[i] < 0 || s->set_ends[i] > s->set_ends[i + 1] || s->set_ends[i + 1] > s->n_words)
            return bad(RI_TREES_SET, i, error, at);
    return 0;
}

/* ---- building ------------------------------------------------------------------------------------------------------------- */

typedef struct builder {
    const ri_trees *s;
    ri_forest *f;
    int32_t *order, *depth, *ends; /* of check_trees */
    int32_t *column;               /* per node, -1 for leaves */
    int32_t *place;                /* per node: where it stands in `generic` and `packed` */
    int32_t *below;                /* per node: leaves below it */
    int32_t *first;                /* per node: its first leaf in its tree */
    float *thresholds;             /* all, by column */
    int64_t *starts;
    int32_t *n_ranks;              /* per column */
    int only_leq;                  /* no rule but the common one */
} builder;

/* Five ways to read a feature: NaN right, NaN left, NaN as 0, and zeros too right or left. */
static int64_t column_kind(const ri_trees *s, int64_t node) {
    const int gone = s->missing[node], left = s->missing_left[node];
    return 5 * (int64_t)s->feature[node] + (gone == RI_GONE_NEVER ? 2 : gone == RI_GONE_NAN ? left : 3 + left);
}

/* Kinds of columns and their numbers, in a table of open addresses: its size is that of the trees, whatever features there are. */
typedef struct kinds {
    int64_t *keys; /* -1: free */
    int32_t *numbers;
    size_t mask;
} kinds;

static size_t kind_slot(const kinds *k, int64_t key) {
    size_t i = (size_t)((uint64_t)key * UINT64_C(0x9E3779B97F4A7C15) >> 32) & k->mask;
    while (k->keys[i] >= 0 && k->keys[i] != key)
        i = (i + 1) & k->mask;
    return i;
}

static int ascending_keys(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Numbers the kinds that the trees' nodes have; `sorted` has room for one a node. */
static int number_kinds(builder *b, kinds *k, int64_t *sorted) {
    const ri_trees *s = b->s;
    ri_forest *f = b->f;
    const int32_t n = b->ends[s->n_trees];
    int32_t found = 0;
    for (int32_t i = 0; i < n; ++i) {
        const int32_t node = b->order[i];
        if (s->feature[node] < 0)
            continue;
        const int64_t key = column_kind(s, node);
        const size_t slot = kind_slot(k, key);
        b->only_leq &= s->rule[node] == RI_RULE_LEQ;
        if (k->keys[slot] < 0)
            k->keys[slot] = sorted[found++] = key;
    }
    /* in the order of features, so that a forest that needs nothing special reads its rows as they are */
    qsort(sorted, (size_t)found, sizeof *sorted, ascending_keys);
    f->columns = room(f, (size_t)found, sizeof *f->columns);
    if (!f->columns)
        return -1;
    f->n_columns = found;
    f->plain = found == s->n_features;
    for (int32_t c = 0; c < found; ++c) {
        ri_derived *d = f->columns + c;
        const int kind = (int)(sorted[c] % 5);
        k->numbers[kind_slot(k, sorted[c])] = c;
        d->feature = (int32_t)(sorted[c] / 5);
        d->fill = kind == 2 ? 0.0f : kind == 1 || kind == 4 ? -INFINITY : NAN;
        d->zero = kind >= 3 ? RI_ZERO : -1.0f;
        f->plain &= d->feature == c && kind == 0;
    }
    for (int32_t i = 0; i < n; ++i)
        if (s->feature[b->order[i]] >= 0)
            b->column[b->order[i]] = k->numbers[kind_slot(k, column_kind(s, b->order[i]))];
    return 0;
}

/* The derived columns, and each node's. Nodes that no tree reaches were never checked: they have none. */
static int find_columns(builder *b) {
    const size_t n = (size_t)b->ends[b->s->n_trees];
    kinds k = {.mask = 15};
    while (k.mask < 2 * n)
        k.mask = 2 * k.mask + 1;
    k.keys = malloc(sizeof *k.keys * (k.mask + 1));
    k.numbers = malloc(sizeof *k.numbers * (k.mask + 1));
    int64_t *sorted = malloc(sizeof *sorted * (n + 1));
    int failed = !k.keys || !k.numbers || !sorted;
    if (!failed) {
        memset(k.keys, 0xFF, sizeof *k.keys * (k.mask + 1));
        for (int64_t i = 0; i < b->s->n_nodes; ++i)
            b->column[i] = -1;
        failed = number_kinds(b, &k, sorted);
    }
    if (!failed) {
        b->starts = calloc((size_t)b->f->n_columns + 2, sizeof *b->starts);
        b->n_ranks = calloc((size_t)b->f->n_columns + 2, sizeof *b->n_ranks);
        failed = !b->starts || !b->n_ranks;
    }
    free(k.keys);
    free(k.numbers);
    free(sorted);
    return failed ? -1 : 0;
}

/* Children side by side, breadth first: the same places for both forms. */
static int build_nodes(builder *b) {
    const ri_trees *s = b->s;
    ri_forest *f = b->f;
    int fits = !s->wide && b->only_leq && f->n_columns < 0xFFFF;
    f->generic = room(f, (size_t)s->n_nodes, sizeof *f->generic);
    f->roots = room(f, (size_t)s->n_trees + 1, 4);
    f->depths = room(f, (size_t)s->n_trees + 8, 4);
    if (!f->generic || !f->roots || !f->depths)
        return -1;
    for (int32_t t = 0; t <= s->n_trees; ++t)
        f->roots[t] = b->ends[t];
    for (int32_t i = 0; i < b->ends[s->n_trees]; ++i)
        b->place[b->order[i]] = i;
    for (int32_t t = 0; t < s->n_trees; ++t) {
        fits &= b->ends[t + 1] - b->ends[t] <= 0xFFFF;
        for (int32_t i = b->ends[t]; i < b->ends[t + 1]; ++i) {
            const int32_t n = b->order[i];
            ri_generic_node *g = f->generic + i;
            f->depths[t] = b->depth[n] > f->depths[t] ? b->depth[n] : f->depths[t];
            g->feature = s->feature[n] < 0 ? -1 : s->feature[n];
            g->set = -1;
            if (g->feature < 0) {
                g->left = s->left[n];
                continue;
            }
            g->threshold = s->threshold[n];
            g->left = b->place[s->left[n]];
            g->right = b->place[s->right[n]];
            g->set = s->category[n];
            g->rule = s->rule[n];
            g->missing = s->missing[n];
            g->missing_left = s->missing_left[n];
        }
        f->max_depth = f->depths[t] > f->max_depth ? f->depths[t] : f->max_depth;
    }
    if (!fits)
        return 0;
    f->packed = room(f, (size_t)s->n_nodes, sizeof *f->packed);
    if (!f->packed)
        return -1;
    for (int32_t t = 0; t < s->n_trees; ++t)
        for (int32_t i = f->roots[t]; i < f->roots[t + 1]; ++i) {
            const ri_generic_node *g = f->generic + i;
            ri_packed_node *p = f->packed + i;
            if (g->feature < 0) {
                memcpy(&p->threshold, &g->left, 4); /* as a number it is a denormal or NaN-free positive value: -inf is below it */
                p->column = (uint16_t)f->n_columns;
                p->left = (uint16_t)(i - f->roots[t]);
                continue;
            }
            p->threshold = (float)g->threshold;
            p->column = (uint16_t)b->column[b->order[i]];
            p->left = (uint16_t)(g->left - f->roots[t]);
        }
    return 0;
}

static int ascending(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Thresholds of each column, once each. Returns 1 if all fit into bytes, 0 if not, -1 without memory. */
static int rank_columns(builder *b) {
    const ri_trees *s = b->s;
    ri_forest *f = b->f;
    int fits = 1;
    for (int64_t i = 0; i < s->n_nodes; ++i)
        if (b->column[i] >= 0)
            b->starts[b->column[i] + 1]++;
    for (int32_t c = 0; c < f->n_columns; ++c)
        b->starts[c + 1] += b->starts[c];
    for (int64_t i = 0; i < s->n_nodes; ++i)
        if (b->column[i] >= 0)
            b->thresholds[b->starts[b->column[i]] + b->n_ranks[b->column[i]]++] = (float)s->threshold[i];
    for (int32_t c = 0; c < f->n_columns; ++c) {
        float *all = b->thresholds + b->starts[c];
        int32_t kept = 0;
        qsort(all, (size_t)b->n_ranks[c], sizeof *all, ascending);
        for (int32_t i = 0; i < b->n_ranks[c]; ++i)
            if (kept == 0 || all[i] != all[kept - 1]) /* -0 and 0 are one threshold */
                all[kept++] = all[i];
        b->n_ranks[c] = kept;
        fits &= kept <= 254;
    }
    if (!fits)
        return 0;
    f->ranks = room(f, 256 * (size_t)f->n_columns, 4);
    f->rank_heads = room(f, 16 * (size_t)f->n_columns, 4);
    if (!f->ranks || !f->rank_heads)
        return -1;
    for (int32_t c = 0; c < f->n_columns; ++c) {
        float *out = f->ranks + 256 * (size_t)c;
        for (int i = 0; i < 256; ++i)
            out[i] = i < b->n_ranks[c] ? b->thresholds[b->starts[c] + i] : INFINITY;
        for (int i = 0; i < 16; ++i)
            f->rank_heads[16 * (size_t)c + (size_t)i] = out[16 * i + 15];
    }
    return 1;
}

static uint8_t rank_of_node(const builder *b, int32_t n) {
    const float *all = b->thresholds + b->starts[b->column[n]], x = (float)b->s->threshold[n];
    int32_t low = 0, high = b->n_ranks[b->column[n]];
    while (low < high) {
        const int32_t middle = (low + high) / 2;
        if (all[middle] < x)
            low = middle + 1;
        else
            high = middle;
    }
    return (uint8_t)low;
}

static void put_value(const builder *b, void *values, size_t at, int32_t leaf) {
    if (b->f->doubles)
        ((double *)values)[at] = b->f->values[leaf];
    else
        ((float *)values)[at] = b->f->values_f[leaf];
}

static int build_heaps(builder *b) {
    const ri_trees *s = b->s;
    ri_forest *f = b->f;
    const size_t n_trees = ((size_t)s->n_trees + 7) & ~(size_t)7;
    f->heap_columns = room(f, n_trees, 64);
    f->heap_ranks = room(f, n_trees, 64);
    f->heap_values = room(f, n_trees * 64, f->doubles ? 8 : 4);
    if (!f->heap_columns || !f->heap_ranks || !f->heap_values)
        return -1;
    memset(f->heap_ranks, 255, n_trees * 64); /* a slot below a leaf: nothing turns right */
    int32_t *slot = b->first;
    for (int32_t t = 0; t < s->n_trees; ++t)
        for (int32_t i = b->ends[t]; i < b->ends[t + 1]; ++i) {
            const int32_t n = b->order[i];
            if (i == b->ends[t])
                slot[n] = 0;
            if (b->column[n] >= 0) {
                f->heap_columns[64 * (size_t)t + (size_t)slot[n]] = (uint8_t)b->column[n];
                f->heap_ranks[64 * (size_t)t + (size_t)slot[n]] = rank_of_node(b, n);
                slot[s->left[n]] = 2 * slot[n] + 1;
                slot[s->right[n]] = 2 * slot[n] + 2;
                continue;
            }
            int32_t from = slot[n], many = 1;
            for (int32_t depth = b->depth[n]; depth < 6; ++depth, many *= 2)
                from = 2 * from + 1;
            for (int32_t k = 0; k < many; ++k)
                put_value(b, f->heap_values, 64 * (size_t)t + (size_t)(from - 63 + k), s->left[n]);
        }
    return 0;
}

/* Leaves of each tree in their order from left to right; inner nodes in preorder. */
static int build_masked(builder *b) {
    const ri_trees *s = b->s;
    ri_forest *f = b->f;
    for (int64_t i = b->ends[s->n_trees] - 1; i >= 0; --i) {
        const int32_t n = b->order[i];
        b->below[n] = b->column[n] < 0 ? 1 : b->below[s->left[n]] + b->below[s->right[n]];
    }
    int64_t total = 0;
    for (int32_t t = 0; t < s->n_trees; ++t) {
        const int32_t n_leaves = b->below[s->roots[t]];
        f->max_leaves = n_leaves > f->max_leaves ? n_leaves : f->max_leaves;
        total += (n_leaves + 15) & ~15;
    }
    if (f->max_leaves > 256 || total > INT32_MAX)
        return 0;
    f->masked = room(f, (size_t)s->n_nodes, sizeof *f->masked);
    f->masked_ends = room(f, (size_t)s->n_trees + 1, 4);
    f->leaf_first = room(f, (size_t)s->n_trees + 1, 4);
    f->leaf_values = room(f, (size_t)total + 16, f->doubles ? 8 : 4);
    int32_t *stack = b->depth; /* of no use any more, and deep enough */
    if (!f->masked || !f->masked_ends || !f->leaf_first || !f->leaf_values)
        return -1;
    int32_t out = 0, leaves = 0;
    for (int32_t t = 0; t < s->n_trees; ++t) {
        int32_t top = 0;
        b->first[s->roots[t]] = 0;
        f->leaf_first[t] = leaves;
        stack[top++] = s->roots[t];
        while (top) {
            const int32_t n = stack[--top];
            if (b->column[n] < 0) {
                put_value(b, f->leaf_values, (size_t)(leaves + b->first[n]), s->left[n]);
                continue;
            }
            const int32_t middle = b->first[n] + b->below[s->left[n]];
            b->first[s->left[n]] = b->first[n];
            b->first[s->right[n]] = middle;
            f->masked[out++] = (ri_masked_node){(uint16_t)b->column[n], rank_of_node(b, n), (uint8_t)b->first[n], (uint8_t)middle, 0};
            stack[top++] = s->right[n];
            stack[top++] = s->left[n];
        }
        f->masked_ends[t + 1] = out;
        leaves += (b->below[s->roots[t]] + 15) & ~15;
        f->leaf_first[t + 1] = leaves;
    }
    return 0;
}

static int build(builder *b) {
    const ri_trees *s = b->s;
    ri_forest *f = b->f;
    const size_t n_values = (size_t)(s->n_leaves * s->width);
    f->values = room(f, n_values, 8);
    f->values_f = room(f, n_values, 4);
    f->base = room(f, (size_t)s->n_outputs, 8);
    f->targets = room(f, (size_t)s->n_trees, 4);
    f->set_ends = room(f, (size_t)s->n_sets + 1, 8);
    f->set_words = room(f, (size_t)s->n_words, 4);
    if (!f->values || !f->values_f || !f->base || !f->targets || !f->set_ends || !f->set_words)
        return -1;
    for (size_t i = 0; i < n_values; ++i) {
        f->values[i] = s->values[i];
        f->values_f[i] = (float)s->values[i];
    }
    memcpy(f->base, s->base, 8 * (size_t)s->n_outputs);
    if (s->width == 1 && s->n_trees)
        memcpy(f->targets, s->targets, 4 * (size_t)s->n_trees);
    memcpy(f->set_ends, s->set_ends, 8 * ((size_t)s->n_sets + 1));
    if (s->n_words)
        memcpy(f->set_words, s->set_words, 4 * (size_t)s->n_words);
    if (find_columns(b) || build_nodes(b))
        return -1;
    if (f->packed && s->width == 1) {
        const int ranked = rank_columns(b);
        if (ranked < 0 || (ranked && f->max_depth <= 6 && f->n_columns <= 128 && build_heaps(b)) || (ranked && build_masked(b)))
            return -1;
    }
    /* the largest of: 16 derived rows; planes of 256 rows; 8 rows of ranks, 8 masks and a value a tree */
    const size_t n_trees = ((size_t)s->n_trees + 15) & ~(size_t)7, width = (size_t)f->n_columns + 1;
    size_t sizes[3] = {16 * width * 8, 256 * width, 1024 + n_trees * 72};
    for (int i = 0; i < 3; ++i)
        f->scratch = sizes[i] > f->scratch ? sizes[i] : f->scratch;
    f->scratch = ((f->scratch + 127) & ~(size_t)63) + (size_t)f->n_outputs * RI_BLOCK * 8 + ri_forest_finish_room(f); /* and what stands before it */
    return 0;
}

ri_forest *ri_forest_new(const ri_trees *s, int *error, int64_t *at) {
    *at = -1;
    if (check_sizes(s, error, at))
        return NULL;
    const size_t n = (size_t)s->n_nodes + 1;
    builder b = {.s = s, .only_leq = 1, .f = calloc(1, sizeof *b.f)};
    b.order = malloc(4 * n);
    b.depth = malloc(4 * (n + 1));
    b.ends = malloc(4 * ((size_t)s->n_trees + 1));
    b.column = malloc(4 * n);
    b.place = malloc(4 * n);
    b.below = malloc(4 * n);
    b.first = malloc(4 * n);
    b.thresholds = malloc(4 * n);
    int failed = !b.f || !b.order || !b.depth || !b.ends || !b.column || !b.place || !b.below || !b.first || !b.thresholds;
    *error = RI_TREES_MEMORY;
    if (!failed) {
        ri_forest *f = b.f;
        f->n_features = s->n_features;
        f->n_outputs = s->n_outputs;
        f->n_trees = s->n_trees;
        f->width = s->width;
        f->base_first = s->base_first;
        f->doubles = s->doubles;
        f->wide = s->wide;
        f->average = s->average;
        f->post = s->post;
        f->norm = s->norm;
        f->n_answers = s->n_columns;
        f->post_scale = s->post_scale;
        f->n_leaves = s->n_leaves;
        failed = check_trees(s, b.order, b.depth, b.ends, error, at) || build(&b);
    }
    free(b.order);
    free(b.depth);
    free(b.ends);
    free(b.column);
    free(b.place);
    free(b.below);
    free(b.first);
    free(b.thresholds);
    free(b.starts);
    free(b.n_ranks);
    if (failed) {
        ri_forest_free(b.f);
        return NULL;
    }
    return b.f;
}

/* ---- the kernel that runs everything ---------------------------------------------------------------------------------------- */

static int goes_left(const ri_forest *f, const ri_generic_node *node, double x) {
    const int64_t first = node->set < 0 ? 0 : f->set_ends[node->set], n_words = node->set < 0 ? 0 : f->set_ends[node->set + 1] - first;
    return ri_goes_left(x, node->rule, node->missing, node->missing_left, node->threshold, f->set_words + first, n_words);
}

static int32_t generic_leaf(const ri_forest *f, int32_t t, const void *row) {
    const ri_generic_node *node = f->generic + f->roots[t];
    while (node->feature >= 0) {
        const double x = f->wide ? ((const double *)row)[node->feature] : (double)((const float *)row)[node->feature];
        node = f->generic + (goes_left(f, node, x) ? node->left : node->right);
    }
    return node->left;
}

static void generic(const ri_forest *f, const void *rows, int64_t stride, int n, int32_t *leaves, void *sums) {
    const size_t size = f->wide ? 8 : 4;
    for (int i = 0; i < n; ++i) {
        const char *row = (const char *)rows + (size_t)(i * stride) * size;
        for (int32_t t = 0; t < f->n_trees; ++t) {
            const int32_t leaf = generic_leaf(f, t, row);
            if (leaves)
                leaves[(size_t)i * (size_t)f->n_trees + (size_t)t] = leaf;
            for (int32_t k = 0; k < f->width; ++k) {
                const size_t at = (size_t)((f->width == 1 ? f->targets[t] : k) * RI_BLOCK + i);
                const int64_t value = (int64_t)leaf * f->width + k;
                if (f->doubles)
                    ((double *)sums)[at] += f->values[value];
                else
                    ((float *)sums)[at] += f->values_f[value];
            }
        }
    }
}

/* ---- choosing ----------------------------------------------------------------------------------------------------------------- */

const int ri_kernel_rows[RI_N_KERNELS] = {RI_BLOCK, RI_BLOCK, 16, RI_BLOCK, 8, 64, 128, 256};
const char *const ri_kernel_names[RI_N_KERNELS] = {"generic", "packed-1", "packed-16", "heap-1", "heap-8", "ranked-64", "ranked-128", "ranked-256"};

const ri_kernel_set *ri_kernel_level(const char *level) {
#if defined(RI_HAVE_LEVELS)
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
                       && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vbmi");
    if (avx512 && (!level || !strcmp(level, "avx512")))
        return &ri_kernels_avx512;
    if (avx2 && (!level || !strcmp(level, "avx2")))
        return &ri_kernels_avx2;
#endif
    return !level || !strcmp(level, "baseline") ? &ri_kernels_base : NULL;
}

int ri_kernel_fits(const ri_forest *f, const ri_kernel_set *set, int kernel) {
    if (kernel == RI_KERNEL_GENERIC)
        return 1;
    if (kernel < 0 || kernel >= RI_N_KERNELS || !set->kernels[kernel] || !f->packed)
        return 0;
    if (kernel == RI_KERNEL_HEAP_1 || kernel == RI_KERNEL_HEAP_8)
        return f->heap_columns != NULL;
    return kernel < RI_KERNEL_RANKED_64 || f->masked != NULL;
}

void ri_forest_run(const ri_forest *f, const ri_kernel_set *set, const uint8_t *plan, const void *rows, int64_t stride, int64_t n,
                   void *scratch, float *out, int64_t out_stride, int column, int raw, int32_t *leaves) {
    const size_t cell = f->wide ? 8 : 4;
    double *sums = (double *)scratch; /* (n_outputs, RI_BLOCK) of either kind, then the room of the last step, then the kernel's own scratch */
    char *room = (char *)scratch + (size_t)f->n_outputs * RI_BLOCK * 8, *own = room + ri_forest_finish_room(f);
    for (int64_t i = 0; i < n;) {
        int bucket = 0, block;
        const int64_t left = n - i;
        while (bucket < 8 && (INT64_C(1) << bucket) < left)
            bucket++;
        const int kernel = leaves ? RI_KERNEL_GENERIC : plan[bucket];
        block = left < ri_kernel_rows[kernel] ? (int)left : ri_kernel_rows[kernel];
        for (int32_t k = 0; k < f->n_outputs; ++k)
            for (int j = 0; j < (block > 8 ? RI_BLOCK : 8); ++j) {
                const double first = f->base_first ? f->base[k] : 0.0;
                if (f->doubles)
                    sums[k * RI_BLOCK + j] = first;
                else
                    ((float *)sums)[k * RI_BLOCK + j] = (float)first;
            }
        const void *from = (const char *)rows + (size_t)(i * stride) * cell;
        if (kernel == RI_KERNEL_GENERIC)
            generic(f, from, stride, block, leaves ? leaves + i * f->n_trees : NULL, sums);
        else
            set->kernels[kernel](f, from, stride, block, own, sums);
        ri_forest_finish(f, sums, block, room, out + i * out_stride, out_stride, column, raw);
        i += block;
    }
}
