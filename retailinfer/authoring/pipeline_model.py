"""A whole pipeline of scikit-learn as a model: its preprocessing becomes the feature spec, its last step the model.

Rules:
  * Only a pipeline that reads named columns is taken apart; one over a matrix is converted as it is.
  * With features= given, it is taken apart exactly when they are the copy of its own steps: otherwise the pipeline was trained
    on what the features give.
How steps are copied, and compared with scikit-learn on the rows, is features/from_sklearn.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retailinfer.features.from_sklearn import is_copy, preprocessing_of
from retailinfer.features.spec import FeatureSpec

__all__ = ["taken_apart"]


def taken_apart(model: Any, features: FeatureSpec | None, golden: Any) -> tuple[Any, FeatureSpec | None]:
    """Model and features of a release, where `model` may be a pipeline that holds both.

    Args:
        model, features, golden: as given to `pack`.
    Returns: its last step with the spec of the others, or what came. Raises: SpecError as `FeatureSpec.from_sklearn`.
    """
    if isinstance(model, Mapping):
        if features is None:
            return model, None
        return {role: taken_apart(one, features, golden)[0] for role, one in model.items()}, features
    if not _holds_both(model):
        return model, features
    if features is None:
        if golden is None or isinstance(golden, Mapping):
            return model, None
        return model.steps[-1][1], FeatureSpec.from_sklearn(model, sample=golden)
    if isinstance(features, FeatureSpec) and is_copy(features, model):
        return model.steps[-1][1], features
    return model, features


def _holds_both(model: Any) -> bool:
    """A fitted pipeline with steps before its estimator, which read columns by name."""
    if type(model).__name__ != "Pipeline" or type(model).__module__.partition(".")[0] != "sklearn":
        return False
    steps = model.steps
    return len(steps) > 1 and hasattr(model, "feature_names_in_") and preprocessing_of(model) is not model
