"""SqlSource: rows of a table or query of a relational database. Needs `retailinfer[sql]` (SQLAlchemy) and a driver.

Rules:
  * One statement a fetch, `... WHERE key IN (...)`, with the number of keys filled up to a power of two, so that a
    database sees few different statements.
  * The statement stops at the time limit: PostgreSQL's `statement_timeout`, MySQL's `MAX_EXECUTION_TIME`, a progress handler
    in SQLite. Other databases are only waited for by threads of our own. TCP notices a dead network within seconds.
  * A key that is there twice, and keys that come back as another type than they were asked for, are errors, not rows
    that are left out.
  * A forked child uses no connection of its parent, and does not close them either.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from retailinfer.clock import Clock, SystemClock
from retailinfer.errors import ConfigError, clip
from retailinfer.store.sources import Key, isolate

__all__ = ["SqlSource"]

_MOST_KEYS = (
    512  # of one statement; below every database's limit of parameters, also for keys of several parts
)
_STEPS = 2_000  # of SQLite's machine between two looks at the clock: some 50 us


class SqlSource:
    """Rows by key, out of SQLite, PostgreSQL or anything else that SQLAlchemy speaks to without asyncio."""

    def __init__(
        self,
        database: Any,
        rows: str,
        *,
        key: str | Sequence[str],
        columns: Sequence[str] | None = None,
        utc: Sequence[str] = (),
        clock: Clock | None = None,
    ) -> None:
        """Make an engine, if it is given a URL; connections are opened by the first fetch.

        Args:
            database: a URL as "postgresql+psycopg://host/shop" or "sqlite:////path/shop.db", or an engine of yours.
            rows: a table, as "customers" or "shop.customers", or a query, as "SELECT id, age FROM customers JOIN ...".
                A query is used as it is: never build it from what a request says.
            key: the column with the keys, or several for keys that are tuples. It needs an index.
            columns: which columns to read; all by default.
            utc: columns with moments without a zone, or ISO 8601 texts (SQLite), that are meant in UTC.
            clock: for the time limit of SQLite.
        Raises: ConfigError for a URL that cannot be understood, or a driver or SQLAlchemy that is not installed.
        """
        self._sa = _sqlalchemy()
        self._keys = (key,) if isinstance(key, str) else tuple(key)
        self._single = isinstance(key, str)
        self._utc = frozenset(utc)
        self._clock: Clock = clock or SystemClock()
        self._own = isinstance(database, (str, self._sa.engine.URL))
        self._engine = self._make_engine(database) if self._own else database
        if not isinstance(self._engine, self._sa.engine.Engine):
            raise ConfigError(
                f"Expected a URL or a sqlalchemy.Engine, got `{type(database).__name__}`",
                hint="an AsyncEngine has its `sync_engine`, which needs a driver without asyncio",
            )
        self._pid = os.getpid()
        self._inherited: list[
            Any
        ] = []  # pools of a parent: held, so that nothing closes its connections from here
        self._dialect = self._engine.dialect.name
        names = [*self._keys, *(columns or ())]
        wanted = (
            [self._sa.text("*")]
            if columns is None
            else [self._sa.column(name) for name in dict.fromkeys(names)]
        )
        self._select = self._sa.select(*wanted).select_from(self._from(rows))
        parts = [self._sa.column(name, _as_is(self._sa)) for name in self._keys]
        self._where = parts[0] if self._single else self._sa.tuple_(*parts)

    def fetch(self, keys: Sequence[Key], *, timeout_s: float) -> dict[Key, Any]:
        """The rows of these keys, in one statement for each 512 of them."""
        self._check_process()
        until_ns = self._clock.monotonic_ns() + int(timeout_s * 1e9)
        answer: dict[Key, Any] = {}
        for start in range(0, len(keys), _MOST_KEYS):
            answer |= isolate(
                lambda batch: self._batch(batch, until_ns),
                keys[start : start + _MOST_KEYS],
                blames_key=(self._sa.exc.DataError,),
                time_is_up=lambda: self._clock.monotonic_ns() >= until_ns,
            )
        return answer

    def _batch(self, keys: Sequence[Key], until_ns: int) -> dict[Key, Any]:
        answer: dict[Key, Any] = dict.fromkeys(keys)
        size = 1 << (len(keys) - 1).bit_length()
        filled = [*keys, *[keys[-1]] * (size - len(keys))]
        for row in self._rows(self._select.where(self._where.in_(filled)), len(keys), until_ns):
            key, cells = self._keyed(row)
            if key not in answer:
                raise ConfigError(
                    f"Expected keys as they were asked for, `{_kinds(keys[0])}`, got `{_kinds(key)}`",
                    hint="cast the key in the query, as in `SELECT CAST(id AS TEXT) AS id, ...`",
                )
            if answer[key] is not None:
                raise self._twice()
            answer[key] = cells
        return answer

    def scan(self) -> Iterator[tuple[Key, dict[str, Any]]]:
        """Every key with its row, as the database sends them."""
        self._check_process()
        with self._engine.connect() as connection:
            streaming = connection.execution_options(stream_results=True, yield_per=1_000)
            with streaming.execute(self._select) as result:
                for row in result.mappings():
                    yield self._keyed(row)

    def close(self) -> None:
        """Close the connections of an engine that was made here."""
        if self._own and self._pid == os.getpid():
            self._engine.dispose()

    def __repr__(self) -> str:
        return f"<SqlSource {self._dialect}: by {', '.join(self._keys)}>"

    def _make_engine(self, url: Any) -> Any:
        sa = self._sa
        try:
            url = sa.engine.make_url(url)
            settings: dict[str, Any] = {}
            if url.get_driver_name() in ("psycopg", "psycopg2"):
                # Seconds until a host that does not answer counts as down; milliseconds until a silent one does.
                settings = {"connect_timeout": 2, "tcp_user_timeout": 2_000}
            return sa.create_engine(url, connect_args=settings)
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError) as exc:
            raise ConfigError(
                f"Expected the URL of a database whose driver is installed: {type(exc).__name__}",
                hint="as in postgresql+psycopg://user@host/database (pip install psycopg[binary])",
            ) from exc

    def _from(self, rows: str) -> Any:
        if not isinstance(rows, str) or not rows.strip():
            raise ConfigError(f"Expected the name of a table or a query, got {clip(rows)}")
        rows = rows.strip().rstrip(";")
        if any(char.isspace() for char in rows):
            rows = re.sub(r"(?<![:\w\\]):(?=\w)", r"\:", rows)  # ':x' in a query is text, not a parameter
            return self._sa.text(f"({rows}) AS retailinfer_rows")
        schema, _, name = rows.rpartition(".")
        return self._sa.table(name, schema=schema or None)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._inherited.append(self._engine.pool)
            self._engine.dispose(close=False)

    def _rows(self, statement: Any, n_keys: int, until_ns: int) -> list[Mapping[str, Any]]:
        """At most one row a key, within the time that is left."""
        left_ms = max(1, (until_ns - self._clock.monotonic_ns()) // 1_000_000)
        # Without a transaction there is one round trip less, and a time limit can be set for good.
        options = {"isolation_level": "AUTOCOMMIT"} if self._own else {}
        with self._engine.connect().execution_options(**options) as connection:
            limit = {
                "postgresql": ("SET {}statement_timeout = {}", "LOCAL "),
                "mysql": ("SET {}MAX_EXECUTION_TIME = {}", "SESSION "),
            }.get(self._dialect)
            sqlite = connection.connection.driver_connection if self._dialect == "sqlite" else None
            if limit is not None:
                self._limit(connection, limit, left_ms)
            if sqlite is not None:
                sqlite.set_progress_handler(lambda: self._clock.monotonic_ns() > until_ns, _STEPS)
                connection.exec_driver_sql(f"PRAGMA busy_timeout = {left_ms}")
            try:
                found = connection.execute(statement).mappings().fetchmany(n_keys + 1)
            finally:
                if sqlite is not None:
                    sqlite.set_progress_handler(None, 0)
        if len(found) > n_keys:
            raise self._twice()
        return list(found)

    def _limit(self, connection: Any, limit: tuple[str, str], left_ms: int) -> None:
        """Set the time limit: for the transaction in a pool of others, once for a connection of our own."""
        statement, scope = limit
        if not self._own:
            connection.exec_driver_sql(statement.format(scope, left_ms))
            return
        # To the next 5 ms, so that it is seldom set anew.
        left_ms = -(-left_ms // 5) * 5
        if connection.info.get("retailinfer_limit_ms") != left_ms:
            connection.exec_driver_sql(statement.format("SESSION ", left_ms))
            connection.info["retailinfer_limit_ms"] = left_ms

    def _keyed(self, row: Mapping[str, Any]) -> tuple[Key, dict[str, Any]]:
        """(key, columns) of a row."""
        cells = {name: self._cell(name, value) for name, value in row.items()}
        try:
            parts = tuple(_key_part(cells[name]) for name in self._keys)
        except KeyError:
            raise ConfigError(
                f"Expected the key columns {clip(self._keys)} in the rows, which have {clip(list(cells), 200)}"
            ) from None
        return (parts[0] if self._single else parts), cells

    def _cell(self, name: str, value: Any) -> Any:
        if isinstance(value, uuid.UUID):
            return str(value)
        if name in self._utc:
            if isinstance(value, str):
                value = datetime.fromisoformat(value)
            if isinstance(value, datetime) and value.tzinfo is None:
                return value.replace(tzinfo=UTC)
        return value

    def _twice(self) -> ConfigError:
        return ConfigError(
            f"Expected one row for a key ({', '.join(self._keys)}), got several",
            hint="choose one in the query",
        )


def _key_part(value: Any) -> str | int | bytes:
    """A part of a key as it is asked for; drivers have types of their own for some."""
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, Decimal) and value == value.to_integral_value():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, bytes)):
        raise ConfigError(
            f"Expected keys of type text, integer or binary, got `{type(value).__name__}`",
            hint="cast the key in the query",
        )
    return value


def _as_is(sa: Any) -> Any:
    """A type whose parameters are sent without a cast: the column decides, so that 2**40 finds a bigint, a text a uuid."""

    class AsIs(sa.types.UserDefinedType):  # type: ignore[misc]  # a class of an optional package
        cache_ok = True

        def get_col_spec(self, **_: Any) -> str:
            return "TEXT"  # asked for by CREATE TABLE only

    return AsIs()


def _kinds(key: Any) -> str:
    return ", ".join(type(part).__name__ for part in (key if isinstance(key, tuple) else (key,)))


def _sqlalchemy() -> Any:
    try:
        import sqlalchemy  # noqa: PLC0415 - an optional extra
    except ImportError as exc:
        raise ConfigError("Reading a database needs SQLAlchemy", hint="pip install retailinfer[sql]") from exc
    return sqlalchemy
