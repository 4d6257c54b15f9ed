"""Model files, as a path, as bytes or as an `onnx.ModelProto`.

Nothing is converted: files of trainers are known by what they hold (authoring/trees/files.py), everything else has to be ONNX,
and preflight.py looks inside.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from retailinfer.authoring.convert import Converted
from retailinfer.errors import ModelError, clip

__all__ = ["read_onnx"]

MAX_BYTES = (1 << 31) - 1
PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin")
# First bytes of files that only their trainer reads -> what to write instead.
FOREIGN = {
    b"CBM1": "CatBoost's model.save_model(path, format='json') writes a file that can be packed",
    b"binf": "XGBoost's booster.save_model('model.ubj') writes a file that can be packed",
}


def read_onnx(model: Any) -> Converted:
    """The bytes of an ONNX model. Raises: ModelError."""
    if isinstance(model, (bytes, bytearray, memoryview)):
        return Converted(bytes(model), "onnx")
    if isinstance(model, (str, os.PathLike)):
        return Converted(_read(Path(model)), "onnx")
    data: bytes = model.SerializeToString()
    return Converted(data, "onnx")


def _read(path: Path) -> bytes:
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise ModelError(
            f"{clip(path.name)} looks like a pickle, which runs code when it is read",
            hint="load it where it was trained and give the model itself, or export it to ONNX",
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(f"{clip(path.name)} is larger than {MAX_BYTES} bytes")
        data = path.read_bytes()
    except (OSError, ValueError) as exc:  # a path with a zero byte is a ValueError
        why = getattr(exc, "strerror", None) or exc
        raise ModelError(f"cannot read the model {clip(str(path), 200)}: {why}") from exc
    hint = FOREIGN.get(data[:4])
    if hint is not None:
        raise ModelError(f"{clip(path.name)} is in a format that only its trainer reads", hint=hint)
    return data
