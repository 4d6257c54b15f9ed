"""The slots of ONNX Runtime's C API: what comes through each is what the Python API says through a binding of its own.

No package ships the header, so offsets cannot be compared with it. Instead every function that `ort_c_api.h` names is
reached here or in the other tests of a session: names, dtypes, shapes and metadata (`test_session_load.py`), tensors of
every dtype, strings and failing runs (`test_session_inputs.py`), logging and freeing (`test_ort_process.py`). A wrong
number would crash, fail, or give something else than the Python API.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from retailinfer._native import ort
from retailinfer._native.ort import OrtModel


def classifier():
    """A net of two layers over 3 float columns and a string, with a label, so that every kind of slot is used."""
    rng = np.random.default_rng(3)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "w2"], ["z"]),
            helper.make_node("Softmax", ["z"], ["p"], axis=1),
            helper.make_node("Identity", ["s"], ["label"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 3]), helper.make_tensor_value_info("s", 8, ["n"])],
        [helper.make_tensor_value_info("p", 1, ["n", 2]), helper.make_tensor_value_info("label", 8, ["n"])],
        [
            numpy_helper.from_array(rng.normal(size=(3, 5)).astype("f4"), "w1"),
            numpy_helper.from_array(rng.normal(size=(5, 2)).astype("f4"), "w2"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"team": "payments", "trained": "2026-11-01"})
    return model.SerializeToString()


def test_the_library_is_the_one_of_the_installed_package():
    """Version string, file name and Python package agree."""
    version = ort.start()
    assert version == onnxruntime.__version__
    assert re.search(r"(?<=[.])\d+[.]\d+[.]\d+", Path(ort.library_path()).name)[0] == version


@pytest.mark.parametrize(("optimize", "arena", "mem_pattern"), [*itertools.product([False, True], repeat=3)])
def test_every_session_option_gives_the_bits_of_the_python_api(optimize, arena, mem_pattern):
    """Graph level, arena and memory plans reach their own slots: a session opens and computes what Python's does."""
    model = OrtModel(classifier(), optimize=optimize, arena=arena, mem_pattern=mem_pattern)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    theirs = onnxruntime.InferenceSession(classifier(), options, providers=["CPUExecutionProvider"])
    assert model.metadata == theirs.get_modelmeta().custom_metadata_map
    assert [name for name, _, _ in model.inputs] == [node.name for node in theirs.get_inputs()]
    rng = np.random.default_rng(0)
    for n_rows in (1, 2, 17, 1, 600):
        labels = np.array([f"é\0{i}" for i in range(n_rows)], object)
        feeds = {"x": rng.normal(size=(n_rows, 3)).astype("f4"), "s": labels}
        want = theirs.run(None, feeds)
        got = model.run(feeds)
        assert got["p"].tobytes() == want[0].tobytes()
        assert got["label"].tolist() == want[1].tolist()


def test_every_dtype_number_is_that_of_onnx():
    """The numbers in models, in the C API and here are the same, and so are the NumPy types behind them."""
    for number, dtype in ort.NUMPY_DTYPES.items():
        assert onnx.helper.tensor_dtype_to_np_dtype(number) == dtype
    assert ort.STRING == onnx.TensorProto.STRING


def test_opening_twice_is_refused_and_an_unopened_model_does_not_crash():
    """The object is opened by its constructor and by nothing else."""
    model = OrtModel(classifier())
    with pytest.raises(TypeError, match="opened once"):
        model.__init__(classifier())
    empty = OrtModel.__new__(OrtModel)
    for call in (lambda: empty.run({}), lambda: empty.select_score(0), lambda: empty.scores([])):
        with pytest.raises(Exception, match=r"not opened|no score"):
            call()
