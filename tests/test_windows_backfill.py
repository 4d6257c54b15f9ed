"""Histories that are added in parts: nothing is counted twice, and a history without events is one, too."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pytest

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.clock import ManualClock

START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)


def day(n):
    """A moment so many days after the start."""
    return START + dt.timedelta(days=n)


def spec():
    """One window, of thirty days."""
    return ri.FeatureSpec(
        request={"card": str, "at": ri.Timestamp},
        event_time="at",
        entities={"card": "card"},
        streams={"payment": None},
        columns=[c.window("card", "count", on="payment", over="30d", name="n", on_stale="use")],
    )


def store():
    """Windows that begin on the twentieth day."""
    clock = ManualClock(wall_ns=int(day(20).timestamp()) * 10**9)
    return ri.Store(windows=ri.Windows.memory(clock=clock), clock=clock)


def events(*days):
    """One card, once on each of these days."""
    at = pa.array([day(n) for n in days], pa.timestamp("us", tz="UTC"))
    return pa.table({"card": pa.array(["a"] * len(days), pa.string()), "at": at})


def test_history_that_reaches_further_back_the_second_time():
    """What a table has from before `since` is left to whoever says that it is complete there."""
    filled = store()
    table = events(2, 5, 11, 12)
    assert filled.backfill(spec(), "payment", table, since=day(10)) == 2
    assert filled.backfill(spec(), "payment", table, since=day(1)) == 2
    assert filled.backfill(spec(), "payment", table, since=day(1)) == 0
    assert filled.windows.stats[0].events == 4


def test_history_in_which_nothing_happened():
    """No event since a moment is something to know: the windows count as complete from it on."""
    filled = store()
    assert filled.backfill(spec(), "payment", events(), since=day(1)) == 0
    assert filled.windows.stats[0].complete_since_ns == int(day(1).timestamp()) * 10**9


@pytest.mark.parametrize(
    "since",
    [
        1e30,
        -1e30,
        10**400,
        float("nan"),
        True,
        dt.datetime.min.replace(tzinfo=dt.UTC),
        day(1).replace(tzinfo=None),
    ],
)
def test_beginnings_that_are_none_are_refused(since):
    """Out of range, without a zone, or no moment at all: one kind of error."""
    with pytest.raises(ri.ConfigError):
        store().backfill(spec(), "payment", events(2), since=since)
