"""Thresholds that an operator has moved for a while: what holds when, without touching a file.

Rules:
  * What counts is the log of signed statements in the order of their numbers. Of two that move one threshold the later holds;
    when it ends, or is lifted, the earlier one holds again until its own end.
  * An override is about one release, by its digest, and inside the envelope that this release was signed with. One that does
    not fit on top of those before it moves nothing: it is refused whole, with the reason.
  * Everything that will happen follows from the log and the time: `schedule` says it in advance, so an override ends in time
    although nobody can be asked any more.
Who may sign one is trust.py, where they lie registry_records.py; which scores a threshold parts is policy.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from retailinfer.errors import ConfigError, RegistryError
from retailinfer.policy import Policy
from retailinfer.release.statements import Lift, Override, moment_text, seconds_of
from retailinfer.release.trust import LogEntry

__all__ = ["Applied", "Moved", "Refused", "apply", "check_new", "open_overrides", "schedule"]

LAST = "2262-01-01T00:00:00Z"  # clocks count nanoseconds in 64 bits
MAX_OPEN = 16  # overrides of one release that are not over yet; of more than that the latest count


class Moved(NamedTuple):
    """A threshold that is not where the release has it. `segment`: None = of the common bands."""

    action: str
    segment: str | None
    before: float
    after: float
    override: Override

    def __str__(self) -> str:
        of = "" if self.segment is None else f" of {self.segment[:40]}"
        return (
            f"threshold{of}: {self.action} from {self.after} instead of {self.before} until {self.override.until}, "
            f"override {self.override.seq}"
        )


class Refused(NamedTuple):
    """An override that moves nothing, and why."""

    override: Override
    why: str


class Applied(NamedTuple):
    """What holds from a moment on.

    Attributes:
        from_s: that moment, in seconds since 1970.
        policy: with the thresholds that are in force. moved: those that are not the release's own.
        refused: what would be in force, and does not fit.
    """

    from_s: int
    policy: Policy
    moved: tuple[Moved, ...]
    refused: tuple[Refused, ...]

    @property
    def trace(self) -> tuple[str, ...]:
        """What decisions say of it."""
        return tuple(map(str, self.moved))


def open_overrides(log: Iterable[LogEntry], *, digest: str | None = None, now_s: float) -> list[Override]:
    """Those that hold now or will, of a release or of all, by number; without lifted ones and those that are over."""
    entries, now = list(log), moment_text(now_s)  # moments of statements sort as texts
    lifted = {number for one in entries if isinstance(one, Lift) for number in one.lifts}
    return sorted(
        (
            one
            for one in entries
            if isinstance(one, Override)
            and one.seq not in lifted
            and (digest is None or one.digest == digest)
            and one.until > now
        ),
        key=lambda one: one.seq,
    )


def apply(policy: Policy, log: Iterable[LogEntry], *, digest: str, now_s: float) -> Applied:
    """The policy of a release with the overrides that are in force at a moment (seconds since 1970)."""
    return _at(policy, open_overrides(log, digest=digest, now_s=now_s)[-MAX_OPEN:], int(now_s))


def schedule(policy: Policy, log: Iterable[LogEntry], *, digest: str, now_s: float) -> tuple[Applied, ...]:
    """What holds now, and then everything that will change by itself; the last one holds from then on."""
    coming = open_overrides(log, digest=digest, now_s=now_s)[-MAX_OPEN:]
    moments = {moment for one in coming for moment in (one.begins, one.until)}
    found = [_at(policy, coming, int(now_s))]
    for moment in sorted(moment for moment in moments if moment_text(now_s) < moment < LAST):
        after = _at(policy, coming, seconds_of(moment))
        if (after.moved, after.refused) != (found[-1].moved, found[-1].refused):
            found.append(after)
    return tuple(found)


def check_new(
    policy: Policy, log: Sequence[LogEntry], entry: Override, *, release: str, now_s: float
) -> None:
    """Refuse an override before it is written, where it would move nothing at some moment of its life.

    Args:
        release: name and version, for messages.
    Raises: ConfigError; RegistryError where the release has as many as may be open.
    """
    policy.moved(entry.thresholds, entry.segment)
    if len(open_overrides(log, digest=entry.digest, now_s=now_s)) >= MAX_OPEN:
        raise RegistryError(
            f"{release} has {MAX_OPEN} overrides that are not over yet", hint="lift some of them first"
        )
    for step in schedule(policy, (*log, entry), digest=entry.digest, now_s=now_s):
        for refused in step.refused:
            if refused.override.seq == entry.seq:  # of others that do not hold, a lift before is to blame
                raise ConfigError(
                    f"override {entry.seq} would not hold from {moment_text(step.from_s)} on: {refused.why}",
                    hint="look at the overrides that are in force then",
                )


def _at(policy: Policy, overrides: Sequence[Override], now_s: int) -> Applied:
    now = moment_text(now_s)
    holding = [one for one in overrides if one.begins <= now < one.until]
    changed, refused = policy, []
    moved: dict[tuple[str | None, str], Moved] = {}
    for one in holding:
        try:
            changed = changed.moved(one.thresholds, one.segment)
        except ConfigError as exc:
            refused.append(Refused(one, str(exc)))
            continue
        for action, after in one.thresholds.items():
            before = policy.threshold(action, one.segment)
            moved[one.segment, action] = Moved(action, one.segment, before, after, one)
    told = tuple(moved[key] for key in sorted(moved, key=lambda key: (key[0] or "", key[1])))
    return Applied(now_s, changed, told, tuple(refused))
