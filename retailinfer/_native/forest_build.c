/* Forests: from a parser's arrays to the forms of trees.h.
 *
 * Rules:
 *   - Arrays are not trusted: every index, depth and number is checked here, so that kernels need not.
 *   - Memory and time are in proportion to the arrays, whatever they say.
 */
#include "forest_build.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arena.h"
#include "tree_keys.h"

#define MAX_PARTS 4096       /* of ranks, with bits: planes of 256 rows are 1 MB then */
#define MAX_THRESHOLDS 65534 /* of one column, in ranks */
#define MAX_CELLS (1 << 26)
#define WALK_BYTES 65536     /* of cells that a block of rows may have */

void *ri_room(ri_forest *f, size_t n, size_t size) {
    if (n > ((size_t)1 << 40) / size)
        return NULL;
    void *p = ri_arena_room(&f->arena, n * size);
    f->n_bytes += p ? n * size : 0;
    return p;
}

void ri_forest_free(ri_forest *f) {
    if (!f)
        return;
    ri_arena_free(f->arena);
    free(f);
}

/* ---- checks --------------------------------------------------------------------------------------------------------------- */

static int bad(int code, int64_t at, int *error, int64_t *where) {
    *error = code;
    *where = at;
    return -1;
}

static int check_node(const ri_trees *s, int32_t n, int *error, int64_t *at) {
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
    return 0;
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
            if (check_node(s, n, error, at))
                return -1;
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

/* ---- columns -------------------------------------------------------------------------------------------------------------- */

enum { NAN_RIGHT = 0, NAN_LEFT, NAN_ZERO, ZERO_RIGHT, ZERO_LEFT, N_WAYS }; /* ways to read a feature */

typedef struct column { /* a feature that is read in one way */
    int32_t feature, way, number;
    int32_t twin;       /* order among the columns of its feature */
    int32_t other;      /* the column that it is read with; -1: itself */
    uint64_t low, high; /* keys of its thresholds */
    uint64_t fill;
} column;

typedef struct columns { /* in the order in which nodes name them, and a table of open addresses to find them */
    column *all;
    int32_t *table; /* -1: free */
    size_t mask;
    int32_t n;
} columns;

static int compares(const ri_trees *s, int32_t node) { return s->feature[node] >= 0 && s->rule[node] == RI_RULE_LEQ; }

static int32_t way_of(const ri_trees *s, int32_t node) {
    const int32_t gone = s->missing[node], left = s->missing_left[node];
    return gone == RI_GONE_NEVER ? NAN_ZERO : (gone == RI_GONE_NAN ? NAN_RIGHT : ZERO_RIGHT) + left;
}

static size_t slot_of(const columns *c, int32_t feature, int32_t way) {
    const uint64_t name = (uint64_t)feature * N_WAYS + (uint64_t)way;
    size_t at = (size_t)((name * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & c->mask;
    while (c->table[at] >= 0 && (c->all[c->table[at]].feature != feature || c->all[c->table[at]].way != way))
        at = (at + 1) & c->mask;
    return at;
}

/* Room for twice as many. */
static int grow(columns *c) {
    const size_t size = 4 * (c->mask + 1);
    column *all = realloc(c->all, size / 2 * sizeof *all);
    int32_t *table = malloc(4 * size);
    if (all)
        c->all = all;
    if (!all || !table) {
        free(table);
        return -1;
    }
    free(c->table);
    c->table = table;
    c->mask = size - 1;
    memset(table, 255, 4 * size);
    for (int32_t i = 0; i < c->n; ++i)
        table[slot_of(c, all[i].feature, all[i].way)] = i;
    return 0;
}

/* The column of a node, by the order in which they were found. -1 without memory. */
static int32_t column_of(columns *c, int32_t feature, int32_t way, uint64_t key) {
    if (2 * (size_t)c->n >= c->mask && grow(c))
        return -1;
    const size_t at = slot_of(c, feature, way);
    if (c->table[at] < 0) {
        c->all[c->n] = (column){feature, way, 0, 0, -1, key, key, 0};
        c->table[at] = c->n++;
    }
    column *found = c->all + c->table[at];
    found->low = key < found->low ? key : found->low;
    found->high = key > found->high ? key : found->high;
    return c->table[at];
}

/* What stands for missing values, and which columns are one. Where NaN goes right at all lower thresholds of a feature and left at
 * all higher ones, the lowest of the higher ones stands for it in both: so it is where training saw no NaN and it counts as a number. */
static void fill_columns(const ri_trees *s, columns *c) {
    for (int32_t i = 0; i < c->n; ++i) {
        column *one = c->all + i;
        one->fill = one->way == NAN_LEFT || one->way == ZERO_LEFT ? 0 : s->wide ? UINT64_MAX : UINT32_MAX;
        if (one->way == NAN_ZERO)
            one->fill = s->wide ? key_64(0) : key_32(0);
    }
    for (int32_t i = 0; i < c->n; ++i) {
        column *right = c->all + i;
        if (right->way != NAN_RIGHT)
            continue;
        const int32_t found = c->table[slot_of(c, right->feature, NAN_LEFT)];
        if (found < 0 || right->high >= c->all[found].low)
            continue;
        right->fill = c->all[found].low;
        c->all[found].other = i;
    }
    for (int32_t i = 0; i < c->n; ++i)
        for (int32_t way = 0; way < c->all[i].way; ++way) {
            const int32_t found = c->table[slot_of(c, c->all[i].feature, way)];
            c->all[i].twin += found >= 0 && c->all[found].other < 0 && (way < ZERO_RIGHT) == (c->all[i].way < ZERO_RIGHT);
        }
}

static int by_place(const void *a, const void *b) {
    const column *x = *(const column *const *)a, *y = *(const column *const *)b;
    if ((x->way < ZERO_RIGHT) != (y->way < ZERO_RIGHT))
        return x->way < ZERO_RIGHT ? -1 : 1;
    if (x->twin != y->twin)
        return x->twin - y->twin;
    return (x->feature > y->feature) - (x->feature < y->feature);
}

/* Numbers the columns so that few runs of neighbours read a row. */
static int number_columns(builder *b, columns *c) {
    ri_forest *f = b->f;
    const int wide = b->s->wide;
    const double zero = (double)RI_ZERO;
    const float zero_f = RI_ZERO;
    column **sorted = malloc(((size_t)c->n + 1) * sizeof *sorted);
    if (!sorted)
        return -1;
    for (int32_t i = 0; i < c->n; ++i)
        if (c->all[i].other < 0)
            sorted[f->n_columns++] = c->all + i;
    qsort(sorted, (size_t)f->n_columns, sizeof *sorted, by_place);
    f->runs = ri_room(f, (size_t)f->n_columns + 1, sizeof *f->runs);
    f->fills = ri_room(f, (size_t)f->n_columns + 16, wide ? 8 : 4);
    if (!f->runs || !f->fills) {
        free(sorted);
        return -1;
    }
    for (int32_t i = 0; i < f->n_columns; ++i) {
        column *one = sorted[i], *before = i ? sorted[i - 1] : NULL;
        one->number = i;
        if (wide)
            ((uint64_t *)f->fills)[i] = one->fill;
        else
            ((uint32_t *)f->fills)[i] = (uint32_t)one->fill;
        if (!before || one->feature != before->feature + 1 || (one->way < ZERO_RIGHT) != (before->way < ZERO_RIGHT)) {
            const uint64_t end = wide ? bits_64(&zero, 0) + 1 : (uint64_t)bits_32(&zero_f, 0) + 1;
            f->runs[f->n_runs++] = (ri_columns){i, one->feature, 0, one->way < ZERO_RIGHT ? 0 : end};
        }
        f->runs[f->n_runs - 1].n++;
    }
    free(sorted);
    return 0;
}

static int find_columns(builder *b) {
    const ri_trees *s = b->s;
    const int32_t n = b->ends[s->n_trees];
    columns c = {NULL, NULL, 63, 0};
    int failed = grow(&c);
    for (int32_t i = 0; i < n && !failed; ++i) {
        const int32_t node = b->order[i];
        b->column[node] = -1;
        if (!compares(s, node))
            continue;
        const double threshold = s->threshold[node] == 0 ? 0 : s->threshold[node]; /* -0 is 0 */
        const float narrow = (float)threshold;
        b->key[node] = s->wide ? key_64(bits_64(&threshold, 0)) : key_32(bits_32(&narrow, 0));
        b->column[node] = column_of(&c, s->feature[node], way_of(s, node), b->key[node]);
        failed = b->column[node] < 0;
    }
    if (!failed) {
        fill_columns(s, &c);
        failed = number_columns(b, &c);
    }
    for (int32_t i = 0; i < n && !failed; ++i) {
        const int32_t node = b->order[i], found = b->column[node];
        if (found >= 0)
            b->column[node] = c.all[c.all[found].other < 0 ? found : c.all[found].other].number;
    }
    free(c.all);
    free(c.table);
    return failed ? -1 : 0;
}

/* ---- nodes ---------------------------------------------------------------------------------------------------------------- */

static void put_large(const builder *b, ri_large_node *node, int32_t n) {
    const ri_trees *s = b->s;
    const ri_forest *f = b->f;
    if (s->feature[n] < 0) {
        *node = (ri_large_node){(uint64_t)s->left[n], (uint32_t)f->n_columns << 6, 0};
        return;
    }
    node->next = (uint32_t)(b->place[s->left[n]] - b->place[n]);
    if (b->column[n] >= 0) {
        node->key = b->key[n];
        node->cell = (uint32_t)b->column[n] << 6;
    } else {
        node->key = INT64_MAX; /* right: the bit on top is set */
        node->cell = (uint32_t)(f->n_columns + 1 + b->bit[n] / 64) << 6 | (uint32_t)(63 - b->bit[n] % 64);
    }
}

static void put_small(const builder *b, ri_small_node *node, int32_t n) {
    const ri_trees *s = b->s;
    if (s->feature[n] < 0)
        *node = (ri_small_node){(uint32_t)s->left[n], (uint16_t)(4 * b->f->n_columns), 0};
    else
        *node = (ri_small_node){(uint32_t)b->key[n], (uint16_t)(4 * b->column[n]), (uint16_t)(b->place[s->left[n]] - b->place[n])};
}

/* Places of a tree's nodes, from `start` on: children side by side, and with them their own children as long as a cache line has
 * room, so that a walk of two levels touches one line. Returns the place behind them. */
static int32_t place_tree(builder *b, int32_t t, int32_t start, int32_t *queue) {
    enum { LINE = 8 };
    const ri_trees *s = b->s;
    int32_t head = 0, tail = 0, at = (start + LINE - 1) / LINE * LINE;
    b->place[s->roots[t]] = at++;
    if (s->feature[s->roots[t]] >= 0)
        queue[tail++] = s->roots[t];
    while (head < tail) {
        int32_t family[3] = {queue[head++]}, n = 1; /* a node, and its children as far as they have children */
        for (int side = 0; side < 2; ++side) {
            const int32_t child = side ? s->right[family[0]] : s->left[family[0]];
            if (s->feature[child] >= 0)
                family[n++] = child;
        }
        if (at % LINE + 2 * n > LINE && at % LINE)
            at = (at / LINE + 1) * LINE;
        for (int32_t i = 0; i < n; ++i) {
            b->place[s->left[family[i]]] = at++;
            b->place[s->right[family[i]]] = at++;
            for (int side = 0; side < 2 && i; ++side) {
                const int32_t child = side ? s->right[family[i]] : s->left[family[i]];
                if (s->feature[child] >= 0)
                    queue[tail++] = child;
            }
        }
    }
    return at;
}

static int build_nodes(builder *b) {
    const ri_trees *s = b->s;
    ri_forest *f = b->f;
    const int32_t n = b->ends[s->n_trees];
    int small = !s->wide && !f->n_bits && f->n_columns < 0x3FFF;
    int64_t end = 0;
    f->n_nodes = n;
    f->roots = ri_room(f, (size_t)s->n_trees + 8, 4);
    f->depths = ri_room(f, (size_t)s->n_trees + 1, 4);
    f->depths_8 = ri_room(f, (size_t)s->n_trees / 8 + 1, 4);
    if (!f->roots || !f->depths || !f->depths_8)
        return -1;
    for (int32_t t = 0; t < s->n_trees; ++t) {
        end = place_tree(b, t, (int32_t)end, b->first);
        if (end > INT32_MAX - 64)
            return -1;
        f->roots[t] = b->place[s->roots[t]];
        for (int32_t i = b->ends[t]; i < b->ends[t + 1]; ++i) {
            const int32_t node = b->order[i];
            f->depths[t] = b->depth[node] > f->depths[t] ? b->depth[node] : f->depths[t];
            small &= s->feature[node] < 0 || b->place[s->left[node]] - b->place[node] <= 0xFFFF;
        }
        f->depths_8[t / 8] = f->depths[t] > f->depths_8[t / 8] ? f->depths[t] : f->depths_8[t / 8];
        f->max_depth = f->depths[t] > f->max_depth ? f->depths[t] : f->max_depth;
    }
    f->n_places = end;
    for (int32_t t = s->n_trees; t % 8; ++t)
        f->roots[t] = (int32_t)end;
    if (small)
        f->small = ri_room(f, (size_t)end + 8, sizeof *f->small);
    else
        f->large = ri_room(f, (size_t)end + 8, sizeof *f->large);
    if (!f->small && !f->large)
        return -1;
    if (small)
        f->small[end] = (ri_small_node){(uint32_t)s->n_leaves, (uint16_t)(4 * f->n_columns), 0};
    else
        f->large[end] = (ri_large_node){(uint64_t)s->n_leaves, (uint32_t)f->n_columns << 6, 0};
    for (int32_t i = 0; i < n; ++i) {
        const int32_t node = b->order[i];
        if (small)
            put_small(b, f->small + b->place[node], node);
        else
            put_large(b, f->large + b->place[node], node);
    }
    return 0;
}

/* ---- ranks ---------------------------------------------------------------------------------------------------------------- */

static void sort_keys(uint64_t *keys, uint64_t *other, int32_t n) { /* by bytes, the lowest first; few by insertion */
    if (n < 48) {
        for (int32_t i = 1; i < n; ++i) {
            const uint64_t key = keys[i];
            int32_t j = i;
            for (; j > 0 && keys[j - 1] > key; --j)
                keys[j] = keys[j - 1];
            keys[j] = key;
        }
        return;
    }
    uint64_t *from = keys, *to = other;
    for (int shift = 0; shift < 64; shift += 8) {
        int32_t count[257] = {0};
        for (int32_t i = 0; i < n; ++i)
            count[(from[i] >> shift & 255) + 1]++;
        if (count[(from[0] >> shift & 255) + 1] == n)
            continue;
        for (int i = 0; i < 256; ++i)
            count[i + 1] += count[i];
        for (int32_t i = 0; i < n; ++i)
            to[count[from[i] >> shift & 255]++] = from[i];
        uint64_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != keys)
        memcpy(keys, from, 8 * (size_t)n);
}

static double position_of(const ri_scale *s, uint64_t key, int wide) { /* of tree_keys.h */
    if (!s->by_value)
        return wide ? (double)(int64_t)(key ^ UINT64_C(1) << 63) : (double)(float)(int32_t)((uint32_t)key ^ UINT32_C(1) << 31);
    float narrow;
    double value;
    const uint64_t bits = key >> 63 ? key ^ UINT64_C(1) << 63 : ~key;
    const uint32_t bits_f = (uint32_t)key >> 31 ? (uint32_t)key ^ UINT32_C(1) << 31 : ~(uint32_t)key;
    memcpy(&value, &bits, 8);
    memcpy(&narrow, &bits_f, 4);
    return wide ? value : (double)narrow;
}

static int32_t bucket_of(const ri_scale *s, uint64_t key, int wide) { return wide ? bucket_64(s, key) : bucket_32(s, (uint32_t)key); }

/* Steps of a search among the most thresholds that are in one bucket. */
static int32_t steps_of(const ri_scale *s, const uint64_t *keys, int32_t n, int wide) {
    int32_t most = 1, run = 0, before = -1, steps = 0;
    for (int32_t i = 0; i < n; ++i) {
        const int32_t bucket = bucket_of(s, keys[i], wide);
        run = bucket == before ? run + 1 : 1;
        before = bucket;
        most = run > most ? run : most;
    }
    while ((1 << steps) - 1 < most)
        steps++;
    return steps;
}

/* A scale from the i-th lowest to the i-th highest threshold: the few beyond its ends are in its first and its last bucket. */
static void lay_scale(ri_scale *s, const uint64_t *keys, int32_t n, int32_t trim, int32_t buckets, int by_value, int wide) {
    s->by_value = by_value;
    s->last = buckets - 1;
    const double low = position_of(s, keys[trim], wide), high = position_of(s, keys[n - 1 - trim], wide);
    const double factor = (double)buckets / (high - low);
    const double most = wide ? 1e300 : 1e38; /* a product of it and a distance above 1 is a number, or infinite: the last bucket */
    s->low = low > -most && low < most ? low : 0;
    s->factor = factor > 0 && factor < most ? factor : factor > 0 ? most : 0;
}

/* So many buckets that a bucket has few thresholds; if that takes too many, the search is longer. */
static void choose_scale(ri_scale *s, const uint64_t *keys, int32_t n, int wide) {
    const int32_t limit = n <= RI_PART ? 1024 : 8192;
    ri_scale best = *s;
    best.steps = 99;
    for (int32_t buckets = n < 16 ? 64 : 256; buckets <= limit && best.steps > 2; buckets *= 4)
        for (int32_t trim = 0; trim <= 2 && 2 * trim < n && best.steps > 2; ++trim)
            for (int by_value = 1; by_value >= 0 && best.steps > 2; --by_value) {
                ri_scale one = *s;
                lay_scale(&one, keys, n, trim, buckets, by_value, wide);
                one.steps = steps_of(&one, keys, n, wide);
                if (one.steps < best.steps)
                    best = one;
            }
    *s = best;
}

/* keys: the columns' own, from `first` on. -1 without memory, else 1. */
static int build_scales(builder *b, const uint64_t *keys, const int64_t *first) {
    const int wide = b->s->wide;
    ri_forest *f = b->f;
    int64_t n_starts = 0, n_keys = 0;
    f->scales = ri_room(f, (size_t)f->n_columns + 1, sizeof *f->scales);
    if (!f->scales)
        return -1;
    for (int32_t c = 0; c < f->n_columns; ++c) {
        ri_scale *scale = f->scales + c;
        const int32_t n = b->counts[c];
        choose_scale(scale, keys + first[c], n, wide);
        scale->starts = (int32_t)n_starts;
        scale->keys = (int32_t)n_keys;
        scale->part = f->n_parts;
        scale->n_parts = (n + RI_PART - 1) / RI_PART;
        n_starts += scale->last + 1;
        n_keys += n + (INT64_C(1) << scale->steps) + 16; /* behind them so many that no key is above as a search may look at */
        f->n_parts += scale->n_parts;
    }
    f->starts = ri_room(f, (size_t)n_starts, 2);
    f->rank_keys = ri_room(f, (size_t)n_keys, wide ? 8 : 4);
    f->part_keys = ri_room(f, wide ? 0 : 256 * (size_t)f->n_parts, 4);
    f->part_heads = ri_room(f, wide ? 0 : 16 * (size_t)f->n_parts, 4);
    if (!f->starts || !f->rank_keys || !f->part_keys || !f->part_heads)
        return -1;
    memset(f->rank_keys, 255, (size_t)n_keys * (wide ? 8 : 4));
    memset(f->part_keys, 255, wide ? 0 : 1024 * (size_t)f->n_parts);
    memset(f->part_heads, 255, wide ? 0 : 64 * (size_t)f->n_parts);
    for (int32_t c = 0; c < f->n_columns; ++c) {
        const ri_scale *scale = f->scales + c;
        const uint64_t *own = keys + first[c];
        int32_t bucket = 0;
        for (int32_t i = 0; i < b->counts[c]; ++i) {
            for (; bucket <= bucket_of(scale, own[i], wide); ++bucket)
                f->starts[scale->starts + bucket] = (uint16_t)i;
            if (wide) {
                ((uint64_t *)f->rank_keys)[scale->keys + i] = own[i];
                continue;
            }
            const int32_t part = i / RI_PART, inside = i % RI_PART;
            ((uint32_t *)f->rank_keys)[scale->keys + i] = (uint32_t)own[i];
            f->part_keys[256 * (scale->part + part) + 32 * (inside % 8) + inside / 8] = (uint32_t)own[i];
            if (inside % 16 == 15)
                f->part_heads[16 * (scale->part + part) + inside / 16] = (uint32_t)own[i];
        }
        for (; bucket <= scale->last; ++bucket)
            f->starts[scale->starts + bucket] = (uint16_t)b->counts[c];
    }
    return 1;
}

/* Thresholds of each column, once each, and how to find a key among them. 1: there are ranks; 0: too many; -1 without memory. */
static int rank_columns(builder *b) {
    const ri_trees *s = b->s;
    ri_forest *f = b->f;
    const int32_t n = b->ends[s->n_trees];
    int64_t *first = calloc((size_t)f->n_columns + 2, 8);
    uint64_t *keys = malloc(8 * (size_t)n + 8), *other = malloc(8 * (size_t)n + 8);
    int fits = first && keys && other ? 1 : -1;
    for (int32_t i = 0; i < n && fits > 0; ++i)
        if (b->column[b->order[i]] >= 0)
            first[b->column[b->order[i]] + 2]++;
    for (int32_t c = 0; c < f->n_columns && fits > 0; ++c)
        first[c + 2] += first[c + 1];
    for (int32_t i = 0; i < n && fits > 0; ++i)
        if (b->column[b->order[i]] >= 0)
            keys[first[b->column[b->order[i]] + 1]++] = b->key[b->order[i]];
    int64_t n_parts = f->n_bits;
    for (int32_t c = 0; c < f->n_columns && fits > 0; ++c) {
        uint64_t *own = keys + first[c];
        const int32_t many = (int32_t)(first[c + 1] - first[c]);
        int32_t kept = 0;
        sort_keys(own, other, many);
        for (int32_t i = 0; i < many; ++i)
            if (kept == 0 || own[i] != own[kept - 1])
                own[kept++] = own[i];
        b->counts[c] = kept;
        n_parts += (kept + RI_PART - 1) / RI_PART;
        if (n_parts > MAX_PARTS || kept > MAX_THRESHOLDS)
            fits = 0;
    }
    fits = fits > 0 ? build_scales(b, keys, first) : fits;
    free(first);
    free(keys);
    free(other);
    return fits;
}

/* For each node the byte that it looks at, and the rank that it compares it with. */
static int find_parts(builder *b) {
    const ri_forest *f = b->f;
    const int32_t n = b->ends[b->s->n_trees];
    b->part = malloc(2 * (size_t)b->s->n_nodes + 2);
    b->rank = malloc((size_t)b->s->n_nodes + 1);
    if (!b->part || !b->rank)
        return -1;
    for (int32_t i = 0; i < n; ++i) {
        const int32_t node = b->order[i], own = b->column[node];
        if (b->s->feature[node] < 0)
            continue;
        if (own < 0) {
            b->part[node] = (uint16_t)(f->n_parts + b->bit[node]);
            b->rank[node] = -128;
            continue;
        }
        const uint32_t all = rank_of(f, f->scales + own, b->key[node]);
        b->part[node] = (uint16_t)(f->scales[own].part + (int32_t)(all / RI_PART));
        b->rank[node] = (int8_t)((int32_t)(all % RI_PART) - 128);
    }
    return 0;
}

static void put_value(const builder *b, void *values, size_t at, int32_t leaf) {
    if (b->f->doubles)
        ((double *)values)[at] = b->f->values[leaf];
    else
        ((float *)values)[at] = b->f->values_f[leaf];
}

/* Leaves of each tree from left to right. */
static int build_leaves(builder *b) {
    const ri_trees *s = b->s;
    ri_forest *f = b->f;
    int64_t total = 0;
    f->leaf_first = ri_room(f, (size_t)s->n_trees + 1, 4);
    if (!f->leaf_first)
        return -1;
    for (int32_t t = 0; t < s->n_trees; ++t) {
        f->leaf_first[t] = (int32_t)total;
        total += (b->below[s->roots[t]] + 15) & ~15;
    }
    f->leaf_first[s->n_trees] = (int32_t)total;
    f->leaf_values = ri_room(f, (size_t)total + 16, f->doubles ? 8 : 4);
    f->leaf_numbers = ri_room(f, (size_t)total + 16, 4);
    if (!f->leaf_values || !f->leaf_numbers)
        return -1;
    for (int32_t t = 0; t < s->n_trees; ++t)
        for (int32_t i = b->ends[t]; i < b->ends[t + 1]; ++i) { /* breadth first: a node before its children */
            const int32_t n = b->order[i];
            if (i == b->ends[t])
                b->first[n] = 0;
            if (s->feature[n] < 0) {
                put_value(b, f->leaf_values, (size_t)(f->leaf_first[t] + b->first[n]), s->left[n]);
                f->leaf_numbers[f->leaf_first[t] + b->first[n]] = s->left[n];
            } else {
                b->first[s->left[n]] = b->first[n];
                b->first[s->right[n]] = b->first[n] + b->below[s->left[n]];
            }
        }
    return 0;
}

enum { TILE = 64, NODE = 128 };

/* Where each tree's inner nodes go: into the tile of the tree before it, if there is room for all. A tree of one leaf has a node too. */
static int place_tiles(builder *b) {
    const ri_trees *s = b->s;
    ri_forest *f = b->f;
    int32_t used = TILE;
    f->tile_places = ri_room(f, (size_t)s->n_trees + 1, sizeof *f->tile_places);
    f->tile_trees = ri_room(f, (size_t)s->n_trees + 1, 4);
    if (!f->tile_places || !f->tile_trees)
        return -1;
    for (int32_t t = 0; t < s->n_trees; ++t) {
        const int32_t n = b->below[s->roots[t]] > 1 ? b->below[s->roots[t]] - 1 : 1;
        if (used + n > TILE) {
            f->tile_trees[f->n_tiles++] = t;
            used = 0;
        }
        f->tile_places[t] = (ri_tile_place){f->leaf_first[t], used};
        used += n;
    }
    f->tile_trees[f->n_tiles] = s->n_trees;
    return 0;
}

/* The inner nodes of each tree, breadth first. */
static int build_tiles(builder *b) {
    const ri_trees *s = b->s;
    ri_forest *f = b->f;
    if (place_tiles(b))
        return -1;
    while (1 << f->doublings < f->max_depth)
        f->doublings++;
    f->tiles = ri_room(f, (size_t)f->n_tiles, 4 * TILE);
    if (!f->tiles)
        return -1;
    int32_t *place = b->place; /* of no use any more */
    for (int32_t i = 0; i < f->n_tiles; ++i) {
        uint8_t *tile = f->tiles + 4 * TILE * (size_t)i;
        memset(tile + TILE, 127, TILE); /* nothing turns right */
        for (int32_t t = f->tile_trees[i]; t < f->tile_trees[i + 1]; ++t) {
            int32_t next = f->tile_places[t].root;
            place[s->roots[t]] = next++;
            for (int32_t k = b->ends[t]; k < b->ends[t + 1]; ++k) {
                const int32_t n = b->order[k];
                if (s->feature[n] < 0)
                    continue;
                tile[place[n]] = (uint8_t)b->part[n];
                tile[TILE + place[n]] = (uint8_t)b->rank[n];
                for (int side = 0; side < 2; ++side) {
                    const int32_t child = side ? s->right[n] : s->left[n];
                    if (s->feature[child] >= 0)
                        place[child] = next++;
                    tile[(2 + side) * TILE + place[n]] = (uint8_t)(s->feature[child] >= 0 ? NODE + place[child] : b->first[child]);
                }
            }
        }
    }
    return 0;
}

/* Inner nodes of each tree in preorder. */
static int build_masked(builder *b) {
    const ri_trees *s = b->s;
    ri_forest *f = b->f;
    int64_t n_nodes = 0;
    f->masked_first = ri_room(f, (size_t)s->n_trees + 4, 4);
    f->masked_count = ri_room(f, (size_t)s->n_trees + 4, 4);
    if (!f->masked_first || !f->masked_count)
        return -1;
    for (int32_t t = 0; t < s->n_trees; t += 4) {
        int32_t most = 0;
        for (int32_t u = t; u < t + 4 && u < s->n_trees; ++u) {
            f->masked_count[u] = b->below[s->roots[u]] - 1;
            most = f->masked_count[u] > most ? f->masked_count[u] : most;
        }
        for (int32_t u = t; u < t + 4; ++u, n_nodes += most)
            f->masked_first[u] = (int32_t)n_nodes;
    }
    f->masked = ri_room(f, (size_t)n_nodes, sizeof *f->masked);
    int32_t *stack = b->depth; /* of no use any more, and deep enough */
    if (!f->masked)
        return -1;
    for (int64_t i = 0; i < n_nodes; ++i)
        f->masked[i].rank = 127; /* where a neighbour has more nodes: nothing turns right */
    for (int32_t t = 0; t < s->n_trees; ++t) {
        ri_masked_node *out = f->masked + f->masked_first[t];
        int32_t top = 0;
        stack[top++] = s->roots[t];
        while (top) {
            const int32_t n = stack[--top];
            if (s->feature[n] < 0)
                continue;
            out->part = b->part[n];
            out->rank = b->rank[n];
            out->first = (uint8_t)b->first[n];
            out->step = (uint8_t)b->below[s->left[n]];
            out++;
            stack[top++] = s->right[n];
            stack[top++] = s->left[n];
        }
    }
    return 0;
}

static int count_leaves(builder *b) {
    const ri_trees *s = b->s;
    int64_t nodes = 0;
    for (int64_t i = (int64_t)b->ends[s->n_trees] - 1; i >= 0; --i) {
        const int32_t n = b->order[i];
        b->below[n] = s->feature[n] < 0 ? 1 : b->below[s->left[n]] + b->below[s->right[n]];
    }
    for (int32_t t = 0; t < s->n_trees; ++t) {
        const int32_t n = b->below[s->roots[t]];
        b->f->max_leaves = n > b->f->max_leaves ? n : b->f->max_leaves;
        nodes += 4 * (int64_t)n + 64;
    }
    return b->f->max_leaves <= 256 && nodes < INT32_MAX;
}

/* ---- all of it -------------------------------------------------------------------------------------------------------------- */

static size_t lines(size_t size) { return (size + 127) & ~(size_t)63; }

/* The largest of what kernels want for themselves, then the sums and the last step. */
static size_t scratch_of(const ri_forest *f) {
    const size_t cells = lines((size_t)f->n_cells * 8 * (size_t)(f->small ? 4 : 8) * (size_t)f->walk_rows / 8);
    const size_t words = lines((size_t)f->n_bit_words * 8 * 64);
    const size_t planes = f->masked ? lines((size_t)(f->n_parts + f->n_bits) * RI_BLOCK) + words : 0;
    const size_t tiles = f->tiles ? 8 * 128 + 64 * 64 : 0; /* ranks of 8 rows; 64 tiles' answers */
    const size_t most = cells > planes ? cells : planes;
    return lines(most > tiles ? most : tiles) + lines((size_t)f->n_outputs * RI_BLOCK * 8) + ri_forest_finish_room(f);
}

static int build(builder *b) {
    const ri_trees *s = b->s;
    ri_forest *f = b->f;
    const size_t n_values = (size_t)(s->n_leaves * s->width);
    if (f->doubles)
        f->values = ri_room(f, n_values + (size_t)s->width, 8);
    else
        f->values_f = ri_room(f, n_values + (size_t)s->width, 4);
    f->base = ri_room(f, (size_t)s->n_outputs, 8);
    f->targets = ri_room(f, (size_t)s->n_trees + 8, 4);
    if ((!f->values && !f->values_f) || !f->base || !f->targets)
        return -1;
    for (size_t i = 0; i < n_values + (size_t)s->width; ++i) {
        const double value = i < n_values ? s->values[i] : -0.0;
        if (f->doubles)
            f->values[i] = value;
        else
            f->values_f[i] = (float)value;
    }
    memcpy(f->base, s->base, 8 * (size_t)s->n_outputs);
    if (s->width == 1 && s->n_trees)
        memcpy(f->targets, s->targets, 4 * (size_t)s->n_trees);
    if (find_columns(b) || ri_build_questions(b) || (int64_t)f->n_columns + 1 + f->n_bit_words >= MAX_CELLS)
        return -1;
    f->n_cells = f->n_columns + 1 + f->n_bit_words;
    const int64_t rows = WALK_BYTES / ((int64_t)f->n_cells * 8 * (s->wide || f->n_bits ? 8 : 4));
    f->walk_rows = (int32_t)(rows < 1 ? 8 : rows > RI_BLOCK / 8 ? RI_BLOCK : 8 * rows);
    if (build_nodes(b))
        return -1;
    if (count_leaves(b) && s->width == 1) {
        b->counts = malloc(4 * (size_t)f->n_columns + 4);
        const int ranked = b->counts ? rank_columns(b) : -1;
        const int tiles = ranked > 0 && f->max_leaves <= 64 && f->n_parts + f->n_bits <= 128;
        if (ranked < 0 || (ranked && (find_parts(b) || build_leaves(b) || build_masked(b))) || (tiles && build_tiles(b)))
            return -1;
    }
    f->scratch = scratch_of(f);
    return 0;
}

ri_forest *ri_forest_new(const ri_trees *s, int *error, int64_t *at) {
    *at = -1;
    if (check_sizes(s, error, at))
        return NULL;
    const size_t n = (size_t)s->n_nodes + 1;
    builder b = {.s = s, .f = calloc(1, sizeof *b.f)};
    int32_t **arrays[] = {&b.order, &b.depth, &b.column, &b.bit, &b.place, &b.below, &b.first};
    int failed = !b.f;
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; ++i) {
        *arrays[i] = malloc(4 * n + 4);
        failed |= !*arrays[i];
    }
    b.ends = malloc(4 * ((size_t)s->n_trees + 1));
    b.key = malloc(8 * n);
    failed |= !b.ends || !b.key;
    *error = RI_TREES_MEMORY;
    if (!failed) {
        ri_forest *f = b.f;
        f->n_features = s->n_features;
        f->n_outputs = s->n_outputs;
        f->n_answers = s->n_columns;
        f->n_trees = s->n_trees;
        f->width = s->width;
        f->base_first = s->base_first;
        f->doubles = s->doubles;
        f->wide = s->wide;
        f->average = s->average;
        f->post = s->post;
        f->norm = s->norm;
        f->post_scale = s->post_scale;
        f->n_leaves = s->n_leaves;
        failed = check_trees(s, b.order, b.depth, b.ends, error, at) || build(&b);
    }
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; ++i)
        free(*arrays[i]);
    free(b.ends);
    free(b.key);
    free(b.counts);
    free(b.part);
    free(b.rank);
    if (failed) {
        ri_forest_free(b.f);
        return NULL;
    }
    ri_arena_close(b.f->arena);
    return b.f;
}
