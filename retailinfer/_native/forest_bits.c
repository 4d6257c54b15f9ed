/* Questions of a forest that no order of numbers answers: `x == value`, and "is x in this set of categories".
 *
 * Nodes that ask alike share a bit. All that one feature is asked under one rule is looked up at once: the bits of a category, or of
 * what is none, are a row of a table. Bits say "goes right", so a missing value's are all 0 or all 1.
 *
 * Rules:
 *   - Tables have a limit: sets whose table would be larger are asked one by one.
 */
#include "forest_build.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tree_keys.h"

#define MAX_TABLE ((int64_t)1 << 21) /* words of one table, and of all: 16 and 64 MB */
#define MAX_TABLES ((int64_t)1 << 23)

typedef struct asked { /* one node's question */
    uint64_t group;    /* feature, rule, missing, missing_left */
    uint64_t content;  /* the value's key, or a hash of the set */
    int32_t node;
} asked;

static int by_question(const void *a, const void *b) {
    const asked *x = (const asked *)a, *y = (const asked *)b;
    if (x->group != y->group)
        return x->group < y->group ? -1 : 1;
    if (x->content != y->content)
        return x->content < y->content ? -1 : 1;
    return (x->node > y->node) - (x->node < y->node);
}

static int64_t set_size(const ri_trees *s, int32_t set) { /* in words, without the empty ones at its end */
    int64_t n = s->set_ends[set + 1] - s->set_ends[set];
    while (n > 0 && s->set_words[s->set_ends[set] + n - 1] == 0)
        n--;
    return n;
}

static uint64_t hash_of_set(const ri_trees *s, int32_t set) {
    uint64_t hash = UINT64_C(0x9e3779b97f4a7c15);
    const int64_t n = set_size(s, set);
    for (int64_t i = 0; i < n; ++i) {
        hash = (hash ^ s->set_words[s->set_ends[set] + i]) * UINT64_C(0xff51afd7ed558ccd);
        hash ^= hash >> 32;
    }
    return hash;
}

static int same_question(const ri_trees *s, const asked *a, const asked *b) {
    if (a->group != b->group || a->content != b->content)
        return 0;
    if (s->rule[a->node] == RI_RULE_EQ)
        return 1;
    const int32_t x = s->category[a->node], y = s->category[b->node];
    const int64_t n = set_size(s, x);
    if (x == y || n != set_size(s, y))
        return x == y;
    return n == 0 || !memcmp(s->set_words + s->set_ends[x], s->set_words + s->set_ends[y], 4 * (size_t)n);
}

static void put_bit(uint64_t *words, int64_t bit, int on) {
    if (on)
        words[bit / 64] |= UINT64_C(1) << (bit % 64);
    else
        words[bit / 64] &= ~(UINT64_C(1) << (bit % 64));
}

static int64_t words_of(const ri_questions *q) { return (q->first + q->n - 1) / 64 - q->first / 64 + 1; }

/* The rows of a table: all right, missing, and all right but for the sets that have the category. */
static void fill_table(const ri_trees *s, const ri_questions *q, uint64_t *table) {
    const int64_t words = words_of(q), start = q->first % 64;
    const int64_t n_rows = 2 + (q->rule == RI_RULE_EQ ? 0 : q->n_codes);
    for (int64_t row = 0; row < n_rows; ++row)
        for (int32_t i = 0; i < q->n && !(row == 1 && q->missing_left); ++i)
            put_bit(table + row * words, start + i, 1);
    if (q->rule == RI_RULE_EQ || !q->n_codes)
        return;
    for (int32_t i = 0; i < q->n; ++i) {
        const uint32_t *set = s->set_words + s->set_ends[q->sets[i]];
        const int64_t n = set_size(s, q->sets[i]);
        for (int64_t w = 0; w < n; ++w)
            for (int bit = 0; bit < 32; ++bit)
                if (set[w] >> bit & 1)
                    put_bit(table + (2 + 32 * w + bit) * words, start + i, 0);
    }
}

static int asks(const ri_trees *s, int32_t node) { return s->feature[node] >= 0 && s->rule[node] != RI_RULE_LEQ; }

/* Sorts the nodes' questions and gives each its bit (`bit_of`, per node). -1 without memory. */
int ri_build_questions(builder *b) {
    const ri_trees *s = b->s;
    ri_forest *f = b->f;
    const int32_t n_nodes = b->ends[s->n_trees];
    int64_t n = 0, n_tables = 0, words = 0;
    for (int64_t i = 0; i < s->n_nodes; ++i) /* some may be in no tree */
        n += s->rule[i] != RI_RULE_LEQ;
    if (!n)
        return 0;
    asked *all = malloc((size_t)n * sizeof *all);
    f->asked = ri_room(f, (size_t)n, 4);
    f->equals = ri_room(f, (size_t)n, 8);
    f->set_ends = ri_room(f, (size_t)s->n_sets + 1, 8);
    f->set_words = ri_room(f, (size_t)s->n_words, 4);
    if (!all || !f->asked || !f->equals || !f->set_ends || !f->set_words) {
        free(all);
        return -1;
    }
    memcpy(f->set_ends, s->set_ends, 8 * ((size_t)s->n_sets + 1));
    if (s->n_words)
        memcpy(f->set_words, s->set_words, 4 * (size_t)s->n_words);
    int64_t at = 0;
    for (int32_t i = 0; i < n_nodes; ++i) {
        const int32_t node = b->order[i];
        if (!asks(s, node))
            continue;
        const double value = s->threshold[node] == 0 ? 0 : s->threshold[node]; /* -0 is 0 */
        const int left = s->missing[node] != RI_GONE_NEVER && s->missing_left[node];
        all[at].group = (uint64_t)s->feature[node] << 16 | (uint64_t)s->rule[node] << 8 | (uint64_t)s->missing[node] << 1 | (uint64_t)left;
        all[at].content = s->rule[node] == RI_RULE_EQ ? key_64(bits_64(&value, 0)) : hash_of_set(s, s->category[node]);
        all[at++].node = node;
    }
    n = at;
    qsort(all, (size_t)n, sizeof *all, by_question);
    for (int64_t i = 0; i < n; ++i)
        f->n_questions += i == 0 || all[i].group != all[i - 1].group;
    f->questions = ri_room(f, (size_t)f->n_questions, sizeof *f->questions);
    if (!f->questions) {
        free(all);
        return -1;
    }
    ri_questions *q = NULL;
    for (int64_t i = 0; i < n; ++i) {
        const int32_t node = all[i].node;
        if (!q || all[i].group != all[i - 1].group) {
            q = q ? q + 1 : f->questions;
            q->feature = s->feature[node];
            q->rule = s->rule[node];
            q->missing = s->missing[node];
            q->missing_left = (uint8_t)(all[i].group & 1);
            q->first = f->n_bits;
            q->values = f->equals + f->n_bits;
            q->sets = f->asked + f->n_bits;
        }
        if (q->n == 0 || !same_question(s, all + i, all + i - 1)) {
            f->equals[f->n_bits] = s->threshold[node];
            f->asked[f->n_bits++] = s->category[node];
            q->n++;
            if (q->rule != RI_RULE_EQ && 32 * set_size(s, s->category[node]) > q->n_codes)
                q->n_codes = 32 * set_size(s, s->category[node]);
        }
        b->bit[node] = f->n_bits - 1;
    }
    free(all);
    f->n_bit_words = (f->n_bits + 63) / 64;
    for (int32_t i = 0; i < f->n_questions; ++i) {
        q = f->questions + i;
        if (q->rule == RI_RULE_EQ) {
            q->n_codes = q->n;
            n_tables += 2 * words_of(q);
            continue;
        }
        if (q->n_codes > MAX_TABLE || (2 + q->n_codes) * words_of(q) > MAX_TABLE || n_tables + (2 + q->n_codes) * words_of(q) > MAX_TABLES)
            q->n_codes = 0;
        n_tables += (2 + q->n_codes) * words_of(q);
    }
    f->tables = ri_room(f, (size_t)n_tables, 8);
    if (!f->tables)
        return -1;
    for (int32_t i = 0; i < f->n_questions; ++i) {
        q = f->questions + i;
        q->table = f->tables + words;
        fill_table(s, q, f->tables + words);
        words += words_of(q) * (2 + (q->rule == RI_RULE_EQ ? 0 : q->n_codes));
    }
    return 0;
}

/* ---- asking ---------------------------------------------------------------------------------------------------------------- */

static int in_set(const ri_forest *f, int32_t set, int64_t code) {
    return code < 32 * (f->set_ends[set + 1] - f->set_ends[set]) && (f->set_words[f->set_ends[set] + code / 32] >> (code % 32) & 1);
}

static void clear(uint64_t *words, size_t step, int64_t bit) { words[(size_t)(bit / 64) * step] &= ~(UINT64_C(1) << (bit % 64)); }

static void equal(const ri_questions *q, double x, uint64_t *words, size_t step) {
    int32_t low = 0, high = q->n;
    while (low < high) {
        const int32_t middle = (low + high) / 2;
        if (q->values[middle] < x)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < q->n && q->values[low] == x)
        clear(words, step, q->first + low);
}

void ri_forest_bits(const ri_forest *f, const void *row, uint64_t *words, size_t step) {
    for (int32_t w = 0; w < f->n_bit_words; ++w)
        words[(size_t)w * step] = 0;
    for (int32_t i = 0; i < f->n_questions; ++i) {
        const ri_questions *q = f->questions + i;
        double x = f->wide ? ((const double *)row)[q->feature] : (double)((const float *)row)[q->feature];
        const int64_t n_words = words_of(q);
        const int gone = x != x || (q->missing == RI_GONE_ZERO && fabs(x) <= (double)RI_ZERO), missing = gone && q->missing != RI_GONE_NEVER;
        int64_t code = -1;
        x = gone ? 0 : q->rule == RI_RULE_IN_POSITIVE ? (double)(float)x : x;
        if (!missing && q->rule != RI_RULE_EQ) {
            const int fits = (q->rule == RI_RULE_IN_TRUNCATED ? x > -1 : x >= 0) && x < (double)INT32_MAX;
            code = fits ? (int64_t)x : -1;
            code = q->rule == RI_RULE_IN_EXACT && (double)code != x ? -1 : code;
        }
        const uint64_t *bits = q->table + n_words * (missing ? 1 : code >= 0 && code < q->n_codes ? 2 + code : 0);
        uint64_t *out = words + (size_t)(q->first / 64) * step;
        for (int64_t w = 0; w < n_words; ++w)
            out[(size_t)w * step] |= bits[w];
        if (!missing && q->rule == RI_RULE_EQ)
            equal(q, x, words, step);
        for (int32_t k = 0; k < q->n && code >= 0 && !q->n_codes; ++k)
            if (in_set(f, q->sets[k], code))
                clear(words, step, q->first + k);
    }
}
