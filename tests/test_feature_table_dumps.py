"""Dumps of a FeatureTable: what comes back, in which order, how old; what is refused, and that nothing has changed then."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest

from retailinfer.clock import ManualClock
from retailinfer.errors import ConfigError, IntegrityError, SchemaMismatchError
from retailinfer.store.feature_table import MAGIC, FeatureTable
from retailinfer.store.sources.memory import MemorySource
from retailinfer.store.table import Outcome

SECOND = 1_000_000_000
COLUMNS = {"f": "f64", "g": "f32", "i": "i64", "s": "str", "b": "bytes", "v": ("vec", 3)}


def table(clock=None, **options):
    """An empty table with every kind of column."""
    return FeatureTable(COLUMNS, **({"clock": clock or ManualClock(), "jitter": 0.0} | options))


def row(i):
    """A row that shows its number."""
    return {"f": i / 3, "g": 0.5, "i": i, "s": "t" * (i * 7), "b": b"\0" * i, "v": [i, 1, 2]}


def image_of(source):
    """The bytes of a dump."""
    to = io.BytesIO()
    assert source.dump(to) == len(to.getvalue())
    return to.getvalue()


def filled(clock=None, n=6, **options):
    """The same table with n rows, of keys and texts of many lengths."""
    made = table(clock, **options)
    made.put_many({f"key {i}" * (1 + i): row(i) for i in range(n)})
    return made


@pytest.mark.parametrize("policy", ["lru", "probation"])
def test_rows_come_back_in_the_order_of_their_use(policy, tmp_path):
    """A restored table has the same rows, goes on evicting in the same order, and keeps who was in use."""
    old = filled(n=40, policy=policy)
    keys = list(old.keys())
    for key in keys[5:15]:
        old.lookup(key)
    path = tmp_path / "hot.dump"
    path.write_bytes(b"an older dump")
    assert old.dump(path) == path.stat().st_size
    assert [found.name for found in tmp_path.iterdir()] == ["hot.dump"]
    new = table(policy=policy)
    assert new.restore(path) == 40
    assert list(new.keys()) == list(old.keys())
    assert [str(new.lookup(key)) for key in keys] == [str(old.lookup(key)) for key in keys]
    assert new.core.check() == 0
    smaller = table(policy=policy, max_rows=10)
    assert smaller.restore(image_of(old)) == 40
    assert set(smaller.keys()) <= set(keys)
    assert len(smaller) == 10


def test_time_goes_on_while_nothing_runs():
    """Ages, expiry and retention count the hours between dump and restore; the new process has another monotonic clock."""
    before = ManualClock(wall_ns=10_000 * SECOND, monotonic_ns=77 * SECOND)
    old = filled(before, ttl="100s")
    before.advance_ns(30 * SECOND)
    image = image_of(old)
    after = ManualClock(wall_ns=10_090 * SECOND, monotonic_ns=5 * SECOND)
    new = table(after, ttl="100s")
    new.restore(image)
    keys = list(new.keys())
    found = new.gather(keys, ["f"])
    assert set(found.outcome) == {Outcome.PRESENT}
    assert set(found.age_s) == {90.0}
    after.advance_ns(10 * SECOND)
    assert set(new.gather(keys, ["f"]).outcome) == {Outcome.STALE}
    late = ManualClock(wall_ns=11_000 * SECOND)
    assert table(late).restore(image, retention="999s") == 0
    assert table(late, retention="1000s").restore(image) == 0
    assert table(late).restore(image, retention="1001s") == 6


def test_a_clock_that_was_set_back_gives_no_longer_life():
    """Restored on a clock before the writing, rows are new, age 0, and expire no later than a new row would."""
    old = filled(ManualClock(wall_ns=10_000 * SECOND), ttl="100s")
    clock = ManualClock(wall_ns=500 * SECOND)
    new = table(clock, ttl="100s")
    assert new.restore(image_of(old)) == 6
    keys = list(new.keys())
    assert set(new.gather(keys, ["f"]).age_s) == {0.0}
    clock.advance_ns(100 * SECOND)
    assert set(new.gather(keys, ["f"]).outcome) == {Outcome.STALE}


def test_what_was_written_since_stays():
    """A restore fills up and overwrites nothing."""
    image = image_of(filled())
    new = table()
    new.put("key 0", {"i": 99})
    assert new.restore(image) == 5
    assert new.lookup("key 0")["i"] == 99


@pytest.mark.parametrize("key", ["int", "bytes", ("str", "int")])
def test_keys_of_every_kind_come_back(key):
    """Integers, bytes and tuples are what they were."""
    old = FeatureTable({"x": "f64"}, key)
    keys = {
        "int": [-1, 2**63 - 1],
        "bytes": [b"", b"\xff" * 20],
        ("str", "int"): [("a", 1), ("long " * 9, -5)],
    }[key]
    old.put_many({one: {"x": 1.0} for one in keys})
    new = FeatureTable({"x": "f64"}, key)
    assert new.restore(io.BytesIO(image_of(old))) == 2
    assert list(new.keys()) == keys


def test_rows_that_expired_are_fetched_anew_after_a_restore():
    """A warm start asks the source for the rows that are past their time to live, and for no others."""
    clock = ManualClock()
    old = filled(clock, ttl="100s")
    clock.advance_ns(50 * SECOND)
    old.put("key 0", row(0))
    clock.advance_ns(50 * SECOND)
    image = image_of(old)
    fresh = {f"key {i}" * (1 + i): row(i) | {"i": 1_000} for i in range(6)}
    new = table(clock, ttl="100s", source=MemorySource(fresh))
    assert new.restore(image) == 6
    assert {key: new.core.lookup(key, clock.monotonic_ns())[1]["i"] for key in fresh} == {
        key: 0 if key == "key 0" else 1_000 for key in fresh
    }
    cold = table(clock, ttl="100s", source=MemorySource(fresh))
    cold.restore(image, refresh=False)
    assert cold.stats.source.calls == 0


def assert_refused(image, error=IntegrityError):
    """The table says no and is what it was."""
    new = table()
    new.put("here", row(2))
    before = (list(new.keys()), str(new.lookup("here")), new.nbytes)
    with pytest.raises(error):
        new.restore(image)
    assert (list(new.keys()), str(new.lookup("here")), new.nbytes) == before
    assert new.core.check() == 0


def test_every_flipped_byte_is_noticed():
    """One bit of any byte changed: the dump is refused whole."""
    image = image_of(filled(n=3))
    for at in range(len(image)):
        assert_refused(image[:at] + bytes([image[at] ^ (1 << at % 8)]) + image[at + 1 :])


def test_every_cut_and_every_addition_is_noticed():
    """A dump that ends early anywhere, or goes on, or is something else, is refused."""
    image = image_of(filled(n=3))
    for end in range(len(image)):
        assert_refused(image[:end])
    for other in (image + b"\0", image + image, b"", MAGIC, b"\0" * 500, MAGIC + b"\xff" * 100):
        assert_refused(other)


def sealed(body):
    """What is not a dump, with the right digest behind it."""
    return body + hashlib.sha256(body).digest()


def test_a_sound_seal_over_broken_rows_is_not_enough():
    """Whoever can write a dump can seal it: every row is still looked at before one is stored, byte by byte."""
    image = image_of(filled(n=2))[:-32]
    start = len(MAGIC) + 4
    rows_at = start + int.from_bytes(image[len(MAGIC) : start], "little")
    refused = 0
    for at in range(len(image)):
        for bits in (0xFF, 0x80, 0x01):
            changed = sealed(image[:at] + bytes([image[at] ^ bits]) + image[at + 1 :])
            new = table()
            try:
                new.restore(changed)
            except (IntegrityError, SchemaMismatchError):
                refused += 1
                assert len(new) == 0
            for key in list(new.keys()):
                new.lookup(key)  # whatever it holds now, it is a row
            assert new.core.check() == 0
    assert refused > 3 * (rows_at - start) // 4
    for end in range(start, len(image)):
        if end != rows_at:
            try:
                table().restore(sealed(image[:end]))
            except (IntegrityError, SchemaMismatchError):
                continue
            assert end > rows_at  # a cut between two rows is a smaller dump
    rng = np.random.default_rng(2)
    for _ in range(300):
        assert_refused(sealed(image[:rows_at] + rng.bytes(int(rng.integers(1, 300)))))


@pytest.mark.parametrize(
    "other",
    [
        {"columns": {**COLUMNS, "new": "f64"}},
        {"columns": {name: kind for name, kind in COLUMNS.items() if name != "b"}},
        {"columns": dict(reversed(COLUMNS.items()))},
        {"columns": {**COLUMNS, "f": "i64"}},
        {"columns": {**COLUMNS, "v": ("vec", 4)}},
        {"columns": COLUMNS, "key": "bytes"},
    ],
)
def test_rows_of_another_schema_are_refused(other):
    """Other columns, another order, kind, width or key: never read as something else."""
    new = FeatureTable(**other)
    with pytest.raises(SchemaMismatchError):
        new.restore(image_of(filled()))
    assert len(new) == 0


def test_what_is_no_dump_at_all_is_a_typed_error(tmp_path):
    """Text files, other objects and missing files say what they are."""
    with pytest.raises(ConfigError):
        table().restore(io.StringIO("text"))
    with pytest.raises(ConfigError):
        table().restore(42)
    with pytest.raises(FileNotFoundError):
        table().restore(tmp_path / "nothing")


def test_a_dump_that_fails_leaves_the_older_one(tmp_path):
    """A writer that breaks, a folder that is not there: the file is the old one, and no other is left behind."""
    path = tmp_path / "hot.dump"
    made = filled()
    made.dump(path)
    before = path.read_bytes()

    def broken(*_):
        raise OSError("no space")

    class Core:
        order, key_kind, schema, export_rows = made.core.order, "str", made.core.schema, broken

    whole, made.core = made.core, Core()
    with pytest.raises(OSError, match="no space"):
        made.dump(path)
    made.core = whole
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["hot.dump"]
    with pytest.raises(FileNotFoundError):
        made.dump(tmp_path / "no" / "folder")


def test_an_empty_table_has_a_dump_too():
    """No rows, a whole file: restoring it takes nothing."""
    assert table().restore(image_of(table())) == 0
