"""Following with a trust file: what was accepted is remembered last, and expiry and revocation meet a running release."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from following import Heard, Hidden, answer, bad, digest_of, follow, release, signed_release, write_trust
from signed_releases import DAY_S, EXPIRES, NOW_S, key, revoked

import retailinfer as ri
from retailinfer.clock import ManualClock
from retailinfer.errors import BundleError, RollbackError, TrustError
from retailinfer.release.highwater import read_state
from retailinfer.release.statements import moment_text, seconds_of
from retailinfer.release.trust import Role


class Place:
    """A host with a trust file, and a registry that its keys have signed."""

    def __init__(self, folder: Path, **trust: Any) -> None:
        self.folder = folder
        self.clock = ManualClock(wall_ns=NOW_S * 10**9)
        write_trust(folder, **trust)
        self.keys = [key("ops")]
        self.writer = self.registry(keys=self.keys)

    def trust(self) -> ri.Trust:
        """As a process reads it when it starts."""
        return ri.Trust(self.folder / "trust.json", clock=self.clock)

    def registry(self, **more: Any) -> ri.Registry:
        """As a process sees it."""
        return ri.Registry(self.folder / "registry", trust=self.trust(), who="anna", clock=self.clock, **more)

    def publish(self, files: dict[str, bytes], **changes: Any) -> None:
        """Signed by ci and lead."""
        self.writer.publish(signed_release(files, **changes))

    def promote(self, version: str, **more: Any) -> None:
        """By ops."""
        self.writer.promote(f"fraud:{version}", why="better", **more)

    def follow(self, **settings: Any) -> Any:
        """A process of the host."""
        store = ri.Store(clock=self.clock)
        return follow(self.registry(), last_good=self.folder / "last-good", store=store, **settings)

    def accepted(self) -> Any:
        """What the host remembers of the name."""
        return read_state(str(self.folder / "last-good/state.json")).names.get("fraud")

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.clock.advance_ns(int(seconds * 1e9))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """With one release that answers."""
    made = Place(tmp_path)
    made.publish(release("1.0"))
    made.promote("1.0")
    return made


def test_what_was_accepted_is_remembered_last(place):
    """Not when a pointer is seen, and not when what it names fails: after it answers."""
    with place.follow() as scorer:
        assert (place.accepted().seq, place.accepted().loaded) == (1, digest_of(release("1.0")))
        place.publish(bad("1.1"))
        place.promote("1.1")
        scorer.refresh()
        assert answer(scorer) == "fraud:1.0"
        assert scorer.following.state == "failed"
        assert (place.accepted().seq, place.accepted().loaded) == (1, digest_of(release("1.0")))
        place.publish(release("1.2"))
        place.promote("1.2")
        scorer.refresh()
        assert answer(scorer) == "fraud:1.2"
        assert (place.accepted().seq, place.accepted().loaded) == (3, digest_of(release("1.2")))


def test_a_number_that_decides_nothing_here_is_remembered_too(place):
    """Else somebody could take the hold away."""
    with place.follow() as scorer:
        place.writer.hold("fraud", why="freeze before the holidays")
        scorer.refresh()
        assert place.accepted().seq == 2
        assert scorer.following.held == "freeze before the holidays"


def test_a_registry_of_last_week_is_refused_after_a_restart(place):
    """Rollback attack: what the host has accepted is on its disk."""
    shutil.copytree(place.folder / "registry", place.folder / "week-old")
    place.publish(release("1.1"))
    place.promote("1.1")
    place.follow().close()
    shutil.rmtree(place.folder / "registry")
    (place.folder / "week-old").rename(place.folder / "registry")
    with place.follow() as scorer:
        assert answer(scorer) == "fraud:1.1"  # from the host's own disk
        assert scorer.following.state == "refused"
        assert "number" in scorer.following.why
    shutil.rmtree(place.folder / "last-good/production")
    with pytest.raises(RollbackError):
        place.follow()


def test_a_release_that_nobody_signed_is_not_loaded(place, tmp_path):
    """Whoever can write to the registry cannot make it answer."""
    with place.follow() as scorer:
        pointers = place.folder / "registry/pointers/production/fraud"
        (pointers / "00000002.json").write_bytes(
            (pointers / "00000001.json").read_bytes().replace(b"1", b"2")
        )
        scorer.refresh()
        assert answer(scorer) == "fraud:1.0"


@pytest.mark.parametrize(("late_h", "starts"), [(1, True), (71, True), (73, False)])
def test_an_expired_last_known_good_has_72_hours(place, late_h, starts):
    """At a cold start with the registry out of reach; after that it is refused, and the error says since when."""
    place.follow().close()
    place.advance(seconds_of(EXPIRES) - NOW_S + late_h * 3600)
    with Hidden(place.folder / "registry"):
        if starts:
            with place.follow() as scorer:
                assert answer(scorer) == "fraud:1.0"
                assert scorer.health().expired_s >= late_h * 3600 - 1
        else:
            with pytest.raises((BundleError, ri.RegistryError)):
                place.follow()


def test_a_release_that_expires_while_it_runs_goes_on_and_says_so(place):
    """An event once, and health for as long as it lasts."""
    heard = Heard()
    with place.follow(hooks=[heard]) as scorer:
        assert scorer.health().expired_s == 0
        place.advance(seconds_of(EXPIRES) - NOW_S + 60)
        for _ in range(3):
            scorer.refresh()
            assert answer(scorer) == "fraud:1.0"
            assert scorer.health().expired_s >= 60
        assert heard.of("release").count(("fraud:1.0", "expired")) == 1


def test_doors_that_do_not_follow_say_that_they_are_expired(tmp_path):
    """`health()` looks at the clock, and tells hooks once."""
    place = Place(tmp_path)
    heard = Heard()
    files = signed_release(release("1.0"))
    store = ri.Store(clock=place.clock)
    with ri.Scorer.load(files, trust=place.trust(), hooks=[heard], store=store) as scorer:
        assert scorer.health().expired_s == 0
        place.advance(seconds_of(EXPIRES) - NOW_S + 3600)
        assert answer(scorer) == "fraud:1.0"
        assert scorer.health().expired_s == 3600
        scorer.health()
        assert heard.of("release") == [("fraud:1.0", "expired")]
        assert EXPIRES in heard.why("release")


def revocable(tmp_path: Path) -> Place:
    """Security may revoke; the first list is empty. The release has a rung below it."""
    tmp_path.joinpath("revocations.sig").write_bytes(revoked(1))
    made = Place(tmp_path, revocation=Role(keys=("security",)))
    made.publish(release("1.0", ladder=True))
    made.promote("1.0")
    return made


@pytest.mark.parametrize("on_revoked", ["serve", "degrade"])
def test_a_release_that_is_revoked_while_it_runs(tmp_path, on_revoked):
    """By default it goes on and says so; where asked for, the rungs below it answer until another release comes."""
    place, heard = revocable(tmp_path), Heard()
    with place.follow(hooks=[heard], on_revoked=on_revoked) as scorer:
        assert answer(scorer) == "fraud:1.0"
        digest = digest_of(release("1.0", ladder=True))
        tmp_path.joinpath("revocations.sig").write_bytes(revoked(2, releases={digest: "leaks card numbers"}))
        scorer.refresh()
        scorer.refresh()
        assert scorer.following.revoked
        assert heard.of("release").count(("fraud:1.0", "revoked")) == 1
        assert "leaks card numbers" in heard.why("release")
        decision = scorer.score({"amount": 0.125})
        if on_revoked == "serve":
            assert (decision.rung, decision.score) == (0, 0.125)
        else:
            assert (decision.rung, decision.action) == (4, "review")
            assert b'"rung":4' in scorer.score_json(b'{"amount": 0.125}')
            assert [one.rung for one in scorer.score_batch([{"amount": 0.125}] * 2)] == [4, 4]
        assert scorer.following.state == "refused"  # its pointer names a revoked release
        tmp_path.joinpath("revocations.sig").write_bytes(revoked(3))  # it was the wrong one
        scorer.refresh()
        assert answer(scorer) == "fraud:1.0"
        assert scorer.score({"amount": 0.125}).rung == 0
        assert not scorer.following.revoked
        tmp_path.joinpath("revocations.sig").write_bytes(revoked(4, releases={digest: "no, it was right"}))
        scorer.refresh()
        place.writer = place.registry(keys=place.keys)
        place.publish(release("1.1"))
        place.promote("1.1")
        scorer.refresh()
        assert answer(scorer) == "fraud:1.1"
        assert not scorer.following.revoked
        assert scorer.following.state == "ok"


def test_a_revoked_release_without_rungs_below(tmp_path):
    """Degraded means the caller's `otherwise`, or a typed error."""
    tmp_path.joinpath("revocations.sig").write_bytes(revoked(1))
    place = Place(tmp_path, revocation=Role(keys=("security",)))
    place.publish(release("1.0"))
    place.promote("1.0")
    with place.follow(on_revoked="degrade") as scorer:
        revocations = revoked(2, releases={digest_of(release("1.0")): "leaks"})
        tmp_path.joinpath("revocations.sig").write_bytes(revocations)
        scorer.refresh()
        with pytest.raises(ri.ServingError, match="revoked"):
            scorer.score({"amount": 0.125})
        assert scorer.score({"amount": 0.125}, otherwise="ask a person") == "ask a person"
        with pytest.raises(ri.ServingError, match="revoked"):
            scorer.score_table(pa.table({"amount": [0.125]}))
        with pytest.raises(ri.ServingError, match="revoked"):
            scorer.score_arrays({"x": np.zeros((1, 1), np.float32)})


@pytest.mark.parametrize("on_revoked", ["serve", "degrade"])
def test_a_revoked_release_is_no_rung_of_the_next_one(tmp_path, on_revoked):
    """Where it must not answer, it does not do so below another one."""
    tmp_path.joinpath("revocations.sig").write_bytes(revoked(1))
    place = Place(tmp_path, revocation=Role(keys=("security",)))
    place.publish(release("1.0"))
    place.promote("1.0")
    digest = digest_of(release("1.0"))
    with place.follow(on_revoked=on_revoked, contract={"ladder": [{"kind": "previous"}]}) as scorer:
        tmp_path.joinpath("revocations.sig").write_bytes(revoked(2, releases={digest: "leaks"}))
        scorer.refresh()
        place.writer = place.registry(keys=place.keys)
        place.publish(release("1.1", fallbacks=(digest,)))
        place.promote("1.1")
        scorer.refresh()
        assert answer(scorer) == "fraud:1.1"
        assert (scorer._live.previous is None) == (on_revoked == "degrade")


def test_a_revoked_release_does_not_start(tmp_path):
    """Neither from the registry nor from the host's disk: loading fails closed."""
    place = revocable(tmp_path)
    place.follow().close()
    digest = digest_of(release("1.0", ladder=True))
    tmp_path.joinpath("revocations.sig").write_bytes(revoked(2, releases={digest: "leaks"}))
    with pytest.raises(TrustError, match="revoked"):
        place.follow()
    with Hidden(tmp_path / "registry"), pytest.raises((BundleError, ri.RegistryError)):
        place.follow()


def test_a_frozen_registry_is_noticed(tmp_path):
    """A pointer that expired is not followed: what answers goes on, and says that it hears nothing new."""
    place = Place(tmp_path)
    place.publish(release("1.0"), expires=moment_text(NOW_S + 300 * DAY_S))
    place.promote("1.0", valid_days=7)
    heard = Heard()
    with place.follow(hooks=[heard]) as scorer:
        place.advance(8 * DAY_S)
        scorer.refresh()
        assert scorer.following.state == "refused"
        assert "expired" in scorer.following.why
        assert answer(scorer) == "fraud:1.0"
        with place.follow() as another:  # a cold start has its grace
            assert answer(another) == "fraud:1.0"
            assert another.following.state == "refused"
        place.writer.renew("fraud", why="on holiday too long", valid_days=7)
        scorer.refresh()
        assert scorer.following.state == "ok"


def test_a_local_rollback_outlives_its_process(place):
    """Also where signatures count: the operator's word is in the host's memory, and nothing older than it comes back."""
    place.publish(release("1.1"), issued=moment_text(NOW_S - 3600))
    place.promote("1.1")
    with place.follow() as scorer:
        assert answer(scorer) == "fraud:1.1"
    with place.follow() as scorer:
        place.publish(release("1.2"), issued=moment_text(NOW_S - 60))
        place.promote("1.2")
        scorer.refresh()
        assert answer(scorer) == "fraud:1.2"
        scorer.roll_back(why="3 a.m.")
        scorer.refresh()
        assert place.accepted().loaded == digest_of(release("1.1"))
        assert place.accepted().seq == 3
    with place.follow() as scorer:
        assert answer(scorer) == "fraud:1.1"
        assert scorer.following.rolled_back == "3 a.m."
