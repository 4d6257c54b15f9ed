"""A store beyond its look-ups: saved and restored, backfilled, erased from, inspected; over forks and new releases."""

from __future__ import annotations

import datetime as dt
import functools
import os
import stat

import msgspec
import pytest
import releases

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.clock import ManualClock
from retailinfer.errors import ConfigError, FeatureTypeError, IntegrityError

pa = pytest.importorskip("pyarrow", reason="platform: histories are Arrow tables")

DAY_NS = 86_400 * 10**9
T0_NS = 1_772_452_800 * 10**9  # 2 March 2026, noon UTC


def spec_of(columns=None):
    """Payments of a card that a table knows: score = mean + 100 * count of an hour + 10,000 * count of a month."""
    return ri.FeatureSpec(
        request={"card": str, "at": ri.Timestamp | None},
        event_time="at",
        entities={"card": "card"},
        streams={"payment": None},
        columns=columns
        or [
            c.stored("card.mean", unknown=0.0),
            c.window("card", "count", on="payment", over="1h", unknown=0.0),
            c.window("card", "count", on="payment", over="30d", unknown=0.0),
        ],
    )


@functools.cache
def files():
    """One release for all tests."""
    return releases.packed("saved", releases.weighted(1.0, 100.0, 10_000.0), spec_of())


def clock_at(ns=T0_NS):
    """A clock that stands."""
    return ManualClock(wall_ns=ns)


def store_of(clock, **options):
    """Cards in a table, windows, aliases of cards."""
    return ri.Store(
        tables={"card": ri.FeatureTable({"mean": "f64"}, "str", clock=clock, **options)},
        windows=ri.Windows.memory(clock=clock),
        aliases=["card"],
        clock=clock,
    )


def filled(clock):
    """A store with two cards, one of which goes by another name, and its scorer."""
    store = store_of(clock)
    scorer = releases.scorer_of(files(), store=store)
    store["card"].put("a", {"mean": 1.0})
    store["card"].put("b", {"mean": 2.0})
    store.aliases("card").link("guest", into="a", at=0)
    for card in ("a", "a", "b", "guest"):
        scorer.score({"card": card}, observe=True)
    return store, scorer


# ---- saving ----------------------------------------------------------------------------------------------------------


def test_a_restored_store_answers_as_the_saved_one(tmp_path):
    """Rows with their ages, counts, aliases: in a process that begins after a restart, before any event."""
    clock = clock_at()
    store, scorer = filled(clock)
    cards = ["a", "b", "guest", "c"]
    want = [scorer.score({"card": card}) for card in cards]
    size = store.save(tmp_path / "store")
    assert size == (tmp_path / "store").stat().st_size
    later = clock_at(T0_NS)
    again = store_of(later)
    restored = again.restore(tmp_path / "store")
    assert (restored.tables, restored.aliases, restored.left_out) == ({"card": 2}, {"card": 1}, ())
    assert restored.windows == {"card": 2}
    assert restored.saved_at_s == T0_NS / 1e9
    got = [releases.scorer_of(files(), store=again).score({"card": card}) for card in cards]
    assert [(d.score, d.stale, d.missing, d.trace) for d in got] == [
        (d.score, d.stale, d.missing, d.trace) for d in want
    ]
    bound_before = store_of(clock_at(T0_NS))  # releases may be loaded before the state is there
    first = releases.scorer_of(files(), store=bound_before)
    bound_before.restore(tmp_path / "store")
    assert [first.score({"card": card}).score for card in cards] == [d.score for d in want]


def test_what_was_missed_meanwhile_can_be_said(tmp_path):
    """`complete=False`: counts go on, and are stale until their window has passed the restart."""
    clock = clock_at()
    store, _ = filled(clock)
    store.windows.backfill(spec_of(), "payment", history([("z", T0_NS - 40 * DAY_NS)]))
    store.save(tmp_path / "store")
    for complete in (True, False):
        later = clock_at(T0_NS + 60 * 10**9)
        again = store_of(later)
        scorer = releases.scorer_of(files(), store=again)
        again.restore(tmp_path / "store", complete=complete)
        assert scorer.score({"card": "b"}).score == 2.0 + 100 * 2 + 10_000 * 2
        assert bool(scorer.score({"card": "b"}).stale) is not complete


def test_a_file_is_whole_or_refused(tmp_path):
    """Any byte that is changed, missing or too much: a typed error, and the store is as it was."""
    store, _ = filled(clock_at())
    path = tmp_path / "store"
    store.save(path)
    data = path.read_bytes()
    target, scorer = filled(clock_at())
    target["card"].put("mine", {"mean": 5.0})
    before = [scorer.score({"card": card}).score for card in ("a", "b", "guest", "mine")]
    step = max(1, len(data) // 150)
    broken = [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in range(0, len(data), step)]
    broken += [data[:i] for i in range(0, len(data), step)] + [
        data + b"x",
        b"",
        data + data,
        os.urandom(1000),
    ]
    for bad in broken:
        path.write_bytes(bad)
        with pytest.raises(IntegrityError):
            target.restore(path)
    assert [scorer.score({"card": card}).score for card in ("a", "b", "guest", "mine")] == before


def test_parts_without_a_place_are_told(tmp_path):
    """Another schema, no such table, no windows, no aliases: the rest is taken over."""
    store, _ = filled(clock_at())
    store.save(tmp_path / "store")
    bare = ri.Store().restore(tmp_path / "store")
    assert (bare.tables, bare.windows, bare.aliases) == ({}, {}, {})
    assert len(bare.left_out) == 3
    other = ri.Store(
        tables={"card": ri.FeatureTable({"mean": "f64", "n": "i64"}, "str")}, aliases={"card": "int"}
    )
    found = other.restore(tmp_path / "store")
    assert len(other["card"]) == 0
    assert len(found.left_out) == 3
    assert any("schema" in why for why in found.left_out)


def test_a_file_appears_whole_and_for_its_owner_alone(tmp_path):
    """No half-written file under its name, nothing left over, nobody else may read it."""
    store, _ = filled(clock_at())
    path = tmp_path / "store"
    path.write_bytes(b"what was there")

    def dump(to):
        to.write(b"some of it")
        raise OSError(28, "no space left")

    whole = store["card"].dump
    store["card"].dump = dump
    with pytest.raises(OSError, match="space"):
        store.save(path)
    assert path.read_bytes() == b"what was there"
    assert [one.name for one in tmp_path.iterdir()] == ["store"]
    store["card"].dump = whole
    store.save(path)
    assert [one.name for one in tmp_path.iterdir()] == ["store"]
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_single_tables_are_saved_by_name(tmp_path):
    """A typing mistake and a snapshot are refused."""
    store = ri.Store(
        tables={
            "card": ri.FeatureTable({"mean": "f64"}, "str"),
            "shop": ri.FeatureTable({"size": "f64"}, "str"),
            "item": releases.items(),
        }
    )
    store["shop"].put("s", {"size": 1.0})
    store.save(tmp_path / "store", tables=["shop"])
    assert store.restore(tmp_path / "store").tables == {"shop": 0}  # it is there already
    for name in ("shpo", "item"):
        with pytest.raises(ConfigError):
            store.save(tmp_path / "other", tables=[name])


# ---- backfill --------------------------------------------------------------------------------------------------------


def history(events):
    """Payments as an Arrow table."""
    return pa.table(
        {
            "card": [card for card, _ in events],
            "at": pa.array([at // 1000 for _, at in events], pa.timestamp("us", tz="UTC")),
        }
    )


def test_history_makes_windows_whole_at_once():
    """Counts of the past are there, in whatever order they come, and the windows say no longer that they are cold."""
    clock = clock_at()
    store = store_of(clock)
    scorer = releases.scorer_of(files(), store=store)
    assert len(scorer.score({"card": "a"}).stale) == 2
    events = [("a", T0_NS - days * DAY_NS - 10**9) for days in (1, 40, 3, 29, 2)] + [("b", T0_NS - 10**12)]
    store.aliases("card").link("guest", into="a", at=0)
    events.append(("guest", T0_NS - 5 * DAY_NS))
    assert store.backfill(spec_of(), "payment", history(events)) == 7
    decision = scorer.score({"card": "a"})
    assert (decision.score, decision.stale) == (100.0 + 10_000.0 * 6, ())
    assert scorer.score({"card": "b"}).score == 200.0 + 20_000.0


def test_history_and_live_events_are_never_counted_twice():
    """What happened after the window began to count is left out of the history: it was seen live."""
    clock = clock_at()
    store = store_of(clock)
    scorer = releases.scorer_of(files(), store=store)
    clock.advance_ns(60 * 10**9)
    scorer.score({"card": "a"}, observe=True)
    live = [("a", clock.wall_ns())]
    store.backfill(spec_of(), "payment", history([("a", T0_NS - 10**10), *live]))
    assert scorer.score({"card": "a"}).score == 300.0 + 30_000.0


def test_a_store_without_windows_has_no_history():
    """And a stream that nothing counts has none either."""
    with pytest.raises(ConfigError, match="windows"):
        ri.Store().backfill(spec_of(), "payment", history([]))
    with pytest.raises(ri.CallerError):
        store_of(clock_at()).backfill(spec_of(), "payments", history([]))


# ---- erasing, inspecting -----------------------------------------------------------------------------------------------


def test_an_entity_is_erased_everywhere():
    """Its row, its counts, its names, and what was kept under the names that stood for it; others stay."""
    store, scorer = filled(clock_at())
    store["card"].put("guest", {"mean": 9.0})
    found = store.erase("card", "a")
    assert found == {"aliases": 2, "table": 2, "windows": 1}  # the link, and its end that is left of it
    assert scorer.score({"card": "a"}).score == 100.0 + 10_000.0
    assert scorer.score({"card": "guest"}).trace == ("release: unsigned",)
    assert scorer.score({"card": "b"}).score == 2.0 + 200.0 + 20_000.0
    assert store.erase("card", "a") == {"aliases": 0, "table": 0, "windows": 0}
    assert store.erase("card", "never seen") == {"aliases": 0, "table": 0, "windows": 0}


def test_erasing_names_what_it_cannot_reach():
    """Snapshots say that they have it; entities and keys that cannot be are refused."""
    store = ri.Store(tables={"item": releases.items()})
    assert store.erase("item", "sku-001") == {"snapshot": 1}
    assert store.erase("item", "sku-999") == {"snapshot": 0}
    with pytest.raises(ConfigError, match="'itme'"):
        store.erase("itme", "sku-001")
    with pytest.raises(FeatureTypeError):
        store_of(clock_at()).erase("card", 5)


def test_inspect_tells_sizes_rates_ages_and_memory():
    """Numbers of every part; no key of anybody."""
    clock = clock_at()
    store, scorer = filled(clock)
    clock.advance_ns(90 * 10**9)
    for card in ("a", "a", "nobody", "a"):
        scorer.score({"card": card})
    report = store.inspect()
    (table,) = report.tables
    (windows,) = report.windows
    assert (table.name, table.rows, table.hits, table.misses) == ("card", 2, 7, 1)
    assert table.hit_rate == 7 / 8
    assert table.age_s == (90.0, 90.0, 90.0)
    assert (windows.entity, windows.entities, windows.events) == ("card", 2, 4)
    assert [(one.entity, one.links) for one in report.aliases] == [("card", 1)]
    assert report.bytes >= table.bytes + windows.bytes > 0
    assert not report.windows_shared
    text = "\n".join(report.lines())
    assert "guest" not in text
    assert "87.5% hits" in text
    assert msgspec.json.decode(msgspec.json.encode(report))["tables"][0]["rows"] == 2
    assert store.nbytes > 0
    assert "card: 2 rows" in repr(store)


def test_a_fetched_row_is_a_miss_and_no_hit():
    """Looking again after the fetch is not a second use: the rate says how often the source was needed."""

    class Rows:
        def fetch(self, keys, *, timeout_s):
            return {key: {"mean": 1.0} for key in keys}

    store = store_of(clock_at(), source=Rows(), timeout_ms=5_000)
    scorer = releases.scorer_of(files(), store=store)
    for i in range(10):
        scorer.score({"card": f"c{i}"})
    scorer.score({"card": "c0"})
    stats = store.inspect().tables[0]
    assert (stats.misses, stats.hits) == (10, 1)
    assert stats.source.rows == 10


def test_snapshots_are_inspected_with_their_ages():
    """Those of rows that know when they were true."""
    clock = clock_at()
    now = dt.datetime.fromtimestamp(T0_NS / 1e9, dt.UTC)
    rows = {f"k{i}": {"x": 1.0, "at": now - dt.timedelta(seconds=i)} for i in range(101)}
    store = ri.Store(
        tables={"a": ri.Snapshot.from_rows(rows, updated_at="at"), "b": releases.items()}, clock=clock
    )
    first, second = store.inspect().snapshots
    assert (first.rows, first.generation, first.age_s) == (101, 1, (50.0, 90.0, 100.0))
    assert second.age_s is None
    store.swap("b", releases.items(5))
    assert store.inspect().snapshots[1].generation == 2


# ---- forks, releases -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: has no fork")
def test_a_forked_worker_goes_on_with_a_copy():
    """Rows, counts and aliases are there; what the child counts is the child's."""
    store, scorer = filled(clock_at())
    want = scorer.score({"card": "a"}).score
    child = os.fork()
    if child == 0:
        good = scorer.score({"card": "a"}, observe=True).score == want
        good = good and scorer.score({"card": "a"}).score == want + 10_100
        store["card"].put("a", {"mean": 7.0})
        good = good and scorer.score({"card": "guest"}).score == want + 10_100 + 6.0
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert scorer.score({"card": "a"}).score == want


def test_releases_over_one_store_share_its_state():
    """A new release reads rows and counts at once, and counts what it declares; the old one goes on without the other."""
    store, first = filled(clock_at())
    columns = [
        c.window("card", "count", on="payment", over="1h", name="n", unknown=0.0),
        c.stored("card.mean", unknown=-1.0),
    ]
    second = releases.scorer_of(
        releases.packed("next", releases.weighted(1.0, 10.0), spec_of(columns)), store=store
    )
    assert second.score({"card": "a"}).score == 4.0 + 10.0
    second.score({"card": "a"}, observe=True)
    assert first.score({"card": "a"}).score == 1.0 + 500.0 + 40_000.0  # the second one declares no month
    first.close()
    assert second.score({"card": "a"}).score == 5.0 + 10.0


def test_a_closed_scorer_observes_nothing():
    """The same ConfigError as from every other door."""
    _, scorer = filled(clock_at())
    scorer.close()
    for call in (
        lambda: scorer.observe("payment", {"card": "a"}),
        lambda: scorer.score({"card": "a"}, observe=True),
    ):
        with pytest.raises(ConfigError, match="closed"):
            call()
