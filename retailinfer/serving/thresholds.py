"""Thresholds that operators move in a registry, as who follows it knows them.

Rules:
  * A registry that is out of reach changes nothing: what was moved holds until its own end, which the engine keeps. At a start
    the documents that this host has kept say what holds; they are verified like those of the registry.
  * Where what the registry has must not be believed (one was taken away, nothing can be read), nothing is moved: decisions are
    made by the thresholds that were signed with the release.
  * What was seen is remembered and kept after it holds.
What holds when is release/overrides.py, which engine keeps it pipeline.py; who asks is follower.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailinfer.errors import BundleError, RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from retailinfer.release.last_good import LastGood
    from retailinfer.release.overrides import Moved, Refused
    from retailinfer.release.registry import Overridden, Registry
    from retailinfer.release.trust import LogEntry

__all__ = ["Thresholds"]


class Thresholds:
    """Of one name that is followed.

    Attributes:
        log: overrides and lifts that count here.
        problem: why those that the registry has do not; "" = they do.
        refused: number -> why this override alone moves nothing.
    """

    def __init__(self, registry: Registry, name: str, last_good: LastGood | None) -> None:
        self.log: tuple[LogEntry, ...] = ()
        self.problem = ""
        self.refused: dict[int, str] = {}
        self._registry = registry
        self._name = name
        self._last_good = last_good
        self._found: Overridden | None = None
        self._unsettled = False
        self._told: tuple[Moved, ...] = ()
        self._told_problem = ""

    @property
    def why(self) -> str:
        """What is wrong, for people; "" = nothing."""
        return self.problem or "; ".join(f"override {seq}: {why}" for seq, why in self.refused.items())

    def look(self, *, there: bool) -> None:
        """Ask the registry. Raises nothing of ours.

        Args:
            there: it has a pointer of the name; one that has none is empty, or a disk that is not mounted.
        """
        try:
            found = self._registry.overrides_in_force(self._name) if there else None
        except RegistryError:
            found = None
        except BundleError as exc:
            self.log, self.problem, self._found = (), str(exc), None
            return
        if found is not None:
            self._take(found)
        elif self._found is None and not self.problem:
            self._look_at_disk()

    def _look_at_disk(self) -> None:
        if self._last_good is None:
            return
        try:
            documents = self._last_good.overrides()
            self._take(self._registry.overrides_in_force(self._name, documents=documents))
        except (RegistryError, BundleError) as exc:
            self.problem = str(exc)

    def _take(self, found: Overridden) -> None:
        self._unsettled |= self._found is None or self._found.documents != found.documents
        self.log, self.problem, self._found = found.log, "", found

    def settle(self) -> bool:
        """Keep and remember what holds by now; whether there was something new.

        Raises: RegistryError, BundleError; then it is tried again.
        """
        found, trust = self._found, self._registry.trust
        if found is None or not self._unsettled:
            return False
        # Kept first: a host that remembers what it has not kept would miss it at a start without the registry.
        if self._last_good is not None and (found.documents or self._last_good.overrides()):
            self._last_good.keep_overrides(found.documents)
        if trust is not None and found.verdict is not None:
            trust.remember_overrides(self._name, found.verdict)
        self._unsettled = False
        return True

    def tell(
        self,
        moved: Sequence[Moved],
        refused: Sequence[Refused],
        tell: Callable[[str, str, str, str], None],
    ) -> None:
        """Say what is other than it was when this was called last: what holds, and whether it is believed."""
        now = tuple(moved)
        if now != self._told:
            before, self._told = self._told, now
            why = "; ".join(dict.fromkeys(f"{one.override.who}: {one.override.why}" for one in now))
            tell("thresholds", _text(before), _text(now), why or "what was moved has ended, or was lifted")
        before_now, self.refused = self.refused, {one.override.seq: one.why for one in refused}
        for seq in sorted(self.refused.keys() - before_now.keys()):
            tell(f"override {seq} of {self._name}", "asked for", "refused", self.refused[seq])
        for seq in sorted(before_now.keys() - self.refused.keys()):
            tell(
                f"override {seq} of {self._name}", "refused", "settled", "it is over, was lifted, or fits now"
            )
        if self.problem != self._told_problem:
            states = ("refused", "believed") if not self.problem else ("believed", "refused")
            if bool(self.problem) != bool(self._told_problem):
                tell(f"overrides {self._name}", *states, self.problem)
            self._told_problem = self.problem


def _text(moved: Sequence[Moved]) -> str:
    texts = [
        f"{one.action}{'' if one.segment is None else f' of {one.segment}'} from {one.after} until {one.override.until}"
        for one in moved
    ]
    return ", ".join(texts) or "as released"
