"""What callers of a mutable table may do to it at worst: arrays that lie, keys that are almost what they should be."""

from __future__ import annotations

import datetime as dt
import io
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

import retailinfer as ri
from retailinfer.clock import ManualClock


def numbered(n):
    """A table of n rows, and their keys."""
    table = ri.FeatureTable(columns={"x": "f64"}, key="str")
    table.put_many({f"key-{i}": {"x": float(i)} for i in range(n)})
    return table, [f"key-{i}" for i in range(n)]


class Asked:
    """A source that says which keys it was asked for."""

    def __init__(self):
        self.keys = []

    def fetch(self, keys, *, timeout_s):
        self.keys += keys
        return {key: {"x": 1.0} for key in keys}


def test_matrix_whose_shape_runs_code_that_drops_the_keys():
    """Keys are read last, so that nothing of them is gone when they are looked up."""
    table, keys = numbered(500)

    class Emptying(np.ndarray):
        @property
        def shape(self):
            keys.clear()
            return (500, 1)

    out = np.zeros((500, 1), np.float32)
    gathered = table.gather(keys, ["x"], out=out.view(Emptying))
    assert gathered.values[:, 0].tolist() == list(range(500))
    assert out[:, 0].tolist() == list(range(500))


def test_matrix_that_claims_to_be_larger_than_it_is():
    """What a subclass says of itself is not believed."""
    table, keys = numbered(500)
    snapshot = ri.Snapshot.from_rows({key: {"x": 1.0} for key in keys})

    class Boasting(np.ndarray):
        shape = (500, 1)

    for one in (table, snapshot):
        with pytest.raises(ri.ShapeError):
            one.gather(keys, ["x"], out=np.zeros((1, 1), np.float32).view(Boasting))


def test_matrix_that_shrinks_while_keys_are_read():
    """Memory that was given back meanwhile is not written to."""
    table = ri.FeatureTable(columns={"x": "f64"}, key="int")
    out = np.zeros((500, 1), np.float32)

    class Shrinking(np.int64):
        def __int__(self):
            out.resize((0, 1), refcheck=False)
            return 0

        __index__ = __int__

    try:
        table.gather([Shrinking(1), *range(499)], ["x"], out=out)
    except ri.ShapeError:
        assert len(out) == 0  # told, where reading such a key runs its code
    else:
        assert len(out) == 500


def test_sources_are_asked_for_plain_keys():
    """NumPy's integers and subclasses are keys, but a database would take them for something else and not find them."""

    class Number(int):
        __slots__ = ()

    class Text(str):
        __slots__ = ()

    source = Asked()
    table = ri.FeatureTable(columns={"x": "f64"}, key="int", source=source, timeout_ms=5_000)
    assert table.gather([np.int64(1), Number(2), 3], ["x"]).outcome.tolist() == [0, 0, 0]
    pairs = Asked()
    other = ri.FeatureTable(columns={"x": "f64"}, key=("str", "int"), source=pairs, timeout_ms=5_000)
    assert other.lookup((Text("a"), np.int64(7))) == {"x": 1.0}
    assert [type(key) for key in source.keys] == [int, int, int]
    assert [type(part) for part in pairs.keys[0]] == [str, int]


def test_rows_that_were_true_at_the_epoch_are_old():
    """Zero is a moment like any other, and no sign that the moment is not known; a null is."""
    when = {
        "zero": 0,
        "decimal": Decimal(0),
        "datetime": dt.datetime(1970, 1, 1, tzinfo=dt.UTC),
        "null": None,
    }
    table = ri.FeatureTable(columns={"x": "f64"}, key="str", updated_at="when")
    table.put_many({key: {"x": 1.0, "when": at} for key, at in when.items()})
    old_s = 1_000_000_000
    assert {key: table.age_s(key) > old_s for key in when} == {key: key != "null" for key in when}
    for kind, nothing in ((pa.float64(), float("nan")), (pa.float64(), None), (pa.int64(), None)):
        loaded = ri.FeatureTable(columns={"x": "f64"}, key="str", updated_at="when")
        loaded.load(
            pa.table({"k": ["a", "b"], "x": [1.0, 2.0], "when": pa.array([0, nothing], kind)}), key="k"
        )
        assert loaded.age_s("a") > old_s > loaded.age_s("b")


def test_seconds_may_be_decimals():
    """PostgreSQL gives the seconds of a moment as a numeric, and drivers give that as a Decimal."""
    table = ri.FeatureTable(columns={"x": "f64"}, key="str", updated_at="when")
    table.put("a", {"x": Decimal("1.5"), "when": Decimal("1700000000.123456")})
    assert table.updated_at_ns("a") == 1_700_000_000_123_456_000
    table.put("a", {"x": 1.0, "when": Decimal("nan")})
    assert table.age_s("a") < 1_000
    for far in (Decimal("inf"), Decimal("1e30")):
        with pytest.raises(ri.FeatureRangeError):
            table.put("a", {"x": 1.0, "when": far})


def test_rows_that_live_beyond_the_times_of_a_dump_are_saved():
    """A time to live of a century is no reason to refuse yesterday's rows."""
    table = ri.FeatureTable(columns={"x": "f64"}, key="str", ttl="36500d")
    table.put("a", {"x": 1.0})
    saved = io.BytesIO()
    table.dump(saved)
    again = ri.FeatureTable(columns={"x": "f64"}, key="str", ttl="36500d")
    assert again.restore(saved.getvalue()) == 1
    assert again.gather(["a"], ["x"]).outcome.tolist() == [0]


def test_dump_that_changes_while_it_is_restored():
    """What was checked is what is read: the caller's memory may be anything a moment later."""
    clock = ManualClock()
    table = ri.FeatureTable(columns={"x": "f64"}, key="str", clock=clock)
    table.put_many({f"key-{i}": {"x": 1.0} for i in range(5)})
    saved = io.BytesIO()
    table.dump(saved)
    image = bytearray(saved.getvalue())

    class Overwriting(ManualClock):
        def monotonic_ns(self):
            image[:] = b"\xff" * len(image)
            return super().monotonic_ns()

    again = ri.FeatureTable(columns={"x": "f64"}, key="str", clock=Overwriting())
    assert again.restore(image) == 5
    assert sorted(again.keys()) == sorted(table.keys())
