"""Pruning when packing: labels go, every other output keeps its bits, and what cannot be judged stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.authoring.prune import without_labels
from retailinfer.runtime.session import open_session

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def info(name, dtype, shape):
    """One input or output of a graph."""
    return helper.make_tensor_value_info(name, dtype, shape)


def classifier(*after, outputs, weights=()):
    """A linear classifier of two inputs, nodes behind it, and the outputs of all."""
    node = helper.make_node(
        "LinearClassifier",
        ["x"],
        ["raw_label", "raw_scores"],
        domain="ai.onnx.ml",
        coefficients=[1.0, -2.0, 0.5, 0.25],
        intercepts=[0.1, -0.1],
        classlabels_ints=[0, 1],
        post_transform="SOFTMAX",
    )
    graph = helper.make_graph(
        [node, *after], "g", [info("x", FLOAT, ["n", 2])], outputs, initializer=list(weights)
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


LABEL, SCORES = info("label", INT64, ["n"]), info("scores", FLOAT, ["n", 2])
PASSED_ON = (
    helper.make_node("Identity", ["raw_scores"], ["scores"]),
    helper.make_node("Cast", ["raw_label"], ["label"], to=INT64),
)
X = np.array([[0.3, -1.0], [2.0, 5.0], [-0.0, 1e-30]], np.float32)


def operators(data):
    """Operators of a model, in running order."""
    return [node.op_type for node in onnx.load_model_from_string(data).graph.node]


def test_label_and_what_only_hands_on_are_left_out_and_the_scores_keep_their_bits():
    """Of a classifier with a cast label and an Identity, the classifier alone is left, with equal scores."""
    data = classifier(*PASSED_ON, outputs=[LABEL, SCORES])
    pruned = without_labels(data, {"scores"})
    assert operators(pruned) == ["LinearClassifier"]
    session = open_session(pruned)
    assert [name for name, _, _ in session.outputs] == ["scores"]
    want = open_session(data).run({"x": X})["scores"]
    assert session.run({"x": X})["scores"].tobytes() == want.tobytes()


def test_label_that_is_asked_for_stays():
    """A label that is the score, or that a later model reads, is kept."""
    data = classifier(*PASSED_ON, outputs=[LABEL, SCORES])
    kept = without_labels(data, {"label"})
    assert [one.name for one in onnx.load_model_from_string(kept).graph.output] == ["label", "scores"]


def test_other_heads_stay():
    """What is computed from the scores is no label, whatever it is called."""
    more = helper.make_node("ReduceSum", ["raw_scores"], ["label"], keepdims=0)
    data = classifier(PASSED_ON[0], more, outputs=[info("label", FLOAT, []), SCORES])
    kept = without_labels(data, {"scores"})
    assert kept is None or {"label", "scores"} == {
        one.name for one in onnx.load_model_from_string(kept).graph.output
    }


def test_identity_whose_source_others_read_stays():
    """A tensor with a second reader keeps its name, so the Identity behind it is still needed."""
    more = helper.make_node("Neg", ["raw_scores"], ["minus"])
    data = classifier(PASSED_ON[0], more, outputs=[SCORES, info("minus", FLOAT, ["n", 2])])
    assert without_labels(data, {"scores"}) is None


def test_graph_with_graphs_inside_keeps_its_nodes():
    """A graph within the graph may read any tensor, so only the list of outputs gets shorter."""
    then = helper.make_graph(
        [helper.make_node("Identity", ["raw_scores"], ["t"])], "then", [], [info("t", FLOAT, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["raw_scores"], ["e"])], "else", [], [info("e", FLOAT, None)]
    )
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    branch = helper.make_node("If", ["yes"], ["scores"], then_branch=then, else_branch=other)
    data = classifier(branch, PASSED_ON[1], outputs=[LABEL, SCORES], weights=[yes])
    pruned = without_labels(data, {"scores"})
    assert operators(pruned) == operators(data)
    got, want = (open_session(one).run({"x": X})["scores"] for one in (pruned, data))
    assert got.tobytes() == want.tobytes()


@pytest.mark.requires("lightgbm")
def test_release_of_a_booster_runs_one_operator(tmp_path):
    """A packed LightGBM classifier is nothing but its trees, and scores as the whole graph does."""
    import lightgbm

    rng = np.random.default_rng(3)
    rows = rng.normal(size=(400, 2)).astype(np.float32)
    booster = lightgbm.train(
        {"objective": "binary", "verbose": -1, "num_threads": 1},
        lightgbm.Dataset(rows, (rows[:, 0] > rows[:, 1]).astype(int), feature_name=["a", "b"]),
        5,
    )
    spec = ri.FeatureSpec(request={"a": float, "b": float}, columns=[c.numeric("a"), c.numeric("b")])
    manifest = ri.pack("trees", model=booster, features=spec, engine="onnx", out=tmp_path / "trees")
    assert [one.name for one in manifest.models[0].outputs] == ["probabilities"]
    assert operators((tmp_path / "trees" / "model.onnx").read_bytes()) == ["TreeEnsembleClassifier"]
    with ri.Scorer.load(tmp_path / "trees", trust="unsigned") as scorer:
        a, b = (float(v) for v in rows[0])
        assert scorer.score({"a": a, "b": b}).score == pytest.approx(booster.predict(rows[:1])[0], abs=1e-6)
