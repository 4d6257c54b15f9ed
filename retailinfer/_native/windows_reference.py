"""Velocity windows written down plainly: every event is kept, every window is summed anew by its definition. Slow on purpose.

What `panes.c` must agree with, bit for bit, whatever the order of events; where the two differ, this one says what was meant.
Tests drive both with the same events. Plans are told by name, as dicts of field values; times are nanoseconds since 1970.

Rules of a window of n panes, delay d, lag k, at an event's time t, over an accumulator with panes of w seconds:
  * It covers the panes (p - n, p], where p = floor((t - d) / w) - k. An accumulator of local time cuts local seconds.
  * Panes <= newest - keep are gone, where `newest` is the newest pane that the accumulator holds of the entity, and keep is
    n + ceil(d / w) + k + 2 for the window, the largest of these for the accumulator. An event that old is dropped (`late`).
  * `stale`: the window begins before its accumulator was complete, before what is known of the entity, or in panes gone.
  * An event whose id is among the last 8 of its entity and stream changes nothing, also not what it reads itself.
  * Values are rounded to whole numbers, half to even, after multiplication by the scale. |value| and the |sum| of one pane
    stay within 2**53, else the event is refused before anything has changed.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from retailinfer._native.hashing import xxh64
from retailinfer.errors import FeatureRangeError

__all__ = ["Accumulator", "Add", "Group", "Plan", "Read"]

PRESENT, NULL, UNKNOWN, STALE = 0, 1, 2, 3
SECOND_NS: Final = 10**9
EPOCH_S: Final = -631_152_000  # 1950
LIMIT: Final = 2**53
IDS: Final = 8
DISTINCT: Final = 64
DAY_S: Final = 86_400

COMPARE = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


@dataclass(frozen=True)
class Accumulator:
    """kind: count, sum, min, max, distinct. keep: panes behind the newest. offset_s: of the zone, where panes are local."""

    kind: str
    pane_s: int
    keep: int
    since_ns: int
    offset_s: int = 0

    def pane(self, time_ns: int) -> int:
        return (time_ns // SECOND_NS + self.offset_s) // self.pane_s

    def start_ns(self, pane: int) -> int:
        return (pane * self.pane_s - self.offset_s) * SECOND_NS


@dataclass(frozen=True)
class Add:
    """What an event adds to an accumulator: the field `of` times scale, where all comparisons (field, op, constant) hold."""

    accumulator: int
    of: str | None = None
    scale: float = 1
    where: tuple[tuple[str, str, Any], ...] = ()


@dataclass(frozen=True)
class Read:
    """One window: what it tells of which accumulator, over how many panes."""

    accumulator: int
    what: str
    n: int
    delay_ns: int = 0
    lag: int = 0
    with_event: bool = False
    scale: float = 1


@dataclass(frozen=True)
class Plan:
    """What the events of one stream do: keys are the fields of the entity's key."""

    stream: str
    keys: tuple[str, ...]
    adds: tuple[Add, ...]
    reads: tuple[Read, ...]


@dataclass
class Entity:
    """All events of one entity: by accumulator (pane, value); ids by stream."""

    known_s: int
    last_s: int = 0
    events: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    ids: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))


class Group:
    """All entities of one kind, least recently updated first."""

    def __init__(
        self, accumulators: Sequence[Accumulator], *, max_entities: int = 10**9, max_ahead_ns: int = 300 * SECOND_NS
    ) -> None:  # fmt: skip
        self.accumulators = list(accumulators)
        self.entities: OrderedDict[tuple[Any, ...], Entity] = OrderedDict()
        self.evicted_until_s = 0
        self.max_entities = max_entities
        self.max_ahead_ns = max_ahead_ns
        self.counts = dict.fromkeys(("events", "late", "duplicates", "ahead", "evicted", "swept"), 0)

    def run(
        self,
        plan: Plan,
        values: Mapping[str, Any],
        at_ns: int,
        *,
        now_ns: int = 0,
        event_hash: int = 0,
        add: bool = True,
    ) -> list[tuple[float, int]]:
        """What the windows read as of an event, which is added after that. Raises: FeatureRangeError."""
        ahead = now_ns > 0 and at_ns > now_ns + self.max_ahead_ns
        if ahead:
            at_ns = now_ns
        key = tuple(values.get(name) for name in plan.keys)
        if any(part is None for part in key):
            return [(float("nan"), UNKNOWN)] * len(plan.reads)
        given = {one.accumulator: self._input(one, values) for one in plan.adds}
        entity = self.entities.get(key)
        duplicate = entity is not None and event_hash != 0 and event_hash in entity.ids[plan.stream]
        if entity is not None and not duplicate:
            self._check_sums(entity, given, at_ns)
        read = [
            self._read(one, entity, None if duplicate else given.get(one.accumulator), at_ns)
            for one in plan.reads
        ]
        if add:
            self.counts["ahead"] += ahead
            if duplicate:
                self.counts["duplicates"] += 1
            else:
                self._add(plan.stream, key, given, at_ns, now_ns, event_hash)
        return read

    def erase(self, key: tuple[Any, ...]) -> bool:
        """Forget one entity."""
        return self.entities.pop(key, None) is not None

    # ---- an event ------------------------------------------------------------------------------------------------------

    def _input(self, add: Add, values: Mapping[str, Any]) -> int | None:
        """The whole number that the event adds; None: it adds nothing."""
        for name, op, constant in add.where:
            value = values.get(name)
            if value is None or not COMPARE[op](value, constant):
                return None
        if add.of is None:
            return 0
        value = values.get(add.of)
        if value is None:
            return None
        if self.accumulators[add.accumulator].kind == "distinct":
            return _hash32(value)
        if isinstance(value, int) and abs(value) > LIMIT:
            raise FeatureRangeError("Expected a number that windows can hold", path=f"$.{add.of}")
        scaled = float(value) * add.scale
        if not abs(scaled) <= LIMIT:
            raise FeatureRangeError("Expected a number that windows can hold", path=f"$.{add.of}")
        return round(scaled)

    def _check_sums(self, entity: Entity, given: Mapping[int, int | None], at_ns: int) -> None:
        for number, value in given.items():
            acc = self.accumulators[number]
            pane, events = acc.pane(at_ns), entity.events[number]
            if (
                value is None
                or acc.kind != "sum"
                or pane <= max((p for p, _ in events), default=pane) - acc.keep
            ):
                continue
            if (
                any(p == pane for p, _ in events)
                and abs(sum(v for p, v in events if p == pane) + value) > LIMIT
            ):
                raise FeatureRangeError("Expected the sum of a pane to stay within 2**53", path="$")

    def _add(
        self, stream: str, key: tuple[Any, ...], given: Mapping[int, int | None], at_ns: int, now_ns: int, event_hash: int
    ) -> None:  # fmt: skip
        entity = self.entities.get(key)
        fresh = entity is None
        entity = entity or Entity(known_s=self.evicted_until_s)
        taken = late = False
        for number, value in given.items():
            acc, events = self.accumulators[number], entity.events[number]
            if value is None:
                continue
            if events and acc.pane(at_ns) <= max(p for p, _ in events) - acc.keep:
                late = True
            else:
                events.append((acc.pane(at_ns), value))
                taken = True
        self.counts["late"] += late
        if not taken:
            return
        if event_hash:
            entity.ids[stream] = [*entity.ids[stream], event_hash][-IDS:]
        entity.last_s = max(entity.last_s, at_ns // SECOND_NS - EPOCH_S)
        self.entities[key] = entity
        self.entities.move_to_end(key)
        self.counts["events"] += 1
        if fresh and now_ns > 0:
            self._sweep(now_ns)
        while len(self.entities) > self.max_entities:
            self._forget_oldest()
            self.counts["evicted"] += 1

    def _sweep(self, now_ns: int) -> None:
        horizon_s = max(
            a.pane_s * (a.keep + 2) + 2 * (2 * DAY_S if a.offset_s else 1) for a in self.accumulators
        )
        for _ in range(2):
            oldest = next(iter(self.entities.values()))
            if len(self.entities) == 1 or oldest.last_s + horizon_s >= now_ns // SECOND_NS - EPOCH_S:
                return
            self._forget_oldest()
            self.counts["swept"] += 1

    def _forget_oldest(self) -> None:
        _, entity = self.entities.popitem(last=False)
        self.evicted_until_s = max(self.evicted_until_s, entity.last_s + 1)

    # ---- a window ------------------------------------------------------------------------------------------------------

    def _read(self, read: Read, entity: Entity | None, given: int | None, at_ns: int) -> tuple[float, int]:
        acc = self.accumulators[read.accumulator]
        events = list(entity.events[read.accumulator]) if entity else []
        last = acc.pane(at_ns - read.delay_ns) - read.lag
        first = last - read.n + 1
        known_s = entity.known_s if entity else self.evicted_until_s
        stale = acc.start_ns(first) < acc.since_ns
        stale |= known_s > 0 and acc.start_ns(first) < (known_s + EPOCH_S) * SECOND_NS
        keep = read.n + -(-read.delay_ns // (acc.pane_s * SECOND_NS)) + read.lag + 2
        gone = max((p for p, _ in events), default=None)
        if gone is not None and gone - keep >= first:
            first, stale = gone - keep + 1, True
        if read.with_event and given is not None:
            events.append((acc.pane(at_ns), given))
        found = [v for p, v in events if first <= p <= last]
        value: float | None
        if read.what == "count":
            value = float(len(found))
        elif read.what == "distinct":
            value = float(min(len(set(found)), DISTINCT))
        elif read.what == "sum":
            value = float(sum(found)) / read.scale
        elif not found:
            return float("nan"), NULL
        elif read.what == "mean":
            value = float(sum(found)) / float(len(found)) / read.scale
        else:
            whole = min(found) if read.what == "min" else max(found) if read.what == "max" else sum(found)
            value = float(whole) / read.scale
        return value, STALE if stale else PRESENT


def _hash32(value: Any) -> int:
    """The low half of XXH64 over the value's canonical bytes."""
    if isinstance(value, str):
        data = value.encode()
    elif isinstance(value, bytes):
        data = value
    elif isinstance(value, float):
        import struct  # noqa: PLC0415 - only floats need it

        data = struct.pack("<d", value + 0.0)  # -0.0 is no other number
    else:
        data = int(value).to_bytes(8, "little", signed=True)
    return xxh64(data) & 0xFFFF_FFFF
