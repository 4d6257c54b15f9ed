"""XGBoost: Booster, XGBClassifier, XGBRegressor, XGBRanker, random forests -> ONNX, with onnxmltools.

Rules:
  * The converter wants features named f0, f1, ...: it is given a copy without names; the names are kept for the check.
  * Only the trees that `predict` uses are converted (`best_iteration` after early stopping).
  * Rankers answer with the plain sum of leaves, so they are converted as a regression with the same trees.
XGBoost compares float32 (`x < t`), as the converted model does: thresholds need no care.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailinfer.authoring.convert import Converted, normalised
from retailinfer.errors import ConfigError, ModelError

__all__ = ["convert"]

OPSET = 15  # the newest that onnxmltools writes for trees


def convert(model: Any, *, input_name: str, dtype: str) -> Converted:
    """See `authoring.convert.convert`."""
    import xgboost  # noqa: PLC0415 - optional extra
    from onnxmltools import convert_xgboost  # noqa: PLC0415 - optional extra
    from onnxmltools.convert.common.data_types import FloatTensorType  # noqa: PLC0415 - optional extra

    if dtype != "float32":
        raise ModelError(
            f"an XGBoost model takes float32, its tensor is {dtype}", hint='Tensor(..., dtype="float32")'
        )
    wrapped = isinstance(model, xgboost.XGBModel)
    if wrapped and not model.__sklearn_is_fitted__():
        raise ConfigError("the XGBoost model is not fitted", hint="call fit first")
    booster: xgboost.Booster = model.get_booster() if wrapped else model
    names = booster.feature_names
    n = booster.num_features()
    objective = _objective(booster)
    plain = _plain_copy(xgboost, booster, objective)
    ranks = objective.startswith("rank:")
    classifies = objective.startswith(("binary:log", "multi:"))
    subject: Any = plain
    if wrapped and not ranks:
        subject = copy.copy(model)
        subject._Booster = plain
    made = convert_xgboost(
        subject, initial_types=[(input_name, FloatTensorType([None, n]))], target_opset=OPSET
    )
    classes: tuple[str | int, ...] = ()
    if classifies and hasattr(model, "classes_"):
        classes = tuple(c.item() if isinstance(c, np.generic) else c for c in model.classes_)
    elif classifies:
        classes = tuple(
            range(
                max(2, int(json.loads(booster.save_config())["learner"]["learner_model_param"]["num_class"]))
            )
        )

    def predict(matrix: NDArray[Any]) -> NDArray[np.float64]:
        rows = xgboost.DMatrix(matrix.astype(np.float32), missing=np.nan)
        return np.asarray(plain.predict(rows), dtype=np.float64)

    return Converted(
        made.SerializeToString(),
        f"xgboost.{type(model).__name__}",
        feature_names=normalised(names),
        n_features=n,
        classes=classes,
        task="ranking" if ranks else "classification" if classifies else "regression",
        output="probabilities" if classifies else "variable",
        predict=predict,
    )


def _objective(booster: Any) -> str:
    return str(json.loads(booster.save_config())["learner"]["objective"]["name"])


def _plain_copy(xgboost: Any, booster: Any, objective: str) -> Any:
    """The booster without names, cut to the trees that predict, a ranking objective taken for a regression."""
    best = booster.attr("best_iteration")
    used = booster[: int(best) + 1] if best is not None else booster
    document = json.loads(used.save_raw("json"))
    learner = document["learner"]
    learner["feature_names"] = []
    if objective.startswith("rank:"):
        learner["objective"] = {"name": "reg:squarederror", "reg_loss_param": {"scale_pos_weight": "1"}}
    plain = xgboost.Booster()
    plain.load_model(bytearray(json.dumps(document), "utf-8"))
    plain.set_param({"nthread": 1})
    return plain
