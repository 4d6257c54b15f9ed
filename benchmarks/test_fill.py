"""Filling the 40 columns of fraud-lean from one request."""

from __future__ import annotations

from benchmarks.conftest import Rotate, over
from benchmarks.harness import check_answers
from benchmarks.measures import Lab


def test_fill_40_columns_from_a_struct(lab: Lab, rotate: Rotate) -> None:
    """The way of `score_json` after decoding."""
    engine = lab.scorer._live.engine
    got = (engine.vectorize(struct)[0][0] for struct in lab.fraud_structs)
    check_answers("fill from Structs", got, lab.fraud_matrix)
    rotate(engine.fill, over(lab.fraud_structs))


def test_fill_40_columns_from_a_dict(lab: Lab, rotate: Rotate) -> None:
    """The way of `score(dict)`."""
    engine = lab.scorer._live.engine
    got = (engine.vectorize(row)[0][0] for row in lab.fraud_rows)
    check_answers("fill from dicts", got, lab.fraud_matrix)
    rotate(engine.fill, over(lab.fraud_rows))
