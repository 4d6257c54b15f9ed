/* What the files that build a forest share: forest_build.c and forest_bits.c. */
#ifndef RETAILINFER_FOREST_BUILD_H
#define RETAILINFER_FOREST_BUILD_H

#include "trees.h"

#define ri_room ri_forest_room

typedef struct builder {
    const ri_trees *s;
    ri_forest *f;
    int32_t *order, *depth, *ends; /* of check_trees */
    int32_t *column;               /* per node, -1 where there is no key to compare */
    int32_t *bit;                  /* per node, -1 where there is no question */
    int32_t *place;                /* per node: where it stands among the nodes that are walked */
    int32_t *below;                /* per node: leaves below it */
    int32_t *first;                /* per node: its first leaf in its tree; its slot in the heap */
    uint64_t *key;                 /* per node: of its threshold */
    int32_t *counts;               /* per column: thresholds, each counted once */
    uint16_t *part;                /* per node: byte of ranks */
    int8_t *rank;                  /* per node: what it is compared with */
} builder;

/* Zeroed memory of the forest, on a line of its own, with a line to spare behind it. NULL: there is none. */
void *ri_room(ri_forest *f, size_t n, size_t size);
int ri_build_questions(builder *b);
#endif
