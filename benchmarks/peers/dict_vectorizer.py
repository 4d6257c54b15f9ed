"""scikit-learn's DictVectorizer on one request, the usual way from a dict to a row.

In its favour, it gets the derived columns (log1p, ratios, sines, hash buckets) ready-made as numbers: it only has to
place 40 values and to one-hot the 6 strings. The library's side starts from the raw request and derives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction import DictVectorizer

from benchmarks.workloads import Workload

__all__ = ["Vectorizer"]


class Vectorizer:
    """Fitted on prepared dicts; one call gives the dense float32 row of one of them, shape (1, width)."""

    def __init__(
        self, workload: Workload, rows: Sequence[dict[str, Any]], matrix: NDArray[np.float32]
    ) -> None:
        categorical = {c.name for c in workload.columns if c.kind == "categorical"}
        names = [c.name for c in workload.columns]
        self.numeric = [(name, i) for i, name in enumerate(names) if name not in categorical]
        self.prepared = [
            {
                name: row[name] if name in categorical else float(value)
                for name, value in zip(names, values, strict=True)
            }
            for row, values in zip(rows, matrix, strict=True)
        ]
        self.categorical = sorted(categorical)
        self._vectorizer = DictVectorizer(dtype=np.float32, sparse=False).fit(self.prepared)

    def transform(self, prepared: dict[str, Any]) -> NDArray[np.float32]:
        return np.asarray(self._vectorizer.transform(prepared))

    def as_columns(self, out: NDArray[np.float32]) -> dict[str, Any]:
        """The row by name, one-hot strings as the string itself: to compare with what the library filled."""
        values: dict[str, Any] = {}
        for name, value in zip(self._vectorizer.get_feature_names_out(), out[0].tolist(), strict=True):
            base, _, word = name.partition("=")
            if word:
                if value:
                    values[base] = word
            else:
                values[base] = value
        return values
