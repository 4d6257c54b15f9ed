"""Types of admission: what is known of a call from its beginning to its end, how long stages take, who may work at once.

The functions that every call runs stand here, so that engine.pyx inlines them. Rules: admission.pyx; for Python: admission.pyi.
"""
from libc.stdint cimport int64_t, uint32_t

cdef enum:
    N_PRIORITIES = 4
    PRIORITY_CRITICAL = 0


cdef extern from "admission.h" nogil:
    ctypedef struct ri_stage:
        int64_t p99_ns
        uint32_t n
        int64_t total
        int64_t predicted_ns

    int64_t ri_monotonic_ns()
    int64_t ri_wall_ns()
    int64_t ri_wall_at(int64_t monotonic_ns)
    void ri_stage_note(ri_stage* stage, int64_t ns)
    void ri_stage_ease(ri_stage* stage)
    void ri_stage_forget(ri_stage* stage)
    void ri_stage_predict(ri_stage* stage, int64_t ns)
    void ri_stage_renew(ri_stage* stage)


ctypedef struct Call:           # one call of the engine, on its caller's stack
    int64_t start_ns            # monotonic; only where `timed`
    int64_t end_ns              # monotonic: later is too late
    int64_t waited_ns           # of it, for sources and shared windows
    int64_t wait_start_ns
    int64_t permit              # generation in which a permit is held; 0: none is
    int64_t waiting             # generation in which it waits without one; 0: it does not
    ri_stage* stage             # how long such calls take, waiting apart; NULL: not known yet
    int code                    # of its priority
    bint timed                  # somebody needs to know when it began
    bint is_probe               # let through although time seemed short


cdef class StageClock:
    cdef:
        readonly str name
        ri_stage c


cdef class Permits:
    cdef:
        readonly int64_t limit
        readonly int64_t max_waiting
        readonly int64_t in_flight
        readonly int64_t waiting
        readonly bint shedding          # somebody was refused within the last second
        int64_t limits[N_PRIORITIES]
        int64_t n_admitted[N_PRIORITIES]
        int64_t n_rejected[N_PRIORITIES]
        int64_t generation              # no other Permits have it, and another one in every child: see `permit_leave`
        int64_t pid
        int64_t refused_ns              # when somebody was refused last
        object clock
        object random
        object on_change
        object __weakref__
    cdef int64_t refuse(self, int code) except -1
    cdef int turn_away(self, int code, str message, str why) except -1
    cdef int calm(self) except -1
    cdef int change(self, bint shedding, str why) except -1


cdef int priority_code(object priority) except -1

cdef object CRITICAL            # the text, interned: compare with `is` first


cdef inline int64_t permit_enter(Permits permits, int code) except -1:
    """A permit, or OverloadedError. Returns what `permit_leave` wants back."""
    if permits.shedding:
        permits.calm()
    if permits.in_flight >= permits.limits[code]:
        permits.refuse(code)  # raises, but in a child of a raw fork
    permits.in_flight += 1
    permits.n_admitted[code] += 1
    return permits.generation


cdef inline void permit_leave(Permits permits, int64_t generation) noexcept:
    """Give a permit back; nothing happens where it was taken before a fork, or of others."""
    if generation == permits.generation:
        permits.in_flight -= 1


cdef inline int64_t permit_start_waiting(Permits permits, int64_t generation) noexcept:
    """Give a permit back for as long as its call waits; 0: so many wait already that this one must not."""
    if permits.waiting >= permits.max_waiting:
        return 0
    permit_leave(permits, generation)
    permits.waiting += 1
    return permits.generation


cdef inline int64_t permit_stop_waiting(Permits permits, int64_t generation) noexcept:
    """Work goes on. Never refused: what was begun is only counted."""
    if generation == permits.generation:
        permits.waiting -= 1
    permits.in_flight += 1
    return permits.generation
