"""The payments of the demo: the generator, what is counted of them, the measures of the fraud model."""

from __future__ import annotations

import numpy as np
import pytest
import releases

import retailinfer as ri

pa = pytest.importorskip("pyarrow", reason="`pyarrow` is not installed (pip install retailinfer[test])")

from retailinfer.demo import fraud, metrics, payments  # noqa: E402 - after the check for pyarrow
from retailinfer.demo.fraud import VELOCITY_COLUMNS, WINDOWS_D  # noqa: E402
from retailinfer.demo.past import Past  # noqa: E402
from retailinfer.demo.payments import DAY_S, PaymentsConfig  # noqa: E402

SMALL = PaymentsConfig(n_customers=60, n_terminals=80, n_days=50, radius=25.0, terminals_hit_per_day=1)


@pytest.fixture(scope="module")
def small():
    """A world of a few thousand payments."""
    return payments.generate(SMALL)


def slow_velocity(table, delay_s, parts=30):
    """Every payment looks at every other one: the definition, written down, with windows cut into 30 panes."""
    rows = [
        (row["at"].timestamp(), row["customer_id"], row["terminal_id"], row["amount"], row["fraud"])
        for row in table.to_pylist()
    ]
    found = []
    for i, (at, customer, terminal, _, _) in enumerate(rows):
        cells = {}
        for days in WINDOWS_D:
            pane = days * DAY_S // parts
            first = (at // pane - parts + 1) * pane
            amounts = [r[3] for r in rows[:i] if r[1] == customer and r[0] >= first]
            labels = [r[4] for r in rows if r[2] == terminal and first <= r[0] + delay_s < at]
            cells[f"customer_count_{days}d"] = len(amounts)
            cells[f"customer_mean_amount_{days}d"] = sum(amounts) / len(amounts) if amounts else None
            cells[f"terminal_count_{days}d"] = len(labels)
            cells[f"terminal_fraud_share_{days}d"] = sum(labels) / len(labels) if labels else None
        found.append(cells)
    return found


def test_generator_repeats_itself_and_follows_its_seed(small):
    """Equal settings give equal tables; another seed gives others."""
    again = payments.generate(SMALL)
    assert again == small
    other = payments.generate(PaymentsConfig(n_customers=60, n_terminals=80, n_days=50, radius=25.0, seed=1))
    assert other.payments != small.payments


def test_about_one_payment_in_120_is_fraud():
    """The published proportions: about 0.8 % fraud, most of it by terminals, least by large amounts."""
    world = payments.generate(PaymentsConfig(n_days=60))
    scenario = world.payments["scenario"].to_numpy()
    share = np.bincount(scenario, minlength=4) / len(scenario)
    assert 0.006 < share[1:].sum() < 0.010
    assert share[2] > share[3] > share[1] > 0


def test_payments_are_as_the_design_says(small):
    """Time order, amounts with cents, terminals within the radius, large amounts always fraud, labels as scenarios."""
    table = small.payments
    at_s = table["at"].cast(pa.int64()).to_numpy()
    assert (np.diff(at_s) >= 0).all()
    amount, scenario = table["amount"].to_numpy(), table["scenario"].to_numpy()
    assert (amount > 0).all()
    np.testing.assert_allclose(amount * 100, np.rint(amount * 100), atol=1e-6)
    assert set(scenario.tolist()) == {0, 1, 2, 3}
    assert (scenario[amount > 220.01] > 0).all()
    np.testing.assert_array_equal(table["fraud"].to_numpy(zero_copy_only=False), scenario > 0)
    home = {r["customer_id"]: (r["home_x"], r["home_y"]) for r in small.customers.to_pylist()}
    place = {r["terminal_id"]: (r["x"], r["y"]) for r in small.terminals.to_pylist()}
    for customer, terminal in zip(
        table["customer_id"].to_pylist(), table["terminal_id"].to_pylist(), strict=True
    ):
        assert np.hypot(*np.subtract(home[customer], place[terminal])) < SMALL.radius


def test_fields_of_a_payment_do_not_tell_fraud():
    """Channel, card type and merchant category are spread over fraud as over honest payments, within chance."""
    table = payments.generate(PaymentsConfig(n_days=60)).payments
    is_fraud = table["fraud"].to_numpy(zero_copy_only=False)
    for name in ("channel", "card_type", "merchant_category"):
        codes = table[name].combine_chunks().dictionary_encode().indices.to_numpy()
        honest, bad = (np.bincount(codes[rows]) / rows.sum() for rows in (~is_fraud, is_fraud))
        # Frauds come in clusters of one customer or one terminal, so chance moves them more than single draws would.
        assert np.abs(honest - bad).max() < 0.05


def test_velocity_columns_equal_the_slow_definition(small):
    """What replay counts is what comparing all payments with all gives: strictly before, labels when they come."""
    world = payments.Payments(small.payments.slice(1_500, 700), small.customers, small.terminals)
    replayed = ri.replay(
        fraud.make_spec(),
        world.payments,
        labels=payments.labels(world.payments, delay_s=3 * DAY_S),
        tables={"customer": world.customers, "terminal": world.terminals},
        updated_at=None,
    )
    found = replayed.table.select(VELOCITY_COLUMNS).to_pylist()
    for got, want in zip(found, slow_velocity(world.payments, 3 * DAY_S), strict=True):
        assert got == pytest.approx(want, abs=1e-9)
    assert sum((cells["terminal_fraud_share_7d"] or 0) > 0 for cells in found) > 5


def test_labels_come_a_week_after_their_payments(small):
    """One label a payment, in the same order, a week later."""
    found = payments.labels(small.payments)
    assert found["terminal_id"] == small.payments["terminal_id"]
    at, known_at = (
        t.cast(pa.timestamp("s", "UTC")).cast(pa.int64()).to_numpy()
        for t in (small.payments["at"], found["known_at"])
    )
    assert set((known_at - at).tolist()) == {7 * DAY_S}


def test_split_leaves_the_label_delay_between_training_and_held_out_days(small):
    """The last training payment is at least seven days older than the first held-out one, and profiles are joined."""
    data = fraud.prepare(small, held_out_days=10)
    last, first = data.train["at"][-1].as_py(), data.held_out["at"][0].as_py()
    assert 7 <= (first - last).total_seconds() / DAY_S < 9
    home = {r["customer_id"]: r["home_x"] for r in small.customers.to_pylist()}
    assert data.held_out["customer.home_x"].to_pylist() == [
        home[c] for c in data.held_out["customer_id"].to_pylist()
    ]


def test_served_windows_are_the_replayed_ones(small):
    """Backfilled, then grown by requests and labels as they come, the windows of a Scorer give replay's very rows."""
    data = fraud.prepare(small, held_out_days=10)
    spec = fraud.make_spec().fit(data.train)
    past = Past(data)
    store = ri.Store(
        tables={
            entity: ri.Snapshot.from_arrow(table, key=key[0], name=entity)
            for entity, (table, key) in data.entities.items()
        },
        windows=ri.Windows.memory(clock=past.clock),
    )
    scorer = releases.scorer_of(
        releases.packed("velocity", releases.weighted(*[0.0] * len(spec.names)), spec), store=store
    )
    past.backfill(store, spec)
    matrix = np.asarray(spec.transform(data.held_out))
    requests = data.held_out.select(list(fraud.REQUEST)).to_pylist()
    for row, request in enumerate(requests):
        past.until(scorer, row)
        (got,) = scorer._live.engine.vectorize(request)
        assert got.tobytes() == matrix[row].tobytes()
        decision = scorer.score(request, observe=True)
        assert decision.stale == ()
    assert len(requests) > 500


@pytest.mark.requires("lightgbm", "sklearn")
def test_velocity_is_worth_at_least_three_times_the_average_precision():
    """On a smaller world too, the model with velocity columns finds fraud at least three times as well."""
    world = payments.generate(
        PaymentsConfig(
            n_customers=1_500,
            n_terminals=3_000,
            n_days=75,
            radius=8.0,
            terminals_hit_per_day=1,
            cards_hit_per_day=1,
        )
    )
    data = fraud.prepare(world, held_out_days=14)
    precision = {}
    for velocity in (False, True):
        spec, booster = fraud.train(fraud.make_spec(velocity=velocity), data, n_trees=60)
        assert booster.feature_name() == list(spec.names)
        score = booster.predict(np.asarray(spec.transform(data.held_out)))
        precision[velocity] = fraud.quality(data, score).average_precision
    assert precision[True] >= 3 * precision[False] > 0


def test_card_precision_blocks_cards_that_were_found():
    """A card found on one day frees its place in the list of the next."""
    day = np.array([0, 0, 0, 1, 1, 1])
    card = np.array(["a", "b", "c", "a", "b", "c"])
    label = np.array([True, False, False, True, True, False])
    score = np.array([0.9, 0.5, 0.1, 0.9, 0.8, 0.1])
    assert metrics.card_precision(day, card, label, score, k=1) == 1.0
    assert metrics.card_precision(day, card, label, -score, k=1) == 0.0


def test_paired_bootstrap_brackets_the_mean_difference():
    """The interval holds the mean, excludes zero for a clear difference and includes it where there is none."""
    ours = np.array([True] * 60 + [False] * 40)
    theirs = np.array([True] * 30 + [False] * 70)
    clear = metrics.paired_bootstrap(ours, theirs)
    assert clear.mean == pytest.approx(0.3)
    assert 0 < clear.low < clear.mean < clear.high
    none = metrics.paired_bootstrap(ours, ours[::-1])
    assert none.low < 0 < none.high


def test_recall_by_group_counts_what_lies_in_the_looked_at_share():
    """Of each kind of fraud, the share among the highest scores."""
    group = np.array([0, 1, 1, 2, 0, 0, 0, 0, 0, 0])
    score = np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert metrics.recall_by_group(group, score, share=0.2) == {1: 0.5, 2: 1.0}
