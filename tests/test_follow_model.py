"""Two processes of a host that follow one registry, against a model of them: whatever people and accidents do."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from following import Hidden, answer, bad, digest_of, follow, registry, release
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from retailinfer.errors import RegistryError

GOOD = ("1.0", "1.1", "1.2")
BAD = "1.3"  # its golden rows do not hold
RELEASES = {digest_of(release(version)): version for version in GOOD} | {digest_of(bad(BAD)): BAD}
WORKERS = st.sampled_from([0, 1])


class FollowModel(RuleBasedStateMachine):
    """The model: the newest pointer, what an operator decided on the host, what each worker answers with and has followed."""

    @initialize()
    def begin(self) -> None:
        """Both start with the first release."""
        # In memory where there is such a place: what is asked of the disk most is fsync.
        self.temporary = tempfile.TemporaryDirectory(
            dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        )
        self.folder = Path(self.temporary.name)
        self.place = registry(self.folder / "registry", *GOOD)
        self.place.publish(bad(BAD))
        self.hidden: Hidden | None = None
        self.local: dict[str, Any] | None = None
        self.scorers = [self.started(), self.started()]
        self.running = ["1.0", "1.0"]
        self.followed = [self.pointer(), self.pointer()]

    def teardown(self) -> None:
        """Everything is let go of."""
        for scorer in getattr(self, "scorers", ()):
            scorer.close()
        if hasattr(self, "temporary"):
            self.temporary.cleanup()

    def started(self) -> Any:
        """A worker; what goes wrong at its start is told by it."""
        return follow(self.folder / "registry", last_good=self.folder / "last-good")

    def pointer(self) -> dict[str, Any]:
        """The newest one, as the model sees it."""
        newest = self.place.history("fraud")[-1]
        return {
            "seq": newest.seq,
            "champion": RELEASES[newest.champion or ""],
            "hold": newest.hold is not None,
        }

    def rollback_holds(self, pointer: dict[str, Any]) -> bool:
        """Said again, in the model's words."""
        if self.local is None:
            return False
        only_held = pointer["hold"] and pointer["champion"] == self.local["left"]
        return bool(pointer["seq"] <= self.local["seq"] or only_held)

    def wanted(self) -> tuple[str, dict[str, Any]]:
        """What should answer by the newest pointer, and that; what it ended has ended."""
        pointer = self.pointer()
        if not self.rollback_holds(pointer):
            self.local = None
        return pointer["champion"] if self.local is None else self.local["to"], pointer

    # ---- people ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.hidden is None)
    @rule(version=st.sampled_from((*GOOD, BAD)))
    def promote(self, version: str) -> None:
        """Unless the pointer is held."""
        try:
            self.place.promote(f"fraud:{version}", why="next")
        except RegistryError:
            assert self.pointer()["hold"]

    @precondition(lambda self: self.hidden is None)
    @rule(on=st.booleans())
    def hold(self, on: bool) -> None:
        """Or end it."""
        (self.place.hold if on else self.place.resume)("fraud", why="incident")

    @precondition(
        lambda self: self.hidden is None and len({p.champion for p in self.place.history("fraud")}) > 1
    )
    @rule()
    def roll_back_for_all(self) -> None:
        """In the registry, where there is a champion before."""
        with contextlib.suppress(RegistryError):  # it is back at the first one
            self.place.roll_back("fraud", why="worse")

    @rule(i=WORKERS)
    def roll_back_here(self, i: int) -> None:
        """On the spot, where the worker has something to go back to; its next look tells the host."""
        resident = self.scorers[i]._live.resident
        if resident is None:
            return
        to = RELEASES[resident.digest]
        self.scorers[i].roll_back(why="3 a.m.")
        followed = self.followed[i]
        decided = {"left": self.running[i], "to": to, "seq": followed["seq"]}
        self.local = None if followed["champion"] == to else decided
        self.running[i] = to
        self.look(i)

    # ---- accidents ---------------------------------------------------------------------------------------------------

    @rule()
    def the_registry_goes_away_or_comes_back(self) -> None:
        """As a whole."""
        if self.hidden is None:
            self.hidden = Hidden(self.folder / "registry")
            self.hidden.__enter__()
        else:
            self.hidden.__exit__()
            self.hidden = None

    @rule(i=WORKERS)
    def look(self, i: int) -> None:
        """A worker looks at the registry."""
        following = self.scorers[i].refresh()
        if self.hidden is not None:
            assert following.state == "unreachable"
        else:
            target, pointer = self.wanted()
            if target == BAD:
                assert following.state == "failed"
                assert following.skew
            else:
                assert (following.state, following.skew) == ("ok", False)
                self.running[i], self.followed[i] = target, pointer
            assert following.seq == pointer["seq"]
            assert (following.rolled_back is not None) == (self.local is not None)
        assert answer(self.scorers[i]) == f"fraud:{self.running[i]}"

    @rule(i=WORKERS)
    def restart(self, i: int) -> None:
        """A worker is recycled."""
        self.scorers[i].close()
        self.scorers[i] = self.started()
        found = answer(self.scorers[i]).removeprefix("fraud:")
        assert found in GOOD
        if self.hidden is None:
            target, _ = self.wanted()
            if target != BAD:
                assert found == target
                assert self.scorers[i].following.state == "ok"
        elif self.local is not None:
            assert found == self.local["to"]
        self.running[i] = found
        followed = self.scorers[i]._follower._followed
        self.followed[i] = (
            {"seq": 0, "champion": None, "hold": False}
            if followed is None
            else {
                "seq": followed.pointer.seq,
                "champion": RELEASES[followed.pointer.champion],
                "hold": followed.pointer.hold is not None,
            }
        )


TestFollowModel = FollowModel.TestCase
TestFollowModel.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
