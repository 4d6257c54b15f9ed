"""A registry by hand: `retailinfer publish`, `approve`, `promote`, `rollback`, `hold`, `override`, `history` and the like.

Each is one method of `ri.Registry`, and says what it did in one or two lines.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from retailinfer.cli.console import Console, bytes_text
from retailinfer.cli.trusting import PASSWORD_VARIABLE, add_trust, password_of, trust_of
from retailinfer.errors import ConfigError, clip

if TYPE_CHECKING:
    from retailinfer.release.registry import Registry
    from retailinfer.release.statements import Pointer

__all__ = ["ABOUT", "COMMANDS", "add_arguments", "run"]

ABOUT = {
    "publish": (
        "put a release into a registry",
        (
            "Verifies a release and puts its files into a registry: a folder, or a URL such as s3://bucket/registry. It is "
            "there whole or not at all; a second time changes nothing. Another content with the same version is refused."
        ),
    ),
    "approve": (
        "say that a published release may answer",
        (
            "Records who agrees that a release answers, why, and the SHA-256 of the check report that was read, which must be "
            "about this release and let it pass."
        ),
    ),
    "promote": (
        "give a published release a role",
        (
            "Makes a release the champion (it answers), the canary (it answers for a share), the challenger or the shadow of "
            "its name. Of two people who promote at once one wins, and the other is told."
        ),
    ),
    "rollback": (
        "make the champion before the present one champion again",
        "Goes back by one champion, or to another earlier one. Allowed while the pointer is held.",
    ),
    "hold": (
        "let nothing be promoted until `resume`",
        "Holds the pointer of a name: nothing is promoted. Going back stays possible.",
    ),
    "resume": ("end a hold", "Ends what `hold`, or `rollback --hold`, began."),
    "override": (
        "move a threshold for a while",
        (
            "Moves thresholds of the champion until a moment, inside the envelope that its policy declares. Hosts that follow "
            "the registry act on it, say so in every decision, and go back by themselves when it ends."
        ),
    ),
    "lift": (
        "end overrides before their time",
        "Ends all overrides of a name that hold or will, or those with --seq.",
    ),
    "overrides": (
        "show which thresholds were moved, who decided it, and why",
        "Shows every override of a name and how it ended.",
    ),
    "history": (
        "show which release had which role, who decided it, and why",
        "Shows every pointer of a name, or with --at the one that was in force at a moment.",
    ),
    "releases": ("show what is in a registry", "Shows the releases of a registry with their roles."),
    "collect": (
        "take away releases that nothing needs",
        (
            "Takes away the files of releases that no pointer names or named lately, that no needed release names as its "
            "fallback and that are not among the newest, and what interrupted publishers left. Histories stay."
        ),
    ),
}
COMMANDS = tuple(ABOUT)
SIGN = ("approve", "promote", "rollback", "hold", "resume", "override", "lift")  # who decides may sign it


# ---- arguments -------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """The arguments of one of the commands."""
    parser.add_argument("registry", metavar="REGISTRY", help="folder, or URL such as s3://bucket/registry")
    if command == "publish":
        parser.add_argument("release", metavar="DIR", help="directory of the release")
    elif command in ("approve", "promote"):
        parser.add_argument(
            "release", metavar="RELEASE", help="NAME:VERSION, or 8 digits or more of its digest"
        )
    elif command == "releases":
        parser.add_argument("name", nargs="?", metavar="NAME", help="name of the releases (default: all)")
    elif command != "collect":
        parser.add_argument("name", metavar="NAME", help="name of the releases")
    if command in SIGN:
        parser.add_argument("--why", required=True, metavar="TEXT", help="the reason, for the history")
    if command in ("publish", *SIGN):
        parser.add_argument(
            "--by", metavar="WHO", help="who decides, for the history (default: the account that runs this)"
        )
    if command not in ("publish", "collect"):
        parser.add_argument(
            "--environment",
            metavar="NAME",
            help="whose pointers (default: that of the trust file, else production)",
        )
    if command in SIGN:
        parser.add_argument(
            "--key", action="append", default=[], metavar="KEY.pem", help="who signs it; repeatable"
        )
        parser.add_argument(
            "--password-file",
            metavar="FILE",
            help=f"password of the keys (default: the setting {PASSWORD_VARIABLE})",
        )
    add_trust(parser)
    if command in ("approve", "promote"):
        parser.add_argument(
            "--valid-days", type=float, metavar="DAYS", help="after which it counts no more (default: never)"
        )
    if extra := _EXTRA.get(command):
        extra(parser)


def _approve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--report",
        required=True,
        metavar="FILE",
        help="what `retailinfer check` wrote, JSON or page; it must let this release pass",
    )


def _promote(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--role",
        choices=["champion", "challenger", "canary", "shadow"],
        default="champion",
        help="default: %(default)s",
    )
    parser.add_argument("--share", type=float, metavar="X", help="of the entities for a canary: 0.05 is 5 %%")
    parser.add_argument(
        "--seq",
        type=int,
        metavar="N",
        help="number of the pointer that you decided on, as `history` shows it; refused when another is in force",
    )
    parser.add_argument(
        "--approvals", type=int, default=0, metavar="N", help="by how many people it must be approved"
    )


def _rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", metavar="RELEASE", help="another earlier champion")
    parser.add_argument("--hold", action="store_true", help="hold the pointer too, until `resume`")


def _override(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "thresholds",
        nargs="+",
        metavar="ACTION=SCORE",
        help="the new lowest score of an action: decline=0.95",
    )
    parser.add_argument(
        "--until",
        required=True,
        metavar="MOMENT",
        help="when it ends, with its time zone, as in 2026-11-30T06:00Z; within 31 days",
    )
    parser.add_argument("--begins", metavar="MOMENT", help="when it begins (default: now)")
    parser.add_argument(
        "--segment", metavar="VALUE", help="of the policy, whose own bands are meant (default: the common)"
    )
    parser.add_argument("--release", metavar="RELEASE", help="another one than the champion")


def _lift(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seq",
        type=int,
        action="append",
        metavar="N",
        help="number of an override, as `overrides` shows it; repeatable (default: all)",
    )


def _history(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--at", metavar="MOMENT", help="with its time zone, as in 2026-11-24T14:03Z")


def _collect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only say what would be taken away")
    parser.add_argument(
        "--keep", type=int, default=3, metavar="N", help="newest releases of each name that stay (default: 3)"
    )
    parser.add_argument(
        "--unused-days",
        type=float,
        default=30,
        metavar="D",
        help="a release stays so long anyway (default: 30)",
    )
    parser.add_argument(
        "--history-days",
        type=float,
        default=90,
        metavar="D",
        help="and so long after it had a role (default: 90)",
    )


_EXTRA: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "approve": _approve,
    "promote": _promote,
    "rollback": _rollback,
    "override": _override,
    "lift": _lift,
    "history": _history,
    "collect": _collect,
}


# ---- running ---------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, console: Console) -> int:
    """Do what the command says. Raises: RegistryError, BundleError, ConfigError."""
    from retailinfer.release.registry import Registry

    keys = []
    if getattr(options, "key", None):
        from retailinfer.authoring.signing import read_key

        password = password_of(options)
        keys = [read_key(path, password) for path in options.key]
    registry = Registry(
        options.registry,
        trust=trust_of(options) or "unsigned",
        keys=keys,
        who=getattr(options, "by", None),
        environment=getattr(options, "environment", None),
        approvals=getattr(options, "approvals", 0),
    )
    does: dict[str, Callable[[Registry, argparse.Namespace, Console], Any]] = {
        "publish": _do_publish,
        "approve": _do_approve,
        "promote": _do_promote,
        "rollback": _do_move,
        "hold": _do_move,
        "resume": _do_move,
        "override": _do_override,
        "lift": _do_lift,
        "overrides": _do_overrides,
        "history": _do_history,
        "releases": _do_releases,
        "collect": _do_collect,
    }
    console.emit({"ok": True, **does[options.command](registry, options, console)})
    return 0


def _do_publish(registry: Registry, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    done = registry.publish(options.release)
    console.say(
        f"{done.name}:{done.version} {'published' if done.new else 'was there already'}, digest {done.digest[:12]}"
    )
    return done._asdict()


def _do_approve(registry: Registry, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    approval = registry.approve(
        options.release, why=options.why, report=options.report, valid_days=options.valid_days
    )
    report = "" if approval.report is None else f", having read report {approval.report[:12]}"
    console.say(
        f"{approval.name} {approval.digest[:12]} approved for {approval.environment} by {approval.who}{report}"
    )
    n = len({one.who for one in registry.approvals(options.release)})
    console.say(f"approved by {n} {'person' if n == 1 else 'people'}")
    return {"approval": approval, "people": n}


def _do_promote(registry: Registry, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    pointer = registry.promote(
        options.release,
        why=options.why,
        role=options.role,
        share=options.share,
        seq=options.seq,
        valid_days=options.valid_days,
    )
    return _say_pointer(registry, pointer, console)


def _do_move(registry: Registry, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    if options.command == "rollback":
        pointer = registry.roll_back(options.name, why=options.why, to=options.to, hold=options.hold)
    elif options.command == "hold":
        pointer = registry.hold(options.name, why=options.why)
    else:
        pointer = registry.resume(options.name, why=options.why)
    return _say_pointer(registry, pointer, console)


def _do_override(registry: Registry, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    thresholds = {}
    for n, text in enumerate(options.thresholds, 1):
        action, equals, low = text.rpartition("=")
        try:
            thresholds[action] = float(low)
        except ValueError:
            equals = ""
        if not (action and equals):
            raise ConfigError(f"Expected ACTION=SCORE, such as decline=0.95, got {clip(text, 80)}")
        if len(thresholds) < n:
            raise ConfigError(f"the threshold of {clip(action)} is given twice")
    entry = registry.override(
        options.name,
        thresholds,
        until=options.until,
        begins=options.begins,
        segment=options.segment,
        release=options.release,
        why=options.why,
    )
    console.say(
        f"override {entry.seq} of {entry.name} in {entry.environment}, from {entry.begins} until {entry.until}"
    )
    console.table([(action, f"from {low:g}") for action, low in entry.thresholds.items()])
    return {"override": entry}


def _do_lift(registry: Registry, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    entry = registry.lift(options.name, why=options.why, seqs=options.seq)
    if entry is None:
        console.say("nothing to lift")
    else:
        console.say(f"lifted in {entry.environment}: {', '.join(map(str, entry.lifts))}")
    return {"lift": entry}


def _do_overrides(registry: Registry, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    from retailinfer.release.statements import Override

    log = registry.overrides(options.name)
    rows: list[tuple[object, ...]] = []
    for one in log:
        if isinstance(one, Override):
            moved = ", ".join(f"{action} from {low:g}" for action, low in one.thresholds.items())
            where = f" of {one.segment}" if one.segment is not None else ""
            rows.append(
                (one.seq, one.begins, f"{moved}{where} until {one.until}", one.digest[:12], one.who, one.why)
            )
        else:
            rows.append(
                (one.seq, one.issued, f"lifts {', '.join(map(str, one.lifts))}", "", one.who, one.why)
            )
    console.table([("seq", "from", "what", "release", "who", "why"), *rows] if rows else [], right=(0,))
    if not rows:
        console.say(f"no threshold of `{options.name}` was moved in {registry.environment}")
    return {"overrides": [{"kind": type(one).__name__.lower(), **msgspec.to_builtins(one)} for one in log]}


def _say_pointer(registry: Registry, pointer: Pointer, console: Console) -> dict[str, Any]:
    releases = {one.digest: f"{one.name}:{one.version}" for one in registry.releases(pointer.name)}
    console.say(f"pointer {pointer.seq} of {pointer.name} in {pointer.environment}, {pointer.issued}")
    console.table(_role_rows(pointer, releases))
    return {"pointer": pointer}


def _do_history(registry: Registry, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    releases = {one.digest: f"{one.name}:{one.version}" for one in registry.releases(options.name)}
    if options.at is not None:
        pointer = registry.at(options.name, options.at)
        if pointer is None:
            raise ConfigError(f"nothing of `{options.name}` was promoted yet at {options.at}")
        console.say(f"pointer {pointer.seq}, in force since {pointer.issued}")
        console.table(_role_rows(pointer, releases))
        console.say(f"decided by {pointer.who}: {pointer.why}")
        return {"pointer": pointer, "releases": releases}
    pointers = registry.history(options.name)
    rows: list[tuple[object, ...]] = [
        (one.seq, one.issued, ", ".join(map(" ".join, _role_rows(one, releases))), one.who, one.why)
        for one in pointers
    ]
    console.table([("seq", "issued", "roles", "who", "why"), *rows] if rows else [], right=(0,))
    if not rows:
        console.say(f"nothing of `{options.name}` was promoted in {registry.environment}")
    return {"pointers": pointers, "releases": releases}


def _role_rows(pointer: Pointer, releases: dict[str, str]) -> list[tuple[str, str]]:
    canary = pointer.canary
    found = {
        "champion": pointer.champion,
        "challenger": pointer.challenger,
        "canary": None if canary is None else canary.digest,
        "shadow": pointer.shadow,
    }
    rows = [(role, releases.get(digest, digest[:12])) for role, digest in found.items() if digest is not None]
    if canary is not None:
        rows = [
            (role, f"{which} ({canary.share:.2%})" if role == "canary" else which) for role, which in rows
        ]
    if pointer.hold is not None:
        rows.append(("held", pointer.hold))
    return rows


def _do_releases(registry: Registry, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    releases = registry.releases(options.name)
    rows = [
        (
            f"{one.name}:{one.version}",
            one.digest[:12],
            one.issued,
            one.who,
            "collected" if one.collected else bytes_text(one.size),
            ", ".join(one.roles),
            f"{one.approvals} approved" if one.approvals else "",
        )
        for one in releases
    ]
    console.table(rows)
    if not rows:
        console.say("no releases")
    return {"releases": [one._asdict() for one in releases]}


def _do_collect(registry: Registry, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    found = registry.collect_garbage(
        unused_days=options.unused_days,
        history_days=options.history_days,
        keep=options.keep,
        dry_run=options.dry_run,
    )
    verb = "would be collected" if options.dry_run else "collected"
    for release in found.releases:
        console.say(f"  {release}")
    console.say(
        f"{len(found.releases)} releases {verb} ({bytes_text(found.size)}), {found.kept} stay; "
        f"{found.uploads} unfinished uploads and {found.litter} other files of interrupted writers {verb}"
    )
    return {**found._asdict(), "dry_run": options.dry_run}
