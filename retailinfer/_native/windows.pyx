"""Velocity windows as Python and the engine use them: groups own the state, plans say what an event does, calls are memory.

Arithmetic, layout and rules are panes.h / panes.c; here are the checks of what comes from Python, the memory's owners, typed
errors, the wire form for shared state, and replay. What each class does: windows.pyi. Steps of a call: windows.pxd. The readable
twin: windows_reference.py.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.math cimport NAN, isfinite, isnan
from libc.stdint cimport INT64_MAX, INT64_MIN, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from retailinfer._native.hashing cimport ri_xxh64
from retailinfer._native.program cimport (
    RI_NULL,
    RI_PRESENT,
    RI_SLOT_BOOL,
    RI_SLOT_F64,
    RI_SLOT_I64,
    RI_SLOT_TEXT,
    RI_SLOT_TIME,
    RI_UNAVAILABLE,
    ri_slot,
)

import os

import numpy as np

from retailinfer.errors import ConfigError, FeatureRangeError, FeatureTypeError, IntegrityError, clip

cdef extern from "windows_wire.h" nogil:
    enum:
        RI_WIRE_HEADER, RI_WIRE_STEP

    void ri_wire_operations(ri_windows* w, const ri_window_plan* plan, const ri_window_call* call, const uint64_t* digests,
                            int64_t clock_ns, int add, uint8_t* out)
    int ri_wire_open(ri_windows* w, const ri_window_plan* plan, ri_window_call* call, const uint64_t* digests,
                     int64_t clock_ns, const uint8_t* value, int64_t size, int64_t* known_ns)

cdef extern from "panes.h" nogil:
    enum:
        RI_ACC_COUNT, RI_ACC_SUM, RI_ACC_MIN, RI_ACC_MAX, RI_ACC_DISTINCT, RI_ACC_IDS
        RI_WHAT_COUNT, RI_WHAT_SUM, RI_WHAT_MEAN, RI_WHAT_MIN, RI_WHAT_MAX, RI_WHAT_DISTINCT, RI_WHAT_LAG
        RI_WINDOW_VALUE, RI_WINDOW_SUM, RI_WINDOW_TIME, RI_WINDOW_MEMORY
        RI_MAX_KEEP, RI_MAX_ACCUMULATORS, RI_MAX_DISTINCT
        RI_DUMP_STALE, RI_DUMP_ROOM

    ctypedef struct ri_window_counts:
        int64_t entities, live_bytes, bytes
        int64_t events, late, duplicates, ahead, evicted, swept, erased, no_key, stepped, refused, no_memory
        int64_t panes
        int64_t evicted_until_ns
        int64_t version

    ri_windows* ri_windows_new(int64_t max_entities, int64_t max_bytes, int64_t max_ahead_ns, ri_siphash_key key)
    void ri_windows_free(ri_windows* w)
    void ri_windows_counts(const ri_windows* w, ri_window_counts* out)
    void ri_windows_take_counts(ri_windows* w, const ri_windows* before)
    ri_accumulator* ri_windows_accumulators(ri_windows* w)
    void ri_windows_set_evicted_until(ri_windows* w, int64_t evicted_until_ns)
    int ri_windows_register(ri_windows* w, const ri_accumulator* acc)
    void ri_windows_retimed(ri_windows* w)
    int ri_windows_prepare(ri_windows* w, const ri_window_plan* plan, ri_window_call* call, const ri_state* st, int64_t at_ns,
                           int64_t now_ns, uint64_t event_hash, int before_since)
    void ri_windows_read(const ri_windows* w, const ri_window_plan* plan, const ri_window_call* call, ri_state* st)
    int ri_windows_add(ri_windows* w, const ri_window_plan* plan, ri_window_call* call)
    int ri_windows_repair(ri_windows* w, const ri_window_plan* plan, const ri_window_call* call, int64_t now_ns)
    int ri_windows_erase(ri_windows* w, const char* key, int64_t size)
    void ri_windows_read_block(const ri_windows* w, const ri_window_plan* plan, const ri_window_call* call, const uint8_t* base,
                               int64_t known_ns, ri_state* st)
    void ri_windows_count(ri_windows* w, const ri_window_plan* plan, ri_window_call* call, const uint8_t* base)
    int64_t ri_windows_dump_begin(ri_windows* w)
    int64_t ri_windows_dump(ri_windows* w, int64_t token, uint8_t* out, int64_t room, int64_t* needed)
    int ri_windows_load(ri_windows* w, const uint8_t* data, int64_t size, const int32_t* map, int32_t n_map)


KINDS = {"count": RI_ACC_COUNT, "sum": RI_ACC_SUM, "min": RI_ACC_MIN, "max": RI_ACC_MAX, "distinct": RI_ACC_DISTINCT,
         "ids": RI_ACC_IDS}
WHATS = {"count": RI_WHAT_COUNT, "sum": RI_WHAT_SUM, "mean": RI_WHAT_MEAN, "min": RI_WHAT_MIN, "max": RI_WHAT_MAX,
         "distinct": RI_WHAT_DISTINCT, "lag": RI_WHAT_LAG}
MAX_KEEP = RI_MAX_KEEP
MAX_DISTINCT = RI_MAX_DISTINCT

cdef dict FEEDS = {"count": ("count", "sum"), "sum": ("sum",), "mean": ("sum",), "lag": ("sum",), "min": ("min",),
                   "max": ("max",), "distinct": ("distinct",)}
cdef dict KIND_NAMES = {number: name for name, number in KINDS.items()}
cdef int64_t SECOND_NS = 1_000_000_000
cdef int64_t CENTURY_NS = 100 * 366 * 86_400 * SECOND_NS
cdef tuple TEXTS = (RI_SLOT_TEXT,)
cdef tuple WHOLE = (RI_SLOT_I64, RI_SLOT_BOOL, RI_SLOT_TIME)
cdef tuple NUMBERS = (RI_SLOT_F64, RI_SLOT_I64, RI_SLOT_BOOL, RI_SLOT_TIME)
cdef tuple SINGLE = (RI_SLOT_F64, RI_SLOT_I64, RI_SLOT_BOOL, RI_SLOT_TIME, RI_SLOT_TEXT)
cdef tuple FLOATS = (RI_SLOT_F64,)
cdef int64_t BREATH = 1024     # events between two moments at which other threads may run
cdef int64_t MAX_ENTITIES = 1 << 30


# ---- keys and ids ------------------------------------------------------------------------------------------------------

cdef uint64_t hash_event_id(object event_id) except 0:
    cdef Py_ssize_t size = 0
    cdef const char* data
    cdef int overflow = 0
    cdef int64_t number
    cdef uint64_t hash
    if type(event_id) is str:
        try:
            data = PyUnicode_AsUTF8AndSize(event_id, &size)
        except UnicodeEncodeError:
            raise FeatureRangeError("Expected an event id that is valid Unicode, got a lone surrogate",
                                    path="event_id") from None
        hash = ri_xxh64(data, <size_t>size, 0)
    elif type(event_id) is bytes:
        hash = ri_xxh64(PyBytes_AS_STRING(event_id), <size_t>PyBytes_GET_SIZE(event_id), 0)
    elif type(event_id) is int:
        number = PyLong_AsLongLongAndOverflow(event_id, &overflow)
        if overflow:
            raise FeatureRangeError(f"Expected an event id within 64 bits, got {clip(event_id)}", path="event_id")
        hash = ri_xxh64(&number, 8, 0)
    else:
        raise FeatureTypeError(f"Expected an event id of type `str`, `bytes` or `int`, got `{type(event_id).__name__}`",
                               path="event_id")
    return hash if hash else 1


def event_hash(event_id):
    return hash_event_id(event_id)


cdef bytes key_part(object value, str kind):
    if kind == "str" and type(value) is str:
        try:
            return (<str>value).encode()
        except UnicodeEncodeError:
            raise FeatureRangeError("Expected a key that is valid Unicode, got a lone surrogate", path="key") from None
    if kind == "bytes" and type(value) is bytes:
        return value
    if kind == "int" and type(value) is int:
        try:
            return (<object>value).to_bytes(8, "little", signed=True)
        except OverflowError:
            raise FeatureRangeError(f"Expected a key within 64 bits, got {clip(value)}", path="key") from None
    raise FeatureTypeError(f"Expected a key of type `{kind}`, got `{type(value).__name__}` {clip(value)}", path="key")


cdef bytes canonical_key(object key, object key_kind):
    """The form of table.h."""
    if type(key_kind) is str:
        return key_part(key, key_kind)
    if type(key) is not tuple or len(key) != len(key_kind):
        raise FeatureTypeError(f"Expected a key of {len(key_kind)} parts, got {clip(key)}", path="key")
    parts = [key_part(value, kind) for value, kind in zip(key, key_kind)]
    return b"".join([len(part).to_bytes(4, "little") + part for part in parts])


cdef object checked_key_kind(object key_kind):
    kinds = key_kind if type(key_kind) is tuple else (key_kind,)
    if not 1 <= len(kinds) <= 16 or any(type(kind) is not str or kind not in ("str", "int", "bytes") for kind in kinds):
        raise ConfigError(f"Expected a key kind `str`, `int`, `bytes` or a tuple of up to 16 of them, got {clip(key_kind)}")
    return key_kind


cdef int64_t whole(object value, str name, int64_t low, int64_t high) except? -1:
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"Expected `{name}` as an integer from {low} to {high}, got {clip(value)}")
    return value


# ---- state -------------------------------------------------------------------------------------------------------------

@cython.final
cdef class LoadedWindows:
    """State that was loaded and not taken over yet; freed with this object otherwise."""
    cdef ri_windows* w
    cdef WindowGroup group
    cdef dict numbers

    def __dealloc__(self):
        ri_windows_free(self.w)


@cython.final
cdef class WindowGroup:
    def __init__(self, name, key_kind, *, max_entities=1_000_000, max_bytes=1 << 30, max_ahead_ns=300_000_000_000, clock=None,
                 shared=False, hash_key=None):
        cdef ri_siphash_key key
        if self.w != NULL:
            raise RuntimeError("a WindowGroup is made once")
        if type(name) is not str or not name:
            raise ConfigError(f"Expected the name of an entity, got {clip(name)}")
        if hash_key is None:
            hash_key = (int.from_bytes(os.urandom(8), "little"), int.from_bytes(os.urandom(8), "little"))
        key.k0, key.k1 = hash_key
        self.key_kind = checked_key_kind(key_kind)
        self.max_entities = whole(max_entities, "max_entities", 1, MAX_ENTITIES)
        self.max_bytes = whole(max_bytes, "max_bytes", 1 << 16, 1 << 50)
        self.max_ahead_ns = whole(max_ahead_ns, "max_ahead_ns", 0, CENTURY_NS // 10)
        self.name = name
        self.clock = clock
        self.shared = shared
        self.hash_key = key
        self.numbers = {}
        self.digests = []
        self.w = self._new_state()

    def __dealloc__(self):
        ri_windows_free(self.w)

    cdef ri_windows* _new_state(self) except NULL:
        cdef ri_windows* w = ri_windows_new(self.max_entities, self.max_bytes, self.max_ahead_ns, self.hash_key)
        if w == NULL:
            raise MemoryError()
        return w

    cdef ri_accumulator* _accumulator(self, object digest) except NULL:
        return ri_windows_accumulators(self.w) + <int>self.numbers[digest]

    def register(self, digest, kind, pane_ns, keep_panes, *, calendar=False, since_ns=None):
        cdef ri_accumulator acc
        cdef ri_accumulator* old
        cdef int64_t now
        if type(digest) is not bytes or len(digest) != 32:
            raise ConfigError(f"Expected a digest of 32 bytes, got {clip(digest)}")
        if type(kind) is not str or kind not in KINDS:
            raise ConfigError(f"Expected a kind of accumulator ({', '.join(KINDS)}), got {clip(kind)}")
        memset(&acc, 0, sizeof(acc))
        acc.kind = <uint8_t><int>KINDS[kind]
        acc.pane_ns = whole(pane_ns, "pane_ns", SECOND_NS, CENTURY_NS // 2)
        acc.keep = <int32_t>whole(keep_panes, "keep_panes", 1, RI_MAX_KEEP)
        acc.first_keep = acc.keep
        acc.calendar = bool(calendar)
        if acc.pane_ns % SECOND_NS:
            raise ConfigError(f"Expected a pane of whole seconds, got {pane_ns} ns")
        if acc.pane_ns > CENTURY_NS // (acc.keep + 3):
            raise ConfigError(f"Expected panes that reach less than a century back, got {keep_panes} of {pane_ns} ns")
        now = INT64_MIN if self.clock is None else self.clock.wall_ns()
        if digest in self.numbers:
            old = self._accumulator(digest)
            if old.kind != acc.kind or old.pane_ns != acc.pane_ns or old.calendar != acc.calendar:
                raise ConfigError(f"Expected the accumulator that digest {digest.hex()[:12]} named before, got another one",
                                  hint="a digest must be of everything that an accumulator is keyed by")
            if acc.keep > old.keep:
                extend(old, acc.keep, now, self.max_ahead_ns)
            if now != INT64_MIN and old.since_ns != INT64_MAX and old.since_ns > now + self.max_ahead_ns:
                old.since_ns = old.deep_since_ns = now  # the clock was wrong when this was made
            if since_ns is not None:
                self.set_since(digest, since_ns)
            ri_windows_retimed(self.w)
            return self.numbers[digest]
        acc.since_ns = now if since_ns is None else since_ns
        acc.deep_since_ns = acc.since_ns
        number = ri_windows_register(self.w, &acc)
        if number < 0:
            raise ConfigError(f"Expected at most {RI_MAX_ACCUMULATORS} accumulators for entity `{self.name}`",
                              hint="start the process anew to drop those of releases that are gone")
        self.numbers[digest] = number
        self.digests.append(digest)
        return number

    def since(self, digest):
        return self._accumulator(digest).since_ns

    def set_since(self, digest, since_ns, *, first_keep=None, deep_since_ns=None):
        cdef ri_accumulator* acc = self._accumulator(digest)
        cdef int64_t since = since_ns, deep = since_ns if deep_since_ns is None else deep_since_ns
        cdef int first = acc.keep if first_keep is None else <int>whole(first_keep, "first_keep", 1, acc.keep)
        acc.since_ns = since
        acc.deep_since_ns = deep
        acc.first_keep = first
        ri_windows_retimed(self.w)

    @property
    def accumulators(self):
        cdef ri_accumulator* acc
        cdef list out = []
        for digest in self.digests:
            acc = self._accumulator(digest)
            out.append({"digest": digest, "kind": KIND_NAMES[acc.kind], "pane_ns": acc.pane_ns, "keep_panes": acc.keep,
                        "calendar": bool(acc.calendar), "since_ns": acc.since_ns, "first_keep": acc.first_keep,
                        "deep_since_ns": acc.deep_since_ns})
        return tuple(out)

    def info(self):
        cdef ri_window_counts c
        ri_windows_counts(self.w, &c)
        return {"entities": c.entities, "panes": c.panes, "bytes": c.bytes, "live_bytes": c.live_bytes, "events": c.events,
                "late": c.late, "duplicates": c.duplicates, "ahead": c.ahead, "evicted": c.evicted, "swept": c.swept,
                "erased": c.erased, "no_key": c.no_key, "stepped": c.stepped, "refused": c.refused, "no_memory": c.no_memory,
                "evicted_until_ns": c.evicted_until_ns}

    def erase(self, key):
        cdef bytes data = canonical_key(key, self.key_kind)
        return bool(ri_windows_erase(self.w, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)))

    def canonical(self, key):
        return canonical_key(key, self.key_kind)

    def clear(self):
        self.adopt(self._load([(one, None) for one in self.accumulators], 0, 0, ()))

    def state(self):
        cdef ri_window_counts c
        ri_windows_counts(self.w, &c)
        return {"name": self.name, "key_kind": self.key_kind, "evicted_until_ns": c.evicted_until_ns,
                "saved_at_ns": 0 if self.clock is None else self.clock.wall_ns(), "accumulators": list(self.accumulators)}

    def blocks(self, *, step_bytes=1 << 20):
        cdef int64_t token, n, needed = 0, written = 0, most, room = whole(step_bytes, "step_bytes", 1 << 10, 1 << 30)
        cdef bytes piece
        cdef list rest
        cdef ri_window_counts c
        ri_windows_counts(self.w, &c)
        most = 2 * c.live_bytes + (1 << 20)  # more only if entities change faster than they are written
        token = ri_windows_dump_begin(self.w)
        while True:
            rest = []
            while True:
                piece = PyBytes_FromStringAndSize(NULL, room)
                n = ri_windows_dump(self.w, token, <uint8_t*>PyBytes_AS_STRING(piece), room, &needed)
                if n == RI_DUMP_ROOM:
                    room = needed
                    continue
                if n == RI_DUMP_STALE:
                    raise ConfigError(f"Expected one save of the windows of `{self.name}` at a time, another one has begun")
                if n > 0:
                    rest.append(piece[:n])
                    written += n
                if n == 0 or written <= most:
                    break  # else: the rest in one step
            for piece in rest:
                yield piece
            if n == 0:
                return

    def prepare_load(self, state, pieces):
        saved = checked_state(state, self.name, self.key_kind)
        own = {one["digest"]: one for one in self.accumulators}
        seen = {one["digest"] for one in saved["accumulators"]}
        return self._load([(own.get(one["digest"], one), one) for one in saved["accumulators"]]
                          + [(one, None) for digest, one in own.items() if digest not in seen],
                          saved["evicted_until_ns"], saved["saved_at_ns"], pieces)

    def load_blocks(self, state, pieces):
        self.adopt(self.prepare_load(state, pieces))
        return self.info()["entities"]

    def adopt(self, LoadedWindows loaded not None):
        cdef ri_windows* w = loaded.w
        if w == NULL or loaded.group is not self:
            raise ConfigError("Expected what prepare_load of this group gave, once")
        if any([loaded.numbers.get(digest) != number for digest, number in self.numbers.items()]):
            raise ConfigError(f"accumulators of `{self.name}` were declared while its state was loaded", hint="restore again")
        ri_windows_take_counts(w, self.w)
        loaded.w = self.w
        self.w = w
        self.numbers = loaded.numbers
        self.digests = sorted(self.numbers, key=self.numbers.get)
        loaded.group = None

    def _load(self, accumulators, evicted_until_ns, saved_at_ns, pieces):
        """State out of `pieces`, beside what is there. accumulators: (own, saved | None); those with `saved` come first."""
        cdef LoadedWindows loaded = LoadedWindows.__new__(LoadedWindows)
        cdef ri_windows* w
        cdef ri_accumulator acc
        cdef int32_t* map = NULL
        cdef int n_saved = sum(1 for _, saved in accumulators if saved is not None), i, number, code
        cdef bytes piece
        cdef int64_t now = INT64_MIN if self.clock is None else self.clock.wall_ns()
        cdef dict numbers = {}
        # Numbers that plans hold must stay: own accumulators keep theirs, new ones come behind.
        cdef list order = sorted(accumulators, key=lambda pair: self.numbers.get(pair[0]["digest"], RI_MAX_ACCUMULATORS))
        saved_digests = [saved["digest"] for _, saved in accumulators if saved is not None]
        loaded.w = w = self._new_state()
        loaded.group = self
        try:
            for own, saved in order:
                memset(&acc, 0, sizeof(acc))
                one = own if saved is None else saved
                if saved is not None and any(own[k] != saved[k] for k in ("kind", "pane_ns", "calendar")):
                    raise IntegrityError(f"Expected saved windows of `{self.name}` with the accumulators of today, got another "
                                         f"one under digest {saved['digest'].hex()[:12]}")
                acc.kind = <uint8_t><int>KINDS[one["kind"]]
                acc.pane_ns = one["pane_ns"]
                acc.keep = one["keep_panes"]
                acc.calendar = one["calendar"]
                acc.first_keep = one["first_keep"]
                acc.since_ns = one["since_ns"]
                acc.deep_since_ns = one["deep_since_ns"]
                acc.used = saved is not None
                if saved is None and now != INT64_MIN and self._accumulator(own["digest"]).used:
                    acc.since_ns = acc.deep_since_ns = now  # what it held is given up
                elif saved is not None and own["keep_panes"] > acc.keep:
                    extend(&acc, own["keep_panes"], saved_at_ns if saved_at_ns else INT64_MIN, self.max_ahead_ns)
                number = ri_windows_register(w, &acc)
                if number < 0:
                    raise IntegrityError(f"Expected at most {RI_MAX_ACCUMULATORS} accumulators of `{self.name}`")
                numbers[own["digest"]] = number
            ri_windows_set_evicted_until(w, evicted_until_ns)
            map = <int32_t*>malloc(sizeof(int32_t) * <size_t>(n_saved + 1))
            if map == NULL:
                raise MemoryError()
            for i in range(n_saved):
                map[i] = numbers[saved_digests[i]]
            for piece in pieces:
                code = ri_windows_load(w, <const uint8_t*>PyBytes_AS_STRING(piece), PyBytes_GET_SIZE(piece), map, n_saved)
                if code == -2:
                    raise MemoryError()
                if code:
                    raise IntegrityError(f"Expected saved windows of `{self.name}`, got bytes that are none",
                                         hint="the file is damaged, or another version wrote it; restore an older one")
            ri_windows_retimed(w)
            loaded.numbers = numbers
            return loaded
        finally:
            free(map)


cdef void extend(ri_accumulator* acc, int keep, int64_t now_ns, int64_t max_ahead_ns) noexcept:
    """More panes are to be kept from now on: windows that need them are complete only from where the old ones end."""
    cdef int64_t start
    if not acc.used:  # nothing has been dropped yet
        acc.keep = acc.first_keep = keep
        return
    start = INT64_MAX if now_ns == INT64_MIN else ((now_ns + max_ahead_ns) // acc.pane_ns - acc.keep + 1) * acc.pane_ns
    if start != INT64_MAX and acc.calendar:
        start += 172_800 * SECOND_NS
    if start > acc.deep_since_ns:
        acc.deep_since_ns = start
    acc.keep = keep


cdef dict checked_state(object state, str name, object key_kind):
    """A saved state whose every number may be relied on."""
    cdef list accumulators = []
    cdef set seen = set()
    try:
        kind = state["key_kind"]
        kind = tuple(kind) if isinstance(kind, (list, tuple)) else kind
        if state["name"] != name or kind != key_kind:
            raise ValueError(f"entity `{clip(state['name'])}` with keys {clip(kind)}")
        for one in state["accumulators"]:
            if type(one["digest"]) is not bytes or len(one["digest"]) != 32 or one["digest"] in seen or one["kind"] not in KINDS:
                raise ValueError("an accumulator")
            seen.add(one["digest"])
            keep = whole(one["keep_panes"], "keep_panes", 1, RI_MAX_KEEP)
            pane = whole(one["pane_ns"], "pane_ns", SECOND_NS, CENTURY_NS // 2)
            if pane % SECOND_NS or pane > CENTURY_NS // (keep + 3) or type(one["calendar"]) is not bool:
                raise ValueError("a pane")
            accumulators.append({
                "digest": one["digest"], "kind": one["kind"], "pane_ns": pane, "keep_panes": keep, "calendar": one["calendar"],
                "since_ns": whole(one["since_ns"], "since_ns", INT64_MIN, INT64_MAX),
                "first_keep": whole(one["first_keep"], "first_keep", 1, keep),
                "deep_since_ns": whole(one["deep_since_ns"], "deep_since_ns", INT64_MIN, INT64_MAX)})
        return {"accumulators": accumulators,
                "evicted_until_ns": whole(state["evicted_until_ns"], "evicted_until_ns", 0, INT64_MAX // 2),
                "saved_at_ns": whole(state["saved_at_ns"], "saved_at_ns", 0, INT64_MAX // 2)}
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as exc:
        raise IntegrityError(f"Expected the saved state of the windows of `{name}`, got {clip(str(exc), 120)}") from None


# ---- plans -------------------------------------------------------------------------------------------------------------

@cython.final
cdef class WindowCall:
    def __init__(self):
        raise TypeError("a WindowCall is made by its plan")

    def __dealloc__(self):
        free(self.c.scratch)
        free(self.c.sections)
        free(self.c.panes)
        free(self.c.inputs)


cdef class WindowPlan:
    def __init__(self, WindowGroup group not None, Program program not None, *, stream, tuple keys not None, tuple adds not None,
                 tuple reads not None):
        cdef int i, n_terms = 0, t = 0
        cdef int64_t reach
        cdef int32_t* key_slots
        cdef int32_t* accs
        cdef ri_window_add* a
        cdef ri_window_read* r
        cdef ri_term* terms
        cdef ri_accumulator* acc
        cdef list owned = []
        if self.memory != NULL:
            raise RuntimeError("a WindowPlan is made once")
        kinds = (group.key_kind,) if type(group.key_kind) is str else group.key_kind
        if len(keys) != len(kinds):
            raise ConfigError(f"Expected {len(kinds)} key fields for windows of `{group.name}`, got {len(keys)}")
        if len(adds) > 64:
            raise ConfigError(f"Expected at most 64 accumulators for windows of `{group.name}`, got {len(adds)}",
                              hint="let windows share what they count: the same field, where and pane")
        numbers = sorted({add[0] for add in adds} | {read[1] for read in reads})
        if len({add[0] for add in adds}) != len(adds):
            raise ConfigError(f"Expected each accumulator of `{group.name}` to be added to once")
        for number in numbers:
            if not 0 <= number < len(group.digests):
                raise ConfigError(f"Unknown accumulator {number} of `{group.name}`")
        for slot, kind in zip(keys, kinds):
            self._slot(program, slot, TEXTS if kind in ("str", "bytes") else WHOLE, "a key")
        n_terms = sum(len(add[1]) for add in adds)
        # One piece of memory: the widest first, so that everything is aligned.
        self.memory = calloc(1, sizeof(ri_term) * (n_terms + 1) + sizeof(ri_window_read) * (len(reads) + 1)
                             + sizeof(ri_window_add) * (len(adds) + 1) + sizeof(int32_t) * (len(numbers) + len(keys) + 2))
        if self.memory == NULL:
            raise MemoryError()
        terms = <ri_term*>self.memory
        r = <ri_window_read*>(terms + n_terms + 1)
        a = <ri_window_add*>(r + len(reads) + 1)
        accs = <int32_t*>(a + len(adds) + 1)
        key_slots = accs + len(numbers) + 1
        for i, slot in enumerate(keys):
            key_slots[i] = slot
        for i, number in enumerate(numbers):
            accs[i] = number
        for i, (number, where, of, scale) in enumerate(adds):
            kind = KIND_NAMES[ri_windows_accumulators(group.w)[<int>number].kind]
            if kind == "ids" or (of < 0) != (kind == "count"):
                raise ConfigError(f"Expected a field for `{kind}` and none for `count`, got slot {of}")
            if of >= 0:
                self._slot(program, of, SINGLE if kind == "distinct" else NUMBERS, f"a window's `{kind}`")
            a[i].acc = numbers.index(number)
            a[i].of = of
            a[i].scale = checked_scale(scale)
            a[i].first_term = t
            a[i].n_terms = len(where)
            for slot, op, constant in where:
                self._term(program, terms + t, slot, op, constant, owned)
                t += 1
        for i, (slot, number, what, n, delay_ns, with_event, lag, scale) in enumerate(reads):
            acc = ri_windows_accumulators(group.w) + <int>number
            self._slot(program, slot, FLOATS, "a window")
            if what not in WHATS or KIND_NAMES[acc.kind] not in FEEDS[what]:
                raise ConfigError(f"Expected a window over `{KIND_NAMES[acc.kind]}`, got `{clip(what)}`")
            r[i].slot = slot
            r[i].acc = numbers.index(number)
            r[i].what = WHATS[what]
            r[i].add = next((k for k, add in enumerate(adds) if add[0] == number), -1)
            r[i].n = <int32_t>whole(n, "n_panes", 1, RI_MAX_KEEP)
            r[i].lag = <int32_t>whole(lag, "lag", 0, RI_MAX_KEEP)
            r[i].delay_ns = whole(delay_ns, "delay_ns", 0, CENTURY_NS)
            r[i].with_event = bool(with_event)
            r[i].scale = checked_scale(scale)
            reach = r[i].n + r[i].lag + (r[i].delay_ns + acc.pane_ns - 1) // acc.pane_ns + 2
            r[i].keep = <int32_t>whole(reach, "n_panes + delay + 2", 1, RI_MAX_KEEP)
            if reach > acc.keep:
                raise ConfigError(f"Expected an accumulator that keeps {reach} panes, got one of {acc.keep}")
        self.c.keys = key_slots
        self.c.n_keys = len(keys)
        self.c.accs = accs
        self.c.n_accs = len(numbers)
        self.c.adds = a
        self.c.n_adds = len(adds)
        self.c.reads = r
        self.c.n_reads = len(reads)
        self.c.terms = terms
        self.c.zone = program.c.zone
        self.c.ids = group.register(ids_digest(stream), "ids", SECOND_NS, 1, since_ns=INT64_MIN) if adds else -1
        self.group = group
        self.program = program
        self.stream = stream
        self.slots = tuple([read[0] for read in reads])
        self.owned = tuple(owned)
        self.digests = <uint64_t*>calloc(len(numbers) + 1, sizeof(uint64_t))
        if self.digests == NULL:
            raise MemoryError()
        for i, number in enumerate(numbers):
            memcpy(self.digests + i, PyBytes_AS_STRING(group.digests[number]), 8)
        if adds:
            memcpy(self.digests + len(numbers), PyBytes_AS_STRING(group.digests[self.c.ids]), 8)

    def __dealloc__(self):
        free(self.memory)
        free(self.digests)

    def _slot(self, Program program not None, slot, kinds, use):
        if type(slot) is not int or not 0 <= slot < 65536:
            raise ConfigError(f"Expected the number of a slot for {use}, got {clip(slot)}")
        if slot < program.n_slots and program.slot_kinds[<int>slot] not in kinds:
            raise ConfigError(f"Expected another type of `{program.slot_names[slot]}` for {use}")

    cdef int _term(self, Program program, ri_term* term, object slot, object op, object constant, list owned) except -1:
        self._slot(program, slot, TEXTS if isinstance(constant, (str, bytes)) else NUMBERS, "a comparison")
        term.slot = slot
        term.op = <int32_t>whole(op, "op", 0, 5)
        if isinstance(constant, (str, bytes)):
            data = constant.encode() if isinstance(constant, str) else bytes(constant)
            owned.append(data)
            term.kind = 2
            term.text.data = PyBytes_AS_STRING(data)
            term.text.size = len(data)
        elif isinstance(constant, int) and -(1 << 63) <= constant < 1 << 63:
            term.kind = 1
            term.integer = int(constant)
            term.number = <double>term.integer
        elif isinstance(constant, float) and isfinite(constant):
            term.kind = 0
            term.number = constant
        else:
            raise ConfigError(f"Expected a number or a text to compare with, got {clip(constant)}")
        return 0

    cdef WindowCall new_call(self):
        cdef WindowCall call = WindowCall.__new__(WindowCall)
        call.plan = self
        call.c.sections = <ri_section*>calloc(<size_t>self.c.n_accs + 1, sizeof(ri_section))
        call.c.panes = <int64_t*>calloc(<size_t>self.c.n_accs + 1, sizeof(int64_t))
        call.c.inputs = <ri_window_input*>calloc(<size_t>self.c.n_adds + 1, sizeof(ri_window_input))
        if call.c.sections == NULL or call.c.panes == NULL or call.c.inputs == NULL:
            raise MemoryError()
        return call

    cdef int prepare(self, WindowCall call, ri_state* st, int64_t at_ns, int64_t now_ns, uint64_t event_hash) noexcept:
        cdef int code = ri_windows_prepare(self.group.w, &self.c, &call.c, st, at_ns, now_ns, event_hash, 0)
        if call.c.suspect and self.group.clock is not None and ri_windows_repair(self.group.w, &self.c, &call.c,
                                                                                 wall_ns(self.group.clock)):
            code = ri_windows_prepare(self.group.w, &self.c, &call.c, st, at_ns, now_ns, event_hash, 0)
        return code

    cdef void read(self, WindowCall call, ri_state* st) noexcept:
        ri_windows_read(self.group.w, &self.c, &call.c, st)

    cdef void add(self, WindowCall call) noexcept:
        ri_windows_add(self.group.w, &self.c, &call.c)

    cdef void unavailable(self, ri_state* st) noexcept:
        cdef int i
        cdef ri_slot* s
        for i in range(self.c.n_reads):
            s = st.slots + self.c.reads[i].slot
            s.state = RI_UNAVAILABLE
            s.hashed = 0
            s.calendar = 0
            s.updated_ns = INT64_MAX
            s.v.f = NAN

    cdef int fail(self, WindowCall call, int64_t row) except -1:
        cdef str name = ""
        cdef str path = "$" if row < 0 else f"$[{row}]"
        if call.c.error == RI_WINDOW_MEMORY:
            raise MemoryError()
        if call.c.error_slot >= 0:
            name = self.program.slot_names[call.c.error_slot]
            path += f".{name}"
        if call.c.error == RI_WINDOW_VALUE:
            raise FeatureRangeError(
                f"Expected a number that windows of `{self.group.name}` can hold, got {call.c.error_value!r}", path=path,
                hint="a value times its scale must stay within 2**53; choose a smaller scale=",
            )
        if call.c.error == RI_WINDOW_SUM:
            raise FeatureRangeError(
                f"Expected what windows of `{self.group.name}` sum up in one pane to stay within 2**53 units, "
                f"it would be {call.c.error_value!r}", path=path, hint="choose a smaller scale= or pane=",
            )
        if call.c.error == RI_WINDOW_TIME:
            raise FeatureRangeError(
                f"Expected the time of an event from 1950-01-03 to 2086-02-04, got {call.c.error_value!r} seconds since 1970",
                path=path, hint="check its unit: seconds, not milliseconds",
            )
        raise RuntimeError("fail() without an error of prepare()")

    # ---- by hand -------------------------------------------------------------------------------------------------------

    cdef RowState _fill(self, dict values):
        cdef RowState state = self.spare_state
        cdef int slot
        self.spare_state = None  # converting may run code that comes back here
        if state is None:
            state = self.program.new_state()
        for slot in range(self.program.n_slots):
            state.st.slots[slot].state = RI_NULL
        for given, value in values.items():
            slot = given
            if not 0 <= slot < self.program.n_slots:
                raise ConfigError(f"Expected the number of a slot below {self.program.n_slots}, got {clip(given)}")
            if value is not None:
                self.program.convert(slot, value, state, -1)
        return state

    cdef list _out(self, ri_state* st):
        cdef int i
        cdef list out = []
        for i in range(self.c.n_reads):
            out.append((st.slots[self.c.reads[i].slot].v.f, st.slots[self.c.reads[i].slot].state))
        return out

    def run(self, dict values not None, int64_t at_ns, *, int64_t now_ns=0, uint64_t event_hash=0, bint read=True, bint add=True):
        cdef RowState state = self._fill(values)
        cdef WindowCall call = self.spare_call
        cdef list out = None
        self.spare_call = None
        if call is None:
            call = self.new_call()
        if self.prepare(call, &state.st, at_ns, now_ns, event_hash):
            self.fail(call, -1)
        if read:
            self.read(call, &state.st)
            out = self._out(&state.st)
        if add:
            self.add(call)
        state.release()
        self.spare_state = state
        self.spare_call = call
        return out

    def remote(self, dict values not None, int64_t at_ns, *, int64_t now_ns=0, uint64_t event_hash=0, bint add=True):
        cdef RowState state = self._fill(values)
        cdef WindowCall call = self.new_call()
        if self.prepare(call, &state.st, at_ns, now_ns, event_hash):
            self.fail(call, -1)
        return self.remote_call(call, add)

    def remote_result(self, dict values not None, int64_t at_ns, value, *, int64_t now_ns=0, uint64_t event_hash=0, bint add=True):
        cdef RowState state = self._fill(values)
        cdef WindowCall call = self.new_call()
        if self.prepare(call, &state.st, at_ns, now_ns, event_hash):
            self.fail(call, -1)
        if self.remote_call(call, add) is None:
            self.read(call, &state.st)
        elif value is False:
            self.unavailable(&state.st)
        else:
            self.remote_read(call, &state.st, value)
        return self._out(&state.st)

    # ---- shared state --------------------------------------------------------------------------------------------------

    cdef object remote_call(self, WindowCall call, bint add):
        cdef bytes operations
        if not call.c.known:
            return None
        call.c.ready = add and self.c.n_adds > 0
        operations = PyBytes_FromStringAndSize(NULL, RI_WIRE_HEADER + RI_WIRE_STEP * <Py_ssize_t>self.c.n_accs)
        ri_wire_operations(self.group.w, &self.c, &call.c, self.digests, true_clock(self.group, call), call.c.ready,
                           <uint8_t*>PyBytes_AS_STRING(operations))
        return self.group.name, PyBytes_FromStringAndSize(call.c.key.data, call.c.key.size), operations

    cdef int remote_read(self, WindowCall call, ri_state* st, object value) except -1:
        cdef const uint8_t* data = NO_VALUE
        cdef int64_t size = 0, known_ns = 0
        cdef int code
        if not call.c.known:
            raise ValueError("no call was made: the entity has no key")
        if value is not None:
            if not PyBytes_CheckExact(value):
                raise ValueError(f"expected the bytes of an entity, got {clip(value)}")
            data = <const uint8_t*>PyBytes_AS_STRING(value)
            size = PyBytes_GET_SIZE(value)
            if size == 0:
                raise ValueError("expected the bytes of an entity, got none")
        code = ri_wire_open(self.group.w, &self.c, &call.c, self.digests, true_clock(self.group, call), data, size, &known_ns)
        if code < 0:
            raise ValueError(f"expected the value of an entity, got {size} other bytes")
        if code > 0:
            self.fail(call, -1)
        ri_windows_read_block(self.group.w, &self.c, &call.c, data, known_ns, st)
        ri_windows_count(self.group.w, &self.c, &call.c, data)
        return 0


cdef const uint8_t* NO_VALUE = b"\0" * 32  # no section points into it


cdef int64_t wall_ns(object clock) noexcept:
    """Of a clock that may be anybody's; one that fails says nothing."""
    try:
        return clock.wall_ns()
    except Exception:
        return INT64_MAX // 2


cdef int64_t true_clock(WindowGroup group, WindowCall call) noexcept:
    """Of the group, or the call's now where that is later; 0 if the group has none."""
    cdef int64_t now = 0 if group.clock is None else wall_ns(group.clock)
    return 0 if now == 0 or now > INT64_MAX // 4 else max(now, call.c.now_ns)


cdef double checked_scale(object scale) except? -1.0:
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0.0 < scale <= 1e15:
        raise ConfigError(f"Expected a scale above 0, up to 1e15, got {clip(scale)}")
    return scale


cdef bytes ids_digest(object stream):
    """Name of the ring of event ids that a stream has in each entity."""
    import hashlib  # brings OpenSSL's library; importing the package need not

    if type(stream) is not str:
        raise ConfigError(f"Expected the name of the stream that adds, got {clip(stream)}")
    return hashlib.sha256(b"retailinfer ids of stream " + (<str>stream).encode()).digest()


# ---- history -----------------------------------------------------------------------------------------------------------

ctypedef struct Cells:     # one canonical column, of a slot that some plan uses
    int32_t slot
    int32_t kind
    const void* values
    const uint8_t* valid
    const int64_t* offsets


cdef class History:
    """One stream of a replay: its columns, plans and results."""
    cdef:
        Program program
        list plans
        list calls
        Cells* cells
        int n_cells
        ri_slot* slots
        int n_slots
        int64_t n_rows
        const int64_t* at_ns
        const int64_t* now_ns
        const uint64_t* ids
        bint adds
        tuple windows
        int* window_slots
        int n_windows
        object keep
        object values
        object states
        double* out_values
        uint8_t* out_states
        ri_state st

    def __dealloc__(self):
        free(self.cells)
        free(self.slots)
        free(self.window_slots)

    cdef int load(self, int64_t row) noexcept nogil:
        """Slots of one row; -1, or the slot whose number is infinite."""
        cdef int i
        cdef Cells* c
        cdef ri_slot* s
        for i in range(self.n_cells):
            c = self.cells + i
            s = self.slots + c.slot
            s.hashed = 0
            s.calendar = 0
            s.state = RI_PRESENT
            if c.values == NULL or (c.valid != NULL and not c.valid[row]):
                s.state = RI_NULL
            elif c.kind == RI_SLOT_F64:
                s.v.f = (<const double*>c.values)[row]
                if isnan(s.v.f):
                    s.state = RI_NULL
                elif not isfinite(s.v.f):
                    return c.slot
            elif c.kind == RI_SLOT_TEXT:
                s.v.text = <const char*>c.values + c.offsets[row]
                s.n = c.offsets[row + 1] - c.offsets[row]
            else:
                s.v.i = (<const int64_t*>c.values)[row]
        return -1


cdef const void* pointer(object array, object dtype, int64_t n, str what) except? NULL:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1 or len(array) != n \
            or not array.flags.c_contiguous:
        raise ValueError(f"{what} need a contiguous array of {n} cells of {np.dtype(dtype)}")
    return <const void*><uintptr_t>array.ctypes.data


@cython.final
cdef class WindowReplay:
    cdef list streams

    def __init__(self):
        self.streams = []

    def add_stream(self, Program program not None, plans, columns, n_rows, at_ns, *, now_ns=None, event_hash=None, bint adds=True,
                   windows=()):
        cdef History h = History.__new__(History)
        cdef WindowPlan plan
        cdef Cells* c
        cdef set used = set()
        cdef int i
        h.program = program
        h.plans = list(plans)
        h.n_rows = whole(n_rows, "n_rows", 0, 1 << 40)
        h.windows = tuple(windows)
        h.adds = adds
        columns = list(columns)
        for plan in h.plans:
            used.update([plan.c.keys[i] for i in range(plan.c.n_keys)])
            used.update([plan.c.adds[i].of for i in range(plan.c.n_adds) if plan.c.adds[i].of >= 0])
            for i in range(plan.c.n_adds):
                used.update([plan.c.terms[plan.c.adds[i].first_term + t].slot for t in range(plan.c.adds[i].n_terms)])
        h.calls = [(<WindowPlan>plan).new_call() for plan in h.plans]
        given = {slot for plan in h.plans for slot in (<WindowPlan>plan).slots}
        for slot in h.windows:
            if slot not in given:
                raise ConfigError(f"Expected slots that the stream's plans fill, got {clip(slot)}")
        h.n_slots = max(program.n_slots, len(columns), 1 + max(used | given | {0}))
        h.slots = <ri_slot*>calloc(<size_t>h.n_slots + 1, sizeof(ri_slot))
        h.cells = <Cells*>calloc(<size_t>len(used) + 1, sizeof(Cells))
        h.n_windows = len(h.windows)
        h.window_slots = <int*>calloc(<size_t>h.n_windows + 1, sizeof(int))
        if h.slots == NULL or h.cells == NULL or h.window_slots == NULL:
            raise MemoryError()
        for i in range(h.n_windows):
            h.window_slots[i] = h.windows[i]
        h.keep = []
        for slot in sorted(used):
            c = h.cells + h.n_cells
            c.slot = slot
            column = columns[slot] if slot < len(columns) else None
            if slot < program.n_slots:
                c.kind = program.slot_kinds[<int>slot]
            else:
                c.kind = RI_SLOT_TEXT if column is not None and column[2] is not None else RI_SLOT_I64
            h.n_cells += 1
            h.slots[<int>slot].kind = <uint8_t>c.kind
            if column is None:
                continue
            values, valid, offsets, _ = column
            if c.kind == RI_SLOT_TEXT:
                c.offsets = <const int64_t*>pointer(offsets, np.int64, h.n_rows + 1, f"offsets of slot {slot}")
                if h.n_rows and (offsets[0] < 0 or (np.diff(offsets) < 0).any() or offsets[h.n_rows] > len(values)):
                    raise ValueError(f"offsets of slot {slot} leave its bytes")
                c.values = pointer(values, np.uint8, len(values), f"texts of slot {slot}")
            elif c.kind <= RI_SLOT_TIME:
                c.values = pointer(values, np.float64 if c.kind == RI_SLOT_F64 else np.int64, h.n_rows, f"values of slot {slot}")
            else:
                raise ConfigError(f"Expected single values in slot {slot}")
            if valid is not None:
                c.valid = <const uint8_t*>pointer(valid, np.uint8, h.n_rows, f"validity of slot {slot}")
            if h.n_rows == 0:
                c.values = NULL
            h.keep.append(column)
        h.at_ns = <const int64_t*>pointer(at_ns, np.int64, h.n_rows, "times")
        h.keep.append(at_ns)
        if now_ns is not None:
            h.now_ns = <const int64_t*>pointer(now_ns, np.int64, h.n_rows, "times of arrival")
            h.keep.append(now_ns)
        if event_hash is not None:
            h.ids = <const uint64_t*>pointer(event_hash, np.uint64, h.n_rows, "event ids")
            h.keep.append(event_hash)
        h.st.slots = h.slots
        self.streams.append(h)
        return len(self.streams) - 1

    def calls(self, int stream, int64_t row, *, bint before_since=False):
        """What `remote_call` gives for each plan of a row: the way of history into shared state."""
        cdef History h = <History?>self.streams[stream]
        cdef WindowPlan plan
        cdef WindowCall call
        cdef list out = []
        self._load_row(h, row)
        for plan, call in zip(h.plans, h.calls):
            if ri_windows_prepare(plan.group.w, &plan.c, &call.c, &h.st, h.at_ns[row], h.now_ns[row] if h.now_ns != NULL else 0,
                                  h.ids[row] if h.ids != NULL else 0, before_since):
                plan.fail(call, row)
            out.append(plan.remote_call(call, True))
        return out

    cdef int _load_row(self, History h, int64_t row) except -1:
        cdef int bad
        if row < 0 or row >= h.n_rows:
            raise ValueError(f"Expected a row below {h.n_rows}, got {row}")
        bad = h.load(row)
        if bad >= 0:
            raise FeatureRangeError("Expected a finite number, got infinity", path=f"$[{row}].{h.program.slot_names[bad]}")
        return 0

    def run(self, streams, rows, *, bint before_since=False):
        cdef int64_t n = len(rows), i, row, taken_events = 0
        cdef const uint8_t* which = <const uint8_t*>pointer(streams, np.uint8, n, "streams")
        cdef const int64_t* row_of = <const int64_t*>pointer(rows, np.int64, n, "rows")
        cdef History h
        cdef WindowPlan plan
        cdef WindowCall call
        cdef int k, w, n_plans, taken, n_windows
        cdef int64_t now
        cdef ri_slot* s
        for h in self.streams:
            n_windows = len(h.windows)
            h.values = np.full((h.n_rows, n_windows), np.nan)
            h.states = np.full((h.n_rows, n_windows), RI_UNAVAILABLE, dtype=np.uint8)
            h.out_values = <double*><uintptr_t>h.values.ctypes.data
            h.out_states = <uint8_t*><uintptr_t>h.states.ctypes.data
        for i in range(n):
            if i % BREATH == BREATH - 1:
                with nogil:
                    pass
                PyErr_CheckSignals()
            if which[i] >= len(self.streams):
                raise ValueError(f"there is no stream {which[i]}")
            h = <History>(<list>self.streams)[which[i]]
            row = row_of[i]
            self._load_row(h, row)
            n_plans = len(h.plans)
            now = h.now_ns[row] if h.now_ns != NULL else 0
            for k in range(n_plans):
                plan = <WindowPlan>h.plans[k]
                call = <WindowCall>h.calls[k]
                if ri_windows_prepare(plan.group.w, &plan.c, &call.c, &h.st, h.at_ns[row], now,
                                      h.ids[row] if h.ids != NULL else 0, before_since):
                    plan.fail(call, row)
            n_windows = h.n_windows
            if n_windows:
                for k in range(n_plans):
                    plan = <WindowPlan>h.plans[k]
                    ri_windows_read(plan.group.w, &plan.c, &(<WindowCall>h.calls[k]).c, &h.st)
                for w in range(n_windows):
                    s = h.slots + h.window_slots[w]
                    h.out_values[row * n_windows + w] = s.v.f
                    h.out_states[row * n_windows + w] = s.state
            if h.adds:
                taken = 0
                for k in range(n_plans):
                    plan = <WindowPlan>h.plans[k]
                    taken += ri_windows_add(plan.group.w, &plan.c, &(<WindowCall>h.calls[k]).c)
                taken_events += taken != 0
        out = {k: (h.values, h.states) for k, h in enumerate(self.streams) if h.windows}
        return out, taken_events
