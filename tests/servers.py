"""Real application servers for tests (gunicorn, uvicorn, uWSGI) around served_app.py, and clients that count what went wrong.

Rules:
  * A server gets a free port and a process group of its own; at the end nothing of the group is left, whatever happened.
  * A server is ready when it answers, a worker gone when its process is; nothing is waited for by sleeping.
  * A connection that ends before the first byte of an answer is opened again and the request sent once more, as every client
    and proxy does with requests that may be repeated: servers close connections that they keep alive when they recycle a
    worker (gunicorn #3038). Such retries are counted; anything else is an error.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from services import Server, children_of, until

TESTS = Path(__file__).parent
CLIENT_TIMEOUT_S = 30.0


class WebServer(Server):
    """A server program with workers. `command` is its arguments, in which `{port}` is replaced."""

    name = "web server"

    def __init__(self, folder: Path, command: Sequence[str], **environment: str) -> None:
        super().__init__(folder)
        self.command = command
        self.environment = environment

    def _spawn(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(TESTS), *[p for p in sys.path if p]])
        environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", **self.environment}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [word.format(port=self.port) for word in self.command],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder, env=environment, start_new_session=True,
            )  # fmt: skip

    def _answers(self) -> bool:
        try:
            self.get("/facts")
        except (OSError, http.client.HTTPException):
            return False
        return True

    def stop(self) -> None:
        """Be gone; how it ends when it is asked to is what tests say."""
        self.kill()

    def _end(self, how: signal.Signals) -> None:
        group = self.process.pid if self.process is not None else 0
        super()._end(how)
        if group:
            with contextlib.suppress(ProcessLookupError):  # whoever it left behind
                os.killpg(group, signal.SIGKILL)

    def get(self, path: str) -> Any:
        """One answer over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return json.loads(response.read()) if response.status == 200 else None

    def facts(self, workers: int = 2) -> dict[int, dict[str, Any]]:
        """What each worker says of itself, by process id; asked until so many are there and all of them have answered.

        Who has not answered yet may not listen to signals either: gunicorn forgets one that comes while a worker boots.
        """
        seen: dict[int, dict[str, Any]] = {}

        def all_answered() -> bool:
            with contextlib.suppress(OSError, http.client.HTTPException):  # a worker that ends may be asked
                facts = self.get("/facts")
                seen[facts["pid"]] = facts
            now = self.workers()
            return len(now) == workers and set(now) <= seen.keys()

        until(all_answered, what="an answer of every worker")
        return {pid: seen[pid] for pid in self.workers() if pid in seen}

    def workers(self) -> list[int]:
        """Processes that the master has forked or spawned and that answer requests."""
        return [pid for pid in children_of(self.pid) if alive(pid) and _is_worker(pid)]

    def log(self) -> str:
        """What it has printed so far."""
        return (self.folder / "log").read_text(errors="replace")

    def stop_within(self, seconds: float) -> tuple[int, float]:
        """Ask the master to end; its exit status, and how long all of its processes took."""
        process, pids = self.process, [self.pid, *children_of(self.pid)]
        assert process is not None
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {seconds} s:\n{self._log()}") from None
        until(lambda: not any(alive(pid) for pid in pids), what="its processes to be gone", within_s=seconds)
        took = time.monotonic() - start
        self._end(signal.SIGKILL)
        return code, took


def _is_worker(pid: int) -> bool:
    """Not the process in which multiprocessing keeps account of semaphores."""
    with contextlib.suppress(OSError):
        return b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def alive(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gunicorn(kind: str, *, preload: bool, workers: int = 2, options: Sequence[str] = ()) -> list[str]:
    """Its command for a class of workers: sync, gthread, gevent, uvicorn."""
    classes = {"uvicorn": "uvicorn.workers.UvicornWorker"}
    application = "served_app:asgi" if kind == "uvicorn" else "served_app:application"
    return [
        sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--worker-class", classes.get(kind, kind),
        "--workers", str(workers), "--graceful-timeout", "10", "--log-level", "warning", "--no-control-socket",
        *(["--threads", "4"] if kind == "gthread" else []), *(["--preload"] if preload else []), *options, application,
    ]  # fmt: skip


class Client:
    """One thread's connection. Requests that may be repeated, as in the rules above."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.retries = 0
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, body: bytes, kind: str = "application/json") -> tuple[int, bytes, int]:
        """Status, body, process id of the worker."""
        for attempt in range(20):
            connection = self._connection or http.client.HTTPConnection(
                "127.0.0.1", self.port, timeout=CLIENT_TIMEOUT_S
            )
            self._connection = None
            try:
                connection.request("POST", path, body, {"Content-Type": kind})
                if connection.sock is not None:
                    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                response = connection.getresponse()
            except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected):
                connection.close()
                self.retries += 1
                if attempt == 19:
                    raise
                continue
            try:
                answer = response.read()
            except BaseException:  # cut short
                connection.close()
                raise
            if response.will_close:
                connection.close()
            else:
                self._connection = connection
            return response.status, answer, int(response.headers.get("X-Worker", 0))
        raise AssertionError("not reached")

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Load:
    """Threads that send requests until told to stop, or until so many are answered; every wrong answer is kept."""

    def __init__(self, port: int, *, threads: int = 4, most: int = 1 << 60) -> None:
        self.wrong: list[Any] = []
        self.workers: set[int] = set()
        self.answered = 0
        self.retries = 0
        self._port = port
        self._most = most
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._send, args=(i,)) for i in range(threads)]

    def _send(self, number: int) -> None:
        client = Client(self._port)
        n = 0
        while not self._stop.is_set() and self.answered < self._most:
            n += 1
            amount, card = float(n % 17), (31 * n + number) % 200
            body = b'{"card_id":"card-%d","amount":%.1f}' % (card, amount)
            try:
                if n % 8:
                    status, answer, worker = client.post("/score", body)
                    fine = status == 200 and json.loads(answer)["score"] == amount + card
                else:
                    status, answer, worker = client.post("/rank", RANKING)
                    fine = status == 200 and json.loads(answer)["items"] == RANKED
            except (OSError, http.client.HTTPException, ValueError) as exc:
                fine, status, answer, worker = False, 0, repr(exc).encode(), 0
            with self._lock:
                self.answered += 1
                self.workers.add(worker)
                if not fine:
                    self.wrong.append((status, answer[:300]))
        self.retries += client.retries
        client.close()

    def wait(self) -> Self:
        """Until as many are answered as were wanted."""
        for thread in self._threads:
            thread.join()
        return self

    def more(self, n: int, what: str = "more answers") -> None:
        """Wait for `n` further answers."""
        goal = self.answered + n
        until(lambda: self.answered >= goal, what=what, within_s=60)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


_IDS = [f"sku-{i:03d}" for i in range(40)]
RANKING = json.dumps({"context": {"user": "u", "boost": 1.0}, "candidates": _IDS, "k": 5}).encode()
RANKED = ["sku-006", "sku-013", "sku-020", "sku-027", "sku-034"]


def end_worker(pid: int, how: signal.Signals) -> float:
    """Signal a worker; seconds until it was gone, less those in which it, or who watches it, waited for a processor."""
    start, waited, own = time.monotonic(), [_run_delay_s(pid)], _run_delay_s("thread-self")
    os.kill(pid, how)

    def gone() -> bool:
        waited.append(max(waited[-1], _run_delay_s(pid)))
        return not alive(pid)

    until(gone, what=f"worker to be gone after {how.name}", within_s=15)
    took = time.monotonic() - start
    return took - (waited[-1] - waited[0]) - (_run_delay_s("thread-self") - own)


def _run_delay_s(pid: int | str) -> float:
    """How long the threads of a process were ready to run and did not."""
    total = 0
    for path in Path("/proc").glob(f"{pid}/schedstat" if pid == "thread-self" else f"{pid}/task/*/schedstat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            total += int(path.read_text().split()[1])
    return total / 1e9


@pytest.fixture(scope="session")
def releases_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What served_app.py loads."""
    from served_app import write_releases

    return write_releases(tmp_path_factory.mktemp("served"))


@pytest.fixture
def serve(tmp_path: Path, releases_folder: Path) -> Any:
    """Start a server by its command; it is gone after the test."""
    with contextlib.ExitStack() as stack:

        def start(command: Sequence[str], **environment: str) -> WebServer:
            folder = tmp_path / f"server{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            settings = {"SERVED": str(releases_folder), "PRELOAD": "1" if "--preload" in command else "0"}
            return stack.enter_context(WebServer(folder, command, **settings | environment))

        yield start


Serve = Callable[..., WebServer]
