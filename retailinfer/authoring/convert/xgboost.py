"""XGBoost: Booster, XGBClassifier, XGBRegressor, XGBRanker, random forests -> a forest, by their JSON, or ONNX (onnxmltools).

Rules:
  * The converter wants features named f0, f1, ...: it is given a copy without names; the names are kept for the check.
  * Only the trees that `predict` uses are converted (`best_iteration` after early stopping).
  * Rankers answer with the plain sum of leaves, so they are converted as a regression with the same trees.
XGBoost compares float32 (`x < t`), as the converted model does: thresholds need no care.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailinfer.authoring.convert import Converted, Predict
from retailinfer.authoring.trees import Parsed, given_names, labels_of
from retailinfer.authoring.trees.xgboost_json import parse
from retailinfer.errors import ConfigError, ModelError

__all__ = ["convert", "load", "predictor", "trees"]

OPSET = 15  # the newest that onnxmltools writes for trees


def load(data: bytes) -> Any:
    """The booster of a file, JSON or UBJSON."""
    import xgboost  # noqa: PLC0415 - optional extra

    booster = xgboost.Booster()
    booster.load_model(bytearray(data))
    return booster


def predictor(model: Any, *, dtype: str) -> Predict:
    """The booster's own answers, of the trees that predict. XGBoost narrows to float32, whatever it is given."""
    del dtype
    import xgboost  # noqa: PLC0415 - optional extra

    booster = _booster(xgboost, model)
    objective = _objective(booster)
    plain = _plain_copy(xgboost, booster, objective)
    if objective == "multi:softmax":
        plain.set_param({"objective": "multi:softprob"})  # the probabilities, not which is the largest

    def predict(matrix: NDArray[Any]) -> NDArray[np.float64]:
        rows = xgboost.DMatrix(
            matrix.astype(np.float32),
            missing=np.nan,
            feature_types=booster.feature_types,
            enable_categorical=True,
        )
        return np.asarray(plain.predict(rows), dtype=np.float64)

    return predict


def trees(model: Any, *, dtype: str) -> tuple[Parsed, Predict]:
    """The model's forest, and its own answers. Raises: Unfit, ModelError, ConfigError."""
    import xgboost  # noqa: PLC0415 - optional extra

    parsed = parse(bytes(_used(_booster(xgboost, model)).save_raw("ubj")), dtype=dtype)
    if parsed.classes and labels_of(model):  # which only the scikit-learn wrapper knows
        parsed = replace(parsed, classes=labels_of(model))
    return parsed, predictor(model, dtype=dtype)


def _booster(xgboost: Any, model: Any) -> Any:
    wrapped = isinstance(model, xgboost.XGBModel)
    if wrapped and not model.__sklearn_is_fitted__():
        raise ConfigError("the XGBoost model is not fitted", hint="call fit first")
    return model.get_booster() if wrapped else model


def _used(booster: Any) -> Any:
    """The booster cut to the trees that predict (`best_iteration` after early stopping)."""
    best = booster.attr("best_iteration")
    return booster[: int(best) + 1] if best is not None else booster


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
    booster: xgboost.Booster = _booster(xgboost, model)
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
    if classifies:
        classes = labels_of(model) or tuple(
            range(
                max(2, int(json.loads(booster.save_config())["learner"]["learner_model_param"]["num_class"]))
            )
        )
    return Converted(
        made.SerializeToString(),
        f"xgboost.{type(model).__name__}",
        feature_names=given_names(names),
        n_features=n,
        classes=classes,
        task="ranking" if ranks else "classification" if classifies else "regression",
        output="probabilities" if classifies else "variable",
        predict=predictor(model, dtype=dtype),
    )


def _objective(booster: Any) -> str:
    return str(json.loads(booster.save_config())["learner"]["objective"]["name"])


def _plain_copy(xgboost: Any, booster: Any, objective: str) -> Any:
    """The booster without names, cut to the trees that predict, a ranking objective taken for a regression."""
    document = json.loads(_used(booster).save_raw("json"))
    learner = document["learner"]
    learner["feature_names"] = []
    if objective.startswith("rank:"):
        learner["objective"] = {"name": "reg:squarederror", "reg_loss_param": {"scale_pos_weight": "1"}}
    plain = xgboost.Booster()
    plain.load_model(bytearray(json.dumps(document), "utf-8"))
    plain.set_param({"nthread": 1})
    return plain
