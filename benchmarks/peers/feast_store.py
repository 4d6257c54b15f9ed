"""Feast's SDK over its own online stores, SQLite and Redis: a registry in a file, one feature view, rows written by Feast.

In its favour: the online store holds nothing but the 2,000 entities that are asked for, the library's table 100,000; what is
timed is `get_online_features` alone, without the step that makes arrays of its answer; features are named one by one, which
spares Feast resolving a feature service.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FeastRows"]

WRITTEN = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


class FeastRows:
    """An online store with `values`, one row a key. `online`: the section of Feast's configuration that names the store."""

    def __init__(
        self, folder: Path, online: dict[str, Any], keys: Sequence[str], values: NDArray[np.float32]
    ) -> None:
        import pandas as pd
        from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
        from feast.types import Float32

        folder.mkdir(parents=True, exist_ok=True)
        names = [f"x{i:02d}" for i in range(values.shape[1])]
        frame = pd.DataFrame(values, columns=names)
        frame.insert(0, "sku", list(keys))
        frame["written"] = pd.Timestamp(WRITTEN)
        source = folder / "rows.parquet"
        frame.to_parquet(source)
        self._store = FeatureStore(
            config=RepoConfig(
                project="bench",
                provider="local",
                registry=str(folder / "registry.db"),
                online_store=online,
                entity_key_serialization_version=3,
            )
        )
        item = Entity(name="item", join_keys=["sku"], value_type=ValueType.STRING)
        view = FeatureView(
            name="items",
            entities=[item],
            ttl=dt.timedelta(days=36_500),
            schema=[Field(name=name, dtype=Float32) for name in names],
            source=FileSource(path=str(source), timestamp_field="written"),
        )
        self._store.apply([item, view])
        self._store.write_to_online_store("items", frame)
        self._names = names
        self._features = [f"items:{name}" for name in names]

    def request(self, keys: Sequence[str]) -> list[dict[str, str]]:
        """Keys as Feast takes them."""
        return [{"sku": key} for key in keys]

    def read(self, request: list[dict[str, str]]) -> Any:
        """What is timed."""
        return self._store.get_online_features(features=self._features, entity_rows=request)

    def matrix(self, answer: Any) -> NDArray[np.float32]:
        """The answer as rows, to be compared."""
        columns = answer.to_dict()
        return np.array([columns[name] for name in self._names], np.float32).T.copy()
