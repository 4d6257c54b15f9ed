"""What a row of the decision log holds: declared, read off the event at once, encoded later.

Rules:
  * Of a request a row holds the declared fields and the keys of the declared entities, and nothing else.
  * Values are taken when the answer is given: what the caller does to its request afterwards changes no row.
  * A key is text: numbers as digits, bytes as UTF-8 (or with escapes), several fields as a JSON list. With a hash key it is
    a keyed BLAKE2b digest of entity and key, 32 hexadecimal digits.
  * Encoding never fails: what JSON cannot hold becomes null, a row that is too long loses its fields; both are counted.
Where rows go: decision_folder.py. Who asks for them: decision_log.py.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, Final

import msgspec

from retailinfer.contracts import Decision
from retailinfer.errors import ConfigError, clip
from retailinfer.monitoring.events import Failed

__all__ = ["FIXED", "MAX_ROW", "Declaration", "Keys", "RowWriter", "declarations"]

MAX_ROW: Final = 65_536  # bytes of one encoded row
_MAX_KEY: Final = 512  # characters; longer ones are hashed
_MAX_ID: Final = 1_000
_CHANGES: Final = frozenset((list, dict, set, bytearray))

# Columns that every log has, and what they are. `at_ns` is first in every line: who scans for times relies on it.
FIXED: Final[dict[str, Any]] = {
    "at_ns": int,  # when the answer was ready, ns since 1970
    "kind": str,  # decision, ranking or failed
    "id": str | None,
    "release": str,
    "arm": str | None,
    "rung": int | None,
    "took_us": float,
    "priority": str,
    "score": float | None,
    "action": str | None,
    "stale": tuple[str, ...] | None,  # names of columns
    "missing": tuple[str, ...] | None,
    "reasons": tuple[str, ...] | None,  # fields that led to the score
    "items": tuple[str, ...] | None,  # of a ranking: the first `max_items`, best first
    "scores": tuple[float, ...] | None,
    "why": str | None,  # what kept the release from answering; of a failure, the error
    "late": bool | None,  # of a failure: the answer came after the deadline
}
_REQUIRED = ("at_ns", "kind", "release", "took_us", "priority")


class Declaration(msgspec.Struct, frozen=True, kw_only=True):
    """What a log holds, as it is written beside its files.

    Attributes:
        log: version of this format.
        fields: of the request, as columns `request.NAME`.
        entities: column `entity.NAME` -> the fields of the request that are its key.
        hashed: whether keys are digests; `key_check` tells one hash key from another.
        sample: share of the answers that have a row.
        keep_days: how long rows are kept; None = until they are erased.
        max_items: how much of a ranking is kept.
    """

    log: int = 1
    fields: tuple[str, ...]
    entities: dict[str, tuple[str, ...]]
    hashed: bool
    key_check: str
    sample: float
    keep_days: float | None
    max_items: int

    def encoded(self) -> bytes:
        """JSON for people."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def digest(self) -> str:
        """Eight digits that name it."""
        return hashlib.blake2b(self.encoded(), digest_size=4).hexdigest()

    def columns(self) -> tuple[str, ...]:
        """The columns beside `FIXED`."""
        return (*(f"entity.{name}" for name in self.entities), *(f"request.{name}" for name in self.fields))


def declarations(folder: Path) -> dict[str, Declaration]:
    """What the files of a folder hold, by the first part of their tags. Raises: OSError."""
    found = {}
    for path in sorted(folder.glob("log-????????.json")):
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError, FileNotFoundError):
            found[path.stem[4:]] = msgspec.json.decode(path.read_bytes(), type=Declaration)
    return found


class Keys:
    """Keys of entities as the log writes them."""

    def __init__(self, hash_key: str | bytes | None) -> None:
        """Raises: ConfigError for a hash key of fewer than 16 bytes."""
        self._secret = b""
        self.check = ""
        if hash_key is None:
            return
        secret = hash_key.encode() if isinstance(hash_key, str) else hash_key
        if not isinstance(secret, bytes) or len(secret) < 16:
            raise ConfigError(
                "Expected a hash_key of 16 bytes or more, which nobody can guess",
                hint="make one with secrets.token_bytes(32), and keep it as you keep passwords",
            )
        self._secret = hashlib.blake2b(secret, person=b"ri log key").digest()
        self.check = self._digest("", "check")[:8]

    def text(self, entity: str, key: Any) -> str:
        """The key of an entity as it stands in the log."""
        plain = _key_text(key)
        if self._secret:
            return self._digest(entity, plain)
        if len(plain) > _MAX_KEY:
            return "long:" + hashlib.blake2b(plain.encode(), digest_size=16).hexdigest()
        return plain

    def _digest(self, entity: str, plain: str) -> str:
        data = f"{entity}\0{plain}".encode()
        return hashlib.blake2b(data, digest_size=16, key=self._secret, person=b"ri log").hexdigest()


def _key_text(key: Any) -> str:
    if isinstance(key, str):
        return key.encode("utf-8", "backslashreplace").decode()  # a lone surrogate is no text
    if isinstance(key, bytes):
        return key.decode("utf-8", "backslashreplace")
    if isinstance(key, (list, tuple)):
        return msgspec.json.encode([_key_text(part) for part in key]).decode()
    return str(key)


class RowWriter:
    """Events -> lines.

    Attributes:
        bare: values that were left out, because JSON has no form for them, or because the row was too long.
        keyless: keys of entities that rows do not have.
        refused: rows that were too long without any field.
    """

    def __init__(
        self,
        *,
        fields: Sequence[str],
        entities: Mapping[str, str | Sequence[str]],
        keys: Keys,
        max_items: int,
    ) -> None:
        """Raises: ConfigError for names that mean nothing, or twice the same."""
        self.fields = _names(fields, "fields")
        self.entities = {
            name: _names([key] if isinstance(key, str) else key, f"entities[{clip(name)}]")
            for name, key in dict(entities).items()
        }
        for name in _names(list(self.entities), "entities"):
            if not self.entities[name]:
                raise ConfigError(f"Expected the fields that are the key of `{name}`, got none")
        self._keys = keys
        self._max_items = max_items
        self._needed = list(self.fields)
        self._parts: list[tuple[str, tuple[int, ...]]] = []
        for name, parts in self.entities.items():
            places = tuple(range(len(self._needed), len(self._needed) + len(parts)))
            self._parts.append((name, places))
            self._needed += parts
        self.values = _reader(self._needed)
        more = [f"entity.{name}" for name in self.entities] + [f"request.{name}" for name in self.fields]
        columns: list[Any] = [(name, FIXED[name]) for name in _REQUIRED]
        columns += [(name, kind, None) for name, kind in FIXED.items() if name not in _REQUIRED]
        columns += [(f"more_{i}", Any, None) for i in range(len(more))]
        self._row: Any = msgspec.defstruct(
            "Row", columns, rename={f"more_{i}": name for i, name in enumerate(more)}, omit_defaults=True
        )
        self._encoder = msgspec.json.Encoder(enc_hook=_plain)
        self.bare = 0
        self.keyless = 0
        self.refused = 0

    def lines(self, taken: Sequence[Any]) -> tuple[bytes, int, int, int]:
        """(lines, how many, time of the oldest, time of the newest), ns since 1970.

        taken: a Failed, or of an Answered the answer, `values` of its request, and the rest of its fields in order.
        """
        rows = [self._failed(one) if type(one) is Failed else self._answered(*one) for one in taken]
        try:
            data = self._encoder.encode_lines(rows)
        except Exception:  # noqa: BLE001 - whatever a value does: row by row, without what cannot be encoded
            data = b""
        if not data or len(data) > MAX_ROW:
            rows, data = self._one_by_one(rows)
        times = [row.at_ns for row in rows]
        return data, len(rows), min(times, default=0), max(times, default=0)

    def _answered(
        self, answer: Any, values: tuple[Any, ...], wall_ns: int, took_ns: int, priority: str, why: str
    ) -> Any:
        decides = type(answer) is Decision
        fields = [None if value is msgspec.UNSET else value for value in values]
        return self._row(
            wall_ns,
            "decision" if decides else "ranking",
            answer.release,
            took_ns / 1000,
            priority,
            answer.id[:_MAX_ID],
            answer.arm,
            answer.rung,
            answer.score if decides else None,
            answer.action if decides else None,
            answer.stale,
            answer.missing,
            (tuple(reason.field for reason in answer.reasons) or None) if decides else None,
            None if decides else tuple(map(str, answer.items[: self._max_items])),
            None if decides else tuple(answer.scores[: self._max_items]),
            why or None,
            None,
            *[self._key(name, [fields[i] for i in places]) for name, places in self._parts],
            *fields[: len(self.fields)],
        )

    def _key(self, entity: str, parts: list[Any]) -> str | None:
        if None in parts:
            self.keyless += 1
            return None
        return self._keys.text(entity, parts[0] if len(parts) == 1 else parts)

    def _failed(self, event: Failed) -> Any:
        return self._row(
            at_ns=event.wall_ns,
            kind="failed",
            release=event.release,
            took_us=event.took_ns / 1000,
            priority=event.priority,
            id=None if event.request_id is None else event.request_id[:_MAX_ID],
            why=event.error,
            late=event.late or None,
        )

    def _one_by_one(self, rows: list[Any]) -> tuple[list[Any], bytes]:
        kept, lines = [], []
        for row in rows:
            line = self._line(row) or self._line(self._without_fields(row))
            if line is None:
                self.refused += 1
            else:
                kept.append(row)
                lines.append(line + b"\n")
        return kept, b"".join(lines)

    def _line(self, row: Any) -> bytes | None:
        try:
            line = self._encoder.encode(row)
        except Exception:  # noqa: BLE001 - as above
            return None
        return line if len(line) <= MAX_ROW else None

    def _without_fields(self, row: Any) -> Any:
        """A copy in which what cannot be encoded, or what is long, is null."""
        changes: dict[str, Any] = {}
        for i in range(len(self.fields)):
            name = f"more_{len(self.entities) + i}"
            value = getattr(row, name)
            try:
                size = len(self._encoder.encode(value))
            except Exception:  # noqa: BLE001 - as above
                size = MAX_ROW
            if size > 1_000:
                changes[name] = None
                self.bare += 1
        if row.id is not None:
            changes["id"] = row.id.encode("utf-8", "backslashreplace").decode()
        return msgspec.structs.replace(row, **changes)


def _names(given: Any, what: str) -> tuple[str, ...]:
    if isinstance(given, str) or not all(isinstance(name, str) and name for name in given):
        raise ConfigError(f"Expected a list of names for {what}, got {clip(given)}")
    names = tuple(given)
    if len(set(names)) != len(names):
        raise ConfigError(f"Expected each name once in {what}, got {clip(names, 100)}")
    return names


def _reader(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """A function request -> the values of some of its fields; None for one that is not there."""
    if not names:
        return lambda _: ()
    pair = [*names, names[0]]  # one name alone would give no tuple
    of_dict = itemgetter(*pair)
    of_object = attrgetter(*pair) if all(name.isidentifier() for name in names) else None

    def read(request: Any) -> tuple[Any, ...]:
        values: tuple[Any, ...]
        try:
            if isinstance(request, dict):  # its attributes are not its fields: `items` is a method
                values = of_dict(request)
            elif of_object is not None:
                values = of_object(request)
            else:
                values = tolerant(request)
        except (KeyError, AttributeError):
            values = tolerant(request)
        if not _CHANGES.isdisjoint(map(type, values)):  # the caller may go on to change it
            values = tuple([deepcopy(value) if type(value) in _CHANGES else value for value in values])
        return values

    def tolerant(request: Any) -> tuple[Any, ...]:
        if isinstance(request, Mapping):
            return tuple([request.get(name) for name in names])
        return tuple([getattr(request, name, None) for name in names])

    return read


def _plain(value: Any) -> Any:
    """What msgspec does not encode by itself: NumPy's scalars. Everything else is refused, and becomes null."""
    item = getattr(value, "item", None)
    if callable(item) and type(value).__module__ == "numpy":
        return item()
    raise TypeError
