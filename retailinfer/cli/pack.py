"""`retailinfer pack`: files in, a release out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from retailinfer.cli.console import Console, bytes_text
from retailinfer.cli.extras import need
from retailinfer.cli.settings import read_fallback, read_info, read_policy, read_struct
from retailinfer.cli.tables import read_rows
from retailinfer.errors import ConfigError, clip

__all__ = ["run"]


def run(options: argparse.Namespace, console: Console) -> int:
    """Read the files, call `retailinfer.pack`, say what came out. Raises: as `pack`, ConfigError for a file."""
    need("packing", ("onnx", "pyarrow"), "pack")
    from retailinfer.authoring.pack import pack
    from retailinfer.contracts import Contract
    from retailinfer.features.spec import FeatureSpec

    if options.features is None and (options.golden or options.calibration):
        raise ConfigError(
            "--golden and --calibration are rows of features, and no --features is given",
            hint="a release of arrays gets golden arrays of its own; from Python, pack(golden={input: array})",
        )
    spec = None if options.features is None else FeatureSpec.from_json(_bytes(options.features))
    info = {} if options.info is None else read_info(options.info)
    models = _models(options.model)
    if isinstance(models, str) and models.startswith("models:/"):
        from retailinfer.authoring.mlflow import from_mlflow

        console.step(f"fetching {models}")
        found = from_mlflow(models)
        models, info = found.model, found.info | info  # what people say goes before what MLflow says
    manifest = pack(
        options.name,
        model=models,
        out=options.out,
        features=spec,
        score=options.score,
        task=options.task,
        policy=None if options.policy is None else read_policy(options.policy),
        contract=None if options.contract is None else read_struct(options.contract, Contract),
        fallback=None if options.fallback is None else read_fallback(options.fallback),
        golden=None if options.golden is None else read_rows(options.golden),
        calibration=None if options.calibration is None else read_rows(options.calibration),
        redact=tuple(options.redact),
        tolerance=options.tolerance,
        names=options.names,
        quantize=options.quantize,
        engine=options.engine,
        info=info,
        progress=console.step,
    )
    size = sum(entry.size for entry in manifest.files)
    console.emit({"ok": True, "release": manifest.release, "out": options.out, "manifest": manifest})
    console.say(f"{manifest.release} is in {options.out}: {bytes_text(size)}, digest {manifest.digest[:12]}")
    if manifest.score is not None:
        label = "" if manifest.score.label is None else f", the probability of {manifest.score.label!r}"
        console.say(
            f"  score         {manifest.score.role}.{manifest.score.output}[{manifest.score.column}]{label}"
        )
    for model in manifest.models:
        console.say(
            f"  model         {model.role}: {model.file}, engine: {model.engine}, quantised: {model.quantized}"
        )
        if model.why:
            console.say(f"                not a forest: {model.why}")
    if manifest.quantization.asked != "none":
        console.say(f"  quantisation  {manifest.quantization.asked}: {manifest.quantization.why}")
    console.say(f"  next          retailinfer verify {options.out}")
    return 0


def _models(given: list[str]) -> Any:
    """One path, or {role: path} in the order given."""
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    models: dict[str, str] = {}
    for text in given:
        role, equals, path = text.partition("=")
        if not (equals and role and path) or role in models:
            raise ConfigError(
                f"Expected --model ROLE=FILE with a role of its own for each model, got {clip(text, 80)}"
            )
        models[role] = path
    return models


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
