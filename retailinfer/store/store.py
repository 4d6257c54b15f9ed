"""The Store: one per process, the tables that all of its scorers and rankers read.

Rules:
  * State outlives releases: a table is known by its name and its own shape, never by a release.
  * A reader takes `slot(name).table` once per call and reads nothing else; a swap replaces that one pointer. The old
    table is freed when its last reader is done.
  * A swap keeps the shape: every column that was there stays, with its kind, so that no request can fail on it later.
  * No lock: nothing here is half done when another thread runs or the process forks.
Rows and keys are table.py; the pointer itself is `_native/table.pyx` (TableSlot).
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from retailinfer._native.table import TableSlot, swap
from retailinfer.errors import ConfigError, SchemaMismatchError, clip
from retailinfer.store.table import Snapshot

__all__ = ["Store"]


class Store:
    """Named tables. Safe to use from many threads, coroutines and greenlets, and after a fork."""

    def __init__(self, *, tables: Mapping[str, Snapshot] | None = None) -> None:
        self._slots: dict[str, TableSlot] = {}
        self._prepare: dict[str, list[Callable[[], Callable[[Snapshot], object] | None]]] = {}
        for name, snapshot in (tables or {}).items():
            if not str(name).isidentifier():
                raise ConfigError(
                    f"Expected a table name that is an identifier, as in `item.price`, got {clip(name)}"
                )
            self._slots[name] = TableSlot(name, _checked(name, snapshot))

    def slot(self, name: str) -> TableSlot:
        """Where `name` points; the same object for as long as the store lives. For the engine."""
        try:
            return self._slots[name]
        except KeyError:
            known = ", ".join(f"`{known}`" for known in self._slots) or "none"
            raise ConfigError(
                f"Expected a table of this store ({known}), got {clip(name)}",
                hint="give it to Store(tables={...}) when the process starts",
            ) from None

    def __getitem__(self, name: str) -> Snapshot:
        snapshot: Snapshot = self.slot(name).snapshot
        return snapshot

    def __contains__(self, name: object) -> bool:
        return name in self._slots

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def generation(self, name: str) -> int:
        """How often `name` was set: 1 at first, one more with every swap."""
        return self.slot(name).generation

    @property
    def nbytes(self) -> int:
        """Bytes of all current tables, with what readers attached to them."""
        return sum(slot.table.nbytes for slot in self._slots.values())

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

    def subscribe(self, name: str, prepare: Callable[[Snapshot], object]) -> Callable[[], None]:
        """Call `prepare` with each new snapshot of `name` before anyone can read it; return the way to stop that.

        What it raises stops the swap. A bound method is held weakly: a dropped scorer is not kept alive by its store.
        """
        self.slot(name)
        held: Callable[[], Callable[[Snapshot], object] | None]
        held = weakref.WeakMethod(prepare) if hasattr(prepare, "__self__") else lambda: prepare
        subscribers = self._prepare.setdefault(name, [])
        subscribers.append(held)

        def unsubscribe() -> None:
            if held in subscribers:
                subscribers.remove(held)

        return unsubscribe

    def _run_prepare(self, name: str, snapshot: Snapshot) -> None:
        subscribers = self._prepare.get(name, [])
        for held in tuple(subscribers):
            prepare = held()
            if prepare is None:
                with contextlib.suppress(ValueError):  # another swap, inside or beside this one, was faster
                    subscribers.remove(held)
            else:
                prepare(snapshot)

    def __repr__(self) -> str:
        tables = ", ".join(f"{name}: {len(slot.table)} rows" for name, slot in self._slots.items())
        return f"<Store {tables or 'empty'}, {self.nbytes} bytes>"


def _checked(name: str, snapshot: Any) -> Snapshot:
    if not isinstance(snapshot, Snapshot):
        raise ConfigError(
            f"Expected a `Snapshot` for table `{name}`, got `{type(snapshot).__name__}`",
            hint="build one with Snapshot.from_arrow or Snapshot.from_rows",
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
