"""Hostile state: files that a store is restored from, and what a Redis server may answer.

    python tests/fuzz_state.py windows-dump --mutants 500 --seed 7       the same mutants every time; more in fuzzing.py

Rules:
  * Checksums would stop almost all of it, so they are made right again: who can write a dump can seal it.
  * A dump is taken over whole or refused with an IntegrityError or a SchemaMismatchError. What was taken over can be read,
    dumped and restored once more.
  * A server's answer becomes values, or the errors that the code around waits for; a value that is none is a ValueError of the
    reader, which the caller counts.
"""

from __future__ import annotations

import functools
import hashlib
import io
import random
import socket
import struct
import sys
import tempfile
from pathlib import Path

import msgspec
from fuzzing import Target, bytes_mutant, cells_mutant, likely_mutant, main, packed_mutant

__all__ = ["TARGETS"]

NOW_NS = 1_700_000_000_000_000_000
CARD, SHOP, AMOUNT, CHANNEL = range(4)


# ---- stores ----------------------------------------------------------------------------------------------------------------


def _store():
    """A store with a table of every kind of column, windows and aliases; its clock stands."""
    from test_redis_windows import plan_for

    import retailinfer as ri
    from retailinfer._native.windows import WindowGroup
    from retailinfer.clock import ManualClock

    clock = ManualClock(wall_ns=NOW_NS, monotonic_ns=10**12)
    table = ri.FeatureTable(
        {"amount": "f64", "n": "i64", "label": "str", "raw": "bytes", "taste": ("vec", 3)},
        "str",
        ttl="1h",
        max_rows=64,
        clock=clock,
        name="card",
    )
    windows = ri.Windows.memory(clock=clock)
    group = windows._groups["card"] = WindowGroup("card", "str", clock=clock)
    store = ri.Store(tables={"card": table}, windows=windows, aliases=["card"], clock=clock)
    return store, plan_for(group)


def _filled():
    store, plan = _store()
    for i in range(12):
        row = {"amount": i / 2, "n": None if i % 3 else i, "label": "é" * i, "raw": bytes([i]) * i}
        store["card"].put(f"c-{i}", row | ({"taste": [0.5, i, -1.0]} if i % 2 else {}))
        values = {CARD: f"c-{i % 5}", SHOP: i, AMOUNT: i * 1.25, CHANNEL: "online" if i % 2 else None}
        plan.run(values, NOW_NS - i * 30 * 10**9, now_ns=NOW_NS, event_hash=i % 7)
    graph = store.aliases("card")
    graph.link("old-1", into="c-1", at=NOW_NS / 1e9 - 100)
    graph.link("old-2", into="old-1", at=NOW_NS / 1e9 - 50)
    graph.link("old-3", into="c-2", at=NOW_NS / 1e9 - 20)
    return store, plan


@functools.cache
def _parts() -> dict[str, bytes]:
    """What a store is saved as, by part, without checksums."""
    from retailinfer.store.aliases import _MAGIC

    store, _ = _filled()
    out = io.BytesIO()
    store["card"].dump(out)
    aliases = store.aliases("card").dump()
    with tempfile.TemporaryDirectory() as folder:
        store.save(f"{folder}/store")
        archive = Path(f"{folder}/store").read_bytes()
    return {
        "table": out.getvalue()[:-32],
        "windows": b"".join(store.windows.dump())[:-32],
        "aliases": aliases[len(_MAGIC) + 32 :],
        "archive": archive[:-32],
    }


def _seeds(part: str) -> list[bytes]:
    return [_parts()[part]]


def _sealed(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


# ---- dumps -----------------------------------------------------------------------------------------------------------------


def _table(data: bytes):
    store, _ = _store()
    table = store["card"]
    rows = table.restore(_sealed(data))
    _read_table(table, rows)
    return rows


def _read_table(table, rows: int) -> None:
    for key in [*table.keys()]:
        row = table.lookup(key)
        assert row is None or row.keys() == table.columns.keys()
    out = io.BytesIO()
    table.dump(out)
    assert _store()[0]["card"].restore(out.getvalue()) <= len(table) <= max(rows, 64)


def _windows(data: bytes):
    store, plan = _store()
    entities = store.windows.restore(io.BytesIO(_sealed(data)).read, complete=len(data) % 2 == 0)
    _use_windows(store, plan)
    return entities


def _use_windows(store, plan) -> None:
    """Everything that was taken over is read, added to, dumped, and taken over once more."""
    from retailinfer.errors import FeatureError

    for i in range(6):
        values = {CARD: f"c-{i}", SHOP: i, AMOUNT: 1.0, CHANNEL: "online"}
        for at_ns in (NOW_NS, NOW_NS - 500 * 10**9, NOW_NS + 86_400 * 10**9):
            try:
                plan.run(values, at_ns, now_ns=NOW_NS, event_hash=i)
            except FeatureError:
                continue
    again, _ = _store()
    again.windows.restore(io.BytesIO(b"".join(store.windows.dump())).read)


def _aliases(data: bytes):
    from retailinfer.store.aliases import _MAGIC

    store, _ = _store()
    graph = store.aliases("card")
    graph.restore(_MAGIC + hashlib.sha256(data).digest() + data)
    for key in ("old-1", "old-2", "old-3", "c-1", "none"):
        graph.resolve(key)
    _store()[0].aliases("card").restore(graph.dump())
    return len(graph)


def _archive(data: bytes):
    store, plan = _store()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store")
        path.write_bytes(_sealed(data))
        restored = store.restore(path)
    _use_windows(store, plan)
    return restored


def _dump_refusals() -> dict[type[Exception], str]:
    from retailinfer.errors import ConfigError, IntegrityError, SchemaMismatchError

    return {
        IntegrityError: "refused",
        SchemaMismatchError: "of another schema",
        ConfigError: "of another entity",
    }


# ---- a server's answers ----------------------------------------------------------------------------------------------------


def _reply(data: bytes):
    """Bytes of a connection, read as a reply; what every reader of replies makes of it."""
    from retailinfer.errors import FeatureError
    from retailinfer.store import redis_link, windows_redis
    from retailinfer.store.redis_link import LinkError

    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(data[: 1 << 16])
    wire = redis_link._Wire(ours, ("fuzz", 1))
    try:
        reply = wire.read(redis_link._now_s() + 5.0)
    finally:
        wire.close()
    readers = [
        windows_redis._registry,
        lambda reply: redis_link._slot_map(reply, ("fuzz", 1)),
        windows_redis._evicts,
    ]
    for source in _sources():
        readers.append(lambda reply, source=source: _into_table(source._row(reply)))
    for read in readers:
        try:
            read(reply)
        except (LinkError, FeatureError):
            continue
    return reply


@functools.cache
def _sources():
    from retailinfer.store.sources.redis import RedisSource

    kinds = {"amount": "f64", "n": "i64", "label": "str", "raw": "bytes", "taste": "vec"}
    url = "redis://localhost:1"
    return [
        RedisSource(url, rows="msgpack", columns=kinds),
        RedisSource(url, rows="json", columns=kinds),
        RedisSource(url, rows="hash", columns=kinds),
    ]


@functools.cache
def _one_table():
    return _store()[0]["card"]


def _into_table(row) -> None:
    """A row as a source gives it: stored, or refused by the table as no row."""
    if row is not None:
        _one_table().put("c-1", row)


def _reply_refusals() -> dict[type[Exception], str]:
    from retailinfer.store.redis_link import LinkError

    return {LinkError: "refused"}


def _seeds_of_replies() -> list[bytes]:
    row = {"amount": 1.5, "n": 7, "label": "é", "raw": b"\x00\xff", "taste": [0.5, 1.0, -1.0]}
    packed = msgspec.msgpack.encode(row | {"taste": struct.pack("<3f", 1, 2, 3)})
    text = msgspec.json.encode({k: v for k, v in row.items() if k != "raw"})
    cells = [b"1.5", b"7", "é".encode(), b"\x00", b"[0.5, 1, -1]"]
    from test_redis_windows import KEPT, digest

    fields = [b"id", b"12345678"]
    for name, (_, _, keep) in KEPT.items():
        fields += [b"card:%s:%d" % (digest(name).hex().encode(), keep), b"%d" % NOW_NS]
    slots = (
        b"*2\r\n*3\r\n:0\r\n:8191\r\n*3\r\n$9\r\n127.0.0.1\r\n:6379\r\n$2\r\nab\r\n"
        b"*3\r\n:8192\r\n:16383\r\n*2\r\n$4\r\nhost\r\n:6380\r\n"
    )
    return [
        _bulk(packed),
        _bulk(text),
        _array(cells),
        _array([b"", *cells[1:]]),
        _array(fields),
        slots,
        b"+OK\r\n",
        b":-12\r\n",
        b"-ERR no\r\n",
        b"$-1\r\n",
        _bulk(b"# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n"),
    ]


def _bulk(data: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(data), data)


def _array(items: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(items) + b"".join(map(_bulk, items))


def _inside_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """What a reply carries is made hostile, and the reply is whole."""
    if data[:1] == b"$" and data[1:2] != b"-":
        text = data[data.index(b"\r\n") + 2 : -2]
        way = rng.choice((bytes_mutant, packed_mutant if text[:1] > b"\x7f" else bytes_mutant, likely_mutant))
        return _bulk(way(text, rng, [text]))
    cells = data.split(b"\r\n")[2::2]
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(cells))
        cells[at] = rng.choice((
            b"", b"nan", b"inf", b"1e999", b"9" * 400, b"-1", b"1_0", b"true", b"[1]", b"[]", b"[" * 3000, b"\xff",
            b"[1e39, 0, 0]",
            b"[%s, 0, 0]" % (b"9" * 400), b"[[1], 2, 3]", b"[null, 1, 2]", b'["a", 1, 2]', b"abc",
            b"x" * 12, b"0x1", "\u0663".encode(),
            bytes_mutant(cells[at], rng, cells),
        ))  # fmt: skip
    return _array(cells[: rng.choice((len(cells), len(cells), 1))])


def _value(data: bytes):
    """An entity's value out of Redis, as the reader of windows takes it; its size is made right."""
    from retailinfer.errors import FeatureRangeError

    if len(data) % 8 and len(data) >= 12:
        data = data[:4] + struct.pack("<I", len(data)) + data[8:]
    plan = _shared_plan()
    read = []
    for i, at_ns in enumerate((NOW_NS, NOW_NS - 500 * 10**9, NOW_NS + 86_400 * 10**9)):
        values = {CARD: "c-1", SHOP: i, AMOUNT: 1.0, CHANNEL: "online"}
        try:
            read += plan.remote_result(values, at_ns, data, now_ns=NOW_NS, event_hash=i)
        except FeatureRangeError:
            continue
    return read


@functools.cache
def _shared_plan():
    from test_redis_windows import plan_for

    from retailinfer._native.windows import WindowGroup
    from retailinfer.clock import ManualClock

    return plan_for(WindowGroup("card", "str", clock=ManualClock(wall_ns=NOW_NS), shared=True))


def _value_refusals() -> dict[type[Exception], str]:
    return {ValueError: "refused"}


def _seeds_of_values() -> list[bytes]:
    """What the script's twin makes of some events."""
    import redis_twin as twin

    plan = _shared_plan()
    made: list[bytes] = []
    value = None
    for i in range(40):
        values = {CARD: "c-1", SHOP: i % 9, AMOUNT: (i - 20) * 2.5, CHANNEL: "online" if i % 3 else None}
        called = plan.remote(values, NOW_NS - (40 - i) * 29 * 10**9, now_ns=NOW_NS, event_hash=i % 11)
        assert called is not None
        value = twin.after(value, _event(twin, called[2]))
        if i in (0, 5, 20, 39):
            made.append(value)
    return made


def _event(twin, operations: bytes):
    _, add, n, now_s, event_id, ring = struct.unpack_from("<BBHI8s8s", operations)
    steps = []
    for i in range(n):
        digest, kind, applies, _, keep, life_s, pane, limit, value = struct.unpack_from(
            "<8sBBHIIIIq", operations, 24 + 36 * i
        )
        steps.append(twin.Step(digest, kind, bool(applies), keep, life_s, pane, limit, value))
    return twin.Event(now_s, steps, event_id, ring, bool(add))


def _check_values(read, data: bytes) -> None:
    assert all(0 <= state <= 4 and isinstance(value, float) for value, state in read)


_CELLS = (bytes_mutant, *[cells_mutant] * 3)
TARGETS = {
    target.name: target
    for target in (
        Target("table-dump", functools.partial(_seeds, "table"), _table, _CELLS, _dump_refusals, sample=4_000, slow=2.0),
        Target("windows-dump", functools.partial(_seeds, "windows"), _windows, _CELLS, _dump_refusals, sample=4_000, slow=2.0),
        Target("aliases-dump", functools.partial(_seeds, "aliases"), _aliases, (bytes_mutant, packed_mutant, likely_mutant),
               _dump_refusals, sample=3_000, slow=2.0),
        Target("archive", functools.partial(_seeds, "archive"), _archive, _CELLS, _dump_refusals, sample=2_000, slow=2.0),
        Target("redis-reply", _seeds_of_replies, _reply, (bytes_mutant, _inside_mutant, _inside_mutant), _reply_refusals,
               sample=5_000, slow=2.0),
        Target("redis-value", _seeds_of_values, _value, _CELLS, _value_refusals, _check_values, sample=10_000, slow=2.0),
    )
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(TARGETS))
