"""Aliases of one key field: which other key a key stands for at a moment. Rules of the graph: alias_graph.h."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS: Mapping[str, int]
MAX_HOPS: int
MAX_TIME_NS: int

class AliasTable:
    """Links between the keys of one field, each from its own moment on. Changed under the GIL only."""

    name: str
    key_kind: str
    version: int
    max_links: int
    def __init__(
        self, name: str, key_kind: str, *, max_links: int = ..., hash_key: tuple[int, int] | None = None
    ) -> None:
        """An empty table.

        Args:
            name: the entity, for messages.
            key_kind: "str", "int" or "bytes".
            max_links: bound of all changes together, links and ends of links.
            hash_key: tests only; a random one otherwise.
        """

    def __len__(self) -> int:
        """Changes that name another key; 0: every key stands for itself."""

    @property
    def n_changes(self) -> int: ...
    @property
    def n_keys(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """Bytes of index, nodes, keys and changes."""

    def link(self, key: str | int | bytes, into: str | int | bytes, at_ns: int) -> None:
        """From `at_ns` (ns since the epoch) on, until its next change, `key` stands for `into`.

        A second change of a key at the same moment replaces the first.
        Raises: FeatureTypeError, FeatureRangeError for keys and times; ConfigError for a cycle, LimitError for a chain of more
            than 16 links at any moment, or too many changes. Nothing has changed then.
        """

    def unlink(self, key: str | int | bytes, at_ns: int) -> None:
        """From `at_ns` on, until its next change, `key` stands for itself."""

    def resolve_key(self, key: str | int | bytes, at_ns: int) -> str | int | bytes:
        """What `key` stands for at a moment; itself when nothing is linked."""

    def chain(self, key: str | int | bytes, at_ns: int) -> tuple[Any, ...]:
        """The keys from `key` to what it stands for, both included."""

    def history(self, key: str | int | bytes) -> tuple[tuple[int, Any], ...]:
        """(from_ns, key that it stands for | None) of each change, ascending."""

    def erase(self, key: str | int | bytes) -> int:
        """Forget a key: its changes, and that others stood for it. How many changes that touched."""

    def resolve_column(
        self,
        values: NDArray[Any],
        offsets: NDArray[np.int64] | None,
        at_ns: NDArray[np.int64],
        valid: NDArray[np.uint8] | None = None,
    ) -> tuple[NDArray[Any], NDArray[np.int64] | None, NDArray[np.uint8]]:
        """A canonical column of keys, each as of its own moment.

        Args:
            values, offsets: int64 (n,) and None for keys of kind "int"; else uint8 data and n + 1 int64 ends.
            at_ns: int64 (n,).
            valid: uint8 (n,), 0 = null, stays as it is; None = all there.
        Returns: values and offsets of the resolved keys, owned by the caller, and uint8 (n,) links followed. Holds the GIL.
        """

    def export(self) -> tuple[list[bytes], list[int], NDArray[np.int64], NDArray[np.int64]]:
        """(canonical keys, changes of each, from_ns of every change, number of its target in the keys or -1)."""

    def add_canonical(self, key: bytes, into: bytes | None, at_ns: int) -> None:
        """`link`, or `unlink` for None, by canonical key bytes. Raises like these, and UnicodeDecodeError for no UTF-8."""

    def replace(self, other: AliasTable, version: int | None = None) -> None:
        """Take over the content of `other`, which gets this one's; the version becomes at least `version`."""
