"""gunicorn in a process group of its own, on a free port: there when it answers, gone with everything it started."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["get", "gunicorn"]

START_S = 30.0


@contextlib.contextmanager
def gunicorn(folder: Path, application: str, options: Sequence[str], **environment: str) -> Iterator[int]:
    """Serve with `--preload`; yields the port. Raises: RuntimeError with the log of a server that does not start."""
    for _ in range(5):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = int(sock.getsockname()[1])
        command = [
            sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--preload", "--log-level", "warning",
            "--no-control-socket", "--keep-alive", "30", *options, application,
        ]  # fmt: skip
        path = os.pathsep.join(filter(None, sys.path))
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                cwd=folder,  # gunicorn imports from where it stands: not the source tree, but what is installed
                env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", **environment},
            )  # fmt: skip
        try:
            if _answers(process, port):
                yield port
                return
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    raise RuntimeError(f"gunicorn did not start:\n{(folder / 'log').read_text(errors='replace')[-3000:]}")


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    end_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end_s:
        with contextlib.suppress(OSError, http.client.HTTPException):
            get(port, "/facts")
            return True
        select.select([], [], [], 0.01)
    return False


def get(port: int, path: str) -> Any:
    """One answer over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
