"""CatBoost's JSON as a forest: every answer is the one that CatBoost gives, also on its borders and for its categories."""

from __future__ import annotations

import copy
import json
import time

import numpy as np
import pytest
from forests_for_tests import assert_answers, hard_matrix
from hypothesis import given
from hypothesis import strategies as st

from retailinfer.authoring.convert import convert
from retailinfer.authoring.convert.catboost import load, predictor, trees
from retailinfer.authoring.preflight import inspect
from retailinfer.authoring.trees import Unfit
from retailinfer.authoring.trees.catboost_json import MAX_CODE, MIN_CODE, hashes, parse
from retailinfer.errors import ConfigError, ModelError, RetailInferError
from retailinfer.runtime.session import open_session

catboost = pytest.importorskip("catboost")
pd = pytest.importorskip("pandas")
pytestmark = pytest.mark.requires("catboost", "pandas")

N, N_ROWS = 900, 1_200
FEATURES = 6
CODES = [0, 1, 2, 3, 17, 250, -5, 1_000, 123_456, 1_000_000]


def training_rows(*, missing=True):
    """Six features of numbers, some missing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, FEATURES)).astype(np.float32)
    x[:, 5] = np.round(x[:, 5] * 2)
    if missing:
        x[rng.random(x.shape) < 0.1] = np.nan
    return x, np.nan_to_num(x)


def booster(loss, *, kind=None, missing=True, **settings):
    """A small model of one loss."""
    x, full = training_rows(missing=missing)
    rng = np.random.default_rng(1)
    name = loss.partition(":")[0]
    two = (full[:, 0] + full[:, 1] * full[:, 2] > 0.3).astype(int)
    three = np.digitize(full[:, 0] + full[:, 3], [-0.5, 0.6])
    positive = np.abs(full[:, 0] * 3) + 0.1
    label = {
        "Logloss": two,
        "Focal": two,
        "CrossEntropy": two * 0.8 + 0.1,
        "MultiClass": three,
        "MultiClassOneVsAll": three,
        "MultiLogloss": np.stack([two, three > 0], axis=1).astype(int),
        "MultiCrossEntropy": np.stack([two, three > 0], axis=1) * 0.5 + 0.2,
        "Poisson": rng.poisson(positive),
        "MultiRMSE": np.stack([positive, full[:, 1]], axis=1),
        "YetiRank": two,
        "QueryRMSE": positive,
        "PairLogit": two,
    }.get(name, positive)
    classifies = name in ("Logloss", "Focal", "CrossEntropy") or name.startswith(("MultiC", "MultiL"))
    ranks = name in ("YetiRank", "QueryRMSE", "PairLogit")
    kind = kind or (
        "CatBoostClassifier" if classifies else "CatBoostRanker" if ranks else "CatBoostRegressor"
    )
    known = {"iterations": 20, "depth": 4, "verbose": 0, "thread_count": 1, "allow_writing_files": False}
    known |= {"loss_function": loss} | settings
    model = catboost.CatBoost(known) if kind == "CatBoost" else getattr(catboost, kind)(**known)
    group = {"group_id": np.arange(N) // 10} if ranks else {}
    if name == "PairLogit":
        group["pairs"] = [(10 * i + a, 10 * i + b) for i in range(N // 10) for a, b in [(0, 1), (2, 3)]]
        pool = catboost.Pool(x, label, group_id=np.arange(N) // 10, pairs=group["pairs"])
        return model.fit(pool)
    return model.fit(x, label, **group)


def json_of(model, tmp_path, pool=None):
    """The bytes of a saved model."""
    model.save_model(str(tmp_path / "model.json"), format="json", pool=pool)
    return (tmp_path / "model.json").read_bytes()


def answers(model, rows):
    """What CatBoost itself says."""
    if hasattr(model, "predict_proba"):
        return model.predict_proba(rows)
    return model.predict(rows)


def known_rows(forest, model, rows):
    """Without missing values in features that CatBoost refuses them in, because training had none."""
    info = json.loads(model)["features_info"]["float_features"]
    rows = rows.copy()
    for one in info:
        if not one["has_nans"]:
            rows[:, one["flat_feature_index"]] = np.nan_to_num(rows[:, one["flat_feature_index"]])
    return rows


LOSSES = [
    "Logloss",
    "CrossEntropy",
    "Focal:focal_alpha=0.3;focal_gamma=2",
    "MultiClass",
    "MultiClassOneVsAll",
    "MultiLogloss",
    "MultiCrossEntropy",
    "RMSE",
    "MAE",
    "Quantile:alpha=0.8",
    "MultiQuantile:alpha=0.1,0.5,0.9",
    "MultiRMSE",
    "LogLinQuantile:alpha=0.5",
    "MAPE",
    "Huber:delta=1",
    "Expectile:alpha=0.3",
    "Lq:q=3",
    "LogCosh",
    "Poisson",
    "Tweedie:variance_power=1.5",
    "YetiRank",
    "QueryRMSE",
    "PairLogit",
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", LOSSES)
def test_forest_answers_as_catboost_does(tmp_path, loss, dtype):
    """Classes, labels, regressions, exponents, several quantiles and ranks: the bits of CatBoost's own predictions."""
    model = booster(loss)
    data = json_of(model, tmp_path)
    parsed = parse(data, dtype=dtype)
    rows = known_rows(parsed.forest, data, hard_matrix(parsed.forest))
    assert_answers(parsed.forest, rows, answers(model, rows))
    classifies = hasattr(model, "predict_proba")
    ranks = isinstance(model, catboost.CatBoostRanker)
    assert parsed.task == ("classification" if classifies else "ranking" if ranks else "regression")
    assert parsed.forest.output == ("probabilities" if classifies else "variable")
    assert parsed.classes == (tuple(range(parsed.forest.n_columns)) if classifies else ())
    assert (parsed.source, parsed.feature_names, parsed.codes) == ("catboost", None, ())


@pytest.mark.parametrize("policy", ["SymmetricTree", "Depthwise", "Lossguide"])
@pytest.mark.parametrize("loss", ["Logloss", "MultiClass", "RMSE"])
@pytest.mark.parametrize("settings", [{}, {"nan_mode": "Max"}, {"depth": 1}, {"depth": 7, "iterations": 5}])
def test_every_way_to_grow_and_to_miss(tmp_path, policy, loss, settings):
    """Symmetric and other trees, shallow and deep, with missing values below or above all others."""
    model = booster(loss, grow_policy=policy, **settings)
    data = json_of(model, tmp_path)
    for dtype in ("float32", "float64"):
        parsed = parse(data, dtype=dtype)
        rows = known_rows(parsed.forest, data, hard_matrix(parsed.forest))
        assert_answers(parsed.forest, rows, answers(model, rows))
    cover = parsed.forest.arrays["cover"]
    roots = parsed.forest.arrays["roots"]
    np.testing.assert_allclose(cover[roots], N)
    inner = parsed.forest.arrays["feature"] >= 0
    left, right = parsed.forest.arrays["left"][inner], parsed.forest.arrays["right"][inner]
    np.testing.assert_allclose(cover[inner], cover[left] + cover[right])


def test_many_borders_of_one_feature(tmp_path):
    """CatBoost keeps more than 254 borders of a feature in several bytes; here they are what they are."""
    x = np.random.default_rng(0).normal(size=(5_000, 1)).astype(np.float32)
    model = catboost.CatBoostRegressor(
        iterations=80, depth=6, border_count=1_000, verbose=0, thread_count=1, allow_writing_files=False
    ).fit(x, np.sin(40 * x[:, 0]))
    data = json_of(model, tmp_path)
    forest = parse(data).forest
    assert len(np.unique(forest.arrays["threshold"])) > 254
    rows = np.nan_to_num(hard_matrix(forest))
    assert_answers(forest, rows, model.predict(rows))


# ---- categories ----------------------------------------------------------------------------------------------------


def frame(numbers, codes):
    """Rows as CatBoost takes them: two numbers, and two categories as integers."""
    return pd.DataFrame({"a": numbers[:, 0], "shop": codes[:, 0], "b": numbers[:, 1], "kind": codes[:, 1]})


def of_categories(policy="SymmetricTree", **settings):
    """A model that compares categories one by one."""
    rng = np.random.default_rng(2)
    numbers = rng.normal(size=(N, 2)).astype(np.float32)
    codes = np.stack([rng.choice(CODES, N), rng.choice(CODES[:4], N)], axis=1)
    label = np.isin(codes[:, 0], [2, 17, -5, 1_000_000]) ^ (codes[:, 1] == 3) ^ (numbers[:, 0] > 0.5)
    known = {"iterations": 40, "depth": 4, "verbose": 0, "thread_count": 1, "allow_writing_files": False}
    model = catboost.CatBoostClassifier(
        **(known | {"one_hot_max_size": 20, "grow_policy": policy} | settings)
    )
    pool = catboost.Pool(frame(numbers, codes), label.astype(int), cat_features=["shop", "kind"])
    return model.fit(pool), pool


@pytest.mark.parametrize("policy", ["SymmetricTree", "Depthwise", "Lossguide"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_categories_that_are_compared_one_by_one(tmp_path, policy, dtype):
    """Codes of categories, negative, large and unknown ones, go where CatBoost sends the text of the integer."""
    model, _ = of_categories(policy)
    parsed = parse(json_of(model, tmp_path), dtype=dtype)
    assert parsed.codes == (1, 3)
    assert parsed.feature_names == ("a", "shop", "b", "kind")
    assert set(np.unique(parsed.forest.arrays["rule"])) == {0, 1}
    rng = np.random.default_rng(3)
    rows = np.nan_to_num(hard_matrix(parsed.forest, 2_000))
    codes = np.stack(
        [rng.choice([*CODES, 4, 999, -1, 8_000_000], 2_000), rng.choice(CODES[:6], 2_000)], axis=1
    )
    rows[:, 1], rows[:, 3] = codes[:, 0], codes[:, 1]
    want = model.predict_proba(frame(rows[:, [0, 2]], codes))
    assert_answers(parsed.forest, rows, want)


def test_what_is_no_code_is_no_category(tmp_path):
    """Missing, broken and infinite numbers in a column of codes are unknown categories, like a code never seen."""
    model, _ = of_categories()
    forest = parse(json_of(model, tmp_path)).forest
    rows = np.zeros((5, 4), np.float32)
    rows[:, 1] = [987_654, np.nan, 0.5, np.inf, -np.inf]
    got = forest.model().predict(rows)
    np.testing.assert_array_equal(got, got[0])


@given(codes=st.lists(st.integers(MIN_CODE, MAX_CODE), min_size=1, max_size=50))
def test_hashes_are_those_of_catboost(codes):
    """CatBoost tells the hashes of a pool's categories when it saves a model; a plain twin of CityHash64 says the same."""
    assert hashes(np.array(codes)).tolist() == [city_hash(str(code).encode()) & 0xFFFFFFFF for code in codes]


def city_hash(text):
    """CityHash64, version 1, of 1 to 8 letters, with Python's integers."""
    k2, k3, mul, mask = 0x9AE16A3B2F90404F, 0xC949D7C7509E6557, 0x9DDFEA08EB382D69, 2**64 - 1
    if len(text) < 4:
        y = text[0] + (text[len(text) >> 1] << 8)
        z = len(text) + (text[-1] << 2)
        mixed = y * k2 & mask ^ z * k3 & mask
        return (mixed ^ mixed >> 47) * k2 & mask
    u, v = len(text) + (int.from_bytes(text[:4], "little") << 3), int.from_bytes(text[-4:], "little")
    a = (u ^ v) * mul & mask
    b = (v ^ a ^ a >> 47) * mul & mask
    return (b ^ b >> 47) * mul & mask


def test_hashes_that_catboost_writes_are_found_again(tmp_path):
    """The list of hashes that a pool adds to the file."""
    model, pool = of_categories()
    told = json.loads(json_of(model, tmp_path, pool))["features_info"]["cat_features_hash"]
    texts = [one for one in told if one["value"].lstrip("-").isdigit()]
    assert len(texts) >= 10
    assert hashes(np.array([int(one["value"]) for one in texts])).tolist() == [one["hash"] for one in texts]


def test_integers_of_one_hash_are_all_that_category(tmp_path):
    """Two codes whose texts have one hash are one category for CatBoost, so both take the side of yes."""
    codes = np.arange(MAX_CODE + 1)
    order = np.argsort(hashes(codes), kind="stable")
    own = hashes(codes)[order]
    first, second = sorted(order[np.flatnonzero(own[1:] == own[:-1])[0] :][:2].tolist())
    rng = np.random.default_rng(0)
    shop = rng.choice([first, second, 3, 4], N)
    numbers = rng.normal(size=(N, 2)).astype(np.float32)
    label = ((shop == first) | (shop == second)).astype(int)
    kind = rng.choice(CODES[:4], N)
    pool = catboost.Pool(frame(numbers, np.stack([shop, kind], axis=1)), label, cat_features=["shop", "kind"])
    model = catboost.CatBoostClassifier(
        iterations=5, depth=2, one_hot_max_size=20, verbose=0, thread_count=1, allow_writing_files=False
    ).fit(pool)
    forest = parse(json_of(model, tmp_path)).forest
    assert 4 in forest.arrays["rule"]
    rows = np.column_stack([numbers[:, 0], shop, numbers[:, 1], kind]).astype(np.float32)
    assert_answers(forest, rows, model.predict_proba(frame(numbers, np.stack([shop, kind], axis=1))))


# ---- fitted models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        ("Logloss", "CatBoostClassifier"),
        ("MultiClass", "CatBoostClassifier"),
        ("RMSE", "CatBoostRegressor"),
        ("Poisson", "CatBoostRegressor"),
        ("YetiRank", "CatBoostRanker"),
        ("Logloss", "CatBoost"),
        ("MultiClass", "CatBoost"),
        ("Poisson", "CatBoost"),
        ("Quantile:alpha=0.3", "CatBoost"),
    ],
)
def test_fitted_models_bring_their_json_their_onnx_and_their_answers(loss, kind):
    """The JSON has the bits of the model's own answers, its ONNX is close to them, with the exponent that it leaves out."""
    model = booster(loss, kind=kind)
    parsed, predict = trees(model, dtype="float32")
    converted = convert(model, input_name="x")
    rows = hard_matrix(parsed.forest)
    want = predict(rows)
    assert_answers(parsed.forest, rows, want)
    assert (converted.task, converted.classes) == (parsed.task, parsed.classes)
    assert (converted.feature_names, converted.n_features) == (None, FEATURES)
    got = open_session(inspect(converted.data).data).run({"x": rows})[converted.output]
    missing = np.isnan(rows).any(axis=1)  # CatBoost's ONNX has no sides for them
    np.testing.assert_allclose(
        got.reshape(N_ROWS, -1)[~missing], want.reshape(N_ROWS, -1)[~missing], rtol=1e-4, atol=1e-5
    )


def test_fitted_models_of_categories_have_no_onnx_but_answers():
    """Codes become integers again; what is no integer is a category that no model has."""
    model, _ = of_categories()
    with pytest.raises(ModelError, match="knows no categories"):
        convert(model, input_name="x")
    parsed, predict = trees(model, dtype="float32")
    forest = parsed.forest
    rows = hard_matrix(forest)
    rows[:, 1] = np.where(
        np.arange(len(rows)) % 2, np.random.default_rng(0).choice(CODES, len(rows)), rows[:, 1]
    )
    rows[np.abs(rows[:, 1]) > MAX_CODE, 1] = 0
    assert_answers(forest, rows, predict(rows))


def test_files_are_loaded_again_by_catboost(tmp_path):
    """What a file's trainer answers, where it is installed."""
    for model in (booster("MultiClass"), booster("Poisson"), booster("RMSE"), of_categories()[0]):
        data = json_of(model, tmp_path)
        forest = parse(data).forest
        rows = hard_matrix(forest)
        assert_answers(forest, rows, predictor(load(data), dtype="float32")(rows))


def test_models_that_are_not_fitted_say_so():
    """Nothing is written of them."""
    with pytest.raises(ConfigError, match="not fitted"):
        convert(catboost.CatBoostClassifier(), input_name="x")


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_texts_and_statistics_are_named(tmp_path):
    """A category whose text is no integer, and target statistics, are refused with the feature that has them."""
    rng = np.random.default_rng(0)
    colour = rng.choice(["red", "green", "blue"], N)
    data = pd.DataFrame({"a": rng.normal(size=N), "colour": colour})
    label = (colour == "red").astype(int)
    known = {"iterations": 5, "depth": 2, "verbose": 0, "thread_count": 1, "allow_writing_files": False}
    pool = catboost.Pool(data, label, cat_features=["colour"])
    model = catboost.CatBoostClassifier(**known, one_hot_max_size=5).fit(pool)
    with pytest.raises(Unfit, match="feature 'colour' has a category"):
        parse(json_of(model, tmp_path))
    with pytest.raises(Unfit, match="feature 'colour' has the category 'red'"):
        parse(json_of(model, tmp_path, pool))
    model = catboost.CatBoostClassifier(**known, one_hot_max_size=1).fit(pool)
    with pytest.raises(Unfit, match=r"target statistics \(CTR\) of 'colour'"):
        parse(json_of(model, tmp_path, pool))


def test_sums_that_are_scaled(tmp_path):
    """A scale that is a power of two goes into the leaves; any other has no exact form."""
    model = booster("RMSE")
    model.set_scale_and_bias(0.5, 3.25)
    data = json_of(model, tmp_path)
    forest = parse(data).forest
    rows = known_rows(forest, data, hard_matrix(forest))
    assert_answers(forest, rows, model.predict(rows))
    model.set_scale_and_bias(0.7, 3.25)
    with pytest.raises(Unfit, match=r"multiplied by 0\.7"):
        parse(json_of(model, tmp_path))


def test_columns_that_end_in_different_ways_are_left_to_catboost(tmp_path):
    """A mean beside a variance."""
    with pytest.raises(Unfit, match="RMSEWithUncertainty"):
        parse(json_of(booster("RMSEWithUncertainty"), tmp_path))


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A symmetric and another model, as objects."""
    path = tmp_path_factory.mktemp("catboost")
    return [
        json.loads(json_of(booster("Logloss", grow_policy=policy, iterations=3, depth=3), path))
        for policy in ("SymmetricTree", "Depthwise")
    ]


def changed(document, path, value):
    """A copy with another value somewhere."""
    copied = copy.deepcopy(document)
    at = copied
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return json.dumps(copied)


FLOATS = ("features_info", "float_features")


@pytest.mark.parametrize(
    ("which", "path", "value", "error", "why"),
    [
        (
            0,
            ("oblivious_trees", 0, "splits", 0, "split_index"),
            99_999,
            ModelError,
            "Expected a `split_index` below",
        ),
        (0, ("oblivious_trees", 0, "splits", 0, "split_index"), -1, ModelError, "got -1 - at split 0"),
        (0, ("oblivious_trees", 0, "splits", 0, "border"), 1.5, ModelError, "say what question"),
        (0, ("oblivious_trees", 0, "splits", 0, "float_feature_index"), 77, ModelError, "say what question"),
        (
            0,
            ("oblivious_trees", 0, "leaf_values"),
            [1.0],
            ModelError,
            "Expected 8 leaves of 0 values each, got 1 - at tree 0",
        ),
        (
            0,
            ("oblivious_trees", 1, "leaf_values"),
            [1.0] * 7,
            ModelError,
            "leaves of 1 values each, got 7 - at tree 1",
        ),
        (0, ("oblivious_trees", 1, "leaf_values"), "x", ModelError, "no model that CatBoost saved"),
        (
            0,
            ("oblivious_trees", 0, "splits"),
            [{"split_index": 0, "split_type": "FloatFeature"}] * 60,
            ModelError,
            "at most 24 deep",
        ),
        (0, ("oblivious_trees",), None, ModelError, "got neither"),
        (0, ("features_info",), None, ModelError, "no model that CatBoost saved"),
        (0, (*FLOATS, 0, "flat_feature_index"), 9, Unfit, "its feature 0 is neither"),
        (0, (*FLOATS, 0, "flat_feature_index"), 10**12, ModelError, "no model that CatBoost saved"),
        (0, (*FLOATS, 0, "nan_value_treatment"), "Odd", Unfit, "feature 0 treats missing values"),
        (0, (*FLOATS, 0, "borders"), [1e300], ModelError, "finite borders"),
        (0, ("scale_and_bias",), [1.0, [0.1, 0.2]], ModelError, "Expected 1 numbers, got 2"),
        (0, ("model_info", "params"), {}, Unfit, "what it was trained for"),
        (1, ("trees", 0), {}, ModelError, "Expected a value, or a split with both its sides"),
        (1, ("trees", 0), {"value": [1.0, 2.0], "weight": 1}, ModelError, "values of a leaf"),
        (1, ("trees", 0, "left"), None, ModelError, "both its sides"),
    ],
)
def test_malformed_files_are_refused_with_their_place(documents, which, path, value, error, why):
    """Numbers out of range, contradictions, lists of other lengths, trees that would be too large."""
    with pytest.raises(error, match=why):
        parse(changed(documents[which], path, value))


def test_files_that_are_bombs_are_refused_in_no_time(documents):
    """Nodes within nodes without end, depth without leaves, numbers without end."""
    node = '{"split":{"split_index":0,"split_type":"FloatFeature"},"left":' * 100_000
    start = time.perf_counter()
    for bomb in (
        '{"features_info":{},"trees":[' + node,
        "[" * 1_000_000,
        "",
        "null",
        "{}",
        '{"features_info":1e999}',
        b"\xff\xfe",
    ):
        with pytest.raises(ModelError):
            parse(bomb)
    assert time.perf_counter() - start < 2


@given(data=st.data())
def test_damaged_files_are_refused_or_run(documents, data):
    """Values that changed anywhere give a typed error, or a forest that answers; never anything else."""
    document = copy.deepcopy(documents[data.draw(st.integers(0, 1))])
    document["model_info"] = {"params": {"loss_function": {"type": "Logloss"}}}
    for _ in range(data.draw(st.integers(1, 3))):
        at = document
        while True:
            key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.integers(0, 9)) == 0:
                break
            at = at[key]
        at[key] = data.draw(
            st.sampled_from(
                [None, -1, 0, 1, 3, 10**6, 2**63, 1e308, -1e308, 0.5, "x", "AsTrue", [], {}, [1.0], True]
            )
        )
    try:
        forest = parse(json.dumps(document)).forest
        forest.model().predict(np.zeros((2, forest.n_features), np.float32))
    except (Unfit, RetailInferError):
        pass


def test_large_files_are_read_in_a_fraction_of_a_second(documents):
    """1,000 symmetric trees of 64 leaves: the bound allows for a busy machine."""
    document = copy.deepcopy(documents[0])
    split = document["oblivious_trees"][0]["splits"][0]
    tree = {"splits": [split] * 6, "leaf_values": [0.1] * 64, "leaf_weights": [1.0] * 64}
    document["oblivious_trees"] = [tree] * 1_000
    text = json.dumps(document)
    start = time.perf_counter()
    forest = parse(text).forest
    assert time.perf_counter() - start < 1
    assert len(forest.arrays["feature"]) == 127_000
