"""A scorer that follows a registry: what is promoted answers, what is bad does not, and nobody has to do anything."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import shutil
import threading
import time
import uuid
import weakref
from pathlib import Path
from typing import Any

import pytest
from follow_kills import kill_followers
from following import NEVER_S, REQUEST, Heard, Hidden, answer, bad, digest_of, follow, registry, release
from object_stores import ObjectStore, object_store
from registries import release as small
from services import until

import retailinfer as ri
from retailinfer.clock import ManualClock
from retailinfer.errors import BundleError, ConfigError, GoldenMismatchError, RegistryError
from retailinfer.release import registry_files

__all__ = ["object_store"]

V10, V11, V12 = (digest_of(release(version)) for version in ("1.0", "1.1", "1.2"))


@pytest.fixture
def last_good(tmp_path: Path) -> Path:
    """What the host keeps."""
    return tmp_path / "last-good"


# ---- what is promoted answers ------------------------------------------------------------------------------------------


def test_what_is_promoted_answers_after_the_next_look(tmp_path):
    """And says so: in answers, events, `following` and `health()`."""
    place = registry(tmp_path / "registry", "1.0", "1.1")
    heard = Heard()
    with follow(tmp_path / "registry", hooks=[heard]) as scorer:
        assert answer(scorer) == "fraud:1.0"
        assert scorer.following.seq == 1
        assert not scorer.following.skew
        place.promote("fraud:1.1", why="better")
        assert answer(scorer) == "fraud:1.0"
        scorer.refresh()
        assert answer(scorer) == "fraud:1.1"
        following = scorer.following
        assert (following.name, following.environment, following.epoch, following.seq) == (
            "fraud",
            "production",
            1,
            2,
        )
        assert (following.champion, following.running, following.skew) == (V11, V11, False)
        assert (following.state, following.why, following.rolled_back) == ("ok", "", None)
        assert following.ok_s is not None
        assert following.ok_s < 60
        assert scorer.health().following == following or scorer.health().following.seq == 2
        assert scorer.health().release == "fraud:1.1"
        assert ("fraud:1.0", "fraud:1.1") in heard.of("release")
        assert "better" in heard.why("release")


def test_the_thread_looks_by_itself(tmp_path):
    """Every `poll_s`, a quarter more or less."""
    place = registry(tmp_path / "registry", "1.0", "1.1")
    with follow(tmp_path / "registry", poll_s=0.02) as scorer:
        place.promote("fraud:1.1", why="better")
        until(lambda: answer(scorer) == "fraud:1.1", what="the promoted release")
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("retailinfer-follow-fraud") == 1
    until(
        lambda: "retailinfer-follow-fraud" not in [t.name for t in threading.enumerate()],
        what="the end of the thread",
    )


def test_a_url_and_a_registry_are_followed_alike(tmp_path):
    """A registry brings its own trust and environment."""
    place = registry(tmp_path, "1.0", environment="staging")
    with follow(place) as scorer:
        assert answer(scorer) == "fraud:1.0"
        assert scorer.following.environment == "staging"
    with follow(tmp_path, environment="staging") as scorer:
        assert answer(scorer) == "fraud:1.0"
    with pytest.raises(ConfigError, match="registry"):
        follow(place, environment="staging")
    with pytest.raises(ConfigError, match="registry"):
        follow(place, trust="unsigned")
    with pytest.raises(RegistryError, match="no champion in production"):
        follow(tmp_path)


def test_memory_and_object_stores_are_followed(tmp_path, object_store: ObjectStore):
    """What fsspec reaches is as good as a folder."""
    pytest.importorskip("fsspec")
    for url, options in (
        (f"memory://follow-{uuid.uuid4().hex}", None),
        (object_store.bucket(f"follow-{uuid.uuid4().hex}") + "/registry", object_store.options),
    ):
        place = registry(url, "1.0", "1.1", storage_options=options)
        with follow(url, storage_options=options, last_good=tmp_path / uuid.uuid4().hex) as scorer:
            assert answer(scorer) == "fraud:1.0"
            place.promote("fraud:1.1", why="better")
            scorer.refresh()
            assert answer(scorer) == "fraud:1.1"


def test_an_object_store_that_goes_away_changes_nothing(tmp_path, last_good):
    """Serving goes on, says what is wrong, and goes on following when it is back; a start comes from disk."""
    for module in ("moto", "s3fs"):
        pytest.importorskip(module)
    with ObjectStore(tmp_path) as server:
        url = server.bucket("models") + "/registry"
        options = server.options | {"config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 2}}
        registry(url, "1.0", "1.1", storage_options=options)
        with follow(url, storage_options=options, last_good=last_good) as scorer:
            server.stop()
            scorer.refresh()
            assert scorer.following.state == "unreachable"
            assert answer(scorer) == "fraud:1.0"
            with follow(url, storage_options=options, last_good=last_good) as another:
                assert answer(another) == "fraud:1.0"
                assert another.following.state == "unreachable"


def test_rankers_follow(tmp_path):
    """Every release encodes the items itself, and those that are resident follow the table too."""
    from releases import CONTEXT, item_files, item_spec, items, packed, weighted

    first = item_files()
    second = packed("items", weighted(1.0, -1.0, 0.0), item_spec())  # the other way round
    place = ri.Registry(tmp_path, trust="unsigned", who="anna")
    one, two = (f"items:{place.publish(files).version}" for files in (first, second))
    place.promote(one, why="first")
    store = ri.Store(tables={"item": items()})
    ids = [f"sku-{i:03d}" for i in range(60)]

    def scores(ranker: Any) -> list[float]:
        return ranker.rank(CONTEXT, ids, k=60).scores

    with ri.Ranker.follow(tmp_path, "items", trust="unsigned", poll_s=NEVER_S, store=store) as ranker:
        assert scores(ranker) == scores(ri.Ranker.load(first, trust="unsigned", store=store))
        place.promote(two, why="other way round")
        ranker.refresh()
        assert ranker.rank(CONTEXT, ids, k=1).release == two
        assert scores(ranker) == scores(ri.Ranker.load(second, trust="unsigned", store=store))
        store.swap("item", items(shift=1.0))
        assert scores(ranker) == scores(ri.Ranker.load(second, trust="unsigned", store=store))
        ranker.roll_back(why="no")
        assert scores(ranker) == scores(ri.Ranker.load(first, trust="unsigned", store=store))


def test_a_rollback_in_the_registry_is_one_move_here(tmp_path, monkeypatch):
    """What answered before is in memory still: nothing is read or loaded."""
    place = registry(tmp_path, "1.0", "1.1")
    with follow(tmp_path) as scorer:
        place.promote("fraud:1.1", why="better")
        scorer.refresh()
        place.roll_back("fraud", why="queue too long", hold=True)
        monkeypatch.setattr(ri.Registry, "read", lambda *_, **__: pytest.fail("it is in memory"))
        scorer.refresh()
        assert answer(scorer) == "fraud:1.0"
        assert scorer.following.held == "queue too long"
        assert scorer.following.seq == 3


def test_other_roles_are_shown_and_change_nothing(tmp_path):
    """Routing to them is not the follower's."""
    place = registry(tmp_path, "1.0", "1.1", "1.2")
    place.promote("fraud:1.1", role="canary", share=0.05, why="try")
    with follow(tmp_path) as scorer:
        place.promote("fraud:1.2", role="shadow", why="look")
        scorer.refresh()
        following = scorer.following
        assert following.roles == {"champion": V10, "canary": V11, "shadow": V12}
        assert following.share == 0.05
        assert following.seq == 3
        assert answer(scorer) == "fraud:1.0"


def test_settings_are_those_of_the_first_release(tmp_path):
    """What `follow` was given holds for everything that comes."""
    place = registry(tmp_path, "1.0", "1.1")
    with follow(tmp_path, max_in_flight=7, contract={"deadline_ms": 33}) as scorer:
        permits = scorer.permits
        place.promote("fraud:1.1", why="better")
        scorer.refresh()
        assert answer(scorer) == "fraud:1.1"
        assert scorer.contract.deadline_ms == 33
        assert scorer.permits is permits
        assert scorer.permits.limit == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"poll_s": 0}, "poll_s"),
        ({"poll_s": float("nan")}, "poll_s"),
        ({"poll_s": float("inf")}, "poll_s"),
        ({"poll_s": True}, "poll_s"),
        ({"poll_s": "30"}, "poll_s"),
        ({"on_revoked": "panic"}, "on_revoked"),
        ({"last_good": 7}, "last_good"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, settings, message):
    """Before anything is read."""
    registry(tmp_path, "1.0")
    with pytest.raises(ConfigError, match=message):
        follow(tmp_path, **settings)


@pytest.mark.parametrize("name", [7, None, "", "../fraud"])
def test_what_is_no_name_is_refused(tmp_path, last_good, name):
    """And no folder is made of it."""
    with pytest.raises(ConfigError, match="name"):
        ri.Scorer.follow(tmp_path, name, trust="unsigned", last_good=last_good)
    assert not last_good.exists()


def test_what_does_not_follow_says_so(tmp_path):
    """`following` is None; there is nothing to refresh."""
    with ri.Scorer.load(release("1.0"), trust="unsigned") as scorer:
        assert scorer.following is None
        assert scorer.health().following is None
        with pytest.raises(ConfigError, match="follow"):
            scorer.refresh()


def test_following_one_name_reads_nothing_of_others(tmp_path, monkeypatch):
    """A registry of many names and versions costs no more than one of few, wherever each file is a request."""
    place = registry(tmp_path, "1.0", "1.1")
    for i in range(20):
        place.publish(small(f"2.{i}", name=f"shop-{i}"))
    real, reads = registry_files.LocalFiles.read, []
    monkeypatch.setattr(
        registry_files.LocalFiles, "read", lambda self, path, cap: reads.append(path) or real(self, path, cap)
    )
    with follow(tmp_path) as scorer:
        place.promote("fraud:1.1", why="better")
        scorer.refresh()
        assert answer(scorer) == "fraud:1.1"
        assert [path for path in reads if "shop-" in path] == []
        reads.clear()
        scorer.refresh()
        assert len(reads) <= 4


# ---- what is bad does not ----------------------------------------------------------------------------------------------


def test_a_bad_release_is_told_and_not_hammered(tmp_path, monkeypatch):
    """The old one answers on; the same bad one is read again only after a pause, or when somebody asks."""
    clock = ManualClock()
    registry(tmp_path, "1.0")
    place = ri.Registry(tmp_path, trust="unsigned", who="anna", clock=clock)
    heard, reads = Heard(), []
    real = ri.Registry.read
    monkeypatch.setattr(
        ri.Registry, "read", lambda self, ref, **more: reads.append(ref) or real(self, ref, **more)
    )
    with follow(place, hooks=[heard]) as scorer:
        reads.clear()
        place.publish(bad("1.1"))
        place.promote("fraud:1.1", why="looks good")
        scorer.refresh()
        assert answer(scorer) == "fraud:1.0"
        following = scorer.following
        assert following.state == "failed"
        assert "GoldenMismatchError" in following.why
        assert following.skew
        assert following.failures == {digest_of(bad("1.1")): 1}
        assert heard.of("follow fraud") == [("ok", "failed")]
        assert "GoldenMismatchError" in heard.why("follow fraud")
        n = len(reads)
        for _ in range(50):
            scorer._follower.round()
        assert len(reads) == n
        clock.advance_ns(NEVER_S * 2 * 10**9)
        scorer._follower.round()
        assert len(reads) > n
        assert scorer.following.failures == {digest_of(bad("1.1")): 2}
        n = len(reads)
        scorer.refresh()
        assert len(reads) > n
        place.publish(bad("1.3"))
        place.promote("fraud:1.3", why="another one")
        scorer._follower.round()
        scorer._follower.round()
        place.publish(release("1.2"))
        place.promote("fraud:1.2", why="mended")
        scorer._follower.round()
        assert answer(scorer) == "fraud:1.2"
        assert (scorer.following.state, scorer.following.failures) == ("ok", {})
        # Each bad release is told once; asking for another try begins anew.
        assert heard.of("follow fraud") == [("ok", "failed"), *[("failed", "failed")] * 2, ("failed", "ok")]


def test_an_older_pointer_is_refused_without_signatures_too(tmp_path):
    """Somebody puts the registry of last week in its place."""
    place = registry(tmp_path / "registry", "1.0", "1.1")
    shutil.copytree(tmp_path / "registry", tmp_path / "week-old")
    place.promote("fraud:1.1", why="better")
    with follow(ri.Registry(tmp_path / "registry", trust="unsigned")) as scorer:
        assert answer(scorer) == "fraud:1.1"
        scorer._follower._registry = ri.Registry(tmp_path / "week-old", trust="unsigned")
        scorer.refresh()
        assert answer(scorer) == "fraud:1.1"
        assert scorer.following.state == "refused"
        assert "pointer 1" in scorer.following.why


def test_a_registry_out_of_reach_changes_nothing(tmp_path):
    """It is told once, and followed again when it is back."""
    place = registry(tmp_path / "registry", "1.0", "1.1")
    heard = Heard()
    with follow(tmp_path / "registry", hooks=[heard]) as scorer:
        place.promote("fraud:1.1", why="better")
        with Hidden(tmp_path / "registry"):
            for _ in range(3):
                scorer.refresh()
            assert answer(scorer) == "fraud:1.0"
            assert scorer.following.state == "unreachable"
            assert scorer.health().ready
        scorer.refresh()
        assert answer(scorer) == "fraud:1.1"
        assert heard.of("follow fraud") == [("ok", "unreachable"), ("unreachable", "ok")]


# ---- starting ----------------------------------------------------------------------------------------------------------


def test_c49_registry_down_at_start(tmp_path, last_good):
    """With a last known good on disk it starts, and says so; without one it fails and says why."""
    place = registry(tmp_path / "registry", "1.0", "1.1")
    with follow(tmp_path / "registry", last_good=last_good) as scorer:
        place.promote("fraud:1.1", why="better")
        scorer.refresh()
    heard = Heard()
    with Hidden(tmp_path / "registry"):
        with follow(tmp_path / "registry", last_good=last_good, hooks=[heard]) as scorer:
            assert answer(scorer) == "fraud:1.1"
            assert scorer.following.state == "unreachable"
            assert heard.of("follow fraud") == [("ok", "unreachable")]
        for settings in ({}, {"last_good": tmp_path / "elsewhere"}):
            with pytest.raises(RegistryError, match="registry"):
                follow(tmp_path / "registry", **settings)


def test_a_bad_champion_at_start(tmp_path, last_good):
    """What was loaded last answers in its place; where nothing was, the error is the champion's."""
    place = registry(tmp_path / "registry", "1.0")
    follow(tmp_path / "registry", last_good=last_good).close()
    place.publish(bad("1.1"))
    place.promote("fraud:1.1", why="looks good")
    with follow(tmp_path / "registry", last_good=last_good) as scorer:
        assert answer(scorer) == "fraud:1.0"
        assert scorer.following.state == "failed"
        assert scorer.following.skew
        place.roll_back("fraud", why="it was bad")
        scorer.refresh()
        assert answer(scorer) == "fraud:1.0"
        assert scorer.following.state == "ok"
    place.promote("fraud:1.1", why="again")
    with pytest.raises(GoldenMismatchError):
        follow(tmp_path / "registry", last_good=tmp_path / "elsewhere")


def test_a_start_reads_the_files_from_disk(tmp_path, last_good, monkeypatch):
    """The registry is asked for its pointer alone; eight workers download one release once."""
    registry(tmp_path / "registry", "1.0")
    follow(tmp_path / "registry", last_good=last_good).close()
    monkeypatch.setattr(ri.Registry, "read", lambda *_, **__: pytest.fail("it is on disk"))
    with follow(tmp_path / "registry", last_good=last_good) as scorer:
        assert answer(scorer) == "fraud:1.0"
        assert scorer.following.state == "ok"


def test_damaged_files_on_disk_are_read_from_the_registry(tmp_path, last_good):
    """And mended; with the registry out of reach they are refused."""
    registry(tmp_path / "registry", "1.0")
    follow(tmp_path / "registry", last_good=last_good).close()

    def damage() -> None:
        model = next(last_good.rglob("model.onnx"))
        model.write_bytes(model.read_bytes()[:-1] + b"?")

    damage()
    with follow(tmp_path / "registry", last_good=last_good) as scorer:
        assert answer(scorer) == "fraud:1.0"
        assert scorer.following.state == "ok"
    with Hidden(tmp_path / "registry"):
        with follow(tmp_path / "registry", last_good=last_good) as scorer:
            assert answer(scorer) == "fraud:1.0"
        damage()
        with pytest.raises((RegistryError, BundleError)):
            follow(tmp_path / "registry", last_good=last_good)


@pytest.mark.parametrize("broken", ["full", "record"])
def test_a_disk_that_fails_costs_no_answer(tmp_path, last_good, monkeypatch, broken):
    """What cannot be kept is told, and tried again in the next round."""
    place = registry(tmp_path / "registry", "1.0", "1.1")
    if broken == "full":
        last_good.write_bytes(b"")  # a file where the folder should be
    heard = Heard()
    with follow(tmp_path / "registry", last_good=last_good, hooks=[heard]) as scorer:
        if broken == "record":
            next(last_good.rglob("last-good.json")).write_bytes(b"{")
        place.promote("fraud:1.1", why="better")
        scorer.refresh()
        assert answer(scorer) == "fraud:1.1"
        if broken == "full":
            assert "last" in scorer.following.why
            assert heard.of("last good fraud") == [("kept", "not kept")]
            last_good.unlink()
            scorer.refresh()
            assert heard.of("last good fraud") == [("kept", "not kept"), ("not kept", "kept")]
            assert scorer.following.why == ""
    with Hidden(tmp_path / "registry"), follow(tmp_path / "registry", last_good=last_good) as scorer:
        assert answer(scorer) == "fraud:1.1"


# ---- an operator on the host -------------------------------------------------------------------------------------------


def test_a_local_rollback_wins_until_the_number_moves_on(tmp_path):
    """Looking at the same pointer changes nothing; the next decision in the registry does."""
    place = registry(tmp_path, "1.0", "1.1", "1.2")
    heard = Heard()
    with follow(tmp_path, hooks=[heard]) as scorer:
        place.promote("fraud:1.1", why="better")
        scorer.refresh()
        scorer.roll_back(why="3 a.m.")
        assert answer(scorer) == "fraud:1.0"
        for _ in range(3):
            scorer.refresh()
            assert answer(scorer) == "fraud:1.0"
        assert scorer.following.rolled_back == "3 a.m."
        assert not scorer.following.skew  # it is what should answer here
        place.hold("fraud", why="incident")  # decides nothing about the release that was left
        scorer.refresh()
        assert answer(scorer) == "fraud:1.0"
        assert scorer.following.seq == 3
        place.resume("fraud", why="over")
        scorer.refresh()
        assert answer(scorer) == "fraud:1.1"
        assert scorer.following.rolled_back is None
        scorer.roll_back(why="no")
        place.promote("fraud:1.2", why="mended")
        scorer.refresh()
        assert answer(scorer) == "fraud:1.2"


def test_a_local_rollback_holds_for_the_host(tmp_path, last_good):
    """Workers beside it follow it, and so does one that starts later; until the number moves on."""
    place = registry(tmp_path / "registry", "1.0", "1.1", "1.2")
    with (
        follow(tmp_path / "registry", last_good=last_good) as a,
        follow(tmp_path / "registry", last_good=last_good) as b,
    ):
        place.promote("fraud:1.1", why="better")
        a.refresh()
        b.refresh()
        assert answer(b) == "fraud:1.1"
        a.roll_back(why="3 a.m.")
        a.refresh()
        b.refresh()
        assert answer(b) == "fraud:1.0"
        with follow(tmp_path / "registry", last_good=last_good) as later:
            assert answer(later) == "fraud:1.0"
            assert later.following.rolled_back == "3 a.m."
        with Hidden(tmp_path / "registry"), follow(tmp_path / "registry", last_good=last_good) as later:
            assert answer(later) == "fraud:1.0"
        place.promote("fraud:1.2", why="mended")
        b.refresh()
        a.refresh()
        assert (answer(a), answer(b)) == ("fraud:1.2", "fraud:1.2")
        with follow(tmp_path / "registry", last_good=last_good) as later:
            assert answer(later) == "fraud:1.2"


def test_c45_a_rollback_while_the_next_release_loads_is_the_last_word(tmp_path, monkeypatch):
    """What was being loaded is not published over it."""
    place = registry(tmp_path, "1.0", "1.1", "1.2")
    with follow(tmp_path) as scorer:
        place.promote("fraud:1.1", why="better")
        scorer.refresh()
        real = ri.Registry.read

        def slow(self: Any, ref: str, **more: Any) -> Any:
            scorer.roll_back(why="now")
            return real(self, ref, **more)

        monkeypatch.setattr(ri.Registry, "read", slow)
        place.promote("fraud:1.2", why="even better")
        scorer.refresh()
        assert answer(scorer) == "fraud:1.0"


def test_a_rollback_while_the_registry_is_asked_is_the_last_word(tmp_path, monkeypatch):
    """The round that is under way does not bring back what was left, and neither does a registry that goes away then."""
    place = registry(tmp_path / "registry", "1.0", "1.1")
    heard = Heard()
    with follow(tmp_path / "registry", hooks=[heard]) as scorer:
        place.promote("fraud:1.1", why="better")
        scorer.refresh()
        real = ri.Registry.in_force

        def slow(self: Any, name: str) -> Any:
            found = real(self, name)
            if answer(scorer) == "fraud:1.1":
                scorer.roll_back(why="now")
            return found

        monkeypatch.setattr(ri.Registry, "in_force", slow)
        scorer.refresh()
        assert answer(scorer) == "fraud:1.0"
        assert heard.of("release")[-1] == ("fraud:1.1", "fraud:1.0")
        with Hidden(tmp_path / "registry"):
            scorer.refresh()
        assert answer(scorer) == "fraud:1.0"


@pytest.mark.parametrize("resident", [True, False])
def test_a_rollback_beside_us_holds_without_the_registry(tmp_path, last_good, resident):
    """When an operator goes back is when things are out of reach: what is on this host's disk will do."""
    place = registry(tmp_path / "registry", "1.0", "1.1")
    with follow(tmp_path / "registry", last_good=last_good) as a:
        b = follow(tmp_path / "registry", last_good=last_good)
        place.promote("fraud:1.1", why="better")
        a.refresh()
        if resident:
            b.refresh()
        else:
            b.close()
            b = follow(tmp_path / "registry", last_good=last_good)
        assert answer(b) == "fraud:1.1"
        with Hidden(tmp_path / "registry"), b:
            a.roll_back(why="3 a.m.")
            a.refresh()
            b.refresh()
            assert (answer(a), answer(b)) == ("fraud:1.0", "fraud:1.0")
            assert b.following.state == "unreachable"
            assert b.following.rolled_back == "3 a.m."


@pytest.mark.parametrize("why", ["x" * 5_000, "\ud800", RuntimeError("scores are zero"), None])
def test_a_rollback_is_kept_whatever_was_said_of_it(tmp_path, last_good, why):
    """What is typed at 3 a.m. neither ends following nor is lost at a restart."""
    place = registry(tmp_path / "registry", "1.0", "1.1")
    with follow(tmp_path / "registry", last_good=last_good) as scorer:
        place.promote("fraud:1.1", why="better")
        scorer.refresh()
        scorer.roll_back(why=why)
        scorer.refresh()
        assert scorer.following.state == "ok"
        with follow(tmp_path / "registry", last_good=last_good) as later:
            assert answer(later) == "fraud:1.0"
            assert later.following.rolled_back == scorer.following.rolled_back


@pytest.mark.parametrize("reachable", [True, False])
def test_files_of_another_release_are_not_what_an_operator_went_back_to(tmp_path, last_good, reachable):
    """Somebody has exchanged them on the host's disk: the rollback names one release, by its digest."""
    place = registry(tmp_path / "registry", "1.0", "1.1")
    with follow(tmp_path / "registry", last_good=last_good) as scorer:
        place.promote("fraud:1.1", why="better")
        scorer.refresh()
        scorer.roll_back(why="no")
        scorer.refresh()
    old, new = (next((last_good / "production/fraud").glob(f"{version}-*")) for version in ("1.0", "1.1"))
    shutil.rmtree(old)
    shutil.copytree(new, old)
    away = contextlib.nullcontext() if reachable else Hidden(tmp_path / "registry")
    with away, follow(tmp_path / "registry", last_good=last_good) as scorer:
        assert answer(scorer) == ("fraud:1.0" if reachable else "fraud:1.1")  # what else there is
        assert scorer.following.state == ("ok" if reachable else "failed")
        assert scorer.following.skew is not reachable


def test_a_swap_by_hand_is_the_last_word_too(tmp_path, last_good):
    """Until the number moves on. Processes beside it cannot have what nobody published, so it is this one's alone."""
    place = registry(tmp_path / "registry", "1.0", "1.2")
    with (
        follow(tmp_path / "registry", last_good=last_good) as a,
        follow(tmp_path / "registry", last_good=last_good) as b,
    ):
        a.swap(release("1.1"), why="try it")
        for _ in range(3):
            a.refresh()
            b.refresh()
            assert (answer(a), answer(b)) == ("fraud:1.1", "fraud:1.0")
        assert a.following.rolled_back == "try it"
        assert b.following.rolled_back is None
        place.promote("fraud:1.2", why="mended")
        a.refresh()
        assert answer(a) == "fraud:1.2"
        assert a.following.rolled_back is None


def test_c46_no_room_for_two_releases(tmp_path, monkeypatch):
    """The old one answers on, and says what is missing."""
    from retailinfer import memory

    place = registry(tmp_path, "1.0", "1.1")
    with follow(tmp_path) as scorer:
        monkeypatch.setattr(memory, "available_bytes", lambda: 100)
        place.promote("fraud:1.1", why="better")
        scorer.refresh()
        assert answer(scorer) == "fraud:1.0"
        assert scorer.following.state == "failed"
        assert "SwapError" in scorer.following.why
        monkeypatch.undo()
        scorer.refresh()
        assert answer(scorer) == "fraud:1.1"


def test_old_releases_are_let_go_of(tmp_path):
    """The one that answers and the one before it are in memory, and no third."""
    place = registry(tmp_path, "1.0", "1.1", "1.2")
    with follow(tmp_path) as scorer:
        first = weakref.ref(scorer._live.pipeline)
        for version in ("1.1", "1.2", "1.0"):
            place.promote(f"fraud:{version}", why="next")
            scorer.refresh()
        until(lambda: first() is None, what="the end of the first release")
        assert set(scorer._follower._known) == {V10, V12}


# ---- thresholds that operators move ------------------------------------------------------------------------------------


def test_a_threshold_that_is_moved_holds_after_the_next_look(tmp_path):
    """Until it is lifted, or ends by itself; the trace of each decision says so, and nothing else changes."""
    clock = ManualClock(wall_ns=1_795_953_600 * 10**9)
    place = ri.Registry(tmp_path, trust="unsigned", who="anna", clock=clock)
    place.publish(release("1.0"))
    place.publish(release("1.1"))
    place.promote("fraud:1.0", why="first")
    heard, request = Heard(), {"amount": 0.55}
    with follow(place, hooks=[heard], store=ri.Store(clock=clock)) as scorer:
        assert scorer.score(request).action == "review"
        resident = scorer._live.resident
        until_ = dt.datetime.fromtimestamp(1_795_953_600 + 3600, dt.UTC)
        place.override("fraud", {"decline": 0.5}, until=until_, why="card testing")
        scorer.refresh()
        decision = scorer.score(request)
        assert (decision.action, decision.score, decision.release) == (
            "decline",
            scorer.score(request).score,
            "fraud:1.0",
        )
        assert any("decline from 0.5" in text for text in decision.trace)
        assert "decline from 0.5" in scorer.following.moved[0]
        assert scorer._live.resident is resident
        moved = "decline from 0.5 until 2026-11-29T13:00:00Z"
        assert heard.of("thresholds") == [("as released", moved)]
        with follow(place, store=ri.Store(clock=clock)) as another:  # one that starts meanwhile
            assert another.score(request).action == "decline"
        engine = scorer._live.engine
        scorer.refresh()
        assert scorer._live.engine is engine  # nothing is made anew where nothing changed
        with Hidden(tmp_path):
            clock.advance_ns(3600 * 10**9)
            assert scorer.score(request).action == "review"  # it ends although nobody can be asked
        scorer.refresh()
        assert heard.of("thresholds") == [("as released", moved), (moved, "as released")]
        later = dt.datetime.fromtimestamp(1_795_953_600 + 9000, dt.UTC)
        place.override("fraud", {"decline": 0.52}, until=later, why="again")
        scorer.refresh()
        assert scorer.score(request).action == "decline"
        place.promote("fraud:1.1", why="better")  # a release of its own thresholds
        scorer.refresh()
        assert scorer.following.moved == ()
        place.roll_back("fraud", why="worse")
        scorer.refresh()
        assert scorer.score(request).action == "decline"
        place.lift("fraud", why="over")
        scorer.refresh()
        assert scorer.score(request).action == "review"


# ---- threads, forks, ends ----------------------------------------------------------------------------------------------


def test_answers_go_on_while_releases_come(tmp_path):
    """Four threads and a follower at full speed: no error, and every answer is of one release."""
    place = registry(tmp_path, "1.0", "1.1", "1.2")
    stop, problems, seen = threading.Event(), [], set()
    with follow(tmp_path, poll_s=0.01) as scorer:

        def ask() -> None:
            while not stop.is_set():
                try:
                    seen.add(answer(scorer))
                except Exception as exc:
                    problems.append(exc)
                    return

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for i in range(9):
            version = ("1.1", "1.2", "1.0")[i % 3]
            place.promote(f"fraud:{version}", why="next")
            until(lambda version=version: scorer.health().release == f"fraud:{version}", what=version)
        stop.set()
        for thread in threads:
            thread.join()
    assert problems == []
    assert seen == {"fraud:1.0", "fraud:1.1", "fraud:1.2"}


def test_a_dropped_scorer_is_gone_and_its_thread_ends(tmp_path):
    """Nobody has to close it, and no collection of garbage has to find it."""
    registry(tmp_path, "1.0")
    scorer = follow(tmp_path, poll_s=0.01)
    gone = weakref.ref(scorer)
    time.sleep(0.05)
    del scorer
    until(lambda: gone() is None, what="the end of the scorer")
    until(
        lambda: "retailinfer-follow-fraud" not in [t.name for t in threading.enumerate()],
        what="the end of the thread",
    )


def test_a_forked_child_follows_by_a_thread_of_its_own(tmp_path):
    """And so does its parent."""
    place = registry(tmp_path, "1.0", "1.1")
    with follow(tmp_path, poll_s=0.05) as scorer:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:  # pragma: no cover - in the child
            code = 1
            try:
                os.write(write, b".")
                until(lambda: answer(scorer) == "fraud:1.1", what="the promoted release in the child")
                code = 0
            finally:
                os._exit(code)
        os.read(read, 1)
        place.promote("fraud:1.1", why="better")
        until(lambda: answer(scorer) == "fraud:1.1", what="the promoted release in the parent")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(read)
        os.close(write)


def test_forks_in_the_middle_of_rounds(tmp_path):
    """Thirty children while the parent loads one release after the other: all of them answer and end."""
    place = registry(tmp_path, "1.0", "1.1", "1.2")
    with follow(tmp_path, poll_s=0.01) as scorer:
        pids = []
        for i in range(30):
            place.promote(f"fraud:{('1.1', '1.2', '1.0')[i % 3]}", why="next")
            time.sleep(0.003)
            pid = os.fork()
            if pid == 0:  # pragma: no cover - in the child
                code = 1
                try:
                    answer(scorer)
                    scorer.refresh()
                    answer(scorer)
                    code = 0
                finally:
                    os._exit(code)
            pids.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * 30


def test_workers_of_a_host_load_one_after_the_other(tmp_path, last_good):
    """Eight processes start at once: while one loads, nobody else does."""
    registry(tmp_path / "registry", "1.0")
    log = tmp_path / "log"
    pids = []
    for _ in range(8):
        pid = os.fork()
        if pid == 0:  # pragma: no cover - in the child
            code = 1
            try:
                from retailinfer.pipeline import Pipeline

                real = Pipeline.load.__func__

                def watched(cls: Any, *args: Any, real: Any = real, **options: Any) -> Any:
                    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                    os.write(fd, f"begin {os.getpid()}\n".encode())
                    try:
                        return real(cls, *args, **options)
                    finally:
                        os.write(fd, f"end {os.getpid()}\n".encode())
                        os.close(fd)

                Pipeline.load = classmethod(watched)
                answer(follow(tmp_path / "registry", last_good=last_good))
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 8
    lines = log.read_text().splitlines()
    assert len(lines) == 16
    for begin, end in zip(lines[::2], lines[1::2], strict=True):
        assert begin.split()[0] == "begin"
        assert end == begin.replace("begin", "end")


def test_c41_killed_while_it_follows(tmp_path):
    """At random instants: the next process starts, also without the registry. `RETAILINFER_CRASHES` says how often."""
    kills = int(os.environ.get("RETAILINFER_CRASHES", "240")) // 8
    assert kill_followers(tmp_path, kills, seed=11) > kills // 8


def test_a_hook_may_ask_again(tmp_path):
    """Hooks are called in the middle of a round."""
    place = registry(tmp_path, "1.0", "1.1")
    asked = []

    class Asks:
        def on_event(self, event: Any) -> None:
            if type(event).__name__ == "Changed":
                scorer.refresh()
                asked.append(scorer.following.seq)

    with follow(tmp_path, hooks=[Asks()]) as scorer:
        place.promote("fraud:1.1", why="better")
        scorer.refresh()
        assert asked
        assert answer(scorer) == "fraud:1.1"


def test_a_closed_scorer_does_not_follow(tmp_path):
    """And says so."""
    registry(tmp_path, "1.0")
    scorer = follow(tmp_path)
    scorer.close()
    with pytest.raises(ConfigError, match="closed"):
        scorer.refresh()
    with pytest.raises(ConfigError, match="closed"):
        scorer.score(REQUEST)


# ---- the command -------------------------------------------------------------------------------------------------------


def test_the_command_says_what_a_process_would_answer_with(tmp_path, last_good, capsys, monkeypatch):
    """The same as a process that starts: from the registry, from disk, after a rollback, or nothing at all."""
    from retailinfer.cli.main import main

    monkeypatch.delenv("RETAILINFER_TRUST", raising=False)
    place = registry(tmp_path / "registry", "1.0", "1.1")
    arguments = ["follow", str(tmp_path / "registry"), "fraud", "--last-good", str(last_good)]

    def said() -> tuple[int, list[str]]:
        code = main(arguments)
        return code, capsys.readouterr().out.splitlines()

    code, lines = said()
    assert (code, lines[-1]) == (0, "a process that starts now answers with fraud:1.0, from the registry")
    assert not last_good.exists()
    with follow(tmp_path / "registry", last_good=last_good) as scorer:
        place.promote("fraud:1.1", why="better")
        scorer.refresh()
        scorer.roll_back(why="3 a.m.")
        scorer.refresh()
    code, lines = said()
    assert code == 0
    assert lines[0].startswith("pointer 2 in production, of ")
    assert lines[0].endswith("by anna: better")
    assert [line.split(",")[0] for line in lines[1:3]] == [
        "kept here: version 1.1",
        "kept here: version 1.0",
    ]
    assert lines[3].endswith("3 a.m.")
    assert lines[-1] == "a process that starts now answers with fraud:1.0, from what is kept here"
    with Hidden(tmp_path / "registry"):
        code, lines = said()
        assert (code, lines[-1]) == (
            0,
            "a process that starts now answers with fraud:1.0, from what is kept here",
        )
        shutil.rmtree(last_good)
        code, lines = said()
        assert (code, lines[-1]) == (1, "a process that starts now has nothing to answer with")
    code = main([*arguments, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (told["ok"], told["answers"]["release"], told["pointer"]["seq"]) == (True, "fraud:1.1", 2)
