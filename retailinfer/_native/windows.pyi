"""Velocity windows: state by entity, plans, one call, replay. Layout and arithmetic: panes.h; steps of a call: windows.pxd."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from retailinfer._native.program import Program

Term: TypeAlias = tuple[int, int, float | int | str | bytes | bool]
Add: TypeAlias = tuple[int, tuple[Term, ...], int, float]
Read: TypeAlias = tuple[int, int, str, int, int, bool, int, float]

KINDS: Mapping[str, int]
WHATS: Mapping[str, int]
MAX_KEEP: int
MAX_DISTINCT: int

def event_hash(event_id: str | bytes | int) -> int:
    """What the rings of seen ids hold of an event's id: 64 bits, never 0. Raises: FeatureTypeError, FeatureRangeError."""

@final
class WindowGroup:
    """State of all windows of one kind of entity. Use it from any thread: every method is one step under the GIL.

    Args:
        name: of the entity.
        key_kind: "str", "int", "bytes" or a tuple of them.
        max_entities, max_bytes: beyond either, the least recently updated entity is forgotten (`evicted`).
        max_ahead_ns: an event dated later than this after the clock is taken at the clock (`ahead`).
        clock: what `register` asks for the moment from which a new accumulator is complete; `wall_ns()`.
        shared: the state is kept elsewhere; this object only knows the accumulators.
    """

    name: str
    key_kind: str | tuple[str, ...]
    shared: bool
    max_entities: int
    max_bytes: int
    max_ahead_ns: int
    clock: Any
    def __init__(
        self,
        name: str,
        key_kind: str | tuple[str, ...],
        *,
        max_entities: int = 1_000_000,
        max_bytes: int = ...,  # 1 GiB
        max_ahead_ns: int = ...,  # 5 minutes
        clock: Any = None,
        shared: bool = False,
        hash_key: tuple[int, int] | None = None,
    ) -> None: ...
    def register(
        self,
        digest: bytes,
        kind: str,
        pane_ns: int,
        keep_panes: int,
        *,
        calendar: bool = False,
        since_ns: int | None = None,
    ) -> int:
        """Return the number of the accumulator that `digest` (32 bytes) names; make it if it is new.

        kind: "count", "sum", "min", "max", "distinct" ("ids" is for the rings of event ids). pane_ns: whole seconds.
        keep_panes: panes behind the newest one that some window needs, at most MAX_KEEP; the largest asked for counts.
        calendar: panes are cut in local time of the plan's zone. since_ns: complete from then on (None: from now on).
        Raises: ConfigError.
        """

    def since(self, digest: bytes) -> int:
        """Nanoseconds since the epoch from which the accumulator is complete. Raises: KeyError."""

    def set_since(
        self, digest: bytes, since_ns: int, *, first_keep: int | None = None, deep_since_ns: int | None = None
    ) -> None:
        """Say from when on the accumulator is complete: after a backfill, or as other processes know it. Raises: KeyError.

        first_keep, deep_since_ns: windows that need more than the former panes are complete from the latter on.
        """

    @property
    def accumulators(self) -> tuple[dict[str, Any], ...]:
        """Each with digest, kind, pane_ns, keep_panes, calendar, since_ns, by number."""

    def info(self) -> dict[str, int]:
        """Counters and sizes: entities, panes, bytes, live_bytes, events, late, duplicates, ahead, evicted, swept, ..."""

    def erase(self, key: Any) -> bool:
        """Forget one entity; whether it was known. Raises: FeatureTypeError for a key of another kind."""

    def canonical(self, key: Any) -> bytes:
        """The form of a key that state is kept under. Raises: FeatureTypeError, FeatureRangeError."""

    def blocks(self, *, step_bytes: int = ...) -> Iterator[bytes]:
        """State of all entities as pieces of about `step_bytes`, each made in one step under the GIL.

        An entity that changes between the pieces is there as of its last piece. `load_blocks` takes them in this order.
        """

    def prepare_load(self, state: Mapping[str, Any], pieces: Iterable[bytes]) -> LoadedWindows:
        """Build a saved state beside what is there. Raises: IntegrityError; whatever `pieces` raises."""

    def adopt(self, loaded: LoadedWindows) -> None:
        """Replace everything by what `prepare_load` gave; counters go on. Raises: ConfigError; nothing has changed then."""

    def load_blocks(self, state: Mapping[str, Any], pieces: Iterable[bytes]) -> int:
        """Both in one; return the entities."""

    def state(self) -> dict[str, Any]:
        """What `load_blocks` needs beside the blocks: accumulators, what was evicted until when."""

    def clear(self) -> None:
        """Forget all entities; accumulators stay, complete from now on."""

@final
class LoadedWindows:
    """State that was loaded and not taken over yet. Made by `WindowGroup.prepare_load`."""

@final
class WindowCall:
    """Memory of one plan for one call at a time. Made by `WindowPlan.new_call` (native)."""

class WindowPlan:
    """What one event stream does with one group. Slot numbers are those of `program` (or behind them: resolved keys).

    Args:
        keys: slots of the entity's key, in order.
        adds: (accumulator, where, of, scale): `where` are comparisons (slot, op, constant) that must all hold, op 0..5 for
            < <= > >= == !=; `of` is a slot, or -1 for "count".
        reads: (slot, accumulator, what, n_panes, delay_ns, include, lag, scale). The window is the panes (p - n, p] of
            p = floor((t - delay) / pane) - lag. what: "count", "sum", "mean", "min", "max", "distinct", "lag".
    Raises: ConfigError.
    """

    group: WindowGroup
    program: Program
    stream: str
    slots: tuple[int, ...]
    def __init__(
        self,
        group: WindowGroup,
        program: Program,
        *,
        stream: str,
        keys: tuple[int, ...],
        adds: tuple[Add, ...],
        reads: tuple[Read, ...],
    ) -> None: ...
    def run(
        self,
        values: Mapping[int, Any],
        at_ns: int,
        *,
        now_ns: int = 0,
        event_hash: int = 0,
        read: bool = True,
        add: bool = True,
    ) -> list[tuple[float, int]] | None:
        """One event by hand, for tools and tests: slot -> value in, (value, state) of each read out, then it is added.

        Raises: FeatureTypeError, FeatureRangeError; nothing has changed then.
        """

    def remote(
        self, values: Mapping[int, Any], at_ns: int, *, now_ns: int = 0, event_hash: int = 0, add: bool = True
    ) -> tuple[str, bytes, bytes] | None:
        """What `remote_call` gives, by hand: entity, canonical key, operations (windows_wire.h); None without a key."""

    def remote_result(
        self,
        values: Mapping[int, Any],
        at_ns: int,
        value: bytes | Literal[False] | None,
        *,
        now_ns: int = 0,
        event_hash: int = 0,
        add: bool = True,
    ) -> list[tuple[float, int]]:
        """What `remote_read` makes of an entity's value as it was before the event, by hand: (value, state) of each read.

        value: None if there was none, False if it could not be had. add: the event was added.
        Raises: ValueError for bytes that are no value; FeatureRangeError for a sum that overflows.
        """

@final
class WindowReplay:
    """Runs history through plans, without Python per event: for replay and backfill.

    add_stream: `columns` are canonical, by slot of `program` (see Program.fill_table), with resolved keys behind them.
    """

    def __init__(self) -> None: ...
    def add_stream(
        self,
        program: Program,
        plans: Sequence[WindowPlan],
        columns: Sequence[Any],
        n_rows: int,
        at_ns: NDArray[np.int64],
        *,
        now_ns: NDArray[np.int64] | None = None,
        event_hash: NDArray[np.uint64] | None = None,
        adds: bool = True,
        windows: Sequence[int] = (),
    ) -> int:
        """Return the stream's number. `windows`: slots to give out, in this order; none: the stream is only added."""

    def calls(
        self, stream: int, row: int, *, before_since: bool = False
    ) -> list[tuple[str, bytes, bytes] | None]:
        """What each plan of a row asks of shared state (see `WindowPlan.remote`), the event added."""

    def run(
        self,
        streams: NDArray[np.uint8],
        rows: NDArray[np.int64],
        *,
        before_since: bool = False,
    ) -> tuple[dict[int, tuple[NDArray[np.float64], NDArray[np.uint8]]], int]:
        """Events in order (stream, row) -> ({stream: (values (n_rows, windows), states)}, events that something took).

        values are NaN where the state is NULL, UNKNOWN or UNAVAILABLE, and for rows that `rows` does not name (UNAVAILABLE).
        before_since: an accumulator takes only what is dated before its `since`: backfill behind live events.
        Raises: FeatureRangeError (path with the row); events before that one have been added. Releases the GIL: no.
        """
