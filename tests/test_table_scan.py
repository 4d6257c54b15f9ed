"""The in-place scan of candidate ids against msgspec: the same strings, or an honest 'I do not know'."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retailinfer._native.table import scan_ids_list

SLOW, MALFORMED, TOO_MANY = -1, -2, -3
PLAIN = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7F, exclude_characters='"\\'), max_size=40)
SPACE = st.text(" \n\r\t", max_size=3)


def decoded(body: bytes) -> Any:
    """What the decoder of the service makes of it, or None for what it refuses."""
    try:
        return msgspec.json.decode(body, type=list[str])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def agrees(body: bytes) -> None:
    """The scan never says anything that the decoder does not say."""
    found, expected = scan_ids_list(body), decoded(body)
    if isinstance(found, list):
        assert [one.decode() for one in found] == expected
    elif found == MALFORMED:
        assert expected is None
    else:
        assert found == SLOW


@given(ids=st.lists(PLAIN, max_size=50), space=st.tuples(SPACE, SPACE, SPACE, SPACE, SPACE))
def test_plain_strings_are_found_where_they_stand(ids: list[str], space: tuple[str, ...]):
    """Plain ASCII strings never need the decoder, however the array is laid out."""
    before, inside, after, around, behind = space
    body = (
        before + "[" + inside + (after + "," + around).join(f'"{one}"' for one in ids) + inside + "]" + behind
    )
    assert scan_ids_list(body.encode()) == [one.encode() for one in ids]
    assert decoded(body.encode()) == ids


@given(
    values=st.lists(
        st.one_of(st.text(max_size=30), PLAIN, st.integers(), st.none(), st.booleans(), st.floats())
    ),
    ascii_only=st.booleans(),
)
def test_arrays_of_anything_give_the_decoders_strings_or_none(values: list[Any], ascii_only: bool):
    """Escapes, other alphabets, numbers, nulls: the same strings as the decoder, or the slow path."""
    try:
        body = json.dumps(values, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        return
    agrees(body)


@given(ids=st.lists(PLAIN, min_size=1, max_size=8), data=st.data())
def test_damaged_arrays_are_never_read_wrong(ids: list[str], data: st.DataObject):
    """One byte changed, removed, doubled, or the rest cut off: the decoder's answer, or none."""
    body = bytearray(json.dumps(ids).encode())
    at = data.draw(st.integers(0, len(body) - 1))
    match data.draw(st.sampled_from(["change", "remove", "insert", "cut"])):
        case "change":
            body[at] = data.draw(st.integers(0, 255))
        case "remove":
            del body[at]
        case "insert":
            body.insert(at, data.draw(st.sampled_from(list(b'",[]\\ \0a\xff'))))
        case _:
            del body[at:]
    agrees(bytes(body))


@given(body=st.one_of(st.binary(max_size=60), st.text('[]", \\a\x00\x1f\x7fé', max_size=60).map(str.encode)))
@example(body=b"")
@example(body=b'["a"]\0')
@example(body=b"\xef\xbb\xbf[]")
@example(body=b'["\x1f"]')
@example(body=b'["0123456789abcde\x80"]')
@example(body=b'["0123456789abcdef"')
def test_arbitrary_bytes_are_never_read_wrong(body: bytes):
    """Nothing that is not an array of strings is taken for one."""
    agrees(body)


@pytest.mark.parametrize("size", [*range(40), 1000])
def test_strings_of_every_length_end_where_they_end(size: int):
    """A quote at any offset of the 16-byte step is seen, and so is an escape."""
    assert scan_ids_list(b'["' + b"a" * size + b'","b"]') == [b"a" * size, b"b"]
    assert scan_ids_list(b'["' + b"a" * size + b'\\n"]') == SLOW
    assert scan_ids_list(b'["' + b"a" * size + "é".encode() + b'"]') == SLOW
    assert scan_ids_list(b'["' + b"a" * size) == MALFORMED


def test_more_ids_than_allowed_stop_the_scan():
    """The cap holds before the rest is looked at, and exactly the cap is allowed."""
    assert scan_ids_list(b'["a","b"]', 2) == [b"a", b"b"]
    assert scan_ids_list(b'["a","b","c"]', 2) == TOO_MANY
    assert scan_ids_list(b"[]", 0) == []
    assert scan_ids_list(b'["a"]', 0) == TOO_MANY
