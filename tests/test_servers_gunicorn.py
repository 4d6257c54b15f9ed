"""Scorers and rankers under gunicorn: every class of workers, with and without preload (cases 50, 52, 53).

The eight tests of recycling send more than 13,000 requests together, while more than 50 workers are replaced.
"""

from __future__ import annotations

import signal
import sys

import pytest
from servers import Load, alive, end_worker, gunicorn, releases_folder, serve
from services import until

__all__ = ["releases_folder", "serve"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="platform: reads /proc"),
]

MATRIX = [(kind, preload) for kind in ("sync", "gthread", "uvicorn", "gevent") for preload in (True, False)]
matrix = pytest.mark.parametrize(
    ("kind", "preload"),
    [
        pytest.param(kind, preload, id=f"{kind}-{'preload' if preload else 'alone'}")
        for kind, preload in MATRIX
    ],
)
REQUESTS = 1_700
# Requests after which a worker ends, and how many do at least; gunicorn's loop for gevent looks once a second only.
RECYCLES = {"sync": (140, 9), "gthread": (140, 9), "uvicorn": (50, 9), "gevent": (50, 2)}
EXIT_S = {"gevent": 3.0}  # that loop, twice


def check(load: Load) -> None:
    """No request without its right answer."""
    assert load.wrong == []
    assert 0 not in load.workers


@matrix
def test_c52_workers_are_recycled_under_load(kind, preload, serve):
    """Each worker ends itself after so many requests; nobody notices but the log."""
    most, recycled = RECYCLES[kind]
    options = ["--max-requests", str(most), "--max-requests-jitter", "10"]
    server = serve(gunicorn(kind, preload=preload, options=options))
    with Load(server.port) as load:
        until(
            lambda: load.answered >= REQUESTS and len(load.workers) - 2 >= recycled,
            what="requests and new workers",
            within_s=120,
        )
    check(load)
    assert load.retries <= load.answered / 10
    loaded_in = {facts["loaded_in"] for facts in server.facts().values()}
    assert (loaded_in == {server.pid}) is preload
    code, took = server.stop_within(5)
    assert code == 0
    assert took <= EXIT_S.get(kind, 1.0) + 1.0
    assert "Traceback" not in server.log()


@matrix
def test_c52_workers_exit_within_a_second_of_sigterm_under_load(kind, preload, serve):
    """Twice each worker; what is in flight is answered, and the master replaces who has gone."""
    server = serve(gunicorn(kind, preload=preload))
    times = []
    with Load(server.port) as load:
        for _ in range(2):
            load.more(50)
            times += [end_worker(pid, signal.SIGTERM) for pid in server.facts()]
        load.more(50)
    check(load)
    assert len(times) == 4
    assert max(times) <= EXIT_S.get(kind, 1.0), times
    assert "Traceback" not in server.log()


@pytest.mark.parametrize("kind", ["sync", "gthread", "uvicorn"])
def test_c53_a_worker_that_is_killed_takes_nobody_along(kind, serve):
    """As the kernel does when memory runs out: only an answer that it had begun is lost, everything else is answered."""
    server = serve(gunicorn(kind, preload=True))
    with Load(server.port) as load:
        for _ in range(5):
            load.more(40)
            end_worker(min(server.facts()), signal.SIGKILL)
        load.more(40)
        server.facts()
    cut = [answer for status, answer in load.wrong if (status, answer[:14]) == (0, b"IncompleteRead")]
    assert len(load.wrong) == len(cut) <= 5
    assert len(load.workers - {0}) >= 4


@pytest.mark.parametrize("kind", ["sync", "gthread", "uvicorn"])
def test_c52_sigint_ends_workers_and_masters(kind, serve):
    """Ctrl-C: a quick end, no hang; workers that it ends alone are replaced.

    A master tells its workers by SIGQUIT, which uvicorn's do not follow, whatever they serve.
    """
    server = serve(gunicorn(kind, preload=True))
    assert max(end_worker(pid, signal.SIGINT) for pid in server.facts()) <= 1.0
    master, workers = server.pid, list(server.facts())
    if kind != "uvicorn":
        assert end_worker(master, signal.SIGINT) <= 2.0
        assert not any(alive(pid) for pid in workers)


def test_c50_a_master_with_a_default_session_of_onnxruntime_serves_and_ends(serve, tmp_path):
    """Somebody else's session with threads, made in the master: `ri.preload` keeps the workers from ending it."""
    (tmp_path / "beside.py").write_text(
        "import onnxruntime, releases\n"
        "options = onnxruntime.SessionOptions()\n"
        "options.intra_op_num_threads = 2\n"
        "session = onnxruntime.InferenceSession(releases.deep_network(15), options, providers=['CPUExecutionProvider'])\n"
        "from served_app import *\n"
    )
    command = [*gunicorn("sync", preload=True)[:-1], "--pythonpath", str(tmp_path), "beside:application"]
    server = serve(command)
    assert "threads of their own: 1;" in server.log()
    with Load(server.port, most=200) as load:
        load.wait()
    check(load)
    assert max(end_worker(pid, signal.SIGTERM) for pid in server.facts()) <= 1.0
    server.facts()
    assert server.stop_within(5)[0] == 0
