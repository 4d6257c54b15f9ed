"""Which input takes what and which cell is the score: found by name, checked, and never guessed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.errors import SchemaMismatchError

onnx = pytest.importorskip("onnx")
helper = pytest.importorskip("onnx.helper")

FLOAT, INT32, INT64, STRING, BOOL, DOUBLE = 1, 6, 7, 8, 9, 11
TABLE = pa.table(
    {
        "a": np.linspace(-2, 2, 40),
        "b": np.linspace(1, 0, 40) ** 2,
        "word": ["x", "y", "z", "x"] * 10,
        "seen": pa.array([[1, 2], [3], [], [4, 5, 6]] * 10, pa.list_(pa.int64())),
    }
)
REQUEST = {"a": float, "b": float, "word": str, "seen": list[int]}


def info(name: str, dtype: int, shape: Any) -> Any:
    """The declaration of a tensor."""
    return helper.make_tensor_value_info(name, dtype, shape)


def graph(nodes: Any, inputs: Any, outputs: Any, **weights: Any) -> bytes:
    """A model of some nodes."""
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    made = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, tensors),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)],
        ir_version=8,
    )
    return bytes(made.SerializeToString())


def total(name: str = "x", dtype: int = FLOAT, shape: Any = ("n", 2), out: str = "y") -> bytes:
    """The sum of an input's cells, shape (n, 1)."""
    nodes = [
        helper.make_node("Cast", [name], ["f"], to=FLOAT),
        helper.make_node("Flatten", ["f"], ["flat"], axis=1),
        helper.make_node("ReduceSum", ["flat", "axis"], [out], keepdims=1),
    ]
    return graph(nodes, [info(name, dtype, shape)], [info(out, FLOAT, ["n", 1])], axis=np.array([1]))


def spec(**tensors: ri.Tensor) -> ri.FeatureSpec:
    """Two numbers, or the given tensors."""
    if tensors:
        return ri.FeatureSpec(request=REQUEST, tensors=tensors)
    return ri.FeatureSpec(request=REQUEST, columns=[c.numeric("a"), c.numeric("b")])


def pack(tmp_path, model: Any, features: ri.FeatureSpec, **more: Any) -> Any:
    """A release of `TABLE`'s rows."""
    return ri.pack("wired", model=model, features=features, golden=TABLE, out=tmp_path / "r", **more)


def first_score(tmp_path) -> float:
    """What the packed release says of the first row."""
    return ri.Scorer.load(tmp_path / "r", trust="unsigned").score(TABLE.slice(0, 1).to_pylist()[0]).score


# ---- inputs ----------------------------------------------------------------------------------------------------------


def test_one_tensor_and_one_input_match_whatever_they_are_called(tmp_path):
    """Nobody has to rename the input of an exported model."""
    manifest = pack(tmp_path, total("float_input"), spec())
    assert manifest.inputs["model"]["float_input"].name == "features"
    assert first_score(tmp_path) == -1.0


def test_several_inputs_take_the_tensors_and_masks_of_their_names(tmp_path):
    """Order does not matter, names and dtypes do; a mask is an input of its own."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["idsf"], to=FLOAT),
        helper.make_node("Mul", ["idsf", "ids_mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["s"], keepdims=1),
        helper.make_node("Add", ["s", "dense"], ["y"]),
    ]
    model = graph(
        nodes,
        [info("ids_mask", FLOAT, ["n", 3]), info("ids", INT64, ["n", 3]), info("dense", FLOAT, ["n", 1])],
        [info("y", FLOAT, ["n", 1])],
        axis=np.array([1]),
    )
    features = spec(
        dense=ri.Tensor((c.numeric("a"),)),
        ids=ri.Tensor(
            (c.sequence("seen", length=3, encoding="hashed", buckets=10, pad=7),),
            dtype="int64",
            mask="ids_mask",
            mask_dtype="float32",
        ),
    )
    manifest = pack(tmp_path, model, features)
    kinds = {name: (source.kind, source.name) for name, source in manifest.inputs["model"].items()}
    assert kinds == {"ids_mask": ("mask", "ids_mask"), "ids": ("tensor", "ids"), "dense": ("tensor", "dense")}
    cells = features.transform(TABLE.slice(0, 1))
    expected = float((cells["ids"] * cells["ids_mask"]).sum() + cells["dense"][0, 0])
    assert first_score(tmp_path) == np.float32(expected)


@pytest.mark.parametrize("shape", [("n", 2), (None, None), ("n", 2, 1), ("n", 1, 2), ("n", None, 1)])
def test_rows_take_the_shape_that_an_input_declares(shape, tmp_path):
    """Cells are laid out as the model wants them, where their number fits."""
    pack(tmp_path, total("x", FLOAT, shape), spec())
    assert first_score(tmp_path) == -1.0


def test_a_column_of_one_cell_fits_an_input_without_columns(tmp_path):
    """Ids of shape (n,) are common where a model looks something up."""
    model = graph(
        [helper.make_node("Gather", ["w", "id"], ["y"])],
        [info("id", INT64, ["n"])],
        [info("y", FLOAT, ["n"])],
        w=np.arange(10, dtype=np.float32) * 1.5,
    )
    features = spec(id=ri.Tensor((c.hashed("word", buckets=10),), dtype="int64"))
    pack(tmp_path, model, features)
    code = int(features.transform(TABLE.slice(0, 1))[0, 0])
    assert first_score(tmp_path) == 1.5 * code


def test_text_reaches_a_string_input(tmp_path):
    """A model that encodes text itself gets the raw text."""
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["t"],
            ["y"],
            domain="ai.onnx.ml",
            keys_strings=["x", "y"],
            values_floats=[3.0, 4.0],
            default_float=-1.0,
        )
    ]
    model = graph(nodes, [info("t", STRING, ["n", 1])], [info("y", FLOAT, ["n", 1])])
    pack(tmp_path, model, spec(t=ri.Tensor((c.raw("word"),), dtype="string")))
    assert first_score(tmp_path) == 3.0


@pytest.mark.parametrize(
    ("model", "features", "says"),
    [
        (total("x", DOUBLE), spec(), "takes float64, tensor `features` is float32"),
        (total("x", FLOAT, ("n", 3)), spec(), r"takes shape \(any, 3\), tensor `features` has 2 cells"),
        (total("x", FLOAT, ("n", 4, None)), spec(), "has 2 cells"),
        (total("x", FLOAT, (4, 2)), spec(), "always takes 4 rows"),
        (total("x", FLOAT, (1, 2)), spec(), r"always takes one row.*dynamic_axes"),
        (
            total("x"),
            spec(x=ri.Tensor((c.numeric("a"), c.numeric("b"))), z=ri.Tensor((c.raw("a", name="z"),))),
            "no model reads",
        ),
        (
            total("x"),
            spec(p=ri.Tensor((c.numeric("a"),)), q=ri.Tensor((c.numeric("b"),))),
            r"nothing fits input 'x'.*there are p, q",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_both_sides_named(model, features, says, tmp_path):
    """The message names the input, the tensor, and what each of them wants."""
    with pytest.raises(SchemaMismatchError, match=says):
        pack(tmp_path, model, features)
    assert not (tmp_path / "r").exists()


def test_a_model_of_one_row_packs_when_the_contract_says_so(tmp_path):
    """A fixed batch of one is fine for single scores, and is run one row at a time."""
    manifest = pack(tmp_path, total("x", FLOAT, (1, 2)), spec(), contract=ri.Contract(max_rows=1))
    assert manifest.row_independent is False
    assert first_score(tmp_path) == -1.0


# ---- several models --------------------------------------------------------------------------------------------------


def calibrator(name: str) -> bytes:
    """Half of its input."""
    node = helper.make_node("Mul", [name, "half"], ["p"])
    half = np.array([[0.5]], np.float32)
    return graph([node], [info(name, FLOAT, ["n", 1])], [info("p", FLOAT, ["n", 1])], half=half)


@pytest.mark.parametrize("name", ["y", "booster.y"])
def test_a_model_takes_the_output_of_an_earlier_one_by_name(name, tmp_path):
    """Tower and ranker, booster and calibrator: one release, run in order."""
    manifest = pack(tmp_path, {"booster": total("x"), "calibrator": calibrator(name)}, spec())
    source = manifest.inputs["calibrator"][name]
    assert (source.kind, source.role, source.name) == ("output", "booster", "y")
    assert (manifest.score.role, manifest.score.output) == ("calibrator", "p")
    assert first_score(tmp_path) == -0.5


def test_models_run_in_the_order_given(tmp_path):
    """A later model's output is no input of an earlier one."""
    with pytest.raises(SchemaMismatchError, match="nothing fits input 'y'"):
        pack(tmp_path, {"calibrator": calibrator("y"), "booster": total("x")}, spec())


def test_a_chain_checks_dtypes(tmp_path):
    """What one model gives must be what the next one takes."""
    node = helper.make_node("Cast", ["y"], ["p"], to=FLOAT)
    second = graph([node], [info("y", DOUBLE, ["n", 1])], [info("p", FLOAT, ["n", 1])])
    with pytest.raises(SchemaMismatchError, match="takes float64, output `y` of `one` is float32"):
        pack(tmp_path, {"one": total("x"), "two": second}, spec())


def test_which_of_several_final_answers_is_the_score_must_be_said(tmp_path):
    """One booster per quantile: all are final, none is the score until it is named."""
    models = {"low": total("x", out="q"), "high": total("x", out="q")}
    with pytest.raises(SchemaMismatchError, match=r"`low`, `high`.*role\.output"):
        pack(tmp_path, models, spec(x=ri.Tensor((c.numeric("a"), c.numeric("b")))))
    manifest = pack(tmp_path, models, spec(x=ri.Tensor((c.numeric("a"), c.numeric("b")))), score="high.q")
    assert (manifest.score.role, manifest.score.output) == ("high", "q")


# ---- the score -------------------------------------------------------------------------------------------------------


def classifier(n: int, *, labels: Any = None, name: str = "probabilities") -> bytes:
    """A linear classifier with `n` columns of probabilities, and a label output before them."""
    labels = list(range(n)) if labels is None else labels
    kind = {"classlabels_ints": labels} if isinstance(labels[0], int) else {"classlabels_strings": labels}
    node = helper.make_node(
        "LinearClassifier",
        ["x"],
        ["label", name],
        domain="ai.onnx.ml",
        coefficients=[float(i) for i in range(2 * n)],
        intercepts=[0.0] * n,
        post_transform="SOFTMAX",
        **kind,
    )
    dtype = INT64 if isinstance(labels[0], int) else STRING
    return graph(
        [node], [info("x", FLOAT, ["n", 2])], [info("label", dtype, ["n"]), info(name, FLOAT, ["n", n])]
    )


def heads() -> bytes:
    """Two outputs of numbers, and neither is a probability."""
    nodes = [helper.make_node("Identity", ["x"], ["logits"]), helper.make_node("Neg", ["x"], ["others"])]
    both = [info("logits", FLOAT, ["n", 2]), info("others", FLOAT, ["n", 2])]
    return graph(nodes, [info("x", FLOAT, ["n", 2])], both)


@pytest.mark.parametrize(
    ("model", "score", "column", "label"),
    [
        (classifier(2), "auto", 1, 1),
        (classifier(2, labels=["fraud", "fine"]), "auto", 1, "fine"),
        (classifier(2, labels=["fraud", "fine"]), "probabilities[fraud]", 0, "fraud"),
        (classifier(2, labels=["fraud", "fine"]), "probabilities[0]", 0, "fraud"),
        (classifier(3), "probabilities[2]", 2, 2),
        (classifier(3, labels=[1, 2, 3]), "probabilities[2]", 1, 2),
        (classifier(3, labels=["a", "b", "c"]), "model.probabilities[b]", 1, "b"),
        (classifier(2, name="p"), "p", 1, 1),
        (heads(), "others[1]", 1, None),
        (heads(), "logits[0]", 0, None),
        (classifier(3), "label", 0, None),
    ],
)
def test_the_score_is_the_named_column(model, score, column, label, tmp_path):
    """Positive class of two by default; else by label, or by number where labels are no numbers."""
    manifest = pack(tmp_path, model, spec(), score=score)
    assert (manifest.score.column, manifest.score.label) == (column, label)


@pytest.mark.parametrize(
    ("model", "score", "says"),
    [
        (classifier(3, labels=["a", "b", "c"]), "auto", r"3 columns.*probabilities\[c\]"),
        (classifier(3), "probabilities", "3 columns"),
        (classifier(3, labels=[1, 2, 3]), "probabilities[0]", "no class '0'.*1, 2, 3"),
        (classifier(3, labels=["a", "b", "c"]), "probabilities[d]", "no class 'd'.*a, b, c"),
        (heads(), "logits[2]", "below 2"),
        (heads(), "auto", "several outputs"),
        (heads(), "nothing", r"no model has an output.*model\.logits"),
        (heads(), "", 'score="auto"'),
        (classifier(2, labels=["a", "b"]), "label", "is string"),
    ],
)
def test_a_score_that_is_not_there_or_not_clear_is_refused(model, score, says, tmp_path):
    """The message lists what there is."""
    with pytest.raises(SchemaMismatchError, match=says):
        pack(tmp_path, model, spec(), score=score)


def test_a_model_that_gives_labels_only_is_refused(tmp_path):
    """A label is no score."""
    node = helper.make_node("ArgMax", ["x"], ["label"], axis=1)
    model = graph([node], [info("x", FLOAT, ["n", 2])], [info("label", INT64, ["n", 1])])
    with pytest.raises(SchemaMismatchError, match=r"no output of floats.*probabilities"):
        pack(tmp_path, model, spec())


def test_a_model_that_answers_once_per_batch_is_run_row_by_row(tmp_path):
    """A mean over the batch is one answer for all rows; alone, each row has its own."""
    node = helper.make_node("ReduceMean", ["x"], ["y"], keepdims=1)
    model = graph([node], [info("x", FLOAT, ["n", 2])], [info("y", FLOAT, None)])
    manifest = pack(tmp_path, model, spec())
    assert (manifest.row_independent, manifest.row_difference) == (False, None)
    assert first_score(tmp_path) == -0.5


def test_bounds_of_probabilities_are_recorded(tmp_path):
    """What a softmax gives cannot leave 0..1, what a sum gives can."""
    assert pack(tmp_path, classifier(2), spec()).score.high == 1.0
    other = ri.pack("sum", model=total(), features=spec(), golden=TABLE, out=tmp_path / "other")
    assert (other.score.low, other.score.high) == (None, None)


# ---- names of features -----------------------------------------------------------------------------------------------


def named(names: str) -> bytes:
    """The sum model with the names of its training columns in the metadata."""
    made = onnx.load_from_string(total())
    helper.set_model_props(made, {"feature_names": names})
    return bytes(made.SerializeToString())


def test_names_of_the_training_columns_are_compared_in_order(tmp_path):
    """The same columns in another order are the usual, silent mistake."""
    assert pack(tmp_path, named("a,b"), spec()).models[0].feature_names == "matched"
    with pytest.raises(SchemaMismatchError, match=r"feature 0.*'b', the spec gives 'a'.*another order"):
        ri.pack("x", model=named("b,a"), features=spec(), golden=TABLE, out=tmp_path / "x")
    with pytest.raises(SchemaMismatchError, match="trained on 3 features"):
        ri.pack("x", model=named("a,b,c"), features=spec(), golden=TABLE, out=tmp_path / "x")
    ignored = ri.pack(
        "x", model=named("b,a"), features=spec(), golden=TABLE, out=tmp_path / "x", names="ignore"
    )
    assert ignored.models[0].feature_names == "ignored"


def test_characters_that_trainers_forbid_do_not_matter(tmp_path):
    """LightGBM has no blanks or brackets in its names, XGBoost no < and [."""
    features = ri.FeatureSpec(
        request=REQUEST, columns=[c.numeric("a", name="a [EUR]"), c.numeric("b", name="b=(other)")]
    )
    assert pack(tmp_path, named("a_EUR_,b_other_"), features).models[0].feature_names == "matched"
