"""What a registry decides, without touching a file: how pointers move, what was in force when, what is still needed.

Rules:
  * A pointer is never changed: each move is a new one with the next number, and the highest number is in force.
  * What was in force at a moment is the highest number among those issued until then: a clock that was wrong once does not
    hide what was decided after it.
  * Going back goes down the stack of champions: promoting puts a release on top, going back takes the top away. So going
    back twice goes two releases back, not to and fro.
  * Garbage is what no pointer names now, none named lately, and no release that may answer names as its fallback.
Time comes as an argument. Files and signatures are registry.py.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args

import msgspec
from msgspec import Meta

from retailinfer.errors import ConfigError, RegistryError, clip
from retailinfer.release.statements import Canary, Digest, Moment, Pointer, Short, seconds_of

__all__ = [
    "ROLES",
    "Listed",
    "Publication",
    "Published",
    "Role",
    "champions",
    "digests_in_force",
    "follows",
    "in_force",
    "moment_of",
    "pointer_after",
    "promoted",
    "roles_of",
    "rolled_back",
    "same_roles",
    "unneeded",
    "withdrawn",
]

Role = Literal["champion", "challenger", "canary", "shadow"]
ROLES: tuple[Role, ...] = get_args(Role)
_Name = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,63}\Z")]
Changes = dict[str, Any]  # fields of a Pointer that are other than before


class Publication(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A release is here: its version is taken, by this content, for ever.

    It is not signed: it says where to look, and what is found there has to have the digest.

    Attributes:
        folder: where its files are. size: of them all, in bytes.
        issued: when it was published. who: by whom, as they said.
    """

    name: _Name
    version: _Name
    digest: Digest
    folder: Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,250}\Z")]
    size: Annotated[int, Meta(ge=0)]
    issued: Moment
    who: Short

    @property
    def release(self) -> str:
        """Name and version, as answers carry it."""
        return f"{self.name}:{self.version}"


class Published(NamedTuple):
    """What publishing did. `new`: it was not there before."""

    name: str
    version: str
    digest: str
    new: bool


class Listed(NamedTuple):
    """A release of the registry.

    Attributes:
        issued, who: when it was published, and by whom.
        size: of its files, in bytes.
        roles: that it has in this environment.
        approvals: how many people approved it here.
        collected: its files are gone; its version stays taken.
    """

    name: str
    version: str
    digest: str
    issued: str
    who: str
    size: int
    roles: tuple[str, ...]
    approvals: int
    collected: bool


# ---- moves -----------------------------------------------------------------------------------------------------------


def roles_of(pointer: Pointer | None) -> dict[Role, str]:
    """Role -> digest, for the roles that are taken."""
    if pointer is None:
        return {}
    canary = None if pointer.canary is None else pointer.canary.digest
    found: dict[Role, str | None] = {
        "champion": pointer.champion,
        "challenger": pointer.challenger,
        "canary": canary,
        "shadow": pointer.shadow,
    }
    return {role: digest for role, digest in found.items() if digest is not None}


def promoted(before: Pointer | None, digest: str, role: Role, share: float | None) -> Changes:
    """Give a release a role; it leaves every other one. Raises: ConfigError, RegistryError."""
    if role not in ROLES:
        raise ConfigError(f"Expected role to be one of {', '.join(ROLES)}, got {clip(role)}")
    if (role == "canary") != (share is not None):
        raise ConfigError(
            f"Expected share= for a canary and for nothing else, got {clip(share)} for a {role}",
            hint="share=0.05 lets it answer 5 % of the entities",
        )
    if share is not None and not 0.0 < share < 1.0:  # NaN is neither
        raise ConfigError(f"Expected a share above 0 and below 1, got {clip(share)}")
    taken = roles_of(before)
    if role != "champion" and "champion" not in taken:
        raise RegistryError(
            f"there is no champion yet that a {role} could be beside", hint="promote a champion first"
        )
    if role != "champion" and taken["champion"] == digest:
        raise RegistryError(f"release {digest[:12]} is the champion; it cannot be the {role} as well")
    changes: Changes = {other: None for other in ROLES if taken.get(other) == digest}
    changes[role] = digest if share is None else Canary(digest=digest, share=float(share))
    return changes


def withdrawn(before: Pointer | None, role: Role) -> Changes:
    """Take a role away. Raises: ConfigError, RegistryError."""
    if role not in ROLES or role == "champion":
        raise ConfigError(
            f"Expected role to be one of {', '.join(ROLES[1:])}, got {clip(role)}",
            hint="a champion is replaced or rolled back, never just taken away",
        )
    if role not in roles_of(before):
        raise RegistryError(f"no release is {role}")
    return {role: None}


def champions(history: Iterable[Pointer]) -> list[str]:
    """The stack of champions: the last one answers, the one below it is where going back goes."""
    stack: list[str] = []
    for pointer in history:
        if pointer.champion is None or (stack and stack[-1] == pointer.champion):
            continue
        if pointer.champion in stack:
            del stack[stack.index(pointer.champion) + 1 :]
        else:
            stack.append(pointer.champion)
    return stack


def rolled_back(history: Sequence[Pointer], to: str | None) -> Changes:
    """Make an earlier champion the champion again; what was wrong leaves every role. Raises: RegistryError.

    to: which one; None = the one before the present one.
    """
    stack = champions(history)
    before = history[-1] if history else None
    if not stack or before is None:
        raise RegistryError("there is no champion to go back from")
    if to is None:
        if len(stack) < 2:
            raise RegistryError(
                f"release {stack[-1][:12]} is the first champion: there is none before it",
                hint="promote another release",
            )
        to = stack[-2]
    elif all(pointer.champion != to for pointer in history):
        raise RegistryError(f"release {to[:12]} was never champion", hint="going there is promoting it")
    changes: Changes = {role: None for role, digest in roles_of(before).items() if digest in (stack[-1], to)}
    return {**changes, "champion": to}


# ---- what was in force -----------------------------------------------------------------------------------------------


def moment_of(when: dt.datetime | str) -> int:
    """A moment as seconds since 1970. Raises: ConfigError for one without a time zone."""
    if isinstance(when, str):
        try:
            when = dt.datetime.fromisoformat(when)
        except ValueError as exc:
            raise ConfigError(f"Expected a moment like 2026-11-24T14:03Z, got {clip(when)}") from exc
    if not isinstance(when, dt.datetime):
        raise ConfigError(f"Expected a datetime or a text like 2026-11-24T14:03Z, got {clip(when)}")
    if when.tzinfo is None:
        raise ConfigError(
            f"Expected a moment with its time zone, got {when.isoformat()}", hint="add Z for UTC, or +01:00"
        )
    return int(when.timestamp())


def in_force(history: Sequence[Pointer], at_s: int) -> Pointer | None:
    """The pointer that was in force at a moment (seconds since 1970); None before the first one."""
    return next((one for one in reversed(history) if seconds_of(one.issued) <= at_s), None)


def digests_in_force(history: Sequence[Pointer], since_s: int) -> set[str]:
    """Every release that had a role at some moment from then on, and every champion that going back could reach."""
    needed: set[str] = set(champions(history)[-2:])
    for pointer in reversed(history):
        needed.update(pointer.digests)
        if seconds_of(pointer.issued) <= since_s:
            break  # it was in force when the time begins; what came before it was not
    return needed


# ---- garbage ---------------------------------------------------------------------------------------------------------


def unneeded(
    published: Iterable[Publication],
    needed: Collection[str],
    *,
    before_s: int,
    keep: int,
) -> list[Publication]:
    """Publications that nothing needs: older than a moment, not among the newest `keep` of their name, not needed."""
    by_name: dict[str, list[Publication]] = {}
    for one in published:
        by_name.setdefault(one.name, []).append(one)
    found: list[Publication] = []
    for group in by_name.values():
        group.sort(key=lambda one: (one.issued, one.version))
        older = group[: max(len(group) - keep, 0)]
        found += [one for one in older if one.digest not in needed and seconds_of(one.issued) < before_s]
    return found


def pointer_after(
    before: Pointer | None,
    changes: Mapping[str, Any],
    *,
    name: str,
    environment: str,
    epoch: int,
    issued: str,
    expires: str | None,
    who: str,
    why: str,
) -> Pointer:
    """The next pointer. Numbers begin again at 1 with a new epoch of keys."""
    roles = {} if before is None else {field: getattr(before, field) for field in (*ROLES, "hold")}
    seq = before.seq + 1 if before is not None and before.epoch == epoch else 1
    return Pointer(
        name=name,
        environment=environment,
        epoch=epoch,
        seq=seq,
        issued=issued,
        expires=expires,
        who=who,
        why=why,
        **{**roles, **changes},
    )


def follows(before: Pointer | None, after: Pointer) -> bool:
    """Whether a pointer is the next one."""
    if before is None:
        return after.seq == 1
    if after.epoch == before.epoch:
        return after.seq == before.seq + 1
    return after.epoch > before.epoch and after.seq == 1


def same_roles(before: Pointer | None, after: Pointer) -> bool:
    """Whether a move moves nothing."""
    fields = (*ROLES, "hold")
    return before is not None and all(getattr(before, f) == getattr(after, f) for f in fields)
