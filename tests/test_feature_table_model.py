"""FeatureTable against plain oracles: exact LRU, expiry, bytes, probation; colliding keys, floods of keys that come once."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from retailinfer._native.feature_table import ROW_ABSENT, ROW_FRESH, LruTable
from retailinfer.clock import ManualClock
from retailinfer.store.feature_table import FeatureTable
from retailinfer.store.table import Outcome, plain_cell

SECOND = 1_000_000_000
TTL_S, UNKNOWN_TTL_S, RETENTION_S = 60, 20, 200
COLUMNS = {"a": "f64", "text": "str", "v": ("vec", 3), "n": "i64"}

keys = st.sampled_from(
    ["", "a", "b", "sku-00000017", "sixteen bytes ok", "seventeen bytes..", "ü" * 40, "x" * 500]
)
texts = st.sampled_from(["", "t", "text" * 10, "long " * 60])


@dataclasses.dataclass
class Row:
    a: float | None
    text: str | None
    written_s: int
    updated_ns: int


class LruMachine(RuleBasedStateMachine):
    """Every operation on the table and on an OrderedDict; after each, the same rows in the same order."""

    @initialize(max_rows=st.integers(1, 6), retention=st.booleans(), tight=st.booleans())
    def start(self, max_rows: int, retention: bool, tight: bool):
        self.clock = ManualClock()
        self.now_s = 0
        self.table = FeatureTable(
            COLUMNS,
            ttl=f"{TTL_S}s",
            unknown_ttl=f"{UNKNOWN_TTL_S}s",
            jitter=0.0,
            retention=f"{RETENTION_S}s" if retention else None,
            max_rows=max_rows,
            max_bytes=16_384 if tight else None,
            max_unknown=3,
            policy="lru",
            clock=self.clock,
        )
        self.max_rows, self.retention, self.tight = max_rows, retention, tight
        self.rows: OrderedDict[str, Row] = OrderedDict()
        self.unknown: OrderedDict[str, int] = OrderedDict()

    def there(self, key: str) -> Row | None:
        row = self.rows.get(key)
        return None if row is None or (self.retention and self.now_s - row.written_s >= RETENTION_S) else row

    def is_unknown(self, key: str) -> bool:
        return key in self.unknown and self.now_s - self.unknown[key] < UNKNOWN_TTL_S

    def drop_what_has_gone(self):
        """The oracle forgets at once what the table forgets when its turn comes: it no longer counts as a row."""
        self.table.sweep()
        for key in [key for key in self.rows if self.there(key) is None]:
            del self.rows[key]
        for key in [key for key in self.unknown if not self.is_unknown(key)]:
            del self.unknown[key]

    @rule(key=keys, a=st.none() | st.floats(-1e6, 1e6), text=st.none() | texts)
    def put(self, key: str, a: float | None, text: str | None):
        self.drop_what_has_gone()
        self.table.put(key, {"a": a, "text": text, "v": [1.0, 2.0, 3.0], "n": len(key)})
        self.unknown.pop(key, None)
        self.rows[key] = Row(a, text, self.now_s, self.clock.wall_ns())
        self.rows.move_to_end(key)
        if self.tight:  # bytes rule too: the oldest have gone, and only they
            held = list(self.table.keys())
            assert held == list(self.rows)[-len(held) :]
            assert held
            for gone in list(self.rows)[: -len(held)]:
                del self.rows[gone]
        while len(self.rows) > self.max_rows:
            self.rows.popitem(last=False)

    @rule(key=keys)
    def look_up(self, key: str):
        found, row = self.table.lookup(key), self.there(key)
        assert (found is None) == (row is None)
        if found is not None and row is not None:
            assert (found["a"], found["text"], found["n"]) == (row.a, row.text, len(key))
            self.rows.move_to_end(key)
        elif self.is_unknown(key):
            self.unknown.move_to_end(key)

    @rule(many=st.lists(keys, max_size=12))
    def gather(self, many: list[str]):
        values, ages, outcomes = self.table.gather(many, ["v", "a"])
        for i, key in enumerate(many):
            row = self.there(key)
            if row is None:
                assert Outcome(outcomes[i]) is Outcome.UNKNOWN
                assert np.isnan(values[i]).all()
                assert np.isnan(ages[i])
                if self.is_unknown(key):
                    self.unknown.move_to_end(key)
                continue
            expired = self.now_s - row.written_s >= TTL_S
            assert Outcome(outcomes[i]) is (Outcome.STALE if expired else Outcome.PRESENT)
            assert values[i, :3].tolist() == [1.0, 2.0, 3.0]
            np.testing.assert_array_equal(values[i, 3], np.float32("nan" if row.a is None else row.a))
            assert ages[i] == max(0, self.clock.wall_ns() - row.updated_ns) / 1e9
            self.rows.move_to_end(key)

    @rule(many=st.lists(keys, max_size=4))
    def mark_unknown(self, many: list[str]):
        self.drop_what_has_gone()
        self.table.mark_unknown(many)
        for key in many:
            self.rows.pop(key, None)
            self.unknown[key] = self.now_s
            self.unknown.move_to_end(key)
            while len(self.unknown) > 3:
                self.unknown.popitem(last=False)

    @rule(key=keys)
    def erase(self, key: str):
        self.drop_what_has_gone()
        assert self.table.erase(key) is (key in self.rows or key in self.unknown)
        self.rows.pop(key, None)
        self.unknown.pop(key, None)

    @rule(seconds=st.sampled_from([0, 1, 19, 20, 59, 60, 200]))
    def wait(self, seconds: int):
        self.now_s += seconds
        self.clock.advance_ns(seconds * SECOND)

    @rule(hours=st.sampled_from([-1, 1]))
    def step_the_clock_of_the_day(self, hours: int):
        self.clock.step_wall_ns(hours * 3600 * SECOND)

    @precondition(lambda self: self.now_s > 0)
    @rule()
    def clear(self):
        self.table.clear()
        self.rows.clear()
        self.unknown.clear()

    @invariant()
    def is_whole_and_in_order(self):
        if not hasattr(self, "table"):
            return
        assert self.table.core.check() == 0
        assert self.table.nbytes <= self.table.core.max_bytes
        assert [key for key in list(self.table.keys()) if key in self.rows] == list(self.rows)
        for key in self.unknown:
            assert (key in self.table) is False


LruMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_exact_lru_is_an_ordered_dict_with_expiry = LruMachine.TestCase


def lru_table(**options) -> LruTable:
    """A small native table with integer keys and one column."""
    return LruTable("t", "int", [("x", "f64", 1)], convert=plain_cell, **options)


def test_keys_that_all_collide_are_told_apart():
    """With one hash for every key, look-ups still find the right rows, and probes stay bounded."""
    for mask in (0, 0x80000000, 0xFFFF0000):
        table = lru_table(max_rows=2_000, exact=True, hash_mask=mask)
        for i in range(2_000):
            table.put(i, {"x": float(i)}, 1, 0)
        assert table.check() == 0
        alive = [i for i in range(2_000) if table.states([i], 0) == b"\x00"]
        assert len(alive) == len(table)
        assert len(alive) >= (511 if mask == 0 else 1_000 if mask == 0x80000000 else 2_000)
        for i in alive:
            assert table.lookup(i, 0)[1] == {"x": float(i)}
        for i in alive[::2]:
            assert table.erase(i)
        assert table.check() == 0
        assert [i for i in alive if table.states([i], 0) == b"\x00"] == alive[1::2]


def test_hashes_differ_from_table_to_table():
    """What collides in one table does not in the next: the order of slots cannot be learnt."""
    first, second = (lru_table(max_rows=64, exact=True) for _ in range(2))
    fixed = [lru_table(max_rows=64, exact=True, hash_key=(1, 2)) for _ in range(2)]
    for table in (first, second, *fixed):
        table.put(7, {"x": 1.0}, 1, 0)
    assert all(table.check() == 0 for table in (first, second, *fixed))


def zipf(n_hot: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers below n_hot, the first ones most often."""
    edges = np.cumsum(1.0 / np.arange(1, n_hot + 1))
    return np.searchsorted(edges / edges[-1], rng.random(n))


def hot_hit_rate(n_hot: int, n_keys: int, *, share: float, exact: bool) -> float:
    """Hit rate of a hot set drawn by Zipf(1.0) among keys that come once, in a table of 1.2 times its size."""
    rng = np.random.default_rng(3)
    table = lru_table(max_rows=n_hot * 12 // 10, exact=exact)
    is_hot = rng.random(n_keys) < share
    trace = np.where(is_hot, zipf(n_hot, n_keys, rng), 1_000_000_000 + np.arange(n_keys))
    hits = table.trace(trace, 0)
    assert table.check() == 0
    assert table.nbytes <= table.max_bytes
    return float(hits[is_hot].mean())


def test_keys_that_come_once_do_not_push_the_hot_ones_out():
    """Nine keys in ten come once: the hot set keeps its hit rate within 10 points; exact LRU loses much more."""
    n = 1_000_000
    alone = hot_hit_rate(5_000, n // 10, share=1.0, exact=False)
    beside = hot_hit_rate(5_000, n, share=0.1, exact=False)
    exact = hot_hit_rate(5_000, n, share=0.1, exact=True)
    assert alone - beside <= 0.10
    assert alone - exact > 0.25


def test_a_row_of_protected_keys_survives_any_number_of_others():
    """Rows that were asked for twice stay, whatever number of other keys is put after them."""
    table = lru_table(max_rows=1_000)
    for i in range(500):
        table.put(i, {"x": 0.0}, 1, 0)
        table.lookup(i, 0)
    for i in range(1_000, 51_000):
        table.put(i, {"x": 0.0}, 1, 0)
    alive = sum(table.states(list(range(500)), 0)[i] == 0 for i in range(500))
    assert alive >= 490  # a key in 4,096 is mistaken for one that came before
    assert len(table) == 1_000


def test_a_key_that_comes_back_soon_skips_probation():
    """A second coming within the memory of fingerprints is protected at once, and erasing forgets the first."""
    table = lru_table(max_rows=256)
    early, erased = list(range(100)), list(range(200, 300))
    for key in (*early, *erased, *range(1_000, 1_500)):
        table.put(key, {"x": 0.0}, 1, 0)
    assert set(table.states(early + erased, 0)) == {ROW_ABSENT}
    for key in erased:
        table.erase(key)
    for key in early + erased:
        table.put(key, {"x": 0.0}, 1, 0)
    assert (
        70 <= table.info()["returned"] <= 110
    )  # some fingerprints were written over; one in 4,096 is a mistake
    for i in range(3_000, 4_000):
        table.put(i, {"x": 0.0}, 1, 0)
    assert table.states(early, 0).count(ROW_FRESH) >= 70
    assert table.states(erased, 0).count(ROW_FRESH) <= 10


@pytest.mark.parametrize("exact", [True, False])
def test_rows_of_any_size_stay_under_the_cap(exact: bool):
    """Small rows, large ones and keys of all lengths: bytes are what they are said to be and never pass the cap."""
    rng = np.random.default_rng(11)
    table = LruTable(
        "t", "str", [("s", "str", 1), ("b", "bytes", 1)], convert=plain_cell, max_bytes=1 << 20, exact=exact
    )
    for i in range(4_000):
        size = int(rng.integers(0, 2_000)) if i % 50 else 60_000
        key = f"{i % 700}" + "k" * int(rng.integers(0, 300))
        table.put(key, {"s": "s" * size, "b": b"b" * (size // 3)}, 1, 0)
        assert table.lookup(key, 0)[1] == {"s": "s" * size, "b": b"b" * (size // 3)}
        assert table.nbytes <= table.max_bytes == 1 << 20
        if i % 100 == 0:
            assert table.check() == 0
    assert table.check() == 0
    assert table.info()["evictions"] > 0
    for key in table.keys_of(table.order()):
        table.erase(key)
    assert len(table) == 0
    assert table.check() == 0
    assert table.info()["row_bytes"] == 0
