"""Columns whose result is declared: steps, bins, lookups, declared one-hots, and what is missing.

Examples worked out by hand from the documentation of `retailinfer.columns`, what is refused, and that a spec keeps all of
it in its JSON. Random specs against the twin are test_reference_table.py and test_reference_requests.py.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from test_features_columns import number, row

from retailinfer import columns as c
from retailinfer.columns import Column, Step, checked
from retailinfer.errors import FeatureMissingError, FeatureRangeError, SpecError
from retailinfer.features.arrow import read_table
from retailinfer.features.program import compile_program
from retailinfer.features.spec import Entity, FeatureSpec, Tensor, Timestamp
from retailinfer.features.transform import fill


@pytest.mark.parametrize(
    ("steps", "x", "cell"),
    [
        ([("add", 1.0)], 2.0, 3.0),
        ([("subtract", 1.0), ("divide", 4.0)], 3.0, 0.5),
        ([("multiply", 0.1), ("add", -0.3)], 3.0, 3.0 * 0.1 + -0.3),
        ([("clip", 0.0, 1.0)], 7.0, 1.0),
        ([("clip", 0.0, 1.0)], -7.0, 0.0),
        (["sqrt", "sqrt"], 16.0, 2.0),
        (["log1p"], math.e - 1, 1.0),
        (["signed_log1p"], 1 - math.e, -1.0),
        (["float32"], 0.1, float(np.float32(0.1))),
        ([("fill", 5.0)], 2.0, 2.0),
    ],
)
def test_steps_happen_one_after_the_other(steps, x, cell):
    """Each step takes what the one before gave, in float64."""
    assert number(c.numeric("x", steps=steps), x) == pytest.approx(cell, abs=1e-15)


def test_steps_come_after_clip_transform_centre_and_scale():
    """The fixed order first: clip to 9, root 3, less 1, halved; then the step."""
    column = c.numeric("x", clip=(0, 9), transform="sqrt", center=1.0, scale=2.0, steps=[("add", 10.0)])
    assert number(column, 100.0) == 11.0
    assert number(c.numeric("x", steps=["sqrt"], null=4.0), None) == 2.0  # a default is a raw value


@pytest.mark.parametrize(
    ("steps", "cell"),
    [
        ([("fill", 2.0)], 2.0),
        ([("fill", 2.0), ("multiply", 3.0)], 6.0),
        ([("multiply", 3.0), ("fill", 2.0)], 2.0),
        (["log1p", ("fill", -5.0), ("fill", 1.0)], -5.0),
        ([("add", 1.0)], math.nan),
    ],
)
def test_a_fill_stands_for_what_is_missing_from_there_on(steps, cell):
    """A missing value passes the steps before a fill, and then is the number; without a fill it stays NaN."""
    np.testing.assert_equal(number(c.numeric("x", steps=steps), None), cell)


def test_a_step_outside_its_domain_is_an_error_with_its_name():
    """As for transforms: log1p of -1 and the root of a negative number."""
    for step, x in (("log1p", 1.0), ("sqrt", 1.5)):
        with pytest.raises(FeatureRangeError, match=step):
            number(c.numeric("x", steps=[("subtract", 2.0), step]), x)


@pytest.mark.parametrize(("x", "bin_"), [(-1.0, 0), (0.0, 1), (0.5, 1), (9.999, 1), (10.0, 2), (1e300, 2)])
def test_a_bin_counts_the_edges_at_or_below_a_number(x, bin_):
    """As numpy.digitize: an edge belongs to the bin above it."""
    assert np.digitize(x, [0.0, 10.0]) == bin_
    assert number(c.bins("x", [0.0, 10.0]), x) == bin_
    assert number(c.bins("x", [0.0, 10.0], values=[5.0, -1.5, 0.25]), x) == [5.0, -1.5, 0.25][bin_]
    assert row(c.bins("x", [0, 10]), {"x": float}, {"x": x}, "int64") == [bin_]
    cells = row(c.bins("x", [0.0, 10.0], cells=["low", "middle", "high"]), {"x": float}, {"x": x})
    assert cells == [float(bin_ == i) for i in range(3)]


def test_bins_of_what_steps_made_of_a_number():
    """The number is transformed first; a default is a raw value; a fill step fills."""
    column = c.bins("x", [1.0, 2.0], transform="sqrt", steps=[("subtract", 1.0)])
    assert [number(column, x) for x in (1.0, 4.0, 9.0)] == [0.0, 1.0, 2.0]
    assert number(c.bins("x", [1.0, 2.0], transform="sqrt", null=9.0), None) == 2.0
    assert number(c.bins("x", [1.0, 2.0], steps=[("add", 9.0), ("fill", 1.5)]), None) == 1.0
    assert math.isnan(number(c.bins("x", [1.0]), None))
    assert row(c.bins("x", [1.0], cells=["a", "b"]), {"x": float | None}, {"x": None}) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("kind", "table", "value", "cell"),
    [
        (str, {"a": 1.5, "b": None}, "a", 1.5),
        (str, {"a": 1.5, "b": None}, "b", math.nan),
        (str, {"a": 1.5}, "z", -1.0),
        (str, {"": 2.0}, "", 2.0),
        (int, {3: 0.5, 2**60: 7.0}, 2**60, 7.0),
        (bool, {True: 2.0, False: 3.0}, False, 3.0),
        (float, {0.1: 2.0, 3: 4.0}, 0.1, 2.0),
        (float, {0.1: 2.0, 3: 4.0}, 3.0, 4.0),
        (float, {0.0: 2.0}, -0.0, 2.0),
        (float, {0.1: 2.0}, np.nextafter(0.1, 1), -1.0),
        (str, {}, "anything", -1.0),
        (bytes, {}, b"anything", -1.0),
    ],
)
def test_a_lookup_gives_the_number_of_a_value(kind, table, value, cell):
    """Listed values have their number, the others another; floats are compared as they are."""
    got = row(c.lookup("x", table, other=-1.0), {"x": kind}, {"x": value})
    np.testing.assert_equal(got, [cell])


def test_a_lookup_says_what_others_and_missing_values_are():
    """`other` is NaN, a number or a refusal; a default is the number itself."""
    optional = {"x": str | None}
    assert math.isnan(row(c.lookup("x", {"a": 1.0}), optional, {"x": "z"})[0])
    assert math.isnan(row(c.lookup("x", {"a": 1.0}, other=3.0), optional, {"x": None})[0])
    assert row(c.lookup("x", {"a": 1.0}, null=-7.5), optional, {"x": None}) == [-7.5]
    with pytest.raises(FeatureRangeError, match=r"vocabulary of column `x`, got 'z'.*\$\.x"):
        row(c.lookup("x", {"a": 1.0}, other="refuse"), optional, {"x": "z"})
    with pytest.raises(FeatureRangeError, match=r"got 2\.5"):
        row(c.lookup("x", {1.5: 1.0}, other="refuse"), {"x": float}, {"x": 2.5})
    with pytest.raises(FeatureMissingError, match="got null"):
        row(c.lookup("x", {"a": 1.0}, null="refuse"), optional, {"x": None})


def test_a_value_without_a_number_is_refused_where_nan_may_not_enter():
    """A model that takes no NaN gets an error that names the column, not a guess."""
    spec = FeatureSpec(request={"x": str}, columns=[c.lookup("x", {"a": 1.0})])
    with pytest.raises(FeatureMissingError, match=r"column `x`.*no number"):
        fill(
            compile_program(spec.body, allow_nan=False),
            spec.body,
            read_table(pa.table({"x": ["z"]}), spec.body),
        )


@pytest.mark.parametrize(
    ("kind", "here"), [(float, -1.5), (int, 3), (str, ""), (bool, False), (bytes, b""), (Timestamp, 5.0)]
)
def test_missing_is_one_where_nothing_came(kind, here):
    """A value of any type is there or not."""
    fields = {"x": kind | None}
    assert row(c.missing("x"), fields, {"x": here}) == [0.0]
    assert row(c.missing("x"), fields, {"x": None}) == [1.0]
    assert row(c.missing("x"), fields, {"x": None}, "bool") == [True]
    assert c.missing("x").name == "x_missing"


@pytest.mark.parametrize(
    ("x", "cells"), [("web", [1, 0]), ("pos", [0, 1]), ("fax", [0, 1]), ("old", [0, 0]), ("new", [0, 0])]
)
def test_a_declared_onehot_sets_the_cell_of_a_group(x, cells):
    """Values of one group share a cell; known values without a cell and unknown ones set none."""
    column = c.onehot("x", {"web": "web", "other": ["pos", "fax"]}, none=["old"])
    for dtype in ("float64", "float32", "int64", "bool"):
        assert row(column, {"x": str}, {"x": x}, dtype) == cells
    scaled = c.onehot("x", {"web": "web", "other": ["pos", "fax"]}, on=[2.0, 3.0], off=-0.5)
    wanted = [2.0 if cells[0] else -0.5, 3.0 if cells[1] else -0.5]
    assert row(scaled, {"x": str}, {"x": x}) == wanted


def test_a_onehot_of_missing_and_other_values():
    """None in a group is the missing value; `other` is a cell, none, or a refusal; outcomes name a cell."""
    fields = {"x": str | None}
    groups = {"a": "a", "none": None}
    assert row(c.onehot("x", groups), fields, {"x": None}) == [0, 1]
    assert row(c.onehot("x", groups), fields, {"x": "z"}) == [0, 0]
    assert row(c.onehot("x", groups, other="a"), fields, {"x": "z"}) == [1, 0]
    assert row(c.onehot("x", ["a", "b"], null="x=b"), fields, {"x": None}) == [0, 1]
    assert row(c.onehot("x", ["a", "b"]), fields, {"x": None}) == [0, 0]
    with pytest.raises(FeatureRangeError, match="'z'"):
        row(c.onehot("x", ["a"], none=["b"], refuse_other=True), fields, {"x": "z"})
    assert row(c.onehot("x", ["a"], none=["b"], refuse_other=True), fields, {"x": "b"}) == [0]
    assert FeatureSpec(request=fields, columns=[c.onehot("x", ["a", "b"])]).names == ("x=a", "x=b")


def test_declared_columns_need_no_fit_and_learn_ranges_from_one():
    """`fit` adds the range of the raw number behind bins, and changes no cell."""
    columns = [
        c.bins("x", [1.0, 2.0], transform="log1p", center="mean", scale="std", name="b"),
        c.numeric("x", center="mean", steps=[("fill", 1.0)], name="n"),
        c.lookup("s", {"a": 1.0}, other=0.0),
        c.missing("x"),
    ]
    declared = FeatureSpec(request={"x": float | None, "s": str}, columns=columns[2:])
    assert declared.is_fitted
    table = pa.table({"x": [1.0, None, 3.0], "s": ["a", "b", "a"]})
    assert declared.fit(table).transform(table).tolist() == [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    spec = FeatureSpec(request={"x": float | None, "s": str}, columns=columns).fit(table)
    assert (spec.body.fitted["b"].seen_low, spec.body.fitted["b"].seen_high) == (1.0, 3.0)
    assert spec.body.fitted["b"].center == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert spec.body.fitted["n"].center == 2.0  # of the number before the steps
    assert FeatureSpec.from_json(spec.to_json()) == spec
    assert spec.baseline is not None
    assert spec.baseline["columns"]["s"]["values"] == ["a", "b"]


def test_lookups_of_stored_columns_take_the_type_of_their_keys():
    """Text keys mean a text column, whole numbers integers, other numbers floats."""
    spec = FeatureSpec(
        request={"card": str},
        entities={"card": Entity(("card",))},
        columns=[
            c.lookup("card.country", {"GB": 1.0}),
            c.lookup("card.plan", {1: 1.0}),
            c.lookup("card.share", {0.5: 1.0}),
        ],
    )
    assert spec.body.stored == {"card.country": "str", "card.plan": "int", "card.share": "float"}


BASE: dict[str, Any] = {"name": "x", "refs": ("x",)}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (Column(kind="bins", edges=(), values=(0.0,), **BASE), "ascending edges"),
        (Column(kind="bins", edges=(1.0, 1.0), values=(0.0, 1.0, 2.0), **BASE), "ascending edges"),
        (Column(kind="bins", edges=(1.0, math.inf), values=(0.0, 1.0, 2.0), **BASE), "ascending edges"),
        (Column(kind="bins", edges=(1.0,), values=(0.0,), **BASE), "2 finite numbers"),
        (Column(kind="bins", edges=(1.0,), **BASE), "2 finite numbers"),
        (Column(kind="bins", edges=(1.0,), values=(0.0, 2.0), cells=("a", "b"), **BASE), "one of 2 cells"),
        (Column(kind="bins", edges=(1.0,), values=(0.0, 0.5), cells=("a",), **BASE), "one of 1 cells"),
        (Column(kind="bins", edges=(1.0,), values=(0.0, 1.0), on=(1.0,), **BASE), "go with cells"),
        (Column(kind="bins", edges=(1.0,), values=(0.0, None), keys=("a",), **BASE), "`keys` means nothing"),
        (Column(kind="lookup", values=(), **BASE), "as keys"),
        (Column(kind="lookup", keys=("a", 1), values=(0.0, 0.0), **BASE), "as keys"),
        (Column(kind="lookup", keys=("a", "a"), values=(0.0, 0.0), **BASE), "every key once"),
        (Column(kind="lookup", keys=(1, 1.0), values=(0.0, 0.0), **BASE), "every key once"),
        (Column(kind="lookup", keys=("\ud800",), values=(0.0,), **BASE), "as keys"),
        (Column(kind="lookup", keys=(math.nan,), values=(0.0,), **BASE), "as keys"),
        (Column(kind="lookup", keys=("a",), values=(math.inf,), **BASE), "1 finite numbers"),
        (Column(kind="lookup", keys=("a",), values=(0.0,), other="review", **BASE), "for other"),
        (Column(kind="lookup", keys=("a",), values=(0.0,), cells=(), **BASE), "names of cells"),
        (Column(kind="lookup", keys=("a",), values=(0.0,), cells=("",), **BASE), "names of cells"),
        (Column(kind="lookup", keys=("a",), values=(-1.0,), cells=("c",), **BASE), "one of 1 cells"),
        (Column(kind="lookup", keys=("a",), values=(0.0,), cells=("c",), null=1, **BASE), "one of 1 cells"),
        (
            Column(kind="lookup", keys=("a",), values=(0.0,), cells=("c",), other=7.0, **BASE),
            "one of 1 cells",
        ),
        (
            Column(kind="lookup", keys=("a",), values=(0.0,), cells=("c",), off=(), **BASE),
            "finite numbers for off",
        ),
        (Column(kind="numeric", edges=(1.0,), **BASE), "`edges` means nothing"),
        (Column(kind="lookup", keys=(), values=(), steps=(Step("sqrt"),), **BASE), "`steps` means nothing"),
        (Column(kind="numeric", steps=(Step("power", 2.0),), **BASE), "a step of"),
        (Column(kind="numeric", steps=(Step("add"),), **BASE), "1 finite numbers with step"),
        (Column(kind="numeric", steps=(Step("add", math.nan),), **BASE), "1 finite numbers with step"),
        (Column(kind="numeric", steps=(Step("sqrt", 1.0),), **BASE), "no finite numbers with step"),
        (Column(kind="numeric", steps=(Step("clip", 1.0, 0.0),), **BASE), "low <= high"),
        (Column(kind="numeric", steps=(Step("divide", 0.0),), **BASE), "something else than 0"),
        (Column(kind="numeric", steps=(Step("sqrt"),) * 65, **BASE), "at most 64 steps"),
    ],
)
def test_what_cannot_mean_anything_is_refused_wherever_it_comes_from(column, message):
    """The same checks for the functions and for features.json, in words."""
    with pytest.raises(SpecError, match=message):
        checked(column)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: c.numeric("x", steps="log1p"), "sequence of steps"),
        (lambda: c.numeric("x", steps=["exp"]), "Expected a step of"),
        (lambda: c.numeric("x", steps=[("add",)]), "Expected steps such as"),
        (lambda: c.numeric("x", steps=[("add", "a lot")]), "Expected a number"),
        (lambda: c.numeric("x", steps=[3]), "Expected steps such as"),
        (lambda: c.bins("x", [1.0], values=[1.0, 2.0], cells=["a", "b"]), "got both"),
        (lambda: c.bins("x", [1.0], on=2.0), "goes with cells"),
        (lambda: c.lookup("x", {b"a": 1.0}), "as the key of a lookup"),
        (lambda: c.lookup("x", {None: 1.0}), "as the key of a lookup"),
        (lambda: c.onehot("x", {"a": "a"}, null="b"), "an action or a cell"),
        (lambda: c.onehot("x", {"a": None}, null="a"), "said twice"),
        (lambda: c.onehot("x", {"a": "a"}, other="b"), "one of the cells"),
        (lambda: c.onehot("x", {"a": "a"}, other="a", refuse_other=True), "got both"),
        (lambda: c.onehot("x", {"a": "q", "b": "q"}), "every key once"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make, message):
    """The functions say what they take."""
    with pytest.raises(SpecError, match=message):
        make()


@pytest.mark.parametrize(
    ("field", "column", "dtype", "message"),
    [
        (str, c.bins("x", [1.0]), "float32", "bool or float or int"),
        (str, c.lookup("x", {1: 1.0}), "float32", "keys that a value of type str"),
        (int, c.lookup("x", {"a": 1.0}), "float32", "keys that a value of type int"),
        (int, c.lookup("x", {1.5: 1.0}), "float32", "keys that a value of type int"),
        (int, c.lookup("x", {2**70: 1.0}), "float32", "keys that a value of type int"),
        (bytes, c.lookup("x", {"a": 1.0}), "float32", "keys that a value of type bytes"),
        (str, c.lookup("x", {"a": 1.0}), "int64", "NaN cannot stand"),
        (str, c.lookup("x", {"a": 1.5}, other=0.0), "int64", "numbers that int64 holds"),
        (float, c.bins("x", [1.0], values=[0.5, 1.0]), "int32", "numbers that int32 holds"),
        (str, c.onehot("x", ["a"], on=0.5), "int32", "numbers that int32 holds"),
        (float, c.numeric("x", steps=["sqrt"]), "int32", "has fractions"),
        (str | None, c.lookup("x", {"a": 1.0}, other=0.0), "int64", "put NaN into"),
    ],
)
def test_a_spec_refuses_what_its_fields_and_tensors_cannot_hold(field, column, dtype, message):
    """Types of keys, whole numbers, NaN: said when the spec is made."""
    with pytest.raises(SpecError, match=message):
        FeatureSpec(request={"x": field}, tensors={"t": Tensor((column,), dtype)})


def test_what_is_declared_survives_json_and_msgpack_keeps_its_types():
    """1 and 1.0 stay an integer and a float, None stays NaN."""
    column = c.lookup("x", {1.0: None, 2.5: 1e-300}, other="refuse")
    spec = FeatureSpec(
        request={"x": float}, columns=[column, c.numeric("x", steps=["sqrt", ("add", 1)], name="n")]
    )
    again = FeatureSpec.from_json(spec.to_json())
    assert again == spec
    assert again.columns[0].keys == (1.0, 2.5)
    assert isinstance(again.columns[0].keys[0], float)
    assert msgspec.json.decode(spec.to_json())["tensors"]["features"]["columns"][1]["steps"] == [
        ["sqrt", None, None],
        ["add", 1.0, None],
    ]
