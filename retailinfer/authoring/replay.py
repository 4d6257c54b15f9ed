"""Training sets without leakage: history played again through the kernel that serves, in the order in which it came.

    replayed = ri.replay(spec, payments, labels={"chargeback": chargebacks}, tables={"card": history}, arrived="came_at")
    spec = spec.fit(replayed.table)
    model.fit(replayed.transform(spec), ...)

Rules:
  * Each row is what `Scorer.score(..., observe=True)` would have seen: windows hold what came before it, stored rows and
    aliases are those of its moment. Nothing that came later changes a bit of it.
  * Events come in the order of their arrival (`arrived`; without it, of their event time). Of events that arrive at the same
    moment those of the requests come first, then the other streams in the order of `labels`; within one, table order.
  * An event counts in the pane of its own time, from its arrival on. A label counts from its own arrival.
  * Windows, dates and ages are measured at the event's time and arrival as serving measures them: windows up to the event
    time, ages (`max_age`) and stored rows at the arrival.
  * Serving in memory forgets an entity when nothing of it can count any more by the clock, and calls what an event of
    before that asks for `stale`. Replay keeps it: an event that comes later than all its windows reach back sees more here.
  * Rows stay in the order of `events`.
The kernel is `_native/windows` (WindowReplay); the joins are `history.py`; the cells are `features.transform`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from retailinfer._native.program import Program
from retailinfer._native.windows import WindowGroup, WindowPlan, WindowReplay, event_hash
from retailinfer.authoring.history import alias_fields, as_of, resolve
from retailinfer.clock import SystemClock
from retailinfer.columns import parse_duration_ns
from retailinfer.errors import ConfigError, FeatureMissingError, SpecError, clip
from retailinfer.features.arrow import as_table, canonical, read_table
from retailinfer.features.canonical import Canonical, Columns
from retailinfer.features.program import SLOT_KINDS, slot_names, slot_types
from retailinfer.features.spec import Body
from retailinfer.features.streams import (
    EntityWindows,
    compile_stream,
    read_events,
    request_stream,
    window_layout,
)
from retailinfer.features.transform import FeatureMatrix, as_matrices, fill
from retailinfer.store.aliases import Aliases, moment_ns

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from retailinfer.features.spec import FeatureSpec
    from retailinfer.store.store import Store

__all__ = ["Replayed", "replay"]

NO_BOUND = 1 << 50
MAX_STREAMS = 255
STALE = 3


class Replayed:
    """Events as they would have been scored: raw values, and the matrix when the spec is fitted.

    Attributes:
        table: the columns of the events, then stored columns ("card.limit") and windows by name: what `spec.fit` takes.
        states: by stored column and window, uint8 (n,): 0 = as the column has it, 2 unknown, 3 stale, 4 unavailable.
        updated_ns: by stored column, int64 (n,): when its row was true, ns since 1970; -2**63 = nobody says.
        at_ns, arrived_ns: int64 (n,): the event's time and its arrival.
        counts: events of all streams that came late, twice, or dated ahead of the clock, and those added.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        table: pa.Table,
        *,
        states: dict[str, NDArray[np.uint8]],
        updated_ns: dict[str, NDArray[np.int64]],
        at_ns: NDArray[np.int64],
        arrived_ns: NDArray[np.int64],
        counts: dict[str, int],
    ) -> None:
        self.spec = spec
        self.table = table
        self.states = states
        self.updated_ns = updated_ns
        self.at_ns = at_ns
        self.arrived_ns = arrived_ns
        self.counts = counts
        self._made: tuple[Any, NDArray[np.uint8], NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return len(self.at_ns)

    @property
    def matrix(self) -> FeatureMatrix | dict[str, FeatureMatrix]:
        """What the model would have seen, as `FeatureSpec.transform` gives it. Raises: SpecError before `fit`."""
        matrix: FeatureMatrix | dict[str, FeatureMatrix] = self._compute()[0]
        return matrix

    @property
    def flags(self) -> NDArray[np.uint8]:
        """By row and column, what the column met: 0 plainly present, 1 null, 2 unknown, 3 stale, 4 unavailable."""
        return self._compute()[1]

    @property
    def reviews(self) -> NDArray[np.uint8]:
        """By row, 1 where a column asks for a review."""
        return self._compute()[2]

    @property
    def cold(self) -> NDArray[np.bool_]:
        """By row, whether some window does not cover its whole time yet: the first weeks of a history."""
        cold = np.zeros(len(self), bool)
        for name in self.spec.body.windows:
            cold |= self.states[name] == STALE
        return cold

    def transform(self, spec: FeatureSpec) -> FeatureMatrix | dict[str, FeatureMatrix]:
        """The matrix under another spec of the same raw values: the one that `spec.fit(replayed.table)` gave.

        Raises: SpecError for one that reads what was not replayed; FeatureMissingError, FeatureRangeError for a row that
            serving would refuse, by its number.
        """
        return self._with(spec).matrix

    def take(self, rows: Any) -> Replayed:
        """Some of the rows: numbers, or a mask."""
        chosen = np.asarray(rows)
        if chosen.dtype == bool:
            if chosen.shape != (len(self),):
                raise ConfigError(f"Expected a mask of {len(self)} rows, got shape {chosen.shape}")
            chosen = np.flatnonzero(chosen)
        if chosen.ndim != 1 or not (np.issubdtype(chosen.dtype, np.integer) or chosen.size == 0):
            raise ConfigError(f"Expected row numbers or a mask, got {chosen.dtype} of shape {chosen.shape}")
        chosen = chosen.astype(np.int64)
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(self)):
            raise ConfigError(f"Expected rows of 0 to {len(self) - 1}, got {chosen.min()} to {chosen.max()}")
        return Replayed(
            self.spec,
            self.table.take(chosen),
            states={name: state[chosen] for name, state in self.states.items()},
            updated_ns={name: times[chosen] for name, times in self.updated_ns.items()},
            at_ns=self.at_ns[chosen],
            arrived_ns=self.arrived_ns[chosen],
            counts=self.counts,
        )

    def _with(self, spec: FeatureSpec) -> Replayed:
        old, new = self.spec.body, spec.body
        if (old.fields, old.windows, old.event_time) != (new.fields, new.windows, new.event_time) or not (
            new.stored.items() <= old.stored.items()
        ):
            raise SpecError(
                "this spec has other fields, stored columns or windows than the one that was replayed",
                hint="call ri.replay with it",
            )
        return Replayed(
            spec,
            self.table,
            states=self.states,
            updated_ns=self.updated_ns,
            at_ns=self.at_ns,
            arrived_ns=self.arrived_ns,
            counts=self.counts,
        )

    def _compute(self) -> tuple[Any, NDArray[np.uint8], NDArray[np.uint8]]:
        if self._made is None:
            program = self.spec.program
            columns = msgspec.structs.replace(
                read_table(self.table, self.spec.body),
                states=dict(self.states),
                updated_ns=dict(self.updated_ns),
                now_ns=self.arrived_ns,
            )
            flags = np.zeros((len(self), len(program.column_names)), np.uint8)
            reviews = np.zeros(len(self), np.uint8)
            outs, masks, _ = fill(program, self.spec.body, columns, reviews=reviews, flags=flags)
            self._made = (as_matrices(self.spec, outs, masks), flags, reviews)
        return self._made

    def __repr__(self) -> str:
        return f"<Replayed: {len(self)} rows, {len(self.states)} stored columns and windows>"


def replay(
    spec: FeatureSpec,
    events: Any,
    *,
    labels: Any = None,
    tables: Mapping[str, Any] | None = None,
    aliases: Mapping[str, Aliases] | Store | None = None,
    arrived: str | Mapping[str, str | None] | None = None,
    event_id: str | Mapping[str, str | None] | None = None,
    updated_at: str | Mapping[str, str | None] | None = "updated_at",
    available_at: str | Mapping[str, str | None] | None = None,
    since: Any = None,
    max_ahead: str = "5m",
) -> Replayed:
    """Play history again and give each request as it would have been scored at its moment.

    Args:
        spec: fitted or not; without a fit there is no matrix yet, only `table`.
        events: the requests, any Arrow table: the request's fields, and whatever else shall stay beside them (the target).
        labels: events of the other streams, {stream: table}; or the table of the only one.
        tables: {entity: its history}: key fields, stored columns, and since when each row holds. Stored columns of other
            entities stand in `events` under their reference ("card.limit").
        aliases: {entity: Aliases}, or a Store that has them; applied as of each event's time.
        arrived: column that says when an event came; None: at its event time. A mapping says it by stream, the requests'
            under the name of their stream, or "request".
        event_id: column with ids of events, by which one that comes twice is counted once; None: none comes twice.
        updated_at: column of the histories that says when a row was true; a mapping says it by entity. None: the rows of
            that table have held for ever, as those of a catalogue.
        available_at: column that says when a row could be read, if that was later than `updated_at`.
        since: the moment (datetime with a zone, or seconds) from which the streams are complete: a window that begins before
            is stale. None: the first event of all; before it nothing happened that is known.
        max_ahead: an event dated later than this after its arrival is counted at its arrival, as in serving.
    Returns: rows in the order of `events`.
    Raises: SpecError, ConfigError for what does not fit the spec; FeatureError for a value, with its row.
    """
    body = spec.body
    if body.arrays:
        raise SpecError("this spec brings arrays, there is nothing to replay")
    own = request_stream(body)
    main = _Stream.of_requests(
        body, own, events, _of(arrived, own or "request"), _of(event_id, own or "request")
    )
    streams = [main]
    for name, table in _labels(body, labels).items():
        streams.append(_Stream.of_others(body, name, table, _of(arrived, name), _of(event_id, name)))
    _refuse_unknown(arrived, {"request", *body.streams}, "arrived")
    _refuse_unknown(event_id, {"request", *body.streams}, "event_id")
    _refuse_unknown(updated_at, set(body.entities), "updated_at")
    _refuse_unknown(available_at, set(body.entities), "available_at")
    fields = alias_fields(body, _aliases(aliases))
    for stream in streams:
        stream.limit(parse_duration_ns(max_ahead))
        stream.resolve(fields)

    table = main.table
    taken = [ref for ref in body.stored if ref.partition(".")[0] in (tables or {})]
    for name in (*taken, *body.windows):
        if name in table.column_names:
            raise ConfigError(
                f"the events have a column `{name}` already, which replay computes", hint="drop it before"
            )
    states: dict[str, NDArray[np.uint8]] = {}
    updated_ns: dict[str, NDArray[np.int64]] = {}
    for entity, history in (tables or {}).items():
        if entity not in body.entities:
            raise SpecError(
                f"Unknown entity `{clip(entity)}` in tables",
                hint=f"declared: {', '.join(body.entities) or 'none'}",
            )
        found = as_of(
            body,
            entity,
            history,
            [main.key_column(key) for key in body.entities[entity].key],
            main.arrived_ns,
            updated_at=_of(updated_at, entity),
            available_at=_of(available_at, entity),
        )
        for ref, column in found.columns.items():
            table = table.append_column(ref, column)
            states[ref], updated_ns[ref] = found.states, found.updated_ns
    counts = dict.fromkeys(("added", "ahead", "late", "duplicates"), 0)
    if body.windows:
        values, of_windows, counts = _run_windows(body, streams, since)
        for i, name in enumerate(body.windows):
            table = table.append_column(name, _floats(values[:, i]))
            states[name] = np.ascontiguousarray(of_windows[:, i])
    return Replayed(
        spec,
        table,
        states=states,
        updated_ns=updated_ns,
        at_ns=main.at_ns,
        arrived_ns=main.arrived_ns,
        counts=counts,
    )


# ---- the arguments ---------------------------------------------------------------------------------------------------------


def _of(given: str | Mapping[str, str | None] | None, name: str) -> str | None:
    return given.get(name) if isinstance(given, Mapping) else given


def _refuse_unknown(given: Any, known: set[str], what: str) -> None:
    unknown = sorted(set(given) - known) if isinstance(given, Mapping) else []
    if unknown:
        raise ConfigError(
            f"Unknown name `{clip(unknown[0])}` in {what}", hint=f"known: {', '.join(sorted(known))}"
        )


def _labels(body: Body, labels: Any) -> dict[str, Any]:
    others = [name for name, stream in body.streams.items() if not stream.is_request]
    if labels is None:
        given: dict[str, Any] = {}
    elif isinstance(labels, Mapping):
        given = dict(labels)
    elif len(others) == 1:
        given = {others[0]: labels}
    else:
        raise ConfigError(
            f"Expected labels by stream, got one table for {len(others)} streams",
            hint="labels={stream: table}",
        )
    for name in given:
        if name not in others:
            raise SpecError(
                f"Unknown stream `{clip(name)}` in labels",
                hint=f"declared beside the requests: {', '.join(others) or 'none'}",
            )
    missing = sorted({w.on for w in body.windows.values()} & set(others) - set(given))
    if missing:
        raise ConfigError(
            f"windows count events of stream `{missing[0]}`, of which there is no history",
            hint=f"labels={{{missing[0]!r}: table}}; a table without rows says that nothing happened",
        )
    return given


def _aliases(aliases: Any) -> dict[str, Aliases]:
    if aliases is None:
        return {}
    if isinstance(aliases, Mapping):
        found = dict(aliases)
    elif hasattr(aliases, "aliased"):
        found = {entity: aliases.aliases(entity) for entity in aliases.aliased}
    else:
        raise ConfigError(f"Expected aliases by entity, got `{type(aliases).__name__}`")
    for entity, given in found.items():
        if not isinstance(given, Aliases):
            raise ConfigError(f"Expected Aliases for `{clip(entity)}`, got `{type(given).__name__}`")
    return found


# ---- streams ---------------------------------------------------------------------------------------------------------------


class _Stream:
    """Events of one stream as canonical columns, with their times."""

    def __init__(
        self,
        name: str | None,
        table: pa.Table,
        program: Program,
        columns: Columns,
        layout: tuple[EntityWindows, ...],
        event_time: str | None,
        arrived: str | None,
        event_id: str | None,
    ) -> None:
        self.name = name
        self.table = table
        self.program = program
        self.layout = layout
        self.label = "events" if name is None else f"stream `{name}`"
        self.columns: list[Canonical | None] = [columns.by_name.get(slot) for slot in program.slot_names]
        self.extra: dict[str, int] = {}
        self.n = columns.n_rows
        self.arrived_ns, self.at_ns = self._moments(columns, event_time, arrived)
        self.counted_ns = self.at_ns
        self.n_ahead = 0
        self.hashes = None if event_id is None else self._hashes(event_id)

    @classmethod
    def of_requests(
        cls, body: Body, own: str | None, events: Any, arrived: str | None, event_id: str | None
    ) -> _Stream:
        table = as_table(events)
        types = slot_types(body)
        slots = [
            {"name": f.name, "wire": f.wire or f.name, "kind": SLOT_KINDS[f.type], "optional": f.optional}
            for f in body.fields
        ]
        behind = slot_names(body)[len(body.fields) :]
        slots += [{"name": s, "wire": s, "kind": SLOT_KINDS[types[s]], "optional": True} for s in behind]
        names = slot_names(body)
        program = Program(
            slots=slots,
            n_request=len(body.fields),
            event_slot=-1 if body.event_time is None else names.index(body.event_time),
            columns=[],
            vocabularies=[],
            tensors=[],
            zone_at_s=tuple(body.zone_at_s),
            zone_offset_s=tuple(body.zone_offset_s),
        )
        program.mark_bytes([i for i, s in enumerate(names) if types[s] == "bytes"])
        columns = read_table(table, Body(fields=body.fields))
        return cls(own, table, program, columns, window_layout(body), body.event_time, arrived, event_id)

    @classmethod
    def of_others(
        cls, body: Body, name: str, table: Any, arrived: str | None, event_id: str | None
    ) -> _Stream:
        table = as_table(table)
        program = compile_stream(body, name).program
        columns = read_events(table, body, name)
        event_time = body.streams[name].event_time
        return cls(name, table, program, columns, window_layout(body, name), event_time, arrived, event_id)

    def _moments(
        self, columns: Columns, event_time: str | None, arrived: str | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Arrival and event time of each row; the one stands in for the other where there is none."""
        came = None if arrived is None else self._column(arrived, "timestamp")
        if came is not None and came.valid is not None and not came.valid.all():
            raise FeatureMissingError(
                f"Expected the arrival of every event, got null in row {int(np.argmin(came.valid))} of {self.label}",
                path=f"$.{arrived}",
            )
        happened = None if event_time is None else columns.by_name[event_time]
        if happened is None:
            if came is None:
                raise ConfigError(
                    f"nothing says when the events of {self.label} came",
                    hint="declare event_time in the spec, or name the column of their arrival: arrived=",
                )
            return came.values, came.values
        if happened.valid is None or happened.valid.all():
            return (happened if came is None else came).values, happened.values
        if came is None:
            raise FeatureMissingError(
                f"Expected the time of every event, got null in row {int(np.argmin(happened.valid))} of {self.label}",
                path=f"$.{event_time}",
                hint="in serving such an event happens when it comes: name the column of the arrival: arrived=",
            )
        return came.values, np.where(happened.valid.astype(bool), happened.values, came.values)

    def _column(self, name: str, kind: str) -> Canonical:
        if self.table.column_names.count(name) != 1:
            raise SpecError(
                f"Expected a column `{name}` in {self.label}",
                hint=f"it has: {', '.join(self.table.column_names)}",
            )
        return canonical(self.table.column(name), kind, name)

    def _hashes(self, event_id: str) -> NDArray[np.uint64]:
        """What the rings of seen ids hold of each id; 0 where there is none."""
        if self.table.column_names.count(event_id) != 1:
            raise SpecError(
                f"Expected a column `{event_id}` in {self.label}",
                hint=f"it has: {', '.join(self.table.column_names)}",
            )
        ids = self.table.column(event_id).to_pylist()
        return np.fromiter((0 if one is None else event_hash(one) for one in ids), np.uint64, len(ids))

    def limit(self, max_ahead_ns: int) -> None:
        """Count what is dated too far ahead of its arrival at its arrival: the clock of who sent it was wrong."""
        ahead = self.at_ns - self.arrived_ns > max_ahead_ns
        self.counted_ns = np.where(ahead, self.arrived_ns, self.at_ns)
        self.n_ahead = int(ahead.sum())

    def resolve(self, fields: Mapping[str, Aliases]) -> None:
        """Put a column of what keys stood for behind the slots, for each field that has aliases."""
        for field, given in fields.items():
            if field not in self.program.slot_names:
                continue
            column = self.columns[self.program.slot_names.index(field)]
            self.extra[field] = len(self.columns)
            self.columns.append(None if column is None else resolve(given, column, self.at_ns))

    def key_slot(self, slot: int) -> int:
        """Where plans find a key: the resolved one, if its field has aliases."""
        return self.extra.get(self.program.slot_names[slot], slot)

    def key_column(self, field: str) -> Canonical:
        """The keys of a field, after aliases."""
        column = self.columns[self.key_slot(self.program.slot_names.index(field))]
        if column is None:  # an optional field that the table lacks: null in every row, of whatever kind
            column = Canonical(
                np.zeros(self.n, np.int64), np.zeros(self.n, np.uint8), np.zeros(self.n + 1, np.int64)
            )
        return column

    def plans(self, groups: Mapping[str, WindowGroup], since_ns: int) -> list[WindowPlan]:
        """What the stream's events do with each entity's windows."""
        made = []
        for windows in self.layout:
            group = groups[windows.entity]
            numbers = [
                group.register(
                    a.digest, a.kind, a.pane_ns, a.keep_panes, calendar=a.calendar, since_ns=since_ns
                )
                for a in windows.accumulators
            ]
            made.append(
                WindowPlan(
                    group,
                    self.program,
                    stream=self.name or "",
                    keys=tuple(self.key_slot(slot) for slot in windows.keys),
                    adds=tuple((numbers[a.accumulator], a.where, a.of, float(a.scale)) for a in windows.adds),
                    reads=tuple(
                        (
                            r.slot,
                            numbers[r.accumulator],
                            r.what,
                            r.n_panes,
                            r.delay_ns,
                            r.include,
                            r.lag,
                            float(r.scale),
                        )
                        for r in windows.reads
                    ),
                )
            )
        return made


# ---- windows ---------------------------------------------------------------------------------------------------------------


def _run_windows(
    body: Body, streams: list[_Stream], since: Any
) -> tuple[NDArray[np.float64], NDArray[np.uint8], dict[str, int]]:
    """Values and states of every window for every request, and what happened on the way."""
    clock = SystemClock()
    first = min((int(s.counted_ns.min()) for s in streams if s.n), default=0)
    since_ns = first if since is None else moment_ns(since, clock)
    total = sum(s.n for s in streams)
    groups = {
        windows.entity: WindowGroup(
            windows.entity,
            windows.key_kind,
            max_entities=total + 1,
            max_bytes=NO_BOUND,
            clock=clock,
        )
        for stream in streams
        for windows in stream.layout
    }
    # The state knows all of its panes before the first event comes: what is kept must not depend on who asks first.
    for stream in streams:
        stream.plans(groups, since_ns)
    if len(streams) > MAX_STREAMS:
        raise ConfigError(f"Expected at most {MAX_STREAMS} streams, got {len(streams)}")
    runner = WindowReplay()
    names = slot_names(body)
    window_slots = [names.index(name) for name in body.windows]
    for number, stream in enumerate(streams):
        given = runner.add_stream(
            stream.program,
            stream.plans(groups, since_ns),
            stream.columns,
            stream.n,
            stream.counted_ns,
            event_hash=stream.hashes,
            adds=stream.name is not None,
            windows=window_slots if number == 0 else (),
        )
        assert given == number
    which = np.concatenate([np.full(s.n, i, np.uint8) for i, s in enumerate(streams)])
    rows = np.concatenate([np.arange(s.n, dtype=np.int64) for s in streams])
    order = np.lexsort((rows, which, np.concatenate([s.arrived_ns for s in streams])))
    found, added = runner.run(which[order], rows[order])
    infos = [group.info() for group in groups.values()]
    counts = {"added": added, "ahead": sum(s.n_ahead for s in streams)}
    counts |= {name: sum(info[name] for info in infos) for name in ("late", "duplicates")}
    values, states = found[0]
    return values, states, counts


def _floats(values: NDArray[np.float64]) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - optional extra

    return pa.array(np.ascontiguousarray(values), mask=np.isnan(values))
