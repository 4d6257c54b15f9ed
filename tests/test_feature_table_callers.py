"""What callers of a mutable table may do to it at worst: arrays that lie, keys that are almost what they should be."""

from __future__ import annotations

import numpy as np
import pytest

import retailinfer as ri


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
