"""From models to forests: what a tree engine can run exactly, as the arrays of `runtime.trees.Forest`.

Rules:
  * A parser returns a forest, or says in one line why there is none (`Unfit`): then ONNX Runtime runs the model.
  * Nothing is approximated. What a parser makes is compared with its source bit by bit when a release is packed.
onnx_graph.py = ONNX graphs that are nothing but one tree ensemble; lightgbm_text.py = LightGBM's own text; nodes.py = what
parsers share; use.py = who compares and decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retailinfer.runtime.trees import Forest

__all__ = ["Parsed", "Unfit"]


class Unfit(Exception):  # noqa: N818 - not an error of anybody: the other engine takes the model
    """Why a model has no exact form as a forest."""


@dataclass(frozen=True)
class Parsed:
    """A model that was read from its trainer's own file or object.

    Attributes:
        source: "lightgbm", "xgboost", "catboost", "sklearn.RandomForestClassifier", ...
        feature_names: of the training matrix; None where there are none, or made-up ones (`convert.normalised`).
        classes: labels of the columns of probabilities; () for others.
        task: "classification", "regression" or "ranking"; None where it cannot be told.
        codes: columns that hold codes of categories.
    """

    forest: Forest
    source: str
    feature_names: tuple[str, ...] | None = None
    classes: tuple[str | int, ...] = ()
    task: str | None = None
    codes: tuple[int, ...] = ()
