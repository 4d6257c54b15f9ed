"""What the engine tells others: an event an answer, every n-th answer to a drill, errors whose request was counted."""

from __future__ import annotations

import functools
import warnings

import msgspec
import pytest
import releases
from releases import payment
from test_serving_windows import spec_of

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.clock import ManualClock
from retailinfer.contracts import Decision
from retailinfer.errors import DeadlineExceededError, FeatureError, ScoreError
from retailinfer.monitoring.events import Answered, Hooks

MS_NS = 10**6
WALL_NS = 1_700_000_000_000_000_000
CONTEXT = {"user": "u", "boost": 1.0}


class Slow(float):
    """Takes 3 ms to be read, on the clock of the test."""

    clock: ManualClock

    def __float__(self):
        self.clock.advance_ns(3 * MS_NS)
        return 1.0


def slow(clock):
    """A value on a clock."""
    made = Slow(1.0)
    made.clock = clock
    return made


def on(clock, files=None):
    """A scorer on a clock of the test's own."""
    return releases.scorer_of(files or releases.payment_files(), store=ri.Store(tables={}, clock=clock))


# ---- events ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("priority", ["critical", "batch"])
@pytest.mark.parametrize("deadline_ms", [None, 10])
def test_every_answer_is_one_event(priority, deadline_ms):
    """From each door: the very answer, what was scored, when, how long it took, and the priority."""
    clock = ManualClock(wall_ns=WALL_NS)
    scorer = on(clock)
    seen = []
    scorer._live.engine.set_hook(seen.append)
    request = payment(amount=slow(clock))
    options = {"priority": priority, "deadline_ms": deadline_ms}
    answer = scorer.score(request, **options)
    assert seen == [Answered(answer, request, WALL_NS + 3 * MS_NS, 3 * MS_NS, priority, "")]
    assert seen[0].answer is answer
    assert seen[0].request is request
    body = scorer.score_json(msgspec.json.encode(payment()), **options)
    assert msgspec.json.decode(body, type=Decision) == seen[1].answer
    assert type(seen[1].request) is scorer.request_type
    body = scorer.score_msgpack(msgspec.msgpack.encode(payment()), **options)
    assert msgspec.msgpack.decode(body, type=Decision) == seen[2].answer
    many = [payment(), payment(amount="x"), payment()]
    answers = scorer.score_batch(many, errors="row", **options)
    assert [event.answer for event in seen[3:]] == [answers[0], answers[2]]
    assert [event.request for event in seen[3:]] == [many[0], many[2]]
    scorer._live.engine.set_hook(None)
    scorer.score(request, **options)
    assert len(seen) == 5


def test_rankings_are_events_too():
    """Of a ranking the request is its context."""
    ranker = releases.item_ranker()
    seen = []
    ranker._live.engine.set_hook(seen.append)
    try:
        answer = ranker.rank(CONTEXT, ["sku-001", "sku-002"])
        assert (seen[0].answer, seen[0].request) == (answer, CONTEXT)
        assert seen[0].took_ns > 0
        ranker.rank_json(msgspec.json.encode({"context": CONTEXT, "candidates": ["sku-001"]}))
        assert seen[1].answer.items == ["sku-001"]
        assert seen[1].request.user == "u"
    finally:
        ranker._live.engine.set_hook(None)


def test_events_carry_the_time_of_the_machine():
    """On the system's clock, read without Python: the same clocks as Python's own."""
    import time

    scorer = releases.payment_scorer()
    seen = []
    scorer._live.engine.set_hook(seen.append)
    try:
        before, start = time.time_ns(), time.monotonic_ns()
        scorer.score(payment())
        took, after = time.monotonic_ns() - start, time.time_ns()
    finally:
        scorer._live.engine.set_hook(None)
    off_ns = 1_000  # at most, of a measured distance of two clocks
    assert before - off_ns <= seen[0].wall_ns <= after + off_ns
    assert 0 < seen[0].took_ns <= took


def test_errors_and_late_answers_are_no_events():
    """Who has no answer of the release hears of it elsewhere."""
    clock = ManualClock()
    scorer = on(clock)
    seen = []
    scorer._live.engine.set_hook(seen.append)
    with pytest.raises(FeatureError):
        scorer.score(payment(amount="x"))
    with pytest.raises(DeadlineExceededError):
        scorer.score(payment(amount=slow(clock)), deadline_ms=2)
    assert seen == []


def test_what_a_hook_raises_costs_nobody_an_answer():
    """It is counted, also where warnings are errors; an interrupt is no error of the hook, and gives its permit back."""
    scorer = releases.scorer_of(releases.payment_files())
    engine = scorer._live.engine
    want = scorer.score(payment()).score

    class Broken:
        def on_event(self, event):
            raise ValueError("no")

    def broken(event):
        raise ValueError("no")

    engine.set_hook(broken)
    assert scorer.score(payment()).score == want
    assert [d.score for d in scorer.score_batch([payment()] * 3)] == [want] * 3
    assert engine.n_hook_failures == 4
    hooks = Hooks([Broken()])
    engine.set_hook(hooks.on_event)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scorer.score(payment()).score == want
    assert hooks.failures == 1

    def interrupted(event):
        raise KeyboardInterrupt

    engine.set_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):
        scorer.score(payment())
    engine.set_hook(None)
    assert scorer.permits.in_flight == 0
    assert engine.n_answers == 5 + 1


def test_a_hook_may_score():
    """It runs inside the call, whose memory is its own."""
    scorer = releases.scorer_of(releases.payment_files())
    engine, inner = scorer._live.engine, []

    def again(event):
        engine.set_hook(None)
        inner.append(scorer.score(payment(amount=2.0)).score)

    want = scorer.score(payment()).score
    engine.set_hook(again)
    assert scorer.score(payment()).score == want
    assert inner == [scorer.score(payment(amount=2.0)).score]


# ---- drills ----------------------------------------------------------------------------------------------------------


def test_every_nth_answer_goes_to_the_drill():
    """Counted over single answers and rows of batches; errors are no answers."""
    scorer = releases.scorer_of(releases.payment_files())
    seen = []
    scorer._live.engine.set_drill(lambda request, answer: seen.append((request, answer)), 5)
    requests = [payment(amount=float(i)) for i in range(40)]
    answers = [scorer.score(request) for request in requests[:12]]
    rows = scorer.score_batch([*requests[12:20], {}, *requests[20:28]], errors="row")
    answers += [row for row in rows if isinstance(row, Decision)]
    assert seen == [(requests[i], answers[i]) for i in range(4, 28, 5)]
    scorer._live.engine.set_drill(None, 0)
    for request in requests[:10]:
        scorer.score(request)
    assert len(seen) == 5


def test_a_drill_that_fails_costs_nobody_an_answer():
    """It is counted as a hook's failure."""
    scorer = releases.scorer_of(releases.payment_files())
    scorer._live.engine.set_drill(lambda request: None, 1)
    assert scorer.score(payment()).score == releases.payment_scorer().score(payment()).score
    assert scorer._live.engine.n_hook_failures == 1


def test_rankings_are_drilled():
    """With the context, and the ranking as it was answered."""
    ranker = releases.ranker_of(releases.item_files(), store=ri.Store(tables={"item": releases.items()}))
    seen = []
    ranker._live.engine.set_drill(lambda request, answer: seen.append((request, answer)), 2)
    rankings = [ranker.rank(CONTEXT, ["sku-001", "sku-002"]) for _ in range(4)]
    assert seen == [(CONTEXT, rankings[1]), (CONTEXT, rankings[3])]


# ---- counted ---------------------------------------------------------------------------------------------------------


@functools.cache
def counting_files():
    """Score = log(the card's payments before this one + amount): the first payment of 0 has no score."""
    columns = [
        c.window("card", "count", on="payment", over="1h", current="exclude", name="before", unknown=0.0),
        c.numeric("amount"),
    ]
    return releases.packed(
        "log", releases.weighted(1.0, 1.0, then=("Log",)), spec_of(columns, request=FIELDS)
    )


FIELDS = {"card": str | None, "merchant": str, "amount": float, "at": ri.Timestamp | None}
FREE = {"card": "c-1", "merchant": "m-1", "amount": 0.0}


@pytest.fixture
def counting():
    """A scorer that counts, and its clock."""
    clock = ManualClock(wall_ns=WALL_NS)
    store = ri.Store(windows=ri.Windows.memory(clock=clock), clock=clock)
    return releases.scorer_of(counting_files(), store=store), clock


def n_before(scorer, card="c-1"):
    """Payments of a card so far."""
    return round(2.718281828 ** scorer.score(FREE | {"card": card, "amount": 1.0}).score) - 1


def test_error_says_whether_its_request_was_counted(counting):
    """The model failed after the windows were added to: who answers instead must not count again."""
    scorer, _ = counting
    for call in (
        lambda **o: scorer.score(FREE | {"card": "a"}, **o),
        lambda **o: scorer.score_json(msgspec.json.encode(FREE | {"card": "b"}), **o),
        lambda **o: scorer.score_msgpack(msgspec.msgpack.encode(FREE | {"card": "c"}), **o),
        lambda **o: scorer.score_batch([FREE | {"card": "d"}], **o),
    ):
        with pytest.raises(ScoreError) as plain:
            call()
        assert not plain.value.counted
        with pytest.raises(ScoreError) as observed:
            call(observe=True)
        assert observed.value.counted
    assert [n_before(scorer, card) for card in "abcde"] == [1, 1, 1, 1, 0]


def test_late_answer_was_counted_too(counting):
    """Its request happened, whatever became of the answer; one that was refused before any work did not."""
    scorer, clock = counting
    with pytest.raises(DeadlineExceededError) as late:
        scorer.score(FREE | {"amount": slow(clock)}, observe=True, deadline_ms=2)
    assert late.value.late
    assert late.value.counted
    scorer._live.engine.run_clock.predict(5 * MS_NS)
    with pytest.raises(DeadlineExceededError) as refused:
        scorer.score(FREE | {"amount": 1.0}, observe=True, deadline_ms=2)
    assert not refused.value.counted
    assert n_before(scorer) == 1


def test_errors_of_rows_say_it_for_themselves(counting):
    """Each row that failed in the model was counted before."""
    scorer, _ = counting
    rows = scorer.score_batch([FREE | {"card": "a"}, FREE | {"amount": 1.0}], errors="row", observe=True)
    assert isinstance(rows[0], ScoreError)
    assert rows[0].counted
    assert isinstance(rows[1], Decision)
    assert not scorer.score_batch([FREE | {"card": "b"}], errors="row")[0].counted


def test_memory_of_a_call_does_not_tell_of_the_one_before(counting):
    """A counted call, then one that fails without being counted, in the same memory."""
    scorer, _ = counting
    scorer.score(FREE | {"amount": 1.0}, observe=True)
    with pytest.raises(ScoreError) as plain:
        scorer.score(FREE | {"card": "other"})
    assert not plain.value.counted
