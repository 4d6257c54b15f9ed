"""The decision log across processes: clean ends lose nothing, a kill loses less than a second, forks mix nothing up.

Each test runs scripts in processes of their own, with a bounded wait.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from decisions import answered, ids, kinds, listing, log_of, until
from processes import run_script

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no fork here")
FORMATS = pytest.mark.parametrize("kind", ["jsonl", "parquet"])

PRELUDE = """
import os, random, signal, sys, threading, time
from pathlib import Path
from decisions import AT_NS, answered, decision, ids, log_of

def wait(pid, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hung"
"""


def started(script: str) -> subprocess.Popen[str]:
    """A script in a process of its own, which is left to run."""
    path = os.pathsep.join([str(Path(__file__).parent), *[p for p in sys.path if p]])
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@POSIX
@FORMATS
@pytest.mark.parametrize(
    "leave", ["", "sys.exit(0)", "raise SystemExit(0)", "os.kill(os.getpid(), 15)", "log.close()"]
)
def test_a_clean_end_loses_nothing(tmp_path, leave, kind):
    """The last line, an exit, SIGTERM under a handler that exits; within a second."""
    out = run_script(
        PRELUDE
        + f"""
import atexit
signal.signal(15, lambda *_: sys.exit(0))
atexit.register(lambda: print(time.monotonic() - begun))
log = log_of(Path({str(tmp_path)!r}), format={kind!r}, max_queue=100_000)
for i in range(5_000):
    log.on_event(answered(i))
begun = time.monotonic()
{leave}
"""
    )
    log = log_of(tmp_path, format=kind)
    assert ids(log) == [f"order-{i}" for i in range(5_000)]
    assert kinds(tmp_path) == ["decisions.jsonl" if kind == "jsonl" else "sealed.jsonl"]
    assert float(out) < 2.0  # on a busy machine


@POSIX
@FORMATS
@pytest.mark.slow
def test_a_kill_loses_less_than_a_second_and_nothing_else(tmp_path, kind):
    """kill -9 in the middle of writing: what was answered a second before is there, once, and the next process cleans up."""
    done = 0
    for k in range(4):
        before = ids(log_of(tmp_path, format=kind))
        process = started(f"""
log = log_of(Path({str(tmp_path)!r}), format={kind!r}, rotate_mb=0.05)
i = {done}
print("go", flush=True)
while True:
    log.on_event(answered(i, at_ns=time.time_ns()))
    i += 1
    if i % 5 == 0:
        time.sleep(0.001)
""")
        assert process.stdout.readline() == "go\n"
        time.sleep(1.0 + 0.13 * k)
        killed_ns = time.time_ns()
        process.kill()
        process.communicate()
        log = log_of(tmp_path, format=kind)
        got = sorted(int(row["id"][6:]) for row in log.rows())
        assert len(set(got)) == len(got)
        new = got[len(before) :]
        assert new == list(range(done, done + len(new)))  # none missing in between
        last_ns = max(row["at_ns"] for row in log.rows())
        assert killed_ns - last_ns < 1_000_000_000
        done = got[-1] + 1
        assert len(before) == len(got) - len(new)


@POSIX
@FORMATS
@pytest.mark.slow
def test_forks_lose_and_double_nothing(tmp_path, kind):
    """Children and parent write while threads of the parent do; each child ends in another way."""
    out = run_script(
        PRELUDE
        + f"""
log = log_of(Path({str(tmp_path)!r}), format={kind!r}, rotate_mb=0.05, max_queue=100_000)
stop, n = threading.Event(), [0]
def work():
    while not stop.is_set():
        log.on_event(answered(n[0], answer=decision(id=f"parent-{{n[0]}}")))
        n[0] += 1
        if n[0] % 10 == 0:
            time.sleep(0.001)
thread = threading.Thread(target=work)
thread.start()
codes, want = [], set()
for child in range(24):
    time.sleep(random.Random(child).random() * 0.03)
    pid = os.fork()
    if pid == 0:
        for i in range(30):
            log.on_event(answered(i, answer=decision(id=f"child{{child}}-{{i}}")))
        if child % 4 == 0:
            log.close()
            os._exit(0)
        if child % 4 == 1:
            assert log.flush()
            os._exit(0)
        if child % 4 == 2:
            inner = os.fork()
            if inner == 0:
                log.on_event(answered(0, answer=decision(id=f"grandchild{{child}}-0")))
                sys.exit(0)
            assert wait(inner) == 0
        sys.exit(0)
    want |= {{f"child{{child}}-{{i}}" for i in range(30)}}
    if child % 4 == 2:
        want.add(f"grandchild{{child}}-0")
    codes.append(wait(pid))
stop.set()
thread.join()
assert set(codes) == {{0}}, codes
want |= {{f"parent-{{i}}" for i in range(n[0])}}
got = [row["id"] for row in log.rows()]
assert len(got) == len(set(got)), "twice"
assert set(got) == want, (sorted(want - set(got))[:5], len(want - set(got)), len(set(got) - want))
assert log.stats().dropped == 0
print("ok")
"""
    )
    assert out == "ok"


@POSIX
@pytest.mark.parametrize("how", ["fork", "forkserver", "spawn"])
@FORMATS
def test_workers_of_multiprocessing_lose_nothing(tmp_path, how, kind):
    """They leave by os._exit; a log that they inherited, and one of their own."""
    script = tmp_path / "main.py"
    folder = tmp_path / "decisions"
    script.write_text(
        PRELUDE
        + f"""
import multiprocessing
FOLDER = Path({str(folder)!r})
log = None
def work(k):
    global log
    if log is None:
        log = log_of(FOLDER, format={kind!r})
    for i in range(50 * k, 50 * k + 50):
        log.on_event(answered(i))
    return os.getpid()
if __name__ == "__main__":
    log = log_of(FOLDER, format={kind!r})
    work(0)
    context = multiprocessing.get_context({how!r})
    with context.Pool(2) as pool:
        pids = set(pool.map(work, range(1, 9), chunksize=1))
        pool.close()
        pool.join()
    worker = context.Process(target=work, args=(9,))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
"""
    )
    run_script(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')")
    assert ids(log_of(folder, format=kind)) == [f"order-{i}" for i in range(500)]


@POSIX
@pytest.mark.slow
def test_kills_at_random_moments_cost_nothing_that_was_flushed():
    """Of writers that rotate, recover and convert, and of erasures; `make soak` kills 10,000."""
    import json

    said = run_script("import decision_kills, json; print(json.dumps(decision_kills.run(60, 11)))")
    found = json.loads(said)
    assert found["wrong"] == []
    assert found["kills"] == 60
    assert found["rows"] > 1_000


@POSIX
@FORMATS
@pytest.mark.slow
def test_processes_share_a_folder_and_die_in_it(tmp_path, kind):
    """Four at once, two of them killed now and then: every row is there at most once, and of those that lived, every one."""
    script = """
stop = []
signal.signal(15, lambda *_: stop.append(1))
log = log_of(Path({folder!r}), format={kind!r}, rotate_mb=0.02, max_queue=100_000)
print("go", flush=True)
i = 0
while not stop:
    log.on_event(answered(i, answer=decision(id=f"{name}-{{i}}")))
    i += 1
    if i % 20 == 0:
        time.sleep(0.002)
print(i)
"""
    counts = {}
    for round_ in range(2):
        running = {
            f"{how}{round_}{k}": started(
                script.format(folder=str(tmp_path), kind=kind, name=f"{how}{round_}{k}")
            )
            for how in ("clean", "killed")
            for k in range(2)
        }
        for process in running.values():
            assert process.stdout.readline() == "go\n"
        time.sleep(1.5)
        for name, process in running.items():
            process.send_signal(signal.SIGTERM if name.startswith("clean") else signal.SIGKILL)
        for name, process in running.items():
            out, err = process.communicate(timeout=60)
            assert process.returncode == (0 if name.startswith("clean") else -9), err
            counts[name] = int(out) if name.startswith("clean") else 0
    log = log_of(tmp_path, format=kind)
    got: dict[str, list[int]] = {}
    for row in log.rows():
        name, _, number = row["id"].partition("-")
        got.setdefault(name, []).append(int(number))
    for name, count in counts.items():
        numbers = sorted(got[name])
        assert numbers == list(range(len(numbers))), name
        if name.startswith("clean"):
            assert len(numbers) == count, name
    log.start()
    log._outbox._rouse()
    assert until(
        lambda: {file.kind for file in listing(tmp_path).files if file.pid != os.getpid()} == {"decisions"}
    )
    assert sum(map(len, got.values())) == len(list(log.rows()))
    log.close()


GUNICORN_APP = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from decisions import answered, decision, log_of

log = log_of(Path({folder!r}), format={kind!r})

def app(environ, start_response):
    i = environ["QUERY_STRING"]
    log.on_event(answered(0, answer=decision(id=f"order-{{i}}")))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]
"""


@POSIX
@pytest.mark.requires("gunicorn", "gevent")
@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize("worker", ["sync", "gthread", "gevent"])
@FORMATS
def test_gunicorn_loses_nothing_on_sigterm_and_recycling(tmp_path, preload, worker, kind):
    """Workers come and go (max_requests), then all are asked to end: each request has its one row."""
    import socket
    import urllib.request

    folder = tmp_path / "decisions"
    (tmp_path / "decisions_app.py").write_text(
        GUNICORN_APP.format(tests=str(Path(__file__).parent), folder=str(folder), kind=kind)
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            sys.executable, "-m", "gunicorn", "-w", "2", "-k", worker, "--threads", "2", "-b", f"127.0.0.1:{port}",
            "--max-requests", "40", "--log-level", "warning",
            "--graceful-timeout", "3",  # a worker that is still booting misses the signal, in gunicorn, and is waited for
            *(["--preload"] if preload else []), "decisions_app:app",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *[p for p in sys.path if p]])},
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    sent = []
    try:
        end = time.monotonic() + 30
        while len(sent) < 200 and time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/?{len(sent)}", timeout=5) as reply:
                    assert reply.read() == b"ok"
                sent.append(f"order-{len(sent)}")
            except OSError:  # it starts; a worker that was recycled took the connection with it
                time.sleep(0.05)
        begun = time.monotonic()
        server.send_signal(signal.SIGTERM)
        _, err = server.communicate(timeout=30)
        took_s = time.monotonic() - begun
    finally:
        server.kill()
        server.wait()
    assert len(sent) == 200, err
    log = log_of(folder, format=kind)
    got = ids(log)
    assert sorted(set(got)) == sorted(set(sent))
    # a request whose connection was lost may have been answered, and was sent again under the same number
    assert len(got) <= len(sent) + 10
    assert took_s < 5.0
    assert "live.jsonl" not in kinds(folder)


@POSIX
def test_a_slow_disk_does_not_hold_up_a_fork_for_long(tmp_path):
    """A fork waits for the writer, for a second; then it happens nevertheless, and the child's log works."""
    out = run_script(
        PRELUDE
        + f"""
from retailinfer.monitoring import decision_folder
log = log_of(Path({str(tmp_path)!r}))
log.on_event(answered(0))
log.flush()
real = os.write
gate = threading.Event()
def slow(fd, data):
    gate.wait()
    return real(fd, data)
decision_folder.os.write = slow
log.on_event(answered(1))
time.sleep(0.3)
begun = time.monotonic()
pid = os.fork()
if pid == 0:
    decision_folder.os.write = real
    log.on_event(answered(2))
    assert log.flush(), "stuck"
    sys.exit(0)
took = time.monotonic() - begun
assert wait(pid) == 0
gate.set()
assert log.flush()
print(ids(log), took < 3.0)
"""
    )
    assert out == "['order-0', 'order-1', 'order-2'] True"


@POSIX
@FORMATS
def test_a_disk_that_does_not_answer_costs_no_row_at_the_end(tmp_path, kind):
    """fsync may take seconds: what finishes files of others waits for it, and neither rows nor the end of the process do."""
    for i in range(2):  # something to finish
        log = log_of(tmp_path, format="parquet")
        log.on_event(answered(i))
        log.close()
    out = run_script(
        PRELUDE
        + f"""
import atexit
from retailinfer.monitoring import decision_folder
stuck = threading.Event()
def fsync(fd):
    stuck.set()
    time.sleep(60)
decision_folder.os.fsync = fsync
log = log_of(Path({str(tmp_path)!r}), format={kind!r})
for i in range(2, 500):
    log.on_event(answered(i))
assert stuck.wait(20)
for i in range(500, 1_000):
    log.on_event(answered(i))
begun = time.monotonic()
atexit.register(lambda: print(time.monotonic() - begun))
life = sys.modules["retailinfer.life"]
atexit.unregister(life.end_all)
atexit.register(life.end_all)  # before what prints
"""
    )
    assert ids(log_of(tmp_path, format=kind)) == [f"order-{i}" for i in range(1_000)]
    assert float(out) < 2.0


ASGI_APP = """
import contextlib, os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from decisions import answered, decision, log_of

log = log_of(Path({folder!r}))

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                log.close()
                await send({{"type": "lifespan.shutdown.complete"}})
                return
            await send({{"type": "lifespan.startup.complete"}})
    i = scope["query_string"].decode()
    log.on_event(answered(0, answer=decision(id=f"order-{{i}}")))
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"ok"}})
"""


@POSIX
@pytest.mark.requires("uvicorn")
@pytest.mark.parametrize("workers", [1, 2])
def test_uvicorn_loses_nothing_where_lifespan_closes_the_log(tmp_path, workers):
    """It ends by the signal itself, past atexit; what its lifespan closed is written."""
    import socket
    import urllib.request

    folder = tmp_path / "decisions"
    (tmp_path / "asgi_app.py").write_text(
        ASGI_APP.format(tests=str(Path(__file__).parent), folder=str(folder))
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            sys.executable, "-m", "uvicorn", "asgi_app:app", "--port", str(port), "--workers", str(workers),
            "--log-level", "error",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *[p for p in sys.path if p]])},
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    sent: list[str] = []
    try:
        end = time.monotonic() + 60
        while len(sent) < 100 and time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/?{len(sent)}", timeout=5) as reply:
                    assert reply.read() == b"ok"
                sent.append(f"order-{len(sent)}")
            except OSError:  # it starts
                time.sleep(0.05)
        server.send_signal(signal.SIGTERM)  # while the last rows are still in the queue
        _, err = server.communicate(timeout=30)
    finally:
        server.kill()
        server.wait()
    assert len(sent) == 100, err
    assert ids(log_of(folder)) == sent
    assert kinds(folder) == ["decisions.jsonl"] * len(kinds(folder))


@POSIX
@pytest.mark.requires("billiard")
def test_pools_of_celery_lose_nothing_where_they_are_told_to_end(tmp_path):
    """Their workers leave by os._exit; `on_exit` is what Celery's signal worker_process_shutdown is made of."""
    script = tmp_path / "main.py"
    folder = tmp_path / "decisions"
    script.write_text(
        PRELUDE
        + f"""
from retailinfer import life
FOLDER = Path({str(folder)!r})
log = log_of(FOLDER)
def work(k):
    for i in range(50 * k, 50 * k + 50):
        log.on_event(answered(i))
def ended(pid, code):
    life.end_all()
if __name__ == "__main__":
    from billiard.pool import Pool
    work(0)
    pool = Pool(2, on_process_exit=ended)
    pool.map(work, range(1, 9), chunksize=1)
    pool.close()
    pool.join()
"""
    )
    run_script(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')")
    assert ids(log_of(folder)) == [f"order-{i}" for i in range(450)]
