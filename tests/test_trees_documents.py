"""JSON and UBJSON that strangers wrote: what is read, and that nothing a document claims costs more than it weighs."""

from __future__ import annotations

import contextlib
import math
import struct
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailinfer.authoring.trees import documents
from retailinfer.authoring.trees.documents import read_json, read_ubjson
from retailinfer.errors import ModelError

LONG = struct.Struct(">q").pack


def key(text):
    """A key as XGBoost writes it: its length as int64."""
    raw = text.encode()
    return b"L" + LONG(len(raw)) + raw


@pytest.mark.parametrize(
    ("data", "want"),
    [
        (b"Z", None),
        (b"T", True),
        (b"NNF", False),
        (b"i\xff", -1),
        (b"U\xff", 255),
        (b"I\xff\xfe", -2),
        (b"l\x00\x01\x00\x00", 65536),
        (b"L" + LONG(-(1 << 40)), -(1 << 40)),
        (b"d" + struct.pack(">f", 0.1), float(np.float32(0.1))),
        (b"D" + struct.pack(">d", 0.1), 0.1),
        (b"Ca", "a"),
        (b"SU\x03abc", "abc"),
        (b"Si\x00", ""),
        (b"[]", []),
        (b"[#U\x00", []),
        (b"[TF[Z]]", [True, False, [None]]),
        (b"[#U\x02TZ", [True, None]),
        (b"[$S#U\x02U\x01aU\x01b", ["a", "b"]),
        (b"{}", {}),
        (b"{U\x01aTU\x01b[]}", {"a": True, "b": []}),
        (b"{#U\x01" + key("x") + b"Z", {"x": None}),
        (b"{$U#U\x02" + key("x") + b"\x01" + key("y") + b"\x02NN", {"x": 1, "y": 2}),
    ],
)
def test_values_of_every_type_are_read(data, want):
    """As the specification has them; no-ops between values are nothing."""
    got = read_ubjson(data, "it")
    assert got == want
    assert type(got) is type(want)


@pytest.mark.parametrize(
    ("mark", "kind"),
    [("i", "i1"), ("U", "u1"), ("I", ">i2"), ("l", ">i4"), ("L", ">i8"), ("d", ">f4"), ("D", ">f8")],
)
def test_typed_arrays_are_arrays(mark, kind):
    """Numbers of one type, in the order of bytes that UBJSON has."""
    want = np.array([1, 0, 100, -3 if kind != "u1" else 3], kind)
    got = read_ubjson(b"[$" + mark.encode() + b"#U\x04" + want.tobytes(), "it")
    np.testing.assert_array_equal(got, want)
    assert got.dtype == want.dtype


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "Expected 1 bytes, got 0"),
        (b"x", "Expected a value, got b'x'"),
        (b"H", "Expected a value"),  # numbers as text are not read
        (b"SHU\x01", "Expected a length"),
        (b"l\x00", "Expected 4 bytes, got 1"),
        (b"SU\x05abc", "Expected 5 bytes, got 3"),
        (b"Si\xff", "Expected -1 bytes"),
        (b"SU\x01\xff", "Expected UTF-8"),
        (b"SL" + LONG(1 << 62), "Expected 4611686018427387904 bytes"),
        (b"ZZ", "Expected the end, got 1 bytes more"),
        (b"[T", "Expected 1 bytes, got 0"),
        (b"[$U", "Expected a count behind a type"),
        (b"[$Ux", "Expected a count behind a type"),
        (b"[#d", "Expected a length"),
        (b"[#i\xff", "Expected a count, got -1"),
        (b"[$d#L" + LONG(1 << 61), "Expected 9223372036854775808 bytes"),
        (b"[#L" + LONG(1 << 40), "values in 0 bytes"),
        (b"[$Z#L" + LONG(1 << 40), "values in 0 bytes"),
        (b"[$T#U\x01T", "Expected 1 values"),
        (b"[$N#U\x01T", "Expected 1 values"),
        (b"{$Z#U\x01" + key("a"), "Expected 1 values"),
        (b"{U\x01aTU\x01aF}", "'a' twice"),
        (b"{#U\x02" + key("a") + b"Z" + key("a") + b"Z", "'a' twice"),
        (b"{T}", "Expected a length"),
        (b"[" * 100_000, "at most 64 levels"),
        (b"[#U\x01" * 100_000, "at most 64 levels"),
        (b"{U\x01a" * 100_000, "at most 64 levels"),
    ],
)
def test_what_is_no_ubjson_is_refused_with_the_place(data, why):
    """Cut short, lengths and counts that nothing stands behind, doubled keys, endless nesting."""
    start = time.process_time()
    with pytest.raises(ModelError, match=f"{why}.* - at byte"):
        read_ubjson(data, "it")
    assert time.process_time() - start < 1


@pytest.mark.parametrize("data", [b"{}" * 1_000, b"Z" * 1_000, b"[$d#U\x00" * 1_000])
def test_values_are_counted(data, monkeypatch):
    """Objects, single values and whole arrays are one each; there is a most that a document may have."""
    assert len(read_ubjson(b"[" + data + b"]", "it")) == 1_000
    monkeypatch.setattr(documents, "MAX_ITEMS", 1_000)  # the outer array is one too
    with pytest.raises(ModelError, match="at most 64 levels and 1000 values"):
        read_ubjson(b"[" + data + b"]", "it")


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_a_model_error(data):
    """Nothing else ever comes out, and not much memory goes in."""
    for start in (b"", b"[", b"{", b"[$U#", b"[#l\x00\x00", b"{#U\x02"):
        with contextlib.suppress(ModelError):
            read_ubjson(start + data, "it")


def plain(value):
    """A value as bytes, in the simplest form."""
    if value is None or isinstance(value, bool):
        return {None: b"Z", True: b"T", False: b"F"}[value]
    if isinstance(value, int):
        return b"L" + LONG(value)
    if isinstance(value, float):
        return b"D" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"S" + key(value)
    if isinstance(value, list):
        return b"[" + b"".join(map(plain, value)) + b"]"
    return b"{" + b"".join(key(name) + plain(one) for name, one in value.items()) + b"}"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_what_is_written_is_read(value):
    """Any tree of values comes back."""
    assert read_ubjson(plain(value), "it") == value


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff", "Expected JSON in it"),
        (b"", "Expected JSON in it"),
        (b"{", "Expected JSON in it"),
        (b'{"a":1,"b":{"c":1,"c":2}}', "got 'c' twice"),
        (b"[" * 200_000, "nests deeper"),
        (b'{"a":' * 200_000, "nests deeper"),
        (b"9" * 10_000, "Expected JSON in it"),
    ],
)
def test_what_is_no_json_is_refused(data, why):
    """As UBJSON is."""
    with pytest.raises(ModelError, match=why):
        read_json(data, "it")


def test_numbers_that_json_does_not_have_are_numbers_here():
    """XGBoost writes them; whoever must not have them looks."""
    got = read_json(b'\xef\xbb\xbf{"a": [NaN, Infinity, -Infinity, 1e400]}', "it")["a"]
    assert math.isnan(got[0])
    assert got[1:] == [math.inf, -math.inf, math.inf]
