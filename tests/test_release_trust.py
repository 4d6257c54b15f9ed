"""Who may sign what, and when it counts: trust files, verdicts on releases, approvals, revocations, new keys."""

from __future__ import annotations

import base64
import json
import os

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
    ConfigError,
    IntegrityError,
    ManifestError,
    RollbackError,
    SignatureError,
    TrustError,
)
from retailinfer.release.bundle import parser_calls, read_bundle, resolve_trust
from retailinfer.release.envelope import decode_envelope, encode_envelope
from retailinfer.release.statements import encode_statement, moment_text
from retailinfer.release.trust import MAX_TRUST_BYTES, Role, Rules, decode_trust, encode_trust

pytestmark = pytest.mark.requires("cryptography")


# ---- the trust file --------------------------------------------------------------------------------------------------


def test_a_trust_file_reads_back():
    """As text that people can read and change."""
    file = trust_file()
    data = encode_trust(file)
    assert decode_trust(data) == file
    assert decode_trust(json.dumps(json.loads(data)).encode()) == file  # spacing is theirs


def changed(**fields):
    """A trust file with other fields, as JSON."""
    return json.dumps(json.loads(encode_trust(trust_file())) | fields).encode()


KEYS = json.loads(encode_trust(trust_file()))["keys"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "trust file"),
        (b"[]", "trust file"),
        (b"[" * 100_000, "trust file"),
        (changed(format=2), "2"),
        (changed(more=1), "more"),
        (changed(epoch=0), "epoch"),
        (changed(epoch=2**63), "epoch"),
        (changed(environment="Production"), "environment"),
        (changed(names=[]), "names"),
        (changed(names=["a*b"]), "name"),
        (changed(keys={}), "keys"),
        (changed(keys=KEYS | {"copy": KEYS["ci"]}), "are the same"),
        (changed(keys=KEYS | {"x": {"algorithm": "rsa", "public": KEYS["ci"]["public"]}}), "rsa"),
        (changed(keys=KEYS | {"x": {"algorithm": "ed25519", "public": "AAAA"}}), "public"),
        (changed(keys=KEYS | {"x": {"algorithm": "ed25519", "public": "A" * 42 + "B="}}), "base64"),
        (changed(keys=KEYS | {"x y": KEYS["ci"]}), "name of a key"),
        (
            changed(keys={"ci": KEYS["ci"] | {"not_before": "2027-01-01T00:00:00Z", "expires": ISSUED}}),
            "expires",
        ),
        (changed(keys={"ci": KEYS["ci"] | {"not_before": ISSUED, "expires": ISSUED}}), "expires"),
        (changed(release={"keys": []}), "release"),
        (changed(release={"keys": ["ci", "ci"], "threshold": 2}), "twice"),
        (changed(release={"keys": ["ci"], "threshold": 2}), "2 signatures"),
        (changed(release={"keys": ["ci"], "threshold": 0}), "threshold"),
        (changed(release={"keys": ["nobody"]}), "nobody"),
        (changed(expires="tomorrow"), "expires"),
        (changed(expires="2027-02-30T00:00:00Z"), "2027-02-30"),
        (b'{"format":1,"format":1}', "twice"),
        (b"x" * (1 << 19), "at most"),
    ],
)
def test_trust_files_that_mean_nothing_are_refused(data, says):
    """With what is wrong."""
    with pytest.raises(ConfigError, match=says):
        decode_trust(data)


def test_a_trust_file_may_have_exactly_its_largest_size():
    """256 KiB of mostly blanks, and not a byte more."""
    text = encode_trust(trust_file())
    assert decode_trust(text + b" " * (MAX_TRUST_BYTES - len(text))) == trust_file()
    with pytest.raises(ConfigError, match="at most"):
        decode_trust(text + b" " * (MAX_TRUST_BYTES - len(text) + 1))


def small_order_points():
    """Encodings of all points of order 1, 2, 4 and 8, worked out from the curve's equation."""
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p

    def add(a, b):
        x1, y1, x2, y2 = *a, *b
        k = d * x1 * x2 * y1 * y2 % p
        return (
            (x1 * y2 + x2 * y1) * pow(1 + k, -1, p) % p,
            (y1 * y2 + x1 * x2) * pow(1 - k, -1, p) % p,
        )

    def points(y):
        square = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
        x = pow(square, (p + 3) // 8, p)
        if x * x % p != square:
            x = x * pow(2, (p - 1) // 4, p) % p
        return [(x, y), (-x % p, y)] if x * x % p == square else []

    found, y = set(), 2
    while len(found) < 8:  # the multiples of (order of the large group) * any point have small order
        for point in points(y):
            total, base, n = (0, 1), point, 2**252 + 27742317777372353535851937790883648493
            while n:
                total, base, n = (add(total, base) if n & 1 else total), add(base, base), n >> 1
            found.add(total)
        y += 1
    for x, y in found:
        for value in {y, y + p} if y + p < 2**255 else {y}:
            for sign in {x & 1, 1 if x == 0 else x & 1}:
                yield (value | sign << 255).to_bytes(32, "little")


def test_keys_that_anybody_can_sign_for_are_refused():
    """Points of small order, each of their spellings; and such a signature, shown to hold for one of them."""
    from retailinfer.release.signature import verify

    assert verify(b"\1" + bytes(31), b"anything", b"\1" + bytes(63))
    tried = 0
    for public in small_order_points():
        entry = {"algorithm": "ed25519", "public": base64.b64encode(public).decode()}
        with pytest.raises(ConfigError, match="small order"):
            decode_trust(changed(keys=KEYS | {"weak": entry}))
        tried += 1
    assert tried >= 10


def test_trust_is_a_path_a_setting_or_an_object(tmp_path, monkeypatch):
    """And says where it came from when there is none."""
    path = tmp_path / "trust.json"
    path.write_bytes(encode_trust(trust_file()))
    assert resolve_trust(path).file == trust_file()
    assert resolve_trust(str(path)).origin == str(path)
    held = trust()
    assert resolve_trust(held) is held
    monkeypatch.setenv("RETAILINFER_TRUST", str(path))
    monkeypatch.setenv("RETAILINFER_TRUST_STATE", str(tmp_path / "state.json"))
    resolve_trust(None).remember("fraud", "a" * 64)
    assert (tmp_path / "state.json").exists()
    monkeypatch.setenv("RETAILINFER_TRUST", str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match=r"RETAILINFER_TRUST.*none\.json"):
        resolve_trust(None)
    for wrong in (1, b"x", True):
        with pytest.raises(ConfigError):
            resolve_trust(wrong)
    with pytest.raises(ConfigError, match=r"regular file|cannot read"):
        resolve_trust(tmp_path)


# ---- releases --------------------------------------------------------------------------------------------------------


def test_a_signed_release_is_read_and_says_by_whom():
    """From memory and with its statement."""
    bundle = read_bundle(signed_files(), trust=trust())
    assert bundle.signed_by == ("ci", "lead")
    assert bundle.verdict.statement.digest == bundle.manifest.digest
    assert read_bundle(signed_files()).signed_by == ()  # nobody was asked


def test_a_signed_release_is_read_from_a_folder(tmp_path):
    """With links refused too."""
    for name, data in signed_files().items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).chmod(0o644)
    assert read_bundle(tmp_path, trust=trust(), strict_paths=True).signed_by == ("ci", "lead")


def test_c28_an_unsigned_release_is_refused():
    """Also when everything else is right."""
    with pytest.raises(SignatureError, match="not signed"):
        read_bundle(tiny(), trust=trust())


@pytest.mark.parametrize("names", [("ci",), ("lead",), ("ci", "risk"), ("risk", "ops"), ("stranger", "ci")])
def test_c28_too_few_of_the_right_signatures_are_refused(names):
    """One of two; a key of another role; a key that nobody knows."""
    with pytest.raises(SignatureError, match="2 signature"):
        read_bundle(signed_files(None, *names), trust=trust())


def test_signatures_of_strangers_beside_enough_of_ours_do_not_hurt():
    """So that a release can be signed with old and new keys while keys are changed."""
    assert read_bundle(signed_files(None, "ci", "lead", "next"), trust=trust()).signed_by == ("ci", "lead")


def test_c28_one_key_that_signs_twice_counts_once():
    """Neither twice in an envelope nor under two names."""
    files = signed_files(None, "ci")
    envelope = decode_envelope(files["manifest.sig"])
    twice = files["manifest.sig"]
    one = twice[twice.index(b'{"keyid"') : -2]
    with pytest.raises(SignatureError, match="signed twice"):
        read_bundle(files | {"manifest.sig": twice[:-2] + b"," + one + b"]}"}, trust=trust())
    under_another = dict(envelope.signatures) | {key("lead").id: envelope.signatures[key("ci").id]}
    forged = encode_envelope(envelope.payload_type, envelope.payload, under_another)
    with pytest.raises(SignatureError, match="does not hold"):
        read_bundle(files | {"manifest.sig": forged}, trust=trust())


def test_c28_a_signature_over_another_type_is_refused():
    """The same payload, signed as something else, by the right keys; and the type exchanged afterwards."""
    from retailinfer.release.signature import sign_payload

    payload = encode_statement(statement_of(tiny()))
    keys = [key("ci"), key("lead")]
    other = sign_payload("application/vnd.retailinfer.approval.v1+json", payload, keys)
    with pytest.raises(SignatureError, match="Expected a signed"):
        read_bundle(tiny() | {"manifest.sig": other}, trust=trust())
    right = decode_envelope(signed_files()["manifest.sig"])
    renamed = encode_envelope(right.payload_type, right.payload, decode_envelope(other).signatures)
    with pytest.raises(SignatureError, match="does not hold"):
        read_bundle(tiny() | {"manifest.sig": renamed}, trust=trust())


def test_c28_the_algorithm_is_that_of_the_key():
    """An EC signature under the id of an Ed25519 key is none."""
    from retailinfer.release.signature import EcPrivateKey

    right = decode_envelope(signed_files()["manifest.sig"])
    ec = EcPrivateKey.generate().sign(right.signed)
    forged = encode_envelope(right.payload_type, right.payload, dict(right.signatures) | {key("ci").id: ec})
    with pytest.raises(SignatureError, match="does not hold"):
        read_bundle(tiny() | {"manifest.sig": forged}, trust=trust())


def test_an_older_trust_file_does_not_know_new_keys_and_the_other_way_round():
    """Key rotation: a key that left the file signs nothing any more."""
    rotated = trust(
        epoch=2,
        keys={name: record(name) for name in ("ci-2", "lead", "ops", "root")},
        release=Role(keys=("ci-2", "lead"), threshold=2),
    )
    with pytest.raises(SignatureError, match="2 signature"):
        read_bundle(signed_files(), trust=rotated)
    both = signed_files(None, "ci", "ci-2", "lead")
    assert read_bundle(both, trust=rotated).signed_by == ("ci-2", "lead")
    assert read_bundle(both, trust=trust()).signed_by == ("ci", "lead")


@pytest.mark.parametrize(
    ("more", "counts"),
    [
        ({"expires": moment_text(NOW_S + 1)}, True),
        ({"expires": moment_text(NOW_S)}, False),
        ({"not_before": moment_text(NOW_S)}, True),
        ({"not_before": moment_text(NOW_S + 1)}, False),
    ],
)
def test_a_key_counts_while_it_is_valid(more, counts):
    """From its first moment to the one before its last."""
    keys = {name: record(name) for name in ("lead", "ops", "root")} | {"ci": record("ci", **more)}
    believed = trust(keys=keys)
    if counts:
        assert read_bundle(signed_files(), trust=believed).signed_by == ("ci", "lead")
    else:
        with pytest.raises(SignatureError, match="2 signature"):
            read_bundle(signed_files(), trust=believed)


def test_a_trust_file_that_has_expired_believes_nobody():
    """From that moment on."""
    assert read_bundle(signed_files(), trust=trust(expires=moment_text(NOW_S + 1)))
    with pytest.raises(TrustError, match="trust file has expired"):
        read_bundle(signed_files(), trust=trust(expires=moment_text(NOW_S)))


@pytest.mark.parametrize(
    ("now_s", "changes", "says"),
    [
        (0, {}, "counts from"),  # a clock at 1970
        (NOW_S + 3650 * DAY_S, {}, "expired"),  # one that is 10 years ahead
        (NOW_S + 30 * DAY_S, {}, "expired"),
        (NOW_S, {"issued": moment_text(NOW_S + 301)}, "counts from"),
        (NOW_S, {"not_before": moment_text(NOW_S + 301)}, "counts from"),
    ],
)
def test_c29_releases_count_in_their_time(now_s, changes, says):
    """Not yet valid, expired, and clocks that are wrong."""
    with pytest.raises(TrustError, match=says):
        read_bundle(signed_files(**changes), trust=trust(now_s=now_s))


def test_c29_clocks_may_differ_by_minutes():
    """A release that was signed a moment ago on a machine whose clock is ahead loads."""
    assert read_bundle(signed_files(issued=moment_text(NOW_S + 300)), trust=trust())
    assert read_bundle(signed_files(expires=moment_text(NOW_S + 1)), trust=trust())
    assert read_bundle(signed_files(expires=None), trust=trust(now_s=NOW_S + 3650 * DAY_S))


def test_an_expired_release_starts_again_within_its_grace_on_a_host_that_had_it(tmp_path):
    """72 hours by default; not on a host that never had it, nor another release, nor later."""
    state = tmp_path / "state.json"
    files = signed_files()
    late = NOW_S + 30 * DAY_S
    with pytest.raises(TrustError, match="expired"):
        read_bundle(files, trust=trust(now_s=late, state=state))
    trust(state=state).remember("fraud", digest_of(tiny()))
    verdict = read_bundle(files, trust=trust(now_s=late + 3600, state=state)).verdict
    assert verdict.expired_s == 3600
    with pytest.raises(TrustError, match="expired"):
        read_bundle(files, trust=trust(now_s=late + 72 * 3600, state=state))
    with pytest.raises(TrustError, match="expired"):
        read_bundle(files, trust=trust(now_s=late, state=state, grace_hours=0))
    with pytest.raises(TrustError, match="expired"):
        read_bundle(signed_files(tiny("2.0")), trust=trust(now_s=late, state=state))


@pytest.mark.parametrize(
    ("files", "changes", "error", "says"),
    [
        (tiny(name="other"), {}, TrustError, "allows no release"),
        (tiny(), {"environments": ("staging",)}, TrustError, "signed for staging"),
        (tiny(), {"digest": "0" * 64}, IntegrityError, "digest"),
        (tiny(), {"name": "shop-1"}, IntegrityError, "name"),
        (tiny(), {"version": "9"}, IntegrityError, "version"),
        (tiny(), {"fallbacks": ("1" * 64,)}, IntegrityError, "fallbacks"),
        (tiny(), {"manifest_sha256": "0" * 64}, IntegrityError, "two releases"),
        (tiny(), {"requires": {"msgspec": "999"}}, TrustError, "msgspec"),
        (tiny(), {"requires": {"no-such-package": "1"}}, TrustError, "None"),
        (tiny(expires="2026-12-01"), {}, TrustError, "signed for longer"),
        (tiny(expires="2026-12-01"), {"expires": None}, TrustError, "signed for longer"),
    ],
)
def test_what_was_signed_must_fit_here_and_the_manifest(files, changes, error, says):
    """Name, environment, digest, version, fallbacks, libraries, the manifest's own end."""
    with pytest.raises(error, match=says):
        read_bundle(signed_files(files, **changes), trust=trust())


def test_names_may_end_in_a_star():
    """shop-* stands for all that begin so; * for all."""
    assert read_bundle(signed_files(tiny(name="shop-home")), trust=trust())
    assert read_bundle(signed_files(tiny(name="other")), trust=trust(names=("*",)))


def test_the_very_version_that_is_asked_for_fits():
    """Not a newer one is needed."""
    assert read_bundle(signed_files(requires={"msgspec": msgspec.__version__}), trust=trust())


@pytest.mark.parametrize(
    ("lowest", "fits"), [("0.19", True), ("0.22.0", True), ("0.19rc1", True), ("99", False), ("0.999", False)]
)
def test_versions_are_compared_by_number(lowest, fits):
    """0.9 is older than 0.22."""
    files = signed_files(requires={"msgspec": lowest})
    if fits:
        assert read_bundle(files, trust=trust())
    else:
        with pytest.raises(TrustError, match="msgspec"):
            read_bundle(files, trust=trust())


def test_a_release_may_be_demanded_by_its_digest():
    """As a pointer names it; with and without signatures."""
    digest = digest_of(tiny())
    assert read_bundle(signed_files(), trust=trust(), expected=digest)
    assert read_bundle(tiny(), expected=digest)
    for believed in (trust(), None):
        with pytest.raises(IntegrityError, match="Expected the release"):
            read_bundle(signed_files(), trust=believed, expected="1" * 64)


# ---- approvals -------------------------------------------------------------------------------------------------------

APPROVED = {"approval": Role(keys=("risk", "lead"), threshold=2)}


def test_approvals_are_counted_by_key():
    """Two people must agree, each in an envelope of his own or both in one."""
    files = signed_files()
    alone = {
        "approval-a.sig": approval_of(files, "risk"),
        "approval-b.sig": approval_of(files, "lead", who="Grace"),
    }
    assert read_bundle(files | alone, trust=trust(**APPROVED)).verdict.approved_by == ("lead", "risk")
    together = {"approval-a.sig": approval_of(files, "risk", "lead")}
    assert read_bundle(files | together, trust=trust(**APPROVED)).verdict.approved_by == ("lead", "risk")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({}, TrustError),
        ({"environment": "staging"}, TrustError),
        ({"expires": moment_text(NOW_S)}, TrustError),
        ({"issued": moment_text(NOW_S + 301)}, TrustError),
        ({"digest": "0" * 64}, IntegrityError),
        ({"name": "shop-1"}, IntegrityError),
    ],
)
def test_too_few_approvals_are_refused(changes, error):
    """One of two; for another environment; no longer valid; of another release."""
    files = signed_files()
    more = {
        "approval-a.sig": approval_of(files, "risk"),
        "approval-b.sig": approval_of(files, "lead" if changes else "risk", **changes),
    }
    with pytest.raises(error):
        read_bundle(files | more, trust=trust(**APPROVED))
    with pytest.raises(TrustError, match="needs 2 approval"):
        read_bundle(files, trust=trust(**APPROVED))


def test_an_approval_may_come_from_a_clock_that_is_ahead():
    """By minutes, as a release may."""
    files = signed_files()
    one = {"approval": Role(keys=("risk",))}
    ahead = approval_of(files, issued=moment_text(NOW_S + 300), expires=moment_text(NOW_S + 301))
    assert read_bundle(files | {"approval-a.sig": ahead}, trust=trust(**one)).verdict.approved_by == ("risk",)


def test_approvals_nobody_asked_for_are_not_read():
    """Whatever they hold; and a stranger's does not count."""
    files = signed_files()
    assert read_bundle(files | {"approval-x.sig": b"garbage"}, trust=trust())
    with pytest.raises(SignatureError):
        read_bundle(files | {"approval-x.sig": b"garbage"}, trust=trust(**APPROVED))
    parser_calls.clear()
    with pytest.raises(TrustError, match="it has 0"):
        read_bundle(files | {"approval-x.sig": approval_of(files, "stranger")}, trust=trust(**APPROVED))
    assert "approval" not in parser_calls


def test_a_release_signature_is_no_approval():
    """Nor the other way round, though the same person may give both."""
    files = signed_files()
    with pytest.raises(SignatureError, match="Expected a signed"):
        read_bundle(files | {"approval-x.sig": files["manifest.sig"]}, trust=trust(**APPROVED))
    with pytest.raises(SignatureError, match="Expected a signed"):
        read_bundle(files | {"manifest.sig": approval_of(files, "ci", "lead")}, trust=trust())


# ---- revocations -----------------------------------------------------------------------------------------------------

REVOKING = {"revocation": Role(keys=("security",))}


def test_c31_a_revoked_release_or_key_is_refused():
    """With the reason; another release goes on."""
    digest = digest_of(tiny())
    with pytest.raises(TrustError, match="trained on leaked data"):
        read_bundle(
            signed_files(),
            trust=trust(revocations=revoked(releases={digest: "trained on leaked data"}), **REVOKING),
        )
    with pytest.raises(SignatureError, match="2 signature"):
        read_bundle(
            signed_files(), trust=trust(revocations=revoked(keys={key("ci").id: "laptop stolen"}), **REVOKING)
        )
    other = revoked(releases={"0" * 64: "x"}, keys={"1" * 64: "y"})
    assert read_bundle(signed_files(), trust=trust(revocations=other, **REVOKING))


def test_c31_an_older_list_of_revocations_is_refused(tmp_path):
    """In one process, and after a restart; the same one counts again; another of the same number does not."""
    state = tmp_path / "state.json"
    believed = trust(revocations=revoked(5), state=state, **REVOKING)
    for older in (revoked(4), revoked(5, releases={"0" * 64: "x"})):
        with pytest.raises(RollbackError, match="number"):
            believed.update(older)
    believed.update(revoked(5))
    believed.update(revoked(6))
    believed.remember("fraud", digest_of(tiny()))
    with pytest.raises(RollbackError, match="number 5"):
        trust(revocations=revoked(5), state=state, **REVOKING)
    assert read_bundle(signed_files(), trust=trust(revocations=revoked(6), state=state, **REVOKING))


def test_a_list_of_revocations_cannot_be_withheld():
    """Where the trust file names who may revoke, a list must be there."""
    with pytest.raises(TrustError, match="no list of revocations"):
        read_bundle(signed_files(), trust=trust(**REVOKING))


def test_a_list_of_revocations_is_found_beside_the_trust_file(tmp_path):
    """As `revocations.sig`."""
    from retailinfer.clock import ManualClock
    from retailinfer.release.trust_files import Trust

    path = tmp_path / "trust.json"
    path.write_bytes(encode_trust(trust_file(**REVOKING)))
    (tmp_path / "revocations.sig").write_bytes(revoked(releases={digest_of(tiny()): "leak"}))
    believed = Trust(path, clock=ManualClock(wall_ns=NOW_S * 10**9))
    with pytest.raises(TrustError, match="leak"):
        read_bundle(signed_files(), trust=believed)


def test_a_list_of_revocations_of_somebody_else_or_of_the_past_is_refused():
    """It is signed by the role's keys, of this epoch, in its time."""
    from retailinfer.release.statements import Revocations

    mine = Revocations(epoch=1, seq=1, issued=ISSUED)
    for data, error in (
        (signed(mine, "ci"), SignatureError),
        (revoked(epoch=2), RollbackError),
        (revoked(expires=moment_text(NOW_S)), TrustError),
        (revoked(issued=moment_text(NOW_S + 301)), TrustError),
        (b"", SignatureError),
        (signed(pointer(), "security"), SignatureError),
    ):
        with pytest.raises(error):
            trust(revocations=data, **REVOKING)


def test_a_trust_file_that_names_nobody_to_revoke_needs_no_list(tmp_path):
    """Also on a host that has seen one under the trust file before."""
    state = tmp_path / "state.json"
    trust(state=state, revocations=revoked(2), **REVOKING).remember("fraud", digest_of(tiny()))
    assert read_bundle(signed_files(), trust=trust(state=state)).signed_by == ("ci", "lead")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="platform: no FIFO here")
def test_a_pipe_is_no_trust_file(tmp_path):
    """Nor a list of revocations: nothing waits for somebody to write."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="regular file"):
        resolve_trust(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="regular file"):
        trust(revocations=tmp_path / "pipe", **REVOKING)


# ---- the next trust file ---------------------------------------------------------------------------------------------


def next_file(*names, **changes):
    """A trust file of the next epoch in an envelope."""
    from retailinfer.release.signature import sign_payload
    from retailinfer.release.trust import TRUST_TYPE

    file = trust_file(**({"epoch": 2} | changes))
    return sign_payload(TRUST_TYPE, encode_trust(file), [key(name) for name in names])


def test_a_trust_file_names_its_successor():
    """Signed by the old root keys and the new ones."""
    rules = Rules(trust_file())
    assert rules.follow(next_file("root"), now_s=NOW_S) == trust_file(epoch=2)
    keys = {name: record(name) for name in ("ci", "lead", "ops", "root-2")}
    new = {"keys": keys, "trust": Role(keys=("root-2",))}
    assert rules.follow(next_file("root", "root-2", **new), now_s=NOW_S).epoch == 2
    for names in (("root",), ("root-2",), ("ci", "lead")):
        with pytest.raises(SignatureError):
            rules.follow(next_file(*names, **new), now_s=NOW_S)


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"epoch": 1}, RollbackError), ({"epoch": 3}, RollbackError), ({"environment": "staging"}, TrustError)],
)
def test_a_successor_is_the_next_one_of_the_same_place(changes, error):
    """No epoch is skipped, so that every change was signed by the keys before it."""
    with pytest.raises(error):
        Rules(trust_file()).follow(next_file("root", **changes), now_s=NOW_S)


def test_a_trust_file_without_root_keys_has_no_successor():
    """It is exchanged by hand."""
    with pytest.raises(TrustError, match="no role `trust`"):
        Rules(trust_file(trust=None)).follow(next_file("root"), now_s=NOW_S)


def test_a_host_follows_trust_files_that_lie_beside(tmp_path):
    """From epoch to epoch, also from one that has expired; a broken link refuses, and a file in between is not skipped."""
    from retailinfer.clock import ManualClock
    from retailinfer.release.trust_files import Trust

    path = tmp_path / "trust.json"
    path.write_bytes(encode_trust(trust_file(expires=moment_text(NOW_S))))
    clock = ManualClock(wall_ns=NOW_S * 10**9)

    def epoch():
        return Trust(path, clock=clock).file.epoch

    assert epoch() == 1
    (tmp_path / "trust-3.sig").write_bytes(next_file("root", epoch=3))
    assert epoch() == 1
    (tmp_path / "trust-2.sig").write_bytes(next_file("root", epoch=2))
    assert epoch() == 3
    assert read_bundle(signed_files(), trust=Trust(path, clock=clock)).signed_by == ("ci", "lead")
    (tmp_path / "trust-2.sig").write_bytes(next_file("ci", epoch=2))
    with pytest.raises(SignatureError):
        epoch()
    (tmp_path / "trust-2.sig").write_bytes(signed(pointer(), "root"))
    with pytest.raises(SignatureError, match="Expected a signed"):
        epoch()
    (tmp_path / "trust-2.sig").write_bytes(next_file("root", epoch=2, trust=None))
    assert epoch() == 2


def test_a_trust_file_in_memory_and_odd_files_beside(tmp_path):
    """No folder is looked at for bytes; what is no list of revocations is said."""
    from retailinfer.release.trust_files import Trust

    believed = trust()
    assert "production, epoch 1, 6 keys, from memory" in repr(believed)
    assert believed.mark_of("fraud") is None
    believed.remember("fraud", "a" * 64)  # nothing is kept, and nothing fails
    with pytest.raises(ConfigError, match="no list of revocations"):
        believed.update(tmp_path / "none.sig")
    with pytest.raises(SignatureError):
        read_bundle(tiny(), trust=believed)
    path = tmp_path / "large.json"
    path.write_bytes(b" " * (1 << 19))
    with pytest.raises(ConfigError, match="at most"):
        Trust(path)
    with pytest.raises(ConfigError, match="cannot read"):
        Trust("a\0b")


def test_a_list_of_revocations_that_was_seen_must_come_again(tmp_path):
    """A host that has accepted one loads nothing without it, pointers neither."""
    state = tmp_path / "state.json"
    role = {"revocation": Role(keys=("security",))}
    trust(state=state, revocations=revoked(2), **role).remember("fraud", digest_of(tiny()))
    without = trust(state=state, **role)
    for ask in (
        lambda: read_bundle(signed_files(), trust=without),
        lambda: without.check_pointer(signed(pointer(), "ops"), "fraud"),
    ):
        with pytest.raises(RollbackError, match="number 2"):
            ask()


# ---- what ran before what --------------------------------------------------------------------------------------------


def test_no_parser_runs_before_the_signature_holds():
    """Whatever is wrong with the signature, nothing of the release was parsed; with the manifest: only what was signed."""
    right = signed_files()
    bad = [
        tiny(),
        signed_files(None, "ci"),
        signed_files(None, "stranger"),
        right | {"manifest.sig": b""},
        right | {"manifest.sig": right["manifest.sig"][:-1]},
        right | {"manifest.sig": right["manifest.sig"] + b"\n"},
        right | {"manifest.sig": approval_of(tiny(), "ci", "lead")},
    ]
    for files in bad:
        parser_calls.clear()
        with pytest.raises(SignatureError):
            read_bundle(files, trust=trust())
        assert dict(parser_calls) == {}
    parser_calls.clear()
    with pytest.raises(IntegrityError):
        read_bundle(right | {"manifest.json": tiny("2.0")["manifest.json"]}, trust=trust())
    assert dict(parser_calls) == {"manifest.sig": 1}
    read_bundle(right, trust=trust())
    assert dict(parser_calls) == {"manifest.sig": 2, "manifest.json": 1}


def test_a_manifest_cannot_list_signatures():
    """They are beside a release, never in it."""
    from retailinfer.release.manifest import decode_manifest, seal

    manifest = decode_manifest(tiny()["manifest.json"])
    entry = msgspec.structs.replace(manifest.files[0], file="manifest.sig", role="x")
    with pytest.raises(ManifestError, match=r"\*\.sig"):
        seal(msgspec.structs.replace(manifest, files=(*manifest.files, entry)))


def test_keys_are_named_by_their_bytes():
    """As other tools of this kind do it."""
    import hashlib

    public = base64.b64decode(record("ci").public)
    assert key("ci").id == hashlib.sha256(public).hexdigest()
    assert decode_envelope(signed_files()["manifest.sig"]).signatures.keys() == {key("ci").id, key("lead").id}
    assert EXPIRES > ISSUED
