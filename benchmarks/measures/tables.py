"""Figures of tables: gathers and look-ups beside caches, hit rates under keys that come once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks import workloads
from benchmarks.harness import Case, alternate, check_answers, ratio
from benchmarks.lab import Figures, Lab, measures
from benchmarks.workloads import N_CANDIDATES


@measures("gather_snapshot")
def gather(lab: Lab) -> Figures:
    """500 fresh keys x 32 floats out of 100,000 rows, into a matrix that is there, as in the peers."""
    from benchmarks import library
    from benchmarks.peers.cachetools_cache import dict_of_rows, gatherer, ttl_cache_of_rows

    width = 32
    values = workloads.item_values()[:, :width]
    snapshot = library.snapshot_of(width)
    snapshot.table.make_block(
        "rows", [f"x{i:02d}" for i in range(width)]
    )  # finished rows, as rankings copy them
    out = np.empty((N_CANDIDATES, width), np.float32)
    drawn = workloads.rank_requests()
    by_ttl = gatherer(ttl_cache_of_rows(lab.item_keys, values), N_CANDIDATES, width)
    by_dict = gatherer(dict_of_rows(lab.item_keys, values), N_CANDIDATES, width)

    def fresh(numbers: Sequence[int]) -> list[list[str]]:
        return [drawn.fresh_ids(i % workloads.N_REQUESTS) for i in numbers]

    def by_snapshot(keys: list[str]) -> NDArray[np.float32]:
        return np.asarray(snapshot.gather_block(keys, "rows", out=out)[0])

    want = [values[drawn.candidates[i]] for i in range(50)]
    for name, call in (("snapshot", by_snapshot), ("TTLCache", by_ttl), ("dict", by_dict)):
        check_answers(f"gather by {name}", (call(keys).copy() for keys in fresh(range(50))), want)
    times = alternate(
        [
            Case("library", by_snapshot, fresh, max_calls=40),
            Case("cachetools TTLCache + copy", by_ttl, fresh, max_calls=10),
            Case("dict + copy", by_dict, fresh, max_calls=20),
        ],
        lab.effort,
        slices=16,
    )
    for name in ("cachetools TTLCache + copy", "dict + copy"):
        lab.peer("gather 500 x 32, snapshot", times[name], times["library"])
    return {
        "gather_snapshot": ratio(times["cachetools TTLCache + copy"], times["library"], lower_is_better=False)
    }
