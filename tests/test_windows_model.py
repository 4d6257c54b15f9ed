"""Random windows and random events: the native kernel against the twin that keeps every event.

Rules:
  * Times cluster around pane edges and go back and forth, so that events are late, simultaneous, and from the future.
  * Whatever is compared is compared bit for bit: values, states, counters.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from windows_both import SECOND, Both, bits, native_plan

from retailinfer._native.windows import WindowGroup
from retailinfer._native.windows_reference import Accumulator, Add, Plan, Read

T0 = 1_700_000_000 * SECOND
CARDS = ["a", "b", "", "cc" * 40, "ü"]
AMOUNTS = st.one_of(
    st.none(),
    st.floats(-1e6, 1e6, allow_nan=False),
    st.sampled_from([0.0, -0.0, 0.005, 0.015, 1e13, -1e13, 9.1e13, 1e300]),
)
WHATS = {
    "count": ("count",),
    "sum": ("sum", "mean", "count", "lag"),
    "min": ("min",),
    "max": ("max",),
    "distinct": ("distinct",),
}


@st.composite
def windows(draw: st.DrawFn) -> tuple[list[Accumulator], Plan]:
    """Accumulators, and a plan that adds to most of them and reads all."""
    accumulators, adds, reads = [], [], []
    offset_s = draw(st.sampled_from([0, 0, 3_600, -19_800]))
    for number in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(sorted(WHATS)))
        pane_s = draw(st.sampled_from([1, 7, 60, 120, 3_600, 86_400]))
        of = {"count": None, "distinct": draw(st.sampled_from(["device", "n", "amount", "ok"]))}.get(
            kind, draw(st.sampled_from(["amount", "n"]))
        )
        scale = draw(st.sampled_from([1.0, 100.0])) if kind in ("sum", "min", "max") else 1.0
        where = draw(
            st.sampled_from(
                [(), (("ok", "==", True),), (("amount", ">", 10.5),), (("device", "!=", "x"), ("n", "<=", 3))]
            )
        )
        keep = 0
        for _ in range(draw(st.integers(1, 3))):
            n = draw(st.integers(1, 12))
            delay_ns = draw(st.sampled_from([0, 0, 0, pane_s, 2 * pane_s, pane_s + 1])) * SECOND
            lag = draw(st.integers(0, 3)) if kind == "sum" else 0
            what = draw(st.sampled_from(WHATS[kind]))
            keep = max(keep, n + -(-delay_ns // (pane_s * SECOND)) + lag + 2)
            reads.append(Read(number, what, n, delay_ns, lag, draw(st.booleans()), scale))
        since_ns = draw(st.sampled_from([-(2**62), T0 - 100 * SECOND, T0 + 1_000 * SECOND]))
        accumulators.append(
            Accumulator(
                kind, pane_s, keep + draw(st.integers(0, 2)), since_ns, offset_s if kind == "sum" else 0
            )
        )
        if draw(st.integers(0, 5)):
            adds.append(Add(number, of, scale, where))
    keys = draw(st.sampled_from([("card",), ("shop",), ("card", "shop")]))
    return accumulators, Plan("payment", keys, tuple(adds), tuple(reads))


EVENTS = st.fixed_dictionaries(
    {
        "card": st.one_of(st.none(), st.sampled_from(CARDS)),
        "shop": st.sampled_from([0, 1, -(2**63)]),
        "amount": AMOUNTS,
        "n": st.one_of(st.none(), st.integers(-5, 5), st.sampled_from([2**53, -(2**53), 2**53 + 1])),
        "device": st.one_of(st.none(), st.sampled_from(["x", "y", "z", ""])),
        "ok": st.one_of(st.none(), st.booleans()),
    }
)
STEPS = st.one_of(
    st.integers(-3, 3),
    st.integers(-200, 400),
    st.integers(-90_000, 200_000),
    st.sampled_from([0, 60, 120, 86_400]),
)


class WindowsAgree(RuleBasedStateMachine):
    """The native kernel and the twin, one event after the other, with saving and restoring in between."""

    @initialize(made=windows(), max_entities=st.sampled_from([1, 2, 1_000]))
    def begin(self, made: tuple[list[Accumulator], Plan], max_entities: int) -> None:
        self.both = Both(*made, max_entities=max_entities)
        self.time_s = 0

    @rule(
        event=EVENTS, step=STEPS, part=st.sampled_from([0, 1, 999_999_999]), clock=st.sampled_from([None, 0, 400, -400]),
        event_id=st.integers(0, 10), add=st.booleans() | st.just(True),
    )  # fmt: skip
    def event(
        self, event: dict[str, Any], step: int, part: int, clock: int | None, event_id: int, add: bool
    ) -> None:
        self.time_s += step
        at_ns = T0 + self.time_s * SECOND + part
        now_ns = 0 if clock is None else at_ns + clock * SECOND
        self.both.run(event, at_ns, now_ns=now_ns, event_hash=event_id, add=add)

    @rule(card=st.sampled_from(CARDS), shop=st.sampled_from([0, 1]))
    def erase(self, card: str, shop: int) -> None:
        key = tuple({"card": card, "shop": shop}[name] for name in self.both.plan.keys)
        assert self.both.group.erase(key if len(key) > 1 else key[0]) == self.both.twin.erase(key)

    @rule(step_bytes=st.sampled_from([1_024, 4_096]))
    def save_and_restore(self, step_bytes: int) -> None:
        group = self.both.group
        state, pieces = group.state(), list(group.blocks(step_bytes=step_bytes))
        assert group.load_blocks(state, pieces) == len(self.both.twin.entities)
        assert list(group.blocks(step_bytes=step_bytes)) == pieces

    @rule(step_bytes=st.sampled_from([1_024, 4_096]))
    def move_to_another_process(self, step_bytes: int) -> None:
        old = self.both.group
        new = WindowGroup("card", old.key_kind, max_entities=old.max_entities)
        new.load_blocks(old.state(), list(old.blocks(step_bytes=step_bytes)))
        self.both.group = new
        self.both.native = native_plan(new, self.both.accumulators, self.both.plan)
        self.both.twin.counts = dict.fromkeys(self.both.twin.counts, 0)

    @invariant()
    def counters_agree(self) -> None:
        if hasattr(self, "both"):
            self.both.check_counts()


TestWindowsAgree = WindowsAgree.TestCase
TestWindowsAgree.settings = settings(stateful_step_count=40)


@given(
    made=windows(),
    events=st.lists(st.tuples(EVENTS, st.integers(-400, 400)), min_size=2, max_size=25),
    data=st.data(),
)
def test_events_commute(made: tuple[list[Accumulator], Plan], events: list[Any], data: st.DataObject) -> None:
    """Whatever the order in which events come, whoever asks afterwards reads the same bits."""
    shuffled = data.draw(st.permutations(events))
    one, other = Both(*made), Both(*made)
    refused = False
    for both, order in ((one, events), (other, shuffled)):
        for event, at_s in order:
            refused |= both.run(event, T0 + at_s * SECOND) is None
    if refused:
        return  # which of two events is refused, because both together are too much, does depend on their order
    for card in CARDS:
        for at_s in (-400, 0, 400, 500):
            asked = {"card": card, "shop": 0}
            assert one.read(asked, T0 + at_s * SECOND) == other.read(asked, T0 + at_s * SECOND)


@given(made=windows(), events=st.lists(st.tuples(EVENTS, st.integers(0, 500)), min_size=1, max_size=25))
def test_what_else_is_kept_changes_nothing(made: tuple[list[Accumulator], Plan], events: list[Any]) -> None:
    """A window reads the same bits whether its accumulator keeps just what it needs or far more, for others."""
    accumulators, plan = made
    longer = [Accumulator(a.kind, a.pane_s, a.keep + 50, a.since_ns, a.offset_s) for a in accumulators]
    one, other = Both(accumulators, plan), Both(longer, plan)
    for event, at_s in events:
        first, second = one.run(event, T0 + at_s * SECOND), other.run(event, T0 + at_s * SECOND)
        if first is None or second is None:
            return  # a pane that one has given up, and drops events of, may overflow in the other: that does depend on it
        assert bits(first) == bits(second)
