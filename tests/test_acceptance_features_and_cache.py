"""Acceptance of features and cache (cases 20 to 24): stale values and clocks, floods of keys, collisions, other schemas.

The parts have closer tests of their own (feature tables, read-through, windows); here each case stands once, by its number.
"""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
import releases

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.clock import ManualClock
from retailinfer.errors import BundleError, CallerError, RetailInferError

SPEC = ri.FeatureSpec(
    request={"card": str},
    entities={"card": "card"},
    columns=[
        c.stored("card.mean", max_age="60s", unknown=-2.0, on_stale=-3.0, on_unavailable=-4.0, null=-1.0),
    ],
)
DAY_NS = 86_400 * 10**9


def scorer_over(table, clock=None):
    """A scorer whose score is the card's mean."""
    packed = releases.packed("cards", releases.weighted(1.0), SPEC)
    return releases.scorer_of(packed, store=ri.Store(tables={"card": table}, clock=clock))


def test_case_20_stale_value_takes_its_declared_default_and_is_told():
    """Beyond the limit of its age, or of its table's time to live, a value is replaced and listed."""
    clock = ManualClock()
    table = ri.FeatureTable({"mean": "f64"}, "str", ttl="300s", jitter=0.0, clock=clock)
    table.put("a", {"mean": 7.0})
    scorer = scorer_over(table, clock)
    assert (scorer.score({"card": "a"}).score, scorer.score({"card": "a"}).stale) == (7.0, ())
    clock.advance_ns(61 * 10**9)
    found = scorer.score({"card": "a"})
    assert (found.score, found.stale) == (-3.0, ("card.mean",))


@pytest.mark.parametrize("step_ns", [-DAY_NS, -1, 0, 59 * 10**9])
def test_case_20_no_age_is_negative_when_clocks_step_or_rows_come_from_the_future(step_ns):
    """A clock that steps back, and a row dated tomorrow, make a value young, never anything else."""
    clock = ManualClock(wall_ns=1_800_000_000 * 10**9)
    table = ri.FeatureTable({"mean": "f64"}, "str", updated_at="at", clock=clock)
    table.put("now", {"mean": 7.0, "at": 1_800_000_000})
    table.put("tomorrow", {"mean": 8.0, "at": 1_800_000_000 + 86_400})
    scorer = scorer_over(table, clock)
    clock.step_wall_ns(step_ns)
    assert scorer.score({"card": "now"}).score == 7.0
    assert scorer.score({"card": "tomorrow"}).score == 8.0
    ages = table.gather(["now", "tomorrow"], ["mean"]).age_s
    assert (ages >= 0).all()


def test_case_21_flood_of_keys_stays_under_the_cap_and_leaves_the_hot_set():
    """Nine keys that never return for each that does do not push out what is asked for again and again."""
    hot, cold = 2_000, 198_000
    table = ri.FeatureTable({"x": "f64"}, "int", max_rows=int(1.2 * hot))
    rng = np.random.default_rng(1)
    ranks = np.arange(1, hot + 1)
    asked = rng.choice(ranks, cold // 9, p=(1 / ranks) / (1 / ranks).sum())
    limit = table.stats.max_bytes

    def use(keys):
        hits = 0
        for key in keys.tolist():
            if table.lookup(key) is None:
                table.put(key, {"x": 1.0})
            else:
                hits += 1
        return hits / len(keys)

    use(asked)
    alone = use(asked)
    flood, beside = np.arange(10**9, 10**9 + cold).reshape(-1, 9), 0
    for stranger, key in zip(flood[: len(asked)], asked, strict=False):
        use(stranger)
        beside += use(np.array([key]))
        assert table.stats.bytes <= limit
    assert beside / len(flood[: len(asked)]) >= alone - 0.10


def test_case_22_every_table_hashes_under_a_secret_of_its_own(monkeypatch):
    """Nobody can prepare keys that meet: each table draws 16 bytes when it is made, and keeps every key apart."""
    drawn = []
    urandom = os.urandom
    monkeypatch.setattr(os, "urandom", lambda n: drawn.append(urandom(n)) or drawn[-1])
    keys = [f"k{i}" for i in range(20_000)]
    for _ in range(2):
        table = ri.FeatureTable({"x": "f64"}, "str", max_rows=40_000)
        table.put_many({key: {"x": float(i)} for i, key in enumerate(keys)})
        assert all(table.lookup(key) == {"x": float(i)} for i, key in enumerate(keys))
    secrets = [secret for secret in drawn if len(secret) == 16]
    assert len(set(secrets)) == len(secrets) >= 2


def test_case_23_row_of_another_schema_is_never_read_as_one_of_this():
    """A dump of a table with other columns, or the same ones in other kinds, is refused whole."""
    source = ri.FeatureTable({"a": "f64", "b": "i64"}, "str")
    source.put("k", {"a": 1.5, "b": 2})
    out = io.BytesIO()
    source.dump(out)
    for columns in ({"a": "f64"}, {"a": "i64", "b": "f64"}, {"b": "i64", "a": "f64", "c": "str"}):
        other = ri.FeatureTable(columns, "str")
        other.put("mine", dict.fromkeys(columns, None))
        with pytest.raises(RetailInferError):
            other.restore(io.BytesIO(out.getvalue()))
        assert list(other.keys()) == ["mine"]
    same = ri.FeatureTable({"a": "f64", "b": "i64"}, "str")
    same.restore(io.BytesIO(out.getvalue()))
    assert same.lookup("k") == {"a": 1.5, "b": 2}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: needs fork")
def test_case_24_process_that_dies_while_it_writes_leaves_no_half_a_row():
    """A child killed in the middle of writing changes nothing for its parent, and a dump cut short is refused."""
    table = ri.FeatureTable({"a": "f64", "b": "f64"}, "str", max_rows=1_000)
    for i in range(500):
        table.put(f"k{i}", {"a": float(i), "b": float(i)})
    for _ in range(5):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    for i in range(500):
                        table.put(f"k{i}", {"a": -1.0, "b": -1.0})
            finally:
                os._exit(1)
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert all(table.lookup(f"k{i}") == {"a": float(i), "b": float(i)} for i in range(500))
    out = io.BytesIO()
    table.dump(out)
    whole = out.getvalue()
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        other = ri.FeatureTable({"a": "f64", "b": "f64"}, "str")
        with pytest.raises((BundleError, CallerError)):
            other.restore(io.BytesIO(whole[:cut]))
        assert len(other) == 0
