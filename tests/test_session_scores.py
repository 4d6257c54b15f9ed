"""Scores of a batch: which outputs can be one, on both implementations and through the lane of the native callers."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from retailinfer._native.ort import Lane, OrtModel
from retailinfer.errors import ModelError, ScoreError, SessionError, ShapeError
from retailinfer.runtime.session import open_session

BACKENDS = ("c", "python")
WIDTH = 4


def model_bytes(nodes, outputs, *, inputs=None, initializers=()):
    """A model of float rows `x` (?, 4), unless told otherwise. outputs: name -> (dtype, declared shape)."""
    inputs = {"x": (1, [None, WIDTH])} if inputs is None else inputs
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *entry) for name, entry in inputs.items()],
        [helper.make_tensor_value_info(name, *entry) for name, entry in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(initializers).items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


def shaped(dtype, declared, actual):
    """x cast to a dtype, the first columns taken, brought into the shape `actual` (0 keeps a dimension)."""
    width = int(np.prod(actual[1:], initial=1))
    return model_bytes(
        [
            helper.make_node("Slice", ["x", "zero", "width", "one"], ["part"]),
            helper.make_node("Cast", ["part"], ["cells"], to=dtype),
            helper.make_node("Reshape", ["cells", "shape"], ["y"]),
        ],
        {"y": (dtype, declared)},
        initializers={
            "zero": np.array([0]),
            "one": np.array([1]),
            "width": np.array([width]),
            "shape": np.array([-1, *actual[1:]]),
        },
    )


def rows(n_rows, seed=0):
    """Rows of halves, so that every dtype shows a cast; rotating through signs."""
    return np.round(np.random.default_rng(seed).normal(size=(n_rows, WIDTH)) * 8).astype(np.float32) / 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_rows", [0, 1, 2, 7, 511, 512, 513, 5000])
@pytest.mark.parametrize("dtype", [1, 11, 7], ids=["float32", "float64", "int64"])
@pytest.mark.parametrize(
    ("declared", "actual", "column"),
    [
        ([None], (0,), 0),
        ([None, 1], (0, 1), 0),
        ([None, 2], (0, 2), 1),
        ([None, 4], (0, 4), 3),
        ([None, 1, 1], (0, 1, 1), 0),
        ([None, None], (0, 3), 2),
        (None, (0, 3), 1),
        ([1], (0,), 0),
        ([1, 2], (0, 2), 1),
    ],
    ids=["n", "n1", "n2", "n4", "n11", "n?", "undeclared", "declared-1", "declared-1-2"],
)
def test_a_column_of_an_output_is_the_score(declared, actual, column, dtype, n_rows, backend):
    """Shapes (n,), (n,1), (n,k), (n,1,1) in three dtypes, rounded to float32 once, for any number of rows."""
    session = open_session(shaped(dtype, declared, actual), backend=backend)
    session.select_score(0, column)
    batch = rows(n_rows, seed=n_rows)
    got = session.scores([batch])
    want = batch[:, column] if dtype != 7 else np.trunc(batch[:, column])
    assert got.dtype == np.float32
    assert got.shape == (n_rows,)
    assert got.tobytes() == (want + 0.0).astype(np.float32).tobytes() or got.tolist() == want.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("declared", "actual"),
    [
        ([None, 2], (0, 4)),
        ([None, 1], (0,)),
        ([None], (0, 2)),
        ([None, 3, 1], (0, 1, 4)),
        ([None, 1], (0, 4)),
    ],
)
def test_a_wrong_declaration_of_the_output_does_no_harm(declared, actual, backend):
    """Converters declare shapes that their models do not give; what counts is what the model gives."""
    column = min(1, actual[-1] - 1) if len(actual) > 1 else 0
    session = open_session(shaped(1, declared, actual), backend=backend)
    session.select_score(0, column)
    for n_rows in (1, 5):
        batch = rows(n_rows)
        assert session.scores([batch]).tolist() == batch[:, column].tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("declared", "actual", "column", "message"),
    [
        ([None, 2], (0, 2), 2, "column 2 of output `y`, which has 2 columns"),
        ([None], (0,), 1, "column 1 of output `y`, which has 1 columns"),
        (None, (0, 2), 7, "column 7 of output `y`, which has 2 columns"),
    ],
)
def test_a_run_whose_output_holds_no_such_score_is_an_error(declared, actual, column, message, backend):
    """The column and the shape are checked again on what the model gave."""
    session = open_session(shaped(1, declared, actual), backend=backend)
    session.select_score(0, column)
    with pytest.raises(SessionError, match=message):
        session.scores([rows(3)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_matrix_per_row_holds_no_score(backend):
    """An output of shape (n, 2, 2) is refused when the score is chosen, or when it comes, if its shape is not known."""
    with pytest.raises(ModelError, match="3 dimensions"):
        open_session(shaped(1, [None, 2, 2], (0, 2, 2)), backend=backend).select_score(0)
    model = model_bytes(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        {"y": (1, None)},
        inputs={"x": (1, [None, WIDTH]), "shape": (7, [3])},
    )
    session = open_session(model, backend=backend)
    session.select_score(0)
    with pytest.raises(SessionError, match="one score per row for 3 rows"):
        session.scores([rows(3), np.array([3, 2, 2])])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_rows", [1, 4])
def test_an_output_with_another_number_of_rows_is_an_error(n_rows, backend):
    """A mean over the batch is no score per row."""
    model = model_bytes(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=1)], {"y": (1, [None, WIDTH])}
    )
    session = open_session(model, backend=backend)
    session.select_score(0)
    if n_rows == 1:
        assert session.scores([rows(1)]).tolist() == rows(1)[:, 0].tolist()
    else:
        with pytest.raises(SessionError, match=f"for {n_rows} rows"):
            session.scores([rows(n_rows)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_score_without_dimensions_is_that_of_one_row(backend):
    """Models that squeeze their output give a scalar for a single row."""
    model = model_bytes([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], {"y": (1, [])})
    session = open_session(model, backend=backend)
    session.select_score(0)
    assert session.scores([np.ones((1, WIDTH), np.float32)]).tolist() == [4.0]
    with pytest.raises(SessionError, match="for 2 rows"):
        session.scores([np.ones((2, WIDTH), np.float32)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("n_rows", "row"), [(1, 0), (5, 3), (600, 599)])
def test_a_score_that_is_no_number_is_a_score_error(bad, n_rows, row, backend):
    """NaN and infinity never leave as scores; the error names the row."""
    session = open_session(shaped(1, [None, 2], (0, 2)), backend=backend)
    session.select_score(0, 1)
    batch = rows(n_rows)
    batch[row, 1] = bad
    with pytest.raises(ScoreError, match=rf"got -?(nan|inf) from output `y` in row {row}"):
        session.scores([batch])
    batch[row, 1] = 0
    batch[row, 0] = bad
    assert session.scores([batch])[row] == 0, "only the chosen column is a score"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_double_that_float32_cannot_hold_is_a_score_error(backend):
    """1e300 would become infinity."""
    model = model_bytes(
        [helper.make_node("Cast", ["x"], ["d"], to=11), helper.make_node("Mul", ["d", "big"], ["y"])],
        {"y": (11, [None, WIDTH])},
        initializers={"big": np.float64(1e300)},
    )
    session = open_session(model, backend=backend)
    session.select_score(0)
    with pytest.raises(ScoreError, match="inf"):
        session.scores([np.ones((1, WIDTH), np.float32)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_heads_come_in_the_order_they_were_chosen(backend):
    """Two columns of one output and one of another: one block of rows each."""
    model = model_bytes(
        [helper.make_node("Neg", ["x"], ["minus"]), helper.make_node("Cast", ["x"], ["wide"], to=11)],
        {"minus": (1, [None, WIDTH]), "wide": (11, [None, WIDTH])},
    )
    session = open_session(model, backend=backend)
    session.select_scores([(1, 3), (0, 0), (1, 1), (0, 2)])
    assert session.n_heads == 4
    for n_rows in (1, 9, 700):
        batch = rows(n_rows)
        want = np.stack([batch[:, 3], -batch[:, 0], batch[:, 1], -batch[:, 2]])
        assert (session.scores([batch]) == want).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_chosen_output_is_computed_for(backend):
    """String labels beside the score are never asked for."""
    model = model_bytes(
        [
            helper.make_node("Identity", ["x"], ["y"]),
            helper.make_node("Cast", ["x"], ["label"], to=TensorProto.STRING),
        ],
        {"label": (8, [None, WIDTH]), "y": (1, [None, WIDTH])},
    )
    session = open_session(model, backend=backend)
    session.select_score(1, 2)
    assert session.scores([rows(3)]).tolist() == rows(3)[:, 2].tolist()
    with pytest.raises(ModelError, match="output `label` is string"):
        session.select_score(0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heads", [[], [(0, 0)] * 17, [(1, 0)], [(-1, 0)], [(0, -1)]])
def test_heads_that_cannot_be_are_refused(heads, backend):
    """No head, too many, no such output, a negative column."""
    session = open_session(shaped(1, [None, 2], (0, 2)), backend=backend)
    with pytest.raises(ModelError):
        session.select_scores(heads)
    with pytest.raises(SessionError, match="no score is chosen"):
        session.scores([rows(1)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_inputs_of_many_dtypes_make_one_row(backend):
    """Three hundred inputs, one a column as converters make them, strings among them."""
    names = [f"f{i}" for i in range(300)]
    kinds = [(1, np.float32), (7, np.int64), (11, np.float64), (9, np.bool_), (8, object)]
    inputs = {name: (kinds[i % 5][0], [None, 1]) for i, name in enumerate(names)}
    nodes = [helper.make_node("Cast", [name], [f"c{name}"], to=1) for name in names]
    nodes.append(helper.make_node("Concat", [f"c{name}" for name in names], ["all"], axis=1))
    nodes.append(helper.make_node("ReduceSum", ["all", "axis"], ["y"], keepdims=1))
    session = open_session(
        model_bytes(nodes, {"y": (1, [None, 1])}, inputs=inputs, initializers={"axis": np.array([1])}),
        backend=backend,
    )
    session.select_score(0)
    for n_rows in (1, 600):
        column = np.arange(n_rows).reshape(-1, 1) % 2
        tensors = [
            column.astype(str).astype(object) if kinds[i % 5][0] == 8 else column.astype(kinds[i % 5][1])
            for i in range(300)
        ]
        assert session.scores(tensors).tolist() == (column[:, 0] * 300.0).tolist()
        assert session.scores(tensors, gil="release").tolist() == (column[:, 0] * 300.0).tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_must_agree_between_inputs(backend):
    """Two inputs with another number of rows, or one array too few, never reach the model; one row is a context for all."""
    model = model_bytes(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        {"y": (1, [None, 1])},
        inputs={"a": (1, [None, 1]), "b": (1, [None, 1])},
    )
    session = open_session(model, backend=backend)
    session.select_score(0)
    with pytest.raises(ShapeError, match=r"Expected 3 rows .* at `\$\.b`"):
        session.scores([np.zeros((3, 1), np.float32), np.zeros((2, 1), np.float32)])
    for rows in ((3, 1), (1, 3)):
        assert session.scores([np.ones((n, 1), np.float32) for n in rows]).tolist() == [2.0] * 3
    with pytest.raises(ShapeError, match="Expected 2 arrays"):
        session.scores([np.zeros((2, 1), np.float32)])


@pytest.mark.parametrize("n_rows", [1, 3, 512, 513])
def test_a_lane_sees_what_is_written_into_its_arrays(n_rows):
    """The memory of a lane is read anew at each run; a failed run does not spoil the next."""
    model = OrtModel(shaped(1, [None, 2], (0, 2)))
    model.select_score(0, 1)
    batch = rows(n_rows)
    lane = model.lane([batch])
    assert isinstance(lane, Lane)
    for seed in range(5):
        batch[:] = rows(n_rows, seed)
        got = lane.scores()
        assert got == batch[0, 1] if n_rows == 1 else got == batch[:, 1].tolist()
        batch[0, 1] = np.nan
        with pytest.raises(ScoreError):
            lane.scores()


@pytest.mark.parametrize(
    "model",
    [shaped(1, [None, 2], (0, 4)), shaped(1, None, (0, 2)), shaped(1, [None, None], (0, 2))],
    ids=["wrong declaration", "no declaration", "dynamic"],
)
def test_a_lane_works_where_the_output_cannot_be_pinned(model):
    """The lane falls back to memory of ONNX Runtime and stays right."""
    session = OrtModel(model)
    session.select_score(0, 1)
    batch = rows(1)
    lane = session.lane([batch])
    for seed in range(4):
        batch[:] = rows(1, seed)
        assert lane.scores() == batch[0, 1]


def test_a_lane_with_strings_reads_them_at_each_run():
    """Strings are copied into every run, so a lane with them is an ordinary run."""
    model = OrtModel(
        model_bytes(
            [helper.make_node("Cast", ["s"], ["y"], to=1)],
            {"y": (1, [None, 1])},
            inputs={"s": (8, [None, 1])},
        )
    )
    model.select_score(0)
    lane = model.lane([np.array([["2.5"]], object)])
    assert [lane.scores(), lane.scores()] == [2.5, 2.5]


def test_a_lane_keeps_its_model_also_in_a_garbage_collected_cycle():
    """A cycle through a lane is collected without touching freed memory."""

    class Holder:
        pass

    for _ in range(50):
        model = OrtModel(shaped(1, [None, 2], (0, 2)))
        model.select_score(0, 1)
        holder = Holder()
        holder.me, holder.lane = holder, model.lane([rows(1)])
        gone = weakref.ref(holder)
        del holder, model
        gc.collect()
        assert gone() is None
