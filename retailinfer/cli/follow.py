"""`retailinfer follow`: what a process that starts on this host would answer with, and why; nothing is loaded or written.

The decision is the follower's own (release/following.py); where it comes from is read as the follower reads it.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from retailinfer.cli.console import Console
from retailinfer.cli.trusting import trust_of
from retailinfer.errors import BundleError, IntegrityError, RegistryError, RetailInferError
from retailinfer.release.bundle import read_bundle
from retailinfer.release.following import decide, rollback_holds
from retailinfer.release.last_good import STATE, LastGood

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retailinfer.release.following import LocalRollback, Step
    from retailinfer.release.last_good import Kept
    from retailinfer.release.registry import InForce, Registry
    from retailinfer.release.statements import Pointer

__all__ = ["run"]


def run(options: argparse.Namespace, console: Console) -> int:
    """Look at the registry and at what is kept; exit code 1 where nothing would answer. Raises: ConfigError."""
    from retailinfer.release.registry import Registry

    registry = Registry(
        options.registry, trust=trust_of(options) or "unsigned", environment=options.environment
    )
    last_good = None
    if options.last_good:
        last_good = LastGood(options.last_good, environment=registry.environment, name=options.name)
        if registry.trust is not None:
            registry.trust.remember_in(last_good.root / STATE)
    problem: RetailInferError | None = None
    found: InForce | None = None
    try:
        found = registry.in_force(options.name)
    except (RegistryError, BundleError) as exc:
        problem = exc
    pointer = None if found is None else found.pointer
    kept = () if last_good is None else last_good.kept()
    rollback = None if last_good is None else last_good.rollback()
    if not rollback_holds(rollback, pointer):
        rollback = None
    step = decide(pointer, running=None, rollback=rollback)
    if step.digest is None and problem is None:
        problem = RegistryError(f"`{options.name}` has no champion in {registry.environment}")
    answers, refused = _first_good(registry, last_good, options.name, step, kept)
    _say_known(console, registry.environment, pointer, problem, kept, rollback)
    _say_answer(console, answers, refused)
    console.emit(
        {
            "ok": answers is not None,
            "environment": registry.environment,
            "pointer": pointer,
            "problem": None if problem is None else f"{type(problem).__name__}: {problem}",
            "kept": [
                {"version": one.version, "digest": one.digest, "verified": one.verified} for one in kept
            ],
            "rollback": rollback,
            "refused": refused,
            "answers": answers,
        }
    )
    return 0 if answers is not None else 1


def _first_good(
    registry: Registry, last_good: LastGood | None, name: str, step: Step, kept: Sequence[Kept]
) -> tuple[dict[str, str] | None, list[dict[str, str]]]:
    """The release that would answer, and those that were refused before it, in the order in which a start tries them."""
    tries: list[tuple[str, str]] = []
    if step.digest is not None:
        tries += [(step.digest, "last good")] if any(one.digest == step.digest for one in kept) else []
        tries.append((step.digest, "registry"))
    tries += [(one.digest, "last good") for one in kept if (one.digest, "last good") not in tries]
    refused = []
    for digest, source in tries:
        try:
            # Of an operator's rollback the host's own memory has to allow what it names.
            decided_here = step.rolled_back and digest == step.digest
            release = _verified(registry, last_good, digest, source, name, decided_here=decided_here)
        except (RegistryError, BundleError) as exc:
            refused.append({"digest": digest, "from": source, "error": f"{type(exc).__name__}: {exc}"})
        else:
            return {"release": release, "digest": digest, "from": source, "why": step.why}, refused
    return None, refused


def _verified(
    registry: Registry,
    last_good: LastGood | None,
    digest: str,
    source: str,
    name: str,
    *,
    decided_here: bool,
) -> str:
    """Read a release and verify all that can be without loading it; its name and version."""
    if source == "registry" or last_good is None:
        files = registry.read(digest, name=name)
    else:
        one = next(one for one in last_good.kept() if one.digest == digest)
        if not decided_here:
            registry.opened(name, one.pointer, kept=True)
        files = last_good.files(digest) or {}
    expected = None if decided_here else digest
    manifest = read_bundle(files, trust=registry.trust, expected=expected, chosen=False).manifest
    if manifest.digest != digest:
        raise IntegrityError(f"Expected the release `{digest[:12]}...`, got `{manifest.digest[:12]}...`")
    return manifest.release


def _say_known(
    console: Console,
    environment: str,
    pointer: Pointer | None,
    problem: RetailInferError | None,
    kept: Sequence[Kept],
    rollback: LocalRollback | None,
) -> None:
    if pointer is not None:
        console.say(
            f"pointer {pointer.seq} in {environment}, of {pointer.issued}, by {pointer.who}: {pointer.why}"
        )
        if pointer.hold is not None:
            console.say(f"held: {pointer.hold}")
    if problem is not None:
        console.say(f"registry: {problem}")
    for one in kept:
        console.say(f"kept here: version {one.version}, digest {one.digest[:12]}, loaded {one.verified}")
    if rollback is not None:
        console.say(f"rolled back here at {rollback.at}: {rollback.why}")


def _say_answer(console: Console, answers: dict[str, str] | None, refused: Sequence[dict[str, str]]) -> None:
    for one in refused:
        console.say(f"refused: {one['digest'][:12]} from {one['from']}: {one['error']}")
    if answers is None:
        console.say("a process that starts now has nothing to answer with")
    else:
        where = "the registry" if answers["from"] == "registry" else "what is kept here"
        console.say(f"a process that starts now answers with {answers['release']}, from {where}")
