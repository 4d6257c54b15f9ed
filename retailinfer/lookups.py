"""What a release looks up in a store: which slots find which rows, under which names, and which windows they read.

Rules:
  * Everything is checked when a release is loaded: tables, their keys and columns, windows, the fields that have aliases.
    What does not fit raises there, and never at a request.
  * A field with aliases has a second slot, behind those of the program, that holds the key it goes by. Look-ups read that
    one; features read the field.
  * Plans hold no state: two releases over one store share its tables and windows.
Who uses the plans: `_native/engine.pyx` and `_native/resolve.pyx`. Who calls this: pipeline.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from retailinfer._native.engine import EntityPlan
from retailinfer._native.resolve import LivePlan, Observer, Resolver
from retailinfer.clock import Clock, SystemClock
from retailinfer.errors import ConfigError, SchemaMismatchError
from retailinfer.features.program import slot_names
from retailinfer.features.streams import compile_stream, request_stream, stream_fields, window_layout

if TYPE_CHECKING:
    from retailinfer._native.program import Program
    from retailinfer.features.spec import Body
    from retailinfer.features.streams import EntityWindows
    from retailinfer.store.store import Store

__all__ = ["Lookups", "compile_lookups", "compile_observer"]

SECTION_CODES = {"context": 0, "item": 1, "cross": 2}


class Lookups(NamedTuple):
    """What an engine is given. resolver: None where snapshots are all there is."""

    snapshots: tuple[EntityPlan, ...]
    resolver: Resolver | None


def compile_lookups(
    body: Body,
    store: Store | None,
    program: Program,
    *,
    slot_sections: Mapping[str, str],
    ranks: bool,
    clock: Clock,
) -> Lookups:
    """Plans for the request's entities and windows.

    Args:
        slot_sections: "context", "item" or "cross" by slot. ranks: for a ranker: its candidates' table is a Snapshot.
    Raises: ConfigError for what the store lacks, SchemaMismatchError for what it has in another shape.
    """
    fields = [f.name for f in body.fields]
    aliases = _aliases(body, store, fields, ranks=ranks)
    key_slots = {name: i for i, name in enumerate(fields)}
    for i, (field, _) in enumerate(aliases):
        key_slots[field] = len(slot_names(body)) + i
    snapshots: list[EntityPlan] = []
    live: list[LivePlan] = []
    clocks: list[Clock] = []
    index = {name: i for i, name in enumerate(slot_names(body))}
    for name, entity in body.entities.items():
        refs = [r for r in body.stored if r.partition(".")[0] == name]
        wants_candidates = ranks and name == body.candidate and store is not None and name in store
        if not refs and not wants_candidates:
            continue
        if store is None or name not in store:
            raise ConfigError(
                f"the features read the table `{name}` ({', '.join(refs)}), which no store holds",
                hint=f"load(..., store=ri.Store(tables={{{name!r}: ...}}))",
            )
        table = store[name]
        _check_key(body, name, table.key_kind)
        section = SECTION_CODES[slot_sections[refs[0]] if refs else "item"]
        shape = (
            section,
            tuple(key_slots[k] for k in entity.key),
            tuple(index[r] for r in refs),
            tuple(r.partition(".")[2] for r in refs),
            tuple(body.stored[r] for r in refs),
        )
        if not store.is_live(name):
            snapshots.append(EntityPlan(name, store.slot(name), *shape))
            continue
        if ranks and section == 1:
            raise ConfigError(
                f"the candidates' table `{name}` is a FeatureTable: rankings copy rows that were computed before",
                hint=f"make it a Snapshot and swap it whole: ri.Store(tables={{{name!r}: ri.Snapshot...}})",
            )
        live.append(LivePlan(name, table, *shape, clock=_number(clocks, table.clock)))
    layout = window_layout(body)
    if ranks:
        _check_ranked_windows(body, layout, slot_sections)
    windows = _bind(layout, store, program, {i: key_slots[name] for i, name in enumerate(fields)})
    if not (live or windows or aliases):
        return Lookups(tuple(snapshots), None)
    resolver = Resolver(
        plans=tuple(live),
        clocks=tuple(clocks),
        clock=clock,
        aliases=tuple((fields.index(field), table) for field, table in aliases),
        n_slots=len(slot_names(body)),
        windows=windows,
        transport=_transport(store, windows),
        can_observe=bool(windows) and request_stream(body) is not None,
    )
    return Lookups(tuple(snapshots), resolver)


def compile_observer(
    body: Body, store: Store | None, stream: str, *, clock: Clock, budget_ns: int
) -> Observer:
    """The way of one stream's events into the windows. Raises: SpecError for an unknown stream, ConfigError."""
    compiled = compile_stream(body, stream)
    fields = [f.name for f in stream_fields(body, stream)]
    aliases = _aliases(body, store, fields, ranks=False)
    key_slots = {i: i for i in range(len(fields))}
    for i, (field, _) in enumerate(aliases):
        key_slots[fields.index(field)] = len(fields) + i
    windows = _bind(window_layout(body, stream), store, compiled.program, key_slots)
    resolver = Resolver(
        plans=(),
        clocks=(),
        clock=clock,
        aliases=tuple((fields.index(field), table) for field, table in aliases),
        n_slots=len(fields),
        windows=windows,
        transport=_transport(store, windows),
        can_observe=True,
    )
    return Observer(
        stream=stream,
        program=compiled.program,
        reader=compiled.reader,
        resolver=resolver,
        clock=clock,
        budget_ns=budget_ns,
    )


def _check_key(body: Body, name: str, have: str | tuple[str, ...]) -> None:
    entity = body.entities[name]
    types = {f.name: f.type for f in body.fields}
    kinds = tuple(types[k] for k in entity.key)
    wanted = kinds if len(kinds) > 1 else kinds[0]
    if have != wanted:
        # ("str",) is not "str": keys that are tuples of one are stored in another form
        raise SchemaMismatchError(
            f"Expected table `{name}` keyed by {wanted!r} ({', '.join(entity.key)}), got {have!r}",
            hint='key types of table and request must be the same; one column is key="id", not key=["id"]',
        )


def _aliases(body: Body, store: Store | None, fields: list[str], *, ranks: bool) -> list[tuple[str, Any]]:
    """(field, native graph) of the key fields that go by other names."""
    found: list[tuple[str, Any]] = []
    types = {f.name: f.type for f in body.fields}
    for name in () if store is None else store.aliased:
        entity = body.entities.get(name)
        if entity is None or store is None:
            continue
        aliases = store.aliases(name)
        if len(entity.key) != 1:
            raise ConfigError(
                f"entity `{name}` has aliases and a key of {len(entity.key)} fields, expected one"
            )
        field = entity.key[0]
        if types[field] != aliases.key_kind:
            raise SchemaMismatchError(
                f"Expected aliases of `{name}` for keys of type {types[field]}, got {aliases.key_kind}",
                hint=f"ri.Store(aliases={{{name!r}: {types[field]!r}}})",
            )
        if ranks and body.candidate is not None and field in body.entities[body.candidate].key:
            raise ConfigError(
                f"`{name}` has aliases and its key is the candidate's: candidates are ranked under their own ids"
            )
        if field in fields and all(field != known for known, _ in found):
            found.append((field, aliases.core))
    return found


def _check_ranked_windows(
    body: Body, layout: tuple[EntityWindows, ...], slot_sections: Mapping[str, str]
) -> None:
    """A ranking reads windows of its context. Raises: ConfigError for windows of the candidates, by name."""
    own = body.entities[body.candidate].key if body.candidate is not None else ()
    fields = [f.name for f in body.fields]
    for windows in layout:
        if any(fields[slot] in own for slot in windows.keys):
            raise ConfigError(
                f"windows of the candidates are not read in rankings: {', '.join(windows.names)}",
                hint="keep them as columns of the candidates' table, or rank by windows of the context",
            )
        used = [
            fields[slot] for add in windows.adds for slot in (add.of, *(t[0] for t in add.where)) if slot >= 0
        ]
        if any(field in own for field in used):
            raise ConfigError(
                f"windows of `{windows.entity}` count a field of the candidate, which a ranking's context does not have",
                hint="observe what was shown or bought as events of a stream of its own",
            )


def _bind(
    layout: tuple[EntityWindows, ...], store: Store | None, program: Program, key_slots: Mapping[int, int]
) -> tuple[Any, ...]:
    """Native plans over the store's windows."""
    if not layout:
        return ()
    if store is None or store.windows is None:
        names = [name for windows in layout for name in windows.names]
        raise ConfigError(
            f"the features read windows ({', '.join(names) or layout[0].entity}), and no store has any",
            hint="load(..., store=ri.Store(windows=ri.Windows.memory()))",
        )
    return tuple(
        store.windows.bind(one._replace(keys=tuple(key_slots[slot] for slot in one.keys)), program)
        for one in layout
    )


def _transport(store: Store | None, windows: tuple[Any, ...]) -> Any:
    """Who makes the round trips of windows whose state is elsewhere; None where it is in this process."""
    shared = any(plan.group.shared for plan in windows)
    return store.windows.transport if shared and store is not None and store.windows is not None else None


def _number(clocks: list[Clock], clock: Clock) -> int:
    """Number of a clock; all system clocks are one."""
    for i, known in enumerate(clocks):
        if known is clock or (type(known) is SystemClock and type(clock) is SystemClock):
            return i
    clocks.append(clock)
    return len(clocks) - 1
