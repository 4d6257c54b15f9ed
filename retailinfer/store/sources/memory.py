"""MemorySource: rows out of a mapping of this process; for tests, small tables, and rows that other code keeps fresh."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retailinfer.errors import ConfigError
from retailinfer.store.sources import Key

__all__ = ["MemorySource"]


class MemorySource:
    """Reads `{key: {column: value}}` as it is at the time of each fetch; the mapping is not copied."""

    waits = False  # a look-up in memory needs no thread of its own

    def __init__(self, rows: Mapping[Any, Mapping[str, Any] | None]) -> None:
        if not isinstance(rows, Mapping):
            raise ConfigError(
                f"Expected a mapping from key to row, got `{type(rows).__name__}`",
                hint="MemorySource({'u-1': {'age': 30}})",
            )
        self._rows = rows

    def fetch(self, keys: Sequence[Key], *, timeout_s: float) -> dict[Key, Mapping[str, Any] | None]:
        """The rows of these keys; never waits."""
        return {key: self._rows.get(key) for key in keys}

    def scan(self) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        """Every key with its row."""
        return ((key, row) for key, row in list(self._rows.items()) if row is not None)

    def __repr__(self) -> str:
        return f"<MemorySource: {len(self._rows)} rows>"
