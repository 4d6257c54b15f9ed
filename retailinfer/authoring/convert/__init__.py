"""From whatever was trained to an ONNX file, and the trainer's own answers to compare with.

Rules:
  * One file per trainer, imported only when such a model is given. The trainer is known by the module of the model's
    class, so nothing is imported to find out.
  * A converter's own exceptions stop here: they become a ModelError that names the model.
  * Every conversion brings `predict`, the trainer's own scores: pack compares them with the converted model's.
onnx_file.py = a path or bytes; lightgbm.py, xgboost.py, sklearn.py = fitted models.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailinfer.errors import ConfigError, ModelError, RetailInferError, clip

__all__ = ["Converted", "Predict", "convert", "normalised"]

Predict = Callable[[NDArray[Any]], NDArray[np.float64]]


@dataclass(frozen=True)
class Converted:
    """A model as ONNX, and what its trainer knows of it.

    Attributes:
        data: the ONNX file. source: "onnx", "lightgbm.LGBMClassifier", ...
        feature_names: columns of the training matrix; None where the trainer was not told any.
        n_features: width of that matrix; None where it is not known.
        classes: labels in the order of the probabilities' columns. task: None where it cannot be told.
        output: name of the output that `predict` computes. None: nothing to compare with.
        codes: columns that hold codes of categories, not quantities.
        predict: matrix, shape (rows, n_features) -> shape (rows,) or (rows, columns).
        text: the model in its trainer's own text, where the tree engine reads that: LightGBM.
    """

    data: bytes
    source: str
    feature_names: tuple[str, ...] | None = None
    n_features: int | None = None
    classes: tuple[str | int, ...] = ()
    task: str | None = None
    output: str | None = None
    codes: tuple[int, ...] = ()
    predict: Predict | None = None
    text: str | None = None


# First part of the module of a model's class (or of a base class) -> the file here that converts it.
_TRAINERS = {"lightgbm": "lightgbm", "xgboost": "xgboost", "sklearn": "sklearn"}


def convert(model: Any, *, input_name: str, dtype: str = "float32") -> Converted:
    """Bring a model into ONNX.

    Args:
        model: path or bytes of an ONNX file, an onnx.ModelProto, or a fitted LightGBM, XGBoost or scikit-learn model.
        input_name: what a converted model's one input is called. dtype: of that input; float64 for scikit-learn only.
    Raises: ModelError when it cannot be converted; ConfigError when it is no model, or its converter is not installed.
    """
    if isinstance(model, (str, bytes, bytearray, memoryview, os.PathLike)) or _module(type(model)) == "onnx":
        from retailinfer.authoring.convert.onnx_file import read_onnx  # noqa: PLC0415 - with its own imports

        return read_onnx(model)
    trainer = next((_TRAINERS[m] for m in map(_module, type(model).__mro__) if m in _TRAINERS), None)
    if trainer is None:
        raise ConfigError(
            f"Expected an ONNX file, or a fitted LightGBM, XGBoost or scikit-learn model, got "
            f"`{type(model).__module__}.{type(model).__qualname__}`",
            hint=_advice(type(model)),
        )
    name = f"{_module(type(model))}.{type(model).__name__}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # about versions and names; what matters is compared with `predict`
            converted: Converted = import_module(f"{__name__}.{trainer}").convert(
                model, input_name=input_name, dtype=dtype
            )
    except RetailInferError:
        raise
    except ImportError as exc:
        raise ConfigError(
            f"converting {name} needs {exc.name or exc}", hint=f"pip install 'retailinfer[{trainer}]'"
        ) from exc
    except Exception as exc:  # converters raise whatever their insides raise
        raise ModelError(
            f"{name} cannot be converted to ONNX: {type(exc).__name__}: {clip(str(exc), 200)}",
            hint="export it to ONNX yourself and pack the file, or change the part of the model that is named",
        ) from exc
    return converted


def normalised(names: Sequence[Any] | None) -> tuple[str, ...] | None:
    """Feature names as text; None for names that a trainer made up because it was given none."""
    if names is None or len(names) == 0:
        return None
    texts = tuple(str(n) for n in names)
    if any(
        all(text == f"{lead}{i}" for i, text in enumerate(texts))
        for lead in ("Column_", "f", "x", "feature_")
    ):
        return None
    return texts


def _module(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _advice(cls: type) -> str:
    kinds = {_module(c) for c in cls.__mro__}
    if "torch" in kinds:
        return "torch.onnx.export(model, ..., dynamic_axes={input: {0: 'rows'}}) writes a file that can be packed"
    if kinds & {"tensorflow", "keras"}:
        return "tf2onnx writes a file that can be packed"
    if "catboost" in kinds:
        return 'model.save_model("model.onnx", format="onnx") writes a file that can be packed'
    return "export it to ONNX, and pack the file"
