"""What may enter a model: every dtype, rank and layout, on both implementations; everything else is a typed error."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper

from retailinfer.errors import (
    ConfigError,
    FeatureMissingError,
    FeatureRangeError,
    FeatureTypeError,
    SessionError,
    ShapeError,
)
from retailinfer.runtime.session import open_session

BACKENDS = ("c", "python")
DTYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10,
    "float64": 11, "uint32": 12, "uint64": 13,
}  # fmt: skip
SESSIONS = {}


def identity(dtype, shape, backend):
    """A session of y = x for one dtype number and shape; opened once."""
    key = (dtype, tuple(shape) if shape is not None else None, backend)
    if key not in SESSIONS:
        graph = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", dtype, shape)],
            [helper.make_tensor_value_info("y", dtype, shape)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        SESSIONS[key] = open_session(model.SerializeToString(), backend=backend)
    return SESSIONS[key]


def echo(value, *, dtype, shape, backend):
    """Send one array through y = x."""
    return identity(dtype, shape, backend).run({"x": value})["y"]


def same_bits(got, want):
    """Same dtype, shape and bytes."""
    return got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", sorted(DTYPES))
@given(data=st.data())
def test_any_cells_of_any_rank_come_back_with_the_same_bits(name, backend, data):
    """Every dtype and rank from 0 to 6, empty arrays included, crosses without one bit changed (NaN payloads too)."""
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=4))
    size = int(np.prod(shape)) * np.dtype(name).itemsize
    cells = data.draw(st.binary(min_size=size, max_size=size))
    if name == "bool":
        cells = bytes(byte & 1 for byte in cells)
    array = np.frombuffer(cells, name).reshape(shape)
    got = echo(array, dtype=DTYPES[name], shape=[None] * len(shape), backend=backend)
    assert same_bits(got, array)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    texts=hnp.arrays(
        object, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), elements=st.text()
    )
)
def test_strings_come_back_whole(texts, backend):
    """Embedded NULs, empty strings and every script survive, in any rank."""
    got = echo(texts, dtype=8, shape=[None] * texts.ndim, backend=backend)
    assert got.dtype == object
    assert got.shape == texts.shape
    assert got.ravel().tolist() == texts.ravel().tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_numpy_text_arrays_are_strings(backend):
    """Dtype U is taken like an object array of str."""
    got = echo(np.array([["a", "été"], ["", "日本語"]]), dtype=8, shape=[None, None], backend=backend)
    assert got.tolist() == [["a", "été"], ["", "日本語"]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["float32", "float64", "int64", "uint16"])
@pytest.mark.parametrize(
    "layout",
    [
        lambda array: array.astype(array.dtype.newbyteorder(">")),
        lambda array: array.astype(array.dtype.newbyteorder("<")),
        np.asfortranarray,
        lambda array: np.repeat(array, 2, axis=1)[:, ::2],
        lambda array: array[::-1, ::-1].copy()[::-1, ::-1],
        lambda array: np.broadcast_to(array[:1], array.shape),
        lambda array: array.view(np.matrix),
        lambda array: (
            np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)
        ),
    ],
    ids=["big-endian", "little-endian", "fortran", "strided", "reversed", "broadcast", "matrix", "unaligned"],
)
def test_layout_and_byte_order_change_no_value(layout, name, backend):
    """onnxruntime itself computes garbage from big-endian arrays; here the values arrive, whatever their layout."""
    array = layout(np.arange(12).reshape(3, 4).astype(name))
    want = np.ascontiguousarray(array, dtype=name)
    assert same_bits(echo(array, dtype=DTYPES[name], shape=[None, 4], backend=backend), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_read_only_array_is_read_and_not_kept(backend):
    """The caller's array is neither written nor handed back."""
    array = np.arange(4, dtype=np.float32)
    array.flags.writeable = False
    got = echo(array, dtype=1, shape=[None], backend=backend)
    assert same_bits(got, array)
    assert not np.shares_memory(got, array)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_numpy_scalar_is_an_array_without_dimensions(backend):
    """`numpy.float32(2)` enters a model that takes a scalar."""
    assert echo(np.float32(2), dtype=1, shape=[], backend=backend) == np.float32(2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        (1, np.zeros(3), "Expected dtype `float32`, got `float64`"),
        (1, np.zeros(3, np.float16), "Expected dtype `float32`, got `float16`"),
        (1, np.zeros(3, np.int32), "Expected dtype `float32`, got `int32`"),
        (1, np.zeros(3, np.complex64), "Expected dtype `float32`, got `complex64`"),
        (1, np.array([1.0, 2.0, None]), "Expected dtype `float32`, got `object`"),
        (1, np.array(["1", "2", "3"]), "Expected dtype `float32`, got `<U1`"),
        (1, [1.0, 2.0, 3.0], r"Expected a NumPy array, got `list` \[1.0, 2.0, 3.0\]"),
        (1, memoryview(b"abc"), "Expected a NumPy array, got `memoryview`"),
        (1, None, "Expected a NumPy array, got `NoneType`"),
        (1, np.ma.masked_array(np.zeros(3, np.float32), [0, 1, 0]), "got a masked one"),
        (
            7,
            np.array(["2024-01-01"] * 3, "datetime64[ns]"),
            r"Expected dtype `int64`, got `datetime64\[ns\]`",
        ),
        (7, np.zeros(3, np.uint64), "Expected dtype `int64`, got `uint64`"),
        (9, np.zeros(3, np.uint8), "Expected dtype `bool`, got `uint8`"),
        (2, np.zeros(3, np.bool_), "Expected dtype `uint8`, got `bool`"),
        (8, np.zeros(3, np.float32), "Expected strings .*, got dtype `float32`"),
        (8, np.array([b"a", b"b", b"c"]), "got dtype `|S1`"),
        (8, np.array(["a", 1, "c"], object), "Expected `str`, got `int` 1"),
        (8, np.array(["a", None, "c"], object), "Expected `str`, got `NoneType` None"),
        (8, np.array(["a", b"b", "c"], object), "Expected `str`, got `bytes` b'b'"),
        (8, np.array(["a", float("nan"), "c"], object), "Expected `str`, got `float` nan"),
    ],
)
def test_another_type_is_named_and_never_cast(dtype, value, expected, backend):
    """A silent cast is a silent wrong answer: the error says what was expected, what came, and for which input."""
    with pytest.raises(FeatureTypeError, match=expected) as caught:
        echo(value, dtype=dtype, shape=[None], backend=backend)
    assert caught.value.path == "$.x"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(4,), (3, 5), (3, 4, 1), (1, 12), ()])
def test_another_shape_is_named(shape, backend):
    """Rank and fixed dimensions are compared with the declaration before the model runs."""
    with pytest.raises(ShapeError, match=r"\(\?, 4\)"):
        echo(np.zeros(shape, np.float32), dtype=1, shape=[None, 4], backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_than_eight_dimensions_are_refused_where_none_are_declared(backend):
    """A model without a declared shape takes any rank up to eight."""
    assert echo(np.zeros((1,) * 8, np.float32), dtype=1, shape=None, backend=backend).shape == (1,) * 8
    with pytest.raises(ShapeError, match="at most 8"):
        echo(np.zeros((1,) * 9, np.float32), dtype=1, shape=None, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_text_that_utf8_cannot_hold_is_a_range_error(backend):
    """A lone surrogate is refused with its input's name."""
    with pytest.raises(FeatureRangeError, match=r"lone surrogate .* at `\$\.x`"):
        echo(np.array(["a\ud800"], object), dtype=8, shape=[None], backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_feeds_are_exactly_the_inputs(backend):
    """A missing input and one too many are both errors."""
    session = identity(1, [None], backend)
    with pytest.raises(FeatureMissingError, match=r"\$\.x"):
        session.run({})
    with pytest.raises(ShapeError, match="one more"):
        session.run({"x": np.zeros(1, np.float32), "z": np.zeros(1, np.float32)})


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_and_gil_are_checked(backend):
    """Unknown or repeated output names and another `gil` are configuration errors."""
    session, feeds = identity(1, [None], backend), {"x": np.ones(1, np.float32)}
    assert list(session.run(feeds, ["y"], gil="release")) == ["y"]
    with pytest.raises(ConfigError, match="no output 'z'"):
        session.run(feeds, ["z"])
    with pytest.raises(ConfigError, match="twice"):
        session.run(feeds, ["y", "y"])
    with pytest.raises(ConfigError, match="gil"):
        session.run(feeds, gil="never")


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_rows_pass_through_a_model(backend):
    """No rows in, no rows out."""
    assert echo(np.zeros((0, 4), np.float32), dtype=1, shape=[None, 4], backend=backend).shape == (0, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_failing_operator_is_a_session_error_that_says_where(backend, capfd):
    """The message names the node, has no path of the build machine, and nothing goes to stderr."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"], name="look_up")],
        "g",
        [helper.make_tensor_value_info("i", 7, [None])],
        [helper.make_tensor_value_info("y", 1, [None, 2])],
        [onnx.numpy_helper.from_array(np.zeros((3, 2), np.float32), "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = open_session(model.SerializeToString(), backend=backend)
    with pytest.raises(SessionError, match=r"look_up.*idx=7 must be within") as caught:
        session.run({"i": np.array([7])})
    assert "onnxruntime_src" not in str(caught.value)
    assert "::" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert session.run({"i": np.array([-3])})["y"].tolist() == [[0.0, 0.0]]
    assert capfd.readouterr() == ("", "")
