"""The table's index against a plain dict: every kind of key, hostile keys, single and bulk look-ups."""

from __future__ import annotations

import enum
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retailinfer._native.hashing import siphash13
from retailinfer._native.table import SnapshotTable, compose_keys
from retailinfer.errors import (
    ConfigError,
    FeatureError,
    FeatureRangeError,
    FeatureTypeError,
    LimitError,
    ShapeError,
)
from retailinfer.store.table import Snapshot

# Few different characters and sizes around 8, 16, 32 and 64 bytes, where the index changes its way of storing keys.
ALPHABET = st.sampled_from("ab\0é€😀")
TEXTS = st.one_of(
    st.text(ALPHABET, max_size=20),
    st.integers(0, 70).map(lambda n: "a" * n),
    st.text(max_size=40),
    st.integers(0, 10**9).map("sku-{:07d}".format),
).filter(lambda text: not any(0xD800 <= ord(c) <= 0xDFFF for c in text))
BYTES = st.one_of(
    st.binary(max_size=20), st.integers(0, 300).map(bytes), st.integers(0, 70).map(lambda n: b"a" * n)
)
INTS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-3, 3),
    st.integers(-4, 4).map(lambda k: k * (2**61 - 1)),  # one and the same Python hash
    st.integers(0, 62).map(lambda k: 1 << k),
)
KEYS = {
    "str": TEXTS,
    "bytes": BYTES,
    "int": INTS,
    "(str, int)": st.tuples(TEXTS, INTS),
    "(int, str, bytes)": st.tuples(INTS, TEXTS, BYTES),
    "(str,)": st.tuples(TEXTS),
}
KEY_SETS = st.sampled_from(sorted(KEYS)).flatmap(
    lambda kind: st.tuples(st.lists(KEYS[kind], unique=True, max_size=80), st.lists(KEYS[kind], max_size=80))
)


def table_of(keys: list[Any]) -> SnapshotTable:
    """A table in which row i is the key number i."""
    return Snapshot.from_rows({key: {"row": i} for i, key in enumerate(keys)}).table


def str_table(keys: list[str], **options: Any) -> SnapshotTable:
    """A table of text keys and nothing else, through the native constructor."""
    data = [key.encode() for key in keys]
    ends = np.cumsum([0, *map(len, data)]).astype(np.int64)
    return SnapshotTable("item", "str", (np.frombuffer(b"".join(data), np.uint8), ends), [], **options)


@given(keys=KEY_SETS)
@example(keys=(["", "\0", "\0\0", "a\0", "a"], ["", "\0", "a\0\0"]))
@example(keys=([("a", 1), ("a", 2), ("ab", 1)], [("a", 3), ("", 1)]))
@example(keys=(["a" * 15, "a" * 16, "a" * 63, "a" * 64, "a" * 65], ["a" * 14, "a" * 66]))
def test_index_finds_what_a_dict_finds(keys: tuple[list[Any], list[Any]]):
    """Present keys give their row, absent ones -1, one by one and all together."""
    present, others = keys
    table = table_of(present)
    oracle = {key: row for row, key in enumerate(present)}
    if not present:
        others = [key for key in others if isinstance(key, str)]  # an empty table has keys of text
    asked = present + others
    assert [table.row_of(key) for key in asked] == [oracle.get(key, -1) for key in asked]
    assert table.rows_of(asked).tolist() == [oracle.get(key, -1) for key in asked]
    assert [table.key_at(row) for row in range(len(table))] == present
    assert all((key in table) == (key in oracle) for key in asked)


@given(n=st.integers(0, 200), start=st.integers(0, 10**6))
def test_bulk_lookup_equals_single_lookups_at_every_count(n: int, start: int):
    """No number of keys around the pipeline's chunks is special; absent keys in between do not shift the others."""
    table = str_table([f"sku-{start + 2 * i}" for i in range(100)])
    keys = [f"sku-{start + i}" for i in range(n)]
    assert table.rows_of(keys).tolist() == [table.row_of(key) for key in keys]


def test_keys_that_differ_in_one_bit_are_different():
    """Every single-bit neighbour of a key is absent, for short, inline and long keys."""
    for size in (1, 7, 8, 9, 15, 16, 31, 40, 63, 64, 200):
        key = bytes((7 * i + 1) % 251 for i in range(size))
        table = table_of([key, key + b"x"])
        assert table.row_of(key) == 0
        for bit in range(8 * size):
            other = bytearray(key)
            other[bit // 8] ^= 1 << (bit % 8)
            assert table.row_of(bytes(other)) == -1


def test_lookup_accepts_what_is_the_same_key():
    """Subclasses of str and NumPy integers are the key that they equal; another kind never is."""

    class Channel(enum.StrEnum):
        WEB = "web"

    assert table_of(["web"]).row_of(Channel.WEB) == 0
    assert table_of(["web"]).rows_of([np.str_("web"), Channel.WEB]).tolist() == [0, 0]
    table = table_of([7, -1])
    assert [table.row_of(np.int32(7)), table.row_of(np.uint8(7)), table.row_of(np.int64(-1))] == [0, 0, 1]
    assert table.rows_of([np.int64(7), 7, -1]).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("present", "wrong"),
    [
        ("a", [b"a", 1, None, True, 1.0, ("a",), object()]),
        (1, ["1", True, np.True_, 1.0, None, np.float64(1), (1,)]),
        (b"a", ["a", bytearray(b"a"), memoryview(b"a"), 97, None]),
        (("a", 1), ["a", ("a",), ("a", 1, 2), ("a", "1"), ["a", 1], ("a", True), (b"a", 1), (1, "a"), None]),
    ],
)
def test_key_of_another_kind_is_an_error_with_its_place(present: Any, wrong: list[Any]):
    """1, True, 1.0 and '1' are one dict key or none; here they are errors that say which candidate it was."""
    table = table_of([present])
    for key in wrong:
        with pytest.raises(FeatureTypeError, match="Expected a key of kind"):
            table.row_of(key)
        with pytest.raises(FeatureTypeError) as raised:
            table.rows_of([present, present, key])
        assert raised.value.path == "$.candidates[2]"


def test_keys_without_a_canonical_form_are_range_errors():
    """Lone surrogates and integers beyond 64 bits are refused where they stand."""
    for table, key in ((table_of(["a"]), "\ud800"), (table_of([1]), 2**63), (table_of([1]), -(10**400))):
        with pytest.raises(FeatureRangeError):
            table.row_of(key)
        with pytest.raises(FeatureRangeError) as raised:
            table.rows_of([key])
        assert raised.value.path == "$.candidates[0]"


def test_lookup_runs_no_code_of_the_key():
    """`__hash__`, `__eq__` and `__index__` of a caller's subclass are never called."""

    class Hostile(str):
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise AssertionError("called")

    class HostileInt(int):
        def __index__(self) -> int:
            raise AssertionError("called")

        __int__ = __index__

    assert table_of(["a"]).rows_of([Hostile("a")]).tolist() == [0]
    assert table_of([5]).rows_of([HostileInt(5)]).tolist() == [0]


def test_key_that_changes_the_list_while_it_is_read_is_survived():
    """A NumPy integer of somebody's own may run code; what it does to the list is an error, not a wild read."""
    keys: list[Any] = []

    class Clearing(np.int64):
        def __int__(self) -> int:
            keys.clear()
            return 1

    for table, hostile in ((table_of([1]), Clearing(1)), (table_of([(1, "a")]), (Clearing(1), "a"))):
        keys[:] = [hostile] * 100
        with pytest.raises(FeatureTypeError, match="while reading"):
            table.rows_of(keys)


def test_megabyte_key_is_absent_without_being_hashed_in_vain():
    """A key longer than any in the table is absent; a table takes no key beyond 64 KiB."""
    table = table_of(["a", "b" * 65_536])
    assert table.row_of("c" * 1_000_000) == -1
    assert table.row_of("b" * 65_536) == 1
    with pytest.raises(FeatureRangeError, match="at most 65536 bytes"):
        table_of(["b" * 65_537])


def test_duplicate_keys_are_refused_by_name():
    """The error says which key, and both rows."""
    with pytest.raises(FeatureRangeError, match=r"'sku-3'.*rows 3 and 50"):
        str_table([*(f"sku-{i}" for i in range(50)), "sku-3"])
    data, ends = compose_keys([np.array([1, 2, 1]), np.array([5, 5, 5])], 3)
    with pytest.raises(FeatureRangeError, match=r"\(1, 5\).*rows 0 and 2"):
        SnapshotTable("x", ("int", "int"), (data, ends), [])


def crafted_keys(n: int, bits: int) -> list[str]:
    """Keys that share the low bits of their hash under (0, 0): what a client could make if the hash key were known."""
    keys, i = [], 0
    while len(keys) < n:
        key = f"crafted-key-{i:010d}"  # longer than 15 bytes: those go through SipHash
        if siphash13(key.encode(), 0, 0) % 2**bits == 0:
            keys.append(key)
        i += 1
    return keys


def test_keys_crafted_against_a_known_hash_key_are_spread_by_the_random_one():
    """400 keys that pile up under a known key take a handful of probes in a table of anybody."""
    keys = crafted_keys(400, 10)
    piled = str_table(keys, hash_key=(0, 0)).max_probe
    spread = [str_table(keys).max_probe for _ in range(5)]
    assert piled > 300  # the keys are hostile indeed
    assert max(spread) < 40
    assert (
        len({table.max_probe for table in (str_table(keys) for _ in range(8))}) > 1
    )  # another key every time


def test_index_that_cannot_be_spread_is_refused():
    """A build gives up after a bounded number of probes and tries; only a fixed hash key can get there."""
    keys = crafted_keys(520, 11)
    with pytest.raises(LimitError, match="collide"):
        str_table(keys, hash_key=(0, 0))
    table = str_table(keys)
    assert table.rows_of(keys).tolist() == list(range(520))


def test_key_of_several_long_parts_is_found():
    """Parts beyond the scratch memory of a look-up, and beyond every key of the table."""
    table = table_of([("a" * 1000, 7, b"b" * 3000), ("a", 7, b"b")])
    assert table.rows_of(
        [("a" * 1000, 7, b"b" * 3000), ("a", 7, b"b"), ("a" * 1001, 7, b"b" * 2999)]
    ).tolist() == [0, 1, -1]
    assert table.row_of(("a" * 100_000, 7, b"")) == -1


def test_integers_that_share_their_low_bits_take_no_longer():
    """Multiples of 2**61 - 1 have one hash in CPython, multiples of 2**32 one low half: neither piles up here."""
    keys = [k * (2**61 - 1) for k in range(-4, 4)] + [k << 32 for k in range(4_000)]
    assert table_of(keys).max_probe < 40


def test_index_of_many_rows_stays_flat():
    """200,000 UUIDs: all found, none else, short probes, bounded memory."""
    keys = [str(uuid.UUID(int=i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128)) for i in range(200_000)]
    table = str_table(keys)
    rows = table.rows_of(keys)
    assert np.array_equal(rows, np.arange(len(keys)))
    assert (table.rows_of([key[::-1] + "x" for key in keys[:1000]]) == -1).all()
    assert table.max_probe < 100
    assert table.nbytes < 100 * len(keys)


def test_broken_buffers_are_refused():
    """Offsets that descend or lead outside are errors, not reads."""
    data = np.zeros(4, np.uint8)
    for ends in ([0, 5], [0, 3, 2], [-1, 2], [0, 2**40]):
        with pytest.raises(ShapeError):
            SnapshotTable("x", "str", (data, np.array(ends, np.int64)), [])
    for kind in ("float", ("str", "float"), (), ("str",) * 9, None, "vec"):
        with pytest.raises(ConfigError):
            SnapshotTable("x", kind, (data, np.array([0, 4], np.int64)), [])


def test_table_is_built_once():
    """A second `__init__` would pull memory from under readers; it is refused."""
    table = table_of(["a"])
    with pytest.raises(ConfigError):
        table.__init__("x", "str", (np.zeros(0, np.uint8), np.zeros(1, np.int64)), [])  # type: ignore[misc]
    assert table.row_of("a") == 0


@given(parts=st.lists(st.tuples(TEXTS, INTS, BYTES), max_size=30))
def test_composed_keys_have_the_documented_form(parts: list[tuple[str, int, bytes]]):
    """Size as uint32, then the part; integers as 8 bytes: the form that the engine writes on its own."""

    def flat(values: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        return np.frombuffer(b"".join(values), np.uint8), np.cumsum([0, *map(len, values)]).astype(np.int64)

    columns = [
        flat([text.encode() for text, _, _ in parts]),
        np.array([number for _, number, _ in parts], np.int64),
        flat([data for _, _, data in parts]),
    ]
    data, ends = compose_keys(columns, len(parts))
    for i, (text, number, raw) in enumerate(parts):
        encoded = [text.encode(), number.to_bytes(8, "little", signed=True), raw]
        expected = b"".join(len(part).to_bytes(4, "little") + part for part in encoded)
        assert data[ends[i] : ends[i + 1]].tobytes() == expected


def test_errors_leave_nothing_behind():
    """After a refused bulk look-up the table answers as before."""
    table = table_of(["a", "b"])
    for _ in range(1000):
        with pytest.raises(FeatureError):
            table.rows_of(["a", 1])
    assert table.rows_of(["b", "a"]).tolist() == [1, 0]
