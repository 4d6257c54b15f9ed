"""Envelopes of signed statements: DSSE, in exactly one spelling.

{"payload":"<base64>","payloadType":"<media type>","signatures":[{"keyid":"<64 hex>","sig":"<base64>"},...]}

Rules:
  * An envelope has one encoding: no white space, these fields in this order, padded base64 whose spare bits are zero,
    signatures sorted by key, one of each key. Anything else is refused, so that no changed byte goes unnoticed.
  * A signature covers `pae(type, payload)`: the type too, so that a statement of one kind never passes as another.
  * `keyid` says which key to try. It proves nothing.
  * Taking an envelope apart uses a pattern over at most 64 KiB and base64, no parser; the payload stays bytes here.
Who may sign what is trust.py; what payloads say is statements.py; the mathematics is signature.py.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from typing import NamedTuple

from retailinfer.errors import SignatureError, clip

__all__ = ["MAX_ENVELOPE_BYTES", "Envelope", "decode_envelope", "encode_envelope", "pae"]

MAX_ENVELOPE_BYTES = 1 << 16
MAX_SIGNATURES = 16

_BASE64 = rb"[A-Za-z0-9+/]+={0,2}"
_TYPE = rb"[a-z0-9][a-z0-9.+/-]{0,126}"
_KEY_ID = rb"[0-9a-f]{64}"
_ONE = rb'\{"keyid":"(' + _KEY_ID + rb')","sig":"(' + _BASE64 + rb')"\}'
_ENVELOPE = re.compile(
    rb'\{"payload":"(' + _BASE64 + rb')","payloadType":"(' + _TYPE + rb')","signatures":\[(.*)\]\}', re.DOTALL
)
_SIGNATURE = re.compile(_ONE)


class Envelope(NamedTuple):
    """A payload as bytes, its type, and key id -> signature; nothing of it has been verified."""

    payload_type: str
    payload: bytes
    signatures: dict[str, bytes]

    @property
    def signed(self) -> bytes:
        """The bytes that every signature of it is over."""
        return pae(self.payload_type, self.payload)


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are signed. No two pairs of type and payload share one."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def encode_envelope(payload_type: str, payload: bytes, signatures: Mapping[str, bytes]) -> bytes:
    """The one encoding of an envelope. `signatures`: key id -> signature. Raises: SignatureError."""
    ones = b",".join(
        b'{"keyid":"%b","sig":"%b"}' % (key.encode(), _base64(signatures[key])) for key in sorted(signatures)
    )
    data = b'{"payload":"%b","payloadType":"%b","signatures":[%b]}' % (
        _base64(payload),
        payload_type.encode(),
        ones,
    )
    decode_envelope(data)  # what is written can be read back, or fails here
    return data


def decode_envelope(data: bytes) -> Envelope:
    """Take an envelope apart. Raises: SignatureError for every other spelling of it than `encode_envelope`'s."""
    if len(data) > MAX_ENVELOPE_BYTES:
        raise SignatureError(
            f"Expected an envelope of at most {MAX_ENVELOPE_BYTES} bytes, got {len(data)}", hint=_HINT
        )
    found = _ENVELOPE.fullmatch(data)
    if found is None:
        raise SignatureError(f"Expected a signed envelope, got {clip(data)}", hint=_HINT)
    payload = _from_base64(found[1])
    signatures: dict[str, bytes] = {}
    at, ones = 0, found[3]
    while one := _SIGNATURE.match(ones, at):
        key = one[1].decode()
        if signatures and key <= next(reversed(signatures)):
            raise SignatureError(
                "an envelope's signatures are not sorted, or one key signed twice", hint=_HINT
            )
        signatures[key] = _from_base64(one[2])
        at = one.end() + 1
        if ones[one.end() : at] != b",":
            break
    if at != len(ones) + 1 or not 0 < len(signatures) <= MAX_SIGNATURES:
        raise SignatureError(
            f"Expected 1 to {MAX_SIGNATURES} signatures in an envelope, got {clip(ones)}", hint=_HINT
        )
    return Envelope(found[2].decode(), payload, signatures)


_HINT = "sign it again; envelopes are never edited, and have one encoding only"


def _base64(data: bytes) -> bytes:
    return binascii.b2a_base64(data, newline=False)


def _from_base64(text: bytes) -> bytes:
    """Raises: SignatureError when another text would give the same bytes."""
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        data = b""
    if _base64(data) != text:  # spare bits that are set, padding that is missing
        raise SignatureError(f"an envelope holds base64 that is not canonical: {clip(text)}", hint=_HINT)
    return data
