/* What a node of a forest asks of a value. No Python.h; for code that is compiled once, not for kernels of instruction sets. */
#ifndef RETAILINFER_TREE_RULES_H
#define RETAILINFER_TREE_RULES_H

#include <math.h>

#include "trees.h"

static inline int ri_in_set(const uint32_t *words, int64_t n_words, double x) { /* x above -1 */
    if (!(x < 32.0 * (double)n_words)) /* beyond every category of the set */
        return 0;
    const int64_t i = (int64_t)x; /* 0 for what is above -1, and a set may be empty */
    return i < 32 * n_words && (words[i / 32] >> (i % 32) & 1);
}

/* Does x, a value as the row has it, go left? words: of the node's set. */
static inline int ri_goes_left(double x, int rule, int missing, int missing_left, double threshold, const uint32_t *words, int64_t n_words) {
    const int gone = x != x || (missing == RI_GONE_ZERO && fabs(x) <= (double)RI_ZERO);
    if (gone && missing != RI_GONE_NEVER)
        return missing_left;
    x = gone ? 0 : x;
    switch (rule) {
    case RI_RULE_LEQ:
        return x <= threshold;
    case RI_RULE_EQ:
        return x == threshold;
    case RI_RULE_IN_TRUNCATED:
        return x > -1 && ri_in_set(words, n_words, x);
    case RI_RULE_IN_POSITIVE:
        return (float)x >= 0 && ri_in_set(words, n_words, (double)(float)x);
    default:
        return x >= 0 && x == floor(x) && ri_in_set(words, n_words, x);
    }
}
#endif
