"""Windows in the native kernel and in its twin, driven by the same events.

Rules:
  * `Both.run` gives an event to both and compares what they read, bit for bit, or the errors that they raise.
  * Fields: card (text) and shop (int) for keys; amount (float), n (int), device (text), ok (bool) for values.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from retailinfer._native.program import Program
from retailinfer._native.windows import WindowGroup, WindowPlan
from retailinfer._native.windows_reference import Accumulator, Group, Plan
from retailinfer.errors import FeatureRangeError

__all__ = [
    "FIELDS",
    "PRESENT",
    "SECOND",
    "STALE",
    "UNKNOWN",
    "Both",
    "acc_digest",
    "bits",
    "native_plan",
    "program_of",
]

SECOND = 10**9
PRESENT, NULL, UNKNOWN, STALE = 0, 1, 2, 3
FLOAT, INT, BOOL, TEXT = 0, 1, 2, 4
FIELDS = {"card": TEXT, "shop": INT, "amount": FLOAT, "n": INT, "device": TEXT, "ok": BOOL}
OPS = ("<", "<=", ">", ">=", "==", "!=")


def program_of(n_windows: int, *, offset_s: int = 0) -> Program:
    """Slots for the fields and then the windows."""
    slots = [{"name": name, "wire": name, "kind": kind, "optional": True} for name, kind in FIELDS.items()]
    slots += [{"name": f"w{i}", "wire": f"w{i}", "kind": FLOAT, "optional": True} for i in range(n_windows)]
    return Program(
        slots=slots, n_request=len(FIELDS), event_slot=-1, columns=[], vocabularies=[], tensors=[],
        zone_at_s=(), zone_offset_s=(offset_s,),
    )  # fmt: skip


def acc_digest(number: int) -> bytes:
    """A name for an accumulator."""
    return hashlib.sha256(b"accumulator %d" % number).digest()


def native_plan(group: WindowGroup, accumulators: Sequence[Accumulator], plan: Plan) -> WindowPlan:
    """The native plan of one of the twin's."""
    numbers = [
        group.register(
            acc_digest(i), a.kind, a.pane_s * SECOND, a.keep, calendar=a.offset_s != 0, since_ns=a.since_ns
        )
        for i, a in enumerate(accumulators)
    ]
    names = list(FIELDS)
    offset_s = max((a.offset_s for a in accumulators), default=0)
    return WindowPlan(
        group,
        program_of(len(plan.reads), offset_s=offset_s),
        stream=plan.stream,
        keys=tuple(names.index(name) for name in plan.keys),
        adds=tuple(
            (
                numbers[a.accumulator],
                tuple((names.index(name), OPS.index(op), constant) for name, op, constant in a.where),
                -1 if a.of is None else names.index(a.of),
                float(a.scale),
            )
            for a in plan.adds
        ),
        reads=tuple(
            (
                len(FIELDS) + i,
                numbers[r.accumulator],
                r.what,
                r.n,
                r.delay_ns,
                r.with_event,
                r.lag,
                float(r.scale),
            )
            for i, r in enumerate(plan.reads)
        ),
    )


def bits(read: Sequence[tuple[float, int]] | None) -> list[tuple[bytes, int]]:
    """What was read, comparable: the value's own bits (any NaN is one) and the state."""
    assert read is not None
    return [(b"nan" if math.isnan(value) else struct.pack("<d", value), state) for value, state in read]


class Both:
    """One group and one plan, native and twin."""

    def __init__(
        self, accumulators: Sequence[Accumulator], plan: Plan, *, max_entities: int = 10**6, clock: Any = None
    ) -> None:
        kinds = tuple({TEXT: "str", INT: "int"}[FIELDS[name]] for name in plan.keys)
        self.group = WindowGroup(
            "card", kinds if len(kinds) > 1 else kinds[0], max_entities=max_entities, clock=clock
        )
        self.accumulators = list(accumulators)
        self.plan = plan
        self.native = native_plan(self.group, accumulators, plan)
        self.twin = Group(accumulators, max_entities=max_entities)
        self._slots = {name: slot for slot, name in enumerate(FIELDS)}

    def values(self, given: Mapping[str, Any]) -> dict[int, Any]:
        return {self._slots[name]: value for name, value in given.items()}

    def run_native(self, given: Mapping[str, Any], at_ns: int, **options: Any) -> list[tuple[float, int]]:
        found = self.native.run(self.values(given), at_ns, **options)
        assert found is not None
        return found

    def run(self, given: Mapping[str, Any], at_ns: int, **options: Any) -> list[tuple[float, int]] | None:
        """One event to both. None: both refused it."""
        try:
            expected = self.twin.run(self.plan, given, at_ns, **options)
        except FeatureRangeError:
            expected = None
        try:
            found = self.native.run(self.values(given), at_ns, **options)
        except FeatureRangeError:
            found = None
        if expected is None or found is None:
            assert expected is found, (expected, found)
            return None
        assert bits(found) == bits(expected), (found, expected)
        return found

    def check_counts(self) -> None:
        """The same numbers of what happened, the same entities."""
        info = self.group.info()
        assert {name: info[name] for name in self.twin.counts} == self.twin.counts
        assert info["entities"] == len(self.twin.entities)

    def read(self, given: Mapping[str, Any], at_ns: int) -> list[tuple[bytes, int]]:
        return bits(self.native.run(self.values(given), at_ns, add=False))
