"""Hostile model files: what is mutated, how, and what must come of it: an answer, Unfit or ModelError, soon.

    python tests/fuzz_models.py catboost --mutants 500 --seed 7      the same mutants every time
    python tests/fuzz_models.py catboost --seconds 600 --seed 7      steered by coverage (atheris), from a corpus that grows
    python tests/fuzz_models.py catboost --replay FILE               one file, as a run left it

Rules:
  * Seeds are files of small models trained here and now; nothing is committed that a trainer could have made.
  * A forest that a parser lets through has to load from its own file, run on any rows, and name leaves that it has.
How it is run: fuzzing.py.
"""

from __future__ import annotations

import copy
import functools
import json
import random
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fuzzing import Target, Way, bytes_mutant, document_mutant, line_mutant, main, number_mutant

__all__ = ["TARGETS"]

FEATURES = 6

# ---- doors -----------------------------------------------------------------------------------------------------------------


def _dtype(data: bytes) -> str:
    """Either, but always the same for the same bytes."""
    return "float32" if _number(data) % 2 else "float64"


def _number(data: bytes) -> int:
    return len(data) + sum(data[:64])


def _door_of_trees(data: bytes):
    from retailinfer.runtime.trees import TreeSession

    return TreeSession(data, calibrate=len(data) % 8 == 0)


def _door_of_graph(data: bytes):
    from retailinfer.authoring.preflight import inspect
    from retailinfer.authoring.trees.onnx_graph import forest_of_graph

    return _session_of(forest_of_graph(inspect(data).data))


def _door_of_file(kind: str, data: bytes):
    from retailinfer.authoring.trees.files import kind_of, parse_file

    kind_of(data)
    return _session_of(parse_file(data, kind, dtype=_dtype(data)).forest)


def _session_of(forest):
    from retailinfer.runtime.trees import TreeSession, encode_forest

    return TreeSession(encode_forest(forest), calibrate=False)


def _refusals() -> dict[type[Exception], str]:
    from retailinfer.authoring.trees import Unfit
    from retailinfer.errors import ModelError

    return {Unfit: "unfit", ModelError: "refused"}


def _answers(session, data: bytes) -> None:
    """Run it on rows of every kind; whatever they are, there is an answer of the right shape."""
    forest = session.forest
    if forest.n_features * len(forest.arrays["roots"]) > 1 << 22 or forest.n_features > 1 << 20:
        return
    rng = np.random.default_rng(_number(data))
    kind = np.float64 if forest.wide else np.float32
    rows = rng.choice(
        np.array([np.nan, np.inf, -np.inf, 0, -0.5, 1, 3, 1e9, 0.25], kind), (9, forest.n_features)
    )
    for n in (1, 9):
        answer = session.run({forest.input: rows[:n]})[forest.output]
        assert answer.shape == (n, forest.n_columns), answer.shape
        assert answer.dtype == np.float32
    leaves = session.model.leaves(rows)
    n_leaves = len(forest.arrays["values"])
    assert leaves.shape == (9, len(forest.arrays["roots"]))
    assert not leaves.size or (leaves.min() >= 0 and leaves.max() < n_leaves)


# ---- seeds -----------------------------------------------------------------------------------------------------------------


@functools.cache
def _training() -> tuple:
    """Rows with missing values and a column of codes; labels of two and of three classes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, FEATURES))
    x[:, 5] = rng.integers(0, 40, 400)
    full = x.copy()
    x[rng.random(x.shape) < 0.05] = np.nan
    x[:, 5] = full[:, 5]
    two = ((full[:, 0] + full[:, 1] > 0) | (full[:, 5] % 3 == 0)).astype(int)
    return x, full, two, np.digitize(full[:, 0] + full[:, 3], [-0.5, 0.6])


@functools.cache
def _lightgbm() -> tuple:
    import lightgbm

    x, _, two, three = _training()
    made = []
    for label, settings in (
        (two, {"objective": "binary", "max_cat_to_onehot": 2, "cat_smooth": 1}),
        (three, {"objective": "multiclass", "num_class": 3}),
        (
            two,
            {
                "objective": "poisson",
                "linear_tree": False,
                "boosting": "rf",
                "bagging_freq": 1,
                "bagging_fraction": 0.5,
            },
        ),
    ):
        known = {"verbose": -1, "num_threads": 1, "num_leaves": 6, "min_data_in_leaf": 5, "seed": 1}
        made.append(
            lightgbm.train(
                known | settings, lightgbm.Dataset(x, label, categorical_feature=[5]), num_boost_round=3
            )
        )
    return tuple(made)


def _seeds_of_lightgbm_text() -> list[bytes]:
    return [one.model_to_string().encode() for one in _lightgbm()]


def _seeds_of_lightgbm_json() -> list[bytes]:
    return [json.dumps(one.dump_model()).encode() for one in _lightgbm()]


@functools.cache
def _xgboost() -> tuple:
    import xgboost

    x, _, two, three = _training()
    made = []
    for label, settings in (
        (two, {"objective": "binary:logistic", "max_cat_to_onehot": 2}),
        (three, {"objective": "multi:softprob", "num_class": 3}),
        (two, {"objective": "rank:pairwise", "booster": "dart", "rate_drop": 0.5}),
    ):
        kinds = ["q"] * 5 + (["c"] if "max_cat_to_onehot" in settings else ["q"])
        rows = xgboost.DMatrix(x, label, feature_types=kinds, enable_categorical=True)
        known = {"nthread": 1, "max_depth": 3, "tree_method": "hist", "seed": 1}
        made.append(xgboost.train(known | settings, rows, num_boost_round=3))
    return tuple(made)


def _seeds_of_xgboost_json() -> list[bytes]:
    return [bytes(one.save_raw("json")) for one in _xgboost()]


def _seeds_of_xgboost_ubjson() -> list[bytes]:
    return [bytes(one.save_raw("ubj")) for one in _xgboost()]


@functools.cache
def _seeds_of_catboost() -> list[bytes]:
    import catboost

    x, full, two, three = _training()
    frame = [[*row[:5], int(row[5])] for row in full.tolist()]
    made = []
    for rows, label, settings in (
        (frame, two, {"loss_function": "Logloss", "cat_features": [5], "one_hot_max_size": 64}),
        (x, three, {"loss_function": "MultiClass"}),
        (x, two, {"loss_function": "RMSE", "grow_policy": "Depthwise"}),
    ):
        known = {
            "iterations": 3,
            "depth": 3,
            "border_count": 8,
            "verbose": 0,
            "thread_count": 1,
            "allow_writing_files": False,
        }
        model = catboost.CatBoost(known | settings).fit(rows, label)
        with tempfile.TemporaryDirectory() as folder:
            model.save_model(f"{folder}/model.json", format="json")
            made.append(Path(f"{folder}/model.json").read_bytes())
    return made


def _seeds_of_onnx() -> list[bytes]:
    from test_trees_onnx import DOUBLE, EQUALS, MODES, grown, v3, v5

    rng = np.random.default_rng(3)

    def trees(*modes):
        return grown(rng, modes=modes or MODES)

    return [
        one.SerializeToString()
        for one in (
            v3(trees()),
            v3(trees(), classes=True, classlabels_int64s=[0, 1, 2], n_targets=3, post_transform="SOFTMAX"),
            v3(grown(rng, modes=EQUALS, tracks=False), rows=DOUBLE, exact=True),
            v5(trees("BRANCH_LEQ", "MEMBER")),
            v5(trees(), n_targets=2, aggregate_function=0),
        )
    ]


def _seeds_of_trees() -> list[bytes]:
    from test_trees_kernels import random_forest

    from retailinfer.runtime.trees import Forest, encode_forest

    made = []
    for seed, settings, how in (
        (1, {}, {"n_columns": 2, "post": "sigmoid"}),
        (2, {"rules": True}, {"doubles": True, "post": "logistic", "average": True}),
        (3, {"n_outputs": 3, "width": 3}, {"n_outputs": 3, "n_columns": 3, "post": "softmax", "norm": "l1"}),
        (4, {"wide": True, "rules": True}, {"wide": True, "base_first": True, "doubles": True}),
    ):
        arrays, _ = random_forest(seed, n_trees=4, depth=3, **settings)
        forest = Forest(input="x", output="p", n_features=7, arrays=arrays, **how)
        made.append(encode_forest(forest))
    return made


# ---- mutants ---------------------------------------------------------------------------------------------------------------


def _graph_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Attributes of the nodes of a graph: cells, lengths, types, names."""
    import onnx

    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.randint(1, 3)):
        node = rng.choice(model.graph.node)
        if rng.random() < 0.1:
            how = rng.randrange(4)
            if how == 0:
                node.op_type = rng.choice(
                    ("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor", "Identity", "Cast")
                )
            elif how == 1 and node.input:
                node.input[0] = rng.choice(("", "x", "y", "one", "nowhere"))
            elif how == 2:
                node.output[0] = rng.choice(("", "x", "y", "z"))
            else:
                model.graph.node.append(copy.deepcopy(node))
            continue
        if not node.attribute:
            continue
        attribute = rng.choice(node.attribute)
        how = rng.randrange(10)
        if how == 0:
            node.attribute.remove(attribute)
        elif how == 1:
            node.attribute.append(copy.deepcopy(rng.choice(node.attribute)))
        elif how == 2:
            attribute.name = rng.choice([one.name for one in node.attribute])
        elif how == 3:
            attribute.type = rng.randrange(15)
        elif attribute.ints:
            _spoil_list(
                attribute.ints,
                rng,
                (0, 1, -1, 2, 3, 2**31 - 1, -(2**31), 2**32, 2**63 - 1, -(2**63), 1 << 24, 1 << 40),
            )
        elif attribute.floats:
            _spoil_list(
                attribute.floats, rng, (0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e-40, 3e38)
            )
        elif attribute.strings:
            _spoil_list(
                attribute.strings,
                rng,
                (b"LEAF", b"BRANCH_LEQ", b"BRANCH_EQ", b"BRANCH_MEMBER", b"", b"\xff", b"a" * 3000),
            )
        elif attribute.HasField("t"):
            _spoil_tensor(attribute.t, rng)
        elif attribute.s:
            attribute.s = rng.choice(
                (
                    b"NONE",
                    b"LOGISTIC",
                    b"SOFTMAX",
                    b"SOFTMAX_ZERO",
                    b"PROBIT",
                    b"AVERAGE",
                    b"MIN",
                    b"\xff\xfe",
                    b"x" * 9999,
                )
            )
        else:
            attribute.i = rng.choice((0, 1, 2, 3, -1, 1 << 20, 1 << 31, 1 << 40, 2**63 - 1, -(2**63)))
    return model.SerializeToString()


def _spoil_list(values, rng: random.Random, edges: tuple) -> None:
    how = rng.randrange(6)
    if how == 0:
        del values[rng.randrange(len(values)) :]
    elif how == 1:
        values.extend([rng.choice(values)] * rng.choice((1, 2, 500)))
    elif how == 2:
        values[rng.randrange(len(values))] = rng.choice(values)
    else:
        values[rng.randrange(len(values))] = rng.choice(edges)


def _spoil_tensor(tensor, rng: random.Random) -> None:
    how = rng.randrange(5)
    if how == 0 and tensor.dims:
        tensor.dims[0] = rng.choice((0, -1, 1, 1 << 31, 1 << 40, 2**63 - 1))
    elif how == 1:
        tensor.data_type = rng.randrange(24)
    elif how == 2:
        tensor.raw_data = rng.randbytes(rng.randrange(64))
    elif how == 3:
        tensor.dims.append(rng.choice((0, 1, 7, 1 << 40)))
    else:
        for field in ("float_data", "double_data", "int32_data", "int64_data"):
            values = getattr(tensor, field)
            if values:
                edges = (0, 1, 7, 255) if "int" in field else (float("nan"), float("inf"), -0.0, 1e-40, 1e308)
                values[rng.randrange(len(values))] = rng.choice(edges)


def _forest_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Cells of the arrays of a *.trees file, its header, and what stands between."""
    size = int.from_bytes(data[8:12], "little")
    header = json.loads(data[12 : 12 + size])
    if rng.random() < 0.3:
        header = (
            json.loads(document_mutant(json.dumps(header).encode(), rng, others))
            if rng.random() < 0.5
            else header
        )
        name = rng.choice(list(header) or ["input"])
        header[name] = rng.choice(
            (0, 1, 2, 1024, 1 << 24, 1 << 30, -1, None, "softmax", "l1", "probit", True, 1e308, "a" * 300)
        )
        text = json.dumps(header).encode()
        return data[:8] + len(text).to_bytes(4, "little") + text + data[12 + size :]
    for _ in range(rng.randint(1, 3)):
        at = 12 + size + 4 * rng.randrange((len(data) - 12 - size) // 4)
        cell = rng.choice((
            struct.pack("<i", rng.choice((0, 1, -1, 2, 3, 7, 255, 2**31 - 1, -(2**31), 1 << 24, rng.randrange(40)))),
            struct.pack("<d", rng.choice((0.0, float("nan"), float("inf"), 1e308, -1e39, 0.1, 1e-310))),
            struct.pack("<q", rng.choice((0, 1, -1, 2**63 - 1, -(2**63), 1 << 40))), rng.randbytes(1), rng.randbytes(4),
        ))  # fmt: skip
        data = data[:at] + cell + data[at + len(cell) :]
    return data


def _file(kind: str) -> Callable:
    return functools.partial(_door_of_file, kind)


_TEXT = (bytes_mutant, number_mutant, number_mutant, line_mutant)
_DOCUMENT = (bytes_mutant, number_mutant, document_mutant, document_mutant, document_mutant)


def _target(
    name: str, seeds: Callable, door: Callable, ways: tuple[Way, ...], needs: tuple = (), sample: int = 1_000
) -> Target:
    return Target(
        name,
        seeds,
        door,
        ways,
        _refusals,
        check=_answers,
        needs=needs,
        sample=sample,
        modules=("retailinfer.authoring", "retailinfer.runtime"),
    )


TARGETS = {
    target.name: target
    for target in (
        _target("trees", _seeds_of_trees, _door_of_trees, (bytes_mutant, _forest_mutant, _forest_mutant), sample=4_000),
        _target("onnx", _seeds_of_onnx, _door_of_graph, (bytes_mutant, _graph_mutant, _graph_mutant), ("onnx",)),
        _target("lightgbm", _seeds_of_lightgbm_text, _file("lightgbm"), _TEXT, ("lightgbm",)),
        _target("lightgbm-json", _seeds_of_lightgbm_json, _file("lightgbm-json"), _DOCUMENT, ("lightgbm",), 700),
        _target("xgboost", _seeds_of_xgboost_json, _file("xgboost"), _DOCUMENT, ("xgboost",), 700),
        _target("xgboost-ubjson", _seeds_of_xgboost_ubjson, _file("xgboost"), (bytes_mutant,), ("xgboost",)),
        _target("catboost", _seeds_of_catboost, _file("catboost"), _DOCUMENT, ("catboost",), 500),
    )
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(TARGETS))
