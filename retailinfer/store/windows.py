"""Velocity windows: how often, how much, how many different, of one entity over the last hour or month.

    store = ri.Store(windows=ri.Windows.memory())          # or ri.Windows.redis("redis://...")
    scorer = ri.Scorer(release, store=store)               # binds the windows that the release declares
    scorer.score(payment, observe=True)                    # reads them and adds the payment, in one step

Rules:
  * State belongs to entities and accumulators, which are named by the digest of their definition. Releases come and go; one
    that declares the same window finds it as it was. Windows that differ in length or delay alone share their state.
  * A value is whole or says that it is not: `stale` while a window reaches back to before its accumulator was there (unless
    history was backfilled or state restored), before what was evicted, or before what an old event may still see.
  * Everything is bounded: entities and bytes per kind of entity; the least recently updated one is forgotten first.
  * Time is an argument. It asks the clock for new accumulators, for saving, and about events from the future.
  * State in this process is of this process: workers that are forked go on with copies. Share it through Redis.
Panes and arithmetic are `_native/panes.h`; Redis is windows_redis.py; the engine (`_native/resolve.pyx`) reads and adds.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from retailinfer._native.windows import WindowGroup, WindowPlan, WindowReplay
from retailinfer.clock import Clock, SystemClock
from retailinfer.errors import ConfigError, FeatureMissingError, IntegrityError, SchemaMismatchError, clip

if TYPE_CHECKING:
    from retailinfer._native.windows import LoadedWindows

__all__ = ["WindowStats", "Windows"]

_MAGIC: Final = b"retailinfer windows 1\n"
_UNITS_NS: Final = {"s": 10**9, "m": 60 * 10**9, "h": 3_600 * 10**9, "d": 86_400 * 10**9}
_FAR_NS: Final = 1 << 62
_MAX_HEADER: Final = 1 << 24
_MAX_PIECE: Final = 1 << 30


class WindowStats(msgspec.Struct, frozen=True, kw_only=True):
    """What one kind of entity holds and what happened to its events, since the process began or state was restored.

    panes: entries of all accumulators. bytes: of memory in all. late: events older than what is kept, for some accumulator.
    duplicates: by event id, not added. ahead: dated too far in the future, taken at the clock. evicted: for want of room.
    swept: entities of which nothing could count any more. no_key: events without the entity. stepped: entities with events
    that a wrong clock had dated. refused: events with a value or a time that windows cannot hold. complete_since_ns: the
    youngest accumulator is complete from then on.
    """

    entity: str
    accumulators: int
    entities: int
    panes: int
    bytes: int
    max_entities: int
    max_bytes: int
    events: int
    late: int
    duplicates: int
    ahead: int
    evicted: int
    swept: int
    erased: int
    no_key: int
    stepped: int
    refused: int
    complete_since_ns: int | None


class Windows:
    """Counts of events by entity. Made by `Windows.memory` or `Windows.redis`; shared by all scorers of a store.

    Safe to use from many threads, coroutines and greenlets, and after a fork.
    """

    def __init__(
        self, *, max_entities: int, max_bytes: int | None, max_ahead: str | float, clock: Clock | None, transport: Any
    ) -> None:  # fmt: skip
        if (
            isinstance(max_entities, bool)
            or not isinstance(max_entities, int)
            or not 1 <= max_entities <= 1 << 30
        ):
            raise ConfigError(f"Expected max_entities from 1 to 2**30, got {clip(max_entities)}")
        if max_bytes is None:
            max_bytes = max(1 << 20, max_entities * 1_024)
        if (
            isinstance(max_bytes, bool)
            or not isinstance(max_bytes, int)
            or not 1 << 16 <= max_bytes <= 1 << 50
        ):
            raise ConfigError(f"Expected max_bytes of 65,536 or more, got {clip(max_bytes)}")
        self.clock: Clock = clock or SystemClock()
        self.transport = transport  # None: state is in this process
        self._max_entities = max_entities
        self._max_bytes = max_bytes
        self._max_ahead_ns = _duration_ns(max_ahead, "max_ahead")
        self._groups: dict[str, WindowGroup] = {}

    @classmethod
    def memory(
        cls,
        *,
        max_entities: int = 1_000_000,
        max_bytes: int | None = None,
        max_ahead: str | float = "5m",
        clock: Clock | None = None,
    ) -> Windows:
        """Windows in this process.

        Args:
            max_entities, max_bytes: for each kind of entity (card, device, ...); 1 KiB for each entity by default. Beyond
                either, the least recently updated entity is forgotten; until the windows have passed that moment, entities
                that are new or unknown read `stale`, because they may be ones that were forgotten.
            max_ahead: an event dated later than this after the clock is counted at the clock ("5m" or seconds).
        Raises: ConfigError.
        """
        return cls(
            max_entities=max_entities, max_bytes=max_bytes, max_ahead=max_ahead, clock=clock, transport=None
        )

    @classmethod
    def redis(
        cls,
        url: str,
        *,
        prefix: str = "ri",
        timeout_ms: float = 100.0,
        max_ahead: str | float = "5m",
        clock: Clock | None = None,
    ) -> Windows:
        """Windows that all processes share, in Redis: one round trip per request. Arguments: `windows_redis.RedisWindows`.

        How many entities there may be is Redis' own limit (`maxmemory`); each expires when no window needs it any more.
        """
        from retailinfer.store.windows_redis import RedisWindows  # noqa: PLC0415 - who counts in memory does without

        transport = RedisWindows(url, prefix=prefix, timeout_ms=timeout_ms, clock=clock)
        return cls(max_entities=1, max_bytes=None, max_ahead=max_ahead, clock=clock, transport=transport)

    # ---- what scorers declare ------------------------------------------------------------------------------------------

    def bind(self, layout: Any, program: Any) -> WindowPlan:
        """What a call does to one entity's windows, as a native plan; state that is new to this store begins to be kept.

        Args:
            layout: one `EntityWindows` of `spec.window_layout(...)`. program: whose slots it speaks of.
        Raises: ConfigError for windows that cannot be kept, or another kind of key than the entity had before.
        """
        group = self._group(layout.entity, layout.key_kind)
        known = len(group.accumulators)
        numbers = [
            group.register(a.digest, a.kind, a.pane_ns, a.keep_panes, calendar=a.calendar)
            for a in layout.accumulators
        ]
        plan = WindowPlan(
            group,
            program,
            stream=layout.stream or "",
            keys=tuple(layout.keys),
            adds=tuple((numbers[a.accumulator], tuple(a.where), a.of, float(a.scale)) for a in layout.adds),
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
                for r in layout.reads
            ),
        )
        if self.transport is not None and (
            known == 0 or len(group.accumulators) != known or layout.accumulators
        ):
            self.transport.declare(group)
        return plan

    def _group(self, entity: str, key_kind: str | tuple[str, ...]) -> WindowGroup:
        group = self._groups.get(entity)
        if group is None:
            group = WindowGroup(
                entity,
                key_kind,
                max_entities=self._max_entities,
                max_bytes=self._max_bytes,
                max_ahead_ns=self._max_ahead_ns,
                clock=self.clock,
                shared=self.transport is not None,
            )
            group = self._groups.setdefault(entity, group)
        if group.key_kind != key_kind:
            raise ConfigError(
                f"Expected windows of `{entity}` keyed by {group.key_kind!r} as before, got {key_kind!r}",
                hint="the key fields of an entity must have the same types in every release of a store",
            )
        return group

    # ---- history -------------------------------------------------------------------------------------------------------

    def backfill(
        self,
        spec: Any,
        stream: str,
        table: Any,
        *,
        since: Any = None,
        aliases: Mapping[str, Any] | None = None,
    ) -> int:
        """Count a stream's history; see `Store.backfill`. Each accumulator takes what is dated before its own beginning,
        and is complete from `since` on after that (by default the earliest event of `table`); what is dated before `since` is
        left out. Twice the same: counted once.

        Over Redis only one process may do it, and an interrupted one leaves what it added.
        Returns: events that were added to something. Raises: ConfigError, SpecError, FeatureError (with the row; what came
        before that row is counted, and the windows do not count as complete). Unavailable from Redis.
        """
        layouts = spec.window_layout(stream)
        program = spec.stream(stream).program
        found = spec.read_events(table, stream)
        columns: list[Any] = [found.by_name.get(name) for name in program.slot_names]
        at_ns = self._moments(found, program, stream)
        if not layouts:
            raise ConfigError(f"no window of the spec counts stream `{clip(stream)}`")
        renamed = _resolved(spec.body, program, columns, at_ns, aliases or {})
        layouts = [one._replace(keys=tuple(renamed.get(slot, slot) for slot in one.keys)) for one in layouts]
        plans = [self.bind(one, program) for one in layouts]
        if found.n_rows == 0 and since is None:
            return 0
        from_ns = int(at_ns.min()) if since is None else _moment_ns(since)
        # What came before is left out: it would be counted again by whoever adds earlier history.
        order = np.argsort(at_ns, kind="stable").astype(np.int64)
        order = order[at_ns[order] >= from_ns]
        replay = WindowReplay()
        replay.add_stream(program, plans, columns, found.n_rows, at_ns)
        if self.transport is None:
            _, added = replay.run(np.zeros(len(order), np.uint8), order, before_since=True)
        else:
            self.transport.require()  # from here on the beginning of every accumulator is known
            calls = (replay.calls(0, row, before_since=True) for row in order.tolist())
            added = self.transport.fill([call for call in row if call is not None] for row in calls)
        for layout, plan in zip(layouts, plans, strict=True):
            for add in layout.adds:
                digest = layout.accumulators[add.accumulator].digest
                if plan.group.since(digest) > from_ns:
                    if self.transport is None:
                        plan.group.set_since(digest, from_ns)
                    else:
                        self.transport.set_since(plan.group.name, digest, from_ns)
        return added

    def _moments(self, found: Any, program: Any, stream: str) -> Any:
        slot = program.event_slot
        column = None if slot < 0 else found.by_name.get(program.slot_names[slot])
        if column is None:
            raise ConfigError(
                f"nothing says when the events of stream `{clip(stream)}` happened",
                hint="declare its event_time in the spec",
            )
        values, valid = column[0], column[1]
        if valid is not None and not valid.all():
            row = int(np.argmin(valid))
            raise FeatureMissingError(
                "Expected the time of every event of a history, got null",
                path=f"$[{row}].{program.slot_names[slot]}",
            )
        return np.ascontiguousarray(values)

    # ---- single entities, figures --------------------------------------------------------------------------------------

    @property
    def entities(self) -> tuple[str, ...]:
        """Kinds of entities that have windows here."""
        return tuple(self._groups)

    def has(self, entity: str) -> bool:
        """Whether windows of this kind of entity are kept."""
        return entity in self._groups

    def erase(self, entity: str, key: Any) -> bool:
        """Forget what was counted of one entity; whether there was anything. Files that were saved before still have it.

        Raises: FeatureTypeError for a key of another kind; Unavailable when Redis does not answer.
        """
        group = self._groups.get(entity)
        if group is None:
            return False
        if self.transport is not None:
            return bool(self.transport.erase(entity, group.canonical(key)))
        return group.erase(key)

    @property
    def stats(self) -> tuple[WindowStats, ...]:
        """Figures of each kind of entity, in the order in which they were declared."""
        made = []
        for name, group in self._groups.items():
            info = group.info()
            since = [one["since_ns"] for one in group.accumulators if one["kind"] != "ids"]
            made.append(
                WindowStats(
                    entity=name,
                    accumulators=len(since),
                    max_entities=group.max_entities,
                    max_bytes=group.max_bytes,
                    complete_since_ns=max(since, default=None),
                    **{field: info[field] for field in WindowStats.__struct_fields__ if field in info},
                )
            )
        return tuple(made)

    @property
    def nbytes(self) -> int:
        """Bytes of memory in this process."""
        return sum(group.info()["bytes"] for group in self._groups.values())

    # ---- saving --------------------------------------------------------------------------------------------------------

    def dump(self) -> Iterator[bytes]:
        """All state of this process in pieces, for `restore`; other threads run between them.

        Each entity is as it was at one moment during the dump. Nothing for windows in Redis, whose state is saved there.
        """
        digest = hashlib.sha256(_MAGIC)
        yield _MAGIC
        for group in self._groups.values() if self.transport is None else ():
            for piece in _framed(group):
                digest.update(piece)
                yield piece
        yield (last := _frame(b"."))
        digest.update(last)
        yield digest.digest()

    def restore(self, read: Callable[[int], bytes], *, complete: bool = True) -> dict[str, int]:
        """Take over what `dump` gave, in place of what is there; the number of entities by kind.

        Args:
            read: gives the next so many bytes, fewer only at the end (`io.BytesIO(data).read`).
            complete: events between the dump and now are none, or will be backfilled. False: windows count from now on only
                and say so (`stale`) until they have passed this moment.
        Raises: IntegrityError for bytes that are not a whole, unchanged dump, or that contradict what releases declared here;
        SchemaMismatchError for entities with keys of another kind. Nothing has changed then.
        """
        if self.transport is not None:
            raise ConfigError("windows in Redis are restored there")
        source = _Source(read)
        if source.take(len(_MAGIC)) != _MAGIC:
            raise IntegrityError("Expected saved windows, got other bytes or another version of the format")
        loaded: list[tuple[WindowGroup, LoadedWindows]] = []
        while (header := source.frame(_MAX_HEADER)) != b".":
            group, state = self._saved_group(header, {group.name for group, _ in loaded})
            loaded.append((group, group.prepare_load(state, source.pieces())))
        expected = source.digest.digest()
        if source.take(len(expected), hashed=False) != expected:
            raise IntegrityError(
                "the checksum of saved windows is another one",
                hint="the file is damaged; restore an older one",
            )
        for group, ready in loaded:
            group.adopt(ready)
            self._groups.setdefault(group.name, group)
            now_ns = self.clock.wall_ns()
            for one in group.accumulators:
                if one["kind"] != "ids" and (not complete or one["since_ns"] > now_ns):
                    group.set_since(one["digest"], now_ns)
        return {group.name: group.info()["entities"] for group, _ in loaded}

    def _saved_group(self, header: bytes, seen: set[str]) -> tuple[WindowGroup, dict[str, Any]]:
        try:
            state = msgspec.msgpack.decode(header)
            name, kind = state["name"], state["key_kind"]
            kind = tuple(kind) if isinstance(kind, list) else kind
        except (msgspec.DecodeError, KeyError, TypeError, ValueError, RecursionError) as exc:
            raise IntegrityError(f"Expected the head of saved windows, got {clip(str(exc))}") from None
        if not isinstance(name, str) or name in seen:
            raise IntegrityError(f"Expected the windows of each entity once, got {clip(name)}")
        known = self._groups.get(name)
        if known is not None and known.key_kind != kind:
            parts = kind if isinstance(kind, tuple) else (kind,)
            if any(part not in ("str", "int", "bytes") for part in parts):
                raise IntegrityError(f"Expected the kind of keys of saved windows, got {clip(kind)}")
            raise SchemaMismatchError(
                f"Expected saved windows of `{clip(name)}` keyed by {known.key_kind!r}, got {clip(kind)}",
                hint="a release has declared other key fields since: its windows begin anew",
            )
        try:
            return known or WindowGroup(
                name,
                kind,
                max_entities=self._max_entities,
                max_bytes=self._max_bytes,
                max_ahead_ns=self._max_ahead_ns,
                clock=self.clock,
            ), state
        except (ConfigError, TypeError) as exc:
            raise IntegrityError(f"Expected the head of saved windows: {clip(str(exc), 120)}") from None

    def close(self) -> None:
        """Close connections; windows in memory have none."""
        if self.transport is not None:
            self.transport.close()

    def __repr__(self) -> str:
        where = "in this process" if self.transport is None else repr(self.transport)
        counts = ", ".join(
            f"{name}: {group.info()['entities']} entities" for name, group in self._groups.items()
        )
        return f"<Windows {where}{', ' if counts else ''}{counts if self.transport is None else ', '.join(self._groups)}>"


# ---- frames of a dump: uint32 size, then so many bytes -------------------------------------------------------------------


def _frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


def _framed(group: WindowGroup) -> Iterator[bytes]:
    state = group.state()
    yield _frame(msgspec.msgpack.encode(state))
    for piece in group.blocks():
        yield _frame(piece)
    yield _frame(b"")


class _Source:
    """Reads frames and hashes them. Every size is bounded before anything is read."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self.digest = hashlib.sha256()

    def take(self, size: int, *, hashed: bool = True) -> bytes:
        parts, left = [], size
        while left:
            part = self._read(left)
            if not part:
                raise IntegrityError(
                    "saved windows end too early", hint="the file is not whole; restore an older one"
                )
            parts.append(part)
            left -= len(part)
        data = b"".join(parts)
        if hashed:
            self.digest.update(data)
        return data

    def frame(self, most: int) -> bytes:
        size = int.from_bytes(self.take(4), "little")
        if size > most:
            raise IntegrityError("saved windows are damaged: a piece of them is too large")
        data = b""
        if size:
            data = self.take(size)
        return data

    def pieces(self) -> Iterator[bytes]:
        while piece := self.frame(_MAX_PIECE):
            yield piece


# ---- helpers -------------------------------------------------------------------------------------------------------------


def _duration_ns(value: str | float, name: str) -> int:
    """Nanoseconds of "90s", "15m", "24h", "30d" or of seconds."""
    if (
        isinstance(value, str)
        and value[:-1].isascii()
        and value[:-1].isdigit()
        and value[-1] in _UNITS_NS
        and len(value) < 9
    ):
        return int(value[:-1]) * _UNITS_NS[value[-1]]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 86_400 * 365:
        return int(value * 1e9)
    raise ConfigError(f'Expected `{name}` as seconds or a duration such as "5m", got {clip(value)}')


def _moment_ns(at: Any) -> int:
    if isinstance(at, dt.datetime) and at.tzinfo is not None:
        since = at - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
        at_ns = since // dt.timedelta(microseconds=1) * 1_000
        if abs(at_ns) < _FAR_NS:
            return at_ns
    elif isinstance(at, (int, float)) and not isinstance(at, bool) and abs(at) < _FAR_NS // 10**9:
        return int(at) * 10**9 + int((at - int(at)) * 1e9)
    raise ConfigError(
        f"Expected `since` as a datetime with a time zone or seconds since 1970, from 1824 to 2115, got {clip(at)}"
    )


def _resolved(
    body: Any, program: Any, columns: list[Any], at_ns: Any, aliases: Mapping[str, Any]
) -> dict[int, int]:
    """Columns of what keys stood for, behind the others: slot of the field -> its place."""
    places: dict[int, int] = {}
    for entity, graph in aliases.items():
        key: tuple[str, ...] = body.entities[entity].key if entity in body.entities else ()
        if len(key) != 1 or key[0] not in program.slot_names:
            continue
        slot = program.slot_names.index(key[0])
        column = columns[slot]
        if slot in places or column is None:
            continue
        values, valid, offsets, children = column
        values, offsets, _ = graph.core.resolve_column(values, offsets, at_ns, valid)
        places[slot] = len(columns)
        columns.append((values, valid, offsets, children))
    return places
