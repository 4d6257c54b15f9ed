/* Two hashes, for two purposes that must not be mixed up. Pure C, no Python.h, all functions static inline.
 *
 *   ri_xxh64      the standard XXH64: the same value on every machine, for ever. Hashed *features* use it, and nothing else does.
 *   ri_siphash13  SipHash-1-3 under a random key: for indexes, so that keys crafted by a client cannot collide.
 *
 * Rules:
 *   - Neither reads a byte outside data[0, size).
 *   - ri_keyed_short hashes the two words that ri_pack_short makes of a short key, which a table stores as they are, so that
 *     one load serves the hash and the comparison.
 *   - A SipHash value never leaves the process: no file, no answer.
 * The index over these is table.h; the Python view of them is hashing.pyx.
 */
#ifndef RETAILINFER_HASHING_H
#define RETAILINFER_HASHING_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "retailinfer stores little-endian words; this machine is big-endian"
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#define RI_INLINE static __forceinline
#else
#define RI_INLINE static inline __attribute__((always_inline, unused))
#endif

RI_INLINE uint64_t ri_load64(const void *p) { uint64_t v; memcpy(&v, p, 8); return v; }
RI_INLINE uint32_t ri_load32(const void *p) { uint32_t v; memcpy(&v, p, 4); return v; }
RI_INLINE uint64_t ri_rotl64(uint64_t v, int bits) { return (v << bits) | (v >> (64 - bits)); }

/* ---- XXH64 ----------------------------------------------------------------------------------------------------- */

#define RI_XXP1 0x9E3779B185EBCA87ULL
#define RI_XXP2 0xC2B2AE3D27D4EB4FULL
#define RI_XXP3 0x165667B19E3779F9ULL
#define RI_XXP4 0x85EBCA77C2B2AE63ULL
#define RI_XXP5 0x27D4EB2F165667C5ULL

RI_INLINE uint64_t ri_xxh64_round(uint64_t acc, uint64_t word) {
    return ri_rotl64(acc + word * RI_XXP2, 31) * RI_XXP1;
}

RI_INLINE uint64_t ri_xxh64_merge(uint64_t hash, uint64_t acc) {
    return (hash ^ ri_xxh64_round(0, acc)) * RI_XXP1 + RI_XXP4;
}

static inline uint64_t ri_xxh64(const void *data, size_t size, uint64_t seed) {
    const uint8_t *p = (const uint8_t *)data;
    size_t left = size;
    uint64_t hash;
    if (left >= 32) {
        uint64_t a = seed + RI_XXP1 + RI_XXP2, b = seed + RI_XXP2, c = seed, d = seed - RI_XXP1;
        do {
            a = ri_xxh64_round(a, ri_load64(p));
            b = ri_xxh64_round(b, ri_load64(p + 8));
            c = ri_xxh64_round(c, ri_load64(p + 16));
            d = ri_xxh64_round(d, ri_load64(p + 24));
            p += 32;
            left -= 32;
        } while (left >= 32);
        hash = ri_rotl64(a, 1) + ri_rotl64(b, 7) + ri_rotl64(c, 12) + ri_rotl64(d, 18);
        hash = ri_xxh64_merge(hash, a);
        hash = ri_xxh64_merge(hash, b);
        hash = ri_xxh64_merge(hash, c);
        hash = ri_xxh64_merge(hash, d);
    } else {
        hash = seed + RI_XXP5;
    }
    hash += (uint64_t)size;
    for (; left >= 8; p += 8, left -= 8)
        hash = ri_rotl64(hash ^ ri_xxh64_round(0, ri_load64(p)), 27) * RI_XXP1 + RI_XXP4;
    if (left >= 4) {
        hash = ri_rotl64(hash ^ (ri_load32(p) * RI_XXP1), 23) * RI_XXP2 + RI_XXP3;
        p += 4;
        left -= 4;
    }
    for (; left > 0; ++p, --left)
        hash = ri_rotl64(hash ^ (*p * RI_XXP5), 11) * RI_XXP1;
    hash = (hash ^ (hash >> 33)) * RI_XXP2;
    hash = (hash ^ (hash >> 29)) * RI_XXP3;
    return hash ^ (hash >> 32);
}

/* ---- SipHash-1-3 ------------------------------------------------------------------------------------------------ */

typedef struct {
    uint64_t k0, k1;
} ri_siphash_key;

#define RI_SIPROUND(v0, v1, v2, v3)                                                                                    \
    do {                                                                                                               \
        v0 += v1; v2 += v3; v1 = ri_rotl64(v1, 13) ^ v0; v3 = ri_rotl64(v3, 16) ^ v2; v0 = ri_rotl64(v0, 32);          \
        v2 += v1; v0 += v3; v1 = ri_rotl64(v1, 17) ^ v2; v3 = ri_rotl64(v3, 21) ^ v0; v2 = ri_rotl64(v2, 32);          \
    } while (0)

/* The last 0..7 bytes as one little-endian word. */
RI_INLINE uint64_t ri_load_tail(const uint8_t *p, size_t size) {
    if (size >= 4) /* two loads that overlap in the middle: no byte outside is touched */
        return (uint64_t)ri_load32(p) | ((uint64_t)ri_load32(p + size - 4) << (8 * (size - 4)));
    if (size == 0)
        return 0;
    return (uint64_t)p[0] | ((uint64_t)p[size >> 1] << (8 * (size >> 1))) | ((uint64_t)p[size - 1] << (8 * (size - 1)));
}

/* A key of at most 15 bytes as two words: its bytes, zeros, and its size in the last byte. No two keys share them. */
RI_INLINE void ri_pack_short(const void *data, size_t size, uint64_t *w0, uint64_t *w1) {
    const uint8_t *p = (const uint8_t *)data;
    if (size >= 8) {
        *w0 = ri_load64(p);
        *w1 = (size > 8 ? ri_load64(p + size - 8) >> (8 * (16 - size)) : 0) | ((uint64_t)size << 56);
    } else {
        *w0 = ri_load_tail(p, size);
        *w1 = (uint64_t)size << 56;
    }
}

RI_INLINE uint64_t ri_siphash13_end(uint64_t v0, uint64_t v1, uint64_t v2, uint64_t v3, uint64_t last) {
    v3 ^= last;
    RI_SIPROUND(v0, v1, v2, v3);
    v0 ^= last;
    v2 ^= 0xff;
    RI_SIPROUND(v0, v1, v2, v3);
    RI_SIPROUND(v0, v1, v2, v3);
    RI_SIPROUND(v0, v1, v2, v3);
    return (v0 ^ v1) ^ (v2 ^ v3);
}

static inline uint64_t ri_siphash13(const void *data, size_t size, ri_siphash_key key) {
    const uint8_t *p = (const uint8_t *)data, *end = p + (size & ~(size_t)7);
    uint64_t v0 = 0x736f6d6570736575ULL ^ key.k0, v1 = 0x646f72616e646f6dULL ^ key.k1;
    uint64_t v2 = 0x6c7967656e657261ULL ^ key.k0, v3 = 0x7465646279746573ULL ^ key.k1;
    for (; p != end; p += 8) {
        uint64_t word = ri_load64(p);
        v3 ^= word;
        RI_SIPROUND(v0, v1, v2, v3);
        v0 ^= word;
    }
    return ri_siphash13_end(v0, v1, v2, v3, ((uint64_t)size << 56) | ri_load_tail(p, size & 7));
}

/* Hash of a key of at most 15 bytes, out of the words that ri_pack_short made of it: one wide multiplication under a random
 * key, a quarter of SipHash's time. It is no match for somebody who can see hashes and insert keys of his choice, so it serves
 * immutable tables only: their keys come from the shop's own catalogue, and every probe is bounded by the longest of the build. */
RI_INLINE uint64_t ri_keyed_short(uint64_t w0, uint64_t w1, ri_siphash_key key) {
    uint64_t a = w0 ^ key.k0, b = w1 ^ key.k1 ^ 0x9E3779B97F4A7C15ULL, hash;
#if defined(__SIZEOF_INT128__)
    unsigned __int128 m = (unsigned __int128)a * b;
    hash = (uint64_t)m ^ (uint64_t)(m >> 64);
#else
    hash = (a ^ ri_rotl64(b, 32)) * RI_XXP1 ^ ri_rotl64(b * RI_XXP2 ^ a, 31);
#endif
    hash *= RI_XXP1; /* a factor near zero must not leave the tag or the slot empty of the other word */
    return hash ^ (hash >> 32);
}

#endif
