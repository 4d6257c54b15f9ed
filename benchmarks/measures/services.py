"""Figures beside services: a model server on loopback."""

from __future__ import annotations

from benchmarks import models
from benchmarks.harness import Case, alternate, ratio
from benchmarks.lab import Figures, Lab, measures
from benchmarks.measures.scores import check_fraud_answers
from benchmarks.workloads import FRAUD_LEAN


@measures("http_ort_p50", "http_ort_p99")
def http(lab: Lab) -> Figures:
    """The same bodies through FastAPI on loopback."""
    from benchmarks.peers import fastapi_app

    bodies = lab.fraud_bodies
    with fastapi_app.serve(models.gbdt(FRAUD_LEAN.name), lab.codes) as client:
        check_fraud_answers(lab, "FastAPI", client.post, bodies[:500])
        check_fraud_answers(lab, "library", lab.scorer.score_json, bodies[:500])
        times = alternate(
            [
                Case.over("library", lab.scorer.score_json, bodies),
                Case.over("FastAPI + uvicorn, loopback", client.post, bodies),
            ],
            lab.scaled(1.5),
        )
    peer, library = times["FastAPI + uvicorn, loopback"], times["library"]
    lab.peer("fraud-lean, bytes to bytes", peer, library)
    return {
        "http_ort_p50": ratio(peer, library, lower_is_better=False),
        "http_ort_p99": ratio(peer, library, quantile=0.99, lower_is_better=False),
    }
