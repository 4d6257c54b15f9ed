"""Messages of the Open Inference Protocol: written and read as others do, and whatever comes is understood or refused.

The oracle for gRPC is protobuf's own runtime, with the messages described from the protocol's text; for HTTP it is json.
"""

from __future__ import annotations

import json
import math
import sys
import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retailinfer.errors import RemoteError
from retailinfer.resilience.outcome import KINDS
from retailinfer.resilience.remote import grpc_messages, http_messages
from retailinfer.resilience.remote.tensors import datatype_of, dtype_of

DTYPES = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda name: hnp.arrays(
        name,
        hnp.array_shapes(min_dims=0, max_dims=3, max_side=4, min_side=0),
        elements=hnp.from_dtype(np.dtype(name), allow_nan=False, allow_infinity=False),
    )
)
TENSORS = st.dictionaries(st.text(min_size=1, max_size=8), ARRAYS, max_size=3)


def same(got: dict, want: dict) -> None:
    """The same names, types, shapes and bits."""
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == array.shape
        assert got[name].tobytes() == np.ascontiguousarray(array).tobytes()


# --- HTTP -------------------------------------------------------------------------------------------------------------


def http_reply(tensors: dict, how: str) -> tuple[bytes, int | None]:
    """A reply as a server writes it: "flat" and "nested" lists, or "binary"."""
    outputs, blobs = [], []
    for name, array in tensors.items():
        output = {"name": name, "shape": list(array.shape), "datatype": datatype_of(array.dtype)}
        if how == "binary":
            blobs.append(array.astype(dtype_of(output["datatype"])).tobytes())
            output["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            nested = how == "nested" and array.ndim > 1 and array.size
            output["data"] = array.tolist() if nested else array.ravel().tolist()
        outputs.append(output)
    head = json.dumps({"model_name": "m", "id": "7", "outputs": outputs}, ensure_ascii=False).encode()
    return head + b"".join(blobs), len(head) if how == "binary" else None


@given(tensors=TENSORS, how=st.sampled_from(["flat", "nested", "binary"]))
def test_http_replies_are_read_as_they_were_meant(tensors, how):
    """Every type and shape, as flat lists, nested lists and bytes: the same bits."""
    same(http_messages.decode_reply(*http_reply(tensors, how)), tensors)


@given(tensors=TENSORS, binary=st.booleans())
def test_http_requests_say_what_they_mean(tensors, binary):
    """json reads the head; sizes and bytes fit; numbers are the numbers."""
    body, size = http_messages.encode_request(tensors, ["a", "b"], binary=binary)
    head, at = json.loads(body[:size] if binary else body), size or len(body)
    assert [one["name"] for one in head["outputs"]] == ["a", "b"]
    got = {}
    for one in head["inputs"]:
        dtype = dtype_of(one["datatype"])
        if binary:
            n_bytes = one["parameters"]["binary_data_size"]
            array = np.frombuffer(body[at : at + n_bytes], dtype)
            at += n_bytes
        else:
            array = np.array(one["data"], dtype)
        assert array.size == math.prod(one["shape"])
        got[one["name"]] = array.reshape(one["shape"]).astype(dtype.newbyteorder("="))
    assert at == len(body)
    same(got, tensors)


def refused_or_read(read, *arguments) -> None:
    """Nothing but a result or a RemoteError of a known kind, and quickly."""
    begin_s, kind = time.monotonic(), "failed"
    try:
        read(*arguments)
    except RemoteError as exc:
        kind = exc.kind
    assert kind in KINDS
    assert time.monotonic() - begin_s < 2.0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "shape", "data", "outputs"]), inner)
    ),
    max_leaves=8,
)
OUTPUTS = st.fixed_dictionaries(
    {
        "name": st.text(max_size=3) | JSON,
        "datatype": st.sampled_from(["FP32", "INT8", "BOOL", "FP16", "BYTES", "x"]) | JSON,
        "shape": st.lists(st.integers(-2, 3), max_size=3) | JSON,
    },
    optional={
        "data": st.lists(st.floats() | st.integers(), max_size=4) | JSON,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 40)}) | JSON,
    },
)


@given(
    outputs=st.lists(OUTPUTS, max_size=3) | JSON,
    tail=st.binary(max_size=20),
    shift=st.integers(-9, 9) | st.none(),
)
def test_http_replies_of_any_make_are_read_or_refused(outputs, tail, shift):
    """Almost right in any part: a result, or a RemoteError."""
    head = json.dumps({"outputs": outputs}).encode()
    refused_or_read(http_messages.decode_reply, head + tail, None if shift is None else len(head) + shift)


@given(body=st.binary(max_size=200))
@example(body=b'{"outputs":[{"name":"\xff"}]}')
@example(body=b"[" * 100_000)
@example(body=b'{"a":' * 50_000)
@example(body=b'"' + b"\\" * 200_001)
@example(body=b'"\\"' * 100_000)
@example(body=b"\x00" * 100)
def test_bytes_of_any_make_are_read_or_refused(body):
    """The four readers of what a server sends."""
    refused_or_read(http_messages.decode_reply, body, None)
    refused_or_read(http_messages.decode_reply, body, len(body) // 2)
    refused_or_read(http_messages.decode_metadata, body)
    refused_or_read(http_messages.extensions_of, body)
    refused_or_read(grpc_messages.decode_reply, body)
    refused_or_read(grpc_messages.decode_metadata, body)


N_LONG = 1 << 20


def http_of(shape: bytes, data: bytes, more: bytes = b"") -> bytes:
    """A reply with one output."""
    return b'{"outputs":[{"name":"p","datatype":"FP32","shape":%s,"data":%s%s}]}' % (shape, data, more)


@pytest.mark.parametrize(
    "body",
    [
        http_of(b"[%d,1]" % N_LONG, b"[" + b",".join([b"[1]"] * N_LONG) + b"]"),
        http_of(b"[1]", b"[" + b",".join([b"[]"] * N_LONG) + b"]"),
        http_of(b"[1]", b"[" + b",".join([b'""'] * N_LONG) + b"]"),
        http_of(b"[1]", b'["' + b"\\n" * N_LONG + b'"]'),
        http_of(b"[1]", b"[1]", b',"parameters":{"a":[' + b",".join([b"[]"] * N_LONG) + b"]}"),
        http_of(b"[" + b",".join([b"1"] * N_LONG) + b"]", b"[1]"),
        http_of(b"[1]", b"{" * N_LONG),
    ],
    ids=["nested", "brackets", "texts", "backslashes", "parameters", "dimensions", "deep"],
)
def test_c57_long_http_replies_take_no_step_of_python_per_byte(body):
    """A server that uses up `max_reply_bytes` must not keep the GIL for seconds after the deadline."""
    assert n_steps(http_messages.decode_reply, body, None) < 5_000


@pytest.mark.parametrize(
    ("shape", "data", "want"),
    [
        ([2, 1], "[[1], [2]]", [[1], [2]]),
        ([1, 2, 2], " [ [[1,2],[3,4]] ] ", [[[1, 2], [3, 4]]]),
        ([2, 0], "[[], []]", [[], []]),
        ([1, 1, 0], "[[[]]]", [[[]]]),
        ([2, 1], "[[1,2]]", None),
        ([2, 1], "[[1],[]]", None),
        ([2, 0], "[[1],[]]", None),
        ([2, 0], "[[],[1]]", None),
        ([1, 1], "[[1]2]", None),
        ([2, 1], "[[1][2]]", None),
        ([2, 1], "[[1],2]", None),
        ([2], "[[1],[2]]", None),
        ([], "[[1]]", None),
        ([1, 1], '[["1,2"]]', None),
        ([1, 1], "[[{}]]", None),
        ([1, 1], "[[null]]", None),
        ([90, 90, 90, 90, 90, 0], "[[1]]", None),
    ],
)
def test_nested_lists_have_the_declared_shape_or_are_refused(shape, data, want):
    """Read without a list for each row, and yet as JSON means them."""
    body = b'{"outputs":[{"name":"p","datatype":"FP32","shape":%s,"data":%s}]}' % (
        json.dumps(shape).encode(),
        data.encode(),
    )
    if want is None:
        with pytest.raises(RemoteError) as caught:
            http_messages.decode_reply(body, None)
        assert caught.value.kind == "malformed"
    else:
        found = http_messages.decode_reply(body, None)["p"]
        assert found.tolist() == want
        assert found.shape == tuple(shape)


def n_steps(read, *arguments) -> int:
    """Lines of Python that a reader takes: as a figure, on a busy machine too."""
    n = 0

    def step(frame, event, _):
        nonlocal n
        if "retailinfer" not in frame.f_code.co_filename:
            return None
        n += 1
        if n > 1_000_000:
            raise AssertionError("too many")
        return step

    sys.settrace(step)
    try:
        refused_or_read(read, *arguments)
    finally:
        sys.settrace(None)
    return n


@pytest.mark.parametrize(
    ("size", "kind"), [(b"NaN", "malformed"), (b"1e999", "malformed"), (b"-1e39", "malformed")]
)
def test_numbers_that_a_type_cannot_hold_are_refused(size, kind):
    """NaN is no JSON, and what would become infinity in a float32 is not what was meant."""
    body = b'{"outputs":[{"name":"a","datatype":"FP32","shape":[1],"data":[%s]}]}' % size
    with pytest.raises(RemoteError) as caught:
        http_messages.decode_reply(body, None)
    assert caught.value.kind == kind


# --- gRPC -------------------------------------------------------------------------------------------------------------


def grpc_of(*fields: bytes) -> bytes:
    """A reply with one output."""
    return grpc_messages._block(5, grpc_messages._text(1, "p") + b"".join(fields))


@pytest.mark.parametrize(
    "body",
    [
        b"\x08\x00" * N_LONG,
        b"\x2a\x00" * N_LONG,
        grpc_of(b"\x20\x00" * N_LONG),
        grpc_of(grpc_messages._text(2, "FP32"), grpc_messages._block(3, b"\x01" * N_LONG)),
        grpc_of(
            grpc_messages._text(2, "INT64"),
            grpc_messages._block(3, grpc_messages._varint(N_LONG)),
            grpc_messages._block(5, grpc_messages._block(3, b"\x01" * N_LONG)),
        ),
        grpc_of(
            grpc_messages._text(2, "INT64"),
            grpc_messages._block(3, grpc_messages._varint(N_LONG)),
            grpc_messages._block(5, b"\x18\x01" * N_LONG),
        ),
    ],
    ids=["fields", "outputs", "fields of an output", "dimensions", "packed", "unpacked"],
)
def test_c57_long_grpc_replies_take_no_step_of_python_per_byte(body):
    """Only so many fields are read one by one, whatever `max_reply_bytes` lets through."""
    assert n_steps(grpc_messages.decode_reply, body) < 1_000_000


@given(
    numbers=st.lists(
        st.integers(0, (1 << 64) - 1) | st.sampled_from([0, 127, 128, (1 << 64) - 1]), max_size=50
    ),
    piece=st.integers(10, 40),
)
def test_packed_numbers_are_read_in_pieces_as_in_one(numbers, piece):
    """Wherever a piece ends: in the middle of a number, too."""
    data = b"".join(map(grpc_messages._varint, numbers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpc_messages, "_PIECE", piece)
        found = [int(one) for part in grpc_messages._read_packed(memoryview(data)) for one in part]
    assert found == numbers


@pytest.mark.parametrize("data", [b"\x80", b"\x01\xff", b"\x80" * 10 + b"\x01", b"\x80" * 40])
def test_packed_numbers_without_an_end_are_refused(data):
    """Also where a piece holds nothing else."""
    with pytest.raises(RemoteError) as caught:
        list(grpc_messages._read_packed(memoryview(data)))
    assert caught.value.kind == "malformed"


@pytest.fixture(scope="module")
def messages():
    """The messages of the protocol, made by protobuf's runtime from their description."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = {
        "string": 9,
        "int64": 3,
        "bytes": 12,
        "bool": 8,
        "int32": 5,
        "uint32": 13,
        "uint64": 4,
        "float": 2,
        "double": 1,
    }
    tensor = [("name", 1, "string"), ("datatype", 2, "string"), ("shape", 3, "*int64")]
    described = {
        "Contents": [
            ("bool_contents", 1, "*bool"), ("int_contents", 2, "*int32"), ("int64_contents", 3, "*int64"),
            ("uint_contents", 4, "*uint32"), ("uint64_contents", 5, "*uint64"), ("fp32_contents", 6, "*float"),
            ("fp64_contents", 7, "*double"), ("bytes_contents", 8, "*bytes"),
        ],
        "Tensor": [*tensor, ("contents", 5, ".Contents")],
        "Asked": [("name", 1, "string")],
        "Request": [
            ("model_name", 1, "string"), ("model_version", 2, "string"), ("id", 3, "string"), ("inputs", 5, "*.Tensor"),
            ("outputs", 6, "*.Asked"), ("raw_input_contents", 7, "*bytes"),
        ],
        "Reply": [
            ("model_name", 1, "string"), ("model_version", 2, "string"), ("id", 3, "string"), ("outputs", 5, "*.Tensor"),
            ("raw_output_contents", 6, "*bytes"),
        ],
        "Model": [
            ("name", 1, "string"), ("versions", 2, "*string"), ("platform", 3, "string"), ("inputs", 4, "*.Tensor"),
            ("outputs", 5, "*.Tensor"),
        ],
    }  # fmt: skip
    file = descriptor_pb2.FileDescriptorProto(name="oip.proto", package="oip", syntax="proto3")
    for name, fields in described.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            many, plain = kind.startswith("*"), kind.lstrip("*")
            added = message.field.add(name=field, number=number, label=3 if many else 1)
            if plain.startswith("."):
                added.type, added.type_name = 11, f".oip{plain}"
            else:
                added.type = kinds[plain]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"oip.{name}")) for name in described
    }


FIELDS = {
    "bool": "bool_contents", "int8": "int_contents", "int16": "int_contents", "int32": "int_contents",
    "int64": "int64_contents", "uint8": "uint_contents", "uint16": "uint_contents", "uint32": "uint_contents",
    "uint64": "uint64_contents", "float32": "fp32_contents", "float64": "fp64_contents",
}  # fmt: skip


@given(tensors=TENSORS)
def test_grpc_requests_are_what_protobuf_reads(messages, tensors):
    """Names, shapes and bytes arrive as they were given."""
    body = grpc_messages.encode_request("fraud", "2", tensors, ["a", "é"])
    read = messages["Request"].FromString(body)
    assert (read.model_name, read.model_version) == ("fraud", "2")
    assert [one.name for one in read.outputs] == ["a", "é"]
    got = {
        one.name: np.frombuffer(raw, dtype_of(one.datatype)).reshape(tuple(one.shape))
        for one, raw in zip(read.inputs, read.raw_input_contents, strict=True)
    }
    same(got, tensors)


@given(tensors=TENSORS, raw=st.booleans())
def test_grpc_replies_of_protobuf_are_read_as_they_were_meant(messages, tensors, raw):
    """Raw contents and typed ones, every type and shape: the same bits."""
    reply = messages["Reply"](model_name="fraud", id="x")
    if not raw:
        tensors = {
            name: array for name, array in tensors.items() if array.dtype != np.float16
        }  # has no typed field
    for name, array in tensors.items():
        output = reply.outputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        if raw:
            reply.raw_output_contents.append(array.tobytes())
        else:
            getattr(output.contents, FIELDS[array.dtype.name]).extend(array.ravel().tolist())
    same(grpc_messages.decode_reply(reply.SerializeToString()), tensors)


def test_grpc_metadata_of_protobuf_is_read(messages):
    """Sizes of -1 take ten bytes and are still -1."""
    model = messages["Model"](name="fraud", versions=["1"], platform="numpy")
    model.inputs.add(name="features", datatype="FP32", shape=[-1, 4])
    model.outputs.add(name="score", datatype="FP32", shape=[-1, 1])
    found = grpc_messages.decode_metadata(model.SerializeToString())
    assert found.inputs == (("features", "FP32", (-1, 4)),)
    assert found.outputs == (("score", "FP32", (-1, 1)),)
    asked = grpc_messages.encode_metadata_request("fraud", "")
    assert messages["Model"].FromString(asked).name == "fraud"


@given(
    tensors=TENSORS,
    cut=st.integers(0, 200),
    flips=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=4),
)
def test_grpc_replies_that_were_damaged_are_read_or_refused(messages, tensors, cut, flips):
    """Cut anywhere, bytes changed anywhere."""
    reply = messages["Reply"](model_name="fraud")
    for name, array in tensors.items():
        reply.outputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        reply.raw_output_contents.append(array.tobytes())
    body = bytearray(reply.SerializeToString())
    for at, value in flips:
        if body:
            body[at % len(body)] = value
    refused_or_read(grpc_messages.decode_reply, bytes(body[: max(0, len(body) - cut)]))
    refused_or_read(grpc_messages.decode_reply, bytes(body))
