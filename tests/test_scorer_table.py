"""score_table: the bits and actions of `score`, row by row, whatever the slices; errors name the row of the table."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import releases
from releases import payment

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.errors import CallerError, FeatureError, FeatureMissingError, FeatureRangeError, ScoreError
from retailinfer.serving.tables import TABLE_ROWS
from retailinfer.store.windows import Windows

pa = pytest.importorskip("pyarrow")

SCHEMA = pa.schema(
    [
        ("amount", pa.float64()),
        ("rate", pa.float64()),
        ("count", pa.int64()),
        ("level", pa.int64()),
        ("channel", pa.string()),
        ("note", pa.string()),
        ("known", pa.bool_()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("tags", pa.list_(pa.string())),
        ("sizes", pa.list_(pa.float64())),
        ("codes", pa.list_(pa.int64())),
    ]
)


def many(n):
    """Different payments, nulls among them."""
    rng = np.random.default_rng(n)
    return [
        payment(
            amount=float(rng.normal() * 1000),
            rate=None if i % 5 == 0 else float(rng.random()),
            count=int(rng.integers(0, 1000)),
            level=None if i % 7 == 0 else i,
            channel=["web", "app", "", "日本"][i % 4],
            note=None if i % 3 == 0 else f"n{i}",
            known=bool(i % 2),
            at=releases.AT,
            tags=None if i % 11 == 0 else ["x"] * (i % 5),
            sizes=None if i % 13 == 0 else [float(i)] * (i % 4),
            codes=[i, -i],
        )
        for i in range(n)
    ]


def as_table(rows):
    """Rows as Arrow."""
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@pytest.fixture(scope="module")
def scorer():
    """A scorer of payments."""
    return releases.payment_scorer()


@pytest.mark.parametrize("n", [0, 1, 2, 511, 512, 513, 1500])
def test_a_table_gives_the_bits_of_single_scores(scorer, n):
    """Also around the sizes of a tile; with the same actions."""
    rows = many(n)
    out = scorer.score_table(as_table(rows))
    alone = [scorer.score(row) for row in rows]
    assert out.column_names == ["score", "action"]
    assert out.schema.types == [pa.float32(), pa.string()]
    assert out["score"].to_numpy().tobytes() == np.array([d.score for d in alone], np.float32).tobytes()
    assert out["action"].to_pylist() == [d.action for d in alone]


def test_slices_and_sources_do_not_matter(scorer):
    """A reader of batches, uneven chunks, a table cut from the middle: the same rows, the same answers."""
    rows = many(900)
    whole = as_table(rows)
    want = scorer.score_table(whole)
    chunked = pa.concat_tables([whole.slice(0, 1), whole.slice(1, 0), whole.slice(1, 500), whole.slice(501)])
    assert scorer.score_table(chunked).equals(want)
    reader = pa.RecordBatchReader.from_batches(SCHEMA, whole.to_batches(max_chunksize=77))
    assert scorer.score_table(reader).equals(want)
    assert scorer.score_table(whole.slice(300, 400)).equals(want.slice(300, 400))
    assert scorer.score_table(whole.to_batches()[0]).equals(want)


def test_the_limit_of_rows_is_for_requests_and_not_for_tables():
    """A table streams through; memory is bounded by the slice."""
    scorer = releases.payment_scorer(max_rows=256)
    assert scorer.score_table(as_table(many(700))).num_rows == 700


@pytest.mark.parametrize("row", [0, 511, 512, TABLE_ROWS, TABLE_ROWS + 1])
def test_an_error_names_the_row_of_the_whole_table(row):
    """Not of the slice, nor of the tile."""
    scorer = releases.scorer_of(releases.value_files())
    values = np.ones(TABLE_ROWS + 10)
    values[row] = 1e39
    with pytest.raises(FeatureRangeError, match=rf"\$\[{row}\]\.value"):
        scorer.score_table(pa.table({"value": values}))
    values[row] = np.nan
    with pytest.raises(FeatureError, match=rf"\$\[{row}\]\.value"):
        scorer.score_table(pa.table({"value": values}))
    values[row] = np.inf
    with pytest.raises(FeatureError, match=rf"\$\[{row}\]\.value"):
        scorer.score_table(pa.table({"value": values}))


@pytest.mark.parametrize("row", [0, 700, TABLE_ROWS + 1])
def test_a_score_that_is_none_names_the_row_of_the_whole_table(row):
    """log(-1) is NaN."""
    spec = ri.FeatureSpec(request={"x": float}, columns=[c.numeric("x")])
    golden = pa.table({"x": np.linspace(1.0, 9.0, 9)})
    scorer = releases.scorer_of(
        releases.packed("log", releases.weighted(1.0, then=("Log",)), spec, golden=golden)
    )
    values = np.ones(TABLE_ROWS + 10)
    values[row] = -1.0
    with pytest.raises(ScoreError, match=rf"\$\[{row}\]"):
        scorer.score_table(pa.table({"x": values}))


# ---- stored columns ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored():
    """Score = amount + the card's mean; unknown cards count 100, missing means are reviewed."""
    spec = ri.FeatureSpec(
        request={"card": str, "amount": float},
        entities={"card": "card"},
        columns=[c.numeric("amount"), c.stored("card.mean", unknown=100.0, null=7.0)],
    )
    files = releases.packed(
        "stored", releases.weighted(1.0, 1.0), spec, policy=ri.Policy([("a", -1e9), ("b", 50.0)])
    )
    cards = ri.Snapshot.from_rows(
        {f"c{i}": {"mean": None if i == 3 else float(i)} for i in range(9)}, kinds={"mean": "f64"}
    )
    return releases.scorer_of(files, store=ri.Store(tables={"card": cards}))


def test_stored_columns_come_from_the_store_where_the_table_lacks_them(stored):
    """As in single scores: unknown and null entities take their defaults."""
    rows = [{"card": f"c{i}", "amount": float(i)} for i in range(12)]
    out = stored.score_table(pa.Table.from_pylist(rows))
    alone = [stored.score(row) for row in rows]
    assert out["score"].to_pylist() == [d.score for d in alone]
    assert out["action"].to_pylist() == [d.action for d in alone]


def test_stored_columns_come_from_the_table_where_it_has_all_of_them(stored):
    """Offline replay of what was stored then."""
    rows = [{"card": f"c{i}", "amount": 1.0, "card.mean": 1000.0 + i} for i in range(5)]
    assert stored.score_table(pa.Table.from_pylist(rows))["score"].to_pylist() == [
        1001.0 + i for i in range(5)
    ]


# ---- windows ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def counting():
    """Score = amount + the payments of the card within the hour, this one included; the number before is read too."""
    spec = ri.FeatureSpec(
        request={"card": str, "amount": float, "at": ri.Timestamp},
        event_time="at",
        entities={"card": "card"},
        streams={"payment": None},
        columns=[c.numeric("amount"), c.window("card", "count", on="payment", over="1h", null=-5.0)],
    )
    files = releases.packed("counting", releases.weighted(1.0, 1.0), spec)
    return releases.scorer_of(files, store=ri.Store(windows=Windows.memory()))


def test_windows_come_from_the_table_where_it_has_them(counting):
    """As they were then, whatever is counted now; a null has the column's outcome."""
    rows = pa.table(
        {
            "card": ["a", "a", "b"],
            "amount": [1.0, 2.0, 3.0],
            "at": [1.7e9, 1.7e9, 1.7e9],
            "card_count_1h": [10.0, None, 30.0],
        }
    )
    assert counting.score_table(rows)["score"].to_pylist() == [11.0, -3.0, 33.0]
    np.testing.assert_array_equal(np.asarray(counting.spec.transform(rows))[:, 1], [10.0, -5.0, 30.0])


def test_windows_come_from_the_store_where_the_table_lacks_them(counting):
    """Each row as it would be scored alone: it counts itself, and no other, because nobody observes it."""
    rows = [{"card": "a", "amount": float(i), "at": 1.7e9 + i} for i in range(3)]
    counting.score(rows[0], observe=True)
    out = counting.score_table(pa.Table.from_pylist(rows))
    assert out["score"].to_pylist() == [2.0, 3.0, 4.0]
    assert out["score"].to_pylist() == [counting.score(row).score for row in rows]


@pytest.mark.parametrize("row", [0, 9_999, 10_001])
def test_an_error_in_a_table_with_stored_columns_names_its_row(stored, row):
    """This way goes through batches of `max_rows`; the number is still that of the table."""
    amounts = np.ones(10_010)
    amounts[row] = 1e39
    table = pa.table({"card": ["c1"] * len(amounts), "amount": amounts})
    with pytest.raises(FeatureRangeError, match=rf"\$\[{row}\]\.amount"):
        stored.score_table(table)
    cards = ["c1"] * len(amounts)
    cards[row] = None
    with pytest.raises(FeatureMissingError, match=rf"\$\[{row}\]\.card"):
        stored.score_table(pa.table({"card": cards, "amount": np.ones(len(amounts))}))


# ---- what is no such table --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "table",
    [
        None,
        5,
        "x",
        b"x",
        [],
        {},
        [payment()],
        {"amount": [1.0]},
        np.zeros((2, 2)),
        object(),
        pa.array([1.0]),
        pa.chunked_array([[1.0]]),
    ],
)
def test_what_is_no_table_is_a_typed_error(scorer, table):
    """Anything with the Arrow stream interface, and nothing else."""
    with pytest.raises(CallerError):
        scorer.score_table(table)


def test_a_missing_column_is_a_typed_error_that_names_it(scorer):
    """Optional ones are null."""
    table = as_table(many(3))
    with pytest.raises(CallerError, match="amount"):
        scorer.score_table(table.drop_columns("amount"))
    rows = [row | {"note": None} for row in many(3)]
    assert scorer.score_table(table.drop_columns("note"))["score"].to_pylist() == [
        scorer.score(r).score for r in rows
    ]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("amount", pa.array(["1.0"] * 3)),
        ("amount", pa.array([True] * 3)),
        ("count", pa.array([1.5] * 3)),
        ("count", pa.array([2**63] * 3, pa.uint64())),
        ("channel", pa.array([1] * 3)),
        ("channel", pa.array([b"\xff"] * 3)),
        ("known", pa.array([1] * 3)),
        ("at", pa.array([0] * 3, pa.timestamp("us"))),
        ("at", pa.array([10**18] * 3, pa.timestamp("s", tz="UTC"))),
        ("tags", pa.array(["x"] * 3)),
        ("codes", pa.array([[1.5]] * 3)),
        ("sizes", pa.array([[None, 1.0]] * 3)),
        ("amount", pa.nulls(3)),
    ],
)
def test_a_column_of_another_type_is_a_typed_error_that_names_it(scorer, column, values):
    """Never cast in silence."""
    table = as_table(many(3))
    table = table.set_column(SCHEMA.get_field_index(column), column, values)
    with pytest.raises(CallerError, match=column):
        scorer.score_table(table)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, 2, 3], pa.int32()),
        pa.array([1, 2, 3], pa.uint8()),
        pa.array([1.0, 2.0, 3.0], pa.float32()),
        pa.array([1.0, 2.0, 3.0], pa.float16()),
        pa.array([1, 2, 3], pa.decimal128(10, 2)),
    ],
)
def test_numbers_of_other_widths_are_the_same_numbers(scorer, values):
    """Arrow's types of one number are one field type."""
    table = as_table(many(3))
    want = scorer.score_table(table.set_column(0, "amount", pa.array([1.0, 2.0, 3.0])))
    assert scorer.score_table(table.set_column(0, "amount", values)).equals(want)


def test_a_column_may_have_the_fields_name_on_the_wire_wherever_stored_columns_come_from():
    """Both ways through a table read it; an optional one would else be null without a word."""

    class Payment(msgspec.Struct):
        card: str
        amount: float | None = msgspec.field(default=None, name="amountWire")

    spec = ri.FeatureSpec(
        request=Payment,
        entities={"card": ri.Entity(key=("card",), columns={"x": "float"})},
        columns=[c.numeric("amount", null=-7.0), c.stored("card.x", unknown=0.0, null=0.0)],
    )
    store = ri.Store(tables={"card": ri.Snapshot.from_rows({"a": {"x": 5.0}})})
    scorer = releases.scorer_of(releases.packed("wire", releases.weighted(1.0, 100.0), spec), store=store)
    table = pa.table({"card": ["a", "b"], "amountWire": [3.0, None]})
    assert scorer.score_table(table)["score"].to_pylist() == [503.0, -7.0]
    joined = table.append_column("card.x", pa.array([5.0, None]))
    assert scorer.score_table(joined)["score"].to_pylist() == [503.0, -7.0]
