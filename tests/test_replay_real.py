"""Replay of real and simulated history against the oracle, bit for bit.

online_retail is half a million lines of a real shop, many of them of the same minute; the demo's payments have labels that
come a week late.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import releases

import retailinfer as ri
from retailinfer import columns as c

pytest.importorskip("duckdb", reason="`duckdb` is not installed (pip install retailinfer[test])")
pa = pytest.importorskip("pyarrow", reason="`pyarrow` is not installed (pip install retailinfer[test])")

import pyarrow.compute as pc  # noqa: E402 - after the check for pyarrow
import pyarrow.parquet as pq  # noqa: E402
from replay_oracle import NULL, OrderedOracle  # noqa: E402

from retailinfer.authoring.replay import Replayed  # noqa: E402
from retailinfer.demo import payments as demo_payments  # noqa: E402
from retailinfer.demo.past import HistoryClock  # noqa: E402

RETAIL = ri.FeatureSpec(
    request={
        "customer": int | None,
        "item": str,
        "quantity": int,
        "price": float,
        "country": str,
        "at": ri.Timestamp,
    },
    event_time="at",
    entities={"customer": "customer", "item": "item", "both": ("customer", "item"), "country": "country"},
    streams={
        "sale": None,
        "return": ri.Stream(
            {"customer": int | None, "item": str, "quantity": int, "at": ri.Timestamp}, event_time="at"
        ),
    },
    columns=[
        c.numeric("quantity"),
        c.window("customer", "count", on="sale", over="30d", null=0.0),
        c.window(
            "customer", "sum", on="sale", of="price", scale=1000, over="7d", current="exclude", null=0.0
        ),
        c.window("customer", "mean", on="sale", of="quantity", over="90d", current="exclude", null=0.0),
        c.window("customer", "distinct", on="sale", of="item", over="1d", pane="1h", null=0.0),
        c.window("item", "sum", on="sale", of="quantity", over="24h", where="quantity < 100", null=0.0),
        c.window("item", "max", on="sale", of="price", scale=1000, over="7d", null=0.0),
        c.window("item", "min", on="sale", of="price", scale=1000, over="7d", delay="7d", null=0.0),
        c.window("both", "count", on="sale", over="60d", current="exclude", null=0.0),
        c.window("country", "count", on="sale", over="1h", where="country != 'United Kingdom'", null=0.0),
        c.window("item", "sum", on="return", of="quantity", over="30d", null=0.0),
        c.window("customer", "count", on="return", over="30d", delay="1d", null=0.0),
    ],
)


def retail_tables(path: Path) -> tuple[pa.Table, pa.Table]:
    """Sales and returns, in the order of the shop's own records."""
    table = pq.read_table(path / "online_retail" / "transactions.parquet")
    table = pa.table(
        {
            "kind": table["kind"].cast(pa.string()),
            "customer": table["customer_id"].cast(pa.int64()),
            "item": table["stock_code"].cast(pa.string()),
            "quantity": table["quantity"].cast(pa.int64()),
            "price": table["unit_price_gbp"].cast(pa.float64()),
            "country": table["country"].cast(pa.string()),
            "at": table["ts"].cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC")),
        }
    )
    sale = pc.equal(table["kind"], "sale")
    returned = ["customer", "item", "quantity", "at"]
    return table.filter(sale).drop_columns(["kind"]), table.filter(pc.invert(sale)).select(returned)


def equal_to_oracle(replayed: Replayed, oracle: OrderedOracle) -> None:
    """Every window of every row has the oracle's bits and its state."""
    for name in replayed.spec.body.windows:
        values, states = oracle.window(name)
        got = replayed.table[name].to_numpy(zero_copy_only=False).astype(np.float64)
        differs = ~((got == values) | (np.isnan(got) & np.isnan(values)))
        assert not differs.any(), (name, int(differs.sum()), got[differs][:3], values[differs][:3])
        ours = replayed.states[name]
        assert (np.where(ours == NULL, 0, ours) == np.where(states == NULL, 0, states)).all(), name


@pytest.mark.slow
def test_replay_of_online_retail_equals_the_oracle(shared_data: Path):
    """A year of a real shop, 532,618 sales and 9,291 returns: eleven windows of every sale, bit for bit."""
    sales, returns = retail_tables(shared_data)
    replayed = ri.replay(RETAIL, sales, labels={"return": returns})
    assert len(replayed) == len(sales)
    equal_to_oracle(replayed, OrderedOracle(RETAIL, sales, labels={"return": returns}))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_serving_online_retail_gives_the_replayed_rows(shared_data: Path):
    """The same year through a Scorer, sale by sale with observe=True and return by return: the matrix, bit for bit."""
    sales, returns = retail_tables(shared_data)
    replayed = ri.replay(RETAIL, sales, labels={"return": returns})
    matrix = np.ascontiguousarray(replayed.matrix)
    clock = HistoryClock(int(min(replayed.at_ns.min(), _ns(returns["at"]).min())))
    files = releases.packed("retail", releases.weighted(*[0.0] * len(RETAIL.names)), RETAIL)
    scorer = releases.scorer_of(files, store=ri.Store(windows=ri.Windows.memory(clock=clock)))
    vectorize, score, observe = scorer._live.engine.vectorize, scorer.score, scorer.observe
    times = [replayed.at_ns, _ns(returns["at"])]
    which = np.repeat([0, 1], [len(sales), len(returns)])
    rows = np.concatenate([np.arange(len(sales)), np.arange(len(returns))])
    order = np.lexsort((rows, which, np.concatenate(times)))
    requests, found = sales.to_pylist(), returns.to_pylist()
    served = np.empty_like(matrix)
    for stream, row in zip(which[order].tolist(), rows[order].tolist(), strict=True):
        clock.now_ns = int(times[stream][row])
        if stream:
            observe("return", found[row])
            continue
        served[row] = vectorize(requests[row])[0]
        decision = score(requests[row], observe=True)
        if row % 997 == 0:
            assert set(decision.stale) == {RETAIL.names[k] for k in np.flatnonzero(replayed.flags[row] == 3)}
    assert served.tobytes() == matrix.tobytes()


def _ns(moments: pa.ChunkedArray) -> np.ndarray:
    return moments.cast(pa.int64()).to_numpy() * 1000


PAYMENT_FIELDS = {
    "payment_id": str, "at": ri.Timestamp, "customer_id": str, "terminal_id": str, "amount": float,
    "channel": str, "merchant_category": str, "card_type": str,
}  # fmt: skip
PAYMENTS = ri.FeatureSpec(
    request=PAYMENT_FIELDS,
    event_time="at",
    entities={"customer": "customer_id", "terminal": "terminal_id"},
    streams={
        "payment": None,
        "label": ri.Stream(
            {"terminal_id": str, "fraud": bool, "known_at": ri.Timestamp}, event_time="known_at"
        ),
    },
    columns=[
        c.numeric("amount"),
        c.window("customer", "count", on="payment", over="24h", current="exclude"),
        c.window("customer", "mean", on="payment", of="amount", scale=100, over="7d", current="exclude"),
        c.window("customer", "max", on="payment", of="amount", scale=100, over="30d"),
        c.window("customer", "distinct", on="payment", of="merchant_category", over="30d"),
        c.window("terminal", "count", on="payment", over="24h", where="channel == 'online' and amount >= 50"),
        c.window("terminal", "mean", on="label", of="fraud", over="7d"),
        c.window("terminal", "sum", on="label", of="fraud", over="30d"),
    ],
)


def test_replay_of_the_demos_payments_equals_the_oracle():
    """Two months of simulated payments whose labels come seven days later: every window, bit for bit."""
    world = demo_payments.generate(
        demo_payments.PaymentsConfig(n_customers=1_000, n_terminals=2_000, n_days=60, radius=10.0)
    )
    table = world.payments
    labels = pa.table(
        {
            "terminal_id": table["terminal_id"],
            "fraud": table["fraud"],
            "known_at": pc.add(table["at"], pa.scalar(7 * 86_400, pa.duration("s"))),
        }
    )
    replayed = ri.replay(PAYMENTS, table, labels=labels)
    equal_to_oracle(replayed, OrderedOracle(PAYMENTS, table, labels={"label": labels}))
    assert float(np.nanmax(replayed.table["terminal_sum_fraud_30d_label"].to_numpy())) >= 5


def test_cutting_the_future_off_changes_nothing():
    """The first half of a history alone gives the same rows as the whole of it: nothing looks ahead."""
    table = demo_payments.generate(
        demo_payments.PaymentsConfig(n_customers=100, n_terminals=200, n_days=40, radius=20.0)
    ).payments
    labels = pa.table(
        {
            "terminal_id": table["terminal_id"],
            "fraud": table["fraud"],
            "known_at": pc.add(table["at"], pa.scalar(7 * 86_400, pa.duration("s"))),
        }
    )
    whole = ri.replay(PAYMENTS, table, labels=labels)
    n = len(table) // 2
    until = table["at"][n - 1]
    known = labels.filter(pc.less_equal(labels["known_at"], until))
    half = ri.replay(PAYMENTS, table.slice(0, n), labels=known)
    assert half.table == whole.table.slice(0, n)
    np.testing.assert_array_equal(np.asarray(half.matrix), np.asarray(whole.matrix)[:n])
