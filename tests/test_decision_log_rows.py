"""What a row of the decision log holds, and what it never holds; settings; reading rows and tables back."""

from __future__ import annotations

import datetime as dt
import json
from collections import OrderedDict
from dataclasses import dataclass
from random import Random

import msgspec
import numpy as np
import pytest
from decisions import AT_NS, answered, decision, failed, kinds, log_of, ranked, until

import retailinfer as ri
from retailinfer.errors import ConfigError
from retailinfer.monitoring.decision_rows import FIXED, MAX_ROW, Keys, RowWriter
from retailinfer.monitoring.events import Changed

FORMATS = pytest.mark.parametrize("kind", ["jsonl", "parquet"])


def written(folder, *events, **settings) -> list[dict]:
    """The rows that events become."""
    log = log_of(folder, **settings)
    for event in events:
        log.on_event(event)
    rows = list(log.rows())
    log.close()
    return rows


def test_a_decision_is_one_row(tmp_path):
    """Who answered what and when, the declared fields, the declared key."""
    assert written(tmp_path, answered(7)) == [
        {
            "at_ns": AT_NS + 7_000_000_000,
            "kind": "decision",
            "id": "order-7",
            "release": "fraud:41",
            "arm": "default",
            "rung": 0,
            "took_us": 14.25,
            "priority": "critical",
            "score": 0.125,
            "action": "approve",
            "stale": ["card.mean_amount_30d"],
            "missing": ["channel"],
            "reasons": ["amount"],
            "items": None,
            "scores": None,
            "why": None,
            "late": None,
            "entity.card": "c-7",
            "request.amount": 91.5,
            "request.channel": "app",
        }
    ]


def test_a_ranking_is_one_row_with_its_best_items(tmp_path):
    """As many as declared, and their scores."""
    (row,) = written(tmp_path, ranked(3), max_items=4)
    assert (row["kind"], row["id"], row["score"], row["action"]) == ("ranking", "rank-3", None, None)
    assert row["items"] == ["sku-0", "sku-1", "sku-2", "sku-3"]
    assert row["scores"] == [1.0, 0.5, 1 / 3, 0.25]
    assert row["entity.card"] == "c-3"


def test_a_failure_is_a_row(tmp_path):
    """An audit that shows answers alone would show no outage."""
    rows = written(tmp_path, failed(1), failed(2, late=True))
    assert [(row["kind"], row["id"], row["why"], row["late"]) for row in rows] == [
        ("failed", "order-1", "DeadlineExceededError", None),
        ("failed", "order-2", "DeadlineExceededError", True),
    ]


def test_changes_of_state_are_no_rows(tmp_path):
    """They are for the LogHook."""
    assert written(tmp_path, Changed("overload", "no", "yes", "", AT_NS)) == []


@FORMATS
def test_nothing_is_written_that_was_not_declared(tmp_path, kind):
    """Not a field, not a key, not the aliases of a trace, in any file of the folder."""
    log = log_of(tmp_path, fields=(), entities={}, format=kind)
    for i in range(50):
        log.on_event(answered(i, card_id=f"planted-{i}", note=f"planted-{i}"))
    log.close()
    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"planted" not in everything
    assert b"example.org" not in everything
    assert b"guest-7" not in everything
    assert b"84.5" not in everything
    assert len(list(log.rows())) == 50


def test_what_is_declared_stands_beside_the_files(tmp_path):
    """In words, for whoever audits the folder; another declaration has another file."""
    log_of(tmp_path, keep_days=30, sample=0.5).start()
    (path,) = tmp_path.glob("log-*.json")
    assert json.loads(path.read_text()) == {
        "log": 1, "fields": ["amount", "channel"], "entities": {"card": ["card_id"]}, "hashed": False, "key_check": "",
        "sample": 0.5, "keep_days": 30, "max_items": 20,
    }  # fmt: skip
    log_of(tmp_path, fields=["amount"]).start()
    assert len(list(tmp_path.glob("log-*.json"))) == 2


def test_files_are_for_their_owner_alone(tmp_path):
    """They hold what people did."""
    folder = tmp_path / "new" / "decisions"
    log = log_of(folder)
    log.on_event(answered())
    log.close()
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o600"}
    assert oct(folder.stat().st_mode & 0o777) == "0o700"


@dataclass
class AsDataclass:
    card_id: object
    amount: object
    channel: object = "web"


class AsStruct(msgspec.Struct):
    card_id: object
    amount: object
    channel: object = msgspec.UNSET


@pytest.mark.parametrize(
    ("request_", "want"),
    [
        ({"card_id": "c", "amount": 1.5, "channel": "web"}, ("c", 1.5, "web")),
        (AsDataclass("c", 1.5), ("c", 1.5, "web")),
        (AsStruct("c", 1.5, "web"), ("c", 1.5, "web")),
        (AsStruct("c", 1.5), ("c", 1.5, None)),
        ({"amount": 1.5}, (None, 1.5, None)),
        ({}, (None, None, None)),
        (None, (None, None, None)),
        (7, (None, None, None)),
    ],
)
def test_requests_of_every_kind_are_read(tmp_path, request_, want):
    """What is not there is null."""
    event = msgspec.structs.replace(answered(), request=request_)
    (row,) = written(tmp_path, event)
    assert (row["entity.card"], row["request.amount"], row["request.channel"]) == want


def test_what_the_caller_changes_later_changes_no_row(tmp_path):
    """Values are taken when the answer is given."""
    log = log_of(tmp_path, fields=["amount", "tags"])
    request = {"card_id": "c-1", "amount": 1.0, "tags": ["a"]}
    log.on_event(msgspec.structs.replace(answered(), request=request))
    request["amount"] = 2.0
    request["tags"].append("b")
    request["card_id"] = "c-2"
    (row,) = log.rows()
    log.close()
    assert (row["entity.card"], row["request.amount"], row["request.tags"]) == ("c-1", 1.0, ["a"])


def test_what_is_changed_deep_inside_changes_no_row():
    """Lists in lists, and mappings, however long a row waits."""
    rows = RowWriter(fields=["tags", "basket"], entities={}, keys=Keys(None), max_items=1)
    request = {"tags": [["a"]], "basket": {"sku": 1}}
    taken = rows.values(request)
    request["tags"][0].append("b")
    request["basket"]["other"] = 2
    assert taken[:2] == ([["a"]], {"sku": 1})


def test_keys_of_mappings_are_not_their_methods(tmp_path):
    """A field may be called like a method of dict: rows under another key would never be erased."""
    log = log_of(tmp_path, fields=(), entities={"basket": "items"})
    log.on_event(msgspec.structs.replace(answered(), request=OrderedDict(items="b-1")))
    assert [row["entity.basket"] for row in log.rows()] == ["b-1"]
    assert log.erase("basket", "b-1").rows == 1
    log.close()


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("c-1", "c-1"),
        ("ключ", "ключ"),
        (17, "17"),
        (True, "True"),
        (b"abc", "abc"),
        (b"\xff\x00a", "\\xff\x00a"),
        ("\ud800", "\\ud800"),
        ('quo"te\\', 'quo"te\\'),
        ("x" * 600, "long:"),
        ("", ""),
    ],
)
@FORMATS
def test_keys_are_text_whatever_they_are(tmp_path, key, text, kind):
    """Bytes that are no UTF-8 and halves of surrogates too; and each is found again by `erase`."""
    log = log_of(tmp_path, format=kind)
    log.on_event(answered(1, card_id=key))
    log.on_event(answered(2))
    log.flush()
    got = next(row["entity.card"] for row in log.rows() if row["id"] == "order-1")
    assert got == text or (text == "long:" and got.startswith("long:"))
    assert log.erase("card", key).rows == 1
    assert [row["id"] for row in log.rows()] == ["order-2"]
    log.close()


def test_keys_of_several_fields_are_lists(tmp_path):
    """In the order declared; without one of them there is no key."""
    log = log_of(tmp_path, entities={"pair": ["card_id", "sku"]})
    log.on_event(answered(1, sku=7))
    log.on_event(answered(2, sku=None))
    assert [row["entity.pair"] for row in log.rows()] == [
        '["c-1","7"]',
        None,
    ]
    assert log.erase("pair", ["c-1", 7]).rows == 1
    log.close()


def test_hashed_keys_stand_nowhere_and_are_found_by_erase(tmp_path):
    """With the hash key only: a wrong one finds nothing and says so."""
    secret = "0123456789abcdef-secret"
    log = log_of(tmp_path, hash_key=secret, fields=())
    for i in range(20):
        log.on_event(answered(i))
    keys = {row["entity.card"] for row in log.rows()}
    assert len(keys) == 10
    assert all(len(key) == 32 and set(key) <= set("0123456789abcdef") for key in keys)
    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"c-1" not in everything
    assert secret.encode() not in everything
    assert log.erase("card", "c-1").rows == 2
    log.close()
    for wrong, said in (("another secret of sixteen", "another hash key"), (None, "needs the hash key")):
        with pytest.raises(ConfigError, match=said):
            log_of(tmp_path, hash_key=wrong, entities={}).erase("card", "c-2")


def test_hash_keys_that_can_be_guessed_are_refused(tmp_path):
    """Or that are none."""
    for wrong in ("short", b"", 17):
        with pytest.raises(ConfigError, match="16 bytes"):
            log_of(tmp_path, hash_key=wrong)


class Hostile:
    """No value that anybody can encode."""

    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (float("nan"), None),
        (float("inf"), None),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (Hostile(), None),
        ({1, 2}.__iter__(), None),
        ("\ud800", None),
        ("x" * 100_000, None),
        (10**30, 10**30),
        ([1, "a", None], [1, "a", None]),
        (dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "2026-01-01T00:00:00Z"),
        (b"\xff", "/w=="),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_json_cannot_hold_become_null(tmp_path, value, want):
    """The row is there, and so are its neighbours."""
    rows = written(tmp_path, answered(1), answered(2, amount=value), answered(3))
    assert [row["id"] for row in rows] == ["order-1", "order-2", "order-3"]
    assert rows[1].get("request.amount") == want
    assert rows[1]["request.channel"] == "app"


def test_rows_without_their_key_are_counted(tmp_path):
    """A name that no request has would else look like an erasure that found nothing."""
    log = log_of(tmp_path, entities={"card": "card"})  # the field is card_id
    log.on_event(answered(1))
    log.on_event(answered(2))
    log.flush()
    assert log.stats().keyless == 2
    log.close()
    log = log_of(tmp_path / "right")
    log.on_event(answered(1))
    log.flush()
    assert log.stats().keyless == 0
    log.close()


def test_rows_that_are_too_long_lose_their_fields_and_are_counted(tmp_path):
    """A megabyte of a caller's text is not kept; a row that is too long without it is refused."""
    log = log_of(tmp_path)
    log.on_event(answered(1, amount="x" * 1_000_000))
    log.on_event(answered(2, answer=decision(2, missing=tuple(f"column-{i}" for i in range(20_000)))))
    log.on_event(answered(3, answer=decision(3, id="i" * 1_000_000)))
    rows = list(log.rows())
    assert [row["id"] for row in rows] == ["order-1", "i" * 1_000]
    assert (log.stats().bare, log.stats().refused) == (1, 1)
    assert max(map(len, next(tmp_path.glob("live-*")).read_bytes().splitlines())) <= MAX_ROW
    log.close()


def test_a_sample_is_a_share(tmp_path):
    """Of answers and failures."""
    log = log_of(tmp_path, sample=0.1, random=Random(7))
    for i in range(3_000):
        log.on_event(answered(i))
    assert 240 < len(list(log.rows())) < 360
    log.close()


@FORMATS
def test_rows_and_tables_of_a_span(tmp_path, kind):
    """From `since` to before `until`."""
    log = log_of(tmp_path, format=kind)
    for i in range(100):
        log.on_event(answered(i))
    since = dt.datetime.fromtimestamp(AT_NS / 1e9 + 10, dt.UTC)
    before = dt.datetime.fromtimestamp(AT_NS / 1e9 + 20, dt.UTC)
    want = [f"order-{i}" for i in range(10, 20)]
    assert [row["id"] for row in log.rows(since, before)] == want
    assert log.table(since, before).column("id").to_pylist() == want
    log.close()
    assert [row["id"] for row in log.rows(since, before)] == want
    table = log.table(since)
    assert len(table) == 90
    assert str(table.schema.field("at").type) == "timestamp[ns, tz=UTC]"
    assert table.column("at").to_pylist()[0] == since
    assert len(log.table(until=since)) == 10


def test_an_empty_log_is_an_empty_table(tmp_path):
    """With its columns."""
    log = log_of(tmp_path / "nothing")
    assert list(log.rows()) == []
    table = log.table()
    assert len(table) == 0
    assert table.column_names == ["at" if name == "at_ns" else name for name in FIXED]


@FORMATS
def test_columns_with_several_types_become_text(tmp_path, kind):
    """Whole numbers beside fractions are numbers; numbers beside text are JSON. In rows everything is as it was."""
    values = [1, 2.5, None, "seven", True, [1, 2], 10**30, {"a": 1}]
    log = log_of(tmp_path, format=kind, fields=["amount", "n", "late_text"])
    for i, value in enumerate(values):
        log.on_event(answered(i, amount=value, n=i if i % 2 else i + 0.5, late_text="x" if i > 5 else None))
    log.close()
    for _ in range(2):  # as lines; and, for Parquet, after the next process has finished them
        table = log.table()
        assert [None if v is None else json.loads(v) for v in table.column("request.amount").to_pylist()] == (
            values
        )
        assert table.column("request.n").to_pylist() == [i if i % 2 else i + 0.5 for i in range(8)]
        assert table.column("request.late_text").to_pylist() == [None] * 6 + ["x"] * 2
        log = log_of(tmp_path, format=kind)
        log.start()
        log._outbox._rouse()
        assert until(lambda: kinds(tmp_path)[0] == f"decisions.{kind}"), kinds(tmp_path)
        log.close()


def test_texts_that_look_like_times_stay_texts(tmp_path):
    """Arrow would read them as timestamps, in some files and not in others."""
    log = log_of(tmp_path, format="parquet", fields=["note"])
    for i, note in enumerate(["2026-01-01T00:00:00Z", "2026-01-01", "hello"]):
        log.on_event(answered(i, note=note))
    assert log.table().column("request.note").to_pylist() == ["2026-01-01T00:00:00Z", "2026-01-01", "hello"]
    log.close()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"format": "csv"}, "format"),
        ({"keep_days": 0}, "keep_days"),
        ({"keep_days": "30d"}, "keep_days"),
        ({"sample": 0}, "sample"),
        ({"sample": 1.5}, "sample"),
        ({"max_queue": 0}, "max_queue"),
        ({"max_items": 0.5}, "max_items"),
        ({"rotate_mb": -1}, "rotate_mb"),
        ({"rotate_minutes": True}, "rotate_minutes"),
        ({"fields": "amount"}, "fields"),
        ({"fields": ["amount", "amount"]}, "fields"),
        ({"fields": [7]}, "fields"),
        ({"entities": {"": "card_id"}}, "entities"),
        ({"entities": {"card": ()}}, "card"),
        ({"hooks": [print]}, "on_event"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, settings, said):
    """When the log is made."""
    with pytest.raises(ConfigError, match=said):
        log_of(tmp_path, **settings)
    assert list(tmp_path.iterdir()) == []


def test_moments_without_a_zone_are_refused(tmp_path):
    """Whose midnight?"""
    log = log_of(tmp_path)
    with pytest.raises(ConfigError, match="zone"):
        log.rows(dt.datetime(2026, 1, 1))  # noqa: DTZ001 - what is tested
    with pytest.raises(ConfigError, match="zone"):
        log.table(until="2026-01-01")


def test_how_long_rows_are_kept_must_be_said(tmp_path):
    """There is no default for personal data."""
    with pytest.raises(TypeError, match="keep_days"):
        ri.DecisionLog(tmp_path)
