"""Decision log and log lines behind a real Scorer and a real Ranker: each way in has its row, each rung, each failure."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import msgspec
import pytest
import releases
from decisions import ids, kinds, log_of
from releases import CONTEXT
from small_releases import pack_payments, payment_store

import retailinfer as ri
from retailinfer.errors import RequestError

pytestmark = pytest.mark.requires("onnx", "pyarrow")

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork here")
AT = dt.datetime(2023, 11, 20, tzinfo=dt.UTC)
SECRET = "a secret of more than 16 bytes"


def payment(i: int) -> dict[str, object]:
    """A request."""
    return {"card_id": f"c{i}", "channel": "app", "amount": 10.5 + i, "at": AT.isoformat(), "gift": None}


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    """A release that scores payments."""
    return pack_payments(tmp_path_factory.mktemp("release"))


def rows_by_id(log: ri.DecisionLog) -> dict[str, dict]:
    """The rows of a log; no id is there twice."""
    rows = list(log.rows())
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_way_in_has_its_row(release, tmp_path, kind):
    """Objects, bytes, batches, coroutines: what the caller got is what is written."""
    log = log_of(tmp_path, format=kind)
    scorer = ri.Scorer.load(release, store=payment_store(), trust="unsigned", hooks=[log])
    given = scorer.request_type
    body = payment(3)
    got = [
        scorer.score(payment(1) | {"at": AT}, request_id="dict", at=AT),
        scorer.score(
            given(card_id="c2", channel="app", amount=12.5, at=AT, gift=None), request_id="struct", at=AT
        ),
        msgspec.json.decode(
            scorer.score_json(msgspec.json.encode(body), request_id="json", at=AT), type=ri.Decision
        ),
        msgspec.msgpack.decode(
            scorer.score_msgpack(
                msgspec.msgpack.encode(body | {"card_id": "c4"}), request_id="msgpack", at=AT
            ),
            type=ri.Decision,
        ),
        asyncio.run(scorer.ascore(payment(5) | {"at": AT}, request_id="coroutine", at=AT)),
        *scorer.score_batch([payment(i) | {"at": AT} for i in (6, 7)], at=AT),
    ]
    rows = rows_by_id(log)
    assert sorted(rows) == sorted(answer.id for answer in got)
    for i, answer in enumerate(got, 1):
        row = rows[answer.id]
        assert (row["score"], row["action"], row["rung"]) == (answer.score, answer.action, 0)
        assert (tuple(row["stale"]), tuple(row["missing"])) == (answer.stale, answer.missing)
        assert (row["entity.card"], row["request.channel"]) == (f"c{i}", "app")
        assert row["release"] == answer.release
        assert row["took_us"] > 0
        assert abs(row["at_ns"] - time.time_ns()) < 60e9
    log.close()
    assert sorted(log.table().column("id").to_pylist()) == sorted(rows)


def test_callers_errors_have_no_row(release, tmp_path):
    """Nothing was decided; rejected bytes may hold anything."""
    log = log_of(tmp_path)
    scorer = ri.Scorer.load(release, store=payment_store(), trust="unsigned", hooks=[log])
    with pytest.raises(RequestError):
        scorer.score_json(b'{"card_id": "c1"}')
    assert list(log.rows()) == []
    log.close()


def test_a_ranking_has_its_row(tmp_path):
    """With its best items."""
    log = log_of(tmp_path, entities={}, fields=[], max_items=3)
    scorer = releases.ranker_of(
        releases.item_files(), store=ri.Store(tables={"item": releases.items(50)}), hooks=[log]
    )
    ranking = scorer.rank(CONTEXT, [f"sku-{i:03d}" for i in range(50)], k=10)
    (row,) = log.rows()
    assert (row["id"], row["kind"], row["items"]) == (ranking.id, "ranking", ranking.items[:3])
    assert row["scores"] == ranking.scores[:3]
    log.close()


def test_lower_rungs_and_failures_have_rows(tmp_path, caplog):
    """Which rung answered and what kept the release from answering, in the log and in lines; by every way in."""
    import test_degrade as degrade

    log = log_of(tmp_path, entities={"card": "card"}, fields=["amount"])
    lines = ri.LogHook()
    with caplog.at_level(logging.INFO, "retailinfer"):
        scorer = degrade.scorer_of("previous", "static", hooks=[log, lines])
        scorer.score(degrade.GOOD, request_id="good")
        scorer.score(degrade.BAD, request_id="previous")
        scorer.score_json(msgspec.json.encode(degrade.WORSE), request_id="static")
        alone = degrade.scorer_of(hooks=[log, lines])
        with pytest.raises(ri.ScoreError):
            alone.score(degrade.BAD, request_id="failed")
        assert alone.score(degrade.BAD, request_id="otherwise", otherwise=None) is None
        assert lines.flush()
    lines.close()
    rows = rows_by_id(log)
    log.close()
    assert {id_: (row["kind"], row["rung"], row["why"]) for id_, row in rows.items()} == {
        "good": ("decision", 0, None),
        "previous": ("decision", 1, "ScoreError"),
        "static": ("decision", 4, "ScoreError"),
        "failed": ("failed", None, "ScoreError"),
        "otherwise": ("failed", None, "ScoreError"),
    }
    assert {rows[id_]["entity.card"] for id_ in ("good", "previous", "static")} == {"c1"}
    assert rows["static"]["request.amount"] == -5000.0
    assert rows["previous"]["release"] != rows["good"]["release"]
    said = [
        (record.levelname, record.retailinfer["event"], record.retailinfer["id"])
        for record in caplog.records
        if record.retailinfer["event"] != "changed"  # a rung that answers for the first time says so
    ]
    assert said == [
        ("INFO", "answered", "good"),
        ("WARNING", "answered", "previous"),
        ("WARNING", "answered", "static"),
        ("WARNING", "failed", "failed"),
        ("WARNING", "failed", "otherwise"),
    ]


def test_c69_a_thousand_planted_values_are_in_no_file_and_in_no_line(release, tmp_path, caplog):
    """Keys hashed, no field declared: not one of them, as text or as bytes, in whatever is written."""
    log, lines = log_of(tmp_path, hash_key=SECRET, fields=[]), ri.LogHook()
    scorer = ri.Scorer.load(release, store=payment_store(), trust="unsigned", hooks=[log, lines])
    planted = [f"person-{i}-4111111111111111" for i in range(1_000)]
    with caplog.at_level(logging.DEBUG):
        for i, who in enumerate(planted):
            request = payment(i) | {"card_id": who, "amount": 777_000.25 + i, "at": AT}
            if i % 3 == 0:
                scorer.score(request, at=AT)
            elif i % 3 == 1:
                scorer.score_json(msgspec.json.encode(request), at=AT)
            else:
                with pytest.raises(ri.CallerError):
                    scorer.score(request | {"amount": who}, at=AT)
        assert lines.flush()
        assert log.flush()
    lines.close()
    log.close()
    assert len(list(log.rows())) == 667
    assert sum("answered" in record.getMessage() for record in caplog.records) == 667
    text = caplog.text + "".join(repr(record.__dict__) for record in caplog.records)
    everything = text.encode() + b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"4111111111111111" not in everything
    assert b"777" + b"000" not in everything
    assert [who for who in planted if who.encode() in everything] == []


APP = """
import sys
sys.path.insert(0, {tests!r})
import retailinfer as ri
from small_releases import payment_store

log = ri.DecisionLog({folder!r}, keep_days=30, entities={{"card": "card_id"}}, fields=["amount"], format={kind!r})
scorer = ri.Scorer.load({release!r}, store=payment_store(), trust="unsigned", hooks=[log, ri.LogHook()])

def app(environ, start_response):
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    answer = scorer.score_json(body, request_id=environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Type", "application/json")])
    return [answer]
"""


@POSIX
@pytest.mark.requires("gunicorn")
@pytest.mark.parametrize(("preload", "kind"), [(True, "parquet"), (False, "jsonl")])
def test_under_gunicorn_every_answer_has_its_row(release, tmp_path, preload, kind):
    """Scores as bytes by workers that are recycled, then SIGTERM: what clients got is what is written."""
    import socket

    folder = tmp_path / "decisions"
    (tmp_path / "scoring_app.py").write_text(
        APP.format(tests=str(Path(__file__).parent), folder=str(folder), kind=kind, release=str(release))
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            sys.executable, "-m", "gunicorn", "-w", "2", "-k", "gthread", "--threads", "2", "-b", f"127.0.0.1:{port}",
            "--max-requests", "60", "--log-level", "warning", *(["--preload"] if preload else []), "scoring_app:app",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *[p for p in sys.path if p]])},
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    got: dict[str, dict] = {}
    tries = 0
    try:
        end = time.monotonic() + 60
        while len(got) < 200 and time.monotonic() < end:
            tries += 1
            try:
                url = f"http://127.0.0.1:{port}/?try-{tries}"
                data = json.dumps(payment(len(got))).encode()
                with urllib.request.urlopen(url, data, timeout=5) as reply:
                    answer = json.loads(reply.read())
                got[answer["id"]] = answer
            except OSError:  # it starts; a worker that was recycled took the connection with it
                time.sleep(0.05)
        server.send_signal(signal.SIGTERM)
        _, err = server.communicate(timeout=30)
    finally:
        server.kill()
        server.wait()
    assert len(got) == 200, err
    log = log_of(folder, format=kind)
    rows = {row["id"]: row for row in log.rows()}
    assert len(rows) == len(ids(log))
    assert set(rows) >= set(got)
    assert len(rows) <= 210  # answers whose connection was lost
    assert all(
        (rows[id_]["score"], rows[id_]["action"]) == (answer["score"], answer["action"])
        for id_, answer in got.items()
    )
    assert {row["entity.card"] for row in rows.values()} == {f"c{i}" for i in range(200)}
    assert "live.jsonl" not in kinds(folder)
