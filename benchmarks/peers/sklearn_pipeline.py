"""scikit-learn's way: a fitted ColumnTransformer over a one-row pandas DataFrame, then the same ONNX model.

Every derived column that scikit-learn has no transformer for is a vectorised FunctionTransformer; hashes are computed
with xxhash, as elsewhere. The DataFrame is built from the decoded request, because a request is not a DataFrame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder
from xxhash import xxh64_intdigest

from benchmarks.peers.bare_run import BareRun
from benchmarks.workloads import ColumnDef, Values, Workload

__all__ = ["SklearnPipeline"]


def _buckets(frame: pd.DataFrame) -> NDArray[np.float64]:
    return np.array(
        [[xxh64_intdigest(v.encode()) % 1024 for v in row] for row in frame.to_numpy()], np.float64
    )


def _cyclic(frame: pd.DataFrame) -> NDArray[np.float64]:
    at = frame.to_numpy()[:, 0]
    hour = 2 * np.pi * (at // 3600 % 24) / 24
    day = 2 * np.pi * ((at // 86_400 + 3) % 7) / 7
    waves = np.column_stack([np.sin(hour), np.cos(hour), np.sin(day), np.cos(day)])
    waves[np.abs(waves) < 1e-12] = 0.0  # sine of half a turn
    return waves


def _ratios(frame: pd.DataFrame) -> NDArray[np.float64]:
    values = frame.to_numpy()
    return np.asarray(values[:, 0::2] / values[:, 1::2])


class SklearnPipeline:
    """Fit on training rows; `transform_one` gives one row, `__call__` goes from bytes to bytes."""

    def __init__(
        self, workload: Workload, training: Values, codes: Mapping[str, Mapping[str, int]], run: BareRun
    ) -> None:
        def refs(kind: str, transform: str | None = None) -> list[str]:
            chosen: list[ColumnDef] = [c for c in workload.columns if c.kind == kind]
            chosen = [c for c in chosen if c.options.get("transform") == transform]
            return [ref for c in chosen for ref in (c.refs if kind == "ratio" else c.refs[:1])]

        categorical = refs("categorical")
        ordered = [sorted(codes[name], key=codes[name].__getitem__) for name in categorical]
        encoder = OrdinalEncoder(categories=ordered, handle_unknown="use_encoded_value", unknown_value=-1)
        self._transformer = ColumnTransformer(
            [
                ("log1p", FunctionTransformer(np.log1p), refs("numeric", "log1p")),
                ("plain", "passthrough", refs("numeric")),
                ("categorical", encoder, categorical),
                ("hashed", FunctionTransformer(_buckets), refs("hashed")),
                ("cyclic", FunctionTransformer(_cyclic), [workload.event_time]),
                ("ratio", FunctionTransformer(_ratios), refs("ratio")),
                ("boolean", "passthrough", refs("boolean")),
            ]
        ).fit(pd.DataFrame(training))
        self._codes_at = slice(len(refs("numeric", "log1p")) + len(refs("numeric")), None)
        self._n_codes = len(categorical)
        self._run = run
        self._decode = msgspec.json.Decoder(dict[str, Any]).decode
        self._encode = msgspec.json.Encoder().encode

    def transform_one(self, request: Mapping[str, Any]) -> NDArray[np.float32]:
        """The model's input of one request, shape (1, columns)."""
        out = self._transformer.transform(pd.DataFrame([request])).astype(np.float32)
        start = self._codes_at.start
        out[:, start : start + self._n_codes] += (
            1  # scikit-learn counts known values from 0, the model from 1
        )
        return np.ascontiguousarray(out)

    def __call__(self, body: bytes) -> bytes:
        row = self.transform_one(self._decode(body))
        return self._encode({"score": float(self._run({self._run.input: row})[0, -1])})
