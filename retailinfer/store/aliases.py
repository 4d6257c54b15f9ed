"""Aliases of an entity: guest e-mail -> customer, device -> card, merged accounts; each link from its own moment on.

    aliases = store.aliases("customer")
    aliases.link("guest-17@example.org", into="c-204", at=when_it_was_known)
    aliases.unlink("guest-17@example.org", at=when_they_were_split)

Rules:
  * A key's history is a set of changes, each at a moment: from then on, until its next change, it stands for another key, or
    for itself. The order in which changes are written does not matter; of two at the same moment the later written counts.
  * Chains are followed as of the moment of the request, at most 16 links. What would close a cycle is refused when linked.
  * Look-ups alone use the resolved key (tables, windows); features read the field as it came.
  * `at` is when the link became known to the shop: serving could not have used it earlier, so training sets must not either.
  * State that was gathered under two keys before they were linked is not merged: it stays where it was written.
  * Erasing a key takes it out of the graph and out of the next save; a save made before still has it.
The graph itself is `_native/aliases.pyx`. Who asks it: the engine for every request, `authoring/replay.py` for training sets.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable
from typing import Any, Final

import msgspec
import numpy as np

from retailinfer._native.aliases import MAX_TIME_NS, AliasTable
from retailinfer.clock import Clock, SystemClock
from retailinfer.errors import (
    CallerError,
    ConfigError,
    FeatureRangeError,
    FeatureTypeError,
    IntegrityError,
    clip,
)

__all__ = ["Aliases", "moment_ns"]

Key = str | int | bytes

_MAGIC: Final = b"retailinfer aliases\n"
_DIGEST: Final = 32


class _Saved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a saved graph holds: keys by number, the changes of each one after the other."""

    format: int
    entity: str
    key_kind: str
    version: int
    keys: list[bytes]
    counts: list[int]
    from_ns: bytes  # int64, little-endian
    targets: bytes  # int64: number of the key that it stands for, -1 = itself


class Aliases:
    """Which keys of one entity stand for which others, and since when. Safe to use from many threads and after a fork."""

    def __init__(
        self, entity: str, key: str = "str", *, max_links: int = 10_000_000, clock: Clock | None = None
    ) -> None:
        """An empty graph.

        Args:
            entity: the entity whose key is the aliased field.
            key: what the field holds: "str", "int" or "bytes". Entities with a key of several fields have no aliases.
            max_links: bound of all changes of all keys; a change takes some 200 bytes with its key.
        Raises: ConfigError.
        """
        if not isinstance(entity, str) or not entity.isidentifier():
            raise ConfigError(f"Expected the name of an entity, got {clip(entity)}")
        self._core = AliasTable(entity, key, max_links=max_links)
        self._clock: Clock = SystemClock() if clock is None else clock

    @property
    def core(self) -> AliasTable:
        """The native graph; the same object for as long as this one lives. For the engine."""
        return self._core

    @property
    def entity(self) -> str:
        return self._core.name

    @property
    def key_kind(self) -> str:
        return self._core.key_kind

    @property
    def version(self) -> int:
        """Counts changes: two equal versions of one process are the same graph."""
        return self._core.version

    @property
    def nbytes(self) -> int:
        return self._core.nbytes

    def __len__(self) -> int:
        """How many links there are, of all times."""
        return len(self._core)

    def link(self, key: Key, *, into: Key, at: Any = None) -> None:
        """From `at` on (None: now) `key` stands for `into`, until its next change.

        Args:
            at: when this became known: a datetime with a zone, or seconds since 1970.
        Raises: ConfigError if the two would stand for each other at some moment; LimitError for a chain of more than 16
            links; FeatureTypeError and FeatureRangeError for keys and moments. Nothing has changed then.
        """
        self._core.link(key, into, moment_ns(at, self._clock))

    def unlink(self, key: Key, *, at: Any = None) -> None:
        """From `at` on (None: now) `key` stands for itself, until its next change: accounts that were split."""
        self._core.unlink(key, moment_ns(at, self._clock))

    def link_all(self, links: Iterable[tuple[Key, Key | None, Any]]) -> int:
        """Write (key, into or None, at) one after the other; how many. The first that is refused raises, and ends it.

        Of keys that were linked one way and later the other, give the later changes first: until its next change is
        written, a link holds for ever.
        """
        written = 0
        for key, into, at in links:
            if into is None:
                self.unlink(key, at=at)
            else:
                self.link(key, into=into, at=at)
            written += 1
        return written

    def resolve(self, key: Key, at: Any = None) -> Key:
        """What `key` stands for at a moment (None: now)."""
        return self._core.resolve_key(key, moment_ns(at, self._clock))

    def chain(self, key: Key, at: Any = None) -> tuple[Key, ...]:
        """The keys from `key` to what it stands for at a moment, both included."""
        return self._core.chain(key, moment_ns(at, self._clock))

    def history(self, key: Key) -> tuple[tuple[dt.datetime, Key | None], ...]:
        """Each change of a key: from when on it stands for what (None: for itself)."""
        return tuple((_datetime(from_ns), into) for from_ns, into in self._core.history(key))

    def erase(self, key: Key) -> int:
        """Forget a key and every link from it or to it, of all times; how many changes that touched."""
        return self._core.erase(key)

    def dump(self) -> bytes:
        """All of it, for `restore` in another process; holds the keys, so keep it no longer than these may be kept."""
        keys, counts, from_ns, targets = self._core.export()
        saved = _Saved(
            format=1,
            entity=self.entity,
            key_kind=self.key_kind,
            version=self.version,
            keys=keys,
            counts=counts,
            from_ns=from_ns.astype("<i8").tobytes(),
            targets=targets.astype("<i8").tobytes(),
        )
        body = msgspec.msgpack.encode(saved)
        return _MAGIC + _checksum(body) + body

    def restore(self, data: bytes) -> None:
        """Replace all of it by what `dump` gave.

        Raises: IntegrityError for bytes that are no dump, whole and unchanged; ConfigError for another entity or kind of
            key. Nothing has changed then.
        """
        saved = _read(data)
        if (saved.entity, saved.key_kind) != (self.entity, self.key_kind):
            raise ConfigError(
                f"Expected aliases of `{self.entity}` with keys of kind `{self.key_kind}`, got those of "
                f"{clip(saved.entity)} with {clip(saved.key_kind)}"
            )
        made = AliasTable(self.entity, self.key_kind, max_links=self._core.max_links)
        from_ns = np.frombuffer(saved.from_ns, "<i8").tolist()
        targets = np.frombuffer(saved.targets, "<i8").tolist()
        at = 0
        try:
            for key, count in zip(saved.keys, saved.counts, strict=True):
                # The latest change first: then each link holds for no longer than it did in the graph that was saved.
                for i in reversed(range(at, at + count)):
                    made.add_canonical(key, None if targets[i] < 0 else saved.keys[targets[i]], from_ns[i])
                at += count
        except (CallerError, UnicodeDecodeError) as exc:
            raise IntegrityError(
                f"the saved aliases of `{self.entity}` contradict themselves: {exc}"
            ) from exc
        self._core.replace(made, saved.version)

    def __repr__(self) -> str:
        return f"<Aliases of {self.entity}: {len(self)} links, {self.nbytes} bytes>"


def _checksum(data: bytes) -> bytes:
    import hashlib  # noqa: PLC0415 - brings OpenSSL's library; importing the package need not

    return hashlib.sha256(data).digest()


def _read(data: bytes) -> _Saved:
    """The saved graph, with every number in its range."""
    head = len(_MAGIC) + _DIGEST
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise IntegrityError(f"Expected the bytes of saved aliases, got `{type(data).__name__}`")
    data = bytes(data)
    if not data.startswith(_MAGIC) or len(data) < head:
        raise IntegrityError("Expected saved aliases, got bytes that do not begin like them")
    if _checksum(data[head:]) != data[len(_MAGIC) : head]:
        raise IntegrityError("the saved aliases are not what was written: their checksum differs")
    try:
        saved = msgspec.msgpack.decode(data[head:], type=_Saved)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise IntegrityError(f"the saved aliases cannot be read: {exc}") from exc
    total = sum(saved.counts)
    sizes = {len(saved.from_ns), len(saved.targets)}
    if (
        saved.format != 1
        or len(saved.counts) != len(saved.keys)
        or min(saved.counts, default=0) < 0
        or sizes != {8 * total}
        or not 0 <= saved.version < 1 << 62
    ):
        raise IntegrityError("the saved aliases contradict themselves: their numbers do not add up")
    targets = np.frombuffer(saved.targets, "<i8")
    if total and not (int(targets.min()) >= -1 and int(targets.max()) < len(saved.keys)):
        raise IntegrityError("the saved aliases contradict themselves: a link names a key that is not there")
    return saved


def moment_ns(at: Any, clock: Clock) -> int:
    """Nanoseconds since 1970 of a datetime with a zone or of seconds, to the microsecond like a request's; None: now."""
    if at is None:
        return clock.wall_ns()
    if isinstance(at, dt.datetime):
        if at.tzinfo is None or at.utcoffset() is None:
            raise FeatureTypeError(
                "Expected a datetime with a zone, got one without",
                path="$.at",
                hint="say which zone it is in: datetime.replace(tzinfo=...)",
            )
        since = at - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
        return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000
    if isinstance(at, (int, float)) and not isinstance(at, bool):
        if not (math.isfinite(at) and abs(at) <= MAX_TIME_NS // 10**9):
            raise FeatureRangeError(
                f"Expected seconds since 1970 within +-4.6e9, got {clip(at)}",
                path="$.at",
                hint="milliseconds are not seconds",
            )
        return int(at) * 10**9 if isinstance(at, int) else round(at * 1e6) * 1000
    raise FeatureTypeError(
        f"Expected a datetime with a zone or seconds since 1970, got `{type(at).__name__}`", path="$.at"
    )


def _datetime(ns: int) -> dt.datetime:
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=ns // 1000)
