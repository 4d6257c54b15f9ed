"""Signed releases for tests: keys that are the same in every run, a trust file, a tiny release and statements about it.

The tiny release has a manifest and four small files, enough for `read_bundle`; releases.py has those that answer.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from retailinfer.clock import ManualClock
from retailinfer.release.bundle import write_bundle
from retailinfer.release.manifest import (
    Info,
    InputSource,
    Machine,
    Manifest,
    ModelEntry,
    Output,
    ScoreRef,
    decode_manifest,
)
from retailinfer.release.statements import Approval, Pointer, ReleaseStatement, Revocations, moment_text
from retailinfer.release.trust import Key, Role, TrustFile, encode_trust

NOW_S = 1_795_953_600  # 2026-11-29T12:00:00Z
DAY_S = 86_400
ISSUED = moment_text(NOW_S - DAY_S)
EXPIRES = moment_text(NOW_S + 30 * DAY_S)


@functools.cache
def key(name: str) -> Any:
    """The private key of somebody, made of the name."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from retailinfer.release.signature import PrivateKey

    return PrivateKey(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


def record(name: str, **more: Any) -> Key:
    """The public half, as trust files have it."""
    return Key(algorithm="ed25519", public=base64.b64encode(key(name).public).decode(), **more)


def trust_file(**changes: Any) -> TrustFile:
    """ci and lead sign releases (both must), risk approves when asked, ops moves pointers, security revokes."""
    given: dict[str, Any] = {
        "format": 1,
        "epoch": 1,
        "environment": "production",
        "names": ("fraud", "shop-*"),
        "keys": {name: record(name) for name in ("ci", "lead", "risk", "ops", "security", "root")},
        "release": Role(keys=("ci", "lead"), threshold=2),
        "pointer": Role(keys=("ops",)),
        "trust": Role(keys=("root",)),
    }
    return TrustFile(**(given | changes))


def trust(*, now_s: float = NOW_S, state: Any = None, revocations: Any = None, **changes: Any) -> Any:
    """`ri.Trust` with a clock that stands still."""
    from retailinfer.release.trust_files import Trust

    return Trust(
        encode_trust(trust_file(**changes)),
        state=state,
        revocations=revocations,
        clock=ManualClock(wall_ns=int(now_s * 1e9)),
    )


def signed(statement: Any, *names: str) -> bytes:
    """An envelope by the keys of these people."""
    from retailinfer.release.signature import sign_statement

    return sign_statement(statement, [key(name) for name in names])


# ---- a release -------------------------------------------------------------------------------------------------------


@functools.cache
def tiny(version: str = "1.0", name: str = "fraud", **info: Any) -> dict[str, bytes]:
    """The files of a release, without a signature."""
    manifest = Manifest(
        name=name,
        version=version,
        task="classification",
        created="2026-11-22T13:00:00Z",
        files=(),
        models=(
            ModelEntry(
                role="model",
                file="model.onnx",
                inputs={"x": InputSource(kind="tensor", name="features")},
                outputs=(Output(name="y", dtype="float32"),),
            ),
        ),
        score=ScoreRef(role="model", output="y"),
        spec_fingerprint="0" * 64,
        machine=Machine(cpu="linux-x86_64"),
        info=Info(version=version, **info),
    )
    files = {
        "features.json": ("features", b'{"format":1}'),
        "contract.json": ("contract", b"{}"),
        "model.onnx": ("model:model", hashlib.sha256(version.encode()).digest() * 3),
        "golden.msgpack": ("golden", b"\x80"),
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "release")
        write_bundle(out, files, manifest)
        return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def statement_of(files: dict[str, bytes], **changes: Any) -> ReleaseStatement:
    """What manifest.sig of a release says."""
    manifest = decode_manifest(files["manifest.json"])
    statement = ReleaseStatement(
        name=manifest.name,
        version=manifest.version,
        digest=manifest.digest,
        manifest_sha256=hashlib.sha256(files["manifest.json"]).hexdigest(),
        environments=("production",),
        issued=ISSUED,
        expires=EXPIRES,
        fallbacks=manifest.info.fallbacks,
    )
    return msgspec.structs.replace(statement, **changes)


def signed_files(files: dict[str, bytes] | None = None, *names: str, **changes: Any) -> dict[str, bytes]:
    """A release with its signature, by ci and lead unless others are named."""
    files = tiny() if files is None else files
    return files | {"manifest.sig": signed(statement_of(files, **changes), *(names or ("ci", "lead")))}


def approval_of(files: dict[str, bytes], *names: str, **changes: Any) -> bytes:
    """An approval of a release."""
    manifest = decode_manifest(files["manifest.json"])
    approval = Approval(
        name=manifest.name,
        digest=manifest.digest,
        environment="production",
        who="Ada",
        why="fewer declines on the holdout",
        issued=ISSUED,
        report="9" * 64,
    )
    return signed(msgspec.structs.replace(approval, **changes), *(names or ("risk",)))


def digest_of(files: dict[str, bytes]) -> str:
    """A release's digest."""
    return decode_manifest(files["manifest.json"]).digest


def pointer(seq: int = 1, **changes: Any) -> Pointer:
    """A pointer at the tiny release."""
    given: dict[str, Any] = {
        "name": "fraud",
        "environment": "production",
        "epoch": 1,
        "seq": seq,
        "issued": ISSUED,
        "expires": EXPIRES,
        "who": "Ada",
        "why": "passed its checks",
        "champion": digest_of(tiny()),
    }
    return Pointer(**(given | changes))


def revoked(seq: int = 1, **changes: Any) -> bytes:
    """A signed list of revocations."""
    given: dict[str, Any] = {"epoch": 1, "seq": seq, "issued": ISSUED, "expires": EXPIRES}
    return signed(Revocations(**(given | changes)), "security")
