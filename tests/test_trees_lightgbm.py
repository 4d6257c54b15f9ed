"""LightGBM's own files as forests: every answer is the one that LightGBM gives, also on its thresholds."""

from __future__ import annotations

import functools
import json
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer_rows import assert_all_kernels, hard_rows, same_bits

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.authoring.trees import Unfit
from retailinfer.authoring.trees.lightgbm_json import parse_json
from retailinfer.authoring.trees.lightgbm_text import parse_text
from retailinfer.errors import ConfigError, ModelError

lightgbm = pytest.importorskip("lightgbm")
pytestmark = pytest.mark.requires("lightgbm")

DTYPES = ("float32", "float64")


def training_rows():
    """Six features, two of them categories, some missing, one of large numbers and one that is mostly zero."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1_200, 6))
    x[:, 2] *= 1e6
    x[rng.random(len(x)) < 0.6, 3] = 0
    x[:, 4], x[:, 5] = rng.integers(0, 40, len(x)), rng.integers(0, 5, len(x))
    x[rng.random(x.shape) < 0.1] = np.nan
    return x, np.nan_to_num(x)


def booster(objective, *, categories=True, rounds=12, **settings):
    """A small booster of one objective."""
    x, full = training_rows()
    rng = np.random.default_rng(1)
    two = (full[:, 0] + full[:, 1] * full[:, 4] / 20 > 0.3).astype(int)
    label = {
        "binary": two,
        "cross_entropy": two * 0.8 + 0.1,
        "cross_entropy_lambda": two * 0.8 + 0.1,
        "lambdarank": two,
        "rank_xendcg": two,
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
        group=[100] * 12 if "rank" in objective else None,
    )
    return lightgbm.train(known | settings, data, rounds)


def assert_same_answers(model, *, names=DTYPES):
    """On hard rows of both precisions, from both files: what LightGBM predicts and sums, bit by bit, with every kernel."""
    text, document = model.model_to_string(), json.dumps(model.dump_model())
    for dtype in names:
        parsed = parse_text(text, dtype=dtype)
        rows = hard_rows(parsed.forest)
        mean = model.num_trees() // model.num_model_per_iteration() if parsed.forest.average else 1
        how = {"raw": model.predict(rows, raw_score=True) / mean, "answer": model.predict(rows)}
        assert_all_kernels(parsed.forest, rows, **how)
        if parsed.forest.n_columns > parsed.forest.n_outputs:
            same_bits(parsed.forest.model().predict(rows, column=0), 1.0 - how["answer"])
        other = parse_json(document, dtype=dtype)
        assert_all_kernels(other.forest, rows, **how)
        told = {
            name: getattr(parsed, name) for name in ("source", "feature_names", "classes", "task", "codes")
        }
        assert told == {name: getattr(other, name) for name in told}
        n = parsed.forest.arrays
        assert len(other.forest.arrays["cover"]) == len(n["cover"]) == len(n["feature"])
    return parsed


@pytest.mark.parametrize("categories", [False, True])
@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("binary", {}),
        ("binary", {"sigmoid": 0.7}),
        ("binary", {"zero_as_missing": True}),
        ("binary", {"use_missing": False}),
        ("binary", {"boosting": "dart"}),
        ("binary", {"boosting": "goss"}),
        ("binary", {"extra_trees": True, "max_depth": 2}),
        ("cross_entropy", {}),
        ("cross_entropy_lambda", {}),
        ("multiclass", {}),
        ("multiclassova", {"sigmoid": 2.5}),
        ("regression", {}),
        ("regression", {"reg_sqrt": True}),
        ("regression_l1", {}),
        ("regression_l1", {"reg_sqrt": True}),
        ("huber", {}),
        ("fair", {}),
        ("mape", {}),
        ("quantile", {"alpha": 0.9}),
        ("poisson", {}),
        ("gamma", {}),
        ("tweedie", {}),
        ("lambdarank", {}),
        ("rank_xendcg", {}),
        ("regression", {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}),
        ("binary", {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}),
        ("multiclass", {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}),
    ],
)
def test_forest_answers_as_lightgbm_does(objective, settings, categories):
    """Objectives, ways of missing, categories, dart and random forests: all of them exactly."""
    model = booster(objective, categories=categories, **settings)
    parsed = assert_same_answers(model)
    assert parsed.codes == ((4, 5) if categories else ())
    assert parsed.feature_names is None
    classifies = objective in ("binary", "cross_entropy", "multiclass", "multiclassova")
    ranks = objective in ("lambdarank", "rank_xendcg")
    assert parsed.task == ("classification" if classifies else "ranking" if ranks else "regression")
    assert parsed.classes == tuple(range(3 if objective.startswith("multi") else 2 if classifies else 0))


def test_an_objective_of_the_users_answers_with_its_sums():
    """Nothing stands in the file about it."""
    x, full = training_rows()
    data = lightgbm.Dataset(x, full[:, 0])
    model = lightgbm.train(
        {"objective": lambda p, d: (p - d.get_label(), np.ones(len(p))), "verbose": -1, "num_threads": 1},
        data,
        5,
    )
    assert assert_same_answers(model).task == "regression"


def test_sets_of_thousands_of_categories_are_exact():
    """Every code, those that no training row had, and what is no code."""
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 6_000, 9_000)
    y = rng.normal(size=6_000)[codes] + rng.normal(size=9_000) * 0.1
    settings = {
        "max_cat_threshold": 4_000,
        "min_data_per_group": 1,
        "cat_smooth": 0,
        "cat_l2": 0,
        "max_bin": 8_000,
    }
    settings |= {"objective": "regression", "verbose": -1, "num_threads": 1, "min_data_in_bin": 1}
    model = lightgbm.train(settings, lightgbm.Dataset(np.c_[codes, y * 0], y, categorical_feature=[0]), 5)
    assert np.diff(parse_text(model.model_to_string()).forest.arrays["set_ends"]).max() > 150
    for dtype in DTYPES:
        forest = parse_text(model.model_to_string(), dtype=dtype).forest
        rows = np.zeros((6_100, 2), dtype)
        rows[:, 0] = np.arange(-40, 6_060)
        assert_all_kernels(forest, rows, answer=model.predict(rows))
    assert_same_answers(model)


def test_codes_are_places_among_the_categories_of_a_data_frame():
    """A model that was trained on texts takes the codes that pandas has for them, whatever their order."""
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    shops = pandas.Categorical(rng.choice(["zeta", "alpha", "mid"], 500), categories=["zeta", "mid", "alpha"])
    frame = pandas.DataFrame({"amount": rng.normal(size=500), "shop": shops})
    label = (frame.amount > 0) ^ (frame.shop == "mid")
    settings = {"objective": "binary", "verbose": -1, "num_threads": 1, "min_data_per_group": 5}
    model = lightgbm.train(settings, lightgbm.Dataset(frame, label), 5)
    parsed = parse_text(model.model_to_string(), dtype="float64")
    assert (parsed.feature_names, parsed.codes) == (("amount", "shop"), (1,))
    rows = np.c_[frame.amount, shops.codes].astype(np.float64)
    assert_all_kernels(parsed.forest, rows, answer=model.predict(frame))


def test_a_booster_cut_at_its_best_round_writes_the_trees_that_predict():
    """Early stopping, and a number of rounds asked for by hand."""
    x, full = training_rows()
    rng = np.random.default_rng(2)
    data = lightgbm.Dataset(x, (full[:, 0] > 0) ^ (rng.random(len(x)) < 0.3))
    valid = lightgbm.Dataset(x[:400], rng.random(400) < 0.5, reference=data)
    model = lightgbm.train(
        {"objective": "binary", "verbose": -1, "num_threads": 1},
        data,
        40,
        valid_sets=[valid],
        callbacks=[lightgbm.early_stopping(4, verbose=False)],
        keep_training_booster=True,
    )
    assert 0 < model.best_iteration < model.current_iteration()
    forest = parse_text(model.model_to_string()).forest
    rows = hard_rows(forest)
    for one in (forest, parse_json(json.dumps(model.dump_model())).forest):
        assert_all_kernels(one, rows, answer=model.predict(rows))
    two = parse_text(model.model_to_string(num_iteration=2)), parse_json(json.dumps(model.dump_model(2)))
    for parsed in two:
        assert_all_kernels(parsed.forest, rows, answer=model.predict(rows, num_iteration=2))


def test_trees_without_a_split_are_constants():
    """A booster that learns nothing answers the same for everybody."""
    x, full = training_rows()
    model = lightgbm.train(
        {"objective": "regression", "verbose": -1, "min_data_in_leaf": 2_000, "num_threads": 1},
        lightgbm.Dataset(x, full[:, 0]),
        2,
    )
    assert_same_answers(model)
    older = model.model_to_string().replace("leaf_count=1200", "leaf_count=")
    assert parse_text(older).forest.arrays["cover"].tolist() == [0.0] * model.num_trees()


def test_names_and_covers_come_along():
    """Names of the training matrix; how many rows reached a node, of which a node's children have all."""
    x, full = training_rows()
    names = ["age", "amount", "a=b", "é", "shop", "kind"]
    data = lightgbm.Dataset(x, full[:, 0], feature_name=names, categorical_feature=["shop"])
    model = lightgbm.train({"objective": "regression", "verbose": -1, "num_threads": 1}, data, 3)
    for parsed in (parse_text(model.model_to_string().encode()), parse_json(json.dumps(model.dump_model()))):
        assert parsed.feature_names == tuple(names)
        arrays = parsed.forest.arrays
        inner = arrays["feature"] >= 0
        for side in ("left", "right"):
            assert (arrays["cover"][arrays[side][inner]] < arrays["cover"][inner]).all()
        children = arrays["cover"][arrays["left"][inner]] + arrays["cover"][arrays["right"][inner]]
        np.testing.assert_array_equal(children, arrays["cover"][inner])
        assert set(arrays["cover"][arrays["roots"]]) == {1200.0}


def test_leaves_have_lightgbms_numbers():
    """Within a tree, from both files."""
    model = booster("binary")
    for parsed in (parse_text(model.model_to_string()), parse_json(json.dumps(model.dump_model()))):
        rows = hard_rows(parsed.forest, 300)
        n_leaves = [tree["num_leaves"] for tree in model.dump_model()["tree_info"]]
        starts = np.cumsum([0, *n_leaves[:-1]])
        np.testing.assert_array_equal(
            parsed.forest.model().leaves(rows) - starts, model.predict(rows, pred_leaf=True)
        )


# ---- files that others trained ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases(shared_data):
    """Files of another project, old ones among them, with what their makers expect."""
    folder = shared_data / "model_cases" / "leaves"
    if not folder.is_dir():
        pytest.skip("shared data: model_cases is not here")
    return folder


def case_rows(folder, name, n_features):
    """The rows that come with a file."""
    if name.endswith(".libsvm"):
        rows = np.zeros((30, n_features))
        for row, line in zip(rows, (folder / name).read_text().splitlines(), strict=True):
            for part in line.split()[1:]:
                column, value = part.split(":")
                row[int(column)] = float(value)
        return rows
    return np.ascontiguousarray(np.loadtxt(folder / name)[:, -n_features:])  # some begin with the label


@pytest.mark.parametrize(
    ("name", "rows", "expected", "raw", "n_columns"),
    [
        ("lg_dart_breast_cancer.model", "breast_cancer_test.tsv", "lg_dart_breast_cancer", False, 2),
        ("lg_kddcup99.model", "kddcup99_test.tsv", "lg_kddcup99", True, 13),
        ("lgmulticlass.model", "multiclass_test.tsv", "lgmulticlass", False, 5),
        ("lgmulticlass.model", "multiclass_test.tsv", "lgmulticlass_raw", True, 5),
        ("lg_rf_iris.model", "iris_test.libsvm", "lg_rf_iris", True, 2),
        *(
            (f"genlin_fmtp_{name}.model", f"genlin_fmtp_{name}_features.tsv", f"genlin_fmtp_{name}", False, 1)
            for name in ("poisson_Frequency", "tweedie_PurePremium")
        ),
    ],
)
def test_models_that_others_trained_answer_what_they_expect(cases, name, rows, expected, raw, n_columns):
    """Their rows in float64, their numbers as float32, and what today's LightGBM reads in the file, on hard rows too."""
    model = lightgbm.Booster(model_file=str(cases / name))
    forest = parse_text((cases / name).read_bytes(), dtype="float64").forest
    assert forest.n_columns == n_columns
    given = case_rows(cases, rows, forest.n_features)
    ending = "_true_raw_predictions.txt" if expected.endswith("_raw") else "_true_predictions.txt"
    want = np.loadtxt(cases / (expected.removesuffix("_raw") + ending)).reshape(len(given), -1)
    assert_all_kernels(forest, given, **{"raw" if raw else "answer": want})
    assert_same_answers(model)


def test_models_that_others_trained_without_expectations_answer_as_lightgbm_reads_them(cases):
    """No numbers came with this one."""
    assert_same_answers(lightgbm.Booster(model_file=str(cases / "lg_breast_cancer.txt")))


def test_a_random_forest_of_lightgbm_2_answers_as_todays_lightgbm(cases):
    """Its makers expect the mean of the trees, which is the raw sum here; LightGBM puts the sigmoid behind it today."""
    path = cases / "lg_rf_iris.model"
    forest = parse_text(path.read_text(), dtype="float64").forest
    rows = case_rows(cases, "iris_test.libsvm", forest.n_features)
    mean = np.loadtxt(cases / "lg_rf_iris_true_predictions.txt")
    model = lightgbm.Booster(model_file=str(path))
    assert forest.average
    assert forest.post == "logistic"
    assert_all_kernels(forest, rows, raw=mean, answer=model.predict(rows))
    np.testing.assert_allclose(model.predict(rows), 1 / (1 + np.exp(-mean)), rtol=1e-15)
    np.testing.assert_allclose(model.predict(rows, raw_score=True), 30 * mean, rtol=1e-14)


# ---- forests that nobody trained --------------------------------------------------------------------------------------------

_EDGES = (
    *(0.0, -0.0, 1e-35, -1e-35, 1e-36, -1e-36, 5e-324, 0.1, -0.1, 2.5, 3.5e38),
    *(1e299, -1e299, np.inf, -np.inf),
)


@st.composite
def model_texts(draw):
    """Any text that LightGBM itself would read: shapes, decisions, sets and thresholds that training never gives."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_outputs = draw(st.sampled_from([1, 1, 3]))
    objective = draw(
        st.sampled_from(
            [f"multiclass num_class:{n_outputs}", f"multiclassova num_class:{n_outputs} sigmoid:0.3"]
            if n_outputs > 1
            else [
                "binary sigmoid:1.7",
                "regression",
                "regression sqrt",
                "poisson",
                "cross_entropy_lambda",
                "quantile",
            ]
        )
    )
    average = draw(st.booleans())
    lines = [
        "tree",
        "version=v3",
        f"num_class={n_outputs}",
        f"num_tree_per_iteration={n_outputs}",
        "label_index=0",
    ]
    lines += ["max_feature_idx=3", f"objective={objective}", *(["average_output"] if average else [])]
    lines += ["feature_names=a b c d", "feature_infos=[0:1] none 1:2:-1 [0:3]", ""]
    for i in range(n_outputs * draw(st.integers(1, 4))):
        lines += [f"Tree={i}", *_tree_lines(rng), "", ""]
    return "\n".join([*lines, "end of trees", "", "parameters:", "end of parameters", ""])


def _tree_lines(rng):
    n = int(rng.integers(1, 9))
    left, right, leaves = [-1] * (n - 1), [-1] * (n - 1), []
    places = []  # where a further node can hang
    for i in range(n - 1):
        if places:
            node, side = places.pop(int(rng.integers(len(places))))
            side[node] = i
        places += [(i, left), (i, right)]
    order = rng.permutation(n)
    leaves = list(order)
    for node, side in places:
        side[node] = -1 - int(leaves.pop())
    categorical = rng.random(n - 1) < 0.3
    decision = rng.choice([0, 2, 4, 6, 8, 10], n - 1) | categorical
    threshold = np.where(rng.random(n - 1) < 0.6, rng.choice(_EDGES, n - 1), rng.normal(size=n - 1))
    n_sets = int(categorical.sum())
    threshold[categorical] = rng.permutation(n_sets)
    ends = np.cumsum([0, *rng.integers(0, 4, n_sets)])
    words = rng.integers(0, 2**32, ends[-1])
    row = {"num_leaves": [n], "num_cat": [n_sets], "split_feature": rng.integers(0, 4, n - 1)}
    row |= {"threshold": threshold, "decision_type": decision, "left_child": left, "right_child": right}
    row |= {"leaf_value": rng.normal(size=n)}
    row |= {"cat_boundaries": ends, "cat_threshold": words} if n_sets else {}
    row |= {"is_linear": [0], "shrinkage": [1]}
    return [
        f"{name}={' '.join(repr(v.item() if hasattr(v, 'item') else v) for v in values)}"
        for name, values in row.items()
    ]


@given(text=model_texts(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_whatever_lightgbm_reads_answers_alike(text, dtype, seed):
    """Drawn files: LightGBM's reader is the judge of what they mean."""
    model = lightgbm.Booster(model_str=text)
    forest = parse_text(text, dtype=dtype).forest
    rows = hard_rows(forest, 200, seed=seed)
    mean = model.num_trees() // model.num_model_per_iteration() if forest.average else 1
    answer, raw = (model.predict(rows, raw_score=sums, num_threads=1) for sums in (False, True))
    assert_all_kernels(forest, rows, raw=raw / mean, answer=answer)
    document = json.dumps(model.dump_model())
    if re.search(r'"split_feature": 1, [^{}]*"threshold": -?1e\+300', document):
        # nothing is known of that feature's numbers
        with pytest.raises(Unfit, match="1e300 may be infinity"):
            parse_json(document, dtype=dtype)
    else:
        assert_all_kernels(parse_json(document, dtype=dtype).forest, rows, answer=answer)


# ---- files that are damaged, or made to hurt --------------------------------------------------------------------------------


@functools.cache
def small():
    """Text and JSON of a few trees, categories among them."""
    x, full = training_rows()
    label = (full[:, 4] % 3 == 0) ^ (full[:, 0] > 0.5)
    data = lightgbm.Dataset(x, label, categorical_feature=[4, 5])
    settings = {
        "objective": "binary",
        "verbose": -1,
        "num_threads": 1,
        "num_leaves": 6,
        "min_data_per_group": 5,
    }
    model = lightgbm.train(settings, data, 3)
    return model.model_to_string(), json.dumps(model.dump_model())


@pytest.mark.parametrize(
    ("by", "why"),
    [
        (("objective=binary sigmoid:1", "objective=magic"), "its objective is 'magic'"),
        (("is_linear=0", "is_linear=1"), "linear trees"),
        (("version=v4", "version=v9"), "its format is 'v9'"),
        (("num_cat=3\n", ""), "older than LightGBM 2.1"),
    ],
)
def test_text_that_is_not_understood_is_left_to_another_engine(by, why):
    """Each reason is said in one line."""
    assert by[0] in small()[0]
    with pytest.raises(Unfit, match=why):
        parse_text(small()[0].replace(*by))


@pytest.mark.parametrize(
    ("pattern", "by", "why"),
    [
        (r"^tree$", "forest", "which begins with `tree`"),
        (r"^num_tree_per_iteration=1", "num_tree_per_iteration=x", "got 'x' - at `num_tree_per_iteration`"),
        (r"^num_tree_per_iteration=1", "num_tree_per_iteration=2", "Expected 2 trees a round, got 3"),
        (r"^max_feature_idx=5", "max_feature_idx=6", "Expected 7 names, got 6"),
        (r"^max_feature_idx=5", "max_feature_idx=-1", "max_feature_idx"),
        (r"^objective=.*", "objective=binary", "Expected sigmoid:<above 0>"),
        (r"^objective=.*", "objective=binary sigmoid:-1", "Expected sigmoid:<above 0>"),
        (r"^objective=.*", "objective=binary sigmoid:1e999", "Expected sigmoid:<above 0>"),
        (r"^objective=.*", "objective=multiclass num_class:4", "Expected num_class:1"),
        (r"^(objective=.*)", r"\1\nobjective=regression", "Expected `'objective'` once"),
        (r"^num_leaves=6", "num_leaves=7", "Expected 6 numbers, got 5 - at `[a-z_]+` of tree 0"),
        (r"^num_leaves=6", "num_leaves=0", "num_leaves of tree 0"),
        (r"^num_leaves=6", "num_leaves=999999999999", "num_leaves of tree 0"),
        (r"^num_leaves=6", "num_leaves=-6", "num_leaves of tree 0"),
        (r"^left_child=", "left_child=x ", "at `left_child` of tree 0"),
        (r"^left_child=\S+", "left_child=5", "`left_child` has 5 - at tree 0, node 0"),
        (r"^left_child=\S+", "left_child=-7", "`left_child` has -7 - at tree 0, node 0"),
        (r"^left_child=\S+", "left_child=0", "tree 0"),
        (r"^left_child=\S+", "left_child=99999999999999999999", "at `left_child`"),
        (r"^right_child=\S+", "right_child=" + "9" * 5_000, "at `right_child`"),
        (r"^split_feature=\S+", "split_feature=6", "`split_feature` has 6 - at tree 0, node 0"),
        (r"^split_feature=\S+", "split_feature=0.5", "at `split_feature` of tree 0"),
        (r"^threshold=\S+", "threshold=nan", "at `threshold` of tree 0"),
        (r"^threshold=\S+", "threshold=1_0", "at `threshold` of tree 0"),
        (r"^threshold=\S+", "threshold=١", "at `threshold` of tree 0"),
        (r"^threshold=\S+", "threshold=1e", "at `threshold`"),
        (r"^decision_type=\S+", "decision_type=12", "`decision_type` has 12 - at tree 0, node 0"),
        (r"^decision_type=\S+", "decision_type=-1", "`decision_type` has -1 - at tree 0, node 0"),
        (r"^leaf_value=\S+", "leaf_value=inf", "`leaf_value` has inf - at tree 0"),
        (r"^leaf_value=\S+", "leaf_value=1e400", "`leaf_value` has inf - at tree 0"),
        (r"^leaf_value=\S+ ", "leaf_value=", "Expected 6 numbers, got 5 - at `leaf_value` of tree 0"),
        (r"^(leaf_value=.*)$", r"\1\n\1", "Expected `'leaf_value'` once - at tree 0"),
        (r"^cat_boundaries=0 2", "cat_boundaries=0 9", "which begin at 0 and rise"),
        (r"^cat_boundaries=0 2", "cat_boundaries=1 2", "which begin at 0 and rise"),
        (r"^cat_boundaries=0 2", "cat_boundaries=0 -1", "which begin at 0 and rise"),
        (r"^cat_boundaries=0 2", "cat_boundaries=0 4000000000", "which begin at 0 and rise"),
        (r"^cat_threshold=\S+", "cat_threshold=4294967296", "words of 32 bits"),
        (r"^cat_threshold=\S+", "cat_threshold=-1", "words of 32 bits"),
        (r"^num_cat=[1-9].*", "num_cat=0", r"`threshold \(number of a set\)` has 0"),
        (r"^end of trees$", "end of", "cut short"),
        (r"^tree_sizes=\S+ ", "tree_sizes=", "Expected 2 trees, as tree_sizes says, got 3"),
    ],
)
def test_damaged_text_is_refused_with_the_place(pattern, by, why):
    """Sizes, children, features, sets, numbers, doubled keys: what is wrong, and in which tree."""
    bad, n = re.subn(pattern, by, small()[0], count=1, flags=re.MULTILINE)
    assert n == 1
    with pytest.raises(ModelError, match=why):
        parse_text(bad)


@pytest.mark.parametrize("right", ["0 1 2 3", "1 2 3 4", "4 3 2 1"])
def test_nodes_that_run_in_circles_or_are_led_to_twice_are_refused(right):
    """Also where every child is a node of the tree."""
    head = "tree version=v2 num_class=1 num_tree_per_iteration=1 max_feature_idx=0 objective=regression feature_names=a"
    tree = ["Tree=0", "num_leaves=5", "num_cat=0", "split_feature=0 0 0 0", "threshold=1 2 3 4"]
    tree += [
        "decision_type=2 2 2 2",
        "left_child=-1 -2 -3 -4",
        f"right_child={right}",
        "leaf_value=1 2 3 4 5",
    ]
    text = "\n".join([*head.split(), "", *tree, "", ""])
    with pytest.raises(ModelError, match="tree 0"):
        parse_text(text)
    parse_text(text.replace(f"right_child={right}", "right_child=1 2 3 -5")).forest.model()


def test_chains_of_thousands_of_nodes_are_refused_in_time():
    """As deep as the core goes is fine; deeper is not."""

    def chain(n):
        row = [f"split_feature={'0 ' * n}", f"threshold={'1 ' * n}", f"decision_type={'2 ' * n}"]
        row += ["left_child=" + " ".join(str(-1 - i) for i in range(n))]
        row += ["right_child=" + " ".join([*map(str, range(1, n)), str(-1 - n)])]
        head = ["tree", "version=v2", "num_class=1", "max_feature_idx=0", "feature_names=a", ""]
        tree = ["Tree=0", f"num_leaves={n + 1}", "num_cat=0", *row, f"leaf_value={'1 ' * (n + 1)}", "", ""]
        return "\n".join([*head, *tree])

    assert parse_text(chain(4_000)).forest.model().depth == 4_000
    start = time.process_time()
    with pytest.raises(ModelError, match="deep"):
        parse_text(chain(100_000))
    assert time.process_time() - start < 20


def test_text_that_was_cut_is_refused_everywhere():
    """Not one byte may be missing before the end of the trees."""
    text = small()[0]
    end = text.index("end of trees\n") + len("end of trees\n")
    for at in range(1, end, 7):
        with pytest.raises((ModelError, Unfit)):
            parse_text(text[:at])
    parse_text(text[:end])


def test_other_bytes_and_other_dtypes_are_refused():
    """Neither text nor rows of another kind."""
    with pytest.raises(ModelError, match="UTF-8"):
        parse_text(b"tree\n\xff")
    with pytest.raises(ModelError, match="begins with `tree`"):
        parse_text(b"")
    with pytest.raises(ConfigError, match="float32 or float64"):
        parse_text(booster("binary", rounds=1).model_to_string(), dtype="int64")
    with pytest.raises(Unfit, match="no trees"):
        parse_text("tree\nversion=v2\nnum_class=1\nmax_feature_idx=0\nfeature_names=a\n\nend of trees\n")


def test_line_ends_of_windows_and_a_byte_order_mark_change_nothing():
    """Files that went through an editor."""
    want = parse_text(small()[0]).forest.arrays
    got = parse_text(b"\xef\xbb\xbf" + small()[0].replace("\n", "\r\n").encode()).forest.arrays
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


JSON_WRONGS = [
    (lambda m: m.pop("tree_info"), ModelError, "with `tree_info`"),
    (lambda m: m.pop("average_output"), Unfit, "does not tell the objective"),
    (lambda m: m.update(feature_names=[1]), ModelError, "feature_names"),
    (lambda m: m.update(feature_names=["a"]), ModelError, "Expected 6 names, got 1"),
    (lambda m: m.update(feature_infos=[]), ModelError, "feature_infos"),
    (lambda m: m.update(objective=3), ModelError, "truth value"),
    (lambda m: m.update(version=None), Unfit, "of no version"),
    (lambda m: m.update(max_feature_idx=True), ModelError, "max_feature_idx"),
    (lambda m: m["tree_info"].append(3), ModelError, "Expected a tree, got 3 - at tree 3"),
    (lambda m: m["tree_info"][1].update(num_leaves=7), ModelError, "Expected 7 leaves, got 6 - at tree 1"),
    (
        lambda m: m["tree_info"][1].pop("tree_structure"),
        ModelError,
        "Expected a node, got None - at tree 1, node 0",
    ),
    (lambda m: root(m).update(left_child=5), ModelError, "Expected a node, got 5 - at tree 1, node 1"),
    (lambda m: root(m).update(left_child={"leaf_value": 1}), ModelError, "tree 1"),
    (lambda m: root(m).update(threshold="a"), ModelError, "`threshold` of tree 1, node 0"),
    (lambda m: root(m).update(threshold=True), ModelError, "`threshold` of tree 1, node 0"),
    (lambda m: root(m).update(threshold=float("nan")), ModelError, "`threshold` of tree 1, node 0"),
    (lambda m: root(m).update(threshold=10**400), ModelError, "`threshold` of tree 1, node 0"),
    (lambda m: root(m).update(decision_type=">"), ModelError, "Expected <= or =="),
    (lambda m: root(m).update(missing_type="Never"), ModelError, "kind of missing value"),
    (lambda m: root(m).update(default_left=1), ModelError, "kind of missing value"),
    (lambda m: root(m).pop("missing_type"), Unfit, "where missing values go"),
    (lambda m: root(m).update(split_feature=6), ModelError, "`split_feature` has 6 - at tree 1, node 0"),
    (lambda m: root(m).update(split_feature=1.5), ModelError, "split_feature of tree 1, node 0"),
    (lambda m: root(m).update(decision_type="==", threshold="1||x"), ModelError, "Expected categories"),
    (lambda m: root(m).update(decision_type="==", threshold="9999999999"), ModelError, "codes of categories"),
    (lambda m: m["feature_infos"].clear() or root(m).update(threshold=1e300), Unfit, "may be infinity"),
    (lambda m: leaf(m).update(leaf_value="1"), ModelError, "`leaf_value` of tree 1"),
    (lambda m: leaf(m).update(leaf_index=6), ModelError, "leaf_index"),
    (lambda m: leaf(m).update(leaf_const=1), Unfit, "linear trees"),
]


def root(model):
    """The first node of the second tree, a split of quantities."""
    node = model["tree_info"][1]["tree_structure"]
    node.update(decision_type="<=", threshold=0.5) if node["decision_type"] == "==" else None
    return node


def leaf(model):
    """Some leaf of the second tree."""
    node = model["tree_info"][1]["tree_structure"]
    while "leaf_value" not in node:
        node = node["left_child"]
    return node


@pytest.mark.parametrize(("change", "error", "why"), JSON_WRONGS)
def test_damaged_json_is_refused_with_the_place(change, error, why):
    """As the text is."""
    model = json.loads(small()[1])
    change(model)
    with pytest.raises(error, match=why):
        parse_json(json.dumps(model)).forest.model()


def test_json_that_repeats_keys_or_nests_without_end_is_refused():
    """A document must not say two things; nor can it be deeper than Python reads."""
    with pytest.raises(ModelError, match="'version' twice"):
        parse_json(small()[1].replace('"version"', '"version": "v3", "version"', 1))
    with pytest.raises(ModelError, match="deeper"):
        parse_json('{"tree_info": ' + "[" * 200_000)
    with pytest.raises(ModelError, match="Expected JSON"):
        parse_json(small()[1][:-1])
    with pytest.raises(ModelError, match="Expected JSON"):
        parse_json('{"tree_info": [' + "9" * 10_000 + "]}")


@given(data=st.data())
def test_text_with_any_bytes_changed_is_refused_or_still_answers(data):
    """Bytes replaced, removed, doubled: a typed error, or a forest that runs, in bounded time."""
    raw = small()[0].encode()
    start, end = raw.index(b"Tree=0"), raw.index(b"end of trees")
    raw = raw[: end + 13]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(start, end - 1), st.integers(0, len(raw) - 1)))
        n = data.draw(st.integers(0, 6))
        raw = raw[:at] + data.draw(st.one_of(st.binary(max_size=6), st.sampled_from(TOKENS))) + raw[at + n :]
    answers_or_refuses(parse_text, raw)


TOKENS = [
    b"\n",
    b"-1",
    b"1e308",
    b"=",
    b" ",
    b"99999",
    b"\n\n",
    b"Tree=1\n",
    b"0 0",
    b"inf",
    b"nan",
    b"-",
    b"e",
    b".",
]


@given(data=st.data())
def test_json_with_any_part_changed_is_refused_or_still_answers(data):
    """Keys gone, values of other kinds, subtrees moved elsewhere."""
    model = json.loads(small()[1])
    for _ in range(data.draw(st.integers(1, 4))):
        places = list(walk(model))
        holder, key = places[data.draw(st.integers(0, len(places) - 1))]
        other, its = places[data.draw(st.integers(0, len(places) - 1))]
        value = data.draw(
            st.sampled_from([None, True, -1, 0, 10**9, 0.5, 1e308, "", "1||2", [], {}, "move", "gone"])
        )
        if value == "gone" and isinstance(holder, dict):
            holder.pop(key, None)
        elif key in holder if isinstance(holder, dict) else key < len(holder):
            holder[key] = json.loads(json.dumps(other[its])) if value == "move" else value
    answers_or_refuses(parse_json, json.dumps(model))


def walk(value):
    """Every place of a document: what holds it, and under which key."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from walk(value[key])


def answers_or_refuses(parse, data):
    """What a parser may do with anything."""
    start = time.process_time()
    try:
        forest = parse(data).forest
        answer = forest.model().predict(np.zeros((3, forest.n_features), np.float32))
        assert answer.shape == (3,)
    except (Unfit, ModelError):
        pass
    assert time.process_time() - start < 5


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
