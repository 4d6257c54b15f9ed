"""Remote under gevent, which puts greenlets in the place of threads and sockets: in a process patched from the start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.requires("gevent", "urllib3")

PROGRAM = """
from gevent import monkey
monkey.patch_all()
import sys, time
sys.path.insert(0, sys.argv[1])
import gevent
import numpy as np
from model_servers import OipServer
import retailinfer as ri
from retailinfer.clock import SystemClock
from retailinfer.errors import RemoteError

ROWS = {"features": np.ones((2, 4), np.float32)}

def go(remote, ms=20_000, **more):
    return remote.infer(ROWS, ["score"], end_ns=SystemClock.monotonic_ns() + ms * 1_000_000, **more)["score"]

with OipServer() as server, OipServer() as other:
    remote = ri.Remote(server.url, model="fraud", timeout_ms=20_000)
    go(remote)
    server.delay_s = 0.3
    begin = time.monotonic()
    jobs = [gevent.spawn(go, remote) for _ in range(8)]
    gevent.joinall(jobs, raise_error=True)
    assert time.monotonic() - begin < 1.5, "greenlets wait one after the other"

    killed = gevent.spawn(go, remote)
    gevent.sleep(0.05)
    killed.kill()
    assert remote.report().in_flight == 0, "a killed greenlet kept its place"
    server.delay_s = 5
    try:
        with gevent.Timeout(0.2):
            go(remote)
    except gevent.Timeout:
        pass
    assert remote.report().in_flight == 0
    assert remote.report().endpoints[0].failures == {}, "what gevent ended is nobody's failure"
    begin = time.monotonic()
    try:
        go(remote, 200)
    except RemoteError as exc:
        assert exc.kind == "timeout"
    assert 0.15 < time.monotonic() - begin < 1.0
    server.delay_s = 0
    go(remote)

    hedged = ri.Remote([server.url, other.url], model="fraud", timeout_ms=20_000, hedge=True)
    for _ in range(60):
        go(hedged, shadow=True)  # paid for, and not hedged
    server.delay_s = 5
    begin = time.monotonic()
    for _ in range(2):
        go(hedged)
    assert time.monotonic() - begin < 3 and hedged.report().hedges >= 1
    remote.close()
    hedged.close()
print("well")
"""


def test_greenlets_wait_side_by_side_and_leave_nothing_when_killed():
    """Eight calls take the time of one; kills and timeouts of gevent give places back; hedges run on greenlets."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(Path(__file__).parent)],
        capture_output=True, text=True, check=False, timeout=90, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "well\n"
