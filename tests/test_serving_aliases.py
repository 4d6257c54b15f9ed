"""Keys that go by other names: look-ups follow them as of the request's moment, features do not, and the trace says so."""

from __future__ import annotations

import datetime as dt
import functools

import msgspec
import pytest
import releases

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.errors import ConfigError, FeatureTypeError, SchemaMismatchError

NOON = dt.datetime(2026, 3, 1, 12, 0, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
UNSIGNED = "release: unsigned"
SPEND = {"c-1": 10.0, "c-2": 20.0, "c-3": 30.0}


@functools.cache
def files(kind: type = str) -> dict[str, bytes]:
    """Score = the customer's spend + 100 * whether the request names c-9 itself + the pair's points."""
    spec = ri.FeatureSpec(
        request={"customer": kind, "shop": str, "named": kind, "at": ri.Timestamp | None},
        event_time="at",
        entities={"customer": "customer", "pair": ("customer", "shop")},
        columns=[
            c.stored("customer.spend", unknown=0.0),
            c.equal("customer", "named"),
            c.stored("pair.points", unknown=0.0),
        ],
    )
    return releases.packed("aliased", releases.weighted(1.0, 100.0, 1000.0), spec)


def store_of(aliases=("customer",), *, number=None) -> ri.Store:
    """Customers with a spend; c-2 has points in shop `s`."""
    key = number or (lambda text: text)
    return ri.Store(
        tables={
            "customer": ri.Snapshot.from_rows({key(k): {"spend": v} for k, v in SPEND.items()}),
            "pair": ri.Snapshot.from_rows({(key("c-2"), "s"): {"points": 1.0}}),
        },
        aliases=aliases,
    )


def request(customer="guest", **changes):
    """A request of a customer who is nobody's table row."""
    return {"customer": customer, "shop": "x", "named": "nobody", "at": NOON} | changes


def test_an_alias_finds_the_row_and_says_so():
    """The row of the customer that the guest stands for; the chain is in the trace, in whatever form the answer comes."""
    store = store_of()
    scorer = releases.scorer_of(files(), store=store)
    before = scorer.score(request())
    assert (before.score, before.missing, before.trace) == (
        0.0,
        ("customer.spend", "pair.points"),
        (UNSIGNED,),
    )
    store.aliases("customer").link("guest", into="c-1", at=NOON - HOUR)
    store.aliases("customer").link("c-1", into="c-2", at=NOON - HOUR)
    after = scorer.score(request())
    assert (after.score, after.missing) == (20.0, ("pair.points",))
    assert after.trace == (UNSIGNED, "customer: guest -> c-1 -> c-2")
    body = msgspec.json.encode(request())
    assert msgspec.json.decode(scorer.score_json(body))["trace"] == [*after.trace]
    packed = msgspec.msgpack.encode(request())
    assert msgspec.msgpack.decode(scorer.score_msgpack(packed))["trace"] == [*after.trace]
    assert [a.trace for a in scorer.score_batch([request(), request("c-3"), request()])] == [
        after.trace,
        (UNSIGNED,),
        after.trace,
    ]


def test_every_entity_whose_key_has_the_field_is_looked_up_under_the_other_name():
    """Also a key of several fields; the chain is told once."""
    store = store_of()
    scorer = releases.scorer_of(files(), store=store)
    store.aliases("customer").link("guest", into="c-2", at=0)
    decision = scorer.score(request(shop="s"))
    assert (decision.score, decision.trace) == (1020.0, (UNSIGNED, "customer: guest -> c-2"))


def test_features_read_the_field_as_it_came():
    """Only look-ups use the other name: whether two fields are equal is about the fields."""
    store = store_of()
    scorer = releases.scorer_of(files(), store=store)
    store.aliases("customer").link("guest", into="c-1", at=0)
    assert scorer.score(request(named="guest")).score == 110.0
    assert scorer.score(request(named="c-1")).score == 10.0


def test_a_link_holds_from_its_own_moment_until_it_ends():
    """At the event's time, not at the time of the call."""
    store = store_of()
    scorer = releases.scorer_of(files(), store=store)
    aliases = store.aliases("customer")
    aliases.link("guest", into="c-1", at=NOON)
    aliases.link("guest", into="c-3", at=NOON + HOUR)
    aliases.unlink("guest", at=NOON + 2 * HOUR)
    moments = [NOON - HOUR, NOON, NOON + HOUR / 2, NOON + HOUR, NOON + 2 * HOUR]
    assert [scorer.score(request(at=at)).score for at in moments] == [0.0, 10.0, 10.0, 30.0, 0.0]
    # without a time of its own the event happens at the call's moment
    assert [scorer.score(request(at=None), at=at).score for at in moments] == [0.0, 10.0, 10.0, 30.0, 0.0]
    answers = scorer.score_batch([request(at=at) for at in moments])
    assert [answer.score for answer in answers] == [0.0, 10.0, 10.0, 30.0, 0.0]


def test_integer_keys_have_aliases_too():
    """Eight bytes are compared, and the trace shows numbers."""
    numbers = {"c-1": 1, "c-2": 2, "c-3": 3}
    store = store_of({"customer": "int"}, number=numbers.__getitem__)
    scorer = releases.scorer_of(files(int), store=store)
    store.aliases("customer").link(77, into=2, at=0)
    decision = scorer.score(request(77, named=5, shop="s"))
    assert (decision.score, decision.trace) == (1020.0, (UNSIGNED, "customer: 77 -> 2"))


def test_long_keys_are_cut_in_the_trace():
    """A trace is for people, a key of 60,000 bytes is not."""
    store = store_of()
    scorer = releases.scorer_of(files(), store=store)
    long = "g" * 60_000
    store.aliases("customer").link(long, into="c-1", at=0)
    decision = scorer.score(request(long))
    assert decision.score == 10.0
    assert len(decision.trace[1]) < 200


def test_a_null_key_stays_unknown():
    """Nothing stands for nothing; and a key that was resolved before does not linger."""
    spec = ri.FeatureSpec(
        request={"customer": str | None},
        entities={"customer": "customer"},
        columns=[c.stored("customer.spend", unknown=-1.0)],
    )
    store = store_of()
    scorer = releases.scorer_of(releases.packed("null", releases.weighted(1.0), spec), store=store)
    store.aliases("customer").link("guest", into="c-1", at=0)
    customers = ["guest", None, "c-2", None, "guest"]
    assert [scorer.score({"customer": one}).score for one in customers] == [10.0, -1.0, 20.0, -1.0, 10.0]


def test_rankings_follow_aliases_of_their_context():
    """The context's key is renamed, also in a key that the candidate is part of; candidates keep their ids."""
    spec = ri.FeatureSpec(
        request={"user": str, "sku": str},
        entities={"item": "sku", "user": "user", "seen": ("user", "sku")},
        candidate="item",
        columns=[
            c.stored("user.spend", unknown=0.0),
            c.stored("item.weight", unknown=0.0),
            c.stored("seen.times", unknown=0.0),
        ],
    )
    files = releases.packed("renamed", releases.weighted(1.0, 1.0, 100.0), spec)
    store = ri.Store(
        tables={
            "item": releases.items(),
            "user": ri.Snapshot.from_rows({"u-1": {"spend": 5.0}}),
            "seen": ri.Snapshot.from_rows({("u-1", "sku-003"): {"times": 1.0}}),
        },
        aliases=["user"],
    )
    ranker = releases.ranker_of(files, store=store)
    store.aliases("user").link("guest", into="u-1", at=0)
    ranking = ranker.rank({"user": "guest"}, ["sku-001", "sku-003", "sku-002"], 3)
    assert ranking.items == ["sku-003", "sku-002", "sku-001"]
    assert ranking.scores == [108.0, 7.0, 6.0]
    assert ranking.trace == (UNSIGNED, "user: guest -> u-1")
    body = {"context": {"user": "guest"}, "candidates": ["sku-001"], "k": 1}
    assert msgspec.json.decode(ranker.rank_json(msgspec.json.encode(body)))["trace"] == [*ranking.trace]


def test_what_cannot_be_followed_is_refused_when_loading():
    """Keys of several fields, keys of another kind, and candidates: said when the release is loaded, with what to do."""
    with pytest.raises(ConfigError, match="2 fields"):
        releases.scorer_of(files(), store=store_of(["pair"]))
    with pytest.raises(SchemaMismatchError, match="int"):
        releases.scorer_of(files(), store=store_of({"customer": "int"}))
    store = ri.Store(tables={"item": releases.items()}, aliases=["item"])
    with pytest.raises(ConfigError, match="candidate"):
        releases.item_ranker(store=store)


def test_entities_without_aliases_are_named():
    """A typing mistake says which entities have them."""
    with pytest.raises(ConfigError, match=r"`customer`.*'cutsomer'"):
        store_of().aliases("cutsomer")
    with pytest.raises(ConfigError, match="list"):
        ri.Store(aliases="customer")


def test_a_wrong_key_is_the_fields_mistake_not_the_aliases():
    """Requests are checked before anything is looked up."""
    scorer = releases.scorer_of(files(), store=store_of())
    with pytest.raises(FeatureTypeError, match="customer"):
        scorer.score(request(5))
