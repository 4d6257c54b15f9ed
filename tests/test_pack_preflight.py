"""What an ONNX file must not contain is refused before anything is built from it, and the message names it."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailinfer.authoring import preflight
from retailinfer.authoring.preflight import inspect
from retailinfer.errors import ModelError

onnx = pytest.importorskip("onnx")
helper = pytest.importorskip("onnx.helper")
FLOAT, INT64 = 1, 7


def info(name: str, dtype: int = FLOAT, shape: Any = ("n", 3)) -> Any:
    """The declaration of a tensor."""
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Any, *, inputs: Any = None, outputs: Any = None, weights: Any = (), domains: Any = (), **more: Any
) -> Any:
    """A model around some nodes, from `x` to `y`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x")] if inputs is None else inputs,
        [info("y")] if outputs is None else outputs,
        weights,
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)


def refused(made: Any, says: str) -> None:
    """Packing refuses the model, with these words."""
    with pytest.raises(ModelError, match=says):
        inspect(made if isinstance(made, bytes) else made.SerializeToString())


RELU = helper.make_node("Relu", ["x"], ["y"])


def test_a_plain_model_passes_with_its_very_bytes():
    """Nothing is rewritten where nothing has to be: the hash in the manifest is that of the trainer's file."""
    data = model([RELU]).SerializeToString()
    graph = inspect(data)
    assert graph.data == data
    assert graph.operators == ("Relu",)
    assert not graph.trees_only


# ---- bytes -----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused(data):
    """Whatever bytes come, the answer is a ModelError."""
    with pytest.raises(ModelError):
        inspect(data)


def test_truncated_and_flipped_files_are_refused_or_checked():
    """A damaged file never gets past the parser with anything but a typed error."""
    whole = model([RELU], weights=[onnx.numpy_helper.from_array(np.arange(40, dtype=np.float32), "w")])
    data = whole.SerializeToString()
    for cut in range(len(data)):
        try:
            inspect(data[:cut])
        except ModelError:
            continue
    rng = random.Random(3)
    for _ in range(1000):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            inspect(bytes(damaged))
        except ModelError:
            continue


@pytest.mark.parametrize("data", [b"", b"\x80\x04\x95", b"PK\x03\x04", b"{}", b"ONNX"])
def test_other_formats_are_refused(data):
    """Pickles, archives and JSON are no ONNX files."""
    refused(data, "empty|not an ONNX file")


def test_versions_from_the_future_and_the_past_are_refused():
    """An IR or operator set that the `onnx` package does not know is not guessed at."""
    made = model([RELU])
    made.ir_version = 99
    refused(made, "IR version")
    made.ir_version = 2
    refused(made, "IR version")
    made = model([RELU])
    made.opset_import[0].version = 999
    refused(made, "operator set")


# ---- operators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "op"),
    [
        ("com.acme", "Relu"),
        ("ai.onnx.contrib", "PyOp"),
        ("com.microsoft", "PyOp"),
        ("com.microsoft", "BeamSearch"),
        ("ai.onnx.preview.training", "Gradient"),
        ("", "NoSuchOperator"),
        ("ai.onnx.ml", "NoSuchOperator"),
    ],
)
def test_custom_operators_are_refused_by_name(domain, op):
    """Code of somebody else's is not part of a release."""
    node = helper.make_node(op, ["x"], ["y"], domain=domain)
    refused(model([node], domains=[domain] if domain else []), op)


def test_an_operator_without_its_domain_declared_is_refused():
    """A domain that is used must be declared with a version."""
    refused(
        model([helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0], scale=[1.0])]),
        "Scaler",
    )


@pytest.mark.parametrize("op", sorted(preflight.RANDOM_OPS))
def test_random_operators_are_refused_by_name(op):
    """A score is the same twice."""
    attributes = {"shape": [1]} if op in ("RandomNormal", "RandomUniform") else {}
    node = helper.make_node(op, [] if attributes else ["x"], ["y"], **attributes)
    refused(model([node]), f"`{op}`.*random")


def test_dropout_in_training_mode_is_refused():
    """The usual mistake when exporting from PyTorch."""
    flag = onnx.numpy_helper.from_array(np.array(True), "training")
    refused(model([helper.make_node("Dropout", ["x", "", "training"], ["y"])], weights=[flag]), "Dropout")
    assert inspect(model([helper.make_node("Dropout", ["x"], ["y"])]).SerializeToString())


def test_refused_operators_are_found_in_inner_graphs_and_functions():
    """An operator cannot hide in the branch of an If, nor in a function of the model."""
    bad = helper.make_node("RandomNormalLike", ["x"], ["z"])
    branch = helper.make_graph([bad], "b", [], [info("z")])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    flag = onnx.numpy_helper.from_array(np.array(True), "c")
    refused(model([node], weights=[flag]), "RandomNormalLike")
    function = helper.make_function(
        "local", "noise", ["x"], ["z"], [bad], opset_imports=[helper.make_opsetid("", 17)]
    )
    call = helper.make_node("noise", ["x"], ["y"], domain="local")
    refused(model([call], domains=["local"], functions=[function]), "RandomNormalLike")


def test_functions_of_the_model_are_inlined():
    """What PyTorch exports as functions becomes plain nodes."""
    function = helper.make_function(
        "local",
        "twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        opset_imports=[helper.make_opsetid("", 17)],
    )
    call = helper.make_node("twice", ["x"], ["y"], domain="local")
    graph = inspect(model([call], domains=["local"], functions=[function]).SerializeToString())
    assert graph.operators == ("Add",)
    assert not onnx.load_from_string(graph.data).functions


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["weight", "attribute"])
def test_weights_in_other_files_are_refused(place):
    """A release holds everything it needs; a path in a model is an attack or a mistake."""
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=[3], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    if place == "weight":
        refused(model([RELU], weights=[tensor]), "another file")
    else:
        constant = helper.make_node("Constant", [], ["w"], value=tensor)
        refused(model([constant, RELU]), "another file")


@pytest.mark.parametrize("dims", [[-1], [1 << 40], [1 << 20, 1 << 20, 1 << 20]])
def test_impossible_dimensions_are_refused(dims):
    """A weight is no larger than the file that holds it."""
    refused(model([RELU], weights=[onnx.TensorProto(name="w", data_type=FLOAT, dims=dims)]), "'w'")


@pytest.mark.parametrize(
    ("op", "inputs"), [("ConstantOfShape", ["big"]), ("Expand", ["x", "big"]), ("Tile", ["x", "big"])]
)
def test_memory_bombs_are_refused(op, inputs):
    """A few bytes cannot ask for all memory."""
    big = onnx.numpy_helper.from_array(np.array([1 << 45, 1 << 10], dtype=np.int64), "big")
    refused(model([helper.make_node(op, inputs, ["y"])], weights=[big]), f"`{op}`")
    small = onnx.numpy_helper.from_array(np.array([2, 3], dtype=np.int64), "big")
    assert inspect(model([helper.make_node(op, inputs, ["y"])], weights=[small]).SerializeToString())


def test_endless_loops_are_refused():
    """A trip count of 2 ** 62 is not run to see."""
    count = helper.make_node(
        "Constant", [], ["trips"], value=onnx.numpy_helper.from_array(np.array(1 << 62, dtype=np.int64))
    )
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [info("i", INT64, []), info("go", 9, [])],
        [info("on", 9, [])],
    )
    loop = helper.make_node("Loop", ["trips", ""], [], body=body)
    refused(model([count, loop, RELU]), "`Loop`")


def test_deep_and_wide_graphs_are_refused(monkeypatch):
    """Nesting and counts are capped."""
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "g", [], [info("z")])
    for _ in range(preflight.MAX_DEPTH + 2):
        node = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], "g", [], [info("z")])
    top = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    flag = onnx.numpy_helper.from_array(np.array(True), "c")
    refused(model([top], weights=[flag]), "nested")
    monkeypatch.setattr(preflight, "MAX_NODES", 3)
    names = ["x", "a", "b", "c", "y"]
    refused(model([helper.make_node("Relu", [a], [b]) for a, b in pairwise(names)]), "3 nodes")


# ---- inputs and outputs ----------------------------------------------------------------------------------------------


def test_outputs_that_are_no_tensors_are_refused_by_name():
    """Sequences, maps and optional values are named with what they are."""
    element = helper.make_tensor_type_proto(FLOAT, ["n"])
    sequence = helper.make_value_info("y", helper.make_sequence_type_proto(element))
    refused(
        model([helper.make_node("SequenceConstruct", ["x"], ["y"])], outputs=[sequence]), "'y'.*a sequence"
    )
    optional = helper.make_value_info("y", helper.make_optional_type_proto(element))
    refused(model([helper.make_node("Optional", ["x"], ["y"])], outputs=[optional]), "'y'.*an optional value")


def test_inputs_that_are_no_tensors_are_refused_by_name():
    """A dictionary vectoriser takes maps, which no feature spec makes."""
    kind = onnx.TypeProto()
    kind.map_type.key_type = 8
    kind.map_type.value_type.tensor_type.elem_type = FLOAT
    taken = helper.make_value_info("x", kind)
    node = helper.make_node("DictVectorizer", ["x"], ["y"], domain="ai.onnx.ml", string_vocabulary=["a"])
    refused(model([node], inputs=[taken], domains=["ai.onnx.ml"]), "input 'x'.*a map")


def test_models_without_inputs_or_outputs_are_refused():
    """An answer that does not depend on the request is none."""
    constant = helper.make_node(
        "Constant", [], ["y"], value=onnx.numpy_helper.from_array(np.zeros(3, np.float32))
    )
    refused(model([constant], inputs=[]), "takes no input")
    refused(model([RELU], outputs=[]), "gives no output")
    weight = onnx.numpy_helper.from_array(np.zeros((1, 3), np.float32), "x")
    refused(model([RELU], weights=[weight]), "takes no input")


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Identity", ["y"], ["y"])],
        [helper.make_node("Identity", ["a"], ["y"]), helper.make_node("Flatten", ["y"], ["a"])],
        [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Relu", ["x"], ["a"])],
    ],
)
def test_nodes_in_circles_or_out_of_order_are_refused(nodes):
    """Whoever follows the edges of a graph must come to an end; a circle once kept the check itself busy for ever."""
    refused(model(nodes), "before it is made")


def test_tensors_made_twice_are_refused():
    """It could not be told which node a reader means."""
    refused(model([RELU, helper.make_node("Identity", ["x"], ["y"])]), "makes tensor 'y' twice")


def test_names_that_occur_twice_are_refused():
    """Two inputs of one name could not be told apart."""
    refused(model([RELU], inputs=[info("x"), info("x")]), "same name")


# ---- what is found out -----------------------------------------------------------------------------------------------


def tree(inputs: list[str], outputs: list[str]) -> Any:
    """A tree ensemble of one split."""
    return helper.make_node(
        "TreeEnsembleRegressor",
        inputs,
        outputs,
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_values=[0.5, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        target_treeids=[0, 0],
        target_nodeids=[1, 2],
        target_ids=[0, 0],
        target_weights=[1.0, 2.0],
    )


def cast(inner: str, outer: str, to: int) -> Any:
    """A node that casts."""
    return helper.make_node("Cast", [inner], [outer], to=to)


MOVED = helper.make_node("Identity", ["x"], ["a"])
SQUASHED = helper.make_node("Sigmoid", ["b"], ["y"])


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([tree(["x"], ["y"])], True),
        ([MOVED, tree(["a"], ["b"]), SQUASHED], True),
        ([cast("x", "a", 11), cast("a", "b", 1), tree(["b"], ["y"])], True),
        ([cast("x", "a", 7), cast("a", "b", 1), tree(["b"], ["y"])], False),
        ([helper.make_node("Relu", ["x"], ["a"]), tree(["a"], ["y"])], False),
        ([tree(["x"], ["a"]), helper.make_node("Add", ["a", "x"], ["y"])], False),
        ([RELU], False),
    ],
)
def test_a_model_is_trees_only_when_every_number_reaches_trees(nodes, expected):
    """Moving numbers is allowed, computing with them before a tree is not."""
    assert inspect(model(nodes, domains=["ai.onnx.ml"]).SerializeToString()).trees_only is expected


def test_domains_listed_twice_are_listed_once():
    """Converters write the same operator set several times."""
    made = model([RELU])
    made.opset_import.add(domain="", version=13)
    made.opset_import.add(domain="ai.onnx", version=12)
    packed = onnx.load_from_string(inspect(made.SerializeToString()).data)
    assert [(one.domain, one.version) for one in packed.opset_import] == [("", 17)]


@pytest.mark.parametrize(
    ("text", "names"), [('["a", "b"]', ("a", "b")), ("a, b", ("a", "b")), ("[1, 2]", None), ("[]", None)]
)
def test_feature_names_are_read_from_the_metadata(text, names):
    """Whoever exports a model can write down what its columns were called."""
    made = model([RELU])
    helper.set_model_props(made, {"feature_names": text})
    assert inspect(made.SerializeToString()).feature_names == names
