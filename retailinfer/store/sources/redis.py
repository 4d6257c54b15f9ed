"""RedisSource: rows that another job writes into Redis, one key a row; packed with msgpack or JSON, or as hashes.

Rules:
  * One flight per fetch: all keys in one write, to all nodes of a cluster at once, within the time limit.
  * A key that is not there is no such entity. One that holds another type, or bytes that are no row, is refused by itself
    (it is never "no such entity", which would be remembered); the other rows of the fetch are good.
  * A key's name is the prefix and the key: text as it is, an integer in decimal, the parts of a tuple joined by `:`, where `%`
    and `:` in a part are written %25 and %3A, so that no two keys share a name. `name` says it for those who write rows.
  * Read only: whoever writes rows sets their expiry, and puts the moment when a row was true into a column of it.
Connections and time limits are ../redis_link.py; rows of the past for a table's start come by `scan`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from retailinfer.clock import SystemClock
from retailinfer.errors import ConfigError, clip
from retailinfer.store.redis_link import ErrorReply, LinkError, RedisLink, Reply, encode
from retailinfer.store.sources import Key

__all__ = ["RedisSource"]

_CHUNK = 512  # keys of one flight
_KINDS = ("f64", "i64", "bool", "str", "bytes", "vec")


class RedisSource:
    """Reads rows by key."""

    def __init__(
        self, url: str, *, prefix: str = "", rows: str = "msgpack", columns: Mapping[str, str] | None = None
    ) -> None:  # fmt: skip
        """Open nothing yet.

        Args:
            url: redis://, rediss://, unix://, redis+sentinel://host,host/service or redis+cluster://host,host.
            prefix: before every key.
            rows: "msgpack" or "json": each value is one map of columns. "hash": each is a hash of columns.
            columns: what to read, column -> "f64", "i64", "bool", "str", "bytes" or "vec" (float32, little endian). Needed for
                hashes, whose cells are text: a cell that is not there is null. For packed rows only "vec" does something:
                bytes become numbers.
        Raises: ConfigError.
        """
        if rows not in ("msgpack", "json", "hash"):
            raise ConfigError(f'Expected rows to be "msgpack", "json" or "hash", got {clip(rows)}')
        if not isinstance(prefix, str):
            raise ConfigError(f"Expected a prefix that is text, got `{type(prefix).__name__}`")
        if rows == "hash" and not columns:
            raise ConfigError(
                "Expected the columns of hashes", hint='columns={"mean_amount_30d": "f64", ...}'
            )
        for name, kind in (columns or {}).items():
            if not isinstance(name, str) or kind not in _KINDS:
                raise ConfigError(
                    f"Expected columns with a kind each ({', '.join(_KINDS)}), got {clip(name)}: {clip(kind)}"
                )
        self._link = RedisLink(url)
        self._prefix = prefix.encode()
        self._rows = rows
        self._columns = dict(columns or {})
        self._vectors = [name for name, kind in self._columns.items() if kind == "vec"]
        self._fields = [name.encode() for name in self._columns]
        self._unpack: Callable[[bytes], Any] = (
            msgspec.msgpack.Decoder().decode if rows == "msgpack" else msgspec.json.Decoder().decode
        )

    def __repr__(self) -> str:
        return f"<RedisSource {self._rows} over {self._link!r}>"

    def name(self, key: Key) -> bytes:
        """Under which name the row of a key stands. Raises: TypeError for what is no key."""
        return self._prefix + _name(key)

    def fetch(self, keys: Sequence[Key], *, timeout_s: float) -> dict[Key, Any]:
        """Rows of these keys. Raises: LinkError, TypeError for what is no key."""
        found: dict[Key, Any] = {}
        start_ns = SystemClock.monotonic_ns()
        for at in range(0, len(keys), _CHUNK):
            chunk = keys[at : at + _CHUNK]
            names = [self.name(key) for key in chunk]
            left_s = timeout_s - (SystemClock.monotonic_ns() - start_ns) / 1e9
            replies = self._link.request([(name, self._ask(name)) for name in names], timeout_s=left_s)
            for key, reply in zip(chunk, replies, strict=True):
                found[key] = self._row(reply)
        return found

    def _ask(self, name: bytes) -> bytes:
        if self._rows == "hash":
            return encode(b"HMGET", name, *self._fields)
        return encode(b"GET", name)

    def _row(self, reply: Reply) -> Any:
        """A row, None for no such entity, or something that is no row, for the table to refuse."""
        if reply is None:
            return None
        if type(reply) is ErrorReply:
            if reply.code == "WRONGTYPE":
                return reply.code
            raise LinkError(f"Redis answered {reply.code}")
        try:
            if self._rows == "hash":
                if not isinstance(reply, list) or all(cell is None for cell in reply):
                    return None
                if not all(cell is None or isinstance(cell, bytes) for cell in reply):
                    return "cells"
                return {
                    name: None if cell is None else _cell(cell, kind)
                    for (name, kind), cell in zip(self._columns.items(), reply, strict=True)
                }
            row = self._unpack(reply)
            if self._vectors and isinstance(row, dict):
                for name in self._vectors:
                    if isinstance(row.get(name), bytes):
                        row[name] = _vector(row[name])
        except (msgspec.MsgspecError, ValueError, OverflowError, KeyError, TypeError, RecursionError) as exc:
            return type(exc).__name__
        return row

    def scan(self, key: str = "str", *, timeout_s: float = 10.0) -> Iterator[tuple[Key, Any]]:
        """Every row, for loading a table whole. `key`: what keys are, "str", "int" or "bytes". Not in a cluster.

        Rows that are written or removed meanwhile may be missing. Raises: LinkError, ConfigError.
        """
        if self._link.is_cluster:
            raise ConfigError("a cluster is not scanned", hint="load the table from where its rows come from")
        if key not in ("str", "int", "bytes"):
            raise ConfigError(f'Expected keys that are "str", "int" or "bytes", got {clip(key)}')
        cursor, seen = b"0", set()
        pattern = b"".join(b"\\" + bytes([c]) if c in b"*?[]\\^" else bytes([c]) for c in self._prefix) + b"*"
        while True:
            reply = self._link.request(
                [(None, encode(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"%d" % _CHUNK))], timeout_s=timeout_s
            )[0]  # fmt: skip
            if not isinstance(reply, list) or len(reply) != 2:
                raise LinkError("Redis refused to be scanned")
            cursor, names = reply
            names = [name for name in names if name not in seen]
            seen.update(names)  # a scan may give a name twice
            keys = {
                found: name for name in names if (found := _key(name[len(self._prefix) :], key)) is not None
            }
            if keys:
                rows = self._link.request([(n, self._ask(n)) for n in keys.values()], timeout_s=timeout_s)
                for found, row in zip(keys, map(self._row, rows), strict=True):
                    if isinstance(row, dict):
                        yield found, row
            if cursor == b"0":
                return

    def close(self) -> None:
        """Close idle connections."""
        self._link.close()


def _name(key: Key) -> bytes:
    if type(key) is str:
        return key.encode()
    if type(key) is int:
        return b"%d" % key
    if type(key) is bytes:
        return key
    if type(key) is tuple and key and all(type(part) in (str, int, bytes) for part in key):
        return b":".join(_name(part).replace(b"%", b"%25").replace(b":", b"%3A") for part in key)
    raise TypeError(f"Expected a key that is str, int, bytes or a tuple of those, got `{type(key).__name__}`")


def _key(name: bytes, kind: str) -> Key | None:
    """The key that has this name; None if there is none of this kind."""
    if kind == "bytes":
        return name
    try:
        if kind == "str":
            return name.decode()
        return int(name) if name == b"%d" % int(name) else None
    except ValueError:
        return None


def _vector(data: bytes) -> Any:
    return np.frombuffer(data, "<f4").astype(np.float32)


def _cell(cell: bytes, kind: str) -> Any:
    """A cell of a hash; raises ValueError."""
    if kind == "f64":
        number = float(cell)
        return None if math.isnan(number) else number
    if kind == "i64":
        return int(cell)
    if kind == "bool":
        return {b"0": False, b"1": True, b"false": False, b"true": True, b"False": False, b"True": True}[cell]
    if kind == "str":
        return cell.decode()
    if kind == "vec":
        if cell[:1] != b"[":
            return _vector(cell)
        with np.errstate(over="ignore"):  # the table refuses infinities in words
            return np.asarray(json.loads(cell), np.float32)
    return cell
