"""Declaring windows and lags: names, checks, layouts for the store, and window values in tables.

What a window counts is test_windows_*.py; what its column makes of any value in any state is test_reference_table.py.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
from typing import Any

import msgspec
import numpy as np
import pytest

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.columns import COMPARISONS, Where, accumulator_definition, accumulator_key, parse_where
from retailinfer.errors import FeatureMissingError, FeatureTypeError, SpecError
from retailinfer.features.program import sections, slot_names, slot_types
from retailinfer.features.spec import Body, FeatureSpec, Stream, Tensor, Timestamp
from retailinfer.features.streams import (
    accumulator_of,
    compile_stream,
    describe_window,
    read_events,
    request_stream,
    window_layout,
)

DAY_NS = 86400 * 10**9
FIELDS: dict[str, Any] = {
    "card": str,
    "shop": int,
    "amount": float,
    "n": int,
    "gift": bool,
    "channel": str | None,
    "at": Timestamp,
    "tags": list[str],
    "raw": bytes,
}
LABEL = Stream({"card": str, "fraud": bool, "loss": float, "when": Timestamp}, event_time="when")
ENTITIES = {"card": "card", "pair": ("card", "shop")}


def spec(*columns: Any, **more: Any) -> FeatureSpec:
    """A spec whose only stream is its requests."""
    options: dict[str, Any] = {"request": FIELDS, "entities": ENTITIES, "event_time": "at"}
    options |= {"streams": {"payment": None}, "columns": columns}
    return FeatureSpec(**options | more)


def both(*columns: Any, **more: Any) -> FeatureSpec:
    """A spec with a stream of labels too."""
    return spec(*columns, streams={"payment": None, "label": LABEL}, **more)


def count(**more: Any) -> Any:
    """Payments of a card in an hour, changed as `more` says."""
    return c.window("card", "count", **{"on": "payment", "over": "1h", **more})


def total(**more: Any) -> Any:
    """What a card paid in a day, changed as `more` says."""
    return c.window("card", "sum", **{"on": "payment", "of": "amount", "over": "24h", "scale": 100, **more})


# ---- names and defaults ----------------------------------------------------------------------------------------------


def test_windows_are_named_by_what_they_count():
    """Entity, what, field and length; the stream too where there are several; or the name that was given."""
    assert spec(count(), total(), total(over="1h", name="spent")).names == (
        "card_count_1h",
        "card_sum_amount_24h",
        "spent",
    )
    assert both(count(), count(over="2h", name="two")).names == ("card_count_1h_payment", "two")


def test_lags_are_a_column_each_named_by_their_distance():
    """Steps are counted in the unit of the step; a spec takes the tuple as it is, in columns and tensors."""
    lags = c.lag("card", of="n", lags=[1, 7], step="2h", fill=0)
    assert spec(c.numeric("amount"), lags).names == ("amount", "card_lag_n_2h", "card_lag_n_14h")
    made = spec(columns=(), tensors={"t": Tensor([c.lag("card", of="n", lags=[3], fill=0, name="sold")])})
    assert made.names == ("sold_3d",)
    assert made.windows["sold_3d"].on == "payment"
    assert made.columns[0].null == 0


def test_a_window_is_cut_into_thirty_panes_or_about_that():
    """The first number of panes that gives whole seconds and divides the delay."""
    panes = {
        over: c.window("card", "count", on="p", over=over).window.pane_ns // 10**9
        for over in ("1h", "24h", "30d", "90s", "7s")
    }
    assert panes == {"1h": 120, "24h": 2880, "30d": 86400, "90s": 3, "7s": 7}
    assert count(over="28d", delay="7d").window.n_panes == 32
    assert count(over="1h", pane="1m").window.n_panes == 60


def test_scale_is_one_for_integers_and_booleans():
    """Only a float leaves open how many digits count."""
    made = both(
        c.window("card", "sum", on="payment", of="n", over="1h"),
        c.window("card", "mean", on="label", of="fraud", over="1h"),
        c.window("card", "distinct", on="payment", of="shop", over="1h"),
        count(),
    )
    assert [w.scale for w in made.windows.values()] == [None, None, 1, 1]
    assert sorted(made.windows) == list(made.windows)


def test_conditions_take_the_type_of_their_field():
    """100 beside a float is 100.0; beside an integer, > 99.5 is >= 100."""
    made = spec(
        count(name="a", where="amount > 100 and channel == 'on\"line' and gift == true"),
        count(name="b", where="n > 99.5 and n <= 7.5 and n == 3.0"),
    )
    assert made.windows["a"].where == (
        Where("amount", ">", 100.0),
        Where("channel", "==", 'on"line'),
        Where("gift", "==", True),
    )
    assert made.windows["b"].where == (Where("n", ">=", 100), Where("n", "<=", 7), Where("n", "==", 3))
    assert all(type(t.value) is int for t in made.windows["b"].where)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("x<1", [Where("x", "<", 1)]),
        (" x  !=  -1.5e3 ", [Where("x", "!=", -1500.0)]),
        ('x == "a and b" and y==False', [Where("x", "==", "a and b"), Where("y", "==", False)]),
        ("android >= 1 and and_ <= .5", [Where("android", ">=", 1), Where("and_", "<=", 0.5)]),
        ("x == ''", [Where("x", "==", "")]),
    ],
)
def test_conditions_are_comparisons_joined_by_and(text, terms):
    """Numbers, quoted texts, true and false; spaces do not matter."""
    assert parse_where(text) == tuple(terms)


@pytest.mark.parametrize(
    "text",
    ["", "x", "x >", "x > 1 or y > 1", "x > 1 and", "x = 1", "x > y", "1 < x", "x > 1 y > 1", "x == 'a", "x > 1;", "x > 1e999",
     "x > 1and y > 1 and", "not x", "x in (1, 2)", "x > nan", 5, None.__class__],
)  # fmt: skip
def test_anything_else_in_a_condition_is_refused(text):
    """The message quotes what was not understood."""
    with pytest.raises(SpecError, match=r"comparisons|numbers|text"):
        parse_where(text)


# ---- contradictions --------------------------------------------------------------------------------------------------

WRONG: list[tuple[Any, str]] = [
    # the declaration alone
    (lambda: c.window("card", "median", on="payment", over="1h", of="amount"), "count, sum"),
    (lambda: c.window("card", "sum", on="payment", over="1h"), "Expected `of`"),
    (lambda: count(of="amount"), "count of events"),
    (lambda: count(over="1 hour"), "duration"),
    (lambda: count(over="0s"), "duration"),
    (lambda: count(over=3600), "duration"),
    (lambda: count(over="4000d"), "over"),
    (lambda: count(pane="7m"), "multiples of `pane`"),
    (lambda: count(over="1h", delay="90s", pane="1m"), "multiples of `pane`"),
    (lambda: count(over="1h", delay="7s"), "pane="),
    (lambda: count(over="1h", pane="1s"), "998 panes"),
    (lambda: count(over="30d", delay="300d", pane="6h"), "998 panes"),
    (lambda: count(current="later"), "include"),
    (lambda: total(scale=0), "scale"),
    (lambda: total(scale=0.5), "scale"),
    (lambda: total(scale=2.5), "scale"),
    (lambda: total(scale=True), "scale"),
    (lambda: total(scale=10**13), "scale"),
    (lambda: count(scale=100), "scale"),
    (lambda: count(name="card.n"), "without a dot"),
    (lambda: count(name=""), "name"),
    (lambda: count(name="\ud800"), "text"),
    (lambda: count(where="channel == '\ud800'"), "text"),
    (lambda: c.window(5, "count", on="payment", over="1h"), "text"),
    (lambda: c.window("", "count", on="payment", over="1h"), "entity"),
    (lambda: c.lag("card", of="n", lags=[], fill=0), "lags"),
    (lambda: c.lag("card", of="n", lags=[0], fill=0), "c.window"),
    (lambda: c.lag("card", of="n", lags=0, fill=0), "c.window"),
    (lambda: c.lag("card", of="n", lags=[-1], fill=0), "lags"),
    (lambda: c.lag("card", of="n", lags=[True], fill=0), "lags"),
    (lambda: c.lag("card", of="n", lags=[1.5], fill=0), "lags"),
    (lambda: c.lag("card", of="n", lags=[998], fill=0), "lags"),
    (lambda: c.lag("card", of="n", lags=[1, 1], fill=0), "once"),
    (lambda: c.lag("card", of="n", lags=[1], fill=None), "null"),
    (lambda: c.lag("card", of="n", lags=[1], step="day", fill=0), "duration"),
    (lambda: c.lag("card", of=None, lags=[1], fill=0), "`of`"),
    # beside fields, entities and streams
    (lambda: spec(c.window("user", "count", on="payment", over="1h")), "Unknown entity `'user'`.*card, pair"),
    (lambda: spec(count(on="click")), "Unknown stream `'click'`.*payment"),
    (lambda: spec(count(), streams={}), "Unknown stream.*streams="),
    (lambda: both(c.lag("card", of="loss", lags=[1], fill=0)), "Expected on=.*label, payment"),
    (lambda: both(c.window("pair", "count", on="label", over="1h")), "key `shop` \\(int\\).*no such field"),
    (
        lambda: spec(count(on="label"), streams={"label": {"card": int}}),
        "key `card` \\(str\\).*has it as int",
    ),
    (lambda: spec(total(of="price")), "Unknown field `'price'`.*amount"),
    (lambda: spec(total(of="card")), "float, int or bool for a sum, got str"),
    (lambda: spec(total(of="at")), "got timestamp"),
    (lambda: spec(total(of="tags")), "got list"),
    (lambda: spec(total(scale=None)), "scale=.*float"),
    (lambda: spec(c.window("card", "mean", on="payment", of="amount", over="1h")), "scale="),
    (lambda: spec(c.lag("card", of="amount", lags=[1], fill=0)), "scale="),
    (lambda: spec(c.window("card", "distinct", on="payment", of="amount", over="1h")), "got float.*rounded"),
    (lambda: spec(c.window("card", "distinct", on="payment", of="tags", over="1h")), "got list"),
    (lambda: spec(count(where="price > 1")), "Unknown field `'price'` in where"),
    (lambda: spec(count(where="amount > 'a'")), "a number after `amount >`"),
    (lambda: spec(count(where="amount == true")), "a number"),
    (lambda: spec(count(where="n == 1.5")), "a whole number"),
    (lambda: spec(count(where="n > 1e30")), "64 bits"),
    (lambda: spec(count(where="channel == 1")), "quoted text"),
    (lambda: spec(count(where="channel > 'a'")), "== or !="),
    (lambda: spec(count(where="gift == 1")), "true or false"),
    (lambda: spec(count(where="gift >= true")), "== or !="),
    (lambda: spec(count(where="at > 5")), "is timestamp"),
    (lambda: spec(count(where="tags == 'a'")), "is list"),
    (lambda: spec(count(where="raw == 'a'")), "is bytes"),
    (lambda: spec(count(name="amount")), "name of a request field"),
    (lambda: spec(count(), count()), "two columns"),
    (lambda: spec(count(name="x"), total(name="x")), "two windows"),
    (lambda: spec(count(name="x"), windows=[total(name="x")]), "two windows"),
    (lambda: spec(c.numeric("amount"), windows=[c.numeric("n")]), "c.window or c.lag"),
    (lambda: spec(c.numeric("amount"), windows=["x"]), "c.window or c.lag"),
    (lambda: spec(c.numeric("amount"), windows=[count(transform="log1p")]), "no tensor holds it"),
    (lambda: spec(c.numeric("amount"), windows=[c.lag("card", of="n", lags=[1], fill=0)]), 'fill="use"'),
    (lambda: spec(c.categorical("x"), windows=[count(name="x")]), "got float"),
    (lambda: spec(c.boolean("x"), windows=[count(name="x")]), "got float"),
    (lambda: spec(c.ratio("amount", "x", max_age="1h"), windows=[count(name="x")]), "max_age"),
    (lambda: spec(c.numeric("card_count_2h"), windows=[count()]), "Unknown reference.*card_count_1h"),
    (lambda: spec(columns=(), tensors={"t": Tensor([count()], "int64")}), "NaN into int64"),
    # streams
    (lambda: spec(count(), streams={"payment": None, "again": None}), "one stream of requests"),
    (lambda: spec(count(), streams={"pay-ment": None}), "identifier"),
    (lambda: spec(count(), streams={"payment": {}}), "no fields.*None means"),
    (lambda: spec(count(), streams={"payment": {"card": complex}}), "at stream `payment`"),
    (lambda: spec(count(), streams={"payment": {"class": str}}), "identifier.*at stream"),
    (lambda: spec(count(), streams={"payment": Stream({"card": str}, event_time="at")}), "event_time.*at stream"),
    (lambda: spec(count(), streams={"payment": Stream({"card": str}, event_time="card")}), "event_time"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), WRONG)
def test_a_window_that_contradicts_its_spec_is_refused(make, words):
    """The error names the window or the stream, and says what to mend."""
    with pytest.raises(SpecError, match=words):
        make()


def test_windows_of_the_candidate_stand_with_the_candidates():
    """A window keyed by the candidate differs between rows: it is no context, nor anything that it is mixed with."""
    views = c.window("item", "count", on="view", over="1h")
    ratio = c.ratio("item_count_1h", "user_count_1h")
    mine = c.window("user", "count", on="view", over="1h")
    options: dict[str, Any] = {
        "request": {"user": str, "sku": str},
        "entities": {"user": "user", "item": "sku"},
        "candidate": "item",
        "streams": {"view": {"user": str, "sku": str}},
    }
    made = FeatureSpec(**options, columns=[views, ratio, mine])
    slots, columns = sections(made.body)
    assert (slots["item_count_1h"], slots["user_count_1h"]) == ("item", "context")
    assert columns == ["item", "cross", "context"]
    FeatureSpec(**options, tensors={"t": Tensor([mine], axis="context"), "u": Tensor([views])})
    for wrong in (views, ratio):
        with pytest.raises(SpecError, match=r'differs between candidates.*axis="context"'):
            FeatureSpec(**options, tensors={"t": Tensor([wrong], axis="context")}, windows=[views, mine])


# ---- features.json ---------------------------------------------------------------------------------------------------


def full() -> FeatureSpec:
    """A spec with everything in it."""
    return both(
        c.numeric("amount"),
        count(where="amount > 100 and channel == 'web'"),
        total(transform="log1p", center=1.0, null=0.0),
        c.window("card", "mean", on="label", of="loss", scale=100, over="28d", delay="7d", current="exclude"),
        c.window("pair", "distinct", on="payment", of="shop", over="30d"),
        c.lag("card", of="n", on="payment", lags=[1, 7], fill=0.0),
        c.ratio("amount", "biggest"),
        windows=[c.window("card", "max", on="payment", of="amount", scale=100, over="7d", name="biggest")],
        tz="Europe/London",
    )


def test_windows_survive_their_json():
    """Equal bytes, equal fingerprint, equal layout; and every part of a definition is in the fingerprint."""
    made = full()
    again = FeatureSpec.from_json(made.to_json())
    assert again == made
    assert again.fingerprint == made.fingerprint
    assert again.window_layout() == made.window_layout()
    assert again.to_json() == made.to_json()
    prints = {
        spec(count(**change)).fingerprint
        for change in (
            {},
            {"over": "2h"},
            {"pane": "1m"},
            {"current": "exclude"},
            {"delay": "1h"},
            {"where": "n > 1"},
            {"where": "n > 2"},
            {"null": 0.0},
            {"name": "other"},
        )
    }
    assert len(prints) == 9


def tampered(made: FeatureSpec, change: Any) -> bytes:
    """features.json of a spec, changed in one place."""
    tree = msgspec.json.decode(made.to_json())
    change(tree)
    return msgspec.json.encode(tree)


TAMPERED = [
    lambda t: t["windows"]["biggest"].update(pane_ns=0),
    lambda t: t["windows"]["biggest"].update(pane_ns=-1),
    lambda t: t["windows"]["biggest"].update(pane_ns=10**9),
    lambda t: t["windows"]["biggest"].update(over_ns=2**62),
    lambda t: t["windows"]["biggest"].update(delay_ns=-(10**9)),
    lambda t: t["windows"]["biggest"].update(scale=2**70),
    lambda t: t["windows"]["biggest"].update(what="lag"),
    lambda t: t["windows"]["biggest"].update(of="card"),
    lambda t: t["windows"]["biggest"].update(of=None),
    lambda t: t["windows"]["biggest"].update(entity="nobody"),
    lambda t: t["windows"]["biggest"].update(on="label"),
    lambda t: t["windows"]["biggest"].update(where=[["amount", "~", 1.0]]),
    lambda t: t["windows"]["biggest"].update(where=[["amount", ">", 1]]),
    lambda t: t["windows"]["biggest"].update(where=[["amount", ">", 1.0, 2]]),
    lambda t: t["windows"]["biggest"].update(current="maybe"),
    lambda t: t["windows"]["card_lag_n_1d_payment"].update(lag=0),
    lambda t: t["windows"]["card_lag_n_1d_payment"].update(lag=5000),
    lambda t: t["windows"]["card_lag_n_1d_payment"].update(over_ns=10**9),
    lambda t: t["windows"].pop("card_count_1h_payment"),
    lambda t: t["windows"]["card_count_1h_payment"].update(over_ns=2 * 3600 * 10**9),
    lambda t: t["windows"].update({"amount": t["windows"]["biggest"]}),
    lambda t: t["windows"].update({"a.b": t["windows"]["biggest"]}),
    lambda t: t["windows"].update({"": t["windows"]["biggest"]}),
    lambda t: t["streams"].pop("label"),
    lambda t: t["streams"]["label"].update(is_request=True),
    lambda t: t["streams"]["label"].update(event_time="card"),
    lambda t: t["streams"]["label"].update(fields=[]),
    lambda t: t["streams"]["label"].update(fields=[{"name": "card", "type": "float"}]),
    lambda t: t["streams"].update(again={"is_request": True}),
    lambda t: t["tensors"]["features"]["columns"][1].update(refs=[]),
    lambda t: t["tensors"]["features"]["columns"][1].update(refs=["amount"]),
    lambda t: t["tensors"]["features"]["columns"][1].update(kind="boolean"),
    lambda t: t["tensors"]["features"]["columns"][1].update(max_age_ns=5),
]


@pytest.mark.parametrize("change", TAMPERED)
def test_a_features_file_with_impossible_windows_is_refused(change):
    """Whatever the constructor would not have made is a SpecError, never a crash later."""
    with pytest.raises(SpecError):
        FeatureSpec.from_json(tampered(full(), change))


# ---- what names state ------------------------------------------------------------------------------------------------


def key_of(made: FeatureSpec, name: str) -> bytes:
    """What the state behind a window is called."""
    return accumulator_of(made.body, made.windows[name]).digest


def test_state_is_shared_by_windows_that_differ_in_reading_only():
    """Length, delay, `current`, name, release and order of conditions change nothing; sums, means share; all else does not."""
    base = key_of(spec(total(pane="48m")), "card_sum_amount_24h")
    same = [
        spec(total(over="48h", pane="48m", name="x")),
        spec(total(pane="48m", current="exclude", name="x")),
        spec(total(pane="48m", delay="48h", name="x")),
        spec(c.window("card", "mean", on="payment", of="amount", scale=100, over="24h", name="x")),
        both(total(name="x"), c.numeric("n"), tz="Asia/Tokyo"),
    ]
    assert {key_of(made, "x") for made in same} == {base}
    other = [
        spec(total(pane="24m", name="x")),
        spec(total(scale=1000, name="x")),
        spec(total(where="n > 1", name="x")),
        spec(c.window("pair", "sum", on="payment", of="amount", scale=100, over="24h", name="x")),
        spec(c.window("card", "max", on="payment", of="amount", scale=100, over="24h", name="x")),
        spec(c.window("card", "sum", on="payment", of="n", scale=100, over="24h", name="x")),
        spec(
            c.window("card", "sum", on="sale", of="amount", scale=100, over="24h", name="x"),
            streams={"sale": None},
        ),
        spec(total(name="x"), request={**FIELDS, "card": int}),
    ]
    keys = [key_of(made, "x") for made in other]
    assert len({*keys, base}) == len(other) + 1
    one = spec(count(where="n > 1 and channel == 'a'", name="x"))
    two = spec(count(where="channel == 'a' and n > 1 and n > 1", name="x"))
    assert key_of(one, "x") == key_of(two, "x")


def test_lags_depend_on_the_zone_and_share_one_state():
    """Days are days of a zone; how far back they are read does not matter."""
    lags = c.lag("card", of="n", lags=[1, 28], fill=0)
    here, there = (spec(lags, tz=tz) for tz in ("Europe/London", "Asia/Tokyo"))
    assert key_of(here, "card_lag_n_1d") == key_of(here, "card_lag_n_28d") != key_of(there, "card_lag_n_1d")
    (state,) = here.window_layout()[0].accumulators
    assert (state.calendar, state.kind, state.pane_ns, state.keep_panes) == (True, "sum", DAY_NS, 31)


def test_distinct_values_of_other_types_are_other_state():
    """The bytes that are hashed depend on the type."""
    window = spec(c.window("card", "distinct", on="payment", of="shop", over="1h", name="x")).windows["x"]
    keys = {
        accumulator_key(window, key_types=("str",), of_type=t, tz="UTC") for t in ("int", "str", "timestamp")
    }
    assert len(keys) == 3


def test_the_name_of_state_never_changes():
    """Digests are in Redis and in saved states: these exact ones, for all time."""
    window = spec(total(where="amount > 100 and channel == 'web'", name="x")).windows["x"]
    text = accumulator_definition(window, key_types=("str",), of_type="float", tz="UTC")
    assert text == (
        b'{"entity":"card","key":["str"],"kind":"sum","of":"amount","pane_ns":2880000000000,"scale":100,"stream":"payment",'
        b'"where":[["amount",">","100.0"],["channel","==","\\"web\\""]]}'
    )
    digest = accumulator_key(window, key_types=("str",), of_type="float", tz="UTC")
    assert digest == hashlib.sha256(text).digest()
    assert digest.hex()[:16] == "c8c2df1fc5dfe24e"


# ---- layouts ---------------------------------------------------------------------------------------------------------


def test_a_request_reads_all_windows_and_adds_to_its_own_stream():
    """Slots are fields, then stored columns, then windows; each entity has one key and its windows in order."""
    made = full()
    names = slot_names(made.body)
    card, pair = made.window_layout()
    assert (card.entity, card.key_kind, card.keys) == ("card", "str", (0,))
    assert (pair.entity, pair.key_kind, pair.keys) == ("pair", ("str", "int"), (0, 1))
    assert [names[r.slot] for r in card.reads] == list(card.names)
    assert sorted((*card.names, *pair.names)) == list(made.windows)
    assert slot_types(made.body)["biggest"] == "float"
    by_name = dict(zip(card.names, card.reads, strict=True))
    late = by_name["card_mean_loss_28d_label"]
    assert (late.what, late.n_panes, late.delay_ns, late.include, late.scale) == (
        "mean",
        32,
        7 * DAY_NS,
        False,
        100,
    )
    assert by_name["card_count_1h_payment"].include
    far = by_name["card_lag_n_7d_payment"]
    assert (far.what, far.n_panes, far.lag, far.include) == ("lag", 1, 7, False)
    assert all(r.accumulator < len(card.accumulators) for r in card.reads)
    assert card.stream == "payment"
    fed = {a.accumulator for a in card.adds}
    assert late.accumulator not in fed  # a payment is no label
    assert {r.accumulator for name, r in by_name.items() if name != "card_mean_loss_28d_label"} == fed
    counted = next(a for a in card.adds if a.accumulator == by_name["card_count_1h_payment"].accumulator)
    assert counted.where == (
        (names.index("amount"), COMPARISONS.index(">"), 100.0),
        (names.index("channel"), 4, "web"),
    )
    assert (counted.of, counted.scale) == (-1, 1)


def test_an_event_of_another_stream_adds_and_reads_nothing():
    """Its slots are those of the stream's own program, and its state the one that requests read."""
    made = full()
    (card,) = made.window_layout("label")
    assert (card.reads, card.names, card.stream) == ((), (), "label")
    (add,) = card.adds
    assert (add.of, add.scale, add.where) == (2, 100, ())
    states = {s.digest for layout in made.window_layout() for s in layout.accumulators}
    assert card.accumulators[0].digest in states
    own = made.window_layout("payment")
    assert [layout.adds for layout in own] == [
        tuple(a._replace(accumulator=i) for i, a in enumerate(layout.adds)) for layout in made.window_layout()
    ]
    assert all(layout.reads == () for layout in own)


def test_a_spec_without_a_request_stream_adds_nothing_when_it_scores():
    """Requests only read; `include` has no event to include."""
    made = spec(count(on="label"), streams={"label": LABEL})
    (card,) = made.window_layout()
    assert (card.adds, card.stream, card.reads[0].include) == ((), None, False)
    assert request_stream(made.body) is None
    assert spec(c.numeric("amount")).window_layout() == ()


def test_panes_are_kept_for_the_longest_of_the_windows_that_share_them():
    """The state of several windows covers each of them."""
    made = spec(count(pane="1m"), count(over="2h", pane="1m", delay="1h", name="long"))
    (state,) = made.window_layout()[0].accumulators
    assert state.keep_panes == 120 + 60 + 2
    assert state.max_bytes == 16 + 16 * 182


# ---- events ----------------------------------------------------------------------------------------------------------


def test_an_event_is_read_from_dicts_structs_and_dataclasses():
    """One canonical value a field, whatever brought it; the stream's own fields, in order."""
    stream = full().stream("label")
    assert (stream.is_request, stream.event_slot) == (False, 3)
    assert stream.program.slot_names == ("card", "fraud", "loss", "when")
    moment = dt.datetime(2025, 3, 1, tzinfo=dt.UTC)

    @dataclasses.dataclass
    class Label:
        card: str
        fraud: bool
        loss: float
        when: dt.datetime

    values = {"card": "né", "fraud": True, "loss": 2, "when": moment}
    want = ("né", True, 2.0, int(moment.timestamp()) * 10**9)
    body = msgspec.json.encode(values)
    for event in (
        values,
        Label(**values),
        stream.request_type(**values),
        msgspec.json.decode(body, type=stream.request_type),
    ):
        assert stream.reader.values(event) == want
    with pytest.raises(FeatureTypeError, match=r"\$\.fraud"):
        stream.reader.values({**values, "fraud": 1})
    with pytest.raises(FeatureMissingError, match=r"\$\.loss"):
        stream.reader.values({k: v for k, v in values.items() if k != "loss"})
    with pytest.raises(FeatureTypeError, match="other"):
        stream.reader.values({**values, "other": 1})


def test_the_request_stream_has_the_fields_of_requests():
    """Their slots have the same numbers in both programs."""
    made = full()
    stream = compile_stream(made.body, "payment")
    assert stream.is_request
    assert stream.program.slot_names == made.program.slot_names[: len(made.fields)]
    assert stream.event_slot == made.program.event_slot
    with pytest.raises(SpecError, match=r"Unknown stream `'click'`.*label, payment"):
        made.stream("click")


def test_a_stream_may_be_declared_by_a_type():
    """A Struct or a dataclass, as for requests; extra fields are the spec's choice."""

    class Label(msgspec.Struct, rename="camel"):
        card: str
        is_fraud: bool | None = None

    made = spec(count(on="label"), streams={"label": Label}, extra="ignore")
    stream = made.stream("label")
    assert [f.wire for f in made.body.streams["label"].fields] == ["", "isFraud"]
    assert stream.reader.values({"card": "a", "more": 1}) == ("a", None)
    assert stream.event_slot == -1
    decoded = msgspec.json.decode(b'{"card":"a","isFraud":true,"more":1}', type=stream.request_type)
    assert stream.reader.values(decoded) == ("a", True)


def test_tables_of_events_become_canonical_columns():
    """Only the stream's fields are read; a missing column and a wrong one are named."""
    pa = pytest.importorskip("pyarrow", reason="`pyarrow` is not installed (pip install retailinfer[test])")
    made = full()
    times = pa.array([10**6, None], pa.timestamp("us", tz="UTC"))
    table = pa.table(
        {"card": ["a", "b"], "fraud": [True, False], "loss": [1, 2], "when": times, "more": [1, 2]}
    )
    found = made.read_events(table, "label")
    assert (found.n_rows, list(found.by_name)) == (2, ["card", "fraud", "loss", "when"])
    assert found.by_name["loss"].values.tolist() == [1.0, 2.0]
    assert found.by_name["when"].valid.tolist() == [1, 0]
    with pytest.raises(SpecError, match="lacks the column `loss`"):
        read_events(table.drop_columns("loss"), made.body, "label")
    with pytest.raises(FeatureTypeError, match=r"\$\.fraud"):
        read_events(table.set_column(1, "fraud", pa.array([1, 2])), made.body, "label")


# ---- tables ----------------------------------------------------------------------------------------------------------


def history() -> Any:
    """Six payments with what their windows held."""
    pa = pytest.importorskip("pyarrow", reason="`pyarrow` is not installed (pip install retailinfer[test])")
    return pa.table(
        {
            "card": list("aabbcc"),
            "amount": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            "card_count_1h": [0.0, 1.0, 0.0, 1.0, None, 3.0],
            "mean_amount": [None, 1.0, None, 3.0, 2.0, 4.0],
        }
    )


def small(*columns: Any, **more: Any) -> FeatureSpec:
    """A spec over the fields of `history`."""
    options: dict[str, Any] = {
        "request": {"card": str, "amount": float},
        "entities": {"card": "card"},
        "streams": {"payment": None},
        "columns": columns,
    }
    return FeatureSpec(**options | more)


MEAN = c.window(
    "card", "mean", on="payment", of="amount", scale=100, over="24h", name="mean_amount", null=-1.0
)


def test_tables_bring_windows_by_name():
    """`fit` learns from their values and `transform` reads them; null has the window's outcome."""
    made = small(
        count(transform="log1p", center="mean", clip="train", null=0.0),
        MEAN,
        c.ratio("amount", "mean_amount", name="times", null=0.5),
    ).fit(history())
    assert made.is_fitted
    assert made.body.fitted["card_count_1h"].seen_high == 3.0
    matrix = np.asarray(made.transform(history()))
    want = np.log1p(np.array([0.0, 1, 0, 1, 0, 3]))
    centre = np.log1p(np.array([0.0, 1, 0, 1, 3])).mean()
    np.testing.assert_allclose(matrix[:, 0], want - centre, rtol=1e-6, atol=1e-7)
    assert matrix[:, 1].tolist() == [-1.0, 1.0, -1.0, 3.0, 2.0, 4.0]
    assert matrix[:, 2].tolist() == [0.5, 2.0, 0.5, np.float32(4 / 3), 2.5, 1.5]
    assert made.baseline["columns"]["card_count_1h"]["nulls"] == 1
    again = FeatureSpec.from_json(made.to_json())
    np.testing.assert_array_equal(np.asarray(again.transform(history())), matrix)


def test_a_table_without_a_window_is_told_how_to_get_it():
    """Nothing is computed in secret: replay does it."""
    made = small(MEAN, count())
    with pytest.raises(SpecError, match=r"lacks the window `card_count_1h`; ri\.replay"):
        made.transform(history().drop_columns("card_count_1h"))


def test_a_spec_of_arrays_has_no_windows():
    """Nothing to read, nothing to add."""
    made = FeatureSpec.from_inputs([("x", 1, (None, 3))])
    assert made.windows == {}
    assert made.window_layout() == ()
    assert window_layout(Body()) == ()


def test_definitions_can_be_read():
    """One line each, in the words of the declaration."""
    made = full()
    found = [describe_window(w, made.body.tz) for w in made.windows.values()]
    assert found == [
        "max of amount on payment, over 7d",
        'count on payment where amount > 100.0 and channel == "web", over 1h',
        "sum of n on payment, 1 x 1d ago (Europe/London)",
        "sum of n on payment, 7 x 1d ago (Europe/London)",
        "mean of loss on label, over 28d up to 7d ago, without this event",
        "sum of amount on payment, over 1d",
        "distinct of shop on payment, over 30d",
    ]


def test_streams_are_public():
    """`ri.Stream` is what a user writes."""
    assert ri.Stream is Stream
