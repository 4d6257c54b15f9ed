"""Types of what a call looks up beyond snapshots: mutable tables, aliases, windows. How: resolve.pyx; for Python: resolve.pyi.

Who owns what: a Resolver is built once per release and never changes. A Lease is the memory of one call, kept by its workspace;
what slots point to after a look-up is a record (until the GIL is given up or any Python code runs) or, with `copy`, the lease's
own memory (until `begin`, or `new_tile` in a batch).
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from retailinfer._native.aliases cimport AliasTable
from retailinfer._native.feature_table cimport LruTable
from retailinfer._native.program cimport Program, RequestReader, RowState, ri_slot, ri_state
from retailinfer._native.tensor_ref cimport StrRef
from retailinfer._native.windows cimport WindowPlan

cdef enum:
    MAX_REFRESH = 64        # keys of one call that are refreshed behind it; the next call names the others
    MAX_LIVE = 64           # tables of one release


ctypedef struct CallOptions:    # what a call brings beside its request
    int64_t now_ns              # wall clock; 0: ask it
    bint is_told                # by the caller, who may be wrong: nothing is given up because of it
    int64_t end_ns              # monotonic: nobody waits beyond it
    uint64_t event_hash         # 0: the event has no id
    bint observe                # add the request to its windows
    bint may_wait               # False: WouldWait instead
    bint may_ask                # False: so many calls wait already that what is missing is unavailable
    bint counted                # the event is in its windows, or was sent to them


ctypedef struct LiveCell:       # one stored column -> its slot
    int32_t slot
    int32_t kind                # of the cell: 0 f64, 1 i64, 2 text, 3 vector, 4 f32
    int64_t bit
    size_t offset
    int64_t width
    int64_t ttl_ns              # of this column; 0: the row's alone


cdef class LivePlan:
    """How one entity's stored columns get from a mutable table into slots. Immutable."""
    cdef:
        readonly str name
        readonly object table         # the public FeatureTable: whom to ask for what is missing
        LruTable core
        readonly int section          # 0 context, 1 item, 2 cross
        readonly bint has_source
        int number                    # among the resolver's plans
        int clock                     # number of the table's clock
        int64_t stale_for_ns          # how long after its expiry a row is served while it is fetched anew
        bint has_cell_ttl
        int n_keys
        int* keys                     # slots
        int n_cells
        LiveCell* cells


cdef class Lease:
    """Memory of one call for what its keys lead to."""
    cdef:
        char* block                   # where texts and vectors are copied to, newest block
        size_t room
        size_t used
        char* older                   # full blocks: each begins with the pointer to the one before it
        char* key                     # a composed key
        size_t key_room
        bint copy                     # records are copied: other code runs before they are read
        bint fetched                  # sources were asked: what is missing now stays so
        bint again                    # the next probe repeats one that was counted
        bint timed                    # a staged call
        int64_t late_hits[MAX_LIVE]   # by plan: rows that were fetched and will be counted as if they had been there
        int64_t late_unknown[MAX_LIVE]
        bint late
        int64_t now[8]                # monotonic, by clock
        uint8_t wanted[MAX_LIVE]      # by plan: the last probe found nothing that may be served
        int n_refresh
        int refresh_plan[MAX_REFRESH]
        StrRef refresh_key[MAX_REFRESH]
        list trace                    # None: no key was renamed
        dict unknown                  # plan number -> canonical keys that a source, just now, said it does not have; None: none
        list calls                    # WindowCall, by plan
        ri_slot* cross                # (candidates, cells of the cross plans) slots as they will be
        int64_t cross_room            # in slots
        int64_t tables_ns             # of a staged call
        int64_t windows_ns

    cdef void _free_older(self) noexcept
    cdef void begin(self, bint copy) noexcept
    cdef void new_tile(self) noexcept
    cdef void fetch_again(self) noexcept
    cdef char* take(self, size_t size) noexcept              # 8-aligned; NULL: no memory
    cdef int key_of(self, const ri_slot* slots, const int* keys, int n_keys, StrRef* out) noexcept
    cdef void note_refresh(self, int plan, StrRef key) noexcept
    cdef int reserve_cross(self, int64_t cells) except -1


cdef class Resolver:
    cdef:
        tuple context                 # LivePlan: of requests, and of a ranking's context
        tuple cross                   # LivePlan: of context and candidate
        tuple plans                   # all of them, by number
        readonly bint has_sources
        readonly bint has_cross_sources
        int n_cross_cells
        int* cross_slots              # of the cells in `Lease.cross`, one candidate after the other
        tuple clocks                  # of the tables
        object clock                  # of calls: deadlines and the time that windows take for now
        tuple windows                 # WindowPlan: read by every request; added to when it is observed
        readonly int n_windows
        readonly bint shared          # the windows' state is elsewhere: reading them is a round trip
        readonly object transport     # who makes it
        readonly bint can_observe     # the requests are a stream of events
        readonly bint waits           # a call may have to wait for a source or a round trip
        tuple alias_tables
        int* alias_from               # slot of the field
        int* alias_to                 # slot behind the program's, which look-ups read
        readonly int n_aliases
        readonly int n_slots          # of the program, without those of aliases

    cdef Lease new_lease(self, RowState state)
    cdef int rename(self, Lease lease, ri_state* st, int64_t at_ns) except -1
    cdef int read_clocks(self, Lease lease) except -1
    cdef int64_t at_once(self, int64_t most) noexcept
    cdef int probe(self, Lease lease, ri_state* st, tuple plans) noexcept
    cdef int probe_cross(self, Lease lease, ri_state* st, ri_slot* into) noexcept
    cdef int fetch_row(self, Lease lease, ri_state* st, tuple plans, const CallOptions* options) except -1
    cdef int note_missing(self, Lease lease, ri_state* st, tuple plans, dict missing) except -1
    cdef void uncount(self, LivePlan plan, int outcome) noexcept
    cdef void note_late(self, Lease lease, LivePlan plan, dict keys) noexcept
    cdef void settle(self, Lease lease) noexcept
    cdef bint is_missing(self, Lease lease, LivePlan plan, StrRef key) noexcept
    cdef int fetch(self, Lease lease, dict missing, const CallOptions* options, bint many) except -1
    cdef bint said_unknown(self, Lease lease, LivePlan plan, StrRef key) noexcept
    cdef int check_event(self, CallOptions* options, bint observe, object event_id) except -1
    cdef int prepare_windows(self, Lease lease, ri_state* st, int64_t at_ns, const CallOptions* options, int64_t row) except -1
    cdef void use_windows(self, Lease lease, ri_state* st, bint observe) noexcept
    cdef int use_shared(self, Lease lease, ri_state* st, const CallOptions* options) except -1
    cdef int refresh(self, Lease lease) except -1


cdef class Observer:
    """Events of one stream -> windows, without a score."""
    cdef:
        readonly str stream
        readonly Program program
        readonly RequestReader reader
        readonly Resolver resolver
        object clock
        int64_t budget_ns
        list pool                     # (RowState, Lease)
