"""From score to action: float32 thresholds, segments, review, scores outside the policy; the same through every door."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import releases
from hypothesis import given
from hypothesis import strategies as st

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.errors import SchemaMismatchError, ScoreError, SpecError
from retailinfer.pipeline import action_of

FIELDS = {"value": float, "country": str | None, "flag": float | None}


def scorer_with(policy, *, review="use", golden=None):
    """Score = value. `flag` missing asks for review, where the policy has one."""
    columns = [c.numeric("value"), c.numeric("flag", null=0.0 if review == "use" else review)]
    model = releases.first_column(2) if review == "use" else rounded()
    return releases.scorer_of(
        releases.packed(
            "policy", model, ri.FeatureSpec(request=FIELDS, columns=columns), policy=policy, golden=golden
        )
    )


def rounded():
    """Score = the first column, out of trees, so that the missing flag may be NaN."""
    from onnx import TensorProto, helper

    lows = [0.0, 0.2, 0.4, 0.6, 0.8]
    n = len(lows)
    inner = list(range(n - 1))
    leaves = [n - 1 + i for i in range(n)]
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        nodes_treeids=[0] * (2 * n - 1),
        nodes_nodeids=[*inner, *leaves],
        nodes_featureids=[0] * (2 * n - 1),
        nodes_modes=["BRANCH_LT"] * (n - 1) + ["LEAF"] * n,
        nodes_values=[*lows[1:], *([0.0] * n)],
        nodes_truenodeids=[*leaves[: n - 1], *([0] * n)],
        nodes_falsenodeids=[*inner[1:], leaves[-1], *([0] * n)],
        target_treeids=[0] * n,
        target_nodeids=leaves,
        target_ids=[0] * n,
        target_weights=lows,
        n_targets=1,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def actions(scorer, *requests):
    """Actions through every door, which must agree."""
    requests = [{"country": None, "flag": 1.0} | request for request in requests]
    alone = [scorer.score(r).action for r in requests]
    assert [
        msgspec.json.decode(scorer.score_json(msgspec.json.encode(r)))["action"] for r in requests
    ] == alone
    assert [d.action for d in scorer.score_batch(requests)] == alone
    pa = pytest.importorskip("pyarrow")
    schema = pa.schema([("value", pa.float64()), ("country", pa.string()), ("flag", pa.float64())])
    table = scorer.score_table(pa.Table.from_pylist(requests, schema=schema))
    assert table["action"].to_pylist() == alone
    return alone


def next_float32(x, steps):
    """The float32 some steps further."""
    x = np.float32(x)
    for _ in range(abs(steps)):
        x = np.nextafter(x, np.float32(math.copysign(np.inf, steps)), dtype=np.float32)
    return float(x)


@pytest.mark.parametrize("low", [0.1, 0.5, 0.92, 1 / 3, 1e-30, 16777216.0, 0.30000000000000004])
def test_the_lower_bound_belongs_to_its_band_to_the_last_bit(low):
    """One float32 below is the band below; what rounds to the threshold is in the band."""
    scorer = scorer_with(ri.Policy([("low", -1.0), ("high", low)]))
    values = [next_float32(low, steps) for steps in (-2, -1, 0, 1, 2)]
    assert actions(scorer, *[{"value": v} for v in values]) == ["low", "low", "high", "high", "high"]
    # the double itself rounds to the same float32 as the threshold does
    assert actions(scorer, {"value": low}) == ["high"]


def test_negative_zero_is_not_below_zero():
    """-0.0 equals 0.0, as numbers do."""
    assert actions(scorer_with(ri.Policy([("only", 0.0)])), {"value": -0.0}, {"value": 0.0}) == [
        "only",
        "only",
    ]


def test_a_score_below_the_lowest_band_is_an_error_and_no_guess():
    """The request is fine, the policy has no answer: ScoreError, in a batch in its row."""
    scorer = scorer_with(ri.Policy([("approve", 0.0), ("decline", 0.5)]))
    below = {"value": next_float32(0.0, -1), "country": None, "flag": 1.0}
    good = below | {"value": 0.7}
    for call in (
        lambda: scorer.score(below),
        lambda: scorer.score_json(msgspec.json.encode(below)),
        lambda: scorer.score_batch([good, below]),
    ):
        with pytest.raises(ScoreError, match="below the policy's lowest band"):
            call()
    answers = scorer.score_batch([good, below, good], errors="row")
    assert [getattr(a, "action", type(a).__name__) for a in answers] == ["decline", "ScoreError", "decline"]
    assert "$[1]" in str(answers[1])
    pa = pytest.importorskip("pyarrow")
    schema = pa.schema([("value", pa.float64()), ("country", pa.string()), ("flag", pa.float64())])
    with pytest.raises(ScoreError, match=r"\$\[1\]"):
        scorer.score_table(pa.Table.from_pylist([good, below], schema=schema))


def test_bands_from_minus_infinity_take_every_score():
    """The lowest float32 there is has an action, and it survives the release's JSON."""
    scorer = scorer_with(ri.Policy([("low", -math.inf), ("high", 0.0)]))
    assert actions(scorer, {"value": -3.4028234663852886e38}, {"value": 1.0}) == ["low", "high"]
    assert scorer.policy.to_json() == ri.Policy([("low", -math.inf), ("high", 0.0)]).to_json()


@pytest.fixture(scope="module")
def by_country():
    """Other bands for some countries."""
    policy = ri.Policy(
        [("approve", 0.0), ("review", 0.5), ("decline", 0.9)],
        segment_by="country",
        segments={
            "NL": [("approve", 0.0), ("decline", 0.2)],
            "": [("decline", -1.0)],
            "日本": [("review", 0.0)],
            "a\0b": [("approve", 0.0)],
        },
    )
    return scorer_with(policy)


def test_segments_have_bands_of_their_own(by_country):
    """A value without a segment, null and unknown text take the common bands; texts are compared whole."""
    requests = [
        {"value": 0.6, "country": "NL"},
        {"value": 0.6, "country": "DE"},
        {"value": 0.6, "country": None},
        {"value": 0.6, "country": ""},
        {"value": 0.6, "country": "日本"},
        {"value": 0.6, "country": "NL\0"},
        {"value": 0.95, "country": "a\0b"},
        {"value": 0.95, "country": "a"},
        {"value": 0.2, "country": "NL"},
        {"value": 0.19, "country": "NL"},
    ]
    want = [
        "decline",
        "review",
        "review",
        "decline",
        "review",
        "review",
        "approve",
        "decline",
        "decline",
        "approve",
    ]
    assert actions(by_country, *requests) == want


def test_a_score_below_the_bands_of_its_segment_is_an_error(by_country):
    """Although the common bands, or another segment's, would have it."""
    assert actions(by_country, {"value": -0.5, "country": ""}) == ["decline"]
    with pytest.raises(ScoreError):
        by_country.score({"value": -0.5, "country": "NL", "flag": 1.0})


def test_a_column_that_asks_for_review_gets_it_whatever_the_score():
    """In a single decision, a batch and a table; the next request is decided by its score again."""
    policy = ri.Policy([("approve", 0.0), ("manual", 0.5), ("decline", 0.8)], review="manual")
    scorer = scorer_with(policy, review="review")
    requests = [{"value": v, "flag": f} for v in (0.1, 0.9) for f in (1.0, None, 1.0)]
    assert actions(scorer, *requests) == ["approve", "manual", "approve", "decline", "manual", "decline"]
    assert scorer.score({"value": 0.1, "country": None, "flag": None}).missing == ("flag",)


def test_review_below_the_lowest_band_is_still_review():
    """Nobody asks the score then."""
    pa = pytest.importorskip("pyarrow")
    golden = pa.table({"value": [0.6, 0.9], "country": ["a", "b"], "flag": [1.0, 1.0]})
    policy = ri.Policy([("approve", 0.5), ("review", 0.8)])
    scorer = scorer_with(policy, review="review", golden=golden)
    assert actions(scorer, {"value": 0.1, "flag": None}) == ["review"]
    with pytest.raises(ScoreError):
        scorer.score({"value": 0.1, "country": None, "flag": 1.0})


@pytest.mark.parametrize("policy", [None, ri.Policy([("approve", 0.0), ("decline", 0.5)])])
def test_review_without_an_action_for_it_does_not_pack(policy):
    """A column may not ask for what the policy lacks."""
    with pytest.raises(SchemaMismatchError, match="review"):
        scorer_with(policy, review="review")


def test_without_a_policy_there_is_no_action():
    """Action None, and no action column in a table."""
    pa = pytest.importorskip("pyarrow")
    scorer = releases.scorer_of(releases.value_files())
    assert scorer.score({"value": 1.0}).action is None
    assert scorer.score_batch([{"value": 1.0}])[0].action is None
    assert scorer.score_table(pa.table({"value": [1.0]})).column_names == ["score"]


@pytest.mark.parametrize(
    "bands",
    [
        [],
        [("a", 0.5), ("b", 0.5)],
        [("a", 0.5), ("b", 0.4)],
        [("a", 0.1), ("b", 0.1 + 1e-12)],  # the same float32
        [("a", math.nan)],
        [("a", math.inf)],
        [("a", 1e39)],
        [("", 0.0)],
        [(None, 0.0)],
        [("a", "x")],
        [("a", None)],
        ["ab"],
        [("a",)],
        [("a", 0.0, 1)],
        [("a", [0.0])],
    ],
)
def test_bands_that_mean_nothing_are_refused(bands):
    """Before anything is packed."""
    with pytest.raises(SpecError):
        ri.Policy(bands)


@given(
    lows=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=6, unique=True),
    values=st.lists(st.floats(-2e6, 2e6), max_size=6),
)
def test_the_action_is_the_last_band_that_the_score_reaches(lows, values):
    """For random bands and scores, right at, above and below each threshold."""
    bands = sorted(lows)
    policy = ri.Policy([(f"a{i}", low) for i, low in enumerate(bands)])
    for value in [*values, *(next_float32(low, step) for low in bands for step in (-1, 0, 1))]:
        reached = [f"a{i}" for i, low in enumerate(bands) if np.float32(value) >= np.float32(low)]
        try:
            found = action_of(policy, value, None)
        except ScoreError:
            found = None
        assert found == (reached[-1] if reached else None)
