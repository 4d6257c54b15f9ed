"""Rows beside Feast's SDK on SQLite and Redis, in the environment that has Feast: `python -m benchmarks.beside_feast`.

Feast needs older packages than the rest of the benchmarks, so this part runs in an environment of its own, where the same
wheel is installed; `measures/services.py` starts it with the folder of a release whose features are 32 stored columns, and
reads the last line of its output, which is JSON. Both sides are timed here, in one process, in the same rounds.

One row is read as a request reads it: the engine fills the stored columns from a Struct with the key. 100 and 500 rows are
read as other code reads them: `FeatureTable.gather` of fresh strings.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import tables, workloads
from benchmarks.harness import Case, Effort, Timing, alternate, check_answers
from benchmarks.peers import redis_server
from benchmarks.peers.feast_store import FeastRows
from benchmarks.tables import WIDTH

__all__ = ["Beside", "Contestants", "main"]

N_FEAST = 2_000  # entities in Feast's stores
SIZES = (1, 100, 500)


class Contestants(msgspec.Struct):
    """What took how long for one store and one number of entities: microseconds, p50 by round, and p50 and p99 of all."""

    store: str
    n_keys: int
    feast_rounds_us: list[float]
    feast_us: tuple[float, float]
    library_rounds_us: list[float]
    library_us: tuple[float, float]


class Beside(msgspec.Struct):
    """Everything that this part found."""

    feast: str
    contestants: list[Contestants]


def main(release: Path, seconds: float, rounds: int) -> Beside:
    """Measure. `seconds`: of each contestant over all its rounds. Raises: WrongAnswerError."""
    import feast

    import retailinfer as ri

    effort = Effort(rounds=rounds, seconds=seconds)
    table = tables.item_feature_table()
    found = []
    with ri.Scorer.load(release, store=ri.Store(tables={"item": table}), trust="unsigned") as scorer:
        for store, rows in _stores():
            for n in SIZES:
                library = _OneRow(scorer) if n == 1 else _Gather(table, n)
                found.append(_one_size(store, rows, library, n, effort))
    return Beside(feast.__version__, found)


class _OneRow:
    """The stored columns of one request."""

    block = 50

    def __init__(self, scorer: Any) -> None:
        self._engine, self._make = scorer._live.engine, scorer.request_type
        self.call = self._engine.fill

    def input(self, keys: list[str]) -> Any:
        return self._make(sku=keys[0])

    def rows(self, request: Any) -> NDArray[np.float32]:
        return np.asarray(self._engine.vectorize(request)[0])


class _Gather:
    """Many rows at once, into a matrix that is there."""

    block = 1

    def __init__(self, table: Any, n_keys: int) -> None:
        names = tuple(f"x{i:02d}" for i in range(WIDTH))
        out = np.empty((n_keys, WIDTH), np.float32)
        self.call = lambda keys: table.gather(keys, names, out=out)

    def input(self, keys: list[str]) -> Any:
        return keys

    def rows(self, keys: Any) -> NDArray[np.float32]:
        return np.array(self.call(keys).values)


def _stores() -> Iterator[tuple[str, FeastRows]]:
    """Each of Feast's stores with the first rows of the item table, open while it is worked with."""
    keys = [key.decode() for key in workloads.item_ids()[:N_FEAST]]
    values = np.ascontiguousarray(workloads.item_values()[:N_FEAST, :WIDTH])
    with TemporaryDirectory(prefix="retailinfer-feast-") as name:
        folder = Path(name)
        sqlite = {"type": "sqlite", "path": str(folder / "online.db")}
        yield "SQLite", FeastRows(folder / "sqlite", sqlite, keys, values)
        with redis_server.serve() as port:
            redis = {"type": "redis", "connection_string": f"127.0.0.1:{port}"}
            yield "Redis", FeastRows(folder / "redis", redis, keys, values)


def _one_size(
    store: str, feast: FeastRows, library: _OneRow | _Gather, n_keys: int, effort: Effort
) -> Contestants:
    rng = np.random.default_rng([workloads.SEED, n_keys])
    drawn = rng.integers(0, N_FEAST, (1_000, n_keys))
    ids, values = workloads.item_ids(), workloads.item_values()[:, :WIDTH]

    def keys(number: int) -> list[str]:
        """Strings that nobody has hashed yet."""
        return [str(ids[i], "ascii") for i in drawn[number % len(drawn)].tolist()]

    checked = range(20)
    want = [np.ascontiguousarray(values[drawn[i]]) for i in checked]
    ours = (library.rows(library.input(keys(i))) for i in checked)
    check_answers(f"{n_keys} rows of the library", ours, want)
    answers = (feast.matrix(feast.read(feast.request(keys(i)))) for i in checked)
    check_answers(f"{n_keys} rows of Feast on {store}", answers, want)

    def over(make: Callable[[list[str]], Any]) -> Callable[[Sequence[int]], list[Any]]:
        return lambda numbers: [make(keys(i)) for i in numbers]

    times = alternate(
        [
            Case("library", library.call, over(library.input), library.block, max_calls=200 * library.block),
            Case("Feast", feast.read, over(feast.request), max_calls=200),
        ],
        effort,
        slices=4,
    )
    return Contestants(store, n_keys, *_told(times["Feast"]), *_told(times["library"]))


def _told(timing: Timing) -> tuple[list[float], tuple[float, float]]:
    return timing.rounds_us().tolist(), (timing.us(), timing.us(0.99))


@contextmanager
def _quiet() -> Iterator[None]:
    """Feast and pandas warn of themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    with _quiet():
        result = main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
    print(msgspec.json.encode(result).decode())
