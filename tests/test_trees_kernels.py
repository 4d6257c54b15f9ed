"""Tree kernels against their twin: every kernel of every instruction set, rows on thresholds, hostile arrays."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retailinfer._native.forest_reference import forest_leaves, forest_sums
from retailinfer._native.trees import LEVELS, NORMS, POSTS, TreeModel, float32_log, levels
from retailinfer.errors import ConfigError, FeatureTypeError, ModelError, ShapeError

FEATURES = 7


def random_forest(
    seed, *, n_trees=5, depth=4, wide=False, rules=False, gone=True, n_outputs=1, width=1, chance=0.8
):
    """Arrays of a forest whose shape, thresholds and missing values are drawn; thresholds come from few numbers.

    rules: nodes of every rule, not only `<=`.
    """
    rng = np.random.default_rng(seed)
    nodes, roots, n_leaves = [], [], 0
    grid = np.unique(np.concatenate([rng.normal(size=12), [0.0, -0.0, 1e-36, 1.5]]))
    grid = grid if wide else grid.astype(np.float32).astype(np.float64)

    def grow(level):
        nonlocal n_leaves
        at = len(nodes)
        nodes.append(None)
        if level == depth or rng.random() > chance:
            nodes[at] = (-1, 0.0, n_leaves, 0, 0, 0, -1, 0)
            n_leaves += 1
            return at
        left, right = grow(level + 1), grow(level + 1)
        kind = int(rng.integers(0, 3)) if gone else 0
        rule = int(rng.integers(0, 5)) if rules and rng.random() < 0.6 else 0
        category = int(rng.integers(0, 4)) if rule >= 2 else -1
        side = int(rng.integers(0, 2)) if gone else 0
        feature = int(rng.integers(0, FEATURES))
        nodes[at] = (feature, rng.choice(grid), left, right, side, kind, category, rule)
        return at

    for _ in range(n_trees):
        roots.append(grow(0))
    columns = list(zip(*nodes, strict=True)) or [()] * 8
    n_values = n_leaves * (n_outputs if width > 1 else 1)
    return {
        "roots": np.array(roots, np.int32),
        "feature": np.array(columns[0], np.int32),
        "threshold": np.array(columns[1], np.float64),
        "left": np.array(columns[2], np.int32),
        "right": np.array(columns[3], np.int32),
        "missing_left": np.array(columns[4], np.uint8),
        "missing": np.array(columns[5], np.uint8),
        "category": np.array(columns[6], np.int32),
        "rule": np.array(columns[7], np.uint8),
        "set_ends": np.array([0, 1, 1, 3, 40] if rules else [0], np.int64),
        "set_words": rng.integers(0, 2**32, 40 if rules else 0, dtype=np.uint32),
        "values": rng.normal(size=n_values).astype(np.float32).astype(np.float64),
        "targets": np.array([] if width > 1 else [t % n_outputs for t in range(n_trees)], np.int32),
        "base": rng.normal(size=n_outputs),
        "cover": rng.integers(0, 1000, len(nodes)).astype(np.float64),
    }, grid


def rows_for(seed, grid, n, *, wide=False):
    """Rows on, just above and just below thresholds, missing, infinite, zero and far away."""
    rng = np.random.default_rng(seed + 1)
    kind = np.float64 if wide else np.float32
    rows = rng.choice(grid, (n, FEATURES)).astype(kind)
    where = rng.integers(0, 8, rows.shape)
    rows = np.where(where == 0, np.nextafter(rows, kind(np.inf)), rows)
    rows = np.where(where == 1, np.nextafter(rows, kind(-np.inf)), rows)
    odd = np.array(
        [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-36, 3.0, 40.7, -1.0, -0.5, 31.0, 32.0, 700.0, 1e-40, 3e38],
        kind,
    )
    return np.where(where == 2, rng.choice(odd, rows.shape), rows).astype(kind)


def same_bits(got, want):
    """Equal float32 numbers, bit for bit."""
    np.testing.assert_array_equal(got.view(np.uint32), np.ascontiguousarray(want).view(np.uint32))


@settings(deadline=None)
@example(seed=0, n_trees=9, depth=6, doubles=False, first=False, average=False, outputs=1)
@example(seed=1, n_trees=17, depth=6, doubles=True, first=True, average=True, outputs=3)
@given(
    seed=st.integers(0, 2**31),
    n_trees=st.integers(0, 20),
    depth=st.integers(0, 8),
    doubles=st.booleans(),
    first=st.booleans(),
    average=st.booleans(),
    outputs=st.integers(1, 3),
)
def test_every_kernel_has_the_bits_of_the_twin(seed, n_trees, depth, doubles, first, average, outputs):
    """Whatever the forest, every kernel of every instruction set adds up what the twin adds up."""
    arrays, grid = random_forest(seed, n_trees=n_trees, depth=depth, n_outputs=outputs)
    rows = rows_for(seed, grid, 70)
    how = {"doubles": doubles, "base_first": first, "average": average and n_trees > 0}
    want = forest_sums(arrays, rows, n_outputs=outputs, **how)
    for level in levels():
        model = TreeModel(arrays, n_features=FEATURES, n_outputs=outputs, level=level, **how)
        for kernel in model.kernels:
            model.force(kernel)
            for column in range(outputs):
                same_bits(model.predict(rows, column=column, raw=True), want[:, column])


def assert_all_kernels_agree(arrays, rows, want, **how):
    """Every kernel of every instruction set gives these sums; returns the names of those that there were."""
    names = set()
    for level in levels():
        model = TreeModel(arrays, n_features=rows.shape[1], level=level, **how)
        names |= set(model.kernels)
        for kernel in model.kernels:
            model.force(kernel)
            same_bits(model.predict_all(rows, raw=True), want)
    return names


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**31),
    wide=st.booleans(),
    rules=st.booleans(),
    doubles=st.booleans(),
    width=st.sampled_from([1, 3]),
    depth=st.integers(0, 7),
)
def test_rows_of_doubles_rules_and_leaves_of_several_values(seed, wide, rules, doubles, width, depth):
    """What a forest is made of does not change which kernels can hold it, but for leaves of several values."""
    arrays, grid = random_forest(seed, wide=wide, rules=rules, n_outputs=3, width=width, depth=depth)
    rows = rows_for(seed, grid, 70, wide=wide)
    want = forest_sums(arrays, rows, n_outputs=3, doubles=doubles)
    names = assert_all_kernels_agree(arrays, rows, want, n_outputs=3, wide=wide, doubles=doubles)
    walks = {"walk-1", "walk-8"}
    assert names == walks if width > 1 else walks | {"ranked-32", "ranked-256"} <= names


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 129, 255, 256, 257, 700])
def test_number_of_rows_does_not_matter(n):
    """A row's bits are the same alone and in any block, with the plan that was timed here."""
    arrays, grid = random_forest(5, n_trees=40, depth=6)
    rows = rows_for(5, grid, 700)
    model = TreeModel(arrays, n_features=FEATURES, n_columns=2, post="sigmoid")
    plan = model.calibrate(rows, sizes=(1, n), budget_ns=100_000)
    assert [sum(pieces.values()) for pieces in plan.values()] == sorted({1, n})
    alone = np.concatenate([model.predict(rows[i : i + 1], column=1) for i in range(n)])
    same_bits(model.predict(rows[:n], column=1), alone)


def test_depth_and_leaves_decide_which_forms_there_are():
    """Trees deeper than 6 have of more than 256 leaves nothing but walks."""
    deep, _ = random_forest(1, depth=8, chance=1.0)
    model = TreeModel(deep, n_features=FEATURES)
    assert model.depth == 8
    assert not {"jump-1", "jump-8"} & set(model.kernels)
    assert "ranked-64" in model.kernels
    deeper, _ = random_forest(1, depth=9, chance=1.0)
    assert TreeModel(deeper, n_features=FEATURES).kernels == ("walk-1", "walk-8")


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("many", [1, 200, 254, 255, 300, 508, 509, 3000])
def test_columns_of_any_number_of_thresholds_have_ranks(many, wide):
    """Thresholds beyond what a byte counts go into further bytes; every value finds its place among them."""
    rng = np.random.default_rng(many)
    kind = np.float64 if wide else np.float32
    # far apart and close together, as an even scale of buckets does not expect
    spread = (rng.normal(size=many) * 10.0 ** rng.integers(-30, 30, many)).astype(kind)
    close = np.arange(many).astype(kind) * np.finfo(kind).eps + kind(1)
    grid = np.unique(np.where(rng.random(many) < 0.5, spread, close))
    arrays, _ = random_forest(2, n_trees=max(1, many // 16), depth=5, chance=1.0, gone=False, wide=wide)
    inner = np.flatnonzero(arrays["feature"] >= 0)
    arrays["threshold"][inner] = grid[np.arange(len(inner)) % len(grid)]
    arrays["feature"][inner] = 0
    rows = np.zeros((70, FEATURES), kind)
    rows[:, 0] = rng.choice(grid, 70)
    rows[::3, 0] = np.nextafter(rows[::3, 0], kind(np.inf))
    rows[:4, 0] = [np.nan, np.inf, -np.inf, 0]
    names = assert_all_kernels_agree(arrays, rows, forest_sums(arrays, rows), wide=wide)
    assert "ranked-128" in names


def one_tree(nodes, n_values, **changes):
    """Arrays of one tree: nodes as (feature, threshold, left, right, missing_left, missing, rule, category)."""
    columns = list(zip(*nodes, strict=True))
    names = ["feature", "threshold", "left", "right", "missing_left", "missing", "rule", "category"]
    kinds = [np.int32, np.float64, np.int32, np.int32, np.uint8, np.uint8, np.uint8, np.int32]
    arrays = {name: np.array(cells, kind) for name, cells, kind in zip(names, columns, kinds, strict=True)}
    return {
        "roots": np.zeros(1, np.int32),
        **arrays,
        "set_ends": np.zeros(1, np.int64),
        "set_words": np.zeros(0, np.uint32),
        "values": np.arange(float(n_values)),
        "targets": np.zeros(1, np.int32),
        "base": np.zeros(1),
        "cover": np.zeros(0),
    } | changes


def test_forests_without_trees_and_trees_without_nodes():
    """No trees give the base, a tree that is one leaf gives its value."""
    rows = np.zeros((40, 1), np.float32)
    leaf = one_tree([(-1, 0, 0, 0, 0, 0, 0, -1)], 1, values=np.array([0.5]), base=np.array([2.0]))
    none = {name: array[:0] if name not in ("base", "set_ends") else array for name, array in leaf.items()}
    for arrays, want in ((leaf, 2.5), (none, 2.0)):
        names = assert_all_kernels_agree(arrays, rows, np.full((40, 1), want, np.float32))
        assert "ranked-32" in names
        assert TreeModel(arrays, n_features=1).leaves(rows).shape == (40, len(arrays["roots"]))


def test_features_that_no_tree_reads_cost_nothing():
    """A row may be very wide."""
    many = 1 << 20
    arrays = one_tree(
        [(many - 1, 1.0, 1, 2, 0, 0, 0, -1), (-1, 0, 0, 0, 0, 0, 0, -1), (-1, 0, 1, 0, 0, 0, 0, -1)], 2
    )
    rows = np.zeros((2, many), np.float32)
    rows[1, -1] = 2
    model = TreeModel(arrays, n_features=many)
    assert model.nbytes + model.scratch_bytes < 100_000
    assert_all_kernels_agree(arrays, rows, np.array([[0.0], [1.0]], np.float32))


def test_categories_without_end_are_asked_one_by_one():
    """Sets whose table would take too much memory have the same answers."""
    rng = np.random.default_rng(0)
    n_sets, last = 40, 4_000_000
    sets = np.zeros((n_sets, last // 32 + 1), np.uint32)
    members = rng.integers(0, 200, (n_sets, 60))
    for own, codes in zip(sets, members, strict=True):
        np.bitwise_or.at(own, codes // 32, np.uint32(1) << (codes % 32).astype(np.uint32))
    sets[7, -1] = 1 << (last % 32)
    nodes = [(0, 0.0, i + 1, n_sets + 1 + i, i % 2, 0, 3, i) for i in range(n_sets)]
    nodes += [(-1, 0.0, i, 0, 0, 0, 0, -1) for i in range(n_sets + 1)]
    nodes[n_sets - 1] = (0, 0.0, n_sets, 2 * n_sets, 0, 0, 3, n_sets - 1)
    ends = np.arange(n_sets + 1) * sets.shape[1]
    arrays = one_tree(nodes, n_sets + 1, set_ends=ends.astype(np.int64), set_words=sets.ravel())
    rows = np.array([[x] for x in (np.nan, -1, -0.5, 0, last, last + 1, 1e30, *range(200))], np.float32)
    model = TreeModel(arrays, n_features=1)
    assert model.nbytes < 2 * sets.nbytes
    assert_all_kernels_agree(arrays, rows, forest_sums(arrays, rows))


def test_tree_of_very_many_nodes():
    """A tree may have more nodes than small ones can count."""
    arrays, grid = random_forest(9, n_trees=1, depth=17, chance=1.0)
    rows = rows_for(9, grid, 30)
    assert TreeModel(arrays, n_features=FEATURES).kernels == ("walk-1", "walk-8")
    assert_all_kernels_agree(arrays, rows, forest_sums(arrays, rows))


def test_long_chain_of_nodes_is_walked_and_a_longer_one_refused():
    """A tree may be a list of 4,096 nodes, not of more."""

    def chain(n):
        inner = np.arange(n, dtype=np.int32)
        none = np.zeros(2 * n + 1, np.uint8)
        return {
            "roots": np.zeros(1, np.int32),
            "feature": np.concatenate([np.zeros(n), np.full(n + 1, -1)]).astype(np.int32),
            "threshold": np.concatenate([inner, np.zeros(n + 1)]).astype(np.float64),
            "left": np.concatenate([n + inner, np.arange(n + 1)]).astype(np.int32),
            "right": np.concatenate([np.append(inner[1:], 2 * n), np.zeros(n + 1)]).astype(np.int32),
            "missing_left": none, "missing": none, "category": np.full(2 * n + 1, -1, np.int32),
            "rule": none, "set_ends": np.zeros(1, np.int64), "set_words": np.zeros(0, np.uint32),
            "values": np.arange(n + 1.0), "targets": np.zeros(1, np.int32), "base": np.zeros(1), "cover": np.zeros(0),
        }  # fmt: skip

    model = TreeModel(chain(4096), n_features=1)
    rows = np.array([[-1.0], [17.0], [17.5], [1e9]], np.float32)
    for kernel in model.kernels:
        model.force(kernel)
        assert model.predict(rows).tolist() == [0.0, 17.0, 18.0, 4096.0]
    with pytest.raises(ModelError, match="deeper than 4096"):
        TreeModel(chain(4097), n_features=1)


def spoiled(name, at, value):
    """A forest with one cell overwritten."""
    arrays, _ = random_forest(3, n_trees=3, depth=3, chance=1.0, rules=True)
    arrays[name][at] = value
    return arrays


@pytest.mark.parametrize(
    ("name", "at", "value", "message"),
    [
        ("roots", 1, -1, "is reached twice"),
        ("roots", 1, 10**9, "is reached twice"),
        ("roots", 1, 0, "is reached twice"),
        ("feature", 0, FEATURES, "a feature that the rows do not have - at node 0"),
        ("left", 0, 10**9, "no node - at node 0"),
        ("right", 0, -5, "no node - at node 0"),
        ("left", 0, 0, "is reached twice"),
        ("left", 3, 10**6, "a leaf that has no value"),
        ("threshold", 0, np.nan, "NaN or no float32 - at node 0"),
        ("threshold", 0, 0.1, "NaN or no float32 - at node 0"),
        ("values", 2, np.inf, "not finite - at leaf 2"),
        ("values", 2, 1e39, "not finite - at leaf 2"),
        ("base", 0, np.nan, "not finite"),
        ("targets", 2, 1, "an output that the forest does not have - at tree 2"),
        ("category", 0, 4, "a set of categories out of range - at 0"),
        ("rule", 0, 5, "an unknown rule - at node 0"),
        ("cover", 1, -1.0, "a cover that is no weight - at node 1"),
        ("cover", 0, np.inf, "a cover that is no weight - at node 0"),
        ("set_ends", 1, 99, "a set of categories out of range"),
        ("set_ends", 0, -1, "a set of categories out of range"),
        ("missing", 0, 3, "an unknown kind of missing value"),
    ],
)
def test_arrays_that_are_no_forest_are_refused(name, at, value, message):
    """Whatever index or number is wrong is found when the forest is built, and named."""
    with pytest.raises(ModelError, match=message):
        TreeModel(spoiled(name, at, value), n_features=FEATURES)


def test_nodes_that_no_tree_reaches_may_hold_anything():
    """They are never asked, so nothing of them is used: not their feature as an index, nor their set, nor their children."""
    arrays, grid = random_forest(8, n_trees=6, rules=True)
    rows = rows_for(8, grid, 30)
    strange = {
        "feature": 2**31 - 1,
        "left": -7,
        "right": 2**30,
        "category": 10**6,
        "threshold": np.nan,
        "rule": 77,
        "missing": 200,
    }
    more = {
        name: np.append(array, array.dtype.type(strange.get(name, 0)))
        if len(array) == len(arrays["feature"])
        else array
        for name, array in arrays.items()
    }
    same_bits(
        TreeModel(more, n_features=FEATURES).predict(rows),
        TreeModel(arrays, n_features=FEATURES).predict(rows),
    )


def test_empty_set_has_nobody():
    """Not even what truncates to 0 from below, which once read the word behind the set."""
    arrays = {
        "roots": np.zeros(1, np.int32), "feature": np.array([0, -1, -1], np.int32), "threshold": np.zeros(3),
        "left": np.array([1, 0, 1], np.int32), "right": np.array([2, 0, 0], np.int32), "missing_left": np.zeros(3, np.uint8),
        "missing": np.zeros(3, np.uint8), "rule": np.array([2, 0, 0], np.uint8), "category": np.array([0, -1, -1], np.int32),
        "set_ends": np.array([0, 0, 1], np.int64), "set_words": np.full(1, 2**32 - 1, np.uint32),
        "values": np.array([1.0, 2.0]), "targets": np.zeros(1, np.int32), "base": np.zeros(1), "cover": np.zeros(0),
    }  # fmt: skip
    rows = np.array([[-0.5], [-0.0], [0.0], [31.0], [np.nan]], np.float32)
    assert TreeModel(arrays, n_features=1).predict(rows).tolist() == [2.0] * 5
    assert forest_sums(arrays, rows).ravel().tolist() == [2.0] * 5


def test_memory_of_a_forest_goes_by_its_nodes_not_by_the_features_it_claims():
    """A few nodes cost a few kilobytes, however wide the rows are said to be."""
    arrays, _ = random_forest(3, n_trees=3, depth=3, chance=1.0)
    assert TreeModel(arrays, n_features=1 << 24).nbytes < 1 << 18


@settings(deadline=None)
@given(st.integers(0, 2**31), st.data())
def test_random_damage_is_refused_or_harmless(seed, data):
    """Any cell of any array may hold anything: the forest is refused, or answers every row."""
    arrays, grid = random_forest(seed, n_trees=4, depth=3, rules=True)
    name = data.draw(st.sampled_from([n for n in arrays if len(arrays[n])]))
    info = np.iinfo(arrays[name].dtype) if arrays[name].dtype.kind in "iu" else None
    value = data.draw(st.integers(int(info.min), int(info.max)) if info else st.floats())
    arrays[name][data.draw(st.integers(0, len(arrays[name]) - 1))] = value
    try:
        model = TreeModel(arrays, n_features=FEATURES)
    except ModelError:
        return
    rows = rows_for(seed, grid, 20)
    for kernel in model.kernels:
        model.force(kernel)
        model.predict(rows)


def test_wrong_arrays_and_arguments_are_named():
    """Dtypes, lengths, steps, levels, kernels and columns are checked, each with what was expected."""
    arrays, grid = random_forest(3)
    rows = rows_for(3, grid, 4)
    with pytest.raises(ShapeError, match="flat array of int32 as `left`"):
        TreeModel(arrays | {"left": arrays["left"].astype(np.int64)}, n_features=FEATURES)
    with pytest.raises(ShapeError, match="entries in `threshold`"):
        TreeModel(arrays | {"threshold": arrays["threshold"][1:]}, n_features=FEATURES)
    no_outputs = {"targets": np.zeros(0, np.int32), "base": np.zeros(0)}
    with pytest.raises(ModelError, match="at least one output, got 0"):
        TreeModel(arrays | no_outputs, n_features=FEATURES, n_outputs=0)
    with pytest.raises(ConfigError, match="Expected post out of"):
        TreeModel(arrays, n_features=FEATURES, post="tanh")
    with pytest.raises(ConfigError, match="Expected norm out of"):
        TreeModel(arrays, n_features=FEATURES, norm="l3")
    with pytest.raises(ConfigError, match="Expected 1 columns, or 2 for one sum, got 3"):
        TreeModel(arrays, n_features=FEATURES, n_columns=3)
    with pytest.raises(ConfigError, match="instruction set of this machine"):
        TreeModel(arrays, n_features=FEATURES, level="sse9")
    model = TreeModel(arrays, n_features=FEATURES, n_columns=2)
    with pytest.raises(ConfigError, match="kernel that this forest"):
        model.force("gpu")
    with pytest.raises(ConfigError, match="column below 2"):
        model.predict(rows, column=2)
    with pytest.raises(FeatureTypeError, match="matrix of float32"):
        model.predict(rows.astype(np.float64))
    with pytest.raises(FeatureTypeError, match="matrix of float32"):
        model.predict(rows.astype(">f4"))
    with pytest.raises(ShapeError, match=f"rows of {FEATURES} features"):
        model.predict(rows[:, 1:])
    assert model.predict(rows[:0]).shape == (0,)
    same_bits(model.predict(np.asfortranarray(rows)), model.predict(rows))


def expected_answers(raw, post, columns, scale):
    """Answers from the sums of one precision: the formulas, by NumPy."""
    v = raw if raw.shape[1] == columns else np.repeat(raw, columns, axis=1)
    two = raw.shape[1] < columns
    if post in ("sigmoid", "logistic"):
        p = 1 / (1 + np.exp(-v * (scale if post == "logistic" else 1)))
    elif post in ("softmax", "softmax_sum"):
        e = np.exp(v - v.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)
    elif post == "hinge":
        p = (v > 0) * 1.0
    elif post == "complement":
        p = v
    else:
        plain = {
            "exp": np.exp,
            "softplus": lambda x: np.log1p(np.exp(x)),
            "signed_square": lambda x: x * np.abs(x),
        }
        return plain.get(post, lambda x: x)(v)
    return np.where(np.arange(columns) == 0, 1 - p, p) if two else p


@pytest.mark.parametrize("post", sorted(set(POSTS) - {"probit", "softmax_zero"}))
@pytest.mark.parametrize(("outputs", "columns"), [(1, 1), (1, 2), (3, 3)])
@pytest.mark.parametrize("norm", sorted(NORMS))
@pytest.mark.parametrize("doubles", [False, True])
def test_last_steps_are_what_they_say(post, outputs, columns, norm, doubles):
    """Every step and norm is its formula, in one column as in all; the sums themselves are there on request."""
    arrays, grid = random_forest(11, n_trees=6, n_outputs=outputs)
    rows = rows_for(11, grid, 50)
    scale = 0.7 if post == "logistic" and doubles else 1.0
    how = {"n_outputs": outputs, "n_columns": columns, "doubles": doubles, "post_scale": scale}
    model = TreeModel(arrays, n_features=FEATURES, post=post, norm=norm, **how)
    raw = forest_sums(arrays, rows, n_outputs=outputs, doubles=doubles)
    same_bits(model.predict_all(rows, raw=True), np.repeat(raw, columns // outputs, axis=1))
    got = model.predict_all(rows)
    for column in range(columns):
        same_bits(model.predict(rows, column=column), got[:, column])
    want = expected_answers(raw.astype(float), post, columns, scale)
    if norm == "l1":
        total = np.abs(want).sum(axis=1, keepdims=True)
        want = np.divide(want, total, out=want, where=total != 0)
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1.5e-7)


@pytest.mark.parametrize("doubles", [False, True])
def test_average_of_several_outputs_is_over_all_trees_or_those_of_one_output(doubles):
    """Both divisors, to the last bit, with every kernel."""
    arrays, grid = random_forest(12, n_trees=9, n_outputs=3)
    arrays["base"] = np.zeros(3)
    rows = rows_for(12, grid, 40)
    for per_output in (False, True):
        how = {"n_outputs": 3, "doubles": doubles, "average": True, "per_output": per_output}
        model = TreeModel(arrays, n_features=FEATURES, **how)
        want = forest_sums(arrays, rows, **how)
        for kernel in model.kernels:
            model.force(kernel)
            same_bits(model.predict_all(rows), want)
    sums = forest_sums(arrays, rows, n_outputs=3, doubles=True)
    np.testing.assert_allclose(want, sums / 3, rtol=1e-6)


def test_a_code_of_xgboosts_is_rounded_to_float32_before_its_fraction_goes():
    """In rows of float64: what XGBoost makes a float32 of is no code any more, or is another one."""
    arrays = {
        "roots": np.zeros(1, np.int32),
        "feature": np.array([0, -1, -1], np.int32),
        "threshold": np.zeros(3),
        "left": np.array([1, 0, 1], np.int32),
        "right": np.array([2, 0, 0], np.int32),
        "missing_left": np.zeros(3, np.uint8),
        "missing": np.zeros(3, np.uint8),
        "rule": np.array([3, 0, 0], np.uint8),
        "category": np.array([0, -1, -1], np.int32),
        "set_ends": np.array([0, 1]),
        "set_words": np.array([0b1001], np.uint32),
        "values": np.array([1.0, 0.0]),
        "targets": np.zeros(1, np.int32),
        "base": np.zeros(1),
        "cover": np.zeros(0),
    }
    rows = np.array([[2.9], [np.nextafter(3.0, 0)], [-1e-46], [-1e-40], [1e300], [3.5], [np.nan]])
    model = TreeModel(arrays, n_features=1, wide=True)
    np.testing.assert_array_equal(model.predict(rows), [0, 1, 1, 0, 0, 1, 0])
    same_bits(model.predict(rows), forest_sums(arrays, rows)[:, 0])


def test_logarithm_of_a_float32_is_the_c_librarys():
    """Within a step of the right one; nothing but float32 comes out."""
    for x in np.random.default_rng(0).random(200).astype(np.float32):
        got = float32_log(x)
        assert got == np.float32(got)
        assert abs(np.float32(got).view(np.int32) - np.float32(np.log(float(x))).view(np.int32)) <= 1


def test_sigmoid_of_float32_sums_neither_overflows_nor_divides_by_zero():
    """XGBoost clamps the exponent: far below 0 the probability is small, not NaN."""
    arrays, _ = random_forest(1, n_trees=0)
    for base, want in ((-500.0, np.exp(-88.7)), (500.0, 1.0), (0.0, 0.5)):
        model = TreeModel(arrays | {"base": np.array([base])}, n_features=FEATURES, post="logistic")
        got = model.predict(np.zeros((1, FEATURES), np.float32))
        np.testing.assert_allclose(got, [want], rtol=1e-5)


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), n_trees=st.integers(0, 20), rules=st.booleans(), wide=st.booleans())
def test_leaves_are_those_that_the_twin_reaches(seed, n_trees, rules, wide):
    """Every kernel names the leaves that it added up."""
    arrays, grid = random_forest(seed, n_trees=n_trees, rules=rules, wide=wide)
    rows = rows_for(seed, grid, 40, wide=wide)
    want = forest_leaves(arrays, rows)
    for level in levels():
        model = TreeModel(arrays, n_features=FEATURES, wide=wide, level=level)
        for kernel in model.kernels:
            model.force(kernel)
            for n in (1, 3, 9, 40):
                np.testing.assert_array_equal(model.leaves(rows[:n]), want[:n])


def test_threads_share_a_forest():
    """Many threads predict at once, each with scratch of its own."""
    arrays, grid = random_forest(21, n_trees=60, depth=6)
    rows = rows_for(21, grid, 300)
    model = TreeModel(arrays, n_features=FEATURES, n_columns=2, post="sigmoid")
    want = model.predict(rows, column=1)
    wrong = []

    def work():
        for n in range(1, 120):
            if model.predict(rows[:n], column=1).tobytes() != want[:n].tobytes():
                wrong.append(n)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_levels_are_known_and_the_baseline_is_always_there():
    """Every machine has the baseline; what it has more is listed in order."""
    assert levels()[0] == "baseline"
    assert set(levels()) <= set(LEVELS)
