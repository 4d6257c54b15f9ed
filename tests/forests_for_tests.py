"""Rows that are hard for a forest, and the comparison of its answers with a source's, through every kernel of this machine."""

from __future__ import annotations

import numpy as np

from retailinfer._native.trees import levels
from retailinfer.runtime.trees import TreeSession, encode_forest

ODD = np.array(
    [np.nan, np.inf, -np.inf, 0.0, -0.0, 0.5, -0.5, 1.0, 2.0, 2.5, 31.0, 40.0, 1e9, -1.0, 1e-36, 3e38]
)


@np.errstate(all="ignore")
def hard_matrix(forest, n=1_200, *, seed=20, odd=0.06):
    """Rows on thresholds, one step above and below them (of either precision), anywhere between, missing, infinite, zero.

    float64 for forests that take doubles, else float32.
    """
    rng = np.random.default_rng(seed)
    kind = np.float64 if forest.wide else np.float32
    rows = rng.normal(size=(n, forest.n_features)).astype(kind)
    feature, threshold = forest.arrays["feature"], forest.arrays["threshold"]
    for column in np.unique(feature[feature >= 0]):
        own = rng.choice(threshold[feature == column], n).astype(kind)
        side = rng.choice([-np.inf, np.inf], n)
        near = np.nextafter(own, side.astype(kind))
        narrow = own.astype(np.float32)
        step = np.nextafter(narrow, side.astype(np.float32))
        middle = (narrow.astype(np.float64) + step) / 2
        scaled = rows[:, column] * np.where(np.isfinite(own), np.abs(own), 1)
        choices = [scaled, own, near, narrow, step, middle, np.nextafter(middle, side)]
        rows[:, column] = np.choose(rng.integers(0, len(choices), n), choices)
    spots = rng.random(rows.shape) < odd
    return np.where(spots, rng.choice(ODD, rows.shape), rows).astype(kind)


def assert_answers(forest, rows, want, *, ulps=0):
    """Every kernel answers `want`, shape (rows, columns): its float32 bits, or at most `ulps` steps beside them."""
    want = np.ascontiguousarray(np.asarray(want).reshape(len(rows), -1), np.float32)
    file = encode_forest(forest)
    for level in levels():
        trees = TreeSession(file, level=level, calibrate=False)
        for kernel in trees.model.kernels:
            trees.model.force(kernel)
            got = trees.run({forest.input: rows})[forest.output]
            assert_bits(got, want, ulps=ulps)
            few = slice(0, 7)
            assert_bits(trees.run({forest.input: rows[few]})[forest.output], want[few], ulps=ulps)
        assert_bits(trees.run({forest.input: rows[:1]})[forest.output], want[:1], ulps=ulps)


def assert_bits(got, want, *, ulps=0):
    """The same float32 numbers, NaN for NaN."""
    assert got.shape == want.shape
    same = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
    if ulps:
        same |= np.abs(_order(got) - _order(want)) <= ulps
    if not same.all():
        row = int(np.flatnonzero(~same.all(axis=1))[0])
        raise AssertionError(
            f"{int((~same).sum())} of {same.size} differ; row {row}: {got[row]} for {want[row]}"
        )


def _order(numbers):
    """float32 as integers in their order."""
    bits = np.ascontiguousarray(numbers).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
