"""The Store: one per process, the tables, windows and aliases that all of its scorers and rankers share.

Rules:
  * State outlives releases: a table is known by its name and its own shape, a window by the digest of its definition, never
    by a release. A new release finds them where they were.
  * Two kinds of tables. A Snapshot is replaced whole: a reader takes `slot(name).table` once per call and reads nothing else,
    a swap moves that one pointer, and the old table is freed when its last reader is done. A FeatureTable changes in place.
  * A swap keeps the shape: every column that was there stays, with its kind, so that no request can fail on it later.
  * No lock: nothing here is half done when another thread runs or the process forks.
Rows and keys are table.py and feature_table.py, counting is windows.py, other names of a key aliases.py, files archive.py, who
may read what access.py; the
pointer itself is `_native/table.pyx` (TableSlot).
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from retailinfer._native.table import TableSlot, swap
from retailinfer.clock import Clock, SystemClock
from retailinfer.errors import ConfigError, SchemaMismatchError, clip

if TYPE_CHECKING:
    from retailinfer.store.access import Access, Named, Reads
    from retailinfer.store.aliases import Aliases
    from retailinfer.store.archive import Restored
    from retailinfer.store.feature_table import FeatureTable
    from retailinfer.store.report import StoreReport
    from retailinfer.store.table import Snapshot
    from retailinfer.store.windows import Windows

__all__ = ["Store"]


class Store:
    """Named tables, windows and aliases. Safe to use from many threads, coroutines and greenlets, and after a fork."""

    def __init__(
        self,
        *,
        tables: Mapping[str, Snapshot | FeatureTable] | None = None,
        windows: Windows | None = None,
        aliases: Iterable[str | Aliases] | Mapping[str, str] = (),
        access: Mapping[str, Access] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Nothing starts, and nothing is fetched, before the first request.

        Args:
            tables: entity -> Snapshot or FeatureTable.
            windows: where events are counted: `ri.Windows.memory()` or `ri.Windows.redis(...)`.
            aliases: entities whose keys may go by other names; as a mapping with the kind of their keys, "str" otherwise.
            access: table (with aliases), or stream that windows count -> which releases may read it; "*" speaks for all that
                are not named. Without a rule everybody may.
            clock: what is "now" for ages and events; that of the windows by default.
        Raises: ConfigError.
        """
        self._slots: dict[str, TableSlot] = {}
        self._live: dict[str, FeatureTable] = {}
        self._names: list[str] = []
        # who wants each new snapshot, held weakly, and the blocks that it attaches
        self._prepare: dict[
            str, list[tuple[Callable[[], Callable[[Snapshot], object] | None], tuple[str, ...]]]
        ] = {}
        self._windows = windows
        if windows is not None and not hasattr(windows, "bind"):
            raise ConfigError(f"Expected windows such as ri.Windows.memory(), got `{type(windows).__name__}`")
        self.clock: Clock = clock or getattr(windows, "clock", None) or SystemClock()
        for name, table in (tables or {}).items():
            if not str(name).isidentifier():
                raise ConfigError(
                    f"Expected a table name that is an identifier, as in `item.price`, got {clip(name)}"
                )
            if _is_live(table):
                self._live[name] = table
            else:
                self._slots[name] = TableSlot(name, _checked(name, table))
            self._names.append(name)
        self._aliases: dict[str, Aliases] = {}
        given: Iterable[Any] = aliases.items() if isinstance(aliases, Mapping) else aliases
        if isinstance(aliases, str):
            raise ConfigError(
                f"Expected entities in a list, got {clip(aliases)}", hint=f"aliases=[{aliases!r}]"
            )
        for one in given:
            made = self._as_aliases(one)
            self._aliases[made.entity] = made
        self._access: dict[str, Access] = {}
        if access is not None:
            from retailinfer.store.access import check_rules  # noqa: PLC0415 - for stores that are not open to all

            self._access = check_rules(
                access, (*self._names, *self._aliases), has_windows=windows is not None
            )

    def _as_aliases(self, given: str | tuple[str, str] | Aliases) -> Aliases:
        from retailinfer.store.aliases import Aliases  # noqa: PLC0415 - for stores that have some

        if isinstance(given, Aliases):
            return given
        entity, kind = (given, "str") if isinstance(given, str) else given
        return Aliases(entity, kind, clock=self.clock)

    def slot(self, name: str) -> TableSlot:
        """Where the snapshot `name` points; the same object for as long as the store lives. For the engine."""
        found = self._slots.get(name)
        if found is None:
            if name in self._live:
                raise ConfigError(
                    f"table `{name}` is a FeatureTable: it changes in place and is never swapped",
                    hint="put rows into it, or erase them",
                )
            raise self._unknown(name)
        return found

    def _unknown(self, name: object) -> ConfigError:
        known = ", ".join(f"`{known}`" for known in self._names) or "none"
        return ConfigError(
            f"Expected a table of this store ({known}), got {clip(name)}",
            hint="give it to Store(tables={...}) when the process starts",
        )

    def __getitem__(self, name: str) -> Any:
        """The current Snapshot, or the FeatureTable, of that name."""
        found = self._live.get(name)
        if found is not None:
            return found
        return self.slot(name).snapshot

    def is_live(self, name: str) -> bool:
        """Whether the table is a FeatureTable. Raises: ConfigError for an unknown name."""
        if name not in self:
            raise self._unknown(name)
        return name in self._live

    def __contains__(self, name: object) -> bool:
        return name in self._slots or name in self._live

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def generation(self, name: str) -> int:
        """How often the snapshot `name` was set: 1 at first, one more with every swap."""
        return self.slot(name).generation

    @property
    def windows(self) -> Windows | None:
        """Where events are counted; None: nowhere."""
        return self._windows

    @property
    def aliased(self) -> tuple[str, ...]:
        """The entities that have aliases."""
        return tuple(self._aliases)

    def aliases(self, entity: str) -> Aliases:
        """The aliases of an entity. Raises: ConfigError for one that has none declared."""
        found = self._aliases.get(entity) if isinstance(entity, str) else None
        if found is None:
            known = ", ".join(f"`{known}`" for known in self._aliases) or "none"
            raise ConfigError(
                f"Expected an entity with aliases ({known}), got {clip(entity)}",
                hint="give it to Store(aliases=[...]) when the process starts",
            )
        return found

    @property
    def access(self) -> dict[str, Access]:
        """Who may read what; what is not there, and not meant by "*", is open to all."""
        return dict(self._access)

    def check_access(self, manifest: Named, reads: Iterable[Reads], entities: Iterable[str]) -> None:
        """Ask whether a release may read all of `reads`, and the aliases of its entities; done when it is loaded.

        Raises: AccessError.
        """
        if self._access:
            from retailinfer.store.access import Aliased, check_access  # noqa: PLC0415 - as above

            aliased = [Aliased(name) for name in entities if name in self._aliases]
            check_access(self._access, manifest.release, manifest.name, [*reads, *aliased])

    @property
    def nbytes(self) -> int:
        """Bytes of all current tables, with what readers attached to them."""
        return sum(slot.table.nbytes for slot in self._slots.values()) + sum(
            table.nbytes for table in self._live.values()
        )

    # ---- events of the past, files, single entities ------------------------------------------------------------------

    def backfill(self, spec: Any, stream: str, table: Any, *, since: Any = None) -> int:
        """Count a stream's history, so that windows cover their time at once; how many events were added.

        Args:
            spec: the FeatureSpec whose windows count the stream.
            table: events as anything with the Arrow stream interface, in any order. Each is counted if it is dated before the
                moment from which the window counts by itself, so that live events and history never count twice.
            since: from when on `table` is complete; its earliest event by default. What is dated before it is left out.
        Raises: ConfigError without windows or for an unknown stream; FeatureError for an event, with its row.
        """
        if self._windows is None:
            raise ConfigError(
                "this store has no windows",
                hint="ri.Store(windows=ri.Windows.memory()) when the process starts",
            )
        return int(self._windows.backfill(spec, stream, table, since=since, aliases=self._aliases))

    def save(self, path: str | os.PathLike[str], *, tables: Iterable[str] | None = None) -> int:
        """Write FeatureTables, windows in memory and aliases into one file; its size in bytes.

        The file appears whole or not at all, and only its owner can read it: it holds keys and rows of people, so keep it no
        longer than these may be kept. Snapshots are not in it: they come from their own source.

        Args:
            tables: which of the FeatureTables; all by default.
        """
        from retailinfer.store.archive import save  # noqa: PLC0415 - a process that never saves does without

        names = list(self._live) if tables is None else [self._live_name(name) for name in tables]
        return save(
            path, {name: self._live[name] for name in names}, self._windows, self._aliases, clock=self.clock
        )

    def restore(self, path: str | os.PathLike[str], *, complete: bool = True) -> Restored:
        """Take over what `save` wrote: rows of tables of the same shape that are not there yet, windows, aliases.

        The whole file is verified before anything of it is used. What this store has no place for (a table that is gone, or
        of another shape) is left out and told.

        Args:
            complete: no event came between saving and now, or those will be backfilled. False: windows say `stale` until they
                have passed this moment, because what was missed is not in them.
        Raises: IntegrityError for a file that is not whole and unchanged; nothing has changed then.
        """
        from retailinfer.store.archive import restore  # noqa: PLC0415 - as above

        return restore(path, self._live, self._windows, self._aliases, complete=complete)

    def erase(self, entity: str, key: Any) -> dict[str, int]:
        """Forget one entity: its row, what is counted of it, its aliases; how much there was, by place.

        So is what was kept under the keys that ever stood for it. `snapshot`: 1 where a Snapshot has it, which holds it until
        the next swap; files that were saved before still have it, too.
        Raises: ConfigError for an entity that this store does not know; FeatureTypeError for a key of another kind;
            Unavailable when Redis does not answer.
        """
        found: dict[str, int] = {}
        aliases = self._aliases.get(entity)
        windows = self._windows
        known = entity in self or aliases is not None or (windows is not None and windows.has(entity))
        if not known:
            raise ConfigError(f"Expected an entity with a table, windows or aliases here, got {clip(entity)}")
        keys = [key] if aliases is None else _stood_for(aliases, key)
        if aliases is not None:
            found["aliases"] = sum(aliases.erase(one) for one in keys)
        if entity in self._live:
            found["table"] = sum(bool(self._live[entity].erase(one)) for one in keys)
        elif entity in self._slots:
            found["snapshot"] = sum(one in self._slots[entity].snapshot for one in keys)
        if windows is not None:
            found["windows"] = sum(int(windows.erase(entity, one)) for one in keys)
        return found

    def inspect(self) -> StoreReport:
        """Size, hit rate, ages and memory of every table and window, as they are now."""
        from retailinfer.store.report import report_of  # noqa: PLC0415 - as above

        return report_of(self._slots, self._live, self._windows, self._aliases, now_ns=self.clock.wall_ns())

    def _live_name(self, name: str) -> str:
        if not self.is_live(name):
            raise ConfigError(
                f"table `{name}` is a Snapshot: it comes whole from its own source and is not saved here"
            )
        return name

    # ---- snapshots -----------------------------------------------------------------------------------------------------

    def swap(self, name: str, snapshot: Snapshot) -> Snapshot:
        """Replace a table whole; return the one before. Calls under way go on with the table that they took.

        Raises: ConfigError for an unknown name; SchemaMismatchError if a column or the keys are not what they were.
        Nothing has changed then.
        """
        return self.swap_all({name: snapshot})[name]

    def swap_all(self, snapshots: Mapping[str, Snapshot]) -> dict[str, Snapshot]:
        """Replace several tables so that no call sees one of them new and another one old."""
        slots = [self.slot(name) for name in snapshots]
        for slot in slots:
            _refuse_other_shape(slot, _checked(slot.name, snapshots[slot.name]))
        for slot in slots:
            self._run_prepare(slot.name, snapshots[slot.name])
        old = {slot.name: slot.snapshot for slot in slots}
        swap(slots, [snapshots[slot.name] for slot in slots])
        return old

    def subscribe(
        self, name: str, prepare: Callable[[Snapshot], object], *, attaches: tuple[str, ...] = ()
    ) -> Callable[[], None]:
        """Call `prepare` with each new snapshot of `name` before anyone can read it; return the way to stop that.

        Args:
            attaches: blocks that `prepare` attaches to the table. Who stops takes them off, unless another subscriber shares
                them: releases come and go, and the table of today stays.
        What it raises stops the swap. A bound method is held weakly: a dropped scorer is not kept alive by its store.
        """
        self.slot(name)
        held: Callable[[], Callable[[Snapshot], object] | None]
        held = weakref.WeakMethod(prepare) if hasattr(prepare, "__self__") else lambda: prepare
        subscribers = self._prepare.setdefault(name, [])
        one = (held, attaches)
        subscribers.append(one)

        def unsubscribe() -> None:
            if one in subscribers:
                subscribers.remove(one)
                shared = {block for other, blocks in subscribers if other() is not None for block in blocks}
                for block in set(attaches) - shared:
                    self.slot(name).table.detach_block(block)

        return unsubscribe

    def _run_prepare(self, name: str, snapshot: Snapshot) -> None:
        subscribers = self._prepare.get(name, [])
        for one in tuple(subscribers):
            prepare = one[0]()
            if prepare is None:
                with contextlib.suppress(ValueError):  # another swap, inside or beside this one, was faster
                    subscribers.remove(one)
            else:
                prepare(snapshot)

    def __repr__(self) -> str:
        tables = ", ".join(f"{name}: {len(self[name])} rows" for name in self._names)
        return f"<Store {tables or 'empty'}, {self.nbytes} bytes>"


def _stood_for(aliases: Aliases, key: Any) -> list[Any]:
    """The key, and all keys that ever stood for it, over any number of links."""
    names, counts, _, targets = aliases.core.export()
    kind = aliases.key_kind
    objects: list[Any] = [
        name.decode()
        if kind == "str"
        else int.from_bytes(name, "little", signed=True)
        if kind == "int"
        else name
        for name in names
    ]
    sources: dict[Any, set[Any]] = {}
    at = 0
    for one, count in zip(objects, counts, strict=True):
        for target in targets[at : at + count].tolist():
            if target >= 0:
                sources.setdefault(objects[target], set()).add(one)
        at += count
    found = [key]
    for one in found:  # grows while it is read
        found += [source for source in sources.get(one, ()) if source not in found]
    return found


def _is_live(table: Any) -> TypeGuard[FeatureTable]:
    """Whether it is a FeatureTable, without loading that class for those who have none: who has one has loaded it."""
    home = sys.modules.get("retailinfer.store.feature_table")
    return home is not None and isinstance(table, home.FeatureTable)


def _checked(name: str, snapshot: Any) -> Snapshot:
    from retailinfer.store.table import Snapshot  # noqa: PLC0415 - who has one has loaded it

    if not isinstance(snapshot, Snapshot):
        raise ConfigError(
            f"Expected a `Snapshot` or a `FeatureTable` for table `{name}`, got `{type(snapshot).__name__}`",
            hint="build one with Snapshot.from_arrow, Snapshot.from_rows or FeatureTable(columns=...)",
        )
    return snapshot


def _refuse_other_shape(slot: TableSlot, snapshot: Snapshot) -> None:
    old, new = slot.table, snapshot.table
    if old.key_kind != new.key_kind:
        raise SchemaMismatchError(
            f"Expected keys of kind `{old.key_kind}` for table `{slot.name}`, got `{new.key_kind}`",
            hint="what reads the table was bound to its shape; make a new Store for another one",
        )
    offered = {name: (kind, width) for name, kind, _, _, width in new.schema}
    for name, kind, _, _, width in old.schema:
        if offered.get(name) != (kind, width):
            got = "none" if name not in offered else "`{}` of width {}".format(*offered[name])
            raise SchemaMismatchError(
                f"Expected column `{slot.name}.{name}` of kind `{kind}` and width {width}, got {got}",
                hint="a swap may add columns, not drop or change them; make a new Store for another shape",
            )
