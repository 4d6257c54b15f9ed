"""A whole pipeline of scikit-learn as a release: its steps become the features, its last step the model.

The scores of a release are compared with `pipeline.predict_proba` on rows that packing did not see.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    StandardScaler,
    TargetEncoder,
)
from test_features_from_sklearn import LABEL, everything, frame, other_rows

import retailinfer as ri
from retailinfer.authoring.pipeline_model import taken_apart
from retailinfer.errors import ModelError, SpecError

pytestmark = pytest.mark.requires("sklearn", "skl2onnx", "onnx", "pyarrow")


def columns() -> ColumnTransformer:
    """Without log1p: every cell is the same float64 as scikit-learn's."""
    return ColumnTransformer(
        [
            (
                "num",
                make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()),
                ["amount", "gap", "items"],
            ),
            (
                "cat",
                OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=20),
                ["channel", "country"],
            ),
            ("mean", TargetEncoder(), ["store"]),
        ]
    )


def served(folder: Any, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Scores of a release, request by request through its batch door."""
    with ri.Scorer.load(folder, trust="unsigned") as scorer:
        names = [f.name for f in scorer.spec.fields]
        requests = [
            {n: None if pd.isna(row[n]) else row[n] for n in names} for row in rows.to_dict("records")
        ]
        return np.array([decision.score for decision in scorer.score_batch(requests)], np.float32)


TREES = [
    RandomForestClassifier(30, random_state=0),
    ExtraTreesClassifier(30, random_state=0),
    GradientBoostingClassifier(n_estimators=20, random_state=0),
    HistGradientBoostingClassifier(max_iter=20, min_samples_leaf=5),
]


@pytest.mark.parametrize("model", TREES, ids=lambda model: type(model).__name__)
def test_probabilities_of_trees_are_those_of_the_pipeline_exactly(tmp_path, model):
    """Other rows, unknown categories and nulls: the float32 of predict_proba, bit by bit."""
    rows = frame()
    made = Pipeline([("columns", columns()), ("model", model)]).fit(rows, LABEL)
    manifest = ri.pack("fraud", model=made, golden=rows, out=tmp_path / "fraud")
    probe = other_rows(rows, ri.FeatureSpec.from_sklearn(made, sample=rows))
    np.testing.assert_array_equal(
        served(tmp_path / "fraud", probe), made.predict_proba(probe)[:, 1].astype(np.float32)
    )
    assert manifest.models[0].engine == "trees"
    assert manifest.task == "classification"


def test_splits_between_missing_values_and_all_others_stay_trees(tmp_path):
    """A forest that saw NaN has thresholds at infinity: the native trees take them, skl2onnx would search for ever."""
    rows = frame()
    gaps = ColumnTransformer([("raw", "passthrough", ["gap", "plan", "amount"])])
    forest = RandomForestClassifier(30, random_state=0, max_features=None)
    label = rows["gap"].isna() ^ (LABEL == 1)
    made = make_pipeline(gaps, forest).fit(rows, label)
    assert any(np.isinf(tree.tree_.threshold).any() for tree in forest.estimators_)
    manifest = ri.pack("gaps", model=made, golden=rows, out=tmp_path / "gaps")
    assert (manifest.models[0].engine, manifest.models[0].parity) == ("trees", "exact")
    probe = other_rows(rows, ri.FeatureSpec.from_sklearn(made, sample=rows))
    np.testing.assert_array_equal(
        served(tmp_path / "gaps", probe), made.predict_proba(probe)[:, 1].astype(np.float32)
    )
    with pytest.raises(ModelError, match=r"part missing values from all others.*engine="):
        ri.pack("gaps", model=made, golden=rows, engine="onnx", out=tmp_path / "onnx")


def test_boosters_of_other_trainers_end_a_pipeline_too(tmp_path):
    """LightGBM at the end: trained on the float64 cells that the spec gives."""
    lightgbm = pytest.importorskip("lightgbm")
    rows = frame()
    booster = lightgbm.LGBMClassifier(n_estimators=20, min_child_samples=5, verbose=-1, n_jobs=1)
    made = Pipeline([("columns", columns()), ("model", booster)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names that the matrix of the steps has not
        made.fit(rows, LABEL)
        ri.pack("fraud", model=made, golden=rows, out=tmp_path / "fraud")
        probe = other_rows(rows, ri.FeatureSpec.from_sklearn(made, sample=rows))
        want = made.predict_proba(probe)[:, 1].astype(np.float32)
    np.testing.assert_array_equal(served(tmp_path / "fraud", probe), want)


def test_linear_models_agree_within_the_tolerance_of_their_conversion(tmp_path):
    """Logistic regression through ONNX: sums in another order, so the last bits differ."""
    rows = frame()
    made = Pipeline([("columns", columns()), ("model", LogisticRegression(max_iter=500))]).fit(rows, LABEL)
    manifest = ri.pack("fraud", model=made, golden=rows, out=tmp_path / "fraud")
    probe = other_rows(rows, ri.FeatureSpec.from_sklearn(made, sample=rows))
    np.testing.assert_allclose(
        served(tmp_path / "fraud", probe), made.predict_proba(probe)[:, 1], rtol=0, atol=1e-6
    )
    assert manifest.models[0].engine == "onnx"


def test_regressions_are_whole_pipelines_too(tmp_path):
    """`predict` of a forest exactly, of a ridge within rounding; log1p on the way costs its last bits."""
    rows = frame()
    value = rows["amount"] + rows["items"]
    forest = make_pipeline(columns(), RandomForestRegressor(10, random_state=0)).fit(rows, value)
    ri.pack("value", model=forest, golden=rows, out=tmp_path / "forest")
    np.testing.assert_array_equal(served(tmp_path / "forest", rows), forest.predict(rows).astype(np.float32))
    ridge = make_pipeline(everything(), SimpleImputer(), Ridge()).fit(rows, value)
    ri.pack("value", model=ridge, golden=rows, out=tmp_path / "ridge")
    np.testing.assert_allclose(served(tmp_path / "ridge", rows), ridge.predict(rows), rtol=1e-5)


def test_a_copied_spec_and_its_pipeline_pack_to_the_same_release(tmp_path):
    """features= made by from_sklearn, with ranges of a later fit, after JSON, or made by pack itself."""
    rows = frame()
    made = make_pipeline(columns(), RandomForestClassifier(5, random_state=0)).fit(rows, LABEL)
    spec = ri.FeatureSpec.from_sklearn(made, sample=rows)
    by_pack = ri.pack("fraud", model=made, golden=rows, out=tmp_path / "a")
    again = ri.FeatureSpec.from_json(spec.to_json())
    by_hand = ri.pack("fraud", model=made, features=again, golden=rows, out=tmp_path / "b")
    last = ri.pack("fraud", model=made[-1], features=spec, golden=rows, out=tmp_path / "c")
    assert by_pack.spec_fingerprint == by_hand.spec_fingerprint == last.spec_fingerprint
    ri.pack("fraud", model={"trees": made}, features=spec.fit(rows), golden=rows, out=tmp_path / "d")
    want = made.predict_proba(rows)[:, 1].astype(np.float32)
    for folder in "abcd":
        np.testing.assert_array_equal(served(tmp_path / folder, rows), want)


def test_names_of_cells_are_those_that_the_model_was_trained_on(tmp_path):
    """A pipeline that hands its model a table: the feature names match, in order."""
    rows = frame()
    encoders = ColumnTransformer(
        [("num", StandardScaler(), ["amount", "items"]), ("cat", OrdinalEncoder(), ["channel"])]
    )
    made = make_pipeline(encoders, RandomForestClassifier(5)).set_output(transform="pandas").fit(rows, LABEL)
    manifest = ri.pack("fraud", model=made, golden=rows, out=tmp_path / "fraud")
    assert manifest.models[0].feature_names == "matched"


def test_other_pipelines_stay_whole():
    """One over a matrix, one trained on what a spec gives, one without rows to look at, and anything else."""
    rows = frame()[["amount", "items"]]
    matrix = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows.to_numpy(), LABEL)
    named = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, LABEL)
    raw = ri.FeatureSpec(
        request={"amount": float, "items": float}, columns=[ri.columns.numeric(n) for n in rows.columns]
    )
    assert taken_apart(matrix, None, rows) == (matrix, None)
    assert taken_apart(named, None, None) == (named, None)
    assert taken_apart(named, None, {"features": rows.to_numpy()}) == (named, None)
    assert taken_apart(named, raw, rows) == (named, raw)
    assert taken_apart("model.onnx", None, rows) == ("model.onnx", None)
    assert taken_apart({"a": named}, raw, rows) == ({"a": named}, raw)
    assert taken_apart(named, None, rows)[0] is named[-1]


def test_a_step_that_cannot_be_copied_is_named_by_pack(tmp_path):
    """Before anything is written."""
    rows = frame()
    made = make_pipeline(
        ColumnTransformer([("num", PolynomialFeatures(), ["amount"])]), LogisticRegression()
    ).fit(rows, LABEL)
    with pytest.raises(SpecError, match=r"`columntransformer\.num: PolynomialFeatures`"):
        ri.pack("fraud", model=made, golden=rows, out=tmp_path / "fraud")
    assert not (tmp_path / "fraud").exists()
