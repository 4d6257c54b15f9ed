"""XGBoost's own files as forests: every sum and answer has the bits of `Booster.predict`, on thresholds and codes too."""

from __future__ import annotations

import functools
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer_rows import assert_all_kernels, hard_rows, same_bits

from retailinfer.authoring.trees import Unfit
from retailinfer.authoring.trees.xgboost_json import parse
from retailinfer.errors import ConfigError, ModelError

xgboost = pytest.importorskip("xgboost")
pytestmark = pytest.mark.requires("xgboost")

DTYPES = ("float32", "float64")
KINDS = ["q"] * 4 + ["c"] * 2
OLD = Path(__file__).parent / "xgboost_of_old.json"


def training_rows():
    """Six features, two of them codes, some missing, one mostly zero."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 6)).astype(np.float32)
    x[rng.random(len(x)) < 0.5, 3] = 0
    x[:, 4], x[:, 5] = rng.integers(0, 60, len(x)), rng.integers(0, 3, len(x))
    x[rng.random(x.shape) < 0.1] = np.nan
    return x, np.nan_to_num(x)


def matrix(rows, label=None, *, categories=False, **more):
    """Rows as XGBoost takes them."""
    kinds = KINDS if categories else None
    return xgboost.DMatrix(rows, label, feature_types=kinds, enable_categorical=categories, nthread=1, **more)


def labels(objective):
    """Something to learn for an objective."""
    _, full = training_rows()
    rng = np.random.default_rng(1)
    two = (full[:, 0] + full[:, 1] * full[:, 4] / 20 > 0.3).astype(int)
    if objective.startswith("multi:"):
        return rng.integers(0, 3, len(full))
    if objective.startswith(("binary:", "rank:")) or objective == "reg:logistic":
        return two
    if objective == "survival:cox":
        return np.where(rng.random(len(full)) < 0.3, -1, 1) * (np.abs(full[:, 0]) + 0.1)
    return np.abs(full[:, 0] * 3) + 0.5


@functools.cache
def booster(objective, *, categories=False, rounds=8, label=None, **settings):
    """A small booster of one objective."""
    x, _ = training_rows()
    y = labels(objective) if label is None else several_targets(label)
    data = matrix(x, y, categories=categories)
    if objective.startswith("rank:"):
        data.set_group([100] * 9)
    if objective == "survival:aft":
        data.set_float_info("label_lower_bound", y)
        data.set_float_info("label_upper_bound", y * 2)
    known = {"objective": objective, "max_depth": 5, "nthread": 1, "seed": 3, "verbosity": 0}
    known |= {"num_class": 3} if objective.startswith("multi:") else {}
    known |= {"quantile_alpha": [0.1, 0.5, 0.9]} if objective == "reg:quantileerror" else {}
    return xgboost.train(known | settings, data, rounds)


def several_targets(kind):
    """Three columns of labels."""
    _, full = training_rows()
    y = np.stack([full[:, 0], full[:, 1], full[:, 2] * full[:, 0]], axis=1)
    return (y > 0).astype(int) if kind == "bits" else y


def assert_same_answers(model, *, categories=False, best=None):
    """On hard rows of both precisions, from both files: what XGBoost predicts and sums, bit by bit, with every kernel."""
    how = {} if best is None else {"iteration_range": (0, best + 1)}
    for dtype in DTYPES:
        for form in ("json", "ubj"):
            parsed = parse(bytes(model.save_raw(form)), dtype=dtype)
            rows = hard_rows(parsed.forest, 1_000, infinite=False)
            data = matrix(rows, categories=categories)
            answer = model.predict(data, **how)
            if "softmax" in objective_of(model):
                answer = None  # numbers of classes
            assert_all_kernels(
                parsed.forest, rows, raw=model.predict(data, output_margin=True, **how), answer=answer
            )
            if parsed.forest.n_columns > parsed.forest.n_outputs:
                same_bits(parsed.forest.model().predict(rows, column=0), np.float32(1) - answer)
    return parsed


def objective_of(model):
    """Its name."""
    return json.loads(model.save_config())["learner"]["objective"]["name"]


OBJECTIVES = {
    "binary:hinge": (1, 1),
    "binary:logistic": (1, 2),
    "binary:logitraw": (1, 1),
    "count:poisson": (1, 1),
    "multi:softmax": (3, 3),
    "multi:softprob": (3, 3),
    "rank:map": (1, 1),
    "rank:ndcg": (1, 1),
    "rank:pairwise": (1, 1),
    "reg:absoluteerror": (1, 1),
    "reg:gamma": (1, 1),
    "reg:logistic": (1, 1),
    "reg:pseudohubererror": (1, 1),
    "reg:quantileerror": (3, 3),
    "reg:squarederror": (1, 1),
    "reg:squaredlogerror": (1, 1),
    "reg:tweedie": (1, 1),
    "survival:aft": (1, 1),
    "survival:cox": (1, 1),
}


@pytest.mark.parametrize("categories", [False, True])
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_forest_answers_as_xgboost_does(objective, categories):
    """Every objective, with its base score, with and without codes of categories."""
    parsed = assert_same_answers(booster(objective, categories=categories), categories=categories)
    forest = parsed.forest
    assert (forest.n_outputs, forest.n_columns) == OBJECTIVES[objective]
    assert parsed.codes == ((4, 5) if categories else ())
    probable = objective in ("binary:logistic", "multi:softmax", "multi:softprob")
    ranks = objective.startswith("rank:")
    assert parsed.task == ("classification" if probable else "ranking" if ranks else "regression")
    assert parsed.classes == (tuple(range(forest.n_columns)) if probable else ())
    assert forest.output == ("probabilities" if probable else "variable")
    assert parsed.feature_names is None


@pytest.mark.parametrize("categories", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"booster": "dart", "rate_drop": 0.5, "one_drop": 1},
        {"num_parallel_tree": 4, "subsample": 0.5},
        {"num_parallel_tree": 3, "booster": "dart", "rate_drop": 0.5, "one_drop": 1, "subsample": 0.5},
        {"tree_method": "approx"},
        {"max_cat_to_onehot": 100},
        {"base_score": 0.123},
        {"base_score": 1e-8},
        {"grow_policy": "lossguide", "max_leaves": 60, "max_depth": 0},
        {"max_depth": 1},
        {"max_depth": 12, "min_child_weight": 0},
        {"scale_pos_weight": 7.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("objective", ["binary:logistic", "multi:softprob"])
def test_ways_of_training_change_nothing(objective, settings, categories):
    """dart, forests of parallel trees, one-hot and partitioned categories, deep and shallow trees, base scores."""
    assert_same_answers(booster(objective, categories=categories, **settings), categories=categories)


def test_nodes_that_were_pruned_are_left_out():
    """The exact method deletes nodes after the fact; they stay in the file."""
    model = booster("reg:squarederror", tree_method="exact", gamma=3.0)
    document = json.loads(model.save_raw("json"))
    trees = document["learner"]["gradient_booster"]["model"]["trees"]
    deleted = sum(int(tree["tree_param"]["num_deleted"]) for tree in trees)
    assert deleted > 0
    parsed = assert_same_answers(model)
    n_nodes = sum(int(tree["tree_param"]["num_nodes"]) for tree in trees)
    assert len(parsed.forest.arrays["feature"]) == n_nodes - deleted


@pytest.mark.parametrize(
    ("objective", "label", "settings"),
    [
        ("reg:squarederror", "numbers", {"multi_strategy": "multi_output_tree"}),
        ("binary:logistic", "bits", {"multi_strategy": "multi_output_tree"}),
        ("multi:softprob", None, {"multi_strategy": "multi_output_tree"}),
        ("reg:squarederror", "numbers", {}),
        ("binary:logistic", "bits", {}),
        ("reg:squarederror", "numbers", {"booster": "dart", "rate_drop": 0.5}),
    ],
)
def test_several_targets_answer_as_xgboost_does(objective, label, settings):
    """One tree a target, or a vector a leaf; the probabilities of several labels stand each for themselves."""
    parsed = assert_same_answers(booster(objective, label=label, **settings))
    assert parsed.forest.n_columns == parsed.forest.n_outputs == 3
    vectors = settings.get("multi_strategy") == "multi_output_tree"
    assert (len(parsed.forest.arrays["targets"]) == 0) == vectors


def test_vectors_of_leaves_are_read_as_xgboost_2_wrote_them_too():
    """Then, the values of a leaf were its node's weights."""
    model = booster("reg:squarederror", label="numbers", multi_strategy="multi_output_tree")
    document = json.loads(model.save_raw("json"))
    want = parse(json.dumps(document).encode()).forest
    for tree in document["learner"]["gradient_booster"]["model"]["trees"]:
        vectors = np.reshape(tree.pop("leaf_weights"), (-1, 3))
        weights = np.reshape(tree["base_weights"], (-1, 3))
        for node, left in enumerate(tree["left_children"]):
            if left < 0:
                weights[node] = vectors[tree["right_children"][node]]
                tree["right_children"][node] = -1
        tree["base_weights"] = weights.ravel().tolist()
    got = parse(json.dumps(document).encode()).forest
    rows = hard_rows(want, 300)
    same_bits(got.model().predict_all(rows), want.model().predict_all(rows))


def test_sets_of_thousands_of_categories_are_exact():
    """Every code, those that no training row had, and what is no code."""
    rng = np.random.default_rng(3)
    codes = rng.permutation(np.concatenate([np.arange(4_000), rng.integers(0, 4_000, 5_000)]))
    y = rng.normal(size=4_000)[codes] + rng.normal(size=9_000) * 0.1
    more = {"feature_types": ["c", "q"], "enable_categorical": True}
    data = xgboost.DMatrix(np.c_[codes, y * 0].astype(np.float32), y, nthread=1, **more)
    settings = {"objective": "reg:squarederror", "nthread": 1, "max_cat_threshold": 4_000, "max_bin": 5_000}
    model = xgboost.train(settings, data, 5)
    for dtype in DTYPES:
        forest = parse(bytes(model.save_raw()), dtype=dtype).forest
        assert np.diff(forest.arrays["set_ends"]).max() > 100
        rows = np.zeros((4_100, 2), dtype)
        rows[:, 0] = np.arange(-40, 4_060)
        rows[:20, 0] += 0.5
        want = model.predict(xgboost.DMatrix(rows, nthread=1, **more))
        assert_all_kernels(forest, rows, answer=want)


def test_codes_are_places_among_the_categories_of_a_data_frame():
    """A model that was trained on texts takes the codes that pandas has for them, whatever their order."""
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    shops = pandas.Categorical(rng.choice(["zeta", "alpha", "mid"], 500), categories=["zeta", "mid", "alpha"])
    frame = pandas.DataFrame({"amount": rng.normal(size=500), "shop": shops})
    label = (frame.amount > 0) ^ (frame.shop == "mid")
    data = xgboost.DMatrix(frame, label, enable_categorical=True, nthread=1)
    model = xgboost.train({"objective": "binary:logistic", "nthread": 1, "max_cat_to_onehot": 1}, data, 5)
    parsed = parse(bytes(model.save_raw()))
    assert (parsed.feature_names, parsed.codes) == (("amount", "shop"), (1,))
    rows = np.c_[frame.amount, shops.codes].astype(np.float32)
    assert_all_kernels(parsed.forest, rows, answer=model.predict(data))


@pytest.mark.parametrize(
    ("objective", "more"),
    [("binary:logistic", {}), ("multi:softprob", {"num_parallel_tree": 2, "subsample": 0.7})],
)
def test_rounds_after_the_best_one_do_not_count(objective, more):
    """As in the predictions of the scikit-learn wrappers; also in files that do not say where a round ends."""
    rng = np.random.default_rng(2)
    x, full = training_rows()
    classes = (full[:, 0] > 0) * 1 + (full[:, 1] > 0) * objective.startswith("multi")
    classes = np.where(rng.random(len(x)) < 0.3, rng.permutation(classes), classes)
    model = xgboost.XGBClassifier(
        n_estimators=60, early_stopping_rounds=3, n_jobs=1, objective=objective, max_depth=4, **more
    )
    model.fit(x[300:], classes[300:], eval_set=[(x[:300], classes[:300])], verbose=False)
    assert 0 < model.best_iteration < model.get_booster().num_boosted_rounds() - 1
    parsed = assert_same_answers(model.get_booster(), best=model.best_iteration)
    rows = hard_rows(parse(bytes(model.get_booster().save_raw())).forest, 300, infinite=False)
    for form in ("json", "ubj"):
        forest = parse(bytes(model.get_booster().save_raw(form))).forest
        same_bits(forest.model().predict_all(rows), model.predict_proba(rows))
    older = json.loads(model.get_booster().save_raw("json"))
    del older["learner"]["gradient_booster"]["model"]["iteration_indptr"]  # as XGBoost 1.6 and 1.7 wrote it
    again = parse(json.dumps(older).encode(), dtype="float64").forest
    for name, array in parsed.forest.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


def test_wrappers_give_the_same_probabilities():
    """predict_proba of a fitted classifier, both columns, also of a random forest; one row at a time too."""
    x, _ = training_rows()
    for kind in (xgboost.XGBClassifier, xgboost.XGBRFClassifier):
        model = kind(n_estimators=9, max_depth=4, n_jobs=1).fit(x, labels("binary:logistic"))
        forest = parse(bytes(model.get_booster().save_raw())).forest
        rows = hard_rows(forest, 500, infinite=False)
        assert_all_kernels(forest, rows, answer=model.predict_proba(rows))
        for row in rows[:20]:
            same_bits(forest.model().predict_all(row[None]), model.predict_proba(row[None]))


def test_in_place_prediction_of_dart_differs_in_its_last_bits_alone():
    """XGBoost has two orders of rounding for dart; the forest has that of a DMatrix."""
    model = booster("binary:logistic", booster="dart", rate_drop=0.5, one_drop=1, rounds=30)
    forest = parse(bytes(model.save_raw())).forest
    rows = hard_rows(forest, 1_000, infinite=False)
    got = forest.model().predict(rows, column=1)
    same_bits(got, model.predict(matrix(rows)))
    np.testing.assert_allclose(got, model.inplace_predict(rows), rtol=0, atol=5e-7)


def test_probabilities_of_softmax_are_those_of_softprob():
    """Its own answer is the number of a class, which is the largest of them."""
    model = booster("multi:softmax")
    forest = parse(bytes(model.save_raw())).forest
    rows = hard_rows(forest, 500, infinite=False)
    numbers = model.predict(matrix(rows))
    other = xgboost.Booster()
    other.load_model(model.save_raw())
    other.set_param({"objective": "multi:softprob"})
    assert_all_kernels(forest, rows, answer=other.predict(matrix(rows)))
    np.testing.assert_array_equal(forest.model().predict_all(rows).argmax(axis=1), numbers)


def test_names_and_covers_come_along():
    """Names of the training matrix; the hessian of a node's children is the node's."""
    x, full = training_rows()
    names = ["age", "amount", "a=b", "é", "shop", "kind"]
    data = xgboost.DMatrix(x, full[:, 0], feature_names=names, nthread=1)
    model = xgboost.train({"objective": "reg:squarederror", "nthread": 1}, data, 3)
    for form in ("json", "ubj"):
        parsed = parse(bytes(model.save_raw(form)))
        assert parsed.feature_names == tuple(names)
        arrays = parsed.forest.arrays
        inner = arrays["feature"] >= 0
        children = arrays["cover"][arrays["left"][inner]] + arrays["cover"][arrays["right"][inner]]
        np.testing.assert_array_equal(children, arrays["cover"][inner])
        assert set(arrays["cover"][arrays["roots"]]) == {900.0}


@pytest.mark.parametrize("case", range(6))
def test_files_of_old_versions_answer_as_they_did(case):
    """Written by XGBoost 1.6.2 and 2.0.3, with the predictions of that version and what differs in today's."""
    one = json.loads(OLD.read_text())[case]
    rows = np.array([[np.nan if v is None else v for v in row] for row in one["rows"]], np.float32)
    raw = bytes.fromhex(one["ubj"]) if "ubj" in one else json.dumps(one["json"]).encode()
    parsed = parse(raw)
    changed = np.array(
        one["changed"], np.int64
    )  # rows in which today's XGBoost reads a code below 0 another way
    kept = np.setdiff1d(np.arange(len(rows)), changed)
    assert_all_kernels(
        parsed.forest, rows[kept], raw=np.array(one["margin"])[kept], answer=np.array(one["answer"])[kept]
    )
    today = xgboost.Booster()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the age of the file
        today.load_model(bytearray(raw))
    kinds = ["q", "q", "q", "c"]
    data = xgboost.DMatrix(rows, feature_types=kinds, enable_categorical=True, nthread=1)
    assert_all_kernels(parsed.forest, rows, raw=today.predict(data, output_margin=True))
    assert (rows[changed, 3] < 0).all()


# ---- forests that nobody trained --------------------------------------------------------------------------------------------

_EDGES = (0.0, -0.0, 1e-45, -1e-45, 1e-38, 0.1, -0.1, 2.5, 3.0e38, -3.0e38, 3.4028234663852886e38, 16777216.0)


@st.composite
def model_documents(draw):
    """Any document that XGBoost itself would read: shapes, directions, sets and thresholds that training never gives."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    objective = draw(st.sampled_from(sorted(OBJECTIVES)))
    n_outputs = (
        3
        if objective.startswith("multi:") or objective == "reg:quantileerror"
        else draw(st.sampled_from([1, 1, 2]))
    )
    if objective.startswith(("rank:", "survival:")) or objective == "binary:hinge":
        n_outputs = 1
    categorical = draw(st.booleans())
    trees = [_tree(rng, i, categorical) for i in range(n_outputs * draw(st.integers(1, 5)))]
    base = draw(st.floats(2**-24, 1 - 2**-12, width=32))
    model = {
        "cats": {"enc": [], "feature_segments": [], "sorted_idx": []},
        "gbtree_model_param": {"num_parallel_tree": "1", "num_trees": str(len(trees))},
        "iteration_indptr": list(range(0, len(trees) + 1, n_outputs)),
        "tree_info": [i % n_outputs for i in range(len(trees))],
        "trees": trees,
    }
    dart = draw(st.booleans())
    weights = [float(np.float32(w)) for w in rng.random(len(trees))]
    inner = {"name": "gbtree", "model": model}
    classes = n_outputs if objective.startswith("multi:") else 0
    facts = {"base_score": f"[{np.float32(base)!r}]".replace("np.float32(", "").replace(")", "")}
    facts |= {"num_class": str(classes), "num_feature": "4", "boost_from_average": "0"}
    facts |= {"num_target": str(1 if classes else n_outputs)}
    return {
        "learner": {
            "attributes": {},
            "feature_names": [],
            "feature_types": ["q", "q", "c", "c"] if categorical else [],
            "gradient_booster": {"name": "dart", "gbtree": inner, "weight_drop": weights} if dart else inner,
            "learner_model_param": facts,
            "objective": json.loads(booster(objective).save_raw("json"))["learner"]["objective"],
        },
        "version": [3, 2, 0],
    }


def _tree(rng, number, categorical):
    left, right, parents, ready = [-1], [-1], [2147483647], [0]
    for _ in range(int(rng.integers(0, 9))):
        node = ready.pop(int(rng.integers(len(ready))))
        left[node], right[node] = len(left), len(left) + 1
        ready += [len(left), len(left) + 1]
        left, right, parents = [*left, -1, -1], [*right, -1, -1], [*parents, node, node]
    n = len(left)
    feature = rng.integers(0, 4, n) * (np.array(left) >= 0)
    kinds = np.where(categorical & (feature >= 2), 1, 0)
    nodes = np.flatnonzero(kinds).tolist()
    sets = [np.unique(rng.integers(0, 70, rng.integers(1, 9))).tolist() for _ in nodes]
    sizes = [len(one) for one in sets]
    edges = np.where(rng.random(n) < 0.5, rng.choice(np.array(_EDGES, np.float32), n), rng.normal(size=n))
    conditions = np.where(np.array(left) >= 0, edges, rng.normal(size=n)).astype(np.float32)
    floats = [float(f"{value:.9g}") for value in conditions]
    return {
        "base_weights": [0.0] * n,
        "categories": [code for one in sets for code in one],
        "categories_nodes": nodes,
        "categories_segments": np.cumsum([0, *sizes[:-1]]).tolist() if sets else [],
        "categories_sizes": sizes,
        "default_left": rng.integers(0, 2, n).tolist(),
        "id": number,
        "left_children": left,
        "loss_changes": [0.0] * n,
        "parents": parents,
        "right_children": right,
        "split_conditions": floats,
        "split_indices": feature.tolist(),
        "split_type": kinds.tolist(),
        "sum_hessian": [1.0] * n,
        "tree_param": {"num_deleted": "0", "num_feature": "4", "num_nodes": str(n), "size_leaf_vector": "1"},
    }


@given(document=model_documents(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_whatever_xgboost_reads_answers_alike(document, dtype, seed):
    """Drawn documents: XGBoost's reader is the judge of what they mean, of the UBJSON that it makes of them as well."""
    raw = json.dumps(document).encode()
    model = xgboost.Booster({"nthread": 1})
    model.load_model(bytearray(raw))
    for data in (raw, bytes(model.save_raw("ubj"))):
        forest = parse(data, dtype=dtype).forest
        rows = hard_rows(forest, 150, seed=seed, infinite=False)
        rows_of_theirs = xgboost.DMatrix(
            rows,
            feature_types=document["learner"]["feature_types"] or None,
            enable_categorical=True,
            nthread=1,
        )
        margin, answer = (model.predict(rows_of_theirs, output_margin=raw_sums) for raw_sums in (True, False))
        softmax = document["learner"]["objective"]["name"] == "multi:softmax"
        assert_all_kernels(forest, rows, raw=margin, answer=None if softmax else answer)


# ---- files that are damaged, or made to hurt --------------------------------------------------------------------------------


@functools.cache
def small():
    """JSON and UBJSON of a few trees, categories among them."""
    model = booster("binary:logistic", categories=True, rounds=3, max_depth=3)
    return bytes(model.save_raw("json")), bytes(model.save_raw("ubj"))


def trees_of(document):
    """The trees of a document."""
    return document["learner"]["gradient_booster"]["model"]["trees"]


def put(name, at, value):
    """A change of one number of the second tree."""

    def change(document):
        trees_of(document)[1][name][at] = value

    return change


def learner(**fields):
    """A change of fields of the learner."""
    return lambda document: document["learner"].update(fields)


def facts(**fields):
    """A change of the learner's parameters."""
    return lambda document: document["learner"]["learner_model_param"].update(fields)


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        (lambda d: d.pop("learner"), ModelError, "Expected an object `learner`"),
        (learner(gradient_booster=[]), ModelError, "gradient_booster"),
        (learner(gradient_booster={"name": "gblinear", "model": {}}), Unfit, "its booster is 'gblinear'"),
        (learner(objective={"name": "reg:magic"}), Unfit, "its objective is 'reg:magic'"),
        (learner(objective={}), ModelError, "at `name` of the objective"),
        (learner(feature_names=[3]), ModelError, "feature_names"),
        (learner(feature_types="q"), ModelError, "feature_types"),
        (learner(attributes={"best_iteration": "7"}), ModelError, "best_iteration"),
        (learner(attributes={"best_iteration": 1}), ModelError, "best_iteration"),
        (learner(attributes={"best_iteration": "-1"}), ModelError, "best_iteration"),
        (facts(num_feature="0"), Unfit, "0 features"),
        (facts(num_feature="3"), ModelError, "`split_indices` has"),
        (facts(num_feature="99999999999"), ModelError, "num_feature"),
        (facts(num_feature=6), ModelError, "num_feature"),
        (facts(num_class="2000"), Unfit, "2000 numbers"),
        (facts(num_class="2", num_target="2"), ModelError, "classes or targets"),
        (facts(base_score="x"), ModelError, "base_score"),
        (facts(base_score="[0.5,0.5]"), ModelError, "Expected 1 base scores, got 2"),
        (facts(base_score="nan"), ModelError, "base_score"),
        (facts(base_score="1e39"), ModelError, "base score that its objective can have, got inf"),
        (facts(base_score="2.0"), ModelError, "base score that its objective can have, got 2.0"),
        (facts(base_score="1" * 10_000), ModelError, "base_score"),
        (lambda d: trees_of(d).append(3), ModelError, "list of trees"),
        (lambda d: trees_of(d).pop(), ModelError, "Expected '3' trees, got 2"),
        (lambda d: trees_of(d)[1].pop("left_children"), ModelError, "`left_children` of tree 1"),
        (lambda d: trees_of(d)[1].pop("tree_param"), ModelError, "`tree_param`.*tree 1"),
        (
            lambda d: trees_of(d)[1]["tree_param"].update(num_nodes="2"),
            ModelError,
            "Expected 2 numbers, got .* of tree 1",
        ),
        (lambda d: trees_of(d)[1]["tree_param"].update(num_nodes="99999999"), ModelError, "num_nodes"),
        (lambda d: trees_of(d)[1]["tree_param"].update(size_leaf_vector="3"), ModelError, "values a leaf"),
        (lambda d: trees_of(d)[1].update(split_type=[2] * 99), ModelError, "`split_type` of tree 1"),
        (put("left_children", 0, 99), ModelError, "`left_children` has 99 - at tree 1, node 0"),
        (put("left_children", 0, -2), ModelError, "`left_children` has -2 - at tree 1, node 0"),
        (put("left_children", 0, 0.5), ModelError, "got 0.5 - at `left_children`"),
        (put("left_children", 0, "1"), ModelError, "got '1' - at `left_children`"),
        (put("left_children", 0, 10**30), ModelError, "larger ones - at `left_children`"),
        (put("right_children", 0, 99), ModelError, "`right_children` has 99 - at tree 1, node 0"),
        (put("right_children", 0, 1), Unfit, "side by side"),
        (put("split_conditions", -1, float("nan")), ModelError, "`leaf value` has .*nan.* - at tree 1"),
        (put("split_conditions", -1, float("inf")), ModelError, "`leaf value` has .*inf.* - at tree 1"),
        (put("split_conditions", -1, 1e39), ModelError, "`leaf value` has .*inf.* - at tree 1"),
        (put("split_conditions", -1, None), ModelError, "got None - at `split_conditions`"),
        (put("split_conditions", -1, 1 + 2**-24), Unfit, "in the middle of two"),
        (put("default_left", 0, 2), ModelError, "`default_left` has 2 - at tree 1, node 0"),
        (put("categories", 0, -1), ModelError, "Expected categories below"),
        (put("categories", 0, 1 << 24), ModelError, "Expected categories below"),
        (put("categories_sizes", 0, 0), ModelError, "Expected ranges that share out"),
        (put("categories_sizes", 0, 10**6), ModelError, "Expected ranges that share out"),
        (put("categories_segments", 0, -1), ModelError, "Expected ranges that share out"),
        (put("categories_nodes", 0, 99), ModelError, "Expected ranges that share out"),
        (put("categories_nodes", 0, -1), ModelError, "Expected ranges that share out"),
        (
            lambda d: trees_of(d)[1]["categories_nodes"].append(0),
            ModelError,
            "range of categories for each node once",
        ),
    ],
)
def test_damaged_documents_are_refused_with_the_place(change, error, why):
    """Sizes, children, features, sets, numbers and base scores: what is wrong, in which tree, at which node."""
    document = json.loads(small()[0])
    change(document)
    with pytest.raises(error, match=why):
        parse(json.dumps(document).encode())


def test_thresholds_that_are_no_number_and_nodes_in_circles_are_refused():
    """By hand, at a tree of quantities."""
    document = json.loads(bytes(booster("reg:squarederror", rounds=2, max_depth=2).save_raw("json")))
    bad = json.loads(json.dumps(document))
    trees_of(bad)[0]["split_conditions"][0] = float("nan")
    with pytest.raises(ModelError, match="`split_conditions` has nan - at tree 0, node 0"):
        parse(json.dumps(bad).encode())
    trees_of(bad)[0]["split_conditions"][0] = float("-inf")
    with pytest.raises(Unfit, match="nothing is below"):
        parse(json.dumps(bad).encode())
    for left in (0, 1):
        bad = json.loads(json.dumps(document))
        trees_of(bad)[1]["left_children"][1], trees_of(bad)[1]["right_children"][1] = left, left + 1
        with pytest.raises(ModelError, match="tree 1"):
            parse(json.dumps(bad).encode())


def test_chains_of_thousands_of_nodes_are_refused_in_time():
    """As deep as the core goes is fine; deeper is not."""

    def chain(n):
        document = json.loads(bytes(booster("reg:squarederror", rounds=1, max_depth=2).save_raw("json")))
        one, size = trees_of(document)[0], 2 * n + 1
        inner = [i + 1 if i < 2 * n and i % 2 == 0 else -1 for i in range(size)]
        one.update(left_children=inner, right_children=[i + 1 if i >= 0 else -1 for i in inner])
        one["parents"] = [2**31 - 1, *((i - 1) // 2 * 2 for i in range(1, size))]
        for name in ("split_indices", "default_left", "split_type"):
            one[name] = [0] * size
        for name in ("split_conditions", "sum_hessian"):
            one[name] = [1.0] * size
        one["tree_param"]["num_nodes"] = str(size)
        return json.dumps(document).encode()

    assert parse(chain(4_000)).forest.model().depth == 4_000
    start = time.process_time()
    with pytest.raises(ModelError, match="deep"):
        parse(chain(100_000))
    assert time.process_time() - start < 20


def test_other_bytes_and_other_dtypes_are_refused():
    """The binary format that XGBoost 3.1 gave up among them, and dumps for people to read."""
    for data in (b"", b"binf\0\0", b"\x80\x04", b"[]"):
        with pytest.raises(ModelError, match="JSON or UBJSON"):
            parse(data)
    for data in (b"{}", b"{", b"{}x", b"{L", b"{U\x01a", b'{"learner":' + b"[" * 100_000):
        with pytest.raises(ModelError):
            parse(data)
    with pytest.raises(ConfigError, match="float32 or float64"):
        parse(small()[0], dtype="int32")


def test_a_booster_without_trees_is_unfit():
    """Nothing to run."""
    x, full = training_rows()
    model = xgboost.train({"nthread": 1}, matrix(x, full[:, 0]), 0)
    with pytest.raises(Unfit, match="no trees"):
        parse(bytes(model.save_raw()))


def test_documents_that_were_cut_are_refused_everywhere():
    """Not one byte may be missing."""
    for data in small():
        for at in range(0, len(data) - 1, 11):
            with pytest.raises(ModelError):
                parse(data[:at])
        parse(data)


TOKENS = [
    b"L",
    b"[",
    b"{",
    b"}",
    b"]",
    b"$",
    b"#",
    b"-1",
    b"1e308",
    b"null",
    b'"',
    b"\xff" * 8,
    b"\0" * 8,
    b"\x7f" * 8,
    b"NaN",
]


@given(data=st.data(), form=st.sampled_from([0, 1]))
def test_documents_with_any_bytes_changed_are_refused_or_still_answer(data, form):
    """Bytes replaced, removed, doubled: a typed error, or a forest that runs, in bounded time."""
    raw = small()[form]
    for _ in range(data.draw(st.integers(1, 4))):
        at, n = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(0, 8))
        raw = raw[:at] + data.draw(st.one_of(st.binary(max_size=8), st.sampled_from(TOKENS))) + raw[at + n :]
    answers_or_refuses(raw)


VALUES = [
    None,
    True,
    -1,
    0,
    1,
    10**9,
    2**40,
    0.5,
    1e308,
    float("nan"),
    "",
    "7",
    "1e9",
    [],
    {},
    "move",
    "gone",
]


@given(data=st.data())
def test_documents_with_any_part_changed_are_refused_or_still_answer(data):
    """Keys gone, values of other kinds, arrays and trees moved elsewhere."""
    document = json.loads(small()[0])
    for _ in range(data.draw(st.integers(1, 4))):
        places = list(walk(document))
        holder, key = places[data.draw(st.integers(0, len(places) - 1))]
        other, its = places[data.draw(st.integers(0, len(places) - 1))]
        value = data.draw(st.sampled_from(VALUES))
        if value == "gone" and isinstance(holder, dict):
            holder.pop(key, None)
        elif key in holder if isinstance(holder, dict) else key < len(holder):
            holder[key] = json.loads(json.dumps(other[its])) if value == "move" else value
    answers_or_refuses(json.dumps(document).encode())


def walk(value):
    """Every place of a document: what holds it, and under which key."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from walk(value[key])


def answers_or_refuses(data):
    """What a parser may do with anything."""
    start = time.process_time()
    try:
        forest = parse(data).forest
        answer = forest.model().predict(np.zeros((3, forest.n_features), np.float32))
        assert answer.shape == (3,)
    except (Unfit, ModelError):
        pass
    assert time.process_time() - start < 5


@pytest.mark.parametrize("node", [0, 1, 2])
def test_parents_that_lead_nowhere_are_refused_before_xgboost_follows_them(node):
    """XGBoost reads at the number that a file gives as a parent, and the process ends there."""
    import xgboost

    rows = np.random.default_rng(0).normal(size=(200, 3))
    booster = xgboost.train(
        {"objective": "binary:logistic", "nthread": 1}, xgboost.DMatrix(rows, rows[:, 0] > 0), 2
    )
    document = json.loads(booster.save_raw("json"))
    document["learner"]["gradient_booster"]["model"]["trees"][0]["parents"][node] = 10**9
    with pytest.raises(ModelError, match="`parents` has 1000000000"):
        parse(json.dumps(document).encode())
