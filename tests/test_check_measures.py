"""What checks compute, against the plain definitions, and bounds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailinfer.authoring.check_bounds import BOUNDS, LOWER, Findings, bounds_of
from retailinfer.authoring.check_measures import (
    histograms,
    overlap,
    profile,
    psi,
    psi_of_scores,
    rbo,
    worse_than_chance,
)
from retailinfer.errors import ConfigError

rankings = st.lists(st.integers(0, 12), unique=True, max_size=12)
counts = st.lists(st.integers(0, 1000), min_size=2, max_size=12)


def plain_rbo(a, b, p):
    """RBO_ext, equation 32 of Webber, Moffat and Zobel (2010), with overlaps counted anew at every depth."""
    s, n = sorted((len(a), len(b)))
    if s == 0:
        return 1.0 if n == 0 else 0.0

    def x(d):
        return len(set(a[:d]) & set(b[:d]))

    first = sum(x(d) / d * p**d for d in range(1, n + 1))
    second = sum(x(s) * (d - s) / (s * d) * p**d for d in range(s + 1, n + 1))
    return (1 - p) / p * (first + second) + ((x(n) - x(s)) / n + x(s) / s) * p**n


@given(rankings, rankings, st.sampled_from([0.5, 0.9, 0.98]))
def test_rbo_is_the_papers(a, b, p):
    """For rankings of any two lengths; symmetric, between 0 and 1."""
    found = rbo(a, b, p)
    assert found == pytest.approx(plain_rbo(a, b, p), abs=1e-12)
    assert found == pytest.approx(rbo(b, a, p), abs=1e-12)
    assert -1e-12 <= found <= 1 + 1e-12


@given(rankings)
def test_rbo_of_a_ranking_with_itself_is_one_and_with_strangers_nothing(a):
    """Its two ends."""
    assert rbo(a, a) == pytest.approx(1.0)
    if a:
        assert rbo(a, [one + 100 for one in a]) == 0


def test_rbo_weighs_the_top_more_than_the_bottom():
    """A swap of the first two costs more than one of the last two."""
    items = list(range(10))
    top, bottom = [1, 0, *items[2:]], [*items[:8], 9, 8]
    assert rbo(items, top) < rbo(items, bottom) < 1


@given(rankings, rankings, st.integers(1, 15))
def test_overlap_counts_what_both_have(a, b, k):
    """Against sets; two empty rankings are the same."""
    most = min(len(a[:k]), len(b[:k]))
    expected = len(set(a[:k]) & set(b[:k])) / most if most else float(len(a) == len(b) == 0)
    assert overlap(a, b, k) == expected


@given(counts, st.randoms())
def test_psi_is_its_definition(expected, random):
    """Summed bin by bin in plain Python; symmetric; zero for equal shares."""
    found = [random.randint(0, 1000) for _ in expected]
    if not sum(expected) or not sum(found):
        assert math.isnan(psi(expected, found))
        return
    plain = 0.0
    for e, f in zip(expected, found, strict=True):
        share_e, share_f = max(e / sum(expected), 1e-4), max(f / sum(found), 1e-4)
        plain += (share_f - share_e) * math.log(share_f / share_e)
    assert psi(expected, found) == pytest.approx(plain, rel=1e-9, abs=1e-12)
    assert psi(found, expected) == pytest.approx(plain, rel=1e-9, abs=1e-12)
    assert psi(expected, [3 * one for one in expected]) == pytest.approx(0, abs=1e-12)


def test_psi_of_scores_tells_a_shift_from_chance():
    """Two samples of one distribution are below the bound that warns, a shifted one is above the one that fails."""
    rng = np.random.default_rng(1)
    a, b, c = rng.normal(size=5000), rng.normal(size=5000), rng.normal(0.8, 1, size=5000)
    assert psi_of_scores(a, b) < 0.02
    assert psi_of_scores(a, c) > 0.25
    assert psi_of_scores(np.zeros(50), np.zeros(50)) == 0


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_histograms_keep_every_value(values):
    """Shares add up to one, for any values and for one alone."""
    labels, (shares,) = histograms(np.array(values))
    assert sum(shares) == pytest.approx(1)
    assert len(labels) == len(shares) == 24


def test_profile_is_each_buckets_share_of_the_mean():
    """Buckets of few rows are left out; no mean, no profile."""
    values = np.array([1.0] * 30 + [3.0] * 30 + [100.0])
    buckets = np.array([0] * 30 + [1] * 30 + [2])
    found = profile(values, buckets)
    assert found == {0: pytest.approx(1 / values.mean()), 1: pytest.approx(3 / values.mean())}
    assert profile(np.zeros(40), np.zeros(40, int)) == {}


def test_chance_is_what_two_standard_deviations_hold():
    """Of 100 rows decided differently, 61 against 39 is more than chance, 59 against 41 is not."""
    assert worse_than_chance(61, 39)
    assert not worse_than_chance(59, 41)
    assert not worse_than_chance(0, 0)


def test_bounds_take_one_number_or_two():
    """One number fails; what warned before goes on where it still comes first."""
    assert bounds_of(None)["flips"] == BOUNDS["flips"][:2]
    assert bounds_of({"flips": 0.1})["flips"] == (0.05, 0.1)
    assert bounds_of({"flips": 0.01})["flips"] == (None, 0.01)
    assert bounds_of({"rbo": 0.9})["rbo"] == (None, 0.9)
    assert bounds_of({"rbo": (0.95, None)})["rbo"] == (0.95, None)
    assert set(BOUNDS) >= LOWER
    for wrong in ({"flip": 1}, {"flips": "much"}, {"flips": (1, 2, 3)}, {"flips": math.nan}, {"flips": True}):
        with pytest.raises(ConfigError):
            bounds_of(wrong)


@pytest.mark.parametrize(
    ("name", "value", "state"),
    [
        ("flips", 0.01, "passed"),
        ("flips", 0.06, "warned"),
        ("flips", 0.21, "failed"),
        ("rbo", 0.9, "passed"),
        ("rbo", 0.7, "warned"),
        ("rbo", 0.1, "failed"),
        ("flips", math.nan, "passed"),
    ],
)
def test_figures_are_held_against_their_bounds(name, value, state):
    """Bounds of sameness are lower ones; what lies beyond is told with the bound."""
    found = Findings("some", bounds_of(None))
    found.hold(name, value, "figure")
    made = found.verdict("text")
    assert made.state == state
    assert made.bounds == {name: BOUNDS[name][:2]}
    assert len(made.notes) == (state != "passed")


def test_the_page_lists_every_bound():
    """docs/checks.md has each with its figures and what it is about."""
    text = (Path(__file__).resolve().parents[1] / "docs" / "checks.md").read_text(encoding="utf-8")

    def shown(value):
        return "-" if value is None else f"{value:g}"

    rows = [f"| `{name}` | {shown(w)}, {shown(f)} | {what} |" for name, (w, f, what) in BOUNDS.items()]
    assert [row for row in rows if row not in text] == []
