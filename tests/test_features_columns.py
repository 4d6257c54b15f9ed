"""What each column kind gives, on values worked out by hand from the documentation of `retailinfer.columns`.

The twin and the native program could both misread a sentence; these examples are the sentences. Random specs are
test_reference_table.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from bare import BarePipeline
from strategies import Case

from retailinfer import columns as c
from retailinfer.columns import Column
from retailinfer.errors import FeatureMissingError, FeatureRangeError
from retailinfer.features.spec import Entity, FeatureSpec, Tensor, Timestamp, Vocabulary

NOON = 1_709_208_000  # Thursday 2024-02-29T12:00:00Z


def row(
    column: Column, request: dict[str, Any], values: dict[str, Any], dtype: str = "float64", **more: Any
) -> list[Any]:
    """Cells of one column for one request: types by field, values by field."""
    spec = FeatureSpec(request=request, tensors={"t": Tensor((column,), dtype)}, **more)
    pipe = BarePipeline(Case(spec.body, [], {}, 1, {}))
    pipe.engine.score(values)
    return list(pipe.last()["t"][0])


def number(column: Column, x: float | None, dtype: str = "float64") -> Any:
    """The cell of a column that reads the one field `x`."""
    return row(column, {"x": float | None}, {"x": x}, dtype)[0]


@pytest.mark.parametrize(
    ("column", "x", "cell"),
    [
        (c.numeric("x"), 2.5, 2.5),
        (c.numeric("x", transform="log1p"), math.e - 1, 1.0),
        (c.numeric("x", transform="signed_log1p"), 1 - math.e, -1.0),
        (c.numeric("x", transform="sqrt"), 9.0, 3.0),
        (c.numeric("x", center=1.0, scale=4.0), 3.0, 0.5),
        (c.numeric("x", clip=(0, 10)), 12.0, 10.0),
        (c.numeric("x", clip=(None, 10)), -1e9, -1e9),
        # clip the raw value, then transform, then centre and scale
        (c.numeric("x", clip=(0, 9), transform="sqrt", center=1.0, scale=2.0), 100.0, 1.0),
        # a default stands for the raw value
        (c.numeric("x", clip=(0, 9), transform="sqrt", center=1.0, scale=2.0, null=100), None, 1.0),
        (c.numeric("x", null=7), None, 7.0),
    ],
)
def test_a_number_is_clipped_transformed_centred_scaled_in_this_order(column, x, cell):
    """The order of work in a column, and what its default means."""
    assert number(column, x) == pytest.approx(cell, abs=1e-15)


@pytest.mark.parametrize(
    ("transform", "x"), [("log1p", -1.0), ("log1p", -2.0), ("sqrt", -1e-300), ("sqrt", -4.0)]
)
def test_a_value_outside_the_domain_is_an_error_and_not_nan(transform, x):
    """log1p of -1 and the root of a negative number are refused by name."""
    with pytest.raises(FeatureRangeError, match=transform) as caught:
        number(c.numeric("x", transform=transform), x)
    assert caught.value.path == "$.x"


def test_what_a_tensor_cannot_hold_is_refused_and_never_rounded_away():
    """Overflow of float32, fractions and large numbers in integer tensors, integers beyond 2**53 through floats."""
    assert number(c.numeric("x"), 3.4028235e38, "float32") == np.float32(3.4028235e38)
    for x, dtype in ((1e39, "float32"), (0.5, "int64"), (2.0**31, "int32"), (1e300, "int64")):
        with pytest.raises(FeatureRangeError, match=dtype):
            row(c.numeric("x"), {"x": float}, {"x": x}, dtype)
    whole = {"x": int}
    assert row(c.numeric("x"), whole, {"x": 2**63 - 1}, "int64") == [2**63 - 1]
    assert row(c.numeric("x"), whole, {"x": 2**53}) == [2.0**53]
    with pytest.raises(FeatureRangeError, match=r"2\*\*53"):
        row(c.numeric("x"), whole, {"x": 2**53 + 1})
    with pytest.raises(FeatureRangeError, match="int32"):
        row(c.numeric("x"), whole, {"x": 2**31}, "int32")


def test_denormals_and_half_steps_round_to_even_once():
    """The one rounding to float32 is to nearest, ties to even, down to the smallest numbers."""
    for x in (1.0 + 2.0**-24, 1.0 + 3 * 2.0**-24, 2.0**-149, 2.0**-150, 1.5 * 2.0**-149, -0.0):
        cell = number(c.numeric("x"), x, "float32")
        assert cell.tobytes() == np.float32(x).tobytes()


def test_two_numbers_are_combined_raw():
    """Ratio, difference and product of raw values; a ratio over zero is null."""
    two = {"a": float, "b": int}
    values = {"a": 7.0, "b": 2}
    assert row(c.ratio("a", "b"), two, values) == [3.5]
    assert row(c.difference("a", "b"), two, values) == [5.0]
    assert row(c.product("a", "b"), two, values) == [14.0]
    zero = {"a": 7.0, "b": 0}
    assert math.isnan(row(c.ratio("a", "b"), two, zero)[0])
    assert row(c.ratio("a", "b", null=-1.0), two, zero) == [-1.0]
    with pytest.raises(FeatureMissingError, match="refuse"):
        row(c.ratio("a", "b", null="refuse"), two, zero)


def test_elapsed_is_measured_up_to_the_event_time_or_another_moment():
    """Seconds, minutes, hours or days; negative when the first moment is later."""
    fields = {"a": Timestamp, "at": Timestamp}
    values = {"a": NOON - 5400, "at": NOON}
    assert row(c.elapsed("a"), fields, values, event_time="at") == [5400.0]
    assert row(c.elapsed("a", unit="h"), fields, values, event_time="at") == [1.5]
    assert row(c.elapsed("at", "a", unit="m"), fields, values) == [-90.0]
    assert row(c.elapsed("a", "at", unit="d", transform="signed_log1p"), fields, values) == [
        pytest.approx(math.log1p(0.0625))
    ]


@pytest.mark.parametrize(
    ("part", "cell"),
    [
        ("second", 0),
        ("minute", 30),
        ("hour", 17),
        ("minute_of_day", 17 * 60 + 30),
        ("day_of_week", 3),
        ("hour_of_week", 3 * 24 + 17),
        ("day_of_month", 29),
        ("day_of_year", 60),
        ("month", 2),
        ("quarter", 1),
        ("year", 2024),
        ("is_weekend", 0),
        ("hour_sin", math.sin(2 * math.pi * 17 / 24)),
        ("hour_cos", math.cos(2 * math.pi * 17 / 24)),
        ("month_sin", math.sin(2 * math.pi * 1 / 12)),  # of (value - smallest): February is 1
        ("day_of_month_cos", math.cos(2 * math.pi * 28 / 31)),
    ],
)
def test_parts_of_a_leap_day_in_kolkata(part, cell):
    """A part of a timestamp is read in the spec's zone; noon in London is half past five there."""
    got = row(c.time("at", part), {"at": Timestamp}, {"at": NOON}, tz="Asia/Kolkata")
    assert got == [pytest.approx(cell, abs=1e-15)]


def test_clocks_that_change_are_followed():
    """The hour before and after the change in Europe/London, spring and autumn."""
    for moment, hour in (
        ("2024-03-31T00:59:59+00:00", 0),
        ("2024-03-31T01:00:00+00:00", 2),
        ("2024-10-27T00:59:59+00:00", 1),
        ("2024-10-27T01:00:00+00:00", 1),
    ):
        seconds = int(np.datetime64(moment[:19], "s").astype(int))
        assert row(c.time("at", "hour"), {"at": Timestamp}, {"at": seconds}, tz="Europe/London") == [hour]


def test_booleans_and_equality():
    """1 or 0; numbers compare as numbers whatever their types, text as text."""
    assert row(c.boolean("x"), {"x": bool}, {"x": True}) == [1.0]
    for left, right, types, cell in (
        ("GB", "GB", (str, str), 1),
        ("GB", "gb", (str, str), 0),
        ("", "\0", (str, str), 0),
        (1, 1.0, (int, float), 1),
        (True, 1, (bool, int), 1),
        (2**53 - 1, 2.0**53, (int, float), 0),
        (2**62, 2**62 + 1, (int, int), 0),
        (0.0, -0.0, (float, float), 1),
    ):
        fields = dict(zip("ab", types, strict=True))
        assert row(c.equal("a", "b"), fields, {"a": left, "b": right}, "bool") == [bool(cell)]


VOCABULARY = {"channel": ("web", "shop", "app")}


@pytest.mark.parametrize(
    ("oov", "encoding", "web", "app", "other", "null"),
    [
        ("first", "index", [1], [3], [0], [0]),
        ("last", "index", [0], [2], [3], [3]),
        ("first", "onehot", [0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0]),
        ("last", "onehot", [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]),
        ("zeros", "onehot", [1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]),
        ("refuse", "index", [0], [2], None, None),
        ("refuse", "onehot", [1, 0, 0], [0, 0, 1], None, None),
    ],
)
def test_categories_have_codes_in_the_order_of_their_vocabulary(oov, encoding, web, app, other, null):
    """Codes and one-hot cells, with the unknown value first, last, nowhere or refused; null is coded like unknown."""
    vocabularies = {"v": Vocabulary(VOCABULARY["channel"], frozen=True, oov=oov)}
    column = c.categorical("x", encoding=encoding, vocabulary="v")
    for value, cells, error in (
        ("web", web, None),
        ("app", app, None),
        ("fax", other, FeatureRangeError),
        (None, null, FeatureMissingError),
    ):

        def run(value: Any = value) -> list[Any]:
            return row(column, {"x": str | None}, {"x": value}, "int64", vocabularies=vocabularies)

        if cells is None:
            with pytest.raises(error):
                run()
        else:
            assert run() == cells


def test_a_default_category_is_coded_like_a_value():
    """null="web" is the code of "web"; a default outside the vocabulary is the unknown value."""
    vocabularies = {"v": Vocabulary(("web", "shop"), frozen=True)}
    for null, code in (("web", 1), ("shop", 2), ("fax", 0)):
        column = c.categorical("x", vocabulary="v", null=null)
        assert row(column, {"x": str | None}, {"x": None}, "int64", vocabularies=vocabularies) == [code]


def test_hashes_are_xxh64_of_the_documented_bytes():
    """One value, a seed, an integer, a cross, a cross with a null part: the buckets of the documentation."""

    def h(data: bytes, seed: int = 0) -> int:
        return xxhash.xxh64_intdigest(data, seed)

    fields = {"s": str | None, "i": int, "t": Timestamp, "b": bytes}
    values = {"s": "né", "i": -5, "t": NOON, "b": b"\xff"}
    big = 2**31 - 1
    text, whole = "né".encode(), (-5).to_bytes(8, "little", signed=True)
    assert row(c.hashed("s", buckets=97), fields, values, "int64") == [h(text) % 97]
    assert row(c.hashed("s", buckets=big, seed=9), fields, values, "int64") == [h(text, 9) % big]
    assert row(c.hashed("i", buckets=big), fields, values, "int64") == [h(whole) % big]
    assert row(c.hashed("b", buckets=big), fields, values, "int64") == [h(b"\xff") % big]
    nanoseconds = (NOON * 10**9).to_bytes(8, "little")
    assert row(c.hashed("t", buckets=big), fields, values, "int64") == [h(nanoseconds) % big]

    def cross(first: int, second: int, seed: int) -> int:
        return h(first.to_bytes(8, "little") + second.to_bytes(8, "little"), seed) % big

    column = c.hashed("s", "i", buckets=big, seed=3)
    assert row(column, fields, values, "int64") == [cross(h(text, 3), h(whole, 3), 3)]
    assert row(column, fields, values | {"s": None}, "int64") == [cross(0, h(whole, 3), 3)]
    assert row(c.hashed("s", buckets=97), fields, values | {"s": None}, "int64") == [0]
    assert row(c.hashed("s", buckets=big, null="x"), fields, values | {"s": None}, "int64") == [h(b"x") % big]


def test_sequences_are_cut_and_padded_at_the_end():
    """Last or first items, padding behind them, the mask 1 where an item is; null and empty lists are all padding."""
    spec = FeatureSpec(
        request={"x": list[int] | None},
        vocabularies={"v": Vocabulary((7, 8, 9), frozen=True)},
        tensors={
            "n": Tensor((c.sequence("x", length=3, encoding="number", pad=-1),), "int64", mask="m"),
            "f": Tensor((c.sequence("x", length=2, encoding="number", keep="first", name="f"),), "float32"),
            "i": Tensor((c.sequence("x", length=3, vocabulary="v", pad=-1, name="i"),), "int32"),
        },
    )
    pipe = BarePipeline(Case(spec.body, [], {}, 1, {}))
    for x, n, m, f, i in (
        ([7, 8, 9, 5], [8, 9, 5], [1, 1, 1], [7, 8], [2, 3, 0]),
        ([7], [7, -1, -1], [1, 0, 0], [7, 0], [1, -1, -1]),
        ([], [-1, -1, -1], [0, 0, 0], [0, 0], [-1, -1, -1]),
        (None, [-1, -1, -1], [0, 0, 0], [0, 0], [-1, -1, -1]),
    ):
        pipe.engine.score({"x": x})
        got = {name: value[0].tolist() for name, value in pipe.last().items()}
        assert got == {"n": n, "m": [bool(v) for v in m], "f": f, "i": i}


# ---- stored values and the four outcomes -----------------------------------------------------------------------------

WRITTEN = 1_700_000_000


def stored(column: Column, key: str, *, age_s: int = 0, dtype: str = "float64") -> tuple[list[Any], Any]:
    """Cells and decision for a user of a small table: `full` has everything, `empty` has nulls, `ageless` no time."""
    spec = FeatureSpec(
        request={"u": str},
        entities={"user": Entity(("u",), {"n": "float", "v": "vector", "w": "vector", "zero": "vector"})},
        tensors={"t": Tensor((column,), dtype)},
    )
    vectors = {
        "v": np.array([1, 2, 3], np.float32),
        "w": np.array([4, 5, 6], np.float32),
        "zero": np.zeros(3, np.float32),
    }
    full = {"n": 2.5, **vectors}
    tables = {
        "user": {
            "full": (full, WRITTEN * 10**9),
            "ageless": (full, 0),
            "empty": ({"n": None, "v": None, "w": None, "zero": None}, WRITTEN * 10**9),
        }
    }
    sizes = {"user.v": 3, "user.w": 3, "user.zero": 3}
    pipe = BarePipeline(Case(spec.body, [], tables, 1, sizes))
    decision = pipe.engine.score({"u": key}, None, (WRITTEN + age_s) * 10**9)
    return list(pipe.last()["t"][0]), decision


def test_vectors_are_embedded_multiplied_and_compared():
    """The vector itself, the dot product and the cosine; a vector of length zero has no direction."""
    assert stored(c.embedding("user.v", size=3), "full")[0] == [1.0, 2.0, 3.0]
    assert stored(c.embedding("user.v", size=3, null=0.5), "empty")[0] == [0.5, 0.5, 0.5]
    assert stored(c.dot("user.v", "user.w", size=3), "full")[0] == [32.0]
    cosine = 32 / math.sqrt(14 * 77)
    assert stored(c.cosine("user.v", "user.w", size=3), "full")[0] == [pytest.approx(cosine, abs=1e-15)]
    cells, decision = stored(c.cosine("user.v", "user.zero", size=3, null=0.0, name="angle"), "full")
    assert cells == [0.0]
    assert decision.missing == ("angle",)


@pytest.mark.parametrize(
    ("outcomes", "key", "age_s", "cell", "missing", "stale", "action"),
    [
        ({}, "full", 0, 2.5, (), (), "pass"),
        ({}, "empty", 0, math.nan, ("n",), (), "pass"),
        ({}, "nobody", 0, math.nan, ("n",), (), "pass"),
        ({"null": 1}, "nobody", 0, 1.0, ("n",), (), "pass"),  # unknown not given: as null
        ({"null": 1, "unknown": 2}, "nobody", 0, 2.0, ("n",), (), "pass"),
        ({"null": 1, "unknown": 2}, "empty", 0, 1.0, ("n",), (), "pass"),
        ({"null": "review"}, "empty", 0, math.nan, ("n",), (), "review"),
        ({"unknown": "review", "null": 3}, "nobody", 0, math.nan, ("n",), (), "review"),
        ({"max_age": "1h"}, "full", 3600, 2.5, (), (), "pass"),
        ({"max_age": "1h"}, "full", 3601, 2.5, (), ("n",), "pass"),  # "use": the old value
        ({"max_age": "1h", "on_stale": 9}, "full", 3601, 9.0, (), ("n",), "pass"),
        ({"max_age": "1h", "on_stale": "review"}, "full", 3601, 2.5, (), ("n",), "review"),
        ({"max_age": "1h"}, "ageless", 0, 2.5, (), ("n",), "pass"),  # nobody knows how old
        ({"max_age": "1h", "on_stale": 9}, "full", -3600, 2.5, (), (), "pass"),  # from the future: age zero
        ({"max_age": "1h", "on_stale": 9, "null": 1}, "empty", 99999, 1.0, ("n",), (), "pass"),
    ],
)
def test_the_four_outcomes_stay_apart(outcomes, key, age_s, cell, missing, stale, action):
    """Unknown, null and stale values each give what the column says, and the answer tells which it was."""
    cells, decision = stored(c.stored("user.n", name="n", **outcomes), key, age_s=age_s)
    assert cells == [pytest.approx(cell, nan_ok=True)]
    assert (decision.missing, decision.stale, decision.action) == (missing, stale, action)


@pytest.mark.parametrize(
    ("outcomes", "key", "word"),
    [
        ({"null": "refuse"}, "empty", "null"),
        ({"unknown": "refuse"}, "nobody", "unknown"),
        ({"on_stale": "refuse", "max_age": "1h"}, "full", "stale"),
    ],
)
def test_refuse_says_what_was_missing(outcomes, key, word):
    """A refused value names the column, what it reads, and which of the outcomes it was."""
    with pytest.raises(FeatureMissingError, match=word) as caught:
        stored(c.stored("user.n", **outcomes), key, age_s=7200)
    assert caught.value.path == "$.user.n"
    assert "user.n" in str(caught.value)


def test_a_null_beside_a_stale_value_is_null():
    """A column of two inputs, one absent and one old, has no old value to use."""
    spec = FeatureSpec(
        request={"u": str, "x": float | None},
        entities={"user": Entity(("u",), {"n": "float"})},
        tensors={"t": Tensor((c.ratio("x", "user.n", max_age="1h", name="r", null=-1.0),), "float64")},
    )
    tables = {"user": {"a": ({"n": 2.0}, WRITTEN * 10**9)}}
    pipe = BarePipeline(Case(spec.body, [], tables, 1, {}))
    later = (WRITTEN + 7200) * 10**9
    decision = pipe.engine.score({"u": "a", "x": None}, None, later)
    assert (decision.missing, decision.stale) == (("r",), ())
    assert pipe.engine.score({"u": "a", "x": 3.0}, None, later).stale == ("r",)
    assert list(pipe.last()["t"][:, 0]) == [-1.0, 1.5]


def test_masks_say_which_cells_hold_a_value():
    """1 where a cell holds a value, 0 where it is padding, a default or NaN; in the dtype that the model wants."""
    for dtype in ("bool", "float32", "int32", "int64"):
        spec = FeatureSpec(
            request={"x": float | None, "y": float},
            tensors={"t": Tensor((c.numeric("x", null=0.0), c.numeric("y")), mask="m", mask_dtype=dtype)},
        )
        pipe = BarePipeline(Case(spec.body, [], {}, 1, {}))
        pipe.engine.score({"y": 1.0})
        mask = pipe.last()["m"]
        assert mask.dtype == np.dtype(dtype)
        assert mask.tolist() == [[0, 1]]


def test_a_table_gives_the_same_examples():
    """`transform` agrees with a request where a table can hold it."""
    spec = FeatureSpec(
        request={"amount": float, "channel": str},
        vocabularies={"v": Vocabulary(("web", "shop"), frozen=True)},
        columns=[
            c.numeric("amount", transform="log1p"),
            c.categorical("channel", encoding="onehot", vocabulary="v"),
        ],
    )
    made = spec.transform(pa.table({"amount": [0.0, math.e - 1], "channel": ["shop", "fax"]}))
    assert made.names == ("amount", "channel=(other)", "channel=web", "channel=shop")
    assert made.tolist() == [[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]]
    assert made.dtype == np.float32
