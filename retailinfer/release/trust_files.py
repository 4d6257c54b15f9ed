"""`ri.Trust`: the trust file of a host with its files, its clock and its memory of what was accepted.

Rules:
  * Everything is read when the object is made; a trust file that is exchanged counts for the next process, or for the next
    `Trust`.
  * What was accepted is remembered by `remember`, which loading calls last.
The rules themselves are trust.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from retailinfer.clock import Clock, SystemClock
from retailinfer.errors import ConfigError, RollbackError, SignatureError, clip
from retailinfer.release.envelope import MAX_ENVELOPE_BYTES
from retailinfer.release.highwater import raise_marks, read_state
from retailinfer.release.limited import try_release
from retailinfer.release.manifest import encode_manifest
from retailinfer.release.trust import (
    MAX_TRUST_BYTES,
    Mark,
    OverrideVerdict,
    PointerVerdict,
    ReleaseVerdict,
    Rules,
    decode_trust,
)

if TYPE_CHECKING:
    from retailinfer.release.manifest import Manifest
    from retailinfer.release.statements import ReleaseStatement
    from retailinfer.release.trust import TrustFile

__all__ = ["REVOCATIONS", "SUCCESSOR", "Trust"]

REVOCATIONS = "revocations.sig"  # beside the trust file, where no other place is given
SUCCESSOR = "trust-{}.sig"  # the trust file of that epoch, signed by the keys of the one before
PathLike = str | os.PathLike[str]


class Trust:
    """Whom this host believes; the argument `trust=` of `Scorer.load` and `Ranker.load`.

    Args:
        source: path of the trust file, or its bytes. Beside a path, `trust-2.sig`, `trust-3.sig` and so on lead to newer ones.
        state: path of a file that remembers what was accepted, so that nothing older comes back after a restart. It is made
            when a release was loaded; its folder must be writable. None: nothing is remembered.
        revocations: the signed list of what was revoked, as a path or bytes; by default `revocations.sig` beside the trust
            file, when that names who may revoke.
        clock: for tests.
    Raises: ConfigError for a trust file that cannot be used; SignatureError, TrustError, RollbackError for a list of
        revocations that does not count.
    """

    def __init__(
        self,
        source: PathLike | bytes,
        *,
        state: PathLike | None = None,
        revocations: PathLike | bytes | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._clock: Clock = SystemClock() if clock is None else clock
        self._state = None if state is None else os.fspath(state)
        self._revoked_mark: Mark | None = None
        if isinstance(source, bytes):
            self.origin, data = "memory", source
        else:
            self.origin = os.fspath(source)
            found = _read(self.origin, MAX_TRUST_BYTES)
            if found is None:
                raise ConfigError(
                    f"there is no trust file {clip(self.origin, 200)}",
                    hint='give the path of one, or trust="unsigned"; see docs/releases.md',
                )
            data = found
        self._rules = Rules(self._newest(decode_trust(data)))
        self._revocations: str | None = None  # where newer lists appear
        if revocations is None and self._rules.file.revocation is not None and self.origin != "memory":
            self._revocations = _beside(self.origin, REVOCATIONS)
            revocations = _read(self._revocations, MAX_ENVELOPE_BYTES)
        elif isinstance(revocations, (str, os.PathLike)):
            self._revocations = os.fspath(revocations)
        self._revoked_bytes = revocations if isinstance(revocations, bytes) else None
        if revocations is not None:
            self.update(revocations)

    @property
    def file(self) -> TrustFile:
        """What the trust file says."""
        return self._rules.file

    @property
    def rules(self) -> Rules:
        """The rules with the newest list of revocations."""
        return self._rules

    def _newest(self, file: TrustFile) -> TrustFile:
        """The trust file that this one leads to, by those that are signed beside it: trust-2.sig, trust-3.sig and so on."""
        if self.origin == "memory":
            return file
        while file.trust is not None:
            data = _read(_beside(self.origin, SUCCESSOR.format(file.epoch + 1)), MAX_ENVELOPE_BYTES)
            if data is None:
                break
            file = Rules(file).follow(data, now_s=self.now_s())
        return file

    def now_s(self) -> float:
        """Seconds since 1970, by the clock of this host."""
        return self._clock.wall_ns() / 1e9

    def mark_of(self, name: str) -> Mark | None:
        """What was accepted before of a name; None = nothing, or nothing is remembered. Raises: BundleError."""
        return None if self._state is None else read_state(self._state).names.get(name)

    def update(self, revocations: PathLike | bytes) -> None:
        """Take a newer list of revocations, from a path or bytes.

        Raises: SignatureError, TrustError, RollbackError when it is older than the one before; the old one then counts on.
        """
        data = (
            revocations
            if isinstance(revocations, bytes)
            else _read(os.fspath(revocations), MAX_ENVELOPE_BYTES)
        )
        if data is None:
            raise ConfigError(f"there is no list of revocations {clip(revocations, 200)}")
        seen = None if self._state is None else read_state(self._state).revocations
        before = max((m for m in (seen, self._revoked_mark) if m is not None), key=_order, default=None)
        self._rules, self._revoked_mark = self._rules.revocations(data, now_s=self.now_s(), mark=before)

    def look_again(self) -> bool:
        """Take the list of revocations that stands where this one was found, when it is another; whether it was.

        Raises: as `update`; the old list counts on then.
        """
        if self._revocations is None:
            return False
        data = _read(self._revocations, MAX_ENVELOPE_BYTES)
        if data is None or data == self._revoked_bytes:
            return False
        self.update(data)
        self._revoked_bytes = data
        return True

    def remember_in(self, state: PathLike) -> None:
        """Remember what is accepted in this file, unless another one was given."""
        if self._state is None:
            self._state = os.fspath(state)

    def check_release(
        self,
        signature: bytes | None,
        manifest: bytes,
        *,
        approvals: Sequence[tuple[str, bytes]] = (),
        expected: str | None = None,
        chosen: bool = False,
        name: str | None = None,
    ) -> ReleaseVerdict:
        """Whether a release may be loaded, by bytes that nothing has parsed yet; arguments as `Rules.release`.

        Args:
            name: of the release, where the caller asks for one.
        Raises: SignatureError, also when there is no signature, TrustError, RollbackError, IntegrityError, ManifestError.
        """
        if signature is None:
            raise SignatureError(
                "the release is not signed: it has no manifest.sig",
                hint='sign it with `retailinfer sign`, or load it with trust="unsigned" where that is right',
            )
        state = None if self._state is None else read_state(self._state)
        if state is not None:
            self._not_withheld(state.revocations)
        # The name is known after the signature held only; the marks of all names are at hand.
        verdict = self._rules.release(
            signature,
            manifest,
            now_s=self.now_s(),
            approvals=approvals,
            expected=expected,
            chosen=chosen,
            marks=None if state is None else state.names,
            version_of=_version_of,
        )
        if name is not None and verdict.statement.name != name:
            raise SignatureError(
                f"Expected a release of {clip(name)}, got one of {clip(verdict.statement.name)}"
            )
        return verdict

    def try_release(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        """Load a release in a process of its own first, where the trust file asks for it. Raises: ModelError, ConfigError."""
        if self.file.strict is not None:
            try_release(encode_manifest(manifest), files, limits=self.file.strict)

    def check_pointer(self, data: bytes, name: str, *, kept: bool = False) -> PointerVerdict:
        """Whether a pointer of a name may be followed; `kept` as `Rules.pointer` takes it.

        Raises: SignatureError, TrustError, RollbackError, ManifestError.
        """
        state = None if self._state is None else read_state(self._state)
        if state is not None:
            self._not_withheld(state.revocations)
        mark = None if state is None else state.names.get(name)
        return self._rules.pointer(data, name, now_s=self.now_s(), mark=mark, kept=kept)

    def check_overrides(self, documents: Sequence[bytes], name: str) -> OverrideVerdict:
        """Which thresholds are moved of a name; as `Rules.overrides`. Raises: RollbackError, TrustError."""
        state = None if self._state is None else read_state(self._state)
        if state is not None:
            self._not_withheld(state.revocations)
        mark = None if state is None else state.overrides.get(name)
        return self._rules.overrides(documents, name, now_s=self.now_s(), mark=mark)

    def remember_overrides(self, name: str, verdict: OverrideVerdict) -> None:
        """Write down how far the overrides of a name were seen, so that none of them can be taken away unseen.

        Raises: BundleError when the state cannot be written.
        """
        if self._state is not None and verdict.mark.seq:
            raise_marks(self._state, {}, self._revoked_mark, {name: verdict.mark})

    def remember(
        self,
        name: str,
        digest: str,
        pointer: PointerVerdict | None = None,
        *,
        statement: ReleaseStatement | None = None,
    ) -> None:
        """Write down that a release was loaded. To be called when everything has succeeded.

        Args:
            name, digest: of the release. pointer: that named it. statement: that was signed of it.
        Raises: BundleError when the state cannot be written.
        """
        if self._state is None:
            return
        mark = Mark(epoch=self.file.epoch) if pointer is None else pointer.mark
        if statement is not None:
            mark = msgspec.structs.replace(mark, issued=statement.issued, fallbacks=statement.fallbacks)
        raise_marks(self._state, {name: msgspec.structs.replace(mark, loaded=digest)}, self._revoked_mark)

    def _not_withheld(self, seen: Mark | None) -> None:
        if self.file.revocation is None or seen is None:
            return
        if self._revoked_mark is None or _order(self._revoked_mark) < _order(seen):
            raise RollbackError(
                f"this host has accepted the list of revocations number {seen.seq}, and was given an older one or none",
                hint="give the newest one",
            )

    def __repr__(self) -> str:
        file = self.file
        return (
            f"<Trust for {file.environment}, epoch {file.epoch}, {len(file.keys)} keys, from {self.origin}>"
        )


def _beside(path: str, name: str) -> str:
    return os.path.join(os.path.dirname(path), name)  # noqa: PTH118, PTH120 - one string


def _order(mark: Mark) -> tuple[int, int]:
    return mark.epoch, mark.seq


def _version_of(distribution: str) -> str | None:
    """Version of what is installed here; None when it is not."""
    from importlib import metadata  # noqa: PLC0415 - for releases that ask

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _read(path: str, cap: int) -> bytes | None:
    """A regular file of at most `cap` bytes; None when there is none. Raises: ConfigError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(fd, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ConfigError(f"Expected a regular file: {clip(path, 200)}")
            parts: list[bytes] = []
            size = 0
            while size <= cap and (part := file.read(cap + 1 - size)):
                parts.append(part)
                size += len(part)
            data = b"".join(parts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise ConfigError(f"cannot read {clip(path, 200)}: {reason}") from exc
    if len(data) > cap:
        raise ConfigError(f"Expected at most {cap} bytes, got more - at {clip(path, 200)}")
    return data
