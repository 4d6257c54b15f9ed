"""The model that MLServer runs in the tests: a few lines of NumPy. Imported by MLServer in its own environment.

score = 1 / (1 + exp(-mean of a row)). The parameter `break` of the model's settings makes it say something else.
"""

from __future__ import annotations

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class MeanModel(MLModel):
    """Rows of floats -> one score each."""

    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float64)
        score = (1 / (1 + np.exp(-rows.mean(axis=1, keepdims=True)))).astype(np.float32)
        if (self.settings.parameters.extra or {}).get("break") == "nan":
            score[0] = np.nan
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            outputs=[NumpyCodec.encode_output("score", score)],
        )
