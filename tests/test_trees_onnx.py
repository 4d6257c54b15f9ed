"""Tree ensembles out of ONNX graphs: every bit as ONNX Runtime has it, or a reason why the graph is left to it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from retailinfer._native.trees import levels
from retailinfer.authoring.convert import convert
from retailinfer.authoring.preflight import inspect
from retailinfer.authoring.prune import without_labels
from retailinfer.authoring.trees import Unfit
from retailinfer.authoring.trees.onnx_graph import forest_of_graph
from retailinfer.authoring.trees.use import hard_rows
from retailinfer.runtime.session import open_session
from retailinfer.runtime.trees import TreeSession, encode_forest

FEATURES = 6
MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GT", "BRANCH_GTE")


def assert_same_bits(data):
    """The forest of a graph, through its file, answers as ONNX Runtime does, with every kernel."""
    forest = forest_of_graph(data)
    session = open_session(data)
    rows = hard_rows(forest)
    want = session.run({forest.input: rows})[forest.output].reshape(len(rows), -1)
    file = encode_forest(forest)
    for level in levels():
        trees = TreeSession(file, level=level, calibrate=False)
        assert trees.outputs[0][0] == session.outputs[0][0]
        for kernel in trees.model.kernels:
            trees.model.force(kernel)
            got = trees.run({forest.input: rows})[forest.output]
            np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
    return forest


def trained(name):
    """A small fitted model, converted, without its label."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, FEATURES)).astype(np.float32)
    two, three = (x[:, 0] + x[:, 1] * x[:, 2] > 0).astype(int), np.digitize(x[:, 0] + x[:, 3], [-0.5, 0.5])
    trainer, _, kind = name.partition(".")
    module = pytest.importorskip(trainer) if trainer != "sklearn" else pytest.importorskip("sklearn.ensemble")
    target = {"two": two, "three": three, "number": x[:, 0] * 2, "rank": two}[kind.rpartition(".")[2]]
    cls, settings = getattr(module, kind.rpartition(".")[0]), {"n_estimators": 12}
    if trainer == "lightgbm":
        settings |= {"verbose": -1, "n_jobs": 1, "min_child_samples": 5}
    if trainer == "xgboost":
        settings |= {"n_jobs": 1, "max_depth": 5}
    group = {"group": [100] * 3} if kind.endswith("rank") else {}
    converted = convert(cls(**settings).fit(x, target, **group), input_name="features")
    graph = inspect(converted.data)
    return without_labels(graph.data, {converted.output}) or graph.data


@pytest.mark.requires("lightgbm", "xgboost", "sklearn", "skl2onnx", "onnxmltools")
@pytest.mark.parametrize(
    "name",
    [
        "lightgbm.LGBMClassifier.two",
        "lightgbm.LGBMClassifier.three",
        "lightgbm.LGBMRegressor.number",
        "lightgbm.LGBMRanker.rank",
        "xgboost.XGBClassifier.two",
        "xgboost.XGBClassifier.three",
        "xgboost.XGBRegressor.number",
        "sklearn.RandomForestClassifier.two",
        "sklearn.RandomForestClassifier.three",
        "sklearn.RandomForestRegressor.number",
        "sklearn.ExtraTreesClassifier.two",
        "sklearn.GradientBoostingClassifier.two",
        "sklearn.GradientBoostingClassifier.three",
        "sklearn.GradientBoostingRegressor.number",
    ],
)
def test_converted_models_have_the_bits_of_onnx_runtime(name):
    """Boosters and forests of three trainers, on rows that lie on their thresholds, through every kernel."""
    assert_same_bits(trained(name))


def ensemble(
    operator="TreeEnsembleRegressor", *, modes=MODES, tracks=True, n_targets=1, more=(), **attributes
):
    """A graph of two trees of depth two that compare in every way."""
    rng = np.random.default_rng(3)
    node = {
        key: []
        for key in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    }
    leaf = {key: [] for key in ("treeids", "nodeids", "ids", "weights")}
    for tree in range(4):
        for i in range(7):
            inner = i < 3
            for key, value in (
                ("treeids", tree),
                ("nodeids", i),
                ("featureids", int(rng.integers(0, FEATURES)) if inner else 0),
                ("values", float(np.float32(rng.normal())) if inner else 0.0),
                ("modes", modes[(tree + i) % len(modes)] if inner else "LEAF"),
                ("truenodeids", 2 * i + 1 if inner else 0),
                ("falsenodeids", 2 * i + 2 if inner else 0),
            ):
                node[key].append(value)
            if not inner:
                for key, value in (("treeids", tree), ("nodeids", i), ("ids", tree % n_targets)):
                    leaf[key].append(value)
                leaf["weights"].append(float(np.float32(rng.normal())))
    kind = "target" if operator.endswith("Regressor") else "class"
    known = {f"nodes_{key}": value for key, value in node.items()}
    known |= {f"{kind}_{key}": value for key, value in leaf.items()}
    if kind == "target":
        known["n_targets"] = n_targets
    if tracks:
        known["nodes_missing_value_tracks_true"] = [int(rng.integers(0, 2)) for _ in node["modes"]]
    names = ["y"] if kind == "target" else ["label", "y"]
    made = helper.make_node(operator, ["x"], names, domain="ai.onnx.ml", **(known | attributes))
    out = helper.make_tensor_value_info(more[-1].output[0] if more else "y", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [made, *more], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, FEATURES])], [out]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("mode", [*[(m,) for m in MODES], MODES])
@pytest.mark.parametrize("tracks", [False, True])
def test_every_comparison_and_side_of_missing_values(mode, tracks):
    """<=, <, > and >=, each with missing values on either side, become one comparison with the same answers."""
    assert_same_bits(ensemble(modes=mode, tracks=tracks).SerializeToString())


@pytest.mark.parametrize(
    ("operator", "n_targets", "attributes"),
    [
        ("TreeEnsembleRegressor", 2, {"base_values": [0.5, -3.0]}),
        ("TreeEnsembleRegressor", 1, {"aggregate_function": "AVERAGE", "base_values": [7.0]}),
        ("TreeEnsembleRegressor", 3, {"post_transform": "LOGISTIC"}),
        ("TreeEnsembleClassifier", 1, {"classlabels_int64s": [0, 1], "post_transform": "LOGISTIC"}),
        ("TreeEnsembleClassifier", 3, {"classlabels_int64s": [0, 1, 2], "post_transform": "SOFTMAX"}),
        ("TreeEnsembleClassifier", 3, {"classlabels_int64s": [0, 1, 2], "post_transform": "SOFTMAX_ZERO"}),
        ("TreeEnsembleClassifier", 4, {"classlabels_int64s": [0, 1, 2, 3], "post_transform": "LOGISTIC"}),
    ],
)
def test_sums_and_last_steps(operator, n_targets, attributes):
    """Several sums, bases, averages and last steps have ONNX Runtime's bits."""
    assert_same_bits(ensemble(operator, n_targets=n_targets, **attributes).SerializeToString())


def test_what_only_hands_a_tensor_on_is_looked_through():
    """Identity and a factor of 1 behind the trees change nothing."""
    one = onnx.numpy_helper.from_array(np.ones(1, np.float32), "one")
    more = [helper.make_node("Mul", ["y", "one"], ["z"]), helper.make_node("Identity", ["z"], ["out"])]
    model = ensemble(more=more)
    model.graph.initializer.append(one)
    assert assert_same_bits(model.SerializeToString()).output == "out"


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (ensemble(more=[helper.make_node("Abs", ["y"], ["z"])]), "2 operators"),
        (ensemble(modes=("BRANCH_EQ",)), "compares with BRANCH_EQ"),
        (ensemble(aggregate_function="MAX"), "aggregates by MAX"),
        (ensemble(post_transform="LOGISTIC"), "LOGISTIC of one sum"),
        (ensemble(post_transform="SOFTMAX"), "SOFTMAX of one sum"),
        (
            ensemble("TreeEnsembleClassifier", classlabels_int64s=[0, 1], post_transform="PROBIT"),
            "two classes",
        ),
        (ensemble("TreeEnsembleClassifier", classlabels_int64s=[0, 1]), "two classes"),
        (ensemble(nodes_truenodeids=[99] * 28), "child is not there"),
        (ensemble(nodes_nodeids=[0] * 28), "have one number"),
        (ensemble(target_treeids=[0] * 16), "fed twice"),
        (ensemble(target_ids=[3] * 16), "feeds target 3 of 1"),
        (ensemble(base_values=[1.0, 2.0]), "2 base values for 1"),
        (ensemble(nodes_values=[float("nan")] * 28), "threshold is NaN"),
        (ensemble(nodes_modes=["LEAF"] * 5), "different lengths"),
    ],
)
def test_what_has_no_exact_form_is_left_to_onnx_runtime(model, why):
    """Each reason is said in one line."""
    with pytest.raises(Unfit, match=why):
        forest_of_graph(model.SerializeToString())
