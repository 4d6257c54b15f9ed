"""Envelopes and statements: one encoding each, and every other one refused."""

from __future__ import annotations

import base64
import itertools
import json
import string

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailinfer.errors import ConfigError, ManifestError, SignatureError
from retailinfer.release.envelope import MAX_ENVELOPE_BYTES, decode_envelope, encode_envelope, pae
from retailinfer.release.statements import (
    Approval,
    Canary,
    Pointer,
    ReleaseStatement,
    Revocations,
    decode_statement,
    encode_statement,
    moment_text,
    seconds_of,
)

pytestmark = pytest.mark.requires("cryptography")

ISSUED = "2026-11-29T12:00:00Z"
RELEASE = ReleaseStatement(
    name="fraud",
    version="1.0",
    digest="a" * 64,
    manifest_sha256="b" * 64,
    environments=("production", "staging"),
    issued=ISSUED,
    expires="2027-11-29T12:00:00Z",
    fallbacks=("c" * 64,),
    requires={"onnxruntime": "1.30.1"},
)
APPROVAL = Approval(
    name="fraud", digest="a" * 64, environment="production", who="Ada", why="fewer declines", issued=ISSUED
)
REVOCATIONS = Revocations(
    epoch=1, seq=3, issued=ISSUED, releases={"d" * 64: "leak"}, keys={"e" * 64: "laptop stolen"}
)
POINTER = Pointer(
    name="fraud",
    environment="production",
    epoch=1,
    seq=7,
    issued=ISSUED,
    who="Ada",
    why="passed",
    champion="a" * 64,
    canary=Canary(digest="f" * 64, share=0.05),
)
ALL = [RELEASE, APPROVAL, REVOCATIONS, POINTER]
SIGNATURES = {"0" * 64: bytes(range(64)), "1" * 64: bytes(64)}
TYPE = "application/vnd.retailinfer.release.v1+json"


def test_pae_is_that_of_the_dsse_specification():
    """The example of its protocol page, and the lengths that keep two pairs apart."""
    assert (
        pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("a", b"1 b") != pae("a 3 1", b"b")


@given(payload=st.binary(min_size=1, max_size=200), sig=st.binary(min_size=1, max_size=100))
def test_an_envelope_reads_back(payload, sig):
    """And its JSON is what the DSSE specification calls an envelope."""
    data = encode_envelope(TYPE, payload, {"a" * 64: sig})
    assert decode_envelope(data) == (TYPE, payload, {"a" * 64: sig})
    plain = json.loads(data)
    assert list(plain) == ["payload", "payloadType", "signatures"]
    assert base64.b64decode(plain["payload"]) == payload


@pytest.mark.parametrize("size", [30, 31, 32])
def test_every_spare_bit_of_base64_is_refused(size):
    """Each of the other last characters that a careless decoder takes for the same bytes."""
    data = encode_envelope(TYPE, b"x" * size, {"0" * 64: b"s" * (size + 32)})
    alphabet = (string.ascii_letters + string.digits + "+/").encode()
    tried = 0
    for text in (base64.b64encode(b"x" * size), base64.b64encode(b"s" * (size + 32))):
        last = len(text.rstrip(b"=")) - 1
        for letter in alphabet:
            other = text[:last] + bytes([letter]) + text[last + 1 :]
            if other != text and base64.b64decode(other) == base64.b64decode(text):
                tried += 1
                with pytest.raises(SignatureError, match="canonical"):
                    decode_envelope(data.replace(text, other))
    assert tried == {30: 3, 31: 15, 32: 18}[size]  # two spare bits after two bytes, four after one


def test_an_envelope_may_have_exactly_its_largest_size():
    """64 KiB, and not a byte more."""
    for kind in ("x" * n for n in range(1, 5)):
        empty = len(encode_envelope(kind, b"xyz", {"0" * 64: b"sig"})) - 4
        payload = b"x" * ((MAX_ENVELOPE_BYTES - empty) // 4 * 3)
        data = encode_envelope(kind, payload, {"0" * 64: b"sig"})
        if len(data) == MAX_ENVELOPE_BYTES:
            assert decode_envelope(data).payload == payload
            break
    else:
        pytest.fail("no envelope of that size was made")
    with pytest.raises(SignatureError, match="at most"):
        encode_envelope(kind + "x", payload, {"0" * 64: b"sig"})


def test_every_place_for_white_space_is_refused():
    """Each of JSON's blanks, put at each place of the envelope."""
    data = encode_envelope(TYPE, b"payload", SIGNATURES)
    for at, blank in itertools.product(range(len(data) + 1), (b" ", b"\t", b"\n", b"\r", b"\0")):
        with pytest.raises(SignatureError):
            decode_envelope(data[:at] + blank + data[at:])


def test_every_truncation_is_refused():
    """From nothing to one byte less."""
    data = encode_envelope(TYPE, b"payload", SIGNATURES)
    for end in range(len(data)):
        with pytest.raises(SignatureError):
            decode_envelope(data[:end])


def test_every_single_byte_change_is_refused_or_another_envelope():
    """What a changed byte still lets through differs in what is signed, in a signature or in the name of a key."""
    data = encode_envelope(TYPE, b"payload", SIGNATURES)
    there = decode_envelope(data)
    for at in range(len(data)):
        for flip in range(1, 256):
            changed = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
            try:
                found = decode_envelope(changed)
            except SignatureError:
                continue
            assert found != there
            assert encode_envelope(*found) == changed


def spelled(payload=b"payload", kind=TYPE, signatures=None, **more):
    """The envelope of somebody who writes JSON himself."""
    value = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": kind,
        "signatures": [{"keyid": "0" * 64, "sig": "AAAA"}] if signatures is None else signatures,
    } | more
    return json.dumps(value, separators=(",", ":")).encode()


ONE = {"keyid": "0" * 64, "sig": "AAAA"}
TWO = {"keyid": "1" * 64, "sig": "AAAA"}


def test_the_spelling_of_the_variants_is_otherwise_the_right_one():
    """So that each variant below is refused for what it says."""
    decode_envelope(spelled())
    decode_envelope(spelled(signatures=[ONE, TWO]))


@pytest.mark.parametrize(
    "data",
    [
        spelled(signatures=[]),
        spelled(signatures=[ONE, ONE]),
        spelled(signatures=[TWO, ONE]),
        spelled(signatures=[ONE | {"cert": "x"}]),
        spelled(signatures=[{"sig": "AAAA", "keyid": "0" * 64}]),
        spelled(signatures=[{"sig": "AAAA"}]),
        spelled(signatures=[ONE | {"keyid": "A" * 64}]),
        spelled(signatures=[ONE | {"keyid": "0" * 63}]),
        spelled(signatures=[ONE | {"sig": ""}]),
        spelled(signatures=[ONE | {"sig": "AA=="}]) + b"\n",
        spelled(signatures=[ONE | {"sig": "AA-_"}]),
        spelled(signatures=[ONE | {"sig": "AAA"}]),
        spelled(signatures=[ONE | {"sig": "A==="}]),
        spelled(signatures=[{"keyid": f"{i:064x}", "sig": "AAAA"} for i in range(17)]),
        spelled(kind=""),
        spelled(kind="Application/json"),
        spelled(kind='a"b'),
        spelled(kind="a" * 200),
        spelled(payload=b""),
        spelled(more=1),
        json.dumps(json.loads(spelled())).encode(),
        b"\xef\xbb\xbf" + spelled(),
        spelled().replace(b"payloadType", b"payload\\u0054ype"),
        b"{}",
        b"null",
        b"[" * 10_000,
        b"",
        b"x" * (MAX_ENVELOPE_BYTES + 1),
        spelled(payload=b"x" * 50_000),
    ],
)
def test_other_spellings_are_refused(data):
    """Unknown fields, another order, duplicates, other alphabets, missing padding, too much of anything."""
    with pytest.raises(SignatureError):
        decode_envelope(data)


@pytest.mark.parametrize("statement", ALL, ids=lambda s: type(s).__name__)
def test_a_statement_reads_back(statement):
    """And in its one encoding only."""
    data = encode_statement(statement)
    assert decode_statement(type(statement), data) == statement
    for other in (
        data + b"\n",
        data.replace(b":", b": ", 1),
        b" " + data,
        data[:-1] + b',"more":1}',
        data[:-1],
    ):
        with pytest.raises(ManifestError):
            decode_statement(type(statement), other)


@pytest.mark.parametrize("statement", ALL, ids=lambda s: type(s).__name__)
def test_every_changed_byte_of_a_statement_is_refused_or_seen(statement):
    """No two texts mean one statement."""
    data = encode_statement(statement)
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        try:
            found = decode_statement(type(statement), changed)
        except ManifestError:
            continue
        assert found != statement


@pytest.mark.parametrize("one", ALL, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("other", ALL, ids=lambda s: type(s).__name__)
def test_no_statement_reads_as_another_kind(one, other):
    """Their fields differ, beside their media types."""
    if one is not other:
        assert one.payload_type != other.payload_type
        with pytest.raises(ManifestError):
            decode_statement(type(other), encode_statement(one))


@pytest.mark.parametrize(
    ("statement", "changes"),
    [
        (RELEASE, {"name": "../fraud"}),
        (RELEASE, {"version": "a/b"}),
        (RELEASE, {"digest": "A" * 64}),
        (RELEASE, {"environments": ()}),
        (RELEASE, {"environments": ("Production",)}),
        (RELEASE, {"issued": "2026-02-31T00:00:00Z"}),
        (RELEASE, {"issued": "2026-11-29"}),
        (RELEASE, {"expires": ISSUED}),
        (RELEASE, {"not_before": "2028-01-01T00:00:00Z"}),
        (RELEASE, {"fallbacks": ("c",)}),
        (APPROVAL, {"environment": ""}),
        (APPROVAL, {"who": ""}),
        (APPROVAL, {"report": "x"}),
        (REVOCATIONS, {"seq": 0}),
        (REVOCATIONS, {"seq": 2**63}),
        (REVOCATIONS, {"epoch": 0}),
        (REVOCATIONS, {"keys": {"x": "y"}}),
        (POINTER, {"seq": -1}),
        (POINTER, {"champion": ""}),
        (POINTER, {"canary": Canary(digest="f" * 64, share=1.5)}),
        (POINTER, {"canary": Canary(digest="f" * 64, share=float("nan"))}),
        (POINTER, {"expires": "2020-01-01T00:00:00Z"}),
    ],
)
def test_statements_that_contradict_themselves_are_not_written(statement, changes):
    """Who signs hears it, not who loads."""
    with pytest.raises(ManifestError):
        encode_statement(msgspec.structs.replace(statement, **changes))


@given(st.integers(0, 4_000_000_000))
def test_moments_read_back(seconds):
    """To the second."""
    assert seconds_of(moment_text(seconds)) == seconds


# ---- signatures ------------------------------------------------------------------------------------------------------


def test_signatures_hold_and_changed_ones_do_not():
    """Every byte of the signature, the message and the key counts."""
    from retailinfer.release.signature import PrivateKey, verify

    key = PrivateKey.generate()
    signature = key.sign(b"message")
    assert verify(key.public, b"message", signature)
    for at in range(64):
        assert not verify(
            key.public, b"message", signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1 :]
        )
        assert not verify(key.public, b"message", signature[:at])
    for at in range(32):
        public = key.public[:at] + bytes([key.public[at] ^ 1]) + key.public[at + 1 :]
        assert not verify(public, b"message", signature)
    assert not verify(key.public, b"messagf", signature)
    assert not verify(key.public, b"message", signature + b"\0")
    assert not verify(b"", b"message", signature)


def test_a_signature_has_no_second_form():
    """S + L, which a lax verifier takes for S, is refused."""
    from retailinfer.release.signature import PrivateKey, verify

    key = PrivateKey.generate()
    signature = key.sign(b"m")
    order = 2**252 + 27742317777372353535851937790883648493
    again = int.from_bytes(signature[32:], "little") + order
    assert not verify(key.public, b"m", signature[:32] + again.to_bytes(32, "little"))


def test_rfc_8032_vectors_hold():
    """Test 1 to 3 of the RFC: the algorithm is the one that everybody else means by its name."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from retailinfer.release.signature import PrivateKey, verify

    vectors = [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            (
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
                "d25bf5f0595bbe24655141438e7a100b"
            ),
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            (
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
                "387b2eaeb4302aeeb00d291612bb0c00"
            ),
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            (
                "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
                "4a7c15e9716ed28dc027beceea1ec40a"
            ),
        ),
    ]
    for secret, public, message, signature in vectors:
        key = PrivateKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret)))
        assert key.public.hex() == public
        assert key.sign(bytes.fromhex(message)).hex() == signature
        assert verify(key.public, bytes.fromhex(message), bytes.fromhex(signature))


@pytest.mark.parametrize("password", [None, "correct horse"])
def test_a_key_reads_back_from_pem(password):
    """With and without a password; the wrong one, a missing one and one too many are told apart from a broken file."""
    from retailinfer.release.signature import EcPrivateKey, PrivateKey

    for kind in (PrivateKey, EcPrivateKey):
        key = kind.generate()
        pem = key.to_pem(password)
        again = kind.from_pem(pem, password)
        assert again.to_pem(None) == key.to_pem(None)
        assert (b"ENCRYPTED" in pem) == (password is not None)
        for wrong in ("another", None if password else "one"):
            with pytest.raises(ConfigError) as caught:
                kind.from_pem(pem, wrong)
            assert "MC4CAQAw" not in str(caught.value)
        with pytest.raises(ConfigError):
            kind.from_pem(b"hello", password)
        with pytest.raises(ConfigError):
            kind.from_pem(b"x" * 100_000, password)


def test_a_key_of_another_algorithm_is_refused():
    """An Ed25519 key is not an EC one, nor the other way round."""
    from retailinfer.release.signature import EcPrivateKey, EcPublicKey, PrivateKey

    with pytest.raises(ConfigError, match="Ed25519"):
        PrivateKey.from_pem(EcPrivateKey.generate().to_pem())
    with pytest.raises(ConfigError, match="curve"):
        EcPrivateKey.from_pem(PrivateKey.generate().to_pem())
    with pytest.raises(ConfigError, match="PEM"):
        EcPublicKey.from_pem(b"nothing")


def test_a_key_shows_itself_nowhere():
    """Neither in its repr nor in a pickle."""
    import pickle

    from retailinfer.release.signature import EcPrivateKey, PrivateKey

    for kind in (PrivateKey, EcPrivateKey):
        key = kind.generate()
        assert len(repr(key)) < 40
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(key)


def test_signatures_can_be_added_one_after_the_other():
    """By several people; the envelope stays canonical, and signing twice changes nothing."""
    from retailinfer.release.signature import PrivateKey, add_signatures, sign_statement, verify

    keys = [PrivateKey.generate() for _ in range(3)]
    together = sign_statement(RELEASE, keys)
    one_by_one = sign_statement(RELEASE, keys[2:])
    for key in [*keys, keys[0]]:
        one_by_one = add_signatures(one_by_one, [key])
    assert one_by_one == together
    envelope = decode_envelope(together)
    for key in keys:
        assert verify(key.public, envelope.signed, envelope.signatures[key.id])


def test_keys_on_other_curves_and_weak_pems_are_refused(tmp_path):
    """What model-signing does not take, a key of another sort as a public one, an empty password."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from retailinfer.authoring.signing import read_key
    from retailinfer.release.signature import EcPrivateKey, EcPublicKey, PrivateKey

    other = ec.generate_private_key(ec.SECP256K1())
    with pytest.raises(ConfigError, match="secp256k1"):
        EcPrivateKey(other)
    pem = (
        PrivateKey.generate()
        ._key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(ConfigError, match="elliptic curve"):
        EcPublicKey.from_pem(pem)
    with pytest.raises(ConfigError, match="at most"):
        EcPublicKey.from_pem(b"x" * 100_000)
    with pytest.raises(ConfigError, match="empty"):
        PrivateKey.generate().to_pem("")
    key = PrivateKey.generate()
    assert read_key(key) is key
    (tmp_path / "key.pem").write_bytes(key.to_pem())
    assert read_key(tmp_path / "key.pem").id == key.id
