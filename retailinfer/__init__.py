"""retailinfer: embedded low-latency inference for retail, inside the process of the application server.

    import retailinfer as ri
    from retailinfer import columns as c

Declare features with `FeatureSpec`, make a release with `pack`, answer with `Scorer` and `Ranker`. Importing this package
starts nothing, opens nothing and loads no model engine; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retailinfer import columns
    from retailinfer.authoring.check import check
    from retailinfer.authoring.mlflow import from_mlflow
    from retailinfer.authoring.pack import pack
    from retailinfer.authoring.replay import replay
    from retailinfer.authoring.repolicy import repolicy
    from retailinfer.authoring.signing import sign
    from retailinfer.contracts import (
        Contract,
        Decision,
        Explanation,
        Following,
        Freshness,
        Health,
        Ranking,
        Reason,
        Rung,
        RungHealth,
    )
    from retailinfer.errors import (
        AccessError,
        BundleError,
        CallerError,
        ConfigError,
        ConflictError,
        DeadlineExceededError,
        FeatureError,
        FeatureMissingError,
        FeatureRangeError,
        FeatureTypeError,
        GoldenMismatchError,
        IntegrityError,
        LimitError,
        ManifestError,
        ModelError,
        OverloadedError,
        RegistryError,
        RemoteError,
        RequestError,
        RetailInferError,
        RevokedError,
        RollbackError,
        SchemaMismatchError,
        ScoreError,
        ServingError,
        SessionError,
        ShapeError,
        SignatureError,
        SpecError,
        SwapError,
        TrustError,
        Unavailable,
    )
    from retailinfer.features.spec import Entity, FeatureSpec, Source, Stream, Tensor, Timestamp, Vocabulary
    from retailinfer.monitoring.decision_log import DecisionLog
    from retailinfer.monitoring.logs import LogHook
    from retailinfer.policy import Policy
    from retailinfer.preload import preload
    from retailinfer.ranker import Ranker
    from retailinfer.release.fallback import Fallback
    from retailinfer.release.registry import Registry
    from retailinfer.release.report import CheckReport
    from retailinfer.release.trust_files import Trust
    from retailinfer.resilience.remote import Backend
    from retailinfer.resilience.remote.client import Remote
    from retailinfer.scorer import Scorer
    from retailinfer.store.access import Access
    from retailinfer.store.feature_table import FeatureTable
    from retailinfer.store.store import Store
    from retailinfer.store.table import Snapshot
    from retailinfer.store.windows import Windows

__version__ = "0.1.0"

__all__ = [
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

_HOMES = {
    "retailinfer.authoring.check": ("check",),
    "retailinfer.authoring.mlflow": ("from_mlflow",),
    "retailinfer.authoring.pack": ("pack",),
    "retailinfer.authoring.replay": ("replay",),
    "retailinfer.authoring.repolicy": ("repolicy",),
    "retailinfer.authoring.signing": ("sign",),
    "retailinfer.contracts": (
        "Contract",
        "Decision",
        "Explanation",
        "Following",
        "Freshness",
        "Health",
        "Ranking",
        "Reason",
        "Rung",
        "RungHealth",
    ),
    "retailinfer.features.spec": (
        "Entity",
        "FeatureSpec",
        "Source",
        "Stream",
        "Tensor",
        "Timestamp",
        "Vocabulary",
    ),
    "retailinfer.monitoring.decision_log": ("DecisionLog",),
    "retailinfer.monitoring.logs": ("LogHook",),
    "retailinfer.policy": ("Policy",),
    "retailinfer.preload": ("preload",),
    "retailinfer.ranker": ("Ranker",),
    "retailinfer.resilience.remote": ("Backend",),
    "retailinfer.resilience.remote.client": ("Remote",),
    "retailinfer.release.fallback": ("Fallback",),
    "retailinfer.release.trust_files": ("Trust",),
    "retailinfer.release.registry": ("Registry",),
    "retailinfer.release.report": ("CheckReport",),
    "retailinfer.scorer": ("Scorer",),
    "retailinfer.store.access": ("Access",),
    "retailinfer.store.feature_table": ("FeatureTable",),
    "retailinfer.store.store": ("Store",),
    "retailinfer.store.table": ("Snapshot",),
    "retailinfer.store.windows": ("Windows",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "columns":
        return importlib.import_module("retailinfer.columns")
    if name in __all__:
        value = getattr(importlib.import_module(_HOME_OF.get(name, "retailinfer.errors")), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module `retailinfer` has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
