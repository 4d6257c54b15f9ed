"""ONNX files, as a path, as bytes or as an `onnx.ModelProto`. Nothing is converted; preflight.py looks inside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from retailinfer.authoring.convert import Converted
from retailinfer.errors import ModelError, clip

__all__ = ["read_onnx"]

MAX_BYTES = (1 << 31) - 1
PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin")
TRAINER_FILES = {
    ".txt": "lightgbm.Booster(model_file=path)",
    ".lgb": "lightgbm.Booster(model_file=path)",
    ".json": "xgboost.Booster(model_file=path)",
    ".ubj": "xgboost.Booster(model_file=path)",
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
    if suffix in TRAINER_FILES:
        raise ModelError(
            f"{clip(path.name)} is not an ONNX file", hint=f"give the model itself: {TRAINER_FILES[suffix]}"
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(f"{clip(path.name)} is larger than {MAX_BYTES} bytes")
        return path.read_bytes()
    except OSError as exc:
        raise ModelError(f"cannot read the model {clip(str(path), 200)}: {exc.strerror}") from exc
