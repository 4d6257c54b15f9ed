"""Rows on which a forest and its trainer part if anything is wrong, and the comparison over every kernel of this machine."""

from __future__ import annotations

import numpy as np

from retailinfer._native.trees import levels

# Zeros, what LightGBM takes for zero, what rounds to something else in float32, codes of every kind.
ODD = (
    *(
        0.0,
        -0.0,
        1e-35,
        -1e-35,
        1.0000000180025095e-35,
        -1.0000000180025095e-35,
        1e-36,
        -1e-36,
        2e-35,
        1e-45,
        -1e-45,
    ),
    *(
        -1.0,
        -0.5,
        -0.9999999,
        0.5,
        1.0,
        2.0,
        2.9999999,
        2.999999999999,
        3.0,
        5.7,
        17.0,
        31.0,
        32.0,
        39.9,
        40.0,
        1e9,
    ),
    *(-1e9, 16777215.0, 16777216.0, 2147483647.0, 2147483648.0, 4294967297.0, 1e30, -1e30, np.nan),
)


def hard_rows(forest, n=1_500, *, seed=1, infinite=True):
    """Rows of the forest's dtype: on thresholds, one step of it or of a float32 beside, between, missing, odd, known codes."""
    rng = np.random.default_rng(seed)
    kind = np.float64 if forest.wide else np.float32
    rows = rng.normal(size=(n, forest.n_features)).astype(kind)
    feature, threshold, category = (forest.arrays[name] for name in ("feature", "threshold", "category"))
    ends = forest.arrays["set_ends"]
    for column in np.unique(feature[feature >= 0]):
        sets = category[(feature == column) & (category >= 0)]
        if len(sets):
            top = 32 * int((ends[sets + 1] - ends[sets]).max())
            codes = rng.integers(-2, top + 3, n) + rng.choice([0, 0, 0, 0.4], n)
            rows[:, column] = np.where(rng.random(n) < 0.7, codes, rows[:, column])
        own = threshold[(feature == column) & (category < 0)]
        if len(own) == 0:
            continue
        with np.errstate(over="ignore", under="ignore"):
            near = own.astype(np.float32)
            near = np.concatenate([near, np.nextafter(near, np.float32(np.inf))]).astype(kind)
            both = np.concatenate([own.astype(kind), near])
            picked = rng.choice(both, n)
            beside = np.nextafter(picked, rng.choice([-np.inf, np.inf], n).astype(kind))
            wide = np.where(np.isfinite(picked), np.abs(picked), 1) * rows[:, column]
        rows[:, column] = np.choose(rng.integers(0, 4, n), [rows[:, column], picked, beside, wide])
    with np.errstate(over="ignore", under="ignore"):
        odd = np.array([*ODD, *([np.inf, -np.inf] if infinite else [])], kind)
    rows = np.where(rng.random(rows.shape) < 0.08, rng.choice(odd, rows.shape), rows)
    if not infinite:
        with np.errstate(over="ignore"):
            rows = np.where(np.isinf(rows.astype(np.float32)), 0, rows)
    return np.ascontiguousarray(rows, kind)


def same_bits(got, want):
    """Equal float32 numbers, bit for bit, after the trainer's were rounded to float32."""
    with np.errstate(over="ignore", under="ignore"):
        want = np.ascontiguousarray(np.asarray(want).reshape(got.shape), np.float32)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def assert_all_kernels(forest, rows, *, raw=None, answer=None):
    """Sums and answers of every kernel of every instruction set; `answer` of fewer columns is that of the last ones."""
    for level in levels():
        model = forest.model(level)
        for kernel in model.kernels:
            model.force(kernel)
            if raw is not None:
                width = np.asarray(raw).reshape(len(rows), -1).shape[1]
                same_bits(np.ascontiguousarray(model.predict_all(rows, raw=True)[:, -width:]), raw)
            if answer is not None:
                width = np.asarray(answer).reshape(len(rows), -1).shape[1]
                same_bits(np.ascontiguousarray(model.predict_all(rows)[:, -width:]), answer)
