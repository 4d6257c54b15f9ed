"""A registry whose releases, approvals and pointers are signed: who can write to the place can delete, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from registries import all_files, report_of
from signed_releases import DAY_S, NOW_S, key, signed, signed_files, tiny, trust

import retailinfer as ri
from retailinfer.clock import ManualClock
from retailinfer.errors import BundleError, ConfigError, RollbackError, SignatureError, TrustError
from retailinfer.release.bundle import parser_calls, read_bundle
from retailinfer.release.statements import Pointer, moment_text
from retailinfer.release.trust import Role

pytestmark = pytest.mark.requires("cryptography")

OLD, NEW = signed_files(tiny("1.0")), signed_files(tiny("1.1"))
ATTACKER = signed_files(tiny("6.6"), "mallory")


def open_registry(folder: Path, *names: str, late_s: float = 0, **given: Any) -> ri.Registry:
    """The registry of people with these keys; `late_s` after now."""
    trusted = given.pop("trusted", None) or trust(now_s=NOW_S + late_s, **given)
    clock = ManualClock(wall_ns=int((NOW_S + late_s) * 1e9))
    return ri.Registry(folder, trust=trusted, keys=[key(name) for name in names], who="anna", clock=clock)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A registry with two releases; the older one is champion, decided by ops."""
    ops = open_registry(tmp_path / "registry", "ops")
    for files in (OLD, NEW):
        ops.publish(files)
    ops.promote("fraud:1.0", why="first")
    return tmp_path / "registry"


def test_signed_decisions_are_followed(folder):
    """Who has the trust file and no key reads what the keys have decided, with the signatures beside it."""
    reader = open_registry(folder)
    assert reader.pointer("fraud").why == "first"
    assert reader.read("fraud") == OLD
    assert [pointer.seq for pointer in reader.history("fraud")] == [1]
    open_registry(folder, "ops").promote("fraud:1.1", why="better")
    assert reader.read("fraud") == NEW
    assert open_registry(folder, "ops").roll_back("fraud", why="worse").seq == 3
    assert reader.read("fraud") == OLD
    assert ri.Registry(folder, trust="unsigned").read("fraud") == OLD


def test_without_a_key_nothing_is_decided(folder):
    """No key, or one that may not: an error before anything is written."""
    before = all_files(open_registry(folder)._records.files)
    with pytest.raises(ConfigError, match="Expected keys= that sign pointers"):
        open_registry(folder).promote("fraud:1.1", why="mine")
    for names in (("mallory",), ("ci", "lead")):
        with pytest.raises(SignatureError):
            open_registry(folder, *names).promote("fraud:1.1", why="mine")
    assert all_files(open_registry(folder)._records.files) == before


def test_arbitrary_package_unsigned_and_foreign_releases_stay_out(folder):
    """A release that nobody signed who may is neither published nor promoted nor read."""
    ops = open_registry(folder, "ops")
    for files in (tiny("6.6"), ATTACKER):
        with pytest.raises(SignatureError):
            ops.publish(files)
    ri.Registry(folder, trust="unsigned", who="mallory").publish(
        ATTACKER
    )  # with the right to write to the folder
    with pytest.raises(SignatureError):
        ops.read("fraud:6.6")
    with pytest.raises(SignatureError):
        ops.promote("fraud:6.6", why="looks good")
    assert ops.pointer("fraud").seq == 1


def test_arbitrary_pointer_is_passed_over(folder):
    """A pointer that nobody signed who may is not there, and the next decision stands after it."""
    forger = ri.Registry(folder, trust="unsigned", who="mallory", keys=[key("mallory")])
    forger.promote("fraud:1.1", why="mine")
    ri.Registry(folder, trust="unsigned", who="mallory").hold("fraud", why="and unsigned")
    reader = open_registry(folder)
    assert (reader.pointer("fraud").why, len(reader.history("fraud"))) == ("first", 1)
    assert open_registry(folder, "ops").promote("fraud:1.1", why="better").seq == 2
    assert reader.pointer("fraud").why == "better"
    assert open_registry(folder).pointer("fraud").why == "better"


def test_no_parser_sees_a_forged_pointer(folder):
    """Bytes that no key has signed reach no parser."""
    files = open_registry(folder)._records.files
    files.put("pointers/production/fraud/00000002.json", signed(_pointer(seq=2), "mallory"))
    files.put("pointers/production/fraud/00000003.json", b'{"nam' + b"[" * 5000)
    before = dict(parser_calls)
    assert open_registry(folder).pointer("fraud").seq == 1
    called = {name for name, n in parser_calls.items() if n != before.get(name, 0)}
    assert "pointer 1 of fraud" in called
    assert not called & {"pointer 2 of fraud", "pointer 3 of fraud"}


def test_replay_an_old_pointer_put_there_again_changes_nothing(folder):
    """The newest number counts, wherever the file stands."""
    ops = open_registry(folder, "ops")
    ops.promote("fraud:1.1", why="better")
    files = ops._records.files
    first = files.read("pointers/production/fraud/00000001.json", 1 << 16)
    files.put("pointers/production/fraud/00000003.json", first)
    reader = open_registry(folder)
    assert reader.pointer("fraud").why == "better"
    assert [pointer.seq for pointer in reader.history("fraud")] == [1, 2]
    assert open_registry(folder, "ops").promote("fraud:1.0", why="on").seq == 3
    assert open_registry(folder).pointer("fraud").why == "on"


def test_of_two_pointers_with_one_number_the_first_counts(folder):
    """A key signed two decisions with the same number, which writers of ours never do; a later file changes nothing."""
    files = open_registry(folder)._records.files
    files.put("pointers/production/fraud/00000002.json", signed(_pointer(seq=1, why="second"), "ops"))
    assert [pointer.why for pointer in open_registry(folder).history("fraud")] == ["first"]


def test_rollback_by_deleting_is_refused_by_who_has_seen_more(folder, tmp_path):
    """Taking the newest pointer away shows an older one; a host that remembers refuses it."""
    open_registry(folder, "ops").promote("fraud:1.1", why="better")
    host = trust(state=tmp_path / "state.json")
    reader = open_registry(folder, trusted=host)
    verdict = reader.verdict("fraud")
    assert (verdict.pointer.why, verdict.signed_by) == ("better", ("ops",))
    host.remember("fraud", verdict.pointer.champion, verdict)
    (folder / "pointers/production/fraud/00000002.json").unlink()
    with pytest.raises(RollbackError):
        open_registry(folder, trusted=trust(state=tmp_path / "state.json")).pointer("fraud")
    assert open_registry(folder).pointer("fraud").seq == 1  # a host that remembers nothing cannot know


def test_freeze_a_pointer_with_an_end_is_not_followed_after_it(folder):
    """It has to be renewed; whoever may is not hindered by its end."""
    open_registry(folder, "ops").promote("fraud:1.1", why="better", valid_days=2)
    assert open_registry(folder, late_s=DAY_S).pointer("fraud").seq == 2
    with pytest.raises(TrustError, match="expired"):
        open_registry(folder, late_s=3 * DAY_S).pointer("fraud")
    assert open_registry(folder, "ops", late_s=3 * DAY_S).renew("fraud", why="on", valid_days=2).seq == 3
    assert open_registry(folder, late_s=4 * DAY_S).read("fraud") == NEW


def test_mix_and_match_files_of_two_releases_are_refused(folder):
    """A signature, manifest or model of the other signed release does not fit."""
    reader = open_registry(folder)
    at = reader.find("fraud:1.0").folder
    for name in ("manifest.sig", "manifest.json", "model.onnx"):
        path = folder / "releases" / at / name
        whole = path.read_bytes()
        path.write_bytes(NEW[name])
        with pytest.raises(BundleError):
            open_registry(folder).read("fraud:1.0")
        path.write_bytes(whole)
    claim = folder / "names/fraud/1.0.0001.json"
    claim.write_bytes(claim.read_bytes().replace(at.encode(), reader.find("fraud:1.1").folder.encode()))
    with pytest.raises(BundleError):
        open_registry(folder).read("fraud")


def test_endless_data_is_cut_off(folder):
    """A pointer or a file of a gigabyte costs no more than its cap."""
    reader = open_registry(folder)
    for path in (
        "pointers/production/fraud/00000002.json",
        f"releases/{reader.find('fraud:1.0').folder}/model.onnx",
        f"releases/{reader.find('fraud:1.0').folder}/manifest.sig",
    ):
        with (folder / path).open("ab") as file:
            file.truncate(1 << 30)
    with pytest.raises((BundleError, ri.RegistryError)):
        open_registry(folder).read("fraud:1.0")
    with pytest.raises(ri.RegistryError, match="at most 65536 bytes"):
        open_registry(folder).pointer("fraud")


def test_fast_forward_is_recovered_from_by_a_new_epoch(folder):
    """A stolen key jumps to the last number: nothing can follow, until the keys are changed."""
    files = open_registry(folder)._records.files
    files.put("pointers/production/fraud/00000002.json", signed(_pointer(seq=2**63 - 1, why="stolen"), "ops"))
    assert open_registry(folder).pointer("fraud").why == "stolen"
    with pytest.raises(BundleError):
        open_registry(folder, "ops").hold("fraud", why="stop")
    new = {"epoch": 2, "pointer": Role(keys=("security",))}
    assert open_registry(folder, **new).pointer("fraud") is None
    pointer = open_registry(folder, "security", **new).promote("fraud:1.1", why="new keys")
    assert (pointer.epoch, pointer.seq) == (2, 1)
    assert open_registry(folder, **new).read("fraud") == NEW
    assert open_registry(folder, "security", **new).promote("fraud:1.0", why="back").seq == 2


def test_a_revoked_release_is_not_followed(folder):
    """The pointer names it still, and nobody loads it."""
    from signed_releases import statement_of

    from retailinfer.release.statements import Revocations

    digest = statement_of(OLD).digest
    revoked = signed(
        Revocations(epoch=1, seq=1, issued=moment_text(NOW_S - 60), releases={digest: "poisoned"}), "security"
    )
    given = {"revocation": Role(keys=("security",)), "revocations": revoked}
    with pytest.raises(TrustError, match="poisoned"):
        open_registry(folder, **given).pointer("fraud")
    with pytest.raises(TrustError, match="poisoned"):
        open_registry(folder, **given).read("fraud:1.0")
    assert open_registry(folder, "ops", **given).promote("fraud:1.1", why="away from it").seq == 2
    assert open_registry(folder, **given).read("fraud") == NEW
    with pytest.raises(TrustError, match="poisoned"):
        open_registry(folder, "ops", **given).roll_back("fraud", why="to what was revoked")


def test_approvals_are_asked_for_and_come_along(folder):
    """A release is published before it is approved, and promoted after; the approvals are beside what is read."""
    needs = {"approval": Role(keys=("risk", "lead"), threshold=2)}
    ops = open_registry(folder, "ops", **needs)
    with pytest.raises(TrustError, match=r"needs 2 approval"):
        ops.promote("fraud:1.1", why="now")
    open_registry(folder, "risk", **needs).approve("fraud:1.1", why="read it", report=report_of(NEW))
    open_registry(folder, "mallory", **needs).approve("fraud:1.1", why="me too", report=report_of(NEW))
    with pytest.raises(TrustError, match=r"needs 2 approval\(s\) for `production`, it has 1"):
        ops.promote("fraud:1.1", why="now")
    open_registry(folder, "lead", **needs).approve("fraud:1.1", why="and me", report=report_of(NEW))
    ops.promote("fraud:1.1", why="now")
    files = open_registry(folder, **needs).read("fraud")
    assert len([name for name in files if name.startswith("approval-")]) == 3
    verdict = read_bundle(files, trust=trust(**needs)).verdict
    assert verdict.approved_by == ("lead", "risk")
    assert sorted(one.why for one in ops.approvals("fraud:1.1")) == ["and me", "read it"]  # of one moment
    assert ops.releases()[1].approvals == 1  # both said that they are Anna


def test_the_same_words_by_two_keys_are_two_approvals(folder):
    """And by the same key one, whenever it is given again."""
    needs = {"approval": Role(keys=("risk", "lead"), threshold=2)}
    for late_s, name in enumerate(("risk", "risk", "lead", "risk", "lead")):
        open_registry(folder, name, late_s=late_s, **needs).approve(
            "fraud:1.1", why="fine", report=report_of(NEW)
        )
    assert len(open_registry(folder, **needs).approvals("fraud:1.1")) == 2
    assert open_registry(folder, "ops", **needs).promote("fraud:1.1", why="now").seq == 2


def test_where_nobody_may_approve_no_approval_counts(folder):
    """The trust file names nobody for it, so names alone are not believed."""
    open_registry(folder, "ops").approve("fraud:1.1", why="fine", report=report_of(NEW))
    assert open_registry(folder).approvals("fraud:1.1") == ()


def test_the_environment_is_the_trust_file_s(tmp_path):
    """Another one cannot be asked for, and pointers of another do not count."""
    assert open_registry(tmp_path).environment == "production"
    with pytest.raises(ConfigError, match="Expected the environment of the trust file"):
        ri.Registry(tmp_path, trust=trust(), environment="staging")


def _pointer(**changes: Any) -> Pointer:
    given = {
        "name": "fraud",
        "environment": "production",
        "epoch": 1,
        "seq": 1,
        "who": "mallory",
        "why": "forged",
    }
    return Pointer(issued=moment_text(NOW_S - 60), champion="0" * 64, **(given | changes))
