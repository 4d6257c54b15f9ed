"""Tensors of the Open Inference Protocol: names of types, what is sent, what is believed of an answer.

Rules:
  * Numbers and booleans only, at most eight dimensions; on the wire little-endian, row by row.
  * A reply is checked like any input: the outputs that were asked for, once each, of a type that is known, with as many
    elements as their shape says, as many rows as were sent, and no NaN or infinity.
  * Messages name types, shapes and outputs, never a value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retailinfer.errors import RemoteError, clip

__all__ = [
    "Metadata",
    "TensorSpec",
    "array_of_bytes",
    "check_reply",
    "check_shape",
    "datatype_of",
    "dtype_of",
    "wire_array",
]

_DTYPES = {
    "BOOL": "|b1", "UINT8": "|u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "|i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_DATATYPES = {np.dtype(text).newbyteorder("="): name for name, text in _DTYPES.items()}
MAX_DIMENSIONS = 8


class TensorSpec(NamedTuple):
    """One tensor as a model declares it. datatype: as "FP32". shape: -1 where any size will do."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Metadata(NamedTuple):
    """What a model server says of a model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def datatype_of(dtype: np.dtype[Any]) -> str | None:
    """The protocol's name of a NumPy type; None where it has none."""
    return _DATATYPES.get(dtype.newbyteorder("="))


def dtype_of(datatype: object) -> np.dtype[Any]:
    """The NumPy type of a name. Raises: RemoteError "malformed"."""
    text = _DTYPES.get(datatype) if isinstance(datatype, str) else None
    if text is None:
        raise RemoteError(
            f"Expected an output of numbers, got the datatype {clip(datatype)}", kind="malformed"
        )
    return np.dtype(text)


def wire_array(name: str, array: object) -> tuple[str, NDArray[Any]]:
    """Datatype and little-endian rows of an input. Raises: RemoteError "unsendable"."""
    if not isinstance(array, np.ndarray) or (datatype := datatype_of(array.dtype)) is None:
        got = f"dtype {array.dtype}" if isinstance(array, np.ndarray) else f"`{type(array).__name__}`"
        raise RemoteError(
            f"Expected an array of numbers for input {clip(name)}, got {got}", kind="unsendable"
        )
    if array.ndim > MAX_DIMENSIONS:
        raise RemoteError(
            f"Expected at most {MAX_DIMENSIONS} dimensions, got {array.ndim}", kind="unsendable"
        )
    return datatype, np.asarray(array, array.dtype.newbyteorder("<"), order="C")


def check_shape(shape: object, most: int) -> tuple[int, ...]:
    """A shape of a reply, with at most `most` elements. Raises: RemoteError "malformed"."""
    if isinstance(shape, (list, tuple)) and len(shape) > MAX_DIMENSIONS:  # a million of them is not shown
        raise RemoteError(f"Expected at most {MAX_DIMENSIONS} dimensions, got {len(shape)}", kind="malformed")
    if (
        not isinstance(shape, (list, tuple))
        or not all(type(one) is int and 0 <= one <= most for one in shape)
        or math.prod(shape) > most
    ):
        raise RemoteError(f"Expected the shape of an output, got {clip(shape)}", kind="malformed")
    return tuple(shape)


def array_of_bytes(data: bytes | memoryview, datatype: object, shape: tuple[int, ...]) -> NDArray[Any]:
    """Array of a reply's bytes, in this machine's order. Raises: RemoteError "malformed"."""
    dtype = dtype_of(datatype)
    n = math.prod(shape)
    if len(data) != n * dtype.itemsize:
        raise RemoteError(
            f"Expected {n * dtype.itemsize} bytes for the shape {shape} of {datatype}, got {len(data)}",
            kind="malformed",
        )
    if dtype.kind == "b" and n and np.frombuffer(data, np.uint8).max() > 1:
        raise RemoteError("Expected booleans as the bytes 0 and 1", kind="malformed")
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("=")).reshape(shape)


def check_reply(
    reply: object,
    outputs: Sequence[str],
    *,
    n_rows: int | None,
    declared: Mapping[str, TensorSpec] | None = None,
) -> dict[str, NDArray[Any]]:
    """The outputs that were asked for, as native contiguous arrays.

    Args:
        n_rows: size that their first dimension must have; None where inputs have no rows in common.
        declared: what the model's metadata said of them.
    Raises: RemoteError "mismatch", "not_finite".
    """
    if not isinstance(reply, Mapping):
        raise RemoteError(f"Expected outputs by name, got `{type(reply).__name__}`", kind="mismatch")
    found: dict[str, NDArray[Any]] = {}
    for name in outputs:
        array = reply.get(name)
        if array is None:
            named = ", ".join(sorted(clip(one) for one in reply)[:5]) or "none"
            raise RemoteError(f"Expected the output {clip(name)}, got {named}", kind="mismatch")
        if not isinstance(array, np.ndarray) or (datatype := datatype_of(array.dtype)) is None:
            raise RemoteError(f"Expected an array of numbers as the output {clip(name)}", kind="mismatch")
        if n_rows is not None and (array.ndim == 0 or array.shape[0] != n_rows):
            raise RemoteError(
                f"Expected {n_rows} rows in the output {clip(name)}, got the shape {array.shape}",
                kind="mismatch",
            )
        if declared is not None and (spec := declared.get(name)) is not None:
            _check_declared(spec, datatype, array.shape)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RemoteError(f"the output {clip(name)} holds NaN or infinity", kind="not_finite")
        found[name] = np.asarray(array, array.dtype.newbyteorder("="), order="C")
    return found


def _check_declared(spec: TensorSpec, datatype: str, shape: tuple[int, ...]) -> None:
    fits = len(shape) == len(spec.shape) and all(
        want in (-1, got) for want, got in zip(spec.shape, shape, strict=True)
    )
    if datatype != spec.datatype or not fits:
        raise RemoteError(
            f"Expected {spec.datatype} of shape {spec.shape} as the output {clip(spec.name)}, got {datatype} of {shape}",
            kind="mismatch",
        )
