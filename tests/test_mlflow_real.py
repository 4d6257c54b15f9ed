"""Against MLflow itself: models that its client has logged become releases that answer as the files do.

Servers that lie are test_mlflow_hostile.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflows import MlflowServer

import retailinfer as ri
from retailinfer.errors import ModelError, RegistryError
from retailinfer.release.bundle import read_bundle

pytestmark = pytest.mark.requires("onnx", "yaml", "lightgbm", "xgboost", "catboost")
ROWS = np.random.default_rng(4).normal(size=(200, 4)).astype(np.float32)
LABELS = (ROWS[:, 0] + ROWS[:, 1] > 0).astype(int)


def write_models(folder: Path) -> dict[str, Any]:
    """Files as their trainers write them; name -> what scores `ROWS` there."""
    import catboost
    import lightgbm
    import xgboost
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir()
    random = np.random.default_rng(1)
    first, second = (random.normal(0, 0.3, shape).astype(np.float32) for shape in ((4, 512), (512, 1)))
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "first"], ["hidden"]),
            helper.make_node("Tanh", ["hidden"], ["curved"]),
            helper.make_node("MatMul", ["curved", "second"], ["score"]),
        ],
        "net",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", 4])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows", 1])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    net = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "net.onnx").write_bytes(net.SerializeToString())
    booster = lightgbm.train(
        {"objective": "binary", "verbose": -1, "num_threads": 1}, lightgbm.Dataset(ROWS, LABELS), 5
    )
    booster.save_model(str(folder / "boost.txt"))
    settings = {"objective": "binary:logistic", "nthread": 1}
    xgb = xgboost.train(settings, xgboost.DMatrix(ROWS, LABELS), 5)
    xgb.save_model(folder / "model.ubj")
    cat = catboost.CatBoostClassifier(iterations=5, verbose=0, allow_writing_files=False, thread_count=1)
    cat.fit(ROWS, LABELS)
    cat.save_model(str(folder / "model.cb"))
    return {
        "net": np.tanh(ROWS.astype(np.float64) @ first) @ second,
        "boost": booster.predict(ROWS),
        "xgb": xgb.predict(xgboost.DMatrix(ROWS)),
        "cat": cat.predict_proba(ROWS)[:, 1],
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Any]:
    """Name -> scores of `ROWS`."""
    folder: Path = tmp_path_factory.mktemp("models")
    return write_models(folder / "files") | {"folder": folder / "files"}


def answers(release: Path) -> Any:
    """Scores of `ROWS` by a release: a probability of two is that of the second."""
    with ri.Scorer.load(release, trust="unsigned") as scorer:
        found = scorer.score_arrays({scorer.spec.arrays[0].name: ROWS})
    (score,) = (one for one in found.values() if one.dtype == np.float32)
    return score.reshape(len(ROWS), -1)[:, -1]


@pytest.mark.timeout(400)
@pytest.mark.slow  # a server of MLflow takes some seconds to begin
def test_models_of_mlflow_become_releases(models, tmp_path, monkeypatch):
    """By alias and by version, in all four formats; the manifest says where they came from; what is pickled is refused."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "server").mkdir()
    with MlflowServer(tmp_path / "server") as server:
        runs = server.log(models["folder"])

        found = {
            name: ri.from_mlflow(f"models:/{name}/1", tracking_uri=server.url)
            for name in ("boost", "xgb", "cat")
        }
        found["net"] = ri.from_mlflow("models:/net@champion", tracking_uri=server.url)
        for name, one in found.items():
            given = one.info | {"owner": "risk", "version": "1"}
            ri.pack(name, model=one.model, info=given, out=tmp_path / name)
            np.testing.assert_allclose(
                answers(tmp_path / name), models[name].reshape(-1), rtol=1e-5, atol=1e-5
            )
            origin = read_bundle(tmp_path / name).manifest.info.origin
            assert origin is not None
            assert (origin.registry, origin.uri, origin.name, origin.version) == (
                "mlflow",
                server.url,
                name,
                "1",
            )
            assert (origin.run, origin.sha256, origin.flavor) == (one.run, one.sha256, one.flavor)

        assert (found["net"].run, found["boost"].run) == (runs["net"], runs["boost"])
        assert found["net"].info["description"] == "found by a long search"
        told = read_bundle(tmp_path / "boost").manifest.info
        assert told.metrics == {"auc": 0.75}
        assert told.code is not None
        assert told.code.commit == "4f1c2ab" + "0" * 33
        assert list(told.origin.datasets) == ["payments"]
        assert found["boost"].model == (models["folder"] / "boost.txt").read_bytes()

        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        assert ri.from_mlflow("models:/boost/1").sha256 == found["boost"].sha256
        with pytest.raises(ModelError, match="logged as 'python_function'; of these none is a file"):
            ri.from_mlflow("models:/code/1")
        for missing in ("models:/nobody/1", "models:/boost/9", "models:/boost@nobody"):
            with pytest.raises(RegistryError, match="not found"):
                ri.from_mlflow(missing)
        with pytest.raises(RegistryError, match="Expected at most 100 bytes"):
            ri.from_mlflow("models:/boost/1", max_bytes=100)
