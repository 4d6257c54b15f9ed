"""A registry of releases: publish, approve, promote, roll back, hold, move thresholds, see who decided what, collect garbage.

    registry = ri.Registry("registry", trust="unsigned")     # or s3://bucket/registry
    registry.publish("releases/fraud")
    registry.promote("fraud:1.2", why="passed the check of 24 November")
    scorer = ri.Scorer.load(registry.read("fraud"), store=store, trust="unsigned")

Rules:
  * Nothing is edited. Releases, pointers and approvals are files that are written once; a new pointer is the next number.
    Whoever is killed in between leaves the old state or the new one, and litter that is collected later.
  * A release is there when its version is taken by it, which is the last thing that publishing does. Each publisher fills a
    folder of its own, so two of them meet at one file only, and one of them wins.
  * Moving a pointer means making the file of the next number: who decided on what is no longer true loses, and is told.
  * Before a release gets a role it is pinned, so that nobody collects it (registry_garbage.py).
  * With a trust file, what counts is what its keys have signed: releases, approvals, pointers. Whoever can write to the place
    can then delete, and nothing else.

    names/fraud/1.2.0001.json        a version is taken: by which content, where it lies
    releases/fraud-1.2-.../          the files of a release
    pointers/production/fraud/00000007.json      overrides/production/fraud/00000002.json
    approvals/<digest>/...           pins/...   collected/<folder>/...   temporary/...

What a move means is registry_rules.py, what files mean is registry_records.py, how they get there is registry_files.py.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from retailinfer.clock import Clock, SystemClock
from retailinfer.errors import (
    ConfigError,
    ConflictError,
    IntegrityError,
    ManifestError,
    RegistryError,
    TrustError,
    clip,
)
from retailinfer.policy import Policy
from retailinfer.release.bundle import (
    SIGNATURE,
    assemble,
    is_detached,
    read_bundle,
    read_detached,
    resolve_trust,
)
from retailinfer.release.manifest import MANIFEST, MAX_MANIFEST_BYTES, encode_manifest, sha256_hex
from retailinfer.release.overrides import check_new, open_overrides
from retailinfer.release.registry_files import open_files
from retailinfer.release.registry_garbage import DAY_S, Garbage, collect
from retailinfer.release.registry_records import NAME, Records, told
from retailinfer.release.registry_rules import (
    Changes,
    Listed,
    Publication,
    Published,
    Role,
    in_force,
    moment_of,
    pointer_after,
    promoted,
    roles_of,
    rolled_back,
    same_roles,
    withdrawn,
)
from retailinfer.release.report import passing_report, read_report
from retailinfer.release.statements import (
    Approval,
    Lift,
    Override,
    Pointer,
    ReleaseStatement,
    encode_statement,
    moment_text,
)

if TYPE_CHECKING:
    from retailinfer.release.trust import LogEntry, OverrideVerdict, PointerVerdict
    from retailinfer.release.trust_files import Trust

__all__ = ["Garbage", "InForce", "Listed", "Published", "Registry"]

PathLike = str | os.PathLike[str]
Change = Callable[[Pointer | None], Changes]

UPLOAD_S = DAY_S // 2  # a publisher gives up after half the time after which its folder counts as litter
LAST_S = 253_402_300_800  # the year 10000
ATTEMPTS = 20  # at a document of the next number, while others write theirs
_HEX = re.compile(r"[0-9a-f]{8,64}")


class InForce(NamedTuple):
    """A pointer, the bytes of its document, and by whom it was signed (None where nobody is asked)."""

    pointer: Pointer
    document: bytes
    verdict: PointerVerdict | None


class Series(NamedTuple):
    """Overrides and lifts of a name, as who writes the next one needs them.

    Attributes:
        position: of the last document. last: SHA-256 of that of the last entry; None = there is none.
    """

    log: tuple[LogEntry, ...]
    position: int
    last: str | None


class Overridden(NamedTuple):
    """Overrides and lifts that count, the documents of a name, and what to remember (None where nobody is asked)."""

    log: tuple[LogEntry, ...]
    documents: tuple[bytes, ...]
    verdict: OverrideVerdict | None


class Registry:
    """Releases, and the pointers that say which of them answer.

    Args:
        place: a folder, or a URL that fsspec knows (`pip install 'retailinfer[registry]'`).
        trust: a trust file, a `Trust`, or "unsigned"; None reads the setting RETAILINFER_TRUST.
        keys: private keys (`PrivateKey`) that sign the pointers and approvals made here.
        who: who decides here, for the history; None = the account of this process.
        environment: whose pointers are meant; by default that of the trust file, else "production". Several environments share
            the releases.
        approvals: of how many different people a release needs before it becomes champion or canary. It counts names; whose
            agreement must be signed is said by the trust file.
        single_writer: no two processes ever write at once; needed where a store cannot tell who came first.
        storage_options: for fsspec: credentials, endpoints.
    Raises: ConfigError. Nothing is read or made before the first call. Safe to use from several threads.
    """

    def __init__(
        self,
        place: PathLike,
        *,
        trust: str | os.PathLike[str] | Trust | None = None,
        keys: Iterable[Any] = (),
        who: str | None = None,
        environment: str | None = None,
        approvals: int = 0,
        single_writer: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not isinstance(approvals, int) or approvals < 0:
            raise ConfigError(f"Expected approvals to be a whole number >= 0, got {clip(approvals)}")
        self.trust = resolve_trust(trust)
        if environment is None:
            environment = "production" if self.trust is None else self.trust.file.environment
        self.environment = _name("environment", environment)
        if self.trust is not None and self.trust.file.environment != environment:
            raise ConfigError(
                f"Expected the environment of the trust file, `{self.trust.file.environment}`, got {clip(environment)}"
            )
        self._n_approvals = approvals
        self._who = who
        self._clock: Clock = SystemClock() if clock is None else clock
        files = open_files(place, single_writer=single_writer, storage_options=storage_options)
        self._records = Records(files, self.trust, tuple(keys), self._clock)

    @property
    def clock(self) -> Clock:
        """Whose time counts here."""
        return self._clock

    def __repr__(self) -> str:
        return f"<Registry {self._records.files.origin} ({self.environment})>"

    # ---- releases ----------------------------------------------------------------------------------------------------

    def publish(self, source: PathLike | Mapping[str, bytes], *, who: str | None = None) -> Published:
        """Put a release into the registry; a second time it changes nothing.

        Args:
            source: its directory, or its files by name. It is verified before anything is written; signatures and approvals
                beside it come along.
        Raises: BundleError, ConflictError when its version is taken by another content, RegistryError.
        """
        bundle, records = read_bundle(source), self._records
        manifest, data = bundle.manifest, encode_manifest(bundle.manifest)
        beside = read_detached(source)
        if self.trust is not None:  # approvals may come later; they are asked for when it is promoted
            signature = ReleaseStatement, "release"
            self.trust.rules.open(SIGNATURE, beside.get(SIGNATURE, b""), *signature, now_s=self.trust.now_s())
        generation = 1
        if (taken := records.newest(manifest.name, manifest.version)) is not None:
            same = _same_or_refuse(taken[1], manifest.digest)
            if not records.is_collected(taken[1]):
                return same
            generation = taken[0] + 1
        files = {**bundle.files, **beside}
        claim = Publication(
            name=manifest.name,
            version=manifest.version,
            digest=manifest.digest,
            folder=f"{manifest.name}-{manifest.version}-{manifest.digest[:12]}-{records.stamp('-')}",
            size=len(data) + sum(map(len, files.values())),
            issued=moment_text(self._now_s()),
            who=self._person(who),
        )
        end_ns = self._clock.monotonic_ns() + UPLOAD_S * 10**9
        try:
            for name, content in [*files.items(), (MANIFEST, data)]:
                records.files.put(f"releases/{claim.folder}/{name}", content)
            self._check_time(claim, end_ns)
            won = records.take(claim, generation)
        except BaseException:
            self._drop_upload(claim)
            raise
        if won:
            return Published(manifest.name, manifest.version, manifest.digest, new=True)
        self._drop_upload(claim)
        taken = records.newest(manifest.name, manifest.version)
        if taken is None:
            raise RegistryError(f"the registry lost {claim.release}", hint="who deletes files there?")
        return _same_or_refuse(taken[1], manifest.digest)

    def releases(self, name: str | None = None) -> tuple[Listed, ...]:
        """Every release, or those of one name; the newest last. Raises: RegistryError."""
        found: list[Listed] = []
        marked, approved = self._records.collected(), set(self._records.files.names("approvals"))
        for one in self._records.names() if name is None else [_name("name", name)]:
            roles = roles_of(self._records.latest(self.environment, one)[1])
            found += [
                Listed(
                    *(claim.name, claim.version, claim.digest, claim.issued, claim.who, claim.size),
                    roles=tuple(role for role, digest in roles.items() if digest == claim.digest),
                    approvals=len(self._approvers(claim)) if claim.digest in approved else 0,
                    collected=claim.folder in marked and self._records.is_collected(claim),
                )
                for _, claim in self._records.versions(one).values()
            ]
        return tuple(sorted(found, key=lambda listed: (listed.name, listed.issued, listed.version)))

    def find(self, ref: str) -> Publication:
        """The release that a text means.

        Args:
            ref: "fraud:1.2", a digest or its first 8 digits or more, or "fraud": its champion in this environment.
        Raises: RegistryError when there is none, or more than one.
        """
        return self._find(ref)

    def read(self, ref: str, *, name: str | None = None) -> dict[str, bytes]:
        """The files of a release by name, as `Scorer.load` and `Ranker.load` take them, verified as these will do it again.

        Args:
            name: of the release, where `ref` is a digest: no other name is searched for it.
        Raises: RegistryError, IntegrityError, ManifestError; with a trust file also SignatureError, TrustError, RollbackError.
        """
        claim = self._find(ref, name=name)
        at = f"releases/{claim.folder}"
        names = set(self._records.files.names(at))
        if MANIFEST not in names:
            raise self._records.gone(claim)
        approvals = self._records.signed_approvals(claim)
        held: dict[str, bytes] = {}

        def read(name: str, size: int | None, cap: int) -> bytes:
            data = approvals.get(name)
            if data is None:
                data = self._records.files.read(f"{at}/{name}", cap if size is None else size)
            if data is None or (size is not None and len(data) != size):
                raise self._records.gone(claim)
            held[name] = data
            return data

        try:
            manifest = assemble(names | approvals.keys(), read, at, self.trust, claim.digest).manifest
        except IntegrityError as exc:
            if self._records.is_collected(claim):  # while it was read, or by somebody who was interrupted
                raise self._records.gone(claim) from exc
            raise
        if (manifest.name, manifest.version) != (claim.name, claim.version):
            raise IntegrityError(
                f"Expected {claim.release}, got {manifest.release} - at {at} of the registry"
            )
        for file in sorted({*filter(is_detached, names), *approvals} - held.keys()):
            read(file, None, MAX_MANIFEST_BYTES)
        return held

    def approve(
        self,
        ref: str,
        *,
        why: str,
        report: bytes | PathLike,
        who: str | None = None,
        valid_days: float | None = None,
    ) -> Approval:
        """Say that a release may answer in this environment. The same approval twice is one.

        Args:
            report: of `ri.check`, JSON or page, or its file. It must be about this release and let it pass; its SHA-256 is
                recorded.
            valid_days: after which the approval counts no more; None = never.
        Raises: RegistryError; ConfigError for a report of another release, or one that failed.
        """
        claim = self._find(ref)
        if self._records.is_collected(claim):
            raise self._records.gone(claim)
        content = read_report(report)
        passing_report(content, claim.digest, claim.release)
        now_s = self._now_s()
        approval = Approval(
            name=claim.name,
            digest=claim.digest,
            environment=self.environment,
            who=self._person(who),
            why=_text("why", why),
            issued=moment_text(now_s),
            report=sha256_hex(content),
            expires=_end(now_s, valid_days),
        )
        return self._records.add_approval(claim, approval)

    def approvals(self, ref: str) -> tuple[Approval, ...]:
        """Who approved a release for this environment, oldest first; expired ones are left out. Raises: RegistryError."""
        return tuple(self._records.approvals(self.environment, self._find(ref)))

    # ---- pointers ----------------------------------------------------------------------------------------------------

    def pointer(self, name: str) -> Pointer | None:
        """Which releases of a name have which role now; None before the first promotion.

        Raises: RegistryError; with a trust file also TrustError and RollbackError for a pointer that must not be followed:
            expired, revoked, older than what this host has accepted.
        """
        return self._records.in_force(self.environment, _name("name", name))

    def verdict(self, name: str) -> PointerVerdict | None:
        """The pointer in force with the keys that signed it, and what `Trust.remember` takes once its release is loaded.

        Raises: as `pointer`; ConfigError without a trust file.
        """
        if self.trust is None:
            raise ConfigError("Expected a trust file, for verdicts are about signatures")
        return self._records.verdict(self.trust, self.environment, _name("name", name))

    def in_force(self, name: str) -> InForce | None:
        """The pointer with the document that it came in, for those who keep it. Raises: as `pointer`."""
        document = self._records.document_in_force(self.environment, _name("name", name))
        return None if document is None else self.opened(name, document)

    def opened(self, name: str, document: bytes, *, kept: bool = False) -> InForce:
        """A pointer out of its document, checked as if the registry had it now.

        Args:
            kept: by this host, when it followed it; an expired one then has the grace of the trust file.
        Raises: as `pointer`, IntegrityError, ManifestError.
        """
        if self.trust is None:
            return InForce(self._records.opened(self.environment, name, document), document, None)
        verdict = self.trust.check_pointer(document, name, kept=kept)
        return InForce(verdict.pointer, document, verdict)

    def history(self, name: str) -> tuple[Pointer, ...]:
        """Every pointer of a name, oldest first: what was decided, when, by whom and why.

        With a trust file these are the pointers that its keys have signed in its epoch; "unsigned" shows all.

        Raises: RegistryError.
        """
        return self._records.history(self.environment, _name("name", name))

    def at(self, name: str, moment: dt.datetime | str) -> Pointer | None:
        """The pointer that was in force at a moment, such as "2026-11-24T14:03Z"; None before the first.

        Raises: ConfigError for a moment without a time zone, RegistryError.
        """
        return in_force(self.history(name), moment_of(moment))

    def promote(
        self,
        ref: str,
        *,
        why: str,
        role: Role = "champion",
        share: float | None = None,
        who: str | None = None,
        seq: int | None = None,
        valid_days: float | None = None,
    ) -> Pointer:
        """Give a release a role. Promoting what has the role already changes nothing.

        Args:
            role: "champion" answers; "canary" answers for a `share` of the entities; "challenger" is compared with the
                champion; "shadow" scores and never answers. A release has one role at most.
            seq: the number of the pointer that the decision was made on; None = the one that is in force.
            valid_days: after which a newer pointer is needed; None = never.
        Raises: ConflictError when somebody else moved the pointer meanwhile, RegistryError when it is held, when the release
            is not there or not approved, ConfigError.
        """
        claim = self._find(ref)

        def change(before: Pointer | None) -> Changes:
            changes = promoted(before, claim.digest, role, share)
            if role in ("champion", "canary"):
                self._check_approved(claim)
            return changes

        return self._move(claim.name, change, why, who, seq=seq, valid_days=valid_days, pins=lambda _: claim)

    def withdraw(self, name: str, role: Role, *, why: str, who: str | None = None) -> Pointer:
        """Take a canary, challenger or shadow out of its role. Raises: ConflictError, RegistryError, ConfigError."""
        return self._move(name, lambda before: withdrawn(before, role), why, who, though_held=True)

    def roll_back(
        self,
        name: str,
        *,
        why: str,
        to: str | None = None,
        hold: bool = False,
        who: str | None = None,
    ) -> Pointer:
        """Make the champion before the present one the champion again; allowed while the pointer is held.

        Args:
            to: another earlier champion.
            hold: also hold the pointer, so that nothing is promoted before somebody resumes it.
        Raises: ConflictError, RegistryError when there is no earlier champion or its files are gone.
        """
        target = None if to is None else self._find(to).digest

        def change(_: Pointer | None) -> Changes:
            changes = rolled_back(self.history(name), target)
            return {**changes, "hold": _text("why", why)} if hold else changes

        return self._move(
            name,
            change,
            why,
            who,
            though_held=True,
            pins=lambda after: self._find(after.champion or "", name=name),
        )

    def hold(self, name: str, *, why: str, who: str | None = None) -> Pointer:
        """Let nothing be promoted until `resume`; going back stays possible. Raises: RegistryError."""
        return self._insist(name, {"hold": _text("why", why)}, why, who)

    def resume(self, name: str, *, why: str, who: str | None = None) -> Pointer:
        """End a hold. Raises: RegistryError."""
        return self._insist(name, {"hold": None}, why, who)

    def renew(
        self, name: str, *, why: str, valid_days: float | None = None, who: str | None = None
    ) -> Pointer:
        """The same roles in a new pointer, with a new end. Raises: ConflictError, RegistryError."""
        return self._move(
            name, lambda _: {}, why, who, valid_days=valid_days, though_held=True, though_same=True
        )

    # ---- thresholds --------------------------------------------------------------------------------------------------

    def override(
        self,
        name: str,
        thresholds: Mapping[str, float],
        *,
        until: dt.datetime | str,
        why: str,
        segment: str | None = None,
        begins: dt.datetime | str | None = None,
        release: str | None = None,
        who: str | None = None,
    ) -> Override:
        """Move thresholds of the champion for a while, inside the envelope that its policy declares.

        Args:
            thresholds: action -> lowest score. segment: whose; None = the common bands.
            until: when it ends, with a time zone, within 31 days. begins: now by default.
            release: another release than the champion, as `find` takes it.
        Returns: what was written; hosts that follow act on it. Raises: ConfigError for a threshold outside its envelope, one
            that meets another one, or moments that cannot be; ConflictError when somebody else moved one meanwhile,
            RegistryError; with a trust file also SignatureError where none of `keys` may, TrustError, RollbackError where a
            document of those before was changed.
        """
        claim = self._find(_name("name", name) if release is None else release, name=None)
        if claim.name != name:
            raise ConfigError(f"Expected a release of `{name}`, got {claim.release}")
        policy = self._policy_of(claim)
        log, position, last = self._override_series(name)
        now_s = self._now_s()
        issued = moment_text(now_s)
        entry = Override(
            name=name,
            environment=self.environment,
            digest=claim.digest,
            epoch=1 if self.trust is None else self.trust.file.epoch,
            seq=_next_seq(log, position),
            previous=last,
            issued=issued,
            begins=issued if begins is None else max(_moment(begins), issued),
            until=_moment(until),
            segment=segment,
            thresholds=_thresholds(thresholds),
            who=self._person(who),
            why=_text("why", why),
        )
        check_new(policy, log, entry, release=claim.release, now_s=now_s)
        self._write_override(entry, position)
        return entry

    def lift(
        self, name: str, *, why: str, seqs: Iterable[int] | None = None, who: str | None = None
    ) -> Lift | None:
        """End overrides now.

        Args:
            seqs: their numbers; None = all that hold or will.
        Returns: what was written; None when there was nothing to end. Raises: as `override`.
        """
        asked = None if seqs is None else _numbers(seqs)
        for attempt in range(ATTEMPTS):  # it means the same whatever others did meanwhile
            log, position, last = self._override_series(name)
            now_s = self._now_s()
            there = {one.seq for one in open_overrides(log, now_s=now_s)}
            wanted = there if asked is None else asked
            if missing := sorted(wanted - {one.seq for one in log if isinstance(one, Override)}):
                raise RegistryError(f"`{name}` has no override {missing[0]} in {self.environment}")
            if not wanted & there:
                return None
            entry = Lift(
                name=name,
                environment=self.environment,
                epoch=1 if self.trust is None else self.trust.file.epoch,
                seq=_next_seq(log, position),
                previous=last,
                issued=moment_text(now_s),
                lifts=tuple(sorted(wanted & there)),
                who=self._person(who),
                why=_text("why", why),
            )
            try:
                self._write_override(entry, position)
            except ConflictError:
                if attempt == ATTEMPTS - 1:
                    raise
                continue
            return entry
        raise AssertionError("unreachable")

    def overrides(self, name: str) -> tuple[LogEntry, ...]:
        """Every threshold that was moved (`Override`) and put back (`Lift`), oldest first: when, by whom and why.

        With a trust file these are the ones that its keys have signed in its epoch; "unsigned" shows all. What is in force is
        said by `retailinfer.release.overrides.apply`.

        Raises: RegistryError; with a trust file also RollbackError when one that this host has seen is missing, TrustError.
        """
        return self.overrides_in_force(name).log

    def overrides_in_force(self, name: str, *, documents: Sequence[bytes] | None = None) -> Overridden:
        """The same with the documents that they came in, and what `Trust.remember_overrides` takes once they hold.

        Args:
            documents: that somebody has kept, instead of those that the registry has now.
        Raises: as `overrides`.
        """
        name = _name("name", name)
        if documents is None:
            nobody_may = self.trust is not None and self.trust.file.override is None
            documents = () if nobody_may else self._records.override_documents(self.environment, name)
        if self.trust is None:
            return Overridden(
                self._records.overrides(self.environment, name, documents), tuple(documents), None
            )
        verdict = self.trust.check_overrides(documents, name)
        return Overridden(verdict.log, tuple(documents), verdict)

    def collect_garbage(
        self,
        *,
        unused_days: float = 30,
        history_days: float = 90,
        keep: int = 3,
        dry_run: bool = False,
    ) -> Garbage:
        """Take away the files of releases that nothing needs, and what killed publishers left.

        A release stays while any environment's pointer names it or named it within `history_days`, while a release that is
        needed names it as a permitted fallback, while it is among the newest `keep` of its name, and for `unused_days` after
        it was published. Histories, approvals and versions stay for ever.

        Args:
            dry_run: only say what would be collected.
        Raises: ConfigError, RegistryError; what was collected until then is collected.
        """
        if keep < 0 or not unused_days >= 1 or not history_days >= 0:
            raise ConfigError("Expected keep >= 0, unused_days >= 1 and history_days >= 0")
        return collect(
            self._records,
            unused_s=int(unused_days * DAY_S),
            history_s=int(history_days * DAY_S),
            keep=keep,
            dry_run=dry_run,
        )

    # ---- behind them -------------------------------------------------------------------------------------------------

    def _move(
        self,
        name: str,
        change: Change,
        why: str,
        who: str | None,
        *,
        seq: int | None = None,
        valid_days: float | None = None,
        though_held: bool = False,
        though_same: bool = False,
        pins: Callable[[Pointer], Publication] | None = None,
    ) -> Pointer:
        """Make the next pointer, unless nothing changes. `pins`: the release that the new pointer puts in charge."""
        position, before = self._records.latest(self.environment, _name("name", name))
        if self.trust is not None and not self._records.keys:
            raise ConfigError(
                "Expected keys= that sign pointers", hint="the trust file names who may, as `pointer`"
            )
        if seq is not None and (0 if before is None else before.seq) != seq:
            raise ConflictError(
                f"Expected pointer {seq} of `{name}` to be in force, got {told(before)}",
                hint="look at the history, then decide again",
            )
        if before is None and though_held:
            raise RegistryError(
                f"`{name}` has no pointer in {self.environment}", hint="promote a release first"
            )
        if before is not None and before.hold is not None and not though_held:
            raise RegistryError(
                f"the pointer of `{name}` is held: {clip(before.hold, 200)}",
                hint="resume it first, or roll back",
            )
        now_s = self._now_s()
        after = pointer_after(
            before,
            change(before),
            name=name,
            environment=self.environment,
            epoch=1 if self.trust is None else self.trust.file.epoch,
            issued=moment_text(now_s),
            expires=_end(now_s, valid_days),
            who=self._person(who),
            why=_text("why", why),
        )
        if before is not None and not though_same and same_roles(before, after):
            return before
        with contextlib.nullcontext() if pins is None else self._pinned(pins(after)):
            self._records.write_pointer(after, position + 1)
        return after

    def _policy_of(self, claim: Publication) -> Policy:
        """The policy of a release, verified as a host would do it. Raises: as `read`; ConfigError where it has none."""
        files = self.read(claim.digest)
        policy = read_bundle(files).read("policy", Policy.from_json)
        if policy is None:
            raise ConfigError(f"{claim.release} has no policy, so no thresholds")
        return policy

    def _override_series(self, name: str) -> Series:
        if self.trust is not None and self.trust.file.override is None:
            raise TrustError(
                "the trust file has no role `override`: nobody may move a threshold",
                hint="retailinfer keygen NAME --role override --trust FILE",
            )
        if self.trust is not None and not self._records.keys:
            raise ConfigError(
                "Expected keys= that sign overrides", hint="the trust file names who may, as `override`"
            )
        documents = self._records.override_documents(self.environment, _name("name", name))
        if self.trust is None:
            log = self._records.overrides(self.environment, name, documents)
            return Series(log, len(documents), sha256_hex(documents[-1]) if documents else None)
        verdict = self.trust.rules.overrides(documents, name, now_s=self.trust.now_s())
        return Series(verdict.log, len(documents), verdict.mark.sha256)

    def _write_override(self, entry: LogEntry, position: int) -> None:
        try:
            encode_statement(entry)
        except ManifestError as exc:
            raise ConfigError(str(exc)) from exc
        self._records.write_override(entry, position + 1)

    def _insist(self, name: str, changes: Changes, why: str, who: str | None) -> Pointer:
        """A move that means the same whatever others did meanwhile."""
        for _ in range(ATTEMPTS):
            with contextlib.suppress(ConflictError):
                return self._move(name, lambda _: changes, why, who, though_held=True)
        return self._move(name, lambda _: changes, why, who, though_held=True)

    @contextlib.contextmanager
    def _pinned(self, claim: Publication) -> Iterator[None]:
        """Nobody collects the release while this lasts. Raises: RegistryError when somebody does already."""
        pin = self._records.pin(claim)
        try:
            if self._records.is_collected(claim) or self._records.manifest_bytes(claim) is None:
                raise self._records.gone(claim)
            if self.trust is not None:  # nobody is pointed at what no host would load
                self.read(claim.digest)
            yield
        finally:
            self._records.unpin(pin)

    def _find(self, ref: str, *, name: str | None = None) -> Publication:
        if not isinstance(ref, str) or not ref:
            raise ConfigError(
                f"Expected a release such as fraud:1.2, or the start of its digest, got {clip(ref)}"
            )
        given, colon, version = ref.partition(":")
        if colon:
            found = self._records.newest(_name("name", given), _name("version", version))
            if found is None:
                raise self._unknown(ref)
            return found[1]
        names = self._records.names() if name is None else [name]
        if name is None and given in names:
            pointer = self.pointer(given)
            if pointer is None or pointer.champion is None:
                raise RegistryError(
                    f"`{given}` has no champion in {self.environment}",
                    hint=f"promote one, or name a version such as {given}:1.0",
                )
            ref, names = pointer.champion, [given]
        if not _HEX.fullmatch(ref):
            raise self._unknown(ref)
        matching = {
            claim.digest: claim
            for one in names
            for _, claim in self._records.versions(one).values()
            if claim.digest.startswith(ref)
        }
        if not matching:
            raise self._unknown(ref)
        if len(matching) > 1:
            many = ", ".join(sorted(claim.release for claim in matching.values()))
            raise RegistryError(f"{ref} may be {many}", hint="give more digits of the digest")
        return next(iter(matching.values()))

    def _unknown(self, ref: str) -> RegistryError:
        what = f"the registry {clip(self._records.files.origin, 200)}"
        if not self._records.names():
            return RegistryError(f"{what} is empty", hint="is it the right place? publish a release first")
        return RegistryError(
            f"{what} has no release {clip(ref, 140)}",
            hint="Expected NAME:VERSION, NAME for its champion, or 8 digits or more of a digest",
        )

    def _approvers(self, claim: Publication) -> set[str]:
        return {approval.who for approval in self._records.approvals(self.environment, claim)}

    def _check_approved(self, claim: Publication) -> None:
        n = len(self._approvers(claim)) if self._n_approvals else 0
        if n < self._n_approvals:
            raise RegistryError(
                f"{claim.release} is approved by {n} of {self._n_approvals} people in {self.environment}",
                hint="somebody else has to approve it first",
            )

    def _check_time(self, claim: Publication, end_ns: int) -> None:
        if self._clock.monotonic_ns() > end_ns:
            raise RegistryError(f"publishing {claim.release} took more than {UPLOAD_S // 3600} hours")

    def _drop_upload(self, claim: Publication) -> None:
        """Take away what was uploaded in vain. What cannot be taken away now is garbage tomorrow."""
        with contextlib.suppress(Exception):
            taken = self._records.newest(claim.name, claim.version)
            if taken is None or taken[1].folder != claim.folder:  # a write that failed may have taken effect
                self._records.delete_release(claim.folder)

    def _now_s(self) -> float:
        return self._clock.wall_ns() / 1e9

    def _person(self, who: str | None) -> str:
        person = self._who if who is None else who
        if person is None:
            import getpass  # noqa: PLC0415 - only who decides without saying who

            try:
                person = getpass.getuser()
            except (OSError, KeyError, ImportError) as exc:
                raise ConfigError("nobody is known who decides this", hint="say who=") from exc
        return _text("who", person, 256)


def _name(label: str, value: str) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ConfigError(f"Expected [a-z0-9][a-z0-9._-]{{0,63}} as {label}, got {clip(value)}")
    return value


def _text(label: str, value: object, size: int = 4096) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > size:
        raise ConfigError(f"Expected {label}= to be a text of 1 to {size} characters, got {clip(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"Expected text that UTF-8 can hold as {label}=, got {clip(value)}") from None
    return value


def _moment(when: dt.datetime | str) -> str:
    """As statements write it, which have four digits for a year."""
    seconds = moment_of(when)
    if not 0 <= seconds < LAST_S:
        raise ConfigError(f"Expected a moment of the years 1970 to 9999, got {clip(str(when))}")
    return moment_text(seconds)


def _numbers(seqs: object) -> set[int]:
    if not isinstance(seqs, Iterable) or isinstance(seqs, (str, bytes)):
        raise ConfigError(f"Expected seqs= as numbers of overrides, such as [3], got {clip(seqs)}")
    found = list(seqs)
    if not all(isinstance(seq, int) and not isinstance(seq, bool) for seq in found):
        raise ConfigError(f"Expected seqs= as numbers of overrides, such as [3], got {clip(found)}")
    return set(found)


def _thresholds(given: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(given, Mapping) or not all(isinstance(action, str) for action in given):
        raise ConfigError(f"Expected thresholds as action -> score, got {clip(given, 80)}")
    return {action: low if isinstance(low, bool) else _number(low) for action, low in given.items()}


def _number(low: Any) -> Any:
    """A float, of integers and NumPy's scalars too; what is no number stays, for whoever refuses it."""
    try:
        return float(low) if hasattr(low, "__float__") else low
    except (TypeError, ValueError, OverflowError):
        return low


def _next_seq(log: Iterable[LogEntry], position: int) -> int:
    """A number that no document had, not even one whose signature counts no more."""
    return max([position, *(one.seq for one in log)]) + 1


def _end(now_s: float, days: float | None) -> str | None:
    if days is None:
        return None
    if not 0 < days <= 36_500:
        raise ConfigError(f"Expected valid_days above 0 and at most 36500, got {clip(days)}")
    return moment_text(now_s + days * DAY_S)


def _same_or_refuse(taken: Publication, digest: str) -> Published:
    if taken.digest == digest:
        return Published(taken.name, taken.version, digest, new=False)
    raise ConflictError(
        f"{taken.release} is there with another content ({taken.digest[:12]}, published by {clip(taken.who)} "
        f"at {taken.issued}); releases never change",
        hint="pack it with another version",
    )
