"""Messages of the Open Inference Protocol over gRPC, in Protocol Buffers' wire format. No I/O, and no generated code.

Rules:
  * Five messages with numbers and texts: forty lines read and write them. A generated module would be tied to one version of
    protobuf's runtime, which is no dependency otherwise.
  * Inputs are sent as raw bytes. Outputs are read as raw bytes or as typed contents, as servers like it.
  * Unknown fields are passed over; every length is checked against what is there; the last of a repeated scalar wins, lists
    are read packed and unpacked. What cannot be understood is a RemoteError "malformed".
  * A reply is as long as a server likes, and deadlines do not stop Python: only so many fields are read, and what is packed
    is read by NumPy.
Field numbers: grpc_predict_v2.proto of the Open Inference Protocol.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retailinfer.errors import RemoteError, clip
from retailinfer.resilience.remote.tensors import (
    MAX_DIMENSIONS,
    Metadata,
    TensorSpec,
    array_of_bytes,
    check_shape,
    dtype_of,
    wire_array,
)

__all__ = ["decode_metadata", "decode_reply", "encode_metadata_request", "encode_request"]

_MAX_OUTPUTS = 1_024
_MAX_FIELDS = 1 << 14  # of a reply, those within its outputs too
_PIECE = 1 << 18  # bytes of a packed list that are read at once
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
Field: TypeAlias = tuple[int, int, Any]  # number, wire type, int or memoryview


def _malformed(what: str) -> RemoteError:
    return RemoteError(f"the reply is no message of the Open Inference Protocol: {what}", kind="malformed")


# --- writing ----------------------------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    value &= 0xFFFF_FFFF_FFFF_FFFF  # negative numbers take ten bytes
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _block(number: int, data: bytes) -> bytes:
    return b"".join([_varint(number << 3 | _BYTES), _varint(len(data)), data])


def _text(number: int, text: str) -> bytes:
    return _block(number, text.encode()) if text else b""


def encode_request(
    model: str, version: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]
) -> bytes:
    """A ModelInferRequest. Raises: RemoteError "unsendable"."""
    parts = [_text(1, model), _text(2, version)]
    blobs = []
    for name, given in inputs.items():
        datatype, array = wire_array(name, given)
        shape = b"".join(map(_varint, array.shape))
        parts.append(_block(5, _text(1, name) + _text(2, datatype) + (_block(3, shape) if shape else b"")))
        blobs.append(_block(7, array.tobytes()))
    parts += [_block(6, _text(1, name)) for name in outputs]
    return b"".join([*parts, *blobs])


def encode_metadata_request(model: str, version: str) -> bytes:
    """A ModelMetadataRequest."""
    return _text(1, model) + _text(2, version)


# --- reading ----------------------------------------------------------------------------------------------------------


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise _malformed("a number without an end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7


class _Left:
    """How many fields of a reply may still be read."""

    def __init__(self) -> None:
        self.n = _MAX_FIELDS


def _fields(data: memoryview, left: _Left) -> Iterator[Field]:
    at = 0
    while at < len(data):
        left.n -= 1
        if left.n < 0:
            raise _malformed(f"more than {_MAX_FIELDS:,} fields")
        tag, at = _read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise _malformed("a field without a number")
        if wire == _VARINT:
            value, at = _read_varint(data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, at = _read_varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:  # groups are of another age
            raise _malformed(f"a field of the wire type {wire}")
        if size > len(data) - at:
            raise _malformed("a field that is longer than its message")
        yield number, wire, data[at : at + size]
        at += size


def _need(wire: int, want: int, value: Any) -> Any:
    if wire != want:
        raise _malformed("a field of another type")
    return value


def _read_text(wire: int, value: Any) -> str:
    try:
        return bytes(_need(wire, _BYTES, value)).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise _malformed("text that is no UTF-8") from exc


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _read_sizes(wire: int, value: Any, into: list[int]) -> None:
    """Sizes of dimensions: one, or a packed list of them."""
    if wire == _VARINT:
        into.append(_signed(value))
    else:
        packed = _need(wire, _BYTES, value)
        at = 0
        while at < len(packed) and len(into) <= MAX_DIMENSIONS:
            number, at = _read_varint(packed, at)
            into.append(_signed(number))
    if len(into) > MAX_DIMENSIONS:
        raise _malformed(f"more than {MAX_DIMENSIONS} dimensions")


def _read_packed(data: memoryview) -> Iterator[NDArray[np.uint64]]:
    """Numbers of a packed list, some at a time."""
    octets = np.frombuffer(data, np.uint8)
    at = 0
    while at < len(octets):
        piece = octets[at : at + _PIECE]
        ends = np.flatnonzero(piece < 0x80)
        if not len(ends):
            raise _malformed("a number without an end")
        at += int(ends[-1]) + 1
        begins = np.concatenate(([0], ends[:-1] + 1))
        sizes = ends - begins + 1
        longest = int(sizes.max())
        if longest > 10:
            raise _malformed("a number without an end")
        numbers = np.zeros(len(ends), np.uint64)
        for i in range(longest):
            has = sizes > i
            part = (piece[begins[has] + i] & 0x7F).astype(np.uint64)
            numbers[has] |= part << np.uint64(7 * i)
        yield numbers


def _read_tensor(data: memoryview, left: _Left) -> tuple[str, str, list[int], memoryview | None]:
    """Name, datatype, shape and contents of an output, or of a tensor in metadata."""
    name = datatype = ""
    shape: list[int] = []
    contents = None
    for number, wire, value in _fields(data, left):
        if number == 1:
            name = _read_text(wire, value)
        elif number == 2:
            datatype = _read_text(wire, value)
        elif number == 3:
            _read_sizes(wire, value, shape)
        elif number == 5:
            contents = _need(wire, _BYTES, value)
    return name, datatype, shape, contents


# Datatype -> field of InferTensorContents.
_CONTENTS = {
    "BOOL": 1, "INT8": 2, "INT16": 2, "INT32": 2, "INT64": 3, "UINT8": 4, "UINT16": 4, "UINT32": 4, "UINT64": 5,
    "FP32": 6, "FP64": 7,
}  # fmt: skip


def _typed_contents(datatype: str, shape: tuple[int, ...], data: memoryview, left: _Left) -> NDArray[Any]:
    """An output that came as a list of numbers."""
    dtype = dtype_of(datatype)
    field = _CONTENTS.get(datatype)
    if field is None:
        raise _malformed(f"{clip(datatype)} as typed contents")
    if field in (6, 7):
        parts = []
        single = (_FIXED32, 4) if field == 6 else (_FIXED64, 8)
        for number, wire, value in _fields(data, left):
            if number == field:
                if wire not in (single[0], _BYTES):
                    raise _malformed("a field of another type")
                parts.append(bytes(value))
        return array_of_bytes(b"".join(parts), datatype, shape)
    pieces = [np.zeros(0, np.uint64)]
    for number, wire, value in _fields(data, left):
        if number == field:
            if wire == _VARINT:
                pieces.append(np.array([value], np.uint64))
            else:
                pieces += _read_packed(_need(wire, _BYTES, value))
    ints = np.concatenate(pieces)
    if len(ints) != math.prod(shape):
        raise _malformed(f"{len(ints)} elements for the shape {shape}")
    found: NDArray[Any] = ints.view(np.int64) if dtype.kind == "i" else ints
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if len(ints) and not low <= int(found.min()) <= int(found.max()) <= high:
        raise _malformed(f"a number that is no {datatype}")
    return found.astype(dtype.newbyteorder("=")).reshape(shape)


def decode_reply(body: bytes) -> dict[str, NDArray[Any]]:
    """Outputs of a ModelInferResponse. Raises: RemoteError "malformed"."""
    tensors, raw = [], []
    left = _Left()
    for number, wire, value in _fields(memoryview(body), left):
        if number == 5:
            tensors.append(_read_tensor(_need(wire, _BYTES, value), left))
        elif number == 6:
            raw.append(_need(wire, _BYTES, value))
    if len(tensors) > _MAX_OUTPUTS or (raw and len(raw) != len(tensors)):
        raise _malformed(f"{len(tensors)} outputs and {len(raw)} raw contents")
    found: dict[str, NDArray[Any]] = {}
    for i, (name, datatype, sizes, contents) in enumerate(tensors):
        if name in found:
            raise _malformed(f"two outputs named {clip(name)}")
        shape = check_shape(sizes, max(1, len(body)))
        if raw:
            if contents:
                raise _malformed("an output that came twice")
            found[name] = array_of_bytes(raw[i], datatype, shape)
        else:
            found[name] = _typed_contents(
                datatype, shape, contents if contents is not None else memoryview(b""), left
            )
    return found


def decode_metadata(body: bytes) -> Metadata:
    """A ModelMetadataResponse. Raises: RemoteError "malformed"."""
    specs: dict[int, list[TensorSpec]] = {4: [], 5: []}
    left = _Left()
    for number, wire, value in _fields(memoryview(body), left):
        if number in specs:
            name, datatype, shape, _ = _read_tensor(_need(wire, _BYTES, value), left)
            specs[number].append(TensorSpec(name, datatype, tuple(shape)))
    return Metadata(tuple(specs[4]), tuple(specs[5]))
