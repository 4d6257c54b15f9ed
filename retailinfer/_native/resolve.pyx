"""What the keys of a request lead to beyond snapshots: mutable tables with their sources, windows, and aliases.

Rules:
  * Waiting comes first and looking up last: sources are asked for what is missing while nothing points into a table, then all
    look-ups of a row happen in one stretch in which no Python code runs, so that a row is read at one moment.
  * What came too late, or failed, is `unavailable`; what is there but past its time `stale`; what the source does not have
    `unknown`. A source never costs the answer.
  * Rankings and staged calls run other code between looking up and reading: their records are copied into the lease.
  * Windows are checked, read and added to in the same stretch; shared ones in one round trip before it. An event that could be
    read is counted when it is observed, whatever becomes of its score.
  * Keys are looked up under the name that they go by at the request's moment; features go on reading the field itself.
Tables are feature_table.pyx, windows windows.pyx, aliases aliases.pyx; who calls this: engine.pyx. Types and ownership: resolve.pxd.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from retailinfer._native.aliases cimport AliasTable
from retailinfer._native.feature_table cimport (
    LruTable, ROW_ABSENT, ROW_EXPIRED, ROW_FRESH, ROW_REFRESH, ROW_UNKNOWN, ri_cell_f32, ri_lru,
    ri_row_cell_expires_ns, ri_row_expires_ns,
    ri_row_text,
)
from retailinfer._native.program cimport (
    Program, RequestReader, RI_NULL, RI_PRESENT, RI_SLOT_F64, RI_SLOT_TEXT, RI_STALE, RI_UNAVAILABLE, RI_UNKNOWN, RowState, ri_slot,
    ri_state,
)
from retailinfer._native.table cimport (
    KeyPart, ri_cell_f64, ri_cell_i64, ri_cell_present, ri_cell_vec, ri_key_compose, ri_key_room, ri_updated_at_ns,
)
from retailinfer._native.tensor_ref cimport StrRef
from retailinfer._native.windows cimport WindowCall, WindowPlan, hash_event_id

from retailinfer.errors import ConfigError, SchemaMismatchError, WouldWait, clip

cdef extern from *:
    """
    #include "lru_table.h"
    /* Rows of several tables on their way into the cache at once, step by step as their addresses become known; hints only. */
    static inline uint32_t ri_ahead_block(const ri_lru *lru, uint64_t hash) {
        const uint64_t slot = lru->slots[ri_lru_hash32(hash) >> lru->slot_shift];
        const uint8_t *block;
        if (slot >> 32 != ri_lru_hash32(hash) || (uint32_t)slot == 0)
            return 0;
        block = (const uint8_t *)ri_lru_block(lru, (uint32_t)slot - 1);
        RI_PREFETCH(block);
        if (lru->record_size + sizeof(ri_row_head) > RI_LINE)
            RI_PREFETCH(block + RI_LINE);
        return (uint32_t)slot;
    }
    static inline void ri_ahead_links(const ri_lru *lru, uint32_t block) {
        RI_PREFETCH(&lru->links[ri_lru_block(lru, block - 1)->row]);
    }
    """
    uint64_t ri_lru_hash(const ri_lru* lru, const char* key, int64_t size)
    void ri_lru_ahead(const ri_lru* lru, uint64_t hash)
    int64_t ri_lru_at_once(const ri_lru* lru)
    uint32_t ri_ahead_block(const ri_lru* lru, uint64_t hash)
    void ri_ahead_links(const ri_lru* lru, uint32_t block)

cdef enum:
    IN_FLIGHT = 8           # tables whose rows are asked for before the first is read
    BLOCK = 4096            # the first block of a lease; larger ones are given back when the call is over
    MAX_KEYS = 16           # parts of a key, as in table.pyx
    MAX_CLOCKS = 8

cdef const char* EMPTY = ""


@cython.final
cdef class LivePlan:
    def __init__(self, str name not None, table not None, int section, tuple keys, tuple wanted, tuple columns, tuple kinds, *,
                 int clock=0):
        cdef int i, n = len(wanted)
        cdef dict schema, ttls
        cdef dict takes = {"float": ("f64", "f32", "i64"), "int": ("i64",), "bool": ("i64",), "timestamp": ("i64",), "str": ("str",),
                           "bytes": ("bytes",), "vector": ("vec",)}
        self.name = name
        self.table = table
        self.core = table.core
        self.section = section
        self.has_source = bool(table.has_source)
        self.stale_for_ns = table.stale_for_ns
        self.clock = clock
        self.n_keys = len(keys)
        self.n_cells = n
        self.keys = <int*>calloc(self.n_keys + 1, sizeof(int))
        self.cells = <LiveCell*>calloc(n + 1, sizeof(LiveCell))
        if self.keys == NULL or self.cells == NULL:
            raise MemoryError()
        if self.n_keys > MAX_KEYS:
            raise SchemaMismatchError(f"Expected a key of at most {MAX_KEYS} parts for table `{name}`, got {self.n_keys}")
        for i in range(self.n_keys):
            self.keys[i] = keys[i]
        schema = {entry[0]: entry for entry in self.core.schema}
        ttls = {entry[0]: ttl for entry, ttl in zip(self.core.schema, self.core.column_ttls_ns)}
        for i in range(n):
            entry = schema.get(columns[i])
            if entry is None:
                raise SchemaMismatchError(
                    f"table `{name}` lacks the column `{columns[i]}` that the features read",
                    hint=f"it has: {', '.join(schema) or 'none'}",
                )
            _, kind, offset, bit, width = entry
            if kind not in takes[kinds[i]]:
                raise SchemaMismatchError(
                    f"Expected column `{name}.{columns[i]}` of type {kinds[i]}, the table has {kind}",
                    hint="declare its kind in FeatureTable(columns=...), or its type in ri.Entity(columns=...)",
                )
            self.cells[i].slot = wanted[i]
            self.cells[i].kind = {"f64": 0, "i64": 1, "str": 2, "bytes": 2, "vec": 3, "f32": 4}[kind]
            self.cells[i].offset = offset
            self.cells[i].bit = bit
            self.cells[i].width = width
            self.cells[i].ttl_ns = ttls[columns[i]]
            self.has_cell_ttl = self.has_cell_ttl or self.cells[i].ttl_ns > 0

    def __dealloc__(self):
        free(self.keys)
        free(self.cells)


@cython.final
cdef class Lease:
    def __dealloc__(self):
        self._free_older()
        free(self.block)
        free(self.key)
        free(self.cross)

    cdef void _free_older(self) noexcept:
        cdef char* before
        while self.older != NULL:
            before = (<char**>self.older)[0]
            free(self.older)
            self.older = before

    cdef void begin(self, bint copy) noexcept:
        """A new call: nothing of the one before is needed any more."""
        self.new_tile()
        self.copy = copy
        self.n_refresh = 0
        self.again = self.timed = False
        self.tables_ns = self.windows_ns = 0
        self.trace = None

    cdef void new_tile(self) noexcept:
        """Copies of earlier rows are not read any more; sources may be asked again."""
        if self.older != NULL:
            self._free_older()
        if self.room > 16 * BLOCK:  # one large call must not keep its memory for ever
            free(self.block)
            self.block = NULL
            self.room = 0
        self.used = sizeof(char*)  # the link to an older block
        self.fetch_again()

    cdef void fetch_again(self) noexcept:
        """Sources may be asked again; copies of earlier rows stay."""
        self.fetched = False
        self.unknown = None

    cdef char* take(self, size_t size) noexcept:
        cdef size_t wanted = (size + 7) & ~<size_t>7
        cdef size_t room
        cdef char* made
        if self.block == NULL or wanted > self.room - self.used:
            room = 2 * self.room if self.room > BLOCK else BLOCK
            while room < wanted + sizeof(char*):
                room *= 2
            made = <char*>malloc(room)
            if made == NULL:
                return NULL
            if self.block != NULL:
                (<char**>self.block)[0] = self.older
                self.older = self.block
            self.block = made
            self.room = room
            self.used = sizeof(char*)
        made = self.block + self.used
        self.used += wanted
        return made

    cdef int key_of(self, const ri_slot* slots, const int* keys, int n_keys, StrRef* out) noexcept:
        """Canonical bytes of a key: 1, or 0 when a part is null, -1 no memory. Valid until the next key or change of slots."""
        cdef KeyPart parts[MAX_KEYS]
        cdef const ri_slot* s
        cdef size_t room = 0
        cdef char* grown
        cdef int i
        for i in range(n_keys):
            if slots[keys[i]].state != RI_PRESENT:
                return 0
        if n_keys == 1:
            s = slots + keys[0]
            if s.kind == RI_SLOT_TEXT:
                out.data = s.v.text
                out.size = s.n
            else:
                out.data = <const char*>&s.v.i
                out.size = 8
            return 1
        for i in range(n_keys):
            s = slots + keys[i]
            if s.kind == RI_SLOT_TEXT:
                parts[i].text.data = s.v.text if s.n else EMPTY  # NULL would mean the number
                parts[i].text.size = s.n
                room += ri_key_room(s.n)
            else:
                parts[i].text.data = NULL
                parts[i].text.size = 0
                parts[i].number = s.v.i
                room += ri_key_room(8)
        if room > self.key_room:
            grown = <char*>realloc(self.key, room)
            if grown == NULL:
                return -1
            self.key = grown
            self.key_room = room
        out.data = self.key
        out.size = ri_key_compose(parts, n_keys, self.key, room)
        return 1

    cdef void note_refresh(self, int plan, StrRef key) noexcept:
        """Remember a key whose row is to be fetched behind the answer; without memory it is not."""
        cdef char* kept
        if self.n_refresh >= MAX_REFRESH:
            return
        kept = self.take(<size_t>key.size + 1)
        if kept == NULL:
            return
        memcpy(kept, key.data, <size_t>key.size)
        self.refresh_plan[self.n_refresh] = plan
        self.refresh_key[self.n_refresh].data = kept
        self.refresh_key[self.n_refresh].size = key.size
        self.n_refresh += 1


    cdef int reserve_cross(self, int64_t cells) except -1:
        """Room for the cells of all candidates of a ranking."""
        if cells > self.cross_room:
            free(self.cross)
            self.cross_room = 0
            self.cross = <ri_slot*>calloc(<size_t>cells, sizeof(ri_slot))
            if self.cross == NULL:
                raise MemoryError()
            self.cross_room = cells
        return 0


cdef int load_row(LivePlan plan, Lease lease, ri_slot* slots, ri_slot* into, const uint8_t* record, int outcome, int absent) noexcept:
    """Stored columns of a record into the row's slots, or one after the other into `into`. -1: no memory.

    absent: the state of what has no record.
    """
    cdef int64_t updated = INT64_MIN, now = lease.now[plan.clock]
    cdef LiveCell* cell
    cdef ri_slot* s
    cdef StrRef text
    cdef char* copied
    cdef size_t size
    cdef int i
    if record != NULL:
        updated = ri_updated_at_ns(record)
        if updated == 0:
            updated = INT64_MIN
    for i in range(plan.n_cells):
        cell = plan.cells + i
        if into == NULL:
            s = slots + cell.slot
        else:
            s = into + i
            s.kind = slots[cell.slot].kind
        s.hashed = 0
        s.calendar = 0
        s.updated_ns = updated
        if record == NULL:
            s.state = <uint8_t>absent
            s.updated_ns = INT64_MAX
            continue
        if not ri_cell_present(record, cell.bit):
            s.state = RI_NULL
            continue
        s.state = RI_STALE if outcome == ROW_EXPIRED else RI_PRESENT
        if cell.ttl_ns and now >= ri_row_cell_expires_ns(record, cell.ttl_ns, plan.core.jitter):
            s.state = RI_STALE
        if cell.kind == 0:
            s.v.f = ri_cell_f64(record, cell.offset)
        elif cell.kind == 4:
            s.v.f = <double>ri_cell_f32(record, cell.offset)
        elif cell.kind == 1:
            if s.kind == RI_SLOT_F64:
                s.v.f = <double>ri_cell_i64(record, cell.offset)
            else:
                s.v.i = ri_cell_i64(record, cell.offset)
        elif cell.kind == 2:
            text = ri_row_text(record, cell.offset)
            if lease.copy:
                copied = lease.take(<size_t>text.size + 1)
                if copied == NULL:
                    return -1
                memcpy(copied, text.data, <size_t>text.size)
                text.data = copied
            s.v.text = text.data
            s.n = text.size
        else:
            s.v.vector = ri_cell_vec(record, cell.offset)
            s.n = cell.width
            if lease.copy:
                size = <size_t>cell.width * sizeof(float)
                copied = lease.take(size)
                if copied == NULL:
                    return -1
                memcpy(copied, s.v.vector, size)
                s.v.vector = <const float*>copied
    return 0


cdef inline bint row_is_old(LivePlan plan, const uint8_t* record, int64_t now) noexcept:
    """Some column that is read is past its own time to live."""
    cdef int i
    for i in range(plan.n_cells):
        if plan.cells[i].ttl_ns and now >= ri_row_cell_expires_ns(record, plan.cells[i].ttl_ns, plan.core.jitter):
            return True
    return False


@cython.final
cdef class Resolver:
    def __init__(self, *, tuple plans, tuple clocks, clock not None, tuple aliases=(), int n_slots=0, tuple windows=(),
                 transport=None, bint can_observe=False):
        cdef LivePlan plan
        cdef int i, k, at = 0
        if len(plans) > MAX_LIVE or len(clocks) > MAX_CLOCKS:
            raise SchemaMismatchError(f"Expected at most {MAX_LIVE} tables on {MAX_CLOCKS} clocks, got {len(plans)}, {len(clocks)}")
        self.plans = plans
        self.clocks = clocks
        self.clock = clock
        self.windows = windows
        self.n_windows = len(windows)
        self.transport = transport
        self.can_observe = can_observe
        self.shared = any([(<WindowPlan?>p).group.shared for p in windows])
        self.context = tuple([p for p in plans if (<LivePlan?>p).section != 2])
        self.cross = tuple([p for p in plans if (<LivePlan>p).section == 2])
        for i in range(len(plans)):
            plan = plans[i]
            plan.number = i
            self.has_sources = self.has_sources or plan.has_source
            if plan.section == 2:
                self.n_cross_cells += plan.n_cells
                self.has_cross_sources = self.has_cross_sources or plan.has_source
        self.waits = self.has_sources or self.shared
        self.n_slots = n_slots
        self.n_aliases = len(aliases)
        self.alias_from = <int*>calloc(self.n_aliases + 1, sizeof(int))
        self.alias_to = <int*>calloc(self.n_aliases + 1, sizeof(int))
        self.cross_slots = <int*>calloc(self.n_cross_cells + 1, sizeof(int))
        if self.alias_from == NULL or self.alias_to == NULL or self.cross_slots == NULL:
            raise MemoryError()
        for plan in self.cross:
            for k in range(plan.n_cells):
                self.cross_slots[at] = plan.cells[k].slot
                at += 1
        self.alias_tables = tuple([<AliasTable?>table for _, table in aliases])
        for i in range(self.n_aliases):
            self.alias_from[i] = aliases[i][0]
            self.alias_to[i] = n_slots + i

    def __dealloc__(self):
        free(self.alias_from)
        free(self.alias_to)
        free(self.cross_slots)

    cdef Lease new_lease(self, RowState state):
        """Memory for calls; `state` gets the slots of renamed keys."""
        cdef Lease lease = Lease.__new__(Lease)
        cdef ri_slot* grown
        lease.begin(False)
        lease.calls = [(<WindowPlan>plan).new_call() for plan in self.windows]
        if self.n_aliases:
            grown = <ri_slot*>realloc(state.st.slots, (self.n_slots + self.n_aliases + 1) * sizeof(ri_slot))
            if grown == NULL:
                raise MemoryError()
            state.st.slots = grown
            memset(grown + self.n_slots, 0, (self.n_aliases + 1) * sizeof(ri_slot))
        return lease

    # ---- aliases -----------------------------------------------------------------------------------------------------------

    cdef int rename(self, Lease lease, ri_state* st, int64_t at_ns) except -1:
        """Key fields -> the slots that look-ups read. Runs Python code where a key goes by another name."""
        cdef AliasTable table
        cdef ri_slot* raw
        cdef ri_slot* key
        cdef StrRef found
        cdef char* kept
        cdef int i, hops
        lease.trace = None
        for i in range(self.n_aliases):
            raw = st.slots + self.alias_from[i]
            key = st.slots + self.alias_to[i]
            key[0] = raw[0]
            if raw.state != RI_PRESENT:
                continue
            table = <AliasTable>self.alias_tables[i]
            hops = 0
            if raw.kind == RI_SLOT_TEXT:
                found = table.resolve(raw.v.text, raw.n, at_ns, &hops)
            else:
                found = table.resolve(<const char*>&raw.v.i, 8, at_ns, &hops)
            if hops == 0:
                continue
            key.hashed = 0
            if raw.kind == RI_SLOT_TEXT:
                kept = lease.take(<size_t>found.size + 1)
                if kept == NULL:
                    raise MemoryError()
                memcpy(kept, found.data, <size_t>found.size)
                key.v.text = kept
                key.n = found.size
                chain = table.chain_of(raw.v.text, raw.n, at_ns)
            else:
                memcpy(&key.v.i, found.data, 8)
                chain = table.chain_of(<const char*>&raw.v.i, 8, at_ns)
            if lease.trace is None:
                lease.trace = []
            lease.trace.append(f"{table.name}: {' -> '.join([shown(part) for part in chain])}")
        return 0

    # ---- tables --------------------------------------------------------------------------------------------------------------

    cdef int read_clocks(self, Lease lease) except -1:
        """The monotonic time of each table's clock, once per look-up: the last Python code before it."""
        cdef int i
        for i in range(len(self.clocks)):
            lease.now[i] = self.clocks[i].monotonic_ns()
        return 0

    cdef int probe(self, Lease lease, ri_state* st, tuple plans) noexcept:
        """Rows of the plans into the slots. How many tables would have to ask their source first; -1: no memory.

        After `lease.fetched` nothing is wanted any more. Runs no Python code.
        """
        cdef LivePlan plan
        cdef StrRef key
        cdef const uint8_t* record
        cdef int64_t now
        cdef int outcome, known, absent, wanted = 0
        cdef uint64_t hashes[IN_FLIGHT]
        cdef uint32_t blocks[IN_FLIGHT]
        cdef int i, n = <int>len(plans)
        if n > IN_FLIGHT:
            n = IN_FLIGHT
        if n > 1:
            for i in range(n):  # keys of one field; those of several are put together in memory that they share
                plan = plans[i]
                blocks[i] = plan.n_keys == 1 and lease.key_of(st.slots, plan.keys, 1, &key) > 0
                if blocks[i]:
                    hashes[i] = ri_lru_hash(plan.core.rows, key.data, key.size)
                    ri_lru_ahead(plan.core.rows, hashes[i])
            for i in range(n):
                if blocks[i]:
                    blocks[i] = ri_ahead_block((<LivePlan>plans[i]).core.rows, hashes[i])
            for i in range(n):
                if blocks[i]:
                    ri_ahead_links((<LivePlan>plans[i]).core.rows, blocks[i])
        for plan in plans:
            lease.wanted[plan.number] = 0
            known = lease.key_of(st.slots, plan.keys, plan.n_keys, &key)
            if known <= 0:
                if known < 0 or load_row(plan, lease, st.slots, NULL, NULL, ROW_UNKNOWN, RI_UNKNOWN):
                    return -1
                continue
            now = lease.now[plan.clock]
            record = plan.core.probe(key.data, key.size, now, &outcome)
            if lease.again:
                self.uncount(plan, outcome)
            if plan.has_source and outcome != ROW_FRESH and outcome != ROW_UNKNOWN:
                if outcome == ROW_REFRESH or (outcome == ROW_EXPIRED and now - ri_row_expires_ns(record) < plan.stale_for_ns):
                    lease.note_refresh(plan.number, key)
                elif not lease.fetched:
                    lease.wanted[plan.number] = 1
                    wanted += 1
                    continue
            elif plan.has_source and plan.has_cell_ttl and outcome == ROW_FRESH and not lease.fetched \
                    and row_is_old(plan, record, now):
                lease.wanted[plan.number] = 1
                wanted += 1
                continue
            absent = RI_UNKNOWN
            if plan.has_source and outcome == ROW_ABSENT and not self.said_unknown(lease, plan, key):
                absent = RI_UNAVAILABLE
            if load_row(plan, lease, st.slots, NULL, record, outcome, absent):
                return -1
        lease.again = False
        return wanted

    cdef void uncount(self, LivePlan plan, int outcome) noexcept:
        """Looking again after a fetch is no second use: the first look is what is counted, as the miss that it was."""
        if outcome == ROW_ABSENT:
            plan.core.rows.counts.misses -= 1
        elif outcome == ROW_EXPIRED:
            plan.core.rows.counts.expired -= 1
        elif outcome == ROW_UNKNOWN:
            if plan.core.unknown != NULL and plan.core.unknown.counts.hits:
                plan.core.unknown.counts.hits -= 1
        elif plan.core.rows.counts.hits:
            plan.core.rows.counts.hits -= 1

    cdef void note_late(self, Lease lease, LivePlan plan, dict keys) noexcept:
        """Keys of many rows that were fetched: each was a miss, and its coming look-up is not to count as a hit."""
        cdef bytes key
        cdef int state
        for key in keys.values():
            state = plan.core.state(PyBytes_AS_STRING(key), len(key), lease.now[plan.clock])
            if state == ROW_FRESH:
                lease.late_hits[plan.number] += 1
            elif state == ROW_UNKNOWN:
                lease.late_unknown[plan.number] += 1
            else:
                continue
            plan.core.rows.counts.misses += 1
            lease.late = True

    cdef void settle(self, Lease lease) noexcept:
        """The look-ups that `note_late` spoke of have happened."""
        cdef LivePlan plan
        if not lease.late:
            return
        lease.late = False
        for plan in self.plans:
            if plan.core.rows.counts.hits >= <uint64_t>lease.late_hits[plan.number]:
                plan.core.rows.counts.hits -= <uint64_t>lease.late_hits[plan.number]
            if plan.core.unknown != NULL and plan.core.unknown.counts.hits >= <uint64_t>lease.late_unknown[plan.number]:
                plan.core.unknown.counts.hits -= <uint64_t>lease.late_unknown[plan.number]
            lease.late_hits[plan.number] = lease.late_unknown[plan.number] = 0

    cdef int probe_cross(self, Lease lease, ri_state* st, ri_slot* into) noexcept:
        """The cells of one candidate, one plan after the other. -1: no memory. Runs no Python code."""
        cdef LivePlan plan
        cdef StrRef key
        cdef const uint8_t* record
        cdef int64_t now
        cdef int outcome, known, absent
        for plan in self.cross:
            known = lease.key_of(st.slots, plan.keys, plan.n_keys, &key)
            if known < 0:
                return -1
            record, outcome, absent = NULL, ROW_UNKNOWN, RI_UNKNOWN
            if known:
                now = lease.now[plan.clock]
                record = plan.core.probe(key.data, key.size, now, &outcome)
                if plan.has_source and (outcome == ROW_REFRESH
                                        or (outcome == ROW_EXPIRED and now - ri_row_expires_ns(record) < plan.stale_for_ns)):
                    lease.note_refresh(plan.number, key)
                if plan.has_source and outcome == ROW_ABSENT and not self.said_unknown(lease, plan, key):
                    absent = RI_UNAVAILABLE
            if load_row(plan, lease, st.slots, into, record, outcome, absent):
                return -1
            into += plan.n_cells
        return 0

    cdef bint said_unknown(self, Lease lease, LivePlan plan, StrRef key) noexcept:
        """The source said in this call that there is no such entity, and the table has no room to remember that."""
        cdef set keys
        if lease.unknown is None:
            return False
        keys = lease.unknown.get(plan.number)
        return keys is not None and PyBytes_FromStringAndSize(key.data, key.size) in keys

    cdef int fetch_row(self, Lease lease, ri_state* st, tuple plans, const CallOptions* options) except -1:
        """Ask the sources of the tables that `probe` marked for the keys of this row; wait for them within the deadline."""
        cdef LivePlan plan
        cdef StrRef key
        cdef dict missing = {}
        for plan in plans:
            if lease.wanted[plan.number] and lease.key_of(st.slots, plan.keys, plan.n_keys, &key) > 0:
                kept = PyBytes_FromStringAndSize(key.data, key.size)
                missing[plan.number] = {plan.core.key_object(key.data, key.size): kept}
        if not options.may_wait:  # the call that may wait counts these look-ups anew
            for plan in plans:
                if lease.key_of(st.slots, plan.keys, plan.n_keys, &key) > 0:
                    self.uncount(plan, plan.core.state(key.data, key.size, lease.now[plan.clock]))
            raise WouldWait
        self.fetch(lease, missing, options, False)
        lease.again = True
        return 0

    cdef int64_t at_once(self, int64_t most) noexcept:
        """How many rows may be fetched before the first of them is read: a small table has no room for more."""
        cdef LivePlan plan
        for plan in self.plans:
            if plan.has_source:
                most = min(most, ri_lru_at_once(plan.core.rows))
        return most

    cdef int note_missing(self, Lease lease, ri_state* st, tuple plans, dict missing) except -1:
        """Collect, for one row of many, the keys that a source would have to be asked for: number of the plan -> keys."""
        cdef LivePlan plan
        cdef StrRef key
        for plan in plans:
            if plan.has_source and lease.key_of(st.slots, plan.keys, plan.n_keys, &key) > 0 \
                    and self.is_missing(lease, plan, key):
                found = missing.get(plan.number)
                if found is None:
                    found = missing[plan.number] = {}
                kept = PyBytes_FromStringAndSize(key.data, key.size)
                found[plan.core.key_object(key.data, key.size)] = kept
        return 0

    cdef bint is_missing(self, Lease lease, LivePlan plan, StrRef key) noexcept:
        """Nothing that may be served is in memory. Counts nothing unless the row's age has to be looked at."""
        cdef int64_t now = lease.now[plan.clock]
        cdef int outcome = plan.core.state(key.data, key.size, now)
        cdef const uint8_t* record
        if outcome == ROW_ABSENT:
            return True
        if outcome == ROW_UNKNOWN or (outcome != ROW_EXPIRED and not plan.has_cell_ttl):
            return False
        if outcome == ROW_EXPIRED and plan.stale_for_ns == 0:
            return True
        record = plan.core.probe(key.data, key.size, now, &outcome)
        if record == NULL:
            return outcome == ROW_ABSENT
        if outcome == ROW_REFRESH:  # said once, and the look-up that follows would not hear it
            lease.note_refresh(plan.number, key)
        if outcome == ROW_EXPIRED:
            return now - ri_row_expires_ns(record) >= plan.stale_for_ns
        return row_is_old(plan, record, now)

    cdef int fetch(self, Lease lease, dict missing, const CallOptions* options, bint many) except -1:
        """Wait for the sources of several tables, one deadline for all. What they had is what `probe` finds afterwards.

        missing: number of the plan -> {key: canonical bytes}. Nothing is wanted any more in this call, or tile.
        """
        cdef LivePlan plan
        cdef dict keys
        cdef int64_t left, wait
        if missing and not options.may_wait:
            raise WouldWait
        if not options.may_ask:
            missing = {}
        for number in missing:
            plan = self.plans[number]
            keys = missing[number]
            left = options.end_ns - <int64_t>self.clock.monotonic_ns()
            wait = plan.table.wait_ns(left if left > 0 else 0)
            unknown = plan.table.fetch(list(keys), wait / 1e9)
            if unknown:
                if lease.unknown is None:
                    lease.unknown = {}
                lease.unknown[number] = {keys[key] for key in unknown}
            if many:
                self.note_late(lease, plan, keys)
        lease.fetched = True
        return 0

    cdef int refresh(self, Lease lease) except -1:
        """Rows that are served while they are fetched anew: told to their tables once the answer needs nothing of them."""
        cdef LivePlan plan
        cdef int i, n = lease.n_refresh
        cdef list keys = []
        lease.n_refresh = 0
        for i in range(n):  # all of them first: what a table does may use the lease's memory again
            plan = self.plans[lease.refresh_plan[i]]
            keys.append((plan.table, plan.core.key_object(lease.refresh_key[i].data, lease.refresh_key[i].size)))
        for table, key in keys:
            table.refresh(key)
        return 0


    # ---- windows -------------------------------------------------------------------------------------------------------------

    cdef int check_event(self, CallOptions* options, bint observe, object event_id) except -1:
        """What a call says of its request as an event."""
        options.observe = observe
        options.event_hash = 0
        if (observe or event_id is not None) and not self.can_observe:
            raise ConfigError(
                "the requests of these features are no events that windows count",
                hint='declare them: streams={"payment": None}; events of other streams go to scorer.observe(stream, event)',
            )
        if event_id is not None:
            options.event_hash = hash_event_id(event_id)
        return 0

    cdef int prepare_windows(self, Lease lease, ri_state* st, int64_t at_ns, const CallOptions* options, int64_t row) except -1:
        """Check all there is to check of the event, before anything is read or added."""
        cdef int i
        for i in range(self.n_windows):
            if (<WindowPlan>self.windows[i]).prepare(<WindowCall>lease.calls[i], st, at_ns, options.now_ns, options.event_hash):
                (<WindowPlan>self.windows[i]).fail(<WindowCall>lease.calls[i], row)
            if options.is_told:
                (<WindowCall>lease.calls[i]).c.sweep_ns = 0
        return 0

    cdef void use_windows(self, Lease lease, ri_state* st, bint observe) noexcept:
        """Windows of this process: all read, then all added to. After `prepare_windows`, with no Python code in between."""
        cdef int i
        for i in range(self.n_windows):
            (<WindowPlan>self.windows[i]).read(<WindowCall>lease.calls[i], st)
        if observe:
            for i in range(self.n_windows):
                (<WindowPlan>self.windows[i]).add(<WindowCall>lease.calls[i])

    cdef int use_shared(self, Lease lease, ri_state* st, const CallOptions* options) except -1:
        """Windows elsewhere: one round trip for all of them. A backend that fails costs the values, not the answer."""
        cdef WindowPlan plan
        cdef WindowCall call
        cdef int64_t left
        cdef int i
        cdef list wanted = [], numbers = []
        if not options.may_wait:
            raise WouldWait
        for i in range(self.n_windows):
            plan, call = <WindowPlan>self.windows[i], <WindowCall>lease.calls[i]
            asked = plan.remote_call(call, options.observe)
            if asked is None:
                plan.read(call, st)
            elif not options.may_ask:
                plan.unavailable(st)
            else:
                wanted.append(asked)
                numbers.append(i)
        if not wanted:
            return 0
        left = options.end_ns - <int64_t>self.clock.monotonic_ns()
        values = self.transport.exchange(wanted, add=options.observe, timeout_s=left / 1e9 if left > 0 else 0.0)
        for at, i in enumerate(numbers):
            plan, call = <WindowPlan>self.windows[i], <WindowCall>lease.calls[i]
            if values is None or values[at] is False:
                plan.unavailable(st)
                continue
            try:
                plan.remote_read(call, st, values[at])
            except ValueError:
                self.transport.malformed()
                plan.unavailable(st)
        return 0


@cython.final
cdef class Observer:
    def __init__(self, *, str stream not None, Program program not None, RequestReader reader not None, Resolver resolver not None,
                 clock not None, int64_t budget_ns):
        self.stream = stream
        self.program = program
        self.reader = reader
        self.resolver = resolver
        self.clock = clock
        self.budget_ns = budget_ns
        self.pool = []
        reader.keeps_texts = True

    def observe(self, event, event_id=None, int64_t now_ns=0, int64_t budget_ns=0, bint may_wait=True, int64_t row=-1):
        """Count one event in the windows that count its stream."""
        cdef RowState state
        cdef Lease lease
        cdef CallOptions options
        cdef int64_t at_ns
        cdef Resolver resolver = self.resolver
        if self.pool:
            state, lease = self.pool.pop()
        else:
            state = self.program.new_state()
            lease = resolver.new_lease(state)
        try:
            resolver.check_event(&options, True, event_id)
            options.may_wait = may_wait
            options.may_ask = True
            options.now_ns = now_ns if now_ns else self.clock.wall_ns()
            options.is_told = now_ns != 0
            options.end_ns = <int64_t>self.clock.monotonic_ns() + (budget_ns if budget_ns else self.budget_ns)
            lease.begin(True)
            self.reader.read(event, state, row)
            at_ns = options.now_ns
            if self.program.event_slot >= 0 and state.st.slots[self.program.event_slot].state == RI_PRESENT:
                at_ns = state.st.slots[self.program.event_slot].v.i
            if resolver.n_aliases:
                resolver.rename(lease, &state.st, at_ns)
            resolver.prepare_windows(lease, &state.st, at_ns, &options, row)
            if resolver.shared:
                resolver.use_shared(lease, &state.st, &options)
            else:
                resolver.use_windows(lease, &state.st, True)
        finally:
            state.release()
            if len(self.pool) < 8:
                self.pool.append((state, lease))


cdef str shown(object key):
    """A key in a trace: itself while it is short."""
    return key if type(key) is str and len(key) <= 64 else clip(key, 64)
