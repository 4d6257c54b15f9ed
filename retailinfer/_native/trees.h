/* Tree ensembles: what parsers bring, the forms of a compiled forest, and what its kernels have in common. Pure C, no Python.h.
 *
 * A forest answers rows of features with the numbers of the leaves that they reach, summed tree by tree in the forest's own order.
 * That order is what gives every kernel the same bits, so a kernel is chosen by its speed alone.
 *
 * A node sends a row left if its rule says yes of a feature, mostly `x <= threshold`; values that it takes for missing go where it
 * says. In here that is the comparison of whole numbers, in three steps (tree_keys.h has the first two):
 *   key       a float as a number in the same order: x <= t is key(x) <= key(t). Missing values have the key that goes their way:
 *             a column is a feature together with what is missing and where it goes. Rows of doubles have keys of 64 bits.
 *   bit       equality and sets of categories: one bit a question, 1 = goes right, looked up for a row once, all questions of a
 *             feature at a time.
 *   rank      a key's place among the thresholds of its column. It fits 16 bits, and lies in bytes: a column of more than 254
 *             thresholds is several parts, of which each counts 254 of them. A bit is a rank of 0 or 1.
 *
 * Forms of one forest, each made where it can hold it, and the kernels over them, one C file each:
 *   nodes     tree_walk.c, every forest: from node to node, 8 trees of one row or 8 rows of one tree at once. Small nodes of 8 bytes
 *             hold 32-bit keys, large ones of 16 bytes everything
 *   tiles     tree_jump.c, up to 64 leaves a tree and 128 bytes of ranks: 64 nodes at once (AVX-512 VBMI2), then a few doublings of
 *             the way from each
 *   masked    tree_ranked.c, up to 256 leaves a tree: each row keeps its first leaf that is still possible; every node of a tree moves
 *             it on for those rows that turn right there. 32 to 256 rows at once
 * Methods: QuickScorer and its bit vectors (Lucchese et al. 2015, doi:10.1145/2766462.2767733) are where ranked scoring comes from.
 *
 * Rules:
 *   - ri_forest_new checks every index once; kernels check nothing and always end. Nothing else allocates.
 *   - Scratch is the caller's: ri_forest.scratch bytes, 64-byte aligned, one per call.
 *   - Kernels are compiled once per instruction set (RI_LEVEL); the rest once, for the baseline. No symbol is shared by accident.
 * forest_build.c checks and builds, forest_run.c chooses and runs, forest_post.c does what follows the sums; trees.pyx owns the memory
 * and raises; forest_reference.py is the readable twin.
 */
#ifndef RETAILINFER_TREES_H
#define RETAILINFER_TREES_H

#include <stddef.h>
#include <stdint.h>

#define RI_ZERO 1e-35f /* LightGBM's kZeroThreshold: so near to 0 a value counts as zero, where zero is missing */
#define RI_MAX_TREE_DEPTH 4096
#define RI_BLOCK 256   /* rows that one run of a kernel takes at most */
#define RI_TILE 512    /* rows that a plan tells apart */
#define RI_PART 254    /* thresholds that a byte of ranks counts */

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

typedef struct ri_columns {      /* neighbours, of consecutive features */
    int32_t column, feature, n;
    uint64_t zero_end;           /* what has fewer bits without its sign is missing too; 0: nothing */
} ri_columns;

typedef struct ri_questions {    /* of one feature, one rule other than `<=`, and one way to treat missing values: its bits */
    int32_t feature, first, n;   /* bits, tightly packed over all questions */
    uint8_t rule, missing, missing_left;
    int64_t n_codes;             /* values that RI_RULE_EQ asks for; categories in the table; 0: sets are asked one by one */
    const double *values;        /* (n_codes) ascending, of RI_RULE_EQ */
    const uint64_t *table;       /* (2 + n_codes, words that hold the bits) for no category, missing, and each category */
    const int32_t *sets;         /* (n) of the other rules */
} ri_questions;

typedef struct ri_scale {        /* finds ranks in one column: an even scale of buckets, then a short search in the bucket */
    double low, factor;          /* bucket of a position: (position - low) * factor, in the precision of the rows */
    int32_t by_value;            /* the position is the value itself; else its key, which is even in magnitude */
    int32_t last;                /* bucket */
    int32_t steps;               /* of the search */
    int32_t starts, keys;        /* where its own begin in the arrays of all */
    int32_t part, n_parts;       /* its bytes */
} ri_scale;

typedef struct ri_small_node {
    uint32_t key;                /* of a leaf: its number */
    uint16_t cell;               /* column times 4; of a leaf: the one behind all, whose key is 0 */
    uint16_t next;               /* nodes to the left child, behind which the right one stands; 0 of a leaf */
} ri_small_node;

typedef struct ri_large_node {
    uint64_t key;
    uint32_t cell;               /* column, or behind the leaves' column a word of bits; times 64, plus the shift that puts the bit on top */
    uint32_t next;
} ri_large_node;

typedef struct ri_masked_node {  /* inner nodes of a tree in preorder */
    uint16_t part;
    int8_t rank;                 /* turns right: the row's rank is above it; biased by 128, as ranks are */
    uint8_t first;               /* first leaves below its left side */
    uint8_t step;                /* leaves below its left side: so far on is its right side */
    uint8_t pad[3];
} ri_masked_node;

typedef struct ri_tile_place {
    int32_t first_leaf;          /* as in `leaf_first` */
    int32_t root;                /* its place in its tile */
} ri_tile_place;

typedef struct ri_forest {
    int32_t n_features, n_outputs, n_trees, n_answers, width, base_first, doubles, wide, average, post, norm, max_depth, max_leaves;
    double post_scale;
    int64_t n_nodes, n_places, n_leaves; /* nodes in trees, and the places among which they stand */
    size_t scratch, n_bytes;
    struct ri_chunk *arena;      /* holds all arrays below; read-only once the forest is built (arena.h) */
    int32_t n_columns;           /* of keys */
    int32_t n_bits, n_bit_words;
    int32_t n_cells;             /* of a row in nodes: keys, the leaves' 0, words of bits */
    int32_t n_runs, n_questions, n_parts;
    int32_t walk_rows;           /* rows whose cells stay in the cache */
    ri_columns *runs;
    void *fills;                 /* (n_columns) keys of missing values; uint32_t, or uint64_t where rows are wide */
    ri_questions *questions;
    double *equals;              /* storage of the questions, like the next two */
    uint64_t *tables;
    int32_t *asked;
    int64_t *set_ends;
    uint32_t *set_words;
    double *values;              /* (n_leaves + 1, width) of sums in double, the last one -0 */
    float *values_f;             /* else */
    double *base;
    int32_t *targets;
    int32_t *roots;              /* (n_trees up to a multiple of 8) first node of each tree; then of one that is a leaf of value -0 */
    int32_t *depths;             /* (n_trees) */
    int32_t *depths_8;           /* of each 8 trees, the deepest */
    ri_small_node *small;        /* one of these two */
    ri_large_node *large;
    ri_scale *scales;            /* (n_columns), or NULL: there are no ranks, so none of the forms below */
    uint16_t *starts;
    void *rank_keys;             /* thresholds of all columns, ascending in each; uint32_t, or uint64_t where rows are wide */
    uint32_t *part_keys;         /* (n_parts, 8, 32) of 32 bits, by vectors: threshold 8 i + k of a part is at k, i */
    uint32_t *part_heads;        /* (n_parts, 16) of 32 bits: the last of each 16 thresholds */
    int32_t n_tiles, doublings;  /* doublings of a step until the deepest tree is through */
    uint8_t *tiles;              /* (n_tiles, 4, 64) part, rank, left, right of each node; NULL: there are none */
    int32_t *tile_trees;         /* (n_tiles + 1) first tree of each */
    ri_tile_place *tile_places;  /* (n_trees) */
    ri_masked_node *masked;      /* 4 trees have room for the same number of nodes; NULL: there are none */
    int32_t *masked_first;       /* (n_trees up to a multiple of 4, + 1) */
    int32_t *masked_count;
    int32_t *leaf_first;         /* (n_trees + 1) into `leaf_values`; each tree begins at a multiple of 16; NULL: there are none */
    void *leaf_values;           /* from left to right, float or double */
    int32_t *leaf_numbers;
} ri_forest;

/* A kernel answers up to its number of rows. sums: (n_outputs, RI_BLOCK) float or double, which it adds to; of blocks, also to rows
 * that are not there. leaves: NULL, or (n, n_trees). */
typedef void ri_tree_kernel(const ri_forest *f, const void *rows, int64_t stride, int n, void *scratch, void *sums, int32_t *leaves);

enum { RI_KERNEL_WALK_1 = 0, RI_KERNEL_WALK_8, RI_KERNEL_JUMP_1, RI_KERNEL_JUMP_8, RI_KERNEL_RANKED_32, RI_KERNEL_RANKED_64,
       RI_KERNEL_RANKED_128, RI_KERNEL_RANKED_256, RI_N_KERNELS };

/* A leaf's value beside its record: whole numbers of 16 bits in 32 lanes and in 32 more, but only those that are not 0, in their
 * order. The second lanes begin with one for each number that the first ones took, which nobody reads. */
typedef struct ri_leaf_record {
    uint32_t first, second;      /* lanes that the numbers go to */
    union {
        float narrow;
        double wide;
    } value;                     /* as in `leaf_values` */
    int16_t numbers[];
} ri_leaf_record;

#define RI_RECORD_SHORT 32       /* bytes, with 8 numbers */
#define RI_RECORD_LONG 64        /* bytes, with 24 numbers */
#define RI_RECORD_TOTALS 64

typedef struct ri_records {
    const uint8_t *packed;       /* by place in `leaf_values`; none is in two lines of the cache */
    int32_t size;                /* of each, in bytes */
    int32_t lead;                /* second lanes that nobody reads, at most */
    uint32_t behind;             /* a bit for each second lane behind those; 0: only the first ones are used */
    const int32_t *spills;       /* trees before which sums have to leave 16 bits, ascending; then -1 */
} ri_records;

/* One row as by RI_KERNEL_JUMP_1, of a forest of one output, and in the same pass the sums of its leaves' records. totals: of
 * the first lanes and those behind `lead`, (RI_RECORD_TOTALS), 64-byte aligned; 0 where there is no lane. */
typedef void ri_recorded_kernel(const ri_forest *f, const void *row, void *scratch, void *sums, const ri_records *records, int32_t *totals);

typedef struct ri_kernel_set {   /* of one instruction set; NULL: not there */
    const char *level;
    ri_tree_kernel *kernels[RI_N_KERNELS];
    ri_recorded_kernel *recorded; /* where RI_KERNEL_JUMP_1 fits */
} ri_kernel_set;

typedef struct ri_plan {         /* by the number of rows that are left, RI_TILE for more: which kernel takes how many of them */
    uint8_t kernel[RI_TILE + 1];
    uint16_t rows[RI_TILE + 1];
    float ns[RI_TILE + 1];       /* what all of them take; 0: not timed */
} ri_plan;

enum { RI_TREES_OK = 0, RI_TREES_MEMORY, RI_TREES_SIZE, RI_TREES_FEATURE, RI_TREES_CHILD, RI_TREES_LEAF, RI_TREES_CYCLE, RI_TREES_DEPTH,
       RI_TREES_THRESHOLD, RI_TREES_VALUE, RI_TREES_TARGET, RI_TREES_SET, RI_TREES_MISSING, RI_TREES_RULE, RI_TREES_COVER };

/* NULL: `error` says what is wrong, `at` with which node, leaf, tree or set. */
ri_forest *ri_forest_new(const ri_trees *s, int *error, int64_t *at);
void ri_forest_free(ri_forest *f);

/* Kernels of the best instruction set here, or of `level` ("baseline", "avx2", "avx512"); NULL: this machine has it not. */
const ri_kernel_set *ri_kernel_level(const char *level);
int ri_kernel_fits(const ri_forest *f, const ri_kernel_set *set, int kernel);
extern const int ri_kernel_rows[RI_N_KERNELS]; /* that one run takes */
extern const char *const ri_kernel_names[RI_N_KERNELS];

/* Plans: by rules; of one kernel; by timing every kernel that fits on `n_rows` >= RI_BLOCK rows, for calls of up to `most` rows. */
void ri_plan_guess(const ri_forest *f, const ri_kernel_set *set, ri_plan *plan);
void ri_plan_force(int kernel, ri_plan *plan);
void ri_plan_time(const ri_forest *f, const ri_kernel_set *set, const void *rows, int64_t stride, int64_t n_rows, int most, int64_t budget_ns,
                  void *scratch, ri_plan *plan);

/* Rows that spread over the trees, for timing: each feature is one of its thresholds, or of its categories. rows: (n, n_features). */
void ri_forest_likely(const ri_forest *f, int64_t n, void *rows);

/* Answers of n rows (`stride` in cells) as float32: one column into out[i * out_stride], or for column -1 all of them behind each
 * other. raw: the sums, before the last step; of one sum both columns are that. leaves: NULL, or (n, n_trees): the number of the leaf
 * that each tree gave, in the same pass. */
void ri_forest_run(const ri_forest *f, const ri_kernel_set *set, const ri_plan *plan, const void *rows, int64_t stride, int64_t n,
                   void *scratch, float *out, int64_t out_stride, int column, int raw, int32_t *leaves);

/* One row's answer, and the sums of its leaves' records, where a kernel does both at once; else 0, and nothing is done. */
int ri_forest_run_recorded(const ri_forest *f, const ri_kernel_set *set, const ri_plan *plan, const void *row, void *scratch, float *out,
                           int column, int raw, const ri_records *records, int32_t *totals);

/* From sums (n_outputs, RI_BLOCK), in the forest's precision and still without average and base, to answers. `room`: scratch. */
void ri_forest_finish(const ri_forest *f, void *sums, int n, void *room, float *out, int64_t out_stride, int column, int raw);
size_t ri_forest_finish_room(const ri_forest *f);
#endif
