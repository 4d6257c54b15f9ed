"""A saved store in a process whose releases know an entity by another kind of key."""

from __future__ import annotations

import retailinfer as ri
from retailinfer import columns as c


def store_of(kind):
    """A store with a table, aliases and windows; keys of the windows are of this kind."""
    windows = ri.Windows.memory()
    spec = ri.FeatureSpec(
        request={"card": kind},
        entities={"card": "card"},
        streams={"payment": None},
        columns=[c.window("card", "count", on="payment", over="1h", name="n")],
    )
    (layout,) = spec.window_layout("payment")
    windows.bind(layout, spec.stream("payment").program)
    table = ri.FeatureTable(columns={"x": "f64"}, key="str")
    return ri.Store(tables={"shop": table}, windows=windows, aliases=["shop"])


def test_windows_with_other_keys_are_left_out_and_the_rest_is_restored(tmp_path):
    """One part that has no place here costs neither the parts before it nor those behind."""
    old = store_of(str)
    old["shop"].put("a", {"x": 1.0})
    old.aliases("shop").link("a", into="b")
    old.save(tmp_path / "state")
    new = store_of(int)
    done = new.restore(tmp_path / "state")
    assert (done.tables, done.windows, done.aliases) == ({"shop": 1}, {}, {"shop": 1})
    assert [why.partition(":")[0] for why in done.left_out] == ["windows"]
    assert "keyed by 'int'" in done.left_out[0]
