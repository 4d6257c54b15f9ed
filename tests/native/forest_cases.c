/* From bytes to forests and rows; see forest_cases.h. */
#include "forest_cases.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- bytes ---------------------------------------------------------------------------------------------------------------- */

typedef struct tape {
    const uint8_t *data;
    size_t size, at;
    uint64_t state;
} tape;

static uint64_t mix(uint64_t z) { /* splitmix64 */
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static uint32_t drawn(tape *t) {
    t->state += UINT64_C(0x9E3779B97F4A7C15);
    return (uint32_t)(mix(t->state) >> 32);
}

static uint32_t byte(tape *t) {
    return t->at < t->size ? t->data[t->at++] : drawn(t) >> 24;
}

static uint32_t word(tape *t) {
    const uint32_t a = byte(t), b = byte(t), c = byte(t), d = byte(t);
    return a | b << 8 | c << 16 | d << 24;
}

static uint32_t below(tape *t, uint32_t n) {
    return n <= 1 ? 0 : n <= 256 ? byte(t) % n : word(t) % n;
}

static int chance(tape *t, uint32_t percent) {
    return byte(t) * 100 < percent * 256;
}

static void *exact(size_t n, size_t size) { /* NULL for nothing, as trees.pyx hands it on */
    if (n == 0)
        return NULL;
    void *p = calloc(n, size);
    if (!p) {
        fputs("no memory for a case\n", stderr);
        exit(2);
    }
    return p;
}

/* ---- numbers -------------------------------------------------------------------------------------------------------------- */

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static double double_of(uint64_t bits) {
    double x;
    memcpy(&x, &bits, 8);
    return x;
}

static const float ODD[] = {0.0f, -0.0f, 1.0f, -1.0f, 0.5f, 1e-35f, -1e-35f, 9.9999994e-36f, 1.0000001e-35f, 1e-36f, FLT_MIN,
                            -FLT_MIN, 1e-45f, -1e-45f, FLT_MAX, -FLT_MAX, 16777216.0f, 3.0f, 31.0f, 32.0f, 33.5f, -0.5f, 1e9f, 1e10f,
                            INFINITY, -INFINITY};
enum { N_ODD = sizeof ODD / sizeof *ODD };

/* Never NaN. coarse: a small integer over 4, for few different ones. */
static double number(tape *t, int wide, int coarse) {
    if (chance(t, 10))
        return (double)ODD[below(t, N_ODD)];
    if (coarse)
        return (double)((int)byte(t) - 128) / 4;
    if (wide && chance(t, 50)) {
        const uint64_t high = word(t);
        const double x = double_of(high << 32 | word(t));
        return x != x ? 0.1 : x;
    }
    if (chance(t, 30)) {
        const float x = float_of(word(t));
        return x != x ? 0.25 : (double)x;
    }
    return (double)(float)((double)(int32_t)word(t) / 268435456.0);
}

static double neighbour(double x, int wide, int up) {
    return wide ? nextafter(x, up ? (double)INFINITY : (double)-INFINITY) : (double)nextafterf((float)x, up ? INFINITY : -INFINITY);
}

/* ---- trees ---------------------------------------------------------------------------------------------------------------- */

typedef struct node {
    int32_t feature, left, right, category;
    double threshold;
    uint8_t missing_left, missing, rule;
} node;

typedef struct grower {
    tape *t;
    node *nodes;
    size_t n, room;
    size_t n_known;      /* behind them: nodes of no tree */
    int32_t n_leaves, n_features, n_sets;
    int wide, coarse, missing, rules, sets;
} grower;

static int32_t new_node(grower *g) {
    if (g->n == g->room) {
        g->room = g->room ? 2 * g->room : 64;
        node *more = realloc(g->nodes, g->room * sizeof *more);
        if (!more)
            exit(2);
        g->nodes = more;
    }
    g->nodes[g->n] = (node){.feature = -1, .category = -1, .left = -1};
    return (int32_t)g->n++;
}

static node question(grower *g) {
    tape *t = g->t;
    node q = {.category = -1};
    q.feature = (int32_t)below(t, (uint32_t)g->n_features);
    q.threshold = number(t, g->wide, g->coarse);
    if (g->missing) {
        q.missing = (uint8_t)below(t, 3);
        q.missing_left = (uint8_t)below(t, 2);
    }
    if (g->rules && chance(t, 40)) {
        q.rule = (uint8_t)below(t, RI_N_RULES);
        if (q.rule >= RI_RULE_IN_TRUNCATED) {
            if (g->n_sets)
                q.category = (int32_t)below(t, (uint32_t)g->n_sets);
            else
                q.rule = RI_RULE_EQ;
        }
    }
    return q;
}

/* Asks `q` at `at`, and gives it two children, right behind each other. */
static void split(grower *g, int32_t at, node q) {
    q.left = new_node(g);
    q.right = new_node(g);
    if (byte(g->t) & 1) {
        const int32_t left = q.left;
        q.left = q.right;
        q.right = left;
    }
    g->nodes[at] = q;
}

static void grow_chain(grower *g, int32_t at, uint32_t depth, uint32_t side) {
    for (uint32_t i = 0; i < depth; ++i) {
        split(g, at, question(g));
        at = (side == 2 ? byte(g->t) & 1 : side) ? g->nodes[at].right : g->nodes[at].left;
    }
}

/* A queue of nodes to split: the nodes of this tree, in the order in which they came. */
static void grow_random(grower *g, int32_t root, uint32_t depth, uint32_t percent) {
    size_t from = (size_t)root, until = g->n;
    for (uint32_t level = 0; level < depth && from < until; ++level) {
        for (; from < until; ++from)
            if (chance(g->t, percent) && g->n < 200000)
                split(g, (int32_t)from, question(g));
        until = g->n;
    }
}

static void grow_symmetric(grower *g, int32_t root, uint32_t depth) {
    size_t from = (size_t)root, until = g->n;
    for (uint32_t level = 0; level < depth; ++level) {
        const node q = question(g);
        for (; from < until; ++from) {
            node again = q;
            again.left = new_node(g);
            again.right = new_node(g);
            g->nodes[from] = again;
        }
        until = g->n;
    }
}

static void grow(grower *g, uint32_t shape) {
    static const uint16_t EDGES[] = {0, 1, 2, 7, 15, 31, 63, 64, 254, 255, 256, 257};
    const int32_t root = new_node(g);
    const uint32_t how = byte(g->t), much = byte(g->t);
    switch (shape) {
    case 0:
        grow_random(g, root, how % 7, 60 + much % 41);
        break;
    case 1:
        grow_random(g, root, 6 + how % 4, 75 + much % 26);
        break;
    case 2:
        grow_chain(g, root, EDGES[how % 12], much % 3);
        break;
    case 3:
        grow_symmetric(g, root, how % 9);
        break;
    case 4:
        grow_chain(g, root, how % 40, 2);
        break;
    case 5:
        grow_chain(g, root, 4094 + how % 5, much % 3); /* 4,096 is the deepest that is allowed */
        break;
    default:
        break; /* a leaf */
    }
}

static void shuffle(tape *t, int32_t *order, size_t n) {
    for (size_t i = n; i > 1; --i) {
        const size_t j = drawn(t) % i;
        const int32_t one = order[i - 1];
        order[i - 1] = order[j];
        order[j] = one;
    }
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------ */

static void spread_nodes(tape *t, grower *g, ri_trees *s, int32_t *roots) {
    const size_t n = g->n;
    int32_t *place = exact(n + 1, 4), *leaf = exact((size_t)g->n_leaves + 1, 4);
    for (size_t i = 0; i < n; ++i)
        place[i] = (int32_t)i;
    for (int32_t i = 0; i < g->n_leaves; ++i)
        leaf[i] = i;
    if (chance(t, 30))
        shuffle(t, place, n);
    if (chance(t, 30))
        shuffle(t, leaf, (size_t)g->n_leaves);
    int32_t *feature = exact(n, 4), *left = exact(n, 4), *right = exact(n, 4), *category = exact(n, 4);
    double *threshold = exact(n, 8);
    uint8_t *missing_left = exact(n, 1), *missing = exact(n, 1), *rule = exact(n, 1);
    for (size_t i = 0; i < n; ++i) {
        const node *from = g->nodes + i;
        const int32_t at = place[i];
        const int known = i < g->n_known, is_leaf = from->feature < 0;
        feature[at] = from->feature;
        threshold[at] = from->threshold;
        left[at] = !known ? from->left : is_leaf ? leaf[from->left] : place[from->left];
        right[at] = !known ? from->right : is_leaf ? 0 : place[from->right];
        category[at] = from->category;
        missing_left[at] = from->missing_left;
        missing[at] = from->missing;
        rule[at] = from->rule;
    }
    for (int32_t i = 0; i < s->n_trees; ++i)
        roots[i] = place[roots[i]];
    s->n_nodes = (int64_t)n;
    s->roots = roots, s->feature = feature, s->threshold = threshold, s->left = left, s->right = right, s->category = category;
    s->missing_left = missing_left, s->missing = missing, s->rule = rule;
    free(place);
    free(leaf);
}

/* Nodes that no tree reaches: they may hold anything. */
static void add_strangers(tape *t, grower *g) {
    for (uint32_t i = below(t, 4); i > 0; --i) {
        const int32_t at = new_node(g); /* first: it may move all nodes */
        node *n = g->nodes + at;
        const uint32_t feature = word(t);
        n->feature = (int32_t)(feature >> below(t, 32));
        n->threshold = chance(t, 50) ? (double)NAN : 1e300;
        n->left = (int32_t)word(t);
        n->right = (int32_t)word(t);
        n->category = (int32_t)word(t);
        n->missing_left = (uint8_t)byte(t);
        n->missing = (uint8_t)byte(t);
        n->rule = (uint8_t)byte(t);
    }
}

static void add_sets(tape *t, ri_trees *s) {
    int64_t *ends = exact((size_t)s->n_sets + 1, 8);
    for (int64_t i = 0; i < s->n_sets; ++i) {
        const uint32_t size = byte(t);
        ends[i + 1] = ends[i] + (int64_t)below(t, size < 2 ? 70000 : size < 10 ? 300 : 4);
    }
    s->n_words = ends[s->n_sets];
    uint32_t *words = exact((size_t)s->n_words, 4);
    for (int64_t i = 0; i < s->n_words; ++i)
        words[i] = chance(t, 10) ? UINT32_MAX : chance(t, 15) ? 0 : word(t);
    s->set_ends = ends, s->set_words = words;
}

static void add_values(tape *t, ri_trees *s) {
    const size_t n = (size_t)(s->n_leaves * s->width);
    double *values = exact(n, 8), *base = exact((size_t)s->n_outputs, 8);
    const int huge = chance(t, 5), huger = s->doubles && chance(t, 4), tiny = chance(t, 5), zero = chance(t, 5);
    for (size_t i = 0; i < n; ++i) {
        double v = zero ? 0.0 : (double)(int32_t)drawn(t) / 2147483648.0;
        v = huger ? v * 1.7e308 : huge ? v * 3e38 : tiny ? v * 1e-40 : v;
        values[i] = s->doubles ? v : (double)(float)v;
    }
    for (int32_t i = 0; i < s->n_outputs; ++i)
        base[i] = chance(t, 40) ? 0.0 : (double)(int32_t)word(t) / 1073741824.0;
    if (s->width == 1) {
        int32_t *targets = exact((size_t)s->n_trees, 4);
        const int in_turn = chance(t, 60);
        for (int32_t i = 0; i < s->n_trees; ++i)
            targets[i] = in_turn ? i % s->n_outputs : (int32_t)below(t, (uint32_t)s->n_outputs);
        s->targets = targets;
    }
    s->values = values, s->base = base;
    if (chance(t, 30)) {
        double *cover = exact((size_t)s->n_nodes, 8);
        for (int64_t i = 0; i < s->n_nodes; ++i)
            cover[i] = (double)(drawn(t) % 1000) / 8;
        s->cover = cover;
    }
}

/* One cell of an array, or one field, becomes something else. Sizes of arrays stay true: trees.pyx takes them from the arrays. */
static void spoil(tape *t, ri_trees *s) {
    static const int64_t EDGES[] = {0, -1, 1, 2, 255, 256, 65535, 65536, INT32_MAX, INT32_MIN, INT32_MAX / 2, INT64_MAX, INT64_MIN};
    const uint32_t what = below(t, 25);
    int64_t to = EDGES[below(t, 13)];
    if (chance(t, 50)) {
        to = chance(t, 50) ? s->n_nodes : s->n_leaves;
        to += (int64_t)below(t, 5) - 2;
    }
    if (chance(t, 20))
        to = (int64_t)(int32_t)word(t);
    double number_to = number(t, 1, 0);
    if (chance(t, 50)) {
        static const double FAR[] = {1e300, -1e300, 1.7e308, -1.7e308, 4e38, 1e-320, INFINITY};
        number_to = chance(t, 30) ? (double)NAN : FAR[below(t, 7)];
    }
    const uint32_t at = word(t);
#define CELL(NAME, TYPE, N) \
    if ((N) > 0)            \
    ((TYPE *)(uintptr_t)s->NAME)[at % (uint32_t)(N)] = (TYPE)to
#define REAL(NAME, N) \
    if ((N) > 0)      \
    ((double *)(uintptr_t)s->NAME)[at % (uint32_t)(N)] = number_to
    switch (what) {
    case 0: case 1: CELL(roots, int32_t, s->n_trees); break;
    case 2: case 3: CELL(feature, int32_t, s->n_nodes); break;
    case 4: REAL(threshold, s->n_nodes); break;
    case 5: case 6: CELL(left, int32_t, s->n_nodes); break;
    case 7: case 8: CELL(right, int32_t, s->n_nodes); break;
    case 9: CELL(missing_left, uint8_t, s->n_nodes); break;
    case 10: CELL(missing, uint8_t, s->n_nodes); break;
    case 11: CELL(rule, uint8_t, s->n_nodes); break;
    case 12: CELL(category, int32_t, s->n_nodes); break;
    case 13: case 14: CELL(set_ends, int64_t, s->n_sets + 1); break;
    case 15: REAL(values, s->n_leaves * s->width); break;
    case 16: if (s->targets) CELL(targets, int32_t, s->n_trees); break;
    case 17: REAL(base, s->n_outputs); break;
    case 18: if (s->cover) REAL(cover, s->n_nodes); break;
    case 19: s->n_features = (int32_t)(to < 1 << 16 ? to : INT32_MAX); break;
    case 20: s->post = (int32_t)to; break;
    case 21: s->norm = (int32_t)to; break;
    case 22: s->n_columns = (int32_t)to; break;
    case 23: s->average = (int32_t)to; break;
    default: s->post_scale = number_to; break;
    }
#undef CELL
#undef REAL
}

static void make_rows(tape *t, forest_case *c) {
    static const uint16_t COUNTS[] = {1, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 33, 63, 64, 65, 127, 129, 255, 256, 257, 300, 530};
    const ri_trees *s = &c->trees;
    const size_t cell = s->wide ? 8 : 4, n_features = (size_t)(s->n_features > 0 && s->n_features <= 1 << 17 ? s->n_features : 1);
    c->n_rows = COUNTS[below(t, 22)];
    const uint32_t patience = byte(t); /* most cases are small, so that there are many */
    const size_t work = n_features + (size_t)s->n_trees * 8 + (size_t)s->n_nodes / 4;
    while (c->n_rows > 1 && (size_t)c->n_rows * work > (patience < 200 ? 10000 : patience < 250 ? 60000 : 300000))
        c->n_rows -= c->n_rows > 64 ? 64 : c->n_rows > 16 ? 16 : 1;
    c->stride = (int64_t)n_features + (int64_t)(chance(t, 20) ? 1 + below(t, 9) : 0);
    const size_t n_cells = (size_t)(c->n_rows - 1) * (size_t)c->stride + n_features;
    const size_t shift = chance(t, 50) ? 0 : cell * below(t, 16);
    c->rows_memory = exact(n_cells * cell + shift, 1);
    c->rows = c->rows_memory + shift;
    for (size_t i = 0; i < n_cells; ++i) {
        double x = 0;
        const uint32_t kind = drawn(t) % 16;
        if (kind == 0)
            x = (double)NAN;
        else if (kind == 1)
            x = (double)ODD[drawn(t) % N_ODD];
        else if (kind < 12 && s->n_nodes > 0)
            x = s->threshold[drawn(t) % (uint32_t)s->n_nodes];
        else if (kind == 12)
            x = (double)(int)(drawn(t) % 200) - 20;
        else
            x = (double)(int32_t)drawn(t) / 268435456.0;
        if (kind < 12 && x == x && drawn(t) % 3 == 0)
            x = neighbour(x, s->wide, (int)(drawn(t) & 1));
        if (s->wide)
            memcpy((char *)c->rows + i * 8, &x, 8);
        else {
            const float narrow = (float)x;
            memcpy((char *)c->rows + i * 4, &narrow, 4);
        }
    }
}

static uint64_t hashed(uint64_t h, const void *from, size_t size) {
    const uint8_t *p = from;
    for (size_t i = 0; p && i < size; ++i)
        h = (h ^ p[i]) * UINT64_C(0x100000001B3);
    return h;
}

static uint64_t hash_of(const forest_case *c) {
    const ri_trees *s = &c->trees;
    const size_t n = (size_t)s->n_nodes, cell = s->wide ? 8 : 4;
    uint64_t h = UINT64_C(0xCBF29CE484222325);
    h = hashed(h, s->roots, 4 * (size_t)s->n_trees);
    h = hashed(h, s->feature, 4 * n);
    h = hashed(h, s->threshold, 8 * n);
    h = hashed(h, s->left, 4 * n);
    h = hashed(h, s->right, 4 * n);
    h = hashed(h, s->missing_left, n);
    h = hashed(h, s->missing, n);
    h = hashed(h, s->rule, n);
    h = hashed(h, s->category, 4 * n);
    h = hashed(h, s->set_words, 4 * (size_t)s->n_words);
    h = hashed(h, s->values, 8 * (size_t)(s->n_leaves * s->width));
    return hashed(h, c->rows_memory, (size_t)((char *)c->rows - c->rows_memory) + cell * (size_t)((c->n_rows - 1) * c->stride + 1));
}

void forest_case_make(forest_case *c, const uint8_t *data, size_t size) {
    tape whole = {.data = data, .size = size}, *t = &whole;
    for (size_t i = 0; i < size; ++i)
        t->state = mix(t->state + data[i] + 1);
    memset(c, 0, sizeof *c);
    ri_trees *s = &c->trees;
    const uint32_t kind = byte(t), flags = byte(t);
    s->wide = (flags & 7) == 0;
    s->doubles = flags >> 3 & 1;
    s->base_first = flags >> 4 & 1;
    s->average = (int32_t)(flags >> 5) % 4 % 3; /* 0, 1, 2, 0 .. */
    grower g = {.t = t, .wide = s->wide, .coarse = chance(t, 70), .missing = kind & 1, .rules = kind >> 1 & 1 & kind >> 2};
    const uint32_t size_of_rows = byte(t);
    s->n_features = size_of_rows < 200 ? 1 + (int32_t)(size_of_rows % 12)
                    : size_of_rows < 250 ? 1 + (int32_t)below(t, 300)
                    : size_of_rows < 254 ? 1 + (int32_t)below(t, 4000)
                                         : 65000 + (int32_t)below(t, 1000);
    g.n_features = s->n_features;
    s->n_sets = g.rules ? (int64_t)below(t, 6) : 0;
    g.n_sets = (int32_t)s->n_sets;
    const uint32_t outputs = byte(t);
    s->n_outputs = outputs < 150 ? 1 : outputs < 250 ? 2 + (int32_t)(outputs % 4) : 1 + (int32_t)below(t, 40);
    s->width = s->n_outputs > 1 && chance(t, 30) ? s->n_outputs : 1;
    s->n_columns = s->n_outputs == 1 && (outputs & 1) ? 2 : s->n_outputs;
    s->post = (int32_t)below(t, RI_N_POSTS);
    s->norm = chance(t, 10) ? RI_NORM_L1 : RI_NORM_NONE;
    s->post_scale = s->post == RI_POST_LOGISTIC && chance(t, 30) ? 0.75 : 1.0;
    const uint32_t many = byte(t);
    s->n_trees = many < 200 ? (int32_t)(many % 21) : many < 250 ? (int32_t)below(t, 70) : (int32_t)below(t, 400);
    int32_t *roots = exact((size_t)s->n_trees, 4);
    const uint32_t common = byte(t); /* most trees of a forest have one shape */
    for (int32_t i = 0; i < s->n_trees; ++i) {
        roots[i] = (int32_t)g.n;
        uint32_t shape = common < 240 ? (common % 8 == 5 ? 0 : common % 8) : 5;
        if (chance(t, 15))
            shape = below(t, 5);
        grow(&g, g.n > 20000 ? 6 : shape == 5 && i > 0 ? 0 : shape);
    }
    for (size_t i = 0; i < g.n; ++i)
        if (g.nodes[i].feature < 0)
            g.nodes[i].left = g.n_leaves++;
    s->n_leaves = g.n_leaves;
    if (g.n_leaves > 1 && chance(t, 10)) /* leaves may share a value */
        for (size_t i = 0; i < g.n; ++i)
            if (g.nodes[i].feature < 0)
                g.nodes[i].left = (int32_t)(drawn(t) % (uint32_t)g.n_leaves);
    g.n_known = g.n;
    if (chance(t, 10))
        add_strangers(t, &g);
    spread_nodes(t, &g, s, roots);
    free(g.nodes);
    add_sets(t, s);
    add_values(t, s);
    if (chance(t, 35))
        for (uint32_t i = 1 + below(t, 3); i > 0; --i, c->spoiled = 1)
            spoil(t, s);
    for (int i = 0; i < 9; ++i)
        c->plan[i] = (uint8_t)byte(t);
    make_rows(t, c);
    c->hash = hash_of(c);
}

void forest_case_free(forest_case *c) {
    const ri_trees *s = &c->trees;
    const void *all[] = {s->roots, s->feature, s->threshold, s->left, s->right, s->missing_left, s->missing, s->rule, s->category, s->set_ends,
                         s->set_words, s->values, s->targets, s->base, s->cover, c->rows_memory};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i)
        free((void *)(uintptr_t)all[i]);
    memset(c, 0, sizeof *c);
}
