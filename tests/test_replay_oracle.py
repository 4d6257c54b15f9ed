"""Replay against an independent oracle in DuckDB, bit for bit, on random small histories.

Events come late, twice and at the same moment; labels come late; keys are null; rows of tables change; keys are linked and
split. The oracle is `replay_oracle.py`.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.store.aliases import Aliases

pytest.importorskip("duckdb", reason="`duckdb` is not installed (pip install retailinfer[test])")
pa = pytest.importorskip("pyarrow", reason="`pyarrow` is not installed (pip install retailinfer[test])")

from replay_oracle import NULL, STALE, UNKNOWN, Oracle  # noqa: E402 - after the check for duckdb

START = dt.datetime(2026, 3, 28, 23, 59, 30, tzinfo=dt.UTC)  # a Berlin night in which the clocks change
START_NS = round(START.timestamp()) * 10**9

DECLARED: dict[str, Any] = {
    "request": {
        "card": str | None,
        "shop": int | None,
        "amount": float | None,
        "units": int | None,
        "online": bool | None,
        "at": ri.Timestamp,
    },
    "event_time": "at",
    "tz": "Europe/Berlin",
    "entities": {"card": "card", "shop": "shop", "pair": ("card", "shop")},
    "streams": {
        "payment": None,
        "label": ri.Stream(
            {"card": str | None, "shop": int | None, "bad": bool | None, "at": ri.Timestamp}, event_time="at"
        ),
    },
}

SPEC = ri.FeatureSpec(
    **DECLARED,
    columns=[
        c.numeric("amount", null=-5.0),
        c.stored("card.limit", max_age="20s", unknown=-1.0, null=-2.0, on_stale=-3.0),
        c.stored("card.level", unknown=-1.0),
        c.stored("pair.visits", unknown=-1.0),
        c.equal("card.home", "card.work", name="same_place", unknown=-1.0, null=-2.0),
        c.window("card", "count", on="payment", over="10s"),
        c.window("card", "count", on="payment", over="10s", pane="5s", current="exclude", name="before"),
        c.window("card", "count", on="payment", over="40s", pane="10s", where="amount > 1 and online == true", name="many"),
        c.window("card", "sum", on="payment", of="amount", over="20s", pane="4s", scale=100),
        c.window("card", "mean", on="payment", of="amount", over="60s", pane="4s", scale=100, current="exclude"),
        c.window("card", "sum", on="payment", of="amount", over="8s", pane="4s", delay="12s", scale=100, name="delayed"),
        c.window("card", "min", on="payment", of="amount", over="30s", pane="10s", scale=1000),
        c.window("card", "max", on="payment", of="units", over="30s", pane="10s", where="units != 3", on_stale=-9.0),
        c.window("card", "distinct", on="payment", of="shop", over="30s", pane="10s"),
        c.window("card", "sum", on="payment", of="online", over="30s", pane="1s", name="n_online"),
        c.window("shop", "distinct", on="payment", of="card", over="20s", pane="5s", current="exclude"),
        c.window("pair", "mean", on="payment", of="units", over="30s", pane="3s"),
        c.window("card", "count", on="label", over="30s", pane="10s"),
        c.window("shop", "mean", on="label", of="bad", over="60s", pane="20s"),
        c.window("shop", "sum", on="label", of="bad", over="30s", pane="10s", delay="10s", name="bad_before"),
        *c.lag("shop", on="payment", of="units", step="1h", lags=[1, 2], fill=0.5),
    ],
)  # fmt: skip


def stamps(ns: list[int]) -> Any:
    """Moments in microseconds, as requests have them."""
    return pa.array([t // 1000 for t in ns], pa.int64()).cast(pa.timestamp("us", "UTC"))


CARDS, SHOPS = st.sampled_from(["a", "b", "ccc", "", None]), st.sampled_from([1, 2, -7, None])
# Mostly within a minute, so that windows fill; now and then an hour away, so that panes are forgotten and days change.
SECONDS = st.one_of(
    st.sampled_from([10, 11, 20]),  # so that much falls on the same moment
    st.integers(0, 60),
    st.integers(0, 600).map(lambda t: t / 10),
    st.integers(-2, 3).map(lambda h: 3600 * h + 31),
)
LATENESS = st.one_of(st.just(0), st.just(0), st.integers(-3, 30), st.integers(0, 600), st.just(-1000))
MONEY = st.one_of(
    st.none(), st.integers(-300, 30_000).map(lambda n: n / 100), st.sampled_from([0.005, 1.115, 1e9, -0.0])
)
PAYMENT = st.fixed_dictionaries(
    {
        "card": CARDS,
        "shop": SHOPS,
        "amount": MONEY,
        "units": st.one_of(st.none(), st.integers(-5, 5)),
        "online": st.sampled_from([True, False, None]),
        "at": SECONDS,
        "late": LATENESS,
        "again": st.sampled_from([None, None, None, 0, 5, 40]),
    }
)
LABEL = st.fixed_dictionaries(
    {
        "card": CARDS,
        "shop": SHOPS,
        "bad": st.sampled_from([True, False, None]),
        "at": SECONDS,
        "late": LATENESS,
    }
)
ROW = st.fixed_dictionaries(
    {
        "card": CARDS.filter(lambda key: key is not None),
        "shop": SHOPS.filter(lambda key: key is not None),
        "limit": st.one_of(st.none(), st.floats(0, 1e6)),
        "level": st.one_of(st.none(), st.integers(0, 9)),
        "place": st.tuples(*2 * [st.sampled_from(["x", "y", None])]),
        "at": SECONDS,
    }
)
LINK = st.tuples(
    st.sampled_from(["a", "b", "ccc"]), st.sampled_from(["a", "b", "ccc", "d", None]), st.integers(-10, 70)
)


# A history asks the database some hundred questions; making one that fails smaller would take minutes.
some = settings(
    max_examples=max(settings().max_examples // 5, 10), phases=[Phase.explicit, Phase.reuse, Phase.generate]
)


def ns(seconds: float) -> int:
    """A moment of the history."""
    return START_NS + round(seconds * 1e6) * 1000


def payments_table(rows: list[dict[str, Any]]) -> Any:
    """Requests, with copies of those that are sent again."""
    sent = [row | {"id": f"id-{i}", "came": ns(row["at"] + row["late"])} for i, row in enumerate(rows)]
    sent += [row | {"came": row["came"] + row["again"] * 10**9} for row in sent if row["again"] is not None]
    return pa.table(
        {
            "card": pa.array([row["card"] for row in sent], pa.string()),
            "shop": pa.array([row["shop"] for row in sent], pa.int64()),
            "amount": pa.array([row["amount"] for row in sent], pa.float64()),
            "units": pa.array([row["units"] for row in sent], pa.int64()),
            "online": pa.array([row["online"] for row in sent], pa.bool_()),
            "at": stamps([ns(row["at"]) for row in sent]),
            "came": stamps([row["came"] for row in sent]),
            "id": pa.array([row["id"] for row in sent], pa.string()),
        }
    )


def labels_table(rows: list[dict[str, Any]]) -> Any:
    """Labels, whose own time is when they were found; they may come later."""
    return pa.table(
        {
            "card": pa.array([row["card"] for row in rows], pa.string()),
            "shop": pa.array([row["shop"] for row in rows], pa.int64()),
            "bad": pa.array([row["bad"] for row in rows], pa.bool_()),
            "at": stamps([ns(row["at"]) for row in rows]),
            "came": stamps([ns(row["at"] + row["late"]) for row in rows]),
            "id": pa.array([f"label-{i}" for i in range(len(rows))], pa.string()),
        }
    )


def history_tables(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What was stored of cards and pairs, and since when."""
    times = stamps([ns(row["at"]) for row in rows])
    return {
        "card": pa.table(
            {
                "card": pa.array([row["card"] for row in rows], pa.string()),
                "limit": pa.array([row["limit"] for row in rows], pa.float64()),
                "level": pa.array([row["level"] for row in rows], pa.int64()),
                "home": pa.array([row["place"][0] for row in rows], pa.string()),
                "work": pa.array([row["place"][1] for row in rows], pa.string()),
                "updated_at": times,
            }
        ),
        "pair": pa.table(
            {
                "card": pa.array([row["card"] for row in rows], pa.string()),
                "shop": pa.array([row["shop"] for row in rows], pa.int64()),
                "visits": pa.array([row["level"] for row in rows], pa.int64()),
                "updated_at": times,
            }
        ),
    }


def bits(values: Any) -> list[int]:
    """The bits of floats, all NaNs alike."""
    found = np.array(values, np.float64)
    found[np.isnan(found)] = np.nan
    return found.view(np.int64).tolist()


def check_windows(replayed: Any, oracle: Oracle) -> dict[str, Any]:
    """Every window of every row: the same state, and the same bits. Returns the oracle's."""
    found = {name: oracle.window(name) for name in replayed.spec.body.windows}
    for name, (values, states) in found.items():
        got = replayed.table[name].to_numpy(zero_copy_only=False)
        assert bits(got) == bits(values), name
        # a null is said by the column itself
        assert (
            np.where(np.isnan(values) & (states == NULL), 0, states).tolist()
            == np.where(replayed.states[name] == NULL, 0, replayed.states[name]).tolist()
        ), name
    return found


def check_stored(replayed: Any, oracle: Oracle, entity: str) -> None:
    """Every stored column of an entity: the same value, the same age, the same state."""
    wanted = oracle.stored(entity)
    for ref in (ref for ref in replayed.spec.body.stored if ref.partition(".")[0] == entity):
        assert replayed.table[ref].to_pylist() == wanted[ref], ref
        assert (replayed.states[ref] == UNKNOWN).tolist() == [not known for known in wanted["known"]], ref
        ages = [at if at is not None else -(2**63) for at in wanted["updated_ns"]]
        assert replayed.updated_ns[ref].tolist() == ages, ref


def check_cells(replayed: Any, oracle: Oracle, windows: dict[str, Any], came: list[int]) -> None:
    """The cells that come out of it: outcomes by state, one rounding to float32."""
    spec = replayed.spec
    matrix = dict(zip(spec.names, np.asarray(replayed.matrix).T, strict=True))
    stored = oracle.stored("card")
    expected = []
    for value, known, updated, now in zip(
        stored["card.limit"], stored["known"], stored["updated_ns"], came, strict=True
    ):
        old = known and now - updated > 20 * 10**9
        expected.append(-1.0 if not known else -2.0 if value is None else -3.0 if old else value)
    assert bits(matrix["card.limit"]) == bits(np.array(expected, np.float32))
    for name, (values, states) in windows.items():
        cells = values
        if name == "card_max_units_30s_payment":
            cells = np.where(states == STALE, -9.0, values)
        if name.startswith("shop_lag"):  # `unknown` is not said, so it is as `null`
            cells = np.where((states == NULL) | (states == UNKNOWN), 0.5, values)
        assert bits(matrix[name]) == bits(cells.astype(np.float32)), name


@some
@given(
    st.lists(PAYMENT, min_size=1, max_size=25),
    st.lists(LABEL, max_size=8),
    st.lists(ROW, max_size=8),
    st.booleans(),
)
def test_replay_equals_the_oracle(
    payments: list[dict[str, Any]], labels: list[dict[str, Any]], rows: list[dict[str, Any]], ids: bool
):
    """Late, repeated and simultaneous events, late labels, null keys, rows that change: every value, state and cell."""
    events, found, tables = payments_table(payments), labels_table(labels), history_tables(rows)
    event_id = "id" if ids else None
    oracle = Oracle(SPEC, events, labels={"label": found}, tables=tables, arrived="came", event_id=event_id)
    replayed = ri.replay(
        SPEC, events, labels={"label": found}, tables=tables, arrived="came", event_id=event_id
    )
    windows = check_windows(replayed, oracle)
    check_stored(replayed, oracle, "card")
    check_stored(replayed, oracle, "pair")
    check_cells(replayed, oracle, windows, (events["came"].cast(pa.int64()).to_numpy() * 1000).tolist())


@some
@given(
    st.lists(PAYMENT, min_size=1, max_size=20),
    st.lists(LABEL, max_size=5),
    st.lists(LINK, max_size=8),
    st.lists(ROW, max_size=8),
)
def test_replay_equals_the_oracle_with_aliases(
    payments: list[dict[str, Any]], labels: list[dict[str, Any]], links: list[Any], rows: list[dict[str, Any]]
):
    """Keys that stand for others from some moment on: windows of both streams, and stored rows, follow the chain."""
    aliases, accepted = Aliases("card"), []
    for key, into, seconds in links:
        try:
            if into is None:
                aliases.unlink(key, at=START + dt.timedelta(seconds=seconds))
            else:
                aliases.link(key, into=into, at=START + dt.timedelta(seconds=seconds))
        except ri.ConfigError:
            continue
        accepted = [one for one in accepted if one[::2] != (key, ns(seconds))] + [(key, into, ns(seconds))]
    events, found, tables = payments_table(payments), labels_table(labels), history_tables(rows)
    oracle = Oracle(
        SPEC,
        events,
        labels={"label": found},
        tables=tables,
        links={"card": [(a, b or a, t) for a, b, t in accepted]},
        arrived="came",
    )
    replayed = ri.replay(SPEC, events, labels=found, tables=tables, aliases={"card": aliases}, arrived="came")
    check_windows(replayed, oracle)
    check_stored(replayed, oracle, "card")
    check_stored(replayed, oracle, "pair")
    assert replayed.table["card"].to_pylist() == events["card"].to_pylist()


@some
@given(st.lists(PAYMENT, min_size=1, max_size=25), st.integers(0, 100))
def test_replay_in_event_time_order_equals_the_oracle(payments: list[dict[str, Any]], since: int):
    """Without arrivals events come when they happen; windows that begin before `since` are stale."""
    events = payments_table(payments)
    nothing = labels_table([])
    moment = START + dt.timedelta(seconds=since)
    oracle = Oracle(SPEC, events, labels={"label": nothing}, since_ns=ns(since))
    stored = {
        ref: pa.nulls(len(events), pa.string() if ref in ("card.home", "card.work") else pa.float64())
        for ref in SPEC.body.stored
    }
    wide = events
    for ref, column in stored.items():
        wide = wide.append_column(ref, column)
    replayed = ri.replay(SPEC, wide, labels=nothing, since=moment)
    windows = check_windows(replayed, oracle)
    assert (
        replayed.cold.tolist() == np.any([states == STALE for _, states in windows.values()], axis=0).tolist()
    )
