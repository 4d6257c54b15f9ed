"""Requests to time a release with: read from a file, or made of its golden rows.

Rules:
  * Golden rows are few, and a processor learns a few rows by heart. So fields are drawn from different golden rows, which
    gives as many different requests as are wanted; fields of one key stay together, and what the release refuses is
    left out and counted.
  * Everything is drawn from a fixed seed: two runs send the same bytes.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from retailinfer.authoring.loading import golden_values
from retailinfer.errors import CallerError, ConfigError, RetailInferError, ServingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer.authoring.loading import Loaded

__all__ = ["Sample", "of_arrays", "of_file", "of_golden"]

DISTINCT = 2_000
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
SEED = 20_240_601


@dataclass(frozen=True)
class Sample:
    """Requests that the release answers. `n_refused`: left out, because it does not."""

    bodies: list[bytes]
    source: str
    n_refused: int = 0

    @property
    def n_distinct(self) -> int:
        """Different requests."""
        return len(set(self.bodies))


def of_file(loaded: Loaded, path: str) -> Sample:
    """One JSON request a line. Raises: ConfigError, naming the line of a request that is refused."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    bodies = []
    for number, line in enumerate(lines, 1):
        body = line.strip()
        if not body:
            continue
        try:
            answer(loaded, body)
        except RetailInferError as exc:
            raise ConfigError(f"{path}, line {number}: {exc}") from exc
        bodies.append(body)
    if not bodies:
        raise ConfigError(f"{path} holds no request", hint="one JSON object a line")
    return Sample(bodies, path)


def of_golden(loaded: Loaded, *, candidates: int | None = None, n: int = DISTINCT) -> Sample:
    """Requests with the values of the golden rows. Raises: ConfigError when there are none that work."""
    golden = loaded.golden
    if golden is None or not golden.columns:
        raise ConfigError(
            "the release has no golden rows to make requests of", hint="give them: --requests FILE.jsonl"
        )
    rng = np.random.default_rng(SEED)
    rows = _draw(loaded, rng, n)
    bodies = (
        _rankings(loaded, rows, candidates, rng) if loaded.ranks else [msgspec.json.encode(r) for r in rows]
    )
    kept, last = [], None
    for body in dict.fromkeys(bodies):
        try:
            answer(loaded, body)
        except (CallerError, ServingError) as exc:
            last = exc
        else:
            kept.append(body)
    if not kept:
        raise ConfigError(
            f"no request made of the golden rows is answered: {last}", hint="give some: --requests FILE.jsonl"
        )
    return Sample(kept, "golden rows", len(dict.fromkeys(bodies)) - len(kept))


def of_arrays(loaded: Loaded) -> list[dict[str, NDArray[Any]]]:
    """Feeds of one row each, for a release that takes arrays; the golden arrays whole where they have no rows."""
    golden = loaded.golden
    if golden is None or not golden.arrays:
        raise ConfigError(
            "the release has no golden arrays to run", hint="pack it with golden={input: array}"
        )
    feeds = golden.feeds()
    sizes = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
    if len(sizes) != 1 or 0 in sizes:
        return [feeds]
    rows = [{k: np.ascontiguousarray(v[i : i + 1]) for k, v in feeds.items()} for i in range(sizes.pop())]
    try:
        loaded.pipeline.score_arrays(rows[0])
    except RetailInferError:  # a fixed first dimension
        return [feeds]
    return rows


def answer(loaded: Loaded, body: bytes) -> bytes:
    """One request, as serving would."""
    door: Any = loaded.door
    made: bytes = door.rank_json(body) if loaded.ranks else door.score_json(body)
    return made


def _draw(loaded: Loaded, rng: np.random.Generator, n: int) -> list[dict[str, Any]]:
    """Request objects under their names on the wire; the golden rows first, then mixtures of them."""
    assert loaded.golden is not None
    spec = loaded.pipeline.spec
    values = golden_values(loaded.golden, spec)
    types = {f.name: f.type for f in spec.fields}
    wire = {f.name: f.wire or f.name for f in spec.fields}
    own = spec.body.entities[spec.body.candidate].key if loaded.ranks and spec.body.candidate else ()
    groups = _groups([f.name for f in spec.fields], [e.key for e in spec.body.entities.values()])
    n_rows = loaded.golden.n_rows
    rows = []
    for i in range(n if n_rows > 1 else 1):
        row: dict[str, Any] = {}
        for group in groups:
            at = i if i < n_rows else int(rng.integers(n_rows))
            for name in group:
                value = values[name][at]
                if name not in own:
                    row[wire[name]] = (
                        _moment(value) if types[name] == "timestamp" and value is not None else value
                    )
        rows.append(row)
    return rows


def _rankings(
    loaded: Loaded, contexts: Sequence[dict[str, Any]], candidates: int | None, rng: np.random.Generator
) -> list[bytes]:
    assert loaded.golden is not None
    spec, contract = loaded.pipeline.spec, loaded.pipeline.contract
    name = spec.body.candidate or ""
    if loaded.store is not None and name in loaded.store:
        ids: list[Any] = list(loaded.store[name].keys())
    else:  # candidates without a table: any id will do
        text = {f.name: f.type for f in spec.fields}[spec.body.entities[name].key[0]] == "str"
        ids = [f"item-{i:06d}" if text else i for i in range(5_000)]
    wanted = candidates or (max(contract.batch_sizes) if max(contract.batch_sizes) > 1 else 500)
    wanted = min(wanted, len(ids), contract.max_rows)
    bodies = []
    for context in contexts:
        chosen = rng.choice(len(ids), wanted, replace=False)
        bodies.append(
            msgspec.json.encode({"context": context, "candidates": [ids[i] for i in chosen], "k": 20})
        )
    return bodies


def _groups(fields: Sequence[str], keys: Sequence[Sequence[str]]) -> list[list[str]]:
    """Fields that belong to one key, directly or through another key, stay together."""
    group_of = {name: {name} for name in fields}
    for key in keys:
        joined = set().union(*(group_of[name] for name in key))
        for name in joined:
            group_of[name] = joined
    return [sorted(g) for g in {id(g): g for g in group_of.values()}.values()]


def _moment(ns: int) -> dt.datetime:
    return _EPOCH + dt.timedelta(microseconds=ns // 1000)
