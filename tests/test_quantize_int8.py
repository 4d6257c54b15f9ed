"""int8: made as promised, kept only where it is faster and answers alike, and never for trees."""

from __future__ import annotations

import logging
import os
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.authoring import quantize
from retailinfer.authoring.quantize import quantize_dynamic, quantize_static
from retailinfer.errors import ConfigError, ModelError, SchemaMismatchError
from retailinfer.release.manifest import QuantizationTrial
from retailinfer.runtime.session import open_session

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported by the quantiser
onnx = pytest.importorskip("onnx")
helper = pytest.importorskip("onnx.helper")
pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(4)
N, WIDTH = 800, 24
NAMES = [f"v{i}" for i in range(WIDTH)]
VALUES = RNG.normal(size=(N, WIDTH))
TABLE = pa.table({name: VALUES[:, i] for i, name in enumerate(NAMES)})
ROWS = VALUES.astype(np.float32)


def network(*, hidden: int = 48, sigmoid: bool = True, opset: int = 17, op: str = "Gemm") -> bytes:
    """Three layers, the shape of a small ranker."""
    rng = np.random.default_rng(9)
    sizes, nodes, weights, name = [WIDTH, hidden, hidden, 1], [], [], "features"
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        w = (rng.normal(size=(n_in, n_out)) * np.sqrt(2 / n_in)).astype(np.float32)
        weights += [
            onnx.numpy_helper.from_array(w, f"w{i}"),
            onnx.numpy_helper.from_array(rng.normal(size=n_out).astype(np.float32) / 10, f"b{i}"),
        ]
        out = f"h{i}"
        if op == "Gemm":
            nodes.append(helper.make_node("Gemm", [name, f"w{i}", f"b{i}"], [out]))
        else:
            nodes += [
                helper.make_node("MatMul", [name, f"w{i}"], [f"m{i}"]),
                helper.make_node("Add", [f"m{i}", f"b{i}"], [out]),
            ]
        if i < 2:
            nodes.append(helper.make_node("Relu", [out], [f"r{i}"]))
            name = f"r{i}"
    nodes.append(helper.make_node("Sigmoid" if sigmoid else "Identity", ["h2"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("features", 1, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", 1, ["n", 1])],
        weights,
    )
    return bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
        ).SerializeToString()
    )


def spec() -> ri.FeatureSpec:
    """Plain numbers."""
    return ri.FeatureSpec(request=dict.fromkeys(NAMES, float), columns=[c.numeric(name) for name in NAMES])


def pack(tmp_path, **changes: Any) -> Any:
    """The network over the table, for batches of 100."""
    given = {
        "model": network(),
        "features": spec(),
        "golden": TABLE,
        "contract": ri.Contract(batch_sizes=(100,)),
        "out": tmp_path / "r",
    }
    return ri.pack("net", **{**given, **changes})


def operators(data: bytes) -> list[str]:
    """Operators of a model, in order."""
    return [node.op_type for node in onnx.load_from_string(data).graph.node]


# ---- how it is made ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize("opset", [11, 17])
def test_static_int8_has_a_scale_per_channel_and_leaves_the_last_layer(op, opset):
    """Weights of hidden layers are int8 with one scale a column; the head stays float32, or scores would be 256 steps."""
    data = quantize_static(
        network(op=op, opset=opset), [{"features": ROWS[i : i + 64]} for i in range(0, 512, 64)]
    )
    model = onnx.load_from_string(data)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    int8 = [t for t in weights.values() if t.data_type == 3 and len(t.dims) == 2]
    assert len(int8) == 2
    scales = [t for name, t in weights.items() if "scale" in name and list(t.dims) == [48]]
    assert len(scales) >= 2
    assert "QuantizeLinear" in operators(data)
    assert "DynamicQuantizeLinear" not in operators(data)
    heads = [node for node in model.graph.node if node.op_type == op and "w2" in node.input]
    assert len(heads) == 1
    session = open_session(data)
    before = open_session(network(op=op, opset=opset)).run({"features": ROWS})["y"]
    after = session.run({"features": ROWS})["y"]
    assert 0 < np.abs(after - before).max() < 0.05
    assert len(np.unique(after)) > 400


def test_dynamic_int8_takes_its_ranges_from_the_batch():
    """A giant in the batch moves its neighbours: the reason why dynamic int8 is for single rows only."""
    session = open_session(quantize_dynamic(network(sigmoid=False)))
    alone = session.run({"features": ROWS[1:2]})["y"][0]
    company = ROWS[:2].copy()
    company[0] *= 1e4
    assert abs(session.run({"features": company})["y"][1] - alone) > 0.01


def test_a_model_that_cannot_be_quantised_is_refused_with_the_reason():
    """What onnxruntime's tools raise becomes one typed error."""
    with pytest.raises(ModelError, match="cannot be quantised"):
        quantize_static(network(), [{"wrong": ROWS}])


def test_quantising_leaves_logging_as_it_was():
    """Advice of the tool is silenced, and only for that long."""
    before = logging.root.manager.disable
    quantize_static(network(), [{"features": ROWS[:64]}])
    assert logging.root.manager.disable == before


# ---- what is packed ------------------------------------------------------------------------------------------------------


def test_static_is_packed_with_the_whole_comparison(tmp_path):
    """The manifest holds sizes, times, differences and the machine; the release loads and answers as it was compared."""
    policy = ri.Policy([("no", 0.0), ("yes", 0.5)])
    manifest = pack(tmp_path, quantize="static", policy=policy)
    assert manifest.models[0].quantized == "static"
    assert manifest.nan_inputs is False
    assert manifest.row_independent is True
    report = manifest.quantization
    assert (report.asked, report.n_calibration_rows, report.n_compared_rows) == ("static", 400, 400)
    assert manifest.machine.cpu in report.why
    before, after = report.trials
    assert (before.method, after.method, before.kept, after.kept) == ("none", "static", False, True)
    assert 0 < after.size < before.size * 0.8
    assert 0 < after.mean_difference <= after.max_difference < 0.05
    assert before.times_us.keys() == after.times_us.keys() == {"100"}
    assert after.times_us["100"] > 0
    scorer = ri.Scorer.load(tmp_path / "r", trust="unsigned")
    got = np.array([d.score for d in scorer.score_batch(TABLE.slice(0, 50).to_pylist())])
    exact = open_session(network()).run({"features": ROWS[:50]})["y"][:, 0]
    assert 0 < np.abs(got - exact).max() <= after.max_difference * 3


def test_given_calibration_rows_fix_the_ranges(tmp_path):
    """With a table to calibrate on, the golden table is compared whole."""
    narrow = pa.table({name: VALUES[:100, i] / 100 for i, name in enumerate(NAMES)})
    wide = pack(tmp_path, quantize="static", calibration=TABLE)
    small = pack(tmp_path, quantize="static", calibration=narrow, out=tmp_path / "s")
    assert wide.quantization.n_compared_rows == N
    assert small.quantization.n_calibration_rows == 100
    # Ranges of tiny values cut real ones off.
    assert small.quantization.trials[1].max_difference > 5 * wide.quantization.trials[1].max_difference


def test_flips_count_actions_that_change(tmp_path):
    """A threshold in the middle of the scores makes some of them cross it."""
    middle = float(np.median(open_session(network()).run({"features": ROWS})["y"]))
    policy = ri.Policy([("no", 0.0), ("yes", middle)])
    with_policy = pack(tmp_path, quantize="static", policy=policy)
    assert 0 < with_policy.quantization.trials[1].flips < 0.2
    without = pack(tmp_path, quantize="static", out=tmp_path / "s")
    assert without.quantization.trials[1].flips == 0.0


def test_scores_that_are_no_probabilities_are_compared_in_standard_deviations(tmp_path):
    """An unbounded score has no unit of its own."""
    one = pack(tmp_path, model=network(sigmoid=False), quantize="static").quantization.trials[1]
    session = open_session((tmp_path / "r" / "model.onnx").read_bytes())
    exact = open_session(network(sigmoid=False)).run({"features": ROWS[1::2]})["y"]
    difference = np.abs(session.run({"features": ROWS[1::2]})["y"] - exact).max() / exact.std()
    assert one.max_difference == pytest.approx(difference, rel=1e-3)
    strict = pack(
        tmp_path,
        model=network(sigmoid=False),
        quantize="auto",
        tolerance={"relative": difference / 2, "score": 1.0},
        out=tmp_path / "s",
    )
    assert strict.models[0].quantized == "none"
    assert "scores differ" in strict.quantization.trials[1].why


# ---- auto ----------------------------------------------------------------------------------------------------------------


def trial(method: str, time: float, difference: float = 0.0, flips: float = 0.0) -> QuantizationTrial:
    """A measured candidate."""
    return QuantizationTrial(
        role="model",
        method=method,
        times_us={"1": time, "100": 4 * time},
        max_difference=difference,
        flips=flips,
    )


@pytest.mark.parametrize(
    ("candidates", "best", "says"),
    [
        ([trial("static", 5, 0.01)], "static", "0.50 of the time"),
        ([trial("static", 9.9, 0.01)], "none", "counts as faster"),
        ([trial("static", 5, 0.03)], "none", "differ by up to 0.03"),
        ([trial("static", 5, float("nan"))], "none", "differ"),
        ([trial("static", 5, 0.01, 0.01)], "none", "1.000% of the actions"),
        ([trial("static", 6, 0.01), trial("dynamic", 4, 0.01)], "dynamic", "0.60"),
        ([trial("static", 6, 0.01), trial("dynamic", 4, 0.5)], "static", "0.60"),
    ],
)
def test_auto_keeps_the_fastest_candidate_that_answers_alike(candidates, best, says):
    """Faster and within the tolerances, or float32 stays; each candidate carries its reason."""
    chosen, judged = quantize._decide([trial("none", 10), *candidates], "auto", 0.02, 0.002)
    assert chosen.method == best
    assert [entry.method for entry in judged if entry.kept] == [best]
    assert says in judged[1].why


def test_what_is_asked_for_by_name_is_not_judged():
    """quantize="static" is taken as it is; its differences are in the manifest."""
    chosen, _ = quantize._decide([trial("none", 10), trial("static", 20, 0.5, 0.5)], "static", 0.02, 0.002)
    assert chosen.method == "static"


def test_auto_packs_what_it_decides(tmp_path):
    """Whichever wins here, the manifest says so, and the packed model is that one."""
    manifest = pack(tmp_path, quantize="auto")
    kept = [entry for entry in manifest.quantization.trials if entry.kept]
    assert len(kept) == 1
    assert manifest.models[0].quantized == kept[0].method
    assert ("QuantizeLinear" in operators((tmp_path / "r" / "model.onnx").read_bytes())) is (
        kept[0].method == "static"
    )


def test_auto_keeps_float32_where_nothing_may_differ(tmp_path):
    """With no tolerance at all, int8 is out, and the file is the trainer's."""
    manifest = pack(tmp_path, quantize="auto", tolerance={"score": 0.0})
    assert manifest.models[0].quantized == "none"
    assert (tmp_path / "r" / "model.onnx").read_bytes() == network()
    assert "differ" in manifest.quantization.trials[1].why


def test_auto_tries_dynamic_only_where_batches_have_one_row(tmp_path):
    """The contract decides whether rows can meet in a batch at all."""
    many = pack(tmp_path, quantize="auto", contract=ri.Contract(batch_sizes=(1, 100)))
    one = pack(tmp_path, quantize="auto", contract=ri.Contract(batch_sizes=(1,)), out=tmp_path / "one")
    assert [e.method for e in many.quantization.trials] == ["none", "static"]
    assert [e.method for e in one.quantization.trials] == ["none", "static", "dynamic"]


def test_dynamic_int8_is_packed_for_single_rows_and_runs_them_one_by_one(tmp_path):
    """Its rows depend on each other, so the release says that they must not meet."""
    manifest = pack(
        tmp_path, quantize="dynamic", contract=ri.Contract(batch_sizes=(1,)), model=network(sigmoid=False)
    )
    assert manifest.models[0].quantized == "dynamic"
    assert manifest.row_independent is False
    assert manifest.row_difference > 0
    scorer = ri.Scorer.load(tmp_path / "r", trust="unsigned")
    rows = TABLE.slice(0, 5).to_pylist()
    giant = {name: 1e4 * value for name, value in rows[0].items()}
    batch = scorer.score_batch([giant, *rows])
    assert [d.score for d in batch[1:]] == [scorer.score(row).score for row in rows]


# ---- what is refused -----------------------------------------------------------------------------------------------------


def test_dynamic_is_refused_where_rows_meet(tmp_path):
    """One row with a giant number would move all others."""
    with pytest.raises(ConfigError, match=r"depend on each other.*\(100,\)"):
        pack(tmp_path, quantize="dynamic")


def test_trees_are_never_quantised(tmp_path):
    """Asked for by name it is an error, "auto" leaves them and says so."""
    lightgbm = pytest.importorskip("lightgbm")
    model = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1).fit(ROWS, ROWS[:, 0] > 0)
    with pytest.raises(ConfigError, match="trees are never quantised"):
        pack(tmp_path, model=model, quantize="static")
    manifest = pack(tmp_path, model=model, quantize="auto")
    assert manifest.models[0].quantized == "none"
    assert "trees" in manifest.quantization.why


def test_tiny_models_are_left_alone(tmp_path):
    """A few dozen weights gain nothing."""
    with pytest.raises(ConfigError, match="256 weights"):
        pack(tmp_path, model=network(hidden=2), quantize="static")


@pytest.mark.parametrize("golden", [None, TABLE.slice(0, 20)])
def test_quantising_needs_rows(golden, tmp_path):
    """Ranges are measured, never invented."""
    with pytest.raises(ConfigError, match="rows"):
        pack(tmp_path, golden=golden, quantize="static")


def test_calibration_rows_with_gaps_are_refused(tmp_path):
    """A quantised model turns NaN into a confident number, so none gets in."""
    features = ri.FeatureSpec(
        request=dict.fromkeys(NAMES[1:], float) | {"v0": float | None},
        columns=[c.numeric(name) for name in NAMES],
    )
    gaps = TABLE.set_column(0, "v0", pa.array([None, *VALUES[1:, 0]]))
    with pytest.raises(SchemaMismatchError, match="`v0`"):
        pack(tmp_path, features=features, calibration=gaps, quantize="static")


def test_each_model_of_a_chain_is_quantised_on_what_it_receives(tmp_path):
    """A later model is calibrated with the outputs of the earlier one."""
    last = helper.make_graph(
        [helper.make_node("MatMul", ["y", "w"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
         helper.make_node("MatMul", ["b", "v"], ["c"]), helper.make_node("Relu", ["c"], ["d"]),
         helper.make_node("ReduceMean", ["d"], ["z"], axes=[1], keepdims=1)],
        "g",
        [helper.make_tensor_value_info("y", 1, ["n", 1])],
        [helper.make_tensor_value_info("z", 1, ["n", 1])],
        [onnx.numpy_helper.from_array(RNG.normal(size=s).astype(np.float32), n) for n, s in (("w", (1, 32)), ("v", (32, 32)))],
    )  # fmt: skip
    second = helper.make_model(
        last, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    manifest = pack(tmp_path, model={"tower": network(), "head": second}, quantize="static")
    assert [m.quantized for m in manifest.models] == ["static", "static"]
    assert [(e.role, e.method) for e in manifest.quantization.trials] == [
        ("tower", "none"), ("tower", "static"), ("head", "none"), ("head", "static")
    ]  # fmt: skip
    ri.Scorer.load(tmp_path / "r", trust="unsigned")
