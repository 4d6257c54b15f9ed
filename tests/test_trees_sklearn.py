"""Fitted trees of scikit-learn as forests: every answer is the one that scikit-learn gives, also on their thresholds."""

from __future__ import annotations

import contextlib
import copy
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from forests_for_tests import assert_answers, hard_matrix
from hypothesis import given
from hypothesis import strategies as st

from retailinfer.authoring.convert.sklearn import trees
from retailinfer.authoring.trees import Unfit
from retailinfer.authoring.trees.sklearn_forest import parse
from retailinfer.errors import ModelError, RetailInferError

ensemble = pytest.importorskip("sklearn.ensemble")
tree = pytest.importorskip("sklearn.tree")
threadpoolctl = pytest.importorskip("threadpoolctl")
pytestmark = pytest.mark.requires("sklearn")

N, FEATURES = 500, 5
DTYPES = ["float32", "float64"]


@pytest.fixture(autouse=True)
def _one_thread():
    """OpenMP's threads wait for each other in circles, which on a busy machine takes most of the time."""
    with threadpoolctl.threadpool_limits(1):
        yield


def training(*, missing=False):
    """Five features of doubles, and labels of every kind."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, FEATURES))
    x[:, 4] = np.round(x[:, 4] * 2)
    labels = {
        "two": (x[:, 0] + x[:, 1] * x[:, 2] > 0).astype(int),
        "three": np.digitize(x[:, 0] + x[:, 3], [-0.5, 0.5]),
        "nine": np.digitize(x[:, 0], np.linspace(-1.5, 1.5, 8)),
        "one": np.zeros(N, int),
        "text": np.where(x[:, 0] > 0, "good", "bad"),
        "number": x[:, 0] * 3 + x[:, 1] ** 2,
        "positive": np.abs(x[:, 0]) + 0.1,
        "numbers": np.stack([x[:, 0], x[:, 1] * x[:, 2], x[:, 4]], axis=1),
    }
    if missing:
        x[rng.random(x.shape) < 0.15] = np.nan
    return x, labels


def fitted(cls, label, *, missing=False, **settings):
    """A small model."""
    module = tree if "Tree" in cls and "Trees" not in cls else ensemble
    known = {"random_state": 0}
    known |= {"n_estimators": 15} if module is ensemble and "Hist" not in cls else {}
    known |= {"max_iter": 15} if "Hist" in cls else {}
    x, labels = training(missing=missing)
    return getattr(module, cls)(**(known | settings)).fit(x, labels[label])


def rows_for(model, forest, *, missing, n=500):
    """Hard rows that scikit-learn takes: finite but for histogram boosting, without gaps where it refuses them."""
    rows = hard_matrix(forest, n)
    if "Hist" not in type(model).__name__:
        rows = np.clip(rows, -3e38, 3e38)
    return rows if missing else np.where(np.isnan(rows), rows.dtype.type(0.25), rows)


@np.errstate(all="ignore")
def answers(model, rows):
    """What scikit-learn itself says, without its warnings about sums of infinities and names of columns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.predict_proba(rows) if hasattr(model, "predict_proba") else model.predict(rows)


def assert_same_answers(model, *, missing=False):
    """On hard rows of either precision, float32 of what scikit-learn predicts, bit by bit, with every kernel."""
    for dtype in DTYPES:
        parsed = parse(model, dtype=dtype)
        rows = rows_for(model, parsed.forest, missing=missing)
        assert_answers(parsed.forest, rows, answers(model, rows))
        assert_cover(parsed.forest)
    assert parsed.source == f"sklearn.{type(model).__name__}"
    assert parsed.task == ("classification" if hasattr(model, "classes_") else "regression")
    return parsed


def assert_cover(forest):
    """The weight of a node is that of its children."""
    inner = forest.arrays["feature"] >= 0
    left, right = forest.arrays["left"][inner], forest.arrays["right"][inner]
    cover = forest.arrays["cover"]
    np.testing.assert_allclose(cover[inner], cover[left] + cover[right])


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(
    ("cls", "label", "settings"),
    [
        ("RandomForestClassifier", "two", {}),
        ("RandomForestClassifier", "three", {"class_weight": "balanced"}),
        ("RandomForestClassifier", "nine", {"max_depth": 4}),
        ("RandomForestClassifier", "one", {}),
        ("RandomForestClassifier", "text", {"max_leaf_nodes": 9}),
        ("RandomForestRegressor", "number", {}),
        ("RandomForestRegressor", "numbers", {"max_depth": 5}),
        ("ExtraTreesClassifier", "three", {}),
        ("ExtraTreesRegressor", "number", {"min_samples_leaf": 3}),
        ("DecisionTreeClassifier", "two", {}),
        ("DecisionTreeClassifier", "three", {"max_depth": 3}),
        ("DecisionTreeRegressor", "number", {}),
        ("DecisionTreeRegressor", "numbers", {}),
        ("ExtraTreeClassifier", "two", {}),
        ("ExtraTreeRegressor", "number", {}),
    ],
)
def test_trees_and_forests_answer_as_scikit_learn_does(cls, label, settings, missing):
    """Two, many and single classes, text as labels, several numbers, gaps in training: the bits of scikit-learn."""
    parsed = assert_same_answers(fitted(cls, label, missing=missing, **settings), missing=missing)
    assert parsed.classes == {
        "two": (0, 1),
        "three": (0, 1, 2),
        "nine": tuple(range(9)),
        "one": (0,),
        "text": ("bad", "good"),
    }.get(label, ())


def test_forest_of_many_threads_is_compared_in_the_order_of_its_trees():
    """Threads add the answers of trees as they come; what is compared with is one thread's sum."""
    model = fitted("RandomForestClassifier", "three", n_jobs=4, n_estimators=60)
    parsed, predict = trees(model, dtype="float32")
    rows = rows_for(model, parsed.forest, missing=False)
    assert_answers(parsed.forest, rows, predict(rows))
    assert model.n_jobs == 4


@pytest.mark.parametrize("missing", [False, True])
def test_gaps_without_any_in_training_take_the_larger_side(missing):
    """Forests accept NaN whether or not training had some."""
    model = fitted("RandomForestClassifier", "two", missing=missing)
    assert_same_answers(model, missing=True)


@pytest.mark.parametrize(
    ("cls", "label", "settings"),
    [
        ("GradientBoostingClassifier", "two", {}),
        ("GradientBoostingClassifier", "two", {"loss": "exponential", "learning_rate": 0.3}),
        ("GradientBoostingClassifier", "two", {"init": "zero"}),
        ("GradientBoostingClassifier", "text", {"subsample": 0.7}),
        ("GradientBoostingClassifier", "three", {}),
        ("GradientBoostingClassifier", "three", {"init": "zero", "max_depth": 2}),
        ("GradientBoostingRegressor", "number", {}),
        ("GradientBoostingRegressor", "number", {"loss": "absolute_error"}),
        ("GradientBoostingRegressor", "number", {"loss": "huber", "learning_rate": 0.77}),
        ("GradientBoostingRegressor", "number", {"loss": "quantile", "alpha": 0.8}),
        ("GradientBoostingRegressor", "number", {"init": "zero"}),
        ("GradientBoostingRegressor", "number", {"init": "mean"}),
    ],
)
def test_gradient_boosting_answers_as_scikit_learn_does(cls, label, settings):
    """Losses, constants that it begins with, learning rates: sums begin with the constant, in doubles."""
    if settings.get("init") == "mean":
        dummy = pytest.importorskip("sklearn.dummy")
        settings = {"init": dummy.DummyRegressor(strategy="mean")}
    assert_same_answers(fitted(cls, label, **settings))


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(
    ("cls", "label", "settings"),
    [
        ("HistGradientBoostingClassifier", "two", {}),
        ("HistGradientBoostingClassifier", "two", {"learning_rate": 0.7, "max_depth": 3}),
        ("HistGradientBoostingClassifier", "text", {"early_stopping": True}),
        ("HistGradientBoostingClassifier", "three", {}),
        ("HistGradientBoostingClassifier", "nine", {}),
        ("HistGradientBoostingRegressor", "number", {}),
        ("HistGradientBoostingRegressor", "number", {"loss": "absolute_error"}),
        ("HistGradientBoostingRegressor", "number", {"loss": "quantile", "quantile": 0.2}),
        ("HistGradientBoostingRegressor", "positive", {"loss": "poisson"}),
        ("HistGradientBoostingRegressor", "positive", {"loss": "gamma", "max_leaf_nodes": None}),
    ],
)
def test_histogram_gradient_boosting_answers_as_scikit_learn_does(cls, label, settings, missing):
    """Every loss with its last step, with and without gaps; gaps it always takes."""
    assert_same_answers(fitted(cls, label, missing=missing, **settings), missing=True)


def test_vectorised_exponentials_differ_in_doubles_only():
    """Softmax of 300,000 rows: no float32 differs, so that bits may be asked for in all these tests."""
    model = fitted("HistGradientBoostingClassifier", "three")
    rows = np.random.default_rng(1).normal(size=(100_000, FEATURES)).astype(np.float32)
    forest = parse(model).forest
    want = model.predict_proba(rows)
    got = forest.model().predict_all(rows)
    assert (got != want.astype(np.float32)).sum() <= 1


# ---- categories ------------------------------------------------------------------------------------------------------------


def of_categories(kind, codes, *, frame=False, missing=True, **settings):
    """Histogram boosting with two columns of categories among four."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(N, 4))
    x[:, 1], x[:, 2] = rng.choice(codes, N), rng.choice([0, 1, 5], N)
    label = np.isin(x[:, 1], codes[::3]) ^ (x[:, 2] == 5) ^ (x[:, 0] > 0.7)
    target = label.astype(int) if kind.endswith("Classifier") else label * 2.0 + x[:, 3]
    if missing:
        x[rng.random(x.shape) < 0.1] = np.nan
    if frame:
        x = pytest.importorskip("pandas").DataFrame(x, columns=["a", "shop", "kind", "b"])
    known = {"max_iter": 12, "categorical_features": [1, 2], "random_state": 0, "min_samples_leaf": 3}
    return getattr(ensemble, kind)(**(known | settings)).fit(x, target)


def rows_of_categories(forest, codes, n=2_000):
    """Known, unknown, negative, broken, infinite and missing codes."""
    rng = np.random.default_rng(4)
    rows = hard_matrix(forest, n)
    strange = [np.nan, -1.0, 0.5, 254.0, 255.0, 256.0, 300.0, 1e9]
    rows[:, 1] = rng.choice([*codes, *strange], n)
    rows[:, 2] = rng.choice([0, 1, 5, 2, *strange], n)
    return rows  # the encoder refuses infinity


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", ["HistGradientBoostingClassifier", "HistGradientBoostingRegressor"])
@pytest.mark.parametrize(
    "codes",
    [list(range(12)), [3, 17, 40, 41, 200, 999, 70_000], list(range(200)), [1, 2]],
    ids=["small", "sparse", "many", "two"],
)
def test_categories_answer_as_scikit_learn_does(kind, codes, missing):
    """Codes beyond 255, codes never seen and gaps: what the model's own encoder makes of them."""
    model = of_categories(kind, codes, missing=missing)
    for dtype in DTYPES:
        parsed = parse(model, dtype=dtype)
        assert parsed.codes == (1, 2)
        rows = rows_of_categories(parsed.forest, codes)
        if (
            not missing
        ):  # an encoder that saw no gap takes one for an unknown category, as histogram boosting does
            rows[:, 1:3] = np.where(np.isnan(rows[:, 1:3]), -7, rows[:, 1:3])
        assert_answers(parsed.forest, rows, answers(model, rows))
    assert parsed.forest.arrays["rule"].any()


def test_columns_of_a_table_keep_their_names_and_places():
    """The encoder puts categories before numbers; here every column is where it was."""
    model = of_categories("HistGradientBoostingClassifier", list(range(9)), frame=True)
    pandas = pytest.importorskip("pandas")
    parsed = parse(model, dtype="float64")
    assert parsed.feature_names == ("a", "shop", "kind", "b")
    rows = rows_of_categories(parsed.forest, list(range(9)))
    assert_answers(parsed.forest, rows, answers(model, pandas.DataFrame(rows, columns=parsed.feature_names)))


@pytest.mark.parametrize("codes", [[-1, 2, 3, -5, 6], [0.5, 1.5, 2.5, 3.5], [1, 2, 3, 1e9]])
def test_categories_that_no_set_can_hold_are_named(codes):
    """Negative, broken and huge codes in sets of several."""
    with pytest.raises(Unfit, match="feature 1 has categories that are no integers"):
        parse(of_categories("HistGradientBoostingClassifier", codes))


def test_text_as_a_category_is_named():
    """Rows of a release are numbers."""
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    colour = rng.choice(["red", "green", "blue"], N)
    table = pandas.DataFrame({"a": rng.normal(size=N), "colour": pandas.Categorical(colour)})
    model = ensemble.HistGradientBoostingClassifier(max_iter=3, categorical_features="from_dtype")
    with pytest.raises(Unfit, match="feature 'colour' has categories that are no numbers"):
        parse(model.fit(table, (colour == "red").astype(int)))


# ---- what is refused -------------------------------------------------------------------------------------------------------


def test_estimators_without_an_exact_form_are_named():
    """Each by its class, whatever trees it has inside."""
    x, labels = training()
    pipeline = pytest.importorskip("sklearn.pipeline")
    for model, label in (
        (ensemble.AdaBoostClassifier(n_estimators=3), "two"),
        (ensemble.AdaBoostRegressor(n_estimators=3), "number"),
        (ensemble.BaggingClassifier(n_estimators=3), "two"),
        (ensemble.IsolationForest(n_estimators=3), "two"),
        (ensemble.RandomTreesEmbedding(n_estimators=3), "two"),
        (ensemble.VotingClassifier([("a", tree.DecisionTreeClassifier())]), "two"),
        (ensemble.StackingRegressor([("a", tree.DecisionTreeRegressor())], cv=2), "number"),
        (pipeline.make_pipeline(tree.DecisionTreeRegressor()), "number"),
    ):
        with pytest.raises(Unfit, match=type(model).__name__):
            parse(model.fit(x, labels[label]))


def test_what_cannot_be_added_up_is_refused_with_the_reason():
    """Boosting on top of another model, several lists of probabilities, classes with a step of their own."""
    x, labels = training()
    on_top = ensemble.GradientBoostingRegressor(n_estimators=2, init=tree.DecisionTreeRegressor(max_depth=1))
    with pytest.raises(Unfit, match="begins with the answers of DecisionTreeRegressor"):
        parse(on_top.fit(x, labels["number"]))
    dummy = pytest.importorskip("sklearn.dummy")
    drawn = ensemble.GradientBoostingClassifier(
        n_estimators=2, init=dummy.DummyClassifier(strategy="uniform")
    )
    with pytest.raises(Unfit, match=r"DummyClassifier \(uniform\)"):
        parse(drawn.fit(x, labels["two"]))
    several = np.stack([labels["two"], labels["three"]], axis=1)
    with pytest.raises(Unfit, match="gives 2 lists of probabilities"):
        parse(ensemble.RandomForestClassifier(3).fit(x, several))

    class Rounded(ensemble.RandomForestRegressor):
        """A forest that rounds."""

        def predict(self, X):  # noqa: N803 - scikit-learn's name
            """Rounded answers."""
            return super().predict(X).round()

    with pytest.raises(Unfit, match="Rounded has a `predict` of its own"):
        parse(Rounded(3).fit(x, labels["number"]))


def test_classes_derived_without_another_answer_are_read():
    """A subclass that only changes how it is trained."""

    class Small(ensemble.RandomForestClassifier):
        """Three trees."""

        def __init__(self):
            super().__init__(n_estimators=3, random_state=0)

    x, labels = training()
    assert_same_answers(Small().fit(x, labels["two"]))


def test_models_that_are_not_fitted_or_no_longer_whole_are_errors():
    """Attributes that are not there are named."""
    with pytest.raises(ModelError, match="not the attributes of a fitted RandomForestClassifier"):
        parse(ensemble.RandomForestClassifier())
    broken = copy.copy(fitted("HistGradientBoostingClassifier", "two"))
    del broken._predictors
    with pytest.raises(ModelError, match="_predictors"):
        parse(broken)


def forged(**changes):
    """An object that says it is a forest of scikit-learn, with arrays of somebody's choice."""
    arrays = {
        "children_left": np.array([1, -1, 3, -1, -1]),
        "children_right": np.array([2, -1, 4, -1, -1]),
        "feature": np.array([0, -2, 1, -2, -2]),
        "threshold": np.array([0.5, -2, 0.1, -2, -2]),
        "value": np.arange(5.0).reshape(5, 1, 1),
        "missing_go_to_left": np.zeros(5, np.uint8),
        "weighted_n_node_samples": np.array([5.0, 1, 4, 2, 2]),
    }
    made = type("RandomForestRegressor", (), {"__module__": "sklearn.ensemble._forest"})()
    made.estimators_ = [SimpleNamespace(tree_=SimpleNamespace(**(arrays | changes)))] * 2
    made.n_outputs_, made.n_features_in_ = 1, 2
    return made


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"children_left": np.array([1, -1, 99, -1, -1])},
            "Expected a node below 5, got 99 - at node 2 of tree 0",
        ),
        (
            {"children_left": np.array([1, -1, 5, -1, -1])},
            "got 5 - at node 2 of tree 0",
        ),
        ({"children_left": np.array([1, -1, 0, -1, -1])}, "never ends"),
        ({"children_right": np.array([2, -1, 2, -1, -1])}, "never ends"),
        ({"feature": np.array([0, -2, 7, -2, -2])}, "Expected a feature below 2, got 7 - at node 2"),
        ({"feature": np.array([-2, -2, 1, -2, -2])}, "Expected a feature below 2, got -2 - at node 0"),
        ({"threshold": np.array([0.5, -2, np.nan, -2, -2])}, "got NaN - at node 2"),
        ({"value": np.zeros((3, 1, 1))}, "Expected 5 `value`, got 3 - at a fitted tree"),
        ({"threshold": np.zeros(3)}, "Expected 5 `threshold`, got 3 - at a fitted tree"),
        ({"threshold": None}, "Expected 5 `threshold`, got array"),
    ],
)
def test_arrays_that_are_no_trees_are_errors(changes, why):
    """Children that are not there, circles, features out of range, NaN, other lengths."""
    with pytest.raises((ModelError, Unfit), match=why):
        parse(forged(**changes))


@given(data=st.data())
def test_damaged_arrays_are_refused_or_run(data):
    """Numbers that changed anywhere give a typed error, or a forest that answers; never anything else."""
    whole = forged().estimators_[0].tree_
    changes = {}
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(vars(whole))))
        array = np.array(getattr(whole, name), np.float64)
        at = data.draw(st.integers(0, 4))
        array.reshape(5, -1)[at] = data.draw(st.sampled_from([-1.0, 0.0, 1.0, 4.0, 9.0, 1e12, -1e12]))
        changes[name] = (
            array
            if array.ndim > 1 or name in ("threshold", "weighted_n_node_samples")
            else array.astype(np.int64)
        )
    with contextlib.suppress(Unfit, RetailInferError):
        parse(forged(**changes)).forest.model().predict(np.zeros((2, 2), np.float32))


def test_the_forged_forest_itself_is_read():
    """So that what the tests above refuse is what they changed."""
    got = parse(forged()).forest.model().predict(np.array([[0, 0], [1, 0], [1, 1]], np.float32))
    np.testing.assert_array_equal(got, [1, 3, 4])
