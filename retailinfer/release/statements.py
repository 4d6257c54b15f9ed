"""What can be signed: a release, an approval, a list of revocations, a pointer, a threshold moved. Payloads of envelopes.

Rules:
  * A statement has one encoding: compact JSON, fields as declared, keys of mappings sorted. Unknown fields are refused.
  * Each kind has a media type of its own, which its signature covers.
  * Moments are UTC, to the second: `2026-11-29T13:20:00Z`.
Who may sign them, and when they hold, is trust.py. How they are wrapped is envelope.py.
"""

from __future__ import annotations

import datetime as dt
import math
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
from msgspec import Meta

from retailinfer.errors import ManifestError, clip
from retailinfer.release.manifest import check_name

MAX_OVERRIDE_DAYS = 31  # what must last longer is a release of its own: `ri.repolicy`

__all__ = [
    "Approval",
    "Canary",
    "Lift",
    "Override",
    "Pointer",
    "ReleaseStatement",
    "Revocations",
    "Statement",
    "decode_statement",
    "encode_statement",
    "moment_text",
    "seconds_of",
]

Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Short = Annotated[str, Meta(min_length=1, max_length=256)]
Text = Annotated[str, Meta(max_length=4096)]
Moment = Annotated[str, Meta(pattern=r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\Z")]
Number = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class Statement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """Base of what can be signed."""

    payload_type: ClassVar[str]


class ReleaseStatement(Statement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """manifest.sig: this release may be loaded.

    Attributes:
        digest: of the release, as its manifest says it.
        manifest_sha256: of manifest.json's bytes, so that they are checked before anything parses them.
        environments: where it may be loaded: "production", "staging".
        fallbacks: digests of older releases that may answer in its place, as in the manifest.
        not_before, expires: when it may be loaded.
        requires: distribution -> lowest version, such as {"onnxruntime": "1.30.1"}.
    """

    payload_type: ClassVar[str] = "application/vnd.retailinfer.release.v1+json"

    name: Short
    version: Short
    digest: Digest
    manifest_sha256: Digest
    environments: Annotated[tuple[Short, ...], Meta(min_length=1, max_length=16)]
    issued: Moment
    not_before: Moment | None = None
    expires: Moment | None = None
    fallbacks: Annotated[tuple[Digest, ...], Meta(max_length=64)] = ()
    requires: dict[Short, Short] = {}


class Approval(Statement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somebody looked at a release and agrees that it answers.

    Attributes:
        digest: of the release. environment: where it may answer.
        who, why: for people. report: SHA-256 of the check report that was read.
        expires: after which the approval counts no more.
    """

    payload_type: ClassVar[str] = "application/vnd.retailinfer.approval.v1+json"

    name: Short
    digest: Digest
    environment: Short
    who: Short
    why: Text
    issued: Moment
    report: Digest | None = None
    expires: Moment | None = None


class Revocations(Statement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Releases and keys that count no more, however well signed. The newest list counts, alone.

    Attributes:
        epoch: of the trust file whose keys sign it. seq: grows with every list of an epoch.
        expires: after which a newer list is needed.
        releases: digest -> why. keys: id of a key -> why.
    """

    payload_type: ClassVar[str] = "application/vnd.retailinfer.revocations.v1+json"

    epoch: Number
    seq: Number
    issued: Moment
    expires: Moment | None = None
    releases: dict[Digest, Text] = {}
    keys: dict[Digest, Text] = {}


class Canary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A release that answers a share (above 0, at most 1) of the entities."""

    digest: Digest
    share: Annotated[float, Meta(gt=0, le=1)]


class Pointer(Statement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which releases of a name have which role; the registry's moving part.

    Attributes:
        name, environment: of what it points at.
        epoch: of the trust file whose keys sign it. seq: grows by one with every pointer of an epoch.
        expires: after which a newer pointer is needed (freeze); None = never.
        who, why: who decided, for people.
        champion: digest of the release that answers; None = nothing is promoted yet.
        challenger, canary, shadow: the other roles.
        hold: why the pointer must not move; None = it may.
    """

    payload_type: ClassVar[str] = "application/vnd.retailinfer.pointer.v1+json"

    name: Short
    environment: Short
    epoch: Number
    seq: Number
    issued: Moment
    expires: Moment | None = None
    who: Short
    why: Text
    champion: Digest | None = None
    challenger: Digest | None = None
    canary: Canary | None = None
    shadow: Digest | None = None
    hold: Text | None = None

    @property
    def digests(self) -> tuple[str, ...]:
        """Every release that has a role, champion first."""
        canary = None if self.canary is None else self.canary.digest
        return tuple(d for d in (self.champion, self.challenger, canary, self.shadow) if d is not None)


class Override(Statement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operator moves thresholds of one release for a while, inside the envelope that its policy declares.

    Attributes:
        name, environment, digest: of the release; of no other one, not even its next version.
        epoch: of the trust file whose keys sign it. seq: one series with `Lift`, per name, environment and epoch.
        previous: SHA-256 of the document before it in that series, so that none can be taken out of the middle; None = it is
            the first.
        segment: whose thresholds; None = the common ones. thresholds: action -> lowest score.
        begins, until: when it holds; it ends by itself, 31 days after it was issued at the latest.
        who, why: who decided, for people.
    """

    payload_type: ClassVar[str] = "application/vnd.retailinfer.override.v1+json"

    name: Short
    environment: Short
    digest: Digest
    epoch: Number
    seq: Number
    previous: Digest | None = None
    issued: Moment
    begins: Moment
    until: Moment
    segment: Text | None = None
    thresholds: Annotated[dict[Short, float], Meta(min_length=1, max_length=64)]
    who: Short
    why: Text


class Lift(Statement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Overrides end before their time.

    Attributes:
        lifts: their numbers. The others are as in `Override`.
    """

    payload_type: ClassVar[str] = "application/vnd.retailinfer.lift.v1+json"

    name: Short
    environment: Short
    epoch: Number
    seq: Number
    previous: Digest | None = None
    issued: Moment
    lifts: Annotated[tuple[Number, ...], Meta(min_length=1, max_length=1024)]
    who: Short
    why: Text


S = TypeVar("S", bound=Statement)


def encode_statement(statement: Statement) -> bytes:
    """The one encoding of a statement. Raises: ManifestError when it contradicts itself."""
    data = msgspec.json.encode(statement, order="deterministic")
    decode_statement(type(statement), data)  # what is written can be read back, or fails here
    return data


def decode_statement(kind: type[S], data: bytes) -> S:
    """The inverse of `encode_statement`. Raises: ManifestError, which names the field, what was expected and what came."""
    label = kind.__name__
    try:
        statement = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ManifestError(
            f"a signed {label} cannot be read: {clip(str(exc), 300)}",
            hint="was it signed by a newer version of retailinfer?",
        ) from exc
    if msgspec.json.encode(statement, order="deterministic") != data:
        raise ManifestError(f"a signed {label} is not in its canonical form", hint="sign it again")
    _check(label, statement)
    return statement


def moment_text(seconds: float) -> str:
    """Seconds since 1970 -> the moment as statements write it, cut to the second."""
    return dt.datetime.fromtimestamp(int(seconds), dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(moment: str) -> int:
    """A statement's moment -> seconds since 1970. Raises: ManifestError for one that no calendar has."""
    try:
        return int(dt.datetime.strptime(moment, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC).timestamp())
    except ValueError as exc:
        raise ManifestError(f"Expected a moment like 2026-11-29T13:20:00Z, got {clip(moment)}") from exc


def _check(label: str, statement: Any) -> None:
    if hasattr(statement, "name"):
        check_name(f"name in a {label}", statement.name)
    if isinstance(statement, ReleaseStatement):
        check_name(f"version in a {label}", statement.version)
        for environment in statement.environments:
            check_name(f"environment in a {label}", environment)
    elif not isinstance(statement, Revocations):
        check_name(f"environment in a {label}", statement.environment)
    moments = {field: getattr(statement, field, None) for field in ("issued", "not_before", "expires")}
    seconds = {field: seconds_of(moment) for field, moment in moments.items() if moment is not None}
    if isinstance(statement, Override):
        _check_override(statement)
    elif isinstance(statement, Lift) and max(statement.lifts) >= statement.seq:
        raise ManifestError(f"a {label} ends what comes after it: {clip(statement.lifts)}")
    begins = max(seconds.get("not_before", seconds["issued"]), seconds["issued"])
    if seconds.get("expires", begins + 1) <= begins:
        raise ManifestError(f"a {label} expires before it begins to count: {moments}")


def _check_override(one: Override) -> None:
    issued, begins, until = map(seconds_of, (one.issued, one.begins, one.until))
    if not issued <= begins < until:
        raise ManifestError(
            f"an Override lasts from {one.begins} until {one.until}, and was issued at {one.issued}"
        )
    if until - issued > MAX_OVERRIDE_DAYS * 86_400:
        raise ManifestError(
            f"Expected an Override to end within {MAX_OVERRIDE_DAYS} days of {one.issued}, got {one.until}",
            hint="thresholds that stay are a release of their own: ri.repolicy",
        )
    if not all(map(math.isfinite, one.thresholds.values())):
        raise ManifestError(f"an Override has a threshold that is not finite: {clip(one.thresholds)}")
