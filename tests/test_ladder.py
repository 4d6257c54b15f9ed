"""The fallback ladder on its own: order, limits, deadlines, what a rung may decide, events; on a clock that tests move.

The rungs here are functions that answer, fail or take their time as a test says; with real releases see test_degrade.py.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailinfer.clock import ManualClock
from retailinfer.contracts import Decision
from retailinfer.errors import (
    DeadlineExceededError,
    FeatureTypeError,
    OverloadedError,
    RemoteError,
    ServingError,
    SessionError,
    Unavailable,
)
from retailinfer.resilience.ladder import COLD_NS, RETRY_SKIPPED, Call, CallersOwn, Ladder, Step

MS = 10**6
FOREVER = 1 << 62


class Heard:
    """Keeps what a ladder tells."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def answered(self, call: Call, answer: Any, took_ns: int, why: str) -> None:
        self.events.append(("answered", answer.rung, took_ns, why))

    def failed(self, call: Call, error: ServingError, took_ns: int) -> None:
        self.events.append(("failed", type(error).__name__, took_ns, getattr(error, "late", False)))

    def changed(self, part: str, before: str, after: str, why: str) -> None:
        self.events.append(("changed", part, before, after))


class Rung:
    """What a rung does: an action, a score, an error; and how long it takes on the test's clock."""

    def __init__(
        self,
        clock: ManualClock,
        *,
        action: str = "approve",
        score: float = 0.1,
        error: Any = None,
        ns: int = 0,
    ) -> None:
        self.clock, self.action, self.score, self.error, self.ns = clock, action, score, error, ns
        self.calls = 0
        self.ends: list[int] = []

    def __call__(self, call: Call, end_ns: int) -> Decision:
        self.calls += 1
        self.ends.append(end_ns)
        self.clock.advance_ns(self.ns)
        if self.error is not None:
            raise self.error
        return Decision(id="x", score=self.score, action=self.action)


def call(clock: ManualClock, ms: float | None = None, **changes: Any) -> Call:
    """A call that begins now."""
    now = clock.monotonic_ns()
    return Call({"a": 1}, began_ns=now, end_ns=FOREVER if ms is None else now + int(ms * MS), **changes)


def ladder(clock: ManualClock, *steps: Step) -> tuple[Ladder, Heard]:
    """A ladder, and who hears of it."""
    heard = Heard()
    return Ladder(steps, clock=clock, tells=heard), heard


def test_best_rung_that_can_answers_and_says_so():
    """Errors of a rung lead to the next one; the answer carries its rung's number, the event what kept the release."""
    clock = ManualClock()
    broken = Rung(clock, error=RemoteError("down"), ns=2 * MS)
    steps = Step("remote", broken), Step("static", Rung(clock, action="review"))
    ways, heard = ladder(clock, *steps)
    made = ways.answer(call(clock), SessionError("broken"))
    assert (made.rung, made.action) == (4, "review")
    assert ("answered", 4, 2 * MS, "SessionError") in heard.events
    assert [r.failures for r in ways.report()] == [1, 0]
    assert [r.state for r in ways.report()] == ["failing", "ready"]


@pytest.mark.parametrize(
    "broken",
    [FeatureTypeError("another release's field"), ZeroDivisionError(), MemoryError(), ValueError("x")],
)
def test_whatever_a_rung_breaks_of_the_next_one_answers(broken: Exception):
    """A rung's own CallerError is not the caller's mistake: the release took the request."""
    clock = ManualClock()
    ways, _ = ladder(clock, Step("previous", Rung(clock, error=broken)), Step("static", Rung(clock)))
    assert ways.answer(call(clock), SessionError("broken")).rung == 4


def test_rung_that_knows_nothing_of_a_call_is_well():
    """An entity without a last score is no fault of the rung: the next one answers, and a drill passes."""
    clock = ManualClock()
    step = Step("last_score", lambda asked, end_ns: None)
    ways, _ = ladder(clock, step, Step("static", Rung(clock)))
    assert ways.answer(call(clock), SessionError("x")).rung == 4
    assert ways.drill(step, call(clock, shadow=True)) is True
    report = ways.report()[0]
    assert (report.state, report.answers, report.failures, report.failed_drills) == ("ready", 0, 0, 0)
    alone, _ = ladder(clock, step)
    with pytest.raises(Unavailable, match="knows nothing of it"):
        alone.answer(call(clock), SessionError("x"))


def test_requests_that_ask_too_much_do_not_make_a_rung_flap():
    """Every other call fails: that is no news. Most of them in a row is, once; and so is the end of it."""
    clock = ManualClock()
    rung = Rung(clock)
    ways, heard = ladder(clock, Step("previous", rung), Step("static", Rung(clock)))

    def ask(error: Any, n: int) -> list[tuple[str, str]]:
        heard.events.clear()
        for i in range(n):
            rung.error = error(i) if callable(error) else error
            ways.answer(call(clock), SessionError("x"))
        return [e[2:] for e in heard.events if e[0] == "changed" and "previous" in e[1]]

    assert ask(None, 1) == [("untried", "ready")]
    assert ask(lambda i: RemoteError("x") if i % 2 else None, 50) == []
    assert ask(RemoteError("x"), 10) == [("ready", "failing")]
    assert ask(None, 10) == [("failing", "ready")]


def test_callers_own_mistake_found_by_a_rung_is_raised_as_such():
    """Where the release did not look at the request, the rung that reads it as the release does says what is wrong."""
    clock = ManualClock()
    mistake = FeatureTypeError("Expected `float`, got `str`")
    step = Step("remote", Rung(clock, error=CallersOwn(mistake)))
    ways, heard = ladder(clock, step, Step("static", Rung(clock)))
    with pytest.raises(FeatureTypeError) as caught:
        ways.answer(call(clock), DeadlineExceededError("too little left"))
    assert caught.value is mistake
    assert (step.in_flight, step.failures, step.answers) == (0, 0, 0)
    assert [e for e in heard.events if e[0] == "failed"] == []


def test_what_ends_a_program_is_no_failure_of_a_rung():
    """KeyboardInterrupt passes through, and the rung is left."""
    clock = ManualClock()
    step = Step("remote", Rung(clock, error=KeyboardInterrupt()))
    ways, _ = ladder(clock, step, Step("static", Rung(clock)))
    with pytest.raises(KeyboardInterrupt):
        ways.answer(call(clock), SessionError("broken"))
    assert step.in_flight == 0


def test_unavailable_tells_the_way_and_keeps_the_cause():
    """Where no rung can, the error names each of them with its reason."""
    clock = ManualClock()
    last = RemoteError("down")
    ways, heard = ladder(
        clock,
        Step("previous", None),
        Step("remote", Rung(clock, error=last)),
        Step("static", Rung(clock, action="approve"), decisions=["decline"]),
    )
    with pytest.raises(
        Unavailable, match="previous: absent; remote: RemoteError; static: Unavailable"
    ) as caught:
        ways.answer(call(clock), SessionError("broken"))
    assert [kind for kind, _ in caught.value.tried] == ["release", "previous", "remote", "static"]
    assert isinstance(caught.value.__cause__, Unavailable)
    assert caught.value.http_status == 503
    assert heard.events[-1][:2] == ("failed", "Unavailable")
    assert ways.unanswered == 1


def test_without_rungs_the_error_stays_what_it_was():
    """A release without a ladder raises what it failed with; hooks still hear of it."""
    clock = ManualClock()
    ways, heard = ladder(clock)
    error = SessionError("broken")
    with pytest.raises(SessionError) as caught:
        ways.answer(call(clock), error)
    assert caught.value is error
    assert heard.events == [("failed", "SessionError", 0, False)]


def test_actions_outside_of_a_rungs_own_become_review_or_go_on():
    """A rung that may not decline sends to review where it may, else the next rung decides."""
    clock = ManualClock()
    declines = Rung(clock, action="decline")
    may = Step("previous", declines, decisions=["approve", "review"], review="review")
    may_not = Step("previous", declines, decisions=["approve"], review="review")
    last = Step("static", Rung(clock, action="approve"))
    assert ladder(clock, may, last)[0].answer(call(clock), SessionError("x")).action == "review"
    made = ladder(clock, may_not, last)[0].answer(call(clock), SessionError("x"))
    assert (made.rung, made.action) == (4, "approve")


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_never_leave_a_rung(score: float):
    """Whoever answers: NaN and infinity go on to the next rung."""
    clock = ManualClock()
    ways, _ = ladder(clock, Step("remote", Rung(clock, score=score)), Step("static", Rung(clock)))
    assert ways.answer(call(clock), SessionError("x")).rung == 4


def test_shed_calls_pass_what_costs_as_much_and_only_critical_ones_go_down():
    """Overload must not move into the rungs: the cheap ones answer critical calls, the others are refused at once."""
    clock = ManualClock()
    previous, static = Rung(clock), Rung(clock)
    ways, heard = ladder(clock, Step("previous", previous, costs_as_release=True), Step("static", static))
    assert ways.answer(call(clock), OverloadedError("full")).rung == 4
    assert previous.calls == 0
    for priority in ("sheddable", "batch", "shadow"):
        with pytest.raises(OverloadedError):
            ways.answer(call(clock, priority=priority), OverloadedError("full"))
    assert static.calls == 1
    assert [e for e in heard.events if e[0] == "failed"] == []
    assert ways.answer(call(clock, priority="batch"), SessionError("x")).rung == 1


def test_overload_that_no_rung_can_take_stays_overload():
    """Clients are told to come back, not that the service is broken."""
    clock = ManualClock()
    ways, _ = ladder(clock, Step("previous", Rung(clock), costs_as_release=True))
    with pytest.raises(OverloadedError):
        ways.answer(call(clock), OverloadedError("full"))


# ---- deadlines -------------------------------------------------------------------------------------------------------


def test_late_calls_go_nowhere():
    """What is over is over: a late answer, or no time left, asks no rung."""
    clock = ManualClock()
    static = Rung(clock)
    ways, heard = ladder(clock, Step("static", static))
    late = DeadlineExceededError("late")
    late.late = True
    with pytest.raises(DeadlineExceededError):
        ways.answer(call(clock, 5), late)
    asked = call(clock, 5)
    clock.advance_ns(5 * MS)
    with pytest.raises(SessionError):
        ways.answer(asked, SessionError("x"))
    assert static.calls == 0
    assert [e[1] for e in heard.events] == ["DeadlineExceededError", "SessionError"]


def test_refused_for_want_of_time_a_quicker_rung_answers():
    """Too little for the release may be enough for what is already known."""
    clock = ManualClock()
    ways, _ = ladder(clock, Step("remote", Rung(clock), max_ns=20 * MS), Step("static", Rung(clock)))
    assert ways.answer(call(clock, 5), DeadlineExceededError("too little left")).rung == 4


def test_answers_after_the_deadline_are_dropped_and_nobody_below_is_asked():
    """The last rung would be in time for nobody."""
    clock = ManualClock()
    static = Rung(clock)
    ways, heard = ladder(clock, Step("previous", Rung(clock, ns=6 * MS)), Step("static", static))
    with pytest.raises(DeadlineExceededError) as caught:
        ways.answer(call(clock, 5), SessionError("x"))
    assert caught.value.late
    assert static.calls == 0
    assert heard.events[-1] == ("failed", "DeadlineExceededError", 6 * MS, True)
    assert ways.report()[0].answers == 0


def test_rung_that_fails_past_the_deadline_ends_the_walk():
    """A remote that eats the deadline and fails leaves nothing to the rungs below it."""
    clock = ManualClock()
    static = Rung(clock)
    slow = Rung(clock, error=RemoteError("timeout"), ns=5 * MS)
    ways, _ = ladder(clock, Step("remote", slow), Step("static", static))
    with pytest.raises(DeadlineExceededError) as caught:
        ways.answer(call(clock, 5), SessionError("x"))
    assert isinstance(caught.value.__cause__, RemoteError)
    assert (static.calls, caught.value.late) == (0, False)


def test_a_rung_is_given_what_is_left_or_its_own_time():
    """`max_ms` ends before the deadline where it is shorter."""
    clock = ManualClock(monotonic_ns=7)
    one = Rung(clock)
    ways, _ = ladder(clock, Step("remote", one, max_ns=3 * MS))
    ways.answer(call(clock, 5), SessionError("x"))
    ways.answer(call(clock, 4), SessionError("x"))
    ways.answer(call(clock), SessionError("x"))
    assert one.ends == [7 + 3 * MS] * 3


def test_slow_rung_is_passed_over_until_it_is_tried_again():
    """What took 8 ms lately is not begun with 5 ms left; one call in 32 finds out whether it has become faster."""
    clock = ManualClock()
    slow = Rung(clock, ns=8 * MS)
    step = Step("previous", slow)
    ways, _ = ladder(clock, step, Step("static", Rung(clock)))
    ways.answer(call(clock), SessionError("x"))
    assert step.p99_ns == 8 * MS
    slow.ns = 1 * MS
    rungs = [ways.answer(call(clock, 5), SessionError("x")).rung for _ in range(RETRY_SKIPPED)]
    assert rungs == [4] * (RETRY_SKIPPED - 1) + [1]
    assert slow.calls == 2
    assert ways.report()[0].refused == RETRY_SKIPPED - 1


def test_quick_refusals_of_a_rung_do_not_make_it_look_quick():
    """An open breaker fails in no time; that says nothing about the model behind it."""
    clock = ManualClock()
    remote = Rung(clock, error=RemoteError("open"), ns=300)
    step = Step("remote", remote, max_ns=20 * MS)
    ways, _ = ladder(clock, step, Step("static", Rung(clock)))
    for _ in range(5):
        ways.answer(call(clock, 100), SessionError("x"))
    assert not step.known
    assert ways.answer(call(clock, 10), SessionError("x")).rung == 4
    assert remote.calls == 5


# ---- concurrency ------------------------------------------------------------------------------------------------------


def test_full_rung_sends_on_and_is_left_again():
    """With two inside, the third goes to the next rung; afterwards there is room again."""
    clock = ManualClock()
    inside, go = threading.Semaphore(0), threading.Event()

    def waits(asked: Call, end_ns: int) -> Decision:
        inside.release()
        assert go.wait(10)
        return Decision(id="x", score=0.5, action="approve")

    step = Step("previous", waits, max_concurrency=2)
    ways, _ = ladder(clock, step, Step("static", Rung(clock)))
    rungs: list[int] = []
    threads = [
        threading.Thread(target=lambda: rungs.append(ways.answer(call(clock), SessionError("x")).rung))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
        assert inside.acquire(timeout=10)
    assert ways.answer(call(clock), SessionError("x")).rung == 4
    go.set()
    for thread in threads:
        thread.join(10)
    assert rungs == [1, 1]
    assert step.in_flight == 0
    assert ways.report()[0].refused == 1
    assert ways.answer(call(clock), SessionError("x")).rung == 1


def test_forked_child_begins_with_nobody_inside():
    """Calls of the parent's threads are not the child's, and neither are its counts."""
    clock = ManualClock()
    step = Step("previous", Rung(clock), max_concurrency=1)
    ways, _ = ladder(clock, step)
    ways.answer(call(clock), SessionError("x"))
    step.in_flight = 1
    ways.begin_in_child()
    assert [(r.answers, r.state) for r in ways.report()] == [(0, "untried")]
    assert ways.answer(call(clock), SessionError("x")).rung == 1


# ---- drills and states --------------------------------------------------------------------------------------------------


def test_rung_that_nobody_exercised_for_a_day_is_cold_once():
    """The alarm comes once; a drill warms the rung again."""
    clock = ManualClock()
    step = Step("remote", Rung(clock))
    ways, heard = ladder(clock, step)
    assert ways.drill(step, call(clock, shadow=True)) is True
    clock.advance_ns(COLD_NS)
    ways.look()
    clock.advance_ns(1)
    ways.look()
    ways.look()
    assert [e for e in heard.events if e[0] == "changed"] == [
        ("changed", "rung remote", "untried", "ready"),
        ("changed", "rung remote", "ready", "cold"),
    ]
    assert ways.report()[0].state == "cold"
    ways.drill(step, call(clock, shadow=True))
    assert heard.events[-1] == ("changed", "rung remote", "cold", "ready")
    assert (ways.report()[0].drills, ways.report()[0].answers) == (2, 0)


def test_failed_drill_is_told_before_the_rung_is_needed():
    """A rung that would break says so in the shadow."""
    clock = ManualClock()
    rung = Rung(clock, action="dance")
    step = Step("remote", rung, decisions=["approve"])
    ways, heard = ladder(clock, step)
    assert ways.drill(step, call(clock, shadow=True)) is False
    assert heard.events == [("changed", "rung remote", "untried", "failing")]
    rung.action = "approve"
    assert ways.drill(step, call(clock, shadow=True)) is True
    report = ways.report()[0]
    assert (report.state, report.drills, report.failed_drills) == ("ready", 2, 1)


def test_drills_of_full_or_absent_rungs_are_left_out():
    """A drill never takes the place of a call."""
    clock = ManualClock()
    step = Step("remote", Rung(clock), max_concurrency=1)
    ways, _ = ladder(clock, Step("previous", None), step)
    step.in_flight = 1
    assert ways.drill(step, call(clock, shadow=True)) is None
    assert ways.drill(ways.steps[0], call(clock, shadow=True)) is None
    assert [r.state for r in ways.report()] == ["absent", "untried"]


# ---- everything at once ---------------------------------------------------------------------------------------------------

KINDS = ["previous", "remote", "last_score", "static"]
ACTIONS = ["approve", "review", "decline"]

outcomes = st.one_of(
    st.sampled_from(ACTIONS),
    st.sampled_from([SessionError, RemoteError, FeatureTypeError, RuntimeError, OverloadedError]),
    st.just(float("nan")),
)
durations = st.integers(0, 8 * MS)


@st.composite
def situations(draw: st.DrawFn) -> dict[str, Any]:
    """A ladder, what its rungs do in each of some calls, and the calls."""
    kinds = draw(
        st.lists(st.sampled_from(KINDS), unique=True).map(lambda some: sorted(some, key=KINDS.index))
    )
    return {
        "kinds": kinds,
        "absent": draw(st.lists(st.sampled_from(KINDS), max_size=1)),
        "decisions": [draw(st.none() | st.sets(st.sampled_from(ACTIONS), min_size=1)) for _ in kinds],
        "max_ns": [draw(st.sampled_from([0, 1 * MS, 6 * MS])) for _ in kinds],
        "full": draw(st.sets(st.sampled_from(KINDS), max_size=1)),
        "calls": draw(
            st.lists(
                st.fixed_dictionaries(
                    {
                        "error": st.sampled_from([SessionError, OverloadedError, DeadlineExceededError]),
                        "late": st.booleans(),
                        "used": durations,
                        "budget": st.one_of(st.none(), st.integers(1, 20 * MS)),
                        "priority": st.sampled_from(["critical", "sheddable", "batch"]),
                        "does": st.lists(st.tuples(outcomes, durations), min_size=4, max_size=4),
                    }
                ),
                min_size=1,
                max_size=5,
            )
        ),
    }


@settings(max_examples=max(800, 10 * settings().max_examples), deadline=None)
@given(situations())
def test_every_call_ends_in_an_allowed_answer_or_a_typed_error_and_never_late(situation: dict[str, Any]):
    """Whatever fails, and however long it takes: order, limits, decisions and the deadline hold, and nothing leaks."""
    clock = ManualClock()
    plan: dict[str, tuple[Any, int]] = {}
    asked: list[str] = []

    def rung_of(kind: str) -> Any:
        def answer(one: Call, end_ns: int) -> Decision:
            asked.append(kind)
            assert clock.monotonic_ns() < end_ns <= one.end_ns
            does, ns = plan[kind]
            clock.advance_ns(ns)
            if isinstance(does, type):
                raise does("told to")
            if isinstance(does, float):
                return Decision(id="x", score=does, action="approve")
            return Decision(id="x", score=0.5, action=does)

        return answer

    steps = [
        Step(
            kind,
            None if kind in situation["absent"] else rung_of(kind),
            max_ns=max_ns,
            max_concurrency=0 if kind in situation["full"] else 10,
            decisions=decisions,
            review="review",
            costs_as_release=kind == "previous",
        )
        for kind, decisions, max_ns in zip(
            situation["kinds"], situation["decisions"], situation["max_ns"], strict=True
        )
    ]
    heard = Heard()
    ways = Ladder(steps, clock=clock, tells=heard)
    for asks in situation["calls"]:
        plan.update(zip(KINDS, asks["does"], strict=True))
        asked.clear()
        before = len([e for e in heard.events if e[0] != "changed"])
        one = call(clock, None if asks["budget"] is None else asks["budget"] / MS, priority=asks["priority"])
        clock.advance_ns(asks["used"])
        error = asks["error"]("failed")
        if asks["error"] is DeadlineExceededError:
            error.late = asks["late"]
        try:
            made = ways.answer(one, error)
        except (Unavailable, DeadlineExceededError, type(error)):
            pass
        else:
            assert clock.monotonic_ns() <= one.end_ns
            step = next(s for s in steps if s.number == made.rung)
            assert step.kind == asked[-1]
            assert step.decisions is None or made.action in step.decisions
            assert made.score == 0.5
        assert len(set(asked)) == len(asked)
        assert asked == sorted(asked, key=KINDS.index)
        assert not set(asked) & (situation["full"] | set(situation["absent"]))
        if isinstance(error, OverloadedError):
            assert "previous" not in asked
            assert asks["priority"] == "critical" or not asked
        if getattr(error, "late", False):
            assert not asked
        assert all(step.in_flight == 0 for step in steps)
        told = len([e for e in heard.events if e[0] != "changed"]) - before
        assert told <= 1
