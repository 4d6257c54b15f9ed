"""Contradictions in a declaration are found when it is made: a SpecError that says what to mend.

What a valid declaration computes is test_features_columns.py; damaged features.json is test_features_fit.py.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import msgspec
import pytest

from retailinfer import columns as c
from retailinfer.errors import SpecError
from retailinfer.features.program import request_struct, sections
from retailinfer.features.spec import Entity, FeatureSpec, Tensor, Timestamp, Vocabulary

FIELDS: dict[str, Any] = {
    "x": float,
    "y": float | None,
    "i": int,
    "s": str,
    "b": bool,
    "at": Timestamp,
    "l": list[int],
    "raw": bytes,
    "sku": str,
}
ENTITIES = {"user": "s", "item": "sku", "pair": ("s", "sku")}


def spec(*columns: Any, **more: Any) -> FeatureSpec:
    """A spec over the fields above."""
    options: dict[str, Any] = {"request": FIELDS, "entities": ENTITIES}
    if columns:
        options["columns"] = columns
    return FeatureSpec(**options | more)


def tensor(column: Any, dtype: str, **more: Any) -> FeatureSpec:
    """A spec with one column in one tensor."""
    return spec(tensors={"t": Tensor((column,), dtype, **more)})


WRONG_COLUMNS = [
    (lambda: c.numeric("x", transform="log2"), "transform"),
    (lambda: c.numeric("x", transform=["log1p"]), "transform"),
    (lambda: c.numeric("x", center="mode"), "center"),
    (lambda: c.numeric("x", center=float("nan")), "center"),
    (lambda: c.numeric("x", center=10**400), "center"),
    (lambda: c.numeric("x", center=[1]), "center"),
    (lambda: c.numeric("x", scale=0), "scale"),
    (lambda: c.numeric("x", scale=True), "scale"),
    (lambda: c.numeric("x", scale=float("inf")), "scale"),
    (lambda: c.numeric("x", clip=(2, 1)), "clip"),
    (lambda: c.numeric("x", clip=(1, "a")), "clip"),
    (lambda: c.numeric("x", clip=5), "clip"),
    (lambda: c.numeric("x", clip="all"), "clip"),
    (lambda: c.numeric("x", clip=(float("nan"), 1)), "clip"),
    (lambda: c.numeric("x", null=None), "null"),
    (lambda: c.numeric("x", null=float("nan")), "finite"),
    (lambda: c.numeric("x", null=10**400), "finite"),
    (lambda: c.numeric("x", null=[1]), "null"),
    (lambda: c.numeric("x", max_age="soon"), "duration"),
    (lambda: c.numeric("x", max_age="0s"), "duration"),
    (lambda: c.numeric("x", max_age=3600), "duration"),
    (lambda: c.numeric(3), "text"),
    (lambda: c.stored("x"), "entity.column"),
    (lambda: c.elapsed("at", unit="w"), "unit"),
    (lambda: c.time("at", "fortnight"), "part"),
    (lambda: c.time("at", "year_sin"), "part"),
    (lambda: c.time("at", "is_weekend_cos"), "part"),
    (lambda: c.categorical("s", encoding="binary"), "encoding"),
    (lambda: c.categorical("s", oov="zeros"), "onehot"),
    (lambda: c.categorical("s", oov="ignore"), "oov"),
    (lambda: c.categorical("s", max_size=0), "max_size"),
    (lambda: c.categorical("s", min_count=1.5), "min_count"),
    (lambda: c.categorical("s", smoothing=-1), "smoothing"),
    (lambda: c.categorical("s", smoothing="a"), "smoothing"),
    (lambda: c.categorical("s", folds=1), "folds"),
    (lambda: c.hashed(buckets=5), "field"),
    (lambda: c.hashed("s", buckets=0), "buckets"),
    (lambda: c.hashed("s", buckets=2**31), "buckets"),
    (lambda: c.hashed("s", buckets="9"), "buckets"),
    (lambda: c.hashed("s", buckets=True), "buckets"),
    (lambda: c.hashed("s", buckets=5, seed=-1), "seed"),
    (lambda: c.hashed("s", buckets=5, seed=2**63), "seed"),
    (lambda: c.hashed(*["s"] * 17, buckets=5), "16"),
    (lambda: c.hashed("s", buckets=5, null="\ud800"), "text"),
    (lambda: c.embedding("user.v", size=0), "size"),
    (lambda: c.embedding("user.v", size=2**40), "size"),
    (lambda: c.sequence("l", length=0), "length"),
    (lambda: c.sequence("l", length=3, encoding="hashed"), "buckets"),
    (lambda: c.sequence("l", length=3, buckets=5), "buckets"),
    (lambda: c.sequence("l", length=3, keep="middle"), "keep"),
    (lambda: c.sequence("l", length=3, oov="zeros"), "oov"),
    (lambda: c.sequence("l", length=3, pad=float("inf")), "pad"),
    (lambda: c.sequence("l", length=3, pad="0"), "pad"),
]


@pytest.mark.parametrize(("make", "words"), WRONG_COLUMNS)
def test_a_column_that_means_nothing_is_refused_where_it_is_written(make, words):
    """Ranges, words and types of every argument are checked by the column's own function."""
    with pytest.raises(SpecError, match=words):
        spec(make())


WRONG_SPECS = [
    (spec, "columns"),
    (lambda: spec(c.numeric("x"), tensors={"t": Tensor((c.numeric("x"),))}), "both"),
    (lambda: spec(c.numeric("x"), streams={"payment": 1}), "at stream `payment`"),
    (lambda: spec(c.numeric("x"), extra="maybe"), "extra"),
    (lambda: spec(c.numeric("x"), tz="Mars/Olympus"), "time zone"),
    (lambda: spec(c.numeric("x"), tz="../etc/passwd"), "time zone"),
    (lambda: spec(c.numeric("x"), event_time="x"), "event_time"),
    (lambda: spec(c.numeric("x"), event_time="nothing"), "event_time"),
    (lambda: spec(c.numeric("x"), candidate="shop"), "candidate"),
    (lambda: spec(c.numeric("x"), candidate="pair"), "several fields"),
    (lambda: spec(c.numeric("x"), entities={"e": "nothing"}), "key"),
    (lambda: spec(c.numeric("x"), entities={"e": "x"}), "key"),
    (lambda: spec(c.numeric("x"), entities={"e": ()}), "key"),
    (lambda: spec(c.numeric("x"), entities={"not valid": "s"}), "identifier"),
    (lambda: spec(c.numeric("x"), entities={"e": Entity(("s",), {"v": "tensor"})}), "column type"),
    (lambda: spec(c.numeric("x"), c.numeric("x")), "two columns"),
    (lambda: spec(c.numeric("nothing")), "Unknown reference"),
    (lambda: spec(c.numeric("shop.n")), "Unknown reference"),
    (lambda: spec(c.numeric("user.")), "Unknown reference"),
    (lambda: spec(c.numeric("s")), "Expected"),
    (lambda: spec(c.boolean("x")), "Expected bool"),
    (lambda: spec(c.categorical("x")), "Expected"),
    (lambda: spec(c.time("x", "hour")), "timestamp"),
    (lambda: spec(c.embedding("x", size=2)), "vector"),
    (lambda: spec(c.sequence("x", length=2)), "list"),
    (lambda: spec(c.elapsed("at")), "event time"),
    (lambda: spec(c.equal("s", "x")), "compares"),
    (lambda: spec(c.numeric("x", max_age="1h")), "never stale"),
    (lambda: spec(c.numeric("user.n"), c.boolean("user.n", name="b")), "read both"),
    (lambda: spec(c.numeric("user.n"), c.hashed("user.n", buckets=5, name="h")), "say which"),
    (lambda: tensor(c.raw("s"), "float32"), "string tensor"),
    (lambda: tensor(c.numeric("x"), "string"), "string tensor"),
    (lambda: tensor(c.numeric("x"), "float16"), "dtype"),
    (lambda: tensor(c.numeric("x"), "float32", axis="columns"), "axis"),
    (lambda: tensor(c.numeric("x"), "float32", mask="m", mask_dtype="int8"), "mask_dtype"),
    (lambda: tensor(c.numeric("x"), "float32", mask="t"), "named"),
    (lambda: tensor(c.numeric("x", scale=2.0), "int64"), "fractions"),
    (lambda: tensor(c.ratio("x", "i"), "int64"), "fractions"),
    (lambda: tensor(c.time("at", "hour_sin"), "int64"), "fractions"),
    (lambda: tensor(c.categorical("s", encoding="target"), "int64"), "fractions"),
    (lambda: tensor(c.numeric("y"), "int64"), "NaN into int64"),
    (lambda: tensor(c.numeric("y", null="review"), "int32"), "NaN into int32"),
    (lambda: tensor(c.numeric("y", null=0.5), "int64"), "whole number"),
    (lambda: tensor(c.numeric("y", null=2**40), "int32"), "int32"),
    (lambda: tensor(c.numeric("y", null=1e39), "float32"), "float32"),
    (lambda: tensor(c.raw("i", null=2**63), "int64"), "whole number"),
    (lambda: spec(c.numeric("y", transform="log1p", null=-1)), "domain"),
    (lambda: spec(c.numeric("y", transform="sqrt", null=-0.5)), "domain"),
    (lambda: spec(c.hashed("i", buckets=5, null=1.5)), "whole number"),
    (lambda: spec(c.hashed("s", buckets=5, null=1)), "text"),
    (lambda: spec(c.hashed("s", "i", buckets=5, null="a")), "cross"),
    (lambda: spec(c.numeric("y", null="zero")), "a number"),
    (lambda: spec(c.sequence("l", length=2, null=0)), "padded"),
    (lambda: tensor(c.sequence("l", length=2, pad=0.5), "int64"), "pad"),
    (lambda: tensor(c.sequence("l", length=2, pad=2**40), "int32"), "pad"),
    (lambda: spec(c.categorical("s", vocabulary="v")), "Unknown vocabulary"),
    (lambda: spec(c.categorical("s"), vocabularies={"s": Vocabulary(("a",))}), "name of a shared"),
    (
        lambda: spec(c.categorical("s", vocabulary="v"), vocabularies={"v": Vocabulary((), frozen=True)}),
        "empty",
    ),
    (
        lambda: spec(c.categorical("s", vocabulary="v"), vocabularies={"v": Vocabulary((1,), frozen=True)}),
        "of str",
    ),
    (
        lambda: spec(c.categorical("i", vocabulary="v"), vocabularies={"v": Vocabulary(("a",), frozen=True)}),
        "of int",
    ),
    (
        lambda: spec(
            c.categorical("s", vocabulary="v"), vocabularies={"v": Vocabulary(("a", "a"), frozen=True)}
        ),
        "twice",
    ),
    (
        lambda: spec(
            c.categorical("i", vocabulary="v"), vocabularies={"v": Vocabulary((True,), frozen=True)}
        ),
        "integers",
    ),
    (
        lambda: spec(
            c.categorical("i", vocabulary="v"), vocabularies={"v": Vocabulary((2**70,), frozen=True)}
        ),
        "64 bits",
    ),
    (
        lambda: spec(
            c.categorical("s", vocabulary="v"), vocabularies={"v": Vocabulary(("\ud800",), frozen=True)}
        ),
        "text",
    ),
    (lambda: spec(c.categorical("s", vocabulary="v"), vocabularies={"v": ["a"]}), "Vocabulary"),
    (lambda: spec(tensors={"t": Tensor(())}), "no columns"),
    (lambda: spec(tensors={"t": [c.numeric("x")]}), "ri.Tensor"),
    (lambda: spec("x"), "column of"),
    (lambda: spec(*(c.embedding("user.v", size=65536, name=str(i)) for i in range(5))), "cells"),
    (
        lambda: spec(candidate="item", tensors={"t": Tensor((c.hashed("sku", buckets=5),), axis="context")}),
        "differs between candidates",
    ),
    (
        lambda: spec(candidate="item", tensors={"t": Tensor((c.numeric("pair.n"),), axis="context")}),
        "differs between candidates",
    ),
    (lambda: FeatureSpec(request={"x": complex}, columns=[c.numeric("x")]), "Expected str, float"),
    (lambda: FeatureSpec(request={"x": dict[str, int]}, columns=[c.numeric("x")]), "Expected str, float"),
    (lambda: FeatureSpec(request={"x": int | str}, columns=[c.numeric("x")]), "Expected str, float"),
    (lambda: FeatureSpec(request={"not valid": int}, columns=[c.numeric("x")]), "identifier"),
    (lambda: FeatureSpec(request={"class": int}, columns=[c.numeric("class")]), "identifier"),
    (lambda: FeatureSpec(request={1: int}, columns=[c.numeric("x")]), "field name"),
    (lambda: FeatureSpec(request=[("x", int)], columns=[c.numeric("x")]), "mapping of fields"),  # type: ignore[arg-type]
    (lambda: FeatureSpec(request=int, columns=[c.numeric("x")]), "mapping of fields"),
]


@pytest.mark.parametrize(("make", "words"), WRONG_SPECS)
def test_a_spec_that_contradicts_itself_is_refused(make, words):
    """Types, dtypes, defaults, vocabularies, entities and axes must fit each other; the error says which do not."""
    with pytest.raises(SpecError, match=words):
        make()


def test_fields_come_from_a_mapping_a_struct_or_a_dataclass():
    """All three declare the same fields; a Struct's wire names are kept."""

    class Payment(msgspec.Struct, rename="camel"):
        card_id: str
        paid_at: dt.datetime
        amount: float | None = None

    @dataclasses.dataclass
    class Row:
        card_id: str
        paid_at: dt.datetime
        amount: float | None = None

    columns = [c.hashed("card_id", buckets=5), c.numeric("amount")]
    mapping = {"card_id": str, "paid_at": Timestamp, "amount": float | None}
    plain = FeatureSpec(request=mapping, columns=columns)
    assert FeatureSpec(request=Row, columns=columns) == plain
    struct = FeatureSpec(request=Payment, columns=columns)
    assert [f.wire for f in struct.fields] == ["cardId", "paidAt", ""]
    assert [(f.name, f.type, f.optional) for f in struct.fields] == [
        ("card_id", "str", False),
        ("paid_at", "timestamp", False),
        ("amount", "float", True),
    ]
    assert struct.request_type is Payment
    made = msgspec.json.decode(b'{"cardId": "c", "paidAt": 5}', type=request_struct(struct.body))
    assert (made.card_id, made.paid_at, made.amount) == ("c", 5, None)


def test_cells_are_named_in_order():
    """One name a cell, over all tensors: one-hot cells by value, vectors and sequences by number."""
    made = spec(
        tensors={
            "a": Tensor(
                (c.numeric("x"), c.embedding("user.v", size=2), c.sequence("l", length=2, encoding="number"))
            ),
            "b": Tensor((c.categorical("s", encoding="onehot", vocabulary="v"),), "int64"),
        },
        vocabularies={"v": Vocabulary(("web", "app"), frozen=True, oov="last")},
    )
    assert made.names == ("x", "user.v_0", "user.v_1", "l_0", "l_1", "s=web", "s=app", "s=(other)")
    assert made.cell_names("b") == ("s=web", "s=app", "s=(other)")


def test_columns_are_split_between_context_candidates_and_both():
    """Whatever reads only the request is computed once, only the candidate when its row is encoded, the rest per pair."""
    made = spec(
        c.numeric("x"),
        c.numeric("user.n"),
        c.numeric("item.n"),
        c.hashed("sku", buckets=5),
        c.numeric("pair.n"),
        c.difference("x", "item.n"),
        c.dot("user.v", "item.v", size=4),
        c.elapsed("item.since"),
        candidate="item",
        event_time="at",
    )
    slots, columns = sections(made.body)
    assert columns == ["context", "context", "item", "item", "cross", "cross", "cross", "cross"]
    assert (slots["x"], slots["sku"], slots["item.n"], slots["pair.n"]) == (
        "context",
        "item",
        "item",
        "cross",
    )


def test_a_spec_without_anything_to_learn_is_fitted():
    """Only vocabularies that are not frozen, learned numbers and targets need a table."""
    frozen = {"v": Vocabulary(("a",), frozen=True)}
    assert spec(c.numeric("x", center=1.0), c.hashed("s", buckets=5)).is_fitted
    assert spec(c.categorical("s", vocabulary="v"), vocabularies=frozen).is_fitted
    for column in (
        c.numeric("x", center="mean"),
        c.numeric("x", clip="train"),
        c.categorical("s"),
        c.sequence("l", length=2),
    ):
        assert not spec(column).is_fitted
    assert not spec(c.categorical("s", encoding="target", vocabulary="v"), vocabularies=frozen).is_fitted


def test_a_key_that_names_a_field_twice_is_refused():
    """Memory for composite keys is planned by field."""
    with pytest.raises(SpecError, match="`pair` names a field twice"):
        spec(c.stored("pair.n"), entities={"pair": Entity(key=("user", "sku", "sku"))})


@pytest.mark.parametrize(
    "stored",
    [{"user.v": "str"}, {"user.v": "vector", "user.w": "float"}, {"user.v": "vector", "x.y": "?"}, {}],
)
def test_stored_columns_of_a_file_are_those_of_its_columns(stored):
    """The program reads the memory of a row as the file says; a vector read as text would end elsewhere."""
    made = FeatureSpec(
        request={"user": str},
        entities={"user": Entity(key=("user",), columns={"v": "vector"})},
        columns=[c.embedding("user.v", size=4, null=0.0)],
    )
    document = msgspec.json.decode(made.to_json()) | {"stored": stored}
    with pytest.raises(SpecError, match="stored columns"):
        FeatureSpec.from_json(msgspec.json.encode(document))


def test_a_default_that_no_int64_cell_takes_exactly_is_refused():
    """Numbers go through float64; raw integers do not."""
    for value in (2**53 + 1, 2**60, -(2**60)):
        with pytest.raises(SpecError, match="int64"):
            FeatureSpec(
                request={"n": int | None},
                tensors={"t": Tensor((c.numeric("n", null=value),), dtype="int64")},
            )
        FeatureSpec(
            request={"n": int | None}, tensors={"t": Tensor((c.raw("n", null=value),), dtype="int64")}
        )


def test_an_entitys_key_may_be_one_text():
    """`ri.Entity(key="sku")` names the field `sku`, not the letters of it."""
    spec = FeatureSpec(
        request={"sku": str},
        entities={"item": Entity(key="sku")},
        columns=[c.stored("item.price", unknown=0.0)],
    )
    assert spec.body.entities["item"].key == ("sku",)
