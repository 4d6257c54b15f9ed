"""From a score to an answer: the policy, and the whole call around the model."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.conftest import Rotate, over
from benchmarks.harness import check_answers
from benchmarks.measures import Lab
from benchmarks.peers.handwritten import action
from retailinfer.pipeline import action_of


def test_decide(lab: Lab, rotate: Rotate) -> None:
    """The policy's action for a score, as tables are decided; single requests compare in the engine, see the stages."""
    decide = partial(action_of, lab.scorer.policy)
    scores = [float(score) for score in np.linspace(0, 1, 1_001, dtype=np.float32)]
    check_answers("actions", (decide(score, None) for score in scores), map(action, scores))
    rotate(lambda score: decide(score, None), over(scores))


def test_score_a_struct(lab: Lab, rotate: Rotate) -> None:
    """Struct -> Decision: all but JSON."""
    score = lab.scorer.score
    answers = (np.float32(score(struct).score) for struct in lab.fraud_structs)
    check_answers("scores", answers, lab.fraud_scores)
    rotate(score, over(lab.fraud_structs))


def test_score_json(lab: Lab, rotate: Rotate) -> None:
    """Bytes -> bytes."""
    rotate(lab.scorer.score_json, over(lab.fraud_bodies))
