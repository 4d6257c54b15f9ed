"""What was found and measured, as the manifest says it, and writing it down.

Rules:
  * Nothing is decided here.
  * The version of a release is made of the moment and of the content, unless `info` gives one.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from retailinfer.authoring.wiring import Part
from retailinfer.contracts import Contract
from retailinfer.errors import ConfigError, clip
from retailinfer.features.lineage import lineage
from retailinfer.policy import Policy
from retailinfer.release.background import Background, encode_background
from retailinfer.release.bundle import write_bundle
from retailinfer.release.fallback import Fallback
from retailinfer.release.golden import Golden, cpu_class, encode_golden, libm_version
from retailinfer.release.manifest import (
    Info,
    Machine,
    Manifest,
    ModelEntry,
    QuantizationReport,
    Read,
    ScoreRef,
    Tolerance,
)
from retailinfer.runtime.session import onnxruntime_version

if TYPE_CHECKING:
    from retailinfer.features.spec import FeatureSpec

__all__ = ["Found", "Task", "envelope_of", "thresholds_of", "write_release"]

Task = Literal["classification", "regression", "ranking"]


@dataclass
class Found:
    """Everything about a release that packing finds out."""

    parts: list[Part]
    spec: FeatureSpec
    score: ScoreRef | None
    golden: Golden | None
    report: QuantizationReport
    nan_inputs: bool
    row_independent: bool
    row_difference: float | None
    background: Background | None = None


def write_release(
    out: str | os.PathLike[str],
    found: Found,
    *,
    name: str,
    task: Task | None,
    policy: Policy | None,
    contract: Contract,
    fallback: Fallback | None,
    tolerance: Tolerance,
    info: Info,
    redacted: tuple[str, ...],
) -> Manifest:
    """Write the files and the manifest that lists them. Raises: BundleError."""
    spec = found.spec
    files: dict[str, tuple[str, bytes]] = {
        "features.json": ("features", spec.to_json()),
        "contract.json": ("contract", msgspec.json.encode(contract, order="deterministic")),
    }
    if policy is not None:
        files["policy.json"] = ("policy", policy.to_json())
    if fallback is not None:
        files["fallback.json"] = ("fallback", fallback.to_json())
    if spec.baseline is not None:
        files["baseline.json"] = ("baseline", msgspec.json.encode(spec.baseline, order="deterministic"))
    if found.background is not None:
        files["background.msgpack"] = ("background", encode_background(found.background))
    if found.golden is not None:
        files["golden.msgpack"] = ("golden", encode_golden(found.golden))
    for part in found.parts:
        files[_file(part)] = (f"model:{part.role}", part.trees or part.graph.data)
    now = dt.datetime.now(dt.UTC)
    content = hashlib.sha256(
        b"".join(hashlib.sha256(data).digest() for _, (_, data) in sorted(files.items()))
    )
    manifest = Manifest(
        name=name,
        version=info.version or f"{now:%Y%m%d.%H%M%S}-{content.hexdigest()[:8]}",
        task=task or ("arrays" if spec.arrays else _task(found)),
        created=f"{now:%Y-%m-%dT%H:%M:%SZ}",
        files=(),  # write_bundle lists them
        models=tuple(_entry(part) for part in found.parts),
        score=found.score,
        spec_fingerprint=spec.fingerprint,
        nan_inputs=found.nan_inputs,
        row_independent=found.row_independent,
        row_difference=found.row_difference,
        thresholds=thresholds_of(policy),
        tolerance=tolerance,
        quantization=found.report,
        machine=_machine(onnxruntime_version(part.session for part in found.parts)),
        reads=_reads(spec, info),
        redacted=redacted,
        info=info,
        envelope=envelope_of(policy),
    )
    return write_bundle(out, files, manifest)


def thresholds_of(policy: Policy | None) -> dict[str, float | None]:
    """What a manifest says of a policy's common bands."""
    return {} if policy is None else {band.action: band.from_score for band in policy.body.bands}


def envelope_of(policy: Policy | None) -> dict[str, tuple[float, float]] | msgspec.UnsetType:
    """What a manifest says of how far thresholds may be moved; unset where they may not."""
    if policy is None:
        return msgspec.UNSET
    found = dict(policy.body.envelope)
    for segment, some in policy.body.segment_envelopes.items():
        found |= {f"{action} in {segment[:80]}": ends for action, ends in some.items()}
    return found or msgspec.UNSET


def _file(part: Part) -> str:
    return f"{part.role}.{'onnx' if part.trees is None else 'trees'}"


def _entry(part: Part) -> ModelEntry:
    return ModelEntry(
        role=part.role,
        file=_file(part),
        engine="onnx" if part.trees is None else "trees",
        parity=part.parity,
        why="" if part.trees is not None else part.why[:500],
        inputs=dict(part.inputs),
        outputs=part.outputs,
        source=part.converted.source,
        trees_only=part.graph.trees_only,
        quantized=part.quantized,
        feature_names=part.feature_names,
    )


def _task(found: Found) -> Task:
    part = next(
        (p for p in found.parts if found.score is not None and p.role == found.score.role), found.parts[-1]
    )
    if found.spec.body.candidate is not None or part.converted.task == "ranking":
        return "ranking"
    probability = found.score is not None and found.score.output in part.graph.probabilities
    return "classification" if probability or part.converted.task == "classification" else "regression"


def _reads(spec: FeatureSpec, info: Info) -> tuple[Read, ...]:
    """Lineage with owners: as the spec declares them, or as `info` does. Raises: ConfigError where they contradict."""
    found = []
    for one in lineage(spec.body):
        named = spec.body.windows[one.name].on if one.kind == "window" else one.name
        said = info.owners.get(named)
        if said is not None and one.owner is not None and said != one.owner:
            raise ConfigError(
                f"{one.kind} `{named}` has two owners: {clip(one.owner)} in the spec, {clip(said)} in info.owners",
                hint="say it in one place",
            )
        found.append(
            Read(
                kind=one.kind, name=one.name, columns=one.columns, owner=one.owner or said, digest=one.digest
            )
        )
    return tuple(found)


def _machine(onnxruntime_version: str) -> Machine:
    return Machine(
        cpu=cpu_class(),
        onnxruntime=onnxruntime_version,
        retailinfer=_own_version(),
        python=platform.python_version(),
        numpy=np.__version__,
        libm=libm_version(),
        system=f"{platform.system()} {platform.release()}",
    )


def _own_version() -> str:
    from importlib import metadata  # noqa: PLC0415 - brings half of the mail package with it

    try:
        return metadata.version("retailinfer")
    except metadata.PackageNotFoundError:  # the source tree, not installed
        return "0+source"
