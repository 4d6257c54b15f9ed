"""What the measures share: models, releases, sessions and tables, each made when first asked for; and the list of measures.

A measure is a function of a `Lab` that `@measures(...)` registers under the figures that it gives. They are in `measures/`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import models, reference, workloads
from benchmarks.harness import Effort, Figure, Timing
from benchmarks.peers.bare_run import BareRun, Feed
from benchmarks.peers.handwritten import HandwrittenFraud
from benchmarks.report import PeerRow, StageRow
from benchmarks.workloads import FRAUD_FULL, FRAUD_LEAN, RANK, RANK_GBDT_COLUMNS

__all__ = ["MEASURES", "Figures", "Lab", "Measure", "UnmeasurableError", "measures"]

Figures = dict[str, Figure]
_STAGES = ("decode", "resolve", "fill", "run", "decide", "encode")
_INNER = ("of resolve: tables", "windows")


class UnmeasurableError(Exception):
    """This machine lacks what the figure needs. Counted as missed; the run does not fail."""


@dataclass
class Lab:
    """What the groups share. A context manager: its releases live in a temporary folder."""

    effort: Effort
    peers: list[PeerRow] = field(default_factory=list)
    stages: list[StageRow] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._folder = TemporaryDirectory(prefix="retailinfer-bench-")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        return Path(self._folder.name)

    def scaled(self, factor: float) -> Effort:
        """The same effort with another share of time."""
        return Effort(self.effort.rounds, self.effort.seconds * factor, self.effort.short)

    def peer(self, what: str, timing: Timing, library: Timing | None) -> None:
        """Note a peer for the table."""
        self.peers.append(
            PeerRow(what, timing.name, timing.us(), timing.us(0.99), library.us() if library else None)
        )

    def stage(self, what: str, marks: Sequence[Sequence[int]], *, inner: bool = False) -> None:
        """Note the stages of many calls, in ns, for the table. `inner`: with what resolving spent on tables and windows."""
        medians = np.median(np.array(marks, np.int64), axis=0).tolist()
        names = (*_STAGES, *_INNER) if inner else _STAGES
        self.stages += [StageRow(what, name, ns) for name, ns in zip(names, medians, strict=True)]

    # ---- fraud-lean ---------------------------------------------------------------------------------------------

    @cached_property
    def codes(self) -> dict[str, dict[str, int]]:
        return models.codes(FRAUD_LEAN)

    @cached_property
    def fraud_rows(self) -> tuple[dict[str, Any], ...]:
        return workloads.requests(FRAUD_LEAN.name)[0]

    @cached_property
    def fraud_bodies(self) -> tuple[bytes, ...]:
        return workloads.requests(FRAUD_LEAN.name)[1]

    @cached_property
    def fraud_matrix(self) -> NDArray[np.float32]:
        """The model's input for every request, by the NumPy reference."""
        values = workloads.draw(FRAUD_LEAN, workloads.N_REQUESTS, seed=workloads.SEED + 1)
        return reference.matrix(FRAUD_LEAN.columns, values, self.codes)

    @cached_property
    def fraud_run(self) -> BareRun:
        return BareRun(models.gbdt(FRAUD_LEAN.name), "probabilities")

    @cached_property
    def fraud_feeds(self) -> list[Feed]:
        return self.fraud_run.feeds(self.fraud_matrix)

    @cached_property
    def fraud_scores(self) -> NDArray[np.float32]:
        return self.fraud_run.scores(self.fraud_feeds)

    @cached_property
    def handwritten(self) -> HandwrittenFraud:
        return HandwrittenFraud(self.fraud_run, self.codes)

    @cached_property
    def fraud_spec(self) -> Any:
        from benchmarks import library

        return library.fraud_spec()

    @cached_property
    def fraud_release(self) -> Path:
        from benchmarks import library

        return library.pack_fraud(self.folder, self.fraud_spec, models.gbdt(FRAUD_LEAN.name))

    @cached_property
    def scorer(self) -> Any:
        import retailinfer as ri

        return ri.Scorer.load(self.fraud_release, trust="unsigned")

    @cached_property
    def fraud_structs(self) -> list[Any]:
        """The requests as Structs of the spec's own type, as `score_json` decodes them."""
        return [msgspec.json.decode(body, type=self.scorer.request_type) for body in self.fraud_bodies]

    # ---- fraud-full ---------------------------------------------------------------------------------------------

    @cached_property
    def full_spec(self) -> Any:
        from benchmarks import library

        return library.full_spec()

    def full_release(self, engine: Literal["onnx", "trees"]) -> Path:
        """fraud-full, packed when first asked for: with trees, decisions have reasons."""
        from benchmarks import library

        release = self.folder / f"{FRAUD_FULL.name}-{engine}"
        return release if release.exists() else library.pack_full(self.folder, self.full_spec, engine=engine)

    @cached_property
    def full_run(self) -> BareRun:
        return BareRun(models.gbdt("fraud-full"), "probabilities")

    def full_matrix(
        self, requests: workloads.FullRequests, history: workloads.Values, n: int
    ) -> NDArray[np.float32]:
        """The model's input of requests 0 to n, by the NumPy reference, if they come in this order after `history`."""
        values = reference.full_values(history, requests.values(range(n)))
        return reference.matrix(FRAUD_FULL.columns, values, models.codes(FRAUD_FULL))

    @cached_property
    def lookup_engine(self) -> tuple[Any, Callable[..., Any]]:
        """An engine that fills the stored columns of fraud-full, and the Struct of its requests: three keys."""
        import retailinfer as ri
        from benchmarks import library, tables

        release = library.pack_untrained(self.folder, "lookups", library.lookup_spec())
        now_ns = time.time_ns()
        made = {e: tables.entity_feature_table(e, updated_ns=now_ns) for e in FRAUD_FULL.entities}
        scorer = ri.Scorer.load(release, store=ri.Store(tables=made), trust="unsigned")
        return scorer._live.engine, scorer.request_type

    # ---- trees --------------------------------------------------------------------------------------------------

    def tree_scorer(self, level: str, *, deep: bool = False) -> Any:
        """fraud-lean through the tree kernels of one instruction set. Raises: UnmeasurableError."""
        import retailinfer as ri
        from benchmarks import library

        name = f"{FRAUD_LEAN.name}-deep" if deep else FRAUD_LEAN.name
        release = self.folder / f"{name}-trees"
        if not release.exists():
            library.pack_fraud(
                self.folder, self.fraud_spec, models.gbdt(name), name=release.name, engine="trees"
            )
        return _with_trees(level, lambda: ri.Scorer.load(release, trust="unsigned"))

    def forest_ranker(self, level: str) -> Any:
        """The 40 columns of a ranking through the tree kernels of one instruction set. Raises: UnmeasurableError."""
        import retailinfer as ri
        from benchmarks import library

        release = self.folder / "rank-trees"
        if not release.exists():
            library.pack_rank(
                self.folder,
                release.name,
                library.rank_spec(RANK_GBDT_COLUMNS),
                models.gbdt("rank-gbdt"),
                engine="trees",
            )
        return _with_trees(level, lambda: ri.Ranker.load(release, store=self.items, trust="unsigned"))

    # ---- ranking ------------------------------------------------------------------------------------------------

    @cached_property
    def item_keys(self) -> list[str]:
        return [key.decode() for key in workloads.item_ids()]

    @cached_property
    def rank_run(self) -> BareRun:
        return BareRun(models.mlp(), "score")

    @cached_property
    def tree_run(self) -> BareRun:
        return BareRun(models.gbdt("rank-gbdt"), "probabilities")

    @cached_property
    def items(self) -> Any:
        """A store with the item table."""
        import retailinfer as ri
        from benchmarks import tables

        return ri.Store(tables={"item": tables.item_snapshot()})

    @cached_property
    def ranker(self) -> Any:
        return self._ranker("rank", RANK.columns, models.mlp())

    @cached_property
    def tree_ranker(self) -> Any:
        return self._ranker("rank-gbdt", RANK_GBDT_COLUMNS, models.gbdt("rank-gbdt"))

    def _ranker(self, name: str, columns: Sequence[workloads.ColumnDef], model: bytes) -> Any:
        import retailinfer as ri
        from benchmarks import library

        release = library.pack_rank(self.folder, name, library.rank_spec(columns), model)
        return ri.Ranker.load(release, store=self.items, trust="unsigned")


def _with_trees(level: str, load: Callable[[], Any]) -> Any:
    """Load with the kernels of one instruction set. Raises: UnmeasurableError where this machine has none."""
    from retailinfer._native.trees import levels

    if level not in levels():
        raise UnmeasurableError(f"needs a CPU with {level}")
    before = os.environ.get("RETAILINFER_TREES")
    os.environ["RETAILINFER_TREES"] = level
    try:
        return load()
    finally:
        if before is None:
            del os.environ["RETAILINFER_TREES"]
        else:
            os.environ["RETAILINFER_TREES"] = before


@dataclass(frozen=True)
class Measure:
    """A group of figures that are measured together."""

    name: str
    figures: tuple[str, ...]
    run: Callable[[Lab], Figures]


MEASURES: list[Measure] = []


def measures(*figures: str) -> Callable[[Callable[[Lab], Figures]], Callable[[Lab], Figures]]:
    """Register a function as what measures these figures."""

    def register(function: Callable[[Lab], Figures]) -> Callable[[Lab], Figures]:
        MEASURES.append(Measure(function.__name__, figures, function))
        return function

    return register
