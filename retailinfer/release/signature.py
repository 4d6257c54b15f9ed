"""Keys and signatures: the one file that knows the `cryptography` package (`pip install 'retailinfer[sign]'`).

Rules:
  * Statements are signed with Ed25519: a signature has one form, and nobody can make a second one out of it. ECDSA is here for
    the OpenSSF model-signing format alone (oms.py).
  * The algorithm comes from the record of the key, never from a message.
  * Private keys are PEM (PKCS #8), with or without a password. Public ones are 32 bytes, in trust files as base64.
Import this inside functions only: it brings OpenSSL.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from retailinfer.errors import ConfigError, clip
from retailinfer.release.envelope import decode_envelope, encode_envelope, pae
from retailinfer.release.statements import Statement, encode_statement

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
except ImportError as exc:
    raise ConfigError(
        "signatures need the package cryptography", hint="pip install 'retailinfer[sign]'"
    ) from exc

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

__all__ = [
    "EcPrivateKey",
    "EcPublicKey",
    "PrivateKey",
    "add_signatures",
    "key_id",
    "sign_payload",
    "sign_statement",
    "verify",
]

MAX_PEM_BYTES = 1 << 16
CURVES = ("secp256r1", "secp384r1", "secp521r1")


def key_id(public: bytes) -> str:
    """The name of a key in envelopes: SHA-256 of its public bytes."""
    return hashlib.sha256(public).hexdigest()


class PrivateKey:
    """An Ed25519 key that signs. Its `repr` shows the id only."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()
        self.id = key_id(self.public)

    @classmethod
    def generate(cls) -> PrivateKey:
        """A new key, out of the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, data: bytes, password: str | None = None) -> PrivateKey:
        """Read what `to_pem` or OpenSSL wrote. Raises: ConfigError; never shows the key."""
        key = _load_pem(data, password)
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(
                f"Expected an Ed25519 key, got `{type(key).__name__}`",
                hint="make one with `retailinfer keygen`",
            )
        return cls(key)

    def to_pem(self, password: str | None = None) -> bytes:
        """PKCS #8, encrypted when there is a password."""
        return _to_pem(self._key, password)

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"<PrivateKey {self.id[:12]}>"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled")


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether an Ed25519 signature holds. Never raises for hostile bytes."""
    if len(public) != 32 or len(signature) != 64:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def sign_payload(payload_type: str, payload: bytes, keys: Iterable[PrivateKey]) -> bytes:
    """An envelope, signed by every key. Raises: SignatureError."""
    message = pae(payload_type, payload)
    return encode_envelope(payload_type, payload, {key.id: key.sign(message) for key in keys})


def sign_statement(statement: Statement, keys: Iterable[PrivateKey]) -> bytes:
    """The same for a statement. Raises: SignatureError, ManifestError when the statement contradicts itself."""
    return sign_payload(statement.payload_type, encode_statement(statement), keys)


def add_signatures(envelope: bytes, keys: Iterable[PrivateKey]) -> bytes:
    """The same envelope with more signatures, so that several people can sign one after the other.

    Raises: SignatureError. Whoever signs has read the payload; nothing of it is checked here.
    """
    there = decode_envelope(envelope)
    more = {key.id: key.sign(there.signed) for key in keys}
    return encode_envelope(there.payload_type, there.payload, {**there.signatures, **more})


# ---- ECDSA, for model-signing ----------------------------------------------------------------------------------------


class EcPublicKey:
    """A key on P-256, P-384 or P-521, as OpenSSF's `model_signing` takes them. `hint`: how its bundles name it."""

    def __init__(self, key: EllipticCurvePublicKey) -> None:
        self._key = _on_known_curve(key)
        self.hint = hashlib.sha256(self.to_pem()).hexdigest()

    @classmethod
    def from_pem(cls, data: bytes) -> EcPublicKey:
        """Raises: ConfigError."""
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey  # noqa: PLC0415 - as below
        from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415 - costs 30 ms

        if len(data) > MAX_PEM_BYTES:
            raise ConfigError(f"Expected a key of at most {MAX_PEM_BYTES} bytes, got {len(data)}")
        try:
            key = load_pem_public_key(data)
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise ConfigError("Expected a public key as PEM, and this is none") from exc
        if not isinstance(key, EllipticCurvePublicKey):
            raise ConfigError(f"Expected a key on an elliptic curve, got `{type(key).__name__}`")
        return cls(key)

    def to_pem(self) -> bytes:
        """SubjectPublicKeyInfo."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415 - as above

        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether a signature (ASN.1) holds."""
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA  # noqa: PLC0415 - for this format only

        try:
            self._key.verify(signature, message, ECDSA(_hash_of(self._key.curve.key_size)))
        except (InvalidSignature, ValueError):
            return False
        return True


class EcPrivateKey:
    """The other half of `EcPublicKey`."""

    def __init__(self, key: EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = EcPublicKey(key.public_key())

    @classmethod
    def generate(cls) -> EcPrivateKey:
        """A new key on P-256."""
        from cryptography.hazmat.primitives.asymmetric.ec import (  # noqa: PLC0415 - as above
            SECP256R1,
            generate_private_key,
        )

        return cls(generate_private_key(SECP256R1()))

    @classmethod
    def from_pem(cls, data: bytes, password: str | None = None) -> EcPrivateKey:
        """Raises: ConfigError; never shows the key."""
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey  # noqa: PLC0415 - as above

        key = _load_pem(data, password)
        if not isinstance(key, EllipticCurvePrivateKey):
            raise ConfigError(f"Expected a key on an elliptic curve, got `{type(key).__name__}`")
        return cls(key)

    def to_pem(self, password: str | None = None) -> bytes:
        """PKCS #8, encrypted when there is a password."""
        return _to_pem(self._key, password)

    def sign(self, message: bytes) -> bytes:
        """ASN.1."""
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA  # noqa: PLC0415 - as above

        return self._key.sign(message, ECDSA(_hash_of(self._key.curve.key_size)))

    def __repr__(self) -> str:
        return f"<EcPrivateKey {self.public.hint[:12]}>"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled")


def _on_known_curve(key: EllipticCurvePublicKey) -> EllipticCurvePublicKey:
    if key.curve.name not in CURVES:
        raise ConfigError(f"Expected a key on one of {CURVES}, got one on {clip(key.curve.name)}")
    return key


def _hash_of(bits: int) -> HashAlgorithm:
    """The hash that goes with a curve, by the rule of model-signing."""
    from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512  # noqa: PLC0415 - as above

    return SHA256() if bits <= 256 else SHA384() if bits <= 384 else SHA512()


# ---- PEM -------------------------------------------------------------------------------------------------------------


def _load_pem(data: bytes, password: str | None) -> object:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - costs 30 ms

    if len(data) > MAX_PEM_BYTES:
        raise ConfigError(f"Expected a key of at most {MAX_PEM_BYTES} bytes, got {len(data)}")
    try:
        return load_pem_private_key(data, None if password is None else password.encode())
    except TypeError as exc:  # a password too many or too few
        raise ConfigError(
            "the private key needs a password" if password is None else "the private key has no password"
        ) from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigError(
            "Expected a private key as PEM (PKCS #8) and its password, and this is not one"
        ) from exc


def _to_pem(key: Ed25519PrivateKey | EllipticCurvePrivateKey, password: str | None) -> bytes:
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415 - as above
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    if password == "":
        raise ConfigError("Expected a password, got an empty one")
    how = NoEncryption() if password is None else BestAvailableEncryption(password.encode())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)
