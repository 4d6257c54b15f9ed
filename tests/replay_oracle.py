"""What replay must give, worked out by DuckDB: window queries and as-of joins written from the declared semantics.

Rules:
  * Nothing of retailinfer computes here but the spec's declaration (`spec.body`): what a window is stands there.
  * A window is the panes (p - n, p] of p = the pane of (moment - delay), less what its accumulator has forgotten by then:
    panes at or before newest - keep. An event older than that is dropped.
  * The order is that of arrival; then requests before other streams, these as given; then the row.
"""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections import deque
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

DAY_NS = 86_400 * 10**9
NULL, UNKNOWN, STALE = 1, 2, 3


class Oracle:
    """One history in a database of its own; `window(name)` and `stored(entity)` answer for each request."""

    def __init__(
        self,
        spec: Any,
        events: pa.Table,
        *,
        labels: dict[str, pa.Table] | None = None,
        tables: dict[str, pa.Table] | None = None,
        links: dict[str, list[tuple[Any, Any, int]]] | None = None,
        arrived: str | None = None,
        event_id: str | None = None,
        since_ns: int | None = None,
        max_ahead_ns: int = 300 * 10**9,
    ) -> None:
        self.body = spec.body
        self.db = duckdb.connect()
        self.db.execute("SET threads = 1; SET TimeZone = 'UTC'")
        self.tables = tables or {}
        own = next((name for name, s in self.body.streams.items() if s.is_request), "request")
        self.own = own
        streams = [(own, events, self.body.event_time)]
        streams += [
            (name, table, self.body.streams[name].event_time) for name, table in (labels or {}).items()
        ]
        fields = {name: self.body.streams[name].fields for name in (labels or {})} | {own: self.body.fields}
        selects = []
        for number, (name, table, event_time) in enumerate(streams):
            self.db.register(f"raw_{number}", table)
            came = arrived if arrived is not None else event_time
            columns = ", ".join(f'"{f.name}" AS "f_{name}_{f.name}"' for f in fields[name])
            ids = f'CAST("{event_id}" AS VARCHAR)' if event_id else "NULL"
            selects.append(
                f"SELECT {number} AS stream_no, '{name}' AS stream, row_number() OVER () - 1 AS row, "
                f'epoch_ns("{came}") AS came, epoch_ns("{event_time}") AS happened, {ids} AS id, {columns} FROM raw_{number}'
            )
        # One row an event, whatever its stream; `moment` is where it counts.
        self.db.execute(
            "CREATE TABLE merged AS SELECT *, row_number() OVER (ORDER BY came, stream_no, row) AS seq, "
            f"CASE WHEN happened - came > {max_ahead_ns} THEN came ELSE happened END AS moment "
            f"FROM ({' UNION ALL BY NAME '.join(selects)})"
        )
        self._keys(links or {}, fields)
        self._duplicates()
        first = self.db.execute("SELECT min(moment) FROM merged").fetchone()
        self.since_ns = (
            since_ns if since_ns is not None else (first[0] if first and first[0] is not None else 0)
        )
        offsets = self.db.execute("SELECT DISTINCT moment FROM merged").fetchnumpy()["moment"]
        zone = zoneinfo.ZoneInfo(self.body.tz)
        local = [at + _offset_ns(zone, int(at)) for at in offsets]
        self.db.register(
            "zones", pa.table({"moment": np.asarray(offsets, np.int64), "local": np.asarray(local, np.int64)})
        )

    # ---- keys

    def _keys(self, links: dict[str, list[tuple[Any, Any, int]]], fields: dict[str, Any]) -> None:
        """A column `k_{field}` for each field that is a key of an entity: what it stood for at the event's time."""
        names = sorted({key for entity in self.body.entities.values() for key in entity.key})
        for name in names:
            there = [f'"f_{s}_{name}"' for s in fields if any(f.name == name for f in fields[s])]
            self.db.execute(f"ALTER TABLE merged ADD COLUMN k_{name} VARCHAR")
            self.db.execute(
                f"UPDATE merged SET k_{name} = coalesce({', '.join(f'CAST({c} AS VARCHAR)' for c in there)})"
            )
        for entity, changes in links.items():
            (field,) = self.body.entities[entity].key
            self.db.execute("CREATE OR REPLACE TEMP TABLE link (key VARCHAR, target VARCHAR, start BIGINT)")
            if changes:
                self.db.executemany(
                    "INSERT INTO link VALUES (?, ?, ?)", [[str(a), b, t] for a, b, t in changes]
                )
            for _ in range(16):
                self.db.execute(
                    f"CREATE OR REPLACE TABLE merged AS SELECT m.* REPLACE (coalesce(l.target, m.k_{field}) AS k_{field}) "
                    f"FROM merged m ASOF LEFT JOIN link l ON m.k_{field} = l.key AND m.happened >= l.start"
                )

    def _duplicates(self) -> None:
        """A column `dup_{entity}`: whether the id is one of the last eight of this stream and entity."""
        for entity, declared in self.body.entities.items():
            key = ", ".join(f"k_{k}" for k in declared.key)
            rows = self.db.execute(f"SELECT seq, stream, id, {key} FROM merged ORDER BY seq").fetchall()
            rings: dict[Any, deque[str]] = {}
            repeated = []
            for seq, stream, one, *parts in rows:
                if one is None or None in parts:
                    continue
                ring = rings.setdefault((stream, *parts), deque(maxlen=8))
                if one in ring:
                    repeated.append(seq)
                else:
                    ring.append(one)
            self.db.register("repeated", pa.table({"seq": pa.array(repeated, pa.int64())}))
            self.db.execute(f"ALTER TABLE merged ADD COLUMN dup_{entity} BOOLEAN")
            self.db.execute(f"UPDATE merged SET dup_{entity} = seq IN (SELECT seq FROM repeated)")
            self.db.unregister("repeated")

    # ---- windows

    def _shared(self, w: Any) -> tuple[Any, ...]:
        """What two windows have in common that read the same state."""
        kind = "sum" if w.what in ("sum", "mean", "lag") else w.what
        return (
            w.on,
            w.entity,
            frozenset(w.where),
            w.of,
            w.scale if kind != "distinct" else None,
            w.pane_ns,
            kind,
            w.what == "lag",
        )

    def window(self, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Values (NaN: none) and states of one window, in the order of the requests."""
        w = self.body.windows[name]
        delay, n = w.delay_ns // w.pane_ns, max(w.over_ns // w.pane_ns, 1)
        keep_read = n + delay + w.lag + 2
        keep_add = max(
            max(v.over_ns // v.pane_ns, 1) + v.delay_ns // v.pane_ns + v.lag + 2
            for v in self.body.windows.values()
            if self._shared(v) == self._shared(w)
        )
        calendar = w.what == "lag"
        keys = self.body.entities[w.entity].key
        key = ", ".join(f"k_{k}" for k in keys)
        same = " AND ".join(f"r.k_{k} = a.k_{k}" for k in keys)
        known = " AND ".join(f"k_{k} IS NOT NULL" for k in keys)
        of = "NULL" if w.of is None else f'"f_{w.on}_{w.of}"'
        field_types = {
            f.name: f.type for f in (self.body.fields if w.on == self.own else self.body.streams[w.on].fields)
        }
        if w.of is None or w.what == "distinct":
            value = "0"
        else:
            number = (
                f"CAST({of} AS DOUBLE)"
                if field_types[w.of] != "bool"
                else f"CAST(CAST({of} AS INTEGER) AS DOUBLE)"
            )
            value = f"CAST(round_even({number} * {float(w.scale)!r}, 0) AS BIGINT)"
        matches = " AND ".join([f"stream = '{w.on}'", *(self._term(w.on, t) for t in w.where)])
        if w.of is not None:
            matches += f" AND {of} IS NOT NULL"
        clock = "z.local" if calendar else "m.moment"
        include = w.current == "include" and delay == 0 and w.on == self.own and not calendar
        start = self._pane_start(w)
        self.db.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE applied AS
            SELECT m.*, {clock} // {w.pane_ns} AS pane, {value} AS value, CAST({of} AS VARCHAR) AS item,
                   max({clock} // {w.pane_ns}) OVER (
                       PARTITION BY {key} ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                   ) AS newest
            FROM merged m JOIN zones z ON m.moment = z.moment
            WHERE {matches} AND {known} AND NOT dup_{w.entity}
            """
        )
        self.db.execute(
            "CREATE OR REPLACE TEMP TABLE accepted AS "
            f"SELECT * FROM applied WHERE newest IS NULL OR pane > newest - {keep_add}"
        )
        self.db.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE reads AS
            WITH r AS (
                SELECT m.*, {clock} // {w.pane_ns} AS pane,
                       (m.moment - {w.delay_ns} + ({clock} - m.moment)) // {w.pane_ns} - {w.lag} AS upper,
                       ({matches}) AND NOT dup_{w.entity} AS adds, {value} AS value, CAST({of} AS VARCHAR) AS item
                FROM merged m JOIN zones z ON m.moment = z.moment WHERE stream_no = 0
            )
            SELECT r.*, upper - {n} AS lower,
                   (SELECT max(a.pane) FROM accepted a WHERE {same} AND a.seq < r.seq) - {keep_read} AS gone
            FROM r
            """
        )
        # What is in the window: accepted events before this one, and this one where it counts itself.
        self.db.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE counted AS
            SELECT r.row AS row, a.value AS value, a.item AS item FROM reads r JOIN accepted a ON {same} AND a.seq < r.seq
            WHERE a.pane <= r.upper AND a.pane > greatest(r.lower, coalesce(r.gone, r.lower))
            UNION ALL
            SELECT row, value, item FROM reads
            WHERE {include} AND adds AND pane <= upper AND pane > greatest(lower, coalesce(gone, lower))
            """
        )
        result = {
            "count": "CAST(count(c.row) AS DOUBLE)",
            "distinct": "CAST(least(count(DISTINCT c.item), 64) AS DOUBLE)",
            "sum": f"CAST(coalesce(sum(c.value), 0) AS DOUBLE) / {float(w.scale or 1)!r}",
            "lag": f"CAST(sum(c.value) AS DOUBLE) / {float(w.scale or 1)!r}",
            "mean": f"CAST(sum(c.value) AS DOUBLE) / CAST(count(c.value) AS DOUBLE) / {float(w.scale or 1)!r}",
            "min": f"CAST(min(c.value) AS DOUBLE) / {float(w.scale or 1)!r}",
            "max": f"CAST(max(c.value) AS DOUBLE) / {float(w.scale or 1)!r}",
        }[w.what]
        got = self.db.execute(
            f"""
            SELECT r.row AS row, CASE WHEN {known} THEN {result} END AS value,
                   CASE WHEN NOT ({known}) THEN {UNKNOWN}
                        WHEN {result} IS NULL THEN {NULL}
                        WHEN ({start}) < {self.since_ns} OR coalesce(r.gone > r.lower, FALSE) THEN {STALE} ELSE 0 END AS state
            FROM reads r LEFT JOIN counted c ON c.row = r.row GROUP BY ALL ORDER BY r.row
            """.replace(
                "GROUP BY ALL",
                f"GROUP BY r.row, r.lower, r.gone, r.moment, {', '.join(f'r.k_{k}' for k in keys)}",
            )
        ).fetchnumpy()
        value_column = np.ma.filled(np.ma.asarray(got["value"], np.float64), np.nan)
        states = np.asarray(got["state"], np.uint8)
        if calendar:
            states = self._calendar_states(w, value_column, states)
        return value_column, states

    def _pane_start(self, w: Any) -> str:
        return f"(r.lower + 1) * {w.pane_ns}" if w.what != "lag" else f"{self.since_ns}"

    def _calendar_states(self, w: Any, values: Any, states: Any) -> Any:
        """A step of local time begins at its own moment, which is not a multiple of anything: find it by the calendar."""
        zone = zoneinfo.ZoneInfo(self.body.tz)
        lowers = self.db.execute("SELECT lower FROM reads ORDER BY row").fetchnumpy()["lower"]
        for i, lower in enumerate(lowers.tolist()):
            local = dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=(lower + 1) * w.pane_ns // 1000)  # noqa: DTZ001
            start = round(local.replace(tzinfo=zone).timestamp() * 10**6) * 1000
            if states[i] == 0 and start < self.since_ns:
                states[i] = STALE
        return states

    def _term(self, stream: str, term: Any) -> str:
        value = f"'{term.value}'" if isinstance(term.value, str) else repr(term.value)
        return f'coalesce("f_{stream}_{term.field}" {term.op} {value}, FALSE)'

    # ---- stored rows

    def stored(self, entity: str, *, updated_at: str = "updated_at") -> dict[str, list[Any]]:
        """By reference, the value that held at each request's arrival (None: null or not known), and "known"."""
        self.db.register("history", self.tables[entity])
        keys = self.body.entities[entity].key
        refs = [ref for ref in self.body.stored if ref.partition(".")[0] == entity]
        columns = ", ".join(f'h."{ref.partition(".")[2]}" AS c{i}' for i, ref in enumerate(refs))
        same = " AND ".join(f'CAST(h."{k}" AS VARCHAR) = m.k_{k}' for k in keys)
        parts = ", ".join(f'"{k}"' for k in keys)
        self.db.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE last_row AS
            SELECT *, epoch_ns("{updated_at}") AS start FROM (SELECT *, row_number() OVER () AS n FROM history)
            QUALIFY row_number() OVER (PARTITION BY {parts}, "{updated_at}" ORDER BY n DESC) = 1
            """
        )
        rows = self.db.execute(
            f"""
            SELECT m.row, h.start, {columns} FROM (SELECT * FROM merged WHERE stream_no = 0) m
            ASOF LEFT JOIN last_row h ON {same} AND m.came >= h.start ORDER BY m.row
            """
        ).fetchall()
        found: dict[str, list[Any]] = {ref: [row[2 + i] for row in rows] for i, ref in enumerate(refs)}
        return found | {"known": [row[1] is not None for row in rows], "updated_ns": [row[1] for row in rows]}


def _offset_ns(zone: zoneinfo.ZoneInfo, at_ns: int) -> int:
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=at_ns // 1000)
    offset = moment.astimezone(zone).utcoffset()
    assert offset is not None
    return round(offset.total_seconds()) * 10**9


BIG = 1 << 24  # more than there are events: pane * BIG + place orders events by pane, then by arrival


class OrderedOracle(Oracle):
    """The same answers for long histories in which nothing comes late: one pass of a window query instead of a join.

    Events are ordered by pane and arrival, so that a window is a range of that order: from the beginning of its first pane
    up to the event itself, or up to the end of the pane that lies `delay` behind.
    """

    def window(self, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Values (NaN: none) and states of one window, in the order of the requests."""
        w = self.body.windows[name]
        n, delay = w.over_ns // w.pane_ns, w.delay_ns // w.pane_ns
        keys = self.body.entities[w.entity].key
        known = " AND ".join(f"k_{k} IS NOT NULL" for k in keys)
        of = "1" if w.of is None else f'"f_{w.on}_{w.of}"'
        matches = " AND ".join(
            [f"stream = '{w.on}'", f"{of} IS NOT NULL", *(self._term(w.on, t) for t in w.where)]
        )
        scale = repr(float(w.scale or 1))
        number = (
            f"CAST(round_even(CAST({of} AS DOUBLE) * {scale}, 0) AS BIGINT)" if w.what != "distinct" else of
        )
        if delay:
            until = f"{(delay - 1) * BIG + 1} + seq PRECEDING"
        else:
            until = "CURRENT ROW" if w.current == "include" and w.on == self.own else "1 PRECEDING"
        frame = (
            f"OVER (PARTITION BY {', '.join(f'k_{k}' for k in keys)} ORDER BY place "
            f"RANGE BETWEEN {(n + delay - 1) * BIG} + seq PRECEDING AND {until})"
        )
        over = f"FILTER (WHERE {matches}) {frame}"
        total = f"CAST(sum({number}) {over} AS DOUBLE)" if w.what in ("sum", "mean") else ""
        result = {
            "count": f"CAST(count({of}) {over} AS DOUBLE)",
            "distinct": f"CAST(least(count(DISTINCT {of}) {over}, 64) AS DOUBLE)",
            "sum": f"coalesce({total}, 0) / {scale}",
            "mean": f"{total} / CAST(count({of}) {over} AS DOUBLE) / {scale}",
            "min": f"CAST(min({number}) {over} AS DOUBLE) / {scale}",
            "max": f"CAST(max({number}) {over} AS DOUBLE) / {scale}",
        }[w.what]
        got = self.db.execute(
            f"""
            SELECT value, CASE WHEN NOT known THEN {UNKNOWN} WHEN value IS NULL THEN {NULL}
                               WHEN (pane - {n + delay - 1}) * {w.pane_ns} < {self.since_ns} THEN {STALE} ELSE 0 END AS state
            FROM (
                SELECT stream_no, row, pane, {known} AS known, CASE WHEN {known} THEN {result} END AS value
                FROM (SELECT *, moment // {w.pane_ns} AS pane, (moment // {w.pane_ns}) * {BIG} + seq AS place FROM merged)
            )
            WHERE stream_no = 0 ORDER BY row
            """
        ).fetchnumpy()
        return np.ma.filled(np.ma.asarray(got["value"], np.float64), np.nan), np.asarray(
            got["state"], np.uint8
        )
