"""`retailinfer verify`: everything that loading checks, told one by one."""

from __future__ import annotations

import argparse
from pathlib import Path

from retailinfer.authoring.loading import Loaded, build, engine_text
from retailinfer.cli.console import Console, bytes_text
from retailinfer.cli.extras import need
from retailinfer.cli.tables import read_store
from retailinfer.cli.trusting import signature_facts, signature_text, trust_of
from retailinfer.errors import ConfigError, RetailInferError, SignatureError, clip
from retailinfer.release.bundle import MODEL_SIGNING, Bundle, read_bundle
from retailinfer.release.golden import cpu_class
from retailinfer.release.manifest import MANIFEST, Machine, encode_manifest

__all__ = ["run"]


def run(options: argparse.Namespace, console: Console) -> int:
    """Check, and say what was checked; the first thing that is wrong ends it. Raises: BundleError, ConfigError."""
    checks: list[dict[str, str]] = []

    def passed(what: str, found: str) -> None:
        checks.append({"check": what, "found": found})
        console.say(f"  ok  {what:<10}{found}")

    bundle = None
    try:
        store = read_store(options.store)
        trust = trust_of(options)
        bundle = read_bundle(options.release, strict_paths=options.strict_paths, trust=trust)
        manifest = bundle.manifest
        signature = signature_facts(options.release, bundle)
        size = sum(entry.size for entry in manifest.files)
        console.say(f"{manifest.release}, packed {manifest.created}")
        if signature.get("verified"):
            passed("signature", signature_text(signature))
        if options.model_signing is not None:
            passed("model.sig", _model_signing(options, bundle))
        passed("manifest", f"format {manifest.format}, canonical, digest {manifest.digest[:12]}")
        passed(
            "files",
            f"{len(manifest.files)} files, {bytes_text(size)}: sizes and SHA-256 as listed, nothing else there",
        )
        if trust is not None and trust.file.strict is not None:
            trust.try_release(manifest, bundle.files)
            passed("strict", "a process of its own loaded it within its limits")
        loaded = build(bundle, store=store)
        for what, found in _what_loading_showed(loaded):
            passed(what, found)
        loaded.door.close()
    except RetailInferError as exc:
        console.emit(
            {
                "ok": False,
                "release": None if bundle is None else bundle.manifest.release,
                "checks": checks,
                "error": {"type": type(exc).__name__, "message": str(exc)},
            }
        )
        if console.as_json:
            return 1
        raise
    if not signature.get("verified"):
        console.say(f"  --  signature {signature_text(signature)}")
    console.say("good")
    console.emit(
        {
            "ok": True,
            "release": manifest.release,
            "digest": manifest.digest,
            "signature": signature or None,
            "checks": checks,
        }
    )
    return 0


def _model_signing(options: argparse.Namespace, bundle: Bundle) -> str:
    """Check the OpenSSF's bundle beside the release. Raises: BundleError, ConfigError."""
    need("model-signing", ("cryptography",), "sign")
    from retailinfer.release.oms import MAX_MODEL_SIGNING_BYTES, verify_files
    from retailinfer.release.signature import EcPublicKey

    try:
        key = EcPublicKey.from_pem(Path(options.model_signing).read_bytes())
    except OSError as exc:
        raise ConfigError(f"cannot read {options.model_signing}: {exc.strerror}") from exc
    held = {}
    for path in sorted(Path(options.release).glob("*.sig")):
        with path.open("rb") as file:
            held[path.name] = file.read(MAX_MODEL_SIGNING_BYTES + 1)
    if MODEL_SIGNING not in held:
        raise SignatureError(f"the release has no {MODEL_SIGNING}")
    files = {**held, **bundle.files, MANIFEST: encode_manifest(bundle.manifest)}
    name = verify_files(held[MODEL_SIGNING], files, key)
    return f"holds for every file, by the key {key.hint[:12]}; the signer calls it {clip(name)}"


def _what_loading_showed(loaded: Loaded) -> list[tuple[str, str]]:
    """The checks behind a pipeline that could be built."""
    pipeline, manifest = loaded.pipeline, loaded.pipeline.manifest
    spec = pipeline.spec
    found: list[tuple[str, str]] = []
    if spec.arrays:
        found.append(("features", f"none: the release takes {len(spec.arrays)} array(s)"))
    else:
        found.append(
            (
                "features",
                f"{len(spec.columns)} columns of {len(spec.fields)} fields compile; fingerprint {spec.fingerprint[:12]}",
            )
        )
    engines = ", ".join(f"{role} with {engine_text(one)}" for role, one in pipeline.sessions.items())
    found.append(("models", f"open: {engines}; inputs and outputs fit the features and the manifest"))
    if pipeline.policy is not None:
        found.append(("policy", " | ".join(pipeline.policy.actions)))
    if pipeline.spec.body.stored:
        names = sorted({ref.partition(".")[0] for ref in spec.body.stored})
        how = (
            "not given, so stand-ins were made of golden rows"
            if loaded.stands_in
            else "given; keys and columns fit"
        )
        found.append(("tables", f"{', '.join(names)}: {how}"))
    if pipeline.spec.body.windows:
        counted = sorted({window.on for window in spec.body.windows.values()})
        text = f"{len(spec.body.windows)} of {', '.join(counted)} can be counted; here they hold no event"
        found.append(("windows", text))
    found.append(("golden", _golden_text(loaded)))
    if manifest.score is not None and not spec.arrays:
        if pipeline.row_independent:
            text = "a row's score does not depend on the rows beside it"
        else:
            text = "a row's score may depend on the rows beside it, so rows run one by one"
        found.append(("rows", text))
    return found


def _golden_text(loaded: Loaded) -> str:
    golden = loaded.golden
    if golden is None:
        return "none in this release: answers were not compared"
    if golden.arrays and not golden.columns:
        if golden.outputs_sha256 is not None and loaded.pipeline.same_machine:
            return f"{golden.n_rows} rows of arrays replayed: every output has the same bits"
        return f"{golden.n_rows} rows of arrays replayed; outputs are compared on the packing CPU class only"
    actions = "" if golden.actions is None else ", no action differs"
    if loaded.pipeline.same_machine:
        return f"{golden.n_rows} rows replayed: tensors and scores have the same bits{actions}"
    manifest = loaded.pipeline.manifest
    return (
        f"{golden.n_rows} rows replayed: tensors have the same bits, scores are within {manifest.tolerance.golden:g} "
        f"(packed on {manifest.machine.cpu} with {_versions(manifest.machine)}, this is {cpu_class()}){actions}"
    )


def _versions(machine: Machine) -> str:
    """What a score's bits depend on beside the CPU."""
    return (
        f"ONNX Runtime {machine.onnxruntime}"
        if machine.onnxruntime
        else f"{machine.libm or 'an unknown C library'}"
    )
