"""From whatever was trained to what a release can hold, and the trainer's own answers to compare with.

Rules:
  * A tree ensemble becomes a forest, read from the trainer's own form of it; everything else becomes an ONNX file. `engine`
    says whether that is left to us ("auto"), or which of the two it must be.
  * One file per trainer, imported only when such a model is given. The trainer is known by the module of the model's
    class, or by what its file holds, so nothing is imported to find out.
  * A converter's own exceptions stop here: they become a ModelError that names the model.
  * Every conversion of a fitted model brings `predict`, the trainer's own scores: pack compares them with the converted
    model's. A trainer's file brings it where that trainer is installed.
onnx_file.py = a path or bytes; lightgbm.py, xgboost.py, sklearn.py, catboost.py = fitted models. Each has `convert` (to ONNX)
and `trees` (to a forest). Parsers of forests are in authoring/trees/.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from retailinfer.authoring.trees import Parsed, Unfit
from retailinfer.authoring.trees.files import FileKind, kind_of, parse_file
from retailinfer.errors import ConfigError, ModelError, RetailInferError, SchemaMismatchError, clip

if TYPE_CHECKING:
    from retailinfer.runtime.trees import Forest

__all__ = ["Converted", "EngineChoice", "Predict", "convert"]

EngineChoice = Literal["auto", "onnx", "trees"]
Predict = Callable[[NDArray[Any]], NDArray[np.float64]]


@dataclass(frozen=True)
class Converted:
    """A model as ONNX or as a forest, and what its trainer knows of it.

    Attributes:
        data: the ONNX file; empty where there is a forest. source: "onnx", "lightgbm.LGBMClassifier", ...
        feature_names: columns of the training matrix; None where the trainer was not told any.
        n_features: width of that matrix; None where it is not known.
        classes: labels in the order of the probabilities' columns. task: None where it cannot be told.
        output: name of the output that `predict` computes. None: nothing to compare with.
        codes: columns that hold codes of categories, not quantities.
        predict: matrix, shape (rows, n_features) -> shape (rows,) or (rows, columns).
        forest: the model as trees, where that is what runs.
        why: why there is no forest, where one was looked for.
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
    forest: Forest | None = None
    why: str = ""


# First part of the module of a model's class (or of a base class) -> the file here that converts it.
_TRAINERS = {"lightgbm": "lightgbm", "xgboost": "xgboost", "sklearn": "sklearn", "catboost": "catboost"}
_TRAINER_OF: dict[FileKind, str] = {
    "lightgbm": "lightgbm",
    "lightgbm-json": "lightgbm",
    "xgboost": "xgboost",
    "catboost": "catboost",
}


def convert(
    model: Any, *, input_name: str, dtype: str = "float32", engine: EngineChoice = "onnx"
) -> Converted:
    """Bring a model into a form that a release can hold.

    Args:
        model: path or bytes of an ONNX file, an onnx.ModelProto; path or bytes of a file that LightGBM (text, JSON), XGBoost
            (JSON, UBJSON) or CatBoost (JSON) wrote; or a fitted LightGBM, XGBoost, CatBoost or scikit-learn model.
        input_name: what a converted model's one input is called. dtype: of that input; in ONNX, float64 for scikit-learn only.
        engine: "trees" = a forest or an error; "onnx" = ONNX; "auto" = a forest where there is an exact one, else ONNX.
            ONNX files stay ONNX here: pack looks for their trees when it knows which output is the score.
    Raises: ModelError when it cannot be converted; SchemaMismatchError when it has no exact form as a forest and must;
        ConfigError when it is no model, or its converter is not installed.
    """
    if isinstance(model, (str, bytes, bytearray, memoryview, os.PathLike)) or _module(type(model)) == "onnx":
        from retailinfer.authoring.convert.onnx_file import read_onnx  # noqa: PLC0415 - with its own imports

        given = read_onnx(model)
        kind = kind_of(given.data)
        return given if kind is None else _of_file(given.data, kind, input_name, dtype, engine)
    trainer = next((_TRAINERS[m] for m in map(_module, type(model).__mro__) if m in _TRAINERS), None)
    if trainer is None:
        raise ConfigError(
            f"Expected a model file, or a fitted LightGBM, XGBoost, CatBoost or scikit-learn model, got "
            f"`{type(model).__module__}.{type(model).__qualname__}`",
            hint=_advice(type(model)),
        )
    name = f"{_module(type(model))}.{type(model).__name__}"
    return _of_object(model, trainer, name, input_name, dtype, engine)


def _of_object(
    model: Any, trainer: str, name: str, input_name: str, dtype: str, engine: EngineChoice
) -> Converted:
    why = ""
    if engine != "onnx":
        try:
            parsed, predict = _call(trainer, name, "trees", model, dtype=dtype)
        except Unfit as exc:
            why = str(exc)
        else:
            return replace(_grown(parsed, input_name, predict), source=name)
        if engine == "trees":
            raise _no_forest(name, why)
    converted: Converted = _call(trainer, name, "convert", model, input_name=input_name, dtype=dtype)
    return replace(converted, why=why)


def _of_file(data: bytes, kind: FileKind, input_name: str, dtype: str, engine: EngineChoice) -> Converted:
    trainer = _TRAINER_OF[kind]
    why = ""
    if engine != "onnx":
        try:
            parsed = parse_file(data, kind, dtype=dtype)
        except Unfit as exc:
            why = str(exc)
        else:
            return _grown(parsed, input_name, _predict_of_file(data, kind, dtype))
        if engine == "trees":
            raise _no_forest(f"the {trainer} file", why)
    if kind == "lightgbm-json":
        raise SchemaMismatchError(
            f"LightGBM's JSON cannot be loaded again, so there is no ONNX of it{why and f', and no forest: {why}'}",
            hint="give the model's text: booster.save_model(path)",
        )
    name = f"the {trainer} file"
    loaded = _call(trainer, name, "load", data)
    converted: Converted = _call(trainer, name, "convert", loaded, input_name=input_name, dtype=dtype)
    return replace(converted, why=why)


def _grown(parsed: Parsed, input_name: str, predict: Predict | None) -> Converted:
    forest = msgspec.structs.replace(parsed.forest, input=input_name)
    return Converted(
        b"",
        parsed.source,
        feature_names=parsed.feature_names,
        n_features=forest.n_features,
        classes=parsed.classes,
        task=parsed.task,
        output=forest.output,
        codes=parsed.codes,
        predict=predict,
        forest=forest,
    )


def _predict_of_file(data: bytes, kind: FileKind, dtype: str) -> Predict | None:
    """The trainer's own answers, where it is installed and reads what it wrote."""
    if kind == "lightgbm-json":
        return None  # LightGBM writes it and never reads it
    trainer = _TRAINER_OF[kind]
    try:
        loaded = _call(trainer, f"the {trainer} file", "load", data)
        predict: Predict = _call(trainer, f"the {trainer} file", "predictor", loaded, dtype=dtype)
    except (ConfigError, ModelError):
        return None
    return predict


def _no_forest(name: str, why: str) -> SchemaMismatchError:
    return SchemaMismatchError(
        f"{name} has no exact form as a forest: {why}", hint='pack it with engine="onnx"'
    )


def _call(trainer: str, name: str, function: str, *args: Any, **options: Any) -> Any:
    """One function of a trainer's file here. Foreign exceptions become typed ones."""
    try:
        with warnings.catch_warnings():
            # about versions and names; what matters is compared with `predict`
            warnings.simplefilter("ignore")
            return getattr(import_module(f"{__name__}.{trainer}"), function)(*args, **options)
    except (RetailInferError, Unfit):
        raise
    except ImportError as exc:
        raise ConfigError(
            f"converting {name} needs {exc.name or exc}", hint=f"pip install 'retailinfer[{trainer}]'"
        ) from exc
    except Exception as exc:  # converters raise whatever their insides raise
        raise ModelError(
            f"{name} cannot be converted{'' if function == 'trees' else ' to ONNX'}: {type(exc).__name__}: "
            f"{clip(str(exc), 200)}",
            hint="export it to ONNX yourself and pack the file, or change the part of the model that is named",
        ) from exc


def _module(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _advice(cls: type) -> str:
    kinds = {_module(c) for c in cls.__mro__}
    if "torch" in kinds:
        return "torch.onnx.export(model, ..., dynamic_axes={input: {0: 'rows'}}) writes a file that can be packed"
    if kinds & {"tensorflow", "keras"}:
        return "tf2onnx writes a file that can be packed"
    return "export it to ONNX, and pack the file"
