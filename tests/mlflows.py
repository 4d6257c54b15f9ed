"""MLflow for tests: its server, in the environment of mlservers.py, with models that its own client has logged.

Rules:
  * The server and what logs into it run in that environment; ours has no MLflow. Without it a test is skipped, which CI makes
    a failure.
  * Models are logged as people log them: mlflow/log_models.py says which.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from mlservers import mlserver_python
from services import Server

LOGGING = Path(__file__).resolve().parent / "mlflow" / "log_models.py"


class MlflowServer(Server):
    """One process that hands out models itself (`--serve-artifacts`), with SQLite behind it."""

    name = "mlflow"
    start_s = 90.0  # it imports a great deal

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.python = mlserver_python()

    @property
    def url(self) -> str:
        """The tracking URI."""
        return f"http://127.0.0.1:{self.port}"

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLFLOW_"))
        }
        return (
            kept
            | {
                "DO_NOT_TRACK": "true",  # it would tell its makers that it runs
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # nobody asks for jobs, whose runners are more processes
                "GIT_PYTHON_REFRESH": "quiet",
            }
        )

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [
            self.python,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--workers",
            "1",
        ]
        command += ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "./artifacts"]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder, start_new_session=True,
                env=self._environment(),
            )  # fmt: skip

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as sock:
                sock.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                return b" 200 " in sock.recv(64)
        except OSError:
            return False

    def stop(self) -> None:
        """At once: asked politely it takes ten seconds, and nothing of it is kept."""
        self.kill()

    def _end(self, number: int) -> None:
        """Its workers are processes of their own, which a killed parent would leave behind."""
        process = self.process
        super()._end(number)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it began a session, so the group has its number

    def log(self, models: Path) -> dict[str, Any]:
        """Log the models of a folder; name -> what its client knows of them."""
        done = subprocess.run(
            [self.python, str(LOGGING), str(models)],
            env=self._environment() | {"MLFLOW_TRACKING_URI": self.url},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=150, cwd=self.folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return told
