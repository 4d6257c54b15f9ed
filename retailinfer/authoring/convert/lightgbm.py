"""LightGBM: Booster, LGBMClassifier, LGBMRegressor, LGBMRanker -> a forest, by their own text, or ONNX, with onnxmltools.

Rules:
  * LightGBM compares doubles (`x <= t`), the converted model compares float32. Thresholds are rounded **down** to
    float32 first, which keeps every comparison of a float32 x; rounding to the nearest, as the converter does, sends
    values that lie on a threshold the other way (probabilities off by up to 0.38).
  * Objectives that the converter does not know, but whose answer is the plain sum of leaves or its sigmoid, are
    converted under the name of one that it knows.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailinfer.authoring.convert import Converted, Predict
from retailinfer.authoring.trees import Parsed, given_names, labels_of
from retailinfer.authoring.trees.lightgbm_text import parse_text
from retailinfer.authoring.trees.nodes import float32_below
from retailinfer.errors import ConfigError, ModelError

__all__ = ["convert", "load", "predictor", "trees"]

OPSET = 15  # the newest that onnxmltools writes for trees

# Objective in the model's text -> one that the converter knows and that answers the same.
SAME_ANSWER = {
    "cross_entropy": "binary sigmoid:1",
    "xentropy": "binary sigmoid:1",
    "custom": "regression",
    "lambdarank": "regression",
    "mape": "regression",
    "none": "regression",
    "rank_xendcg": "regression",
    "regression_l1": "regression",
}


def load(data: bytes) -> Any:
    """The booster of a model's text.

    Without the sizes of the trees: LightGBM goes by them in several threads, and what fails there ends the process.
    """
    import lightgbm  # noqa: PLC0415 - optional extra

    text = data.decode("utf-8-sig").replace("\r\n", "\n")
    return lightgbm.Booster(model_str=re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE))


def predictor(model: Any, *, dtype: str) -> Predict:
    """The booster's own answers. LightGBM compares doubles, whatever it is given."""
    del dtype
    booster = _booster(model)

    def predict(matrix: NDArray[Any]) -> NDArray[np.float64]:
        answer: NDArray[np.float64] = np.asarray(booster.predict(matrix.astype(np.float64)), dtype=np.float64)
        return answer

    return predict


def trees(model: Any, *, dtype: str) -> tuple[Parsed, Predict]:
    """The model's forest, and its own answers. Raises: Unfit, ModelError, ConfigError."""
    parsed = parse_text(_booster(model).model_to_string(), dtype=dtype)
    if parsed.classes and labels_of(model):  # which only the scikit-learn wrapper knows
        parsed = replace(parsed, classes=labels_of(model))
    return parsed, predictor(model, dtype=dtype)


def _booster(model: Any) -> Any:
    import lightgbm  # noqa: PLC0415 - optional extra

    wrapped = isinstance(model, lightgbm.LGBMModel)
    if wrapped and not model.__sklearn_is_fitted__():
        raise ConfigError("the LightGBM model is not fitted", hint="call fit first")
    return model.booster_ if wrapped else model


def convert(model: Any, *, input_name: str, dtype: str) -> Converted:
    """See `authoring.convert.convert`."""
    import lightgbm  # noqa: PLC0415 - optional extra
    from onnxmltools import convert_lightgbm  # noqa: PLC0415 - optional extra
    from onnxmltools.convert.common.data_types import FloatTensorType  # noqa: PLC0415 - optional extra

    if dtype != "float32":
        raise ModelError(
            f"a LightGBM model takes float32, its tensor is {dtype}", hint='Tensor(..., dtype="float32")'
        )
    wrapped = isinstance(model, lightgbm.LGBMModel)
    booster: lightgbm.Booster = _booster(model)
    text = booster.model_to_string()
    if re.search(r"^is_linear=1", text, flags=re.MULTILINE):
        raise ModelError("LightGBM's linear trees have no form in ONNX", hint="train with linear_tree=False")
    objective = _objective(text)
    n_columns = booster.num_model_per_iteration()
    text = _average(
        _round_down(text), max(1, len(re.findall(r"^Tree=", text, flags=re.MULTILINE)) // n_columns)
    )
    exact = lightgbm.Booster(model_str=_rename(text, objective))
    if wrapped:
        subject = copy.copy(model)
        subject._Booster = exact
        labels = getattr(model, "_classes", None)
        if labels is not None and labels.dtype == np.bool_:
            subject._classes = labels.astype(np.int64)  # the converter takes what is no integer for text
        if objective in SAME_ANSWER:
            subject = exact
    else:
        subject = exact
    n = booster.num_feature()
    made = convert_lightgbm(
        subject, initial_types=[(input_name, FloatTensorType([None, n]))], zipmap=False, target_opset=OPSET
    )
    classifies = objective in ("binary", "cross_entropy", "xentropy", "multiclass", "multiclassova")
    classes = (labels_of(model) or tuple(range(max(2, n_columns)))) if classifies else ()
    ranks = objective in ("lambdarank", "rank_xendcg")
    return Converted(
        _without_ones(made).SerializeToString(),
        f"lightgbm.{type(model).__name__}",
        feature_names=given_names(booster.feature_name()),
        n_features=n,
        classes=classes,
        task="ranking" if ranks else "classification" if classifies else "regression",
        output="probabilities" if classifies else "variable",
        codes=_codes(text),
        predict=predictor(model, dtype=dtype),
    )


def _without_ones(made: Any) -> Any:
    """The converter multiplies by a constant 1. No number changes without it, and there is a node less to run."""
    ones = {t.name for t in made.graph.initializer if list(t.float_data) == [1.0]}
    for node in made.graph.node:
        if node.op_type == "Mul" and len(node.input) == 2 and node.input[1] in ones:
            node.op_type = "Identity"
            del node.input[1]
    used = {name for node in made.graph.node for name in node.input}
    for tensor in [t for t in made.graph.initializer if t.name not in used]:
        made.graph.initializer.remove(tensor)
    return made


def _codes(text: str) -> tuple[int, ...]:
    """Columns that LightGBM splits as categories: it lists their values (1:2:3) where others have a range ([0:1])."""
    found = re.search(r"^feature_infos=(.*)$", text, flags=re.MULTILINE)
    infos = found[1].split() if found else []
    return tuple(i for i, info in enumerate(infos) if re.fullmatch(r"-?\d+(:-?\d+)*", info))


def _objective(text: str) -> str:
    """First word of the model's objective; a model trained on a function of the user's has none."""
    found = re.search(r"^objective=(\S+)", text, flags=re.MULTILINE)
    return found[1] if found else "custom"


def _rename(text: str, objective: str) -> str:
    same = SAME_ANSWER.get(objective)
    if same is None:
        return text
    # The converter reads the parameters of the training at the end of the text, LightGBM the line at its top.
    text = re.sub(
        r"^\[objective: .*\]$", f"[objective: {same.split()[0]}]", text, count=1, flags=re.MULTILINE
    )
    if re.search(r"^objective=", text, flags=re.MULTILINE):
        return re.sub(r"^objective=.*$", f"objective={same}", text, count=1, flags=re.MULTILINE)
    return re.sub(r"^(feature_names=)", rf"objective={same}\n\1", text, count=1, flags=re.MULTILINE)


def _average(text: str, rounds: int) -> str:
    """A random forest answers with the mean of its trees; the converted model sums, so each leaf is divided instead."""
    if not re.search(r"^average_output$", text, flags=re.MULTILINE):
        return text

    def one(match: re.Match[str]) -> str:
        return match[1] + " ".join(repr(float(v) / rounds) for v in match[2].split())

    text = re.sub(r"^average_output\n", "", text, count=1, flags=re.MULTILINE)
    return re.sub(r"^(leaf_value=)(.*)$", one, text, flags=re.MULTILINE)


def _round_down(text: str) -> str:
    """The model's text with every threshold rounded down to float32 (indices of categorical splits are exact already).

    The line with the sizes of the trees goes: they change, and LightGBM reads tree by tree without it.
    """

    def one(match: re.Match[str]) -> str:
        down = float32_below(np.array(match[2].split(), dtype=np.float64))
        return match[1] + " ".join(repr(float(v)) for v in down.astype(np.float64))

    text = re.sub(r"^tree_sizes=.*\n", "", text, count=1, flags=re.MULTILINE)
    return re.sub(r"^(threshold=)(.*)$", one, text, flags=re.MULTILINE)
