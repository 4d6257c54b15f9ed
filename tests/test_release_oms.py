"""The OpenSSF's model-signing format: its own package verifies what we sign, and we verify what it signs."""

from __future__ import annotations

import base64
import json

import pytest
from signed_releases import signed_files, tiny

from retailinfer.errors import IntegrityError, SignatureError
from retailinfer.release.oms import sign_files, verify_files

pytestmark = pytest.mark.requires("cryptography", "model_signing")


@pytest.fixture(scope="module")
def key():
    """A key on P-256."""
    from retailinfer.release.signature import EcPrivateKey

    return EcPrivateKey.generate()


@pytest.fixture
def folder(tmp_path):
    """A signed release on disk."""
    folder = tmp_path / "fraud"
    folder.mkdir()
    for name, data in signed_files().items():
        (folder / name).write_bytes(data)
    return folder


def files_in(folder):
    """All of them."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def theirs(tmp_path, key):
    """Paths of a private and a public key, as that package wants them."""
    (tmp_path / "key.pem").write_bytes(key.to_pem())
    (tmp_path / "key.pub").write_bytes(key.public.to_pem())
    return tmp_path / "key.pem", tmp_path / "key.pub"


def test_model_signing_verifies_what_we_sign(folder, tmp_path, key):
    """And refuses a release of which a byte was changed, or to which a file was added."""
    import model_signing

    _, public = theirs(tmp_path, key)
    (folder / "model.sig").write_bytes(sign_files("fraud", files_in(folder), key))

    def check():
        model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public).verify(
            folder, folder / "model.sig"
        )

    check()
    (folder / "model.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"model\.onnx"):
        check()
    (folder / "model.onnx").write_bytes(tiny()["model.onnx"])
    (folder / "more.txt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"more\.txt"):
        check()


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
def test_we_verify_what_model_signing_signs(folder, tmp_path, curve):
    """On each of its curves, signatures that lie beside the release included."""
    import model_signing
    from cryptography.hazmat.primitives.asymmetric import ec

    from retailinfer.release.signature import EcPrivateKey, EcPublicKey

    key = EcPrivateKey(ec.generate_private_key(getattr(ec, curve)()))
    private, public = theirs(tmp_path, key)
    signature = tmp_path / "model.sig"
    model_signing.signing.Config().use_elliptic_key_signer(private_key=private).sign(folder, signature)
    held = EcPublicKey.from_pem(public.read_bytes())
    assert verify_files(signature.read_bytes(), files_in(folder), held) == "fraud"
    for name, data in files_in(folder).items():
        with pytest.raises(IntegrityError, match=r"not the file"):
            verify_files(signature.read_bytes(), files_in(folder) | {name: data + b"x"}, held)
    with pytest.raises(SignatureError, match="by the key"):
        verify_files(signature.read_bytes(), files_in(folder), EcPrivateKey.generate().public)


def test_what_we_sign_we_verify(key):
    """Approvals that come later are no part of it; another file, a missing one, a renamed one are refused."""
    files = tiny()
    bundle = sign_files("fraud", files, key)
    assert verify_files(bundle, files | {"approval-x.sig": b"x"}, key.public) == "fraud"
    renamed = {("model2.onnx" if name == "model.onnx" else name): data for name, data in files.items()}
    fewer = {name: data for name, data in files.items() if name != "model.onnx"}
    for other in (files | {"more.txt": b""}, fewer, renamed, tiny("2.0")):
        with pytest.raises(IntegrityError):
            verify_files(bundle, other, key.public)


def test_every_changed_byte_of_a_bundle_is_refused_or_means_nothing(key):
    """What is signed, the signature and the types: a bundle that still verifies says the same."""
    files = tiny()
    bundle = sign_files("fraud", files, key)
    passed = 0
    for at in range(len(bundle)):
        changed = bundle[:at] + bytes([bundle[at] ^ 1]) + bundle[at + 1 :]
        try:
            assert verify_files(changed, files, key.public) == "fraud"
        except SignatureError:
            continue
        passed += 1
        assert json.loads(changed)["dsseEnvelope"]["payload"] == json.loads(bundle)["dsseEnvelope"]["payload"]
    assert (
        passed < 60
    )  # names of fields that nobody reads: tlogEntries, keyid; and of `hint`, which proves nothing


def resigned(key, **changes):
    """A bundle whose statement says something else, signed by the right key."""
    from retailinfer.release.envelope import pae
    from retailinfer.release.oms import PAYLOAD_TYPE

    bundle = json.loads(sign_files("fraud", tiny(), key))
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"])) | changes
    payload = json.dumps(statement).encode()
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    signature = base64.b64encode(key.sign(pae(PAYLOAD_TYPE, payload))).decode()
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = signature
    return json.dumps(bundle).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"_type": "https://in-toto.io/Statement/v2"},
        {"predicateType": "https://slsa.dev/provenance/v1"},
        {"subject": []},
        {"subject": [{"name": "fraud", "digest": {"sha256": "0" * 64}}]},
        {"subject": [{"name": "fraud", "digest": {"sha512": "0" * 128}}]},
        {"predicate": {}},
        {"predicate": {"serialization": {"method": "shards", "hash_type": "sha256"}, "resources": []}},
    ],
)
def test_statements_of_another_kind_are_refused(key, changes):
    """However well they are signed."""
    with pytest.raises((SignatureError, IntegrityError)):
        verify_files(resigned(key, **changes), tiny(), key.public)
    assert verify_files(resigned(key), tiny(), key.public) == "fraud"


@pytest.mark.parametrize(
    "bundle",
    [b"", b"{}", b"[" * 100_000, b"null", b"\xff", b"x" * ((1 << 20) + 1), b'{"mediaType":"x"}'],
)
def test_bytes_that_are_no_bundle_are_refused(key, bundle):
    """Each with a typed error."""
    with pytest.raises(SignatureError):
        verify_files(bundle, tiny(), key.public)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b | {"mediaType": "application/vnd.dev.sigstore.bundle.v0.2+json"},
        lambda b: b | {"verificationMaterial": {"certificate": {"rawBytes": "AAAA"}, "tlogEntries": []}},
        lambda b: b | {"verificationMaterial": {"publicKey": {"hint": "0" * 64}}},
        lambda b: b | {"dsseEnvelope": b["dsseEnvelope"] | {"payloadType": "text/plain"}},
        lambda b: b | {"dsseEnvelope": b["dsseEnvelope"] | {"signatures": []}},
        lambda b: (
            b | {"dsseEnvelope": b["dsseEnvelope"] | {"signatures": b["dsseEnvelope"]["signatures"] * 2}}
        ),
        lambda b: b | {"dsseEnvelope": b["dsseEnvelope"] | {"payload": b["dsseEnvelope"]["payload"] + "\n"}},
    ],
)
def test_bundles_of_another_kind_are_refused(key, change):
    """Another version, certificates, another key, none or two signatures, base64 with more in it."""
    bundle = json.loads(sign_files("fraud", tiny(), key))
    assert verify_files(json.dumps(bundle).encode(), tiny(), key.public)
    with pytest.raises(SignatureError):
        verify_files(json.dumps(change(bundle)).encode(), tiny(), key.public)
