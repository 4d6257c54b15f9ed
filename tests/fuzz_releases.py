"""Hostile releases: one file of a good release made hostile, and the manifest made to agree with it.

    python tests/fuzz_releases.py features --mutants 500 --seed 7       the same mutants every time; more in fuzzing.py

Rules:
  * A signature or a digest would stop almost all of it, so the size, the hash, the fingerprint and the digest of the manifest
    are made right again: this is what somebody who may sign could do by mistake.
  * Loading ends in a BundleError or ConfigError, or in a release that answers requests, or refuses them in words.
Models are fuzz_models.py.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
import sys

import msgspec
from fuzzing import Target, bytes_mutant, document_mutant, likely_mutant, main, number_mutant, packed_mutant

__all__ = ["TARGETS"]

# ---- releases --------------------------------------------------------------------------------------------------------------


@functools.cache
def _releases() -> dict[str, dict[str, bytes]]:
    """Payments with a policy of segments and reasons, items with a stored table, windows of two streams."""
    import releases
    from test_serving_windows import files

    import retailinfer as ri

    bands = [("approve", 0.0), ("review", 0.5), ("decline", 0.9)]
    policy = ri.Policy(
        bands,
        segments={"web": [("approve", 0.0), ("decline", 0.7)]},
        segment_by="channel",
        review="review",
        n_reasons=2,
        reasons={"amount": "amount unlike before", "rate": "rate", "note": "note"},
        envelope={"decline": (0.8, 0.97)},
        segment_envelopes={"web": {"decline": (0.6, 0.9)}},
    )
    payments = releases.packed(
        "payments",
        releases.deep_network(15, hidden=4),
        releases.payment_spec(extra="ignore"),
        policy=policy,
        contract=ri.Contract(
            max_rows=100,
            deadline_ms=50.0,
            ladder=(ri.Rung(kind="static", max_ms=5.0, decisions=("review", "decline")),),
        ),
        fallback=ri.Fallback(
            score=0.6,
            action="review",
            rules=[("amount > 500 and channel == 'web'", "decline"), ("known == true", "approve")],
        ),
    )
    return {"payments": payments, "items": releases.item_files(), "velocity": files()}


@functools.cache
def _store():
    """What any of the releases reads."""
    import releases
    from test_serving_windows import clock_at

    import retailinfer as ri

    clock = clock_at()
    return ri.Store(tables={"item": releases.items(20)}, windows=ri.Windows.memory(clock=clock), clock=clock)


@functools.cache
def _home(file: str) -> dict[bytes, str]:
    """A file's content -> the release that it is of."""
    return {files[file]: name for name, files in _releases().items() if file in files}


def _seeds(file: str) -> list[bytes]:
    return list(_home(file))


def _likely(file: str, data: bytes) -> str:
    """Which release a mutant was made of: the one that shares most of its words."""
    words = set(data.split(b'"'))
    return max(_home(file).items(), key=lambda one: len(words & set(one[0].split(b'"'))))[1]


# ---- doors -----------------------------------------------------------------------------------------------------------------


def _load(files: dict[str, bytes], name: str):
    """The release, and what it answers to three requests."""
    import releases
    from test_serving_windows import payment

    import retailinfer as ri
    from retailinfer.errors import RetailInferError, SessionError
    from retailinfer.serving.door import RAISE

    ranks = name == "items"
    load = ri.Ranker.load if ranks else ri.Scorer.load
    loaded = load(files, trust="unsigned", store=_store())
    answers = []
    requests = {
        "payments": releases.payment(),
        "velocity": payment(at=1772366400.0),
        "items": releases.CONTEXT,
    }
    for request in (requests[name], {**requests[name], "other": 1}, {}):
        with contextlib.suppress(RetailInferError):
            answers += (
                loaded.rank(request, ["sku-001", "none"], 2).scores
                if ranks
                else [loaded.score(request, deadline_ms=1e6).score]
            )
        if not ranks:
            with contextlib.suppress(RetailInferError):  # and what is there when the release fails
                down = loaded._fall(
                    loaded._live, SessionError("x"), RAISE, request, None, None, None, False, None, "critical"
                )
                answers.append(down.score)
    loaded.close()
    return answers


def _one_file(file: str, data: bytes):
    """The release with this file, and a manifest that says so."""
    name = _likely(file, data)
    files = _releases()[name] | {file: data}
    if file != "golden.msgpack" and len(data) % 2:
        del files["golden.msgpack"]  # else few get past it
    return _load(files | {"manifest.json": _sealed(files)}, name)


def _sealed(files: dict[str, bytes]) -> bytes:
    from retailinfer.errors import RetailInferError
    from retailinfer.features.spec import FeatureSpec
    from retailinfer.release.manifest import decode_manifest, encode_manifest, seal, sha256_hex

    manifest = decode_manifest(files["manifest.json"])
    entries = tuple(
        msgspec.structs.replace(entry, size=len(files[entry.file]), sha256=sha256_hex(files[entry.file]))
        for entry in manifest.files
        if entry.file in files
    )
    fingerprint = manifest.spec_fingerprint
    with contextlib.suppress(RetailInferError):
        fingerprint = FeatureSpec.from_json(files["features.json"]).fingerprint
    return encode_manifest(
        seal(msgspec.structs.replace(manifest, files=entries, spec_fingerprint=fingerprint))
    )


def _manifest(data: bytes):
    """The release with this manifest; its digest is made right where it is a manifest at all."""
    from retailinfer.release.manifest import Manifest, encode_manifest, sha256_hex

    name = _likely("manifest.json", data)
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        manifest = msgspec.structs.replace(msgspec.json.decode(data, type=Manifest), digest="0" * 64)
        if len(data) % 8:
            digest = sha256_hex(encode_manifest(manifest))
            data = encode_manifest(msgspec.structs.replace(manifest, digest=digest))
    return _load(_releases()[name] | {"manifest.json": data}, name)


def _check(answers, data: bytes) -> None:
    assert all(isinstance(score, float) and math.isfinite(score) for score in answers)


def _refusals() -> dict[type[Exception], str]:
    from retailinfer.errors import BundleError, ConfigError

    return {BundleError: "refused", ConfigError: "refused"}


def _target(file: str, *ways, sample: int = 1_200, **more) -> Target:
    door = functools.partial(_one_file, file)
    return Target(
        file.partition(".")[0], functools.partial(_seeds, file), door, ways, _refusals, _check, sample=sample, slow=3.0, **more
    )  # fmt: skip


def _golden_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Cells inside of the columns of golden rows, and their lengths."""
    golden = msgspec.msgpack.decode(data)
    for column in rng.sample(sorted(golden.get("columns", {})), min(2, len(golden.get("columns", {})))):
        cells = golden["columns"][column]
        for part in ("values", "valid", "offsets", "children"):
            if isinstance(cells.get(part), bytes) and rng.random() < 0.5:
                cells[part] = bytes_mutant(cells[part], rng, [data])
    return msgspec.msgpack.encode(golden)


_TEXT = (bytes_mutant, number_mutant, document_mutant, document_mutant, *[likely_mutant] * 6)
_PACKED = (bytes_mutant, packed_mutant, packed_mutant, *[likely_mutant] * 4)
TARGETS = {
    target.name: target
    for target in (
        Target("manifest", functools.partial(_seeds, "manifest.json"), _manifest, _TEXT, _refusals, _check,
               sample=1_500, slow=3.0),
        _target("features.json", *_TEXT, sample=1_500),
        _target("policy.json", *_TEXT),
        _target("contract.json", *_TEXT),
        _target("fallback.json", *_TEXT),
        _target("golden.msgpack", *_PACKED, _golden_mutant, _golden_mutant),
        _target("background.msgpack", *_PACKED),
    )
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(TARGETS))
