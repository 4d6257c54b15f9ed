"""A store in one file: FeatureTables, windows in memory, aliases; written whole or not at all, read whole or not at all.

    magic | for each part: u32 length of its head | head (msgpack) | pieces: u32 length | bytes, ended by a length of 0
          | u32 0 | SHA-256 of everything before

Rules:
  * The file appears under its name when it is complete and on the disk; what was there before stays until then.
  * Only the owner may read it: it holds keys and rows of people.
  * Nothing is taken over before the whole file was verified; each part verifies its own content once more.
  * A part that the store has no place for (no such table, another schema) is left out and told, never read as something else.
What is in a part: feature_table.py, windows.py, aliases.py. Who calls this: store.py.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import msgspec

from retailinfer.clock import Clock
from retailinfer.errors import ConfigError, IntegrityError, SchemaMismatchError, clip
from retailinfer.whole_file import replaced

if TYPE_CHECKING:
    from retailinfer.store.aliases import Aliases
    from retailinfer.store.feature_table import FeatureTable
    from retailinfer.store.windows import Windows

__all__ = ["Restored", "restore", "save"]

_MAGIC: Final = b"retailinfer store 1\n"
_DIGEST: Final = 32
_MAX_HEAD: Final = 1 << 16
_MAX_PIECE: Final = 1 << 30
_STEP: Final = 1 << 20


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a part is: "table", "windows" or "aliases", of which name, saved when (ns since 1970)."""

    part: str
    name: str
    saved_ns: int


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What `Store.restore` took over.

    Attributes:
        saved_at_s: when the file was written, in seconds since 1970.
        tables: rows by table. windows: entities by kind of entity. aliases: links by entity.
        left_out: parts of the file that this store has no place for, with the reason.
    """

    saved_at_s: float
    tables: dict[str, int]
    windows: dict[str, int]
    aliases: dict[str, int]
    left_out: tuple[str, ...]


# ---- writing ---------------------------------------------------------------------------------------------------------


class _Hashed:
    """A file that is hashed as it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self._file.write(data)
        self.size += len(data)
        return len(data)

    def framed(self, data: bytes) -> None:
        self.write(len(data).to_bytes(4, "little"))
        self.write(data)


class _Pieces:
    """What a part writes itself into: one frame a call."""

    def __init__(self, out: _Hashed) -> None:
        self._out = out

    def write(self, data: bytes) -> int:
        for start in range(0, len(data), _MAX_PIECE):
            self._out.framed(data[start : start + _MAX_PIECE])
        return len(data)


def save(
    path: str | os.PathLike[str],
    tables: Mapping[str, FeatureTable],
    windows: Windows | None,
    aliases: Mapping[str, Aliases],
    *,
    clock: Clock,
) -> int:
    """Write the file; its size. Raises: OSError of the file system, with whatever was there before left as it is."""
    with replaced(path) as file:
        out = _Hashed(file)
        out.write(_MAGIC)
        for head, dump in _parts(tables, windows, aliases, clock.wall_ns()):
            out.framed(msgspec.msgpack.encode(head))
            dump(_Pieces(out))
            out.framed(b"")
        out.framed(b"")
        out.write(out.digest.digest())
    return out.size


def _parts(
    tables: Mapping[str, FeatureTable], windows: Windows | None, aliases: Mapping[str, Aliases], now_ns: int
) -> Iterator[tuple[_Head, Callable[[_Pieces], object]]]:
    for name, table in tables.items():
        yield _Head("table", name, now_ns), table.dump
    if windows is not None and windows.transport is None:
        yield _Head("windows", "", now_ns), _writer(windows.dump)
    for name, graph in aliases.items():
        yield _Head("aliases", name, now_ns), _writer(partial(_whole, graph))


def _whole(graph: Aliases) -> tuple[bytes]:
    return (graph.dump(),)


def _writer(pieces: Callable[[], Iterable[bytes]]) -> Callable[[_Pieces], object]:
    def write(out: _Pieces) -> None:
        for piece in pieces():
            out.write(piece)

    return write


# ---- reading ---------------------------------------------------------------------------------------------------------


class _Part(io.RawIOBase):
    """The pieces of one part as one stream, each read once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = 0
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._left == 0 and not self._ended:
            self._left = _length(self._file, _MAX_PIECE)
            self._ended = self._left == 0
        data = self._file.read(min(self._left, len(buffer))) if self._left else b""
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def skip(self) -> None:
        """On to the next part, however much of this one was read."""
        while not self._ended:
            self._file.seek(self._left, os.SEEK_CUR)
            self._left = _length(self._file, _MAX_PIECE)
            self._ended = self._left == 0


def restore(
    path: str | os.PathLike[str],
    tables: Mapping[str, FeatureTable],
    windows: Windows | None,
    aliases: Mapping[str, Aliases],
    *,
    complete: bool = True,
) -> Restored:
    """Read the file back; see `Store.restore`. Raises: IntegrityError, OSError."""
    with Path(path).open("rb") as file:
        _verify(file, path)
        done: dict[str, dict[str, int]] = {"table": {}, "windows": {}, "aliases": {}}
        left_out: list[str] = []
        saved_ns = 0
        file.seek(len(_MAGIC))
        while size := _length(file, _MAX_HEAD):
            head = _head(file.read(size))
            saved_ns = max(saved_ns, head.saved_ns)
            part = _Part(file)
            why = _take_over(head, part, tables, windows, aliases, done, complete=complete)
            if why is not None:
                left_out.append(why)
            part.skip()
    return Restored(
        saved_at_s=saved_ns / 1e9,
        tables=done["table"],
        windows=done["windows"],
        aliases=done["aliases"],
        left_out=tuple(left_out),
    )


def _take_over(
    head: _Head,
    part: _Part,
    tables: Mapping[str, FeatureTable],
    windows: Windows | None,
    aliases: Mapping[str, Aliases],
    done: dict[str, dict[str, int]],
    *,
    complete: bool,
) -> str | None:
    """One part into its place; or why it has none here."""
    if head.part == "table":
        if head.name not in tables:
            return f"table {clip(head.name)}: this store has no such FeatureTable"
        try:
            done["table"][head.name] = tables[head.name].restore(io.BufferedReader(part, _STEP))
        except SchemaMismatchError as exc:
            return f"table {clip(head.name)}: {exc}"
    elif head.part == "windows":
        if windows is None or windows.transport is not None:
            return "windows: this store has none in memory"
        try:
            done["windows"].update(windows.restore(io.BufferedReader(part, _STEP).read, complete=complete))
        except SchemaMismatchError as exc:
            return f"windows: {exc}"
    elif head.part == "aliases":
        if head.name not in aliases:
            return f"aliases of {clip(head.name)}: this store has none"
        try:
            aliases[head.name].restore(io.BufferedReader(part, _STEP).read())
        except ConfigError as exc:
            return f"aliases of {clip(head.name)}: {exc}"
        done["aliases"][head.name] = len(aliases[head.name])
    else:
        return f"{clip(head.part)}: this version does not know such a part"
    return None


def _verify(file: BinaryIO, path: str | os.PathLike[str]) -> None:
    """The checksum of the whole file, before anything in it is believed. Raises: IntegrityError."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise IntegrityError(f"Expected a saved store in {clip(str(path), 80)}, got something else")
    left = file.seek(0, os.SEEK_END) - _DIGEST
    file.seek(0)
    digest = hashlib.sha256()
    while left > 0:
        data = file.read(min(left, _STEP))
        if not data:
            break
        digest.update(data)
        left -= len(data)
    if left != 0 or digest.digest() != file.read(_DIGEST):
        raise IntegrityError(
            f"the saved store in {clip(str(path), 80)} was changed or cut off: its checksum is another one",
            hint="take an older file, or start without one",
        )


def _length(file: BinaryIO, most: int) -> int:
    data = file.read(4)
    size = int.from_bytes(data, "little")
    if len(data) != 4 or size > most:
        raise IntegrityError("the saved store contradicts itself: a part of it has no end")
    return size


def _head(data: bytes) -> _Head:
    try:
        return msgspec.msgpack.decode(data, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise IntegrityError(f"the saved store contradicts itself: {clip(str(exc), 100)}") from exc
