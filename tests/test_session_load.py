"""Opening a model: what is refused and why, what is told about it, which implementation is taken."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from retailinfer._native import ort
from retailinfer.errors import ConfigError, ModelError
from retailinfer.runtime import session as session_module
from retailinfer.runtime.fallback import PythonSession
from retailinfer.runtime.session import open_session

BACKENDS = ("c", "python")


def model_proto(nodes=None, *, inputs=None, outputs=None, initializers=(), **keywords):
    """y = x + w unless told otherwise."""
    graph = helper.make_graph(
        nodes or [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        inputs or [helper.make_tensor_value_info("x", 1, ["rows", 3])],
        outputs or [helper.make_tensor_value_info("y", 1, ["rows", 3])],
        list(initializers) or [numpy_helper.from_array(np.ones(3, np.float32), "w")],
    )
    keywords.setdefault("opset_imports", [helper.make_opsetid("", 17)])
    return helper.make_model(graph, ir_version=8, **keywords)


def external(tensor, location="weights.bin"):
    """The same tensor, said to be in another file."""
    moved = TensorProto()
    moved.CopyFrom(tensor)
    moved.ClearField("raw_data")
    moved.data_location = TensorProto.EXTERNAL
    moved.external_data.add(key="location", value=location)
    return moved


WEIGHT = numpy_helper.from_array(np.ones(3, np.float32), "w")


def inside_subgraph(tensor):
    """A model that holds `tensor` in a branch of an If inside a branch of an If."""

    def branch(name, nodes, initializers=()):
        outputs = [helper.make_tensor_value_info("b", 1, None)]
        return helper.make_graph(nodes, name, [], outputs, list(initializers))

    plain = helper.make_node(
        "Constant", [], ["b"], value=numpy_helper.from_array(np.ones(3, np.float32), "c")
    )
    inner = helper.make_node(
        "If", ["p"], ["b"],
        then_branch=branch("t2", [helper.make_node("Identity", ["w"], ["b"])], [tensor]),
        else_branch=branch("e2", [plain]),
    )  # fmt: skip
    outer = helper.make_node(
        "If", ["p"], ["y"], then_branch=branch("t", [inner]), else_branch=branch("e", [plain])
    )
    return model_proto(
        [outer],
        inputs=[helper.make_tensor_value_info("p", 9, [])],
        outputs=[helper.make_tensor_value_info("y", 1, None)],
        initializers=[WEIGHT],
    )


def as_constant(tensor):
    """A model that holds `tensor` in the attribute of a node."""
    return model_proto(
        [helper.make_node("Constant", [], ["k"], value=tensor), helper.make_node("Add", ["x", "k"], ["y"])]
    )


def in_function(tensor):
    """A model that holds `tensor` inside a model-local function."""
    function = helper.make_function(
        "mine", "Plus", ["a"], ["b"],
        [helper.make_node("Constant", [], ["k"], value=tensor), helper.make_node("Add", ["a", "k"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    return model_proto(
        [helper.make_node("Plus", ["x"], ["y"], domain="mine")],
        functions=[function],
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)],
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "build",
    [lambda tensor: model_proto(initializers=[tensor]), as_constant, inside_subgraph, in_function],
    ids=["initializer", "constant", "subgraph", "function"],
)
def test_weights_in_other_files_are_refused_wherever_they_hide(build, backend, tmp_path, monkeypatch):
    """A model given as bytes never reads a file, even when the file is there, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("weights.bin").write_bytes(np.ones(3, np.float32).tobytes())
    assert open_session(build(WEIGHT).SerializeToString(), backend=backend)
    with pytest.raises(ModelError, match="external data"):
        open_session(build(external(WEIGHT)).SerializeToString(), backend=backend)


@pytest.mark.parametrize("location", ["/etc/passwd", "../x", "*/_ORT_MEM_ADDR_/*"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_place_of_external_data_does_not_matter(location, backend):
    """Absolute, outside, or the marker for memory addresses: refused before ONNX Runtime sees it."""
    with pytest.raises(ModelError, match="external data"):
        open_session(
            model_proto(initializers=[external(WEIGHT, location)]).SerializeToString(), backend=backend
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("model_bytes", "message"),
    [
        (b"", "0 bytes"),
        (b"hello world", "not one"),
        (b"\xff" * 64, "not one"),
        (bytes(4) + b"ORTM" + bytes(64), "ORT format"),
        ("model.onnx", "got `str`"),
        (None, "got `NoneType`"),
    ],
)
def test_bytes_that_are_no_model_are_refused(model_bytes, message, backend):
    """Empty, garbage, another format, another type: one error, which says what came."""
    with pytest.raises(ModelError, match=message):
        open_session(model_bytes, backend=backend)


@given(
    cut=st.integers(0, 10_000),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3),
)
def test_a_truncated_or_altered_model_is_opened_or_refused(cut, flips):
    """No bytes bring the process down, and no other error comes out."""
    model_bytes = bytearray(inside_subgraph(WEIGHT).SerializeToString())
    for at, value in flips:
        model_bytes[at % len(model_bytes)] = value
    message = ""
    try:
        open_session(bytes(model_bytes[: cut % (len(model_bytes) + 1)]))
    except ModelError as exc:
        message = str(exc)
    assert "onnxruntime_src" not in message


def test_nesting_without_end_is_refused():
    """A thousand subgraphs inside each other would overflow a stack."""
    graph = model_proto().graph.SerializeToString()

    def message(field, body):
        size, n = b"", len(body)
        while n > 127:
            size, n = size + bytes([n & 127 | 128]), n >> 7
        return bytes([field << 3 | 2]) + size + bytes([n]) + body

    for _ in range(1_000):  # graph { node { attribute { g: graph } } }
        graph = message(1, message(5, message(6, graph)))
    with pytest.raises(ModelError, match="nests"):
        open_session(b"\x08\x08" + message(7, graph))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (model_proto([helper.make_node("Frobnicate", ["x"], ["y"])]), "Frobnicate"),
        (
            model_proto([helper.make_node("PyOp", ["x"], ["y"], domain="ai.onnx.contrib")]),
            "PyOp|ai.onnx.contrib",
        ),
        (model_proto(opset_imports=[helper.make_opsetid("", 999)]), "Opset 999"),
        (model_proto([helper.make_node("Add", ["x", "nowhere"], ["y"])]), "nowhere"),
    ],
    ids=["operator", "domain", "opset", "graph"],
)
def test_what_onnxruntime_refuses_says_what_it_was(proto, message, backend):
    """Unknown operators and domains, opsets of the future, broken graphs: the reason without paths."""
    with pytest.raises(ModelError, match=message) as caught:
        open_session(proto.SerializeToString(), backend=backend)
    assert "onnxruntime_src" not in str(caught.value)


def zipmap():
    """A classifier as skl2onnx writes it by default: probabilities as a sequence of maps."""
    sequence = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, None))
    )
    return model_proto(
        [helper.make_node("ZipMap", ["x"], ["p"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])],
        outputs=[helper.make_value_info("p", sequence)],
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)],
    )


def sequence_input():
    """A model that takes a sequence of tensors."""
    return model_proto(
        [helper.make_node("SequenceAt", ["s", "zero"], ["y"])],
        inputs=[
            helper.make_value_info(
                "s", helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None))
            )
        ],
        initializers=[numpy_helper.from_array(np.int64(0), "zero")],
    )


def optional_output():
    """A model that gives an optional value."""
    tensor = helper.make_tensor_type_proto(1, ["rows", 3])
    return model_proto(
        [helper.make_node("Optional", ["x"], ["o"])],
        outputs=[helper.make_value_info("o", helper.make_optional_type_proto(tensor))],
    )


def bfloat16_output():
    """A model whose output NumPy cannot hold."""
    return model_proto(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)],
        outputs=[helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["rows", 3])],
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (zipmap, "output `p` is a sequence; unwrap ZipMap when packing"),
        (sequence_input, "input `s` is a sequence; export the model"),
        (optional_output, "output `o` is an optional value"),
        (bfloat16_output, "output `y` is bfloat16, which NumPy does not have"),
    ],
)
def test_inputs_and_outputs_that_are_no_arrays_are_named(build, message, backend):
    """Sequences, maps, optional values and dtypes without NumPy are refused when the model is opened."""
    with pytest.raises(ModelError, match=message):
        open_session(build().SerializeToString(), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_tells_what_it_takes_and_gives(backend):
    """Names, dtypes, shapes and metadata as in the file; initialisers that can be overridden are no inputs."""
    proto = model_proto(
        [helper.make_node("Add", ["x", "w"], ["été"]), helper.make_node("Cast", ["x"], ["label"], to=8)],
        inputs=[
            helper.make_tensor_value_info("x", 1, ["rows", None, 3]),
            helper.make_tensor_value_info("w", 1, [3]),
        ],
        outputs=[
            helper.make_tensor_value_info("été", 1, None),
            helper.make_tensor_value_info("label", 8, [2, "k", 3]),
        ],
    )
    helper.set_model_props(proto, {"features": "a,b,c", "clé": "valeur ✓", "empty": ""})
    session = open_session(proto.SerializeToString(), backend=backend)
    assert session.inputs == (("x", 1, (None, None, 3)),)
    assert session.outputs[0][:2] == ("été", 1)
    assert session.outputs[1] == ("label", 8, (2, None, 3))
    assert session.metadata == {"features": "a,b,c", "clé": "valeur ✓", "empty": ""}
    assert session.backend == backend
    assert session.version.split(".") >= ["1", "22"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_bytes_may_change_after_opening(kind, backend):
    """The session keeps its own copy of the weights."""
    buffer = bytearray(model_proto().SerializeToString())
    session = open_session(bytes(buffer) if kind is bytes else kind(buffer), backend=backend)
    buffer[:] = bytes(len(buffer))
    assert session.run({"x": np.zeros((1, 3), np.float32)})["y"].tolist() == [[1.0, 1.0, 1.0]]


def test_optimisation_can_be_switched_off():
    """Both levels give a working session; the sums are those of the graph as written."""
    for backend in BACKENDS:
        session = open_session(model_proto().SerializeToString(), backend=backend, optimize=False)
        assert session.run({"x": np.zeros((2, 3), np.float32)})["y"].sum() == 6.0


def test_denormals_are_not_flushed():
    """The smallest numbers pass: the flush-to-zero mode of the processor is not changed by a session."""
    tiny = np.full((1, 3), 1e-40, np.float32)
    zero = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    for backend in BACKENDS:
        session = open_session(model_proto(initializers=[zero]).SerializeToString(), backend=backend)
        assert session.run({"x": tiny})["y"].tobytes() == tiny.tobytes()
    assert (tiny + np.float32(0)).tobytes() == tiny.tobytes()


def test_the_c_library_is_taken_where_it_is():
    """`auto` and `c` use the library, `python` the package."""
    model_bytes = model_proto().SerializeToString()
    assert [open_session(model_bytes, backend=name).backend for name in ("auto", "c", "python")] == [
        "c",
        "c",
        "python",
    ]
    assert isinstance(open_session(model_bytes, backend="python"), PythonSession)
    with pytest.raises(ConfigError, match="rust"):
        open_session(model_bytes, backend="rust")


def test_without_the_library_the_fallback_is_taken_and_said_once(monkeypatch):
    """One warning for the process; the answers are the same."""
    monkeypatch.setattr(ort, "library_path", lambda: None)
    monkeypatch.setattr(session_module, "_said_fallback", False)
    model_bytes = model_proto().SerializeToString()
    with pytest.warns(RuntimeWarning, match="no C library"):
        assert open_session(model_bytes).backend == "python"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_session(model_bytes).backend == "python"


@pytest.mark.parametrize("backend", BACKENDS)
def test_settings_from_model_files_are_refused(backend, monkeypatch):
    """With ORT_LOAD_CONFIG_FROM_MODEL a model could choose its own session settings."""
    if backend == "c":
        monkeypatch.setattr(ort, "guard_environment", ort.guard_environment)
        monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
        with pytest.raises(ConfigError, match="ORT_LOAD_CONFIG_FROM_MODEL"):
            ort.guard_environment()
    else:
        monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
        with pytest.raises(ConfigError, match="ORT_LOAD_CONFIG_FROM_MODEL"):
            open_session(model_proto().SerializeToString(), backend="python")


def test_the_newest_library_is_found_without_importing(monkeypatch, tmp_path):
    """Of several files the highest version wins, 1.9 is older than 1.10, and plug-ins are not the library."""
    capi = tmp_path / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    for name in ("libonnxruntime.so.1.9.0", "libonnxruntime.so.1.32.0", "libonnxruntime_providers_shared.so"):
        (capi / name).touch()

    class Spec:
        submodule_search_locations = (str(tmp_path / "onnxruntime"),)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Spec)
    assert Path(ort.library_path()).name == "libonnxruntime.so.1.32.0"
    for path in capi.iterdir():
        path.unlink()
    assert ort.library_path() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install onnxruntime"):
        ort.library_path()


def test_messages_are_cleaned():
    """Paths, C++ signatures and conditions go; what happened stays, on one line, cut between characters."""
    text = (
        "Non-zero status code returned while running Add node. Name:'n' Status Message: "
        "/onnxruntime_src/onnxruntime/core/framework/op.cc:540 void onnxruntime::Broadcast(ptrdiff_t, T) "
        "[with T = float] axis == 1 || axis == largest was false. Attempting to broadcast\n an axis by 2"
    )
    assert ort.clean_message(text) == (
        "Non-zero status code returned while running Add node. Name:'n' Status Message: "
        "Attempting to broadcast an axis by 2"
    )
    thrown = "Failed: /onnxruntime_src/core/x.cc:9 onnxruntime::A::A(const std::string&)::<lambda()> no such locale"
    assert ort.clean_message(thrown) == "Failed: no such locale"
    cut = ort.clean_message("é" * 600)
    assert cut == "é" * (len(cut.encode()) // 2)
    assert 500 <= len(cut.encode()) <= 511


def test_onnx_is_not_needed_to_open_a_model():
    """The walk over a model's bytes is our own; `onnx` is a package for packing."""
    assert onnx.__name__ not in (ort.__dict__.keys() | session_module.__dict__.keys())
