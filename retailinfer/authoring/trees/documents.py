"""JSON and UBJSON that a stranger may have written: strict, in one pass, in time and memory that go with their size.

Rules:
  * A key stands once in an object. Nothing nests deeper than MAX_DEPTH in UBJSON, or than Python's stack in JSON.
  * What a document claims (counts, lengths) is believed only as far as there are bytes for it.
  * NaN and infinities are numbers here; who must not have them says so.
UBJSON: draft 12 of the specification (ubjson.org), with typed and counted containers, as XGBoost writes them.
"""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np

from retailinfer.errors import ModelError, clip

__all__ = ["MAX_BYTES", "read_json", "read_ubjson"]

MAX_BYTES = 1 << 30
MAX_DEPTH = 64
# Objects, arrays and single values of one UBJSON document; typed arrays count once. XGBoost writes 24 a tree, and a forest has
# at most 100,000 of them.
MAX_ITEMS = 1 << 22

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
    """One pass over the bytes. The stream keeps the place: a number here would be a new object for every byte that is read."""

    def __init__(self, data: bytes, what: str) -> None:
        self.what, self.size, self.items = what, len(data), 0
        self.stream = io.BytesIO(data)
        self.read = self.stream.read

    def wrong(self, why: str) -> ModelError:
        return ModelError(f"{self.what} is no UBJSON: {why} - at byte {self.stream.tell()}")

    def left(self) -> int:
        return self.size - self.stream.tell()

    def take(self, n: int) -> bytes:
        if not 0 <= n <= self.left():
            raise self.wrong(f"Expected {n} bytes, got {self.left()}")
        return self.read(n)

    def mark(self) -> bytes:
        """The next marker; no-ops between values are skipped."""
        while (mark := self.read(1)) == b"N":
            pass
        return mark or self.take(1)

    def end(self) -> None:
        rest = self.read().strip(b"N")
        if rest:
            raise self.wrong(f"Expected the end, got {len(rest)} bytes more")

    def count(self, mark: bytes) -> int:
        """A length or a count behind its marker: a whole number of any type, not below 0."""
        if mark not in _WHOLE:
            raise self.wrong(f"Expected a length, got {clip(mark or self.take(1))}")
        return int(struct.unpack(_NUMBERS[mark], self.take(_SIZES[mark]))[0])

    def text(self, mark: bytes) -> str:
        raw = self.take(self.count(mark))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.wrong(f"Expected UTF-8, got {clip(raw)}") from None

    def value(self, mark: bytes, depth: int) -> Any:
        self.items += 1
        if depth > MAX_DEPTH or self.items > MAX_ITEMS:
            raise self.wrong(f"Expected at most {MAX_DEPTH} levels and {MAX_ITEMS} values")
        if mark == b"{":
            return self.object(depth)
        if mark == b"[":
            return self.array(depth)
        if mark in _NUMBERS:
            return struct.unpack(_NUMBERS[mark], self.take(_SIZES[mark]))[0]
        if mark in _CONSTANTS:
            return _CONSTANTS[mark]
        if mark == b"S":
            return self.text(self.read(1))
        if mark == b"C":
            return self.take(1).decode("latin-1")
        raise self.wrong(f"Expected a value, got {clip(mark)}")

    def optimised(self, mark: bytes) -> tuple[bytes | None, int]:
        """Type, where it is told, and count of a container that begins with `mark`: $ or #. A type comes with a count."""
        kind = None
        if mark == b"$":
            kind = self.take(1)
            mark = self.read(1)
        if mark != b"#":
            raise self.wrong("Expected a count behind a type")
        count = self.count(self.read(1))
        if count < 0:
            raise self.wrong(f"Expected a count, got {count}")
        return kind, count

    def array(self, depth: int) -> Any:
        mark = self.read(1)
        if mark not in (b"$", b"#"):
            found: list[Any] = []
            mark = self.mark() if mark in (b"N", b"") else mark
            while mark != b"]":
                found.append(self.value(mark, depth + 1))
                mark = self.mark()
            return found
        kind, count = self.optimised(mark)
        if kind in _DTYPES:
            return np.frombuffer(self.take(count * _SIZES[kind]), _DTYPES[kind])
        self.spare(kind, count)
        return [self.value(kind or self.mark(), depth + 1) for _ in range(count)]

    def object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        mark = self.read(1)
        if mark not in (b"$", b"#"):
            while mark != b"}":
                self.member(found, mark, None, depth)
                mark = self.read(1)
            return found
        kind, count = self.optimised(mark)
        self.spare(kind, count)
        for _ in range(count):
            self.member(found, self.read(1), kind, depth)
        return found

    def member(self, found: dict[str, Any], mark: bytes, kind: bytes | None, depth: int) -> None:
        key = self.text(mark)
        if key in found:
            raise self.wrong(f"Expected each key once, got {clip(key)} twice")
        found[key] = self.value(kind or self.mark(), depth + 1)

    def spare(self, kind: bytes | None, count: int) -> None:
        """Every value takes a byte, but for typed constants, which take none: of those there must not be any number."""
        if kind in _CONSTANTS or kind == b"N" or count > self.left():
            raise self.wrong(f"Expected {count} values in {self.left()} bytes")
