"""Figures of the remote rung: what its circuit breaker adds to a call, and how late a caller hears of a server that drips."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from benchmarks.harness import Case, Figure, alternate, check_answers, collector_off
from benchmarks.lab import Figures, Lab, UnmeasurableError, measures

__all__: list[str] = []

_END_NS = 1 << 62


@measures("breaker_ns")
def breaker(lab: Lab) -> Figures:
    """Asking a breaker whether a call may be made: while it lets all through, and while it lets none."""
    from retailinfer.resilience.breaker import Breaker, Outcome

    closed, opened = (Breaker(chance=random.Random(seed), now_ns=0) for seed in (1, 2))
    for _ in range(5):
        opened.record(opened.admit(0, 1) or 0, Outcome.UNREACHED, 0)
    moments = range(1_000_000_000, 1_000_001_000)

    def passes(now_ns: int) -> int | None:
        return closed.admit(now_ns, _END_NS)

    def refuses(now_ns: int) -> int | None:
        return opened.admit(now_ns, _END_NS)

    def counts(now_ns: int) -> None:
        closed.record(closed.admit(now_ns, _END_NS) or 0, Outcome.SUCCESS, now_ns, 1_000)

    check_answers("breaker lets through", map(passes, moments), [0] * len(moments))
    check_answers("breaker refuses", map(refuses, moments), [None] * len(moments))
    times = alternate(
        [Case.over(call.__name__, call, list(moments), block=200) for call in (passes, refuses, counts)],
        lab.scaled(0.3),
    )
    rounds = np.maximum(times["passes"].rounds_us(), times["refuses"].rounds_us()) * 1e3
    note = f"with the outcome counted {times['counts'].us() * 1e3:.0f} ns"
    return {"breaker_ns": Figure.of(rounds, lower_is_better=True, note=note)}


# A server of its own process: every connection gets a byte of an answer each millisecond, and never a whole one.
DRIPS = """
import socket, threading, time
def drip(sock):
    try:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 1000000\\r\\n\\r\\n")
        while True:
            time.sleep(0.001)
            sock.sendall(b" ")
    except OSError:
        sock.close()
listener = socket.create_server(("127.0.0.1", 0), backlog=128)
print(listener.getsockname()[1], flush=True)
while True:
    threading.Thread(target=drip, args=(listener.accept()[0],), daemon=True).start()
"""


@contextlib.contextmanager
def _dripping() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-c", DRIPS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@measures("remote_overrun_ms")
def overrun(lab: Lab) -> Figures:
    """Calls to a server that sends a byte a millisecond, by one thread; how long after their deadline they came back."""
    import retailinfer as ri
    from retailinfer.clock import SystemClock

    schedstat = Path("/proc/thread-self/schedstat")
    if not schedstat.exists():
        raise UnmeasurableError(
            "needs Linux: how long the kernel made the thread wait is told beside the figure"
        )
    rows = {"features": np.zeros((1, 4), np.float32)}
    n = 200 if lab.effort.short else 2_000
    rounds, delays, net = [], [], []
    with _dripping() as url, collector_off():
        remote = ri.Remote(url, model="fraud", retries=0, binary=False)
        remote.disable_breaker()
        for _ in range(lab.effort.rounds):
            late_ns = np.empty(n, np.int64)
            for i in range(n):
                waited_ns = int(schedstat.read_text().split()[1])
                end_ns = SystemClock.monotonic_ns() + (1 + i % 5) * 1_000_000
                begin_ns = perf_counter_ns()
                left_ns = end_ns - SystemClock.monotonic_ns()
                kind = "answer"
                try:
                    remote.infer(rows, ["score"], end_ns=end_ns)
                except ri.RemoteError as exc:
                    kind = exc.kind
                late_ns[i] = perf_counter_ns() - begin_ns - left_ns
                delays.append(int(schedstat.read_text().split()[1]) - waited_ns)
                check_answers("a server that drips", [kind in ("timeout", "connect")], [True])
            rounds.append(float(np.quantile(late_ns, 0.9999)) / 1e6)
            net.append(float(np.quantile(late_ns - np.array(delays[-n:]), 0.9999)) / 1e6)
        remote.close()
    delay_ms = np.quantile(delays, 0.9999) / 1e6
    note = f"the kernel kept the thread waiting {delay_ms:.2f} ms at p99.99; less each call's own {np.median(net):.2f} ms"
    return {"remote_overrun_ms": Figure.of(rounds, lower_is_better=True, note=note)}
