"""scikit-learn: fitted models and pipelines over one numeric matrix -> a forest, or ONNX, with skl2onnx.

Rules:
  * One matrix goes in, float32 or float64. Pipelines over named columns of a table belong into a feature spec.
  * A LightGBM or XGBoost model at the end of a pipeline is converted by onnxmltools.
  * Classifiers give a tensor of probabilities, never a list of dictionaries.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailinfer.authoring.convert import Converted, Predict
from retailinfer.authoring.trees import Parsed, given_names, labels_of
from retailinfer.errors import ConfigError, ModelError

__all__ = ["convert", "trees"]

OPSET = {"": 17, "ai.onnx.ml": 3}


def trees(model: Any, *, dtype: str) -> tuple[Parsed, Predict]:
    """The model's forest, and its own answers. Raises: Unfit, ModelError, ConfigError."""
    from sklearn.base import is_classifier, is_outlier_detector  # noqa: PLC0415 - optional extra

    from retailinfer.authoring.trees.sklearn_forest import parse  # noqa: PLC0415 - for models that are trees

    _check_fitted(model)
    parsed = parse(model, dtype=dtype)
    return parsed, _predict(model, dtype, is_classifier(model) or is_outlier_detector(model))


def _check_fitted(model: Any) -> None:
    from sklearn.exceptions import NotFittedError  # noqa: PLC0415 - optional extra
    from sklearn.utils.validation import check_is_fitted  # noqa: PLC0415 - optional extra

    try:
        check_is_fitted(model)
    except NotFittedError as exc:
        raise ConfigError("the scikit-learn model is not fitted", hint="call fit first") from exc


def convert(model: Any, *, input_name: str, dtype: str) -> Converted:
    """See `authoring.convert.convert`."""
    from skl2onnx import convert_sklearn  # noqa: PLC0415 - optional extra
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType  # noqa: PLC0415 - optional extra
    from sklearn.base import is_classifier, is_outlier_detector, is_regressor  # noqa: PLC0415 - optional extra

    kinds = {"float32": FloatTensorType, "float64": DoubleTensorType}
    if dtype not in kinds:
        raise ModelError(f"a scikit-learn model takes float32 or float64, its tensor is {dtype}")
    _check_fitted(model)
    n = getattr(model, "n_features_in_", None)
    if n is None:
        raise ModelError(
            f"{type(model).__name__} does not say how many features it was fitted on",
            hint="export it to ONNX yourself",
        )
    if dtype == "float64" and _parts_missing_values(model):
        raise ModelError(
            f"skl2onnx does not come to an end on {type(model).__name__}: splits of it part missing values from all others",
            hint='engine="auto" and "trees" read its trees without skl2onnx; or give its tensor dtype float32',
        )
    _register_boosters()
    classifies = is_classifier(model)
    arguments: dict[str, Any] = {
        "initial_types": [(input_name, kinds[dtype]([None, int(n)]))],
        "target_opset": OPSET,
        **_repairs(),
    }
    try:
        options = {id(model): {"zipmap": False}} if classifies else None
        made = convert_sklearn(model, options=options, **arguments)
    except NameError:  # classifiers without probabilities have no such option
        made = convert_sklearn(model, **arguments)
    outputs = [one.name for one in made.graph.output]
    names = [str(c) for c in model.feature_names_in_] if hasattr(model, "feature_names_in_") else None
    return Converted(
        made.SerializeToString(),
        f"{type(model).__module__.partition('.')[0]}.{type(model).__name__}",
        feature_names=given_names(names),
        n_features=int(n),
        classes=labels_of(model) if classifies and hasattr(model, "predict_proba") else (),
        task="classification" if classifies else "regression" if is_regressor(model) else None,
        output=next((name for name in ("probabilities", "scores", "variable") if name in outputs), None),
        predict=_predict(model, dtype, classifies or is_outlier_detector(model)),
    )


def _predict(model: Any, dtype: str, decides: bool) -> Predict:
    """The model's own answer, without its warning that arrays have no column names."""
    if getattr(model, "n_jobs", None) not in (None, 1):
        model = copy.copy(model)
        model.n_jobs = 1  # threads add the answers of trees in the order in which they come

    def predict(matrix: NDArray[Any]) -> NDArray[np.float64]:
        ask = model.predict
        if decides:
            ask = getattr(model, "predict_proba", None) or getattr(model, "decision_function", model.predict)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(ask(matrix.astype(dtype)), dtype=np.float64)

    return predict


def _parts_missing_values(model: Any) -> bool:
    """Whether a tree in it has a split at infinity, between which and the next double skl2onnx searches for ever."""
    if hasattr(model, "steps"):
        return any(_parts_missing_values(step) for _, step in model.steps)
    if hasattr(model, "tree_"):
        return bool(np.isinf(model.tree_.threshold).any())
    return any(_parts_missing_values(one) for one in np.ravel(getattr(model, "estimators_", [])))


def _register_boosters() -> None:
    """Tell skl2onnx how to convert boosters that stand in a pipeline, where they are installed."""
    from skl2onnx import update_registered_converter  # noqa: PLC0415 - optional extra
    from skl2onnx.common import shape_calculator  # noqa: PLC0415 - optional extra

    classes = shape_calculator.calculate_linear_classifier_output_shapes
    numbers = shape_calculator.calculate_linear_regressor_output_shapes
    options = {"nocl": [True, False], "zipmap": [True, False, "columns"]}
    try:
        import lightgbm  # noqa: PLC0415 - optional extra
        from onnxmltools.convert.lightgbm.operator_converters.LightGbm import (  # noqa: PLC0415 - optional extra
            convert_lightgbm,
        )
    except ImportError:
        pass
    else:
        for kind, alias, shapes, allowed in (
            (lightgbm.LGBMClassifier, "LightGbmLGBMClassifier", classes, options),
            (lightgbm.LGBMRegressor, "LightGbmLGBMRegressor", numbers, None),
        ):
            update_registered_converter(kind, alias, shapes, convert_lightgbm, options=allowed)
    try:
        import xgboost  # noqa: PLC0415 - optional extra
        from onnxmltools.convert.xgboost.operator_converters.XGBoost import (  # noqa: PLC0415 - optional extra
            convert_xgboost,
        )
    except ImportError:
        pass
    else:
        for kind, alias, shapes, allowed in (
            (xgboost.XGBClassifier, "XGBoostXGBClassifier", classes, options),
            (xgboost.XGBRegressor, "XGBoostXGBRegressor", numbers, None),
        ):
            update_registered_converter(kind, alias, shapes, convert_xgboost, options=allowed)


def _repairs() -> dict[str, Any]:
    """Wrap the converters of histogram boosting: they write NumPy scalars, which newer versions of `onnx` refuse."""
    from skl2onnx._supported_operators import sklearn_operator_name_map  # noqa: PLC0415 - optional extra
    from skl2onnx.common._registration import get_converter, get_shape_calculator  # noqa: PLC0415 - optional extra
    from sklearn.ensemble import (  # noqa: PLC0415 - optional extra
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
    )

    functions: dict[type, Any] = {}
    shapes: dict[type, Any] = {}
    for kind in (HistGradientBoostingClassifier, HistGradientBoostingRegressor):
        alias = sklearn_operator_name_map.get(kind)
        if alias is None:
            continue
        original = get_converter(alias)
        shapes[kind] = get_shape_calculator(alias)
        functions[kind] = lambda scope, operator, container, original=original: original(
            scope, operator, _PlainNumbers(container)
        )
    return {"custom_conversion_functions": functions, "custom_shape_calculators": shapes}


class _PlainNumbers:
    """skl2onnx's container of nodes, which turns NumPy scalars in lists of attributes into Python's numbers."""

    def __init__(self, container: Any) -> None:
        object.__setattr__(self, "_container", container)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._container, name, value)

    def add_node(self, *args: Any, **attributes: Any) -> Any:
        plain = {
            key: [_plain(v) for v in value] if isinstance(value, list) else value
            for key, value in attributes.items()
        }
        return self._container.add_node(*args, **plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return int(value) if isinstance(value, bool) else value
