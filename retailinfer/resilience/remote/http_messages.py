"""Messages of the Open Inference Protocol over HTTP: bytes that are sent, arrays that come out of an answer's bytes. No I/O.

Rules:
  * With the binary extension a JSON header is followed by the tensors' bytes; without it they are lists of numbers in it.
    A float32 survives both ways unchanged. JSON has no NaN: such inputs are not sent without the extension.
  * JSON is strict, nested at most 32 deep (counted before a decoder that recurses sees it); every size is checked against what
    has really come.
  * A reply is as long as a server likes, and deadlines do not stop Python: nothing here takes a step of Python per byte.
  * What cannot be understood is a RemoteError "malformed"; no message shows what was sent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from retailinfer.errors import RemoteError, clip
from retailinfer.resilience.remote.tensors import (
    Metadata,
    TensorSpec,
    array_of_bytes,
    check_shape,
    dtype_of,
    wire_array,
)

__all__ = ["decode_metadata", "decode_reply", "encode_request", "extensions_of"]

_MAX_DEPTH = 32
_MAX_OUTPUTS = 1_024
# Possessive, and without need of a last quote: what is no JSON must not take quadratic time to be found out.
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_MOST_TEXT = 1 << 16  # quotes and backslashes: sixty for each of the outputs that there may be
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_NO_FRAME = bytes(byte for byte in range(256) if byte not in b"[],")
_SQUARE = bytes.maketrans(b"{}", b"[]")


class _Parameters(msgspec.Struct):
    binary_data_size: int | None = None


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: _Parameters | None = None
    data: msgspec.Raw = msgspec.Raw(b"")  # empty: none


class _Reply(msgspec.Struct):
    outputs: list[_Output]


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]


class _Model(msgspec.Struct):
    inputs: list[_Tensor] | None = None
    outputs: list[_Tensor] | None = None


class _Server(msgspec.Struct):
    extensions: list[str] | None = None


def malformed(what: str) -> RemoteError:
    """An answer that is not understood."""
    return RemoteError(f"the reply is no message of the Open Inference Protocol: {what}", kind="malformed")


def encode_request(
    inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], *, binary: bool, timeout_us: int | None = None
) -> tuple[bytes, int | None]:
    """Body, and with the binary extension the size of its JSON. timeout_us: for servers that know it (schedule_policy).

    Raises: RemoteError "unsendable".
    """
    tensors, blobs = [], []
    for name, given in inputs.items():
        datatype, array = wire_array(name, given)
        tensor: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype}
        if binary:
            blob = array.tobytes()
            tensor["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise RemoteError(
                    f"input {clip(name)} holds NaN or infinity, which JSON cannot carry",
                    kind="unsendable",
                    hint="use grpc://, or a server with the binary tensor extension",
                )
            tensor["data"] = array.ravel().tolist()
        tensors.append(tensor)
    asked = [
        {"name": name, "parameters": {"binary_data": True}} if binary else {"name": name} for name in outputs
    ]
    request: dict[str, Any] = {"inputs": tensors, "outputs": asked}
    if timeout_us is not None:
        request["parameters"] = {"timeout": timeout_us}
    head = msgspec.json.encode(request)
    return (b"".join([head, *blobs]), len(head)) if binary else (head, None)


def decode_reply(body: bytes, head_size: int | None) -> dict[str, NDArray[Any]]:
    """Outputs of a reply. head_size: of the JSON, where bytes of tensors follow it. Raises: RemoteError "malformed"."""
    if head_size is not None and not 0 <= head_size <= len(body):
        raise malformed(f"a header of {head_size} bytes in {len(body)}")
    head = body if head_size is None else body[:head_size]
    rest = memoryview(body)[len(head) :]
    reply = _decode(head, _Reply)
    if len(reply.outputs) > _MAX_OUTPUTS:
        raise malformed(f"{len(reply.outputs)} outputs")
    found: dict[str, NDArray[Any]] = {}
    at = 0
    for output in reply.outputs:
        if output.name in found:
            raise malformed(f"two outputs named {clip(output.name)}")
        shape = check_shape(output.shape, max(1, len(body)))
        size = None if output.parameters is None else output.parameters.binary_data_size
        if size is not None:
            if not 0 <= size <= len(rest) - at or bytes(output.data):
                raise malformed("binary_data_size is not the size of what follows")
            found[output.name] = array_of_bytes(rest[at : at + size], output.datatype, shape)
            at += size
        else:
            found[output.name] = _array_of_json(output, shape)
    if at != len(rest):
        raise malformed(f"{len(rest) - at} bytes after the last output")
    return found


def decode_metadata(body: bytes) -> Metadata:
    """What `GET /v2/models/NAME` says. Raises: RemoteError "malformed"."""
    model = _decode(body, _Model)

    def specs(tensors: list[_Tensor] | None) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(one.name, one.datatype, tuple(one.shape)) for one in tensors or ())

    return Metadata(specs(model.inputs), specs(model.outputs))


def extensions_of(body: bytes) -> list[str]:
    """What `GET /v2` says the server can. Raises: RemoteError "malformed"."""
    return _decode(body, _Server).extensions or []


def _decode(data: bytes, type_: Any) -> Any:
    if data.count(b'"') + data.count(b"\\") > _MOST_TEXT:
        raise malformed("more texts than outputs need")
    brackets = _TEXT.sub(b"", data).translate(_SQUARE, _NO_BRACKETS)
    for _ in range(_MAX_DEPTH):
        if not brackets:
            break
        brackets = brackets.replace(b"[]", b"")  # the innermost ones
    if brackets:
        raise malformed(f"JSON nested more than {_MAX_DEPTH} deep, or without its end")
    return _decode_shallow(data, type_)


def _decode_shallow(data: bytes, type_: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        raise malformed("not the JSON that is declared") from exc


_ELEMENTS: dict[str, Any] = {"b": bool, "i": int, "u": int, "f": float}


def _array_of_json(output: _Output, shape: tuple[int, ...]) -> NDArray[Any]:
    dtype = dtype_of(output.datatype)
    text = bytes(output.data)
    if not text:
        raise malformed(f"no data for the output {clip(output.name)}")
    # Seen once by `_decode`, as a part of the whole: it is not too deep.
    flat = _flat(text, _ELEMENTS[dtype.kind], shape)
    if len(flat) != math.prod(shape):
        raise malformed(f"{len(flat)} elements for the shape {shape}")
    try:
        with np.errstate(over="raise"):
            return np.array(flat, dtype.newbyteorder("=")).reshape(shape)
    except (OverflowError, FloatingPointError, ValueError) as exc:
        raise malformed(f"a number that is no {output.datatype}") from exc


def _flat(text: bytes, element: Any, shape: tuple[int, ...]) -> list[Any]:
    """Elements of a flat list, or of nested ones that have the declared shape. No list is made for each row."""
    if re.match(rb"\s*\[\s*\[", text) is not None:
        # It is JSON: `_decode` has read it. Brackets and commas alone say of which shape.
        if not _has_shape(text.translate(None, _NO_FRAME), shape):
            raise malformed("nested lists of another shape than declared")
        inner = text.translate(None, b"[]")
        text = b"[" + (inner if math.prod(shape) else inner.strip(b", \t\r\n")) + b"]"
    flat: list[Any] = _decode_shallow(text, list[element])
    return flat


def _has_shape(frame: bytes, shape: tuple[int, ...]) -> bool:
    """Whether these are the brackets and commas of lists of a shape."""
    length = 0
    for size in reversed(shape):
        length = size * length + max(0, size - 1) + 2
    if length != len(frame):  # what is expected may be far too long to be made
        return False
    want = b""
    for size in reversed(shape):
        want = b"[" + b",".join([want] * size) + b"]"
    return want == frame
