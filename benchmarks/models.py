"""The reference models, made on the machine that measures and kept in build/benchmarks/.

    gbdt("fraud-lean")   LightGBM, 300 trees x 31 leaves, depth 6, 40 inputs, binary, ONNX with ZipMap off
    gbdt("fraud-full")   the same on the columns of fraud-full; gbdt("rank-gbdt") on 40 columns of the ranking
    gbdt_text(name)      the same booster in LightGBM's own text
    large("leaves-63")   LightGBM, 1,000 trees x 63 leaves of any depth, 80 inputs; large_text() is the same in its own text
    large("depth-8")     XGBoost, 500 trees of depth 8, 40 inputs, some values missing
    mlp()                64-128-64-1, random weights, static QDQ int8, calibrated on rows of the ranking workload

Rules:
  * Seeded and single-threaded: the same versions of the trainers give the same bytes. The file name carries a digest of
    everything that decides them, so a stale file is never used.
  * The trees learn labels that depend on the columns, with interactions and noise: trees that fit noise only would be
    shaped unlike real ones.
  * Trainers are imported inside the functions: importing this module costs nothing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import reference, workloads
from benchmarks.workloads import FRAUD_FULL, FRAUD_LEAN, RANK, RANK_GBDT_COLUMNS

__all__ = [
    "N_HISTORY",
    "N_TREES",
    "cache_dir",
    "codes",
    "full_training_rows",
    "gbdt",
    "gbdt_text",
    "large",
    "large_rows",
    "large_text",
    "mlp",
    "rank_matrix",
    "training_rows",
]

N_TREES = 300
N_LEAVES = 31
DEPTH = 6
N_HISTORY = 100_000  # payments that the windows of fraud-full hold before the first request


def cache_dir() -> Path:
    """build/benchmarks/ of the working tree."""
    path = Path(__file__).resolve().parent.parent / "build" / "benchmarks"
    path.mkdir(parents=True, exist_ok=True)
    return path


def training_rows(workload: workloads.Workload) -> workloads.Values:
    """The rows that vocabularies and models learn from; other rows than the requests."""
    if workload is FRAUD_FULL:
        return workloads.FullRequests(workloads.FIRST_SECOND).values(range(workloads.N_TRAINING))
    return workloads.draw(workload, workloads.N_TRAINING)


def codes(workload: workloads.Workload) -> dict[str, dict[str, int]]:
    """Vocabularies of the workload's categorical columns, as the reference learns them."""
    return reference.learn_vocabularies(workload.columns, training_rows(workload))


def full_training_rows() -> workloads.Values:
    """Training rows of fraud-full with everything looked up: stored columns by reference, windows by column name."""
    requests = workloads.FullRequests(workloads.FIRST_SECOND)
    return reference.full_values(requests.history(N_HISTORY), training_rows(FRAUD_FULL))


def gbdt(name: str, *, n_trees: int = N_TREES) -> bytes:
    """ONNX bytes of a booster. Input `input` (n, 40), output `probabilities` (n, 2)."""
    return _cached(f"{name}-{n_trees}.onnx", "lightgbm onnxmltools onnx", lambda: _train(name, n_trees))


def gbdt_text(name: str, *, n_trees: int = N_TREES) -> str:
    """The booster of `gbdt` in LightGBM's text."""
    return _cached(
        f"{name}-{n_trees}.txt", "lightgbm", lambda: _fit(name, n_trees).booster_.model_to_string().encode()
    ).decode()


def large(name: str) -> bytes:
    """ONNX bytes of "leaves-63" or "depth-8". Input `input`, output `probabilities` (n, 2)."""
    trainer = "lightgbm" if name == "leaves-63" else "xgboost"
    return _cached(f"{name}.onnx", f"{trainer} onnxmltools onnx", lambda: _train_large(name))


def large_text() -> str:
    """The booster of `large("leaves-63")` in LightGBM's text."""
    return _cached(
        "leaves-63.txt", "lightgbm", lambda: _fit_leaves().booster_.model_to_string().encode()
    ).decode()


def large_rows(name: str, n: int, *, seed: int) -> NDArray[np.float32]:
    """Rows for `large(name)`, shape (n, 80) or (n, 40); of "depth-8" one cell in twenty is missing."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 80 if name == "leaves-63" else 40)).astype(np.float32)
    if name == "depth-8":
        rows[rng.random(rows.shape) < 0.05] = np.nan
    return rows


def mlp() -> bytes:
    """ONNX bytes of the static int8 ranker. Input `input` (n, 64), output `score` (n, 1)."""
    return _cached("rank-mlp-int8.onnx", "onnx onnxruntime", _quantised_mlp)


def rank_matrix(
    context: dict[str, Any], rows: NDArray[np.int32], columns: tuple[workloads.ColumnDef, ...] = RANK.columns
) -> NDArray[np.float32]:
    """The model's input for one request, shape (n candidates, columns): context repeated, item columns gathered."""
    one = {name: [v] if isinstance(v, str) else np.array([v]) for name, v in context.items()}
    contextual = [c for c in columns if c.kind != "stored"]
    items = [int(c.refs[0].removeprefix("item.x")) for c in columns if c.kind == "stored"]
    out = np.empty((len(rows), len(columns)), np.float32)
    out[:, : len(contextual)] = reference.matrix(contextual, one, {})
    out[:, len(contextual) :] = workloads.item_values()[rows][:, items]
    return out


def _cached(file_name: str, packages: str, make: Callable[[], bytes]) -> bytes:
    digest = hashlib.sha256()
    for module in (__file__, workloads.__file__, reference.__file__):
        digest.update(Path(str(module)).read_bytes())
    for package in packages.split():
        digest.update(f"{package}={importlib.metadata.version(package)};".encode())
    stem, suffix = file_name.rsplit(".", 1)
    path = cache_dir() / f"{stem}-{digest.hexdigest()[:12]}.{suffix}"
    if not path.exists():
        data = make()
        partial = path.with_suffix(
            f".{os.getpid()}.tmp"
        )  # two runs at once: each writes its own, the last one stays
        partial.write_bytes(data)
        partial.replace(path)
    return path.read_bytes()


def _train(name: str, n_trees: int) -> bytes:
    return _lightgbm_to_onnx(_fit(name, n_trees))


def _lightgbm_to_onnx(model: Any) -> bytes:
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    shape = [None, model.n_features_in_]
    graph = convert_lightgbm(model, initial_types=[("input", FloatTensorType(shape))], zipmap=False)
    return bytes(graph.SerializeToString())


def _fit(name: str, n_trees: int) -> Any:
    import lightgbm

    if name.startswith("fraud-lean"):
        x = reference.matrix(FRAUD_LEAN.columns, training_rows(FRAUD_LEAN), codes(FRAUD_LEAN))
    elif name == "fraud-full":
        x = reference.matrix(FRAUD_FULL.columns, full_training_rows(), codes(FRAUD_FULL))
    else:
        drawn = workloads.rank_requests(40, workloads.N_REQUESTS)
        x = np.concatenate(
            [
                rank_matrix(drawn.contexts[i], drawn.candidates[i][:10], RANK_GBDT_COLUMNS)
                for i in range(2_000)
            ]
        )
    model = lightgbm.LGBMClassifier(
        n_estimators=n_trees,
        num_leaves=N_LEAVES,
        max_depth=-1 if name.endswith("-deep") else DEPTH,
        learning_rate=0.05,
        min_child_samples=5,
        n_jobs=1,
        deterministic=True,
        force_row_wise=True,
        random_state=workloads.SEED,
        verbose=-1,
    )
    return model.fit(x, _labels(x))


def _train_large(name: str) -> bytes:
    if name == "leaves-63":
        return _lightgbm_to_onnx(_fit_leaves())
    import xgboost
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    x, y = _large_training_rows(name)
    booster = xgboost.XGBClassifier(
        n_estimators=500, max_depth=8, learning_rate=0.05, n_jobs=1, random_state=workloads.SEED
    ).fit(x, y)
    graph = convert_xgboost(booster, initial_types=[("input", FloatTensorType([None, x.shape[1]]))])
    return bytes(graph.SerializeToString())


def _fit_leaves() -> Any:
    import lightgbm

    return lightgbm.LGBMClassifier(
        n_estimators=1_000,
        num_leaves=63,
        learning_rate=0.02,
        min_child_samples=5,
        n_jobs=1,
        deterministic=True,
        force_row_wise=True,
        random_state=workloads.SEED,
        verbose=-1,
    ).fit(*_large_training_rows("leaves-63"))


def _large_training_rows(name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    x = large_rows(name, 12_000, seed=workloads.SEED)
    return x, _labels(np.nan_to_num(x))


def _labels(x: NDArray[np.float32]) -> NDArray[np.int64]:
    """Labels that depend on all columns, with products of neighbours, about 1 in 5 positive."""
    rng = np.random.default_rng(workloads.SEED)
    z = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)
    z = np.clip(z, -3.0, 3.0).astype(np.float64)
    weights = rng.normal(size=z.shape[1])
    logit = (
        z @ weights
        + 0.7 * (z * np.roll(z, 1, axis=1)) @ rng.normal(size=z.shape[1])
        + np.sin(2.0 * z).sum(axis=1)
    )
    logit += rng.logistic(scale=0.5, size=len(z))
    return np.asarray(logit > np.quantile(logit, 0.8), np.int64)


def _quantised_mlp() -> bytes:
    """Weights in int8 per channel, activations in uint8; the last layer stays float32.

    That layer has 64 weights. Quantised, it could give a ranking no more than 256 different scores, which nobody ships.
    """
    from tempfile import TemporaryDirectory

    from benchmarks.peers.bare_run import import_onnxruntime

    import_onnxruntime()  # telemetry off first
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    logging.getLogger().setLevel(
        logging.ERROR
    )  # the quantiser recommends a pre-processing that this graph has no use for
    drawn = workloads.rank_requests()

    class Rows(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no type information
        def __init__(self) -> None:
            self._batches = (rank_matrix(drawn.contexts[i], drawn.candidates[i]) for i in range(8))

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"input": batch}

    with TemporaryDirectory() as folder:
        source, target = Path(folder, "mlp.onnx"), Path(folder, "mlp-int8.onnx")
        source.write_bytes(_float_mlp())
        quantize_static(
            str(source),
            str(target),
            Rows(),
            quant_format=QuantFormat.QDQ,
            per_channel=False,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=["head"],
        )
        return target.read_bytes()


def dense(width: int, hidden: int) -> bytes:
    """ONNX bytes of a float32 network with two hidden layers of that size. Input `input` (n, width), output `score` (n, 1)."""
    return _network((width, hidden, hidden, 1))


def _float_mlp() -> bytes:
    return _network((len(RANK.columns), 128, 64, 1))


def _network(sizes: tuple[int, ...]) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(workloads.SEED)
    nodes, weights, tensor = [], [], "input"
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        w = (rng.normal(size=(n_in, n_out)) * np.sqrt(2.0 / n_in)).astype(np.float32)
        b = np.zeros(n_out, np.float32)
        weights += [numpy_helper.from_array(w, f"w{i}"), numpy_helper.from_array(b, f"b{i}")]
        out = "score" if last else f"h{i}"
        nodes.append(
            helper.make_node("Gemm", [tensor, f"w{i}", f"b{i}"], [out], name="head" if last else f"layer{i}")
        )
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"r{i}"], name=f"relu{i}"))
            tensor = f"r{i}"
    graph = helper.make_graph(
        nodes,
        "rank",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", sizes[0]])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
