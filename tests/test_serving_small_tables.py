"""Tables that hold fewer rows than a call needs: every row that its source had is read before it has to go again."""

from __future__ import annotations

import pytest
import releases

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.clock import ManualClock

SPEC = ri.FeatureSpec(
    request={"card": str},
    entities={"card": "card"},
    columns=[c.stored("card.mean", unknown=-2.0, null=-1.0, on_unavailable=-4.0)],
)


class Everything:
    """A source that has every card, and counts its calls."""

    waits = False

    def __init__(self):
        self.calls = 0

    def fetch(self, keys, *, timeout_s):
        self.calls += 1
        return {key: {"mean": float(key[1:])} for key in keys}


@pytest.mark.parametrize("policy", ["probation", "lru"])
@pytest.mark.parametrize(("max_rows", "n"), [(1_000, 256), (1_000, 900), (100, 256), (20, 600), (1, 5)])
def test_batch_larger_than_the_table_reads_every_row_that_the_source_had(policy, max_rows, n):
    """Whatever the table held before, and however small it is, no fetched row is answered as unavailable."""
    source = Everything()
    table = ri.FeatureTable({"mean": "f64"}, "str", max_rows=max_rows, policy=policy, source=source)
    packed = releases.packed("cards", releases.weighted(1.0), SPEC)
    scorer = releases.scorer_of(packed, store=ri.Store(tables={"card": table}))
    for _ in range(2):  # twice: rows that come again are protected, and leave new ones the least room
        for i in range(max_rows):
            scorer.score({"card": f"c{i}"})
    before = source.calls
    answers = scorer.score_batch([{"card": f"c{10_000 + i}"} for i in range(n)])
    assert [d.score for d in answers] == [10_000.0 + i for i in range(n)]
    assert scorer.freshness.fresh == scorer.freshness.answers
    room = max_rows if policy == "lru" else max(1, max_rows // 16)
    assert source.calls - before <= n // min(room, 512) + 2


def test_moment_that_a_caller_tells_gives_up_no_state():
    """score(at=) far ahead of the clock reads its moment, and takes nothing away from entities that live now."""
    clock = ManualClock(wall_ns=1_736_000_000 * 10**9)
    spec = ri.FeatureSpec(
        request={"card": str},
        entities={"card": "card"},
        streams={"payment": None},
        columns=[c.window("card", "count", on="payment", over="1h")],
    )
    store = ri.Store(windows=ri.Windows.memory(clock=clock), clock=clock)
    scorer = releases.scorer_of(releases.packed("velocity", releases.weighted(1.0), spec), store=store)
    clock.advance_ns(2 * 3600 * 10**9)
    for i in range(10):
        scorer.score({"card": f"c{i}"}, observe=True)
    for i in range(8):
        scorer.score({"card": f"later{i}"}, observe=True, at=1_780_000_000)
    assert [scorer.score({"card": f"c{i}"}).score for i in range(10)] == [2.0] * 10
