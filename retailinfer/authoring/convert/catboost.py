"""CatBoost: CatBoostClassifier, CatBoostRegressor, CatBoostRanker, CatBoost -> a forest, by its own JSON, or its own ONNX.

Rules:
  * CatBoost writes both formats itself, into files only: a temporary one. The tree engine reads the JSON; it has more in it.
  * Its ONNX knows no categories, and leaves out the exponent that predictions of Poisson and Tweedie end with: that is put in.
  * `predict` takes rows as a release has them: codes of categories become integers again, and what is missing in a feature
    that had nothing missing in training, which CatBoost refuses, is below all borders.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailinfer.authoring.convert import Converted, Predict
from retailinfer.authoring.trees import Parsed, given_names, labels_of
from retailinfer.authoring.trees.catboost_json import parse
from retailinfer.errors import ConfigError, ModelError, clip

__all__ = ["convert", "load", "predictor", "read_cbm", "trees"]

EXPONENTS = ("Poisson", "Tweedie")
CLASSES = ("CrossEntropy", "Focal", "Logloss", "Multi")
REGRESSIONS = ("MultiQuantile", "MultiRMSE")
UNKNOWN = "no integer"  # the text of a category that no model has


def convert(model: Any, *, input_name: str, dtype: str) -> Converted:
    """See `authoring.convert.convert`."""
    if dtype != "float32":
        raise ModelError(
            f"CatBoost's ONNX takes float32, its tensor is {dtype}", hint='Tensor(..., dtype="float32")'
        )
    document = json.loads(_json_of(model))
    features = document["features_info"]
    if features.get("categorical_features"):
        raise ModelError(
            "CatBoost's ONNX knows no categories",
            hint='pack it with engine="trees", which compares codes of categories where CatBoost does (one_hot_max_size)',
        )
    classifies = _classifies(model, document)
    made = _onnx(model, input_name, with_exponent=_loss(document) in EXPONENTS)
    names = [str(name) for name in model.feature_names_]
    return Converted(
        made,
        f"catboost.{type(model).__name__}",
        feature_names=None if names == [str(i) for i in range(len(names))] else given_names(names),
        n_features=len(names),
        classes=_classes(model) if classifies else (),
        task="classification"
        if classifies
        else "ranking"
        if type(model).__name__ == "CatBoostRanker"
        else "regression",
        output="probabilities" if classifies else "predictions",
        predict=predictor(model, dtype=dtype),
    )


def load(data: bytes) -> Any:
    """The model of a file, JSON."""
    from catboost import CatBoost  # noqa: PLC0415 - optional extra

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.json"
        path.write_bytes(data)
        return CatBoost().load_model(str(path), format="json")


def read_cbm(data: bytes) -> Any:
    """The model of a file in CatBoost's binary format, which only CatBoost reads. Raises: ConfigError, ModelError."""
    try:
        from catboost import CatBoost, CatBoostError  # noqa: PLC0415 - optional extra
    except ImportError as exc:
        raise ConfigError(
            "CatBoost's binary format needs CatBoost", hint="pip install 'retailinfer[catboost]'"
        ) from exc
    try:
        return CatBoost().load_model(blob=data)
    except CatBoostError as exc:
        raise ModelError(f"CatBoost cannot read its file: {clip(str(exc), 200)}") from exc


def trees(model: Any, *, dtype: str) -> tuple[Parsed, Predict]:
    """The model's forest, and its own answers. Raises: Unfit, ModelError, ConfigError."""
    parsed = parse(_json_of(model), dtype=dtype)
    return parsed, predictor(model, dtype=dtype)


def predictor(model: Any, *, dtype: str) -> Predict:
    """The model's own answers: probabilities of a classifier, else its predictions. CatBoost narrows to float32 itself."""
    del dtype
    document = json.loads(_json_of(model))
    info = document["features_info"]
    full = [one["flat_feature_index"] for one in info.get("float_features") or [] if not one["has_nans"]]
    codes = [one["flat_feature_index"] for one in info.get("categorical_features") or []]

    ask = getattr(model, "predict_proba", model.predict)
    if type(model).__name__ == "CatBoost":  # of no kind: it has to be told what it was trained for
        kind = "Probability" if _classifies(model, document) else "RawFormulaVal"
        kind = "Exponent" if _loss(document) in EXPONENTS else kind
        ask = partial(model.predict, prediction_type=kind)

    def predict(matrix: NDArray[Any]) -> NDArray[np.float64]:
        rows: NDArray[Any] = np.array(matrix)
        rows[:, full] = np.where(np.isnan(rows[:, full]), -np.inf, rows[:, full])
        if codes:
            known = rows.astype(object)
            for column in codes:
                known[:, column] = [
                    str(int(v)) if np.isfinite(v) and v == int(v) else UNKNOWN for v in rows[:, column]
                ]
            rows = known
        return np.asarray(ask(rows), dtype=np.float64)

    return predict


def _json_of(model: Any) -> bytes:
    """The model as CatBoost's own JSON. Raises: ConfigError when it is not fitted."""
    if not model.is_fitted():
        raise ConfigError("the CatBoost model is not fitted", hint="call fit first")
    return _saved(model, "json")


def _saved(model: Any, kind: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        model.save_model(str(path), format=kind)
        return path.read_bytes()


def _loss(document: dict[str, Any]) -> str:
    loss = document.get("model_info", {}).get("params", {}).get("loss_function", {})
    return str(loss.get("type", ""))


def _classifies(model: Any, document: dict[str, Any]) -> bool:
    loss = _loss(document)
    return hasattr(model, "predict_proba") or (loss.startswith(CLASSES) and not loss.startswith(REGRESSIONS))


def _classes(model: Any) -> tuple[str | int, ...]:
    return tuple(int(one) if isinstance(one, float) and one.is_integer() else one for one in labels_of(model))


def _onnx(model: Any, input_name: str, *, with_exponent: bool) -> bytes:
    """CatBoost's own ONNX, its input renamed."""
    import onnx  # noqa: PLC0415 - optional extra

    made = onnx.load_model_from_string(_saved(model, "onnx"))
    graph = made.graph
    old = graph.input[0].name
    graph.input[0].name = input_name
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = input_name
    if with_exponent:
        node = next(one for one in graph.node if "predictions" in one.output)
        node.output[list(node.output).index("predictions")] = "sums"
        graph.node.append(onnx.helper.make_node("Exp", ["sums"], ["predictions"]))
        if not any(one.domain == "" for one in made.opset_import):
            made.opset_import.append(onnx.helper.make_opsetid("", 13))
    data: bytes = made.SerializeToString()
    return data
