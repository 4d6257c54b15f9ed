"""Replay equals serving: what `Scorer.score(observe=True)` sees, request by request, are the very rows of the matrix.

Events come late here by no more than windows forgive: serving also forgets whole entities, once nothing of them can count any
more by its clock, and says `stale` to an event that comes later than that. Replay keeps them (test_replay_oracle.py).

Each history is played twice: by `ri.replay`, and through a Scorer whose clock stands at each event's arrival, with labels
observed, rows of a FeatureTable written and keys linked when history says so.
"""

from __future__ import annotations

import datetime as dt
import functools
from typing import Any

import numpy as np
import onnxruntime
import pytest
import releases
from hypothesis import given
from hypothesis import strategies as st
from test_replay_oracle import (
    DECLARED,
    LABEL,
    LINK,
    PAYMENT,
    START_NS,
    labels_table,
    ns,
    payments_table,
    some,
)

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.clock import ManualClock
from retailinfer.store.aliases import Aliases

pa = pytest.importorskip("pyarrow", reason="`pyarrow` is not installed (pip install retailinfer[test])")

EMPTY = 0.25  # for what has no value: the model takes no NaN
SPEC = ri.FeatureSpec(
    **DECLARED,
    columns=[
        c.numeric("amount", null=EMPTY),
        c.stored("card.limit", max_age="20s", unknown=-1.0, null=-2.0, on_stale=-3.0),
        c.ratio("amount", "card_mean_amount_60s_payment", null=EMPTY),
        c.window("card", "count", on="payment", over="10s", null=EMPTY),
        c.window("card", "count", on="payment", over="10s", pane="5s", current="exclude", name="before", null=EMPTY),
        c.window("card", "sum", on="payment", of="amount", over="20s", pane="4s", scale=100, null=EMPTY),
        c.window("card", "mean", on="payment", of="amount", over="60s", pane="4s", scale=100, null=EMPTY, current="exclude"),
        c.window("card", "sum", on="payment", of="units", over="8s", pane="4s", delay="12s", name="delayed", null=EMPTY),
        c.window("card", "max", on="payment", of="units", over="30s", pane="10s", where="units != 3", null=EMPTY, on_stale=-9),
        c.window("card", "distinct", on="payment", of="shop", over="30s", pane="10s", null=EMPTY),
        c.window("pair", "min", on="payment", of="units", over="30s", pane="3s", null=EMPTY),
        c.window("card", "count", on="label", over="30s", pane="10s", null=EMPTY),
        c.window("shop", "mean", on="label", of="bad", over="60s", pane="20s", null=EMPTY),
        *c.lag("shop", on="payment", of="units", step="1h", lags=[1, 2], fill=EMPTY),
    ],
)  # fmt: skip
ROW = st.tuples(st.sampled_from(["a", "b", "d"]), st.one_of(st.none(), st.floats(0, 1e6)), st.integers(0, 60))
LATENESS = st.one_of(st.just(0), st.integers(-3, 7), st.just(-1000))
SENT = PAYMENT.flatmap(
    lambda row: st.builds(
        lambda late, again: row | {"late": late, "again": again},
        LATENESS,
        st.sampled_from([None, None, 0, 5]),
    )
)
FOUND = LABEL.flatmap(lambda row: st.builds(lambda late: row | {"late": late}, LATENESS))
FIRST_NS = START_NS - 8 * 3600 * 10**9  # when the service began


def model() -> bytes:
    """A sum over all columns, each with a weight of its own."""
    return releases.weighted(*np.linspace(-1, 1, len(SPEC.names)).tolist())


@functools.cache
def files() -> dict[str, bytes]:
    """A release of it."""
    return releases.packed("replayed", model(), SPEC)


def seconds(at_ns: int) -> dt.datetime:
    """A moment as callers have it."""
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=at_ns // 1000)


def accepted(links: list[Any]) -> list[Any]:
    """The links that no earlier one contradicts."""
    aliases, found = Aliases("card"), []
    for key, into, at in links:
        try:
            if into is None:
                aliases.unlink(key, at=seconds(ns(at)))
            else:
                aliases.link(key, into=into, at=seconds(ns(at)))
        except ri.ConfigError:
            continue
        found.append((key, into, at))
    return found


def served(
    events: Any, labels: Any, rows: list[Any], links: list[Any], event_id: str | None
) -> tuple[list[bytes], list[float], list[tuple[str, ...]]]:
    """Everything in the order of its arrival: the model's inputs, the scores, what was stale, by row."""
    clock = ManualClock(wall_ns=FIRST_NS)
    limits = ri.FeatureTable(columns={"limit": "f64"}, key="str", clock=clock)
    store = ri.Store(
        tables={"card": limits},
        windows=ri.Windows.memory(clock=clock),
        aliases=["card"],
        clock=clock,
    )
    scorer = releases.scorer_of(files(), store=store)
    for key, into, at in links:
        if into is None:
            store.aliases("card").unlink(key, at=seconds(ns(at)))
        else:
            store.aliases("card").link(key, into=into, at=seconds(ns(at)))
    todo = [(ns(at), 0, i) for i, (_, _, at) in enumerate(rows)]
    for number, table in ((1, events), (2, labels)):
        todo += [
            (came, number, i)
            for i, came in enumerate((table["came"].cast(pa.int64()).to_numpy() * 1000).tolist())
        ]
    requests, found = events.to_pylist(), labels.to_pylist()
    inputs, scores, stale = [b""] * len(requests), [0.0] * len(requests), [()] * len(requests)
    for came, number, i in sorted(todo):
        clock.step_wall_ns(came - clock.wall_ns())
        if number == 0:
            limits.put(rows[i][0], {"limit": rows[i][1]}, updated_at=seconds(came))
            continue
        event = requests[i] if number == 1 else found[i]
        one = None if event_id is None else event[event_id]
        event = {name: value for name, value in event.items() if name not in ("came", "id")}
        if number == 2:
            scorer.observe("label", event, event_id=one)
            continue
        (cells,) = scorer._live.engine.vectorize(event) if one is None else (None,)
        decision = scorer.score(event, observe=True, event_id=one)
        inputs[i] = b"" if cells is None else cells.tobytes()
        scores[i], stale[i] = decision.score, decision.stale
    return inputs, scores, stale


@some
@given(
    st.lists(SENT, min_size=1, max_size=25),
    st.lists(FOUND, max_size=8),
    st.lists(ROW, max_size=6, unique_by=lambda row: (row[0], row[2])),
    st.lists(LINK, max_size=5),
    st.booleans(),
)
def test_scores_with_observe_are_the_replayed_rows(
    payments: list[dict[str, Any]], labels: list[dict[str, Any]], rows: list[Any], links: list[Any], ids: bool
):
    """Late, repeated, simultaneous events, late labels, rows that change, keys that are linked: bit for bit the same."""
    events, found, links = payments_table(payments), labels_table(labels), accepted(links)
    event_id = "id" if ids else None
    aliases = Aliases("card")
    for key, into, at in links:
        aliases.core.link(key, into, ns(at)) if into is not None else aliases.core.unlink(key, ns(at))
    history = pa.table(
        {
            "card": pa.array([row[0] for row in rows], pa.string()),
            "limit": pa.array([row[1] for row in rows], pa.float64()),
            "updated_at": pa.array([ns(row[2]) // 1000 for row in rows], pa.int64()).cast(
                pa.timestamp("us", "UTC")
            ),
        }
    )
    replayed = ri.replay(
        SPEC,
        events,
        labels=found,
        tables={"card": history},
        aliases={"card": aliases},
        arrived="came",
        event_id=event_id,
        since=seconds(FIRST_NS),
    )
    inputs, scores, stale = served(events, found, rows, links, event_id)
    matrix = np.asarray(replayed.matrix)
    session = onnxruntime.InferenceSession(model(), providers=["CPUExecutionProvider"])
    for i in range(len(events)):
        if event_id is None:  # the inputs alone cannot be asked for under an id
            assert inputs[i] == matrix[i].tobytes(), (i, np.frombuffer(inputs[i], np.float32), matrix[i])
        (wanted,) = session.run(None, {"x": matrix[i : i + 1]})
        assert np.float32(scores[i]) == wanted.reshape(-1)[0]
        assert set(stale[i]) == {SPEC.names[k] for k in np.flatnonzero(replayed.flags[i] == 3)}
