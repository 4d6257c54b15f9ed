"""Scorers and rankers under uvicorn with several workers, uWSGI, Celery's prefork pool, and pools of multiprocessing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import run_script
from servers import Load, alive, end_worker, releases_folder, serve
from services import children_of, until

__all__ = ["releases_folder", "serve"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="platform: reads /proc"),
]

REQUESTS = 600


def test_uvicorn_with_two_workers(serve):
    """It spawns them: nothing is inherited, and a worker that ends is replaced."""
    command = [
        "-m",
        "uvicorn",
        "--port",
        "{port}",
        "--workers",
        "2",
        "--log-level",
        "warning",
        "served_app:asgi",
    ]
    server = serve([sys.executable, *command])
    with Load(server.port) as load:
        load.more(REQUESTS // 2)
        facts = server.facts()
        assert {one["loaded_in"] for one in facts.values()} == set(facts)
        assert end_worker(min(facts), signal.SIGTERM) <= 1.0
        server.facts()
        load.more(REQUESTS // 2)
    assert load.wrong == []
    code, took = server.stop_within(10)
    assert code in (0, -signal.SIGTERM)
    assert took <= 3.0
    assert "Traceback" not in server.log()


@pytest.mark.parametrize(("lazy", "threads"), [(False, 4), (True, 1)], ids=["forked-threads", "lazy-apps"])
def test_uwsgi(serve, lazy, threads):
    """It forks in C, and calls Python's hooks; with `--enable-threads` sources are read through as everywhere else."""
    program = shutil.which(
        "uwsgi", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if program is None:
        pytest.skip("platform: uWSGI could not be built here (it needs a C compiler and Python's headers)")
    command = [
        program, "--http-socket", "127.0.0.1:{port}", "--module", "served_app:application", "--master", "--die-on-term",
        "--processes", "2", "--threads", str(threads), "--enable-threads", "--need-app", "--disable-logging",
        "--max-requests", "100", "--max-worker-lifetime-delta", "1", "--virtualenv", sys.prefix,
        *(["--lazy-apps"] if lazy else []),
    ]  # fmt: skip
    server = serve(command, PRELOAD="0" if lazy else "1")
    with Load(server.port) as load:
        load.more(REQUESTS)
        until(lambda: len(load.workers) >= 4, what="new workers", within_s=60)
    assert load.wrong == []
    facts = server.facts()
    assert {one["loaded_in"] for one in facts.values()} == (set(facts) if lazy else {server.pid})
    _, took = server.stop_within(10)
    assert took <= 3.0
    assert "Traceback" not in server.log()


def test_celery_prefork(tmp_path, releases_folder):
    """200 tasks in two processes that are replaced after 40 each; all of them finish what must be finished."""
    pytest.importorskip("celery")
    queue = tmp_path / "queue"
    path = os.pathsep.join([str(Path(__file__).parent), *[p for p in sys.path if p]])
    settings = {
        "SERVED": str(releases_folder),
        "QUEUE": str(queue),
        "PRELOAD": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    options = [
        "--pool",
        "prefork",
        "--concurrency",
        "2",
        "--max-tasks-per-child",
        "40",
        "--loglevel",
        "warning",
    ]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "served_tasks", "worker", *options, *quiet],
            env={**os.environ, "PYTHONPATH": path, "C_FORCE_ROOT": "1", **settings},
            stdout=log, stderr=log, cwd=tmp_path, start_new_session=True,
        )  # fmt: skip
    try:
        out = run_script(
            """
import served_tasks
wanted = [(i % 50, i / 4) for i in range(200)]
sent = [served_tasks.score.delay(*one) for one in wanted]
got = [one.get(timeout=60, interval=0.02) for one in sent]
print([score for score, _ in got] == [card + amount for card, amount in wanted], len({pid for _, pid in got}) >= 4)
""",
            **settings,
        )
        assert out == "True True", (tmp_path / "log").read_text()[-3000:]
        pids = children_of(worker.pid)
        start = time.monotonic()
        worker.terminate()
        assert worker.wait(15) == 0
        assert time.monotonic() - start <= 5.0  # each process gives its last message a second to arrive
        assert not any(alive(pid) for pid in pids)
        ended = {int(one.name) for one in (queue / "ended").iterdir()}
        assert {*pids, worker.pid} <= ended
        assert len(ended) >= 5
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait(10)
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_multiprocessing(how):
    """Pools answer, and end; with a ranker and a scorer loaded and used before."""
    out = run_script(f"""
import multiprocessing
import releases, worker_for_tests
want = releases.payment_scorer().score(releases.payment()).score
with multiprocessing.get_context({how!r}).Pool(2, maxtasksperchild=10) as pool:
    print(set(pool.map(worker_for_tests.score, range(40), chunksize=1)) == {{want}})
    pool.close()
    pool.join()
""")  # fmt: skip
    assert out == "True"
