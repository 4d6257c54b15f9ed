"""Who may sign what, and when it counts: pure rules. Bytes, the time and what was seen before go in, a verdict comes out.

Rules:
  * The trust file comes to a host out of band, with its configuration; nothing in a release or a registry can change it.
  * A signature counts when its key is named for the role, is valid now and not revoked. One by a known key that does not hold
    refuses the whole; one by an unknown key is ignored, so that keys can be changed while both are in use.
  * A payload is parsed only after enough signatures hold. A statement that is good and old is a replay: pointers and lists of
    revocations carry numbers, which only grow within an epoch. A new epoch (new keys) begins at 1 again, so that a stolen key
    that jumped to the last number does no lasting harm.
  * Here are no files, no clock and no state: trust_files.py has them, highwater.py writes what was accepted.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar, cast

import msgspec
from msgspec import Meta

from retailinfer.errors import (
    ConfigError,
    IntegrityError,
    ManifestError,
    RollbackError,
    SignatureError,
    TrustError,
    clip,
)
from retailinfer.release.envelope import decode_envelope
from retailinfer.release.limited import Limits
from retailinfer.release.manifest import Manifest, check_name
from retailinfer.release.parsing import parse
from retailinfer.release.statements import (
    Approval,
    Digest,
    Lift,
    Moment,
    Number,
    Override,
    Pointer,
    ReleaseStatement,
    Revocations,
    Short,
    Statement,
    decode_statement,
    seconds_of,
)

__all__ = [
    "Key",
    "LogEntry",
    "Mark",
    "OverrideVerdict",
    "PointerVerdict",
    "ReleaseVerdict",
    "Role",
    "Rules",
    "TrustFile",
    "check_manifest",
    "decode_trust",
    "encode_trust",
    "expiry_of",
]

MAX_TRUST_BYTES = 1 << 18
SKEW_S = 300  # how far the clocks of a signer and a host may differ
TRUST_TYPE = "application/vnd.retailinfer.trust.v1+json"


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A public key. `public`: base64 of its 32 bytes. `who`: holds the private one. Its signatures count while it is valid."""

    algorithm: Literal["ed25519"]
    public: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9+/]{43}=\Z")]
    who: Short | None = None
    not_before: Moment | None = None
    expires: Moment | None = None


class Role(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Keys by name, and how many different ones of them must sign."""

    keys: Annotated[tuple[Short, ...], Meta(min_length=1, max_length=16)]
    threshold: Annotated[int, Meta(ge=1, le=16)] = 1


class TrustFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a host believes.

    Attributes:
        epoch: grows by one whenever keys are changed in a hurry; pointers and revocations of another epoch do not count.
        environment: "production", "staging": statements for others do not count here.
        names: releases that may be loaded; "shop-*" stands for all that begin so.
        keys: name -> key.
        release: who signs releases. approval: who must have agreed; None = nobody needs to.
        pointer: who moves the registry's pointer. revocation: who revokes; where it is given, a list is needed.
        override: who may move a threshold for a while, inside the envelope that a release declares; None = nobody.
        trust: who may sign the next trust file (`Rules.follow`).
        strict: try each release in a process of its own, within these limits, before loading it.
        expires: of this file. grace_hours: for how long a host may start again on the release that it had loaded last, after
            that has expired.
    """

    format: Literal[1]
    epoch: Number
    environment: Short
    names: Annotated[tuple[Short, ...], Meta(min_length=1, max_length=256)]
    keys: Annotated[dict[Short, Key], Meta(min_length=1, max_length=64)]
    release: Role
    approval: Role | None = None
    pointer: Role | None = None
    revocation: Role | None = None
    override: Role | None = None
    trust: Role | None = None
    strict: Limits | None = None
    expires: Moment | None = None
    grace_hours: Annotated[float, Meta(ge=0, le=8760)] = 72.0


class Mark(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The highest number that was accepted: of the pointer of a name, or of the list of revocations.

    Attributes:
        sha256: of the statement with that number.
        loaded, issued, fallbacks: of the release of a name that was loaded last: its digest, when it was signed, and those
            that may answer in its place.
    """

    epoch: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    seq: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    sha256: Digest | None = None
    loaded: Digest | None = None
    issued: Moment | None = None
    fallbacks: Annotated[tuple[Digest, ...], Meta(max_length=64)] = ()


class ReleaseVerdict(NamedTuple):
    """A release that may be loaded. `signed_by`, `approved_by`: names of keys. `expired_s`: since when, in its grace."""

    statement: ReleaseStatement
    signed_by: tuple[str, ...]
    approved_by: tuple[str, ...]
    expired_s: int


class PointerVerdict(NamedTuple):
    """A pointer that may be followed. `mark`: to remember once what it points at has been loaded."""

    pointer: Pointer
    signed_by: tuple[str, ...]
    mark: Mark


LogEntry: TypeAlias = Override | Lift


class OverrideVerdict(NamedTuple):
    """The overrides of a name that count, and lifts, by number. `mark`: to remember, so that none can be taken away; its
    SHA-256 is that of the last one's document.
    """

    log: tuple[LogEntry, ...]
    mark: Mark


S = TypeVar("S", bound=Statement)


# ---- the file --------------------------------------------------------------------------------------------------------


def decode_trust(data: bytes) -> TrustFile:
    """Read a trust file, JSON as people write it. Raises: ConfigError, which names what is wrong."""
    if len(data) > MAX_TRUST_BYTES:
        raise ConfigError(f"Expected a trust file of at most {MAX_TRUST_BYTES} bytes, got {len(data)}")
    try:
        json.loads(data, object_pairs_hook=_refuse_twins)  # msgspec keeps the last of two, which nobody sees
        file = msgspec.json.decode(data, type=TrustFile)
    except (ValueError, RecursionError) as exc:  # both decoders' errors are ValueErrors
        raise ConfigError(
            f"Expected a trust file: {clip(str(exc), 300)}", hint="see docs/releases.md"
        ) from exc
    try:
        _check_trust(file)
    except ManifestError as exc:
        raise ConfigError(f"the trust file contradicts itself: {exc}") from exc
    return file


def encode_trust(file: TrustFile) -> bytes:
    """A trust file as text. Raises: ConfigError when it contradicts itself."""
    data = msgspec.json.format(msgspec.json.encode(file, order="deterministic"), indent=2) + b"\n"
    decode_trust(data)
    return data


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a field is given twice: {sorted(name for name, _ in pairs)}")
    return found


def _check_trust(file: TrustFile) -> None:
    check_name("environment", file.environment)
    for name in file.names:
        if name != "*":
            check_name("name of a release", name.removesuffix("*"))
    by_public: dict[str, str] = {}
    for name, key in file.keys.items():
        check_name("name of a key", name)
        if key.public in by_public:  # else one person could sign for two
            raise ManifestError(f"the keys {clip(by_public[key.public])} and {clip(name)} are the same")
        by_public[key.public] = name
        if base64.b64encode(binascii.a2b_base64(key.public)).decode() != key.public:
            raise ManifestError(f"Expected base64 of 32 bytes as the public key {clip(name)}")
        if _is_weak(binascii.a2b_base64(key.public)):
            raise ManifestError(f"the key {clip(name)} is a point of small order: anybody can sign for it")
        begins, ends = key.not_before, key.expires
        if begins is not None and ends is not None and seconds_of(begins) >= seconds_of(ends):
            raise ManifestError(f"the key {clip(name)} expires before it begins to count")
        for moment in (begins, ends):
            _ = moment is None or seconds_of(moment)
    for label in ("release", "approval", "pointer", "revocation", "override", "trust"):
        role: Role | None = getattr(file, label)
        if role is None:
            continue
        unknown = sorted(set(role.keys) - set(file.keys))
        if unknown:
            raise ManifestError(f"the role `{label}` names the key {clip(unknown[0])}, which is not there")
        if len(set(role.keys)) != len(role.keys):
            raise ManifestError(f"the role `{label}` names a key twice")
        if role.threshold > len(role.keys):
            raise ManifestError(
                f"the role `{label}` asks for {role.threshold} signatures and has {len(role.keys)} keys"
            )
    _ = file.expires is None or seconds_of(file.expires)


def check_manifest(statement: ReleaseStatement, manifest: Manifest) -> None:
    """What was signed is what the manifest says of itself. Raises: IntegrityError, TrustError."""
    pairs = (
        ("digest", statement.digest, manifest.digest),
        ("name", statement.name, manifest.name),
        ("version", statement.version, manifest.version),
        ("fallbacks", statement.fallbacks, manifest.info.fallbacks),
    )
    for field, signed, found in pairs:
        if signed != found:
            raise IntegrityError(
                f"the manifest's {field} is not the one that was signed: {clip(found)}, signed was {clip(signed)}"
            )
    last = expiry_of(manifest)
    if last is not None and (statement.expires is None or statement.expires > last):
        raise TrustError(
            f"{manifest.release} says that it expires on {last}, it was signed for longer",
            hint="sign it again, with an end that is not after the manifest's",
        )


def expiry_of(manifest: Manifest) -> str | None:
    """The moment that a manifest names as its end; None when it names none."""
    expires = manifest.info.expires
    return expires if expires is None or "T" in expires else f"{expires}T00:00:00Z"


# ---- verdicts --------------------------------------------------------------------------------------------------------


class Rules:
    """What a trust file and the newest list of revocations allow. Every method takes the time as seconds since 1970."""

    def __init__(self, file: TrustFile, revoked: Revocations | None = None) -> None:
        self.file = file
        self.revoked = revoked
        # id of a key, as envelopes have it -> (its name, its bytes, the record)
        self.known: dict[str, tuple[str, bytes, Key]] = {}
        for name, key in file.keys.items():
            public = binascii.a2b_base64(key.public)
            self.known[hashlib.sha256(public).hexdigest()] = (name, public, key)

    def open(
        self, label: str, data: bytes, kind: type[S], role: str, *, now_s: float
    ) -> tuple[S, tuple[str, ...]]:
        """A statement that enough keys of a role have signed, and the names of those keys.

        Args:
            label: what the bytes are called in messages and counts, such as the file's name.
        Raises: SignatureError; TrustError when this trust file has expired; ManifestError for a payload that is none.
        """
        if self.file.expires is not None and now_s >= seconds_of(self.file.expires):
            raise TrustError(
                f"the trust file has expired on {self.file.expires}", hint="bring a newer one to this host"
            )
        payload_type, payload, signed_by = self._signed(label, data, role, now_s)
        if payload_type != kind.payload_type:
            raise SignatureError(
                f"Expected a signed `{kind.payload_type}`, got `{payload_type}` - at {label}",
                hint="a statement of one kind never stands for another",
            )
        self._enough(label, role, signed_by)
        return parse(label, partial(decode_statement, kind), payload), signed_by

    def release(
        self,
        data: bytes,
        manifest: bytes,
        *,
        now_s: float,
        approvals: Sequence[tuple[str, bytes]] = (),
        expected: str | None = None,
        chosen: bool = False,
        marks: Mapping[str, Mark] | None = None,
        version_of: Callable[[str], str | None] = lambda _: None,
    ) -> ReleaseVerdict:
        """Whether a release may be loaded: by its signature and the bytes of its manifest, before these are parsed.

        Args:
            data: manifest.sig. manifest: manifest.json. approvals: (file, envelope).
            expected: digest that a pointer named. chosen: the caller holds the release itself, as bytes, and not a place where
                somebody may have put another one.
            marks: name -> what was accepted before; the release that was loaded last has a grace after it expired, and what
                was signed before it does not come back without a pointer, but for those that it named as fallbacks.
            version_of: distribution -> its version here.
        Raises: SignatureError, TrustError, RollbackError, IntegrityError, ManifestError.
        """
        statement, signed_by = self.open("manifest.sig", data, ReleaseStatement, "release", now_s=now_s)
        found = hashlib.sha256(manifest).hexdigest()
        if found != statement.manifest_sha256:
            raise IntegrityError(
                f"Expected manifest.json with SHA-256 `{statement.manifest_sha256[:12]}...`, as it was signed, got "
                f"`{found[:12]}...`",
                hint="manifest and signature are of two releases, or the manifest was changed",
            )
        if expected is not None and statement.digest != expected:
            raise IntegrityError(
                f"Expected the release `{expected[:12]}...`, got `{statement.digest[:12]}...` of {statement.name}"
            )
        label = f"{statement.name}:{statement.version}"
        self._fits(label, statement.name, statement.environments)
        self._not_revoked(label, statement.digest)
        mark = None if marks is None else marks.get(statement.name)
        self._epoch_seen(mark)
        if expected is None and not chosen:  # else a pointer decided, by its number, or the caller
            self._not_older(label, statement, mark)
        expired_s = self._expired_s(label, statement, now_s, mark)
        for distribution, lowest in statement.requires.items():
            here = version_of(distribution)
            if here is None or _version(here) < _version(lowest):
                raise TrustError(
                    f"{label} was signed for {clip(distribution)} >= {clip(lowest)}, here is {clip(here)}",
                    hint="a release never runs on an older library than its signer allowed",
                )
        approved_by = (
            () if self.file.approval is None else self._approvals(label, statement, approvals, now_s)
        )
        return ReleaseVerdict(statement, signed_by, approved_by, expired_s)

    def pointer(
        self, data: bytes, name: str, *, now_s: float, mark: Mark | None = None, kept: bool = False
    ) -> PointerVerdict:
        """Whether a pointer of a name may be followed.

        Args:
            mark: what was accepted before of this name. The same pointer again is accepted again.
            kept: this host kept it when it accepted it, and starts again while its registry is out of reach: it has the grace
                of a release that has expired.
        Raises: SignatureError, TrustError, RollbackError, ManifestError.
        """
        label = f"the pointer of {clip(name)}"
        pointer, signed_by = self.open("pointer", data, Pointer, "pointer", now_s=now_s)
        if pointer.name != name:
            raise TrustError(f"Expected {label}, got that of {clip(pointer.name)}")
        self._fits(label, name, (pointer.environment,))
        digest = hashlib.sha256(decode_envelope(data).payload).hexdigest()
        self._newest(label, pointer.epoch, pointer.seq, digest, mark)
        in_grace = (
            kept
            and mark is not None
            and mark.sha256 == digest
            and pointer.expires is not None
            and now_s < seconds_of(pointer.expires) + self.file.grace_hours * 3600
        )
        self._in_time(label, pointer.issued, None if in_grace else pointer.expires, now_s)
        for one in pointer.digests:
            self._not_revoked(label, one)
        loaded = None if mark is None else mark.loaded
        return PointerVerdict(
            pointer, signed_by, Mark(epoch=pointer.epoch, seq=pointer.seq, sha256=digest, loaded=loaded)
        )

    def revocations(self, data: bytes, *, now_s: float, mark: Mark | None = None) -> tuple[Rules, Mark]:
        """The same rules with a newer list of revocations, and the mark to remember.

        Raises: SignatureError, TrustError, RollbackError, ManifestError.
        """
        label = "the list of revocations"
        revoked, signed_by = self.open("revocations", data, Revocations, "revocation", now_s=now_s)
        digest = hashlib.sha256(decode_envelope(data).payload).hexdigest()
        self._newest(label, revoked.epoch, revoked.seq, digest, mark)
        self._in_time(label, revoked.issued, revoked.expires, now_s)
        del signed_by
        return Rules(self.file, revoked), Mark(epoch=revoked.epoch, seq=revoked.seq, sha256=digest)

    def override(self, data: bytes, name: str, *, now_s: float) -> LogEntry:
        """A threshold moved, or put back, by somebody who may, for this environment.

        A lift outlives its key: what somebody ended does not come back because their key has expired. Once the key is revoked,
        nothing counts that it signed.

        Raises: SignatureError, TrustError, also when it was issued in what is the future here, RollbackError when it is of
            another epoch, ManifestError.
        """
        label = f"an override of {clip(name)}"
        payload_type, payload, signed_by = self._signed(label, data, "override", now_s, lasting=Lift)
        kind = {one.payload_type: one for one in (Override, Lift)}.get(payload_type)
        if kind is None:
            raise SignatureError(
                f"Expected a signed `{Override.payload_type}`, got `{payload_type}` - at {label}",
                hint="a statement of one kind never stands for another",
            )
        self._enough(label, "override", signed_by)
        entry = cast("LogEntry", parse("override", partial(decode_statement, kind), payload))
        if entry.name != name:
            raise TrustError(f"Expected {label}, got one of {clip(entry.name)}")
        self._fits(label, name, (entry.environment,))
        self._newest(label, entry.epoch, entry.seq, "", None)
        self._in_time(label, entry.issued, None, now_s)
        return entry

    def overrides(
        self, documents: Sequence[bytes], name: str, *, now_s: float, mark: Mark | None = None
    ) -> OverrideVerdict:
        """Those that count, of everything that lies in the place for them.

        What nobody signed who may, or what is of another name, environment or epoch, is passed over; of two with one number
        the first counts, so one that was put there again changes nothing. Each names the document before it, and that has to
        be there, byte for byte, whether or not its key counts still: else who may write there and has no key could take a lift
        out, and bring back what it ended.

        Args:
            documents: in their order; where the oldest were left out, the first that counts names one that is not there.
            mark: what was accepted before of this name.
        Raises: RollbackError when one that another one names, or the last one of then, is missing; TrustError when this
            trust file has expired.
        """
        if self.file.expires is not None and now_s >= seconds_of(self.file.expires):
            raise TrustError(
                f"the trust file has expired on {self.file.expires}", hint="bring a newer one to this host"
            )
        self._epoch_seen(mark)
        found: dict[int, tuple[LogEntry, str]] = {}
        there = {hashlib.sha256(data).hexdigest(): data for data in documents}
        for digest, data in there.items():
            with contextlib.suppress(SignatureError, TrustError, RollbackError, ManifestError):
                entry = self.override(data, name, now_s=now_s)
                found.setdefault(entry.seq, (entry, digest))
        for seq in sorted(found)[1:]:
            before = found[seq][0].previous
            if before is not None and before not in there:
                raise RollbackError(
                    f"the document before override {seq} of {clip(name)} was changed or taken away",
                    hint="who writes in the registry? put it back as it was",
                )
        last = max(found, default=0)
        new = Mark(epoch=self.file.epoch, seq=last, sha256=found[last][1] if found else None)
        if mark is not None and mark.epoch == self.file.epoch:
            # One that is there counts no more when its key has expired; one that is not was taken away, whatever came later.
            if mark.sha256 is not None and mark.sha256 not in there:
                raise RollbackError(
                    f"override {mark.seq} of {clip(name)}, which this host has seen, was taken away",
                    hint="who deletes files in the registry? put it back as it was",
                )
            new = max(mark, new, key=lambda one: one.seq)
        return OverrideVerdict(tuple(found[seq][0] for seq in sorted(found)), new)

    def follow(self, data: bytes, *, now_s: float) -> TrustFile:
        """The next trust file, out of an envelope: signed by enough keys of the role `trust` of this file and of that one.

        This file may have expired: a host that was off for a while finds its way by what it has.
        Raises: SignatureError, TrustError, RollbackError when it is not of the next epoch, ConfigError.
        """
        payload_type, payload, signed_by = self._signed("the next trust file", data, "trust", now_s)
        if payload_type != TRUST_TYPE:
            raise SignatureError(f"Expected a signed `{TRUST_TYPE}`, got `{payload_type}`")
        self._enough("the next trust file", "trust", signed_by)
        file = decode_trust(payload)
        if file.epoch != self.file.epoch + 1:
            raise RollbackError(f"Expected a trust file of epoch {self.file.epoch + 1}, got {file.epoch}")
        if file.environment != self.file.environment:
            raise TrustError(
                f"Expected a trust file for `{self.file.environment}`, got one for `{file.environment}`"
            )
        if file.trust is not None:  # whoever follows can follow again: its keys are there and work
            _, _, signed_by = Rules(file)._signed("the next trust file", data, "trust", now_s)
            Rules(file)._enough("the next trust file", "trust", signed_by)
        return file

    # ---- parts -----------------------------------------------------------------------------------------------------

    def _signed(
        self, label: str, data: bytes, role: str, now_s: float, *, lasting: type[Statement] | None = None
    ) -> tuple[str, bytes, tuple[str, ...]]:
        """(type, payload, names of the role's keys whose signatures count); the payload is not parsed.

        Args:
            lasting: statements of this kind count although their key has expired.
        Raises: SignatureError; TrustError where nobody has the role.
        """
        from retailinfer.release.signature import verify  # noqa: PLC0415 - brings OpenSSL; unsigned releases need not

        allowed: Role | None = getattr(self.file, role)
        if allowed is None:
            raise TrustError(f"the trust file has no role `{role}`, so {label} cannot be verified")
        envelope = decode_envelope(data)
        lasts = lasting is not None and envelope.payload_type == lasting.payload_type
        signed_by = []
        for key_id, signature in envelope.signatures.items():
            name, public, key = self.known.get(key_id, ("", b"", None))
            if key is None:
                continue
            if not verify(public, envelope.signed, signature):
                raise SignatureError(
                    f"the signature of key {clip(name)} does not hold - at {label}",
                    hint="what was signed or the signature was changed",
                )
            if name in allowed.keys and self._counts(key_id, key, now_s, lasts=lasts):
                signed_by.append(name)
        return envelope.payload_type, envelope.payload, tuple(sorted(signed_by))

    def _enough(self, label: str, role: str, signed_by: tuple[str, ...]) -> None:
        allowed: Role = getattr(self.file, role)
        if len(signed_by) < allowed.threshold:
            raise SignatureError(
                f"Expected {allowed.threshold} signature(s) by keys of the role `{role}` that are valid now, got "
                f"{len(signed_by)} - at {label}",
                hint=f"the trust file names {', '.join(allowed.keys)} for it",
            )

    def _counts(self, key_id: str, key: Key, now_s: float, *, lasts: bool) -> bool:
        if self.revoked is not None and key_id in self.revoked.keys:
            return False
        begun = key.not_before is None or now_s >= seconds_of(key.not_before)
        return begun and (lasts or key.expires is None or now_s < seconds_of(key.expires))

    def _fits(self, label: str, name: str, environments: Sequence[str]) -> None:
        if self.file.environment not in environments:
            raise TrustError(
                f"{label} is signed for {', '.join(environments)}, this host is `{self.file.environment}`"
            )
        for allowed in self.file.names:
            if name == allowed or (allowed.endswith("*") and name.startswith(allowed[:-1])):
                return
        raise TrustError(f"the trust file allows no release of the name {clip(name)}")

    def revoked_because(self, digest: str) -> str | None:
        """Why a release was revoked; None when it was not."""
        return None if self.revoked is None else self.revoked.releases.get(digest)

    def _not_revoked(self, label: str, digest: str) -> None:
        if self.file.revocation is not None and self.revoked is None:
            raise TrustError(
                "the trust file names who may revoke, and no list of revocations was given",
                hint="put revocations.sig beside the trust file, or give Trust(revocations=...)",
            )
        if self.revoked is not None and digest in self.revoked.releases:
            raise TrustError(
                f"{label} names the release `{digest[:12]}...`, which was revoked: "
                f"{clip(self.revoked.releases[digest], 200)}"
            )

    def _in_time(self, label: str, begins: str, expires: str | None, now_s: float) -> None:
        if now_s + SKEW_S < seconds_of(begins):
            raise TrustError(f"{label} counts from {begins} only", hint="is the clock of this host right?")
        if expires is not None and now_s >= seconds_of(expires):
            raise TrustError(f"{label} has expired on {expires}", hint="sign it again with a later end")

    def _expired_s(self, label: str, statement: ReleaseStatement, now_s: float, mark: Mark | None) -> int:
        """Seconds since the release expired, 0 when it has not. Raises: TrustError."""
        expires = statement.expires
        late_s = 0 if expires is None else max(0, int(now_s) - seconds_of(expires))
        known = mark is not None and mark.loaded == statement.digest
        in_grace = known and late_s < self.file.grace_hours * 3600
        begins = max(
            (statement.issued, statement.not_before or ""), key=lambda m: m
        )  # texts sort as moments do
        self._in_time(label, begins, None if in_grace else expires, now_s)
        return late_s

    def _newest(self, label: str, epoch: int, seq: int, digest: str, mark: Mark | None) -> None:
        if epoch != self.file.epoch:
            raise RollbackError(
                f"{label} is of epoch {epoch}, the trust file of epoch {self.file.epoch}",
                hint="one of the two is out of date",
            )
        self._epoch_seen(mark)
        if mark is None or mark.epoch < epoch:
            return
        if seq < mark.seq:
            raise RollbackError(f"{label} has number {seq}, this host has accepted number {mark.seq}")
        if seq == mark.seq and mark.sha256 not in (None, digest):
            raise RollbackError(f"{label} has number {seq}, and is another than the one accepted with it")

    def _not_older(self, label: str, statement: ReleaseStatement, mark: Mark | None) -> None:
        if mark is None or mark.issued is None or statement.digest in mark.fallbacks:
            return
        if seconds_of(statement.issued) < seconds_of(mark.issued):
            raise RollbackError(
                f"{label} was signed on {statement.issued}, the release that this host loaded last on {mark.issued}",
                hint="an older one comes back by a registry's pointer, or signed again with --replace",
            )

    def _epoch_seen(self, mark: Mark | None) -> None:
        if mark is not None and mark.epoch > self.file.epoch:
            raise RollbackError(
                f"the trust file is of epoch {self.file.epoch}, this host has seen epoch {mark.epoch}",
                hint="bring the newer trust file back",
            )

    def _approvals(
        self, label: str, statement: ReleaseStatement, approvals: Sequence[tuple[str, bytes]], now_s: float
    ) -> tuple[str, ...]:
        """Names of the keys that approve. Raises: SignatureError, TrustError."""
        role = self.file.approval
        assert role is not None
        found: set[str] = set()
        for file, data in approvals:
            payload_type, payload, signed_by = self._signed(file, data, "approval", now_s)
            if payload_type != Approval.payload_type:
                raise SignatureError(
                    f"Expected a signed `{Approval.payload_type}`, got `{payload_type}` - at {file}"
                )
            if not signed_by:  # nobody whom this host knows: nothing to read
                continue
            approval = parse("approval", partial(decode_statement, Approval), payload)
            if (approval.name, approval.digest) != (statement.name, statement.digest):
                raise IntegrityError(
                    f"{file} approves `{approval.digest[:12]}...` of {clip(approval.name)}, not this release",
                    hint="take it away, it belongs to another release",
                )
            begun = now_s + SKEW_S >= seconds_of(approval.issued)
            valid = begun and (approval.expires is None or now_s < seconds_of(approval.expires))
            if approval.environment == self.file.environment and valid:
                found.update(signed_by)
        if len(found) < role.threshold:
            raise TrustError(
                f"{label} needs {role.threshold} approval(s) for `{self.file.environment}`, it has {len(found)}",
                hint=f"the trust file asks {', '.join(role.keys)}",
            )
        return tuple(sorted(found))


# Ed25519 points whose order is 1, 2, 4 or 8, in every spelling that decoders take, the sign aside. There is no private key to
# them, and signatures that hold for any message.
_SMALL_ORDER = frozenset(
    bytes.fromhex(one)
    for one in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)


def _is_weak(public: bytes) -> bool:
    return public[:31] + bytes([public[31] & 0x7F]) in _SMALL_ORDER


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version; what follows them does not count."""
    found = re.match(r"\d{1,9}(?:\.\d{1,9}){0,5}", text)
    numbers = [] if found is None else [int(part) for part in found[0].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
