"""The ladder over a real model server: HTTP on this machine, answers, hangs, refusals and lies."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from model_servers import HostileServer, OipServer
from test_degrade import BAD, GOOD, WORSE, Heard, scorer_of

import retailinfer as ri
from retailinfer.monitoring.events import Answered, Changed

pytestmark = pytest.mark.requires("urllib3")

METADATA = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
}


def half(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Another model than the release's, so that it is seen who answered."""
    return {"y": np.abs(inputs["x"]) / 2}


@pytest.fixture
def server() -> Iterator[OipServer]:
    """A model server that is well."""
    with OipServer(half, metadata=METADATA) as one:
        yield one


def laddered(url: str, *, timeout_ms: float = 5_000, **options: Any) -> tuple[ri.Scorer, ri.Remote]:
    """A release whose ladder is a remote and a rule."""
    remote = ri.Remote(url, model="fraud", timeout_ms=timeout_ms)
    return scorer_of("remote", "static", remote=remote, **options), remote


def test_model_server_answers_what_the_release_cannot(server):
    """With the release's features over the wire, by the release's policy; not asked while the release answers."""
    heard = Heard()
    scorer, remote = laddered(server.url, hooks=[heard])
    scorer._lasting.close()  # no drills here
    assert scorer.score(GOOD).rung == 0
    assert server.n_inferred == 0
    made = scorer.score(BAD, request_id="r")
    assert (made.id, made.rung, made.release, made.score, made.action) == (
        "r",
        2,
        "remote:fraud",
        0.125,
        "approve",
    )
    assert asyncio.run(scorer.ascore(BAD)).score == 0.125
    assert [d.rung for d in scorer.score_batch([GOOD, BAD, BAD])] == [0, 2, 2]  # type: ignore[union-attr]
    assert server.n_inferred == 4
    assert {event.why for event in heard.of(Answered) if event.answer.rung} == {"ScoreError"}
    remote.close()


def test_server_that_hangs_is_given_up_for_the_rule_in_time(server):
    """The rung's own limit ends it, so that the rule below is still asked within the deadline."""
    server.delay_s = 30.0
    remote = ri.Remote(server.url, model="fraud", timeout_ms=60_000)
    rungs = ri.Rung(kind="remote", max_ms=100), "static"
    scorer = scorer_of(*rungs, remote=remote, deadline_ms=20_000)
    began = time.perf_counter()
    assert scorer.score(BAD).rung == 4
    assert time.perf_counter() - began < 10.0
    assert scorer.health().rungs[0].state == "failing"
    server.stop.set()
    remote.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>",
        b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2000000000\r\n\r\n{",
        b"",
    ],
    ids=["html", "500", "redirect", "2 GB", "reset"],
)
def test_whatever_a_server_says_the_rule_answers(reply):
    """A typed failure of the rung each time, never an error of the call."""

    def behave(sock: socket.socket, request: bytes, stop: threading.Event) -> None:
        sock.sendall(reply)

    with HostileServer(behave) as hostile:
        scorer, remote = laddered(hostile.url, timeout_ms=2_000)
        for request in (BAD, WORSE):
            assert scorer.score(request).rung == 4
        report = scorer.health().rungs[0]
        assert (report.answers, report.failures) == (0, 2)
        remote.close()


def test_dead_server_opens_its_breaker_and_then_costs_nothing():
    """Connections are refused: soon nobody tries, and `health` says so."""
    with OipServer(half, metadata=METADATA) as gone:
        url = gone.url
    heard = Heard()
    scorer, remote = laddered(url, hooks=[heard])
    assert [scorer.score(BAD).rung for _ in range(30)] == [4] * 30
    health = scorer.health()
    assert list(health.breakers.values()) == ["open"]
    assert health.rungs[0].failures == 30
    remote.close()


def test_drills_keep_the_server_known(server):
    """The first answer of the release, and every thousandth, is asked of the server too, in the shadow."""
    heard = Heard()
    scorer, remote = laddered(server.url, hooks=[heard])
    scorer.score(GOOD)
    pause = threading.Event()
    for _ in range(5_000):
        if scorer.health().rungs[1].drills:
            break
        pause.wait(0.002)
    report = scorer.health().rungs[0]
    assert (report.drills, report.failed_drills, report.answers, report.state) == (1, 0, 0, "ready")
    assert report.p99_ms > 0
    assert server.n_inferred == 1
    first = heard.of(Changed)[0]
    assert (first.part, first.after) == ("rung remote", "ready")
    remote.close()
