"""Hostile model files: what is mutated, how, and what must come of it: an answer, Unfit or ModelError, soon.

    python tests/fuzz_models.py catboost --mutants 500 --seed 7      the same mutants every time
    python tests/fuzz_models.py catboost --seconds 600 --seed 7      steered by coverage (atheris), from a corpus that grows
    python tests/fuzz_models.py catboost --replay FILE               one file, as a run left it

Rules:
  * Seeds are files of small models trained here and now; nothing is committed that a trainer could have made.
  * Mutants are wrong on every layer: bytes, numbers of a text, values and keys of a document, attributes of a graph, cells.
  * A forest that a parser lets through has to load from its own file, run on any rows, and name leaves that it has.
  * The process may use a fixed amount of memory, so a bomb is a MemoryError, which is no allowed end.
test_fuzz_models.py runs a sample of mutants per kind of file; soak.py runs them by coverage, for hours.
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import json
import random
import re
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

__all__ = ["TARGETS", "mutants", "replace", "settle"]

ROOT = Path(__file__).resolve().parents[1]
LEFT = ROOT / "build/fuzz"
MEMORY = 1 << 30  # beyond what there was before the first mutant
SLOW = 4.0  # seconds of the processor for one file of some kilobytes
FEATURES = 6

# ---- what is tried ---------------------------------------------------------------------------------------------------------


def _door_of_trees(data: bytes, dtype: str):
    from retailinfer.runtime.trees import TreeSession

    return TreeSession(data, calibrate=len(data) % 8 == 0)


def _door_of_graph(data: bytes, dtype: str):
    from retailinfer.authoring.preflight import inspect
    from retailinfer.authoring.trees.onnx_graph import forest_of_graph

    return forest_of_graph(inspect(data).data)


def _door_of_file(kind: str, data: bytes, dtype: str):
    from retailinfer.authoring.trees.files import kind_of, parse_file

    kind_of(data)
    return parse_file(data, kind, dtype=dtype).forest


def _answer(session, seed: int) -> None:
    """Run it on rows of every kind; whatever they are, there is an answer of the right shape."""
    forest = session.forest
    if forest.n_features * len(forest.arrays["roots"]) > 1 << 22 or forest.n_features > 1 << 20:
        return
    rng = np.random.default_rng(seed)
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


def settle(target: Target, data: bytes) -> str:
    """What came of one file: "unfit", "refused" or "answered". Anything else is raised."""
    from retailinfer.authoring.trees import Unfit
    from retailinfer.errors import ModelError
    from retailinfer.runtime.trees import TreeSession, encode_forest

    start = time.process_time()
    seed = len(data) + sum(data[:64])
    said = None
    try:
        made = target.door(data, "float32" if seed % 2 else "float64")
        session = made if isinstance(made, TreeSession) else TreeSession(encode_forest(made), calibrate=False)
    except Unfit as exc:
        ended, said = "unfit", str(exc)
    except ModelError as exc:
        ended, said = "refused", str(exc)
    else:
        _answer(session, seed)
        ended = "answered"
    assert said is None or 0 < len(said) < 900, f"a message of {len(said)} characters"
    took = time.process_time() - start
    assert took < SLOW, f"{took:.1f} s for {len(data)} bytes"
    return ended


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

# fmt: off
NUMBERS = (
    "0", "-0", "-1", "1", "2", "3", "127", "128", "255", "256", "65535", "65536", "16777216", "16777217", "2147483647",
    "2147483648", "-2147483648", "-2147483649", "4294967295", "4294967296", "9007199254740993", "9223372036854775807",
    "9223372036854775808", "-9223372036854775808", "18446744073709551616", "1e15", "1e19", "1e38", "3.5e38", "1e39", "1e308",
    "1e309", "-1e309", "1e-45", "1e-35", "1e-46", "5e-324", "0.5", "-0.5", "1.0000000000000002", "nan", "NaN", "inf", "-inf",
    "Infinity", "-Infinity", "", "x", "1_000", "0x10", "1e", ".", "9" * 400, "0." + "1" * 400, "\u0663",
    "1e1000000000", "True",
)
TOKENS = (
    *(bytes([b]) for b in b'{}[]":,\\/-+.eE0123456789tfnu \n\r\t\0=\xff\x80'),
    b"null", b"true", b"NaN", b"\n\n", b"=", b"Tree=0\n", b"end of trees\n", b"average_output\n", b"[" * 3000, b'{"a":' * 3000,
    b"[" * 100_000, b'"left_child":' * 50, b"\xef\xbb\xbf", b"\xed\xa0\x80",
    # UBJSON: counts and types, of elements that take no byte among them
    b"[$Z#l\x7f\xff\xff\xff", b"[$N#L\x7f" + b"\xff" * 7, b"[$T#l\x7f\xff\xff\xff", b"[$d#l\x7f\xff\xff\xff",
    b"[#l\x7f\xff\xff\xff", b"{$Z#l\x7f\xff\xff\xff", b"[$[#i\x7f", b"[$Z#L" + b"\xff" * 8, b"Sl\x7f\xff\xff\xff",
    b"SL" + b"\xff" * 8, b"l\x80\x00\x00\x00", b"D" + b"\x7f\xf8" + bytes(6), b"d\x7f\xc0\x00\x00", b"d\x7f\x80\x00\x00",
    b"Hi\x7f", b"L\x7f" + b"\xff" * 7, b"N" * 64,
    # protobuf: lengths
    b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x10", b"\x0a\x00", b"\xff" * 9 + b"\x01",
)
# fmt: on


def _bytes_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 64, 1024)))
        how = rng.randrange(9)
        if how == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif how == 1:
            data = data[:at] if rng.random() < 0.3 else data[:at] + data[end:]
        elif how == 2:
            data = data[:at] + rng.choice(TOKENS) + data[end:]
        elif how == 3:
            data = data[:at] + rng.choice(TOKENS) + data[at:]
        elif how == 4:
            data = data[:at] + data[at:end] * rng.randint(2, 5) + data[end:]
        elif how == 5:
            data = data[:at] + rng.randbytes(end - at) + data[end:]
        elif how == 6:
            other = rng.choice(others)
            cut = rng.randrange(len(other) + 1)
            data = data[:at] + other[cut : cut + rng.randrange(2000)] + data[end:]
        elif how == 7:
            size = rng.choice((1, 2, 4, 8))
            value = rng.choice(
                (0, 1, -1, 2 ** (8 * size - 1) - 1, -(2 ** (8 * size - 1)), rng.randrange(256))
            )
            edge = (value % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
            data = data[:at] + edge + data[at + size :]
        else:
            to = rng.randrange(len(data) + 1)
            data = data[:to] + data[at:end] + data[to:]
    return data


_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def _number_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Numbers of a text become other numbers, or nothing of the kind."""
    found = list(_NUMBER.finditer(data))
    for one in sorted(rng.sample(found, min(len(found), rng.randint(1, 3))), key=lambda m: -m.start()):
        new = rng.choice(NUMBERS).encode()
        if rng.random() < 0.2:
            new = rng.choice(found)[0]
        data = data[: one.start()] + new + data[one.end() :]
    return data


def _line_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Lines of a text are dropped, doubled, moved, or get each other's values."""
    lines = data.split(b"\n")
    for _ in range(rng.randint(1, 3)):
        at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
        how = rng.randrange(5)
        if how == 0 and len(lines) > 1:
            del lines[at]
        elif how == 1:
            lines.insert(to, lines[at])
        elif how == 2:
            key, equals, _ = lines[at].partition(b"=")
            lines[at] = key + equals + lines[to].partition(b"=")[2]
        elif how == 3:
            key, equals, value = lines[at].partition(b"=")
            parts = value.split(b" ")
            if rng.random() < 0.5:
                parts += [rng.choice(parts)] * rng.randint(1, 3)
            elif len(parts) > 1:
                parts.pop()
            lines[at] = key + equals + b" ".join(parts)
        else:
            lines[at] = rng.choice(rng.choice(others).split(b"\n"))
    return b"\n".join(lines)


def _places(value: object, at: tuple = ()) -> Iterator[tuple]:
    """Ways to every value inside a document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield (*at, key)
        yield from _places(one, (*at, key))


def _hostile_value(rng: random.Random, old: object, document: object, places: list[tuple]) -> object:
    how = rng.randrange(12)
    if how < 4:
        return _Raw(rng.choice(NUMBERS) or "0")
    if how == 4:
        return rng.choice((None, True, False, "", "0", "x", "\u0000", "a" * 5000, [], {}, [[]], {"": 0}))
    if how == 5 and isinstance(old, (int, float, str)):
        return str(old) if not isinstance(old, str) else _Raw(old if _NUMBER.fullmatch(old.encode()) else "7")
    if how == 6 and isinstance(old, list) and old:
        return old + [copy.deepcopy(rng.choice(old))] * rng.choice((1, 2, 1000))
    if how == 7 and isinstance(old, list) and old:
        return old[: rng.randrange(len(old))]
    if how == 8:
        nest: object = old
        for _ in range(rng.choice((1, 2, 60, 3000))):
            nest = [nest] if rng.random() < 0.5 else {"left_child": nest}
        return nest
    if how == 9 and isinstance(old, int):
        return old + rng.choice((-1, 1, 1 << 31, -(1 << 31), 1 << 63))
    if how == 10 and isinstance(old, list):
        return [*old[::-1]]
    return copy.deepcopy(_at(document, rng.choice(places)))


def _at(document, way):
    for key in way:
        document = document[key]
    return document


def _document_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Values of a JSON document are replaced, dropped, doubled, moved and nested; keys too."""
    document = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(document))
        if not places:
            break
        way = rng.choice(places)
        if (
            rng.random() < 0.5
        ):  # short arrays and heads are where counts and names are, and they are few among the numbers
            way = min((rng.choice(places) for _ in range(4)), key=len)
        inside, key = _at(document, way[:-1]), way[-1]
        if rng.random() < 0.15:
            del inside[key]
        elif rng.random() < 0.1 and isinstance(inside, dict):
            inside[rng.choice((str(key).upper(), "", str(rng.choice(places)[-1])))] = inside.pop(key)
        else:
            inside[key] = _hostile_value(rng, inside[key], document, places)
    return _dumped(document)


class _Raw(str):
    """A piece of JSON that is written as it stands."""

    __slots__ = ()


def _dumped(document: object) -> bytes:
    """As json.dumps, but of any depth, and with pieces that are no JSON."""
    out: list[str] = []
    todo = [document]  # from the end: what is pushed last is written first
    while todo:
        one = todo.pop()
        if isinstance(one, _Raw):
            out.append(one)
        elif isinstance(one, dict):
            todo.append(_Raw("}"))
            for i, (key, value) in reversed([*enumerate(one.items())]):
                todo += [value, _Raw(("," if i else "") + json.dumps(key) + ":")]
            out.append("{")
        elif isinstance(one, list):
            todo.append(_Raw("]"))
            for i, value in reversed([*enumerate(one)]):
                todo += [value, _Raw("," if i else "")]
            out.append("[")
        else:
            out.append(json.dumps(one))
    return "".join(out).encode("utf-8", "surrogatepass")


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
            json.loads(_document_mutant(json.dumps(header).encode(), rng, others))
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


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        door: bytes and dtype -> a forest or session. ways: how a seed becomes a mutant. sample: of mutants, in `make test`.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    door: Callable
    ways: tuple[Callable[[bytes, random.Random, list[bytes]], bytes], ...]
    needs: tuple[str, ...] = ()
    sample: int = 1_000


def _file(kind: str) -> Callable:
    return functools.partial(_door_of_file, kind)


_TEXT = (_bytes_mutant, _number_mutant, _number_mutant, _line_mutant)
_DOCUMENT = (_bytes_mutant, _number_mutant, _document_mutant, _document_mutant, _document_mutant)
TARGETS = {
    target.name: target
    for target in (
        Target("trees", _seeds_of_trees, _door_of_trees, (_bytes_mutant, _forest_mutant, _forest_mutant), sample=4_000),
        Target("onnx", _seeds_of_onnx, _door_of_graph, (_bytes_mutant, _graph_mutant, _graph_mutant), ("onnx",)),
        Target("lightgbm", _seeds_of_lightgbm_text, _file("lightgbm"), _TEXT, ("lightgbm",)),
        Target("lightgbm-json", _seeds_of_lightgbm_json, _file("lightgbm-json"), _DOCUMENT, ("lightgbm",), 700),
        Target("xgboost", _seeds_of_xgboost_json, _file("xgboost"), _DOCUMENT, ("xgboost",), 700),
        Target("xgboost-ubjson", _seeds_of_xgboost_ubjson, _file("xgboost"), (_bytes_mutant,), ("xgboost",)),
        Target("catboost", _seeds_of_catboost, _file("catboost"), _DOCUMENT, ("catboost",), 500),
    )
}  # fmt: skip


def mutant(target: Target, seeds: list[bytes], rng: random.Random) -> bytes:
    """One hostile file."""
    data = rng.choice(seeds)
    try:
        return rng.choice(target.ways)(data, rng, seeds)
    except (
        RecursionError,
        ValueError,
        TypeError,
    ):  # so far from a file that a way of damaging files fails at it
        return _bytes_mutant(data, rng, seeds)


def mutants(target: Target, n: int, seed: int) -> Iterator[bytes]:
    """The same n files for the same seed."""
    seeds = target.seeds()
    for i in range(n):
        yield mutant(target, seeds, random.Random(f"{target.name} {seed} {i}"))


# ---- running ---------------------------------------------------------------------------------------------------------------


def _bound_memory() -> None:
    """From here on the process may take MEMORY more than it has; what wants more gets a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _leave(target: Target, data: bytes) -> Path:
    LEFT.mkdir(parents=True, exist_ok=True)
    path = LEFT / f"{target.name}-{hashlib.sha256(data).hexdigest()[:12]}.bin"
    path.write_bytes(data)
    return path


def run_mutants(target: Target, n: int, seed: int) -> int:
    """Prints what came of them; returns how many ended as nothing may end."""
    ends = {"answered": 0, "unfit": 0, "refused": 0}
    failures: dict[str, Path] = {}
    for i, one in enumerate(target.seeds()):
        assert settle(target, one) == "answered", f"seed {i} is no forest"
    _bound_memory()
    for data in mutants(target, n, seed):
        try:
            ends[settle(target, data)] += 1
        except Exception as exc:
            frames = [f for f in traceback.extract_tb(exc.__traceback__) if "/retailinfer/" in f.filename]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "the test itself"
            what = f"{type(exc).__name__} at {where}"
            if what not in failures:
                failures[what] = _leave(target, data)
                sys.stderr.write(f"{what}: {str(exc)[:300]}\n  {failures[what]}\n")
    said = {"target": target.name, "seed": seed, "mutants": n, **ends, "failures": sorted(failures)}
    _say(json.dumps(said))
    return len(failures)


def run_guided(target: Target, seconds: float, seed: int, folder: Path) -> int:
    """Until the time is up, by coverage of the parsers; atheris ends the process. A finding is left in `folder`."""
    import atheris

    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = target.seeds()
    for i, data in enumerate(seeds):
        (corpus / f"seed-{i}").write_bytes(data)
    for name in [
        name for name in sys.modules if name.startswith(("retailinfer.authoring", "retailinfer.runtime"))
    ]:
        del sys.modules[name]  # making seeds has loaded some, without what counts branches
    with atheris.instrument_imports(include=["retailinfer.authoring", "retailinfer.runtime"]):
        settle(target, seeds[0])

    def one(data: bytes) -> None:
        settle(target, data)

    def mutate(data: bytes, size: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.5:
            return atheris.Mutate(data, size)
        try:
            return rng.choice(target.ways)(bytes(data), rng, seeds)[:size]
        except Exception:
            return mutant(target, seeds, rng)[:size]

    options = [
        f"-max_total_time={int(seconds)}",
        f"-seed={seed}",
        f"-artifact_prefix={folder}/",
        "-rss_limit_mb=3000",
        "-print_final_stats=1",
        "-timeout=20",
    ]
    atheris.Setup(
        [sys.argv[0], *options, f"-max_len={4 * max(map(len, seeds))}", str(corpus)],
        one,
        custom_mutator=mutate,
    )
    atheris.Fuzz()
    return 0


def main() -> int:
    """Command line; see above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=list(TARGETS))
    parser.add_argument("--mutants", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="of the corpus and of findings")
    parser.add_argument("--replay", type=Path)
    given = parser.parse_args()
    target = TARGETS[given.target]
    warnings.simplefilter(
        "error", RuntimeWarning
    )  # as the tests have it: NumPy's, of a number that does not fit
    if given.replay:
        _say(settle(target, given.replay.read_bytes()))
        return 0
    if given.seconds:
        return run_guided(target, given.seconds, given.seed, given.folder or LEFT / target.name)
    return 1 if run_mutants(target, given.mutants or 500, given.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
