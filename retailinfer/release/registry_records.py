"""The files of a registry as what they mean: taken versions, pointers, overrides, approvals, pins, marks. No decision is made
here.

Rules:
  * What is read is checked against the place where it lay: a pointer of another name or environment is refused.
  * Files never change, so each is read once. The pointer in force is the highest number.
  * Where signatures count, the pointers that are there are those that the keys of the trust file have signed, in the order of
    the numbers that were signed; nothing else is parsed. Collecting garbage alone believes everything: it can only keep more.
  * Names in the store that nobody of ours would write are passed over.
The layout is drawn in registry.py.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from retailinfer.clock import Clock
from retailinfer.errors import (
    ConflictError,
    IntegrityError,
    ManifestError,
    RegistryError,
    SignatureError,
    clip,
)
from retailinfer.release.bundle import MAX_APPROVALS, parse
from retailinfer.release.envelope import MAX_ENVELOPE_BYTES, decode_envelope
from retailinfer.release.manifest import MANIFEST, MAX_MANIFEST_BYTES, sha256_hex
from retailinfer.release.registry_files import Files
from retailinfer.release.registry_rules import Publication, follows
from retailinfer.release.statements import (
    Approval,
    Lift,
    Override,
    Pointer,
    Statement,
    decode_statement,
    encode_statement,
    moment_text,
    seconds_of,
)

if TYPE_CHECKING:
    from retailinfer.release.trust import LogEntry, PointerVerdict, Rules
    from retailinfer.release.trust_files import Trust

__all__ = ["NAME", "Records", "is_before", "told"]

S = TypeVar("S", bound=Statement)

MAX_RECORD_BYTES = 1 << 16
_ENVELOPE = b'{"payload":'
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

_CLAIM = re.compile(r"([a-z0-9][a-z0-9._-]{0,63})\.([0-9]{4})\.json")
_POSITION = re.compile(r"([0-9]{8})\.json")
_STAMPED = re.compile(
    r"(.+)[.-]([0-9]{8}t[0-9]{6}z)[.-][0-9a-f]{12}"
)  # what it is about, when, a random number


class Records:
    """What a registry holds. All methods raise RegistryError, and IntegrityError for what cannot be.

    Args:
        trust: whose signatures count; None = nobody's.
        keys: private keys that sign what is written.
    """

    def __init__(self, files: Files, trust: Trust | None, keys: tuple[Any, ...], clock: Clock) -> None:
        self.files = files
        self.trust = trust
        self.keys = keys
        self.clock = clock
        self._claims: dict[str, Publication] = {}
        self._documents: dict[tuple[str, str, str, int], bytes] = {}
        self._pointers: dict[tuple[str, str, int], Pointer] = {}  # as they were parsed, signed or not
        self._signed: dict[str, tuple[Rules, int, int, list[tuple[Pointer, bytes]]]] = {}
        self._seen: dict[tuple[str, str, str], int] = {}  # the highest number that was there

    # ---- releases ----------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of which a version is taken."""
        return [name for name in self.files.names("names") if NAME.fullmatch(name)]

    def versions(self, name: str) -> dict[str, tuple[int, Publication]]:
        """Version -> its newest generation and what that says. Publishing a collected release again makes a new one."""
        newest: dict[str, int] = {}
        for file in self.files.names(f"names/{name}"):
            if found := _CLAIM.fullmatch(file):
                newest[found[1]] = max(int(found[2]), newest.get(found[1], 0))
        return {version: (n, self._claim(name, version, n)) for version, n in newest.items()}

    def newest(self, name: str, version: str) -> tuple[int, Publication] | None:
        """The same for one version."""
        return self.versions(name).get(version)

    def publications(self) -> list[Publication]:
        """What every taken version says now."""
        return [claim for name in self.names() for _, claim in self.versions(name).values()]

    def take(self, claim: Publication, generation: int) -> bool:
        """Take a version; False when somebody else has it."""
        path = _claim_path(claim.name, claim.version, generation)
        return self.files.create(path, msgspec.json.encode(claim))

    def manifest_bytes(self, claim: Publication) -> bytes | None:
        """manifest.json of a release; None when its files are gone."""
        return self.files.read(f"releases/{claim.folder}/{MANIFEST}", MAX_MANIFEST_BYTES)

    def delete_release(self, folder: str) -> None:
        """Take the files of a release, or of an upload, away."""
        self.files.delete_folder(f"releases/{folder}")

    def gone(self, claim: Publication) -> RegistryError:
        """The error for a release whose files are not there."""
        if self.is_collected(claim):
            return RegistryError(
                f"the files of {claim.release} were collected as garbage", hint="publish the release again"
            )
        return RegistryError(
            f"the registry lost files of {claim.release}", hint=f"look at releases/{claim.folder} there"
        )

    def _claim(self, name: str, version: str, generation: int) -> Publication:
        path = _claim_path(name, version, generation)
        if (known := self._claims.get(path)) is not None:
            return known
        data = self.files.read(path, MAX_RECORD_BYTES)
        try:
            claim = msgspec.json.decode(b"" if data is None else data, type=Publication)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise IntegrityError(f"{path} of the registry cannot be read: {clip(str(exc), 200)}") from exc
        if (claim.name, claim.version) != (name, version):
            raise IntegrityError(
                f"Expected {name}:{version}, got {claim.release} - at {path} of the registry"
            )
        self._claims[path] = claim
        return claim

    # ---- pins and marks ----------------------------------------------------------------------------------------------

    def pin(self, claim: Publication) -> str:
        """Say that a pointer is about to name a release; returns what `unpin` takes."""
        path = f"pins/{claim.folder}.{self.stamp('.')}"
        self.files.put(path, b"{}")
        return path

    def unpin(self, path: str) -> None:
        """The pointer is written, or will not be. What cannot be taken away now is old tomorrow."""
        with contextlib.suppress(RegistryError):
            self.files.delete(path)

    def is_pinned(self, claim: Publication) -> bool:
        """Whether a pointer is about to name it."""
        pins = map(_STAMPED.fullmatch, self.files.names("pins"))
        return any(pin is not None and pin[1] == claim.folder for pin in pins)

    def mark(self, claim: Publication) -> str:
        """Say that the files of a release are about to go; returns the file that says so."""
        path = f"collected/{claim.folder}/{self.stamp('.')}"
        self.files.put(path, b"{}")
        return path

    def is_collected(self, claim: Publication) -> bool:
        """Whether its files are gone, or about to go."""
        return bool(self.files.names(f"collected/{claim.folder}"))

    def collected(self) -> set[str]:
        """Folders of which this may be true; of all others it is not."""
        return set(self.files.names("collected"))

    # ---- pointers ----------------------------------------------------------------------------------------------------

    def latest(self, environment: str, name: str) -> tuple[int, Pointer | None]:
        """(position of the last document, pointer that counts); None: nothing is in force."""
        if self.trust is not None:
            signed = self._signed_pointers(self.trust, environment, name)
            return self._n_documents(environment, name), signed[-1][0] if signed else None
        last = self._n_documents(environment, name)
        return last, self._pointer(environment, name, last) if last else None

    def in_force(self, environment: str, name: str) -> Pointer | None:
        """The pointer that may be followed now. Raises: also TrustError, RollbackError, as `Trust.check_pointer`."""
        if self.trust is None:
            return self.latest(environment, name)[1]
        verdict = self.verdict(self.trust, environment, name)
        return None if verdict is None else verdict.pointer

    def verdict(self, trust: Trust, environment: str, name: str) -> PointerVerdict | None:
        """By whom the pointer in force was signed. Raises: as `in_force`."""
        signed = self._signed_pointers(trust, environment, name)
        return trust.check_pointer(signed[-1][1], name) if signed else None

    def document_in_force(self, environment: str, name: str) -> bytes | None:
        """The pointer that counts as it was written; None where nothing is in force. Nobody has looked at its dates.

        Raises: RegistryError where what was read once is not there any more: a place that is not mounted looks empty.
        """
        last = self._n_documents(environment, name)
        if last and self.files.read(_path("pointers", environment, name, last), MAX_ENVELOPE_BYTES) is None:
            raise RegistryError(
                f"the registry had pointer {last} of `{name}`, and it is not there now",
                hint="is its place mounted?",
            )
        if self.trust is not None:
            signed = self._signed_pointers(self.trust, environment, name)
            return signed[-1][1] if signed else None
        return self._document("pointers", environment, name, last) if last else None

    def opened(self, environment: str, name: str, document: bytes) -> Pointer:
        """A pointer of which somebody has kept the document, as it says of itself. Raises: IntegrityError, ManifestError."""
        pointer = self._unseal(Pointer, document, "a kept pointer")
        if (pointer.environment, pointer.name) != (environment, name):
            raise IntegrityError(
                f"Expected a pointer of `{name}` in {environment}, got one of `{pointer.name}` in {pointer.environment}"
            )
        return pointer

    def history(self, environment: str, name: str) -> tuple[Pointer, ...]:
        """Every pointer that counts, oldest first; where nothing is signed, each has to follow the one before it."""
        if self.trust is not None:
            return tuple(pointer for pointer, _ in self._signed_pointers(self.trust, environment, name))
        found: list[Pointer] = []
        for position in range(1, self._n_documents(environment, name) + 1):
            pointer = self._pointer(environment, name, position)
            if not follows(found[-1] if found else None, pointer):
                raise IntegrityError(
                    f"pointer {position} of `{name}` does not follow the one before it: epoch {pointer.epoch}, "
                    f"number {pointer.seq}"
                )
            found.append(pointer)
        return tuple(found)

    def histories(self) -> list[tuple[Pointer, ...]]:
        """Those of all names in all environments, signed or not."""
        return [
            tuple(
                self._pointer(environment, name, position)
                for position in range(1, self._n_documents(environment, name) + 1)
            )
            for environment in self.files.names("pointers")
            if NAME.fullmatch(environment)
            for name in self.files.names(f"pointers/{environment}")
            if NAME.fullmatch(name)
        ]

    def write_pointer(self, after: Pointer, position: int) -> None:
        """Put the next pointer in force. Raises: ConflictError when somebody else's is there, SignatureError."""
        key = (after.environment, after.name)
        data = self._seal(after)
        if self.trust is not None:  # what nobody would believe is not written
            self.trust.rules.open("the new pointer", data, Pointer, "pointer", now_s=self.trust.now_s())
        if not self._write_next(_path("pointers", *key, position), data):
            raise ConflictError(
                f"somebody else moved the pointer of `{after.name}` first: {told(self.latest(*key)[1])}",
                hint="look at the history, then decide again",
            )

    def _signed_pointers(self, trust: Trust, environment: str, name: str) -> list[tuple[Pointer, bytes]]:
        """Pointers that enough keys have signed, by number, and their documents; of two with one number the first."""
        n, minute = self._n_documents(environment, name), int(trust.now_s()) // 60
        known = self._signed.get(name)
        if known is not None and known[0] is trust.rules and known[1:3] == (minute, n):
            return known[3]
        found: dict[int, tuple[Pointer, bytes]] = {}
        for position in range(1, n + 1):
            data = self._document("pointers", environment, name, position)
            try:
                label = f"pointer {position} of {name}"
                pointer, _ = trust.rules.open(label, data or b"", Pointer, "pointer", now_s=trust.now_s())
            except SignatureError:  # of keys that count no more, or of nobody
                continue
            if (pointer.environment, pointer.name, pointer.epoch) == (environment, name, trust.file.epoch):
                found.setdefault(pointer.seq, (pointer, data or b""))
        signed = [found[seq] for seq in sorted(found)]
        self._signed[name] = (trust.rules, minute, n, signed)
        return signed

    # ---- overrides -----------------------------------------------------------------------------------------------------

    def override_documents(self, environment: str, name: str) -> tuple[bytes, ...]:
        """Everything that lies in the place for them, in order; nobody has looked at it."""
        last = self._n_documents(environment, name, "overrides")
        found = [self._document("overrides", environment, name, position) for position in range(1, last + 1)]
        return tuple(data or b"" for data in found)

    def overrides(self, environment: str, name: str, documents: Sequence[bytes]) -> tuple[LogEntry, ...]:
        """The overrides and lifts of documents, by number, whoever signed them; which of them count is trust.py's to say."""
        found: dict[int, LogEntry] = {}
        for position, data in enumerate(documents, 1):
            path = _path("overrides", environment, name, position)
            entry: LogEntry
            try:
                entry = self._unseal(Override, data, path)
            except ManifestError:
                entry = self._unseal(Lift, data, path)
            if (entry.environment, entry.name) != (environment, name):
                raise IntegrityError(
                    f"Expected an override of `{name}` in {environment}, got one of `{entry.name}` in {entry.environment} "
                    f"- at {path} of the registry"
                )
            found.setdefault(entry.seq, entry)
        return tuple(found[seq] for seq in sorted(found))

    def write_override(self, entry: LogEntry, position: int) -> None:
        """Put the next override, or lift, in force. Raises: ConflictError when somebody else's is there, SignatureError."""
        data = self._seal(entry)
        if self.trust is not None:  # what nobody would believe is not written
            self.trust.rules.open("the new override", data, type(entry), "override", now_s=self.trust.now_s())
        if not self._write_next(_path("overrides", entry.environment, entry.name, position), data):
            raise ConflictError(
                f"somebody else moved a threshold of `{entry.name}` first",
                hint="look at the overrides, then decide again",
            )

    # ---- series of documents: each is written once, under the next number ------------------------------------------------

    def _write_next(self, path: str, data: bytes) -> bool:
        """False when somebody else's is there."""
        try:
            return self.files.create(path, data)
        except RegistryError:
            # It may be there, and not yet for good: once more makes sure, or tells.
            return self.files.create(path, data)

    def _n_documents(self, environment: str, name: str, series: str = "pointers") -> int:
        """How many documents there are; all from 1 to it. Raises: IntegrityError when one in between was lost."""
        key = (series, environment, name)
        last = self._seen.get(key, 0)
        if not last:
            listed = map(_POSITION.fullmatch, self.files.names(f"{series}/{environment}/{name}"))
            there = {int(one[1]) for one in listed if one}
            last = max(there, default=0)
            if last > len(there):
                lost = min(set(range(1, last)) - there)
                raise IntegrityError(
                    f"the registry lost {series.removesuffix('s')} {lost} of `{name}`; there are {last}"
                )
        while self._document(*key, last + 1) is not None:
            last += 1
        self._seen[key] = last
        return last

    def _document(self, series: str, environment: str, name: str, position: int) -> bytes | None:
        key = (series, environment, name, position)
        data = self._documents.get(key)
        if data is None:
            data = self.files.read(_path(*key), MAX_ENVELOPE_BYTES)
            if data is not None:
                self._documents[key] = data
        return data

    def _pointer(self, environment: str, name: str, position: int) -> Pointer:
        """A document as it says of itself, whoever signed it."""
        key = (environment, name, position)
        if (known := self._pointers.get(key)) is not None:
            return known
        path = _path("pointers", *key)
        data = self._document("pointers", *key)
        if data is None:
            raise IntegrityError(f"the registry lost pointer {position} of `{name}`, which was there")
        pointer = self._unseal(Pointer, data, path)
        if (pointer.environment, pointer.name) != (environment, name):
            raise IntegrityError(
                f"Expected a pointer of `{name}` in {environment}, got one of `{pointer.name}` in {pointer.environment} "
                f"- at {path} of the registry"
            )
        self._pointers[key] = pointer
        return pointer

    # ---- approvals ---------------------------------------------------------------------------------------------------

    def approvals(self, environment: str, claim: Publication) -> list[Approval]:
        """Those that count in an environment now, oldest first; where signatures count, by keys that may approve."""
        now_s = self.clock.wall_ns() // 10**9
        found = [
            approval
            for approval, _ in self._approvals(claim)
            if (approval.digest, approval.environment) == (claim.digest, environment)
            and (approval.expires is None or seconds_of(approval.expires) > now_s)
        ]
        return sorted(found, key=lambda one: (one.issued, one.who))

    def signed_approvals(self, claim: Publication) -> dict[str, bytes]:
        """Envelopes of approvals, under the names that they have beside a release; nobody has verified them."""
        documents = [data for data in self._approval_documents(claim) if data.startswith(_ENVELOPE)]
        return {f"approval-{sha256_hex(data)[:32]}.sig": data for data in documents[:MAX_APPROVALS]}

    def add_approval(self, claim: Publication, approval: Approval) -> Approval:
        """Keep an approval, unless the same people have given it before; returns the one that is kept."""
        mine = {key.id for key in self.keys}
        for before, data in self._approvals(claim):
            there = decode_envelope(data).signatures.keys() if data.startswith(_ENVELOPE) else set()
            if mine <= there and msgspec.structs.replace(before, issued=approval.issued) == approval:
                return before
        data = self._seal(approval)
        self.files.create(f"approvals/{approval.digest}/{sha256_hex(data)[:32]}.json", data)
        return approval

    def _approvals(self, claim: Publication) -> list[tuple[Approval, bytes]]:
        documents = self._approval_documents(claim)
        if self.trust is None:
            return [(self._unseal(Approval, data, "an approval"), data) for data in documents]
        role = self.trust.file.approval
        if role is None:
            return []
        # Each is signed by one; how many there must be is asked when the release is read.
        one = msgspec.structs.replace(self.trust.file, approval=msgspec.structs.replace(role, threshold=1))
        rules, now_s = type(self.trust.rules)(one, self.trust.rules.revoked), self.trust.now_s()
        found: list[tuple[Approval, bytes]] = []
        for data in documents:
            with contextlib.suppress(SignatureError):  # of nobody who may
                found.append((rules.open("approval", data, Approval, "approval", now_s=now_s)[0], data))
        return found

    def _approval_documents(self, claim: Publication) -> list[bytes]:
        folder = f"approvals/{claim.digest}"
        documents = [
            self.files.read(f"{folder}/{file}", MAX_ENVELOPE_BYTES) for file in self.files.names(folder)
        ]
        return [data for data in documents if data is not None]

    # ---- statements and moments --------------------------------------------------------------------------------------

    def _seal(self, statement: Statement) -> bytes:
        if not self.keys:
            return encode_statement(statement)
        from retailinfer.release.signature import sign_statement  # noqa: PLC0415 - brings OpenSSL

        return sign_statement(statement, self.keys)

    def _unseal(self, kind: type[S], data: bytes, path: str) -> S:
        if data.startswith(_ENVELOPE):
            data = decode_envelope(data).payload
        return parse(path, lambda payload: decode_statement(kind, payload), data)

    def stamp(self, separator: str) -> str:
        """The moment and a random number, for the names of what may become litter."""
        moment = re.sub(r"[-:]", "", moment_text(self.clock.wall_ns() / 1e9)).lower()
        return f"{moment}{separator}{os.urandom(6).hex()}"


def _claim_path(name: str, version: str, generation: int) -> str:
    return f"names/{name}/{version}.{generation:04d}.json"


def _path(series: str, environment: str, name: str, position: int) -> str:
    return f"{series}/{environment}/{name}/{position:08d}.json"


def is_before(stamped: str, moment_s: float) -> bool:
    """Whether a name with a moment in it is older than another moment; what has none is left alone."""
    found = _STAMPED.fullmatch(stamped)
    if found is None:
        return False
    text = found[2]
    moment = f"{text[:4]}-{text[4:6]}-{text[6:8]}T{text[9:11]}:{text[11:13]}:{text[13:15]}Z"
    try:
        return seconds_of(moment) < moment_s
    except Exception:  # noqa: BLE001 - a moment that no calendar has: nobody of ours wrote it
        return False


def told(pointer: Pointer | None) -> str:
    """A pointer in few words."""
    return (
        "none"
        if pointer is None
        else f"pointer {pointer.seq} of {pointer.issued}, by {clip(pointer.who)} ({clip(pointer.why, 120)})"
    )
