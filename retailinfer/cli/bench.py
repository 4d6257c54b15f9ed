"""`retailinfer bench`: a release timed on the user's machine, beside a bare run of its models.

Rules:
  * Answers are compared with the bare run's before the clock starts: a fast wrong answer is not a result.
  * The ratio is taken within rounds: median and worst. Quantiles are over all calls.
How time is taken: timing.py. Where requests come from: samples.py.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from retailinfer.authoring import samples
from retailinfer.authoring.loading import Loaded, load
from retailinfer.authoring.timing import QUANTILES, Times, calls_that_fit, measure, quantiles_us
from retailinfer.cli.console import Console, columns_text
from retailinfer.cli.tables import read_store
from retailinfer.errors import ConfigError, ScoreError, clip
from retailinfer.release.golden import cpu_class

if TYPE_CHECKING:
    from retailinfer.contracts import Contract

__all__ = ["Limit", "limits_of", "run"]

SECONDS = 6.0
CALLS = (200, 20_000)  # at least, at most, where --n does not say
FEW_CALLS = 5_000
FEED_BYTES = 64 << 20  # of the bare run's inputs, which are all made beforehand
STAGES = ("decode", "resolve", "fill", "run", "decide", "encode")  # as the engine tells them
BARE = {  # engine -> what is called for the bare run
    "onnx": "Python's InferenceSession.run of the model alone",
    "trees": "the forest alone, called from Python",
}
INNER = ("tables", "windows")  # what `resolve` is made of, where a release looks up more than snapshots


@dataclass(frozen=True)
class Limit:
    """`--fail-if`: a figure and the largest value that passes. `stage` None: the whole call."""

    name: str
    stage: str | None
    quantile: str  # "p99", or "ratio"
    limit_us: float  # microseconds, or the ratio

    def value(self, found: dict[str, Any]) -> float:
        """The measured figure, in the unit of the limit. Raises: ConfigError for a stage that is not there."""
        if self.quantile == "ratio":
            return float(found["ratio"]["median"])
        if self.stage is None:
            return float(found["whole_us"][self.quantile])
        stages = found["stages_us"]
        if self.stage not in stages:
            raise ConfigError(
                f"--fail-if {self.name}: this release has no stage `{self.stage}`",
                hint=f"it has {', '.join(stages) or 'none'}",
            )
        return float(stages[self.stage][self.quantile])


def run(options: argparse.Namespace, console: Console) -> int:
    """Load, compare, time, judge. 1 when a limit was exceeded. Raises: BundleError, ConfigError, ScoreError."""
    limits_of(options.fail_if, None)  # a misspelt limit is said before anything is timed
    store = read_store(options.store)
    console.step(f"loading {options.release}")
    loaded = load(options.release, store=store)
    limits = limits_of(options.fail_if, loaded.pipeline.contract)
    console.step("making requests and comparing answers with a bare run")
    from retailinfer.cli.bare import BareRun

    bare = BareRun(loaded.bundle)
    if loaded.pipeline.spec.arrays:
        found = _arrays(loaded, bare, options, console)
    else:
        found = _requests(loaded, bare, options, console)
    found["limits"] = judged = [_judge(limit, found) for limit in limits]
    loaded.door.close()
    console.emit(found)
    _show(console, found)
    exceeded = [one for one in judged if not one["kept"]]
    for one in exceeded:
        console.say(f"FAILED: {one['name']}: {_figure(one['value'])} is more than {_figure(one['limit'])}")
    return 1 if exceeded else 0


# ---- limits ----------------------------------------------------------------------------------------------------------

_LIMIT = re.compile(r"(?:([a-z_]+)\.)?(p50|p95|p99\.9|p999|p99)_(us|ms)=([0-9.eE+-]+)")


def limits_of(given: Sequence[str], contract: Contract | None) -> list[Limit]:
    """What `--fail-if` means. `contract` None: look at the texts only. Raises: ConfigError."""
    found: list[Limit] = []
    for text in given:
        if text == "contract":
            if contract is not None:
                found += _promised(contract)
            continue
        match = _LIMIT.fullmatch(text)
        ratio = re.fullmatch(r"ratio=([0-9.eE+-]+)", text)
        try:
            if ratio is not None:
                found.append(Limit("ratio", None, "ratio", _number(ratio[1])))
                continue
            if match is not None:
                quantile = {"p999": "p99.9"}.get(match[2], match[2])
                factor = 1e3 if match[3] == "ms" else 1.0
                found.append(Limit(text.partition("=")[0], match[1], quantile, _number(match[4]) * factor))
                continue
        except ValueError:
            pass
        raise ConfigError(
            f"Expected --fail-if NAME=LIMIT, got {clip(text, 80)}",
            hint="as in p99_ms=2, run.p50_us=20, ratio=1.3, or `contract`",
        )
    return found


def _promised(contract: Contract) -> list[Limit]:
    """What the contract promises of time: of 1,000 calls 999 are within the deadline, of 100 of a stage 99 in its budget."""
    whole = {"p50": contract.p50_ms, "p95": contract.p95_ms, "p99": contract.p99_ms}
    found = [Limit(f"{q}_ms", None, q, ms * 1e3) for q, ms in whole.items() if ms is not None]
    if contract.deadline_ms is not None:
        found.append(Limit("deadline_ms", None, "p99.9", contract.deadline_ms * 1e3))
    for stage, ms in contract.stages_ms.items():
        if stage in STAGES:  # others, such as "remote", are nothing that can be timed here
            found.append(Limit(f"{stage}.p99_ms", stage, "p99", ms * 1e3))
    if not found:
        raise ConfigError(
            "--fail-if contract: the release's contract promises no latency",
            hint="pack it with contract=ri.Contract(p99_ms=...)",
        )
    return found


def _number(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(text)
    return value


def _judge(limit: Limit, found: dict[str, Any]) -> dict[str, Any]:
    factor = 1e3 if limit.name.endswith("_ms") else 1.0
    value = limit.value(found)
    return {
        "name": limit.name,
        "limit": limit.limit_us / factor,
        "value": value / factor,
        "kept": value <= limit.limit_us,
    }


# ---- requests --------------------------------------------------------------------------------------------------------


def _requests(loaded: Loaded, bare: Any, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    if options.requests is not None:
        sample = samples.of_file(loaded, options.requests)
    else:
        sample = samples.of_golden(loaded, candidates=options.candidates)
    engine = loaded.pipeline.need_engine()
    bodies = sample.bodies
    prepared, rows = _bare_inputs(loaded, bare, bodies)
    answers = _compare(loaded, bare, bodies, prepared)
    door: Any = loaded.door
    call = door.rank_json if loaded.ranks else door.score_json
    names = STAGES if loaded.ranks or engine.resolver is None else (*STAGES, *INNER)
    staged: Any = engine.rank_json_staged
    if not loaded.ranks:
        staged = partial(engine.score_json_staged, inner=len(names) > len(STAGES))
    n_bodies, n_prepared = len(bodies), len(prepared)
    contestants = [
        lambda i: call(bodies[i % n_bodies]),
        lambda i: staged(bodies[i % n_bodies]),
        lambda i: bare(prepared[i % n_prepared]),
    ]
    n = options.n or calls_that_fit(contestants, SECONDS, low=CALLS[0], high=CALLS[1])
    console.step(f"timing {n:,} calls of each")
    whole, parts, alone = measure(contestants, n, parts=[0, len(names), 0], say=console.later)
    return _result(loaded, bare, whole, alone, "rank_json" if loaded.ranks else "score_json") | {
        "stages_us": {name: quantiles_us(parts.ns[:, :, k]) for k, name in enumerate(names)},
        "requests": {
            "source": sample.source,
            "distinct": sample.n_distinct,
            "refused": sample.n_refused,
            "rows": rows,
            "tables": "stand-ins" if loaded.stands_in else "given" if loaded.store is not None else "none",
        },
        "answers": answers,
    }


def _bare_inputs(loaded: Loaded, bare: Any, bodies: Sequence[bytes]) -> tuple[list[Any], float]:
    """What the models get for each request, made by the engine itself; and the mean number of rows."""
    prepared: list[Any] = []
    n_rows = size = 0
    for body in bodies:
        arrays = _tensors(loaded, body)
        prepared.append(bare.prepare(arrays))
        n_rows += max(len(a) for a in arrays.values())
        size += sum(a.nbytes for a in arrays.values())
        if size > FEED_BYTES:
            break
    return prepared, n_rows / len(prepared)


def _tensors(loaded: Loaded, body: bytes) -> dict[tuple[str, str], Any]:
    engine, pipeline = loaded.pipeline.need_engine(), loaded.pipeline
    request: Any = msgspec.json.decode(body, type=pipeline.request_type)
    if not loaded.ranks:
        arrays, _ = engine.tensors([request])
    else:
        gone = set(request.exclude)
        ids = [one for one in dict.fromkeys(msgspec.json.decode(request.candidates)) if one not in gone]
        parts = [
            engine.tensors_ranking(request.context, ids[i : i + 512])[0]
            for i in range(0, max(len(ids), 1), 512)
        ]
        # a tensor of the context has one row whatever the candidates are
        arrays = [
            some[0] if source_is_context else np.concatenate(some)
            for some, source_is_context in zip(zip(*parts, strict=True), _context_inputs(loaded), strict=True)
        ]
    return {
        (source.kind, source.name): _shaped(array, shape)
        for array, (source, _, _, shape) in zip(arrays, pipeline.inputs, strict=True)
    }


def _context_inputs(loaded: Loaded) -> list[bool]:
    program = loaded.pipeline.program
    assert program is not None
    return [bool(program.tensors[number][3]) for _, _, number, _ in loaded.pipeline.inputs]


def _shaped(array: Any, shape: Sequence[int]) -> Any:
    return np.ascontiguousarray(array).reshape(-1, *shape)


def _compare(loaded: Loaded, bare: Any, bodies: Sequence[bytes], prepared: Sequence[Any]) -> dict[str, Any]:
    """Every score of the library beside the bare run's. Raises: ScoreError when they are not the same score."""
    worst, same, n = 0.0, True, 0
    for body, inputs in zip(bodies, prepared, strict=False):
        answer = msgspec.json.decode(samples.answer(loaded, body))
        expected = bare.scores(inputs)
        if loaded.ranks:
            got = np.array(answer["scores"], np.float32)
            expected = -np.sort(-expected, kind="stable")[: len(got)]
        else:
            got = np.array([answer["score"]], np.float32)
        same = same and got.tobytes() == expected.tobytes()
        worst = max(worst, float(np.abs(got.astype(np.float64) - expected).max(initial=0.0)))
        n += len(got)
    tolerance = loaded.pipeline.manifest.tolerance
    allowed = tolerance.golden if loaded.pipeline.row_independent else tolerance.score
    if worst > allowed:
        raise ScoreError(
            f"the scores of {n} rows differ from a bare run's by up to {worst:.3g}, more than {allowed:g}",
            hint="this should not happen; please report it with the release's manifest",
        )
    return {"compared": n, "same_bits": same, "max_difference": worst}


# ---- arrays ----------------------------------------------------------------------------------------------------------


def _arrays(loaded: Loaded, bare: Any, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    if options.requests is not None:
        raise ConfigError("this release takes arrays, which --requests cannot hold", hint="leave it out")
    feeds = samples.of_arrays(loaded)
    door: Any = loaded.door
    prepared = [bare.prepare({("array", name): array for name, array in feed.items()}) for feed in feeds]
    for feed, inputs in zip(feeds, prepared, strict=True):
        outputs, expected = door.score_arrays(feed), bare(inputs)
        found = list(outputs.values())[-len(expected) :]
        if loaded.pipeline.manifest.score is None and any(
            not np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
            for a, b in zip(found, expected, strict=True)
        ):
            raise ScoreError(
                "an output differs from a bare run's", hint="this should not happen; please report it"
            )
    n_feeds = len(feeds)
    contestants = [lambda i: door.score_arrays(feeds[i % n_feeds]), lambda i: bare(prepared[i % n_feeds])]
    n = options.n or calls_that_fit(contestants, SECONDS, low=CALLS[0], high=CALLS[1])
    console.step(f"timing {n:,} calls of each")
    whole, alone = measure(contestants, n, say=console.later)
    return _result(loaded, bare, whole, alone, "score_arrays") | {
        "stages_us": {},
        "requests": {"source": "golden rows", "distinct": n_feeds, "refused": 0, "rows": 1, "tables": "none"},
        "answers": {"compared": n_feeds, "same_bits": True, "max_difference": 0.0},
    }


# ---- what is told ----------------------------------------------------------------------------------------------------


def _result(loaded: Loaded, bare: Any, whole: Times, alone: Times, call: str) -> dict[str, Any]:
    ratios = whole.rounds_us() / alone.rounds_us()
    return {
        "release": loaded.pipeline.manifest.release,
        "digest": loaded.pipeline.manifest.digest,
        "call": call,
        "calls": int(whole.ns.size),
        "whole_us": quantiles_us(whole.ns),
        "bare_us": quantiles_us(alone.ns),
        "ratio": {
            "median": float(np.median(ratios)),
            "worst": float(ratios.max()),
            "rounds": [float(r) for r in ratios],
        },
        "machine": {"cpu": cpu_class(), "onnxruntime": bare.version},
        "bare": [BARE[engine] for engine in bare.engines],
    }


def _show(console: Console, found: dict[str, Any]) -> None:
    requests, answers = found["requests"], found["answers"]
    console.say(f"{found['release']}: {found['call']}, {found['calls']:,} calls in rotation")
    rows = f", {requests['rows']:.0f} rows each" if requests["rows"] > 1 else ""
    left = f", {requests['refused']} refused and left out" if requests["refused"] else ""
    console.say(f"  requests  {requests['distinct']:,} different ones from {requests['source']}{rows}{left}")
    if requests["tables"] == "stand-ins":
        console.say("  tables    made of golden rows; --store NAME=FILE:KEY times yours")
    bits = "the same bits as" if answers["same_bits"] else f"within {answers['max_difference']:.2g} of"
    console.say(f"  answers   {answers['compared']:,} scores compared: {bits} a bare run's")
    if found["calls"] < FEW_CALLS:
        console.say("  note      p99.9 of so few calls is little more than the slowest one")
    if requests["distinct"] < 100:
        console.say("  note      so few inputs are learned by the processor: figures come out too good")
    console.say()
    lines: list[tuple[str, ...]] = [("microseconds", *QUANTILES)]
    lines.append(("whole call", *(_figure(found["whole_us"][q]) for q in QUANTILES)))
    for name, us in found["stages_us"].items():
        shown = f"  of resolve: {name}" if name in INNER else f"  {name}"
        lines.append((shown, *(_figure(us[q]) for q in QUANTILES)))
    lines.append(("bare run", *(_figure(found["bare_us"][q]) for q in QUANTILES)))
    for line in columns_text(lines, right=(1, 2, 3, 4)):
        console.say(f"  {line}")
    ratio = found["ratio"]
    console.say()
    console.say(f"  a bare run is {' and '.join(found['bare'])}")
    console.say(
        f"  {ratio['median']:.2f} times a bare run (p50 over p50, median of the rounds; worst round {ratio['worst']:.2f})"
    )
    for one in found["limits"]:
        state = "kept" if one["kept"] else "EXCEEDED"
        console.say(f"  limit {one['name']} <= {_figure(one['limit'])}: {_figure(one['value'])}, {state}")


def _figure(value: float) -> str:
    return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"
