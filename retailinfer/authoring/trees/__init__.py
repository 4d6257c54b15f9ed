"""From models to forests: what a tree engine can run exactly, as the arrays of `runtime.trees.Forest`.

Rules:
  * A parser returns a forest, or says in one line why there is none (`Unfit`): then ONNX Runtime runs the model. A file
    that is damaged, or made to hurt, is a ModelError.
  * Nothing is approximated. What a parser makes is compared with its source bit by bit when a release is packed.
  * Files are text, JSON, UBJSON and protobuf. No pickle is ever read.
onnx_graph.py = ONNX graphs that are nothing but one tree ensemble; lightgbm_*.py, xgboost_json.py, catboost_json.py = the
trainers' own files; sklearn_forest.py = fitted estimators; nodes.py and documents.py = what parsers share; files.py = which
file is whose; use.py = who compares and decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from retailinfer.runtime.trees import Forest

__all__ = ["Parsed", "Unfit", "given_names", "labels_of"]


class Unfit(Exception):  # noqa: N818 - not an error of anybody: the other engine takes the model
    """Why a model has no exact form as a forest."""


@dataclass(frozen=True)
class Parsed:
    """A tree ensemble as its trainer wrote it down.

    Attributes:
        source: "lightgbm", "xgboost", "catboost", "sklearn.RandomForestClassifier", "onnx".
        feature_names: columns of the training matrix; None where the file has none, or made-up ones.
        classes: labels of the columns of probabilities; empty for everything else.
        task: "classification", "regression" or "ranking"; None where it cannot be told.
        codes: columns that hold codes of categories, not quantities.
    """

    forest: Forest
    source: str
    feature_names: tuple[str, ...] | None = None
    classes: tuple[str | int, ...] = ()
    task: str | None = None
    codes: tuple[int, ...] = ()


def given_names(names: Sequence[Any] | None) -> tuple[str, ...] | None:
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


def labels_of(model: Any) -> tuple[Any, ...]:
    """Labels of a fitted classifier's classes as plain Python values; empty where it has none."""
    return tuple(c.item() if isinstance(c, np.generic) else c for c in getattr(model, "classes_", ()))
