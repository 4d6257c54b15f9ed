"""Signing a release that stands in a folder: `ri.sign`, and approvals beside it. For authors; a service never signs.

Rules:
  * What is signed was read and verified whole before. A signature file appears by one rename.
  * Who signs second adds a signature to what the first one said; another statement replaces it only when that is asked for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from retailinfer.clock import Clock, SystemClock
from retailinfer.errors import BundleError, ConfigError, SignatureError, clip
from retailinfer.release.bundle import MODEL_SIGNING, SIGNATURE, read_bundle
from retailinfer.release.envelope import MAX_ENVELOPE_BYTES, decode_envelope
from retailinfer.release.manifest import MANIFEST, Manifest, encode_manifest, sha256_hex
from retailinfer.release.oms import sign_files
from retailinfer.release.report import passing_report, read_report
from retailinfer.release.signature import (
    MAX_PEM_BYTES,
    EcPrivateKey,
    PrivateKey,
    add_signatures,
    sign_statement,
)
from retailinfer.release.statements import Approval, ReleaseStatement, decode_statement, moment_text
from retailinfer.release.trust import expiry_of

__all__ = ["approve", "read_key", "sign", "sign_model", "signed_statement"]

PathLike = str | os.PathLike[str]


def sign(
    release: PathLike,
    *,
    key: PrivateKey | PathLike | Sequence[PrivateKey | PathLike],
    password: str | None = None,
    environments: Sequence[str] | None = None,
    not_before: str | None = None,
    expires: str | None = None,
    requires: Mapping[str, str] | None = None,
    replace: bool = False,
    clock: Clock | None = None,
) -> ReleaseStatement:
    """Sign a release in its folder; writes `manifest.sig` there.

    Args:
        release: the folder. Without a manifest.sig a statement is made out of the other arguments; beside one of this very
            manifest the signature is added to what that says, so that several people can sign one after the other.
        key: who signs: a PrivateKey, the path of its PEM file, or several.
        password: of the PEM files, where they have one.
        environments: where it may be loaded; ("production",) by default.
        not_before, expires: moments (UTC) like "2027-01-31T00:00:00Z"; `expires` is the manifest's own by default.
        requires: distribution -> lowest version that it may run on, such as {"onnxruntime": "1.30.1"}.
        replace: make a new statement, and drop the signatures that are there.
    Returns: what was signed. Raises: BundleError when the release is not whole, ConfigError, SignatureError.
    """
    several = [key] if isinstance(key, (PrivateKey, str, os.PathLike)) else key
    keys = [read_key(one, password) for one in several]
    if not keys:
        raise ConfigError("Expected at least one key to sign with")
    folder = Path(release)
    manifest = read_bundle(folder).manifest
    said = None if replace else _said(folder, manifest)
    asked = {
        "environments": None if environments is None else tuple(environments),
        "not_before": not_before,
        "expires": expires,
        "requires": None if requires is None else dict(requires),
    }
    given = {name: value for name, value in asked.items() if value is not None}
    if said is not None:
        envelope, statement = said
        other = [name for name, value in given.items() if getattr(statement, name) != value]
        if other:
            raise ConfigError(
                f"{SIGNATURE} is there and says another `{other[0]}`: {clip(getattr(statement, other[0]), 80)}",
                hint="sign without it to add a signature, or replace what is there",
            )
        _put(folder, SIGNATURE, add_signatures(envelope, keys))
        return statement
    made = ReleaseStatement(
        name=manifest.name,
        version=manifest.version,
        digest=manifest.digest,
        manifest_sha256=sha256_hex(encode_manifest(manifest)),
        environments=("production",),
        issued=moment_text(_now_s(clock)),
        fallbacks=manifest.info.fallbacks,
        expires=expiry_of(manifest),
    )
    statement = msgspec.structs.replace(made, **given)
    _put(folder, SIGNATURE, sign_statement(statement, keys))
    return statement


def approve(
    release: PathLike,
    *,
    key: PrivateKey | PathLike,
    who: str,
    why: str,
    environment: str = "production",
    report: bytes | PathLike,
    expires: str | None = None,
    password: str | None = None,
    clock: Clock | None = None,
) -> Approval:
    """Sign that somebody agrees; writes `approval-<environment>-<key>.sig` into the folder of the release.

    Args:
        who, why: for people. The others are as for `sign`.
        report: of `ri.check`, JSON or page, or its file; it must be about this release and let it pass.
    Returns: what was signed, with the report's SHA-256. Raises: as `sign`; ConfigError for a report that lets nothing pass.
    """
    signer = read_key(key, password)
    manifest = read_bundle(release).manifest
    content = read_report(report)
    passing_report(content, manifest.digest, manifest.release)
    approval = Approval(
        name=manifest.name,
        digest=manifest.digest,
        environment=environment,
        who=who,
        why=why,
        issued=moment_text(_now_s(clock)),
        report=sha256_hex(content),
        expires=expires,
    )
    envelope = sign_statement(approval, [signer])
    place = environment[:32].replace(".", "-")
    _put(Path(release), f"approval-{place}-{signer.id[:12]}.sig", envelope)
    return approval


def sign_model(release: PathLike, *, key: PathLike, password: str | None = None) -> Path:
    """Sign a release in the OpenSSF's model-signing format; writes `model.sig` into its folder.

    Args:
        key: PEM of a private key on P-256, P-384 or P-521.
    Returns: what was written. Raises: as `sign`.
    """
    signer = EcPrivateKey.from_pem(_pem(key), password)
    bundle = read_bundle(release)
    there = {
        path.name: b"" for path in Path(release).glob("*.sig")
    }  # named, so that others leave them out too
    files = {**there, **bundle.files, MANIFEST: encode_manifest(bundle.manifest)}
    _put(Path(release), MODEL_SIGNING, sign_files(Path(release).absolute().name, files, signer))
    return Path(release, MODEL_SIGNING)


def signed_statement(release: PathLike) -> tuple[ReleaseStatement, tuple[str, ...]] | None:
    """What manifest.sig says and the ids of the keys in it, not verified: for people. None when there is none."""
    path = Path(release, SIGNATURE)
    if not path.exists():
        return None
    envelope = decode_envelope(_read(path))
    return decode_statement(ReleaseStatement, envelope.payload), tuple(envelope.signatures)


def read_key(key: PrivateKey | PathLike, password: str | None = None) -> PrivateKey:
    """A private key out of its PEM file. Raises: ConfigError."""
    if isinstance(key, PrivateKey):
        return key
    return PrivateKey.from_pem(_pem(key), password)


def _pem(path: PathLike) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_PEM_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"cannot read the key {clip(os.fspath(path), 200)}: {exc.strerror}") from exc


def _now_s(clock: Clock | None) -> float:
    return (SystemClock() if clock is None else clock).wall_ns() / 1e9


def _said(folder: Path, manifest: Manifest) -> tuple[bytes, ReleaseStatement] | None:
    """What manifest.sig of this very manifest says. Raises: SignatureError for one of another."""
    path = folder / SIGNATURE
    if not path.exists():
        return None
    data = _read(path)
    envelope = decode_envelope(data)
    if envelope.payload_type != ReleaseStatement.payload_type:
        raise SignatureError(f"{SIGNATURE} signs no release", hint="replace what is there")
    statement = decode_statement(ReleaseStatement, envelope.payload)
    if statement.manifest_sha256 != sha256_hex(encode_manifest(manifest)):
        raise SignatureError(f"{SIGNATURE} signs another {MANIFEST}", hint="replace what is there")
    return data, statement


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_ENVELOPE_BYTES + 1)
    except OSError as exc:
        raise BundleError(f"cannot read {clip(str(path), 200)}: {exc.strerror}") from exc


def _put(folder: Path, name: str, data: bytes) -> None:
    """Write a file beside the release and move it in: a half-written one would make the release a broken one."""
    target = folder.absolute()
    beside = target.parent / f".{target.name}.{os.urandom(6).hex()}.partial"
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        beside.rename(target / name)
    except OSError as exc:
        raise BundleError(f"cannot write {name} into {clip(str(folder), 200)}: {exc.strerror}") from exc
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
