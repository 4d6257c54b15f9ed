"""Figures of tables: gathers and look-ups beside caches and Redis; the hit rate when most keys come once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import workloads
from benchmarks.harness import Case, Figure, alternate, check_answers, ratio
from benchmarks.lab import Figures, Lab, UnmeasurableError, measures
from benchmarks.workloads import FRAUD_FULL, N_CANDIDATES, N_ENTITIES

Gather = Callable[[list[str]], NDArray[np.float32]]


def _fresh(numbers: Sequence[int]) -> list[list[str]]:
    """500 keys each, in strings that nobody has hashed yet."""
    drawn = workloads.rank_requests()
    return [drawn.fresh_ids(i % workloads.N_REQUESTS) for i in numbers]


def _check_gathers(contestants: dict[str, Gather], width: int, n: int = 50) -> None:
    values, drawn = workloads.item_values()[:, :width], workloads.rank_requests()
    want = [values[drawn.candidates[i]] for i in range(n)]
    for name, call in contestants.items():
        check_answers(f"gather by {name}", (call(keys).copy() for keys in _fresh(range(n))), want)


def _table_gather() -> Gather:
    """Gathers of the mutable table, into a matrix that is there, as in the peers."""
    from benchmarks import tables

    table = tables.item_feature_table()
    names = tuple(f"x{i:02d}" for i in range(tables.WIDTH))
    out = np.empty((N_CANDIDATES, tables.WIDTH), np.float32)

    def gather(keys: list[str]) -> NDArray[np.float32]:
        return np.asarray(table.gather(keys, names, out=out).values)

    return gather


@measures("gather_snapshot", "gather_table")
def gather(lab: Lab) -> Figures:
    """500 fresh keys x 32 floats out of 100,000 rows."""
    from benchmarks import tables
    from benchmarks.peers.cachetools_cache import dict_of_rows, gatherer, ttl_cache_of_rows

    width = tables.WIDTH
    values = workloads.item_values()[:, :width]
    snapshot = tables.snapshot_of(width)
    # finished rows, as rankings copy them
    snapshot.table.make_block("rows", [f"x{i:02d}" for i in range(width)])
    out = np.empty((N_CANDIDATES, width), np.float32)

    def by_snapshot(keys: list[str]) -> NDArray[np.float32]:
        return np.asarray(snapshot.gather_block(keys, "rows", out=out)[0])

    by_ttl = gatherer(ttl_cache_of_rows(lab.item_keys, values), N_CANDIDATES, width)
    by_dict = gatherer(dict_of_rows(lab.item_keys, values), N_CANDIDATES, width)
    ours: dict[str, Gather] = {"gather_snapshot": by_snapshot, "gather_table": _table_gather()}
    _check_gathers({**ours, "TTLCache": by_ttl, "dict": by_dict}, width)
    figures = {}
    for (
        figure,
        call,
    ) in ours.items():  # each in rounds of its own: what one holds in the caches another would push out
        times = alternate(
            [
                Case("library", call, _fresh, max_calls=40),
                Case("cachetools TTLCache + copy", by_ttl, _fresh, max_calls=10),
                Case("dict + copy", by_dict, _fresh, max_calls=20),
            ],
            lab.effort,
            slices=16,
        )
        for name in ("cachetools TTLCache + copy", "dict + copy"):
            lab.peer(f"gather 500 x 32, {figure.partition('_')[2]}", times[name], times["library"])
        peer = times["cachetools TTLCache + copy"]
        figures[figure] = ratio(peer, times["library"], lower_is_better=False)
    return figures


@measures("redis_mget")
def redis_mget(lab: Lab) -> Figures:
    """The same rows out of Redis on loopback."""
    from benchmarks import tables
    from benchmarks.peers import redis_server
    from benchmarks.peers.redis_rows import RedisRows

    if redis_server.program() is None:
        raise UnmeasurableError("needs a redis-server")
    by_table, width = _table_gather(), tables.WIDTH
    with redis_server.serve() as port:
        peer = RedisRows(port, lab.item_keys, np.ascontiguousarray(workloads.item_values()[:, :width]))
        _check_gathers({"table": by_table, "MGET": peer.gather}, width)
        times = alternate(
            [
                Case("library", by_table, _fresh, max_calls=40),
                Case("redis-py MGET", peer.gather, _fresh, max_calls=20),
            ],
            lab.scaled(0.5),
            slices=16,
        )
        peer.close()
    lab.peer("gather 500 x 32, table", times["redis-py MGET"], times["library"])
    return {"redis_mget": ratio(times["redis-py MGET"], times["library"], lower_is_better=False)}


@measures("lookups_warm", "lookups_cold")
def lookups(lab: Lab) -> Figures:
    """Three look-ups of one request and the columns that they fill, beside three dict get and three copies."""
    from benchmarks.peers.cachetools_cache import dict_of_rows, three_lookups

    engine, make = lab.lookup_engine
    rows, widths = [], []
    for entity in FRAUD_FULL.entities:
        keys, columns = workloads.entity_table(FRAUD_FULL, entity)
        matrix = np.column_stack(list(columns.values())).astype(np.float32)
        rows.append(dict_of_rows(keys, matrix))
        widths.append(matrix.shape[1])
    peer = three_lookups(rows, widths)
    fields = tuple(FRAUD_FULL.entities.values())
    rng = np.random.default_rng(workloads.SEED)
    figures = {}
    for figure, n_entities in (("lookups_warm", 1_000), ("lookups_cold", N_ENTITIES)):
        drawn = rng.integers(0, n_entities, (1 << 17, 3))

        def keys_of(number: int, drawn: NDArray[np.int64] = drawn) -> list[str]:
            row = drawn[number % len(drawn)].tolist()
            return [workloads.word(field, index) for field, index in zip(fields, row, strict=True)]

        def structs(numbers: Sequence[int], keys_of: Any = keys_of) -> list[Any]:
            return [make(**dict(zip(fields, keys_of(i), strict=True))) for i in numbers]

        def lists(numbers: Sequence[int], keys_of: Any = keys_of) -> list[Any]:
            return [keys_of(i) for i in numbers]

        checked = range(200)
        got = (engine.vectorize(s)[0][0] for s in structs(checked))
        check_answers(f"{figure}: columns", got, (peer(keys).copy() for keys in lists(checked)))
        times = alternate(
            [
                Case("library", engine.fill, structs, block=50),
                Case("three dict get + copy", peer, lists, block=50),
            ],
            lab.scaled(0.5),
        )
        lab.peer(f"three look-ups, {n_entities:,} entities", times["three dict get + copy"], times["library"])
        figures[figure] = ratio(times["library"], times["three dict get + copy"])
    return figures


_N_HOT = 10_000
_CAP = 1.2  # times the hot set, in rows; bytes are bounded too, and watched


@measures("one_off_points")
def one_off(lab: Lab) -> Figures:
    """Hit rate of a hot set (10 % of the keys, Zipf) while 90 % come once, less its hit rate without those."""
    n_keys = 1_000_000 if lab.effort.short else 10_000_000
    alone, _, _ = _hit_rate(n_keys // 10, share=1.0)
    beside, peak, cap = _hit_rate(n_keys, share=0.1)
    lru = _hit_rate(min(n_keys, 1_000_000), share=0.1, policy="lru")[0]
    if peak > cap:
        raise AssertionError(f"the table took {peak:,} bytes; its cap is {cap:,}")
    note = (
        f"{beside:.1%} beside {n_keys:,} keys, {alone:.1%} alone, {lru:.1%} with exact LRU; "
        f"{peak:,} of {cap:,} bytes"
    )
    points = 100 * (alone - beside)
    return {"one_off_points": Figure(points, points, (points,), note)}


def _hit_rate(n_keys: int, *, share: float, policy: str = "probation") -> tuple[float, int, int]:
    """Look every key up, put what is missing. Returns the hot keys' hit rate, the most bytes taken, and their cap.

    The first tenth of the keys warms the table up and is not counted.
    """
    import retailinfer as ri

    rng = np.random.default_rng(workloads.SEED)
    weights = 1.0 / np.arange(1, _N_HOT + 1)
    edges = np.cumsum(weights / weights.sum())
    table = ri.FeatureTable(
        columns={"a": "f64", "b": "f64"},
        key="str",
        max_rows=int(_CAP * _N_HOT),
        policy=policy,
    )
    hits = seen = peak = once = 0
    row = {"a": 1.0, "b": 2.0}
    step = 1_000
    for at in range(0, n_keys, step):
        is_hot = rng.random(step) < share
        rank = np.searchsorted(edges, rng.random(step)).tolist()
        keys = [
            f"hot-{r:08d}" if hot else f"one-{once + i:08d}"
            for i, (hot, r) in enumerate(zip(is_hot, rank, strict=True))
        ]
        once += step
        missing = np.isnan(table.gather(keys, ["a"]).values[:, 0])
        table.put_many({keys[i]: row for i in np.flatnonzero(missing).tolist()})
        if at >= n_keys // 10:
            hits += int((is_hot & ~missing).sum())
            seen += int(is_hot.sum())
        peak = max(peak, table.nbytes)
    return hits / seen, peak, table.stats.max_bytes
