"""The names that users may rely on: what `retailinfer` and `retailinfer.columns` export, no more and no less.

Rules:
  * A name leaves these lists only with a **BREAKING** line in the changelog. A new one is added here with it.
  * Everything else is private, whatever its spelling.
"""

from __future__ import annotations

import inspect

import pytest

import retailinfer
from retailinfer import columns

PUBLIC = [
    "Access",
    "AccessError",
    "Backend",
    "BundleError",
    "CallerError",
    "CheckReport",
    "ConfigError",
    "ConflictError",
    "Contract",
    "DeadlineExceededError",
    "Decision",
    "DecisionLog",
    "Entity",
    "Explanation",
    "Fallback",
    "FeatureError",
    "FeatureMissingError",
    "FeatureRangeError",
    "FeatureSpec",
    "FeatureTable",
    "FeatureTypeError",
    "Following",
    "Freshness",
    "GoldenMismatchError",
    "Health",
    "IntegrityError",
    "LimitError",
    "LogHook",
    "ManifestError",
    "ModelError",
    "OverloadedError",
    "Policy",
    "Ranker",
    "Ranking",
    "Reason",
    "Registry",
    "RegistryError",
    "Remote",
    "RemoteError",
    "RequestError",
    "RetailInferError",
    "RevokedError",
    "RollbackError",
    "Rung",
    "RungHealth",
    "SchemaMismatchError",
    "ScoreError",
    "Scorer",
    "ServingError",
    "SessionError",
    "ShapeError",
    "SignatureError",
    "Snapshot",
    "Source",
    "SpecError",
    "Store",
    "Stream",
    "SwapError",
    "Tensor",
    "Timestamp",
    "Trust",
    "TrustError",
    "Unavailable",
    "Vocabulary",
    "Windows",
    "check",
    "columns",
    "from_mlflow",
    "pack",
    "preload",
    "replay",
    "repolicy",
    "sign",
]

COLUMNS = [
    "Column",
    "bins",
    "boolean",
    "categorical",
    "cosine",
    "difference",
    "dot",
    "elapsed",
    "embedding",
    "equal",
    "hashed",
    "lag",
    "lookup",
    "missing",
    "numeric",
    "onehot",
    "product",
    "ratio",
    "raw",
    "sequence",
    "stored",
    "time",
    "window",
]

EXPORTS = [(retailinfer, PUBLIC), (columns, COLUMNS)]
ids = [module.__name__ for module, _ in EXPORTS]


@pytest.mark.parametrize(("module", "names"), EXPORTS, ids=ids)
def test_exported_names_are_the_listed_ones(module, names):
    """`__all__` holds exactly the promised names."""
    assert sorted(module.__all__) == sorted(names)


@pytest.mark.parametrize(("module", "names"), EXPORTS, ids=ids)
def test_exported_names_are_sorted_and_unique(module, names):
    """`__all__` is in alphabetical order, so that two people adding names meet in review."""
    assert list(module.__all__) == sorted(set(module.__all__))
    assert names == sorted(names)


@pytest.mark.parametrize(("module", "names"), EXPORTS, ids=ids)
def test_every_exported_name_can_be_used(module, names):
    """Each name resolves, shows up in `dir`, and says in a docstring what it is for."""
    assert set(names) <= set(dir(module))
    for name in names:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value) or inspect.ismodule(value):
            assert value.__doc__, name


@pytest.mark.parametrize("module", [retailinfer, columns], ids=ids)
def test_unknown_names_raise_attribute_error(module):
    """A misspelt name is an AttributeError that names the module, also where names are loaded when first used."""
    with pytest.raises(AttributeError, match=module.__name__):
        module.Scorrer  # noqa: B018 - the look-up is what is tested


def test_public_functions_and_classes_are_typed():
    """Every parameter and result of a public function has an annotation."""
    untyped = []
    for module, names in EXPORTS:
        for name in names:
            value = getattr(module, name)
            if inspect.isfunction(value):
                signature = inspect.signature(value)
                parts = [*(p.annotation for p in signature.parameters.values()), signature.return_annotation]
                untyped += [f"{module.__name__}.{name}"] if inspect.Signature.empty in parts else []
    assert untyped == []
