"""The arithmetic under the features: elementary functions, hashes, sums and the calendar against independent answers.

The truth comes from `decimal` with 60 digits, from the package xxhash, and from `zoneinfo`; the twin and the native
program must agree with each other to the bit, and with the truth as closely as vmath.h promises.
"""

from __future__ import annotations

import datetime as dt
import decimal
import math
from collections.abc import Sequence
from fractions import Fraction
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import ZONES, moment_of, same_bits, zone

import retailinfer.columns as c
from retailinfer._native import hashing, reference
from retailinfer._native.program import hash_int, hash_text
from retailinfer.columns import TIME_PARTS, Column
from retailinfer.features.canonical import Canonical, Columns
from retailinfer.features.program import compile_program
from retailinfer.features.spec import Entity, FeatureSpec, Tensor, Timestamp
from retailinfer.features.transform import fill

DIGITS = decimal.Context(prec=60)
CUTS = (
    -0.29289321881345254,
    0.41421356237309503,
    2.0**-54,
    -(2.0**-54),
    1.0,
    2.0**53,
    2.0**54,
    math.sqrt(2) - 1,
)


def run_columns(values: np.ndarray, columns: Sequence[Column], kind: object, tz: str = "UTC") -> np.ndarray:
    """Cells that the native program computes of one field `x`, in float64: whatever a column gives, unrounded."""
    spec = FeatureSpec(request={"x": kind}, tz=tz, columns=columns).body
    body = type(spec)(
        fields=spec.fields,
        tz=spec.tz,
        zone_at_s=spec.zone_at_s,
        zone_offset_s=spec.zone_offset_s,
        tensors={"t": type(spec.tensors["features"])(tuple(columns), dtype="float64")},
        is_fitted=True,
    )
    outs, _, _ = fill(compile_program(body), body, Columns(len(values), {"x": Canonical(values)}))
    want = reference.run(body, {"x": (values, None, None, None)}, len(values))
    assert same_bits(outs[0], want.tensors["t"])
    return outs[0]


def worst_ulps(got: np.ndarray, truth: Sequence[decimal.Decimal]) -> float:
    """The largest distance from the truth in units of the last place of the double nearest to it."""
    return max(
        float(abs(DIGITS.subtract(decimal.Decimal(float(g)), t)) / decimal.Decimal(math.ulp(float(t))))
        for g, t in zip(got, truth, strict=True)
    )


# ---- log1p -----------------------------------------------------------------------------------------------------------


def log1p_inputs() -> np.ndarray:
    """Every exponent with random digits, both signs, and both sides of each branch of the function."""
    rng = np.random.default_rng(20240501)
    up = rng.uniform(1, 2, 2000) * 2.0 ** rng.integers(-60, 60, 2000)
    wide = rng.uniform(1, 2, 300) * 2.0 ** rng.integers(-1000, 1000, 300)
    down = -np.exp2(-rng.uniform(0.0001, 60, 1500))
    near = [np.nextafter(x, s) for x in CUTS for s in (-np.inf, np.inf)]
    ends = [np.nextafter(-1.0, 0), -0.5, 5e-324, 1.7976931348623157e308]
    return np.array([*up, *wide, *down, *near, *CUTS, *ends])


def test_log1p_is_within_one_ulp_of_the_true_value():
    """log1p agrees with 60-digit arithmetic on all its branches, and native and twin agree to the bit."""
    x = log1p_inputs()
    got = run_columns(x, [c.numeric("x", transform="log1p")], float)[:, 0]
    truth = []
    for value in x:
        if abs(value) < 1e-30:  # ln(1 + x) = x - x^2/2 here, and 1 + x has no digits left
            exact = decimal.Decimal(float(value))
            truth.append(
                DIGITS.subtract(exact, DIGITS.divide(DIGITS.multiply(exact, exact), decimal.Decimal(2)))
            )
        else:
            wide = decimal.Context(prec=120)
            truth.append(wide.ln(wide.add(decimal.Decimal(float(value)), decimal.Decimal(1))))
    assert worst_ulps(got, truth) < 1.0


def test_log1p_keeps_zeros_and_denormals():
    """The smallest numbers come back as they are, the sign of zero included."""
    x = np.array([0.0, -0.0, 5e-324, -5e-324, 2.0**-60, -(2.0**-60)])
    assert same_bits(run_columns(x, [c.numeric("x", transform="log1p")], float)[:, 0], x)


def test_log1p_rounds_to_the_float32_that_a_good_libm_gives():
    """After the one rounding to float32 there is no difference to the C library's function."""
    x = np.abs(log1p_inputs())
    x = x[x < 1e38]
    ours = reference.log1p(x).astype(np.float32)
    theirs = np.array([math.log1p(v) for v in x]).astype(np.float32)
    assert np.count_nonzero(ours != theirs) == 0


@given(bits=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=64))
def test_signed_log1p_is_odd_and_equal_on_both_sides(bits):
    """signed_log1p(-x) = -signed_log1p(x), whatever the bits of x; native and twin agree."""
    x = np.array(bits, np.uint64).view(np.float64)
    x = x[np.isfinite(x)]
    plus = run_columns(x, [c.numeric("x", transform="signed_log1p")], float)[:, 0]
    minus = run_columns(-x, [c.numeric("x", transform="signed_log1p")], float)[:, 0]
    assert np.array_equal(plus, -minus)


# ---- sums ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 31, 64, 100])
def test_dot_products_are_summed_in_the_order_that_is_documented(size):
    """Numbers whose sum depends on the order of adding: element i into sum i mod 8, then one fixed tree."""
    rng = np.random.default_rng(size)
    left, right = (
        (
            rng.choice([-1.0, 1.0], (200, size))
            * 2.0 ** rng.integers(-30, 30, (200, size))
            * rng.uniform(1, 2, (200, size))
        ).astype(np.float32)
        for _ in "ab"
    )
    left[:, -1] = -left[:, 0] if size > 1 else left[:, 0]
    body = FeatureSpec(
        request={"k": str},
        entities={"e": Entity(("k",), {"a": "vector", "b": "vector"})},
        tensors={
            "t": Tensor(
                (c.dot("e.a", "e.b", size=size, name="dot"), c.cosine("e.a", "e.b", size=size, name="cos")),
                "float64",
            )
        },
    ).body
    texts = Canonical(np.zeros(1, np.uint8), None, np.zeros(201, np.int64))
    columns = Columns(200, {"k": texts, "e.a": Canonical(left), "e.b": Canonical(right)})
    outs, _, _ = fill(compile_program(body), body, columns)
    assert same_bits(outs[0], reference.run(body, columns.by_name, 200).tensors["t"])

    products = left.astype(np.float64) * right.astype(np.float64)
    lanes = np.zeros((200, 8))
    for i in range(size):
        lanes[:, i % 8] += products[:, i]
    a = lanes.T
    assert same_bits(outs[0][:, 0], ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7])))
    if size > 4:  # and the order matters here
        assert not np.array_equal(
            outs[0][:, 0], ((a[0] + a[2]) + (a[4] + a[6])) + ((a[1] + a[3]) + (a[5] + a[7]))
        )


# ---- sine and cosine of a fraction of a turn -------------------------------------------------------------------------


def true_sine(turn: Fraction) -> decimal.Decimal:
    """sin(2 pi turn), by the Taylor series with 60 digits."""
    with decimal.localcontext(DIGITS):
        pi = decimal.Decimal(
            "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899"
        )
        turn -= round(turn)  # into [-1/2, 1/2]
        x = 2 * pi * decimal.Decimal(turn.numerator) / decimal.Decimal(turn.denominator)
        total, term = decimal.Decimal(0), x
        for i in range(1, 80):
            total += term
            term = -term * x * x / (2 * i * (2 * i + 1))
        return total


@pytest.mark.parametrize("n", [4, 7, 12, 24, 31, 60, 168, 366, 1440])
def test_sine_and_cosine_of_every_part_of_a_turn(n):
    """All fractions of a timestamp are within 2.1 ulp, exact where the truth is 0 or 1, and right as float32."""
    k = np.arange(n)
    for function, shift in ((reference.sin_fraction, Fraction(0)), (reference.cos_fraction, Fraction(1, 4))):
        got = function(k, n)
        truth = [true_sine(Fraction(int(i), n) + shift) for i in k]
        zero = np.array([abs(t) < decimal.Decimal("1e-50") for t in truth])
        assert not got[zero].any()
        assert worst_ulps(got[~zero], [t for t, z in zip(truth, zero, strict=True) if not z]) < 2.1
        assert np.array_equal(
            got.astype(np.float32)[~zero], np.array([float(t) for t in truth], np.float32)[~zero]
        )
        for i in k[(12 * k) % n == 0]:
            if abs(truth[i]) > decimal.Decimal("0.9999999"):
                assert abs(got[i]) == 1.0


def test_native_waves_equal_the_twins_for_every_minute_of_a_year():
    """All parts of all periods, through the program: the sine and the cosine of each have the twin's bits."""
    times = (np.arange(0, 366 * 1440, 37, dtype=np.int64) * 60 + 17) * 10**9 + 1_704_067_200 * 10**9
    waves = [f"{part}_{wave}" for part, v in TIME_PARTS.items() if v for wave in ("sin", "cos")]
    cells = run_columns(times, [c.time("x", w, name=w) for w in waves], Timestamp)
    assert np.abs(cells).max() <= 1.0


# ---- calendar --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tz", ZONES)
def test_parts_of_timestamps_are_those_of_zoneinfo(tz):
    """Around every change of the clocks from 1970 to 2100, and at random moments of that time, the parts are right."""
    at, _ = zone(tz)
    rng = np.random.default_rng(7)
    seconds = {int(s) for s in rng.integers(0, 4_102_444_799, 500)}
    seconds |= {s + shift for s in at for shift in (-1, 0, 1, 3599, 3600)}
    times = np.array(sorted(seconds), np.int64) * 10**9 + 999_999_999
    parts = ["year", "month", "day_of_month", "hour", "minute", "second", "day_of_week", "day_of_year"]
    cells = run_columns(times, [c.time("x", p, name=p) for p in parts], Timestamp, tz)
    for time_ns, row in zip(times, cells, strict=True):
        local = moment_of(int(time_ns)).astimezone(ZoneInfo(tz))
        want = (local.year, local.month, local.day, local.hour, local.minute, local.second, local.weekday())
        assert tuple(row[:7]) == want
        assert row[7] == local.timetuple().tm_yday


def test_moments_before_1970_belong_to_the_second_that_had_begun():
    """Parts of a second are cut off towards the past, not towards 1970."""
    rng = np.random.default_rng(3)
    times = rng.integers(-4 * 10**9, 0, 300) * 10**9 + rng.integers(0, 10**6, 300) * 1000
    times = np.array([-1000, -999_999_000, -(10**9), *times], np.int64)
    parts = ["day_of_year", "hour", "minute", "second"]
    cells = run_columns(times, [c.time("x", p, name=p) for p in parts], Timestamp)
    for time_ns, row in zip(times, cells, strict=True):
        moment = moment_of(int(time_ns))
        assert tuple(row) == (moment.timetuple().tm_yday, moment.hour, moment.minute, moment.second)


def test_every_day_of_three_centuries_has_its_date():
    """The integer calendar agrees with datetime on each day from 1824 to 2115, leap years and centuries included."""
    first = dt.datetime(1824, 1, 1, tzinfo=dt.UTC)
    days = np.arange((dt.datetime(2115, 12, 31, tzinfo=dt.UTC) - first).days, dtype=np.int64)
    times = (days * 86400 + int(first.timestamp())) * 10**9
    cells = run_columns(times, [c.time("x", p, name=p) for p in ("year", "month", "day_of_month")], Timestamp)
    dates = times.astype("datetime64[ns]").astype("datetime64[D]")
    assert np.array_equal(cells[:, 0], dates.astype("datetime64[Y]").astype(int) + 1970)
    assert np.array_equal(cells[:, 1], dates.astype("datetime64[M]").astype(int) % 12 + 1)
    assert np.array_equal(cells[:, 2], (dates - dates.astype("datetime64[M]")).astype(int) + 1)


# ---- hashes ----------------------------------------------------------------------------------------------------------


@given(data=st.binary(max_size=200), seed=st.integers(0, 2**63 - 1))
def test_hashes_are_the_standard_xxh64(data, seed):
    """Native, twin and the xxhash package give the same number."""
    xxhash = pytest.importorskip("xxhash", reason="`xxhash` is not installed (pip install retailinfer[test])")
    assert reference.xxh64(data, seed) == hashing.xxh64(data, seed) == xxhash.xxh64_intdigest(data, seed)


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    number=st.integers(-(2**63), 2**63 - 1),
)
def test_values_are_hashed_as_their_utf8_or_little_endian_bytes(text, number):
    """Text goes in as UTF-8 and an integer as 8 little-endian bytes, as the documentation of hashed columns says."""
    assert hash_text(text, 3) == reference.xxh64(text.encode(), 3)
    assert hash_int(number, 3) == reference.xxh64(number.to_bytes(8, "little", signed=True), 3)


def test_known_hash_values_never_change():
    """Buckets of trained models depend on these numbers; they are part of the file format."""
    assert hash_text("") == 0xEF46DB3751D8E999
    assert hash_text("a") == 0xD24EC4F1A98C6E5B
    assert hash_text("merchant-17", 42) == reference.xxh64(b"merchant-17", 42)
    assert hash_int(0) == 0x34C96ACDCADB1BBB
