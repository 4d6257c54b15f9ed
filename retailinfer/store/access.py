"""Who may read what of a store: tables, and the windows over a stream, by the names of releases.

Rules:
  * Nothing is closed unless the store says so; `"*"` speaks for everything that is not named.
  * A release is asked once, when it is loaded, before any of its models is opened, about everything that its features read.
    No request pays for it.
  * What counts is the name in the verified manifest. With `trust="unsigned"` that name is a claim like any other.
  * It keeps releases to what they were given; code of the process reads `store[...]` as it likes.
What a release reads is features/lineage.py's to say; who asks is pipeline.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol

import msgspec

from retailinfer.errors import AccessError, ConfigError, clip

__all__ = ["Access", "check_access", "check_rules"]

EVERYTHING = "*"
_WHAT = {"table": "table", "aliases": "the aliases of", "stream": "the windows over stream"}
_PATTERN = re.compile(r"[a-z0-9*][a-z0-9._*-]{0,63}")  # the name of a release, with stars for anything


class Access(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may read a table of a store, or the windows over a stream.

    Args:
        readers: names of releases, as in `("fraud", "recs-*")`; `*` stands for any characters. Empty: nobody.
        owner: whom to ask; error messages name them.
    """

    readers: tuple[str, ...] = ()
    owner: str | None = None

    def allows(self, release: str) -> bool:
        """Whether a release of this name may read it."""
        return any(fnmatchcase(release, one) for one in self.readers)


class Reads(Protocol):
    """What a release reads; `features.lineage.Reading` is one."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def columns(self) -> tuple[str, ...]: ...


class Aliased(NamedTuple):
    """The other names of an entity's keys. Whoever has the entity looks them up, be it only to count under the right key."""

    name: str
    kind: str = "aliases"
    columns: tuple[str, ...] = ()


class Named(Protocol):
    """What a manifest calls its release."""

    @property
    def name(self) -> str: ...
    @property
    def release(self) -> str: ...


def check_rules(
    access: Mapping[str, Access], tables: Iterable[str], *, has_windows: bool
) -> dict[str, Access]:
    """The rules of a store. Raises: ConfigError for a rule that would protect nothing, or means nothing."""
    if not isinstance(access, Mapping):
        raise ConfigError(
            f"Expected access= as {{table or stream: ri.Access}}, got `{type(access).__name__}`"
        )
    known = set(tables)
    for name, rule in access.items():
        if not isinstance(rule, Access):
            raise ConfigError(
                f"Expected an ri.Access for {clip(name)}, got `{type(rule).__name__}` - at access",
                hint='ri.Access(readers=("fraud", "recs-*"), owner="cards team")',
            )
        readers: Any = rule.readers
        if not isinstance(readers, (tuple, list)) or not all(
            isinstance(one, str) and _PATTERN.fullmatch(one) for one in readers
        ):
            raise ConfigError(
                f"Expected names of releases, with `*` for anything, got {clip(rule.readers)} - at access[{name!r}].readers"
            )
        if name != EVERYTHING and name not in known and not has_windows:
            raise ConfigError(
                f"access= names {clip(name)}, and the store has no such table and no windows",
                hint=f"its tables: {', '.join(f'`{one}`' for one in known) or 'none'}",
            )
    return dict(access)


def check_access(rules: Mapping[str, Access], release: str, name: str, reads: Iterable[Reads]) -> None:
    """Refuse a release that reads what it may not.

    Args:
        release: name and version, for messages. name: the one that rules are about.
        reads: tables, aliases and streams count; what else is listed there is read through them.
    Raises: AccessError for the first of them.
    """
    for one in reads:
        rule = rules.get(one.name, rules.get(EVERYTHING)) if one.kind in _WHAT else None
        if rule is None or rule.allows(name):
            continue
        who = rule.owner or "its owner"
        readers = ", ".join(f"`{reader}`" for reader in rule.readers) or "nobody"
        what = _WHAT[one.kind]
        columns = (
            f" ({', '.join(one.columns[:5])}{', ...' if len(one.columns) > 5 else ''})" if one.columns else ""
        )
        raise AccessError(
            f"release `{release}` may not read {what} `{one.name}`{columns}: it is {who}'s, readers are {readers}"
            if rule.owner
            else f"release `{release}` may not read {what} `{one.name}`{columns}: readers are {readers}",
            hint=f"ask {who} to add `{name}` to ri.Store(access={{{one.name!r}: ...}}), or pack a release without it",
        )
