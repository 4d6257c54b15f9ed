"""Answers into JSON."""

from __future__ import annotations

import msgspec

import retailinfer as ri
from benchmarks import measures, workloads
from benchmarks.conftest import Rotate, over
from benchmarks.measures import Lab


def test_encode_a_decision(lab: Lab, rotate: Rotate) -> None:
    """One Decision, as `score_json` writes it."""
    encode = msgspec.json.Encoder().encode
    decisions = [lab.scorer.score(struct) for struct in lab.fraud_structs[:1_000]]
    assert msgspec.json.decode(encode(decisions[3]), type=ri.Decision) == decisions[3]
    rotate(encode, over(decisions))


def test_encode_a_ranking_of_20(lab: Lab, rotate: Rotate) -> None:
    """One Ranking, as `rank_json` writes it."""
    encode = msgspec.json.Encoder().encode
    inputs = measures.checked_rankings(lab, workloads.N_CANDIDATES, n=3)
    rankings = [lab.ranker.rank(*pair, k=workloads.TOP_K) for pair in inputs.lists(range(200))]
    assert msgspec.json.decode(encode(rankings[3]), type=ri.Ranking) == rankings[3]
    rotate(encode, over(rankings))
