"""Reasons of forests against their twin: every instruction set and form, additivity, ties, hostile arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_trees_kernels import FEATURES, random_forest, rows_for

from retailinfer._native import reasons_reference as twin
from retailinfer._native.reasons import FORMS, MAX_REASONS, ForestExplainer, ForestReasons
from retailinfer._native.trees import TreeModel, levels
from retailinfer.errors import ConfigError, ModelError, ShapeError


def forest(seed, *, covers=True, **kind):
    """A drawn forest with covers: none at some nodes, at random others."""
    arrays, grid = random_forest(seed, **kind)
    rng = np.random.default_rng(seed)
    cover = rng.choice([0.0, 1.0, 5.0, 7.5, 1e3], len(arrays["feature"])) if covers else np.zeros(0)
    return {**arrays, "cover": cover}, grid


def stump(*leaves, feature=(0,), cover=()):
    """One tree of one node and two leaves, for each pair of leaves; thresholds are 0."""
    n = len(leaves) // 2
    of = np.arange(n)
    return {
        "roots": (3 * of).astype(np.int32),
        "feature": np.column_stack([np.resize(feature, n), -np.ones(n), -np.ones(n)])
        .ravel()
        .astype(np.int32),
        "threshold": np.zeros(3 * n),
        "left": np.column_stack([3 * of + 1, 2 * of, 2 * of + 1]).ravel().astype(np.int32),
        "right": np.column_stack([3 * of + 2, 0 * of, 0 * of]).ravel().astype(np.int32),
        "missing_left": np.zeros(3 * n, np.uint8),
        "missing": np.zeros(3 * n, np.uint8),
        "rule": np.zeros(3 * n, np.uint8),
        "category": np.full(3 * n, -1, np.int32),
        "set_ends": np.zeros(1, np.int64),
        "set_words": np.zeros(0, np.uint32),
        "values": np.array(leaves, np.float64),
        "targets": np.zeros(n, np.int32),
        "base": np.zeros(1),
        "cover": np.array(cover, np.float64),
    }


@settings(deadline=None)
@example(seed=0, n_trees=0, depth=4, outputs=1, width=1, n_groups=3, covers=True, wide=False)
@example(seed=3, n_trees=40, depth=6, outputs=3, width=1, n_groups=64, covers=True, wide=False)
@example(seed=4, n_trees=8, depth=8, outputs=2, width=2, n_groups=128, covers=False, wide=True)
@given(
    seed=st.integers(0, 2**31),
    n_trees=st.integers(0, 20),
    depth=st.integers(0, 7),
    outputs=st.integers(1, 3),
    width=st.sampled_from([1, 3]),
    n_groups=st.integers(0, 140),
    covers=st.booleans(),
    wide=st.booleans(),
)
def test_groups_are_picked_as_by_the_twin(seed, n_trees, depth, outputs, width, n_groups, covers, wide):
    """Whatever the forest, every instruction set and every form has the twin's amounts, and names the same groups."""
    arrays, grid = forest(
        seed,
        covers=covers,
        n_trees=n_trees,
        depth=depth,
        n_outputs=outputs,
        width=min(width, outputs),
        rules=True,
        wide=wide,
    )
    rng = np.random.default_rng(seed)
    groups = rng.integers(-1, n_groups, FEATURES).astype(np.int32)
    rows = rows_for(seed, grid, 9, wide=wide)
    output = int(rng.integers(0, outputs))
    want = twin.amounts(arrays, groups, rows, n_groups=n_groups, output=output, n_outputs=outputs)
    picked = twin.pick(want, 3)
    for level in levels():
        model = TreeModel(arrays, n_features=FEATURES, n_outputs=outputs, level=level, wide=wide)
        for form in FORMS:
            reasons = ForestReasons(
                model, arrays, groups, names=tuple(range(n_groups)), column=output, most=3, form=form
            )
            np.testing.assert_array_equal(reasons.amounts(rows), want)
            assert reasons.top(rows) == picked
            assert [reasons.top(rows[i : i + 1])[0] for i in range(len(rows))] == picked


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n_trees=st.integers(1, 12),
    outputs=st.integers(1, 3),
    covers=st.booleans(),
    average=st.booleans(),
)
def test_contributions_and_base_add_up_to_the_sum(seed, n_trees, outputs, covers, average):
    """By the way and by Shapley values: base and contributions are the sum of the leaves, to double precision."""
    arrays, grid = forest(
        seed, covers=covers, n_trees=n_trees, depth=5, n_outputs=outputs, rules=True, wide=True
    )
    rows = rows_for(seed, grid, 8, wide=True)
    how = {"n_outputs": outputs, "average": average, "doubles": True, "wide": True}
    model = TreeModel(arrays, n_features=FEATURES, **how)
    leaves = model.leaves(rows)
    for column in range(outputs):
        own = arrays["targets"] == column
        sums = np.where(own, arrays["values"][leaves], 0.0).sum(axis=1)
        sums = sums / (n_trees if average else 1) + arrays["base"][column]
        explainer = ForestExplainer(model, arrays, column=column, average=average)
        for contributions in (explainer.path(rows), explainer.shap(rows)):
            np.testing.assert_allclose(
                explainer.base + contributions.sum(axis=1), sums, rtol=0, atol=1e-11 * n_trees
            )
        raw = model.predict(rows, column=column, raw=True)
        np.testing.assert_allclose(sums, raw, rtol=2e-7, atol=1e-7)


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), outputs=st.integers(1, 3), covers=st.booleans(), average=st.booleans())
def test_contributions_are_those_of_the_definitions(seed, outputs, covers, average):
    """By the way bit for bit; Shapley values as summed over all subsets of the features."""
    arrays, grid = forest(seed, covers=covers, n_trees=5, depth=5, n_outputs=outputs, rules=True)
    rows = rows_for(seed, grid, 4)
    model = TreeModel(arrays, n_features=FEATURES, n_outputs=outputs, average=average)
    column = outputs - 1
    how = {"output": column, "n_outputs": outputs, "divisor": 5.0 if average else 1.0}
    explainer = ForestExplainer(model, arrays, column=column, average=average)
    assert explainer.base == twin.base_of(arrays, **how)
    np.testing.assert_array_equal(explainer.path(rows), twin.path_contributions(arrays, rows, **how))
    shapley = [twin.shap_contributions(arrays, row, **how) for row in rows]
    np.testing.assert_allclose(explainer.shap(rows), shapley, rtol=0, atol=1e-10)


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), n_trees=st.integers(1, 60))
def test_amounts_are_contributions_to_half_a_quantum_a_tree(seed, n_trees):
    """What decides about reasons is the contribution of the way, as exactly as is promised."""
    arrays, grid = forest(seed, n_trees=n_trees, depth=6)
    rows = rows_for(seed, grid, 10)
    model = TreeModel(arrays, n_features=FEATURES)
    reasons = ForestReasons(model, arrays, np.arange(FEATURES, dtype=np.int32), names=tuple(range(FEATURES)))
    exact = ForestExplainer(model, arrays).path(rows)
    error = np.abs(reasons.amounts(rows) * reasons.quantum - exact)
    assert (error <= 0.5 * n_trees * reasons.quantum + 1e-12).all()


def test_equal_contributions_stand_in_the_order_of_the_groups():
    """Three features that add the same: the first groups are named, whatever the order of the trees."""
    arrays = stump(*[0.0, 1.0] * 4, feature=(3, 1, 2, 0))
    model = TreeModel(arrays, n_features=4)
    reasons = ForestReasons(model, arrays, np.array([2, 0, 1, 3], np.int32), names=tuple("abcd"), most=3)
    assert reasons.top(np.ones((1, 4), np.float32)) == [("a", "b", "c")]


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 6, 7, 40, MAX_REASONS])
def test_any_number_of_reasons_is_picked_alike(most):
    """However many are asked for, the strongest come first, equal ones in order, and only such as push up."""
    arrays, grid = forest(11, n_trees=30, depth=5)
    rows = rows_for(11, grid, 20)
    groups = np.arange(FEATURES, dtype=np.int32)
    model = TreeModel(arrays, n_features=FEATURES)
    want = twin.pick(twin.amounts(arrays, groups, rows, n_groups=FEATURES), most)
    for form in FORMS:
        reasons = ForestReasons(model, arrays, groups, names=tuple(range(FEATURES)), most=most, form=form)
        assert reasons.top(rows) == want


def test_only_what_pushes_up_is_named():
    """A row without any step up has no reasons; of one sum with two columns, the first turns the steps round."""
    arrays = stump(0.0, 1.0, 0.0, -2.0, feature=(0, 1))
    model = TreeModel(arrays, n_features=2, n_columns=2, post="sigmoid")
    groups = np.arange(2, dtype=np.int32)
    up, down = (ForestReasons(model, arrays, groups, names=("x", "y"), column=k) for k in (1, 0))
    rows = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
    assert up.top(rows) == [("x",), ("y", "x"), (), ("y",)]
    assert down.top(rows) == [("y",), (), ("y", "x"), ("x",)]


def test_steps_of_one_group_are_one_reason():
    """Cells of one field count together; features of group -1 are never named."""
    arrays = stump(0.0, 1.0, 0.0, 1.0, 0.0, 1.5, 0.0, 9.0, feature=(0, 1, 2, 3))
    model = TreeModel(arrays, n_features=4)
    reasons = ForestReasons(model, arrays, np.array([0, 0, 1, -1], np.int32), names=("one-hot", "other"))
    assert reasons.top(np.ones((1, 4), np.float32)) == [("one-hot", "other")]
    assert reasons.amounts(np.ones((1, 4), np.float32))[0, 0] * reasons.quantum == pytest.approx(
        1.0, abs=4e-5
    )


def test_covers_weigh_the_expectation():
    """A node expects the mean of its leaves by the rows that reached them; without covers both sides alike."""
    row = np.ones((1, 1), np.float32)
    for cover, base, step in (
        ((4, 1, 3), 0.75, 0.25),
        ((), 0.5, 0.5),
        ((0, 0, 0), 0.5, 0.5),
        ((9, 9, 0), 0.0, 1.0),
    ):
        arrays = stump(0.0, 1.0, cover=cover)
        explainer = ForestExplainer(TreeModel(arrays, n_features=1), arrays)
        assert explainer.base == base
        assert explainer.path(row).tolist() == explainer.shap(row).tolist() == [[step]]


def test_missing_values_take_the_steps_of_their_way():
    """NaN goes where its node says, and that step is the feature's contribution."""
    arrays = stump(2.0, 0.0) | {"missing_left": np.array([1, 0, 0], np.uint8)}
    explainer = ForestExplainer(TreeModel(arrays, n_features=1), arrays)
    rows = np.array([[np.nan], [5.0]], np.float32)
    assert explainer.path(rows).tolist() == explainer.shap(rows).tolist() == [[1.0], [-1.0]]


def test_a_few_huge_steps_do_not_hide_the_others():
    """Where 16 bits would make usual steps too small to tell, amounts have 30 bits and the table is sparse."""
    leaves = [0.0, 1e9] + [0.0, 1.0] * 50 + [0.0, 2.0] * 50
    arrays = stump(*leaves, feature=[0] + [1] * 50 + [2] * 50)
    model = TreeModel(arrays, n_features=3, doubles=True)
    for form in FORMS:
        reasons = ForestReasons(
            model, arrays, np.arange(3, dtype=np.int32), names=("huge", "small", "more"), form=form
        )
        assert reasons.form == "sparse"
        assert reasons.top(np.array([[-1, 1, 1]], np.float32)) == [("more", "small")]


def test_table_is_dense_up_to_128_groups():
    """Form follows the number of groups; names may be any objects, and are given out themselves."""
    for n, form in ((1, "dense"), (16, "dense"), (128, "dense"), (129, "sparse")):
        arrays = stump(*[0.0, 1.0] * n, feature=range(n))
        names = tuple([i] for i in range(n))
        reasons = ForestReasons(
            TreeModel(arrays, n_features=n), arrays, np.arange(n, dtype=np.int32), names=names
        )
        assert reasons.form == form
        (found,) = reasons.top(np.ones((1, n), np.float32))
        assert all(a is b for a, b in zip(found, names[:4], strict=False))
        assert len(found) == min(4, n)


def test_forests_without_trees_or_groups_have_no_reasons():
    """Nothing pushes: no reasons, no contributions, the base alone."""
    arrays, _ = random_forest(0, n_trees=0)
    model = TreeModel(arrays, n_features=FEATURES)
    rows = np.zeros((2, FEATURES), np.float32)
    reasons = ForestReasons(model, arrays, np.zeros(FEATURES, np.int32), names=("x",))
    assert reasons.top(rows) == [(), ()]
    assert reasons.quantum == 0.0
    explainer = ForestExplainer(model, arrays)
    assert explainer.base == arrays["base"][0]
    assert not explainer.path(rows).any()
    assert not explainer.shap(rows).any()
    arrays, _ = random_forest(1)
    nameless = ForestReasons(
        TreeModel(arrays, n_features=FEATURES), arrays, np.full(FEATURES, -1, np.int32), names=()
    )
    assert nameless.top(rows) == [(), ()]
    assert nameless.amounts(rows).shape == (2, 0)


def test_deep_combs_are_explained():
    """A tree as deep as a forest may be has reasons; Shapley values end at 1,024 levels, by name."""
    for depth, shap in ((1000, True), (3000, False)):
        inner = np.arange(depth)
        arrays = stump(0.0, 0.0) | {
            "roots": np.zeros(1, np.int32),
            "feature": np.r_[inner % 5, np.full(depth + 1, -1)].astype(np.int32),
            "threshold": np.zeros(2 * depth + 1),
            "left": np.r_[depth + inner, np.arange(depth + 1)].astype(np.int32),
            "right": np.r_[inner[1:], 2 * depth, np.zeros(depth + 1)].astype(np.int32),
            "values": np.linspace(0, 1, depth + 1),
            "category": np.full(2 * depth + 1, -1, np.int32),
            **{name: np.zeros(2 * depth + 1, np.uint8) for name in ("missing", "missing_left", "rule")},
        }
        model = TreeModel(arrays, n_features=5, doubles=True)
        rows = np.array([[1, 1, 1, 1, 1], [1, 1, -1, 1, 1]], np.float32)
        explainer = ForestExplainer(model, arrays)
        raw = model.predict(rows, raw=True)
        np.testing.assert_allclose(explainer.base + explainer.path(rows).sum(axis=1), raw, atol=1e-6)
        assert ForestReasons(model, arrays, np.arange(5, dtype=np.int32), names=tuple(range(5))).top(rows)[0]
        if shap:
            np.testing.assert_allclose(explainer.base + explainer.shap(rows).sum(axis=1), raw, atol=1e-6)
        else:
            with pytest.raises(ConfigError, match='1024 levels, got 3000; method="path"'):
                explainer.shap(rows)


def test_wrong_arguments_are_named():
    """Groups, columns, numbers and forms that cannot be say so."""
    arrays, _ = random_forest(1)
    model = TreeModel(arrays, n_features=FEATURES)
    groups = np.zeros(FEATURES, np.int32)
    with pytest.raises(ShapeError, match="Expected 7 entries in `groups`, got 3"):
        ForestReasons(model, arrays, groups[:3], names=("x",))
    with pytest.raises(ShapeError, match="flat array of int32 as `groups`"):
        ForestReasons(model, arrays, groups.astype(np.int64), names=("x",))
    with pytest.raises(ModelError, match="a group that there is not - at feature 4"):
        ForestReasons(model, arrays, np.array([0, 0, 0, 0, 1, 0, 0], np.int32), names=("x",))
    with pytest.raises(ConfigError, match="a column below 1, got 1"):
        ForestReasons(model, arrays, groups, names=("x",), column=1)
    with pytest.raises(ConfigError, match="a column below 1, got -1"):
        ForestExplainer(model, arrays, column=-1)
    for most in (0, MAX_REASONS + 1):
        with pytest.raises(ConfigError, match="1 to 64 reasons"):
            ForestReasons(model, arrays, groups, names=("x",), most=most)
    with pytest.raises(ConfigError, match="form out of"):
        ForestReasons(model, arrays, groups, names=("x",), form="fast")
    with pytest.raises(ShapeError, match=r"Expected \d+ entries in `cover`, got 1"):
        ForestExplainer(model, arrays | {"cover": np.ones(1)})
    with pytest.raises(ShapeError, match="Expected 5 entries in `roots`, got 4"):
        ForestExplainer(model, arrays | {"roots": arrays["roots"][:4], "targets": arrays["targets"][:4]})


def test_hostile_arrays_are_refused_not_followed():
    """Arrays that are not the model's own: what does not form trees is named, and nothing is read outside of it."""
    arrays, _ = random_forest(1, depth=3, chance=1.0)
    model = TreeModel(arrays, n_features=FEATURES)
    groups = np.zeros(FEATURES, np.int32)
    leaf = int(np.flatnonzero(arrays["feature"] < 0)[0])
    inner = int(np.flatnonzero(arrays["feature"] >= 0)[0])

    def changed(name, at, value):
        made = arrays[name].copy()
        made[at] = value
        return arrays | {name: made}

    cases = {
        "do not form trees": [
            changed("left", inner, inner),
            changed("right", inner, -1),
            changed("right", inner, 1 << 30),
            changed("feature", inner, FEATURES),
            changed("left", leaf, -1),
            changed("left", leaf, 1 << 30),
            changed("roots", 1, arrays["roots"][0]),
            changed("roots", 1, 1 << 30),
            changed("category", inner, 7),
        ],
        "too large for reasons": [
            changed("values", 0, 1.7e308),  # a step between two of them is infinite, and no number of quanta
            arrays | {"set_ends": np.array([0, 1 << 40], np.int64)},
        ],
        "two ways lead to": [changed("left", leaf, arrays["left"][leaf] + 1)],
    }
    for message, some in cases.items():
        for one in some:
            with pytest.raises(ModelError, match=message):
                ForestReasons(model, one, groups, names=("x",))
            with pytest.raises(ModelError, match=message):
                ForestExplainer(model, one)


def test_native_objects_are_built_once():
    """A second __init__ would free what calls are reading."""
    arrays, _ = random_forest(1)
    model = TreeModel(arrays, n_features=FEATURES)
    reasons = ForestReasons(model, arrays, np.zeros(FEATURES, np.int32), names=("x",))
    with pytest.raises(ConfigError, match="built once"):
        reasons.__init__(model, arrays, np.zeros(FEATURES, np.int32), names=("x",))
    explainer = ForestExplainer(model, arrays)
    with pytest.raises(ConfigError, match="built once"):
        explainer.__init__(model, arrays)


def test_timing_takes_rows_of_either_kind():
    """`time` answers two durations, of the forest alone and with reasons."""
    for wide in (False, True):
        arrays, grid = random_forest(2, wide=wide)
        model = TreeModel(arrays, n_features=FEATURES, wide=wide)
        reasons = ForestReasons(model, arrays, np.zeros(FEATURES, np.int32), names=("x",))
        alone, both = reasons.time(rows_for(2, grid, 20, wide=wide), rounds=3)
        assert alone > 0 < both
        with pytest.raises(ShapeError, match="at least one row"):
            reasons.time(rows_for(2, grid, 0, wide=wide))
