"""LightGBM's own text as a forest: every answer is the one that LightGBM gives, also on its thresholds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.authoring.trees import Unfit
from retailinfer.authoring.trees.lightgbm_text import forest_of_text
from retailinfer.authoring.trees.use import hard_rows
from retailinfer.errors import RetailInferError
from retailinfer.runtime.trees import TreeSession, encode_forest

lightgbm = pytest.importorskip("lightgbm")
pytestmark = pytest.mark.requires("lightgbm")

CASES = Path(__file__).resolve().parents[2] / "shared" / "data" / "model_cases" / "leaves"
ODD = np.array([0, 1e-36, -1e-36, 1e-35, -1e-35, 2, 3, 17, -1, -0.5, 39.9, 40, 1e9, -1e9, np.inf], np.float32)


def training_rows():
    """Six features, two of them categories, some missing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1_200, 6))
    x[:, 4], x[:, 5] = rng.integers(0, 40, len(x)), rng.integers(0, 5, len(x))
    x[rng.random(x.shape) < 0.1] = np.nan
    return x, np.nan_to_num(x)


def booster(objective, *, categories=True, **settings):
    """A small booster of one objective."""
    x, full = training_rows()
    rng = np.random.default_rng(1)
    two = (full[:, 0] + full[:, 1] * full[:, 4] / 20 > 0.3).astype(int)
    label = {
        "binary": two,
        "cross_entropy": two * 0.8 + 0.1,
        "lambdarank": two,
        "multiclass": rng.integers(0, 3, len(x)),
        "multiclassova": rng.integers(0, 3, len(x)),
        "poisson": rng.poisson(3, len(x)),
    }.get(objective, full[:, 0] * 3 + 15)
    known = {"objective": objective, "verbose": -1, "num_threads": 1, "min_data_in_leaf": 5, "seed": 1}
    known |= {"num_class": 3} if objective.startswith("multi") else {}
    data = lightgbm.Dataset(
        x,
        label,
        categorical_feature=[4, 5] if categories else "auto",
        group=[100] * 12 if objective == "lambdarank" else None,
    )
    return lightgbm.train(known | settings, data, 12)


def assert_same_answers(model, n_columns):
    """On hard rows, float32 of what LightGBM predicts, bit by bit, with every kernel."""
    forest = forest_of_text(model.model_to_string(), input_name="x", output_name="y", n_columns=n_columns)
    rows = hard_rows(forest, 1_500)
    rng = np.random.default_rng(3)
    rows = np.where(rng.random(rows.shape) < 0.15, rng.choice(ODD, rows.shape), rows)
    want = np.asarray(model.predict(rows.astype(np.float64))).reshape(len(rows), -1).astype(np.float32)
    session = TreeSession(encode_forest(forest), calibrate=False)
    for kernel in session.model.kernels:
        session.model.force(kernel)
        got = session.run({"x": rows})["y"][:, -want.shape[1] :]
        np.testing.assert_array_equal(got.view(np.uint32), np.ascontiguousarray(want).view(np.uint32))


@pytest.mark.parametrize("categories", [False, True])
@pytest.mark.parametrize(
    ("objective", "n_columns", "settings"),
    [
        ("binary", 2, {}),
        ("binary", 2, {"sigmoid": 0.7}),
        ("binary", 2, {"zero_as_missing": True}),
        ("binary", 2, {"use_missing": False}),
        ("binary", 2, {"boosting": "dart"}),
        ("cross_entropy", 2, {}),
        ("multiclass", 3, {}),
        ("multiclassova", 3, {}),
        ("regression", 1, {}),
        ("regression_l1", 1, {}),
        ("huber", 1, {}),
        ("quantile", 1, {"alpha": 0.9}),
        ("poisson", 1, {}),
        ("gamma", 1, {}),
        ("tweedie", 1, {}),
        ("lambdarank", 1, {}),
        ("regression", 1, {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}),
    ],
)
def test_forest_answers_as_lightgbm_does(objective, n_columns, settings, categories):
    """Objectives, ways of missing, categories, dart and forests: all of them exactly."""
    assert_same_answers(booster(objective, categories=categories, **settings), n_columns)


@pytest.mark.parametrize(
    ("name", "n_columns"),
    [
        ("lg_dart_breast_cancer.model", 2),
        ("lg_kddcup99.model", 13),
        ("lgmulticlass.model", 5),
        ("lg_breast_cancer.txt", 2),
        ("genlin_fmtp_poisson_Frequency.model", 1),
        ("genlin_fmtp_tweedie_PurePremium.model", 1),
    ],
)
def test_models_that_others_trained_answer_alike(name, n_columns):
    """Files of another project, old ones among them, answer as today's LightGBM reads them."""
    if not CASES.is_dir():
        pytest.skip("shared data: model_cases is not here")
    assert_same_answers(lightgbm.Booster(model_file=str(CASES / name)), n_columns)


@pytest.mark.parametrize(
    ("pattern", "by", "why"),
    [
        ("objective=binary sigmoid:1", "objective=magic", "its objective is magic"),
        ("objective=binary sigmoid:1", "objective=regression sqrt", "square root"),
        ("num_tree_per_iteration=1", "num_tree_per_iteration=x", "its num_tree_per_iteration is x"),
        ("num_tree_per_iteration=1", "num_tree_per_iteration=5", "trees for 5 sums"),
        ("is_linear=0", "is_linear=1", "linear trees"),
        ("num_leaves=", "num_leaves=1", "leaves has"),
        ("left_child=", "left_child=x ", "are no numbers"),
    ],
)
def test_text_that_is_not_understood_is_left_to_another_engine(pattern, by, why):
    """Each reason is said in one line."""
    text = booster("binary").model_to_string()
    assert pattern in text
    with pytest.raises(Unfit, match=why):
        forest_of_text(text.replace(pattern, by, 1), input_name="x", output_name="y", n_columns=2)


def test_damaged_text_is_refused_or_harmless():
    """Digits that changed anywhere give a typed error when the forest is built, or a forest that runs."""
    text = booster("binary").model_to_string()
    rng = np.random.default_rng(5)
    head = text.index("Tree=0")
    digits = [
        i for i, letter in enumerate(text) if letter.isdigit() and i > head and i < text.index("end of trees")
    ]
    rows = np.zeros((3, 6), np.float32)
    for at in rng.choice(digits, 400, replace=False):
        bad = text[:at] + str(rng.integers(0, 10)) + text[at + 1 :]
        try:
            forest = forest_of_text(bad, input_name="x", output_name="y", n_columns=2)
            forest.model().predict(np.zeros((3, forest.n_features), np.float32))
        except (Unfit, RetailInferError):
            continue
    assert rows.shape == (3, 6)


def test_packed_booster_gives_lightgbms_own_probabilities(tmp_path):
    """pack(engine="trees") of a fitted model needs no tolerance against its trainer."""
    model = booster("binary", categories=False)
    names = [f"Column_{i}" for i in range(6)]
    spec = ri.FeatureSpec(
        request=dict.fromkeys(names, float | None), columns=[c.numeric(name, null="use") for name in names]
    )
    ri.pack("fraud", model=model, features=spec, engine="trees", out=tmp_path / "fraud")
    x, _ = training_rows()
    with ri.Scorer.load(tmp_path / "fraud", trust="unsigned") as scorer:
        rows = [
            {n: None if np.isnan(v) else float(v) for n, v in zip(names, row, strict=True)} for row in x[:300]
        ]
        got = np.array([d.score for d in scorer.score_batch(rows)], np.float32)
    want = model.predict(x[:300].astype(np.float32).astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(got, want)
