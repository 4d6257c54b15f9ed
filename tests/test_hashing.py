"""The native hashes against other people's implementations: the xxhash package, and CPython's own SipHash-1-3."""

from __future__ import annotations

import subprocess
import sys

import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from retailinfer._native.hashing import siphash13, xxh64

MASK = 2**64 - 1
U64 = st.integers(0, MASK)


def siphash13_by_the_book(data: bytes, k0: int, k1: int) -> int:
    """SipHash with 1 compression and 3 finalisation rounds, written down from the paper."""
    v = [
        k0 ^ 0x736F6D6570736575,
        k1 ^ 0x646F72616E646F6D,
        k0 ^ 0x6C7967656E657261,
        k1 ^ 0x7465646279746573,
    ]

    def rotate(word: int, bits: int) -> int:
        return ((word << bits) | (word >> (64 - bits))) & MASK

    def rounds(n: int) -> None:
        for _ in range(n):
            v[0] = (v[0] + v[1]) & MASK
            v[2] = (v[2] + v[3]) & MASK
            v[1] = rotate(v[1], 13) ^ v[0]
            v[3] = rotate(v[3], 16) ^ v[2]
            v[0] = rotate(v[0], 32)
            v[2] = (v[2] + v[1]) & MASK
            v[0] = (v[0] + v[3]) & MASK
            v[1] = rotate(v[1], 17) ^ v[2]
            v[3] = rotate(v[3], 21) ^ v[0]
            v[2] = rotate(v[2], 32)

    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 0xFF])
    for i in range(0, len(padded), 8):
        word = int.from_bytes(padded[i : i + 8], "little")
        v[3] ^= word
        rounds(1)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(3)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


@given(data=st.binary(max_size=300), seed=U64)
@example(data=b"", seed=0)
@example(data=bytes(32), seed=MASK)
def test_xxh64_equals_the_xxhash_package(data: bytes, seed: int):
    """Hashed features have the value that everybody else's XXH64 gives."""
    assert xxh64(data, seed) == xxhash.xxh64_intdigest(data, seed=seed)


def test_xxh64_equals_the_xxhash_package_at_every_length():
    """No length around the 32-byte stripes and their tails is special."""
    data = bytes(range(256)) * 3
    for size in range(len(data)):
        assert xxh64(data[:size], size) == xxhash.xxh64_intdigest(data[:size], seed=size)


def test_xxh64_has_the_published_value():
    """A constant, so that an error shared with the package could not hide."""
    assert xxh64(b"") == 0xEF46DB3751D8E999


@given(data=st.binary(max_size=100), k0=U64, k1=U64)
def test_siphash13_equals_the_paper(data: bytes, k0: int, k1: int):
    """The index hash is SipHash-1-3, whatever the length and the key."""
    assert siphash13(data, k0, k1) == siphash13_by_the_book(data, k0, k1)


@pytest.mark.skipif(
    sys.hash_info.algorithm != "siphash13", reason="platform: this CPython hashes bytes with something else"
)
def test_siphash13_equals_cpythons_own_under_its_zero_key():
    """CPython with PYTHONHASHSEED=0 hashes bytes with SipHash-1-3 under the key (0, 0)."""
    code = "print([hash(bytes(range(n))) for n in range(1, 64)])"
    printed = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True
    ).stdout
    theirs = [value % 2**64 for value in eval(printed)]
    assert theirs == [siphash13(bytes(range(n)), 0, 0) for n in range(1, 64)]
