"""Logs and registers models by MLflow's own client; runs in its environment (../mlflows.py), not in ours.

net: ONNX, whose weights MLflow puts beside the graph, with alias `champion`. boost: LightGBM's booster, from a run with a
commit, figures and a data set. xgb, cat: files of XGBoost and CatBoost, as their flavors lay them out (their packages are too
large to have here for that). code: a Python object, which MLflow can only pickle.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import lightgbm
import mlflow
import numpy as np
import onnx
from mlflow.models import Model


class Doubles(mlflow.pyfunc.PythonModel):
    """Any Python object."""

    def predict(self, context: object, model_input: object, params: object = None) -> object:
        """The input."""
        return model_input


def as_flavor(name: str, flavor: str, file: Path, **said: str) -> None:
    """A file and the `MLmodel` that its flavor writes, as artifacts of a run: the way of MLflow 2."""
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run() as run:
        shutil.copy(file, Path(folder) / file.name)
        made = Model(artifact_path="model", run_id=run.info.run_id)
        made.add_flavor(flavor, data=file.name, code=None, **said)
        made.save(str(Path(folder) / "MLmodel"))
        mlflow.log_artifacts(folder, "model")
        client.create_registered_model(name)
        client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id)


models = Path(sys.argv[1])
client = mlflow.MlflowClient()
with mlflow.start_run() as of_net:
    mlflow.onnx.log_model(
        onnx.load(models / "net.onnx"), name="model", registered_model_name="net", pip_requirements=[]
    )
client.set_registered_model_alias("net", "champion", "1")
client.update_model_version("net", "1", description="found by a long search")
rows = np.zeros((3, 4))
with mlflow.start_run() as of_boost:
    mlflow.log_metrics({"auc": 0.75, "nothing": float("nan")})
    mlflow.log_param("depth", 4)
    mlflow.set_tag("mlflow.source.git.commit", "4f1c2ab" + "0" * 33)
    mlflow.log_input(mlflow.data.from_numpy(rows, name="payments"), context="training")
    booster = lightgbm.Booster(model_file=str(models / "boost.txt"))
    mlflow.lightgbm.log_model(booster, name="model", registered_model_name="boost", pip_requirements=[])
as_flavor("xgb", "xgboost", models / "model.ubj", model_class="xgboost.core.Booster", model_format="ubj")
as_flavor("cat", "catboost", models / "model.cb", model_type="CatBoostClassifier", save_format="cbm")
with mlflow.start_run():
    mlflow.pyfunc.log_model(
        name="model", python_model=Doubles(), registered_model_name="code", pip_requirements=[]
    )
sys.stdout.write(json.dumps({"net": of_net.info.run_id, "boost": of_boost.info.run_id}) + "\n")
