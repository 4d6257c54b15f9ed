"""JSON and UBJSON that a stranger may have written: strict, in one pass, in time and memory that go with their size.

Rules:
  * A key stands once in an object. Nothing nests deeper than MAX_DEPTH in UBJSON, or than Python's stack in JSON.
  * What a document claims (counts, lengths) is believed only as far as there are bytes for it.
  * NaN and infinities are numbers here; who must not have them says so.
UBJSON: draft 12 of the specification (ubjson.org), with typed and counted containers, as XGBoost writes them.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from retailinfer.errors import ModelError, clip

__all__ = ["MAX_BYTES", "read_json", "read_ubjson"]

MAX_BYTES = 1 << 30
MAX_DEPTH = 64
MAX_ITEMS = 1 << 24  # objects, arrays and single values of one UBJSON document; typed arrays count once

_NUMBERS = {b"i": "b", b"U": "B", b"I": ">h", b"l": ">i", b"L": ">q", b"d": ">f", b"D": ">d"}
_SIZES = {mark: struct.calcsize(code) for mark, code in _NUMBERS.items()}
_DTYPES = {
    mark: np.dtype(code.replace("b", "i1").replace("B", "u1") if len(code) == 1 else code)
    for mark, code in _NUMBERS.items()
}
_WHOLE = (b"i", b"U", b"I", b"l", b"L")
_CONSTANTS: dict[bytes, Any] = {b"Z": None, b"T": True, b"F": False}


def read_json(data: str | bytes, what: str) -> Any:
    """A JSON document. Raises: ModelError, for `what`."""
    if len(data) > MAX_BYTES:
        raise ModelError(f"Expected at most {MAX_BYTES} bytes of {what}, got {len(data)}")
    try:
        text = data if isinstance(data, str) else bytes(data).decode()
        return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_object)
    except RecursionError:
        raise ModelError(f"{what} nests deeper than can be read") from None
    except ValueError as exc:  # not JSON, not UTF-8, or a whole number of thousands of digits
        raise ModelError(f"Expected JSON in {what}: {clip(str(exc), 120)}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ModelError(f"Expected each key once, got {clip(twice)} twice")
    return found


def read_ubjson(data: bytes, what: str) -> Any:
    """A UBJSON document; typed arrays of numbers come as NumPy arrays. Raises: ModelError, for `what`."""
    if len(data) > MAX_BYTES:
        raise ModelError(f"Expected at most {MAX_BYTES} bytes of {what}, got {len(data)}")
    reader = _Ubjson(bytes(data), what)
    value = reader.value(reader.mark(), 0)
    reader.end()
    return value


class _Ubjson:
    """One pass over the bytes; `at` is how far it is."""

    def __init__(self, data: bytes, what: str) -> None:
        self.data, self.what, self.at, self.items = data, what, 0, 0

    def wrong(self, why: str) -> ModelError:
        return ModelError(f"{self.what} is no UBJSON: {why} - at byte {self.at}")

    def take(self, n: int) -> bytes:
        if not 0 <= n <= len(self.data) - self.at:
            raise self.wrong(f"Expected {n} bytes, got {len(self.data) - self.at}")
        taken = self.data[self.at : self.at + n]
        self.at += n
        return taken

    def mark(self) -> bytes:
        """The next marker; no-ops between values are skipped."""
        mark = self.take(1)
        while mark == b"N":
            mark = self.take(1)
        return mark

    def end(self) -> None:
        rest = self.data[self.at :].strip(b"N")
        if rest:
            raise self.wrong(f"Expected the end, got {len(rest)} bytes more")

    def count(self) -> int:
        """A length or a count: a whole number of any type, not below 0."""
        mark = self.take(1)
        if mark not in _WHOLE:
            raise self.wrong(f"Expected a length, got {clip(mark)}")
        return int(struct.unpack(_NUMBERS[mark], self.take(_SIZES[mark]))[0])

    def text(self) -> str:
        raw = self.take(self.count())
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.wrong(f"Expected UTF-8, got {clip(raw)}") from None

    def value(self, mark: bytes, depth: int) -> Any:
        self.items += 1
        if depth > MAX_DEPTH or self.items > MAX_ITEMS:
            raise self.wrong(f"Expected at most {MAX_DEPTH} levels and {MAX_ITEMS} values")
        if mark in _NUMBERS:
            return struct.unpack(_NUMBERS[mark], self.take(_SIZES[mark]))[0]
        if mark in _CONSTANTS:
            return _CONSTANTS[mark]
        if mark == b"S":
            return self.text()
        if mark == b"C":
            return self.take(1).decode("latin-1")
        if mark == b"[":
            return self.array(depth)
        if mark == b"{":
            return self.object(depth)
        raise self.wrong(f"Expected a value, got {clip(mark)}")

    def optimised(self) -> tuple[bytes | None, int | None]:
        """Type and count of a container, where it tells them; a type comes with a count."""
        kind = count = None
        if self.data[self.at : self.at + 1] == b"$":
            self.at += 1
            kind = self.take(1)
            if self.data[self.at : self.at + 1] != b"#":
                raise self.wrong("Expected a count behind a type")
        if self.data[self.at : self.at + 1] == b"#":
            self.at += 1
            count = self.count()
            if count < 0:
                raise self.wrong(f"Expected a count, got {count}")
        return kind, count

    def array(self, depth: int) -> Any:
        kind, count = self.optimised()
        if kind in _DTYPES:
            assert count is not None
            raw = self.take(count * _SIZES[kind])
            return np.frombuffer(raw, _DTYPES[kind])
        self.spare(kind, count)
        found: list[Any] = []
        while count is None or len(found) < count:
            mark = kind or self.mark()
            if mark == b"]" and count is None:
                break
            found.append(self.value(mark, depth + 1))
        return found

    def object(self, depth: int) -> dict[str, Any]:
        kind, count = self.optimised()
        self.spare(kind, count)
        found: dict[str, Any] = {}
        while count is None or len(found) < count:
            if count is None and self.data[self.at : self.at + 1] == b"}":
                self.at += 1
                break
            key = self.text()
            if key in found:
                raise self.wrong(f"Expected each key once, got {clip(key)} twice")
            found[key] = self.value(kind or self.mark(), depth + 1)
        return found

    def spare(self, kind: bytes | None, count: int | None) -> None:
        """Every value takes a byte, but for typed constants, which take none: of those there must not be any number."""
        if count is not None and (kind in _CONSTANTS or kind == b"N" or count > len(self.data) - self.at):
            raise self.wrong(f"Expected {count} values in {len(self.data) - self.at} bytes")
