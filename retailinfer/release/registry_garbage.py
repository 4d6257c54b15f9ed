"""Collecting what a registry needs no more: which releases, and how nobody is hurt who promotes one meanwhile.

Rules:
  * A release is marked, then it is looked again whether anybody needs it, then its files go. Who promotes pins first and looks
    for marks then. So one of the two sees the other.
  * A collection that was interrupted is finished by the next one.
  * Histories, approvals and taken versions stay: the audit outlives the files.
What counts as needed is registry_rules.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from retailinfer.release.bundle import parse
from retailinfer.release.manifest import MANIFEST, decode_manifest
from retailinfer.release.registry_records import Records, is_before
from retailinfer.release.registry_rules import Publication, digests_in_force, unneeded

__all__ = ["DAY_S", "Garbage", "collect"]

DAY_S = 86_400


class Garbage(NamedTuple):
    """What was collected, or would be.

    Attributes:
        releases: name and version of each. size: of their files, in bytes.
        uploads: what publishers left that never finished. litter: other files of who was interrupted.
        kept: how many releases stay.
    """

    releases: tuple[str, ...]
    size: int
    uploads: int
    litter: int
    kept: int


def collect(records: Records, *, unused_s: int, history_s: int, keep: int, dry_run: bool) -> Garbage:
    """Collect, or say what would be. Raises: RegistryError, IntegrityError; what was collected until then is collected."""
    now_s = records.clock.wall_ns() // 10**9
    claims = records.publications()
    there = set(records.files.names("releases"))
    present = [claim for claim in claims if claim.folder in there]
    needed = _needed(records, now_s - history_s)
    needed |= _fallbacks(records, [claim for claim in present if claim.digest in needed])
    gone = unneeded(present, needed, before_s=now_s - unused_s, keep=keep)
    gone += [
        one for one in present if one not in gone and one.digest not in needed and records.is_collected(one)
    ]
    claimed = {claim.folder for claim in claims}
    uploads = [folder for folder in there if folder not in claimed and is_before(folder, now_s - DAY_S)]
    pins = [pin for pin in records.files.names("pins") if is_before(pin, now_s - DAY_S)]
    litter = len(pins)
    if not dry_run:
        gone = [claim for claim in gone if _collect(records, claim, now_s - history_s)]
        for folder in uploads:
            records.delete_release(folder)
        for pin in pins:
            records.unpin(f"pins/{pin}")
        litter += records.files.sweep(now_s - DAY_S)
    names = tuple(sorted(claim.release for claim in gone))
    size = sum(claim.size for claim in gone)
    return Garbage(names, size, len(uploads), litter, len(present) - len(gone))


def _collect(records: Records, claim: Publication, since_s: int) -> bool:
    """Mark, look again, delete. False: somebody needs it after all."""
    mark = records.mark(claim)
    # Pins before pointers: who takes a pin away has moved the pointer before.
    if records.is_pinned(claim) or claim.digest in _needed(records, since_s):
        records.files.delete(mark)
        return False
    records.delete_release(claim.folder)
    return True


def _needed(records: Records, since_s: int) -> set[str]:
    """Digests that a pointer of any environment names, or named since a moment."""
    return set().union(*(digests_in_force(history, since_s) for history in records.histories()))


def _fallbacks(records: Records, claims: Iterable[Publication]) -> set[str]:
    """Digests that releases name as what may answer in their place."""
    found: set[str] = set()
    for claim in claims:
        data = records.manifest_bytes(claim)
        if data is not None:
            found.update(parse(MANIFEST, decode_manifest, data).info.fallbacks)
    return found
