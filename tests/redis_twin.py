"""A readable twin of the script that adds to windows in Redis: the same values out of the same operations, in plain Python."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

COUNT, SUM, MIN, MAX, DISTINCT, IDS = range(6)
MOST = 2**53
FORMATS = {COUNT: "<II", SUM: "<IIq", MIN: "<Iq", MAX: "<Iq", DISTINCT: "<II", IDS: "<Q"}


@dataclass(frozen=True)
class Step:
    """What an event does to one accumulator."""

    digest: bytes
    kind: int
    applies: bool
    keep: int
    life_s: int
    pane: int
    limit: int
    value: int

    def pack(self) -> bytes:
        return struct.pack(
            "<8sBBHIIIIq", self.digest, self.kind, self.applies, 0, self.keep, self.life_s, self.pane, self.limit, self.value
        )  # fmt: skip


@dataclass(frozen=True)
class Event:
    """What a request does to one entity."""

    now_s: int
    steps: Sequence[Step]
    id: bytes = bytes(8)
    ring: bytes = b"ring...."
    add: bool = True

    def pack(self) -> bytes:
        head = struct.pack("<BBHI8s8s", 1, self.add, len(self.steps), self.now_s, self.id, self.ring)
        return head + b"".join(step.pack() for step in self.steps)


@dataclass
class Section:
    """One accumulator of one entity."""

    kind: int
    keep: int
    until_s: int
    entries: list[tuple[int, ...]]


@dataclass
class Value:
    """All that Redis keeps of one entity."""

    known_s: int = 0
    sections: dict[bytes, Section] = field(default_factory=dict)

    def pack(self) -> bytes:
        body = b"".join(
            struct.pack("<8sBBHII", digest, s.kind, 0, len(s.entries), s.keep, s.until_s)
            + b"".join(struct.pack(FORMATS[s.kind], *entry) for entry in s.entries)
            for digest, s in self.sections.items()
        )
        return struct.pack("<4sII", b"RIW1", 12 + len(body), self.known_s) + body


def unpack(value: bytes) -> Value:
    """The value in pieces."""
    magic, size, known_s = struct.unpack_from("<4sII", value)
    assert (magic, size) == (b"RIW1", len(value))
    sections, at = {}, 12
    while at < size:
        digest, kind, _, count, keep, until_s = struct.unpack_from("<8sBBHII", value, at)
        at += 20
        width = struct.calcsize(FORMATS[kind])
        entries = [struct.unpack_from(FORMATS[kind], value, at + i * width) for i in range(count)]
        at += count * width
        sections[digest] = Section(kind, keep, until_s, entries)
    return Value(known_s, sections)


class Refused(Exception):  # noqa: N818 - an outcome
    """A sum would leave its range: nothing of the request is added."""


def after(value: bytes | None, event: Event) -> bytes | None:
    """The value with the event in it; raises Refused."""
    if not event.add:
        return value
    old = Value() if value is None else unpack(value)
    has_id = event.id != bytes(8)
    ring = old.sections.get(event.ring)
    if has_id and ring is not None and struct.unpack("<Q", event.id) in ring.entries:
        return value
    made: dict[bytes, Section] = {}
    known_s, taken, end_of_ids, refused = old.known_s, False, 0, False
    for step in event.steps:
        if not step.applies:
            continue
        # How long a section matters is written with every new pane, not with every event.
        end_of_ids = max(end_of_ids, event.now_s + step.life_s)
        before = old.sections.get(step.digest, Section(step.kind, 0, 0, []))
        keep, until_s = max(before.keep, step.keep), before.until_s
        entries = [entry for entry in before.entries if entry[0] <= step.limit]
        changed = len(entries) < len(before.entries)
        if changed:
            known_s = event.now_s + 1
        newest = max((entry[0] for entry in entries), default=-1)
        if not entries or step.pane > newest - keep:
            taken = True
            try:
                entries, touched = with_event(step, entries)
            except Refused:
                refused, touched = True, False
            changed |= touched
            if touched and step.pane > newest:
                until_s = max(until_s, event.now_s + step.life_s)
                entries = [entry for entry in entries if entry[0] > step.pane - keep]
        if step.digest in old.sections and before.until_s < event.now_s:
            until_s, changed = event.now_s + step.life_s, True  # an event out of the past, but it is one
        if changed:
            made[step.digest] = Section(step.kind, keep, until_s, entries)
    if refused:
        raise Refused
    if not taken:
        return value
    if has_id:
        seen = ring.entries if ring else []
        end_of_ids = max(end_of_ids, ring.until_s if ring else 0)
        made[event.ring] = Section(IDS, 0, end_of_ids, [*seen[-7:], struct.unpack("<Q", event.id)])
    if not made:
        return value
    sections = {}
    for digest in [*old.sections, *made]:
        if digest in made:
            sections[digest] = made[digest]
        elif old.sections[digest].until_s >= event.now_s:
            sections[digest] = old.sections[digest]
    return Value(known_s, sections).pack()


def with_event(step: Step, entries: list[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], bool]:
    """The entries with the event in its pane, and whether that changed anything."""
    same = [entry for entry in entries if entry[0] == step.pane]
    other = [entry for entry in entries if entry[0] != step.pane]
    if step.kind == DISTINCT:
        if (step.pane, step.value) in same or len(same) >= 64:
            return entries, False
        return sorted([*entries, (step.pane, step.value)]), True
    if step.kind in (MIN, MAX):
        value = (min if step.kind == MIN else max)([step.value, *(entry[1] for entry in same)])
        new: tuple[int, ...] = (step.pane, value)
    else:
        count = sum(entry[1] for entry in same) + 1
        total = sum(entry[2] for entry in same) + step.value if step.kind == SUM else 0
        if count > 2**32 - 1 or abs(total) > MOST:
            raise Refused
        new = (step.pane, count, total) if step.kind == SUM else (step.pane, count)
    return (entries, False) if same == [new] else (sorted([*other, new]), True)


def after_all(values: Sequence[bytes | None], events: Sequence[Event]) -> list[bytes | None]:
    """The values of all entities of a request after it."""
    try:
        return [after(value, event) for value, event in zip(values, events, strict=True)]
    except Refused:
        return list(values)


def sections(value: bytes) -> Iterator[tuple[bytes, Section]]:
    """Sections of a value by digest."""
    yield from unpack(value).sections.items()
