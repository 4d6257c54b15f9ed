"""What a declared window gives, event by event: the layout of a spec in the native kernel, against its plain definition.

The oracle keeps all events and counts them again for every answer. The kernel alone is test_windows_*.py; declaring is
test_features_windows.py.
"""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import draw_window, zone

from retailinfer import columns as c
from retailinfer._native.windows import WindowGroup, WindowPlan
from retailinfer.columns import Column, Where, WindowDef
from retailinfer.errors import FeatureRangeError
from retailinfer.features.program import compile_program
from retailinfer.features.spec import Body, Entity, Field, StreamBody, Tensor, check
from retailinfer.features.streams import compile_stream, window_layout

TZ = "Europe/London"
START_S = 1_743_206_400  # 29 March 2025, a day before the clocks change
PRESENT, NULL, UNKNOWN, STALE = range(4)
FIELDS = (
    Field("card", "str", True),
    Field("shop", "int", True),
    Field("amount", "float", True),
    Field("n", "int", True),
    Field("gift", "bool", True),
    Field("channel", "str", True),
    Field("at", "timestamp"),
)
LABEL = StreamBody(fields=(FIELDS[0], FIELDS[1], Field("loss", "float", True), FIELDS[6]), event_time="at")
BODY = Body(
    fields=FIELDS,
    event_time="at",
    tz=TZ,
    zone_at_s=zone(TZ)[0],
    zone_offset_s=zone(TZ)[1],
    entities={"card": Entity(("card",)), "pair": Entity(("shop", "card"))},
    streams={"label": LABEL, "payment": StreamBody(is_request=True)},
    is_fitted=True,
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "card": st.sampled_from(("a", "a", "a", "b", "", None)),
    "shop": st.sampled_from((1, 1, -7, None)),
    "amount": st.sampled_from((0.0, 100.0, 0.005, 0.015, -3.25, 99.99, None)) | st.floats(-1000, 1000),
    "loss": st.sampled_from((5.0, None)),
    "n": st.sampled_from((0, 3, -4, 2**20, None)),
    "gift": st.booleans() | st.none(),
    "channel": st.sampled_from(("web", "shop", "é", None)),
}


COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


class Event(NamedTuple):
    """One event of a stream; `added`: it is observed, not only asked about."""

    stream: str
    values: dict[str, Any]
    at_ns: int
    added: bool


def near(draw: st.DrawFn, window: WindowDef) -> WindowDef:
    """The window with conditions that some events meet, and a lag that these few events reach."""
    terms = [
        msgspec.structs.replace(t, value=draw(VALUES[t.field].filter(lambda v: v is not None)))
        for t in window.where
    ]
    kept = tuple(t for t in terms if draw(st.booleans()))
    return msgspec.structs.replace(window, where=kept, lag=min(window.lag, draw(st.integers(1, 3))))


@st.composite
def histories(draw: st.DrawFn) -> tuple[Body, list[Event]]:
    """A few windows, and events in the order of their arrival: some late, some at the same moment."""
    n = draw(st.integers(1, 4))
    windows = {
        f"w{i}": near(
            draw, draw_window(draw, BODY, BODY.streams, draw(st.sampled_from(sorted(BODY.entities))))
        )
        for i in range(n)
    }
    step = max(1, draw(st.sampled_from([w.pane_ns // 10**9 for w in windows.values()])) // 2)
    events = []
    now = START_S
    for _ in range(draw(st.integers(1, 14))):
        stream = draw(st.sampled_from(("payment", "payment", "label")))
        fields = BODY.fields if stream == "payment" else LABEL.fields
        values = {f.name: draw(VALUES[f.name]) for f in fields if f.name != "at"}
        now += draw(st.sampled_from((0, 1, step, step, 3 * step)))
        at = now - draw(st.sampled_from((0, 0, 0, step)))
        events.append(Event(stream, values | {"at": float(at)}, at * 10**9, draw(st.integers(0, 3)) > 0))
    return with_windows(windows), events


def with_windows(windows: dict[str, WindowDef]) -> Body:
    """The body with these windows, each in a column."""
    columns = tuple(Column(kind="numeric", name=n, refs=(n,), window=w) for n, w in windows.items())
    body = Body(
        **{f: getattr(BODY, f) for f in ("fields", "event_time", "tz", "zone_at_s", "zone_offset_s")},
        entities=BODY.entities,
        streams=BODY.streams,
        windows=windows,
        tensors={"t": Tensor(columns)},
        is_fitted=True,
    )
    check(body)
    return body


# ---- by definition ---------------------------------------------------------------------------------------------------


def pane_of(window: WindowDef, at_ns: int) -> int:
    """The pane of a moment: of time, or of the calendar where the window is a lag."""
    if window.what == "lag":
        at_ns += BODY.zone_offset_s[bisect_right(BODY.zone_at_s, at_ns // 10**9)] * 10**9
    return at_ns // window.pane_ns


def meets(term: Where, value: Any) -> bool:
    """One comparison; a null meets none."""
    if value is None:
        return False
    return bool(COMPARE[term.op](value, term.value))


def key_of(entity: str, event: Event) -> tuple[Any, ...] | None:
    """The entity's key in an event; None when a part of it is null."""
    parts = tuple(event.values[k] for k in BODY.entities[entity].key)
    return None if None in parts else parts


def counts(window: WindowDef, event: Event) -> bool:
    """Whether a window counts an event at all."""
    return (
        event.stream == window.on
        and key_of(window.entity, event) is not None
        and all(meets(t, event.values[t.field]) for t in window.where)
        and (window.of is None or event.values[window.of] is not None)
    )


def expected(window: WindowDef, before: Sequence[Event], event: Event) -> tuple[float | None, int] | None:
    """Value and state of a window for a request. None: it would need panes that are so old that they may be gone."""
    key = key_of(window.entity, event)
    if key is None:
        return None, UNKNOWN
    upper = pane_of(window, event.at_ns - window.delay_ns) - window.lag
    lower = upper - window.n_panes
    mine = [e for e in before if e.added and counts(window, e) and key_of(window.entity, e) == key]
    newest = max((pane_of(window, e.at_ns) for e in mine), default=upper)
    if lower + 1 <= newest - window.keep_panes:
        return None
    if any(pane_of(window, e.at_ns) <= newest - window.keep_panes for e in mine):
        mine = [e for e in mine if pane_of(window, e.at_ns) > newest - window.keep_panes]
    if window.current == "include" and window.delay_ns == 0 and counts(window, event):
        mine = [*mine, event]
    inside = [e for e in mine if lower < pane_of(window, e.at_ns) <= upper]
    if window.what == "count":
        return float(len(inside)), PRESENT
    values = [e.values[window.of or ""] for e in inside]
    if window.what == "distinct":
        return float(len(set(values))), PRESENT
    scale = window.scale or 1
    whole = [round(float(v) * scale) for v in values]
    if window.what == "sum":
        return sum(whole) / scale, PRESENT
    if not whole:
        return None, NULL
    if window.what == "mean":
        return float(sum(whole)) / float(len(whole)) / float(scale), PRESENT
    found = {"lag": sum, "min": min, "max": max}[window.what](whole)
    return found / scale, PRESENT


# ---- by the kernel ---------------------------------------------------------------------------------------------------


class Kernel:
    """Groups and plans as a store makes them of a spec's layouts."""

    def __init__(self, body: Body) -> None:
        self.groups: dict[str, WindowGroup] = {}
        self.scoring = self._plans(body, None)
        self.observing = {name: self._plans(body, name) for name in body.streams}

    def _plans(self, body: Body, stream: str | None) -> list[tuple[Any, WindowPlan]]:
        program = compile_stream(body, stream).program if stream else compile_program(body)
        plans = []
        for layout in window_layout(body, stream):
            group = self.groups.setdefault(layout.entity, WindowGroup(layout.entity, layout.key_kind))
            numbers = [
                group.register(a.digest, a.kind, a.pane_ns, a.keep_panes, calendar=a.calendar, since_ns=0)
                for a in layout.accumulators
            ]
            plan = WindowPlan(
                group,
                program,
                stream=layout.stream or "",
                keys=layout.keys,
                adds=tuple((numbers[a.accumulator], a.where, a.of, float(a.scale)) for a in layout.adds),
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
            plans.append((layout, plan))
        return plans

    def take(self, body: Body, event: Event) -> dict[str, tuple[float, int]]:
        """Score a payment or observe a label."""
        fields = body.fields if event.stream == "payment" else LABEL.fields
        values = {i: event.values[f.name] for i, f in enumerate(fields)}
        found: dict[str, tuple[float, int]] = {}
        if event.stream == "payment":
            for layout, plan in self.scoring:
                got = plan.run(values, event.at_ns, add=event.added)
                found |= zip(layout.names, got or (), strict=True)
        elif event.added:
            for _, plan in self.observing[event.stream]:
                plan.run(values, event.at_ns, read=False)
        return found


def lag_over_the_change_of_clocks() -> tuple[Body, list[Event]]:
    """Sums of days in London around the short Sunday of March 2025."""
    window = c.lag("card", of="n", on="payment", lags=[1], scale=1, fill=0)[0].window
    assert window is not None
    hour = 3600
    events = [
        Event(
            "payment",
            {**dict.fromkeys(VALUES), "card": "a", "n": n, "at": 0},
            (START_S + h * hour) * 10**9,
            True,
        )
        for n, h in ((1, 23), (10, 24), (100, 46), (1000, 47), (10_000, 70), (100_000, 71))
    ]
    return with_windows({"w0": window}), events


@example(case=lag_over_the_change_of_clocks())
@given(case=histories())
def test_windows_give_what_their_declaration_says(case):
    """Every window of every request has the value and the state of the definition, bit for bit."""
    body, events = case
    kernel = Kernel(body)
    for i, event in enumerate(events):
        got = kernel.take(body, event)
        if event.stream != "payment":
            continue
        assert got.keys() == body.windows.keys()
        for name, window in body.windows.items():
            want = expected(window, events[:i], event)
            if want is None:
                continue
            value, state = got[name]
            assert state == want[1], (name, window, got[name], want)
            if want[0] is not None:
                assert value == want[0], (name, window, got[name], want)


def test_days_are_those_of_the_zone():
    """The day before, as London has it: 23:00 UTC belongs to the next day once the clocks have changed."""
    body, events = lag_over_the_change_of_clocks()
    kernel = Kernel(body)
    found = [kernel.take(body, event)["w0"] for event in events]
    assert found[0][1] == NULL
    assert found[1:] == [(value, PRESENT) for value in (1.0, 1.0, 110.0, 110.0, 11_000.0)]


@pytest.mark.parametrize("what", ["sum", "mean", "min", "max"])
def test_a_value_that_the_scale_cannot_hold_is_refused(what):
    """The error names the field; nothing was counted."""
    window = c.window("card", what, on="payment", of="amount", over="1h", scale=10**6).window
    assert window is not None
    body = with_windows({"w0": window})
    kernel = Kernel(body)
    event = Event("payment", {**dict.fromkeys(VALUES), "card": "a", "amount": 1e10, "at": 0}, 10**18, True)
    with pytest.raises(FeatureRangeError, match=r"\$\.amount"):
        kernel.take(body, event)
    fine = event._replace(values=event.values | {"amount": 2.0})
    assert kernel.take(body, fine) == {"w0": (2.0, PRESENT)}
