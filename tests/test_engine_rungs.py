"""What other rungs of the ladder take from the engine: prepared inputs, decisions for other scores, static rankings."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest
import releases
from releases import payment
from test_engine_events import FREE, counting, n_before  # noqa: F401 - a fixture
from test_serving_tables import Held, files, table_of

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.contracts import Decision, Ranking
from retailinfer.errors import ConfigError, FeatureError, LimitError, RequestError, ScoreError

CONTEXT = {"user": "u", "boost": 1.0}


def rescored(scorer, request, **options):
    """The decision for what the release's own models say of the prepared inputs."""
    engine = scorer._live.engine
    prepared = engine.prepare(request, **options)
    score = scorer._live.pipeline.chain_scores(scorer._live.pipeline.inputs, prepared.inputs)[0]
    return engine.finish(prepared, float(score), release="remote:m", rung=2, request_id="r-1")


# ---- prepare and finish ----------------------------------------------------------------------------------------------


def test_prepared_request_gets_the_same_decision_from_the_same_score():
    """Inputs have the bits of the release's own, and the policy is applied the same way; only who answered differs."""
    scorer = releases.payment_scorer()
    rng = random.Random(3)
    for _ in range(200):
        request = payment(amount=rng.lognormvariate(3, 2), rate=rng.choice([None, rng.random()]))
        want = scorer.score(request, request_id="r-1")
        got = rescored(scorer, request)
        assert got == msgspec.structs.replace(want, release="remote:m", rung=2)


def test_prepared_inputs_are_what_the_models_take():
    """One array an input, one row each, of its dtype and shape; they are the caller's own."""
    scorer = releases.payment_scorer()
    prepared = scorer._live.engine.prepare(payment())
    want = scorer._live.engine.vectorize(payment())
    assert [a.shape[0] for a in prepared.inputs] == [1] * len(want)
    assert [a.tobytes() for a in prepared.inputs] == [a.tobytes() for a in want]
    prepared.inputs[0][:] = 7
    assert scorer._live.engine.vectorize(payment())[0].tobytes() == want[0].tobytes()
    assert prepared.request == payment()


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_scores_that_are_none_are_refused(score):
    """Also what is finite and does not fit into float32."""
    scorer = releases.payment_scorer()
    prepared = scorer._live.engine.prepare(payment())
    with pytest.raises(ScoreError, match="finite"):
        scorer._live.engine.finish(prepared, score, release="remote:m", rung=2)
    with pytest.raises(ScoreError):
        scorer._live.engine.finish_static(None, None, score, release="x:1", rung=4)


def test_scores_out_of_the_models_range_are_refused():
    """The release says that its last operator is a sigmoid; 1.5 is no such score, whoever gives it."""
    spec = ri.FeatureSpec(request={"a": float}, columns=[c.numeric("a")])
    scorer = releases.scorer_of(releases.packed("p", releases.weighted(1.0, then=("Sigmoid",)), spec))
    prepared = scorer._live.engine.prepare({"a": 0.0})
    assert scorer._live.engine.finish(prepared, 0.5, release="remote:m", rung=2).score == 0.5
    for score in (1.5, -0.1):
        with pytest.raises(ScoreError, match="from 0"):
            scorer._live.engine.finish(prepared, score, release="remote:m", rung=2)


def test_prepared_request_says_what_was_stale_missing_and_counted(counting):  # noqa: F811
    """As a decision would; observed once, whoever answers."""
    scorer, _ = counting
    prepared = scorer._live.engine.prepare(FREE, observe=True)
    assert prepared.counted
    assert n_before(scorer) == 1
    assert not scorer._live.engine.prepare(FREE).counted
    assert n_before(scorer) == 1
    source = Held(held=True)
    table = table_of(source=source, timeout_ms=1)
    tables = releases.scorer_of(files(), store=ri.Store(tables={"card": table}))
    prepared = tables._live.engine.prepare({"card": "a"})
    assert (prepared.missing, prepared.fresh) == (("card.mean", "card.n"), False)
    decision = tables._live.engine.finish(prepared, 0.25, release="remote:m", rung=2)
    assert (decision.missing, decision.score, decision.action) == (("card.mean", "card.n"), 0.25, None)
    source.go.set()


def test_a_bad_request_is_refused_when_it_is_prepared():
    """And no memory is lost."""
    scorer = releases.payment_scorer()
    for _ in range(20):
        with pytest.raises(FeatureError):
            scorer._live.engine.prepare(payment(amount="x"))
    with pytest.raises(ConfigError):
        scorer._live.engine.prepare(payment(), observe=True)


# ---- static decisions ------------------------------------------------------------------------------------------------


def test_static_decision_has_an_action_of_the_policy_or_one_of_its_score():
    """An action without a score gets the lowest score of its band, so that both still agree."""
    engine = releases.payment_scorer()._live.engine
    made = engine.finish_static(payment(), "review", None, release="pay:1", rung=4, request_id="r")
    assert made == Decision("r", 0.5, "review", release="pay:1", rung=4, trace=("release: unsigned",))
    assert engine.finish_static(None, None, 0.95, release="pay:1", rung=4).action == "decline"
    assert engine.finish_static(None, "approve", None, release="pay:1", rung=4).score == 0.0
    assert engine.finish_static(None, "review", 0.95, release="pay:1", rung=4).action == "review"
    with pytest.raises(ConfigError, match="approve, review, decline"):
        engine.finish_static(None, "wave through", None, release="pay:1", rung=4)
    with pytest.raises(ConfigError, match="a score, an action, or both"):
        engine.finish_static(None, None, None, release="pay:1", rung=4)


def test_static_score_is_decided_by_the_segment_of_the_request():
    """As the release would."""
    spec = ri.FeatureSpec(request={"a": float, "kind": str}, columns=[c.numeric("a")])
    policy = ri.Policy(
        [("approve", float("-inf")), ("review", 0.5)],
        segment_by="kind",
        segments={"vip": [("approve", float("-inf")), ("review", 0.9)]},
    )
    scorer = releases.scorer_of(releases.packed("seg", releases.weighted(1.0), spec, policy=policy))
    engine = scorer._live.engine
    for kind in ("vip", "new"):
        request = {"a": 0.7, "kind": kind}
        static = engine.finish_static(request, None, 0.7, release="s:1", rung=4)
        assert static.action == scorer.score(request).action
    assert engine.finish_static(None, None, 0.7, release="s:1", rung=4).action == "review"
    assert engine.finish_static(None, "approve", None, release="s:1", rung=4).score == 0.0


# ---- static rankings -------------------------------------------------------------------------------------------------


def test_static_ranking_follows_the_list_and_leaves_out_what_a_ranking_would():
    """Popular first, then as given; excluded, unavailable and unknown ones are named, and doubles count once."""
    ranker = releases.item_ranker()
    engine = ranker._live.engine
    ids = [f"sku-{i:03d}" for i in range(40)] + ["sku-003", "nobody"]
    rule = ranker._live.rules("item.stock > 0")
    exclude = ["sku-001", "sku-005"]
    real = ranker.rank(CONTEXT, ids, 50, available="item.stock > 0", exclude=exclude)
    order = {"sku-020": 0, "sku-007": 1, "sku-001": 2, "sku-019": 3}
    made = engine.rank_static(
        ids, 50, available=rule, exclude=exclude, order=order, release="i:1", rung=4, request_id="r"
    )
    assert isinstance(made, Ranking)
    assert made.suppressed == real.suppressed
    assert set(made.items) == set(real.items)
    kept = [key for key in dict.fromkeys(ids) if key in set(real.items)]
    popular = [key for key in order if key in kept]
    assert made.items == popular + [key for key in kept if key not in order]
    assert made.scores[0] == 1.0
    assert made.scores == sorted(made.scores, reverse=True)
    assert min(made.scores) > 0.0
    assert [np.float32(s) for s in made.scores] == made.scores
    assert (made.id, made.release, made.rung) == ("r", "i:1", 4)
    few = engine.rank_static(ids, 3, available=rule, exclude=exclude, order=order, release="i:1", rung=4)
    assert (few.items, few.scores) == (made.items[:3], made.scores[:3])
    assert engine.rank_static([], 5, order=order, release="i:1", rung=4).items == []


def test_static_ranking_refuses_what_a_ranking_refuses():
    """Ids of another type, more than may be, and a k that is none."""
    engine = releases.item_ranker()._live.engine
    for ids, k, error in (
        (["sku-001", 3], 5, FeatureError),
        (["sku-001"], 0, FeatureError),
        (["sku-001"] * 20_000, 5, LimitError),
    ):
        with pytest.raises(error):
            engine.rank_static(ids, k, order={}, release="i:1", rung=4)


# ---- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "msgpack"])
def test_bytes_are_decoded_and_encoded_as_by_the_door(kind):
    """The same request, the same bytes, the same refusals."""
    scorer = releases.payment_scorer()
    engine, codec = scorer._live.engine, getattr(msgspec, kind)
    request = engine.decode(codec.encode(payment()), kind)
    assert request == scorer.request_type(**codec.decode(codec.encode(payment())))
    answer = scorer.score(request)
    assert codec.decode(engine.encode(answer, kind), type=Decision) == answer
    with pytest.raises(RequestError):
        engine.decode(b"\xc1", kind)
    for call in (lambda: engine.decode(b"", "xml"), lambda: engine.encode(answer, "xml")):
        with pytest.raises(ConfigError, match="json"):
            call()


def test_candidates_of_a_decoded_ranking_are_a_list_of_their_own():
    """As `rank_json` would read them."""
    engine = releases.item_ranker()._live.engine
    body = msgspec.json.encode({"context": CONTEXT, "candidates": ["sku-001", "b\u00e4r"], "k": 2})
    assert engine.ids_of(engine.decode(body, "json")) == ["sku-001", "b\u00e4r"]
    bad = engine.decode(msgspec.json.encode({"context": CONTEXT, "candidates": ["a", 3]}), "json")
    with pytest.raises(RequestError):
        engine.ids_of(bad)
    with pytest.raises(ConfigError):
        engine.decode(b"", "msgpack")
