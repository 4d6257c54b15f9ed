"""Fitted preprocessing of scikit-learn as a spec: every transformer with its options, mixtures of them, what is refused.

The sample is compared inside `from_sklearn`; here other rows are, with categories that nobody has seen and values that are
missing. `assert_same` knows the rule: where scikit-learn gives finite numbers or NaN, so does the spec, the same ones; where
scikit-learn raises an error, the spec refuses.
"""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from bare import BarePipeline
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectFromModel, SelectKBest, VarianceThreshold
from sklearn.impute import KNNImputer, MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)
from strategies import Case

import retailinfer as ri
from retailinfer.errors import FeatureError, FeatureRangeError, SpecError
from retailinfer.features import from_sklearn
from retailinfer.features.from_sklearn import is_copy

pytestmark = pytest.mark.requires("sklearn", "pyarrow")

NUMBERS = ["amount", "gap", "items"]
TEXTS = ["channel", "country"]


def frame(n: int = 240, seed: int = 0) -> pd.DataFrame:
    """Columns of every dtype that a table of payments has; some with gaps."""
    rng = np.random.default_rng(seed)
    gaps = rng.random(n)
    made = pd.DataFrame(
        {
            "amount": rng.lognormal(3, 1, n),
            "gap": np.where(gaps < 0.2, np.nan, rng.normal(5, 2, n)),
            "items": rng.integers(1, 9, n),
            "channel": rng.choice(["web", "app", "pos", "fax", "old"], n, p=[0.5, 0.25, 0.2, 0.03, 0.02]),
            "country": np.where(gaps > 0.85, None, rng.choice(["GB", "DE", "FR"], n)),
            "member": rng.random(n) < 0.4,
            "plan": rng.choice([1.0, 2.0, 3.0, np.nan], n),
            "store": rng.integers(100, 112, n),
        }
    )
    made["tier"] = pd.Categorical(rng.choice(["gold", "silver"], n))
    return made


LABEL = (np.random.default_rng(7).random(240) < 0.3).astype(int)


def transformed(made: Any, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
    """scikit-learn's own answer, dense."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = made.transform(rows)
    return np.asarray(out.toarray() if hasattr(out, "toarray") else out, np.float64)


def assert_same(spec: ri.FeatureSpec, made: Any, rows: pd.DataFrame) -> int:
    """Both on rows, one by one where scikit-learn refuses some. Returns how many rows both answered."""
    assert spec.copied is not None
    tolerance = np.array([10 * spec.copied.tolerance.get(name, 0.0) for name in spec.names])
    answered = 0
    for part in [rows] if _takes(made, rows) else [rows.iloc[[i]] for i in range(len(rows))]:
        try:
            want = transformed(made, part)
        except ValueError:
            with pytest.raises(FeatureError):
                spec.transform(part)
            continue
        got = np.asarray(spec.transform(part))
        apart = np.where((got == want) | (np.isnan(got) & np.isnan(want)), 0.0, np.abs(got - want))
        assert (apart <= tolerance).all(), (spec.names, np.argwhere(~(apart <= tolerance))[:3], got, want)
        answered += len(part)
    return answered


def _takes(made: Any, rows: pd.DataFrame) -> bool:
    try:
        transformed(made, rows)
    except ValueError:
        return False
    return True


def other_rows(rows: pd.DataFrame, spec: ri.FeatureSpec, seed: int = 1) -> pd.DataFrame:
    """Other rows in the same dtypes: mixed up, extremes, unknown categories, and gaps where a field may have them."""
    rng = np.random.default_rng(seed)
    optional = {f.wire or f.name for f in spec.fields if f.optional}
    out = {}
    for name in rows.columns:
        column = rng.permutation(rows[name].to_numpy())[:80]
        some = rng.random(len(column)) < 0.15
        if column.dtype == object:
            marker = next((v for v in rows[name].to_numpy() if pd.isna(v)), np.nan)
            column[some] = rng.choice(np.array(["unseen", "", "web"], object), int(some.sum()))
            if name in optional:
                column[rng.random(len(column)) < 0.2] = marker
        elif column.dtype.kind == "f":
            column[some] = rng.choice([0.0, 1.0, 2.0, 0.5, 1e6, 3.75], int(some.sum()))
            if name in optional:
                column[rng.random(len(column)) < 0.2] = np.nan
        elif column.dtype.kind == "i":
            column[some] = rng.integers(-3, 1000, int(some.sum()))
        dtype = object if isinstance(rows[name].dtype, pd.CategoricalDtype) else rows[name].dtype
        out[name] = pd.Series(column, dtype=dtype)
    return pd.DataFrame(out)


def copied(made: Any, rows: pd.DataFrame, **more: Any) -> ri.FeatureSpec:
    """Fit, copy, and compare on other rows too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about constant columns and small bins
        made.fit(rows, LABEL[: len(rows)])
    spec = ri.FeatureSpec.from_sklearn(made, sample=rows, **more)
    assert ri.FeatureSpec.from_json(spec.to_json()) == spec
    assert assert_same(spec, made, other_rows(rows, spec)) > 0
    return spec


# ---- every transformer -----------------------------------------------------------------------------------------------

ON_NUMBERS = {
    "standard": StandardScaler(),
    "standard without mean": StandardScaler(with_mean=False),
    "standard without std": StandardScaler(with_std=False),
    "standard without either": StandardScaler(with_mean=False, with_std=False),
    "minmax": MinMaxScaler(),
    "minmax to a range": MinMaxScaler((-2, 5)),
    "minmax clipped": MinMaxScaler((0.1, 0.9), clip=True),
    "maxabs": MaxAbsScaler(),
    "maxabs clipped": MaxAbsScaler().set_params(
        **({"clip": True} if "clip" in MaxAbsScaler().get_params() else {})
    ),
    "robust": RobustScaler(),
    "robust without centre": RobustScaler(with_centering=False),
    "robust without scale": RobustScaler(with_scaling=False),
    "robust of unit variance": RobustScaler(quantile_range=(10, 90), unit_variance=True),
    "mean": SimpleImputer(),
    "median with indicator": SimpleImputer(strategy="median", add_indicator=True),
    "most frequent": SimpleImputer(strategy="most_frequent"),
    "constant": SimpleImputer(strategy="constant", fill_value=-1.5),
    "constant of nothing": SimpleImputer(strategy="constant", add_indicator=True),
    "identity": FunctionTransformer(),
    "sqrt": make_pipeline(
        SimpleImputer(strategy="constant", fill_value=0.0), MaxAbsScaler(), FunctionTransformer(np.square)
    ),
    "log1p": FunctionTransformer(np.log1p, feature_names_out="one-to-one"),
    "log1p validated": make_pipeline(
        SimpleImputer(strategy="median"), FunctionTransformer(np.log1p, validate=True)
    ),
    "log1p scaled": make_pipeline(FunctionTransformer(np.log1p), StandardScaler()),
    "indicator": MissingIndicator(features="all"),
    "indicator of new gaps": MissingIndicator(error_on_new=False),
    "indicator that refuses new gaps": MissingIndicator(),
    "imputed and scaled": make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()),
    "scaled and imputed": make_pipeline(StandardScaler(), SimpleImputer(strategy="constant", fill_value=0.5)),
    "scaled twice": make_pipeline(MinMaxScaler(), RobustScaler(), MinMaxScaler(clip=True)),
    "imputed twice": make_pipeline(
        SimpleImputer(strategy="constant", fill_value=2.0), SimpleImputer(add_indicator=True)
    ),
    "binarised": make_pipeline(SimpleImputer(), Binarizer(threshold=3.0)),
    "selected by variance": VarianceThreshold(0.1),
    "selected": make_pipeline(SimpleImputer(), SelectKBest(k=2)),
    "selected by a model": make_pipeline(
        SimpleImputer(), SelectFromModel(RandomForestClassifier(5, random_state=0))
    ),
    "union": FeatureUnion(
        [("a", StandardScaler()), ("b", MinMaxScaler()), ("c", "passthrough"), ("d", "drop")]
    ),
    "weighted union": FeatureUnion(
        [("a", StandardScaler()), ("b", MinMaxScaler())], transformer_weights={"a": 0.3}
    ),
    "passthrough steps": Pipeline([("a", "passthrough"), ("b", StandardScaler()), ("c", None)]),
}


@pytest.mark.parametrize("kind", [k for k in ON_NUMBERS if k != "sqrt"])
def test_transformers_of_numbers_are_copied(kind):
    """Floats, floats with gaps and integers, on the sample and on other rows."""
    rows = frame()[NUMBERS]
    if "log1p" in kind:
        rows = rows.assign(gap=rows["gap"].abs())
    spec = copied(ON_NUMBERS[kind], rows)
    assert spec.copied.exact == ("log1p" not in kind) or spec.copied.difference < 1e-12


def test_roots_are_copied_exactly():
    """The square root is one operation of IEEE 754: the same bits everywhere."""
    rows = frame()[["amount", "items"]].astype(float)
    spec = copied(
        make_pipeline(FunctionTransformer(np.sqrt), StandardScaler(), FunctionTransformer(None)), rows
    )
    assert spec.copied.exact


ENCODERS = {
    "onehot": OneHotEncoder(handle_unknown="ignore"),
    "onehot that refuses": OneHotEncoder(),
    "onehot dense": OneHotEncoder(sparse_output=False, handle_unknown="ignore", dtype=np.int32),
    "onehot without first": OneHotEncoder(drop="first", handle_unknown="ignore"),
    "onehot without one of two": OneHotEncoder(drop="if_binary"),
    "onehot of the frequent": OneHotEncoder(min_frequency=20, handle_unknown="infrequent_if_exist"),
    "onehot of a share": OneHotEncoder(min_frequency=0.1, handle_unknown="ignore"),
    "onehot of the three most frequent": OneHotEncoder(
        max_categories=3, handle_unknown="infrequent_if_exist"
    ),
    "onehot of one category": OneHotEncoder(max_categories=1, handle_unknown="infrequent_if_exist"),
    "onehot of the frequent without first": OneHotEncoder(
        max_categories=3, drop="first", handle_unknown="infrequent_if_exist"
    ),
    "onehot of the frequent that refuses": OneHotEncoder(max_categories=3),
    "ordinal": OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
    "ordinal with NaN": OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan),
    "ordinal that refuses": OrdinalEncoder(),
    "ordinal of missing": OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-2, encoded_missing_value=-1
    ),
    "ordinal of the frequent": OrdinalEncoder(
        max_categories=3, handle_unknown="use_encoded_value", unknown_value=99
    ),
    "target": TargetEncoder(),
    "target smoothed": TargetEncoder(smooth=30.0),
    "imputed": make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")),
    "imputed with a word": make_pipeline(
        SimpleImputer(strategy="constant", fill_value="none", add_indicator=True),
        OneHotEncoder(handle_unknown="ignore"),
    ),
    "coded and scaled": make_pipeline(
        OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2),
        StandardScaler(),
    ),
    "coded and imputed": make_pipeline(
        OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan),
        SimpleImputer(strategy="median"),
    ),
    "coded, then onehot": make_pipeline(
        OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
        OneHotEncoder(handle_unknown="ignore"),
    ),
    "onehot, scaled as it is sparse": make_pipeline(
        OneHotEncoder(handle_unknown="ignore"), StandardScaler(with_mean=False), MaxAbsScaler()
    ),
    "onehot, scaled dense": make_pipeline(
        OneHotEncoder(handle_unknown="ignore", sparse_output=False), StandardScaler()
    ),
}


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("columns", [["channel"], ["country"], ["channel", "country", "tier"]], ids="+".join)
def test_encoders_of_text_are_copied(kind, columns):
    """Text with and without gaps, and pandas' own categories."""
    rows = frame()[columns]
    if kind.startswith("imputed"):
        rows = rows.astype(object).where(rows.notna(), np.nan)  # what a SimpleImputer takes for missing
    copied(ENCODERS[kind], rows)


@pytest.mark.parametrize("kind", [k for k in ENCODERS if not k.startswith(("imputed", "ordinal of missing"))])
@pytest.mark.parametrize("column", ["store", "member", "plan", "items"])
def test_encoders_of_numbers_are_copied(kind, column):
    """Integers, booleans, and floats with gaps as categories."""
    copied(ENCODERS[kind], frame()[[column]])


def test_given_categories_are_copied():
    """Categories in an order of one's own, with values that no row had."""
    rows = frame()[["channel"]]
    order = ["pos", "web", "app", "fax", "old", "never"]
    spec = copied(OrdinalEncoder(categories=[order]), rows)
    assert spec.columns[0].keys == tuple(order)
    copied(OneHotEncoder(categories=[order], drop=["web"]), rows)


def test_target_encodings_are_those_of_serving():
    """`transform` of the fitted encoder, not the cross-fitted values of its training rows; one a class for several classes."""
    rows = frame()[["channel", "store"]]
    label = np.random.default_rng(1).choice(["a", "b", "c"], len(rows))
    made = TargetEncoder().fit(rows, label)
    spec = ri.FeatureSpec.from_sklearn(made, sample=rows)
    assert spec.names == ("channel_a", "channel_b", "channel_c", "store_a", "store_b", "store_c")
    assert_same(spec, made, other_rows(rows, spec))
    continuous = TargetEncoder(target_type="continuous").fit(
        rows, np.random.default_rng(2).normal(size=len(rows))
    )
    assert_same(ri.FeatureSpec.from_sklearn(continuous, sample=rows), continuous, rows)


@pytest.mark.parametrize("encode", ["ordinal", "onehot", "onehot-dense"])
@pytest.mark.parametrize("strategy", ["uniform", "quantile", "kmeans"])
def test_bins_are_copied(encode, strategy):
    """Numbers of bins and a cell each; values on edges and beyond both ends."""
    rows = frame()[["amount", "items"]].assign(constant=1.0)
    more = {}
    if strategy == "quantile" and "quantile_method" in KBinsDiscretizer().get_params():
        more["quantile_method"] = "averaged_inverted_cdf"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about bins that are too small
        made = KBinsDiscretizer(5, encode=encode, strategy=strategy, **more).fit(rows)
    spec = ri.FeatureSpec.from_sklearn(made, sample=rows)
    edges = np.unique(np.concatenate([np.asarray(e)[1:-1] for e in made.bin_edges_[:1]]))
    near = np.concatenate([edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf), [-1e9, 1e9]])
    probes = pd.DataFrame({"amount": near, "items": np.resize([0, 1, 5, 9, 40], len(near)), "constant": near})
    assert assert_same(spec, made, probes) == len(near)
    scaled = make_pipeline(KBinsDiscretizer(5, encode="ordinal", strategy="uniform"), StandardScaler())
    copied(scaled, rows)


def test_bins_of_scaled_and_imputed_numbers_are_copied():
    """Steps come before the edges; what an imputer puts falls into its bin."""
    bins = KBinsDiscretizer(4, encode="onehot-dense", strategy="uniform")
    for before in (
        [StandardScaler(), SimpleImputer()],
        [SimpleImputer(), MinMaxScaler()],
        [SimpleImputer(strategy="median", add_indicator=True)],
    ):
        copied(make_pipeline(*before, bins), frame()[["gap", "amount"]])


# ---- whole preprocessings --------------------------------------------------------------------------------------------


def everything() -> ColumnTransformer:
    """What a payments team has."""
    return ColumnTransformer(
        [
            (
                "num",
                make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler()),
                NUMBERS,
            ),
            (
                "cat",
                OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=20),
                ["channel", "country"],
            ),
            ("log", FunctionTransformer(np.log1p), ["amount"]),
            ("bins", KBinsDiscretizer(3, encode="ordinal", strategy="uniform"), ["amount"]),
            ("mean", TargetEncoder(), ["store"]),
            ("gone", "drop", ["tier"]),
        ],
        remainder="passthrough",
    )


def test_a_column_transformer_is_copied_with_all_its_parts():
    """Names, fields, what is optional, and the exactness of everything but log1p."""
    rows = frame()
    spec = copied(everything(), rows)
    made = everything().fit(rows, LABEL)
    made.set_params(log__feature_names_out="one-to-one")
    named = ri.FeatureSpec.from_sklearn(made.fit(rows, LABEL), sample=rows)
    assert list(named.names) == list(made.get_feature_names_out())
    assert spec.names[0] == "num__amount"
    assert {f.name: (f.type, f.optional) for f in spec.fields} == {
        "amount": ("float", False),  # the bins refuse a gap
        "gap": ("float", True),
        "items": ("int", True),
        "channel": ("str", False),
        "country": ("str", True),
        "member": ("bool", False),
        "plan": ("float", True),
        "store": ("int", False),
    }
    assert list(spec.copied.tolerance) == ["log__amount"]
    assert 0.0 <= spec.copied.difference <= spec.copied.tolerance["log__amount"] < 1e-13
    assert spec.copied.rows == len(rows)


def test_the_estimator_at_the_end_is_left_out():
    """A pipeline with its model, and without, give the same spec; a model alone has nothing to copy."""
    rows = frame()
    made = Pipeline([("columns", everything()), ("model", RandomForestClassifier(3))]).fit(rows, LABEL)
    spec = ri.FeatureSpec.from_sklearn(made, sample=rows)
    assert spec == ri.FeatureSpec.from_sklearn(made[:-1], sample=rows)
    assert spec == ri.FeatureSpec.from_sklearn(made[0], sample=rows)
    with pytest.raises(SpecError, match="no step before `RandomForestClassifier`"):
        ri.FeatureSpec.from_sklearn(
            make_pipeline(RandomForestClassifier(3).fit(rows[["items"]], LABEL)), sample=rows
        )


@pytest.mark.parametrize("sparse_threshold", [0.0, 1.0])
@pytest.mark.parametrize("output", ["default", "pandas", "polars"])
def test_preprocessings_in_preprocessings_are_copied(sparse_threshold, output):
    """A ColumnTransformer of ColumnTransformers, then steps over all columns; sparse, dense and as tables."""
    inner = ColumnTransformer(
        [
            ("a", make_pipeline(SimpleImputer(), MinMaxScaler()), ["gap"]),
            ("b", OneHotEncoder(sparse_output=False), ["channel"]),
        ],
        sparse_threshold=sparse_threshold,
        verbose_feature_names_out=False,
    )
    outer = ColumnTransformer(
        [
            ("inner", inner, ["gap", "channel"]),
            ("sparse", OneHotEncoder(sparse_output=output == "default", handle_unknown="ignore"), ["store"]),
            ("rest", "passthrough", ["items"]),
        ],
        sparse_threshold=sparse_threshold,
    )
    made = make_pipeline(outer, VarianceThreshold(0.01), StandardScaler(with_mean=False))
    made.set_output(transform=output)
    copied(made, frame())


def test_a_second_column_transformer_reads_columns_by_place_and_by_name():
    """After the first one columns have places; as a table they have names too."""
    rows = frame()
    first = ColumnTransformer([("n", SimpleImputer(), ["gap"]), ("o", OrdinalEncoder(), ["channel"])])
    by_place = ColumnTransformer([("x", OneHotEncoder(), [-1]), ("y", StandardScaler(), slice(0, 1))])
    copied(make_pipeline(first, by_place), rows)
    by_name = ColumnTransformer(
        [("x", OneHotEncoder(sparse_output=False), ["o__channel"]), ("y", StandardScaler(), ["n__gap"])]
    )
    copied(make_pipeline(first, by_name).set_output(transform="pandas"), rows)
    masked = ColumnTransformer([("x", StandardScaler(), [True, False]), ("y", "passthrough", slice(1, None))])
    copied(make_pipeline(first, masked), rows)


def test_weights_of_parts_are_copied():
    """A weight multiplies what its part gives."""
    made = ColumnTransformer(
        [("a", StandardScaler(), ["gap"]), ("b", OneHotEncoder(), ["channel"])],
        transformer_weights={"a": 0.25, "b": 3.0},
    )
    copied(made, frame())


def test_a_preprocessing_without_names_takes_columns_in_their_order():
    """Fitted on arrays: the sample's columns are its columns, and their number is checked."""
    rows = frame()[["amount", "gap"]]
    made = make_pipeline(SimpleImputer(), StandardScaler()).fit(rows.to_numpy())
    spec = ri.FeatureSpec.from_sklearn(made, sample=rows)
    assert spec.names == ("amount", "gap")
    np.testing.assert_array_equal(np.asarray(spec.transform(rows)), made.transform(rows.to_numpy()))
    with pytest.raises(SpecError, match="fitted on 2 columns without names, and the sample has 1"):
        ri.FeatureSpec.from_sklearn(made, sample=rows[["amount"]])


# ---- random mixtures -------------------------------------------------------------------------------------------------

SCALERS = st.sampled_from(
    [
        StandardScaler(),
        StandardScaler(with_mean=False),
        MinMaxScaler((-1, 2)),
        MinMaxScaler(clip=True),
        RobustScaler(),
        MaxAbsScaler(),
        FunctionTransformer(np.log1p, feature_names_out="one-to-one"),
        FunctionTransformer(),
        "passthrough",
    ]
)
IMPUTERS = st.sampled_from(
    [
        SimpleImputer(),
        SimpleImputer(strategy="median", add_indicator=True),
        SimpleImputer(strategy="most_frequent"),
        SimpleImputer(strategy="constant", fill_value=3.0),
    ]
)
LAST_OF_NUMBERS = st.sampled_from(
    [
        "passthrough",
        KBinsDiscretizer(3, encode="ordinal", strategy="uniform"),
        KBinsDiscretizer(4, encode="onehot", strategy="uniform"),
        Binarizer(threshold=0.5),
        SimpleImputer(strategy="constant", fill_value=0.0),
        OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
    ]
)
TEXT_STEPS = st.tuples(
    st.sampled_from(
        [
            "passthrough",
            SimpleImputer(strategy="most_frequent"),
            SimpleImputer(strategy="constant", fill_value="?"),
        ]
    ),
    st.sampled_from(
        [e for name, e in ENCODERS.items() if not isinstance(e, Pipeline) and "refuse" not in name]
    ),
    st.sampled_from(
        ["passthrough", "passthrough", StandardScaler(with_mean=False), MaxAbsScaler(), SimpleImputer()]
    ),
)


@st.composite
def preprocessings(draw: st.DrawFn) -> tuple[ColumnTransformer, int, object]:
    """Parts over random columns, each a pipeline of random steps; the seed of a table, and what is missing in its texts."""
    parts = []
    for i in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            columns = draw(st.lists(st.sampled_from([*NUMBERS, "plan"]), min_size=1, max_size=3, unique=True))
            steps = [
                draw(SCALERS),
                draw(st.one_of(st.just("passthrough"), IMPUTERS)),
                draw(SCALERS),
                draw(LAST_OF_NUMBERS),
            ]
        else:
            columns = draw(st.lists(st.sampled_from([*TEXTS, "tier"]), min_size=1, max_size=3, unique=True))
            steps = list(draw(TEXT_STEPS))
        parts.append((f"p{i}", Pipeline([(f"s{j}", step) for j, step in enumerate(steps)]), columns))
    made = ColumnTransformer(
        parts,
        remainder=draw(st.sampled_from(["drop", "drop", StandardScaler()])),
        sparse_threshold=draw(st.sampled_from([0.0, 0.3, 1.0])),
    )
    return made, draw(st.integers(0, 50)), draw(st.sampled_from([None, np.nan]))


@given(case=preprocessings())
def test_random_mixtures_are_copied_or_named(case):
    """What scikit-learn fits is copied with the same numbers, or refused with the name of a step."""
    shared, seed, marker = case
    made = clone(shared)  # steps are shared between examples
    rows = frame(60, seed)
    rows["country"] = rows["country"].astype(object).where(rows["country"].notna(), marker)
    if made.remainder != "drop":
        used = {name for _, _, columns in made.transformers for name in columns}
        rows = rows.drop(columns=[n for n in (*TEXTS, "tier") if n not in used])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made.fit(rows, LABEL[: len(rows)])
            want = transformed(made, rows)
        except (ValueError, TypeError):
            assume(False)
        assume(np.isfinite(want[~np.isnan(want)]).all())
    try:
        spec = ri.FeatureSpec.from_sklearn(made, sample=rows)
    except SpecError as exc:
        why = str(exc)
        assert re.search(
            "cannot be copied exactly: `p|domain of log1p|leaves the preprocessing as text", why
        ), why
        return
    if "log1p" not in str(made.get_params()):  # whose domain other rows may leave
        assert_same(spec, made, other_rows(rows, spec))


# ---- requests --------------------------------------------------------------------------------------------------------


def test_requests_are_served_as_the_table_was_transformed():
    """One request as a dict, unknown categories and nulls among them, gives the row of scikit-learn."""
    rows = frame()
    made = everything().fit(rows, LABEL)
    spec = ri.FeatureSpec.from_sklearn(made, sample=rows, dtype="float64")
    pipe = BarePipeline(Case(spec.body, [], {}, 1, {}))
    probe = other_rows(rows, spec)
    for i in range(40):
        row = probe.iloc[[i]]
        request = {f.name: None if pd.isna(row[f.name].iloc[0]) else row[f.name].iloc[0] for f in spec.fields}
        pipe.engine.score(request)
        np.testing.assert_allclose(pipe.last()["features"][0], transformed(made, row)[0], rtol=0, atol=1e-13)


def test_a_category_that_scikit_learn_refuses_is_a_range_error():
    """handle_unknown="error" in serving: the request is refused, and the answer says which value."""
    rows = frame()[["channel"]]
    spec = ri.FeatureSpec.from_sklearn(OneHotEncoder().fit(rows), sample=rows)
    pipe = BarePipeline(Case(spec.body, [], {}, 1, {}))
    with pytest.raises(FeatureRangeError, match=r"'unseen'.*\$\.channel"):
        pipe.engine.score({"channel": "unseen"})


def test_columns_with_other_names_are_fields_with_a_name_on_the_wire():
    """A request field is an identifier; JSON and tables keep the column's name."""
    rows = frame()[["amount", "items"]].rename(columns={"amount": "total amount", "items": "class"})
    made = StandardScaler().fit(rows)
    spec = ri.FeatureSpec.from_sklearn(made, sample=rows)
    assert [(f.name, f.wire) for f in spec.fields] == [("total_amount", "total amount"), ("f_class", "class")]
    np.testing.assert_array_equal(np.asarray(spec.transform(rows)), made.transform(rows))


def test_a_declared_request_is_kept_and_decides_what_is_optional():
    """Fields by name or by name on the wire; more of them than are read; types that convert exactly."""
    import msgspec

    class Payment(msgspec.Struct, rename={"amount": "Amount"}):
        amount: float
        gap: float | None
        items: float
        note: str

    rows = frame()[NUMBERS].rename(columns={"amount": "Amount"})
    made = make_pipeline(SimpleImputer(), StandardScaler()).fit(rows)
    spec = ri.FeatureSpec.from_sklearn(made, sample=rows.assign(note="x"), request=Payment)
    assert spec.request_type is Payment
    assert [f.name for f in spec.fields] == ["amount", "gap", "items", "note"]
    np.testing.assert_array_equal(np.asarray(spec.transform(rows.assign(note="x"))), made.transform(rows))
    with pytest.raises(SpecError, match="reads column `items`, and request= declares no such field"):
        ri.FeatureSpec.from_sklearn(made, sample=rows, request={"Amount": float, "gap": float | None})


def test_integers_with_gaps_are_categories_of_an_integer_field():
    """pandas makes them floats; a request brings integers, and null."""
    table = pa.table({"plan": pa.array([1, 2, None, 3, 2] * 20, pa.int64())})
    made = OneHotEncoder(handle_unknown="ignore").fit(table.to_pandas())
    spec = ri.FeatureSpec.from_sklearn(made, sample=table)
    assert (spec.fields[0].type, spec.fields[0].optional) == ("int", True)
    assert spec.columns[0].keys == (1, 2, 3)
    assert spec.transform(table)[:5].tolist() == [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 1, 0],
        [0, 1, 0, 0],
    ]


@pytest.mark.parametrize("marker", [None, np.nan])
def test_null_is_what_the_table_has_for_missing(marker):
    """None and NaN are different categories for scikit-learn; a request has null for either."""
    rows = pd.DataFrame({"x": pd.Series(["a", "b", marker, "a"] * 10, dtype=object)})
    spec = ri.FeatureSpec.from_sklearn(OneHotEncoder().fit(rows), sample=rows)
    assert spec.transform(rows)[:3].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    whole = rows.dropna()  # a sample without a gap: the steps show what they take for one
    spec = ri.FeatureSpec.from_sklearn(OneHotEncoder().fit(rows), sample=whole)
    assert spec.fields[0].optional
    assert spec.transform(rows)[:3].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("kind", ["pandas", "nullable", "polars", "arrow"])
def test_samples_of_every_kind_of_table(monkeypatch, kind):
    """pandas with NumPy's or its own dtypes, polars, Arrow."""
    monkeypatch.setattr(from_sklearn, "ROWS", 100)
    rows = frame()[["amount", "gap", "items", "channel", "member"]]
    if kind == "nullable":
        rows = rows.convert_dtypes(dtype_backend="numpy_nullable")
        rows["channel"] = rows["channel"].astype(object)
    sample: Any = rows
    if kind == "polars":
        sample = pl.from_pandas(rows, nan_to_null=True)
    made = ColumnTransformer(
        [
            ("n", make_pipeline(SimpleImputer(), StandardScaler()), ["amount", "gap", "items"]),
            ("c", OneHotEncoder(sparse_output=False), ["channel"]),
        ]
    ).fit(sample)
    if kind == "arrow":
        sample = pa.Table.from_pandas(rows)
    spec = ri.FeatureSpec.from_sklearn(made, sample=sample)
    assert spec.copied.exact
    assert [f.type for f in spec.fields] == ["float", "float", "int", "str"]


def test_float32_tensors_are_rounded_once():
    """dtype="float32": the float64 cell of scikit-learn, rounded."""
    rows = frame()[NUMBERS]
    made = make_pipeline(SimpleImputer(), StandardScaler()).fit(rows)
    spec = ri.FeatureSpec.from_sklearn(made, sample=rows, dtype="float32")
    np.testing.assert_array_equal(np.asarray(spec.transform(rows)), made.transform(rows).astype(np.float32))
    with pytest.raises(SpecError, match="Expected dtype float64 or float32"):
        ri.FeatureSpec.from_sklearn(made, sample=rows, dtype="int64")


def test_fit_adds_ranges_and_changes_no_cell():
    """`fit` on the training table: ranges and a baseline for later comparisons with traffic."""
    rows = frame()
    spec = ri.FeatureSpec.from_sklearn(everything().fit(rows, LABEL), sample=rows)
    fitted = spec.fit(rows)
    assert np.array_equal(
        np.asarray(fitted.transform(rows)), np.asarray(spec.transform(rows)), equal_nan=True
    )
    assert fitted.baseline is not None
    assert fitted.copied == spec.copied
    assert fitted.body.fitted["num__amount"].seen_high == rows["amount"].max()


# ---- refusals --------------------------------------------------------------------------------------------------------


class OwnScaler(StandardScaler):
    """A subclass may do anything."""


class OwnTransformer(TransformerMixin, BaseEstimator):
    """A class of one's own."""

    def fit(self, X, y=None):  # noqa: N803 - scikit-learn's own names
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X):  # noqa: N803
        return X


@pytest.mark.parametrize(
    ("made", "columns", "message"),
    [
        (
            PolynomialFeatures(),
            NUMBERS[:1],
            r"`columns\.num\.poly: PolynomialFeatures` \(declare products as c\.product\)",
        ),
        (PowerTransformer(), NUMBERS[:1], r"`columns\.num\.poly: PowerTransformer`"),
        (PCA(1), ["items"], "`columns.num.poly: PCA` .it mixes columns"),
        (Normalizer(), ["items"], "it mixes columns"),
        (KNNImputer(), ["gap"], "it needs the training rows"),
        (OwnScaler(), ["gap"], "a class of `tests?.*`, a subclass of StandardScaler"),
        (OwnTransformer(), ["gap"], "a class of `test"),
        (FunctionTransformer(np.log), ["amount"], "its function `log` is none of"),
        (FunctionTransformer(lambda x: x), ["amount"], "its function `<lambda>` is none of"),
        (SimpleImputer(missing_values=-1), ["items"], "missing_values=-1: only NaN, None and pandas.NA"),
        (FunctionTransformer(np.sqrt), ["member"], "it computes in the dtype of column `member`, bool"),
        (
            make_pipeline(StandardScaler(), OrdinalEncoder()),
            ["items"],
            "takes computed numbers, of column `items`",
        ),
    ],
)
def test_what_cannot_be_copied_is_named_with_its_path(made, columns, message):
    """The path of the step, its class, why, and what to do."""
    rows = frame()
    whole = Pipeline(
        [
            (
                "columns",
                ColumnTransformer(
                    [("num", Pipeline([("poly", made)]), columns), ("ok", StandardScaler(), ["amount"])]
                ),
            ),
            ("model", LogisticRegression()),
        ]
    )
    whole[0].fit(rows)
    with pytest.raises(SpecError, match=message) as caught:
        ri.FeatureSpec.from_sklearn(whole[0] if "columns" not in message else whole, sample=rows)
    assert "leave the step to the model" in str(caught.value)


def test_all_steps_that_cannot_be_copied_are_named_at_once():
    """Two parts, two names, in one error."""
    rows = frame()
    made = ColumnTransformer(
        [
            ("a", PolynomialFeatures(), ["amount"]),
            ("b", TfidfVectorizer(), "channel"),
            ("c", StandardScaler(), ["items"]),
        ]
    ).fit(rows)
    with pytest.raises(
        SpecError, match=r"2 steps of the pipeline.*`a: PolynomialFeatures`.*`b: TfidfVectorizer`"
    ):
        ri.FeatureSpec.from_sklearn(made, sample=rows)


def test_float32_arithmetic_is_refused_and_float32_values_are_rounded():
    """scikit-learn computes in float32 where all columns are; other steps only see rounded values."""
    rows = frame()[["amount", "gap"]].astype(np.float32)
    with pytest.raises(SpecError, match=r"computes in float32.*train on float64"):
        ri.FeatureSpec.from_sklearn(StandardScaler().fit(rows), sample=rows)
    made = make_pipeline(SimpleImputer(), KBinsDiscretizer(3, encode="ordinal", strategy="uniform")).fit(rows)
    spec = ri.FeatureSpec.from_sklearn(made, sample=rows)
    assert spec.columns[0].steps[0].op == "float32"
    mixed = rows.assign(items=frame()["items"])  # float32 and int64 are float64 together
    assert ri.FeatureSpec.from_sklearn(StandardScaler().fit(mixed), sample=mixed).copied.exact


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            ColumnTransformer([("a", "passthrough", ["channel"])]),
            "`a__channel` leaves the preprocessing as text",
        ),
        (ColumnTransformer([("a", "passthrough", ["at"])]), "no request field can bring column `at`"),
        (
            ColumnTransformer([("a", OrdinalEncoder(), ["mixed"])]),
            "no request field can bring column `mixed`: its values",
        ),
        (ColumnTransformer([("a", "drop", ["items"])]), "gives no columns"),
    ],
)
def test_what_a_matrix_or_a_request_cannot_hold_is_refused(made, message):
    """Text in the matrix, moments, values of several types, nothing at all."""
    rows = frame().assign(at=pd.Timestamp("2025-01-01"), mixed=pd.Series([1, "a"] * 120, dtype=object))
    try:
        made.fit(rows)
    except TypeError:  # encoders refuse mixtures themselves
        made = ColumnTransformer([("a", FunctionTransformer(), ["mixed"])]).fit(rows)
    with pytest.raises(SpecError, match=message):
        ri.FeatureSpec.from_sklearn(made, sample=rows)


def test_what_is_not_fitted_or_a_search_is_refused():
    """With the attribute that is not there, or what to give instead."""
    rows = frame()[["items"]]
    with pytest.raises(SpecError, match="it is not fitted: it has no `mean_`"):
        ri.FeatureSpec.from_sklearn(StandardScaler(), sample=rows)
    search = GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {}).fit(rows, LABEL)
    with pytest.raises(SpecError, match="give its best_estimator_"):
        ri.FeatureSpec.from_sklearn(search, sample=rows)
    ri.FeatureSpec.from_sklearn(search.best_estimator_, sample=rows)


def test_a_sample_must_be_rows_that_scikit_learn_takes():
    """No rows, missing columns, and rows that the pipeline itself refuses."""
    rows = frame()
    made = ColumnTransformer([("a", StandardScaler(), ["items"]), ("b", OneHotEncoder(), ["channel"])]).fit(
        rows
    )
    with pytest.raises(SpecError, match="no rows"):
        ri.FeatureSpec.from_sklearn(made, sample=rows.iloc[:0])
    with pytest.raises(SpecError, match=r"the sample lacks the column `channel`.*it has: items"):
        ri.FeatureSpec.from_sklearn(made, sample=rows[["items"]])
    with pytest.raises(SpecError, match=r"scikit-learn refuses the sample: ValueError: .*unseen"):
        ri.FeatureSpec.from_sklearn(made, sample=rows.assign(channel="unseen"))


@pytest.mark.parametrize("at_a_time", [2, 240, 16_384])
def test_a_copy_that_differs_is_an_error_with_row_and_cell(monkeypatch, at_a_time):
    """Whatever the reason: nothing that gave another number on the sample is returned; rows are compared in parts."""
    monkeypatch.setattr(from_sklearn, "ROWS", at_a_time)
    rows = frame()[["amount", "items"]]
    made = StandardScaler().fit(rows)

    def wrong(table):
        out = StandardScaler.transform(made, table)
        out[table.index == 3, 1] += 1e-9
        return out

    made.transform = wrong
    with pytest.raises(
        SpecError, match=r"row 3 of the sample: the copy gives .* for `items` \(reads `items`, there \d"
    ):
        ri.FeatureSpec.from_sklearn(made, sample=rows)


def test_the_bound_of_log1p_holds_for_what_an_imputer_put_there():
    """Behind log1p of a missing value comes a number that is off by nothing, and log1p of that one is off again."""
    log1p = FunctionTransformer(np.log1p)
    rows = pd.DataFrame({"x": [1.7, np.nan, 9.1, 4.4]})
    made = make_pipeline(log1p, SimpleImputer(strategy="median"), log1p).fit(rows)
    right = made.transform

    def within(ulps):
        """The copy, where scikit-learn's log1p of the filled number is so many last places elsewhere."""
        made.transform = lambda given: right(given) * (1 + ulps * np.array([[0], [2.0**-52], [0], [0]]))
        return ri.FeatureSpec.from_sklearn(made, sample=rows).copied

    for ulps in (-6, 0, 6):
        assert within(ulps).difference < 7 * 2.0**-52
    for ulps in (-40, 40):
        with pytest.raises(SpecError, match=r"row 1 of the sample: the copy gives .* there None"):
            within(ulps)


def test_a_row_outside_the_domain_of_log1p_is_refused_by_name():
    """scikit-learn gives NaN with a warning; the spec refuses such a row, in training and in serving."""
    rows = pd.DataFrame({"x": [1.0, -3.0, 2.0]})
    made = FunctionTransformer(np.log1p).fit(rows)
    with pytest.raises(SpecError, match=r"the copy refuses a row of the sample.*log1p"):
        ri.FeatureSpec.from_sklearn(made, sample=rows)


# ---- which pipeline a spec was copied from ---------------------------------------------------------------------------


def test_a_copy_is_known_by_its_columns():
    """Also after JSON; another pipeline, or a spec of one's own over the same names, is none."""
    rows = frame()
    made = make_pipeline(everything(), RandomForestClassifier(3)).fit(rows, LABEL)
    spec = ri.FeatureSpec.from_sklearn(made, sample=rows)
    assert is_copy(spec, made)
    assert is_copy(ri.FeatureSpec.from_json(spec.to_json()), made)
    other = make_pipeline(everything(), RandomForestClassifier(3)).fit(rows.iloc[:200], LABEL[:200])
    assert not is_copy(spec, other)
    raw = ri.FeatureSpec(
        request=dict.fromkeys(NUMBERS, float | None),
        tensors={"features": ri.Tensor(tuple(ri.columns.numeric(n) for n in NUMBERS), "float64")},
    )
    assert not is_copy(
        raw, make_pipeline(StandardScaler(), LogisticRegression()).fit(rows[["amount", "items"]], LABEL)
    )


def test_scores_of_a_copy_come_through_json_too(tmp_path):
    """A whole pipeline packed and served: dict and JSON, unknown categories, nulls, names on the wire."""
    rows = frame().rename(columns={"amount": "total amount"})
    columns = ColumnTransformer(
        [
            ("n", make_pipeline(SimpleImputer(), StandardScaler()), ["total amount", "gap", "items"]),
            ("c", OneHotEncoder(handle_unknown="ignore"), ["channel", "country"]),
        ]
    )
    made = make_pipeline(columns, RandomForestClassifier(20, random_state=0)).fit(rows, LABEL)
    ri.pack("fraud", model=made, golden=rows, out=tmp_path / "fraud")
    probe = other_rows(rows, ri.FeatureSpec.from_sklearn(made, sample=rows))
    want = made.predict_proba(probe)[:, 1].astype(np.float32)
    with ri.Scorer.load(tmp_path / "fraud", trust="unsigned") as scorer:
        for i, row in enumerate(probe.to_dict("records")):
            request = {
                f.wire or f.name: None if pd.isna(v := row[f.wire or f.name]) else v
                for f in scorer.spec.fields
            }
            assert json.loads(scorer.score_json(json.dumps(request).encode()))["score"] == pytest.approx(
                float(want[i]), abs=0
            )
            by_name = {f.name: request[f.wire or f.name] for f in scorer.spec.fields}
            assert np.float32(scorer.score(by_name).score) == want[i]


@pytest.mark.parametrize(
    "steps",
    [
        [SimpleImputer(strategy="median"), RobustScaler()],
        [SimpleImputer(strategy="mean", add_indicator=True)],
        [OneHotEncoder(handle_unknown="ignore")],
        [OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)],
    ],
    ids=["imputed", "indicated", "onehot", "ordinal"],
)
def test_truths_of_pandas_with_gaps_are_missing_as_scikit_learn_sees_them(steps):
    """pandas.NA in a column of truths becomes NaN in scikit-learn, and a null of a request stands for it."""
    table = pd.DataFrame({"known": pd.array([True, False, pd.NA, True, False, True, pd.NA], dtype="boolean")})
    made = make_pipeline(*steps).fit(table)
    spec = ri.FeatureSpec.from_sklearn(made, sample=table)
    want = made.transform(table)
    want = np.asarray(want.toarray() if hasattr(want, "toarray") else want, dtype=np.float64)
    assert np.array_equal(
        np.asarray(spec.transform(pa.table({"known": [True, False, None]}))), want[:3], equal_nan=True
    )


@pytest.mark.parametrize("dtype", ["complex128", "longdouble"])
def test_numbers_that_arrow_does_not_hold_are_refused_by_the_name_of_their_column(dtype):
    """Complex and long double columns have no request field."""
    table = pd.DataFrame({"a": np.arange(6.0)})
    made = StandardScaler().fit(table)
    if np.dtype(dtype) == np.float64:
        pytest.skip("platform: a long double is a double here")
    with pytest.raises(SpecError, match="no request field can bring column `a`"):
        ri.FeatureSpec.from_sklearn(made, sample=table.astype(dtype))
