"""Converting fitted models: thresholds keep their side, names are compared, what cannot be converted is named."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.authoring.convert import Converted, convert
from retailinfer.authoring.trees import given_names
from retailinfer.errors import ConfigError, ModelError
from retailinfer.runtime.session import open_session

RNG = np.random.default_rng(3)
TIES = np.round(
    RNG.normal(size=(1500, 4)), 1
)  # one decimal: many values lie on a threshold, in double and in float32
LABEL = (TIES[:, 0] + TIES[:, 1] > 0.05).astype(int)


def answers(made: Converted, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the ONNX file gives; one column for one number a row."""
    session = open_session(made.data)
    assert made.output is not None
    return session.run({session.inputs[0][0]: rows})[made.output]


def difference(made: Converted, rows: np.ndarray[Any, Any]) -> float:
    """Largest difference between the file and the trainer."""
    assert made.predict is not None
    expected, got = made.predict(rows), answers(made, rows).astype(np.float64)
    got = got[:, -1] if expected.ndim == 1 else got
    return float(np.abs(got - expected).max())


def lightgbm_booster(**params: Any) -> Any:
    """A booster on data with ties."""
    lightgbm = pytest.importorskip("lightgbm")
    data = lightgbm.Dataset(TIES, LABEL.astype(float), **params.pop("data", {}))
    return lightgbm.train({"objective": "binary", "verbose": -1, "num_threads": 1, **params}, data, 20)


# ---- LightGBM --------------------------------------------------------------------------------------------------------


def test_values_on_a_threshold_take_the_trainers_branch():
    """Thresholds are rounded down, so float32 rows that lie on them go where LightGBM sends them."""
    booster = lightgbm_booster()
    made = convert(booster, input_name="x")
    thresholds = []
    for tree in booster.dump_model()["tree_info"]:
        stack = [tree["tree_structure"]]
        while stack:
            node = stack.pop()
            if "threshold" in node:
                # LightGBM takes |x| <= 1e-35 for 0 before it compares; such values are left out.
                if abs(node["threshold"]) > 1e-30:
                    thresholds.append((node["split_feature"], node["threshold"]))
                stack += [node["left_child"], node["right_child"]]
    rows = np.tile(TIES[:1].astype(np.float32), (3 * len(thresholds), 1))
    for i, (feature, value) in enumerate(thresholds):
        near = np.float32(value)
        rows[3 * i : 3 * i + 3, feature] = [np.nextafter(near, -np.inf), near, np.nextafter(near, np.inf)]
    assert difference(made, rows) < 1e-6
    assert difference(made, TIES.astype(np.float32)) < 1e-6


@pytest.mark.parametrize(
    "params",
    [
        {"boosting": "dart"},
        {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
        {"objective": "cross_entropy"},
        {"objective": "regression_l1"},
        {"objective": "mape", "data": {}},
        {"objective": "poisson"},
        {"objective": "quantile", "alpha": 0.9},
        {"objective": "multiclass", "num_class": 2},
        {"use_missing": False},
        {"objective": "lambdarank", "data": {"group": [30] * 50}},
        {"data": {"categorical_feature": [3]}},
    ],
    ids=str,
)
def test_lightgbm_boosters_of_every_kind_answer_as_they_do(params):
    """Boosting types, objectives and modes of missing values come through; gaps mean the same or are not let in."""
    lightgbm = pytest.importorskip("lightgbm")
    params = dict(params)
    data = dict(params.pop("data", {}))
    table = TIES.copy()
    table[:, 3] = np.abs(np.rint(table[:, 3] * 4))
    target = LABEL + 1.0 if params.get("objective") in ("mape", "poisson") else LABEL.astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        booster = lightgbm.train(
            {"objective": "binary", "verbose": -1, "num_threads": 1, **params},
            lightgbm.Dataset(table, target, **data),
            15,
        )
    made = convert(booster, input_name="x")
    assert difference(made, table.astype(np.float32)) < 2e-6
    assert made.codes == ((3,) if "categorical_feature" in data else ())


def test_zeros_that_mean_missing_are_refused_in_onnx(tmp_path):
    """ONNX trees know NaN as missing, not 0; packing compares the answers, and refuses. Native trees know both."""
    booster = lightgbm_booster(zero_as_missing=True)
    spec = ri.FeatureSpec(request=dict.fromkeys("abcd", float), columns=[c.numeric(n) for n in "abcd"])
    table = pytest.importorskip("pyarrow").table({n: TIES[:, i] for i, n in enumerate("abcd")})
    with pytest.raises(ModelError, match=r"differently from lightgbm\.Booster"):
        ri.pack("zeros", model=booster, features=spec, golden=table, engine="onnx", out=tmp_path / "r")
    manifest = ri.pack("zeros", model=booster, features=spec, golden=table, out=tmp_path / "trees")
    assert manifest.models[0].engine == "trees"  # where zeros mean what LightGBM means by them


def test_early_stopping_keeps_the_trees_that_predict():
    """Only the best iterations are converted, in LightGBM and in XGBoost."""
    lightgbm, xgboost = pytest.importorskip("lightgbm"), pytest.importorskip("xgboost")
    half = len(TIES) // 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = lightgbm.LGBMClassifier(n_estimators=300, verbose=-1, n_jobs=1).fit(
            TIES[:half],
            LABEL[:half],
            eval_X=TIES[half:],
            eval_y=LABEL[half:],
            callbacks=[lightgbm.early_stopping(2, verbose=False)],
        )
        two = xgboost.XGBClassifier(n_estimators=300, early_stopping_rounds=2, n_jobs=1).fit(
            TIES[:half], LABEL[:half], eval_set=[(TIES[half:], LABEL[half:])], verbose=False
        )
    rows = TIES.astype(np.float32)
    assert one.best_iteration_ < 300
    assert two.best_iteration < 299
    for model in (one, two):
        expected = model.predict_proba(rows)
        np.testing.assert_allclose(answers(convert(model, input_name="x"), rows), expected, atol=2e-6)


def test_linear_trees_are_refused_by_name():
    """What ONNX has no form for is said before the converter gets it wrong."""
    booster = lightgbm_booster(linear_tree=True, objective="regression")
    with pytest.raises(ModelError, match="linear trees"):
        convert(booster, input_name="x")


# ---- XGBoost ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "label"),
    [
        ({"objective": "binary:logistic"}, LABEL),
        ({"objective": "multi:softprob", "num_class": 3}, np.arange(len(LABEL)) % 3),
        ({"objective": "reg:squarederror"}, TIES[:, 0]),
        ({"objective": "count:poisson"}, LABEL),
        ({"objective": "rank:ndcg"}, LABEL),
        ({"objective": "rank:pairwise"}, LABEL),
    ],
    ids=str,
)
def test_xgboost_boosters_of_every_kind_answer_as_they_do(params, label):
    """Named boosters, rankers and counts come through."""
    xgboost = pytest.importorskip("xgboost")
    matrix = xgboost.DMatrix(TIES, label, feature_names=["a", "b c", "d", "e"])
    if params["objective"].startswith("rank"):
        matrix.set_group([30] * 50)
    made = convert(xgboost.train({**params, "nthread": 1}, matrix, 10), input_name="x")
    assert made.feature_names == ("a", "b c", "d", "e")
    assert difference(made, TIES.astype(np.float32)) < 2e-6
    assert (made.task == "ranking") is params["objective"].startswith("rank")


def test_linear_boosters_are_refused_with_the_reason():
    """What the converter cannot do becomes one error that names the model."""
    xgboost = pytest.importorskip("xgboost")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = xgboost.XGBRegressor(booster="gblinear", n_estimators=3).fit(TIES, TIES[:, 0])
    with pytest.raises(ModelError, match=r"xgboost\.XGBRegressor cannot be converted"):
        convert(model, input_name="x")


# ---- scikit-learn ----------------------------------------------------------------------------------------------------


def test_scikit_learn_takes_float64_where_the_tensor_does():
    """The dtype of the spec's tensor decides that of the converted model."""
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression

    made = convert(LogisticRegression().fit(TIES, LABEL), input_name="x", dtype="float64")
    assert open_session(made.data).inputs[0][1] == 11
    assert difference(made, TIES) < 1e-12
    with pytest.raises(ModelError, match="int64"):
        convert(LogisticRegression().fit(TIES, LABEL), input_name="x", dtype="int64")


def test_boosters_at_the_end_of_a_pipeline_are_converted():
    """LightGBM and XGBoost stand in scikit-learn's pipelines."""
    lightgbm, xgboost = pytest.importorskip("lightgbm"), pytest.importorskip("xgboost")
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    for last in (
        lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1),
        xgboost.XGBClassifier(n_estimators=5, n_jobs=1),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = convert(make_pipeline(SimpleImputer(), last).fit(TIES, LABEL), input_name="x")
        assert made.classes == (0, 1)
        assert difference(made, (TIES + 0.03).astype(np.float32)) < 2e-6


def test_names_of_a_data_frame_are_kept_and_made_up_ones_are_not():
    """Only names that somebody gave are compared with the spec's."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("sklearn")
    from sklearn.linear_model import Ridge

    frame = pandas.DataFrame(TIES, columns=["amount", "b", "c", "d"])
    assert convert(Ridge().fit(frame, LABEL), input_name="x").feature_names == ("amount", "b", "c", "d")
    assert convert(Ridge().fit(TIES, LABEL), input_name="x").feature_names is None
    assert given_names(["Column_0", "Column_1"]) is None
    assert given_names(["f0", "f1"]) is None
    assert given_names(["f1", "f0"]) == ("f1", "f0")
    assert given_names([]) is None


# ---- what is no model ------------------------------------------------------------------------------------------------


def test_models_that_are_not_fitted_are_refused():
    """The error says to fit, not what some attribute lacks."""
    lightgbm, xgboost = pytest.importorskip("lightgbm"), pytest.importorskip("xgboost")
    from sklearn.linear_model import Ridge

    for model in (lightgbm.LGBMClassifier(), xgboost.XGBClassifier(), Ridge()):
        with pytest.raises(ConfigError, match="not fitted"):
            convert(model, input_name="x")


@pytest.mark.parametrize("name", ["model.pkl", "model.joblib", "model.pt"])
def test_pickles_are_never_read(tmp_path, name):
    """A pickle is refused by its name alone, before it is opened."""
    with pytest.raises(ModelError, match="pickle"):
        convert(tmp_path / name, input_name="x")


@pytest.mark.parametrize(("first", "hint"), [(b"CBM1", "format='json'"), (b"binf", "model.ubj")])
def test_files_that_only_their_trainer_reads_are_refused_with_what_to_do(first, hint, tmp_path):
    """A binary file of a trainer's own is known by its first bytes."""
    (tmp_path / "model.cbm").write_bytes(first + bytes(100))
    with pytest.raises(ModelError, match=hint):
        convert(tmp_path / "model.cbm", input_name="x")


def test_files_that_are_not_there_and_things_that_are_no_models_are_refused(tmp_path):
    """Both errors name what was given."""
    with pytest.raises(ModelError, match=r"nowhere\.onnx"):
        convert(tmp_path / "nowhere.onnx", input_name="x")
    for thing in (3, None, object(), lambda: 1):
        with pytest.raises(ConfigError, match="Expected a model file"):
            convert(thing, input_name="x")
    network = type("Network", (), {"__module__": "torch.nn"})
    with pytest.raises(ConfigError, match=r"torch\.onnx\.export"):
        convert(network(), input_name="x")
