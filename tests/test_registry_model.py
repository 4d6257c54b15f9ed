"""A registry against a model of it: whatever several people do in whatever order, every answer is the one that is due."""

from __future__ import annotations

import datetime as dt
import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule
from registries import DAY_NS, check, digest, release

import retailinfer as ri
from retailinfer.clock import ManualClock
from retailinfer.errors import ConflictError, RegistryError
from retailinfer.release.statements import seconds_of

PEOPLE = ["anna", "ben", "carol"]
VERSIONS = [f"1.{i}" for i in range(6)]
ROLES = ["champion", "challenger", "canary", "shadow"]


class RegistryModel(RuleBasedStateMachine):
    """Three people at one registry; the model is a few dicts and lists."""

    published = Bundle("published")

    @initialize(where=st.sampled_from(["folder", "memory"]))
    def begin(self, where: str) -> None:
        """An empty registry, and each person's view of it."""
        self.clock = ManualClock()
        self.folder = tempfile.TemporaryDirectory() if where == "folder" else None
        place = self.folder.name if self.folder else f"memory://model-{next(COUNTER)}"
        self.people = {
            who: ri.Registry(
                Path(place) if self.folder else place, trust="unsigned", who=who, clock=self.clock
            )
            for who in PEOPLE
        }
        self.contents: dict[str, dict[str, bytes]] = {}  # version -> what took it
        self.issued: dict[str, int] = {}  # version -> when it was last published
        self.collected: set[str] = set()
        self.history: list[dict[str, Any]] = []
        self.stack: list[str] = []  # champions, by digest

    def teardown(self) -> None:
        """Take the folder away."""
        if getattr(self, "folder", None):
            self.folder.cleanup()

    @rule(
        target=published, who=st.sampled_from(PEOPLE), version=st.sampled_from(VERSIONS), other=st.booleans()
    )
    def publish(self, who: str, version: str, other: bool) -> str:
        """A version belongs to its first content, for ever."""
        files = release(version, "other" if other else "")
        if self.contents.setdefault(version, files) != files:
            with pytest.raises(ConflictError):
                self.people[who].publish(files)
            return version
        new = version not in self.issued or version in self.collected
        assert self.people[who].publish(files).new is new
        if new:
            self.issued[version] = self.clock.wall_ns()
            self.collected.discard(version)
        return version

    @rule(
        who=st.sampled_from(PEOPLE),
        version=published,
        role=st.sampled_from(ROLES),
        share=st.sampled_from([0.1, 0.5]),
    )
    def promote(self, who: str, version: str, role: str, share: float) -> None:
        """One role at most, none beside a champion that is not there, nothing while held or collected."""
        now, mine = self.now(), digest(self.contents[version])
        given = {"why": f"{who} {len(self.history)}", "role": role} | (
            {"share": share} if role == "canary" else {}
        )
        champion = now["champion"] if now else None
        wanted = {r: (now[r] if now and (now[r] or (None,))[0] != mine else None) for r in ROLES}
        wanted[role] = (mine, share if role == "canary" else None)
        refused = (
            bool(now and now["hold"])
            or (role != "champion" and (champion is None or champion[0] == mine))
            or (version in self.collected and not (now and wanted == {r: now[r] for r in ROLES}))
        )
        if refused:
            with pytest.raises(RegistryError):
                self.people[who].promote(mine, **given)
            return
        pointer = self.people[who].promote(mine, **given)
        if not now or wanted != {r: now[r] for r in ROLES}:
            self.add({**wanted, "hold": None, "who": who, "why": given["why"]})
        assert pointer.seq == len(self.history)

    @rule(who=st.sampled_from(PEOPLE), role=st.sampled_from(ROLES[1:]))
    def withdraw(self, who: str, role: str) -> None:
        """Only what has the role can lose it."""
        now = self.now()
        if not now or now[role] is None:
            with pytest.raises(RegistryError):
                self.people[who].withdraw("fraud", role, why="away")
            return
        self.people[who].withdraw("fraud", role, why="away")
        self.add({**now, role: None, "who": who, "why": "away"})

    @rule(who=st.sampled_from(PEOPLE), hold=st.booleans())
    def roll_back(self, who: str, hold: bool) -> None:
        """Down the stack of champions."""
        now = self.now()
        if not now or len(self.stack) < 2:
            with pytest.raises(RegistryError):
                self.people[who].roll_back("fraud", why="worse", hold=hold)
            return
        wrong, right = self.stack[-1], self.stack[-2]
        if right in {digest(self.contents[version]) for version in self.collected}:
            with pytest.raises(RegistryError, match="collected"):  # it had been two below the top for long
                self.people[who].roll_back("fraud", why="worse", hold=hold)
            return
        self.people[who].roll_back("fraud", why="worse", hold=hold)
        roles = {r: None if now[r] and now[r][0] in (wrong, right) else now[r] for r in ROLES}
        held = "worse" if hold else now["hold"]
        self.add({**roles, "champion": (right, None), "hold": held, "who": who, "why": "worse"})

    @rule(who=st.sampled_from(PEOPLE), on=st.booleans())
    def hold(self, who: str, on: bool) -> None:
        """Holding twice is holding once."""
        now, registry = self.now(), self.people[who]
        act = registry.hold if on else registry.resume
        if not now:
            with pytest.raises(RegistryError):
                act("fraud", why="stop")
            return
        act("fraud", why="stop")
        wanted = "stop" if on else None
        if now["hold"] != wanted:
            self.add({**now, "hold": wanted, "who": who, "why": "stop"})

    @rule(who=st.sampled_from(PEOPLE), keep=st.integers(0, 2))
    def collect(self, who: str, keep: int) -> None:
        """What a pointer names, named lately, or going back leads to, stays; so do the newest and the young."""
        now_s = self.clock.wall_ns() // 10**9
        needed = set(self.stack[-2:])
        for one in reversed(self.history):
            needed |= {one[r][0] for r in ROLES if one[r]}
            if one["at"] <= now_s - 20 * 86_400:
                break
        present = sorted(self.issued.keys() - self.collected, key=lambda v: (self.issued[v] // 10**9, v))
        gone = {
            version
            for version in present[: max(len(present) - keep, 0)]
            if digest(self.contents[version]) not in needed
            and self.issued[version] // 10**9 < now_s - 10 * 86_400
        }
        found = self.people[who].collect_garbage(keep=keep, unused_days=10, history_days=20)
        assert set(found.releases) == {f"fraud:{version}" for version in gone}
        self.collected |= gone

    @rule(days=st.integers(0, 30))
    def wait(self, days: int) -> None:
        """Time passes."""
        self.clock.advance_ns(days * DAY_NS + 10**9)

    @precondition(lambda self: self.history)
    @rule(data=st.data(), who=st.sampled_from(PEOPLE))
    def look_back(self, data: Any, who: str) -> None:
        """At every moment of the past the highest number until then was in force."""
        first = self.history[0]["at"]
        at_s = data.draw(st.integers(first - 10, self.clock.wall_ns() // 10**9))
        expected = [i + 1 for i, one in enumerate(self.history) if one["at"] <= at_s]
        moment = dt.datetime.fromtimestamp(at_s, dt.UTC)
        pointer = self.people[who].at("fraud", moment)
        assert (0 if pointer is None else pointer.seq) == (expected[-1] if expected else 0)

    @invariant()
    def everybody_sees_the_same(self) -> None:
        """History, roles and releases are the model's, in every process."""
        if not hasattr(self, "people"):
            return
        for registry in self.people.values():
            found = [self.as_model(pointer) for pointer in registry.history("fraud")]
            assert found == self.history
            listed = {one.version: one.collected for one in registry.releases()}
            assert listed == {version: version in self.collected for version in self.issued}
        check(registry)

    def now(self) -> dict[str, Any] | None:
        """What is in force."""
        return self.history[-1] if self.history else None

    def add(self, entry: dict[str, Any]) -> None:
        """The next pointer."""
        self.history.append({**entry, "at": self.clock.wall_ns() // 10**9})
        top = entry["champion"][0]
        if top in self.stack:
            del self.stack[self.stack.index(top) + 1 :]
        else:
            self.stack.append(top)

    @staticmethod
    def as_model(pointer: Any) -> dict[str, Any]:
        """A pointer in the model's words."""
        canary = pointer.canary and (pointer.canary.digest, pointer.canary.share)
        plain = {r: getattr(pointer, r) and (getattr(pointer, r), None) for r in ROLES if r != "canary"}
        rest = {
            "hold": pointer.hold,
            "who": pointer.who,
            "why": pointer.why,
            "at": seconds_of(pointer.issued),
        }
        return {**plain, "canary": canary, **rest}


COUNTER = itertools.count()
TestRegistryModel = RegistryModel.TestCase
TestRegistryModel.settings = settings(
    max_examples=settings.default.max_examples, stateful_step_count=40, deadline=None
)
