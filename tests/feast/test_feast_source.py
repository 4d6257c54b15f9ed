"""FeastSource against Feast's own SDK, with its SQLite online store; run in an environment of its own (Makefile, `feast`)."""

from __future__ import annotations

import multiprocessing
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from retailinfer.errors import ConfigError
from retailinfer.store.feature_table import FeatureTable
from retailinfer.store.sources.feast import FeastSource
from retailinfer.store.table import Outcome

feast = pytest.importorskip("feast", reason="`feast` is not installed (make feast)")

NOW = datetime.now(UTC).replace(microsecond=0)
FEATURES = ["stats:trips", "stats:rate", "stats:name", "stats:vec"]


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> feast.FeatureStore:
    """A store of two feature views of drivers, the second of fewer of them, and one by two keys."""
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Array, Float32, Float64, Int32, Int64, String

    folder: Path = tmp_path_factory.mktemp("feast")
    store = FeatureStore(
        config=RepoConfig(
            project="shop",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            entity_key_serialization_version=3,
        )
    )
    n = 50
    frames = {
        "stats": pd.DataFrame(
            {
                "driver_id": [f"d-{i}" for i in range(n)],
                "trips": range(n),
                "rate": [None if i == 3 else i / 4 for i in range(n)],
                "name": ["x"] * n,
                "vec": [[i, i + 0.5] for i in range(n)],
                "at": [NOW - timedelta(hours=3 * i) for i in range(n)],
            }
        ),
        "money": pd.DataFrame(
            {"driver_id": ["d-1", "d-2"], "rate": [7.5, 8.5], "at": [NOW - timedelta(days=9)] * 2}
        ),
        "stock": pd.DataFrame(
            {"store": ["a", "a", "b"], "sku": [1, 2, 1], "n": [10, 20, 30], "at": [NOW] * 3}
        ),
    }
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.STRING)
    shop = Entity(name="shop", join_keys=["store"], value_type=ValueType.STRING)
    item = Entity(name="item", join_keys=["sku"], value_type=ValueType.INT32)
    schemas = {
        "stats": ([driver], [("trips", Int64), ("rate", Float64), ("name", String), ("vec", Array(Float32))]),
        "money": ([driver], [("rate", Float64)]),
        "stock": ([shop, item], [("n", Int64), ("sku", Int32)]),
    }
    views = []
    for name, frame in frames.items():
        frame.to_parquet(folder / f"{name}.parquet")
        entities, fields = schemas[name]
        views.append(
            FeatureView(
                name=name,
                entities=entities,
                ttl=timedelta(hours=12),
                schema=[Field(name=field, dtype=kind) for field, kind in fields],
                source=FileSource(path=str(folder / f"{name}.parquet"), timestamp_field="at"),
            )
        )
    store.apply([driver, shop, item, *views])
    for name, frame in frames.items():
        store.write_to_online_store(name, frame)
    return store


def test_rows_come_back_by_key_with_their_time(repo):
    """Every feature of a known entity with Feast's event time; None for an unknown one; null stays null."""
    source = FeastSource(repo, features=FEATURES, entity="driver_id")
    rows = source.fetch(["d-3", "nobody", "d-1"], timeout_s=5)
    assert list(rows) == ["d-3", "nobody", "d-1"]
    assert rows["nobody"] is None
    assert rows["d-1"] == {
        "trips": 1, "rate": 0.25, "name": "x", "vec": [1.0, 1.5],
        "event_timestamp": (NOW - timedelta(hours=3)).timestamp(),
    }  # fmt: skip
    assert rows["d-3"]["rate"] is None


def test_values_past_feasts_ttl_come_with_their_age(repo):
    """Feast says `present` for a value of 60 hours in a view of 12: the row says how old it is, and the table decides."""
    source = FeastSource(repo, features=["stats:trips"], entity="driver_id")
    row = source.fetch(["d-20"], timeout_s=5)["d-20"]
    assert row == {"trips": 20, "event_timestamp": (NOW - timedelta(hours=60)).timestamp()}


def test_features_of_several_views_are_one_row(repo):
    """A row is as old as its oldest value; a view that does not know the entity gives nulls."""
    features = {"stats:rate": "rating", "money:rate": "per_hour"}
    source = FeastSource(repo, features=features, entity="driver_id", updated_at="at")
    rows = source.fetch(["d-1", "d-5"], timeout_s=5)
    assert rows["d-1"] == {"rating": 0.25, "per_hour": 7.5, "at": (NOW - timedelta(days=9)).timestamp()}
    assert rows["d-5"] == {"rating": 1.25, "per_hour": None, "at": (NOW - timedelta(hours=15)).timestamp()}
    with pytest.raises(ConfigError, match="different names"):
        FeastSource(repo, features=list(features), entity="driver_id")


def test_keys_of_several_parts(repo):
    """A tuple's parts are the join keys in their order."""
    source = FeastSource(repo, features=["stock:n"], entity=("store", "sku"))
    rows = source.fetch([("a", 2), ("b", 2), ("b", 1)], timeout_s=5)
    assert [row and row["n"] for row in rows.values()] == [20, None, 30]


def test_key_that_feast_refuses_fails_alone(repo):
    """A number that does not fit the entity's 32 bits costs its own answer, not those fetched with it."""
    source = FeastSource(repo, features=["stock:n"], entity=("store", "sku"))
    rows = source.fetch([("a", 2), ("a", 2**40), ("b", 1)], timeout_s=5)
    assert isinstance(rows["a", 2**40], Exception)
    assert (rows["a", 2]["n"], rows["b", 1]["n"]) == (20, 30)


def test_wrong_settings_are_refused_when_made(repo, tmp_path):
    """No store, no such feature form, no features: said at once."""
    with pytest.raises(ConfigError, match="view:feature"):
        FeastSource(repo, features=["trips"], entity="driver_id")
    with pytest.raises(ConfigError, match="at least one"):
        FeastSource(repo, features=[], entity="driver_id")
    with pytest.raises(ConfigError, match="FeatureStore"):
        FeastSource(object(), features=["stats:trips"], entity="driver_id")


def test_feature_that_feast_does_not_have_raises(repo):
    """What Feast says about it is raised by the fetch, for ReadThrough to count."""
    source = FeastSource(repo, features=["stats:nothing"], entity="driver_id")
    with pytest.raises(Exception, match="nothing"):
        source.fetch(["d-1"], timeout_s=5)


def test_many_threads_take_turns_at_the_only_connection(repo):
    """Eight threads at once get the rows that they asked for."""
    source = FeastSource(repo, features=["stats:trips"], entity="driver_id")
    wrong = []

    def run(first: int) -> None:
        for i in range(first, first + 5):
            rows = source.fetch([f"d-{i}", f"d-{i + 1}"], timeout_s=30)
            if [row["trips"] for row in rows.values()] != [i, i + 1]:
                wrong.append(i)

    threads = [threading.Thread(target=run, args=(5 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_fetch_that_holds_the_connection_makes_others_fail_in_time(repo):
    """Who cannot have its turn within its limit raises TimeoutError."""
    source = FeastSource(repo, features=["stats:trips"], entity="driver_id")
    with source._my_turn(1), pytest.raises(TimeoutError):
        source.fetch(["d-1"], timeout_s=0.01)
    assert source.fetch(["d-1"], timeout_s=5)["d-1"]["trips"] == 1


def test_table_over_feast_enforces_what_feast_does_not(repo):
    """A table reads through to Feast: unknown entities are unknown, and old values carry their age."""
    source = FeastSource(repo, features=["stats:trips", "stats:rate"], entity="driver_id")
    columns = {"trips": "i64", "rate": "f64"}
    table = FeatureTable(
        columns, source=source, updated_at="event_timestamp", max_rows=100, timeout_ms=20_000
    )
    gathered = table.gather(["d-20", "nobody", "d-0"], ["trips", "rate"])
    assert [Outcome(outcome) for outcome in gathered.outcome] == [
        Outcome.PRESENT,
        Outcome.UNKNOWN,
        Outcome.PRESENT,
    ]
    assert gathered.values[[0, 2]].tolist() == [[20, 5], [0, 0]]
    assert gathered.age_s[0] - gathered.age_s[2] == pytest.approx(60 * 3_600)
    table.close()


def test_works_in_a_forked_child(repo):
    """A child opens the store again; the parent's connection goes on working."""
    source = FeastSource(repo, features=["stats:trips"], entity="driver_id")
    assert source.fetch(["d-1"], timeout_s=5)["d-1"]["trips"] == 1
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    child = fork.Process(target=lambda: answers.put(source.fetch(["d-2"], timeout_s=10)["d-2"]["trips"]))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert answers.get() == 2
    assert source.fetch(["d-3"], timeout_s=5)["d-3"]["trips"] == 3
