"""Latency, int8 and memory on this CPU, held against the contract, the other release, and what was recorded when packing.

Rules:
  * Calls are whole ones, JSON bytes to JSON bytes, with requests made of golden rows, in alternating rounds (timing.py).
  * Whether int8 is a win is seen beside the float32 model, where it is given; else only whether it is faster here than
    float32 was where the release was packed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from retailinfer.authoring import samples
from retailinfer.authoring.check_bounds import Bound, Findings
from retailinfer.authoring.footprint import footprint_mb
from retailinfer.authoring.timing import QUANTILES, calls_that_fit, measure, quantiles_us
from retailinfer.errors import ConfigError, ModelError, ServingError
from retailinfer.features.canonical import Columns
from retailinfer.features.program import slot_names
from retailinfer.features.transform import fill
from retailinfer.release.golden import cpu_class
from retailinfer.release.report import Chart, Check
from retailinfer.runtime.session import open_session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retailinfer.authoring.loading import Loaded
    from retailinfer.contracts import Contract

__all__ = ["check_int8", "check_latency", "check_memory"]

STAGES = ("decode", "resolve", "fill", "run", "decide", "encode")  # as the engine tells them
CALLS = (40, 20_000)
DISTINCT = 500
Bounds = Mapping[str, Bound]


# ---- latency ---------------------------------------------------------------------------------------------------------


def check_latency(
    new: Loaded, old: Loaded | None, contract: Contract, seconds: float, bounds: Bounds
) -> Check:
    """Quantiles of whole calls against what the contract promises, and the median against the other release's."""
    found = Findings("latency", bounds)
    try:
        call, source = _call(new)
    except ConfigError as exc:
        return found.not_applicable(f"no request to time it with: {exc}")
    contestants, parts = [call], [0]
    staged = _staged(new) if contract.stages_ms else None
    if staged is not None:
        contestants, parts = [*contestants, staged], [*parts, len(STAGES)]
    other = None
    if old is not None:
        try:
            other, _ = _call(old)
            contestants, parts = [*contestants, other], [*parts, 0]
        except ConfigError as exc:
            found.notes.append(f"the other release was not timed: {exc}")
    n = calls_that_fit(contestants, seconds, low=CALLS[0], high=CALLS[1])
    times = measure(contestants, n, parts=parts)
    whole = quantiles_us(times[0].ns)
    found.figures |= {"calls": int(times[0].ns.size), "us": whole, "requests": source}
    promised = {
        "p50": contract.p50_ms,
        "p95": contract.p95_ms,
        "p99": contract.p99_ms,
        "p99.9": contract.deadline_ms,
    }
    limits = {name: ms for name, ms in promised.items() if ms is not None}
    found.figures["promised_ms"] = limits
    for name, ms in limits.items():
        if whole[name] > ms * 1e3:
            what = "the deadline, which 999 of 1,000 calls keep," if name == "p99.9" else name
            found.fail(f"{what} is {ms:g} ms by contract, {whole[name] / 1e3:.3g} ms here")
    if staged is not None:
        _held_stages(found, times[1].ns, contract)
    if contract.throughput is not None:
        able = 1e9 / float(times[0].ns.mean())
        found.figures["throughput"] = able
        if able < contract.throughput:
            found.fail(
                f"one thread answers {able:,.0f} requests a second, the contract says {contract.throughput:,.0f}"
            )
    if not limits and not contract.stages_ms and contract.throughput is None:
        found.notes.append("the contract promises no latency")
    text = f"p50 {_ms(whole['p50'])}, p99 {_ms(whole['p99'])}, over {times[0].ns.size:,} calls"
    series = {"this": [whole[q] for q in QUANTILES]}
    if other is not None:
        before = quantiles_us(times[-1].ns)
        found.figures["us_other"] = before
        series["other"] = [before[q] for q in QUANTILES]
        found.figures["slower"] = ratio = float(np.median(times[0].rounds_us() / times[-1].rounds_us()))
        found.hold("slower", ratio, "median time over that of the other release")
        text += f", {ratio:.2f} times the other release's"
    found.charts.append(Chart(title="Whole calls, microseconds", labels=list(QUANTILES), series=series))
    return found.verdict(text)


def _ms(us: float) -> str:
    return f"{us:.1f} us" if us < 1e3 else f"{us / 1e3:.2f} ms"


def _call(loaded: Loaded) -> tuple[Callable[[int], Any], str]:
    """A call by its number. Raises: ConfigError when no request can be made."""
    door: Any = loaded.door
    if loaded.pipeline.spec.arrays:
        feeds = samples.of_arrays(loaded)
        return lambda i: door.score_arrays(feeds[i % len(feeds)]), "golden arrays"
    if loaded.bundle.manifest.score is None:
        raise ConfigError("the release has no score")
    sample = samples.of_golden(loaded, n=DISTINCT)
    bodies = sample.bodies
    call = door.rank_json if loaded.ranks else door.score_json
    return lambda i: call(bodies[i % len(bodies)]), f"{sample.n_distinct} made of golden rows"


def _staged(loaded: Loaded) -> Callable[[int], Any] | None:
    if loaded.pipeline.spec.arrays or loaded.bundle.manifest.score is None:
        return None
    engine = loaded.pipeline.need_engine()
    bodies = samples.of_golden(loaded, n=DISTINCT).bodies
    call: Any = engine.rank_json_staged if loaded.ranks else partial(engine.score_json_staged, inner=False)
    return lambda i: call(bodies[i % len(bodies)])


def _held_stages(found: Findings, ns: NDArray[np.int64], contract: Contract) -> None:
    stages = {name: quantiles_us(ns[:, :, k]) for k, name in enumerate(STAGES)}
    found.figures["stages_us"] = stages
    for name, ms in contract.stages_ms.items():
        if name in stages and stages[name]["p99"] > ms * 1e3:
            found.fail(f"p99 of {name} is {ms:g} ms by contract, {stages[name]['p99'] / 1e3:.3g} ms here")


# ---- int8 ------------------------------------------------------------------------------------------------------------


def check_int8(new: Loaded, floats: Mapping[str, bytes], bounds: Bounds) -> Check:
    """Whether the win that quantising was kept for is there on this CPU.

    Args:
        floats: role -> the float32 model (ONNX bytes) that the release was quantised from.
    """
    found = Findings("quantisation", bounds)
    manifest = new.bundle.manifest
    quantized = {model.role: model for model in manifest.models if model.quantized != "none"}
    if not quantized:
        return found.not_applicable("no model is quantised")
    here = cpu_class()
    if manifest.machine.cpu != here:
        found.warn(f"it was quantised on the CPU class {manifest.machine.cpu}, this is {here}")
    ratios: list[float] = []
    for role in quantized:
        trials = {one.method: one for one in manifest.quantization.trials if one.role == role}
        kept = next((one for one in trials.values() if one.kept), None)
        then = trials.get("none")
        if kept is None or then is None or not then.times_us:
            found.warn(f"{role}: the manifest records no comparison with float32")
            continue
        recorded = _geometric(
            [kept.times_us[b] / then.times_us[b] for b in then.times_us if b in kept.times_us]
        )
        feeds = _feeds(new, role)
        if feeds is None:
            found.warn(
                f"{role}: it reads another model's output, or there are no golden rows; it was not timed here"
            )
            continue
        measured = _time_int8(
            new, role, floats.get(role), feeds, {b: then.times_us[b] for b in then.times_us}
        )
        ratio = _geometric(measured)
        beside = "float32 beside it" if role in floats else "float32 where it was packed"
        found.figures[role] = {"recorded": recorded, "here": ratio, "against": beside}
        found.hold(
            "int8", ratio, f"{role}: time over that of {beside}; recorded was {recorded:.2f}", only_warn=True
        )
        ratios.append(ratio)
        if role not in floats:
            found.notes.append(
                f"{role}: only float32 itself, float_model=, shows what int8 saves on this CPU"
            )
    if not ratios:
        return found.verdict("nothing could be timed")
    return found.verdict(f"{', '.join(f'{ratio:.2f}' for ratio in ratios)} of the time of float32")


def _geometric(ratios: list[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else float("nan")


def _feeds(loaded: Loaded, role: str) -> dict[str, NDArray[Any]] | None:
    """The inputs of one model for the golden rows; None where it reads what an earlier model answers."""
    manifest, golden, pipeline = loaded.bundle.manifest, loaded.golden, loaded.pipeline
    model = next(one for one in manifest.models if one.role == role)
    if golden is None or any(source.kind == "output" for source in model.inputs.values()):
        return None
    if golden.arrays:
        made = golden.feeds()
        return {name: made[source.name] for name, source in model.inputs.items()}
    assert pipeline.program is not None
    body = pipeline.spec.body
    slots = slot_names(body)
    states = golden.state_arrays({*body.stored, *body.windows})
    rows = Columns.of_slots(golden.n_rows, slots, golden.canonical(slots), states)
    outs, masks, _ = fill(pipeline.program, body, rows, now_ns=golden.now_ns)
    arrays: dict[tuple[str, str], NDArray[Any]] = {}
    for source, is_mask, number, shape in pipeline.inputs:
        tensor = masks[number] if is_mask else outs[number]
        assert tensor is not None
        arrays[source.kind, source.name] = tensor.reshape(-1, *shape)
    return {name: arrays[source.kind, source.name] for name, source in model.inputs.items()}


def _time_int8(
    loaded: Loaded,
    role: str,
    plain: bytes | None,
    feeds: dict[str, NDArray[Any]],
    recorded_us: Mapping[str, float],
) -> list[float]:
    """Batch size -> time of int8 over that of float32."""
    session = loaded.pipeline.sessions[role]
    beside = None if plain is None else open_session(plain)
    ratios = []
    for size, then_us in recorded_us.items():
        wanted = max(1, min(int(size), 4096))
        batch = {name: np.resize(a, (wanted, *a.shape[1:])) for name, a in feeds.items()}
        contestants: list[Callable[[int], Any]] = [lambda _, b=batch: session.run(b)]  # type: ignore[misc]
        if beside is not None:
            contestants.append(lambda _, b=batch, s=beside: s.run(b))  # type: ignore[misc]
        times = measure(contestants, calls_that_fit(contestants, 0.3, low=CALLS[0], high=2_000))
        if beside is not None:
            ratios.append(float(np.median(times[0].rounds_us() / times[1].rounds_us())))
        else:
            ratios.append(float(np.median(times[0].ns) / 1e3 / then_us))
    return ratios


# ---- memory ----------------------------------------------------------------------------------------------------------


def check_memory(new: Loaded, old: Loaded | None, bounds: Bounds) -> Check:
    """What the release adds to a fresh process, against a bound and the other release."""
    found = Findings("memory", bounds)
    try:
        found.figures["mb"] = mine = footprint_mb(new.bundle)
        found.figures["files_mb"] = sum(entry.size for entry in new.bundle.manifest.files) / 1e6
        found.hold("memory_mb", mine, "MB that it adds to a process")
        text = f"{mine:.1f} MB added to a process"
        if old is not None:
            found.figures["mb_other"] = other = footprint_mb(old.bundle)
            text += f", {other:.1f} MB by the other release"
            found.hold(
                "larger", (mine + ROUND_MB) / (other + ROUND_MB), "memory over that with the other release"
            )
    except (ModelError, ServingError) as exc:
        found.warn(str(exc))
        return found.verdict("memory was not measured")
    return found.verdict(text)


ROUND_MB = 4.0  # an allocator's whims: less than this is no difference
