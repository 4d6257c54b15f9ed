"""The servers that other tests run against: they start, hang, crash and come back as those tests believe."""

from __future__ import annotations

import pytest


@pytest.mark.requires("redis")
def test_redis_forgets_on_a_crash_and_comes_back_on_its_port(own_redis):
    """A killed server starts again where its clients look for it, without its data."""
    port = own_redis.port
    own_redis.client().set("a", "1")
    own_redis.restart()
    assert own_redis.port == port
    assert own_redis.client().get("a") is None


@pytest.mark.requires("redis")
def test_redis_hangs_and_goes_on(own_redis):
    """A paused server accepts a connection and does not answer until it goes on."""
    import redis

    client = redis.Redis(port=own_redis.port, socket_timeout=0.05, retry=None)
    own_redis.pause()
    with pytest.raises((redis.TimeoutError, redis.ConnectionError)):
        client.ping()
    own_redis.resume()
    assert own_redis.client().ping()


@pytest.mark.requires("psycopg")
def test_postgres_answers_hangs_and_crashes(own_postgres):
    """PostgreSQL runs under any account, hangs and goes on, and has its data after a crash."""
    import psycopg

    with psycopg.connect(own_postgres.conninfo, autocommit=True) as connection:
        connection.execute("create table t as select 1 as a")
    own_postgres.pause()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(own_postgres.conninfo, connect_timeout=2)
    own_postgres.resume()
    own_postgres.restart()
    with psycopg.connect(own_postgres.conninfo) as connection:
        assert connection.execute("select a from t").fetchone() == (1,)
