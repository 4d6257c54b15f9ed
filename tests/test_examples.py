"""The programs in examples/ run as they stand and say what their own texts promise."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from servers import Client, WebServer
from services import until

from retailinfer.cpus import usable_cpus

PYTHONPATH = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]  # may be relative
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PAYMENT = {
    "card_id": "card-1",
    "amount": 19.9,
    "channel": "chip",
    "merchant": "m-7",
    "at": "2025-03-07T18:30:00Z",
}


def run(name: str, *arguments: str, cwd: Path) -> str:
    """What an example prints; it must end well and warn of nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, PYTHONPATH))},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> tuple[Path, str]:
    """The folder that train_and_pack_lightgbm.py writes, and what it says."""
    pytest.importorskip("lightgbm")
    folder = tmp_path_factory.mktemp("example")
    return folder, run("train_and_pack_lightgbm.py", str(folder), cwd=folder)


def imported(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> ModuleType:
    """An application module, loaded with the environment that its text asks for."""
    monkeypatch.setenv("RELEASE", str(folder / "fraud"))
    monkeypatch.setenv("CARDS", str(folder / "cards.parquet"))
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run_here():
    """A new example is run by a test of this file."""
    text = Path(__file__).read_text(encoding="utf-8")
    names = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert names
    assert [name for name in names if not re.search(rf'"{name}(\.py)?"', text)] == []


@pytest.mark.requires("lightgbm", "onnxmltools")
def test_train_and_pack_lightgbm_serves_the_scores_it_trained(packed):
    """The release answers as LightGBM does, and catches most of the planted fraud."""
    _, said = packed
    difference = re.search(r"largest difference from LightGBM's own scores: (\S+)", said)
    caught = re.search(r"declined (\d+) of (\d+), (\d+)% of them fraud", said)
    assert difference is not None
    assert float(difference[1]) < 1e-5
    assert caught is not None
    assert int(caught[1]) > 10
    assert int(caught[3]) > 80


@pytest.mark.requires("lightgbm", "onnxmltools")
@pytest.mark.parametrize("command", ["verify", "bench"])
def test_commands_that_the_example_names_work_on_its_output(packed, command):
    """The two commands in its text do what they say."""
    folder, _ = packed
    more = ["--store", f"card={folder}/cards.parquet:card_id", "--n", "20"] if command == "bench" else []
    done = subprocess.run(
        [sys.executable, "-m", "retailinfer", command, str(folder / "fraud"), *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.requires("lightgbm", "pyarrow")
def test_move_lightgbm_file_answers_as_the_file_does(tmp_path):
    """As arrays, from requests, with a policy: not one score differs from LightGBM's own, and there are reasons."""
    lines = run("move_lightgbm_file.py", cwd=tmp_path).splitlines()
    assert lines[:3] == [
        "1. trees: 0 of 2000 scores differ",
        "2. the same matrix: True",
        "3. from requests: 0 of 2000 scores differ",
    ]
    assert re.fullmatch(r"   decline \d\.\d{3}: [a-z ]+, [a-z ]+", lines[3])


@pytest.mark.requires("sklearn", "skl2onnx", "pandas")
def test_move_sklearn_pipeline_answers_as_the_pipeline_does(tmp_path):
    """Transformers are copied and the forest is read: the probabilities of rows that nobody saw are the pipeline's."""
    lines = run("move_sklearn_pipeline.py", cwd=tmp_path).splitlines()
    assert "amount" in lines[0]
    assert lines[1] == "engine: trees, compared with its source: exact"
    assert json.loads(lines[2])["action"] in ("leave alone", "write", "call")
    assert lines[3] == "largest difference from the pipeline's own probabilities: 0.0"


@pytest.mark.requires("sklearn", "skl2onnx")
def test_fraud_score_answers_in_every_way(tmp_path):
    """Object, bytes, unknown, stale, wrong, batch, coroutine."""
    lines = run("fraud_score.py", cwd=tmp_path).splitlines()
    assert lines[0].startswith("order-17: approve with 0.")
    assert json.loads(lines[1])["action"] == "decline"
    assert lines[2] == "missing: ('channel', 'card.mean_amount_30d')"
    assert lines[3] == "stale: ('card.mean_amount_30d',)"
    assert lines[4].startswith("HTTP 422: Expected `float`, got `str`")
    assert lines[5:] == ["approve", "FeatureRangeError", "async: approve"]


@pytest.mark.requires("sklearn", "skl2onnx")
def test_rank_items_ranks_and_swaps(tmp_path):
    """The example checks itself that the cart and what is sold out never appear."""
    said = run("rank_items.py", cwd=tmp_path)
    assert "best: [('sku-" in said
    assert "after the swap: ['sku-" in said


def test_follow_registry_takes_over_and_goes_back(tmp_path):
    """Promoted, rolled back on the spot and in the registry, started anew without it: who answers is who should."""
    assert run("follow_registry.py", cwd=tmp_path).splitlines() == [
        "answers: fraud:1.0 approve",
        "  fraud:1.0 -> fraud:1.1: pointer 2: 'catches more'",
        "answers: fraud:1.1 review",
        "  fraud:1.1 -> fraud:1.0: 3 a.m., queue of reviews too long",
        "answers: fraud:1.0 because 3 a.m., queue of reviews too long",
        "answers: fraud:1.0 by pointer 3 held: as decided in the morning",
        "answers: fraud:1.0 registry: unreachable",
    ]


@pytest.mark.requires("sklearn", "skl2onnx", "sqlalchemy")
def test_read_through_asks_once_and_outlives_its_source(tmp_path):
    """Three requests are one key of the database; unknown is remembered; too old and away are listed, and nothing fails."""
    assert run("read_through.py", cwd=tmp_path).splitlines() == [
        "approve; 3 requests, 1 key asked of the database",
        "unknown: ('card.mean_amount_30d',); 2 keys asked",
        "stale: ('card.mean_amount_30d',)",
        "away: approve, missing ('card.mean_amount_30d',)",
        "in memory: ()",
        "6 of 8 answers were fresh",
    ]


@pytest.mark.requires("sklearn", "skl2onnx", "pyarrow")
def test_velocity_windows_catch_a_burst(tmp_path):
    """Attempts in quick succession end in a refusal; that a duplicate and a restart change nothing, it checks itself."""
    lines = run("velocity_windows.py", cwd=tmp_path).splitlines()
    assert lines[0].startswith("replayed and backfilled 12180 payments")
    assert lines[1].startswith("attempt 1: approve")
    assert lines[7].startswith("attempt 7: decline")
    assert lines[8] == "restored: the same score"


@pytest.mark.requires("onnx", "pyarrow")
def test_fallback_ladder_degrades_in_declared_steps(tmp_path):
    """The release before, the last score, the prior, the caller's own word; fraud goes to review from rung 3 on."""
    assert run("fallback_ladder.py", cwd=tmp_path).splitlines() == [
        "payment: review by fraud-42, rung 0",
        "  rung 1 instead of the release: ScoreError",
        "refund: approve by fraud-41, rung 1",
        "small payment: approve by fraud-42, rung 0",
        "  rung 3 instead of the release: ScoreError",
        "its refund: review by fraud-42, rung 3",
        "  rung 4 instead of the release: ScoreError",
        "another card's refund: review by fraud-42, rung 4",
        "  nobody answered: ScoreError",
        "without rungs: ask a person",
        "rungs of the first scorer:",
        "previous: 1 answers",
        "last_score: 0 answers",
        "static: 0 answers",
    ]


@pytest.mark.requires("sklearn", "skl2onnx", "pyarrow")
def test_decision_log_counts_and_erases(tmp_path):
    """Every decision is in the table; one card's are gone afterwards."""
    lines = run("decision_log.py", cwd=tmp_path).splitlines()
    counted = [int(re.search(r": (\d+) payments", line)[1]) for line in lines[:3]]
    assert sum(counted) == 500
    assert lines[3].endswith("of 32 characters")
    found = re.fullmatch(r"card-7: (\d+) decisions erased, (\d+) are left", lines[4])
    assert int(found[1]) > 0
    assert int(found[1]) + int(found[2]) == 500


@pytest.mark.requires("fastapi", "httpx", "lightgbm", "onnxmltools")
def test_fastapi_app_answers_and_refuses(packed, monkeypatch):
    """A decision as JSON; a wrong field is 422 and names it; what is no JSON is 400."""
    import httpx

    folder, _ = packed
    app = imported("fastapi_app", monkeypatch, folder).app

    async def post(*bodies: bytes) -> list[httpx.Response]:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client,
        ):
            return [await client.post("/score", content=body) for body in bodies]

    wrong = json.dumps(PAYMENT | {"card_id": "x" * 70_000})
    good, refused, broken = asyncio.run(post(json.dumps(PAYMENT).encode(), wrong.encode(), b"{"))
    assert (good.status_code, good.json()["action"]) == (200, "approve")
    assert refused.status_code == 422
    assert "$.card_id" in refused.text
    assert broken.status_code == 400


@pytest.mark.requires("flask", "lightgbm", "onnxmltools", "gunicorn")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="platform: gunicorn, and /proc")
def test_flask_app_under_gunicorn_answers_refuses_and_ends(packed, tmp_path):
    """With the settings of gunicorn_conf.py: one master that has loaded the release, workers that share it."""
    folder, application = packed[0], "flask_app"
    command = ["-m", "gunicorn", "-c", str(EXAMPLES / "gunicorn_conf.py"), "--bind", "127.0.0.1:{port}"]
    settings = {"RELEASE": str(folder / "fraud"), "CARDS": str(folder / "cards.parquet")}
    options = ["--no-control-socket", "--chdir", str(EXAMPLES), f"{application}:app"]
    with WebServer(tmp_path, [sys.executable, *command, *options], **settings) as server:
        client = Client(server.port)

        def post(body: object) -> tuple[int, str]:
            status, answer, _ = client.post("/score", json.dumps(body).encode())
            return status, answer.decode()

        status, answer = post(PAYMENT)
        assert (status, json.loads(answer)["action"]) == (200, "approve")
        status, answer = post(PAYMENT | {"amount": "19.90"})
        assert status == 422
        assert "$.amount" in answer
        assert client.post("/score", b"{")[0] == 400
        client.close()
        until(lambda: len(server.workers()) == usable_cpus(), what="every worker to be there")
        assert server.stop_within(5)[0] == 0
        assert "Traceback" not in server.log()


@pytest.mark.requires("sklearn", "skl2onnx", "pyarrow", "urllib3")
def test_remote_fallback_goes_through_what_it_says(tmp_path):
    """The server answers and agrees; slow, lying and dead it is not believed, and the release decides."""
    said = run("remote_fallback.py", cwd=tmp_path)
    assert "remote:fraud gave the last one; 100% of 100 actions are the same" in said
    assert "slow: decline by fraud, rung 0" in said
    assert "lies: decline by fraud, rung 0" in said
    assert "{'timeout': 1, 'malformed': 1}" in said
    assert "the breaker is open: 5 times in a row it was not reached" in said
    assert re.search(r"'open': [1-9]", said)
