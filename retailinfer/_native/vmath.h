/* Elementary functions in double, the same bits on every compiler, C library and machine.
 *
 * Rules:
 *   - Only + - * / and sqrt, which IEEE 754 fixes to the bit; no libm, no fused multiply-add (-ffp-contract=off).
 *   - Every expression here stands once more in reference.py, operation by operation: change both or none.
 * Accuracy (measured in tests/test_reference_math.py): log1p within 1 ulp of the true value, sine and cosine within 2.1, so
 * that one rounding to float32 gives what any good libm gives.
 */
#ifndef RETAILINFER_VMATH_H
#define RETAILINFER_VMATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__FAST_MATH__)
#error "the feature program must not be compiled with -ffast-math: equal bits are its contract"
#endif
#if defined(__FMA__) && (defined(__x86_64__) || defined(_M_X64))
#error "the feature program is compiled for the baseline ISA only: contraction would change bits"
#endif

static inline uint64_t ri_bits(double x) {
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline double ri_from_bits(uint64_t u) {
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* log(1 + x) for x > -1. 1 + x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)]; then with s = f / (2 + f),
 * log(1 + f) = f - f^2/2 + s (f^2/2 + R), R = 2 s^2 (1/3 + s^2/5 + s^4/7 + ...), the series of atanh. */
static inline double ri_log1p(double x) {
    const double ln2_hi = 0x1.62e42fee00000p-1, ln2_lo = 0x1.a39ef35793c76p-33;
    double f, c = 0.0, k = 0.0;
    if (x > -0.29289321881345254 && x < 0.41421356237309503) {
        if (x > -0x1p-54 && x < 0x1p-54) return x; /* also keeps -0.0 */
        f = x;
    } else {
        double u = 1.0 + x;
        if (!(u <= 1.7976931348623157e308)) return u; /* inf, NaN */
        /* what 1 + x lost when it was rounded, relative to u */
        c = (x >= 1.0 ? 1.0 - (u - x) : x - (u - 1.0)) / u;
        /* move the cut of the exponent from 1 to sqrt(2): subtract its mantissa before reading the exponent */
        uint64_t b = ri_bits(u);
        int64_t e = (int64_t)((b + (0x3ff0000000000000ULL - 0x3fe6a09e667f3bcdULL)) >> 52) - 1023;
        f = ri_from_bits(b - ((uint64_t)e << 52)) - 1.0;
        k = (double)e;
    }
    double h = 0.5 * f * f, s = f / (2.0 + f), z = s * s, w = z * z;
    double odd = z * (0x1.5555555555555p-1 + w * (0x1.2492492492492p-2 + w * (0x1.745d1745d1746p-3 +
                 w * (0x1.1111111111111p-3 + w * (0x1.af286bca1af28p-4 + w * 0x1.642c8590b2164p-4)))));
    double even = w * (0x1.999999999999ap-2 + w * (0x1.c71c71c71c71cp-3 + w * (0x1.3b13b13b13b14p-3 +
                  w * (0x1.e1e1e1e1e1e1ep-4 + w * 0x1.8618618618618p-4))));
    double r = odd + even;
    return k * ln2_hi - ((h - (s * (h + r) + (k * ln2_lo + c))) - f);
}

/* sin(2 pi k / n) and cos(2 pi k / n) for 0 <= k < n: quadrant and octant are cut off in integers, so the argument of the
 * two Taylor sums is in [0, pi/4] and no reduction error exists. */
static inline double ri_sin_taylor(double y) {
    double z = y * y;
    return y + y * z * (-0x1.5555555555555p-3 + z * (0x1.1111111111111p-7 + z * (-0x1.a01a01a01a01ap-13 +
           z * (0x1.71de3a556c734p-19 + z * (-0x1.ae64567f544e4p-26 + z * (0x1.6124613a86d09p-33 +
           z * -0x1.ae7f3e733b81fp-41))))));
}

static inline double ri_cos_taylor(double y) {
    double z = y * y;
    return 1.0 + z * (-0.5 + z * (0x1.5555555555555p-5 + z * (-0x1.6c16c16c16c17p-10 + z * (0x1.a01a01a01a01ap-16 +
           z * (-0x1.27e4fb7789f5cp-22 + z * (0x1.1eed8eff8d898p-29 + z * (-0x1.93974a8c07c9dp-37 +
           z * 0x1.ae7f3e733b81fp-45)))))));
}

static inline double ri_sin_fraction(int64_t k, int64_t n) {
    int64_t q = 4 * k / n, r = 4 * k - q * n;
    int cosine = (int)(q & 1);
    if (2 * r > n) {
        r = n - r;
        cosine = !cosine;
    }
    double y = (double)r / (double)n * 0x1.921fb54442d18p+0;
    double v = cosine ? ri_cos_taylor(y) : ri_sin_taylor(y);
    return q >= 2 ? 0.0 - v : v;
}

static inline double ri_cos_fraction(int64_t k, int64_t n) {
    return ri_sin_fraction((4 * k + n) % (4 * n), 4 * n); /* a quarter of a turn further; in quarters of 1/n to stay exact */
}

#endif
