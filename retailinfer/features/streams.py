"""Streams of events: what a window needs of them, laid out in slot numbers for the store.

Rules:
  * An event has slots of its own: the stream's fields, in order, and nothing behind them. The request's stream has the
    request's fields, so that their numbers are the same in both programs.
  * Nothing here knows a store: a layout is plain numbers, and names its state by `columns.accumulator_key` alone.
  * A window is read when a request is scored, whichever stream it counts; an event of another stream only adds.
Declaring and checking is spec.py; the kernel that counts is `_native/windows`; who joins both is the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from retailinfer._native.program import Program, RequestReader
from retailinfer.columns import (
    COMPARISONS,
    WindowDef,
    accumulator_definition,
    accumulator_key,
    duration_text,
    json_text,
)
from retailinfer.errors import SpecError, clip
from retailinfer.features.program import SLOT_KINDS, event_struct, slot_names
from retailinfer.features.spec import Body, Field

if TYPE_CHECKING:
    from retailinfer.features.canonical import Columns
    from retailinfer.features.spec import StreamBody

MAX_DISTINCT = 64  # values that one pane tells apart

__all__ = [
    "Accumulator",
    "Add",
    "EntityWindows",
    "Read",
    "StreamProgram",
    "compile_stream",
    "describe_window",
    "read_events",
    "request_stream",
    "stream_fields",
    "window_layout",
]


class Accumulator(NamedTuple):
    """State of one entity that windows read and events add to.

    digest: 32 bytes, its name everywhere. kind: "count", "sum", "min", "max", "distinct". keep_panes: how many behind the
    newest one this spec reads. calendar: panes are steps of local time in the spec's zone. definition: canonical JSON of
    what the digest is of, for people.
    """

    digest: bytes
    kind: str
    pane_ns: int
    keep_panes: int
    calendar: bool
    definition: bytes

    @property
    def max_bytes(self) -> int:
        """Bytes of state that an entity takes at most: 16, and 16 for each pane that holds something (values: 8 each)."""
        return 16 + self.keep_panes * (8 * MAX_DISTINCT if self.kind == "distinct" else 16)


class Add(NamedTuple):
    """What an event of the stream adds to an accumulator.

    accumulator: place in `EntityWindows.accumulators`. where: (slot, comparison, constant) each, all of which must hold;
    comparisons are places in `columns.COMPARISONS`, constants float, int, bool or str by the kind of the slot.
    of: slot of the value, -1 for counts. scale: the value times it is rounded to a whole number; 1 where it has none.
    An event whose `of` is null adds nothing.
    """

    accumulator: int
    where: tuple[tuple[int, int, float | int | bool | str], ...]
    of: int
    scale: int


class Read(NamedTuple):
    """What a request reads: into `slot`, the panes (p - n_panes, p], where p is the pane of its moment - delay, less `lag`.

    what: count, sum, mean, min, max, distinct, or lag: the sum of one pane, null without an event in it.
    include: as if the event that is scored had been added. scale: of the accumulator's whole numbers, 1 without.
    """

    slot: int
    accumulator: int
    what: str
    n_panes: int
    delay_ns: int
    include: bool
    lag: int
    scale: int


class EntityWindows(NamedTuple):
    """All windows of one entity that a call touches: one key, one block of state.

    key_kind: of its keys, as `Snapshot.key_kind` has it: "str", or ("str", "int") for several fields. keys: their slots.
    names: of the windows, in the order of `reads`. stream: of the event that is added; None where the call adds nothing.
    """

    entity: str
    key_kind: str | tuple[str, ...]
    keys: tuple[int, ...]
    accumulators: tuple[Accumulator, ...]
    adds: tuple[Add, ...]
    reads: tuple[Read, ...]
    names: tuple[str, ...]
    stream: str | None


class StreamProgram(NamedTuple):
    """A stream's own way from an event to slots.

    program: slots only, no tensors; its zone is the spec's. reader: fills them from a dict, Struct or dataclass.
    request_type: the frozen Struct that JSON and MessagePack events decode into. event_slot: of the event time, -1 without.
    """

    name: str
    is_request: bool
    program: Program
    reader: RequestReader
    request_type: type[msgspec.Struct]
    event_slot: int


def request_stream(body: Body) -> str | None:
    """Name of the stream whose events are the requests themselves."""
    return next((name for name, stream in body.streams.items() if stream.is_request), None)


def stream_fields(body: Body, stream: str) -> tuple[Field, ...]:
    """Fields of a stream's events. Raises: SpecError for a stream that the spec has not."""
    found = _stream(body, stream)
    return body.fields if found.is_request else found.fields


def compile_stream(body: Body, stream: str) -> StreamProgram:
    """The program and the reader of a stream's events. Raises: SpecError for a stream that the spec has not."""
    fields = stream_fields(body, stream)
    found = _stream(body, stream)
    event_time = body.event_time if found.is_request else found.event_time
    names = [f.name for f in fields]
    event_slot = -1 if event_time is None else names.index(event_time)
    program = Program(
        slots=[
            {"name": f.name, "wire": f.wire or f.name, "kind": SLOT_KINDS[f.type], "optional": f.optional}
            for f in fields
        ],
        n_request=len(fields),
        event_slot=event_slot,
        columns=[],
        vocabularies=[],
        tensors=[],
        zone_at_s=tuple(body.zone_at_s),
        zone_offset_s=tuple(body.zone_offset_s),
    )
    program.mark_bytes([i for i, f in enumerate(fields) if f.type == "bytes"])
    struct = event_struct(fields, forbid_extra=body.extra == "forbid", name="Event")
    reader = RequestReader(program, request_type=struct, forbid_extra=body.extra == "forbid")
    return StreamProgram(stream, found.is_request, program, reader, struct, event_slot)


def window_layout(body: Body, stream: str | None = None) -> tuple[EntityWindows, ...]:
    """What a call does to windows, one entry an entity.

    Args:
        stream: None = scoring a request: reads every window, and adds the request's own event where the spec has a request
            stream (whether a call does add is up to it). A name = observing an event of that stream: adds only.
    Slots are those of the spec's program for None, of `compile_stream(body, stream).program` for a name.
    Raises: SpecError for a stream that the spec has not.
    """
    own = request_stream(body)
    adding = own if stream is None else stream
    fields = body.fields if stream is None else stream_fields(body, stream)
    field_slots = {f.name: i for i, f in enumerate(fields)}
    window_slots = {name: i for i, name in enumerate(slot_names(body))}
    made: list[EntityWindows] = []
    for entity in sorted({w.entity for w in body.windows.values()}):
        windows = {name: w for name, w in body.windows.items() if w.entity == entity}
        accumulators: dict[bytes, Accumulator] = {}
        adds: dict[bytes, Add] = {}
        reads: list[Read] = []
        for name, window in windows.items():
            if stream is not None and window.on != stream:
                continue
            state = accumulator_of(body, window)
            before = accumulators.setdefault(state.digest, state)
            if before.keep_panes < state.keep_panes:
                accumulators[state.digest] = before._replace(keep_panes=state.keep_panes)
            at = list(accumulators).index(state.digest)
            if window.on == adding and state.digest not in adds:
                adds[state.digest] = _add(at, window, field_slots)
            if stream is None:
                include = window.current == "include" and window.delay_ns == 0 and window.on == own
                reads.append(
                    Read(
                        window_slots[name],
                        at,
                        window.what,
                        window.n_panes,
                        window.delay_ns,
                        include,
                        window.lag,
                        window.scale or 1,
                    )
                )
        if not accumulators:
            continue
        key = body.entities[entity].key
        types = _key_types(body, entity)
        made.append(
            EntityWindows(
                entity,
                types[0] if len(types) == 1 else types,
                tuple(field_slots[k] for k in key),
                tuple(accumulators.values()),
                tuple(adds.values()),
                tuple(reads),
                tuple(windows) if stream is None else (),
                adding,
            )
        )
    return tuple(made)


def accumulator_of(body: Body, window: WindowDef) -> Accumulator:
    """The state behind one window."""
    types = {f.name: f.type for f in stream_fields(body, window.on)}
    of_type = None if window.of is None else types[window.of]
    key_types = _key_types(body, window.entity)
    return Accumulator(
        accumulator_key(window, key_types=key_types, of_type=of_type, tz=body.tz),
        window.accumulator_kind,
        window.pane_ns,
        window.keep_panes,
        window.what == "lag",
        accumulator_definition(window, key_types=key_types, of_type=of_type, tz=body.tz),
    )


def describe_window(window: WindowDef, tz: str) -> str:
    """One line for people: "sum of amount on payment where amount > 100.0, over 24h"."""
    what = {"count": "count", "distinct": "distinct"}.get(
        window.what, "sum" if window.what == "lag" else window.what
    )
    text = what if window.of is None else f"{what} of {window.of}"
    text += f" on {window.on}"
    if window.where:
        text += " where " + " and ".join(f"{t.field} {t.op} {json_text(t.value)}" for t in window.where)
    if window.what == "lag":
        step = duration_text(window.pane_ns)
        return f"{text}, {window.lag} x {step} ago ({tz})"
    text += f", over {duration_text(window.over_ns)}"
    if window.delay_ns:
        text += f" up to {duration_text(window.delay_ns)} ago"
    return text + (", without this event" if window.current == "exclude" else "")


def read_events(data: Any, body: Body, stream: str, *, first_row: int = 0) -> Columns:
    """An Arrow table of a stream's events as canonical columns, by field.

    `[columns.by_name.get(n) for n in program.slot_names]` is what native loops over events take.
    Raises: SpecError for a missing column, FeatureError for a value, with its row.
    """
    from retailinfer.features.arrow import read_table  # noqa: PLC0415 - servers get their events one by one

    fields = stream_fields(body, stream)
    return read_table(data, Body(fields=fields), first_row=first_row)


def _stream(body: Body, stream: str) -> StreamBody:
    if stream not in body.streams:
        raise SpecError(
            f"Unknown stream `{clip(stream)}`", hint=f"declared: {', '.join(body.streams) or 'none'}"
        )
    return body.streams[stream]


def _key_types(body: Body, entity: str) -> tuple[str, ...]:
    types = {f.name: f.type for f in body.fields}
    return tuple(types[k] for k in body.entities[entity].key)


def _add(at: int, window: WindowDef, slots: Mapping[str, int]) -> Add:
    where = tuple((slots[t.field], COMPARISONS.index(t.op), t.value) for t in window.where)
    return Add(at, where, -1 if window.of is None else slots[window.of], window.scale or 1)
