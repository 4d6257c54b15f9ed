"""RedisSource against a real server and a real cluster: packed rows and hashes, rubbish beside good rows, limits, forks."""

from __future__ import annotations

import itertools
import json
import os
import time

import msgspec
import numpy as np
import pytest
from services import RedisCluster

from retailinfer.errors import ConfigError
from retailinfer.store.redis_link import LinkError, LinkTimeout
from retailinfer.store.sources.redis import RedisSource

pytestmark = pytest.mark.requires("redis")
NAMES = itertools.count()
N_ROWS = 1_300


@pytest.fixture
def prefix():
    """A prefix of this test alone."""
    return f"src{next(NAMES)}-{os.getpid()}:"


@pytest.fixture
def client(redis_server):
    """A client that is not ours."""
    found = redis_server.client()
    yield found
    found.close()


def test_packed_rows_come_by_key(redis_server, client, prefix):
    """A fetch of more keys than one flight carries gives each its row, and None to who has none."""
    for i in range(N_ROWS):
        client.set(f"{prefix}c-{i}", msgspec.msgpack.encode({"age": i, "name": f"n{i}"}))
    source = RedisSource(redis_server.url, prefix=prefix)
    keys = [f"c-{i}" for i in range(N_ROWS + 5)]
    found = source.fetch(keys, timeout_s=10)
    assert found == {key: {"age": i, "name": f"n{i}"} if i < N_ROWS else None for i, key in enumerate(keys)}
    assert source.fetch([], timeout_s=1) == {}
    source.close()


def test_vectors_come_as_float32(redis_server, client, prefix):
    """Bytes of a column declared as vector are its numbers, in packed rows and in hashes."""
    vector = np.arange(4, dtype="<f4")
    client.set(f"{prefix}a", msgspec.msgpack.encode({"v": vector.tobytes(), "w": [1.5, 2.5]}))
    client.hset(f"{prefix}h", mapping={"v": vector.tobytes(), "w": "[1.5, 2.5]"})
    kinds = {"v": "vec", "w": "vec"}
    packed = RedisSource(redis_server.url, prefix=prefix, columns=kinds)
    hashed = RedisSource(redis_server.url, prefix=prefix, rows="hash", columns=kinds)
    for row in (packed.fetch(["a"], timeout_s=5)["a"], hashed.fetch(["h"], timeout_s=5)["h"]):
        np.testing.assert_array_equal(row["v"], vector)
        np.testing.assert_array_equal(row["w"], [1.5, 2.5])
    packed.close()
    hashed.close()


def test_hashes_have_types_and_nulls(redis_server, client, prefix):
    """Cells of a hash are what they are declared as; a cell that is not there is null, a hash that is not there unknown."""
    columns = {"f": "f64", "i": "i64", "b": "bool", "s": "str", "raw": "bytes", "gone": "f64"}
    client.hset(
        f"{prefix}k",
        mapping={"f": "1.25", "i": str(2**60), "b": "true", "s": "é", "raw": b"\xff", "other": "x"},
    )
    source = RedisSource(redis_server.url, prefix=prefix, rows="hash", columns=columns)
    found = source.fetch(["k", "none"], timeout_s=5)
    assert found == {
        "k": {"f": 1.25, "i": 2**60, "b": True, "s": "é", "raw": b"\xff", "gone": None},
        "none": None,
    }
    source.close()


@pytest.mark.parametrize(
    "key", ["text", 7, -7, b"\xff\x00", ("a", 1), ("a:b", "c"), ("a", "b:c"), ("a%3Ab", "c")], ids=repr
)
def test_every_kind_of_key_has_a_name_of_its_own(redis_server, client, prefix, key):
    """Whoever writes rows asks the source for the name; no two tuples share one."""
    source = RedisSource(redis_server.url, prefix=prefix, rows="json")
    client.set(source.name(key), json.dumps({"k": repr(key)}))
    others = [("a:b", "c"), ("a", "b:c"), ("a%3Ab", "c"), ("a", "b", "c"), "text2", 8]
    found = source.fetch([key, *(other for other in others if other != key)], timeout_s=5)
    assert found.pop(key) == {"k": repr(key)}
    assert set(found.values()) == {None}
    source.close()


def test_rubbish_is_refused_by_itself(redis_server, client, prefix):
    """Another type, bytes that are no row, a row that is no map: no row, not unknown, and the others are good."""
    good = msgspec.msgpack.encode({"a": 1})
    client.lpush(f"{prefix}list", "x")
    client.set(f"{prefix}short", good[:-1])
    client.set(f"{prefix}noise", b"\xc1\xff")
    client.set(f"{prefix}number", msgspec.msgpack.encode(7))
    client.set(f"{prefix}deep", b"\x91" * 100_000)
    client.set(f"{prefix}good", good)
    source = RedisSource(redis_server.url, prefix=prefix)
    found = source.fetch(["list", "short", "noise", "number", "deep", "good", "none"], timeout_s=5)
    assert found.pop("good") == {"a": 1}
    assert found.pop("none") is None
    assert len(found) == 5
    assert not any(row is None or isinstance(row, dict) for row in found.values())
    cells = RedisSource(redis_server.url, prefix=prefix, rows="hash", columns={"b": "bool", "n": "i64"})
    for name, cell in {"b": "maybe", "n": "1.5"}.items():
        client.hset(f"{prefix}h{name}", name, cell)
        assert isinstance(cells.fetch([f"h{name}"], timeout_s=5)[f"h{name}"], str)
    source.close()
    cells.close()


def test_hung_server_costs_no_more_than_the_limit(own_redis):
    """A fetch from a server that does not answer ends at its limit, and the next one finds the server again."""
    own_redis.client().set("a", msgspec.msgpack.encode({"x": 1}))
    source = RedisSource(own_redis.url)
    assert source.fetch(["a"], timeout_s=5) == {"a": {"x": 1}}
    own_redis.pause()
    start_s = time.monotonic()
    with pytest.raises(LinkTimeout):
        source.fetch(["a"], timeout_s=0.05)
    assert time.monotonic() - start_s < 1.0
    own_redis.resume()
    assert source.fetch(["a"], timeout_s=5) == {"a": {"x": 1}}
    own_redis.kill()
    with pytest.raises(LinkError):
        source.fetch(["a"], timeout_s=5)
    source.close()


def test_scan_gives_every_row_once(redis_server, client, prefix):
    """All rows under the prefix, whatever characters it has; other keys and rubbish are left out."""
    odd = prefix + "[a*?]"
    for i in range(700):
        client.set(f"{odd}{i}", msgspec.msgpack.encode({"n": i}))
    client.set(f"{prefix}a1", msgspec.msgpack.encode({"n": -1}))
    client.set(f"{odd}x", msgspec.msgpack.encode({"n": -2}))
    client.lpush(f"{odd}1000", "x")
    source = RedisSource(redis_server.url, prefix=odd)
    assert sorted(source.scan("int"), key=lambda pair: pair[0]) == [(i, {"n": i}) for i in range(700)]
    with pytest.raises(ConfigError):
        list(source.scan("float"))
    source.close()


def test_forked_child_fetches_over_its_own_connection(redis_server, client, prefix):
    """Parent and child fetch at once, and each gets its own answers."""
    for i in range(50):
        client.set(f"{prefix}{i}", msgspec.msgpack.encode({"n": i}))
    source = RedisSource(redis_server.url, prefix=prefix)
    source.fetch([0], timeout_s=5)
    child = os.fork()
    keys = range(25) if child else range(25, 50)
    good = all(source.fetch([i], timeout_s=5) == {i: {"n": i}} for _ in range(10) for i in keys)
    if child == 0:
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert good
    source.close()


def test_rows_come_from_all_nodes_of_a_cluster(tmp_path):
    """Keys on every node, in one fetch; after slots have moved, too; nothing is scanned."""
    with RedisCluster(tmp_path) as cluster:
        source = RedisSource(cluster.url, prefix="row:")
        import redis

        writer = redis.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port)
        for i in range(200):
            writer.set(source.name(i), msgspec.msgpack.encode({"n": i}))
        writer.close()
        want = {i: {"n": i} if i < 200 else None for i in range(210)}
        assert source.fetch(list(range(210)), timeout_s=10) == want
        source._link._slots = (
            source._link._slots[8_000:] + source._link._slots[:8_000]
        )  # what moved slots look like
        assert source.fetch(list(range(210)), timeout_s=10) == want
        with pytest.raises(ConfigError):
            list(source.scan())
        source.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"rows": "pickle"},
        {"rows": "hash"},
        {"columns": {"a": "float"}},
        {"prefix": b"x"},
        {"url": "http://h"},
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(settings):
    """A wrong kind of rows, column or URL is a ConfigError at once."""
    with pytest.raises(ConfigError):
        RedisSource(**{"url": "redis://localhost", **settings})


def test_what_is_no_key_is_a_type_error():
    """Floats, bools and None are asked of nobody."""
    for key in (1.5, True, None, (), ("a", 1.5)):
        with pytest.raises(TypeError):
            RedisSource("redis://127.0.0.1:1").fetch([key], timeout_s=1)
