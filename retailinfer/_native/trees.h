/* Tree ensembles: the forms of a compiled forest, and what its kernels have in common. Pure C, no Python.h.
 *
 * A forest answers rows of features with the numbers of the leaves that they reach, summed tree by tree in the forest's own order.
 * That order is what gives every kernel the same bits, so a kernel is chosen by its speed alone.
 *
 * A node sends a row left if its rule says yes of a feature, mostly `x <= threshold`; values that it takes for missing go where it
 * says. In the fast forms that is a matter of derived columns: a feature whose missing values were replaced once per row, before
 * any tree is looked at.
 *
 * Forms of one forest, each made where it can hold it:
 *   generic   everything: any depth and size, every rule, rows of double; one row and one tree at a time
 *   packed    8-byte nodes {threshold, column, left}: 1 row x 8 trees, or 16 rows x 1 tree
 *   ranked    a threshold is its rank among those of its column, in a byte. Each row keeps its first leaf that is still possible;
 *             every node of a tree moves it on for those rows that turn right there. 64, 128 or 256 rows at once
 *   heaps     depth <= 6: the 63 comparisons of a tree in one instruction (AVX-512 VBMI), then 6 steps through a mask of bits
 * Methods: QuickScorer and its bit vectors (Lucchese et al. 2015, doi:10.1145/2766462.2767733) are where ranked scoring comes from.
 *
 * Rules:
 *   - ri_forest_new checks every index once; kernels check nothing and always end. Nothing else allocates.
 *   - Scratch is the caller's: ri_forest.scratch bytes, 64-byte aligned, one per call.
 *   - tree_kernels.c is compiled once per instruction set (RI_LEVEL); the rest once, for the baseline. No symbol is shared by accident.
 * forest.c builds and chooses, forest_post.c does what follows the sums; trees.pyx owns the memory and raises;
 * forest_reference.py is the readable twin.
 */
#ifndef RETAILINFER_TREES_H
#define RETAILINFER_TREES_H

#include <stddef.h>
#include <stdint.h>

#define RI_ZERO 1e-35f /* LightGBM's kZeroThreshold: so near to 0 a value counts as zero, where zero is missing */
#define RI_MAX_TREE_DEPTH 4096
#define RI_BLOCK 256   /* rows that one run of a kernel takes at most */

enum { /* what a node takes for missing */
    RI_GONE_NAN = 0,   /* NaN */
    RI_GONE_NEVER = 1, /* nothing: NaN is 0 */
    RI_GONE_ZERO = 2   /* NaN, and what is as good as 0 */
};

enum { /* what a node asks of a value that is not missing; yes goes left */
    RI_RULE_LEQ = 0,        /* x <= threshold */
    RI_RULE_EQ = 1,         /* x == threshold */
    RI_RULE_IN_TRUNCATED,   /* x > -1, and the set has x without its fraction (LightGBM) */
    RI_RULE_IN_POSITIVE,    /* x >= 0, and the set has x without its fraction (XGBoost); x as a float32, as it takes it */
    RI_RULE_IN_EXACT,       /* the set has x, which is a whole number */
    RI_N_RULES
};

enum { /* the last step of an answer; `forest_post.c` */
    RI_POST_NONE = 0,
    RI_POST_SIGMOID, RI_POST_SOFTMAX, RI_POST_SOFTMAX_ZERO, RI_POST_PROBIT, /* as ONNX Runtime works them out */
    RI_POST_EXP,
    RI_POST_LOGISTIC,       /* as trainers do: a sigmoid */
    RI_POST_COMPLEMENT,     /* one sum v is two answers: 1 - v and v */
    RI_POST_SOFTMAX_SUM,    /* as trainers do: a softmax */
    RI_POST_HINGE,          /* 1 where the sum is above 0 */
    RI_POST_SOFTPLUS,       /* log(1 + exp(sum)) */
    RI_POST_SIGNED_SQUARE,  /* the sum's square, with its sign */
    RI_N_POSTS
};

enum { RI_NORM_NONE = 0, RI_NORM_L1 = 1 }; /* each column over the sum of all columns' absolute values */

typedef struct ri_trees { /* an ensemble as parsers bring it; all arrays belong to the caller */
    int32_t n_features, n_outputs, n_trees, width;
    int32_t n_columns;           /* of an answer: n_outputs, or 2 for one sum that becomes two probabilities */
    int64_t n_nodes, n_leaves, n_sets, n_words;
    const int32_t *roots;        /* (n_trees) */
    const int32_t *feature;      /* (n_nodes) -1: a leaf, whose number is `left` */
    const double *threshold;     /* in the precision of the rows: a float32 value where they are float32 */
    const int32_t *left, *right;
    const uint8_t *missing_left; /* where missing values go */
    const uint8_t *missing;      /* RI_GONE_* */
    const uint8_t *rule;         /* RI_RULE_* */
    const int32_t *category;     /* set of rules 2 to 4, else -1 */
    const int64_t *set_ends;     /* (n_sets + 1) in words */
    const uint32_t *set_words;   /* bit i of a set: category i is in it */
    const double *values;        /* (n_leaves, width) */
    const int32_t *targets;      /* (n_trees) output of each tree, where width is 1; else width is n_outputs */
    const double *base;          /* (n_outputs) */
    const double *cover;         /* (n_nodes) weight of the training rows that reached each; NULL: not known */
    int32_t base_first;          /* sums begin with it; else it is added at the end */
    int32_t doubles;             /* sums and what follows are double, else float */
    int32_t wide;                /* rows are float64 */
    int32_t average;             /* before the base is added, sums are divided by the number of trees (1), or of trees an output (2) */
    int32_t post, norm;          /* RI_POST_*, RI_NORM_* */
    double post_scale;           /* factor of a sum before its sigmoid (LightGBM); 1 */
} ri_trees;

typedef struct ri_derived {
    int32_t feature;
    float fill;                  /* stands for missing values: NaN, -inf or 0 */
    float zero;                  /* |x| <= zero is missing too; -1: it is not */
} ri_derived;

typedef struct ri_generic_node {
    double threshold;
    int32_t feature, left, right, set; /* feature -1: leaf `left` */
    uint8_t rule, missing, missing_left, pad[5];
} ri_generic_node;

typedef struct ri_packed_node {
    float threshold;
    uint16_t column, left;       /* `left` within the tree, right = left + 1; a leaf goes left to itself by the column of -inf */
} ri_packed_node;

typedef struct ri_masked_node {  /* inner nodes of a tree in preorder */
    uint16_t column;
    uint8_t rank;                /* turns right: the row's rank is above it */
    uint8_t first, middle;       /* first leaves below its left and its right side */
    uint8_t pad;
} ri_masked_node;

typedef struct ri_forest {
    int32_t n_features, n_outputs, n_trees, n_answers, width, base_first, doubles, wide, average, post, norm, max_depth, max_leaves;
    int32_t n_columns;           /* derived ones */
    int32_t plain;               /* derived columns are the features themselves */
    double post_scale;
    int64_t n_leaves;
    size_t scratch, n_bytes;
    ri_derived *columns;
    double *values;              /* (n_leaves, width) */
    float *values_f;
    double *base;
    int32_t *targets;
    ri_generic_node *generic;
    int32_t *roots;              /* (n_trees + 1) first node of each tree, in `generic` and in `packed` */
    int32_t *depths;             /* (n_trees) */
    int64_t *set_ends;
    uint32_t *set_words;
    ri_packed_node *packed;      /* NULL: the forest has no such form; below likewise */
    float *ranks;                /* (n_columns, 256) thresholds, ascending, then +inf */
    float *rank_heads;           /* (n_columns, 16) the last of each 16 */
    uint8_t *heap_columns;       /* (n_trees up to a multiple of 8, 64) */
    uint8_t *heap_ranks;
    void *heap_values;           /* (.., 64) float or double */
    ri_masked_node *masked;
    int32_t *masked_ends;        /* (n_trees + 1) */
    int32_t *leaf_first;         /* (n_trees + 1) into `leaf_values`; each tree begins at a multiple of 16 */
    void *leaf_values;           /* in the order of leaves, float or double */
} ri_forest;

/* A kernel answers up to `rows` rows. sums: (n_outputs, RI_BLOCK) float or double, which it adds to. */
typedef void (*ri_tree_kernel)(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums);

enum { RI_KERNEL_GENERIC = 0, RI_KERNEL_PACKED_1, RI_KERNEL_PACKED_16, RI_KERNEL_HEAP_1, RI_KERNEL_HEAP_8,
       RI_KERNEL_RANKED_64, RI_KERNEL_RANKED_128, RI_KERNEL_RANKED_256, RI_N_KERNELS };

typedef struct ri_kernel_set {   /* of one instruction set; NULL: not there */
    const char *level;
    ri_tree_kernel kernels[RI_N_KERNELS];
} ri_kernel_set;

extern const ri_kernel_set ri_kernels_base;
#if defined(RI_HAVE_LEVELS)
extern const ri_kernel_set ri_kernels_avx2, ri_kernels_avx512;
#endif

enum { RI_TREES_OK = 0, RI_TREES_MEMORY, RI_TREES_SIZE, RI_TREES_FEATURE, RI_TREES_CHILD, RI_TREES_LEAF, RI_TREES_CYCLE, RI_TREES_DEPTH,
       RI_TREES_THRESHOLD, RI_TREES_VALUE, RI_TREES_TARGET, RI_TREES_SET, RI_TREES_MISSING, RI_TREES_RULE, RI_TREES_COVER };

/* NULL: `error` says what is wrong, `at` with which node, leaf, tree or set. */
ri_forest *ri_forest_new(const ri_trees *s, int *error, int64_t *at);
void ri_forest_free(ri_forest *f);
/* Kernels of the best instruction set here, or of `level` ("baseline", "avx2", "avx512"); NULL: this machine has it not. */
const ri_kernel_set *ri_kernel_level(const char *level);
int ri_kernel_fits(const ri_forest *f, const ri_kernel_set *set, int kernel);
extern const int ri_kernel_rows[RI_N_KERNELS];
extern const char *const ri_kernel_names[RI_N_KERNELS];

/* Answers of n rows (`stride` in cells) as float32: one column into out[i * out_stride], or for column -1 all of them behind each
 * other. `plan`: kernel for blocks of up to 1, 2, 4 .. 256 rows (9 of them). raw: the sums, before the last step; of one sum both
 * columns are that. leaves: NULL, or (n, n_trees): the number of the leaf that each tree gave, in the same pass. */
void ri_forest_run(const ri_forest *f, const ri_kernel_set *set, const uint8_t *plan, const void *rows, int64_t stride, int64_t n,
                   void *scratch, float *out, int64_t out_stride, int column, int raw, int32_t *leaves);

/* From sums (n_outputs, RI_BLOCK), in the forest's precision and still without average and base, to answers. `room`: scratch. */
void ri_forest_finish(const ri_forest *f, void *sums, int n, void *room, float *out, int64_t out_stride, int column, int raw);
size_t ri_forest_finish_room(const ri_forest *f);
#endif
