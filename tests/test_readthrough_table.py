"""FeatureTable over a source, as requests see it: outcomes, stale rows, refreshing, warm starts, real databases that die."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import run_script
from rows_for_tests import WAIT_S, Counting, Held, Says

from retailinfer.clock import ManualClock
from retailinfer.errors import ConfigError
from retailinfer.store.feature_table import FeatureTable
from retailinfer.store.sources.memory import MemorySource
from retailinfer.store.table import Outcome

SECOND = 10**9
_open: list[Any] = []


@pytest.fixture(autouse=True)
def _everything_ends() -> Iterator[None]:
    yield
    while _open:
        one = _open.pop()
        one.let_go() if isinstance(one, Held) else one.close()


def table(source: Any, columns: Any = None, **settings: Any) -> FeatureTable:
    """A table of numbers by text over this source, closed with the test."""
    if isinstance(source, Held):
        _open.append(source)
    made = FeatureTable(columns or {"x": "f64"}, **{"max_rows": 1_000, "source": source, **settings})
    _open.append(made)
    return made


def outcomes(made: FeatureTable, keys: list[Any], **settings: Any) -> list[str]:
    """Name of the outcome of each key."""
    return [Outcome(outcome).name for outcome in made.gather(keys, ["x"], **settings).outcome]


def until(condition: Any) -> None:
    """Until another thread has come as far as that."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        os.sched_yield()


def test_each_key_has_its_outcome():
    """There: its value; said not to exist: unknown; null: null; rubbish or no answer: unavailable, and nothing remembered."""
    rows = {
        "there": {"x": 1.5},
        "null": {"x": None},
        "nan": {"x": float("nan")},
        "bad": {"x": "1.5"},
        "odd": {"y": 1},
    }
    made = table(Counting(rows), timeout_ms=10_000)
    keys = [*rows, "nobody"]
    want = ["PRESENT", "NULL", "NULL", "UNAVAILABLE", "UNAVAILABLE", "UNKNOWN"]
    assert outcomes(made, keys) == want
    gathered = made.gather(keys, ["x"])
    np.testing.assert_array_equal(gathered.values[:, 0], np.array([1.5, *[np.nan] * 5], np.float32))
    assert [call for call in made.through.source.calls[1:] if set(call) - {"bad", "odd"}] == []
    assert made.stats.source.rubbish == 4
    assert made.stats.source.unknown == 1


def test_unknown_keys_are_remembered_for_a_while():
    """They are not asked for again before `unknown_ttl` is over; then they may exist."""
    clock, source = ManualClock(), Counting({})
    made = table(source, unknown_ttl="1m", jitter=0.0, clock=clock, timeout_ms=10_000)
    assert outcomes(made, ["a"]) == ["UNKNOWN"]
    clock.advance_ns(59 * SECOND)
    assert outcomes(made, ["a"]) == ["UNKNOWN"]
    source.rows["a"] = {"x": 2}
    clock.advance_ns(2 * SECOND)
    assert outcomes(made, ["a"]) == ["PRESENT"]
    assert len(source.calls) == 2


def test_unknown_keys_take_no_room_of_rows():
    """A flood of keys that do not exist is answered, bounded in memory, and displaces no row."""
    made = table(MemorySource({f"k{i}": {"x": i} for i in range(500)}), max_rows=600, max_unknown=100)
    known = [f"k{i}" for i in range(500)]
    made.gather(known, ["x"])
    made.gather([f"none-{j}" for j in range(200)], ["x"])
    size = made.nbytes
    for i in range(50):
        assert set(outcomes(made, [f"none{i}-{j}" for j in range(200)])) == {"UNKNOWN"}
    assert made.nbytes == size
    assert made.stats.unknown_keys <= 100
    assert set(outcomes(made, known)) == {"PRESENT"}
    assert made.stats.source.rows == 500


def test_nothing_remembered_is_unknown_all_the_same():
    """With `max_unknown=0` the source is asked every time, and what it says counts."""
    source = Counting({})
    made = table(source, max_unknown=0, timeout_ms=10_000)
    assert outcomes(made, ["a", "b"]) == ["UNKNOWN", "UNKNOWN"]
    assert outcomes(made, ["a"]) == ["UNKNOWN"]
    assert len(source.calls) == 2


def test_stale_row_is_given_out_while_it_is_fetched_anew():
    """Within `stale_for` nobody waits: the old value, marked stale, and one refresh behind it."""
    clock, source = ManualClock(), Held()
    made = table(source, ttl="10s", stale_for="5s", jitter=0.0, clock=clock, timeout_ms=10_000)
    made.put("a", {"x": 1.0})
    clock.advance_ns(12 * SECOND)
    for _ in range(5):
        gathered = made.gather(["a"], ["x"])
        assert (gathered.values[0, 0], Outcome(gathered.outcome[0])) == (1.0, Outcome.STALE)
    source.wait()
    assert made.stats.source.calls == 1
    source.calls[0].returns({"a": {"x": 2.0}})
    until(lambda: outcomes(made, ["a"]) == ["PRESENT"])
    assert made.gather(["a"], ["x"]).values[0, 0] == 2.0


def test_row_that_is_stale_for_long_is_waited_for_and_given_out_if_nothing_comes():
    """After `stale_for` a look-up waits; when the source fails, the stale value is there with its outcome."""
    clock = ManualClock()
    broken = [False]

    def answer(keys: list[str]) -> Any:
        if broken[0]:
            raise ConnectionError
        return {key: {"x": 2.0} for key in keys}

    made = table(Says(answer), ttl="10s", stale_for="5s", jitter=0.0, clock=clock, timeout_ms=10_000)
    made.put("a", {"x": 1.0})
    clock.advance_ns(16 * SECOND)
    broken[0] = True
    assert outcomes(made, ["a"]) == ["STALE"]
    assert made.gather(["a"], ["x"]).values[0, 0] == 1.0
    broken[0] = False
    assert outcomes(made, ["a"]) == ["PRESENT"]
    assert made.gather(["a"], ["x"]).values[0, 0] == 2.0


def test_hot_rows_are_fetched_before_they_expire():
    """In the last fifth of its time a row in use is refreshed, once; a row that nobody asks for is not."""
    clock, source = ManualClock(), Counting({"hot": {"x": 2}, "cold": {"x": 2}})
    made = table(source, ttl="100s", refresh_ahead=0.2, jitter=0.0, clock=clock, timeout_ms=10_000)
    made.put_many({"hot": {"x": 1}, "cold": {"x": 1}})
    for _ in range(79):
        clock.advance_ns(SECOND)
        assert outcomes(made, ["hot"]) == ["PRESENT"]
    assert source.calls == []
    for _ in range(20):
        clock.advance_ns(SECOND)
        assert outcomes(made, ["hot"]) == ["PRESENT"]
        until(lambda: made.stats.source.in_flight == 0)
    assert source.calls == [["hot"]]
    clock.advance_ns(30 * SECOND)
    assert outcomes(made, ["hot"]) == ["PRESENT"]
    assert made.gather(["hot"], ["x"]).values[0, 0] == 2


def test_age_of_a_fetched_row_begins_with_the_question():
    """An answer that took long is not younger than its question, whatever the clock said when it came."""
    clock, source = ManualClock(), Held()
    made = table(source, clock=clock)
    assert outcomes(made, ["a"], timeout_ms=0) == ["UNAVAILABLE"]
    source.wait()
    clock.advance_ns(3 * SECOND // 1000)
    source.calls[0].go.set()
    until(lambda: "a" in made)
    clock.advance_ns(1 * SECOND)
    assert made.age_s("a") == pytest.approx(1.003)


def test_rows_say_themselves_when_they_were_true():
    """A time of the source makes the age, also one in the future, which counts as now."""
    clock = ManualClock(wall_ns=1_700_000_100 * SECOND)
    rows = {
        "old": {"x": 1, "at": datetime.fromtimestamp(1_700_000_000, UTC)},
        "new": {"x": 1, "at": 1_700_009_999},
    }
    made = table(MemorySource(rows), updated_at="at", clock=clock)
    gathered = made.gather(["old", "new"], ["x"])
    assert gathered.age_s.tolist() == [100.0, 0.0]


def test_stampede_on_an_empty_table_is_one_fetch_per_key():
    """32 threads gather overlapping candidates out of 2,000 keys, all right at the first try; each key is fetched once."""
    source = Counting({f"k{i}": {"x": i} for i in range(2_000)})
    made = table(source, max_rows=4_000, timeout_ms=20_000)
    barrier, wrong = threading.Barrier(32), []

    def run(seed: int) -> None:
        chance = random.Random(seed)
        barrier.wait()
        for _ in range(10):
            numbers = chance.sample(range(2_000), 100)
            gathered = made.gather([f"k{i}" for i in numbers], ["x"])
            if gathered.values[:, 0].tolist() != numbers:
                wrong.append(numbers)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    asked = Counter(key for call in source.calls for key in call)
    assert set(asked.values()) == {1}


def test_wait_is_a_share_of_what_is_left():
    """At most `timeout_ms`, at most `share` of the request's remaining time, never below zero."""
    made = table(MemorySource({}), timeout_ms=40, share=0.25)
    assert made.has_source
    assert [made.wait_ns(ms * 10**6) // 10**6 for ms in (1_000, 100, 8, 0, -5)] == [40, 25, 2, 0, 0]


def test_writes_and_erasures_stand_against_answers_under_way():
    """Whatever way a row is written or removed in, an older answer does not undo it."""
    source = Held()
    made = table(source, {"x": "f64"})
    keys = ["put", "many", "unknown", "erased", "loaded", "left alone"]
    thread = threading.Thread(target=made.gather, args=(keys, ["x"]), kwargs={"timeout_ms": 30_000})
    thread.start()
    source.wait()
    made.put("put", {"x": 2})
    made.put_many({"many": {"x": 2}})
    made.mark_unknown(["unknown"])
    made.put("erased", {"x": 2})
    assert made.erase("erased")
    made.load([("loaded", {"x": 2})])
    source.let_go()
    thread.join(WAIT_S)
    got = {key: (made.core.lookup(key, 0)[1] or {}).get("x") for key in keys}
    assert got == {"put": 2, "many": 2, "unknown": None, "erased": None, "loaded": 2, "left alone": 1}
    assert made.stats.source.overtaken == 5


def test_cleared_table_stays_empty_when_answers_come():
    """`clear` means everything, also what is on its way."""
    source = Held()
    made = table(source)
    made.gather(["a"], ["x"], timeout_ms=0)
    source.wait()
    made.clear()
    source.let_go()
    until(lambda: made.stats.source.in_flight == 0 and made.stats.source.overtaken == 1)
    assert len(made) == 0


def test_warm_start_from_yesterdays_dump(tmp_path: Path):
    """Rows of the dump are there at once; those past their time are fetched anew without anybody asking."""
    clock = ManualClock()
    yesterday = table(None, ttl="10s", jitter=0.0, clock=clock)
    yesterday.put_many({f"old{i}": {"x": i} for i in range(700)})
    clock.advance_ns(20 * SECOND)
    yesterday.put("fresh", {"x": 5})
    yesterday.dump(tmp_path / "rows")
    source = Counting()
    today = table(source, ttl="10s", jitter=0.0, clock=clock)
    assert today.restore(tmp_path / "rows") == 701
    assert today.gather(["fresh"], ["x"]).values[0, 0] == 5
    until(lambda: today.stats.source.rows == 700)
    assert sorted(key for call in source.calls for key in call) == sorted(f"old{i}" for i in range(700))
    assert set(outcomes(today, [f"old{i}" for i in range(700)])) == {"PRESENT"}


def test_warm_start_beside_a_source_that_is_down(tmp_path: Path):
    """The rows of the dump are served as stale; the failing source costs nothing but a few attempts."""
    clock = ManualClock()
    yesterday = table(None, ttl="10s", jitter=0.0, clock=clock)
    yesterday.put_many({f"old{i}": {"x": i} for i in range(300)})
    yesterday.dump(tmp_path / "rows")
    clock.advance_ns(20 * SECOND)

    def down(keys: list[str]) -> Any:
        raise OSError

    today = table(Says(down), ttl="10s", stale_for="1h", jitter=0.0, clock=clock)
    today.restore(tmp_path / "rows")
    gathered = today.gather([f"old{i}" for i in range(300)], ["x"])
    assert {Outcome(outcome) for outcome in gathered.outcome} == {Outcome.STALE}
    assert gathered.values[:, 0].tolist() == list(range(300))
    assert today.stats.source.calls <= 4


HOSTILE = {
    "huge integer": {"x": 10**400}, "too large for int64": {"n": 2**63}, "fraction for an integer": {"n": 1.5},
    "bytes for text": {"s": b"a"}, "lone surrogate": {"s": "\ud800"}, "long text": {"s": "a" * 70_000},
    "short vector": {"v": [1.0]}, "long vector": {"v": [1.0, 2.0, 3.0]}, "infinite vector": {"v": [1.0, 1e39]},
    "no vector": {"v": 1.0}, "integer for text": {"s": 1}, "text for an integer": {"n": "1"},
}  # fmt: skip


@pytest.mark.parametrize("name", list(HOSTILE))
def test_row_that_does_not_fit_the_columns_is_unavailable(name: str):
    """It is not stored, not cut to size and not taken for null; its neighbours are stored."""
    good = {"x": 1.0, "n": 1, "s": "a", "v": [1.0, 2.0]}
    source = MemorySource({"bad": {**good, **HOSTILE[name]}, "good": good})
    made = table(source, {"x": "f64", "n": "i64", "s": "str", "v": ("vec", 2)})
    assert outcomes(made, ["bad", "good"]) == ["UNAVAILABLE", "PRESENT"]
    assert "bad" not in made
    assert made.stats.source.rubbish == 1


def test_values_of_databases_arrive_as_columns_take_them():
    """Decimals, moments, bools, NumPy's and Arrow's values, lists: stored in the kind that the column declares."""
    row = {
        "price": Decimal("1.10"), "at": datetime(2026, 1, 2, tzinfo=UTC), "live": True, "n": np.int32(7),
        "vec": (np.float32(0.5), 2), "name": np.str_("ä"), "raw": bytearray(b"\x00"), "none": None,
    }  # fmt: skip
    columns = {
        "price": "f64", "at": "timestamp", "live": "bool", "n": "i64", "vec": ("vec", 2), "name": "str", "raw": "bytes",
        "none": "f64",
    }  # fmt: skip
    got = table(MemorySource({"a": row}), columns).lookup("a")
    assert got is not None
    assert got.pop("vec").tolist() == [0.5, 2.0]
    assert got == {
        "price": 1.1, "at": 1_767_312_000_000_000_000, "live": 1, "n": 7, "name": "ä", "raw": b"\x00", "none": None
    }  # fmt: skip


@pytest.mark.requires("pyarrow", "sqlalchemy")
def test_whole_sources_are_loaded_in_one_go(tmp_path: Path):
    """`load()` takes what a source's `scan` gives: a mapping, Arrow data, rows of a database; other columns are left out."""
    import sqlite3

    import pyarrow as pa

    from retailinfer.store.sources.arrow import ArrowSource
    from retailinfer.store.sources.sql import SqlSource

    with sqlite3.connect(tmp_path / "db") as db:
        db.execute("CREATE TABLE t (id TEXT PRIMARY KEY, x REAL, other TEXT)")
        db.executemany("INSERT INTO t VALUES (?, ?, 'o')", [(f"k{i}", i) for i in range(1_000)])
    db.close()
    arrow = pa.table({"id": [f"k{i}" for i in range(1_000)], "x": range(1_000), "other": ["o"] * 1_000})
    sources = [
        MemorySource({f"k{i}": {"x": i, "other": "o"} for i in range(1_000)}),
        ArrowSource(arrow, key="id"),
        SqlSource(f"sqlite:///{tmp_path / 'db'}", "t", key="id"),
    ]
    for source in sources:
        made = table(source, max_rows=2_000)
        assert made.load() == 1_000
        keys = [f"k{i}" for i in range(1_000)]
        assert made.gather(keys, ["x"]).values[:, 0].tolist() == list(range(1_000))
        assert made.stats.source.calls == 0
    with pytest.raises(ConfigError, match="scan"):
        table(Counting()).load()
    with pytest.raises(ConfigError, match="column `x`"):
        table(MemorySource({"a": {"y": 1}})).load()


class PostgresRows:
    """10,000 rows in a database of one's own."""

    def __init__(self, server: Any) -> None:
        from retailinfer.store.sources.sql import SqlSource

        self.server = server
        self.source = SqlSource(server.url, "t", key="id", columns=["x"])

    def fill(self) -> None:
        import psycopg

        with psycopg.connect(self.server.conninfo, autocommit=True) as db:
            db.execute("CREATE TABLE IF NOT EXISTS t (id text PRIMARY KEY, x float8)")
            db.execute(
                "INSERT INTO t SELECT 'k' || i, i FROM generate_series(0, 9999) i ON CONFLICT DO NOTHING"
            )


class RedisRows:
    """The same in a Redis that forgets everything when it is killed."""

    def __init__(self, server: Any) -> None:
        from retailinfer.store.sources.redis import RedisSource

        self.server = server
        self.source = RedisSource(server.url, prefix="row:", rows="json")

    def fill(self) -> None:
        client = self.server.client()
        client.mset({f"row:k{i}": json.dumps({"x": i}) for i in range(10_000)})
        client.close()


@pytest.mark.requires("sqlalchemy", "psycopg", "redis")
@pytest.mark.parametrize("kind", [PostgresRows, RedisRows])
def test_server_that_hangs_dies_and_comes_back_under_requests(kind: Any, request: pytest.FixtureRequest):
    """Requests go on within their wait, with the declared outcome; within 2 s of its return rows are fetched again."""
    server = request.getfixturevalue("own_postgres" if kind is PostgresRows else "own_redis")
    rows = kind(server)
    rows.fill()
    made = table(rows.source, max_rows=20_000, timeout_ms=30)
    numbers = iter(range(10_000))
    slowest = [0.0]

    def ask() -> str:
        number = next(numbers)
        began = time.monotonic()
        gathered = made.gather([f"k{number}"], ["x"])
        slowest[0] = max(slowest[0], time.monotonic() - began)
        outcome = Outcome(gathered.outcome[0])
        if outcome == Outcome.PRESENT:
            assert gathered.values[0, 0] == number
        return outcome.name

    def until_present(within_s: float) -> None:
        end = time.monotonic() + within_s
        while ask() != "PRESENT":
            assert time.monotonic() < end
            threading.Event().wait(0.01)

    until_present(10)
    for fault, mend in ((server.pause, server.resume), (server.kill, server.start)):
        fault()
        seen = Counter()
        end = time.monotonic() + 0.8
        while time.monotonic() < end:
            seen[ask()] += 1
            threading.Event().wait(0.002)
        assert set(seen) == {"UNAVAILABLE"}
        assert sum(seen.values()) > 20  # most of them held back: a source that is down costs next to nothing
        mend()
        rows.fill()
        until_present(2.0)
    assert slowest[0] < 1.0
    stats = made.stats.source
    assert stats.threads <= 8
    assert stats.held_back > 0


@pytest.mark.requires("redis")
def test_foreign_values_in_redis_are_unavailable_one_by_one(redis_server):
    """A list, a number, half a row and a row of another shape under our keys: each is no answer, the others are."""
    from retailinfer.store.sources.redis import RedisSource

    client = redis_server.client()
    client.rpush("foreign:list", "a")
    client.mset(
        {
            "foreign:number": "7",
            "foreign:half": '{"x": 1',
            "foreign:other": '{"y": 1}',
            "foreign:good": '{"x": 1.5}',
        }
    )
    client.close()
    made = table(RedisSource(redis_server.url, prefix="foreign:", rows="json"), timeout_ms=10_000)
    for _ in range(4):
        got = outcomes(made, ["list", "number", "half", "other", "good", "nobody"])
        assert got == [*["UNAVAILABLE"] * 4, "PRESENT", "UNKNOWN"]
    assert made.stats.source.healthy


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork")
def test_forked_workers_fetch_for_themselves():
    """A child has its parent's rows, begins with no fetch under way, and what it fetches is its own."""
    assert run_script("""
        import os, threading
        from rows_for_tests import Counting, Held
        from retailinfer.store.feature_table import FeatureTable

        source = Held()
        table = FeatureTable({"x": "f64"}, source=source, max_rows=100)
        table.put("mine", {"x": 7})
        table.gather(["a"], ["x"], timeout_ms=0)
        source.wait()
        codes = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                source.open = True
                got = table.gather(["mine", "a", "b"], ["x"], timeout_ms=20_000)
                os._exit(0 if got.values[:, 0].tolist() == [7.0, 1.0, 1.0] and table.stats.source.calls == 2 else 3)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        source.let_go()
        got = table.gather(["a"], ["x"], timeout_ms=20_000)
        print(codes, got.values[0, 0] == 1.0, "b" in table)
    """) == "[0, 0, 0] True False"  # fmt: skip
