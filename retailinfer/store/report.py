"""What is in a store now, for people and dashboards: sizes, hit rates, ages and memory of tables, windows and aliases.

Rules:
  * Numbers only; no key and no value of anybody.
  * Taken one part after the other while requests run: each part is of one moment, the whole is not.
Who asks: `Store.inspect`, `retailinfer inspect`. Each part counts for itself: feature_table.py, windows.py, table.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from retailinfer.store.feature_table import TableStats
from retailinfer.store.windows import WindowStats

if TYPE_CHECKING:
    from retailinfer._native.table import TableSlot
    from retailinfer.store.aliases import Aliases
    from retailinfer.store.feature_table import FeatureTable
    from retailinfer.store.windows import Windows

__all__ = ["AliasReport", "SnapshotReport", "StoreReport", "report_of"]

_SAMPLED = 1_000  # rows whose ages are looked at


class SnapshotReport(msgspec.Struct, frozen=True, kw_only=True):
    """A catalogue. age_s: median, 90th percentile and oldest of up to 1,000 rows; None if nobody knows when they were true."""

    name: str
    rows: int
    bytes: int
    generation: int
    age_s: tuple[float, float, float] | None


class AliasReport(msgspec.Struct, frozen=True, kw_only=True):
    """Other names of an entity's keys."""

    entity: str
    links: int
    bytes: int
    version: int


class StoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """All of a store. `windows_shared`: their state is elsewhere, and so are its sizes; `redis`: what came of requests."""

    snapshots: tuple[SnapshotReport, ...]
    tables: tuple[TableStats, ...]
    windows: tuple[WindowStats, ...]
    windows_shared: bool
    redis: Any
    aliases: tuple[AliasReport, ...]
    bytes: int

    def lines(self) -> list[str]:
        """The same for a terminal, one line each."""
        made = [
            f"snapshot {s.name}: {s.rows:,} rows, {s.bytes:,} bytes, generation {s.generation}{_ages(s.age_s)}"
            for s in self.snapshots
        ]
        for t in self.tables:
            rate = f"{t.hit_rate:.1%} hits" if t.hit_rate == t.hit_rate else "not asked yet"
            source = "" if t.source is None else f", source {t.source.state}"
            made.append(
                f"table {t.name}: {t.rows:,} of {t.max_rows:,} rows, {t.bytes:,} bytes, {rate}, "
                f"{t.evictions:,} evicted{_ages(t.age_s)}{source}"
            )
        shared = ", shared" if self.windows_shared else ""
        made += [
            f"windows of {w.entity}: {w.accumulators} accumulators, {w.entities:,} entities, {w.panes:,} panes, "
            f"{w.bytes:,} bytes, {w.events:,} events, {w.late:,} late, {w.duplicates:,} twice, {w.evicted:,} evicted{shared}"
            for w in self.windows
        ]
        if (r := self.redis) is not None:
            evicts = (
                "; it may drop values when it is full: set maxmemory-policy noeviction" if r.evicts else ""
            )
            made.append(
                f"windows in Redis: {r.state}, {r.requests:,} requests, {r.unavailable:,} unavailable "
                f"({r.held_back:,} held back), {r.foreign:,} values that are not ours{evicts}"
            )
        made += [f"aliases of {a.entity}: {a.links:,} links, {a.bytes:,} bytes" for a in self.aliases]
        return made


def report_of(
    slots: Mapping[str, TableSlot],
    live: Mapping[str, FeatureTable],
    windows: Windows | None,
    aliases: Mapping[str, Aliases],
    *,
    now_ns: int,
) -> StoreReport:
    """Look at everything once."""
    snapshots = tuple(_snapshot(name, slot, now_ns) for name, slot in slots.items())
    tables = tuple(msgspec.structs.replace(table.stats, name=name) for name, table in live.items())
    counted = () if windows is None else windows.stats
    known = tuple(
        AliasReport(entity=name, links=len(graph), bytes=graph.nbytes, version=graph.version)
        for name, graph in aliases.items()
    )
    total = sum(part.bytes for parts in (snapshots, tables, counted, known) for part in parts)
    return StoreReport(
        snapshots=snapshots,
        tables=tables,
        windows=counted,
        windows_shared=windows is not None and windows.transport is not None,
        redis=None if windows is None or windows.transport is None else windows.transport.stats,
        aliases=known,
        bytes=total,
    )


def _snapshot(name: str, slot: TableSlot, now_ns: int) -> SnapshotReport:
    snapshot = slot.snapshot
    rows = len(snapshot)
    times = [snapshot.updated_at_ns(key) for key in _some(snapshot, rows)]
    known = np.array([now_ns - at for at in times if at], np.float64)
    ages = None
    if len(known):
        age_s = np.maximum(0, known) * 1e-9
        ages = (float(np.median(age_s)), float(np.quantile(age_s, 0.9)), float(age_s.max()))
    return SnapshotReport(name=name, rows=rows, bytes=snapshot.nbytes, generation=slot.generation, age_s=ages)


def _some(snapshot: object, rows: int) -> list[object]:
    table = snapshot.table  # type: ignore[attr-defined]  # a Snapshot; its slot does not say so
    return [table.key_at(row) for row in range(0, rows, max(1, rows // _SAMPLED))]


def _ages(age_s: tuple[float, float, float] | None) -> str:
    if age_s is None:
        return ""
    return f", median age {age_s[0]:,.0f} s, oldest {age_s[2]:,.0f} s"
