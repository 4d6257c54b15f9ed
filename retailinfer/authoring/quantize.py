"""int8: making the candidates, measuring them, and keeping one only where it is faster and answers alike.

Rules:
  * static = QDQ with one scale per channel of a weight and fixed ranges of activations, calibrated on given rows. The last
    layer stays float32: quantised, it could give no more than 256 different scores.
  * dynamic takes its ranges from the batch that runs, so rows depend on each other: only where the contract says that
    batches have one row.
  * Trees are never quantised: they hold nothing that int8 would make faster, and a moved threshold is another decision.
  * Everything is measured through the sessions that serve, on the batch sizes of the contract, in alternating rounds.
onnxruntime's Python package is imported here (and in runtime/fallback.py) only.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from retailinfer.authoring.golden import actions_of
from retailinfer.authoring.preflight import inspect, require_onnx
from retailinfer.authoring.trial import TILE, Arrays, Trial, n_rows
from retailinfer.errors import ConfigError, ModelError, RetailInferError, clip
from retailinfer.release.golden import cpu_class
from retailinfer.release.manifest import QuantizationReport, QuantizationTrial, Tolerance
from retailinfer.runtime.session import open_session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer.authoring.wiring import Part
    from retailinfer.policy import Policy
    from retailinfer.runtime.session import ModelSession

__all__ = ["METHODS", "Comparison", "check_asked", "choose", "quantize_dynamic", "quantize_static"]

Method = Literal["none", "dynamic", "static"]
METHODS = ("none", "dynamic", "static", "auto")

MIN_ROWS = 16
CALIBRATION_ROWS = 1024
CALIBRATION_BATCH = 64
COMPARED_ROWS = 2048
MIN_WEIGHTS = 256  # below, quantising costs more than it saves
MIN_OPSET = 13  # scales per channel
GAIN = 0.97  # int8 must be at least this much faster, or noise would decide
ROUNDS = 7
ROUND_NS = 4_000_000

WEIGHTED_OPS = ("MatMul", "Gemm", "Conv")
QUANTIZED_OPS = ("MatMul", "Gemm", "Conv", "Relu", "Clip")


@dataclass(frozen=True)
class Comparison:
    """What the candidates are compared on.

    Attributes:
        calibration: tensors that fix the ranges. compared: other rows, whose scores and actions are compared.
        segments: of the compared rows, for the policy. batch_sizes: of the contract.
        relative: differences count in standard deviations of the scores, for scores that are no probabilities.
    """

    calibration: Arrays
    compared: Arrays
    segments: Sequence[str | None]
    batch_sizes: Sequence[int]
    tolerance: Tolerance
    policy: Policy | None
    relative: bool

    @property
    def limit(self) -> float:
        """The largest difference that is accepted."""
        return self.tolerance.relative if self.relative else self.tolerance.score


def check_asked(asked: str, parts: Sequence[Part], batch_sizes: Sequence[int]) -> str | None:
    """Refuse what cannot be done before anything is measured. Returns: why "auto" has nothing to try, or None."""
    if asked == "none":
        return "not asked for"
    able = [part for part in parts if part.graph.n_weights >= MIN_WEIGHTS]
    why = None
    if not able:
        trees = any(part.graph.has_trees for part in parts)
        why = (
            "trees are never quantised"
            if trees
            else f"no model has {MIN_WEIGHTS} weights of MatMul, Gemm or Conv: int8 would cost more than it saves"
        )
        if asked != "auto":
            raise ConfigError(f'quantize="{asked}" has nothing to do: {why}', hint='use quantize="none"')
    if asked == "dynamic" and tuple(batch_sizes) != (1,):
        raise ConfigError(
            f'quantize="dynamic" makes the rows of a batch depend on each other; the contract has batch sizes '
            f"{tuple(batch_sizes)}",
            hint='use quantize="static", or Contract(batch_sizes=(1,))',
        )
    return why


def choose(
    trial: Trial, asked: str, on: Comparison, *, progress: Callable[[str], None] | None = None
) -> tuple[list[Part], QuantizationReport]:
    """Quantise the models of a release as asked.

    Args:
        trial: the models as they are, with the score chosen.
    Returns: the parts to pack, and the report for the manifest.
    """
    say = progress or (lambda _: None)
    n_compared = n_rows(on.compared)
    n_calibration = n_rows(on.calibration)
    if min(n_compared, n_calibration) < MIN_ROWS:
        raise ConfigError(
            f"Expected at least {2 * MIN_ROWS} rows to calibrate and compare, got {n_calibration} and {n_compared}",
            hint="give a larger golden= or calibration= table",
        )
    say(f"quantising: scores of {n_compared} rows before")
    base = trial.scores(on.compared)
    parts = list(trial.parts)
    current = trial
    entries: list[QuantizationTrial] = []
    for at, part in enumerate(trial.parts):
        if part.graph.n_weights < MIN_WEIGHTS:
            continue
        say(f"quantising model `{part.role}`: making and timing candidates")
        kept, made = _choose_one(current, part, asked, on, base)
        entries += made
        if kept is not None:
            parts[at] = kept
            current = current.with_model(part.role, kept.session)
            current.parts[at] = kept
    return parts, QuantizationReport(
        asked=asked,  # type: ignore[arg-type]  # checked by check_asked
        n_calibration_rows=n_calibration,
        n_compared_rows=n_compared,
        trials=tuple(entries),
        why=f"measured on {cpu_class()}",
    )


def _choose_one(
    trial: Trial, part: Part, asked: str, on: Comparison, base: NDArray[np.float32]
) -> tuple[Part | None, list[QuantizationTrial]]:
    methods: list[Method] = [asked] if asked != "auto" else ["static"]  # type: ignore[list-item]
    if asked == "auto" and tuple(on.batch_sizes) == (1,):
        methods.append("dynamic")
    sessions: dict[str, ModelSession] = {"none": part.session}
    made: dict[str, bytes] = {"none": part.graph.data}
    failed: list[QuantizationTrial] = []
    for method in methods:
        try:
            made[method] = (
                quantize_static(part.graph.data, _batches(trial, part, on.calibration))
                if method == "static"
                else quantize_dynamic(part.graph.data)
            )
            sessions[method] = open_session(made[method])
        except (ModelError, RetailInferError) as exc:
            if asked != "auto":
                raise
            failed.append(QuantizationTrial(role=part.role, method=method, why=clip(str(exc), 300)))
    times = _time_all(trial, part, sessions, on)
    entries = [
        _compare(trial, part, method, session, on, base, len(made[method]), times[method])
        for method, session in sessions.items()
    ]
    best, entries = _decide(entries, asked, on.limit, on.tolerance.flips)
    if best.method == "none":
        return None, entries + failed
    method = best.method
    graph = inspect(made[method], where=f"the quantised model `{part.role}`")
    if not np.isfinite(best.max_difference):
        raise ModelError(f"the quantised model `{part.role}` gives scores that are not finite")
    kept = replace(part, graph=graph, session=sessions[method], quantized=method)
    return kept, entries + failed


def _decide(
    entries: Sequence[QuantizationTrial], asked: str, limit: float, max_flips: float
) -> tuple[QuantizationTrial, list[QuantizationTrial]]:
    """The fastest candidate that answers alike (what was asked for by name is taken as it is), and all with a reason."""
    base = entries[0]
    best = base if asked == "auto" else entries[-1]
    reasons = {}
    for entry in entries[1:]:
        ratio = _ratio(entry, base)
        why = f"takes {ratio:.2f} of the time of float32"
        if entry.max_difference > limit or not np.isfinite(entry.max_difference):
            why = f"scores differ by up to {entry.max_difference:.4g}, more than {limit:g}"
        elif entry.flips > max_flips:
            why = f"{entry.flips:.3%} of the actions change, more than {max_flips:.3%}"
        elif ratio > GAIN:
            why += f", at most {GAIN} counts as faster"
        elif asked == "auto" and (best is base or ratio < _ratio(best, base)):
            best = entry
        reasons[entry.method] = why
    judged = [
        msgspec.structs.replace(e, kept=e.method == best.method, why=reasons.get(e.method, ""))
        for e in entries
    ]
    return best, judged


def _ratio(entry: QuantizationTrial, base: QuantizationTrial) -> float:
    """Time over that of float32: the geometric mean over the batch sizes."""
    ratios = [entry.times_us[b] / base.times_us[b] for b in base.times_us]
    return float(np.exp(np.mean(np.log(ratios))))


# ---- comparing -----------------------------------------------------------------------------------------------------


def _compare(
    trial: Trial,
    part: Part,
    method: str,
    session: ModelSession,
    on: Comparison,
    base: NDArray[np.float32],
    size: int,
    times_us: dict[str, float],
) -> QuantizationTrial:
    scores = base
    if method != "none":
        other = trial.with_model(part.role, session)
        scores = other.scores(on.compared, rows_per_run=1 if method == "dynamic" else TILE)
    difference = np.abs(scores.astype(np.float64) - base.astype(np.float64))
    if on.relative:
        difference = difference / max(float(base.astype(np.float64).std()), 1e-12)
    flips = 0.0
    if on.policy is not None and method != "none":
        before, after = (actions_of(on.policy, s, on.segments) for s in (base, scores))
        flips = sum(a != b for a, b in zip(before, after, strict=True)) / len(before)
    return QuantizationTrial(
        role=part.role,
        method=method,  # type: ignore[arg-type]  # one of the three
        size=size,
        times_us=times_us,
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        flips=flips,
    )


def _time_all(
    trial: Trial, part: Part, sessions: Mapping[str, ModelSession], on: Comparison
) -> dict[str, dict[str, float]]:
    """Method -> batch size -> median microseconds of one run, in alternating rounds over rotating rows."""
    found: dict[str, dict[str, float]] = {method: {} for method in sessions}
    outputs = [part.session.outputs[0][0]]
    if trial.score is not None and trial.score.role == part.role:
        outputs = [trial.score.output]
    for size in on.batch_sizes:
        feeds = list(_feeds(trial, part, on.compared, min(size, 4096), 64))
        n_runs = {method: _runs_per_round(session, feeds, outputs) for method, session in sessions.items()}
        rounds: dict[str, list[float]] = {method: [] for method in sessions}
        for _ in range(ROUNDS):
            for method, session in sessions.items():
                rounds[method].append(_one_round(session, feeds, outputs, n_runs[method]))
        for method, times in rounds.items():
            found[method][str(size)] = round(float(np.median(times)) / 1e3, 3)
    return found


def _runs_per_round(session: ModelSession, feeds: Sequence[Any], outputs: list[str]) -> int:
    for feed in feeds[:8]:
        session.run(feed, outputs)
    one = _one_round(session, feeds, outputs, 8)
    return int(min(2000, max(8, ROUND_NS / max(one, 1.0))))


def _one_round(session: ModelSession, feeds: Sequence[Any], outputs: list[str], n_runs: int) -> float:
    """Mean nanoseconds of a run; the rows rotate, because a repeated one teaches the branch predictor its path."""
    n = len(feeds)
    start = time.perf_counter_ns()
    for i in range(n_runs):
        session.run(feeds[i % n], outputs)
    return (time.perf_counter_ns() - start) / n_runs


def _feeds(trial: Trial, part: Part, arrays: Arrays, size: int, n: int) -> Iterator[dict[str, NDArray[Any]]]:
    """`n` different batches of so many rows for one model, inputs from earlier models included."""
    total = n_rows(arrays)
    for i in range(n):
        yield _feed(trial, part, arrays, (np.arange(size) + i * max(1, total // n)) % total)


def _feed(trial: Trial, part: Part, arrays: Arrays, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    picked = trial.pick(arrays, rows)
    return trial.feeds(part, picked, trial.before(part).run(picked))


def _batches(trial: Trial, part: Part, arrays: Arrays) -> list[dict[str, NDArray[Any]]]:
    n = min(n_rows(arrays), CALIBRATION_ROWS)
    return [
        _feed(trial, part, arrays, np.arange(i, min(i + CALIBRATION_BATCH, n)))
        for i in range(0, n, CALIBRATION_BATCH)
    ]


# ---- making --------------------------------------------------------------------------------------------------------


def quantize_static(data: bytes, batches: Sequence[Mapping[str, NDArray[Any]]]) -> bytes:
    """A model with int8 weights and fixed uint8 ranges of activations.

    Args:
        data: an ONNX file. batches: feeds that the ranges are measured on, as production would send them.
    Raises: ModelError when it cannot be quantised, ConfigError without onnxruntime's Python package.
    """
    tools = _tools()

    class Rows(tools.CalibrationDataReader):  # type: ignore[misc,name-defined]  # onnxruntime has no type information
        def __init__(self) -> None:
            self.rest = iter(batches)

        def get_next(self) -> Mapping[str, NDArray[Any]] | None:
            return next(self.rest, None)

    prepared, heads = _prepared(data)
    cpu = cpu_class()
    # Without VNNI, products of uint8 and int8 are added in 16 bits and may saturate: 7-bit weights cannot.
    narrow = "x86_64" in cpu and "vnni" not in cpu
    return _quantized(
        tools.quantize_static,
        prepared,
        Rows(),
        quant_format=tools.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=narrow,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
        op_types_to_quantize=list(QUANTIZED_OPS),
        nodes_to_exclude=heads,
    )


def quantize_dynamic(data: bytes) -> bytes:
    """A model with int8 weights of MatMul and Gemm, whose activations are quantised by the range of each batch."""
    tools = _tools()
    prepared, heads = _prepared(data)
    return _quantized(
        tools.quantize_dynamic,
        prepared,
        per_channel=True,
        weight_type=tools.QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_exclude=heads,
    )


def _tools() -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: later calls do not stop it
    try:
        from onnxruntime import quantization  # noqa: PLC0415 - packing only
    except ImportError as exc:
        raise ConfigError(
            "quantising needs onnxruntime's Python package and `onnx`", hint="pip install 'retailinfer[pack]'"
        ) from exc
    return quantization


def _prepared(data: bytes) -> tuple[Any, list[str]]:
    """The model with named nodes and an operator set that has scales per channel; names of the last layers."""
    onnx = require_onnx()
    model = onnx.load_from_string(data)
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if version < MIN_OPSET:
        try:
            from onnx import version_converter  # noqa: PLC0415 - a part of the optional extra

            model = version_converter.convert_version(model, MIN_OPSET)
        except Exception as exc:  # the converter raises whatever its C++ does
            raise ModelError(
                f"operator set {version} cannot be brought to {MIN_OPSET}: {clip(str(exc), 200)}",
                hint=f"export the model with opset_version={MIN_OPSET} or newer",
            ) from exc
    seen: set[str] = set()
    for i, node in enumerate(model.graph.node):
        while not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}_{i}"
        seen.add(node.name)
    return model, _last_layers(model.graph)


def _last_layers(graph: Any) -> list[str]:
    """Names of the weighted nodes after which no other weighted node comes, on the way to an output."""
    made_by = {output: node for node in graph.node for output in node.output}
    todo = [one.name for one in graph.output]
    seen: set[str] = set()
    found: set[str] = set()
    while todo:
        name = todo.pop()
        node = made_by.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type in WEIGHTED_OPS:
            found.add(node.name)
        else:
            todo.extend(node.input)
    return sorted(found)


def _quantized(function: Callable[..., None], model: Any, *args: Any, **options: Any) -> bytes:
    with TemporaryDirectory(prefix="retailinfer-") as folder, _quiet():
        source, target = Path(folder, "model.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(model.SerializeToString())
        try:
            function(str(source), str(target), *args, **options)
            return target.read_bytes()
        except Exception as exc:  # the quantiser raises whatever its insides raise
            raise ModelError(
                f"the model cannot be quantised: {type(exc).__name__}: {clip(str(exc), 200)}",
                hint='pack it with quantize="none"',
            ) from exc


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser gives advice through the root logger that does not apply here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
