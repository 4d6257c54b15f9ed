"""SqlSource against a real SQLite file and a real PostgreSQL server: keys, types, time limits, forks, servers that go away."""

from __future__ import annotations

import importlib
import multiprocessing
import sqlite3
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from retailinfer.clock import ManualClock
from retailinfer.errors import ConfigError

pytestmark = pytest.mark.requires("sqlalchemy")

N_ROWS = 1_300


_made = []


def sql_source(*args, **kwargs):
    """Import late: SQLAlchemy is an extra."""
    from retailinfer.store.sources.sql import SqlSource

    source = SqlSource(*args, **kwargs)
    _made.append(source)
    return source


@pytest.fixture(autouse=True)
def _closed():
    """Close what a test made: a connection that is left open is a warning, which is an error."""
    yield
    while _made:
        _made.pop().close()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A file with tables by text, integer, two parts, and without a unique key."""
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE customers (id TEXT PRIMARY KEY, age REAL, name TEXT, photo BLOB, seen TEXT)")
        db.executemany(
            "INSERT INTO customers VALUES (?, ?, ?, ?, ?)",
            [(f"c-{i}", i / 4, f"n{i}", bytes([i % 256]), "2026-01-02 03:04:05") for i in range(N_ROWS)],
        )
        db.execute("INSERT INTO customers VALUES ('bare', NULL, NULL, NULL, NULL)")
        db.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, price REAL)")
        db.executemany("INSERT INTO items VALUES (?, ?)", [(i, i * 0.5) for i in range(-5, 100)])
        db.execute("CREATE TABLE stock (store TEXT, sku INTEGER, n INTEGER, PRIMARY KEY (store, sku))")
        db.executemany("INSERT INTO stock VALUES (?, ?, ?)", [("a", 1, 10), ("a", 2, 20), ("b", 1, 30)])
        db.execute("CREATE TABLE events (id TEXT, n INTEGER)")
        db.executemany("INSERT INTO events VALUES (?, ?)", [("x", 1), ("x", 2), ("y", 3)])
    db.close()
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def postgres_url(postgres_server) -> str:
    """Tables of the real server, made once."""
    import psycopg

    with psycopg.connect(postgres_server.conninfo, autocommit=True) as db:
        db.execute("CREATE SCHEMA IF NOT EXISTS shop")
        db.execute("DROP TABLE IF EXISTS shop.customers, items, visitors")
        db.execute(
            "CREATE TABLE shop.customers (id text PRIMARY KEY, age numeric(8,2), tags real[], photo bytea,"
            " seen timestamptz, local timestamp)"
        )
        db.execute(
            "INSERT INTO shop.customers SELECT 'c-' || i, i / 4.0, ARRAY[i, i + 1]::real[], decode('00ff', 'hex'),"
            " '2026-01-02 03:04:05+00', '2026-01-02 03:04:05' FROM generate_series(0, 1299) AS i"
        )
        db.execute("CREATE TABLE items (id bigint PRIMARY KEY, price double precision)")
        db.execute("INSERT INTO items VALUES (7, 1.5), (9000000000, 2.5)")
        db.execute("CREATE TABLE visitors (id uuid PRIMARY KEY, n smallint)")
        db.execute("INSERT INTO visitors VALUES ('6ba7b810-9dad-11d1-80b4-00c04fd430c8', 3)")
    return postgres_server.url


def test_sqlite_rows_come_back_by_key(sqlite_url: str):
    """Each key has its row or None, with null, text, bytes and numbers as they are in the table."""
    source = sql_source(sqlite_url, "customers", key="id", utc=("seen",))
    rows = source.fetch(["c-3", "nobody", "bare"], timeout_s=5)
    assert rows["nobody"] is None
    assert rows["bare"] == {"id": "bare", "age": None, "name": None, "photo": None, "seen": None}
    assert rows["c-3"] == {
        "id": "c-3", "age": 0.75, "name": "n3", "photo": b"\x03", "seen": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    }  # fmt: skip


def test_more_keys_than_one_statement_takes(sqlite_url: str):
    """A thousand keys are split, and every one is answered."""
    source = sql_source(sqlite_url, "customers", key="id", columns=["age"])
    keys = [f"c-{i}" for i in range(-10, N_ROWS)]
    rows = source.fetch(keys, timeout_s=5)
    assert list(rows) == keys
    assert [rows[key] is None for key in keys] == [True] * 10 + [False] * N_ROWS
    assert rows["c-1299"] == {"id": "c-1299", "age": 324.75}


def test_integer_and_composite_keys(sqlite_url: str):
    """Keys of integers, negative ones too, and of several parts find exactly their rows."""
    items = sql_source(sqlite_url, "items", key="id")
    assert items.fetch([-5, 0, 1000], timeout_s=5) == {
        -5: {"id": -5, "price": -2.5},
        0: {"id": 0, "price": 0.0},
        1000: None,
    }
    stock = sql_source(sqlite_url, "stock", key=("store", "sku"), columns=["n"])
    rows = stock.fetch([("a", 2), ("b", 2), ("b", 1)], timeout_s=5)
    assert [row and row["n"] for row in rows.values()] == [20, None, 30]


def test_query_as_rows(sqlite_url: str):
    """Any SELECT may stand where a table does, semicolon and all."""
    query = "SELECT id, max(n) AS most FROM events GROUP BY id;"
    rows = sql_source(sqlite_url, query, key="id").fetch(["x", "y", "z"], timeout_s=5)
    assert rows == {"x": {"id": "x", "most": 2}, "y": {"id": "y", "most": 3}, "z": None}
    odd = "SELECT id, ':x' AS colon, '5%' AS percent, '12:30' AS time FROM customers"
    row = sql_source(sqlite_url, odd, key="id").fetch(["c-1"], timeout_s=5)["c-1"]
    assert row == {"id": "c-1", "colon": ":x", "percent": "5%", "time": "12:30"}


def test_text_that_looks_like_sql_is_only_text(sqlite_url: str):
    """Keys are parameters: quotes and comments in them find nothing and break nothing."""
    source = sql_source(sqlite_url, "customers", key="id")
    hostile = ["' OR 1=1 --", '"; DROP TABLE customers', "c-1\x00", "%s", ":id", "\\", "c-1' UNION SELECT 1"]
    assert set(source.fetch(hostile, timeout_s=5).values()) == {None}
    assert source.fetch(["c-1"], timeout_s=5)["c-1"] is not None


def test_key_that_is_there_twice_is_refused(sqlite_url: str):
    """Which of two rows is meant is nobody's guess."""
    source = sql_source(sqlite_url, "events", key="id")
    with pytest.raises(ConfigError, match="one row for a key"):
        source.fetch(["x", "y", "z"], timeout_s=5)
    with pytest.raises(ConfigError, match="one row for a key"):
        source.fetch(["x"], timeout_s=5)


def test_key_of_another_type_is_refused_not_unknown(sqlite_url: str):
    """SQLite finds '7' under 7; calling it unknown would be remembered, so it is an error."""
    with pytest.raises(ConfigError, match="as they were asked for"):
        sql_source(sqlite_url, "items", key="id").fetch(["7"], timeout_s=5)


@pytest.mark.parametrize(
    ("database", "rows", "what"),
    [
        ("no url at all", "t", "URL"),
        ("nosuchdialect://host/db", "t", "URL"),
        (object(), "t", "URL or a sqlalchemy.Engine"),
        ("sqlite://", "", "name of a table"),
        ("sqlite://", None, "name of a table"),
    ],
)
def test_wrong_settings_are_refused_when_made(database: object, rows: str, what: str):
    """A source that can never work says so before any request comes."""
    with pytest.raises(ConfigError, match=what):
        sql_source(database, rows, key="id")


def test_password_stays_out_of_messages_and_repr():
    """Neither the error for a bad URL nor the name of a source shows what is in the URL."""
    url = "postgresql+nosuchdriver://user:hunter2@host/db"
    with pytest.raises(ConfigError) as caught:
        sql_source(url, "t", key="id")
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(sql_source("postgresql+psycopg://user:hunter2@host/db", "t", key="id"))


def test_missing_table_and_column_raise(sqlite_url: str):
    """What the database refuses is raised, for ReadThrough to count; key columns that are not there are named."""
    import sqlalchemy

    with pytest.raises(sqlalchemy.exc.OperationalError):
        sql_source(sqlite_url, "nothing", key="id").fetch(["a"], timeout_s=5)
    with pytest.raises(sqlalchemy.exc.OperationalError):
        sql_source(sqlite_url, "customers", key="uid").fetch(["a"], timeout_s=5)


def test_sqlite_query_stops_at_the_limit(sqlite_url: str):
    """A query that would run for hours is interrupted inside SQLite, and the connection is good afterwards."""
    import sqlalchemy

    endless = (
        "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 1e12) SELECT id FROM n"
    )
    source = sql_source(sqlite_url, endless, key="id")
    start = time.monotonic()
    with pytest.raises(sqlalchemy.exc.OperationalError, match="interrupted"):
        source.fetch([5], timeout_s=0.05)
    assert time.monotonic() - start < 2
    other = sql_source(source._engine, "items", key="id")
    assert other.fetch([5], timeout_s=5)[5] is not None


def test_sqlite_limit_reads_the_clock_it_is_given(sqlite_url: str):
    """Without time passing on its clock nothing is interrupted, however long the query takes."""
    slow = (
        "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 300000) SELECT id FROM n"
    )
    source = sql_source(sqlite_url, slow, key="id", clock=ManualClock())
    assert source.fetch([5], timeout_s=0.000001) == {5: {"id": 5}}


def test_locked_sqlite_file_costs_no_more_than_the_limit(sqlite_url: str):
    """A writer that holds the file makes a fetch fail in time, and it works again when the writer is done."""
    import sqlalchemy

    source = sql_source(sqlite_url, "items", key="id")
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        start = time.monotonic()
        with pytest.raises(sqlalchemy.exc.OperationalError, match="locked"):
            source.fetch([5], timeout_s=0.05)
        assert time.monotonic() - start < 2
        writer.execute("ROLLBACK")
    writer.close()
    assert source.fetch([5], timeout_s=1)[5] is not None


def test_sqlite_is_read_by_many_threads(sqlite_url: str):
    """Each fetch has a connection to itself, with its own time limit."""
    source = sql_source(sqlite_url, "customers", key="id", columns=["age"])
    wrong = []

    def run(first: int) -> None:
        for i in range(first, first + 30):
            rows = source.fetch([f"c-{i}", "nobody"], timeout_s=10)
            if rows != {f"c-{i}": {"id": f"c-{i}", "age": i / 4}, "nobody": None}:
                wrong.append(rows)

    threads = [threading.Thread(target=run, args=(50 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.requires("psycopg")
def test_postgres_is_scanned_in_a_stream(postgres_url: str):
    """Every row once, without all of them in memory at once; stopping early leaves the connection in order."""
    source = sql_source(postgres_url, "shop.customers", key="id", columns=["age"])
    rows = dict(source.scan())
    assert rows.keys() == {f"c-{i}" for i in range(N_ROWS)}
    first = source.scan()
    next(first)
    first.close()
    assert source.fetch(["c-4"], timeout_s=5)["c-4"]["age"] == 1


@pytest.mark.parametrize(
    ("package", "source", "arguments"),
    [
        ("sqlalchemy", "sql.SqlSource", {"database": "sqlite://", "rows": "t", "key": "id"}),
        ("feast", "feast.FeastSource", {"store": ".", "features": ["a:b"], "entity": "id"}),
        ("pyarrow", "arrow.ArrowSource", {"data": "t.parquet", "key": "id"}),
    ],
)
def test_package_that_is_not_installed_is_named(
    package: str, source: str, arguments: dict, monkeypatch: pytest.MonkeyPatch
):
    """The error says what to install, when the source is made."""
    module, name = source.split(".")
    made = getattr(importlib.import_module(f"retailinfer.store.sources.{module}"), name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"retailinfer\[{module}\]"):
        made(**arguments)


def test_scan_gives_every_row_once(sqlite_url: str):
    """All keys with their rows, for a bulk load."""
    rows = dict(sql_source(sqlite_url, "stock", key=("store", "sku")).scan())
    assert rows.keys() == {("a", 1), ("a", 2), ("b", 1)}
    assert rows["b", 1]["n"] == 30


@pytest.mark.requires("psycopg")
def test_postgres_rows_come_back_by_key(postgres_url: str):
    """Types of the real server arrive as what tables take: numerics, arrays, binary, moments."""
    from decimal import Decimal

    source = sql_source(postgres_url, "shop.customers", key="id", utc=("local",))
    rows = source.fetch([f"c-{i}" for i in range(700)] + ["nobody"], timeout_s=5)
    assert rows["nobody"] is None
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    row = rows["c-3"]
    assert row["age"] == Decimal("0.75")
    assert row["tags"] == [3.0, 4.0]
    assert row["photo"] == b"\x00\xff"
    assert (row["seen"], row["local"]) == (moment, moment)


@pytest.mark.requires("psycopg")
def test_postgres_integer_and_uuid_keys(postgres_url: str):
    """Large integers find a bigint, and the text of a UUID finds a uuid."""
    items = sql_source(postgres_url, "items", key="id")
    assert items.fetch([7, 8, 9_000_000_000], timeout_s=5) == {
        7: {"id": 7, "price": 1.5},
        8: None,
        9_000_000_000: {"id": 9_000_000_000, "price": 2.5},
    }
    known = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
    visitors = sql_source(postgres_url, "visitors", key="id")
    assert visitors.fetch([known], timeout_s=5) == {known: {"id": known, "n": 3}}
    odd = sql_source(
        postgres_url, "SELECT id::text AS id, ':x' AS colon, (n % 2)::int AS odd FROM visitors", key="id"
    )
    assert odd.fetch([known], timeout_s=5) == {known: {"id": known, "colon": ":x", "odd": 1}}


@pytest.mark.requires("psycopg")
def test_key_that_the_database_refuses_fails_alone(postgres_url: str):
    """A text with a NUL, or one that is no UUID, costs its own answer only; it is an error, not an unknown entity."""
    known = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
    visitors = sql_source(postgres_url, "visitors", key="id")
    keys = ["no uuid", *(f"6ba7b810-9dad-11d1-80b4-00c04fd4{i:04x}" for i in range(100)), known]
    rows = visitors.fetch(keys, timeout_s=20)
    assert isinstance(rows["no uuid"], Exception)
    assert rows[known] == {"id": known, "n": 3}
    assert [key for key in keys if rows[key] is None] == keys[1:-1]
    customers = sql_source(postgres_url, "shop.customers", key="id", columns=["age"])
    rows = customers.fetch(["c-1", "c-\x00", "c-2"], timeout_s=20)
    assert isinstance(rows["c-\x00"], Exception)
    assert None not in (rows["c-1"], rows["c-2"])


@pytest.mark.requires("psycopg")
@pytest.mark.parametrize("own", [True, False], ids=["URL", "engine of the user"])
def test_postgres_query_stops_at_the_limit(postgres_url: str, own: bool):
    """`pg_sleep` is cancelled by the server; the connection, and nobody else's limit, is left as it was."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(postgres_url)
    source = sql_source(postgres_url if own else engine, "SELECT id, pg_sleep(30) FROM items", key="id")
    start = time.monotonic()
    with pytest.raises(sqlalchemy.exc.OperationalError, match="statement timeout"):
        source.fetch([7], timeout_s=0.05)
    assert time.monotonic() - start < 5
    if not own:
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == "0"
    engine.dispose()


@pytest.mark.requires("psycopg")
def test_killed_and_restarted_postgres(own_postgres):
    """Fetches fail while the server is gone and work at the latest with the second one after it is back."""
    import psycopg
    import sqlalchemy

    def fill():
        with psycopg.connect(own_postgres.conninfo, autocommit=True) as db:
            db.execute("CREATE TABLE IF NOT EXISTS t (id text PRIMARY KEY, n int)")
            db.execute("INSERT INTO t VALUES ('a', 1) ON CONFLICT DO NOTHING")

    fill()
    source = sql_source(own_postgres.url, "t", key="id")
    assert source.fetch(["a"], timeout_s=5)["a"] is not None
    own_postgres.kill()
    start = time.monotonic()
    for _ in range(3):
        with pytest.raises(sqlalchemy.exc.OperationalError):
            source.fetch(["a"], timeout_s=0.2)
    assert time.monotonic() - start < 5
    own_postgres.start()
    fill()
    assert source.fetch(["a"], timeout_s=5) == {"a": {"id": "a", "n": 1}}


def _fetch_in_child(source, key, answers):
    answers.put(source.fetch([key], timeout_s=5)[key])
    source.close()


@pytest.mark.requires("psycopg")
def test_forked_child_leaves_the_parents_connections_alone(postgres_url: str):
    """Parent and children fetch in turn over connections of their own; none is closed under the other."""
    source = sql_source(postgres_url, "items", key="id")
    want = {"id": 7, "price": 1.5}
    assert source.fetch([7], timeout_s=5)[7] == want
    fork = multiprocessing.get_context("fork")
    for _ in range(3):
        answers = fork.SimpleQueue()
        child = fork.Process(target=_fetch_in_child, args=(source, 7, answers))
        child.start()
        assert source.fetch([7], timeout_s=5)[7] == want
        assert answers.get() == want
        child.join(20)
        assert child.exitcode == 0
        assert source.fetch([7], timeout_s=5)[7] == want


@pytest.mark.requires("psycopg")
def test_many_threads_share_a_source(postgres_url: str):
    """Eight threads at once get the rows that they asked for."""
    source = sql_source(postgres_url, "shop.customers", key="id", columns=["age"])
    wrong = []

    def run(first: int) -> None:
        for i in range(first, first + 20):
            rows = source.fetch([f"c-{i}", f"c-{i + 500}"], timeout_s=10)
            if [float(row["age"]) for row in rows.values()] != [i / 4, (i + 500) / 4]:
                wrong.append(i)

    threads = [threading.Thread(target=run, args=(50 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
