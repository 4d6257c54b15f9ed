"""Golden rows: they survive their file, hostile files are refused, and comparisons notice what they must."""

from __future__ import annotations

import io

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailinfer.errors import GoldenMismatchError, ManifestError
from retailinfer.release import golden as golden_module
from retailinfer.release.golden import (
    Golden,
    GoldenArray,
    GoldenColumn,
    array_of,
    check_kinds,
    check_scores,
    check_tensors,
    column_of,
    cpu_class,
    decode_golden,
    encode_golden,
    hash_tensors,
)

SHA = "0" * 64


def golden(**changes) -> Golden:
    """Two rows of every kind of column."""
    texts = np.frombuffer("abé".encode(), np.uint8)
    columns = {
        "amount": column_of("float", (np.array([1.5, np.nan]), None, None, None)),
        "n": column_of("int", (np.array([1, 2]), np.array([1, 0], np.uint8), None, None)),
        "text": column_of("text", (texts, None, np.array([0, 2, 4]), None)),
        "v": column_of("vector", (np.ones((2, 3), np.float32), None, None, None)),
        "ints": column_of("list[int]", (np.array([1, 2, 3]), None, np.array([0, 3, 3]), None)),
        "words": column_of("list[str]", (texts, None, np.array([0, 1, 3]), np.array([0, 1, 2, 4]))),
    }
    given = {
        "now_ns": 7,
        "n_rows": 2,
        "rows_per_run": 2,
        "columns": columns,
        "tensors_sha256": SHA,
        "scores": np.array([0.25, 0.75], "<f4").tobytes(),
        "actions": ("approve", "decline"),
    }
    return Golden(**{**given, **changes})


def test_golden_states_survive_their_file():
    """What was unknown, stale or unavailable is so again; only what is looked up has such states."""
    back = decode_golden(encode_golden(golden(states={"n": b"\x00\x03", "card.v": b"\x02\x04"})))
    assert {name: list(states) for name, states in back.state_arrays(["n", "card.v"]).items()} == {
        "n": [0, 3],
        "card.v": [2, 4],
    }
    assert golden().state_arrays(()) == {}
    with pytest.raises(GoldenMismatchError, match=r"'card\.v'.*does not look up"):
        back.state_arrays(["n"])


@pytest.mark.parametrize("states", [b"", b"\x00", b"\x00\x00\x00", b"\x00\x05", b"\xff\x00"])
def test_golden_states_that_there_are_not_are_refused(states):
    """One byte a row, each the place of a state."""
    with pytest.raises(ManifestError, match="states of 'n'"):
        decode_golden(encode_golden(golden(states={"n": states})))


def test_golden_rows_survive_their_file():
    """Encoding and decoding gives the same columns, arrays and scores, bit for bit."""
    back = decode_golden(encode_golden(golden()))
    assert back == golden()
    assert back.score_values().tolist() == [0.25, 0.75]
    amount, missing, words, text = back.canonical(["amount", "absent", "words", "text", "n", "v", "ints"])[:4]
    assert missing is None
    np.testing.assert_array_equal(amount[0], [1.5, np.nan])
    assert bytes(words[0][words[3][1] : words[3][2]]) == b"b"
    assert bytes(text[0][text[2][1] : text[2][2]]).decode() == "é"


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array([[True], [False]]),
        np.array(5, dtype=np.int64),
        np.zeros((0, 4), np.float64),
        np.array([["a", "é\0"]], dtype=object),
        np.arange(4, dtype=">i4").reshape(2, 2),
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
    ],
)
def test_golden_arrays_survive_their_file(array):
    """Any array that a model takes comes back equal, in native byte order."""
    made = Golden(now_ns=0, n_rows=1, rows_per_run=1, arrays={"x": array_of(array)}, tensors_sha256=SHA)
    back = decode_golden(encode_golden(made)).feeds()["x"]
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


def test_equal_rows_give_equal_bytes():
    """The file does not depend on the order in which columns were made."""
    reverse = dict(reversed(golden().columns.items()))
    assert encode_golden(golden()) == encode_golden(golden(columns=reverse))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data):
    """Whatever bytes come, the answer is a typed error."""
    with pytest.raises(ManifestError):
        decode_golden(data)


@given(st.data())
def test_flipped_bytes_are_refused_or_harmless(data):
    """A changed file is refused, or all its offsets still lie inside its values."""
    whole = bytearray(encode_golden(golden()))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        back = decode_golden(bytes(whole))
    except ManifestError:
        return
    for canonical in back.canonical(list(back.columns)):
        assert canonical is not None
        values, _, offsets, children = canonical
        inner = offsets if children is None else children
        if inner is not None:
            assert inner[-1] == len(values)


@pytest.mark.parametrize(
    "broken",
    [
        golden(n_rows=3),
        golden(scores=b"123"),
        golden(actions=("approve",)),
        golden(rows_per_run=64),
        golden(arrays={"x": GoldenArray(dtype="float32", shape=(1,), values=b"\0" * 4)}),
        golden(columns={"a": GoldenColumn(kind="float", values=b"\0" * 15)}),
        golden(columns={"a": GoldenColumn(kind="float", values=b"\0" * 24)}),
        golden(columns={"a": GoldenColumn(kind="float", values=b"\0" * 16, valid=b"\1")}),
        golden(columns={"a": GoldenColumn(kind="float", values=b"\0" * 16, offsets=b"\0" * 24)}),
        golden(columns={"a": GoldenColumn(kind="text", values=b"ab")}),
        golden(columns={"a": GoldenColumn(kind="text", values=b"ab", offsets=np.array([0, 1, 3]).tobytes())}),
        golden(columns={"a": GoldenColumn(kind="text", values=b"ab", offsets=np.array([0, 3, 2]).tobytes())}),
        golden(
            columns={"a": GoldenColumn(kind="text", values=b"ab", offsets=np.array([-1, 1, 2]).tobytes())}
        ),
        golden(columns={"a": GoldenColumn(kind="text", values=b"ab", offsets=np.array([0, 2]).tobytes())}),
        golden(
            columns={"a": GoldenColumn(kind="list[str]", values=b"ab", offsets=np.array([0, 1, 2]).tobytes())}
        ),
        golden(
            columns={
                "a": GoldenColumn(
                    kind="list[str]",
                    values=b"ab",
                    offsets=np.array([0, 1, 9]).tobytes(),
                    children=np.array([0, 1, 2]).tobytes(),
                )
            }
        ),
    ],
)
def test_rows_that_contradict_themselves_are_refused(broken):
    """Sizes and offsets are checked before anything points into the bytes."""
    with pytest.raises(ManifestError, match="contradicts itself"):
        decode_golden(encode_golden(broken))


@pytest.mark.parametrize(
    "array",
    [
        GoldenArray(dtype="float32", shape=(2,), values=b"\0" * 4),
        GoldenArray(dtype="float32", shape=(1 << 20, 1 << 20), values=b""),
        GoldenArray(dtype="object", shape=(1,), values=b"\0" * 8),
        GoldenArray(dtype="string", shape=(2,), texts=("a",)),
        GoldenArray(dtype="float16", shape=(1,), values=b"\0\0"),
    ],
)
def test_arrays_that_contradict_themselves_are_refused(array):
    """A shape that its bytes do not fill is refused, however large it claims to be."""
    made = Golden(now_ns=0, n_rows=1, rows_per_run=1, arrays={"x": array}, tensors_sha256=SHA)
    with pytest.raises(ManifestError, match="array 'x'"):
        decode_golden(encode_golden(made))


def test_unknown_fields_and_too_many_rows_are_refused():
    """The format is strict."""
    document = msgspec.msgpack.decode(encode_golden(golden()))
    for change in ({"pickle": b""}, {"n_rows": 65}, {"n_rows": 0}):
        with pytest.raises(ManifestError):
            decode_golden(msgspec.msgpack.encode({**document, **change}))


def test_columns_that_the_features_do_not_read_are_refused():
    """Golden rows of one release do not pass for those of another."""
    with pytest.raises(GoldenMismatchError, match="'amount'"):
        golden().canonical(["n", "text", "v", "ints", "words"])


def test_columns_of_another_kind_than_their_field_are_refused():
    """Offsets of texts count bytes, offsets of lists count numbers: one read as the other would end elsewhere."""
    made = golden()
    types = {"float": "float", "int": "timestamp", "text": "bytes", "vector": "vector"}
    fits = {name: types.get(column.kind, column.kind) for name, column in made.columns.items()}
    check_kinds(made, fits)
    for name in made.columns:
        for other in {"float", "str", "list[float]", "list[str]", "vector"} - {fits[name]}:
            if not (other == "str" and fits[name] == "bytes"):
                with pytest.raises(GoldenMismatchError, match=name):
                    check_kinds(made, fits | {name: other})


def test_hash_sees_borders_types_and_texts():
    """Moving a border between tensors, between texts, or a byte, changes the hash."""
    a, b = np.arange(4, dtype=np.float32), np.arange(2, dtype=np.float32)
    different = [
        [a, b],
        [b, a],
        [np.concatenate([a, b])],
        [a.astype(np.float64), b],
        [["ab", "c"]],
        [["a", "bc"]],
        [["abc"]],
        [np.array([["ab", "c", ""]], dtype=object)],
    ]
    assert len({hash_tensors(tensors) for tensors in different}) == len(different)
    assert hash_tensors([a]) == hash_tensors([a.astype(">f4")]) == hash_tensors([np.stack([a, a], 1)[:, 0]])
    assert hash_tensors([["ab", "c"]]) == hash_tensors([np.array(["ab", "c"], dtype=object)])


def test_scores_must_be_bit_equal_on_the_same_machine():
    """One unit in the last place is a mismatch where the bits can be expected, and the row is named."""
    scores = golden().score_values().copy()
    check_scores(golden(), scores, ("approve", "decline"), same_machine=True, tolerance=0)
    scores[1] = np.nextafter(scores[1], np.float32(1))
    with pytest.raises(GoldenMismatchError, match="row 1"):
        check_scores(golden(), scores, ("approve", "decline"), same_machine=True, tolerance=1)


def test_elsewhere_scores_may_differ_but_no_action():
    """On another CPU class small differences pass, larger ones, NaN and another action do not."""
    scores = golden().score_values() + np.float32(1e-6)
    check_scores(golden(), scores, ("approve", "decline"), same_machine=False, tolerance=1e-4)
    with pytest.raises(GoldenMismatchError, match="approve"):
        check_scores(golden(), scores, ("decline", "decline"), same_machine=False, tolerance=1e-4)
    for wrong in (0.5, np.nan, np.inf):
        with pytest.raises(GoldenMismatchError, match="row 0"):
            check_scores(
                golden(), np.array([wrong, 0.75], np.float32), None, same_machine=False, tolerance=1e-4
            )
    with pytest.raises(GoldenMismatchError, match="shape"):
        check_scores(golden(), scores[:1], None, same_machine=False, tolerance=1)


def test_other_tensors_are_a_mismatch():
    """Our own arithmetic gives the same bits everywhere, or says that it does not."""
    check_tensors(golden(), SHA)
    with pytest.raises(GoldenMismatchError, match="features"):
        check_tensors(golden(), "1" * 64)


def test_cpu_class_names_what_chooses_the_kernels(monkeypatch):
    """The class is stable, says the architecture, and follows the instruction sets."""
    assert cpu_class() == cpu_class()
    text = "processor : 0\nflags : fpu avx avx2 fma avx512_vnni something\n"
    monkeypatch.setattr(golden_module.sys, "platform", "linux")
    monkeypatch.setattr(golden_module.platform, "machine", lambda: "X86_64")

    monkeypatch.setattr(golden_module, "open", lambda *_, **__: io.StringIO(text), raising=False)
    cpu_class.cache_clear()
    try:
        assert cpu_class() == "linux-x86_64+avx+fma+avx2+avx512_vnni"
    finally:
        cpu_class.cache_clear()
