"""ReadThrough over sources that return rubbish: nothing gets out, nothing wrong gets in, the good rows beside it are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows_for_tests import WAIT_S, Counting, Says, Table

from retailinfer.store.plain import MAX_TEXT, MAX_VECTOR, Rubbish, plain_row
from retailinfer.store.readthrough import ReadThrough


def bound(source: Any, **settings: Any) -> tuple[Table, ReadThrough]:
    """A table that reads through to this source."""
    table = Table()
    table.through = ReadThrough(source, table, columns=table.columns, **settings)
    return table, table.through


class Evil:
    """Every way to look at it raises."""

    def __getattribute__(self, name: str) -> Any:
        raise ZeroDivisionError(name)

    def __repr__(self) -> str:
        raise ZeroDivisionError


class EvilNumber(float):
    """A number whose arithmetic, text and comparison are not to be trusted."""

    def __float__(self) -> float:
        raise AssertionError("foreign code ran")

    __mul__ = __rmul__ = __index__ = __repr__ = __eq__ = __hash__ = __float__  # type: ignore[assignment]


class EvilText(str):
    """A text that runs code when it is looked at."""

    __slots__ = ()

    def encode(self, *args: Any) -> bytes:
        raise AssertionError("foreign code ran")

    __str__ = __repr__ = __len__ = encode  # type: ignore[assignment]


class Liar:
    """Says that it is a number."""

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return float


class EvilMapping(Mapping[Any, Any]):
    """A mapping without end, of which no part can be read."""

    def __getitem__(self, key: Any) -> Any:
        raise RuntimeError("no")

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield object()

    def __len__(self) -> int:
        raise OverflowError


class Endless(EvilMapping):
    """A mapping that has every key, in which the right answers can be found."""

    def __getitem__(self, key: Any) -> Any:
        return {"x": 1.0}


ANSWERS = {
    "None": None, "list": [], "number": 7, "text": "rows", "bytes": b"", "object": object(), "evil": Evil(),
    "pairs": [("a", {"x": 1})], "iterator": iter({}), "items": {"a": 1}.items(), "class": dict, "ellipsis": Ellipsis,
}  # fmt: skip


@pytest.mark.parametrize("name", list(ANSWERS))
def test_answer_that_is_no_mapping_is_a_failure(name: str):
    """It is counted like an exception, and nothing is put into the table."""
    table, through = bound(Says(lambda keys: ANSWERS[name]))
    assert through.fetch(["a"], WAIT_S) == set()
    assert (table.rows, table.unknown) == ({}, set())
    stats = through.stats()
    assert (stats.failed_calls, stats.in_flight) == (1, 0)
    for _ in range(3):
        through.fetch(["a"], WAIT_S)
    assert not through.stats().healthy


@pytest.mark.parametrize(
    "exc",
    [
        SystemExit(1),
        KeyboardInterrupt(),
        GeneratorExit(),
        MemoryError(),
        RecursionError(),
        StopIteration(),
        Exception(),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_whatever_a_source_raises_stays_inside(exc: BaseException):
    """Also what is not meant to be caught: it was raised on a thread of ours. The next call finds a thread."""

    def answer(keys: list[Any]) -> Any:
        if keys == ["bad"]:
            raise exc
        return {key: {"x": 1} for key in keys}

    table, through = bound(Says(answer))
    assert through.fetch(["bad"], WAIT_S) == set()
    assert through.stats().last_error == type(exc).__name__
    through.fetch(["good"], WAIT_S)
    assert set(table.rows) == {"good"}


ROWS = {
    "no mapping": [1, 2],
    "a text": "x=1",
    "an exception": ValueError("this key"),
    "evil": Evil(),
    "evil mapping": EvilMapping(),
    "no such column": {"y": 1.0},
    "empty": {},
    "text for a number": {"x": "1.0"},
    "evil text": {"x": EvilText("a")},
    "a list": {"x": [1.0]},
    "a dict": {"x": {"x": 1.0}},
    "an object": {"x": object()},
    "evil object": {"x": Evil()},
    "a liar": {"x": Liar()},
    "a function": {"x": len},
    "complex": {"x": 1j},
    "NumPy object": {"x": np.array([None], object)[0:1]},
    "matrix": {"x": np.zeros((2, 2))},
    "date": {"x": date(2026, 1, 1)},
    "huge text": {"x": "a" * (MAX_TEXT + 1)},
    "huge bytes": {"x": bytearray(MAX_TEXT + 1)},
    "huge list": {"x": [0.0] * (MAX_VECTOR + 1)},
    "list of texts": {"x": ["a"]},
    "duration": {"x": timedelta(1)},
    "set": {"x": {1}},
}


@pytest.mark.parametrize("name", list(ROWS))
def test_row_of_rubbish_is_refused_and_its_neighbours_are_used(name: str):
    """One key gets nothing, neither a row nor `unknown`; the others get theirs; the source counts as well."""
    table, through = bound(Counting({"bad": ROWS[name], "good": {"x": 1.0}}))
    for _ in range(5):
        assert through.fetch(["good", "bad", "nobody"], WAIT_S) <= {"nobody"}
    assert (table.rows, table.unknown) == ({"good": {"x": 1.0}}, {"nobody"})
    stats = through.stats()
    assert (stats.rubbish, stats.failed_calls, stats.healthy) == (5, 0, True)
    assert stats.last_error
    assert "this key" not in stats.last_error


def test_mapping_that_has_every_key_is_only_asked_for_ours():
    """Keys that were never asked for are not looked at, however many there are."""
    table, through = bound(Says(lambda keys: Endless()))
    through.fetch(["a", "b"], WAIT_S)
    assert set(table.rows) == {"a", "b"}
    _, through = bound(Says(lambda keys: EvilMapping()))
    through.fetch(["a", "b"], WAIT_S)
    assert through.stats().rubbish == 2


def test_nothing_of_the_source_runs_under_the_lock_or_stays_in_the_table():
    """Values arrive as exact builtin types, whatever their classes define."""
    table, through = bound(Counting({"n": {"x": EvilNumber(2.5)}}))
    through.fetch(["n"], WAIT_S)
    assert type(table.rows["n"]["x"]) is float
    assert table.rows["n"]["x"] == 2.5


def test_table_that_refuses_a_row_is_not_the_sources_failure():
    """What the table raises is counted as rubbish, also when it has no sense."""

    class Full(Table):
        def put(self, key: Any, row: Mapping[str, Any], *, updated_at: float | None = None) -> None:
            raise MemoryError

    table = Full()
    through = table.through = ReadThrough(Counting(), table, columns=["x"])
    for i in range(5):
        assert through.fetch([i], WAIT_S) == set()
    assert (through.stats().rubbish, through.stats().healthy, through.stats().in_flight) == (5, True, 0)


class Colour(str):
    """A text of another class, as enums have."""

    __slots__ = ()


class Count(int):
    """An integer of another class."""


class Moment(datetime):
    """A moment of another class, as pandas has."""


AT = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (None, None),
        (msgspec.UNSET, None),
        (True, True),
        (10**400, 10**400),
        (Decimal("1.10"), Decimal("1.10")),
        (np.float32(1.5), 1.5),
        (np.int64(-3), -3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (Colour("red"), "red"),
        (Count(3), 3),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        (np.bytes_(b"ab"), b"ab"),
        ((1, 2.5), [1, 2.5]),
        ([np.float32(0.5), True], [0.5, True]),
        (AT, AT),
        (Moment(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)),
    ],
)
def test_values_that_have_a_plain_form(value: Any, want: Any):
    """Subclasses become their base, NumPy's scalars what Python has, moments UTC."""
    row = plain_row({"x": value, "y": object()}, ["x"])
    assert row == {"x": want}
    assert type(row["x"]) is type(want)


@pytest.mark.parametrize("value", [-0.0, float("nan"), float("inf"), 5e-324])
def test_numbers_keep_their_bits(value: float):
    """-0.0 stays what it is, also in another class."""
    for given_ in (value, np.float64(value), EvilNumber(value)):
        got = plain_row({"x": given_}, ["x"])["x"]
        assert type(got) is float
        assert np.float64(got).view(np.uint64) == np.float64(value).view(np.uint64)


def test_arrays_are_copied():
    """A source may go on using its buffer."""
    buffer = np.arange(4, dtype=np.float32)
    row = plain_row({"x": buffer[::2]}, ["x"])
    buffer[:] = -1
    assert row["x"].tolist() == [0.0, 2.0]
    assert type(row["x"]) is np.ndarray


def test_not_a_time_is_null():
    """pandas' NaT is a datetime that is not equal to itself."""

    class NotATime(datetime):
        def __eq__(self, other: object) -> bool:
            return False

        __hash__ = None  # type: ignore[assignment]

        def __ne__(self, other: object) -> bool:
            return True

    assert plain_row({"x": NotATime(1, 1, 1)}, ["x"]) == {"x": None}


_any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5) | st.decimals()
    | st.datetimes() | st.just(Ellipsis) | st.complex_numbers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3) | st.tuples(inner),
    max_leaves=6,
)  # fmt: skip


_rows = st.none() | _any | st.fixed_dictionaries({"x": _any})


@given(answer=_any | st.dictionaries(st.sampled_from(["a", "b", "c"]), _rows))
def test_any_answer_leaves_every_key_with_a_number_unknown_or_nothing(answer: Any):
    """Whatever comes, a wait ends, no error gets out, and the table holds numbers, null or nothing."""
    source = Says(lambda keys: answer)
    source.waits = False
    table, through = bound(source)
    unknown = through.fetch(["a", "b"], 0.0)
    assert through.stats().in_flight == 0
    for key in ("a", "b"):
        found = isinstance(answer, dict) and answer.get(key) is not None
        assert (key in unknown) == (isinstance(answer, dict) and not found)
        if key in table.rows:
            assert found
            assert type(table.rows[key]["x"]) in {int, float, bool, type(None)}


def test_refusal_names_the_column_and_no_value():
    """The message may be shown to anybody."""
    with pytest.raises(Rubbish) as caught:
        plain_row({"card": {"secret": "4111"}}, ["card"])
    assert str(caught.value) == "column `card` of type `dict`"
