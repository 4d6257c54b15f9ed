"""Replay by hand: order of arrival, ties, ages, states, what it refuses, and what comes out."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.errors import (
    ConfigError,
    FeatureMissingError,
    FeatureRangeError,
    FeatureTypeError,
    SpecError,
)
from retailinfer.store.aliases import Aliases

pa = pytest.importorskip("pyarrow", reason="`pyarrow` is not installed (pip install retailinfer[test])")

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def moments(seconds: list[float | None]) -> Any:
    """Seconds after noon as Arrow timestamps."""
    return pa.array(
        [None if s is None else NOON + dt.timedelta(seconds=s) for s in seconds], pa.timestamp("us", "UTC")
    )


def payments(*rows: tuple[Any, ...], **more: Any) -> Any:
    """(card, amount, at) of each."""
    card, amount, at = zip(*rows, strict=True) if rows else ((), (), ())
    made = {
        "card": pa.array(card, pa.string()),
        "amount": pa.array(amount, pa.float64()),
        "at": moments(list(at)),
    }
    return pa.table(made | more)


def chargebacks(*rows: tuple[str, float], **more: Any) -> Any:
    """(card, at) of each."""
    return pa.table(
        {"card": pa.array([r[0] for r in rows], pa.string()), "at": moments([r[1] for r in rows])} | more
    )


def spec_of(*columns: Any, request: Any = None, event_time: str | None = "at") -> ri.FeatureSpec:
    """A spec of card payments and chargebacks."""
    return ri.FeatureSpec(
        request=request or {"card": str, "amount": float, "at": ri.Timestamp},
        event_time=event_time,
        entities={"card": "card"},
        streams={
            "payment": None,
            "chargeback": ri.Stream({"card": str, "at": ri.Timestamp}, event_time="at"),
        },
        columns=columns or [COUNT],
    )


COUNT = c.window("card", "count", on="payment", over="1h", name="n")
BEFORE = c.window("card", "count", on="payment", over="1h", current="exclude", name="n")
BACK = c.window("card", "count", on="chargeback", over="1h", name="n")
NONE = chargebacks()


def counted(replayed: Any) -> list[float | None]:
    """The window `n` of each row."""
    found: list[float | None] = replayed.table["n"].to_pylist()
    return found


# ---- order ----------------------------------------------------------------------------------------------------


def test_rows_keep_their_order_and_are_counted_in_that_of_their_time():
    """A table in any order: each row sees what happened before it, and stays where it was."""
    events = payments(("a", 1.0, 30), ("a", 1.0, 10), ("b", 1.0, 5), ("a", 1.0, 20))
    assert counted(ri.replay(spec_of(), events, labels=NONE)) == [3, 1, 1, 2]


def test_simultaneous_events_come_in_table_order():
    """Three payments of the same moment: each sees those above it in the table."""
    events = payments(("a", 1.0, 10), ("a", 1.0, 10), ("a", 1.0, 10))
    assert counted(ri.replay(spec_of(BEFORE), events, labels=NONE)) == [0, 1, 2]


def test_a_late_event_is_not_seen_before_it_arrives():
    """A payment of 12:00:10 that arrives at 12:01 is unknown at 12:00:30, and counts from its arrival on."""
    events = payments(("a", 1.0, 10), ("a", 1.0, 30), ("a", 1.0, 61), came=moments([60, 30, 61]))
    assert counted(ri.replay(spec_of(), events, labels=NONE, arrived={"payment": "came"})) == [2, 1, 3]


def test_label_counts_from_its_arrival_and_after_a_payment_of_the_same_moment():
    """Of a payment and a chargeback that arrive together, the payment comes first: it cannot have known."""
    events = payments(("a", 1.0, 10), ("a", 1.0, 11))
    assert counted(ri.replay(spec_of(BACK), events, labels=chargebacks(("a", 10)))) == [0, 1]
    late = chargebacks(("a", 5), came=moments([11]))
    events = events.append_column("came", events["at"])
    assert counted(ri.replay(spec_of(BACK), events, labels=late, arrived="came")) == [0, 0]


def test_event_from_the_future_counts_at_its_arrival():
    """A client's clock an hour ahead: the payment is counted when it arrives, as in serving."""
    events = payments(("a", 1.0, 3_600), ("a", 1.0, 20), came=moments([10, 20]))
    replayed = ri.replay(spec_of(), events, labels=NONE, arrived={"payment": "came"})
    assert counted(replayed) == [1, 2]
    assert replayed.counts["ahead"] == 1
    patient = ri.replay(spec_of(), events, labels=NONE, arrived={"payment": "came"}, max_ahead="2h")
    assert counted(patient) == [1, 1]


def test_repeated_event_counts_once_if_it_has_an_id():
    """The same id twice is one payment; without ids it is two; a null id is none."""
    events = payments(("a", 1.0, 10), ("a", 1.0, 10), ("a", 1.0, 12), id=pa.array(["x", "x", None]))
    once = ri.replay(spec_of(), events, labels=NONE, event_id={"payment": "id"})
    assert counted(once) == [1, 1, 2]
    assert once.counts["duplicates"] == 1
    assert counted(ri.replay(spec_of(), events, labels=NONE)) == [1, 2, 3]


def test_the_last_eight_ids_of_an_entity_are_remembered():
    """An id that comes again after seven others is still known, after eight it is not; other cards do not push it out."""
    ids = ["x", *(f"id-{i}" for i in range(7)), "x", "id-7", "x"]
    events = payments(*(("a", 1.0, i) for i in range(11)), id=pa.array(ids))
    assert counted(ri.replay(spec_of(), events, labels=NONE, event_id={"payment": "id"})) == [
        *range(1, 9),
        8,
        9,
        10,
    ]
    cards = ["a", *"bbbbbbbbb", "a"]
    events = payments(
        *((card, 1.0, i) for i, card in enumerate(cards)), id=pa.array(["x", *"123456789", "x"])
    )
    assert counted(ri.replay(spec_of(), events, labels=NONE, event_id={"payment": "id"}))[-1] == 1


def test_streams_may_name_their_columns_differently():
    """Arrival and id by stream: payments have both, chargebacks none."""
    events = payments(("a", 1.0, 10), ("a", 1.0, 12), seen=moments([10, 12]), id=pa.array([1, 1]))
    replayed = ri.replay(
        spec_of(COUNT, c.window("card", "count", on="chargeback", over="1h", name="back")),
        events,
        labels={"chargeback": chargebacks(("a", 11))},
        arrived={"payment": "seen"},
        event_id={"payment": "id"},
    )
    assert counted(replayed) == [1, 1]
    assert replayed.table["back"].to_pylist() == [0, 1]


def test_event_without_a_time_happens_when_it_arrives():
    """A null event time: the arrival stands in, as the call's moment does in serving."""
    spec = spec_of(request={"card": str, "amount": float, "at": ri.Timestamp | None})
    events = payments(("a", 1.0, None), ("a", 1.0, 4_000), came=moments([3_000, 4_000]))
    assert counted(ri.replay(spec, events, labels=NONE, arrived={"payment": "came"})) == [1, 2]
    with pytest.raises(FeatureMissingError, match="arrived="):
        ri.replay(spec, events, labels=NONE)


# ---- states -----------------------------------------------------------------------------------------------------


def test_window_is_stale_until_history_covers_it():
    """Rows of the first hour say that their window reaches back to before the first event; `cold` finds them."""
    events = payments(("a", 1.0, 0), ("b", 1.0, 3_000), ("c", 1.0, 7_500))
    replayed = ri.replay(spec_of(), events, labels=NONE)
    assert replayed.states["n"].tolist() == [3, 3, 0]
    assert replayed.cold.tolist() == [True, True, False]
    long_ago = ri.replay(spec_of(), events, labels=NONE, since=NOON - dt.timedelta(days=1))
    assert not long_ago.cold.any()


def test_row_that_serving_would_refuse_is_refused_by_its_number():
    """on_stale="refuse": the table is there, the matrix is not, until the cold rows are left out."""
    spec = spec_of(c.window("card", "count", on="payment", over="1h", name="n", on_stale="refuse"))
    replayed = ri.replay(spec, payments(("a", 1.0, 0), ("a", 1.0, 9_000)), labels=NONE)
    with pytest.raises(FeatureMissingError, match=r"\$\[0\]"):
        _ = replayed.matrix
    warm = replayed.take(~replayed.cold)
    assert np.asarray(warm.matrix).tolist() == [[1.0]]


def test_stored_rows_are_those_of_the_arrival():
    """A limit of 12:00:20 is not known at :19, known at :20, and old after its max_age; a card without a row is unknown."""
    spec = spec_of(c.stored("card.limit", max_age="1m", unknown=-1.0, null=-2.0, on_stale=-3.0), COUNT)
    history = pa.table(
        {"card": ["a", "a", "a"], "limit": pa.array([5.0, 7.0, None]), "updated_at": moments([20, 40, 200])}
    )
    events = payments(*(("a", 1.0, s) for s in (19, 20, 39, 40, 100, 101, 200)), ("b", 1.0, 50))
    replayed = ri.replay(spec, events, labels=NONE, tables={"card": history})
    assert np.asarray(replayed.matrix)[:, 0].tolist() == [-1, 5, 5, 7, 7, -3, -2, -1]
    assert replayed.table["card.limit"].to_pylist() == [None, 5, 5, 7, 7, 7, None, None]
    assert replayed.states["card.limit"].tolist() == [2, 0, 0, 0, 0, 0, 0, 2]
    assert replayed.flags[:, 0].tolist() == [2, 0, 0, 0, 0, 3, 1, 2]


def test_row_that_came_later_than_it_was_true_is_read_from_then_on():
    """True at 12:00:20, in the store at 12:01: unknown before, and its age counts from when it was true."""
    spec = spec_of(c.stored("card.limit", max_age="1m", unknown=-1.0, on_stale=-3.0), COUNT)
    history = pa.table(
        {"card": ["a"], "limit": [5.0], "updated_at": moments([20]), "loaded_at": moments([60])}
    )
    replayed = ri.replay(
        spec,
        payments(("a", 1.0, 59), ("a", 1.0, 60), ("a", 1.0, 81)),
        labels=NONE,
        tables={"card": history},
        available_at="loaded_at",
    )
    assert np.asarray(replayed.matrix)[:, 0].tolist() == [-1, 5, -3]


def test_last_of_two_rows_of_one_moment_counts():
    """As a store that is written twice keeps what came last."""
    history = pa.table({"card": ["a", "a"], "limit": [1.0, 2.0], "updated_at": moments([5, 5])})
    spec = spec_of(c.stored("card.limit"), COUNT)
    replayed = ri.replay(spec, payments(("a", 1.0, 5)), labels=NONE, tables={"card": history})
    assert replayed.table["card.limit"].to_pylist() == [2.0]


def test_rows_that_hold_for_ever_need_no_time():
    """A catalogue: updated_at=None; then a key may stand there once only."""
    spec = spec_of(c.stored("card.limit", unknown=-1.0), COUNT)
    table = pa.table({"card": ["a", "b"], "limit": [1.0, 2.0]})
    events = payments(("b", 1.0, 5), ("x", 1.0, 6))
    replayed = ri.replay(spec, events, labels=NONE, tables={"card": table}, updated_at=None)
    assert np.asarray(replayed.matrix)[:, 0].tolist() == [2.0, -1.0]
    with pytest.raises(ConfigError, match="one row a key"):
        ri.replay(
            spec, events, labels=NONE, tables={"card": pa.concat_tables([table, table])}, updated_at=None
        )


def test_stored_columns_of_other_entities_stand_in_the_events():
    """What has no history may be given with the events, as for `transform`."""
    spec = spec_of(c.stored("card.limit"), COUNT)
    events = payments(("a", 1.0, 5), **{"card.limit": [9.0]})
    assert np.asarray(ri.replay(spec, events, labels=NONE).matrix)[:, 0].tolist() == [9.0]
    with pytest.raises(ConfigError, match=r"card\.limit"):
        ri.replay(
            spec,
            events,
            labels=NONE,
            tables={"card": pa.table({"card": ["a"], "limit": [1.0]})},
            updated_at=None,
        )


def test_keys_are_followed_as_of_the_event():
    """A guest who becomes a customer at 12:00:20: one history from then on, two before; the field itself stays."""
    aliases = Aliases("card")
    aliases.link("guest", into="a", at=NOON + dt.timedelta(seconds=20))
    events = payments(("a", 1.0, 10), ("guest", 1.0, 15), ("guest", 1.0, 20), ("a", 1.0, 25))
    replayed = ri.replay(spec_of(), events, labels=NONE, aliases={"card": aliases})
    assert counted(replayed) == [1, 1, 2, 3]
    assert replayed.table["card"].to_pylist() == ["a", "guest", "guest", "a"]
    store = ri.Store(aliases=[aliases])
    assert ri.replay(spec_of(), events, labels=NONE, aliases=store).table == replayed.table


# ---- what comes out ---------------------------------------------------------------------------------------------


def test_spec_is_fitted_on_what_was_replayed():
    """Replay before `fit`, then `transform` by the fitted spec: the matrix that a replay by it gives."""
    spec = spec_of(
        c.categorical("card", encoding="onehot"),
        c.window("card", "count", on="payment", over="1h", name="n", center="mean"),
    )
    events = payments(("a", 1.0, 0), ("b", 1.0, 10), ("a", 1.0, 20), target=pa.array([0, 1, 0]))
    replayed = ri.replay(spec, events, labels=NONE)
    with pytest.raises(SpecError, match="fit"):
        _ = replayed.matrix
    fitted = spec.fit(replayed.table)
    matrix = replayed.transform(fitted)
    np.testing.assert_array_equal(matrix, ri.replay(fitted, events, labels=NONE).matrix)
    np.testing.assert_array_equal(matrix, fitted.transform(replayed.table))
    assert matrix.names == fitted.names
    assert replayed.table["target"].to_pylist() == [0, 1, 0]


def test_some_rows_are_the_same_rows():
    """`take` by mask and by number gives the rows of the whole matrix."""
    replayed = ri.replay(spec_of(), payments(*(("a", 1.0, s) for s in range(5))), labels=NONE)
    whole = np.asarray(replayed.matrix)
    np.testing.assert_array_equal(replayed.take([3, 0]).matrix, whole[[3, 0]])
    np.testing.assert_array_equal(
        replayed.take(np.array([True, False] * 2 + [True])).matrix, whole[[0, 2, 4]]
    )
    assert len(replayed.take([])) == 0
    for wrong in ([5], [-1], [0.5], np.ones(4, bool), [[0]]):
        with pytest.raises(ConfigError):
            replayed.take(wrong)


def test_transform_by_another_spec_is_refused():
    """A spec that reads other windows has nothing to do with these rows."""
    replayed = ri.replay(spec_of(), payments(("a", 1.0, 0)), labels=NONE)
    with pytest.raises(SpecError, match=r"ri\.replay"):
        replayed.transform(spec_of(BEFORE))


def test_history_without_rows_gives_no_rows():
    """No payments: an empty matrix with its columns."""
    replayed = ri.replay(spec_of(), payments(), labels=NONE)
    assert np.asarray(replayed.matrix).shape == (0, 1)
    assert len(replayed) == 0


def test_spec_without_windows_is_joined_as_of_too():
    """Stored columns alone need no streams."""
    spec = ri.FeatureSpec(
        request={"card": str, "at": ri.Timestamp},
        event_time="at",
        entities={"card": "card"},
        columns=[c.stored("card.limit")],
    )
    history = pa.table({"card": ["a"], "limit": [1.5], "updated_at": moments([5])})
    events = pa.table({"card": ["a", "a"], "at": moments([4, 6])})
    assert ri.replay(spec, events, tables={"card": history}).table["card.limit"].to_pylist() == [None, 1.5]


# ---- what is refused --------------------------------------------------------------------------------------------


GOOD = payments(("a", 1.0, 0))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"labels": None}, ConfigError, "chargeback"),
        ({"labels": {"refund": NONE}}, SpecError, "refund"),
        ({"labels": {"payment": GOOD}}, SpecError, "payment"),
        ({"labels": NONE.drop_columns(["at"])}, SpecError, "at"),
        ({"events": GOOD.drop_columns(["amount"])}, SpecError, "amount"),
        ({"events": GOOD.append_column("n", pa.array([1.0]))}, ConfigError, "`n`"),
        ({"events": payments(("a", 1.0, None))}, FeatureMissingError, "row 0"),
        ({"events": [1, 2]}, FeatureTypeError, "Arrow"),
        ({"arrived": "came"}, SpecError, "came"),
        ({"arrived": {"payments": "came"}}, ConfigError, "payments"),
        ({"event_id": "id"}, SpecError, "id"),
        ({"events": GOOD.append_column("x", moments([None])), "arrived": {"payment": "x"}}, FeatureMissingError, "arrival"),
        ({"events": GOOD.append_column("id", pa.array([1.5])), "event_id": {"payment": "id"}}, FeatureTypeError, "float"),
        ({"tables": {"shop": GOOD}}, SpecError, "shop"),
        ({"updated_at": {"shop": None}}, ConfigError, "shop"),
        ({"aliases": {"shop": Aliases("shop")}}, SpecError, "shop"),
        ({"aliases": {"card": Aliases("card", "int")}}, ConfigError, "one field"),
        ({"aliases": {"card": {"a": "b"}}}, ConfigError, "Aliases"),
        ({"aliases": 5}, ConfigError, "int"),
        ({"since": "yesterday"}, FeatureTypeError, "zone"),
        ({"max_ahead": "soon"}, SpecError, "soon"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], error: type[Exception], match: str):
    """Missing histories, columns and moments, unknown names, wrong types: typed errors that say which."""
    given: dict[str, Any] = {"events": GOOD, "labels": NONE} | change
    spec = spec_of(COUNT, c.window("card", "count", on="chargeback", over="1h"))
    with pytest.raises(error, match=match):
        ri.replay(spec, given.pop("events"), **given)


@pytest.mark.parametrize(
    ("history", "error", "match"),
    [
        ({"card": ["a"], "limit": [1.0]}, SpecError, "updated_at"),
        ({"card": ["a"], "updated_at": moments([1])}, SpecError, "limit"),
        ({"limit": [1.0], "updated_at": moments([1])}, SpecError, "card"),
        ({"card": pa.array([None], pa.string()), "limit": [1.0], "updated_at": moments([1])}, FeatureMissingError, "row 0"),
        ({"card": ["a"], "limit": [1.0], "updated_at": moments([None])}, FeatureMissingError, "row 0"),
        ({"card": [5], "limit": [1.0], "updated_at": moments([1])}, FeatureTypeError, "card"),
        ({"card": ["a"], "limit": ["high"], "updated_at": moments([1])}, FeatureTypeError, "limit"),
        ({"card": ["a"], "limit": [1.0], "updated_at": ["now"]}, FeatureTypeError, "updated_at"),
    ],
)  # fmt: skip
def test_history_that_cannot_be_joined_is_refused(
    history: dict[str, Any], error: type[Exception], match: str
):
    """A history without keys, times or the columns that are read, or with others than declared."""
    spec = spec_of(c.stored("card.limit"), COUNT)
    with pytest.raises(error, match=match):
        _ = ri.replay(spec, GOOD, labels=NONE, tables={"card": pa.table(history)}).matrix


def test_value_that_windows_cannot_hold_names_its_row():
    """An amount beyond 2**53 cents: FeatureRangeError with the row, as serving refuses it."""
    spec = spec_of(c.window("card", "sum", on="payment", of="amount", scale=100, over="1h"))
    with pytest.raises(FeatureRangeError, match=r"\[1\]"):
        ri.replay(spec, payments(("a", 1.0, 0), ("a", 1e15, 1)), labels=NONE)


def test_arrays_cannot_be_replayed():
    """A release without features has no history."""
    spec = ri.FeatureSpec.from_inputs([("x", 1, (None, 3))])
    with pytest.raises(SpecError, match="arrays"):
        ri.replay(spec, GOOD)


def test_without_pyarrow_the_extra_is_named():
    """No pyarrow: an error that says what to install, not an ImportError."""
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "import retailinfer as ri\n"
        "from retailinfer import columns as c\n"
        "spec = ri.FeatureSpec(request={'a': float, 'at': ri.Timestamp}, event_time='at', columns=[c.numeric('a')])\n"
        "try:\n    ri.replay(spec, {'a': [1.0]})\n"
        "except ri.ConfigError as exc:\n    print(exc)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert "retailinfer[arrow]" in done.stdout, done.stderr
