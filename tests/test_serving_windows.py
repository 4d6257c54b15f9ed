"""Windows in every door: read and counted in one step, duplicates, streams of labels, rankings, threads, new releases."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import functools
import threading

import msgspec
import pytest
import releases

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.clock import ManualClock
from retailinfer.errors import ConfigError, FeatureError, FeatureRangeError, LimitError

T0 = dt.datetime(2026, 3, 2, 12, 0, tzinfo=dt.UTC)
SECOND_NS = 10**9
MINUTE = dt.timedelta(minutes=1)
FIELDS = {"card": str | None, "merchant": str, "amount": float | None, "at": ri.Timestamp | None}


def window_columns():
    """Six windows of two entities; the score's weights tell them apart."""
    zero = {"unknown": 0.0, "on_unavailable": 0.0}
    return [
        c.window("card", "count", on="payment", over="1h", name="with", **zero),
        c.window("card", "sum", on="payment", of="amount", scale=100, over="1h", name="spent", **zero),
        c.window("card", "count", on="payment", over="1h", current="exclude", name="before", **zero),
        c.window("merchant", "distinct", on="payment", of="card", over="1h", name="cards", **zero),
        c.window("card", "count", on="chargeback", over="30d", name="chargebacks", **zero),
        c.window("card", "count", on="payment", where="amount > 100", over="1h", name="large", **zero),
    ]


def spec_of(columns=None, **changes):
    """Payments are the requests; chargebacks come later, as events of their own."""
    given = {
        "request": FIELDS,
        "event_time": "at",
        "entities": {"card": "card", "merchant": "merchant"},
        "streams": {
            "payment": None,
            "chargeback": ri.Stream({"card": str, "at": ri.Timestamp | None}, event_time="at"),
        },
        "columns": window_columns() if columns is None else columns,
    }
    return ri.FeatureSpec(**(given | changes))


WEIGHTS = (1.0, 0.0, 100.0, 10_000.0, 1_000_000.0, 0.0)


@functools.cache
def files(weights: tuple[float, ...] = WEIGHTS) -> dict[str, bytes]:
    """Score = weights of the six windows."""
    return releases.packed("velocity", releases.weighted(*weights), spec_of())


def clock_at(moment=T0):
    """A clock that stands at a moment."""
    return ManualClock(wall_ns=round(moment.timestamp()) * SECOND_NS)


def windows_store(clock=None, **more):
    """Windows that have been counting for 40 days."""
    clock = clock or clock_at(T0)
    clock.step_wall_ns(-40 * 86_400 * SECOND_NS)
    windows = ri.Windows.memory(clock=clock)
    store = ri.Store(windows=windows, clock=clock, **more)
    releases.scorer_of(files(), store=store)  # registers what is counted: complete from then on
    clock.step_wall_ns(40 * 86_400 * SECOND_NS)
    return store


def payment(**changes):
    """A payment that has no time of its own."""
    return {"card": "c-1", "merchant": "m-1", "amount": 10.0} | changes


def counts(answer):
    """(count with this one, before, distinct cards, chargebacks) out of a score."""
    score = round(answer["score"] if isinstance(answer, dict) else answer.score)
    return score % 100, score // 100 % 100, score // 10_000 % 100, score // 1_000_000


@pytest.fixture
def scorer():
    """A scorer over windows of its own."""
    return releases.scorer_of(files(), store=windows_store())


# ---- one request -----------------------------------------------------------------------------------------------------


def test_scoring_alone_counts_nothing(scorer):
    """`include` counts the request in its own window, and in nobody else's."""
    assert [counts(scorer.score(payment())) for _ in range(3)] == [(1, 0, 1, 0)] * 3


def test_observing_counts_after_reading(scorer):
    """Each observed payment is seen by the next one, not by itself twice."""
    answers = [scorer.score(payment(), observe=True) for _ in range(3)]
    assert [counts(answer) for answer in answers] == [(1, 0, 1, 0), (2, 1, 1, 0), (3, 2, 1, 0)]
    assert counts(scorer.score(payment(card="c-2"))) == (1, 0, 2, 0)
    assert answers[0].stale == answers[0].missing == ()


@pytest.mark.parametrize("door", ["dict", "struct", "json", "msgpack", "ascore", "batch"])
def test_every_door_counts_alike(scorer, door):
    """Dict, Struct, bytes, coroutines and batches read and add in the same way."""

    def call(request):
        if door == "dict":
            return scorer.score(request, observe=True)
        if door == "struct":
            return scorer.score(scorer.request_type(**request), observe=True)
        if door == "json":
            return msgspec.json.decode(scorer.score_json(msgspec.json.encode(request), observe=True))
        if door == "msgpack":
            return msgspec.msgpack.decode(scorer.score_msgpack(msgspec.msgpack.encode(request), observe=True))
        if door == "ascore":
            return asyncio.run(scorer.ascore(request, observe=True))
        return scorer.score_batch([request], observe=True)[0]

    assert [counts(call(payment())) for _ in range(3)] == [(1, 0, 1, 0), (2, 1, 1, 0), (3, 2, 1, 0)]


def test_rows_of_a_batch_see_those_before_them(scorer):
    """A burst that comes as one batch is counted one after the other, exactly as in single calls."""
    answers = scorer.score_batch([payment(), payment(card="c-2"), payment(), payment()], observe=True)
    assert [counts(a) for a in answers] == [(1, 0, 1, 0), (1, 0, 2, 0), (2, 1, 2, 0), (3, 2, 2, 0)]


def test_sums_and_conditions_read_the_event_itself():
    """Sums are exact in cents, and an event that does not meet its condition is not counted by that window."""
    weights = (0.0, 1.0, 0.0, 0.0, 0.0, 1000.0)
    scorer = releases.scorer_of(files(weights), store=windows_store())
    amounts = [0.1, 0.2, 150.0, None, 100.0, 100.01]
    scores = [scorer.score(payment(amount=a), observe=True).score for a in amounts]
    want = [0.1, 0.3, 1150.3, 1150.3, 1250.3, 2350.31]
    assert scores == [pytest.approx(w, rel=1e-6) for w in want]


# ---- time --------------------------------------------------------------------------------------------------------------


def test_the_events_own_time_decides(scorer):
    """Windows end at the event's time: 50 minutes ago counts, two hours ago is over, whatever comes first."""
    scorer.score(payment(at=T0 - 120 * MINUTE), observe=True)
    assert counts(scorer.score(payment(at=T0 - 119 * MINUTE)))[0] == 2
    scorer.score(payment(at=T0), observe=True)
    scorer.score(payment(at=T0 - 50 * MINUTE), observe=True)
    assert counts(scorer.score(payment(at=T0)))[0] == 3


def test_at_is_the_time_of_an_event_that_has_none(scorer):
    """`at=` moves the window as the field would."""
    scorer.score(payment(), observe=True, at=T0 - 120 * MINUTE)
    assert counts(scorer.score(payment()))[0] == 1
    assert counts(scorer.score(payment(), at=T0 - 119 * MINUTE))[0] == 2


def test_a_window_says_that_it_does_not_cover_its_time_yet():
    """Right after the start an hour's count is stale; an hour later it is not, a month's still is."""
    clock = clock_at()
    store = ri.Store(windows=ri.Windows.memory(clock=clock), clock=clock)
    scorer = releases.scorer_of(files(), store=store)
    cold = scorer.score(payment())
    assert set(cold.stale) == set(spec_of().names)
    assert counts(cold) == (1, 0, 1, 0)
    clock.advance_ns(3_700 * SECOND_NS)
    assert scorer.score(payment()).stale == ("chargebacks",)
    clock.advance_ns(31 * 86_400 * SECOND_NS)
    assert scorer.score(payment()).stale == ()
    assert scorer.freshness == ri.Freshness(answers=3, fresh=1)


def test_an_entity_without_a_key_is_unknown(scorer):
    """A null card has no windows, and nothing of it is counted; the merchant's windows go on."""
    answer = scorer.score(payment(card=None), observe=True)
    assert set(answer.missing) == {"with", "spent", "before", "chargebacks", "large"}
    assert answer.stale == ()
    assert counts(scorer.score(payment())) == (1, 0, 1, 0)


# ---- ids and other streams -------------------------------------------------------------------------------------------


def test_an_event_that_comes_twice_is_counted_once(scorer):
    """A retry with the same id reads what the first one read, and adds nothing."""
    first = scorer.score(payment(), observe=True, event_id="p-1")
    again = scorer.score(payment(), observe=True, event_id="p-1")
    other = scorer.score(payment(), observe=True, event_id="p-2")
    assert [counts(a)[0] for a in (first, again, other)] == [1, 1, 2]
    batch = scorer.score_batch([payment()] * 3, observe=True, event_ids=["p-2", "p-3", "p-3"])
    assert [counts(a)[0] for a in batch] == [2, 3, 3]
    body = msgspec.json.encode(payment())
    assert counts(msgspec.json.decode(scorer.score_json(body, observe=True, event_id="p-3")))[0] == 3


def test_labels_are_counted_by_their_own_events(scorer):
    """A chargeback is an event of another stream: it is seen from its own arrival on."""
    assert counts(scorer.score(payment()))[3] == 0
    scorer.observe("chargeback", {"card": "c-1"})
    scorer.observe("chargeback", {"card": "c-1"}, event_id="x")
    scorer.observe("chargeback", {"card": "c-1"}, event_id="x")
    scorer.observe("chargeback", {"card": "c-2", "at": T0 - MINUTE})
    assert counts(scorer.score(payment()))[3] == 2
    assert counts(scorer.score(payment(card="c-2")))[3] == 1


def test_requests_can_be_observed_without_a_score(scorer):
    """A payment that somebody else scored is counted all the same."""
    scorer.observe("payment", payment(), at=T0)
    scorer.observe("payment", payment(at=T0 - 70 * MINUTE))
    assert counts(scorer.score(payment()))[:2] == (2, 1)


@pytest.mark.parametrize("stream", ["payments", "", None, 3, "card"])
def test_a_stream_that_nothing_counts_is_named(scorer, stream):
    """A typing mistake says which streams there are."""
    with pytest.raises(ConfigError, match=r"`chargeback`, `payment`"):
        scorer.observe(stream, payment())


def test_a_bad_event_is_the_callers_mistake_and_counts_nothing(scorer):
    """Types, unknown fields and sums that cannot be held: refused before anything is added, with the place."""
    with pytest.raises(FeatureError, match=r"\$\.card"):
        scorer.observe("chargeback", {"card": 5})
    with pytest.raises(FeatureError):
        scorer.observe("chargeback", {"card": "c-1", "amount": 1.0})
    with pytest.raises(FeatureRangeError, match="amount"):
        scorer.score(payment(amount=1e300), observe=True)
    with pytest.raises(FeatureError):
        scorer.score(payment(amount="ten"), observe=True)
    assert counts(scorer.score(payment())) == (1, 0, 1, 0)


def test_a_batch_is_counted_whole_or_not_at_all(scorer):
    """One bad row of a batch that raises: nothing was counted, so that it can be sent again. As rows: the others were."""
    rows = [payment(), payment(amount=1e300), payment()]
    with pytest.raises(FeatureRangeError, match=r"\$\[1\]\.amount"):
        scorer.score_batch(rows, observe=True)
    assert counts(scorer.score(payment()))[0] == 1
    answers = scorer.score_batch(rows, observe=True, errors="row")
    assert isinstance(answers[1], FeatureRangeError)
    assert [counts(answers[i])[0] for i in (0, 2)] == [1, 2]


def test_event_ids_belong_to_their_rows(scorer):
    """Too few, too many, or one that is no id."""
    with pytest.raises(FeatureError, match="event_ids"):
        scorer.score_batch([payment()] * 2, observe=True, event_ids=["a"])
    with pytest.raises(FeatureError):
        scorer.score_batch([payment()], observe=True, event_ids=[1.5])
    with pytest.raises(FeatureError):
        scorer.score(payment(), observe=True, event_id=1.5)
    with pytest.raises((FeatureError, LimitError)):
        scorer.score_batch([payment()], observe=True, event_ids=iter(int, 1))
    assert counts(scorer.score(payment()))[0] == 1


# ---- what cannot be observed -----------------------------------------------------------------------------------------


def test_features_that_count_no_requests_refuse_to_observe():
    """No windows, or windows of other streams only: a ConfigError that says what to declare, from every door."""
    plain = releases.payment_scorer()
    labels = spec_of(
        [c.window("card", "count", on="chargeback", over="1h")],
        streams={"chargeback": {"card": str}},
    )
    store = ri.Store(windows=ri.Windows.memory())
    other = releases.scorer_of(releases.packed("labels", releases.weighted(1.0), labels), store=store)
    for scorer, request in ((plain, releases.payment()), (other, payment())):
        body = msgspec.json.encode(request)
        with pytest.raises(ConfigError, match="streams="):
            scorer.score(request, observe=True)
        with pytest.raises(ConfigError, match="streams="):
            scorer.score(request, event_id="x")
        with pytest.raises(ConfigError, match="streams="):
            scorer.score_json(body, observe=True)
        with pytest.raises(ConfigError, match="streams="):
            scorer.score_batch([request], observe=True)
        with pytest.raises(ConfigError, match="streams="):
            asyncio.run(scorer.ascore(request, observe=True))
    other.observe("chargeback", {"card": "c-1"})
    assert other.score(payment()).score == 1.0


def test_windows_without_a_store_are_refused_when_loading():
    """Also with a store that has none; the message says what to give."""
    for store in (None, ri.Store()):
        with pytest.raises(ConfigError, match=r"Windows\.memory"):
            releases.scorer_of(files(), store=store)
    with pytest.raises(ConfigError, match="Windows"):
        ri.Store(windows=object())


# ---- shared by all ---------------------------------------------------------------------------------------------------


def test_a_new_release_finds_the_counts_where_they_were():
    """State belongs to the store, by definition: another model, and other columns over the same window, read on."""
    store = windows_store()
    first = releases.scorer_of(files(), store=store)
    for _ in range(3):
        first.score(payment(), observe=True)
    second = releases.scorer_of(files((1.0, 0.0, 0.0, 0.0, 0.0, 0.0)), store=store)
    assert second.score(payment()).score == 4.0
    assert second.score(payment()).stale == ()
    renamed = spec_of([c.window("card", "count", on="payment", over="1h", name="n", transform="log1p")])
    third = releases.scorer_of(releases.packed("third", releases.weighted(1.0), renamed), store=store)
    assert third.score(payment()).score == pytest.approx(1.6094379, rel=1e-6)
    assert third.score(payment()).stale == ()


def test_threads_never_read_the_same_old_count():
    """A burst from many threads: every attempt sees another number, none is lost, whatever doors they use."""
    scorer = releases.scorer_of(files((1.0, 0.0, 0.0, 0.0, 0.0, 0.0)), store=windows_store())
    body = msgspec.json.encode(payment())
    seen: list[float] = []

    def work(seed):
        for i in range(40):
            if (i + seed) % 3 == 0:
                found = [scorer.score(payment(), observe=True).score]
            elif (i + seed) % 3 == 1:
                found = [msgspec.json.decode(scorer.score_json(body, observe=True))["score"]]
            else:
                found = [a.score for a in scorer.score_batch([payment()] * 3, observe=True)]
            seen.extend(found)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(1, len(seen) + 1))


def test_code_that_scores_while_it_is_read_counts_in_between(scorer):
    """`__float__` that scores: the inner payment is counted first, the outer one sees it, and no memory is shared."""

    class Amount(decimal.Decimal):
        def __float__(self):
            nested.append(counts(scorer.score(payment(amount=1.0), observe=True)))
            return 5.0

    nested = []
    outer = counts(scorer.score(payment(amount=Amount("5")), observe=True))
    assert len(nested) > 0
    assert outer[:2] == (1 + len(nested), len(nested))
    assert counts(scorer.score(payment())) == (2 + len(nested), 1 + len(nested), 1, 0)


def test_a_score_that_fails_was_still_an_event():
    """A column that refuses, after the event could be read: the payment happened, and the next one knows."""
    columns = [c.numeric("amount", null="refuse"), c.window("card", "count", on="payment", over="1h")]
    files = releases.packed("refusing", releases.weighted(0.0, 1.0), spec_of(columns))
    clock = clock_at()
    scorer = releases.scorer_of(files, store=ri.Store(windows=ri.Windows.memory(clock=clock), clock=clock))
    with pytest.raises(FeatureError, match="amount"):
        scorer.score(payment(amount=None), observe=True)
    assert scorer.score(payment()).score == 2.0


# ---- rankings --------------------------------------------------------------------------------------------------------


def ranking_spec(columns=(), **streams):
    """Users have windows; items have a weight."""
    return ri.FeatureSpec(
        request={"user": str, "sku": str, "page": int},
        entities={"user": "user", "item": "sku"},
        candidate="item",
        streams={"view": None, **streams},
        columns=[c.window("user", "count", on="view", over="1h"), c.stored("item.weight"), *columns],
    )


def test_rankings_read_and_count_their_context():
    """One view a ranking, whatever the number of candidates."""
    files = releases.packed("views", releases.weighted(100.0, 1.0), ranking_spec())
    store = ri.Store(tables={"item": releases.items()}, windows=ri.Windows.memory())
    ranker = releases.ranker_of(files, store=store)
    context = {"user": "u-1", "page": 1}
    ids = ["sku-001", "sku-003"]
    assert ranker.rank(context, ids, 2).scores == [103.0, 101.0]
    assert ranker.rank(context, ids, 2, observe=True).scores == [103.0, 101.0]
    body = msgspec.json.encode({"context": context, "candidates": ids, "k": 2})
    assert msgspec.json.decode(ranker.rank_json(body, observe=True, event_id="v"))["scores"] == [203.0, 201.0]
    assert msgspec.json.decode(ranker.rank_json(body, observe=True, event_id="v"))["scores"] == [203.0, 201.0]
    assert asyncio.run(ranker.arank(context, ids, 2, observe=True)).scores == [303.0, 301.0]
    last = ranker.rank(context, ids, 2)
    assert last.scores == [403.0, 401.0]
    assert last.stale == ("user_count_1h",)
    assert ranker.freshness.share == 0.0


def test_windows_of_candidates_are_refused_by_name():
    """A ranking computes items when they enter their table: what changes with every event has no place there."""
    shown = c.window("item", "count", on="shown", over="1h", name="times_shown")
    spec = ranking_spec([shown], shown={"sku": str})
    files = releases.packed("shown", releases.weighted(1.0, 1.0, 1.0), spec)
    store = ri.Store(tables={"item": releases.items()}, windows=ri.Windows.memory())
    with pytest.raises(ConfigError, match="times_shown"):
        releases.ranker_of(files, store=store)
