"""Shapley values of forests against those of LightGBM and XGBoost themselves: missing values, categories, several classes."""

from __future__ import annotations

import numpy as np
import pytest

from retailinfer._native.reasons import ForestExplainer
from retailinfer.authoring.trees.lightgbm_text import parse_text
from retailinfer.authoring.trees.xgboost_json import parse

N, FEATURES, CATEGORIES = 1_500, 6, 40


def rows_and_labels(seed=0, *, missing=0.1, categories=False):
    """Numbers of which some are missing; with `categories` the last column holds codes. Float32 values, for every trainer."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, FEATURES)).astype(np.float32)
    if categories:
        x[:, -1] = rng.integers(0, CATEGORIES, N)
    signal = x[:, 0] - x[:, 1] * x[:, 2] + (np.isin(x[:, -1] % 7, (1, 4)) if categories else x[:, 5])
    x[rng.random(x.shape) < missing] = np.nan
    return x, signal + 0.3 * rng.normal(size=N)


def explained(parsed, rows, column):
    """Shapley values and the base behind them, as trainers give them: shape (rows, features + 1)."""
    forest = parsed.forest
    model = forest.model()
    explainer = ForestExplainer(
        model, forest.arrays, column=column, average=forest.average, per_output=forest.per_output
    )
    kind = np.float64 if forest.wide else np.float32
    shap = explainer.shap(np.ascontiguousarray(rows, kind))
    return np.column_stack([shap, np.full(len(rows), explainer.base)])


def booster_of(params, *, missing=0.1, categories=False, classes=1):
    """A LightGBM booster and rows like those it saw."""
    lightgbm = pytest.importorskip("lightgbm", reason="platform: no LightGBM")
    x, signal = rows_and_labels(missing=missing, categories=categories)
    y = (
        signal
        if params["objective"] == "regression"
        else np.digitize(signal, np.linspace(-1, 1, max(1, classes - 1)))
    )
    data = lightgbm.Dataset(
        x.astype(np.float64),
        y,
        categorical_feature=[FEATURES - 1] if categories else [],
        params={"verbose": -1},
    )
    settings = {"verbose": -1, "num_leaves": 15, "num_threads": 1, "seed": 3, "deterministic": True}
    return lightgbm.train(settings | params, data, num_boost_round=25), x[:200]


@pytest.mark.parametrize(
    ("params", "how"),
    [
        ({"objective": "binary"}, {}),
        ({"objective": "binary", "use_missing": False}, {}),
        ({"objective": "binary", "zero_as_missing": True}, {}),
        ({"objective": "binary"}, {"missing": 0.0}),
        ({"objective": "binary", "max_cat_to_onehot": 1, "min_data_per_group": 5}, {"categories": True}),
        ({"objective": "regression"}, {}),
        ({"objective": "regression", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.7}, {}),
        ({"objective": "regression", "boosting": "dart"}, {}),
        ({"objective": "multiclass", "num_class": 3}, {"classes": 3}),
    ],
    ids=[
        "binary",
        "NaN as 0",
        "0 missing",
        "none missing",
        "categories",
        "numbers",
        "averaged",
        "dart",
        "classes",
    ],
)
def test_shapley_values_are_those_of_lightgbm(params, how):
    """pred_contrib to 1e-9, its base included: the same covers, expectations and turns."""
    booster, rows = booster_of(params, **how)
    parsed = parse_text(booster.model_to_string(), dtype="float32")
    want = booster.predict(rows.astype(np.float64), pred_contrib=True).reshape(len(rows), -1, FEATURES + 1)
    if parsed.forest.average:  # it adds up the trees' values and forgets that the forest averages them
        want = want / booster.num_trees()
    averages = parsed.forest.average  # and so do its raw scores
    raw = booster.predict(rows.astype(np.float64), raw_score=not averages).reshape(len(rows), -1)
    n_classes = want.shape[1]
    for k in range(n_classes):
        column = k if n_classes > 1 else parsed.forest.n_columns - 1
        got = explained(parsed, rows, column)
        np.testing.assert_allclose(got, want[:, k], rtol=0, atol=1e-9)
        np.testing.assert_allclose(got.sum(axis=1), raw[:, k], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("params", "how"),
    [
        ({"objective": "binary:logistic"}, {}),
        ({"objective": "binary:logistic"}, {"missing": 0.0}),
        (
            {"objective": "binary:logistic", "tree_method": "hist", "max_cat_to_onehot": 1},
            {"categories": True},
        ),
        ({"objective": "reg:squarederror", "base_score": 0.25}, {}),
        ({"objective": "multi:softprob", "num_class": 3}, {"classes": 3}),
    ],
    ids=["binary", "none missing", "categories", "numbers", "classes"],
)
def test_shapley_values_are_those_of_xgboost(params, how):
    """pred_contribs to 2e-5 of the sum's size: XGBoost works them out in float32."""
    xgboost = pytest.importorskip("xgboost", reason="platform: no XGBoost")
    classes, categories = how.get("classes", 1), how.get("categories", False)
    x, signal = rows_and_labels(missing=how.get("missing", 0.1), categories=categories)
    y = (
        signal
        if params["objective"].startswith("reg")
        else np.digitize(signal, np.linspace(-1, 1, max(1, classes - 1)))
    )
    kinds = ["q"] * (FEATURES - 1) + ["c" if categories else "q"]
    given = {"feature_types": kinds, "enable_categorical": True}
    booster = xgboost.train(
        {"max_depth": 5, "nthread": 1, "seed": 3} | params, xgboost.DMatrix(x, y, **given), num_boost_round=20
    )
    parsed = parse(bytes(booster.save_raw("json")), dtype="float32")
    rows = x[:200]
    want = booster.predict(xgboost.DMatrix(rows, **given), pred_contribs=True).reshape(
        len(rows), -1, FEATURES + 1
    )
    scale = max(1.0, float(np.abs(want).sum(axis=2).max()))
    n_classes = want.shape[1]
    for k in range(n_classes):
        column = k if n_classes > 1 else parsed.forest.n_columns - 1
        np.testing.assert_allclose(explained(parsed, rows, column), want[:, k], rtol=0, atol=2e-5 * scale)


def test_shapley_values_see_a_categorical_split_and_missing_values():
    """The comparison is not empty: the boosters ask for categories, and rows are missing what they ask for."""
    booster, rows = booster_of(
        {"objective": "binary", "max_cat_to_onehot": 1, "min_data_per_group": 5}, categories=True
    )
    arrays = parse_text(booster.model_to_string(), dtype="float32").forest.arrays
    assert (arrays["category"] >= 0).any()
    assert np.isnan(rows).any(axis=1).mean() > 0.3
    want = booster.predict(rows.astype(np.float64), pred_contrib=True)
    assert np.abs(want[:, FEATURES - 1]).max() > 0.1
