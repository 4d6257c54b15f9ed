"""A registry: publish, approve, promote, roll back, hold, history, garbage; in a folder, in memory, in an object store."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest
from object_stores import ObjectStore
from registries import DAY_NS, all_files, check, digest, release, report_of

import retailinfer as ri
from retailinfer.clock import ManualClock
from retailinfer.errors import BundleError, ConfigError, ConflictError, IntegrityError, RegistryError
from retailinfer.release.manifest import sha256_hex
from retailinfer.release.registry_garbage import DAY_S

OLD, NEW, NEXT = release("1.0"), release("1.1"), release("1.2")


@pytest.fixture
def clock() -> ManualClock:
    """Time that stands still."""
    return ManualClock()


def everywhere(test: Any) -> Any:
    """In an object store too: what depends on how files get there, and on who else is there."""
    test.everywhere = True
    return test


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A folder and memory for every test that wants a place; the object store, which takes a second, for some."""
    if "place" in metafunc.fixturenames:
        kinds = ["folder", "memory", *(["object store"] if hasattr(metafunc.function, "everywhere") else [])]
        metafunc.parametrize("place", kinds, indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Where a registry lies, as its arguments."""
    if request.param == "folder":
        return {"place": tmp_path / "registry"}
    pytest.importorskip("fsspec", reason="`fsspec` is not installed (pip install retailinfer[test])")
    if request.param == "memory":
        return {"place": f"memory://{uuid.uuid4().hex}"}
    store: ObjectStore = request.getfixturevalue("object_store")
    return {"place": f"{store.bucket(f'b-{uuid.uuid4().hex}')}/registry", "storage_options": store.options}


@pytest.fixture
def registry(place: dict[str, Any], clock: ManualClock) -> ri.Registry:
    """An empty registry, by Anna."""
    return ri.Registry(**place, trust="unsigned", who="anna", clock=clock)


def another(registry: ri.Registry, place: dict[str, Any], **changes: Any) -> ri.Registry:
    """The same registry as another process sees it."""
    given = {"trust": "unsigned", "who": "ben", "clock": registry._clock}
    return ri.Registry(**place, **given, **changes)


# ---- publishing ------------------------------------------------------------------------------------------------------


@everywhere
def test_what_is_published_reads_back(registry, place):
    """Everybody reads the very bytes that were published, by version, digest or part of it."""
    done = registry.publish(NEW)
    assert done == ("fraud", "1.1", digest(NEW), True)
    for one in (registry, another(registry, place)):
        for ref in ("fraud:1.1", done.digest, done.digest[:8]):
            assert one.read(ref) == NEW
        assert one.find("fraud:1.1").digest == done.digest
    check(registry)


@everywhere
def test_publishing_twice_changes_nothing(registry):
    """The second time finds it there, and leaves no file behind."""
    registry.publish(NEW)
    before = all_files(registry._records.files)
    assert registry.publish(NEW).new is False
    assert all_files(registry._records.files) == before


@everywhere
def test_a_version_is_taken_for_ever(registry):
    """Another content under the same version is refused, and who took it is named."""
    registry.publish(NEW)
    before = all_files(registry._records.files)
    with pytest.raises(ConflictError, match=r"fraud:1\.1 is there with another content .*anna"):
        registry.publish(release("1.1", "other"))
    assert all_files(registry._records.files) == before
    assert registry.read("fraud:1.1") == NEW


def test_a_release_from_a_folder_is_published(registry, tmp_path):
    """A directory is read and verified; a damaged one is refused before anything is written."""
    folder = tmp_path / "release"
    folder.mkdir()
    for name, data in NEW.items():
        (folder / name).write_bytes(data)
    assert registry.publish(folder).digest == digest(NEW)
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(IntegrityError):
        registry.publish(folder)
    with pytest.raises(BundleError):
        registry.publish(tmp_path / "nothing")


@everywhere
def test_releases_are_listed_with_their_roles(registry, clock):
    """The newest last, with roles and approvals of this environment."""
    for files in (OLD, NEW, NEXT, release("7", name="recs")):
        registry.publish(files)
        clock.advance_ns(10**9)
    registry.promote("fraud:1.0", why="first")
    registry.promote("fraud:1.1", why="try", role="canary", share=0.25)
    registry.approve("fraud:1.2", why="good", who="ben", report=report_of(NEXT))
    found = [(one.name, one.version, one.roles, one.approvals) for one in registry.releases()]
    assert found == [
        ("fraud", "1.0", ("champion",), 0),
        ("fraud", "1.1", ("canary",), 0),
        ("fraud", "1.2", (), 1),
        ("recs", "7", (), 0),
    ]
    assert [one.version for one in registry.releases("recs")] == ["7"]
    assert registry.releases("recs")[0].size == sum(map(len, release("7", name="recs").values()))


@pytest.mark.parametrize(
    ("ref", "error", "words"),
    [
        ("fraud:9.9", RegistryError, r"no release 'fraud:9\.9'"),
        ("other", RegistryError, "no release 'other'"),
        ("deadbeef", RegistryError, "no release"),
        ("fraud", RegistryError, "has no champion in production"),
        ("", ConfigError, "Expected a release"),
        ("../x:1", ConfigError, "as name"),
        ("fraud:../x", ConfigError, "as version"),
        (None, ConfigError, "Expected a release"),
    ],
)
def test_what_is_not_there_is_told(registry, ref, error, words):
    """Looking for nothing, or for what cannot be, is an error that says what would be right."""
    registry.publish(NEW)
    with pytest.raises(error, match=words):
        registry.read(ref)


def test_an_empty_registry_says_that_it_is_empty(registry):
    """Whoever mistypes a path learns it."""
    with pytest.raises(RegistryError, match="is empty; is it the right place"):
        registry.read("fraud:1.0")
    assert registry.releases() == ()
    assert registry.pointer("fraud") is None
    assert registry.history("fraud") == ()


def test_a_digest_that_two_releases_begin_with_is_ambiguous(registry, monkeypatch):
    """More digits are asked for, and the candidates named. Of 17 releases two begin with the same digit."""
    monkeypatch.setattr("retailinfer.release.registry._HEX", re.compile(r"[0-9a-f]{1,64}"))
    first: dict[str, str] = {}
    for number in range(17):
        done = registry.publish(release(f"1.{number}"))
        if (other := first.setdefault(done.digest[0], done.version)) != done.version:
            break
    with pytest.raises(RegistryError, match=rf"may be fraud:{other}, fraud:{done.version}; give more digits"):
        registry.read(done.digest[0])
    assert registry.read(done.digest[:20]) == release(done.version)


# ---- roles -----------------------------------------------------------------------------------------------------------


@everywhere
def test_promotion_moves_one_pointer(registry, place, clock):
    """Each decision is the next number, says who and why, and everybody sees it."""
    for files in (OLD, NEW):
        registry.publish(files)
    first = registry.promote("fraud:1.0", why="first")
    clock.advance_ns(3600 * 10**9)
    second = registry.promote("fraud:1.1", why="better", who="ben")
    assert (first.seq, first.champion, first.who, first.why) == (1, digest(OLD), "anna", "first")
    assert (second.seq, second.champion, second.who) == (2, digest(NEW), "ben")
    other = another(registry, place)
    assert other.pointer("fraud") == second
    assert other.history("fraud") == (first, second)
    assert other.read("fraud") == NEW
    check(other)


def test_promoting_what_is_promoted_changes_nothing(registry):
    """A job that runs again makes no second entry."""
    registry.publish(NEW)
    first = registry.promote("fraud:1.1", why="first")
    assert registry.promote("fraud:1.1", why="again") == first
    assert len(registry.history("fraud")) == 1


def test_a_release_has_one_role(registry):
    """Becoming champion ends being canary; a champion is not made a shadow of itself."""
    for files in (OLD, NEW, NEXT):
        registry.publish(files)
    registry.promote("fraud:1.0", why="first")
    pointer = registry.promote("fraud:1.1", why="try", role="canary", share=0.05)
    assert (pointer.champion, pointer.canary.digest, pointer.canary.share) == (digest(OLD), digest(NEW), 0.05)
    pointer = registry.promote("fraud:1.1", why="look first", role="shadow")
    assert (pointer.canary, pointer.shadow) == (None, digest(NEW))
    pointer = registry.promote("fraud:1.2", why="the other", role="challenger")
    pointer = registry.promote("fraud:1.1", why="won")
    assert (pointer.champion, pointer.shadow, pointer.challenger) == (digest(NEW), None, digest(NEXT))
    with pytest.raises(RegistryError, match="is the champion; it cannot be the canary"):
        registry.promote("fraud:1.1", why="?", role="canary", share=0.1)
    pointer = registry.withdraw("fraud", "challenger", why="lost")
    assert pointer.digests == (digest(NEW),)
    with pytest.raises(RegistryError, match="no release is challenger"):
        registry.withdraw("fraud", "challenger", why="lost")
    with pytest.raises(ConfigError, match="a champion is replaced or rolled back"):
        registry.withdraw("fraud", "champion", why="away")


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"role": "king"}, ConfigError),
        ({"role": "canary"}, ConfigError),
        ({"share": 0.5}, ConfigError),
        ({"role": "canary", "share": 0.0}, ConfigError),
        ({"role": "canary", "share": 1.0}, ConfigError),
        ({"role": "canary", "share": float("nan")}, ConfigError),
        ({"why": ""}, ConfigError),
        ({"why": "x" * 5000}, ConfigError),
        ({"who": " "}, ConfigError),
        ({"valid_days": 0}, ConfigError),
        ({"valid_days": float("nan")}, ConfigError),
        ({"seq": 7}, ConflictError),
    ],
)
def test_wrong_promotions_are_refused(registry, given, error):
    """A mistake writes nothing."""
    registry.publish(OLD)
    registry.publish(NEW)
    registry.promote("fraud:1.0", why="first")
    with pytest.raises(error):
        registry.promote("fraud:1.1", **{"why": "try", **given})
    assert len(registry.history("fraud")) == 1


def test_nothing_stands_beside_a_champion_that_is_not_there(registry):
    """The first promotion is to champion."""
    registry.publish(NEW)
    with pytest.raises(RegistryError, match="no champion yet"):
        registry.promote("fraud:1.1", why="try", role="shadow")


def test_who_decided_on_what_is_no_longer_true_loses(registry, place):
    """A second person with an old picture is refused, and told what happened."""
    registry.publish(OLD)
    registry.publish(NEW)
    registry.promote("fraud:1.0", why="first")
    other = another(registry, place)
    other.promote("fraud:1.1", why="mine", seq=1)
    with pytest.raises(ConflictError, match=r"got pointer 2 of .*ben.*mine"):
        registry.promote("fraud:1.0", why="yours", seq=1)
    assert registry.promote("fraud:1.0", why="yours", seq=2).seq == 3


@everywhere
def test_of_two_at_once_one_wins(registry, place, monkeypatch):
    """Both looked, one wrote first: the other is told, and the history has one entry."""
    registry.publish(OLD)
    registry.publish(NEW)
    other = another(registry, place)
    write = registry._records.write_pointer

    def late(after: Any, position: int) -> None:
        other.promote("fraud:1.1", why="faster")
        write(after, position)

    monkeypatch.setattr(registry._records, "write_pointer", late)
    with pytest.raises(ConflictError, match=r"somebody else moved .*ben.*faster"):
        registry.promote("fraud:1.0", why="slower")
    assert [pointer.why for pointer in registry.history("fraud")] == ["faster"]


def test_environments_have_pointers_of_their_own(registry, place):
    """Staging and production share releases and nothing else."""
    staging = another(registry, place, environment="staging")
    registry.publish(OLD)
    registry.publish(NEW)
    registry.promote("fraud:1.0", why="good")
    staging.promote("fraud:1.1", why="try")
    staging.approve("fraud:1.1", why="fine", report=report_of(NEW))
    assert registry.read("fraud") == OLD
    assert staging.read("fraud") == NEW
    assert registry.approvals("fraud:1.1") == ()
    assert len(staging.approvals("fraud:1.1")) == 1


# ---- going back ------------------------------------------------------------------------------------------------------


def test_going_back_goes_down_the_stack(registry):
    """Twice back is two releases back, and what was promoted anew is on top again."""
    for files in (OLD, NEW, NEXT):
        registry.publish(files)
        registry.promote(digest(files), why="newer")
    assert registry.roll_back("fraud", why="worse").champion == digest(NEW)
    assert registry.roll_back("fraud", why="worse still").champion == digest(OLD)
    with pytest.raises(RegistryError, match="is the first champion"):
        registry.roll_back("fraud", why="and on")
    registry.promote("fraud:1.2", why="mended")
    assert registry.roll_back("fraud", why="not mended").champion == digest(OLD)


def test_going_back_to_a_named_champion(registry):
    """Any earlier champion can be named; what never was one cannot."""
    for files in (OLD, NEW, NEXT):
        registry.publish(files)
    with pytest.raises(RegistryError, match="has no pointer in production"):
        registry.roll_back("fraud", why="?")
    registry.promote("fraud:1.0", why="first")
    registry.promote("fraud:1.1", why="second")
    with pytest.raises(RegistryError, match="was never champion"):
        registry.roll_back("fraud", why="?", to="fraud:1.2")
    registry.promote("fraud:1.2", why="third")
    assert registry.roll_back("fraud", why="!", to="fraud:1.0").champion == digest(OLD)


def test_what_was_wrong_leaves_every_role(registry):
    """The release that is gone back to is no canary any more; others stay."""
    for files in (OLD, NEW, NEXT):
        registry.publish(files)
    registry.promote("fraud:1.0", why="first")
    registry.promote("fraud:1.1", why="second")
    registry.promote("fraud:1.0", why="compare", role="challenger")
    registry.promote("fraud:1.2", why="try", role="shadow")
    pointer = registry.roll_back("fraud", why="worse")
    assert (pointer.champion, pointer.challenger, pointer.shadow) == (digest(OLD), None, digest(NEXT))


def test_a_held_pointer_goes_back_and_not_forward(registry):
    """A hold stops promotions; it ends by `resume`."""
    for files in (OLD, NEW, NEXT):
        registry.publish(files)
    registry.promote("fraud:1.0", why="first")
    registry.promote("fraud:1.1", why="second")
    pointer = registry.roll_back("fraud", why="incident 12", hold=True)
    assert (pointer.champion, pointer.hold) == (digest(OLD), "incident 12")
    with pytest.raises(RegistryError, match="is held: 'incident 12'; resume it first"):
        registry.promote("fraud:1.2", why="try")
    assert registry.resume("fraud", why="closed").hold is None
    assert registry.promote("fraud:1.2", why="try").champion == digest(NEXT)
    assert registry.hold("fraud", why="freeze").hold == "freeze"
    assert registry.roll_back("fraud", why="and back").hold == "freeze"


@everywhere
def test_a_hold_wins_whatever_happens_meanwhile(registry, place, monkeypatch):
    """Stopping everything does not fail because somebody promoted at the same time."""
    registry.publish(OLD)
    registry.publish(NEW)
    registry.promote("fraud:1.0", why="first")
    other, write = another(registry, place), registry._records.write_pointer
    todo = ["fraud:1.1", "fraud:1.0"]

    def late(after: Any, position: int) -> None:
        if todo:
            other.promote(todo.pop(0), why="busy")
        write(after, position)

    monkeypatch.setattr(registry._records, "write_pointer", late)
    pointer = registry.hold("fraud", why="stop")
    assert (pointer.seq, pointer.hold, pointer.champion) == (4, "stop", digest(OLD))


def test_a_pointer_is_renewed_before_it_ends(registry, clock):
    """The same roles, a new end."""
    registry.publish(NEW)
    first = registry.promote("fraud:1.1", why="first", valid_days=2)
    clock.advance_ns(DAY_NS)
    second = registry.renew("fraud", why="weekly", valid_days=2)
    assert (second.seq, second.champion) == (2, first.champion)
    assert dt.datetime.fromisoformat(second.expires) - dt.datetime.fromisoformat(
        first.expires
    ) == dt.timedelta(days=1)


# ---- the past --------------------------------------------------------------------------------------------------------


def test_who_decided_what_answered_last_tuesday(registry, clock):
    """At every moment of the past the release, who decided it and why are known, to the second."""
    at = dt.datetime(2026, 11, 24, 14, 0, tzinfo=dt.UTC)
    clock.step_wall_ns(int(at.timestamp()) * 10**9 - clock.wall_ns())
    for files in (OLD, NEW):
        registry.publish(files)
        registry.promote(digest(files), why=f"why {len(files)}", who="anna" if files is OLD else "ben")
        clock.advance_ns(600 * 10**9)
    assert registry.at("fraud", "2026-11-24T14:03Z").champion == digest(OLD)
    assert registry.at("fraud", "2026-11-24T15:03+01:00").champion == digest(OLD)
    assert registry.at("fraud", at + dt.timedelta(seconds=599)).who == "anna"
    assert registry.at("fraud", at + dt.timedelta(seconds=600)).who == "ben"
    assert registry.at("fraud", at - dt.timedelta(seconds=1)) is None
    for wrong in ("yesterday", "2026-11-24T14:03", dt.datetime(2026, 11, 24)):  # noqa: DTZ001 - naive on purpose
        with pytest.raises(ConfigError):
            registry.at("fraud", wrong)


def test_a_clock_that_was_wrong_once_hides_nothing(registry, clock):
    """A decision of a machine that lives in 2036 does not cover the ones after it."""
    for files in (OLD, NEW, NEXT):
        registry.publish(files)
    registry.promote("fraud:1.0", why="first")
    clock.step_wall_ns(3650 * DAY_NS)
    registry.promote("fraud:1.1", why="wrong clock")
    clock.step_wall_ns(-3650 * DAY_NS + 10**9)
    third = registry.promote("fraud:1.2", why="mended")
    assert registry.pointer("fraud") == third
    assert registry.at("fraud", third.issued) == third


@everywhere
def test_a_lost_or_foreign_pointer_is_noticed(registry, place):
    """A hole in the history, or a pointer of another name, is an error and not another history."""
    for files in (OLD, NEW, release("7", name="recs")):
        registry.publish(files)
    for files in (OLD, NEW, OLD):
        registry.promote(digest(files), why="again")
    registry.promote("recs:7", why="first")
    files = registry._records.files
    base = "pointers/production"
    second = files.read(f"{base}/fraud/00000002.json", 1 << 16)
    files.delete(f"{base}/fraud/00000002.json")
    with pytest.raises(IntegrityError, match="lost pointer 2 of `fraud`; there are 3"):
        another(registry, place).history("fraud")
    files.put(f"{base}/fraud/00000002.json", files.read(f"{base}/recs/00000001.json", 1 << 16))
    with pytest.raises(IntegrityError, match="got one of `recs`"):
        another(registry, place).history("fraud")
    files.put(f"{base}/fraud/00000002.json", files.read(f"{base}/fraud/00000001.json", 1 << 16))
    with pytest.raises(IntegrityError, match="does not follow"):
        another(registry, place).history("fraud")
    files.put(f"{base}/fraud/00000002.json", b"{")
    with pytest.raises(BundleError, match="cannot be read"):
        another(registry, place).history("fraud")
    files.put(f"{base}/fraud/00000002.json", second)
    assert len(another(registry, place).history("fraud")) == 3


# ---- approvals -------------------------------------------------------------------------------------------------------


def test_a_release_needs_its_approvals(place, clock, tmp_path):
    """Two different people have to agree before it answers; its report is recorded by hash."""
    registry = ri.Registry(**place, trust="unsigned", who="anna", approvals=2, clock=clock)
    registry.publish(NEW)
    report = report_of(NEW)
    (tmp_path / "report.json").write_bytes(report)
    with pytest.raises(RegistryError, match="approved by 0 of 2 people"):
        registry.promote("fraud:1.1", why="now")
    first = registry.approve("fraud:1.1", why="read it", report=tmp_path / "report.json")
    assert registry.approve("fraud:1.1", why="read it", report=report) == first
    assert first.report == sha256_hex(report)
    registry.approve("fraud:1.1", why="read it twice", report=report)
    with pytest.raises(RegistryError, match="approved by 1 of 2 people"):
        registry.promote("fraud:1.1", why="now")
    registry.approve("fraud:1.1", why="me too", who="ben", valid_days=1, report=report)
    clock.advance_ns(DAY_NS)
    with pytest.raises(RegistryError, match="approved by 1 of 2"):
        registry.promote("fraud:1.1", why="now")
    registry.approve("fraud:1.1", why="still", who="ben", report=report)
    assert registry.promote("fraud:1.1", why="now").champion == digest(NEW)
    assert {one.who for one in registry.approvals("fraud:1.1")} == {"anna", "ben"}


def test_an_approval_needs_a_report_that_lets_the_release_pass(registry, tmp_path):
    """None, one of another release, one that failed, something else: nothing is recorded."""
    registry.publish(NEW)
    with pytest.raises(TypeError, match="report"):
        registry.approve("fraud:1.1", why="trust me")
    for wrong, said in (
        (report_of(OLD), r"about fraud:1\.0"),
        (report_of(NEW, "failed"), r"does not let fraud:1\.1 pass: schema"),
        (report_of(NEW, "not applicable"), "nothing was looked at"),
        (b"all good", "no report of checks"),
        (tmp_path / "nothing.json", "cannot read the report"),
        (None, "Expected report="),
    ):
        with pytest.raises(ConfigError, match=said):
            registry.approve("fraud:1.1", why="trust me", report=wrong)
    assert registry.approvals("fraud:1.1") == ()


def test_a_shadow_needs_no_approval_and_going_back_neither(place, clock):
    """What never answers may be tried; what answered before was approved then."""
    registry = ri.Registry(**place, trust="unsigned", who="anna", approvals=1, clock=clock)
    for files in (OLD, NEW):
        registry.publish(files)
        registry.approve(digest(files), why="good", valid_days=1, report=report_of(files))
        registry.promote(digest(files), why="good")
    registry.publish(NEXT)
    clock.advance_ns(2 * DAY_NS)
    assert registry.promote("fraud:1.2", why="look", role="shadow").shadow == digest(NEXT)
    assert registry.roll_back("fraud", why="worse").champion == digest(OLD)


# ---- garbage ---------------------------------------------------------------------------------------------------------


@everywhere
def test_only_what_nothing_needs_is_collected(registry, place, clock):
    """Roles, recent history, permitted fallbacks, the newest and the young stay; the rest goes, and stays known."""
    spare = release("0.9", "spare")
    named = release("2.0", fallbacks=(digest(spare),))
    for files in (release("0.1"), spare, OLD, NEW, named):
        registry.publish(files)
        clock.advance_ns(10**9)
    another(registry, place, environment="staging").promote("fraud:1.0", why="stage")
    registry.promote("fraud:1.1", why="first")
    clock.advance_ns(10 * DAY_NS)
    registry.promote("fraud:2.0", why="second")
    clock.advance_ns(50 * DAY_NS)
    registry.publish(release("2.1"))
    dry = registry.collect_garbage(keep=1, dry_run=True)
    assert (dry.releases, dry.kept) == (("fraud:0.1",), 5)
    assert registry.read("fraud:0.1")
    assert registry.collect_garbage(keep=1) == dry
    with pytest.raises(
        RegistryError, match=r"fraud:0\.1 were collected as garbage; publish the release again"
    ):
        registry.read("fraud:0.1")
    with pytest.raises(RegistryError, match="collected"):
        registry.promote("fraud:0.1", why="back")
    with pytest.raises(RegistryError, match="collected"):
        registry.approve("fraud:0.1", why="fine", report=report_of(release("0.1")))
    assert [one.collected for one in registry.releases()] == [True, False, False, False, False, False]
    check(another(registry, place))
    assert registry.collect_garbage(keep=1).releases == ()


def test_a_champion_of_long_ago_stays_while_going_back_leads_there(registry, clock):
    """The one below the champion is never collected."""
    for files in (OLD, NEW):
        registry.publish(files)
        registry.promote(digest(files), why="newer")
    clock.advance_ns(1000 * DAY_NS)
    assert registry.collect_garbage(keep=0, history_days=1).releases == ()
    assert registry.roll_back("fraud", why="worse").champion == digest(OLD)
    clock.advance_ns(1000 * DAY_NS)
    assert registry.collect_garbage(keep=0, history_days=1).releases == ("fraud:1.1",)


@everywhere
def test_what_was_collected_is_published_again(registry, place, clock):
    """The same content comes back under its version; another content still does not."""
    registry.publish(OLD)
    clock.advance_ns(100 * DAY_NS)
    assert registry.collect_garbage(keep=0).releases == ("fraud:1.0",)
    with pytest.raises(ConflictError):
        registry.publish(release("1.0", "other"))
    assert registry.publish(OLD).new
    assert another(registry, place).read("fraud:1.0") == OLD
    assert registry.promote("fraud:1.0", why="back").champion == digest(OLD)
    check(registry)


@everywhere
def test_who_is_promoted_while_it_is_collected_stays(registry, place, clock, monkeypatch):
    """Between the mark and the look somebody pinned it: the collection lets go."""
    registry.publish(OLD)
    registry.publish(NEW)
    registry.promote("fraud:1.1", why="first")
    clock.advance_ns(100 * DAY_NS)
    other = another(registry, place)
    mark, promoted = registry._records.mark, []

    def between(claim: Any) -> str:
        if claim.version == "1.0":
            promoted.append(other.promote("fraud:1.0", why="just now"))
        return mark(claim)

    monkeypatch.setattr(registry._records, "mark", between)
    assert registry.collect_garbage(keep=0).releases == ()
    assert len(promoted) == 1
    check(another(registry, place))
    assert registry.read("fraud") == OLD


def test_who_promotes_what_is_about_to_go_is_refused(registry, place, clock, monkeypatch):
    """After the mark a promotion is refused, whichever of the two looks first."""
    registry.publish(OLD)
    registry.publish(NEW)
    registry.promote("fraud:1.1", why="first")
    clock.advance_ns(100 * DAY_NS)
    other = another(registry, place)
    mark = registry._records.mark

    def between(claim: Any) -> str:
        path = mark(claim)
        with pytest.raises(RegistryError, match="collected as garbage"):
            other.promote("fraud:1.0", why="too late")
        return path

    monkeypatch.setattr(registry._records, "mark", between)
    assert registry.collect_garbage(keep=0).releases == ("fraud:1.0",)
    check(another(registry, place))


def test_a_pin_that_is_held_keeps_what_it_names(registry, place, clock):
    """Somebody has pinned it and has not written the pointer yet."""
    registry.publish(OLD)
    clock.advance_ns(100 * DAY_NS)
    records = another(registry, place)._records
    pin = records.pin(registry.find("fraud:1.0"))
    assert registry.collect_garbage(keep=0).releases == ()
    assert not registry.releases()[0].collected
    records.unpin(pin)
    assert registry.collect_garbage(keep=0).releases == ("fraud:1.0",)


@everywhere
def test_litter_of_killed_writers_is_collected_after_a_day(registry, clock):
    """Unclaimed uploads, old pins and an interrupted collection are finished; young ones are left alone."""
    registry.publish(OLD)
    registry.publish(NEW)
    registry.promote("fraud:1.1", why="first")
    records = registry._records
    records.files.put(f"releases/fraud-2.0-0123456789ab-{records.stamp('-')}/model.onnx", b"half")
    records.pin(registry.find("fraud:1.1"))
    assert registry.collect_garbage()[2:4] == (0, 0)
    clock.advance_ns(DAY_NS + 10**9)
    records.mark(registry.find("fraud:1.0"))  # a collection that was killed here
    found = registry.collect_garbage()
    assert found[:4] == (("fraud:1.0",), found.size, 1, 1)
    assert sorted(records.files.names("releases")) == [registry.find("fraud:1.1").folder]
    assert records.files.names("pins") == []


def test_a_half_collected_release_is_told_as_collected(registry):
    """Who reads while files go, or after a collection that was killed, learns what happened."""
    registry.publish(OLD)
    claim = registry.find("fraud:1.0")
    registry._records.mark(claim)
    registry._records.files.delete(f"releases/{claim.folder}/contract.json")
    with pytest.raises(RegistryError, match="collected as garbage"):
        registry.read("fraud:1.0")


def test_a_publisher_that_takes_half_a_day_gives_up(registry, clock, monkeypatch):
    """Its folder could be collected under its feet."""
    put = registry._records.files.put

    def slowly(path: str, data: bytes) -> None:
        put(path, data)
        clock.advance_ns(DAY_S // 6 * 10**9)

    monkeypatch.setattr(registry._records.files, "put", slowly)
    with pytest.raises(RegistryError, match="took more than 12 hours"):
        registry.publish(NEW)
    assert registry.releases() == ()
    assert registry._records.files.names("releases") == []


@pytest.mark.parametrize(
    "given", [{"keep": -1}, {"unused_days": 0}, {"unused_days": float("nan")}, {"history_days": -1}]
)
def test_garbage_settings_that_mean_nothing_are_refused(registry, given):
    """Nothing is collected by mistake."""
    with pytest.raises(ConfigError):
        registry.collect_garbage(**given)


# ---- hostile and damaged stores --------------------------------------------------------------------------------------


@everywhere
def test_a_damaged_release_is_refused(registry):
    """Files that changed, grew or are gone never come out."""
    registry.publish(NEW)
    files, at = registry._records.files, f"releases/{registry.find('fraud:1.1').folder}"
    whole = NEW["model.onnx"]
    for data in (whole[:-1], b"x" + whole[1:], whole + b"x", b""):
        files.put(f"{at}/model.onnx", data)
        with pytest.raises((IntegrityError, RegistryError)):
            registry.read("fraud:1.1")
    files.delete(f"{at}/model.onnx")
    with pytest.raises(IntegrityError, match=r"lacks 'model\.onnx'"):
        registry.read("fraud:1.1")
    files.put(f"{at}/model.onnx", whole)
    files.put(f"{at}/manifest.json", OLD["manifest.json"])
    with pytest.raises(IntegrityError, match="Expected the release"):
        registry.read("fraud:1.1")


def test_a_record_of_another_release_is_refused(registry, place):
    """A version that says it is another one is not believed."""
    registry.publish(NEW)
    registry.publish(OLD)
    files = registry._records.files
    for wrong in (files.read("names/fraud/1.0.0001.json", 1 << 16), b"", b"{}", b"[" * 5000, b"\xff"):
        files.put("names/fraud/1.1.0001.json", wrong)
        with pytest.raises(IntegrityError):
            another(registry, place).read("fraud:1.1")
    claim = msgspec.json.decode(files.read("names/fraud/1.0.0001.json", 1 << 16))
    files.put(
        "names/fraud/1.1.0001.json", msgspec.json.encode({**claim, "version": "1.1", "folder": "../../x"})
    )
    with pytest.raises(IntegrityError):
        another(registry, place).read("fraud:1.1")


@everywhere
def test_files_of_others_are_passed_over(registry, place):
    """What a person or a program drops into the folders disturbs nobody."""
    registry.publish(NEW)
    registry.promote("fraud:1.1", why="first")
    files = registry._records.files
    for path in (
        "names/.DS_Store",
        "names/fraud/README.md",
        "names/Fraud/1.0.0001.json",
        "pointers/production/fraud/backup.json",
        "pointers/.keep",
        "pins/note",
        "releases/notes.txt",
    ):
        files.put(path, b"hello")
    other = another(registry, place)
    assert other.read("fraud") == NEW
    assert [one.version for one in other.releases()] == ["1.1"]
    assert other.collect_garbage().releases == ()
    check(other)


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"trust": None},
        {"environment": "../x"},
        {"environment": ""},
        {"approvals": -1},
        {"approvals": 1.5},
        {"place": ""},
        {"place": "nonsense://x"},
        {"storage_options": {"key": 1}},
    ],
)
def test_arguments_that_mean_nothing_are_refused(tmp_path, monkeypatch, given):
    """Before anything is read or made."""
    monkeypatch.delenv("RETAILINFER_TRUST", raising=False)
    with pytest.raises(ConfigError):
        ri.Registry(**{"place": tmp_path / "registry", "trust": "unsigned", **given})
    assert list(tmp_path.iterdir()) == []


def test_the_account_decides_where_nobody_is_named(tmp_path, monkeypatch):
    """And where there is none, a name is asked for."""
    registry = ri.Registry(tmp_path / "registry", trust="unsigned")
    monkeypatch.setattr("getpass.getuser", lambda: "carol")
    registry.publish(NEW)
    assert registry.promote("fraud:1.1", why="first").who == "carol"

    def nobody() -> str:
        raise OSError("no user")

    monkeypatch.setattr("getpass.getuser", nobody)
    with pytest.raises(ConfigError, match="say who="):
        registry.hold("fraud", why="stop")


def test_what_comes_out_of_a_registry_answers(tmp_path):
    """A packed release goes in, and a scorer that answers comes out."""
    from releases import payment, payment_files, scorer_of

    registry = ri.Registry(tmp_path / "registry", trust="unsigned", who="anna")
    done = registry.publish(payment_files())
    registry.promote(done.digest, why="first")
    scorer = scorer_of(registry.read(done.name))
    assert scorer.score(payment()).score == scorer_of(payment_files()).score(payment()).score
