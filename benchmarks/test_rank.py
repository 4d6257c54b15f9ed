"""Ranking 500 candidates, from a list and from JSON."""

from __future__ import annotations

from typing import Any

from benchmarks import measures, workloads
from benchmarks.conftest import Rotate
from benchmarks.measures import Lab


def test_rank_500_from_a_list(lab: Lab, rotate: Rotate) -> None:
    """Strings that were never hashed."""
    inputs = measures.checked_rankings(lab, workloads.N_CANDIDATES, n=3)
    ranker = lab.ranker

    def rank(request: tuple[dict[str, Any], list[str]]) -> None:
        ranker.rank(request[0], request[1], k=workloads.TOP_K)

    rotate(rank, inputs.lists, block=20)


def test_rank_500_from_json(lab: Lab, rotate: Rotate) -> None:
    """Candidates scanned in place."""
    inputs = measures.checked_rankings(lab, workloads.N_CANDIDATES, n=3)
    rotate(lab.ranker.rank_json, inputs.bodies, block=20)
