/* Why a forest says what it says: contributions of features to a sum. Pure C, no Python.h.
 *
 * Every node has an expectation: the mean of the leaves below it, weighted by the training rows that reached them (`cover`; where
 * nobody knows, both children weigh alike). A row's way from a root to a leaf is a chain of steps, and each step adds the expectation
 * of the child less that of the node to the feature that the node asked: path-delta attribution (Saabas 2014, treeinterpreter). All
 * steps and the expectations of the roots add up to the sum. Shapley values over the same expectations are the slower, fairer split:
 * Lundberg et al. 2018, doi:10.48550/arXiv.1802.03888, Algorithm 2.
 *
 * Two users, two structures:
 *   ri_reasons   one decision: which few groups of features push the sum up the most. All steps of a leaf are worked out at load and
 *                merged by group, so that a row costs one record a tree. Amounts are whole numbers of one quantum, the forest's
 *                largest merged step / 32767: their sums do not depend on an order, so every instruction set picks the same groups.
 *   ri_explain   one explanation: the contribution of every feature, in double.
 *
 * Forms of ri_reasons:
 *   dense    up to 128 groups: int16 for each group, zero or not; a leaf's record is one or two cache lines, added as vectors
 *   sparse   (group, amount) for each group of a leaf's way, added one by one. Also for forests of a few huge and many small steps,
 *            which int16 would make zero: the quantum is then the largest step / 2^30
 *
 *   packed   what is not 0 of dense records, beside the leaf's value: a kernel of trees sums it on its way (ri_records of trees.h), so
 *            that one row needs no second pass. In 16 bits, as far as no leaves of the trees can go beyond; then they spill to 32
 *
 * Rules:
 *   - Arrays are checked once, here; what is built can only be right. Nothing allocates after that, scratch is the caller's.
 *   - reason_kernels.c is compiled once per instruction set (RI_LEVEL); the rest once, for the baseline.
 * reasons.pyx owns the memory and raises; reasons_reference.py is the readable twin. Whose leaves these are: trees.h.
 */
#ifndef RETAILINFER_TREE_REASONS_H
#define RETAILINFER_TREE_REASONS_H

#include "trees.h"

#define RI_REASONS_NARROW 32767
#define RI_REASONS_WIDE (1 << 30)
#define RI_REASONS_DENSE_GROUPS 128
#define RI_REASONS_LANES 16       /* groups of a dense record come by so many */
#define RI_SHAP_MAX_DEPTH 1024    /* of a tree; the memory of Algorithm 2 is its square */

enum { RI_REASONS_OK = 0, RI_REASONS_MEMORY, RI_REASONS_SIZE, RI_REASONS_NODE, RI_REASONS_SHARED, RI_REASONS_GROUP };

typedef struct ri_reason_kernels { /* of one instruction set */
    /* Adds the records of leaves[trees[i]], i < n, in chunks of 16 groups. sums: overwritten, a multiple of 16 groups. */
    void (*add)(const int16_t *table, int32_t stride, const int32_t *leaves, const int32_t *trees, int32_t n, int32_t *sums);
    /* As ri_reasons_pick; -1: not of so many groups. sums: (stride) of a table, 64-byte aligned. NULL: there is none. */
    int32_t (*pick)(const int32_t *sums, int32_t stride, int32_t most, int32_t *picked);
} ri_reason_kernels;

extern const ri_reason_kernels ri_reason_kernels_base;
#if defined(RI_HAVE_LEVELS)
extern const ri_reason_kernels ri_reason_kernels_avx2, ri_reason_kernels_avx512;
#endif
/* Of "baseline", "avx2" or "avx512". Whether this machine has it is ri_kernel_level's to say. */
const ri_reason_kernels *ri_reason_kernels_of(const char *level);

typedef struct ri_amount {
    int32_t group, amount;
} ri_amount;

typedef struct ri_reasons {
    int32_t n_groups, n_used;     /* trees that add to the output */
    int32_t stride;               /* groups of a dense record; 0: sparse */
    int32_t wide;                 /* amounts need more than 16 bits */
    int64_t n_leaves;
    size_t scratch, n_bytes;      /* scratch: of one pick, 64-byte aligned */
    double quantum;               /* of an amount */
    int32_t *trees;               /* (n_used) */
    int16_t *dense;               /* (n_leaves, stride) */
    int32_t *spills;              /* (up to n_used, then -1) which of `trees`: before these, sums of 16 bits have to spill */
    uint8_t *packed;              /* what `records` has; NULL: nothing is packed */
    ri_records records;
    int64_t *starts;              /* (n_leaves + 1) into `amounts` */
    ri_amount *amounts;
} ri_reasons;

/* groups: (n_features) number of each feature's group, -1: it is never named. output: whose sum; sign: 1, or -1 for what lowers it.
 * form: 0 = what fits best, 1 = dense, 2 = sparse. NULL: `error` says what is wrong, `at` with which node, leaf, tree or feature. */
ri_reasons *ri_reasons_new(const ri_trees *s, const int32_t *groups, int32_t n_groups, int32_t output, int sign, int form, int *error,
                           int64_t *at);
void ri_reasons_free(ri_reasons *r);
/* Packs dense records, if they can be and the forest has a kernel for it. f: made of the same arrays. -1: no memory. */
int ri_reasons_pack(ri_reasons *r, const ri_forest *f, const ri_kernel_set *set);
/* The up to `most` groups that push a row up the most, strongest first, equal ones by number. leaves: (n_trees) of the row. */
int32_t ri_reasons_pick(const ri_reasons *r, const ri_reason_kernels *kernels, const int32_t *leaves, void *scratch, int32_t most,
                        int32_t *picked);
/* The same of packed records that have been summed into `scratch` already. */
int32_t ri_reasons_pick_sums(const ri_reasons *r, const ri_reason_kernels *kernels, void *scratch, int32_t most, int32_t *picked);
/* The amounts of all groups, before anything is picked. */
void ri_reasons_amounts(const ri_reasons *r, const ri_reason_kernels *kernels, const int32_t *leaves, void *scratch, int64_t *amounts);

typedef struct ri_explain {
    ri_trees s;                   /* its arrays belong to the caller, who keeps them */
    int32_t output, max_depth;
    double base;                  /* expectations of the roots, and the forest's own base */
    double divisor;               /* of a forest that averages; 1 */
    double *expected;             /* (n_nodes) */
    int32_t *parent;              /* (n_nodes), -1: a root, or in no tree of this output */
    int32_t *node;                /* (n_leaves), -1: of no tree of this output */
} ri_explain;

ri_explain *ri_explain_new(const ri_trees *s, int32_t output, int *error, int64_t *at);
void ri_explain_free(ri_explain *e);
/* Contributions of one row by the way that it takes. out: (n_features), overwritten. */
void ri_explain_path(const ri_explain *e, const int32_t *leaves, double *out);
/* The same by Shapley values. row: n_features cells as they are read by the forest. scratch: ri_explain_shap_room(e) bytes. */
void ri_explain_shap(const ri_explain *e, const double *row, void *scratch, double *out);
size_t ri_explain_shap_room(const ri_explain *e);
#endif
