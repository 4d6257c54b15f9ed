"""Files of trees: what is written is read back; anything else is refused by a typed error before anything runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trees_kernels import FEATURES, random_forest, rows_for

from retailinfer.errors import ConfigError, FeatureTypeError, ModelError, SessionError, ShapeError
from retailinfer.runtime.trees import Forest, TreeSession, decode_forest, encode_forest


def a_forest(**changes):
    """A small forest with one sum that becomes two probabilities."""
    arrays, _ = random_forest(4, n_trees=6)
    known = {
        "input": "x",
        "output": "p",
        "n_features": FEATURES,
        "arrays": arrays,
        "n_columns": 2,
        "post": "sigmoid",
    }
    return Forest(**(known | changes))


def test_forest_comes_back_from_its_file_as_it_was():
    """Header and arrays survive, and so do the answers."""
    forest = a_forest(doubles=True, post="logistic", post_scale=0.7, base_first=True, average=True)
    again = decode_forest(encode_forest(forest))
    for name in Forest.__struct_fields__:
        if name != "arrays":
            assert getattr(again, name) == getattr(forest, name)
    for name, array in forest.arrays.items():
        assert again.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(again.arrays[name], array)
    assert encode_forest(again) == encode_forest(forest)


def test_every_length_but_the_right_one_is_refused():
    """A file cut anywhere, or with a byte too many, does not load."""
    data = encode_forest(a_forest())
    for size in [*range(0, len(data), 7), len(data) - 1]:
        with pytest.raises(ModelError):
            TreeSession(data[:size])
    with pytest.raises(ModelError, match="bytes of trees"):
        TreeSession(data + b"\0")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_altered_bytes_are_refused_or_harmless(data):
    """Whatever a byte becomes, the file is refused by a ModelError, or answers."""
    file = bytearray(encode_forest(a_forest()))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        session = TreeSession(bytes(file), calibrate=False)
    except ModelError:
        return
    session.model.predict(np.zeros((3, session.forest.n_features), np.float32))


def test_session_answers_like_any_model():
    """Inputs, outputs, scores and errors are those of the sessions of ONNX models."""
    arrays, grid = random_forest(4, n_trees=6)
    session = TreeSession(encode_forest(a_forest(arrays=arrays)))
    rows = rows_for(4, grid, 9)
    assert (session.inputs, session.outputs) == ((("x", 1, (None, FEATURES)),), (("p", 1, (None, 2)),))
    made = session.run({"x": rows})["p"]
    assert made.shape == (9, 2)
    with pytest.raises(SessionError, match="no score is chosen"):
        session.scores([rows])
    session.select_score(0, 1)
    np.testing.assert_array_equal(session.scores([rows]), made[:, 1])
    np.testing.assert_array_equal(session.scores([rows.astype(">f4")]), made[:, 1])
    with pytest.raises(ModelError, match="one score out of 2 columns"):
        session.select_score(0, 2)
    with pytest.raises(FeatureTypeError, match="Expected the array `x`"):
        session.run({"y": rows})
    with pytest.raises(ConfigError, match="Expected the output `p`"):
        session.run({"x": rows}, ["q"])
    with pytest.raises(FeatureTypeError, match="Expected float32, got float64"):
        session.scores([rows.astype(np.float64)])
    with pytest.raises(ShapeError, match=rf"\(rows, {FEATURES}\)"):
        session.scores([rows[:, 1:]])
    with pytest.raises(FeatureTypeError, match="NumPy array"):
        session.scores([rows.tolist()])


def test_file_that_claims_many_features_and_strange_nodes_loads_without_work():
    """16 million features cost nothing, and nodes that no tree reaches are not looked at when kernels are timed."""
    forest = a_forest()
    assert TreeSession(encode_forest(a_forest(n_features=1 << 24))).model.nbytes < 1 << 18
    one = len(forest.arrays["feature"])
    strange = {"feature": FEATURES + 3, "category": 10**6, "threshold": np.nan}
    arrays = {
        name: np.append(array, array.dtype.type(strange.get(name, 0))) if len(array) == one else array
        for name, array in forest.arrays.items()
    }
    rows = rows_for(1, np.zeros(1), 5)
    same = TreeSession(encode_forest(a_forest(arrays=arrays))).run({"x": rows})["p"]
    np.testing.assert_array_equal(same, TreeSession(encode_forest(forest)).run({"x": rows})["p"])
