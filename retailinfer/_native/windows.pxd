"""Types of the velocity windows: groups (state), plans (what a spec does with it), calls (memory of one request). C side: panes.h.

How a request uses them, all under the GIL and without any Python code between the steps:
    for each plan: code = plan.prepare(call, st, at_ns, now_ns, event_hash);  if code: plan.fail(call, row)   # raises
    for each plan: plan.read(call, st)          # window slots, with this event where the window says include
    for each plan: plan.add(call)               # only when the event is observed
One `WindowCall` per plan and workspace (`plan.new_call()`): plans are shared, calls are not. A call may be used again at once.
Over a shared backend (`plan.group.shared`): prepare, then `remote_call`, one round trip for all plans, then `remote_read`.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from retailinfer._native.hashing cimport ri_siphash_key
from retailinfer._native.program cimport Program, RowState, ri_state, ri_text, ri_zone


cdef extern from "panes.h" nogil:
    ctypedef struct ri_accumulator:
        int64_t pane_ns
        int64_t since_ns
        int64_t deep_since_ns
        int32_t keep
        int32_t first_keep
        uint8_t kind
        uint8_t calendar
        uint8_t used

    ctypedef struct ri_windows:
        pass

    ctypedef struct ri_term:
        int32_t slot
        int32_t op
        int32_t kind
        double number
        int64_t integer
        ri_text text

    ctypedef struct ri_window_add:
        int32_t acc
        int32_t of
        int32_t first_term
        int32_t n_terms
        double scale

    ctypedef struct ri_window_read:
        int32_t slot
        int32_t acc
        int32_t what
        int32_t add
        int32_t n
        int32_t keep
        int32_t lag
        int32_t with_event
        int64_t delay_ns
        double scale

    ctypedef struct ri_window_plan:
        const int32_t* keys
        int32_t n_keys
        const int32_t* accs
        int32_t n_accs
        const ri_window_add* adds
        int32_t n_adds
        const ri_window_read* reads
        int32_t n_reads
        const ri_term* terms
        ri_zone zone
        int32_t ids

    ctypedef struct ri_section:
        uint32_t offset
        uint32_t count

    ctypedef struct ri_window_input:
        int64_t value
        uint32_t hash
        uint8_t applies

    ctypedef struct ri_window_call:
        ri_text key
        char* scratch
        size_t room
        int64_t at_ns
        int64_t now_ns
        int64_t sweep_ns
        int64_t offset_s
        uint64_t event_hash
        uint32_t place
        uint32_t hash
        int64_t version
        int32_t error
        int32_t error_slot
        double error_value
        uint8_t known
        uint8_t duplicate
        uint8_t ahead
        uint8_t ready
        uint8_t suspect
        ri_section* sections
        int64_t* panes
        ri_window_input* inputs
        ri_section ring


cdef class WindowGroup:
    """State of one kind of entity. `shared`: the state is elsewhere, this one only knows the accumulators."""
    cdef:
        ri_windows* w
        readonly str name
        readonly object key_kind          # "str" | "int" | "bytes" | tuple of them
        readonly bint shared
        readonly int64_t max_entities
        readonly int64_t max_bytes
        readonly int64_t max_ahead_ns
        readonly object clock             # wall_ns()
        dict numbers                      # digest -> number of the accumulator
        list digests                      # and back
        ri_siphash_key hash_key
        object __weakref__

    cdef ri_windows* _new_state(self) except NULL
    cdef ri_accumulator* _accumulator(self, object digest) except NULL


cdef class WindowCall:
    """Memory of one plan for one call at a time."""
    cdef:
        ri_window_call c
        object plan                       # whose sizes the arrays have


cdef class WindowPlan:
    """What one event stream does with one group: keys, what to add, what to read. Immutable."""
    cdef:
        ri_window_plan c
        readonly WindowGroup group
        readonly Program program          # its zone, the names of its slots
        readonly str stream
        readonly tuple slots              # that `read` fills
        tuple owned                       # texts that `c` points into
        void* memory                      # what `c` points into
        uint64_t* digests                 # first bytes of the accumulators' digests, then of the ring's; for shared state
        RowState spare_state              # for `run`
        WindowCall spare_call

    cdef WindowCall new_call(self)
    # Key, values and overflow of one event, before anything changes. 0, or an error for `fail`. at_ns: the event's time.
    # now_ns: the store's clock (0: none, nothing is ahead of it). event_hash: windows.event_hash of its id, 0 = has none.
    # The slots of keys must stay as they are until the last step.
    cdef int prepare(self, WindowCall call, ri_state* st, int64_t at_ns, int64_t now_ns, uint64_t event_hash) noexcept
    # Window slots of `st` as of the event, before it is added. UNKNOWN without a key, STALE where it does not cover its time.
    cdef void read(self, WindowCall call, ri_state* st) noexcept
    # Add what `prepare` checked. Does nothing for a duplicate, a late event, a missing key.
    cdef void add(self, WindowCall call) noexcept
    # Raise what `prepare` found (FeatureRangeError at the slot's path; row >= 0 goes into it).
    cdef int fail(self, WindowCall call, int64_t row) except -1
    # Shared state: (entity, canonical key, operations) for the transport; None where there is no key (then call `read`).
    cdef object remote_call(self, WindowCall call, bint add)
    # Window slots from the entity's value as it was before the add: bytes, or None if there was none. Raises ValueError for
    # what is no value, FeatureRangeError for a sum that overflows (nothing of the request was added then); no slot has changed.
    cdef int remote_read(self, WindowCall call, ri_state* st, object value) except -1
    # All window slots UNAVAILABLE.
    cdef void unavailable(self, ri_state* st) noexcept

    # For windows.pyx alone.
    cdef RowState _fill(self, dict values)
    cdef list _out(self, ri_state* st)
    cdef int _term(self, Program program, ri_term* term, object slot, object op, object constant, list owned) except -1


# xxh64 of an event id's canonical bytes, never 0. str, bytes or int; else FeatureTypeError.
cdef uint64_t hash_event_id(object event_id) except 0
