"""What may be asked of a ranker: candidates, exclusions, k and `available`, of every kind and of no kind."""

from __future__ import annotations

import asyncio
import itertools
import json
import random

import msgspec
import numpy as np
import pytest
import releases
from hypothesis import given
from hypothesis import strategies as st
from releases import CONTEXT, expected_order, item_row

import retailinfer as ri
from retailinfer.errors import CallerError, FeatureError, FeatureRangeError, FeatureTypeError, LimitError

ALL = [f"sku-{i:03d}" for i in range(60)]


@pytest.fixture(scope="module")
def ranker():
    """60 items, few scores, so many ties."""
    return releases.item_ranker()


@pytest.fixture(scope="module")
def numbers():
    """The same with integer ids."""
    return releases.item_ranker(int)


@pytest.fixture(scope="module")
def no_table():
    """Candidates that no table knows: score = boost alone."""
    from retailinfer import columns as c

    spec = ri.FeatureSpec(
        request={"user": str, "boost": float, "sku": str},
        entities={"item": "sku"},
        candidate="item",
        columns=[c.numeric("boost"), c.hashed("sku", buckets=8)],
    )
    return releases.ranker_of(releases.packed("bare", releases.weighted(1.0, 1.0), spec))


def by_json(ranker, candidates, **more):
    """The same request as bytes."""
    body = {"context": CONTEXT, "candidates": candidates} | more
    return msgspec.json.decode(ranker.rank_json(msgspec.json.encode(body)))


# ---- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 7, 20, 59, 60, 61])
def test_ties_are_broken_by_id_in_whatever_order_candidates_come(ranker, seed, k):
    """The same k, the same order, however many there are and however they are sent."""
    ids = random.Random(seed).sample(ALL, len(ALL))
    want = expected_order(ids)[:k]
    ranking = ranker.rank(CONTEXT, ids, k=k)
    assert ranking.items == want
    assert ranking.scores == [1.0 + item_row(int(sku[4:]))["weight"] for sku in want]
    answer = by_json(ranker, ids, k=k)
    assert (answer["items"], answer["scores"]) == (ranking.items, ranking.scores)
    assert ranker.rank(CONTEXT, tuple(ids), k).items == ranker.rank(CONTEXT, iter(ids), k).items == want
    assert (
        ranker.rank(CONTEXT, set(ids), k).items == ranker.rank(CONTEXT, dict.fromkeys(ids), k).items == want
    )


def test_integer_ids_are_ordered_as_numbers():
    """-2 before -1 before 3 before 20: not as texts, and with negative and extreme ids."""
    ids = [3, 20, -1, -2, 2**63 - 1, -(2**63), 0, 1]
    table = ri.Snapshot.from_rows(
        {i: {"weight": 0.0, "stock": 1, "age": 1, "label": "x"} for i in ids}, kinds={"weight": "f64"}
    )
    ranker = releases.item_ranker(int, store=ri.Store(tables={"item": table}))
    assert ranker.rank(CONTEXT, ids).items == sorted(ids)
    assert by_json(ranker, ids)["items"] == sorted(ids)


def test_text_ids_are_ordered_by_code_point(ranker):
    """Bytes of UTF-8: the order of code points, a prefix first; unknown ids tie with each other."""
    ids = ["b", "a", "", "aa", "a\0", "ä", "日", "\U0001f6d2", "A", "\uffff"]
    assert ranker.rank(CONTEXT, ids).items == sorted(ids)
    assert by_json(ranker, ids)["items"] == sorted(ids)


@pytest.mark.parametrize("n", [511, 512, 513, 1024, 1025, 5000])
def test_more_candidates_than_a_tile(n):
    """Tiles of 512 do not show: order, ties, bits."""
    ranker = releases.item_ranker(n=n)
    ids = random.Random(n).sample([f"sku-{i:03d}" for i in range(n)], n)
    want = expected_order(ids)
    for k in (1, 20, n):
        assert ranker.rank(CONTEXT, ids, k=k).items == want[:k]
        assert by_json(ranker, ids, k=k)["items"] == want[:k]


def test_a_score_does_not_depend_on_the_other_candidates():
    """Bit by bit: alone, in any company, and in any tile."""
    files = releases.packed("deep", releases.deep_network(3), releases.item_spec())
    ranker = releases.ranker_of(files, store=ri.Store(tables={"item": releases.items(1100)}))
    ids = [f"sku-{i:03d}" for i in range(1100)]
    whole = ranker.rank(CONTEXT, ids, k=1100)
    alone = {sku: ranker.rank(CONTEXT, [sku]).scores[0] for sku in ids[::37]}
    together = dict(zip(whole.items, whole.scores, strict=True))
    assert {sku: together[sku] for sku in alone} == alone


# ---- duplicates, exclusions, nothing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["rank", "json"])
def test_a_candidate_that_comes_twice_counts_once(ranker, numbers, door):
    """Known and unknown ones; of it nothing is said in `suppressed`."""
    for one, ids, want in (
        (ranker, ["sku-006", "nope", "sku-006", "nope", "sku-000"], ["sku-006", "nope", "sku-000"]),
        (numbers, [6, 999, 6, 999, 0], [6, 0, 999]),
    ):
        ranking = one.rank(CONTEXT, ids) if door == "rank" else None
        items = ranking.items if ranking else by_json(one, ids)["items"]
        assert items == sorted(
            set(want), key=lambda i: (-(item_row(6)["weight"] if i in ("sku-006", 6) else 0), i)
        )
        assert (ranking.suppressed if ranking else by_json(one, ids)["suppressed"]) == {}


def test_excluded_candidates_are_left_out_and_named(ranker, no_table):
    """Known and unknown ones, sent twice, excluded twice; an exclusion that is no candidate says nothing."""
    ids = ["sku-001", "sku-002", "new", "sku-003", "sku-001", "new", "other"]
    ranking = ranker.rank(CONTEXT, ids, exclude=["sku-001", "new", "sku-001", "elsewhere", "sku-059"])
    assert sorted(ranking.items) == ["other", "sku-002", "sku-003"]
    assert ranking.suppressed == {"sku-001": "excluded", "new": "excluded"}
    answer = by_json(ranker, ids, exclude=["sku-001", "new", "elsewhere"])
    assert (sorted(answer["items"]), answer["suppressed"]) == (sorted(ranking.items), ranking.suppressed)
    bare = no_table.rank(CONTEXT, ids, exclude=("new", "sku-003"))
    assert sorted(bare.items) == ["other", "sku-001", "sku-002"]
    assert bare.suppressed == {"new": "excluded", "sku-003": "excluded"}


def test_excluding_everything_leaves_nothing(ranker):
    """An empty ranking, not an error."""
    ranking = ranker.rank(CONTEXT, ALL, exclude=ALL)
    assert (ranking.items, ranking.scores) == ([], [])
    assert ranking.suppressed == dict.fromkeys(ALL, "excluded")


def test_no_candidates_give_an_empty_ranking(ranker, numbers, no_table):
    """Although the context is still checked."""
    for one in (ranker, numbers, no_table):
        assert one.rank(CONTEXT, []).items == []
        assert by_json(one, [])["items"] == []
        with pytest.raises(FeatureError):
            one.rank({}, [])


@pytest.mark.parametrize("exclude", [5, 1.5, "sku-001", b"sku-001", True, object()])
def test_exclusions_that_are_no_list_are_a_typed_error(ranker, no_table, exclude):
    """A text is no list of ids, although it can be iterated."""
    for one in (ranker, no_table):
        with pytest.raises(FeatureTypeError, match="exclude"):
            one.rank(CONTEXT, ["sku-001"], exclude=exclude)


@pytest.mark.parametrize("bad", [5, None, True, b"sku-001", ["sku-001"], ("sku-001",), 1.5, {}, object()])
def test_ids_of_another_kind_are_a_typed_error_that_names_their_place(ranker, no_table, bad):
    """Among candidates and among exclusions, with a table and without."""
    for one in (ranker, no_table):
        with pytest.raises(FeatureTypeError, match=r"\$\.candidates\[1\]"):
            one.rank(CONTEXT, ["sku-001", bad])
        with pytest.raises(FeatureTypeError, match=r"\$\.exclude\[1\]"):
            one.rank(CONTEXT, ["sku-001"], exclude=["sku-001", bad])


@pytest.mark.parametrize("bad", ["1", None, True, 1.0, b"1", (1,), object()])
def test_integer_ids_of_another_kind_are_a_typed_error(numbers, bad):
    """1, True, 1.0 and "1" are four different things."""
    with pytest.raises(FeatureTypeError, match=r"\$\.candidates\[1\]"):
        numbers.rank(CONTEXT, [1, bad])
    with pytest.raises(FeatureTypeError, match=r"\$\.exclude\[0\]"):
        numbers.rank(CONTEXT, [1], exclude=[bad])


def test_integer_ids_beyond_64_bits_are_a_typed_error(numbers):
    """Neither candidates nor exclusions."""
    for bad in (2**63, -(2**63) - 1, 10**5000):
        with pytest.raises(FeatureRangeError):
            numbers.rank(CONTEXT, [1, bad])
        with pytest.raises(FeatureRangeError):
            numbers.rank(CONTEXT, [1], exclude=[bad])


def test_ids_of_numpy_and_subclasses_are_taken_for_what_they_are(ranker, numbers, no_table):
    """Answers hold plain texts and integers, which every encoder takes."""

    class Sku(str):
        __slots__ = ()

    ranking = ranker.rank(CONTEXT, np.array(["sku-006", "nope", "sku-003"]), exclude=np.array(["sku-003"]))
    assert ranking.items == ["sku-006", "nope"]
    assert no_table.rank(CONTEXT, [Sku("x"), np.str_("y")], exclude=[Sku("y")]).items == ["x"]
    integers = numbers.rank(CONTEXT, np.array([6, 999, 3]), exclude=[np.int32(3)])
    assert integers.items == [6, 999]
    for answer in (ranking, integers, no_table.rank(CONTEXT, [Sku("x")], exclude=[Sku("y")])):
        assert {type(i) for i in [*answer.items, *answer.suppressed]} <= {str, int}
        assert msgspec.json.decode(msgspec.json.encode(answer))["items"] == answer.items


@pytest.mark.parametrize("candidates", [None, 5, "sku-001", b"sku-001", object(), True, np.array("sku-001")])
def test_candidates_that_are_no_list_are_a_typed_error(ranker, candidates):
    """One id goes into a list, too; coroutines say so as well."""
    with pytest.raises(FeatureTypeError, match="candidates"):
        ranker.rank(CONTEXT, candidates)
    with pytest.raises(FeatureTypeError, match="candidates"):
        asyncio.run(ranker.arank(CONTEXT, candidates))


def test_endless_candidates_end(ranker):
    """No iterator is read further than `max_rows` allows."""
    with pytest.raises(LimitError):
        ranker.rank(CONTEXT, (f"x{i}" for i in itertools.count()))
    with pytest.raises(LimitError):
        asyncio.run(ranker.arank(CONTEXT, (f"x{i}" for i in itertools.count())))


@pytest.mark.parametrize("method", ["item", "__int__", "__index__"])
@pytest.mark.parametrize("where", ["candidates", "exclude"])
@pytest.mark.parametrize("change", ["grow", "shrink"])
def test_integers_that_change_the_list_while_they_are_read_do_no_harm(numbers, method, where, change):
    """NumPy's integers can be subclassed, and their methods run in the middle of a ranking."""
    ids = list(range(60))

    def evil(self):
        ids.extend(range(1_000_000)) if change == "grow" else ids.clear()
        return 5

    number = type("Evil", (np.int64,), {method: evil})(5)
    if where == "candidates":
        ids[5] = number
    try:
        ranking = numbers.rank(CONTEXT, ids, k=60, exclude=[number] if where == "exclude" else None)
    except CallerError:
        return
    assert set(ranking.items) | set(ranking.suppressed) == set(range(60))


def test_very_many_exclusions_are_fine_and_endless_ones_refused(ranker):
    """A long history of purchases is no attack; an iterator without end is a mistake."""
    many = [f"bought-{i}" for i in range(100_000)]
    assert len(ranker.rank(CONTEXT, ALL, k=60, exclude=many).items) == 60
    with pytest.raises(LimitError):
        ranker.rank(CONTEXT, ALL, exclude=(f"x{i}" for i in range(10**9)))


# ---- k ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "k", [0, -1, -(2**63), 2**63, 2**100, -(2**100), pytest.param(10**5000, id="5000 digits")]
)
def test_k_out_of_range_is_a_typed_error(ranker, k):
    """At least one, at most 64 bits."""
    with pytest.raises(FeatureRangeError, match=r"\$\.k"):
        ranker.rank(CONTEXT, ALL, k=k)


@pytest.mark.parametrize("k", ["3", 3.0, None, True, b"3", [3], object(), np.float64(3), np.bool_(True)])
def test_k_of_another_type_is_a_typed_error(ranker, k):
    """Never converted in silence."""
    with pytest.raises(FeatureTypeError, match=r"\$\.k"):
        ranker.rank(CONTEXT, ALL, k=k)


@pytest.mark.parametrize("k", [60, 61, 10**6, 2**63 - 1, np.int64(1000), np.uint8(200)])
def test_more_than_there_are_is_all_of_them(ranker, k):
    """Without memory for what is not there."""
    assert ranker.rank(CONTEXT, ALL, k=k).items == expected_order(ALL)


# ---- available --------------------------------------------------------------------------------------------------------

RULES = {
    "item.stock > 0": lambda r: r["stock"] > 0,
    "item.stock >= 2 and item.weight < 3.5": lambda r: r["stock"] >= 2 and r["weight"] < 3.5,
    "item.age <= 10": lambda r: r["age"] is not None and r["age"] <= 10,
    "item.age != 3": lambda r: r["age"] is not None and r["age"] != 3,
    "item.weight == 2": lambda r: r["weight"] == 2.0,
    "item.weight>-1e3": lambda r: True,
    "  item.stock\t<\n+1.0E0  ": lambda r: r["stock"] < 1,
    "item.stock < 1e999": lambda r: True,
    "item.stock > 0 and item.stock > 1 and item.stock > 2": lambda r: r["stock"] > 2,
}


@pytest.mark.parametrize("rule", RULES)
def test_available_keeps_the_rows_that_hold(ranker, rule):
    """A null cell does not hold; who is left out is named, by rank and rank_json alike."""
    want = [sku for sku in expected_order(ALL) if RULES[rule](item_row(int(sku[4:])))]
    ranking = ranker.rank(CONTEXT, ALL, k=60, available=rule)
    assert ranking.items == want
    assert ranking.suppressed == {sku: "unavailable" for sku in ALL if sku not in want}
    body = json.dumps({"context": CONTEXT, "candidates": ALL, "k": 60}).encode()
    answer = msgspec.json.decode(ranker.rank_json(body, available=rule))
    assert (answer["items"], answer["suppressed"]) == (want, ranking.suppressed)


def test_an_unknown_item_is_not_available(ranker):
    """Nobody knows its stock."""
    ranking = ranker.rank(CONTEXT, ["sku-001", "new"], available="item.stock > 0", exclude=["gone"])
    assert (ranking.items, ranking.suppressed) == (["sku-001"], {"new": "unknown"})


def test_excluded_comes_before_unavailable(ranker):
    """One reason each."""
    ranking = ranker.rank(CONTEXT, ["sku-000", "sku-004"], available="item.stock > 0", exclude=["sku-000"])
    assert ranking.suppressed == {"sku-000": "excluded", "sku-004": "unavailable"}


@pytest.mark.parametrize(
    "rule",
    [
        "", " ", "item", "item.stock", "item.stock >", "> 0", "item.stock = 0", "item.stock => 0", "item.stock <> 0",
        "stock > 0", "other.stock > 0", "item.nope > 0", "item.label > 0", "item.label == 'l1'", "item.stock > item.age",
        "item.stock > 0 or item.age > 0", "not item.stock > 0", "(item.stock > 0)", "item.stock > 0 and",
        "item.stock > 0 and and item.age > 0", "item.stock > 0, item.age > 0", "0 < item.stock", "item.stock > 1.2.3",
        "item.stock > .", "item.stock > 1e", "item.stock > nan", "item.stock > inf", "item.stock > 0x10",
        "item.stock > 0; import os", "__import__('os').system('true')", "item.__class__ > 0", "item.stock > 0 -- drop",
        "item.stock > 0 # x", "item.stock > 1_000", "item.stock > ٣", "item.stock > 0\0", "item.stоck > 0",  # a Cyrillic o
        "item.stock > 0 and " * 200 + "item.stock > 0", "item." + "x" * 2000 + " > 0", "item.stock" + " " * 5000 + "> 0",
    ],
)  # fmt: skip
def test_a_rule_that_is_none_is_a_typed_error(ranker, rule):
    """Comparisons of numeric columns with numbers, joined by `and`; nothing is evaluated."""
    with pytest.raises(FeatureTypeError, match=r"\$\.available"):
        ranker.rank(CONTEXT, ALL, available=rule)


@pytest.mark.parametrize(
    "rule", [5, b"item.stock > 0", ["item.stock > 0"], {"item.stock": 1}, lambda r: True, True]
)
def test_a_rule_of_another_type_is_a_typed_error(ranker, rule):
    """Also one that cannot be hashed."""
    for call in (
        lambda: ranker.rank(CONTEXT, ALL, available=rule),
        lambda: ranker.rank_json(b"{}", available=rule),
    ):
        with pytest.raises(FeatureTypeError, match=r"\$\.available"):
            call()


def test_a_rule_without_a_table_is_a_typed_error(no_table):
    """There is nothing to compare."""
    with pytest.raises(FeatureTypeError, match=r"\$\.available"):
        no_table.rank(CONTEXT, ["a"], available="item.stock > 0")


def test_a_rule_takes_no_time_to_refuse(ranker):
    """No expression makes the parser work hard."""
    import time

    for rule in (
        "item.stock > " + "9" * 980,
        "a" * 999,
        "item.stock > 0 and " * 50,
        "." * 999,
        " " * 999,
        "and" * 300,
    ):
        start = time.perf_counter()
        with (
            pytest.raises(CallerError)
            if not rule.startswith("item.stock > 9")
            else __import__("contextlib").nullcontext()
        ):
            ranker.rank(CONTEXT, ALL, available=rule)
        assert time.perf_counter() - start < 0.05


def test_thousands_of_different_rules_do_not_pile_up(ranker):
    """Compiled ones are kept, a bounded number of them."""
    for i in range(1000):
        ranker.rank(CONTEXT, ["sku-001"], available=f"item.stock > {i}")
    assert len(ranker._live.rules._kept) <= 256


# ---- unknown and refused items ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unknown", "kept", "why"), [("use", True, None), (50.0, True, None), ("refuse", False, "unknown")]
)
def test_an_unknown_item_gets_its_default_or_is_left_out(unknown, kept, why):
    """What `unknown=` of its columns says; it never costs the other candidates their ranking."""
    ranker = releases.item_ranker(unknown=unknown)
    ranking = ranker.rank(CONTEXT, ["sku-001", "new", "sku-002", "newer"])
    assert ("new" in ranking.items) == kept
    assert ranking.suppressed == ({} if kept else {"new": why, "newer": why})
    assert "item.weight" in ranking.missing
    if unknown == 50.0:
        assert ranking.items[:2] == ["new", "newer"]
    answer = by_json(ranker, ["sku-001", "new", "sku-002", "newer"])
    assert (answer["items"], answer["suppressed"]) == (ranking.items, ranking.suppressed)


def test_an_item_whose_column_refuses_is_left_out_and_named():
    """A null that says refuse takes one item out, wherever it stands, in encoded rows and in tiles."""
    from retailinfer import columns as c

    spec = ri.FeatureSpec(
        request={"user": str, "boost": float, "sku": str},
        entities={"item": "sku"},
        candidate="item",
        columns=[c.numeric("boost"), c.stored("item.weight", null="refuse", unknown=0.5)],
    )
    rows = {f"i{n:04d}": {"weight": None if n % 3 == 0 else float(n)} for n in range(1200)}
    store = ri.Store(tables={"item": ri.Snapshot.from_rows(rows, kinds={"weight": "f64"})})
    ranker = releases.ranker_of(releases.packed("refuse", releases.weighted(1.0, 1.0), spec), store=store)
    ids = [*rows, "new"]
    ranking = ranker.rank(CONTEXT, ids, k=2000)
    assert ranking.items == [*[i for i in reversed(rows) if rows[i]["weight"] is not None], "new"]
    assert ranking.suppressed == {i: "refused" for i in rows if rows[i]["weight"] is None}
    assert by_json(ranker, ids, k=2000)["suppressed"] == ranking.suppressed


def test_infinite_scores_of_a_candidate_are_a_score_error():
    """The ranking as a whole is not trusted then."""
    from retailinfer import columns as c
    from retailinfer.errors import ScoreError

    pa = pytest.importorskip("pyarrow")
    spec = ri.FeatureSpec(
        request={"boost": float, "sku": str},
        entities={"item": "sku"},
        candidate="item",
        columns=[c.numeric("boost"), c.stored("item.weight", null=1.0)],
    )
    golden = pa.table({"boost": [1.0, 2.0], "sku": ["a", "b"], "item.weight": [1.0, 2.0]})
    files = releases.packed("log", releases.weighted(0.0, 1.0, then=("Log",)), spec, golden=golden)
    rows = {"a": {"weight": 1.0}, "zero": {"weight": 0.0}, "below": {"weight": -1.0}}
    ranker = releases.ranker_of(files, store=ri.Store(tables={"item": ri.Snapshot.from_rows(rows)}))
    assert ranker.rank({"boost": 1.0}, ["a", "new"]).items == ["a", "new"]
    for bad in ("zero", "below"):
        with pytest.raises(ScoreError):
            ranker.rank({"boost": 1.0}, ["a", bad])
        with pytest.raises(ScoreError):
            ranker.rank_json(msgspec.json.encode({"context": {"boost": 1.0}, "candidates": ["a", bad]}))
    assert ranker.rank({"boost": 1.0}, ["a", "zero"], exclude=["zero"]).items == ["a"]


# ---- context ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "context",
    [
        {"user": "u"},
        {"boost": 1.0},
        CONTEXT | {"boost": None},
        CONTEXT | {"boost": "1"},
        CONTEXT | {"other": 1},
        CONTEXT | {"sku": "sku-001"},
    ],
)
def test_a_context_that_does_not_fit_is_a_typed_error(ranker, context):
    """The candidate's own key is no part of the context, neither in a dict nor in JSON."""
    with pytest.raises(FeatureError):
        ranker.rank(context, ["sku-001"])
    with pytest.raises(CallerError):
        ranker.rank_json(msgspec.json.encode({"context": context, "candidates": ["sku-001"]}))


def test_a_context_may_be_a_struct_or_a_dataclass(ranker):
    """As in `score`; the generated type is the fast way."""
    import dataclasses

    @dataclasses.dataclass
    class Context:
        user: str
        boost: float

    want = ranker.rank(CONTEXT, ALL).items
    generated = ranker.request_type.__annotations__["context"](**CONTEXT)
    own = msgspec.defstruct("Own", [("user", str), ("boost", float)])(**CONTEXT)
    for context in (generated, own, Context(**CONTEXT)):
        assert ranker.rank(context, ALL).items == want


# ---- anything at all --------------------------------------------------------------------------------------------------

IDS = st.one_of(st.sampled_from(ALL[:12]), st.text(max_size=3))


@given(
    candidates=st.lists(IDS, max_size=40),
    exclude=st.lists(IDS, max_size=10),
    k=st.integers(1, 50),
    rule=st.sampled_from([None, *RULES]),
    boost=st.floats(-1e6, 1e6),
)
def test_rankings_follow_the_definition(ranker, candidates, exclude, k, rule, boost):
    """Against a plain Python ranking, and rank_json against rank."""
    rows = {sku: item_row(int(sku[4:])) for sku in ALL}

    def reason(sku):
        if sku in exclude:
            return "excluded"
        if rule is None:
            return None
        if sku not in rows:
            return "unknown"
        return None if RULES[rule](rows[sku]) else "unavailable"

    unique = list(dict.fromkeys(candidates))
    scores = {
        sku: float(np.float32(np.float32(boost)) + np.float32(rows[sku]["weight"] if sku in rows else 0.0))
        for sku in unique
        if reason(sku) is None
    }
    order = sorted(scores, key=lambda sku: (-scores[sku], sku.encode()))[:k]
    context = CONTEXT | {"boost": boost}
    ranking = ranker.rank(context, candidates, k, available=rule, exclude=exclude)
    assert ranking.items == order
    assert ranking.scores == [scores[sku] for sku in order]
    assert ranking.suppressed == {sku: reason(sku) for sku in unique if reason(sku)}
    body = {"context": context, "candidates": candidates, "k": k, "exclude": exclude}
    answer = msgspec.json.decode(ranker.rank_json(msgspec.json.encode(body), available=rule))
    assert (answer["items"], answer["scores"], answer["suppressed"]) == (
        order,
        ranking.scores,
        ranking.suppressed,
    )
