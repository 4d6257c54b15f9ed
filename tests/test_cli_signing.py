"""keygen, sign, revoke, and what verify and inspect say of signatures."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import releases
from registries import report_of

import retailinfer as ri
from retailinfer.cli.main import main
from retailinfer.errors import SignatureError, TrustError
from retailinfer.release.manifest import sha256_hex

pytestmark = pytest.mark.requires("cryptography", "onnx", "pyarrow")


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A folder with a release of payments, and nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETAILINFER_TRUST", raising=False)
    Path("fraud").mkdir()
    for name, data in releases.payment_files().items():
        Path("fraud", name).write_bytes(data)
    return tmp_path


@pytest.fixture
def run(capsys):
    """A command; (code, stdout, stderr)."""

    def call(line: str) -> tuple[int, str, str]:
        code = main(line.split())
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def good(run):
    """A command that must succeed; its stdout."""

    def call(line: str) -> str:
        code, out, err = run(line)
        assert code == 0, err
        return out

    return call


@pytest.fixture
def bad(run):
    """A command that must fail with one line; that line."""

    def call(line: str) -> str:
        code, _, err = run(line)
        assert code == 1
        assert "Traceback" not in err
        return err.splitlines()[-1]

    return call


def test_two_people_sign_and_a_host_believes_both(shop, good, bad):
    """From nothing to a scorer that answers: keys, signatures, trust file."""
    good("keygen ci --out ci.pem --trust trust.json --names payments --who Continuous-Integration")
    good("keygen lead --out lead.pem --trust trust.json --threshold 2 --quiet")
    assert "not signed" in bad("verify fraud --trust trust.json")
    assert "by 1 key(s)" in good(
        "sign fraud --key ci.pem --expires 2036-01-31T00:00:00Z --requires msgspec=0.18"
    )
    assert "Expected 2 signature(s)" in bad("verify fraud --trust trust.json")
    said = good("sign fraud --key lead.pem")
    assert "by 2 key(s)" in said
    assert "needs    msgspec >= 0.18" in said
    assert "signature by ci, lead, for production, until 2036-01-31" in good(
        "verify fraud --trust trust.json"
    )
    assert ri.Scorer.load("fraud", trust="trust.json").score(releases.payment()).score > 0


def test_the_setting_says_whom_to_believe(shop, good, bad, monkeypatch):
    """For every command, and `unsigned` is one of its values."""
    good("keygen ci --out ci.pem --trust trust.json")
    monkeypatch.setenv("RETAILINFER_TRUST", "trust.json")
    assert "not signed" in bad("verify fraud")
    assert "not signed" in bad("inspect fraud")
    assert "signature none: whoever can write" in good("verify fraud --trust unsigned")
    good("sign fraud --key ci.pem")
    assert "signature by ci" in good("verify fraud")
    assert "signature by ci" in good("inspect fraud")


def test_what_was_not_verified_is_said(shop, good):
    """The signature is shown, and that nobody looked at it."""
    assert "signature none" in good("inspect fraud")
    good("keygen ci --out ci.pem")
    good("sign fraud --key ci.pem")
    for command in ("verify fraud", "inspect fraud"):
        assert "signature not verified, for no --trust was given; manifest.sig says: for production" in good(
            command
        )


def test_machines_read_it_too(shop, good):
    """--json of each command."""
    key = json.loads(good("keygen ci --out ci.pem --trust trust.json --json"))
    assert key["private"] == "ci.pem"
    assert key["key"]["algorithm"] == "ed25519"
    signed = json.loads(good("sign fraud --key ci.pem --environment production --environment staging --json"))
    assert signed["keys"] == [key["id"]]
    assert signed["statement"]["environments"] == ["production", "staging"]
    found = json.loads(good("verify fraud --trust trust.json --json"))["signature"]
    assert found["verified"] is True
    assert found["signed_by"] == ["ci"]
    assert json.loads(good("inspect fraud --json"))["signature"]["keys"] == [key["id"]]
    assert json.loads(good("verify fraud --json"))["signature"]["verified"] is False


def test_a_key_is_its_owners_and_never_replaced(shop, good, bad):
    """Mode 600, and a second keygen of the same file changes nothing."""
    good("keygen ci --out ci.pem")
    path = Path("ci.pem")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    assert "there already" in bad("keygen ci --out ci.pem")
    assert path.read_bytes() == before


def test_a_key_with_a_password_signs_with_it_only(shop, good, bad, monkeypatch):
    """From a file or a setting."""
    Path("password").write_text("correct horse\n", encoding="utf-8")
    good("keygen ci --out ci.pem --password-file password")
    assert b"ENCRYPTED" in Path("ci.pem").read_bytes()
    assert "needs a password" in bad("sign fraud --key ci.pem")
    assert "cannot read the password" in bad("sign fraud --key ci.pem --password-file nothing")
    monkeypatch.setenv("RETAILINFER_KEY_PASSWORD", "another")
    assert "not one" in bad("sign fraud --key ci.pem")
    monkeypatch.setenv("RETAILINFER_KEY_PASSWORD", "correct horse")
    good("sign fraud --key ci.pem")


def test_revocations_take_effect_and_keep_what_they_held(shop, good, bad):
    """A key, then a release; each list has the next number."""
    good("keygen ci --out ci.pem --trust trust.json")
    good("keygen lead --out lead.pem --trust trust.json")
    good("keygen security --out security.pem --trust trust.json --role revocation")
    good("sign fraud --key ci.pem")
    assert "no list of revocations" in bad("verify fraud --trust trust.json")
    assert "list number 1 of epoch 1" in good("revoke --trust trust.json --key security.pem")
    good("verify fraud --trust trust.json")
    good("revoke --trust trust.json --key security.pem --revoked-key ci=stolen")
    assert "Expected 1 signature(s)" in bad("verify fraud --trust trust.json")
    good("sign fraud --key lead.pem")
    good("verify fraud --trust trust.json")
    digest = json.loads(good("verify fraud --json"))["digest"]
    said = good(f"revoke --trust trust.json --key security.pem --release {digest}=leak")
    assert "list number 3 of epoch 1: 1 release(s), 1 key(s)" in said
    assert "leak" in bad("verify fraud --trust trust.json")
    with pytest.raises(TrustError, match="leak"):
        ri.Scorer.load("fraud", trust="trust.json")
    assert "Expected 1 signature(s)" in bad("revoke --trust trust.json --key ci.pem")


def test_a_list_of_keys_that_left_is_begun_again(shop, good, bad):
    """It cannot be verified any more, so nothing of it is taken over unseen."""
    good("keygen ci --out ci.pem --trust trust.json")
    good("keygen security --out security.pem --trust trust.json --role revocation")
    good("revoke --trust trust.json --key security.pem --revoked-key ci=stolen")
    file = json.loads(Path("trust.json").read_text(encoding="utf-8"))
    good("keygen security-2 --out security-2.pem --trust scratch.json")
    file["keys"] |= json.loads(Path("scratch.json").read_text(encoding="utf-8"))["keys"]
    del file["keys"]["security"]
    file |= {"epoch": 2, "revocation": {"keys": ["security-2"]}}
    Path("trust.json").write_text(json.dumps(file), encoding="utf-8")
    assert "cannot be taken over" in bad("revoke --trust trust.json --key security-2.pem")
    said = good("revoke --trust trust.json --key security-2.pem --fresh")
    assert "list number 1 of epoch 2: 0 release(s), 0 key(s)" in said
    good("sign fraud --key ci.pem")
    good("verify fraud --trust trust.json")


def test_hosts_are_led_to_new_keys(shop, good, bad):
    """The next trust file, signed by the root key, beside the old one: what the old key signed counts no more."""
    good("keygen ci --out ci.pem --trust trust.json")
    good("keygen root --out root.pem --trust trust.json --role trust")
    good("sign fraud --key ci.pem")
    good("verify fraud --trust trust.json")
    next_ = json.loads(Path("trust.json").read_text(encoding="utf-8")) | {"epoch": 2}
    good("keygen ci-2 --out ci-2.pem --trust scratch.json")
    del next_["keys"]["ci"]
    next_["keys"] |= json.loads(Path("scratch.json").read_text(encoding="utf-8"))["keys"]
    next_["release"] = {"keys": ["ci-2"]}
    Path("next.json").write_text(json.dumps(next_), encoding="utf-8")
    assert "Expected 1 signature(s)" in bad("rotate --trust trust.json --next next.json --key ci.pem")
    assert not Path("trust-2.sig").exists()
    said = good("rotate --trust trust.json --next next.json --key root.pem")
    assert "trust-2.sig leads from epoch 1 to epoch 2" in said
    assert "left     ci\n" in said
    assert "Expected 1 signature(s)" in bad("verify fraud --trust trust.json")
    good("sign fraud --key ci-2.pem")
    assert "signature by ci-2" in good("verify fraud --trust trust.json")
    assert "Expected a trust file of epoch 3" in bad(
        "rotate --trust trust.json --next next.json --key root.pem"
    )
    again = "revoke --trust trust.json --key ci-2.pem"
    assert "no role `revocation`" in bad(again)
    assert "cannot read none.json" in bad("rotate --trust trust.json --next none.json --key root.pem")


def test_signing_again_says_the_same_or_replaces(shop, good, bad):
    """A second signer cannot change what the first one said without dropping his signature."""
    good("keygen ci --out ci.pem --trust trust.json")
    good("keygen lead --out lead.pem --trust trust.json")
    good("sign fraud --key ci.pem --environment staging")
    assert "says another `environments`" in bad("sign fraud --key lead.pem --environment production")
    good("sign fraud --key lead.pem --environment staging")
    assert "signed for staging" in bad("verify fraud --trust trust.json")
    good("sign fraud --key lead.pem --environment production --replace")
    assert "signature by lead, for production" in good("verify fraud --trust trust.json")


def test_a_signature_of_another_release_is_not_added_to(shop, good, bad):
    """A manifest.sig that was copied along is refused, not signed."""
    good("keygen ci --out ci.pem")
    good("sign fraud --key ci.pem")
    Path("other").mkdir()
    for name, data in releases.payment_files(extra="ignore").items():
        Path("other", name).write_bytes(data)
    shutil.copy("fraud/manifest.sig", "other/manifest.sig")
    assert "signs another manifest.json" in bad("sign other --key ci.pem")
    good("sign other --key ci.pem --replace")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("keygen x --out x.pem --trust none.json --role pointer", "needs a key that signs releases"),
        ("keygen ci --out x.pem --trust trust.json", "names a key `ci` already"),
        ("keygen x --out x.pem --trust fraud/manifest.json", "Expected a trust file"),
        ("keygen x --out x.pem --trust trust.json --expires tomorrow", "cannot be described so"),
        ("keygen x --out x.pem --expires 2027-02-30T00:00:00Z", "cannot be described so"),
        ("keygen x --out x.pem --trust trust.json --model-signing", "no place in a trust file"),
        ("keygen x --out none/x.pem", "No such file"),
        ("sign fraud --key none.pem", "cannot read the key"),
        ("sign fraud --key trust.json", "not one"),
        ("sign none --key ci.pem", "cannot open the release"),
        ("sign fraud --key ci.pem --requires msgspec", "DISTRIBUTION=VERSION"),
        ("sign fraud --key ci.pem --expires 2001-01-01T00:00:00Z", "expires before"),
        ("sign fraud --key ci.pem --expires soon", "expires"),
        ("sign fraud --key ci.pem --model-signing", "elliptic curve"),
        ("sign fraud --key ci.pem --key ci.pem --model-signing", "one --key"),
        ("verify fraud --trust none.json", "no trust file"),
        ("verify fraud --model-signing ci.pem", "public key"),
        ("revoke --trust trust.json --key ci.pem", "no role `revocation`"),
        ("revoke --trust trust.json --key ci.pem --release abc", "WHAT=WHY"),
        ("revoke --trust none.json --key ci.pem", "cannot read none.json"),
    ],
)
def test_what_means_nothing_is_refused(shop, good, bad, line, says):
    """In one line, and nothing is written."""
    good("keygen ci --out ci.pem --trust trust.json")
    before = {path: path.read_bytes() for path in shop.rglob("*") if path.is_file()}
    assert says in bad(line)
    assert {path: path.read_bytes() for path in shop.rglob("*") if path.is_file()} == before


def test_model_signing_is_made_and_checked(shop, good, bad):
    """By us here, by the OpenSSF's package in test_release_oms.py."""
    good("keygen oms --out oms.pem --model-signing")
    good("sign fraud --key oms.pem --model-signing")
    assert "holds for every file" in good("verify fraud --model-signing oms.pub")
    good("keygen ci --out ci.pem --trust trust.json")
    good("sign fraud --key ci.pem")
    assert "holds for every file" in good("verify fraud --trust trust.json --model-signing oms.pub")
    good("keygen more --out more.pem --model-signing")
    assert "by the key" in bad("verify fraud --model-signing more.pub")
    Path("fraud/model.sig").unlink()
    assert "no model.sig" in bad("verify fraud --model-signing oms.pub")


def test_the_end_that_a_manifest_names_is_signed(shop, good, bad):
    """As a day or a moment; a later one is refused when it is loaded."""
    from test_acceptance_release_files import resealed

    from retailinfer.release.manifest import Info

    good("keygen ci --out ci.pem --trust trust.json")
    for named, signed in (("2036-01-31", "2036-01-31T00:00:00Z"), ("2036-01-31T12:00:00Z",) * 2):
        for name, data in resealed(info=Info(expires=named)).items():
            Path("fraud", name).write_bytes(data)
        assert f"until {signed}" in good("sign fraud --key ci.pem --replace")
        good("verify fraud --trust trust.json")
        good("sign fraud --key ci.pem --replace --expires 2036-02-01T00:00:00Z")
        assert "signed for longer" in bad("verify fraud --trust trust.json")


def test_signing_fails_whole(shop, good, monkeypatch):
    """No key, a signature that is of another kind, a folder that cannot be written: nothing is left behind."""
    from retailinfer.authoring import signing

    good("keygen ci --out ci.pem")
    with pytest.raises(ri.ConfigError, match="at least one key"):
        ri.sign("fraud", key=[])
    good("sign fraud --key ci.pem")
    key = signing.read_key("ci.pem")
    with pytest.raises(ri.ConfigError, match="does not let payments"):
        signing.approve("fraud", key=key, who="Ada", why="x", report=report_of("fraud", "failed"))
    assert list(Path("fraud").glob("approval-*.sig")) == []
    report = report_of("fraud")
    approval = signing.approve("fraud", key=key, who="Ada", why="x", report=report)
    assert (approval.who, approval.report) == ("Ada", sha256_hex(report))
    path = next(Path("fraud").glob("approval-*.sig"))
    path.replace("fraud/manifest.sig")
    with pytest.raises(SignatureError, match="signs no release"):
        ri.sign("fraud", key=key)
    before = sorted(shop.rglob("*"))

    def refuse(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ri.BundleError, match="No space left"):
        ri.sign("fraud", key=key, replace=True)
    assert sorted(shop.rglob("*")) == before


CALLS = ["open", "fsync", "fdopen", "replace", "rename"]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "line",
    [
        "sign fraud --key lead.pem",
        "keygen more --out more.pem --trust trust.json",
        "revoke --trust trust.json --key security.pem",
    ],
)
def test_c42_every_call_that_fails_leaves_old_files_or_new_ones(shop, good, run, monkeypatch, line, name):
    """Each call of the file system that writes fails once, in each of its turns: what is there is whole, nothing is beside."""
    good("keygen ci --out ci.pem --trust trust.json")
    good("keygen lead --out lead.pem --trust trust.json")
    good("keygen security --out security.pem --trust trust.json --role revocation")
    good("revoke --trust trust.json --key security.pem")
    good("sign fraud --key ci.pem")
    good("verify fraud --trust trust.json")
    before = {path for path in shop.rglob("*") if path.is_file()}
    real, failures = getattr(os, name), 0
    for turn in range(60):
        left = [turn]

        def failing(*args, _left=left, **options):
            _left[0] -= 1
            writes = name != "open" or (len(args) > 1 and args[1] & os.O_CREAT)
            if _left[0] < 0 and writes:
                _left[0] = 10_000
                raise OSError(28, "No space left on device")
            return real(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing)
            code, _, err = run(line)
        assert "internal error" not in err
        new = {path for path in shop.rglob("*") if path.is_file()} - before
        assert [path.name for path in new] == (["more.pem"] if code == 0 and "more.pem" in line else [])
        good("verify fraud --trust trust.json")
        if code == 0:
            break
        failures += 1
    else:
        pytest.fail("it never succeeded")
    assert failures or name in ("replace", "rename")


def test_python_signs_as_the_command_line_does(shop, good):
    """`ri.sign` and approvals beside a release."""
    from retailinfer.authoring.signing import approve

    good("keygen ci --out ci.pem --trust trust.json")
    good("keygen risk --out risk.pem --trust trust.json --role approval")
    statement = ri.sign("fraud", key="ci.pem", expires="2036-01-31T00:00:00Z", requires={"msgspec": "0.18"})
    assert statement.expires == "2036-01-31T00:00:00Z"
    with pytest.raises(TrustError, match="needs 1 approval"):
        ri.Scorer.load("fraud", trust="trust.json")
    approve("fraud", key="risk.pem", who="Ada", why="fewer declines", report=report_of("fraud"))
    assert "by ci, approved by risk" in good("verify fraud --trust trust.json")
    trust = ri.Trust("trust.json", state=shop / "state.json")
    assert ri.Scorer.load("fraud", trust=trust).score(releases.payment()).score > 0
    assert trust.mark_of("payments").loaded == statement.digest
    with pytest.raises(SignatureError):
        ri.Ranker.load({**releases.item_files()}, trust=trust)
