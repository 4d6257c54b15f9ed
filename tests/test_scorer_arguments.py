"""Arguments of the front doors that cannot mean anything, and what loading refuses: typed errors, nothing half loaded."""

from __future__ import annotations

import asyncio
import datetime as dt
import inspect
from decimal import Decimal

import msgspec
import numpy as np
import pytest
import releases
from releases import CONTEXT, payment

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.errors import (
    BundleError,
    CallerError,
    ConfigError,
    FeatureError,
    FeatureRangeError,
    FeatureTypeError,
    ManifestError,
    SchemaMismatchError,
)


@pytest.fixture(scope="module")
def scorer():
    """A scorer of payments."""
    return releases.payment_scorer()


@pytest.fixture(scope="module")
def ranker():
    """A ranker of items."""
    return releases.item_ranker()


BODY = msgspec.json.encode(payment())
PACKED = msgspec.msgpack.encode(payment())
RANKING = msgspec.json.encode({"context": CONTEXT, "candidates": ["sku-001"]})


def calls(scorer, ranker, **keywords):
    """Every call that takes these keywords."""
    yield lambda: scorer.score(payment(), **keywords)
    yield lambda: scorer.score_json(BODY, **keywords)
    yield lambda: scorer.score_msgpack(PACKED, **keywords)
    yield lambda: ranker.rank(CONTEXT, ["sku-001"], **keywords)
    yield lambda: ranker.rank_json(RANKING, **keywords)
    yield lambda: asyncio.run(scorer.ascore(payment(), **keywords))
    yield lambda: asyncio.run(ranker.arank(CONTEXT, ["sku-001"], **keywords))


@pytest.mark.parametrize(
    "at",
    [
        "now",
        "2026-01-01T00:00:00Z",
        True,
        b"1",
        [],
        np.datetime64("2026-01-01"),
        Decimal(5),
        float("nan"),
        float("inf"),
        -float("inf"),
        1e300,
        1772366400000,
        pytest.param(10**5000, id="5000 digits"),
        -5e9,
        dt.datetime(2026, 1, 1),  # noqa: DTZ001 - naive on purpose
        dt.datetime.max.replace(tzinfo=dt.UTC),
        dt.datetime.min.replace(tzinfo=dt.UTC),
        dt.datetime(2116, 6, 1, tzinfo=dt.UTC),
        dt.date(2026, 1, 1),
    ],
)
def test_a_moment_that_is_none_is_a_typed_error(scorer, ranker, at):
    """`at=` takes aware datetimes and seconds since 1970 that nanoseconds can count."""
    for call in [*calls(scorer, ranker, at=at), lambda: scorer.score_batch([payment()], at=at)]:
        with pytest.raises(FeatureError, match=r"\$\.at"):
            call()


class NoOffset(dt.tzinfo):
    """A zone that does not know."""

    def utcoffset(self, when):
        return None


def test_a_zone_without_an_offset_is_as_good_as_none(scorer, ranker):
    """Such a datetime is naive, whatever its tzinfo says."""
    for call in calls(scorer, ranker, at=dt.datetime(2026, 1, 1, tzinfo=NoOffset())):
        with pytest.raises(FeatureTypeError):
            call()


@pytest.mark.parametrize("request_id", [5, 5.0, b"x", ["x"], {"x": 1}, object(), True])
def test_a_request_id_that_is_no_text_is_a_typed_error(scorer, ranker, request_id):
    """It would come back as something else, or not at all."""
    for call in calls(scorer, ranker, request_id=request_id):
        with pytest.raises(FeatureTypeError, match=r"\$\.request_id"):
            call()


def test_a_request_id_with_a_lone_surrogate_is_a_typed_error(scorer, ranker):
    """No encoding of the answer could hold it."""
    for call in calls(scorer, ranker, request_id="a\ud800"):
        with pytest.raises(FeatureRangeError, match=r"\$\.request_id"):
            call()


@pytest.mark.parametrize("request_id", ["", "a", "é\0" * 10, "x" * 100_000, "</script>", np.str_("n")])
def test_a_request_id_comes_back_as_it_was(scorer, ranker, request_id):
    """Every text is an id."""
    assert scorer.score(payment(), request_id=request_id).id == request_id
    assert msgspec.json.decode(scorer.score_json(BODY, request_id=request_id))["id"] == request_id
    assert msgspec.msgpack.decode(scorer.score_msgpack(PACKED, request_id=request_id))["id"] == request_id
    assert msgspec.json.decode(ranker.rank_json(RANKING, request_id=request_id))["id"] == request_id
    body = msgspec.json.encode({"context": CONTEXT, "candidates": ["sku-001"], "request_id": str(request_id)})
    assert msgspec.json.decode(ranker.rank_json(body))["id"] == request_id


@pytest.mark.parametrize("requests", [None, 5, 1.5, object(), "abc", b"abc", True, np.array(5)])
def test_a_batch_that_is_no_list_is_a_typed_error(scorer, requests):
    """A text is iterable, but no batch."""
    with pytest.raises(CallerError):
        scorer.score_batch(requests)


@pytest.mark.parametrize("request_", [None, 5, "x", b"x", [], object(), [payment()], {1: 2}, {None: None}])
def test_a_request_that_is_none_is_a_typed_error(scorer, ranker, request_):
    """Neither a dict, nor a Struct, nor a dataclass."""
    for call in (
        lambda: scorer.score(request_),
        lambda: scorer.score_batch([request_]),
        lambda: ranker.rank(request_, ["sku-001"]),
    ):
        with pytest.raises(FeatureError):
            call()
    (error,) = scorer.score_batch([request_], errors="row")
    assert isinstance(error, FeatureError)
    assert "$[0]" in str(error)


def test_a_batch_of_nothing_is_nothing(scorer):
    """Also of an empty iterator."""
    assert scorer.score_batch([]) == []
    assert scorer.score_batch(iter(())) == []


@pytest.mark.parametrize("errors", ["ignore", None, True, 1, b"row", ["row"]])
def test_errors_has_two_values(scorer, errors):
    """Anything else is refused, not taken for one of them."""
    with pytest.raises(ConfigError):
        scorer.score_batch([payment()], errors=errors)


@pytest.mark.parametrize(
    "door",
    [
        "score",
        "score_json",
        "score_msgpack",
        "score_batch",
        "score_table",
        "ascore",
        "rank",
        "rank_json",
        "arank",
    ],
)
def test_unknown_keywords_are_refused(scorer, ranker, door):
    """A keyword of a later version is not silently ignored by this one."""
    owner = ranker if "rank" in door else scorer
    arguments = {"rank": (CONTEXT, []), "arank": (CONTEXT, [])}.get(door, (payment(),))
    with pytest.raises(TypeError):
        inspect.signature(getattr(owner, door)).bind(*arguments, variant="b")


def test_foreign_errors_of_the_callers_own_iterator_stay_what_they_are(scorer, ranker):
    """What the caller's code raises is the caller's; the next call is answered."""

    def broken():
        yield payment()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        scorer.score_batch(broken())
    with pytest.raises(ZeroDivisionError):
        ranker.rank(CONTEXT, (str(1 // 0) for _ in range(3)))
    assert scorer.score(payment()).score > 0


# ---- closed doors --------------------------------------------------------------------------------------------------------


def test_a_closed_door_refuses_everything_with_the_same_hint():
    """Not one call slips through, closing twice is fine, and what it says of itself can still be read."""
    scorer = releases.scorer_of(releases.payment_files())
    ranker = releases.item_ranker()
    with scorer, ranker:
        assert scorer.score(payment()).score > 0
    scorer.close()
    ranker.close()
    pa = pytest.importorskip("pyarrow")
    more = [
        lambda: scorer.score_batch([payment()]),
        lambda: scorer.score_table(pa.table({"amount": [1.0]})),
        lambda: scorer.score_arrays({}),
        lambda: ranker.rank(CONTEXT, ["sku-001"], available="item.stock > 0"),
        lambda: ranker.rank_json(RANKING, available="item.stock > 0"),
    ]
    for call in [*calls(scorer, ranker), *more]:
        with pytest.raises(ConfigError, match="closed"):
            call()
    assert scorer.manifest.name == "payments"
    assert scorer.spec.fields
    assert "payments" in repr(scorer)


# ---- loading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", [None, "", "signed", "UNSIGNED", 5, True])
def test_trust_must_be_said(trust, monkeypatch):
    """There is no default that trusts."""
    monkeypatch.delenv("RETAILINFER_TRUST", raising=False)
    with pytest.raises(ConfigError):
        ri.Scorer.load(releases.payment_files(), trust=trust)


@pytest.mark.parametrize(
    "release",
    [
        None,
        5,
        b"",
        [],
        {},
        {"manifest.json": "text"},
        {"manifest.json": None},
        {5: b""},
        "",
        "no/such/place",
        "a\0b",
    ],
)
def test_what_is_no_release_is_a_bundle_error(release):
    """Not a directory, not files."""
    with pytest.raises((BundleError, ConfigError)):
        ri.Scorer.load(release, trust="unsigned")


@pytest.mark.parametrize(
    "settings",
    [
        {"backend": "cuda"},
        {"max_bytes": 0},
        {"max_depth": 0},
        {"max_depth": 64},
        {"max_bytes": "1"},
        {"max_depth": 1.5},
        {"hold_gil_below_us": "x"},
    ],
)
def test_settings_that_mean_nothing_are_refused_at_load(settings):
    """Not at the first request."""
    with pytest.raises((ConfigError, TypeError)):
        releases.scorer_of(releases.payment_files(), **settings)


def test_a_ranker_of_a_release_that_ranks_nothing_is_refused():
    """Its spec names no candidate; or it takes arrays only."""
    with pytest.raises(ConfigError, match="candidate"):
        releases.ranker_of(releases.payment_files())
    with pytest.raises(ConfigError, match="arrays"):
        releases.ranker_of(releases.packed("arrays", releases.weighted(1.0, 1.0)))


def test_a_missing_store_or_table_is_refused_at_load():
    """With the name of the table and what to do."""
    with pytest.raises(ConfigError, match="`item`"):
        releases.ranker_of(releases.item_files())
    with pytest.raises(ConfigError, match="`item`"):
        releases.ranker_of(releases.item_files(), store=ri.Store(tables={"other": releases.items()}))
    for store in ({"item": releases.items()}, releases.items(), "store", 5):
        with pytest.raises(ConfigError):
            releases.ranker_of(releases.item_files(), store=store)


def test_a_table_that_does_not_fit_is_refused_at_load():
    """Another kind of key, a column missing, a column of another type."""
    rows = {f"sku-{i}": {"weight": 1.0, "stock": 1, "age": 1, "label": "x"} for i in range(3)}
    for table in (
        ri.Snapshot.from_rows(dict(enumerate(rows.values()))),
        ri.Snapshot.from_rows({(key, 1): row for key, row in rows.items()}),
        ri.Snapshot.from_rows(
            {(key,): row for key, row in rows.items()}
        ),  # found would be nothing: another form
        ri.Snapshot.from_rows({key: {"stock": 1} for key in rows}),
        ri.Snapshot.from_rows({key: row | {"weight": "heavy"} for key, row in rows.items()}),
        ri.Snapshot.from_rows({key: row | {"label": 5} for key, row in rows.items()}),
    ):
        with pytest.raises(SchemaMismatchError):
            releases.ranker_of(releases.item_files(), store=ri.Store(tables={"item": table}))


def test_bytes_that_cannot_be_read_are_a_typed_error():
    """A memoryview may have been released; a subclass may fail."""
    scorer = releases.scorer_of(
        releases.packed(
            "bytes",
            releases.weighted(1.0),
            ri.FeatureSpec(request={"b": bytes}, columns=[c.hashed("b", buckets=8)]),
        )
    )
    released = memoryview(b"abc")
    released.release()

    class Broken(bytearray):
        def __bytes__(self):
            raise RuntimeError("no")

    for value in (released, Broken(b"abc")):
        for request in ({"b": value}, scorer.request_type(b=value)):
            with pytest.raises(FeatureTypeError, match=r"\$\.b"):
                scorer.score(request)


def test_every_column_that_is_stale_and_missing_is_named():
    """A ratio over a stale 0 is both, and so may be all of them."""
    rows = {"a": {"x": 5.0, "y": 0.0, "t": 1000.0}}
    spec = ri.FeatureSpec(
        request={"card": str},
        entities={"card": ri.Entity(key=("card",), columns={"x": "float", "y": "float"})},
        columns=[c.ratio("card.x", "card.y", name=f"r{i}", null=0.0, max_age="1s") for i in range(4)],
    )
    store = ri.Store(tables={"card": ri.Snapshot.from_rows(rows, updated_at="t")})
    scorer = releases.scorer_of(
        releases.packed("ratios", releases.weighted(1.0, 1.0, 1.0, 1.0), spec), store=store
    )
    names = tuple(f"r{i}" for i in range(4))
    decision = scorer.score({"card": "a"})
    assert (decision.stale, decision.missing) == (names, names)


def test_an_empty_table_serves():
    """Every item is unknown then."""
    empty = ri.Snapshot.from_rows({}, kinds={"weight": "f64", "label": "str"})
    ranker = releases.ranker_of(releases.item_files(), store=ri.Store(tables={"item": empty}))
    assert ranker.rank(CONTEXT, ["b", "a"]).items == ["a", "b"]


def test_features_of_another_release_are_refused():
    """The manifest names the fingerprint of its spec."""
    one = releases.packed(
        "one", releases.weighted(1.0), ri.FeatureSpec(request={"a": float}, columns=[c.numeric("a")])
    )
    two = releases.packed(
        "two", releases.weighted(1.0), ri.FeatureSpec(request={"b": float}, columns=[c.numeric("b")])
    )
    with pytest.raises(BundleError):
        releases.scorer_of(one | {"features.json": two["features.json"]})
    with pytest.raises((ManifestError, BundleError)):
        releases.scorer_of(one | {"manifest.json": two["manifest.json"]})
