"""Thresholds that change while a scorer follows its registry: overrides that come and end, policies without a new model."""

from __future__ import annotations

import datetime as dt
import threading
import time
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from following import Heard, follow
from releases import packed, weighted
from signed_releases import NOW_S, key, record, signed, statement_of, trust_file
from test_follow import Hidden

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.clock import ManualClock
from retailinfer.errors import RegistryError
from retailinfer.release.highwater import read_state
from retailinfer.release.last_good import STATE
from retailinfer.release.statements import encode_statement
from retailinfer.release.trust import Role, encode_trust
from retailinfer.store.store import Store

HOUR = 3_600
POLICY = ri.Policy(
    [("approve", 0.0), ("review", 0.3), ("decline", 0.6)],
    envelope={"decline": (0.5, 0.9), "review": (0.1, 0.4)},
)
SOONER = ri.Policy([("approve", 0.0), ("review", 0.2), ("decline", 0.5)], envelope={"decline": (0.4, 0.9)})


def made(version: str, weight: float = 1.0) -> dict[str, bytes]:
    """Score = the amount times a weight."""
    spec = ri.FeatureSpec(request={"amount": float}, columns=[c.numeric("amount")])
    golden = pa.table({"amount": [0.0, 0.25, 0.5]})
    return packed(
        "fraud", weighted(weight), spec.fit(golden), policy=POLICY, golden=golden, info={"version": version}
    )


V10, V11 = made("1.0"), made("1.1", 0.5)


@pytest.fixture
def clock():
    """Of registry, trust and decisions."""
    return ManualClock(wall_ns=NOW_S * 10**9)


def open_registry(place: Any, clock: Any, **settings: Any) -> ri.Registry:
    """As one of its people or hosts sees it."""
    return ri.Registry(place, **({"trust": "unsigned", "who": "anna", "clock": clock} | settings))


@pytest.fixture
def registry(tmp_path, clock):
    """1.0 answers, 1.1 is there."""
    place = open_registry(tmp_path / "registry", clock)
    for files in (V10, V11):
        place.publish(files)
    place.promote("fraud:1.0", why="first")
    return place


def moment(clock: ManualClock, seconds: float) -> dt.datetime:
    """So many seconds from now."""
    return dt.datetime.fromtimestamp(clock.wall_ns() / 1e9 + seconds, dt.UTC)


def move(registry: ri.Registry, clock: ManualClock, thresholds: Any = None, lasts: float = HOUR) -> Any:
    """A threshold for an hour."""
    return registry.override(
        "fraud", thresholds or {"decline": 0.8}, until=moment(clock, lasts), why="card testing", who="ben"
    )


def scorer_of(tmp_path: Any, clock: Any, **settings: Any) -> Any:
    """It follows, and looks when it is asked to."""
    place = settings.pop("place", None) or open_registry(tmp_path / "registry", clock)
    return follow(place, store=Store(clock=clock), **settings)


def decided(scorer: Any, amount: float = 0.7) -> tuple[str, tuple[str, ...]]:
    """Action and trace."""
    decision = scorer.score({"amount": amount})
    return decision.action, decision.trace[1:]


# ---- overrides ---------------------------------------------------------------------------------------------------------


def test_the_release_before_goes_by_what_holds_now(tmp_path, registry, clock):
    """On its rung, and after a rollback at once: an override that was lifted since is nowhere applied any more."""
    ladder = {"ladder": [{"kind": "previous"}]}
    with scorer_of(tmp_path, clock, contract=ladder) as scorer:
        move(registry, clock)
        scorer.refresh()
        registry.promote("fraud:1.1", why="newer")
        scorer.refresh()
        live = scorer._live
        assert (live.release, live.previous.manifest.release) == ("fraud:1.1", "fraud:1.0")
        assert (len(live.previous.moved), len(live.resident.pipeline.moved)) == (1, 1)
        registry.lift("fraud", why="over")
        scorer.refresh()
        assert scorer._live.pipeline is live.pipeline
        rung = scorer._live.previous.engine.score({"amount": 0.7})
        assert (rung.action, rung.trace) == ("decline", ("release: unsigned",))
        scorer.roll_back(why="1.1 is bad")
        assert (scorer._live.release, decided(scorer)) == ("fraud:1.0", ("decline", ()))


def test_an_override_comes_to_the_release_before_too(tmp_path, registry, clock):
    """What is moved while another release answers holds after the rollback, from its first answer."""
    with scorer_of(tmp_path, clock) as scorer:
        registry.promote("fraud:1.1", why="newer")
        scorer.refresh()
        same = scorer._live
        registry.override(
            "fraud", {"decline": 0.8}, until=moment(clock, HOUR), why="it may come back", release="fraud:1.0"
        )
        scorer.refresh()
        assert scorer._live.pipeline is same.pipeline
        scorer.roll_back(why="1.1 is bad")
        assert decided(scorer)[0] == "review"


def test_an_override_holds_after_the_next_look_and_ends_by_itself(tmp_path, registry, clock):
    """In decisions, `policy`, `following` and events; who, what, why, until when."""
    heard = Heard()
    with scorer_of(tmp_path, clock, hooks=[heard]) as scorer:
        assert decided(scorer) == ("decline", ())
        before = scorer._live
        move(registry, clock)
        assert decided(scorer) == ("decline", ())
        found = scorer.refresh()
        text = "threshold: decline from 0.8 instead of 0.6 until 2026-11-29T13:00:00Z, override 1"
        assert decided(scorer) == ("review", (text,))
        assert found.moved == (text,)
        assert found.running == before.digest
        assert scorer.policy.threshold("decline") == 0.8
        assert scorer._live.pipeline.sessions is before.pipeline.sessions
        assert scorer._live.since_ns == before.since_ns
        same = scorer._live
        scorer.refresh()
        assert scorer._live is same
        clock.advance_ns(HOUR * 10**9)
        assert decided(scorer) == ("decline", ())
        assert scorer.following.moved == ()
        scorer.refresh()
        told = [(one.before, one.after, one.why) for one in heard.changes if one.part == "thresholds"]
        moved = "decline from 0.8 until 2026-11-29T13:00:00Z"
        assert told == [
            ("as released", moved, "ben: card testing"),
            (moved, "as released", "what was moved has ended, or was lifted"),
        ]


def test_lifting_takes_effect_at_the_next_look(tmp_path, registry, clock):
    """And several are several."""
    with scorer_of(tmp_path, clock) as scorer:
        move(registry, clock)
        move(registry, clock, {"review": 0.1})
        scorer.refresh()
        assert (decided(scorer)[0], decided(scorer, 0.15)[0]) == ("review", "review")
        registry.lift("fraud", why="one is enough", seqs=[1])
        scorer.refresh()
        assert (decided(scorer)[0], decided(scorer, 0.15)[0]) == ("decline", "review")
        registry.lift("fraud", why="over")
        scorer.refresh()
        assert (decided(scorer), decided(scorer, 0.15)) == (("decline", ()), ("approve", ()))


def test_a_start_knows_what_was_moved(tmp_path, registry, clock):
    """From the first answer on."""
    move(registry, clock)
    with scorer_of(tmp_path, clock) as scorer:
        assert decided(scorer)[0] == "review"


def test_the_thread_moves_thresholds_by_itself(tmp_path, registry, clock):
    """Within a poll."""
    with scorer_of(tmp_path, clock, poll_s=0.05) as scorer:
        move(registry, clock)
        end = time.monotonic() + 20
        while decided(scorer)[0] != "review" and time.monotonic() < end:
            time.sleep(0.01)
        assert decided(scorer)[0] == "review"


def test_a_registry_out_of_reach_neither_ends_nor_prolongs_an_override(tmp_path, registry, clock):
    """It holds to its end, and then no longer, whoever can be asked."""
    with scorer_of(tmp_path, clock) as scorer:
        move(registry, clock)
        scorer.refresh()
        with Hidden(tmp_path / "registry"):
            assert scorer.refresh().state == "unreachable"
            assert decided(scorer)[0] == "review"
            clock.advance_ns(HOUR * 10**9)
            assert decided(scorer) == ("decline", ())
            scorer.refresh()
            assert decided(scorer) == ("decline", ())
        scorer.refresh()
        assert decided(scorer) == ("decline", ())


def test_a_start_while_the_registry_is_out_of_reach_keeps_them(tmp_path, registry, clock):
    """Workers that are recycled in the middle of an attack decide like those beside them."""
    last_good = tmp_path / "last-good"
    move(registry, clock)
    with scorer_of(tmp_path, clock, last_good=last_good) as scorer:
        assert decided(scorer)[0] == "review"
    with Hidden(tmp_path / "registry"):
        with scorer_of(tmp_path, clock, last_good=last_good) as scorer:
            assert decided(scorer)[0] == "review"
        clock.advance_ns(HOUR * 10**9)
        with scorer_of(tmp_path, clock, last_good=last_good) as scorer:
            assert decided(scorer) == ("decline", ())
    kept = last_good / "production/fraud/overrides.json"
    kept.write_bytes(b"{")
    heard = Heard()
    with (
        Hidden(tmp_path / "registry"),
        scorer_of(tmp_path, clock, last_good=last_good, hooks=[heard]) as scorer,
    ):
        assert decided(scorer) == ("decline", ())
        assert heard.of("overrides fraud") == [("believed", "refused")]
        assert "overrides.json" in heard.why("overrides fraud")


def test_an_override_that_does_not_fit_is_told(tmp_path, registry, clock):
    """One that went past `override`, outside its envelope: nothing of it holds, and who asked for it can see why."""
    heard = Heard()
    with scorer_of(tmp_path, clock, hooks=[heard]) as scorer:
        move(registry, clock, {"decline": 0.8})
        move(registry, clock, {"review": 0.4})
        entry = move(registry, clock, {"decline": 0.7})
        scorer.refresh()
        assert (decided(scorer, 0.65)[0], scorer.following.why) == ("review", "")
        strange = msgspec.structs.replace(entry, seq=4, thresholds={"decline": 0.95})
        place = tmp_path / "registry/overrides/production/fraud/00000004.json"
        place.write_bytes(encode_statement(strange))
        scorer.refresh()
        assert decided(scorer, 0.75)[0] == "decline"
        assert (
            "override 4: Expected 'decline' from 0.5 to 0.9, its envelope, got 0.95" in scorer.following.why
        )
        assert heard.of("override 4 of fraud") == [("asked for", "refused")]
        scorer.refresh()
        assert len(heard.of("override 4 of fraud")) == 1
        registry.lift("fraud", why="nonsense", seqs=[4])
        scorer.refresh()
        assert scorer.following.why == ""
        assert heard.of("override 4 of fraud")[1:] == [("refused", "settled")]


def test_an_override_is_of_one_release(tmp_path, registry, clock):
    """Another champion has its own thresholds; going back brings it back, in the registry and on the spot."""
    with scorer_of(tmp_path, clock) as scorer:
        move(registry, clock)
        scorer.refresh()
        registry.promote("fraud:1.1", why="better")
        scorer.refresh()
        assert (decided(scorer, 1.4), scorer.manifest.version) == (("decline", ()), "1.1")
        registry.roll_back("fraud", why="worse")
        scorer.refresh()
        assert (decided(scorer)[0], scorer.manifest.version) == ("review", "1.0")
        registry.lift("fraud", why="over")
        registry.promote("fraud:1.1", why="again")
        scorer.refresh()
        scorer.roll_back(why="not again")
        scorer.refresh()
        assert (decided(scorer), scorer.manifest.version) == (("decline", ()), "1.0")


def test_a_new_champion_answers_with_its_overrides_from_its_first_answer_on(tmp_path, registry, clock):
    """They are made before the pointer moves, so no answer is between them."""
    registry.override("fraud", {"decline": 0.8}, until=moment(clock, HOUR), why="x", release="fraud:1.1")
    seen = []
    with scorer_of(tmp_path, clock) as scorer:
        publish = scorer._publish

        def look(live):
            publish(live)
            seen.append((live.release, *decided(scorer, 1.4)))

        scorer._publish = look
        registry.promote("fraud:1.1", why="better")
        scorer.refresh()
    assert [(release, action) for release, action, _ in seen] == [("fraud:1.1", "review")]


def test_answers_go_on_while_thresholds_move(tmp_path, registry, clock):
    """No error, and each answer's action is that of the threshold that its trace names."""
    wrong: list[Any] = []
    stop = threading.Event()

    def score(scorer):
        while not stop.is_set():
            try:
                decision = scorer.score({"amount": 0.7})
                low = 0.8 if len(decision.trace) > 1 else 0.6
                if (decision.action == "decline") != (low <= 0.7):
                    wrong.append(decision)
            except Exception as exc:
                wrong.append(exc)

    with scorer_of(tmp_path, clock) as scorer:
        threads = [threading.Thread(target=score, args=(scorer,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(8):
                move(registry, clock)
                scorer.refresh()
                registry.lift("fraud", why="over")
                scorer.refresh()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert wrong == []


# ---- signed ------------------------------------------------------------------------------------------------------------


@pytest.mark.requires("cryptography")
def signed_place(tmp_path, clock):
    """A registry where 1.0 answers, as people with keys see it; and as who may move thresholds does."""
    keys = {name: record(name) for name in ("ci", "lead", "ops", "night", "root")}
    file = encode_trust(trust_file(keys=keys, override=Role(keys=("night",))))

    def people(*names, state=None):
        trusted = ri.Trust(file, state=state, clock=clock)
        return open_registry(tmp_path / "registry", clock, trust=trusted, keys=[key(name) for name in names])

    ops = people("ops")
    ops.publish(V10 | {"manifest.sig": signed(statement_of(V10), "ci", "lead")})
    ops.promote("fraud:1.0", why="first")
    return people, people("night")


@pytest.mark.requires("cryptography")
def test_a_host_remembers_no_more_than_it_keeps(tmp_path, clock):
    """Else it would miss, at a start without the registry, what it has not kept."""
    people, night = signed_place(tmp_path, clock)
    move(night, clock)
    last_good = tmp_path / "last-good"
    kept = last_good / "production/fraud/overrides.json"
    kept.mkdir(parents=True)  # so that nothing can be put there
    with scorer_of(tmp_path, clock, place=people(), last_good=last_good) as scorer:
        assert scorer.score({"amount": 0.7}).action == "review"
        assert "overrides.json" in scorer.following.why
        assert read_state(str(last_good / STATE)).overrides == {}
        kept.rmdir()
        scorer.refresh()
        assert scorer.following.why == ""
        assert read_state(str(last_good / STATE)).overrides["fraud"].seq == 1
    with (
        Hidden(tmp_path / "registry"),
        scorer_of(tmp_path, clock, place=people(), last_good=last_good) as scorer,
    ):
        assert scorer.score({"amount": 0.7}).action == "review"


@pytest.mark.requires("cryptography")
def test_an_override_that_was_taken_away_leaves_the_releases_own_thresholds(tmp_path, clock):
    """A lift was deleted: the host that saw it moves nothing, and says why."""
    people, night = signed_place(tmp_path, clock)
    heard = Heard()
    move(night, clock)
    place = people(state=tmp_path / "state.json")
    with scorer_of(tmp_path, clock, place=place, hooks=[heard]) as scorer:
        decision = scorer.score({"amount": 0.7})
        assert (decision.action, len(decision.trace)) == ("review", 1)
        night.lift("fraud", why="over")
        scorer.refresh()
    lift = tmp_path / "registry/overrides/production/fraud/00000002.json"
    lift.unlink()
    with scorer_of(tmp_path, clock, place=people(state=tmp_path / "state.json"), hooks=[heard]) as scorer:
        assert scorer.score({"amount": 0.7}).action == "decline"
        assert "was taken away" in scorer.following.why
        assert scorer.following.state == "ok"
        told = [one for one in heard.changes if one.part == "overrides fraud"]
        assert [(one.before, one.after) for one in told] == [("believed", "refused")]
        lift.write_bytes(b"junk")
        scorer.refresh()
        assert scorer.score({"amount": 0.7}).action == "decline"
    with scorer_of(tmp_path, clock, place=people(), hooks=[heard]) as scorer:
        assert (
            scorer.score({"amount": 0.7}).action == "review"
        )  # who remembers nothing cannot know; it ends in time
        clock.advance_ns(HOUR * 10**9)
        assert scorer.score({"amount": 0.7}).action == "decline"


# ---- another policy, the same models -----------------------------------------------------------------------------------


@pytest.fixture
def sooner(tmp_path):
    """1.0 with another policy."""
    ri.repolicy(V10, policy=SOONER, version="1.0-sooner", out=tmp_path / "sooner")
    return tmp_path / "sooner"


def test_a_policy_that_is_promoted_shares_the_models_that_run(tmp_path, registry, clock, sooner):
    """To it, back, and on the spot; overrides are of the release that they were made for."""
    registry.publish(sooner)
    with scorer_of(tmp_path, clock) as scorer:
        models, struct = scorer._live.pipeline.sessions, scorer.request_type
        move(registry, clock)
        scorer.refresh()
        registry.promote("fraud:1.0-sooner", why="a review costs less")
        scorer.refresh()
        assert scorer.manifest.version == "1.0-sooner"
        assert scorer._live.pipeline.sessions is models
        assert scorer.request_type is struct
        assert decided(scorer, 0.55) == ("decline", ())
        registry.roll_back("fraud", why="queue is empty")
        scorer.refresh()
        assert (decided(scorer)[0], scorer._live.pipeline.sessions is models) == ("review", True)
        registry.promote("fraud:1.0-sooner", why="again")
        scorer.refresh()
        scorer.roll_back(why="not again")
        assert (scorer.manifest.version, scorer._live.pipeline.sessions is models) == ("1.0", True)


def test_a_policy_needs_no_room_for_a_second_model(tmp_path, registry, clock, sooner, monkeypatch):
    """Thresholds can change on a host that could not load another release."""
    from retailinfer import memory

    registry.publish(sooner)
    with scorer_of(tmp_path, clock) as scorer:
        monkeypatch.setattr(memory, "available_bytes", lambda: 100)
        registry.promote("fraud:1.0-sooner", why="a review costs less")
        scorer.refresh()
        assert (scorer.manifest.version, scorer.following.state) == ("1.0-sooner", "ok")
        registry.promote("fraud:1.1", why="another model")
        scorer.refresh()
        assert (scorer.manifest.version, scorer.following.state) == ("1.0-sooner", "failed")
        assert "SwapError" in scorer.following.why


def test_a_policy_over_another_model_shares_nothing(tmp_path, registry, clock, sooner):
    """Its base does not run here."""
    registry.publish(sooner)
    registry.promote("fraud:1.1", why="better")
    with scorer_of(tmp_path, clock) as scorer:
        models = scorer._live.pipeline.sessions
        registry.promote("fraud:1.0-sooner", why="back, and sooner")
        scorer.refresh()
        assert scorer._live.pipeline.sessions is not models
        assert decided(scorer, 0.55) == ("decline", ())


def test_moving_thresholds_costs_the_counts_nothing(tmp_path, registry, clock):
    """Permits and what admission has measured go on."""
    with scorer_of(tmp_path, clock) as scorer:
        scorer.score({"amount": 0.1}, deadline_ms=1_000)
        permits, stage = scorer.permits, scorer._live.pipeline.engine.stages["run"]
        move(registry, clock)
        scorer.refresh()
        assert scorer.permits is permits
        assert scorer._live.pipeline.engine.stages["run"] is stage


def test_a_registry_that_is_empty_has_moved_nothing(tmp_path, clock):
    """The error is that of following."""
    with pytest.raises(RegistryError, match="no champion"):
        scorer_of(tmp_path, clock)
