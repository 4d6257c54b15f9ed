"""fallback.json, and the rules that a ladder is held to when it is packed."""

from __future__ import annotations

from typing import Any

import pytest
import releases
from hypothesis import given
from hypothesis import strategies as st
from small_releases import logistic

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.errors import ConfigError, ManifestError, SpecError
from retailinfer.release.bundle import read_bundle
from retailinfer.release.fallback import Fallback

POLICY = ri.Policy([("approve", 0.0), ("review", 0.5), ("decline", 0.9)])
NO_REVIEW = ri.Policy([("approve", 0.0), ("decline", 0.9)])
SPEC = ri.FeatureSpec(
    request={"card": str, "shop": str, "amount": float, "known": bool, "n": int, "at": ri.Timestamp},
    event_time="at",
    entities={"card": "card", "shop": "shop"},
    columns=[c.numeric("amount"), c.numeric("n")],
)
RANKS = ri.FeatureSpec(
    request={"user": str, "sku": str, "amount": float, "n": int},
    entities={"item": "sku"},
    candidate="item",
    columns=[c.numeric("amount"), c.numeric("n")],
)
WITHOUT = ri.FeatureSpec(request={"amount": float, "n": int}, columns=[c.numeric("amount"), c.numeric("n")])


def packed(**given: Any) -> dict[str, bytes]:
    """A release with a ladder."""
    spec = given.pop("features", SPEC)
    ladder = tuple(
        rung if isinstance(rung, ri.Rung) else ri.Rung(kind=rung) for rung in given.pop("ladder", ("static",))
    )
    more = {name: given.pop(name, None) for name in ("use_case", "deadline_ms", "p50_ms", "p99_ms")}
    contract = ri.Contract(ladder=ladder, stages_ms=given.pop("stages_ms", {}), **more)
    options = {"policy": POLICY, "fallback": ri.Fallback(score=0.6)} | given
    return releases.packed("shop", logistic(2), spec, contract=contract, **options)


def test_fallback_is_a_file_of_the_release():
    """It is listed, hashed and read back as it was given."""
    fallback = ri.Fallback(
        score=0.6,
        action="review",
        rules=[("amount > 500 and known == false", "decline"), ("n >= 3", "approve")],
    )
    bundle = read_bundle(packed(fallback=fallback))
    assert bundle.manifest.file_of("fallback") == "fallback.json"
    found = bundle.read("fallback", Fallback.from_json)
    assert found is not None
    assert found.body == fallback.body
    assert repr(found) == "<Fallback score=0.6, action=review, 2 rules>"


def test_first_rule_that_holds_decides():
    """Nulls, absent fields and values of other types hold in no rule."""
    fallback = ri.Fallback(
        action="review", rules=[("amount > 500 and known == false", "decline"), ("card != 'c1'", "approve")]
    )
    seen = [
        fallback.action_for(row.get)
        for row in (
            {"amount": 501.0, "known": False, "card": "c2"},
            {"amount": 501.0, "known": True, "card": "c2"},
            {"amount": None, "known": False, "card": "c1"},
            {"amount": "many", "known": False},
            {},
        )
    ]
    assert seen == ["decline", "approve", "review", "review", "review"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"score": float("nan")}, "finite score"),
        ({"score": "high"}, "no fallback"),
        ({"action": ""}, "no fallback"),
        ({"rules": ["ab"]}, "Expected comparisons"),
        ({"rules": 3}, "pairs"),
        ({"rules": [("amount >", "review")]}, "Expected comparisons"),
        ({"rules": [("amount > 1", 5)]}, "no fallback"),
        ({"rules": [("amount > 1", "review")] * 65}, "no fallback"),
        ({"popular": ["a", 1]}, "one type"),
        ({"popular": ["a", "a"]}, "once"),
        ({"popular": [1.5]}, "no fallback"),
        ({"popular": "abc"}, "Expected popular"),
    ],
)
def test_fallback_that_means_nothing_is_refused(given: dict[str, Any], says: str):
    """Each argument is checked when it is made."""
    with pytest.raises(SpecError, match=says):
        ri.Fallback(**given)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_bytes_that_are_no_fallback_are_a_spec_error(data: bytes):
    """Whatever stands in the file, reading it gives a fallback or a SpecError."""
    try:
        found = Fallback.from_json(data)
    except SpecError:
        return
    assert Fallback.from_json(found.to_json()).body == found.body


def test_broken_file_of_a_release_is_the_releases_fault():
    """Reading it through the bundle names the file."""
    files = packed()
    bundle = read_bundle(files)
    bundle.files["fallback.json"] = b'{"score": 1e999}'
    with pytest.raises(ManifestError, match=r"fallback\.json"):
        bundle.read("fallback", Fallback.from_json)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"ladder": ["static", "previous"]}, "in this order"),
        ({"ladder": ["static", "static"]}, "at most once"),
        ({"ladder": ["release", "static"]}, "lists `release`"),
        ({"fallback": None}, "nothing to answer with"),
        ({"fallback": ri.Fallback(rules=[("n > 1", "review")])}, "neither a score nor an action"),
        ({"fallback": ri.Fallback(action="dance")}, "none of the policy's"),
        ({"fallback": ri.Fallback(score=-1.0)}, "no action for it"),
        ({"fallback": ri.Fallback(score=0.1, rules=[("colour == 'red'", "review")])}, "colour"),
        ({"fallback": ri.Fallback(score=0.1, rules=[("at > 5", "review")])}, "timestamp"),
        ({"fallback": ri.Fallback(score=0.1, rules=[("amount == 'x'", "review")])}, "of type float"),
        ({"fallback": ri.Fallback(score=0.1, rules=[("n > true", "review")])}, "of type int"),
        ({"fallback": ri.Fallback(score=0.1, rules=[("known == 1", "review")])}, "of type bool"),
        ({"fallback": ri.Fallback(score=0.1, popular=["a"])}, "ranks nothing"),
        ({"ladder": [ri.Rung(kind="static", decisions=("dance",))]}, "no action of the policy"),
        ({"ladder": [ri.Rung(kind="static", entity="card")]}, "belongs to last_score"),
        ({"ladder": ["last_score"]}, "Expected entity="),
        (
            {"ladder": [ri.Rung(kind="static", max_ms=21)], "deadline_ms": 20},
            "at most the contract's deadline_ms",
        ),
        ({"ladder": [ri.Rung(kind="last_score", entity="till")]}, "Expected entity="),
        ({"ladder": ["last_score"], "features": WITHOUT}, "declare entities"),
        ({"use_case": "fraud", "policy": NO_REVIEW}, "no review action"),
        (
            {"use_case": "fraud", "ladder": [ri.Rung(kind="static", decisions=("approve", "review"))]},
            "may decide `review` only",
        ),
        (
            {
                "use_case": "fraud",
                "ladder": [ri.Rung(kind="last_score", entity="card", decisions=("approve",))],
            },
            "may decide `review` only",
        ),
        ({"features": RANKS, "ladder": ["remote"], "policy": None}, "ranks candidates"),
        (
            {"features": RANKS, "ladder": ["static"], "policy": None, "fallback": ri.Fallback(score=1)},
            "popular list",
        ),
        ({"features": RANKS, "policy": None, "fallback": ri.Fallback(popular=[1])}, "of type str"),
        (
            {"features": RANKS, "policy": None, "use_case": "fraud", "fallback": ri.Fallback(popular=["a"])},
            "ranks",
        ),
        ({"features": None}, "takes arrays"),
        ({"deadline_ms": 5, "p99_ms": 6}, "p99_ms of at most deadline_ms"),
        ({"p50_ms": 5, "p99_ms": 4}, "p50_ms of at most p99_ms"),
        ({"stages_ms": {"rum": 1}}, "stages_ms names the stage 'rum'"),
    ],
)
def test_ladder_that_cannot_mean_anything_is_not_packed(given: dict[str, Any], says: str):
    """Order, decisions, entities, rules and the use case are held against spec and policy before anything is written."""
    with pytest.raises(SpecError, match=says):
        packed(**given)


def test_fallback_of_another_type_is_refused():
    """Only what was checked when it was made is taken."""
    with pytest.raises(ConfigError, match=r"ri\.Fallback"):
        packed(fallback={"score": 0.5})


@pytest.mark.parametrize(
    "given",
    [
        {
            "ladder": ["previous", "remote", ri.Rung(kind="last_score", entity="card"), "static"],
            "use_case": "fraud",
        },
        {"ladder": [ri.Rung(kind="previous", decisions=("approve", "review"))]},
        {
            "features": RANKS,
            "policy": None,
            "fallback": ri.Fallback(popular=["a", "b"]),
            "use_case": "recommendation",
        },
        {"ladder": []},
    ],
)
def test_ladders_that_mean_something_are_packed(given: dict[str, Any]):
    """And stand in the contract of the release."""
    assert b"ladder" in packed(**given)["contract.json"] or given["ladder"] == []
