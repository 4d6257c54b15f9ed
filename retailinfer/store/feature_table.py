"""FeatureTable: rows of entities that change, bounded in rows and bytes, with the age of each; alone or over a source.

Rules:
  * One declared schema: columns with their kinds, one kind of key. A row of another shape is refused by name; an old dump
    of another schema is refused whole, never read as something else.
  * A row past its time to live is not gone: it is `STALE`, and each column of a feature spec says what that means. Gone is
    what was evicted, erased, or is older than `retention`.
  * Expiry runs on the monotonic clock and survives a step of the clock of the day; ages (`age_s`, `max_age`) are the time
    since `updated_at` on the clock of the day, and never negative.
  * With a source, a look-up that misses waits for it, no longer than `wait_ns` says; what comes later fills the table all the
    same. Writing and erasing take precedence over answers that are still on their way.
  * Reading and writing hold the GIL and are one step each; bulk loads, dumps and restores are cut into slices.
The memory is `_native/feature_table.pyx`, fetching is readthrough.py, a catalogue that is replaced whole is table.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec
import numpy as np

from retailinfer._native.feature_table import (
    ROW_EXPIRED,
    ROW_FRESH,
    ROW_UNKNOWN,
    LruReader,
    LruTable,
    RowSource,
)
from retailinfer._native.table import compose_keys
from retailinfer.clock import Clock, SystemClock
from retailinfer.columns import parse_duration_ns
from retailinfer.errors import (
    ConfigError,
    FeatureTypeError,
    IntegrityError,
    SchemaMismatchError,
    SpecError,
    clip,
)
from retailinfer.store.arrow import (
    ArrowColumns,
    is_arrow,
    narrow_columns,
    read_batches,
    read_columns,
    whole_table,
)
from retailinfer.store.table import Gathered, Outcome, plain_cell, single_keys, true_ns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer.store.readthrough import ReadThrough, ReadThroughStats
    from retailinfer.store.sources import FeatureSource

__all__ = ["FeatureTable", "TableStats"]

Key: TypeAlias = str | int | bytes | tuple[str | int | bytes, ...]
Kind: TypeAlias = str | tuple[str, int]

MAGIC = b"retailinfer table\x00\x01\n"
_SLICE = 256  # rows written or copied at once: some 100 µs without another thread
_DIGEST = 32
_READERS = 64  # column selections whose plan is kept
_KINDS = {
    "f64": "f64",
    "float64": "f64",
    "float": "f64",
    "f32": "f32",
    "float32": "f32",
    "i64": "i64",
    "int64": "i64",
    "int": "i64",
    "bool": "i64",
    "timestamp": "i64",
    "category": "i64",
    "str": "str",
    "bytes": "bytes",
}


class TableStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a table holds and what became of its look-ups, since it was made."""

    name: str
    rows: int
    max_rows: int
    unknown_keys: int  # remembered not to exist
    max_unknown: int
    bytes: int  # all of its memory: index, rows, free space, links, fingerprints
    max_bytes: int
    row_bytes: int  # of that, rows
    hits: int  # fresh rows
    expired: int  # rows past their time to live
    unknown_hits: int
    misses: int
    inserts: int
    updates: int
    evictions: int
    swept: int  # rows dropped because their retention was over
    refreshes: int  # rows that were asked for ahead of their expiry
    returned: int  # keys that came back soon enough to skip probation
    age_s: tuple[float, float, float] | None  # median, 90th percentile and oldest, of up to 1,000 rows
    source: ReadThroughStats | None

    @property
    def hit_rate(self) -> float:
        """Share of look-ups that needed no source: fresh rows, and keys known not to exist. NaN before the first."""
        known = self.hits + self.unknown_hits
        asked = known + self.expired + self.misses
        return known / asked if asked else float("nan")


class Writer(Protocol):
    """What a dump is written to."""

    def write(self, data: bytes, /) -> object: ...


class FeatureTable:
    """Mutable table of one entity. Safe to use from threads, coroutines, greenlets and forked children."""

    def __init__(
        self,
        columns: Mapping[str, Kind],
        key: str | tuple[str, ...] = "str",
        *,
        ttl: str | None = None,
        column_ttl: Mapping[str, str] | None = None,
        max_rows: int | None = None,
        max_bytes: int | None = None,
        policy: str = "probation",
        max_unknown: int | None = None,
        unknown_ttl: str = "1m",
        stale_for: str = "0s",
        refresh_ahead: float = 0.0,
        jitter: float = 0.1,
        retention: str | None = None,
        updated_at: str | None = None,
        source: FeatureSource | None = None,
        timeout_ms: float = 50.0,
        share: float = 0.5,
        name: str = "table",
        clock: Clock | None = None,
    ) -> None:
        """Declare a table; it takes no row and asks no source yet.

        Args:
            columns: name -> kind: "f64", "f32", "i64" (also "bool", "timestamp", "category"), "str", "bytes", or
                ("vec", width) for float32 vectors.
            key: kind of the keys: "str", "int", "bytes", or a tuple of those for keys of several parts.
            ttl: how long a row is fresh, as in "15m"; None = for ever.
            column_ttl: a shorter time for some columns.
            max_rows: 100,000 if neither this nor `max_bytes` is given, else as many as the bytes hold.
            max_bytes: for everything the table holds in memory. By default what `max_rows` rows take whose keys have up to
                64 bytes and whose texts have 256 on average.
            policy: which rows go when there is no room. "probation": those asked for once go before those asked for again,
                so that a flood of keys that never return keeps its hands off the others. "lru": the one whose last use is
                longest ago, exactly.
            max_unknown: how many keys are remembered that do not exist; 0 = none.
            unknown_ttl: for how long they are.
            stale_for: for this long after its expiry a row is given out, as stale, while it is fetched anew; later, look-ups
                wait for the source first.
            refresh_ahead: share of the time to live before a row's expiry in which a row in use is fetched ahead.
            jitter: rows expire earlier by up to this share of their time to live, each by another part of it.
            retention: how long a row may be kept at all, whatever uses it: then it is dropped, and left out of dumps.
            updated_at: the column of the rows that says when a row was true: aware datetimes, or seconds since the epoch.
                Without it, or where it is null, that is the time of writing.
            source: where missing rows come from (retailinfer.store.sources, or anything with its `fetch`).
            timeout_ms: the longest that a look-up waits for the source.
            share: of the time that a request has left, what a look-up may wait at most.
            name: for messages; a Store calls it by its own name.
            clock: for tests.
        Raises: ConfigError.
        """
        if policy not in ("probation", "lru"):
            raise ConfigError(f"Expected policy `probation` or `lru`, got {clip(policy)}")
        if not isinstance(columns, Mapping):
            raise ConfigError(f"Expected a mapping from column to kind, got `{type(columns).__name__}`")
        if not 0 < share <= 1 or not 0 < timeout_ms <= 3_600_000:
            raise ConfigError(
                f"Expected a share above 0 and up to 1, a timeout_ms up to an hour, got {share}, {timeout_ms}"
            )
        if updated_at is not None and updated_at in columns:
            raise ConfigError(
                f"Expected `{updated_at}` either as a column or as the time of the rows, got it as both",
                hint="leave it out of columns: its value is the row's age",
            )
        self.name = name
        self.clock: Clock = clock or SystemClock()
        self.stale_for_ns = _duration_ns(stale_for, "stale_for")
        self.retention_ns = _duration_ns(retention, "retention")
        self.updated_at = updated_at
        self.policy = policy
        self._timeout_ns = int(timeout_ms * 1e6)
        self._share = float(share)
        self._key_columns: tuple[str, ...] | None = None
        self._readers: dict[tuple[str, ...], LruReader] = {}
        self.core = LruTable(
            name,
            key,
            [(column, *_kind(column, kind)) for column, kind in columns.items()],
            convert=plain_cell,
            max_rows=max_rows,
            max_bytes=max_bytes,
            exact=policy == "lru",
            max_unknown=max_unknown,
            ttl_ns=_duration_ns(ttl, "ttl"),
            unknown_ttl_ns=_duration_ns(unknown_ttl, "unknown_ttl"),
            column_ttls_ns={
                column: _duration_ns(span, "column_ttl") for column, span in (column_ttl or {}).items()
            },
            jitter=float(jitter),
            retention_ns=self.retention_ns,
            refresh_share=float(refresh_ahead),
        )
        self._through: ReadThrough | None = None
        if source is not None:
            from retailinfer.store.readthrough import ReadThrough  # noqa: PLC0415 - tables without a source need no threads

            self._through = ReadThrough(
                source,
                _Fills(self),
                columns=list(columns),
                updated_at=updated_at,
                name=name,
                timeout_s=timeout_ms * 1e-3,
                clock=self.clock,
            )

    @classmethod
    def from_arrow(
        cls,
        table: Any,
        *,
        key: str | Sequence[str],
        updated_at: str | None = None,
        columns: Sequence[str] | None = None,
        **options: Any,
    ) -> FeatureTable:
        """A table with the schema of Arrow data, and its rows in it; kinds as in a Snapshot, but float32 stays "f32".

        `key` names the column with the keys, or several; `options` are those of the class.
        """
        made, read = cls._like(table, key, updated_at, columns, options)
        made._write(read)
        return made

    @classmethod
    def like(
        cls,
        table: Any,
        *,
        key: str | Sequence[str],
        updated_at: str | None = None,
        columns: Sequence[str] | None = None,
        **options: Any,
    ) -> FeatureTable:
        """An empty table with the schema of Arrow data; a vector column needs one row that shows its length."""
        return cls._like(table, key, updated_at, columns, options)[0]

    @classmethod
    def _like(
        cls,
        table: Any,
        key: str | Sequence[str],
        updated_at: str | None,
        columns: Sequence[str] | None,
        options: dict[str, Any],
    ) -> tuple[FeatureTable, ArrowColumns]:
        names = (key,) if isinstance(key, str) else tuple(key)
        table = whole_table(table, options.get("name", "table"))
        narrow = narrow_columns(table)
        read = read_columns(
            table, key=names, updated_at=updated_at, columns=columns, name=options.get("name", "table")
        )
        if options.get("max_rows") is None and options.get("max_bytes") is None:
            options = {**options, "max_rows": max(100_000, 2 * read.n_rows)}
        schema = {
            column: ("vec", values.shape[1]) if kind == "vec" else "f32" if column in narrow else kind
            for column, kind, values, _ in read.columns
        }
        kinds = tuple(kind for kind, _ in read.keys)
        made = cls(schema, key=kinds[0] if isinstance(key, str) else kinds, updated_at=updated_at, **options)
        made._key_columns = names
        return made, read

    # ---- what engines use

    @property
    def has_source(self) -> bool:
        """Whether a key that is not there may be had from somewhere."""
        return self._through is not None

    @property
    def through(self) -> ReadThrough | None:
        """The fetching half, or None."""
        return self._through

    def wait_ns(self, remaining_ns: int | None = None) -> int:
        """How long a look-up of a request with so much time left may wait for the source."""
        if remaining_ns is None:
            return self._timeout_ns
        return max(0, min(self._timeout_ns, int(remaining_ns * self._share)))

    def fetch(self, keys: Sequence[Key], timeout_s: float) -> set[Key]:
        """Ask the source for these keys and wait at most so long; see ReadThrough.fetch. Never raises because of it."""
        return set() if self._through is None else self._through.fetch(keys, timeout_s)

    def refresh(self, key: Key) -> None:
        """Have the source asked for a key when there is time for it; does not wait."""
        if self._through is not None:
            self._through.refresh(key)

    # ---- reading

    def gather(
        self,
        keys: Sequence[Any],
        columns: Sequence[str],
        *,
        out: NDArray[np.float32] | None = None,
        timeout_ms: float | None = None,
    ) -> Gathered:
        """Numeric columns of many keys, as one step; one use of each row, in this order.

        Args:
            keys: of the table's kind.
            columns: numbers and vectors, in the order in which they stand in a row of the result.
            out: C-contiguous float32 (n, widths), for a result without a new matrix.
            timeout_ms: how long to wait for the source, in place of the table's own.
        Raises: FeatureTypeError, FeatureRangeError for a key; ConfigError for a column; ShapeError for `out`.
        """
        picked = columns if type(columns) is tuple else tuple(columns)
        reader = self._readers.get(picked) or self._reader(picked)
        unknown: set[Any] = set()
        if self._through is not None:
            if type(keys) is not list:
                keys = list(keys)
            unknown = self._fetch_missing(keys, timeout_ms)
        gathered = Gathered(
            *self.core.gather(keys, reader, self.clock.monotonic_ns(), self.clock.wall_ns(), out)
        )
        if unknown:  # said so just now, but not remembered
            for i in np.flatnonzero(gathered.outcome == Outcome.UNAVAILABLE).tolist():
                if keys[i] in unknown:
                    gathered.outcome[i] = Outcome.UNKNOWN
        return gathered

    def lookup(self, key: Any, *, timeout_ms: float | None = None) -> dict[str, Any] | None:
        """All columns of a row (None = null), also of one past its time to live; or None. One use of the row."""
        if self._through is not None:
            self._fetch_missing([key], timeout_ms)
        row: dict[str, Any] | None = self.core.lookup(key, self.clock.monotonic_ns())[1]
        return row

    def updated_at_ns(self, key: Any) -> int | None:
        """When a row was true, in nanoseconds since the epoch; None if there is no such row."""
        updated: int = self.core.updated_at(key, self.clock.monotonic_ns())
        return updated or None

    def age_s(self, key: Any) -> float | None:
        """Seconds since a row was true, never negative; None if there is no such row."""
        updated = self.updated_at_ns(key)
        return None if updated is None else max(0, self.clock.wall_ns() - updated) / 1e9

    def keys(self) -> Iterator[Key]:
        """The keys of all rows, from the one that would go first to the newest."""
        order = self.core.order()
        for start in range(0, len(order), _SLICE):
            yield from self.core.keys_of(order[start : start + _SLICE])

    def __len__(self) -> int:
        return len(self.core)

    def __contains__(self, key: Any) -> bool:
        return self.core.states([key], self.clock.monotonic_ns())[0] in (ROW_FRESH, ROW_EXPIRED)

    def _reader(self, columns: tuple[str, ...]) -> LruReader:
        reader = self.core.reader(columns, absent_is_unavailable=self.has_source)
        if len(self._readers) >= _READERS:
            self._readers.clear()
        self._readers[columns] = reader
        return reader

    def _fetch_missing(self, keys: list[Any], timeout_ms: float | None) -> set[Any]:
        """Wait for what is not there, have fetched what is stale; the keys of which the source says there is nothing."""
        assert self._through is not None
        missing, stale = self.core.to_fetch(keys, self.stale_for_ns, self.clock.monotonic_ns())
        if stale:
            self._through.refresh_many(stale)
        if not missing:
            return set()
        timeout_s = self._timeout_ns * 1e-9 if timeout_ms is None else timeout_ms * 1e-3
        return self._through.fetch(missing, timeout_s)

    # ---- writing

    def put(self, key: Any, row: Mapping[str, Any], *, updated_at: Any = None) -> None:
        """Store a row, or replace it whole. Columns that are absent, None or NaN are null; others are refused.

        `updated_at`: when it was true, an aware datetime or seconds since the epoch; by default what the row's own column
        says, else now.
        """
        cells, updated_ns = self._row(row, updated_at)
        with self._overtaking((key,)):
            self.core.put(key, cells, updated_ns, self.clock.monotonic_ns())

    def put_many(self, rows: Any, *, updated_at: Any = None) -> int:
        """Store rows out of `{key: row}`, pairs of key and row, or Arrow data. Returns how many.

        A mapping or pairs are checked whole before the first row is stored; Arrow data, which needs its key column known
        (`from_arrow`, `like`, or use `load`), batch by batch.
        """
        if is_arrow(rows):
            return self.load(rows)
        pairs = rows.items() if isinstance(rows, Mapping) else rows
        staged = [(key, *self._row(row, updated_at)) for key, row in pairs]
        with self._overtaking([key for key, *_ in staged]):
            self.core.put_many(staged, self.clock.monotonic_ns())
        return len(staged)

    def load(
        self, data: Any = None, *, key: str | Sequence[str] | None = None, updated_at: str | None = None
    ) -> int:
        """Store many rows: a Parquet file by its path, Arrow data, pairs of key and row, or all that the source has.

        Args:
            data: None for `source.scan()`.
            key: the column with the keys, or several; for Arrow data of a table that was not made from such.
            updated_at: the column that says when a row was true; by default that of the table.
        Other threads come in between; what they write stands against this only if it comes later. Returns how many rows.
        """
        if data is None:
            if self._through is None:
                raise ConfigError(
                    f"Expected data to load, or a source of table `{self.name}` that can be scanned, got neither",
                    hint="load('rows.parquet', key='card_id')",
                )
            data = self._through.scan()
            key = key or getattr(self._through.source, "key", None)
        if not isinstance(data, (str, os.PathLike)) and not is_arrow(data):
            return self._load_pairs(data.items() if isinstance(data, Mapping) else data)
        names = self._key_columns if key is None else (key,) if isinstance(key, str) else tuple(key)
        if names is None:
            raise ConfigError(
                f"Expected the name of the column with the keys of table `{self.name}`",
                hint="load(data, key='card_id')",
            )
        loaded = 0
        columns = [column for column, *_ in self.core.schema]
        for batch in read_batches(data, name=self.name):
            read = read_columns(
                batch, key=names, updated_at=updated_at or self.updated_at, columns=columns, name=self.name
            )
            loaded += self._write(read)
        return loaded

    def mark_unknown(self, keys: Iterable[Any]) -> None:
        """Remember for a while that there is nothing under these keys, and forget their rows."""
        listed = [keys] if isinstance(keys, (str, bytes)) else list(keys)
        with self._overtaking(listed):
            self.core.mark_unknown(listed, self.clock.monotonic_ns())

    def erase(self, key: Any) -> bool:
        """Forget all about a key and overwrite its memory; whether there was anything. For the rights of persons, too."""
        with self._overtaking((key,)):
            return bool(self.core.erase(key))

    def clear(self) -> None:
        """Forget everything."""
        through = self._through
        with contextlib.nullcontext() if through is None else through.lock:
            if through is not None:
                through.fence_all()
            self.core.clear()

    def sweep(self) -> int:
        """Drop every row that is past its retention now, not when its turn comes. Returns how many."""
        dropped = 0
        for _ in range(0, max(self.core.max_rows, self.core.max_unknown), 16 * _SLICE):
            dropped += self.core.sweep(16 * _SLICE, self.clock.monotonic_ns())
        return dropped

    def _row(self, row: Mapping[str, Any], updated_at: Any) -> tuple[dict[str, Any], int]:
        """The row's cells as a dict of ours, and when it was true."""
        if type(row) is not dict:
            if not isinstance(row, Mapping):
                raise FeatureTypeError(
                    f"Expected a mapping from column to value, got `{type(row).__name__}`",
                    path=f"$.{self.name}",
                )
            row = dict(row)
        if self.updated_at is not None and self.updated_at in row:
            row = dict(row)
            own = row.pop(self.updated_at)
            updated_at = own if updated_at is None else updated_at
        if updated_at is None:
            return row, self.clock.wall_ns()
        return row, true_ns(
            updated_at, f"$.{self.name}.{self.updated_at or 'updated_at'}"
        ) or self.clock.wall_ns()

    @contextlib.contextmanager
    def _overtaking(self, keys: Iterable[Any]) -> Iterator[None]:
        """Answers for these keys that are on their way no longer count."""
        if self._through is None:
            yield
            return
        with self._through.lock:
            with contextlib.suppress(TypeError):  # a key that cannot be hashed is no key: the table says so
                self._through.fence(keys)
            yield

    def _load_pairs(self, pairs: Iterable[tuple[Any, Mapping[str, Any]]]) -> int:
        loaded, batch = 0, []
        for key, row in pairs:
            batch.append((key, row))
            if len(batch) == _SLICE:
                loaded += self.put_many(batch)
                batch = []
        return loaded + self.put_many(batch)

    def _write(self, read: ArrowColumns) -> int:
        """Rows of Arrow columns into the table, slice by slice."""
        kinds = tuple(kind for kind, _ in read.keys)
        key_kind: str | tuple[str, ...] = kinds if isinstance(self.core.key_kind, tuple) else kinds[0]
        if key_kind != self.core.key_kind or (len(kinds) > 1 and not isinstance(self.core.key_kind, tuple)):
            raise FeatureTypeError(
                f"Expected keys of kind `{self.core.key_kind}` for table `{self.name}`, got `{clip(kinds)}`",
                path=f"$.{self.name}.keys",
            )
        parts = [values for _, values in read.keys]
        keys = (
            compose_keys(parts, read.n_rows)
            if isinstance(self.core.key_kind, tuple)
            else single_keys(parts[0])
        )
        wanted = {column: kind for column, kind, *_ in self.core.schema}
        columns = [  # a column without a value may come as any kind
            column
            for column in read.columns
            if column[1] == wanted.get(column[0]) or column[3] is None or column[3].any()
        ]
        source = RowSource(self.core, keys, columns, read.updated_at)
        for start in range(0, read.n_rows, _SLICE):
            stop = min(start + _SLICE, read.n_rows)
            with self._overtaking(_later(source, start, stop)):
                source.write(start, stop, self.clock.monotonic_ns(), self.clock.wall_ns())
        return read.n_rows

    # ---- dumps

    @property
    def schema_digest(self) -> str:
        """SHA-256 of the columns, with their kinds and places, and of the kind of key."""
        shape = msgspec.json.encode([self.core.key_kind, self.core.schema])
        return str(_sha256(shape).hexdigest())

    def dump(self, to: str | os.PathLike[str] | Writer) -> int:
        """Write all rows, in the order of their use, with their ages; returns how many bytes.

        `to`: a path, whose file is replaced when the dump is whole; or anything that is written to. Rows past the retention
        are left out. Each row is whole; rows that change meanwhile are in it as they were at one moment or another.
        """
        if not isinstance(to, (str, os.PathLike)):
            return sum([_written(to, part) for part in self._dump()])
        from retailinfer.whole_file import replaced  # noqa: PLC0415 - for who dumps; importing the package need not

        with replaced(to) as file:
            return sum([_written(file, part) for part in self._dump()])

    def _dump(self) -> Iterator[bytes]:
        digest = _sha256()
        header = msgspec.json.encode(
            {"table": self.name, "schema": self.schema_digest, "wall_ns": self.clock.wall_ns()}
        )
        first = MAGIC + len(header).to_bytes(4, "little") + header
        digest.update(first)
        yield first
        order = self.core.order()
        for start in range(0, len(order), _SLICE):
            rows = self.core.export_rows(
                order[start : start + _SLICE], self.clock.monotonic_ns(), self.clock.wall_ns()
            )
            if rows:
                digest.update(rows)
                yield rows
        yield digest.digest()

    def restore(self, data: Any, *, retention: str | None = None, refresh: bool = True) -> int:
        """Take the rows of a dump that this table does not have; returns how many.

        Args:
            data: the path of a dump, its bytes, or a file that is read to its end.
            retention: leave out rows that were written longer ago than this; by default the table's own.
            refresh: where there is a source, have it asked for the rows that are past their time to live, as time allows.
        Raises: IntegrityError for bytes that are not a whole dump, SchemaMismatchError for a dump of another schema.
            The table is as it was, then.
        """
        # A copy of what may be written to: it must not change between being looked at and being used.
        image = bytes(data) if isinstance(data, (bytes, bytearray, memoryview)) else _read(data)
        rows = self._checked_dump(memoryview(image))
        retention_ns = self.retention_ns if retention is None else _duration_ns(retention, "retention")
        at = restored = 0
        while at < len(rows):
            at, written = self.core.import_rows(
                rows, at, _SLICE, self.clock.monotonic_ns(), self.clock.wall_ns(), retention_ns
            )
            restored += written
        if refresh and self._through is not None:
            self._through.warm(self._expired_keys())
        return restored

    def _checked_dump(self, image: memoryview) -> memoryview:
        """The rows of a dump, after every byte of it was looked at."""
        start = len(MAGIC) + 4
        body, seal = image[:-_DIGEST], image[-_DIGEST:]
        if len(image) < start + _DIGEST or bytes(image[: len(MAGIC)]) != MAGIC:
            raise IntegrityError(
                f"Expected a dump of table `{self.name}`, got {len(image)} bytes of something else"
            )
        if _sha256(body).digest() != bytes(seal):
            raise IntegrityError(
                f"Expected a whole dump of table `{self.name}`, got bytes that were changed or cut off",
                hint="take an older dump, or start without one",
            )
        end = start + int.from_bytes(body[len(MAGIC) : start], "little")
        try:
            schema = msgspec.json.decode(body[start:end], type=dict[str, Any])["schema"]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError) as exc:
            raise IntegrityError(f"Expected the header of a dump of table `{self.name}`, got none") from exc
        if schema != self.schema_digest:
            raise SchemaMismatchError(
                f"Expected a dump with the columns and keys of table `{self.name}`, got one of another schema",
                hint="rows are never read as something else: load them anew from their source",
            )
        rows = body[end:]
        self.core.check_rows(rows)
        return rows

    def _expired_keys(self) -> Iterator[Key]:
        """Keys of rows past their time to live, those in use lately first."""
        order = self.core.order()[::-1]
        for start in range(0, len(order), _SLICE):
            keys = self.core.keys_of(order[start : start + _SLICE])
            states = self.core.states(keys, self.clock.monotonic_ns())
            yield from (key for key, state in zip(keys, states, strict=True) if state == ROW_EXPIRED)

    # ---- what there is

    @property
    def columns(self) -> dict[str, str]:
        """Name -> kind of every column."""
        return {name: kind for name, kind, *_ in self.core.schema}

    @property
    def key_kind(self) -> str | tuple[str, ...]:
        """`str`, `int`, `bytes`, or a tuple of them."""
        kind: str | tuple[str, ...] = self.core.key_kind
        return kind

    @property
    def ttl_ns(self) -> int:
        """How long a row is fresh; 0 = for ever."""
        return int(self.core.ttl_ns)

    @property
    def nbytes(self) -> int:
        """Bytes of all that the table holds in memory."""
        return int(self.core.nbytes)

    @property
    def stats(self) -> TableStats:
        """Counts since the start, and sizes and ages now."""
        now_ns = self.clock.wall_ns()
        order = self.core.order()
        sample = self.core.updated_of(order[:: max(1, len(order) // 1000)])
        ages = None
        if len(sample):
            age_s = np.maximum(0, now_ns - sample) / 1e9
            ages = (float(np.median(age_s)), float(np.quantile(age_s, 0.9)), float(age_s.max()))
        return TableStats(
            name=self.name,
            age_s=ages,
            source=None if self._through is None else self._through.stats(),
            **self.core.info(),
        )

    def close(self) -> None:
        """Ask the source for nothing more and close it; the rows stay."""
        if self._through is not None:
            self._through.close()

    def __repr__(self) -> str:
        return (
            f"<FeatureTable {self.name}: {len(self)} of {self.core.max_rows} rows by {self.key_kind}, "
            f"{len(self.core.schema)} columns, {self.nbytes} of {self.core.max_bytes} bytes"
            f"{', with a source' if self.has_source else ''}>"
        )


class _Fills:
    """What a ReadThrough may do to its table: the same as its users, without overtaking itself."""

    __slots__ = ("_table",)

    def __init__(self, table: FeatureTable) -> None:
        self._table = table

    def put(self, key: Any, row: Mapping[str, Any], *, updated_at: Any = None) -> None:
        cells, updated_ns = self._table._row(row, updated_at)
        self._table.core.put(key, cells, updated_ns, self._table.clock.monotonic_ns())

    def mark_unknown(self, keys: Sequence[Any]) -> None:
        self._table.core.mark_unknown(keys, self._table.clock.monotonic_ns())

    def knows(self, key: Any) -> bool:
        state: int = self._table.core.states([key], self._table.clock.monotonic_ns())[0]
        return state in (ROW_FRESH, ROW_UNKNOWN)


def _kind(column: str, kind: Kind) -> tuple[str, int]:
    """(kind, width) as the table stores it."""
    if isinstance(kind, tuple):
        if len(kind) != 2 or kind[0] != "vec":
            raise ConfigError(
                f"Expected a kind such as `f64` or `('vec', 32)` for `{column}`, got {clip(kind)}"
            )
        return kind
    if kind not in _KINDS:
        raise ConfigError(
            f"Expected a kind for column `{column}` out of {', '.join(sorted(set(_KINDS)))} or ('vec', width), "
            f"got {clip(kind)}"
        )
    return _KINDS[kind], 1


def _duration_ns(span: str | None, what: str) -> int:
    """Nanoseconds of a span such as "15m"; 0 for None and "0s"."""
    if span is None or span == "0s":
        return 0
    try:
        return parse_duration_ns(span)
    except SpecError as exc:
        raise ConfigError(f"{what}: {exc}") from None


def _later(source: RowSource, start: int, stop: int) -> Iterator[Key]:
    """Keys that are made only if somebody wants them."""
    yield from source.keys(start, stop)


def _sha256(data: Any = b"") -> Any:
    import hashlib  # noqa: PLC0415 - brings OpenSSL's library; importing the package need not

    return hashlib.sha256(data)


def _written(to: Writer, part: bytes) -> int:
    to.write(part)
    return len(part)


def _read(data: Any) -> bytes:
    if isinstance(data, (str, os.PathLike)):
        from pathlib import Path  # noqa: PLC0415 - for who restores; importing the package need not load it

        return Path(data).read_bytes()
    read = getattr(data, "read", None)
    if not callable(read):
        raise ConfigError(f"Expected a path, bytes or a file to restore from, got `{type(data).__name__}`")
    image = read()
    if not isinstance(image, bytes):
        raise ConfigError(
            f"Expected a file opened for bytes to restore from, got `{type(image).__name__}` from it"
        )
    return image
