"""Models that nobody here made: each one packs, loads and answers bit for bit as onnxruntime does, or is refused by name.

Where they come from: the small graphs with their inputs that the `onnx` package ships (written by hand or exported from
PyTorch), those of onnxruntime's own examples, and models that LightGBM, XGBoost and scikit-learn train here.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retailinfer as ri
from retailinfer.errors import ModelError

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported below
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

CASES = Path(onnx.__file__).parent / "backend" / "test" / "data"
EXAMPLES = Path(ort.__file__).parent / "datasets"


def graphs() -> list[Path]:
    """Files of the corpus; the folder `light` has image networks without weights, too slow for every day."""
    found = [
        path
        for folder in ("simple", "pytorch-converted", "pytorch-operator")
        for path in CASES.glob(f"{folder}/*")
    ]
    return sorted(
        [path / "model.onnx" for path in found if (path / "model.onnx").exists()] + [*EXAMPLES.glob("*.onnx")]
    )


def read_tensor(path: Path) -> np.ndarray[Any, Any]:
    """One of the inputs beside a graph."""
    tensor = onnx.TensorProto()
    tensor.ParseFromString(path.read_bytes())
    return np.asarray(onnx.numpy_helper.to_array(tensor))


@lru_cache(maxsize=4)
def bare(data: bytes) -> Any:
    """onnxruntime's own session, one thread, silent."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def feeds_for(path: Path, data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """The inputs that came with a graph, else random ones of its shapes."""
    weights = {tensor.name for tensor in onnx.load_from_string(data).graph.initializer}
    names = [one.name for one in onnx.load_from_string(data).graph.input if one.name not in weights]
    folder = path.parent / "test_data_set_0"
    if folder.is_dir():
        return {name: read_tensor(folder / f"input_{i}.pb") for i, name in enumerate(names)}
    rng = np.random.default_rng(5)
    shapes = {
        one.name: [d if isinstance(d, int) else 3 for d in one.shape] for one in bare(data).get_inputs()
    }
    return {name: rng.normal(size=shapes[name]).astype(np.float32) for name in names}


def as_array(value: Any) -> np.ndarray[Any, Any]:
    """An output of onnxruntime; what ZipMap gives is put back into columns."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return np.array([list(one.values()) for one in value], dtype=np.float32)
    return np.asarray(value)


def assert_equal_outputs(got: Mapping[str, np.ndarray[Any, Any]], data: bytes, feeds: dict[str, Any]) -> None:
    """Names, shapes, dtypes and bits of all outputs are those of onnxruntime."""
    names = [one.name for one in bare(data).get_outputs()]
    assert list(got) == names
    for name, value in zip(names, bare(data).run(None, feeds), strict=True):
        expected = as_array(value)
        assert got[name].shape == expected.shape, name
        if expected.dtype.kind in "OUT":
            assert got[name].tolist() == expected.astype(object).tolist(), name
        else:
            assert got[name].dtype == expected.dtype, name
            assert got[name].tobytes() == expected.tobytes(), name


@pytest.mark.parametrize(
    "path", graphs(), ids=lambda path: path.parent.name if path.stem == "model" else path.stem
)
def test_foreign_graph_answers_as_onnxruntime_or_is_refused_by_name(path, tmp_path):
    """Every output has the bits that onnxruntime gives, or packing names the operator that it refuses."""
    data = path.read_bytes()
    refused: ModelError | None = None
    try:
        manifest = ri.pack("corpus", model=path, out=tmp_path / "r")
    except ModelError as exc:
        refused = exc
    if refused is not None:
        operators = {node.op_type for node in onnx.load_from_string(data).graph.node}
        assert any(op in str(refused) for op in operators), refused
        return
    scorer = ri.Scorer.load(tmp_path / "r", trust="unsigned")
    feeds = feeds_for(path, data)
    assert_equal_outputs(scorer.score_arrays(feeds), data, feeds)
    assert manifest.task == "arrays"


def test_corpus_is_large_and_varied():
    """The corpus holds what the test above is for: enough graphs that pack, of several input dtypes."""
    kinds: Counter[int] = Counter()
    for path in graphs():
        model = onnx.load(path)
        kinds.update({one.type.tensor_type.elem_type for one in model.graph.input})
    assert len(graphs()) >= 100
    assert kinds[1] >= 60  # float32
    assert {7, 8, 11} <= kinds.keys()  # int64, string, float64


# ---- every dtype -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "dtype"),
    [(1, "float32"), (11, "float64"), (6, "int32"), (7, "int64"), (9, "bool"), (2, "uint8"), (3, "int8")],
)
def test_inputs_of_every_dtype_reach_the_model(number, dtype, tmp_path):
    """A model that passes its input on gives back the very bits, for each dtype that arrays may have."""
    helper = onnx.helper
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", number, ["n", 3])],
        [helper.make_tensor_value_info("y", number, ["n", 3])],
    )
    data = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    ri.pack("corpus", model=data, out=tmp_path / "r")
    scorer = ri.Scorer.load(tmp_path / "r", trust="unsigned")
    values = np.array([[0, 1, 2], [3, 0, 1]]).astype(dtype)
    assert_equal_outputs(scorer.score_arrays({"x": values}), data, {"x": values})


@pytest.mark.parametrize(
    ("number", "name"),
    [(10, "float16"), (16, "bfloat16"), (17, "float8e4m3fn"), (14, "complex64"), (22, "int4")],
)
@pytest.mark.parametrize("side", ["input", "output"])
def test_dtypes_that_arrays_cannot_hold_are_refused_by_name(number, name, side, tmp_path):
    """The message says which input or output, and which dtype."""
    helper = onnx.helper
    inner, outer = ("x", number), ("y", 1)
    if side == "output":
        inner, outer = ("x", 1), ("y", number)
    node = helper.make_node("Cast", ["x"], ["y"], to=outer[1])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(*inner, ["n"])],
        [helper.make_tensor_value_info(*outer, ["n"])],
    )
    data = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    ).SerializeToString()
    with pytest.raises(ModelError, match=f"{side} '[xy]'.*{name}"):
        ri.pack("corpus", model=data, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


# ---- trained here ----------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(12)
X = RNG.normal(size=(400, 5)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] * X[:, 2] > 0).astype(int)
WORDS = np.array(["low", "middle", "high"])[np.digitize(X[:, 0], [-0.5, 0.5])]


def trained(kind: str) -> Any:
    """A small fitted model; `kind` is the trainer's class, and what makes it special."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # trainers talk about versions of each other
        return _train(kind)


def _train(kind: str) -> Any:
    if kind.startswith("LGBM"):
        lightgbm = pytest.importorskip("lightgbm")
        options = {"n_estimators": 8, "verbose": -1, "n_jobs": 1}
        if kind == "LGBMRegressor":
            return lightgbm.LGBMRegressor(**options).fit(X, X[:, 1])
        if kind == "LGBMRanker":
            return lightgbm.LGBMRanker(**options).fit(X, np.digitize(X[:, 0], [-1, 1]), group=[20] * 20)
        return lightgbm.LGBMClassifier(**options).fit(X, WORDS if kind.endswith("words") else Y)
    if kind.startswith("XGB"):
        xgboost = pytest.importorskip("xgboost")
        options = {"n_estimators": 8, "n_jobs": 1}
        if kind == "XGBRegressor":
            return xgboost.XGBRegressor(**options).fit(X, X[:, 1])
        if kind == "XGBRanker":
            return xgboost.XGBRanker(**options).fit(X, np.digitize(X[:, 0], [-1, 1]), group=[20] * 20)
        classes = np.digitize(X[:, 0], [-0.5, 0.5]) if kind.endswith("three") else Y
        return xgboost.XGBClassifier(**options).fit(X, classes)
    pytest.importorskip("sklearn")
    from sklearn import ensemble, linear_model, neural_network, pipeline, preprocessing, svm

    made = {
        "LogisticRegression": lambda: linear_model.LogisticRegression().fit(X, Y),
        "LogisticRegression words": lambda: linear_model.LogisticRegression().fit(X, WORDS),
        "Ridge": lambda: linear_model.Ridge().fit(X, X[:, 1]),
        "RandomForestClassifier": lambda: ensemble.RandomForestClassifier(5, random_state=0).fit(X, Y),
        "RandomForestRegressor": lambda: ensemble.RandomForestRegressor(5, random_state=0).fit(X, X[:, 1]),
        "GradientBoostingClassifier": lambda: ensemble.GradientBoostingClassifier(n_estimators=5).fit(X, Y),
        "HistGradientBoostingClassifier": lambda: ensemble.HistGradientBoostingClassifier(max_iter=5).fit(
            X, Y
        ),
        "HistGradientBoostingRegressor": lambda: ensemble.HistGradientBoostingRegressor(max_iter=5).fit(
            X, X[:, 1]
        ),
        "MLPClassifier": lambda: neural_network.MLPClassifier((8,), max_iter=5, random_state=0).fit(X, Y),
        "SVC": lambda: svm.SVC().fit(X, Y),
        "Pipeline": lambda: pipeline.make_pipeline(
            preprocessing.StandardScaler(), linear_model.LogisticRegression()
        ).fit(X, WORDS),
    }
    return made[kind]()


TRAINED = [
    "LGBMClassifier",
    "LGBMClassifier words",
    "LGBMRegressor",
    "LGBMRanker",
    "XGBClassifier",
    "XGBClassifier three",
    "XGBRegressor",
    "XGBRanker",
    "LogisticRegression",
    "LogisticRegression words",
    "Ridge",
    "RandomForestClassifier",
    "RandomForestRegressor",
    "GradientBoostingClassifier",
    "HistGradientBoostingClassifier",
    "HistGradientBoostingRegressor",
    "MLPClassifier",
    "Pipeline",
]


def own_answers(model: Any) -> np.ndarray[Any, Any]:
    """What the trainer itself says of the rows, in its own precision."""
    ask = getattr(model, "predict_proba", None) or getattr(model, "decision_function", None) or model.predict
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(ask(X))


@pytest.mark.parametrize("kind", TRAINED)
def test_trained_model_answers_as_its_onnx_file_and_its_trainer(kind, tmp_path):
    """A fitted model packs as it is; all outputs are onnxruntime's, and the scores are the trainer's."""
    model = trained(kind)
    ri.pack("trained", model=model, engine="onnx", out=tmp_path / "r")
    scorer = ri.Scorer.load(tmp_path / "r", trust="unsigned")
    data = (tmp_path / "r" / "model.onnx").read_bytes()
    got = scorer.score_arrays({"features": X})
    assert_equal_outputs(got, data, {"features": X})
    expected = own_answers(model)
    values = list(got.values())[-1]
    values = values[:, -1] if expected.ndim == 1 and values.ndim == 2 else values
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "kind", [k for k in TRAINED if k.startswith(("LGBM", "XGB")) or "Forest" in k or "Gradient" in k]
)
def test_trained_trees_have_the_bits_of_their_trainer(kind, tmp_path):
    """Without a word about engines, tree ensembles run as trees, and answer with the trainer's numbers as float32."""
    model = trained(kind)
    manifest = ri.pack("trained", model=model, out=tmp_path / "r")
    assert (manifest.models[0].engine, manifest.models[0].parity) == ("trees", "exact")
    got = list(ri.Scorer.load(tmp_path / "r", trust="unsigned").score_arrays({"features": X}).values())[-1]
    expected = own_answers(model).astype(np.float32)
    assert got.reshape(expected.shape).tobytes() == expected.tobytes()


def test_a_conversion_that_answers_otherwise_is_refused(tmp_path):
    """skl2onnx turns the sign of a support vector machine's decision function; packing compares, and says so."""
    with pytest.raises(ModelError, match=r"differently from sklearn\.SVC"):
        ri.pack("trained", model=trained("SVC"), out=tmp_path / "r")


@pytest.mark.parametrize("words", [False, True])
def test_zipmap_is_unwrapped_into_the_tensor_behind_it(words, tmp_path):
    """A classifier exported with a dictionary per row gives a plain tensor with the same numbers and labels."""
    skl2onnx = pytest.importorskip("skl2onnx")
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit(X, WORDS if words else Y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = skl2onnx.to_onnx(model, X[:1], target_opset={"": 17, "ai.onnx.ml": 3}).SerializeToString()
    assert any(node.op_type == "ZipMap" for node in onnx.load_from_string(data).graph.node)
    manifest = ri.pack("zipped", model=data, out=tmp_path / "r")
    packed = onnx.load(tmp_path / "r" / "model.onnx")
    assert not any(node.op_type == "ZipMap" for node in packed.graph.node)
    scorer = ri.Scorer.load(tmp_path / "r", trust="unsigned")
    assert_equal_outputs(scorer.score_arrays({"X": X}), data, {"X": X})
    assert manifest.models[0].outputs[1].classes == tuple(model.classes_.tolist())
