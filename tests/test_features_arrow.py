"""The same logical value through Arrow, polars, pandas and a request gives the same bits, or a typed error with a hint.

Requests are tests/test_features_values.py; what is computed from the values is tests/test_reference_table.py.
"""

from __future__ import annotations

import datetime as dt
import decimal
import io
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bare import BarePipeline
from hypothesis import given
from strategies import Case, as_request, cases, same_bits

from retailinfer import columns as c
from retailinfer._native import reference
from retailinfer.errors import (
    FeatureError,
    FeatureMissingError,
    FeatureRangeError,
    FeatureTypeError,
    SpecError,
)
from retailinfer.features.arrow import as_table, read_table
from retailinfer.features.program import slot_types
from retailinfer.features.spec import FeatureSpec, Tensor, Timestamp

TYPES: dict[str, Any] = {
    "float": float,
    "int": int,
    "bool": bool,
    "str": str,
    "bytes": bytes,
    "timestamp": Timestamp,
    "list[float]": list[float],
    "list[int]": list[int],
    "list[str]": list[str],
}
DAY = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
DAY_NS = 1_704_067_200 * 10**9


def spec_of(kind: str) -> FeatureSpec:
    """A spec that shows the canonical value of its one field `x`, null as -7 or its like."""
    if kind == "float":
        tensor = Tensor((c.raw("x"),), "float64")
    elif kind == "str":
        tensor = Tensor((c.raw("x", null="(null)"),), "string")
    elif kind == "bytes":
        tensor = Tensor((c.hashed("x", buckets=2**31 - 1),), "int64")
    elif kind == "list[str]":
        tensor = Tensor((c.sequence("x", length=3, encoding="hashed", buckets=2**31 - 1),), "int64")
    elif kind.startswith("list"):
        tensor = Tensor((c.sequence("x", length=3, encoding="number"),), "float64")
    elif kind == "bool":
        tensor = Tensor((c.boolean("x", null=7),), "int64")
    else:
        tensor = Tensor((c.raw("x", null=-7),), "int64")
    return FeatureSpec(request={"x": TYPES[kind] | None}, tensors={"t": tensor})


def cells(kind: str, column: Any) -> list[Any]:
    """What `transform` makes of one Arrow column."""
    return list(np.asarray(spec_of(kind).transform(pa.table({"x": column}))).reshape(len(column), -1)[:, 0])


def request_cell(kind: str, value: Any) -> Any:
    """What a request with this value gives."""
    pipe = BarePipeline(Case(spec_of(kind).body, [], {}, 1, {}))
    pipe.engine.score({"x": value})
    return pipe.last()["t"][0, 0]


PRICE = decimal.Decimal("12.90")
SAME = [
    ("float", pa.array([12.9, None], pa.float64()), 12.9),
    ("float", pa.array([PRICE, None], pa.decimal128(10, 2)), 12.9),
    ("float", pa.array([PRICE, None], pa.decimal256(50, 20)), 12.9),
    ("float", pa.array([decimal.Decimal("0.1"), None], pa.decimal128(38, 37)), 0.1),
    ("float", pa.array([np.float32(12.9), None], pa.float32()), float(np.float32(12.9))),
    ("float", pa.array([np.float16(0.5), None], pa.float16()), 0.5),
    ("float", pa.array([3, None], pa.int8()), 3.0),
    ("float", pa.array([2**53 + 1, None], pa.int64()), float(2**53 + 1)),
    ("float", pa.array([2**64 - 1, None], pa.uint64()), float(2**64 - 1)),
    ("float", pa.array([12.9, None]).dictionary_encode(), 12.9),
    *[
        ("int", pa.array([5, None], t), 5)
        for t in (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint32())
    ],
    ("int", pa.array([2**63 - 1, None], pa.uint64()), 2**63 - 1),
    ("int", pa.array([-(2**63), None], pa.int64()), -(2**63)),
    ("bool", pa.array([True, None]), True),
    *[
        ("str", pa.array(["né\0", None], t), "né\0")
        for t in (pa.string(), pa.large_string(), pa.string_view())
    ],
    ("str", pa.array(["né", None]).dictionary_encode(), "né"),
    ("str", pa.array(["né", None], pa.dictionary(pa.int8(), pa.large_string())), "né"),
    *[
        ("bytes", pa.array([b"\xff\0", None], t), b"\xff\0")
        for t in (pa.binary(), pa.large_binary(), pa.binary(2))
    ],
    *[("timestamp", pa.array([DAY, None], pa.timestamp(u, "UTC")), DAY) for u in ("s", "ms", "us", "ns")],
    ("timestamp", pa.array([DAY, None], pa.timestamp("us", "Asia/Kolkata")), DAY),
    ("timestamp", pa.array([1_704_067_200, None], pa.int32()), 1_704_067_200),
    ("timestamp", pa.array([1_704_067_200.25, None]), 1_704_067_200.25),
    (
        "timestamp",
        pa.array([decimal.Decimal("1704067200.000001"), None]),
        decimal.Decimal("1704067200.000001"),
    ),
    ("list[float]", pa.array([[12.9], None], pa.list_(pa.float64())), [12.9]),
    ("list[float]", pa.array([[PRICE], None], pa.list_(pa.decimal128(10, 2))), [PRICE]),
    ("list[float]", pa.array([[1], None], pa.large_list(pa.int8())), [1]),
    ("list[float]", pa.array([[1.5, 2.0], None], pa.list_(pa.float32(), 2)), [1.5, 2.0]),
    ("list[int]", pa.array([[1, 2], None], pa.list_(pa.uint16())), [1, 2]),
    ("list[str]", pa.array([["né", "b"], None], pa.list_(pa.string())), ["né", "b"]),
    (
        "list[str]",
        pa.array([["né", "b"], None], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        ["né", "b"],
    ),
]


@pytest.mark.parametrize(
    ("kind", "column", "value"), SAME, ids=lambda v: str(getattr(v, "type", ""))[:40] or None
)
def test_arrow_and_request_agree(kind, column, value):
    """A value has the same bits from an Arrow column of any type and from a request; nulls are nulls in both."""
    got = cells(kind, column)
    for cell, same in zip(got, (value, None), strict=True):
        want = request_cell(kind, same)
        assert str(cell) == str(want)
        assert type(cell) is type(want)


WRONG = [
    ("float", pa.array(["1.0"]), FeatureTypeError),
    ("float", pa.array([True]), FeatureTypeError),
    ("float", pa.array([DAY]), FeatureTypeError),
    ("float", pa.array([float("inf")]), FeatureRangeError),
    ("int", pa.array([1.0]), FeatureTypeError),
    ("int", pa.array([1.0, None]), FeatureTypeError),
    ("int", pa.array([PRICE]), FeatureTypeError),
    ("int", pa.array([True]), FeatureTypeError),
    ("int", pa.array(["1"]), FeatureTypeError),
    ("int", pa.array([2**63], pa.uint64()), FeatureRangeError),
    ("bool", pa.array([1]), FeatureTypeError),
    ("str", pa.array([b"a"]), FeatureTypeError),
    ("str", pa.array([1]), FeatureTypeError),
    ("str", pa.array(["x" * 65537]), FeatureRangeError),
    ("str", pa.array([1, 2]).dictionary_encode(), FeatureTypeError),
    ("bytes", pa.array(["a"]), FeatureTypeError),
    ("timestamp", pa.array([dt.datetime(2024, 1, 1)]), FeatureTypeError),  # noqa: DTZ001 - the point
    ("timestamp", pa.array([dt.date(2024, 1, 1)]), FeatureTypeError),
    ("timestamp", pa.array(["2024-01-01T00:00:00Z"]), FeatureTypeError),
    ("timestamp", pa.array([True]), FeatureTypeError),
    ("timestamp", pa.array([1_704_067_200_000]), FeatureRangeError),
    ("timestamp", pa.array([-(2**63)], pa.int64()).cast(pa.timestamp("ns", "UTC")), FeatureRangeError),
    ("timestamp", pa.array([2**62 + 1], pa.int64()).cast(pa.timestamp("ns", "UTC")), FeatureRangeError),
    ("timestamp", pa.array([-(2**63)], pa.int64()).cast(pa.timestamp("s", "UTC")), FeatureRangeError),
    ("timestamp", pa.array([float("inf")]), FeatureRangeError),
    ("list[float]", pa.array([[1.0, None]]), FeatureTypeError),
    ("list[float]", pa.array([[float("nan")]]), FeatureRangeError),
    ("list[float]", pa.array([["a"]]), FeatureTypeError),
    ("list[float]", pa.array([1.0]), FeatureTypeError),
    ("list[int]", pa.array([[1.0]]), FeatureTypeError),
    ("list[str]", pa.array([[1]]), FeatureTypeError),
    ("list[str]", pa.array([["x" * 65537]]), FeatureRangeError),
]


@pytest.mark.parametrize(
    ("kind", "column", "error"), WRONG, ids=lambda v: str(getattr(v, "type", ""))[:40] or None
)
def test_a_column_of_another_type_is_refused_by_name(kind, column, error):
    """What a request may not hold, a table may not either; the error names the column and what came."""
    with pytest.raises(error, match="Expected") as caught:
        cells(kind, column)
    assert type(caught.value) is error
    assert caught.value.path.endswith(".x")


def test_vectors_are_whole_finite_and_of_one_size():
    """A vector column is float32 lists of one length; holes, infinities and ragged rows are refused."""
    spec = FeatureSpec(
        request={"u": str}, entities={"user": "u"}, columns=[c.embedding("user.v", size=2, null=0.0)]
    )

    def vectors(column: pa.Array) -> list[list[float]]:
        made = spec.transform(pa.table({"u": ["a"] * len(column), "user.v": column}))
        return np.asarray(made).tolist()

    for kind in (pa.list_(pa.float64()), pa.list_(pa.float32(), 2), pa.large_list(pa.int16())):
        assert vectors(pa.array([[1, 2], None], kind)) == [[1.0, 2.0], [0.0, 0.0]]
    for bad in ([1.0, None], [1.0, float("nan")], [1.0, 1e39], [1.0, float("inf")]):
        with pytest.raises(FeatureRangeError, match="finite"):
            vectors(pa.array([[1.0, 2.0], bad], pa.list_(pa.float64())))
    with pytest.raises(FeatureTypeError, match="one size"):
        vectors(pa.array([[1.0, 2.0], [1.0]]))
    with pytest.raises(FeatureRangeError, match="vector of 2"):
        vectors(pa.array([[1.0, 2.0, 3.0]]))
    with pytest.raises(FeatureTypeError, match="Expected a column of `vector`"):
        vectors(pa.array([1.0]))


def test_nanoseconds_are_rounded_as_in_requests():
    """Half up to microseconds, before 1970 too."""
    ns = np.array([0, 499, 500, 1499, 1500, -1, -500, -501, -1500], np.int64)
    column = pa.array(ns).cast(pa.timestamp("ns", "UTC"))
    assert cells("timestamp", column) == [0, 0, 1000, 1000, 2000, 0, 0, -1000, -1000]
    pandas = pytest.importorskip("pandas", reason="`pandas` is not installed (pip install retailinfer[test])")
    for value, cell in zip(ns, cells("timestamp", column), strict=True):
        assert request_cell("timestamp", pandas.Timestamp(int(value), unit="ns", tz="UTC")) == cell


def test_a_required_field_names_the_row_that_lacks_it():
    """Null and NaN in a required column are the same error, with the row."""
    spec = FeatureSpec(request={"x": float, "s": str}, columns=[c.numeric("x"), c.hashed("s", buckets=3)])
    for hole in (None, float("nan")):
        table = pa.table({"x": [1.0, 2.0, hole], "s": ["a", "b", "c"]})
        with pytest.raises(FeatureMissingError, match="required") as caught:
            spec.transform(table)
        assert caught.value.path == "$[2].x"
    with pytest.raises(FeatureMissingError) as caught:
        spec.transform(pa.table({"x": [1.0, 2.0], "s": [None, "a"]}))
    assert caught.value.path == "$[0].s"
    with pytest.raises(SpecError, match="lacks the column `s`"):
        spec.transform(pa.table({"x": [1.0]}))


def test_what_is_no_table_is_refused():
    """Lists, dicts and arrays have no Arrow interface; the error says what has."""
    for thing in ([1, 2], {"x": [1.0]}, np.zeros(3), None, "table.parquet"):
        with pytest.raises(FeatureTypeError, match="polars, pandas"):
            as_table(thing)


# ---- whole cases through Arrow ---------------------------------------------------------------------------------------

ARROW = {
    "float": pa.float64(),
    "int": pa.int64(),
    "bool": pa.bool_(),
    "str": pa.string(),
    "bytes": pa.binary(),
    "timestamp": pa.timestamp("us", "UTC"),
    "vector": pa.list_(pa.float32()),
    "list[float]": pa.list_(pa.float64()),
    "list[int]": pa.list_(pa.int64()),
    "list[str]": pa.list_(pa.string()),
}


def arrow_table(case: Case) -> pa.Table:
    """A case's rows with their stored values as a pyarrow table."""
    rows = case.joined()
    types = slot_types(case.body)
    made = {}
    for ref, kind in types.items():
        values = [row.get(ref) for row in rows]
        if kind == "timestamp":
            values = [None if v is None else v // 1000 for v in values]
            made[ref] = pa.array(values, pa.int64()).cast(ARROW[kind])
        else:
            values = [v.tolist() if isinstance(v, np.ndarray) else v for v in values]
            made[ref] = pa.array(values, ARROW[kind])
    return pa.table(made) if made else pa.table({"none": [0] * len(rows)})


def sliced(table: pa.Table) -> pa.Table:
    """The same rows as chunks with offsets: rows around them, buffers that start elsewhere."""
    twice = pa.concat_tables([table, table])
    n = table.num_rows
    return pa.concat_tables([twice.slice(n, n // 2), table.slice(n // 2, n - n // 2)])


def through_parquet(table: pa.Table) -> pa.Table:
    """The same table after a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return pq.read_table(io.BytesIO(buffer.getvalue()))


@given(case=cases(windows=True))
def test_tables_of_every_maker_have_the_same_canonical_columns(case):
    """pyarrow (whole, sliced, as a stream), Parquet and polars: one canonical form, that of plain Python values."""
    polars = pytest.importorskip("polars", reason="`polars` is not installed (pip install retailinfer[test])")
    table = arrow_table(case)
    want = reference.columns_of(case.body, case.joined())
    forms = {
        "pyarrow": table,
        "sliced": sliced(table),
        "stream": table.to_reader(),
        "parquet": through_parquet(table),
        "polars": polars.from_arrow(table),
    }
    for form, data in forms.items():
        got = read_table(data, case.body)
        assert got.n_rows == len(case.rows)
        for ref, column in want.items():
            assert plain(got.by_name[ref]) == plain(column), f"{form}: {ref}"


def plain(column: Any) -> list[bytes | None]:
    """Rows of a canonical column as bytes, None where null: what any two layouts of the same column share."""
    values, valid, offsets, children = column
    n = len(offsets) - 1 if offsets is not None else len(values)
    out: list[bytes | None] = []
    for i in range(n):
        if (valid is not None and not valid[i]) or (
            values.dtype == np.float64 and offsets is None and np.isnan(values[i])
        ):
            out.append(None)
        elif offsets is None:
            out.append(values[i].tobytes())
        elif children is None:
            out.append(values[offsets[i] : offsets[i + 1]].tobytes())
        else:
            items = [
                values[children[j] : children[j + 1]].tobytes() for j in range(offsets[i], offsets[i + 1])
            ]
            out.append(msgspec.msgpack.encode(items))
    return out


@given(case=cases(stored=False))
def test_a_row_of_a_table_gives_the_bits_of_its_request(case):
    """`transform` of a table and the scores of its rows as requests fill the same cells: no skew between the two."""
    pipe = BarePipeline(case)
    table = arrow_table(case)
    for i, row in enumerate(case.rows):
        try:
            pipe.engine.score(as_request(case.body, row), None, case.now_ns)
        except FeatureError as exc:
            with pytest.raises(type(exc)):
                case.spec.transform(table.slice(i, 1))
            continue
        made = case.spec.transform(table.slice(i, 1))
        made = made if isinstance(made, dict) else {pipe.names[0]: made}
        for name, array in pipe.last().items():
            assert same_bits(np.asarray(made[name]), array), name


def test_pandas_frames_are_tables():
    """pandas columns of every useful dtype, with gaps, give what pyarrow columns give."""
    pandas = pytest.importorskip("pandas", reason="`pandas` is not installed (pip install retailinfer[test])")
    frame = pandas.DataFrame(
        {
            "f": [1.5, None],
            "i": pandas.array([2**60 + 1, None], dtype="Int64"),
            "b": pandas.array([True, None], dtype="boolean"),
            "s": ["né", None],
            "k": pandas.Categorical(["a", None]),
            "t": pandas.to_datetime(["2024-01-01T00:00:00.000001Z", None], utc=True, format="ISO8601"),
            "l": [["a", "b"], None],
        }
    )
    request = {"f": float, "i": int, "b": bool, "s": str, "k": str, "t": Timestamp, "l": list[str]}
    body = FeatureSpec(
        request={name: kind | None for name, kind in request.items()}, columns=[c.numeric("f")]
    ).body
    rows = [
        {"f": 1.5, "i": 2**60 + 1, "b": True, "s": "né", "k": "a", "t": DAY_NS + 1000, "l": ["a", "b"]},
        {},
    ]
    got = read_table(frame, body)
    for name, column in reference.columns_of(body, rows).items():
        assert plain(got.by_name[name]) == plain(column), name


def test_integers_with_gaps_in_pandas_are_refused_with_a_hint():
    """pandas makes floats of integers with gaps; ids must not pass through float64 unseen."""
    pandas = pytest.importorskip("pandas", reason="`pandas` is not installed (pip install retailinfer[test])")
    body = spec_of("int").body
    with pytest.raises(FeatureTypeError, match="Int64"):
        read_table(pandas.DataFrame({"x": [1, None]}), body)


def test_fit_warns_of_a_source_that_is_narrower_than_requests():
    """A float32 column differs from a JSON number in the last bits, and `fit` says so."""
    spec = FeatureSpec(request={"x": float}, columns=[c.numeric("x", center="mean")])
    with pytest.warns(UserWarning, match="requests bring float64"):
        spec.fit(pa.table({"x": pa.array([1.0, 2.0], pa.float32())}))
