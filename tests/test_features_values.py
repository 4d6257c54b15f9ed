"""How one value of a request becomes the canonical value of its field, or a typed error that says what to do.

The same rule holds for dicts, Structs and dataclasses, whatever object holds the value; JSON and MessagePack go through
the generated Struct. Whole requests against the twin are test_reference_requests.py, Arrow is test_features_arrow.py.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import types
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from bare import BarePipeline
from strategies import Case

from retailinfer import columns as c
from retailinfer.errors import (
    FeatureError,
    FeatureMissingError,
    FeatureRangeError,
    FeatureTypeError,
    LimitError,
    RequestError,
)
from retailinfer.features.spec import FeatureSpec, Tensor, Timestamp

KINDS: dict[str, tuple[Any, Tensor]] = {
    "float": (float, Tensor((c.raw("x"),), "float64")),
    "int": (int, Tensor((c.raw("x"),), "int64")),
    "bool": (bool, Tensor((c.boolean("x"),), "bool")),
    "str": (str, Tensor((c.raw("x"),), "string")),
    "bytes": (bytes, Tensor((c.hashed("x", buckets=2**31 - 1),), "int64")),
    "timestamp": (Timestamp, Tensor((c.raw("x"),), "int64")),
    "list[float]": (list[float], Tensor((c.sequence("x", length=3, encoding="number"),), "float64")),
    "list[int]": (list[int], Tensor((c.sequence("x", length=3, encoding="number"),), "int64")),
    "list[str]": (
        list[str],
        Tensor((c.sequence("x", length=3, encoding="hashed", buckets=2**31 - 1),), "int64"),
    ),
}
NAN_OK = ("float", "str", "bytes", "list[float]", "list[int]", "list[str]")
DAY_NS = 1_704_067_200 * 10**9  # 2024-01-01T00:00:00Z


def pipeline(kind: str, *, optional: bool = False, extra: Any = "forbid") -> BarePipeline:
    """An engine whose only field `x` has this type, and whose only tensor shows its value."""
    python_type, tensor = KINDS[kind]
    if optional and kind not in NAN_OK:
        columns = tuple(msgspec.structs.replace(col, null=0) for col in tensor.columns)
        tensor = Tensor(columns, tensor.dtype)
    request = {"x": python_type | None if optional else python_type}
    spec = FeatureSpec(request=request, tensors={"t": tensor}, extra=extra)
    return BarePipeline(Case(spec.body, [], {}, 1, {}))


def read(pipe: BarePipeline, value: Any, form: str = "dict") -> list[Any]:
    """Cells that a request with this value gives."""
    request: Any = {"x": value}
    if form == "generated Struct":
        request = pipe.request_type(**request)
    elif form == "user's Struct":
        request = msgspec.defstruct("Loose", [("x", object)])(**request)
    elif form == "dataclass":
        request = dataclasses.make_dataclass("Data", [("x", object)])(**request)
    pipe.engine.score(request)
    return list(pipe.last()["t"][0])


FORMS = ("dict", "generated Struct", "user's Struct", "dataclass")


class Number(float):
    """A float of somebody else's."""


class Whole(int):
    """An int that lies when it is asked."""

    def __int__(self):
        return 666

    def __index__(self):
        return 666


class Colour(enum.StrEnum):
    RED = "red"


class Name(str):
    """A str that lies when it is asked."""

    __slots__ = ()

    def __str__(self):
        return "lie"

    def __iter__(self):
        return iter("lie")

    def encode(self, *_: object):
        return b"lie"


ACCEPTED = [
    ("float", 1.5, 1.5),
    ("float", 3, 3.0),
    ("float", -0.0, -0.0),
    ("float", 2**53 + 1, 9007199254740992.0),
    ("float", Number(2.5), 2.5),
    ("float", Whole(4), 4.0),
    ("float", np.float64(0.1), 0.1),
    ("float", np.float32(0.1), 0.10000000149011612),
    ("float", np.float16(0.5), 0.5),
    ("float", np.int8(-3), -3.0),
    ("float", np.uint64(2**63), 9.223372036854775808e18),
    ("float", decimal.Decimal("0.1"), 0.1),
    ("float", decimal.Decimal("19.99"), 19.99),
    ("float", np.longdouble(0.25), 0.25),
    ("int", 7, 7),
    ("int", 2**63 - 1, 2**63 - 1),
    ("int", -(2**63), -(2**63)),
    ("int", Whole(4), 4),
    ("int", np.int64(2**53 + 1), 2**53 + 1),
    ("int", np.uint8(200), 200),
    ("bool", True, True),
    ("bool", np.bool_(False), False),
    ("str", "abc", "abc"),
    ("str", "", ""),
    ("str", "a\0b", "a\0b"),
    ("str", "日本", "日本"),
    ("str", Colour.RED, "red"),
    ("str", Name("truth"), "truth"),
    ("str", Name("wahr\u00e9"), "wahr\u00e9"),
    ("str", np.str_("n"), "n"),
    ("str", "x" * 65536, "x" * 65536),
    ("timestamp", dt.datetime(2024, 1, 1, tzinfo=dt.UTC), DAY_NS),
    (
        "timestamp",
        dt.datetime(2024, 1, 1, 5, 30, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30))),
        DAY_NS,
    ),
    ("timestamp", dt.datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=dt.UTC), DAY_NS + 1000),
    ("timestamp", 1_704_067_200, DAY_NS),
    ("timestamp", 1_704_067_200.25, DAY_NS + 250_000_000),
    ("timestamp", decimal.Decimal("1704067200.000001"), DAY_NS + 1000),
    ("timestamp", np.int64(1_704_067_200), DAY_NS),
    ("timestamp", -0.5, -500_000_000),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "value", "cell"), ACCEPTED)
def test_a_value_is_taken_for_what_it_is(kind, value, cell, form):
    """Python, NumPy and Decimal values of a field's type become its canonical value, whatever object holds them."""
    got = read(pipeline(kind), value, form)[0]
    assert got == cell
    assert str(got) == str(type(got)(cell))  # the sign of zero too


class Pair(NamedTuple):
    a: int
    b: int


class HostileFloat(float):
    def __float__(self):
        raise ZeroDivisionError("boom")


class HostileDecimal(decimal.Decimal):
    def __float__(self):
        raise ZeroDivisionError("boom")


class Silent:
    """Raises whatever it is asked."""

    def __float__(self):
        raise RuntimeError("asked")

    def __repr__(self):
        raise RuntimeError("asked")

    def __eq__(self, other):
        raise RuntimeError("asked")

    __hash__ = None

    @property
    def __class__(self):
        raise RuntimeError("asked")


class Duck:
    """Can be turned into anything, and is nothing."""

    def __float__(self):
        return 1.0

    def __int__(self):
        return 1

    def __index__(self):
        return 1

    def __str__(self):
        return "duck"

    def __bool__(self):
        return True

    def __len__(self):
        return 1

    def __iter__(self):
        return iter([1])


class Naive(dt.tzinfo):
    """A zone that does not know its offset."""

    def utcoffset(self, when):
        return None


class BrokenZone(dt.tzinfo):
    def utcoffset(self, when):
        raise RuntimeError("no zone data")


BIG = 10**400
SURROGATE = "a\ud800b"
NUMBER_KINDS = ("float", "int", "list[float]", "list[int]")

REFUSED = [
    *[(kind, True, FeatureTypeError, "not a number") for kind in ("float", "int", "timestamp")],
    *[(kind, np.True_, FeatureTypeError, "not a number") for kind in ("float", "int", "timestamp")],
    *[(kind, "3", FeatureTypeError, "not converted") for kind in ("float", "int", "bool")],
    *[(kind, b"3", FeatureTypeError, "") for kind in ("float", "int", "bool", "str", "timestamp")],
    *[(kind, Duck(), FeatureTypeError, "pass a") for kind in KINDS],
    *[(kind, [1.0], FeatureTypeError, "got `list`") for kind in ("float", "int", "bool", "str", "timestamp")],
    *[(kind, np.array(1.0), FeatureTypeError, "ndarray") for kind in ("float", "int", "bool", "str")],
    *[(kind, np.timedelta64(5, "s"), FeatureTypeError, "") for kind in ("float", "int", "timestamp")],
    ("float", 1j, FeatureTypeError, ""),
    ("float", BIG, FeatureRangeError, "float64"),
    ("float", decimal.Decimal("1e400"), FeatureRangeError, "float64"),
    ("float", decimal.Decimal("sNaN"), FeatureTypeError, ""),
    ("float", float("inf"), FeatureRangeError, "infinity"),
    ("float", np.float32("-inf"), FeatureRangeError, "infinity"),
    ("float", decimal.Decimal("Infinity"), FeatureRangeError, "infinity"),
    ("float", float("nan"), FeatureRangeError, "NaN"),
    ("float", HostileDecimal("1"), FeatureTypeError, "boom"),
    ("float", HostileFloat(1.0), FeatureTypeError, "boom"),
    ("int", 1.0, FeatureTypeError, "1.0 is not an int"),
    ("int", np.float64(1.0), FeatureTypeError, "1.0 is not an int"),
    ("int", decimal.Decimal(1), FeatureTypeError, ""),
    ("int", 2**63, FeatureRangeError, "64 bits"),
    ("int", np.uint64(2**63), FeatureRangeError, "64 bits"),
    ("int", BIG, FeatureRangeError, "64 bits"),
    ("bool", 1, FeatureTypeError, "int"),
    ("bool", 0.0, FeatureTypeError, "float"),
    ("str", 3, FeatureTypeError, "int"),
    ("str", SURROGATE, FeatureRangeError, "surrogate"),
    ("str", Name(SURROGATE), FeatureRangeError, "surrogate"),
    ("str", "x" * 65537, FeatureRangeError, "65536"),
    ("str", "é" * 32769, FeatureRangeError, "65536"),
    ("bytes", "abc", FeatureTypeError, "bytes"),
    ("bytes", Name("abc"), FeatureTypeError, "bytes"),
    ("bytes", b"x" * 65537, FeatureRangeError, "65536"),
    ("timestamp", dt.datetime(2024, 1, 1), FeatureTypeError, "zone"),  # noqa: DTZ001 - the point
    ("timestamp", dt.datetime(2024, 1, 1, tzinfo=Naive()), FeatureTypeError, "zone"),
    ("timestamp", dt.datetime(2024, 1, 1, tzinfo=BrokenZone()), FeatureRangeError, ""),
    ("timestamp", dt.date(2024, 1, 1), FeatureTypeError, "aware datetime"),
    ("timestamp", "2024-01-01T00:00:00Z", FeatureTypeError, "aware datetime"),
    ("timestamp", np.datetime64("2024-01-01"), FeatureTypeError, "zone"),
    ("timestamp", 1_704_067_200_000, FeatureRangeError, "milliseconds"),
    ("timestamp", BIG, FeatureRangeError, ""),
    ("timestamp", float("inf"), FeatureRangeError, ""),
    ("timestamp", float("nan"), FeatureRangeError, ""),
    ("timestamp", dt.datetime(1, 1, 1, tzinfo=dt.UTC), FeatureRangeError, "1824"),
    (
        "timestamp",
        dt.datetime.max.replace(tzinfo=dt.timezone(-dt.timedelta(hours=23))),
        FeatureRangeError,
        "1824",
    ),
    ("list[float]", "123", FeatureTypeError, ""),
    ("list[float]", {1.0}, FeatureTypeError, ""),
    ("list[float]", (x for x in (1.0,)), FeatureTypeError, ""),
    ("list[float]", np.zeros((2, 2)), FeatureTypeError, "dimensions"),
    ("list[float]", np.array(1.0), FeatureTypeError, "dimensions"),
    ("list[int]", np.array(["2024-01-01"], "datetime64[D]"), FeatureTypeError, ""),
]
IN_LISTS = [
    ("list[float]", "3", FeatureTypeError, "float"),
    ("list[float]", True, FeatureTypeError, "not a number"),
    ("list[float]", None, FeatureTypeError, "NoneType"),
    ("list[float]", float("nan"), FeatureRangeError, "finite"),
    ("list[float]", float("inf"), FeatureRangeError, "finite"),
    ("list[float]", BIG, FeatureRangeError, ""),
    ("list[float]", HostileFloat(1.0), FeatureTypeError, "boom"),
    ("list[int]", 1.0, FeatureTypeError, "1.0 is not an int"),
    ("list[int]", True, FeatureTypeError, "not a number"),
    ("list[int]", 2**63, FeatureRangeError, "64 bits"),
    ("list[str]", 3, FeatureTypeError, "str"),
    ("list[str]", None, FeatureTypeError, "NoneType"),
    ("list[str]", SURROGATE, FeatureRangeError, "surrogate"),
    ("list[str]", "x" * 65537, FeatureRangeError, "65536"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "value", "error", "words"), REFUSED, ids=lambda v: getattr(v, "__name__", None)
)
def test_a_value_of_another_type_is_refused_by_name(kind, value, error, words, form):
    """The error is the typed one, names the field, what was expected and what came, and hints at what to do."""
    with pytest.raises(error) as caught:
        read(pipeline(kind), value, form)
    assert type(caught.value) is error
    assert caught.value.path == "$.x"
    assert "Expected" in str(caught.value)
    assert "`$.x`" in str(caught.value)
    assert words in str(caught.value)
    if error is FeatureTypeError:
        assert caught.value.hint


@pytest.mark.parametrize(
    ("kind", "item", "error", "words"), IN_LISTS, ids=lambda v: getattr(v, "__name__", None)
)
def test_a_wrong_item_of_a_list_is_refused_by_its_place(kind, item, error, words):
    """Items follow the rules of single values; the path says which one it was."""
    good: Any = {"list[float]": 1.0, "list[int]": 1, "list[str]": "a"}[kind]
    with pytest.raises(error) as caught:
        read(pipeline(kind), [good, good, item])
    assert type(caught.value) is error
    assert caught.value.path == "$.x[2]"
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_object_that_raises_whatever_it_is_asked_is_refused(kind):
    """Neither its class, nor its text, nor its comparison is needed to say that it is none of the types."""
    pipe = pipeline(kind)
    for form in FORMS:
        with pytest.raises(FeatureTypeError, match="its repr raised") as caught:
            read(pipe, Silent(), form)
        assert caught.value.path == "$.x"
    if kind.startswith("list"):
        with pytest.raises(FeatureTypeError, match="its repr raised") as caught:
            read(pipe, [Silent()])
        assert caught.value.path == "$.x[0]"


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_required_field_is_never_null(kind):
    """None, UNSET, a missing key and pandas' missing values are all the same error for a required field."""
    pandas = pytest.importorskip("pandas", reason="`pandas` is not installed (pip install retailinfer[test])")
    pipe = pipeline(kind)
    for nothing in (None, msgspec.UNSET, pandas.NA, pandas.NaT):
        with pytest.raises(FeatureMissingError, match="required") as caught:
            read(pipe, nothing)
        assert caught.value.path == "$.x"
    with pytest.raises(FeatureMissingError, match="required"):
        pipe.engine.score({})


@pytest.mark.parametrize("kind", list(KINDS))
def test_missing_values_of_pandas_are_null(kind):
    """pandas.NA and pandas.NaT give what None and a missing key give."""
    pandas = pytest.importorskip("pandas", reason="`pandas` is not installed (pip install retailinfer[test])")
    pipe = pipeline(kind, optional=True)
    want = read(pipe, None)
    for nothing in (pandas.NA, pandas.NaT, msgspec.UNSET):
        assert str(read(pipe, nothing)) == str(want)
    decision = pipe.engine.score({})
    assert decision.missing == ("x",)


def test_nan_is_null_in_a_field_that_may_be_null():
    """NaN, NumPy's and Decimal's too, counts as missing; in a timestamp as well."""
    pipe = pipeline("float", optional=True)
    for value in (float("nan"), np.float32("nan"), decimal.Decimal("NaN")):
        assert np.isnan(read(pipe, value)[0])
        assert pipe.engine.score({"x": value}).missing == ("x",)
    assert pipeline("timestamp", optional=True).engine.score({"x": float("nan")}).missing == ("x",)


def test_nanoseconds_of_pandas_are_rounded_to_microseconds_half_up():
    """pandas.Timestamp keeps nanoseconds; all sources round them alike."""
    pandas = pytest.importorskip("pandas", reason="`pandas` is not installed (pip install retailinfer[test])")
    pipe = pipeline("timestamp")
    for ns, rounded in ((499, 0), (500, 1000), (999, 1000), (1500, 2000)):
        moment = pandas.Timestamp(DAY_NS + ns, unit="ns", tz="UTC")
        assert read(pipe, moment) == [DAY_NS + rounded]
        body = msgspec.json.encode({"x": f"2024-01-01T00:00:00.{ns:09d}Z"})
        pipe.engine.score_json(body)
        assert list(pipe.last()["t"][0]) == [DAY_NS + rounded]


def test_lists_come_as_list_tuple_or_array():
    """Lists, tuples, their subclasses and one-dimensional arrays of any number type give the same cells."""

    class Mine(list):
        def __iter__(self):
            raise RuntimeError("asked")

        def __len__(self):
            return 100

    floats, ints, texts = pipeline("list[float]"), pipeline("list[int]"), pipeline("list[str]")
    for values in (
        [1, 2],
        (1.0, 2.0),
        Mine([1.0, 2]),
        np.array([1, 2], np.float32),
        np.array([1, 2], np.uint8),
    ):
        assert read(floats, values) == [1.0, 2.0, 0.0]
    assert read(floats, [decimal.Decimal("0.1")])[0] == 0.1
    for values in (
        [1, 2],
        (1, 2),
        Mine([1, 2]),
        np.array([1, 2], np.int16),
        Pair(1, 2),
    ):
        assert read(ints, values) == [1, 2, 0]
    want = read(texts, ["a", "truth"])
    for values in (
        ("a", "truth"),
        Mine(["a", Name("truth")]),
        np.array(["a", "truth"]),
        np.array(["a", "truth"], object),
    ):
        assert read(texts, values) == want
    for pipe in (floats, ints, texts):
        assert read(pipe, []) == [0, 0, 0]


def test_a_list_has_a_limit():
    """More items than any column keeps are refused before they are read."""
    with pytest.raises(LimitError, match="65536"):
        read(pipeline("list[int]"), [0] * 65537)
    with pytest.raises(LimitError, match="65536"):
        read(pipeline("list[float]"), np.zeros(65537))


# ---- the request itself ----------------------------------------------------------------------------------------------


class LazyRow:
    """As an ORM's object: attributes on demand."""

    @property
    def x(self):
        raise AssertionError("a query ran")


@pytest.mark.parametrize(
    "request_", [LazyRow(), None, 3, "x", b"{}", [("x", 1.0)], object, types.SimpleNamespace(x=1.0)]
)
def test_lazy_and_foreign_objects_are_refused_unread(request_):
    """Only dicts, mappings, Structs and dataclasses are read; the hint says how to make one."""
    with pytest.raises(FeatureTypeError, match="model_dump") as caught:
        pipeline("float").engine.score(request_)
    assert caught.value.path == "$"


def test_unknown_fields_are_refused_or_dropped_as_the_spec_says():
    """extra="forbid" names the field, in dicts and in JSON; extra="ignore" drops it."""
    strict, loose = pipeline("float", optional=True), pipeline("float", optional=True, extra="ignore")
    for request in ({"x": 1.0, "y": 2}, {"y": 2}, {1: 2}, collections.OrderedDict(y=1)):
        with pytest.raises(FeatureTypeError, match="Unknown field"):
            strict.engine.score(request)
        loose.engine.score(request)
    with pytest.raises(RequestError, match="unknown field `y`"):
        strict.engine.score_json(b'{"x": 1.0, "y": 2}')
    loose.engine.score_json(b'{"x": 1.0, "y": 2}')


def test_any_mapping_is_a_request():
    """Dict subclasses and other mappings are read through their own methods."""

    class Lower(dict):
        def __getitem__(self, key):
            raise RuntimeError("never asked for a copy")

    pipe = pipeline("float")
    for request in (
        collections.OrderedDict(x=1.5),
        types.MappingProxyType({"x": 1.5}),
        collections.UserDict(x=1.5),
    ):
        pipe.engine.score(request)
        assert pipe.last()["t"][0, 0] == 1.5
    pipe.engine.score(Lower(x=1.5))


def test_keys_that_run_code_cannot_hurt():
    """A key with a hostile `__eq__`, or one that changes the dict, gives a typed error; never a crash."""

    class Key:
        def __init__(self, action):
            self.action = action

        def __hash__(self):
            return hash("x")

        def __eq__(self, other):
            return self.action()

    def explode():
        raise ZeroDivisionError("boom")

    pipe = pipeline("float", optional=True)
    request: dict[Any, Any] = {}
    request[Key(explode)] = 1
    with pytest.raises(FeatureTypeError, match="boom"):
        pipe.engine.score(request)
    for clearing in ({}, {"x": 2.5}):
        request = {}

        def clear(request=request, clearing=clearing):
            request.clear()
            request.update(clearing)
            return False

        request[Key(clear)] = 1
        request["other"] = 2
        with contextlib.suppress(FeatureError):
            pipe.engine.score(request)
        assert pipe.engine.score({"x": 1.0}).missing == ()


def test_a_value_that_changes_its_dict_while_it_is_read_cannot_hurt():
    """Values are owned while they are converted: a `__float__` that empties the dict frees nothing under our hands."""
    spec = FeatureSpec(
        request={"a": str, "x": float, "b": str},
        tensors={"t": Tensor((c.raw("a"), c.raw("b")), "string"), "n": Tensor((c.numeric("x"),), "float64")},
    )
    pipe = BarePipeline(Case(spec.body, [], {}, 1, {}))

    class Greedy(decimal.Decimal):
        def __float__(self):
            request.clear()
            request.update(a="short", b="swapped in", x=0)
            return 4.0

    request = {"a": "kept alive " * 50, "x": Greedy(1), "b": "gone " * 50}
    pipe.engine.score(request)
    got = pipe.last()
    assert list(got["t"][0]) == ["kept alive " * 50, "swapped in"]
    assert got["n"][0, 0] == 4.0


def test_a_float_that_scores_again_gets_its_own_workspace():
    """A value whose `__float__` calls the same engine does not disturb the call it is part of."""
    pipe = pipeline("float")

    class Again(decimal.Decimal):
        def __float__(self):
            pipe.engine.score({"x": 9.0})
            return 4.0

    pipe.engine.score({"x": Again(1)})
    assert list(pipe.last()["t"][:, 0]) == [9.0, 4.0]


def test_properties_that_fail_are_a_typed_error():
    """An attribute that raises when it is read is named, and the cause is kept."""

    @dataclasses.dataclass
    class Broken:
        y: int = 0

        @property
        def x(self):
            raise ZeroDivisionError("boom")

    with pytest.raises(FeatureTypeError, match="boom") as caught:
        pipeline("float").engine.score(Broken())
    assert caught.value.path == "$.x"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_deleted_or_unset_slot_is_missing():
    """A Struct field that was never set, or was deleted, is a missing value."""

    class Loose(msgspec.Struct):
        x: Any = msgspec.UNSET

    pipe = pipeline("float", optional=True)
    request = Loose(1.0)
    del request.x
    for given in (Loose(), request):
        assert pipe.engine.score(given).missing == ("x",)


def test_the_generated_struct_is_checked_value_by_value():
    """Struct constructors check nothing, so a wrong value in the generated Struct is found when it is read."""
    pipe = pipeline("float")
    with pytest.raises(FeatureTypeError):
        pipe.engine.score(pipe.request_type(x="1.0"))
    sub = type("Sub", (pipe.request_type,), {"__annotations__": {"z": int}}, frozen=True, kw_only=True)
    pipe.engine.score(sub(x=2.5, z=1))
    assert pipe.last()["t"][0, 0] == 2.5


WIRE_REFUSED = [
    ("float", b'{"x": "1"}', "str"),
    ("float", b'{"x": true}', "bool"),
    ("float", b'{"x": NaN}', "malformed"),
    ("float", b'{"x": Infinity}', "malformed"),
    ("float", b'{"x": 1e999}', "out of range"),
    ("float", b'{"x": 1' + b"0" * 400 + b"}", "out of range"),
    ("float", b"{}", "missing required field"),
    ("float", b'{"x": null}', "null"),
    ("float", b"[1.0]", "array"),
    ("int", b'{"x": 1.0}', "float"),
    ("int", b'{"x": "3"}', "str"),
    ("int", b'{"x": true}', "bool"),
    ("bool", b'{"x": 1}', "int"),
    ("str", b'{"x": 3}', "int"),
    ("str", b'{"x": "\\ud800"}', ""),
    ("str", b'{"x": "\xff"}', ""),
    ("timestamp", b'{"x": "2024-01-01T00:00:00"}', "timezone"),
    ("timestamp", b'{"x": "2024-02-30T00:00:00Z"}', "RFC3339"),
    ("timestamp", b'{"x": true}', "bool"),
    ("list[int]", b'{"x": [1, 2.0]}', "float"),
    ("list[float]", b'{"x": [1, null]}', "null"),
]


@pytest.mark.parametrize(("kind", "body", "words"), WIRE_REFUSED)
def test_json_follows_the_same_rules(kind, body, words):
    """What a dict may not hold, JSON may not either; the error is a RequestError that says where."""
    with pytest.raises(RequestError) as caught:
        pipeline(kind).engine.score_json(body)
    assert words in str(caught.value)


def test_json_numbers_beyond_64_bits_are_refused_like_python_ones():
    """msgspec decodes large integers; the field's own rule then refuses them."""
    for number in (2**63, 2**64, -(2**63) - 1):
        with pytest.raises((FeatureRangeError, RequestError)):
            pipeline("int").engine.score_json(b'{"x": %d}' % number)


def test_equal_logical_values_give_equal_bits_from_every_source():
    """12.9 is the same double from JSON, MessagePack, float, Decimal and NumPy; a float32 is another number."""
    pipe = pipeline("float")
    decode = msgspec.msgpack.Decoder(pipe.request_type).decode
    pipe.engine.score_json(b'{"x": 12.9}')
    pipe.engine.score_msgpack(msgspec.msgpack.encode({"x": 12.9}), decode, msgspec.msgpack.encode)
    for value in (12.9, decimal.Decimal("12.9"), np.float64(12.9), Number(12.9)):
        pipe.engine.score({"x": value})
    cells = pipe.last()["t"][:, 0]
    assert len(cells) == 6
    assert set(cells.view(np.uint64)) == {np.float64(12.9).view(np.uint64)}
    assert read(pipe, np.float32(12.9))[0] == float(np.float32(12.9)) != 12.9


def test_an_unknown_category_is_named():
    """oov="refuse" says which value it was, and for a list at which place."""
    spec = FeatureSpec(
        request={"x": str, "y": list[int], "z": int},
        tensors={
            "t": Tensor(
                (
                    c.categorical("x", vocabulary="v"),
                    c.sequence("y", length=3, vocabulary="w"),
                    c.categorical("z", vocabulary="w"),
                ),
                "int64",
            )
        },
        vocabularies={
            "v": msgspec.convert({"values": ["a"], "frozen": True, "oov": "refuse"}, vocabulary_type()),
            "w": msgspec.convert({"values": [1, 2], "frozen": True, "oov": "refuse"}, vocabulary_type()),
        },
    )
    pipe = BarePipeline(Case(spec.body, [], {}, 1, {}))
    good = {"x": "a", "y": [1], "z": 2}
    pipe.engine.score(good)
    for change, path, got in (
        ({"x": "né" * 50}, "$.x", "néné"),
        ({"y": [1, 2, 7]}, "$.y[2]", "7"),
        ({"z": -5}, "$.z", "-5"),
    ):
        with pytest.raises(FeatureRangeError, match=got) as caught:
            pipe.engine.score(good | change)
        assert caught.value.path == path


def vocabulary_type() -> Any:
    """The type of a shared vocabulary; values come as a list."""
    from retailinfer.features.spec import Vocabulary

    return Vocabulary
