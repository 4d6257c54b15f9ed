"""Models that nobody here made: same bits as onnxruntime's Python API, or refused with the reason.

The corpus: the files that the `onnx` package ships with their inputs, its generated one-operator models (about
1,900, of all dtypes), and the example models of onnxruntime. Each goes through both implementations of a session.
"""

from __future__ import annotations

import functools
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from retailinfer.errors import ModelError, RetailInferError
from retailinfer.runtime.session import open_session

onnx = pytest.importorskip("onnx", reason="`onnx` is not installed (pip install retailinfer[test])")
onnxruntime = pytest.importorskip("onnxruntime", reason="`onnxruntime` is not installed")

BACKENDS = ("c", "python")
FILES = Path(onnx.__file__).parent / "backend" / "test" / "data"
# Weights of 0.2 to 0.6 GB, made when the model is loaded: for bigger machines than a test should need.
TOO_LARGE = ("light_bvlc_alexnet", "light_vgg19", "light_zfnet512")


def their_session(model_bytes):
    """A session of onnxruntime's Python API with its defaults, but for threads and noise."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])


def bits(value):
    """What makes two outputs the same: dtype, shape and every byte (NaN counts too)."""
    array = np.asarray(value)
    return array.dtype, array.shape, array.tolist() if array.dtype == object else array.tobytes()


def outcome(model_bytes, feeds, backend):
    """One of ("equal", ""), ("refused", message), ("random", ""), ("failed", message); anything else is an error."""
    try:
        theirs = their_session(model_bytes)
    except Exception as exc:
        theirs, their_error = None, str(exc)
    try:
        ours = open_session(model_bytes, backend=backend)
    except ModelError as exc:
        return "refused", str(exc)
    assert theirs is not None, f"onnxruntime refuses what was opened: {their_error}"
    names = [node.name for node in theirs.get_outputs()]
    assert [entry[0] for entry in ours.inputs] == [node.name for node in theirs.get_inputs()]
    assert [entry[0] for entry in ours.outputs] == names
    for entry, node in zip(
        ours.inputs + ours.outputs, theirs.get_inputs() + theirs.get_outputs(), strict=True
    ):
        assert entry[2] == tuple(size if isinstance(size, int) else None for size in node.shape), node
    try:
        want = [bits(value) for value in theirs.run(names, feeds)]
    except Exception as exc:
        try:
            ours.run(feeds)
        except RetailInferError:
            return "failed", str(exc)
        raise AssertionError(f"onnxruntime fails, this does not: {exc}") from exc
    got = ours.run(feeds)
    assert list(got) == names
    if [bits(got[name]) for name in names] == want:
        return "equal", ""
    again = [bits(value) for value in their_session(model_bytes).run(names, feeds)]
    assert again != want, f"other bits than onnxruntime: {got}"
    return "random", ""


def file_models():
    """Name and path of every model in a file."""
    models = {
        f"{path.parent.parent.name}/{path.parent.name if path.stem == 'model' else path.stem}": path
        for path in sorted(FILES.rglob("*.onnx"))
        if path.stem not in TOO_LARGE
    }
    datasets = Path(onnxruntime.__file__).parent / "datasets"
    return models | {f"onnxruntime/{path.stem}": path for path in sorted(datasets.glob("*.onnx"))}


def feeds_of(path, model_bytes):
    """The inputs that stand beside a model, else drawn ones of the declared shape."""
    graph = onnx.load_from_string(model_bytes).graph
    constants = {tensor.name for tensor in graph.initializer}
    feeds, rng = {}, np.random.default_rng(len(model_bytes))
    for number, node in enumerate(node for node in graph.input if node.name not in constants):
        stored = path.parent / "test_data_set_0" / f"input_{number}.pb"
        tensor_type = node.type.tensor_type
        if stored.exists() and node.type.HasField("tensor_type"):
            feeds[node.name] = onnx.numpy_helper.to_array(onnx.load_tensor(stored))
        elif node.type.HasField("tensor_type"):
            shape = [dim.dim_value or 3 for dim in tensor_type.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)
            feeds[node.name] = rng.normal(size=shape).astype(dtype)
    return feeds


@functools.cache
def node_models():
    """The generated one-operator models: name, model bytes, feeds by input name."""
    with warnings.catch_warnings():  # the generators divide by zero on purpose
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    models = []
    for case in cases:
        names = [node.name for node in case.model.graph.input]
        inputs = case.data_sets[0][0] if case.data_sets else []
        feeds = {
            name: np.asarray(value) if isinstance(value, np.generic) else value
            for name, value in zip(names, inputs, strict=False)
        }
        models.append((case.name, case.model.SerializeToString(), feeds))
    return models


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", sorted(file_models()))
def test_a_model_in_a_file_gives_the_bits_of_onnxruntime_or_is_refused(name, backend):
    """Every output of every packaged model is bit-equal; what is refused says which operator or type is meant."""
    path = file_models()[name]
    model_bytes = path.read_bytes()
    result, message = outcome(model_bytes, feeds_of(path, model_bytes), backend)
    assert result in {"equal", "refused"}, (result, message)
    if result == "refused":
        assert re.search(
            r"implementation for \w+\(\d+\)|not a registered function/op|locale|is a sequence", message
        )


def test_the_corpus_of_files_is_not_empty():
    """At least a hundred models in files are compared, so an empty folder cannot pass for success."""
    assert len(file_models()) >= 100


@pytest.mark.parametrize("backend", BACKENDS)
def test_operator_models_give_the_bits_of_onnxruntime_or_are_refused(backend):
    """Every operator and dtype that ONNX tests: equal bits, or a typed refusal that names what is refused."""
    counts, wrong = {"equal": 0, "refused": 0, "random": 0, "failed": 0}, []
    for name, model_bytes, feeds in node_models():
        try:
            result, message = outcome(model_bytes, feeds, backend)
        except Exception as exc:
            wrong.append((name, type(exc).__name__, str(exc)[:300]))
            continue
        counts[result] += 1
        if result == "refused" and not re.search(
            r"(input|output) `[^`]+` (is|has) |implementation for |not a registered|is under development|locale|"
            r"[Nn]ode|[Ff]unction|initializer|opset|not supported",
            message,
        ):
            wrong.append((name, "says too little", message))
        if "onnxruntime_src" in message and result == "refused":
            wrong.append((name, "shows a path", message))
    assert not wrong, (len(wrong), wrong[:20])
    assert counts["equal"] >= 1_400, counts
    assert counts["failed"] + counts["random"] <= 60, counts
