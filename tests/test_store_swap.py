"""The Store: names, swaps under readers, forks, and memory that goes when its last reader is done."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retailinfer._native.table import TableSlot, swap
from retailinfer.errors import ConfigError, SchemaMismatchError
from retailinfer.store.store import Store
from retailinfer.store.table import Snapshot


def snapshot(value: float, n: int = 3, **more: Any) -> Snapshot:
    """Keys k0, k1, ... that all have this value."""
    return Snapshot.from_rows({f"k{i}": {"x": float(value), **more} for i in range(n)})


def test_swap_replaces_a_table_whole():
    """A new reader sees the new table, one that holds the old one goes on with it."""
    first, second = snapshot(1), snapshot(2, n=5)
    store = Store(tables={"item": first})
    held = store.slot("item").table
    assert store.swap("item", second) is first
    assert store["item"] is second
    assert store.slot("item").table is second.table
    assert store.generation("item") == 2
    assert held.lookup("k0") == {"x": 1.0}
    assert list(store) == ["item"]
    assert len(store) == 1
    assert "item" in store
    assert "user" not in store
    assert store.nbytes == second.nbytes
    assert "item: 5 rows" in repr(store)


def test_slot_stays_the_same_object():
    """The engine takes a slot once, when a release is loaded, and reads it at every call."""
    store = Store(tables={"item": snapshot(1)})
    slot = store.slot("item")
    store.swap("item", snapshot(2))
    assert store.slot("item") is slot
    assert slot.name == "item"
    assert slot.snapshot is store["item"]


def test_unknown_names_and_other_things_are_refused():
    """A typing mistake says which tables there are."""
    store = Store(tables={"item": snapshot(1)})
    for action in (
        lambda: store["itme"],
        lambda: store.swap("itme", snapshot(1)),
        lambda: store.subscribe("itme", print),
    ):
        with pytest.raises(ConfigError, match=r"`item`.*'itme'"):
            action()
    with pytest.raises(ConfigError, match="from_rows"):
        store.swap("item", {"k": {"x": 1}})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Snapshot"):
        Store(tables={"item": None})  # type: ignore[dict-item]
    for name in ("", "a.b", "1st", "a b"):
        with pytest.raises(ConfigError, match="identifier"):
            Store(tables={name: snapshot(1)})
    assert len(Store()) == 0


@pytest.mark.parametrize(
    "other",
    [
        Snapshot.from_rows({"k0": {"y": 1.0}}),
        Snapshot.from_rows({"k0": {"x": 1}}),
        Snapshot.from_rows({"k0": {"x": [1.0]}}),
        Snapshot.from_rows({1: {"x": 1.0}}),
        Snapshot.from_rows({("k0",): {"x": 1.0}}),
    ],
)
def test_swap_keeps_the_shape(other: Snapshot):
    """A column that is gone or of another kind would fail at the next request: it fails at the swap."""
    first = snapshot(1)
    store = Store(tables={"item": first})
    with pytest.raises(SchemaMismatchError, match="item"):
        store.swap("item", other)
    assert store["item"] is first
    assert store.generation("item") == 1


def test_swap_may_add_columns():
    """What nobody reads yet does no harm."""
    store = Store(tables={"item": snapshot(1)})
    store.swap("item", snapshot(2, extra="new"))
    assert store["item"].lookup("k0") == {"x": 2.0, "extra": "new"}


def test_several_tables_are_swapped_together_or_not_at_all():
    """One of them being wrong leaves all as they were."""
    store = Store(tables={"item": snapshot(1), "user": snapshot(1)})
    with pytest.raises(SchemaMismatchError):
        store.swap_all({"item": snapshot(2), "user": Snapshot.from_rows({1: {}})})
    assert store.generation("item") == 1
    old = store.swap_all({"item": snapshot(2), "user": snapshot(2)})
    assert sorted(old) == ["item", "user"]
    assert [store[name].lookup("k0") for name in store] == [{"x": 2.0}] * 2


def test_readers_never_see_two_generations():
    """Threads that read two tables while both are swapped together find the same generation in both."""
    store = Store(tables={"item": snapshot(0), "user": snapshot(0)})
    slots = [store.slot("item"), store.slot("user")]
    generations = [(snapshot(i), snapshot(i)) for i in range(300)]
    wrong: list[Any] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            # a list display of attribute reads on native objects: nothing in between gives the GIL up in C, but the
            # interpreter may; so the pair is only compared when the generations around it did not move
            before = slots[0].generation
            pair = [slots[0].table, slots[1].table]
            if slots[0].generation == before and slots[1].generation == before:
                values = [table.lookup("k1") for table in pair]
                if values[0] != values[1]:
                    wrong.append(values)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for item, user in generations:
        store.swap_all({"item": item, "user": user})
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert store.generation("user") == 301


def test_old_table_is_freed_with_its_last_reader():
    """Nothing of the store keeps a table alive once it is swapped out."""
    first = snapshot(1)
    gone = weakref.ref(first.table)
    store = Store(tables={"item": first})
    held = store.slot("item").table
    del first
    store.swap("item", snapshot(2))
    gc.collect()
    assert gone() is held
    del held
    assert gone() is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="platform: no /proc to read memory from")
def test_swapping_does_not_grow_the_process():
    """60 generations of 8 MB, and the process is not 400 MB larger."""
    n = 20_000
    keys = (np.arange(n).view(np.uint8), np.arange(0, 8 * n + 8, 8))
    columns = [(f"c{i}", "f64", np.ones(n), None) for i in range(50)]

    def generation() -> Snapshot:
        from retailinfer._native.table import SnapshotTable

        return Snapshot(SnapshotTable("item", "int", keys, columns))

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    store = Store(tables={"item": generation()})
    store.swap("item", generation())
    before = resident()
    for _ in range(60):
        store.swap("item", generation())
    assert resident() - before < 3 * store.nbytes


def test_subscribers_prepare_a_table_before_anyone_reads_it():
    """A ranker attaches its encoded rows to the new snapshot; the swap comes after."""
    store = Store(tables={"item": snapshot(1)})
    seen: list[Any] = []

    def prepare(new: Snapshot) -> None:
        seen.append((store["item"].lookup("k0"), new.lookup("k0")))
        new.table.make_block("enc", ["x"])

    stop = store.subscribe("item", prepare)
    store.swap("item", snapshot(2))
    assert seen == [({"x": 1.0}, {"x": 2.0})]
    assert store["item"].gather_block(["k0"], "enc")[0].tolist() == [[2.0]]
    stop()
    stop()
    store.swap("item", snapshot(3))
    assert len(seen) == 1


def test_subscriber_that_fails_stops_the_swap():
    """A table that cannot be encoded is not published."""
    store = Store(tables={"item": snapshot(1)})

    def refuse(new: Snapshot) -> None:
        raise SchemaMismatchError("cannot encode")

    store.subscribe("item", refuse)
    with pytest.raises(SchemaMismatchError, match="cannot encode"):
        store.swap("item", snapshot(2))
    assert store.generation("item") == 1


def test_dropped_subscriber_is_forgotten():
    """The store holds bound methods weakly: it outlives scorers and does not keep them."""

    class Ranker:
        calls = 0

        def prepare(self, new: Snapshot) -> None:
            Ranker.calls += 1

    store, ranker = Store(tables={"item": snapshot(1)}), Ranker()
    store.subscribe("item", ranker.prepare)
    store.swap("item", snapshot(2))
    gone = weakref.ref(ranker)
    del ranker
    gc.collect()
    assert gone() is None
    store.swap("item", snapshot(3))
    assert Ranker.calls == 1


def test_native_swap_checks_before_it_changes_anything():
    """All slots or none, also when somebody calls it with nonsense."""
    one, two = TableSlot("a", snapshot(1)), TableSlot("b", snapshot(1))

    class Fake:
        table = "no table"

    for snapshots in ([snapshot(2), Fake()], [snapshot(2), object()]):
        with pytest.raises((ConfigError, AttributeError)):
            swap([one, two], snapshots)
    assert (one.generation, two.generation) == (1, 1)
    with pytest.raises(ConfigError):
        swap([one, two], [snapshot(2)])
    with pytest.raises(ConfigError):
        swap([one, object()], [snapshot(2), snapshot(2)])  # type: ignore[list-item]
    assert (one.generation, two.generation) == (1, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork")
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="platform: no /proc to read sharing from")
def test_children_share_the_pages_of_a_snapshot():
    """A forked worker reads every row of a 40 MB table and owns next to nothing of it; it swaps and exits cleanly."""
    code = textwrap.dedent("""
        import os, re, sys
        import numpy as np
        from retailinfer._native.table import SnapshotTable
        from retailinfer.store.store import Store
        from retailinfer.store.table import Snapshot

        n = 100_000
        keys = (np.arange(n).view(np.uint8), np.arange(0, 8 * n + 8, 8))
        columns = [(f"c{i}", "f64", np.ones(n), None) for i in range(50)]
        store = Store(tables={"item": Snapshot(SnapshotTable("item", "int", keys, columns))})
        table = store.slot("item").table
        del columns

        def private_dirty():
            return 1024 * sum(map(int, re.findall(r"Private_Dirty:\\s+(\\d+)", open("/proc/self/smaps").read())))

        pid = os.fork()
        if pid == 0:
            before = private_dirty()
            for start in range(0, n, 1000):
                matrix, rows = table.gather(list(range(start, start + 1000)), ["c0", "c49"])
                assert (rows >= 0).all() and (matrix == 1).all()
            grown = private_dirty() - before
            store.swap("item", store["item"])
            sys.stdout.write(f"{grown} {table.nbytes}")
            sys.stdout.flush()
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    grown, nbytes = map(int, done.stdout.split())
    assert nbytes > 40_000_000
    assert grown < 4_000_000


def test_swaps_inside_swaps_take_a_dropped_subscriber_away_once():
    """Whoever comes second finds it gone, and goes on."""
    store = Store(tables={"item": Snapshot.from_rows({"a": {"x": 1.0}})})
    inner = [Snapshot.from_rows({"a": {"x": 2.0}})]

    class Reader:
        def prepare(self, snapshot: Snapshot) -> None: ...

    reader = Reader()
    store.subscribe("item", lambda _: store.swap("item", inner.pop()) if inner else None)
    store.subscribe("item", reader.prepare)
    del reader
    gc.collect()
    store.swap("item", Snapshot.from_rows({"a": {"x": 3.0}}))
    assert store["item"].lookup("a") == {"x": 3.0}
