"""Checks on real demand: 113,080 days of sales of a British shop, forecast with and without its week.

The shop is closed on Saturdays, and sells less on Sundays: who does not know the day is found out by the seasons, and by
nothing else. The data is UCI's Online Retail (CC BY 4.0), beside the project.
"""

from __future__ import annotations

import numpy as np
import pytest

import retailinfer as ri
from retailinfer import columns as c

pytestmark = pytest.mark.requires("lightgbm", "onnx", "pyarrow")

N_TRAIN = 40_000


@pytest.fixture(scope="module")
def demand(shared_data):
    """Orders of a product on a day, at most 50, so that a few wholesale days do not make the weeks."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(shared_data / "online_retail" / "daily_demand.parquet")
    table = table.sort_by([("date", "ascending"), ("stock_code", "ascending")])
    orders = pc.min_element_wise(table["orders"].cast(pa.int64()), 50)
    return pa.table(
        {
            "at": table["date"].cast(pa.timestamp("us", tz="UTC")),
            "price": table["avg_price_gbp"].cast(pa.float64()),
            "orders": orders.cast(pa.float64()),
        }
    )


def forecaster(folder, table, *, with_week):
    """A booster of the number of orders, by price and, maybe, by the day of the week."""
    import lightgbm

    week = [c.time("at", "day_of_week")] if with_week else []
    spec = ri.FeatureSpec(
        request={"price": float, "at": ri.Timestamp},
        event_time="at",
        columns=[c.numeric("price", transform="log1p", null=0.0), *week],
    ).fit(table)
    model = lightgbm.LGBMRegressor(n_estimators=60, num_leaves=15, verbose=-1, n_jobs=1, random_state=1)
    model.fit(spec.transform(table), table["orders"].to_numpy())
    ri.pack("demand", model=model, features=spec, golden=table.slice(0, 64), out=folder)
    return folder


def test_a_forecast_that_does_not_know_the_week_is_found_out(demand, tmp_path):
    """Beside what was sold, weekday by weekday; the data check sees nothing, for the data is what it was."""
    n = demand.num_rows
    rows = demand.take(np.random.default_rng(5).permutation(n))
    train, held_out = rows.slice(0, N_TRAIN), rows.slice(N_TRAIN, 40_000)
    knows = forecaster(tmp_path / "knows", train, with_week=True)
    blind = forecaster(tmp_path / "blind", train, with_week=False)
    gaps = {}
    for name, release in (("knows", knows), ("blind", blind)):
        report = ri.check(release, against=knows, on=held_out, labels="orders", seconds=0.05)
        season = report["seasonality"]
        gaps[name] = max(abs(ours - was) for ours, was in season.figures["weekday"].values())
        assert "Saturday" not in season.figures["weekday"]
        assert report["data"].figures["refused"] == 0
        assert report["data"].figures["columns"]["price"]["psi"] < 0.01
        assert report["decisions"].state == "not applicable"
    assert gaps["knows"] < 0.03
    assert gaps["blind"] > 3 * gaps["knows"]
    bound = gaps["blind"] * 0.6
    strict = ri.check(blind, on=held_out, labels="orders", bounds={"season": bound}, seconds=0.05)
    assert strict["seasonality"].state == "failed"
    assert not strict.passed
