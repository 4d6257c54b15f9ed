"""Where rows come from: one file per kind of source, each with one optional package, none imported before it is used.

Rules:
  * A source is one method, `fetch`. It may wait, fail and return anything: ReadThrough calls it on threads of its own,
    under a time limit, and checks what it says. Write one of your own in five lines.
  * A source reports failure by raising, whatever it likes; it never guesses a row and never hides an error as "no such
    entity", which would be remembered.
  * Sources hold no rows: what is kept, for how long, and how old it may be is the table's business.
  * Connections are opened at the first fetch and again after a fork, never at import and never when a source is made.
memory.py (a dict), arrow.py (Arrow, Parquet), sql.py (SQLAlchemy), redis.py, feast.py; who calls them: ../readthrough.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

__all__ = ["FeatureSource", "Key", "isolate"]

Key: TypeAlias = str | int | bytes | tuple[str | int | bytes, ...]


class FeatureSource(Protocol):
    """What a table reads through. Only `fetch` is needed; the others are used where a source has them.

    `waits = False` (a class attribute) says that `fetch` never waits for anything: it then runs on the caller's thread.
    `scan()` gives everything there is, as an Arrow stream or as `(key, row)` pairs, for `FeatureTable.load`.
    `close()` gives back connections.
    """

    def fetch(self, keys: Sequence[Key], *, timeout_s: float) -> Mapping[Key, Mapping[str, Any] | None]:
        """Rows of `keys`: a mapping from key to row, a row being a mapping from column to value.

        Args:
            keys: 1 to a few hundred different keys, of the exact types str, int, bytes, or tuples of those.
            timeout_s: raise rather than take longer. The caller does not wait longer in any case.
        Returns: for each key its row, or None (or nothing) where there is no such entity. None in a row is null; a row
            without one of the table's columns is refused. Other keys are ignored. A key that cannot be looked up may have
            an exception in place of a row: it is then unavailable, and the others are not (see `isolate`).
        Raises: anything; the keys are then unavailable, and nothing is remembered about them.
        """
        ...


def isolate(
    fetch: Callable[[Sequence[Key]], dict[Key, Any]],
    keys: Sequence[Key],
    *,
    blames_key: tuple[type[Exception], ...],
    time_is_up: Callable[[], bool],
) -> dict[Key, Any]:
    """`fetch(keys)`; if that raises what blames a key, once more in halves, until the key at fault stands alone.

    Clients choose keys: one that a back end refuses (a NUL in a text, a text that is no UUID) must not fail the others that
    happened to be fetched with it. The exception stands where the row of such a key would, and for all keys that are not
    answered when time is up.
    """
    try:
        return fetch(keys)
    except blames_key as exc:
        if len(keys) == 1 or time_is_up():
            return dict.fromkeys(keys, exc)
    half = len(keys) // 2
    halves = (keys[:half], keys[half:])
    return {
        key: row
        for part in halves
        for key, row in isolate(fetch, part, blames_key=blames_key, time_is_up=time_is_up).items()
    }
