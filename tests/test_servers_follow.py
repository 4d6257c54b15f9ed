"""Workers of gunicorn that follow a registry: releases are swapped while workers are recycled, and nobody notices."""

from __future__ import annotations

import http.client
import json
import signal
import sys
import time

import pytest
from following import REQUEST, SCORES, digest_of, registry, release
from servers import Client, Load, WebServer, end_worker, gunicorn, releases_folder, serve
from services import until

__all__ = ["releases_folder", "serve"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="platform: reads /proc"),
]
BODY = json.dumps(REQUEST).encode()


class Asks(Load):
    """Sends one request again and again; an answer is right when its score is that of the release that it names."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.releases: set[str] = set()

    def _send(self, number: int) -> None:
        client = Client(self._port)
        while not self._stop.is_set():
            try:
                status, answer, worker = client.post("/score", BODY)
                decision = json.loads(answer)
                fine = status == 200 and decision["score"] == SCORES[decision["release"]]
            except (OSError, http.client.HTTPException, ValueError, KeyError) as exc:
                fine, status, answer, worker, decision = False, 0, repr(exc).encode(), 0, {}
            with self._lock:
                self.answered += 1
                self.workers.add(worker)
                self.releases.add(decision.get("release", ""))
                if not fine:
                    self.wrong.append((status, answer[:300]))
        client.close()


def killed(server: WebServer) -> bool:
    """Whether a worker was killed: one that was about to be recycled may be gone first."""
    try:
        end_worker(max(server.facts()), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("kind", "preload"),
    [("gthread", True), ("gthread", False), ("sync", True), ("gevent", False)],
    ids=["gthread-preload", "gthread-alone", "sync-preload", "gevent-alone"],
)
def test_workers_are_recycled_while_releases_swap(kind, preload, serve, tmp_path):
    """Every answer is of one release; new workers start with what answers; all of them end up with the last one promoted."""
    place = registry(tmp_path / "registry", "1.0", "1.1", "1.2")
    options = ["--max-requests", "150", "--max-requests-jitter", "20"]
    command = [
        word.replace("served_app", "followed_app")
        for word in gunicorn(kind, preload=preload, options=options)
    ]
    server = serve(command, FOLLOWED=str(tmp_path))
    with Asks(server.port) as load:
        for i in range(9):
            place.promote(f"fraud:{('1.1', '1.2', '1.0')[i % 3]}", why="next")
            load.more(120)
            time.sleep(0.1)
        least = 4 if kind == "gevent" else 6
        until(lambda: len(load.workers) >= least, what="recycled workers", within_s=60)
        until(lambda: killed(server), what="a worker to be killed")
        load.more(50)
    # what a killed worker had begun is lost, nothing else
    cut = [one for one in load.wrong if one[0] == 0 and b"IncompleteRead" in one[1]]
    assert len(load.wrong) == len(cut) <= 4  # as many as a worker has threads
    assert load.releases - {""} == set(list(SCORES)[:3])
    last = digest_of(release("1.0"))
    until(
        lambda: {facts["running"] for facts in server.facts().values()} == {last},
        what="the last release in every worker",
    )
    code, took = server.stop_within(5)
    assert code == 0
    assert took <= 4.0
    assert "Traceback" not in server.log()
