/* Which key stands for which other one, from when on: the graph of aliases of one field. Pure C, no Python.h.
 *
 * A key that was ever linked, or linked to, is a node. A node has changes, ascending by time: from `from_ns` on, until its next
 * change, it stands for `target`, or (RI_ALIAS_NONE) for itself. At one moment a node stands for at most one other, so a chain
 * as of a moment is a walk without choices; no such walk is longer than RI_ALIAS_HOPS or comes back to where it was, because a
 * change that would make one is refused when it is written.
 *
 * Rules:
 *   - Looking up cannot fail and never allocates; every loop is bounded even if memory were corrupt.
 *   - A function that changes the graph does all of it or nothing, and runs under the GIL: readers never see half a change.
 *   - Keys are canonical bytes (table.h), hashed under a random key: clients choose them.
 *   - Memory of a key is overwritten before it is given back: erasing an entity erases its name.
 * Used by aliases.pyx alone; implemented in alias_graph.c.
 */
#ifndef RETAILINFER_ALIAS_GRAPH_H
#define RETAILINFER_ALIAS_GRAPH_H

#include "hashing.h"
#include "tensor_ref.h"

#define RI_ALIAS_HOPS 16
#define RI_ALIAS_NONE (-1)
#define RI_ALIAS_MAX_KEY 65536
#define RI_ALIAS_MAX_CHANGES 4096 /* of one key */

enum { RI_ALIAS_OK = 0, RI_ALIAS_MEMORY = -1, RI_ALIAS_CYCLE = 1, RI_ALIAS_LONG = 2, RI_ALIAS_FULL = 3 };

typedef struct {
    int64_t from_ns;
    int32_t target; /* a node, or RI_ALIAS_NONE */
} ri_alias_change;

typedef struct {
    uint64_t hash;
    char *key; /* NULL: the node is free, and `n_sources` is the next free one + 1 */
    uint32_t size;
    uint32_t n_changes, change_room;
    uint32_t n_sources, source_room;
    ri_alias_change *changes;
    int32_t *sources; /* nodes with at least one change to this one, each once, in no order */
} ri_alias_node;

typedef struct {
    ri_alias_node *nodes;
    uint64_t *slots;   /* high half of the hash << 32 | node + 1; 0 = empty; linear probing */
    uint64_t mask;     /* slots - 1; 0 = no slots yet */
    uint32_t n_nodes;  /* ever used, free ones included */
    uint32_t room;
    uint32_t n_free;
    uint32_t free_node; /* the first free node + 1 */
    uint64_t n_links;   /* changes that name a target: 0 = every key stands for itself */
    uint64_t n_changes;
    uint64_t n_bytes;
    ri_siphash_key hash_key;
} ri_alias_graph;

void ri_alias_clear(ri_alias_graph *graph);

/* Node of a key, or -1. */
int32_t ri_alias_find(const ri_alias_graph *graph, const char *key, int64_t size);
/* What a node stands for at a moment, or RI_ALIAS_NONE. */
int32_t ri_alias_step(const ri_alias_graph *graph, int32_t node, int64_t at_ns);
/* The end of a key's chain as of a moment: the graph's memory, or `key` itself with hops 0. */
StrRef ri_alias_resolve(const ri_alias_graph *graph, const char *key, int64_t size, int64_t at_ns, int *hops);

/* From at_ns on, until its next change, `key` stands for `into` (NULL: for itself again). */
int ri_alias_put(ri_alias_graph *graph, const char *key, int64_t size, const char *into, int64_t into_size, int64_t at_ns);
/* Forget a key: its changes, and that others stood for it; they stand for themselves in that time. How many changes it touched. */
int64_t ri_alias_erase(ri_alias_graph *graph, const char *key, int64_t size);

#endif
