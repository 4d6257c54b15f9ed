/* The graph of aliases: index, changes of a key, the checks of a new link. Rules and layout: alias_graph.h. */
#include "alias_graph.h"

#include <stdlib.h>

#define FIRST_SLOTS 16
#define END_OF_TIME INT64_MAX

/* ---- the index ------------------------------------------------------------------------------------------------------ */

static uint64_t slot_of(const ri_alias_graph *graph, uint64_t hash) { return hash & graph->mask; }

static int64_t find_slot(const ri_alias_graph *graph, uint64_t hash, const char *key, int64_t size) {
    if (graph->mask == 0)
        return -1;
    uint64_t slot = slot_of(graph, hash);
    for (uint64_t probes = 0; probes <= graph->mask; ++probes, slot = (slot + 1) & graph->mask) {
        uint64_t entry = graph->slots[slot];
        if (entry == 0)
            return -1;
        if (entry >> 32 != hash >> 32)
            continue;
        const ri_alias_node *node = &graph->nodes[(uint32_t)entry - 1];
        if (node->size == size && memcmp(node->key, key, (size_t)size) == 0)
            return (int64_t)slot;
    }
    return -1;
}

static int32_t find_hashed(const ri_alias_graph *graph, uint64_t hash, const char *key, int64_t size) {
    int64_t slot = find_slot(graph, hash, key, size);
    return slot < 0 ? RI_ALIAS_NONE : (int32_t)((uint32_t)graph->slots[slot] - 1);
}

int32_t ri_alias_find(const ri_alias_graph *graph, const char *key, int64_t size) {
    if (graph->mask == 0 || size < 0 || size > RI_ALIAS_MAX_KEY)
        return RI_ALIAS_NONE;
    return find_hashed(graph, ri_siphash13(key, (size_t)size, graph->hash_key), key, size);
}

static void put_slot(uint64_t *slots, uint64_t mask, uint64_t hash, uint32_t node) {
    uint64_t slot = hash & mask;
    while (slots[slot] != 0)
        slot = (slot + 1) & mask;
    slots[slot] = (hash >> 32 << 32) | (node + 1);
}

static int grow_slots(ri_alias_graph *graph) {
    uint64_t old = graph->mask == 0 ? 0 : graph->mask + 1;
    uint64_t used = graph->n_nodes - graph->n_free;
    if (old >= 2 * (used + 1))
        return RI_ALIAS_OK;
    uint64_t count = old == 0 ? FIRST_SLOTS : 2 * old;
    uint64_t *slots = calloc(count, sizeof *slots);
    if (slots == NULL)
        return RI_ALIAS_MEMORY;
    for (uint32_t i = 0; i < graph->n_nodes; ++i)
        if (graph->nodes[i].key != NULL)
            put_slot(slots, count - 1, graph->nodes[i].hash, i);
    free(graph->slots);
    graph->slots = slots;
    graph->mask = count - 1;
    graph->n_bytes += (count - old) * sizeof *slots;
    return RI_ALIAS_OK;
}

/* Take one slot out and move those behind it forward, so that every probe still ends at the first empty slot. */
static void drop_slot(ri_alias_graph *graph, uint64_t hole) {
    uint64_t mask = graph->mask, slot = hole;
    for (;;) {
        slot = (slot + 1) & mask;
        uint64_t entry = graph->slots[slot];
        if (entry == 0)
            break;
        uint64_t home = slot_of(graph, graph->nodes[(uint32_t)entry - 1].hash);
        if (((slot - home) & mask) >= ((slot - hole) & mask)) {
            graph->slots[hole] = entry;
            hole = slot;
        }
    }
    graph->slots[hole] = 0;
}

/* ---- nodes ------------------------------------------------------------------------------------------------------------ */

static int new_node(ri_alias_graph *graph, uint64_t hash, const char *key, int64_t size, int32_t *made) {
    if (grow_slots(graph) != RI_ALIAS_OK)
        return RI_ALIAS_MEMORY;
    if (graph->free_node == 0 && graph->n_nodes == graph->room) {
        if (graph->room >= (uint32_t)INT32_MAX / 2)
            return RI_ALIAS_FULL;
        uint32_t room = graph->room == 0 ? 8 : 2 * graph->room;
        ri_alias_node *nodes = realloc(graph->nodes, (size_t)room * sizeof *nodes);
        if (nodes == NULL)
            return RI_ALIAS_MEMORY;
        graph->n_bytes += (uint64_t)(room - graph->room) * sizeof *nodes;
        graph->nodes = nodes;
        graph->room = room;
    }
    char *copy = malloc(size > 0 ? (size_t)size : 1);
    if (copy == NULL)
        return RI_ALIAS_MEMORY;
    memcpy(copy, key, (size_t)size);
    uint32_t node = graph->n_nodes;
    if (graph->free_node != 0) {
        node = graph->free_node - 1;
        graph->free_node = graph->nodes[node].n_sources;
        --graph->n_free;
    } else {
        ++graph->n_nodes;
    }
    memset(&graph->nodes[node], 0, sizeof(ri_alias_node));
    graph->nodes[node].hash = hash;
    graph->nodes[node].key = copy;
    graph->nodes[node].size = (uint32_t)size;
    graph->n_bytes += (uint64_t)size;
    put_slot(graph->slots, graph->mask, hash, node);
    *made = (int32_t)node;
    return RI_ALIAS_OK;
}

/* A node that says nothing and that nothing points at goes, with its key. */
static void drop_if_idle(ri_alias_graph *graph, int32_t which) {
    if (which < 0)
        return;
    ri_alias_node *node = &graph->nodes[which];
    if (node->key == NULL || node->n_changes > 0 || node->n_sources > 0)
        return;
    int64_t slot = find_slot(graph, node->hash, node->key, node->size);
    if (slot >= 0)
        drop_slot(graph, (uint64_t)slot);
    volatile char *name = node->key; /* volatile: the compiler would leave out a write that nobody reads */
    for (uint32_t i = 0; i < node->size; ++i)
        name[i] = 0;
    graph->n_bytes -= node->size + (uint64_t)node->change_room * sizeof *node->changes +
                      (uint64_t)node->source_room * sizeof *node->sources;
    free(node->key);
    free(node->changes);
    free(node->sources);
    memset(node, 0, sizeof *node);
    node->n_sources = graph->free_node;
    graph->free_node = (uint32_t)which + 1;
    ++graph->n_free;
}

void ri_alias_clear(ri_alias_graph *graph) {
    for (uint32_t i = 0; i < graph->n_nodes; ++i) {
        ri_alias_node *node = &graph->nodes[i];
        if (node->key == NULL)
            continue;
        volatile char *name = node->key;
        for (uint32_t at = 0; at < node->size; ++at)
            name[at] = 0;
        free(node->key);
        free(node->changes);
        free(node->sources);
    }
    free(graph->nodes);
    free(graph->slots);
    ri_siphash_key hash_key = graph->hash_key;
    memset(graph, 0, sizeof *graph);
    graph->hash_key = hash_key;
}

/* ---- looking up -------------------------------------------------------------------------------------------------------- */

/* How many changes of a node are at or before a moment. */
static uint32_t changes_until(const ri_alias_node *node, int64_t at_ns) {
    uint32_t low = 0, high = node->n_changes;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (node->changes[middle].from_ns <= at_ns)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int32_t ri_alias_step(const ri_alias_graph *graph, int32_t node, int64_t at_ns) {
    const ri_alias_node *from = &graph->nodes[node];
    uint32_t behind = changes_until(from, at_ns);
    return behind == 0 ? RI_ALIAS_NONE : from->changes[behind - 1].target;
}

StrRef ri_alias_resolve(const ri_alias_graph *graph, const char *key, int64_t size, int64_t at_ns, int *hops) {
    StrRef end = {key, size};
    *hops = 0;
    if (graph->n_links == 0)
        return end;
    int32_t node = ri_alias_find(graph, key, size), next;
    if (node < 0)
        return end;
    while (*hops < RI_ALIAS_HOPS && (next = ri_alias_step(graph, node, at_ns)) >= 0) {
        node = next;
        ++*hops;
    }
    if (*hops > 0) {
        end.data = graph->nodes[node].key;
        end.size = graph->nodes[node].size;
    }
    return end;
}

/* ---- the checks of a new link -------------------------------------------------------------------------------------------- */

/* Part [low, high) of the time in which a node's change number `i` holds. Empty: low >= high. */
static void part_of(const ri_alias_node *node, uint32_t i, int64_t *low, int64_t *high) {
    if (node->changes[i].from_ns > *low)
        *low = node->changes[i].from_ns;
    if (i + 1 < node->n_changes && node->changes[i + 1].from_ns < *high)
        *high = node->changes[i + 1].from_ns;
}

/* The longest chain that ends in a node at some moment of [low, high); more than the limit counts as limit + 1. */
static int longest_into(const ri_alias_graph *graph, int32_t which, int64_t low, int64_t high, int depth) {
    const ri_alias_node *node = &graph->nodes[which];
    int longest = 0;
    if (depth > RI_ALIAS_HOPS)
        return 0;
    for (uint32_t s = 0; s < node->n_sources && longest + depth <= RI_ALIAS_HOPS; ++s) {
        const ri_alias_node *source = &graph->nodes[node->sources[s]];
        if (source->n_sources == 0 && longest > 0)
            continue;
        for (uint32_t i = 0; i < source->n_changes; ++i) {
            int64_t from = low, to = high;
            part_of(source, i, &from, &to);
            if (source->changes[i].target != which || from >= to)
                continue;
            int here = 1 + longest_into(graph, node->sources[s], from, to, depth + 1);
            longest = here > longest ? here : longest;
        }
    }
    return longest;
}

typedef struct {
    const ri_alias_graph *graph;
    int32_t origin; /* the node that gets the link, or RI_ALIAS_NONE when it is new */
    int before;     /* the longest chain into it at any moment of the link */
} new_link;

/* Follow a node through [low, high): every moment has one way on. */
static int check_onward(const new_link *link, int32_t which, int64_t low, int64_t high, int depth) {
    if (which == link->origin)
        return RI_ALIAS_CYCLE;
    if (depth > RI_ALIAS_HOPS)
        return RI_ALIAS_LONG;
    const ri_alias_node *node = &link->graph->nodes[which];
    int64_t done = low; /* chains are checked up to here */
    for (uint32_t i = changes_until(node, low), first = i > 0 ? i - 1 : 0; first < node->n_changes; ++first) {
        int64_t from = low, to = high;
        part_of(node, first, &from, &to);
        if (from >= high)
            break;
        if (from >= to || node->changes[first].target < 0)
            continue;
        int status = check_onward(link, node->changes[first].target, from, to, depth + 1);
        if (status != RI_ALIAS_OK)
            return status;
        if (from > done && depth + link->before > RI_ALIAS_HOPS &&
            depth + longest_into(link->graph, link->origin, done, from, 0) > RI_ALIAS_HOPS)
            return RI_ALIAS_LONG;
        done = to;
    }
    if (done < high && depth + link->before > RI_ALIAS_HOPS &&
        depth + longest_into(link->graph, link->origin, done, high, 0) > RI_ALIAS_HOPS)
        return RI_ALIAS_LONG;
    return RI_ALIAS_OK;
}

/* ---- changing ------------------------------------------------------------------------------------------------------------ */

static int reserve(ri_alias_graph *graph, void **memory, uint32_t used, uint32_t *room, size_t width) {
    if (used < *room)
        return RI_ALIAS_OK;
    uint32_t more = *room == 0 ? 1 : *room + *room / 2 + 1;
    void *grown = realloc(*memory, (size_t)more * width);
    if (grown == NULL)
        return RI_ALIAS_MEMORY;
    graph->n_bytes += (uint64_t)(more - *room) * width;
    *memory = grown;
    *room = more;
    return RI_ALIAS_OK;
}

static int names(const ri_alias_node *node, int32_t target) {
    for (uint32_t i = 0; i < node->n_changes; ++i)
        if (node->changes[i].target == target)
            return 1;
    return 0;
}

/* `which` may have stopped pointing at `target`. */
static void forget_source(ri_alias_graph *graph, int32_t which, int32_t target) {
    if (target < 0 || names(&graph->nodes[which], target))
        return;
    ri_alias_node *node = &graph->nodes[target];
    for (uint32_t i = 0; i < node->n_sources; ++i)
        if (node->sources[i] == which) {
            node->sources[i] = node->sources[--node->n_sources];
            break;
        }
    if (target != which)
        drop_if_idle(graph, target);
}

int ri_alias_put(ri_alias_graph *graph, const char *key, int64_t size, const char *into, int64_t into_size, int64_t at_ns) {
    uint64_t hash = ri_siphash13(key, (size_t)size, graph->hash_key), into_hash = 0;
    int32_t from = find_hashed(graph, hash, key, size), to = RI_ALIAS_NONE, old = RI_ALIAS_NONE;
    int status = RI_ALIAS_OK;
    if (into != NULL) {
        if (size == into_size && memcmp(key, into, (size_t)size) == 0)
            return RI_ALIAS_CYCLE;
        into_hash = ri_siphash13(into, (size_t)into_size, graph->hash_key);
        to = find_hashed(graph, into_hash, into, into_size);
        int64_t until = END_OF_TIME;
        new_link link = {graph, from, 0};
        if (from >= 0) {
            uint32_t behind = changes_until(&graph->nodes[from], at_ns);
            if (behind < graph->nodes[from].n_changes)
                until = graph->nodes[from].changes[behind].from_ns;
            link.before = longest_into(graph, from, at_ns, until, 0);
        }
        if (to >= 0)
            status = check_onward(&link, to, at_ns, until, 1);
        else if (1 + link.before > RI_ALIAS_HOPS)
            status = RI_ALIAS_LONG;
        if (status != RI_ALIAS_OK)
            return status;
    }
    if (from >= 0 && graph->nodes[from].n_changes >= RI_ALIAS_MAX_CHANGES) {
        uint32_t behind = changes_until(&graph->nodes[from], at_ns);
        if (behind == 0 || graph->nodes[from].changes[behind - 1].from_ns != at_ns)
            return RI_ALIAS_FULL;
    }
    /* All memory first: from here on, nothing is undone but new nodes. */
    if (from < 0)
        status = new_node(graph, hash, key, size, &from);
    if (status == RI_ALIAS_OK && into != NULL && to < 0)
        status = new_node(graph, into_hash, into, into_size, &to);
    if (status == RI_ALIAS_OK) {
        ri_alias_node *node = &graph->nodes[from];
        status = reserve(graph, (void **)&node->changes, node->n_changes, &node->change_room, sizeof *node->changes);
    }
    if (status == RI_ALIAS_OK && to >= 0) {
        ri_alias_node *node = &graph->nodes[to];
        status = reserve(graph, (void **)&node->sources, node->n_sources, &node->source_room, sizeof *node->sources);
    }
    if (status != RI_ALIAS_OK) {
        drop_if_idle(graph, from);
        drop_if_idle(graph, to);
        return status;
    }
    ri_alias_node *node = &graph->nodes[from];
    uint32_t at = changes_until(node, at_ns);
    if (to >= 0 && !names(node, to)) {
        ri_alias_node *target = &graph->nodes[to];
        target->sources[target->n_sources++] = from;
    }
    if (at > 0 && node->changes[at - 1].from_ns == at_ns) {
        old = node->changes[at - 1].target;
        node->changes[at - 1].target = to;
    } else {
        memmove(node->changes + at + 1, node->changes + at, (size_t)(node->n_changes - at) * sizeof *node->changes);
        node->changes[at].from_ns = at_ns;
        node->changes[at].target = to;
        ++node->n_changes;
        ++graph->n_changes;
    }
    graph->n_links += (to >= 0) - (uint64_t)(old >= 0);
    if (old != to)
        forget_source(graph, from, old);
    return RI_ALIAS_OK;
}

int64_t ri_alias_erase(ri_alias_graph *graph, const char *key, int64_t size) {
    int32_t which = ri_alias_find(graph, key, size);
    if (which < 0)
        return 0;
    ri_alias_node *node = &graph->nodes[which];
    int64_t touched = node->n_changes;
    for (uint32_t s = 0; s < node->n_sources; ++s) {
        ri_alias_node *source = &graph->nodes[node->sources[s]];
        for (uint32_t i = 0; i < source->n_changes; ++i)
            if (source->changes[i].target == which) {
                source->changes[i].target = RI_ALIAS_NONE;
                --graph->n_links;
                ++touched;
            }
    }
    node->n_sources = 0;
    graph->n_changes -= node->n_changes;
    while (node->n_changes > 0) {
        int32_t target = node->changes[--node->n_changes].target;
        graph->n_links -= target >= 0;
        forget_source(graph, which, target);
    }
    drop_if_idle(graph, which);
    return touched;
}
