"""The OpenSSF's model-signing format: what the package `model_signing` writes and verifies, with a key of one's own.

A Sigstore bundle (JSON) around a DSSE envelope around an in-toto statement that lists every file with its SHA-256.
Rules:
  * The statement is parsed after its signature held. It must list every file of the release; a file that it lists and that is
    not there, or differs, refuses the whole. Signatures (`*.sig`) may be listed.
  * Keys on P-256, P-384 and P-521, as that package takes them. Certificates and Sigstore's identities are not read here.
  * This is for others who check a release with their tools. What loading goes by is manifest.sig.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from retailinfer.errors import IntegrityError, SignatureError, clip
from retailinfer.release.envelope import pae
from retailinfer.release.parsing import parse

if TYPE_CHECKING:
    from retailinfer.release.signature import EcPrivateKey, EcPublicKey

__all__ = ["MAX_MODEL_SIGNING_BYTES", "sign_files", "verify_files"]

MAX_MODEL_SIGNING_BYTES = 1 << 20
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
IGNORED = (".git", ".gitattributes", ".github", ".gitignore")  # as that package does by itself

Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


# ---- the bundle: others write it, so unknown fields pass; nothing in it is trusted ------------------------------------


class _PublicKey(msgspec.Struct, frozen=True):
    hint: str | None = None


class _Material(msgspec.Struct, frozen=True, rename="camel"):
    public_key: _PublicKey | None = None


class _Signature(msgspec.Struct, frozen=True):
    sig: str


class _Envelope(msgspec.Struct, frozen=True, rename="camel"):
    payload: str
    payload_type: str
    signatures: Annotated[list[_Signature], Meta(min_length=1, max_length=1)]


class _Bundle(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


# ---- the statement ---------------------------------------------------------------------------------------------------


class _Digest(msgspec.Struct, frozen=True):
    sha256: Sha256


class _Subject(msgspec.Struct, frozen=True):
    name: str
    digest: _Digest


class _Resource(msgspec.Struct, frozen=True):
    name: str
    algorithm: Literal["sha256"]
    digest: Sha256


class _Serialization(msgspec.Struct, frozen=True):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: bool
    ignore_paths: list[str] = []


class _Predicate(msgspec.Struct, frozen=True):
    serialization: _Serialization
    resources: Annotated[list[_Resource], Meta(min_length=1, max_length=100_000)]


class _Statement(msgspec.Struct, frozen=True, kw_only=True):
    type: str = msgspec.field(name="_type")
    subject: Annotated[list[_Subject], Meta(min_length=1, max_length=1)]
    predicate_type: str = msgspec.field(name="predicateType")
    predicate: _Predicate


def sign_files(name: str, files: Mapping[str, bytes], key: EcPrivateKey) -> bytes:
    """A bundle over the files of a release.

    Args:
        name: of the model, for people; `model_signing` takes the folder's.
        files: name -> bytes of everything in the folder; signatures in it are left out and named as ignored.
    """
    signatures = sorted({name for name in files if name.endswith(".sig")} | {"manifest.sig", "model.sig"})
    hashes = {one: hashlib.sha256(data) for one, data in sorted(files.items()) if one not in signatures}
    root = hashlib.sha256(b"".join(found.digest() for found in hashes.values())).hexdigest()
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [*signatures, *IGNORED],
            },
            "resources": [
                {"name": one, "algorithm": "sha256", "digest": found.hexdigest()}
                for one, found in hashes.items()
            ],
        },
    }
    payload = msgspec.json.encode(statement)
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key.public.hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": _base64(payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": _base64(key.sign(pae(PAYLOAD_TYPE, payload))), "keyid": ""}],
        },
    }
    return msgspec.json.encode(bundle)


def verify_files(bundle: bytes, files: Mapping[str, bytes], key: EcPublicKey) -> str:
    """Whether a bundle by a key covers every file of a release.

    Args:
        files: name -> bytes of everything in the folder, signatures too.
    Returns: the name that the signer gave the model. Raises: SignatureError, IntegrityError.
    """
    if len(bundle) > MAX_MODEL_SIGNING_BYTES:
        raise SignatureError(
            f"Expected a bundle of at most {MAX_MODEL_SIGNING_BYTES} bytes, got {len(bundle)}"
        )
    outer = _decoded("a Sigstore bundle", _Bundle, bundle)
    if outer.media_type != MEDIA_TYPE:
        raise SignatureError(f"Expected a bundle of type `{MEDIA_TYPE}`, got {clip(outer.media_type, 80)}")
    if outer.verification_material.public_key is None:
        raise SignatureError(
            "the bundle was not signed with a key of one's own",
            hint="check it with the package model_signing",
        )
    hint = outer.verification_material.public_key.hint
    if hint and hint != key.hint:
        raise SignatureError(
            f"Expected a bundle by the key `{key.hint[:12]}...`, got one by {clip(hint, 16)}"
        )
    envelope = outer.dsse_envelope
    if envelope.payload_type != PAYLOAD_TYPE:
        raise SignatureError(
            f"Expected a payload of type `{PAYLOAD_TYPE}`, got {clip(envelope.payload_type, 80)}"
        )
    payload = _from_base64(envelope.payload)
    if not key.verify(pae(PAYLOAD_TYPE, payload), _from_base64(envelope.signatures[0].sig)):
        raise SignatureError(
            "the signature of the bundle does not hold", hint="was it made with another key?"
        )
    statement = parse(
        "model.sig", lambda data: _decoded("a statement of model-signing", _Statement, data), payload
    )
    if (statement.type, statement.predicate_type) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise SignatureError(
            f"Expected a statement of type `{PREDICATE_TYPE}`, got {clip(statement.predicate_type, 80)}"
        )
    _compare(statement, files)
    name: str = statement.subject[0].name
    return name


def _compare(statement: _Statement, files: Mapping[str, bytes]) -> None:
    root = hashlib.sha256()
    listed: dict[str, str] = {}
    for resource in statement.predicate.resources:
        root.update(bytes.fromhex(resource.digest))
        if resource.name in listed:
            raise IntegrityError(f"the signed statement lists {clip(resource.name)} twice")
        listed[resource.name] = resource.digest
    if root.hexdigest() != statement.subject[0].digest.sha256:
        raise IntegrityError("the signed statement contradicts itself: its root is not that of its files")
    for name, digest in listed.items():
        if name not in files:
            raise IntegrityError(f"the release lacks {clip(name)}, which was signed")
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise IntegrityError(f"{clip(name)} is not the file that was signed")
    left = sorted(name for name in files if name not in listed and not name.endswith(".sig"))
    if left:
        raise IntegrityError(f"{clip(left[0])} is in the release and was not signed")


def _decoded(what: str, kind: type[Any], data: bytes) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise SignatureError(f"Expected {what}: {clip(str(exc), 200)}") from exc


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _from_base64(text: str) -> bytes:
    try:
        data = binascii.a2b_base64(text.encode(), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        data = b""
    if not data or _base64(data) != text:
        raise SignatureError(f"the bundle holds base64 that is not canonical: {clip(text)}")
    return data
