"""Attacks on releases, pointers and lists, each by the name that the literature on software updates gives it.

The attacks are those of python-tuf's tests and of TUF's specification, as far as they concern files; beside them every change
of a byte.
"""

from __future__ import annotations

import base64
import os
import string
import time
import unicodedata

import msgspec
import pytest
from signed_releases import (
    DAY_S,
    EXPIRES,
    ISSUED,
    NOW_S,
    approval_of,
    digest_of,
    key,
    pointer,
    record,
    revoked,
    signed,
    signed_files,
    statement_of,
    tiny,
    trust,
    trust_file,
)

from retailinfer.errors import (
    BundleError,
    IntegrityError,
    ManifestError,
    RollbackError,
    SignatureError,
    TrustError,
)
from retailinfer.release.bundle import MAX_APPROVALS, parser_calls, read_bundle
from retailinfer.release.envelope import MAX_ENVELOPE_BYTES
from retailinfer.release.statements import Approval, ReleaseStatement, moment_text
from retailinfer.release.trust import Mark, Role, Rules

pytestmark = pytest.mark.requires("cryptography")

FILES = signed_files()
APPROVING = {"approval": Role(keys=("risk",))}
APPROVED = FILES | {"approval-risk.sig": approval_of(FILES)}


def refused(files, error=BundleError, **changes):
    """It does not load; says why."""
    with pytest.raises(error) as caught:
        read_bundle(files, trust=trust(**changes))
    assert len(str(caught.value)) < 1000
    return str(caught.value)


# ---- every change of a byte ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(APPROVED))
def test_every_flipped_byte_of_every_file_is_refused(name):
    """Manifest, models, signature, approval; of small files every bit."""
    data = APPROVED[name]
    believed = trust(**APPROVING)
    assert read_bundle(APPROVED, trust=believed)
    for at in range(len(data)):
        for bit in range(8) if len(data) < 200 else (at % 8,):
            changed = data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
            with pytest.raises(BundleError):
                read_bundle(APPROVED | {name: changed}, trust=believed)


@pytest.mark.parametrize(
    ("name", "kind", "role"),
    [("manifest.sig", ReleaseStatement, "release"), ("approval-risk.sig", Approval, "approval")],
)
def test_every_other_byte_in_every_place_of_a_signature_is_refused(name, kind, role):
    """Letters that base64 reads as the same bits, digits of a key's name, other quotes, blanks."""
    data = APPROVED[name]
    rules = trust(**APPROVING).rules
    assert rules.open(name, data, kind, role, now_s=NOW_S)
    others = (string.ascii_letters + string.digits + "+/=-_ \t\n\r\"'\\{}[],:.\0\x7f\xff").encode("latin-1")
    for at in range(len(data)):
        for other in others:
            if other == data[at]:
                continue
            try:  # pytest.raises takes longer than what it looks at, and this runs 100,000 times
                rules.open(name, data[:at] + bytes([other]) + data[at + 1 :], kind, role, now_s=NOW_S)
            except SignatureError:
                continue
            pytest.fail(f"byte {at} may be {other}")


@pytest.mark.parametrize("name", sorted(APPROVED))
def test_every_truncation_is_refused(name):
    """Of every file, to every length."""
    data = APPROVED[name]
    believed = trust(**APPROVING)
    for end in range(len(data)):
        with pytest.raises(BundleError):
            read_bundle(APPROVED | {name: data[:end]}, trust=believed)


@pytest.mark.parametrize("name", sorted(APPROVED))
def test_every_byte_appended_or_put_before_is_refused(name):
    """All 256, and the file twice."""
    believed = trust(**APPROVING)
    data = APPROVED[name]
    for byte in range(256):
        one = bytes([byte])
        for changed in (data + one, one + data):
            with pytest.raises(BundleError):
                read_bundle(APPROVED | {name: changed}, trust=believed)
    with pytest.raises(BundleError):
        read_bundle(APPROVED | {name: data + data}, trust=believed)


@pytest.mark.parametrize("name", sorted(APPROVED))
def test_a_file_under_another_name_is_refused(name):
    """Renamed, in capitals, with another Unicode form, beside itself, exchanged with each other one."""
    believed = trust(**APPROVING)
    rest = {other: data for other, data in APPROVED.items() if other != name}
    twins = {
        name.upper(),
        name + ".bak",
        "x" + name,
        name.replace(".", "\u2024"),
        "./" + name,
        "../" + name,
        name + "/",
    }
    for other in sorted(twins):
        with pytest.raises(BundleError):
            read_bundle(rest | {other: APPROVED[name]}, trust=believed)
        if other.endswith(".bak") or other != unicodedata.normalize("NFC", name):
            with pytest.raises(BundleError):
                read_bundle(APPROVED | {other: APPROVED[name]}, trust=believed)
    for other, data in rest.items():
        with pytest.raises(BundleError):
            read_bundle(APPROVED | {other: APPROVED[name], name: data}, trust=believed)
    if name != "approval-risk.sig":
        with pytest.raises(BundleError):
            read_bundle(rest, trust=believed)


def test_files_in_folders_are_refused_like_files_in_memory(tmp_path):
    """A flip of each file on disk, and a link in its place where links are refused."""
    believed = trust(**APPROVING)
    for name, data in APPROVED.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).chmod(0o644)
    assert read_bundle(tmp_path, trust=believed, strict_paths=True)
    for name, data in APPROVED.items():
        (tmp_path / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(BundleError):
            read_bundle(tmp_path, trust=believed)
        (tmp_path / name).unlink()
        (tmp_path.parent / "elsewhere").write_bytes(data)
        (tmp_path / name).symlink_to(tmp_path.parent / "elsewhere")
        assert read_bundle(tmp_path, trust=believed)
        with pytest.raises(IntegrityError):
            read_bundle(tmp_path, trust=believed, strict_paths=True)
        (tmp_path / name).unlink()
        os.link(tmp_path.parent / "elsewhere", tmp_path / name)
        with pytest.raises(IntegrityError, match="hard links"):
            read_bundle(tmp_path, trust=believed, strict_paths=True)
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).chmod(0o666)
        with pytest.raises(IntegrityError, match="written by others"):
            read_bundle(tmp_path, trust=believed, strict_paths=True)
        (tmp_path / name).chmod(0o644)


# ---- arbitrary package -----------------------------------------------------------------------------------------------


def test_arbitrary_package_by_a_stranger():
    """A whole release of somebody else's, signed by him: also under the ids of our keys."""
    evil = signed_files(tiny("6.6.6"), "stranger", "other-stranger")
    assert "Expected 2 signature" in refused(evil, SignatureError)
    data = evil["manifest.sig"]
    forged = data.replace(key("stranger").id.encode(), key("ci").id.encode())
    refused(evil | {"manifest.sig": forged}, SignatureError)


def test_arbitrary_package_without_a_signature():
    """Signatures stripped, and the key of the statement kept."""
    refused(tiny("6.6.6"), SignatureError)
    refused(
        tiny("6.6.6") | {"manifest.sig": b'{"payload":"AAAA","payloadType":"x","signatures":[]}'},
        SignatureError,
    )


def test_arbitrary_package_by_keys_of_another_role():
    """Who may move pointers or revoke does not sign releases; nor does the root."""
    for names in (("ops", "security"), ("root", "risk"), ("ci", "ops"), ("ci", "root")):
        refused(signed_files(tiny("6.6.6"), *names), SignatureError)


# ---- mix and match ---------------------------------------------------------------------------------------------------


def test_mix_and_match_of_two_signed_releases():
    """Every set of files taken from two good releases, except the two that are whole."""
    other = signed_files(tiny("2.0"))
    differ = [name for name in FILES if FILES[name] != other[name]]
    assert len(differ) == 3
    for choice in range(1, 2 ** len(differ) - 1):
        mixed = dict(FILES)
        for bit, name in enumerate(differ):
            if choice >> bit & 1:
                mixed[name] = other[name]
        refused(mixed, IntegrityError)


def test_mix_and_match_of_a_pointer_and_another_release():
    """The registry hands out a good release that the pointer did not name."""
    believed = trust()
    verdict = believed.check_pointer(signed(pointer(), "ops"), "fraud")
    with pytest.raises(IntegrityError, match="Expected the release"):
        read_bundle(signed_files(tiny("2.0")), trust=believed, expected=verdict.pointer.champion)
    assert read_bundle(FILES, trust=believed, expected=verdict.pointer.champion)


def test_mix_and_match_of_a_release_under_another_name():
    """A good release of `shop-home` in the place of `fraud`."""
    with pytest.raises(SignatureError, match="Expected a release of"):
        trust().check_release(
            signed_files(tiny(name="shop-home"))["manifest.sig"],
            tiny(name="shop-home")["manifest.json"],
            name="fraud",
        )


# ---- endless data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sig", "approval-risk.sig", "model.onnx"])
def test_endless_data_in_a_file(tmp_path, name):
    """A file of terabytes (with holes) is refused by its size, before a byte of it is read."""
    for other, data in APPROVED.items():
        (tmp_path / other).write_bytes(data)
    os.truncate(tmp_path / name, 1 << 42)
    began = time.perf_counter()
    with pytest.raises(IntegrityError, match="bytes"):
        read_bundle(tmp_path, trust=trust(**APPROVING))
    assert time.perf_counter() - began < 1


def test_endless_data_in_memory_and_in_names():
    """Envelopes above 64 KiB, a thousand approvals, a thousand files."""
    refused(FILES | {"manifest.sig": b"x" * (MAX_ENVELOPE_BYTES + 1)})
    many = {f"approval-{i}.sig": b"x" for i in range(MAX_APPROVALS + 3)}
    refused(FILES | many, ManifestError)
    refused(FILES | {f"f{i}": b"" for i in range(1000)}, ManifestError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="platform: no FIFO here")
@pytest.mark.parametrize("name", ["manifest.sig", "approval-risk.sig"])
def test_slow_retrieval_of_a_signature(tmp_path, name):
    """A pipe that nobody writes to does not make a host wait."""
    for other, data in APPROVED.items():
        (tmp_path / other).write_bytes(data)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    began = time.perf_counter()
    with pytest.raises(IntegrityError, match="a pipe"):
        read_bundle(tmp_path, trust=trust(**APPROVING))
    assert time.perf_counter() - began < 1


# ---- replay, rollback, freeze, fast-forward, key revocation: pointers ------------------------------------------------


def accepted(data, *, mark=None, now_s=NOW_S, **changes):
    """The verdict on a pointer."""
    return Rules(trust_file(**changes)).pointer(data, "fraud", now_s=now_s, mark=mark)


def test_replay_of_an_older_pointer():
    """Number 6 after number 7; the same one again is no replay."""
    seventh = accepted(signed(pointer(7), "ops"))
    assert accepted(signed(pointer(7), "ops"), mark=seventh.mark).mark == seventh.mark
    assert accepted(signed(pointer(8), "ops"), mark=seventh.mark).mark.seq == 8
    for older in (1, 6):
        with pytest.raises(RollbackError, match="number"):
            accepted(signed(pointer(older), "ops"), mark=seventh.mark)


def test_equivocation_by_two_pointers_of_one_number():
    """Two hosts are shown two pointers: whoever has seen one refuses the other."""
    seventh = accepted(signed(pointer(7), "ops"))
    with pytest.raises(RollbackError, match="another than the one accepted"):
        accepted(signed(pointer(7, champion="0" * 64), "ops"), mark=seventh.mark)


def test_replay_after_a_restart(tmp_path):
    """What was accepted is on disk: a new process refuses what the old one would have."""
    state = tmp_path / "state.json"
    believed = trust(state=state)
    verdict = believed.check_pointer(signed(pointer(7), "ops"), "fraud")
    believed.remember("fraud", digest_of(tiny()), verdict)
    with pytest.raises(RollbackError, match="number 6"):
        trust(state=state).check_pointer(signed(pointer(6), "ops"), "fraud")
    assert trust(state=state).check_pointer(signed(pointer(7), "ops"), "fraud")
    with pytest.raises(RollbackError):  # other names have marks of their own
        trust(state=state).check_pointer(signed(pointer(1), "ops"), "fraud")
    assert trust(state=state).check_pointer(signed(pointer(1, name="shop-1"), "ops"), "shop-1")


def test_state_is_written_only_after_everything_has_passed(tmp_path):
    """A pointer that was accepted and whose release then fails raises no mark (CVE-2025-2888)."""
    state = tmp_path / "state.json"
    believed = trust(state=state)
    verdict = believed.check_pointer(signed(pointer(7), "ops"), "fraud")
    with pytest.raises(BundleError):
        read_bundle(FILES | {"model.onnx": b"x"}, trust=believed, expected=verdict.pointer.champion)
    assert not state.exists()
    assert believed.check_pointer(signed(pointer(6), "ops"), "fraud")


def test_freeze_by_a_pointer_that_has_expired():
    """A registry that goes on handing out an old pointer is noticed when that expires."""
    data = signed(pointer(expires=moment_text(NOW_S + 1)), "ops")
    assert accepted(data)
    with pytest.raises(TrustError, match="expired"):
        accepted(data, now_s=NOW_S + 1)
    mark = accepted(data).mark
    with pytest.raises(TrustError, match="expired"):  # also for a host that had accepted it
        accepted(data, now_s=NOW_S + 1, mark=mark)


def test_freeze_and_stale_expiry_of_the_trust_file():
    """Nothing counts under a trust file that has expired, however fresh it is."""
    with pytest.raises(TrustError, match="trust file has expired"):
        accepted(signed(pointer(), "ops"), expires=moment_text(NOW_S))


def test_indefinite_freeze_of_revocations():
    """A list that expires must be replaced: withholding the next one stops loading, it does not undo a revocation."""
    revoking = {"revocation": Role(keys=("security",))}
    data = revoked(expires=moment_text(NOW_S + 10))
    assert read_bundle(FILES, trust=trust(revocations=data, **revoking))
    with pytest.raises(TrustError, match="expired"):
        trust(revocations=data, now_s=NOW_S + 10, **revoking)


def test_fast_forward_and_recovery_by_a_new_epoch():
    """A thief jumps to the last number there is; with new keys in a new epoch the numbers begin again."""
    stolen = accepted(signed(pointer(2**63 - 1), "ops"))
    with pytest.raises(RollbackError):
        accepted(signed(pointer(8), "ops"), mark=stolen.mark)
    keys = {name: record(name) for name in ("ci", "lead", "ops-2", "root")}
    new = {"epoch": 2, "keys": keys, "pointer": Role(keys=("ops-2",))}
    recovered = accepted(signed(pointer(1, epoch=2), "ops-2"), mark=stolen.mark, **new)
    assert (recovered.mark.epoch, recovered.mark.seq) == (2, 1)
    with pytest.raises(SignatureError):
        accepted(signed(pointer(2**63 - 1), "ops"), mark=recovered.mark, **new)
    with pytest.raises(RollbackError, match="epoch 1"):
        accepted(signed(pointer(9), "ops-2"), mark=recovered.mark, **new)


def test_rollback_of_the_trust_file(tmp_path):
    """A host that has seen epoch 2 does not go back to the keys of epoch 1, for releases nor for pointers."""
    state = tmp_path / "state.json"
    trust(epoch=2, state=state).remember("fraud", digest_of(tiny()))
    with pytest.raises(RollbackError, match="seen epoch 2"):
        read_bundle(FILES, trust=trust(state=state))
    with pytest.raises(RollbackError, match="seen epoch 2"):
        trust(state=state).check_pointer(signed(pointer(9), "ops"), "fraud")


def test_key_revocation_of_pointers():
    """A revoked key moves nothing, though the trust file still names it."""
    revoking = trust_file(revocation=Role(keys=("security",)), pointer=Role(keys=("ops", "lead")))
    rules, mark = Rules(revoking).revocations(revoked(keys={key("ops").id: "stolen"}), now_s=NOW_S)
    assert mark == Mark(epoch=1, seq=1, sha256=mark.sha256)
    with pytest.raises(SignatureError, match="Expected 1 signature"):
        rules.pointer(signed(pointer(), "ops"), "fraud", now_s=NOW_S)
    assert rules.pointer(signed(pointer(), "lead"), "fraud", now_s=NOW_S).signed_by == ("lead",)


def test_key_revocation_by_the_revoked():
    """Who was revoked does not sign the next list that takes it back."""
    file = trust_file(revocation=Role(keys=("security", "lead")))
    rules, mark = Rules(file).revocations(revoked(keys={key("lead").id: "left"}), now_s=NOW_S)
    from retailinfer.release.statements import Revocations

    back = signed(Revocations(epoch=1, seq=2, issued=ISSUED), "lead")
    with pytest.raises(SignatureError):
        rules.revocations(back, now_s=NOW_S, mark=mark)


@pytest.mark.parametrize("role", ["champion", "challenger", "shadow"])
def test_a_pointer_at_a_revoked_release_is_refused(role):
    """In whatever role."""
    file = trust_file(revocation=Role(keys=("security",)))
    rules, _ = Rules(file).revocations(revoked(releases={"5" * 64: "leak"}), now_s=NOW_S)
    with pytest.raises(TrustError, match="leak"):
        rules.pointer(signed(pointer(**{role: "5" * 64}), "ops"), "fraud", now_s=NOW_S)


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        (pointer(name="shop-1"), TrustError),
        (pointer(environment="staging"), TrustError),
        (pointer(issued=moment_text(NOW_S + 301)), TrustError),
        (pointer(epoch=2), RollbackError),
        (statement_of(tiny()), SignatureError),
    ],
)
def test_a_pointer_is_of_this_name_place_and_moment(statement, error):
    """Signed by the right key, every one of them."""
    with pytest.raises(error):
        accepted(signed(statement, "ops"))


def test_every_flipped_bit_of_a_pointer_is_refused():
    """As of a release."""
    data = signed(pointer(), "ops")
    for at in range(len(data)):
        for bit in range(8):
            with pytest.raises(BundleError):
                accepted(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])


def test_no_parser_sees_a_pointer_that_nobody_signed():
    """The counting seam shows it."""
    data = signed(pointer(), "stranger")
    parser_calls.clear()
    with pytest.raises(SignatureError):
        accepted(data)
    assert dict(parser_calls) == {}
    accepted(signed(pointer(), "ops"))
    assert dict(parser_calls) == {"pointer": 1}


# ---- downgrades ------------------------------------------------------------------------------------------------------


def test_downgrade_of_a_library():
    """A release that asks for a newer library does not run on the older one."""
    refused(signed_files(requires={"msgspec": "99.0"}), TrustError)
    refused(signed_files(requires={"numpy": "2.0", "onnxruntime": "99"}), TrustError)


def test_downgrade_to_a_weaker_algorithm():
    """A trust file names no other, and a message cannot."""
    raw = key("ci").public
    for signature in (b"", b"\0" * 64, base64.b64encode(raw), raw + raw):
        from retailinfer.release.envelope import decode_envelope, encode_envelope

        good = decode_envelope(FILES["manifest.sig"])
        if signature:
            forged = encode_envelope(
                good.payload_type, good.payload, dict(good.signatures) | {key("ci").id: signature}
            )
            refused(FILES | {"manifest.sig": forged}, SignatureError)


def test_rollback_to_a_release_that_the_current_one_does_not_allow():
    """The rung `previous` takes what the signed release names, nothing older."""
    from retailinfer.release.bundle import check_fallback
    from retailinfer.release.manifest import decode_manifest

    old = decode_manifest(tiny("0.9")["manifest.json"])
    new = decode_manifest(tiny("2.0", fallbacks=(old.digest,))["manifest.json"])
    check_fallback(old, new)
    check_fallback(new, new)
    with pytest.raises(TrustError, match="does not allow"):
        check_fallback(decode_manifest(tiny("0.8")["manifest.json"]), new)
    assert msgspec.structs.asdict(new.info)["fallbacks"] == (old.digest,)


def placed(files, state):
    """Put into the one folder that a host loads from."""
    folder = state.parent / "release"
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def loaded(files, state):
    """Read from there and remembered, as loading does."""
    believed = trust(state=state)
    bundle = read_bundle(placed(files, state), trust=believed)
    believed.remember("fraud", bundle.manifest.digest, statement=bundle.verdict.statement)
    return bundle


def test_replay_of_an_older_release_in_the_same_folder(tmp_path):
    """It was good once, it has not expired; a host that has loaded a newer one does not take it back."""
    state = tmp_path / "state.json"
    old = signed_files(tiny("1.0"), issued=moment_text(NOW_S - 9 * DAY_S))
    new = signed_files(tiny("2.0"), issued=moment_text(NOW_S - DAY_S))
    loaded(old, state)
    loaded(new, state)
    with pytest.raises(RollbackError, match="loaded last"):
        loaded(old, state)
    assert loaded(new, state)
    assert read_bundle(placed(old, state), trust=trust(state=tmp_path / "another host.json"))
    assert loaded(signed_files(tiny("1.0")), state)  # signed again
    assert loaded(new, state)  # of the same moment


def test_replay_of_an_older_statement_of_the_same_release(tmp_path):
    """Signed for longer, or for more places, before somebody thought better of it."""
    state = tmp_path / "state.json"
    loose = signed_files(issued=moment_text(NOW_S - 9 * DAY_S), expires=None)
    loaded(signed_files(), state)
    with pytest.raises(RollbackError, match="loaded last"):
        loaded(loose, state)


def test_an_older_release_comes_back_by_a_pointer_or_where_it_was_named(tmp_path):
    """A pointer has a number of its own; fallbacks are part of what was signed."""
    state = tmp_path / "state.json"
    old = signed_files(tiny("1.0"), issued=moment_text(NOW_S - 9 * DAY_S))
    loaded(signed_files(tiny("2.0")), state)
    assert read_bundle(placed(old, state), trust=trust(state=state), expected=digest_of(old))
    assert read_bundle(
        old, trust=trust(state=state)
    )  # as a registry hands it on, which has looked at the pointer
    with pytest.raises(RollbackError):
        read_bundle(placed(old, state), trust=trust(state=state))
    loaded(signed_files(tiny("3.0", fallbacks=(digest_of(old),))), state)
    assert read_bundle(placed(old, state), trust=trust(state=state))


def test_expired_and_replayed_release():
    """An old release that was good once is refused when its time is over, and by its digest when it is revoked."""
    refused(FILES, TrustError, now_s=NOW_S + 31 * DAY_S)
    assert statement_of(tiny()).expires == EXPIRES
