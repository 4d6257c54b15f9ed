"""What the keys of a request lead to beyond snapshots: plans for tables, the resolver of a release, observers of streams.

Durations are nanoseconds; `now_ns` is ns since the epoch, 0 = the clock's own. Users never see any of this.
"""

from typing import Any, final

from retailinfer._native.aliases import AliasTable
from retailinfer._native.program import Program, RequestReader
from retailinfer._native.windows import WindowPlan

@final
class LivePlan:
    """How the stored columns of one entity get from a mutable table into slots.

    Args:
        table: the FeatureTable; `core`, `has_source`, `stale_for_ns`, `wait_ns`, `fetch` and `refresh` of it are used.
        section, keys, wanted, columns, kinds: as for `engine.EntityPlan`. clock: number of the table's clock.
    Raises: SchemaMismatchError when the table lacks a column or has it in another type.
    """

    name: str
    table: Any
    section: int
    has_source: bool
    def __init__(
        self,
        name: str,
        table: Any,
        section: int,
        keys: tuple[int, ...],
        wanted: tuple[int, ...],
        columns: tuple[str, ...],
        kinds: tuple[str, ...],
        *,
        clock: int = 0,
    ) -> None: ...

@final
class Lease:
    """Memory of one call for what its keys lead to."""

@final
class Resolver:
    """Everything that one release looks up beyond snapshots.

    Args:
        plans: of mutable tables. clocks: `monotonic_ns()` of the tables, by number.
        clock: of calls: what their deadlines are measured with.
        aliases: (slot of the field, graph); its resolved key goes into slot `n_slots` + place here.
        windows: plans over one store's windows. transport: `exchange` and `malformed`, where their state is elsewhere.
        can_observe: requests are events of a stream that some window counts.
    """

    has_sources: bool
    has_cross_sources: bool
    n_windows: int
    shared: bool
    can_observe: bool
    waits: bool
    n_aliases: int
    n_slots: int
    transport: Any
    def __init__(
        self,
        *,
        plans: tuple[LivePlan, ...],
        clocks: tuple[Any, ...],
        clock: Any,
        aliases: tuple[tuple[int, AliasTable], ...] = (),
        n_slots: int = 0,
        windows: tuple[WindowPlan, ...] = (),
        transport: Any = None,
        can_observe: bool = False,
    ) -> None: ...

@final
class Observer:
    """Adds the events of one stream to the windows that count them. Safe to call from many threads.

    Args:
        program: slots of the stream. reader: fills them. resolver: windows, and aliases of their keys.
        budget_ns: how long a round trip may take where the call does not say.
    """

    stream: str
    program: Program
    reader: RequestReader
    resolver: Resolver
    def __init__(
        self,
        *,
        stream: str,
        program: Program,
        reader: RequestReader,
        resolver: Resolver,
        clock: Any,
        budget_ns: int,
    ) -> None: ...
    def observe(
        self,
        event: object,
        event_id: str | bytes | int | None = None,
        now_ns: int = 0,
        budget_ns: int = 0,
        may_wait: bool = True,
        row: int = -1,
    ) -> None:
        """Count one event. Raises: FeatureError, with the row in its path if it is not -1; WouldWait."""
