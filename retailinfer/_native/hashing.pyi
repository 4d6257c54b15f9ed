"""The two hashes of the native core. What each is for: hashing.h."""

def xxh64(data: bytes, seed: int = 0) -> int:
    """Return the standard XXH64 of `data` as an unsigned 64-bit integer. Holds the GIL. `seed` is in [0, 2**64)."""

def siphash13(data: bytes, k0: int, k1: int) -> int:
    """Return SipHash-1-3 of `data` under the key (k0, k1) as an unsigned 64-bit integer. Holds the GIL."""
