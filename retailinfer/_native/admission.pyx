"""Who may begin a piece of work: how long it takes lately against the time that is left, and how many are at it already.

Rules:
  * Time is a question before the work, not a knife during it: nothing that has begun is stopped.
  * A permit is held while a call uses the processor. Who waits for a source or a round trip holds none, and takes it again
    without being refused; a cap of its own bounds how many may wait.
  * There is no queue. Who is refused learns it at once, by an error that says when to come back.
  * All of it is plain integers under the GIL: there is no lock that a fork could leave closed. A child begins with nobody at
    work; permits that were taken before the fork are not given back in it.
Types, and what every call runs: admission.pxd. Who asks: engine.pyx.
"""
cimport cython
from libc.stdint cimport int64_t

import os

from retailinfer.errors import ConfigError, OverloadedError, clip

cdef object CRITICAL = "critical"
PRIORITIES = (CRITICAL, "sheddable", "batch", "shadow")

cdef dict _CODES = {name: code for code, name in enumerate(PRIORITIES)}
cdef enum:
    CALM_AFTER_NS = 1_000_000_000
cdef int64_t last_generation = 0  # of any Permits: a permit is given back to those that it was taken of, or to nobody
cdef tuple _PERCENT = (100, 80, 60, 60)  # of the limit, by priority


cdef int priority_code(object priority) except -1:
    found = _CODES.get(priority) if type(priority) is str else None
    if found is None:
        raise ConfigError(f"Expected a priority of {', '.join(PRIORITIES)}, got {clip(priority)}")
    return found


@cython.final
cdef class StageClock:
    def __init__(self, str name not None, int64_t predicted_ns=0):
        self.name = name
        ri_stage_predict(&self.c, predicted_ns)

    def note(self, int64_t ns):
        ri_stage_note(&self.c, ns)

    def predict(self, int64_t ns):
        ri_stage_predict(&self.c, ns)

    def ease(self):
        ri_stage_ease(&self.c)

    def forget(self):
        ri_stage_forget(&self.c)

    @property
    def p99_ns(self):
        ri_stage_renew(&self.c)
        return self.c.p99_ns

    @property
    def n(self):
        ri_stage_renew(&self.c)
        return self.c.total

    def __repr__(self):
        return f"<StageClock {self.name}: p99 {self.p99_ns / 1e3:.3g} us of {self.n}>"


@cython.final
cdef class Permits:
    def __init__(self, int64_t limit, *, int64_t max_waiting=64, clock not None, random=None):
        cdef int i
        if not 1 <= limit <= 1 << 30:
            raise ConfigError(f"Expected a limit of calls under way from 1 to {1 << 30}, got {limit}")
        if not 0 <= max_waiting <= 1 << 30:
            raise ConfigError(f"Expected max_waiting from 0 to {1 << 30}, got {max_waiting}")
        self.limit = limit
        self.max_waiting = max_waiting
        self.clock = clock
        self.random = random
        for i in range(N_PRIORITIES):
            self.limits[i] = max(1, limit * <int64_t>_PERCENT[i] // 100)
        self.begin_in_child()

    def begin_in_child(self):
        cdef int i
        global last_generation
        last_generation += 1
        self.generation = last_generation
        self.pid = os.getpid()
        self.in_flight = self.waiting = 0
        self.shedding = False
        for i in range(N_PRIORITIES):
            self.n_admitted[i] = self.n_rejected[i] = 0

    def check(self, priority=CRITICAL):
        cdef int code = PRIORITY_CRITICAL if priority is CRITICAL else priority_code(priority)
        if self.shedding:
            self.calm()
        if self.in_flight >= self.limits[code]:
            self.refuse(code)

    def take(self, priority=CRITICAL):
        return permit_enter(self, PRIORITY_CRITICAL if priority is CRITICAL else priority_code(priority))

    def give(self, int64_t permit):
        permit_leave(self, permit)

    def set_on_change(self, on_change):
        self.on_change = on_change

    @property
    def admitted(self):
        return {name: self.n_admitted[code] for name, code in _CODES.items()}

    @property
    def rejected(self):
        return {name: self.n_rejected[code] for name, code in _CODES.items()}

    def shed(self, str why not None, priority=CRITICAL):
        self.turn_away(PRIORITY_CRITICAL if priority is CRITICAL else priority_code(priority), why, why)

    cdef int64_t refuse(self, int code) except -1:
        """Raises OverloadedError. But a child of a raw fork, of which nobody told us, begins here, and goes on."""
        if self.pid != <int64_t>os.getpid():
            self.begin_in_child()
            return 0
        self.turn_away(code, f"{self.in_flight} calls are under way, and a call of this priority is taken below {self.limits[code]}",
                       f"{self.in_flight} calls under way")
        return 0

    cdef int turn_away(self, int code, str message, str why) except -1:
        """Count it, tell of it where it is the first, and raise OverloadedError."""
        cdef double after_s = 1.0
        self.n_rejected[code] += 1
        self.refused_ns = self.clock.monotonic_ns()
        if not self.shedding:
            self.change(True, why)
        if self.random is not None:
            after_s = 0.5 + self.random()
        raise OverloadedError(message, retry_after_s=after_s)

    cdef int calm(self) except -1:
        """After a second in which nobody was refused the overload is over."""
        if <int64_t>self.clock.monotonic_ns() - self.refused_ns >= CALM_AFTER_NS:
            self.change(False, "nobody was refused for a second")
        return 0

    cdef int change(self, bint shedding, str why) except -1:
        if shedding != self.shedding:
            self.shedding = shedding
            if self.on_change is not None:
                self.on_change("shedding" if not shedding else "calm", "shedding" if shedding else "calm", why)
        return 0

    def __repr__(self):
        return f"<Permits {self.in_flight} of {self.limit}, {self.waiting} waiting>"
