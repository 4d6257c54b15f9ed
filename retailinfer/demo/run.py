"""The order of the demo: data, features, models, releases, replay, report.

Rules:
  * Everything is written below one folder: releases, the report, and a cache of what is slow to prepare. Libraries that
    would keep caches in the home directory are given a place there too.
  * The cache is named after the code, settings and libraries that made it, so what is stale is not found.
  * A line is printed when a step begins; every step over a second has one.
What is shown at the end, and which promises are checked: `report.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

import retailinfer as ri
from retailinfer.demo import NEEDED, fraud, grocery, payments, recommend, replay
from retailinfer.demo.bare import BareRun
from retailinfer.demo.metrics import recall_by_group
from retailinfer.demo.past import Past
from retailinfer.demo.report import (
    Declined,
    FraudResult,
    RecommendResult,
    Results,
    html_page,
    terminal_summary,
)
from retailinfer.errors import ConfigError

__all__ = ["Outcome", "run"]

LOOKED_AT = 0.01  # share of payments that people can look at
SHOWN = 5  # declined payments in the report, with their reasons


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What came out, and where the report lies."""

    results: Results
    report: Path

    @property
    def kept(self) -> bool:
        """Every promise was kept."""
        return all(promise.kept for promise in self.results.promises())


class Demo:
    """One run: where it writes, what it says, how long its steps take."""

    def __init__(self, out: Path, *, short: bool, say: Callable[[str], None]) -> None:
        self.out = out
        self.short = short
        self.seconds: dict[str, float] = {}
        self._say = say
        self._started = perf_counter()

    @contextlib.contextmanager
    def own_caches(self) -> Iterator[None]:
        """Keep matplotlib's list of fonts below `out`; it asks for the place once, when it is first used."""
        before = os.environ.get("MPLCONFIGDIR")
        place = self.out / "cache" / "matplotlib"
        place.mkdir(parents=True, exist_ok=True)
        os.environ["MPLCONFIGDIR"] = str(place.resolve())
        try:
            yield
        finally:
            if before is None:
                del os.environ["MPLCONFIGDIR"]
            else:
                os.environ["MPLCONFIGDIR"] = before

    def note(self, text: str) -> None:
        """A line with the seconds since the start."""
        self._say(f"{perf_counter() - self._started:6.1f} s  {text}")

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Say that a step begins, and keep how long it took."""
        self.note(name)
        start = perf_counter()
        yield
        self.seconds[name] = perf_counter() - start

    def cached(self, name: str, made_of: Sequence[object], make: Callable[[], pa.Table]) -> pa.Table:
        """A table out of the cache, or made and kept."""
        digest = hashlib.sha256()
        for part in (*made_of, version("numpy"), version("pyarrow")):
            digest.update(repr(part).encode())
        path = self.out / "cache" / f"{name}-{digest.hexdigest()[:16]}.parquet"
        if path.exists():
            self.note(f"{name} comes from {path}")
            return pq.read_table(path)
        table = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f"{name}-*.parquet"):
            stale.unlink()
        part_path = path.with_suffix(".part")
        pq.write_table(table, part_path, compression="zstd")
        part_path.rename(path)  # a run that is stopped half-way leaves no half table
        return table

    def release_folder(self, name: str) -> Path:
        """An empty place for a release."""
        path = self.out / "releases" / name
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def run(
    out_dir: str | os.PathLike[str] = "build/demo",
    *,
    short: bool = False,
    say: Callable[[str], None] = print,
    show: Callable[[str], None] = print,
) -> Outcome:
    """The whole demo. Some two minutes on two cores; `short` takes fewer days and weeks, and some twenty seconds.

    Args:
        out_dir: gets `report.html`, `results.json`, `releases/` and `cache/`.
        say: takes the lines of progress.
        show: takes the summary at the end.
    Raises: ConfigError when a package is missing.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f"the demo needs {', '.join(missing)}", hint="pip install 'retailinfer[demo]'")
    demo = Demo(Path(out_dir), short=short, say=say)
    demo.out.mkdir(parents=True, exist_ok=True)
    recommend_result = _recommend(demo)
    fraud_result = _fraud(demo)
    results = Results(fraud_result, recommend_result, _machine(), demo.seconds, short=short)
    report = demo.out / "report.html"
    with demo.step("writing the report"), demo.own_caches():
        report.write_text(html_page(results), encoding="utf-8")
        (demo.out / "results.json").write_text(
            json.dumps(figures(results), indent=2) + "\n", encoding="utf-8"
        )
    show(terminal_summary(results))
    show(f"Report: {report}    all in {sum(demo.seconds.values()):.0f} s")
    return Outcome(results, report)


# --- recommendations --------------------------------------------------------------------------------------------------


def _recommend(demo: Demo) -> RecommendResult:
    n_weeks = 2 if demo.short else 8
    with demo.step("groceries: reading 1.47 million purchases"):
        purchases = grocery.load()

    def prepare() -> pa.Table:
        rows, label, weight = recommend.training_rows(
            purchases, n_weeks=n_weeks, say=lambda text: demo.note(f"groceries: {text}")
        )
        return rows.append_column("label", pa.array(label)).append_column("weight", pa.array(weight))

    with demo.step("groceries: training rows, each week as it was when it began"):
        made_of = (n_weeks, _source("grocery.py"), _source("recommend.py"))
        rows = demo.cached("grocery-rows", made_of, prepare)
    label = rows["label"].to_numpy(zero_copy_only=False)
    weight = rows["weight"].to_numpy()
    rows = rows.drop_columns(["label", "weight"])
    with demo.step(f"groceries: fitting features and a neural network to {rows.num_rows:,} rows"):
        spec, model = recommend.train(recommend.make_spec(), rows, label, weight)
    with demo.step("groceries: the week held out, 500 candidates a household"):
        week = recommend.held_out_week(purchases, every=2 if demo.short else 1)
        held_out = week.rows()
        matrix = np.asarray(spec.transform(held_out))
        trained = model.predict_proba(matrix)[:, 1].reshape(week.candidates.shape)
        store = _store(week.state.tables())

    with demo.step("groceries: packing the release, static int8"):
        golden = held_out.take(pa.array(np.arange(0, held_out.num_rows, held_out.num_rows // 50)))
        calibration = rows.take(pa.array(np.arange(0, rows.num_rows, max(rows.num_rows // 5_000, 1))))
        folder = demo.release_folder("recommend")
        contract = ri.Contract(max_rows=1_000, batch_sizes=(500,))
        ri.pack(
            "recommend",
            model=model,
            features=spec,
            contract=contract,
            golden=golden,
            calibration=calibration,
            quantize="static",
            out=folder,
        )
        plain = demo.release_folder("recommend-float32")
        ri.pack("recommend-float32", model=model, features=spec, contract=contract, golden=golden, out=plain)
    with demo.step("groceries: loading, verifying, warming up"):
        ranker = ri.Ranker.load(folder, store=store, trust="unsigned")
        ranker_fp32 = ri.Ranker.load(plain, store=store, trust="unsigned")
        bare = BareRun(folder, ranker.manifest)

    ids = purchases.item_ids.to_numpy(zero_copy_only=False)
    names = purchases.household_ids.take(pa.array(week.households)).to_pylist()
    at = dt.datetime.fromtimestamp(week.state.at_s, dt.UTC)
    contexts = [{"household_id": name, "at": at} for name in names]
    candidates = [ids[row].tolist() for row in week.candidates]
    with demo.step(f"groceries: replaying {len(names):,} requests of 500 candidates"):
        bodies = [
            msgspec.json.encode({"context": context, "candidates": some, "k": recommend.K})
            for context, some in zip(contexts, candidates, strict=True)
        ]
        times, answers = replay.replay(
            bodies,
            bare.feeds(matrix, rows=week.candidates.shape[1]),
            call=ranker.rank_json,
            staged=ranker._live.engine.rank_json_staged,  # stages are told by the engine only
            bare=bare,
            rows=week.candidates.shape[1],
        )
    number_of = dict(zip(ids.tolist(), range(len(ids)), strict=True))
    rankings = [msgspec.json.decode(answer) for answer in answers]
    served = np.array([[number_of[item] for item in ranking["items"]] for ranking in rankings])

    with demo.step("groceries: comparing every score with scikit-learn"):
        found = {
            name: np.array(
                [_all_scores(some, context, row) for context, row in zip(contexts, candidates, strict=True)]
            )
            for name, some in (("int8", ranker), ("float32", ranker_fp32))
        }
        parity = {
            name: replay.compare(scores, trained, _first_ten(week, scores), _first_ten(week, trained))
            for name, scores in found.items()
        }
    cells = " - ".join(map(str, (matrix.shape[1], *model.hidden_layer_sizes, 1)))
    return RecommendResult(
        n_purchases=len(purchases.item),
        n_households=purchases.n_households,
        n_train=rows.num_rows,
        quality=recommend.quality(week, served),
        trained_hit_rate=recommend.quality(week, recommend.best(week, trained)).hit_rate,
        replay=times,
        parity=parity["int8"],
        parity_fp32=parity["float32"],
        model=f"scikit-learn MLP {cells}, static int8 through ONNX Runtime",
    )


def _all_scores(ranker: ri.Ranker, context: dict[str, Any], candidates: list[str]) -> list[float]:
    ranking = ranker.rank(context, candidates, len(candidates))
    score_of = dict(zip(ranking.items, ranking.scores, strict=True))
    return [score_of[item] for item in candidates]


def _first_ten(week: recommend.HeldOutWeek, scores: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    return np.sort(recommend.best(week, scores), axis=1)


# --- fraud ------------------------------------------------------------------------------------------------------------


def _fraud(demo: Demo) -> FraudResult:
    config = payments.PaymentsConfig(n_days=60) if demo.short else payments.PaymentsConfig()
    with demo.step(f"payments: simulating {config.n_days} days of {config.n_customers:,} customers"):
        world = payments.generate(config)
    with demo.step("payments: playing history again, each payment as it looked at its moment"):
        data = fraud.prepare(world, held_out_days=7 if demo.short else 21)

    def train(spec: ri.FeatureSpec) -> tuple[ri.FeatureSpec, Any, NDArray[np.float32], NDArray[np.float64]]:
        fitted, booster = fraud.train(spec, data, n_trees=100 if demo.short else 300)
        matrix = np.asarray(fitted.transform(data.held_out))
        return fitted, booster, matrix, np.asarray(booster.predict(matrix, num_threads=1))

    with (
        demo.step(f"payments: LightGBM with and without velocity, {data.train.num_rows:,} rows"),
        ThreadPoolExecutor(2) as pool,
    ):
        both = pool.map(train, (fraud.make_spec(velocity=velocity) for velocity in (True, False)))
        (spec, booster, matrix, trained), (_, _, _, score_without) = both

    with demo.step("payments: packing the release, of trees, and one for ONNX Runtime beside it"):
        n_held_out = data.held_out.num_rows
        pack = functools.partial(
            ri.pack,
            model=booster,
            features=spec,
            contract=ri.Contract(
                deadline_ms=5_000, p99_ms=2
            ),  # one late answer would end the demo, and laptops pause
            golden=data.held_out.take(pa.array(np.arange(0, n_held_out, n_held_out // 50))),
        )
        folder, plain = demo.release_folder("fraud"), demo.release_folder("fraud-onnx")
        pack("fraud", policy=fraud.make_policy(reasons=True), out=folder)
        pack("fraud-onnx", policy=fraud.make_policy(reasons=False), engine="onnx", out=plain)
    with demo.step("payments: loading, verifying, counting what came before the held-out days"):
        served, plain_served = _Served.load(folder, data, spec), _Served.load(plain, data, spec)
        bare = BareRun(plain, plain_served.scorer.manifest)
    with demo.step(f"payments: replaying {n_held_out:,} requests, and the labels that came meanwhile"):
        bodies = _bodies(data.held_out, list(fraud.REQUEST))
        beside = replay.Beside(plain_served.call, plain_served.scorer.score_json, plain_served.before)
        times, answers = replay.replay(
            bodies,
            bare.feeds(matrix),
            call=served.call,
            warm=served.scorer.score_json,
            before=served.before,
            beside=beside,
            staged=served.scorer._live.engine.score_json_staged,
            bare=bare,
            slice_size=1_000,
        )
    with demo.step("payments: comparing every score with LightGBM"):
        decisions = [msgspec.json.decode(answer, type=ri.Decision) for answer in answers]
        score = np.array([decision.score for decision in decisions], np.float32)
        parity = _parity(decisions, trained)
        parity_onnx = _parity([msgspec.json.decode(a, type=ri.Decision) for a in beside.answers], trained)

    scenario = data.held_out["scenario"].to_numpy()
    return FraudResult(
        n_payments=world.payments.num_rows,
        fraud_share=float(pc.mean(world.payments["fraud"]).as_py()),
        n_train=data.train.num_rows,
        with_velocity=fraud.quality(data, score),
        without_velocity=fraud.quality(data, score_without),
        label=data.label,
        score_with=score,
        score_without=score_without,
        found_with=recall_by_group(scenario, score, share=LOOKED_AT),
        found_without=recall_by_group(scenario, score_without, share=LOOKED_AT),
        looked_at=LOOKED_AT,
        replay=times,
        parity=parity,
        parity_onnx=parity_onnx,
        declined=_declined(data.held_out, decisions),
        kernel=_kernel(served.scorer),
        model=f"LightGBM, {booster.num_trees()} trees of at most 31 leaves, {matrix.shape[1]} columns "
        f"({len(fraud.VELOCITY_COLUMNS)} windows), in native kernels for trees",
    )


class _Served:
    """A release with a store, a clock and windows of its own: two of them live through the same days apart."""

    def __init__(self, scorer: ri.Scorer, past: Past) -> None:
        self.scorer = scorer
        self.call = functools.partial(scorer.score_json, observe=True)
        self.before = functools.partial(past.until, scorer)

    @classmethod
    def load(cls, folder: Path, data: fraud.FraudData, spec: ri.FeatureSpec) -> _Served:
        past = Past(data)
        store = _store(data.entities, windows=ri.Windows.memory(clock=past.clock))
        scorer = ri.Scorer.load(folder, store=store, trust="unsigned")
        past.backfill(store, spec)
        return cls(scorer, past)


def _parity(decisions: Sequence[ri.Decision], trained: NDArray[np.float64]) -> replay.Parity:
    """Scores and actions beside those of LightGBM's probabilities, which are compared as float32, as they are served."""
    as_served = trained.astype(np.float32)
    names, thresholds = zip(*fraud.BANDS, strict=True)
    band = np.searchsorted(np.array(thresholds, np.float32), as_served, side="right") - 1
    score = np.array([decision.score for decision in decisions], np.float32)
    actions = np.array([decision.action for decision in decisions])
    return replay.compare(score, as_served, actions, np.array(names)[band])


def _declined(payments: pa.Table, decisions: Sequence[ri.Decision]) -> list[Declined]:
    """Declined payments whose reasons differ, for people to read: for each strongest reason, the first such payment."""
    shown: dict[str, Declined] = {}
    for row, decision in enumerate(decisions):
        if decision.action != "decline" or not decision.reasons or decision.reasons[0].field in shown:
            continue
        (payment,) = payments.slice(row, 1).to_pylist()
        shown[decision.reasons[0].field] = Declined(
            amount=payment["amount"],
            score=decision.score,
            fraud=payment["fraud"],
            reasons=tuple(reason.text or reason.field for reason in decision.reasons),
        )
    return list(shown.values())[:SHOWN]


def _kernel(scorer: ri.Scorer) -> str:
    """What runs one row here."""
    session: Any = next(iter(scorer._live.pipeline.sessions.values()))
    plan = session.model.plan
    return f"{next(iter(plan[min(plan)]))}, {session.model.level}"


def _bodies(table: pa.Table, names: list[str]) -> list[bytes]:
    """Rows as JSON requests."""
    columns = [
        _rfc3339(table[name]) if pa.types.is_timestamp(table[name].type) else table[name].to_pylist()
        for name in names
    ]
    return [msgspec.json.encode(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


# --- both -------------------------------------------------------------------------------------------------------------


def _store(
    tables: dict[str, tuple[pa.Table, tuple[str, ...]]], *, windows: ri.Windows | None = None
) -> ri.Store:
    return ri.Store(
        tables={
            entity: ri.Snapshot.from_arrow(table, key=key[0] if len(key) == 1 else key, name=entity)
            for entity, (table, key) in tables.items()
        },
        windows=windows,
    )


def _rfc3339(moments: Any) -> list[str]:
    texts: list[str] = pc.strftime(moments, "%Y-%m-%dT%H:%M:%SZ").to_pylist()
    return texts


def _source(name: str) -> str:
    return files("retailinfer.demo").joinpath(name).read_text(encoding="utf-8")


def _machine() -> dict[str, str]:
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "CPU": cpu,
        "cores": str(cores),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
        "retailinfer": ri.__version__,
        "measured": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def figures(results: Results) -> dict[str, Any]:
    """The figures of the report for machines."""
    promises = results.promises()
    made: dict[str, Any] = {
        "kept": all(promise.kept for promise in promises),
        "promises": [promise._asdict() for promise in promises],
        "short": results.short,
        "machine": results.machine,
        "seconds": {name: round(seconds, 3) for name, seconds in results.seconds.items()},
    }
    for name, part in (("fraud", results.fraud), ("recommend", results.recommend)):
        times = part.replay
        made[name] = {
            "model": part.model,
            "trained_rows": part.n_train,
            "rows_per_request": times.rows,
            "whole_us": {f"p{q * 100:g}": times.whole_us(q) for q in (0.5, 0.95, 0.99, 0.999)},
            "bare_us": {f"p{q * 100:g}": times.bare_us(q) for q in (0.5, 0.95, 0.99, 0.999)},
            "stages_us": {f"p{q * 100:g}": times.stage_us(q) for q in (0.5, 0.95, 0.99)},
            "of_bare_run": times.ratio,
            "requests": len(times.whole),
            "parity": dataclasses.asdict(part.parity),
        }
    made["fraud"] |= {
        "engine": "trees",
        "kernel": results.fraud.kernel,
        "onnx_us": {f"p{q * 100:g}": results.fraud.replay.beside_us(q) for q in (0.5, 0.95, 0.99, 0.999)},
        "parity_onnx": dataclasses.asdict(results.fraud.parity_onnx),
        "declined": [dataclasses.asdict(one) for one in results.fraud.declined],
        "with_velocity": dataclasses.asdict(results.fraud.with_velocity),
        "without_velocity": dataclasses.asdict(results.fraud.without_velocity),
    }
    made["recommend"] |= {
        "quality": dataclasses.asdict(results.recommend.quality),
        "hit_rate_before_quantising": results.recommend.trained_hit_rate,
        "parity_float32": dataclasses.asdict(results.recommend.parity_fp32),
    }
    return made
